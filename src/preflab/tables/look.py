"""A quick look at the rows that a model writes while it is fitted: two figures for the person who watches. What rows
are worth is `judge/`'s to say, on a holdout."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from preflab.seeds import derive
from preflab.tables.draw import draw_rows
from preflab.tables.encoding import Encoding
from preflab.tables.judge.fidelity import kolmogorov_smirnov

Codes = Int[np.ndarray, "row column"]

MOST_ROWS = 1000
TREES = 60
FOLDS = 3


def look(model: Any, encoding: Encoding, real: Codes, *, seed: int) -> dict[str, float]:
    """How far as many rows as there are real ones, at most 1,000, are from these.

    Returns:
        `column_distance`: the largest difference between the cumulative shares of a column's codes, averaged over
        columns; `told_apart_auc`: of boosted trees, cross-validated; 0.5 if they can't tell.
    """
    real = real[:MOST_ROWS]
    written = draw_rows(model, encoding, len(real), seed=derive(seed, "look")).codes
    distances = [kolmogorov_smirnov(*column) for column in zip(real.T, written.T, strict=True)]
    figures = {"column_distance": float(np.mean(distances))}
    if len(real) >= 2 * FOLDS:
        rows, labels = np.concatenate([real, written]), np.repeat([0, 1], [len(real), len(written)])
        trees = HistGradientBoostingClassifier(max_iter=TREES, max_leaf_nodes=15, random_state=0)
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=derive(seed, "folds") % 2**32)
        said = cross_val_predict(trees, rows, labels, cv=folds, method="predict_proba")[:, 1]
        figures["told_apart_auc"] = float(roc_auc_score(labels, said))
    return figures
