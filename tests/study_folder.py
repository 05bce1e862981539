"""Writes study folders with simulated numbers whose differences are known."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from preflab.evaluation.calibration import calibration
from preflab.runs import to_line

PROMPTS = ("the plot was", "this film had", "i went in", "her acting is", "for two hours the", "what a")
WORDS = ["the", "plot", "was", "thin", "but", "won", "me", "over", "acting", "superb", "dull", "slow", "score", "warm"]


@dataclass(frozen=True)
class SimulatedArm:
    """An arm whose expected reward is a known function of KL.

    `reward` maps KL (nats) to expected gold reward, `proxy` likewise; `kl` is the mean KL at each of `steps`.
    """

    name: str
    method: str
    reward: Callable[[float], float] = lambda kl: 0.0
    proxy: Callable[[float], float] | None = lambda kl: 0.8 * kl
    steps: Sequence[int] = (100, 200, 300, 400)
    kl: Sequence[float] = (1.0, 2.0, 4.0, 8.0)
    label: str = ""
    oracle: bool = False
    seconds: float = 30.0
    chosen: int | None = None
    evaluated: bool = True
    tested: bool = True
    metrics: Sequence[Mapping[str, Any]] = field(default_factory=list)
    family: str = ""
    overrides: Mapping[str, Any] = field(default_factory=dict)
    kl_is_bound: bool = False


REFERENCE = SimulatedArm("reference", "reference", lambda kl: 0.0, steps=(), kl=(), label="Reference", seconds=0.0)

DPO_METRICS = [
    {"step": s, "loss": 0.69 - s / 1500, "accuracy": 0.5 + s / 1200, "margin": s / 300, "chosen_reward": s / 900,
     "rejected_reward": -s / 450, "gradient_norm": 1.0 + 10 / s, "learning_rate": 1e-4}
    for s in range(10, 401, 10)
]  # fmt: skip
PPO_METRICS = [
    {"step": s, "reward": s / 100, "kl_nats": s / 60, "objective": s / 120, "entropy_nats": 40 - s / 20, "ratio": 1.0,
     "clip_fraction": 0.1, "approx_kl_nats": 0.01, "explained_variance": s / 500, "value_loss": 1.0,
     "policy_loss": -0.1, "response_tokens": 30.0, "end_rate": 0.9, "gradient_norm": 1.0, "learning_rate": 1e-4}
    for s in range(10, 401, 10)
]  # fmt: skip


def usual_arms() -> list[SimulatedArm]:
    """A study as the default one turns out: DPO below PPO at equal KL, the oracle above both."""
    sft_metrics = [
        {"step": s, "loss": 2 + 50 / s, "perplexity": 8 + 50 / s, "gradient_norm": 1.0} for s in range(10, 401, 10)
    ]
    return [
        REFERENCE,
        SimulatedArm("sft", "sft", root(0.5), kl=(0.2, 0.4, 0.6, 0.8), label="SFT", metrics=sft_metrics),
        SimulatedArm("dpo", "dpo", root(1.0), label="DPO", kl=(1, 3, 6, 9), metrics=DPO_METRICS),
        SimulatedArm("ppo", "ppo", root(1.5), label="PPO", kl=(0.8, 2, 5, 7), seconds=93.0, metrics=PPO_METRICS),
        SimulatedArm("ppo-gold", "ppo", root(1.8), label="PPO, gold reward", kl=(0.8, 2, 5, 7.5), oracle=True,
                     seconds=80.0, metrics=PPO_METRICS),
    ]  # fmt: skip


def root(height: float) -> Callable[[float], float]:
    """Reward that grows with the root of KL, as frontiers do."""
    return lambda kl: height * kl**0.5


@cache
def reward_model(label: str = "reward model", *, seed: int = 0, boast: float = 2.0, per_token: float = 0.08) -> Any:
    """An entry of study.json's `reward_models`: 400 pairs whose first response wins with probability σ(x), judged by
    `boast` · x + `per_token` · (difference of lengths)."""
    rng = np.random.default_rng(seed)
    x, lengths = rng.normal(size=400), rng.integers(5, 40, (400, 2))
    lengths[:, 1] = np.where(rng.random(400) < 0.1, lengths[:, 0], lengths[:, 1])
    first = boast * x + per_token * (lengths[:, 0] - lengths[:, 1])
    swap = (rng.random(400) > 1 / (1 + np.exp(-x)))[:, None]
    scores = np.stack([first, np.zeros(400)], axis=1)
    scores, lengths = (np.where(swap, values[:, ::-1], values) for values in (scores, lengths))
    return {"label": label, "seed": seed, "calibration": calibration(scores, lengths, range(400)).json()}


def write_study(
    folder: Path,
    arms: Sequence[SimulatedArm] | None = None,
    *,
    seeds: int = 1,
    prompts: int = 60,
    noise: float = 0.5,
    complete: bool = True,
    prompt_texts: Sequence[str] = PROMPTS,
    response: Callable[[np.random.Generator], str] | None = None,
    **fields: Any,
) -> Path:
    """Write a study folder as studies/ does; `fields` replaces entries of study.json."""
    arms = usual_arms() if arms is None else arms
    rng = np.random.default_rng(7)
    common = rng.normal(size=prompts)  # what makes a prompt easy for every arm
    respond = response or (lambda r: " ".join(r.choice(WORDS, size=int(r.integers(8, 24)))))
    entries = []
    for arm in arms:
        for seed in range(seeds):
            path = folder / "arms" / arm.name / f"seed-{seed}"
            settings = {"loss.beta": 0.1, "train.steps": 400, **arm.overrides} if arm.method != "reference" else {}
            entries.append(
                {"name": arm.name, "method": arm.method, "label": arm.label or arm.name, "oracle": arm.oracle,
                 "description": f"The arm {arm.name}.", "settings": settings, "seed": seed,
                 "folder": f"arms/{arm.name}/seed-{seed}", "done": arm.evaluated and arm.tested,
                 "family": arm.family or arm.name, "overrides": dict(arm.overrides), "kl_is_bound": arm.kl_is_bound}
            )  # fmt: skip
            write_text(path / "config.yaml", f"method: {arm.method}\n")
            write_json(
                path / "environment.json", {"preflab": "0.1.0", "python": "3.11", "command": ["preflab", "compare"]}
            )
            write_lines(path / "metrics.jsonl", arm.metrics)
            if not arm.evaluated:
                continue
            luck = rng.normal() * noise / 5 if arm.steps else 0.0
            steps, kls = [*arm.steps] or [0], [*arm.kl] or [0.0]
            chosen = arm.chosen if arm.chosen is not None else steps[-1]
            visits = [(step, kl, "validation") for step, kl in zip(steps, kls, strict=True)]
            if arm.tested:
                visits.append((chosen, kls[steps.index(chosen)], "test"))
            points, samples = [], []
            for step, kl, split in visits:
                reward = arm.reward(kl) + luck + 0.6 * common + noise * rng.normal(size=prompts)
                proxy = None if arm.proxy is None else (arm.proxy(kl) + noise * rng.normal(size=prompts)).tolist()
                kl_rows = kl * rng.gamma(9.0, 1 / 9, size=prompts) if kl else 1e-6 * rng.normal(size=prompts)
                win = 1 / (1 + np.exp(-(reward - 0.6 * common))) if arm.steps else np.full(prompts, 0.5)
                ids = [f"{split[0]}{i}" for i in range(prompts)]
                rows = {"prompt": ids, "reward": reward.tolist(), "proxy_reward": proxy, "kl_nats": kl_rows.tolist(),
                        "response_tokens": rng.integers(10, 40, prompts).tolist(),
                        "ended": rng.integers(0, 2, prompts).tolist(),
                        "win": (np.round(win * 2) / 2).tolist()}  # fmt: skip
                held_out = {"nll_nats": rng.gamma(20, 2, 30).tolist(), "tokens": rng.integers(15, 25, 30).tolist()}
                points.append({"step": step, "split": split, "rows": rows, "held_out": held_out})
                samples += [
                    {"step": step, "split": split, "prompt_id": ids[i], "prompt": prompt_texts[i % len(prompt_texts)],
                     "response": respond(rng), "reward": float(reward[i]),
                     "proxy_reward": None if proxy is None else proxy[i], "kl_nats": float(kl_rows[i])}
                    for i in range(prompts)
                ]  # fmt: skip
            online = arm.method == "ppo"
            cost = {"wall_seconds": arm.seconds, "trained_tokens": 120000, "generated_tokens": 90000 if online else 0,
                    "reward_calls": 4096 if online and not arm.oracle else 0, "gold_calls": 4096 if arm.oracle else 0,
                    "peak_memory_bytes": 900_000_000, "flops": 3.1e12}  # fmt: skip
            if not arm.steps:
                cost = {**dict.fromkeys(cost, 0), "peak_memory_bytes": None}
            write_json(
                path / "evaluation.json",
                {"points": points, "chosen_step": chosen if arm.tested else None, "cost": cost},
            )
            write_lines(path / "samples.jsonl", samples)
    config = {"task": "reviews", "seeds": seeds, "arms": [arm.name for arm in arms]}
    write_text(folder / "study.yaml", f"task: reviews\nseeds: {seeds}\n")
    write_json(
        folder / "study.json",
        {"study": config, "task": "reviews", "title": "Film reviews, controlled sentiment",
         "task_summary": "Continue a film review so that it turns out positive. A grammar knows the sentiment.",
         "reward": {"name": "gold sentiment", "unit": "reward", "explanation": "The review, clause by clause."},
         "proxy": {"name": "reward model", "explanation": "Trained on the same pairs as DPO."},
         "reference": "reference", "arms": entries, "prompts": {"train": 2000, "validation": prompts, "test": prompts},
         "facts": [{"name": "Reward model, held-out accuracy", "value": 0.81, "low": 0.79, "high": 0.83,
                    "note": "Bayes ceiling 0.86"},
                   {"name": "Samples inside the grammar", "value": 0.93, "low": None, "high": None, "note": "of 256"}],
         "reward_models": [reward_model(seed=seed) for seed in range(seeds)],
         "counts": [{"name": "pairs dropped: identical responses", "count": 3}],
         "warnings": [], "stages": [{"name": "base model", "seconds": 61.2}, {"name": "reward model", "seconds": 20.5}],
         "complete": complete, **fields},
    )  # fmt: skip
    return folder


def write_text(path: Path, text: str) -> None:
    """Write a file, without the care that preflab takes: tests need not survive a power cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write JSON."""
    write_text(path, json.dumps(value))


def write_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Write a .jsonl file."""
    write_text(path, "".join(to_line(line) for line in lines))
