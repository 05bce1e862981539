"""How a model of rows is aligned: its discriminators, its reward, its rounds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Le

from preflab.config.training import Positive

Kind = Literal["trees", "neural"]
Level = Literal["token", "sentence", "row", "feature"]


@dataclass(frozen=True, kw_only=True)
class Discriminators:
    """Classifiers that tell training rows from rows of the model."""

    levels: tuple[Level, ...] = ("row",)
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
    trees: Positive = 300
    """Rounds of boosting."""
    leaves: Annotated[int, Ge(2)] = 15
    """Of a tree, at most; ≥ 2."""
    learning_rate: Annotated[float, Gt(0)] = 0.03
    """Of boosting, > 0."""
    width: Positive = 64
    """Of a neural encoder's states."""
    epochs: Positive = 12
    """Passes of a neural encoder over its rows, at most."""
    patience: Positive = 3
    """Passes without a better loss of a tenth of its rows, held out, after which an encoder stops."""
    encoder_batch: Positive = 128
    """Rows in a step of an encoder."""
    encoder_rate: Annotated[float, Gt(0), Le(1)] = 3e-3
    """Peak learning rate of an encoder's AdamW, in (0, 1]."""
    encoder_dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of an encoder's states dropped while it learns, in [0, 1)."""
    encoder_decay: Annotated[float, Ge(0)] = 0.05
    """Decoupled weight decay of an encoder, ≥ 0."""
    hats: Positive = 16
    """Into how many quantiles the smooth features of a column's numbers divide them, in the compact encoding."""
