"""What a table study answers, and by which rules.

Every interval is over seeds (Student's t on one mean a seed): redraws of a seed are averaged, since they share its
model, its rows and its luck. Differences are paired: redraw by redraw of the same seed, then averaged. With one seed
there is no interval, and every question stays undecided.

A question rests on one difference or on several. Asked of k differences, each interval has confidence 1 − 0.05/k, so
that at most one study in twenty finds something where nothing is. Each difference is then

- too small to matter, where its whole interval lies within ± what matters (MATTERS);
- as expected, or contrary, where its whole interval lies on that side of 0;
- open, else.

The question is answered as expected where a difference is as expected and none is contrary; contrary where one is
contrary and none as expected; small where all are too small to matter; else it stays undecided. An expected advantage
is "reproduced" where the answer is as expected, "not reproduced" where it is contrary or small.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, assert_never

import numpy as np

from preflab.report.fields import is_finite
from preflab.report.statistics import Estimate, over_seeds, spread_ratio
from preflab.report.table_study_folder import (
    DPO,
    HYBRID,
    PPO,
    REFERENCE,
    RESAMPLED,
    Alignment,
    Arm,
    Draws,
    Point,
    TableStudy,
)
from preflab.report.wording import count, duration, listing, number

Unit = Literal["score", "share", "nats", "seconds", "count", "ratio"]
Answer = Literal["expected", "contrary", "small", "undecided"]
Outcome = Literal["yes", "no", "undecided", "reproduced", "not reproduced"]

CLOSE = 0.9
"""Convergence: this part of the final gain."""
SPREAD_MATTERS = math.log(1.25)
"""A standard deviation that is larger by less than a quarter is about as large."""


@dataclass(frozen=True)
class Figure:
    """A figure of an arm: `of` finds it by seed and redraw."""

    title: str
    of: Callable[[Arm], Draws]
    unit: Unit
    good: int
    """+1: more is better, −1: less is, 0: neither."""
    matters: float
    """A difference below this doesn't matter, in the figure's unit; of a ratio, its logarithm."""
    key: str
    """Its name in comparison.json."""


@dataclass(frozen=True)
class Mean:
    """A mean over seeds; its interval is None with one seed."""

    mean: float
    estimate: Estimate | None
    seeds: int
    draws: int

    @property
    def sign(self) -> int:
        """+1 or −1 where the whole interval lies on one side of 0, else 0."""
        return self.estimate.sign if self.estimate else 0

    def json(self) -> dict[str, float | int | None]:
        """The form in comparison.json."""
        low, high = (self.estimate.low, self.estimate.high) if self.estimate else (None, None)
        return {"mean": self.mean, "low": low, "high": high, "seeds": self.seeds, "draws": self.draws}


@dataclass(frozen=True)
class Difference:
    """A difference that a question rests on."""

    title: str
    difference: Mean
    expected: int
    """The side of 0 on which it is expected."""
    matters: float
    text: str
    """In words, both sides and the difference."""

    @property
    def answer(self) -> Answer:
        """What this difference alone says."""
        found = self.difference.estimate
        if found and max(abs(found.low), abs(found.high)) < self.matters:
            return "small"
        sign = self.difference.sign * self.expected
        return "expected" if sign > 0 else "contrary" if sign < 0 else "undecided"


@dataclass(frozen=True)
class Verdict:
    """An answer and what it rests on."""

    subject: str
    about: str
    question: str
    outcome: Outcome
    text: str
    tests: tuple[Difference, ...] = ()

    @property
    def found(self) -> bool:
        """Whether there is something to say."""
        return self.outcome != "undecided"

    def json(self) -> dict[str, object]:
        """The form in comparison.json."""
        rests_on = [{"figure": test.title, "difference": test.difference.json()} for test in self.tests]
        return {
            "subject": self.subject,
            "about": self.about,
            "question": self.question,
            "outcome": self.outcome,
            "answer": self.text,
            "rests_on": rests_on,
        }


# --- figures ---

CLASSIFIERS = {
    "detectability.gradient_boosting_auc": "AUC of gradient boosting",
    "detectability.random_forest_auc": "AUC of the random forest",
    "detectability.logistic_auc": "AUC of logistic regression",
}


def judged(key: str, title: str, good: int, matters: float, unit: Unit = "score") -> Figure:
    """A figure that judging found."""
    return Figure(title, lambda arm: arm.draws(key), unit, good, matters, key)


def fact(key: str, title: str, good: int, matters: float, unit: Unit = "score") -> Figure:
    """What is known once a seed."""
    return Figure(title, lambda arm: arm.facts(key), unit, good, matters, key)


def cost(key: str, title: str, unit: Unit) -> Figure:
    """A cost of the alignment."""
    return Figure(title, lambda arm: arm.costs(key), unit, -1, 0.0, f"cost.{key}")


QUALITY = judged("fidelity.quality", "Quality (sdmetrics)", 1, 0.005)
DETECTED = tuple(judged(key, title, -1, 0.005) for key, title in CLASSIFIERS.items())
LOST = (
    judged("utility.gap.auc", "AUC lost", -1, 0.005),
    judged("utility.gap.r2", "R² lost", -1, 0.005),
    judged("utility.gap.accuracy", "Accuracy lost", -1, 0.005),
)
PRECISION = judged("diversity.precision", "Precision", 1, 0.01)
RECALL = judged("diversity.recall", "Recall", 1, 0.01)
COVERAGE = judged("diversity.coverage", "Coverage", 1, 0.01)
DUPLICATES = judged("diversity.duplicate_share", "Duplicates", -1, 0.001, "share")
COPIES = judged("privacy.copies", "Copies of training rows", -1, 0.5, "count")
DISTANCE = judged("privacy.distance_share", "Nearer to training than to held-out rows", -1, 0.01)
MEMBERSHIP = judged("privacy.membership_auc", "Membership AUC", -1, 0.01)
RULES = judged("validity.rule_violation_share", "Break a rule", -1, 0.005, "share")
UNMASKED = fact("unmasked_valid_share", "Legal without the mask", 1, 0.01, "share")
KL = fact("kl_nats", "KL, nats a row", 0, 0.0, "nats")
SPEED = fact("rows_per_cpu_second", "Rows a CPU second", 1, 0.0, "count")
CPU_SECONDS = cost("cpu_seconds", "CPU time to align", "seconds")
WALL_SECONDS = cost("wall_seconds", "Time to align", "seconds")
QUERIES = cost("queries", "Rewards queried", "count")

GROUPS: tuple[tuple[str, tuple[Figure, ...]], ...] = (
    ("How real", (QUALITY, *DETECTED)),
    ("How diverse", (PRECISION, RECALL, COVERAGE, DUPLICATES)),
    ("How useful, and how legal", (*LOST, RULES, UNMASKED)),
    ("How private", (COPIES, DISTANCE, MEMBERSHIP)),
    ("What it took", (KL, CPU_SECONDS, WALL_SECONDS, QUERIES, SPEED)),
)
"""The tables of figures: a heading, and its columns."""


def primary_of(study: TableStudy) -> Figure:
    """What the study compares arms by; less is better."""
    return judged(study.primary, CLASSIFIERS.get(study.primary, study.primary), -1, 0.005)


def independent_of(study: TableStudy) -> Figure:
    """The same by a family of classifiers that no reward uses."""
    return judged(study.independent, CLASSIFIERS.get(study.independent, study.independent), -1, 0.005)


def shown(value: float, unit: Unit, digits: int = 0) -> str:
    """A value in its unit, with so many digits more than usual.

    >>> shown(0.54321, "score"), shown(0.0412, "share"), shown(75.0, "seconds"), shown(0.333, "ratio")
    ('0.543', '4.12 %', '75 s', '0.33×')
    """
    match unit:
        case "score":
            return number(value, 3 + digits)
        case "share":
            return f"{number(100 * value, (1 if abs(value) >= 0.1 else 2) + digits)} %"
        case "nats":
            return number(value, 2 + digits)
        case "seconds":
            return f"{number(value, 0 if abs(value) >= 10 else 1)} s" if value < 600 else duration(value)
        case "count":
            if abs(value) < 100 and not float(value).is_integer():
                return number(value, 1 + digits)
            return "−" + count(-value) if value < 0 else count(value)
        case "ratio":
            return f"{number(value, 2 + digits)}×"
        case _:
            assert_never(unit)


def bracketed(mean: Mean, unit: Unit) -> str:
    """A mean with its interval, as far as there is one; with a digit more where an end that is not 0 would look it.

    >>> bracketed(Mean(0.54, Estimate(0.54, 0.53, 0.55), 3, 18), "score"), bracketed(Mean(0.54, None, 1, 6), "score")
    ('0.540 [0.530, 0.550]', '0.540')
    >>> bracketed(Mean(-0.01, Estimate(-0.01, -0.0196, -0.0004), 3, 18), "score")
    '−0.0100 [−0.0196, −0.0004]'
    """
    found = mean.estimate
    if found is None or found.low == found.high:
        return shown(mean.mean, unit)
    zero = shown(0.0, unit)
    digits = 1 if found.sign and zero in (shown(found.low, unit), shown(found.high, unit)) else 0
    low, middle, high = (shown(value, unit, digits) for value in (found.low, mean.mean, found.high))
    return f"{middle} [{low}, {high}]"


# --- means and paired differences ---


def mean_of(draws: Draws, what: str, confidence: float = 0.95) -> Mean | None:
    """The mean over seeds of each seed's mean over redraws; None where there is nothing."""
    return over([list(values.values()) for values in draws.values()], what, confidence)


