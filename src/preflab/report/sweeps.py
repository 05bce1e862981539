"""Variants of one method that differ in one numeric setting, and which value of it to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from preflab.config.arms import LABELS, spelled, stages
from preflab.config.arms import written as written_in_label
from preflab.report.checkpoints import measured_families
from preflab.report.families import Family
from preflab.report.statistics import Estimate, Matrix, estimate
from preflab.report.study import Arm, Point, Study, stack
from preflab.report.verdicts import reference_like
from preflab.report.wording import interval, number
from preflab.runs import JSON

LEAST = 3  # values that make a sweep where the study was not made as one
# Their losses hold the policy near no reference, so a larger β need not keep it closer.
UNANCHORED = ("simpo", "cpo", "orpo")


@dataclass(frozen=True)
class Variant:
    """One value of the setting."""

    value: float
    arm: Arm


@dataclass(frozen=True)
class Sweep:
    """One numeric setting of one family, all others alike."""

    family: Family
    setting: str
    """Its dotted key."""
    others: Mapping[str, JSON]
    """What the variants have in common beside it."""
    variants: tuple[Variant, ...]
    """By value, ascending."""

    @property
    def values(self) -> tuple[float, ...]:
        """The values, ascending."""
        return tuple(variant.value for variant in self.variants)

    @property
    def arms(self) -> tuple[Arm, ...]:
        """The variants' arms, likewise."""
        return tuple(variant.arm for variant in self.variants)

    def value_of(self, arm: Arm) -> float:
        """The value of one of them."""
        return next(variant.value for variant in self.variants if variant.arm is arm)

    def at_an_end(self, arm: Arm) -> bool:
        """Whether no value beyond its own was tried."""
        return self.value_of(arm) in (self.values[0], self.values[-1])

    @property
    def title(self) -> str:
        """The family and what its variants have in common."""
        return ", ".join([self.family.title, *(f"{written(key)} {value}" for key, value in self.others.items())])

    @property
    def holds_back(self) -> bool:
        """Whether a larger value must keep the policy closer to the reference: β, or a weight of a KL penalty; of a
        chain, its last stage's alone."""
        found = stages(self.family.name)
        key = self.setting.removeprefix(f"{len(found)}.")  # where a chain has a method twice
        own = len(found) < 2 or key.startswith(f"{found[-1].key}.")
        return own and key.endswith(("beta", "kl_coefficient")) and self.family.variants[0].method not in UNANCHORED

    @property
    def decades(self) -> bool:
        """Whether the values span a decade, so that a logarithmic axis shows them evenly."""
        return min(self.values) > 0 and max(self.values) >= 10 * min(self.values)


def written(setting: str) -> str:
    """A setting as pictures write it: as labels of arms do, of a chain without the stage.

    >>> written("loss.beta"), written("optimizer.learning_rate"), written("2.dpo.loss.beta")
    ('β', 'learning_rate', 'β')
    """
    key = setting.lstrip("0123456789").removeprefix(".")
    stage, _, rest = key.partition(".")
    return written_in_label(rest if stage.replace("_", "-") in LABELS else key)


def sweeps(study: Study) -> tuple[Sweep, ...]:
    """Every setting that the study varies: two values where it was made to, else three at least."""
    return tuple(
        Sweep(family, key, others, tuple(sorted(variants, key=lambda variant: variant.value)))
        for family in measured_families(study)
        for key in dict.fromkeys(key for arm in family.variants for key in arm.overrides)
        for others, variants in alike_but_for(family, key)
        if len(variants) >= (2 if key in study.swept else LEAST)
    )


def alike_but_for(family: Family, key: str) -> list[tuple[Mapping[str, JSON], list[Variant]]]:
    """The arms of a family by their other overrides, with their values of one setting.

    The method without overrides stands among them by the value in its settings.
    """
    groups: list[tuple[Mapping[str, JSON], list[Variant]]] = []
    for arm in family.variants:
        value = told(arm, key)
        others = {name: other for name, other in arm.overrides.items() if name != key}
        variants = next((found for alike, found in groups if alike == others), None)
        if variants is None:
            groups.append((others, variants := []))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and all(variant.value != value for variant in variants):
            variants.append(Variant(float(value), arm))
    return groups


def told(arm: Arm, key: str) -> JSON:
    """What an arm has of a setting, given as `overrides` names it; None where it is not the last stage's and not set.

    An arm's settings are those of its last stage.
    """
    found = stages(arm.family)
    of_last = key.removeprefix(f"{len(found)}.").removeprefix(f"{found[-1].key}.") if len(found) > 1 else key
    return arm.overrides.get(key, arm.settings.get(of_last))


def at_end(arm: Arm) -> Point:
    """The last evaluation of every seed on validation prompts: all values trained for equally long."""
    return stack([run.validation[-1] for run in arm.runs if run.validation])


def at_chosen(arm: Arm) -> Point:
    """The chosen checkpoint of every seed on validation prompts."""
    return stack([point for run in arm.runs if (point := run.validated)])


