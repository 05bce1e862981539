from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from preflab.losses import gae, leave_one_out, less_group_mean, over_std, overlong_penalty, token_rewards, whiten

NAN, INF = math.nan, math.inf
FILLERS = [0.0, 5.0, NAN, INF]


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def mask_of(lengths: list[int], width: int) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(-1)


def padded(values: Tensor, padding: int, filler: float) -> Tensor:
    return torch.nn.functional.pad(values, (0, padding), value=filler)


# λ: advantages, returns, for rewards (−0.1, 0.05, 0.9), values (0.2, 0.4, 0.6), γ 1.
WORKED = {
    0.0: ([0.1, 0.25, 0.3], [0.3, 0.65, 0.9]),
    0.95: ([0.60825, 0.535, 0.3], [0.80825, 0.935, 0.9]),
    1.0: ([0.65, 0.55, 0.3], [0.85, 0.95, 0.9]),
}


@pytest.mark.parametrize("lam", list(WORKED))
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("filler", FILLERS)
def test_three_tokens_by_hand(lam: float, padding: int, filler: float) -> None:
    rewards = padded(wide(-0.1, 0.05, 0.9).unsqueeze(0), padding, filler)
    values = padded(wide(0.2, 0.4, 0.6).unsqueeze(0), padding, filler)
    advantages, returns = gae(rewards, values, mask_of([3], 3 + padding), lam=lam)
    assert advantages[0].tolist() == pytest.approx(WORKED[lam][0] + [0.0] * padding, abs=1e-12)
    assert returns[0].tolist() == pytest.approx(WORKED[lam][1] + [0.0] * padding, abs=1e-12)


def test_rewards_of_tokens_and_of_the_whole_response_by_hand() -> None:
    """Of a score of 1.2 the tokens earned 0.5, −0.2 and 0.4, so 0.5 is left for the end; β takes 0.1 and gives 0.2."""
    rewards = token_rewards(
        wide(1.2, -1.0),
        wide(-1.0, -2.0, -3.0).expand(2, 3),
        wide(-2.0, -2.0, -1.0).expand(2, 3),
        mask_of([3, 1], 3),
        kl_coefficient=0.1,
        dense=torch.tensor([[0.5, -0.2, 0.4], [-1.0, 0.0, 0.0]], dtype=torch.float64),
    )
    assert rewards[0].tolist() == pytest.approx([0.4, -0.2, 1.1])
    assert rewards[1].tolist() == pytest.approx([-1.1, 0, 0])
    # Â_3 = 1.1 − 0.6; Â_2 = −0.2 + 0.6 − 0.4 + ½·0.5; Â_1 = 0.4 + 0.4 − 0.2 + ½·0.25.
    advantages, returns = gae(rewards[:1], wide(0.2, 0.4, 0.6).unsqueeze(0), mask_of([3], 3), lam=0.5)
    assert advantages[0].tolist() == pytest.approx([0.725, 0.25, 0.5])
    assert returns[0].tolist() == pytest.approx([0.925, 0.65, 1.1])


def test_the_defaults_are_those_usual_for_text() -> None:
    rewards, values = wide(-0.1, 0.05, 0.9).unsqueeze(0), wide(0.2, 0.4, 0.6).unsqueeze(0)
    assert gae(rewards, values, mask_of([3], 3))[0][0].tolist() == pytest.approx(WORKED[0.95][0], abs=1e-12)


def naive_gae(rewards: list[float], values: list[float], discount: float, lam: float) -> list[float]:
    """Â_t = Σ_k (γλ)^k·δ_{t+k}, each sum from its start."""
    n, after = len(rewards), [*values[1:], 0.0]
    delta = [rewards[t] + discount * after[t] - values[t] for t in range(n)]
    return [sum((discount * lam) ** (k - t) * delta[k] for k in range(t, n)) for t in range(n)]


@pytest.mark.parametrize("discount", [0.0, 0.9, 1.0])
@pytest.mark.parametrize("lam", [0.0, 0.5, 0.95, 1.0])
def test_recursion_is_the_sum(discount: float, lam: float) -> None:
    lengths, width = [1, 5, 9, 4], 9
    generator = torch.Generator().manual_seed(11)
    rewards, values = torch.randn(2, 4, width, dtype=torch.float64, generator=generator)
    advantages, returns = gae(rewards, values, mask_of(lengths, width), discount=discount, lam=lam)
    for row, n in enumerate(lengths):
        expected = naive_gae(rewards[row, :n].tolist(), values[row, :n].tolist(), discount, lam)
        assert advantages[row, :n].tolist() == pytest.approx(expected, abs=1e-12)
        expected_returns = [a + v for a, v in zip(expected, values[row, :n].tolist(), strict=True)]
        assert returns[row, :n].tolist() == pytest.approx(expected_returns, abs=1e-12)
        assert not advantages[row, n:].any()
        assert not returns[row, n:].any()


