"""What a nat of KL buys."""

from __future__ import annotations

from collections.abc import Sequence

from preflab.report.chapter import Chapter, Column, Drawing, Sheet
from preflab.report.figures import dots, label_ends, line, mark_reference, reference_curve, trained_curves
from preflab.report.measures import Curve, curves
from preflab.report.study import Study
from preflab.report.svg import Picture, named, sheet, to_svg


def frontier(study: Study) -> Chapter | None:
    """Reward against KL, a curve per arm."""
    found = curves(study)
    if not trained_curves(study, found):
        return None
    rows = tuple(
        (curve.arm, float(step), m.kl, m.reward, "yes" if step in curve.arm.chosen_steps else "no")
        for curve in found
        for step, m in zip(curve.steps, curve.measures, strict=True)
    )
    columns = (
        Column("Arm", "arm"),
        Column("Step", "count"),
        Column("KL, nats"),
        Column(study.reward_name),
        Column("Chosen", "text"),
    )
    data = Sheet("frontier", columns, rows, "A row for each checkpoint, on validation prompts.")
    return Chapter("frontier", "What a nat of KL buys", (Drawing(picture(study, found), data),))


def picture(study: Study, curves: Sequence[Curve]) -> Picture:
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
