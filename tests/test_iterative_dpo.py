"""Iterative DPO: rounds of prompts of their own, one run of steps, one or many references, and stops anywhere."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from enumerable import END_ID, ShareOf, letters_policy, letters_prompts, run_folder
from preflab.config.online_preference import IterativeDPO, Ranking
from preflab.config.pair_losses import SumLoss
from preflab.config.training import Batch, Optimizer
from preflab.errors import ConfigError, DataError, Interrupted
from preflab.models.load import Policy, copy_of, load_policy
from preflab.rewards.protocol import Answer
from preflab.runs import RunFolder, read_json, read_lines
from preflab.training.cost import Cost
from preflab.training.iterative_dpo import train_iterative_dpo

SETTINGS = IterativeDPO(
    rounds=3, epochs=2, batch=Batch(size=4, micro=3), evaluations=2, missing_end_penalty=0.3,
    ranking=Ranking(temperatures=(0.7, 1.0, 1.5), smallest_gap=0.05),
    optimizer=Optimizer(learning_rate=0.01, warmup_steps=2),
)  # fmt: skip


class Recorder:
    """Pays by the share of a letter, and keeps what it saw."""

    name = "recorder"

    def __init__(self, rule: Callable[[Sequence[Answer]], list[float]] | None = None) -> None:
        self.rule = rule or ShareOf("a")
        self.batches: list[list[Answer]] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.batches.append(list(answers))
        return self.rule(answers)


def train(
    folder: Path,
    settings: IterativeDPO = SETTINGS,
    *,
    reward: Any = None,
    reference: Any = None,
    policy: Policy | None = None,
    n: int = 23,
    evaluate: Callable[[int], None] | None = None,
) -> tuple[dict[str, Tensor], RunFolder, Cost]:
    policy, run = policy or letters_policy(spread=4.0), run_folder(folder)
    cost = train_iterative_dpo(
        policy, reference or copy_of(policy.model), reward or ShareOf("a"), letters_prompts(n), settings, run,
        max_new_tokens=4, seed=0, log_every=1, evaluate=evaluate,
    )  # fmt: skip
    return policy.model.state_dict(), run, cost


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_rounds_share_no_prompt_and_steps_run_on(tmp_path: Path) -> None:
    seen: list[int] = []
    reward = Recorder()
    weights, run, cost = train(tmp_path / "run", reward=reward, evaluate=seen.append)
    # 23 prompts in three rounds: seven each, two are left over.
    prompts = [{answer.prompt_ids for answer in batch} for batch in reward.batches]
    assert [len(batch) for batch in reward.batches] == [21, 21, 21]
    origins = [{line["prompt_id"] for line in read_lines(run.path / f"rounds/{i}/pairs.jsonl")} for i in range(3)]
    assert all(len(origin) <= 7 for origin in origins)
    assert len(origins[0] | origins[1] | origins[2]) == sum(map(len, origins))
    assert len(prompts[0] | prompts[1] | prompts[2]) == len({prompt.ids for prompt in letters_prompts(23)})

    records = [read_json(run.path / f"rounds/{i}/round.json") for i in range(3)]
    lines = read_lines(run.metrics)
    assert [line["step"] for line in lines] == list(range(1, len(lines) + 1))
    assert sum(record["steps"] for record in records) == len(lines)
    assert [sum(line["round"] == i for line in lines) for i in (1, 2, 3)] == [record["steps"] for record in records]
    assert [record["pairs"] for record in records] == [
        len(read_lines(run.path / f"rounds/{i}/pairs.jsonl")) for i in range(3)
    ]
    ends = [sum(record["steps"] for record in records[: i + 1]) for i in range(3)]
    assert set(ends) <= set(seen)
    assert seen == sorted(seen)
    assert len(seen) == 6
    # The schedule begins anew each round.
    assert [line["learning_rate"] for line in lines if line["step"] - 1 in (0, *ends)] == [0.005] * 3
    assert (cost.reward_calls, cost.gold_calls) == (63, 0)
    assert cost.generated_tokens == sum(len(answer.response_ids) for batch in reward.batches for answer in batch)
    assert cost.trained_tokens == sum(record["cost"]["trained_tokens"] for record in records) > 0
    assert same(load_policy(run.path / "rounds/2/model").model.state_dict(), weights)


def test_pairs_of_a_round_are_the_best_against_the_worst_of_the_policy_as_it_stood(tmp_path: Path) -> None:
    reward = Recorder()
    _, run, _ = train(tmp_path / "run", reward=reward)
    for number, batch in enumerate(reward.batches):
        pairs = []
        for begin in range(0, len(batch), 3):
            group = batch[begin : begin + 3]
            paid = [
                value - 0.3 * (answer.response_ids[-1] != END_ID)
                for value, answer in zip(ShareOf("a")(group), group, strict=True)
            ]
            best, worst = max(range(3), key=paid.__getitem__), min(range(3), key=paid.__getitem__)
            if paid[best] - paid[worst] > 0.05:
                pairs.append((group[best].response, group[worst].response, paid[best], paid[worst]))
        written = read_lines(run.path / f"rounds/{number}/pairs.jsonl")
        names = ("chosen", "rejected", "chosen_reward", "rejected_reward")
        assert [tuple(line[name] for name in names) for line in written] == pairs
    assert [a.response_ids for a in reward.batches[0]] != [a.response_ids for a in reward.batches[1]]


def test_the_start_and_the_previous_round_differ_as_references_from_the_second_round_on(tmp_path: Path) -> None:
    runs = {
        name: train(tmp_path / name, dataclasses.replace(SETTINGS, reference=name))[1]  # type: ignore[arg-type]
        for name in ("start", "previous")
    }
    first, second = (read_lines(run.metrics) for run in runs.values())
    steps = read_json(runs["start"].path / "rounds/0/round.json")["steps"]
    assert first[:steps] == second[:steps]
    # The second round begins at its own reference, or some way off.
    assert second[steps]["margin"] == pytest.approx(0, abs=1e-6)
    assert abs(first[steps]["margin"]) > 1e-3
    of_previous = read_json(runs["previous"].path / "rounds/1/start.json")
    of_start = read_json(runs["start"].path / "rounds/1/start.json")
    assert of_previous["largest_logratio_nats"] < 1e-4
    assert of_start["largest_logratio_nats"] > 0.01


def test_the_reference_is_the_one_that_was_given(tmp_path: Path) -> None:
    """As in a chain: the policy starts elsewhere."""
    reference = letters_policy(seed=1)
    before = {name: value.clone() for name, value in reference.model.state_dict().items()}
    _, run, _ = train(tmp_path / "run", reference=reference.model)
    assert read_json(run.path / "rounds/0/start.json")["largest_logratio_nats"] > 0.1
    assert same(before, reference.model.state_dict())


Stop = Callable[[RunFolder], Callable[[int], None]]


def after(step: int) -> Callable[[int], None]:
    def evaluate(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return evaluate


@pytest.mark.parametrize("reference", ["start", "previous"])
@pytest.mark.parametrize("where", ["inside", "at the end of a round"])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(reference: str, where: str, tmp_path: Path) -> None:
    """Inside the second round, or after its last step, before its model is written; then again in the third."""
    settings = dataclasses.replace(SETTINGS, reference=reference)  # type: ignore[type-var]
    seen: list[int] = []
    whole, run, cost = train(tmp_path / "whole", settings, evaluate=seen.append)
    for step in (seen[2] if where == "inside" else seen[3], seen[4]):
        with pytest.raises(Interrupted):
            train(tmp_path / "stopped", settings, evaluate=after(step))
    again, other, other_cost = train(tmp_path / "stopped", settings)
    assert same(whole, again)
    assert read_lines(other.metrics) == read_lines(run.metrics)
    assert other_cost.trained_tokens == cost.trained_tokens
    assert other_cost.generated_tokens == cost.generated_tokens


def test_a_stop_while_a_round_samples_loses_no_round(tmp_path: Path) -> None:
    """Ctrl-C in the middle of the third round's scoring: the two rounds before are not trained again."""
    whole, run, _ = train(tmp_path / "whole")
    calls: list[int] = []

    def third(answers: Sequence[Answer]) -> list[float]:
        calls.append(len(answers))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return ShareOf("a")(answers)

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "stopped", reward=Recorder(third))
    reward = Recorder()
    again, other, _ = train(tmp_path / "stopped", reward=reward)
    assert len(reward.batches) == 1
    assert same(whole, again)
    assert read_lines(other.metrics) == read_lines(run.metrics)


