"""What the arms cost, what reward they bought for it, and two popular claims, measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log10

from preflab.report.chapter import Chapter, Column, Drawing, Finding, Findings, Part, Prose, Sheet, Value
from preflab.report.costs import Ratio, Reached, mean_spent, ratio_of, reached, share_of_gain
from preflab.report.duels import same_ground
from preflab.report.figures import colour_of, label_ends, marker_of
from preflab.report.shares import mean_reward
from preflab.report.statistics import ROUNDING, Estimate, estimate
from preflab.report.study import Arm, Study
from preflab.report.svg import INK, Picture, named, sheet, to_svg
from preflab.report.verdicts import mean_cost
from preflab.report.visits import visited
from preflab.report.wording import capital, count, duration, interval, number

MOST = 0.8
"""The share of the best arm's gain that is asked for."""
FASTER, AS_GOOD = 3.0, 0.9
"""The popular claims: DPO is so many times as fast as PPO, and gets so much of its gain."""
CLOSE = 1.15
"""Ticks of an axis of costs are 1, 2 and 5; where they lie within this factor of its ends, they are left out."""


def cost(study: Study) -> Chapter | None:
    """The chapter; None before an arm has finished, as costs are written then."""
    finished = [arm for arm in study.trained if mean_cost(arm, "wall_seconds") is not None]
    if not finished:
        return None
    parts: list[Part] = [cost_sheet(study, finished)]
    shared = sum(seconds for _, seconds in study.stages)
    if shared:
        parts.append(Prose(f"Stages that arms share took {duration(shared)} in all: they are made once.", quiet=True))
    parts += [
        drawing
        for name, axis, write in (
            ("wall_seconds", "seconds of training, reward model included", duration),
            ("flops", "floating-point operations, reward model included", count),
        )
        if (drawing := pareto(study, finished, name, axis, write))
    ]
    if any(arm.kl_is_bound for arm in finished):
        parts.append(
            Prose(
                "Best of n trains nothing and pays anew for every prompt; its costs are those of the test prompts, so "
                "the pictures leave it out.",
                quiet=True,
            )
        )
    timed = seconds_to_reward(study, finished)
    if timed:
        parts.append(timed)
    claims = popular_claims(study)
    if claims.items:
        parts.append(claims)
    return Chapter("cost", "What did it cost?", tuple(parts))


def cost_sheet(study: Study, arms: Sequence[Arm]) -> Sheet:
    """Every cost of every arm, the mean over seeds."""
    columns = (
        Column("Arm", "arm"),
        Column("Training", "seconds"),
        Column("Without the reward model", "seconds"),
        Column("Trained tokens", "count"),
        Column("Generated tokens", "count"),
        Column("Reward calls", "count"),
        Column("Gold calls", "count"),
        Column("FLOPs", "count"),
        Column("Peak memory", "bytes"),
    )
    counted = ("trained_tokens", "generated_tokens", "reward_calls", "gold_calls", "flops", "peak_memory_bytes")
    rows: list[tuple[Value, ...]] = []
    for arm in arms:
        parts = mean_spent(study, arm, "wall_seconds")
        without = parts.before + parts.own if parts else None
        rows.append((arm, mean_cost(arm, "wall_seconds"), without, *(mean_cost(arm, name) for name in counted)))
    return Sheet(
        "cost",
        columns,
        tuple(rows),
        "Means over seeds, of peak memory the largest. An arm that is paid by the reward model, or whose values "
        "start as it, is charged its training, which the third column leaves out; a chain is charged its first stages. "
        "Evaluation is not counted.",
    )


# --- reward for cost ---


