"""Trees → micro-batches that hold at most so many cells each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from preflab.data.encode import Tree
from preflab.data.pack import Reading


@dataclass(frozen=True)
class Extent:
    """What a batch of trees takes, before it is packed."""

    rows: int = 0
    """Responses."""
    longest: int = 0
    """Tokens of the longest prompt with one of its responses."""
    tokens: int = 0
    """Of the prompts, equal ones counted once, and of all responses."""

    @property
    def flat(self) -> int:
        """Cells of the flat layout."""
        return self.rows * self.longest

    @property
    def tree(self) -> int:
        """Cells of the tree layout, without last tokens."""
        return self.tokens - self.rows

    def readings(self, *, ends: bool) -> tuple[Reading, Reading]:
        """As `data/pack.py: readings` has them: the cells, and the longest."""
        return (
            Reading(cells=self.flat, longest=self.longest),
            Reading(cells=self.tree + ends * self.rows, longest=self.longest - (not ends)),
        )

    def plus(self, other: Extent, *, shared_tokens: int = 0) -> Extent:
        """Both in one batch, where they share a prompt of so many tokens."""
        return Extent(
            self.rows + other.rows,
            max(self.longest, other.longest),
            self.tokens + other.tokens - shared_tokens,
        )


def extent(tree: Tree) -> Extent:
    """Of a tree alone.

    >>> extent(Tree("a:1", (5, 6), ((7, 8), (9, 10, 11))))
    Extent(rows=2, longest=5, tokens=7)
    """
    lengths = [len(response) for response in tree.responses]
    return Extent(len(lengths), len(tree.prompt) + max(lengths), len(tree.prompt) + sum(lengths))


@dataclass
class _Bin:
    """A micro-batch that is being filled."""

    extent: Extent = field(default_factory=Extent)
    positions: list[int] = field(default_factory=list)
    prompts: set[int] = field(default_factory=set)


def first_fit(trees: Sequence[Tree], budget: int, cells: Callable[[Extent], int]) -> list[list[int]]:
    """Positions of the trees of each micro-batch: first fit, from the largest tree to the smallest.

    A tree goes to the first micro-batch that it still fits in, of those that hold its prompt if there are any. One that
    is larger than the budget is alone. Trees of one size are ordered by their content, so the order of `trees` changes
    nothing.

    Args:
        budget: the most cells of a micro-batch, > 0.
        cells: how many cells a model computes of a batch.

    >>> trees = [Tree("a", (1,), ((2, 3),)), Tree("b", (1,) * 5, ((2,),)), Tree("c", (4,), ((2,),))]
    >>> first_fit(trees, 6, lambda batch: batch.flat)
    [[1], [0, 2]]
    """
    numbers: dict[tuple[int, ...], int] = {}
    prompts = [numbers.setdefault(tree.prompt, len(numbers)) for tree in trees]
    alone = [extent(tree) for tree in trees]
    size = [cells(one) for one in alone]
    bins: list[_Bin] = []
    for i in sorted(range(len(trees)), key=lambda i: (-size[i], trees[i].prompt, trees[i].responses)):
        shared = {True: len(trees[i].prompt), False: 0}
        place, grown = _Bin(), alone[i]
        for one in sorted(bins, key=lambda one: prompts[i] not in one.prompts):
            with_it = one.extent.plus(alone[i], shared_tokens=shared[prompts[i] in one.prompts])
            if cells(with_it) <= budget:
                place, grown = one, with_it
                break
        else:
            bins.append(place)
        place.extent = grown
        place.positions.append(i)
        place.prompts.add(prompts[i])
    return [one.positions for one in bins]
