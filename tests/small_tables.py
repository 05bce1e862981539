"""Columns for tests of encodings: every kind of cell, names that are hard to read back, all rows of a table."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from random import Random
from typing import Any

from hypothesis import strategies as st

from preflab.models.base import new_tokenizer
from preflab.rollouts.mask import TokenMask
from preflab.tables.column import Column, Numbers
from preflab.tables.encoding import Encoding, Legal

ODD_TEXTS = (
    "", " ", "a", "a, b", ", ", ",", '"', '"a"', '"a", b', "a is b", " is ", "is", "line\nbreak", "a\r\n", "é", "日本",
    "😀", "-9", "12", "12,5", "=1+1", "<|end|>", "<|start|>", "nan", "a, c is d", "d",
)  # fmt: skip


@dataclass(frozen=True)
class Trimmed(Numbers):
    """Decimals without the zeros at their end: 1.25, 1.5, 2."""

    places: int = 2

    def text(self, point: int) -> str:
        steps = self.low + point
        digits = str(abs(steps)).rjust(self.places + 1, "0")
        whole, rest = digits[: -self.places], digits[-self.places :].rstrip("0")
        return "-" * (steps < 0) + whole + "." * bool(rest) + rest

    def point(self, text: str) -> int:
        whole, _, rest = text.removeprefix("-").partition(".")
        steps = int(whole + rest.ljust(self.places, "0")) * (-1 if text.startswith("-") else 1)
        if self.text(steps - self.low) != text or not 0 <= steps - self.low < self.size:
            raise ValueError(text)
        return steps - self.low


def odd_columns() -> tuple[Column, ...]:
    """Names that hold " is ", commas and quotes, begin with each other, or are not ASCII; values likewise."""
    names = ("a", "a is b", "a is", "x, y", '"q"', "日本", "", "b", "isle", "a isle")
    return tuple(
        Column(name, "category", levels=tuple(dict.fromkeys((*ODD_TEXTS[i::3], *ODD_TEXTS[: i + 1]))))
        for i, name in enumerate(names)
    )


@st.composite
def columns(draw: Any, *, longest: int = 30) -> Column:
    """One column of levels, of points, or both; of scales of up to `longest` points."""
    name = draw(st.text(max_size=6) | st.sampled_from(ODD_TEXTS))
    cells = st.text(max_size=5) | st.sampled_from(ODD_TEXTS) | st.integers(-20, 20).map(str)
    levels = tuple(draw(st.lists(cells, unique=True, max_size=4)))
    if levels and draw(st.booleans()):
        return Column(name, "category", levels=levels)
    low = draw(st.integers(-40, 40) | st.sampled_from((-(10**17), 10**17, 2**53)))
    size = draw(st.integers(1, longest))
    seen = draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=20))
    made = draw(st.sampled_from((Numbers, Trimmed)))
    return Column(name, "integer", levels=levels, numbers=made(low, size, tuple(sorted(seen))))


def legal_codes(column: Column, narrower: Legal | None = None, *, seen: bool = False) -> list[int]:
    """All codes whose cells read back as themselves, of the points perhaps those seen alone."""
    numbers = column.numbers
    points: Sequence[int] = () if numbers is None else numbers.seen if seen else range(numbers.size)
    codes = [*range(-len(column.levels), 0), *points]
    return [code for code in codes if column.code(column.text(code)) == code and (narrower is None or code in narrower)]


def legal_rows(columns: Sequence[Column], narrower: dict[int, Legal], *, seen: bool = False) -> set[tuple[int, ...]]:
    """Every combination of legal cells."""
    cells = [legal_codes(column, narrower.get(i), seen=seen) for i, column in enumerate(columns)]
    return set(product(*cells))


def walk(mask: TokenMask[Any], prompt: tuple[int, ...], end_id: int) -> Iterator[tuple[int, ...]]:
    """Every response that a mask allows."""
    waiting = [((), mask.start(prompt))]
    while waiting:
        tokens, state = waiting.pop()
        allowed = mask.allowed([state])[0].nonzero().flatten().tolist()
        assert allowed, f"nothing may follow {tokens}"
        for token in allowed:
            if token == end_id:
                yield (*tokens, token)
            else:
                waiting.append(((*tokens, token), mask.advance(state, token)))


def accepts(mask: TokenMask[Any], prompt: tuple[int, ...], response: Sequence[int]) -> bool:
    """Whether a mask allows each token of a response."""
    state = mask.start(prompt)
    for place, token in enumerate(response):
        if not mask.allowed([state])[0, token]:
            return False
        if place < len(response) - 1:
            state = mask.advance(state, token)
    return True


@cache
def small_tokenizer() -> Any:
    """A byte-level BPE of 400 tokens, trained on sentences with odd texts; some merge across " is"."""
    texts = [f"a is {value}, b is 12.5, age is -9, isle is 2024-01-31" for value in ODD_TEXTS for _ in range(4)]
    return new_tokenizer(texts, vocabulary=400)


def round_trips(encoding: Encoding, mask: TokenMask[Any], codes: list[int], random: Random) -> None:
    """Hold a row to its way there and back, some of its cells given, in an order that the encoding allows."""
    order = list(encoding.order)
    if encoding.any_order:
        random.shuffle(order)
    count = random.randrange(len(order) + 1)
    prompt = encoding.prompt({number: codes[number] for number in order[:count]})
    if encoding.any_order:  # the mask lets the others follow in the fixed order
        order[count:] = [number for number in encoding.order if number not in order[:count]]
    response = encoding.response(codes, order, given=count)
    assert prompt + response == encoding.prompt() + encoding.response(codes, order)
    assert len(encoding.response(codes, order)) <= encoding.longest
    assert encoding.row(prompt + response).tolist() == codes
    assert encoding.row((prompt + response)[1:-1]).tolist() == codes
    assert accepts(mask, prompt, response)
