"""How far the policy is from the reference, in nats.

Which one to use (measured in the tests):
- **report** `kl_full` summed over the tokens of responses sampled from the policy at temperature 1: unbiased for the
  sequence KL, never negative, and of far smaller variance than the sampled estimators;
- **penalise in the reward** with `k1` (its score-function gradient is that of the sequence KL);
- never differentiate `k1` in a loss (its expected gradient is 0), and know that differentiating `k3` follows the
  *forward* KL(π_ref‖π).

Estimators: Schulman 2020, "Approximating KL divergence"; arXiv 2504.10637 for the full-vocabulary form.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def k1(logprobs: Float[Tensor, "*batch"], reference_logprobs: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """log π(y) − log π_ref(y): unbiased under y ~ π, of either sign, in nats.

    >>> k1(torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.5000])
    """
    return logprobs - reference_logprobs


def k2(logprobs: Float[Tensor, "*batch"], reference_logprobs: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """½·(log π(y) − log π_ref(y))²: biased, never negative; differentiated on policy it gives ∇KL(π‖π_ref).

    >>> k2(torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.1250])
    """
    return 0.5 * (logprobs - reference_logprobs) ** 2


def k3(logprobs: Float[Tensor, "*batch"], reference_logprobs: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
    """exp(−a) − 1 + a with a = log π(y) − log π_ref(y): unbiased, never negative, heavy-tailed.

    expm1 keeps it exact near a = 0.

    >>> k3(torch.tensor([-1.0]), torch.tensor([-1.5]))
    tensor([0.1065])
    """
    difference = logprobs - reference_logprobs
    return torch.expm1(-difference) + difference


def kl_full(
    logits: Float[Tensor, "*batch vocabulary"], reference_logits: Float[Tensor, "*batch vocabulary"]
) -> Float[Tensor, "*batch"]:
    """KL(π‖π_ref) of the next token over the whole vocabulary, in nats, at temperature 1.

        Σ_v π(v)·(log π(v) − log π_ref(v)),   in float32 or wider, never negative

    >>> p, q = torch.tensor([0.7, 0.2, 0.1]), torch.tensor([0.5, 0.3, 0.2])
    >>> kl_full(p.log(), q.log())
    tensor(0.0851)
    """
    wide = torch.promote_types(logits.dtype, torch.float32)
    log_p = logits.to(wide).log_softmax(-1)
    log_q = reference_logits.to(wide).log_softmax(-1)
    # A token that π never emits adds 0, also where its log-probability is −∞.
    # Filled before the product, or 0·∞ would make the gradient NaN.
    log_ratio = (log_p - log_q).masked_fill(log_p == -torch.inf, 0.0)
    return (log_p.exp() * log_ratio).sum(-1).clamp(min=0.0)  # rounding can leave −1e-8


def entropy(logits: Float[Tensor, "*batch vocabulary"]) -> Float[Tensor, "*batch"]:
    """−Σ_v π(v)·log π(v) of the next token, in nats, in [0, ln vocabulary].

    >>> entropy(torch.zeros(4))
    tensor(1.3863)
    """
    logprobs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    return -(logprobs.exp() * logprobs.masked_fill(logprobs == -torch.inf, 0.0)).sum(-1)
