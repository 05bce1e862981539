from __future__ import annotations

import math

import pytest
import torch

from preflab.losses import clip_fraction, explained_variance

NAN = math.nan


def test_clip_fraction_by_hand() -> None:
    ratio = torch.tensor([[0.7, 0.85, 1.0], [1.15, 1.25, 1.3]])
    every = torch.ones(2, 3, dtype=torch.bool)
    assert clip_fraction(ratio.log(), torch.zeros(2, 3), every, clip=0.2).item() == pytest.approx(3 / 6)
    assert clip_fraction(ratio.log() - 4, torch.full((2, 3), -4.0), every, clip=0.2).item() == pytest.approx(3 / 6)
    assert clip_fraction(ratio.log(), torch.zeros(2, 3), every, clip=0.1).item() == pytest.approx(5 / 6)
    # The upper bound alone moves to 1.28.
    assert clip_fraction(ratio.log(), torch.zeros(2, 3), every, clip=0.2, clip_higher=0.28).item() == pytest.approx(
        2 / 6
    )


def test_before_any_update_nothing_is_clipped() -> None:
    logprobs = torch.tensor([-1.0, -30.0])
    assert clip_fraction(logprobs, logprobs, torch.tensor([True, True]), clip=0.01).item() == 0


def test_extreme_ratios_are_clipped() -> None:
    extreme = torch.tensor([1e4, -1e4, 0.0, 0.0])
    assert clip_fraction(extreme, torch.zeros(4), torch.ones(4, dtype=torch.bool), clip=0.2).item() == 0.5


@pytest.mark.parametrize("filler", [0.0, 9.0, NAN])
@pytest.mark.parametrize("padding", [1, 5])
def test_padding_is_never_read(filler: float, padding: int) -> None:
    first, second = torch.tensor([0.5, 0.0, 0.1]), torch.tensor([0.0, 0.2, 0.4])
    mask = torch.arange(3 + padding) < 3

    def padded(values: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.pad(values, (0, padding), value=filler)

    measured = clip_fraction(padded(first), torch.nn.functional.pad(second, (0, padding)), mask, clip=0.2)
    assert measured.item() == pytest.approx(2 / 3)
    every = torch.ones(3, dtype=torch.bool)
    assert torch.equal(
        explained_variance(padded(first), padded(second), mask), explained_variance(first, second, every)
    )


def test_explained_variance_by_hand() -> None:
    """Returns (1, 2, 3, 4) have variance 1.25."""
    returns, every = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.ones(4, dtype=torch.bool)
    assert explained_variance(returns, returns, every).item() == 1
    assert explained_variance(returns + 10, returns, every).item() == 1  # an offset is no variance
    assert explained_variance(torch.full((4,), 2.5), returns, every).item() == 0
    # Residuals (½, −½, ½, −½) have variance ¼.
    near = torch.tensor([0.5, 2.5, 2.5, 4.5])
    assert explained_variance(near, returns, every).item() == pytest.approx(1 - 0.25 / 1.25)
    # Residuals (2, 4, 6, 8) have variance 5.
    assert explained_variance(-returns, returns, every).item() == pytest.approx(1 - 5 / 1.25)


@pytest.mark.parametrize("count", [1, 3, 7, 1000])
@pytest.mark.parametrize("level", [0.0, 0.1, -1234.1])
def test_returns_that_do_not_vary_explain_nothing(count: int, level: float) -> None:
    """Also where rounding leaves equal floats a variance of 1e-17."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(8))
    assert explained_variance(values, torch.full((count,), level), torch.ones(count, dtype=torch.bool)).item() == 0


def test_diagnostics_are_not_differentiated() -> None:
    leaf, mask = torch.tensor([0.5, 0.1], requires_grad=True), torch.tensor([True, True])
    assert not clip_fraction(leaf, torch.zeros(2), mask, clip=0.2).requires_grad
    assert not explained_variance(leaf, torch.tensor([1.0, 2.0]), mask).requires_grad
    assert not explained_variance(torch.tensor([1.0, 2.0]), leaf, mask).requires_grad
