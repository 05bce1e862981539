"""The group methods through their real training loop, against their formulas written again in plain loops."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from enumerable import END_ID, VOCABULARY, ShareOf, letters_policy, letters_prompts, run_folder
from finite_differences import central_differences
from gradients import gradients_of, plain_gradient, plain_logprobs, relative_gap
from preflab.config.online import DAPO, GRPO, RLOO, DrGRPO, PolicyGradient, Reinforce, RolloutBatch
from preflab.config.training import Optimizer
from preflab.errors import ConfigError, NumericError
from preflab.losses import aggregate, k3, leave_one_out, less_group_mean, over_std, ppo_clip
from preflab.models import scoring
from preflab.models.load import Policy, copy_of
from preflab.models.scoring import scored
from preflab.rewards.protocol import Answer
from preflab.rollouts.sampler import sample
from preflab.runs import JSON, read_lines
from preflab.training.cost import Cost
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.rollout import PromptIds, roll_out
from preflab.training.surrogate import Objective

STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
SMALL: dict[str, Any] = {
    "updates": 1, "batch": RolloutBatch(size=12, mini=12, micro=5), "responses": 4, "epochs": 1,
    "evaluations": 1, "optimizer": STILL,
}  # fmt: skip
LONGEST = 5


class Recorder:
    """Pays by a rule, and keeps what it saw."""

    name = "recorder"

    def __init__(self, rule: Any = None) -> None:
        self.rule = rule or ShareOf("a", scale=2.0)
        self.answers: list[Answer] = []
        self.values: list[float] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        values = self.rule(answers)
        self.answers += answers
        self.values += values
        return list(values)


def train(
    folder: Path,
    settings: PolicyGradient,
    reward: Any,
    *,
    policy: Policy | None = None,
    reference: Any = None,
    prompts: Sequence[PromptIds] | None = None,
) -> tuple[Cost, list[JSON]]:
    policy = policy or letters_policy(spread=4.0)
    run = run_folder(folder)
    cost = train_policy_gradient(
        policy, reference or copy_of(policy.model), reward, prompts or letters_prompts(16), settings, run,
        max_new_tokens=LONGEST, seed=0, starts_at_reference=reference is None,
    )  # fmt: skip
    return cost, read_lines(run.metrics)


def plain_advantages(model: Any, reference: Any, reward: Recorder, settings: PolicyGradient) -> list[float]:
    """Â of each response, from its definition."""
    rewards = []
    for answer, value in zip(reward.answers, reward.values, strict=True):
        n = len(answer.response_ids)
        paid = value - (0.0 if answer.response_ids[-1] == END_ID else settings.missing_end_penalty)
        if buffer := settings.overlong_buffer_tokens:
            paid += min(-(n - (LONGEST - buffer)) / buffer * settings.overlong_factor, 0)
        if settings.kl_penalty == "reward":
            with torch.no_grad():
                mine, other = (plain_logprobs(m, answer, settings.temperature) for m in (model, reference))
            paid -= settings.kl_coefficient * float((mine - other).sum())
        rewards.append(paid)
    advantages = []
    for i, paid in enumerate(rewards):
        group = rewards[i // settings.responses * settings.responses :][: settings.responses]
        others = rewards if settings.baseline == "batch" else group
        baseline = (
            statistics.mean(group) if settings.baseline == "group-mean" else (sum(others) - paid) / (len(others) - 1)
        )
        scale = {
            "none": 1.0,
            "group-std": statistics.stdev(group) + 1e-6 if settings.responses > 1 else None,
            "batch-std": statistics.stdev(rewards) + 1e-6,
        }[settings.scale]
        advantages.append((paid - baseline) / scale)
    return advantages


SETTINGS: dict[str, PolicyGradient] = {
    "grpo": GRPO(**SMALL),
    "dr-grpo": DrGRPO(**SMALL),
    "dapo": DAPO(**SMALL | {"epochs": 1}, dynamic_sampling=False, clip_higher=None),
    "rloo": RLOO(**SMALL),
    "reinforce": Reinforce(**SMALL | {"responses": 1}),
    "k2": GRPO(**SMALL, kl_penalty="k2", kl_coefficient=0.5),
    "full": GRPO(**SMALL, kl_penalty="full", kl_coefficient=0.5),
    "k3, summed": RLOO(**SMALL, kl_penalty="k3", kl_coefficient=0.5),
    "in the reward": GRPO(**SMALL, kl_penalty="reward", kl_coefficient=0.5),
    "by the batch": RLOO(**SMALL, baseline="batch", scale="batch-std"),
    "half warm": GRPO(**SMALL, temperature=0.7, kl_penalty="full", kl_coefficient=0.5, aggregation="token-mean"),
    "overlong": DrGRPO(**SMALL, overlong_buffer_tokens=3, overlong_factor=0.5, missing_end_penalty=0.0),
    "no penalty": DrGRPO(**SMALL, missing_end_penalty=0.0, aggregation="seq-mean-token-mean"),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_step_is_the_formula_however_it_is_cut_into_micro_batches(name: str, tmp_path: Path) -> None:
    """The gradient of 12 ragged responses at once, by 5, and one by one, is that of plain loops, to 2e-6."""
    settings, found = SETTINGS[name], []
    reference = letters_policy(seed=1, spread=4.0).model
    for micro in (12, 5, 1):
        policy, reward = letters_policy(spread=4.0), Recorder()
        seen = gradients_of(policy.model)
        train(
            tmp_path / str(micro), dataclasses.replace(settings, batch=RolloutBatch(size=12, mini=12, micro=micro)),
            reward, policy=policy, reference=reference,
        )  # fmt: skip
        found.append(seen)
    assert len({len(answer.response_ids) for answer in reward.answers}) > 2
    start = letters_policy(spread=4.0).model
    advantages = plain_advantages(start, reference, reward, settings)
    expected = plain_gradient(
        start,
        reference,
        reward.answers,
        [[a] * len(answer.response_ids) for a, answer in zip(advantages, reward.answers, strict=True)],
        settings,
        longest=LONGEST,
    )
    for gradients in found:
        assert relative_gap(gradients, expected) < 2e-6


def test_each_method_and_each_setting_steps_another_way(tmp_path: Path) -> None:
    """No name and no option of the list above gives the gradient of another."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, settings in SETTINGS.items():
        policy = letters_policy(spread=4.0)
        found[name] = gradients_of(policy.model)
        train(tmp_path / name, settings, Recorder(), policy=policy, reference=letters_policy(seed=1, spread=4.0).model)
    for one, other in itertools.combinations(found, 2):
        if {one, other} != {"grpo"}:
            assert relative_gap(found[one], found[other]) > 1e-2, f"{one} steps as {other} does"


