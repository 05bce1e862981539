"""An arm's validation points by how much of its training lies behind them."""

from __future__ import annotations

from dataclasses import dataclass

from preflab.report.study import Arm, Point, stack


@dataclass(frozen=True)
class Visit:
    """A checkpoint of every seed, at the same place of each one's training."""

    share: float
    """Of the training, 0 to 1: the mean over seeds."""
    steps: tuple[int, ...]
    """A seed each; they differ where seeds have not equally many examples."""
    point: Point


def visited(arm: Arm) -> tuple[Visit, ...]:
    """The arm's visits, the first ones that all its seeds have made: the n-th of each seed belong together."""
    runs = [run for run in arm.runs if run.validation and run.validation[-1].step > 0]
    if not runs:
        return ()
    visits = []
    for points in zip(*(run.validation for run in runs), strict=False):
        shares = [point.step / run.validation[-1].step for point, run in zip(points, runs, strict=True)]
        visits.append(Visit(sum(shares) / len(shares), tuple(point.step for point in points), stack(points)))
    return tuple(visits)
