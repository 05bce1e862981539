"""Rows as text, "column is value, column is value", in the tokens of a pretrained tokenizer.

Names, values and commas are tokenised apart, and the tokens of a row are theirs one after the other: what the text
looks like where they meet doesn't matter, and a row is read by the tries of its names and legal values, not by a search
for commas. Text that could be taken for the end of a value or a name stands in quotes, doubled within, as in CSV.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int
from torch import Tensor

from preflab.data.encode import Encoder, Tokenizer
from preflab.errors import ConfigError
from preflab.rollouts.trie import Node, after, allowing, union
from preflab.tables.column import Column
from preflab.tables.encoding import Legal, legal_of, narrowed
from preflab.tables.spelling import probes, spelled, stretches

LISTED_POINTS = 5_000
"""As many points of a scale have the tokens that the tokenizer gives their text; those of a longer one are written
character by character."""

DIGITS = "0123456789"

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Values:
    """How the values of a column are written, with the space before them."""

    column: Column
    listed: dict[int, Tokens]
    """Code → tokens."""
    parts: tuple[Sequence[int], ...]
    """The scale of those that are written character by character; empty where there are none."""
    plain: bool
    """Whether these are written as plain decimals, or counts of steps where the scale has no decimals, as the texts of
    the table have no order: "1e-05"."""
    alphabet: dict[str, Tokens]
    """Character → tokens; with a space before it where it comes first."""

    def tokens(self, code: int) -> Tokens:
        """
        Raises:
            ValueError: the code is not legal in this column.
        """
        found = self.listed.get(code)
        if found is not None:
            return found
        if code not in self.legal or not self.parts:
            raise ValueError(f'{code} is no code of "{self.column.name}"')
        text = self.text(code)
        return self.first(text[0]) + tuple(token for character in text[1:] for token in self.others(character))

    def trie(self, legal: Legal) -> Node:
        """The legal values, their codes at its ends."""
        roots = [after(tokens, Node(code)) for code, tokens in self.listed.items() if code in legal]
        if self.parts:
            roots.append(spelled(self.text, self.parts, (legal & self.legal).spans, self.first, self.others))
        return union(roots)

    def text(self, code: int) -> str:
        if self.plain and code >= 0:
            return plain_text(self.column, code)
        text = self.column.text(code)
        # Among plain decimals, a level that looks like one is told apart by its quotes.
        return _quotes(text) if self.plain and text[:1] in ("-", *DIGITS) else quoted_value(text)

    def first(self, character: str) -> Tokens:
        return self.alphabet[" " + character]

    def others(self, character: str) -> Tokens:
        return self.alphabet[character]

    @cached_property
    def legal(self) -> Legal:
        return legal_of(self.column)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest value, or more."""
        listed = [len(tokens) for tokens in self.listed.values()]
        if not self.parts:
            return max(listed)
        first = max(len(tokens) for start, tokens in self.alphabet.items() if start[0] == " " and len(start) > 1)
        other = max(len(tokens) for start, tokens in self.alphabet.items() if len(start) == 1)
        characters = max(len(self.text(point)) for part in self.parts for point in probes(part))
        return max(first + other * (characters - 1), *listed, 0)


def quoted_value(text: str) -> str:
    """A value as it stands in a row: in quotes where a comma could be taken for its end, or it could be for quotes.

    >>> [quoted_value(text) for text in ("55", "a, b", "", '"so"', 'a "b"')]
    ['55', '"a, b"', '""', '\"""so""\"', 'a "b"']
    """
    return _quotes(text) if not text or "," in text or text[0] == '"' else text


def quoted_name(name: str) -> str:
    """A name, likewise, where " is " could be taken for its end.

    >>> [quoted_name(name) for name in ("age", "what is it", "that is", "this")]
    ['age', '"what is it"', '"that is"', 'this']
    """
    return _quotes(name) if not name or " is " in name + " " or name[0] == '"' else name


