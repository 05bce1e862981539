"""What a tree can't ask of two columns: whether one is above the other, and whether one is a share of the other.

    difference    d = a − b                                      total − part, closed − opened
    share         s = |a·b/100 − ⌊a·b/100⌉|·100/b                how far a is, in percent, from a whole part of b

A tree splits on one column at a time, so that an order or a fraction costs it a split for every value; a model that
writes cell by cell gets both wrong for the same reason. Trees are shown only those relations in which training rows and
written rows differ by more than chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy.stats import ks_2samp

from preflab.config.alignment import RelationKind
from preflab.tables.column import Column
from preflab.tables.discriminators.level import Codes

Values = Float[np.ndarray, "row column"]

MOST = 24
"""Relations that a discriminator is shown."""
LOOKED_AT = 6000
"""Rows of each class that relations are looked for in, at most."""
FEWEST = 50
"""Rows of each class in which both cells are numbers, at least."""
CHANCE = 1e-3
"""Probability, for all candidates together, that chance alone sets one apart by as much."""
PERCENT = 100.0


@dataclass(frozen=True)
class Relation:
    """Of two columns, by their places."""

    kind: RelationKind
    first: int
    second: int

    def of(self, values: Values) -> Float[np.ndarray, " row"]:
        """What it is in each row; NaN where a cell is no number, or a share is of nothing.

        >>> Relation("difference", 0, 1).of(np.array([[3.0, 5.0]])).tolist()
        [-2.0]
        >>> Relation("share", 0, 1).of(np.array([[33.0, 3.0], [40.0, 3.0]])).round(1).tolist()
        [0.3, 6.7]
        """
        first, second = values[:, self.first], values[:, self.second]
        if self.kind == "difference":
            return first - second
        whole = np.where(second > 0, second, np.nan)
        parts = first * whole / PERCENT
        found: Float[np.ndarray, " row"] = np.abs(parts - np.round(parts)) * PERCENT / whole
        return found


def numbers(columns: Sequence[Column], codes: Codes) -> Values:
    """The numbers that codes stand for, NaN for levels."""
    found = np.full(codes.shape, np.nan)
    for place, column in enumerate(columns):
        if column.numbers is not None:
            distinct, where = np.unique(codes[:, place], return_inverse=True)
            found[:, place] = np.array([column.value(int(code)) if code >= 0 else np.nan for code in distinct])[where]
    return found


def told_by(
    columns: Sequence[Column], real: Codes, written: Codes, kinds: Sequence[RelationKind], *, most: int = MOST
) -> tuple[Relation, ...]:
    """The relations of these kinds, at most so many, in which both classes differ most, by the Kolmogorov–Smirnov
    distance; none where they differ by no more than chance. Equal rows in equal order find the same.

    Args:
        real, written: rows in no order.
    """
    ours, theirs = numbers(columns, real[:LOOKED_AT]), numbers(columns, written[:LOOKED_AT])
    asked = [relation for relation in _candidates(ours) if relation.kind in kinds]
    found: list[tuple[float, int, Relation]] = []
    for relation in asked:
        one, two = relation.of(ours), relation.of(theirs)
        one, two = one[~np.isnan(one)], two[~np.isnan(two)]
        if min(len(one), len(two)) < FEWEST:
            continue
        apart = ks_2samp(one, two, method="asymp")
        if apart.pvalue * len(asked) < CHANCE:
            found.append((-float(apart.statistic), len(found), relation))
    return tuple(relation for _, _, relation in sorted(found, key=lambda one: one[:2])[:most])


def _candidates(values: Values) -> Iterator[Relation]:
    """Every pair of columns of numbers; a share is one of 0 to 100 of a count."""
    scales = [place for place in range(values.shape[1]) if _varies(values[:, place])]
    whole = {place for place in scales if _is_whole(values[:, place])}
    for number, first in enumerate(scales):
        for second in scales[number + 1 :]:
            yield Relation("difference", first, second)
    for first in scales:
        if np.nanmin(values[:, first]) >= 0 and np.nanmax(values[:, first]) <= PERCENT:
            for second in scales:
                if second != first and second in whole:
                    yield Relation("share", first, second)


def _varies(column: Float[np.ndarray, " row"]) -> bool:
    there = column[~np.isnan(column)]
    return len(there) >= FEWEST and bool(np.ptp(there) > 0)


def _is_whole(column: Float[np.ndarray, " row"]) -> bool:
    there = column[~np.isnan(column)]
    return bool((there == np.round(there)).all() and there.max() > 1)
