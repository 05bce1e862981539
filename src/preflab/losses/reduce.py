"""The one place where un-reduced losses become a scalar.

A mean is a sum divided by a *global* count, over all micro-batches and all processes of an optimiser step. So
1 × 8 = 8 × 1 micro-batches, however ragged the rows (transformers#34191: a mean of means is another objective).
"""

from __future__ import annotations

import torch  # noqa: F401  (doctest)
from jaxtyping import Bool, Float
from torch import Tensor


def mean_by(values: Float[Tensor, "*any"], count: float) -> Float[Tensor, ""]:
    """Σ values / count, this micro-batch's share of the mean.

    Args:
        values: losses of this micro-batch: one a pair, one a response, or one a token (0 outside the mask).
        count: how many of them the whole optimiser step holds (pairs, responses or tokens), > 0.

    Raises:
        ValueError: the count is not positive.

    >>> two = mean_by(torch.tensor([1.0, 2.0]), 3) + mean_by(torch.tensor([6.0]), 3)   # two ragged micro-batches
    >>> one = mean_by(torch.tensor([1.0, 2.0, 6.0]), 3)
    >>> bool(two == one)
    True
    """
    if not count > 0:
        raise ValueError(f"a mean needs a positive count, not {count}: is every row masked?")
    return values.sum() / count


def masked_mean(values: Float[Tensor, "*any"], mask: Bool[Tensor, "*any"]) -> Float[Tensor, ""]:
    """The mean over the mask, for diagnostics of one whole batch. What stands outside the mask is never read.

    >>> masked_mean(torch.tensor([1.0, 3.0, 9.0]), torch.tensor([True, True, False]))
    tensor(2.)
    """
    return mean_by(values.masked_fill(~mask, 0.0), int(mask.sum()))
