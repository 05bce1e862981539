"""The pictures of a study."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from preflab.report.fields import is_finite
from preflab.report.measures import Curve
from preflab.report.reward_models import RewardModel
from preflab.report.statistics import Estimate
from preflab.report.study import Arm, Study
from preflab.report.svg import COLOURS, INK, STYLE, Picture, named, sheet, to_svg
from preflab.report.wording import count

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "h")

# The metrics worth a picture, by the first one that a run has; (key, title).
PANELS = {
    "loss": "loss",
    "reward": "reward",
    "accuracy": "accuracy",
    "margin": "margin",
    "chosen_reward": "implicit reward of chosen",
    "kl_nats": "KL to the reference (nats)",
    "perplexity": "perplexity",
    "clip_fraction": "clip fraction",
    "explained_variance": "explained variance",
    "gradient_norm": "gradient norm",
    "entropy_nats": "entropy (nats)",
    "response_tokens": "response length (tokens)",
    "end_rate": "end-token rate",
    "learning_rate": "learning rate",
}
PANELS_IN_A_ROW = 4
# A reward model's length buckets in their order, each on two lines.
LENGTHS = {
    "much shorter": "much\nshorter",
    "shorter": "\nshorter",
    "equal": "\nequal",
    "longer": "\nlonger",
    "much longer": "much\nlonger",
}
SHARE_MARKS: tuple[dict[str, Any], ...] = (
    {"marker": "o", "linestyle": "-"},
    {"marker": "s", "linestyle": "--", "markerfacecolor": "none"},
)


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


def pictures(study: Study, curves: Sequence[Curve]) -> tuple[Picture, ...]:
    """Every picture that the study has numbers for."""
    trained = [curve for curve in curves if curve.arm.name != study.reference_name]
    drawn = []
    if trained:
        drawn.append(frontier(study, curves))
        drawn.append(reward_by_step(study, curves))
        if any(m.proxy_reward for curve in trained for m in curve.measures):
            drawn.append(proxy_against_gold(study, curves))
    if study.reward_models:
        drawn.append(reward_models(study.reward_models))
    with_metrics = [arm for arm in study.arms if any(run.metrics for run in arm.runs)]
    drawn += [picture for arm in with_metrics if (picture := training_curves(study, arm, study.arms.index(arm)))]
    return tuple(drawn)


def frontier(study: Study, curves: Sequence[Curve]) -> Picture:
    """Reward against KL, a curve per arm from the reference at KL 0."""
    figure, axes = sheet(7.2, 4.4)
    axes.set_xlabel("KL to the reference, nats per response")
    axes.set_ylabel(named(study.reward_name))
    origin = reference_curve(study, curves)
    ends = []
    for curve in trained_curves(study, curves):
        path = sorted(zip(curve.measures, curve.steps, strict=True), key=lambda point: point[0].kl.mean)
        kl, reward = [m.kl for m, _ in path], [m.reward for m, _ in path]
        chosen = [step in curve.arm.chosen_steps for _, step in path]
        start = [origin.measures[0]] if origin else []
        line(study, axes, curve.arm, [m.kl for m in start] + kl, [m.reward for m in start] + reward)
        dots(study, axes, curve.arm, kl, reward, chosen)
        ends.append((curve.arm, kl[-1].high, reward[-1].mean))
    if origin:
        mark_reference(study, axes, origin.arm, origin.measures[0].kl, origin.measures[0].reward)
    label_ends(study, axes, ends)
    return Picture(
        "frontier",
        f"{study.reward_name} against KL",
        "Higher is better, further left stays closer to the reference: of two curves the upper one buys more "
        "reward for the same KL. A dot is a checkpoint with its 95 % intervals, a ring the checkpoint that was "
        "chosen, both on validation prompts; a dashed curve is an oracle, which trained on the gold reward itself."
        + (" ≤ KL: not measured, an upper bound." if any(curve.arm.kl_is_bound for curve in curves) else ""),
        to_svg(figure, "frontier", f"{study.reward_name} against KL, one curve per arm"),
    )


def proxy_against_gold(study: Study, curves: Sequence[Curve]) -> Picture:
    """Gold reward against proxy reward through the checkpoints of each arm."""
    figure, axes = sheet(7.2, 3.9)
    axes.set_xlabel(named(f"{study.proxy_name} (proxy)"))
    axes.set_ylabel(named(study.reward_name))
    origin = reference_curve(study, curves)
    start = [m for m in (origin.measures if origin else ()) if m.proxy_reward][:1]
    ends = []
    for curve in trained_curves(study, curves):
        path = [(m, s) for m, s in zip(curve.measures, curve.steps, strict=True) if m.proxy_reward]
        if not path:
            continue
        proxy, gold = [m.proxy_reward for m, _ in path if m.proxy_reward], [m.reward for m, _ in path]
        before = [m.proxy_reward for m in start if m.proxy_reward]
        line(study, axes, curve.arm, before + proxy, [m.reward for m in start] + gold)
        dots(study, axes, curve.arm, proxy, gold, [step in curve.arm.chosen_steps for _, step in path])
        ends.append((curve.arm, proxy[-1].high, gold[-1].mean))
    if origin and start and start[0].proxy_reward:
        mark_reference(study, axes, origin.arm, start[0].proxy_reward, start[0].reward)
    label_ends(study, axes, ends)
    return Picture(
        "proxy",
        f"Does the {study.proxy_name} tell the truth?",
        "Training moves along a curve from the reference. Up and to the right: both rewards rise. To the right and "
        "down: the proxy is being exploited, it rises while the gold reward falls.",
        to_svg(figure, "proxy", f"{study.reward_name} against {study.proxy_name} through training"),
    )


def reward_by_step(study: Study, curves: Sequence[Curve]) -> Picture:
    """Validation reward against optimiser steps."""
    figure, axes = sheet(7.2, 3.9)
    axes.set_xlabel("optimiser step")
    axes.set_ylabel(named(study.reward_name))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    origin = reference_curve(study, curves)
    start = [origin.measures[0].reward] if origin else []
    ends = []
    for curve in trained_curves(study, curves):
        steps = [0] * len(start) + list(curve.steps)
        reward = start + [m.reward for m in curve.measures]
        colour = colour_of(study, curve.arm)
        low, high = [r.low for r in reward], [r.high for r in reward]
        axes.fill_between(steps, low, high, color=colour, alpha=0.14, linewidth=0)
        axes.plot(steps, [r.mean for r in reward], color=colour, linewidth=1.6, linestyle=dash(curve.arm))
        ends.append((curve.arm, float(steps[-1]), reward[-1].mean))
    label_ends(study, axes, ends)
    last = max(step for _, step, _ in ends)
    axes.set_xticks([tick for tick in axes.get_xticks() if 0 <= tick <= last])
    return Picture(
        "reward-by-step",
        f"{study.reward_name} by step",
        "How fast each arm gets there, on validation prompts; the band is the 95 % interval. "
        "A step of one method need not cost what a step of another costs.",
        to_svg(figure, "reward-by-step", f"{study.reward_name} by optimiser step"),
    )


def reward_models(models: Sequence[RewardModel]) -> Picture:
    """How right the reward models are, by how sure they are and by how much longer the chosen response is."""
    with mpl.rc_context(STYLE | {"font.size": 10}):
        figure = Figure(figsize=(7.2, 3.5), layout="constrained")
        figure.patch.set_alpha(0)
        sure, length = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.15))
        for axes in (sure, length):
            axes.patch.set_alpha(0)
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            axes.set_axisbelow(True)
            axes.axhline(0.5, color=INK, alpha=0.35, linewidth=0.8, linestyle=":")
        by_confidence(sure, models)
        by_length(length, models)
    return Picture(
        "reward-models",
        "How good is the reward model?",
        "Held-out pairs, with 95 % intervals. Left, groups of equal size by how sure the model is: on the dashed line "
        "it is right as often as it says. Right, the same pairs by how much longer the chosen response is, with the "
        "number of pairs: a model that takes length for quality is right on the right and wrong on the left.",
        to_svg(figure, "reward-models", "Accuracy of the reward model by confidence and by length difference"),
    )


def by_confidence(axes: Axes, models: Sequence[RewardModel]) -> None:
    """A reliability diagram."""
    axes.plot([0.5, 1], [0.5, 1], color=INK, alpha=0.5, linewidth=0.8, linestyle="--")
    axes.annotate("under-confident", (0.03, 0.97), xycoords="axes fraction", va="top", alpha=0.7)
    axes.annotate("over-confident", (0.98, 0.03), xycoords="axes fraction", ha="right", alpha=0.7)
    axes.set_xlabel("how sure it is (mean confidence)")
    axes.set_ylabel("right in this share of pairs")
    for model, style in styled(models):
        shares(axes, [(b.confidence, b.accuracy) for b in model.by_margin], style)
    lows = [bucket.accuracy.low for model in models for bucket in (*model.by_margin, *model.by_length)]
    axes.set_ylim(min([0.45, *lows]) - 0.03, 1.02)


def by_length(axes: Axes, models: Sequence[RewardModel]) -> None:
    """Accuracy by length difference, the models side by side."""
    buckets = [bucket for model in models for bucket in model.by_length]
    names = [name for name in LENGTHS if any(bucket.name == name for bucket in buckets)]
    for number, (model, style) in enumerate(styled(models)):
        shift = 0.5 * ((number + 0.5) / len(models) - 0.5)
        places = [(names.index(b.name) + shift, b.accuracy) for b in model.by_length if b.name in names]
        shares(axes, places, style)
    pairs = [sum(bucket.pairs for bucket in buckets if bucket.name == name) for name in names]
    axes.set_xticks(range(len(names)), [f"{LENGTHS[name]}\n{count(n)}" for name, n in zip(names, pairs, strict=True)])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.tick_params(axis="x", length=0)
    axes.set_xlabel("chosen response, against the rejected one")
    if len({model.label for model in models}) > 1:
        axes.legend(frameon=False, loc="lower right")


def styled(models: Sequence[RewardModel]) -> Iterator[tuple[RewardModel, dict[str, Any]]]:
    """Each model with its marks: those of its label, which the first one names; fainter where there are many."""
    labels = list(dict.fromkeys(model.label for model in models))
    for number, model in enumerate(models):
        first = all(other.label != model.label for other in models[:number])
        marks = SHARE_MARKS[labels.index(model.label) % len(SHARE_MARKS)]
        faint = 0.9 if len(models) <= 2 else 0.6
        yield model, marks | {"alpha": faint, "label": named(model.label) if first else None}


def shares(axes: Axes, points: Sequence[tuple[float, Estimate]], style: dict[str, Any]) -> None:
    """Shares with their intervals, joined."""
    for x, share in points:
        ends = share.low, share.high
        axes.plot([x, x], ends, color=INK, alpha=0.5 * style["alpha"], linewidth=1.0, zorder=2)
    middles = [x for x, _ in points], [share.mean for _, share in points]
    axes.plot(*middles, color=INK, linewidth=1.2, markersize=5, zorder=3, **style)


def training_curves(study: Study, arm: Arm, position: int) -> Picture | None:
    """What one arm logged while it trained, against optimiser steps: a panel per metric, a line per seed."""
    series = {key: found for key in PANELS if (found := logged(arm, key))}
    if not series:
        return None
    shown = list(series)[:PANELS_IN_A_ROW]
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        figure = Figure(figsize=(9.2, 1.9), layout="constrained")
        figure.patch.set_alpha(0)
        panels = figure.subplots(1, PANELS_IN_A_ROW, squeeze=False)[0]
        for axes, key in zip(panels, shown, strict=False):
            axes.patch.set_alpha(0)
            axes.set_title(PANELS[key], fontsize=9.5, loc="left")
            axes.xaxis.set_major_locator(MaxNLocator(3, integer=True))
            axes.yaxis.set_major_locator(MaxNLocator(4))
            axes.grid(axis="y", color=INK, alpha=0.12, linewidth=0.6)
            for steps, values in series[key]:
                axes.plot(steps, values, color=colour_of(study, arm), linewidth=1.2, alpha=0.9)
        for axes in panels[len(shown) :]:
            axes.set_axis_off()
    name = f"training-{position}"
    return Picture(name, arm.title, "", to_svg(figure, name, f"Training curves of {arm.title}"))


def logged(arm: Arm, key: str) -> list[tuple[list[float], list[float]]]:
    """Steps and finite values of a metric, per seed; [] where nothing was logged."""
    found = []
    for run in arm.runs:
        pairs = [(entry.get("step"), entry.get(key)) for entry in run.metrics]
        finite = [(s, v) for s, v in pairs if is_finite(s) and is_finite(v)]
        if finite:
            found.append(([s for s, _ in finite], [v for _, v in finite]))
    return found


def reference_curve(study: Study, curves: Sequence[Curve]) -> Curve | None:
    """The reference's curve: one point."""
    return next((curve for curve in curves if curve.arm.name == study.reference_name), None)


