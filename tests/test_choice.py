"""A token is the inverse of its exact cumulative distribution, whatever shapes it; its log-probability is of that."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from preflab.config.sampling import Warp
from preflab.rollouts.choice import BLOCK, LARGE, choose

LARGEST_UNIFORM = 1 - 2.0**-53
VOCABULARIES = (2, 500, LARGE - 1, LARGE, 3 * BLOCK * 2, 5 * BLOCK + 1, 50257)


def some_logits(rows: int, vocabulary: int, *, seed: int = 0) -> Tensor:
    """Far from 0, as those of trained models are, with some tokens that can't follow."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator) - 80
    return logits.masked_fill(torch.rand(logits.shape, generator=generator) < 0.3 * (vocabulary > 2), -torch.inf)


def uniforms(count: int, *, seed: int = 0) -> Tensor:
    """In random order, with the two ends."""
    drawn = torch.rand(count - 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.cat([torch.tensor([0.0, LARGEST_UNIFORM], dtype=torch.float64), drawn])


def check_draws(tokens: Tensor, logprobs: Tensor, exact: Tensor, at: Tensor) -> None:
    """`exact`: the distributions as float64 logits, −∞ where a token has no probability."""
    wanted = exact.log_softmax(-1)
    above = wanted.exp().cumsum(-1)
    rows = torch.arange(len(tokens))
    high = above[rows, tokens]
    low = high - wanted.exp()[rows, tokens]
    assert bool((wanted[rows, tokens] > -torch.inf).all())
    assert bool(((low - 1e-6 <= at) & (at <= high + 1e-6)).all())
    torch.testing.assert_close(logprobs.double(), wanted[rows, tokens], rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.7, 2.5])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_a_token_s_interval_of_the_exact_distribution_holds_the_uniform(vocabulary: int, temperature: float) -> None:
    logits, at = some_logits(64, vocabulary), uniforms(64)
    tokens, logprobs = choose(logits, at, temperature=temperature)
    check_draws(tokens, logprobs, logits.double() / temperature, at)


@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_the_likeliest_token_is_taken_where_there_is_no_uniform(vocabulary: int) -> None:
    logits = some_logits(16, vocabulary)
    tokens, logprobs = choose(logits, None, temperature=0.7)
    assert tokens.tolist() == logits.argmax(-1).tolist()
    torch.testing.assert_close(logprobs.double(), (logits.double() / 0.7).log_softmax(-1).amax(-1), rtol=0, atol=1e-6)


@pytest.mark.parametrize("vocabulary", [9, LARGE, 5 * BLOCK + 7])
def test_frequencies_are_the_probabilities(vocabulary: int) -> None:
    """χ² over the tokens of which 20 or more are expected, and the others together; a hotter softmax is found out."""
    count = 40_000
    logits = 2 * torch.randn(1, vocabulary, generator=torch.Generator().manual_seed(1))
    at = torch.rand(count, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    drawn = torch.cat([choose(logits.expand(len(part), -1), part, temperature=1.3)[0] for part in at.split(4000)])
    seen = torch.bincount(drawn, minlength=vocabulary).double()

    def p_value(temperature: float) -> float:
        expected = count * (logits[0].double() / temperature).softmax(-1)
        common = expected >= 20
        observed, wanted = (torch.cat([x[common], x[~common].sum()[None]]) for x in (seen, expected))
        held = wanted > 0
        return float(chisquare(observed[held], wanted[held]).pvalue)

    assert p_value(1.3) > 0.01
    assert p_value(1.4) < 1e-6


@pytest.mark.parametrize("vocabulary", [300, LARGE, 5 * BLOCK + 7])
def test_what_has_no_probability_is_never_drawn(vocabulary: int) -> None:
    """Few tokens are left, at the ends of the vocabulary and of its blocks; the uniforms are the extreme ones."""
    at = torch.tensor([0.0, 2.0**-53, 0.25, 0.5, 0.75, LARGEST_UNIFORM], dtype=torch.float64)
    for left in ((0,), (vocabulary - 1,), (1, 2), (BLOCK - 1, BLOCK), (2 * BLOCK, vocabulary - 2), (7, 9, 250)):
        for value in (0.0, -3e4, 3e4):
            logits = torch.full((len(at), vocabulary), -torch.inf)
            logits[:, list(left)] = value
            logits[:, 5] = value - 500  # underflows
            tokens, logprobs = choose(logits, at, temperature=0.9)
            assert set(tokens.tolist()) <= set(left)
            assert tokens.tolist()[::5] == [left[0], left[-1]]
            assert logprobs.tolist() == pytest.approx([-math.log(len(left))] * len(at), abs=1e-6)


def test_logits_that_are_not_numbers_give_log_probabilities_that_are_none() -> None:
    for vocabulary in (10, LARGE + 5):
        logits = torch.zeros(2, vocabulary)
        logits[0, 3] = torch.nan
        tokens, logprobs = choose(logits, torch.tensor([0.5, 0.5], dtype=torch.float64), temperature=1.0)
        assert 0 <= int(tokens[0]) < vocabulary
        assert math.isnan(logprobs[0])
        assert float(logprobs[1]) == pytest.approx(-math.log(vocabulary), abs=1e-6)


def test_a_row_does_not_depend_on_the_others() -> None:
    logits, at = some_logits(8, 1000), uniforms(8)
    seen = torch.randint(1000, (8, 5), generator=torch.Generator().manual_seed(0))
    warp = Warp(top_k=50, top_p=0.9, repetition_penalty=1.2)
    together = choose(logits, at, temperature=0.8, warp=warp, seen=seen)
    for row in range(8):
        one = slice(row, row + 1)
        tokens, logprobs = choose(logits[one], at[one], temperature=0.8, warp=warp, seen=seen[one])
        assert (int(tokens), float(logprobs)) == (int(together[0][row]), float(together[1][row]))


def theirs(logits: Tensor, seen: Tensor, temperature: float, warp: Warp) -> Tensor:
    """transformers' processors and warpers, in the order of its `generate`, in float64."""
    found = LogitsProcessorList()
    if warp.repetition_penalty != 1:
        found.append(RepetitionPenaltyLogitsProcessor(warp.repetition_penalty))
    if temperature != 1:
        found.append(TemperatureLogitsWarper(temperature))
    if warp.top_k is not None:
        found.append(TopKLogitsWarper(warp.top_k))
    if warp.top_p < 1:
        found.append(TopPLogitsWarper(warp.top_p))
    return torch.as_tensor(found(seen, logits.double()))


@pytest.mark.parametrize("vocabulary", [40, 700])
@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.8])
@pytest.mark.parametrize(
    "warp",
    [
        Warp(top_k=1),
        Warp(top_k=7),
        Warp(top_k=10_000),
        Warp(top_p=0.9),
        Warp(top_p=0.05),
        Warp(top_p=0.999),
        Warp(top_k=12, top_p=0.8),
        Warp(repetition_penalty=1.3),
        Warp(repetition_penalty=0.6),
        Warp(top_k=9, top_p=0.7, repetition_penalty=1.5),
    ],
    ids=str,
)
def test_warps_are_those_of_transformers(warp: Warp, temperature: float, vocabulary: int) -> None:
    rows = 200
    generator = torch.Generator().manual_seed(3)
    logits = 3 * torch.randn(10, vocabulary, generator=generator)
    seen = torch.randint(vocabulary, (10, 30), generator=generator)
    exact, at = theirs(logits, seen, temperature, warp).repeat(20, 1), uniforms(rows)
    shown = logits.repeat(20, 1)
    tokens, logprobs = choose(shown, at, temperature=temperature, warp=warp, seen=seen.repeat(20, 1))
    check_draws(tokens, logprobs, exact, at)
    likeliest, _ = choose(shown, None, temperature=temperature, warp=warp, seen=seen.repeat(20, 1))
    assert likeliest.tolist() == exact.argmax(-1).tolist()