def paired(first: Draws, second: Draws, what: str, confidence: float = 0.95) -> Mean | None:
    """The mean of first − second on the seeds and redraws that both have.

    >>> paired({0: {0: 3.0, 1: 5.0}, 1: {0: 4.0}}, {0: {0: 1.0}, 1: {0: 2.0, 1: 9.0}}, "figure").mean
    2.0
    """
    shared = {seed: [redraw for redraw in first[seed] if redraw in second[seed]] for seed in first if seed in second}
    differences = [
        [first[seed][redraw] - second[seed][redraw] for redraw in redraws] for seed, redraws in shared.items()
    ]
    return over([values for values in differences if values], what, confidence)


def over(values: Sequence[Sequence[float]], what: str, confidence: float) -> Mean | None:
    """A mean over seeds from the values of each."""
    if not values:
        return None
    means = [float(np.mean(one)) for one in values]
    estimate = over_seeds(means, what, confidence) if len(means) > 1 else None
    return Mean(float(np.mean(means)), estimate, len(means), sum(len(one) for one in values))


def logs(draws: Draws) -> Draws:
    """Natural logarithms of positive values; others are left out."""
    found = {seed: {redraw: math.log(x) for redraw, x in values.items() if x > 0} for seed, values in draws.items()}
    return {seed: values for seed, values in found.items() if values}