def test_a_perfect_value_leaves_no_advantage() -> None:
    """V_t = the reward still to come: every residual is 0, for any λ."""
    rewards = wide(0.3, -0.2, 1.0, 0.5).unsqueeze(0)
    values = wide(1.6, 1.3, 1.5, 0.5).unsqueeze(0)
    for lam in (0.0, 0.7, 1.0):
        advantages, returns = gae(rewards, values, mask_of([4], 4), lam=lam)
        torch.testing.assert_close(advantages, torch.zeros_like(rewards), rtol=0, atol=1e-12)
        torch.testing.assert_close(returns, values, rtol=0, atol=1e-12)


def test_batch_mates_do_not_meet() -> None:
    generator = torch.Generator().manual_seed(12)
    rewards, values = torch.randn(2, 3, 6, dtype=torch.float64, generator=generator)
    mask = mask_of([6, 2, 4], 6)
    together, _ = gae(rewards, values, mask)
    for row in range(3):
        alone, _ = gae(rewards[row : row + 1], values[row : row + 1], mask[row : row + 1])
        assert torch.equal(alone[0], together[row])


def test_advantages_are_data() -> None:
    rewards, values = torch.zeros(1, 2, requires_grad=True), torch.ones(1, 2, requires_grad=True)
    advantages, returns = gae(rewards, values, mask_of([2], 2))
    assert not advantages.requires_grad
    assert not returns.requires_grad


@pytest.mark.parametrize(
    ("discount", "lam"), [(-0.1, 0.9), (1.01, 0.9), (1.0, -0.1), (1.0, 1.5), (NAN, 0.9), (1.0, NAN)]
)
def test_a_discount_or_lambda_outside_its_range_is_refused(discount: float, lam: float) -> None:
    with pytest.raises(ValueError, match="discount and lam"):
        gae(torch.zeros(1, 1), torch.zeros(1, 1), mask_of([1], 1), discount=discount, lam=lam)


def test_token_rewards_by_hand() -> None:
    logprobs = torch.tensor([[-1.0, -2.0, -0.5], [-3.0, NAN, NAN]], dtype=torch.float64)
    reference = torch.tensor([[-1.5, -1.0, -0.5], [-1.0, NAN, NAN]], dtype=torch.float64)
    rewards = token_rewards(wide(10.0, -4.0), logprobs, reference, mask_of([3, 1], 3), kl_coefficient=0.1)
    # −0.1·(0.5, −1, 0), and the score at the last token; −0.1·(−2) − 4.
    expected = wide(-0.05, 0.1, 10.0, -3.8, 0.0, 0.0).view(2, 3)
    torch.testing.assert_close(rewards, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("padding", [0, 3])
@pytest.mark.parametrize("filler", FILLERS)
def test_rewards_of_a_response_add_up_to_its_penalised_score(beta: float, padding: int, filler: float) -> None:
    lengths, width = [1, 4, 7], 7
    generator = torch.Generator().manual_seed(13)
    logprobs, reference = -torch.rand(2, 3, width, dtype=torch.float64, generator=generator)
    scores, mask = wide(1.0, -2.0, 0.5), mask_of(lengths, width + padding)
    rewards = token_rewards(
        scores, padded(logprobs, padding, filler), padded(reference, padding, filler), mask, kl_coefficient=beta
    )
    for row, n in enumerate(lengths):
        penalty = beta * sum((logprobs[row, t] - reference[row, t]).item() for t in range(n))
        assert rewards[row].sum().item() == pytest.approx(scores[row].item() - penalty, abs=1e-12)
        assert rewards[row, n - 1].item() == pytest.approx(
            scores[row].item() - beta * (logprobs[row, n - 1] - reference[row, n - 1]).item(), abs=1e-12
        )
        assert not rewards[row, n:].any()


def test_at_the_reference_the_score_is_the_only_reward() -> None:
    logprobs = torch.tensor([[-1.0, -2.0]])
    rewards = token_rewards(torch.tensor([3.0]), logprobs, logprobs, mask_of([2], 2), kl_coefficient=0.5)
    assert rewards.tolist() == [[0.0, 3.0]]


def test_a_response_without_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match="no place for its score"):
        token_rewards(torch.zeros(2), torch.zeros(2, 2), torch.zeros(2, 2), mask_of([2, 0], 2), kl_coefficient=0.1)