def paired(first: Point, second: Point, of: str) -> Matrix | None:
    """First − second by prompt and seed, of the seeds that both have; None where there is none."""
    seeds = [seed for seed in first.seeds if seed in second.seeds]
    if not seeds:
        return None
    matrix: Matrix = getattr(first.of_seeds(seeds), of) - getattr(second.of_seeds(seeds), of)
    return matrix


@dataclass(frozen=True)
class Change:
    """What a quantity does from one value to the next."""

    start: float
    end: float
    by: Estimate


def changes(points: Mapping[float, Point], of: str) -> tuple[Change, ...]:
    """The change of a mean at each step between neighbouring values.

    All of m steps hold together: each interval is at 1 − 0.05/m (Bonferroni).
    """
    steps = list(pairwise(sorted(points)))
    confidence = 1 - 0.05 / max(len(steps), 1)
    found = [(a, b, paired(points[b], points[a], of)) for a, b in steps]
    return tuple(
        Change(a, b, estimate(m, f"{of} from {a:g} to {b:g}", confidence)) for a, b, m in found if m is not None
    )


def over_all(points: Mapping[float, Point], of: str) -> Change | None:
    """The change from the lowest value to the highest, at 95 %."""
    low, high = min(points), max(points)
    matrix = paired(points[high], points[low], of)
    return None if matrix is None else Change(low, high, estimate(matrix, f"{of} from {low:g} to {high:g}"))


@dataclass(frozen=True)
class Choice:
    """The arm to take."""

    arm: Arm
    kl_nats: float
    best: Arm
    behind: Estimate | None
    """Reward of the best − of this one; None where they are one."""
    gain: Estimate
    """Reward of this one − of the reference."""


def choose(study: Study, arms: Sequence[Arm]) -> Choice | None:
    """The arm with the smallest KL among those whose reward is not distinguishable from the best one's.

    By the chosen checkpoints on validation prompts, paired by prompt; reward is what the study chooses by, gold or
    proxy. Not distinguishable: the interval of the difference from the best holds 0; since the best of m + 1 is picked
    by looking, at 1 − 0.05/m (Bonferroni). An arm that is not above the reference is never chosen; None where none is.
    """

    def seen(point: Point) -> Point:
        return replace(point, reward=study.choosing(point))

    points = {arm.name: seen(at_chosen(arm)) for arm in arms}
    best = max(arms, key=lambda arm: float(points[arm.name].reward.mean()))
    confidence = 1 - 0.05 / max(len(points) - 1, 1)
    found = []
    for arm in arms:
        point, reference = points[arm.name], reference_like(study, points[arm.name])
        lead = None if arm is best else paired(points[best.name], point, "reward")
        behind = None if lead is None else estimate(lead, f"reward behind the best: {arm.name}", confidence)
        if reference is None or (arm is not best and (behind is None or behind.sign > 0)):
            continue
        gain = estimate(point.reward - seen(reference).reward, f"reward of {arm.name} − reference")
        if gain.sign > 0:
            found.append(Choice(arm, float(point.kl_nats.mean()), best, behind, gain))
    return min(found, key=lambda choice: choice.kl_nats, default=None)


def recommended(study: Study) -> str:
    """What to take of the settings that the study was made to vary, a sentence a family; "" where it was not, or not
    yet."""
    found = [one for one in sweeps(study) if one.setting in study.swept]
    families = {one.family.name: one.family for one in found}
    return " ".join(in_words(study, family, found) for family in families.values())


def in_words(study: Study, family: Family, found: Sequence[Sweep]) -> str:
    """Which variant of a family to take and why, or that it is undecided."""
    mine = [one for one in found if one.family.name == family.name]
    names = {arm.name for one in mine for arm in one.arms}
    arms = [arm for arm in family.variants if arm.name in names]
    keys = [
        key
        for key in dict.fromkeys(key for one in mine for key in (one.setting, *one.others))
        if len({told(arm, key) for arm in arms}) > 1
    ]
    choice = choose(study, arms)
    what = f"values of {written(mine[0].setting)}" if len(keys) == 1 else "settings"
    tried = f"{len(arms)} {what} for {family.title}{'' if study.complete else ' so far'}"
    if choice is None:
        said = f"none is shown to get more {study.choosing_name} than the reference"
        return f"Undecided between {tried}: on validation prompts {said}."

    def named(arm: Arm) -> str:
        values = [(written(key), spelled(told(arm, key))) for key in keys]
        return ", ".join(f"{name} {value}" if len(keys) > 1 else value for name, value in values)

    kl = f"has the smallest KL of those that do, {number(choice.kl_nats)} nats"
    if choice.behind is None:
        why = f"gets the most {study.choosing_name}, {interval(choice.gain)} more than the reference"
        kl = f"has the smallest KL of those that may be as good, {number(choice.kl_nats)} nats"
    else:
        why = f"beats the reference and may be as good as the best, {named(choice.best)}"
        why += f", which is ahead by {interval(choice.behind)}"
    end = "; it lies at an end of what was tried" if len(mine) == 1 and mine[0].at_an_end(choice.arm) else ""
    return f"Of {tried} take {named(choice.arm)}: on validation prompts it {why}, and {kl}{end}."
