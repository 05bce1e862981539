"""A strict reader of JSON Lines: one JSON object a line, plain or gzipped, UTF-8.

What Python's `json` lets pass or explains by a character position alone is refused here by file:line:column, and all
faults of a file are shown together. Lines end at a line feed and nowhere else, so that line numbers are an editor's.
"""

from __future__ import annotations

import difflib
import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from preflab.errors import DataError, StorageError

FAULTS_SHOWN = 20
"""How many faults one error message lists."""


@dataclass(frozen=True, slots=True)
class Row:
    """One JSON object of a file: its physical line (from 1), "file.jsonl:17", and the object."""

    line: int
    origin: str
    fields: dict[str, Any]


@dataclass(frozen=True, slots=True)
class JsonLines:
    """The rows of one file, in file order, and how many lines held white space only."""

    rows: tuple[Row, ...]
    blank_lines: int


class Faults:
    """What is wrong with one file, gathered while it is read and raised as one DataError.

    >>> faults = Faults(Path("pairs.jsonl"))
    >>> faults.add(3, 'expected a value, found "x"', column=17)
    >>> faults.raise_any()
    Traceback (most recent call last):
    preflab.errors.DataError: pairs.jsonl:3:17: expected a value, found "x"
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0
        self._shown: list[tuple[int, str]] = []

    def add(self, line: int, message: str, column: int | None = None) -> None:
        """Note a fault of a physical line; line 0 stands for the file as a whole."""
        self.count += 1
        if len(self._shown) < FAULTS_SHOWN:
            place = ":".join(str(part) for part in (self.path, line or None, column) if part is not None)
            self._shown.append((line, f"{place}: {message}"))

    def raise_any(self) -> None:
        """Raise DataError with one line per fault, in file order, if there is any."""
        if self.count:
            lines = [message for _, message in sorted(self._shown, key=lambda fault: fault[0])]
            if self.count > len(lines):
                lines.append(f"… and {self.count - len(lines)} more faults in {self.path}")
            raise DataError("\n".join(lines))


def read_rows(path: Path, faults: Faults | None = None) -> JsonLines:
    """Read every row of a JSON Lines file, gzipped (known by its first bytes) or plain.

    A byte order mark, CRLF, blank lines and a whole last line without a line feed are fine. Refused: broken JSON, a row
    that is no object, a key given twice, NaN and infinities, invalid UTF-8, a lone surrogate, a cut gzip stream.

    Raises DataError with up to `FAULTS_SHOWN` faults, one a line; with `faults` given, faults of lines are added there
    and left to the caller to raise. A missing, empty or other kind of file is raised at once, one that may not be read
    as StorageError.
    """
    gathered = Faults(path) if faults is None else faults
    rows: list[Row] = []
    blank_lines = 0
    for line, raw in _physical_lines(path, gathered):
        if not raw.strip(b" \t\r\n"):
            blank_lines += 1
            continue
        try:
            rows.append(Row(line, f"{path.name}:{line}", _parse(raw)))
        except _Fault as fault:
            gathered.add(line, fault.message, fault.column)
    if faults is None:
        gathered.raise_any()
    if not rows and not gathered.count:
        raise DataError(f"{path}: 0 rows; name a file with a JSON object on each line")
    return JsonLines(tuple(rows), blank_lines)


class _Fault(Exception):
    def __init__(self, message: str, column: int | None = None) -> None:
        self.message = message
        self.column = column


def _physical_lines(path: Path, faults: Faults) -> Iterator[tuple[int, bytes]]:
    """Numbered lines with their line feeds; a gzip stream that breaks off becomes a fault."""
    if path.is_dir():
        raise DataError(f"{path} is a folder; name a .jsonl or .jsonl.gz file")
    line = 0
    try:
        with open(path, "rb") as file:
            gzipped = file.peek(2)[:2] == b"\x1f\x8b"
            stream: BinaryIO | gzip.GzipFile = gzip.GzipFile(fileobj=file) if gzipped else file
            for line, raw in enumerate(stream, start=1):
                if line == 1:
                    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                        raise DataError(f"{path}: this is UTF-16; save the file as UTF-8")
                    if raw.strip() in (b"[", b"{"):
                        raise DataError(
                            f"{path}: this is one JSON document over many lines; write one object a line (JSON Lines)"
                        )
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                yield line, raw
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(f"{path} isn't there; {_neighbour(path)}") from None
    except EOFError:
        faults.add(line + 1, "the gzip stream ends early, the file looks truncated; fetch or compress it again")
    except (gzip.BadGzipFile, zlib.error) as error:
        faults.add(line + 1, f"the gzip stream is damaged ({error}); fetch or compress it again")
    except OSError as error:
        raise StorageError(f"can't read {path}: {error.strerror or error}; check its permissions") from None


def _neighbour(path: Path) -> str:
    """A hint for a path that leads nowhere."""
    folder = path.parent
    if not folder.is_dir():
        return f"nor is the folder {folder}; check the path"
    close = difflib.get_close_matches(path.name, [file.name for file in folder.iterdir()], n=1)
    return f'did you mean "{folder / close[0]}"?' if close else "check the path"


def _parse(raw: bytes) -> dict[str, Any]:
    """The object on one line; raises _Fault."""
    cut = not raw.endswith(b"\n")  # only the last line can be
    raw = raw.rstrip(b" \t\r\n")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        advice = _truncated(cut and error.reason == "unexpected end of data") or "; save the file as UTF-8"
        message = f"byte {error.start + 1} of this line (0x{raw[error.start]:02x}) is not UTF-8{advice}"
        raise _Fault(message, error.start + 1) from None
    try:
        value = _decoder.decode(text)
    except json.JSONDecodeError as error:
        ends_early = error.pos >= len(text) or error.msg.startswith("Unterminated") or not text.endswith("}")
        seen = f'"{shown(text[error.pos :], 16)}"' if error.pos < len(text) else "the end of the line"
        message = f"expected {_expected(error.msg)}, found {seen}{_truncated(cut and ends_early)}"
        raise _Fault(message, error.pos + 1) from None
    except _NotANumber as error:
        column = next((match.start() + 1 for match in _literals.finditer(text) if match[1] == str(error)), None)
        raise _Fault(f"{error} is not a finite number; write one, or leave the row out", column) from None
    except _RepeatedKey as error:
        raise _Fault(f'the key "{shown(str(error))}" stands twice in one object; keep one') from None
    except RecursionError:
        raise _Fault("nested too deeply; a row is a flat JSON object") from None
    except ValueError:  # an integer beyond Python's limit of digits
        raise _Fault("a number has too many digits; write it as text") from None
    if not isinstance(value, dict):
        raise _Fault(f"a row must be a JSON object, this is {kind(value)}")
    if "\\u" in text:  # the only way in: raw UTF-8 can't hold a lone surrogate
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            half = f"\\u{ord(error.object[error.start]):04x}"
            raise _Fault(f"{half} is half a character (a lone surrogate); remove it or write U+FFFD") from None
    return value


def kind(value: object) -> str:
    """What a JSON value is, in words.

    >>> kind(None), kind(True), kind(0.5), kind([])
    ('null', 'true or false', 'a number', 'a list')
    """
    match value:
        case None:
            return "null"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "an object"


def shown(text: str, length: int = 40) -> str:
    """Text from a file as a message may hold it: cut to `length` characters, control and bidi characters escaped.

    >>> print(shown("pro\\x1bmpt"))
    pro\\x1bmpt
    """
    return repr(text[:length])[1:-1] + ("…" if len(text) > length else "")


def _truncated(cut: bool) -> str:
    return "; the file looks truncated: fetch or write it again" if cut else ""


def _expected(message: str) -> str:
    """`json`'s complaint as what should stand there; unknown wordings of other Pythons are passed on."""
    return next((words for start, words in _wordings.items() if message.startswith(start)), f"JSON ({message})")


