"""What a reward is: a name, and one finite number a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, SupportsFloat

from preflab.errors import NumericError


@dataclass(frozen=True)
class Answer:
    """A response as a reward sees it."""

    prompt: str
    response: str
    """Text without special tokens; `prompt + response` is the whole text."""
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]
    """End token included where there is one."""
    ended: bool


class Reward(Protocol):
    """Maximised. Called with a batch of answers; returns one number each, in the reward's own unit."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One number an answer, in the same order."""
        ...


def score(reward: Reward, answers: Sequence[Answer]) -> list[float]:
    """The rewards of answers, checked.

    Raises:
        NumericError: the reward returned the wrong number of values, or one that is not a finite number. The
            offending response is named.
    """
    values = reward(answers)
    if not hasattr(values, "__len__"):
        raise NumericError(f"reward {reward.name} returned {type(values).__name__}, not a list of numbers")
    if len(values) != len(answers):
        raise NumericError(f"reward {reward.name} returned {len(values)} values for {len(answers)} responses")
    for value, answer in zip(values, answers, strict=True):
        if not _is_finite(value):
            raise NumericError(
                f"reward {reward.name} gave {value!r}, not a finite number, to the response {answer.response[:80]!r} "
                f"to the prompt {answer.prompt[-80:]!r}"
            )
    return [float(value) for value in values]


def _is_finite(value: object) -> bool:
    return isinstance(value, SupportsFloat) and not isinstance(value, bool) and math.isfinite(value)
