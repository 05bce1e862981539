"""Rows of the compact encoding behind the face of a tokenizer, so that policies of rows train like all others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from preflab.data.encode import Tokenizer
from preflab.errors import ConfigError
from preflab.models.load import Policy
from preflab.tables.compact import END, START, Compact
from preflab.tables.encoding import Encoding
from preflab.tables.sentence import quoted_name, quoted_value


@dataclass(frozen=True)
class RowTokenizer:
    """What `Policy` and `Encoder` need of a tokenizer, for an encoding that has none: its start and end token, and the
    text of a row or a part of it. It encodes nothing: rows become tokens by `encoding.response`.

    >>> import numpy as np
    >>> from preflab.tables.column import Column, Numbers
    >>> age = Column("age", "integer", levels=("",), numbers=Numbers(18, 40_000, tuple(range(0, 40_000, 9))))
    >>> smoker = Column("smoker", "boolean", levels=("False", "True"))
    >>> encoding = Compact.of((age, smoker), np.array([[point, -2] for point in range(0, 40_000, 9)]))
    >>> row = encoding.prompt() + encoding.response([12, -2])
    >>> text = RowTokenizer(encoding).decode
    >>> text(row), text(row[:3]), text(row[-2:])
    ('age is 30, smoker is True', 'age is …', 'smoker is True')
    """

    encoding: Compact
    reads_text = False
    """For `Encoder`."""

    @property
    def bos_token_id(self) -> int:
        return START

    @property
    def eos_token_id(self) -> int:
        return END

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        """
        Raises:
            ConfigError: there is a text.
        """
        if text:
            raise ConfigError(f'rows of the compact encoding are not made of text, so "{text[:40]}" has no tokens')
        return {"input_ids": []}

    def decode(self, ids: Iterable[int], **_: object) -> str:
        """The cells whose tokens these are, whole or cut, in the order in which they stand; "?" for what is no cell,
        and no start or end token."""
        tokens, texts, place = [int(token) for token in ids], list[str](), 0
        while place < len(tokens):
            number = self._column(tokens[place])
            if number is None:
                if tokens[place] not in (START, END) and not self._names_column(tokens[place]):
                    texts.append("?")
                place += 1
                continue
            cells, column = self.encoding.cells[number], self.encoding.columns[number]
            stop = place + 1 + cells.places
            try:
                cut = stop > len(tokens) and tokens[place] < cells.first + cells.values
                value = "…" if cut else quoted_value(column.text(cells.code(tokens[place:stop], place)))
            except ValueError:  # a policy that no mask holds
                value, stop = "?", place + 1
            texts.append(f"{quoted_name(column.name)} is {value}")
            place = stop
        return ", ".join(texts)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"a compact encoding of rows has no tokenizer, so there is no {name}")

    def _column(self, token: int) -> int | None:
        """The place of the column that has this token."""
        return next(
            (n for n, cells in enumerate(self.encoding.cells) if cells.first <= token < cells.first + cells.count), None
        )

    def _names_column(self, token: int) -> bool:
        return self.encoding.any_order and END < token <= END + len(self.encoding.columns)


def row_policy(model: torch.nn.Module, encoding: Encoding, tokenizer: Tokenizer | None) -> Policy:
    """A model of rows as the training methods take it.

    Args:
        tokenizer: of the text encoding; None: the encoding is compact.

    Raises:
        ConfigError: rows as sentences have no tokenizer.
    """
    if tokenizer is not None:
        return Policy(model, tokenizer)
    if not isinstance(encoding, Compact):
        raise ConfigError("rows as sentences need the tokenizer that their model was fitted with")
    return Policy(model, RowTokenizer(encoding))
