"""What an update computes once: the sampler's numbers in place of a pass, the reference where it is asked for, the
frozen trunk of a rollout."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cells import cells_through, sampling
from enumerable import (
    END_ID,
    FIRST_LETTER,
    ShareOf,
    letters_policy,
    letters_prompts,
    run_folder,
    value_model,
)
from gradients import gradients_of, relative_gap
from preflab.config.online import GRPO, PPO, RLOO, DrGRPO, Online, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch, Ranking
from preflab.config.pair_losses import SumLoss
from preflab.config.training import Optimizer, Trunk
from preflab.errors import NumericError
from preflab.models.freezing import freeze
from preflab.models.head import head_of
from preflab.models.load import Policy, copy_of
from preflab.models.precision import has_bf16, work_in
from preflab.models.trunk import split_of
from preflab.rewards.protocol import Answer
from preflab.rollouts.modules import modules_of
from preflab.rollouts.sampler import sample
from preflab.runs import JSON, read_lines
from preflab.training import online, rollout
from preflab.training.cost import Cost
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds, roll_out
from test_flops import IN_PLACE
from tiny import tiny_policy
from untimed import untimed

STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
MOVING = Optimizer(learning_rate=1e-3, warmup_steps=0)
SHARED: dict[str, Any] = {
    "updates": 1, "batch": RolloutBatch(size=16, mini=16, micro=5), "responses": 4, "epochs": 1, "evaluations": 1,
}  # fmt: skip
PAIRS: dict[str, Any] = {"updates": 1, "batch": PairBatch(size=8, mini=8, micro=3), "evaluations": 1}
METHODS: dict[str, PPO | GRPO | OnlineDPO] = {
    "ppo": PPO(**SHARED, value_optimizer=STILL),
    "ppo, shared trunk": PPO(**SHARED, value_trunk="shared"),
    "grpo": GRPO(**SHARED),
    "grpo, full": GRPO(**SHARED, kl_penalty="full", temperature=0.7),
    "online dpo": OnlineDPO(**PAIRS),
    "online dpo, three temperatures": OnlineDPO(**PAIRS, ranking=Ranking(temperatures=(0.5, 1.0, 2.0))),
}


def train(
    folder: Path,
    settings: Any,
    *,
    policy: Policy | None = None,
    reference: Any = None,
    reward: Any = None,
    prompts: Sequence[PromptIds] | None = None,
    longest: int = 5,
    **more: Any,
) -> tuple[Cost, list[JSON]]:
    """One run of any method that samples."""
    policy, run, reward = policy or letters_policy(spread=4.0), run_folder(folder / "run"), reward or ShareOf("a")
    reference = reference or letters_policy(seed=1, spread=4.0).model
    prompts = prompts or letters_prompts(8)
    limits: dict[str, Any] = {"max_new_tokens": longest, "seed": 0, "starts_at_reference": False} | more
    match settings:
        case PPO():
            value = None if settings.value_trunk == "shared" else value_model(folder)
            cost = train_ppo(policy, value, reference, reward, prompts, settings, run, **limits)
        case OnlineDPO():
            cost = train_online_dpo(policy, reference, reward, prompts, settings, run, **limits)
        case _:
            cost = train_policy_gradient(policy, reference, reward, prompts, settings, run, **limits)
    return cost, untimed(read_lines(run.metrics))


@contextmanager
def passes(**models: Any) -> Iterator[Counter[tuple[str, bool]]]:
    """How often each body is run, with gradients (True) and without; sampling is left out."""
    found: Counter[tuple[str, bool]] = Counter()

    def watch(name: str, body: Any) -> Any:
        def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
            if not sampling(kwargs):
                found[name, torch.is_grad_enabled()] += 1

        return body.register_forward_pre_hook(count, with_kwargs=True)

    with cells_through(*models.values()):  # what is tried once is tried here
        hooks = [watch(name, model.base_model) for name, model in models.items()]
        try:
            yield found
        finally:
            for hook in hooks:
                hook.remove()


def rolled(policy: Policy, *, states: bool, **more: Any) -> rollout.Rollout:
    prompts = letters_prompts(6)
    responses = sample(
        policy.model, [p.ids for p in prompts], keys=[p.key for p in prompts], end_id=END_ID, max_new_tokens=7, seed=0,
        samples=2, states=states,
    )  # fmt: skip
    reference = letters_policy(seed=1, spread=4.0).model
    return roll_out(policy, reference, responses, [0.0] * 12, batch_size=5, **{"temperature": 1.0} | more)


def test_the_samplers_states_give_what_a_pass_gives() -> None:
    policy = letters_policy(spread=4.0)
    head = torch.linspace(-1, 1, 16)
    apart: dict[str, Any] = {
        "temperature": 0.6, "sampled_at": [1.0] * 12, "of_states": lambda states: states @ head
    }  # fmt: skip
    passed = rolled(policy, states=False, **apart)
    with passes(policy=policy.model) as seen:
        read = rolled(policy, states=True, asserted=True, **apart)
    assert not seen
    assert (passed.sampler_gap is None, read.sampler_gap is None) == (False, True)
    of_pass, of_states = (vars(one) | vars(one.measured) for one in (passed, read))
    for name in ("logprobs", "under_reference", "kl", "entropy", "of_states"):
        torch.testing.assert_close(of_states[name], of_pass[name], atol=1e-5, rtol=0)
        assert of_pass[name].abs().max() > 0.1
    assert all(response.states is None for response in read.responses)  # they are not held while the method learns


def test_without_states_log_probabilities_need_no_pass_and_distributions_do() -> None:
    policy = letters_policy(spread=4.0)
    with passes(policy=policy.model) as seen:
        bare = rolled(policy, states=False, asserted=True, measured=False, referred=False)
    assert not seen
    assert (bare.sampler_gap, bare.under_reference, bare.distributions) == (None, None, None)
    measured = rolled(policy, states=False, asserted=True)
    assert measured.sampler_gap is not None
    torch.testing.assert_close(bare.logprobs, measured.logprobs, atol=1e-5, rtol=0)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
def test_in_bf16_a_pass_gives_the_log_probabilities() -> None:
    """Two passes differ by more than the ratio of the policy to itself may."""
    policy = letters_policy(spread=4.0)
    work_in(policy.model, "bf16-autocast")
    with passes(policy=policy.model) as seen:
        found = rolled(policy, states=True, asserted=True, measured=False, referred=False)
    assert seen["policy", False] == 3
    assert found.sampler_gap is not None
    assert found.sampler_gap > 0


@pytest.mark.parametrize("name", METHODS)
def test_an_update_is_the_same_with_the_samplers_numbers_as_with_a_pass(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[tuple[dict[str, Tensor], dict[str, Tensor], JSON]] = []
    for given in (True, False):
        if not given:
            monkeypatch.setattr(rollout, "stands_for_pass", lambda *args, **kw: False)
        policy = letters_policy(spread=4.0)
        policy.model.double()
        reference = letters_policy(seed=1, spread=4.0).model.double()
        seen = gradients_of(policy.model)
        settings = dataclasses.replace(METHODS[name], optimizer=MOVING, epochs=3)
        with passes(policy=policy.model) as count:
            _, (line,) = train(tmp_path / str(given), settings, policy=policy, reference=reference)
        assert (count["policy", False] == 0) == given
        found.append((policy.model.state_dict(), seen, line))
    (weights, gradients, line), (others, other_gradients, other_line) = found
    assert relative_gap(gradients, other_gradients) < 1e-6
    assert all((others[name] - weight).abs().max() < 1e-6 for name, weight in weights.items())
    start = letters_policy(spread=4.0).model.double().state_dict()
    assert max(float((start[name] - weight).abs().max()) for name, weight in weights.items()) > 1e-3
    assert line["step"] == other_line["step"]
    assert line == pytest.approx(other_line, abs=1e-5)


class Meddler:
    """A reward that changes a weight of the policy, between sampling and learning."""

    name = "meddler"

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        with torch.no_grad():
            self.policy.model.transformer.wte.weight[2] *= 1.5
        return ShareOf("a")(answers)


@pytest.mark.parametrize("logged", [True, False])
@pytest.mark.parametrize("name", METHODS)
def test_a_policy_that_is_not_the_one_that_sampled_takes_no_step(name: str, logged: bool, tmp_path: Path) -> None:
    policy = letters_policy(spread=4.0)
    expected = copy.deepcopy(policy)
    settings = dataclasses.replace(METHODS[name], updates=2, optimizer=MOVING)
    with pytest.raises(NumericError, match="not the one that sampled"):
        train(tmp_path, settings, policy=policy, reward=Meddler(policy), log_every=1 if logged else 2)
    Meddler(expected)([Answer("", "a", (2,), (2,), True)])
    weights = expected.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize(
    "settings",
    [
        PPO(**SHARED | {"updates": 5}, kl_coefficient=0.0),
        DrGRPO(**SHARED | {"updates": 5}),
        OnlineDPO(**PAIRS | {"updates": 5}, loss=SumLoss(terms="simpo")),
    ],
    ids=["ppo", "dr-grpo", "online-dpo"],
)
@pytest.mark.parametrize("starts", [False, True])
def test_a_reference_that_nobody_asks_is_not_run(settings: Any, starts: bool, tmp_path: Path) -> None:
    policy = letters_policy(spread=4.0)
    reference = copy_of(policy.model)
    updates: list[int] = []

    class Counting(ShareOf):
        calls = 0

        def __call__(self, answers: Sequence[Answer]) -> list[float]:
            Counting.calls += 1
            return super().__call__(answers)

    reference.base_model.register_forward_pre_hook(lambda *_: updates.append(Counting.calls))
    with cells_through(reference):
        updates.clear()
        train(
            tmp_path, settings, policy=policy, reference=reference, reward=Counting("a"), log_every=3,
            starts_at_reference=starts,
        )  # fmt: skip
    assert set(updates) == ({1} if starts else set()) | {3, 5}  # its start, logged, the last


@pytest.mark.parametrize("coefficient", [0.0, 0.1])
@pytest.mark.parametrize("trunk", ["shared", "separate"])
def test_ppo_runs_each_body_as_often_as_the_page_says(trunk: Any, coefficient: float, tmp_path: Path) -> None:
    policy, reference = letters_policy(spread=4.0), letters_policy(seed=1, spread=4.0).model
    settings = PPO(
        **SHARED | {"updates": 3, "epochs": 2, "batch": RolloutBatch(size=16, mini=8, micro=4)},
        value_trunk=trunk, kl_coefficient=coefficient,
    )  # fmt: skip
    with passes(policy=policy.model, reference=reference) as seen:
        train(tmp_path, settings, policy=policy, reference=reference, log_every=3)
    rolls, steps = 4, 2 * 4  # micro-batches of a rollout, and of the epochs
    assert seen["policy", True] == 3 * steps
    assert seen["policy", False] == 0
    assert seen["reference", False] == (3 if coefficient else 1) * rolls


def test_a_prompt_is_read_once_for_its_responses_in_whatever_order_they_are_stepped_on(tmp_path: Path) -> None:
    read: list[list[int]] = []
    policy = letters_policy(spread=4.0)
    prompts = [PromptIds(f"p:{i}", "aaaaaaaa", (FIRST_LETTER + i,) * 12) for i in range(4)]

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if torch.is_grad_enabled():
            read.append((kwargs["position_ids"] == 11).nonzero()[:, 1].tolist())

    with cells_through(policy.model):
        hook = policy.model.base_model.register_forward_pre_hook(count, with_kwargs=True)
        settings = RLOO(**SHARED | {"batch": RolloutBatch(size=16, mini=16, micro=4)})
        train(tmp_path, settings, policy=policy, prompts=prompts)
        hook.remove()
    assert [len(lasts) for lasts in read] == [1, 1, 1, 1]  # one prompt, its last token at place 11, a micro-batch


TRUNKS: dict[str, Callable[[], Online]] = {
    "grpo": lambda: RLOO(**SHARED | {"updates": 3, "epochs": 2}, freeze_blocks=1, optimizer=MOVING),
    "ppo": lambda: PPO(**SHARED | {"updates": 3, "epochs": 2}, freeze_blocks=1, optimizer=MOVING, value_trunk="shared"),
}


def tiny_prompt_ids(n: int) -> list[PromptIds]:
    return [PromptIds(f"p:{i}", "x", tuple(5 + (7 * i + k) % 90 for k in range(5))) for i in range(n)]


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("name", [*TRUNKS, "online dpo"])
def test_a_frozen_trunk_runs_once_a_rollout_and_changes_nothing(
    name: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its prompts come again in each update, with other responses; their states then lie elsewhere."""
    more = {"updates": 2, "epochs": 2 if again else 1}
    settings: Any = (
        dataclasses.replace(TRUNKS[name](), **more) if name in TRUNKS
        else OnlineDPO(
            **PAIRS | more | {"batch": PairBatch(size=4, mini=4, micro=3)}, freeze_blocks=1, optimizer=MOVING
        )
    )  # fmt: skip
    found: list[tuple[dict[str, Tensor], list[JSON], int]] = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(online, "Trunk", lambda: Trunk(disk_gib=0))
        policy = tiny_policy(width=64)
        reference = copy_of(policy.model)
        freeze(policy.model, 1)
        for model, trained in ((policy.model, True), (reference, False)):  # what is tried once is tried here
            head_of(model)
            modules_of(model, 64)
            split_of(model.base_model, 1, trained=trained)
        blocks: Counter[bool] = Counter()

        def count(module: Any, args: Any, kwargs: dict[str, Any], blocks: Counter[bool] = blocks) -> None:
            blocks[not sampling(kwargs)] += 1

        for model in (policy.model, reference):
            model.transformer.h[0].attn.register_forward_pre_hook(count, with_kwargs=True)
        with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
            cost, lines = train(
                tmp_path / str(kept), settings, policy=policy, reference=reference, prompts=tiny_prompt_ids(4),
                reward=Odd(), longest=9,
            )  # fmt: skip
        assert cost.flops == pytest.approx(counter.get_total_flops(), rel=0.02)
        found.append((policy.model.state_dict(), lines, blocks[True]))
    (weights, lines, runs), (_, other_lines, other_runs) = found
    for line, other in zip(lines, other_lines, strict=True):
        assert line == pytest.approx(other, rel=1e-4, abs=1e-5)
    parts = 16 / (3 if name == "online dpo" else 5)  # of 16 responses, as the reference reads them
    assert runs == 2 * math.ceil(parts) < other_runs
    start = tiny_policy(width=64).model.state_dict()
    assert max(float((start[name] - weight).abs().max()) for name, weight in weights.items()) > 1e-3


