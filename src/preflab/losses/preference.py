"""Direct preference optimisation, and its relatives that see a pair only through the margin h.

    h = chosen logratio − rejected logratio,   logratio = log π(y|x) − log π_ref(y|x)

At policy = reference h = 0. As only h counts, both log-ratios may fall together, and under these losses they usually
do; `anchored.py` holds losses that keep the two apart.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from preflab.losses.ranges import check_range


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
        chosen_logratio, rejected_logratio: policy − reference, **summed** over response tokens, in nats. Divided by
            each response's number of tokens it is length-normalised DPO (arXiv 2411.15124), for which β 5 is usual.
        beta: β > 0, how strongly the policy is held to the reference; usual 0.01 to 1. Larger β, smaller KL.
        label_smoothing: ε in [0, ½), the share of labels believed to be flipped ("conservative DPO", cDPO): labels
            that all point one way have the finite optimum β·h = ln((1 − ε)/ε).

    Raises:
        ValueError: β or ε is out of range. β < 0 would optimise towards the rejected responses.

    >>> dpo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([0.6539, 0.6931])
    """
    check_range("(0, inf)", beta=beta)
    check_range("[0, 0.5)", label_smoothing=label_smoothing)
    logits = beta * (chosen_logratio - rejected_logratio)
    return -(1 - label_smoothing) * F.logsigmoid(logits) - label_smoothing * F.logsigmoid(-logits)


