"""Splits by prompt: rows with the same prompt always stand on the same side.

Where a prompt goes depends on the seed and its text alone: each prompt has a number in [0, 1) from a hash of both, and
each side owns an interval. So rows that are added, removed or shuffled move no other row from one side to another, and
the sides' sizes are met on average: a side of share p of n prompts differs from n·p by about √(n·p·(1 − p)).

Use another seed for a split inside a side of an earlier split; `split_in_halves` and `first_prompts` have hashes of
their own and are independent of every `split_by_prompt`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from preflab.data.records import prompt_of
from preflab.errors import ConfigError, DataError

Row = TypeVar("Row")


def split_by_prompt(
    rows: Iterable[Row], shares: Mapping[str, float], *, seed: int, key: Callable[[Any], str] = prompt_of
) -> dict[str, tuple[Row, ...]]:
    """Rows by side, each side in the order of `rows`.

    `shares` are the sides' relative sizes, positive and finite: fractions (0.8 and 0.2) or counts of prompts (2000 and
    256) alike. The order of its names matters: it orders the intervals. `key` gives a row's prompt.

    Raises ConfigError for shares that aren't positive, DataError where a side would be empty.

    >>> from preflab.data.records import Prompt
    >>> prompts = [Prompt(f"{n} plus {n} is", f"generated:{n}") for n in range(100)]
    >>> sides = split_by_prompt(prompts, {"train": 0.8, "test": 0.2}, seed=0)
    >>> {name: len(side) for name, side in sides.items()}
    {'train': 80, 'test': 20}
    """
    if not shares or not all(0 < share < math.inf for share in shares.values()):
        raise ConfigError(f"the shares of a split must be positive and finite, these are {dict(shares)}")
    names = list(shares)
    total = math.fsum(shares.values())
    upper = [math.fsum(list(shares.values())[: n + 1]) / total for n in range(len(names) - 1)]
    sides: dict[str, list[Row]] = {name: [] for name in names}
    for row in rows:
        place = _place("split", seed, key(row))
        sides[names[sum(bound <= place for bound in upper)]].append(row)
    return _filled(sides, key)


def split_in_halves(
    rows: Iterable[Row], *, seed: int, key: Callable[[Any], str] = prompt_of
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Two sides of equal share that have no prompt in common, each in the order of `rows`.

    Raises DataError where a side would be empty.
    """
    sides: dict[str, list[Row]] = {"first half": [], "second half": []}
    for row in rows:
        sides["first half" if _place("halves", seed, key(row)) < 0.5 else "second half"].append(row)
    first, second = _filled(sides, key).values()
    return first, second


def first_prompts(
    rows: Iterable[Row], count: int, *, seed: int, key: Callable[[Any], str] = prompt_of
) -> tuple[Row, ...]:
    """The rows of `count` distinct prompts drawn by hash (all, where there are fewer), in the order of `rows`.

    Rows that are added can push a prompt out of the draw, but reorder none.
    """
    rows = tuple(rows)
    drawn = set(sorted({key(row) for row in rows}, key=lambda text: (_place("draw", seed, text), text))[:count])
    return tuple(row for row in rows if key(row) in drawn)


def _place(purpose: str, seed: int, prompt: str) -> float:
    """The prompt's place in [0, 1): 53 bits of a hash, all that a float holds exactly."""
    text = f"{purpose} {seed} {prompt}".encode("utf-8", "surrogatepass")
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest()) >> 11) / 2**53


def _filled(sides: Mapping[str, Sequence[Row]], key: Callable[[Any], str]) -> dict[str, tuple[Row, ...]]:
    empty = [name for name, side in sides.items() if not side]
    if empty:
        prompts = len({key(row) for side in sides.values() for row in side})
        raise DataError(
            f'the side "{empty[0]}" of the split by prompt is empty: {prompts} distinct prompts for {len(sides)} sides '
            f"({', '.join(sides)}); bring more prompts, or change the shares or the seed"
        )
    return {name: tuple(side) for name, side in sides.items()}
