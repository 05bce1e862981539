"""Discriminators on rows that they did not learn from: what they say there, and what it is worth.

    logit(x) = slope·raw(x) + offset        Platt scaling (1999): logistic regression of the class on the raw logit

Both classes weigh alike in it, however many rows each has, so that the logit is log p(x | real) − log p(x | written)
and needs no correction for the classes' shares. It is fitted on held-out rows: on its own a discriminator is too sure.

A discriminator whose slope is not above 0 ranks held-out rows no better than backwards. It then says nothing: its
calibrated logit is 0. It is not turned round, since what is backwards by chance in one sample is not in the next.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.optimize import minimize
from scipy.special import expit

from preflab.errors import DataError
from preflab.seeds import derive
from preflab.tables.discriminators.level import Codes, Discriminator, Evidence, Level

Rows = Float[np.ndarray, " row"]
Fit = Callable[[Evidence, int], Discriminator]
"""From rows and a seed."""

NORMAL_95 = 1.959964
"""A normal variable lies within so many standard deviations with probability 0.95."""
RIDGE = 1e-3
"""What ½·‖weights‖² costs beside the mean loss where several discriminators are weighed."""
CONSTANT = 1e-9
"""Logits that vary by less say the same of each row."""


@dataclass(frozen=True)
class Said:
    """A number of each row that its maker did not learn from: a logit, or one for each of several discriminators."""

    real: Float[np.ndarray, "real ..."]
    written: Float[np.ndarray, "written ..."]
    weights: Float[np.ndarray, " written"]
    """Importance of the written rows."""
    real_fold: Int[np.ndarray, " real"]
    written_fold: Int[np.ndarray, " written"]
    """Parts for what is fitted on these numbers, to be judged out of fold in turn."""

    def of(self, change: Callable[[np.ndarray], np.ndarray]) -> Said:
        """The same rows with other numbers."""
        return Said(change(self.real), change(self.written), self.weights, self.real_fold, self.written_fold)

    def shares(self) -> tuple[Rows, Rows]:
        """Weights that add up to 1 in each class."""
        return np.full(len(self.real), 1 / len(self.real)), self.weights / self.weights.sum()


@dataclass(frozen=True)
class Calibration:
    """From raw logits to log density ratios, in nats."""

    slope: float
    """As fitted; below 1 for a discriminator that is too sure."""
    offset: float

    @property
    def silent(self) -> bool:
        """Whether nothing can be made of the raw logits."""
        return self.slope <= 0

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """Calibrated logits; 0 where it is silent.

        >>> Calibration(0.5, 0.1)(np.array([2.0])).tolist(), Calibration(-0.5, 0.1)(np.array([2.0])).tolist()
        ([1.1], [0.0])
        """
        return np.zeros_like(raw) if self.silent else self.slope * raw + self.offset


@dataclass(frozen=True)
class Held:
    """What a discriminator is worth, on rows that it did not learn from."""

    name: str
    level: Level
    auc: float
    """Probability that it takes a real row for more real than a written one, in [0, 1]; 0.5 where it can't tell."""
    auc_low: float
    auc_high: float
    """The ends of a 95 % interval."""
    slope: float
    """Of the calibration; where it is not above 0, the discriminator says nothing."""
    offset: float
    log_loss: float
    """−log of the calibrated probability of a row's class, in nats, both classes counted alike; log 2 = 0.693 where
    nothing is said."""


@dataclass(frozen=True)
class CrossFitted:
    """A discriminator for each fold, which saw all rows but that fold's."""

    name: str
    level: Level
    members: tuple[Discriminator, ...]
    calibration: Calibration
    said: Said
    """Calibrated, held out, of whole rows."""
    held: Held


