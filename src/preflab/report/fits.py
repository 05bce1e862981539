"""Gao, Schulman and Hilton's curves of reward against √KL (2210.10760, equation 1), fitted with intervals.

With d = √KL, KL in nats, and R(d) the reward above the reference's:

- best of n: R(d) = d (α − β d), highest at d* = α / 2β;
- reinforcement learning, and DPO-like methods after 2406.02900: R(d) = d (α − β log d), highest at
  d* = exp(α/β − 1).

Both are linear in α and β, so least squares through the checkpoints is a fixed linear map of their rewards. Applied to
every seed and prompt it gives a matrix of α whose mean is the fit's α and whose interval `estimate` knows; the same
holds for β and for the slope at any d. KL is measured too: each reward is taken at fixed KL, less slope × (KL − mean
KL), as `verdicts.reward_at` does (the delta method).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from preflab.report.statistics import Estimate, Matrix, estimate

Form = Literal["best of n", "training"]

LEAST = 3  # checkpoints of two unknowns
NO_KL_NATS = 1e-3  # below it a checkpoint is the reference, up to rounding
SPAN = 4.0  # largest KL over the smallest from which on a curve's peak, or that it has none, can be read off it
ALIKE = 1e4  # condition number from which on the checkpoints are as good as one
BISECTIONS = 10  # to a thousandth of the measured range


def terms(form: Form, d: ArrayLike) -> Matrix:
    """∂R/∂α and ∂R/∂β at each d > 0: the columns of the regression.

    >>> terms("best of n", [2.0]), terms("training", [1.0])
    (array([[ 2., -4.]]), array([[ 1., -0.]]))
    """
    x = np.asarray(d, dtype=np.float64)
    return np.stack([x, -(x**2) if form == "best of n" else -x * np.log(x)], axis=-1)


def slopes(form: Form, d: ArrayLike) -> Matrix:
    """∂²R/∂d∂α and ∂²R/∂d∂β at each d > 0: R'(d) is linear in α and β too.

    >>> slopes("best of n", [2.0]), slopes("training", [1.0])
    (array([[ 1., -4.]]), array([[ 1., -1.]]))
    """
    x = np.asarray(d, dtype=np.float64)
    return np.stack([np.ones_like(x), -2 * x if form == "best of n" else -np.log(x) - 1], axis=-1)


def peak(form: Form, alpha: float, beta: float) -> float | None:
    """d* where R(d) is highest; None where the curve has no maximum at a d > 0.

    >>> peak("best of n", 4.0, 1.0), peak("training", 1.0, 1.0), peak("training", 1.0, -1.0)
    (2.0, 1.0, None)
    """
    if beta <= 0 or (form == "best of n" and alpha <= 0):
        return None
    return alpha / (2 * beta) if form == "best of n" else float(np.exp(min(alpha / beta - 1, 700.0)))


@dataclass(frozen=True)
class Fit:
    """A curve through an arm's checkpoints, with what is left of each seed and prompt."""

    form: Form
    d: Matrix
    """√KL of the checkpoints, √nats, ascending."""
    gains: Matrix
    """Mean reward above the reference's at each checkpoint."""
    coefficients: Matrix
    """α and β by seed and prompt, shape [2, seed, prompt]."""
    residuals: Matrix
    """Reward less the curve, by checkpoint, seed and prompt."""

    @property
    def alpha(self) -> Estimate:
        """Reward per √nat."""
        return estimate(self.coefficients[0], "α of the fitted curve")

    @property
    def beta(self) -> Estimate:
        """Curvature: reward per nat for best of n, reward per √nat for training."""
        return estimate(self.coefficients[1], "β of the fitted curve")

    @property
    def means(self) -> tuple[float, float]:
        """α and β."""
        return float(self.coefficients[0].mean()), float(self.coefficients[1].mean())

    def at(self, d: ArrayLike) -> Matrix:
        """R(d)."""
        values: Matrix = terms(self.form, d) @ np.array(self.means)
        return values

    def slope(self, d: float) -> Estimate:
        """R'(d), reward per √nat, with its interval."""
        weights = slopes(self.form, d)
        return estimate(np.tensordot(weights, self.coefficients, axes=1), f"slope at √KL = {d:.3g}")

    @property
    def r_squared(self) -> float | None:
        """The share of the checkpoints' variance about their mean that the curve explains; None where there is none.

        Below 0 the curve, which must pass through the reference, does worse than a level line.
        """
        total = float(np.sum((self.gains - self.gains.mean()) ** 2))
        return None if total <= 1e-18 else 1 - float(np.sum((self.gains - self.at(self.d)) ** 2)) / total

    @property
    def wide(self) -> bool:
        """Whether the checkpoints span enough KL to speak of a peak: the largest at least four times the smallest, so
        that √KL doubles."""
        return bool(self.d[-1] ** 2 >= SPAN * self.d[0] ** 2)

    @property
    def missed(self) -> tuple[int, ...]:
        """The checkpoints that the curve misses by more than their noise; of m all hold together (1 − 0.05/m)."""
        confidence = 1 - 0.05 / len(self.d)
        found = [estimate(left, "distance from the fitted curve", confidence) for left in self.residuals]
        return tuple(i for i, left in enumerate(found) if left.sign)

    @property
    def peak(self) -> Estimate | None:
        """d* within the measured range, where that is wide enough and the curve is shown to be past it: its
        slope at the end is below 0.

        The interval holds the d at which the slope may be 0, within the measured range: a confidence set in Fieller's
        way, which needs no ratio of two estimates.
        """
        low, high = float(self.d[0]), float(self.d[-1])
        top = peak(self.form, *self.means)
        if top is None or not self.wide or not low <= top <= high or self.slope(high).sign >= 0:
            return None
        rising = self.edge(top, low) if self.slope(low).sign > 0 else low
        return Estimate(top, rising, self.edge(top, high))

    def edge(self, inside: float, outside: float) -> float:
        """Where the slope stops being distinguishable from 0, between a d where it isn't and one where it is."""
        for _ in range(BISECTIONS):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if self.slope(middle).sign else (middle, outside)
        return outside


