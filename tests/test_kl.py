from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor

from finite_differences import central_differences
from preflab.losses import (
    adapted_coefficient,
    entropy,
    k1,
    k2,
    k3,
    kl_full,
    kl_in_loss,
    masked_sum,
    token_logprobs,
)

INF = math.inf
Estimator = Callable[[Tensor, Tensor], Tensor]


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def naive_kl(p: Tensor, q: Tensor) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p.tolist(), q.tolist(), strict=True) if a > 0)


# The bandit: three arms, every expectation by enumeration.
POLICY, REFERENCE = wide(0.7, 0.2, 0.1), wide(0.5, 0.3, 0.2)
TRUE_GRADIENT = [0.175945, -0.098118, -0.077827]


def test_estimators_by_hand() -> None:
    """At a = log π − log π_ref = ±½."""
    logprobs, reference = wide(-1.0, -1.5), wide(-1.5, -1.0)
    assert k1(logprobs, reference).tolist() == [0.5, -0.5]
    assert k2(logprobs, reference).tolist() == [0.125, 0.125]
    expected = [math.exp(-0.5) - 1 + 0.5, math.exp(0.5) - 1 - 0.5]
    assert k3(logprobs, reference).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("estimator", "mean", "sd"), [(k1, 0.085123, 0.3911), (k2, 0.080088, 0.0543), (k3, 0.085123, 0.0759)]
)
def test_means_and_spreads_on_the_bandit(estimator: Estimator, mean: float, sd: float) -> None:
    """KL is 0.085123 nats: k1 and k3 are unbiased, k2 is not."""
    values = estimator(POLICY.log(), REFERENCE.log())
    expectation = (POLICY * values).sum()
    assert expectation.item() == pytest.approx(mean, abs=5e-7)
    assert (POLICY * (values - expectation) ** 2).sum().sqrt().item() == pytest.approx(sd, abs=5e-5)
    if estimator is not k2:
        assert expectation.item() == pytest.approx(naive_kl(POLICY, REFERENCE), abs=1e-12)


@pytest.mark.parametrize(
    ("estimator", "expected"), [(k1, [0.0, 0.0, 0.0]), (k2, TRUE_GRADIENT), (k3, [0.2, -0.1, -0.1])]
)
def test_gradients_in_a_loss_on_the_bandit(estimator: Estimator, expected: list[float]) -> None:
    """Arms drawn from π as data, the estimator differentiated: k1 goes nowhere, k2 where it should, k3 to π − π_ref."""
    logits = POLICY.log().requires_grad_()
    (POLICY * estimator(logits.log_softmax(-1), REFERENCE.log())).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(expected, abs=5e-7)


@pytest.mark.parametrize(
    ("estimator", "expected"), [(k1, TRUE_GRADIENT), (k3, [-0.024055, 0.001882, 0.022173])], ids=["k1", "k3"]
)
def test_gradients_in_the_reward_on_the_bandit(estimator: Estimator, expected: list[float]) -> None:
    """The score function times the estimator as a number: here k1 is right."""
    logits = POLICY.log().requires_grad_()
    logprobs = logits.log_softmax(-1)
    penalty = estimator(logprobs, REFERENCE.log()).detach()
    (POLICY * penalty * logprobs).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(expected, abs=5e-7)


def test_full_vocabulary_kl_on_the_bandit() -> None:
    logits = POLICY.log().requires_grad_()
    kl = kl_full(logits, REFERENCE.log())
    assert kl.item() == pytest.approx(0.085123, abs=5e-7)
    kl.backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(TRUE_GRADIENT, abs=5e-7)
    differences = central_differences(lambda point: kl_full(point, REFERENCE.log()), POLICY.log())
    torch.testing.assert_close(logits.grad, differences, rtol=0, atol=1e-8)
    assert kl_full(REFERENCE.log(), POLICY.log()).item() == pytest.approx(0.092033, abs=5e-7)  # the other direction