def cross_fit(name: str, level: Level, fit: Fit, evidence: Evidence, *, seed: int) -> CrossFitted:
    """Fit one discriminator a fold, and calibrate what they say of rows that they did not learn from.

    Args:
        name: of what is fitted.
        level: what it looks at.
        fit: makes one from rows.
        evidence: calibration is on its unseen rows where there are some, by the mean of all members; else on each fold,
            by the member that did not see it.
        seed: each member has one derived from it.

    Raises:
        DataError: a fold has no rows of a class.
    """
    check(evidence)
    members = tuple(fit(without(evidence, fold), derive(seed, name, fold)) for fold in range(evidence.folds))
    raw = _said(members, evidence)
    calibration = platt(raw)
    said = raw.of(calibration)
    return CrossFitted(name, level, members, calibration, said, held(name, level, raw, calibration))


def check(evidence: Evidence) -> None:
    """That each member and each judgement has rows of both classes.

    Raises:
        DataError: they don't.
    """
    for what, folds in (("real", evidence.real_fold), ("written", evidence.written_fold)):
        counts = np.bincount(folds, minlength=evidence.folds)
        if len(counts) < 2 or len(counts) > evidence.folds or not counts.all():
            raise DataError(
                f"discriminators: {len(folds)} {what} rows do not fill the folds ({counts.tolist()}); "
                "ask for fewer folds, or give more rows"
            )
    if (evidence.unseen_real is None) != (evidence.unseen_written is None):
        raise DataError("discriminators: unseen rows are given of one class only; give both or neither")
    for rows in (evidence.unseen_real, evidence.unseen_written):
        if rows is not None and len(rows) < evidence.folds:
            raise DataError(
                f"discriminators: {len(rows)} unseen rows are fewer than the {evidence.folds} folds; give more "
                "rows, or none"
            )


def without(evidence: Evidence, fold: int) -> Evidence:
    """What a member learns from: all rows but a fold's, and no unseen ones."""
    real, written = evidence.real_fold != fold, evidence.written_fold != fold
    return Evidence(
        evidence.real[real],
        evidence.real_fold[real],
        evidence.written[written],
        evidence.written_fold[written],
        evidence.importance[written],
    )


def mean_logits(members: Sequence[Discriminator], codes: Codes) -> Float[np.ndarray, "row place"]:
    """What all members say on average of rows that none of them saw."""
    return np.mean([member.logits(codes) for member in members], axis=0)


def mean_row_logits(members: Sequence[Discriminator], codes: Codes) -> Rows:
    """The same of whole rows."""
    return np.mean([member.row_logits(codes) for member in members], axis=0)


def _said(members: Sequence[Discriminator], evidence: Evidence) -> Said:
    if evidence.unseen_real is not None and evidence.unseen_written is not None:
        real, written = (mean_row_logits(members, rows) for rows in (evidence.unseen_real, evidence.unseen_written))
        parts = [np.arange(len(rows)) % evidence.folds for rows in (real, written)]
        return Said(real, written, np.ones(len(written)), *parts)
    real, written = np.zeros(len(evidence.real)), np.zeros(len(evidence.written))
    for fold, member in enumerate(members):
        for found, rows, folds in (
            (real, evidence.real, evidence.real_fold),
            (written, evidence.written, evidence.written_fold),
        ):
            own = folds == fold
            found[own] = member.row_logits(rows[own])
    return Said(real, written, evidence.importance, evidence.real_fold, evidence.written_fold)


def held(name: str, level: Level, raw: Said, calibration: Calibration) -> Held:
    """How well raw logits tell held-out rows apart, and how well calibrated ones foresee it."""
    auc, low, high = auc_interval(raw)
    return Held(name, level, auc, low, high, calibration.slope, calibration.offset, log_loss(raw.of(calibration)))


def log_loss(said: Said) -> float:
    """½·(E_real log(1 + e^−logit) + E_written log(1 + e^logit)), in nats.

    >>> one = Said(np.zeros(2), np.zeros(3), np.ones(3), np.arange(2), np.arange(3))
    >>> round(log_loss(one), 4)
    0.6931
    """
    real, written = said.shares()
    return float(real @ np.logaddexp(0, -said.real) + written @ np.logaddexp(0, said.written)) / 2


