"""What a run cost.

Tokens are counted as a model's body reads them: a prompt once for all its responses in the tree layout, padding too in
the flat one (`models/scoring.py: reading`). Floating-point operations are those of `models/flops.py`.

A pass of the reference that was read from the cache costs what it took when it was computed: its tokens, FLOPs and
seconds. So an arm pays for what its method needs, and neither the order of a study's arms nor an earlier run makes it
look cheaper. Memory is what was really seen.
"""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from preflab.data.pack import Reading
from preflab.models.flops import flops
from preflab.models.trunk import ran_below


@dataclass
class Cost:
    """Counts of one run; they go on where a resumed run's checkpoint left them. Evaluation is not counted."""

    wall_seconds: float = 0.0
    """With those of reference passes that were found in the cache, as they were measured then."""
    trained_tokens: int = 0
    """Tokens that went forward and backward, prompt tokens included; through frozen blocks they go forward alone."""
    scored_tokens: int = 0
    """Tokens that went forward alone: references, values, old log-probabilities, learned rewards."""
    generated_tokens: int = 0
    reward_calls: int = 0
    """Responses given to a reward: one that two rewards judge counts twice, one whose reward is remembered not at
    all."""
    gold_calls: int = 0
    """Labels or scores taken from the gold reward."""
    steps: int = 0
    """Optimiser steps."""
    examples: int = 0
    """Pairs or responses trained on, each time that they were."""
    labels: int = 0
    """Preference labels used, each once; a study knows, training does not."""
    peak_memory_bytes: int = 0
    """Of the process while it ran, what was resident before included; on a GPU, of its memory."""
    flops: float = 0.0
    """Of matrix products: `models/flops.py: flops`. Sampling counts as one pass over each prompt and response, without
    padding."""

    def add_step(self, examples: int) -> None:
        """Count an optimiser step."""
        self.steps += 1
        self.examples += examples

    def add_trained(self, model: Any, read: Reading) -> None:
        """Count a pass with gradients."""
        self.trained_tokens += read.cells
        self._add_flops(model, read, backward=True)

    def add_scored(self, model: Any, read: Reading) -> None:
        """Count a pass without gradients."""
        self.scored_tokens += read.cells
        self._add_flops(model, read)

    def _add_flops(self, model: Any, read: Reading, *, backward: bool = False) -> None:
        """Frozen blocks whose states are kept count for what they computed, not for what was read."""
        below, ran = ran_below(model)
        self.flops += flops(model, read, backward=backward, stored=below)
        if ran.cells:
            self.flops += flops(model, ran) - flops(model, ran, stored=below)

    def add(self, other: Cost) -> None:
        """Count what another cost counted."""
        vars(self).update(self.plus(other).values())

    def plus(self, other: Cost) -> Cost:
        """Both together: sums, and the larger peak."""
        mine, theirs = asdict(self), asdict(other)
        peak = max(self.peak_memory_bytes, other.peak_memory_bytes)
        return Cost(**{name: mine[name] + theirs[name] for name in mine} | {"peak_memory_bytes": peak})

    def values(self) -> dict[str, float]:
        """As JSON."""
        return asdict(self)


class Stopwatch:
    """Adds the seconds of `with` blocks, and the peak memory seen, to a cost."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost

    def __enter__(self) -> Stopwatch:
        reset_peak_memory()
        self.began = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        self.cost.wall_seconds += time.perf_counter() - self.began
        self.cost.peak_memory_bytes = max(self.cost.peak_memory_bytes, peak_memory_bytes())


def reset_peak_memory() -> None:
    """Start the peak anew, where the system can (Linux), and on the GPU."""
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # elsewhere the peak is that of the process since it began


def peak_memory_bytes() -> int:
    """Largest memory since the last reset: of the GPU, by tensors, where this process uses one; else resident memory of
    the process."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated()
    found = _status_bytes("VmHWM:")
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def resident_bytes() -> int:
    """Resident memory of this process; 0 where the system doesn't tell."""
    return _status_bytes("VmRSS:") or 0


def _status_bytes(field: str) -> int | None:
    """A line of Linux' account of this process; None elsewhere."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(field)), None)