def test_a_stop_between_a_round_s_model_and_its_record_makes_no_difference(tmp_path: Path) -> None:
    whole, run, _ = train(tmp_path / "whole")
    train(tmp_path / "stopped")
    (tmp_path / "stopped/rounds/1/round.json").unlink()
    shutil.rmtree(tmp_path / "stopped/rounds/2")
    again, other, _ = train(tmp_path / "stopped")
    assert same(whole, again)
    assert read_lines(other.metrics) == read_lines(run.metrics)


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    whole, _, cost = train(tmp_path / "run")
    reward = Recorder()
    again, _, other_cost = train(tmp_path / "run", reward=reward)
    assert same(whole, again)
    assert reward.batches == []
    assert other_cost == cost


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="rounds = 3, but there are 2 prompts; lower rounds"):
        train(tmp_path / "run", n=2)
    with pytest.raises(ConfigError, match="needs two responses"):
        train(tmp_path / "run", dataclasses.replace(SETTINGS, ranking=Ranking(temperatures=(1.0,))))
    with pytest.raises(ConfigError, match="there is no loss"):
        train(tmp_path / "run", dataclasses.replace(SETTINGS, loss=SumLoss(terms="dpoo")))
    with pytest.raises(DataError, match="no prompt gave a pair"):
        train(tmp_path / "run", dataclasses.replace(SETTINGS, ranking=Ranking(smallest_gap=9.0)))
    policy = letters_policy()
    with pytest.raises(ConfigError, match="the reference shares"):
        train(tmp_path / "run", policy=policy, reference=policy.model)


def test_the_reward_rises(tmp_path: Path) -> None:
    reward = Recorder()
    settings = dataclasses.replace(
        SETTINGS, epochs=6, missing_end_penalty=0.0, optimizer=Optimizer(learning_rate=0.02, warmup_steps=0)
    )
    train(tmp_path / "run", settings, reward=reward, n=60)
    means = [sum(ShareOf("a")(batch)) / len(batch) for batch in reward.batches]
    assert means[0] + 0.1 < means[1] < means[2]
