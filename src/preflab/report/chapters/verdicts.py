"""The answers."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Finding, Findings, Part, Sheet, Value
from preflab.report.families import Family, families, tuned, unequal_tries, validation_reward
from preflab.report.measures import measure
from preflab.report.study import Arm, Study
from preflab.report.verdicts import Subject
from preflab.report.verdicts import verdicts as all_verdicts
from preflab.report.wording import capital, listing

HEADINGS: dict[Subject, str] = {
    "tuned": "Which method, as tuned, gets more?",
    "equal KL": "More reward at equal KL?",
    "reference": "Better than the reference?",
    "proxy": "Did the proxy mislead?",
    "cost": "What did it cost?",
}


def verdicts(study: Study) -> Chapter | None:
    """Every verdict that the study allows, by question, and what each method was tuned to."""
    found = all_verdicts(study)
    parts: list[Part] = [
        Findings(heading, items)
        for subject, heading in HEADINGS.items()
        if (items := tuple(Finding(v.about, v.answer, v.found) for v in found if v.subject == subject))
    ]
    groups = families(study)
    if tuned(groups):
        parts.append(tuned_sheet(study, groups))
        unfair = unequal_tries(groups)
        if unfair:
            parts.append(Findings("", (Finding("Warning", unfair, True),)))
    return Chapter("verdicts", "Verdicts", tuple(parts)) if parts else None


def tuned_sheet(study: Study, groups: tuple[Family, ...]) -> Sheet:
    """A row for each family that has a chosen variant."""
    columns = (
        Column("Method", "text"),
        Column("Tries", "count"),
        Column("Chosen", "arm"),
        Column("Its settings", "text"),
        Column(f"{capital(study.choosing_name)}, validation"),
        Column(f"{capital(study.reward_name)}, test"),
        Column("KL, nats", digits=1),
    )
    rows = tuple(row(study, one, one.chosen) for one in groups if one.chosen)
    reading = (
        "Of each method the variant that did best on validation prompts, scored once on test prompts that had no part "
        "in the choice; tries: how many variants there were to choose from."
    )
    return Sheet("tuned", columns, rows, reading)


def row(study: Study, one: Family, chosen: Arm) -> tuple[Value, ...]:
    """A family's line; no test score before the test prompts were scored."""
    settings = listing([f"{name} {plain(value)}" for name, value in chosen.overrides.items()]) or "as preset"
    final = chosen.final
    tested = measure(final, f"arm {chosen.name}") if final and final.split == "test" else None
    scores = (tested.reward, tested.kl) if tested else (None, None)
    return (one.title, one.tries, chosen, settings, validation_reward(study, chosen), *scores)


def plain(value: object) -> str:
    """A setting's value as a sentence has it.

    >>> plain(0.05), plain("linear")
    ('0.05', 'linear')
    """
    return f"{value:g}" if isinstance(value, float) else str(value)
