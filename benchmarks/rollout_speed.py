"""preflab's sampling and policy-gradient updates against transformers' `generate` and TRL: CPU seconds, peak memory.

    python benchmarks/rollout_speed.py --trl-python runs/trl-env/bin/python --trl-old runs/trl-1.9.2
    python benchmarks/rollout_speed.py --table                            the tables of the docs, from the JSON

`benchmarks/peers/README.md` says how the peers are installed; `--peers none` runs ours alone. Models with random
weights are made on the spot. The workers of a row do the same amount of work on the same core, one turn each in turn,
so a ratio survives a noisy machine; a peer comes in several settings, and the fastest of them counts. `--rows` runs
some rows only; the others of the JSON stay. `--device cuda` runs both sides on a GPU, in seconds of the clock.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from peers.work import Work
from rollout_models import ENDS_PROMPT, LAST, write
from turns import (
    HERE,
    PEERS,
    Call,
    add_arguments,
    commit,
    commits,
    environment,
    in_turn,
    machine,
    machines,
    of_peer,
    on_core,
    spread,
    summary,
    versions,
)

OUT = HERE / "results" / "rollout_speed.json"
NAMES = {"generate": "`generate`", **PEERS}
STEPS = ("cpu_seconds", "wall_seconds", "tokens", "longest")
"""What a worker says of each turn."""


WHO = {"ours": "preflab", "generate": "generate", "grpo": "trl-1.16", "ppo": "trl-1.9.2"}


@dataclass(frozen=True)
class Worker:
    """Someone who works, and how."""

    who: str
    """preflab, generate, trl-1.16 or trl-1.9.2."""
    setting: str

    @property
    def name(self) -> str:
        return f"{self.who} {self.setting}"


@dataclass(frozen=True)
class Comparison:
    """One line of the table: ours against the fastest of the peer's settings."""

    work: str
    ours: str
    theirs: str
    """How the names of the peer's workers begin."""
    at_least: float


@dataclass(frozen=True)
class Row:
    """Workers who take turns, all on the same work."""

    work: Work
    workers: tuple[Worker, ...]
    comparisons: tuple[Comparison, ...]


def _workers(**settings: str) -> tuple[Worker, ...]:
    """who="setting setting …", where who is one of WHO."""
    return tuple(Worker(WHO[who], setting) for who, all_ in settings.items() for setting in all_.split())


def _sampling(what: str, at_least: float, work: Work) -> Row:
    return Row(
        work,
        _workers(ours="fp32", generate="fp32-dynamic fp32-static"),
        (Comparison(what, "preflab fp32", "generate fp32", at_least),),
    )


TRL = "fp32 fp32-checkpointing bf16 bf16-checkpointing fp32-own-gelu"
OWN_GELU = "with GPT-2's own GELU"


def _grpo(beta: float) -> Row:
    what = f"GRPO update, tiny GPT-2, 8 × 8 responses of 64 tokens, β = {beta:g}"
    return Row(
        Work("gpt2-tiny", "grpo", prompts=8, samples=8, beta=beta),
        _workers(ours="quiet figures", grpo=f"{TRL} fp32-static"),
        (
            Comparison(f"{what}, no figures", "preflab quiet", "trl-1.16", 1.9),
            Comparison(f"{what}, no figures, {OWN_GELU}", "preflab quiet", "trl-1.16 fp32-own-gelu", 1.9),
            Comparison(f"{what}, figures", "preflab figures", "trl-1.16", 1.9),
        ),
    )


