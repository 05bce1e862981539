"""Does the reward that training saw tell the truth?"""

from __future__ import annotations

from collections.abc import Sequence

from preflab.report.chapter import Chapter, Column, Drawing, Prose, Sheet
from preflab.report.figures import dots, label_ends, line, mark_reference, reference_curve, trained_curves
from preflab.report.measures import Curve, curves
from preflab.report.study import Study
from preflab.report.svg import Picture, named, sheet, to_svg


def proxy(study: Study) -> Chapter | None:
    """Gold reward against proxy reward; None where no arm has a proxy's reward."""
    found = curves(study)
    if not any(m.proxy_reward for curve in trained_curves(study, found) for m in curve.measures):
        return None
    rows = tuple(
        (curve.arm, float(step), m.proxy_reward, m.reward)
        for curve in found
        for step, m in zip(curve.steps, curve.measures, strict=True)
    )
    columns = (
        Column("Arm", "arm"),
        Column("Step", "count"),
        Column(f"{study.proxy_name} (proxy)"),
        Column(study.reward_name),
    )
    data = Sheet("proxy", columns, rows, "A row for each checkpoint, on validation prompts.")
    drawn = proxy_against_gold(study, found)
    named_so = f"{study.proxy_name[:1].upper()}{study.proxy_name[1:]}: {study.proxy_explanation}"
    return Chapter("proxy", drawn.title, (Drawing(drawn, data), Prose(named_so, quiet=True)))


def proxy_against_gold(study: Study, curves: Sequence[Curve]) -> Picture:
    """Gold reward against proxy reward through the checkpoints of each arm."""
    figure, axes = sheet(7.2, 3.9)
    axes.set_xlabel(named(f"{study.proxy_name} (proxy)"))
    axes.set_ylabel(named(study.reward_name))
    origin = reference_curve(study, curves)
    start = [m for m in (origin.measures if origin else ()) if m.proxy_reward][:1]
    ends = []
    for curve in trained_curves(study, curves):
        path = [(m, s) for m, s in zip(curve.measures, curve.steps, strict=True) if m.proxy_reward]
        if not path:
            continue
        proxy, gold = [m.proxy_reward for m, _ in path if m.proxy_reward], [m.reward for m, _ in path]
        before = [m.proxy_reward for m in start if m.proxy_reward]
        line(study, axes, curve.arm, before + proxy, [m.reward for m in start] + gold)
        dots(study, axes, curve.arm, proxy, gold, [step in curve.arm.chosen_steps for _, step in path])
        ends.append((curve.arm, proxy[-1].high, gold[-1].mean))
    if origin and start and start[0].proxy_reward:
        mark_reference(study, axes, origin.arm, start[0].proxy_reward, start[0].reward)
    label_ends(study, axes, ends)
    return Picture(
        "proxy",
        f"Does the {study.proxy_name} tell the truth?",
        "Training moves along a curve from the reference. Up and to the right: both rewards rise. To the right and "
        "down: the proxy is being exploited, it rises while the gold reward falls.",
        to_svg(figure, "proxy", f"{study.reward_name} against {study.proxy_name} through training"),
    )