def pareto(study: Study, arms: Sequence[Arm], name: str, axis: str, write: Callable[[float], str]) -> Drawing | None:
    """Reward on test prompts against a cost, with the arms ringed that none was shown to beat for less."""
    priced = [(arm, price) for arm in arms if not arm.kl_is_bound and (price := mean_cost(arm, name) or 0.0) > 0]
    bought = [(arm, price, reward) for arm, price in priced if (reward := final_reward(arm))]
    if len(bought) < 2:
        return None
    undominated = {arm.name for arm, price in priced if not dominated(study, arm, price, priced)}
    figure, axes = sheet(7.2, 3.9)
    axes.set_xlabel(axis)
    axes.set_ylabel(named(study.reward_name))
    reference = final_reward(study.reference) if study.reference else None
    if reference:
        axes.axhspan(reference.low, reference.high, color=INK, alpha=0.07, linewidth=0)
        axes.axhline(reference.mean, color=INK, alpha=0.6, linewidth=1, linestyle=":")
    for arm, price, reward in bought:
        colour, x = colour_of(study, arm), log10(price)
        face = "none" if arm.oracle else colour
        axes.plot([x, x], [reward.low, reward.high], color=colour, alpha=0.55, linewidth=1.2, zorder=2)
        axes.plot(x, reward.mean, marker_of(study, arm), color=colour, markerfacecolor=face, markersize=6, zorder=3)
        if arm.name in undominated:
            axes.plot(x, reward.mean, "o", color="none", markeredgecolor=colour, markersize=13, markeredgewidth=1.3)
    means = [reward.mean for *_, reward in bought] + ([reference.mean] if reference else [])
    room = 0.5 * (max(means) - min(means)) or 1.0  # an interval of two seeds may be wider than all that it is about
    axes.set_ylim(min(means) - room, max(means) + room)
    prices = [price for _, price, _ in bought]
    low, high = min(prices), max(prices)
    axes.set_xlim(log10(low) - 0.08 - 0.05 * log10(high / low), log10(high) + 0.08)
    label_ends(study, axes, [(arm, log10(price), reward.mean) for arm, price, reward in bought])
    if reference:
        place = axes.get_xlim()[1], reference.mean
        axes.annotate("reference", place, (-2, -3), textcoords="offset points", ha="right", va="top", alpha=0.8)
    marks = ticks(*(10.0**end for end in axes.get_xlim()))
    axes.set_xticks([log10(mark) for mark in marks], [write(mark).replace(".00 ", " ") for mark in marks])
    what = "seconds" if name == "wall_seconds" else name
    picture = Picture(
        f"reward-by-{what}",
        f"{capital(study.reward_name)} against {'time' if name == 'wall_seconds' else 'computation'}",
        "Up and to the left is better. A ring: no other arm that costs as much or less was shown to get more reward on "
        "the same prompts (oracles don't count). Hollow: an oracle. Lines are 95 % intervals, cut off where they are "
        "wide; the axis of costs is logarithmic.",
        to_svg(figure, f"reward-by-{what}", f"{study.reward_name} of each arm against what it cost"),
    )
    columns = (
        Column("Arm", "arm"),
        Column(axis[0].upper() + axis[1:], "seconds" if name == "wall_seconds" else "count"),
        Column(capital(study.reward_name)),
        Column("Not dominated", "text"),
    )
    rows = tuple((arm, price, reward, "yes" if arm.name in undominated else "no") for arm, price, reward in bought)
    return Drawing(
        picture, Sheet(f"reward-by-{what}", columns, rows, "The mean cost over seeds and the reward it bought.")
    )


def final_reward(arm: Arm) -> Estimate | None:
    """Reward of the chosen checkpoint; None while there is none."""
    point = arm.final
    return mean_reward(point.reward, f"reward of {arm.name}") if point and len(point.prompts) > 1 else None


def dominated(study: Study, arm: Arm, price: float, priced: Sequence[tuple[Arm, float]]) -> bool:
    """Whether another arm costs no more and was shown to get more reward, prompt by prompt."""
    for other, asked in priced:
        if other is arm or other.oracle or asked > price:
            continue
        ground = same_ground(study, other, arm)
        if ground and len(ground[0].prompts) > 1:
            difference = ground[0].reward - ground[1].reward
            if estimate(difference, f"reward of {other.name} − {arm.name}").sign > 0:
                return True
    return False


def ticks(low: float, high: float) -> list[float]:
    """Round numbers between two ends: 1, 2, 5 a decade, and only the powers of ten where those are four or more.

    >>> ticks(7.0, 130.0)
    [10.0, 20.0, 50.0, 100.0]
    """
    decades = range(floor(log10(low)), floor(log10(high)) + 1)
    places = [digit * 10.0**decade for decade in decades for digit in (1, 2, 5)]
    inside = [place for place in places if low * CLOSE <= place <= high / CLOSE]
    tens = [place for place in inside if log10(place) == round(log10(place))]
    return tens if len(tens) > 3 else inside


# --- seconds to a reward ---


def seconds_to_reward(study: Study, arms: Sequence[Arm]) -> Sheet | None:
    """When each arm got as far as the weakest one got at its best, and most of the way that the best one went."""
    origin = next(iter(study.reference.validation), None) if study.reference else None
    trained = [arm for arm in arms if not arm.kl_is_bound and visited(arm)]
    best = {arm.name: max(float(v.point.reward.mean()) for v in visited(arm)) for arm in trained}
    rivals = [best[arm.name] for arm in trained if not arm.oracle]
    if origin is None or len(trained) < 2 or not rivals:
        return None
    start = float(origin.reward.mean())
    gain = max(rivals) - start
    if gain <= 0:
        return None
    weakest, most = min(rivals), start + MOST * gain
    asked = ([weakest] if weakest > start else []) + [most]
    columns = [Column("Arm", "arm")]
    for level in asked:
        what = "the weakest arm's best" if level == weakest else f"{100 * MOST:.0f} % of the best gain"
        columns += [Column(f"To {what} ({number(level)}), at most", "seconds"), Column("More than", "seconds")]
    rows = tuple((arm, *(end for level in asked for end in span(reached(study, arm, level)))) for arm in trained)
    return Sheet(
        "seconds-to-reward",
        tuple(columns),
        rows,
        "Seconds of training until the first checkpoint whose mean reward on validation prompts is that high, and "
        "until the one before it; empty: never, or not known. The reward model and the first stages of a chain come "
        "first. By means over seeds, without intervals: small differences mean nothing. Between checkpoints seconds "
        "follow what rounds logged, else the share of steps.",
    )