PPO = "PPO update, tiny GPT-2, 64 responses of 64 tokens, 4 epochs"
ROWS = {
    "tiny": _sampling("tiny GPT-2, 64 prompts of 32 tokens, 64 new", 1.6, Work("gpt2-tiny")),
    "shared-prompt": _sampling(
        "tiny GPT-2, 8 prompts of 256 tokens × 8 responses, 64 new",
        3.0,
        Work("gpt2-tiny", prompts=8, samples=8, prompt_tokens=256),
    ),
    "ends": _sampling(
        "tiny GPT-2, 256 prompts, 64 at once, responses of 8 to 256 tokens",
        2.5,
        Work("gpt2-tiny-ends", prompts=256, prompt_tokens=ENDS_PROMPT, new_tokens=LAST, ends=True),
    ),
    "small": Row(
        Work("gpt2-small", new_tokens=32),
        _workers(ours="fp32 bf16", generate="bf16-dynamic bf16-static fp32-dynamic"),
        (
            Comparison("GPT-2 small, 64 prompts of 32 tokens, 32 new, bf16", "preflab bf16", "generate bf16", 1.4),
            Comparison("GPT-2 small, the same, bf16 against fp32", "preflab bf16", "generate fp32", 2.2),
            Comparison("GPT-2 small, the same, fp32", "preflab fp32", "generate fp32", 1.0),
        ),
    ),
    "llama-tiny": _sampling("tiny Llama, 64 prompts of 32 tokens, 64 new", 1.0, Work("llama-tiny")),
    "qwen2-tiny": _sampling("tiny Qwen2, the same", 1.0, Work("qwen2-tiny")),
    "llama-small": _sampling("Llama 12 × 768, the same, 16 new", 1.0, Work("llama-small", new_tokens=16)),
    "qwen2-small": _sampling("Qwen2 12 × 768, the same, 16 new", 1.0, Work("qwen2-small", new_tokens=16)),
    "grpo": _grpo(0.0),
    "grpo-kl": _grpo(0.04),
    "ppo": Row(
        Work("gpt2-tiny", "ppo", beta=0.05, epochs=4),
        _workers(ours="separate shared", ppo=TRL),
        (
            Comparison(f"{PPO}, separate value model", "preflab separate", "trl-1.9.2", 1.3),
            Comparison(f"{PPO}, separate value model, {OWN_GELU}", "preflab separate", "trl-1.9.2 fp32-own-gelu", 1.3),
            Comparison(f"{PPO}, shared trunk", "preflab shared", "trl-1.9.2", 2.2),
            Comparison(f"{PPO}, shared trunk, {OWN_GELU}", "preflab shared", "trl-1.9.2 fp32-own-gelu", 2.2),
        ),
    ),
}


def quick(work: Work) -> Work:
    """So little of it that it only shows that everything runs."""
    return replace(
        work, shape=work.shape.replace("small", "tiny"), prompts=4, samples=min(work.samples, 2), new_tokens=8
    )


def call_of(worker: Worker, work: Work, folder: Path, given: argparse.Namespace) -> Call:
    if worker.who in PEERS:
        python, around = of_peer(worker.who, given)
        script = HERE / "peers" / "trl_online.py"
    else:
        python, around = Path(sys.executable), environment()
        script = HERE / "rollout_worker.py" if worker.who == "preflab" else HERE / "peers" / "generate.py"
    chosen = ["--work", work.json(), "--setting", worker.setting, "--device", given.device]
    # One more than there are turns: a trainer's last update is like no other, and is never reached.
    updates = [] if work.method == "sample" else ["--updates", given.steps + 2]
    return Call(worker.name, on_core(given.core, [python, script, folder, *chosen, *updates]), around)


def run(row: Row, folder: Path, given: argparse.Namespace) -> dict[str, Any]:
    """All turns of a row's workers."""
    work = quick(row.work) if given.quick else row.work
    if not (folder / work.shape).exists():
        write(folder, work.shape)
    invited = [worker for worker in row.workers if worker.who == "preflab" or worker.who in given.peers]
    told = in_turn([call_of(worker, work, folder, given) for worker in invited], given.steps)
    return {
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "device": given.device,
        "work": vars(work),
        "workers": {name: summary(lines, STEPS) for name, lines in told.items()},
    }


# ------------------------------------------------------------------------------------------------------------- tables


