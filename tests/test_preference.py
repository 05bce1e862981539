from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from bandit import REFERENCE, REWARD, minimise, optimal_policy, wide
from finite_differences import central_differences
from pair_losses import PairLoss, assert_finite, assert_is, assert_worked, partials
from preflab.losses import (
    aot,
    dpo,
    exo,
    hinge,
    ipo,
    kl_full,
    masked_sum,
    robust_dpo,
    same_rank,
    token_logprobs,
)

LN_2 = math.log(2)
# β: π*, its expected reward, its KL in nats.
OPTIMA = {
    0.25: ([0.988999, 0.010868, 0.000133], 0.988866, 0.637549),
    0.5: ([0.918672, 0.074597, 0.006730], 0.911942, 0.432205),
    1.0: ([0.784399, 0.173139, 0.042463], 0.741936, 0.192245),
    2.0: ([0.661783, 0.240835, 0.097382], 0.564400, 0.062529),
}


def naive(chosen: float, rejected: float, beta: float, smoothing: float = 0.0) -> float:
    p = 1 / (1 + math.exp(-beta * (chosen - rejected)))
    return -(1 - smoothing) * math.log(p) - smoothing * math.log(1 - p)


@pytest.mark.parametrize(
    ("smoothing", "value", "slope"), [(0.0, 0.653947, -0.048001), (0.1, 0.661947, -0.038001)], ids=["DPO", "cDPO"]
)
def test_worked_values(smoothing: float, value: float, slope: float) -> None:
    chosen, rejected = wide(0.5).requires_grad_(), wide(-0.3).requires_grad_()
    loss = dpo(chosen, rejected, beta=0.1, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(value, abs=5e-7)
    loss.sum().backward()
    assert chosen.grad is not None
    assert rejected.grad is not None
    assert chosen.grad.item() == pytest.approx(slope, abs=5e-7)
    assert rejected.grad.item() == pytest.approx(-slope, abs=5e-7)


@pytest.mark.parametrize("beta", [0.05, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.49])
def test_definition_and_gradient(beta: float, smoothing: float) -> None:
    chosen, rejected = wide(0.5, -2.0, 0.0, 3.0), wide(-0.3, 1.5, 0.0, 2.9)

    def loss(w: Tensor, r: Tensor) -> Tensor:
        return dpo(w, r, beta=beta, label_smoothing=smoothing)

    expected = [naive(w, r, beta, smoothing) for w, r in zip(chosen.tolist(), rejected.tolist(), strict=True)]
    assert loss(chosen, rejected).tolist() == pytest.approx(expected, abs=1e-12)
    slope = beta * (torch.sigmoid(beta * (chosen - rejected)) - (1 - smoothing))
    by_chosen = central_differences(lambda w: loss(w, rejected), chosen)
    by_rejected = central_differences(lambda r: loss(chosen, r), rejected)
    torch.testing.assert_close(by_chosen, slope, rtol=0, atol=1e-8)
    torch.testing.assert_close(by_rejected, -slope, rtol=0, atol=1e-8)
    assert torch.autograd.gradcheck(loss, (chosen.requires_grad_(), rejected.requires_grad_()))


@pytest.mark.parametrize("beta", [0.01, 0.1, 5.0])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_loss_is_ln_2_where_policy_is_reference(beta: float, smoothing: float, dtype: torch.dtype) -> None:
    """From logits in the precision of the model: the log-probabilities are in float32 whatever that is."""
    generator = torch.Generator().manual_seed(0)
    logits = (4 * torch.randn(6, 40, 30, generator=generator)).to(dtype)
    tokens = torch.randint(30, (6, 40), generator=generator)
    mask = torch.arange(40) < torch.tensor([[1], [40], [7], [12], [33], [2]])
    policy = masked_sum(token_logprobs(logits, tokens), mask)
    reference = masked_sum(token_logprobs(logits.clone(), tokens), mask)
    logratio = policy - reference
    loss = dpo(logratio[:3], logratio[3:], beta=beta, label_smoothing=smoothing)
    torch.testing.assert_close(loss.double(), torch.full((3,), LN_2, dtype=torch.float64), rtol=0, atol=1e-7)


def tiny_gpt2(seed: int) -> GPT2LMHeadModel:
    config = GPT2Config(vocab_size=13, n_positions=12, n_embd=8, n_layer=1, n_head=2)
    torch.manual_seed(seed)
    model = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # GPT-2's own start is so near to uniform that gradients vanish
            parameter.add_(0.5 * torch.randn_like(parameter))
    return model


def response_logprob(model: GPT2LMHeadModel, prompt: list[int], response: list[int]) -> Tensor:
    """log π(y|x) of one sequence without padding, term by term."""
    logits = model(torch.tensor([prompt + response])).logits[0]
    terms = [logits[len(prompt) + t - 1].log_softmax(-1)[token] for t, token in enumerate(response)]
    return torch.stack(terms).sum()


def test_gradient_through_a_language_model() -> None:
    """∇loss = −β·σ(r̂_l − r̂_w)·(∇log π_w − ∇log π_l) (arXiv 2305.18290, §4), each factor computed on its own."""
    beta = 0.3
    policy, reference = tiny_gpt2(seed=1), tiny_gpt2(seed=2)
    pairs = [([1, 2, 3], [4, 5, 6, 0], [7, 0]), ([8], [9, 0], [10, 11, 12, 3, 0]), ([2, 2], [5, 0], [5, 6, 0])]

    expected = [torch.zeros_like(parameter) for parameter in policy.parameters()]
    for prompt, chosen, rejected in pairs:
        rewards, gradients = [], []
        for response in (chosen, rejected):
            logprob = response_logprob(policy, prompt, response)
            gradients.append(torch.autograd.grad(logprob, list(policy.parameters())))
            rewards.append(beta * (logprob.item() - response_logprob(reference, prompt, response).item()))
        weight = 1 / (1 + math.exp(-(rewards[1] - rewards[0])))
        for total, of_chosen, of_rejected in zip(expected, *gradients, strict=True):
            total -= beta * weight * (of_chosen - of_rejected)

    # The same as one padded batch, the chosen responses first.
    rows = [(p, w) for p, w, _ in pairs] + [(p, r) for p, _, r in pairs]
    width = max(len(prompt) + len(response) for prompt, response in rows)
    tokens = torch.tensor([[*prompt, *response, *[0] * width][:width] for prompt, response in rows])
    mask = torch.tensor([[len(p) <= t < len(p) + len(y) for t in range(1, width)] for p, y in rows])

    def batch_logprob(model: GPT2LMHeadModel) -> Tensor:
        return masked_sum(token_logprobs(model(tokens).logits[:, :-1], tokens[:, 1:]), mask)

    with torch.no_grad():
        reference_logprob = batch_logprob(reference)
    logratio = batch_logprob(policy) - reference_logprob
    dpo(logratio[:3], logratio[3:], beta=beta).sum().backward()
    assert max(gradient.abs().max().item() for gradient in expected) > 0.1
    for parameter, gradient in zip(policy.parameters(), expected, strict=True):
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-10)


