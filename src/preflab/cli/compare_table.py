"""`preflab compare table`: run a study of a table, print how its arms fared, and draw its report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from scipy import stats

from preflab.config.table_study import CompareTable
from preflab.report.table_study import write_table_study
from preflab.runs import JSON, read_json
from preflab.studies.table import BOOSTING, compare_table, seconds_of

COLUMNS = (
    ("told apart", BOOSTING, 3),
    ("quality", "fidelity.quality", 3),
    ("utility lost", "utility.gap", 3),
    ("coverage", "diversity.coverage", 3),
    ("breaks a rule", "validity.rule_violation_share", 3),
    ("nearer to train", "privacy.distance_share", 3),
)
"""Heading, figure, decimals."""
CONFIDENCE = 0.95


def run(config: CompareTable) -> None:
    """Run the study, print its table, write its report."""
    folder = compare_table(config)
    console = Console(soft_wrap=False)
    console.print()
    console.print(table_of(config, folder))
    report = write_table_study(folder)
    console.print()
    console.print(escape(report.summary))
    console.print(f"\nreport: {escape(str(report.path))}", soft_wrap=True)


def table_of(config: CompareTable, folder: Path) -> Table:
    """Arms and what their rows are worth: means over seeds, ± half of a 95 % interval over them where there are two."""
    study = read_json(folder / "study.json")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("arm", no_wrap=True)
    for title in (*(heading for heading, _, _ in COLUMNS), "KL (nats)", "seconds"):
        table.add_column(title, justify="right")
    names = [(arm["name"], arm["label"]) for arm in study["arms"]]
    for name, label in (*names, ("real", "Real rows")):
        judged = [read_json(folder / "seeds" / f"seed-{seed}" / "judged" / f"{name}.json") for seed in study["seeds"]]
        cells = [cell([mean_of(one["draws"], figure) for one in judged], digits) for _, figure, digits in COLUMNS]
        cells.append(cell([one["kl_nats"] for one in judged], 2))
        cells.append(cell([seconds_of(config, folder / "seeds" / f"seed-{seed}", name) for seed in study["seeds"]], 0))
        table.add_row(escape(label), *cells)
    return table


def mean_of(draws: Sequence[Mapping[str, JSON]], figure: str) -> float | None:
    """Mean over redraws; None where it could not be measured. Of utility's gap, what is lost of AUC, or of R².

    >>> draws = [{"figures": {"utility.gap.auc": 0.1}}, {"figures": {"utility.gap.auc": 0.3}}]
    >>> mean_of(draws, "utility.gap"), mean_of(draws, "fidelity.quality")
    (0.2, None)
    """
    for name in (figure, f"{figure}.auc", f"{figure}.r2"):
        if values := [draw["figures"][name] for draw in draws if name in draw["figures"]]:
            return float(np.mean(values))
    return None


def cell(values: Sequence[Any], digits: int) -> str:
    """Mean ± half-width over seeds, by Student's t.

    >>> cell([1.0, 2.0, 3.0], 2), cell([0.5], 2), cell([None, 0.1], 2)
    ('2.00 ± 2.48', '0.50', '–')
    """
    if any(value is None for value in values):
        return "–"
    mean = f"{np.mean(values):,.{digits}f}"
    if len(values) < 2:
        return mean
    half = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{mean} ± {half:,.{digits}f}"
