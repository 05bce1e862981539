"""The answers."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Finding, Findings
from preflab.report.study import Study
from preflab.report.verdicts import Subject
from preflab.report.verdicts import verdicts as all_verdicts

HEADINGS: dict[Subject, str] = {
    "equal KL": "More reward at equal KL?",
    "reference": "Better than the reference?",
    "proxy": "Did the proxy mislead?",
    "cost": "What did it cost?",
}


def verdicts(study: Study) -> Chapter | None:
    """Every verdict that the study allows, by question."""
    found = all_verdicts(study)
    groups = tuple(
        Findings(heading, tuple(Finding(v.about, v.answer, v.found) for v in found if v.subject == subject))
        for subject, heading in HEADINGS.items()
    )
    asked = tuple(group for group in groups if group.items)
    return Chapter("verdicts", "Verdicts", asked) if asked else None
