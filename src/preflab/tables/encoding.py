"""What every way of writing a row as tokens offers: `compact.py` and `sentence.py` have one each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from preflab.rollouts.mask import TokenMask
from preflab.tables.column import Column


@dataclass(frozen=True)
class Legal:
    """Some of the codes of a column."""

    levels: frozenset[int] = field(default_factory=frozenset)
    """Codes below 0."""
    spans: tuple[tuple[int, int], ...] = ()
    """First and last point of each stretch of the scale, rising, apart."""

    def __contains__(self, code: int) -> bool:
        return code in self.levels if code < 0 else any(low <= code <= high for low, high in self.spans)

    def __and__(self, other: Legal) -> Legal:
        """The codes that are in both."""
        spans = [
            (max(low, first), min(high, last))
            for low, high in self.spans
            for first, last in other.spans
            if max(low, first) <= min(high, last)
        ]
        return Legal(self.levels & other.levels, tuple(spans))

    def __bool__(self) -> bool:
        return bool(self.levels or self.spans)


def legal_of(column: Column) -> Legal:
    """What may be written in a column: its levels, and the points of its scale. A point that is written like a level
    is not among them: its cell would be read as that level.

    >>> from preflab.tables.column import Numbers
    >>> legal_of(Column("age", "integer", levels=("", "20"), numbers=Numbers(18, 73, (0, 7)))).spans
    ((0, 1), (3, 72))
    """
    numbers, spans, first = column.numbers, [], 0
    if numbers is not None:
        for taken in sorted(point for text in column.levels if (point := _point(column, text)) is not None):
            spans.append((first, taken - 1))
            first = taken + 1
        spans.append((first, numbers.size - 1))
    levels = frozenset(range(-len(column.levels), 0))
    return Legal(levels, tuple((low, high) for low, high in spans if low <= high))


def _point(column: Column, text: str) -> int | None:
    """The point of the scale that is written so."""
    assert column.numbers is not None
    try:
        point = column.numbers.point(text)
    except ValueError:
        return None
    return point if column.numbers.text(point) == text else None


def narrowed(columns: Sequence[Column], legal: Mapping[int, Legal]) -> list[Legal]:
    """What may be written in each of these columns, of which some (places → codes) are narrowed.

    Raises:
        ValueError: nothing is left of one.
    """
    found = [legal_of(column) for column in columns]
    for place, narrower in legal.items():
        found[place] &= narrower
    for column, left in zip(columns, found, strict=True):
        if not left:
            raise ValueError(f'nothing is left that "{column.name}" may be; allow it more')
    return found


class Encoding(Protocol):
    """Rows of codes ⇄ token ids. A row is a response to `prompt`, or to that and its first cells; it ends with the end
    token."""

    @property
    def columns(self) -> tuple[Column, ...]:
        """What is written, in the order of the table; codes of a row stand in this order."""
        ...

    @property
    def order(self) -> tuple[int, ...]:
        """In which order the cells of a row are written, as places in `columns`."""
        ...

    @property
    def any_order(self) -> bool:
        """Whether cells may be written in any other order too."""
        ...

    @property
    def vocabulary(self) -> int:
        """Token ids are below it."""
        ...

    @property
    def end_id(self) -> int:
        """What ends a row."""
        ...

    @property
    def longest(self) -> int:
        """Tokens of the longest row, with the end token."""
        ...

    def prompt(self, given: Mapping[int, int] = {}) -> tuple[int, ...]:
        """What stands before a row's response, where the cells at these places (→ codes) are given; where any order
        will do, in the order in which they are.

        Raises:
            ValueError: they are no beginning of the order, and not any order will do; or a code can't be written.
        """
        ...

    def response(self, codes: Sequence[int], order: Sequence[int] | None = None, *, given: int = 0) -> tuple[int, ...]:
        """The tokens of a row with the end token, without those of its first `given` cells.

        Raises:
            ValueError: another order than `self.order`, where not any will do; or a code can't be written.
        """
        ...

    def row(self, tokens: Sequence[int]) -> Int[np.ndarray, " column"]:
        """The codes of a prompt's cells and a response, start and end token or not.

        Raises:
            ValueError: the tokens are no row: the model was not held to the mask, or stopped too early.
        """
        ...

    def mask(self, legal: Mapping[int, Legal] = {}) -> TokenMask[Any]:
        """Allows exactly the legal rows, of which those columns (places → codes) may be narrowed further. After a
        prompt with given cells the others follow, in the order of `order`.

        Raises:
            ValueError: nothing is left that a column may be.
        """
        ...

    def settings(self) -> dict[str, Any]:
        """JSON from which, with the columns, the same encoding is made again."""
        ...


def unmasked_validity(encoding: Encoding, rows: Iterable[Sequence[int]]) -> float:
    """The share, 0–1, of rows that are legal though no mask held the model to it: they can be read, and each code is
    legal in its column.

    Args:
        rows: prompts and responses, as tokens.

    Raises:
        ValueError: there are no rows.
    """
    legal = [legal_of(column) for column in encoding.columns]
    found = [_is_legal(encoding, tokens, legal) for tokens in rows]
    if not found:
        raise ValueError("no rows, so no share of them is legal")
    return sum(found) / len(found)


def _is_legal(encoding: Encoding, tokens: Sequence[int], legal: Sequence[Legal]) -> bool:
    try:
        codes = encoding.row(tokens)
    except ValueError:
        return False
    return all(code in some for code, some in zip(codes.tolist(), legal, strict=True))
