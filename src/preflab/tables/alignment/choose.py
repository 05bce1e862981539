"""Which checkpoint of an alignment speaks for it: the one whose rows are told from validation rows least.

Validation rows are real rows on which neither the model nor a discriminator took a step. They are few, so figures of
checkpoints are compared on the same rows, drawn from the same uniforms: what chance does to one it does to the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from preflab.data.encode import Tree
from preflab.models.scoring import logprobs_of
from preflab.rollouts.mask import grammar_of
from preflab.seeds import derive
from preflab.tables.draw import draw_rows
from preflab.tables.encoding import Encoding

Codes = Int[np.ndarray, "row column"]

FOLDS, REPEATS, TREES, LEAF = 5, 2, 200, 5
KL_ROWS = 1000


@dataclass(frozen=True)
class Found:
    """What validation rows say of a policy."""

    told_apart_auc: float
    """Of a forest that tells its rows from validation rows, out of fold; 0.5 if it can't."""
    nats: float
    """Mean −log π of a validation row."""
    kl_nats: float
    """KL(π‖reference) of a row, estimated from its own rows: mean log π − log π_ref."""
    distinct_share: float
    """Of its rows, those that are the only ones of their kind, or the first."""


def measure(policy: Any, reference: Any, encoding: Encoding, validation: Codes, *, count: int, seed: int) -> Found:
    """Draw `count` rows and look."""
    rows = draw_rows(policy, encoding, count, seed=derive(seed, "rows")).codes
    mine = row_logprobs(policy, encoding, rows[:KL_ROWS])
    kl = 0.0 if policy is reference else float((mine - row_logprobs(reference, encoding, rows[:KL_ROWS])).mean())
    return Found(
        told_apart_auc=told_apart(validation, rows, seed=derive(seed, "classifier")),
        nats=-float(row_logprobs(policy, encoding, validation).mean()),
        kl_nats=kl,
        distinct_share=len(np.unique(rows, axis=0)) / len(rows),
    )


def told_apart(real: Codes, written: Codes, *, seed: int) -> float:
    """AUC of a random forest out of fold, both classes counted alike, the mean over repeats. Codes rise with the
    numbers that they stand for, which is all that a tree asks."""
    rows, labels = np.concatenate([real, written]), np.repeat([0, 1], [len(real), len(written)])
    found = []
    for repeat in range(REPEATS):
        small = derive(seed, repeat) % 2**31
        forest = RandomForestClassifier(
            TREES, min_samples_leaf=LEAF, class_weight="balanced", random_state=small, n_jobs=1
        )
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=small)
        said = cross_val_predict(forest, rows, labels, cv=folds, method="predict_proba")[:, 1]
        found.append(float(roc_auc_score(labels, said)))
    return float(np.mean(found))


def row_logprobs(model: Any, encoding: Encoding, rows: Codes) -> Float[np.ndarray, " row"]:
    """log π of each row, in nats, under the mask."""
    prompt = encoding.prompt()
    trees = [Tree(f"row {place}", prompt, (encoding.response(row),)) for place, row in enumerate(rows.tolist())]
    found: Float[np.ndarray, " row"] = logprobs_of(model, trees, grammar=grammar_of(encoding.mask())).double().numpy()
    return found
