"""Is a reward model as sure as it is right, and does it mistake length for quality? Figures from held-out pairs, which
`report/reward_models.py` puts into words."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit
from scipy.stats import rankdata

from preflab.config.load import to_values
from preflab.data.encode import Tree
from preflab.errors import DataError, NumericError
from preflab.runs import JSON

Vector = NDArray[np.float64]

BUCKETS = 10
PAIRS_A_BUCKET = 20
"""Fewer pairs make fewer buckets, not emptier ones."""
SIMULATIONS = 1000
Z = NormalDist().inv_cdf(0.975)


@dataclass(frozen=True)
class Interval:
    """A figure and its 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} [{self.low:.2f}, {self.high:.2f}]"


@dataclass(frozen=True)
class Bucket:
    """Held-out pairs that are alike in one quantity."""

    name: str
    low: float
    """The smallest value of that quantity, and the largest."""
    high: float
    pairs: int
    confidence: float
    """Mean confidence."""
    accuracy: Interval


@dataclass(frozen=True)
class Calibration:
    """What `calibration` found; probabilities and shares are 0–1, lengths in response tokens."""

    pairs: int
    prompts: int
    accuracy: Interval
    confidence: float
    """Mean confidence: what the accuracy would be if the model were right about itself."""
    error: float
    """The expected calibration error."""
    error_by_chance: float
    """What 95 % of calibrated models as sure as this one would stay below on as many pairs: no ECE is 0."""
    by_margin: tuple[Bucket, ...]
    """Equal counts of pairs, by |score difference|."""
    by_length: tuple[Bucket, ...]
    """By chosen − rejected length: much shorter, shorter, equal, longer, much longer; empty ones are left out."""
    shorter: Bucket | None
    """All pairs whose chosen response is the shorter one; None where there is none."""
    longer: Bucket | None
    """All pairs whose chosen response is the longer one."""
    longer_wins: Interval
    """The accuracy of a judge that reads nothing and calls the longer response better; equal lengths count half."""
    length_correlation: Interval | None
    """Of score and length within pairs; None where all scores or all lengths are equal."""

    def json(self) -> dict[str, JSON]:
        """The form in evaluation.json and study.json."""
        return to_values(self)


