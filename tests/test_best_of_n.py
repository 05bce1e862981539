"""Best of n: which response is kept, and the bound on its KL."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from enumerable import END_ID, ShareOf, every_response, exact_logprobs, letters_policy, letters_prompts
from preflab.data.encode import Encoder
from preflab.evaluation.policy import Judge
from preflab.rewards.protocol import Answer, Reward
from preflab.rollouts.sampler import sample
from preflab.runs import JSON
from preflab.seeds import derive
from preflab.studies.best_of_n import best_of_n, kl_bound_nats, sizes
from preflab.training.cost import Cost

LONGEST = 3


class Ordered:
    """A reward without ties: the response's tokens as digits; a longer one may still be worth less."""

    name = "ordered"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [sum(token / 7.0**place for place, token in enumerate(answer.response_ids, 1)) for answer in answers]


def points(
    proxy: Reward, gold: Reward, n: int, *, prompts: int = 40, split: str = "validation"
) -> tuple[dict[int, JSON], list[JSON], Cost]:
    policy, cost = letters_policy(spread=4.0), Cost()
    judge = Judge(policy.model, Encoder(policy.tokenizer, 32, LONGEST), gold, proxy, (), LONGEST, seed=0)
    asked = letters_prompts(prompts)
    found = [*best_of_n(judge, policy, asked, n, split, baseline=[0.0] * prompts, cost=cost)]
    assert all(point["split"] == split for point, _ in found)
    return {point["step"]: point["rows"] for point, _ in found}, [line for _, lines in found for line in lines], cost


@pytest.mark.parametrize(
    ("n", "expected"),
    [(2, [2]), (3, [2, 3]), (4, [2, 4]), (7, [2, 4, 7]), (16, [2, 4, 8, 16]), (17, [2, 4, 8, 16, 17])],
)
def test_sizes_are_the_powers_of_two_and_n(n: int, expected: list[int]) -> None:
    assert sizes(n) == expected


@pytest.mark.parametrize(("n", "bound"), [(1, 0.0), (2, 0.193147), (4, 0.636294), (16, 1.835089)])
def test_the_bound_at_worked_values(n: int, bound: float) -> None:
    assert kl_bound_nats(n) == pytest.approx(bound, abs=1e-6)


@cache
def exact(prompt: tuple[int, ...]) -> tuple[list[tuple[int, ...]], torch.Tensor]:
    """Every response and its probability."""
    responses = every_response(LONGEST)
    return responses, exact_logprobs(letters_policy(spread=4.0), prompt, responses).exp()


@pytest.mark.parametrize("n", [2, 4, 16])
def test_the_kl_of_best_of_n_lies_below_the_bound_and_near_it_where_no_response_dominates(n: int) -> None:
    """Exactly, over every response: P(best) = F^n − F_less^n, F the share of responses up to its reward."""
    responses, p = exact((2,))
    answers = [Answer("", "", (2,), response, True) for response in responses]
    order = torch.tensor(Ordered()(answers)).argsort()
    up_to = p[order].cumsum(0)
    best = up_to**n - (up_to - p[order]).clamp(min=0) ** n
    kl = float((best * (best / p[order]).clamp(min=1e-300).log()).sum())
    assert kl < kl_bound_nats(n)
    if n == 2:
        assert kl > 0.6 * kl_bound_nats(n)


def test_points_hold_the_bound_for_each_prompt() -> None:
    found, _, _ = points(Ordered(), ShareOf("a"), 6)
    assert list(found) == [2, 4, 6]
    for n, rows in found.items():
        assert rows["kl_nats"] == [math.log(n) - (n - 1) / n] * 40
        assert len(rows["reward"]) == len(rows["proxy_reward"]) == len(rows["win"]) == 40


def test_more_samples_are_never_worth_less_where_the_proxy_is_the_reward() -> None:
    """Not in the mean, and not on a single prompt: the first n samples are among the first 2n."""
    reward = Ordered()
    found, _, _ = points(reward, reward, 16)
    for fewer, more in itertools.pairwise(found.values()):
        assert all(b >= a for a, b in zip(fewer["reward"], more["reward"], strict=True))
        assert sum(more["reward"]) > sum(fewer["reward"])
    assert found[16]["reward"] == found[16]["proxy_reward"]


def test_a_proxy_that_is_wrong_buys_nothing() -> None:
    """Chosen by the negated reward, more samples are worth less."""

    class Wrong:
        name = "wrong"

        def __call__(self, answers: Sequence[Answer]) -> list[float]:
            return [-value for value in Ordered()(answers)]

    found, _, _ = points(Wrong(), Ordered(), 8)
    means = [sum(rows["reward"]) for rows in found.values()]
    assert means == sorted(means, reverse=True)
    assert means[0] > means[-1]


def test_the_expected_reward_is_that_of_the_best_of_n() -> None:
    """Against its exact value, over all responses and prompts: within four standard errors."""
    reward, n, prompts = Ordered(), 4, 400
    found, _, _ = points(reward, reward, n, prompts=prompts)
    gaps = []
    for prompt, value in zip(letters_prompts(prompts), found[n]["reward"], strict=True):
        responses, p = exact(prompt.ids)
        values = torch.tensor(reward([Answer("", "", prompt.ids, one, True) for one in responses]), dtype=torch.float64)
        order = values.argsort()
        up_to = p[order].cumsum(0)
        best = up_to**n - (up_to - p[order]).clamp(min=0) ** n
        gaps.append(value - float((best * values[order]).sum()))
    mean = sum(gaps) / prompts
    error = (sum((gap - mean) ** 2 for gap in gaps) / prompts / prompts) ** 0.5
    assert abs(mean) < 4 * error


def test_the_kept_response_is_the_first_of_the_best_among_the_first_samples() -> None:
    """Sampled and picked again here."""
    policy, proxy, asked = letters_policy(spread=4.0), ShareOf("a"), letters_prompts(40)
    encoder = Encoder(policy.tokenizer, 32, LONGEST)
    responses = sample(
        policy.model, [p.ids for p in asked], keys=[p.key for p in asked], end_id=END_ID, max_new_tokens=LONGEST,
        samples=6, seed=derive(0, "best of n"),
    )  # fmt: skip
    _, lines, _ = points(proxy, Ordered(), 6)
    written = {(line["step"], line["prompt_id"]): line["response"] for line in lines}
    ties = 0
    for number, prompt in enumerate(asked):
        group = responses[6 * number : 6 * number + 6]
        texts = [encoder.decode(response.tokens) for response in group]
        worth = proxy([Answer("", text, (), r.tokens, r.ended) for text, r in zip(texts, group, strict=True)])
        for n in (2, 4, 6):
            assert written[n, prompt.key] == texts[worth.index(max(worth[:n]))]
            ties += worth[:n].count(max(worth[:n])) > 1 and len(set(texts[:n])) > 1
    assert ties > 10  # the rule for equals was needed


def test_it_costs_what_the_largest_n_takes() -> None:
    _, _, cost = points(Ordered(), ShareOf("a"), 6, prompts=10)
    assert (cost.reward_calls, cost.gold_calls, cost.trained_tokens) == (60, 0, 0)
    assert 60 <= cost.generated_tokens <= 60 * LONGEST
    assert cost.scored_tokens == 0  # a rule reads none
    assert cost.flops > 0
