"""`preflab table score`: judge synthetic rows, write score.json and the report, print figures next to both bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from preflab import __version__
from preflab.config.table_score import TableScore
from preflab.errors import ConfigError, DataError, StorageError, nearest
from preflab.progress import say, stage, warn
from preflab.report.table import write_table_report
from preflab.runs import JSON, read_json, sha256, write_json
from preflab.tables.files import read_table
from preflab.tables.judge.extras import need_extras
from preflab.tables.judge.score import score
from preflab.tables.judge.typed import typed

CONTENT = "score.json"
PRINTED_RULES = 3
COLUMNS = {"synthetic": "synthetic", "real": "second real", "marginals": "marginals"}


@dataclass(frozen=True)
class Line:
    """A figure in the summary: where it stands, what is good, and how it is written."""

    title: str
    path: tuple[str, ...]
    good: str
    form: str = ".3f"


LINES = (
    Line("quality (sdmetrics)", ("fidelity", "quality"), "↑"),
    Line("  column shapes", ("fidelity", "column_shapes"), "↑"),
    Line("  column pair trends", ("fidelity", "column_pair_trends"), "↑"),
    Line("marginal distance", ("fidelity", "marginal_distance"), "↓"),
    Line("Spearman difference", ("fidelity", "spearman_difference"), "↓"),
    Line("detected by boosting (AUC)", ("detectability", "gradient_boosting_auc"), "→ 0.5"),
    Line("  by a random forest", ("detectability", "random_forest_auc"), "→ 0.5"),
    Line("  by logistic regression", ("detectability", "logistic_auc"), "→ 0.5"),
    Line("utility: accuracy", ("utility", "mean", "accuracy"), "↑"),
    Line("  AUC", ("utility", "mean", "auc"), "↑"),
    Line("  AUC lost, next to real", ("utility", "gap", "auc"), "↓", "+.3f"),
    Line("  r²", ("utility", "mean", "r2"), "↑"),
    Line("  r² lost, next to real", ("utility", "gap", "r2"), "↓", "+.3f"),
    Line("precision", ("diversity", "precision"), "↑"),
    Line("recall", ("diversity", "recall"), "↑"),
    Line("density", ("diversity", "density"), "→ 1"),
    Line("coverage", ("diversity", "coverage"), "↑"),
    Line("duplicates", ("diversity", "duplicate_share"), "↓", ".1%"),
    Line("copies of training rows", ("privacy", "copies"), "↓", ",.0f"),
    Line("nearer to training rows", ("privacy", "distance_share"), "→ 0.5"),
    Line("distance, 5th percentile", ("privacy", "distance_p5"), "→ holdout's"),
    Line("  the holdout's own", ("privacy", "distance_p5_holdout"), ""),
    Line("membership test (AUC)", ("privacy", "membership_auc"), "→ 0.5"),
    Line("rows that parse", ("validity", "parsed_share"), "↑", ".1%"),
    Line("rows in domain", ("validity", "domain_share"), "↑", ".1%"),
    Line("rows that break a rule", ("validity", "rule_violation_share"), "→ holdout's", ".1%"),
    Line("  the holdout's own", ("validity", "rule_violation_share_holdout"), "", ".1%"),
)


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
    table = typed(tables["train"], tables["holdout"], tables["synthetic"][list(tables["train"])], config.target)
    text = tables["synthetic"][list(tables["train"])]
    found = score(table, text, seed=config.seed, redraws=config.redraws, jobs=config.jobs)
    speed, silence = _rows_per_cpu_second(config.synthetic)
    content = {
        "files": {
            name: {"path": str(path), "rows": len(tables[name]), "sha256": sums[name]} for name, path in paths.items()
        },
        "preflab": __version__,
        "rows_per_cpu_second": speed,
        **found.content,
        "notes": [*found.content["notes"], *([silence] if silence else [])],
    }
    write_json(folder / CONTENT, content)
    report = write_table_report(folder)
    _show(content, found.warnings, report.summary)
    print(f"\nreport: {report.path}")


def _beside(synthetic: Path) -> Path:
    """rows.csv.gz → rows-score"""
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


def _show(content: Mapping[str, JSON], warnings: Sequence[str], summary: str) -> None:
    """The figures next to their bounds, the worst rules, all in a few sentences, what must not be missed."""
    subjects = content["subjects"]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for subject in subjects:
        table.add_column(COLUMNS[subject["name"]], justify="right", no_wrap=True)
    table.add_column("good", no_wrap=True)
    for line in LINES:
        values = [_at(subject["figures"], line.path) for subject in subjects]
        if any(value is not None for value in values):
            table.add_row(line.title, *(_cell(value, line.form) for value in values), line.good)
    console = Console()
    console.print()
    console.print(table)
    rules: list[dict[str, Any]] = content["pictures"]["rules"]
    if rules:
        console.print("\nthe rules most broken, next to the holdout:")
        for rule in rules[:PRINTED_RULES]:
            told = f"  {rule['rule']}: {rule['synthetic']:.1%} (holdout {rule['holdout']:.1%})"
            console.print(escape(told), soft_wrap=True, highlight=False)
    console.print("\nsecond real: half of the training rows as if synthetic; marginals: each column on its own")
    console.print(f"\n{escape(summary)}\n", highlight=False)
    for warning in warnings:
        warn(warning)
    for note in content["notes"]:
        if note not in warnings:
            say(note)


def _at(figures: JSON, path: Sequence[str]) -> float | None:
    for name in path:
        figures = None if figures is None else figures.get(name)
    return None if figures is None else float(figures)


def _cell(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
