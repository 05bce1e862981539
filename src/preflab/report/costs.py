"""What reward costs: with and without the reward model, up to a given reward, and against another arm."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log

import numpy as np

from preflab.config.arms import needs_reward_model, stages
from preflab.config.commands import Methods
from preflab.config.load import build
from preflab.errors import ConfigError, StorageError
from preflab.report.duels import same_ground
from preflab.report.fields import Fields, is_finite
from preflab.report.statistics import Estimate, Matrix, estimate, over_seeds
from preflab.report.study import Arm, Run, Study
from preflab.report.verdicts import reference_like
from preflab.report.visits import Visit, visited
from preflab.runs import JSON, RunFolder, read_json

ROUND = ("sample_seconds", "reward_seconds", "score_seconds", "learn_seconds")
"""What a round of a method that samples logs of its wall clock."""
HALVINGS = 20
DOUBLINGS = 24


def reward_model_cost(study: Study, seed: int) -> Mapping[str, JSON] | None:
    """What training the reward model of a seed cost; None where the study folder doesn't say."""
    path = study.folder / "stages" / f"seed-{seed}" / "reward-model" / "stage.json"
    return Fields(read_json(path), path).inner("result").mapping("cost") if path.is_file() else None


@lru_cache(maxsize=256)  # asked for every run, checkpoint and pair of arms
def pays_reward_model(study: Study, arm: str) -> bool:
    """Whether the reward model's training is in the cost of an arm, or of what a chain begins with.

    Raises StorageError where the study's settings can't be read.
    """
    try:
        told = {stage.key for stage in stages(arm)} & set(study.config)
        return needs_reward_model(build(Methods, {key: study.config[key] for key in told}), arm)
    except ConfigError as error:
        raise StorageError(f"{study.folder / 'study.json'}: {error}; run the study again in a new folder") from None


@dataclass(frozen=True)
class Spent:
    """One cost of one run, such as its seconds, in parts that sum to the whole."""

    reward_model: float
    before: float
    """What the first stages of a chain cost, apart from the reward model."""
    own: float

    @property
    def whole(self) -> float:
        return self.reward_model + self.before + self.own

    @property
    def ahead(self) -> float:
        """What was spent before the first step of the arm's last stage."""
        return self.reward_model + self.before


def spent(study: Study, arm: Arm, run: Run, name: str) -> Spent | None:
    """The parts of a cost; None where it, or a part of it, is not known."""
    whole = run.cost[name]
    if whole is None:
        return None
    model = 0.0
    if pays_reward_model(study, arm.name):
        found = reward_model_cost(study, run.seed)
        if found is None or found.get(name) is None:
            return None
        model = float(found[name])
        if model > whole:  # it was made again since, and took longer than what the arm was charged
            return None
    first, plus, _ = arm.name.rpartition("+")
    if not plus:
        return Spent(model, 0.0, whole - model)
    earlier = cost_of_start(study, first, run.seed)
    if earlier is None or earlier.get(name) is None:
        return None
    before = float(earlier[name]) - (model if pays_reward_model(study, first) else 0.0)
    return Spent(model, before, whole - model - before)


def cost_of_start(study: Study, name: str, seed: int) -> Mapping[str, JSON] | None:
    """What the first stages of a chain cost: as an arm, or where they were no arm of the study."""
    for parent in (study.folder / "arms", study.folder / "stages" / "arms"):
        path = RunFolder(parent / name / f"seed-{seed}").evaluation
        if path.is_file() and (cost := Fields(read_json(path), path).value.get("cost")):
            return cost if isinstance(cost, dict) else None
    return None


def mean_spent(study: Study, arm: Arm, name: str) -> Spent | None:
    """The parts of a cost, each the mean over seeds; None where one is not known."""
    parts = [spent(study, arm, run, name) for run in arm.runs]
    known = [part for part in parts if part]
    if not known or len(known) < len(parts):
        return None
    means = np.mean([[part.reward_model, part.before, part.own] for part in known], axis=0)
    return Spent(*(float(mean) for mean in means))


# --- seconds to a reward ---


@dataclass(frozen=True)
class Reached:
    """The first checkpoint where an arm's mean validation reward is as high as asked."""

    visit: Visit
    seconds: float
    """Until that checkpoint, the mean over seeds, with what was spent ahead of the arm's own training."""
    not_before: float
    """Until the checkpoint before it, where the reward was still lower."""


def reached(study: Study, arm: Arm, reward: float) -> Reached | None:
    """When the arm reached a reward; None where it never did, or its seconds are not known."""
    visits = visited(arm)
    first = next((n for n, visit in enumerate(visits) if visit.point.reward.mean() >= reward), None)
    if first is None:
        return None
    until = seconds_until(study, arm, visits[first])
    before = seconds_until(study, arm, visits[first - 1]) if first else seconds_until(study, arm, None)
    return None if until is None or before is None else Reached(visits[first], until, before)


