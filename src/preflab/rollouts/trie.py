"""Responses that are a finite set, or follow from a rule, as a trie of tokens; and the mask that allows no others."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from preflab.errors import ConfigError


class Node:
    """A place in a trie, after some tokens. What follows is found when it is first asked for: a trie may be endless.

    Two nodes are equal where they are the same one, so a node can be the state of a mask.
    """

    def __init__(self, value: int | None = None, grow: Callable[[], dict[int, Node]] = dict) -> None:
        """
        Args:
            value: the number of what ends here; None: nothing does.
            grow: gives the nodes after one more token.
        """
        self.value = value
        self._grow = grow

    @cached_property
    def children(self) -> dict[int, Node]:
        """Token → the node after it."""
        return self._grow()

    @cached_property
    def choices(self) -> Int[np.ndarray, " token"]:
        """The tokens that lead on."""
        return np.fromiter(self.children, dtype=np.int64, count=len(self.children))


def after(tokens: Sequence[int], node: Node) -> Node:
    """Where `tokens` lead to `node`, and nothing else to anything.

    >>> node = Node(7)
    >>> after((3, 4), node).children[3].children[4] is node
    True
    """
    return node if not tokens else Node(grow=lambda: {tokens[0]: after(tokens[1:], node)})


def union(nodes: Sequence[Node]) -> Node:
    """All that follows any of these. Where two values have the same tokens, the first node's counts.

    >>> root = union([after((3, 4), Node(0)), after((3,), Node(1)), after((5,), Node(2))])
    >>> root.choices.tolist(), root.children[3].value, root.children[3].children[4].value
    ([3, 5], 1, 0)
    """

    def grow() -> dict[int, Node]:
        found: dict[int, list[Node]] = {}
        for node in nodes:
            for token, child in node.children.items():
                found.setdefault(token, []).append(child)
        return {token: union(children) for token, children in found.items()}

    if len(nodes) == 1:
        return nodes[0]
    return Node(next((node.value for node in nodes if node.value is not None), None), grow)


def allowing(choices: Sequence[Int[np.ndarray, " token"]], vocabulary: int) -> Bool[Tensor, "row vocabulary"]:
    """True at the tokens of each row.

    >>> allowing([np.array([0, 2]), np.array([1])], 3).int().tolist()
    [[1, 0, 1], [0, 1, 0]]
    """
    found = np.zeros((len(choices), vocabulary), dtype=np.bool_)
    if choices:
        found[np.repeat(np.arange(len(choices)), [len(tokens) for tokens in choices]), np.concatenate(choices)] = True
    return torch.from_numpy(found)


class OneOf:
    """A `TokenMask`: the response is one of some, such as the labels of a classification, whatever the prompt.

    Args:
        responses: their tokens, without the end token.
        end_id: the end token; it follows each of them.
        vocabulary: the width of the model's output head.

    Raises:
        ConfigError: there are none; one holds the end token, or a token beyond the vocabulary.

    >>> mask = OneOf([(5, 6), (5, 7), (5,)], end_id=0, vocabulary=8)
    >>> state = mask.start(prompt=(3,))
    >>> after_five = mask.advance(state, 5)
    >>> mask.allowed([state, after_five]).int().tolist()
    [[0, 0, 0, 0, 0, 1, 0, 0], [1, 0, 0, 0, 0, 0, 1, 1]]
    """

    def __init__(self, responses: Iterable[Sequence[int]], *, end_id: int, vocabulary: int) -> None:
        self.responses = list(dict.fromkeys(tuple(response) for response in responses))
        if not self.responses:
            raise ConfigError("a mask of no responses allows nothing; give it at least one")
        for response in self.responses:
            if end_id in response or not all(0 <= token < vocabulary for token in response):
                raise ConfigError(
                    f"the response {list(response)} holds the end token ({end_id}), which follows by itself, or a "
                    f"token that is not below {vocabulary}"
                )
        self.end, self.vocabulary = np.array([end_id]), vocabulary
        self._root = union([after(response, Node(number)) for number, response in enumerate(self.responses)])

    def start(self, prompt: tuple[int, ...]) -> Node:
        return self._root

    def advance(self, state: Node, token: int) -> Node:
        return state.children[token]

    def allowed(self, states: Sequence[Node]) -> Bool[Tensor, "row vocabulary"]:
        ends = [self.end if state.value is not None else self.end[:0] for state in states]
        choices = [np.concatenate([state.choices, end]) for state, end in zip(states, ends, strict=True)]
        return allowing(choices, self.vocabulary)
