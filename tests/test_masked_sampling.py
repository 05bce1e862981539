"""Sampling under a mask, where logits are made of the allowed tokens alone, against a plain loop, token by token."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Bool
from torch import Tensor

from preflab.config.sampling import Warp
from preflab.models.head import Head, head_of
from preflab.rollouts import cache, sampler, watch
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.seeds import derive
from test_layouts import model_of
from test_precision import COARSE, at_work, needs_bf16, ordinary
from token_masks import VOCABULARY, Scattered

END, SLOTS, SEED = 5, 6, 3
PROMPTS = [(7,), (7,), (8, 9), (1, 2, 3, 4, 5, 6), (7, 9)]
KEYS = ["a", "b", "c", "d", "e"]


class Slots:
    """Cells of a row, one token each, in a range of their own; a row ends after the last."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        self.table = torch.zeros(SLOTS + 1, vocabulary, dtype=torch.bool)
        for slot in range(SLOTS):
            self.table[slot, 6 + 4 * slot : 10 + 4 * slot] = True
        self.table[SLOTS, END] = True

    def start(self, prompt: tuple[int, ...]) -> int:
        return 0

    def advance(self, state: int, token: int) -> int:
        return state + 1

    def allowed(self, states: Sequence[int]) -> Bool[Tensor, "row vocabulary"]:
        return self.table[torch.tensor(states)]


class Buckets(Slots):
    """Which tokens follow depends on the one before, so rows at one place differ; and they lie apart."""

    def advance(self, state: int, token: int) -> int:
        return (state // 10 + 1) * 10 + token % 3

    def allowed(self, states: Sequence[int]) -> Bool[Tensor, "row vocabulary"]:
        found = self.table[[state // 10 for state in states]]
        for row, state in zip(found, states, strict=True):
            if state // 10 < SLOTS:
                row[10 + state % 10 :: 7] = True
        return found


def plainly(model: Any, response: Response, mask: Any, temperature: float) -> tuple[list[int], list[float]]:
    """The tokens and log-probabilities that belong to a response's uniforms: all logits of the whole sequence, step by
    step."""
    stream = np.random.Generator(np.random.Philox(derive(SEED, response.key, 0)))
    uniforms, state = stream.random(12), mask.start(response.prompt)
    tokens: list[int] = []
    logprobs = []
    for uniform in uniforms:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([response.prompt + tuple(tokens)]), use_cache=False).logits[0, -1]
        (allowed,) = mask.allowed([state])
        shares = (logits.double() / temperature).masked_fill(~allowed, -torch.inf).softmax(-1)
        token = int((shares.cumsum(-1) > uniform * shares.sum()).nonzero()[0])
        tokens.append(token)
        logprobs.append(float(shares[token].log()))
        if token == END:
            break
        state = mask.advance(state, token)
    return tokens, logprobs


def drawn(model: Any, mask: Any, **changes: Any) -> list[Response]:
    given = {"keys": KEYS, "end_id": END, "max_new_tokens": 12, "seed": SEED, "mask": mask}
    return sample(model, PROMPTS, **(given | changes))


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("made", [Slots, Buckets, Scattered], ids=["alike", "apart", "any length"])
@pytest.mark.parametrize("name", ["gpt2", "gemma2", "bloom"])
def test_tokens_are_those_of_a_plain_loop(name: str, made: Any, temperature: float) -> None:
    """GPT-2 by hand, a soft-capped model through its modules, and Bloom by its own cache."""
    model = model_of(name)
    assert (sampler.decoder_of(model, 20) is None) == (name == "bloom")
    responses = drawn(model, made(), temperature=temperature)
    for response in responses:
        tokens, logprobs = plainly(model, response, made(), temperature)
        assert list(response.tokens) == tokens
        assert response.logprobs == pytest.approx(logprobs, abs=2e-5)
    assert len({response.tokens for response in responses}) == len(PROMPTS)


@pytest.mark.parametrize("name", ["gpt2", "bloom"])
def test_neither_batch_mates_nor_the_layout_of_prompts_change_a_response(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does it whether all logits are made or those of the allowed tokens."""
    model = model_of(name)

    def same(found: list[Response]) -> None:
        assert [(one.key, one.tokens, one.ended) for one in found] == [
            (one.key, one.tokens, one.ended) for one in first
        ]
        for one, other in zip(found, first, strict=True):
            assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)

    first = drawn(model, Buckets(), samples=3)
    for size in (1, 4, 15):
        same(drawn(model, Buckets(), samples=3, batch_size=size))
    for copied in (0, 1, 100):
        monkeypatch.setattr(cache, "COPIED", copied)
        same(drawn(model, Buckets(), samples=3, batch_size=7))
    monkeypatch.setattr(watch, "MOST_CHOSEN", -1.0)
    same(drawn(model, Buckets(), samples=3))


def test_logits_are_made_of_the_allowed_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    reader = Head.reader

    def watched(head: Head, model: Any) -> Any:
        read = reader(head, model)

        def seen(states: Tensor, tokens: Tensor | None) -> Tensor:
            logits = read(states, tokens)
            widths.append(logits.shape[1])
            return logits

        return seen

    monkeypatch.setattr(Head, "reader", watched)
    drawn(model_of("gpt2"), Slots())
    assert widths == [4] * SLOTS + [1]
    widths.clear()
    drawn(model_of("gpt2"), Slots(), warp=Warp(repetition_penalty=1.3))  # which looks at tokens that were seen
    assert set(widths) == {VOCABULARY}


@pytest.mark.parametrize("precision", [*COARSE, None])
@needs_bf16
def test_some_logits_are_some_of_all(precision: Any) -> None:
    """By each way to read a head, with what a head may have."""
    model = ordinary("gpt2") if precision is None else at_work(ordinary("gpt2"), precision)
    head = head_of(model)
    assert head is not None
    tokens = torch.tensor([0, 3, 17, 18])
    states = torch.randn(9, 128, generator=torch.Generator().manual_seed(0)).to(model.dtype)
    biased = copy.deepcopy(model)
    biased.lm_head.bias = torch.nn.Parameter(torch.linspace(-2, 2, model.config.vocab_size).to(model.dtype))
    wrapped = copy.deepcopy(model)
    wrapped.lm_head = type("Other", (torch.nn.Linear,), {})(128, model.config.vocab_size, bias=False).to(model.dtype)
    for each in (model, biased, wrapped):
        with torch.no_grad():
            for shape in (Head(), Head(scale=0.5, cap=3.0)):
                read = shape.reader(each)
                torch.testing.assert_close(read(states, tokens), read(states, None)[:, tokens], atol=1e-5, rtol=1e-5)


def test_rows_of_one_state_share_one_question() -> None:
    """A mask is asked for each state once in a whole call, however many responses come to it."""
    mask = Slots()
    asked: list[int] = []
    plain = mask.allowed

    def allowed(states: Sequence[int]) -> Bool[Tensor, "row vocabulary"]:
        asked.extend(states)
        return plain(states)

    mask.allowed = allowed  # type: ignore[method-assign]
    drawn(model_of("gpt2"), mask, samples=20, batch_size=16)
    assert asked == list(range(SLOTS + 1))


def test_rows_are_sampled_without_a_word_on_how(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "_told", set())
    given: dict[str, Any] = {"keys": ["a"], "end_id": END, "max_new_tokens": 3, "seed": SEED}
    sample(model_of("gpt2"), [(7,)], mask=Slots(), **given)
    assert capsys.readouterr().err == ""
    sample(model_of("gpt2"), [(7,)], **given)
    assert "sampling: GPT-2 on layers of preflab's own" in capsys.readouterr().err
