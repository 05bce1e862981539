"""Scores of responses against plain loops over a model's logits."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from preflab.data.encode import Encoder, Tree
from preflab.data.pack import Packed, pack
from preflab.evaluation.policy import Judge
from preflab.losses import entropy, kl_full, token_logprobs
from preflab.models import scoring
from preflab.models.load import Policy, load_reward_model, new_reward_model, save_model
from preflab.models.scoring import (
    of_distributions,
    read,
    response_logits,
    response_logprobs,
    response_scores,
    response_states,
    response_values,
    scored,
)
from preflab.rollouts.response import Response
from preflab.training.preference import pair_logprobs
from preflab.training.rollout import PromptIds
from tiny import save_tiny, tiny_policy

VOCABULARY = 40
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "intermediate_size": 24, "max_position_embeddings": 64,
}  # fmt: skip


def gpt2() -> Any:
    sizes = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def llama() -> Any:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZE))


def qwen2() -> Any:
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**SIZE, tie_word_embeddings=True))


@pytest.fixture(params=[gpt2, llama, qwen2], ids=["gpt2", "llama", "qwen2"])
def model(request: pytest.FixtureRequest) -> Any:
    made: Callable[[], Any] = request.param
    torch.manual_seed(0)
    model = made().eval()
    with torch.no_grad():  # far from uniform, so that a wrong position shows
        for parameter in model.parameters():
            parameter.mul_(3.0)
    return model


def trees() -> list[Tree]:
    """Ragged on both sides; token 0 is what batches are padded with, and stands in prompts and responses too."""
    generator = torch.Generator().manual_seed(1)

    def draw(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist())

    lengths = [(1, (5, 2)), (7, (1, 9)), (3, (4,)), (12, (2, 6, 3))]
    drawn = [Tree(f"t:{i}", draw(n), tuple(draw(m) for m in responses)) for i, (n, responses) in enumerate(lengths)]
    return [*drawn, Tree("t:pads", (3, 0, 0, 4), ((0, 5, 0), (6, 0, 0, 0)))]


def alone(model: Any, prompt: tuple[int, ...], response: tuple[int, ...], temperature: float = 1.0) -> torch.Tensor:
    """log π of each response token, token by token in float64, with nothing else in the batch."""
    ids = torch.tensor([prompt + response])
    logits = model(input_ids=ids).logits[0].double() / temperature
    values = []
    for t, token in enumerate(response):
        row = logits[len(prompt) + t - 1]
        values.append(row[token] - (row - row.max()).exp().sum().log() - row.max())
    return torch.stack(values)


def padded(batch: Packed, extra: int) -> Packed:
    """The same batch with more padding on the right, of token 7."""
    padding = torch.full((len(batch.starts), extra), 7)
    nothing = torch.zeros(len(batch.starts), extra, dtype=torch.bool)
    return dataclasses.replace(
        batch,
        token_ids=torch.cat([batch.token_ids, padding], 1),
        response_ids=torch.cat([batch.response_ids, padding], 1),
        mask=torch.cat([batch.mask, nothing], 1),
    )


@torch.no_grad()
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_a_loop_over_each_row_alone(model: Any, temperature: float) -> None:
    batch = pack(trees())
    found = response_logprobs(model, batch, temperature=temperature)
    rows = [(tree.prompt, response) for tree in trees() for response in tree.responses]
    assert len(rows) == len(found)
    for (prompt, response), row in zip(rows, found, strict=True):
        expected = alone(model, prompt, response, temperature)
        torch.testing.assert_close(row[: len(response)].double(), expected, atol=2e-5, rtol=1e-5)
        assert not row[len(response) :].any()


@torch.no_grad()
def test_logprobs_do_not_depend_on_batch_mates_their_order_or_padding(model: Any) -> None:
    given = trees()
    together = response_logprobs(model, pack(given))
    rows = torch.tensor([8, 0, 5, 3])
    some = response_logprobs(model, pack(given).rows(rows))
    torch.testing.assert_close(some, together[rows], atol=1e-5, rtol=0)
    turned = response_logprobs(model, pack(given[::-1]))
    torch.testing.assert_close(turned.sum(1)[:2], together.sum(1)[-2:], atol=1e-5, rtol=1e-6)
    wider = response_logprobs(model, padded(pack(given), 5))
    torch.testing.assert_close(wider[:, :-5], together, atol=1e-5, rtol=0)
    assert not wider[:, -5:].any()


@torch.no_grad()
def test_the_head_runs_on_response_positions_only(model: Any) -> None:
    shapes: list[tuple[int, ...]] = []
    batch = pack([Tree("long", tuple(range(1, 30)), ((5, 6, 7),)), Tree("short", tuple(range(1, 5)), ((8,),))])
    hook = model.get_output_embeddings().register_forward_hook(
        lambda module, args, output: shapes.append(tuple(output.shape))
    )
    response_logits(model, batch)  # how the model gets to its logits, with that hook, is found out on two tokens, once
    shapes.clear()
    response_logits(model, batch)
    hook.remove()
    assert shapes == [(2, 3, VOCABULARY)]


@pytest.mark.parametrize("known", [True, False])
def test_a_wide_model_is_scored_in_smaller_batches(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model's widest layer makes of all that it reads at once stays within the budget, or the logits where all
    of them are held; the figures stay."""
    policy = tiny_policy(width=16)
    if not known:
        monkeypatch.setattr(scoring, "head_of", lambda model: None)
    held = 4 * 4 * 16 if known else 400
    pairs = [Tree(f"p:{i}", (5, 6 + i, 7)[: 1 + i % 3], ((8, 9, 10 + i), (11 + i, 12))) for i in range(12)]
    given = [PromptIds(tree.origin, "", tree.prompt) for tree in pairs]
    seen: list[int] = []

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["input_ids"]).numel() * held)

    def figures() -> tuple[Any, ...]:
        seen.clear()
        encoder = Encoder(policy.tokenizer, prompt_tokens=8, response_tokens=8)
        held_out = [dataclasses.replace(tree, responses=tree.responses[:1]) for tree in pairs]
        judge = Judge(tiny_policy(seed=1, width=16).model, encoder, None, None, held_out, max_new_tokens=4, seed=0)
        responses = [Response(p.key, p.ids, (8, 9, 10, 11)[: 1 + i % 4], (), False) for i, p in enumerate(given)]
        with torch.no_grad():
            return (
                torch.tensor(judge.sequence_kl(policy, responses)),
                torch.tensor(judge.likelihood(policy)["nll_nats"]),
                pair_logprobs(policy.model, pairs),
            )

    figures()  # what the model can do is found out once
    policy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
    whole = figures()
    assert len(seen) == 3
    budget = held * 7 * 5  # five rows of the longest tree; pairs go two by two
    monkeypatch.setattr(scoring, "FLOATS_AT_ONCE", budget)
    parts = figures()
    assert len(seen) == 3 + 3 + 6
    assert max(seen) <= budget
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(scoring, "FLOATS_AT_ONCE", 1)  # one row has to fit, whatever the budget says
    assert torch.allclose(figures()[2], whole[2], atol=1e-5)


