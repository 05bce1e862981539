"""The table that a reader looks for first."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Sheet
from preflab.report.measures import Row, summary
from preflab.report.study import Study
from preflab.report.verdicts import mean_cost
from preflab.report.wording import capital, count, listing, steps


def results(study: Study) -> Chapter | None:
    """A row for each arm at its chosen checkpoint; None while no arm has one."""
    rows = summary(study)
    if not rows:
        return None
    columns = (
        Column("Arm", "arm"),
        Column("Step", "text"),
        Column(capital(study.reward_name), drawn=True),
        Column("KL, nats"),
        Column("Wins against reference", "percent"),
        Column("Time", "seconds"),
    )
    lines = tuple(
        (
            row.arm,
            steps(row.steps),
            row.measures.reward,
            row.measures.kl.mean if row.arm.kl_is_bound else row.measures.kl,
            None if row.arm.name == study.reference_name else row.measures.win_rate,
            mean_cost(row.arm, "wall_seconds"),
        )
        for row in rows
    )
    return Chapter("results", "Results", (Sheet("results", columns, lines, reading(study, rows)),))


def reading(study: Study, rows: tuple[Row, ...]) -> str:
    """What the rows are of."""
    early = [row.arm.title for row in rows if row.split != "test"]
    not_final = f"Of validation prompts, so not final: {listing(early)}. " if early else ""
    bounds = [row.arm.title for row in rows if row.arm.kl_is_bound]
    bounded = f" The KL of {listing(bounds)} is an upper bound, not measured." if bounds else ""
    name = capital(study.reward_name)
    return (
        f"{not_final}Each arm at {study.chosen_as}, scored once on {count(study.prompts.get('test'))} test prompts; "
        f"95 % intervals in brackets.{bounded} {name}: {study.reward_explanation}"
    )
