"""From a file to a run folder: what `preflab table fit` does, and a study of tables for each seed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from preflab.config.load import to_yaml
from preflab.config.tables import TableFit
from preflab.errors import ConfigError, DataError
from preflab.progress import say, stage
from preflab.runs import RunFolder, read_json
from preflab.tables.files import Source, read_table, write_table
from preflab.tables.fitted import FIT, finished
from preflab.tables.schema import Schema, infer
from preflab.tables.synthesizer import Learning, learn, parted, start


@dataclass(frozen=True)
class Parts:
    """A table before it is learned."""

    train: pd.DataFrame
    holdout: pd.DataFrame
    source: Source
    schema: Schema


def fit_run(config: TableFit, tell: Callable[[Parts], None] = lambda parts: None) -> dict[str, Any]:
    """Hold rows out, learn the others, and return what `fit.json` says; a run that was stopped goes on.

    Args:
        tell: is shown the table before it is learned.

    Raises:
        ConfigError, DataError, StorageError: before the folder is touched, where it can't be done.
    """
    run = RunFolder(config.out)
    if finished(run.path) and run.model.exists():
        RunFolder.open(config.out, to_yaml(config), data=config.data)
        say(f"{config.out} is finished already")
        return dict(read_json(run.path / FIT))
    if config.data.is_dir():
        raise DataError(f"{config.data} is a folder; name a table, .csv, .tsv or .parquet")
    say(f"reading {config.data}")
    frame, source = read_table(config.data)
    learned, held = parted(len(frame), config.holdout, seed=config.seed)
    train, holdout = frame.iloc[learned], frame.iloc[held]
    kinds = dict(_named(config.columns, "columns", "NAME=KIND"))
    codes = {name: _listed(text) for name, text in _named(config.codes, "codes", "NAME=-9,-8")}
    with stage("looking at columns", len(train.columns)) as advance:
        schema = infer(train, target=config.target, kinds=kinds, codes=codes, advance=advance)
    say(
        f"{config.data}: {len(frame):,} rows of {len(frame.columns)} columns; {len(train):,} to learn from, "
        f"{len(holdout):,} held out"
    )
    tell(Parts(train, holdout, source, schema))
    learning = Learning(
        config.encoding, config.model, config.any_order, config.first, config.minutes, config.fit, config.seed
    )
    begun = start(train, schema, learning)
    run = RunFolder.open(config.out, to_yaml(config), data=config.data)
    suffix = ".parquet" if source.format == "parquet" else config.data.suffix.lower()
    write_table(train, source, run.path / f"train{suffix}")
    if len(holdout):
        write_table(holdout, source, run.path / f"holdout{suffix}")
    return learn(run, begun, source, learning)


def _named(texts: Sequence[str], setting: str, form: str) -> list[tuple[str, str]]:
    """NAME=TEXT, each name once."""
    found: list[tuple[str, str]] = []
    for text in texts:
        name, sign, value = text.rpartition("=")
        if not sign or not name:
            raise ConfigError(f"{setting} = {text}: write it as {form}")
        if name in dict(found):
            raise ConfigError(f'{setting}: "{name}" stands twice; keep one')
        found.append((name, value))
    return found


def _listed(text: str) -> list[str]:
    return [code.strip() for code in text.split(",")] if text else []
