"""The pictures of a table study. An arm has one colour in all of them; the reference is grey, real rows too."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from preflab.report.fields import is_finite
from preflab.report.svg import COLOURS, INK, STYLE, Picture, named, sheet, to_svg
from preflab.report.table_study_folder import REFERENCE, Alignment, Arm, Point, TableStudy
from preflab.report.table_study_verdicts import independent_of, mean_of, primary_of, seed_means
from preflab.report.wording import count, number

BINS = 60
"""Points of a training curve, at most: means of equal parts of the steps."""
LEVELS = ("row", "feature", "sentence", "token")
"""In the order of their colours."""
REWARD, CLIPPED = "reward/", "reward/clipped"
"""What levels are logged under, and the share of rows whose reward was clipped, which is no level."""

Curve = tuple[tuple[float, float], ...]


def colour_of(study: TableStudy, arm: Arm) -> str:
    """The arm's colour; the reference takes that of the text."""
    others = [one for one in study.arms if one.name != REFERENCE]
    return INK if arm.name == REFERENCE or arm not in others else COLOURS[others.index(arm) % len(COLOURS)]


def pictures(study: TableStudy) -> dict[str, Picture]:
    """Every picture that the study has numbers for, by name."""
    drawn = (detectability(study), feedback(study), proxy(study))
    return {picture.name: picture for picture in drawn if picture}


def detectability(study: TableStudy) -> Picture | None:
    """How well two classifiers tell each arm's rows from real ones, with the bound of real rows."""
    primary, independent = primary_of(study), independent_of(study)
    shown = [arm for arm in study.arms if primary.of(arm) or independent.of(arm)]
    if not shown:
        return None
    alone = primary.key == independent.key
    judges = ((primary, 0.0, True),) if alone else ((primary, -0.12, True), (independent, 0.16, False))
    figure, axes = sheet(7.2, 1.15 + 0.5 * len(shown))
    bound = mean_of(primary.of(study.real), "real")
    axes.axvline(0.5, color=INK, alpha=0.6, linewidth=0.8, linestyle=":")
    if bound:
        low, high = (bound.estimate.low, bound.estimate.high) if bound.estimate else (bound.mean, bound.mean)
        axes.axvspan(low, high, color=INK, alpha=0.1, linewidth=0)
        axes.axvline(bound.mean, color=INK, alpha=0.35, linewidth=1)
    lowest = min(0.5, bound.mean if bound else 0.5)
    limits = [lowest, 0.5]
    for place, arm in enumerate(shown):
        colour = colour_of(study, arm)
        for judge, shift, filled in judges:
            draws = judge.of(arm)
            mean = mean_of(draws, judge.title)
            if not mean:
                continue
            y = place + shift
            if mean.estimate:
                ends = mean.estimate.low, mean.estimate.high
                axes.plot(ends, [y, y], color=colour, linewidth=2 if filled else 1.2, alpha=0.75, zorder=2)
                limits += [max(ends[0], mean.mean - 0.2), min(ends[1], mean.mean + 0.2)]
            seeds = list(seed_means(draws).values())
            limits += seeds
            axes.plot(seeds, [y] * len(seeds), "|", color=colour, markersize=7, alpha=0.55, zorder=2)
            face: dict[str, Any] = {} if filled else {"markerfacecolor": "none"}
            axes.plot(mean.mean, y, "o" if filled else "D", color=colour, markersize=7 if filled else 4.5, **face)
            if filled:
                axes.annotate(
                    number(mean.mean, 3),
                    (mean.mean, y),
                    (0, 6),
                    textcoords="offset points",
                    ha="center",
                    fontsize=9.5,
                    color=INK,
                )
    axes.set_yticks(range(len(shown)), [named(arm.label) for arm in shown])
    for text, arm in zip(axes.get_yticklabels(), shown, strict=True):
        text.set_color(colour_of(study, arm))
        text.set_fontweight("bold")
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    axes.set_ylim(len(shown) - 0.5, -0.6)
    room = 0.04 * (max(limits) - min(limits) + 0.01)
    axes.set_xlim(min(limits) - room, max(limits) + room)
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set_xlabel("AUC of telling these rows from real ones")
    grey = (
        " The grey band is a second sample of real rows, judged in the same way by the first: about the best there is."
        if bound
        else ""
    )
    return Picture(
        "detectability",
        "Can they be told from real rows?",
        f"How to read this: further left is better; at 0.5 (dotted) a classifier can only guess. Dots: {primary.title}"
        + ("" if alone else f"; diamonds: {independent.title}")
        + f", the independent judge. Lines are 95 % intervals over seeds, ticks the seeds.{grey}",
        to_svg(figure, "detectability", "How well classifiers tell each arm's rows from real ones, with intervals"),
    )


