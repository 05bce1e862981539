"""PPO through its real training loop, on models so small that the right answer is known."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import Optimizer as TorchOptimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from enumerable import (
    END_ID,
    FIRST_LETTER,
    LETTERS,
    VOCABULARY,
    ShareOf,
    letters_policy,
    letters_prompts,
    next_token,
    run_folder,
    value_model,
)
from preflab.config.methods import PPO, Optimizer
from preflab.errors import ConfigError, NumericError
from preflab.models.load import Policy, copy_of, working_weights
from preflab.rewards.protocol import Answer
from preflab.rollouts.sampler import sample
from preflab.runs import JSON, read_lines
from preflab.training.cost import Cost
from preflab.training.ppo import PromptIds, roll_out, train_ppo

KEYS = {
    "step", "reward", "kl_nats", "objective", "entropy_nats", "ratio", "clip_fraction", "approx_kl_nats",
    "explained_variance", "value_loss", "policy_loss", "response_tokens", "end_rate", "gradient_norm", "learning_rate",
    "sampler_gap_nats",
}  # fmt: skip
STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
BASE = PPO(
    updates=1,
    batch_size=16,
    mini_batch_size=8,
    micro_batch_size=4,
    evaluations=1,
    optimizer=STILL,
    value_optimizer=STILL,
)


def train(
    tmp_path: Path,
    settings: PPO,
    reward: Any,
    *,
    policy: Policy | None = None,
    value: Policy | None = None,
    prompts: Sequence[PromptIds] | None = None,
    max_new_tokens: int = 4,
    gold: bool = False,
    name: str = "run",
) -> tuple[Cost, list[JSON]]:
    policy = policy or letters_policy(spread=4.0)
    run = run_folder(tmp_path / name)
    cost = train_ppo(
        policy, value or value_model(tmp_path), copy_of(policy.model), reward, prompts or letters_prompts(16), settings,
        run, max_new_tokens=max_new_tokens, seed=0, gold=gold,
    )  # fmt: skip
    return cost, read_lines(run.metrics)


class Recorder:
    """Gives every response the same reward, and keeps what it saw."""

    name = "recorder"

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.answers = value, list[Answer]()

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.answers += answers
        return [self.value] * len(answers)


@contextmanager
def counted_steps() -> Iterator[list[TorchOptimizer]]:
    steps: list[TorchOptimizer] = []
    hook = register_optimizer_step_post_hook(lambda optimizer, *_: steps.append(optimizer))
    try:
        yield steps
    finally:
        hook.remove()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_at_learning_rate_0_the_ratio_is_1_and_the_kl_0(temperature: float, tmp_path: Path) -> None:
    settings = dataclasses.replace(BASE, updates=3, epochs=2, temperature=temperature)
    policy = letters_policy(spread=4.0)
    before = copy.deepcopy(policy.model.state_dict())
    _, lines = train(tmp_path, settings, ShareOf("a"), policy=policy, max_new_tokens=8)
    assert len(lines) == 3
    for line in lines:
        assert set(line) == KEYS
        assert line["ratio"] == pytest.approx(1, abs=1e-5)
        assert line["clip_fraction"] == 0
        assert line["approx_kl_nats"] == pytest.approx(0, abs=1e-5)
        assert line["kl_nats"] == pytest.approx(0, abs=1e-5)
        assert line["objective"] == pytest.approx(line["reward"], abs=1e-5)
        assert line["sampler_gap_nats"] < 1e-5
        assert 0 < line["entropy_nats"] < 1.8  # ln 6 at most
        assert line["policy_loss"] == pytest.approx(0, abs=0.5)
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize(("epochs", "mini", "micro"), [(1, 16, 4), (2, 8, 8), (3, 4, 1), (1, 4, 16)])
def test_optimizer_steps_are_epochs_times_mini_batches(epochs: int, mini: int, micro: int, tmp_path: Path) -> None:
    settings = dataclasses.replace(BASE, updates=2, epochs=epochs, mini_batch_size=mini, micro_batch_size=micro)
    with counted_steps() as steps:
        cost, lines = train(tmp_path, settings, ShareOf("a"))
    expected = 2 * epochs * (16 // mini)
    assert len(steps) == 2 * expected
    assert len({id(optimizer) for optimizer in steps}) == 2  # the policy's and the value model's, in turn
    assert cost.reward_calls == 32
    assert cost.generated_tokens == pytest.approx(16 * sum(line["response_tokens"] for line in lines))
    read = cost.trained_tokens / (2 * epochs)  # by the policy and the value model, in each epoch
    assert cost.scored_tokens == 4 * read  # the old policy, the reference, the values, the reward
    weights = cost.flops / (6 * cost.trained_tokens + 2 * 5 * read)  # and sampling
    assert weights == working_weights(letters_policy().model)


def test_a_gold_reward_reads_no_tokens(tmp_path: Path) -> None:
    settings = dataclasses.replace(BASE, updates=1, epochs=1)
    cost, _ = train(tmp_path, settings, ShareOf("a"), gold=True)
    assert (cost.gold_calls, cost.reward_calls) == (16, 0)
    assert cost.scored_tokens == 3 * cost.trained_tokens / 2


def test_a_mini_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="try 4"):
        train(tmp_path, dataclasses.replace(BASE, mini_batch_size=5), ShareOf("a"))


@pytest.mark.parametrize("penalty", [0.0, 3.0])
def test_a_missing_end_token_pays_the_penalty_and_one_in_the_prompt_does_not_help(
    penalty: float, tmp_path: Path
) -> None:
    """With V = 0, no KL penalty and λ = 1 the return of each token of a cut response is −penalty, and that of all other
    tokens 0: the value loss is ½·penalty² × the share of tokens in cut responses."""
    value = value_model(tmp_path)
    with torch.no_grad():
        value.model.score.weight.zero_()
    settings = dataclasses.replace(
        BASE, mini_batch_size=16, epochs=1, kl_coefficient=0.0, lam=1.0, value_clip=None, missing_end_penalty=penalty
    )
    prompts = [PromptIds(f"p:{i}", "a", (END_ID, FIRST_LETTER, END_ID)) for i in range(16)]
    reward = Recorder()
    _, (line,) = train(tmp_path, settings, reward, value=value, prompts=prompts, policy=letters_policy(spread=1.0))
    cut = [len(answer.response_ids) for answer in reward.answers if not answer.ended]
    whole = [len(answer.response_ids) for answer in reward.answers if answer.ended]
    assert set(cut) == {4}
    assert whole
    assert all((END_ID in answer.response_ids) == answer.ended for answer in reward.answers)
    assert line["value_loss"] == pytest.approx(0.5 * penalty**2 * sum(cut) / (sum(cut) + sum(whole)), abs=1e-5)
    assert line["end_rate"] == len(whole) / 16
    assert line["reward"] == 0  # the log shows the reward itself


def test_a_prompt_that_comes_twice_gets_responses_of_its_own(tmp_path: Path) -> None:
    reward = Recorder()
    train(tmp_path, BASE, reward, prompts=letters_prompts(1), policy=letters_policy(spread=1.0))
    assert len({answer.response_ids for answer in reward.answers}) > 8


def test_ppo_learns_to_say_a(tmp_path: Path) -> None:
    fast = Optimizer(learning_rate=3e-3, warmup_steps=0)
    settings = PPO(
        updates=12, batch_size=64, mini_batch_size=32, micro_batch_size=32, epochs=2, kl_coefficient=0.02,
        evaluations=1, optimizer=fast, value_optimizer=fast, missing_end_penalty=0.0,
    )  # fmt: skip
    _, lines = train(tmp_path, settings, ShareOf("a"), policy=letters_policy(spread=2.0), max_new_tokens=4)
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.3
    assert lines[-1]["kl_nats"] > 0.3
    assert lines[0]["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert all(line["learning_rate"] == pytest.approx(3e-3) for line in lines)


def test_ppo_reaches_the_optimum_of_an_enumerable_bandit(tmp_path: Path) -> None:
    """One prompt, responses of one token, β = 0.5: the optimum is π_ref·exp(r/β)/Z, reached to 0.05 in total
    variation (sampling noise: 256 responses an update)."""
    wanted = {0: 0.0, 1: 0.3, 2: 0.9, 3: -0.4, 4: 0.5, 5: 0.1}
    beta = 0.5

    class Table:
        name = "table"

        def __call__(self, answers: Sequence[Answer]) -> list[float]:
            return [wanted[answer.response_ids[0]] for answer in answers]

    prompt = PromptIds("p", "".join(LETTERS[:2]), (FIRST_LETTER, FIRST_LETTER + 1))
    policy = letters_policy(spread=3.0)
    reference = next_token(policy, prompt.ids)
    settings = PPO(
        updates=60, batch_size=256, mini_batch_size=128, micro_batch_size=128, epochs=2, kl_coefficient=beta,
        missing_end_penalty=0.0, evaluations=1, whiten_advantages=False,
        optimizer=Optimizer(learning_rate=5e-3, warmup_steps=0, decay="linear"),
        value_optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0),
    )  # fmt: skip
    train(tmp_path, settings, Table(), policy=policy, prompts=[prompt], max_new_tokens=1)
    rewards = torch.tensor([wanted[token] for token in range(VOCABULARY)], dtype=torch.float64)
    optimum = (reference.log() + rewards / beta).softmax(-1)
    found = next_token(policy, prompt.ids)
    assert 0.5 * float((reference - optimum).abs().sum()) > 0.2
    assert 0.5 * float((found - optimum).abs().sum()) < 0.05


def test_a_value_models_infinite_gradient_moves_neither_model(tmp_path: Path) -> None:
    """A reward of 1e30 squares to infinity in the value loss, while whitened advantages stay finite."""
    policy, value = letters_policy(), value_model(tmp_path)
    before = copy.deepcopy(policy.model.state_dict()), copy.deepcopy(value.model.state_dict())
    moving = dataclasses.replace(BASE, optimizer=Optimizer(warmup_steps=0), value_optimizer=Optimizer(warmup_steps=0))
    with pytest.raises(NumericError, match="value model"):
        train(tmp_path, moving, ShareOf("a", scale=1e30), policy=policy, value=value)
    for model, weights in zip((policy, value), before, strict=True):
        assert all(torch.equal(tensor, weights[name]) for name, tensor in model.model.state_dict().items())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None, "1"])
def test_a_bad_reward_stops_the_run_and_names_the_response(bad: Any, tmp_path: Path) -> None:
    class Bad:
        name = "bad"

        def __call__(self, answers: Sequence[Answer]) -> list[float]:
            self.response = answers[3].response
            return [0.0, 1.0, 0.0, bad, *[0.0] * (len(answers) - 4)]

    reward = Bad()
    with pytest.raises(NumericError, match="not a finite number") as stopped:
        train(tmp_path, BASE, reward)
    assert repr(reward.response) in str(stopped.value)
    assert (tmp_path / "run" / "crash.json").exists()


def test_a_scorer_that_is_not_the_sampler_is_caught(tmp_path: Path) -> None:
    """A rollout whose log-probabilities are another policy's would give wrong importance ratios."""
    policy, other = letters_policy(seed=0), letters_policy(seed=1)
    prompts = letters_prompts(4)
    responses = sample(
        policy.model, [p.ids for p in prompts], keys=[p.key for p in prompts], end_id=END_ID, max_new_tokens=4, seed=0
    )
    value = value_model(tmp_path)
    roll_out(policy, value, policy.model, responses, [0.0] * 4, BASE)
    with pytest.raises(NumericError, match="not the one that sampled"):
        roll_out(other, value, policy.model, responses, [0.0] * 4, BASE)
