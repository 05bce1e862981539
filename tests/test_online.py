"""The loop over sampled responses, with step functions that look and do nothing, or do one simple thing."""

from __future__ import annotations

import dataclasses
import gc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cells import cells_through
from enumerable import END_ID, ShareOf, letters_policy, letters_prompts, next_token, reward_model, run_folder
from preflab.config.online import Online, RolloutBatch
from preflab.config.training import Optimizer
from preflab.errors import ConfigError, NumericError
from preflab.models.load import Policy, copy_of
from preflab.models.scoring import response_logprobs
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Answer
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.runs import read_lines
from preflab.training.cost import Cost
from preflab.training.online import Taken, mini_batches, run_online
from preflab.training.optimizer import Stepper
from preflab.training.rollout import Rollout

SETTINGS = Online(
    updates=3, batch=RolloutBatch(size=12, mini=4, micro=5), responses=3, evaluations=1,
    optimizer=Optimizer(learning_rate=0.0),
)  # fmt: skip


def loop(
    folder: Path,
    step: Callable[[Rollout, int, dict[str, float]], Taken],
    settings: Online = SETTINGS,
    *,
    policy: Policy | None = None,
    reference: Any = None,
    reward: Any = None,
    prompts: int = 7,
    **more: Any,
) -> Cost:
    policy = policy or letters_policy(spread=4.0)
    stepper = Stepper(policy.model, settings.optimizer, settings.updates)
    return run_online(
        policy, reference or copy_of(policy.model), reward or ShareOf("a"), letters_prompts(prompts), settings,
        run_folder(folder), step, models={"policy": policy.model}, steppers={"policy": stepper}, max_new_tokens=4,
        seed=0, title="loop", **more,
    )  # fmt: skip


class Watcher:
    """A step that keeps what it is given."""

    def __init__(self) -> None:
        self.rollouts: list[Rollout] = []

    def __call__(self, rollout: Rollout, update: int, memory: dict[str, float]) -> Taken:
        self.rollouts.append(rollout)
        return Taken({"seen": update}, Cost(trained_tokens=10))