@pytest.mark.parametrize("beta", list(OPTIMA))
@pytest.mark.parametrize("pair_weights", [[1 / 3, 1 / 3, 1 / 3], [0.9, 0.02, 0.08]], ids=["uniform", "skewed"])
def test_the_optimum_is_the_tilted_reference(beta: float, pair_weights: list[float]) -> None:
    """To 1e-6 in probability, whichever pairs are seen more often; the table holds six decimals."""
    table, reward, kl_nats = OPTIMA[beta]
    policy = optimal_policy(partial(dpo, beta=beta), pair_weights=wide(*pair_weights))
    tilted = REFERENCE * torch.exp(REWARD / beta)
    torch.testing.assert_close(policy, tilted / tilted.sum(), rtol=0, atol=1e-6)
    assert policy.tolist() == pytest.approx(table, abs=2e-6)
    assert (policy * REWARD).sum().item() == pytest.approx(reward, abs=2e-6)
    assert kl_full(policy.log(), REFERENCE.log()).item() == pytest.approx(kl_nats, abs=5e-6)
    # On the exact frontier E r − β·KL = β·ln Z.
    assert reward - beta * kl_nats == pytest.approx(beta * math.log(tilted.sum()), abs=2e-6)


def test_the_optimum_with_six_arms() -> None:
    generator = torch.Generator().manual_seed(5)
    reference = torch.randn(6, dtype=torch.float64, generator=generator).softmax(-1)
    reward = torch.randn(6, dtype=torch.float64, generator=generator)
    weights = torch.rand(15, dtype=torch.float64, generator=generator) + 0.05
    tilted = reference * torch.exp(reward / 0.5)
    policy = optimal_policy(partial(dpo, beta=0.5), reference, reward, pair_weights=weights / weights.sum())
    torch.testing.assert_close(policy, tilted / tilted.sum(), rtol=0, atol=1e-6)


