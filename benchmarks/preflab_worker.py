"""A worker that trains with preflab, as `preflab train` does: `benchmarks/dpo_speed.py` starts it, or by hand

    yes go | OMP_NUM_THREADS=1 python benchmarks/preflab_worker.py FOLDER --method dpo --setting fp32
    python benchmarks/preflab_worker.py FOLDER --sweep          how often five values of β read the reference

FOLDER is what `benchmarks/peers/data.py` wrote. One turn is everything between two lines of metrics.jsonl: batch,
forward, backward, clipping, AdamW, figures, the line. A run differs from a user's in three things: the pairs are placed
so that the seeded order gives the batches of pairs.json, no checkpoint is saved, and peak memory is that of the whole
process. The set-up checks up to 64 pairs against the reference; that pass is in nobody's seconds.
"""

from __future__ import annotations

import os

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}

import argparse
import json
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
import transformers

import preflab
from peers.data import read
from peers.gate import Gate
from peers.watched import Watched
from preflab.cli.flags import parse
from preflab.cli.main import COMMANDS
from preflab.data.encode import Tree
from preflab.models import reference
from preflab.models.flops import flops
from preflab.models.freezing import freeze
from preflab.models.load import Policy, load_policy, new_reward_model
from preflab.models.reference import ReferenceCache, Referenced
from preflab.models.scoring import reading
from preflab.runs import RunFolder
from preflab.seeds import derive
from preflab.training import cost, preference, session
from preflab.training.order import batch_at
from preflab.training.preference import train_preference
from preflab.training.reward import train_reward
from preflab.training.sft import train_sft
from preflab.training.unpaired import judged_pairs, train_unpaired

SETTINGS: dict[str, tuple[str, ...]] = {
    "fp32": (),
    "bf16-autocast": ("--precision=bf16-autocast",),
    "bf16": ("--precision=bf16",),
    "frozen-fp32": ("--freeze-blocks={frozen}",),
    "frozen-bf16": ("--freeze-blocks={frozen}", "--precision=bf16"),
}
"""Flags of `preflab train METHOD` beside those of `flags_of`."""
BETAS = (0.05, 0.1, 0.2, 0.5, 1.0)
SEED = 0

Row = TypeVar("Row")


def flags_of(folder: Path, setting: str, batch: int, frozen: int, learning_rate: float) -> list[str]:
    """The command line."""
    return [
        *(f"--model={folder / 'model'}", f"--data={folder / 'pairs.json'}", "--out=unused", f"--seed={SEED}"),
        *(f"--batch.size={batch}", f"--batch.micro={batch}", "--evaluations=1", "--log-every=1"),
        *(f"--optimizer.learning-rate={learning_rate}", "--optimizer.warmup-steps=0"),
        *(flag.format(frozen=frozen) for flag in SETTINGS[setting]),
    ]


def config_of(method: str, flags: list[str]) -> Any:
    name = f"train {method}"
    return parse(name, COMMANDS[name].config, flags)


def model_of(method: str, config: Any) -> Policy:
    if method == "reward":
        return new_reward_model(config.model, seed=derive(config.seed, "head"), precision=config.precision)
    return load_policy(config.model, precision=config.precision)


@dataclass(frozen=True)
class Gated(RunFolder):
    """A run folder whose every line of metrics.jsonl waits for the next turn."""

    gate: Gate
    facts: dict[str, Any]
    """Said with the first line; what was watched with the second."""
    watched: Watched

    def log(self, line: Any) -> None:
        super().log(line)
        said = {name: line[name] for name in ("loss", "gradient_norm")}
        if line["step"] == 1:
            said |= self.facts
            self.watched.begin()  # before lay the passes of set-up, too
        elif line["step"] == 2:
            said |= self.watched.facts()
        self.gate.turn(said)


@dataclass
class TimedReference:
    """Stands in for `reference_logprobs`, and adds up its CPU time."""

    facts: dict[str, Any]
    pairs: int

    def __call__(self, *args: Any, **given: Any) -> Referenced:
        begin = time.process_time()
        found = reference.reference_logprobs(*args, **given)
        spent = (time.process_time() - begin) / self.pairs
        self.facts["reference_seconds_per_pair"] = self.facts.get("reference_seconds_per_pair", 0.0) + spent
        return found


def trees_of(method: str, batches: Sequence[Sequence[Any]]) -> list[list[Tree]]:
    """The batches as trees; SFT learns from chosen responses alone."""
    kept = slice(0, 1) if method == "sft" else slice(0, 2)
    return [
        [Tree(f"pairs.json:{number}", tuple(row["ids"][0]), tuple(map(tuple, row["ids"][1:]))[kept]) for row in batch]
        for number, batch in enumerate(batches)
    ]


