"""Did responses degenerate: loops, sameness, collapse onto one answer, lengths, lost language."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import Any

from preflab.report.chapter import (
    Answers,
    Chapter,
    Column,
    Drawing,
    Finding,
    Findings,
    Gallery,
    Part,
    Prose,
    Sheet,
    Value,
)
from preflab.report.degeneration import (
    ALIKE,
    BLEU_PROMPTS,
    TWIN_PROMPTS,
    Commonest,
    Signs,
    by_prompt,
    commonest,
    distinct_responses,
    ends_in_loop,
    signs,
)
from preflab.report.figures import colour_of, dash, label_ends, marker_of
from preflab.report.shares import share
from preflab.report.statistics import Estimate, Matrix, estimate, perplexity, repetition
from preflab.report.study import Arm, Point, Sample, Study
from preflab.report.svg import INK, Picture, sheet, to_svg
from preflab.report.verdicts import absolute, reference_like
from preflab.report.visits import visited
from preflab.report.wording import interval, listing, number, said

SHOWN_CHARACTERS = 90
BANDS = 5
"""Curves up to which their intervals are drawn."""


@dataclass(frozen=True)
class Looked:
    """An arm's chosen checkpoint and what was found there."""

    arm: Arm
    point: Point
    signs: Signs
    common: Commonest | None
    """The most frequent of the responses of all seeds."""
    different: float | None
    """Different responses / responses, the mean over seeds."""


def degeneration(study: Study) -> Chapter | None:
    """The chapter; None before an arm has responses."""
    looked = [look(arm, arm.final) for arm in study.arms if arm.final and len(arm.final.prompts) > 1]
    if not any(one.common for one in looked):
        return None
    parts: list[Part] = [
        findings(study, looked),
        within_sheet(looked),
        between_sheet(looked),
        Prose(definitions(looked), quiet=True),
    ]
    drawn = length_drift(study)
    if drawn:
        parts.append(drawn)
    gallery = worst(study, looked)
    if gallery.items:
        parts += [Prose(RULE), gallery]
    return Chapter("degeneration", "Did the responses degenerate?", tuple(parts))


def look(arm: Arm, point: Point) -> Looked:
    """Everything about one arm's responses."""
    responses = by_prompt(point) or ()
    texts = [[sample.response for sample in seed] for seed in responses]
    different = sum(distinct_responses(seed) / len(seed) for seed in texts) / len(texts) if texts else None
    common = commonest([text for seed in texts for text in seed]) if texts else None
    return Looked(arm, point, signs(point), common, different)


# --- answers ---


@dataclass(frozen=True)
class Sign:
    """One sign of degeneration, compared with the reference's."""

    more: str
    less: str
    mine: Matrix | None
    theirs: Matrix | None
    points: bool
    """Whether the difference is one of percentage points."""
    factor: bool = False
    """Whether it is that of a logarithm."""


def compared(mine: Signs, theirs: Signs) -> tuple[Sign, ...]:
    """All signs of an arm beside the reference's."""
    return (
        Sign("more loops", "fewer loops", mine.loops, theirs.loops, True),
        Sign("more repetition", "less repetition", mine.repetition, theirs.repetition, True),
        Sign("higher distinct-1", "lower distinct-1", mine.distinct_1, theirs.distinct_1, True),
        Sign("higher distinct-2", "lower distinct-2", mine.distinct_2, theirs.distinct_2, True),
        Sign("higher distinct-3", "lower distinct-3", mine.distinct_3, theirs.distinct_3, True),
        Sign("responses more alike by self-BLEU", "responses less alike by self-BLEU",
             mine.self_bleu, theirs.self_bleu, True),
        Sign("more responses like one to another prompt", "fewer responses like one to another prompt",
             mine.twins, theirs.twins, True),
        Sign("more responses that end by themselves", "fewer responses that end by themselves",
             mine.ended, theirs.ended, True),
        Sign("longer responses", "shorter responses", mine.tokens, theirs.tokens, False),
        Sign("higher perplexity on held-out text", "lower perplexity on held-out text",
             mine.log_perplexity, theirs.log_perplexity, False, factor=True),
    )  # fmt: skip


def findings(study: Study, looked: Sequence[Looked]) -> Findings:
    """What differs from the reference, arm by arm."""
    items = []
    for one in looked:
        if one.arm.name == study.reference_name:
            continue
        reference = reference_like(study, one.point)
        if reference:
            items.append(finding(one, compared(one.signs, signs(reference))))
    return Findings("What differs from the reference?", tuple(items))


def finding(one: Looked, asked: Sequence[Sign]) -> Finding:
    """The signs whose interval, widened for their number, leaves 0 out."""
    known = [(sign, sign.mine, sign.theirs) for sign in asked]
    differences = [(sign, mine - theirs) for sign, mine, theirs in known if mine is not None and theirs is not None]
    confidence = 1 - 0.05 / max(len(differences), 1)
    told = []
    for sign, values in differences:
        found = estimate(values, f"{one.arm.name}: {sign.more}", confidence)
        if found.sign:
            told.append(f"{sign.more if found.sign > 0 else sign.less} ({amount(sign, found)})")
    if not told:
        return Finding(one.arm.title, f"No difference found in any of {len(differences)} signs.", False)
    text = listing(told)
    return Finding(one.arm.title, f"{text[0].upper()}{text[1:]}.", True)


