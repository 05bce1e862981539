from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finite_differences import central_differences
from preflab.losses import gae, ppo_clip, token_rewards, value_clip


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Advantage, ratio, loss, ∂loss/∂log π: the four corners of the clip at ε 0.2, then inside it.
CORNERS = [
    (1.0, 1.3, -1.2, 0.0),
    (-1.0, 1.3, 1.3, 1.3),
    (1.0, 0.7, -0.7, -0.7),
    (-1.0, 0.7, 0.8, 0.0),
    (2.0, 1.1, -2.2, -2.2),
    (-2.0, 0.9, 1.8, 1.8),
    (2.0, 1.0, -2.0, -2.0),
    (-2.0, 1.0, 2.0, 2.0),
    (0.0, 1.5, 0.0, 0.0),
]


@pytest.mark.parametrize(("advantage", "ratio", "loss", "slope"), CORNERS)
def test_surrogate_by_hand(advantage: float, ratio: float, loss: float, slope: float) -> None:
    logprobs = wide(math.log(ratio) - 1.5).requires_grad_()
    measured = ppo_clip(logprobs, wide(-1.5), wide(advantage), clip=0.2)
    assert measured.item() == pytest.approx(loss, abs=1e-12)
    measured.sum().backward()
    assert logprobs.grad is not None
    if slope == 0:
        assert logprobs.grad.item() == 0  # exactly: a clipped token does not move the policy
    else:
        assert logprobs.grad.item() == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize(
    ("clip", "clip_higher", "lower", "upper"), [(0.2, None, 0.8, 1.2), (0.2, 0.28, 0.8, 1.28), (0.1, 1.5, 0.9, 2.5)]
)
def test_definition_and_gradient(clip: float, clip_higher: float | None, lower: float, upper: float) -> None:
    """Against −min(ρÂ, clip(ρ)Â) on a grid of ratios and advantages."""
    ratios = [0.3, 0.79, 0.81, 0.95, 1.0, 1.19, 1.21, 1.27, 1.3, 2.4, 2.6]
    grid = [(ratio, advantage) for ratio in ratios for advantage in (-1.7, -0.2, 0.4, 3.0)]
    logprobs, advantages = wide(*[math.log(ratio) for ratio, _ in grid]), wide(*[a for _, a in grid])

    def loss(logprobs: Tensor) -> Tensor:
        return ppo_clip(logprobs, torch.zeros_like(advantages), advantages, clip=clip, clip_higher=clip_higher)

    expected = [-min(ratio * a, min(max(ratio, lower), upper) * a) for ratio, a in grid]
    assert loss(logprobs).tolist() == pytest.approx(expected, abs=1e-12)
    leaf = logprobs.clone().requires_grad_()
    loss(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, central_differences(loss, logprobs), rtol=0, atol=1e-8)
    assert leaf.grad is not None
    clipped = [(a > 0 and ratio > upper) or (a < 0 and ratio < lower) for ratio, a in grid]
    assert (leaf.grad == 0).tolist() == clipped
    assert torch.autograd.gradcheck(loss, (leaf,))


def test_before_any_update_it_is_the_policy_gradient() -> None:
    """At ρ = 1 nothing is clipped, and the gradient is −Â·∇log π."""
    advantages = wide(0.5, -3.0, 0.0)
    logprobs = wide(-1.0, -2.0, -0.1).requires_grad_()
    ppo_clip(logprobs, logprobs, advantages, clip=0.2).sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages, rtol=0, atol=1e-12)


def test_no_gradient_reaches_the_rollout() -> None:
    logprobs, old, advantages = (wide(-1.0, -0.5).requires_grad_() for _ in range(3))
    ppo_clip(logprobs, old, advantages, clip=0.2).sum().backward()
    assert logprobs.grad is not None
    assert old.grad is None
    assert advantages.grad is None
    values, old_values, returns = (wide(1.0, 0.5).requires_grad_() for _ in range(3))
    value_clip(values, old_values, returns, clip=0.2).sum().backward()
    assert values.grad is not None
    assert old_values.grad is None
    assert returns.grad is None


@pytest.mark.parametrize("beta", [0.25, 0.5, 1.0, 2.0])
def test_the_tilted_reference_is_a_fixed_point(beta: float) -> None:
    """Three one-token responses with k1 in the reward, in expectation: −∇(E r − β·KL), and 0 at π_ref·exp(r/β)/Z."""
    reference, reward = wide(0.5, 0.3, 0.2), wide(1.0, 0.0, -1.0)

    def objective(logits: Tensor) -> Tensor:
        logprobs = logits.log_softmax(-1)
        return (logprobs.exp() * (reward - beta * (logprobs - reference.log()))).sum()

    def gradient(logits: Tensor) -> Tensor:
        logits = logits.clone().requires_grad_()
        logprobs = logits.log_softmax(-1).unsqueeze(-1)
        old, mask = logprobs.detach(), torch.ones(3, 1, dtype=torch.bool)
        rewards = token_rewards(reward, old, reference.log().unsqueeze(-1), mask, kl_coefficient=beta)
        advantages, _ = gae(rewards, torch.zeros_like(rewards), mask)
        (old.exp() * ppo_clip(logprobs, old, advantages, clip=0.2)).sum().backward()
        assert logits.grad is not None
        return logits.grad

    away = wide(0.3, -0.2, 0.5)
    expected = -central_differences(objective, away)
    assert expected.abs().max() > 0.05
    torch.testing.assert_close(gradient(away), expected, rtol=0, atol=1e-8)
    tilted = reference.log() + reward / beta
    torch.testing.assert_close(gradient(tilted), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-12)


