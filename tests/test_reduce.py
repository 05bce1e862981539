from __future__ import annotations

import math
from typing import get_args

import pytest
import torch
from torch import Tensor

from preflab.losses import aggregate, masked_mean, mean_by, sft, token_logprobs
from preflab.losses.reduce import Aggregation

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


AGGREGATIONS: tuple[Aggregation, ...] = get_args(Aggregation)
# Responses of 1, 2 and 4 tokens with losses that add up to 6, 10 and 8; at most 5 tokens.
TOKEN_LOSSES = [[6.0], [3.0, 7.0], [1.0, 2.0, 4.0, 1.0]]
BY_HAND = {
    "token-mean": 24 / 7,
    "seq-mean-token-mean": (6 + 5 + 2) / 3,
    "seq-mean-token-sum": 24 / 3,
    "seq-mean-token-sum-norm": 24 / 15,
}


def ragged(rows: list[list[float]], width: int, filler: float = 0.0) -> tuple[Tensor, Tensor]:
    values = torch.tensor([row + [filler] * (width - len(row)) for row in rows], dtype=torch.float64)
    return values, torch.arange(width) < torch.tensor([[len(row)] for row in rows])


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize(("width", "filler"), [(4, 0.0), (4, NAN), (9, 5.0)])
def test_aggregations_by_hand(how: Aggregation, width: int, filler: float) -> None:
    assert len(set(BY_HAND.values())) == len(AGGREGATIONS) == len(BY_HAND)
    values, mask = ragged(TOKEN_LOSSES, width, filler)
    assert aggregate(values, mask, how, responses=3, tokens=7, longest=5).item() == pytest.approx(BY_HAND[how])
    turned = aggregate(values.flip(0), mask.flip(0), how, responses=3, tokens=7, longest=5)
    assert turned.item() == pytest.approx(BY_HAND[how])


@pytest.mark.parametrize("how", AGGREGATIONS)
@pytest.mark.parametrize("splits", [[[0], [1], [2]], [[2, 0], [1]]])
def test_an_aggregation_of_micro_batches_is_that_of_the_batch(how: Aggregation, splits: list[list[int]]) -> None:
    """In value and gradient; each micro-batch is as wide as its own longest response."""
    whole, mask = ragged(TOKEN_LOSSES, 4)
    whole.requires_grad_()
    aggregate(whole, mask, how, responses=3, tokens=7, longest=5).backward()
    assert whole.grad is not None
    total = 0.0
    for rows in splits:
        values, mask = ragged([TOKEN_LOSSES[row] for row in rows], max(len(TOKEN_LOSSES[row]) for row in rows))
        values.requires_grad_()
        loss = aggregate(values, mask, how, responses=3, tokens=7, longest=5)
        loss.backward()
        total += loss.item()
        assert values.grad is not None
        assert torch.equal(values.grad[mask], whole.grad[rows, : values.shape[1]][mask])
    assert total == pytest.approx(BY_HAND[how], abs=1e-12)


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_a_response_that_is_masked_whole_counts_nowhere(how: Aggregation) -> None:
    values, mask = ragged([*TOKEN_LOSSES, []], 4, NAN)
    values.requires_grad_()
    loss = aggregate(values, mask, how, responses=3, tokens=7, longest=5)
    assert loss.item() == pytest.approx(BY_HAND[how])
    loss.backward()
    assert values.grad is not None
    assert values.grad[3].tolist() == [0.0] * 4


@pytest.mark.parametrize("how", AGGREGATIONS)
def test_an_aggregation_over_nothing_is_refused(how: Aggregation) -> None:
    with pytest.raises(ValueError, match="positive count"):
        aggregate(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.bool), how, responses=0, tokens=0, longest=2)