def test_label_smoothing_gives_certain_labels_a_finite_optimum() -> None:
    """βh* = ln((1 − ε)/ε), 2.197 at ε 0.1; without smoothing the loss falls for ever."""
    stop = math.log(0.9 / 0.1)
    assert stop == pytest.approx(2.197, abs=5e-4)
    h = wide(stop - 1e-3, stop, stop + 1e-3).div(0.1).requires_grad_()
    dpo(h, torch.zeros_like(h), beta=0.1, label_smoothing=0.1).sum().backward()
    assert h.grad is not None
    assert h.grad[0] < -1e-6
    assert abs(h.grad[1]) < 1e-14
    assert h.grad[2] > 1e-6

    h = wide(0.0, 10.0, 100.0, 300.0).requires_grad_()
    loss = dpo(h, torch.zeros_like(h), beta=0.1)
    loss.sum().backward()
    assert bool((loss.diff() < 0).all())
    assert h.grad is not None
    assert bool((h.grad < 0).all())


@pytest.mark.parametrize(("p", "smoothing"), [(0.8, 0.0), (0.8, 0.1), (0.3, 0.2), (0.5, 0.4)])
def test_the_optimum_of_two_arms_with_noisy_labels(p: float, smoothing: float) -> None:
    """βh* = logit((1 − ε)p + ε(1 − p))."""
    beta, share = 0.5, (1 - smoothing) * p + smoothing * (1 - p)
    h = wide(math.log(share / (1 - share)) / beta).requires_grad_()
    won = dpo(h, torch.zeros_like(h), beta=beta, label_smoothing=smoothing)
    lost = dpo(torch.zeros_like(h), h, beta=beta, label_smoothing=smoothing)
    (p * won + (1 - p) * lost).sum().backward()
    assert h.grad is not None
    assert abs(h.grad.item()) < 1e-14


def test_only_the_difference_of_the_log_ratios_counts() -> None:
    chosen, rejected = wide(0.5, -2.0), wide(-0.3, 1.5)
    loss = dpo(chosen, rejected, beta=0.7, label_smoothing=0.1)
    shifted = dpo(chosen + 40, rejected + 40, beta=0.7, label_smoothing=0.1)
    torch.testing.assert_close(shifted, loss, rtol=0, atol=1e-12)
    # β and the log-ratios have one unit: half the one is half the other.
    torch.testing.assert_close(dpo(chosen, rejected, beta=0.2), dpo(chosen / 2, rejected / 2, beta=0.4))


