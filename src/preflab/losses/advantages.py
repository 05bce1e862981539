"""From rewards and values to advantages."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def token_rewards(
    scores: Float[Tensor, " response"],
    logprobs: Float[Tensor, "response token"],
    reference_logprobs: Float[Tensor, "response token"],
    mask: Bool[Tensor, "response token"],
    *,
    kl_coefficient: float,
    dense: Float[Tensor, "response token"] | None = None,
) -> Float[Tensor, "response token"]:
    """The reward of each token: a KL penalty everywhere, and the score at the last response token.

        r_t = −β·(log π(y_t) − log π_ref(y_t)) + d_t + (score − Σ_u d_u)·[t is the last token in the mask]

    Source: Ziegler et al. 2019, arXiv 1909.08593; k1 in the reward is unbiased for the sequence KL. 0 outside the mask.

    Args:
        scores: one a response, in units of reward, penalties included.
        logprobs, reference_logprobs: at the sampling temperature, of the policy that sampled and of the reference.
        mask: True on response tokens; each row is True from its first token on, then False.
        kl_coefficient: β ≥ 0, reward per nat; usual 0.01 to 0.2.
        dense: d, the part of each score that single tokens earned, in units of reward, 0 outside the mask; None: 0.

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
    if dense is not None:
        rewards, scores = rewards + dense.masked_fill(~mask, 0.0), scores - dense.sum(-1)
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


def less_group_mean(scores: Float[Tensor, " response"], *, group: int) -> Float[Tensor, " response"]:
    """r_i − mean_j r_j over the responses to one prompt (GRPO, arXiv 2402.03300, §4.1; alone: Dr. GRPO, 2503.20783).

    Exactly 0 where a group's scores are equal. The response itself is in the mean, so the expected gradient is
    (1 − 1/k) of the true one.

    Args:
        scores: group after group, penalties included, in units of reward.
        group: k ≥ 2 responses to each prompt.

    Raises:
        ValueError: k is below 2, or does not divide the number of scores.

    >>> less_group_mean(torch.tensor([1.0, 0.0, 0.0, 0.0]), group=4)
    tensor([ 0.7500, -0.2500, -0.2500, -0.2500])
    """
    groups = _groups(scores, group)
    same = (groups == groups[:, :1]).all(1, keepdim=True)  # else rounding would leave 1e-9, which a tiny std blows up
    return (groups - groups.mean(1, keepdim=True)).masked_fill(same, 0.0).flatten()


def leave_one_out(scores: Float[Tensor, " response"], *, group: int) -> Float[Tensor, " response"]:
    """r_i − mean_{j≠i} r_j (RLOO: Kool et al. 2019; arXiv 2402.14740, §3.2): an unbiased baseline.

        = k/(k − 1)·(r_i − mean_j r_j)

    Args:
        scores: group after group, penalties included, in units of reward.
        group: k ≥ 2 responses to each prompt, or all of the rollout for a batch baseline.

    Raises:
        ValueError: k is below 2, or does not divide the number of scores.

    >>> leave_one_out(torch.tensor([1.0, 0.0, 0.0, 0.0]), group=4)
    tensor([ 1.0000, -0.3333, -0.3333, -0.3333])
    """
    return less_group_mean(scores, group=group) * group / (group - 1)


def over_std(
    advantages: Float[Tensor, " response"], scores: Float[Tensor, " response"], *, group: int, epsilon: float = 1e-6
) -> Float[Tensor, " response"]:
    """Â_i/(std_j r_j + ε) over a group, or over the rollout (GRPO, arXiv 2402.03300, §4.1).

    The standard deviation is that with n − 1, ε is verl's (TRL: 1e-4). It makes a prompt whose rewards hardly differ
    weigh as much as any other.

    Args:
        advantages: Â, group after group.
        scores: what the deviation is taken of.
        group: k ≥ 2 responses, or all of the rollout.
        epsilon: ε > 0, in units of reward.

    Raises:
        ValueError: k is below 2, or does not divide the number of scores.

    >>> scores = torch.tensor([1.0, 0.0, 0.0, 0.0])
    >>> over_std(less_group_mean(scores, group=4), scores, group=4)
    tensor([ 1.5000, -0.5000, -0.5000, -0.5000])
    """
    deviation = _groups(scores, group).std(1, keepdim=True)
    return (advantages.view(-1, group) / (deviation + epsilon)).flatten()


def overlong_penalty(
    lengths: Int[Tensor, " response"], *, longest: int, buffer: int, factor: float
) -> Float[Tensor, " response"]:
    """What an overlong response pays, in [−factor, 0] (soft overlong punishment: DAPO, arXiv 2503.14476, Eq. 13).

        min(−(n − (longest − buffer))/buffer·factor, 0)

    Args:
        lengths: n, tokens in each response, at most `longest`.
        longest: the length limit, in tokens.
        buffer: tokens before the limit over which the penalty grows, in [1, longest].
        factor: the penalty at the limit, in units of reward.

    Raises:
        ValueError: the buffer is out of range.

    >>> overlong_penalty(torch.tensor([10, 16, 18, 20]), longest=20, buffer=4, factor=1.0)
    tensor([ 0.0000,  0.0000, -0.5000, -1.0000])
    """
    if not 1 <= buffer <= longest:
        raise ValueError(f"buffer must be in [1, {longest}], not {buffer}")
    exceeding = (lengths - (longest - buffer)).clamp(min=0)
    return -exceeding / buffer * factor


def _groups(scores: Float[Tensor, " response"], group: int) -> Float[Tensor, "prompt sample"]:
    if group < 2 or len(scores) % group:
        raise ValueError(f"a group needs at least two responses and {len(scores)} scores whole groups, not {group}")
    return scores.view(-1, group)
