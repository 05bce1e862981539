"""Gradient-boosted trees as discriminators of whole rows, or of one group of columns (LightGBM: Ke et al. 2017).

A tree asks of a number only whether it is above a threshold, so it is given codes for numbers: they rise with the
column's values. Levels of a column with a scale lie below its points, each apart; a column that has none but levels is
a category, split into sets of levels. Beside them it is shown relations of two columns (`relations.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from preflab.config.alignment import Discriminators
from preflab.errors import StorageError
from preflab.runs import sha256, write_text
from preflab.tables.column import Column
from preflab.tables.discriminators.level import Codes, Evidence, Logits
from preflab.tables.discriminators.relations import Relation, numbers, told_by
from preflab.tables.judge.extras import extra

LEAST_LEAF = 30.0
"""Rows in a leaf, at least, where no row is sure to be one or the other; counted by weight, a real row as 1."""
COLUMN_SHARE = 0.8
"""Each tree looks at so many of its columns."""
ASKS = "telling rows apart by trees"


@dataclass(frozen=True)
class Trees:
    """A fitted ensemble."""

    name: str
    level: Literal["row", "feature"]
    columns: tuple[Column, ...]
    """Those that it looks at,"""
    places: tuple[int, ...]
    """and where they stand in a row of codes."""
    relations: tuple[Relation, ...]
    """Of the columns that it looks at, by their places among them."""
    booster: Any

    def logits(self, codes: Codes) -> Logits:
        """logit D, one a row."""
        if not len(codes):
            return np.zeros((0, 1))
        return self.predict(features(self.columns, codes[:, self.places], self.relations))[:, None]

    def row_logits(self, codes: Codes) -> Float[np.ndarray, " row"]:
        """The same as a vector."""
        return self.logits(codes)[:, 0]

    def predict(self, shown: Float[np.ndarray, "row feature"]) -> Float[np.ndarray, " row"]:
        """logit D of rows by what trees are shown of them."""
        return np.asarray(self.booster.predict(shown, raw_score=True, num_threads=1), float)

    def save(self, path: Path) -> None:
        """Write the trees as LightGBM's text."""
        write_text(path, self.booster.model_to_string())


def load_trees(
    path: Path,
    name: str,
    level: Literal["row", "feature"],
    columns: Sequence[Column],
    places: Sequence[int],
    relations: Sequence[Relation] = (),
    *,
    digest: str,
) -> Trees:
    """What `save` wrote.

    Args:
        columns: all that are written.
        places: those among them that the trees look at.
        relations: of these.
        digest: SHA-256 of the file. LightGBM ends the process, with no word of Python's, over some damaged ones.

    Raises:
        ConfigError: LightGBM is not installed.
        StorageError: the file is missing or damaged.
    """
    lightgbm = extra("lightgbm", ASKS)
    try:
        if sha256(path) != digest:
            raise StorageError(f"{path} is not as it was written; align again")
        booster = lightgbm.Booster(model_str=path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{path} can't be read ({error.strerror}); align again") from None
    return Trees(name, level, tuple(columns[place] for place in places), tuple(places), tuple(relations), booster)


def fit_trees(
    columns: Sequence[Column],
    evidence: Evidence,
    settings: Discriminators,
    *,
    seed: int,
    places: Sequence[int] | None = None,
    name: str = "row",
) -> Trees:
    """Learn to tell real from written rows, whatever their folds.

    Written rows weigh as much as the real ones together, each in proportion to its importance. Whatever counts rows
    counts their weight: a row of weight 2 is two rows.

    Args:
        columns: all that are written.
        places: the only columns to look at; None: all, at row level.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    looked_at = tuple(range(len(columns)) if places is None else places)
    seen = tuple(columns[place] for place in looked_at)
    codes = np.concatenate([evidence.real, evidence.written])[:, looked_at]
    relations = told_by(seen, evidence.real[:, looked_at], evidence.written[:, looked_at], settings.relations)
    booster = boosted(
        features(seen, codes, relations),
        np.repeat([1.0, 0.0], [len(evidence.real), len(evidence.written)]),
        class_weights(evidence),
        seen,
        settings,
        least_leaf=LEAST_LEAF,
        seed=seed,
    )
    return Trees(name, "row" if places is None else "feature", seen, looked_at, relations, booster)


def class_weights(evidence: Evidence) -> Float[np.ndarray, " row"]:
    """1 for a real row; written rows, behind them, weigh as much together, each in proportion to its importance."""
    importance = evidence.importance
    return np.concatenate([np.ones(len(evidence.real)), importance * (len(evidence.real) / importance.sum())])


def boosted(
    shown: Float[np.ndarray, "row feature"],
    real: Float[np.ndarray, " row"],
    weights: Float[np.ndarray, " row"],
    columns: Sequence[Column],
    settings: Discriminators,
    *,
    least_leaf: float,
    seed: int,
) -> Any:
    """A LightGBM booster that learned which rows are real.

    Args:
        shown: what it sees of each row: the columns first, then relations; NaN for what is missing.
        real: 1 for a real row, 0 for a written one.
        least_leaf: weight of the rows in a leaf, at least, where no row is sure to be one or the other.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    lightgbm = extra("lightgbm", ASKS)
    rows = lightgbm.Dataset(
        shown,
        real,
        weight=weights,
        categorical_feature=[place for place, column in enumerate(columns) if _is_category(column)],
        params={"min_data_in_bin": 1, "verbose": -1},
    )
    return lightgbm.train(_parameters(settings, least_leaf, seed), rows, settings.trees)


def _parameters(settings: Discriminators, least_leaf: float, seed: int) -> dict[str, Any]:
    return {
        "objective": "binary",
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "feature_fraction": COLUMN_SHARE,
        # A row of which nothing is known, p = 1/2, has a second derivative of 1/4.
        "min_sum_hessian_in_leaf": least_leaf / 4,
        "min_data_in_leaf": 1,
        "min_data_per_group": 1,
        "min_data_in_bin": 1,
        "seed": seed % 2**31,
        "num_threads": 1,
        "deterministic": True,
        # LightGBM else chooses how to build histograms by timing them, and sums in another order.
        "force_col_wise": True,
        "verbose": -1,
    }


def features(
    columns: Sequence[Column], codes: Codes, relations: Sequence[Relation]
) -> Float[np.ndarray, "row feature"]:
    """What trees are shown, columns first; categories are counted from 0."""
    found = codes.astype(float)
    for place, column in enumerate(columns):
        if _is_category(column):
            found[:, place] = -1 - found[:, place]
    if not relations:
        return found
    values = numbers(columns, codes)
    return np.column_stack([found, *(relation.of(values) for relation in relations)])


def _is_category(column: Column) -> bool:
    return column.numbers is None
