from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from bandit import REWARD, expectation, minimise, optimal_policy, wide
from pair_losses import assert_finite, assert_is, assert_worked, partials
from preflab.losses import cpo, dpo, orpo, simpo

LN_2 = math.log(2)
# Log-probabilities, so below 0.
CHOSEN = (-2.0, -0.1, -5.0, -1.3, -0.7)
REJECTED = (-3.0, -4.0, -0.5, -1.2, -0.7)


def softplus(x: float) -> float:
    return math.log(1 + math.exp(x))


def log_odds(logprob: float) -> float:
    return math.log(math.exp(logprob) / (1 - math.exp(logprob)))


def naive_orpo(w: float, r: float, weight: float) -> float:
    return -w + weight * softplus(log_odds(r) - log_odds(w))


def test_worked_values_of_simpo() -> None:
    assert_worked(partial(simpo, beta=2.0, margin=1.0), (-2.0, -3.0), 0.313262, -0.537883, 0.537883)


def test_worked_values_of_cpo() -> None:
    """The slope −βσ(0.1) and, with the supervised term, 1 less."""
    slope = -0.1 / (1 + math.exp(-0.1))
    assert_worked(partial(cpo, beta=0.1, sft_weight=0.0), (-10.0, -9.0), 0.744397, slope, -slope)
    assert_worked(partial(cpo, beta=0.1, sft_weight=1.0), (-10.0, -9.0), 10.744397, slope - 1, -slope)


def test_worked_values_of_orpo() -> None:
    """Log-odds ratio 1.094344; the odds term alone 0.028875, with gradients −0.029006 and 0.026394."""
    assert log_odds(-2.0) - log_odds(-3.0) == pytest.approx(1.094344, abs=5e-7)
    assert_worked(partial(orpo, weight=0.1), (-2.0, -3.0), 2.028875, -1.029006, 0.026394)


@pytest.mark.parametrize(("beta", "margin"), [(2.0, 1.0), (10.0, 0.0), (2.5, 2.0)])
def test_definition_and_gradient_of_simpo(beta: float, margin: float) -> None:
    naive = lambda w, r: softplus(margin - beta * (w - r))  # noqa: E731
    assert_is(partial(simpo, beta=beta, margin=margin), naive, CHOSEN, REJECTED)


@pytest.mark.parametrize(("beta", "sft_weight"), [(0.1, 1.0), (2.0, 0.0), (0.5, 0.3)])
def test_definition_and_gradient_of_cpo(beta: float, sft_weight: float) -> None:
    naive = lambda w, r: softplus(-beta * (w - r)) - sft_weight * w  # noqa: E731
    assert_is(partial(cpo, beta=beta, sft_weight=sft_weight), naive, CHOSEN, REJECTED)


@pytest.mark.parametrize("weight", [0.1, 1.0, 5.0])
def test_definition_and_gradient_of_orpo(weight: float) -> None:
    assert_is(partial(orpo, weight=weight), partial(naive_orpo, weight=weight), CHOSEN, REJECTED)


def test_losses_of_two_responses_that_are_as_probable() -> None:
    logprob = wide(-2.0)
    assert simpo(logprob, logprob, beta=2.0, margin=1.0).item() == pytest.approx(softplus(1.0), abs=1e-14)
    assert cpo(logprob, logprob, beta=2.0, sft_weight=0.5).item() == pytest.approx(LN_2 + 1, abs=1e-14)
    assert orpo(logprob, logprob, weight=0.5).item() == pytest.approx(2 + 0.5 * LN_2, abs=1e-14)


