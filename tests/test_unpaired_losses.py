from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import Tensor

from bandit import minimise, wide
from finite_differences import central_differences
from preflab.losses import bco, kto

LN_2 = math.log(2)
LOGRATIO = (0.5, -2.0, 0.0, 3.0, -0.3, -4.0)
YES = torch.ones(6, dtype=torch.bool)
MIXED = torch.tensor([True, False, True, False, False, True])


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def gradient(losses: Tensor, logratio: Tensor) -> Tensor:
    (slope,) = torch.autograd.grad(losses.sum(), logratio)
    return slope


@pytest.mark.parametrize(("desirable", "logratio", "slope"), [(True, 0.5, -0.024990), (False, -0.3, 0.024990)])
def test_worked_values_of_kto(desirable: bool, logratio: float, slope: float) -> None:
    point = wide(logratio).requires_grad_()
    loss = kto(point, torch.tensor([desirable]), reference_point=0.1, beta=0.1)
    assert loss.item() == pytest.approx(0.490001, abs=5e-7)
    assert gradient(loss, point).item() == pytest.approx(slope, abs=5e-7)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("reference_point", [0.0, 1.7])
@pytest.mark.parametrize(("desirable_weight", "undesirable_weight"), [(1.0, 1.0), (1.3, 0.4)])
def test_definition_and_gradient_of_kto(
    beta: float, reference_point: float, desirable_weight: float, undesirable_weight: float
) -> None:
    def loss(logratio: Tensor) -> Tensor:
        return kto(
            logratio,
            MIXED,
            reference_point=reference_point,
            beta=beta,
            desirable_weight=desirable_weight,
            undesirable_weight=undesirable_weight,
        )

    expected = [
        desirable_weight * (1 - sigmoid(beta * (x - reference_point)))
        if desirable
        else undesirable_weight * (1 - sigmoid(beta * (reference_point - x)))
        for x, desirable in zip(LOGRATIO, MIXED.tolist(), strict=True)
    ]
    point = wide(*LOGRATIO).requires_grad_()
    assert loss(point).tolist() == pytest.approx(expected, abs=1e-13)
    differences = central_differences(loss, wide(*LOGRATIO), step=1e-5)
    torch.testing.assert_close(gradient(loss(point), point), differences, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("beta", [0.1, 2.0])
@pytest.mark.parametrize("shift", [0.0, 0.8, -1.5])
def test_definition_and_gradient_of_bco(beta: float, shift: float) -> None:
    def loss(logratio: Tensor) -> Tensor:
        return bco(logratio, MIXED, shift=shift, beta=beta)

    expected = [
        -math.log(sigmoid(beta * x - shift) if desirable else 1 - sigmoid(beta * x - shift))
        for x, desirable in zip(LOGRATIO, MIXED.tolist(), strict=True)
    ]
    point = wide(*LOGRATIO).requires_grad_()
    assert loss(point).tolist() == pytest.approx(expected, abs=1e-12)
    differences = central_differences(loss, wide(*LOGRATIO), step=1e-5)
    torch.testing.assert_close(gradient(loss(point), point), differences, rtol=1e-7, atol=1e-9)


def test_losses_where_policy_is_reference() -> None:
    zero, labels = wide(0.0, 0.0), torch.tensor([True, False])
    halves = kto(zero, labels, reference_point=0.0, beta=0.1, desirable_weight=1.2, undesirable_weight=0.8)
    assert halves.tolist() == pytest.approx([0.6, 0.4], abs=1e-15)
    assert bco(zero, labels, shift=0.0, beta=0.1).tolist() == pytest.approx([LN_2, LN_2], abs=1e-15)


def test_kto_sees_the_log_ratio_from_the_reference_point_alone() -> None:
    near = kto(wide(*LOGRATIO), MIXED, reference_point=0.0, beta=0.3)
    far = kto(wide(*LOGRATIO) + 5, MIXED, reference_point=5.0, beta=0.3)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-14)
    assert (kto(wide(*LOGRATIO) + 5, MIXED, reference_point=0.0, beta=0.3) - near).abs().min() > 0.05


def test_bco_sees_the_reward_from_its_shift_alone() -> None:
    near = bco(wide(*LOGRATIO), MIXED, shift=0.0, beta=0.3)
    far = bco(wide(*LOGRATIO) + 5, MIXED, shift=1.5, beta=0.3)
    torch.testing.assert_close(far, near, rtol=0, atol=1e-14)


def test_the_other_label_is_the_rest_of_1_in_kto_and_of_the_margin_in_bco() -> None:
    """σ(−z) = 1 − σ(z) and −log σ(−z) = −log σ(z) + z."""
    logratio = wide(*LOGRATIO)
    both = kto(logratio, YES, reference_point=0.4, beta=0.3) + kto(logratio, ~YES, reference_point=0.4, beta=0.3)
    torch.testing.assert_close(both, torch.ones_like(both), rtol=0, atol=1e-14)
    difference = bco(logratio, ~YES, shift=0.4, beta=0.3) - bco(logratio, YES, shift=0.4, beta=0.3)
    torch.testing.assert_close(difference, 0.3 * logratio - 0.4, rtol=0, atol=1e-14)


