"""What a run looks like while it learns: on a terminal a panel with its figures and a sample or two, elsewhere the
quiet lines of `progress.py`.

Drawing is rich's, in a thread of its own; the run only hands over what it knows.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, Protocol

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.measure import Measurement
from rich.panel import Panel
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from preflab.progress import SECONDS_OF_ESTIMATE, console, drawable, quiet_lines

Phase = Literal["sample", "reward", "score", "learn"]
PHASES: tuple[Phase, ...] = ("sample", "reward", "score", "learn")
"""Of an update: responses are sampled, rewarded, scored by policy and reference, and learned from."""

DRAWN_PER_SECOND = 1
WIDEST = 100
"""Columns of the panel at most: wider lines are hard to read."""
SAMPLE_LINES = 3
"""Of a sample at most."""
MOST_POINTS = 64
"""How many points a trend holds at most: as many as a line could show."""
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True)
class Shown:
    """A figure of metrics.jsonl that is worth a glance."""

    key: str
    label: str
    form: str
    """How its value is written, with its unit."""
    told: bool = False
    """Whether a log's line tells it too."""


FIGURES = (
    Shown("reward", "reward", "{:.2f}", told=True),
    Shown("kl_nats", "KL", "{:.2f} nats", told=True),
    Shown("entropy_nats", "entropy", "{:.2f} nats"),
    Shown("response_tokens", "length", "{:.1f} tokens"),
    Shown("clip_fraction", "clipped", "{:.1%}"),
    Shown("loss", "loss", "{:.3f}", told=True),
    Shown("perplexity", "perplexity", "{:.2f}"),
    Shown("accuracy", "accuracy", "{:.3f}", told=True),
    Shown("margin", "margin", "{:.3f}", told=True),
    Shown("nats", "−log p of a row", "{:.2f} nats"),
    Shown("validation_nats", "of a validation row", "{:.2f} nats", told=True),
    Shown("column_distance", "columns off by", "{:.3f}", told=True),
    Shown("told_apart_auc", "told apart, AUC", "{:.2f}", told=True),
    Shown("generated_tokens_per_second", "sampling", "{:,.0f} tokens/s", told=True),
)


@dataclass(frozen=True)
class Sample:
    """A response to look at."""

    prompt: str
    response: str
    note: str
    """What it is, in a word or two."""


class Show(Protocol):
    """How a run says what it knows."""

    def __call__(self, done: int, figures: Mapping[str, float] = {}, samples: Sequence[Sample] = ()) -> None:
        """So many steps are done; what the log says of the last one, by its keys; some of its responses."""
        ...


class Phases:
    """Which phase of an update is under way, and the seconds that each took: they add up to the time since `begin`.

    >>> phases = Phases()
    >>> phases.begin()
    >>> for phase in ("sample", "reward", "sample", "learn"):
    ...     phases.enter(phase)
    >>> phases.leave("save")
    >>> sorted(phases.figures(generated_tokens=64))  # doctest: +NORMALIZE_WHITESPACE
    ['generated_tokens_per_second', 'learn_seconds', 'reward_seconds', 'sample_seconds', 'score_seconds']
    """

    def __init__(self) -> None:
        self.under_way = ""
        self.since = time.perf_counter()
        self.seconds: dict[str, float] = {}

    def begin(self) -> None:
        """An update begins."""
        self.leave("")
        self.seconds = {}

    def enter(self, phase: Phase) -> None:
        """This phase begins, so the one before is over."""
        self.leave(phase)

    def leave(self, for_what: str) -> None:
        """The phase under way is over, and something else begins that is no part of an update."""
        now = time.perf_counter()
        self.seconds[self.under_way] = self.seconds.get(self.under_way, 0.0) + now - self.since
        self.under_way, self.since = for_what, now

    def figures(self, generated_tokens: int) -> dict[str, float]:
        """For the log. What reads a number from the device waits for it, and each phase ends with one."""
        seconds = {f"{phase}_seconds": self.seconds.get(phase, 0.0) for phase in PHASES}
        return seconds | {"generated_tokens_per_second": generated_tokens / max(seconds["sample_seconds"], 1e-9)}


