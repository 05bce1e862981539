"""Whether training went too far: proxy and gold reward against √KL, Gao et al.'s curves, and where to stop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preflab.report.chapter import Chapter, Column, Drawing, Finding, Findings, Part, Prose, Sheet, Value
from preflab.report.checkpoints import Checkpoint, checkpoints
from preflab.report.figures import above, colour_of, dash, dots, frame_means, label_ends, line, mark_reference
from preflab.report.fits import LEAST, NO_KL_NATS, SPAN, Fit, fit
from preflab.report.statistics import Estimate, Matrix, estimate
from preflab.report.study import Arm, Point, Study
from preflab.report.svg import INK, STYLE, Picture, named, sheet, to_svg
from preflab.report.verdicts import reference_like, seeds_in_words
from preflab.report.wording import capital, interval, listing, number

Reward = Literal["gold", "proxy"]


@dataclass(frozen=True)
class Gain:
    """One checkpoint's rewards above the reference's, on the same prompts."""

    point: Point
    kl: Estimate
    gold: Estimate
    proxy: Estimate | None


@dataclass(frozen=True)
class Course:
    """An arm from the reference on."""

    arm: Arm
    gains: tuple[Gain, ...]
    """Checkpoints with a KL above 0 and the same seeds, by KL."""
    gold: Fit | None
    proxy: Fit | None


def over_optimisation(study: Study) -> Chapter | None:
    """Proxy and gold through training; None without a reference, or where no arm has a proxy reward."""
    courses = [course(study, arm) for arm in study.trained if arm.validation] if study.reference else []
    if not any(gain.proxy for one in courses for gain in one.gains):
        return None
    fitted = [one for one in courses if one.gold]
    parts: list[Part] = [
        Prose(
            f"The {study.proxy_name} (proxy) stands in for {study.reward_name}, which is what is wanted. Where "
            f"{study.reward_name} falls while the proxy goes on rising, the proxy is being exploited: that is "
            "over-optimisation, and the place to stop is before it."
        )
    ]
    if fitted:
        parts += [
            Drawing(against_root_kl(study, fitted), points_sheet(study, fitted)),
            Findings("Where to stop", tuple(advice(study, one, one.gold) for one in fitted if one.gold)),
            fits_sheet(study, fitted),
            Prose(HOW, quiet=True),
        ]
    few = [f"{one.arm.title} ({len(one.gains)})" for one in courses if not one.gold]
    if few:
        parts.append(
            Prose(
                f"No curve: {listing(few)}. A curve needs {LEAST} checkpoints of the same seeds with KL above 0, not "
                "all alike; their number is in brackets.",
                quiet=True,
            )
        )
    parts.append(Drawing(proxy_against_gold(study), proxy_sheet(study)))
    return Chapter("over-optimisation", "Too far?", tuple(parts))


HOW = (
    "The curves are those of Gao, Schulman and Hilton (arXiv 2210.10760): with d = √KL and R the reward above the "
    "reference's, R = d (α − β d) for best of n and R = d (α − β log d) for training, by least squares through the "
    "checkpoints, with intervals over seeds and prompts. A peak is named only where it lies between checkpoints and "
    f"the curve's slope at the last one is shown to be below 0, and where the largest KL is at least {SPAN:g} "
    "times the smallest; its interval holds every KL at which the slope may be 0. Nothing is said from a curve that "
    "misses its checkpoints by more than their noise. Each interval is at 95 % for itself; whether the proxy misled is "
    "among the verdicts, which are corrected for their number."
)


def course(study: Study, arm: Arm) -> Course:
    """An arm's checkpoints of the seeds that its first one has (all of them, once the study is complete)."""
    moved = [point for point in arm.validation if point.kl_nats.mean() > NO_KL_NATS]
    seeds = tuple(sorted(set(moved[0].seeds).intersection(*(p.seeds for p in moved)))) if moved else ()
    points = sorted((p.of_seeds(seeds) for p in moved if seeds), key=lambda point: float(point.kl_nats.mean()))
    start = reference_like(study, points[0]) if points else None
    if start is None:
        return Course(arm, (), None, None)
    gains = tuple(gain(arm, point, start) for point in points)
    form: Literal["best of n", "training"] = "best of n" if arm.kl_is_bound else "training"
    kl = [point.kl_nats for point in points]
    gold = fit(form, kl, [point.reward - start.reward for point in points])
    known = [found for point in points if (found := proxy_gain(point, start)) is not None]
    return Course(arm, gains, gold, fit(form, kl, known) if len(known) == len(points) else None)


