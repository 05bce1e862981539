"""`preflab table align`: train a fitted model of rows further, against discriminators."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from rich.table import Table

from preflab.config.alignment import Alignment
from preflab.config.tables import TableAlign
from preflab.progress import console
from preflab.runs import JSON
from preflab.tables.alignment.align import align
from preflab.tables.fitted import ALIGNED


def run(config: TableAlign) -> None:
    """Align, and say what it changed on validation rows."""
    settings = Alignment(**{one.name: getattr(config, one.name) for one in fields(Alignment)})
    said = align(config.run, settings, method=config.method, seed=config.seed)
    console.print(points(said))
    chosen = said["chosen"]
    where = f"update {chosen['step']} of round {chosen['round']}" if chosen["round"] else "where it began"
    print(f"kept: {where}, in {config.run / ALIGNED / config.method}/model")
    print(f"sample: preflab table sample {config.run} -n 1000 --out synthetic.csv --policy {config.method}")


def points(said: Mapping[str, JSON]) -> Table:
    """The checkpoints, the chosen one marked."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("round", "update", "told apart", "nats a row", "KL (nats)", "reward", "rows paid", "seconds"):
        table.add_column(title, justify="right")
    for point in said["points"]:
        table.add_row(*_cells(point), style="bold" if said["chosen"].items() <= point.items() else None)
    return table


def _cells(point: Mapping[str, Any]) -> tuple[str, ...]:
    reward = "" if point["reward"] is None else f"{point['reward']:.3f}"
    return (
        str(point["round"]),
        str(point["step"]),
        f"{point['told_apart_auc']:.3f}",
        f"{point['nats']:.2f}",
        f"{point['kl_nats']:.3f}",
        reward,
        f"{point['queries']:,}",
        f"{point['wall_seconds']:,.0f}",
    )
