"""How good the reward models are on held-out pairs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preflab.report.chapter import Chapter, Column, Drawing, Finding, Findings, Prose, Sheet
from preflab.report.reward_models import RewardModel
from preflab.report.statistics import Estimate
from preflab.report.study import Study
from preflab.report.svg import INK, STYLE, Picture, named, to_svg
from preflab.report.wording import count

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
EXPLANATION = (
    "A reward model says that one response of a pair wins with probability σ(score difference). How sure it is: that "
    "probability for the response it prefers; accuracy: how often that one was chosen. “Longer wins”: the accuracy of "
    "calling the longer response better without reading either. Correlation: of score and length within a pair. "
    "Intervals of shares are Wilson’s, as of one pair a prompt."
)


def reward_models(study: Study) -> Chapter | None:
    """Whether they are as sure as they are right, and whether they read more than length."""
    models = study.reward_models
    if not models:
        return None
    drawn = picture(models)
    findings = Findings("", tuple(Finding(model.title, model.finding, model.found) for model in models))
    return Chapter(
        "reward-models", drawn.title, (findings, Drawing(drawn, data(models)), table(models), Prose(EXPLANATION, True))
    )


def table(models: Sequence[RewardModel]) -> Sheet:
    """A row for each reward model."""
    columns = (
        Column("Reward model", "text"),
        Column("Pairs", "count"),
        Column("Accuracy", "percent"),
        Column("Sure, on average", "percent"),
        Column("Calibration error", digits=3),
        Column("by chance up to", digits=3),
        Column("Accuracy, chosen is shorter", "percent"),
        Column("Accuracy, chosen is longer", "percent"),
        Column("“Longer wins”", "percent"),
        Column("Score and length, correlation"),
    )
    rows = tuple(
        (
            m.title,
            float(m.pairs),
            m.accuracy,
            m.confidence,
            m.error,
            m.error_by_chance,
            m.shorter.accuracy if m.shorter else None,
            m.longer.accuracy if m.longer else None,
            m.longer_wins,
            m.length_correlation,
        )
        for m in models
    )
    reading = (
        "Calibration error: the mean distance of accuracy and confidence over groups of equal size (ECE, arXiv "
        "1706.04599); 95 % of calibrated models stay below the figure beside it on as many pairs."
    )
    return Sheet("reward-models", columns, rows, reading)


def data(models: Sequence[RewardModel]) -> Sheet:
    """The numbers of the picture."""
    columns = (
        Column("Reward model", "text"),
        Column("Pairs grouped by", "text"),
        Column("Group", "text"),
        Column("Pairs", "count"),
        Column("Confidence", "percent"),
        Column("Accuracy", "percent"),
    )
    rows = tuple(
        (model.title, by, bucket.name, float(bucket.pairs), bucket.confidence, bucket.accuracy)
        for model in models
        for by, buckets in (("confidence", model.by_margin), ("length difference", model.by_length))
        for bucket in buckets
    )
    return Sheet("reward-models", columns, rows, "A row for each group of pairs.")


def picture(models: Sequence[RewardModel]) -> Picture:
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
