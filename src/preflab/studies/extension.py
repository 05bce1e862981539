"""A study folder that is asked for more: further arms or seeds, in another order. What is finished is used again.

A setting of the study is one for all its arms, so it can't change. A setting of a method can, where nothing on disk was
made with another value of it: each arm's folder holds the settings that it was started with. Arms and seeds that were
started stay part of the study: one that is left out silently would be a try that nobody counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from preflab.config.arms import before, canonical, parts, settings, spelled
from preflab.config.commands import Compare, Methods
from preflab.config.load import build, flatten, read_yaml, to_values
from preflab.errors import ConfigError, StorageError
from preflab.runs import JSON, RunFolder
from preflab.studies.shared import seeds_of

FREE = ("out", "arms", "seeds", "jobs", "generations", "pair_judge")
"""What may change: where the study lies, how much of it is run, how much at once, what finished arms are asked."""


def refuse_conflicts(config: Compare) -> None:
    """Raise StorageError where the study in `config.out` can't become this one, with the setting, there and now."""
    folder = config.out
    _refuse_other_study(config)
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
    needed = {*config.arms, *beginnings(config)}
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


def beginnings(config: Compare) -> set[str]:
    """The arms that chains start from, and those that these start from."""
    found: set[str] = set()
    for arm in config.arms:
        first = before(arm)
        while first is not None:
            found.add(first)
            first = before(first)
    return found


def _started(folder: Path) -> Iterator[tuple[str, int, RunFolder]]:
    """The arms and seeds in a folder that were begun."""
    for recorded in sorted(folder.glob("*/seed-*/config.yaml")):
        run = recorded.parent
        yield run.parent.name, int(run.name.removeprefix("seed-")), RunFolder(run)


def _refuse_other_study(config: Compare) -> None:
    recorded = config.out / "study.yaml"
    try:
        there = flatten(to_values(build(Compare, read_yaml(recorded)[0])))
    except ConfigError as error:
        raise StorageError(f"{recorded} can't be read as a study ({error}); choose another --out") from None
    now = flatten(to_values(config))
    free = {*FREE, *(one.name for one in fields(Methods))}
    for key in (*there, *now):
        if key.partition(".")[0] not in free and there.get(key) != now.get(key):
            raise StorageError(
                f"{config.out} holds a study with other settings: {_change(key, there.get(key), now.get(key))}, which "
                "all arms depend on; choose another --out, or delete that folder"
            )


def _refuse_other_settings(config: Compare, arm: str, seed: int, run: RunFolder) -> None:
    stage = parts(arm)[-1]
    if stage.method == "reference":
        return
    given = settings(config, stage)
    try:
        there = flatten(to_values(build(type(given), read_yaml(run.config)[0])))
    except ConfigError as error:
        raise StorageError(f"{run.config} can't be read ({error}); delete {run.path} to run it again") from None
    now = flatten(to_values(given))
    for key in (*there, *now):
        if there.get(key) != now.get(key):
            raise StorageError(
                f"{config.out} holds {arm}, seed {seed}, made with other settings: "
                f"{_change(f'{stage.key}.{key}', there.get(key), now.get(key))}; "
                f"{_remedy(config, arm, key, now.get(key))}delete {run.path.parent} to run it again, or choose another "
                "--out"
            )


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
