"""preflab's training step against TRL's: CPU seconds, peak memory, share of what the core can do.

    python benchmarks/peers/data.py runs/speed                        model, tokenizer, pairs (--data FILE: real ones)
    python benchmarks/dpo_speed.py runs/speed --trl-python runs/trl-env/bin/python --trl-old runs/trl-1.9.2
    python benchmarks/dpo_speed.py --table                            the tables of the docs, from the JSON

`benchmarks/peers/README.md` says how the peers are installed; `--peers none` runs ours alone. The workers of a group
train on the same batches on the same core, one step each in turn, so a ratio survives a noisy machine; a probe of
matrix products takes its turn with them. `--rows` runs some groups only; the other rows of the JSON stay.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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

OUT = HERE / "results" / "dpo_speed.json"
STEPS = ("cpu_seconds", "wall_seconds", "loss", "gradient_norm")
"""What a worker says of each step."""


@dataclass(frozen=True)
class Worker:
    """Someone who trains, and how."""

    who: str
    """preflab, trl-1.16, trl-1.9.2 or ceiling."""
    setting: str = ""
    method: str = "dpo"
    order: str = "random"

    @property
    def name(self) -> str:
        return f"{self.who} {self.setting}".strip()


@dataclass(frozen=True)
class Comparison:
    """One line of a table."""

    work: str
    ours: str
    theirs: str


@dataclass(frozen=True)
class Group:
    """Workers who take turns; small enough for 24 GiB."""

    workers: tuple[Worker, ...]
    comparisons: tuple[Comparison, ...]


def _best(settings: Iterable[tuple[str, str]], method: str = "dpo") -> tuple[Worker, ...]:
    """Workers on batches sorted by length, as (who, setting)."""
    return tuple(Worker(who, setting, method, "bucketed") for who, setting in settings)


def _method(method: str, work: str) -> Group:
    """Another method than DPO: in fp32 against the defaults, in bf16 against the best."""
    return Group(
        _best(
            [("preflab", "fp32"), ("preflab", "bf16"), ("trl-1.16", "A"), ("trl-1.16", "B3"), ("trl-1.9.2", "B3")],
            method,
        ),
        (
            Comparison(f"{work}, fp32", "preflab fp32", "trl-1.16 A"),
            Comparison(f"{work}, bf16", "preflab bf16", "trl-1.16 B3"),
            Comparison(f"{work}, bf16", "preflab bf16", "trl-1.9.2 B3"),
        ),
    )


GROUPS = {
    "fp32": Group(
        (Worker("preflab", "fp32"), Worker("trl-1.16", "A")),
        (Comparison("all weights, fp32, reference cached", "preflab fp32", "trl-1.16 A"),),
    ),
    "bf16": Group(
        _best(
            [
                *(("preflab", "bf16"), ("preflab", "bf16-autocast")),
                *(("trl-1.16", "B3"), ("trl-1.16", "B3h"), ("trl-1.9.2", "B3")),
            ]
        ),
        (
            Comparison("all weights, bf16 with fp32 masters", "preflab bf16", "trl-1.16 B3"),
            Comparison("all weights, bf16 with fp32 masters", "preflab bf16", "trl-1.9.2 B3"),
            Comparison("all weights, bf16 autocast", "preflab bf16-autocast", "trl-1.16 B3"),
            Comparison("all weights, bf16 with fp32 masters", "preflab bf16", "trl-1.16 B3h"),
        ),
    ),
    "frozen-bf16": Group(
        _best([("preflab", "frozen-bf16"), ("trl-1.16", "CB"), ("trl-1.9.2", "CB")]),
        (
            Comparison("8 blocks and embeddings frozen, bf16, trunk cached", "preflab frozen-bf16", "trl-1.16 CB"),
            Comparison("8 blocks and embeddings frozen, bf16, trunk cached", "preflab frozen-bf16", "trl-1.9.2 CB"),
        ),
    ),
    "frozen-fp32": Group(
        (Worker("preflab", "frozen-fp32"), Worker("trl-1.16", "C")),
        (Comparison("8 blocks and embeddings frozen, fp32", "preflab frozen-fp32", "trl-1.16 C"),),
    ),
    "sft": _method("sft", "SFT"),
    "reward": _method("reward", "reward model"),
    "kto": _method("kto", "KTO"),
    "orpo": _method("orpo", "ORPO"),
}
WHOLE_EPOCHS = (
    ("bf16", Comparison("all weights, bf16", "preflab bf16", "trl-1.16 B3")),
    ("bf16", Comparison("all weights, bf16", "preflab bf16", "trl-1.9.2 B3")),
    ("frozen-fp32", Comparison("8 blocks and embeddings frozen, fp32", "preflab frozen-fp32", "trl-1.16 C")),
    ("frozen-bf16", Comparison("8 blocks and embeddings frozen, bf16", "preflab frozen-bf16", "trl-1.16 CB")),
    ("frozen-bf16", Comparison("8 blocks and embeddings frozen, bf16", "preflab frozen-bf16", "trl-1.9.2 CB")),
)
"""One epoch with nothing cached before it: the pass of the reference, the trunk's states, and the steps."""
SWEEP = "sweep"
CEILING = Worker("ceiling")


