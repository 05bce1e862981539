"""CSV, Parquet and data frames ⇄ frames of text, with what brings types, formats and missing values back.

A frame of text holds every cell as a `str`. That of a CSV file is indexed by its lines, and the index is called "line".
"""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from pydantic import ConfigDict, TypeAdapter, ValidationError

from preflab.data.jsonl import Faults, shown
from preflab.errors import ConfigError, DataError, StorageError
from preflab.runs import write_bytes
from preflab.tables.column import STRICT, read_number

DELIMITERS = ",;\t"
_CSV, _PARQUET = (".csv", ".tsv"), (".parquet", ".pq")
_INSTALL = "pip install 'preflab[parquet]'"

Mark = Literal["None", "NaN", "NA", "NaT"]
_MARKS: dict[Mark, Any] = {"None": None, "NaN": float("nan"), "NA": pd.NA, "NaT": pd.NaT}
Type = Literal["bool", "int", "float", "decimal", "datetime", "date", "str"]


@dataclass(frozen=True)
class SourceColumn:
    """How the cells of a data frame's column become what they were."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str | int
    dtype: str
    missing: tuple[tuple[str, Mark], ...] = ()
    """What stands in the text for cells without a value, and what they are."""
    types: tuple[Type, ...] = ()
    """Of an object column: the types of its cells, in the order in which text is tried to be read as one."""
    categories: tuple[str, ...] = ()
    """Of a categorical column: all of them, in order, as text."""
    category_dtype: str = ""
    category_types: tuple[Type, ...] = ()
    ordered: bool = False


@dataclass(frozen=True)
class Source:
    """What a table was before it was text. `json` and `from_json` store it."""

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    format: Literal["csv", "parquet", "frame"]
    delimiter: str = ","
    line_end: Literal["\n", "\r\n"] = "\n"
    byte_order_mark: bool = False
    spaced: bool = False
    """A blank follows every delimiter."""
    columns: tuple[SourceColumn, ...] = ()
    """None for CSV, where cells are text."""
    arrow: str = ""
    """The schema of a Parquet file, serialised, in base64."""
    notes: tuple[str, ...] = ()
    """What was left out, a sentence each."""

    def json(self) -> dict[str, Any]:
        """As JSON."""
        return _SOURCE.dump_python(self, mode="json")

    @classmethod
    def from_json(cls, value: Any) -> Source:
        """The inverse of `json`.

        Raises:
            StorageError: it is no such record.
        """
        try:
            return _SOURCE.validate_json(json.dumps(value))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"]) or "the whole"
            raise StorageError(
                f"the record of the table's format is damaged ({where}: {first['msg']}); fit again"
            ) from None


_SOURCE = TypeAdapter(Source)


def format_of(path: Path) -> Literal["csv", "parquet"]:
    """By its ending.

    Raises:
        ConfigError: it is that of Parquet, and pyarrow isn't installed.
        DataError: it is that of no table.
    """
    if path.suffix.lower() in _CSV:
        return "csv"
    if path.suffix.lower() in _PARQUET:
        _pyarrow(path)
        return "parquet"
    raise DataError(f'{path}: tables end in .csv, .tsv or .parquet, not in "{path.suffix}"; convert or rename it')


def read_table(path: Path) -> tuple[pd.DataFrame, Source]:
    """A file as a frame of text, and what it was.

    Raises:
        DataError: the file is missing, empty, of another kind, or holds what is no cell of a table.
        StorageError: it may not be read.
    """
    return _read_csv(path) if format_of(path) == "csv" else _read_parquet(path)


def write_table(frame: pd.DataFrame, source: Source, path: Path, *, spreadsheet_safe: bool = False) -> int:
    """Write a frame of text in the format of the path, with the types and marks of its source; whole or not at all.

    Args:
        spreadsheet_safe: put `'` before cells and names in a CSV file that a spreadsheet would run as a formula.

    Returns:
        How many cells and names were altered: 0 unless `spreadsheet_safe`.

    Raises:
        DataError: the path has another ending, or a cell does not fit its column's type.
        StorageError: it can't be written.
    """
    if format_of(path) == "parquet":
        write_bytes(path, _parquet(frame, source))
        return 0
    delimiter = source.delimiter if source.format == "csv" else ","
    if path.suffix.lower() == ".tsv":
        delimiter = "\t"
    header, columns = [str(name) for name in frame.columns], [frame[name].tolist() for name in frame.columns]
    altered = 0
    if spreadsheet_safe:
        safe = [[harmless(cell) for cell in cells] for cells in (header, *columns)]
        altered = sum(now != was for now, was in zip(_flat(safe), _flat([header, *columns]), strict=True))
        header, *columns = safe
    write_bytes(path, _csv_text(header, columns, replace(source, delimiter=delimiter)).encode())
    return altered


def _flat(lists: Iterable[Sequence[str]]) -> Iterable[str]:
    return (cell for cells in lists for cell in cells)


# Zero-width characters hide what follows them; spreadsheets take the wide forms of Asian typography for the plain ones.
_FORMULA = re.compile("[=+\\-@\t\r＝＋－＠\u200b-\u200f\u2060-\u2064\ufeff\u00ad\u180e\u202a-\u202e\u2066-\u2069]")


def harmless(cell: str) -> str:
    """The cell, with `'` before what a spreadsheet would run as a formula; numbers stay.

    >>> harmless("=1+1"), harmless("-5"), harmless("-Infinity")
    ("'=1+1", '-5', "'-Infinity")
    """
    return "'" + cell if _FORMULA.match(cell) and read_number(cell.removeprefix("+")) is None else cell


# What would end a cell, or be taken for another delimiter, a blank after one, or a byte order mark.
_QUOTED = re.compile('[,;\t"\r\n\ufeff]|^ ')


def _csv_text(header: Sequence[str], columns: Sequence[Sequence[str]], source: Source) -> str:
    between = source.delimiter + " " * source.spaced
    lone = len(header) == 1
    written = [[_quoted(cell, lone) for cell in cells] for cells in columns]
    lines = [between.join(_quoted(name, lone) for name in header)]
    lines += [between.join(row) for row in zip(*written, strict=True)]
    return "\ufeff" * source.byte_order_mark + "".join(line + source.line_end for line in lines)


def _quoted(cell: str, lone: bool) -> str:
    """As CSV; an empty cell that is alone in its line would be no line at all."""
    return '"' + cell.replace('"', '""') + '"' if _QUOTED.search(cell) or (lone and not cell) else cell


def _read_csv(path: Path) -> tuple[pd.DataFrame, Source]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; check the path") from None
    except IsADirectoryError:
        raise DataError(f"{path} is a folder; name a .csv or .parquet file") from None
    except OSError as error:
        raise StorageError(f"can't read {path}: {error.strerror or error}; check its permissions") from None
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: this is UTF-16; save the file as UTF-8")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8") from None
    marked, text = text.startswith("\ufeff"), text.removeprefix("\ufeff")
    delimiter = "\t" if path.suffix.lower() == ".tsv" else _delimiter(path, text)
    spaced = _is_spaced(text, delimiter)
    rows = _rows(path, text, delimiter, spaced=spaced)
    _check_names(rows.header, f"{path}:1")
    faults = Faults(path)
    for line, row in rows.lines:
        if len(row) != len(rows.header):
            cells = f"{_counted(len(row), 'cell')} under {_counted(len(rows.header), 'column')}"
            faults.add(line, f"{cells}; quote a cell that holds {_called(delimiter)}")
    faults.raise_any()
    if not rows.lines:
        raise DataError(f"{path}: 0 rows; give a row on each line after the header")
    line_end: Literal["\n", "\r\n"] = "\r\n" if text.partition("\n")[0].endswith("\r") else "\n"
    columns = zip(*(row for _, row in rows.lines), strict=True)
    frame = _text_frame(dict(zip(rows.header, columns, strict=True)))
    frame.index = pd.Index([line for line, _ in rows.lines], name="line")
    notes = (f"{_counted(rows.blank, 'blank line')} skipped",) if rows.blank else ()
    return frame, Source("csv", delimiter, line_end, marked, spaced, notes=notes)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'s' * (count != 1)}"


def _is_spaced(text: str, delimiter: str) -> bool:
    """Whether a blank follows each delimiter of the header and of the row after it."""
    cell = f'(?:"(?:[^"]|"")*"|[^"{delimiter}\\r\\n][^{delimiter}\\r\\n]*|)'
    row = rf"[\r\n]*{cell}(?:{delimiter} {cell})+"
    return re.match(rf"{row}[\r\n]+{row}(?:[\r\n]|\Z)", text) is not None


def _called(delimiter: str) -> str:
    return {",": "a comma", ";": "a semicolon", "\t": "a tab"}[delimiter]


@dataclass(frozen=True)
class _Rows:
    header: list[str]
    lines: list[tuple[int, list[str]]]
    """The other rows, with the number of the line at which each starts."""
    blank: int
    """Lines that hold nothing."""


def _rows(path: Path, text: str, delimiter: str, *, spaced: bool = False) -> _Rows:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=spaced)
    rows, blank, start = [], 0, 1
    try:
        for row in reader:
            if row:
                rows.append((start, row))
            blank += not row
            start = reader.line_num + 1
    except csv.Error as error:
        raise DataError(f"{path}:{start}: no CSV: {error}; check the quotes of this row") from None
    if not rows:
        raise DataError(f"{path}: the file is empty; give a header and a row on each line after it")
    return _Rows(rows[0][1], rows[1:], blank)


def _delimiter(path: Path, text: str) -> str:
    """The one that most rows have as often as the header; the one that the header has most often of these."""
    found = {}
    for delimiter in DELIMITERS:
        try:
            lines = io.StringIO(text.lstrip("\r\n"), newline="")
            header = next(csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True), [])
        except csv.Error:
            continue
        if len(header) > 1:
            found[delimiter] = len(header)
    if len(found) < 2:
        return next(iter(found), ",")

    def fitting(delimiter: str) -> tuple[float, int]:
        try:
            lines = _rows(path, text, delimiter, spaced=True).lines
        except DataError:
            return 0.0, 0
        fit = sum(len(row) == found[delimiter] for _, row in lines)
        return fit / max(len(lines), 1), found[delimiter]

    return max(found, key=fitting)


def _check_names(names: Sequence[str], place: str) -> None:
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise DataError(f'{place}: the column "{shown(repeated)}" stands twice; keep one')


def _text_frame(columns: Mapping[str, Iterable[str]]) -> pd.DataFrame:
    cells = {}
    for name, texts in columns.items():
        listed = list(texts)
        cells[name] = np.empty(len(listed), dtype=object)
        cells[name][:] = listed
    return pd.DataFrame(cells, dtype=object)


def from_frame(frame: pd.DataFrame, *, like: Source | None = None) -> tuple[pd.DataFrame, Source]:
    """A data frame as a frame of text, and what it was.

    Floats are written as Python writes them, but without ".0" where all of a column are whole; moments in ISO format,
    in UTC where they have a time zone. Its index is dropped.

    Args:
        like: a frame that was read before: cells without a value get the same text.

    Raises:
        DataError: it has no rows, a name stands twice, or a column is of a type that is no cell's.
    """
    names = [str(name) for name in frame.columns]
    if isinstance(frame.columns, pd.MultiIndex):
        raise DataError(f"columns have {frame.columns.nlevels} names each; join them into one")
    if not len(frame) or not names:
        raise DataError(f"the data frame has {len(frame)} rows and {len(names)} columns; give one that holds something")
    _check_names(names, "data frame")
    before = (
        {str(column.name): {mark: text for text, mark in column.missing} for column in like.columns} if like else {}
    )
    table, columns = {}, []
    for place, name in enumerate(names):
        original = frame.columns[place]
        table[name], column = _column_text(frame.iloc[:, place], name, before.get(name, {}))
        columns.append(replace(column, name=original if _is_plain(original) else name))
    notes: tuple[str, ...] = ()
    if not (isinstance(frame.index, pd.RangeIndex) and frame.index.start == 0 and frame.index.step == 1):
        named = f' "{frame.index.name}"' if frame.index.name is not None else ""
        notes = (f"the index{named} is dropped; make it a column with reset_index() to keep it",)
    return _text_frame(table), Source("frame", columns=tuple(columns), notes=notes)


def _is_plain(name: Hashable) -> bool:
    return type(name) in (str, int)


def _column_text(cells: pd.Series, name: str, before: Mapping[Mark, str]) -> tuple[list[str], SourceColumn]:
    """The cells of a column as text."""
    dtype = cells.dtype
    absent = cells.isna().to_numpy()
    present = cells[~absent]
    column = SourceColumn(name, str(dtype))
    if isinstance(dtype, pd.CategoricalDtype):
        texts, of = _present_text(pd.Series(dtype.categories), name)
        column = replace(
            column,
            dtype="category",
            categories=tuple(texts),
            category_dtype=of.dtype,
            category_types=of.types,
            ordered=bool(dtype.ordered),
        )
        if len(set(texts)) < len(texts):
            raise DataError(f'"{name}" has categories that look alike; make them of one type')
        written = np.array(texts, dtype=object)[present.cat.codes.to_numpy()].tolist()
    else:
        written, of = _present_text(present, name)
        column = replace(column, types=of.types)
    for text in set(written):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise DataError(
                f'"{name}" holds half a character (a lone surrogate) in "{shown(text)}"; remove it'
            ) from None
    missing = _marks(
        cells[absent], set(written) | set(column.categories), before, name, pd.api.types.is_object_dtype(dtype)
    )
    text_of = {mark: text for text, mark in missing}
    everything = np.empty(len(cells), dtype=object)
    everything[~absent] = np.array([*written, ""], dtype=object)[:-1]
    everything[absent] = np.array([*(text_of[_mark(cell)] for cell in cells[absent]), ""], dtype=object)[:-1]
    return everything.tolist(), replace(column, missing=missing)


def _mark(cell: Any) -> Mark:
    if cell is None:
        return "None"
    return "NA" if cell is pd.NA else "NaT" if cell is pd.NaT else "NaN"


_TEXTS_OF_MISSING = ("", "NaN", "None", "<NA>", "NaT", "NA", "N/A", "null", "nan", "NULL", "Null", "n/a", "#N/A", "?")


def _marks(
    absent: pd.Series, taken: set[str], before: Mapping[Mark, str], name: str, mixed: bool
) -> tuple[tuple[str, Mark], ...]:
    """A text for each way of having no value, which no other cell has: "" for the first."""
    found: list[tuple[str, Mark]] = []
    kinds = sorted({_mark(cell) for cell in (absent if mixed else absent[:1])}, key=list(_MARKS).index)
    for kind in kinds:
        free = [text for text in _TEXTS_OF_MISSING if text not in taken]
        if before.get(kind) in free:
            free.insert(0, before[kind])
        if not free:
            raise DataError(f'"{name}" holds both {kind} and every text that could stand for it; make it a word')
        found.append((free[0], kind))
        taken = taken | {free[0]}
    return tuple(found)


def _present_text(cells: pd.Series, name: str) -> tuple[list[str], SourceColumn]:
    """Cells that have a value as text."""
    dtype = cells.dtype
    column = SourceColumn(name, str(dtype))
    if isinstance(dtype, pd.ArrowDtype):
        pass
    elif pd.api.types.is_bool_dtype(dtype) and not isinstance(dtype, pd.CategoricalDtype):
        return [str(bool(cell)) for cell in cells], column
    elif pd.api.types.is_integer_dtype(dtype):
        return [str(int(cell)) for cell in cells], column
    elif pd.api.types.is_float_dtype(dtype):
        return _float_text(cells), column
    elif pd.api.types.is_datetime64_any_dtype(dtype):
        return _moment_text(cells), column
    elif pd.api.types.is_object_dtype(dtype):
        return _object_text(cells, name)
    elif isinstance(dtype, pd.StringDtype):
        return [str(cell) for cell in cells], column
    advice = (
        'dtype_backend="numpy_nullable" reads others' if isinstance(dtype, pd.ArrowDtype) else "make it numbers or text"
    )
    raise DataError(f'"{name}" is of type {dtype}, which no table here has; {advice}')


def _float_text(cells: pd.Series) -> list[str]:
    values = cells.to_numpy(dtype=cells.dtype.numpy_dtype if hasattr(cells.dtype, "numpy_dtype") else None)
    values = values + values.dtype.type(0)  # −0 is 0
    if np.isfinite(values).all() and (values == np.round(values)).all() and (np.abs(values) < 1e15).all():
        return [str(int(value)) for value in values.tolist()]
    return (
        [repr(value) for value in values.tolist()] if values.dtype == np.float64 else [str(value) for value in values]
    )


def _moment_text(cells: pd.Series) -> list[str]:
    """ISO dates where all are midnight, and else the fewest digits of a second; in UTC where there is a time zone and
    they are no local midnights."""
    zone = ""
    if isinstance(cells.dtype, pd.DatetimeTZDtype):
        local = cells.dt.tz_localize(None)
        if (local == local.dt.normalize()).all():
            cells = local
        else:
            cells, zone = cells.dt.tz_convert("UTC").dt.tz_localize(None), "+00:00"
    values = cells.to_numpy()
    if not zone and (values == values.astype("datetime64[D]")).all():
        return _iso(values, "D")
    unit = next(unit for unit in ("s", "ms", "us", "ns") if (values == values.astype(f"datetime64[{unit}]")).all())
    return [text.replace("T", " ") + zone for text in _iso(values, unit)]


def _iso(moments: np.ndarray, unit: Any) -> list[str]:
    return np.datetime_as_string(moments, unit=unit).tolist()


_TYPES: dict[Type, tuple[type, Callable[[Any], str], Callable[[str], Any]]] = {
    "bool": (bool, str, lambda text: {"True": True, "False": False}[text]),
    "int": (int, str, int),
    "float": (float, repr, float),
    "decimal": (Decimal, str, Decimal),
    "datetime": (datetime, lambda moment: moment.isoformat(sep=" "), datetime.fromisoformat),
    "date": (date, date.isoformat, date.fromisoformat),
    "str": (str, str, str),
}


def _object_text(cells: pd.Series, name: str) -> tuple[list[str], SourceColumn]:
    """Cells that are Python objects. They must be told apart by their text alone."""
    listed = [cell.item() if isinstance(cell, np.generic) else cell for cell in cells.tolist()]
    kinds: dict[type, Type] = {kind: called for called, (kind, _, _) in _TYPES.items()}
    if unknown := next((cell for cell in listed if type(cell) not in kinds), None):
        raise DataError(
            f'"{name}" holds a {type(unknown).__name__}, which is no cell of a table; make it numbers or text'
        )
    present = {kinds[type(cell)] for cell in listed}
    types = tuple(called for called in _TYPES if called in present)
    texts = [_TYPES[kinds[type(cell)]][1](cell) for cell in listed]
    for cell, text in dict(zip(((type(cell), cell) for cell in listed), texts, strict=True)).items():
        again = _read_object(text, types)
        if type(again) is not cell[0] or again != cell[1]:
            both = f"{cell[0].__name__} and {type(again).__name__}"
            raise DataError(f'"{name}" mixes {both}: {shown(text)} may be either; make it one type')
    return texts, SourceColumn(name, "object", types=types)


def _read_object(text: str, types: Sequence[Type]) -> Any:
    for called in types:
        try:
            cell = _TYPES[called][2](text)
        except (ValueError, KeyError, InvalidOperation):
            continue
        if called == "str" or len(types) == 1 or _TYPES[called][1](cell) == text:
            return cell
    raise ValueError(f'"{text}" is no {" or ".join(types)}')


def to_frame(frame: pd.DataFrame, source: Source) -> pd.DataFrame:
    """A data frame with the types and missing values that the source's had. A CSV file's is what `pandas.read_csv`
    makes of it.

    Raises:
        DataError: a cell does not fit its column's type.
    """
    if source.format == "csv":
        names = [str(name) for name in frame.columns]
        text = _csv_text(names, [frame[name].tolist() for name in frame.columns], Source("csv"))
        return pd.read_csv(io.StringIO(text), float_precision="round_trip", skip_blank_lines=False)
    known = {str(column.name): column for column in source.columns}
    columns = [known[str(name)] for name in frame.columns]
    series = [_restored(frame[str(column.name)], column) for column in columns]
    table = pd.concat(series, axis=1) if series else pd.DataFrame()
    table.columns = pd.Index([column.name for column in columns])
    return table


def _restored(cells: pd.Series, column: SourceColumn) -> pd.Series:
    """A column with its type."""
    absent = {text: _MARKS[mark] for text, mark in column.missing}
    place = {text: number for number, text in enumerate(dict.fromkeys(cells.tolist()))}
    of_row, texts = np.array([place[text] for text in cells.tolist()], dtype=np.int64), list(place)
    try:
        if column.dtype == "category":
            return pd.Series(_categorical(of_row, texts, absent, column))
        return _typed(texts, absent, column).take(of_row).reset_index(drop=True)
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        raise DataError(f'"{column.name}" is of type {column.dtype}, and a cell is not: {error}') from None


def _typed(texts: Sequence[str], absent: Mapping[str, Any], column: SourceColumn) -> pd.Series:
    """Texts as a series of the column's type."""
    if column.dtype == "object":
        values = np.empty(len(texts), dtype=object)
        values[:] = [absent[text] if text in absent else _read_object(text, column.types) for text in texts]
        return pd.Series(values, dtype=object)
    lacking = np.array([text in absent for text in texts], dtype=bool)
    present = [text for text in texts if text not in absent]
    values = _values(present, column.dtype)
    if not lacking.any():
        return values
    places = np.full(len(texts), -1)
    places[~lacking] = np.arange(len(present))
    return values.reindex(places)


