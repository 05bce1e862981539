"""Rows of a language model against real ones: `preflab table fit`, sample and judge, over seeds and redraws.

    python benchmarks/tables.py --data heloc.csv --target RiskPerformance [--seeds 3] [--redraws 6] [--tables heloc …]

Each seed fits on 80 % of the rows with the default preset, a fit's CPU seconds being those of the whole command;
draws as many rows as it learned from, `--redraws` times, and judges each draw as `preflab table score` does. Writes
benchmarks/results/tables.json: for each table the mean over seeds of each figure, each seed's mean, and the standard
deviation over redraws; and docs/tables/measured.md from it (`--page` alone: from what is there). Tables beside the
one given: breast_cancer, wine and diabetes of scikit-learn, and a mixed one that is generated here. One core.

At its end it shows the bars of the table that was given, those of fits from these figures and those of alignments from
`table_alignment.py`'s; `--bars` alone shows them from what is there.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pandas as pd
from sklearn.datasets import load_breast_cancer, load_diabetes, load_wine

from preflab.seeds import derive
from preflab.tables.files import read_table, write_table
from preflab.tables.judge.score import flat, judge
from preflab.tables.judge.typed import typed
from preflab.tables.judge.utility import utility
from preflab.tables.synthesizer import Synthesizer
from table_alignment import RESULTS as ALIGNED
from table_bars import COPIES, of_alignments, of_fits, table

RESULTS = Path(__file__).resolve().parent / "results" / "tables.json"
SCIKIT_LEARN = {"breast_cancer": load_breast_cancer, "wine": load_wine, "diabetes": load_diabetes}
PAGE = Path(__file__).resolve().parent.parent / "docs" / "tables" / "measured.md"
MIXED_ROWS = 3000

SHOWN = (
    ("detectability, boosting: AUC", "detectability.gradient_boosting_auc", "0.5"),
    ("detectability, forest: AUC", "detectability.random_forest_auc", "0.5"),
    ("detectability, logistic: AUC", "detectability.logistic_auc", "0.5"),
    ("quality (sdmetrics)", "fidelity.quality", "1"),
    ("utility lost: AUC", "utility.gap.auc", "0"),
    ("utility lost: R²", "utility.gap.r2", "0"),
    ("precision", "diversity.precision", "that of real rows"),
    ("recall", "diversity.recall", "that of real rows"),
    ("coverage", "diversity.coverage", "1"),
    ("duplicates", "diversity.duplicate_share", "0"),
    ("copies of training rows", "privacy.copies", "0"),
    ("nearer to train than to holdout", "privacy.distance_share", "0.5"),
    ("membership: AUC", "privacy.membership_auc", "0.5"),
    ("rows that break a rule", "validity.rule_violation_share", "the holdout's"),
    ("the holdout's own", "validity.rule_violation_share_holdout", ""),
    ("legal without the mask", "fit.unmasked_valid_share", "1"),
    ("fit: CPU seconds of the command", "costs.fit_cpu_seconds", ""),
    ("sampling: rows per CPU second", "costs.rows_per_cpu_second", ""),
)
"""Name, figure, what is good."""
PREFACE = """\
# Tables, measured

What `preflab table` does with its defaults. Made by

```
python benchmarks/tables.py --data heloc.csv --target RiskPerformance
```

which for each seed fits on 80 % of the rows, draws as many rows as it learned from {redraws} times, and judges each
draw against the 20 % that were held out, by the code of `preflab table score`; then the same for tables of
scikit-learn, and for one that it generates, with categories, dates, missing cells, a boolean, a row number and a
constant (`mixed` in the script). All figures, and their spread over redraws: `benchmarks/results/tables.json`. Machine:
{machine}; what else it did at the time shows in seconds by the clock, not in CPU seconds.