def call_of(worker: Worker, given: argparse.Namespace) -> Call:
    if worker is CEILING:
        probe = [sys.executable, HERE / "gemm.py", "--worker", "--products", *given.products]
        return Call(worker.name, on_core(given.core, probe), environment())
    chosen = ["--method", worker.method, "--setting", worker.setting, "--order", worker.order]
    if worker.who in PEERS:
        python, around = of_peer(worker.who, given)
        script = HERE / "peers" / "trl_train.py"
    else:
        python, around, script = Path(sys.executable), environment(), HERE / "preflab_worker.py"
    command = on_core(given.core, [python, script, given.folder, *chosen, "--frozen", given.frozen])
    return Call(worker.name, command, around)


def run(group: Group, given: argparse.Namespace) -> dict[str, Any]:
    """All steps of a group's workers, in turn."""
    invited = [worker for worker in group.workers if worker.who == "preflab" or worker.who in given.peers]
    told = in_turn([call_of(worker, given) for worker in (*invited, CEILING)], given.steps)
    ceiling = [line["rates"] for line in told.pop(CEILING.name)[1:]]
    return {
        "began": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
        "commit": commit(),
        "machine": machine(),
        "ceiling_flops_per_second": {name: [rates[name] for rates in ceiling] for name in ceiling[0]},
        "workers": {
            worker.name: {
                "method": worker.method,
                "order": worker.order,
                "warm_up_loss": told[worker.name][0]["loss"],
                **summary(told[worker.name], STEPS),
            }
            for worker in invited
        },
    }