def in_turn(rows: Sequence[Row], size: int) -> list[Row]:
    """The rows placed so that training takes them in the order in which they are given here."""
    seed = derive(SEED, "data")
    order = [
        place
        for step in range(len(rows) // size)
        for place in batch_at(step, examples=len(rows), batch_size=size, seed=seed)
    ]
    return [row for _, row in sorted(zip(order, rows, strict=True), key=lambda placed: placed[0])]


def train(method: str, policy: Policy, batches: list[list[Tree]], config: Any, run: RunFolder, **given: Any) -> None:
    """The project's own training, on the batches in turn."""
    rows = [tree for batch in batches for tree in batch]
    match method:
        case "kto":
            train_unpaired(policy, in_turn(judged_pairs(rows), config.batch.size), config, run, seed=SEED, **given)
        case "sft":
            train_sft(policy, in_turn(rows, config.batch.size), config, run, seed=SEED, log_every=config.log_every)
        case "reward":
            train_reward(policy, in_turn(rows, config.batch.size), config, run, seed=SEED, log_every=config.log_every)
        case _:
            train_preference(policy, in_turn(rows, config.batch.size), config, run, seed=SEED, **given)


def work(method: str, setting: str, order: str, given: argparse.Namespace, folder: Path) -> None:
    """Take turns until there are no more."""
    gate = Gate()
    torch.set_num_threads(1)
    session.SECONDS_BETWEEN_SAVES = math.inf  # waiting for others is no training
    cost.reset_peak_memory = lambda: None
    batches = trees_of(method, read(given.folder, order))
    size = len(batches[0]) * (2 if method == "kto" else 1)
    config = config_of(method, flags_of(given.folder, setting, size, given.frozen, given.learning_rate))
    policy = model_of(method, config)
    freeze(policy.model, config.freeze_blocks)
    kept = config.freeze_blocks if config.trunk.disk_gib else 0  # their states are read from a file
    facts: dict[str, Any] = {
        "versions": {module.__name__: module.__version__ for module in (preflab, torch, transformers)},
        "pairs_a_step": len(batches[0]),
        "flags": flags_of(Path("FOLDER"), setting, size, given.frozen, given.learning_rate),
        "flops": [
            flops(policy.model, reading(policy.model, batch, ends=method == "reward"), backward=True, stored=kept)
            for batch in batches[1:]
        ],
    }
    timed = TimedReference(facts, sum(map(len, batches)))
    preference.reference_logprobs = timed  # type: ignore[attr-defined]
    run = Gated(folder, gate, facts, Watched(policy.model))
    options = {"log_every": config.log_every} if method not in ("sft", "reward") else {}
    train(method, policy, batches, config, run, **options)


class Stepped(Exception):
    """A step was taken and logged."""


class OneStep(RunFolder):
    """Ends the run at its first line."""

    def log(self, line: Any) -> None:
        raise Stepped


def sweep(given: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """One step of DPO at each β, with one cache: what is computed for it, and what is found in it."""
    torch.set_num_threads(1)
    cache = ReferenceCache(folder / "cache")
    batches = trees_of("dpo", read(given.folder, given.order))
    passes = []
    for beta in BETAS:
        flags = flags_of(given.folder, given.setting, len(batches[0]), given.frozen, given.learning_rate)
        config = config_of("dpo", [*flags, f"--loss.beta={beta}"])
        run = OneStep(folder / f"beta-{beta}")
        run.path.mkdir()
        try:
            train("dpo", model_of("dpo", config), batches, config, run, cache=cache, log_every=1)
        except Stepped:
            passes.append(len(list(cache.folder.glob("*/*.safetensors"))))  # a pass that computes adds a file
    return {"betas": BETAS, "reference_passes": passes[-1], "passes_after_each": passes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=["dpo", "kto", "orpo", "sft", "reward"], default="dpo")
    parser.add_argument("--setting", choices=list(SETTINGS), default="fp32")
    parser.add_argument("--order", choices=["random", "bucketed"], default="random")
    parser.add_argument("--frozen", type=int, default=8, help="blocks, where the setting freezes some")
    parser.add_argument("--learning-rate", type=float, default=1e-5)
    parser.add_argument("--sweep", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="preflab-") as folder:
        if given.sweep:
            print(json.dumps(sweep(given, Path(folder))))
        else:
            work(given.method, given.setting, given.order, given, Path(folder))


if __name__ == "__main__":
    main()
