"""Which checkpoint of an alignment speaks for it: the one whose rows are told from validation rows least.

Validation rows are real rows on which neither the model nor a discriminator took a step. They are few, so figures of
checkpoints are compared on the same rows, drawn from the same uniforms: what chance does to one it does to the other.
The forest that tells them apart is shown differences between columns too: one that sees columns alone hardly notices
what alignment mends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num
from sklearn.ensemble import RandomForestClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict

from preflab.data.encode import Tree
from preflab.models.scoring import logprobs_of
from preflab.rollouts.mask import grammar_of
from preflab.seeds import derive
from preflab.tables.discriminators.relations import LOOKED_AT, Relation, numbers, told_by
from preflab.tables.draw import draw_rows
from preflab.tables.encoding import Encoding

Codes = Int[np.ndarray, "row column"]
Features = Num[np.ndarray, "row feature"]

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


def measure(
    policy: Any,
    reference: Any,
    encoding: Encoding,
    validation: Codes,
    relations: Sequence[Relation] = (),
    *,
    count: int,
    seed: int,
) -> Found:
    """Draw `count` rows and look.

    Args:
        relations: of two columns, that the forest is shown beside the columns.
    """
    rows = draw_rows(policy, encoding, count, seed=derive(seed, "rows")).codes
    mine = row_logprobs(policy, encoding, rows[:KL_ROWS])
    kl = 0.0 if policy is reference else float((mine - row_logprobs(reference, encoding, rows[:KL_ROWS])).mean())
    return Found(
        told_apart_auc=told_apart(
            *(features(encoding, some, relations) for some in (validation, rows)), seed=derive(seed, "classifier")
        ),
        nats=-float(row_logprobs(policy, encoding, validation).mean()),
        kl_nats=kl,
        distinct_share=len(np.unique(rows, axis=0)) / len(rows),
    )


def differences(encoding: Encoding, reference: Any, train: Codes, *, seed: int) -> tuple[Relation, ...]:
    """The differences between columns in which training rows and rows of the reference are most apart."""
    written = draw_rows(reference, encoding, min(len(train), LOOKED_AT), seed=derive(seed, "relations")).codes
    return told_by(encoding.columns, train, written, ("difference",))


def features(encoding: Encoding, codes: Codes, relations: Sequence[Relation]) -> Features:
    """Rows as the forest sees them. Codes rise with the numbers that they stand for, which is all that a tree asks."""
    if not relations:
        return codes.astype(float)
    values = numbers(encoding.columns, codes)
    return np.column_stack([codes, *(relation.of(values) for relation in relations)])


def told_apart(real: Features, written: Features, *, seed: int) -> float:
    """AUC of a random forest out of fold, both classes counted alike, the mean over repeats."""
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
