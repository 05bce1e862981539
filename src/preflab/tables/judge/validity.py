"""Could the rows be rows of this table: cell by cell, and by rules that its training rows keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import assert_never

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from preflab.tables.judge.typed import Typed

HOLDS = 0.995
"""Share of the training rows that keep a rule."""
BY_CHANCE = 0.95
"""An order that shuffled columns keep in more than this share is none."""
STRICT = 0.01
"""An order that is an equality in all but this share is none."""
CODE_ROWS = 30
LOWEST_CODE = -99
"""Special codes are whole numbers from here to −1 that stand in at least CODE_ROWS training rows."""
CODE_SHARE = 0.9
"""What follows a code must not hold in more than this share of all training rows anyway."""
FEW_VALUES = 20
"""A column of numbers with no more values than this is taken as a list of them."""


@dataclass(frozen=True)
class Order:
    """low ≤ high."""

    low: str
    high: str

    def __str__(self) -> str:
        return f"{self.low} ≤ {self.high}"


@dataclass(frozen=True)
class Implication:
    """Where one column holds this code, another holds that."""

    column: str
    code: float
    then: str
    then_code: float

    def __str__(self) -> str:
        return f"{self.column} = {_code(self.code)} → {self.then} = {_code(self.then_code)}"


Rule = Order | Implication


def mine(table: Typed) -> tuple[Rule, ...]:
    """Rules that at least 99.5 % of the training rows keep, and not by chance: orders of two columns of numbers, or of
    two of dates, and special codes that come together."""
    numbers = plain_numbers(table)
    dates = tuple(name for name in table.numbers if table.kinds[name] == "datetime")
    return (*_orders(table.train, numbers), *_orders(table.train, dates), *_implications(table.train, numbers))


def plain_numbers(table: Typed) -> tuple[str, ...]:
    """Columns of integers and decimals, without dates."""
    return tuple(name for name in table.numbers if table.kinds[name] != "datetime")


def violated(rows: pd.DataFrame, rules: Sequence[Rule]) -> Bool[np.ndarray, "row rule"]:
    """Which row breaks which rule; nothing is broken by a missing value that stands on the left of an order or an
    implication, or on the right of an order."""
    broken = np.zeros((len(rows), len(rules)), bool)
    for number, rule in enumerate(rules):
        match rule:
            case Order(low, high):
                broken[:, number] = rows[low].to_numpy(float) > rows[high].to_numpy(float)
            case Implication(column, code, then, then_code):
                broken[:, number] = (rows[column] == code).to_numpy() & (rows[then] != then_code).to_numpy()
            case _:
                assert_never(rule)
    return broken


def in_domain(table: Typed) -> Bool[np.ndarray, " synthetic"]:
    """Synthetic rows that parse and in which every cell is one the training rows make possible: a number between their
    least and greatest, whole where theirs are; one of the levels; one of the values where there are at most 20."""
    inside = table.parsed.copy()
    for name in table.columns:
        cells, seen = table.synthetic[name], table.train[name].dropna()
        missing = cells.isna().to_numpy()
        if name in table.levels or seen.nunique() <= FEW_VALUES:
            inside &= cells.isin(set(seen)).to_numpy() | missing
        else:
            inside &= cells.between(seen.min(), seen.max()).to_numpy() | missing
        if table.kinds[name] == "integer":
            inside &= (cells == cells.round()).to_numpy() | missing
    return inside


def unseen_cell_share(table: Typed) -> float:
    """Share of the synthetic cells whose value no training row has in that column, the mean over columns."""
    shares = []
    for name in table.columns:
        cells = table.synthetic[name]
        shares.append(float((~cells.isin(set(table.train[name].dropna())) & cells.notna()).mean()))
    return float(np.mean(shares))


def special_codes(train: pd.DataFrame, names: Sequence[str]) -> dict[str, tuple[float, ...]]:
    """Whole numbers from −99 to −1 that stand in at least 30 rows, by column.

    >>> special_codes(pd.DataFrame({"age": [-9.0] * 30 + [31.0, -8.0], "debt": [0.0] * 32}), ["age", "debt"])
    {'age': (-9.0,)}
    """
    found = {}
    for name in names:
        values, times = np.unique(train[name].dropna().to_numpy(float), return_counts=True)
        special = (values < 0) & (values >= LOWEST_CODE) & (values == np.round(values)) & (times >= CODE_ROWS)
        if special.any():
            found[name] = tuple(float(value) for value in values[special])
    return found


def _orders(train: pd.DataFrame, names: Sequence[str]) -> list[Rule]:
    values = train[list(names)].to_numpy(float).reshape(len(train), -1)
    rising = np.sort(values, axis=0)  # NaN last
    found: list[Rule] = []
    for low in range(len(names)):
        kept = (values[:, low, None] <= values).mean(0) >= HOLDS
        strict = (values[:, low, None] < values).mean(0) > STRICT
        for high in map(int, np.flatnonzero(kept & strict)):
            if high != low and kept_by_chance(rising[:, low], rising[:, high]) <= BY_CHANCE:
                found.append(Order(names[low], names[high]))
    return found


def kept_by_chance(low: Float[np.ndarray, " row"], high: Float[np.ndarray, " row"]) -> float:
    """Probability that a value of one column is at most one of another, drawn on their own. Both rising."""
    present = high[~np.isnan(high)]
    no_less = len(present) - np.searchsorted(present, low[~np.isnan(low)], side="left")
    return float(no_less.sum() / (len(low) * len(high)))


def _implications(train: pd.DataFrame, names: Sequence[str]) -> list[Rule]:
    codes = [(name, code) for name, found in special_codes(train, names).items() for code in found]
    if not codes:
        return []
    here = np.column_stack([(train[name] == code).to_numpy(float) for name, code in codes])
    together = here.T @ here
    follows = (together / together.diagonal()[:, None] >= HOLDS) & (here.mean(0) <= CODE_SHARE)
    return [
        Implication(*codes[first], *codes[second])
        for first, second in np.argwhere(follows)
        if codes[first][0] != codes[second][0]
    ]


def _code(value: float) -> str:
    return f"{value:.0f}".replace("-", "−")