# --- questions ---


def decide(tests: Sequence[Difference]) -> Answer:
    """What several differences say together; the rule is that of the module."""
    answers = {test.answer for test in tests}
    if "expected" in answers and "contrary" not in answers:
        return "expected"
    if "contrary" in answers and "expected" not in answers:
        return "contrary"
    return "small" if answers == {"small"} else "undecided"


def figure_tests(first: Arm, second: Arm, figures: Mapping[Figure, int] | Sequence[Figure]) -> tuple[Difference, ...]:
    """The differences first − second of figures that both have, at the confidence that their number asks for.

    Args:
        first: an arm.
        second: another.
        figures: figures, and the side of 0 on which the difference is expected; as a list: on the better side.
    """
    sides = figures if isinstance(figures, Mapping) else {figure: figure.good for figure in figures}
    known = {figure: side for figure, side in sides.items() if paired(figure.of(first), figure.of(second), "")}
    confidence = 1 - 0.05 / max(1, len(known))
    found = []
    for figure, side in known.items():
        of_first, of_second = figure.of(first), figure.of(second)
        difference = paired(of_first, of_second, f"{figure.title} of {first.name} − {second.name}", confidence)
        means = mean_of(of_first, figure.title), mean_of(of_second, figure.title)
        assert difference
        assert means[0]
        assert means[1]
        text = (
            f"{figure.title} {shown(means[0].mean, figure.unit)} against {shown(means[1].mean, figure.unit)}, "
            f"{bracketed(difference, figure.unit)}"
        )
        found.append(Difference(figure.title, difference, side, figure.matters, text))
    return tuple(found)


def ratio_test(title: str, first: Draws, second: Draws, unit: Unit, expected: int, matters: float) -> Difference | None:
    """The ratio of two positive costs on the seeds that both have, tested on its logarithm."""
    difference = paired(logs(first), logs(second), title)
    means = mean_of(first, title), mean_of(second, title)
    if not difference or not means[0] or not means[1]:
        return None
    ratio = bracketed(exponential(difference), "ratio")
    text = f"{title} {shown(means[0].mean, unit)} against {shown(means[1].mean, unit)}, {ratio}"
    return Difference(title, difference, expected, matters, text)


def exponential(mean: Mean) -> Mean:
    """A mean of logarithms as a ratio."""
    found = mean.estimate
    ends = Estimate(math.exp(found.mean), math.exp(found.low), math.exp(found.high)) if found else None
    return Mean(math.exp(mean.mean), ends, mean.seeds, mean.draws)


def helped(study: TableStudy, arm: Arm, confidence: float = 0.95) -> Verdict | None:
    """Whether an arm's rows are harder to tell from real ones than those of its reference."""
    reference, figure = study.arm(REFERENCE), primary_of(study)
    if not reference or arm is reference:
        return None
    difference = paired(figure.of(arm), figure.of(reference), f"{figure.title} of {arm.name}", confidence)
    means = mean_of(figure.of(arm), figure.title), mean_of(figure.of(reference), figure.title)
    if not difference or not means[0] or not means[1]:
        return None
    outcome: Outcome = "yes" if difference.sign < 0 else "no" if difference.sign > 0 else "undecided"
    said = {
        "yes": "Yes: harder to tell from real rows",
        "no": "No, it hurt: easier to tell from real rows",
    }.get(outcome, "Undecided")
    text = (
        f"{said}; {figure.title} {number(means[0].mean, 3)} against {number(means[1].mean, 3)} of the reference, "
        f"{bracketed(difference, 'score')}, {of_draws(difference)}."
    )
    test = Difference(figure.title, difference, -1, 0.0, text)
    return Verdict("helped", arm.label, f"Did {arm.label} help?", outcome, text, (test,))


