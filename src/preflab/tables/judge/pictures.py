"""What the report draws of a table: histograms side by side, which columns go together, some rows.

Real is the holdout throughout. Special codes are known here alone: no figure depends on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from preflab.tables.judge.typed import Typed

MOST_BARS = 40
MOST_BINS = 30
"""Of a column of numbers, beside its special codes."""
MOST_COLUMNS = 40
"""Of the associations."""
MOST_ROWS = 10_000
"""That associations are computed from."""
ROWS = 10
MISSING = "(missing)"
OTHERS = "(others)"


@dataclass(frozen=True)
class Marginal:
    """How often a column has each of its labels, and then how often it lies between two edges."""

    column: str
    labels: tuple[str, ...]
    edges: tuple[float, ...]
    """One more than bins, of dates in days since 1970; none where there are labels alone. What lies beyond the ends
    counts in the nearest bin."""
    real: tuple[float, ...]
    """Shares of all rows: of the labels, then of the bins; they sum to 1."""
    synthetic: tuple[float, ...]

    def picture(self) -> dict[str, object]:
        """As it stands in score.json."""
        return {
            "column": self.column,
            "labels": list(self.labels),
            "edges": list(self.edges),
            "real": list(self.real),
            "synthetic": list(self.synthetic),
        }


def marginals(table: Typed, special: Mapping[str, Sequence[float]] = {}) -> list[Marginal]:
    """Every column, holdout next to the usable synthetic rows, in the same bars.

    Args:
        table: what to draw.
        special: numbers that get bars of their own, by column.
    """
    drawn = table.usable
    return [
        _levels(name, table.levels[name], table.holdout[name], drawn[name])
        if kind == "category"
        else _numbers(name, table.train[name], table.holdout[name], drawn[name], special.get(name, ()))
        for name, kind in table.kinds.items()
    ]


def _levels(name: str, levels: Sequence[str], real: pd.Series, drawn: pd.Series) -> Marginal:
    """The commonest of the holdout first."""
    counts = real.value_counts()
    order = sorted(levels, key=lambda level: (-int(counts.get(level, 0)), level))
    most = MOST_BARS - 2
    shown = order if len(order) <= most else order[:most]
    labels, shares = [*shown], [[float((cells == level).mean()) for level in shown] for cells in (real, drawn)]
    absent = [float(cells.isna().mean()) for cells in (real, drawn)]
    others = [float((cells.notna() & ~cells.isin(shown)).mean()) for cells in (real, drawn)]
    for label, both in ((OTHERS, others), (MISSING, absent)):
        if any(both):
            labels.append(label)
            for share, more in zip(shares, both, strict=True):
                share.append(more)
    return Marginal(name, tuple(labels), (), tuple(shares[0]), tuple(shares[1]))


def _numbers(name: str, train: pd.Series, real: pd.Series, drawn: pd.Series, special: Sequence[float]) -> Marginal:
    """A bar for each special code that occurs and for missing cells, then bins over what the real rows hold."""
    both = [cells.to_numpy(float) for cells in (real, drawn)]
    codes = [code for code in special[: MOST_BARS - MOST_BINS - 1] if any((cells == code).any() for cells in both)]
    labels = [f"{code:.15g}" for code in codes]
    shares = [[float((cells == code).mean()) for code in codes] for cells in both]
    if any(np.isnan(cells).any() for cells in both):
        labels.append(MISSING)
        for share, cells in zip(shares, both, strict=True):
            share.append(float(np.isnan(cells).mean()))
    scale = [cells[~np.isnan(cells) & ~np.isin(cells, codes)] for cells in both]
    seen = np.concatenate([scale[0], train.dropna().to_numpy(float)])
    seen = seen[~np.isin(seen, codes)]
    if not len(seen):
        seen = scale[1]
    edges = bins(seen) if len(seen) else np.zeros(0)
    if len(edges):
        for share, cells, every in zip(shares, scale, both, strict=True):
            inside = np.clip(cells, edges[0], edges[-1])
            share.extend(float(count) / len(every) for count in np.histogram(inside, edges)[0])
    return Marginal(name, tuple(labels), tuple(float(edge) for edge in edges), tuple(shares[0]), tuple(shares[1]))


def bins(values: np.ndarray) -> np.ndarray:
    """The edges of at most 30 even bins from the smallest to the largest value; of whole numbers (or days) each bin
    but the last, which ends with the largest, holds equally many, and its edges lie between them.

    >>> bins(np.array([0.0, 3.0])).tolist()
    [-0.5, 0.5, 1.5, 2.5, 3.5]
    >>> len(bins(np.array([0.0, 0.5])))
    31
    """
    low, high = float(values.min()), float(values.max())
    if max(-low, high) < 2**51 and bool((values == np.rint(values)).all()):
        width = np.ceil((high - low + 1) / MOST_BINS)
        return np.append(np.arange(low - 0.5, high, width), high + 0.5)
    if low == high:
        return np.array([low - 0.5, low + 0.5])
    return np.linspace(low, high, MOST_BINS + 1)


def associations(table: Typed, generator: np.random.Generator) -> dict[str, object]:
    """How strongly each two columns go together, in the holdout and in the usable synthetic rows.

    Two columns of numbers: Spearman's ρ. Two of categories: Cramér's V = √(χ² / (n · (min(rows, columns) − 1))). One of
    each: the correlation ratio η = √(between-level / total sum of squares) of the ranks. Rows in which either is
    missing are left out; null where a column is constant. ρ is in [−1, 1], the others in [0, 1].

    Args:
        table: what to draw; its first 40 columns, the target among them.
        generator: draws rows where there are more than 10,000.
    """
    columns = list(table.columns[:MOST_COLUMNS])
    if table.target is not None and table.target not in columns:
        columns[-1] = table.target
    matrices = {}
    for who, rows in (("real", table.holdout), ("synthetic", table.usable)):
        some = rows.iloc[generator.permutation(len(rows))[:MOST_ROWS]]
        matrices[who] = _matrix(table, some, columns)
    return {"columns": columns, **matrices}


def _matrix(table: Typed, rows: pd.DataFrame, columns: Sequence[str]) -> list[list[float | None]]:
    codes = table.codes(rows, tuple(columns))
    category = [name in table.levels for name in columns]
    codes[:, category] = np.where(codes[:, category] < 0, np.nan, codes[:, category])
    matrix: list[list[float | None]] = [[None] * len(columns) for _ in columns]
    for first in range(len(columns)):
        for second in range(first, len(columns)):
            there = ~np.isnan(codes[:, first]) & ~np.isnan(codes[:, second])
            one, two = codes[there, first], codes[there, second]
            value = association(one, two, category[first], category[second])
            matrix[first][second] = matrix[second][first] = value
    return matrix


def association(one: np.ndarray, two: np.ndarray, one_category: bool, two_category: bool) -> float | None:
    """As `associations` says, of two columns without missing cells; None where one is constant.

    >>> association(np.array([1.0, 2.0, 3.0]), np.array([9.0, 4.0, 1.0]), False, False)
    -1.0
    >>> association(np.array([0.0, 0.0, 1.0]), np.array([1.0, 1.0, 0.0]), True, True)
    1.0
    >>> association(np.array([0.0, 0.0, 1.0, 1.0]), np.array([1.0, 2.0, 1.0, 2.0]), True, False)
    0.0
    """
    if len(one) < 2 or np.ptp(one) == 0 or np.ptp(two) == 0:
        return None
    if one_category and two_category:
        return _cramers_v(one, two)
    if one_category:
        return _correlation_ratio(one, two)
    if two_category:
        return _correlation_ratio(two, one)
    ranks = [rankdata(cells) for cells in (one, two)]
    return float(np.clip(np.corrcoef(*ranks)[0, 1], -1, 1).round(12))


def _cramers_v(one: np.ndarray, two: np.ndarray) -> float:
    counts = pd.crosstab(one, two).to_numpy(float)
    expected = counts.sum(axis=1, keepdims=True) * counts.sum(axis=0, keepdims=True) / counts.sum()
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    return float(np.sqrt(chi_squared / (counts.sum() * (min(counts.shape) - 1))).clip(0, 1))


def _correlation_ratio(levels: np.ndarray, numbers: np.ndarray) -> float:
    ranks = rankdata(numbers)
    total = ((ranks - ranks.mean()) ** 2).sum()
    groups = pd.Series(ranks).groupby(levels)
    between = (groups.size() * (groups.mean() - ranks.mean()) ** 2).sum()
    return float(np.sqrt(between / total).clip(0, 1))


def sampled_rows(text: pd.DataFrame, generator: np.random.Generator, count: int = ROWS) -> dict[str, object]:
    """Some rows as they are written, in the order of the table.

    Args:
        text: the synthetic rows, cells of text.
        generator: draws them.
        count: how many; all, where there are fewer.
    """
    places = np.sort(generator.permutation(len(text))[:count])
    cells = text.iloc[places].astype(object)
    return {
        "columns": [str(name) for name in text.columns],
        "cells": [["" if pd.isna(cell) else str(cell) for cell in row] for row in cells.to_numpy()],
    }
