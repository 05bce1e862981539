from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preflab.losses import masked_mean, mean_by, sft, token_logprobs

NAN = math.nan
# Eight responses from 1 to 9 tokens: a mean of means weighs the short ones too much.
LENGTHS = [1, 9, 2, 7, 3, 1, 5, 4]


def test_a_mean_by_hand() -> None:
    assert mean_by(torch.tensor([1.0, 2.0, 6.0]), 3).item() == 3.0
    assert mean_by(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), 4).item() == 2.0
    assert mean_by(torch.tensor([1.0, 2.0]), 8).item() == 0.375  # a share of a larger step
    assert mean_by(torch.tensor([7.0]), 1).item() == 7.0


@pytest.mark.parametrize("count", [0, -1, NAN])
def test_a_count_that_is_not_positive_is_refused(count: float) -> None:
    with pytest.raises(ValueError, match="positive count"):
        mean_by(torch.tensor([1.0]), count)


def gradients(splits: list[list[int]], *, extra_padding: int = 0) -> tuple[float, list[Tensor]]:
    """Loss and gradients of one optimiser step on eight ragged rows, cut into micro-batches as given."""
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(6, (length + 1,), generator=generator) for length in LENGTHS]
    embed = torch.randn(6, 4, dtype=torch.float64, generator=generator).requires_grad_()
    head = torch.randn(4, 6, dtype=torch.float64, generator=generator).requires_grad_()
    total = 0.0
    for rows in splits:
        width = max(LENGTHS[row] for row in rows) + extra_padding
        batch = torch.stack([torch.nn.functional.pad(tokens[row], (0, width - LENGTHS[row])) for row in rows])
        mask = torch.arange(width) < torch.tensor([[LENGTHS[row]] for row in rows])
        logprobs = token_logprobs(torch.tanh(embed[batch[:, :-1]]) @ head, batch[:, 1:])
        loss = mean_by(sft(logprobs, mask), sum(LENGTHS))
        loss.backward()
        total += loss.item()
    assert embed.grad is not None
    assert head.grad is not None
    return total, [embed.grad, head.grad]


@pytest.mark.parametrize(
    "splits", [[[row] for row in range(8)], [[0, 1, 2, 3], [4, 5, 6, 7]], [[1], [7, 0, 3, 2, 6], [5, 4]]]
)
@pytest.mark.parametrize("extra_padding", [0, 3])
def test_micro_batches_are_the_batch(splits: list[list[int]], extra_padding: int) -> None:
    whole, expected = gradients([list(range(8))])
    parts, measured = gradients(splits, extra_padding=extra_padding)
    assert parts == pytest.approx(whole, abs=1e-12)
    for one, eight in zip(expected, measured, strict=True):
        assert one.abs().max() > 1e-2
        torch.testing.assert_close(eight, one, rtol=0, atol=1e-12)


def test_a_masked_mean_reads_the_mask_alone() -> None:
    values = torch.tensor([[1.0, NAN], [3.0, 5.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    mean = masked_mean(values, mask)
    assert mean.item() == 3.0
    mean.backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([[1.0, 0.0], [1.0, 1.0]]) / 3)


@pytest.mark.parametrize("padding", [1, 6])
def test_padding_does_not_dilute_a_masked_mean(padding: int) -> None:
    values, mask = torch.tensor([[2.0, 4.0], [9.0, 0.0]]), torch.tensor([[True, True], [True, False]])
    padded = torch.nn.functional.pad(values, (0, padding), value=NAN)
    assert masked_mean(padded, torch.nn.functional.pad(mask, (0, padding))) == masked_mean(values, mask) == 5.0


def test_a_mean_over_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="every row masked"):
        masked_mean(torch.tensor([1.0]), torch.tensor([False]))
