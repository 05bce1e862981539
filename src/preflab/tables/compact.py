"""Rows in a small vocabulary that is made from the table: what a small model reads that is trained from scratch.

A cell is one token where its column has few points: one for each level, one for each point that was seen. On a long
scale it is the token of a *bucket*, a stretch of points that about equally many training rows fall into, and then the
last digits of the number, as many as tell the bucket's points apart. Each place of a row (`Slot`) so has tokens of its
own, which lie side by side, and a row of the fixed order always has the same length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preflab.rollouts.trie import allowing
from preflab.tables.column import Column
from preflab.tables.encoding import Legal, narrowed

START, END = 0, 1
ONE_TOKEN_POINTS = 1_000
"""As many seen points have a token each."""
BUCKETS = 64
"""The most on a longer scale."""
PLAIN_DIGITS = 4
"""As many decimal digits are written one by one; where a bucket needs more, two make a token: the last digits of a fine
scale are noise, and each costs a step."""

Spans = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Slot:
    """What stands at a place of a row."""

    column: int
    """Place in `columns`."""
    part: int
    """0: the cell's value or bucket; 1, 2, …: its digits, the most significant first; −1: which column comes next."""
    first: int
    """Its tokens are first … first + count − 1."""
    count: int


@dataclass(frozen=True)
class Cells:
    """How the cells of a column are written: the first token is a level or a range of points, and digits say which
    point of the range it is."""

    column: Column
    starts: tuple[int, ...]
    """The first point of each range, rising."""
    stops: tuple[int, ...]
    """And its last."""
    middles: tuple[int, ...]
    """The point that stands for it as a number."""
    first: int
    """The first of the column's tokens: levels, ranges, then the digits of each place."""

    @cached_property
    def base(self) -> int:
        return 10 if self._widest <= 10**PLAIN_DIGITS else 100

    @cached_property
    def places(self) -> int:
        """How many digits are written."""
        return next(n for n in range(64) if self.base**n >= self._widest)

    @cached_property
    def values(self) -> int:
        """How many tokens a cell may begin with."""
        return len(self.column.levels) + len(self.starts)

    @property
    def count(self) -> int:
        """How many tokens the column has."""
        return self.values + self.places * self.base

    def slots(self, column: int) -> list[Slot]:
        digits = range(self.first + self.values, self.first + self.count, self.base)
        return [
            Slot(column, 0, self.first, self.values),
            *(Slot(column, part, first, self.base) for part, first in enumerate(digits, 1)),
        ]

    def tokens(self, codes: Int[np.ndarray, " row"]) -> Int[np.ndarray, "row slot"]:
        """The tokens of cells.

        Raises:
            ValueError: a code has no tokens in this column.
        """
        levels = len(self.column.levels)
        is_level = codes < 0
        span = np.searchsorted(self._starts, codes, side="right") - 1
        if len(self.starts):
            wrong = ~is_level & ((span < 0) | (codes > self._stops[span]))
        else:
            wrong = ~is_level
        wrong |= codes < -levels
        if wrong.any():
            raise ValueError(self._no_token(int(codes[wrong][0])))
        found = np.empty((len(codes), 1 + self.places), dtype=np.int64)
        found[:, 0] = self.first + np.where(is_level, -1 - codes, levels + span)
        if self.places:
            wide = codes if self._ring < 2**62 else codes.astype(object)
            rest = np.where(is_level, 0, (wide % self._ring + self._low % self._ring) % self._ring)
            for part in range(self.places, 0, -1):
                found[:, part] = self._digits(part) + (rest % self.base).astype(np.int64)
                rest = rest // self.base
        return found

    def code(self, tokens: Sequence[int], place: int) -> int:
        """The code of a cell from its tokens, the first of which is the row's token number `place`.

        Raises:
            ValueError: they are no cell of this column.
        """
        value = tokens[0] - self.first
        if not 0 <= value < self.values:
            raise ValueError(f'token {place} ({tokens[0]}) is no value of "{self.column.name}"')
        rest = 0
        for part, token in enumerate(tokens[1:], 1):
            digit = token - self._digits(part)
            if not 0 <= digit < self.base:
                raise ValueError(f'token {place + part} ({token}) is no digit {part} of "{self.column.name}"')
            rest = rest * self.base + digit
        span = value - len(self.column.levels)
        if span < 0:
            found, size = -1 - value, 1
            beyond = rest
        else:
            found, size = self.starts[span], self.stops[span] - self.starts[span] + 1
            beyond = (rest - self._low - found) % self._ring if self.places else 0
        if beyond >= size:
            raise ValueError(
                f'the digits of "{self.column.name}" from token {place + 1} on lead out of the bucket of token {place}'
            )
        return found + beyond

    def beginnings(self, legal: Legal) -> Int[np.ndarray, " token"]:
        """The tokens that a legal cell may begin with."""
        levels = sorted(-1 - code for code in legal.levels)
        spans = [number for number in range(len(self.starts)) if self._overlaps(number, legal)]
        return self.first + np.array([*levels, *(len(self.column.levels) + span for span in spans)], dtype=np.int64)

    def open(self, token: int, legal: Legal) -> Spans:
        """What the digits after a cell's first token may say, read as one number: the ends of each stretch."""
        if not self.places:
            return ()
        span = token - self.first - len(self.column.levels)
        if span < 0:
            return ((0, 0),)
        found: list[tuple[int, int]] = []
        for low, high in self._overlaps(span, legal):
            if high - low + 1 >= self._ring:
                return ((0, self._ring - 1),)
            first, last = (self._low + low) % self._ring, (self._low + high) % self._ring
            found += [(first, last)] if first <= last else [(first, self._ring - 1), (0, last)]
        return tuple(sorted(found))

    def digits(self, part: int, spans: Spans) -> Int[np.ndarray, " token"]:
        """The tokens of this digit after which one of the numbers in `spans` can be completed."""
        weight = self.base ** (self.places - part)
        found = {digit for low, high in spans for digit in range(low // weight, high // weight + 1)}
        return self._digits(part) + np.array(sorted(found), dtype=np.int64)

    def after(self, part: int, spans: Spans, token: int) -> Spans:
        """What the digits after this one may say."""
        weight = self.base ** (self.places - part)
        before = (token - self._digits(part)) * weight
        clipped = ((max(low - before, 0), min(high - before, weight - 1)) for low, high in spans)
        return tuple((low, high) for low, high in clipped if low <= high)

    def numbers(self) -> Float[np.ndarray, " value"]:
        """The value of each token that a cell may begin with: NaN for a level, for a bucket that of the middle one
        of its training rows."""
        levels = [float("nan")] * len(self.column.levels)
        return np.array([*levels, *(self.column.value(point) for point in self.middles)])

    def _overlaps(self, span: int, legal: Legal) -> list[tuple[int, int]]:
        start, stop = self.starts[span], self.stops[span]
        return [(max(low, start), min(high, stop)) for low, high in legal.spans if low <= stop and high >= start]

    def _no_token(self, code: int) -> str:
        column = self.column
        if code < -len(column.levels) or (code >= 0 and column.numbers is None):
            return f'{code} is no code of "{column.name}"'
        return f'"{column.text(code)}" of "{column.name}" is no point of its scale that training rows hold'

    def _digits(self, part: int) -> int:
        """The token of digit 0 at this place."""
        return self.first + self.values + (part - 1) * self.base

    @cached_property
    def _starts(self) -> Int[np.ndarray, " range"]:
        return np.array(self.starts, dtype=np.int64)

    @cached_property
    def _stops(self) -> Int[np.ndarray, " range"]:
        return np.array(self.stops, dtype=np.int64)

    @cached_property
    def _widest(self) -> int:
        """Points of the longest range."""
        return max((stop - start + 1 for start, stop in zip(self.starts, self.stops, strict=True)), default=1)

    @cached_property
    def _ring(self) -> int:
        """Digits tell numbers apart that differ by less."""
        return int(self.base**self.places)

    @cached_property
    def _low(self) -> int:
        return 0 if self.column.numbers is None else self.column.numbers.low


def buckets(points: Int[np.ndarray, " row"], size: int) -> tuple[tuple[int, int], ...]:
    """At most `BUCKETS` buckets that hold about equally many of these points, and together all points below `size`: of
    each its first point and its median one. A point that would fill two has one for itself.

    >>> buckets(np.array([5] * 50 + list(range(10, 73))), 100)[:4]
    ((0, 2), (5, 5), (6, 10), (12, 12))
    """
    distinct, counts = np.unique(points, return_counts=True)
    share = len(points) / (BUCKETS - 1)
    starts, filled = [0], 0
    for point, count in zip(distinct.tolist(), counts.tolist(), strict=True):
        alone = count >= 2 * share
        if alone or filled >= share:
            starts.append(point)
            filled = 0
        filled += count
        if alone:
            starts.append(point + 1)
            filled = 0
    starts = [start for start in dict.fromkeys(starts) if start < size]
    risen = np.sort(points)
    bounds = np.searchsorted(risen, [*starts, size]).tolist()
    ends = [*starts[1:], size]
    middles = [
        int(risen[(begin + end - 1) // 2]) if begin < end else (start + stop - 1) // 2
        for start, stop, begin, end in zip(starts, ends, bounds[:-1], bounds[1:], strict=True)
    ]
    return tuple(zip(starts, middles, strict=True))


@dataclass(frozen=True)
class Compact:
    """See `encoding.Encoding`; `Compact.of` makes one for a table.

    The tokens: start, end, one a column where any order will do, then those of each column in the order of the table.

    >>> from preflab.tables.column import Numbers
    >>> age = Column("age", "integer", levels=("",), missing=("",), numbers=Numbers(18, 73, (0, 7, 20)))
    >>> smoker = Column("smoker", "boolean", levels=("no", "yes"))
    >>> encoding = Compact.of((age, smoker), np.array([[7, -2], [-1, -1], [20, -1], [0, -2]]))
    >>> encoding.prompt(), encoding.response([7, -2]), encoding.vocabulary
    ((0,), (4, 7, 1), 8)
    >>> encoding.row((4, 7)).tolist()
    [7, -2]
    """

    columns: tuple[Column, ...]
    order: tuple[int, ...]
    any_order: bool
    buckets: tuple[tuple[tuple[int, int], ...], ...]
    """Of each column its buckets: the first point, and the one in the middle of its training rows; empty where each
    seen point has a token."""

    @staticmethod
    def of(
        columns: Sequence[Column],
        codes: Int[np.ndarray, "row column"],
        *,
        order: Sequence[int] | None = None,
        any_order: bool = False,
    ) -> Compact:
        """
        Args:
            columns: those that are written.
            codes: of the training rows.
            order: in which cells are written; None: as the columns are.

        Raises:
            ValueError: `order` doesn't hold each column once.
        """
        found = []
        for number, column in enumerate(columns):
            cells, numbers = codes[:, number], column.numbers
            short = numbers is None or 0 < len(numbers.seen) <= ONE_TOKEN_POINTS
            found.append(() if numbers is None or short else buckets(cells[cells >= 0], numbers.size))
        order = range(len(columns)) if order is None else order
        return Compact(tuple(columns), tuple(order), any_order, tuple(found))

    @staticmethod
    def restored(columns: Sequence[Column], settings: Mapping[str, Any]) -> Compact:
        """From what `settings` gave."""
        found = tuple(tuple((start, middle) for start, middle in some) for some in settings["buckets"])
        return Compact(tuple(columns), tuple(settings["order"]), settings["any_order"], found)

    def __post_init__(self) -> None:
        if sorted(self.order) != list(range(len(self.columns))):
            raise ValueError(f"the order {list(self.order)} doesn't hold each of {len(self.columns)} columns once")

    def settings(self) -> dict[str, Any]:
        """JSON for `restored`."""
        return {
            "kind": "compact",
            "order": list(self.order),
            "any_order": self.any_order,
            "buckets": [[list(bucket) for bucket in some] for some in self.buckets],
        }

    @property
    def end_id(self) -> int:
        return END

    @cached_property
    def cells(self) -> tuple[Cells, ...]:
        """How each column is written."""
        found: list[Cells] = []
        first = END + 1 + (len(self.columns) if self.any_order else 0)
        for column, some in zip(self.columns, self.buckets, strict=True):
            numbers = column.numbers
            if numbers is None:
                found.append(Cells(column, (), (), (), first))
            elif some:
                starts, middles = tuple(start for start, _ in some), tuple(middle for _, middle in some)
                stops = (*(start - 1 for start in starts[1:]), numbers.size - 1)
                found.append(Cells(column, starts, stops, middles, first))
            else:
                found.append(Cells(column, numbers.seen, numbers.seen, numbers.seen, first))
            first += found[-1].count
        return tuple(found)

    @cached_property
    def vocabulary(self) -> int:
        return self.cells[-1].first + self.cells[-1].count if self.cells else END + 1

    @cached_property
    def slots(self) -> tuple[Slot, ...]:
        """What stands at each place of a row in the fixed order, from the first token after the start token; the end
        token follows the last."""
        return self.slots_in(self.order)

    def slots_in(self, order: Sequence[int]) -> tuple[Slot, ...]:
        """The same in another order, or of some columns."""
        found: list[Slot] = []
        for number in order:
            if self.any_order:
                found.append(Slot(number, -1, END + 1, len(self.columns)))
            found += self.cells[number].slots(number)
        return tuple(found)

    @cached_property
    def longest(self) -> int:
        """All rows are as long."""
        return len(self.slots) + 1

    def numbers_of(self, column: int) -> Float[np.ndarray, " value"]:
        """The value of each of the tokens that a cell of this column may begin with, those of its slot with part 0: NaN
        for a level, for a bucket a point in its middle. In the unit of `Column.value`."""
        return self.cells[column].numbers()

    def prompt(self, given: Mapping[int, int] = {}) -> tuple[int, ...]:
        """The start token and the given cells: in the fixed order, or as they stand in `given` where any will do."""
        order = tuple(given) if self.any_order else self.order[: len(given)]
        if set(order) != set(given):
            raise ValueError(self._no_beginning(given))
        tokens = [START]
        for number in order:
            if self.any_order:
                tokens.append(END + 1 + number)
            tokens += self.cells[number].tokens(np.array([given[number]], dtype=np.int64))[0].tolist()
        return tuple(tokens)

    def response(self, codes: Sequence[int], order: Sequence[int] | None = None, *, given: int = 0) -> tuple[int, ...]:
        """See `Encoding`."""
        order = self._checked(order)
        skipped = 1 + len(self.slots_in(order[:given]))
        table = np.array([codes], dtype=np.int64)
        return tuple(self.sequences(table, np.array([order]))[0, skipped:].tolist())

    def sequences(
        self, codes: Int[np.ndarray, "row column"], orders: Int[np.ndarray, "row column"] | None = None
    ) -> Int[np.ndarray, "row token"]:
        """Prompt and response of many rows, from the start token to the end token.

        Args:
            orders: of each row; None: the fixed one.

        Raises:
            ValueError: a code has no tokens, or an order is not the fixed one where not any will do.
        """
        if orders is None:
            orders = np.broadcast_to(np.array(self.order), codes.shape)
        elif not self.any_order and (orders != np.array(self.order)).any():
            raise ValueError(self._one_order())
        found = np.empty((len(codes), self.longest + 1), dtype=np.int64)
        found[:, 0], found[:, -1] = START, END
        owner, begin = np.empty(self.longest - 1, dtype=np.int64), 1
        for number, cells in enumerate(self.cells):
            first = begin
            if self.any_order:
                found[:, begin] = END + 1 + number
                begin += 1
            found[:, begin : begin + 1 + cells.places] = cells.tokens(codes[:, number])
            begin += 1 + cells.places
            owner[first - 1 : begin - 1] = number
        # From the order of the table to that of each row: tokens of a column stay together.
        rank = np.argsort(orders, axis=1)[:, owner]
        found[:, 1:-1] = np.take_along_axis(found[:, 1:-1], np.argsort(rank, axis=1, kind="stable"), axis=1)
        return found

    def row(self, tokens: Sequence[int]) -> Int[np.ndarray, " column"]:
        """See `Encoding`."""
        found, end = self.read(tokens)
        if end < len(tokens) - 1 or (end < len(tokens) and tokens[end] != END):
            raise ValueError(f"the row is complete before token {end} ({tokens[end]})")
        missing = [column.name for number, column in enumerate(self.columns) if number not in found]
        if missing:
            raise ValueError(f'the row ends before "{missing[0]}", with {len(found)} of {len(self.columns)} cells')
        return np.array([found[number] for number in range(len(self.columns))], dtype=np.int64)

    def read(self, tokens: Sequence[int]) -> tuple[dict[int, int], int]:
        """The cells of the beginning of a row (places → codes, in the order in which they stand), and at which token
        they end; start token or not.

        Raises:
            ValueError: the tokens are no beginning of a row, or end within a cell.
        """
        found: dict[int, int] = {}
        place = 1 if len(tokens) and tokens[0] == START else 0
        while place < len(tokens) and tokens[place] != END and len(found) < len(self.columns):
            number = self.order[len(found)]
            if self.any_order:
                number = int(tokens[place]) - END - 1
                if not 0 <= number < len(self.columns) or number in found:
                    raise ValueError(f"token {place} ({tokens[place]}) names no column that is still to come")
                place += 1
            cells = self.cells[number]
            stop = place + 1 + cells.places
            if stop > len(tokens):
                raise ValueError(f'the row ends within "{self.columns[number].name}", at token {len(tokens)}')
            found[number] = cells.code([int(token) for token in tokens[place:stop]], place)
            place = stop
        return found, place

    def mask(self, legal: Mapping[int, Legal] = {}) -> CompactMask:
        """See `Encoding`.

        Raises:
            ValueError: nothing is left that a column may be.
        """
        return CompactMask(self, legal)

    def _checked(self, order: Sequence[int] | None) -> tuple[int, ...]:
        if order is None:
            return self.order
        if not self.any_order and tuple(order) != self.order:
            raise ValueError(self._one_order())
        if sorted(order) != sorted(self.order):
            raise ValueError(f"the order {list(order)} doesn't hold each of {len(self.columns)} columns once")
        return tuple(order)

    def _one_order(self) -> str:
        return "cells stand in one order only; make the encoding with any_order=True for others"

    def _no_beginning(self, given: Mapping[int, int]) -> str:
        names = ", ".join(f'"{self.columns[number].name}"' for number in given)
        first = ", ".join(f'"{self.columns[number].name}"' for number in self.order[: len(given)])
        return f"{names} can't be given: rows begin with {first}; make the encoding with any_order=True for others"


class Place(NamedTuple):
    """Where a row is: a state of `CompactMask`."""

    given: int
    """Which columns the prompt has, a bit each."""
    slot: int
    """How many slots after the prompt are filled."""
    open: Spans
    """What the cell's further digits may say."""


class CompactMask:
    """A `TokenMask`: exactly the legal rows.

    What may follow depends on the slot, and for digits on what the digits before them left open: few places differ.
    """

    def __init__(self, encoding: Compact, legal: Mapping[int, Legal]) -> None:
        self.encoding = encoding
        self.legal = narrowed(encoding.columns, legal)
        self._beginnings = [cells.beginnings(some) for cells, some in zip(encoding.cells, self.legal, strict=True)]
        for column, beginnings in zip(encoding.columns, self._beginnings, strict=True):
            if not len(beginnings):
                raise ValueError(f'no training row holds a value of "{column.name}" that is asked for; allow it more')
        self._left: dict[int, tuple[Slot, ...]] = {}
        """Of the columns that were given: the slots that follow."""
        self._choices: dict[tuple[int, int, Spans], Int[np.ndarray, " token"]] = {}

    def start(self, prompt: tuple[int, ...]) -> Place:
        """
        Raises:
            ValueError: the prompt is no beginning of a row.
        """
        found, place = self.encoding.read(prompt)
        if place < len(prompt):
            raise ValueError(f"the prompt goes on after its row, with token {place} ({prompt[place]})")
        return Place(sum(1 << number for number in found), 0, ())

    def advance(self, state: Place, token: int) -> Place:
        slot = self._slots(state.given)[state.slot]
        left: Spans = ()
        if slot.part == 0:
            left = self.encoding.cells[slot.column].open(token, self.legal[slot.column])
        elif slot.part > 0:
            left = self.encoding.cells[slot.column].after(slot.part, state.open, token)
            if slot.part == self.encoding.cells[slot.column].places:
                left = ()
        return Place(state.given, state.slot + 1, left)

    def allowed(self, states: Sequence[Place]) -> Bool[Tensor, "row vocabulary"]:
        return allowing([self._choice(state) for state in states], self.encoding.vocabulary)

    def _slots(self, given: int) -> tuple[Slot, ...]:
        if given not in self._left:
            left = [number for number in self.encoding.order if not given >> number & 1]
            self._left[given] = self.encoding.slots_in(left)
        return self._left[given]

    def _choice(self, state: Place) -> Int[np.ndarray, " token"]:
        slots = self._slots(state.given)
        if state.slot == len(slots):
            return _END
        slot = slots[state.slot]
        key = (slot.column, slot.part, state.open)
        found = self._choices.get(key)
        if found is None:
            if slot.part < 0:
                found = np.array([END + 1 + slot.column])
            elif slot.part == 0:
                found = self._beginnings[slot.column]
            else:
                found = self.encoding.cells[slot.column].digits(slot.part, state.open)
            self._choices[key] = found
        return found


_END = np.array([END])
