"""Warps, masks and stop strings through the sampler: what they say is sampled, at every step and in any batch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from jaxtyping import Bool
from scipy.stats import chisquare
from torch import Tensor

from enumerable import END_ID, FIRST_LETTER, LETTERS, VOCABULARY, letters_policy, next_token
from preflab.config.sampling import Warp
from preflab.data.encode import Encoder
from preflab.errors import ConfigError, NumericError
from preflab.models.load import Policy
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.rollouts.stop import Stop
from preflab.training.rollout import roll_out
from test_choice import theirs
from tiny import tiny_policy

PROMPTS = ((5,), (9, 30, 31, 32, 33, 34, 35), (40, 41, 42), (7, 8), (100, 101, 102, 103, 104))
KEYS = ("p0", "p1", "p2", "p3", "p4")
WARP = Warp(top_k=30, top_p=0.8, repetition_penalty=1.7)


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Uneven, so that every warp has something to do."""
    made = tiny_policy()
    with torch.no_grad():
        made.model.transformer.wte.weight.mul_(4.0)
        made.model.transformer.wte.weight[made.tokenizer.eos_token_id] *= 3.0
    return made


def draw(policy: Policy, prompts: Sequence[tuple[int, ...]] = PROMPTS, **changes: object) -> list[Response]:
    given = {"keys": KEYS[: len(prompts)], "end_id": policy.tokenizer.eos_token_id, "max_new_tokens": 24, "seed": 0}
    return sample(policy.model, prompts, **(given | changes))  # type: ignore[arg-type]


def same(first: list[Response], second: list[Response]) -> bool:
    close = all(a.logprobs == pytest.approx(b.logprobs, abs=1e-5) for a, b in zip(first, second, strict=True))
    return close and [(a.key, a.tokens, a.ended) for a in first] == [(b.key, b.tokens, b.ended) for b in second]


class NoLetterTwice:
    """Letters alone, none like the one before it, and an end after two of them at the earliest."""

    def start(self, prompt: tuple[int, ...]) -> tuple[int, int]:
        return prompt[-1], 0

    def advance(self, state: tuple[int, int], token: int) -> tuple[int, int]:
        assert self.row(state)[token], "a token that was not allowed"
        assert token != END_ID, "the end leads nowhere"
        return token, state[1] + 1

    def allowed(self, states: Sequence[tuple[int, int]]) -> Bool[Tensor, "row vocabulary"]:
        return torch.stack([self.row(state) for state in states])

    def row(self, state: tuple[int, int]) -> Bool[Tensor, " vocabulary"]:
        last, count = state
        return torch.tensor(
            [count >= 2 if token == END_ID else token >= FIRST_LETTER and token != last for token in range(VOCABULARY)]
        )


def masked_distribution(policy: Policy, prompt: tuple[int, ...], length: int) -> dict[tuple[int, ...], float]:
    """Every response that the mask allows, with its exact probability."""
    mask, found = NoLetterTwice(), dict[tuple[int, ...], float]()

    def go_on(tokens: tuple[int, ...], state: tuple[int, int], probability: float) -> None:
        following = next_token(policy, prompt + tokens) * mask.row(state)
        for token, share in enumerate((following / following.sum()).tolist()):
            if share == 0:
                continue
            longer = (*tokens, token)
            if token == END_ID or len(longer) == length:
                found[longer] = probability * share
            else:
                go_on(longer, mask.advance(state, token), probability * share)

    go_on((), mask.start(prompt), 1.0)
    return found


def test_a_mask_gives_the_renormalised_distribution() -> None:
    """χ² over all responses of at most three tokens, and their log-probabilities against the enumerated ones."""
    policy, prompt, count = letters_policy(), (2, 3), 4000
    exact = masked_distribution(policy, prompt, 3)
    assert sum(exact.values()) == pytest.approx(1, abs=1e-9)
    responses = draw(
        policy, [prompt], keys=["x"], end_id=END_ID, max_new_tokens=3, samples=count, batch_size=2000,
        mask=NoLetterTwice(),
    )  # fmt: skip
    seen = Counter(response.tokens for response in responses)
    assert set(seen) <= set(exact)
    common = [word for word, p in exact.items() if count * p >= 5]
    assert len(common) > 0.8 * len(exact)
    others = count - sum(seen[word] for word in common)
    cells = [(seen[word], count * exact[word]) for word in common]
    if len(common) < len(exact):
        cells.append((others, count - sum(wanted for _, wanted in cells)))
    assert chisquare(*zip(*cells, strict=True)).pvalue > 0.01
    logprobs = torch.tensor([sum(response.logprobs) for response in responses], dtype=torch.float64)
    wanted = torch.tensor([exact[response.tokens] for response in responses], dtype=torch.float64).log()
    torch.testing.assert_close(logprobs, wanted, rtol=0, atol=1e-5)


def test_a_mask_holds_for_each_response_of_its_own_state() -> None:
    policy = letters_policy(spread=2.0)
    prompts = [(2,), (3, 3), (4, 2, 5)]
    responses = draw(policy, prompts, end_id=END_ID, max_new_tokens=12, samples=8, mask=NoLetterTwice())
    assert any(response.ended for response in responses)
    assert len({len(response.tokens) for response in responses}) > 3
    for response in responses:
        letters = [response.prompt[-1], *response.tokens]
        assert all(a != b for a, b in pairwise(letters))
        assert response.ended == (response.tokens[-1] == END_ID)
        assert END_ID not in response.tokens[:2]


