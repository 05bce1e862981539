"""Online DPO through its real training loop: which pairs it makes, what it steps on, and where that leads."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from cells import cells_through
from enumerable import END_ID, ShareOf, every_response, exact_logprobs, letters_policy, letters_prompts, run_folder
from gradients import gradients_of, relative_gap
from preflab.config.online_preference import OnlineDPO, PairBatch, Ranking
from preflab.config.pair_losses import DPOLoss, SumLoss
from preflab.config.training import Optimizer
from preflab.data.encode import Tree
from preflab.errors import ConfigError, Interrupted, NumericError
from preflab.models.load import Policy, copy_of
from preflab.rewards.protocol import Answer
from preflab.runs import JSON, read_lines
from preflab.training import online
from preflab.training.cost import Cost
from preflab.training.online_dpo import train_online_dpo
from preflab.training.rollout import PromptIds
from ragged import naive_logprob
from untimed import untimed

STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
LONGEST = 4
SMALL: dict[str, Any] = {
    "updates": 1, "batch": PairBatch(size=8, mini=8, micro=3), "evaluations": 1, "optimizer": STILL,
    "ranking": Ranking(temperatures=(0.5, 1.0, 2.0), smallest_gap=0.2), "missing_end_penalty": 0.3,
}  # fmt: skip


class Recorder:
    """Pays by a rule, and keeps what it saw."""

    name = "recorder"

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.paid: list[float] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        values = ShareOf("a")(answers)
        self.answers += answers
        self.paid += [
            value - 0.3 * (answer.response_ids[-1] != END_ID) for value, answer in zip(values, answers, strict=True)
        ]
        return values


def train(
    folder: Path,
    settings: OnlineDPO,
    *,
    reward: Any = None,
    policy: Policy | None = None,
    reference: Any = None,
    prompts: Sequence[PromptIds] | None = None,
    **more: Any,
) -> tuple[Policy, list[JSON], Cost]:
    policy, run = policy or letters_policy(spread=4.0), run_folder(folder)
    cost = train_online_dpo(
        policy, reference or copy_of(policy.model), reward or ShareOf("a"), prompts or letters_prompts(8), settings,
        run, max_new_tokens=LONGEST, seed=0, starts_at_reference=reference is None, **more,
    )  # fmt: skip
    return policy, read_lines(run.metrics), cost


def pairs_of(reward: Recorder, size: int = 3, gap: float = 0.2) -> list[Tree]:
    """Best against worst of each prompt, worked out again from what the reward saw."""
    found = []
    for begin in range(0, len(reward.answers), size):
        group = range(begin, begin + size)
        best = max(group, key=lambda i: (reward.paid[i], -i))
        worst = min(group, key=lambda i: (reward.paid[i], i))
        if reward.paid[best] - reward.paid[worst] > gap:
            ids = [reward.answers[i].response_ids for i in (best, worst)]
            found.append(Tree("x", reward.answers[best].prompt_ids, (ids[0], ids[1])))
    return found


def test_one_update_is_dpo_on_the_best_against_the_worst_of_each_prompt(tmp_path: Path) -> None:
    """Loss, gradient and log against the formula, from the responses that the reward saw."""
    policy, reference = letters_policy(spread=4.0), letters_policy(seed=1, spread=2.0)
    reward, found = Recorder(), gradients_of(policy.model)
    settings = OnlineDPO(**SMALL, loss=SumLoss(terms="dpo", dpo=DPOLoss(beta=0.7)))
    with cells_through(policy.model, reference.model) as cells:
        _, (line,), cost = train(tmp_path / "run", settings, reward=reward, policy=policy, reference=reference.model)
    pairs = pairs_of(reward)
    assert 0 < len(pairs) < 8
    assert len({answer.prompt_ids for answer in reward.answers}) > 1

    total, gaps, best = torch.zeros((), dtype=torch.float64), [], []
    for tree in pairs:
        chosen, rejected = (
            naive_logprob(policy.model, tree.prompt, one) - naive_logprob(reference.model, tree.prompt, one).detach()
            for one in tree.responses
        )
        total = total - torch.nn.functional.logsigmoid(0.7 * (chosen - rejected)) / len(pairs)
    policy.model.zero_grad()
    assert line["loss"] == pytest.approx(total.item(), rel=1e-5)
    expected = torch.autograd.grad(total, list(policy.model.parameters()))
    names = [name for name, _ in policy.model.named_parameters()]
    assert relative_gap(found, dict(zip(names, expected, strict=True))) < 1e-5
    for begin in range(0, 24, 3):
        paid = reward.paid[begin : begin + 3]
        gaps += [max(paid) - min(paid)] if max(paid) - min(paid) > 0.2 else []
        best += [max(paid)] if max(paid) - min(paid) > 0.2 else []
    assert line["pairs"] == len(pairs)
    assert line["skipped_prompts"] == 8 - len(pairs) > 0
    assert line["reward_gap"] == pytest.approx(sum(gaps) / len(gaps))
    worst = [most - gap for most, gap in zip(best, gaps, strict=True)]
    for name, paid in (("best_reward", best), ("worst_reward", worst)):
        assert line[name] == pytest.approx(np.mean(paid))
        assert line[f"{name}_sd"] == pytest.approx(np.std(paid), abs=1e-6)
    assert cells[True] == cost.trained_tokens > 0
    assert cells[False] == cost.scored_tokens
    assert (cost.reward_calls, cost.gold_calls) == (24, 0)


@pytest.mark.parametrize("terms", ["dpo", "aot", "simpo + 0.1*sft"])
def test_micro_batches_change_neither_loss_nor_gradient(terms: str, tmp_path: Path) -> None:
    found = []
    for micro in (8, 3, 1):
        policy = letters_policy(spread=4.0)
        gradient = gradients_of(policy.model)
        settings = OnlineDPO(**SMALL | {"batch": PairBatch(size=8, mini=8, micro=micro)}, loss=SumLoss(terms=terms))
        reference = letters_policy(seed=1, spread=2.0).model
        _, (line,), _ = train(tmp_path / str(micro), settings, policy=policy, reference=reference)
        found.append((gradient, line))
    (gradient, line), *others = found
    for other, other_line in others:
        assert relative_gap(other, gradient) < 1e-6
        assert other_line["loss"] == pytest.approx(line["loss"], rel=1e-6)


def test_every_temperature_gives_each_prompt_a_response(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[float, int]] = []
    sample = online.sample

    def watched(*args: Any, **kw: Any) -> Any:
        asked.append((kw["temperature"], kw["samples"] * len(kw["keys"])))
        return sample(*args, **kw)

    monkeypatch.setattr(online, "sample", watched)
    ranking = Ranking(temperatures=(0.4, 1.1, 1.1, 3.0))
    reward = Recorder()
    train(tmp_path / "run", OnlineDPO(**SMALL | {"ranking": ranking}), reward=reward)
    assert asked == [(0.4, 8), (1.1, 16), (3.0, 8)]
    for begin in range(0, 32, 4):
        assert len({answer.prompt_ids for answer in reward.answers[begin : begin + 4]}) == 1


def test_log_probabilities_are_taken_at_temperature_1(tmp_path: Path) -> None:
    """However hot the samples: at policy = reference the loss is ln 2, the KL 0."""
    settings = OnlineDPO(**SMALL | {"ranking": Ranking(temperatures=(0.3, 4.0))})
    _, (line,), _ = train(tmp_path / "run", settings)
    assert line["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert line["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert line["sampler_gap_nats"] < 1e-4


def test_warped_samples_are_scored_as_the_policy_s_own(tmp_path: Path) -> None:
    """What top-k leaves out is never sampled; loss and KL are the policy's all the same, and nobody takes the sampler's
    distribution for the scorer's."""
    reward = Recorder()
    ranking = Ranking(temperatures=(1.0, 3.0), top_k=2, repetition_penalty=1.3, smallest_gap=0.0)
    _, (line,), _ = train(tmp_path / "run", OnlineDPO(**SMALL | {"ranking": ranking}), reward=reward)
    assert line["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert line["kl_nats"] == pytest.approx(0, abs=1e-6)
    assert line["sampler_gap_nats"] < 1e-4
    firsts: dict[tuple[int, ...], set[int]] = {}
    for answer in reward.answers:
        firsts.setdefault(answer.prompt_ids, set()).add(answer.response_ids[0])
    assert max(map(len, firsts.values())) <= 2
    _, (plain,), _ = train(tmp_path / "plain", OnlineDPO(**SMALL), reward=Recorder())
    assert plain["sampler_gap_nats"] < 1e-4


def test_an_update_without_a_pair_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match=r"in update 1 no prompt gave a pair: .*smallest_gap = 9\.0; lower it, or"):
        train(tmp_path / "run", OnlineDPO(**SMALL | {"ranking": Ranking(smallest_gap=9.0)}))


