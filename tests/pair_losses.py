"""What every loss on pairs is put through."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from bandit import wide
from finite_differences import central_differences

PairLoss = Callable[[Tensor, Tensor], Tensor]

# Chosen and rejected, margins of both signs, away from every kink.
CHOSEN = (0.5, -2.0, 0.01, 3.0, -0.2, -4.0)
REJECTED = (-0.3, 1.5, 0.02, 2.9, -1.0, -4.5)


def partials(loss: PairLoss, chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss of each pair, and its derivatives by the chosen and the rejected input."""
    chosen, rejected = chosen.clone().requires_grad_(), rejected.clone().requires_grad_()
    losses = loss(chosen, rejected)
    losses.sum().backward()
    assert losses.shape == chosen.shape
    assert chosen.grad is not None
    assert rejected.grad is not None
    return losses.detach(), chosen.grad, rejected.grad


def assert_worked(
    loss: PairLoss, point: tuple[float, float], value: float, by_chosen: float, by_rejected: float
) -> None:
    """Six decimals, as worked out elsewhere."""
    found = partials(loss, wide(point[0]), wide(point[1]))
    assert [tensor.item() for tensor in found] == pytest.approx([value, by_chosen, by_rejected], abs=5.1e-7)


def assert_is(
    loss: PairLoss,
    naive: Callable[[float, float], float],
    chosen: tuple[float, ...] = CHOSEN,
    rejected: tuple[float, ...] = REJECTED,
) -> None:
    """The value is that of plain arithmetic, the gradient that of central differences."""
    w, r = wide(*chosen), wide(*rejected)
    losses, by_chosen, by_rejected = partials(loss, w, r)
    expected = [naive(*pair) for pair in zip(chosen, rejected, strict=True)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-11, abs=1e-11)
    differences = central_differences(lambda x: loss(x, r), w, step=1e-5)
    torch.testing.assert_close(by_chosen, differences, rtol=1e-6, atol=1e-8)
    differences = central_differences(lambda x: loss(w, x), r, step=1e-5)
    torch.testing.assert_close(by_rejected, differences, rtol=1e-6, atol=1e-8)


def assert_finite(loss: PairLoss, ends: tuple[float, ...] = (-1e4, -100.0, 0.0, 100.0, 1e4)) -> None:
    """In float32, value and gradient, whichever way the two responses have gone."""
    chosen, rejected = torch.tensor(list(itertools.product(ends, ends))).unbind(1)
    assert chosen.dtype == torch.float32
    for tensor in partials(loss, chosen, rejected):
        assert tensor.dtype == torch.float32
        assert bool(tensor.isfinite().all())