def test_swapping_the_responses_costs_the_margin() -> None:
    """−log σ(−z) = −log σ(z) + z."""
    chosen, rejected = wide(0.5, -2.0), wide(-0.3, 1.5)
    right, wrong = dpo(chosen, rejected, beta=0.7), dpo(rejected, chosen, beta=0.7)
    torch.testing.assert_close(wrong, right + 0.7 * (chosen - rejected), rtol=0, atol=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_extreme_log_ratios_stay_finite(smoothing: float) -> None:
    chosen = torch.tensor([1e4, -1e4, 1e4], requires_grad=True)
    rejected = torch.tensor([-1e4, 1e4, 1e4], requires_grad=True)
    loss = dpo(chosen, rejected, beta=1.0, label_smoothing=smoothing)
    torch.testing.assert_close(loss, torch.tensor([smoothing * 2e4, (1 - smoothing) * 2e4, LN_2]))
    loss.sum().backward()
    expected = torch.tensor([smoothing, smoothing - 1, smoothing - 0.5])
    torch.testing.assert_close(chosen.grad, expected)
    torch.testing.assert_close(rejected.grad, -expected)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan])
def test_a_beta_that_is_not_positive_is_refused(beta: float) -> None:
    with pytest.raises(ValueError, match="beta"):
        dpo(torch.zeros(1), torch.zeros(1), beta=beta)


@pytest.mark.parametrize("smoothing", [-0.01, 0.5, 0.9, math.nan])
def test_a_label_smoothing_outside_its_range_is_refused(smoothing: float) -> None:
    with pytest.raises(ValueError, match="label_smoothing"):
        dpo(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=smoothing)


def test_shapes_are_checked_in_tests() -> None:
    """Else a row of pairs against a column would broadcast into a square of losses. Also shows that the hook is on."""
    with pytest.raises(Exception, match="rejected_logratio"):
        dpo(torch.zeros(2), torch.zeros(3), beta=0.1)
    with pytest.raises(Exception, match="chosen_logratio"):
        dpo(torch.zeros(2, 1), torch.zeros(2), beta=0.1)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def naive_robust(h: float, beta: float, smoothing: float) -> float:
    p = sigmoid(beta * h)
    return ((1 - smoothing) * -math.log(p) + smoothing * math.log(1 - p)) / (1 - 2 * smoothing)


def naive_exo(h: float, beta: float, smoothing: float) -> float:
    q = sigmoid(beta * h)
    return q * math.log(q / (1 - smoothing)) + (1 - q) * math.log((1 - q) / smoothing)


@dataclass(frozen=True)
class MarginLoss:
    """A loss of h alone."""

    loss: PairLoss
    naive: Callable[[float], float]
    value: float  # at chosen 0.5, rejected −0.3
    slope: float  # ∂/∂h there
    at_reference: float
    far_right: float  # at h = 2e4
    far_wrong: float  # at h = −2e4


LOSSES = {
    "DPO": MarginLoss(
        partial(dpo, beta=0.1), lambda h: naive(h, 0.0, 0.1), 0.653947, -0.048001, LN_2, 0.0, 2e3
    ),
    "cDPO": MarginLoss(
        partial(dpo, beta=0.1, label_smoothing=0.1),
        lambda h: naive(h, 0.0, 0.1, 0.1), 0.661947, -0.038001, LN_2, 200.0, 1.8e3,
    ),
    "rDPO": MarginLoss(
        partial(robust_dpo, beta=0.1, label_smoothing=0.1),
        lambda h: naive_robust(h, 0.1, 0.1), 0.643947, -0.060501, LN_2, -250.0, 2250.0,
    ),
    "IPO": MarginLoss(
        partial(ipo, tau=0.1), lambda h: (h - 5) * (h - 5), 17.64, -8.4, 25.0, 19995.0**2, 20005.0**2
    ),
    "hinge": MarginLoss(
        partial(hinge, beta=0.1), lambda h: 1 - 0.1 * h if h < 10 else 0.0, 0.92, -0.1, 1.0, 0.0, 2001.0
    ),
    "EXO": MarginLoss(
        partial(exo, beta=0.1, label_smoothing=1e-3),
        lambda h: naive_exo(h, 0.1, 1e-3), 2.623969, -0.170396, 2.761231, -math.log(0.999), math.log(1000),
    ),
}  # fmt: skip
every_loss = pytest.mark.parametrize("case", LOSSES.values(), ids=LOSSES)


