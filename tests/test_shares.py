"""Shares over several seeds: inside [0, 1], and covering where seeds near 1 hide how far below it others lie."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import special

from preflab.report.shares import mean_reward, share
from preflab.report.statistics import estimate


def test_a_share_of_several_seeds_is_taken_on_the_logit() -> None:
    """By hand: a mean of 0.75 with half-width h is logit 0.75 ± h / (0.75 · 0.25)."""
    values = np.array([[1.0, 1.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0]])
    half = estimate(values, "wins").high - 0.75
    found = share(values, "wins")
    ends = [np.log(3) - half / 0.1875, np.log(3) + half / 0.1875]
    assert (found.low, found.mean, found.high) == pytest.approx(
        (1 / (1 + np.exp(-ends[0])), 0.75, 1 / (1 + np.exp(-ends[1])))
    )
    assert 0 < found.low < 0.75 - (found.high - 0.75)  # longer to the side where there is room


def test_a_reward_of_zeros_and_ones_is_a_share_and_no_other_is() -> None:
    solved = np.array([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    assert mean_reward(solved, "solved") == share(solved, "solved")
    assert mean_reward(solved, "solved").high < 1 < estimate(solved, "solved").high
    assert mean_reward(2 * solved, "points") == estimate(2 * solved, "points")


def test_shares_near_1_cover_where_a_symmetric_interval_does_not() -> None:
    """Three seeds whose shares spread around a logit of 3: docs/statistics.md has more cases."""
    rng = np.random.default_rng(0)
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    truth = float(weights @ special.expit(3.0 + nodes) / weights.sum())
    held = {share: 0, estimate: 0}
    studies = 600
    for _ in range(studies):
        chance = special.expit(3.0 + rng.normal(size=(3, 1)))
        values = (rng.random((3, 64)) < chance).astype(float)
        for interval in held:
            found = interval(values, "share")
            held[interval] += found.low <= truth <= found.high
    assert held[share] / studies > 0.91
    assert held[estimate] / studies < 0.90
