"""Numbers character by character, on scales too long to list: which characters may follow, so that a legal number can
still be completed.

On a stretch of a scale where texts rise in the order of characters, or fall, as numbers with as many digits before the
point do and dates that begin with the year, the points whose texts begin alike are neighbours: two searches find them.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise

from preflab.rollouts.trie import Node, after, union

Spans = Sequence[tuple[int, int]]
Text = Callable[[int], str]
Spell = Callable[[str], Sequence[int]]
"""A character → its tokens."""

NEIGHBOURS = 12
"""Points that are looked at side by side: among ten, all lengths of a text occur that its last digit has a say in."""
PROBES = 300
"""Points along a stretch at which its order is looked at."""


def stretches(text: Text, size: int) -> list[range] | None:
    """Points 0 … size − 1 in stretches, each in the order in which its texts rise; None: they have no such order, as
    far as some hundred points of each tell.

    >>> [(part[0], part[-1]) for part in stretches(lambda point: str(point - 20), 140)]
    [(10, 0), (19, 11), (20, 29), (30, 119), (120, 139)]
    """
    found, first = [], 0

    def digits(point: int) -> int:
        return _digits_before_the_point(text(point))

    while first < size:
        rest = range(first, size)
        length = bisect_right(rest, digits(first), key=digits)
        if not length:  # fewer digits than before
            return None
        part = rest[:length]
        if text(part[0]) > text(part[-1]):
            part = part[::-1]
        if any(text(one) >= text(other) for one, other in pairwise(probes(part))):
            return None
        found.append(part)
        first += length
    return found


def probes(part: range) -> list[int]:
    """Some of its points: along it, and neighbours at its ends."""
    count = len(part)
    places = {*range(min(NEIGHBOURS, count)), *range(max(count - NEIGHBOURS, 0), count)}
    for number in range(PROBES):
        place = number * count // PROBES
        places |= {place, min(place + 1, count - 1)}
    return [part[place] for place in sorted(places)]


def spelled(text: Text, parts: Sequence[range], spans: Spans, first: Spell, others: Spell) -> Node:
    """The points of some spans as a trie, their numbers at its ends.

    Args:
        parts: all stretches of the scale.
        first, others: the tokens of a first character, and of any other.
    """
    return _spelled(text, "", [some for part in parts for some in _within(part, spans)], first, others)


def _spelled(text: Text, before: str, parts: Sequence[range], first: Spell, others: Spell) -> Node:
    # Of texts that begin alike the shortest comes first.
    ends = [part[0] for part in parts if text(part[0]) == before]

    def grow() -> dict[int, Node]:
        found: dict[str, list[range]] = {}
        for part in parts:
            rest = part[1:] if text(part[0]) == before else part
            while rest:
                start = text(rest[0])[: len(before) + 1]
                count = bisect_right(rest, start, key=lambda point: text(point)[: len(before) + 1])
                found.setdefault(start, []).append(rest[:count])
                rest = rest[count:]
        spell = others if before else first
        nodes = [after(spell(start[-1]), _spelled(text, start, some, first, others)) for start, some in found.items()]
        return union(nodes).children if nodes else {}

    return Node(ends[0] if ends else None, grow)


def _within(part: range, spans: Spans) -> list[range]:
    """What some spans hold of a stretch, in its order."""
    low, high = min(part[0], part[-1]), max(part[0], part[-1])
    found = [range(max(low, a), min(high, b) + 1) for a, b in spans if max(low, a) <= min(high, b)]
    return found if part.step > 0 else [some[::-1] for some in found]


def _digits_before_the_point(text: str) -> int:
    """How many digits a text begins with, below 0 behind a minus: this never falls along a scale of numbers."""
    found = re.match(r'"?(-?)(\d*)', text)
    assert found is not None
    return -len(found[2]) if found[1] else len(found[2])
