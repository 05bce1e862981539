"""The values of a table as people read them, as a page sorts them, and as other programs read them."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, assert_never

from preflab.errors import NumericError
from preflab.report.chapter import Column, Sheet, Value
from preflab.report.statistics import Estimate
from preflab.report.study import Arm
from preflab.report.wording import count, duration, figure, fixed, interval, memory, number, setting, visible

UNITS = {"percent": "fraction", "seconds": "seconds", "bytes": "bytes"}
FORMULA = tuple("=+-@\t\r＝＋－＠")  # spreadsheets take the wide forms too


@dataclass(frozen=True)
class Whisker:
    """Where an interval stands on the axis that its column shares, in percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Cell:
    """One value as it is written."""

    text: str
    range: str = ""
    """The interval in brackets; empty: none."""
    key: float | None = None
    """What the page sorts by; None: by the text."""
    arm: Arm | None = None
    whisker: Whisker | None = None

    @property
    def line(self) -> str:
        """All of it on one line."""
        return f"{self.text} {self.range}".strip()


def lines(sheet: Sheet) -> list[list[Cell]]:
    """The rows of a table as they are written.

    Raises NumericError where a value is not finite.
    """
    refuse_non_finite(sheet)
    axes = [axis(sheet, place) if column.drawn else None for place, column in enumerate(sheet.columns)]
    return [
        [written(value, column, ends) for value, column, ends in zip(row, sheet.columns, axes, strict=True)]
        for row in sheet.rows
    ]


def written(value: Value, column: Column, ends: tuple[float, float] | None = None) -> Cell:
    """One value; `ends` of the axis on which its interval is drawn.

    >>> written(Estimate(0.5, 0.25, 0.75), Column("wins", "percent")).line
    '50 % [25, 75]'
    >>> written(1234.0, Column("calls", "count")).text, written(None, Column("calls", "count")).text
    ('1,234', '–')
    """
    match value:
        case None:
            return Cell("–")
        case Arm():
            return Cell(value.title, arm=value)
        case str():
            return Cell(value)
        case Estimate():
            text, bracketed = in_brackets(value, column)
            return Cell(text, bracketed, value.mean, whisker=whisker(value, *ends) if ends else None)
        case float() | int():
            return Cell(writer(column, value)(value), key=float(value))
        case _:
            assert_never(value)


def writer(column: Column, size: float) -> Callable[[float], str]:
    """How numbers of a column are written; `size` decides how many decimals a share has."""
    match column.form:
        case "count":
            return count
        case "figure":
            return figure
        case "setting":
            return setting
        case "seconds":
            return duration
        case "bytes":
            return memory
        case "percent":
            digits = 1 if 0 < abs(size) < 0.1 else 0
            return lambda value: f"{fixed(100 * value, digits)} %"
        case "number" | "text" | "arm":
            return lambda value: number(value, column.digits)
        case _:
            assert_never(column.form)


def in_brackets(value: Estimate, column: Column) -> tuple[str, str]:
    """A mean, and its interval in brackets."""
    if column.form in ("number", "text", "arm", "figure"):
        digits = (3 if abs(value.mean) < 1 else 2) if column.form == "figure" else column.digits
        text, _, bracketed = interval(value, digits).partition(" ")
        return text, bracketed
    write = writer(column, value.mean)
    low, high = write(value.low), write(value.high)
    if column.form == "percent":
        low, high = low.removesuffix(" %"), high.removesuffix(" %")
    return write(value.mean), f"[{low}, {high}]"


def axis(sheet: Sheet, place: int) -> tuple[float, float]:
    """The lowest and the highest end of a column's intervals."""
    found = [row[place] for row in sheet.rows]
    intervals = [value for value in found if isinstance(value, Estimate)]
    return min((e.low for e in intervals), default=0.0), max((e.high for e in intervals), default=1.0)


def whisker(value: Estimate, low: float, high: float) -> Whisker:
    """An interval on an axis from `low` to `high`."""
    width = (high - low) or 1.0
    return Whisker(*(4 + 92 * (x - low) / width for x in (value.mean, value.low, value.high)))


def refuse_non_finite(sheet: Sheet) -> None:
    """Raise NumericError, naming table and column, where a value is NaN or infinite."""
    for row in sheet.rows:
        for column, value in zip(sheet.columns, row, strict=True):
            parts = (value.mean, value.low, value.high) if isinstance(value, Estimate) else (value,)
            if not all(isfinite(part) for part in parts if isinstance(part, float)):
                raise NumericError(
                    f"table {sheet.name}, {column.title}: {value} is not finite; score that checkpoint again"
                )


def as_csv(sheet: Sheet) -> str:
    """A table as CSV: figures as they are, an interval as three columns, arms by name.

    A text that a spreadsheet would take for a formula is led by an apostrophe.
    """
    refuse_non_finite(sheet)
    wide = [any(isinstance(row[place], Estimate) for row in sheet.rows) for place in range(len(sheet.columns))]
    heads: list[str] = []
    for column, estimated in zip(sheet.columns, wide, strict=True):
        title = column.title + (f" ({UNITS[column.form]})" if column.form in UNITS else "")
        heads += [title, f"{title}, low", f"{title}, high"] if estimated else [title]
    buffer = io.StringIO()
    rows = csv.writer(buffer, lineterminator="\n")
    rows.writerow(harmless(head) for head in heads)
    for row in sheet.rows:
        rows.writerow(field for value, estimated in zip(row, wide, strict=True) for field in fields(value, estimated))
    return buffer.getvalue()


def fields(value: Value, estimated: bool) -> Sequence[str]:
    """What a value is in a CSV file."""
    match value:
        case Estimate():
            return [plain(value.mean), plain(value.low), plain(value.high)]
        case None:
            found = ""
        case Arm():
            found = harmless(value.name)
        case str():
            found = harmless(value)
        case _:
            found = plain(value)
    return [found, "", ""] if estimated else [found]


def plain(value: float) -> str:
    """A number for a program, whole ones without a point.

    >>> plain(3.0), plain(0.1), plain(1e22)
    ('3', '0.1', '1e+22')
    """
    return str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))


def harmless(text: str) -> str:
    """A text that no spreadsheet takes for a formula (CWE-1236).

    >>> harmless("=1+1"), harmless("1 + 1")
    ("'=1+1", '1 + 1')
    """
    shown = visible(text)
    return f"'{shown}" if shown.lstrip(" \n").startswith(FORMULA) else shown


def as_json(sheet: Sheet) -> dict[str, Any]:
    """A table in comparison.json."""
    refuse_non_finite(sheet)
    return {
        "columns": [column.title for column in sheet.columns],
        "rows": [[value_json(value) for value in row] for row in sheet.rows],
    }


def value_json(value: Value) -> Any:
    """A value in comparison.json: an arm is its name."""
    match value:
        case Estimate():
            return value.json()
        case Arm():
            return value.name
        case _:
            return value