def test_each_prompt_comes_once_an_epoch_with_its_responses_together(tmp_path: Path) -> None:
    watcher = Watcher()
    loop(tmp_path, watcher, dataclasses.replace(SETTINGS, updates=7), prompts=7)
    asked = [response.prompt for rollout in watcher.rollouts for response in rollout.responses]
    groups = [asked[i : i + 3] for i in range(0, len(asked), 3)]
    assert all(len(set(group)) == 1 for group in groups)
    visited = [group[0] for group in groups]
    assert len(visited) == 28
    epochs = [visited[i : i + 7] for i in range(0, 28, 7)]
    assert all(set(epoch) == {p.ids for p in letters_prompts(7)} for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    for rollout in watcher.rollouts:  # and are not one response three times
        assert len({response.tokens for response in rollout.responses}) > 6


def test_what_a_step_returns_is_logged_and_paid(tmp_path: Path) -> None:
    watcher, policy = Watcher(), letters_policy(spread=4.0)
    reference, reward = copy_of(policy.model), reward_model(tmp_path / "reward", letters_policy(seed=2))
    learned = LearnedReward(reward, policy.tokenizer, batch_size=5)
    with cells_through(policy.model, reference, reward.model) as cells:
        cost = loop(tmp_path / "run", watcher, policy=policy, reference=reference, reward=learned)
    lines = read_lines(run_folder(tmp_path / "run").metrics)
    assert [line["seen"] for line in lines] == [0, 1, 2]
    generated = sum(len(response.tokens) for rollout in watcher.rollouts for response in rollout.responses)
    assert (cost.generated_tokens, cost.trained_tokens, cost.reward_calls) == (generated, 30, 36)
    assert cells == {False: cost.scored_tokens}  # by the old policy, the reference, the reward model
    for line, rollout in zip(lines, watcher.rollouts, strict=True):
        assert line["reward"] == pytest.approx(float(rollout.scores.mean()))
        assert line["reward_sd"] == pytest.approx(float(rollout.scores.std(correction=0)), rel=1e-5)
        assert (line["reward_min"], line["reward_max"]) == (float(rollout.scores.min()), float(rollout.scores.max()))
        assert 2**24 < line["peak_memory_bytes"] <= cost.peak_memory_bytes
        assert line["end_rate"] == pytest.approx(float(rollout.ended.mean()))
        assert line["kl_nats"] == pytest.approx(0, abs=1e-6)
        assert line["entropy_nats"] > 0


def test_entropy_and_kl_are_measured_where_they_are_logged_or_asked_for(tmp_path: Path) -> None:
    for measured in (False, True):
        watcher = Watcher()
        loop(
            tmp_path / str(measured), watcher, dataclasses.replace(SETTINGS, updates=5), log_every=2, measured=measured
        )
        assert [rollout.distributions is not None for rollout in watcher.rollouts] == [
            measured, True, measured, True, True,
        ]  # fmt: skip
        lines = read_lines(run_folder(tmp_path / str(measured)).metrics)
        assert [(line["step"], line["entropy_nats"] > 0) for line in lines] == [(2, True), (4, True), (5, True)]


def test_a_rollout_holds_what_its_words_say(tmp_path: Path) -> None:
    watcher, reference = Watcher(), letters_policy(seed=1, spread=4.0)
    policy = letters_policy(spread=4.0)
    settings = dataclasses.replace(SETTINGS, updates=1, temperature=0.7)
    loop(tmp_path, watcher, settings, policy=policy, reference=reference.model, starts_at_reference=False)
    (rollout,) = watcher.rollouts
    for row, response in enumerate(rollout.responses):
        for t, token in enumerate(response.tokens):
            before = response.prompt + response.tokens[:t]
            hot = [next_token(model, before, temperature=0.7)[token].log() for model in (policy, reference)]
            p, q = next_token(policy, before), next_token(reference, before)
            assert float(rollout.logprobs[row, t]) == pytest.approx(float(hot[0]), abs=1e-4)
            assert float(rollout.reference_logprobs[row, t]) == pytest.approx(float(hot[1]), abs=1e-4)
            assert float(rollout.measured.kl[row, t]) == pytest.approx(float((p * (p / q).log()).sum()), abs=1e-4)
            assert float(rollout.measured.entropy[row, t]) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
        assert response.ended == (response.tokens[-1] == END_ID) == bool(rollout.ended[row])
        assert rollout.penalised(2.0)[row] == rollout.scores[row] - (0 if response.ended else 2)
        assert not rollout.logprobs[row, len(response.tokens) :].any()
    assert rollout.sampler_gap < 1e-4


def test_each_response_to_a_prompt_may_have_a_temperature_of_its_own(tmp_path: Path) -> None:
    """At 0.001 a response is the likeliest one; log-probabilities are held at the scoring temperature all the same."""
    watcher, policy = Watcher(), letters_policy(spread=4.0)
    loop(
        tmp_path, watcher, policy=policy, temperatures=(1.0, 0.001, 3.0), scoring_temperature=1.0, prompts=12,
    )  # fmt: skip
    responses = [response for rollout in watcher.rollouts for response in rollout.responses]
    greedy = sample(
        policy.model, [r.prompt for r in responses[1::3]], keys=[r.key for r in responses[1::3]], end_id=END_ID,
        max_new_tokens=4, seed=0, greedy=True,
    )  # fmt: skip
    assert [r.tokens for r in responses[1::3]] == [r.tokens for r in greedy]
    assert sum(one.tokens != two.tokens for one, two in zip(responses[::3], responses[2::3], strict=True)) > 8
    for rollout in watcher.rollouts:
        with torch.no_grad():
            torch.testing.assert_close(rollout.logprobs, response_logprobs(policy.model, rollout.batch))
        assert rollout.sampler_gap < 1e-3


def test_equal_temperatures_give_the_responses_of_one_temperature(tmp_path: Path) -> None:
    one, listed = Watcher(), Watcher()
    loop(tmp_path / "one", one)
    loop(tmp_path / "listed", listed, temperatures=(1.0, 1.0, 1.0))
    for first, second in zip(one.rollouts, listed.rollouts, strict=True):
        assert first.responses == second.responses


def test_a_policy_that_does_not_start_at_the_reference_is_refused_where_it_should(tmp_path: Path) -> None:
    other = letters_policy(seed=1, spread=4.0).model
    with pytest.raises(NumericError, match=r"policy and reference differ by .* dropout on, or was another model"):
        loop(tmp_path / "checked", Watcher(), reference=other)
    watcher = Watcher()
    loop(tmp_path / "chain", watcher, reference=other, starts_at_reference=False)
    assert read_lines(run_folder(tmp_path / "chain").metrics)[0]["kl_nats"] > 0.1


def test_a_reference_that_would_move_with_the_policy_is_refused(tmp_path: Path) -> None:
    """Its KL would be 0 for ever: no check at the start would see that."""
    policy = letters_policy(spread=4.0)
    with pytest.raises(ConfigError, match=r"the reference shares .*copy_of"):
        loop(tmp_path, Watcher(), policy=policy, reference=policy.model)


def test_dropout_is_noticed_before_the_first_step(tmp_path: Path) -> None:
    """In the reference: in the policy, the sampler and the scorer would differ too."""
    policy = letters_policy(spread=4.0)
    reference = copy_of(policy.model)
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.3
    reference.train()
    watcher = Watcher()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        with pytest.raises(NumericError, match="is dropout on"):
            loop(tmp_path, watcher, policy=policy, reference=reference)
    assert watcher.rollouts == []


def test_what_a_method_remembers_is_rolled_back_with_the_weights(tmp_path: Path) -> None:
    """The memory a resumed run starts with is that of its checkpoint, not that of the moment it died."""
    settings = dataclasses.replace(SETTINGS, updates=6, evaluations=3)  # saved after 2, 4 and 6
    seen: list[tuple[int, float]] = []

    def step(rollout: Rollout, update: int, memory: dict[str, float]) -> Taken:
        seen.append((update, memory.get("count", 0)))
        memory["count"] = memory.get("count", 0) + 1.5
        if update == 3 and len(seen) == 4:
            raise NumericError("died in the fourth update")
        return Taken({})

    with pytest.raises(NumericError, match="fourth"):
        loop(tmp_path, step, settings)
    cost = loop(tmp_path, step, settings)
    assert seen == [(0, 0), (1, 1.5), (2, 3.0), (3, 4.5), (2, 3.0), (3, 4.5), (4, 6.0), (5, 7.5)]
    assert cost.reward_calls == 6 * 12


def test_the_steps_of_an_update_cover_the_rollout_once_an_epoch() -> None:
    settings = dataclasses.replace(SETTINGS, epochs=2)
    assert settings.steps_per_update == 6
    numbers: list[int] = []
    for update in range(2):
        steps = list(mini_batches(12, settings, update, seed=0))
        numbers += [number for number, _ in steps]
        for epoch in (steps[:3], steps[3:]):
            assert sorted(torch.cat([rows for _, rows in epoch]).tolist()) == list(range(12))
            assert {len(rows) for _, rows in epoch} == {4}
        assert not torch.equal(steps[0][1], steps[3][1])
    assert numbers == list(range(12))
    # A smaller rollout takes fewer steps, and the next epoch's numbers stay what they were.
    assert [(number, len(rows)) for number, rows in mini_batches(6, settings, 1, seed=0)] == [
        (6, 4), (7, 2), (9, 4), (10, 2),
    ]  # fmt: skip


def test_only_kept_prompts_reach_the_step_and_others_are_sampled_in_their_place(tmp_path: Path) -> None:
    watcher = Watcher()

    def long(responses: Sequence[Any], scores: Sequence[float]) -> bool:
        assert len(responses) == len(scores) == 3
        return len(responses[0].prompt) > 1

    cost = loop(tmp_path, watcher, keep=long, refill_rounds=10)
    assert all(len(rollout.responses) == 12 for rollout in watcher.rollouts)
    assert all(len(response.prompt) > 1 for rollout in watcher.rollouts for response in rollout.responses)
    lines = read_lines(run_folder(tmp_path).metrics)
    dropped = [line["dropped_responses"] for line in lines]
    assert sum(dropped) > 0
    assert cost.reward_calls == 36 + sum(dropped)


def test_while_a_method_learns_no_states_of_the_sampler_are_held(tmp_path: Path) -> None:
    """They are as large as a layer's activations; also those of prompts that were dropped, or took their place."""
    watcher, held = Watcher(), list[int]()

    def step(rollout: Rollout, update: int, memory: dict[str, float]) -> Taken:
        held.append(sum(type(one) is Response and one.states is not None for one in gc.get_objects()))
        return watcher(rollout, update, memory)

    taken = iter([True, False, True, False, False, True, True])  # of four prompts, of two in their place, of one
    loop(
        tmp_path, step, keep=lambda responses, scores: next(taken, True), refill_rounds=3, asserted=lambda update: True
    )
    assert all(rollout.sampler_gap is None for rollout in watcher.rollouts)  # their states stood for a pass
    assert held == [0, 0, 0]


class Counting:
    name = "counting"

    def __init__(self) -> None:
        self.batches: list[list[Answer]] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.batches.append(list(answers))
        return [0.0] * len(answers)


def test_refilling_asks_for_what_is_missing_and_gives_up_in_time(tmp_path: Path) -> None:
    reward = Counting()
    with pytest.raises(NumericError, match="nothing to learn from"):
        loop(tmp_path, Watcher(), reward=reward, keep=lambda responses, scores: False, refill_rounds=2)
    assert [len(batch) for batch in reward.batches] == [12, 12, 12]
    reward = Counting()
    taken = iter(
        [True, True, True, False, True]
    )  # three of the first four prompts, then the one in place of the fourth
    with pytest.raises(StopIteration):  # in the second update
        loop(tmp_path / "again", Watcher(), reward=reward, keep=lambda r, s: next(taken), refill_rounds=5)
    assert [len(batch) for batch in reward.batches] == [12, 3, 12]


def test_a_policy_with_nothing_left_to_learn_runs_on_without_a_step(tmp_path: Path) -> None:
    watcher, kept = Watcher(), iter([True] * 4)  # the prompts of the first update
    cost = loop(tmp_path, watcher, keep=lambda responses, scores: next(kept, False), refill_rounds=2)
    assert len(watcher.rollouts) == 1
    lines = read_lines(run_folder(tmp_path).metrics)
    assert [line["dropped_responses"] for line in lines] == [0, 36, 36]
    assert [("seen" in line, line["kl_nats"] == pytest.approx(0, abs=1e-6)) for line in lines] == [
        (True, True), (False, True), (False, True),
    ]  # fmt: skip
    assert (cost.reward_calls, cost.trained_tokens) == (12 + 36 + 36, 10)
