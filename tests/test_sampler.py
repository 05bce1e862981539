"""What is sampled is the policy, and nothing but the policy."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import pytest
import torch
import transformers
from scipy.stats import chisquare

from enumerable import END_ID, VOCABULARY, every_response, exact_logprobs, letters_policy, next_token, total
from preflab.data.pack import pack
from preflab.errors import NumericError
from preflab.models.load import Policy
from preflab.models.scoring import response_logprobs
from preflab.rollouts import queue
from preflab.rollouts.cohort import Cohort, next_states
from preflab.rollouts.decoder import Decoder
from preflab.rollouts.gpt2 import is_gpt2
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from tiny import tiny_policy

PROMPTS = ((5,), (9, 30, 31, 32, 33, 34, 35), (40, 41, 42), (7, 8), (100, 101, 102, 103, 104))
KEYS = ("p0", "p1", "p2", "p3", "p4")


@pytest.fixture(scope="module")
def policy() -> Policy:
    """Its distributions are uneven, and a response ends after a dozen tokens or so."""
    made = tiny_policy()
    with torch.no_grad():
        made.model.transformer.wte.weight.mul_(4.0)
        made.model.transformer.wte.weight[made.tokenizer.eos_token_id] *= 3.0
    return made


def draw(policy: Policy, prompts: tuple[tuple[int, ...], ...] = PROMPTS, **changes: object) -> list[Response]:
    given = {"keys": KEYS[: len(prompts)], "end_id": policy.tokenizer.eos_token_id, "max_new_tokens": 24, "seed": 0}
    return sample(policy.model, prompts, **(given | changes))  # type: ignore[arg-type]


def same(first: list[Response], second: list[Response]) -> bool:
    """The same tokens, and log-probabilities up to rounding."""
    close = all(a.logprobs == pytest.approx(b.logprobs, abs=1e-5) for a, b in zip(first, second, strict=True))
    return close and [(a.key, a.tokens, a.ended) for a in first] == [(b.key, b.tokens, b.ended) for b in second]


def test_a_response_does_not_depend_on_batch_size_mates_or_padding(policy: Policy) -> None:
    """The prompts are of different lengths: in a batch they are padded, one by one they are not."""
    together = draw(policy)
    assert len({response.tokens for response in together}) == len(PROMPTS)
    for batch_size in (1, 2, 3):
        assert same(draw(policy, batch_size=batch_size), together)
    assert same([draw(policy, PROMPTS[i : i + 1], keys=KEYS[i : i + 1])[0] for i in range(5)], together)
    turned = draw(policy, PROMPTS[::-1], keys=KEYS[::-1])
    assert same(turned[::-1], together)


def test_left_padding_does_not_matter_to_llama_either() -> None:
    config = transformers.LlamaConfig(
        vocab_size=110, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
    rows = {"keys": KEYS, "end_id": 2, "max_new_tokens": 10, "seed": 0}
    assert same(sample(model, PROMPTS, **rows), sample(model, PROMPTS, **rows, batch_size=1))  # type: ignore[arg-type]


def test_the_seed_the_key_and_the_index_determine_a_response(policy: Policy) -> None:
    prompt = PROMPTS[1:2]
    (first,) = draw(policy, prompt, keys=("x",))
    assert draw(policy, prompt, keys=("x",)) == [first]
    assert draw(policy, prompt, keys=("y",))[0].tokens != first.tokens
    assert draw(policy, prompt, keys=("x",), seed=1)[0].tokens != first.tokens
    several = draw(policy, prompt, keys=("x",), samples=3)
    assert same(several[:1], [first])
    assert len({response.tokens for response in several}) == 3
    assert [response.key for response in draw(policy, samples=2)] == [key for key in KEYS for _ in range(2)]


def test_global_random_state_is_neither_read_nor_changed(policy: Policy) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = draw(policy)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert same(draw(policy), first)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.5])
@torch.no_grad()
def test_behaviour_logprobs_are_the_scorers(policy: Policy, temperature: float) -> None:
    responses = draw(policy, temperature=temperature, samples=4)
    batch = pack([response.tree for response in responses])
    scored = response_logprobs(policy.model, batch, temperature=temperature)
    for response, row in zip(responses, scored.tolist(), strict=True):
        assert len(response.logprobs) == len(response.tokens)
        assert row[: len(response.tokens)] == pytest.approx(response.logprobs, abs=1e-4)


def test_nothing_follows_the_end_token_and_ended_is_right(policy: Policy) -> None:
    end = policy.tokenizer.eos_token_id
    responses = draw(policy, samples=12, max_new_tokens=10)
    assert 0 < sum(response.ended for response in responses) < len(responses)
    for response in responses:
        assert end not in response.tokens[:-1]
        assert response.ended == (response.tokens[-1] == end)
        assert response.ended or len(response.tokens) == 10


def test_weights_that_are_not_numbers_give_no_responses() -> None:
    policy = tiny_policy()
    with torch.no_grad():
        policy.model.transformer.ln_f.weight[3] = torch.nan
    for greedy in (False, True):
        with pytest.raises(NumericError, match="log-probabilities are not finite: its weights hold NaN"):
            draw(policy, greedy=greedy)


def test_an_end_token_in_the_prompt_ends_nothing() -> None:
    policy = tiny_policy()  # close to uniform over 400 tokens
    end = policy.tokenizer.eos_token_id
    responses = draw(policy, ((end, 5, end), (6, end)), samples=4, max_new_tokens=6)
    assert [len(response.tokens) for response in responses] == [6] * 8
    assert not any(response.ended for response in responses)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_tokens_come_from_the_exact_distribution(temperature: float) -> None:
    """χ² of 6,000 responses against all that two tokens can say; another temperature is found out."""
    policy, prompt, count = letters_policy(), (2, 3), 6000
    responses = sample(
        policy.model, [prompt], keys=["x"], end_id=END_ID, max_new_tokens=2, seed=0, samples=count, batch_size=2000,
        temperature=temperature,
    )  # fmt: skip
    seen = Counter(response.tokens for response in responses)
    assert set(seen) <= set(every_response(2))

    def p_value(at: float) -> float:
        first = next_token(policy, prompt, temperature=at)
        expected = [float(first[END_ID])] + [
            float(first[a] * next_token(policy, (*prompt, a), temperature=at)[b])
            for a in range(VOCABULARY) if a != END_ID for b in range(VOCABULARY)
        ]  # fmt: skip
        assert sum(expected) == pytest.approx(1, abs=1e-6)
        words = [(END_ID,)] + [(a, b) for a in range(VOCABULARY) if a != END_ID for b in range(VOCABULARY)]
        cells = [(seen[word], count * p) for word, p in zip(words, expected, strict=True)]
        common = [cell for cell in cells if cell[1] >= 5]
        rare = [cell for cell in cells if cell[1] < 5]
        grouped = [*common, (sum(n for n, _ in rare), sum(p for _, p in rare))] if rare else common
        observed, wanted = (torch.tensor(column, dtype=torch.float64) for column in zip(*grouped, strict=True))
        return float(chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue)

    assert p_value(temperature) > 0.01
    assert p_value(temperature + 0.15) < 1e-6


def test_the_enumerated_responses_have_probability_1() -> None:
    """What the tests of this file and of the KL enumerate is everything that can be sampled."""
    assert total(exact_logprobs(letters_policy(), (2, 3), every_response(3))) == pytest.approx(1, abs=1e-5)


def test_greedy_is_transformers_generate(policy: Policy) -> None:
    end = policy.tokenizer.eos_token_id
    responses = draw(policy, greedy=True, max_new_tokens=12)
    for prompt, response in zip(PROMPTS, responses, strict=True):
        ids = torch.tensor([prompt])
        theirs = policy.model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=end
        )
        assert response.tokens == tuple(theirs[0, len(prompt) :].tolist())
    assert draw(policy, greedy=True, max_new_tokens=12, seed=9, temperature=2.0)[0].tokens == responses[0].tokens


def test_a_batch_that_refills_gives_what_each_row_alone_gives(policy: Policy) -> None:
    """Cohorts of ragged prompts begin and end while others are under way; some rows end early, some meet the limit."""
    alone = [
        draw(policy, PROMPTS[i : i + 1], keys=KEYS[i : i + 1], samples=9, batch_size=1) for i in range(len(PROMPTS))
    ]
    one_by_one = [response for responses in alone for response in responses]
    lengths = {len(response.tokens) for response in one_by_one}
    assert len(lengths) > 8
    assert max(lengths) == 24
    for batch_size in (4, 16, None):
        assert same(draw(policy, samples=9, batch_size=batch_size), one_by_one)


def test_a_cache_that_grows_keeps_what_it_has(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = draw(policy, samples=3)
    monkeypatch.setattr("preflab.rollouts.cache.COLUMNS", 2)
    assert same(draw(policy, samples=3), expected)


def test_the_room_of_rows_that_are_done_is_given_back(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    """Long responses keep no room for those that began with them, while others begin."""
    held = [0]

    def seen(decoder: Decoder, cohorts: Sequence[Cohort]) -> list[torch.Tensor]:
        held.append(sum(len(cohort.cache.keys[0]) for cohort in cohorts))
        return next_states(decoder, cohorts)

    monkeypatch.setattr(queue, "next_states", seen)
    prompts = tuple((5 + number, *range(20, 40)) for number in range(60))
    responses = draw(policy, prompts, keys=[str(number) for number in range(60)], batch_size=16)
    lengths = [len(response.tokens) for response in responses]
    assert min(lengths) < 4 < 20 < max(lengths)
    assert 16 <= max(held) <= 22


def test_prompts_read_in_parts_are_prompts_read_at_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = [draw(policy, samples=samples) for samples in (1, 3)]
    for tokens in (1, 4, 9):
        monkeypatch.setattr("preflab.rollouts.cohort.READ_AT_ONCE", tokens)
        assert all(same(draw(policy, samples=samples), found) for samples, found in zip((1, 3), expected, strict=True))


def test_equal_prompts_with_keys_of_their_own_are_responses_of_their_own(policy: Policy) -> None:
    prompts = (PROMPTS[2], PROMPTS[1], PROMPTS[2])
    together = draw(policy, prompts)
    assert same(together, [draw(policy, prompts[i : i + 1], keys=KEYS[i : i + 1])[0] for i in range(3)])


def test_one_token_may_be_all_that_is_asked(policy: Policy) -> None:
    longer = draw(policy, samples=2)
    for response, first in zip(draw(policy, samples=2, max_new_tokens=1), longer, strict=True):
        assert response.tokens == first.tokens[:1]
        assert response.ended == (response.tokens[0] == policy.tokenizer.eos_token_id)
    assert draw(policy, ()) == []


@torch.no_grad()
@pytest.mark.parametrize("samples", [1, 4])
def test_states_are_those_before_each_token_in_a_pass_of_the_model(policy: Policy, samples: int) -> None:
    for response in draw(policy, samples=samples, batch_size=6, states=True):
        ids = torch.tensor([response.prompt + response.tokens])
        expected = policy.model.transformer(ids).last_hidden_state[0, len(response.prompt) - 1 : -1]
        assert response.states is not None
        torch.testing.assert_close(response.states, expected, atol=1e-5, rtol=1e-5)
    assert draw(policy)[0].states is None


def test_states_can_be_learned_from(policy: Policy) -> None:
    """They are plain tensors without gradients."""
    (response,) = draw(policy, PROMPTS[:1], keys=KEYS[:1], states=True)
    assert response.states is not None
    weight = torch.ones(response.states.shape[1], requires_grad=True)
    (response.states @ weight).sum().backward()
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, response.states.sum(0))


def gpt2(**changes: object) -> transformers.GPT2LMHeadModel:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=110, n_embd=16, n_layer=3, n_head=2, n_positions=64, initializer_range=0.4, **changes
    )
    return transformers.GPT2LMHeadModel(config).eval()


@pytest.mark.parametrize(
    "changes",
    [
        {"activation_function": "gelu_new"},
        {"activation_function": "relu"},
        {"n_inner": 24},
        {"scale_attn_weights": False},
        {"scale_attn_by_inverse_layer_idx": True},
        {"tie_word_embeddings": False},
        {"layer_norm_epsilon": 1e-3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_gpt2_by_hand_has_the_options_of_gpt2(changes: dict[str, object]) -> None:
    model = gpt2(**changes)
    assert is_gpt2(model)
    scored_as_sampled(model)


@torch.no_grad()
def scored_as_sampled(model: transformers.GPT2LMHeadModel) -> None:
    for response in sample(model, PROMPTS, keys=KEYS, end_id=2, max_new_tokens=8, seed=0, samples=2):
        logits = model(torch.tensor([response.prompt + response.tokens])).logits[0, len(response.prompt) - 1 : -1]
        chosen = logits.log_softmax(-1).gather(1, torch.tensor(response.tokens).unsqueeze(1)).squeeze(1)
        assert chosen.tolist() == pytest.approx(response.logprobs, abs=1e-5)


@pytest.mark.parametrize("changes", [{"add_cross_attention": True}, {"reorder_and_upcast_attn": True}])
def test_gpt2_by_hand_refuses_what_it_does_not_have(changes: dict[str, object]) -> None:
    model = gpt2(**changes)
    assert not is_gpt2(model)
    scored_as_sampled(model)


def test_gpt2_by_hand_refuses_a_model_that_something_was_put_into() -> None:
    """A layer in place of a plain one, or a hook, changes what the model computes."""

    class Doubled(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            doubled: torch.Tensor = 2 * self.inner(x)
            return doubled

    model = gpt2()
    model.transformer.h[1].mlp.c_fc = Doubled(model.transformer.h[1].mlp.c_fc)
    assert not is_gpt2(model)
    scored_as_sampled(model)
    hooked = gpt2()
    handle = hooked.transformer.h[1].attn.register_forward_hook(lambda module, args, output: (2 * output[0], output[1]))
    assert not is_gpt2(hooked)
    scored_as_sampled(hooked)
    handle.remove()
    assert is_gpt2(hooked)
    scored_as_sampled(hooked)


def test_a_step_of_training_is_seen_by_the_next_sample() -> None:
    model = gpt2()
    scored_as_sampled(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.5)
    scored_as_sampled(model)