def calibration(
    scores: Float[NDArray, "pair 2"], lengths: Int[NDArray, "pair 2"], prompts: Sequence[Hashable]
) -> Calibration:
    """How a scorer's certainty compares with its accuracy, and its accuracy with the responses' lengths.

    A Bradley–Terry model says that the first response of a pair wins with probability σ(Δ), Δ the difference of the
    two scores. It prefers one of them with confidence max(σ(Δ), σ(−Δ)) = σ(|Δ|), ½ to 1, and is right where that one
    was chosen; Δ = 0 is half right. Nothing here but being right knows which response was chosen, so swapping the two
    of a pair changes no figure but its length difference, which is taken as chosen − rejected.

        ECE = Σ_b n_b / N · |accuracy_b − confidence_b|          (Guo et al. 2017, arXiv 1706.04599, Eq. 3)

    over buckets b of equal counts (Nixon et al. 2019, arXiv 1904.01685, "adaptive"), by |Δ|: 10 of them, fewer below
    200 pairs, so that each has 20; equal |Δ| share a bucket. Noise alone makes an ECE positive, so it comes with the
    95 % quantile of what a calibrated model gets: outcomes are drawn anew with this model's confidences.

    Length buckets are cut at 0 and at ± the median of |length difference| among pairs of unequal lengths. The
    correlation of score and length is taken within pairs (each pair's means off), as scores are free up to a constant
    a prompt: r = ΣΔd / √(ΣΔ² Σd²), d the difference of lengths; its interval is Fisher's z with a variance that holds
    for any distribution (linearised, summed over prompts).

    An interval of an accuracy is Wilson's. It counts prompts, not pairs: pairs of one prompt often share a response,
    and may all say the same.

    Args:
        scores: of the chosen and the rejected response; any real numbers.
        lengths: response tokens of the same, 0 or more.
        prompts: of each pair, which prompt it answers.

    Raises:
        DataError: there is no pair.
        NumericError: a score is not finite.

    >>> found = calibration(np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0]]), np.array([[3, 5], [9, 5], [4, 8]]), "abc")
    >>> round(found.accuracy.mean, 3), round(found.confidence, 3)  # (σ(2) + σ(1) + σ(1)) / 3
    (0.667, 0.781)
    >>> found.shorter.accuracy.mean, found.longer.accuracy.mean
    (0.5, 1.0)
    """
    if not len(scores):
        raise DataError("there is no held-out pair to judge the reward model by; give more pairs or a larger holdout")
    if bad := int(np.count_nonzero(~np.isfinite(scores))):
        raise NumericError(f"{bad} of {scores.size} held-out scores are not finite; train the reward model again")
    score_gap = np.subtract(*np.asarray(scores, dtype=np.float64).T)
    length_gap = np.subtract(*np.asarray(lengths, dtype=np.float64).T)
    seen: dict[Hashable, int] = {}
    prompt = np.array([seen.setdefault(name, len(seen)) for name in prompts])
    sure, right = expit(np.abs(score_gap)), wins(score_gap)

    def bucket(name: str, by: Vector, members: NDArray[np.bool_]) -> Bucket | None:
        if not members.any():
            return None
        return Bucket(
            name,
            low=float(by[members].min()),
            high=float(by[members].max()),
            pairs=int(members.sum()),
            confidence=float(sure[members].mean()),
            accuracy=accuracy(right[members], prompt[members]),
        )

    place = equal_counts(np.abs(score_gap), min(BUCKETS, max(1, len(scores) // PAIRS_A_BUCKET)))
    by_margin = [bucket("", np.abs(score_gap), place == number) for number in range(place.max() + 1)]
    far = np.median(np.abs(length_gap[length_gap != 0])) if length_gap.any() else 0.0
    by_length = [
        bucket("much shorter", length_gap, length_gap < -far),
        bucket("shorter", length_gap, (length_gap < 0) & (length_gap >= -far)),
        bucket("equal", length_gap, length_gap == 0),
        bucket("longer", length_gap, (length_gap > 0) & (length_gap <= far)),
        bucket("much longer", length_gap, length_gap > far),
    ]
    return Calibration(
        pairs=len(scores),
        prompts=len(seen),
        accuracy=accuracy(right, prompt),
        confidence=float(sure.mean()),
        error=calibration_error(sure, right, place),
        error_by_chance=_error_by_chance(sure, place),
        by_margin=tuple(b for b in by_margin if b),
        by_length=tuple(b for b in by_length if b),
        shorter=bucket("shorter", length_gap, length_gap < 0),
        longer=bucket("longer", length_gap, length_gap > 0),
        longer_wins=accuracy(wins(length_gap), prompt),
        length_correlation=correlation(score_gap, length_gap, prompt),
    )


def calibration_of(scores: Float[NDArray, "pair 2"], pairs: Sequence[Tree]) -> Calibration:
    """`calibration` of the scores of these pairs, chosen first."""
    lengths = np.array([[len(response) for response in pair.responses] for pair in pairs]).reshape(-1, 2)
    return calibration(scores, lengths, [pair.prompt for pair in pairs])


def wins(difference: Vector) -> Vector:
    """1 where positive, ½ for a tie, 0 else.

    >>> wins(np.array([0.3, 0.0, -2.0]))
    array([1. , 0.5, 0. ])
    """
    return (np.sign(difference) + 1) / 2


def equal_counts(values: Vector, buckets: int) -> NDArray[np.intp]:
    """The bucket of each value, 0 first: equal counts in order of value, where equal values stay together.

    >>> equal_counts(np.array([5.0, 1.0, 2.0, 9.0]), 2)
    array([1, 0, 0, 1])
    >>> equal_counts(np.array([1.0, 1.0, 1.0, 9.0]), 2)
    array([0, 0, 0, 1])
    """
    middle = 2 * rankdata(values) - 1  # whole, as equal values have their mean rank
    _, place = np.unique(middle * buckets // (2 * len(values)), return_inverse=True)
    return np.asarray(place, dtype=np.intp)


def calibration_error(sure: Vector, right: Vector, place: NDArray[np.intp]) -> float:
    """Σ_b n_b / N · |accuracy_b − confidence_b|, `place` the bucket b of each pair.

    >>> sure, right = np.array([0.9, 0.7, 0.6]), np.array([1, 0, 1])
    >>> round(calibration_error(sure, right, np.array([1, 0, 0])), 4)  # (0.1 + 0.3) / 3
    0.1333
    """
    return float(np.abs(np.bincount(place, right - sure)).sum() / len(sure))


def accuracy(right: Vector, prompt: ArrayLike) -> Interval:
    """The mean of values in [0, 1] with Wilson's interval for as many trials as there are prompts.

    >>> str(accuracy(np.array([1.0] * 5 + [0.0] * 5), range(10)))  # as scipy.stats.binomtest(5, 10) has it
    '0.50 [0.24, 0.76]'
    """
    mean, trials = float(right.mean()), len(np.unique(prompt))
    shrink = 1 + Z**2 / trials
    centre = (mean + Z**2 / (2 * trials)) / shrink
    half = Z * sqrt(mean * (1 - mean) / trials + (Z / (2 * trials)) ** 2) / shrink
    return Interval(mean, max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half)))


def correlation(a: Vector, b: Vector, prompt: NDArray[np.intp]) -> Interval | None:
    """Σab / √(Σa² Σb²), for differences that have no sign of their own; None where one of them is 0 throughout.

    >>> correlation(np.array([1.0, -1.0, 2.0]), np.array([2.0, -2.0, 4.0]), np.arange(3)).mean
    1.0
    """
    size_a, size_b = float(a @ a), float(b @ b)
    if size_a == 0 or size_b == 0:
        return None
    found = float(np.clip((a / sqrt(size_a)) @ (b / sqrt(size_b)), -1, 1))
    clusters = int(prompt.max()) + 1
    if clusters < 3:
        return Interval(found, -1.0, 1.0)
    if abs(found) > 1 - 1e-9:
        return Interval(found, found, found)
    influence = a * b / sqrt(size_a * size_b) - found / 2 * (a**2 / size_a + b**2 / size_b)
    variance = float(np.square(np.bincount(prompt, influence)).sum()) * clusters / (clusters - 1)
    z, half = np.arctanh(found), Z * sqrt(variance) / (1 - found**2)
    return Interval(found, float(np.tanh(z - half)), float(np.tanh(z + half)))


def _error_by_chance(sure: Vector, place: NDArray[np.intp]) -> float:
    """The 95 % quantile of the ECE where a pair is right with probability `sure`; a tie is always half right."""
    rng = np.random.default_rng(0)
    tie = sure == 0.5
    errors = [
        calibration_error(sure, np.where(tie, 0.5, rng.random(len(sure)) < sure), place) for _ in range(SIMULATIONS)
    ]
    return float(np.quantile(errors, 0.95))