Tables and seeds can be run apart (`--tables`, `--first-seed`, `--seeds`), as they were here; a table has as many
seeds as are shown. [What each figure means](judgement.md), and what a second real sample and a memoriser get.
"""


def mixed(seed: int = 0) -> pd.DataFrame:
    """Orders of a shop: a category that decides prices, dates, missing values that depend on others, a boolean, free
    numbers with two decimals, a row number, a constant."""
    draw = np.random.default_rng(seed)
    kinds = ["book", "lamp", "chair", "desk, large"]
    kind = draw.choice(4, MIXED_ROWS, p=[0.45, 0.3, 0.2, 0.05])
    pieces = 1 + draw.poisson([1.5, 0.4, 1.0, 0.1], (MIXED_ROWS, 4))[np.arange(MIXED_ROWS), kind]
    price = np.round(np.exp(draw.normal(np.array([2.4, 3.4, 4.2, 5.5])[kind], 0.4)), 2)
    ordered = pd.Timestamp("2024-01-01") + pd.to_timedelta(draw.integers(0, 700, MIXED_ROWS), unit="D")
    days = 1 + draw.poisson(np.where(kind == 3, 12, 3))
    member = draw.random(MIXED_ROWS) < 0.3
    rating = np.where(draw.random(MIXED_ROWS) < np.where(member, 0.8, 0.3), draw.integers(1, 6, MIXED_ROWS), -1)
    late = days + draw.normal(0, 2, MIXED_ROWS) > 8
    return pd.DataFrame(
        {
            "order": np.arange(10_001, 10_001 + MIXED_ROWS),
            "article": np.array(kinds, dtype=object)[kind],
            "pieces": pieces,
            "price": price,
            "total": np.round(price * pieces, 2),
            "ordered": ordered.strftime("%Y-%m-%d"),
            "sent": (ordered + pd.to_timedelta(days, unit="D")).strftime("%Y-%m-%d"),
            "member": member,
            "rating": pd.array([None if one < 0 else int(one) for one in rating], dtype="Int64"),
            "currency": "EUR",
            "returned": np.where(late, "yes", "no"),
        }
    )


def tables(data: Path | None, target: str | None, only: list[str], folder: Path) -> Iterator[tuple[str, Path, str]]:
    """Name, file and target of each table."""
    if data is not None and (not only or data.stem in only):
        assert target is not None, "--data needs --target"
        yield data.stem, data, target
    for name, load in SCIKIT_LEARN.items():
        if not only or name in only:
            bunch = load(as_frame=True)
            frame = bunch.frame.copy()
            if name != "diabetes":
                frame["target"] = np.array(bunch.target_names, dtype=object)[frame["target"].to_numpy()]
            frame.to_csv(folder / f"{name}.csv", index=False)
            yield name, folder / f"{name}.csv", "target"
    if not only or "mixed" in only:
        mixed().to_csv(folder / "mixed.csv", index=False)
        yield "mixed", folder / "mixed.csv", "returned"


def fitted(data: Path, target: str, run: Path, seed: int) -> dict[str, float]:
    """Run the command; CPU and wall seconds of it all."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    command = [sys.executable, "-m", "preflab", "table", "fit", str(data), "--target", target]
    subprocess.run([*command, "--seed", str(seed), "--out", str(run)], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "fit_cpu_seconds": cpu,
        "fit_wall_seconds": time.perf_counter() - began,
        "fit_peak_mib": after.ru_maxrss / 1024,
    }


def seed_of(name: str, data: Path, target: str, seed: int, redraws: int, folder: Path) -> dict[str, Any]:
    """Fit, draw, judge."""
    run = folder / f"{name}-{seed}"
    costs = fitted(data, target, run, seed)
    report = json.loads((run / "fit.json").read_text())
    synthesizer = Synthesizer.load(run)
    (train, source), (holdout, _) = (read_table(next(run.glob(f"{part}.*"))) for part in ("train", "holdout"))
    identifiers = [column.name for column in synthesizer.fitted.schema.columns if column.kind == "identifier"]
    judged = [column for column in train if column not in identifiers]
    found: list[dict[str, float]] = []
    rows_per_second = []
    learnt = None
    for number in range(redraws):
        begin = time.process_time()
        rows, _ = synthesizer.draw(len(train), seed=number + 1)
        rows_per_second.append(len(rows) / (time.process_time() - begin))
        path = folder / f"{name}-{seed}-{number}.csv"
        write_table(rows, source, path)
        table = typed(train[judged], holdout[judged], read_table(path)[0][judged], target)
        if learnt is None:
            learnt = utility(table, table.train, derive(number, "utility"), balancing=("none",))
        own = judge(table, learnt, seed=number, redraws=2, jobs=1, balancing=("none",), title=f"{name} {seed} {number}")
        found.append(flat(own.figures))
    names = [figure for figure in found[0] if all(figure in one for one in found)]
    return {
        "seed": seed,
        "rows": {"train": len(train), "holdout": len(holdout)},
        "fit": {key: report[key] for key in ("validation_nats", "best_epoch", "stopped_by", "unmasked_valid_share")},
        "costs": costs | {"rows_per_cpu_second": float(np.mean(rows_per_second))},
        "mean": {figure: float(np.mean([one[figure] for one in found])) for figure in names},
        "sd_over_redraws": {figure: float(np.std([one[figure] for one in found])) for figure in names},
    }


