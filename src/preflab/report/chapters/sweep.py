"""What a setting does, value by value, and which one to take; and what a popular picture shows instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from preflab.report.chapter import Chapter, Column, Drawing, Finding, Findings, Part, Prose, Sheet, Value
from preflab.report.checkpoints import checkpoints
from preflab.report.figures import colour_of, logged, marker_of
from preflab.report.shares import mean_reward
from preflab.report.statistics import Estimate, estimate
from preflab.report.study import Arm, Point, Study
from preflab.report.svg import INK, STYLE, Picture, named, to_svg
from preflab.report.sweeps import (
    Sweep,
    at_chosen,
    at_end,
    changes,
    choose,
    over_all,
    sweeps,
    written,
)
from preflab.report.verdicts import MANY, absolute, seeds_in_words
from preflab.report.wording import capital, interval, listing, number

# Whose implicit reward is β times the logratio of the whole response.
BY_LOGRATIO = (
    "dpo", "cdpo", "rdpo", "hinge", "exo", "aot", "dpop", "nca", "bco-pair", "sppo", "apo-zero", "apo-down",
    "iterative-dpo",
)  # fmt: skip


def sweep(study: Study) -> Chapter | None:
    """What each varied setting does; None where the study varies none."""
    found = sweeps(study)
    if not found:
        return None
    parts: list[Part] = [
        Prose(
            "Each value was trained from the same start on the same data. The pictures show where training ended, so "
            "that every value had the same amount of it; the recommended value rests on the checkpoints that were "
            "chosen: of values whose rewards can't be told apart it takes the one with the smallest KL, where the "
            "verdicts compare the one with the most reward. All on validation prompts: the test prompts have no say. "
            "Intervals are at 95 % for each question, not corrected for the number of questions as the verdicts are."
        )
    ]
    for index, one in enumerate(found):
        name = f"sweep-{index}"
        parts += [
            Drawing(picture(study, one, name), drawn(one, name)),
            Findings(one.title, (*effect(study, one), recommendation(study, one))),
            table(study, one, f"{name}-values"),
        ]
    beside = [
        (arm, seen) for one in found if (seen := [v.arm for v in one.variants if implicit(v.arm)]) for arm in seen
    ]
    if beside:
        parts += [Prose(why(study)), circular(study, tuple(dict.fromkeys(arm.name for arm, _ in beside)))]
    return Chapter("sweep", "What a setting does", tuple(parts))


def why(study: Study) -> str:
    """What is wrong with the popular picture."""
    return (
        "A popular picture plots the implicit reward of the data set's chosen responses, β·log π/π_ref, against a "
        "“KL” that is the mean logratio of those same responses: one number on both axes, so a straight line of slope "
        "β comes out whatever the policy has learnt. KL is a mean over responses that the policy itself writes, and "
        f"how good those are is for {study.reward_name} to say: the right picture shows both, of the same arms."
    )


# --- what the setting does ---


def effect(study: Study, one: Sweep) -> tuple[Finding, ...]:
    """What the setting does to KL, and to the reward."""
    points = {variant.value: at_end(variant.arm) for variant in one.variants}
    about = written(one.setting)
    kl = falls(about, points) if one.holds_back else whole_range(about, "KL", points, "kl_nats")
    return kl, whole_range(about, study.reward_name, points, "reward")


def falls(setting: str, points: dict[float, Point]) -> Finding:
    """Whether KL falls as the setting rises, as it must: the optimum's KL falls with β (2305.18290 eq. 4)."""
    steps, overall = changes(points, "kl_nats"), over_all(points, "kl_nats")
    about = f"Does KL fall as {setting} rises?"
    if overall is None or not steps:
        return Finding(about, "Undecided: the values have no seed in common.", found=False)
    whole = f"from {setting} {overall.start:g} to {overall.end:g} KL changes by {interval(overall.by)} nats"
    rising = [step for step in steps if step.by.sign > 0]
    if rising:
        named_steps = listing([f"{s.start:g} → {s.end:g} ({interval(s.by)} nats)" for s in rising])
        answer = (
            f"No: it rises at {named_steps}. A larger {setting} should hold the policy closer to the reference; look "
            "whether those arms were trained for long enough, or diverged."
        )
        return Finding(about, answer, found=True)
    if all(step.by.sign < 0 for step in steps):
        return Finding(about, f"Yes, at every step: {whole}.", found=True)
    open_steps = listing([f"{s.start:g} → {s.end:g}" for s in steps if s.by.sign == 0])
    if overall.by.sign < 0:
        return Finding(about, f"Yes over the whole range: {whole}; undecided at {open_steps}.", found=True)
    return Finding(about, f"Undecided: {whole}.", found=False)


def whole_range(setting: str, what: str, points: dict[float, Point], of: str) -> Finding:
    """What happens to a mean from the lowest value to the highest."""
    change = over_all(points, of)
    about = f"What does {setting} do to {what}?"
    if change is None:
        return Finding(about, "Undecided: the values have no seed in common.", found=False)
    ends = f"from {setting} {change.start:g} to {change.end:g}"
    if change.by.sign == 0:
        return Finding(about, f"No difference found {ends}: {interval(change.by)}.", found=False)
    verb = "rises" if change.by.sign > 0 else "falls"
    return Finding(about, f"{capital(ends)} {what} {verb} by {interval(absolute(change.by))}.", found=True)


