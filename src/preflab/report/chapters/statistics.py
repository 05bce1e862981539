"""How far the verdicts can be trusted: how many comparisons, over how many seeds, at which budget."""

from __future__ import annotations

from collections.abc import Sequence

from preflab.report.chapter import Chapter, Column, Finding, Findings, Part, Prose, Sheet, Value
from preflab.report.families import families, unequal_tries
from preflab.report.statistics import mean_squares
from preflab.report.study import Arm, Run, Study
from preflab.report.verdicts import Verdict, correction
from preflab.report.verdicts import verdicts as all_verdicts
from preflab.report.wording import count, duration

MEASURES = {
    "steps": "optimiser steps",
    "examples": "examples trained on",
    "labels": "preference labels",
    "reward-calls": "calls of a reward",
    "tokens": "generated and trained tokens",
    "flops": "FLOPs",
    "seconds": "seconds of training",
}
METHOD = (
    "Arms are compared prompt by prompt, on the seeds that both have. A difference over several seeds varies with the "
    "seed and with the prompt: its interval is of crossed random effects, and allows for how little a few seeds say of "
    "their own spread. "
    "Over one seed it is a BCa bootstrap over prompts, which says nothing of other seeds. A p-value is an interval "
    "read backwards. The other chapters describe: their intervals are at 95 % each, and a difference that they show is "
    "no verdict. How often the intervals hold the truth was simulated: docs/statistics.md has the figures."
)


def statistics(study: Study) -> Chapter | None:
    """The chapter; None where nothing was compared."""
    found = [verdict for verdict in all_verdicts(study) if verdict.p is not None]
    if not found:
        return None
    parts: list[Part] = []
    items = (
        ("How many comparisons", correction(found)),
        ("How many seeds", seeds_said(study)),
        ("Tries", unequal_tries(families(study))),
        ("Budget", budget_said(study)),
    )
    parts.append(Findings("", tuple(Finding(about, said, True) for about, said in items if said)))
    parts.append(comparisons(found))
    ranges = spent(study)
    if ranges:
        parts.append(ranges)
    parts.append(Prose(METHOD, quiet=True))
    return Chapter("statistics", "How sure is that?", tuple(parts))


def seeds_said(study: Study) -> str:
    """What the number of seeds allows."""
    match len(study.seeds):
        case 1:
            return "One: the intervals speak for other prompts, not for other training runs. 3 seeds would."
        case 2:
            return "Two: where training luck matters intervals are wide and few differences count; 3 do better."
        case seeds:
            return f"{seeds}: the intervals speak for other seeds and other prompts."


def comparisons(found: Sequence[Verdict]) -> Sheet:
    """A row for each comparison: what it rests on and what it came to."""
    columns = (
        Column("Comparison", "text"),
        Column("Difference"),
        Column("p, alone", digits=4),
        Column("p, corrected", digits=4),
        Column("Corrected for", "count"),
        Column("Seeds' share of the variance", "percent"),
        Column("Decided", "text"),
        Column("What would settle it", "text"),
    )
    rows = tuple(
        (
            *(v.question, v.difference, v.p, v.corrected, v.among),
            *(seeds_share(v), "yes" if v.found else "no", v.remedy or "–"),
        )
        for v in sorted(found, key=lambda v: v.corrected or 0.0)
    )
    reading = (
        "Each interval is that of its own difference; decided is what stays below 5 % after Holm's correction for all "
        "comparisons of its kind: with the reference, between methods, about the proxy. The seeds' share of a mean's "
        "variance says whether more seeds or more prompts would narrow it."
    )
    return Sheet("comparisons", columns, rows, reading)


def seeds_share(verdict: Verdict) -> float | None:
    """How much of the variance of a mean difference comes from seeds; None where one seed can't say."""
    if verdict.values is None or len(verdict.values) < 2:
        return None
    squares = mean_squares(verdict.values)
    return max(squares.seed - squares.error, 0.0) / squares.total if squares.total > 0 else None


def budget_said(study: Study) -> str:
    """What was equal for all arms."""
    if study.budget is None:
        return "None: arms ended by their own settings, not at equal cost. What each spent is in the chapter on cost."
    name = MEASURES.get(study.budget.measure, study.budget.measure)
    return f"Every arm was given {count(study.budget.amount)} {name}. What else it spent is below."


def spent(study: Study) -> Sheet | None:
    """What the arms spent in every measure, from the least to the most, where a budget made them equal in one."""
    if study.budget is None:
        return None
    rows: list[tuple[Value, ...]] = []
    for measure, name in MEASURES.items():
        by_arm = [(mean, arm) for arm in study.trained if (mean := mean_spent(arm, measure)) is not None]
        if not by_arm:
            continue
        (least, frugal), (most, lavish) = (pick(by_arm, key=lambda pair: pair[0]) for pick in (min, max))
        write = duration if measure == "seconds" else count
        mark = "by design" if measure == study.budget.measure else ""
        rows.append((name, write(least), frugal, write(most), lavish, mark))
    if not rows:
        return None
    columns = (
        Column("Measure", "text"),
        Column("Least", "text"),
        Column("Spent by", "arm"),
        Column("Most", "text"),
        Column("Most by", "arm"),
        Column("Equal", "text"),
    )
    return Sheet("budget", columns, tuple(rows), "What arms spent, a mean over seeds: equal in one measure only.")


def mean_spent(arm: Arm, measure: str) -> float | None:
    """What an arm's finished runs came to in a measure, the mean over seeds."""
    known = [amount for run in arm.runs if (amount := run_spent(run, measure)) is not None]
    return sum(known) / len(known) if known else None


def run_spent(run: Run, measure: str) -> float | None:
    """What a run came to in a measure; None where it is not known."""
    of = {
        "reward-calls": (run.cost["reward_calls"], run.cost["gold_calls"]),
        "tokens": (run.cost["generated_tokens"], run.cost["trained_tokens"]),
        "flops": (run.cost["flops"],),
        "seconds": (run.cost["wall_seconds"],),
    }
    known = [amount for amount in of.get(measure, (run.counts.get(measure),)) if amount is not None]
    return sum(known) if known else None
