"""Numbers that tell whether a step went well. Nothing here is differentiated."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from preflab.losses.reduce import masked_mean


def clip_fraction(
    logprobs: Float[Tensor, "*batch token"],
    old_logprobs: Float[Tensor, "*batch token"],
    mask: Bool[Tensor, "*batch token"],
    *,
    clip: float,
    clip_higher: float | None = None,
) -> Float[Tensor, ""]:
    """The share of tokens whose ratio ρ left [1 − ε, 1 + ε'], in [0, 1]. Usual below 0.2; 0 before any update.

    >>> clip_fraction(torch.tensor([0.3, 0.0]), torch.zeros(2), torch.tensor([True, True]), clip=0.2)
    tensor(0.5000)
    """
    ratio = torch.exp(logprobs - old_logprobs).detach()
    outside = (ratio < 1 - clip) | (ratio > 1 + (clip if clip_higher is None else clip_higher))
    return masked_mean(outside.to(ratio.dtype), mask)


def explained_variance(
    values: Float[Tensor, "*batch token"], returns: Float[Tensor, "*batch token"], mask: Bool[Tensor, "*batch token"]
) -> Float[Tensor, ""]:
    """1 − Var(R − V)/Var(R) over the mask: 1 is a perfect value model, 0 one that knows the mean alone, below 0 worse.

    0 where the returns don't vary.

    >>> explained_variance(torch.tensor([1.0, 2.0]), torch.tensor([1.0, 2.0]), torch.tensor([True, True]))
    tensor(1.)
    """
    values, returns = values.detach()[mask], returns.detach()[mask]
    if bool((returns == returns[:1]).all()):  # not by the variance, which rounding leaves at 1e-17
        return returns.new_zeros(())
    return 1 - (returns - values).var(correction=0) / returns.var(correction=0)