def of_draws(mean: Mean) -> str:
    """What a mean rests on.

    >>> of_draws(Mean(0.0, None, 1, 6)), of_draws(Mean(0.0, None, 3, 18)), of_draws(Mean(0.0, None, 3, 3))
    ('1 seed of 6 draws: no interval', '3 seeds of 6 draws', '3 seeds')
    """
    each = mean.draws / mean.seeds
    draws = "" if each <= 1 else f" of {number(each, 0 if each.is_integer() else 1)} draws"
    return f"{mean.seeds} seed{'s' if mean.seeds > 1 else ''}{draws}" + (": no interval" if mean.seeds == 1 else "")


@dataclass(frozen=True)
class Best:
    """The aligned arm that is taken for the best, how it was found, and the confidence that its interval needs."""

    arm: Arm
    how: str
    confidence: float


def best_of(study: TableStudy) -> Best | None:
    """The aligned arm to ask about: chosen on validation rows, where every arm was measured on them.

    A choice on validation leaves the holdout's figures untouched by it. Without one, the arm with the lowest figure on
    the holdout is taken, and its interval is that of as many comparisons as there are arms (Bonferroni).
    """
    figure = primary_of(study)
    arms = [arm for arm in study.aligned if figure.of(arm)]
    if not arms:
        return None
    gains = {arm.name: mean_of(one_a_seed(arm, validation_gain), "gain") for arm in arms}
    if all(gains.values()):
        best = max(arms, key=lambda arm: gain.mean if (gain := gains[arm.name]) else -math.inf)
        return Best(best, "best on validation", 0.95)
    judged_means = {arm.name: mean_of(figure.of(arm), figure.title) for arm in arms}
    best = min(arms, key=lambda arm: found.mean if (found := judged_means[arm.name]) else math.inf)
    return Best(best, f"best of {len(arms)} on the holdout, its interval widened for that", 1 - 0.05 / len(arms))


def ppo_or_dpo(study: TableStudy) -> Verdict | None:
    """Whether PPO beat DPO, and at what KL, cost and privacy."""
    ppo, dpo, figure = study.arm(PPO), study.arm(DPO), primary_of(study)
    if not ppo or not dpo:
        return None
    tests = figure_tests(ppo, dpo, [figure])
    if not tests:
        return None
    difference = tests[0].difference
    outcome: Outcome = "yes" if difference.sign < 0 else "no" if difference.sign > 0 else "undecided"
    said = {"yes": f"{ppo.label} beat {dpo.label}", "no": f"{dpo.label} beat {ppo.label}"}.get(
        outcome, f"Undecided between {ppo.label} and {dpo.label}"
    )
    beside = [against(ppo, dpo, figure) for figure in (KL, CPU_SECONDS, QUERIES, DISTANCE, MEMBERSHIP)]
    text = f"{said}: {tests[0].text}, {of_draws(difference)}"
    text += "".join(f"; {part}" for part in beside if part) + "."
    return Verdict("ppo or dpo", f"{ppo.label} or {dpo.label}", "Did PPO beat DPO?", outcome, text, tests)


def against(first: Arm, second: Arm, figure: Figure) -> str:
    """Two means side by side; empty where one is not known."""
    means = mean_of(figure.of(first), figure.title), mean_of(figure.of(second), figure.title)
    if not means[0] or not means[1]:
        return ""
    values = " against ".join(shown(mean.mean, figure.unit) for mean in means if mean)
    return f"{figure.title[:1].lower() if figure.title[1:2].islower() else figure.title[:1]}{figure.title[1:]} {values}"


def beats(study: TableStudy, first: Arm, second: Arm, subject: str, question: str) -> Verdict | None:
    """Whether one arm's rows are harder to tell from real ones than another's."""
    tests = figure_tests(first, second, [primary_of(study)])
    if not tests:
        return None
    difference = tests[0].difference
    outcome: Outcome = "yes" if difference.sign < 0 else "no" if difference.sign > 0 else "undecided"
    said = {"yes": "Yes", "no": "No, it does worse"}.get(outcome, "Undecided")
    spent = [against(first, second, figure) for figure in (CPU_SECONDS, QUERIES)]
    text = f"{said}: {tests[0].text}, {of_draws(difference)}" + "".join(f"; {part}" for part in spent if part) + "."
    return Verdict(subject, f"{first.label} or {second.label}", question, outcome, text, tests)


# --- convergence ---


def one_a_seed(arm: Arm, of: Callable[[Alignment], float | None]) -> Draws:
    """What a function finds in each seed's alignment."""
    found = {seed: of(alignment) for seed, alignment in arm.alignments.items()}
    return {seed: {0: value} for seed, value in found.items() if value is not None}


def validation_gain(alignment: Alignment) -> float | None:
    """How much harder the chosen policy's rows are to tell from validation rows than the reference's, in AUC."""
    start, chosen = alignment.start, alignment.chosen
    if not start or not chosen or start.told_apart_auc is None or chosen.told_apart_auc is None:
        return None
    return start.told_apart_auc - chosen.told_apart_auc


