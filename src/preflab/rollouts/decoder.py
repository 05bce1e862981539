"""What the sampler asks of a model: the last hidden states of some cells, where someone else attends for it.

A cell is one token of one sequence. The cells of a call may belong to any number of sequences, at any positions: all
cells of several prompts, or the newest token of each response. Only attention looks at other cells than its own, and
that is handed over: what keys and values a cell sees, and where they are kept, a decoder does not know.
"""

from __future__ import annotations

from typing import Protocol

from jaxtyping import Float, Int
from torch import Tensor


class Attend(Protocol):
    """One layer's attention, on cells whose keys and values are new."""

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "cell head channel"],
        key: Float[Tensor, "cell few channel"],
        value: Float[Tensor, "cell few channel"],
        *,
        scaling: float | None = None,
        softcap: float | None = None,
    ) -> Float[Tensor, "cell head channel"]:
        """Keep keys and values; softmax(q·k·scaling, soft-capped)·v over what each cell sees.

        Args:
            layer: counted from 0.
            scaling: None: 1/√channel.
        """
        ...


class Decoder(Protocol):
    """A causal model's body, its attention left to someone else."""

    name: str
    """What the log line calls it."""

    def states(
        self, token_ids: Int[Tensor, " cell"], positions: Int[Tensor, " cell"], attend: Attend
    ) -> Float[Tensor, "cell width"]:
        """The last hidden state of each cell, as the output head reads it."""
        ...
