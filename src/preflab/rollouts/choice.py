"""Logits → the next token and its log-probability."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor


def choose(
    logits: Float[Tensor, "row vocabulary"], uniforms: Float[Tensor, " row"] | None, *, temperature: float
) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
    """Tokens from softmax(logits / T), each the inverse of its cumulative distribution at a uniform; and their
    log-probabilities, in nats.

    Args:
        uniforms: in [0, 1), float64; None takes the likeliest token.
        temperature: T > 0.
    """
    scores = (logits.float() / temperature).log_softmax(-1)
    if uniforms is None:
        drawn = scores.argmax(-1)
    else:
        cdf = scores.double().exp().cumsum(-1)
        # The last entry is 1 up to rounding: scale the uniform instead of the table.
        drawn = torch.searchsorted(cdf, uniforms.unsqueeze(1) * cdf[:, -1:], right=True).squeeze(1)
        drawn = drawn.clamp(max=scores.shape[-1] - 1)
    return drawn, scores.gather(1, drawn.unsqueeze(1)).squeeze(1)
