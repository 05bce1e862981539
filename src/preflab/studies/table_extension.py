"""A study of a table that is asked for more, as `extension.py` has it: further arms or seeds; what is finished is used
again.

The first stage of a chain is the arm of its name: `aligned/dpo` is both the arm dpo and where dpo+ppo begins. So an arm
was started where study.yaml names it and something of it is there.
"""

from __future__ import annotations

from pathlib import Path

from preflab.config.alignment import METHODS
from preflab.config.arms import before
from preflab.config.table_study import CompareTable
from preflab.errors import StorageError
from preflab.runs import RunFolder
from preflab.studies.extension import beginnings, refuse_other_settings, refuse_other_study, seed_of
from preflab.studies.shared import seeds_of
from preflab.tables.alignment.align import of_stage
from preflab.tables.alignment.rounds import finished
from preflab.tables.fitted import ALIGNED

FREE = {"arms", "seeds", "jobs", "align.dense", *(f"align.{method}" for method in METHODS)}
"""What may change: how much of the study is run, on how many cores, and methods, where no arm was aligned otherwise.
Fits record where they lie, so `out` is not among them."""


def refuse_conflicts(config: CompareTable) -> None:
    """Raise StorageError where the study in `config.out` can't become this one, with the setting, there and now."""
    folder = config.out
    there = refuse_other_study(config, lambda key: ".".join(key.split(".")[:2]) in FREE)
    first = beginnings(config.aligned())
    for arm in there.compared():
        left = _left(folder, arm, aligned=arm not in first)
        if arm not in config.compared() and left:
            raise StorageError(
                f"{folder} holds the arm {arm}, which is not asked for; name it too, or delete {' and '.join(left)}"
            )
    seeds = {seed: path for path in folder.glob("seeds/seed-*") if (seed := seed_of(path)) is not None}
    if seeds and (last := max(seeds)) not in seeds_of(config):
        raise StorageError(
            f"{folder} holds seed {last}; ask for --seeds {last - config.seed + 1}, or delete {seeds[last]}"
        )
    for seed, path in sorted(seeds.items()):
        for arm in sorted({*config.aligned(), *first}):
            _refuse_orphans(path, arm)
            _refuse_other_settings(config, arm, seed, RunFolder(path / "table" / ALIGNED / arm))


def _refuse_other_settings(config: CompareTable, arm: str, seed: int, run: RunFolder) -> None:
    if run.config.exists():
        refuse_other_settings(
            run,
            of_stage(config.align, arm, seed),
            holds=f"{config.out} holds {arm}, seed {seed}",
            group="align",
            remedy=lambda *_: f"delete {' and '.join(_left(config.out, arm))} to run it again",
        )


def _left(folder: Path, arm: str, *, aligned: bool = True) -> list[str]:
    """What is there of an arm, over all seeds: its judgements, and its policies."""
    kinds = [f"judged/{arm}.json", *([f"table/{ALIGNED}/{arm}"] if aligned else [])]
    return [f"{folder}/seeds/*/{kind}" for kind in kinds if any(folder.glob(f"seeds/*/{kind}"))]


def _refuse_orphans(seed: Path, arm: str) -> None:
    """What was made of a policy that has been deleted since would stand beside what its successor is made with."""
    aligned, judged, first = seed / "table" / ALIGNED / arm, seed / "judged" / f"{arm}.json", before(arm)
    if judged.exists() and not finished(aligned):
        raise StorageError(f"{judged} judges a policy that is gone from {aligned}; delete it too")
    if first and aligned.exists() and not finished(aligned.with_name(first)):
        raise StorageError(
            f"{aligned} goes on from a policy that is gone from {aligned.with_name(first)}; delete it too"
        )