@pytest.mark.parametrize("estimator", [k1, k2, k3])
def test_estimators_pass_gradcheck(estimator: Estimator) -> None:
    inputs = (wide(-1.0, -2.5, -0.1).requires_grad_(), wide(-1.3, -0.5, -0.1).requires_grad_())
    assert torch.autograd.gradcheck(estimator, inputs)


def test_k2_and_k3_are_never_negative_and_vanish_at_the_reference() -> None:
    difference = torch.linspace(-8, 8, 1001)
    for estimator in (k2, k3):
        values = estimator(difference, torch.zeros_like(difference))
        assert values.min() >= 0
        assert estimator(difference, difference).abs().max() == 0


def test_k3_is_exact_near_the_reference() -> None:
    """exp(−a) − 1 + a is a²/2 − a³/6 + …; term by term in float32, 1e-4 would be lost in the rounding of 1."""
    small = torch.tensor([1e-4, -1e-4, 1e-3])
    exact = small.double() ** 2 / 2 - small.double() ** 3 / 6
    torch.testing.assert_close(k3(small, torch.zeros(3)).double(), exact, rtol=2e-3, atol=0)


def test_k1_and_k2_of_extreme_log_ratios() -> None:
    extreme = torch.tensor([1e4, -1e4])
    assert k1(extreme, torch.zeros(2)).tolist() == [1e4, -1e4]
    assert k2(extreme, torch.zeros(2)).tolist() == [5e7, 5e7]
    assert k3(extreme, torch.zeros(2))[0].item() == 9999.0
    assert k3(extreme, torch.zeros(2))[1] > 1e30  # e^10000 is beyond any float


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_full_vocabulary_kl_matches_the_definition(seed: int) -> None:
    logits, reference = 3 * torch.randn(2, 4, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    expected = [naive_kl(p, q) for p, q in zip(logits.softmax(-1), reference.softmax(-1), strict=True)]
    assert kl_full(logits, reference).tolist() == pytest.approx(expected, abs=1e-12)
    # Logits are free up to a constant each.
    torch.testing.assert_close(kl_full(logits + 3, reference - 8), kl_full(logits, reference), rtol=0, atol=1e-12)
    assert torch.autograd.gradcheck(kl_full, (logits.requires_grad_(), reference.requires_grad_()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_full_vocabulary_kl_is_zero_at_the_reference_and_never_negative(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(4)
    logits = (5 * torch.randn(50, 300, generator=generator)).to(dtype)
    assert kl_full(logits, logits.clone()).abs().max() == 0
    nearby = (logits.float() + 1e-4 * torch.randn(50, 300, generator=generator)).to(dtype)
    kl = kl_full(logits, nearby)
    assert kl.dtype == torch.float32
    assert kl.min() >= 0
    torch.testing.assert_close(kl.double(), kl_full(logits.double(), nearby.double()), rtol=0, atol=1e-6)


def test_full_vocabulary_kl_of_extreme_logits() -> None:
    logits = torch.tensor([[1e4, 0.0], [-1e4, 1e4]], requires_grad=True)
    reference = torch.tensor([[0.0, 1e4], [-1e4, 1e4]])
    kl = kl_full(logits, reference)
    assert kl.tolist() == [1e4, 0.0]
    kl.sum().backward()
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_excluded_tokens_add_nothing() -> None:
    """A token at −∞ in the policy has no share, whatever the reference gives it."""
    logits, reference = wide(0.0, 1.0, -INF), wide(0.5, 1.0, -INF)
    assert kl_full(logits, reference).item() == pytest.approx(kl_full(logits[:2], reference[:2]).item(), abs=1e-12)
    q = wide(0.5, 1.0, 0.2)
    assert kl_full(logits, q).item() == pytest.approx(naive_kl(logits.softmax(-1), q.softmax(-1)), abs=1e-12)
    assert kl_full(q, logits).item() == INF  # the policy says what the reference cannot
    assert entropy(logits).item() == pytest.approx(entropy(logits[:2]).item(), abs=1e-12)


@pytest.mark.parametrize("excluded_reference", [-INF, 0.2], ids=["in both", "in the policy"])
def test_excluded_tokens_leave_the_gradient_of_kl_finite(excluded_reference: float) -> None:
    logits = wide(0.0, 1.0, -INF).requires_grad_()
    reference = wide(0.5, 1.0, excluded_reference)
    kl_full(logits, reference).backward()
    differences = central_differences(
        lambda point: kl_full(torch.cat([point, wide(-INF)]), reference), logits.detach()[:2]
    )
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:2], differences, rtol=0, atol=1e-8)
    assert logits.grad[2] == 0


def test_excluded_tokens_leave_the_gradient_of_entropy_finite() -> None:
    logits = wide(0.0, 1.0, -INF).requires_grad_()
    entropy(logits).backward()
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad[:2], central_differences(entropy, wide(0.0, 1.0)), rtol=0, atol=1e-8)
    assert logits.grad[2] == 0


def test_entropy() -> None:
    assert entropy(torch.zeros(4, dtype=torch.float64)).item() == pytest.approx(math.log(4), abs=1e-12)
    assert entropy(POLICY.log()).item() == pytest.approx(-sum(p * math.log(p) for p in (0.7, 0.2, 0.1)), abs=1e-12)
    assert entropy(torch.tensor([1e4, 0.0, -1e4])).item() == 0
    logits = torch.randn(20, 50, generator=torch.Generator().manual_seed(6))
    assert entropy(logits.to(torch.bfloat16)).dtype == torch.float32
    # ln V less the KL from uniform.
    from_uniform = math.log(50) - kl_full(logits, torch.zeros(20, 50))
    torch.testing.assert_close(entropy(logits), from_uniform, rtol=0, atol=1e-5)
    assert torch.autograd.gradcheck(entropy, (logits[:2, :5].double().requires_grad_(),))


# The autoregressive toy: 3 tokens out of 3, every one of the 27 sequences; a prefix is a row of a table of logits:
# () → 0, (a) → 1 + a, (a, b) → 4 + 3a + b.
SEQUENCES = list(itertools.product(range(3), repeat=3))
TOKENS = torch.tensor(SEQUENCES)
PREFIXES = torch.tensor([[0, 1 + a, 4 + 3 * a + b] for a, b, _ in SEQUENCES])
MASK = torch.ones_like(TOKENS, dtype=torch.bool)


def toy_logits() -> tuple[Tensor, Tensor]:
    reference = [[math.sin(1 + 3 * s + v) for v in range(3)] for s in range(13)]
    shift = [[1.2 * math.cos(2 + 5 * s + 2 * v) for v in range(3)] for s in range(13)]
    z_reference = torch.tensor(reference, dtype=torch.float64)
    return z_reference + torch.tensor(shift, dtype=torch.float64), z_reference


def sequence_kl(z: Tensor) -> Tensor:
    """Σ_y π(y)·(log π(y) − log π_ref(y)) over whole sequences, without preflab."""
    _, z_reference = toy_logits()
    total = torch.zeros((), dtype=torch.float64)
    for tokens, prefixes in zip(SEQUENCES, PREFIXES.tolist(), strict=True):
        logprob = sum(z[s].log_softmax(-1)[v] for s, v in zip(prefixes, tokens, strict=True))
        reference = sum(z_reference[s].log_softmax(-1)[v] for s, v in zip(prefixes, tokens, strict=True))
        total = total + torch.as_tensor(logprob).exp() * (logprob - reference)
    return total


def moments(values: Tensor, probability: Tensor) -> tuple[float, float]:
    mean = (probability * values).sum()
    return mean.item(), (probability * (values - mean) ** 2).sum().sqrt().item()


def test_sequence_kl_of_the_toy() -> None:
    """Summed over the tokens of samples: full-vocabulary, k1 and k3 are unbiased, and the first is the narrowest."""
    z, z_reference = toy_logits()
    logprobs, reference = token_logprobs(z[PREFIXES], TOKENS), token_logprobs(z_reference[PREFIXES], TOKENS)
    logprob, reference_logprob = masked_sum(logprobs, MASK), masked_sum(reference, MASK)
    probability = logprob.exp()
    assert probability.sum().item() == pytest.approx(1.0, abs=1e-12)
    truth = sequence_kl(z).item()
    assert truth == pytest.approx(0.903312, abs=5e-7)

    full = moments(masked_sum(kl_full(z[PREFIXES], z_reference[PREFIXES]), MASK), probability)
    assert full == pytest.approx((truth, 0.0948), abs=5e-5)
    assert full[0] == pytest.approx(truth, abs=1e-12)
    by_k1 = moments(masked_sum(k1(logprobs, reference), MASK), probability)
    assert by_k1[0] == pytest.approx(truth, abs=1e-12)
    assert by_k1[1] == pytest.approx(1.296, abs=5e-4)
    by_k3 = moments(masked_sum(k3(logprobs, reference), MASK), probability)
    assert by_k3[0] == pytest.approx(truth, abs=1e-12)
    assert by_k3[1] == pytest.approx(0.576, abs=5e-4)
    of_sequence = moments(k3(logprob, reference_logprob), probability)
    assert of_sequence[0] == pytest.approx(truth, abs=1e-12)
    assert of_sequence[1] == pytest.approx(1.629, abs=5e-4)
    assert moments(masked_sum(k2(logprobs, reference), MASK), probability)[0] == pytest.approx(0.957, abs=5e-4)
    assert moments(k2(logprob, reference_logprob), probability)[0] == pytest.approx(1.248, abs=5e-4)


def test_gradients_of_the_toy() -> None:
    """k1 in the reward is the gradient of the sequence KL. Full-vocabulary in a loss misses what early tokens change
    later, k3 in the reward is far off."""
    z, z_reference = toy_logits()
    truth = central_differences(sequence_kl, z)
    assert truth.abs().max().item() == pytest.approx(0.466, abs=5e-4)
    reference = token_logprobs(z_reference[PREFIXES], TOKENS)
    probability = masked_sum(token_logprobs(z[PREFIXES], TOKENS), MASK).exp().unsqueeze(-1)

    def off(loss_per_token: Callable[[Tensor], Tensor]) -> float:
        leaf = z.clone().requires_grad_()
        (probability * loss_per_token(leaf)).sum().backward()
        assert leaf.grad is not None
        return (leaf.grad - truth).abs().max().item()

    def in_reward(estimator: Estimator) -> Callable[[Tensor], Tensor]:
        def loss(leaf: Tensor) -> Tensor:
            logprobs = token_logprobs(leaf[PREFIXES], TOKENS)
            penalty = estimator(logprobs, reference).detach()
            still_to_come = penalty.flip(-1).cumsum(-1).flip(-1)
            return still_to_come * logprobs

        return loss

    assert off(in_reward(k1)) < 1e-9
    assert off(in_reward(k3)) == pytest.approx(0.396, abs=5e-4)
    assert off(lambda leaf: kl_full(leaf[PREFIXES], z_reference[PREFIXES])) == pytest.approx(0.035, abs=5e-4)


Kind = Literal["k2", "k3", "full"]
KINDS: list[Kind] = ["k2", "k3", "full"]


def penalties(kind: Kind, z: Tensor, z_reference: Tensor) -> Tensor:
    """Of each token of each sequence of the toy."""
    logits, reference_logits = z[PREFIXES], z_reference[PREFIXES]
    logprobs, reference = token_logprobs(logits, TOKENS), token_logprobs(reference_logits, TOKENS)
    return kl_in_loss(kind, logprobs, reference, logits, reference_logits if kind == "full" else None)


@pytest.mark.parametrize("kind", KINDS)
def test_a_penalty_in_the_loss_follows_the_divergence_it_claims_state_by_state(kind: Kind) -> None:
    """Expected over all sequences of the toy, with the states' probabilities held: k2 and full follow KL(π‖π_ref), k3
    the forward KL(π_ref‖π), by finite differences of divergences written out here."""
    z, z_reference = toy_logits()
    logprob = masked_sum(token_logprobs(z[PREFIXES], TOKENS), MASK)
    probability = logprob.exp().detach()
    visits = torch.zeros(13, dtype=torch.float64).index_add(0, PREFIXES.flatten(), probability.repeat_interleave(3))
    assert visits.sum().item() == pytest.approx(3.0, abs=1e-12)

    def divergence(z: Tensor) -> Tensor:
        p, q = z.softmax(-1), z_reference.softmax(-1)
        per_state = (q * (q / p).log()).sum(-1) if kind == "k3" else (p * (p / q).log()).sum(-1)
        return (visits * per_state).sum()

    leaf = z.clone().requires_grad_()
    (probability.unsqueeze(-1) * penalties(kind, leaf, z_reference)).sum().backward()
    expected = central_differences(divergence, z)
    assert expected.abs().max() > 0.3
    torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-8)
    # None of them is the gradient of the sequence KL, in which early tokens change which states come later.
    assert leaf.grad is not None
    gap = (leaf.grad - central_differences(sequence_kl, z)).abs().max().item()
    assert gap == pytest.approx(0.070 if kind == "k3" else 0.035, abs=5e-4)