def test_a_negative_kl_coefficient_is_refused() -> None:
    """It would pay the policy for leaving the reference."""
    with pytest.raises(ValueError, match="kl_coefficient"):
        token_rewards(torch.zeros(1), torch.zeros(1, 2), torch.zeros(1, 2), mask_of([2], 2), kl_coefficient=-0.1)


def test_extreme_log_ratios_give_finite_rewards() -> None:
    rewards = token_rewards(
        torch.zeros(1), torch.tensor([[1e4, -1e4]]), torch.zeros(1, 2), mask_of([2], 2), kl_coefficient=0.5
    )
    assert rewards.tolist() == [[-5e3, 5e3]]


def test_whitened_values() -> None:
    """By the biased variance; the unbiased one would give 0.789630, 0.334791, −1.124421."""
    whitened = whiten(wide(*WORKED[0.95][0]), torch.ones(3, dtype=torch.bool))
    assert whitened.tolist() == pytest.approx([0.967114, 0.410041, -1.377155], abs=1e-6)


def test_whitened_moments() -> None:
    generator = torch.Generator().manual_seed(14)
    values, mask = 3 + 2 * torch.randn(4, 9, dtype=torch.float64, generator=generator), mask_of([1, 9, 3, 6], 9)
    kept = whiten(values, mask)[mask]
    assert kept.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert kept.pow(2).mean().item() == pytest.approx(1.0, abs=1e-7)
    # Rewards keep their mean, so that a positive one stays a reason to go on.
    unshifted = whiten(values, mask, shift_mean=False)[mask]
    assert unshifted.mean().item() == pytest.approx(values[mask].mean().item(), abs=1e-12)
    assert unshifted.var(correction=0).item() == pytest.approx(1.0, abs=1e-7)


def test_whitening_forgets_offset_and_scale() -> None:
    values, mask = wide(0.3, -1.0, 2.5, 0.0), torch.tensor([True, True, True, False])
    torch.testing.assert_close(whiten(7 * values - 40, mask), whiten(values, mask), rtol=0, atol=1e-7)
    torch.testing.assert_close(whiten(-values, mask), -whiten(values, mask), rtol=0, atol=1e-12)


@pytest.mark.parametrize("shift_mean", [True, False])
@pytest.mark.parametrize("padding", [1, 6])
@pytest.mark.parametrize("filler", FILLERS)
def test_padding_never_reaches_whitened_values(shift_mean: bool, padding: int, filler: float) -> None:
    values, mask = torch.tensor([[0.5, -1.0, 3.0], [2.0, filler, filler]], dtype=torch.float64), mask_of([3, 1], 3)
    tight = whiten(wide(0.5, -1.0, 3.0, 2.0), torch.ones(4, dtype=torch.bool), shift_mean=shift_mean)
    whitened = whiten(padded(values, padding, filler), padded(mask, padding, False), shift_mean=shift_mean)
    torch.testing.assert_close(whitened[:, :3][mask], tight, rtol=0, atol=1e-12)
    assert not whitened[~padded(mask, padding, False)].any()


def test_padding_never_reaches_the_gradient_of_whitened_values() -> None:
    mask = torch.tensor([True, True, True, False])
    gradients = []
    for filler in (0.0, NAN):
        values = wide(0.5, -1.0, 3.0, filler).requires_grad_()
        whiten(values, mask)[0].backward()
        gradients.append(values.grad if values.grad is not None else torch.zeros(4))
    assert torch.equal(gradients[0], gradients[1])


def test_equal_values_whiten_to_nothing() -> None:
    assert whiten(torch.full((4,), 2.0), torch.ones(4, dtype=torch.bool)).tolist() == [0.0] * 4
    assert whiten(torch.tensor([3.0, NAN]), torch.tensor([True, False])).tolist() == [0.0, 0.0]
    assert whiten(torch.tensor([NAN]), torch.tensor([False])).tolist() == [0.0]


