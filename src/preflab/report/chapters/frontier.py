"""What each method gets for its KL: every checkpoint, the convex frontier of each family, reward at matched KL."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
from matplotlib.axes import Axes

from preflab.report.chapter import Chapter, Column, Drawing, Part, Prose, Sheet, Value
from preflab.report.checkpoints import Checkpoint, checkpoints, measured_families, points_of, trained_points
from preflab.report.families import Family
from preflab.report.figures import above, colour_of, dots, frame_means, label_ends, line, mark_reference, root_scale
from preflab.report.frontiers import envelope_of, frontier_at, measured_range, overlap, with_reference
from preflab.report.statistics import Estimate, estimate
from preflab.report.study import Arm, Point, Study
from preflab.report.svg import Picture, named, sheet, to_svg
from preflab.report.verdicts import GRID, MANY
from preflab.report.wording import capital, number

HEAPED = 10.0
SHOWN_KL = 4  # columns of the table of reward at matched KL, at most


def frontier(study: Study) -> Chapter | None:
    """Reward against KL; None until an arm but the reference has a checkpoint."""
    found = [checkpoint for arm in study.arms for checkpoint in checkpoints(study, arm)]
    if all(checkpoint.arm.name == study.reference_name for checkpoint in found):
        return None
    groups = measured_families(study)
    parts: list[Part | None] = [
        Prose(
            f"Any method can buy {study.reward_name} with KL, by moving away from the reference. What tells methods "
            "apart is how much of it they get for the same KL."
        ),
        Drawing(picture(study, groups, found), points_sheet(study, groups, found)),
        at_matched_kl(study, groups),
        differences(study, groups),
        Prose(HOW, quiet=True),
    ]
    return Chapter("frontier", "Reward and KL", tuple(part for part in parts if part is not None))


HOW = (
    "A family's convex frontier is the upper concave envelope of the reference and all its checkpoints, of all "
    "settings tried: answering some prompts with one checkpoint and the others with another reaches every point on "
    "it. Which checkpoints make it is picked on one half of the validation prompts and the reward read on the other, "
    "and the other way round, so that more tries bring no luck. A verdict at equal KL compares the curves themselves, "
    "also where they fall below their frontier."
)


def pairs(groups: Sequence[Family]) -> list[tuple[Family, Family]]:
    """Who is compared with whom: each with each, or all with the first where they are many."""
    found = list(combinations(groups, 2))
    return found if len(groups) < MANY else [pair for pair in found if groups[0] in pair]


def differences(study: Study, groups: Sequence[Family]) -> Sheet | None:
    """By how much the frontiers differ, over the KL values that both families reached; None of fewer than two."""
    columns = (
        Column("Family", "text"), Column("Against", "text"), Column("Seeds", "count"), Column("KL from"),
        Column("KL to"), Column(f"{capital(study.reward_name)}, difference"), Column("Area between (reward · nats)"),
    )  # fmt: skip
    rows: list[tuple[Value, ...]] = []
    for a, b in pairs(groups):
        shared = overlap(study, a, b)
        cells: tuple[Value, ...] = (None,) * 5
        if shared:
            cells = (len(shared.seeds), shared.low_nats, shared.high_nats, shared.difference, shared.area)
        rows.append((a.title, b.title, *cells))
    reading = (
        "The first frontier minus the second at equal KL, the mean over the KL range that both were measured in; "
        "empty: no KL was reached by both on the same seeds. Described, not decided: each interval is at 95 % for "
        "itself, and the verdicts alone are corrected for their number."
    )
    return Sheet("frontier-differences", columns, tuple(rows), reading) if rows else None


def at_matched_kl(study: Study, groups: Sequence[Family]) -> Sheet | None:
    """The frontiers read at a few KL values, each within its measured range, and the area under them."""
    if not groups:
        return None
    ranges = [measured_range(group) for group in groups]
    low, high = min(low for low, _ in ranges), max(high for _, high in ranges)
    shown = round_values(low, high)
    common = max(low for low, _ in ranges), min(high for _, high in ranges)
    columns = [Column("Family", "text"), Column("Checkpoints", "count"), Column("KL from"), Column("KL to")]
    columns += [Column(f"at KL {x:g}") for x in shown]
    overlapping = len(groups) > 1 and common[0] < common[1]
    if overlapping:
        columns.append(Column(f"area, {number(common[0])}–{number(common[1])} nats"))
    rows = []
    for group, (least, most) in zip(groups, ranges, strict=True):
        points = with_reference(study, group_points(group))
        cells: list[Value] = [reward(points, [x], group) if least <= x <= most else None for x in shown]
        if overlapping:
            cells.append(reward(points, np.linspace(*common, GRID), group).times(common[1] - common[0]))
        rows.append((group.title, sum(len(trained_points(arm)) for arm in group.variants), least, most, *cells))
    reading = (
        f"{capital(study.reward_name)} on each family's convex frontier at the same KL, with 95 % intervals; empty "
        "where the family was not measured."
        + (" The area under it is over the KL range of all families." if overlapping else "")
    )
    return Sheet("reward-at-matched-kl", tuple(columns), tuple(rows), reading)


def round_values(low: float, high: float) -> list[float]:
    """The highest few of 1, 2, 5, 10, 20, … (and 0.5, 0.2, …) between two numbers.

    >>> round_values(0.13, 4.5), round_values(3.0, 4.5)
    ([0.2, 0.5, 1.0, 2.0], [])
    """
    series = [float(f"{digit}e{power}") for power in range(-3, 5) for digit in (1, 2, 5)]
    return [x for x in series if low <= x <= high][-SHOWN_KL:]


def group_points(group: Family) -> list[Point]:
    """The family's checkpoints of the seeds that all of them have, or of the seeds that most have."""
    held = [point.seeds for arm in group.variants for point in trained_points(arm)]
    everywhere = tuple(sorted(set(held[0]).intersection(*held[1:])))
    return points_of(group, everywhere or max(held, key=len))


