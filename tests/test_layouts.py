"""Every layout and every way through the output head gives the loss and the gradients of the plain path: one sequence
at a time, all logits, float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from preflab.config import pair_losses as of
from preflab.config.pair_losses import PairLoss
from preflab.data.encode import Tree
from preflab.data.pack import Packed, flat, pack, readings
from preflab.data.pack import tree as laid_as_tree
from preflab.losses import bradley_terry, kto, less_group_mean, ppo_clip, sft, token_logprobs
from preflab.models import attention, scoring, tree_check
from preflab.models import head as heads
from preflab.models.scoring import response_logits, response_logprobs, response_scores, response_states, response_values
from preflab.training.preference import ScoredPairs, pair_losses

VOCABULARY = 40
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2}
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": GPT2 | {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
    "llama": SIZE,
    "qwen2": SIZE,
    # Caps low enough to bend, and a scale of its own.
    "gemma2": SIZE | {"head_dim": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "granite": SIZE | {"logits_scaling": 4.0},
    "cohere": SIZE | {"logit_scale": 0.25},
    "mistral": SIZE | {"sliding_window": 6},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
}
FAMILIES = [(name, tied) for name in ("gpt2", "llama", "qwen2", "gemma2") for tied in (True, False)]


@cache
def model_of(name: str, tied: bool = True, *, scores: bool = False) -> Any:
    """A small model, far from uniform, so that a wrong position shows."""
    config = transformers.AutoConfig.for_model(name, **(OPTIONS[name] | {"tie_word_embeddings": tied}))
    auto: Any = transformers.AutoModelForCausalLM
    if scores:
        config.num_labels = 1
        auto = transformers.AutoModelForSequenceClassification
    torch.manual_seed(0)
    model = auto.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def drawn(*, seed: int, shapes: Sequence[tuple[int, Sequence[int]]]) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCABULARY, (n,), generator=generator).tolist())

    return [Tree(f"t:{i}", ids(n), tuple(ids(m) for m in lengths)) for i, (n, lengths) in enumerate(shapes)]


PAIRS = drawn(seed=1, shapes=[(7, (1, 9)), (1, (5, 2)), (12, (30, 6)), (3, (4, 4)), (3, (1, 1))])
SINGLES = drawn(seed=2, shapes=[(7, (1,)), (2, (25,)), (12, (3,)), (12, (4,))])
GROUPS = drawn(seed=3, shapes=[(6, (1, 9, 3, 4)), (30, (2, 5, 28, 1))])


def plain_logprobs(model: Any, trees: Sequence[Tree]) -> list[torch.Tensor]:
    rows = []
    for prompt, response in ((tree.prompt, response) for tree in trees for response in tree.responses):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        predicting = logits[len(prompt) - 1 : len(prompt) + len(response) - 1].log_softmax(-1)
        rows.append(predicting[torch.arange(len(response)), torch.tensor(response)])
    return rows


def plain_scores(model: Any, trees: Sequence[Tree]) -> torch.Tensor:
    rows = [tree.prompt + response for tree in trees for response in tree.responses]
    return torch.stack([model.score(model.base_model(input_ids=torch.tensor([row]))[0][0, -1])[0] for row in rows])


Rows = Sequence[torch.Tensor]


def of_pairs(loss: PairLoss) -> Callable[[Rows], torch.Tensor]:
    def value(rows: Rows) -> torch.Tensor:
        logprob = torch.stack([row.sum() for row in rows]).view(-1, 2)
        tokens = torch.tensor([len(row) for row in rows]).view(-1, 2)
        reference = -3.0 * tokens.to(logprob.dtype)
        return pair_losses(loss, ScoredPairs(logprob=logprob, tokens=tokens, reference=reference)).mean()

    return value


def of_ratings(rows: Rows) -> torch.Tensor:
    logratio = torch.stack([row.sum() + 3.0 * len(row) for row in rows])
    desirable = torch.arange(len(rows)) % 2 == 0
    return kto(logratio, desirable, reference_point=0.3, beta=0.2).mean()


def of_demonstrations(rows: Rows) -> torch.Tensor:
    return sft(torch.cat(list(rows)).unsqueeze(0), torch.ones(1, sum(map(len, rows)), dtype=torch.bool)).mean()


def of_groups(rows: Rows) -> torch.Tensor:
    rewards = torch.sin(torch.arange(len(rows), dtype=rows[0].dtype))
    advantages = less_group_mean(rewards, group=4)
    return torch.cat(
        [
            ppo_clip(row, row.detach() - 0.05, a.expand_as(row), clip=0.2)
            for row, a in zip(rows, advantages, strict=True)
        ]
    ).mean()


OBJECTIVES: dict[str, tuple[Callable[[Rows], torch.Tensor], list[Tree]]] = {
    "dpo": (of_pairs(of.DPOLoss(beta=0.1)), PAIRS),
    "ipo": (of_pairs(of.IPOLoss(tau=0.1)), PAIRS),
    "simpo": (of_pairs(of.SimPOLoss()), PAIRS),
    "orpo": (of_pairs(of.ORPOLoss()), PAIRS),
    "kto": (of_ratings, SINGLES),
    "sft": (of_demonstrations, SINGLES),
    "grpo": (of_groups, GROUPS),
}


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def check(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor], *, within: float = 1e-5) -> None:
    """Each tensor's error relative to its norm, or a thousandth of the norm of all."""
    assert found.keys() == expected.keys()
    everything = torch.stack([value.norm() for value in expected.values()]).norm()
    assert everything > 1e-4
    for name, value in expected.items():
        error = (found[name].double() - value).norm() / max(value.norm(), 1e-3 * everything)
        assert error <= within, (name, float(error))


