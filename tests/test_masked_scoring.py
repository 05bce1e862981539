"""Log-probabilities, KL and entropy under a token mask, against masked logits of each row alone, and enumerated."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

import preflab.models.head as heads
from enumerable import END_ID, VOCABULARY, letters_policy
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.errors import ConfigError
from preflab.losses import entropy, kl_full, masked_sum
from preflab.models import scoring
from preflab.models.allowed import Allowed
from preflab.models.scoring import (
    logprobs_of,
    of_distributions,
    read,
    response_logits,
    response_logprobs,
    scored,
)
from preflab.rollouts import mask as masks
from preflab.rollouts.mask import grammar_of
from preflab.rollouts.sampler import sample
from test_layouts import check, gradients, laid_out, model_of, unpadded
from test_precision import COARSE, at_work, in_float64, needs_bf16, ordinary
from test_watch import NoLetterTwice, masked_distribution
from token_masks import Parted, Scattered

SHAPES = [(7, (1, 9)), (1, (5, 2)), (12, (30, 6)), (3, (4, 4)), (3, (1, 1))]


def plainly(
    model: Any, trees: Sequence[Tree], mask: Scattered, temperature: float = 1.0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Full logits of each row alone, −∞ where the table forbids; and the log-probabilities of its tokens."""
    rows = []
    for prompt, response in ((tree.prompt, response) for tree in trees for response in tree.responses):
        logits = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0]
        logits = logits[len(prompt) - 1 : -1].masked_fill(~mask.along(prompt, response), -torch.inf)
        logprobs = (logits / temperature).log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
        rows.append((logits, logprobs))
    return rows


