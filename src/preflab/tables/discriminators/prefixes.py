"""The token level by gradient-boosted trees: how real a row is so far.

    logit D(x≤t) = log p(x≤t) − log q(x≤t)          of the beginnings of rows, p real, q written

One ensemble reads beginnings of every length. Cells that are not written yet are missing, which trees take as they
come; of a number that takes several tokens, a point in the middle of its bucket stands until its last digit is there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float

from preflab.config.alignment import Discriminators
from preflab.tables.compact import Compact
from preflab.tables.discriminators.level import Codes, Evidence, Level, Logits
from preflab.tables.discriminators.relations import Relation, told_by
from preflab.tables.discriminators.trees import LEAST_LEAF, Trees, boosted, class_weights, features

LOOKS = 6
"""Beginnings of each row that the trees learn from; more say little that these do not."""

Shown = Float[np.ndarray, "row feature"]
Mask = Bool[np.ndarray, "state feature"]


@dataclass(frozen=True)
class PrefixTrees:
    """A fitted ensemble: see `level.Discriminator`."""

    encoding: Compact
    trees: Trees
    """What reads the features of a row; they are missing where the row is not so far."""
    level: Level = "token"

    @property
    def name(self) -> str:
        return self.trees.name

    @cached_property
    def beginnings(self) -> Beginnings:
        """What is seen of a row after each token."""
        return Beginnings.of(self.encoding, self.trees.relations)

    def logits(self, codes: Codes) -> Logits:
        """logit D after each token of a row's response, in the encoding's order; after the end token that of the row.

        Raises:
            ValueError: a code can't be written.
        """
        if not len(codes):
            return np.zeros((0, self.encoding.longest))
        whole, rough = shown(self.encoding, codes, self.trees.relations)
        states = range(len(self.beginnings.whole))
        said = [self.trees.predict(self.beginnings.seen(whole, rough, np.array([state]))) for state in states]
        return np.column_stack(said)[:, self.beginnings.state_of_token]

    def row_logits(self, codes: Codes) -> Float[np.ndarray, " row"]:
        """logit D of whole rows: all is seen of them."""
        return self.trees.row_logits(codes)


@dataclass(frozen=True)
class Beginnings:
    """What trees see of a row, by how far it is written; tokens that show nothing more share a state."""

    whole: Mask
    """Of each state, the features that are known."""
    rough: Mask
    """Those of which a bucket is known."""
    state_of_token: np.ndarray
    """Of each token of the response, the end token last."""

    @classmethod
    def of(cls, encoding: Compact, relations: Sequence[Relation]) -> Beginnings:
        """The states that the tokens of a row lead through."""
        columns = np.zeros((encoding.longest, 2, len(encoding.columns)), dtype=bool)
        whole, rough = np.zeros((2, len(encoding.columns)), dtype=bool)
        for token, slot in enumerate(encoding.slots):
            last = slot.part == encoding.cells[slot.column].places
            whole[slot.column], rough[slot.column] = last, slot.part >= 0 and not last
            columns[token] = whole, rough
        columns[-1] = columns[-2]
        both = [columns[:, 0, one.first] & columns[:, 0, one.second] for one in relations]
        known = np.column_stack([columns[:, 0], *both])
        guessed = np.column_stack([columns[:, 1], *(np.zeros_like(one) for one in both)])
        states, of_token = np.unique(np.column_stack([known, guessed]), axis=0, return_inverse=True)
        return cls(states[:, : known.shape[1]], states[:, known.shape[1] :], of_token.reshape(-1))

    def seen(self, whole: Shown, rough: Shown, states: np.ndarray) -> Shown:
        """The features of rows in these states, one a row or one for all; NaN for what is not written."""
        return np.where(self.whole[states], whole, np.where(self.rough[states], rough, np.nan))


def shown(encoding: Compact, codes: Codes, relations: Sequence[Relation]) -> tuple[Shown, Shown]:
    """The features of whole rows, and those of rows of whose numbers only the buckets are known."""
    rough = codes.copy()
    for number, cells in enumerate(encoding.cells):
        if cells.places:
            value = cells.tokens(codes[:, number])[:, 0] - cells.first - len(cells.column.levels)
            rough[:, number] = np.where(value < 0, codes[:, number], np.array(cells.middles)[np.maximum(value, 0)])
    return features(encoding.columns, codes, relations), features(encoding.columns, rough, relations)


def fit_prefix_trees(
    encoding: Compact, evidence: Evidence, settings: Discriminators, *, seed: int, name: str = "token"
) -> PrefixTrees:
    """Learn to tell beginnings of real rows from beginnings of written ones, of every length alike.

    Written rows weigh as much as the real ones together, each in proportion to its importance.

    Raises:
        ConfigError: LightGBM is not installed.
    """
    relations = told_by(encoding.columns, evidence.real, evidence.written, settings.relations)
    beginnings = Beginnings.of(encoding, relations)
    whole, rough = shown(encoding, np.concatenate([evidence.real, evidence.written]), relations)
    draw = np.random.Generator(np.random.Philox(seed))
    tokens = draw.integers(0, encoding.longest - 1, (LOOKS, len(whole)))
    booster = boosted(
        np.concatenate([beginnings.seen(whole, rough, beginnings.state_of_token[some]) for some in tokens]),
        np.tile(np.repeat([1.0, 0.0], [len(evidence.real), len(evidence.written)]), LOOKS),
        np.tile(class_weights(evidence), LOOKS),
        encoding.columns,
        settings,
        least_leaf=LEAST_LEAF * LOOKS,
        seed=seed,
    )
    everywhere = tuple(range(len(encoding.columns)))
    return PrefixTrees(encoding, Trees(name, "row", tuple(encoding.columns), everywhere, relations, booster))
