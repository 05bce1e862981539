"""DPO and PPO against discriminators of a table's rows: `preflab compare table`, over seeds, and on weak references.

    python benchmarks/table_alignment.py --data heloc.csv --target RiskPerformance --out runs/alignment

Each seed is a study of its own in OUT/seed-S (`--first-seed`, `--seeds`, `--arms`, so that seeds can be run apart, each
on a core); `--join` puts all seeds that are there into OUT/study, draws its report, and writes
benchmarks/results/table_alignment.json: mean, interval and paired difference to the reference of each figure, by arm;
and which aligned arm is the best on validation rows. `tables.py --bars` shows what they must reach.
`--weak` fits references that are stopped early, or see few rows, aligns each, and judges reference, aligned policy and
resampled rows: a curve of detectability before and after against the reference's quality. Seconds are of this machine,
and of what else it did at the time.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from scipy import stats

from marks import fill
from preflab.report.table_study import write_table_study
from preflab.report.table_study_folder import Alignment, read_table_study
from preflab.report.table_study_verdicts import best_of
from preflab.runs import read_json, write_json
from preflab.tables.alignment.align import rows_of
from preflab.tables.alignment.choose import differences, features, told_apart
from preflab.tables.draw import draw_rows
from preflab.tables.files import read_table
from preflab.tables.fitted import Fitted

RESULTS = Path(__file__).resolve().parent / "results" / "table_alignment.json"
PAGE = Path(__file__).resolve().parent.parent / "docs" / "tables" / "alignment.md"
BEGIN, END = "<!-- measured -->", "<!-- end of measured -->"
ARMS = ("reference", "resampled", "dpo", "ppo", "grpo", "dpo+ppo")
WEAK = {
    "2 passes": ("--fit.epochs", "2"),
    "3 passes": ("--fit.epochs", "3"),
    "5 passes": ("--fit.epochs", "5"),
    "500 rows": (),
}
"""References that learned little: flags of the fit."""
FEW_ROWS = 500
FIGURES = (
    "detectability.gradient_boosting_auc",
    "detectability.random_forest_auc",
    "detectability.logistic_auc",
    "fidelity.quality",
    "utility.gap.auc",
    "diversity.precision",
    "diversity.recall",
    "diversity.coverage",
    "diversity.duplicate_share",
    "privacy.copies",
    "privacy.distance_share",
    "privacy.membership_auc",
    "validity.rule_violation_share",
)


RELATED = "detectability.related_forest_auc"


def study(
    data: Path, target: str, out: Path, *, seed: int, arms: Sequence[str], redraws: int, extra: Sequence[str] = ()
) -> None:
    """Run the command for one seed."""
    command = [sys.executable, "-m", "preflab", "compare", "table", "--data", str(data), "--target", target]
    command += ["--arms", ",".join(arms), "--seed", str(seed), "--seeds", "1", "--redraws", str(redraws)]
    subprocess.run([*command, "--out", str(out), *extra], check=True)


def means(folder: Path, arm: str) -> dict[str, float]:
    """The figures of an arm of one seed, mean over redraws."""
    draws = [one["figures"] for one in read_json(folder / "judged" / f"{arm}.json")["draws"]]
    return {name: float(np.mean([draw[name] for draw in draws])) for name in FIGURES if draws[0].get(name) is not None}


def interval(values: Sequence[float]) -> dict[str, Any]:
    """Mean over seeds and its 95 % interval by Student's t; None where there is one seed."""
    n, mean = len(values), float(np.mean(values))
    half = None
    if n > 1:
        half = float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / n**0.5)
    return {"mean": mean, "half_width": half, "seeds": n, "each": list(values)}


def costs(folder: Path, arms: Mapping[str, Alignment | None]) -> dict[str, dict[str, float]]:
    """Of one seed: what the fit and each alignment took, all its stages; KL and sampling speed of each arm."""
    found, fit = {}, read_json(folder / "table" / "fit.json")
    for arm, alignment in arms.items():
        judged = read_json(folder / "judged" / f"{arm}.json")
        found[arm] = {name: judged[name] for name in ("kl_nats", "rows_per_cpu_second", "unmasked_valid_share")}
        if alignment is not None:
            spent = alignment.cost
            found[arm] |= {name: spent[name] for name in ("cpu_seconds", "queries", "discriminator_cpu_seconds")}
            found[arm]["seconds"] = fit["seconds"] + spent["wall_seconds"]
    found["reference"] |= {name: fit[name] for name in ("cpu_seconds", "seconds")}
    return found


