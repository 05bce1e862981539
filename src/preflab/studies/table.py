"""The command `compare table`: for each seed fit a reference, align it in several ways, draw tables of each arm and
judge them by rows that were held out; and keep study.json up to date.

    study.yaml  study.json  seeds/seed-0/table/ (a run folder of `table fit`)  seeds/seed-0/judged/ARM.json
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer

from preflab.config.alignment import Alignment, methods_of
from preflab.config.load import check, flatten, to_values, to_yaml
from preflab.config.table_study import REFERENCE, RESAMPLED, CompareTable, label
from preflab.errors import ConfigError, DataError, nearest
from preflab.progress import say, stage, warn
from preflab.runs import JSON, claim, read_json, write_json
from preflab.studies.shared import seeds_of
from preflab.studies.table_arms import (
    REAL,
    Bench,
    count_draws,
    draw,
    judge_real,
    judge_rows,
    measure,
    panel_folder,
)
from preflab.studies.table_extension import refuse_conflicts
from preflab.tables.alignment.align import align
from preflab.tables.files import read_table
from preflab.tables.fit_run import fit_run
from preflab.tables.fitted import ALIGN, ALIGNED, FIT
from preflab.tables.judge.extras import need_extras
from preflab.tables.judge.score import FEWEST_REAL, FEWEST_SYNTHETIC
from preflab.tables.synthesizer import parted

SHIPPED, SHIPPED_TARGET = "breast_cancer", "diagnosis"
"""The table that stands in where none is given."""
BOOSTING, FOREST = "detectability.gradient_boosting_auc", "detectability.random_forest_auc"


@dataclass(frozen=True)
class Table:
    """What the study learns and judges."""

    name: str
    rows: int
    columns: tuple[str, ...]
    target: str


def compare_table(config: CompareTable) -> Path:
    """Run a study to its end, from wherever an earlier start left it. Returns its folder.

    Raises:
        ConfigError, DataError, StorageError: before any training, where the study can't be run as asked.
    """
    need_extras()
    config = check(config)
    shipped = config.data is None
    if config.data is None:
        config = replace(config, target=config.target or SHIPPED_TARGET)
        frame, name = shipped_table(), SHIPPED
    else:
        frame, name = read_table(config.data)[0], config.data.stem
    table = _checked(config, name, frame)
    claim(config.out, "study.yaml", to_yaml(config), data=config.data, refuse=lambda: refuse_conflicts(config))
    data = config.data or config.out / f"{SHIPPED}.csv"
    if shipped:
        say(f"no --data: {SHIPPED} of scikit-learn, {table.rows} rows of {len(table.columns)} columns, in {data}")
        if not data.exists():
            frame.to_csv(data, index=False)
    study = _Study(config, table)
    for warning in study.warnings():
        warn(warning)
    study.write()
    for seed in seeds_of(config):
        folder = study.folder(seed)
        fit_run(config.fitting(data, folder / "table", seed))
        for arm in config.aligned():
            align(folder / "table", config.align, method=arm, seed=seed)
            study.write()
        _judge_all(config, folder, seed, study.write)
    say(f"study finished: {config.out}")
    return config.out


def shipped_table() -> pd.DataFrame:
    """Cell nuclei of 569 tumours in 30 measures, with their diagnosis."""
    bunch = load_breast_cancer(as_frame=True)
    frame: pd.DataFrame = bunch.frame.rename(columns={"target": SHIPPED_TARGET})
    frame[SHIPPED_TARGET] = np.array(bunch.target_names, dtype=object)[frame[SHIPPED_TARGET].to_numpy()]
    return frame


def independent(settings: Alignment) -> str:
    """The judge that is no relative of what paid the arms: a forest where rewards are boosted trees, else boosting."""
    boosted = settings.discriminators.kind == "trees" and {"row", "feature"} & {*settings.discriminators.levels}
    return FOREST if boosted else BOOSTING


def seconds_of(config: CompareTable, folder: Path, arm: str) -> float | None:
    """Wall-clock seconds that an arm of a seed takes to be made: the fit, and what came after it; None of the bound."""
    if arm == REAL:
        return None
    seconds = float(read_json(folder / "table" / FIT)["seconds"])
    if arm == RESAMPLED:
        seconds += float(read_json(panel_folder(folder, config) / "told.json")["seconds"])
    stages = () if arm in (REFERENCE, RESAMPLED) else methods_of(arm)
    for count in range(1, len(stages) + 1):
        name = "+".join(stages[:count])
        seconds += float(read_json(folder / "table" / ALIGNED / name / ALIGN)["cost"]["wall_seconds"])
    return seconds


def _checked(config: CompareTable, name: str, frame: pd.DataFrame) -> Table:
    """
    Raises:
        ConfigError: the target is no column.
        DataError: there are too few rows to judge.
    """
    target, columns = config.target, tuple(map(str, frame.columns))
    if target is None or target not in columns:
        raise ConfigError(f'--target: {name} has no column "{target}"; {nearest(str(target), columns)}')
    learned, held = parted(len(frame), config.holdout, seed=config.seed)
    if len(learned) // 2 < FEWEST_SYNTHETIC or len(held) < FEWEST_REAL:
        raise DataError(
            f"{name} has {len(frame)} rows, {len(learned)} to learn from and {len(held)} held out; judging needs "
            f"{2 * FEWEST_SYNTHETIC} and {FEWEST_REAL}: give more rows, or another --holdout"
        )
    return Table(name, len(frame), columns, target)


def _judge_all(config: CompareTable, folder: Path, seed: int, tell: Callable[[], None]) -> None:
    """Draw and judge all arms of one seed, and the bound."""
    bench = Bench(folder, config, seed)
    for arm in (*config.compared(), REAL):
        path = folder / "judged" / f"{arm}.json"
        if (begun := count_draws(path)) >= config.redraws:
            continue
        found = read_json(path) if begun else measure(bench, arm)
        with stage(f"judging {arm}, seed {seed}", config.redraws, begun) as advance:
            for redraw in range(begun, config.redraws):
                about: dict[str, JSON] = {"redraw": redraw}
                if arm == REAL:
                    figures = judge_real(bench, redraw)
                else:
                    rows = draw(bench, arm, redraw)
                    figures = judge_rows(bench, rows.text, redraw)
                    about["orders"] = rows.orders
                    found["cpu_seconds"] += rows.cpu_seconds
                    found["rows_per_cpu_second"] = (redraw + 1) * found["rows"] / found["cpu_seconds"]
                found["draws"].append(about | {"figures": figures})
                write_json(path, found)
                auc = figures.get(BOOSTING)
                advance(redraw + 1, "" if auc is None else f"told apart with an AUC of {auc:.3f}")
        tell()


class _Study:
    """What study.json says."""

    def __init__(self, config: CompareTable, table: Table) -> None:
        self.config, self.table = config, table

    def folder(self, seed: int) -> Path:
        """Of a seed."""
        return self.config.out / "seeds" / f"seed-{seed}"

    def write(self) -> None:
        """Write study.json as things stand: a report can be drawn at any time."""
        config, table = self.config, self.table
        value = {
            "kind": "table",
            "study": flatten(to_values(config)),
            "title": f"Aligning a model of the rows of {table.name}",
            "table": {
                "name": table.name,
                "rows": table.rows,
                "columns": len(table.columns),
                "target": table.target,
            },
            "arms": [{"name": arm, "label": label(arm), "description": _description(arm)} for arm in config.compared()],
            "seeds": list(seeds_of(config)),
            "redraws": config.redraws,
            "primary": BOOSTING,
            "independent": independent(config.align),
            "notes": self._notes(),
            "warnings": [*self.warnings(), *self._aligned_warnings(), *self._order_warnings()],
            "complete": self.complete(),
        }
        write_json(config.out / "study.json", value)

    def complete(self) -> bool:
        """Whether every draw of every arm was judged."""
        return all(
            count_draws(self.folder(seed) / "judged" / f"{arm}.json") >= self.config.redraws
            for seed in seeds_of(self.config)
            for arm in (*self.config.compared(), REAL)
        )

    def warnings(self) -> list[str]:
        """What is known before anything ran."""
        found = []
        if self.config.quick:
            found.append("a quick run: small models, few steps and redraws; it shows how a study looks, and no verdict")
        if self.config.seeds == 1:
            found.append("one seed: no interval over training runs")
        return found

    def _notes(self) -> list[str]:
        relatives = (
            "boosted trees pay the arms, so the random forest and the logistic regression judge independently, and "
            "gradient boosting is a relative"
            if independent(self.config.align) == FOREST
            else "neural discriminators pay the arms, so gradient boosting judges independently"
        )
        notes = [
            f"{relatives}; all judges see held-out rows, which no discriminator saw",
            "arms are paired: draw r of every arm has the same seeds, of rows and of the judges",
        ]
        if not any(arm == RESAMPLED for arm in self.config.compared()):
            return notes
        source = next(iter(self.config.aligned()), None)
        return [
            *notes,
            f"resampled uses the discriminators of the first round of {label(source.split('+')[0])}"
            if source
            else "resampled uses discriminators of its own, fitted to rows of the reference",
        ]

    def _aligned_warnings(self) -> list[str]:
        found = []
        for seed in seeds_of(self.config):
            for arm in self.config.aligned():
                path = self.folder(seed) / "table" / ALIGNED / arm / ALIGN
                if path.exists():
                    said: Sequence[JSON] = read_json(path)["warnings"]
                    found += [f"{label(arm)}, seed {seed}: {one}" for one in said]
        return found

    def _order_warnings(self) -> list[str]:
        """Tables of one arm that keep orders can't be compared with tables of another that don't, so it is said."""
        found = []
        for seed in seeds_of(self.config):
            for arm in self.config.compared():
                path = self.folder(seed) / "judged" / f"{arm}.json"
                draws = read_json(path)["draws"] if path.exists() else []
                if free := sum(one.get("orders") == "ignore" for one in draws):
                    found.append(
                        f"{label(arm)}, seed {seed}: hardly a row keeps the orders that every training row keeps, so "
                        f"{free} of {len(draws)} tables are judged as they come, orders broken"
                    )
        return found


def _description(arm: str) -> str:
    match arm:
        case "reference":
            return "The model as it was fitted to the rows: every arm's start, and what KL is measured from."
        case "resampled":
            return "Rows of the reference, chosen among by what the discriminators say of them; nothing is trained."
        case _ if "+" in arm:
            first, _, last = arm.rpartition("+")
            return f"{label(last)} from the chosen policy of {label(first)}, held to it in the first round."
        case _:
            return f"{label(arm)} against discriminators, from the reference."