def test_ties_at_the_cut_are_all_kept() -> None:
    """As transformers keeps them in top-k. Worked by hand: 4, 2, 2, 2, 1, 1 over 12."""
    logits = torch.tensor([[1.0, 2.0, 4.0, 2.0, 1.0, 2.0]]).log().expand(100, -1)
    at = uniforms(100)
    for warp, left in (
        (Warp(top_k=2), [0, 2, 4, 2, 0, 2]),
        (Warp(top_k=5), [1, 2, 4, 2, 1, 2]),
        (Warp(top_p=0.45), [0, 2, 4, 2, 0, 2]),  # 4/12 are not enough, so a second is needed, and its equals stay
        (Warp(top_p=0.3), [0, 0, 1, 0, 0, 0]),
        (Warp(top_k=2, top_p=0.39), [0, 0, 1, 0, 0, 0]),  # of the four that top-k keeps, the first has 0.4
        (Warp(top_k=2, top_p=0.41), [0, 2, 4, 2, 0, 2]),
    ):
        exact = torch.tensor([left], dtype=torch.float64).log().expand(100, -1)
        check_draws(*choose(logits, at, temperature=1.0, warp=warp), exact, at)


def test_a_token_seen_often_pays_once_and_filling_up_changes_nothing() -> None:
    logits, at = torch.randn(4, 20, generator=torch.Generator().manual_seed(0)), uniforms(4)
    seen = torch.tensor([[3, 7], [1, 1], [0, 19], [5, 4]])
    warp = Warp(repetition_penalty=1.4)
    first = choose(logits, at, temperature=1.0, warp=warp, seen=seen)
    again = choose(logits, at, temperature=1.0, warp=warp, seen=torch.cat([seen, seen[:, :1].expand(-1, 6)], 1))
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])


@pytest.mark.parametrize("vocabulary", [30, LARGE + 11])
def test_a_mask_comes_before_the_cut_and_what_is_left_is_renormalised(vocabulary: int) -> None:
    logits, at = some_logits(40, vocabulary).nan_to_num(neginf=-81.0), uniforms(40)
    allowed = torch.rand(logits.shape, generator=torch.Generator().manual_seed(5)) < 0.4
    allowed[:, 3] = True
    masked = logits.double().masked_fill(~allowed, -torch.inf)
    check_draws(*choose(logits, at, temperature=1.2, allowed=allowed), masked / 1.2, at)
    exact = theirs(masked, torch.zeros(40, 1, dtype=torch.long), 1.2, Warp(top_k=4))
    check_draws(*choose(logits, at, temperature=1.2, warp=Warp(top_k=4), allowed=allowed), exact, at)


def test_half_precision_logits_are_read_as_they_are() -> None:
    logits, at = some_logits(32, 500).bfloat16(), uniforms(32)
    check_draws(*choose(logits, at, temperature=1.0), logits.double(), at)


def test_neither_logits_nor_uniforms_are_changed() -> None:
    logits, at = some_logits(4, 800), uniforms(4)
    before = logits.clone(), at.clone()
    seen = torch.zeros(4, 1, dtype=torch.long)
    choose(logits, at, temperature=0.5, warp=Warp(top_k=3, top_p=0.5, repetition_penalty=2.0), seen=seen)
    assert torch.equal(logits, before[0])
    assert torch.equal(at, before[1])
