from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finite_differences import central_differences
from preflab.losses import masked_sum, token_logprobs

NAN, INF = math.nan, math.inf


def naive_logprob(logits: list[float], token: int, temperature: float = 1.0) -> float:
    return logits[token] / temperature - math.log(sum(math.exp(logit / temperature) for logit in logits))


def drawn(*shape: int, seed: int = 0, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("temperature", [0.5, 0.7, 1.0, 3.0])
def test_token_logprobs_match_the_definition(temperature: float) -> None:
    logits, tokens = drawn(2, 3, 5), torch.tensor([[0, 4, 2], [3, 3, 1]])
    logprobs = token_logprobs(logits, tokens, temperature=temperature)
    for row in range(2):
        for t in range(3):
            expected = naive_logprob(logits[row, t].tolist(), int(tokens[row, t]), temperature)
            assert logprobs[row, t].item() == pytest.approx(expected, abs=1e-12)


def test_probabilities_add_up_to_one() -> None:
    logits = drawn(7).expand(7, 7)
    assert token_logprobs(logits, torch.arange(7)).exp().sum().item() == pytest.approx(1.0, abs=1e-12)


def test_logits_of_known_probabilities() -> None:
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    assert token_logprobs(logits, torch.tensor([1])).item() == pytest.approx(math.log(0.2), abs=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_gradient_is_one_hot_minus_softmax_over_temperature(temperature: float) -> None:
    tokens = torch.tensor([1, 4])
    logits = drawn(2, 5, seed=1).requires_grad_()
    token_logprobs(logits, tokens, temperature=temperature).sum().backward()
    one_hot = torch.nn.functional.one_hot(tokens, 5)
    expected = (one_hot - (logits.detach() / temperature).softmax(-1)) / temperature
    torch.testing.assert_close(logits.grad, expected, rtol=0, atol=1e-12)

    def function(point: Tensor) -> Tensor:
        return token_logprobs(point, tokens, temperature=temperature)

    torch.testing.assert_close(logits.grad, central_differences(function, logits.detach()), rtol=0, atol=1e-8)
    assert torch.autograd.gradcheck(function, (logits,))


def test_a_common_shift_of_the_logits_changes_nothing() -> None:
    logits, tokens = drawn(4, 6), torch.tensor([0, 1, 2, 5])
    shifted = logits + torch.tensor([[1.0], [-50.0], [300.0], [0.0]], dtype=torch.float64)
    torch.testing.assert_close(token_logprobs(shifted, tokens), token_logprobs(logits, tokens), rtol=0, atol=1e-12)


def test_low_precision_logits_are_widened() -> None:
    """bfloat16 has three decimal digits: log-probabilities are computed from its values, not in it."""
    logits, tokens = drawn(3, 50).to(torch.bfloat16), torch.tensor([0, 7, 49])
    logprobs = token_logprobs(logits, tokens)
    assert logprobs.dtype == torch.float32
    torch.testing.assert_close(logprobs.double(), token_logprobs(logits.double(), tokens), rtol=0, atol=2e-6)
    assert token_logprobs(logits.half(), tokens).dtype == torch.float32
    assert token_logprobs(logits.double(), tokens).dtype == torch.float64


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, 0.0, -1e4], [-1e4, 1e4, 0.0]], requires_grad=True)
    logprobs = token_logprobs(logits, torch.tensor([0, 0]))
    assert logprobs.tolist() == [0.0, -2e4]
    logprobs.sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == [[0.0, 0.0, 0.0], [1.0, -1.0, 0.0]]


def test_excluded_tokens_have_no_share() -> None:
    """−∞ is how a sampler rules a token out: the others behave as if it were not there, in value and gradient."""
    logits = torch.tensor([[0.3, -INF, 1.0]], dtype=torch.float64, requires_grad=True)
    without = torch.tensor([[0.3, 1.0]], dtype=torch.float64, requires_grad=True)
    value, expected = token_logprobs(logits, torch.tensor([2])), token_logprobs(without, torch.tensor([1]))
    assert value.item() == pytest.approx(expected.item(), abs=1e-12)
    value.backward()
    expected.backward()
    assert logits.grad is not None
    assert without.grad is not None
    torch.testing.assert_close(logits.grad[:, [0, 2]], without.grad, rtol=0, atol=1e-12)
    assert logits.grad[0, 1] == 0
    assert token_logprobs(logits, torch.tensor([1])).item() == -INF


@pytest.mark.parametrize("temperature", [0.0, -1.0])
def test_a_temperature_that_is_not_positive_is_refused(temperature: float) -> None:
    """At T = −1 the least likely token would be the likeliest, without a word."""
    with pytest.raises(ValueError, match="temperature"):
        token_logprobs(torch.zeros(1, 2), torch.tensor([0]), temperature=temperature)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    for token in (3, -100):
        with pytest.raises((IndexError, RuntimeError)):
            token_logprobs(torch.zeros(1, 3), torch.tensor([token]))


def test_masked_sum_by_hand() -> None:
    values = torch.tensor([[-1.0, -2.0, -4.0], [-8.0, -16.0, -32.0]])
    mask = torch.tensor([[True, True, False], [False, True, False]])
    assert masked_sum(values, mask).tolist() == [-3.0, -16.0]
    assert masked_sum(values, torch.zeros_like(mask)).tolist() == [0.0, 0.0]
    # Over the last axis, however many come before it.
    assert masked_sum(values[0], mask[0]).item() == -3.0
    assert masked_sum(values[:, None], mask[:, None]).tolist() == [[-3.0], [-16.0]]


@pytest.mark.parametrize("filler", [0.0, 7.0, NAN, INF, -INF])
@pytest.mark.parametrize("padding", [1, 5])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_never_reaches_a_masked_sum(filler: float, padding: int, side: str) -> None:
    values, pads = drawn(2, 3), torch.full((2, padding), filler, dtype=torch.float64)
    parts = [pads, values] if side == "left" else [values, pads]
    padded = torch.cat(parts, -1).requires_grad_()
    mask = torch.cat([torch.full_like(part, part is values, dtype=torch.bool) for part in parts], -1)
    total = masked_sum(padded, mask)
    torch.testing.assert_close(total, values.sum(-1), rtol=0, atol=1e-12)
    total.sum().backward()
    assert padded.grad is not None
    assert torch.equal(padded.grad, mask.double())