@pytest.mark.parametrize(
    ("kind", "expected"), [("k2", TRUE_GRADIENT), ("k3", [0.2, -0.1, -0.1]), ("full", TRUE_GRADIENT)]
)
def test_penalties_in_the_loss_on_the_bandit(kind: Kind, expected: list[float]) -> None:
    logits = POLICY.log().requires_grad_()
    rows = logits.unsqueeze(0).expand(3, 3)
    values = kl_in_loss(kind, logits.log_softmax(-1), REFERENCE.log(), rows, REFERENCE.log().expand(3, 3))
    (POLICY * values).sum().backward()
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx(expected, abs=5e-7)


def test_a_full_penalty_needs_the_references_logits() -> None:
    with pytest.raises(ValueError, match="logits of policy and reference"):
        kl_in_loss("full", wide(-1.0), wide(-1.0), wide(0.0, 1.0).unsqueeze(0), None)


def test_an_adaptive_coefficient_by_hand() -> None:
    """Ziegler's set-up: β 0.15, 6 nats, 10,000 episodes, 512 of them an update."""

    def after(measured: float) -> float:
        return adapted_coefficient(0.15, measured, target_nats=6.0, responses=512, horizon=10_000)

    assert after(6.0) == 0.15
    assert after(6.6) == pytest.approx(0.15 * (1 + 0.1 * 0.0512), abs=1e-12)
    assert after(60.0) == after(7.2) == pytest.approx(0.15 * (1 + 0.2 * 0.0512), abs=1e-12)
    assert after(0.0) == after(-3.0) == after(4.8) == pytest.approx(0.15 * (1 - 0.2 * 0.0512), abs=1e-12)
    assert adapted_coefficient(0.15, 60.0, target_nats=6.0, responses=1024, horizon=10_000) > after(60.0)


def test_an_adaptive_coefficient_settles_where_the_kl_is_the_target() -> None:
    """Against a policy whose KL is 0.3/β, so that 6 nats need β = 0.05."""
    beta = 0.4
    for _ in range(2000):
        beta = adapted_coefficient(beta, 0.3 / beta, target_nats=6.0, responses=500, horizon=10_000)
    assert beta == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("wrong", [{"coefficient": 0.0}, {"target_nats": 0.0}, {"responses": 0}, {"responses": 50}])
def test_an_adaptive_coefficient_that_could_turn_negative_is_refused(wrong: dict[str, float]) -> None:
    fine = {"coefficient": 0.1, "measured_nats": 1.0, "target_nats": 1.0, "responses": 5, "horizon": 10}
    adapted_coefficient(**fine)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="must be"):
        adapted_coefficient(**fine | wrong)  # type: ignore[arg-type]
