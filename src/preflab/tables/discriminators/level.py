"""What a discriminator is asked and what it learns from; `trees.py` and `neural.py` have the kinds there are.

    logit D(x) = log p(x | real) − log p(x | written by the model)        both classes counted alike

An optimal D knows the density ratio; its logit is then what a policy is paid (`alignment/reward.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

import numpy as np
from jaxtyping import Float, Int

Codes = Int[np.ndarray, "row column"]
Logits = Float[np.ndarray, "row place"]

Level = Literal["token", "sentence", "row", "feature"]
LEVELS: tuple[Level, ...] = get_args(Level)


@dataclass(frozen=True)
class Evidence:
    """Rows of the table and of the model, dealt into folds: what is said of a row of fold k, held out, comes from a
    discriminator that saw no row of fold k."""

    real: Codes
    """Training rows, as codes of the encoding's columns."""
    real_fold: Int[np.ndarray, " row"]
    written: Codes
    """Rows of the policy that is this round's reference."""
    written_fold: Int[np.ndarray, " row"]
    weights: Float[np.ndarray, " row"] = field(default_factory=lambda: np.zeros(0))
    """Importance of each written row, > 0, where some are older: π(row) / π_then(row); empty: all count alike."""

    unseen_real: Codes | None = None
    """Real rows that neither the model nor a discriminator learned from, to calibrate on; None: held-out folds do. A
    model that knows its training rows by heart writes rows near them, and they then seem less real than other ones."""
    unseen_written: Codes | None = None
    """Rows of the model that no discriminator learned from."""

    @property
    def importance(self) -> Float[np.ndarray, " row"]:
        """The weight of each written row, 1 where none is given."""
        return self.weights if len(self.weights) else np.ones(len(self.written))

    @property
    def folds(self) -> int:
        """How many there are, numbered from 0."""
        return int(self.real_fold.max()) + 1


class Discriminator(Protocol):
    """A fitted classifier."""

    @property
    def name(self) -> str:
        """Its level, and of a group of columns its name too: "feature: delinquency"."""
        ...

    @property
    def level(self) -> Level:
        """What it looks at."""
        ...

    def logits(self, codes: Codes) -> Logits:
        """logit D at each place it judges. Token: after each token of the row's response, given those before it.
        Sentence: of each cell, in the order in which they are written. Row, feature: one place."""
        ...

    def row_logits(self, codes: Codes) -> Float[np.ndarray, " row"]:
        """`of_rows` of these logits, without those that it leaves out."""
        ...


def of_rows(level: Level, logits: Logits) -> Float[np.ndarray, " row"]:
    """What a discriminator says of whole rows: at token level what it says after the last token, which has seen them
    all; else the mean over places.

    >>> of_rows("token", np.array([[0.0, 2.0]])).tolist(), of_rows("sentence", np.array([[0.0, 2.0]])).tolist()
    ([2.0], [1.0])
    """
    return logits[:, -1] if level == "token" else logits.mean(1)


@dataclass(frozen=True)
class Opinion:
    """What all discriminators say of some rows."""

    logits: Mapping[str, Logits]
    """By name of the discriminator, calibrated; of whole rows one place: `of_rows` of these."""
    levels: Mapping[str, Level]
    """By the same names."""
    ratio: Float[np.ndarray, " row"]
    """One log density ratio a row, in nats: the levels stacked into one calibrated model."""