def sweep(given: argparse.Namespace) -> dict[str, Any]:
    """How often five values of β read the reference."""
    worker = Worker("preflab", "fp32")
    call = call_of(worker, given)
    done = subprocess.run(
        [*call.command, "--sweep"], env=call.environment, stdout=subprocess.PIPE, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return {"commit": commit(), "machine": machine(), **found}


# ------------------------------------------------------------------------------------------------------------- tables


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> list[float]:
    """Theirs over ours, batch by batch."""
    pairs = zip(ours["steps"]["cpu_seconds"], theirs["steps"]["cpu_seconds"], strict=True)
    return [other / own for own, other in pairs]


def together(ours: dict[str, Any], theirs: dict[str, Any]) -> float:
    """Theirs over ours, all steps together: what an epoch takes, as the batches have the whole set's mean lengths."""
    return sum(theirs["steps"]["cpu_seconds"]) / sum(ours["steps"]["cpu_seconds"])


def whole(worker: dict[str, Any]) -> float:
    """Seconds a pair of one epoch, precomputation included."""
    pairs = worker_pairs(worker)
    return sum(worker["steps"]["cpu_seconds"]) / pairs + worker.get("reference_seconds_per_pair", 0.0)


def worker_pairs(worker: dict[str, Any]) -> int:
    return len(worker["steps"]["cpu_seconds"]) * worker["pairs_a_step"]


def label(name: str) -> str:
    who, _, setting = name.partition(" ")
    return f"{PEERS.get(who, who)} {setting}"


def share(worker: dict[str, Any], ceiling: dict[str, list[float]]) -> float:
    """Operations that the steps need, over those that large products reached in the same time."""
    dtype = "bf16" if worker["products"] == "bfloat16" else "fp32"
    steps = worker["steps"]["cpu_seconds"]
    return sum(worker["flops"][: len(steps)]) / sum(steps) / statistics.median(ceiling[f"{dtype} large"])


def table(results: dict[str, Any]) -> str:
    """The tables of the docs."""
    found = {name: rows["workers"] for name, rows in results["rows"].items() if name != SWEEP}
    lines = [
        "| work | preflab | s a step | against | s a step | all steps | batch by batch | memory |",
        "|:--|:--|--:|:--|--:|--:|--:|--:|",
    ]
    for name, group in GROUPS.items():
        for one in group.comparisons:
            workers = found.get(name, {})
            if one.ours in workers and one.theirs in workers:
                ours, theirs = workers[one.ours], workers[one.theirs]
                lines.append(
                    f"| {one.work} | {label(one.ours).removeprefix('preflab ')} "
                    f"| {spread(ours['steps']['cpu_seconds'])} | {label(one.theirs)} "
                    f"| {spread(theirs['steps']['cpu_seconds'])} | {together(ours, theirs):.2f} × "
                    f"| {spread(ratios(ours, theirs))} × | {ours['peak_bytes'] / theirs['peak_bytes']:.2f} × |"
                )
    lines += ["", "| one epoch, precomputation included | s a pair | against | s a pair | ratio |"]
    lines += ["|:--|--:|:--|--:|--:|"]
    for name, one in WHOLE_EPOCHS:
        workers = found.get(name, {})
        if one.ours in workers and one.theirs in workers:
            own, other = whole(workers[one.ours]), whole(workers[one.theirs])
            lines.append(f"| {one.work} | {own:.2f} | {label(one.theirs)} | {other:.2f} | {other / own:.2f} × |")
    lines += [
        "",
        "| | peak memory, GiB | s a step | reference, s a pair | share of the ceiling |",
        "|:--|--:|--:|--:|--:|",
    ]
    for name, workers in found.items():
        ceiling = results["rows"][name]["ceiling_flops_per_second"]
        for which, worker in workers.items():
            once = worker.get("reference_seconds_per_pair")
            of_ceiling = f"{share(worker, ceiling):.0%}" if "flops" in worker else ""
            lines.append(
                f"| {name}: {label(which)} | {worker['peak_bytes'] / 2**30:.2f} "
                f"| {spread(worker['steps']['cpu_seconds'])} | {'' if once is None else f'{once:.2f}'} | {of_ceiling} |"
            )
    if SWEEP in results["rows"]:
        seen = results["rows"][SWEEP]
        lines += ["", f"β sweep, {len(seen['betas'])} values: {seen['reference_passes']} pass of the reference."]
    lines += ["", *notes(results)]
    return "\n".join(lines)


def notes(results: dict[str, Any]) -> list[str]:
    """Machine, versions, ceilings, data, commits: what the figures hold for."""
    rows = [row for name, row in results["rows"].items() if name != SWEEP]
    said = machines(rows)
    rates: dict[str, list[float]] = {}
    for row in rows:
        for name, values in row["ceiling_flops_per_second"].items():
            rates.setdefault(name, []).extend(value / 1e9 for value in values)
    shown = "; ".join(f"{name} {spread(values, 0)}" for name, values in rates.items())
    said.append(f"Products, GFLOP/s: {shown}.")
    data = results["data"]
    said.append(versions(rows))
    lengths = ", ".join(f"{name} {of['mean']:.0f}/{of['median']:.0f}" for name, of in data["lengths"].items())
    said.append(
        f"Pairs: {data['source']}, {data['pairs']}; tokens, mean/median: {lengths}; measured, tokens a pair: "
        + "; ".join(
            f"{order} {counts['tree']:.0f} in trees, {counts['padded']:.0f} padded"
            for order, counts in data["measured"].items()
        )
        + "."
    )
    said.append(commits(results["rows"].values()))
    return said


# --------------------------------------------------------------------------------------------------------------- main


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="what benchmarks/peers/data.py wrote")
    parser.add_argument("--rows", nargs="+", choices=[*GROUPS, SWEEP], default=[*GROUPS, SWEEP])
    parser.add_argument("--steps", type=int, default=6, help="after the warm-up step; at most the batches of the data")
    parser.add_argument("--peers", nargs="+", choices=["none", *PEERS], default=list(PEERS))
    parser.add_argument("--frozen", type=int, default=8, help="blocks, in rows that freeze some")
    parser.add_argument("--products", nargs="+", default=["large", "mlp", "head"], help="of the probe")
    add_arguments(parser, OUT)
    given = parser.parse_args()

    if given.table:
        print(table(json.loads(given.out.read_text(encoding="utf-8"))))
        return
    if given.folder is None:
        parser.error("name the folder that benchmarks/peers/data.py wrote")
    written = json.loads((given.folder / "pairs.json").read_text(encoding="utf-8"))
    batches = min(map(len, written["orders"].values())) - 1
    if given.steps > batches:
        parser.error(f"{given.folder} has {batches} batches to measure; make more, or lower --steps")
    data = {name: value for name, value in written.items() if name != "orders"}
    results = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {"rows": {}}
    if results.get("data", data) != data:
        sys.exit(f"{given.out} was measured on other pairs; choose another --out")
    results["data"] = data
    for name in given.rows:
        print(name, file=sys.stderr)
        results["rows"][name] = sweep(given) if name == SWEEP else run(GROUPS[name], given)
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(table(results))


if __name__ == "__main__":
    main()
