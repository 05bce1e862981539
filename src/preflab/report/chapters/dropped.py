"""What was dropped, and what the study warned of."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Finding, Findings, Part, Sheet
from preflab.report.study import Study


def dropped(study: Study) -> Chapter | None:
    """Warnings and counts; None where there are neither."""
    parts: list[Part] = []
    if study.warnings:
        parts.append(Findings("", tuple(Finding("Warning", line, True) for line in study.warnings)))
    if study.counts:
        rows = tuple((name, float(n)) for name, n in study.counts)
        columns = (Column("What", "text"), Column("How often", "count"))
        parts.append(Sheet("dropped", columns, rows, "Nothing is dropped without being counted."))
    return Chapter("warnings", "Warnings and dropped data", tuple(parts)) if parts else None