def seconds(worker: dict[str, Any]) -> list[float]:
    """Of each turn: the process's on a CPU, the clock's where a GPU works."""
    on_gpu = "device_peak_bytes" in worker
    return worker["steps"]["wall_seconds" if on_gpu else "cpu_seconds"]


def peak(worker: dict[str, Any]) -> int:
    return worker.get("device_peak_bytes", worker["peak_bytes"])


def beyond(worker: dict[str, Any]) -> int:
    """What the work took on top of libraries, models and data: above it, the peak of resident memory."""
    return worker["peak_bytes"] - worker["loaded_bytes"]


def per_token(worker: dict[str, Any]) -> list[float]:
    """Seconds a token, turn by turn: responses that end are of random lengths."""
    return [taken / tokens for taken, tokens in zip(seconds(worker), worker["steps"]["tokens"], strict=True)]


def whole(worker: dict[str, Any]) -> float:
    """Seconds a token, all turns together."""
    return sum(seconds(worker)) / sum(worker["steps"]["tokens"])


def fastest(workers: dict[str, Any], begins: str) -> str | None:
    """Of the workers whose names begin so."""
    return min((name for name in workers if name.startswith(begins)), key=lambda name: whole(workers[name]),
               default=None)  # fmt: skip


def label(name: str) -> str:
    who, _, setting = name.partition(" ")
    return f"{NAMES.get(who, who)} {setting}"


def line(one: Comparison, workers: dict[str, Any], theirs_name: str) -> str:
    ours, theirs = workers[one.ours], workers[theirs_name]
    by_turn = [other / own for own, other in zip(per_token(ours), per_token(theirs), strict=True)]
    return (
        f"| {one.work} | {spread(seconds(ours))} | {label(theirs_name)} | {spread(seconds(theirs))} "
        f"| {whole(theirs) / whole(ours):.2f} × | {spread(by_turn)} × | {one.at_least:g} × "
        f"| {peak(ours) / peak(theirs):.2f} × | {beyond(ours) / beyond(theirs):.2f} × |"
    )


def table(results: dict[str, Any]) -> str:
    """The tables of the docs."""
    found = {name: results["rows"][name] for name in ROWS if name in results["rows"]}
    lines = [
        "| work | s a turn | against | s a turn | all turns | turn by turn | wanted | memory | beyond the set-up |",
        "|:--|--:|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.items():
        for one in ROWS[name].comparisons:
            theirs = fastest(row["workers"], one.theirs)
            if theirs is not None and one.ours in row["workers"]:
                lines.append(line(one, row["workers"], theirs))
    lines += [
        "",
        "| row: worker | s a turn | tokens/s | tokens a turn | longest | peak, MiB | of it beyond the set-up |",
        "|:--|--:|--:|--:|--:|--:|--:|",
    ]
    for name, row in found.items():
        for which, worker in row["workers"].items():
            steps = worker["steps"]
            lines.append(
                f"| {name}: {label(which)} | {spread(seconds(worker))} | {1 / whole(worker):,.0f} "
                f"| {statistics.mean(steps['tokens']):,.0f} | {max(steps['longest'])} "
                f"| {peak(worker) / 2**20:,.0f} | {beyond(worker) / 2**20:,.0f} |"
            )
    rows = list(found.values())
    return "\n".join([*lines, "", *machines(rows), versions(rows), commits(rows)])


# --------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--steps", type=int, default=5, help="turns after the warm-up")
    parser.add_argument("--peers", nargs="+", choices=["none", *NAMES], default=list(NAMES))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--quick", action="store_true", help="so little work that it only shows that it runs")
    add_arguments(parser, OUT)
    given = parser.parse_args()

    if given.table:
        print(table(json.loads(given.out.read_text(encoding="utf-8"))))
        return
    results = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"rows": {}}
    with tempfile.TemporaryDirectory(prefix="rollouts-") as folder:
        for name in given.rows:
            print(name, file=sys.stderr)
            results["rows"][name] = run(ROWS[name], Path(folder), given)
            given.out.parent.mkdir(parents=True, exist_ok=True)
            given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
