"""The pictures of judged rows: real against synthetic.

Real rows are grey and filled, synthetic ones a blue line, independent columns orange, in every picture.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import FuncFormatter, MaxNLocator

from preflab.report.score import Associations, Distances, Figures, Fit, Marginal, Roc, Score
from preflab.report.statistics import Matrix
from preflab.report.svg import COLOURS, FONT, INK, STYLE, Drawn, Picture, described, sheet, to_svg
from preflab.report.wording import count, number, visible

SYNTHETIC, INDEPENDENT = COLOURS[0], COLOURS[1]
GREY = 0.3
"""Opacity of what is real."""
CLASSIFIERS = {
    "gradient_boosting": "gradient boosting",
    "random_forest": "random forest",
    "logistic": "logistic regression",
}
MODELS = CLASSIFIERS | {"logistic_regression": "logistic regression", "decision_tree": "decision tree"}
MODELS |= {"linear_regression": "linear regression", "ridge": "ridge regression", "linear": "linear model"}
MEASURES = {
    "auc": "AUC",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "r2": "R²",
    "rmse": "RMSE",
}
DASHES = ("-", "--", ":")

Curve = tuple[tuple[float, float], ...]
"""Steps and values."""

MARGINALS_SHOWN = 24
ASSOCIATIONS_SHOWN = 32
LEVELS_SHOWN = 40
LEVELS_BESIDE_A_SCALE = 4
CATEGORIES_SHOWN = 6
PANELS_IN_A_ROW = 4
PANEL_WIDTH, PANEL_HEIGHT, BETWEEN = 1.94, 0.86, 0.36
"""Of a marginal, and between two, in inches."""
CHARACTER = 0.062
"""Width of a character of the small type, in inches, roughly."""


def shortened(text: str, longest: int) -> str:
    """Foreign text on one line of at most `longest` characters; what is left out is in the middle, since the names of
    a table's columns often share their beginning.

    >>> shortened("NumBank2NatlTradesWHighUtilization", 20)
    'NumBank2Na…ilization'
    """
    line = " ".join(visible(text).split())
    tail = (longest - 1) // 2
    return line if len(line) <= longest else f"{line[: longest - 1 - tail]}…{line[len(line) - tail :]}"


# --- how often each column has each value ---


def marginals(shown: Sequence[Marginal], kinds: Mapping[str, str], rows: tuple[int, int] | None = None) -> Picture:
    """A small picture for each column.

    Args:
        shown: the columns.
        kinds: what they hold.
        rows: how many real and synthetic rows there are, to tell what differs by chance; None: not known.
    """
    lines = math.ceil(len(shown) / PANELS_IN_A_ROW)
    across = min(PANELS_IN_A_ROW, max(2, len(shown)))
    width, pitch, top = 0.1 + across * (PANEL_WIDTH + BETWEEN), PANEL_HEIGHT + 0.68, 0.36
    height = top + lines * pitch
    with mpl.rc_context(STYLE | {"font.size": 7.5, "axes.linewidth": 0.5}):
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        at = (0.1 / width, 1 - 0.16 / height)
        figure.text(*at, "▮ real", alpha=0.6, va="center", fontsize=9, fontweight="bold")
        figure.text(at[0] + 0.6 / width, at[1], "▯ synthetic", color=SYNTHETIC, va="center", fontsize=9, weight="bold")
        for place, marginal in enumerate(shown):
            line, column = divmod(place, PANELS_IN_A_ROW)
            x, y = BETWEEN + column * (PANEL_WIDTH + BETWEEN), height - top - line * pitch - 0.34 - PANEL_HEIGHT
            axes = figure.add_axes((x / width, y / height, PANEL_WIDTH / width, PANEL_HEIGHT / height))
            axes.patch.set_alpha(0)
            axes.set_title(shortened(marginal.column, 24), fontsize=8, loc="left", pad=14, fontweight="bold")
            luck = f" ({percent(by_chance(marginal, *rows))} by chance)" if rows else ""
            axes.annotate(
                f"{percent(marginal.distance)} differ{luck}",
                (0, 1),
                (0, 5),
                "axes fraction",
                "offset points",
                alpha=0.7,
            )
            if len(marginal.edges) < 2 and any(len(label) > 4 for label in marginal.labels):
                categories(axes, marginal)
            else:
                scale(axes, marginal, kinds.get(marginal.column, ""))
    return Picture(
        "marginals",
        "Each column on its own",
        "How to read this: a grey area is the share of real rows, a blue line that of synthetic ones; where the line "
        "follows the area, the column is right. Separate bars are values that lie on no scale, such as special codes "
        "and missing ones. Below each name: the share of rows that would have to move, and of how many two real "
        "samples of as many rows would, about.",
        to_svg(figure, "marginals", "Histograms of real and synthetic rows, a panel for each column"),
    )


def by_chance(marginal: Marginal, real: int, synthetic: int) -> float:
    """The mean total variation distance of two samples of this many rows from these real shares p, as if each share
    were drawn from a normal distribution: ½ Σ √(2/π · p (1 − p) (1/real + 1/synthetic))."""
    if not real or not synthetic:
        return 0.0
    variances = marginal.real * (1 - marginal.real) * (1 / real + 1 / synthetic)
    return float(np.sqrt(2 / np.pi * variances).sum() / 2)


def merged(marginal: Marginal, shown: int) -> tuple[list[str], Matrix, Matrix]:
    """The most frequent levels in their order, the others as one; and the shares of both tables in each."""
    levels = len(marginal.labels)
    both = marginal.real[:levels], marginal.synthetic[:levels]
    labels = [" ".join(visible(label).split()) or "empty" for label in marginal.labels]
    if levels <= shown:
        return labels, *both
    kept = np.sort(np.argsort(-(both[0] + both[1]), kind="stable")[: shown - 1])
    rest = [float(side.sum() - side[kept].sum()) for side in both]
    real, synthetic = (np.append(side[kept], other) for side, other in zip(both, rest, strict=True))
    return [*(labels[i] for i in kept), "others"], real, synthetic


def scale(axes: Axes, marginal: Marginal, kind: str) -> None:
    """Bars of levels, then a histogram whose bars are of equal width, whatever the edges."""
    bins = max(0, len(marginal.edges) - 1)
    labels, *levels = merged(marginal, LEVELS_BESIDE_A_SCALE if bins else LEVELS_SHOWN)
    wide = bins / (10 - len(labels)) if bins else 1.0
    start = wide * (len(labels) + 0.5) if labels and bins else 0.0
    end = start + bins if bins else wide * len(labels)
    middles = wide * (np.arange(len(labels)) + 0.5)
    axes.bar(middles, levels[0], 0.8 * wide, color=INK, alpha=GREY, linewidth=0)
    axes.bar(middles, levels[1], 0.8 * wide, facecolor="none", edgecolor=SYNTHETIC, linewidth=1.1)
    room = PANEL_WIDTH * wide / end
    below = [label for label in labels if bins and len(label) * CHARACTER > room]
    if len(below) == 1:  # such as "(missing)": it would reach into the scale's labels
        labels[labels.index(below[0])] = f"\n{shortened(below[0], 16)}"
    every = max(1, math.ceil((CHARACTER * max((len(label) for label in labels), default=0) + 0.05) / room))
    fitting = max(2, int(room * every / CHARACTER))
    ticks = [
        (middles[i], labels[i] if labels[i][0] == "\n" else shortened(labels[i], fitting))
        for i in range(0, len(labels), 1 if bins else every)
    ]
    if bins:
        places = start + np.arange(bins + 1)
        ends = marginal.edges
        if kind != "decimal" and np.all(ends % 1 == 0.5):  # between whole numbers: which ones lie within says more
            ends = np.append(ends[:-1] + 0.5, ends[-1] - 0.5)
        real, synthetic = marginal.real[len(marginal.labels) :], marginal.synthetic[len(marginal.labels) :]
        axes.stairs(real, places, fill=True, color=INK, alpha=GREY, linewidth=0)
        axes.stairs(synthetic, places, color=SYNTHETIC, linewidth=1.1)
        dates = kind == "datetime"
        marked = (0, bins) if dates else sorted({0, bins // 2, bins})
        ticks += [(places[i], edge(ends[i], dates)) for i in marked]
    axes.set_xticks([x for x, _ in ticks], [text for _, text in ticks])
    for text, (x, _) in zip(axes.get_xticklabels(), ticks, strict=True):
        text.set_horizontalalignment("left" if bins and x == start else "right" if bins and x == end else "center")
    axes.tick_params(axis="both", length=2, pad=2)
    axes.set_xlim(0, end)
    axes.set_ylim(0, 1.06 * max(float(np.max([marginal.real, marginal.synthetic], initial=0.0)), 1e-9))
    top = axes.get_ylim()[1]
    shares = [share for share in MaxNLocator(2, min_n_ticks=1).tick_values(0, top) if 0 < share <= top][-1:]
    axes.set_yticks(shares, [percent(share) for share in shares])


def categories(axes: Axes, marginal: Marginal) -> None:
    """Bars from left to right, each after its name."""
    labels, real, synthetic = merged(marginal, CATEGORIES_SHOWN)
    places = np.arange(len(labels))
    most = max(float(np.max([real, synthetic], initial=0.0)), 1e-9)
    axes.barh(places, real, 0.74, color=INK, alpha=GREY, linewidth=0)
    axes.barh(places, synthetic, 0.74, facecolor="none", edgecolor=SYNTHETIC, linewidth=1.1)
    for place, label in enumerate(labels):
        axes.text(-0.03 * most, place, shortened(label, 16), va="center", ha="right")
    axes.set_xlim(-1.15 * most, 1.05 * most)
    axes.set_ylim(max(2.5, len(labels) - 0.5), -0.6)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.spines["bottom"].set_visible(False)
    axes.set_xticks([0, most], ["0", percent(most)])
    axes.tick_params(axis="x", length=0, pad=0)


def percent(share: float) -> str:
    """A share, short.

    >>> percent(0.25), percent(0.004)
    ('25 %', '0.4 %')
    """
    return f"{100 * share:.0f} %" if share >= 0.095 or share == 0 else f"{100 * share:.1f} %".replace(".0 ", " ")


def edge(value: float, dates: bool = False) -> str:
    """An end of a bar, short; a date, where the column has dates (days since 1970).

    >>> edge(-12.5), edge(250_000.0), edge(19_000.0, dates=True)
    ('−12.5', '250,000', '2022-01-08')
    """
    if dates and abs(value) < 700_000:
        return (datetime(1970, 1, 1) + timedelta(days=float(value))).date().isoformat()
    return (count(value) if abs(value) >= 10_000 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}").replace(
        "-", "−"
    )


# --- how columns go together ---

MAP, GAP, GUTTER, HEAD = 246, 22, 190, 40
"""Side of a heat map, between two, for the names on the left, and above; in px."""
SHADES = 24


def associations(found: Associations, columns: int) -> Picture:
    """Three heat maps: real, synthetic, and their difference.

    Drawn by hand: cells of one shade are one path, and where nothing is, the paper shows through, light or dark.

    Args:
        found: of all columns, or the first ones.
        columns: how many there are in the table.
    """
    difference = found.synthetic - found.real
    picked = np.arange(len(found.columns))
    known = np.nan_to_num(np.abs(difference))
    if len(picked) > ASSOCIATIONS_SHOWN:
        picked = np.sort(np.argsort(-known.mean(0), kind="stable")[:ASSOCIATIONS_SHOWN])
    most = float(known.max(initial=0.0))
    full = next((limit for limit in (0.05, 0.1, 0.2, 0.5, 1.0) if most <= limit), 2.0)
    cell = MAP / len(picked)
    size = min(11.0, max(7.0, 0.82 * cell))
    parts = []
    for place, column in enumerate(picked):
        y = HEAD + (place + 0.5) * cell + 0.35 * size
        name = escape(shortened(found.columns[column], int((GUTTER - 24) / (0.56 * size))))
        parts.append(f'<text x="{GUTTER - 8}" y="{y:.1f}" text-anchor="end">{name} {place + 1}</text>')
    signed = min(float(np.nan_to_num(values).min()) for values in (found.real, found.synthetic)) < 0
    maps = [(found.real, 1.0, "real", signed), (found.synthetic, 1.0, "synthetic", signed)]
    maps.append((difference, full, "synthetic − real", True))
    for panel, (values, limit, title, both_ways) in enumerate(maps):
        left = GUTTER + panel * (MAP + GAP)
        parts.append(f'<text x="{left}" y="12" font-size="13" font-weight="bold">{title}</text>')
        parts += [
            f'<text x="{left + (place + 0.5) * cell:.1f}" y="{HEAD - 5}" text-anchor="middle" font-size="'
            f'{min(size, 0.7 * cell):.1f}">{place + 1}</text>'
            for place in range(0, len(picked), math.ceil(10 / cell))
        ]
        parts.append(shades(values[np.ix_(picked, picked)] / limit, left, HEAD, cell))
        parts.append(
            f'<rect x="{left}" y="{HEAD}" width="{MAP}" height="{MAP}" fill="none" stroke="currentColor" '
            'stroke-opacity=".35" stroke-width=".6"/>'
        )
        parts.append(key(left, HEAD + MAP + 14, limit, both_ways))
    width, height = GUTTER + 3 * MAP + 2 * GAP + 2, HEAD + MAP + 44
    style = f'style="font-family:{FONT}" font-size="{size:.1f}" fill="currentColor"'
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" {style}>\n' + "\n".join(parts)
    ) + "\n</svg>"
    some = f" Shown are {len(picked)} of {columns} columns" if len(picked) < columns else ""
    if some and len(picked) < len(found.columns):
        some += ", those that differ most" + (
            f" among the first {len(found.columns)}" if len(found.columns) < columns else ""
        )
    return Picture(
        "associations",
        "How columns go together",
        "How to read this: each square is a pair of columns, the deeper its colour the more one tells about the other"
        + ("; blue: they rise together, orange: one rises as the other falls. " if signed else ". ")
        + "The maps of real and synthetic rows should look alike and their difference be blank: "
        f"its colours are full at ±{full:g}, the largest is {number(most, 3)}." + (some and f"{some}."),
        Drawn(
            described(
                svg, "Heat maps of the association of each pair of columns: real, synthetic, and their difference"
            )
        ),
    )


def shades(values: Matrix, left: float, top: float, cell: float) -> str:
    """The squares of a heat map of values in [−1, 1], a path for each shade."""
    levels = np.rint(np.clip(np.nan_to_num(values), -1, 1) * SHADES).astype(int)
    paths = []
    for level in sorted(set(levels.ravel().tolist()) - {0}):
        squares = (
            f"M{left + x * cell:.2f} {top + y * cell:.2f}h{cell:.2f}v{cell:.2f}h{-cell:.2f}z"
            for y, x in np.argwhere(levels == level)
        )
        colour = SYNTHETIC if level > 0 else INDEPENDENT
        paths.append(f'<path fill="{colour}" fill-opacity="{abs(level) / SHADES:.3f}" d="{"".join(squares)}"/>')
    return "\n".join(paths)


def key(left: float, top: float, limit: float, both_ways: bool) -> str:
    """The scale of a heat map's colours."""
    low = -SHADES if both_ways else 0
    steps = range(low, SHADES + 1, 2)
    width = 110 / len(steps)
    squares = [
        f'<rect x="{left + i * width:.1f}" y="{top}" width="{width:.1f}" height="8" '
        f'fill="{SYNTHETIC if level > 0 else INDEPENDENT}" fill-opacity="{abs(level) / SHADES:.3f}"/>'
        for i, level in enumerate(steps)
    ]
    ends = [(left, "start", f"−{limit:g}" if both_ways else "0"), (left + 110, "end", f"{limit:g}")]
    if both_ways:
        ends.append((left + 55, "middle", "0"))
    texts = [f'<text x="{x:.1f}" y="{top + 19}" text-anchor="{at}" font-size="9">{text}</text>' for x, at, text in ends]
    return "".join(squares + texts)


