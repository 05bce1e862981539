"""DPO with another divergence than the reverse KL between policy and reference."""

from __future__ import annotations

import math
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from preflab.losses.ranges import check_range

Divergence = Literal["reverse_kl", "forward_kl", "jensen_shannon", "alpha", "chi_squared"]

# e^30 is 10^13: far beyond where a density ratio means anything, and far inside what float32 holds.
LAST_EXPONENT = 30.0


def f_dpo(
    chosen_logratio: Float[Tensor, " pair"],
    rejected_logratio: Float[Tensor, " pair"],
    *,
    beta: float,
    divergence: Divergence,
    alpha: float = 0.5,
) -> Float[Tensor, " pair"]:
    """DPO under an f-divergence, f-DPO (Wang et al. 2023, arXiv 2309.16240), one value a pair, in nats.

        loss = −log σ(β·f'(u_w) − β·f'(u_l)),   u = π(y|x)/π_ref(y|x) = e^Δ

    | divergence       | D_f(π‖π_ref)             | f'(u), 0 at u = 1  | grows, as u → ∞   |
    |------------------|--------------------------|--------------------|-------------------|
    | `reverse_kl`     | KL(π‖π_ref)              | ln u               | without bound     |
    | `forward_kl`     | KL(π_ref‖π)              | 1 − 1/u            | to 1              |
    | `jensen_shannon` | 2·JS(π, π_ref)           | ln(2u/(1 + u))     | to ln 2           |
    | `alpha`          | between the two KL       | (1 − u^(−α))/α     | to 1/α            |
    | `chi_squared`    | ½·χ²(π‖π_ref) + KL       | u − 1 + ln u       | without bound     |

    `reverse_kl` is DPO. `chi_squared` is χPO (Huang et al. 2024, arXiv 2407.13399) **without its outer clip** of the
    difference to ±2·R_max. On exact Bradley–Terry preferences the optimum is f'(π/π_ref) = (r − c)/β, the policy that
    maximises E r − β·D_f, with c such that π sums to 1. ln 2 at policy = reference.

    Of a whole response, u spans hundreds of orders of magnitude: under `forward_kl` and `alpha` one improbable
    response, under `chi_squared` one probable response, may rule the batch. e^x is continued by its tangent beyond
    x = 30 (a ratio of 10¹³), so value and gradient stay finite and the gradient keeps its sign.

    Args:
        chosen_logratio, rejected_logratio: Δ_w and Δ_l, policy − reference, summed over response tokens, in nats.
        beta: β > 0, how strongly the policy is held to the reference; usual 0.01 to 1.
        divergence: what the policy is held to the reference by: reverse_kl is DPO, forward_kl spreads mass,
            jensen_shannon lies between, alpha goes from one to the other, chi_squared (χPO) pays for large ratios.
        alpha: α in (0, 1), read by `alpha` alone; towards 0 it is `reverse_kl`, towards 1 `forward_kl`.

    Raises:
        ValueError: β or α is out of range.

    >>> f_dpo(torch.tensor([0.5, 0.0]), torch.tensor([-0.3, 0.0]), beta=0.1, divergence="chi_squared")
    tensor([0.6114, 0.6931])
    """
    check_range("(0, inf)", beta=beta)
    chosen = _derivative(chosen_logratio, divergence, alpha)
    rejected = _derivative(rejected_logratio, divergence, alpha)
    return -F.logsigmoid(beta * (chosen - rejected))


def f_dpo_reward(
    logratio: Float[Tensor, " response"], *, divergence: Divergence, alpha: float = 0.5
) -> Float[Tensor, " response"]:
    """The implicit reward over β, f'(π/π_ref) (arXiv 2309.16240), with its constant such that it is 0 at the reference.

    A divergence doesn't change when a multiple of u − 1 is added to f, so f' has a free constant; no loss sees it.

    Args:
        logratio: policy − reference, summed over response tokens, in nats.
        divergence, alpha: as in `f_dpo`.

    Raises:
        ValueError: α is out of range.

    >>> f_dpo_reward(torch.tensor([0.0, 2.0]), divergence="reverse_kl")
    tensor([0., 2.])
    >>> f_dpo_reward(torch.tensor([-1.0, 2.0]), divergence="forward_kl")
    tensor([-1.7183,  0.8647])
    """
    return _derivative(logratio, divergence, alpha)


def _derivative(logratio: Float[Tensor, " n"], divergence: Divergence, alpha: float) -> Float[Tensor, " n"]:
    """f'(e^logratio) − f'(1)."""
    match divergence:
        case "reverse_kl":
            return logratio
        case "forward_kl":
            return -_expm1(-logratio)
        case "jensen_shannon":
            return math.log(2) + F.logsigmoid(logratio)
        case "alpha":
            check_range("(0, 1)", alpha=alpha)
            return -_expm1(-alpha * logratio) / alpha
        case "chi_squared":
            return _expm1(logratio) + logratio
        case _:
            assert_never(divergence)


def _expm1(x: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """e^x − 1, beyond LAST_EXPONENT its tangent there: a clamp would leave those responses without a gradient.

    Not by torch.expm1, whose gradient is e^x − 1 + 1: in float32 that is 0 from x = −17 on.
    """
    clamped = x.clamp(max=LAST_EXPONENT)
    return torch.exp(clamped) * (1 + (x - clamped)) - 1
