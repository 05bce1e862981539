"""How far the policy is from the reference, in nats.

Which one to use (measured in the tests):
- **report** `kl_full` summed over the tokens of responses sampled from the policy at temperature 1: unbiased for the
  sequence KL, never negative, and of far smaller variance than the sampled estimators;
- **penalise in the reward** with `k1` (its score-function gradient is that of the sequence KL);
- **penalise in a loss** with `k2` or `kl_full`; never with `k1` (its expected gradient is 0), and know that
  differentiating `k3` follows the *forward* KL(π_ref‖π).

Estimators: Schulman 2020, "Approximating KL divergence"; arXiv 2504.10637 for the full-vocabulary form.
"""

from __future__ import annotations

from typing import Literal, assert_never

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


def kl_in_loss(
    kind: Literal["k2", "k3", "full"],
    logprobs: Float[Tensor, "*batch"],
    reference_logprobs: Float[Tensor, "*batch"],
    logits: Float[Tensor, "*batch vocabulary"] | None = None,
    reference_logits: Float[Tensor, "*batch vocabulary"] | None = None,
) -> Float[Tensor, "*batch"]:
    """A KL penalty to differentiate on responses sampled from the policy, one value a token, in nats.

    | kind | its expected gradient, state by state | source                                   |
    |------|---------------------------------------|------------------------------------------|
    | k2   | ∇KL(π‖π_ref)                          | Schulman 2020                            |
    | k3   | ∇KL(π_ref‖π), the *forward* KL        | Schulman 2020; GRPO (arXiv 2402.03300)   |
    | full | ∇KL(π‖π_ref), of the least variance   | arXiv 2504.10637                         |

    None of them sees that an early token changes which states come later: the gradient of the sequence KL is had by
    k1 in the reward.

    Args:
        kind: the estimator; k1 is not among them.
        logprobs, reference_logprobs: of the sampled tokens, at the sampling temperature.
        logits, reference_logits: those that predict the tokens, divided by the temperature; for full alone.

    Raises:
        ValueError: full without the logits of both.

    >>> p, q = torch.tensor([[0.7, 0.2, 0.1]]).log(), torch.tensor([[0.5, 0.3, 0.2]]).log()
    >>> [round(kl_in_loss(kind, p[:, 0], q[:, 0], p, q).item(), 4) for kind in ("k2", "k3", "full")]
    [0.0566, 0.0508, 0.0851]
    """
    match kind:
        case "k2":
            return k2(logprobs, reference_logprobs)
        case "k3":
            return k3(logprobs, reference_logprobs)
        case "full":
            if logits is None or reference_logits is None:
                raise ValueError("full-vocabulary KL needs the logits of policy and reference")
            return kl_full(logits, reference_logits)
        case never:
            assert_never(never)


def adapted_coefficient(
    coefficient: float, measured_nats: float, *, target_nats: float, responses: int, horizon: int
) -> float:
    """The next β of an adaptive KL penalty (Ziegler et al. 2019, arXiv 1909.08593, §2.2): a proportional controller.

        e = clip(KL/target − 1, −0.2, 0.2)        β ← β·(1 + e·n/horizon)

    Args:
        coefficient: β > 0 so far.
        measured_nats: KL of a response to the reference, the mean over an update.
        target_nats: where it should be, > 0; usual 1 to 10.
        responses: n, how many responses the update sampled.
        horizon: responses over which β may change by a fifth; usual 10,000.

    Raises:
        ValueError: β or the target is not positive, or n exceeds five horizons, where β could turn negative.

    >>> adapted_coefficient(0.15, 9.0, target_nats=6.0, responses=512, horizon=10_000)   # +50 % counts as +20 %
    0.151536
    """
    if not (coefficient > 0 and target_nats > 0):
        raise ValueError(f"coefficient and target_nats must be > 0, not {coefficient} and {target_nats}")
    if not 0 < responses < 5 * horizon:
        raise ValueError(f"responses must be in (0, 5·horizon), not {responses} at a horizon of {horizon}")
    error = min(max(measured_nats / target_nats - 1, -0.2), 0.2)
    return coefficient * (1 + error * responses / horizon)