def _values(texts: Sequence[str], dtype: str) -> pd.Series:
    """Texts that are values as a series of this type, which is none of Python objects."""
    kind = pd.api.types.pandas_dtype(dtype)
    if pd.api.types.is_bool_dtype(kind):
        return pd.Series([{"True": True, "False": False}[text] for text in texts], dtype=kind)
    if pd.api.types.is_integer_dtype(kind):
        return pd.Series(pd.array([int(text) for text in texts], dtype=kind))
    if pd.api.types.is_float_dtype(kind):
        return pd.Series([float(text) for text in texts], dtype=kind)
    if isinstance(kind, pd.DatetimeTZDtype):
        utc = any(text.endswith("+00:00") for text in texts)
        moments = pd.Series(np.array([text.removesuffix("+00:00") for text in texts], dtype=f"datetime64[{kind.unit}]"))
        if utc:
            return moments.dt.tz_localize("UTC").dt.tz_convert(kind.tz)
        earlier = np.ones(len(texts), dtype=bool)
        return moments.dt.tz_localize(kind.tz, ambiguous=earlier, nonexistent="shift_forward").astype(kind)
    if pd.api.types.is_datetime64_any_dtype(kind):
        return pd.Series(np.array(texts, dtype=kind))
    return pd.Series(list(texts), dtype=kind)


