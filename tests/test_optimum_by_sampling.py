"""Groups of responses to prompts of several lengths, sampled side by side, lead to each prompt's own optimum.

`test_optima.py` has every objective on one prompt or two. Here a prompt that is shared, padded or taken for another
would pull the policies of all three away from theirs.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enumerable import END_ID, VOCABULARY, run_folder, value_model
from held_up import next_logprobs
from optimum_case import TWO_TOKENS, A, B, C, D, constant, falling
from preflab.config.online import GRPO, PPO, RLOO, PolicyGradient, RolloutBatch
from preflab.models.load import Policy, copy_of
from preflab.runs import read_lines
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from sampled_optima import BEGINS_WITH_D, TWO_TOKEN_REWARD, Task
from tabular import Array, grpo_fixed_point, log_softmax, lost_share, total_variation

THREE = Task(((A,), (A, B), (C, D, D, A, B, B, C)), TWO_TOKENS, TWO_TOKEN_REWARD, 32, "three prompts of 1 to 7 tokens")
BETA = 0.5
GIVEN: dict[str, Any] = {
    "batch": RolloutBatch(size=192, mini=192, micro=192), "responses": 4, "evaluations": 1,
    "missing_end_penalty": 0.0, "kl_coefficient": BETA, "optimizer": falling(0.008),
}  # fmt: skip


def enumerated(policy: Policy, temperature: float = 1.0) -> list[Array]:
    """log π of all 31 responses to each prompt, token by token from plain passes."""
    wide = copy.deepcopy(policy.model).double()
    return [
        log_softmax(
            np.array(
                [
                    sum(
                        float(row[token])
                        for row, token in zip(next_logprobs(wide, prompt, word, temperature), word, strict=True)
                    )
                    for word in THREE.responses
                ]
            )
        )
        for prompt in THREE.prompts
    ]


def train(settings: Any, folder: Path, task: Task = THREE) -> Policy:
    """A trained policy, all of whose rewards were asked for responses that it sampled."""
    policy, reward, run = task.policy(), task.table(), run_folder(folder / "run")
    reference, prompts = copy_of(policy.model), task.prompt_ids()
    match settings:
        case PPO():
            cost = train_ppo(
                policy, value_model(folder), reference, reward, prompts, settings, run, max_new_tokens=2, seed=0
            )
        case PolicyGradient():
            cost = train_policy_gradient(policy, reference, reward, prompts, settings, run, max_new_tokens=2, seed=0)
    assert len(reward.seen) == settings.updates * settings.batch.size == cost.reward_calls
    assert cost.generated_tokens == sum(len(response) for response, _ in reward.seen)
    assert all(line["sampler_gap_nats"] < 1e-4 for line in read_lines(run.metrics))
    return policy


SETTINGS: dict[str, Any] = {
    "ppo": PPO(**GIVEN | {"optimizer": falling(0.01)}, value_optimizer=constant(0.02), epochs=2, updates=45),
    "rloo": RLOO(**GIVEN, updates=80),
    "rloo, cooler": RLOO(**GIVEN, updates=80, temperature=0.7),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_each_prompts_policy_becomes_its_own_optimum(name: str, tmp_path: Path) -> None:
    """By the share of E r − β·KL that is still to gain; at another temperature, of the policy at that temperature."""
    settings = SETTINGS[name]
    references = enumerated(THREE.policy(), settings.temperature)
    policies = enumerated(train(settings, tmp_path), settings.temperature)
    for policy, reference in zip(policies, references, strict=True):
        assert lost_share(policy, reference, THREE.reward, BETA) < 0.05
    # The optima differ: none of them would do for another prompt.
    for number, reference in enumerate(references):
        assert lost_share(policies[number - 1], reference, THREE.reward, BETA) > 0.08


def test_grpo_comes_to_rest_at_each_prompts_own_fixed_point(tmp_path: Path) -> None:
    settings = GRPO(**GIVEN | {"kl_coefficient": 1.0}, updates=80)
    task = replace(THREE, reward=BEGINS_WITH_D)  # of two values: a point is found in a second
    references, policies = enumerated(THREE.policy()), enumerated(train(settings, tmp_path, task))
    for policy, reference in zip(policies, references, strict=True):
        fixed = grpo_fixed_point(
            task.responses, reference, task.reward, vocabulary=VOCABULARY, group=settings.responses, beta=1.0
        )
        assert total_variation(policy, fixed) < 0.08
        assert total_variation(reference, fixed) > 0.15


def test_the_responses_of_this_file_end_after_one_token_or_two_or_are_cut() -> None:
    assert {(len(word), word[-1] == END_ID) for word in TWO_TOKENS} == {(1, True), (2, True), (2, False)}