@contextmanager
def live(
    title: str,
    total: int,
    start: int = 0,
    *,
    phases: Phases | None = None,
    earlier: Iterable[Mapping[str, float]] = (),
) -> Iterator[Show]:
    """Show a run of `total` steps while the block runs; the yielded function reports.

    Args:
        start: steps that were done before (a resumed run).
        phases: what the run says of where it is.
        earlier: the log of a resumed run, so that its trends begin where it began.
    """
    with quiet_lines(title, total, start) as tell:
        view = View(title, total, start, phases)
        for line in earlier:
            view.add(line)

        def show(done: int, figures: Mapping[str, float] = {}, samples: Sequence[Sample] = ()) -> None:
            tell(done, note(figures))
            view.show(done, figures, samples)

        if not drawable():
            yield show
            return
        with Live(
            view,
            console=console,
            refresh_per_second=DRAWN_PER_SECOND,
            transient=True,
            # What others print stands above the panel; into a file or pipe it goes where it should.
            redirect_stdout=sys.stdout.isatty(),
        ):
            yield show


def shown(figures: Iterable[str]) -> list[Shown]:
    """Which of these keys are worth a glance, the parts of a reward below it.

    >>> [one.label for one in shown(["reward/length", "loss", "reward", "ratio"])]
    ['reward', 'length', 'loss']
    """
    keys = list(figures)
    found = []
    for one in FIGURES:
        if one.key in keys:
            found.append(one)
        parts = [key for key in keys if key.startswith(f"{one.key}/")]
        found += [Shown(key, plain(key.removeprefix(f"{one.key}/")), one.form) for key in parts]
    return found


def note(figures: Mapping[str, float]) -> str:
    """The few figures that a log's line tells."""
    told = (one for one in shown(figures) if one.told)
    return ", ".join(f"{one.label} {one.form.format(figures[one.key])}" for one in told)


def plain(text: str) -> str:
    """Generated text on one line that can do nothing to a terminal: line ends as ⏎, other white space as a space, what
    can't be printed (control and direction characters among them) as �.

    >>> plain("one\\n\\ttwo \\x1b[2J [red]")
    'one⏎ two �[2J [red]'
    """
    return "".join(map(_plain, text.replace("\r\n", "\n")))


def _plain(character: str) -> str:
    if character.isprintable():
        return character
    if character in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029":
        return "⏎"
    return " " if character.isspace() else "\ufffd"


