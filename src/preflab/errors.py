"""What preflab says when it stops: one sentence with the place and the remedy, and an exit code.

| code | meaning                                                      |
|------|--------------------------------------------------------------|
| 2    | bad configuration or arguments (`ConfigError`)               |
| 3    | bad data (`DataError`)                                       |
| 4    | numeric failure: a non-finite loss, gradient or reward, a reward that raised (`NumericError`) |
| 5    | input/output or checkpoint (`StorageError`)                  |
| 130, 143 | interrupted by Ctrl-C or SIGTERM (`Interrupted`)         |
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PreflabError(Exception):
    """An error whose message is meant for the person at the terminal."""

    exit_code = 1


class ConfigError(PreflabError):
    """A setting is unknown, of the wrong type, out of range, or does not fit another setting."""

    exit_code = 2


class DataError(PreflabError):
    """A data file can't be used as it is."""

    exit_code = 3


class NumericError(PreflabError):
    """A loss, gradient, reward or weight is not finite, or a reward raised something (`__cause__`)."""

    exit_code = 4


class StorageError(PreflabError):
    """A file or folder can't be read or written, or a checkpoint is damaged."""

    exit_code = 5


class Interrupted(PreflabError):
    """The run was asked to stop and saved its state first; `signal_number` is 2 (Ctrl-C) or 15 (SIGTERM)."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or the list of names where none is near.

    >>> nearest("choosen", ["prompt", "chosen"])
    'did you mean "chosen"?'
    >>> nearest("x", ["prompt", "chosen"])
    'known: chosen, prompt'
    """
    known = sorted(known)
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.6)
    return f'did you mean "{close[0]}"?' if close else "known: " + ", ".join(known)