def test_no_gradient_flows_through_the_reference_point() -> None:
    """Which depends on the policy, as a rule."""
    logratio = wide(*LOGRATIO).requires_grad_()
    attached = kto(logratio, MIXED, reference_point=logratio.pow(2).mean(), beta=0.3)
    constant = kto(logratio, MIXED, reference_point=logratio.pow(2).mean().item(), beta=0.3)
    assert torch.equal(attached, constant)
    assert torch.equal(gradient(attached, logratio), gradient(constant, logratio))


def test_gains_and_losses_saturate_in_kto() -> None:
    logratio = torch.tensor([-1e3, -30.0, 0.0, 30.0, 1e3], requires_grad=True)
    slope = gradient(kto(logratio, torch.ones(5, dtype=torch.bool), reference_point=0.0, beta=1.0), logratio)
    assert slope[2] == -0.25
    assert slope.abs()[[0, 1, 3, 4]].max() < 1e-12


@pytest.mark.parametrize(
    ("p", "desirable_weight", "direction"),
    [(0.6, 1.0, -1), (0.4, 1.0, 1), (0.5, 1.0, 0), (0.4, 1.6, -1), (0.4, 1.5, 0)],
)
def test_kto_has_no_finite_optimum(p: float, desirable_weight: float, direction: int) -> None:
    """A response desirable with probability p goes one way wherever it is: up where p·λ_D > (1 − p)·λ_U."""
    logratio = torch.linspace(-40, 40, 17, dtype=torch.float64).requires_grad_()
    yes = torch.ones(17, dtype=torch.bool)
    loss = partial(kto, logratio, reference_point=1.0, beta=0.1, desirable_weight=desirable_weight)
    expected = p * loss(yes) + (1 - p) * loss(~yes)
    slope = gradient(expected, logratio)
    if direction == 0:
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=1e-15)
    else:
        assert bool((slope.sign() == direction).all())
        assert bool((direction * expected.diff() > 0).all())


@pytest.mark.parametrize("shift", [0.0, 0.7, -2.0])
def test_the_optimum_of_bco_is_the_logit_of_the_label(shift: float) -> None:
    """βΔ = δ + logit p, one response for each p."""
    p, beta = wide(0.2, 0.5, 0.9), 0.4
    yes = torch.ones(3, dtype=torch.bool)

    def expected(logratio: Tensor) -> Tensor:
        loss = partial(bco, logratio, shift=shift, beta=beta)
        return (p * loss(yes) + (1 - p) * loss(~yes)).sum()

    found = beta * minimise(expected, wide(0.1, 0.2, 0.3))
    assert found.tolist() == pytest.approx([shift + math.log(x / (1 - x)) for x in p.tolist()], abs=1e-7)


def test_extreme_log_ratios() -> None:
    logratio = torch.tensor([1e4, -1e4, 1e4, -1e4], requires_grad=True)
    labels = torch.tensor([True, True, False, False])
    for loss, expected in (
        (kto(logratio, labels, reference_point=1e3, beta=5.0), [0.0, 1.0, 1.0, 0.0]),
        (bco(logratio, labels, shift=2.0, beta=0.1), [0.0, 1002.0, 998.0, 0.0]),
    ):
        assert loss.dtype == torch.float32
        torch.testing.assert_close(loss, torch.tensor(expected))
        assert bool(gradient(loss, logratio).isfinite().all())


@pytest.mark.parametrize("point", [-0.1, -1e-9, math.nan, math.inf])
def test_a_reference_point_below_0_is_refused(point: float) -> None:
    """A KL is never negative; an estimate of one may be, and is to be set to 0."""
    for given in (point, torch.tensor(point)):
        with pytest.raises(ValueError, match=r"reference_point must be in \[0, inf\)"):
            kto(torch.zeros(1), torch.tensor([True]), reference_point=given, beta=0.1)


@pytest.mark.parametrize("name", ["beta", "desirable_weight", "undesirable_weight"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_coefficient_of_kto_that_is_not_positive_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in \(0, inf\)"):
        kto(torch.zeros(1), torch.tensor([True]), reference_point=0.0, **{"beta": 0.1, name: value})


@pytest.mark.parametrize(("name", "value"), [("beta", 0.0), ("beta", -1.0), ("shift", math.nan), ("shift", math.inf)])
def test_a_bad_coefficient_of_bco_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"^{name} must be in"):
        bco(torch.zeros(1), torch.tensor([True]), **{"beta": 0.1, "shift": 0.0, name: value})
