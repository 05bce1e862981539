from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import get_args

import pytest
import torch
from torch import Tensor

from bandit import REFERENCE, REWARD, optimal_policy, wide
from pair_losses import CHOSEN, PairLoss, assert_finite, assert_is, assert_worked, partials
from preflab.losses import Divergence, dpo, f_dpo, f_dpo_reward, kl_full
from preflab.losses.divergence import LAST_EXPONENT

LN_2 = math.log(2)


def bisect(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a falling function is 0."""
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > 0 else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Generator:
    """A divergence as the paper has it: D = Σ π_ref·f(π/π_ref)."""

    name: Divergence
    f: Callable[[float], float]
    slope: Callable[[float], float]  # f'
    ratio: Callable[[float], float]  # its inverse
    bound: float = math.inf  # of f'
    alpha: float = 0.5

    def loss(self, beta: float) -> PairLoss:
        return partial(f_dpo, beta=beta, divergence=self.name, alpha=self.alpha)

    def reward(self, logratio: Tensor) -> Tensor:
        return f_dpo_reward(logratio, divergence=self.name, alpha=self.alpha)


def alpha_generator(a: float) -> Generator:
    return Generator(
        "alpha",
        lambda u: (u ** (1 - a) - (1 - a) * u - a) / (a * (a - 1)),
        lambda u: (1 - u**-a) / a,
        lambda y: (1 - a * y) ** (-1 / a),
        bound=1 / a,
        alpha=a,
    )


GENERATORS = {
    "reverse KL": Generator(
        "reverse_kl", lambda u: u * math.log(u), lambda u: math.log(u) + 1, lambda y: math.exp(y - 1)
    ),
    "forward KL": Generator("forward_kl", lambda u: -math.log(u), lambda u: -1 / u, lambda y: -1 / y, bound=0.0),
    "Jensen–Shannon": Generator(
        "jensen_shannon",
        lambda u: u * math.log(u) - (u + 1) * math.log((u + 1) / 2),
        lambda u: math.log(2 * u / (1 + u)),
        lambda y: math.exp(y) / (2 - math.exp(y)),
        bound=LN_2,
    ),
    "alpha ½": alpha_generator(0.5),
    "alpha 0.2": alpha_generator(0.2),
    "chi squared": Generator(
        "chi_squared",
        lambda u: (u - 1) ** 2 / 2 + u * math.log(u) - u,
        lambda u: u - 1 + math.log(u),
        lambda y: bisect(lambda u: y - (u - 1 + math.log(u)), 1e-300, 1e6),
    ),
}
every_divergence = pytest.mark.parametrize("case", GENERATORS.values(), ids=GENERATORS)


def test_every_divergence_is_tested() -> None:
    assert {case.name for case in GENERATORS.values()} == set(get_args(Divergence))


def test_worked_values() -> None:
    assert_worked(partial(f_dpo, beta=0.1, divergence="reverse_kl"), (0.5, -0.3), 0.653947, -0.048001, 0.048001)
    assert_worked(partial(f_dpo, beta=0.1, divergence="chi_squared"), (0.5, -0.3), 0.611394, -0.121154, 0.079626)


@every_divergence
@pytest.mark.parametrize("beta", [0.05, 1.0])
def test_definition_and_gradient(case: Generator, beta: float) -> None:
    def naive(w: float, r: float) -> float:
        return math.log(1 + math.exp(-beta * (case.slope(math.exp(w)) - case.slope(math.exp(r)))))

    assert_is(case.loss(beta), naive)


@every_divergence
def test_the_reward_is_the_derivative_of_the_divergence_with_0_at_the_reference(case: Generator) -> None:
    ratios = [math.exp(x) for x in CHOSEN]
    differences = [(case.f(u + 1e-5 * u) - case.f(u - 1e-5 * u)) / (2e-5 * u) for u in ratios]
    at_reference = (case.f(1 + 1e-5) - case.f(1 - 1e-5)) / 2e-5
    expected = [slope - at_reference for slope in differences]
    assert case.reward(wide(*CHOSEN)).tolist() == pytest.approx(expected, rel=1e-7, abs=1e-7)
    assert case.reward(wide(0.0)).item() == 0


@every_divergence
def test_the_loss_is_ln_2_where_policy_is_reference(case: Generator) -> None:
    assert case.loss(0.3)(wide(0.0, 1.0), wide(0.0, 1.0)).tolist() == pytest.approx([LN_2, LN_2], abs=1e-15)


@every_divergence
def test_the_generators_of_this_file_are_those_divergences(case: Generator) -> None:
    """On two distributions, each written down on its own."""
    policy = wide(0.7, 0.2, 0.1)
    p, q = policy.tolist(), REFERENCE.tolist()
    found = sum(b * (case.f(a / b) - case.f(1)) for a, b in zip(p, q, strict=True))
    kl = kl_full(policy.log(), REFERENCE.log()).item()
    middle = (policy + REFERENCE).log() - LN_2
    expected = {
        "reverse_kl": kl,
        "forward_kl": kl_full(REFERENCE.log(), policy.log()).item(),
        "jensen_shannon": (kl_full(policy.log(), middle) + kl_full(REFERENCE.log(), middle)).item(),
        "alpha": (1 - sum(a ** (1 - case.alpha) * b**case.alpha for a, b in zip(p, q, strict=True)))
        / (case.alpha * (1 - case.alpha)),
        "chi_squared": sum((a - b) ** 2 / b for a, b in zip(p, q, strict=True)) / 2 + kl,
    }
    assert found == pytest.approx(expected[case.name], abs=1e-12)


def closed_form(case: Generator, beta: float) -> tuple[list[float], float]:
    """f'(π/π_ref) = (r − c)/β with c such that π sums to 1, by bisection."""
    reference, reward = REFERENCE.tolist(), REWARD.tolist()

    def policy(c: float) -> list[float]:
        return [q * case.ratio((r - c) / beta) for q, r in zip(reference, reward, strict=True)]

    lowest = max(reward) - beta * case.bound + 1e-9 if case.bound < math.inf else -20.0
    c = bisect(lambda c: sum(policy(c)) - 1, lowest, 20.0)
    return policy(c), c


@every_divergence
@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_the_optimum_on_bradley_terry_preferences(case: Generator, beta: float) -> None:
    """Which is also the policy that maximises E r − β·D_f, whatever pairs are seen more often."""
    expected, _ = closed_form(case, beta)
    assert sum(expected) == pytest.approx(1, abs=1e-12)
    policy = optimal_policy(case.loss(beta))
    assert policy.tolist() == pytest.approx(expected, abs=1e-6)
    skewed = optimal_policy(case.loss(beta), pair_weights=wide(0.8, 0.1, 0.1))
    assert skewed.tolist() == pytest.approx(expected, abs=1e-6)

    def value(point: list[float]) -> float:
        divergence = sum(q * case.f(p / q) for p, q in zip(point, REFERENCE.tolist(), strict=True))
        return sum(p * r for p, r in zip(point, REWARD.tolist(), strict=True)) - beta * divergence

    for i, j in itertools.permutations(range(3), 2):
        moved = list(expected)
        moved[i] += 1e-4
        moved[j] -= 1e-4
        assert value(moved) < value(expected)


def test_the_optimum_under_the_chi_squared_divergence_in_numbers() -> None:
    """φ(π/π_ref) = (r − c)/β with φ(u) = u + ln u, which is f' + 1: its c is lower by β."""
    policy, c = closed_form(GENERATORS["chi squared"], 0.5)
    assert policy == pytest.approx([0.797632, 0.176993, 0.025375], abs=5e-7)
    assert c - 0.5 == pytest.approx(-0.031152, abs=5e-7)
    found = optimal_policy(partial(f_dpo, beta=0.5, divergence="chi_squared"))
    assert found.tolist() == pytest.approx(policy, abs=1e-6)


def test_under_the_reverse_kl_it_is_dpo() -> None:
    chosen, rejected = wide(*CHOSEN), wide(*reversed(CHOSEN))
    assert torch.equal(f_dpo(chosen, rejected, beta=0.3, divergence="reverse_kl"), dpo(chosen, rejected, beta=0.3))
    assert torch.equal(f_dpo_reward(chosen, divergence="reverse_kl"), chosen)


def test_alpha_is_a_half_where_none_is_given() -> None:
    chosen, rejected = wide(*CHOSEN), wide(*reversed(CHOSEN))
    given, default = (partial(f_dpo, beta=0.3, divergence="alpha", **more) for more in ({"alpha": 0.5}, {}))
    assert torch.equal(given(chosen, rejected), default(chosen, rejected))
    of_default = f_dpo_reward(chosen, divergence="alpha")
    assert torch.equal(f_dpo_reward(chosen, divergence="alpha", alpha=0.5), of_default)


def test_alpha_runs_from_the_reverse_to_the_forward_kl() -> None:
    logratio = wide(*CHOSEN)
    ends: tuple[tuple[float, Divergence], ...] = ((1e-6, "reverse_kl"), (1 - 1e-6, "forward_kl"))
    for alpha, end in ends:
        near = f_dpo_reward(logratio, divergence="alpha", alpha=alpha)
        torch.testing.assert_close(near, f_dpo_reward(logratio, divergence=end), rtol=1e-5, atol=1e-5)


@every_divergence
def test_a_common_shift_of_both_log_ratios_counts_unless_the_reward_is_the_log_ratio(case: Generator) -> None:
    chosen, rejected = wide(0.5, -2.0), wide(-0.3, 1.5)
    change = (case.loss(0.3)(chosen + 2, rejected + 2) - case.loss(0.3)(chosen, rejected)).abs()
    assert bool((change < 1e-12).all() if case.name == "reverse_kl" else (change > 1e-3).all())


@every_divergence
def test_how_far_a_pair_can_be_told_apart(case: Generator) -> None:
    """Where f' is bounded, so is what a chosen response gains over one at the reference: −log σ(β·bound) is left."""
    headroom = case.bound - case.slope(1)
    limit = math.log(1 + math.exp(-0.3 * headroom))
    assert case.loss(0.3)(wide(200.0), wide(0.0)).item() == pytest.approx(limit, abs=1e-8)
    # A rejected response can always fall further.
    falling = case.loss(0.3)(wide(0.0, 0.0, 0.0, 0.0), wide(0.0, -2.0, -4.0, -100.0))
    assert bool((falling.diff() < 0).all())
    assert falling[-1] < 1e-12


@every_divergence
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_rewards_rise_with_the_log_ratio_and_their_slope_is_finite(case: Generator, dtype: torch.dtype) -> None:
    """e^10000 is beyond every float; its tangent is not."""
    ends = [-1e4, -1e3, -100.0, -60.0, -30.0, -20.0, -1.0, 0.0, 1.0, 20.0, 30.0, 60.0, 100.0, 1e3, 1e4]
    logratio = torch.tensor(ends, dtype=dtype, requires_grad=True)
    reward = case.reward(logratio)
    reward.sum().backward()
    assert logratio.grad is not None
    assert bool(reward.isfinite().all())
    assert bool((reward.diff() >= 0).all())
    assert bool(logratio.grad.isfinite().all())
    truth = {
        "reverse_kl": lambda x: 1.0,
        "forward_kl": lambda x: math.exp(-x),
        "jensen_shannon": lambda x: 1 / (1 + math.exp(x)),
        "alpha": lambda x: math.exp(-case.alpha * x),
        "chi_squared": lambda x: 1 + math.exp(x),
    }[case.name]
    middle = [(x, slope) for x, slope in zip(ends, logratio.grad.tolist(), strict=True) if abs(x) <= 20]
    assert [slope for _, slope in middle] == pytest.approx([truth(x) for x, _ in middle], rel=1e-6)


@pytest.mark.parametrize(
    ("name", "sign", "scale"), [("forward_kl", -1, 1.0), ("alpha", -1, 0.5), ("chi_squared", 1, 1.0)]
)
def test_the_exponential_is_continued_by_its_tangent(name: Divergence, sign: int, scale: float) -> None:
    """Value and slope meet at an exponent of 30, the slope stays there, and the value below it is untouched."""
    edge = sign * LAST_EXPONENT / scale
    step = sign * 1e-6
    logratio = wide(edge - step, edge, edge + step, edge + sign * 500).requires_grad_()
    reward = f_dpo_reward(logratio, divergence=name, alpha=0.5)
    reward.sum().backward()
    below, at, above, far = reward.tolist()
    slope = math.exp(30) + (1 if name == "chi_squared" else 0)
    linear = 1 if name == "chi_squared" else 0
    assert at == pytest.approx(sign * math.exp(30) / scale, rel=1e-9)
    assert (above - at) / step == pytest.approx(slope, rel=1e-4)
    assert (at - below) / step == pytest.approx(slope, rel=1e-4)
    assert far == pytest.approx(sign * (math.exp(30) * (1 + 500 * scale) / scale) + linear * (edge + 500), rel=1e-9)
    assert logratio.grad is not None
    assert logratio.grad.tolist() == pytest.approx([slope] * 4, rel=1e-5)


@every_divergence
def test_extreme_log_ratios_stay_finite(case: Generator) -> None:
    assert_finite(case.loss(0.1))
    assert_finite(case.loss(5.0))


@pytest.mark.parametrize(
    ("name", "chosen", "rejected"),
    [
        ("forward_kl", -1e4, 0.0),
        ("forward_kl", -1e4, -1e4),
        ("alpha", -1e4, 1e4),
        ("jensen_shannon", -1e4, 0.0),
        ("reverse_kl", -1e4, 1e4),
        ("chi_squared", -1e4, 1e4),
        ("chi_squared", 1e4, 1e4),
    ],
)
def test_a_pair_that_is_wrong_keeps_its_gradient(name: Divergence, chosen: float, rejected: float) -> None:
    loss = partial(f_dpo, beta=0.1, divergence=name)
    _, by_chosen, by_rejected = partials(loss, torch.tensor([chosen]), torch.tensor([rejected]))
    assert by_chosen.item() < -1e-3
    assert by_rejected.item() >= 0
    assert math.hypot(by_chosen.item(), by_rejected.item()) > 0.04


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta must be in"):
        f_dpo(torch.zeros(1), torch.zeros(1), beta=beta, divergence="forward_kl")


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.5, 2.0, math.nan])
def test_an_alpha_outside_its_range_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        f_dpo(torch.zeros(1), torch.zeros(1), beta=0.1, divergence="alpha", alpha=alpha)
    with pytest.raises(ValueError, match=r"alpha must be in \(0, 1\)"):
        f_dpo_reward(torch.zeros(1), divergence="alpha", alpha=alpha)
