"""Are synthetic rows nearer to the rows that the generator saw than to others? Evidence, and no guarantee."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt64
from scipy.stats import binom, hypergeom
from sklearn.metrics import roc_auc_score

from preflab.tables.judge.points import Points, blocks, nearest

MOST_ROWS = 8_000
"""Synthetic rows whose distances are taken; more are drawn from."""
SAME = 1e-12
"""Distances no further apart than this are equal."""
BINS = 40


@dataclass(frozen=True)
class Distances:
    """Of synthetic rows to real ones, as far as they tell who was in the training rows. Manhattan, `ranged`."""

    share: float
    """Share of synthetic rows nearer to one of equally many random training rows than to any holdout row, ties half, in
    [0, 1]; 0.5: the training rows are no nearer than others."""
    synthetic_to_train: Float[np.ndarray, " synthetic"]
    """Of each synthetic row to the nearest training row."""
    holdout_to_train: Float[np.ndarray, " holdout"]
    """Of each holdout row: what a real row that was not seen has."""
    membership_auc: float
    """ROC-AUC of "the nearest synthetic row is near" as a test of having been trained on, in [0, 1]; 0.5: useless."""
    membership_tpr: float
    """Training rows that this test finds where it accuses 1 % of the holdout rows wrongly, in [0, 1]."""


def measure(train: Points, holdout: Points, synthetic: Points) -> Distances:
    """Every distance once, in blocks.

    Args:
        train, holdout, synthetic: at least one row each; rows that repeat among the real ones set aside. Where the
            holdout has more rows than the training table, its first as many count.
    """
    holdout = holdout[: len(train)]
    to_holdout, from_holdout = np.empty(len(synthetic)), np.full(len(holdout), np.inf)
    for some, block in blocks(synthetic, holdout, "manhattan"):
        to_holdout[some] = block.min(1)
        np.minimum(from_holdout, block.min(0), out=from_holdout)
    to_train, from_train = np.empty(len(synthetic)), np.full(len(train), np.inf)
    nearer, as_near = np.empty(len(synthetic), int), np.empty(len(synthetic), int)
    for some, block in blocks(synthetic, train, "manhattan"):
        to_train[some] = block.min(1)
        np.minimum(from_train, block.min(0), out=from_train)
        nearer[some] = (block < to_holdout[some, None] - SAME).sum(1)
        as_near[some] = (block <= to_holdout[some, None] + SAME).sum(1)
    auc, tpr = membership(from_train, from_holdout)
    return Distances(
        share=nearer_share(nearer, as_near, rows=len(train), drawn=len(holdout)),
        synthetic_to_train=to_train,
        holdout_to_train=nearest(holdout, train),
        membership_auc=auc,
        membership_tpr=tpr,
    )


def nearer_share(
    nearer: Int[np.ndarray, " synthetic"], as_near: Int[np.ndarray, " synthetic"], *, rows: int, drawn: int
) -> float:
    """Share of the synthetic rows that have one of `drawn` random training rows nearer than the nearest holdout row, a
    tie counting half: the mean over all draws. None of them is among the c nearer ones with probability
    C(rows − c, drawn) / C(rows, drawn).

    Args:
        nearer, as_near: how many of all training rows are nearer to a synthetic row than the nearest holdout row is,
            and how many are no farther.
        rows, drawn: training rows, and how many of them stand against as many holdout rows.

    >>> nearer_share(np.array([0, 1, 4]), np.array([0, 1, 4]), rows=4, drawn=2)
    0.5
    >>> nearer_share(np.array([0]), np.array([4]), rows=4, drawn=2)
    0.5
    """
    either = [1 - hypergeom.pmf(0, rows, count, drawn) for count in (nearer, as_near)]
    return float(np.mean(either))


def membership(
    members: Float[np.ndarray, " row"], others: Float[np.ndarray, " other"], *, false_positives: float = 0.01
) -> tuple[float, float]:
    """How well "near to a synthetic row" tells members from others: ROC-AUC, and the share of the members nearer than
    all but this share of the others.

    >>> membership(np.array([0.1, 0.2]), np.array([0.15, 0.4]))
    (0.75, 0.5)
    """
    truth = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    auc = roc_auc_score(truth, -np.concatenate([members, others]))
    return float(auc), float((-members > np.quantile(-others, 1 - false_positives)).mean())


def copies(synthetic: UInt64[np.ndarray, " synthetic"], train: UInt64[np.ndarray, " train"]) -> int:
    """How many synthetic rows are training rows, cell by cell.

    >>> copies(np.array([1, 2, 2], np.uint64), np.array([2, 3], np.uint64))
    2
    """
    return int(np.isin(synthetic, train).sum())


@dataclass(frozen=True)
class Overlap:
    """Rows that stand once in the training table and once in the holdout."""

    shared: int
    expected: float
    """As many as a random split leaves of the rows that stand twice in both tables together."""
    chance: float
    """Of a random split to share at least so many, in [0, 1]."""


def overlap(train: UInt64[np.ndarray, " train"], holdout: UInt64[np.ndarray, " holdout"]) -> Overlap:
    """Were holdout rows seen in training? Of a pair of equal rows a random split puts one on each side with probability
    q = 2·train·holdout / (n·(n − 1)), n = train + holdout; the number of pairs it parts is about binomial.

    >>> parted = overlap(np.arange(100, dtype=np.uint64), np.arange(80, 120, dtype=np.uint64))
    >>> parted.shared, round(parted.expected, 1), parted.chance < 1e-6
    (20, 8.2, True)
    """
    rows, times = np.unique(np.concatenate([train, holdout]), return_counts=True)
    pairs = rows[times == 2]
    shared = int((np.isin(pairs, train) & np.isin(pairs, holdout)).sum())
    real = len(train) + len(holdout)
    parted = 2 * len(train) * len(holdout) / (real * (real - 1))
    return Overlap(shared, len(pairs) * parted, float(binom.sf(shared - 1, len(pairs), parted)))


def histogram(
    synthetic_to_train: Float[np.ndarray, " synthetic"], holdout_to_train: Float[np.ndarray, " holdout"]
) -> tuple[Float[np.ndarray, " edge"], Int[np.ndarray, " bin"], Int[np.ndarray, " bin"]]:
    """Edges of even bins up to the farther 99th percentile, the last one open, and how many distances fall in each."""
    both = (synthetic_to_train, holdout_to_train)
    end = max(float(np.quantile(distance, 0.99)) for distance in both) or 1.0
    edges = np.linspace(0, end, BINS + 1)
    counts = [np.histogram(np.minimum(distance, end), edges)[0] for distance in both]
    return edges, counts[0], counts[1]
