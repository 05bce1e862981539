"""How a model of rows is aligned: its discriminators, its reward, its rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

from preflab.config.training import Positive

Kind = Literal["trees", "neural"]
Level = Literal["token", "sentence", "row", "feature"]


@dataclass(frozen=True, kw_only=True)
class Discriminators:
    """Classifiers that tell training rows from rows of the model."""

    levels: tuple[Level, ...] = ("row", "feature")
    """token: each token given those before it; sentence: each cell; row: whole rows; feature: groups of columns."""
    kind: Kind = "trees"
    """Of row and feature level. trees: gradient-boosted trees on the columns' values; neural: encoders of tokens, which
    token and sentence level always are."""
    groups: tuple[str, ...] = ()
    """Of the feature level: NAME=COLUMN,COLUMN,…; none: groups are found from the data."""
    folds: Annotated[int, Interval(ge=2, le=20)] = 4
    """What is said of a row, held out, comes from discriminators that saw no row of its fold; 2 to 20."""
    written: Annotated[float, Gt(0)] = 4.0
    """Rows of the model for each training row, > 0."""
    trees: Positive = 100
    """Rounds of boosting."""
    leaves: Annotated[int, Ge(2)] = 31
    """Of a tree, at most; ≥ 2."""
    learning_rate: Annotated[float, Gt(0)] = 0.1
    """Of boosting, > 0."""
    width: Positive = 64
    """Of a neural encoder's states."""
    epochs: Positive = 4
    """Passes of a neural encoder over its rows."""
