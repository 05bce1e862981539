"""Aligning the model of a fitted table: from its run folder to `aligned/METHOD/`."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from preflab.config.alignment import METHODS, Aligned, Alignment, methods_of
from preflab.config.load import check, to_yaml
from preflab.errors import ConfigError
from preflab.progress import say, warn
from preflab.runs import JSON, RunFolder
from preflab.tables.alignment.rounds import Rows, align_model, check_rows, finished
from preflab.tables.discriminators.groups import groups_of
from preflab.tables.files import read_table
from preflab.tables.fitted import ALIGNED, REFERENCE, Fitted, load_model
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
    # What would be refused is refused before a folder holds these settings.
    configs = [of_stage(settings, "+".join(stages[: count + 1]), seed) for count in range(len(stages))]
    check_rows(rows, settings.discriminators)
    if settings.discriminators.groups:
        groups_of(settings.discriminators.groups, fitted.encoding.columns, rows.train)
    reference, said = fitted.model(REFERENCE), dict[str, JSON]()
    before: Path | None = None
    for stage, config in zip(stages, configs, strict=True):
        start = reference if before is None else load_model(before, fitted.encoding)
        run = RunFolder.open(folder / ALIGNED / config.method, to_yaml(config))
        if finished(run.path):
            say(f"{run.path} is finished already")
        said = align_model(
            run, fitted.encoding, fitted.tokenizer, reference, start, rows, config, method=stage, seed=seed
        )
        before = run.model
        for warning in said["warnings"]:
            warn(f"{config.method}: {warning}")
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


def of_stage(settings: Alignment, method: str, seed: int) -> Aligned:
    """What one stage is told. The settings of other methods say nothing to it: arms of a study, and stages of a chain,
    share theirs."""
    values = {one.name: getattr(settings, one.name) for one in fields(Alignment)}
    trained = methods_of(method)
    idle = {*METHODS} - {*trained} | ({"dense"} if "ppo" not in trained else set())
    return check(Aligned(**values | {name: getattr(Alignment(), name) for name in idle}, method=method, seed=seed))
