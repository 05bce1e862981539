from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finite_differences import central_differences
from preflab.losses import bradley_terry


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def naive(chosen: float, rejected: float, margin: float = 0.0, centring: float = 0.0) -> float:
    return math.log(1 + math.exp(-(chosen - rejected - margin))) + centring * (chosen + rejected) ** 2


def test_worked_values() -> None:
    chosen, rejected = wide(1.2).requires_grad_(), wide(0.4).requires_grad_()
    loss = bradley_terry(chosen, rejected)
    assert loss.item() == pytest.approx(0.371101, abs=5e-7)
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(-0.310026, abs=5e-7)
    assert rejected.grad.item() == pytest.approx(0.310026, abs=5e-7)
    assert bradley_terry(chosen, rejected, margin=0.5).item() == pytest.approx(0.554355, abs=5e-7)


@pytest.mark.parametrize("margin", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("centring", [0.0, 0.01, 0.3])
def test_definition_and_gradient(margin: float, centring: float) -> None:
    chosen, rejected = wide(1.2, -0.7, 0.0, 3.0), wide(0.4, 0.9, 0.0, -2.5)
    loss = bradley_terry(chosen, rejected, margin=margin, centring=centring)
    expected = [naive(w, r, margin, centring) for w, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert loss.tolist() == pytest.approx(expected, abs=1e-12)

    weight = torch.sigmoid(-(chosen - rejected - margin))
    pull = 2 * centring * (chosen + rejected)
    by_chosen = central_differences(lambda w: bradley_terry(w, rejected, margin=margin, centring=centring), chosen)
    by_rejected = central_differences(lambda r: bradley_terry(chosen, r, margin=margin, centring=centring), rejected)
    torch.testing.assert_close(by_chosen, -weight + pull, rtol=0, atol=1e-8)
    torch.testing.assert_close(by_rejected, weight + pull, rtol=0, atol=1e-8)
    inputs = (chosen.requires_grad_(), rejected.requires_grad_())
    assert torch.autograd.gradcheck(lambda w, r: bradley_terry(w, r, margin=margin, centring=centring), inputs)


def test_equal_scores_cost_ln_2() -> None:
    scores = torch.tensor([0.0, 3.0, -8.0])
    torch.testing.assert_close(bradley_terry(scores, scores), torch.full((3,), math.log(2)))


def test_a_margin_of_its_own_for_each_pair() -> None:
    chosen, rejected, margin = wide(1.0, 1.0), wide(0.0, 0.0), wide(0.0, 2.0)
    expected = [naive(1.0, 0.0), naive(1.0, 0.0, 2.0)]
    assert bradley_terry(chosen, rejected, margin=margin).tolist() == pytest.approx(expected, abs=1e-12)


def test_scores_are_free_up_to_a_constant_unless_centred() -> None:
    chosen, rejected = wide(1.2, -0.7), wide(0.4, 0.9)
    loss = bradley_terry(chosen, rejected)
    torch.testing.assert_close(bradley_terry(chosen + 5, rejected + 5), loss, rtol=0, atol=1e-12)
    centred = bradley_terry(chosen + 5, rejected + 5, centring=0.1)
    assert bool((centred > bradley_terry(chosen, rejected, centring=0.1)).all())


def test_the_optimum_is_the_logit_of_the_preference() -> None:
    """Three responses with P(i≻j) = σ(r_i − r_j), every pair in expectation: the scores are r up to a constant."""
    reward = wide(1.0, 0.0, -1.0)
    first, second = torch.tensor([0, 0, 1]), torch.tensor([1, 2, 2])
    preferred = torch.sigmoid(reward[first] - reward[second])
    scores = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [scores], max_iter=200, tolerance_grad=1e-13, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        won = bradley_terry(scores[first], scores[second])
        lost = bradley_terry(scores[second], scores[first])
        loss = (preferred * won + (1 - preferred) * lost).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    torch.testing.assert_close(scores.detach() - scores.detach().mean(), reward, rtol=0, atol=1e-7)


def test_extreme_scores_stay_finite() -> None:
    chosen = torch.tensor([1e4, -1e4], requires_grad=True)
    loss = bradley_terry(chosen, torch.zeros(2))
    assert loss.tolist() == [0.0, 1e4]
    loss.sum().backward()
    assert chosen.grad is not None
    assert chosen.grad.tolist() == [0.0, -1.0]


def test_a_negative_centring_is_refused() -> None:
    """It would push scores to ±∞: the loss has no lower bound."""
    with pytest.raises(ValueError, match="centring"):
        bradley_terry(torch.zeros(1), torch.zeros(1), centring=-0.1)
