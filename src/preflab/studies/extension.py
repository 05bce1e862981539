"""A study folder that is asked for more: further arms or seeds, in another order. What is finished is used again.

A setting of the study is one for all its arms, so it can't change. A setting of a method can, where nothing on disk was
made with another value of it: each arm's folder holds the settings that it was started with. Arms and seeds that were
started stay part of the study: one that is left out silently would be a try that nobody counts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from preflab.config.arms import before, canonical, parts, settings, spelled
from preflab.config.commands import Compare, Methods
from preflab.config.load import build, flatten, read_yaml, to_values
from preflab.config.table_study import CompareTable
from preflab.errors import ConfigError, StorageError
from preflab.runs import JSON, RunFolder
from preflab.studies.shared import seeds_of

Study = TypeVar("Study", Compare, CompareTable)
FREE = ("out", "arms", "seeds", "jobs", "generations", "pair_judge")
"""What may change: where the study lies, how much of it is run, how much at once, what finished arms are asked."""


def refuse_conflicts(config: Compare) -> None:
    """Raise StorageError where the study in `config.out` can't become this one, with the setting, there and now."""
    folder = config.out
    methods = {one.name for one in fields(Methods)}
    refuse_other_study(config, lambda key: key.partition(".")[0] in {*FREE, *methods})
    seeds = seeds_of(config)
    for arm, seed, run in _started(folder / "arms"):
        if arm not in config.arms:
            raise StorageError(
                f"{folder} holds the arm {arm}, which is not asked for; name it too, or delete {run.path.parent}"
            )
        if seed not in seeds:
            raise StorageError(
                f"{folder} holds seed {seed} of {arm}; ask for --seeds {seed - config.seed + 1}, or delete {run.path}"
            )
    needed = {*config.arms, *beginnings(config.arms)}
    for place in (folder / "arms", folder / "stages" / "arms"):
        for arm, seed, run in _started(place):
            if arm in needed:
                _refuse_other_settings(config, arm, seed, run)


def bring_forward(config: Compare) -> None:
    """Beginnings of chains that are arms from this start on move to the arms, with all that they hold."""
    for arm, seed, run in _started(config.out / "stages" / "arms"):
        shown = config.out / "arms" / arm / f"seed-{seed}"
        if arm in config.arms and not shown.exists():
            shown.parent.mkdir(parents=True, exist_ok=True)
            os.replace(run.path, shown)


def beginnings(arms: Sequence[str]) -> set[str]:
    """The arms that chains start from, and those that these start from.

    >>> sorted(beginnings(["reference", "sft+dpo+ppo"]))
    ['sft', 'sft+dpo']
    """
    found: set[str] = set()
    for arm in arms:
        first = before(arm)
        while first is not None:
            found.add(first)
            first = before(first)
    return found


def _started(folder: Path) -> Iterator[tuple[str, int, RunFolder]]:
    """The arms and seeds in a folder that were begun."""
    for recorded in sorted(folder.glob("*/seed-*/config.yaml")):
        run = recorded.parent
        if (seed := seed_of(run)) is not None:
            yield run.parent.name, seed, RunFolder(run)


def seed_of(folder: Path) -> int | None:
    """The seed of a folder seed-N; None of any other, such as a copy beside it.

    >>> seed_of(Path("arms/dpo/seed-3")), seed_of(Path("arms/dpo/seed-3.bak"))
    (3, None)
    """
    number = folder.name.removeprefix("seed-")
    return int(number) if number.isdecimal() else None


def refuse_other_study(config: Study, free: Callable[[str], bool]) -> Study:
    """Raise StorageError where the study in `config.out` has another value of a setting that is one for all its arms.
    Returns it.

    Args:
        free: whether a setting may change, by its dotted key.
    """
    recorded = config.out / "study.yaml"
    try:
        before = build(type(config), read_yaml(recorded)[0])
    except ConfigError as error:
        raise StorageError(f"{recorded} can't be read as a study ({error}); choose another --out") from None
    for key, there, now in _changes(before, config):
        if not free(key):
            raise StorageError(
                f"{config.out} holds a study with other settings: {_change(key, there, now)}, which all arms depend "
                "on; choose another --out, or delete that folder"
            )
    return before


def refuse_other_settings(
    run: RunFolder, given: Any, *, holds: str, group: str, remedy: Callable[[str, JSON], str]
) -> None:
    """Raise StorageError where a run was made with other settings.

    Args:
        holds: what is there: "FOLDER holds ARM, seed 0".
        group: what stands before the dotted keys of these settings in those of the study.
        remedy: what to do about a setting, given its key and its value now, but for another --out.
    """
    try:
        before = build(type(given), read_yaml(run.config)[0])
    except ConfigError as error:
        raise StorageError(f"{run.config} can't be read ({error}); delete {run.path} to run it again") from None
    for key, there, now in _changes(before, given):
        raise StorageError(
            f"{holds}, made with other settings: {_change(f'{group}.{key}', there, now)}; {remedy(key, now)}, or "
            "choose another --out"
        )


def _refuse_other_settings(config: Compare, arm: str, seed: int, run: RunFolder) -> None:
    stage = parts(arm)[-1]
    if stage.method != "reference":
        refuse_other_settings(
            run,
            settings(config, stage),
            holds=f"{config.out} holds {arm}, seed {seed}",
            group=stage.key,
            remedy=lambda key, now: f"{_remedy(config, arm, key, now)}delete {run.path.parent} to run it again",
        )


def _changes(before: Any, config: Any) -> Iterator[tuple[str, JSON, JSON]]:
    """Each setting that is not what it was: its dotted key, there and now."""
    there, now = (flatten(to_values(one)) for one in (before, config))
    for key in dict.fromkeys((*there, *now)):
        if there.get(key) != now.get(key):
            yield key, there.get(key), now.get(key)


def _change(key: str, there: JSON, now: JSON) -> str:
    return f"{key} is {_said(there)} there, {_said(now)} now"


def _said(value: JSON) -> str:
    return str(value) if isinstance(value, list) else spelled(value)


def _remedy(config: Compare, arm: str, key: str, value: JSON) -> str:
    """The changed setting as an arm of its own, where it can be one."""
    if isinstance(value, list) or value is None:
        return ""
    try:
        return f"add {canonical(config, f'{arm}@{key}={spelled(value)}')} as an arm of its own, "
    except ConfigError:
        return ""
