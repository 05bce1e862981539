from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from finite_differences import central_differences
from preflab.losses import dpo, dpo_rewards, kl_full, masked_sum, token_logprobs

LN_2 = math.log(2)
# Three arms with exact Bradley–Terry preferences P(i≻j) = σ(r_i − r_j); π* = π_ref·exp(r/β)/Z.
REFERENCE = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
REWARD = torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64)
# β: π*, its expected reward, its KL in nats.
OPTIMA = {
    0.25: ([0.988999, 0.010868, 0.000133], 0.988866, 0.637549),
    0.5: ([0.918672, 0.074597, 0.006730], 0.911942, 0.432205),
    1.0: ([0.784399, 0.173139, 0.042463], 0.741936, 0.192245),
    2.0: ([0.661783, 0.240835, 0.097382], 0.564400, 0.062529),
}


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


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


def dpo_optimum(reference: Tensor, reward: Tensor, pair_weights: Tensor, beta: float) -> Tensor:
    """The policy (probabilities) that minimises the exact expectation of DPO over pairs and their labels."""
    first, second = torch.triu_indices(len(reward), len(reward), offset=1)
    preferred = torch.sigmoid(reward[first] - reward[second])
    logits = reference.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=2000, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logratio = logits.log_softmax(-1) - reference.log()
        won = dpo(logratio[first], logratio[second], beta=beta)
        lost = dpo(logratio[second], logratio[first], beta=beta)
        loss = (pair_weights * (preferred * won + (1 - preferred) * lost)).sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(-1)


@pytest.mark.parametrize("beta", list(OPTIMA))
@pytest.mark.parametrize("pair_weights", [[1 / 3, 1 / 3, 1 / 3], [0.9, 0.02, 0.08]], ids=["uniform", "skewed"])
def test_the_optimum_is_the_tilted_reference(beta: float, pair_weights: list[float]) -> None:
    """To 1e-6 in probability, whichever pairs are seen more often; the table holds six decimals."""
    table, reward, kl_nats = OPTIMA[beta]
    policy = dpo_optimum(REFERENCE, REWARD, wide(*pair_weights), beta)
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
    policy = dpo_optimum(reference, reward, weights / weights.sum(), 0.5)
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


def test_implicit_rewards_are_scaled_log_ratios_without_a_gradient() -> None:
    logratio = torch.tensor([2.0, -1.0, 0.0], requires_grad=True)
    rewards = dpo_rewards(logratio, beta=0.5)
    assert rewards.tolist() == [1.0, -0.5, 0.0]
    assert not rewards.requires_grad


def test_the_margin_of_implicit_rewards_gives_the_loss() -> None:
    chosen, rejected = wide(0.5, -2.0), wide(-0.3, 1.5)
    margin = dpo_rewards(chosen, beta=0.7) - dpo_rewards(rejected, beta=0.7)
    torch.testing.assert_close(dpo(chosen, rejected, beta=0.7), torch.log1p(torch.exp(-margin)))


def test_shapes_are_checked_in_tests() -> None:
    """Else a row of pairs against a column would broadcast into a square of losses. Also shows that the hook is on."""
    with pytest.raises(Exception, match="rejected_logratio"):
        dpo(torch.zeros(2), torch.zeros(3), beta=0.1)
    with pytest.raises(Exception, match="chosen_logratio"):
        dpo(torch.zeros(2, 1), torch.zeros(2), beta=0.1)
