"""The bench of a tiny study, and what its arms found: what compare makes before the first arm, without a study."""

from __future__ import annotations

import dataclasses
from functools import cache
from pathlib import Path
from typing import Any

from preflab.config.commands import Base, BestOfN, Compare, Lengths, Prompts
from preflab.config.online import GRPO, PPO, RolloutBatch
from preflab.config.online_preference import IterativeDPO, OnlineDPO, PairBatch, Ranking
from preflab.config.preference import DPO, IPO, KTO
from preflab.config.training import SFT, Batch, Optimizer
from preflab.data.records import PreferencePair
from preflab.models.load import load_policy, new_reward_model, save_model
from preflab.runs import JSON, read_json
from preflab.studies.arms import Bench, run_arm
from preflab.studies.reviews import generated_reviews
from preflab.studies.shared import Preferences, encoder_of
from preflab.studies.stages import Stages
from preflab.studies.task import Task
from preflab.training.cost import Cost
from tiny import save_tiny, tiny_pairs

FAST = Optimizer(learning_rate=0.02, warmup_steps=0)
STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
OFFLINE: dict[str, Any] = {"batch": Batch(size=8, micro=8), "evaluations": 2, "optimizer": FAST}
SAMPLED: dict[str, Any] = {"updates": 2, "batch": RolloutBatch(size=8, mini=8), "evaluations": 2, "optimizer": FAST}
TINY = Compare(
    prompts=Prompts(train=12, validation=4, test=4),
    lengths=Lengths(prompt_tokens=12, response_tokens=8),
    base=Base(texts=300),
    sft=SFT(**OFFLINE),
    dpo=DPO(**OFFLINE),
    ipo=IPO(**OFFLINE),
    kto=KTO(**OFFLINE),
    ppo=PPO(**SAMPLED),
    grpo=GRPO(**SAMPLED, responses=4),
    online_dpo=OnlineDPO(
        **SAMPLED | {"batch": PairBatch(size=8, mini=8)}, ranking=Ranking(temperatures=(0.8, 1.2), smallest_gap=0.0)
    ),
    iterative_dpo=IterativeDPO(
        **OFFLINE, rounds=2, ranking=Ranking(temperatures=(0.8, 1.2, 1.5, 2.0), smallest_gap=0.0)
    ),
    best_of_n=BestOfN(n=6),
)
REWARD_COST = Cost(trained_tokens=1_000_000)


def fill_shelf(folder: Path) -> Path:
    """A reference and a reward model."""
    save_tiny(folder / "reference")
    save_model(new_reward_model(folder / "reference", seed=0), folder / "reward")
    return folder


@cache
def reviews() -> Task:
    return generated_reviews(TINY)


def bench_of(shelf: Path, folder: Path, *names: str, **settings: Any) -> Bench:
    """What compare makes before the first arm, from models on the shelf."""
    config = dataclasses.replace(TINY, arms=names, out=folder, **settings)
    made = Stages(folder / "stages")
    made.folder.mkdir(parents=True, exist_ok=True)
    (made.folder / "reference").mkdir(exist_ok=True)
    if not (made.folder / "reference" / "model").exists():
        (made.folder / "reference" / "model").symlink_to(shelf / "reference")
    reference = load_policy(shelf / "reference")
    reference.model.requires_grad_(False)
    encoder = encoder_of(config, reference)
    pairs = encoder.pairs(PreferencePair(**row, origin=f"p:{i}") for i, row in enumerate(tiny_pairs(16)))
    preferences = Preferences(pairs, shelf / "reward", REWARD_COST, None, [], [], [])
    bench = Bench.of(config, reviews(), made, reference, preferences, 0)
    run_arm(bench, "reference")
    return bench


def evaluation(bench: Bench, arm: str) -> JSON:
    return read_json(bench.folder(arm).evaluation)


def points(bench: Bench, arm: str, split: str = "validation") -> dict[int, JSON]:
    return {point["step"]: point["rows"] for point in evaluation(bench, arm)["points"] if point["split"] == split}
