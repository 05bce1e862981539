"""What the arms cost."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Column, Form, Part, Prose, Sheet
from preflab.report.study import Study
from preflab.report.verdicts import mean_cost
from preflab.report.wording import duration

COLUMNS: dict[str, tuple[str, Form]] = {
    "wall_seconds": ("Time", "seconds"),
    "trained_tokens": ("Trained tokens", "count"),
    "generated_tokens": ("Generated tokens", "count"),
    "reward_calls": ("Reward calls", "count"),
    "gold_calls": ("Gold calls", "count"),
    "peak_memory_bytes": ("Peak memory", "bytes"),
    "flops": ("FLOPs", "count"),
}


def cost(study: Study) -> Chapter | None:
    """A row for each arm, and what all arms share."""
    columns = (Column("Arm", "arm"), *(Column(title, form) for title, form in COLUMNS.values()))
    rows = tuple((arm, *(mean_cost(arm, name) for name in COLUMNS)) for arm in study.arms)
    parts: list[Part] = [Sheet("cost", columns, rows, "Per run, the mean over seeds (peak memory: the largest).")]
    if study.stages:
        together = duration(sum(seconds for _, seconds in study.stages))
        each = ", ".join(f"{name} {duration(seconds)}" for name, seconds in study.stages)
        parts.append(
            Prose(
                f"Made once for all arms, {together} together, and counted above only where the description of an arm "
                f"says so: {each}.",
                quiet=True,
            )
        )
    return Chapter("cost", "Cost", tuple(parts))
