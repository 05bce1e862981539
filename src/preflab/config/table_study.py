"""What `preflab compare table` is told."""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Gt, Lt

from preflab.config.alignment import METHODS, Alignment
from preflab.config.row_model import RowModel
from preflab.config.tables import TableFit
from preflab.config.training import Positive, Seed
from preflab.errors import nearest

REFERENCE, RESAMPLED = "reference", "resampled"
"""Arms that train nothing."""
LABELS = {
    REFERENCE: "Reference",
    RESAMPLED: "Resampled",
    "ppo": "PPO",
    "grpo": "GRPO",
    "rloo": "RLOO",
    "dpo": "Online DPO",
}
"""How reports write arms, and the stages of those that train."""


@dataclass(frozen=True, kw_only=True)
class TableStudy:
    """What a study of a table is told beside how its models learn."""

    data: Path | None = None
    """CSV (.csv, .tsv) with a header, or Parquet; none: breast_cancer, which ships inside scikit-learn."""
    target: str | None = None
    """The column that others are to predict, needed with --data."""
    out: Path = Path("runs/table-study")
    """The study folder; the same command goes on where a stopped one stood."""
    arms: tuple[str, ...] = (REFERENCE, RESAMPLED, "dpo", "ppo", "grpo", "dpo+ppo")
    """What is compared: reference, the model as it was fitted, which always takes part; resampled, its rows chosen
    among by the discriminators, with no training; dpo (online), ppo, grpo, rloo, and chains of them (dpo+ppo)."""
    seeds: Positive = 3
    """How often all of it is done, from the split of the rows on; intervals are over these."""
    seed: Seed = 0
    """The first seed; it determines the whole study."""
    redraws: Positive = 6
    """Tables that are drawn of each arm and judged, in each seed; each has as many rows as were learned from."""
    holdout: Annotated[float, Gt(0), Lt(1)] = 0.2
    """Share of the rows that nothing learns from: every figure is judged by them, in (0, 1)."""
    encoding: Literal["compact", "text"] = "compact"
    """How a row becomes tokens, as `preflab table fit` has it."""
    model: str | None = None
    """Of the text encoding: a folder in the Hugging Face format or a name on the Hub; none: a small one from
    scratch."""
    columns: tuple[str, ...] = ()
    """What columns hold, where the file says too little: NAME=KIND, as `preflab table fit` has it."""
    codes: tuple[str, ...] = ()
    """Cells of a column of numbers that are no numbers, such as special codes: NAME=-9,-8,-7."""
    jobs: Positive = 1
    """Processor cores that the judges' trees may be grown on; changes no figure."""
    quick: bool = False
    """A bounded run: one seed, two redraws, a small model that learns for little, a few updates. For a look, not for a
    verdict."""


@dataclass(frozen=True, kw_only=True)
class CompareTable(TableStudy):
    """Align a model of a table's rows in several ways, and judge what each writes by rows held out; writes a report."""

    fit: RowModel = field(default_factory=RowModel)
    """The reference, and how it learns."""
    align: Alignment = field(default_factory=Alignment)
    """How arms are aligned."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.data is not None and self.target is None:
            return "target: name the column that others are to predict, with --target"
        for arm in self.arms:
            if problem := _problem(arm):
                return f"arms = {arm}: {problem}"
        stages = {stage for arm in self.arms for stage in arm.split("+")}
        starts = (Alignment(), quick_alignment(Alignment()))
        for method in METHODS:
            given = getattr(self.align, method)
            if method not in stages and all(given != getattr(start, method) for start in starts):
                return f"align.{method}.* has no effect: no arm is {method}; add it to arms, or leave it out"
        if not self.align.dense and "ppo" not in stages:
            return "align.dense has no effect: no arm is ppo; add it to arms, or leave it out"
        if "ppo" in stages and (problem := self.align.unpaid()):
            return f"align: {problem}"
        return self.fitting(Path(), Path(), 0).misfit()

    def compared(self) -> tuple[str, ...]:
        """The arms in their order, each once, the reference first: the others are measured from it."""
        return (REFERENCE, *dict.fromkeys(arm for arm in self.arms if arm != REFERENCE))

    def aligned(self) -> tuple[str, ...]:
        """The arms that train a policy."""
        return tuple(arm for arm in self.compared() if arm not in (REFERENCE, RESAMPLED))

    def fitting(self, data: Path, out: Path, seed: int) -> TableFit:
        """What `preflab table fit` would be told."""
        return TableFit(
            data=data, out=out, target=self.target, holdout=self.holdout, seed=seed, encoding=self.encoding,
            model=self.model, columns=self.columns, codes=self.codes, fit=self.fit,
        )  # fmt: skip


def label(arm: str) -> str:
    """How reports write an arm.

    >>> label("dpo+ppo")
    'Online DPO → PPO'
    """
    return " → ".join(LABELS[stage] for stage in arm.split("+"))


def quick_study() -> CompareTable:
    """What a quick study starts from, below YAML files and flags."""
    whole = CompareTable()
    return replace(
        whole,
        quick=True,
        seeds=1,
        redraws=2,
        fit=replace(whole.fit, layers=2, width=48, epochs=6.0),
        align=quick_alignment(whole.align),
    )


def quick_alignment(whole: Alignment) -> Alignment:
    """One short round, judged by few rows, and weak discriminators."""
    methods: dict[str, Any] = {
        one.name: replace(getattr(whole, one.name), updates=4, evaluations=1)
        for one in fields(whole)
        if one.name in METHODS
    }
    weak = replace(whole.discriminators, folds=2, written=2.0)
    return replace(whole, rounds=1, discriminators=weak, judged=500, **methods)


def _problem(arm: str) -> str | None:
    """Why there is no such arm, or None."""
    stages = arm.split("+")
    for stage in stages:
        if stage not in LABELS:
            return f'there is no arm or stage "{stage}"; {nearest(stage, LABELS)}'
        if len(stages) > 1 and stage not in METHODS:
            return f'"{stage}" trains nothing, so it can\'t be a stage of a chain'
    return None
