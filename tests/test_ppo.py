"""PPO through its real training loop, on models so small that the right answer is known."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer as TorchOptimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.flop_counter import FlopCounterMode

from cells import cells_through
from enumerable import (
    END_ID,
    FIRST_LETTER,
    LETTERS,
    VOCABULARY,
    ShareOf,
    letters_policy,
    letters_prompts,
    next_token,
    reward_model,
    run_folder,
    value_model,
)
from gradients import gradients_of, plain_gradient, plain_logprobs, relative_gap
from preflab.config.online import PPO, RolloutBatch
from preflab.config.training import Optimizer
from preflab.errors import ConfigError, NumericError
from preflab.models.load import Policy, copy_of
from preflab.rewards.protocol import Answer
from preflab.rollouts.sampler import sample
from preflab.runs import JSON, read_lines
from preflab.training.cost import Cost
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds, roll_out
from test_flops import IN_PLACE
from untimed import untimed

KEYS = {
    "step", "reward", "kl_nats", "objective", "entropy_nats", "ratio", "clip_fraction", "approx_kl_nats",
    "explained_variance", "value_loss", "policy_loss", "response_tokens", "end_rate", "gradient_norm", "learning_rate",
    "sampler_gap_nats", "kl_coefficient", "optimizer_steps", "sample_seconds", "reward_seconds", "score_seconds",
    "learn_seconds", "generated_tokens_per_second", "reward_sd", "reward_min", "reward_max", "peak_memory_bytes",
}  # fmt: skip
STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
BASE = PPO(
    updates=1,
    batch=RolloutBatch(size=16, mini=8, micro=4),
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
    reference: Any = None,
    prompts: Sequence[PromptIds] | None = None,
    max_new_tokens: int = 4,
    gold: bool = False,
    name: str = "run",
) -> tuple[Cost, list[JSON]]:
    policy = policy or letters_policy(spread=4.0)
    run = run_folder(tmp_path / name)
    if value is None and settings.value_trunk == "separate":
        value = value_model(tmp_path)
    cost = train_ppo(
        policy, value, reference or copy_of(policy.model), reward, prompts or letters_prompts(16), settings, run,
        max_new_tokens=max_new_tokens, seed=0, gold=gold, starts_at_reference=reference is None,
    )  # fmt: skip
    return cost, read_lines(run.metrics)


class Recorder:
    """Gives every response the same reward, and keeps what it saw."""

    name = "recorder"

    def __init__(self, value: float = 0.0) -> None:
        self.value, self.answers = value, list[Answer]()

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.answers += answers
        return self.values(answers)

    def values(self, answers: Sequence[Answer]) -> list[float]:
        return [self.value] * len(answers)


class RecordedShare(Recorder):
    """Pays for the letter a, and keeps what it saw."""

    def values(self, answers: Sequence[Answer]) -> list[float]:
        return ShareOf("a", scale=2.0)(answers)


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
    settings = dataclasses.replace(BASE, updates=2, epochs=epochs, batch=RolloutBatch(size=16, mini=mini, micro=micro))
    policy, value = letters_policy(spread=4.0), value_model(tmp_path)
    reference = copy_of(policy.model)
    with counted_steps() as steps, cells_through(policy.model, value.model, reference) as cells:
        cost, lines = train(tmp_path, settings, ShareOf("a"), policy=policy, value=value, reference=reference)
    expected = 2 * epochs * (16 // mini)
    assert len(steps) == 2 * expected
    assert len({id(optimizer) for optimizer in steps}) == 2  # the policy's and the value model's, in turn
    assert cost.reward_calls == 32
    assert cost.generated_tokens == pytest.approx(16 * sum(line["response_tokens"] for line in lines))
    assert cells == {True: cost.trained_tokens, False: cost.scored_tokens}


@pytest.mark.parametrize("more", [{}, {"kl_penalty": "full"}, {"value_trunk": "shared"}, {"value_warmup_updates": 1}])
def test_costs_are_what_torch_saw(more: dict[str, Any], tmp_path: Path) -> None:
    """Cells, and the operations of all products but attention and sampling, whose lengths are too small to tell."""
    policy, reference = letters_policy(spread=4.0, width=64), letters_policy(seed=1, width=64).model
    settings = dataclasses.replace(BASE, updates=2, freeze_blocks=0, **more)
    value = None if settings.value_trunk == "shared" else reward_model(tmp_path, letters_policy(seed=2, width=64))
    models = [policy.model, reference] + ([value.model] if value else [])
    with cells_through(*models) as cells, FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        cost, _ = train(
            tmp_path, settings, ShareOf("a"), policy=policy, value=value, reference=reference, max_new_tokens=12
        )
    assert cells == {True: cost.trained_tokens, False: cost.scored_tokens}
    assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_a_gold_reward_is_called_gold(tmp_path: Path) -> None:
    settings = dataclasses.replace(BASE, updates=1, epochs=1)
    cost, _ = train(tmp_path, settings, ShareOf("a"), gold=True)
    assert (cost.gold_calls, cost.reward_calls) == (16, 0)


def test_a_mini_batch_that_does_not_divide_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="try 4"):
        train(tmp_path, dataclasses.replace(BASE, batch=RolloutBatch(size=16, mini=5)), ShareOf("a"))


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
        BASE,
        batch=RolloutBatch(size=16, mini=16, micro=4),
        epochs=1,
        kl_coefficient=0.0,
        lam=1.0,
        value_clip=None,
        missing_end_penalty=penalty,
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
        updates=12, batch=RolloutBatch(size=64, mini=32, micro=32), epochs=2, kl_coefficient=0.02,
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
        updates=60, batch=RolloutBatch(size=256, mini=128, micro=128), epochs=2, kl_coefficient=beta,
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


def test_a_scorer_that_is_not_the_sampler_is_caught() -> None:
    """A rollout whose log-probabilities are another policy's would give wrong importance ratios."""
    policy, other = letters_policy(seed=0), letters_policy(seed=1)
    prompts = letters_prompts(4)
    responses = sample(
        policy.model, [p.ids for p in prompts], keys=[p.key for p in prompts], end_id=END_ID, max_new_tokens=4, seed=0
    )
    roll_out(policy, policy.model, responses, [0.0] * 4, temperature=1.0, batch_size=4)
    with pytest.raises(NumericError, match="not the one that sampled"):
        roll_out(other, policy.model, responses, [0.0] * 4, temperature=1.0, batch_size=4)


