"""Proximal policy optimisation: the clipped surrogate and the clipped value loss."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def ppo_clip(
    logprobs: Float[Tensor, "*batch token"],
    old_logprobs: Float[Tensor, "*batch token"],
    advantages: Float[Tensor, "*batch token"],
    *,
    clip: float,
    clip_higher: float | None = None,
) -> Float[Tensor, "*batch token"]:
    """PPO's pessimistic surrogate (Schulman et al. 2017, arXiv 1707.06347, Eq. 7), one value a token.

        ρ    = exp(log π(y_t) − log π_old(y_t))
        loss = max(−Â·ρ, −Â·clip(ρ, 1 − ε, 1 + ε'))

    The maximum bounds how much a step may gain from moving ρ away from 1, never how much it may lose.

    Args:
        logprobs: of the policy being trained, in nats, at the temperature at which the tokens were sampled.
        old_logprobs: of the policy that sampled them; no gradient flows through them.
        advantages: Â; no gradient flows through them.
        clip: ε in (0, 1); usual 0.2.
        clip_higher: ε' > 0 of the upper bound (DAPO, arXiv 2503.14476, Eq. 10); ε where None.

    Raises:
        ValueError: a bound is out of range.

    >>> ratio = torch.tensor([1.3, 1.3, 0.7, 0.7])
    >>> ppo_clip(ratio.log(), torch.zeros(4), torch.tensor([1.0, -1.0, 1.0, -1.0]), clip=0.2)
    tensor([-1.2000,  1.3000, -0.7000,  0.8000])
    """
    upper = clip if clip_higher is None else clip_higher
    if not 0 < clip < 1 or not upper > 0:
        raise ValueError(f"clip must be in (0, 1) and clip_higher > 0, not {clip} and {upper}")
    advantages = advantages.detach()
    # e^20 is beyond any clip, and still finite: at 0·∞ the gradient of a clipped or padded token would be NaN.
    ratio = torch.exp((logprobs - old_logprobs.detach()).clamp(max=20.0))
    return torch.maximum(-advantages * ratio, -advantages * ratio.clamp(1 - clip, 1 + upper))


def value_clip(
    values: Float[Tensor, "*batch token"],
    old_values: Float[Tensor, "*batch token"],
    returns: Float[Tensor, "*batch token"],
    *,
    clip: float | None,
) -> Float[Tensor, "*batch token"]:
    """PPO's clipped value loss, one value a token, in squared units of reward.

        loss = ½·max((V − R)², (clip(V, V_old − ε, V_old + ε) − R)²)

    Source: openai/baselines; arXiv 2403.17031, detail 21.

    Args:
        values: V of the model being trained.
        old_values: V at the time of the rollout.
        returns: R = Â + V_old.
        clip: ε > 0 in units of reward, usual 0.2; None leaves the plain ½(V − R)².

    >>> value_clip(torch.tensor([1.0]), torch.tensor([0.0]), torch.tensor([1.0]), clip=0.2)   # only 0.2 is believed
    tensor([0.3200])
    """
    returns, old_values = returns.detach(), old_values.detach()
    squared = (values - returns) ** 2
    if clip is None:
        return 0.5 * squared
    if not clip > 0:
        raise ValueError(f"clip must be > 0 or None, not {clip}")
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return 0.5 * torch.maximum(squared, (clipped - returns) ** 2)
