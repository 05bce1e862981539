"""Workers who take turns on one core: started one after the other, asked for one step each in turn, and let go.

One is active at a time, so what slows the machine slows all of them, and a ratio survives. The workers' side of it is
`peers/gate.py`. Standard library alone.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

HERE = Path(__file__).parent
PEERS = {"trl-1.16": "TRL 1.16", "trl-1.9.2": "TRL 1.9.2"}
"""Those who have an environment of their own."""


@dataclass(frozen=True)
class Call:
    """How a worker is started."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]


class Process:
    """A worker under way."""

    def __init__(self, call: Call) -> None:
        self.name = call.name
        self.errors: IO[str] = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115  (until `end`)
        self.process = subprocess.Popen(
            call.command,
            env=call.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def line(self) -> dict[str, Any]:
        """What it says at the end of its turn.

        Raises:
            SystemExit: it died; its last words are printed.
        """
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        if not said:
            self.errors.seek(0)
            sys.exit(f"{self.name} died:\n{self.errors.read()[-3000:]}")
        found: dict[str, Any] = json.loads(said)
        return found

    def turn(self) -> dict[str, Any]:
        """Let it take one step."""
        assert self.process.stdin is not None
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return self.line()

    def end(self) -> None:
        """Let it go: it reads the end of its input, and leaves."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.errors.close()


def in_turn(calls: Iterable[Call], steps: int) -> dict[str, list[dict[str, Any]]]:
    """What each worker said: first of its set-up and warm-up, then of each step."""
    under_way: list[Process] = []
    told: dict[str, list[dict[str, Any]]] = {}
    try:
        for call in calls:  # set up one after the other
            under_way.append(Process(call))
            told[call.name] = [under_way[-1].line()]
            print(f"  {call.name}: ready", file=sys.stderr)
        for step in range(steps):
            for process in under_way:
                told[process.name].append(process.turn())
                took = told[process.name][-1]["cpu_seconds"]
                print(f"  {process.name}: step {step + 1}, {took:.2f} s", file=sys.stderr)
    finally:
        for process in under_way:
            process.end()
    return told


def summary(told: Sequence[dict[str, Any]], steps: Sequence[str]) -> dict[str, Any]:
    """A worker's steps by name, and what it said beside them; the latest word counts."""
    facts: dict[str, Any] = {}
    for line in told:
        facts |= {name: value for name, value in line.items() if name not in steps}
    return {"peak_bytes": facts.pop("peak_bytes"), "steps": {name: [line[name] for line in told[1:]] for name in steps},
            **facts}  # fmt: skip


def on_core(core: int, command: Iterable[object]) -> list[str]:
    """A command that stays on one core, where the system can do that."""
    pinned = ["taskset", "-c", str(core)] if shutil.which("taskset") else []
    return [*pinned, *map(str, command)]


def environment(*, foreign: bool = False, before: Path | None = None) -> dict[str, str]:
    """One thread, and each their own library: a foreign python doesn't look where ours does.

    Args:
        before: a folder of packages that goes before the environment's own.
    """
    found = os.environ | {"OMP_NUM_THREADS": "1"}
    if foreign:
        found.pop("PYTHONPATH", None)
    if before is not None:
        found["PYTHONPATH"] = str(before.absolute())
    return found


def of_peer(who: str, given: argparse.Namespace) -> tuple[Path, dict[str, str]]:
    """The python of one of PEERS, and its environment."""
    return given.trl_python, environment(foreign=True, before=given.trl_old if who == "trl-1.9.2" else None)


def add_arguments(parser: argparse.ArgumentParser, out: Path) -> None:
    """Where peers are, where results go."""
    parser.add_argument("--trl-python", type=Path, default=Path("runs/trl-env/bin/python"))
    parser.add_argument("--trl-old", type=Path, default=Path("runs/trl-1.9.2"), help="where TRL 1.9.2 lies")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--out", type=Path, default=out)
    parser.add_argument("--table", action="store_true", help="print the tables of --out, run nothing")


def commit() -> str:
    """The commit that was measured; + where files differ from it."""
    git = partial(subprocess.run, cwd=HERE, capture_output=True, text=True, check=False)
    changed = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    return git(["git", "rev-parse", "--short", "HEAD"]).stdout.strip() + ("+" if changed else "")


def machine() -> dict[str, Any]:
    """Processor, cores, memory; no names."""
    lines = [line.partition(":") for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()]
    said = {name.strip(): value.strip() for name, _, value in lines}
    bf16 = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in said.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": said.get("model name", platform.machine()),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30),
        "bf16": bf16,
        "load": round(os.getloadavg()[0], 1),
    }


def spread(values: Sequence[float], digits: int = 2) -> str:
    """Median, smallest and largest."""
    low, high = min(values), max(values)
    return f"{statistics.median(values):.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def machines(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """A sentence on each machine that rows were measured on."""
    found = {json.dumps({name: value for name, value in row["machine"].items() if name != "load"}): 0 for row in rows}
    return [
        f"One core of {one['cores']} ({one['processor']}, {', '.join(one['bf16']) or 'no bf16 instructions'}, "
        f"{one['memory_gib']} GiB)."
        for one in map(json.loads, found)
    ]


def versions(rows: Iterable[Mapping[str, Any]]) -> str:
    """What the rows' workers ran."""
    found = {
        f"{package} {version}"
        for row in rows
        for worker in row["workers"].values()
        for package, version in worker["versions"].items()
    }
    return f"Versions: {', '.join(sorted(found))}."


def commits(rows: Iterable[Mapping[str, Any]]) -> str:
    """What was measured."""
    return f"Commits: {', '.join(sorted({row['commit'] for row in rows}))}."
