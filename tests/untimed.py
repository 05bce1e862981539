"""A log without its times, which no two runs share."""

from __future__ import annotations

from collections.abc import Iterable

from preflab.runs import JSON


def untimed(lines: Iterable[JSON]) -> list[JSON]:
    """The lines of metrics.jsonl, seconds and speeds aside."""
    return [
        {key: value for key, value in line.items() if not key.endswith(("_seconds", "_per_second"))} for line in lines
    ]
