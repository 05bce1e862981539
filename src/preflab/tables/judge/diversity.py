"""Do synthetic rows lie where real ones do, and everywhere they do?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, UInt64

from preflab.tables.judge.points import Points, blocks

NEIGHBOURS = 5
DRAWS = 5
"""Draws of rows that the figures are the mean of."""
MOST_ROWS = 8_000
"""Rows of each table that neighbours are sought among; more are drawn from."""


@dataclass(frozen=True)
class Neighbourhood:
    """How two clouds of points overlap."""

    precision: float
    """Share of synthetic points inside the real ones' balls, in [0, 1]; a real sample has less than 1."""
    recall: float
    """Share of real points inside the synthetic ones' balls, in [0, 1]."""
    density: float
    """Real balls a synthetic point lies in, over k: about 1 for a real sample, ≥ 0, without a bound."""
    coverage: float
    """Share of real balls that hold a synthetic point, in [0, 1]."""


def neighbourhood(real: Points, synthetic: Points, *, k: int = NEIGHBOURS) -> Neighbourhood:
    """Precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991), density and coverage (Naeem et al. 2020,
    arXiv 2002.09797, equations 3 and 4), with Euclidean balls that reach to the k-th other point of the same table.

        precision = mean over s of [s in some B(r)]          recall = mean over r of [r in some B(s)]
        density   = Σ_s Σ_r [s in B(r)] / (k·synthetic)      coverage = mean over r of [B(r) holds some s]

    Args:
        real, synthetic: more than k points each; as many of both, for recall to be comparable.
        k: which neighbour a ball reaches to.

    >>> real = Points(np.array([[0.0], [1.0], [5.0]]), np.zeros((3, 0)))
    >>> neighbourhood(real, Points(np.array([[0.5], [20.0], [21.0]]), np.zeros((3, 0))), k=1)
    Neighbourhood(precision=0.3333333333333333, recall=1.0, density=0.6666666666666666, coverage=0.6666666666666666)
    """
    real_radius, synthetic_radius = radius(real, k), radius(synthetic, k)
    inside = np.zeros(len(synthetic), int)
    reached, covered = np.zeros(len(real), bool), np.zeros(len(real), bool)
    for some, block in blocks(real, synthetic, "euclidean"):
        holds = block <= real_radius[some, None]
        inside += holds.sum(0)
        covered[some] = holds.any(1)
        reached[some] = (block <= synthetic_radius).any(1)
    return Neighbourhood(
        precision=float((inside > 0).mean()),
        recall=float(reached.mean()),
        density=float(inside.mean() / k),
        coverage=float(covered.mean()),
    )


def radius(points: Points, k: int) -> Float[np.ndarray, " point"]:
    """The distance of each to its k-th nearest other."""
    found = np.empty(len(points))
    for some, block in blocks(points, points, "euclidean"):
        found[some] = np.partition(block, k, axis=1)[:, k]  # the nearest is the point itself
    return found


def common(train: UInt64[np.ndarray, " train"], holdout: UInt64[np.ndarray, " holdout"]) -> UInt64[np.ndarray, " row"]:
    """The rows, as `identity` gives them, that stand more than once among the real ones: to draw one of them is no
    copying.

    >>> common(np.array([4, 4, 5], np.uint64), np.array([6, 7, 7, 5], np.uint64)).tolist()
    [4, 5, 7]
    """
    rows, times = np.unique(np.concatenate([train, holdout]), return_counts=True)
    return rows[times > 1]


def duplicate_share(rows: UInt64[np.ndarray, " row"], set_aside: Bool[np.ndarray, " row"]) -> float:
    """Share of the synthetic rows that repeat an earlier one, common rows set aside; 0 where nothing else is left.

    >>> duplicate_share(np.array([1, 1, 1, 2, 2], np.uint64), np.array([True, True, True, False, False]))
    0.5
    """
    left = rows[~set_aside]
    return 1 - len(np.unique(left)) / len(left) if len(left) else 0.0