def reward(points: Sequence[Point], at_kl: Sequence[float] | np.ndarray, group: Family) -> Estimate:
    """The reward on the frontier of some points, over some KL values."""
    return estimate(frontier_at(at_kl, points), f"frontier of {group.name}")


def points_sheet(study: Study, groups: Sequence[Family], found: Sequence[Checkpoint]) -> Sheet:
    """The checkpoints as the picture shows them."""
    on = {id(point) for group in groups for point in drawn_envelope(study, group)}
    columns = (
        Column("Arm", "arm"), Column("Family", "text"), Column("Step", "count"), Column("Seeds", "count"),
        Column("KL (nats)", digits=4), Column("Reward", digits=4), Column("KL is a bound", "text"),
        Column("Chosen", "text"), Column("On the frontier", "text"),
    )  # fmt: skip
    rows = tuple(
        (c.arm, c.arm.family, c.point.step, len(c.point.seeds), c.kl, c.reward, yes(c.arm.kl_is_bound), yes(c.chosen),
         yes(id(c.point) in on))
        for c in found
    )  # fmt: skip
    return Sheet("frontier", columns, rows, "Every checkpoint of every arm, on validation prompts.")


def yes(flag: bool) -> str:
    """A flag in a table."""
    return "yes" if flag else "no"


def drawn_envelope(study: Study, group: Family) -> list[Point]:
    """The frontier as drawn: picked on all prompts, from the points over all seeds that each has."""
    reference = study.reference.validation[:1] if study.reference else ()
    return envelope_of([*reference, *(point for arm in group.variants for point in trained_points(arm))])


