"""What a score says in plain words, and its figures with both bounds and what would be good."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, assert_never

from preflab.report.score import Score, Subject
from preflab.report.table_figures import CLASSIFIERS, MEASURES
from preflab.report.wording import count, number, share

Unit = Literal["score", "share", "count"]

LITTLE_AUC, CLEAR_AUC, FAR_AUC = 0.6, 0.75, 0.9
"""Up to here a classifier is a little, clearly, far better than guessing; beyond, it is nearly always right."""
LOST, LITTLE_LOST, MUCH_LOST = 0.0005, 0.01, 0.05
"""What models trained on synthetic rows lose (AUC, accuracy or R²), where it is more than chance: below the first
nothing, if they gain more than chance, up to the second little, from the third on much."""
NEARER = 0.02
"""A distance share or membership AUC more than this above 0.5 is a sign of learning by heart; with few rows, more than
guessing may reach."""
NOT_AVAILABLE = "not available"


@dataclass(frozen=True)
class Line:
    """One figure of every subject, in words."""

    group: str
    title: str
    values: tuple[str, ...]
    """By subject, the synthetic rows first."""
    good: str
    headline: bool


@dataclass(frozen=True)
class Measure:
    """A figure of score.json."""

    path: tuple[str, ...]
    title: str
    good: str
    unit: Unit = "score"
    headline: bool = False
    beside: tuple[str, ...] = ()
    """Where the figure of held-out rows stands, which it should be like."""


FIDELITY = (
    Measure(("fidelity", "quality"), "Quality (sdmetrics)", "near 1", headline=True),
    Measure(("fidelity", "column_shapes"), "Column shapes", "near 1", headline=True),
    Measure(("fidelity", "column_pair_trends"), "Column pair trends", "near 1", headline=True),
    Measure(("fidelity", "marginal_distance"), "Distance of marginals", "near 0"),
    Measure(("fidelity", "spearman_difference"), "Difference of rank correlations", "near 0"),
)
DETECTABILITY = tuple(
    Measure(("detectability", f"{name}_auc"), f"AUC of {title}", "near 0.5", headline=name == "gradient_boosting")
    for name, title in CLASSIFIERS.items()
)
DIVERSITY = (
    Measure(("diversity", "precision"), "Precision", "near second real"),
    Measure(("diversity", "recall"), "Recall", "near second real"),
    Measure(("diversity", "density"), "Density", "near 1"),
    Measure(("diversity", "coverage"), "Coverage", "near 1", headline=True),
    Measure(("diversity", "duplicate_share"), "Duplicates", "near second real", "share", headline=True),
    Measure(("diversity", "common_row_share"), "Rows that real data repeat", "near second real", "share"),
)
PRIVACY = (
    Measure(("privacy", "copies"), "Copies of training rows", "≤ second real", "count", True),
    Measure(("privacy", "copy_share"), "Copies, share of rows", "≤ second real", "share"),
    Measure(("privacy", "distance_share"), "Nearer to training rows", "near 0.5", headline=True),
    Measure(
        ("privacy", "distance_p5"),
        "Distance to training, 5th percentile",
        "",
        beside=("privacy", "distance_p5_holdout"),
    ),
    Measure(
        ("privacy", "distance_median"),
        "Distance to training, median",
        "",
        beside=("privacy", "distance_median_holdout"),
    ),
    Measure(("privacy", "membership_auc"), "Membership test, AUC", "near 0.5", headline=True),
    Measure(
        ("privacy", "membership_tpr_at_1pct_fpr"), "Membership test, found at 1 % false alarms", "near 1 %", "share"
    ),
)
VALIDITY = (
    Measure(("validity", "parsed_share"), "Rows that can be read", "100 %", "share"),
    Measure(("validity", "domain_share"), "Rows of legal cells", "near 100 %", "share"),
    Measure(
        ("validity", "rule_violation_share"), "Rows that break a rule", "", "share", True,
        ("validity", "rule_violation_share_holdout"),
    ),
    Measure(("validity", "rules"), "Rules mined from training rows", "", "count"),
    Measure(("validity", "unseen_cell_share"), "Cells never seen in training", "near second real", "share"),
)  # fmt: skip


def lines(score: Score) -> tuple[Line, ...]:
    """All figures, in the order of the page."""
    groups = {
        "Fidelity": FIDELITY,
        "Detectability": DETECTABILITY,
        "Utility": utility_measures(score),
        "Diversity": DIVERSITY,
        "Privacy": PRIVACY,
        "Validity": VALIDITY,
    }
    return tuple(line(score, group, measure) for group, measures in groups.items() for measure in measures)


def utility_measures(score: Score) -> tuple[Measure, ...]:
    """The mean of the models on held-out rows, and real rows' minus that: what is lost, but for RMSE, of which less is
    better; nothing without a target."""
    if score.target is None:
        return ()
    first = "r2" if score.regression else "auc"
    measures = []
    for name in ("r2", "rmse") if score.regression else ("auc", "accuracy", "macro_f1"):
        real = score.utility_of_real.at("mean", name)
        good = "" if real is None else f"near {number(real, 3)}, of real training rows"
        title = f"{MEASURES[name]}, trained on these"
        measures.append(Measure(("utility", "mean", name), title, good, headline=name == first))
        lost = "of real rows minus these" if name == "rmse" else "lost next to real"
        better = "0 or more" if name == "rmse" else "0 or less"
        measures.append(Measure(("utility", "gap", name), f"{MEASURES[name]} {lost}", better, headline=name == first))
    return tuple(measures)


def line(score: Score, group: str, measure: Measure) -> Line:
    """A figure of every subject."""
    good = measure.good
    if measure.beside and (held_out := score.synthetic.figures.at(*measure.beside)) is not None:
        good = f"near {written(held_out, measure.unit)}, of held-out rows"
    values = tuple(written(subject.figures.at(*measure.path), measure.unit) for subject in score.subjects)
    return Line(group, measure.title, values, good, measure.headline)


def written(value: float | None, unit: Unit) -> str:
    """A figure with its unit."""
    if value is None:
        return NOT_AVAILABLE
    match unit:
        case "score":
            return number(value, 3)
        case "share":
            return share(value)
        case "count":
            return count(value)
        case _:
            assert_never(unit)


# --- in plain words ---


def summary(score: Score) -> tuple[str, ...]:
    """Two or three sentences: can they be told from real rows, are they worth training on, were rows copied."""
    return told_apart(score), trained_on(score), copied(score)


def guessing(rows: int) -> float:
    """How far above 0.5 the AUC of a classifier that guesses may come: twice its standard deviation under the null
    hypothesis of Mann and Whitney, with `rows` real and as many synthetic rows.

    >>> round(guessing(2092), 4)  # 2 · √((2 · 2092 + 1) / (12 · 2092²))
    0.0179
    """
    return 2 * math.sqrt((2 * rows + 1) / (12 * rows**2)) if rows else 0.5


def judged_rows(score: Score) -> int:
    """How many rows of each table the tests could compare."""
    told = score.synthetic.figures.at("detectability", "rows")
    if told is not None:
        return round(told)
    return min((file.rows for role in ("holdout", "synthetic") if (file := score.file(role))), default=0)


def told_apart(score: Score) -> str:
    """How well the best classifier tells synthetic from real rows."""
    aucs = {
        name: auc
        for name in CLASSIFIERS
        if (auc := score.synthetic.figures.at("detectability", f"{name}_auc")) is not None
    }
    if not aucs:
        return "Whether a classifier tells these rows from real ones could not be measured."
    best = max(aucs, key=lambda name: aucs[name])
    rows = judged_rows(score)
    who = f"The best of {len(aucs)} classifiers ({CLASSIFIERS[best]})" if len(aucs) > 1 else f"{CLASSIFIERS[best]}"
    beside = bounds(score, lambda bound: number(bound.figures.at("detectability", f"{best}_auc"), 2))
    return (
        f"{who[0].upper()}{who[1:]} tells these rows from real ones with AUC {number(aucs[best], 2)}, "
        f"{how_well(aucs[best], rows)} (0.5: not at all{beside})."
    )


def how_well(auc: float, rows: int) -> str:
    """An AUC in words.

    >>> how_well(0.51, 2092), how_well(0.51, 50_000), how_well(0.95, 2092)
    ('no better than guessing as far as 2,092 rows can show', 'a little better than guessing', 'nearly always right')
    """
    if auc <= 0.5 + guessing(rows):
        return f"no better than guessing as far as {count(rows)} rows can show"
    steps = ((LITTLE_AUC, "a little better"), (CLEAR_AUC, "clearly better"), (FAR_AUC, "far better"))
    return next((f"{words} than guessing" for limit, words in steps if auc <= limit), "nearly always right")


def trained_on(score: Score) -> str:
    """What models lose that are trained on synthetic rows instead of real ones."""
    if score.target is None:
        return "No target was named, so no model was trained on them."
    figures, real = score.synthetic.figures, score.utility_of_real
    names = ("r2",) if score.regression else ("auc", "accuracy")
    name = next((name for name in names if figures.at("utility", "gap", name) is not None), None)
    if name is None or (lost := figures.at("utility", "gap", name)) is None:
        return "What models lose that are trained on them could not be measured."
    measure, here, there = MEASURES[name], figures.at("utility", "mean", name), real.at("mean", name)
    beside = bounds(score, lambda bound: number(bound.figures.at("utility", "gap", name), 3))
    losses = f" ({beside[2:]})" if beside else ""
    error = figures.at("utility", "gap_error", name)
    interval = "" if error is None else f" ± {number(2 * error, 3)}"
    return (
        f"Models trained on them lose {how_much(lost, chance(score, name))} on real rows: {number(lost, 3)}{interval} "
        f"{measure}{losses}, {number(here, 3)} instead of {number(there, 3)}."
    )


def chance(score: Score, name: str) -> float:
    """How much models may lose by chance: twice the standard error over held-out rows, or what one half of the real
    training rows loses or gains next to the other half, if that is more; that has the luck of the training rows in it,
    too."""
    error = score.synthetic.figures.at("utility", "gap_error", name) or 0.0
    real = score.bound("real")
    other = real and real.figures.at("utility", "gap", name)
    return max(2 * error, abs(other or 0.0))


def how_much(lost: float, chance: float) -> str:
    """A loss in words.

    >>> how_much(-0.02, 0.01), how_much(-0.008, 0.01), how_much(0.008, 0.002), how_much(0.08, 0.02)
    ('nothing', 'no more than chance explains', 'little', 'much')
    """
    if lost < LOST and lost <= -chance:
        return "nothing"
    if lost <= chance:
        return "no more than chance explains"
    return "little" if lost <= LITTLE_LOST else "much" if lost >= MUCH_LOST else "some"


def copied(score: Score) -> str:
    """Whether training rows were copied, or nearly so."""
    figures = score.synthetic.figures
    copies, part = figures.at("privacy", "copies"), figures.at("privacy", "copy_share")
    if copies is None:
        return "Whether training rows were copied could not be measured."
    limit = max(NEARER, guessing(judged_rows(score)))
    tests = {
        name: value
        for name, key in (("distance share", "distance_share"), ("membership AUC", "membership_auc"))
        if (value := figures.at("privacy", key)) is not None
    }
    signs = [f"{name} {number(value, 2)}" for name, value in tests.items() if value > 0.5 + limit]
    if copies:
        beside = bounds(score, lambda bound: share(bound.figures.at("privacy", "copy_share")), only="real")
        number_of = f"{count(copies)} rows are copies" if copies > 1 else "1 row is a copy"
        text = f"{number_of} of training rows ({share(part)}{beside})"
    else:
        text = "No training row was copied"
    if signs:
        return f"{text}; they lie nearer to training rows than unseen rows do ({', '.join(signs)}; 0.5: no nearer)."
    if copies:
        return f"{text}."
    found = ", nor was any sign found of learning rows by heart" if len(tests) == 2 else ""
    return f"{text}{found}; that is evidence and no guarantee."


def bounds(score: Score, figure: Callable[[Subject], str], only: str = "") -> str:
    """The same figure of the bounds, to go on within brackets."""
    shown = [(bound.title, figure(bound)) for bound in score.subjects[1:] if only in ("", bound.name)]
    known = ", ".join(f"{title} {text}" for title, text in shown if text != "–")
    return known and f"; {known}"