def converged(alignment: Alignment) -> Point | None:
    """The first point with 90 % of the final gain; None where there is no gain."""
    gain, start = validation_gain(alignment), alignment.start
    if gain is None or gain <= 0 or not start or start.told_apart_auc is None:
        return None
    enough = start.told_apart_auc - CLOSE * gain
    return next((p for p in alignment.points[1:] if p.told_apart_auc is not None and p.told_apart_auc <= enough), None)


def queries_for(alignment: Alignment, gain: float) -> float | None:
    """Rewards queried until the gain on validation is first as large, on straight lines between points.

    The points of two methods lie at different queries; counted to whole points, a coarser grid would look slower.
    None where it is never as large, or queries were not counted.
    """
    known = [
        (point.queries, point.told_apart_auc)
        for point in alignment.points
        if point.queries is not None and point.told_apart_auc is not None
    ]
    if not known:
        return None
    enough = known[0][1] - gain
    for (asked, above), (more, below) in pairwise(known):
        if below <= enough < above:
            return asked + (more - asked) * (above - enough) / (above - below)
    return None


def seed_means(draws: Draws) -> dict[int, float]:
    """A seed's mean over its redraws."""
    return {seed: float(np.mean(list(values.values()))) for seed, values in draws.items()}


def gains_judged(study: TableStudy, arm: Arm) -> dict[int, float]:
    """By seed, how much the arm's primary figure lies below its reference's, on the same redraws."""
    reference, figure = study.arm(REFERENCE), primary_of(study)
    if not reference:
        return {}
    own, base = figure.of(arm), figure.of(reference)
    found = {seed: paired({seed: base[seed]}, {seed: own[seed]}, "gain") for seed in own if seed in base}
    return {seed: mean.mean for seed, mean in found.items() if mean}


