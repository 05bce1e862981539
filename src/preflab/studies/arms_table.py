"""The arms of a study while they run side by side: a table on a terminal, elsewhere quiet lines.

All of it is read from their run folders, metrics.jsonl and evaluation.json.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from preflab.config.commands import Compare
from preflab.config.online import Online
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.preference import Unpaired
from preflab.config.training import Fit
from preflab.live import plain
from preflab.progress import SECONDS_BETWEEN_LINES, console, drawable, say
from preflab.runs import JSON, RunFolder
from preflab.studies.arms import settings_of
from preflab.training.offline import total_steps

State = Literal["waiting", "running", "done", "failed", "stopped"]
STYLES: dict[State, str] = {"waiting": "dim", "running": "bold", "done": "green", "failed": "red", "stopped": "yellow"}
SECONDS_BETWEEN_LOOKS = 1.0
TAIL_BYTES = 2**16
"""Of metrics.jsonl; its last line is shorter."""


@dataclass(frozen=True)
class Progress:
    """How far an arm is."""

    step: int = 0
    reward: float | None = None
    """Mean on validation prompts at its latest evaluation."""
    kl_nats: float | None = None

    def note(self, total: str) -> str:
        """In words.

        Args:
            total: as `total_of` says it.
        """
        parts = [f"step {self.step}" + (f" of {total}" if total else "")] if self.step else []
        parts += [f"reward {self.reward:.2f}"] if self.reward is not None else []
        parts += [f"KL {self.kl_nats:.2f} nats"] if self.kl_nats is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Row:
    """One arm of one seed."""

    arm: str
    seed: int
    run: RunFolder
    examples: int
    """Pairs to learn from."""
    prompts: int
    """What it samples on, where it samples."""
    state: State = "waiting"
    began: float = 0.0
    seconds: float = 0.0
    progress: Progress = field(default_factory=Progress)

    @property
    def title(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def progress_of(run: RunFolder) -> Progress:
    """What a run folder tells, at whatever moment: a file that is not there, or not whole yet, tells nothing.

    Rounds (of iterative DPO) have a log each; their steps add up.
    """
    logs = sorted(run.path.glob("rounds/*/metrics.jsonl")) or [run.metrics]
    step = sum(_last_step(log) for log in logs)
    points: list[JSON] = []
    with suppress(OSError, ValueError):
        points = json.loads(run.evaluation.read_text(encoding="utf-8"))["points"]
    points = [point for point in points if point["split"] == "validation"]
    if not points:
        return Progress(step)
    last = max(points, key=lambda point: int(point["step"]))["rows"]
    return Progress(step, _mean(last["reward"]), _mean(last["kl_nats"]))


def steps_of(config: Compare, arm: str, examples: int, prompts: int) -> int | None:
    """Steps of an arm's last stage as its log counts them, from the number of pairs, and of prompts that it samples on;
    None of an arm that has none. Of iterative DPO the most: a prompt whose responses tie gives no pair."""
    match settings_of(config, arm):
        case IterativeDPO() as settings:
            return settings.rounds * total_steps(prompts // settings.rounds, settings)
        case Unpaired() as settings:
            return total_steps(2 * examples, settings)
        case Fit() as settings:
            return total_steps(examples, settings)
        case Online(updates=updates) | OnlineDPO(updates=updates):
            return int(updates)
        case _:
            return None


def total_of(config: Compare, arm: str, examples: int, prompts: int) -> str:
    """The steps of an arm, in words: the most where it can end before, by a budget or with ties; "" without steps.

    >>> total_of(Compare(), "ppo", 900, 800)
    '40'
    """
    steps = steps_of(config, arm, examples, prompts)
    if steps is None:
        return ""
    ends_early = config.budget.amount is not None or isinstance(settings_of(config, arm), IterativeDPO)
    return f"≤ {steps}" if ends_early else str(steps)


class Watch:
    """Shows rows while its block runs; told what begins and ends, it reads the rest."""

    def __init__(self, config: Compare, rows: Sequence[Row]) -> None:
        self.rows = {(row.arm, row.seed): row for row in rows}
        self.totals = {key: total_of(config, row.arm, row.examples, row.prompts) for key, row in self.rows.items()}
        self.looked = -math.inf
        self.said = time.perf_counter()
        self.live = Live(console=console, auto_refresh=False, transient=True)

    def __enter__(self) -> Watch:
        if drawable():
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.live.stop()

    def began(self, arm: str, seed: int) -> None:
        """A process was started for it."""
        self.rows[arm, seed] = replace(self.rows[arm, seed], state="running", began=time.perf_counter())

    def ended(self, arm: str, seed: int, error: str | None, *, stopped: bool = False) -> None:
        """Its process is gone."""
        state: State = "stopped" if stopped else "done" if error is None else "failed"
        row = self._looked_at(self.rows[arm, seed])
        self.rows[arm, seed] = row = replace(row, state=state)
        note = error if state == "failed" else row.progress.note(self.totals[arm, seed])
        words = {"failed": "failed after ", "stopped": "stopped after "}.get(state, "")
        say(f"{row.title}: {words}{row.seconds:.0f} s" + (f", {note}" if note else ""))

    def look(self) -> None:
        """Look at what runs, where it is time to."""
        now = time.perf_counter()
        if now - self.looked >= SECONDS_BETWEEN_LOOKS and drawable():
            self.looked = now
            self._read()
            self.live.update(ArmsTable(tuple(self.rows.values()), tuple(self.totals.values())), refresh=True)
        if now - self.said >= SECONDS_BETWEEN_LINES and not drawable():
            self.said = now
            self._read()
            for key, row in self.rows.items():
                if row.state == "running":
                    note = row.progress.note(self.totals[key])
                    say(f"{row.title}: {row.seconds:.0f} s gone" + (f", {note}" if note else ""))

    def _read(self) -> None:
        for key, row in self.rows.items():
            if row.state == "running":
                self.rows[key] = self._looked_at(row)

    def _looked_at(self, row: Row) -> Row:
        return replace(row, seconds=time.perf_counter() - row.began, progress=progress_of(row.run))


@dataclass(frozen=True)
class ArmsTable:
    """A row an arm; where the terminal is too low for all, what runs or failed, and how many others there are."""

    rows: tuple[Row, ...]
    totals: tuple[str, ...]
    """As `total_of` says them."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown = list(zip(self.rows, self.totals, strict=True))
        free = options.size.height - 4  # head, line below it, what is left out, the cursor
        if len(shown) > free:
            first: tuple[State, ...] = ("running", "failed", "stopped", "waiting", "done")
            kept = sorted(range(len(shown)), key=lambda i: (first.index(shown[i][0].state), i))[: max(1, free)]
            shown = [shown[i] for i in sorted(kept)]
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="dim")
        table.add_column("arm", no_wrap=True, overflow="ellipsis")
        table.add_column("seed", justify="right")
        table.add_column("state")
        for name in ("step", "reward", "KL, nats", "seconds"):
            table.add_column(name, justify="right", no_wrap=True)
        for row, total in shown:
            table.add_row(*_cells(row, total), style="dim" if row.state == "waiting" else "")
        yield table
        if len(shown) < len(self.rows):
            others = [row.state for row in self.rows if not any(row is one for one, _ in shown)]
            counts = ", ".join(f"{others.count(state)} {state}" for state in STYLES if state in others)
            yield Text(f"and {counts}", style="dim")


def _cells(row: Row, total: str) -> Iterator[Text]:
    found = row.progress
    yield Text(plain(row.arm))
    yield Text(str(row.seed))
    yield Text(row.state, style=STYLES[row.state])
    yield Text(f"{found.step} of {total}" if total and row.state != "waiting" else total or "–")
    yield Text("" if found.reward is None else f"{found.reward:.2f}")
    yield Text("" if found.kl_nats is None else f"{found.kl_nats:.2f}")
    yield Text("" if row.state == "waiting" else f"{row.seconds:.0f}")


def _last_step(log: Path) -> int:
    """The step of the last whole line, 0 where there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[:-1]
        return int(json.loads(lines[-1])["step"]) if lines else 0
    except (OSError, ValueError):
        return 0


def _mean(values: Sequence[float] | None) -> float | None:
    return sum(values) / len(values) if values else None
