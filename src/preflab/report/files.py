"""The files that a report lies in, and what becomes of those of an earlier one."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from preflab.report.svg import Picture
from preflab.runs import read_json, write_bytes, write_json

MADE = ".report.json"
"""What the last report wrote into figures/ and tables/, with its SHA-256: only that may a later one remove."""
OURS = re.compile(r"figures/[\w-]+\.(svg|png|csv)|tables/[\w-]+\.csv", re.ASCII)


def picture_files(pictures: Iterable[Picture]) -> dict[str, bytes]:
    """The files of some pictures, by path inside the report's folder."""
    files = {}
    for picture in pictures:
        files[f"figures/{picture.name}.svg"] = picture.file.encode()
        if (png := picture.png) is not None:
            files[f"figures/{picture.name}.png"] = png
    return files


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write the files of figures/ and tables/, and remove those of the report before that are made no more.

    A file that someone has changed since, or put there, stays.

    Raises:
        StorageError: `folder` can't be read or written.
        ValueError: a name is not one that a report gives, such as `figures/frontier.svg`.
    """
    odd = next((name for name in files if not OURS.fullmatch(name)), None)
    if odd is not None:
        raise ValueError(f"{odd!r} is no file of a report; name figures and tables by letters, digits and hyphens")
    before = folder / MADE
    made = read_json(before) if before.is_file() else {}
    for name, data in files.items():
        write_bytes(folder / name, data)
    for name, digest in made.items() if isinstance(made, dict) else ():
        path = folder / name
        if name not in files and OURS.fullmatch(name) and path.is_file() and sha256(path.read_bytes()) == digest:
            path.unlink()
    write_json(before, {name: sha256(data) for name, data in files.items()})


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, as hexadecimal."""
    return hashlib.sha256(data).hexdigest()
