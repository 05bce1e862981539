"""Length and reward: the fits agree with hand-worked cases and with other people's code, the intervals cover."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression

from preflab.report.lengths import correlation, length_controlled, logistic


def test_a_correlation_is_pearsons_and_its_interval_is_fishers_where_the_data_are_normal() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=500)
    y = 0.6 * x + 0.8 * rng.normal(size=500)
    found = correlation(x, y, "x, y")
    pearson = stats.pearsonr(x, y)
    assert found is not None
    assert found.mean == pytest.approx(pearson.statistic)
    interval = pearson.confidence_interval()
    assert (found.low, found.high) == pytest.approx((interval.low, interval.high), abs=0.012)


def test_a_correlation_is_the_same_whatever_the_units_and_turns_with_the_sign() -> None:
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(3, 40)), rng.normal(size=(3, 40))
    plain, scaled, turned = correlation(x, y, ""), correlation(7 * x + 3, y / 9, ""), correlation(x, -y, "")
    assert plain
    assert scaled
    assert turned
    assert (scaled.mean, scaled.low, scaled.high) == pytest.approx((plain.mean, plain.low, plain.high))
    assert (turned.mean, turned.low, turned.high) == pytest.approx((-plain.mean, -plain.high, -plain.low))


@pytest.mark.parametrize("y", [np.ones(5), 2 * np.arange(5.0)], ids=["flat", "on a line"])
def test_where_a_correlation_has_no_interval_there_is_none(y: np.ndarray) -> None:
    assert correlation(np.arange(5.0), y, "") is None


def test_the_win_rate_at_equal_length_is_that_of_two_lengths_worked_by_hand() -> None:
    """9 longer: 8 of 10 wins; 9 shorter: 4 of 10. tanh(±1) is symmetric, so σ(θ) has the mean of both log odds:
    (ln 4 + ln 2/3)/2 = 0.4904, σ = 0.6202; the raw win rate is 0.6."""
    wins = [1.0] * 8 + [0.0] * 2 + [1.0] * 4 + [0.0] * 6
    found = length_controlled(wins, [9.0] * 10 + [-9.0] * 10, "")
    assert found is not None
    assert found.mean == pytest.approx(0.6202, abs=1e-4)


def test_the_fit_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    terms = np.stack([np.ones(500), rng.normal(size=500)], axis=1)
    wins = (rng.random(500) < 1 / (1 + np.exp(-(0.4 - 0.9 * terms[:, 1])))).astype(float)
    ours = logistic(terms, wins)
    theirs = LogisticRegression(C=1e12, fit_intercept=False, tol=1e-10).fit(terms, wins).coef_[0]
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_who_wins_by_length_alone_wins_half_at_equal_length() -> None:
    rng = np.random.default_rng(3)
    longer = rng.integers(-10, 31, (3, 400)).astype(float)
    wins = (rng.random((3, 400)) < 1 / (1 + np.exp(-1.5 * np.tanh(longer / 14)))).astype(float)
    found = length_controlled(wins, longer, "")
    assert wins.mean() > 0.62
    assert found is not None
    assert found.low < 0.5 < found.high
    assert found.high - found.low < 0.12


def test_exchanging_the_arms_exchanges_wins_and_losses() -> None:
    rng = np.random.default_rng(4)
    longer, wins = rng.integers(-9, 20, 80).astype(float), rng.integers(0, 3, 80) / 2
    here, there = length_controlled(wins, longer, ""), length_controlled(1 - wins, -longer, "")
    assert here
    assert there
    assert here.mean == pytest.approx(1 - there.mean)


def test_the_interval_at_equal_length_covers() -> None:
    """True σ(θ) = 0.6: 95 % intervals of 200 simulated arms with 60 prompts hold it about 95 times of 100."""
    rng = np.random.default_rng(5)
    theta, held = np.log(1.5), 0
    for _ in range(200):
        longer = rng.normal(3, 10, 60)
        scale = np.sqrt((longer**2).mean())
        wins = (rng.random(60) < 1 / (1 + np.exp(-(theta + np.tanh(longer / scale))))).astype(float)
        found = length_controlled(wins, longer, "")
        assert found is not None
        held += found.low <= 0.6 <= found.high
    assert 180 <= held <= 198


@pytest.mark.parametrize(
    ("wins", "longer"),
    [([1, 0, 1, 0], [3, 4, 5, 6]), ([1, 0, 1, 0], [0, 0, 0, 0]), ([1, 1, 1, 1], [-1, 1, 2, 3]),
     ([0, 0, 1, 1], [-5, -4, 4, 5])],
    ids=["never shorter", "never another length", "always won", "told apart by length"],
)  # fmt: skip
def test_where_equal_length_cannot_be_asked_there_is_no_win_rate(wins: list[float], longer: list[float]) -> None:
    assert length_controlled(wins, longer, "") is None
