"""What is fitted to the rows of a table: `model.py` and `sentence_model.py` have one kind for each encoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor, nn

Codes = Int[np.ndarray, "row column"]


class Writer(nn.Module, ABC):
    """A module that gives rows their likelihood, and in the end is a causal language model of transformers."""

    @abstractmethod
    def shares(self, codes: Codes, *, seed: int, learning: bool) -> Iterator[Float[Tensor, " row"]]:
        """−log p of each row, in nats, some rows at a time.

        Args:
            seed: of what is drawn for these rows.
            learning: whether this is a step, or a look at the likelihood.
        """

    @abstractmethod
    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights that decay, and the others."""

    @abstractmethod
    def plain(self) -> Any:
        """A causal language model with these weights, in eval mode."""
