"""Direct preference optimisation: losses on the log-ratios of chosen and rejected responses."""

from __future__ import annotations

import torch  # noqa: F401  (doctest)
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def dpo(
    chosen_logratio: Float[Tensor, " pair"],
    rejected_logratio: Float[Tensor, " pair"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Tensor, " pair"]:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, Eq. 7), one value a pair, in nats.

        h    = (log π(y_w|x) − log π_ref(y_w|x)) − (log π(y_l|x) − log π_ref(y_l|x))
        loss = −(1 − ε)·log σ(β·h) − ε·log σ(−β·h)

    Its gradient is −β·(σ(−β·h) − ε)·∇h: a pair that is still wrong pulls hardest. At policy = reference the loss is
    ln 2. On exact Bradley–Terry preferences the optimum is π ∝ π_ref·exp(r/β); on preferences without noise there is
    no finite optimum, and the log-probability of both responses usually falls.

    Args:
        chosen_logratio, rejected_logratio: policy − reference, **summed** over response tokens, in nats.
        beta: β > 0, how strongly the policy is held to the reference; usual 0.01 to 1. Larger β, smaller KL.
        label_smoothing: ε in [0, ½), the share of labels believed to be flipped ("conservative DPO").

    Raises:
        ValueError: β or ε is out of range. β < 0 would optimise towards the rejected responses.

    >>> dpo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([0.6539, 0.6931])
    """
    if not beta > 0:
        raise ValueError(f"beta must be > 0, not {beta}")
    if not 0 <= label_smoothing < 0.5:
        raise ValueError(f"label_smoothing must be in [0, 0.5), not {label_smoothing}")
    logits = beta * (chosen_logratio - rejected_logratio)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def dpo_rewards(logratio: Float[Tensor, " response"], *, beta: float) -> Float[Tensor, " response"]:
    """The implicit reward r̂ = β·logratio (arXiv 2305.18290, Eq. 5), detached: for the log, never to compare arms by.

    It is not comparable across β, and its mean over a data set is β times a log-ratio, not a reward of the policy.

    >>> dpo_rewards(torch.tensor([2.0, -1.0]), beta=0.5)
    tensor([ 1.0000, -0.5000])
    """
    return beta * logratio.detach()