def test_a_small_first_update_may_give_no_pair(tmp_path: Path) -> None:
    """The reward of the first two updates is the same for all; then it tells responses apart."""
    seen: list[int] = []

    def late(answers: Sequence[Answer]) -> list[float]:
        seen.append(len(answers))
        return [0.0] * len(answers) if len(seen) <= 2 else ShareOf("a")(answers)

    late.name = "late"  # type: ignore[attr-defined]
    batch = PairBatch(size=4, mini=4)
    settings = OnlineDPO(**SMALL | {"updates": 3, "batch": batch, "missing_end_penalty": 0.0})
    _, lines, _ = train(tmp_path / "run", settings, reward=late)
    assert [line["pairs"] for line in lines[:2]] == [0, 0]
    assert lines[2]["pairs"] > 0


@pytest.mark.parametrize(("updates", "stopped"), [(3, 3), (100, 32)])
def test_many_prompts_without_a_pair_stop_the_run(updates: int, stopped: int, tmp_path: Path) -> None:
    ranking = Ranking(smallest_gap=9.0)
    settings = OnlineDPO(**SMALL | {"updates": updates, "batch": PairBatch(size=4, mini=4), "ranking": ranking})
    with pytest.raises(NumericError, match=rf"in updates 1 to {stopped} no prompt gave a pair"):
        train(tmp_path / "run", settings)


