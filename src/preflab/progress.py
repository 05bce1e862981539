"""Progress for people: a bar with an estimate on a terminal; elsewhere quiet lines, one a stage and on long ones one a
minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)

SECONDS_BETWEEN_LINES = 60.0
"""A log gets a line this often at most."""
SECONDS_OF_ESTIMATE = 1800.0
"""What is left is judged by what was done in this time: a step may take minutes."""

BARS_PER_SECOND = 4

Advance = Callable[[int, str], None]

_hushed: ContextVar[bool] = ContextVar("hushed", default=False)


def say(line: str) -> None:
    """One line for the person watching."""
    if not _hushed.get():
        console.print(escape(line))


def warn(line: str) -> None:
    """One line that deserves attention."""
    if not _hushed.get():
        console.print(f"[yellow]warning:[/yellow] {escape(line)}")


@contextmanager
def hushed() -> Iterator[None]:
    """Neither lines nor stages of the block are shown: a stage around it says how far things are."""
    token = _hushed.set(True)
    try:
        yield
    finally:
        _hushed.reset(token)


def drawable() -> bool:
    """Whether someone watches a terminal that can move its cursor. FORCE_COLOR, which a CI may set for its log, makes
    none of a file."""
    return console.is_interactive and console.file.isatty() and not _hushed.get()


@contextmanager
def stage(title: str, total: int, start: int = 0) -> Iterator[Advance]:
    """Show a stage of `total` steps while the block runs; the yielded function reports (steps done, a short note).

    `start` steps were done before (a resumed run), so the estimate of what is left does not count them.
    """
    with quiet_lines(title, total, start) as tell:
        if not drawable():
            yield tell
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(
            *columns,
            console=console,
            transient=True,
            refresh_per_second=BARS_PER_SECOND,
            speed_estimate_period=SECONDS_OF_ESTIMATE,
        ) as bars:
            task = bars.add_task(escape(title), total=total, completed=start, note="")

            def advance(done: int, note: str = "") -> None:
                tell(done, note)
                shown = escape(note) if note else bars.tasks[task].fields["note"]
                bars.update(task, completed=done, note=shown)

            yield advance


@contextmanager
def quiet_lines(title: str, total: int, start: int = 0) -> Iterator[Advance]:
    """One line when the block is over; before, where nothing is drawn, a line whenever a minute has passed."""
    began = said = time.perf_counter()
    last = ""

    def tell(done: int, note: str = "") -> None:
        nonlocal last, said
        last = note or last
        now = time.perf_counter()
        if now - said < SECONDS_BETWEEN_LINES or not note or drawable():
            return
        said = now
        left = (now - began) / max(1, done - start) * (total - done)
        say(f"{title}: {done} of {total}, {_clock(now - began)} gone, {_clock(left)} left, {note}")

    yield tell
    say(f"{title}: {time.perf_counter() - began:.0f} s" + (f", {last}" if last else ""))


def _clock(seconds: float) -> str:
    """h:mm:ss."""
    return str(timedelta(seconds=round(seconds)))
