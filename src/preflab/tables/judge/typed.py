"""The frames that every figure is computed from: what kind each column is, its numbers, and what did not parse.

Frames of text in, typed frames out. Kinds and levels come from the training rows alone, so that neither the holdout nor
the synthetic rows can change how they are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from preflab.errors import ConfigError, DataError, nearest

Kind = Literal["integer", "decimal", "datetime", "category"]

MISSING = frozenset({"", "NA", "NaN", "nan", "None", "null", "<NA>", "?"})
"""Cells that say that there is no value."""
ONE_HOT_COLUMNS = 2000
"""At most so many columns are made of levels; rarer ones of a column with many levels share "none of these"."""
IDENTIFIER_ROWS = 20
"""Training cells that all differ make an identifier from so many on."""
_DATE = r"\d{4}-\d\d-\d\d(?:[T ]\d\d:\d\d(?::\d\d(?:\.\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?"


@dataclass(frozen=True)
class Typed:
    """Three tables with the same columns. Numbers and dates (days since 1970) are floats, NaN where missing or not
    readable; categories are text, NaN where missing."""

    train: pd.DataFrame
    holdout: pd.DataFrame
    synthetic: pd.DataFrame
    """All synthetic rows. Figures other than those of validity are computed on `usable`."""
    parsed: Bool[np.ndarray, " synthetic"]
    """Which synthetic rows are readable: each cell is of its column's kind, and none is missing where no training cell
    is."""
    kinds: Mapping[str, Kind]
    """In the order of the training table's columns."""
    levels: Mapping[str, tuple[str, ...]]
    """Of each category, sorted."""
    target: str | None

    @property
    def columns(self) -> tuple[str, ...]:
        """All, the target among them."""
        return tuple(self.kinds)

    @property
    def numbers(self) -> tuple[str, ...]:
        """Integers, decimals and dates."""
        return tuple(name for name, kind in self.kinds.items() if kind != "category")

    @property
    def categories(self) -> tuple[str, ...]:
        return tuple(name for name, kind in self.kinds.items() if kind == "category")

    @property
    def identifiers(self) -> tuple[str, ...]:
        """Categories of which no two training cells are the same, where these are enough to say so: what they hold can
        be compared with nothing."""
        return tuple(
            name
            for name, levels in self.levels.items()
            if len(levels) >= IDENTIFIER_ROWS and len(levels) == self.train[name].count()
        )

    @property
    def features(self) -> tuple[str, ...]:
        """All but the target."""
        return tuple(name for name in self.kinds if name != self.target)

    @property
    def usable(self) -> pd.DataFrame:
        """The synthetic rows that parsed."""
        return self.synthetic[self.parsed].reset_index(drop=True)

    def judging(self, rows: pd.DataFrame) -> Typed:
        """The same, of other rows in place of the synthetic ones, such as real ones; `rows` are typed."""
        return replace(self, synthetic=rows.reset_index(drop=True), parsed=np.ones(len(rows), bool))

    def codes(self, rows: pd.DataFrame, columns: tuple[str, ...] | None = None) -> Float[np.ndarray, "row column"]:
        """For trees: numbers as they are (NaN where missing), categories as places in their sorted levels, −1 where
        missing or of no training row."""
        names = self.columns if columns is None else columns
        if not names:
            return np.zeros((len(rows), 0))
        return np.column_stack(
            [
                pd.Categorical(rows[name], categories=list(self.levels[name])).codes.astype(float)
                if name in self.levels
                else rows[name].to_numpy(float)
                for name in names
            ]
        )

    def one_hot(self, rows: pd.DataFrame, columns: tuple[str, ...] | None = None) -> Float[np.ndarray, "row feature"]:
        """For what is linear: numbers (0 where missing), then a column of 0 and 1 for each level, but for
        identifiers."""
        left_out = set(self.identifiers)
        names = [name for name in (self.columns if columns is None else columns) if name not in left_out]
        parts = [np.nan_to_num(rows[name].to_numpy(float), nan=0.0) for name in names if name not in self.levels]
        wide = [name for name in names if name in self.levels]
        most = max(2, ONE_HOT_COLUMNS // max(1, len(wide)))
        for name in wide:
            levels = self.levels[name]
            if len(levels) > most:
                levels = tuple(self.train[name].value_counts(sort=False).sort_index().nlargest(most).index)
            cells = rows[name].to_numpy(object)
            parts.extend((cells == level).astype(float) for level in levels)
        return np.column_stack(parts) if parts else np.zeros((len(rows), 0))


def typed(train: pd.DataFrame, holdout: pd.DataFrame, synthetic: pd.DataFrame, target: str | None) -> Typed:
    """Reads three frames of text, by the kinds of the training rows.

    A column is of numbers if every training cell that is not missing is one, else of dates if each is an ISO date, else
    a category.

    Raises:
        DataError: a table is empty, lacks a column of the training table, or has one twice.
        ConfigError: the target is no column.

    >>> train = pd.DataFrame({"age": ["31", "40", "NA"], "town": ["Ulm", "Bonn", "Ulm"]})
    >>> table = typed(train, train, pd.DataFrame({"town": ["Bonn", "Rom"], "age": ["33", "old"]}), None)
    >>> dict(table.kinds), table.parsed.tolist()
    ({'age': 'integer', 'town': 'category'}, [True, False])
    >>> table.codes(table.usable).tolist()
    [[33.0, 0.0]]
    """
    named = {"training": train, "holdout": holdout, "synthetic": synthetic}
    for name, rows in named.items():
        if not rows.columns.is_unique:
            twice = rows.columns[rows.columns.duplicated()][0]
            raise DataError(f'the {name} table has the column "{twice}" twice: rename one')
        if not len(rows):
            raise DataError(f"the {name} table has no rows")
        if lacking := [str(column) for column in train.columns if column not in rows.columns]:
            raise DataError(
                f"the {name} table lacks the training table's column{'s' if len(lacking) > 1 else ''} \""
                + '", "'.join(lacking[:5])
                + ('" and others' if len(lacking) > 5 else '"')
            )
    if target is not None and target not in train.columns:
        raise ConfigError(f'there is no column "{target}" to be the target: {nearest(target, map(str, train.columns))}')
    cells = {name: _without_missing(rows[list(train.columns)]) for name, rows in named.items()}
    kinds: dict[str, Kind] = {str(name): _kind(cells["training"][name]) for name in train.columns}
    values = {name: _values(rows, kinds) for name, rows in cells.items()}
    drawn, text = values["synthetic"], cells["synthetic"]
    parsed = np.ones(len(text), bool)
    for name in kinds:
        parsed &= (drawn[name].notna() | text[name].isna()).to_numpy(bool)
        if cells["training"][name].notna().all():
            parsed &= text[name].notna().to_numpy(bool)
    levels = {
        name: tuple(sorted(values["training"][name].dropna().unique()))
        for name, kind in kinds.items()
        if kind == "category"
    }
    return Typed(values["training"], values["holdout"], drawn, parsed, kinds, levels, target)


def _without_missing(rows: pd.DataFrame) -> pd.DataFrame:
    """Text as Python strings, NaN where a cell says that there is no value."""
    text = rows.astype(object).reset_index(drop=True)
    return text.mask(text.isin(list(MISSING)) | text.isna(), np.nan)


def _kind(cells: pd.Series) -> Kind:
    present = cells.dropna()
    numbers = pd.to_numeric(present, errors="coerce")
    if numbers.notna().all():
        return "integer" if len(numbers) and bool((numbers == numbers.round()).all()) else "decimal"
    text = present.astype(str).str.strip()
    if text.str.fullmatch(_DATE).all() and _days(text).notna().all():
        return "datetime"
    return "category"


def _values(rows: pd.DataFrame, kinds: Mapping[str, Kind]) -> pd.DataFrame:
    columns: dict[str, pd.Series] = {}
    for name, kind in kinds.items():
        cells = rows[name]
        match kind:
            case "category":
                columns[name] = cells.where(cells.isna(), cells.astype(str).str.strip()).astype(object)
            case "datetime":
                columns[name] = _days(cells.astype(str).str.strip())
            case _:
                numbers = pd.to_numeric(cells, errors="coerce").astype(float)
                # An infinite number is a mistake to every figure.
                columns[name] = numbers.where(np.isfinite(numbers))
    return pd.DataFrame(columns)


def _days(cells: pd.Series) -> pd.Series:
    """Days since 1970, NaN for what is no ISO date."""
    instants = pd.to_datetime(cells.where(cells.str.fullmatch(_DATE)), errors="coerce", utc=True, format="ISO8601")
    return (instants - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(days=1)
