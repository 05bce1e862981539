"""What a case of `optima.py` is, and the models and responses that all of them share."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from enumerable import END_ID, FIRST_LETTER, VOCABULARY, every_response, exact_logprobs
from preflab.config.training import Optimizer
from preflab.models.load import Policy
from tabular import Array, frontier, kl_of, log_softmax, reward_of

Group = Literal["paired", "unpaired", "supervised and reward", "policy gradient", "online pairs"]
Responses = tuple[tuple[int, ...], ...]
A, B, C, D = range(FIRST_LETTER, VOCABULARY)


@dataclass(frozen=True)
class Point:
    """A trained policy, enumerated."""

    beta: float
    reward: float
    kl_nats: float
    frontier: float
    """The largest reward that any policy has at this KL."""


@dataclass(frozen=True)
class Found:
    """What a case measured."""

    start: float
    """The first loss, in the first line of metrics.jsonl."""
    start_in_theory: float
    untrained: float
    """The error before training."""
    error: float
    points: tuple[Point, ...] = ()


@dataclass(frozen=True)
class Case:
    """One objective, and how it is held to its optimum."""

    method: str
    """As in `preflab train METHOD`."""
    variant: str
    group: Group
    start: str
    """The loss at initialisation, as a formula."""
    optimum: str
    tested: str
    """On what."""
    measure: str
    """What the error is."""
    tolerance: float
    run: Callable[[Path], Found] = field(repr=False)
    on_frontier: bool = False
    """Its trained policies lie on the frontier of reward and KL."""

    @property
    def name(self) -> str:
        return f"{self.method}, {self.variant}" if self.variant else self.method


# The models and the responses.

PROMPT = (A, B)
ONE_TOKEN: Responses = tuple((token,) for token in range(VOCABULARY))
TWO_TOKENS: Responses = tuple(every_response(2))
LENGTHS: Responses = ((A, END_ID), (B, C, D, END_ID), (C, D, END_ID), (D, END_ID), (B, A, END_ID), (END_ID,))
"""Of 2, 4, 3, 2, 3 and 1 token: a part of all responses, so that each log-probability is free."""
LETTERS: Responses = ((A,), (B,), (C,), (D,))
"""Four of the six responses of one token: the other two take what these leave, so each log-probability is free."""


def logprobs(policy: Policy, responses: Responses, prompt: tuple[int, ...] = PROMPT) -> Array:
    return np.asarray(exact_logprobs(policy, prompt, list(responses)))


def falling(rate: float) -> Optimizer:
    return Optimizer(learning_rate=rate, warmup_steps=0, decay="linear")


def constant(rate: float) -> Optimizer:
    return Optimizer(learning_rate=rate, warmup_steps=0)


ODDS = (1, 2, 3, 1, 4, 2)
"""Rewards ln k: i wins k_i of k_i + k_j comparisons with j, which is Bradley–Terry."""
ODDS_REWARD = np.log(np.array(ODDS, dtype=float))


def logit(p: float) -> float:
    return math.log(p / (1 - p))


LOG_POLICY = "largest difference of log π, nats"
PROBABILITIES = "largest difference of π"
EARLY = "margin after a sixth of the training, as a share of the last (1: at rest)"


def point(policy: Array, reference: Array, reward: Array, beta: float) -> Point:
    policy, reference = log_softmax(policy), log_softmax(reference)  # float32 sums to 1 up to 1e-7
    kl = kl_of(policy, reference)
    return Point(beta, reward_of(policy, reward), kl, frontier(kl, reference, reward))


def worst(found: Sequence[Found]) -> Found:
    """Several settings as one case."""
    return Found(
        start=max((each.start for each in found), key=lambda start: abs(start - found[0].start_in_theory)),
        start_in_theory=found[0].start_in_theory,
        untrained=min(each.untrained for each in found),
        error=max(each.error for each in found),
        points=tuple(point for each in found for point in each.points),
    )
