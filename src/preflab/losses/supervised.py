"""Supervised fine-tuning."""

from __future__ import annotations

import torch  # noqa: F401  (doctest)
from jaxtyping import Bool, Float
from torch import Tensor


def sft(
    logprobs: Float[Tensor, "response token"], mask: Bool[Tensor, "response token"]
) -> Float[Tensor, "response token"]:
    """Cross-entropy of each response token (Ouyang et al. 2022, arXiv 2203.02155, §3.5) in nats, 0 outside the mask.

        loss_t = −log π(y_t | x, y_<t)

    Reduce with the global number of supervised tokens (`mean_by(loss, tokens)`).

    The optimum is then the empirical distribution of responses, and the loss there is its entropy per token.

    Args:
        logprobs: of response tokens, the end token included.
        mask: True on response tokens; prompt and padding are False.

    >>> sft(torch.tensor([[-0.5, -2.0, -9.0]]), torch.tensor([[True, True, False]]))
    tensor([[0.5000, 2.0000, 0.0000]])
    """
    return (-logprobs).masked_fill(~mask, 0.0)