@pytest.fixture
def grouped(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the work is."""
    monkeypatch.setattr(Allowed, "groups", property(Allowed.grouped))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "a head that is not known"])
def test_logprobs_and_gradients_are_those_of_masked_full_logits(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both layouts, by every way through the head."""
    check_logprobs_and_gradients(name, dtype, Scattered(), monkeypatch)


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("mask", [Scattered(), Parted()])
@pytest.mark.parametrize(
    ("name", "dtype"), [("gpt2", torch.float32), ("gpt2", torch.float64), ("gemma2", torch.float32)]
)
def test_they_are_where_places_stand_in_groups(
    name: str, dtype: torch.dtype, mask: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_logprobs_and_gradients(name, dtype, mask, monkeypatch)


def check_logprobs_and_gradients(
    name: str, dtype: torch.dtype, mask: Scattered, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "a head that is not known":
        name = "gpt2"
        monkeypatch.setattr(scoring, "head_of", lambda model: None)
    trees = mask.trees(SHAPES, seed=1)
    model = copy.deepcopy(model_of(name)).to(dtype)
    exact = copy.deepcopy(model).double()
    batch, grammar = pack(trees), grammar_of(mask)
    rounding = 3e-5 if dtype == torch.float32 or name == "gemma2" else 1e-10  # Gemma norms in float32
    for temperature in (1.0, 0.6):
        rows = [logprobs for _, logprobs in plainly(exact, trees, mask, temperature)]
        weights = [torch.sin(torch.arange(len(row), dtype=torch.float64)) for row in rows]
        expected = gradients(exact, sum((row * w).sum() for row, w in zip(rows, weights, strict=True)))
        for layout in ("tree", "flat"):
            for way in ("whole", "kept in chunks", "made again in chunks"):
                with laid_out(layout, way):
                    found = unpadded(response_logprobs(model, batch, temperature=temperature, grammar=grammar), batch)
                    for one, other in zip(found, rows, strict=True):
                        torch.testing.assert_close(one.double(), other.detach(), atol=rounding, rtol=rounding)
                    loss = sum((row * w).sum() for row, w in zip(found, weights, strict=True))
                    check(gradients(model, loss), expected)


@pytest.mark.parametrize("known", [True, False])
def test_every_reading_is_under_the_mask(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = Scattered()
    trees = mask.trees(SHAPES, seed=2)
    model, batch, grammar = model_of("gpt2"), pack(trees), grammar_of(mask)
    if not known:
        monkeypatch.setattr(scoring, "head_of", lambda model: None)
    with torch.no_grad():
        expected = plainly(model, trees, mask, 0.7)
    close: dict[str, Any] = {"atol": 2e-5, "rtol": 1e-5}
    found = scored(model, batch, temperature=0.7, logits=True, grammar=grammar)
    assert found.logits is not None
    readings = {
        "scored": found.logprobs,
        "without logits": scored(model, batch, temperature=0.7, grammar=grammar).logprobs,
        "read": read(model, batch, grammar=grammar).logprobs(temperature=0.7),
    }
    for values in readings.values():
        assert not values[~batch.mask].any()
        for one, (_, other) in zip(unpadded(values, batch), expected, strict=True):
            torch.testing.assert_close(one, other, **close)
    for logits in (found.logits, response_logits(model, batch, grammar=grammar)):
        for one, (other, _) in zip(unpadded(logits, batch), expected, strict=True):
            torch.testing.assert_close(one, other, **close)
    with torch.no_grad():
        sums = torch.stack([values.sum() for _, values in plainly(model, trees, mask)])
    torch.testing.assert_close(logprobs_of(model, trees, grammar=grammar), sums, atol=1e-4, rtol=1e-5)


@needs_bf16
@pytest.mark.parametrize("made", [Scattered, Parted])
@pytest.mark.parametrize("precision", COARSE)
def test_in_bf16_they_are_near_those_of_float64(
    precision: Any, made: type[Scattered], monkeypatch: pytest.MonkeyPatch
) -> None:
    if made is Parted:
        monkeypatch.setattr(Allowed, "groups", property(Allowed.grouped))
    model = at_work(ordinary("gpt2"), precision)
    mask = made(vocabulary=model.config.vocab_size)
    trees = mask.trees([(7, (3, 9)), (2, (5, 2))], seed=3)
    with torch.no_grad():
        expected = torch.cat([values for _, values in plainly(in_float64(model), trees, mask)])
        batch = pack(trees)
        found = response_logprobs(model, batch, grammar=grammar_of(mask))
    unmasked = response_logprobs(model, batch)[batch.mask].double()
    error = (found[batch.mask].double() - expected).abs().mean()
    assert error < 0.02
    assert (unmasked - expected).abs().mean() > 0.5


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kept", [0, 2**27])
def test_the_gradient_of_the_fused_head_is_that_of_finite_differences(
    kept: int, bias: bool, grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all that a head can have: scale, cap, temperature, bias; one token is the only one allowed."""
    monkeypatch.setattr(heads, "CHUNK_LOGITS", 2 * 6)
    monkeypatch.setattr(heads, "KEPT_LOGITS", kept)
    generator = torch.Generator().manual_seed(0)
    states, table, shift = (
        torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)
        for shape in ((5, 3), (6, 3), (6,))
    )
    tokens = torch.tensor([0, 5, 2, 2, 3])
    may = torch.rand(5, 6, generator=generator) < 0.5
    may[3] = False
    may[torch.arange(5), tokens] = True
    if grouped:
        one = torch.tensor([True, True, False, True, False, False])
        may[[0, 4]] &= one
        may[[1, 2]] &= ~one
    allowed = Allowed(list(may), torch.arange(5))
    groups = allowed.grouped() if grouped else None
    assert groups is None or len(groups.each) > 1

    def logprobs(states: torch.Tensor, table: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        head = heads.Head(scale=1.7, cap=1.3)
        return heads._Logprobs.apply(states, table, shift if bias else None, tokens, head, 0.6, allowed, groups)

    expected = 1.3 * torch.tanh((states @ table.T + bias * shift) * 1.7 / 1.3) / 0.6
    expected = expected.masked_fill(~may, -torch.inf).log_softmax(-1)[torch.arange(5), tokens]
    found = logprobs(states, table, shift)
    assert found[3] == 0
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=0)
    torch.autograd.gradcheck(
        lambda *given: logprobs(*given, *([] if bias else [shift])), (states, table) + (shift,) * bias
    )


def test_the_probabilities_of_all_responses_that_a_mask_allows_sum_to_1() -> None:
    policy, prompt = letters_policy(), (2, 3)
    exact = masked_distribution(policy, prompt, 3)
    batch = pack([Tree("all", prompt, tuple(exact))])
    with torch.no_grad():
        found = masked_sum(response_logprobs(policy.model, batch, grammar=grammar_of(NoLetterTwice())), batch.mask)
        unmasked = masked_sum(response_logprobs(policy.model, batch), batch.mask)
    assert float(found.double().exp().sum()) == pytest.approx(1, abs=1e-6)
    each = torch.tensor(list(exact.values()), dtype=torch.float64)
    torch.testing.assert_close(found.exp().double(), each, atol=1e-6, rtol=1e-4)
    assert float(unmasked.exp().sum()) < 0.9


@pytest.mark.usefixtures("grouped")
@pytest.mark.parametrize("known", [True, False])
@torch.no_grad()
def test_kl_and_entropy_are_the_same_in_groups_of_places(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not known:
        monkeypatch.setattr(scoring, "head_of", lambda model: None)
    mask, models = Parted(), [model_of("gpt2"), copy.deepcopy(model_of("gpt2"))]
    models[1].transformer.wte.weight.add_(
        torch.randn(models[1].transformer.wte.weight.shape, generator=torch.Generator().manual_seed(0)) / 3
    )
    trees = mask.trees(SHAPES, seed=6)
    batch, grammar = pack(trees), grammar_of(mask)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 60)
    reads = [read(model, batch, grammar=grammar) for model in models]
    assert len(reads[0].allowed.groups.each) == 4  # type: ignore[union-attr]
    found = of_distributions(reads, lambda *both: [kl_full(*both), entropy(both[0])])
    plain = [torch.cat([logits for logits, _ in plainly(model, trees, mask)]) for model in models]
    for one, other in zip(found, (kl_full(*plain), entropy(plain[0])), strict=True):
        torch.testing.assert_close(one[batch.mask], other, atol=2e-5, rtol=1e-4)
        assert not one[~batch.mask].any()


@torch.no_grad()
def test_kl_and_entropy_under_a_mask_are_those_of_the_enumerated_language() -> None:
    """Sequence KL by the chain rule: Σ_y π(y)·Σ_t KL_t; likewise entropy."""
    policy, other, prompt = letters_policy(), letters_policy(seed=1), (2, 3)
    ours, theirs = (masked_distribution(each, prompt, 3) for each in (policy, other))
    batch, grammar = pack([Tree("all", prompt, tuple(ours))]), grammar_of(NoLetterTwice())
    reads = [read(each.model, batch, grammar=grammar) for each in (policy, other)]
    kl, bits = of_distributions(reads, lambda *both: [kl_full(*both), entropy(both[0])])
    weights = torch.tensor(list(ours.values()), dtype=torch.float64)
    expected_kl = math.fsum(p * math.log(p / theirs[y]) for y, p in ours.items())
    expected_entropy = -math.fsum(p * math.log(p) for p in ours.values())
    assert float((masked_sum(kl, batch.mask) * weights).sum()) == pytest.approx(expected_kl, rel=1e-4)
    assert float((masked_sum(bits, batch.mask) * weights).sum()) == pytest.approx(expected_entropy, rel=1e-4)


def test_kl_and_entropy_of_masked_logits_have_finite_gradients() -> None:
    """−∞ − (−∞) stands in neither value nor gradient."""
    generator = torch.Generator().manual_seed(4)
    may = torch.rand(5, 8, generator=generator) < 0.5
    may[:, 2] = True
    may[0] = torch.arange(8) == 2
    logits, others = (torch.randn(5, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    logits.requires_grad_()

    def bounded(values: torch.Tensor) -> torch.Tensor:
        return values.masked_fill(~may, -torch.inf)

    for figure in (lambda z: kl_full(bounded(z), bounded(others)), lambda z: entropy(bounded(z))):
        assert torch.autograd.gradcheck(figure, (logits,))
        (gradient,) = torch.autograd.grad(figure(logits).sum(), logits)
        assert gradient[~may].eq(0).all()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_what_the_sampler_says_of_its_tokens_is_what_scoring_says(temperature: float) -> None:
    policy, mask = letters_policy(), NoLetterTwice()
    responses = sample(
        policy.model, [(2,), (3, 3), (4, 2, 5)], keys=["a", "b", "c"], end_id=END_ID, max_new_tokens=8, seed=0,
        samples=20, mask=mask, temperature=temperature,
    )  # fmt: skip
    batch = pack([response.tree for response in responses])
    found = response_logprobs(policy.model, batch, temperature=temperature, grammar=grammar_of(mask))
    behaviour = torch.tensor([value for response in responses for value in response.logprobs])
    torch.testing.assert_close(found[batch.mask], behaviour, atol=1e-5, rtol=1e-5)


def test_a_response_that_the_mask_forbids_is_refused_by_its_place() -> None:
    policy, grammar = letters_policy(), grammar_of(NoLetterTwice())
    good, twice, early = (3, 4, END_ID), (3, 4, 4, 5), (3, END_ID)
    response_logprobs(policy.model, pack([Tree("a", (2,), (good,))]), grammar=grammar)
    for bad, message in (
        (twice, r"token 4 at place 3 of response 2 of the batch \(prompt 2; tokens before it: 3 4\)"),
        (early, r"token 1 at place 2 of response 2 of the batch \(prompt 2; tokens before it: 3\)"),
        ((2,), r"token 2 at place 1 of response 2 of the batch \(prompt 2; tokens before it: none\)"),
    ):
        batch = pack([Tree("a", (2,), (good, bad))])
        for score in (response_logprobs, response_logits, read):
            with pytest.raises(ConfigError, match=message):
                score(policy.model, batch, grammar=grammar)  # type: ignore[operator]


def test_a_mask_of_another_width_is_refused() -> None:
    mask = Scattered(vocabulary=VOCABULARY + 3)
    batch = pack([Tree("a", (2,), ((5, 5),))])
    with pytest.raises(ConfigError, match="the token mask is 9 tokens wide, not 6: it has to be as wide as the"):
        response_logprobs(letters_policy().model, batch, grammar=grammar_of(mask))


def test_a_state_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Over batches, as long as no more are known than memory is given for; values stay the same where they are asked
    again."""
    mask, model = Scattered(), model_of("gpt2")
    batch = pack(mask.trees(SHAPES, seed=5))
    grammar = grammar_of(mask)
    first = response_logprobs(model, batch, grammar=grammar)
    assert len(mask.asked) == len(set(mask.asked))
    count = len(mask.asked)
    response_logprobs(model, batch, grammar=grammar)
    assert len(mask.asked) == count
    monkeypatch.setattr(masks, "KNOWN_BYTES", 5 * 40)
    again = grammar_of(mask)
    for _ in range(2):
        assert torch.equal(response_logprobs(model, batch, grammar=again), first)
    assert len(mask.asked) > 2 * count
