"""Floating-point operations that a step can't do without: what "share of the ceiling" divides by the time.

Counted are products of matrices, two operations a multiply-add: a block's layers for every token of the tree layout
(each prompt once, each response without its last token), causal attention over the tokens that each one sees, the
output head at the positions that predict response tokens. A trained weight takes them three times: forward, gradient
of the input, gradient of the weight. Nothing is made twice, no padding is counted, nor are norms, GELU, softmax, the
optimiser and look-ups of embeddings, which all take time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from preflab.data.encode import Tree


@dataclass(frozen=True)
class Shape:
    """A GPT-2's size; its blocks are four widths wide inside."""

    layers: int
    width: int
    vocabulary: int

    @classmethod
    def of(cls, model: Any) -> Shape:
        config = model.config
        return cls(config.n_layer, config.n_embd, config.vocab_size)


def step_flops(shape: Shape, trees: Iterable[Tree], *, frozen: int = 0, head: bool = True) -> float:
    """Of one step: forward through all blocks, backward through those above the first `frozen` and through the head.

    The head is tied to the embeddings, so where blocks are frozen its own gradient is not needed.

    Args:
        head: False for a reward model, which reads the last token of each response and has no vocabulary.

    >>> tree = Tree("a:1", (5, 6), ((7, 8), (9,)))  # three tokens are fed: 5, 6, 7
    >>> step_flops(Shape(layers=1, width=2, vocabulary=10), [tree])  # 3·(24·2²·3 + 4·2·6 + 2·2·10·3)
    1368.0
    """
    total = 0.0
    for tree in trees:
        fed, seen = _cells(tree, ends=not head)
        block = 24 * shape.width**2 * fed + 4 * shape.width * seen
        total += block * (3 * shape.layers - 2 * frozen)
        if head:
            read = sum(map(len, tree.responses))
            total += 2 * shape.width * shape.vocabulary * read * (2 if frozen else 3)
    return total


def trunk_flops(shape: Shape, trees: Iterable[Tree], frozen: int) -> float:
    """Of the first `frozen` blocks, forward: what stored states save each step."""
    cells = [_cells(tree, ends=False) for tree in trees]
    return sum(frozen * (24 * shape.width**2 * fed + 4 * shape.width * seen) for fed, seen in cells)


def _cells(tree: Tree, *, ends: bool) -> tuple[int, int]:
    """Tokens that are fed, and the tokens that all of them see together."""
    prompt, lengths = len(tree.prompt), [len(response) - (not ends) for response in tree.responses]
    seen = prompt * (prompt + 1) // 2 + sum(length * prompt + length * (length + 1) // 2 for length in lengths)
    return prompt + sum(lengths), seen