_wordings = {
    "Expecting value": "a value",
    "Expecting property name": "a field name in double quotes",
    "Expecting ':'": '":"',
    "Expecting ','": '"," or a closing bracket',
    "Illegal trailing comma": "no comma before the closing bracket",
    "Unterminated string": "a closing quote for the string that starts here",
    "Invalid control character": "an escape such as \\n for the control character in this string",
    "Invalid \\uXXXX": "four hexadecimal digits after \\u",
    "Invalid \\escape": "a JSON escape (a lone backslash is written \\\\)",
    "Extra data": "the end of the line after the object",
}

# Strings are matched first, so that a literal inside one isn't found.
_literals = re.compile(r'"(?:[^"\\]|\\.)*"|(-?Infinity|NaN|-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)')


class _NotANumber(Exception):
    """NaN, an infinity, or a number that overflows to one."""


class _RepeatedKey(Exception):
    """A key given twice in one object."""


def _refuse_literal(literal: str) -> float:
    raise _NotANumber(literal)


def _finite(literal: str) -> float:
    number = float(literal)
    return number if math.isfinite(number) else _refuse_literal(literal)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise _RepeatedKey(next(name for name in names if names.count(name) > 1))
    return fields


_decoder = json.JSONDecoder(object_pairs_hook=_distinct, parse_constant=_refuse_literal, parse_float=_finite)
