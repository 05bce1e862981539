"""What every way of writing a row as tokens offers: `compact.py` and `text.py` have one each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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


class Encoding(Protocol):
    """Rows of codes ⇄ token ids. A row is a response to `prompt`, or to that and its first cells; it ends with the end
    token."""

    columns: tuple[Column, ...]
    """What is written, in the order of the table; codes of a row stand in this order."""
    order: tuple[int, ...]
    """In which order the cells of a row are written, as places in `columns`."""
    any_order: bool
    """Whether cells may be written in any other order too."""
    vocabulary: int
    """Token ids are below it."""
    end_id: int
    longest: int
    """Tokens of the longest row, with the end token."""

    def prompt(self, given: Mapping[int, int] = {}) -> tuple[int, ...]:
        """What stands before a row's response, where the cells at these places (→ codes) are given.

        Raises:
            ValueError: they are no beginning of the order, and not any order will do.
        """
        ...

    def response(self, codes: Sequence[int], order: Sequence[int] | None = None, *, given: int = 0) -> tuple[int, ...]:
        """The tokens of a row with the end token, without those of its first `given` cells.

        Raises:
            ValueError: another order than `self.order`, where not any will do.
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
        prompt with given cells the others follow, in the order of `order`."""
        ...

    def settings(self) -> dict[str, Any]:
        """JSON from which, with the columns, the same encoding is made again."""
        ...