def amount(sign: Sign, found: Estimate) -> str:
    """A difference, in the unit that a reader knows."""
    if sign.factor:
        factor = Estimate(exp(found.mean), exp(found.low), exp(found.high))
        return f"times {interval(factor)}"
    if sign.points:
        points = Estimate(100 * found.mean, 100 * found.low, 100 * found.high)
        return f"by {signed(points)} points"
    return f"by {signed(found)} tokens"


def signed(found: Estimate) -> str:
    """The size of a difference whose direction the words say.

    >>> signed(Estimate(-4.0, -5.0, -3.0))
    '4.0 [3.0, 5.0]'
    """
    size = absolute(found)
    return f"{number(size.mean, 1)} [{number(size.low, 1)}, {number(size.high, 1)}]"


# --- tables ---


def within_sheet(looked: Sequence[Looked]) -> Sheet:
    """Each response by itself."""
    columns = (
        Column("Arm", "arm"),
        Column("Ends in a loop", "percent", 1),
        Column("Repeated 4-grams", "percent", 1),
        Column("Ends by itself", "percent", 1),
        Column("Length (tokens)", "number", 1),
        Column("Perplexity on held-out text"),
    )
    rows = tuple(within(one) for one in looked)
    return Sheet(
        "degeneration-within",
        columns,
        rows,
        "Of each response by itself: more loops and repetition, fewer ends, lengths that run away, and a perplexity "
        "that rises on text that people would write are the marks of a policy that is falling apart.",
    )


def within(one: Looked) -> tuple[Value, ...]:
    """A line of that."""
    what, found, point = f"arm {one.arm.name}", one.signs, one.point
    return (
        one.arm,
        optional_share(found.loops, f"{what}: loops"),
        optional_share(found.repetition, f"{what}: repetition"),
        share(found.ended, f"{what}: end rate"),
        estimate(found.tokens, f"{what}: length").within(0.0),
        None if found.log_perplexity is None else perplexity(point.nll_nats, point.nll_tokens, f"{what}: perplexity"),
    )


def between_sheet(looked: Sequence[Looked]) -> Sheet:
    """The responses beside each other."""
    columns = (
        Column("Arm", "arm"),
        Column("Distinct-1", "percent", 1),
        Column("Distinct-2", "percent", 1),
        Column("Distinct-3", "percent", 1),
        Column("Self-BLEU", "percent", 1),
        Column("Like another's", "percent", 1),
        Column("Different responses", "percent", 1),
        Column("Most frequent response", "text"),
        Column("Its share", "percent", 1),
    )
    rows = tuple(between(one) for one in looked if one.common)
    return Sheet(
        "degeneration-between",
        columns,
        rows,
        "Of responses beside each other: few distinct words, high self-BLEU and many responses like one to another "
        "prompt say that the policy tells everyone the same.",
    )


def between(one: Looked) -> tuple[Value, ...]:
    """A line of that."""
    what, found = f"arm {one.arm.name}", one.signs
    distinct = (found.distinct_1, found.distinct_2, found.distinct_3)
    common = one.common
    return (
        one.arm,
        *(None if d is None else estimate(d, f"{what}: distinct").within(0, 1) for d in distinct),
        None if found.self_bleu is None else estimate(found.self_bleu, f"{what}: self-BLEU").within(0, 1),
        optional_share(found.twins, f"{what}: like another's"),
        one.different,
        shortened(common.response) if common and common.times > 1 else "none twice",
        common.share if common and common.times > 1 else None,
    )


def optional_share(values: Matrix | None, what: str) -> Estimate | None:
    """A share with its interval; None where it was not measured."""
    return None if values is None else share(values, what)


def shortened(text: str) -> str:
    """The beginning of a text, on one line."""
    line = " ".join(said(text).split())
    return line if len(line) <= SHOWN_CHARACTERS else line[: SHOWN_CHARACTERS - 1] + "…"


def definitions(looked: Sequence[Looked]) -> str:
    """How the figures were made."""
    prompts = max(len(one.point.prompts) for one in looked)
    return (
        "A loop: the last 6 words or more are one part of at most 16 words, said 3 times or more. Repeated 4-grams: "
        "the share of a response's runs of 4 words that it has said before (arXiv 1908.04319 §6). Distinct-n: "
        "different runs of n words / all of them (arXiv 1510.03055); it falls with the number of responses, so it "
        "compares arms, not studies. Self-BLEU: the mean BLEU-4 of each response with all others as its references "
        f"(arXiv 1802.01886), over the first {min(prompts, BLEU_PROMPTS)} prompts of each seed. Like another's: equal "
        f"to a response to another prompt up to case and punctuation, or {100 * ALIKE:.0f} % of the runs of 3 words of "
        f"both in common, over the first {min(prompts, TWIN_PROMPTS)} prompts. Intervals over prompts and seeds; where "
        "responses are compared with each other they take each one's figure as a draw of its own. Differences from "
        "the reference are paired by prompt, each interval at 1 − 0.05/m for the m signs asked of an arm "
        "(Bonferroni)."
    )