@pytest.mark.parametrize("clip_higher", [None, 2.0])
@pytest.mark.parametrize("kl_penalty", ["reward", "k2", "k3", "full"])
def test_away_from_the_policy_that_sampled_the_ratio_is_clipped(kl_penalty: Any, clip_higher: float | None) -> None:
    """The objective's gradient at another policy, by micro-batches of 5, against plain loops with ratio and clip."""
    settings = RLOO(
        **SMALL | {"epochs": 2}, kl_penalty=kl_penalty, kl_coefficient=0.2, clip_higher=clip_higher, temperature=0.8
    )
    old, policy, reference = (letters_policy(seed=seed, spread=4.0) for seed in (0, 1, 2))
    prompts = [prompt for prompt in letters_prompts(3) for _ in range(4)]
    responses = sample(
        old.model, [p.ids for p in prompts], keys=[str(i) for i in range(12)], end_id=END_ID, max_new_tokens=LONGEST,
        seed=0, temperature=0.8,
    )  # fmt: skip
    rollout = roll_out(old, reference.model, responses, [0.0] * 12, temperature=0.8, batch_size=5)
    advantages = torch.linspace(-1, 1, 12)
    objective = Objective(
        rollout=rollout, advantages=advantages.unsqueeze(1).expand_as(rollout.batch.mask), learned=rollout.batch.mask,
        reference=reference.model, settings=settings, kl_coefficient=0.2, longest=LONGEST,
    )  # fmt: skip
    rows, fractions = torch.arange(12), []
    for micro in rows.split(5):
        of_policy = scored(policy.model, rollout.batch.rows(micro), temperature=0.8, logits=settings.needs_logits)
        loss, figures = objective.share(of_policy, micro, rows)
        loss.backward()
        fractions.append(figures["clip_fraction"])
    found = {name: parameter.grad for name, parameter in policy.model.named_parameters()}
    answers = [Answer("", "", r.prompt, r.tokens, r.ended) for r in responses]
    of_tokens = [[a] * len(r.tokens) for a, r in zip(advantages.tolist(), responses, strict=True)]
    expected = plain_gradient(
        policy.model, reference.model, answers, of_tokens, settings, longest=LONGEST, old=old.model
    )
    assert relative_gap(found, expected) < 5e-6  # type: ignore[arg-type]
    with torch.no_grad():
        ratios = torch.cat(
            [(plain_logprobs(policy.model, a, 0.8) - plain_logprobs(old.model, a, 0.8)).exp() for a in answers]
        )
    outside = (ratios < 0.8) | (ratios > 1 + (clip_higher or 0.2))
    assert 0.1 < float(outside.double().mean()) < 0.9
    assert sum(fractions) == pytest.approx(float(outside.double().mean()))