# --- what classifiers, models and distances say ---


def detectability(curves: Sequence[Roc], aucs: Figures) -> Picture:
    """Hits against false alarms of each classifier, and the diagonal of one that guesses."""
    figure, axes = sheet(4.6, 4.3)
    axes.set_aspect("equal")
    axes.set_xlabel("false alarms (real rows called synthetic)")
    axes.set_ylabel("hits (synthetic rows called so)")
    axes.plot([0, 1], [0, 1], color=INK, alpha=0.45, linewidth=0.9)
    axes.annotate("guessing", (0.1, 0.08), rotation=45, rotation_mode="anchor", alpha=0.7, fontsize=9, va="top")
    named = [(curve, aucs.at("detectability", f"{curve.classifier}_auc")) for curve in curves]
    for place, (curve, auc) in enumerate(sorted(named, key=lambda pair: -(pair[1] or 0))):
        known = list(CLASSIFIERS)
        style = known.index(curve.classifier) if curve.classifier in known else len(known)
        colour, dash = COLOURS[style % len(COLOURS)], DASHES[style % len(DASHES)]
        axes.plot(curve.false_positives, curve.true_positives, color=colour, linewidth=1.6, linestyle=dash)
        y = 0.06 + 0.075 * (len(curves) - 1 - place)
        axes.plot([0.36, 0.43], [y, y], color=colour, linewidth=1.6, linestyle=dash)
        text = f"{CLASSIFIERS.get(curve.classifier, shortened(curve.classifier, 20))} {number(auc, 3)}"
        axes.text(0.45, y, text, color=colour, fontsize=9.5, va="center", fontweight="bold")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    return Picture(
        "detectability",
        "Can a classifier tell them from real rows?",
        "How to read this: the closer a curve keeps to the diagonal, the less its classifier can tell synthetic rows "
        "from real ones; the number is the area under it (AUC; 0.5: guessing, 1: it always can).",
        to_svg(figure, "detectability", "ROC curves of classifiers that tell synthetic from real rows"),
    )


