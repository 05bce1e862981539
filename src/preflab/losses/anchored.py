"""Pair losses that hold the log-ratios of chosen and rejected response apart.

Losses of the margin alone (`preference.py`) don't mind if both log-probabilities fall. These do: each log-ratio is
anchored at the reference, so a common shift of the two changes the loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from preflab.losses.ranges import check_range


def dpop(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float, penalty: float
) -> Float[Tensor, " pair"]:
    """DPO-Positive (Pal et al. 2024, arXiv 2402.13228), one value a pair, in nats.

        loss = −log σ(β·(h − λ·max(0, −Δ_w))),   h = Δ_w − Δ_l

    DPO with a price on a chosen log-ratio Δ_w below 0: there Δ_w pulls 1 + λ times as hard as Δ_l, above it the loss
    is DPO's. ln 2 at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0, as in DPO; usual 0.1 to 0.3.
        penalty: λ ≥ 0; usual 5 to 50. 0 is DPO.

    Raises:
        ValueError: β or λ is out of range.

    >>> dpop(torch.tensor([-0.2, 0.5]), torch.tensor([-1.0, -0.3]), beta=0.1, penalty=50.0)
    tensor([1.2554, 0.6539])
    """
    check_range("(0, inf)", beta=beta)
    check_range("[0, inf)", penalty=penalty)
    margin = chosen_logratio - rejected_logratio - penalty * F.relu(-chosen_logratio)
    return -F.logsigmoid(beta * margin)


def nca(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Noise contrastive alignment on pairs, NCA (Chen et al. 2024, arXiv 2402.05369), one value a pair, in nats.

        loss = −log σ(β·Δ_w) − ½·log σ(−β·Δ_w) − ½·log σ(−β·Δ_l)

    A response that wins a share p of its comparisons ends at β·Δ = ln 2p: even one that always wins stops at ln 2,
    so the chosen log-probability doesn't fall and doesn't run away. 2·ln 2 at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0; usual 0.01.

    Raises:
        ValueError: β is out of range.

    >>> nca(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([1.3668, 1.3863])
    """
    check_range("(0, inf)", beta=beta)
    chosen, rejected = beta * chosen_logratio, beta * rejected_logratio
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def bco_pair(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Binary classifier optimisation on pairs, BCO (Jung et al. 2024, arXiv 2404.04656), one value a pair, in nats.

        loss = −log σ(β·Δ_w) − log σ(−β·Δ_l)

    An upper bound of DPO's loss. A response that wins a share p of its comparisons ends at β·Δ = logit p, which has no
    bound as p → 1. `bco` is the form without pairs. 2·ln 2 at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0; usual 0.01.

    Raises:
        ValueError: β is out of range.

    >>> bco_pair(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([1.3467, 1.3863])
    """
    check_range("(0, inf)", beta=beta)
    return -F.logsigmoid(beta * chosen_logratio) - F.logsigmoid(-beta * rejected_logratio)


def apo_zero(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Anchored preference optimisation, "zero" (D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 7), one value a pair.

        loss = 1 − σ(β·Δ_w) + σ(β·Δ_l)

    Raises the chosen response and lowers the rejected one, each from where the reference has it: for chosen responses
    that are better than what the policy writes. Without a finite optimum. 1 at policy = reference, in (0, 2).

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0; usual 0.1.

    Raises:
        ValueError: β is out of range.

    >>> apo_zero(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([0.9800, 1.0000])
    """
    check_range("(0, inf)", beta=beta)
    return torch.sigmoid(-beta * chosen_logratio) + torch.sigmoid(beta * rejected_logratio)


def apo_down(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Anchored preference optimisation, "down" (D'Oosterlinck et al. 2024, arXiv 2408.06266, Eq. 8), one value a pair.

        loss = σ(β·Δ_w) + 1 − σ(β·(Δ_w − Δ_l))

    Lowers both responses, the rejected one further: for chosen responses that are worse than what the policy writes.
    Without a finite optimum. 1 at policy = reference, in (0, 2).

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0; usual 0.1.

    Raises:
        ValueError: β is out of range.

    >>> apo_down(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([0.9925, 1.0000])
    """
    check_range("(0, inf)", beta=beta)
    margin = chosen_logratio - rejected_logratio
    return torch.sigmoid(beta * chosen_logratio) + torch.sigmoid(-beta * margin)


def sppo(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Self-play preference optimisation with hard labels, SPPO (Wu et al. 2024, arXiv 2405.00675, Eq. 4.7), in nats².

        loss = (Δ_w − 1/(2β))² + (Δ_l + 1/(2β))²

    A regression to ±1/(2β): a response that wins a share p of its comparisons ends at Δ = (p − ½)/β. 1/(2β²) at
    policy = reference, so a small β comes with a large loss and gradient and wants a small learning rate.

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0, the paper's 1/η; usual 0.001, a target of ±500 nats that no short response reaches.

    Raises:
        ValueError: β is out of range.

    >>> sppo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([42.3400, 50.0000])
    """
    check_range("(0, inf)", beta=beta)
    target = 1 / (2 * beta)
    return (chosen_logratio - target) ** 2 + (rejected_logratio + target) ** 2
