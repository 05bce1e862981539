"""The most reward that a family of arms gets for its KL, and by how much two families differ.

A prompt may be answered by one of two policies, drawn by a coin: the mix has the mean of their rewards, and at most the
mean of their KLs, since KL is convex. So all points below the upper concave envelope of a family's checkpoints and the
reference (reward r, KL 0) can be had, and that envelope is its frontier. Past its highest point it stays level: a
policy within a budget of KL is within any larger one.

The envelope is picked by looking, and noise looks best where there are many to pick from. So, where a number is given,
the checkpoints are picked on one half of the prompts and the reward is read on the other, and the other way round
(cross-fitting); the envelope that a picture draws is picked on all prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from preflab.report.checkpoints import points_of, shared_seeds, trained_points
from preflab.report.families import Family
from preflab.report.statistics import Estimate, Matrix, estimate
from preflab.report.study import Point, Study
from preflab.report.verdicts import GRID, kl_range, reference_like, reward_at

# More folds pick by more of the same prompts, so that what they read goes together, which no interval over prompts
# sees: of twenty checkpoints worth the same, 95 % intervals of 2, 5 and 20 folds cover 94, 89 and 78 %.
FOLDS = 2


def upper_envelope(kl: ArrayLike, reward: ArrayLike) -> list[int]:
    """The indices of the points on the upper concave envelope, by KL, from the lowest KL to the highest reward.

    Andrew's monotone chain (1979), upper half. Of points at the same KL only the best counts.

    >>> upper_envelope([0, 1, 2, 3, 4], [0.0, 2.0, 2.5, 4.0, 1.0])
    [0, 1, 3]
    """
    x, y = np.asarray(kl, dtype=np.float64), np.asarray(reward, dtype=np.float64)
    chain: list[int] = []
    for i in (int(j) for j in np.lexsort((-y, x))):
        if chain and (x[i] == x[chain[-1]] or y[i] <= y[chain[-1]]):
            continue  # after the peak, or below a point of the same KL
        while len(chain) > 1 and not turns_down(x[[*chain[-2:], i]], y[[*chain[-2:], i]]):
            chain.pop()
        chain.append(i)
    return chain


def turns_down(x: Matrix, y: Matrix) -> bool:
    """Whether the path through three points bends to the right: the middle one lies above the chord.

    >>> turns_down(np.array([0.0, 1.0, 2.0]), np.array([0.0, 2.0, 3.0]))
    True
    """
    return bool((x[1] - x[0]) * (y[2] - y[0]) < (y[1] - y[0]) * (x[2] - x[0]))


def envelope_of(points: Sequence[Point], prompts: Matrix | None = None) -> list[Point]:
    """The points on the envelope; by the mean over some prompts, where a mask of them is given."""
    kept = np.ones(points[0].reward.shape[1], dtype=bool) if prompts is None else prompts.astype(bool)
    means = [(point.kl_nats[:, kept].mean(), point.reward[:, kept].mean()) for point in points]
    return [points[i] for i in upper_envelope([kl for kl, _ in means], [reward for _, reward in means])]


def level_after_peak(at_kl: Matrix, points: Sequence[Point]) -> Matrix:
    """`verdicts.reward_at`, and past the last point the reward of that one: the mean over `at_kl`."""
    last = max(points, key=lambda point: float(point.kl_nats.mean()))
    inside = at_kl[at_kl <= last.kl_nats.mean()]
    share = len(inside) / len(at_kl)
    values = (1 - share) * last.reward
    return values + share * reward_at(inside, points) if len(inside) else values


def frontier_at(at_kl: ArrayLike, points: Sequence[Point]) -> Matrix:
    """The reward on the frontier of `points`, the mean over the KL values `at_kl`, per seed and prompt: cross-fitted.

    Linear in the rewards, so a paired difference of two frontiers is the difference of two such matrices, and the area
    between two KL values is their distance times the mean over a grid between them.

    Args:
        at_kl: nats, within the measured range, shape [KL].
        points: checkpoints of the same seeds and prompts, the reference among them.
    """
    grid = np.atleast_1d(np.asarray(at_kl, dtype=np.float64))
    values = np.zeros_like(points[0].reward)
    folds = np.arange(values.shape[1]) % FOLDS
    for fold in np.unique(folds):
        picked = envelope_of(points, folds != fold)
        values[:, folds == fold] = level_after_peak(grid, picked)[:, folds == fold]
    return values


@dataclass(frozen=True)
class Overlap:
    """KL values that two families both reached by training, and what they get there."""

    low_nats: float
    high_nats: float
    seeds: tuple[int, ...]
    first: Matrix
    second: Matrix

    @property
    def difference(self) -> Estimate:
        """First − second: reward at equal KL, the mean over the overlap."""
        return estimate(self.first - self.second, "difference of two frontiers")

    @property
    def area(self) -> Estimate:
        """The area between the frontiers over the overlap, reward · nats."""
        return self.difference.times(self.high_nats - self.low_nats)


def measured_range(family: Family) -> tuple[float, float]:
    """The lowest and the highest KL of a family's trained checkpoints."""
    return kl_range([point for arm in family.variants for point in trained_points(arm)])


def with_reference(study: Study, points: Sequence[Point]) -> list[Point]:
    """The points, and the reference for the same seeds where the study has it."""
    start = reference_like(study, points[0])
    return [*([start] if start else []), *points]


def overlap(study: Study, a: Family, b: Family) -> Overlap | None:
    """Both families on the KL values that both have been at; None where there are none, or no seed of both."""
    seeds = shared_seeds(a, b)
    points = [points_of(one, seeds) for one in (a, b)] if seeds else [[]]
    if not all(points):
        return None
    (low_a, high_a), (low_b, high_b) = (kl_range(some) for some in points)
    low, high = max(low_a, low_b), min(high_a, high_b)
    if low > high:
        return None
    grid = np.linspace(low, high, GRID)
    first, second = (frontier_at(grid, with_reference(study, some)) for some in points)
    return Overlap(low, high, seeds, first, second)