@dataclass(frozen=True)
class Side:
    """What models were trained on, where their figures stand, and how they are drawn."""

    title: str
    figures: Figures
    at: tuple[str, ...]
    style: dict[str, Any]

    def value(self, model: str, measure: str) -> float | None:
        """A model's figure, its training rows not balanced."""
        return self.figures.at(*self.at, "models", model, "none", measure)


def utility(score: Score) -> Picture | None:
    """Models trained on synthetic rows beside the same ones trained on real rows, tested on held-out real rows."""
    independent = score.bound("marginals")
    sides = [
        Side("trained on real rows", score.utility_of_real, (), {"color": INK, "alpha": 0.45}),
        Side("on synthetic rows", score.synthetic.figures, ("utility",), {"color": SYNTHETIC}),
    ]
    if independent and independent.figures.names("utility", "models"):
        sides.append(Side("on independent columns", independent.figures, ("utility",), {"color": INDEPENDENT}))
    models = score.utility_of_real.names("models") or score.synthetic.figures.names("utility", "models")
    measured = [m for m in MEASURES if any(side.value(model, m) is not None for side in sides for model in models)]
    if not measured:
        return None
    pitch = len(sides) + 0.8
    height = 0.95 + 0.21 * len(models) * pitch
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        figure = Figure(figsize=(9.2, height), layout=ConstrainedLayoutEngine(rect=(0, 0, 1, 1 - 0.3 / height)))
        figure.patch.set_alpha(0)
        panels = figure.subplots(1, len(measured), sharey=True, squeeze=False)[0]
        for axes, measure in zip(panels, measured, strict=True):
            axes.patch.set_alpha(0)
            bars(axes, sides, models, measure)
            axes.set_yticks(
                [place * pitch + (len(sides) - 1) / 2 for place in range(len(models))],
                [MODELS.get(model, shortened(model, 24)) for model in models],
            )
            axes.set_ylim(len(models) * pitch - 0.9, -0.9)
        x = 0.005
        for side in sides:
            at = (x, 1 - 0.13 / height)
            figure.text(*at, f"▮ {side.title}", va="center", fontsize=10, fontweight="bold", **side.style)
            x += (len(side.title) + 5) * 0.0087
    return Picture(
        "utility",
        "Are they worth training on?",
        "How to read this: each model is trained once on real and once on synthetic rows, and both are tested on the "
        "same held-out real rows; the closer the bars, the better the synthetic rows stand in for real ones."
        + (" For RMSE, shorter is better." if "rmse" in measured else ""),
        to_svg(figure, "utility", "Test figures of models trained on real and on synthetic rows"),
    )


