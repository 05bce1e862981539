"""What a report asks for to settle a gap does settle it, in studies whose variances are known."""

from __future__ import annotations

import numpy as np
import pytest

from preflab.report.effort import MOST_SEEDS, Effort, effort, in_words
from preflab.report.statistics import Matrix, estimate


def simulated(rng: np.random.Generator, gap: float, seed: float, prompt: float, shape: tuple[int, int]) -> Matrix:
    seeds, prompts = shape
    effects = seed * rng.normal(size=(seeds, 1)) + prompt * rng.normal(size=(1, prompts))
    values: Matrix = gap + effects + 0.6 * rng.normal(size=shape)
    return values


@pytest.mark.parametrize(
    ("gap", "seed", "prompt", "confidence"),
    [(0.25, 0.1, 0.4, 0.95), (0.35, 0.2, 0.4, 0.95), (0.5, 0.3, 0.3, 0.95), (0.25, 0.1, 0.4, 0.995)],
)
def test_the_seeds_that_are_asked_for_settle_the_gap(gap: float, seed: float, prompt: float, confidence: float) -> None:
    rng = np.random.default_rng(int(1000 * gap))
    settled = []
    while len(settled) < 150:
        whole = simulated(rng, gap, seed, prompt, (3 + MOST_SEEDS, 64))
        if estimate(whole[:3], "pilot", confidence).sign:
            continue
        asked = effort(whole[:3], gap, confidence)
        assert asked
        if asked.need == "seeds":
            assert asked.amount
            settled.append(estimate(whole[: 3 + asked.amount], "larger study", confidence).sign == 1)
    assert np.mean(settled) >= 0.68  # seven of ten, within the error of this simulation


def test_the_prompts_that_are_asked_for_settle_the_gap() -> None:
    rng = np.random.default_rng(3)
    settled = []
    while len(settled) < 100:
        whole = simulated(rng, 0.15, 0.0, 0.8, (3, 2000))
        asked = effort(whole[:, :64], 0.15, 0.95)
        assert asked
        if asked.need == "prompts" and asked.amount and asked.amount <= 2000:
            settled.append(estimate(whole[:, : asked.amount], "larger study").sign == 1)
    assert np.mean(settled) >= 0.68


def test_prompts_are_asked_for_where_they_make_the_noise_and_seeds_where_these_do() -> None:
    rng = np.random.default_rng(0)
    of_prompts = effort(simulated(rng, 0.0, 0.0, 1.0, (3, 64)), 0.2, 0.95)
    of_seeds = effort(simulated(rng, 0.0, 0.5, 0.1, (3, 64)), 0.5, 0.95)
    assert of_prompts
    assert of_seeds
    assert (of_prompts.need, of_seeds.need) == ("prompts", "seeds")


def test_a_smaller_gap_never_needs_fewer_seeds() -> None:
    values = simulated(np.random.default_rng(1), 0.0, 0.3, 0.0, (4, 200))
    asked = [effort(values, gap, 0.95) for gap in (1.0, 0.6, 0.4, 0.3, 0.2)]
    amounts = [one.amount for one in asked if one and one.need == "seeds"]
    assert len(amounts) >= 3
    assert amounts == sorted(amounts, key=lambda amount: amount or 0)


def test_a_gap_that_no_study_settles_is_said_to_be_one() -> None:
    values = simulated(np.random.default_rng(2), 0.0, 0.5, 0.5, (3, 64))
    asked = effort(values, 1e-3, 0.95)
    assert asked == Effort(1e-3, "neither", None)
    assert (
        in_words(asked, values, 0.01, "test prompts")
        == "More than 50 more seeds would be needed to settle a gap of 0.01."
    )


def test_one_seed_can_not_say_how_many_it_takes() -> None:
    values = np.random.default_rng(2).normal(size=(1, 64))
    assert effort(values, 0.3, 0.95) is None
    assert in_words(None, values, 0.3, "test prompts").startswith("One seed says nothing about other training runs: 3 ")


def test_prompts_are_named_by_their_split() -> None:
    said = in_words(Effort(0.3, "prompts", 1200), np.zeros((3, 64)), 0.3, "validation prompts")
    assert said == "More prompts, 1,200 validation prompts for 64, would settle a gap of 0.30."
