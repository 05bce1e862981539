"""A strict reader of comma-separated values with a header, for files that other tools write."""

from __future__ import annotations

import csv
from pathlib import Path

from preflab.data.jsonl import Faults, JsonLines, Row
from preflab.errors import DataError, StorageError


def read_csv(path: Path, faults: Faults) -> JsonLines:
    """The rows of a file, each value as text, by the names in its first line.

    A byte order mark, CRLF, quoted line breaks and blank lines are fine. A row with more or fewer values than the
    header is a fault of its last line.

    Raises:
        DataError: the file is missing, empty, not UTF-8, no CSV, or names a column twice.
        StorageError: it may not be read.
    """
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            lines = [(reader.line_num, values) for values in reader]
    except FileNotFoundError:
        raise DataError(f"{path} isn't there; check the path") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start + 1} is not UTF-8; save the file as UTF-8") from None
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: no CSV: {error}") from None
    except OSError as error:
        raise StorageError(f"can't read {path}: {error.strerror or error}; check its permissions") from None
    if repeated := [name for name in header if header.count(name) > 1]:
        raise DataError(f'{path}:1: the column "{repeated[0]}" stands twice; keep one')
    rows = []
    for line, values in lines:
        if values and len(values) != len(header):
            faults.add(line, f"{len(values)} values under {len(header)} columns; quote a value that holds a comma")
        elif values:
            rows.append(Row(line, f"{path.name}:{line}", dict(zip(header, values, strict=True))))
    if not rows and not faults.count:
        raise DataError(f"{path}: 0 rows; give a header and a row on each line after it")
    return JsonLines(tuple(rows), sum(not values for _, values in lines))