@every_loss
def test_worked_values_of_every_loss(case: MarginLoss) -> None:
    assert_worked(case.loss, (0.5, -0.3), case.value, case.slope, -case.slope)


def test_worked_values_of_means_per_token() -> None:
    """Log-ratios of 5 and of 3 tokens, divided by their number: by the sums the slopes are scaled by it."""

    def means(loss: PairLoss) -> PairLoss:
        return lambda w, r: loss(w / 5, r / 3)

    assert_worked(means(partial(ipo, tau=0.1)), (0.5, -0.3), 23.04, -1.92, 3.2)
    assert_worked(means(partial(dpo, beta=5.0)), (0.5, -0.3), 0.313262, -0.268941, 0.448236)


@every_loss
def test_definition_and_gradient_of_every_loss(case: MarginLoss) -> None:
    assert_is(case.loss, lambda w, r: case.naive(w - r))


@pytest.mark.parametrize(
    ("loss", "naive_loss"),
    [
        (partial(robust_dpo, beta=2.0, label_smoothing=0.3), lambda h: naive_robust(h, 2.0, 0.3)),
        (partial(ipo, tau=2.0), lambda h: (h - 0.25) ** 2),
        (partial(hinge, beta=1.5), lambda h: max(0.0, 1 - 1.5 * h)),
        (partial(exo, beta=2.0, label_smoothing=0.2), lambda h: naive_exo(h, 2.0, 0.2)),
    ],
    ids=["rDPO", "IPO", "hinge", "EXO"],
)
def test_definition_and_gradient_at_other_settings(loss: PairLoss, naive_loss: Callable[[float], float]) -> None:
    assert_is(loss, lambda w, r: naive_loss(w - r))


@every_loss
def test_loss_where_policy_is_reference(case: MarginLoss) -> None:
    assert case.loss(wide(0.0), wide(0.0)).item() == pytest.approx(case.at_reference, abs=5e-7)


@every_loss
def test_a_common_shift_of_both_log_ratios_changes_nothing(case: MarginLoss) -> None:
    chosen, rejected = wide(0.5, -2.0, 1.0), wide(-0.3, 1.5, 0.0)
    loss = case.loss(chosen, rejected)
    torch.testing.assert_close(case.loss(chosen - 7, rejected - 7), loss, rtol=0, atol=1e-11)
    assert bool((case.loss(chosen - 7, rejected) - loss).abs().min() > 1e-3)


@every_loss
def test_extreme_margins(case: MarginLoss) -> None:
    far = torch.tensor([1e4, -1e4])
    torch.testing.assert_close(case.loss(far, -far), torch.tensor([case.far_right, case.far_wrong]))
    assert_finite(case.loss)


@pytest.mark.parametrize("value", [0.0, -0.1, math.nan, math.inf])
@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("beta", lambda w, r, x: dpo(w, r, beta=x)),
        ("beta", lambda w, r, x: robust_dpo(w, r, beta=x, label_smoothing=0.1)),
        ("tau", lambda w, r, x: ipo(w, r, tau=x)),
        ("beta", lambda w, r, x: hinge(w, r, beta=x)),
        ("beta", lambda w, r, x: exo(w, r, beta=x, label_smoothing=0.1)),
        ("beta", lambda w, r, x: aot(w, r, beta=x)),
    ],
    ids=["dpo", "robust_dpo", "ipo", "hinge", "exo", "aot"],
)
def test_a_coefficient_that_is_not_positive_is_refused(
    name: str, loss: Callable[[Tensor, Tensor, float], Tensor], value: float
) -> None:
    with pytest.raises(ValueError, match=rf"{name} must be in \(0, inf\), not {value}"):
        loss(torch.zeros(1), torch.zeros(1), value)


