"""Discriminators that are the best there are: between two distributions of a table whose rows can all be listed, in
float64, by sums over rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import transformers
from tokenizers import Tokenizer, models

from preflab.models.load import Policy
from preflab.rewards.protocol import Answer
from preflab.tables.discriminators.level import Codes, Level, Opinion, of_rows
from preflab.tables.encoding import Encoding
from tables_by_hand import Row
from tabular import Array


@dataclass(frozen=True)
class Exact:
    """logit D of every level, and as the ratio that of whole rows."""

    encoding: Encoding
    rows: list[Row]
    real: Array
    """Probability of each row in the table."""
    written: Array
    """And by the model."""
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Name → places of columns, of the feature level."""
    shift_nats: float = 0.0
    """Is added to every logit: what a wrong share of real rows does."""

    def opinion(self, codes: Codes, *, whole: bool = False) -> Opinion:
        found = [self.rows.index(tuple(row)) for row in codes.tolist()]
        levels: Any = {name: name.partition(":")[0] for name in self.logits}
        logits = {name: of_places(levels[name], one[found], whole=whole) for name, one in self.logits.items()}
        return Opinion(logits, levels, logits["row"][:, 0])

    def ratio(self, codes: Codes) -> Array:
        return self.opinion(codes).ratio

    @cached_property
    def logits(self) -> dict[str, Array]:
        """By name, of all rows [row, place]."""
        tokens = [self.encoding.response(row) for row in self.rows]
        found = {
            "token": self.of_events([[row[: place + 1] for place in range(len(row))] for row in tokens]),
            "sentence": self.of_events([[row[column] for column in self.encoding.order] for row in self.rows]),
            "row": self.of_events([[row] for row in self.rows]),
        }
        for name, columns in self.groups.items():
            found[f"feature: {name}"] = self.of_events([[tuple(row[c] for c in columns)] for row in self.rows])
        return found

    def of_events(self, events: list[list[Any]]) -> Array:
        """log P(event | table) − log P(event | model) [row, place], of the event that each row is at each place."""
        found = np.empty((len(events), len(events[0])))
        for place in range(found.shape[1]):
            for row, event in enumerate(one[place] for one in events):
                same = [other[place] == event for other in events]
                found[row, place] = np.log(self.real[same].sum() / self.written[same].sum())
        return found + self.shift_nats


def of_places(level: Level, logits: Array, *, whole: bool) -> Array:
    """All places, or the one of whole rows."""
    return of_rows(level, logits)[:, None] if whole else logits


def answers_of(encoding: Encoding, rows: Sequence[Row]) -> list[Answer]:
    """Rows as responses."""
    return [Answer("", "", encoding.prompt(), encoding.response(row), True) for row in rows]


def policy_of(model: Any, encoding: Encoding) -> Policy:
    """A model of rows with a tokenizer that has a word for each token."""
    words = {f"<{token}>": token for token in range(encoding.vocabulary)}
    end = f"<{encoding.end_id}>"
    fast = Tokenizer(models.WordLevel(words, unk_token="<0>"))
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token=end, pad_token="<0>")
    return Policy(model, tokenizer)