def span(found: Reached | None) -> tuple[float | None, float | None]:
    """The seconds between which a reward was reached."""
    return (found.seconds, found.not_before) if found else (None, None)


# --- popular claims ---


def popular_claims(study: Study) -> Findings:
    """ "DPO is about 3× faster" and "90 % of PPO's performance", where DPO and PPO are arms."""
    dpo, ppo = (first_of(study, method) for method in ("dpo", "ppo"))
    items: list[Finding] = []
    if dpo and ppo:
        items += [*speed(study, dpo, ppo), *performance(study, dpo, ppo)]
    return Findings("Two popular claims, measured here", tuple(items))


def first_of(study: Study, method: str) -> Arm | None:
    """The arm of a method by itself, without a gold reward; the plain one before its variants."""
    found = [arm for arm in study.trained if arm.name.split("@")[0] == method and not arm.oracle]
    return min(found, key=lambda arm: arm.name != method, default=None)


def speed(study: Study, dpo: Arm, ppo: Arm) -> list[Finding]:
    """How many times as long PPO took."""
    whole = ratio_of(study, ppo, dpo, lambda part: part.whole, "wall_seconds")
    if whole is None:
        return []
    without = ratio_of(study, ppo, dpo, lambda part: part.before + part.own, "wall_seconds")
    work = ratio_of(study, ppo, dpo, lambda part: part.whole, "flops")
    said = f"{ppo.title} took {times(whole)} as long as {dpo.title} with its reward model's training"
    if without:
        said += f", {times(without)} without"
    if work:
        said += f", and did {times(work)} as many operations with it"
    about = f"“DPO is about {FASTER:.0f} times as fast”"
    return [
        Finding(
            about,
            f"{judged(whole.interval, FASTER, 'times')}: {said}. {seconds_speak_for(whole)}",
            whole.interval is not None,
        )
    ]


def times(ratio: Ratio) -> str:
    """A ratio in words.

    >>> times(Ratio(2.5, None)), times(Ratio(2.5, Estimate(2.5, 2.0, 3.1)))
    ('2.5 times', '2.5 [2.0, 3.1] times')
    """
    return f"{number(ratio.mean, 1) if ratio.interval is None else interval(ratio.interval, 1)} times"


def judged(found: Estimate | None, claim: float, unit: str) -> str:
    """What an interval allows to say of a claim.

    >>> judged(Estimate(2.0, 1.5, 2.5), 3.0, "times"), judged(None, 3.0, "times")
    ('Less here', 'Undecided, one seed has no interval')
    """
    if found is None:
        return "Undecided, one seed has no interval"
    if found.low - ROUNDING <= claim <= found.high + ROUNDING:
        return f"Not contradicted, the interval holds {number(claim, 0)} {unit}"
    return "Less here" if found.high < claim else "More here"


def seconds_speak_for(ratio: Ratio) -> str:
    """How far seconds reach."""
    return "Seconds speak for this machine, these sizes and these settings" + (
        "." if ratio.interval is None else ", the intervals for other seeds."
    )


def performance(study: Study, dpo: Arm, ppo: Arm) -> list[Finding]:
    """What share of PPO's gain DPO gets."""
    about = f"“{100 * AS_GOOD:.0f} % of PPO's performance”"
    if same_ground(study, dpo, ppo) is None or study.reference is None:
        return []
    share = share_of_gain(study, dpo, ppo)
    if share is None:
        answer = (
            f"Undecided: {ppo.title}'s gain over the reference is not shown, so there is nothing to take a share of."
        )
        return [Finding(about, answer, False)]
    percent = Estimate(100 * share.mean, 100 * share.low, 100 * share.high)
    answer = (
        f"{judged(percent, 100 * AS_GOOD, '%')}: {dpo.title} gets {interval(percent, 0)} % of the "
        f"{study.reward_name} that {ppo.title} gains over the reference, each at its chosen checkpoint, whatever "
        "KL that took (Fieller's interval, paired by prompt and seed)."
    )
    return [Finding(about, answer, True)]
