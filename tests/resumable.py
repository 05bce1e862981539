"""A DPO and a PPO run of ten steps that `test_checkpoint.py` kills; as a program, it kills itself where it's told to.

python resumable.py {dpo,ppo} FOLDER {evaluating,saving} STEP
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
from preflab.config.methods import DPO, PPO, Optimizer
from preflab.data.encode import Tree
from preflab.models.load import copy_of
from preflab.runs import RunFolder
from preflab.training.dpo import train_dpo
from preflab.training.ppo import train_ppo

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
    shared: dict[str, Any] = {"optimizer": OPTIMIZER, "evaluations": 4}
    if method == "dpo":
        settings = DPO(epochs=4 * STEPS / 7, batch_size=4, micro_batch_size=3, **shared)
        train_dpo(policy, PAIRS, settings, run, seed=0, log_every=1, evaluate=evaluate)
    else:
        ppo = PPO(
            updates=STEPS, batch_size=8, mini_batch_size=4, micro_batch_size=3, value_optimizer=OPTIMIZER, **shared
        )
        train_ppo(
            policy, value, copy_of(policy.model), ShareOf("a"), letters_prompts(7), ppo, run, max_new_tokens=4, seed=0,
            evaluate=evaluate,
        )  # fmt: skip
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