class Trend:
    """A figure from the start of the run to now, in at most `MOST_POINTS` means of equally many values each."""

    def __init__(self, value: float) -> None:
        self.first = self.now = value
        self.means: list[float] = [value] if math.isfinite(value) else []
        self.each, self.waiting = 1, list[float]()

    def add(self, value: float) -> None:
        """The next value."""
        self.now = value
        if not math.isfinite(value):
            return  # told, but there is no block for it
        self.waiting.append(value)
        if len(self.waiting) < self.each:
            return
        means = [*self.means, sum(self.waiting) / self.each]
        self.waiting = []
        if len(means) == MOST_POINTS:
            means = _pooled(means, MOST_POINTS // 2)
            self.each *= 2
        self.means = means  # replaced whole: another thread may be reading

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(sparkline(self.means, options.max_width), style="cyan", no_wrap=True)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(4, options.max_width)


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as blocks, the smallest lowest, in at most `width` columns.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7], 8)
    '▁▂▃▄▅▆▇█'
    >>> sparkline([1, 1, 5, 5, 3, 3], 3)
    '▁█▅'
    """
    if not values:
        return ""
    pooled = _pooled(values, width)
    low, high = min(pooled), max(pooled)
    if high == low:
        return BLOCKS[0] * len(pooled)
    return "".join(BLOCKS[round((value - low) / (high - low) * (len(BLOCKS) - 1))] for value in pooled)


def _pooled(values: Sequence[float], most: int) -> list[float]:
    """Means of neighbours, so that at most `most` are left."""
    count = min(len(values), most)
    ends = [len(values) * i // count for i in range(count + 1)]
    return [sum(values[begin:end]) / (end - begin) for begin, end in pairwise(ends)]


class View:
    """The panel: a bar, figures with their trends, the phases' shares of the last update, samples."""

    def __init__(self, title: str, total: int, start: int = 0, phases: Phases | None = None) -> None:
        self.title, self.phases = title, phases
        self.bar = Progress(
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("gone"),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            expand=True,
            speed_estimate_period=SECONDS_OF_ESTIMATE,
        )
        self.task = self.bar.add_task("", total=total, completed=start)
        self.trends: dict[str, Trend] = {}
        self.seconds: Mapping[Phase, float] = {}
        self.samples: tuple[Sample, ...] = ()

    def show(self, done: int, figures: Mapping[str, float] = {}, samples: Sequence[Sample] = ()) -> None:
        """Take what the next picture is to show."""
        self.bar.update(self.task, completed=done)
        self.add(figures)
        self.samples = tuple(samples) or self.samples

    def add(self, figures: Mapping[str, float]) -> None:
        """A line of the log."""
        for one in shown(figures):
            if one.key in self.trends:
                self.trends[one.key].add(figures[one.key])
            else:
                self.trends = {**self.trends, one.key: Trend(figures[one.key])}
        if all(f"{phase}_seconds" in figures for phase in PHASES):
            self.seconds = {phase: figures[f"{phase}_seconds"] for phase in PHASES}

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # Two columns are left to the terminal's echo of Ctrl-C: one that wraps would move the panel off its place.
        width = min(options.max_width - len("^C"), WIDEST)
        parts: list[RenderableType] = [self.bar]
        trends, samples = self.trends, self.samples
        if trends:
            parts.append(_table(trends, spacious=width >= 78))
        if any(self.seconds.values()):
            parts.append(self._shares())
        # Below a low terminal's edge nothing could be drawn over: samples give way first.
        free = options.size.height - len(parts) - max(0, len(trends) - 1) - 4
        lines = min(SAMPLE_LINES, free // len(samples)) if samples else 0
        if lines > 0:
            parts += [Text(""), *(_Lines(_sample(sample, width - 4), lines) for sample in samples)]
        yield Panel(
            Group(*parts),
            title=Text(plain(self.title), style="not dim bold", no_wrap=True, overflow="ellipsis"),
            title_align="left",
            subtitle=self._under_way(),
            subtitle_align="left",
            border_style="dim",
            width=width,
        )

    def _shares(self) -> Text:
        """How the time of the last update was spent."""
        whole, under_way = sum(self.seconds.values()), self.phases.under_way if self.phases else ""
        row = Text("time", style="dim", no_wrap=True, overflow="ellipsis")
        for phase, seconds in self.seconds.items():
            style = "not dim bold" if phase == under_way else "not dim"
            if seconds:
                row.append("  ").append(f"{phase} {seconds / whole:.0%}", style=style)
        return row

    def _under_way(self) -> Text | None:
        """The phase under way, and for how long: an update may take minutes."""
        if self.phases is None or not self.phases.under_way:
            return None
        return Text(f"{self.phases.under_way} {time.perf_counter() - self.phases.since:.0f} s", style="dim")


def _table(trends: Mapping[str, Trend], *, spacious: bool) -> Table:
    """Label, value, first value, trend."""
    table = Table.grid(padding=(0, 3 if spacious else 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, style="dim", max_width=16)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, ratio=1)
    for one in shown(trends):
        trend = trends[one.key]
        first = one.form.format(trend.first).partition(" ")[0]
        table.add_row(Text(one.label), one.form.format(trend.now), f"from {first}", trend)
    return table


def _sample(sample: Sample, width: int) -> Text:
    """The note, the end of the prompt, the response."""
    before = plain(sample.prompt[-width // 2 :])
    text = Text(f"{plain(sample.note)}  ", style="bold")
    text.append(before if len(sample.prompt) <= width // 2 else f"…{before}", style="not bold dim")
    return text.append(plain(sample.response[: SAMPLE_LINES * width]), style="not bold")


@dataclass(frozen=True)
class _Lines:
    """The first lines of a text."""

    text: Text
    most: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = self.text.wrap(console, options.max_width, overflow="fold", no_wrap=False)
        kept = lines[: self.most]
        if len(lines) > self.most:
            kept[-1].truncate(options.max_width - 1)
            kept[-1].rstrip()
            kept[-1].append("…")
        yield from kept