def auc_interval(said: Said) -> tuple[float, float, float]:
    """The AUC and its 95 % interval by DeLong, DeLong and Clarke-Pearson (1988, Biometrics 44), over the draw of
    held-out rows; the discriminators count as given. Written rows count by their weights.

        AUC = Σ_i Σ_j w_j·([r_i > s_j] + ½·[r_i = s_j]) / (n·Σ w)

    >>> one = Said(np.array([2.0, 3.0]), np.array([1.0, 2.0]), np.ones(2), np.arange(2), np.arange(2))
    >>> round(auc_interval(one)[0], 3)
    0.875
    """
    real, written = said.shares()
    over_written = _share_below(said.real, said.written, written)
    over_real = 1 - _share_below(said.written, said.real, real)
    auc = min(1.0, float(over_written.mean()))  # shares add up to 1 but for rounding
    variance = _variance_of_mean(over_written, real) + _variance_of_mean(over_real, written)
    half = NORMAL_95 * float(np.sqrt(variance))
    return auc, max(0.0, auc - half), min(1.0, auc + half)


def _share_below(points: Rows, others: Rows, shares: Rows) -> Rows:
    """What share of the others lies below each point, equal ones counted half."""
    order = np.argsort(others, kind="stable")
    rising, total = others[order], np.concatenate([[0.0], np.cumsum(shares[order])])
    return (total[np.searchsorted(rising, points, "left")] + total[np.searchsorted(rising, points, "right")]) / 2


def _variance_of_mean(values: Rows, shares: Rows) -> float:
    """Σ w²·(v − mean)² with Σ w = 1, enlarged by n/(n − 1) for the n rows that they amount to."""
    squares = float(shares @ shares)
    if squares >= 1:
        return 0.0
    return float(shares**2 @ (values - shares @ values) ** 2) / (1 - squares)


def platt(raw: Said) -> Calibration:
    """Slope and offset of the logit, with Platt's targets (N + 1)/(N + 2) and 1/(N + 2) in place of 1 and 0, which keep
    them finite where the classes are apart; N counts weighted rows by their effective number (Σ w)²/Σ w²."""
    if np.ptp(np.concatenate([raw.real, raw.written])) < CONSTANT:
        return Calibration(0.0, 0.0)
    slope, offset = regress(raw.of(lambda logits: logits[:, None]))
    return Calibration(float(slope[0]), offset)


def regress(said: Said, *, ridge: float = 0.0, non_negative: bool = False) -> tuple[Float[np.ndarray, " judge"], float]:
    """Logistic regression of the class on what several discriminators say, both classes counted alike.

    Args:
        said: [row, judge].
        ridge: ½·ridge·‖weights‖² is added to the mean loss, in nats.
        non_negative: whether a weight may not be below 0.

    Returns:
        Weights and offset of logit = weights·said + offset.
    """
    numbers = np.concatenate([said.real, said.written])
    scale = numbers.std(0)
    scale = np.where(scale < CONSTANT, 1.0, scale)
    centre = numbers.mean(0)
    scaled = (numbers - centre) / scale
    of_real, of_written = said.shares()
    shares = np.concatenate([of_real, of_written]) / 2
    many_real, many_written = 1 / float(of_real @ of_real), 1 / float(of_written @ of_written)
    targets = np.repeat([(many_real + 1) / (many_real + 2), 1 / (many_written + 2)], [len(of_real), len(of_written)])

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        weights = point[:-1] / scale
        logits = scaled @ point[:-1] + point[-1]
        value = shares @ (np.logaddexp(0, logits) - targets * logits) + ridge / 2 * weights @ weights
        away = shares * (expit(logits) - targets)
        return float(value), np.append(away @ scaled + ridge * weights / scale, away.sum())

    bounds = [(0.0 if non_negative else None, None)] * len(scale) + [(None, None)]
    options = {"ftol": 1e-15, "gtol": 1e-9, "maxiter": 1000}
    found = minimize(loss, np.zeros(len(scale) + 1), jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    weights = found[:-1] / scale
    return weights, float(found[-1] - weights @ centre)
