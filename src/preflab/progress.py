"""Progress for people: a bar with an estimate on a terminal, one quiet line a stage elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

console = Console(stderr=True, highlight=False, soft_wrap=True)

Advance = Callable[[int, str], None]


def say(line: str) -> None:
    """One line for the person watching."""
    console.print(escape(line))


def warn(line: str) -> None:
    """One line that deserves attention."""
    console.print(f"[yellow]warning:[/yellow] {escape(line)}")


@contextmanager
def stage(title: str, total: int, start: int = 0) -> Iterator[Advance]:
    """Show a stage of `total` steps while the block runs; the yielded function reports (steps done, a short note).

    `start` steps were done before (a resumed run), so the estimate of what is left does not count them.
    """
    began = time.perf_counter()
    last = ""
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console, transient=True) as bars:
            task = bars.add_task(escape(title), total=total, completed=start, note="")

            def advance(done: int, note: str = "") -> None:
                nonlocal last
                last = note or last
                bars.update(task, completed=done, note=escape(last))

            yield advance
    else:

        def advance(done: int, note: str = "") -> None:
            nonlocal last
            last = note or last

        yield advance
    say(f"{title}: {time.perf_counter() - began:.0f} s" + (f", {last}" if last else ""))