def test_group_advantages_of_one_success_in_four() -> None:
    rewards = wide(1.0, 0.0, 0.0, 0.0)
    centred = less_group_mean(rewards, group=4)
    assert centred.tolist() == [0.75, -0.25, -0.25, -0.25]
    scaled = over_std(centred, rewards, group=4)
    assert scaled.tolist() == pytest.approx([1.5, -0.5, -0.5, -0.5], abs=1e-5)  # n would give 1.73205, −0.57735
    exact = [value / (0.5 + 1e-4) for value in (0.75, -0.25, -0.25, -0.25)]
    assert over_std(centred, rewards, group=4, epsilon=1e-4).tolist() == pytest.approx(exact, abs=1e-12)
    assert leave_one_out(rewards, group=4).tolist() == pytest.approx([1.0, -1 / 3, -1 / 3, -1 / 3], abs=1e-12)


@pytest.mark.parametrize("group", [2, 3, 6])
def test_group_advantages_match_plain_loops(group: int) -> None:
    rewards = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(15))
    centred, left_out = less_group_mean(rewards, group=group), leave_one_out(rewards, group=group)
    scaled = over_std(left_out, rewards, group=group, epsilon=0.01)
    values = rewards.tolist()
    for i in range(12):
        mine = values[i // group * group : (i // group + 1) * group]
        mean = sum(mine) / group
        others = (sum(mine) - values[i]) / (group - 1)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in mine) / (group - 1))
        assert centred[i].item() == pytest.approx(values[i] - mean, abs=1e-12)
        assert left_out[i].item() == pytest.approx(values[i] - others, abs=1e-12)
        assert scaled[i].item() == pytest.approx((values[i] - others) / (deviation + 0.01), abs=1e-12)


def test_groups_do_not_meet_and_keep_their_order() -> None:
    first, second = wide(1.0, 2.0, 4.0), wide(-30.0, 5.0, 7.0)
    together = leave_one_out(torch.cat([first, second]), group=3)
    assert torch.equal(together, torch.cat([leave_one_out(first, group=3), leave_one_out(second, group=3)]))
    turned = leave_one_out(first.flip(0), group=3)
    torch.testing.assert_close(turned, leave_one_out(first, group=3).flip(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("value", [0.1, -3.7, 1e6])
@pytest.mark.parametrize("group", [3, 7])
def test_a_group_of_equal_rewards_has_no_advantage_at_all(value: float, group: int) -> None:
    """In float32 the mean of seven times 0.1 is not 0.1; over a deviation of 1e-9 the rest would count."""
    rewards = torch.cat([torch.full((group,), value), torch.arange(group, dtype=torch.float32)])
    for advantages in (less_group_mean(rewards, group=group), leave_one_out(rewards, group=group)):
        assert advantages[:group].tolist() == [0.0] * group
        assert over_std(advantages, rewards, group=group)[:group].tolist() == [0.0] * group
        assert advantages[group:].abs().min() < advantages[group:].abs().max()


@pytest.mark.parametrize("group", [0, 1, 4])
def test_a_group_that_is_none_is_refused(group: int) -> None:
    for function in (less_group_mean, leave_one_out):
        with pytest.raises(ValueError, match="at least two responses"):
            function(torch.zeros(6), group=group)
    with pytest.raises(ValueError, match="at least two responses"):
        over_std(torch.zeros(6), torch.zeros(6), group=group)


def test_overlong_responses_pay_by_the_token() -> None:
    """DAPO's numbers: 20,480 tokens at most, the last 4,096 of them at a growing price."""
    lengths = torch.tensor([1, 16_384, 16_385, 18_432, 20_479, 20_480])
    penalties = overlong_penalty(lengths, longest=20_480, buffer=4_096, factor=1.0)
    assert penalties.tolist() == pytest.approx([0, 0, -1 / 4_096, -0.5, -4_095 / 4_096, -1], abs=1e-6)
    halved = overlong_penalty(lengths, longest=20_480, buffer=4_096, factor=0.5)
    torch.testing.assert_close(halved, penalties / 2)


@pytest.mark.parametrize("buffer", [0, -1, 9])
def test_an_overlong_buffer_outside_the_response_is_refused(buffer: int) -> None:
    with pytest.raises(ValueError, match="buffer"):
        overlong_penalty(torch.tensor([3]), longest=8, buffer=buffer, factor=1.0)
