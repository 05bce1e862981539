"""Table study folders as `preflab compare table` writes them, of drawn numbers whose truth is given."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

AUC, FOREST = "detectability.gradient_boosting_auc", "detectability.random_forest_auc"
LEVELS = ("row", "feature")
TRUTH = {
    AUC: 0.547, FOREST: 0.540, "detectability.logistic_auc": 0.510, "fidelity.quality": 0.985, "utility.gap.auc": 0.004,
    "diversity.precision": 0.91, "diversity.recall": 0.92, "diversity.coverage": 0.96,
    "diversity.duplicate_share": 0.001, "privacy.copies": 0.0, "privacy.distance_share": 0.505,
    "privacy.membership_auc": 0.501, "validity.rule_violation_share": 0.04,
}  # fmt: skip
"""Of the reference."""


@dataclass(frozen=True)
class Made:
    """An arm: what is added to the reference's truth, and how it was trained."""

    name: str
    change: Mapping[str, float] = field(default_factory=dict)
    kl: float = 1.0
    cpu_seconds: float = 100.0
    gain: float = 0.03
    """In validation AUC."""
    fast: float = 0.5
    """The share of training that it takes to half of the gain is smaller the larger this is."""
    seed_sd: float = 0.0
    """Of the arm's own luck, in each figure, beside the study's."""
    collapsed: bool = False
    entropy_end: float = 1.9


ARMS = (
    Made("reference", kl=0.0),
    Made("resampled", {AUC: -0.008, FOREST: -0.006}, kl=0.4),
    Made("dpo", {AUC: -0.015, FOREST: -0.012}, kl=2.0, cpu_seconds=80, gain=0.02, fast=2.0),
    Made(
        "ppo",
        {AUC: -0.027, FOREST: -0.020, "diversity.recall": -0.03, "diversity.duplicate_share": 0.004},
        kl=3.5, cpu_seconds=240, gain=0.03, entropy_end=1.5,
    ),
    Made("grpo", {AUC: -0.022, FOREST: -0.018}, kl=3.0, cpu_seconds=200, gain=0.022),
    Made("dpo+ppo", {AUC: -0.025, FOREST: -0.019}, kl=4.0, cpu_seconds=300, gain=0.028),
)  # fmt: skip


def figures(made: Made, luck: Mapping[str, float], noise: float, rng: np.random.Generator) -> dict[str, float]:
    """One redraw's figures."""
    found = {
        name: value + made.change.get(name, 0.0) + luck[name] + noise * rng.normal() for name, value in TRUTH.items()
    }
    found["privacy.copies"] = float(max(0, round(made.change.get("privacy.copies", 0.0))))
    found["diversity.duplicate_share"] = max(0.0, TRUTH["diversity.duplicate_share"] + made.change.get(
        "diversity.duplicate_share", 0.0) + 0.02 * noise * rng.normal())  # fmt: skip
    return found


