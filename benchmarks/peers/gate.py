"""How a worker takes its turn: one line of JSON out, one line in, a step, and so on. Standard library alone.

Workers of one group share a core and run one step at a time in turn, so what slows the machine slows all of them. Time
is the CPU time of the process: what other processes take of the core doesn't count.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


class Gate:
    """The worker's side. What libraries print goes to stderr."""

    def __init__(self) -> None:
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)
        self.began: tuple[float, float] | None = None

    def turn(self, facts: dict[str, Any]) -> None:
        """End a step (the first time: the set-up and the warm-up), say what it took, and wait for the next turn.

        Raises:
            SystemExit: there is none.
        """
        line = dict(facts)
        if self.began is not None:
            cpu, wall = self.began
            line |= {"cpu_seconds": time.process_time() - cpu, "wall_seconds": time.perf_counter() - wall}
        line["peak_bytes"] = peak_bytes()
        print(json.dumps(line), file=self.out, flush=True)
        if sys.stdin.readline() != "go\n":
            raise SystemExit(0)
        self.began = time.process_time(), time.perf_counter()


def peak_bytes() -> int:
    """The largest resident memory of this process so far (VmHWM)."""
    return _status("VmHWM:")


def resident_bytes() -> int:
    """Resident memory of this process (VmRSS)."""
    return _status("VmRSS:")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))
