"""Losses on single responses that carry a label, desirable or not, in place of a rival."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from preflab.losses.ranges import check_range


def kto(
    logratio: Float[Tensor, " response"],
    desirable: Bool[Tensor, " response"],
    *,
    reference_point: Float[Tensor, ""] | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> Float[Tensor, " response"]:
    """Kahneman–Tversky optimisation, KTO (Ethayarajh et al. 2024, arXiv 2402.01306), one value a response.

        loss = λ_D·(1 − σ(β·(Δ − z₀)))    where desirable
               λ_U·(1 − σ(β·(z₀ − Δ)))    where not

    A response far from the reference point on either side has no gradient: gains and losses saturate. The expectation
    is linear in σ, so there is no finite optimum: a response goes up or down as the share of its desirable labels,
    times λ_D, exceeds the rest, times λ_U, or not. At policy = reference and z₀ = 0 the loss is ½λ.

    Args:
        logratio: Δ = policy − reference, summed over response tokens, in nats.
        desirable: the label.
        reference_point: z₀ ≥ 0 in nats, KL(π‖π_ref) as estimated on prompts with another prompt's response, over the
            whole optimiser step; no gradient flows through it. An estimate below 0 is to be set to 0 before.
        beta: β > 0; usual 0.1.
        desirable_weight, undesirable_weight: λ_D and λ_U > 0; usual such that λ_D·n_desirable is 1 to 1.5 times
            λ_U·n_undesirable.

    Raises:
        ValueError: z₀, β or a weight is out of range.

    >>> labels = torch.tensor([True, False])
    >>> kto(torch.tensor([0.5, -0.3]), labels, reference_point=0.1, beta=0.1)
    tensor([0.4900, 0.4900])
    """
    check_range("(0, inf)", beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight)
    if isinstance(reference_point, Tensor):
        reference_point = reference_point.detach()
    check_range("[0, inf)", reference_point=float(reference_point))
    gain = beta * (logratio - reference_point)
    return torch.where(desirable, desirable_weight * torch.sigmoid(-gain), undesirable_weight * torch.sigmoid(gain))


def bco(
    logratio: Float[Tensor, " response"], desirable: Bool[Tensor, " response"], *, shift: float, beta: float
) -> Float[Tensor, " response"]:
    """Binary classifier optimisation, BCO (Jung et al. 2024, arXiv 2404.04656), one value a response, in nats.

        loss = −log σ(β·Δ − δ)       where desirable
               −log σ(−(β·Δ − δ))    where not

    Trains the implicit reward as a classifier of the label. The optimum of a response with a share p of desirable
    labels is β·Δ = δ + logit p. As δ follows the mean of β·Δ, that holds where logit p averages to 0; elsewhere both
    drift until π has no mass left to give. ln 2 at policy = reference and δ = 0.

    Args:
        logratio: Δ = policy − reference, summed over response tokens, in nats.
        desirable: the label.
        shift: δ, a running mean of β·Δ, in nats, of either sign. The paper's is midway between the means of
            desirable and of undesirable responses; the mean over all of them is the same where labels are even.
        beta: β > 0; usual 0.01.

    Raises:
        ValueError: β or δ is out of range.

    >>> bco(torch.tensor([0.5, -0.3]), torch.tensor([True, False]), shift=0.01, beta=0.1)
    tensor([0.6733, 0.6733])
    """
    check_range("(0, inf)", beta=beta)
    check_range("(-inf, inf)", shift=shift)
    reward = beta * logratio - shift
    return -F.logsigmoid(torch.where(desirable, reward, -reward))
