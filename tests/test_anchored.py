from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor

from bandit import REWARD, expectation, minimise, wide
from pair_losses import PairLoss, assert_finite, assert_is, assert_worked, partials
from preflab.losses import apo_down, apo_zero, bco, bco_pair, dpo, dpop, nca, sppo

LN_2 = math.log(2)


def s(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_dpop(w: float, r: float, beta: float, penalty: float) -> float:
    return math.log(1 + math.exp(-beta * (w - r - penalty * max(0.0, -w))))


def naive_nca(w: float, r: float, beta: float) -> float:
    return -math.log(s(beta * w)) - math.log(1 - s(beta * w)) / 2 - math.log(1 - s(beta * r)) / 2


def naive_bco(w: float, r: float, beta: float) -> float:
    return -math.log(s(beta * w)) - math.log(1 - s(beta * r))


def naive_zero(w: float, r: float, beta: float) -> float:
    return 1 - s(beta * w) + s(beta * r)


def naive_down(w: float, r: float, beta: float) -> float:
    return s(beta * w) + 1 - s(beta * (w - r))


def naive_sppo(w: float, r: float, beta: float) -> float:
    return (w - 0.5 / beta) ** 2 + (r + 0.5 / beta) ** 2


@dataclass(frozen=True)
class AnchoredLoss:
    loss: Callable[..., Tensor]  # takes beta, and what `more` holds
    naive: Callable[..., float]
    more: dict[str, float]
    point: tuple[float, float]
    worked: tuple[float, float, float]  # at that point and β 0.1: the value, ∂/∂Δ_w and ∂/∂Δ_l
    at_reference: float
    far: tuple[float, float, float, float]  # β·Δ at (+, −), (−, +), (+, +) and (−, −) 1,000

    def at(self, beta: float) -> PairLoss:
        return partial(self.loss, beta=beta, **self.more)


LOSSES = {
    "DPOP": AnchoredLoss(
        dpop, naive_dpop, {"penalty": 50.0}, (-0.2, -1.0), (1.255414, -3.646715, 0.071504), LN_2,
        (0, 52_000, LN_2, 50_000),
    ),
    "NCA": AnchoredLoss(
        nca, naive_nca, {}, (0.5, -0.3), (1.366819, -0.023125, 0.024625), 2 * LN_2, (500, 1500, 1000, 1000)
    ),
    "BCO": AnchoredLoss(
        bco_pair, naive_bco, {}, (0.5, -0.3), (1.346719, -0.048750, 0.049250), 2 * LN_2, (0, 2000, 1000, 1000)
    ),
    "APO-zero": AnchoredLoss(
        apo_zero, naive_zero, {}, (0.5, -0.3), (0.980003, -0.024984, 0.024994), 1, (0, 2, 1, 1)
    ),
    "APO-down": AnchoredLoss(
        apo_down, naive_down, {}, (0.5, -0.3), (0.992508, 0.000024, 0.024960), 1, (1, 1, 1.5, 0.5)
    ),
    "SPPO": AnchoredLoss(
        sppo, naive_sppo, {}, (0.5, -0.3), (42.34, -9.0, 9.4), 50,
        (2 * 9995**2, 2 * 10005**2, 9995**2 + 10005**2, 9995**2 + 10005**2),
    ),
}  # fmt: skip
every_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)


@every_loss
def test_worked_values(case: AnchoredLoss) -> None:
    assert_worked(case.at(0.1), case.point, *case.worked)


@every_loss
@pytest.mark.parametrize("beta", [0.01, 0.1, 2.0])
def test_definition_and_gradient(case: AnchoredLoss, beta: float) -> None:
    assert_is(case.at(beta), lambda w, r: case.naive(w, r, beta, **case.more))


@every_loss
def test_loss_where_policy_is_reference(case: AnchoredLoss) -> None:
    assert case.at(0.1)(wide(0.0), wide(0.0)).item() == pytest.approx(case.at_reference, abs=1e-12)


@every_loss
def test_a_common_shift_of_both_log_ratios_counts(case: AnchoredLoss) -> None:
    """DPO would not see it."""
    chosen, rejected = wide(0.5, -2.0, 1.0), wide(-0.3, 1.5, 0.0)
    loss, shifted = case.at(0.1)(chosen, rejected), case.at(0.1)(chosen - 7, rejected - 7)
    assert (loss - shifted).abs().min() > 1e-3


@every_loss
def test_extreme_log_ratios(case: AnchoredLoss) -> None:
    far = torch.tensor([1e4, -1e4, 1e4, -1e4]), torch.tensor([-1e4, 1e4, 1e4, -1e4])
    torch.testing.assert_close(case.at(0.1)(*far), torch.tensor(case.far, dtype=torch.float32))
    assert_finite(case.at(0.1))
    assert_finite(case.at(5.0))


@every_loss
@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_a_beta_that_is_not_positive_is_refused(case: AnchoredLoss, beta: float) -> None:
    with pytest.raises(ValueError, match=rf"beta must be in \(0, inf\), not {beta}"):
        case.at(beta)(torch.zeros(1), torch.zeros(1))


@pytest.mark.parametrize("penalty", [-1.0, math.nan, math.inf])
def test_a_penalty_below_0_is_refused(penalty: float) -> None:
    with pytest.raises(ValueError, match="penalty must be in"):
        dpop(torch.zeros(1), torch.zeros(1), beta=0.1, penalty=penalty)