def plain_text(column: Column, point: int) -> str:
    """A point with all its decimals, or as the count of its step.

    >>> from preflab.tables.column import Numbers
    >>> plain_text(Column("x", "integer", numbers=Numbers(-5, 10, ())), 2)
    '-3'
    """
    assert column.numbers is not None
    # Scales of moments have no decimals.
    steps, decimals = column.numbers.low + point, max(getattr(column.numbers, "decimals", 0), 0)
    digits = str(abs(steps)).rjust(decimals + 1, "0")
    cut = len(digits) - decimals
    return "-" * (steps < 0) + digits[:cut] + "." * bool(decimals) + digits[cut:]


class Sentence:
    """See `encoding.Encoding`.

    Each clause begins with the space before its name, the first one too, so it has the same tokens wherever it stands.

    Args:
        columns: those that are written.
        tokenizer: of the model; its begin token starts a row, its end token ends it.
        order: in which cells are written; None: as the columns are.
        vocabulary: width of the model's output head; None: as many tokens as the tokenizer has.

    Raises:
        ConfigError: the tokenizer has no begin or end token, or a text of the table doesn't survive it.
        ValueError: `order` doesn't hold each column once.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        tokenizer: Tokenizer,
        *,
        order: Sequence[int] | None = None,
        any_order: bool = False,
        vocabulary: int | None = None,
    ) -> None:
        self.columns = tuple(columns)
        self.order = tuple(range(len(columns)) if order is None else order)
        if sorted(self.order) != list(range(len(columns))):
            raise ValueError(f"the order {list(self.order)} doesn't hold each of {len(columns)} columns once")
        if tokenizer.bos_token_id is None or tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer has no begin token or no end token, so no row could start or end; set "
                "tokenizer.bos_token and tokenizer.eos_token"
            )
        self.any_order = any_order
        self.start_id: int = tokenizer.bos_token_id
        self.end_id: int = tokenizer.eos_token_id
        self.vocabulary = len(tokenizer) if vocabulary is None else vocabulary
        self._encoder = Encoder(tokenizer, prompt_tokens=0, response_tokens=0)
        self.comma = self._piece(",")
        self.names = tuple(self._piece(f" {quoted_name(column.name)} is") for column in self.columns)
        if len(set(self.names)) < len(self.names):
            raise ConfigError("two columns have the same name, so a sentence couldn't tell them apart; rename one")
        self.values = tuple(self._values(column) for column in self.columns)
        self._roots: list[Node | None] = [None] * len(self.columns)
        self._names = union([after(tokens, Node(number)) for number, tokens in enumerate(self.names)])

    @staticmethod
    def restored(columns: Sequence[Column], settings: Mapping[str, Any], tokenizer: Tokenizer) -> Sentence:
        """From what `settings` gave, and the same tokenizer."""
        return Sentence(
            columns,
            tokenizer,
            order=settings["order"],
            any_order=settings["any_order"],
            vocabulary=settings["vocabulary"],
        )

    def settings(self) -> dict[str, Any]:
        """JSON for `restored`."""
        return {
            "kind": "sentence",
            "order": list(self.order),
            "any_order": self.any_order,
            "vocabulary": self.vocabulary,
        }

    @cached_property
    def longest(self) -> int:
        """The longest row has as many tokens, or fewer."""
        clauses = [len(name) + values.longest for name, values in zip(self.names, self.values, strict=True)]
        return sum(clauses) + len(self.comma) * max(len(self.columns) - 1, 0) + 1

    def prompt(self, given: Mapping[int, int] = {}) -> tuple[int, ...]:
        """The begin token and the given clauses, with the comma behind them where others follow."""
        order = tuple(given) if self.any_order else self.order[: len(given)]
        if set(order) != set(given):
            names, first = self._some_names(given), self._some_names(self.order[: len(given)])
            raise ValueError(
                f"{names} can't be given: rows begin with {first}; make the encoding with any_order=True for others"
            )
        tokens = [self.start_id, *self._clauses(order, given)]
        return (*tokens, *self.comma) if 0 < len(given) < len(self.columns) else tuple(tokens)

    def response(self, codes: Sequence[int], order: Sequence[int] | None = None, *, given: int = 0) -> tuple[int, ...]:
        """See `Encoding`."""
        order = self.order if order is None else tuple(order)
        if not self.any_order and order != self.order:
            raise ValueError("cells stand in one order only; make the encoding with any_order=True for others")
        if sorted(order) != sorted(self.order):
            raise ValueError(f"the order {list(order)} doesn't hold each of {len(self.columns)} columns once")
        cells = {number: int(codes[number]) for number in order}
        return (*self._clauses(order[given:], cells), self.end_id)

    def row(self, tokens: Sequence[int]) -> Int[np.ndarray, " column"]:
        """See `Encoding`."""
        found, end, _ = self.read(tokens)
        missing = self._missing(found)
        if missing:
            raise ValueError(f'the row ends before "{missing}", with {len(found)} of {len(self.columns)} cells')
        if end < len(tokens) - 1 or (end < len(tokens) and tokens[end] != self.end_id):
            raise ValueError(f"the row is complete before token {end} ({tokens[end]})")
        return np.array([found[number] for number in range(len(self.columns))], dtype=np.int64)

    def text_of(self, tokens: Sequence[int]) -> str:
        """What a row says: "column is value, column is value"."""
        return self._encoder.decode(tokens).removeprefix(" ")

    def read(self, tokens: Sequence[int]) -> tuple[dict[int, int], int, bool]:
        """The cells of the beginning of a row (places → codes, in the order in which they stand), at which token they
        end, and whether a comma is the last of them; start token or not.

        Raises:
            ValueError: the tokens are no beginning of a row, or end within a clause.
        """
        found: dict[int, int] = {}
        place = 1 if len(tokens) and tokens[0] == self.start_id else 0
        comma = False
        while place < len(tokens) and tokens[place] != self.end_id and (comma or not found):
            number, place = self._name_at(tokens, place, found)
            code, stop = _walk(self._root(number), tokens, place)
            if code is None:
                raise ValueError(f'the tokens from {place} on are no value of "{self.columns[number].name}"')
            found[number], place = code, stop
            behind = tuple(tokens[place : place + len(self.comma)])
            comma = len(found) < len(self.columns) and behind == self.comma
            place += len(self.comma) * comma
        return found, place, comma

    def mask(self, legal: Mapping[int, Legal] = {}) -> SentenceMask:
        """See `Encoding`.

        Raises:
            ValueError: nothing is left that a column may be.
        """
        return SentenceMask(self, legal)

    def _clauses(self, order: Sequence[int], cells: Mapping[int, int]) -> Iterable[int]:
        for place, number in enumerate(order):
            if place:
                yield from self.comma
            yield from self.names[number]
            yield from self.values[number].tokens(cells[number])

    def _name_at(self, tokens: Sequence[int], place: int, found: Mapping[int, int]) -> tuple[int, int]:
        if not self.any_order:
            number = self.order[len(found)]
            stop = place + len(self.names[number])
            if tuple(tokens[place:stop]) != self.names[number]:
                raise ValueError(f'the tokens from {place} on are not the name "{self.columns[number].name}"')
            return number, stop
        named, stop = _walk(self._names, tokens, place)
        if named is None or named in found:
            raise ValueError(f"the tokens from {place} on name no column that is still to come")
        return named, stop

    def _root(self, number: int) -> Node:
        found = self._roots[number]
        if found is None:
            values = self.values[number]
            found = self._roots[number] = values.trie(values.legal)
        return found

    def _missing(self, found: Mapping[int, int]) -> str | None:
        return next((self.columns[number].name for number in self.order if number not in found), None)

    def _some_names(self, numbers: Iterable[int]) -> str:
        return ", ".join(f'"{self.columns[number].name}"' for number in numbers)

    def _values(self, column: Column) -> Values:
        legal, numbers = legal_of(column), column.numbers
        points: Sequence[int] = ()
        values = Values(column, listed={}, parts=(), plain=False, alphabet={})
        if numbers is not None and numbers.size <= LISTED_POINTS:
            points = range(numbers.size)
        elif numbers is not None:
            parts = stretches(values.text, numbers.size)
            if parts is None:
                values = replace(values, plain=True)
                parts = stretches(values.text, numbers.size)
            assert parts is not None, "plain decimals have an order"
            seen = {character for part in parts for point in probes(part) for character in values.text(point)}
            alphabet = {before + c: self._piece(before + c) for c in sorted(seen | set(DIGITS)) for before in ("", " ")}
            values = replace(values, parts=tuple(parts), alphabet=alphabet)
        codes = [*range(-len(column.levels), 0), *(point for point in points if point in legal)]
        listed = {code: self._piece(f" {values.text(code)}") for code in codes}
        if len(set(listed.values())) < len(listed):
            raise ConfigError(f'the tokenizer writes two values of "{column.name}" alike; take another')
        every = set(listed.values())
        if any(
            tokens[place : place + 1] == self.comma[:1] and tokens[:place] in every
            for tokens in every
            for place in range(1, len(tokens))
        ):
            raise ConfigError(f'the tokenizer writes a value of "{column.name}" like another and a comma; take another')
        return replace(values, listed=listed)

    def _piece(self, text: str) -> Tokens:
        tokens = self._encoder.continuation(text)
        if self._encoder.decode(tokens) != text or self.end_id in tokens:
            raise ConfigError(f'the tokenizer gives back "{self._encoder.decode(tokens)}" for "{text}"; take another')
        return tokens


class Spot(NamedTuple):
    """Where a row is: a state of `SentenceMask`."""

    given: int
    """Which columns the prompt has, a bit each."""
    column: int
    """How many of those that follow are complete."""
    at: int | Node
    """So many tokens into comma and name; or a place in the trie of its values."""


class SentenceMask:
    """A `TokenMask`: exactly the legal rows. Commas and names are forced, values follow their trie."""

    def __init__(self, encoding: Sentence, legal: Mapping[int, Legal]) -> None:
        self.encoding = encoding
        kept = narrowed(encoding.columns, legal)
        self._roots = [values.trie(some) for values, some in zip(encoding.values, kept, strict=True)]
        self._left: dict[int, tuple[int, ...]] = {}
        """Of the columns that were given: those that follow."""
        self._bridges = tuple(encoding.comma + name for name in encoding.names)
        self._end, self._comma = np.array([encoding.end_id]), np.array(encoding.comma[:1])

    def start(self, prompt: tuple[int, ...]) -> Spot:
        """
        Raises:
            ValueError: the prompt is none that `Sentence.prompt` gives.
        """
        found, place, comma = self.encoding.read(prompt)
        if place < len(prompt) or comma != (0 < len(found) < len(self.encoding.columns)):
            raise ValueError(f"the prompt of {len(prompt)} tokens doesn't end behind a clause and its comma")
        return Spot(sum(1 << number for number in found), 0, len(self.encoding.comma))

    def advance(self, state: Spot, token: int) -> Spot:
        given, column, at = state
        if isinstance(at, int):
            number = self._columns(given)[column]
            return Spot(given, column, at + 1 if at + 1 < len(self._bridges[number]) else self._roots[number])
        child = at.children.get(token)
        return Spot(given, column + 1, 1) if child is None else Spot(given, column, child)

    def allowed(self, states: Sequence[Spot]) -> Bool[Tensor, "row vocabulary"]:
        return allowing([self._choice(state) for state in states], self.encoding.vocabulary)

    def _columns(self, given: int) -> tuple[int, ...]:
        if given not in self._left:
            self._left[given] = tuple(number for number in self.encoding.order if not given >> number & 1)
        return self._left[given]

    def _choice(self, state: Spot) -> Int[np.ndarray, " token"]:
        columns, at = self._columns(state.given), state.at
        if state.column == len(columns):
            return self._end
        if isinstance(at, int):
            return np.array([self._bridges[columns[state.column]][at]])
        if at.value is None:
            return at.choices
        return np.concatenate([at.choices, self._end if state.column == len(columns) - 1 else self._comma])


def _walk(node: Node, tokens: Sequence[int], place: int) -> tuple[int | None, int]:
    """The value at the end of the longest way into a trie, and the token where that ends. No value goes on with what
    may stand behind another, so there is no shorter one to consider."""
    while place < len(tokens) and (child := node.children.get(int(tokens[place]))) is not None:
        node, place = child, place + 1
    return node.value, place


def _quotes(text: str) -> str:
    return '"' + text.replace('"', '""') + '"'