def bars(axes: Axes, sides: Sequence[Side], models: Sequence[str], measure: str) -> None:
    """One measure of every model: bars from what guessing gets, with their figures."""
    base = 0.5 if measure == "auc" else 0.0
    beside: dict[str, Any] = {"va": "center", "fontsize": 8.5, "xytext": (3, 0), "textcoords": "offset points"}
    ends = [base]
    for place, model in enumerate(models):
        for order, side in enumerate(sides):
            y = place * (len(sides) + 0.8) + order
            value = side.value(model, measure)
            if value is None:
                axes.annotate("not available", (base, y), alpha=0.7, **beside)
                continue
            axes.barh(y, value - base, 0.8, left=base, linewidth=0, **side.style)
            axes.annotate(number(value, 3), (max(value, base), y), **beside)
            ends.append(value)
    low, high = min(ends), max(ends)
    reach = (high - low) or 1.0
    axes.set_xlim(low - (0.04 * reach if low < base else 0), high + 0.24 * reach)
    axes.axvline(base, color=INK, linewidth=0.6)
    axes.spines["left"].set_visible(False)
    axes.set_title(MEASURES[measure] + (" (0.5: guessing)" if base else ""), fontsize=10, loc="left")
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(4))


def privacy(found: Distances) -> Picture:
    """How far rows are from the closest training row: synthetic rows against rows that nothing trained on."""
    figure, axes = sheet(7.2, 3.3)
    axes.set_xlabel("distance to the closest training row")
    axes.set_ylabel("share of rows")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda share, _: percent(share)))
    axes.stairs(found.holdout, found.edges, fill=True, color=INK, alpha=GREY, linewidth=0)
    axes.stairs(found.synthetic, found.edges, color=SYNTHETIC, linewidth=1.6)
    top = max(float(found.holdout.max(initial=0)), float(found.synthetic.max(initial=0)), 1e-9)
    axes.set_ylim(0, 1.08 * top)
    axes.set_xlim(found.edges[0], found.edges[-1])
    style: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top", "fontweight": "bold"}
    axes.annotate("held-out real rows", (0.985, 0.97), alpha=0.6, **style)
    axes.annotate("synthetic rows", (0.985, 0.88), color=SYNTHETIC, **style)
    return Picture(
        "privacy",
        "Does it repeat its training rows?",
        "How to read this: a model that copies puts its rows closer to training rows (the blue line further left) than "
        "real rows that it never saw are (grey); where the two agree, this test finds no sign of copying. The last "
        "bar holds all that lies beyond.",
        to_svg(figure, "privacy", "Distances to the closest training row: synthetic rows against held-out real rows"),
    )


