"""Aligning the model of a fitted table: from its run folder to `aligned/METHOD/`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from preflab.config.alignment import Aligned, Alignment, methods_of
from preflab.config.load import check, to_yaml
from preflab.errors import ConfigError
from preflab.progress import say
from preflab.runs import JSON, RunFolder
from preflab.tables.alignment.rounds import Rows, align_model, finished
from preflab.tables.files import read_table
from preflab.tables.fitted import ALIGNED, REFERENCE, Fitted
from preflab.tables.fitting import split


def align(
    folder: Path, settings: Alignment, *, method: str, seed: int, fitted: Fitted | None = None, rows: Rows | None = None
) -> dict[str, JSON]:
    """Align the model of a fit's run folder, and return what its `align.json` says. Stages that are there are not made
    again: dpo+ppo goes on from `aligned/dpo`.

    Args:
        method: a method or a chain of them.
        seed: determines discriminators, rows and steps.
        fitted: what the folder holds, where it was loaded already.
        rows: what was learned from, where the folder holds no rows.

    Raises:
        ConfigError, StorageError: the folder holds no fitted table, or not the rows that it learned from; settings
            don't go together, or differ from those that an earlier start of this alignment had.
        Interrupted: SIGTERM or Ctrl-C; called again it goes on.
    """
    stages = methods_of(method)
    fitted = Fitted.load(folder) if fitted is None else fitted
    rows = rows_of(fitted) if rows is None else rows
    policy, said = REFERENCE, {}
    for number in range(1, len(stages) + 1):
        name = "+".join(stages[:number])
        values = {one.name: getattr(settings, one.name) for one in fields(Alignment)}
        config = check(_without_idle(Aligned(**values, method=name, seed=seed)))
        run = RunFolder.open(folder / ALIGNED / name, to_yaml(config))
        if finished(run.path):
            say(f"{run.path} is finished already")
        reference, start = fitted.model(REFERENCE), fitted.model(policy)
        said = align_model(
            run, fitted.encoding, fitted.tokenizer, reference, start, rows, config, method=stages[number - 1], seed=seed
        )
        policy = name
    return said


def rows_of(fitted: Fitted) -> Rows:
    """The rows that a run folder's model learned from, and those on which no step was taken.

    Raises:
        ConfigError: they are not there.
    """
    found = sorted(fitted.folder.glob("train.*"))
    if not found:
        raise ConfigError(f"{fitted.folder} holds no train.csv: align where the table was fitted, the rows are needed")
    if "split" not in fitted.report:
        raise ConfigError(f"{fitted.folder} doesn't say which rows were for validation; fit again")
    return rows_from(fitted, fitted.schema.codes(read_table(found[0])[0]))


def rows_from(fitted: Fitted, codes: Any) -> Rows:
    """All rows of a fit, parted as it did."""
    parts = fitted.report["split"]
    learned, held = split(codes, parts["share"], seed=parts["seed"])
    return Rows(codes[learned], codes[held])


def _without_idle(config: Aligned) -> Aligned:
    """A stage of a chain has the settings of all its stages beside it; those that it doesn't use say nothing."""
    start = Alignment()
    values = {one.name: getattr(config, one.name) for one in fields(Aligned)}
    return Aligned(**values | {name: getattr(start, name) for name in config.idle_fields()})
