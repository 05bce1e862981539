"""From rewards and values to advantages."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " response"],
    logprobs: Float[Tensor, "response token"],
    reference_logprobs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    kl_coefficient: float,
) -> Float[Tensor, "response token"]:
    """The reward of each token: a KL penalty everywhere, and the score at the last response token.

        r_t = −β·(log π(y_t) − log π_ref(y_t)) + score·[t is the last token in the mask]

    Source: Ziegler et al. 2019, arXiv 1909.08593; k1 in the reward is unbiased for the sequence KL. 0 outside the mask.

    Args:
        scores: one a response, in units of reward, penalties included.
        logprobs, reference_logprobs: at the sampling temperature, of the policy that sampled and of the reference.
        mask: True on response tokens; each row is True from its first token on, then False.
        kl_coefficient: β ≥ 0, reward per nat; usual 0.01 to 0.2.

    Raises:
        ValueError: a response without tokens has no place for its score; or β < 0, which would pay for leaving the
            reference.

    >>> policy, reference = torch.tensor([[-1.0, -2.0, 0.0]]), torch.full((1, 3), -1.5)
    >>> mask = torch.tensor([[True, True, False]])
    >>> token_rewards(torch.tensor([1.0]), policy, reference, mask, kl_coefficient=0.1)
    tensor([[-0.0500,  1.0500,  0.0000]])
    """
    if not kl_coefficient >= 0:
        raise ValueError(f"kl_coefficient must be >= 0, not {kl_coefficient}")
    lengths = mask.sum(-1)
    if bool((lengths == 0).any()):
        raise ValueError("a response without tokens has no place for its score")
    rewards = (-kl_coefficient * (logprobs - reference_logprobs)).masked_fill(~mask, 0.0)
    return rewards.scatter_add(-1, (lengths - 1).unsqueeze(-1), scores.to(rewards.dtype).unsqueeze(-1))


def gae(
    rewards: Float[Tensor, "response token"],
    values: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    discount: float = 1.0,
    lam: float = 0.95,
) -> tuple[Float[Tensor, "response token"], Float[Tensor, "response token"]]:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, Eq. 16): advantages and returns.

        δ_t = r_t + γ·V_{t+1} − V_t      (V after the last token is 0, also where the length limit cut the response)
        Â_t = δ_t + γλ·Â_{t+1}           R_t = Â_t + V_t

    λ = 0 is the one-step residual, λ = 1 the return minus the value. Both results are 0 outside the mask, detached.

    Args:
        rewards, values: per token; `values[t]` is the value before token t is emitted.
        mask: True on response tokens, from the first on.
        discount: γ in [0, 1]; 1 is usual for text.
        lam: λ in [0, 1]; usual 0.95.

    Raises:
        ValueError: γ or λ is out of range.

    >>> rewards, values = torch.tensor([[-0.1, 0.05, 0.9]]), torch.tensor([[0.2, 0.4, 0.6]])
    >>> gae(rewards, values, torch.tensor([[True, True, True]]))
    (tensor([[0.6082, 0.5350, 0.3000]]), tensor([[0.8082, 0.9350, 0.9000]]))
    """
    if not (0 <= discount <= 1 and 0 <= lam <= 1):
        raise ValueError(f"discount and lam must be in [0, 1], not {discount} and {lam}")
    rewards = rewards.detach().masked_fill(~mask, 0.0)
    values = values.detach().masked_fill(~mask, 0.0)  # so the value after the last token is 0
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    after = torch.zeros_like(running)
    for t in reversed(range(rewards.shape[-1])):
        running = rewards[:, t] + discount * after - values[:, t] + discount * lam * running
        advantages[:, t] = running
        after = values[:, t]
    return advantages, advantages + values


def whiten(
    values: Float[Tensor, "*batch token"], mask: Bool[Tensor, "*batch token"], *, shift_mean: bool = True
) -> Float[Tensor, "*batch token"]:
    """Scale to unit variance over the mask, and shift to mean 0: (x − mean)/√(var + 1e-8). 0 outside the mask.

    The variance is the biased one, over all tokens given (arXiv 2403.17031, detail 17): give the whole batch, not a
    micro-batch of it.

    Args:
        values: what to whiten, say the advantages of a whole rollout.
        mask: which tokens count.
        shift_mean: False keeps the mean, as is usual for rewards.

    >>> whiten(torch.tensor([0.60825, 0.535, 0.3]), torch.tensor([True, True, True]))
    tensor([ 0.9671,  0.4100, -1.3772])
    """
    count = mask.sum().clamp(min=1)
    values = values.masked_fill(~mask, 0.0)
    mean = values.sum() / count
    variance = ((values - mean) ** 2).masked_fill(~mask, 0.0).sum() / count
    whitened = (values - mean) * torch.rsqrt(variance + 1e-8)
    return (whitened if shift_mean else whitened + mean).masked_fill(~mask, 0.0)
