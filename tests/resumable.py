"""Runs of ten steps that `test_checkpoint.py` kills; as a program, one kills itself where it's told to.

python resumable.py {dpo,ppo,ppo-adaptive,grpo} FOLDER {evaluating,saving} STEP
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from enumerable import ShareOf, letters_policy, letters_prompts, run_folder, value_model
from preflab.config.online import GRPO, PPO, RolloutBatch
from preflab.config.preference import DPO
from preflab.config.training import Batch, Optimizer
from preflab.data.encode import Tree
from preflab.models.load import copy_of
from preflab.runs import RunFolder
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import train_preference

STEPS = 10
MARKS = (2, 5, 8, 10)
OPTIMIZER = Optimizer(learning_rate=0.01, warmup_steps=7, decay="linear", weight_decay=0.01)
# 7 pairs by 4: batches straddle epochs
PAIRS = [Tree(f"p:{i}", (2 + i % 4,) * (1 + i % 3), ((2, 3 + i % 3, 1), (4, 0)[: 1 + i % 2])) for i in range(7)]

Weights = dict[str, torch.Tensor]


def train(method: str, folder: Path, evaluate: Callable[[int], None]) -> tuple[Weights, RunFolder]:
    """Ten steps, or what is left of them; the weights of all models at the end."""
    policy, run = letters_policy(spread=4.0), run_folder(folder)
    value = value_model(folder.with_name(f"{folder.name}-start"))
    reference = copy_of(policy.model)
    shared: dict[str, Any] = {"optimizer": OPTIMIZER, "evaluations": 4}
    sampled: dict[str, Any] = {"updates": STEPS, "batch": RolloutBatch(size=8, mini=4, micro=3)} | shared
    limits: dict[str, Any] = {"max_new_tokens": 4, "seed": 0, "evaluate": evaluate}
    match method:
        case "dpo":
            settings = DPO(epochs=4 * STEPS / 7, batch=Batch(size=4, micro=3), **shared)
            train_preference(policy, PAIRS, settings, run, seed=0, log_every=1, evaluate=evaluate)
        case "ppo":
            ppo = PPO(value_optimizer=OPTIMIZER, **sampled)
            train_ppo(policy, value, reference, ShareOf("a"), letters_prompts(7), ppo, run, **limits)
        case "ppo-adaptive":  # β and the value head live nowhere but in the checkpoints; some updates end early
            ppo = PPO(
                value_optimizer=OPTIMIZER, value_trunk="shared", value_warmup_updates=1, target_kl_nats=0.01,
                kl_horizon=10, stop_kl_nats=0.005, **sampled,
            )  # fmt: skip
            train_ppo(policy, None, reference, ShareOf("a"), letters_prompts(7), ppo, run, **limits)
        case "grpo":  # pairs of responses often get one reward, so the place in the prompts is not a matter of steps
            grpo = GRPO(responses=2, dynamic_sampling=True, epochs=2, **sampled)
            train_policy_gradient(policy, reference, ShareOf("a"), letters_prompts(7), grpo, run, **limits)
    models = {"policy": policy.model, "value": value.model}
    return {f"{model}.{name}": t for model, m in models.items() for name, t in m.state_dict().items()}, run


def main(method: str, folder: str, where: str, step: str) -> None:
    torch.set_num_threads(1)

    def kill_when_saving(event: str, args: tuple[object, ...]) -> None:
        """The weights lie in the temporary folder already, the manifest is about to be opened."""
        if event == "open" and f".step-{step}." in str(args[0]) and "manifest" in str(args[0]):
            os.kill(os.getpid(), signal.SIGKILL)

    def kill_when_evaluating(done: int) -> None:
        if where == "evaluating" and done == int(step):
            os.kill(os.getpid(), signal.SIGKILL)

    if where == "saving":
        sys.addaudithook(kill_when_saving)
    train(method, Path(folder), kill_when_evaluating)


if __name__ == "__main__":
    main(*sys.argv[1:])