def picture(study: Study, groups: Sequence[Family], found: Sequence[Checkpoint]) -> Picture:
    """Reward against KL: a line an arm, from the reference at KL 0; a broad pale one for each family's frontier."""
    figure, axes = sheet(7.2, 4.4)
    roots = spread(found)
    axes.set_xlabel("KL to the reference, nats per response" + (", on a √ scale" if roots else ""))
    axes.set_ylabel(named(study.reward_name))
    origin = next((c for c in found if c.arm.name == study.reference_name), None)
    by_arm = {arm.name: [c for c in found if c.arm.name == arm.name] for arm in study.trained}
    drawn = [arm for arm in study.trained if by_arm[arm.name]]
    crowded = len(drawn) > MANY
    ends = []
    for group in groups:
        shadow(axes, drawn_envelope(study, group), colour_of(study, middle(group)))
    varied = {arm.name for group in groups if len(group.variants) > 1 for arm in group.variants}
    for arm in drawn:
        path = sorted(by_arm[arm.name], key=lambda c: c.kl.mean)
        start = [origin] if origin and arm.name not in varied else []  # a bundle of rays hides the curves
        line(study, axes, arm, [c.kl for c in start + path], [c.reward for c in start + path])
        if crowded:
            axes.plot([c.kl.mean for c in path], [c.reward.mean for c in path], ".", color=colour_of(study, arm))
        else:
            dots(study, axes, arm, [c.kl for c in path], [c.reward for c in path], [c.chosen for c in path])
        ends.append((arm, path[-1].kl.mean, path[-1].reward.mean))
    frame_means(axes, [c.kl for c in found], [c.reward for c in found])
    if roots:
        root_scale(axes)
    if origin:
        mark_reference(study, axes, origin.arm, origin.kl, origin.reward)
    label_ends(study, axes, above(axes, ends))
    marks = (
        "A dot is a checkpoint, its intervals are in the data"
        if crowded
        else "A dot is a checkpoint with its 95 % intervals, pale where they leave the frame, a ring the one chosen"
    )
    return Picture(
        "frontier",
        f"{capital(study.reward_name)} against KL",
        "Higher is better, further left stays closer to the reference: of two curves the upper one buys more "
        f"reward for the same KL{' (equal steps are of √KL, so that small ones can be told apart)' if roots else ''}. "
        f"{marks}, on validation prompts; the broad pale band is a family's convex frontier"
        + (f"; a dashed curve is an oracle, which trained on {study.reward_name} itself" if oracles(drawn) else "")
        + ("; a dotted one (≤ KL) has no measured KL but an upper bound." if bounds(drawn) else "."),
        to_svg(figure, "frontier", f"{study.reward_name} against KL, one curve per arm"),
    )


def oracles(arms: Sequence[Arm]) -> bool:
    """Whether one of them sees the gold reward."""
    return any(arm.oracle for arm in arms)


def bounds(arms: Sequence[Arm]) -> bool:
    """Whether the KL of one of them is a bound."""
    return any(arm.kl_is_bound for arm in arms)


def spread(found: Sequence[Checkpoint]) -> bool:
    """Whether one arm goes so much further than most that these would lie in a heap on a linear axis: the largest KL is
    more than 10 times the median of the arms' largest. Else the axis is linear, on which a convex frontier looks it."""
    farthest: dict[str, float] = {}
    for c in found:
        if c.point.step > 0:
            farthest[c.arm.name] = max(c.kl.mean, farthest.get(c.arm.name, 0.0))
    return max(farthest.values(), default=0.0) > HEAPED * float(np.median(list(farthest.values()) or [0.0]))


def middle(group: Family) -> Arm:
    """The arm whose colour stands for the family: the middle one of its shades."""
    return group.variants[len(group.variants) // 2]


def shadow(axes: Axes, points: Sequence[Point], colour: str) -> None:
    """A family's frontier, below its arms' lines."""
    kl, reward = ([float(m.mean()) for m in ms] for ms in zip(*((p.kl_nats, p.reward) for p in points), strict=True))
    between = np.linspace(kl[0], kl[-1], 500)  # a mix of two points is straight in KL, and bent on a √ scale
    axes.plot(
        between, np.interp(between, kl, reward), color=colour, linewidth=7, alpha=0.2, solid_capstyle="round", zorder=1
    )