def test_dpop_is_dpo_until_the_chosen_response_falls_below_the_reference() -> None:
    chosen, rejected = wide(0.5, 0.0, 3.0), wide(-0.3, 1.5, 3.5)
    assert torch.equal(dpop(chosen, rejected, beta=0.4, penalty=9.0), dpo(chosen, rejected, beta=0.4))
    assert torch.equal(dpop(-chosen, rejected, beta=0.4, penalty=0.0), dpo(-chosen, rejected, beta=0.4))
    _, by_chosen, by_rejected = partials(partial(dpop, beta=0.4, penalty=9.0), wide(-0.1), wide(-2.0))
    assert by_chosen.item() == pytest.approx(-10 * by_rejected.item())


@pytest.mark.parametrize(
    ("loss", "closed_form"),
    [
        (nca, lambda p: math.log(2 * p)),
        (bco_pair, lambda p: math.log(p / (1 - p))),
        (sppo, lambda p: p - 0.5),
    ],
    ids=["NCA", "BCO", "SPPO"],
)
def test_the_optimum_of_free_log_ratios(loss: Callable[..., Tensor], closed_form: Callable[[float], float]) -> None:
    """βΔ from the share p of its comparisons that a response wins: ln 2p, logit p, p − ½. Three arms, uniform pairs."""
    beta, reward = 0.5, REWARD.tolist()
    found = beta * minimise(lambda scores: expectation(partial(loss, beta=beta), scores), wide(0.1, 0.2, 0.3))
    shares = [sum(s(reward[i] - reward[j]) for j in range(3) if j != i) / 2 for i in range(3)]
    assert found.tolist() == pytest.approx([closed_form(p) for p in shares], abs=1e-7)


@pytest.mark.parametrize(("p", "optimum"), [(0.6, 0.18232), (0.8, 0.47), (1.0, 0.69315)])
def test_nca_stops_at_ln_2_even_where_the_labels_have_no_noise(p: float, optimum: float) -> None:
    """The chosen response's; at p = 1 the rejected one's has no bound."""
    beta = 0.1
    chosen = wide(optimum / beta - 0.01, math.log(2 * p) / beta, optimum / beta + 0.01)
    assert chosen[1] * beta == pytest.approx(optimum, abs=5e-6)
    _, won, lost = partials(partial(nca, beta=beta), chosen, chosen)
    slope = p * won + (1 - p) * lost
    assert slope[0] < -1e-6
    assert abs(slope[1]) < 1e-15
    assert slope[2] > 1e-6


def test_bco_has_no_optimum_where_the_labels_have_no_noise() -> None:
    steps = wide(0.0, 10.0, 100.0, 300.0)
    losses, by_chosen, by_rejected = partials(partial(bco_pair, beta=0.1), steps, -steps)
    assert bool((losses.diff() < 0).all())
    assert bool((by_chosen < 0).all())
    assert bool((by_rejected > 0).all())


def test_bco_bounds_dpo_from_above() -> None:
    grid = torch.linspace(-30, 30, 25, dtype=torch.float64)
    chosen, rejected = torch.cartesian_prod(grid, grid).unbind(1)
    assert bool((bco_pair(chosen, rejected, beta=0.3) >= dpo(chosen, rejected, beta=0.3)).all())


def test_bco_on_a_pair_is_bco_on_its_two_responses() -> None:
    chosen, rejected = wide(0.5, -2.0), wide(-0.3, 1.5)
    yes, no = torch.tensor([True, True]), torch.tensor([False, False])
    apart = bco(chosen, yes, shift=0.0, beta=0.3) + bco(rejected, no, shift=0.0, beta=0.3)
    torch.testing.assert_close(bco_pair(chosen, rejected, beta=0.3), apart, rtol=0, atol=1e-13)


def test_apo_zero_raises_the_chosen_and_lowers_the_rejected_response_without_end() -> None:
    steps = wide(0.0, 10.0, 100.0, 300.0)
    losses, by_chosen, by_rejected = partials(partial(apo_zero, beta=0.1), steps, -steps)
    assert bool((losses.diff() < 0).all())
    assert losses[-1] < 1e-12
    assert bool((by_chosen < 0).all())
    assert bool((by_rejected > 0).all())


def test_apo_down_lowers_both_responses_without_end_and_the_rejected_one_further() -> None:
    steps = wide(0.0, 10.0, 100.0, 300.0)
    losses, _, by_rejected = partials(partial(apo_down, beta=0.1), -steps, -2 * steps)
    assert bool((losses.diff() < 0).all())
    assert losses[-1] < 1e-12
    assert bool((by_rejected > 0).all())
    # Once the pair is decided, the chosen response is pushed down too.
    _, by_chosen, _ = partials(partial(apo_down, beta=0.1), wide(5.0, -20.0), wide(-30.0, -80.0))
    assert bool((by_chosen > 0).all())


@pytest.mark.parametrize(("p", "direction"), [(0.9, -1), (0.6, -1), (0.4, 1), (0.1, 1)])
def test_noise_gives_apo_zero_no_optimum_either(p: float, direction: int) -> None:
    """A response that wins a share p of its comparisons is pushed one way wherever it is."""
    scores = torch.linspace(-40, 40, 17, dtype=torch.float64)
    _, won, lost = partials(partial(apo_zero, beta=0.1), scores, scores)
    slope = p * won + (1 - p) * lost
    assert bool((slope.sign() == direction).all())
