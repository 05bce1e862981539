"""What rows are asked for: `ExternalRiskEstimate>=70` and Python values → the legal codes of a column."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from functools import reduce
from operator import and_
from typing import Any, Literal

import pandas as pd

from preflab.errors import ConfigError
from preflab.tables.column import Column
from preflab.tables.encoding import Legal, legal_of

Operator = Literal["=", "!=", ">=", "<=", ">", "<"]
_OPERATOR = re.compile(r"\s*(!=|>=|<=|=|>|<)\s*", re.S)
_QUOTED = re.compile(r'\s*"((?:[^"]|"")*)"', re.S)
_PART = re.compile(r'(?:^|(?<=\|))(?:\s*"(?:[^"]|"")*"\s*(?=\||$)|[^|]*)', re.S)
"""One of several values between bars; a bar in quotes is none."""
NAMED = 8
"""How many names or values a message lists."""
YES, NO = frozenset({"true", "1", "yes", "t", "y"}), frozenset({"false", "0", "no", "f", "n"})


@dataclass(frozen=True)
class Condition:
    """What one column must hold."""

    column: str
    operator: Operator
    values: tuple[str, ...]
    """Cells as they are written; any of them will do for =, none of them for !=, and inequalities have one. Empty text
    is a missing value."""

    def __str__(self) -> str:
        return f"{self.column}{self.operator}{'|'.join(self.values)}"


def read(text: str, columns: Sequence[Column]) -> Condition:
    """A condition from text: a column's name, an operator, a value; several values of = and != are joined by |.

    A name may hold operators and spaces: the longest one that an operator follows is taken, and double quotes around a
    name end the doubt. A value that is a cell of the column as it stands, or that stands in double quotes, is not taken
    apart. `COL=` is a missing value.

    Raises:
        ConfigError: there is no such column, or no operator.

    >>> from preflab.tables.column import Numbers
    >>> ages = Column("age", "integer", levels=("",), missing=("",), numbers=Numbers(18, 73, (0, 7)))
    >>> for text in ("age>=30", "age = 30|40", 'age!=', '"age"<65'):
    ...     condition = read(text, [ages])
    ...     print(condition.operator, condition.values)
    >= ('30',)
    = ('30', '40')
    != ('',)
    < ('65',)
    """
    name, operator, value = _taken_apart(text, columns)
    return _condition(find(name, columns), operator, value)


def of_values(where: Mapping[str, Any], columns: Sequence[Column]) -> list[Condition]:
    """Conditions from Python values: a cell (text or of its own type), `None` for a missing value, text with an
    operator as `read` has it (`">=70"`, which a cell that reads so outdoes), a list or set of cells, any of which will
    do, or a tuple (lowest, highest), both included, `None` for no end.

    Raises:
        ConfigError: there is no such column, or a value is none of these.

    >>> from preflab.tables.column import Numbers
    >>> ages = Column("age", "integer", levels=("",), missing=("",), numbers=Numbers(18, 73, (0, 7)))
    >>> [str(condition) for condition in of_values({"age": (30, 39)}, [ages])]
    ['age>=30', 'age<=39']
    >>> [str(condition) for condition in of_values({"age": [20, None]}, [ages])]
    ['age=20|']
    """
    found: list[Condition] = []
    for name, value in where.items():
        column = find(str(name), columns)
        match value:
            case tuple():
                found += _range(column, value)
            case list() | set() | frozenset() | range():
                if not value:
                    raise ConfigError(f'"{column.name}" = {value}: no value is asked for; give one, or leave it out')
                found.append(Condition(column.name, "=", tuple(_cell(column, one) for one in value)))
            case str() if value not in column.levels and (operator := _OPERATOR.match(value)):
                found.append(_condition(column, operator[1], value[operator.end() :].rstrip()))
            case _:
                found.append(Condition(column.name, "=", (_cell(column, value),)))
    return found


def legal_codes(conditions: Iterable[Condition], columns: Sequence[Column]) -> dict[str, Legal]:
    """The codes that meet every condition, for each column that the model writes and a condition names.

    Special codes and missing values are no numbers: an inequality leaves them out.

    Raises:
        ConfigError: a value is not legal in its column, an inequality asks a column without numbers, no cell meets all
            conditions on a column, or the column is not written by the model.

    >>> from preflab.tables.column import Numbers
    >>> ages = Column("age", "integer", levels=("", "-9"), missing=("",), numbers=Numbers(18, 73, (0, 7)))
    >>> legal = legal_codes([read("age>=30", [ages]), read("age!=40", [ages])], [ages])["age"]
    >>> legal.spans, legal.levels
    (((12, 21), (23, 72)), frozenset())
    >>> sorted(legal_codes([read("age!=40", [ages])], [ages])["age"].levels)
    [-2, -1]
    """
    found: dict[str, list[tuple[Condition, Legal]]] = {}
    for condition in conditions:
        column = find(condition.column, columns)
        found.setdefault(column.name, []).append((condition, _legal(condition, column)))
    legal: dict[str, Legal] = {}
    for name, pairs in found.items():
        both = reduce(and_, (one for _, one in pairs), legal_of(find(name, columns)))
        if not both:
            asked = " and ".join(f'"{condition}"' for condition, _ in pairs)
            raise ConfigError(f'no cell of "{name}" meets {asked}; leave one out, or widen it')
        if find(name, columns).written:
            legal[name] = both
    return legal


def find(name: str, columns: Sequence[Column]) -> Column:
    """The column of this name.

    Raises:
        ConfigError: there is none; with the nearest name.
    """
    for column in columns:
        if column.name == name:
            return column
    raise ConfigError(f'there is no column "{name}"; {_nearest(name, [column.name for column in columns])}')


def present(column: Column) -> Legal:
    """All legal codes of a column but its marks of missing values."""
    return _without(legal_of(column), Legal(frozenset(column.code(mark) for mark in column.missing)))


def count(legal: Legal) -> int:
    """How many codes these are."""
    return len(legal.levels) + sum(high - low + 1 for low, high in legal.spans)


def codes_of(legal: Legal) -> list[int]:
    """These codes, rising."""
    return sorted(legal.levels) + [code for low, high in legal.spans for code in range(low, high + 1)]


def only(code: int) -> Legal:
    """This code alone."""
    return Legal(frozenset({code})) if code < 0 else Legal(spans=((code, code),))


def _legal(condition: Condition, column: Column) -> Legal:
    """The codes of a column that meet one condition."""
    if column.kind == "identifier":
        raise ConfigError(f'"{column.name}" is an identifier, filled with fresh values; no condition can hold for it')
    try:
        if condition.operator in ("=", "!="):
            asked = reduce(_or, (_equal(value, column) for value in condition.values))
            return asked if condition.operator == "=" else _without(legal_of(column), asked)
        return _beyond(condition, column)
    except ConfigError as error:
        raise ConfigError(f'"{condition}": {error}') from None


def _equal(value: str, column: Column) -> Legal:
    if value == "" and column.missing:
        return Legal(frozenset(column.code(mark) for mark in column.missing))
    if value in column.levels:
        return only(column.code(value))
    if column.kind == "boolean":
        for meaning in (YES, NO):
            if value.lower() in meaning and (same := [one for one in column.levels if one.lower() in meaning]):
                return only(column.code(same[0]))
    if column.numbers is not None and value:
        _place(value, column)
        with suppress(ValueError):
            return only(column.code(value))
    raise ConfigError(_not_legal(value, column))


def _beyond(condition: Condition, column: Column) -> Legal:
    """Of an inequality."""
    (value,) = condition.values
    if column.numbers is None:
        whole = f"{condition.operator}{value}"
        hint = f'; did you mean "{column.name}={whole}"?' if whole in column.levels else "; use = or !="
        raise ConfigError(f'"{column.name}" is a {column.kind}, which has no order{hint}')
    low, high, place = 0, column.numbers.size - 1, _place(value, column)
    match condition.operator:
        case ">=":
            low = max(low, math.ceil(place))
        case ">":
            low = max(low, math.floor(place) + 1)
        case "<=":
            high = min(high, math.floor(place))
        case _:
            high = min(high, math.ceil(place) - 1)
    if low > high:
        raise ConfigError(f'"{column.name}" goes {_reach(column)}; choose a value within')
    return Legal(spans=((low, high),))


def _place(text: str, column: Column) -> Fraction:
    """Where a value lies on the column's scale; it need be no point."""
    assert column.numbers is not None
    try:
        return Fraction(column.numbers.place(text))
    except ValueError:
        said = "date" if column.kind == "datetime" else "number"
        raise ConfigError(f'"{text}" is no {said}; "{column.name}" goes {_reach(column)}') from None


