"""Families: the variants of one method, of which one was chosen on validation prompts.

Only the chosen one is compared with other families, on test prompts that had no part in the choice: the best of five
tries on the prompts it was picked by is a lucky one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preflab.config.arms import label
from preflab.errors import StorageError
from preflab.report.statistics import Estimate, estimate
from preflab.report.study import Arm, Study, stack, titled
from preflab.report.wording import listing


@dataclass(frozen=True)
class Family:
    """One method, or chain of methods, and its variants: arms that differ in settings alone."""

    name: str
    title: str
    variants: tuple[Arm, ...]
    chosen: Arm | None
    """The variant with the most reward on validation prompts, or the only one; None until one was evaluated."""

    @property
    def tries(self) -> int:
        """How often it was tried."""
        return len(self.variants)

    @property
    def oracle(self) -> bool:
        """Whether it sees the gold reward."""
        return self.variants[0].oracle


def families(study: Study) -> tuple[Family, ...]:
    """The families of the trained arms, in the study's order. An arm that sees the gold reward is a family apart.

    Raises StorageError where a variant was chosen on prompts that it is tested on.
    """
    groups: dict[tuple[str, bool], list[Arm]] = {}
    for arm in study.trained:
        groups.setdefault((arm.family, arm.oracle), []).append(arm)
    return tuple(family(study, name, variants) for (name, _), variants in groups.items())


def family(study: Study, name: str, variants: Sequence[Arm]) -> Family:
    """One family, under the title of its only arm, of its plain one, or of its methods. Where the study chooses
    checkpoints by the proxy, so are variants: gold has no part in it."""
    for arm in variants:
        refuse_shared_prompts(study, arm)
    scores = {arm.name: score for arm in variants if (score := validation_reward(study, arm))}
    chosen = max((arm for arm in variants if arm.name in scores), key=lambda arm: scores[arm.name].mean, default=None)
    if len(variants) == 1:  # nothing to choose
        chosen = variants[0] if variants[0].final else None
    plain = next((arm.title for arm in variants if not arm.overrides or len(variants) == 1), None)
    return Family(name, plain or titled(label(name), oracle=variants[0].oracle), tuple(variants), chosen)


def validation_reward(study: Study, arm: Arm) -> Estimate | None:
    """What variants are chosen by: the reward, over seeds and validation prompts, of each seed's chosen checkpoint."""
    points = [point for run in arm.runs if (point := run.validated)]
    if not points:
        return None
    return estimate(study.choosing(stack(points)), f"validation reward of {arm.name}")


def refuse_shared_prompts(study: Study, arm: Arm) -> None:
    """Raise StorageError where validation and test have a prompt in common."""
    for run in arm.runs:
        test = set(run.test.prompts) if run.test else set()
        shared = sorted(test.intersection(*(point.prompts for point in run.validation[:1])) if run.validation else ())
        if shared:
            raise StorageError(
                f"{study.folder}: {arm.name} seed {run.seed} was chosen on validation prompts that it is tested on, "
                f"such as {shared[0]}; run the study again with sets that share none"
            )


def tuned(found: Iterable[Family]) -> bool:
    """Whether any family had a choice."""
    return any(family.tries > 1 for family in found)


def unequal_tries(found: Iterable[Family]) -> str:
    """The warning where families had different numbers of tries; "" where they had the same. Oracles and what trains
    nothing compete with nobody."""
    rivals = [one for one in found if not one.oracle and not one.variants[0].kl_is_bound]
    if len({one.tries for one in rivals}) < 2:
        return ""
    most = max(rivals, key=lambda one: one.tries)
    counts = {most.tries: [most.title]}
    for one in rivals:
        if one is not most:
            counts.setdefault(one.tries, []).append(one.title)
    first, *rest = (
        f"{listing(names)} had {tries}" if tries == most.tries else f"{listing(names)} {tries}"
        for tries, names in sorted(counts.items(), reverse=True)
    )
    return f"{', '.join([f'{first} tries', *rest])}: not a fair comparison of methods."