@pytest.mark.parametrize(
    ("loss", "value"),
    [(robust_dpo, -0.01), (robust_dpo, 0.5), (robust_dpo, math.nan), (exo, 0.0), (exo, 0.5), (exo, math.nan)],
)
def test_a_label_smoothing_that_robust_dpo_or_exo_cannot_take_is_refused(
    loss: Callable[..., Tensor], value: float
) -> None:
    with pytest.raises(ValueError, match="label_smoothing must be in"):
        loss(torch.zeros(1), torch.zeros(1), beta=0.1, label_smoothing=value)


def slope_of(loss: Callable[[Tensor], Tensor], h: float) -> float:
    """d loss/dh by autograd."""
    point = wide(h).requires_grad_()
    loss(point).sum().backward()
    assert point.grad is not None
    return point.grad.item()


def two_arms(loss: PairLoss, p: float) -> Callable[[Tensor], Tensor]:
    """The expectation over the label where the first wins with probability p, by the margin h of the first."""
    return lambda h: p * loss(h, torch.zeros_like(h)) + (1 - p) * loss(torch.zeros_like(h), h)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_robust_dpo_is_unbiased_under_flipped_labels(smoothing: float) -> None:
    """(1 − ε)·L(h) + ε·L(−h) is DPO's loss of the true label."""
    h, zero = wide(0.8, -3.0, 0.0, 40.0), wide(0.0, 0.0, 0.0, 0.0)
    robust = partial(robust_dpo, beta=0.7, label_smoothing=smoothing)
    mean = (1 - smoothing) * robust(h, zero) + smoothing * robust(zero, h)
    torch.testing.assert_close(mean, dpo(h, zero, beta=0.7), rtol=0, atol=1e-13)


def test_robust_dpo_finds_the_policy_of_clean_labels_where_dpo_does_not() -> None:
    """With a fifth of the labels flipped."""
    tilted = REFERENCE * torch.exp(REWARD / 0.5)
    clean = tilted / tilted.sum()
    robust = optimal_policy(partial(robust_dpo, beta=0.5, label_smoothing=0.2), flipped=0.2)
    torch.testing.assert_close(robust, clean, rtol=0, atol=1e-6)
    plain = optimal_policy(partial(dpo, beta=0.5), flipped=0.2)
    assert (plain - clean).abs().max() > 0.1


def test_robust_dpo_has_no_optimum_on_clean_labels() -> None:
    """Its loss falls below every bound, and its gradient never goes below β·ε/(1 − 2ε)."""
    h = wide(0.0, 10.0, 1e2, 1e3, 1e5)
    losses, slope, _ = partials(partial(robust_dpo, beta=0.1, label_smoothing=0.1), h, torch.zeros_like(h))
    assert bool((losses.diff() < 0).all())
    assert losses[-1] < -1e3
    assert bool((slope <= -0.1 * 0.1 / 0.8 + 1e-15).all())


@pytest.mark.parametrize(("p", "margin"), [(1.0, 5 / 3), (0.8, 1.0), (0.5, 0.0), (0.3, -2 / 3)])
def test_the_optimum_of_ipo_with_two_arms(p: float, margin: float) -> None:
    """h* = (2p − 1)/(2τ), finite where the labels have no noise; with a uniform reference π(y₁) = σ(h*)."""
    expected = two_arms(partial(ipo, tau=0.3), p)
    h = minimise(lambda h: expected(h).sum(), wide(0.3))
    assert h.item() == pytest.approx(margin, abs=1e-9)

    def of_policy(logits: Tensor) -> Tensor:
        logratio = logits.log_softmax(-1) - math.log(0.5)
        return expected((logratio[0] - logratio[1]).unsqueeze(0)).sum()

    policy = minimise(of_policy, wide(0.0, 0.0)).softmax(-1)
    assert policy[0].item() == pytest.approx(sigmoid(margin), abs=1e-9)