def test_where_the_clip_holds_an_extreme_ratio_is_harmless() -> None:
    """exp(1e4) overflows, yet the loss is the bound and its gradient 0; so also where the advantage is 0 (padding)."""
    logprobs = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    loss = ppo_clip(logprobs, torch.zeros(4), torch.tensor([2.0, -2.0, 0.0, 0.0]), clip=0.2)
    torch.testing.assert_close(loss, torch.tensor([-2.4, 1.6, 0.0, 0.0]))
    loss.sum().backward()
    assert logprobs.grad is not None
    assert logprobs.grad.tolist() == [0.0, 0.0, 0.0, 0.0]


def test_an_unclipped_token_that_vanished_costs_nothing_more() -> None:
    logprobs = torch.tensor([-1e4], requires_grad=True)
    loss = ppo_clip(logprobs, torch.zeros(1), torch.tensor([2.0]), clip=0.2)
    loss.sum().backward()
    assert loss.item() == 0
    assert logprobs.grad is not None
    assert logprobs.grad.item() == 0


@pytest.mark.parametrize("clip", [0.0, -0.2, 1.0, math.nan])
def test_a_clip_outside_its_range_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip"):
        ppo_clip(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip=clip)
    with pytest.raises(ValueError, match="clip"):
        ppo_clip(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip=clip, clip_higher=0.2)


@pytest.mark.parametrize("clip_higher", [0.0, -0.1, math.nan])
def test_a_higher_clip_outside_its_range_is_refused(clip_higher: float) -> None:
    with pytest.raises(ValueError, match="clip_higher"):
        ppo_clip(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip=0.2, clip_higher=clip_higher)


# V, V_old, R, loss at ε 0.2, ∂loss/∂V.
VALUES = [
    (1.0, 0.0, 1.0, 0.32, 0.0),  # right, but only a step of 0.2 is believed
    (-1.0, 0.0, -1.0, 0.32, 0.0),
    (-1.0, 0.0, 1.0, 2.0, -2.0),  # wrong by more than the clip: the plain loss is the larger
    (0.1, 0.0, 1.0, 0.405, -0.9),  # inside
    (3.0, 3.0, 1.0, 2.0, 2.0),  # unmoved
    (0.5, 0.0, 0.3, 0.02, 0.2),  # beyond the return, further than the clip is short of it
]


@pytest.mark.parametrize(("value", "old", "target", "loss", "slope"), VALUES)
def test_value_loss_by_hand(value: float, old: float, target: float, loss: float, slope: float) -> None:
    values = wide(value).requires_grad_()
    measured = value_clip(values, wide(old), wide(target), clip=0.2)
    assert measured.item() == pytest.approx(loss, abs=1e-12)
    measured.sum().backward()
    assert values.grad is not None
    if slope == 0:
        assert values.grad.item() == 0
    else:
        assert values.grad.item() == pytest.approx(slope, abs=1e-12)


@pytest.mark.parametrize("clip", [0.05, 0.2, 1.0])
def test_value_loss_definition_and_gradient(clip: float) -> None:
    generator = torch.Generator().manual_seed(7)
    values, old, returns = torch.randn(3, 4, 6, dtype=torch.float64, generator=generator)

    def loss(values: Tensor) -> Tensor:
        return value_clip(values, old, returns, clip=clip)

    for value, before, target, measured in zip(
        values.flatten().tolist(),
        old.flatten().tolist(),
        returns.flatten().tolist(),
        loss(values).flatten(),
        strict=True,
    ):
        believed = min(max(value, before - clip), before + clip)
        assert measured.item() == pytest.approx(max((value - target) ** 2, (believed - target) ** 2) / 2, abs=1e-12)
    leaf = values.clone().requires_grad_()
    loss(leaf).sum().backward()
    torch.testing.assert_close(leaf.grad, central_differences(loss, values), rtol=0, atol=1e-7)
    assert torch.autograd.gradcheck(loss, (leaf,))


def test_without_a_clip_it_is_half_the_squared_error() -> None:
    values = wide(1.0, -4.0).requires_grad_()
    loss = value_clip(values, wide(100.0, -100.0), wide(0.0, 2.0), clip=None)
    assert loss.tolist() == [0.5, 18.0]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == [1.0, -6.0]


@pytest.mark.parametrize("clip", [0.0, -0.2, math.nan])
def test_a_value_clip_outside_its_range_is_refused(clip: float) -> None:
    with pytest.raises(ValueError, match="clip"):
        value_clip(torch.zeros(1), torch.zeros(1), torch.zeros(1), clip=clip)
