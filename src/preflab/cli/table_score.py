"""`preflab table score`: judge synthetic rows, write score.json and the report, print figures next to both bounds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from rich.console import Console

from preflab import __version__
from preflab.cli.report import show
from preflab.config.table_score import TableScore
from preflab.errors import ConfigError, DataError, StorageError, nearest
from preflab.progress import say, stage, warn
from preflab.report.table import write_table_report
from preflab.runs import read_json, sha256, write_json
from preflab.tables.column import read_number
from preflab.tables.files import read_table
from preflab.tables.judge.extras import need_extras
from preflab.tables.judge.score import score
from preflab.tables.judge.typed import typed
from preflab.tables.schema import Schema

CONTENT = "score.json"


def run(config: TableScore) -> None:
    """Check, judge, write, print."""
    need_extras()
    folder = config.out or _beside(config.synthetic)
    _check_folder(folder)
    paths = {"train": config.train, "holdout": config.holdout, "synthetic": config.synthetic}
    for path in paths.values():
        if path.is_dir():
            raise DataError(f"{path} is a folder; name a table, such as the train.csv in the run folder of a fit")
    sums = {name: sha256(path) for name, path in paths.items() if path.is_file()}
    if sums.get("train") is not None and sums["train"] == sums.get("holdout"):
        raise DataError(
            f"{config.holdout} is the same file as {config.train}: judge against rows that the generator never saw, "
            "such as those that `preflab table fit` puts into holdout.csv"
        )
    with stage("reading", len(paths)) as advance:
        tables: dict[str, pd.DataFrame] = {}
        for name, path in paths.items():
            tables[name], _ = read_table(path)
            advance(len(tables), f"{len(tables[name]):,} rows")
    _check_columns(config, tables)
    if named := [name for name in _identifiers(config.train) if name in tables["train"] and name != config.target]:
        aside = f"not judged, as the fit took them for identifiers, fresh in every table: {', '.join(named)}"
    judged = [name for name in tables["train"] if name not in named]
    text = tables["synthetic"][judged]
    table = typed(tables["train"][judged], tables["holdout"][judged], text, config.target)
    found = score(table, text, seed=config.seed, redraws=config.redraws, jobs=config.jobs, special=_codes(config.train))
    speed, silence = _rows_per_cpu_second(config.synthetic)
    content = {
        "files": {
            name: {"path": str(path), "rows": len(tables[name]), "sha256": sums[name]} for name, path in paths.items()
        },
        "preflab": __version__,
        "rows_per_cpu_second": speed,
        **found.content,
        "notes": [*found.content["notes"], *([aside] if named else []), *([silence] if silence else [])],
    }
    write_json(folder / CONTENT, content)
    show(write_table_report(folder), Console())
    for warning in found.warnings:
        warn(warning)
    for note in content["notes"]:
        if note not in found.warnings:
            say(note)


def _beside(synthetic: Path) -> Path:
    """rows.csv → rows-score"""
    return synthetic.parent / f"{synthetic.name.partition('.')[0] or 'table'}-score"


def _check_folder(folder: Path) -> None:
    """Refuse to write into what is no score."""
    if folder.exists() and not folder.is_dir():
        raise StorageError(f"{folder} is a file; name a folder with --out")
    if folder.is_dir() and any(folder.iterdir()) and not (folder / CONTENT).is_file():
        raise StorageError(f"{folder} is not empty and holds no score; choose another --out")


def _check_columns(config: TableScore, tables: Mapping[str, pd.DataFrame]) -> None:
    """Refuse a missing column by name, with the nearest there is, and say what is not looked at."""
    names = [str(name) for name in tables["train"]]
    for name, path in (("holdout", config.holdout), ("synthetic", config.synthetic)):
        there = [str(column) for column in tables[name]]
        if lacking := [column for column in names if column not in there]:
            left = [column for column in there if column not in names] or there
            more = f" and {len(lacking) - 1} other columns" if len(lacking) > 1 else ""
            raise DataError(
                f'{path} has no column "{lacking[0]}"{more}, which {config.train} has; {nearest(lacking[0], left)}'
            )
        if extra := [column for column in there if column not in names]:
            say(f"{path}: not in the training table and not looked at: {', '.join(extra)}")
    if config.target is not None and config.target not in names:
        raise ConfigError(f'--target: {config.train} has no column "{config.target}"; {nearest(config.target, names)}')


def _rows_per_cpu_second(synthetic: Path) -> tuple[float | None, str]:
    """As `preflab table sample` wrote it beside its rows; else None, and a sentence why."""
    side = synthetic.with_name(f"{synthetic.name}.json")
    if not side.is_file():
        return None, f"no rows per CPU second: {side.name} is not beside the synthetic rows"
    told = read_json(side)
    speed = told.get("rows_per_cpu_second") if isinstance(told, dict) else None
    if not isinstance(speed, int | float):
        return None, f"no rows per CPU second: {side.name} does not say"
    return float(speed), ""


def _identifiers(train: Path) -> list[str]:
    """Columns that a fit's schema beside the training rows calls identifiers."""
    path = train.with_name("schema.json")
    columns = Schema.load(path).columns if path.is_file() else ()
    return [column.name for column in columns if column.kind == "identifier"]


def _codes(train: Path) -> dict[str, list[float]] | None:
    """The special codes of scales, where a fit left its schema beside the training rows: few rows may hold them."""
    path = train.with_name("schema.json")
    if not path.is_file():
        return None
    found = {}
    for column in Schema.load(path).columns:
        levels = [text for text in column.levels if text not in column.missing]
        if column.kind in ("integer", "decimal") and column.numbers and levels:
            found[column.name] = sorted(float(text) for text in levels if read_number(text))
    return found