@pytest.mark.parametrize("kl_penalty", ["k3", "full"])
def test_logits_of_all_response_tokens_are_held_for_a_full_penalty_alone(
    kl_penalty: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output layer, where it is called and not its weights alone, sees a token or two at a time: in sampling, and
    for the entropy of the log."""
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 2 * VOCABULARY)
    policy, seen = letters_policy(spread=4.0), list[int]()
    policy.model.lm_head.register_forward_hook(lambda module, args, output: seen.append(output.shape[-2]))
    cost, _ = train(tmp_path, GRPO(**SMALL, kl_penalty=kl_penalty), ShareOf("a"), policy=policy)
    assert cost.trained_tokens > 0
    assert max(seen) == (LONGEST if kl_penalty == "full" else 2)


def test_masked_responses_leave_the_loss_and_stay_in_the_baseline(tmp_path: Path) -> None:
    settings = GRPO(**SMALL, mask_truncated=True)
    policy, reward = letters_policy(spread=4.0), Recorder()
    reference = letters_policy(seed=1, spread=4.0).model
    seen = gradients_of(policy.model)
    _, (line,) = train(tmp_path, settings, reward, policy=policy, reference=reference)
    start = letters_policy(spread=4.0).model
    advantages = plain_advantages(start, reference, reward, settings)
    whole = [i for i, answer in enumerate(reward.answers) if answer.ended]
    assert 0 < len(whole) < 12
    expected = plain_gradient(
        start, reference, [reward.answers[i] for i in whole],
        [[advantages[i]] * len(reward.answers[i].response_ids) for i in whole], settings, longest=LONGEST,
    )  # fmt: skip
    assert relative_gap(seen, expected) < 2e-6
    assert line["end_rate"] == len(whole) / 12


def never_ends() -> Policy:
    """A policy whose end token is out of reach."""
    policy = letters_policy(spread=1.0)
    forward = policy.model.forward

    def without_end(*args: Any, **kwargs: Any) -> Any:
        outputs = forward(*args, **kwargs)
        outputs.logits = outputs.logits.index_fill(-1, torch.tensor([END_ID]), -1e4)
        return outputs

    policy.model.forward = without_end
    return policy


def test_where_every_response_is_cut_and_masked_the_run_stops(tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="raise the length limit, or turn mask_truncated off"):
        train(
            tmp_path, GRPO(**SMALL, mask_truncated=True), ShareOf("a"), policy=never_ends(),
            reference=letters_policy().model,
        )  # fmt: skip


@pytest.mark.parametrize("settings", [GRPO(**SMALL), RLOO(**SMALL), DrGRPO(**SMALL)], ids=["grpo", "rloo", "dr-grpo"])
def test_before_any_update_the_ratio_is_1_and_the_kl_0(settings: PolicyGradient, tmp_path: Path) -> None:
    """And the loss of GRPO is 0 whatever the rewards are: its value is no progress."""
    settings = dataclasses.replace(settings, updates=2, epochs=2, batch=RolloutBatch(size=12, mini=6, micro=5))
    policy = letters_policy(spread=4.0)
    before = copy.deepcopy(policy.model.state_dict())
    _, lines = train(tmp_path, settings, ShareOf("a"), policy=policy)
    for line in lines:
        assert line["ratio"] == pytest.approx(1, abs=1e-5)
        assert line["kl_nats"] == pytest.approx(0, abs=1e-5)
        assert line["approx_kl_nats"] == pytest.approx(0, abs=1e-9)
        assert line["clip_fraction"] == 0
        assert line["objective"] == pytest.approx(line["reward"], abs=1e-5)
        assert line["optimizer_steps"] == 4
        if isinstance(settings, GRPO):
            assert line["policy_loss"] == pytest.approx(0, abs=1e-5)
            assert line["kl_loss"] == pytest.approx(0, abs=1e-9)
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


def test_the_expected_step_of_grpo_is_the_slope_of_its_surrogate() -> None:
    """Three one-token responses, in expectation over all 27 groups of three; π is neither π_old nor π_ref."""
    old, reference = (torch.tensor(p, dtype=torch.float64) for p in ([0.5, 0.3, 0.2], [0.2, 0.3, 0.5]))
    reward, beta = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64), 0.3
    groups = list(itertools.product(range(3), repeat=3))

    def surrogate(logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        total = torch.zeros((), dtype=torch.float64)
        for group in groups:
            paid = [reward[y].item() for y in group]
            deviation = statistics.stdev(paid) + 1e-6
            chance = old[list(group)].prod()
            for y, mine in zip(group, paid, strict=True):
                advantage = (mine - statistics.mean(paid)) / deviation
                ratio = p[y] / old[y]
                bounded = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
                u = reference[y] / p[y]
                total = total - chance / 3 * (bounded - beta * (u - 1 - u.log()))
        return total

    def ours(logits: Tensor) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        mask = torch.ones(3, 1, dtype=torch.bool)
        for group in groups:
            y = torch.tensor(group)
            advantages = over_std(less_group_mean(reward[y], group=3), reward[y], group=3).unsqueeze(1)
            logprobs = logits.log_softmax(-1)[y].unsqueeze(1)
            losses = ppo_clip(logprobs, old.log()[y].unsqueeze(1), advantages, clip=0.2)
            losses = losses + beta * k3(logprobs, reference.log()[y].unsqueeze(1))
            share = aggregate(losses, mask, "seq-mean-token-mean", responses=3, tokens=3, longest=1)
            total = total + old[y].prod() * share
        return total

    for point in ([0.0, 0.1, -0.2], [1.0, 0.2, -0.4]):
        logits = torch.tensor(point, dtype=torch.float64)
        leaf = logits.clone().requires_grad_()
        ours(leaf).backward()
        expected = central_differences(surrogate, logits)
        assert expected.abs().max() > 0.05
        torch.testing.assert_close(leaf.grad, expected, rtol=0, atol=1e-8)


@pytest.mark.parametrize("group", [2, 3])
def test_leaving_one_out_is_unbiased_and_the_group_mean_a_share_of_it(group: int) -> None:
    """−∇(E r − β·KL) on three responses, in expectation over all groups; the group mean gives 1 − 1/k of it."""
    reward = torch.tensor([1.0, 0.2, -0.5], dtype=torch.float64)
    reference = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    beta, point = 0.3, torch.tensor([0.4, -0.1, 0.2], dtype=torch.float64)

    def objective(logits: Tensor) -> Tensor:
        p = logits.softmax(-1)
        return (p * (reward - beta * (p / reference).log())).sum()

    def expected_step(advantages_of: Any) -> Tensor:
        leaf = point.clone().requires_grad_()
        logprobs = leaf.log_softmax(-1)
        old = logprobs.detach()
        total = torch.zeros((), dtype=torch.float64)
        for responses in itertools.product(range(3), repeat=group):
            y = torch.tensor(responses)
            paid = reward[y] - beta * (old[y] - reference.log()[y])
            losses = ppo_clip(logprobs[y], old[y], advantages_of(paid, group=group), clip=0.2)
            total = total + old[y].sum().exp() * losses.mean()
        total.backward()
        assert leaf.grad is not None
        return leaf.grad

    truth = -central_differences(objective, point)
    assert truth.abs().max() > 0.05
    torch.testing.assert_close(expected_step(leave_one_out), truth, rtol=0, atol=1e-8)
    torch.testing.assert_close(expected_step(less_group_mean), (1 - 1 / group) * truth, rtol=0, atol=1e-8)


class SomePrompts:
    """Nothing to learn from prompts of one letter: whatever is said, the reward is 0."""

    name = "some prompts"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [0.0 if len(a.prompt_ids) == 1 else float(i % 4) for i, a in enumerate(answers)]


DYNAMIC = DAPO(**SMALL | {"updates": 4}, clip_higher=None, missing_end_penalty=0.0)


def test_dynamic_sampling_learns_from_the_prompts_that_teach_something(tmp_path: Path) -> None:
    """The gradient is that of the kept groups, and what was sampled in vain is counted and paid."""
    policy, reward = letters_policy(spread=4.0), Recorder(SomePrompts())
    seen = gradients_of(policy.model)
    settings = dataclasses.replace(DYNAMIC, updates=1)
    cost, (line,) = train(tmp_path, settings, reward, policy=policy, prompts=letters_prompts(7))
    kept = [i for i, answer in enumerate(reward.answers) if len(answer.prompt_ids) > 1]
    assert len(kept) == 12 < len(reward.answers)
    assert line["dropped_responses"] == len(reward.answers) - 12
    assert line["zero_advantages"] == 0
    assert line["reward"] == pytest.approx(statistics.mean(reward.values))  # of all that was sampled
    assert cost.reward_calls == len(reward.answers)
    assert cost.generated_tokens == sum(len(answer.response_ids) for answer in reward.answers)
    only = Recorder()
    only.answers, only.values = [reward.answers[i] for i in kept], [reward.values[i] for i in kept]
    start = letters_policy(spread=4.0).model
    advantages = plain_advantages(start, start, only, settings)
    expected = plain_gradient(
        start, start, only.answers, [[a] * len(o.response_ids) for a, o in zip(advantages, only.answers, strict=True)],
        settings, longest=LONGEST,
    )  # fmt: skip
    assert relative_gap(seen, expected) < 2e-6


def test_dynamic_sampling_visits_each_prompt_once_an_epoch(tmp_path: Path) -> None:
    reward = Recorder(SomePrompts())
    prompts = letters_prompts(7)
    keys = {prompt.ids: [p.key for p in prompts if p.ids == prompt.ids] for prompt in prompts}
    assert all(len(same) == 1 for same in keys.values())
    train(tmp_path, DYNAMIC, reward, prompts=prompts)
    visited = [answer.prompt_ids for answer in reward.answers[::4]]
    assert len(visited) > 14
    assert len(visited) % 7 or len(visited) == 21
    for begin in range(0, len(visited) - 6, 7):
        assert len(set(visited[begin : begin + 7])) == 7
    # Responses of a prompt that comes again are others.
    twice = [a.response_ids for a in reward.answers if a.prompt_ids == visited[0]]
    assert len(set(twice)) > 4


def test_dynamic_sampling_makes_do_with_fewer_prompts_and_stops_at_none(tmp_path: Path) -> None:
    one_letter, longer = letters_prompts(7)[0], letters_prompts(7)[1]
    assert (len(one_letter.ids), len(longer.ids)) == (1, 2)
    prompts = [dataclasses.replace(one_letter, key=f"dull:{i}") for i in range(8)]
    settings = dataclasses.replace(DYNAMIC, updates=1, refill_rounds=2)
    with pytest.raises(NumericError, match=r"each of 9 prompts.*raise refill_rounds"):
        train(tmp_path / "none", settings, SomePrompts(), prompts=prompts)
    crash = json.loads((tmp_path / "none" / "crash.json").read_text())
    assert (crash["step"], len(crash["rows"])) == (1, 9)
    # Three prompts, of which one teaches something: it comes once in the first draw, perhaps again in the second.
    reward = Recorder(SomePrompts())
    settings = dataclasses.replace(settings, refill_rounds=1)
    _, (line,) = train(tmp_path / "one", settings, reward, prompts=[longer, *prompts[:2]])
    assert len(reward.answers) == 12 + 8
    taught = sum(len(answer.prompt_ids) == 2 for answer in reward.answers)
    assert taught in (4, 8)
    assert line["dropped_responses"] == 20 - taught
    assert line["optimizer_steps"] == 1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (GRPO(responses=1), "baseline = group-mean needs several responses"),
        (RLOO(responses=1), "baseline = leave-one-out needs several"),
        (Reinforce(scale="group-std"), "use batch-std"),
        (Reinforce(dynamic_sampling=True), "dynamic_sampling compares"),
        (Reinforce(batch=RolloutBatch(size=1, mini=1)), "nothing to compare"),
        (GRPO(responses=7), "responses = 7 does not divide batch.size = 128; try 8"),
        (GRPO(kl_coefficient=0.0, kl_penalty="k2"), "kl_penalty = k2 does nothing"),
        (DrGRPO(kl_penalty="full"), "kl_penalty = full does nothing"),
        (GRPO(refill_rounds=3), "refill_rounds = 3 does nothing"),
        (GRPO(overlong_factor=2.0), "overlong_factor = 2.0 does nothing"),
        (GRPO(clip_higher=0.3, batch=RolloutBatch(mini=128)), "clip_higher = 0.3 does nothing"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: PolicyGradient, said: str, tmp_path: Path) -> None:
    problem = settings.misfit()
    assert problem is not None
    assert said in problem
    with pytest.raises(ConfigError, match=re.escape(problem)):
        train(tmp_path, settings, ShareOf("a"))


@pytest.mark.parametrize("settings", [GRPO(), DrGRPO(), DAPO(), RLOO(), Reinforce(), GRPO(kl_coefficient=0.0)])
def test_the_defaults_fit_together(settings: PolicyGradient) -> None:
    assert settings.misfit() is None


def test_an_overlong_buffer_longer_than_a_response_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="more than the 5 tokens"):
        train(tmp_path, GRPO(**SMALL, overlong_buffer_tokens=6), ShareOf("a"))


@pytest.mark.parametrize(
    "settings",
    [GRPO(responses=8), RLOO(responses=4), Reinforce(), DAPO(responses=8), DrGRPO(responses=8)],
    ids=lambda settings: type(settings).__name__,
)
def test_each_method_learns_to_say_a(settings: PolicyGradient, tmp_path: Path) -> None:
    settings = dataclasses.replace(
        settings, updates=10, batch=RolloutBatch(size=64, mini=32, micro=32), evaluations=1,
        missing_end_penalty=0.0, optimizer=Optimizer(learning_rate=5e-3, warmup_steps=0),
    )  # fmt: skip
    _, lines = train(tmp_path, settings, ShareOf("a"), policy=letters_policy(spread=2.0))
    assert lines[-1]["reward"] > lines[0]["reward"] + 0.25