def test_the_optimum_of_ipo_with_three_arms() -> None:
    """h*_ij = (p(i≻μ) − p(j≻μ))/τ under uniform pairs, an arm against itself counted ½."""
    tau = 0.5
    policy = optimal_policy(partial(ipo, tau=tau))
    assert policy.tolist() == pytest.approx([0.634543, 0.253199, 0.112259], abs=1e-6)
    against_uniform = [sum(sigmoid(a - b) for b in REWARD.tolist()) / 3 for a in REWARD.tolist()]
    logratio = (policy / REFERENCE).log().tolist()
    for i, j in itertools.combinations(range(3), 2):
        expected = (against_uniform[i] - against_uniform[j]) / tau
        assert logratio[i] - logratio[j] == pytest.approx(expected, abs=1e-7)
    assert logratio[0] - logratio[1] == pytest.approx(0.407904, abs=1e-6)
    assert logratio[0] - logratio[2] == pytest.approx(0.815808, abs=1e-6)


@pytest.mark.parametrize("p", [0.51, 0.8, 1.0, 0.2])
def test_the_optimum_of_the_hinge_is_one_margin_whatever_the_preference(p: float) -> None:
    """βh* = ±1."""
    beta, side = 0.25, 1 if p > 0.5 else -1
    expected = two_arms(partial(hinge, beta=beta), p)
    assert side * slope_of(expected, side * (1 / beta - 1e-6)) < 0
    beyond = side * slope_of(expected, side * (1 / beta + 1e-6))
    assert beyond == 0 if p == 1 else beyond > 0
    at_optimum = expected(wide(side / beta))
    assert bool((expected(torch.linspace(-9, 9, 181, dtype=torch.float64)) >= at_optimum - 1e-12).all())


def test_a_pair_that_the_hinge_has_finished_has_no_gradient() -> None:
    _, slope, _ = partials(partial(hinge, beta=0.1), wide(9.9, 10.1), wide(0.0, 0.0))
    assert slope.tolist() == [-0.1, 0.0]


@pytest.mark.parametrize("p", [1.0, 0.8, 0.5, 0.3])
def test_the_optimum_of_exo_with_hard_labels(p: float) -> None:
    """βh* = (2p − 1)·ln((1 − ε)/ε); at p = 1 the loss there is 0."""
    smoothing, beta = 0.1, 0.5
    expected = two_arms(partial(exo, beta=beta, label_smoothing=smoothing), p)
    optimum = (2 * p - 1) * math.log((1 - smoothing) / smoothing) / beta
    assert slope_of(expected, optimum - 1e-3) < -1e-6
    assert abs(slope_of(expected, optimum)) < 1e-14
    assert slope_of(expected, optimum + 1e-3) > 1e-6
    if p == 1:
        assert expected(wide(optimum)).item() == pytest.approx(0, abs=1e-14)


def test_exo_lets_go_of_a_pair_that_is_far_wrong_and_dpo_does_not() -> None:
    h, zero = wide(-5.0, -20.0, -50.0), wide(0.0, 0.0, 0.0)
    _, of_exo, _ = partials(partial(exo, beta=1.0, label_smoothing=1e-3), h, zero)
    _, of_dpo, _ = partials(partial(dpo, beta=1.0), h, zero)
    assert bool((of_exo.diff() > 0).all())
    assert -1e-18 < of_exo[-1] < 0
    assert of_dpo[-1] == -1


POLICY_MARGIN = wide(3.0, -1.0, 2.0, 0.5, 7.0)
REFERENCE_MARGIN = wide(0.3, 5.0, -4.0, 1.1, -0.2)


