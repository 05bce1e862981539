"""How near `--dry-run`'s estimate of the peak memory comes to the peak of the run itself.

    python benchmarks/memory_estimate.py [--only gpt2] [--measured FILE] [--out benchmarks/results/memory_estimate.json]

Each case runs `preflab train METHOD … --dry-run` and then the same command without it, both in processes of their own,
on models of random weights and texts of the review grammar. Measured is the run's own `peak_memory_bytes`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random

import torch
import transformers

from preflab.config.commands import Base
from preflab.data.reviews import generate_reviews
from preflab.models.base import new_model, new_tokenizer
from preflab.models.load import new_reward_model, save_model

MODELS = {
    "reviews": Base(vocabulary=500, layers=3, width=128, heads=4),
    "middle": Base(vocabulary=4000, layers=8, width=320, heads=8),
    "gpt2": Base(vocabulary=4000, layers=12, width=768, heads=12),
}
TABLE_ROWS = {"gpt2": 50_257}
"""GPT-2's own vocabulary; elsewhere that of the tokenizer."""
POSITIONS = 512
CHECKPOINTED, FROZEN = ("--activation-checkpointing",), ("--freeze-blocks", "{two thirds}")
BF16, AUTOCAST = ("--precision", "bf16"), ("--precision", "bf16-autocast")
LENGTHS = ("--lengths.prompt-tokens", "300", "--lengths.response-tokens", "150")
SAMPLED = ("--updates", "2", "--batch.size", "16", "--batch.mini", "8", "--batch.micro", "4")


@dataclass(frozen=True)
class Case:
    model: str
    method: str
    flags: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return " ".join((self.model, self.method, *self.flags))


def cases() -> list[Case]:
    gpt2 = ("--batch.size", "4", "--batch.micro", "4")
    middle = ("--batch.size", "32", "--batch.micro", "16")
    reviews = ("--batch.size", "64", "--batch.micro", "64")
    return [
        *(Case("gpt2", "dpo", (*gpt2, *more)) for more in ((), CHECKPOINTED, FROZEN, BF16, AUTOCAST)),
        *(Case("middle", "dpo", (*middle, *more)) for more in ((), CHECKPOINTED, FROZEN, BF16)),
        Case("middle", "dpo", ("--batch.size", "16", "--batch.tokens", "4000")),
        *(Case("middle", method, middle) for method in ("reward", "sft", "kto")),
        Case("middle", "ppo", SAMPLED),
        Case("middle", "grpo", SAMPLED),
        Case("middle", "grpo", (*SAMPLED, "--kl-penalty", "full")),
        *(Case("reviews", method, reviews) for method in ("dpo", "sft")),
        Case("reviews", "ppo", SAMPLED),
    ]


def make(folder: Path, name: str) -> None:
    """A model with random weights, a reward model and pairs."""
    base = MODELS[name]
    tokenizer = new_tokenizer(generate_reviews(2000, seed=0), vocabulary=base.vocabulary)
    policy = new_model(tokenizer, base, positions=POSITIONS, seed=0)
    if rows := TABLE_ROWS.get(name):
        with torch.random.fork_rng(devices=[]):
            policy.model.resize_token_embeddings(rows, mean_resizing=False)
    save_model(policy, folder / "model")
    save_model(new_reward_model(folder / "model", seed=0), folder / "reward")
    short, pairs = name == "reviews", {"reviews": 320, "middle": 48, "gpt2": 8}[name]
    texts, rng = generate_reviews(3000, seed=1), Random(0)

    def text(most: int) -> str:
        return " ".join(rng.choice(texts) for _ in range(rng.randint(1, most)))

    with (folder / "pairs.jsonl").open("w") as file:
        for number in range(pairs):
            prompt = f"{number}: {text(1)[:30]}" if short else f"{number}: {text(6)}"
            row = {"prompt": prompt, "chosen": f" {text(1 if short else 4)}", "rejected": f" {text(1 if short else 4)}"}
            file.write(json.dumps(row) + "\n")


def run(case: Case, folder: Path, out: Path, measured: float | None) -> dict[str, object]:
    flags = [f.replace("{two thirds}", str(MODELS[case.model].layers * 2 // 3)) for f in case.flags]
    lengths = (
        ("--lengths.prompt-tokens", "16", "--lengths.response-tokens", "40") if case.model == "reviews" else LENGTHS
    )
    reward = ["--reward", str(folder / "reward")] if case.method in ("ppo", "grpo") else []
    command = [
        *(sys.executable, "-m", "preflab", "train", case.method, "--model", str(folder / "model")),
        *("--data", str(folder / "pairs.jsonl"), "--out", str(out), *lengths, *reward, *flags),
        *("--evaluations", "1"),
    ]
    environment = os.environ | {
        "PREFLAB_CACHE": f"{out}-cache"
    }  # of its own: the reference's pass is a part of the run

    def said(*more: str) -> str:
        done = subprocess.run([*command, *more], capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            raise SystemExit(f"{case.name}: {done.stderr}")
        return done.stdout

    plan = said("--dry-run")
    parts = {
        name.strip(): int(mib.replace(",", "")) for name, mib in re.findall(r"^  ([a-z ]+?) +([\d,]+) MiB$", plan, re.M)
    }
    estimate = re.search(r"^peak memory +([\d,]+) MiB estimated, in (.*):$", plan, re.M)
    assert estimate is not None, plan
    if measured is None:
        said()
        measured = json.loads((out / "evaluation.json").read_text())["cost"]["peak_memory_bytes"] / 2**20
    estimated = int(estimate[1].replace(",", ""))
    return {
        "case": case.name,
        "estimated_mib": estimated,
        "measured_mib": round(measured),
        "ratio": round(estimated / measured, 3),
        "place": estimate[2],
        "parts_mib": parts,
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", default="")
    parser.add_argument("--measured", type=Path, help="an earlier result: its runs aren't run again")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "memory_estimate.json")
    arguments = parser.parse_args()
    earlier = json.loads(arguments.measured.read_text())["rows"] if arguments.measured else []
    measured = {row["case"]: row["measured_mib"] for row in earlier}
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for number, case in enumerate(case for case in cases() if arguments.only in case.name):
            folder = Path(temporary) / case.model
            if not folder.exists():
                folder.mkdir()
                make(folder, case.model)
            rows.append(run(case, folder, Path(temporary) / f"run-{number}", measured.get(case.name)))
            print(
                f"{rows[-1]['ratio']:>6}  {rows[-1]['estimated_mib']:>6}  {rows[-1]['measured_mib']:>6}  {case.name}",
                flush=True,
            )
            print("        ", rows[-1]["place"], rows[-1]["parts_mib"], flush=True)
            arguments.out.write_text(json.dumps({"versions": versions(), "rows": rows}, indent=1) + "\n")


def versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__, "python": platform.python_version()}


if __name__ == "__main__":
    main()
