"""JSON files as the report reads them: field by field, and a wrong one named."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np

from preflab.errors import NumericError, StorageError
from preflab.report.statistics import Estimate, Matrix
from preflab.runs import JSON


class Fields:
    """A JSON object from a file, read field by field; a missing or mistyped field is named with its file."""

    def __init__(self, value: JSON, path: Path) -> None:
        self.path = path
        self.value: Mapping[str, Any] = value
        if not isinstance(value, dict):
            raise StorageError(f"{path}: expected a JSON object; delete it and run the command again")

    def get(self, name: str, kind: type | tuple[type, ...], described: str) -> Any:
        value = self.value.get(name)
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise StorageError(f'{self.path}: "{name}" should be {described}; run the command that wrote it again')
        return value

    def text(self, name: str) -> str:
        return str(self.get(name, str, "a text"))

    def whole(self, name: str) -> int:
        return int(self.get(name, int, "a whole number"))

    def number(self, name: str) -> float:
        return float(self.get(name, (int, float), "a number"))

    def flag(self, name: str) -> bool:
        return bool(self.get(name, bool, "true or false"))

    def mapping(self, name: str) -> Mapping[str, Any]:
        value: Mapping[str, Any] = self.get(name, dict, "an object")
        return value

    def listing(self, name: str) -> list[Any]:
        value: list[Any] = self.get(name, list, "a list")
        return value

    def inner(self, name: str) -> Fields:
        return Fields(self.mapping(name), self.path)

    def items(self, name: str) -> list[Fields]:
        return [Fields(item, self.path) for item in self.listing(name)]

    def estimate(self, name: str) -> Estimate:
        part = self.inner(name)
        return Estimate(part.number("mean"), part.number("low"), part.number("high"))

    def finite(self, name: str, what: str) -> Matrix:
        """A list of numbers as a vector; NumericError names the first that is not finite."""
        try:
            values = np.array(self.listing(name), dtype=np.float64)
        except (TypeError, ValueError):
            raise StorageError(f'{self.path}: "{name}" should be a list of numbers; evaluate again') from None
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise NumericError(f"{what} is not finite (row {bad[0]}); score that checkpoint again")
        return values


def is_finite(value: object) -> TypeGuard[float]:
    """Whether a logged value can be drawn."""
    return isinstance(value, int | float) and bool(np.isfinite(value))