def test_top_k_sampling_is_caught_before_a_ratio_is_built_on_it() -> None:
    """The likeliest tokens with the probability that they have among the two likeliest, as a top-2 sampler says."""
    policy, prompts = letters_policy(seed=0), letters_prompts(4)
    responses = sample(
        policy.model, [p.ids for p in prompts], keys=[p.key for p in prompts], end_id=END_ID, max_new_tokens=3, seed=0,
        greedy=True,
    )  # fmt: skip
    roll_out(policy, policy.model, responses, [0.0] * 4, temperature=1.0, batch_size=4)
    cut = []
    for response in responses:
        before = [response.prompt + response.tokens[:t] for t in range(len(response.tokens))]
        kept = [float(next_token(policy, ids).topk(2).values.sum().log()) for ids in before]
        logprobs = tuple(own - mass for own, mass in zip(response.logprobs, kept, strict=True))
        cut.append(dataclasses.replace(response, logprobs=logprobs))
    with pytest.raises(NumericError, match="Sample with neither top-k"):
        roll_out(policy, policy.model, cut, [0.0] * 4, temperature=1.0, batch_size=4)


ONE_STEP = dataclasses.replace(
    BASE, epochs=1, batch=RolloutBatch(size=8, mini=8, micro=4), whiten_advantages=False, lam=1.0
)
LOSSES: dict[str, PPO] = {
    "in the reward": dataclasses.replace(ONE_STEP, kl_coefficient=0.5),
    "k2": dataclasses.replace(ONE_STEP, kl_coefficient=0.5, kl_penalty="k2"),
    "k3": dataclasses.replace(ONE_STEP, kl_coefficient=0.5, kl_penalty="k3"),
    "full": dataclasses.replace(ONE_STEP, kl_coefficient=0.5, kl_penalty="full", temperature=0.7),
    "by the response": dataclasses.replace(ONE_STEP, aggregation="seq-mean-token-mean"),
    "summed": dataclasses.replace(ONE_STEP, aggregation="seq-mean-token-sum"),
    "normed": dataclasses.replace(ONE_STEP, aggregation="seq-mean-token-sum-norm", kl_penalty="k2"),
    "discounted": dataclasses.replace(ONE_STEP, discount=0.8, missing_end_penalty=0.0),
    "shared": dataclasses.replace(ONE_STEP, value_trunk="shared", value_coefficient=1e-9),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_step_is_the_formula_however_it_is_cut_into_micro_batches(name: str, tmp_path: Path) -> None:
    """With V = 0 and λ = 1 an advantage is the discounted reward still to come, here summed up in plain loops."""
    settings, found = LOSSES[name], []
    reference = letters_policy(seed=1, spread=4.0).model
    for micro in (8, 3, 1):
        value = None if settings.value_trunk == "shared" else value_model(tmp_path)
        if value is not None:
            with torch.no_grad():
                value.model.score.weight.zero_()
        policy, reward = letters_policy(spread=4.0), RecordedShare()
        seen = gradients_of(policy.model)
        cut = dataclasses.replace(settings, batch=RolloutBatch(size=8, mini=8, micro=micro))
        train(tmp_path, cut, reward, policy=policy, value=value, reference=reference, name=f"{micro}")
        found.append(seen)
    start = letters_policy(spread=4.0).model
    advantages = []
    for answer, paid in zip(reward.answers, reward.values(reward.answers), strict=True):
        with torch.no_grad():
            mine, other = (plain_logprobs(model, answer, settings.temperature) for model in (start, reference))
        beta = settings.kl_coefficient if settings.kl_penalty == "reward" else 0.0
        rewards = (-beta * (mine - other)).tolist()
        rewards[-1] += paid - (0.0 if answer.response_ids[-1] == END_ID else settings.missing_end_penalty)
        n = len(rewards)
        advantages.append([sum(settings.discount ** (s - t) * rewards[s] for s in range(t, n)) for t in range(n)])
    expected = plain_gradient(start, reference, reward.answers, advantages, settings, longest=4)
    for gradients in found:
        assert relative_gap(gradients, expected) < 2e-6


def test_each_setting_steps_another_way(tmp_path: Path) -> None:
    more = {
        "whitened rewards": dataclasses.replace(ONE_STEP, whiten_rewards=True),
        "whitened": dataclasses.replace(ONE_STEP, whiten_advantages=True),
        "λ": dataclasses.replace(ONE_STEP, lam=0.5),
    }
    found: dict[str, dict[str, Tensor]] = {}
    for name, settings in (LOSSES | more).items():
        policy = letters_policy(spread=4.0)
        found[name] = gradients_of(policy.model)
        train(
            tmp_path,
            settings,
            ShareOf("a", scale=2.0),
            policy=policy,
            reference=letters_policy(seed=1).model,
            name=name,
        )
    for one, other in itertools.combinations(found, 2):
        assert relative_gap(found[one], found[other]) > 1e-2, f"{one} steps as {other} does"


def test_whitened_rewards_keep_their_mean(tmp_path: Path) -> None:
    """A constant reward of one-token responses has no variance to scale: the value loss stays ½·reward²."""
    value = value_model(tmp_path)
    with torch.no_grad():
        value.model.score.weight.zero_()
    settings = dataclasses.replace(
        ONE_STEP, kl_coefficient=0.0, whiten_rewards=True, value_clip=None, missing_end_penalty=0.0
    )
    _, (line,) = train(tmp_path, settings, Recorder(3.0), value=value, max_new_tokens=1)
    assert line["value_loss"] == pytest.approx(4.5, abs=1e-3)


FAST = Optimizer(learning_rate=0.01, warmup_steps=0)


@pytest.mark.parametrize("trunk", ["separate", "shared"])
def test_a_value_warm_up_leaves_the_policy_bit_identical_and_teaches_the_values(trunk: Any, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        BASE, updates=5, epochs=4, optimizer=FAST, value_optimizer=FAST, value_warmup_updates=4, evaluations=5,
        value_trunk=trunk, value_clip=None,
    )  # fmt: skip
    policy = letters_policy(spread=4.0)
    start = copy.deepcopy(policy.model.state_dict())
    moved: list[bool] = []

    def evaluate(step: int) -> None:
        assert all(parameter.grad is None for parameter in policy.model.parameters())  # none waits for a later step
        moved.append(any(not torch.equal(value, start[name]) for name, value in policy.model.state_dict().items()))

    run = run_folder(tmp_path / "run")
    value, reference = value_model(tmp_path) if trunk == "separate" else None, copy_of(policy.model)
    with cells_through(policy.model, reference, *([value.model] if value else [])) as cells:
        cost = train_ppo(
            policy, value, reference, Recorder(2.0), letters_prompts(16), settings, run, max_new_tokens=4, seed=0,
            evaluate=evaluate,
        )  # fmt: skip
    assert moved == [False, False, False, False, True]
    lines = read_lines(run.metrics)
    assert lines[3]["value_loss"] < lines[0]["value_loss"] / 2
    assert all("policy_loss" not in line and line["optimizer_steps"] == 8 for line in lines[:4])
    assert set(lines[4]) == KEYS
    assert lines[4]["learning_rate"] == pytest.approx(0.01)
    # One model is trained in a warm-up, and none where the trunk is shared and its head alone learns.
    assert cells == {True: cost.trained_tokens, False: cost.scored_tokens}


def test_the_policys_schedule_begins_after_the_warm_up(tmp_path: Path) -> None:
    rising = Optimizer(learning_rate=0.01, warmup_steps=4, decay="linear")
    settings = dataclasses.replace(BASE, updates=3, epochs=2, optimizer=rising, value_warmup_updates=1)
    _, lines = train(tmp_path, settings, ShareOf("a"))
    assert lines[1]["learning_rate"] == pytest.approx(0.01 * (1 + 2 + 3 + 4) / 16)
    assert lines[2]["learning_rate"] == pytest.approx(0.01 * (4 + 3 + 2 + 1) / 16)


def test_a_shared_trunk_takes_the_value_gradient_at_its_weight(tmp_path: Path) -> None:
    """The gradient of the trunk is linear in value_coefficient; at the start the head is 0, so the first step gives it
    none, and the second does."""

    def gradient(coefficient: float) -> dict[str, Tensor]:
        policy = letters_policy(spread=4.0)
        seen = gradients_of(policy.model)
        settings = dataclasses.replace(
            BASE, batch=RolloutBatch(size=16, mini=16, micro=4), epochs=2, value_trunk="shared",
            value_coefficient=coefficient, value_clip=None, value_optimizer=FAST,
        )  # fmt: skip
        train(tmp_path, settings, ShareOf("a", scale=5.0), policy=policy, name=str(coefficient))
        return seen

    at_1, at_2, at_3 = (gradient(coefficient) for coefficient in (1.0, 2.0, 3.0))
    assert relative_gap(at_3, at_1) > 0.05
    middle = {name: (at_1[name] + at_3[name]) / 2 for name in at_1}
    assert relative_gap(at_2, middle) < 1e-3  # the head's own first step depends on the sign of its gradient alone


def test_a_shared_trunk_learns_values_and_saves_a_plain_language_model(tmp_path: Path) -> None:
    policy = letters_policy(spread=2.0)
    names = set(policy.model.state_dict())
    settings = PPO(
        updates=12, batch=RolloutBatch(size=64, mini=32, micro=32), epochs=2, kl_coefficient=0.02,
        evaluations=1, optimizer=Optimizer(learning_rate=3e-3, warmup_steps=0), value_trunk="shared",
        value_optimizer=FAST, missing_end_penalty=0.0,
    )  # fmt: skip
    reference = copy_of(policy.model)
    with cells_through(policy.model, reference) as cells:
        cost, lines = train(tmp_path, settings, ShareOf("a"), policy=policy, reference=reference)
    assert lines[0]["explained_variance"] == 0  # V = 0 at the start: it knows the mean at best
    assert lines[-1]["value_loss"] < lines[0]["value_loss"]
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.3
    assert set(policy.model.state_dict()) == names
    assert cells == {True: cost.trained_tokens, False: cost.scored_tokens}
    saved = {path.name for path in (tmp_path / "run" / "checkpoints" / "step-12").iterdir()}
    assert {"value.safetensors", "value.optimizer.safetensors"} < saved


def test_an_update_ends_where_the_policy_has_gone_too_far(tmp_path: Path) -> None:
    """Its later steps are not taken, and those that are taken are the first ones of the run that never stops."""
    fast = dataclasses.replace(BASE, updates=3, epochs=6, optimizer=FAST, value_optimizer=FAST)
    with counted_steps() as steps:
        _, lines = train(tmp_path, dataclasses.replace(fast, stop_kl_nats=0.01), ShareOf("a"), name="stopped")
    taken = [line["optimizer_steps"] for line in lines]
    assert len(steps) == 2 * sum(taken)
    assert all(1 <= number < 12 for number in taken)
    assert all(line["approx_kl_nats"] <= 0.01 for line in lines)
    _, never = train(tmp_path, dataclasses.replace(fast, stop_kl_nats=1e9), ShareOf("a"), name="never")
    _, plain = train(tmp_path, fast, ShareOf("a"), name="plain")
    assert untimed(never) == untimed(plain)
    assert [line["optimizer_steps"] for line in plain] == [12, 12, 12]
    assert plain[0]["approx_kl_nats"] > 0.01


def test_a_stopped_update_leaves_the_schedule_where_it_was(tmp_path: Path) -> None:
    falling = Optimizer(learning_rate=0.01, warmup_steps=0, decay="linear")
    settings = dataclasses.replace(BASE, updates=3, epochs=2, optimizer=falling, stop_kl_nats=1e-12)
    policy, value = letters_policy(spread=4.0), value_model(tmp_path)
    _, lines = train(tmp_path, settings, ShareOf("a"), policy=policy, value=value)
    for model in (policy.model, value.model):  # the gradient of the step not taken is no part of the next one
        assert all(parameter.grad is None for parameter in model.parameters())
    assert [line["optimizer_steps"] for line in lines] == [1, 1, 1]
    assert [line["learning_rate"] for line in lines] == pytest.approx([0.01, 0.01 * 8 / 12, 0.01 * 4 / 12])


@pytest.mark.parametrize(("target", "error"), [(1e-6, 0.2), (1e6, -0.2)])
def test_the_coefficient_follows_the_kl(target: float, error: float, tmp_path: Path) -> None:
    """At learning rate 0 the KL is 0 or, from another reference, far from it."""
    reference = letters_policy(seed=1, spread=4.0).model
    settings = dataclasses.replace(BASE, updates=3, target_kl_nats=target, kl_horizon=160)
    _, lines = train(tmp_path, settings, ShareOf("a"), reference=reference)
    factor = 1 + error * 16 / 160
    expected = [0.1, 0.1 * factor, 0.1 * factor**2]
    assert [line["kl_coefficient"] for line in lines] == pytest.approx(expected, rel=1e-6)


def test_the_coefficient_waits_for_the_end_of_a_warm_up(tmp_path: Path) -> None:
    settings = dataclasses.replace(
        BASE, updates=4, target_kl_nats=1.0, kl_horizon=160, value_warmup_updates=2, value_trunk="shared"
    )
    _, lines = train(tmp_path, settings, ShareOf("a"))
    assert [line["kl_coefficient"] for line in lines] == pytest.approx([0.1, 0.1, 0.1, 0.098], rel=1e-6)


def test_several_responses_to_a_prompt_stand_in_one_rollout(tmp_path: Path) -> None:
    reward = Recorder()
    train(tmp_path, dataclasses.replace(BASE, responses=4), reward, policy=letters_policy(spread=1.0))
    asked = [answer.prompt_ids for answer in reward.answers]
    assert [len(set(asked[i : i + 4])) for i in range(0, 16, 4)] == [1] * 4
    assert len(set(asked)) == 4


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (PPO(kl_horizon=5000), "kl_horizon = 5000 does nothing without target_kl_nats"),
        (PPO(target_kl_nats=6.0, kl_coefficient=0.0), "can't adapt kl_coefficient = 0"),
        (PPO(target_kl_nats=6.0, kl_horizon=100), "less than one rollout; try 1280"),
        (PPO(kl_coefficient=0.0, kl_penalty="k3"), "kl_penalty = k3 does nothing"),
        (PPO(value_coefficient=0.5), "value_coefficient = 0.5 does nothing with value_trunk = separate"),
        (PPO(value_warmup_updates=40), "leaves none of updates = 40 to the policy; try 10"),
        (PPO(stop_kl_nats=0.02, epochs=1, batch=RolloutBatch(mini=128)), "stop_kl_nats does nothing"),
        (PPO(clip_higher=0.3, epochs=1, batch=RolloutBatch(mini=128)), "clip_higher = 0.3 does nothing"),
        (PPO(responses=3), "responses = 3 does not divide batch.size = 128; try 2"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: PPO, said: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(said)):
        train(tmp_path, settings, ShareOf("a"))


def test_a_shared_trunk_has_no_value_model_and_a_separate_one_needs_one(tmp_path: Path) -> None:
    policy, limits = letters_policy(), {"max_new_tokens": 4, "seed": 0}
    shared = dataclasses.replace(BASE, value_trunk="shared")
    for settings, value, said in ((shared, value_model(tmp_path), "has no"), (BASE, None, "needs a")):
        with pytest.raises(ConfigError, match=f"{said} value model"):
            train_ppo(
                policy, value, copy_of(policy.model), ShareOf("a"), letters_prompts(4), settings,
                run_folder(tmp_path / "run"), **limits,
            )  # fmt: skip


def test_a_higher_upper_clip_lets_more_through(tmp_path: Path) -> None:
    fast = dataclasses.replace(BASE, epochs=6, optimizer=FAST, clip=0.05)
    _, (low,) = train(tmp_path, fast, ShareOf("a"), name="low")
    _, (high,) = train(tmp_path, dataclasses.replace(fast, clip_higher=5.0), ShareOf("a"), name="high")
    assert high["clip_fraction"] < low["clip_fraction"]
    assert high["approx_kl_nats"] > low["approx_kl_nats"]
