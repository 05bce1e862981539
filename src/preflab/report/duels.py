"""Two arms on the same prompts and seeds: who has more, how often, and what length had to do with it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Literal

import numpy as np

from preflab.report.lengths import length_controlled
from preflab.report.shares import share
from preflab.report.statistics import Estimate, Matrix
from preflab.report.study import Arm, Point, Study
from preflab.report.verdicts import reference_like

Scorer = Literal["reward", "judge_reward"]
"""Whose reward decides: the study's gold reward, or a held-out judge's."""


@dataclass(frozen=True)
class Duel:
    """Shares of the prompts (and seeds) that the first arm wins, ties and loses, and its win rate."""

    first: Arm
    second: Arm
    wins: Estimate
    ties: Estimate
    losses: Estimate
    win_rate: Estimate
    """Wins and half of the ties."""
    equal_length: Estimate | None
    """The win rate at equal length; None where it can't be asked."""
    prompts: int
    seeds: int
    split: str

    @property
    def sign(self) -> int:
        """+1 or −1 where the interval of the win rate leaves ½ out."""
        rate = self.win_rate
        return Estimate(rate.mean - 0.5, rate.low - 0.5, rate.high - 0.5).sign


def farthest(kl_nats: float) -> float:
    """How far from ½ a win rate against the reference can be expected at most: TV(policy, reference) ≤ √(KL/2).

    Pinsker's inequality (Tsybakov 2009, Introduction to Nonparametric Estimation, Lemma 2.5): against a response of the
    reference's, drawn apart from it, a second one wins ½, and changing who draws it changes a share by the total
    variation at most. The mean of the roots over prompts is at most the root of the mean. Never above ½.

    Args:
        kl_nats: KL(policy ‖ reference) of a response, the mean over prompts, nats ≥ 0; an upper bound does too.

    >>> farthest(0.0002), farthest(8.0)
    (0.01, 0.5)
    """
    return min(0.5, float(np.sqrt(kl_nats / 2)))


def beyond_kl(rate: Estimate, kl: Estimate) -> bool:
    """Whether the whole interval of a win rate lies farther from ½ than a KL lets expect, its upper end too.

    >>> beyond_kl(Estimate(0.62, 0.54, 0.69), Estimate(0.0003, 0.0002, 0.0003))  # √(0.0003 / 2) = 0.012
    True
    >>> beyond_kl(Estimate(0.62, 0.54, 0.69), Estimate(0.003, 0.002, 0.0032))  # √(0.0032 / 2) = 0.04
    False
    """
    bound = farthest(kl.high)
    return rate.low > 0.5 + bound or rate.high < 0.5 - bound


def duels(study: Study, scorer: Scorer = "reward") -> tuple[Duel, ...]:
    """Every two arms that were scored on the same split, the one that stands first in the study first; those with the
    reference last in their order, so that an arm is measured against it."""
    reference = [arm for arm in study.arms if arm.name == study.reference_name]
    found = (duel(study, a, b, scorer) for a, b in combinations([*study.trained, *reference], 2))
    return tuple(one for one in found if one)


def duel(study: Study, first: Arm, second: Arm, scorer: Scorer) -> Duel | None:
    """The first arm against the second; None where they have no prompts in common, or `scorer` saw none."""
    points = same_ground(study, first, second)
    if points is None:
        return None
    mine, theirs = (scores(point, scorer) for point in points)
    if mine is None or theirs is None or mine.shape[1] < 2:
        return None
    what = f"{first.name} against {second.name}"
    won, tied = np.where(mine > theirs, 1.0, 0.0), np.where(mine == theirs, 1.0, 0.0)
    points_won = won + tied / 2
    longer = points[0].response_tokens - points[1].response_tokens
    return Duel(
        first=first,
        second=second,
        wins=share(won, what),
        ties=share(tied, what),
        losses=share(1 - won - tied, what),
        win_rate=share(points_won, what),
        equal_length=length_controlled(points_won, longer, f"{what} at equal length"),
        prompts=mine.shape[1],
        seeds=len(mine),
        split=points[0].split,
    )


def scores(point: Point, scorer: Scorer) -> Matrix | None:
    """What decides, a row a seed and a column a prompt."""
    return point.reward if scorer == "reward" else point.judge_reward


def same_ground(study: Study, first: Arm, second: Arm) -> tuple[Point, Point] | None:
    """Both arms' chosen checkpoints on the same split and of the same seeds; None where they have none in common.

    The reference is the same model for all seeds, so it stands for each of the other's.
    """
    mine, theirs = first.final, second.final
    if mine is None or theirs is None:
        return None
    if second.name == study.reference_name:
        against = reference_like(study, mine)
        return (mine, against) if against else None
    seeds = [seed for seed in mine.seeds if seed in theirs.seeds]
    if mine.split != theirs.split or not seeds:
        return None
    return mine.of_seeds(seeds), theirs.of_seeds(seeds)


def between(found: Sequence[Duel], first: Arm, second: Arm) -> Estimate | None:
    """The first arm's win rate against the second, whichever of them the duel names first."""
    for one in found:
        rate = one.win_rate
        if (one.first.name, one.second.name) == (first.name, second.name):
            return rate
        if (one.first.name, one.second.name) == (second.name, first.name):
            return Estimate(1 - rate.mean, 1 - rate.high, 1 - rate.low)
    return None
