"""`preflab compare … --dry-run`: what the study would do, how long it would take, and what it would need."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preflab.cli.plan import mib
from preflab.studies.plan_study import Part, StudyPlan


def show_study_plan(plan: StudyPlan, console: Console) -> None:
    """Print stages, arms, and the sums."""
    console.print(_table("shared", (*plan.stages, *plan.references)))
    console.print(_table("arm", plan.arms))
    if plan.last:
        console.print(_table("at the end", plan.last))
    at_once = "one after another" if plan.jobs == 1 else f"{plan.jobs} at a time"
    rows = [
        (
            "time",
            f"about {_clock(plan.seconds)}: shared {_clock(plan.shared_seconds)}, arms {_clock(plan.arms_seconds)}"
            + "".join(f", {part.name} {_clock(part.seconds)}" for part in plan.last),
        ),
        ("", f"{at_once}; from a few real steps of each kind, on this machine as busy as it is"),
        *_budget(plan),
        ("memory", f"about {mib(plan.memory_bytes)} at the peak, of all processes"),
        ("disk", f"about {mib(plan.disk_bytes)} in the study folder"),
    ]
    for title, said in rows:
        console.print(f"{title:<9}{said}", highlight=False)


def _budget(plan: StudyPlan) -> list[tuple[str, str]]:
    amount = plan.budget.amount
    if amount is None:
        return []
    return [
        ("budget", f"arms end when they have cost {amount:,.10g} {plan.budget.measure}; steps and time are the most")
    ]


def _table(title: str, parts: Sequence[Part]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column(title, overflow="fold", min_width=20)
    table.add_column("state", no_wrap=True)
    for name in ("steps", "time left", "memory", "disk"):
        table.add_column(name, justify="right", no_wrap=True)
    for part in parts:
        table.add_row(
            escape(part.name),
            part.state,
            "" if part.steps is None else f"{part.steps:,}",
            "" if part.state == "made" else _clock(part.seconds),
            mib(part.memory_bytes) if part.memory_bytes else "",
            mib(part.disk_bytes),
        )
    return table


def _clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
