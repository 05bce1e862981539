"""Pair losses that need no reference model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from preflab.losses.ranges import check_range

# The smallest distance from a mean log-probability of 0 at which odds p/(1 − p) are told apart, in nats; float32
# log-probabilities are no finer.
LEAST_NATS = 1e-6


def simpo(
    chosen_mean: Float[Tensor, " pair"], rejected_mean: Float[Tensor, " pair"], *, beta: float, margin: float
) -> Float[Tensor, " pair"]:
    """Simple preference optimisation, SimPO (Meng et al. 2024, arXiv 2405.14734), one value a pair, in nats.

        loss = −log σ(β·(ℓ_w − ℓ_l) − γ),   ℓ = log π(y|x) / number of response tokens

    The mean makes length no advantage. Without a reference nothing holds the policy but the learning rate, which is
    the setting to choose with care.

    Args:
        chosen_mean, rejected_mean: ℓ_w and ℓ_l, log π(y|x) as a **mean** per response token, in nats.
        beta: β > 0; usual 2 to 10.
        margin: γ ≥ 0, by how much β·(ℓ_w − ℓ_l) should lead, in nats; usual 0.3·β to 0.8·β.

    Raises:
        ValueError: β or γ is out of range.

    >>> simpo(torch.tensor([-2.0]), torch.tensor([-3.0]), beta=2.0, margin=1.0)
    tensor([0.3133])
    """
    check_range("(0, inf)", beta=beta)
    check_range("[0, inf)", margin=margin)
    return -F.logsigmoid(beta * (chosen_mean - rejected_mean) - margin)


def cpo(
    chosen_logprob: Float[Tensor, " pair"], rejected_logprob: Float[Tensor, " pair"], *, beta: float, sft_weight: float
) -> Float[Tensor, " pair"]:
    """Contrastive preference optimisation, CPO (Xu et al. 2024, arXiv 2401.08417), one value a pair, in nats.

        loss = −log σ(β·(log π(y_w|x) − log π(y_l|x))) − α·log π(y_w|x)

    DPO with a uniform reference, plus supervised fine-tuning on the chosen response. On exact Bradley–Terry
    preferences and with α = 0 the optimum is π ∝ exp(r/β).

    Args:
        chosen_logprob, rejected_logprob: log π(y|x), **summed** over response tokens, in nats.
        beta: β > 0; usual 0.1.
        sft_weight: α ≥ 0, of the supervised term; usual 1.

    Raises:
        ValueError: β or α is out of range.

    >>> cpo(torch.tensor([-10.0]), torch.tensor([-9.0]), beta=0.1, sft_weight=0.0)
    tensor([0.7444])
    >>> cpo(torch.tensor([-10.0]), torch.tensor([-9.0]), beta=0.1, sft_weight=1.0)
    tensor([10.7444])
    """
    check_range("(0, inf)", beta=beta)
    check_range("[0, inf)", sft_weight=sft_weight)
    return -F.logsigmoid(beta * (chosen_logprob - rejected_logprob)) - sft_weight * chosen_logprob


def orpo(
    chosen_mean: Float[Tensor, " pair"], rejected_mean: Float[Tensor, " pair"], *, weight: float
) -> Float[Tensor, " pair"]:
    """Odds ratio preference optimisation, ORPO (Hong et al. 2024, arXiv 2403.07691), one value a pair, in nats.

        loss = −ℓ_w − λ·log σ(logit p_w − logit p_l),   p = e^ℓ,   ℓ = log π(y|x) / number of response tokens

    Supervised fine-tuning on the chosen response, plus a term for the odds of a token on average. It starts from the
    pretrained model, without a stage of supervised fine-tuning before it.

    Args:
        chosen_mean, rejected_mean: ℓ_w and ℓ_l, log π(y|x) as a **mean** per response token, in nats, ≤ 0. Nearer to 0
            than 10⁻⁶, where the odds grow beyond bounds, they are continued by their tangent.
        weight: λ ≥ 0, of the odds term; usual 0.1 to 0.25.

    Raises:
        ValueError: λ is out of range.

    >>> orpo(torch.tensor([-2.0]), torch.tensor([-3.0]), weight=0.1)
    tensor([2.0289])
    """
    check_range("[0, inf)", weight=weight)
    log_odds_ratio = _logit(chosen_mean) - _logit(rejected_mean)
    return -chosen_mean - weight * F.logsigmoid(log_odds_ratio)


def _logit(logprob: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """ln(p/(1 − p)) from ln p; beyond −LEAST_NATS its tangent there, so p = 1 has a finite value and gradient.

    expm1 keeps 1 − p exact where p is near 1.
    """
    near = logprob > -LEAST_NATS
    # Two branches, not one sum: adding and taking off slope·ln p costs float32 up to 6 % of the gradient.
    inside = torch.where(near, -LEAST_NATS, logprob)
    logit = inside - torch.log(-torch.expm1(inside))
    slope = -1 / math.expm1(-LEAST_NATS)  # d logit/d ln p = 1/(1 − p)
    return torch.where(near, logit + slope * (logprob + LEAST_NATS), logit)
