"""Variants of one method that differ in one numeric setting, and which value of it to take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from preflab.config.arms import stages
from preflab.report.checkpoints import measured_families
from preflab.report.families import Family
from preflab.report.statistics import Estimate, Matrix, estimate
from preflab.report.study import Arm, Point, Study, stack
from preflab.report.verdicts import reference_like
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
    """A setting as pictures write it.

    >>> written("loss.beta"), written("optimizer.learning_rate"), written("dpo.loss.beta")
    ('β', 'learning_rate', 'β')
    """
    last = setting.rpartition(".")[2]
    return "β" if last == "beta" else last


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
        value = arm.overrides.get(key, arm.settings.get(key))
        others = {name: other for name, other in arm.overrides.items() if name != key}
        variants = next((found for alike, found in groups if alike == others), None)
        if variants is None:
            groups.append((others, variants := []))
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and all(variant.value != value for variant in variants):
            variants.append(Variant(float(value), arm))
    return groups


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
    """The value to take."""

    variant: Variant
    kl_nats: float
    best: Variant
    behind: Estimate | None
    """Reward of the best − of this one; None where they are one."""
    gain: Estimate
    """Reward of this one − of the reference."""

    def at_an_end(self, values: Sequence[float]) -> bool:
        """Whether no value beyond it was tried."""
        return self.variant.value in (min(values), max(values))


def choose(study: Study, sweep: Sweep) -> Choice | None:
    """The value with the smallest KL among those whose reward is not distinguishable from the best one's.

    By the chosen checkpoints on validation prompts, paired by prompt. Not distinguishable: the interval of the
    difference from the best holds 0; since the best of m + 1 is picked by looking, at 1 − 0.05/m (Bonferroni). A value
    that is not above the reference is never chosen; None where none is.
    """
    points = {variant.value: at_chosen(variant.arm) for variant in sweep.variants}
    best = max(sweep.variants, key=lambda variant: float(points[variant.value].reward.mean()))
    confidence = 1 - 0.05 / max(len(points) - 1, 1)
    found = []
    for variant in sweep.variants:
        point, reference = points[variant.value], reference_like(study, points[variant.value])
        lead = None if variant is best else paired(points[best.value], point, "reward")
        behind = None if lead is None else estimate(lead, f"reward behind the best: {variant.arm.name}", confidence)
        if reference is None or (variant is not best and (behind is None or behind.sign > 0)):
            continue
        gain = estimate(point.reward - reference.reward, f"reward of {variant.arm.name} − reference")
        if gain.sign > 0:
            found.append(Choice(variant, float(point.kl_nats.mean()), best, behind, gain))
    return min(found, key=lambda choice: choice.kl_nats, default=None)