def recommendation(study: Study, one: Sweep) -> Finding:
    """The value to take, with the rule."""
    setting = written(one.setting)
    about = f"Which {setting}?"
    choice = choose(study, one.arms)
    if choice is None:
        return Finding(
            about, f"None can be recommended: no value's {study.choosing_name} is shown to be above the reference's.",
            found=False,
        )  # fmt: skip
    value = one.value_of(choice.arm)
    seeds = seeds_in_words(len(at_chosen(choice.arm).seeds))
    rule = (
        f"of {len(one.variants)} values, the smallest KL ({number(choice.kl_nats)} nats) among those whose "
        f"{study.choosing_name} beats the reference's and is not distinguishable from the best"
    )
    behind = (
        "it is the best itself"
        if choice.behind is None
        else f"the best, {one.value_of(choice.best):g}, is ahead by {interval(choice.behind)}, which may be nothing"
    )
    gain = f"{interval(choice.gain)} more than the reference, {seeds}"
    end = f" It lies at an end of what was tried: try values beyond {value:g}." if one.at_an_end(choice.arm) else ""
    return Finding(about, f"{setting} {value:g}: {rule}; {behind}; {gain}.{end}", found=True)


def table(study: Study, one: Sweep, name: str) -> Sheet:
    """The values with their figures, at the end of training and, where that is another, at the chosen checkpoint."""
    setting = written(one.setting)
    chosen_last = all(r.validated is r.validation[-1] for v in one.variants for r in v.arm.runs if r.validation)
    columns = [
        Column(setting, "setting"), Column("Arm", "arm"), Column("Seeds", "count"), Column("KL at the end (nats)"),
        Column("Reward at the end"),
    ]  # fmt: skip
    if not chosen_last:
        columns += [Column("KL, chosen (nats)"), Column("Reward, chosen")]
    rows: list[tuple[Value, ...]] = []
    for variant in one.variants:
        end, chosen = at_end(variant.arm), at_chosen(variant.arm)
        points = (end,) if chosen_last else (end, chosen)
        cells = [cell for point in points for cell in (kl_of(variant.arm, point), reward_of(variant.arm, point))]
        rows.append((variant.value, variant.arm, len(end.seeds), *cells))
    reading = f"{one.title}: {study.reward_name} and KL by {setting}, on validation prompts, with 95 % intervals."
    if chosen_last:
        reading += " The last checkpoint is the chosen one."
    return Sheet(name, tuple(columns), tuple(rows), reading)


def kl_of(arm: Arm, point: Point) -> Estimate:
    """KL of an arm's point."""
    return estimate(point.kl_nats, f"arm {arm.name} step {point.step}: KL").within(0.0)


def reward_of(arm: Arm, point: Point) -> Estimate:
    """Reward of an arm's point."""
    return mean_reward(point.reward, f"arm {arm.name} step {point.step}: reward")


# --- the pictures ---


def panels(height: float) -> tuple[Figure, list[Axes]]:
    """Two empty plots side by side."""
    with mpl.rc_context(STYLE | {"font.size": 10}):
        figure = Figure(figsize=(7.2, height), layout="constrained")
        figure.patch.set_alpha(0)
        both = list(figure.subplots(1, 2))
        for axes in both:
            axes.patch.set_alpha(0)
            axes.grid(color=INK, alpha=0.12, linewidth=0.6)
            axes.set_axisbelow(True)
    return figure, both


def picture(study: Study, one: Sweep, name: str) -> Picture:
    """KL and reward against the value."""
    figure, both = panels(3.0)
    setting = written(one.setting)
    origin = checkpoints(study, study.reference)[:1] if study.reference else ()
    for axes, of, label in zip(both, (kl_of, reward_of), ("KL to the reference, nats", study.reward_name), strict=True):
        axes.set_xlabel(setting)
        axes.set_ylabel(named(label))
        ends = [of(variant.arm, at_end(variant.arm)) for variant in one.variants]
        axes.plot(one.values, [e.mean for e in ends], color=INK, alpha=0.35, linewidth=1.2, zorder=2)
        for variant, end in zip(one.variants, ends, strict=True):
            colour = colour_of(study, variant.arm)
            axes.plot([variant.value] * 2, [end.low, end.high], color=colour, alpha=0.7, linewidth=1.2, zorder=2)
            axes.plot(variant.value, end.mean, marker_of(study, variant.arm), color=colour, markersize=6, zorder=3)
        at_values(axes, one)
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    for c in origin:
        both[1].axhline(c.reward.mean, color=INK, alpha=0.6, linewidth=0.9, linestyle=":")
        both[1].annotate(
            "reference", (0.99, c.reward.mean), xycoords=("axes fraction", "data"), ha="right", va="bottom", color=INK
        )
    promise = f" KL has to fall from left to right: a larger {setting} holds the policy closer to the reference."
    return Picture(
        name,
        f"{one.title}: what {setting} does",
        "A mark is one value at the end of training, with its 95 % interval, on validation prompts."
        + (promise if one.holds_back else ""),
        to_svg(figure, name, f"KL and {study.reward_name} against {setting} of {one.title}"),
    )


