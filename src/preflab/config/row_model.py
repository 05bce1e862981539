"""The language model that writes a table's rows, and how it is fitted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Gt, Interval, Le

from preflab.config.training import Positive


@dataclass(frozen=True, kw_only=True)
class RowModel:
    """A small GPT-2, from scratch, and its fit: likelihood of rows, until that of held-out rows no longer rises."""

    layers: Positive = 3
    """Transformer blocks."""
    width: Positive = 96
    """Width of the residual stream; a multiple of heads."""
    heads: Positive = 4
    """Attention heads."""
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.1
    """Share of activations dropped while it learns, in [0, 1); embeddings are never dropped."""
    hats: Positive = 16
    """Into how many quantiles the smooth features of a column's numbers divide them. A number's embeddings are sums of
    features that its neighbours share, so a rare number learns from those beside it."""
    batch: Positive = 128
    """Rows in an optimiser step."""
    learning_rate: Annotated[float, Gt(0), Le(1)] | None = None
    """Peak learning rate of AdamW, in (0, 1]; none: 0.008 from scratch, 0.0005 for a model that goes on learning."""
    weight_decay: Annotated[float, Ge(0)] = 0.05
    """Decoupled weight decay of matrices, ≥ 0."""
    averaging: Annotated[float, Interval(ge=0, lt=1)] = 0.995
    """The model that is kept is a moving average of the weights; what each step leaves of it, in [0, 1)."""
    validation: Annotated[float, Gt(0), Le(0.5)] = 0.1
    """Share of the training rows on which no step is taken: they say when to stop, in (0, 0.5]."""
    epochs: Annotated[float, Gt(0)] | None = None
    """Passes over the rows at most, > 0; the learning rate falls to a fiftieth by their end. None: 12, or as many as
    make 500 steps; a pass then counts as 40 steps where it has fewer."""
    patience: Positive = 5
    """Passes without a better likelihood of the validation rows after which it stops."""
    look_every: Positive = 5
    """Passes between two looks at the rows it writes: how far columns are off, and how well a classifier tells them
    from validation rows."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.width % self.heads == 0:
            return None
        return f"width = {self.width} is no multiple of heads = {self.heads}"
