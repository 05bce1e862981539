"""The columns of a table, inferred from its cells or named by hand; frames of text ⇄ arrays of codes.

A frame of text holds every cell as it is written, as a `str`. Where its index is called "line" (`files.read_table`),
messages name that line, and else the row.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import ClassVar, get_args

import numpy as np
import pandas as pd
from jaxtyping import Int
from pydantic import ConfigDict, TypeAdapter, ValidationError

from preflab.data.jsonl import FAULTS_SHOWN, shown
from preflab.errors import ConfigError, DataError, StorageError, nearest
from preflab.progress import Advance
from preflab.runs import write_text
from preflab.seeds import derive
from preflab.tables.column import (
    NANOSECONDS,
    SEEN_LISTED,
    STRICT,
    Column,
    Kind,
    Numbers,
    Serial,
    Shape,
    Times,
    read_moment,
    read_number,
)

MISSING = frozenset(
    ["", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "null", "NULL", "Null", "None", "<NA>", "NaT", "?"]
)  # fmt: skip
"""Cells that mean that there is no value; those of white space alone do too."""
LEVELS_MOST = 1000
"""Categories that a column may have."""
POINTS_EXACT = 10**9
REPEATED = 0.8
"""Of a column's cells, at most so many are different where its numbers count as coming again."""
"""A scale with more points than this rounds its numbers, as no model learns the tenth digit."""
_POINTS_MOST = 2**63 - 1
_DIGITS_MOST = 40


@dataclass(frozen=True)
class Described:
    """One column in words, for printing."""

    name: str
    kind: str
    values: str
    """The range of its scale, or its categories."""
    codes: str
    """Levels beside a scale that mean something else than that there is no value."""
    missing: str
    """The share of the training rows that have no value."""


