"""How the arms trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from preflab.report.chapter import Chapter, Column, Drawing, Part, Prose, Sheet
from preflab.report.figures import colour_of, dash, label_ends, logged
from preflab.report.measures import Curve, curves
from preflab.report.study import Arm, Study
from preflab.report.svg import INK, STYLE, Picture, named, sheet, to_svg
from preflab.report.wording import capital

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
READING = "What the run logged, against optimiser steps; a line for each seed."


def training(study: Study) -> Chapter | None:
    """Validation reward by step, and what each arm logged."""
    found = curves(study)
    parts: list[Part] = []
    if trained_curves(study, found):
        parts.append(Drawing(reward_by_step(study, found), by_step_data(study, found)))
    logs = [drawn for place, arm in enumerate(study.arms) if (drawn := training_curves(study, arm, place))]
    if logs:
        parts.append(
            Prose("Below, what each arm logged while it trained. A loss of one method is not that of another.")
        )
    parts += logs
    return Chapter("training", "Training", tuple(parts)) if parts else None


def by_step_data(study: Study, found: Sequence[Curve]) -> Sheet:
    """The numbers of the rewards' picture."""
    rows = tuple(
        (curve.arm, float(step), m.reward)
        for curve in found
        for step, m in zip(curve.steps, curve.measures, strict=True)
    )
    columns = (Column("Arm", "arm"), Column("Step", "count"), Column(capital(study.reward_name)))
    return Sheet("reward-by-step", columns, rows, "A row for each checkpoint, on validation prompts.")


def logged_data(name: str, arm: Arm, keys: Sequence[str]) -> Sheet:
    """The numbers of a run's panels."""
    columns = (Column("Metric", "text"), Column("Seed", "count"), Column("Step", "count"), Column("Value"))
    rows = tuple(
        (key, float(run.seed), float(step), float(value))
        for key in keys
        for run in arm.runs
        for steps, values in logged(replace(arm, runs=(run,)), key)
        for step, value in zip(steps, values, strict=True)
    )
    return Sheet(name, columns, rows, "A row for each logged value.")


def reference_curve(study: Study, curves: Sequence[Curve]) -> Curve | None:
    """The reference's curve: one point."""
    return next((curve for curve in curves if curve.arm.name == study.reference_name), None)


def trained_curves(study: Study, curves: Sequence[Curve]) -> list[Curve]:
    """The curves of all other arms."""
    return [curve for curve in curves if curve.arm.name != study.reference_name]


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
        f"{capital(study.reward_name)} by step",
        "How fast each arm gets there, on validation prompts; the band is the 95 % interval. "
        "A step of one method need not cost what a step of another costs.",
        to_svg(figure, "reward-by-step", f"{study.reward_name} by optimiser step"),
    )


def training_curves(study: Study, arm: Arm, position: int) -> Drawing | None:
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
    drawn = Picture(name, arm.title, READING, to_svg(figure, name, f"Training curves of {arm.title}"))
    return Drawing(drawn, logged_data(name, arm, shown))