def fitting(fit: Fit) -> Picture | None:
    """The likelihood of held-out rows while the model was fitted."""
    if not fit.validation:
        return None
    figure, axes = sheet(7.2, 3.3)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel("nats a row")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    labels: list[tuple[Curve, str, dict[str, Any]]] = [
        (fit.validation, "validation rows", {"color": SYNTHETIC, "linewidth": 1.6})
    ]
    if fit.training:
        labels.append((fit.training, "training rows", {"color": INK, "linewidth": 1.0, "alpha": 0.55}))
    for place, (curve, label, style) in enumerate(labels):
        alone: dict[str, Any] = {"marker": "o", "markersize": 4} if len(curve) == 1 else {}
        axes.plot([step for step, _ in curve], [nats for _, nats in curve], **style, **alone)
        at: dict[str, Any] = {"xycoords": "axes fraction", "ha": "right", "va": "top", "fontweight": "bold"}
        axes.annotate(label, (0.985, 0.97 - 0.09 * place), color=style["color"], alpha=style.get("alpha", 1.0), **at)
    best = fit.facts.at("best_step")
    kept = [nats for step, nats in fit.validation if step == best]
    if best is not None and kept:
        axes.plot(best, kept[0], "o", color="none", markeredgecolor=SYNTHETIC, markersize=11, markeredgewidth=1.3)
    return Picture(
        "fit",
        "How the model was fitted",
        "How to read this: nats a row say how surprised the model is by rows (lower is better); on validation rows, "
        "from which it doesn't learn, they stop falling when it begins to learn by heart."
        + (" The ring is the model that was kept." if kept else ""),
        to_svg(figure, "fit", "Validation and training loss by optimiser step"),
    )
