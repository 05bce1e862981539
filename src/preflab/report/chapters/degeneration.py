"""The responses in numbers."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Sheet
from preflab.report.measures import summary
from preflab.report.study import Study


def degeneration(study: Study) -> Chapter | None:
    """Length, ends, repetition, and what is left of the language model."""
    rows = summary(study)
    if not rows:
        return None
    columns = (
        Column("Arm", "arm"),
        Column("Length, tokens", digits=1),
        Column("Ended by themselves", "percent"),
        Column("Distinct-2"),
        Column("Repetition"),
        Column("Perplexity, held-out text"),
        Column(f"{study.proxy_name} (proxy)"),
    )
    lines = tuple(
        (
            row.arm,
            row.measures.response_tokens,
            row.measures.end_rate,
            row.measures.distinct_2,
            row.measures.repetition,
            row.measures.perplexity,
            row.measures.proxy_reward,
        )
        for row in rows
    )
    reading = (
        "Distinct-2: distinct word pairs among all word pairs of the responses (falls as prompts are added: compare "
        "within this table only). Repetition: the share of a response’s word 4-grams that it has said before."
    )
    return Chapter("degeneration", "The responses in numbers", (Sheet("degeneration", columns, lines, reading),))
