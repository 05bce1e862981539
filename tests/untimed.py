"""A log without its times and memory, which no two runs share."""

from __future__ import annotations

from collections.abc import Iterable

from preflab.runs import JSON


def untimed(lines: Iterable[JSON]) -> list[JSON]:
    """The lines of metrics.jsonl, seconds, speeds and bytes aside."""
    measured = ("_seconds", "_per_second", "_bytes")
    return [{key: value for key, value in line.items() if not key.endswith(measured)} for line in lines]