def test_a_common_shift_counts_where_a_supervised_term_is_in_the_loss() -> None:
    chosen, rejected = wide(-2.0, -0.5), wide(-3.0, -0.1)

    def change(loss: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return loss(chosen - 4, rejected - 4) - loss(chosen, rejected)

    for blind in (partial(simpo, beta=2.0, margin=1.0), partial(cpo, beta=0.1, sft_weight=0.0)):
        torch.testing.assert_close(change(blind), wide(0.0, 0.0), rtol=0, atol=1e-12)
    torch.testing.assert_close(change(partial(cpo, beta=0.1, sft_weight=0.5)), wide(2.0, 2.0))
    assert bool((change(partial(orpo, weight=0.1)) > 3.8).all())


def test_the_margin_of_simpo_is_a_lead_that_is_asked_for() -> None:
    """The loss ln 2 of an undecided pair is reached where β(ℓ_w − ℓ_l) = γ."""
    assert simpo(wide(-2.0), wide(-2.5), beta=2.0, margin=1.0).item() == pytest.approx(LN_2, abs=1e-15)
    assert simpo(wide(-2.0), wide(-2.5), beta=2.0, margin=3.0).item() == pytest.approx(softplus(2.0), abs=1e-14)


@pytest.mark.parametrize(("p", "beta", "margin"), [(0.8, 2.0, 1.0), (0.6, 2.0, 0.0), (0.95, 1.0, 2.0)])
def test_the_optimum_of_simpo_with_two_responses(p: float, beta: float, margin: float) -> None:
    """p·σ(γ − z) = (1 − p)·σ(γ + z) for z = β(ℓ_w − ℓ_l): without γ it is logit p, with it further out."""
    loss = partial(simpo, beta=beta, margin=margin)

    def expected(lead: Tensor) -> Tensor:
        half = lead / 2
        return (p * loss(half, -half) + (1 - p) * loss(-half, half)).sum()

    z = beta * minimise(expected, wide(0.1)).item()
    assert p / (1 + math.exp(z - margin)) == pytest.approx((1 - p) / (1 + math.exp(-z - margin)), abs=1e-10)
    logit = math.log(p / (1 - p))
    assert z == pytest.approx(logit, abs=1e-8) if margin == 0 else z > logit + 0.1


def test_the_optimum_of_cpo_is_that_of_dpo_with_a_uniform_reference() -> None:
    """π ∝ exp(r/β)."""
    uniform = torch.full((3,), 1 / 3, dtype=torch.float64)

    def objective(logits: Tensor) -> Tensor:
        return expectation(partial(cpo, beta=0.5, sft_weight=0.0), logits.log_softmax(-1))

    policy = minimise(objective, wide(0.0, 0.0, 0.0)).softmax(-1)
    assert policy.tolist() == pytest.approx([0.866813, 0.117310, 0.015876], abs=1e-6)
    torch.testing.assert_close(policy, (REWARD / 0.5).softmax(-1), rtol=0, atol=1e-6)
    torch.testing.assert_close(policy, optimal_policy(partial(dpo, beta=0.5), uniform), rtol=0, atol=1e-6)


def test_the_supervised_term_pulls_cpo_towards_what_was_chosen() -> None:
    """With a large α the optimum nears the distribution of chosen responses."""
    reward = REWARD.tolist()
    wins = [sum(1 / (1 + math.exp(b - a)) for b in reward if b != a) / 3 for a in reward]
    assert sum(wins) == pytest.approx(1)

    def policy(sft_weight: float) -> Tensor:
        loss = partial(cpo, beta=0.5, sft_weight=sft_weight)
        return minimise(lambda z: expectation(loss, z.log_softmax(-1)), wide(0.0, 0.0, 0.0)).softmax(-1)

    assert policy(1e4).tolist() == pytest.approx(wins, abs=1e-4)
    assert abs(policy(1.0)[0] - wins[0]) < abs(policy(0.0)[0] - wins[0])


def test_orpo_without_its_odds_term_is_supervised_fine_tuning() -> None:
    chosen, rejected = wide(*CHOSEN), wide(*REJECTED)
    assert torch.equal(orpo(chosen, rejected, weight=0.0), -chosen)


def test_orpo_raises_the_chosen_and_lowers_the_rejected_response() -> None:
    _, by_chosen, by_rejected = partials(partial(orpo, weight=0.1), wide(*CHOSEN), wide(*REJECTED))
    assert bool((by_chosen < -1).all())
    assert bool((by_rejected > 0).all())


@pytest.mark.parametrize("mean", [-1e-5, -1e-3, -0.1, -LN_2, -3.0, -20.0])
def test_odds_are_exact_in_float32(mean: float) -> None:
    """ln(p/(1 − p)) by the double-precision expm1 of the standard library; 1 − e^ℓ itself would round to 0."""
    single, other = torch.tensor([mean]), torch.tensor([-1.0])
    lead = single.item() - math.log(-math.expm1(single.item())) - log_odds(-1.0)
    assert orpo(other, single, weight=1.0).item() == pytest.approx(1 + softplus(lead), rel=1e-6)
    assert orpo(single, other, weight=1.0).item() == pytest.approx(-mean + softplus(-lead), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_orpo_stays_finite_where_a_response_is_certain(dtype: torch.dtype) -> None:
    """At a mean log-probability of 0 the odds are infinite; within 10⁻⁶ of it they go on along the tangent."""
    certain = torch.tensor([0.0, -0.0, -1e-30, -1e-9, -1e-7, -9e-7, -1e-6, -2e-6, -1e-4], dtype=dtype)
    unsure = torch.full_like(certain, -2.0)
    lost, _, slope = partials(partial(orpo, weight=0.1), unsure, certain)
    assert bool(lost.isfinite().all())
    assert bool((lost.diff() <= 0).all())
    assert bool(((slope >= 999 * 0.1) & (slope <= 1.001e6 * 0.1)).all())
    won, slope, _ = partials(partial(orpo, weight=0.1), certain, unsure)
    assert bool(won.isfinite().all())
    assert bool(((slope <= -1) & (slope >= -1.1)).all())


def test_the_continued_odds_meet_without_a_jump_in_value_or_slope() -> None:
    edge = wide(-1.001e-6, -1e-6, -0.999e-6)
    losses, _, slope = partials(partial(orpo, weight=1.0), torch.full_like(edge, -2.0), edge)
    assert losses.diff().tolist() == pytest.approx([1e-3, 1e-3], rel=2e-3)
    assert slope.tolist() == pytest.approx([1e6] * 3, rel=2e-3)


def test_extreme_log_probabilities_stay_finite() -> None:
    ends = (-1e4, -100.0, -1.0, -1e-9, 0.0)
    assert_finite(partial(simpo, beta=10.0, margin=1.0), ends)
    assert_finite(partial(cpo, beta=1.0, sft_weight=1.0), ends)
    assert_finite(partial(orpo, weight=0.25), ends)


def test_limits() -> None:
    """Far right only the supervised terms are left, far wrong the loss is linear."""
    near, far = torch.tensor([-1.0, -1e4]), torch.tensor([-1e4, -1.0])
    torch.testing.assert_close(simpo(near, far, beta=2.0, margin=1.0), torch.tensor([0.0, 19999.0]))
    torch.testing.assert_close(cpo(near, far, beta=0.1, sft_weight=1.0), torch.tensor([1.0, 10999.9]))
    rest = 0.1 * (9999 + math.log(-math.expm1(-1.0)) * -1)
    torch.testing.assert_close(orpo(near, far, weight=0.1), torch.tensor([1.0, 1e4 + rest]))


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be in"):
        simpo(torch.zeros(1), torch.zeros(1), beta=beta, margin=0.0)
    with pytest.raises(ValueError, match="beta must be in"):
        cpo(torch.zeros(1), torch.zeros(1), beta=beta, sft_weight=0.0)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
def test_a_margin_or_weight_below_0_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="margin must be in"):
        simpo(torch.zeros(1), torch.zeros(1), beta=1.0, margin=value)
    with pytest.raises(ValueError, match="sft_weight must be in"):
        cpo(torch.zeros(1), torch.zeros(1), beta=1.0, sft_weight=value)
    with pytest.raises(ValueError, match="weight must be in"):
        orpo(torch.zeros(1), torch.zeros(1), weight=value)