@dataclass(frozen=True)
class Schema:
    """The columns of a table.

    >>> frame = pd.DataFrame({"row": ["1", "2", "3"], "age": ["18", "NA", "25"], "sex": ["f", "m", "f"]})
    >>> schema = infer(frame, kinds={"row": "identifier"})
    >>> schema.codes(frame)
    array([[ 0, -1],
           [-1, -2],
           [ 7, -1]])
    >>> schema.frame(schema.codes(frame), seed=0).iloc[1].to_dict()
    {'row': '5', 'age': 'NA', 'sex': 'm'}
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    columns: tuple[Column, ...]
    """All of them, in the order of the table."""
    target: str | None
    """The column that is to be predicted from the others."""
    rows: int
    """How many rows it was inferred from."""
    notes: tuple[str, ...] = ()
    """What its user should know, a sentence each."""

    @cached_property
    def written(self) -> tuple[Column, ...]:
        """The columns that the model writes. Constants are filled in, and identifiers are made up."""
        return tuple(column for column in self.columns if column.written)

    def column(self, name: str) -> Column:
        """The column of this name.

        Raises:
            ConfigError: there is none.
        """
        found = next((column for column in self.columns if column.name == name), None)
        if found is None:
            raise ConfigError(f'no column "{name}"; {nearest(name, [column.name for column in self.columns])}')
        return found

    def codes(
        self, frame: pd.DataFrame, *, nearest: bool = False, blank: int | None = None
    ) -> Int[np.ndarray, "row column"]:
        """The codes of the written columns, in their order. Other columns of the table may be left out of the frame.

        Args:
            nearest: numbers that no training row comes near are taken for the nearest legal one. Other cells that
                are not legal are refused all the same.
            blank: stands for cells that mean that there is no value, in a column where the training rows have no
                such cell; None: they are refused.

        Raises:
            DataError: a column is missing or unknown, or a cell is not legal: the first one of each column is named,
                with its line.
        """
        self._check_names(frame)
        codes = np.empty((len(frame), len(self.written)), dtype=np.int64)
        faults = []
        for place, column in enumerate(self.written):
            cells = _Cells.of(frame, column.name)
            found = np.empty(len(cells.texts), dtype=np.int64)
            for number, text in enumerate(cells.texts):
                try:
                    found[number] = column.code(text, nearest=nearest)
                except ValueError as error:
                    if blank is None or not is_missing(text):
                        faults.append(f"{cells.place(number)}: {error}; leave the row out, or fit with it")
                        break
                    found[number] = blank
            else:
                codes[:, place] = found[cells.of_row]
        _raise(faults)
        return codes

    def _check_names(self, frame: pd.DataFrame) -> None:
        known = [column.name for column in self.columns]
        for name in frame.columns:
            if name not in known:
                raise DataError(f'there is no column "{name}" in this table; {nearest(str(name), known)}')
        for column in self.written:
            if column.name not in frame.columns:
                raise DataError(
                    f'the column "{column.name}" is missing; {nearest(column.name, map(str, frame.columns))}'
                )

    def frame(self, codes: Int[np.ndarray, "row column"], *, seed: int) -> pd.DataFrame:
        """The table as text, with all its columns.

        Args:
            codes: of the written columns.
            seed: identifiers are drawn from it.

        Raises:
            DataError: there are not so many identifiers.
        """
        table: dict[str, np.ndarray] = {}
        written = iter(codes.T)
        for column in self.columns:
            cells = np.empty(len(codes), dtype=object)
            if column.identifiers:
                try:
                    cells[:] = column.identifiers.fresh(len(codes), seed=derive(seed, column.name))
                except ValueError as error:
                    raise DataError(
                        f'"{column.name}" is an identifier, and {error}: draw fewer rows, or leave the column out'
                    ) from None
            elif column.kind == "constant":
                cells[:] = column.levels[0]
            else:
                distinct, of_row = np.unique(next(written), return_inverse=True)
                texts = np.empty(len(distinct), dtype=object)
                texts[:] = [column.text(code) for code in distinct.tolist()]
                cells = texts[of_row]
            table[column.name] = cells
        return pd.DataFrame(table, dtype=object)

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_text(path, _JSON.dump_json(self, indent=1).decode() + "\n")

    @classmethod
    def load(cls, path: Path) -> Schema:
        """Read what `save` wrote.

        Raises:
            StorageError: the file is missing or was changed.
        """
        try:
            schema = _JSON.validate_json(path.read_bytes())
        except FileNotFoundError:
            raise StorageError(f"{path} is missing; run `preflab table fit` again") from None
        except OSError as error:
            raise StorageError(f"can't read {path}: {error.strerror or error}; check its permissions") from None
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise StorageError(f"{path} is damaged ({where}: {first['msg']}); fit again") from None
        names = [column.name for column in schema.columns]
        if len(set(names)) < len(names) or schema.target not in (None, *names):
            raise StorageError(f"{path} is damaged (a column stands twice, or the target is none of them); fit again")
        return schema

    def describe(self) -> list[Described]:
        """Each column in words."""
        return [_described(column, self.rows) for column in self.columns]


_JSON = TypeAdapter(Schema)


def _described(column: Column, rows: int) -> Described:
    absent = sum(count for text, count in zip(column.levels, column.counts, strict=True) if text in column.missing)
    levels = [text for text in column.levels if text not in column.missing]
    codes, values = "", ", ".join(shown(text, 20) for text in levels[:6])
    if column.identifiers:
        values = f"fresh ones, such as {shown(column.identifiers.fresh(1, seed=0)[0])}"
    elif column.numbers:
        codes = ", ".join(levels)
        values = f"{column.numbers.text(0)} … {column.numbers.text(column.numbers.size - 1)}"
    elif len(levels) > 6:
        values = f"{len(levels):,} values: {values}, …"
    return Described(column.name, column.kind, values, codes, f"{absent / rows:.1%}".replace("%", " %"))


def is_missing(text: str) -> bool:
    """Whether a cell means that there is no value.

    >>> is_missing("NA"), is_missing(" "), is_missing("0")
    (True, True, False)
    """
    return text in MISSING or not text.strip()


def infer(
    frame: pd.DataFrame,
    *,
    target: str | None = None,
    kinds: Mapping[str, str] = {},
    codes: Mapping[str, Sequence[str]] = {},
    advance: Advance = lambda done, note: None,
) -> Schema:
    """The columns of a table, from its cells. What is inferred is told in docs/tables/columns.md.

    Args:
        target: a column that is to be predicted; it may be no identifier and no constant.
        kinds: what columns are, instead of what they look like: a `Kind`, or "decimal:2" for numbers that are to be
            rounded to so many decimals.
        codes: cells that lie on no scale, by column, instead of those that are found; () for none.
        advance: told how many columns were looked at, and the name of the last one.

    Raises:
        ConfigError: a setting names a column or a kind that is not there.
        DataError: the table has fewer than two rows or no column that varies, or a column can't be used as it is or
            as it is said to be: all such columns are named.
    """
    names = [str(name) for name in frame.columns]
    for setting, given in (("target", [] if target is None else [target]), ("columns", kinds), ("codes", codes)):
        for name in given:
            if name not in names:
                raise ConfigError(f'{setting}: there is no column "{name}"; {nearest(name, names)}')
    for name, kind in kinds.items():
        if kind not in get_args(Kind) and not re.fullmatch(r"decimal:[0-9]", kind):
            raise ConfigError(f'columns: "{name}" can\'t be "{kind}"; {nearest(kind, get_args(Kind))}')
    if len(frame) < 2:
        raise DataError(f"{'1 row' if len(frame) else '0 rows'}: a table needs two at least, as one shows no variation")
    table = []
    for name in names:
        table.append(_Cells.of(frame, name))
        _ = table[-1].numbers  # what takes long
        advance(len(table), shown(name, 20))
    known = frozenset[float]().union(
        *(_codes_of(cells, frozenset()) for cells in table if cells.name not in codes and cells.name not in kinds)
    )
    columns, notes, faults = [], [], []
    for cells in table:
        try:
            column, said = _column(cells, kinds.get(cells.name), codes.get(cells.name), known, cells.name == target)
        except DataError as error:
            faults.append(str(error))
            continue
        columns.append(column)
        absent = [code for code in codes.get(cells.name, ()) if code not in cells.texts]
        if column.numbers is None and absent:
            faults.append(
                f'"{cells.name}" is {_a(column.kind)} without the cell "{absent[0]}": codes stand among numbers'
            )
        notes += [f'"{cells.name}" {sentence}' for sentence in said]
        if cells.name == target and not column.written:
            faults.append(f'the target "{target}" is {_a(column.kind)}: nothing is left to predict; name another')
    _raise(faults)
    if not any(column.written for column in columns):
        kept = ", ".join(f'"{column.name}" is {_a(column.kind)}' for column in columns[:5])
        raise DataError(f"no column is left to learn: {kept}; say what one is with --columns NAME=KIND")
    return Schema(tuple(columns), target, len(frame), tuple(notes))


def _raise(faults: Sequence[str]) -> None:
    if faults:
        more = [f"… and {len(faults) - FAULTS_SHOWN} more columns"] if len(faults) > FAULTS_SHOWN else []
        raise DataError("\n".join([*faults[:FAULTS_SHOWN], *more]))


def _a(kind: str) -> str:
    return f"an {kind}" if kind[0] in "aeiou" else f"a {kind}"


@dataclass(frozen=True)
class _Cells:
    """The distinct cells of a column, as they first appear."""

    name: str
    texts: list[str]
    counts: list[int]
    of_row: np.ndarray
    """Which of them each row holds."""
    index: pd.Index

    @classmethod
    def of(cls, frame: pd.DataFrame, name: str) -> _Cells:
        cells = frame[name].tolist()
        place = {text: number for number, text in enumerate(dict.fromkeys(cells))}
        of_row = np.fromiter((place[cell] for cell in cells), dtype=np.int64, count=len(cells))
        texts = list(place)
        if not all(type(text) is str for text in texts):
            raise DataError(
                f'the column "{name}" holds cells that are no text; read the table with preflab.tables.files'
            )
        return cls(name, texts, np.bincount(of_row, minlength=len(texts)).tolist(), of_row, frame.index)

    def place(self, number: int) -> str:
        """Where one of them stands first: "line 17"."""
        row = int(np.argmax(self.of_row == number))
        return f"{self.index.name or 'row'} {self.index[row]}"

    @cached_property
    def numbers(self) -> list[tuple[int, int] | None]:
        """Each as a number, where it is one: see `read_number`."""
        return [read_number(text) for text in self.texts]

    @cached_property
    def like_codes(self) -> set[float]:
        """The numbers that are written like special codes."""
        pairs = zip(self.texts, self.numbers, strict=True)
        return {_float(number) for text, number in pairs if number is not None and _CODE.fullmatch(text)}


Notes = list[str]


def _column(
    cells: _Cells, kind: str | None, declared: Sequence[str] | None, known: frozenset[float], target: bool
) -> tuple[Column, Notes]:
    """One column, and what is to be said of it after its name.

    Args:
        declared: levels; None: they are looked for.
        known: codes that other columns of the table hold.
        target: it is one, and no identifier.
    """
    notes = [f'has the code "{text}" in no row' for text in declared or () if text not in cells.texts]
    apart = set(declared or ()) | {text for text in cells.texts if is_missing(text)}
    rest = [number for number, text in enumerate(cells.texts) if text not in apart]
    match kind:
        case None:
            column, said = _inferred(cells, rest, apart, declared is None, known, target)
        case "integer" | "decimal":
            column, said = _declared_numbers(cells, rest, apart, declared is None, known, kind, None)
        case "datetime":
            column, said = _declared_times(cells, rest, apart), []
        case "identifier":
            column, said = _declared_identifier(cells, rest)
        case "constant":
            if len(cells.texts) > 1:
                raise DataError(
                    f'{cells.place(1)}: "{cells.name}" is no constant: {_quoted(cells, 1)} is a second value'
                )
            column, said = _levels(cells, apart, "constant"), []
        case "category" | "boolean":
            if kind == "boolean" and len(rest) > 2:
                raise DataError(
                    f'{cells.place(rest[2])}: "{cells.name}" is no boolean: {_quoted(cells, rest[2])} is a third'
                )
            column, said = _category(cells, rest, apart, kind)
        case _:
            decimals = int(kind.removeprefix("decimal:"))
            column, said = _declared_numbers(cells, rest, apart, declared is None, known, "decimal", decimals)
    return column, notes + said


def _inferred(
    cells: _Cells, rest: list[int], apart: set[str], find_codes: bool, known: frozenset[float], target: bool
) -> tuple[Column, Notes]:
    if len(cells.texts) == 1:
        absent = "has no value in any row" if not rest else f"is {_quoted(cells, 0)} in every row"
        return _levels(cells, apart, "constant"), [f"{absent}: a constant, filled in"]
    texts = [cells.texts[number] for number in rest]
    if not rest:
        return _levels(cells, apart, "category"), []
    if len(rest) == 2 and frozenset(text.lower() for text in texts) in _BOOLEANS:
        return _category(cells, rest, apart, "boolean")
    times = _times(texts, _patterns(texts[0]))
    if times is not None:
        return _with_levels(Column(cells.name, "datetime", numbers=times), cells, apart), []
    if not target and len(rest) == len(cells.texts) and (identifiers := _identifiers(cells)):
        made = identifiers.fresh(1, seed=0)[0]
        return Column(cells.name, "identifier", identifiers=identifiers), [
            f'is another in every row: an identifier; fresh ones such as "{shown(made)}" are written'
        ]
    numeric = [number for number in rest if cells.numbers[number] is not None]
    words = [number for number in rest if cells.numbers[number] is None]
    of_words, of_numbers = (sum(cells.counts[number] for number in part) for part in (words, numeric))
    few_words = len(words) <= 1 or (len(words) <= 50 and 2 * len(words) <= of_words)
    if numeric and few_words and of_numbers >= of_words:
        found = _codes_of(cells, known) if find_codes else frozenset()
        atoms = apart | {cells.texts[number] for number in words}
        whole = all(cells.numbers[number][1] == 0 for number in numeric)  # type: ignore[index]
        try:
            kind: Kind = "integer" if whole else "decimal"
            return _numbers(cells, atoms, found, kind, None, alike=len(rest) <= 50)
        except DataError:
            if len(rest) > LEVELS_MOST:
                raise
    return _category(cells, rest, apart, "category")


_BOOLEANS = {frozenset(pair) for pair in [("true", "false"), ("yes", "no"), ("t", "f"), ("y", "n"), ("on", "off")]}
_TRUE = {"true", "yes", "t", "y", "on"}


def _quoted(cells: _Cells, number: int) -> str:
    return f'"{shown(cells.texts[number])}"'


def _with_levels(column: Column, cells: _Cells, levels: set[str]) -> Column:
    """With missing marks first, then numbers by size, then words."""

    def key(text: str) -> tuple[bool, bool, float, str]:
        number = read_number(text)
        return not is_missing(text), number is None, _float(number) if number else 0.0, text

    ordered = tuple(sorted(levels, key=key))
    if column.kind == "boolean":
        ordered = tuple(sorted(ordered, key=lambda text: (not is_missing(text), text.lower() in _TRUE)))
    count = dict(zip(cells.texts, cells.counts, strict=True))
    return replace(
        column,
        levels=ordered,
        missing=tuple(text for text in ordered if is_missing(text)),
        counts=tuple(count.get(text, 0) for text in ordered),
    )


def _levels(cells: _Cells, levels: set[str], kind: Kind) -> Column:
    """A column without a scale."""
    return _with_levels(Column(cells.name, kind), cells, levels | set(cells.texts))


def _category(cells: _Cells, rest: list[int], apart: set[str], kind: Kind) -> tuple[Column, Notes]:
    rows = sum(cells.counts[number] for number in rest)
    text = sum(len(cells.texts[number]) * cells.counts[number] for number in rest) / max(rows, 1)
    free = rows >= 20 and len(rest) >= 0.9 * rows and text >= 30
    if len(rest) > LEVELS_MOST or (free and kind == "category"):
        what = "free text" if free else "a category"
        ambiguous = _times([cells.texts[number] for number in rest], _patterns(cells.texts[rest[0]], any_order=True))
        hint = "write dates as 2024-01-31, or" if ambiguous else "give"
        raise DataError(
            f'"{cells.name}" is {what} with {len(rest):,} different values in {rows:,} rows, more than a model can '
            f"learn: {hint} --columns {cells.name}=identifier to fill in fresh ones, or leave the column out"
        )
    once = sum(cells.counts[number] == 1 for number in rest)
    many = once >= 20 and 2 * once >= len(rest)
    said = [f"has {once:,} of its {len(rest):,} values in one row alone, and samples will hold those"] if many else []
    return _levels(cells, apart, kind), said


def _declared_numbers(
    cells: _Cells,
    rest: list[int],
    apart: set[str],
    find_codes: bool,
    known: frozenset[float],
    kind: Kind,
    decimals: int | None,
) -> tuple[Column, Notes]:
    for number in rest:
        read = cells.numbers[number]
        if read is None or (kind == "integer" and read[1] < 0 and read[0] % 10 ** -read[1]):
            what = "integer" if kind == "integer" else "number"
            raise DataError(
                f'{cells.place(number)}: "{cells.name}" is no {kind}: {_quoted(cells, number)} is no {what}; '
                f"declare it with --codes, or choose another kind"
            )
    if not rest:
        raise DataError(f'"{cells.name}" is no {kind}: no row has a value; leave --columns {cells.name} out')
    return _numbers(cells, apart, _codes_of(cells, known) if find_codes else frozenset(), kind, decimals)


def _numbers(
    cells: _Cells, apart: set[str], codes: frozenset[float], kind: Kind, decimals: int | None, *, alike: bool = False
) -> tuple[Column, Notes]:
    """A scale of numbers with levels beside it; what is no number must be among these.

    Args:
        alike: numbers that are written in several ways, such as 1.1 and 1.10, are refused: they may be names.
    """
    on_scale: list[tuple[str, tuple[int, int]]] = []
    for text, number in zip(cells.texts, cells.numbers, strict=True):
        if text in apart:
            continue
        if number is None or (codes and _float(number) in codes):
            apart = apart | {text}
        else:
            on_scale.append((text, number))
    texts = [text for text, _ in on_scale]
    on_texts = set(texts)
    plain = all(exponent == 0 for _, (_, exponent) in on_scale)
    exact = 0 if plain else max(_decimals(number) for _, number in on_scale)
    steps = [_steps(number, exact) for _, number in on_scale]
    notes = []
    scale = _style(texts, steps, exact)
    if scale is None:
        if alike:
            raise DataError(f'"{cells.name}" writes numbers in several ways; write all with as many decimals')
        scale = Numbers(0, 1, (), decimals=exact)
        notes.append("writes numbers in several ways; samples have them in the shortest")
    low, span = min(steps), max(steps) - min(steps)
    if span >= 10**_DIGITS_MOST:
        raise _too_wide(cells, span, texts[steps.index(low)])
    fewer = exact if decimals is None else min(decimals, exact)
    # Numbers that come again are told from others by their last digit: they stay, and have a token each.
    again = len(steps) <= SEEN_LISTED and len(steps) <= REPEATED * sum(
        count for text, count in zip(cells.texts, cells.counts, strict=True) if text in on_texts
    )
    if decimals is None and not plain and span >= POINTS_EXACT and not again:
        fewer = _enough_decimals(steps, exact)
    if fewer < exact:
        tens = 10 ** (exact - fewer)
        steps = [(step + tens // 2) // tens for step in steps]
        scale = replace(scale, decimals=fewer, rounded=True, shown=min(scale.shown, max(fewer, 0)))
        notes.append(f"is rounded to {_resolution(fewer)}, and has more digits than that in the table")
    low, size = min(steps), max(steps) - min(steps) + 1
    if size > _POINTS_MOST:
        raise _too_wide(cells, size, texts[steps.index(low)])
    points = sorted({step - low for step in steps})
    scale = replace(scale, low=low, size=size, seen=tuple(points) if len(points) <= SEEN_LISTED else ())
    return _with_levels(Column(cells.name, kind, numbers=scale), cells, apart), notes


def _too_wide(cells: _Cells, span: int, lowest: str) -> DataError:
    return DataError(
        f'"{cells.name}" spans {len(str(span))} digits, from {shown(lowest)}: more than a scale holds; give '
        f"--columns {cells.name}=identifier, or leave the column out"
    )


def _resolution(decimals: int) -> str:
    return f"{decimals} decimal{'s' * (decimals != 1)}" if decimals >= 0 else f"multiples of 1{'0' * -decimals}"


def _float(number: tuple[int, int]) -> float:
    digits, exponent = number
    return digits / 10**-exponent if -300 < exponent <= 0 else float(f"{digits}e{exponent}")


def _decimals(number: tuple[int, int]) -> int:
    """Those that a number needs: 1 for 1.50."""
    digits, exponent = number
    while exponent < 0 and digits % 10 == 0:
        digits, exponent = digits // 10, exponent + 1 if digits else 0
    return max(-exponent, 0)


def _steps(number: tuple[int, int], decimals: int) -> int:
    """A number in steps of 10^−decimals, of which it is a multiple."""
    digits, exponent = number
    power = exponent + decimals
    return digits * 10**power if power >= 0 else digits // 10**-power


def _style(texts: Sequence[str], steps: Sequence[int], decimals: int) -> Numbers | None:
    """A scale that writes every number as it stands there."""
    _, _, after = texts[0].partition(".")
    for scale in (
        Numbers(0, 1, (), decimals=decimals, style="fixed", shown=len(after)),
        Numbers(0, 1, (), decimals=decimals),
        Numbers(0, 1, (), decimals=decimals, style="float"),
    ):
        if scale.style == "fixed" and len(after) < decimals:
            continue
        if all(scale.text(step) == text for step, text in zip(steps, texts, strict=True)):
            return (
                replace(scale, style="shortest") if not (decimals or scale.shown or scale.style == "float") else scale
            )
    return None


def _enough_decimals(steps: Sequence[int], exact: int) -> int:
    """The fewest decimals that keep 99 % of the distinct numbers apart and the range in a thousand points."""
    numbers = np.array(steps, dtype=float)
    apart = 0.99 * len(np.unique(numbers))
    fewer = exact - max(len(str(max(steps) - min(steps))) - 4, 0)
    while fewer < exact and len(np.unique(np.round(numbers / 10.0 ** (exact - fewer)))) < apart:
        fewer += 1
    return fewer


# Special codes: −9, −8, −7, −99, 999, … Single digits only below 0.
_CODE = re.compile(r"(?:-[1-9]|-?(?:9{2,}|8{2,}|7{2,}|9+[678]))(?:\.0*)?")
_FREQUENT = 5


def _codes_of(cells: _Cells, known: frozenset[float]) -> frozenset[float]:
    """Numbers that mean something else than a number: written like codes, frequent, and apart from the others.

    Below 0, where all other numbers are ≥ 0: at most five that leave a gap to those, or that are far more frequent than
    the lowest and than most of them. Far below or far above: beyond the others by more than their whole range.

    Args:
        known: codes of other columns, which needn't be frequent here.
    """
    candidates = cells.like_codes
    if not candidates:
        return frozenset()
    numbers: dict[float, int] = {}
    for number, count in zip(cells.numbers, cells.counts, strict=True):
        if number is not None:
            numbers[_float(number)] = numbers.get(_float(number), 0) + count
    return frozenset(_negative_codes(numbers, candidates, known) | _far_codes(numbers, candidates))


def _negative_codes(numbers: Mapping[float, int], candidates: set[float], known: frozenset[float]) -> set[float]:
    codes = {value for value in numbers if value < 0}
    rest = sorted(value for value in numbers if value >= 0)
    if not codes or codes - candidates or len(codes) > 5 or len(rest) < 2:
        return set()
    counts = [numbers[value] for value in rest]
    gap = rest[0] - max(codes)
    spacing = sorted(after - before for before, after in pairwise(rest))[len(rest) // 2 - 1]
    apart = gap >= 5 and gap > spacing and all(numbers[code] >= _FREQUENT for code in codes - known)
    usual = max(_FREQUENT, 10 * sorted(counts)[len(counts) // 2], 3 * max(counts[:3]))
    frequent = len(rest) >= 10 and all(numbers[code] >= usual for code in codes)
    return codes if apart or frequent else set()


def _far_codes(numbers: Mapping[float, int], candidates: set[float]) -> set[float]:
    rest = [value for value in numbers if value not in candidates or -10 < value < 0]
    if len(rest) < 2:
        return set()
    low, high = min(rest), max(rest)
    beyond = high - low
    return {
        value
        for value in candidates
        if numbers[value] >= _FREQUENT and abs(value) > 10 and (value > high + beyond or value < low - beyond)
    }


_DATE = re.compile(
    r"([0-9]{1,4})([-/.])[0-9]{1,2}\2([0-9]{1,4})(?:([ T])[0-9]{2}:[0-9]{2}(:[0-9]{2})?(\.[0-9]{1,9})?)?(.*)"
)
_ZONE = re.compile(r"(?:Z|[+-][0-9]{2}:?[0-9]{2})?")


def _patterns(text: str, *, any_order: bool = False) -> list[list[str]]:
    """How a date or date-time may be written: day first, month first or year first, each with and without leading
    zeros; [] where it is none."""
    found = _DATE.fullmatch(text)
    if found is None or not _ZONE.fullmatch(found[7]):
        return []
    first, mark, last, between, seconds, decimals, zone = found.groups()
    time = f"{between}hh:mm{':ss' * bool(seconds)}" if between else ""
    time += "." + "f" * (len(decimals) - 1) if decimals else ""
    if len(first) == 4:
        orders = ["YYYY{0}MM{0}DD"]
    elif len(last) == 4:
        orders = ["DD{0}MM{0}YYYY", "MM{0}DD{0}YYYY"][: 1 if mark == "." or any_order else 2]
    else:
        return []
    dates = [order.format(mark) for order in orders]
    return [[date + time + zone, date.replace("MM", "M").replace("DD", "D") + time + zone] for date in dates]


def _times(texts: Sequence[str], patterns: Sequence[Sequence[str]]) -> Times | None:
    """The scale of moments that are all written in the same way; None where they are not, or in several."""
    found: list[tuple[str, list[int]]] = []
    for ways in patterns:
        for pattern in ways:
            if (moments := _moments(texts, pattern)) is not None:
                found.append((pattern, moments))
                break
    if not found or any(moments != found[0][1] for _, moments in found):
        return None
    pattern, moments = found[0]
    unit = next(unit for unit, size in NANOSECONDS.items() if not any(moment % size for moment in moments))
    points = sorted({moment // NANOSECONDS[unit] for moment in moments})
    low, size = points[0], points[-1] - points[0] + 1
    seen = tuple(point - low for point in points) if len(points) <= SEEN_LISTED else ()
    return Times(low, size, seen, unit, pattern) if size <= _POINTS_MOST else None


def _moments(texts: Sequence[str], pattern: str) -> list[int] | None:
    moments = []
    for text in texts:
        moment = read_moment(text, pattern)
        if moment is None:
            return None
        moments.append(moment)
    return moments


def _declared_times(cells: _Cells, rest: list[int], apart: set[str]) -> Column:
    texts = [cells.texts[number] for number in rest]
    if not rest:
        raise DataError(f'"{cells.name}" is no datetime: no row has a value; leave --columns {cells.name} out')
    ways = _patterns(texts[0]) or [["YYYYMMDD"]]
    times = _times(texts, ways)
    if times is not None:
        return _with_levels(Column(cells.name, "datetime", numbers=times), cells, apart)
    patterns = [pattern for way in ways for pattern in way]
    misfit = max(
        (_first_other(texts, pattern) for pattern in patterns), key=lambda place: len(texts) if place is None else place
    )
    if misfit is None:
        raise DataError(f'"{cells.name}" may hold days or months first; write its dates as 2024-01-31')
    raise DataError(
        f'{cells.place(rest[misfit])}: "{cells.name}" is no datetime: {_quoted(cells, rest[misfit])} is not written as '
        f"{patterns[0]}; write all dates alike, or declare it with --codes"
    )


def _first_other(texts: Sequence[str], pattern: str) -> int | None:
    return next((place for place, text in enumerate(texts) if read_moment(text, pattern) is None), None)


_NAMED_ID = re.compile(r"(?:^|[\W_])(?:id|ids|uid|uuid|guid|key|index|rowid|row)$", re.IGNORECASE)
_CAMEL_ID = re.compile(r"[a-z](?:Id|ID)$")
_SERIAL = re.compile(r"(.*?)([0-9]+)([^0-9]*)", re.DOTALL)
_DIGITS, _LOWER = "0123456789", "abcdefghijklmnopqrstuvwxyz"
_ALPHABETS = (_DIGITS + _LOWER, _DIGITS + _LOWER.upper(), _DIGITS + _LOWER + _LOWER.upper())


def _identifiers(cells: _Cells) -> Serial | Shape | None:
    """Where fresh values of a column come from in which all are distinct; None where that may be chance.

    n numbers drawn from a range of S are all distinct with probability ≈ exp(−n²/2S): below e⁻¹⁰ that's no chance.
    """
    rows = len(cells.of_row)
    named = bool(_NAMED_ID.search(cells.name) or _CAMEL_ID.search(cells.name)) or not cells.name
    if len(cells.texts) < rows or rows < (5 if named else 20):
        return None
    serial = _serial(cells.texts)
    if all(number is not None and number[1] == 0 for number in cells.numbers):
        assert serial
        values = [number[0] for number in cells.numbers if number is not None]
        return serial if named or rows**2 > 20 * (max(values) - min(values) + 1) else None
    if any(number is not None for number in cells.numbers):  # decimals, which are distinct as a rule
        return None
    return serial or _shape(cells.texts)


def _serial(texts: Sequence[str]) -> Serial | None:
    """Numbers with the same text before and after them."""
    split = [_SERIAL.fullmatch(text) for text in texts]
    parts = [found.groups() for found in split if found]
    if len(parts) < len(texts) or len({(before, after) for before, _, after in parts}) > 1:
        return _signed(texts)
    before, _, after = parts[0]
    widths = {len(digits) for _, digits, _ in parts}
    padded = any(digits.startswith("0") and len(digits) > 1 for _, digits, _ in parts)
    if padded and len(widths) > 1 and any(len(digits) > min(widths) and digits[0] == "0" for _, digits, _ in parts):
        return None
    return Serial(before, min(widths) if padded else 0, after, _after([int(digits) for _, digits, _ in parts]))


def _signed(texts: Sequence[str]) -> Serial | None:
    """Integers of which some are below 0."""
    numbers = [read_number(text) for text in texts]
    values = [number[0] for number in numbers if number is not None and number[1] == 0]
    return Serial("", 0, "", max(_after(values), 0)) if len(values) == len(texts) else None


def _after(values: Sequence[int]) -> int:
    """Where integers go on that are in no row: after the last, or in the widest gap where 64 bits end there."""
    last = max(values)
    if last < 2**63 - 2**40 or last >= 2**64:
        return last + 1
    ordered = [-1, *sorted(values)]
    return max(pairwise(ordered), key=lambda pair: pair[1] - pair[0])[0] + 1


def _shape(texts: Sequence[str]) -> Shape | None:
    """Texts of one length in which every place has an alphabet: UUIDs, hashes, keys."""
    if len({len(text) for text in texts}) > 1 or len(texts[0]) < 8 or re.fullmatch(r"[0-9]{2}(:[0-9]{2})+", texts[0]):
        return None
    if not all(any(letter in _DIGITS for letter in text) for text in texts):
        return None
    alphabets = []
    for letters in map(set, zip(*texts, strict=True)):
        if len(letters) > 1 and not any(letters <= set(alphabet) for alphabet in _ALPHABETS):
            return None
        alphabets.append("".join(sorted(letters)))
    shape = Shape(tuple(alphabets), 0, 0)
    end = 1
    for alphabet in alphabets:
        end *= len(alphabet)
    taken = [-1, *sorted(shape.number(text) for text in texts), end]
    before, after = max(pairwise(taken), key=lambda pair: pair[1] - pair[0])
    return replace(shape, first=before + 1, size=after - before - 1) if after - before > 1 else None


def _declared_identifier(cells: _Cells, rest: list[int]) -> tuple[Column, Notes]:
    texts = [cells.texts[number] for number in rest]
    for number in rest:
        read = cells.numbers[number]
        if read is not None and read[1] != 0:
            raise DataError(
                f'{cells.place(number)}: "{cells.name}" is no identifier: {_quoted(cells, number)} is a decimal; '
                f"leave the column out of the table"
            )
    if texts and _patterns(texts[0]) and (_times(texts, _patterns(texts[0])) is not None):
        raise DataError(f'"{cells.name}" is no identifier: it holds dates; leave the column out of the table')
    identifiers = (_serial(texts) or (_shape(texts) if len(texts) > 1 else None)) if texts else None
    if identifiers is None:
        before = f"{cells.name}-"
        taken = [int(text[len(before) :]) for text in texts if re.fullmatch(re.escape(before) + "[0-9]{1,18}", text)]
        identifiers = Serial(before, 0, "", max(taken, default=0) + 1)
    said = []
    if len(rest) < len(cells.texts) or len(rest) < len(cells.of_row):
        said = ["is an identifier by your word; every sampled row gets another one, though rows here share or lack one"]
    return Column(cells.name, "identifier", identifiers=identifiers), said
