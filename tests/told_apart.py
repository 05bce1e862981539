"""A table so small that each of its rows can be listed, with two distributions of it that are known."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from preflab.tables.column import Column, Numbers
from preflab.tables.compact import Compact
from preflab.tables.discriminators.level import Codes, Evidence, Level, Logits

COLUMNS = (
    Column("town", "category", levels=("Bonn", "Rom", "Ulm"), counts=(1, 1, 1)),
    Column("age", "integer", levels=("-9",), numbers=Numbers(18, 4, (0, 1, 2, 3)), counts=(1,)),
    Column("debt", "integer", levels=("-9", "-8"), numbers=Numbers(0, 2, (0, 1)), counts=(1, 1)),
)
ROWS = np.array(list(product((-1, -2, -3), (-1, 0, 1, 2, 3), (-1, -2, 0, 1))))
"""All 60 of them."""
ENCODING = Compact.of(COLUMNS, ROWS)


@dataclass(frozen=True)
class Known:
    """log p and log q of each row of `ROWS`."""

    real: np.ndarray
    written: np.ndarray

    @property
    def ratio(self) -> np.ndarray:
        return self.real - self.written

    def evidence(self, real: int, written: int, *, seed: int = 0, folds: int = 3, unseen: int = 0) -> Evidence:
        """Rows drawn from both."""
        rng = np.random.default_rng(seed)

        def draw(logprob: np.ndarray, rows: int) -> Codes:
            return ROWS[rng.choice(len(ROWS), rows, p=np.exp(logprob))]

        return Evidence(
            draw(self.real, real),
            rng.permutation(np.arange(real) % folds),
            draw(self.written, written),
            rng.permutation(np.arange(written) % folds),
            unseen_real=draw(self.real, unseen) if unseen else None,
            unseen_written=draw(self.written, unseen) if unseen else None,
        )


def normalised(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def additive(seed: int = 0, spread: float = 0.7) -> Known:
    """Two distributions whose log ratio is a sum of columns' parts and one of an interaction."""
    rng = np.random.default_rng(seed)
    town, age, debt = -1 - ROWS[:, 0], ROWS[:, 1] + 1, ROWS[:, 2] + 2
    base = rng.normal(0, 0.3, (3, 5))[town, age] + rng.normal(0, 0.3, 4)[debt]
    ratio = rng.normal(0, spread, (3, 5))[town, age] + rng.normal(0, spread, 4)[debt]
    return Known(normalised(base + ratio / 2), normalised(base - ratio / 2))


@dataclass(frozen=True)
class Table:
    """A discriminator that looks rows up."""

    name: str
    level: Level
    known: dict[tuple[int, ...], float]
    else_logit: float = 0.0

    def logits(self, codes: Codes) -> Logits:
        return np.array([[self.known.get(tuple(row), self.else_logit)] for row in codes.tolist()]).reshape(-1, 1)

    def row_logits(self, codes: Codes) -> np.ndarray:
        return self.logits(codes)[:, 0]


def memorised(part: Evidence, seed: int = 0) -> Table:
    """Knows by heart which rows are which, and nothing of any other row."""
    known = {tuple(row): 5.0 for row in part.real.tolist()} | {tuple(row): -5.0 for row in part.written.tolist()}
    return Table("row", "row", known)