# --- feedback, level by level ---


def feedback(study: TableStudy) -> Picture | None:
    """Each level's reward over training, and the discriminators' held-out AUC by round, a row for each arm."""
    shown = [arm for arm in study.aligned if any(one.rounds for one in arm.alignments.values())]
    if not shown:
        return None
    curves = {arm.name: level_curves(list(arm.alignments.values())) for arm in shown}
    colours = colours_of_levels(study)
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        figure = Figure(figsize=(8.6, 0.55 + 1.85 * len(shown)), layout="constrained")
        figure.patch.set_alpha(0)
        grid = figure.subplots(len(shown), 2, squeeze=False)
        for (left, right), arm in zip(grid, shown, strict=True):
            for axes in (left, right):
                axes.patch.set_alpha(0)
                axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
                axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
                axes.yaxis.set_major_locator(MaxNLocator(4))
            left.set_title(named(f"{arm.label}: mean reward of each level"), fontsize=9.5, loc="left")
            right.set_title(named(f"{arm.label}: held-out AUC by round"), fontsize=9.5, loc="left")
            for level, curve in curves[arm.name].items():
                left.plot(*zip(*curve, strict=True), color=colours[level], linewidth=1.3)
            refreshed = {step for one in arm.alignments.values() for step in one.refreshed}
            for step in sorted(refreshed) if len(refreshed) <= 8 else ():
                left.axvline(step, color=INK, alpha=0.3, linewidth=0.7, linestyle=":")
            if not curves[arm.name]:
                left.annotate("no level was logged", (0.5, 0.5), xycoords="axes fraction", ha="center", alpha=0.7)
            auc_by_round(right, arm, colours)
        grid[-1][0].set_xlabel("optimiser step")
        grid[-1][1].set_xlabel("round")
        lines = [mpl.lines.Line2D([], [], color=colour, linewidth=2) for colour in colours.values()]
        figure.legend(
            lines, [named(level) for level in colours], loc="outside upper left", ncols=5, frameon=False, fontsize=9.5
        )
    return Picture(
        "feedback",
        "What each level said",
        "How to read this: left, the mean reward that each level gave to the rows the policy wrote while it trained, "
        "the mean over seeds; dotted lines are where discriminators were fitted again, after which levels don't go on "
        "from where they were. Right, how well each round's discriminators tell training rows from the policy's rows "
        "that they did not learn from, with their intervals; 0.5 (dotted) is a guess, and a discriminator there has "
        "nothing to teach.",
        to_svg(figure, "feedback", "Reward by level over training, and held-out AUC of the discriminators by round"),
    )


def colours_of_levels(study: TableStudy) -> dict[str, str]:
    """A colour for each level that was logged or fitted, the stack of all last."""
    fitted = [
        level_of(held.name, held.level)
        for arm in study.aligned
        for one in arm.alignments.values()
        for _, round_ in one.rounds
        for held in round_
    ]
    logged = [
        key[len(REWARD) :]
        for arm in study.aligned
        for one in arm.alignments.values()
        for line in one.metrics
        for key in line
        if is_level(key)
    ]
    names = sorted(set(fitted + logged), key=lambda name: (LEVELS.index(name) if name in LEVELS else 9, name))
    levels = [name for name in names if name != "all"]
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(levels)}
    return colours | ({"all": INK} if "all" in names else {})


def is_level(key: str) -> bool:
    """Whether a metric is the reward of a level.

    >>> [is_level(key) for key in ("reward", "reward/row", "reward/clipped")]
    [False, True, False]
    """
    return key.startswith(REWARD) and key != CLIPPED


def level_of(name: str, level: str) -> str:
    """What a discriminator's line is named by: the stack of all levels is one of its own."""
    return "all" if name == "all" else level


def level_curves(alignments: Sequence[Alignment]) -> dict[str, Curve]:
    """Steps and mean reward of each level, over seeds and over neighbouring steps."""
    lines = [line for one in alignments for line in one.metrics]
    names = sorted({key for line in lines for key in line if is_level(key)})
    found = {}
    for name in names:
        pairs = [
            (step, value)
            for line in lines
            if is_finite(step := line.get("step")) and is_finite(value := line.get(name))
        ]
        if pairs:
            found[name[len(REWARD) :]] = binned(pairs)
    return found