def _categorical(
    of_row: np.ndarray, texts: Sequence[str], absent: Mapping[str, Any], column: SourceColumn
) -> pd.Categorical:
    """Texts that are no category yet, such as fresh identifiers, are added at the end."""
    listed = list(dict.fromkeys([*column.categories, *(text for text in texts if text not in absent)]))
    place = {text: number for number, text in enumerate(listed)} | dict.fromkeys(absent, -1)
    values = _typed(listed, {}, SourceColumn(column.name, column.category_dtype, types=column.category_types))
    codes = np.array([place[text] for text in texts], dtype=np.int64)[of_row]
    return pd.Categorical.from_codes(codes, categories=pd.Index(values), ordered=column.ordered)


def _read_parquet(path: Path) -> tuple[pd.DataFrame, Source]:
    pyarrow, parquet = _pyarrow(path)
    try:
        table = parquet.read_table(path)
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; check the path") from None
    except pyarrow.ArrowException as error:
        raise DataError(f"{path}: no Parquet file: {shown(str(error), 80)}; write it again") from None
    except OSError as error:
        raise StorageError(f"can't read {path}: {error.strerror or error}; check its permissions") from None
    _check_names(table.column_names, str(path))
    metadata = dict(table.schema.metadata or {})
    notes: tuple[str, ...] = ()
    if b"pandas" in metadata:
        described = json.loads(metadata[b"pandas"])
        index = [name for name in described["index_columns"] if isinstance(name, str) and name in table.column_names]
        if index:
            table = table.drop_columns(index)
            notes = ("the index is dropped; make it a column with reset_index() to keep it",)
        described["index_columns"] = []
        described["columns"] = [part for part in described["columns"] if part["field_name"] not in index]
        metadata[b"pandas"] = json.dumps(described).encode()
        table = table.replace_schema_metadata(metadata)
    if not table.num_rows or not table.num_columns:
        raise DataError(
            f"{path}: {table.num_rows} rows in {table.num_columns} columns; give a table that holds something"
        )
    frame, source = from_frame(table.to_pandas(integer_object_nulls=True, ignore_metadata=True))
    arrow = base64.b64encode(table.schema.serialize().to_pybytes()).decode()
    return frame, replace(source, format="parquet", arrow=arrow, notes=notes)


def _parquet(frame: pd.DataFrame, source: Source) -> bytes:
    pyarrow, parquet = _pyarrow(Path("table.parquet"))
    typed = to_frame(frame, source)
    typed.columns = typed.columns.map(str)
    schema = pyarrow.ipc.read_schema(pyarrow.py_buffer(base64.b64decode(source.arrow))) if source.arrow else None
    try:
        if schema is not None:
            fields = [schema.field(name) for name in typed.columns]
            table = pyarrow.Table.from_pandas(typed, pyarrow.schema(fields), preserve_index=False)
            table = table.replace_schema_metadata(schema.metadata)
        else:
            table = pyarrow.Table.from_pandas(typed, preserve_index=False)
    except (pyarrow.ArrowException, TypeError, ValueError) as error:
        raise DataError(f"this table can't be written as Parquet: {shown(str(error), 120)}; write .csv") from None
    buffer = io.BytesIO()
    parquet.write_table(table, buffer)
    return buffer.getvalue()


def _pyarrow(path: Path) -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.ipc
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(f"{path}: reading and writing Parquet needs pyarrow: {_INSTALL}") from None
    return pyarrow, pyarrow.parquet
