"""The reviews' grammar compiled into one deterministic automaton over words: a sentence is read in a single pass.

A state is the set of stacks of slots that may still follow. Its phrases are laid out as a trie, and where a phrase
ends the next state hangs. The compiler proves as it goes that a sentence has one reading at most: two readings of the
same words never meet again, and where a phrase ends, the next word alone tells whether it goes on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache

from preflab.data.review_grammar import FORMS, TABLES, Form, Kind, Meaning, Phrase, Slot


@dataclass(slots=True, eq=False)
class Node:
    """A place within a phrase. `following` is where to go when a phrase ends here, None where none does."""

    children: dict[str, Node] = field(default_factory=dict)
    meaning: Meaning | None = None
    following: Node | None = None


def read_sentence(words: Sequence[str]) -> list[Meaning] | None:
    """The meanings of a sentence's phrases in order, its kind last; None where the grammar can't have made it.

    Args:
        words: the tokens; commas and the full stop are tokens of their own. One dictionary look-up or two a word.

    >>> read_sentence(["The", "plot", "was", "not", "dull", "."])
    ['the plot', -0.5, -0.6, <Kind.OPINION: 'opinion'>]
    >>> read_sentence(["The", "plot", "was", "."]) is None
    True
    """
    node = start()
    meanings: list[Meaning] = []
    for word in words:
        child = node.children.get(word)
        if child is None:
            if node.following is None:
                return None
            if node.meaning is not None:
                meanings.append(node.meaning)
            child = node.following.children.get(word)
            if child is None:
                return None
        node = child
    if not isinstance(node.meaning, Kind):
        return None
    meanings.append(node.meaning)
    return meanings


@cache
def start() -> Node:
    """The state before a sentence's first word: the one state whose phrases begin with a capital.

    Raises:
        ValueError: a sentence of the grammar can be read in two ways.
    """
    stacks = frozenset((Slot(kind.value), Slot(Phrase(".", kind))) for kind in Kind)
    return _state(stacks, {frozenset([()]): Node()}, capital=True)


def _heads(stack: Form) -> Iterator[tuple[Phrase, Form]]:
    """Every phrase a stack can begin with, and the stack that is left after it."""
    (symbol, optional), rest = stack[0], stack[1:]
    if optional:
        yield from _heads(rest)
    if isinstance(symbol, Phrase):
        yield symbol, rest
    elif symbol in TABLES:
        for phrase in TABLES[symbol]:
            yield phrase, rest
    else:
        for form in FORMS[symbol]:
            yield from _heads(form + rest)


def _state(stacks: frozenset[Form], known: dict[frozenset[Form], Node], *, capital: bool = False) -> Node:
    """The trie of the phrases that `stacks` can begin with; `known` holds the states made so far."""
    if stacks in known:
        return known[stacks]
    ends: dict[str, tuple[Meaning | None, list[Form]]] = {}
    for phrase, rest in (head for stack in stacks for head in _heads(stack)):
        meaning, rests = ends.setdefault(phrase.words, (phrase.meaning, []))
        if meaning != phrase.meaning or rest in rests:
            raise ValueError(f'the grammar reads "{phrase.words}" in two ways at one place')
        rests.append(rest)

    root = Node()
    if not capital:
        known[stacks] = root
    for words, (meaning, rests) in ends.items():
        node = root
        for word in filter(None, tokens(words[0].upper() + words[1:] if capital else words)):
            node = node.children.setdefault(word, Node())
        node.meaning = meaning
        node.following = _state(frozenset(rests), known)
    _check_boundaries(root)
    return root


def _check_boundaries(node: Node) -> None:
    if node.following is not None and (both := node.children.keys() & node.following.children.keys()):
        raise ValueError(f'the grammar can go on or start a new phrase with "{min(both)}"')
    for child in node.children.values():
        _check_boundaries(child)


def tokens(text: str) -> list[str]:
    """Words split at single spaces, commas apart. Any other spacing leaves a token that no phrase has.

    >>> tokens("thin, but  warm"), tokens("thin ,but")
    (['thin', ',', 'but', '', 'warm'], ['thin', '', ',but'])
    """
    return text.replace(",", " ,").split(" ")
