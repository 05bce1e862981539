"""Numbers about the study that no arm owns."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Sheet
from preflab.report.statistics import Estimate
from preflab.report.study import Fact, Study


def facts(study: Study) -> Chapter | None:
    """A row for each fact."""
    if not study.facts:
        return None
    columns = (Column("Fact", "text"), Column("Value", "figure"), Column("Note", "text"))
    rows = tuple((fact.name, value(fact), fact.note) for fact in study.facts)
    reading = "95 % intervals in brackets, where a fact has one."
    return Chapter("facts", "Facts about this study", (Sheet("facts", columns, rows, reading),))


def value(fact: Fact) -> float | Estimate:
    """A fact's value, with its interval where it has one."""
    if fact.low is None or fact.high is None:
        return fact.value
    return Estimate(fact.value, fact.low, fact.high)
