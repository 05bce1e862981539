"""Checkpoints on the plane of KL and reward, and the families of arms that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from preflab.config.arms import label
from preflab.report.statistics import Estimate, estimate
from preflab.report.study import Arm, Point, Study


@dataclass(frozen=True)
class Checkpoint:
    """One evaluation of an arm on validation prompts, over the seeds that got there."""

    arm: Arm
    point: Point
    kl: Estimate
    """Nats per response; an upper bound where the arm's KL is one."""
    reward: Estimate
    proxy: Estimate | None
    chosen: bool
    """Whether a seed chose it."""


def checkpoints(study: Study, arm: Arm) -> tuple[Checkpoint, ...]:
    """The arm's checkpoints in order of training; none while nothing is evaluated."""
    return all_checkpoints(study)[arm.name]


@lru_cache(maxsize=2)  # more than one chapter asks
def all_checkpoints(study: Study) -> Mapping[str, tuple[Checkpoint, ...]]:
    """The checkpoints of every arm, by its name."""
    return {
        arm.name: tuple(measured(arm, number, point) for number, point in enumerate(arm.validation))
        for arm in study.arms
    }


def measured(arm: Arm, number: int, point: Point) -> Checkpoint:
    """The `number`-th evaluation of an arm."""
    where = f"arm {arm.name} step {point.step}"
    visits = [(run, run.validation[number]) for run in arm.runs if len(run.validation) > number]
    return Checkpoint(
        arm,
        point,
        kl=estimate(point.kl_nats, f"{where}: KL").within(0.0),
        reward=estimate(point.reward, f"{where}: reward"),
        proxy=None if point.proxy_reward is None else estimate(point.proxy_reward, f"{where}: proxy reward"),
        chosen=any(run.chosen is not None and run.chosen.step == visit.step for run, visit in visits),
    )


@dataclass(frozen=True)
class Family:
    """The arms that differ in settings alone: one chain of methods."""

    name: str
    title: str
    arms: tuple[Arm, ...]

    @property
    def oracle(self) -> bool:
        """Whether it sees the gold reward."""
        return any(arm.oracle for arm in self.arms)

    def points(self, seeds: tuple[int, ...]) -> list[Point]:
        """All trained checkpoints that every one of `seeds` has, of these seeds."""
        return [p.of_seeds(seeds) for arm in self.arms for p in trained_points(arm) if set(seeds) <= set(p.seeds)]


def trained_points(arm: Arm) -> list[Point]:
    """The arm's checkpoints but that at step 0, which is what it starts from."""
    return [point for point in arm.validation if point.step > 0]


def families(study: Study) -> tuple[Family, ...]:
    """The families whose checkpoints have a measured KL, oracles last."""
    arms = [arm for arm in study.trained if trained_points(arm) and not arm.kl_is_bound]
    names = dict.fromkeys(arm.family for arm in sorted(arms, key=lambda arm: arm.oracle))
    return tuple(family(name, tuple(arm for arm in arms if arm.family == name)) for name in names)


def family(name: str, arms: tuple[Arm, ...]) -> Family:
    """A family under its only arm's title, its plain arm's, or its methods'."""
    plain = next((arm for arm in arms if not arm.overrides), None)
    if len(arms) == 1 or plain:
        return Family(name, (plain or arms[0]).title, arms)
    title = label(name)
    return Family(name, f"{title} (oracle)" if arms[0].oracle and "oracle" not in title.lower() else title, arms)


def shared_seeds(a: Family, b: Family) -> tuple[int, ...]:
    """The seeds of which both families have a trained checkpoint."""
    first, second = ({s for arm in one.arms for p in trained_points(arm) for s in p.seeds} for one in (a, b))
    return tuple(sorted(first & second))