def seconds_until(study: Study, arm: Arm, visit: Visit | None) -> float | None:
    """Seconds up to a visit, the mean over seeds; up to the first step, for None."""
    found = []
    for run in arm.runs:
        if visit is not None and run.seed not in visit.point.seeds:
            continue
        parts = spent(study, arm, run, "wall_seconds")
        if parts is None:
            return None
        step = 0 if visit is None else visit.steps[visit.point.seeds.index(run.seed)]
        found.append(parts.ahead + parts.own * share_of_seconds(run, step))
    return float(np.mean(found)) if found else None


def share_of_seconds(run: Run, step: int) -> float:
    """The share of a run's own seconds that lies before a step: by what its rounds logged, else that of its steps."""
    last = run.validation[-1].step
    rounds = [(line.get("step"), [value for key in ROUND if is_finite(value := line.get(key))]) for line in run.metrics]
    logged = [(place, sum(seconds)) for place, seconds in rounds if is_finite(place) and seconds]
    total = sum(seconds for _, seconds in logged)
    if logged and logged[-1][0] == last and total > 0:
        return sum(seconds for place, seconds in logged if place <= step) / total
    return step / last if last else 0.0


# --- against another arm ---


@dataclass(frozen=True)
class Ratio:
    """How many times as much one arm cost as another."""

    mean: float
    """The geometric mean over seeds."""
    interval: Estimate | None
    """Over seeds; None with one."""


def ratio_of(study: Study, dear: Arm, cheap: Arm, cost: Callable[[Spent], float], name: str) -> Ratio | None:
    """`cost` of the first arm over that of the second, paired by seed; None where it is not known, or nothing."""
    logs = []
    others = {run.seed: run for run in cheap.runs}
    for run in dear.runs:
        if run.seed not in others:
            continue
        parts = spent(study, dear, run, name), spent(study, cheap, others[run.seed], name)
        if parts[0] is None or parts[1] is None or min(cost(parts[0]), cost(parts[1])) <= 0:
            return None
        logs.append(log(cost(parts[0]) / cost(parts[1])))
    if not logs:
        return None
    if len(logs) == 1:
        return Ratio(exp(logs[0]), None)
    found = over_seeds(logs, f"{name} of {dear.name} over {cheap.name}")
    return Ratio(exp(found.mean), Estimate(exp(found.mean), exp(found.low), exp(found.high)))


def share_of_gain(study: Study, arm: Arm, other: Arm) -> Estimate | None:
    """The arm's gain in reward over the reference, as a share of another arm's: Fieller's interval, paired by prompt
    and seed. None where they have no prompts in common, or the other was not shown to gain: then nothing can be shared.
    """
    ground = same_ground(study, arm, other)
    start = reference_like(study, ground[0]) if ground else None
    if ground is None or start is None:
        return None
    mine, theirs = (point.reward - start.reward for point in ground)
    if estimate(theirs, f"gain of {other.name}").sign < 1:
        return None
    return fieller(mine, theirs, f"gain of {arm.name} / gain of {other.name}")


def fieller(numerator: Matrix, denominator: Matrix, what: str, confidence: float = 0.95) -> Estimate | None:
    """mean(numerator) / mean(denominator) with the interval of all θ for which mean(numerator − θ · denominator) may
    be 0 (Fieller 1954, J. R. Stat. Soc. B 16, 175), by the interval of `estimate`. None where the denominator's mean
    may itself be 0: then no ratio is ruled out.

    >>> found = fieller(np.array([1.0, 2.0, 2.0, 3.0]), np.array([2.0, 4.0, 4.0, 6.0]), "half")
    >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
    (0.5, 0.5, 0.5)
    >>> fieller(np.array([1.0, 2.0, 3.0]), np.array([-1.0, 0.0, 1.0]), "of nothing") is None
    True
    """
    if estimate(denominator, what, confidence).sign == 0:
        return None
    ratio = float(numerator.mean() / denominator.mean())

    def possible(theta: float) -> bool:
        return estimate(numerator - theta * denominator, what, confidence).sign == 0

    low, high = (last_possible(possible, ratio, direction) for direction in (-1.0, 1.0))
    return None if low is None or high is None else Estimate(ratio, low, high)


def last_possible(possible: Callable[[float], bool], start: float, direction: float) -> float | None:
    """The end of the possible values from `start` on, which is one; None where none is found."""
    step = 1e-3 * max(1.0, abs(start))
    for _ in range(DOUBLINGS):
        if not possible(start + direction * step):
            break
        step *= 2
    else:
        return None
    inside, outside = 0.0, step
    for _ in range(HALVINGS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if possible(start + direction * middle) else (inside, middle)
    return start + direction * inside
