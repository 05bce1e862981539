"""A worker that samples with preflab, or trains on what it samples: `benchmarks/rollout_speed.py` starts it.

Sampling goes through `preflab.rollouts.sampler.sample`, training through `train_policy_gradient` and `train_ppo`, as
`preflab train` calls them. One turn is one call of the sampler, or one update. A run differs from a user's in three
things: no checkpoint is saved, peak memory is that of the whole process, and where a run is "quiet" no update is
logged, so nothing is measured for a line of metrics.jsonl.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import transformers

import preflab
from peers.gate import Gate, resident_bytes
from peers.work import END, LEARNING_RATE, Work, odd_share, prompts_of, sizes, text_of
from preflab.config.online import GRPO, PPO, RolloutBatch
from preflab.config.training import Optimizer, Precision
from preflab.models.load import Policy, copy_of, load_policy, new_reward_model
from preflab.rewards.protocol import Answer
from preflab.rollouts.sampler import sample
from preflab.runs import RunFolder
from preflab.training import cost, online, session
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds

MICRO = RolloutBatch().micro
"""Responses in memory at once, in training: preflab's default. All at once is no faster, for more memory."""


@dataclass(frozen=True)
class OddShare:
    """The peers' reward; notes how much was sampled."""

    facts: dict[str, Any]
    name: str = "odd share"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.facts.update(sizes([answer.response_ids for answer in answers]))
        return [odd_share(answer.response_ids) for answer in answers]


@dataclass(frozen=True)
class Turns:
    """The gate, and what is said there."""

    gate: Gate
    facts: dict[str, Any]
    device: str

    def turn(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()
            self.facts["device_peak_bytes"] = torch.cuda.max_memory_allocated()
        self.gate.turn(self.facts)


def sample_in_turn(policy: Policy, work: Work, turns: Turns) -> None:
    """Responses to other prompts each turn."""
    vocabulary = policy.model.config.vocab_size
    turn = 0
    while True:
        responses = sample(
            policy.model,
            prompts_of(work, turn, vocabulary),
            keys=[f"prompt {number}" for number in range(work.prompts)],
            end_id=END if work.ends else vocabulary,  # which no token is
            max_new_tokens=work.new_tokens,
            seed=turn,
            samples=work.samples,
            batch_size=work.batch,
        )
        turns.facts.update(sizes([response.tokens for response in responses]))
        turns.turn()
        turn += 1


def train_in_turn(policy: Policy, work: Work, path: Path, setting: str, updates: int, turns: Turns) -> None:
    """An update a turn."""

    class Gated(session.Session):
        """After an update, wait."""

        def after(self, done: int) -> None:
            super().after(done)
            turns.turn()

    online.Session = Gated  # type: ignore[attr-defined, misc]
    session.SECONDS_BETWEEN_SAVES = math.inf  # waiting for others is no training
    cost.reset_peak_memory = lambda: None
    ids = prompts_of(Work(**vars(work) | {"prompts": work.prompts * updates}), 0, policy.model.config.vocab_size)
    prompts = [PromptIds(f"prompt {number}", text_of(prompt), prompt) for number, prompt in enumerate(ids)]
    optimizer = Optimizer(learning_rate=LEARNING_RATE, warmup_steps=0)
    shared: dict[str, Any] = {
        "updates": updates,
        "batch": RolloutBatch(size=work.responses, mini=work.responses, micro=min(MICRO, work.responses)),
        "responses": work.samples,
        "epochs": work.epochs,
        "missing_end_penalty": 0.0,
        "kl_coefficient": work.beta,
        "optimizer": optimizer,
        "evaluations": 1,
    }
    how: dict[str, Any] = {
        "max_new_tokens": work.new_tokens,
        "seed": 0,
        "log_every": updates if setting == "quiet" else 1,  # the last one is never reached
    }
    reference, reward = copy_of(policy.model), OddShare(turns.facts)
    turns.facts["loaded_bytes"] = resident_bytes()
    with tempfile.TemporaryDirectory(prefix="preflab-") as folder:
        run = RunFolder(Path(folder))
        if work.method == "grpo":
            train_policy_gradient(policy, reference, reward, prompts, GRPO(**shared), run, **how)
            return
        trunk = cast(Literal["separate", "shared"], setting)
        value = new_reward_model(path, seed=0, device=policy.device) if trunk == "separate" else None
        settings = PPO(**shared, value_trunk=trunk, value_optimizer=optimizer)
        turns.facts["loaded_bytes"] = resident_bytes()
        train_ppo(policy, value, reference, reward, prompts, settings, run, **how)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--work", type=Work.of_json, required=True)
    parser.add_argument("--setting", required=True, help="a precision; GRPO: figures, quiet; PPO: separate, shared")
    parser.add_argument("--updates", type=int, default=2, help="of a trainer: more than there are turns")
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args()
    gate, work = Gate(), given.work
    torch.set_num_threads(1)
    samples = work.method == "sample"
    path = given.folder / work.shape
    precision = cast(Precision, given.setting if samples else "fp32")
    policy = load_policy(path, device=given.device, precision=precision)
    facts: dict[str, Any] = {
        "versions": {module.__name__: module.__version__ for module in (preflab, torch, transformers)},
        "loaded_bytes": resident_bytes(),
    }
    turns = Turns(gate, facts, given.device)
    if samples:
        sample_in_turn(policy, work, turns)
    else:
        train_in_turn(policy, work, path, given.setting, given.updates, turns)


if __name__ == "__main__":
    main()
