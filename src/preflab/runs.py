"""The run folder: the only thing that training and reporting share.

    config.yaml  environment.json  metrics.jsonl  samples.jsonl  evaluation.json  checkpoints/step-N/  model/

Small files appear whole or not at all (temporary file, fsync, rename); `metrics.jsonl` and `samples.jsonl` grow by
whole lines, and a line that a kill cut short is removed when the run goes on. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from preflab import __version__
from preflab.errors import StorageError

JSON = Any  # what json.loads returns
LOCK = ".lock"
_HELD: dict[Path, IO[str]] = {}


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):  # where there is no folder, there is no temporary file either
            temporary.unlink()
        raise StorageError(
            f"can't write {path}: {error.strerror or error}; free space or choose another --out"
        ) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: JSON) -> None:
    """Write JSON whole or not at all; NaN and infinity are refused, since they aren't JSON."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> JSON:
    """Read a JSON file that preflab wrote."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise StorageError(f"{path} is missing; run the command that makes it again") from None
    except (OSError, ValueError) as error:
        raise StorageError(f"{path} can't be read ({error}); delete it and run the command again") from None


def read_lines(path: Path) -> list[JSON]:
    """The whole lines of a .jsonl file that preflab wrote; [] where there is none."""
    if not path.exists():
        return []
    whole, _, _ = path.read_bytes().rpartition(b"\n")  # a cut may split a character; text would also split at U+2028
    try:
        return [json.loads(line) for line in whole.split(b"\n") if line]
    except ValueError as error:
        raise StorageError(f"{path} is damaged ({error}); delete its folder and run the command again") from None


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder that appears whole or not at all: fill the yielded one, and it is renamed to `path` at the end.

    A folder already at `path` is replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        for debris in path.parent.glob(f".{path.name}.*"):  # of a process that was killed while it wrote
            shutil.rmtree(debris, ignore_errors=True)
        temporary.mkdir(parents=True)
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb") as handle:
                    os.fsync(handle.fileno())
        if path.exists():
            # Two renames, so that a kill in between leaves a whole folder under one of the two names.
            retired = path.with_name(f".{path.name}.{os.getpid()}.old")
            os.replace(path, retired)
            os.replace(temporary, path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise StorageError(
            f"can't write {path}: {error.strerror or error}; free space or choose another --out"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256(path: Path) -> str:
    """The SHA-256 of a file, as hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(value: JSON) -> str:
    """A short content key of any JSON value, the same for the same content."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def environment() -> dict[str, JSON]:
    """What made a run: versions, machine, command line. No user name, host name or environment variable."""
    packages = ("torch", "transformers", "tokenizers", "numpy", "scikit-learn")
    return {
        "preflab": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "cpu_count": os.cpu_count(),
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "versions": {name: metadata.version(name) for name in packages},
    }


@dataclass(frozen=True)
class RunFolder:
    """One training run on disk."""

    path: Path

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.path / "evaluation.json"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def model(self) -> Path:
        return self.path / "model"

    @classmethod
    def open(cls, path: Path, config: str, *, data: Path | None = None, ours: bool = False) -> RunFolder:
        """Create the folder, or go on with it where it holds the same configuration.

        Args:
            config: the resolved configuration, as YAML.
            data: the file that the run learns from.
            ours: the folder belongs to a study that was claimed as a whole, so nothing needs checking.

        Raises:
            StorageError: the folder holds something else or can't be written. Nothing is ever overwritten.
        """
        run = cls(path)
        if ours:
            write_text(run.config, config)
            _record_environment(path, None)
        else:
            claim(path, run.config.name, config, data=data)
        return run

    def rewind(self, step: int) -> None:
        """Forget metrics and samples of steps after `step`: a resumed run writes them again."""
        for path in (self.metrics, self.samples):
            if path.exists():
                kept = [line for line in read_lines(path) if line["step"] <= step]
                write_text(path, "".join(to_line(line) for line in kept))

    def log(self, line: Mapping[str, JSON]) -> None:
        """Append one line to metrics.jsonl."""
        append_lines(self.metrics, [line])


def claim(
    folder: Path,
    name: str,
    config: str,
    *,
    data: Path | None = None,
    refuse: Callable[[], None] | None = None,
) -> None:
    """Make `folder` ours: empty or new, or holding the same configuration under `name`, made from the same data.

    Args:
        refuse: as `refuse_other` takes it.
    """
    refuse_other(folder, name, config, refuse=refuse)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"can't use {folder}: {error.strerror or error}; choose another --out") from None
    _lock(folder)
    write_text(folder / name, config)
    _record_environment(folder, data)


def refuse_other(folder: Path, name: str, config: str, *, refuse: Callable[[], None] | None = None) -> None:
    """Refuse a folder that is not empty and holds something else than a run of this configuration; touches nothing.

    Args:
        refuse: called where the folder holds another configuration; raises where that can't become this one. None: it
            never can.
    """
    recorded = folder / name
    try:
        if folder.exists() and not folder.is_dir():
            raise StorageError(f"{folder} is a file; name a folder with --out")
        if recorded.exists():
            before = recorded.read_text(encoding="utf-8", errors="replace")
            if before != config and refuse is not None:
                refuse()
            elif before != config:
                raise StorageError(
                    f"{folder} holds a run with other settings ({first_difference(before, config)}); "
                    "choose another --out, or delete that folder"
                )
        # `.config.yaml.4711.tmp` and the lock are ours: what a start left that was killed right here.
        elif folder.exists() and any(not path.name.startswith((f".{name}.", LOCK)) for path in folder.iterdir()):
            raise StorageError(f"{folder} is not empty and holds no preflab run; choose another --out")
    except OSError as error:
        raise StorageError(f"can't use {folder}: {error.strerror or error}; choose another --out") from None


def _lock(folder: Path) -> None:
    """Keep other processes out of the folder until this one ends; the system lifts the lock, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: no lock
        return
    _HELD[folder] = open(folder / LOCK, "w")  # noqa: SIM115  (open as long as the process lives)
    try:
        fcntl.lockf(_HELD[folder], fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise StorageError(f"another process is at work in {folder}; wait for it, or choose another --out") from None


def _record_environment(folder: Path, data: Path | None) -> None:
    """Write environment.json at the first start; at later ones, refuse data that are no longer those it names."""
    recorded = folder / "environment.json"
    content = sha256(data) if data is not None and data.exists() else None
    if not recorded.exists():
        write_json(recorded, environment() | ({"data_sha256": content} if content else {}))
    elif content and read_json(recorded).get("data_sha256", content) != content:
        raise StorageError(
            f"{data} is not what it was when {folder} was started; choose another --out, or delete that folder"
        )


def first_difference(old: str, new: str) -> str:
    """The first line that differs between two configurations, for a message."""
    before, after = old.splitlines(), new.splitlines()
    for was, now in zip(before, after, strict=False):
        if was != now:
            return f"{was.strip()!r} there, {now.strip()!r} now"
    return f"{len(before)} lines there, {len(after)} now"


def to_line(value: Mapping[str, JSON]) -> str:
    """One JSON line."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"


def append_lines(path: Path, lines: Iterable[Mapping[str, JSON]]) -> None:
    """Append whole lines in one write."""
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("".join(to_line(line) for line in lines))
    except OSError as error:
        raise StorageError(
            f"can't write {path}: {error.strerror or error}; free space or choose another --out"
        ) from None