def trained_curves(study: Study, curves: Sequence[Curve]) -> list[Curve]:
    """The curves of all other arms."""
    return [curve for curve in curves if curve.arm.name != study.reference_name]


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
    """Axes around means, with room for an interval of usual length: one of two seeds' may be fifty times as long."""
    for points, limit in ((x, axes.set_xlim), (y, axes.set_ylim)):
        means = [e.mean for e in points]
        span = (max(means) - min(means)) or max(e.high - e.low for e in points) or 1.0
        low, high = min(e.low for e in points), max(e.high for e in points)
        limit(max(low, min(means) - 0.35 * span) - 0.05 * span, min(high, max(means) + 0.35 * span) + 0.05 * span)


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
    # Room for the names: about 0.088 inch a character.
    rooms = [min(0.55, (len(names[arm.name]) * 0.088 + 0.25) / figure.get_figwidth()) for arm, _, _ in ends]
    axes.set_xlim(
        low, max(high, *(low + (x - low) / (0.98 - room) for (_, x, _), room in zip(ends, rooms, strict=True)))
    )
    with mpl.rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        figure.draw_without_rendering()
    points_per_pixel = 72 / figure.dpi
    taken: list[tuple[float, float, float]] = []  # left, right, baseline, in points
    for arm, x, y in sorted(ends, key=lambda end: end[2]):
        at_x, at_y = axes.transData.transform((x, y)) * points_per_pixel
        start, end = at_x + 10, at_x + 10 + len(names[arm.name]) * 6.2
        wanted = at_y
        for left_edge, right_edge, baseline in taken:
            if start < right_edge and end > left_edge and abs(wanted - baseline) < 13:
                wanted = baseline + 13
        taken.append((start, end, wanted))
        axes.annotate(
            names[arm.name],
            (x, y),
            xytext=(10, wanted - at_y),
            textcoords="offset points",
            va="center",
            fontsize=11,
            fontweight="bold",
            color=colour_of(study, arm),
            annotation_clip=False,
        )
