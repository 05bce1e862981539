"""Weighted sums, rewards of tokens, and the cache: alone, and through the loop that samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from enumerable import FIRST_LETTER, ShareOf, letters_policy, letters_prompts, run_folder
from preflab.config.online import GRPO, PPO, RolloutBatch
from preflab.config.training import Optimizer
from preflab.errors import NumericError
from preflab.models.load import copy_of
from preflab.rewards import Answer, CachedReward, Reward, RewardSum, Score, Weighted, assess, score
from preflab.runs import read_lines
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from test_online import SETTINGS, Watcher, loop


class Length:
    """−1 a letter, for the response as a whole."""

    name = "length"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [-float(len(answer.response)) for answer in answers]


class PerToken:
    """A number for each token, by its id and place; `whole`: their sum instead."""

    name = "per token"

    def __init__(self, *, whole: bool = False) -> None:
        self.whole = whole

    def __call__(self, answers: Sequence[Answer]) -> list[Any]:
        rows = [[0.25 * token * (-1) ** place for place, token in enumerate(a.response_ids)] for a in answers]
        return [sum(row) for row in rows] if self.whole else rows


def answer(response: str, ids: tuple[int, ...] = (1, 2)) -> Answer:
    return Answer("ab", response, (3, 4), ids, True)


def test_a_sum_by_hand() -> None:
    both = RewardSum((Weighted("length", 0.5, Length()), Weighted("tokens", -2.0, PerToken())))
    (found,) = assess(both, [answer("abc", (4, 2, 8))]).values
    # 0.25·(4 − 2 + 8) = 2.5 over the tokens; −3 for the whole.
    assert found == Score(0.5 * -3 - 2 * 2.5, (-2.0, 1.0, -4.0), {"length": -3.0, "tokens": 2.5})
    twice = RewardSum((Weighted("a", 1.0, PerToken()), Weighted("b", 3.0, PerToken())))
    (found,) = assess(twice, [answer("abc", (4, 2, 8))]).values
    assert found.tokens == (4.0, -2.0, 8.0)
    whole = RewardSum((Weighted("a", 2.0, Length()), Weighted("seen", 0.0, Length())))
    (found,) = assess(whole, [answer("abc")]).values
    assert (found.total, found.tokens, found.parts) == (-6.0, None, {"a": -3.0, "seen": -3.0})


def test_each_response_a_term_is_given_is_a_call() -> None:
    both = RewardSum((Weighted("a", 1.0, Length()), Weighted("b", 1.0, ShareOf("a"))))
    assert assess(both, [answer("a"), answer("b"), answer("c")]).calls == 6


def test_two_terms_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="one name"):
        RewardSum((Weighted("a", 1.0, Length()), Weighted("a", 1.0, ShareOf("a"))))


def test_a_sum_that_overflows_is_named() -> None:
    huge = RewardSum((Weighted("a", 1e308, Length()),))
    with pytest.raises(NumericError, match=r"reward 1e\+308\*a adds up to -inf for the response 'abcd' to the prompt"):
        score(huge, [answer("abcd")])


def test_a_term_s_fault_is_its_own() -> None:
    class Bad:
        name = "bad"

        def __call__(self, answers: Sequence[Answer]) -> list[Any]:
            return [None for _ in answers]

    with pytest.raises(NumericError, match=r"^reward bad gave None"):
        score(RewardSum((Weighted("a", 1.0, Length()), Weighted("b", 0.0, Bad()))), [answer("a")])


class Counted:
    """A number of its own for each answer, and the batches it was asked for."""

    name = "counted"

    def __init__(self, *, dense: bool = False) -> None:
        self.batches: list[list[str]] = []
        self.dense = dense

    def __call__(self, answers: Sequence[Answer]) -> list[Any]:
        self.batches.append([answer.response for answer in answers])
        numbers = [float(sum(map(ord, answer.response))) for answer in answers]
        return [[number] * 2 for number in numbers] if self.dense else numbers


@pytest.mark.parametrize("dense", [False, True])
def test_each_distinct_response_is_computed_once(dense: bool) -> None:
    inner = Counted(dense=dense)
    cached = CachedReward(inner, capacity=10)
    batches = [["a", "b", "a"], ["b", "c"], ["a", "b", "c"]]
    for texts in batches:
        given = [answer(text) for text in texts]
        assert assess(cached, given).values == assess(Counted(dense=dense), given).values
    assert inner.batches == [["a", "b"], ["c"]]
    assert cached.hits == 5


def test_what_was_used_last_is_remembered() -> None:
    inner = Counted()
    cached = CachedReward(inner, capacity=2)
    for text in "abacb":  # c pushes b out, which was used before a
        score(cached, [answer(text)])
    assert inner.batches == [["a"], ["b"], ["c"], ["b"]]


def test_without_room_a_batch_is_still_asked_once_a_response() -> None:
    inner = Counted()
    cached = CachedReward(inner, capacity=0)
    assert score(cached, [answer(text) for text in "aab"]) == [97.0, 97.0, 98.0]
    score(cached, [answer("a")])
    assert inner.batches == [["a", "b"], ["a"]]


@pytest.mark.parametrize(
    "change",
    [{"prompt": "b"}, {"response_ids": (2, 1)}, {"ended": False}, {"fields": {"answer": 1}}, {"response": "b"}],
)
def test_what_differs_in_anything_a_reward_sees_is_another_answer(change: dict[str, Any]) -> None:
    inner = Counted()
    score(CachedReward(inner, capacity=9), [answer("a"), dataclasses.replace(answer("a"), **change)])
    assert len(inner.batches[0]) == 2


def test_a_failure_is_not_remembered() -> None:
    class Once:
        name = "once"
        failed = False

        def __call__(self, answers: Sequence[Answer]) -> list[float]:
            if not self.failed:
                self.failed = True
                return [float("nan")]
            return [1.0]

    cached = CachedReward(Once(), capacity=9)
    with pytest.raises(NumericError):
        score(cached, [answer("a")])
    assert score(cached, [answer("a")]) == [1.0]


def test_the_loop_logs_each_term_and_their_sum(tmp_path: Path) -> None:
    watcher = Watcher()
    both = RewardSum((Weighted("share", 2.0, ShareOf("a")), Weighted("length", -0.5, Length())))
    cost = loop(tmp_path, watcher, reward=both)
    lines = read_lines(run_folder(tmp_path).metrics)
    for line, rollout in zip(lines, watcher.rollouts, strict=True):
        assert line["reward"] == pytest.approx(2 * line["reward/share"] - 0.5 * line["reward/length"])
        assert line["reward"] == pytest.approx(float(rollout.scores.mean()))
        assert rollout.dense is None
    assert lines[0]["reward/length"] < -1
    assert cost.reward_calls == 2 * 3 * 12
    loop(tmp_path / "alone", watcher, reward=Length())
    assert not [key for line in read_lines(run_folder(tmp_path / "alone").metrics) for key in line if "/" in key]


def test_the_loop_pays_for_what_the_cache_does_not_know(tmp_path: Path) -> None:
    inner = Counted()
    watcher = Watcher()
    cost = loop(tmp_path, watcher, reward=CachedReward(inner, capacity=1000))
    asked = sum(map(len, inner.batches))
    assert cost.reward_calls == asked < 36
    plain = Watcher()
    loop(tmp_path / "plain", plain, reward=Counted())
    for mine, other in zip(watcher.rollouts, plain.rollouts, strict=True):
        assert torch.equal(mine.scores, other.scores)


def test_rewards_of_tokens_reach_their_cells(tmp_path: Path) -> None:
    watcher = Watcher()
    both = RewardSum((Weighted("tokens", 2.0, PerToken()), Weighted("length", 1.0, Length())))
    loop(tmp_path, watcher, dataclasses.replace(SETTINGS, updates=1), reward=both)
    (rollout,) = watcher.rollouts
    assert rollout.dense is not None
    for row, response, scored in zip(rollout.dense, rollout.responses, rollout.scores, strict=True):
        expected = [0.5 * token * (-1) ** place for place, token in enumerate(response.tokens)]
        assert row.tolist() == expected + [0.0] * (len(row) - len(expected))
        letters = sum(token >= FIRST_LETTER for token in response.tokens)
        assert float(scored) == pytest.approx(sum(expected) - letters)


RATE = Optimizer(learning_rate=1e-2, warmup_steps=0)
BATCH = RolloutBatch(size=12, mini=12, micro=12)


def trained(folder: Path, settings: PPO | GRPO, reward: Reward) -> dict[str, torch.Tensor]:
    policy = letters_policy(spread=4.0)
    given = (reward, letters_prompts(6), settings, run_folder(folder))
    if isinstance(settings, PPO):
        train_ppo(policy, None, copy_of(policy.model), *given, max_new_tokens=4, seed=0)
    else:
        train_policy_gradient(policy, copy_of(policy.model), *given, max_new_tokens=4, seed=0)
    return {name: value.clone() for name, value in policy.model.state_dict().items()}


def gap(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((value - other[name]).abs().max()) for name, value in one.items())


def test_group_methods_take_the_sum_over_tokens(tmp_path: Path) -> None:
    settings = GRPO(updates=2, batch=BATCH, responses=3, optimizer=RATE, epochs=1, evaluations=1)
    dense = trained(tmp_path / "dense", settings, PerToken())
    whole = trained(tmp_path / "whole", settings, PerToken(whole=True))
    assert gap(dense, whole) == 0
    assert gap(dense, letters_policy(spread=4.0).model.state_dict()) > 1e-3


def test_ppo_pays_each_token_its_own(tmp_path: Path) -> None:
    """With γ = 0 a token's advantage is its own reward (values are 0), so where it is paid decides what is learnt; what
    only the end is paid is learnt at the end."""
    settings = PPO(
        updates=1, batch=BATCH, value_trunk="shared", optimizer=RATE, value_optimizer=RATE, epochs=1, evaluations=1,
        discount=0.0, kl_coefficient=0.0, whiten_advantages=False, missing_end_penalty=0.0,
    )  # fmt: skip
    dense = trained(tmp_path / "dense", settings, PerToken())
    whole = trained(tmp_path / "whole", settings, PerToken(whole=True))
    assert gap(dense, whole) > 1e-3
    # All of a token's reward at the last one is what a reward of the whole response is.

    class AtEnd(PerToken):
        def __call__(self, answers: Sequence[Answer]) -> list[Any]:
            totals = PerToken(whole=True)(answers)
            return [[0.0] * (len(a.response_ids) - 1) + [total] for a, total in zip(answers, totals, strict=True)]

    assert gap(trained(tmp_path / "end", settings, AtEnd()), whole) < 1e-6