def gain(arm: Arm, point: Point, start: Point) -> Gain:
    """A checkpoint against the reference."""
    where = f"arm {arm.name} step {point.step}"
    proxy = proxy_gain(point, start)
    return Gain(
        point,
        kl=estimate(point.kl_nats, f"{where}: KL").within(0.0),
        gold=estimate(point.reward - start.reward, f"{where}: reward − reference"),
        proxy=None if proxy is None else estimate(proxy, f"{where}: proxy reward − reference"),
    )


def proxy_gain(point: Point, start: Point) -> Matrix | None:
    """The proxy reward above the reference's, where both have one."""
    if point.proxy_reward is None or start.proxy_reward is None:
        return None
    return point.proxy_reward - start.proxy_reward


def advice(study: Study, one: Course, gold: Fit) -> Finding:
    """Where to stop, or that nothing says so."""
    arm, far = one.arm, one.gains[-1]
    about, reached = arm.title, f"{number(float(far.kl.mean))} nats"
    runs = seeds_in_words(len(far.point.seeds))
    if gold.missed:
        where = listing([step(arm, one.gains[i].point) for i in gold.missed])
        return Finding(
            about, f"Undecided: the curve doesn't fit, it misses {where} by more than noise ({runs}).", found=False
        )
    end, top = gold.slope(float(gold.d[-1])), gold.peak
    per_nat = 1 / (2 * float(gold.d[-1]))  # dR/dKL = R'(d) / 2d
    slope = interval(Estimate(end.mean * per_nat, end.low * per_nat, end.high * per_nat))
    at_end = f"its slope at {reached} is {slope} per nat, {runs}"
    rises = proxy_rises(one, top.mean if top and end.sign < 0 else None)
    if end.sign == 0:
        return Finding(
            about, f"Undecided: at the largest KL, {study.reward_name} may rise or fall: {at_end}.", found=False
        )
    if end.sign > 0:
        proxy = "the proxy too" if rises else "whether the proxy does is undecided"
        return Finding(
            about, f"No over-optimisation seen up to {reached}: {study.reward_name} still rises, {proxy}; {at_end}.",
            found=True,
        )  # fmt: skip
    if not gold.wide:
        least = number(float(gold.d[0]) ** 2)
        return Finding(
            about, f"Undecided: {study.reward_name} falls, but checkpoints from {least} to {reached} span too little "
            f"KL to say where to stop, which takes {SPAN:g} times the smallest; {at_end}.",
            found=False,
        )  # fmt: skip
    kind = (
        f"over-optimised: past it {study.reward_name} falls while the proxy goes on rising"
        if rises
        else f"past it {study.reward_name} falls; that the proxy still rises is not shown"
    )
    if top is None:
        return Finding(
            about, f"Stop before KL ≈ {number(float(gold.d[0]) ** 2)} nats, the first checkpoint: {study.reward_name} "
            f"falls from there on; {at_end}.",
            found=True,
        )  # fmt: skip
    kl = Estimate(top.mean**2, top.low**2, top.high**2)
    nearest = min(one.gains, key=lambda gain: abs(gain.kl.mean - kl.mean))
    return Finding(
        about, f"Stop here: KL ≈ {interval(kl)} nats ({step(arm, nearest.point)} is nearest); {kind}; {at_end}.",
        found=True,
    )  # fmt: skip


def proxy_rises(one: Course, peak: float | None) -> bool:
    """Whether the proxy was shown to rise up to the last checkpoint: from the one before the gold reward's peak (in
    √nats), else from the first."""
    before = [gain for gain in one.gains if peak is None or gain.kl.mean**0.5 <= peak]
    since, last = before[-1 if peak else 0].point.proxy_reward, one.gains[-1].point.proxy_reward
    return since is not None and last is not None and estimate(last - since, f"proxy of {one.arm.name}").sign > 0