def aligned(made: Made, seed: int, rng: np.random.Generator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """align.json and the lines of metrics.jsonl."""
    points: list[dict[str, Any]] = []
    lines: list[dict[str, Any]] = []
    for step in range(0, 101, 10):
        part = step / 100
        points.append(
            {
                "round": min(2, -(-step // 50)), "step": step, "nats": 50.4 - part,
                "told_apart_auc": 0.56 - made.gain * min(1.0, part**(1 / made.fast) if part else 0.0),
                "kl_nats": made.kl * part,
                "reward": -0.2 + 0.3 * part + 0.01 * rng.normal() if step else None,
                "queries": 400 * step,
                "wall_seconds": made.cpu_seconds * part, "cpu_seconds": made.cpu_seconds * part,
            }
        )  # fmt: skip
    for step in range(1, 101):
        parts = {f"reward/{level}": -0.2 + 0.003 * step + 0.05 * rng.normal() for level in LEVELS}
        entropy = 2.0 + (made.entropy_end - 2.0) * step / 100 + 0.01 * rng.normal()
        parts["reward/clipped"] = 0.5
        lines.append(
            {
                "step": step,
                "round": 1 + (step > 50),
                "reward": 0.003 * step + 0.01 * rng.normal(),
                "entropy_nats": entropy,
            }
            | parts
        )
    held = [
        {
            "name": name, "level": level, "auc": auc, "auc_low": auc - 0.01, "auc_high": auc + 0.01, "slope": 1.0,
            "offset": 0.0, "log_loss": 0.69,
        }
        for name, level, auc in (("row", "row", 0.57), ("feature 1", "feature", 0.54), ("all", "row", 0.58))
    ]  # fmt: skip
    rounds = [
        {
            "round": number, "written": 24100, "seconds": 20.0, "cpu_seconds": 20.0,
            "discriminators": [h | {"auc": h["auc"] - 0.02 * (number - 1)} for h in held],
        }
        for number in (1, 2)
    ]  # fmt: skip
    cost = {
        "wall_seconds": made.cpu_seconds + rng.normal(), "cpu_seconds": made.cpu_seconds * np.exp(0.02 * rng.normal()),
        "discriminator_cpu_seconds": 20.0, "queries": 40_000, "generated_tokens": 1_000_000, "trained_tokens": 900_000,
        "peak_memory_bytes": 800_000_000,
    }  # fmt: skip
    found = {
        "method": made.name, "reward": "logit", "rows": {"real": 6025, "validation": 669}, "rounds": rounds,
        "points": points, "chosen": {"round": 2, "step": 100}, "cost": cost, "collapsed": made.collapsed,
        "warnings": ["KL is large."] if made.kl > 3.6 else [],
    }  # fmt: skip
    return found, lines


def write_table_study_folder(
    folder: Path,
    arms: Sequence[Made] = ARMS,
    *,
    seeds: int = 3,
    redraws: int = 4,
    seed_sd: float = 0.004,
    noise: float = 0.003,
    draw: int = 0,
    complete: bool = True,
) -> Path:
    """A study folder. Each seed has luck that all arms share, each arm of a seed its own, each redraw its noise."""
    rng = np.random.default_rng(draw)
    folder.mkdir(parents=True, exist_ok=True)
    study = {
        "kind": "table", "study": {"epochs": 12, "align.rounds": 2}, "title": "DPO and PPO on heloc",
        "table": {"name": "heloc", "rows": 8367, "columns": 24, "target": "RiskPerformance"},
        "arms": [
            {"name": made.name, "label": label_of(made.name), "description": f"The arm {made.name}."} for made in arms
        ],
        "seeds": list(range(seeds)), "redraws": redraws, "primary": AUC, "independent": FOREST,
        "notes": ["Repeated real rows set aside: 12."], "warnings": ["A seed was slow."], "complete": complete,
    }  # fmt: skip
    write(folder / "study.json", study)
    real = Made("real", {AUC: -0.055, FOREST: -0.045})
    for seed in range(seeds):
        shared = {name: seed_sd * rng.normal() for name in TRUTH}
        place = folder / "seeds" / f"seed-{seed}"
        write(place / "table" / "fit.json", {"rows": 6025, "cpu_seconds": 95.0, "stopped_by": "epochs"})
        for made in (*arms, real):
            own = {name: luck + made.seed_sd * rng.normal() for name, luck in shared.items()}
            drawn = [{"redraw": r, "figures": figures(made, own, noise, rng)} for r in range(redraws)]
            found = {
                "arm": made.name, "seed": seed, "draws": drawn, "rows": 6694, "rows_per_cpu_second": 1700.0 + seed,
                "kl_nats": None if made.name == "real" else made.kl * (1 + 0.02 * seed),
                "unmasked_valid_share": None if made.name in ("real", "resampled") else 0.9,
            }  # fmt: skip
            write(place / "judged" / f"{made.name}.json", found)
            if made.name not in ("reference", "resampled", "real"):
                align, lines = aligned(made, seed, rng)
                write(place / "table" / "aligned" / made.name / "align.json", align)
                text = "".join(json.dumps(line) + "\n" for line in lines)
                (place / "table" / "aligned" / made.name / "metrics.jsonl").write_text(text)
    return folder


def label_of(name: str) -> str:
    """As the study names its arms."""
    labels = {"dpo": "online DPO", "resampled": "importance resampling", "dpo+ppo": "DPO, then PPO"}
    return labels.get(name, name.upper() if len(name) < 5 else name)


def write(path: Path, content: object) -> None:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