def _range(column: Column, ends: tuple[Any, ...]) -> list[Condition]:
    if len(ends) != 2 or ends == (None, None):
        raise ConfigError(f'"{column.name}" = {ends}: a tuple is (lowest, highest); put any-of values in a list')
    low, high = ends
    found = [] if low is None else [Condition(column.name, ">=", (_cell(column, low),))]
    return found + ([] if high is None else [Condition(column.name, "<=", (_cell(column, high),))])


def _cell(column: Column, value: Any) -> str:
    """A Python value as text."""
    if isinstance(value, str):
        return value
    if value is None or value is pd.NaT or value is pd.NA or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, date):  # a pandas Timestamp and a datetime are dates too
        return pd.Timestamp(value).isoformat(sep=" ")
    plain = value.item() if hasattr(value, "item") else value
    if isinstance(plain, float) and plain.is_integer() and str(plain) not in column.levels:
        return str(int(plain))
    if isinstance(plain, int | float):
        return str(plain)
    raise ConfigError(
        f'"{column.name}" = {value!r}: give text, a number, a date, None, a list of them, or a tuple (lowest, highest)'
    )


def _taken_apart(text: str, columns: Sequence[Column]) -> tuple[str, Any, str]:
    """Name, operator, value."""
    if (quoted := _QUOTED.match(text)) and (operator := _OPERATOR.match(text, quoted.end())):
        return quoted[1].replace('""', '"'), operator[1], text[operator.end() :].rstrip()
    for name in sorted((column.name for column in columns), key=len, reverse=True):
        begin = len(text) - len(text.lstrip()) if not text.startswith(name) else 0
        if text.startswith(name, begin) and (operator := _OPERATOR.match(text, begin + len(name))):
            return name, operator[1], text[operator.end() :].rstrip()
    operator = _OPERATOR.search(text)
    if operator is None:
        raise ConfigError(f'"{text}" is no condition; write one as COLUMN=VALUE, !=, >=, <=, > or <')
    return text[: operator.start()].strip(), operator[1], text[operator.end() :].rstrip()


