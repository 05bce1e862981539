"""Score folders as `preflab table score` writes them: histograms, correlations and rows of given tables, figures made
up to be like those of a good synthesizer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_wine

Table = dict[str, np.ndarray]
"""Columns of numbers or of text; negative whole numbers are special codes."""
MODELS = ("random_forest", "decision_tree", "logistic_regression", "gradient_boosting")
EVIDENCE = "Tests of privacy are evidence and no guarantee."
NOTES = ("No rows per CPU second.", "Repeated real rows set aside: 12.")


def wine(rows: np.random.Generator) -> Table:
    """Rows of the wine table (178 rows, 13 numbers and a class), drawn with a little noise."""
    data = load_wine()
    picked = rows.integers(0, len(data.data), 300)
    noisy = data.data[picked] * (1 + 0.03 * rows.normal(size=(300, data.data.shape[1])))
    columns: Table = {name: noisy[:, i] for i, name in enumerate(data.feature_names)}
    columns["malic_acid"] = np.where(rows.random(300) < 0.2, -9, columns["malic_acid"])
    columns["class"] = data.target_names[data.target[picked]]
    return columns


def is_text(values: np.ndarray) -> bool:
    return values.dtype.kind in "UO"


def marginal(name: str, real: np.ndarray, synthetic: np.ndarray) -> dict[str, Any]:
    """Histograms of one column: of levels, or of special codes and a scale."""
    if is_text(real):
        labels = sorted({str(x) for x in real} | {str(x) for x in synthetic})
        both = [[int((side.astype(str) == label).sum()) for label in labels] for side in (real, synthetic)]
        return {"column": name, "labels": labels, "real": both[0], "synthetic": both[1]}
    sides = [np.asarray(side, dtype=float) for side in (real, synthetic)]
    codes = sorted({int(x) for x in sides[0] if x < 0 and x == round(x)}) if sides[0].min() < 0 else []
    scales = [side[~np.isin(side, codes)] for side in sides]
    edges = np.histogram_bin_edges(np.concatenate(scales), 16) if len(scales[0]) else np.array([0.0, 1.0])
    counts = [
        [int((side == code).sum()) for code in codes] + np.histogram(scale, edges)[0].tolist()
        for side, scale in zip(sides, scales, strict=True)
    ]
    labels = [str(code) for code in codes] if codes else None
    return {"column": name, "labels": labels, "edges": edges.tolist(), "real": counts[0], "synthetic": counts[1]}


def correlations(table: Table) -> list[list[float | None]]:
    coded = [np.unique(v, return_inverse=True)[1] for v in table.values()]
    with np.errstate(invalid="ignore"):
        matrix = np.atleast_2d(np.corrcoef(np.stack(coded)))
    return [[None if np.isnan(x) else float(x) for x in line] for line in matrix]


def models(shift: float, classes: Sequence[str], regression: bool) -> dict[str, Any]:
    if regression:
        return {m: {"none": {"r2": 0.5 - shift - i / 100, "rmse": 50 + 100 * shift}} for i, m in enumerate(MODELS)}
    return {
        model: {
            balance: {
                "accuracy": 0.72 - shift - i / 100,
                "balanced_accuracy": 0.71 - shift - i / 100 + j / 1000,
                "macro_f1": 0.7 - shift - i / 100,
                "auc": 0.79 - shift - i / 100,
                "kappa": 0.4 - shift,
                "f1": dict.fromkeys(classes, 0.7 - shift),
            }
            for j, balance in enumerate(("none", "class_weight", "smote", "over", "under", "smoteenn"))
        }
        for i, model in enumerate(MODELS)
    }


def utility(shift: float, classes: Sequence[str], regression: bool) -> dict[str, Any]:
    made = models(shift, classes, regression)
    measures = ("r2", "rmse") if regression else ("accuracy", "auc", "macro_f1")
    mean = {m: float(np.mean([made[model]["none"][m] for model in MODELS])) for m in measures}
    return {"models": made, "mean": mean}


def subject(name: str, title: str, *, auc: float, shift: float, classes: Sequence[str], regression: bool) -> dict:
    trained, real = (utility(s, classes, regression) for s in (shift, 0.0))
    gap = {m: real["mean"][m] - trained["mean"][m] for m in real["mean"]}
    figures = {
        "fidelity": {
            "quality": 0.988, "column_shapes": 0.984, "column_pair_trends": 0.992, "marginal_distance": 0.025,
            "spearman_difference": 0.028,
        },
        "detectability": {"gradient_boosting_auc": auc, "random_forest_auc": auc - 0.02, "logistic_auc": 0.51},
        "utility": trained | {"gap": gap},
        "diversity": {
            "precision": 0.909, "recall": 0.929, "density": 0.99, "coverage": 0.969, "duplicate_share": 0.0004,
            "common_row_share": 0.052,
        },
        "privacy": {
            "copies": 0, "copy_share": 0.0, "distance_share": 0.505, "distance_p5": 0.7, "distance_p5_holdout": 0.69,
            "distance_median": 1.25, "distance_median_holdout": 1.26, "membership_auc": 0.497,
            "membership_tpr_at_1pct_fpr": 0.011,
        },
        "validity": {
            "parsed_share": 1.0, "domain_share": 0.9951, "rules": 41, "rule_violation_share": 0.0512,
            "rule_violation_share_holdout": 0.0301, "unseen_cell_share": 0.0021,
        },
    }  # fmt: skip
    return {"name": name, "title": title, "figures": figures}


def score(
    real: Table, synthetic: Table, *, target: str | None, regression: bool = False, auc: float = 0.553
) -> dict[str, Any]:
    """What score.json holds."""
    classes = sorted({str(x) for x in real[target]}) if target and not regression else []
    made: dict[str, Any] = {"classes": classes, "regression": regression}
    edges = np.linspace(0, 3, 31)
    rng = np.random.default_rng(5)
    content = {
        "files": {
            name: {"path": f"{name}.csv", "rows": rows, "sha256": digit * 64}
            for name, rows, digit in (("train", 6694, "a"), ("holdout", 1673, "b"), ("synthetic", 6694, "c"))
        },
        "target": target,
        "seed": 0,
        "redraws": 2,
        "preflab": "0.1.0",
        "columns": [{"name": n, "kind": "category" if is_text(v) else "decimal"} for n, v in real.items()],
        "evidence": EVIDENCE,
        "notes": list(NOTES),
        "subjects": [
            subject("synthetic", "synthetic rows", auc=auc, shift=0.003, **made),
            subject("real", "a second real sample", auc=0.492, shift=0.011, **made),
            subject("marginals", "independent columns", auc=1.0, shift=0.27, **made),
        ],
        "utility_of_real": utility(0.0, classes, regression),
        "pictures": {
            "marginals": [marginal(name, real[name], synthetic[name]) for name in real],
            "associations": {
                "columns": list(real), "real": correlations(real), "synthetic": correlations(synthetic)
            },
            "roc": {
                name: {"fpr": np.linspace(0, 1, 50).tolist(), "tpr": (np.linspace(0, 1, 50) ** power).tolist()}
                for name, power in (("gradient_boosting", 0.81), ("random_forest", 0.87), ("logistic", 0.96))
            },
            "distances": {
                "edges": edges.tolist(),
                "synthetic_to_train": np.histogram(rng.gamma(8, 0.16, 4000), edges)[0].tolist(),
                "holdout_to_train": np.histogram(rng.gamma(8, 0.16, 1600), edges)[0].tolist(),
            },
            "rules": [
                {"rule": "malic_acid ≤ ash", "synthetic": 0.004, "holdout": 0.0},
                {"rule": "flavanoids ≤ alcohol", "synthetic": 0.0312, "holdout": 0.0011},
            ],
            "rows": {
                "columns": list(synthetic),
                "cells": [
                    [str(v[i]) if is_text(v) else f"{v[i]:g}" for v in synthetic.values()] for i in range(10)
                ],
            },
        },
    }  # fmt: skip
    if target is None:
        content["utility_of_real"] = None
        for judged in content["subjects"]:
            judged["figures"]["utility"] = None
    return content


def usual(columns: Sequence[str] = ("alcohol", "malic_acid", "hue", "proline", "class"), **how: Any) -> dict[str, Any]:
    """The score of rows like those of the wine table."""
    sides = [wine(np.random.default_rng(seed)) for seed in (0, 1)]
    real, synthetic = ({name: side[name] for name in columns} for side in sides)
    return score(real, synthetic, **{"target": "class"} | how)


def write_score(folder: Path, content: Mapping[str, Any]) -> Path:
    """A score folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "score.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_fit(folder: Path, *, steps: int = 12) -> Path:
    """The run folder of a fit, as far as the report reads it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text("layers: 4\nwidth: 128\n")
    nats = [40 + 20 * 0.7**i + 0.02 * i * i for i in range(steps)]
    best = int(np.argmin(nats))
    lines = [
        {"step": 48 * (i + 1), "nats": n + 0.4 * np.sin(i), "validation_nats": n, "seconds": 9.0 * i}
        for i, n in enumerate(nats)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fit = {
        "rows": 6025, "validation_rows": 669, "validation_nats": nats[best], "best_step": 48 * (best + 1),
        "stopped_by": "validation", "seconds": 301.5, "cpu_seconds": 288.0,
    }  # fmt: skip
    (folder / "fit.json").write_text(json.dumps(fit))
    return folder