def test_settings_that_do_not_fit_and_a_shared_reference_are_refused(tmp_path: Path) -> None:
    for settings, message in (
        (OnlineDPO(**SMALL | {"batch": PairBatch(size=8, mini=3)}), "batch.mini = 3 does not divide batch.size = 8"),
        (OnlineDPO(**SMALL | {"ranking": Ranking(temperatures=(1.0,))}), "needs two responses"),
        (OnlineDPO(**SMALL, loss=SumLoss(terms="dpoo")), 'there is no loss "dpoo"'),
    ):
        with pytest.raises(ConfigError, match=message):
            train(tmp_path / "run", settings)
    policy = letters_policy()
    with pytest.raises(ConfigError, match=r"the reference shares .*copy_of"):
        train(tmp_path / "run", OnlineDPO(**SMALL), policy=policy, reference=policy.model)


def test_a_policy_that_should_start_at_the_reference_is_checked(tmp_path: Path) -> None:
    policy, run = letters_policy(spread=4.0), run_folder(tmp_path / "run")
    with pytest.raises(NumericError, match="before the first step, policy and reference differ by"):
        train_online_dpo(
            policy, letters_policy(seed=1).model, ShareOf("a"), letters_prompts(8), OnlineDPO(**SMALL), run,
            max_new_tokens=LONGEST, seed=0,
        )  # fmt: skip


def test_training_moves_the_policy_towards_the_reward_and_leaves_the_reference(tmp_path: Path) -> None:
    """The expected share of the letter, over every response there is."""
    policy, prompts = letters_policy(spread=4.0), letters_prompts(2)
    reference = copy_of(policy.model)
    before = {name: value.clone() for name, value in reference.state_dict().items()}
    responses = every_response(LONGEST)
    shares = torch.tensor([row.count(2) / len(row) for row in responses], dtype=torch.float64)

    def expected(model: Policy) -> float:
        return float(sum((exact_logprobs(model, p.ids, responses).exp() * shares).sum() for p in prompts) / 2)

    start = expected(policy)
    settings = OnlineDPO(
        updates=12, batch=PairBatch(size=16, mini=16, micro=16), evaluations=1, missing_end_penalty=0.0,
        optimizer=Optimizer(learning_rate=0.01, warmup_steps=0),
    )  # fmt: skip
    _, lines, _ = train(tmp_path / "run", settings, policy=policy, prompts=prompts)
    assert expected(policy) > start + 0.15
    assert lines[-1]["kl_nats"] > 0.1
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


def test_later_mini_batches_and_epochs_are_held_to_the_same_reference(tmp_path: Path) -> None:
    settings = OnlineDPO(
        **SMALL | {"batch": PairBatch(size=8, mini=2, micro=3), "epochs": 2, "optimizer": Optimizer(learning_rate=0.01)}
    )
    _, (line,), cost = train(tmp_path / "run", settings)
    reward = Recorder()
    _, _, once = train(tmp_path / "once", dataclasses.replace(settings, epochs=1), reward=reward)
    assert cost.trained_tokens == 2 * once.trained_tokens
    assert line["margin"] != 0
    assert line["loss"] != pytest.approx(0.693147, abs=1e-6)


@pytest.mark.parametrize("terms", ["dpo", "aot"])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(terms: str, tmp_path: Path) -> None:
    settings = OnlineDPO(
        updates=5, batch=PairBatch(size=6, mini=3, micro=2), epochs=2, evaluations=5,
        loss=SumLoss(terms=terms), optimizer=Optimizer(learning_rate=0.01, warmup_steps=3),
    )  # fmt: skip

    def trained(folder: str, stops: Sequence[int]) -> tuple[dict[str, Tensor], list[JSON], Cost]:
        def evaluate(step: int) -> None:
            if step in stops:
                os.kill(os.getpid(), signal.SIGTERM)

        policy, lines, cost = train(tmp_path / folder, settings, prompts=letters_prompts(7), evaluate=evaluate)
        return policy.model.state_dict(), lines, cost

    whole, lines, cost = trained("whole", [])
    for step in (1, 3):
        with pytest.raises(Interrupted, match=f"after step {step}"):
            trained("stopped", [step])
    again, other_lines, other_cost = trained("stopped", [])
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5]
    assert untimed(other_lines) == untimed(lines)
    assert other_cost.trained_tokens == cost.trained_tokens
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_a_gold_reward_is_counted_as_such(tmp_path: Path) -> None:
    _, _, cost = train(tmp_path / "run", OnlineDPO(**SMALL), gold=True)
    assert (cost.reward_calls, cost.gold_calls) == (0, 24)