def fit(form: Form, kl_nats: Sequence[Matrix], gains: Sequence[Matrix]) -> Fit | None:
    """Fit R(d) to checkpoints by least squares; None where fewer than three have a KL above 0, or all have the same.

    Args:
        kl_nats: KL of each checkpoint by seed and prompt, nats.
        gains: reward − reference's reward on the same prompts, by seed and prompt.

    >>> d = np.array([1.0, 2.0, 3.0])
    >>> found = fit("best of n", [np.full((1, 4), x**2) for x in d], [np.full((1, 4), x * (5 - x)) for x in d])
    >>> [round(x, 6) for x in found.means]
    [5.0, 1.0]
    """
    order = [i for i in np.argsort([kl.mean() for kl in kl_nats]) if kl_nats[i].mean() > NO_KL_NATS]
    if len(order) < LEAST:
        return None
    kl = np.stack([kl_nats[i] for i in order])
    reward = np.stack([gains[i] for i in order])
    d = np.sqrt(kl.mean(axis=(1, 2)))
    design = terms(form, d)
    scale = np.linalg.norm(design, axis=0)
    if not scale.all() or np.linalg.cond(design / scale) > ALIKE:
        return None
    solve = np.linalg.pinv(design)
    means = reward.mean(axis=(1, 2))
    per_nat = (slopes(form, d) @ (solve @ means)) / (2 * d)  # dR/dKL = R'(d) / 2d
    at_fixed_kl = reward - per_nat[:, None, None] * (kl - kl.mean(axis=(1, 2), keepdims=True))
    coefficients = np.tensordot(solve, at_fixed_kl, axes=1)
    return Fit(form, d, means, coefficients, at_fixed_kl - np.tensordot(design, coefficients, axes=1))