def test_worked_values_of_optimal_transport() -> None:
    """Sorted, 1 against 0 and 3 against 2: the second pair is compared with the reference's first."""
    policy = wide(3.0, 1.0).requires_grad_()
    loss = aot(policy, same_rank(policy, wide(0.0, 2.0)), beta=1.0)
    loss.sum().backward()
    assert loss.tolist() == pytest.approx([0.313262, 0.313262], abs=5e-7)
    assert policy.grad is not None
    assert policy.grad.tolist() == pytest.approx([-0.268941, -0.268941], abs=5e-7)


def test_each_pair_meets_the_reference_margin_of_its_rank() -> None:
    at_rank = same_rank(POLICY_MARGIN, REFERENCE_MARGIN)
    assert at_rank.tolist() == [1.1, -4.0, 0.3, -0.2, 5.0]
    assert same_rank(wide(1.0, 1.0, 0.0), wide(5.0, 6.0, 7.0)).tolist() == [6.0, 7.0, 5.0]


def test_optimal_transport_is_the_sorted_form() -> None:
    beta = 0.4
    by_hand = sum(
        math.log(1 + math.exp(-beta * (a - b)))
        for a, b in zip(sorted(POLICY_MARGIN.tolist()), sorted(REFERENCE_MARGIN.tolist()), strict=True)
    )
    policy = POLICY_MARGIN.clone().requires_grad_()
    losses = aot(policy, same_rank(policy, REFERENCE_MARGIN), beta=beta)
    assert losses.sum().item() == pytest.approx(by_hand, abs=1e-12)
    losses.sum().backward()

    def sorted_form(margin: Tensor) -> Tensor:
        return torch.log1p(torch.exp(-beta * (margin.sort().values - REFERENCE_MARGIN.sort().values)))

    assert policy.grad is not None
    torch.testing.assert_close(policy.grad, central_differences(sorted_form, POLICY_MARGIN), rtol=0, atol=1e-8)


def test_which_pair_has_which_reference_margin_does_not_matter_to_optimal_transport() -> None:
    order = torch.tensor([3, 0, 4, 1, 2])
    shuffled = aot(POLICY_MARGIN, same_rank(POLICY_MARGIN, REFERENCE_MARGIN[order]), beta=0.4)
    losses = aot(POLICY_MARGIN, same_rank(POLICY_MARGIN, REFERENCE_MARGIN), beta=0.4)
    assert torch.equal(shuffled, losses)
    of_dpo = dpo(POLICY_MARGIN, REFERENCE_MARGIN, beta=0.4).sum()
    assert abs(dpo(POLICY_MARGIN, REFERENCE_MARGIN[order], beta=0.4).sum() - of_dpo) > 0.01
    # Pairs in another order are the same losses in that order.
    assert torch.equal(
        aot(POLICY_MARGIN[order], same_rank(POLICY_MARGIN[order], REFERENCE_MARGIN), beta=0.4), losses[order]
    )


def test_ranks_of_micro_batches_are_not_those_of_the_batch() -> None:
    whole = same_rank(POLICY_MARGIN, REFERENCE_MARGIN)
    parts = [same_rank(POLICY_MARGIN[part], REFERENCE_MARGIN[part]) for part in (slice(0, 2), slice(2, 5))]
    assert not torch.equal(torch.cat(parts), whole)


def test_optimal_transport_costs_ln_2_where_policy_is_reference() -> None:
    losses = aot(POLICY_MARGIN, same_rank(POLICY_MARGIN, POLICY_MARGIN), beta=0.4)
    torch.testing.assert_close(losses, torch.full_like(losses, LN_2), rtol=0, atol=1e-12)


def test_no_gradient_flows_through_the_ranks() -> None:
    policy, reference = POLICY_MARGIN.clone().requires_grad_(), REFERENCE_MARGIN.clone().requires_grad_()
    assert not same_rank(policy, reference).requires_grad


def test_extreme_margins_of_optimal_transport() -> None:
    assert_finite(lambda w, r: aot(w, same_rank(w, r), beta=1.0) + 0 * r)