def related(folder: Path, arms: Sequence[str]) -> dict[str, float]:
    """AUC of the forest that sees differences between columns, on the holdout of a seed, by policy; kept in a file."""
    kept = folder / "related.json"
    if kept.exists():
        found: dict[str, float] = read_json(kept)
        return found
    fitted = Fitted.load(folder / "table")
    rows = rows_of(fitted)
    holdout = fitted.context(read_table(next((folder / "table").glob("holdout.*")))[0], None)[0]
    relations = differences(fitted.encoding, fitted.model("reference"), rows.train, seed=0)
    real = features(fitted.encoding, holdout, relations)
    found = {}
    for arm in arms:
        if arm not in fitted.policies():
            continue
        count, orders = 3 * len(holdout), fitted.orders
        written = draw_rows(fitted.model(arm), fitted.encoding, count, seed=77, orders=orders).codes
        found[arm] = told_apart(real, features(fitted.encoding, written, relations), seed=0)
    write_json(kept, found)
    return found


def join(out: Path) -> None:
    """All seeds in one study, its report, and the figures of its arms."""
    parts = sorted(out.glob("seed-*/study.json"), key=lambda path: int(path.parent.name.split("-")[1]))
    whole = out / "study"
    shutil.rmtree(whole, ignore_errors=True)
    (whole / "seeds").mkdir(parents=True)
    said = [read_json(part) for part in parts]
    arms = max((one["arms"] for one in said), key=len)
    seeds = [seed for one in said for seed in one["seeds"]]
    for part in parts:
        for seed in part.parent.glob("seeds/seed-*"):
            (whole / "seeds" / seed.name).symlink_to(seed.resolve())
    write_json(whole / "study.json", said[0] | {"seeds": seeds, "arms": arms})
    write_table_study(whole)
    found: dict[str, Any] = {}
    joined = read_table_study(whole)
    best = best_of(joined)
    spent = {
        seed: costs(
            whole / "seeds" / f"seed-{seed}",
            {arm.name: arm.alignments.get(seed) for arm in joined.arms if seed in arm.judged},
        )
        for seed in seeds
    }
    names = [one["name"] for one in arms]
    apart = {seed: related(whole / "seeds" / f"seed-{seed}", names) for seed in seeds}
    for arm in [*names, "real"]:
        there = [seed for seed in seeds if (whole / "seeds" / f"seed-{seed}" / "judged" / f"{arm}.json").exists()]
        mine = [means(whole / "seeds" / f"seed-{seed}", arm) for seed in there]
        base = [means(whole / "seeds" / f"seed-{seed}", "reference") for seed in there]
        found[arm] = {
            name: interval([one[name] for one in mine])
            | {"difference": interval([one[name] - two[name] for one, two in zip(mine, base, strict=True)])}
            for name in mine[0]
        }
        together = {seed: of[arm] for seed, of in apart.items() if arm in of and seed in there}
        if together:
            values, base_values = list(together.values()), [apart[seed]["reference"] for seed in together]
            gaps = [one - two for one, two in zip(values, base_values, strict=True)]
            found[arm][RELATED] = interval(values) | {"difference": interval(gaps)}
        for name in sorted({name for one in there for name in spent[one].get(arm, {})}):
            values = [spent[one][arm][name] for one in there if spent[one][arm].get(name) is not None]
            found[arm][name] = interval(values) if values else None
    content = read_json(RESULTS) if RESULTS.exists() else {}
    machine = f"{os.cpu_count()} × {platform.machine()}"
    of_all = {
        "table": joined.table,
        "machine": machine,
        "seeds": seeds,
        "redraws": said[0]["redraws"],
        "best": best and best.arm.name,
    }
    write_json(RESULTS, content | of_all | {"arms": found})
    page()
    print(json.dumps({arm: found[arm][FIGURES[0]] for arm in found}, indent=1))