def binned(pairs: Sequence[tuple[float, float]]) -> Curve:
    """Means of equal parts of the steps, in their order.

    >>> binned([(2, 3.0), (1, 1.0), (2, 5.0)])
    ((1.0, 1.0), (2.0, 4.0))
    """
    steps, values = np.array(sorted(pairs), dtype=np.float64).T
    distinct = np.unique(steps)
    parts = np.array_split(distinct, BINS) if len(distinct) > BINS else [np.array([step]) for step in distinct]
    return tuple((float(part.mean()), float(values[(steps >= part[0]) & (steps <= part[-1])].mean())) for part in parts)


def auc_by_round(axes: Axes, arm: Arm, colours: Mapping[str, str]) -> None:
    """Dots with intervals, those of a discriminator joined, for each seed."""
    axes.axhline(0.5, color=INK, alpha=0.6, linewidth=0.8, linestyle=":")
    for place, one in enumerate(arm.alignments.values()):
        shift = 0.12 * (place - (len(arm.alignments) - 1) / 2)
        names = dict.fromkeys(
            (held.name, level_of(held.name, held.level)) for _, round_ in one.rounds for held in round_
        )
        for name, level in names:
            known = [(number_, held) for number_, round_ in one.rounds for held in round_ if held.name == name]
            colour = colours[level]
            at = [number_ + shift for number_, _ in known]
            for x, (_, held) in zip(at, known, strict=True):
                if held.low is not None and held.high is not None:
                    axes.plot([x, x], [held.low, held.high], color=colour, linewidth=0.9, alpha=0.5)
            style: dict[str, Any] = {"color": colour, "alpha": 0.85, "markersize": 3, "linewidth": 1}
            axes.plot(at, [held.auc for _, held in known], "o-", **style)


# --- the reward against the judge ---


def proxy(study: TableStudy) -> Picture | None:
    """Reward, and AUC on validation rows, along training."""
    shown = [arm for arm in study.aligned if any(len(one.points) > 1 for one in arm.alignments.values())]
    if not shown:
        return None
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        figure = Figure(figsize=(9.4, 3.3), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(1, 3)
        told: Callable[[Point], float | None] = lambda point: point.told_apart_auc  # noqa: E731
        asked: tuple[tuple[str, str, Callable[[Point], float | None], Callable[[Point], float | None]], ...] = (
            ("mean reward", "optimiser step", lambda point: point.step, lambda point: point.reward),
            ("AUC on validation rows", "optimiser step", lambda point: point.step, told),
            ("AUC on validation rows", "rewards queried", lambda point: point.queries, told),
        )
        for axes, (title, label, x, y) in zip(panels, asked, strict=True):
            axes.patch.set_alpha(0)
            axes.grid(color=INK, alpha=0.12, linewidth=0.6)
            axes.set_title(title, fontsize=9.5, loc="left")
            axes.set_xlabel(label)
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
            for arm in shown:
                for one in arm.alignments.values():
                    along(axes, one, x, y, colour_of(study, arm))
            if y is told:
                axes.axhline(0.5, color=INK, alpha=0.6, linewidth=0.8, linestyle=":")
        lines = [mpl.lines.Line2D([], [], color=colour_of(study, arm), linewidth=2) for arm in shown]
        labels = [named(arm.label) for arm in shown]
        figure.legend(lines, labels, loc="outside upper left", ncols=6, frameon=False, fontsize=9.5)
    return Picture(
        "proxy",
        "Did the reward tell the truth?",
        "How to read this: a line is a seed, a ring the policy that was chosen on validation rows. The reward (left) "
        "is that of each round's own discriminators, so it is comparable within a round only. The AUC (middle and "
        "right) is how well validation rows are told from the policy's; it should fall as the reward rises, and where "
        "it rises with the reward, the reward is being exploited. Right: the same by what was asked for, so the line "
        "that falls first needs the fewest rewards.",
        to_svg(figure, "proxy", "Reward and validation AUC by optimiser step, and AUC by rewards queried"),
    )


def short(value: float) -> str:
    """A number of an axis, short.

    >>> short(200), short(24_000), short(1_500_000)
    ('200', '24k', '1.50 M')
    """
    return f"{value / 1000:g}k" if 10_000 <= value < 1e6 else count(value)


def along(
    axes: Axes,
    one: Alignment,
    x: Callable[[Point], float | None],
    y: Callable[[Point], float | None],
    colour: str,
) -> None:
    """One seed's points, the chosen one ringed."""
    known = [
        (at, value, point) for point in one.points if (at := x(point)) is not None and (value := y(point)) is not None
    ]
    axes.plot([at for at, _, _ in known], [value for _, value, _ in known], color=colour, linewidth=1.2, alpha=0.75)
    ringed = [(at, value) for at, value, point in known if point is one.chosen]
    for at, value in ringed:
        axes.plot(at, value, "o", markerfacecolor="none", markeredgecolor=colour, markersize=7, markeredgewidth=1.4)
