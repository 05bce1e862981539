"""Runs of six updates that `test_rollout_resume.py` breaks off; as a program, one kills itself while it samples.

python sampled_runs.py {ppo,grpo,online-dpo} FOLDER ROLLOUT

A rollout is what one call of the reward pays for; with dynamic sampling an update may hold several.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from enumerable import ShareOf, letters_policy, letters_prompts, run_folder, value_model
from preflab.config.online import GRPO, PPO, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch, Ranking
from preflab.config.training import Optimizer
from preflab.models.load import copy_of
from preflab.rewards.protocol import Answer
from preflab.rollouts import sampler
from preflab.runs import RunFolder
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo

UPDATES = 6
PROMPTS = 7
OPTIMIZER = Optimizer(learning_rate=0.01, warmup_steps=5, decay="linear", weight_decay=0.01)
OPERATION = 40
"""At which of a rollout's operations the sampler is stopped: after the prompts were read, before the last token."""
RESPONSES = {"ppo": 1, "grpo": 2, "online-dpo": 3}
"""To each prompt."""

Weights = dict[str, torch.Tensor]
Call = list[list[list[int]]]
"""The token ids of prompt and response, answer by answer."""


@dataclass
class Witness:
    """Pays for the letter a, and writes down what it was shown, where a kill leaves it."""

    file: Path
    then: Callable[[int], None] = lambda rollout: None
    """Called with the number of the rollout, from 1, once it is written down."""
    rollouts: int = 0
    name: str = field(default="witness", init=False)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.rollouts += 1
        with open(self.file, "a") as file:
            file.write(json.dumps([[list(answer.prompt_ids), list(answer.response_ids)] for answer in answers]) + "\n")
        self.then(self.rollouts)
        return ShareOf("a")(answers)


def seen(file: Path) -> list[Call]:
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


def train(method: str, folder: Path, reward: Witness) -> tuple[Weights, RunFolder]:
    """Six updates, or what is left of them; the weights of all models at the end."""
    policy, run = letters_policy(spread=4.0), run_folder(folder)
    value = value_model(folder.with_name(f"{folder.name}-start"))
    reference = copy_of(policy.model)
    shared: dict[str, Any] = {"updates": UPDATES, "epochs": 2, "optimizer": OPTIMIZER, "evaluations": 3}
    batch = RolloutBatch(size=8, mini=4, micro=3)
    limits: dict[str, Any] = {"max_new_tokens": 5, "seed": 0}
    prompts = letters_prompts(PROMPTS)
    match method:
        case "ppo":
            ppo = PPO(value_optimizer=OPTIMIZER, batch=batch, **shared)
            train_ppo(policy, value, reference, reward, prompts, ppo, run, **limits)
        case "grpo":
            grpo = GRPO(responses=2, dynamic_sampling=True, batch=batch, **shared)
            train_policy_gradient(policy, reference, reward, prompts, grpo, run, **limits)
        case "online-dpo":
            dpo = OnlineDPO(
                batch=PairBatch(size=4, mini=2, micro=2), ranking=Ranking(temperatures=(0.7, 1.0, 1.3)), **shared
            )
            train_online_dpo(policy, reference, reward, prompts, dpo, run, **limits)
    models = {"policy": policy.model, "value": value.model}
    return {f"{model}.{name}": t for model, m in models.items() for name, t in m.state_dict().items()}, run


class Stopped(TorchDispatchMode):
    """In one rollout, calls something in the middle of sampling: where the sampler makes its n-th operation."""

    def __init__(self, reward: Witness, rollout: int, then: Callable[[], None]) -> None:
        super().__init__()
        self.reward, self.rollout, self.then, self.operations = reward, rollout, then, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if self.reward.rollouts == self.rollout - 1 and _under(sampler.__file__):
            self.operations += 1
            if self.operations == OPERATION:
                self.then()
        return func(*args, **(kwargs or {}))


def _under(file: str) -> bool:
    """Whether a function of that file is being run."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename != file:
        frame = frame.f_back
    return frame is not None


def main(method: str, folder: str, rollout: str) -> None:
    torch.set_num_threads(1)
    reward = Witness(Path(f"{folder}-seen"))
    with Stopped(reward, int(rollout), lambda: os.kill(os.getpid(), signal.SIGKILL)):
        train(method, Path(folder), reward)


if __name__ == "__main__":
    main(*sys.argv[1:])