def step(arm: Arm, point: Point) -> str:
    """A checkpoint in words: best of n has no steps but an n."""
    return f"n = {point.step}" if arm.kl_is_bound else f"step {point.step}"


def fits_sheet(study: Study, fitted: Sequence[Course]) -> Sheet:
    """The curves' coefficients."""
    columns = (
        Column("Arm", "arm"), Column("Reward", "text"), Column("Curve", "text"), Column("Checkpoints", "count"),
        Column("α"), Column("β"), Column("R²"), Column("Peak at KL (nats)"),
    )  # fmt: skip
    rows = []
    for one in fitted:
        for reward, found in ((study.reward_name, one.gold), ("proxy", one.proxy)):
            if found is None:
                continue
            curve = "d (α − β d)" if found.form == "best of n" else "d (α − β log d)"
            top = found.peak if not found.missed else None
            peak: Value = "not reached" if top is None else Estimate(top.mean**2, top.low**2, top.high**2)
            if not found.wide:
                peak = "too little KL spanned"
            if found.missed:
                peak = "the curve doesn't fit"
            rows.append((one.arm, reward, curve, len(found.d), found.alpha, found.beta, found.r_squared, peak))
    reading = "The fitted curves, d = √KL: α is the reward that the first √nat buys, β how fast the curve bends down."
    return Sheet("over-optimisation-fits", columns, tuple(rows), reading)


# --- pictures ---


def against_root_kl(study: Study, fitted: Sequence[Course]) -> Picture:
    """Two plots, one below the other: the proxy and the gold reward against √KL, checkpoints and curves."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(7.2, 6.2), layout="constrained")
        figure.patch.set_alpha(0)
        upper, lower = figure.subplots(2, 1)
    with_proxy = [one for one in fitted if one.proxy]
    for axes, courses, reward in ((upper, with_proxy, "proxy"), (lower, fitted, "gold")):
        axes.patch.set_alpha(0)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
        axes.set_ylabel(named(f"{study.proxy_name if reward == 'proxy' else study.reward_name} gained"))
        axes.axhline(0, color=INK, alpha=0.35, linewidth=0.8)
        draw(study, axes, courses, "proxy" if reward == "proxy" else "gold")
    lower.set_xlabel("√KL to the reference, √nats")
    upper.set_title("the proxy", loc="left", fontsize=11)
    lower.set_title("what is wanted", loc="left", fontsize=11)
    return Picture(
        "over-optimisation",
        "How far did training pay?",
        "Both rewards above the reference's, on validation prompts: marks are checkpoints with their 95 % intervals, "
        "lines the fitted curves, dotted for best of n. Training moves to the right; a curve that comes down below "
        "while its twin above still climbs is over-optimised. A ring is a peak that was shown.",
        to_svg(figure, "over-optimisation", f"Proxy and {study.reward_name} against √KL, with fitted curves"),
    )


def draw(study: Study, axes: Axes, courses: Sequence[Course], reward: Reward) -> None:
    """One of the two plots."""
    ends, shown = [], []
    for one in courses:
        found = one.gold if reward == "gold" else one.proxy
        values = [gain.gold if reward == "gold" else gain.proxy for gain in one.gains]
        if found is None:
            continue
        colour = colour_of(study, one.arm)
        d = np.linspace(1e-3, float(found.d[-1]), 200)
        axes.plot(d, found.at(d), color=colour, linewidth=1.6, linestyle=dash(one.arm), zorder=2)
        pairs = [(gain, value) for gain, value in zip(one.gains, values, strict=True) if value]
        roots = [Estimate(*(x**0.5 for x in (g.kl.mean, g.kl.low, g.kl.high))) for g, _ in pairs]
        marks = [value for _, value in pairs]
        dots(study, axes, one.arm, roots, marks, [False] * len(marks))
        top = found.peak if reward == "gold" and not found.missed else None
        if top:
            height = float(found.at([top.mean])[0])
            axes.plot(top.mean, height, "o", color="none", markeredgecolor=colour, markersize=12, markeredgewidth=1.3)
        shown += list(zip(roots, marks, strict=True))
        ends.append((one.arm, roots[-1].mean, float(found.at(found.d[-1:])[0])))
    if shown:
        zero = Estimate(0.0, 0.0, 0.0)
        frame_means(axes, [zero, *(x for x, _ in shown)], [zero, *(y for _, y in shown)])
    label_ends(study, axes, above(axes, ends))


def points_sheet(study: Study, fitted: Sequence[Course]) -> Sheet:
    """What the picture shows."""
    wanted = capital(study.reward_name)
    columns = (
        Column("Arm", "arm"), Column("Step", "count"), Column("Seeds", "count"), Column("√KL (√nats)", digits=4),
        Column("KL (nats)", digits=4), Column(f"{wanted} gained", digits=4),
        Column(f"{wanted}, fitted", digits=4),
        Column("Proxy gained", digits=4), Column("Proxy, fitted", digits=4),
    )  # fmt: skip
    rows = []
    for one in fitted:
        for gain in one.gains:
            root = gain.kl.mean**0.5
            gold, proxy = (None if f is None else float(f.at([root])[0]) for f in (one.gold, one.proxy))
            rows.append(
                (one.arm, gain.point.step, len(gain.point.seeds), root, gain.kl, gain.gold, gold, gain.proxy, proxy)
            )
    return Sheet("over-optimisation", columns, tuple(rows), "Rewards above the reference's, on validation prompts.")


def with_proxy(study: Study, arm: Arm) -> list[Checkpoint]:
    """The arm's checkpoints that have a proxy reward."""
    return [checkpoint for checkpoint in checkpoints(study, arm) if checkpoint.proxy]