WAYS = {"whole": (2**25, 2**27), "kept in chunks": (3 * VOCABULARY, 2**27), "made again in chunks": (3 * VOCABULARY, 0)}


@contextmanager
def laid_out(layout: str, head: str = "whole") -> Iterator[None]:
    """Score in this layout only, with this way through the head."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "TREE_SHARE", {"tree": 100.0, "flat": 0.0}[layout])
        if head != "dense":
            patch.setattr(heads, "CHUNK_LOGITS", WAYS[head][0])
            patch.setattr(heads, "KEPT_LOGITS", WAYS[head][1])
        yield


def unpadded(values: torch.Tensor, batch: Packed) -> list[torch.Tensor]:
    return [row[mask] for row, mask in zip(values, batch.mask, strict=True)]


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize(("name", "tied"), FAMILIES, ids=[f"{n}-{'tied' if t else 'untied'}" for n, t in FAMILIES])
def test_loss_and_gradients_are_those_of_the_plain_path(name: str, tied: bool, objective: str) -> None:
    model = model_of(name, tied)
    loss_of, trees = OBJECTIVES[objective]
    exact = copy.deepcopy(model).double()
    loss = loss_of(plain_logprobs(exact, trees))
    expected = gradients(exact, loss)
    batch = pack(trees)
    for layout in ("tree", "flat"):
        for head in ("dense", *WAYS) if layout == "tree" else ("dense", "made again in chunks"):
            with laid_out(layout, head):
                if head == "dense":
                    logprobs = token_logprobs(response_logits(model, batch), batch.response_ids)
                else:
                    logprobs = response_logprobs(model, batch)
                found = loss_of(unpadded(logprobs, batch))
                assert found.item() == pytest.approx(loss.item(), rel=1e-5, abs=1e-6)
                check(gradients(model, found), expected)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma2"])
def test_scores_of_a_reward_model_and_their_gradients_are_those_of_the_plain_path(name: str) -> None:
    model = model_of(name, scores=True)
    exact = copy.deepcopy(model).double()
    scores = plain_scores(exact, PAIRS)
    expected = gradients(exact, bradley_terry(*scores.view(-1, 2).unbind(1)).mean())
    for layout in ("tree", "flat"):
        with laid_out(layout):
            found = response_scores(model, pack(PAIRS))
            torch.testing.assert_close(found.double(), scores, atol=1e-5, rtol=1e-5)
            check(gradients(model, bradley_terry(*found.view(-1, 2).unbind(1)).mean()), expected)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept", [0, 2**27])
def test_the_gradient_of_the_fused_head_is_that_of_finite_differences(
    kept: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that a head can have: scale, cap, temperature, bias."""
    monkeypatch.setattr(heads, "CHUNK_LOGITS", 2 * 6)
    monkeypatch.setattr(heads, "KEPT_LOGITS", kept)
    generator = torch.Generator().manual_seed(0)
    states, table, shift = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (6, 3), (6,))
    )
    tokens = torch.tensor([0, 5, 2, 2, 3])

    def logprobs(states: torch.Tensor, table: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        head = heads.Head(scale=1.7, cap=1.3)
        return heads._Logprobs.apply(states, table, shift if bias else None, tokens, head, 0.6)

    expected = 1.3 * torch.tanh((states @ table.T + bias * shift) * 1.7 / 1.3) / 0.6
    torch.testing.assert_close(
        logprobs(states, table, shift), expected.log_softmax(-1)[torch.arange(5), tokens], atol=1e-12, rtol=0
    )
    torch.autograd.gradcheck(
        lambda *given: logprobs(*given, *([] if bias else [shift])), (states, table) + (shift,) * bias
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma2", "granite", "cohere", "mistral"])
def test_these_families_take_the_tree_and_the_fused_head(name: str, dtype: torch.dtype) -> None:
    """Or the tests above, and those of other files in float64, would hold the flat layout against itself."""
    model = copy.deepcopy(model_of(name)).to(dtype)
    assert tree_check.takes_trees(model.base_model)
    assert heads.head_of(model) is not None


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen2", "gemma2", "granite", "cohere"])
def test_both_layouts_give_the_same_states_logits_and_values(name: str) -> None:
    batch = pack([*PAIRS, *SINGLES, *GROUPS])
    model = model_of(name)
    found: dict[str, list[torch.Tensor]] = {}
    for layout in ("tree", "flat"):
        with laid_out(layout):
            parts = [response_states(model, batch), response_logits(model, batch)]
            if name not in ("granite", "cohere"):
                parts.append(response_values(model_of(name, scores=True), batch))
            found[layout] = [part[batch.mask] for part in parts]
    for one, other in zip(found["tree"], found["flat"], strict=True):
        torch.testing.assert_close(one, other, atol=2e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "granite", "cohere"])
def test_the_head_is_taken_as_the_model_has_it(name: str) -> None:
    """Soft-capped and scaled, at a temperature too, through the fused path in both layouts."""
    model, trees = model_of(name), GROUPS
    assert heads.head_of(model) == heads.Head(
        scale=0.25 if name in ("granite", "cohere") else 1.0, cap=5.0 if name == "gemma2" else None
    )
    exact = copy.deepcopy(model).double()
    batch = pack(trees)
    for temperature in (1.0, 0.5):
        expected = []
        for prompt, response in ((tree.prompt, response) for tree in trees for response in tree.responses):
            logits = exact(input_ids=torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1] / temperature
            expected.append(logits.log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)])
        for layout in ("tree", "flat"):
            with laid_out(layout, "kept in chunks"):
                found = response_logprobs(model, batch, temperature=temperature)
            torch.testing.assert_close(found[batch.mask].double(), torch.cat(expected), atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_a_head_that_the_configuration_does_not_tell_is_left_to_the_model() -> None:
    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            outputs = super().forward(*args, **kwargs)
            outputs.logits = outputs.logits.sinh()
            return outputs

    torch.manual_seed(0)
    model = Odd(transformers.LlamaConfig(**SIZE)).eval()
    assert heads.head_of(model) is None
    batch = pack(PAIRS)
    expected = torch.cat(plain_logprobs(model, PAIRS))
    torch.testing.assert_close(response_logprobs(model, batch)[batch.mask], expected, atol=1e-5, rtol=1e-5)
    logits = response_logits(model, batch)
    torch.testing.assert_close(token_logprobs(logits, batch.response_ids)[batch.mask], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(("name", "reason"), [("mistral", "window"), ("bloom", "layer"), ("mamba", "")])
def test_models_that_cannot_share_a_prompt_say_so_once_and_score_row_by_row(
    name: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    model = copy.deepcopy(model_of(name))
    with laid_out("tree"):
        for _ in range(2):
            batch = pack(PAIRS)
            found = response_logprobs(model, batch)[batch.mask]
            torch.testing.assert_close(found, torch.cat(plain_logprobs(model, PAIRS)), atol=2e-5, rtol=1e-5)
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "prompt" in line]
    assert line.startswith(type(model.base_model).__name__)
    assert reason in line


@torch.no_grad()
def test_a_batch_that_a_window_refuses_takes_one_pass() -> None:
    model, batch = copy.deepcopy(model_of("mistral")), pack(PAIRS)
    response_logprobs(model, pack(drawn(seed=5, shapes=[(3, (1, 1))])))  # what the model can do is found out once
    seen: list[int] = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with laid_out("tree"):
        response_states(model, batch)
    assert seen == [2 * len(PAIRS)]


@torch.no_grad()
def test_a_window_that_no_sequence_reaches_is_no_obstacle(capsys: pytest.CaptureFixture[str]) -> None:
    model = copy.deepcopy(model_of("mistral"))
    short = drawn(seed=5, shapes=[(3, (1, 3, 4)), (2, (4, 2))])  # 7 tokens, the last of which is not read
    batch = pack(short)
    with laid_out("tree"):
        found = response_logprobs(model, batch)[batch.mask]
    torch.testing.assert_close(found, torch.cat(plain_logprobs(model, short)), atol=2e-5, rtol=1e-5)
    assert not capsys.readouterr().err


@settings(max_examples=25, derandomize=True)
@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 40), st.lists(st.integers(1, 24), min_size=1, max_size=8)), min_size=1, max_size=5
    ),
    seed=st.integers(0, 9),
    name=st.sampled_from(["gpt2", "llama", "gemma2"]),
    ends=st.booleans(),
)
@torch.no_grad()
def test_any_mixture_of_lengths_gives_the_numbers_of_each_response_alone(
    shapes: list[tuple[int, list[int]]], seed: int, name: str, ends: bool
) -> None:
    trees = drawn(seed=seed, shapes=shapes)
    model, batch = model_of(name), pack(trees)
    expected = torch.cat(plain_logprobs(model, trees))
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(batch.mask), generator=generator)
    some = order[: 1 + len(order) // 2]
    with laid_out("tree", "kept in chunks"):
        whole = response_logprobs(model, batch)
        torch.testing.assert_close(whole[batch.mask], expected, atol=3e-5, rtol=1e-5)
        torch.testing.assert_close(response_logprobs(model, batch.rows(some)), whole[some], atol=3e-5, rtol=1e-5)
    states = attention.tree_states(model.base_model, layout := laid_as_tree(batch, ends=ends))
    plain = flat(batch, ends=True)
    other = model.base_model(input_ids=plain.token_ids).last_hidden_state.flatten(0, 1)
    torch.testing.assert_close(states[layout.before[batch.mask]], other[plain.before[batch.mask]], atol=1e-4, rtol=1e-4)
    if ends:
        torch.testing.assert_close(states[layout.last], other[plain.last], atol=1e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was_also_after_a_failure() -> None:
    model = model_of("llama")
    before = model.config._attn_implementation
    with laid_out("tree"):
        response_logprobs(model, pack(PAIRS))
    assert model.config._attn_implementation == before
    broken = laid_as_tree(pack([Tree("t", (VOCABULARY,), ((1,),))]), ends=True)
    with pytest.raises(IndexError):
        attention.tree_states(model.base_model, broken)
    assert model.config._attn_implementation == before


def test_the_tree_holds_each_prompt_and_response_once() -> None:
    trees = drawn(seed=4, shapes=[(60, (5, 40)), (3, (1, 2, 3)), (4, (1,))])
    batch = pack([*trees, Tree("again", trees[0].prompt, ((1, 2),))])
    for ends in (True, False):
        layout = laid_as_tree(batch, ends=ends)
        assert layout.token_ids.numel() == 60 + 3 + 4 + 5 + 40 + 6 + 1 + 2 - 7 * (not ends)
    assert [one.cells for one in readings(batch)] == [batch.token_ids.numel(), layout.token_ids.numel()]
    assert batch.tree.tolist() == [0, 0, 1, 1, 1, 2, 0]


@torch.no_grad()
@pytest.mark.parametrize(
    ("shapes", "rows"),
    [
        ([(9, (5, 5)), (9, (5, 5))], 1),  # half of what is read twice is the prompt
        ([(9, (5,)), (1, (2,))], 1),  # a third is padding
        ([(1, (20, 20)), (1, (20, 20))], 4),  # next to nothing would be saved
        ([(9, (5,)), (9, (5,))], 2),
    ],
)
def test_the_layout_that_costs_less_is_taken(shapes: list[tuple[int, tuple[int, ...]]], rows: int) -> None:
    model, batch = model_of("gpt2"), pack(drawn(seed=6, shapes=shapes))
    response_logprobs(model, batch)  # what the model can do is found out once
    seen: list[int] = []
    hook = model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    response_logprobs(model, batch)
    hook.remove()
    assert seen == [rows]


@torch.no_grad()
def test_responses_share_the_prompt_of_those_that_are_with_them() -> None:
    """Also where a group was packed response by response, and where some of it was picked."""
    (group,) = drawn(seed=7, shapes=[(12, (3, 4, 5, 6))])
    batch = pack([Tree("sample", group.prompt, (response,)) for response in group.responses])
    assert readings(batch)[1].cells == 12 + 18 - 4
    assert readings(batch.rows(torch.tensor([3, 1])))[1].cells == 12 + 6 + 4 - 2