def test_values_that_warm_up_read_the_frozen_trunk_that_the_scorer_ran(tmp_path: Path) -> None:
    """In such an update no pass of the policy follows sampling but the scorer's, and the values' own."""
    policy = tiny_policy(width=64)
    freeze(policy.model, 1)
    runs = [0]

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        runs[0] += not sampling(kwargs)

    split_of(policy.model.base_model, 1, trained=True)  # what is tried once is tried here
    modules_of(policy.model, 64)
    policy.model.transformer.h[0].attn.register_forward_pre_hook(count, with_kwargs=True)
    at_update: list[int] = []

    class Reward(Odd):
        def __call__(self, answers: Sequence[Answer]) -> list[float]:
            at_update.append(runs[0])
            return super().__call__(answers)

    settings = PPO(
        **SHARED | {"updates": 2}, freeze_blocks=1, value_trunk="shared", kl_coefficient=0.0, value_warmup_updates=1
    )
    train(
        tmp_path, settings, policy=policy, reference=copy_of(policy.model), prompts=tiny_prompt_ids(4), reward=Reward(),
        longest=9, log_every=5,
    )  # fmt: skip
    assert at_update[1] - at_update[0] == math.ceil(16 / 5)


class Odd:
    name = "odd"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [sum(token % 2 for token in answer.response_ids) / len(answer.response_ids) for answer in answers]
