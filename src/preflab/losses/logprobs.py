"""From logits to the log-probabilities of the tokens that stand there."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_logprobs(
    logits: Float[Tensor, "*batch token vocabulary"], tokens: Int[Tensor, "*batch token"], *, temperature: float = 1.0
) -> Float[Tensor, "*batch token"]:
    """log π(y_t | x, y_<t) of each token, in nats.

        log_softmax(logits / T)[y_t],   in float32 or wider

    Args:
        logits: row t predicts `tokens[t]`: the caller has shifted by one already.
        tokens: the tokens whose log-probability is asked, each in [0, vocabulary).
        temperature: T > 0, in sampling and in scoring alike.

    Raises:
        ValueError: T is not positive.

    >>> token_logprobs(torch.zeros(1, 3, 4), torch.tensor([[0, 1, 3]]))  # uniform over four tokens: −ln 4
    tensor([[-1.3863, -1.3863, -1.3863]])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be > 0, not {temperature}")
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature
    chosen = logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
    return chosen - logits.logsumexp(-1)


def masked_sum(values: Float[Tensor, "*batch token"], mask: Bool[Tensor, "*batch token"]) -> Float[Tensor, "*batch"]:
    """Σ_t values_t over the tokens in the mask: per-token log-probabilities → the log-probability of a response.

    What stands outside the mask is never read: it may be NaN.

    >>> masked_sum(torch.tensor([-1.0, -2.0, float("nan")]), torch.tensor([True, True, False]))
    tensor(-3.)
    """
    return values.masked_fill(~mask, 0.0).sum(-1)