@torch.no_grad()
def test_states_are_those_that_the_output_head_reads(model: Any) -> None:
    """In one pass with the logits, or alone; and they know nothing of the token they predict or of padding."""
    batch = pack(trees())
    found = scored(model, batch, temperature=0.7, logits=True, states=True)
    logits, states, mask = found.logits, found.states, batch.mask
    assert logits is not None
    assert states is not None
    assert torch.equal(logits[mask], response_logits(model, batch)[mask])
    assert torch.equal(states[mask], response_states(model, batch)[mask])
    torch.testing.assert_close(found.logprobs, response_logprobs(model, batch, temperature=0.7), atol=1e-5, rtol=1e-5)
    less = scored(model, batch, temperature=0.7, states=True)
    assert less.logits is None
    assert less.states is not None
    assert torch.equal(less.states, states)
    assert torch.equal(less.logprobs, response_logprobs(model, batch, temperature=0.7))
    torch.testing.assert_close(model.get_output_embeddings()(states)[mask], logits[mask], atol=1e-4, rtol=1e-4)
    rows = [(tree.prompt, response) for tree in trees() for response in tree.responses]
    for (prompt, response), row in zip(rows, states, strict=True):
        for t in range(len(response)):
            alone = model.base_model(input_ids=torch.tensor([prompt + response[:t]])).last_hidden_state[0, -1]
            torch.testing.assert_close(row[t], alone, atol=1e-4, rtol=1e-4)
    wide = response_states(model, padded(batch, 5))[:, : mask.shape[1]]
    torch.testing.assert_close(wide[mask], states[mask], atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("at_once", [1, 3 * VOCABULARY, 2**22])
def test_figures_of_distributions_are_those_of_all_logits_at_once(
    model: Any, at_once: int, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chunks of one token, of three, and of all."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1.1)
    batch = pack(trees())
    logits, others = response_logits(model, batch), response_logits(other, batch)
    expected = (entropy(logits), kl_full(logits, others))
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", at_once)
    if not known:
        monkeypatch.setattr(scoring, "head_of", lambda model: None)
    sizes = list[int]()

    def measure(one: torch.Tensor, two: torch.Tensor) -> list[torch.Tensor]:
        sizes.append(len(one))
        return [entropy(one), kl_full(one, two)]

    reads = [read(model, batch), read(other, batch)]
    found = of_distributions(reads, measure)
    assert max(sizes) == max(1, min(at_once // VOCABULARY, int(batch.mask.sum())))
    for temperature in (1.0, 0.7):
        found.append(reads[1].logprobs(temperature=temperature))
        expected += (token_logprobs(others, batch.response_ids, temperature=temperature),)
    for mine, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, theirs.masked_fill(~batch.mask, 0.0), atol=2e-5, rtol=1e-4)


def reward_model(tmp_path: Path, architecture: str = "gpt2") -> Any:
    folder = save_tiny(tmp_path / "policy")
    if architecture != "gpt2":
        tokenizer = tiny_policy().tokenizer
        config = transformers.AutoConfig.for_model(architecture, **(SIZE | {"vocab_size": len(tokenizer)}))
        save_model(Policy(transformers.AutoModelForCausalLM.from_config(config), tokenizer), folder)
    model = new_reward_model(folder, seed=3)
    model.model.config.reward_offset = 0.25
    save_model(model, tmp_path / "reward")
    return load_reward_model(tmp_path / "reward")


def reward_trees(pad: int) -> list[Tree]:
    prompt = (9, 10, 11)
    responses = ((20, 21), (20, pad, 21), (pad, pad, 30, 31, 32), (5,))
    return [Tree("r:1", prompt, responses), Tree("r:2", (8,), ((9, 10, 11, 12, 13, 14),))]


@torch.no_grad()
@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2"])
def test_scores_are_those_of_transformers_own_class(tmp_path: Path, architecture: str) -> None:
    """Less the offset; also where the pad token stands inside a response."""
    loaded = reward_model(tmp_path, architecture)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
    pad = loaded.tokenizer.pad_token_id
    batch = pack(reward_trees(pad))
    ids = batch.token_ids.clone()
    for row, end in enumerate((batch.starts + batch.mask.sum(1)).tolist()):
        ids[row, end:] = pad
    expected = theirs(input_ids=ids).logits.squeeze(-1)
    assert theirs.config.num_labels == 1
    assert expected.std() > 0.05
    torch.testing.assert_close(response_scores(loaded.model, batch) + 0.25, expected, atol=1e-5, rtol=0)


@torch.no_grad()
def test_scores_are_read_by_length_not_by_token_value(tmp_path: Path) -> None:
    """A last token that is the pad token is read, and so is each end token."""
    loaded = reward_model(tmp_path)
    pad, end = loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id
    responses = ((20, 21), (20, 21, pad), (20, 21, end), (20, 21, end, end))
    scores = response_scores(loaded.model, pack([Tree("r", (9, 10), responses)]))
    for score, response in zip(scores.tolist(), responses, strict=True):
        states = loaded.model.base_model(input_ids=torch.tensor([(9, 10, *response)])).last_hidden_state[0, -1]
        assert score == pytest.approx(float(loaded.model.score(states)) - 0.25, abs=1e-5)
    assert len({round(score, 4) for score in scores.tolist()}) == 4


@torch.no_grad()
def test_values_are_those_before_each_token(tmp_path: Path) -> None:
    loaded = reward_model(tmp_path)
    values = response_values(loaded.model, pack(reward_trees(loaded.tokenizer.pad_token_id)))
    rows = [
        (tree.prompt, response) for tree in reward_trees(loaded.tokenizer.pad_token_id) for response in tree.responses
    ]
    for (prompt, response), row in zip(rows, values, strict=True):
        for t in range(len(response)):
            states = loaded.model.base_model(input_ids=torch.tensor([prompt + response[:t]])).last_hidden_state[0, -1]
            assert float(row[t]) == pytest.approx(float(loaded.model.score(states)) - 0.25, abs=1e-5)
        assert not row[len(response) :].any()


def test_a_new_reward_model_keeps_the_body_and_draws_its_head_from_the_seed(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "policy", width=64)
    before = torch.get_rng_state()
    first, again, other = (new_reward_model(folder, seed=seed).model for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    body = tiny_policy(width=64).model.base_model.state_dict()
    assert all(torch.equal(value, body[name]) for name, value in first.base_model.state_dict().items())
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    # standard deviation 1/√(d + 1), from 64 draws
    assert float(first.score.weight.detach().std()) == pytest.approx(65**-0.5, rel=0.3)
