"""Every optimiser step of a run, not the first alone, is the formula at the weights that it was taken from.

Between the steps the weights move, so whatever an update takes over (log π_old from the sampler, the frozen trunk's
states, the reference's log-probabilities) is told from what it must compute anew.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from enumerable import END_ID, ShareOf, letters_policy, letters_prompts, run_folder
from gradients import gradients_of, plain_gradient, plain_logprobs, relative_gap
from preflab.config.online import GRPO, RLOO, PolicyGradient, RolloutBatch
from preflab.config.training import Optimizer
from preflab.rewards.protocol import Answer
from preflab.training.policy_gradient import train_policy_gradient

LONGEST = 5
GIVEN: dict[str, Any] = {
    "updates": 3, "epochs": 2, "batch": RolloutBatch(size=12, mini=12, micro=5), "responses": 4, "evaluations": 1,
    "optimizer": Optimizer(learning_rate=0.02, warmup_steps=0), "temperature": 0.8, "missing_end_penalty": 0.5,
}  # fmt: skip
SETTINGS: dict[str, PolicyGradient] = {
    "KL in the reward": RLOO(**GIVEN, kl_coefficient=0.3),
    "KL in the loss": GRPO(**GIVEN, kl_coefficient=0.3),
    "full KL": GRPO(**GIVEN, kl_coefficient=0.3, kl_penalty="full"),
    "by tokens": GRPO(**GIVEN | {"batch": RolloutBatch(size=12, mini=12, tokens=20)}, kl_coefficient=0.3),
}


@dataclass
class Witness:
    """Pays for the letter a; keeps what it saw, and the policy that had just sampled it."""

    model: Any
    rollouts: list[tuple[list[Answer], list[float], Any]] = field(default_factory=list)
    name: str = field(default="witness", init=False)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        paid = ShareOf("a", scale=2.0)(answers)
        self.rollouts.append((list(answers), paid, copied(self.model)))
        return paid


def copied(model: Any) -> Any:
    """The weights of now, in a model without hooks or gradients."""
    other = letters_policy(spread=4.0).model
    other.load_state_dict(model.state_dict())
    return other


def advantages(
    answers: Sequence[Answer], paid: Sequence[float], old: Any, reference: Any, settings: Any
) -> list[float]:
    """Â of each response, from its definition."""
    rewards = []
    for answer, value in zip(answers, paid, strict=True):
        value -= 0.0 if answer.response_ids[-1] == END_ID else settings.missing_end_penalty
        if settings.kl_penalty == "reward":
            with torch.no_grad():
                both = [plain_logprobs(model, answer, settings.temperature) for model in (old, reference)]
            value -= settings.kl_coefficient * float((both[0] - both[1]).sum())
        rewards.append(value)
    found = []
    for i, value in enumerate(rewards):
        group = rewards[i // 4 * 4 :][:4]
        if settings.baseline == "leave-one-out":
            found.append(value - (sum(group) - value) / 3)
        else:
            found.append((value - statistics.mean(group)) / (statistics.stdev(group) + 1e-6))
    return found


@pytest.mark.parametrize("name", SETTINGS)
def test_every_step_of_a_run_is_the_formula(name: str, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    policy, reference = letters_policy(spread=4.0), letters_policy(seed=1, spread=4.0).model
    reward, seen = Witness(policy.model), gradients_of(policy.model)
    steps: list[tuple[dict[str, Tensor], Any]] = []
    hook = register_optimizer_step_pre_hook(lambda *_: steps.append((copy.copy(seen), copied(policy.model))))
    try:
        train_policy_gradient(
            policy, reference, reward, letters_prompts(5), settings, run_folder(tmp_path), max_new_tokens=LONGEST,
            seed=0, starts_at_reference=False,
        )  # fmt: skip
    finally:
        hook.remove()
    assert len(steps) == 6
    for number, (found, model) in enumerate(steps):
        answers, paid, old = reward.rollouts[number // 2]
        of_responses = advantages(answers, paid, old, reference, settings)
        expected = plain_gradient(
            model, reference, answers, [[a] * len(o.response_ids) for a, o in zip(of_responses, answers, strict=True)],
            settings, longest=LONGEST, old=old,
        )  # fmt: skip
        assert relative_gap(found, expected) < 1e-5
        if number:  # and not that of the step before
            assert relative_gap(found, steps[number - 1][0]) > 1e-2