def test_a_mask_that_allows_nothing_names_the_response() -> None:
    class DeadEnd(NoLetterTwice):
        def row(self, state: tuple[int, int]) -> Bool[Tensor, " vocabulary"]:
            return super().row(state) & torch.tensor(state[1] < 2 or state[0] != FIRST_LETTER)

    policy = letters_policy()
    with pytest.raises(ConfigError, match=r'nothing in the response to "p\d" after its tokens \[\d, 2\]; let it'):
        draw(policy, [(3,), (4,)], end_id=END_ID, samples=20, mask=DeadEnd())


def test_a_mask_of_another_vocabulary_is_refused(policy: Policy) -> None:
    with pytest.raises(ConfigError, match=r"token mask is of shape \(5, 6\), not \(5, 400\): it has a row"):
        draw(policy, mask=NoLetterTwice())


@torch.no_grad()
def test_log_probabilities_are_of_what_was_sampled(policy: Policy) -> None:
    """Against transformers' processors on the logits of each whole prefix; padding is never a token seen."""
    changed = 0
    for response in draw(policy, samples=3, temperature=0.8, warp=WARP):
        ids = torch.tensor([response.prompt + response.tokens])
        logits = policy.model(input_ids=ids).logits[0]
        for number, (token, logprob) in enumerate(zip(response.tokens, response.logprobs, strict=True)):
            place = len(response.prompt) + number
            exact = theirs(logits[place - 1 : place], ids[:, :place], 0.8, WARP).log_softmax(-1)[0, token]
            assert logprob == pytest.approx(float(exact), abs=1e-4)
            changed += abs(logprob - float((logits[place - 1] / 0.8).log_softmax(-1)[token])) > 0.01
    assert changed > 50


def test_greedy_with_a_penalty_is_transformers_generate(policy: Policy) -> None:
    penalty = Warp(repetition_penalty=1.7)
    responses = draw(policy, greedy=True, max_new_tokens=12, warp=penalty)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = torch.tensor([prompt])
        theirs = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, repetition_penalty=1.7,
            eos_token_id=policy.tokenizer.eos_token_id,
        )  # fmt: skip
        assert response.tokens == tuple(theirs[0, len(prompt) :].tolist())
    assert not same(responses, draw(policy, greedy=True, max_new_tokens=12))


def test_warps_and_stops_do_not_depend_on_batch_mates(policy: Policy) -> None:
    given = {"warp": WARP, "stop": Stop(("e", "th"), Encoder(policy.tokenizer, 64, 64)), "samples": 2}
    together = draw(policy, **given)
    assert len({len(response.tokens) for response in together}) > 2
    for batch_size in (1, 3):
        assert same(draw(policy, batch_size=batch_size, **given), together)
    turned = draw(policy, PROMPTS[::-1], keys=KEYS[::-1], **given)
    assert same([one for key in KEYS for one in turned if one.key == key], together)


def test_a_response_is_the_one_without_stops_up_to_the_token_that_completes_one(policy: Policy) -> None:
    encoder = Encoder(policy.tokenizer, 64, 64)
    whole = draw(policy, samples=8, temperature=2.0)
    # Within tokens and over their edges, in the middle of some responses.
    texts = [encoder.decode(response.tokens[3:6]) for response in whole if len(response.tokens) > 6]
    strings = tuple({text[1:4] for text in texts[::2] if "�" not in text})
    stopped = draw(policy, samples=8, temperature=2.0, stop=Stop(strings, encoder))
    cut = 0
    for long, short in zip(whole, stopped, strict=True):
        lengths = range(1, len(long.tokens) + 1)
        at = next((n for n in lengths if any(s in encoder.decode(long.tokens[:n]) for s in strings)), None)
        expected = long if at is None else replace(
            long, tokens=long.tokens[:at], logprobs=long.logprobs[:at], ended=True
        )  # fmt: skip
        assert same([short], [expected])
        cut += at is not None and at < len(long.tokens)
    assert 3 < cut < len(texts)


def test_a_stop_string_in_the_prompt_ends_nothing(policy: Policy) -> None:
    encoder = Encoder(policy.tokenizer, 64, 64)
    prompt = encoder.prompt("The plot")
    (free,) = draw(policy, [prompt])
    (held,) = draw(policy, [prompt], stop=Stop(("The plot", "plot" + encoder.decode(free.tokens)[:1]), encoder))
    assert same([free], [held])


@pytest.mark.parametrize(
    "shaped",
    [{"warp": Warp(top_k=3)}, {"warp": Warp(top_p=0.7)}, {"warp": Warp(repetition_penalty=1.2)}, {"mask": True}],
    ids=str,
)
def test_none_of_them_passes_for_the_policy_where_ratios_are_taken(shaped: dict[str, Any]) -> None:
    policy, prompts = letters_policy(), [(2, 3), (4,)]
    changes = {"mask": NoLetterTwice()} if "mask" in shaped else shaped
    given = {"end_id": END_ID, "max_new_tokens": 4, "samples": 4}
    taken = {"temperature": 1.0, "batch_size": 8}
    roll_out(policy, policy.model, draw(policy, prompts, **given), [0.0] * 8, **taken)
    with pytest.raises(NumericError, match="Sample with neither top-k, top-p nor a penalty"):
        roll_out(policy, policy.model, draw(policy, prompts, **given, **changes), [0.0] * 8, **taken)


def test_warps_out_of_range_are_refused(policy: Policy) -> None:
    for warp, message in (
        (Warp(top_k=0), "top_k = 0: must be greater than"),
        (Warp(top_p=0.0), "top_p = 0.0: must be greater than 0"),
        (Warp(repetition_penalty=-1.0), "repetition_penalty = -1.0: must be greater than 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            draw(policy, warp=warp)


def test_letters_are_what_the_masks_of_this_file_think_they_are() -> None:
    assert FIRST_LETTER + len(LETTERS) == VOCABULARY