def deviation(values: Sequence[float]) -> float | None:
    """Their standard deviation; None below two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


# --- expected advantages ---


def advantage(
    claim: str, question: str, tests: Sequence[Difference | None], otherwise: str, beside: str = ""
) -> Verdict:
    """An expected advantage: reproduced, not reproduced, or undecided.

    Args:
        claim: what was expected.
        question: what is asked.
        tests: what it rests on.
        otherwise: why nothing is decided, where there is no test.
        beside: what else is known, a sentence.
    """
    known = tuple(test for test in tests if test)
    answer = decide(known)
    outcome: Outcome = (
        "reproduced" if answer == "expected" else "undecided" if answer == "undecided" else "not reproduced"
    )
    seeds = min((test.difference.seeds for test in known), default=0)
    why = {"contrary": " (the contrary)", "small": " (too small to matter)"}.get(answer, "")
    rests = "; ".join(test.text for test in known)
    text = f"{rests}; {seeds} seed{'s' if seeds != 1 else ''}{why}." if known else otherwise
    return Verdict("advantage", claim, question, outcome, f"{text} {beside}".strip(), known)


def advantages(study: TableStudy) -> tuple[Verdict, ...]:
    """The expected advantages of DPO over PPO, and the risk of PPO; () where the study lacks one of them."""
    dpo, ppo, reference = study.arm(DPO), study.arm(PPO), study.arm(REFERENCE)
    if not dpo or not ppo:
        return ()
    nothing = "Not measured of both yet."
    found = [
        sample_efficiency(dpo, ppo),
        stability(study, dpo, ppo),
        advantage(
            "DPO is more diverse",
            "Are DPO's rows more diverse than PPO's?",
            figure_tests(dpo, ppo, [RECALL, COVERAGE]),
            nothing,
        ),
        advantage(
            "DPO is less over-fitted",
            "Do DPO's rows show less of the training rows than PPO's?",
            figure_tests(dpo, ppo, [DISTANCE, MEMBERSHIP]),
            nothing,
        ),
        advantage(
            "DPO is faster",
            "Does a run of DPO take less CPU time than one of PPO?",
            [ratio_test(CPU_SECONDS.title, CPU_SECONDS.of(dpo), CPU_SECONDS.of(ppo), "seconds", -1, math.log(1.1))],
            nothing,
        ),
    ]
    if reference:
        found.append(one_mode(ppo, reference))
    return tuple(found)


def sample_efficiency(dpo: Arm, ppo: Arm) -> Verdict:
    """Whether DPO asks for fewer rewards until it has 90 % of the smaller of both final gains of that seed.

    A gain of its own would flatter a method that gains little. Every seed must show a gain of both: to leave seeds out
    by their outcome would be a choice of seeds.
    """
    of_both: tuple[dict[int, dict[int, float]], dict[int, dict[int, float]]] = {}, {}
    seeds = sorted(set(dpo.alignments) & set(ppo.alignments))
    without = []
    for seed in seeds:
        both = dpo.alignments[seed], ppo.alignments[seed]
        gains = [validation_gain(one) for one in both]
        target = CLOSE * min(gain or 0.0 for gain in gains)
        queries = [asked for one in both if target > 0 and (asked := queries_for(one, target))]
        if len(queries) < 2:
            without.append(seed)
            continue
        for found, value in zip(of_both, queries, strict=True):
            found[seed] = {0: value}
    claim, question = "DPO is more sample-efficient", "Does DPO need fewer rewards than PPO for the same gain?"
    if without or not seeds:
        why = f"{len(without)} of {len(seeds)} seeds have no gain of both on validation." if seeds else "No run yet."
        return advantage(claim, question, [], f"{why} Nothing to compare.")
    test = ratio_test("Rewards queried to 90 % of the smaller gain", of_both[0], of_both[1], "count", -1, math.log(1.1))
    return advantage(claim, question, [test], "No rewards were counted.")


def stability(study: TableStudy, dpo: Arm, ppo: Arm) -> Verdict:
    """Whether DPO's gain varies less over seeds than PPO's."""
    gains = [gains_judged(study, arm) for arm in (dpo, ppo)]
    seeds = sorted(set(gains[0]) & set(gains[1]))
    values = [[found[seed] for seed in seeds] for found in gains]
    ratio = spread_ratio(values[0], values[1])
    collapsed = "; ".join(
        f"{arm.label} {sum(one.collapsed for one in arm.alignments.values())} of {len(arm.alignments)}"
        for arm in (dpo, ppo)
    )
    tests = []
    if ratio:
        deviations = [number(deviation(one), 4) for one in values]
        log_ratio = Mean(ratio.mean, ratio, len(seeds), len(seeds))
        text = f"SD of the gain over seeds {' against '.join(deviations)}, {bracketed(exponential(log_ratio), 'ratio')}"
        tests.append(Difference("SD of the gain over seeds", log_ratio, -1, SPREAD_MATTERS, text))
    return advantage(
        "DPO is stabler",
        "Does DPO's gain vary less over seeds than PPO's?",
        tests,
        "A comparison of spreads needs three seeds.",
        f"Collapsed runs: {collapsed}." if dpo.alignments and ppo.alignments else "",
    )


def entropy_kept(alignment: Alignment) -> float | None:
    """The logarithm of the policy's entropy over the last tenth of training, next to the first tenth."""
    known = [line.get("entropy_nats") for line in alignment.metrics]
    logged = [value for value in known if is_finite(value) and value > 0]
    part = max(1, len(logged) // 10)
    return math.log(np.mean(logged[-part:]) / np.mean(logged[:part])) if len(logged) > 1 else None


def one_mode(ppo: Arm, reference: Arm) -> Verdict:
    """Whether PPO's rows crowd together: more duplicates, less recall or coverage than its reference, less entropy."""
    kept = one_a_seed(ppo, entropy_kept)
    sides = {DUPLICATES: 1, RECALL: -1, COVERAGE: -1}
    judged_here = [figure for figure in sides if paired(figure.of(ppo), figure.of(reference), "")]
    confidence = 1 - 0.05 / max(1, len(judged_here) + bool(kept))
    tests = []
    for figure in judged_here:
        difference = paired(figure.of(ppo), figure.of(reference), figure.title, confidence)
        means = [mean_of(figure.of(arm), figure.title) for arm in (ppo, reference)]
        assert difference
        sizes = " against ".join(shown(mean.mean, figure.unit) for mean in means if mean)
        text = f"{figure.title} {sizes}, {bracketed(difference, figure.unit)}"
        tests.append(Difference(figure.title, difference, sides[figure], figure.matters, text))
    entropy = mean_of(kept, "entropy", confidence)
    if entropy:
        text = f"Entropy at the end next to the beginning {bracketed(exponential(entropy), 'ratio')}"
        tests.append(Difference("Entropy", entropy, -1, math.log(1.1), text))
    return advantage(
        "PPO risks one mode of high reward",
        "Do PPO's rows crowd together, next to the reference's?",
        tests,
        "Not measured yet.",
    )


# --- what each method does to the rows ---


@dataclass(frozen=True)
class Matter:
    """One matter of one arm, next to the reference: in a word, and the differences in words."""

    title: str
    arm: str
    word: str
    tests: tuple[Difference, ...]


def matters(study: TableStudy) -> tuple[tuple[str, tuple[Matter, ...]], ...]:
    """Quality, diversity, utility and privacy of each arm next to the reference: better, worse, or not known."""
    reference = study.arm(REFERENCE)
    if not reference:
        return ()
    asked = (
        ("Quality", (primary_of(study), QUALITY)),
        ("Diversity", (RECALL, COVERAGE)),
        ("Utility", LOST[:2]),
        ("Privacy", (DISTANCE, MEMBERSHIP)),
        ("Rules kept", (RULES,)),
    )
    found = []
    for title, figures in asked:
        row = []
        for arm in study.arms:
            tests = figure_tests(arm, reference, figures) if arm is not reference else ()
            if tests:
                row.append(Matter(title, arm.label, in_a_word(tests), tests))
        if row:
            found.append((title, tuple(row)))
    return tuple(found)


def in_a_word(tests: Sequence[Difference]) -> str:
    """Better, worse, about the same or undecided."""
    both = {"expected", "contrary"} <= {test.answer for test in tests}
    words = {"expected": "better", "contrary": "worse", "small": "about the same", "undecided": "undecided"}
    return "better and worse" if both else words[decide(tests)]


# --- the reward against the judge ---


def reward_rise(alignment: Alignment) -> float | None:
    """Reward in the last tenth of round 1 − in its first; within a round the discriminators stay the same."""
    first = [line.get("reward") for line in alignment.metrics if line.get("round") == 1]
    known = [reward for reward in first if is_finite(reward)]
    part = max(1, len(known) // 10)
    return float(np.mean(known[-part:]) - np.mean(known[:part])) if len(known) > 1 else None


def misled(study: TableStudy, arm: Arm) -> Verdict | None:
    """Whether the reward rose while the independent judge found the rows easier to tell from real ones."""
    reference, figure = study.arm(REFERENCE), independent_of(study)
    if not reference:
        return None
    rise = mean_of(one_a_seed(arm, reward_rise), "reward", 0.975)
    tests = figure_tests(arm, reference, [figure])
    if not rise or not tests:
        return None
    judge = tests[0]
    widened = paired(figure.of(arm), figure.of(reference), figure.title, 0.975)
    assert widened
    outcome: Outcome = "undecided"
    said = "Undecided"
    if rise.sign > 0 and widened.sign > 0:
        outcome, said = "yes", "Yes, the reward rose and the rows became easier to tell apart"
    elif widened.sign < 0:
        outcome, said = "no", "No, the independent judge finds the rows harder to tell apart too"
    text = f"{said}: {judge.text}; reward within round 1 {bracketed(rise, 'score')}; {of_draws(widened)}."
    rewarded = Difference("reward within round 1", rise, 1, 0.0, "")
    return Verdict("misled", arm.label, f"Did its reward mislead {arm.label}?", outcome, text, (rewarded, judge))


# --- all of them ---


@dataclass(frozen=True)
class Answers:
    """Every verdict of a study."""

    best: Best | None
    helped: Verdict | None
    """Of the best arm."""
    each: tuple[Verdict, ...]
    """Whether each arm helped."""
    ppo_or_dpo: Verdict | None
    others: tuple[Verdict, ...]
    """The hybrid, and importance resampling."""
    advantages: tuple[Verdict, ...]
    misled: tuple[Verdict, ...]
    matters: tuple[tuple[str, tuple[Matter, ...]], ...]

    @property
    def all(self) -> tuple[Verdict, ...]:
        """In the page's order."""
        first = [verdict for verdict in (self.helped, self.ppo_or_dpo) if verdict]
        return (*first, *self.others, *self.each, *self.advantages, *self.misled)


def answers(study: TableStudy) -> Answers:
    """Ask everything."""
    best, reference = best_of(study), study.arm(REFERENCE)
    others: list[Verdict | None] = []
    hybrid, resampled = study.arm(HYBRID), study.arm(RESAMPLED)
    for name in (DPO, PPO):
        if hybrid and (other := study.arm(name)):
            question = f"Does {hybrid.label} beat {other.label}?"
            others.append(beats(study, hybrid, other, "hybrid", question))
    if best and resampled:
        question = f"Does {best.arm.label} beat importance resampling by the same discriminators?"
        others.append(beats(study, best.arm, resampled, "resampling", question))
    each = [helped(study, arm) for arm in study.arms if arm is not reference]
    return Answers(
        best=best,
        helped=helped(study, best.arm, best.confidence) if best else None,
        each=tuple(verdict for verdict in each if verdict),
        ppo_or_dpo=ppo_or_dpo(study),
        others=tuple(verdict for verdict in others if verdict),
        advantages=advantages(study),
        misled=tuple(verdict for arm in study.aligned if (verdict := misled(study, arm))),
        matters=matters(study),
    )


def headline(study: TableStudy, found: Answers) -> tuple[str, str, str]:
    """Three plain sentences: did alignment help, did PPO beat DPO, what it cost."""
    return (headline_helped(study, found), headline_compared(study, found), headline_cost(study, found))


def headline_helped(study: TableStudy, found: Answers) -> str:
    """Whether alignment helped."""
    if not found.best or not found.helped:
        return "Whether alignment helped can't be said yet: no aligned arm and its reference have both been judged."
    said = {"yes": "Alignment helped", "no": "Alignment hurt"}.get(found.helped.outcome)
    said = said or "Undecided whether alignment helped"
    difference = found.helped.tests[0].difference
    figure = primary_of(study)
    reference = study.arm(REFERENCE)
    means = [mean_of(figure.of(arm), figure.title) for arm in (found.best.arm, reference) if arm]
    values = " against ".join(number(mean.mean, 3) for mean in means if mean)
    return (
        f"{said}: {figure.title} of {found.best.arm.label} ({found.best.how}) {values} of its reference, "
        f"{bracketed(difference, 'score')} ({of_draws(difference)})."
    )


def headline_compared(study: TableStudy, found: Answers) -> str:
    """Whether PPO beat DPO, at what KL, cost and privacy."""
    verdict, ppo, dpo = found.ppo_or_dpo, study.arm(PPO), study.arm(DPO)
    if not verdict or not ppo or not dpo:
        return "Whether PPO beat DPO can't be said: the study has not judged both."
    said = {"yes": f"{ppo.label} beat {dpo.label}", "no": f"{dpo.label} beat {ppo.label}"}.get(
        verdict.outcome, f"Undecided whether {ppo.label} beat {dpo.label}"
    )
    beside = []
    for figure, words in ((KL, " nats of KL"), (CPU_SECONDS, " of CPU time"), (MEMBERSHIP, " membership AUC")):
        means = [mean for arm in (ppo, dpo) if (mean := mean_of(figure.of(arm), figure.title))]
        if len(means) == 2:
            beside.append(" against ".join(shown(mean.mean, figure.unit) for mean in means) + words)
    at = f", at {listing(beside)}" if beside else ""
    return f"{said}: {verdict.tests[0].text}{at}."


def headline_cost(study: TableStudy, found: Answers) -> str:
    """What the best arm cost."""
    arm = found.best.arm if found.best else None
    seconds = mean_of(CPU_SECONDS.of(arm), "seconds") if arm else None
    if not arm or not seconds:
        return "What it cost is not known yet."
    parts = [f"{duration(seconds.mean)} of CPU time"]
    fits = [fit["cpu_seconds"] for fit in study.fits.values() if "cpu_seconds" in fit]
    if fits:
        parts[0] += f" beside {duration(float(np.mean(fits)))} of its fit"
    if queries := mean_of(QUERIES.of(arm), "queries"):
        parts.append(f"{count(queries.mean)} rewards")
    if kl := mean_of(KL.of(arm), "KL"):
        parts.append(f"{number(kl.mean)} nats of KL a row")
    changed = [
        f"{title.lower()} {' and '.join(word for word in [one.word for one in row if one.arm == arm.label])}"
        for title, row in found.matters
        if title != "Quality" and any(one.arm == arm.label for one in row)
    ]
    rest = f"; next to the reference: {', '.join(changed)}" if changed else ""
    return f"Aligning by {arm.label} cost {listing(parts)}{rest}."


def comparisons(study: TableStudy, found: Answers) -> int:
    """How many differences were set against 0 on the page: those of the tables, and those of the questions."""
    reference = study.arm(REFERENCE)
    in_tables = sum(
        bool(figure.good and paired(figure.of(arm), figure.of(reference), ""))
        for arm in study.arms
        if reference and arm is not reference
        for _, figures in GROUPS
        for figure in figures
    )
    in_questions = sum(len(verdict.tests) for verdict in found.all)
    return in_tables + in_questions + sum(len(one.tests) for _, row in found.matters for one in row)


RULES_IN_WORDS = (
    "Intervals are 95 % intervals over seeds (Student's t on one mean a seed). Redraws of one seed are averaged first: "
    "they share its model and its luck. Differences are paired, redraw by redraw of the same seed. With one seed there "
    "is no interval, and all stays undecided.",
    "A question that rests on k differences takes each at confidence 1 − 0.05/k. A difference is too small to matter "
    "where its whole interval lies within ±0.005 (AUC, quality, utility, rules), ±0.01 (recall, coverage, distance "
    "share, membership AUC), ±0.1 % (duplicates), a factor of 1.1 (rewards, time, entropy) or of 1.25 (SD over seeds); "
    "else it has a side where its whole interval lies on that side of 0.",
    "Reproduced: a difference has the expected side, and none the other. Not reproduced: a difference has the other "
    "side and none the expected one, or all are too small to matter. Undecided: everything else. Better, worse and "
    "about the same are said by the same rule.",
    "The best aligned arm is the one with the largest mean gain on validation rows, so that the holdout has no part in "
    "the choice. Where an arm has none, it is the best on the holdout, and its interval is widened by the number of "
    "arms.",
    "Sample efficiency: rewards queried until both have 90 % of the smaller of their two gains of that seed, their "
    "ratio; every seed must show a gain of both. Stability: the ratio of the SDs over seeds of the gain on the holdout "
    "(Pitman's and Morgan's interval for pairs). Time: the CPU time of a whole run, with the steps that the study gave "
    "it. One mode: duplicates, recall and coverage next to the reference, and entropy at the end of training next to "
    "its beginning.",
)
"""The rules of the module, for the page."""