def page(results: Mapping[str, Any]) -> str:
    """docs/tables/measured.md."""
    parts = [
        PREFACE.format(machine=results["machine"], redraws=max(kept["redraws"] for kept in results["tables"].values()))
    ]
    for name, kept in results["tables"].items():
        seeds = kept["seeds"]
        rows = seeds[0]["rows"]
        heads = " | ".join(f"seed {seed['seed']}" for seed in seeds)
        parts.append(
            f"\n## {name}\n\n{rows['train']:,} training rows, {rows['holdout']:,} held out; target "
            f"`{kept['target']}`.\n\n"
            f"| figure | mean | {heads} | good |\n|---|---|{'---|' * len(seeds)}---|"
        )
        for label, figure, good in SHOWN:
            part, _, key = figure.partition(".")
            values = [seed[part][key] if part in ("fit", "costs") else seed["mean"].get(figure) for seed in seeds]
            if any(value is None for value in values):
                continue
            cells = [_cell(float(np.mean(values))), *map(_cell, values)]
            parts.append(f"| {label} | {' | '.join(cells)} | {good} |")
    return "\n".join(parts) + "\n"


def _cell(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.3f}"


def bars(results: Path, aligned: Path, name: str) -> str:
    """What a table must reach: its fits, and its alignments."""
    content = json.loads(aligned.read_text()) if aligned.exists() else {}
    kept = json.loads(results.read_text())["tables"].get(name) if results.exists() else None
    if content.get("table", name) != name:
        content = {}
    # Without a second real sample to compare with, none may be copied.
    copies = content.get("arms", {}).get("real", {}).get(COPIES, {}).get("mean", 0.0)
    fits = table(f"{name}: fits", of_fits(kept, copies)) if kept else f"{name}: no fits in {results}"
    return f"{fits}\n\n{table(f'{name}: alignments', of_alignments(content))}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--target")
    parser.add_argument("--tables", nargs="*", default=[])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--redraws", type=int, default=6)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--page", action="store_true", help="only write docs/tables/measured.md from the results")
    parser.add_argument("--bars", action="store_true", help="only show the bars, from the results")
    parser.add_argument("--aligned", type=Path, default=ALIGNED, help="results of table_alignment.py, for the bars")
    given = parser.parse_args()
    if given.page:
        PAGE.write_text(page(json.loads(given.out.read_text())))
        return
    name = given.data.stem if given.data is not None else "heloc"
    if given.bars:
        print(bars(given.out, given.aligned, name))
        return
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for table, data, target in tables(given.data, given.target, given.tables, folder):
            for seed in range(given.first_seed, given.first_seed + given.seeds):
                one = seed_of(table, data, target, seed, given.redraws, folder)
                results = json.loads(given.out.read_text()) if given.out.exists() else {"tables": {}}
                results["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, one used"
                kept = results["tables"].setdefault(table, {"target": target, "redraws": given.redraws, "seeds": []})
                kept["seeds"] = sorted(
                    [*(old for old in kept["seeds"] if old["seed"] != seed), one], key=lambda seed: seed["seed"]
                )
                for part in ("mean", "costs"):
                    shared = set.intersection(*(set(each[part]) for each in kept["seeds"]))
                    kept[part] = {
                        figure: float(np.mean([each[part][figure] for each in kept["seeds"]]))
                        for figure in sorted(shared)
                    }
                given.out.parent.mkdir(exist_ok=True)
                given.out.write_text(json.dumps(results, indent=1) + "\n")
                print(
                    table,
                    seed,
                    {key: round(value, 4) for key, value in (one["mean"] | one["costs"]).items()},
                    flush=True,
                )
    print(bars(given.out, given.aligned, name))


if __name__ == "__main__":
    main()