# --- length by step ---


def length_drift(study: Study) -> Drawing | None:
    """Length of responses through training, on validation prompts."""
    arms = [arm for arm in study.trained if arm.validation and not arm.kl_is_bound and arm.validation[-1].step > 0]
    if not arms:
        return None
    reference = study.reference
    start = next(iter(reference.validation), None) if reference else None
    figure, axes = sheet(7.2, 3.7)
    axes.set_xlabel("share of the arm's training, %")
    axes.set_ylabel("length of responses, tokens")
    rows: list[tuple[Value, ...]] = []
    ends, means = [], []
    for arm in arms:
        visits = visited(arm)
        shares = [100 * visit.share for visit in visits]
        lengths = [length(arm, visit.point) for visit in visits]
        if start and shares[0] > 0:
            shares, lengths = [0.0, *shares], [length(arm, start), *lengths]
        colour = colour_of(study, arm)
        if len(arms) <= BANDS:
            for place, found in zip(shares, lengths, strict=True):
                axes.plot([place, place], [found.low, found.high], color=colour, alpha=0.45, linewidth=1)
        middles = [n.mean for n in lengths]
        look: dict[str, Any] = {"color": colour, "linestyle": dash(arm), "marker": marker_of(study, arm)}
        axes.plot(shares, middles, linewidth=1.6, markersize=4.5, **look)
        ends.append((arm, 100.0, middles[-1]))
        means += middles
        rows += [(arm, place, found) for place, found in zip(shares, lengths, strict=True)]
    if reference and start:
        at = length(reference, start)
        axes.axhspan(at.low, at.high, color=INK, alpha=0.08, linewidth=0)
        axes.axhline(at.mean, color=INK, alpha=0.6, linewidth=1, linestyle=":")
        means += [at.low, at.high]
    room = max(0.4 * (max(means) - min(means)), 1.0)  # an interval of two seeds may be wider than all that it is about
    axes.set_ylim(max(min(means) - room, 0.0), max(means) + room)
    label_ends(study, axes, ends)
    axes.set_xticks([0, 25, 50, 75, 100])
    picture = Picture(
        "length-by-step",
        "Do responses grow or shrink?",
        "Mean length on validation prompts while each arm trains"
        + (", with 95 % intervals, the wide ones cut off" if len(arms) <= BANDS else "")
        + ". Dotted, with its interval in grey: the reference.",
        to_svg(figure, "length-by-step", "Length of responses through training, one curve per arm"),
    )
    columns = (
        Column("Arm", "arm"),
        Column("Share of training, %", "number", 0),
        Column("Length (tokens)", "number", 1),
    )
    data = Sheet("length-by-step", columns, tuple(rows), "Mean length on validation prompts at each checkpoint.")
    return Drawing(picture, data)


def length(arm: Arm, point: Point) -> Estimate:
    """Mean tokens of a response."""
    return estimate(point.response_tokens, f"arm {arm.name} step {point.step}: length").within(0.0)


# --- the worst ---

RULE = (
    "The worst of each arm, by rule: the response with the most repetition, one that ends in a loop before all others; "
    "and where a response came more than once, one of the most frequent. Beside it the reference's response to the "
    "same prompt."
)


def worst(study: Study, looked: Sequence[Looked]) -> Gallery:
    """The responses that `RULE` names."""
    items = []
    for one in looked:
        responses = by_prompt(one.point)
        if one.arm.name == study.reference_name or not responses:
            continue
        reference = reference_like(study, one.point)
        theirs = by_prompt(reference) if reference else None
        places = [(seed, i) for seed in range(len(responses)) for i in range(len(responses[seed]))]
        for seed, i in chosen(one, responses, places):
            sample = responses[seed][i]
            beside = ((study.reference, theirs[seed][i]),) if study.reference and theirs else ()
            items.append(Answers(sample.prompt, (*beside, (one.arm, sample))))
    return Gallery("worst-responses", tuple(items))


def chosen(
    one: Looked, responses: Sequence[Sequence[Sample]], places: Sequence[tuple[int, int]]
) -> list[tuple[int, int]]:
    """Where an arm's worst responses stand: seed and prompt."""

    def badness(place: tuple[int, int]) -> tuple[bool, float]:
        words = responses[place[0]][place[1]].response.split()
        return ends_in_loop(words), repetition(words)

    most = max(places, key=badness)
    found = [most] if badness(most) > (False, 0.0) else []
    if one.common and one.common.times > 1:
        found.append(next(p for p in places if responses[p[0]][p[1]].response == one.common.response))
    return list(dict.fromkeys(found))
