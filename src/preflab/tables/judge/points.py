"""Rows as points, and how far they lie apart: what diversity and privacy are measured with.

A row's numbers are scaled by the training rows'; each category in which two rows differ adds 1 (to the squared distance
where that is Euclidean). A missing number lies at the training rows' mean, a missing category is a level.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Float, UInt64
from scipy.spatial.distance import cdist

from preflab.tables.judge.typed import Typed

Metric = Literal["manhattan", "euclidean"]

BLOCK_CELLS = 4_000_000
"""At most so many distances are in memory at once."""
FARTHEST_DEVIATIONS = 10.0
"""No standardised number counts for more than this: a lone outlier would hide all other differences."""
TIE_BREAK = 1e-6
"""Standard deviation of the noise that tells equal rows apart."""


@dataclass(frozen=True)
class Points:
    """Rows in a space of numbers and levels."""

    numbers: Float[np.ndarray, "row number"]
    levels: Float[np.ndarray, "row category"]
    """Codes, of which only equality counts."""

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, rows: np.ndarray | slice) -> Points:
        return Points(self.numbers[rows], self.levels[rows])


def standardised(table: Typed, rows: pd.DataFrame, rng: np.random.Generator) -> Points:
    """Numbers in standard deviations of the training rows, for Euclidean distances among neighbours.

    Equal rows are told apart by noise: where real rows repeat, as a block of "no record" does, a radius of 0 would
    count each of them as a neighbour of each.
    """
    mean, deviation = _moments(table)
    scaled = np.clip((_filled(table, rows, mean) - mean) / deviation, -FARTHEST_DEVIATIONS, FARTHEST_DEVIATIONS)
    noisy = np.column_stack([scaled, np.zeros(len(rows))]) + rng.normal(0, TIE_BREAK, (len(rows), scaled.shape[1] + 1))
    return Points(noisy, table.codes(rows, table.categories))


def ranged(table: Typed, rows: pd.DataFrame) -> Points:
    """Numbers in widths of the range that holds the middle 95 % of the training rows, for Manhattan distances."""
    mean, _ = _moments(table)
    scaled = _filled(table, rows, mean) / _widths(table)
    return Points(scaled, table.codes(rows, table.categories))


def distances(first: Points, second: Points, metric: Metric) -> Float[np.ndarray, "first second"]:
    """All of them.

    >>> first = Points(np.array([[0.0], [3.0]]), np.array([[1.0], [1.0]]))
    >>> distances(first, Points(np.array([[1.0]]), np.array([[2.0]])), "manhattan").ravel().tolist()
    [2.0, 3.0]
    """
    found = np.zeros((len(first), len(second)))
    if first.numbers.shape[1]:
        found += cdist(first.numbers, second.numbers, "cityblock" if metric == "manhattan" else "sqeuclidean")
    if categories := first.levels.shape[1]:
        found += np.rint(cdist(first.levels, second.levels, "hamming") * categories)
    return found if metric == "manhattan" else np.sqrt(found)


def blocks(first: Points, second: Points, metric: Metric) -> Iterator[tuple[slice, Float[np.ndarray, "block second"]]]:
    """The distances, some of the first points at a time: which, and theirs to all of the second."""
    size = max(1, BLOCK_CELLS // max(1, len(second)))
    for start in range(0, len(first), size):
        some = slice(start, min(start + size, len(first)))
        yield some, distances(first[some], second, metric)


def nearest(first: Points, second: Points) -> Float[np.ndarray, " first"]:
    """The Manhattan distance of each of the first points to the nearest of the second."""
    found = np.empty(len(first))
    for some, block in blocks(first, second, "manhattan"):
        found[some] = block.min(1)
    return found


def identity(table: Typed, rows: pd.DataFrame) -> UInt64[np.ndarray, " row"]:
    """A number a row: the same for rows with the same typed cells."""
    cells = rows[list(table.columns)].copy()
    for name in table.numbers:
        cells[name] = cells[name] + 0.0  # −0 is 0
    for name in table.categories:
        cells[name] = cells[name].astype(object).where(cells[name].notna(), "")  # no level is empty text
    return pd.util.hash_pandas_object(cells, index=False).to_numpy()


def _moments(table: Typed) -> tuple[np.ndarray, np.ndarray]:
    numbers = table.train[list(table.numbers)]
    mean, deviation = numbers.mean(), numbers.std()
    return mean.fillna(0.0).to_numpy(float), deviation.replace(0, 1).fillna(1.0).to_numpy(float)


def _widths(table: Typed) -> np.ndarray:
    """Of the middle 95 %; of all, where these have one value; 1 where all have."""
    numbers = table.train[list(table.numbers)]
    if not len(numbers.columns):
        return np.ones(0)
    middle = (numbers.quantile(0.975) - numbers.quantile(0.025)).replace(0, np.nan)
    return middle.fillna(numbers.max() - numbers.min()).replace(0, 1).fillna(1.0).to_numpy(float)


def _filled(table: Typed, rows: pd.DataFrame, mean: np.ndarray) -> np.ndarray:
    numbers = rows[list(table.numbers)].to_numpy(float).reshape(len(rows), -1)
    return np.where(np.isnan(numbers), mean, numbers)
