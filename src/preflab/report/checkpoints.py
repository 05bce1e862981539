"""Checkpoints on the plane of KL and reward, of an arm and of a family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from preflab.report.families import Family, families
from preflab.report.shares import mean_reward
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
        reward=mean_reward(point.reward, f"{where}: reward"),
        proxy=None if point.proxy_reward is None else estimate(point.proxy_reward, f"{where}: proxy reward"),
        chosen=any(run.chosen is not None and run.chosen.step == visit.step for run, visit in visits),
    )


def trained_points(arm: Arm) -> list[Point]:
    """The arm's checkpoints but that at step 0, which is what it starts from."""
    return [point for point in arm.validation if point.step > 0]


def measured_families(study: Study) -> tuple[Family, ...]:
    """The families with those of their variants whose checkpoints have a measured KL, oracles last."""
    found = [
        replace(one, variants=arms)
        for one in families(study)
        if (arms := tuple(arm for arm in one.variants if trained_points(arm) and not arm.kl_is_bound))
    ]
    return tuple(sorted(found, key=lambda one: one.oracle))


def points_of(family: Family, seeds: tuple[int, ...]) -> list[Point]:
    """All trained checkpoints of a family that every one of `seeds` has, of these seeds."""
    points = [point for arm in family.variants for point in trained_points(arm)]
    return [point.of_seeds(seeds) for point in points if set(seeds) <= set(point.seeds)]


def shared_seeds(a: Family, b: Family) -> tuple[int, ...]:
    """The seeds of which both families have a trained checkpoint."""
    first, second = ({s for arm in one.variants for p in trained_points(arm) for s in p.seeds} for one in (a, b))
    return tuple(sorted(first & second))
