"""Two bounds for every figure: what real rows get, and what rows get that know nothing of how columns hang together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Bound:
    """Rows to judge as if they were synthetic, and the training rows that they are judged against."""

    train: pd.DataFrame
    synthetic: pd.DataFrame


def second_sample(train: pd.DataFrame, rng: np.random.Generator) -> Bound:
    """One random half of the training rows as if it were synthetic, the other half as if it were all that a generator
    saw: no generator can be told from real rows less. Both have half as many rows as the table, so utility and
    distances are compared with what the other half gets.

    >>> bound = second_sample(pd.DataFrame({"x": ["a", "b", "c", "d", "e"]}), np.random.default_rng(0))
    >>> len(bound.train), len(bound.synthetic), sorted([*bound.train["x"], *bound.synthetic["x"]])
    (3, 2, ['a', 'b', 'c', 'd', 'e'])
    """
    order = rng.permutation(len(train))
    half = len(train) // 2
    return Bound(train.iloc[order[half:]].reset_index(drop=True), train.iloc[order[:half]].reset_index(drop=True))


def independent_marginals(train: pd.DataFrame, rng: np.random.Generator) -> Bound:
    """As many rows as the table has, each cell drawn from its column's training cells on its own: every column is
    right, and nothing between columns.

    >>> bound = independent_marginals(pd.DataFrame({"x": ["a", "a"], "y": ["b", "c"]}), np.random.default_rng(0))
    >>> bound.synthetic["x"].tolist(), set(bound.synthetic["y"]) <= {"b", "c"}
    (['a', 'a'], True)
    """
    drawn = {
        name: cells.iloc[rng.integers(0, len(train), len(train))].reset_index(drop=True)
        for name, cells in train.items()
    }
    return Bound(train, pd.DataFrame(drawn))
