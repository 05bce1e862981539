"""How an optimiser step is cut into what is in memory at once: by a number of examples, or by a budget of cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from preflab.data.budget import Extent, extent, first_fit
from preflab.data.encode import Tree
from preflab.models.scoring import reads_tree
from preflab.progress import warn


@dataclass(frozen=True)
class MicroBatches:
    """The micro-batches of an optimiser step. They are shares of the step's mean, so they change no figure beyond
    rounding."""

    micro: int
    """Examples in each, where there is no budget."""
    tokens: int | None
    """Cells in each, at most; an example of more is alone. None: no budget."""
    models: tuple[Any, ...]
    """What reads them; the one that takes the most cells counts."""
    ends: bool = False
    """Whether last tokens are read too, as for the scores of a reward model."""

    def of(self, trees: Sequence[Tree]) -> list[list[int]]:
        """Positions in `trees`, each in one micro-batch."""
        if self.tokens is None:
            every = range(len(trees))
            return [list(every[begin : begin + self.micro]) for begin in range(0, len(trees), self.micro)]
        return first_fit(trees, self.tokens, self.cells)

    def cells(self, batch: Extent) -> int:
        """How many cells the models compute of a batch: in the tree layout a prompt counts once, in the flat one all
        rows are as long as the longest."""
        copied, shared = batch.readings(ends=self.ends)
        return max((shared if reads_tree(model, copied, shared) else copied).cells for model in self.models)

    def warn_alone(self, trees: Sequence[Tree], what: str) -> None:
        """One line where examples are larger than the budget: how many, and what the largest takes."""
        if self.tokens is None:
            return
        over = [size for tree in trees if (size := self.cells(extent(tree))) > self.tokens]
        if over:
            warn(
                f"{len(over):,} of {len(trees):,} {what} take more than batch.tokens = {self.tokens} cells; each of "
                f"these is in memory alone, the largest with {max(over)}"
            )


def back_in_order(parts: Sequence[Sequence[int]]) -> Int[Tensor, " row"]:
    """Where each example stands once micro-batches are joined.

    >>> back_in_order([[2, 0], [1]]).tolist()
    [1, 2, 0]
    """
    return torch.tensor(list(chain(*parts))).argsort()
