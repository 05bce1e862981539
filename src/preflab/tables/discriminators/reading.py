"""Rows as neural discriminators read them: tokens, and what makes logits of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from preflab.tables.compact import END, Compact
from preflab.tables.discriminators.level import Codes, Level
from preflab.tables.model import EMBEDDING_SPREAD, Sums, number_features
from preflab.tables.sentence import Sentence

RowEncoding = Compact | Sentence


@dataclass(frozen=True)
class Clauses:
    """Tokens side by side, those of one row or cell a line; shorter lines are filled up with token 0."""

    tokens: Int[np.ndarray, "line token"]
    columns: Int[np.ndarray, "line token"]
    """Whose cell each token is of; the number of columns for the end token."""
    lengths: Int[np.ndarray, " line"]
    """How many tokens of each line count."""

    @staticmethod
    def joined(parts: Sequence[Clauses]) -> Clauses:
        """Clauses of the same rows, one after the other."""
        holds = np.concatenate([part.holds for part in parts], 1)
        lengths = holds.sum(1)
        # What counts comes first, in its order.
        order = np.argsort(~holds, axis=1, kind="stable")[:, : lengths.max(initial=0)]
        tokens, columns = (
            np.take_along_axis(np.concatenate(arrays, 1), order, 1)
            for arrays in ([part.tokens for part in parts], [part.columns for part in parts])
        )
        return Clauses(tokens, columns, lengths)

    @staticmethod
    def stacked(parts: Sequence[Clauses]) -> Clauses:
        """The lines of all parts, one below the other."""
        width = max(part.tokens.shape[1] for part in parts)
        tokens, columns = (
            np.concatenate([np.pad(array, ((0, 0), (0, width - array.shape[1]))) for array in arrays])
            for arrays in ([part.tokens for part in parts], [part.columns for part in parts])
        )
        return Clauses(tokens, columns, np.concatenate([part.lengths for part in parts]))

    @property
    def holds(self) -> Bool[np.ndarray, "line token"]:
        """Which tokens count."""
        return np.arange(self.tokens.shape[1]) < self.lengths[:, None]


def cells(encoding: RowEncoding, column: int, codes: Int[np.ndarray, " cell"]) -> Clauses:
    """The clauses of some cells of a column, with the comma behind them where another follows.

    Raises:
        ValueError: a code can't be written.
    """
    if isinstance(encoding, Compact):
        tokens = encoding.cells[column].tokens(codes)
        if encoding.any_order:
            tokens = np.pad(tokens, ((0, 0), (1, 0)), constant_values=END + 1 + column)
        lengths = np.full(len(codes), tokens.shape[1])
    else:
        distinct, which = np.unique(codes, return_inverse=True)
        comma = encoding.comma if column != encoding.order[-1] else ()
        written = [
            (*encoding.names[column], *encoding.values[column].tokens(code), *comma) for code in distinct.tolist()
        ]
        table = np.zeros((len(written), max(map(len, written), default=0)), np.int64)
        for line, clause in zip(table, written, strict=True):
            line[: len(clause)] = clause
        tokens, lengths = table[which], np.array([len(clause) for clause in written], np.int64)[which]
    return Clauses(tokens, np.full(tokens.shape, column), lengths)


def response(encoding: RowEncoding, codes: Codes, columns: Sequence[int] | None = None) -> Clauses:
    """The tokens of rows' responses, with the end token; or of some columns' cells alone, without it."""
    kept = [column for column in encoding.order if columns is None or column in columns]
    parts = [cells(encoding, column, codes[:, column]) for column in kept]
    if columns is None:
        one = (len(codes), 1)
        end = Clauses(np.full(one, encoding.end_id), np.full(one, len(encoding.columns)), np.ones(len(codes), np.int64))
        parts.append(end)
    return Clauses.joined(parts)


def vocabulary(encoding: RowEncoding) -> Int[np.ndarray, " token"]:
    """The tokens that a response can hold, rising."""
    if isinstance(encoding, Compact):
        return np.arange(encoding.vocabulary)
    pieces = [(encoding.end_id,), encoding.comma, *encoding.names]
    for values in encoding.values:
        pieces += [*values.listed.values(), *values.alphabet.values()]
    return np.unique([token for piece in pieces for token in piece])


@dataclass(frozen=True)
class Read:
    """Rows, made ready for a `Reader`."""

    token_ids: Int[Tensor, "line token"]
    """Places in `vocabulary`."""
    columns: Int[Tensor, "line token"]
    lengths: Int[Tensor, " line"]
    lines: Int[Tensor, "row line"]
    """Which lines each row consists of: itself; at sentence level one a cell, where equal cells share theirs."""

    @staticmethod
    def of(encoding: RowEncoding, codes: Codes, level: Level, columns: Sequence[int] | None) -> Read:
        """
        Args:
            columns: of the feature level.

        Raises:
            ValueError: a code can't be written.
        """
        if level == "sentence":
            parts, lines, before = [], [], 0
            for column in encoding.order:
                distinct, which = np.unique(codes[:, column], return_inverse=True)
                parts.append(cells(encoding, column, distinct))
                lines.append(before + which)
                before += len(distinct)
            clauses, which_lines = Clauses.stacked(parts), np.stack(lines, 1)
        else:
            clauses, which_lines = response(encoding, codes, columns), np.arange(len(codes))[:, None]
        words = vocabulary(encoding)
        # Fillers may be no token of a row.
        token_ids = np.minimum(np.searchsorted(words, clauses.tokens), len(words) - 1)
        return Read(*map(torch.from_numpy, (token_ids, clauses.columns, clauses.lengths, which_lines)))

    def __len__(self) -> int:
        return len(self.lines)


def features(encoding: RowEncoding, codes: Codes, *, hats: int) -> tuple[int, list[Float[np.ndarray, "token feature"]]]:
    """How many tokens have embeddings of their own, and the features of the others, block by block, as those of
    `model.RowWriter`: neighbouring numbers share what is learned of them.

    Args:
        codes: rows that say how common each token is.
    """
    if not isinstance(encoding, Compact):
        return len(vocabulary(encoding)), []
    counts = np.bincount(encoding.sequences(codes).flatten(), minlength=encoding.vocabulary)
    slots = sorted((slot for slot in encoding.slots if slot.part >= 0), key=lambda slot: slot.first)
    blocks = []
    for slot in slots:
        values = encoding.numbers_of(slot.column) if slot.part == 0 else np.full(slot.count, np.nan)
        blocks.append(number_features(values, counts[slot.first : slot.first + slot.count], hats=hats))
    return (slots[0].first if slots else encoding.vocabulary), blocks


class Reader(nn.Module):
    """A recurrent encoder of tokens (GRU; Cho et al. 2014, arXiv:1406.1078) and a logit of its states.

    At token level it reads forwards, and there is a logit of each state. At the others it reads both ways, and there is
    one logit of the mean over all tokens of a line.
    """

    def __init__(
        self,
        level: Level,
        columns: int,
        width: int,
        *,
        own: int,
        blocks: Sequence[Float[np.ndarray, "token feature"]] = (),
        dropout: float = 0.0,
        steps: int = 2,
    ) -> None:
        """
        Args:
            columns: of the table.
            steps: tokens of the longest line: states begin with memories of 1 to so many tokens (Tallec and Ollivier
                2018, arXiv:1804.11188, §2), or the first cells would be forgotten before the last are read.
            own, blocks: see `features`.
            dropout: share of states that are dropped while it learns.
        """
        super().__init__()
        self.causal = level == "token"
        self.words = Sums(own, blocks, width, spread=EMBEDDING_SPREAD)
        self.of_column = nn.Embedding(columns + 1, width)
        nn.init.normal_(self.of_column.weight, std=EMBEDDING_SPREAD)
        self.scale = nn.LayerNorm(width)
        self.forwards = nn.GRU(width, width, batch_first=True)
        self.backwards = None if self.causal else nn.GRU(width, width, batch_first=True)
        for network in (self.forwards, self.backwards):
            if network is not None:
                gate = slice(width, 2 * width)  # the update gate's
                network.get_parameter("bias_ih_l0").data[gate] = torch.empty(width).uniform_(1, max(steps - 1, 1)).log()
                network.get_parameter("bias_hh_l0").data[gate] = 0.0
        states = width if self.causal else 2 * width
        self.dropout = nn.Dropout(dropout)
        last = nn.Linear(width, 1)
        nn.init.zeros_(last.weight)  # what has learned nothing says nothing
        nn.init.zeros_(last.bias)
        self.head = nn.Sequential(nn.Linear(states, width), nn.GELU(), nn.Dropout(dropout), last)

    def forward(
        self,
        token_ids: Int[Tensor, "line token"],
        columns: Int[Tensor, "line token"],
        lengths: Int[Tensor, " line"],
    ) -> Float[Tensor, "line place"]:
        """Logits; behind the last token of a line its last one stands again."""
        embedded = self.scale(nn.functional.embedding(token_ids, self.words()) + self.of_column(columns))
        steps = torch.arange(token_ids.shape[1])
        last = lengths[:, None] - 1
        states = self.forwards(embedded)[0]
        if self.backwards is None:
            logits = self.head(self.dropout(states))[..., 0]
            return logits.gather(1, torch.minimum(steps, last))
        # Each line is turned round by itself, so that fillers are read last, and what is read of them isn't used.
        turned = (last - steps).clamp(min=0)[..., None].expand_as(embedded)
        back = self.backwards(embedded.gather(1, turned))[0]
        counts = (steps <= last)[..., None]
        pooled = (torch.cat([states, back], -1) * counts).sum(1) / lengths[:, None]
        return self.head(self.dropout(pooled))

    @torch.no_grad()
    def work_out(self) -> None:
        """Give each token an embedding of its own, in place of its sum of features."""
        table = self.words()
        self.words = Sums(len(table), [], table.shape[1], spread=0.0)
        self.words.own.copy_(table)


def logits(reader: Reader, read: Read, rows: Int[Tensor, " row"]) -> Float[Tensor, "row place"]:
    """Of some rows; lines that they share are read once."""
    lines, which = read.lines[rows].unique(return_inverse=True)
    length = int(read.lengths[lines].max())
    found = reader(read.token_ids[lines, :length], read.columns[lines, :length], read.lengths[lines])
    return found[which].flatten(1)