SHOWN = {
    "detectability, boosting: AUC": FIGURES[0],
    "detectability, forest: AUC": FIGURES[1],
    "… a forest that is shown differences": RELATED,
    "quality (sdmetrics)": FIGURES[3],
    "utility lost: AUC": FIGURES[4],
    "recall": FIGURES[6],
    "coverage": FIGURES[7],
    "copies of training rows": FIGURES[9],
    "nearer to train than to holdout": FIGURES[10],
    "membership: AUC": FIGURES[11],
    "rows that break a rule": FIGURES[12],
    "KL to the reference, nats": "kl_nats",
    "legal without the mask": "unmasked_valid_share",
    "rows paid": "queries",
    "CPU seconds": "cpu_seconds",
}


def page() -> None:
    """The figures into the documentation, between two marks."""
    content = read_json(RESULTS)
    arms = content.get("arms", {})
    lines = ["| | " + " | ".join(arms) + " |", "|---" * (len(arms) + 1) + "|"]
    for title, name in SHOWN.items():
        lines.append(f"| {title} | " + " | ".join(cell(arms[arm].get(name)) for arm in arms) + " |")
    if "weak" in content:
        lines += ["", "| reference | " + " | ".join(["reference", "resampled", "ppo"]) + " |", "|---|---|---|---|"]
        lines += [
            f"| {name} | "
            + " | ".join(f"{one[arm][FIGURES[0]]:.3f}" for arm in ("reference", "resampled", "ppo"))
            + " |"
            for name, one in content["weak"].items()
        ]
    fill(PAGE, "\n".join(lines), BEGIN, END)


def cell(found: dict[str, Any] | None) -> str:
    """Mean ± half width, and the paired difference to the reference where its interval excludes 0."""
    if found is None:
        return ""
    mean, half = found["mean"], found["half_width"]
    digits = 3 if abs(mean) < 2 else 0
    text = f"{mean:,.{digits}f}" + ("" if half is None else f" ± {half:,.{digits}f}")
    apart = found.get("difference")
    if apart and apart["half_width"] is not None and abs(apart["mean"]) > apart["half_width"] > 0:
        text += f" **({apart['mean']:+.{digits}f} ± {apart['half_width']:.{digits}f})**"
    return text


def weak(data: Path, target: str, out: Path, redraws: int, only: str) -> None:
    """References of rising quality, each aligned."""
    few = out / "few.csv"
    out.mkdir(parents=True, exist_ok=True)
    if not few.exists():
        lines = data.read_text().splitlines(keepends=True)
        order = np.random.default_rng(0).permutation(np.arange(1, len(lines)))
        # the holdout stays large: 500 rows to learn from, as many times more to be judged by
        few.write_text("".join([lines[0], *(lines[place] for place in order[: 5 * FEW_ROWS])]))
    found = {}
    for name, flags in WEAK.items():
        if only and name not in only.split(","):
            continue
        folder = out / name.replace(" ", "-")
        given = (few, [*flags, "--holdout", "0.8"]) if name == "500 rows" else (data, list(flags))
        study(given[0], target, folder, seed=0, arms=("reference", "resampled", "ppo"), redraws=redraws, extra=given[1])
        at = folder / "seeds" / "seed-0"
        found[name] = {arm: means(at, arm) for arm in ("reference", "resampled", "ppo")}
        content = read_json(RESULTS) if RESULTS.exists() else {}
        write_json(RESULTS, content | {"weak": content.get("weak", {}) | {name: found[name]}})
    for name, arms in found.items():
        print(name, {arm: round(figures[FIGURES[0]], 3) for arm, figures in arms.items()})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--redraws", type=int, default=3)
    parser.add_argument("--arms", default=",".join(ARMS))
    parser.add_argument("--weak", action="store_true")
    parser.add_argument("--join", action="store_true")
    parser.add_argument("--only", default="", help="of --weak: names, with commas")
    given = parser.parse_args()
    if given.join:
        return join(given.out)
    if given.weak:
        return weak(given.data, given.target, given.out / "weak", given.redraws, given.only)
    for seed in range(given.first_seed, given.first_seed + given.seeds):
        arms = tuple(given.arms.split(","))
        study(given.data, given.target, given.out / f"seed-{seed}", seed=seed, arms=arms, redraws=given.redraws)
    join(given.out)


if __name__ == "__main__":
    main()