def at_values(axes: Axes, one: Sweep) -> None:
    """Ticks at the values themselves, evenly spread where they span a decade."""
    if one.decades:
        axes.set_xscale("log")
    axes.xaxis.set_major_locator(FixedLocator(list(one.values)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def drawn(one: Sweep, name: str) -> Sheet:
    """The numbers of the picture."""
    columns = (
        Column(written(one.setting), "setting"), Column("Arm", "arm"), Column("Step", "count"),
        Column("Seeds", "count"), Column("KL (nats)", digits=4), Column("Reward", digits=4),
    )  # fmt: skip
    rows = []
    for variant in one.variants:
        point = at_end(variant.arm)
        figures = kl_of(variant.arm, point), reward_of(variant.arm, point)
        rows.append((variant.value, variant.arm, point.step, len(point.seeds), *figures))
    return Sheet(name, columns, tuple(rows), "Each value at the end of training, on validation prompts.")


# --- the popular picture, beside the honest one ---


@dataclass(frozen=True)
class Logged:
    """One logged step of one seed, on the chosen responses of the training pairs."""

    seed: int
    step: float
    logratio_nats: float
    implicit_reward: float


def implicit(arm: Arm) -> tuple[Logged, ...]:
    """What a DPO-like arm logged of its implicit reward; none where it isn't β · logratio."""
    beta = arm.overrides.get("loss.beta", arm.settings.get("loss.beta"))
    if arm.family not in BY_LOGRATIO or not isinstance(beta, int | float) or beta <= 0:
        return ()
    seeds = [run.seed for run in arm.runs if any("chosen_reward" in entry for entry in run.metrics)]
    return tuple(
        Logged(seed, step, reward / beta, reward)
        for seed, (steps, rewards) in zip(seeds, logged(arm, "chosen_reward"), strict=False)
        for step, reward in zip(steps, rewards, strict=True)
    )


def circular(study: Study, names: Sequence[str]) -> Drawing:
    """Left what is a line by construction, right what was asked."""
    arms = [arm for arm in study.arms if arm.name in names]
    figure, (left, right) = panels(3.3)
    left.set_title("true by construction", loc="left", fontsize=10)
    left.set_xlabel("mean logratio of chosen responses, nats")
    left.set_ylabel("their implicit reward, β·logratio")
    right.set_title("measured on the policy's own responses", loc="left", fontsize=10)
    right.set_xlabel("KL to the reference, nats")
    right.set_ylabel(named(study.reward_name))
    rows: list[tuple[Value, ...]] = []
    for arm in arms:
        colour, seen = colour_of(study, arm), implicit(arm)
        x, y = np.array([(s.logratio_nats, s.implicit_reward) for s in seen]).T
        far = int(np.argmax(np.abs(x)))
        ends = np.array([min(0.0, x.min()), max(0.0, x.max())])
        left.plot(ends, ends * (y[far] / x[far] if x[far] else 0.0), color=colour, linewidth=1.2, alpha=0.8)
        left.plot(x, y, ".", color=colour, markersize=4)
        path = sorted(checkpoints(study, arm), key=lambda c: c.kl.mean)
        right.plot([c.kl.mean for c in path], [c.reward.mean for c in path], color=colour, linewidth=1.2, alpha=0.8)
        for c in path:
            right.plot([c.kl.mean] * 2, [c.reward.low, c.reward.high], color=colour, alpha=0.5, linewidth=1.0)
        right.plot(
            [c.kl.mean for c in path], [c.reward.mean for c in path], marker_of(study, arm), color=colour, markersize=5,
            label=named(arm.title),
        )  # fmt: skip
        rows += [("left", arm, s.seed, s.step, s.logratio_nats, s.implicit_reward) for s in seen]
        rows += [("right", arm, None, c.point.step, c.kl, c.reward) for c in path]
    if len(arms) <= MANY:
        right.legend(frameon=False, fontsize=9, labelcolor="linecolor", handletextpad=0.2, borderaxespad=0.2)
    columns = (
        Column("Panel", "text"), Column("Arm", "arm"), Column("Seed", "count"), Column("Step", "count"),
        Column("Logratio or KL (nats)", digits=4), Column(f"Implicit reward or {study.reward_name}", digits=4),
    )  # fmt: skip
    return Drawing(
        Picture(
            "implicit-reward",
            "A straight line that says nothing, and what was asked",
            "Left, a dot is a logged training step: every arm lies on its own line of slope β. Right, the same arms: a "
            "mark is a checkpoint on validation prompts, higher is better, further left is closer to the reference.",
            to_svg(figure, "implicit-reward", f"Implicit reward against logratio, {study.reward_name} against KL"),
        ),
        Sheet(
            "implicit-reward", columns, tuple(rows),
            "Left: logged training steps of each seed. Right: checkpoints over all seeds, on validation prompts.",
        ),
    )  # fmt: skip