def _condition(column: Column, operator: Any, value: str) -> Condition:
    """From what stands after a column's name."""
    if value in column.levels:
        return Condition(column.name, operator, (value,))
    if operator == "=" and value.startswith("="):  # `==`, as in Python
        return _condition(column, operator, value[1:].lstrip())
    values = _PART.findall(value) if operator in ("=", "!=") else [value]
    return Condition(column.name, operator, tuple(_unquoted(part.strip()) for part in values))


def _unquoted(value: str) -> str:
    quoted = _QUOTED.fullmatch(value)
    return quoted[1].replace('""', '"') if quoted else value


def _or(one: Legal, other: Legal) -> Legal:
    merged: list[tuple[int, int]] = []
    for low, high in sorted(one.spans + other.spans):
        if merged and low <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(high, merged[-1][1]))
        else:
            merged.append((low, high))
    return Legal(one.levels | other.levels, tuple(merged))


def _without(one: Legal, other: Legal) -> Legal:
    spans = list(one.spans)
    for low, high in other.spans:
        cut = [((a, min(b, low - 1)), (max(a, high + 1), b)) for a, b in spans]
        spans = [(a, b) for both in cut for a, b in both if a <= b]
    return Legal(one.levels - other.levels, tuple(spans))


def _not_legal(value: str, column: Column) -> str:
    if value == "":
        return f'"{column.name}" has no missing values'
    if column.numbers is not None:
        near = column.numbers.text(column.numbers.nearest(value))
        codes = [level for level in column.levels if level]
        beside = f" (or {', '.join(codes[:NAMED])})" if codes else ""
        return f'"{column.name}" goes {_reach(column)}{beside}; the nearest value is {near}'
    if column.kind == "constant":
        return f'"{column.name}" is always "{column.levels[0] if column.levels else ""}"'
    return f'"{value}" is no value of "{column.name}"; {_nearest(value, column.levels)}'


def _reach(column: Column) -> str:
    numbers = column.numbers
    assert numbers is not None
    return f"from {numbers.text(0)} to {numbers.text(numbers.size - 1)}"


def _nearest(name: str, known: Sequence[str]) -> str:
    """A hint with the nearest of some names, whatever their case, or the first of them."""
    lower = {one.lower(): one for one in reversed(known)}
    if close := difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6):
        return f'did you mean "{lower[close[0]]}"?'
    shown = ", ".join(f'"{one}"' for one in known[:NAMED])
    more = len(known) - NAMED
    return f"there are {shown}" + (f" and {more} more" if more > 0 else "")
