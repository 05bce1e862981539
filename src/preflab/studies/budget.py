"""What an arm has spent of the study's budget.

What came before an arm's own steps counts: earlier stages of a chain, and for arms that are paid by the reward model
(or whose value model starts as it) the training of that, in labels, tokens, FLOPs and seconds. Its optimiser steps and
examples are not the policy's and count for no arm. The reference's pass counts, also where it was read from the cache.
Base, reference and the sampling of the pairs are shared by all arms, and evaluation is for the study: they count for
none.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, assert_never

from preflab.config.arms import label, stages
from preflab.config.commands import Budget, Compare, Measure
from preflab.config.online import Online
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.preference import Preference, Unpaired
from preflab.config.training import SFT
from preflab.training.cost import Cost


def spent_of(measure: Measure, cost: Cost) -> float:
    """What a cost comes to in a measure.

    >>> spent_of("tokens", Cost(generated_tokens=3, trained_tokens=4, scored_tokens=5))
    7
    """
    match measure:
        case "steps":
            return cost.steps
        case "examples":
            return cost.examples
        case "labels":
            return cost.labels
        case "reward-calls":
            return cost.reward_calls + cost.gold_calls
        case "tokens":
            return cost.generated_tokens + cost.trained_tokens
        case "flops":
            return cost.flops
        case "seconds":
            return cost.wall_seconds
        case "none":
            return 0.0
        case never:
            assert_never(never)


def share_of(budget: Budget, cost: Cost) -> float | None:
    """The share of the budget that is spent; None where there is no budget."""
    return None if budget.amount is None else spent_of(budget.measure, cost) / budget.amount


def labels_of(given: Any, examples: int, pairs: int) -> int:
    """The preference labels that a method has used after so many examples: each pair's once, however often it came.

    Marked responses come two to a pair; methods that sample make their own pairs, or none.
    """
    match given:
        case SFT() | Preference():
            return min(examples, pairs)
        case Unpaired():
            return min(math.ceil(examples / 2), pairs)
        case _:
            return 0


def charged(cost: Cost, earlier: Cost, pairs: int) -> Cost:
    """Both costs together; no label counts twice, as there are `pairs` of them."""
    both = earlier.plus(cost)
    return replace(both, labels=min(both.labels, pairs))


def shortfall(config: Compare, arm: str, given: Any, cost: Cost, *, idle: bool) -> str | None:
    """What to warn of where an arm's settings ended it before its budget did, or the budget was spent before it began.

    Args:
        given: the settings of the arm's last stage.
        cost: the arm's whole cost.
        idle: its last stage took no step.
    """
    budget, chain = config.budget, stages(arm)
    share = share_of(budget, cost)
    if share is None or not chain:
        return None
    if share >= 1:
        what = "the stages before" if len(chain) > 1 else "the reward model, the reference's pass or sampling"
        return f"{label(arm)} took no step: {what} had spent the budget" if idle else None
    ended = f"{label(arm)} ended at {math.floor(100 * share)} % of the budget"
    samples = isinstance(given, Online | OnlineDPO | IterativeDPO)
    if budget.measure == "reward-calls" and not samples:
        return f"{ended}: it asks no reward"
    if budget.measure == "labels" and (samples or given.epochs >= 1):
        return f"{ended}: there are no further labels for it"
    if budget.measure == "reward-calls" and isinstance(given, IterativeDPO):
        return f"{ended}: its rounds together ask the reward once about each prompt"
    field = "updates" if isinstance(given, Online | OnlineDPO) else "epochs"
    named = field in dict(chain[-1].overrides)
    return f"{ended}; raise {f'{field} in its name' if named else f'{chain[-1].key}.{field}'}"
