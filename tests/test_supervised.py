from __future__ import annotations

import math

import pytest
import torch

from preflab.losses import mean_by, sft, token_logprobs

NAN, INF = math.nan, math.inf


def test_cross_entropy_by_hand() -> None:
    """Two tokens of probability ½ and ¼, and one that is padding."""
    logprobs = torch.tensor([[0.5, 0.25, 0.1]]).log()
    loss = sft(logprobs, torch.tensor([[True, True, False]]))
    torch.testing.assert_close(loss, torch.tensor([[math.log(2), math.log(4), 0.0]]))


def test_gradient_through_the_logits_is_softmax_minus_one_hot() -> None:
    """Per token over the global count, exactly 0 where the mask is False; the loss is torch's own cross-entropy."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, 4, 5, dtype=torch.float64, generator=generator).requires_grad_()
    tokens = torch.tensor([[1, 0, 4, 4], [2, 2, 3, 0]])
    mask = torch.tensor([[True, True, True, False], [True, False, False, False]])
    loss = mean_by(sft(token_logprobs(logits, tokens), mask), int(mask.sum()))
    labels = tokens.masked_fill(~mask, -100)
    expected = torch.nn.functional.cross_entropy(logits.detach().flatten(0, 1), labels.flatten())
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    loss.backward()
    one_hot = torch.nn.functional.one_hot(tokens, 5)
    softmax_minus_one_hot = (logits.detach().softmax(-1) - one_hot) / 4
    torch.testing.assert_close(logits.grad, softmax_minus_one_hot * mask.unsqueeze(-1), rtol=0, atol=1e-12)


def test_the_optimum_is_the_empirical_distribution() -> None:
    """Six observed tokens, (3, 2, 1) of a kind: the gradient is 0 at their shares, and the loss is their entropy."""
    observed = torch.tensor([[0, 0, 0, 1, 1, 2]])
    mask = torch.ones_like(observed, dtype=torch.bool)
    shares = torch.tensor([3.0, 2.0, 1.0], dtype=torch.float64) / 6
    logits = shares.log().requires_grad_()
    loss = mean_by(sft(token_logprobs(logits.expand(1, 6, 3), observed), mask), 6)
    assert loss.item() == pytest.approx(-sum(p * math.log(p) for p in (3 / 6, 2 / 6, 1 / 6)), abs=1e-12)
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-12)
    worse = torch.tensor([0.4, 0.4, 0.2], dtype=torch.float64).log()
    assert mean_by(sft(token_logprobs(worse.expand(1, 6, 3), observed), mask), 6) > loss + 1e-3


@pytest.mark.parametrize("filler", [0.0, -3.0, NAN, -INF])
@pytest.mark.parametrize("padding", [0, 1, 7])
def test_padding_is_never_read(filler: float, padding: int) -> None:
    logprobs = torch.tensor([[-0.5, -2.0, -1.0], [-4.0, filler, filler]])
    padded = torch.nn.functional.pad(logprobs, (0, padding), value=filler).requires_grad_()
    mask = torch.arange(3 + padding) < torch.tensor([[3], [1]])
    loss = sft(padded, mask)
    expected = torch.tensor([[0.5, 2.0, 1.0], [4.0, 0.0, 0.0]])
    assert torch.equal(loss, torch.nn.functional.pad(expected, (0, padding)))
    loss.sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad, -mask.float())


def test_an_unlikely_token_has_a_finite_loss() -> None:
    logits = torch.tensor([[[1e4, -1e4]]], requires_grad=True)
    loss = sft(token_logprobs(logits, torch.tensor([[1]])), torch.tensor([[True]]))
    assert loss.item() == 2e4
    loss.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[[1.0, -1.0]]]
