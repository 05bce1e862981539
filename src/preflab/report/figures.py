"""What the pictures of a study share: an arm's colour and mark, curves through checkpoints, names at their ends."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator
from numpy.typing import ArrayLike

from preflab.report.fields import is_finite
from preflab.report.statistics import Estimate, Matrix
from preflab.report.study import Arm, Study
from preflab.report.svg import COLOURS, INK, STYLE, named

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")
PALE = 0.22
NAME_HEIGHT = 13  # points


def colour_of(study: Study, arm: Arm) -> str:
    """The arm's colour, the same in every picture; the reference takes that of the text.

    Variants of one method share its hue, lighter and lighter in the study's order.
    """
    if arm.name == study.reference_name:
        return INK
    families = list(dict.fromkeys(one.family for one in study.trained))
    hue = COLOURS[families.index(arm.family) % len(COLOURS)]
    variants = [one for one in study.trained if one.family == arm.family]
    return shade(hue, variants.index(arm) / (len(variants) - 1)) if len(variants) > 1 else hue


def shade(colour: str, light: float) -> str:
    """A colour (0) or a lighter one of its hue (1): both read on white and on dark paper.

    >>> shade("#0072B2", 0.0), shade("#0072B2", 1.0)
    ('#0072b2', '#73b1d5')
    """
    red, green, blue = (1 - (1 - 0.45 * light) * (1 - part) for part in to_rgb(colour))
    return str(to_hex((red, green, blue)))


def marker_of(study: Study, arm: Arm) -> str:
    """The arm's mark, so that colour is not the only difference."""
    if arm.name == study.reference_name:
        return MARKERS[0]
    position = study.trained.index(arm)
    # Where the colours begin again, the marks move on by one: no two of 64 arms look alike.
    return MARKERS[(position + position // len(COLOURS)) % len(MARKERS)]


def logged(arm: Arm, key: str) -> list[tuple[list[float], list[float]]]:
    """Steps and finite values of a metric, per seed; [] where nothing was logged."""
    found = []
    for run in arm.runs:
        pairs = [(entry.get("step"), entry.get(key)) for entry in run.metrics]
        finite = [(s, v) for s, v in pairs if is_finite(s) and is_finite(v)]
        if finite:
            found.append(([s for s, _ in finite], [v for _, v in finite]))
    return found


def dash(arm: Arm) -> str:
    """An oracle is dashed; dotted is a curve whose KL is a bound."""
    return ":" if arm.kl_is_bound else "--" if arm.oracle else "-"


def line(study: Study, axes: Axes, arm: Arm, x: Sequence[Estimate], y: Sequence[Estimate]) -> None:
    """A curve through means."""
    means = [e.mean for e in x], [e.mean for e in y]
    axes.plot(*means, color=colour_of(study, arm), linewidth=1.6, linestyle=dash(arm), zorder=2)


def dots(
    study: Study, axes: Axes, arm: Arm, x: Sequence[Estimate], y: Sequence[Estimate], ringed: Sequence[bool]
) -> None:
    """Means with their intervals both ways; a ring around some."""
    colour = colour_of(study, arm)
    for a, b, ring in zip(x, y, ringed, strict=True):
        axes.plot([a.low, a.high], [b.mean, b.mean], color=colour, alpha=0.55, linewidth=1.0, zorder=2)
        axes.plot([a.mean, a.mean], [b.low, b.high], color=colour, alpha=0.55, linewidth=1.0, zorder=2)
        axes.plot(a.mean, b.mean, marker_of(study, arm), color=colour, markersize=5, zorder=3)
        if ring:
            axes.plot(a.mean, b.mean, "o", color="none", markeredgecolor=colour, markersize=12, markeredgewidth=1.3)


def mark_reference(study: Study, axes: Axes, arm: Arm, x: Estimate, y: Estimate) -> None:
    """The reference's point, its name below it, where no curve goes."""
    dots(study, axes, arm, [x], [y], [False])
    below = max(y.low, axes.get_ylim()[0]) - 0.02 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    axes.annotate(
        named(arm.title), (x.mean, below), xytext=(-4, -4), textcoords="offset points", va="top", color=INK, fontsize=11
    )
    axes.set_ylim(bottom=min(axes.get_ylim()[0], below - 0.08 * (axes.get_ylim()[1] - below)))


def frame_means(axes: Axes, x: Sequence[Estimate], y: Sequence[Estimate]) -> None:
    """Axes around means, with room for an interval of usual length: one of two seeds' may be fifty times as long. What
    leaves the frame is paler, as such lines would hide the curves."""
    for points, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        means = [e.mean for e in points]
        span = (max(means) - min(means)) or max(e.high - e.low for e in points) or 1.0
        low, high = min(e.low for e in points), max(e.high for e in points)
        limit(max(low, min(means) - 0.35 * span) - 0.05 * span, min(high, max(means) + 0.35 * span) + 0.05 * span)
    for drawn in axes.lines:
        (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
        across, up = (np.asarray(ends, dtype=np.float64) for ends in drawn.get_data())
        if np.any((across < left) | (across > right)) or np.any((up < bottom) | (up > top)):
            drawn.set_alpha(PALE)


def root_scale(axes: Axes) -> None:
    """An axis of KL on which equal steps are of √KL, its ticks in nats: for curves of which one goes far further."""
    axes.set_xscale("function", functions=(signed_root, signed_square))
    right = axes.get_xlim()[1]
    axes.set_xlim(-((0.05 * np.sqrt(right)) ** 2), right)
    axes.xaxis.set_major_locator(FixedLocator(root_ticks(right)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def signed_root(x: ArrayLike) -> Matrix:
    """√x, and of what lies left of 0 its mirror image, as an axis begins a little before 0."""
    values = np.asarray(x, dtype=np.float64)
    return np.sign(values) * np.sqrt(np.abs(values))


def signed_square(x: ArrayLike) -> Matrix:
    """Its inverse."""
    values = np.asarray(x, dtype=np.float64)
    return values * np.abs(values)


def root_ticks(high: float) -> list[float]:
    """0 and those of 1, 2, 5, 10, … (and 0.5, 0.2, …) that are a tenth of √high apart at least.

    >>> root_ticks(8.0)
    [0.0, 0.1, 0.5, 1.0, 2.0, 5.0]
    """
    ticks = [0.0]
    for x in (float(f"{digit}e{power}") for power in range(-4, 5) for digit in (1, 2, 5)):
        if x <= high and np.sqrt(x) - np.sqrt(ticks[-1]) >= 0.1 * np.sqrt(high):
            ticks.append(x)
    return ticks


def above(axes: Axes, ends: Sequence[tuple[Arm, float, float]]) -> list[tuple[Arm, float, float]]:
    """Places for `label_ends` a little higher, where no interval goes."""
    low, high = axes.get_ylim()
    return [(arm, x, y + 0.028 * (high - low)) for arm, x, y in ends]


def label_ends(study: Study, axes: Axes, ends: Sequence[tuple[Arm, float, float]]) -> None:
    """Each arm's name to the right of its last point, moved up or down until no two names touch."""
    if not ends:
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    low = axes.get_xlim()[0]
    high = max(x for _, x, _ in ends)
    names = {arm.name: named(arm.title) + (" (≤ KL)" if arm.kl_is_bound else "") for arm, _, _ in ends}
    to_axis = axes.xaxis.get_transform()
    left = float(to_axis.transform([low])[0])
    # Room for the names: about 0.088 inch a character.
    rooms = [min(0.55, (len(names[arm.name]) * 0.088 + 0.25) / figure.get_figwidth()) for arm, _, _ in ends]
    at = [float(x) for x in to_axis.transform([x for _, x, _ in ends])]
    needed = [left + (x - left) / (0.98 - room) for x, room in zip(at, rooms, strict=True)]
    axes.set_xlim(low, max(high, *(float(x) for x in to_axis.inverted().transform(needed))))
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.draw_without_rendering()
    points_per_pixel = 72 / figure.dpi
    ordered = sorted(ends, key=lambda end: end[2])
    places = [axes.transData.transform((x, y)) * points_per_pixel for _, x, y in ordered]
    spans = [
        (at_x + 10, at_x + 10 + len(names[arm.name]) * 6.2, at_y)
        for (arm, _, _), (at_x, at_y) in zip(ordered, places, strict=True)
    ]
    for (arm, x, y), (_, at_y), baseline in zip(ordered, places, stacked(spans), strict=True):
        axes.annotate(
            names[arm.name],
            (x, y),
            xytext=(10, baseline - at_y),
            textcoords="offset points",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=colour_of(study, arm),
            annotation_clip=False,
        )


def stacked(names: Sequence[tuple[float, float, float]]) -> list[float]:
    """The baselines of names, each with its left and right end and the baseline it would like, in points: moved up,
    one after the other, until no two touch.

    >>> stacked([(0, 9, 0), (0, 9, 1), (0, 99, 2), (100, 150, 12), (50, 120, 12.5)])
    [0, 13, 26, 12, 39]
    """
    taken: list[tuple[float, float, float]] = []
    for left, right, baseline in names:
        for other, start, end in sorted(taken):  # from below, as names move up
            if left < end and right > start and abs(baseline - other) < NAME_HEIGHT:
                baseline = other + NAME_HEIGHT
        taken.append((baseline, left, right))
    return [baseline for baseline, _, _ in taken]
