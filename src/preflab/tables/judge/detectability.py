"""Can a classifier tell synthetic rows from real ones that nothing was trained on?

The classifier two-sample test (Lopez-Paz and Oquab 2017, arXiv:1610.06545), with the area under the ROC curve in place
of accuracy: 0.5 where it can't, 1 where it always can. Its standard deviation from redraw to redraw is about 0.01 with
1,600 rows of each.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, assert_never, get_args

import numpy as np
import pandas as pd
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from preflab.progress import stage
from preflab.seeds import derive
from preflab.tables.judge import learners
from preflab.tables.judge.typed import Typed

Classifier = Literal["gradient_boosting", "random_forest", "logistic"]
CLASSIFIERS: tuple[Classifier, ...] = get_args(Classifier)

FOLDS = 5
ROC_POINTS = 101


@dataclass(frozen=True)
class Detector:
    """What one classifier could tell."""

    auc: float
    """Mean over redraws of the AUC of predictions out of fold, in [0, 1]."""
    spread: float | None
    """Standard deviation over redraws; None for one."""
    fpr: tuple[float, ...]
    """Share of real rows taken for synthetic, rising from 0 to 1."""
    tpr: tuple[float, ...]
    """Share of synthetic rows found, mean over redraws."""


@dataclass(frozen=True)
class Detectability:
    """By classifier; None: could not be computed, and `notes` say why."""

    detectors: Mapping[Classifier, Detector | None]
    rows: int
    """Of each, holdout and synthetic."""
    redraws: int
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, float | None]:
        """How many rows of each were told apart; AUC and spread of each classifier."""
        out: dict[str, float | None] = {"rows": self.rows}
        for name, detector in self.detectors.items():
            out[f"{name}_auc"] = None if detector is None else detector.auc
            out[f"{name}_auc_spread"] = None if detector is None else detector.spread
        return out

    def roc(self) -> dict[str, dict[str, list[float]]]:
        """The curves to draw, of those that there are."""
        return {
            name: {"fpr": list(detector.fpr), "tpr": list(detector.tpr)}
            for name, detector in self.detectors.items()
            if detector is not None
        }


def detectability(
    table: Typed,
    seed: int,
    *,
    classifiers: Sequence[Classifier] = CLASSIFIERS,
    redraws: int = 2,
    jobs: int = 1,
    title: str = "detectability",
) -> Detectability:
    """Cross-validated AUC between the holdout and equally many usable synthetic rows.

    Args:
        table: what to judge.
        seed: determines rows, folds and classifiers, which have seeds of their own: a shuffle of rows and one of folds
            with the same seed would cancel out.
        classifiers: which are asked.
        redraws: how often rows and folds are drawn, ≥ 1.
        jobs: processes that grow trees.
        title: what progress calls this.
    """
    drawn = table.usable
    rows = min(len(table.holdout), len(drawn))
    folds = min(FOLDS, rows)
    if folds < 2:
        note = "no detectability: it takes two rows of the holdout and two synthetic"
        return Detectability(dict.fromkeys(classifiers), rows, redraws, (note,))
    aucs: dict[Classifier, list[float]] = {name: [] for name in classifiers}
    curves: dict[Classifier, list[np.ndarray]] = {name: [] for name in classifiers}
    grid = np.linspace(0, 1, ROC_POINTS)
    labels = np.repeat([0, 1], rows)
    with stage(title, redraws * len(classifiers)) as advance:
        for redraw in range(redraws):
            draw = np.random.default_rng(derive(seed, "detectability", redraw, "rows"))
            both = pd.concat(
                [source.iloc[draw.permutation(len(source))[:rows]] for source in (table.holdout, drawn)],
                ignore_index=True,
            )
            fold_seed = learners.small_seed(derive(seed, "detectability", redraw, "folds"))
            splits = StratifiedKFold(folds, shuffle=True, random_state=fold_seed)
            for place, name in enumerate(classifiers):
                learner, features = _classifier(name, table, both, derive(seed, "detectability", redraw, name), jobs)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    scores = cross_val_predict(learner, features, labels, cv=splits, method="predict_proba")[:, 1]
                aucs[name].append(float(roc_auc_score(labels, scores)))
                curves[name].append(_curve(labels, scores, grid))
                advance(redraw * len(classifiers) + place + 1, f"{name} {aucs[name][-1]:.3f}")
    found: dict[Classifier, Detector | None] = {
        name: Detector(
            auc=float(np.mean(values)),
            spread=float(np.std(values, ddof=1)) if len(values) > 1 else None,
            fpr=(0.0, *(float(x) for x in grid)),
            tpr=(0.0, *(float(y) for y in np.mean(curves[name], axis=0))),
        )
        for name, values in aucs.items()
    }
    return Detectability(found, rows, redraws)


def _classifier(name: Classifier, table: Typed, rows: pd.DataFrame, seed: int, jobs: int) -> tuple[Any, np.ndarray]:
    """A fresh one, and the rows as it reads them."""
    match name:
        case "gradient_boosting":
            return learners.boosting(learners.small_seed(seed), jobs=jobs), table.codes(rows)
        case "random_forest":
            return learners.forest(learners.small_seed(seed), jobs=jobs), learners.filled(table.codes(rows))
        case "logistic":
            return learners.logistic(), table.one_hot(rows)
        case _:
            assert_never(name)


def _curve(labels: np.ndarray, scores: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """The ROC curve's height at each point of the grid; of an upright stretch, its top."""
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return np.interp(grid, fpr, tpr)