def robust_dpo(
    chosen_logratio: Float[Tensor, " pair"],
    rejected_logratio: Float[Tensor, " pair"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, " pair"]:
    """Robust DPO, rDPO (Chowdhury et al. 2024, arXiv 2403.00409), one value a pair, in nats.

        loss = (−(1 − ε)·log σ(β·h) + ε·log σ(−β·h)) / (1 − 2ε)

    Where a share ε of the labels is flipped, its expectation over the flips is DPO's loss on the true labels, so the
    optimum is the one of clean labels. The price: one pair's loss has no lower bound and its gradient is never 0, so
    labels that all point one way drive h apart without end. ln 2 at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: policy − reference, summed over response tokens, in nats.
        beta: β > 0, as in DPO; usual 0.1.
        label_smoothing: ε in [0, ½), the share of flipped labels; usual 0.1.

    Raises:
        ValueError: β or ε is out of range.

    >>> robust_dpo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1, label_smoothing=0.1)
    tensor([0.6439, 0.6931])
    """
    check_range("(0, inf)", beta=beta)
    check_range("[0, 0.5)", label_smoothing=label_smoothing)
    logits = beta * (chosen_logratio - rejected_logratio)
    right, wrong = -F.logsigmoid(logits), -F.logsigmoid(-logits)
    return ((1 - label_smoothing) * right - label_smoothing * wrong) / (1 - 2 * label_smoothing)


def ipo(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, tau: float
) -> Float[Tensor, " pair"]:
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, Eq. 17), one value a pair, in nats².

        loss = (h − 1/(2τ))²

    It pulls every margin to 1/(2τ), so labels without noise have a finite optimum, which DPO's have not. Two responses
    with P(y₁ ≻ y₂) = p end at h = (2p − 1)/(2τ). 1/(4τ²) at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: policy − reference, in nats. **Summed** over response tokens it is the
            paper's loss; divided by each response's number of tokens it is the form its authors advise and TRL
            implements. The two need a τ of their own: the margin of a sum grows with the length of the response.
        tau: τ > 0; usual 0.1 with means. Larger τ, smaller margin and KL.

    Raises:
        ValueError: τ is out of range.

    >>> ipo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), tau=0.1)
    tensor([17.6400, 25.0000])
    """
    check_range("(0, inf)", tau=tau)
    return (chosen_logratio - rejected_logratio - 1 / (2 * tau)) ** 2


def hinge(
    chosen_logratio: Float[Tensor, " pair"], rejected_logratio: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """The hinge loss on the normalised margin (RSO, Liu et al. 2023, arXiv 2309.06657; "SLiC-norm"), one value a pair.

        loss = max(0, 1 − β·h)

    A pair with β·h ≥ 1 is done and has no gradient. The optimum is β·h = ±1 whatever the strength of the preference:
    it learns a direction, not a probability. 1 at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: policy − reference, summed over response tokens, in nats.
        beta: β > 0; the margin at rest is 1/β nats; usual 0.05.

    Raises:
        ValueError: β is out of range.

    >>> hinge(torch.tensor([0.5, 20.0]), torch.tensor([-0.3, 0.0]), beta=0.1)
    tensor([0.9200, 0.0000])
    """
    check_range("(0, inf)", beta=beta)
    return F.relu(1 - beta * (chosen_logratio - rejected_logratio))


def exo(
    chosen_logratio: Float[Tensor, " pair"],
    rejected_logratio: Float[Tensor, " pair"],
    *,
    beta: float,
    label_smoothing: float,
) -> Float[Tensor, " pair"]:
    """Exact optimisation on pairs, EXO (Ji et al. 2024, arXiv 2402.00856, Eq. 16), one value a pair, in nats.

        q_w = σ(β·h),  q_l = σ(−β·h)
        loss = q_w·(ln q_w − ln(1 − ε)) + q_l·(ln q_l − ln ε)

    The reverse KL(q ‖ (1 − ε, ε)), where DPO with label smoothing is the forward one (plus a constant). It lies
    between 0 and −ln ε, so a pair that is far wrong pulls little. With hard labels the optimum of two responses is
    β·h = (2p − 1)·ln((1 − ε)/ε), not π ∝ π_ref·exp(r/β). −ln 2 − ½·ln(ε(1 − ε)) at policy = reference.

    Args:
        chosen_logratio, rejected_logratio: policy − reference, summed over response tokens, in nats.
        beta: β > 0; usual 0.1.
        label_smoothing: ε in (0, ½), the share left to the rejected response; usual 0.001. At 0 the loss is infinite.

    Raises:
        ValueError: β or ε is out of range.

    >>> exo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1, label_smoothing=0.001)
    tensor([2.6240, 2.7612])
    """
    check_range("(0, inf)", beta=beta)
    check_range("(0, 0.5)", label_smoothing=label_smoothing)
    logits = beta * (chosen_logratio - rejected_logratio)
    right = torch.sigmoid(logits) * (F.logsigmoid(logits) - math.log1p(-label_smoothing))
    wrong = torch.sigmoid(-logits) * (F.logsigmoid(-logits) - math.log(label_smoothing))
    return right + wrong


def aot(
    policy_margin: Float[Tensor, " pair"], reference_margin_at_rank: Float[Tensor, " pair"], *, beta: float
) -> Float[Tensor, " pair"]:
    """Alignment by optimal transport on pairs, AOT (Melnyk et al. 2024, arXiv 2406.05882), one value a pair, in nats.

        loss = −log σ(β·(policy margin − reference margin of the same rank))

    It asks the policy's margins, as a distribution over the batch, to dominate the reference's; which pair has which
    is free. Summed over the batch it is the paper's form with both margins sorted. ln 2 at policy = reference.

    Args:
        policy_margin: log π(y_w|x) − log π(y_l|x), summed over response tokens, in nats.
        reference_margin_at_rank: what `same_rank` gives over the **whole optimiser step**: the batch decides the
            ranks, so micro-batches that rank on their own would train on another loss.
        beta: β > 0; usual 0.01.

    Raises:
        ValueError: β is out of range.

    >>> policy, reference = torch.tensor([3.0, 1.0]), torch.tensor([0.0, 2.0])
    >>> aot(policy, same_rank(policy, reference), beta=1.0)
    tensor([0.3133, 0.3133])
    """
    check_range("(0, inf)", beta=beta)
    return -F.logsigmoid(beta * (policy_margin - reference_margin_at_rank))


def same_rank(
    policy_margin: Float[Tensor, " pair"], reference_margin: Float[Tensor, " pair"]
) -> Float[Tensor, " pair"]:
    """For each pair, the reference's margin that has the rank in the batch which the pair's policy margin has.

    No gradient flows through it. Equal margins are ranked in the order given.

    Args:
        policy_margin, reference_margin: logprob(chosen) − logprob(rejected) in nats, over the whole optimiser step.

    >>> same_rank(torch.tensor([3.0, 1.0, 2.0]), torch.tensor([0.0, 5.0, -4.0]))
    tensor([ 5., -4.,  0.])
    """
    ranks = policy_margin.argsort(stable=True).argsort()
    return reference_margin.detach().sort().values[ranks]