def proxy_against_gold(study: Study) -> Picture:
    """Gold reward against proxy reward through the checkpoints of each arm."""
    figure, axes = sheet(7.2, 3.9)
    axes.set_xlabel(named(f"{study.proxy_name} (proxy)"))
    axes.set_ylabel(named(study.reward_name))
    start = with_proxy(study, study.reference)[:1] if study.reference else []
    paths = [(arm, path) for arm in study.trained if (path := with_proxy(study, arm))]
    for arm, path in paths:
        route = [(c.proxy, c.reward) for c in [*start, *path] if c.proxy]
        line(study, axes, arm, [proxy for proxy, _ in route], [gold for _, gold in route])
        own = [(c.proxy, c.reward, c.chosen) for c in path if c.proxy]
        dots(study, axes, arm, [p for p, _, _ in own], [g for _, g, _ in own], [chosen for *_, chosen in own])
    drawn = [(c.proxy, c.reward) for c in [*start, *(c for _, path in paths for c in path)] if c.proxy]
    frame_means(axes, [proxy for proxy, _ in drawn], [gold for _, gold in drawn])
    for c in start:
        if c.proxy:
            mark_reference(study, axes, c.arm, c.proxy, c.reward)
    ends = [(arm, path[-1].proxy.mean, path[-1].reward.mean) for arm, path in paths if path[-1].proxy]
    label_ends(study, axes, above(axes, ends))
    return Picture(
        "proxy",
        f"Does the {study.proxy_name} tell the truth?",
        "Training moves along a curve from the reference. Up and to the right: both rewards rise. To the right and "
        f"down: the proxy is being exploited, it rises while {study.reward_name} falls.",
        to_svg(figure, "proxy", f"{study.reward_name} against {study.proxy_name} through training"),
    )


def proxy_sheet(study: Study) -> Sheet:
    """What that picture shows."""
    columns = (
        Column("Arm", "arm"), Column("Step", "count"), Column("Seeds", "count"), Column("Proxy reward", digits=4),
        Column(capital(study.reward_name), digits=4), Column("KL (nats)", digits=4),
    )  # fmt: skip
    rows = tuple(
        (c.arm, c.point.step, len(c.point.seeds), c.proxy, c.reward, c.kl)
        for arm in study.arms
        for c in with_proxy(study, arm)
    )
    return Sheet("proxy", columns, rows, "Every checkpoint with a proxy reward, on validation prompts.")
