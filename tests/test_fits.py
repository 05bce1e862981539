"""Gao et al.'s curves: known coefficients come back, intervals cover, and a peak is named only where one is shown."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import optimize

from preflab.report.fits import Fit, Form, fit, peak
from preflab.report.statistics import Matrix

FORMS: tuple[Form, ...] = ("best of n", "training")


def curve(form: Form, d: Matrix, alpha: float, beta: float) -> Matrix:
    """R(d), written a second time."""
    return alpha * d - beta * d**2 if form == "best of n" else alpha * d - beta * d * np.log(d)


def simulated(
    form: Form, alpha: float, beta: float, d: Matrix, rng: np.random.Generator, seeds: int = 3, noise: float = 0.7
) -> tuple[list[Matrix], list[Matrix]]:
    """KL and reward of checkpoints by seed and prompt; a seed's luck moves it along the curve, as training does."""
    kl, gains = [], []
    for x in d:
        moved = x**2 * (1 + 0.05 * rng.normal(size=(seeds, 1)))
        kl.append(moved * rng.gamma(9, 1 / 9, (seeds, 60)))
        gains.append(curve(form, np.sqrt(moved), alpha, beta) + noise * rng.normal(size=(seeds, 60)))
    return kl, gains


def fitted(form: Form, kl: list[Matrix], gains: list[Matrix]) -> Fit:
    found = fit(form, kl, gains)
    assert found
    return found


def exact(form: Form, alpha: float, beta: float, d: list[float]) -> Fit:
    """A fit to a curve without noise."""
    ones = np.ones((2, 6))
    return fitted(form, [x**2 * ones for x in d], [float(curve(form, np.array(x), alpha, beta)) * ones for x in d])


@pytest.mark.parametrize("form", FORMS)
def test_the_fit_is_least_squares(form: Form) -> None:
    rng = np.random.default_rng(1)
    kl, gains = simulated(form, 1.5, 0.4, np.array([0.5, 1.0, 1.7, 2.4]), rng)
    d, means = np.sqrt([x.mean() for x in kl]), np.array([x.mean() for x in gains])
    theirs, _ = optimize.curve_fit(lambda x, a, b: curve(form, x, a, b), d, means)
    ours = fitted(form, kl, gains)
    assert ours.means == pytest.approx(theirs)
    residual = means - curve(form, d, *theirs)
    assert ours.r_squared == pytest.approx(1 - residual @ residual / np.sum((means - means.mean()) ** 2))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seeds", [1, 3])
def test_intervals_cover(form: Form, seeds: int) -> None:
    rng = np.random.default_rng(seeds)
    d, beta = np.array([0.7, 1.2, 2.0, 2.6, 3.2]), 0.35 if form == "best of n" else 0.9
    top = peak(form, 1.5, beta)
    assert top
    covered, missed = [], []
    for _ in range(120 if seeds == 1 else 300):
        found = fitted(form, *simulated(form, 1.5, beta, d, rng, seeds))
        alpha_hat, beta_hat, end = found.alpha, found.beta, found.slope(top)
        covered.append(
            (alpha_hat.low <= 1.5 <= alpha_hat.high, beta_hat.low <= beta <= beta_hat.high, end.low <= 0 <= end.high)
        )
        missed.append(bool(found.missed))
    assert np.mean(covered, axis=0).min() >= 0.9
    assert np.mean(missed) <= 0.12


def test_a_seed_that_moved_further_is_no_noise() -> None:
    """Rewards that lie on the curve exactly, at KLs that differ by seed: at fixed KL hardly anything is left."""
    rng = np.random.default_rng(0)
    kl, gains = simulated("training", 1.5, 0.9, np.array([0.7, 1.2, 2.0, 2.6]), rng, noise=0.0)
    kl = [np.tile(x.mean(axis=1, keepdims=True), 60) for x in kl]
    gains = [curve("training", np.sqrt(x), 1.5, 0.9) for x in kl]
    alpha = fitted("training", kl, gains).alpha
    assert alpha.high - alpha.low < 0.05
    assert alpha.low - 0.01 <= 1.5 <= alpha.high + 0.01


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("alpha", "beta"), [(1.5, 0.4), (0.8, 0.5)])
def test_the_peak_is_where_the_curve_is_highest(form: Form, alpha: float, beta: float) -> None:
    d = np.linspace(1e-3, 60, 200_000)
    assert peak(form, alpha, beta) == pytest.approx(d[np.argmax(curve(form, d, alpha, beta))], rel=1e-3)


def test_a_peak_inside_the_range_is_found() -> None:
    assert exact("best of n", 2.0, 0.5, [0.5, 1.5, 3.0]).peak.mean == pytest.approx(2.0)  # type: ignore[union-attr]
    rng = np.random.default_rng(0)
    found = fitted("training", *simulated("training", 1.5, 0.9, np.array([0.7, 1.2, 2.0, 2.6, 3.2]), rng, noise=0.2))
    top = found.peak
    assert top
    assert 0.7 <= top.low <= np.exp(1.5 / 0.9 - 1) <= top.high <= 3.2
    assert [found.slope(top.low).sign, found.slope(top.high).sign] == [1, -1]


@pytest.mark.parametrize(
    ("form", "alpha", "beta"),
    [
        ("best of n", 2.0, 0.1),  # beyond the last checkpoint
        ("training", 2.0, 0.1),
        ("best of n", 1.0, -0.3),  # bends upwards
        ("training", 1.0, -0.3),
        ("best of n", -1.0, 0.3),  # falls from the start
        ("training", 0.0, 0.0),
    ],
)
def test_no_peak_is_named_where_none_was_seen(form: Form, alpha: float, beta: float) -> None:
    found = exact(form, alpha, beta, [0.5, 1.0, 2.0])
    assert found.means == pytest.approx((alpha, beta), abs=1e-9)
    assert found.peak is None


def test_a_peak_in_noise_is_not_named() -> None:
    rng = np.random.default_rng(4)
    d = np.array([0.5, 0.9, 1.3])
    named = [fitted("training", *simulated("training", 0.6, 0.6, d, rng, noise=2.0)).peak for _ in range(100)]
    assert sum(top is not None for top in named) <= 10


def test_the_order_of_checkpoints_does_not_matter() -> None:
    kl, gains = simulated("training", 1.5, 0.9, np.array([0.7, 2.0, 1.2, 2.6]), np.random.default_rng(2))
    back = fitted("training", kl[::-1], gains[::-1])
    assert back.means == pytest.approx(fitted("training", kl, gains).means)
    assert list(back.d) == sorted(back.d)


@pytest.mark.parametrize("d", [[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
def test_too_few_or_alike_checkpoints_have_no_curve(d: list[float]) -> None:
    ones = np.ones((2, 6))
    assert fit("training", [x**2 * ones for x in d], [x * ones for x in d]) is None


def test_another_shape_is_seen_as_a_misfit() -> None:
    rng = np.random.default_rng(0)
    d = np.array([0.5, 1.0, 1.5, 2.0, 2.5, 3.0])
    jump = [float(x > 1.7) + 0.1 * rng.normal(size=(3, 60)) for x in d]
    assert fitted("training", [np.full((3, 60), x**2) for x in d], jump).missed
