"""What a reward is: a name, and one finite number a response, or one a response token."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, SupportsFloat, TypeGuard, runtime_checkable

from preflab.data.pack import Reading
from preflab.errors import NumericError
from preflab.models.load import Policy


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
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """What else the prompt's row holds, by column."""


@dataclass(frozen=True, slots=True)
class Score:
    """What a response is worth."""

    total: float
    """The reward of the whole response, what its tokens got included."""
    tokens: tuple[float, ...] | None = None
    """What each response token got for itself; None where the response was rewarded as a whole alone."""
    parts: Mapping[str, float] = field(default_factory=dict)
    """Of a weighted sum: each term before its weight, by name."""


@dataclass(frozen=True)
class Scores:
    """What a batch of responses is worth, and what it took to find out."""

    values: list[Score]
    """One a response, in the order of the answers."""
    calls: int
    """Responses that were given to a reward; one that two rewards judge counts twice."""
    passes: tuple[tuple[Any, Reading], ...] = ()
    """Models that were run, with what they computed."""

    @property
    def totals(self) -> list[float]:
        """The rewards of whole responses."""
        return [score.total for score in self.values]


class Reward(Protocol):
    """Maximised. Called with a batch of answers; returns one number each, in the reward's own unit."""

    @property
    def name(self) -> str:
        """What reports call it."""
        ...

    def __call__(self, answers: Sequence[Answer]) -> Sequence[SupportsFloat | Sequence[SupportsFloat]] | Scores:
        """One number an answer, in the same order, or as many as it has response tokens; or scores checked already."""
        ...


@runtime_checkable
class ReadsTokens(Protocol):
    """A reward that runs a model whose work is counted."""

    @property
    def model(self) -> Policy: ...

    def reading(self, answers: Sequence[Answer]) -> Reading:
        """What the model computes for them."""
        ...


def score(reward: Reward, answers: Sequence[Answer]) -> list[float]:
    """The rewards of whole responses, checked; where tokens were rewarded, their sum.

    Raises:
        NumericError: as `assess`.

    >>> from preflab.rewards import PatternReward
    >>> digits = PatternReward("digits", "^[0-9]+$")
    >>> score(digits, [Answer("2 + 2 = ", "4", (5,), (6,), True), Answer("2 + 2 = ", "four", (5,), (7,), True)])
    [1.0, 0.0]
    """
    return assess(reward, answers).totals


def assess(reward: Reward, answers: Sequence[Answer]) -> Scores:
    """What answers are worth, checked.

    Raises:
        NumericError: the reward returned the wrong number of values, or one that is neither a finite number nor a
            finite number for each response token. The offending response is named.
    """
    values = reward(answers)
    if isinstance(values, Scores):
        return values
    scores = [
        _checked(reward.name, value, answer)
        for value, answer in zip(counted(reward.name, values, answers), answers, strict=True)
    ]
    passes = ((reward.model.model, reward.reading(answers)),) if isinstance(reward, ReadsTokens) else ()
    return Scores(scores, calls=len(answers), passes=passes)


def counted(name: str, values: Any, answers: Sequence[Answer]) -> Sequence[Any]:
    """The values, if there is one for each answer.

    Raises:
        NumericError: there is not.
    """
    if not hasattr(values, "__len__") or isinstance(values, str | Mapping | Set) or getattr(values, "ndim", 1) == 0:
        raise NumericError(
            f"reward {name} returned {type(values).__name__}, not a list of numbers, one for each response"
        )
    if len(values) != len(answers):
        raise NumericError(
            f"reward {name} returned {len(values)} values for {len(answers)} responses; return one for each"
        )
    return values


def named(answer: Answer) -> str:
    """An answer as a message names it."""
    return f"the response {answer.response[:80]!r} to the prompt {answer.prompt[-80:]!r}"


def _checked(name: str, value: object, answer: Answer) -> Score:
    if _is_row(value):
        tokens = list(value)
        if len(tokens) != len(answer.response_ids):
            raise NumericError(
                f"reward {name} gave {len(tokens)} numbers to the {len(answer.response_ids)} tokens of {named(answer)}"
            )
        for place, one in enumerate(tokens):
            if not _is_finite(one):
                raise NumericError(
                    f"reward {name} gave {_seen(one)}, not a finite number, to token {place + 1} of {named(answer)}"
                )
        found = tuple(float(one) for one in tokens)
        return Score(math.fsum(found), found)
    if not _is_finite(value):
        raise NumericError(f"reward {name} gave {_seen(value)}, not a finite number, to {named(answer)}")
    return Score(float(value))


def _is_row(value: object) -> TypeGuard[Sequence[Any]]:
    """A list, or an array or tensor with a dimension."""
    return (isinstance(value, Sequence) and not isinstance(value, str | bytes)) or getattr(value, "ndim", 0) > 0


def _is_finite(value: object) -> TypeGuard[SupportsFloat]:
    truth = isinstance(value, bool) or str(getattr(value, "dtype", "")).removeprefix("torch.") == "bool"
    if truth or not isinstance(value, SupportsFloat) or _is_row(value):
        return False
    try:
        return math.isfinite(float(value))
    except (ArithmeticError, TypeError, ValueError, RuntimeError):  # an int beyond floats, a complex tensor
        return False


def _seen(value: object) -> str:
    """A value as a message shows it: on one line, and its beginning alone where it is long."""
    return " ".join(reprlib.repr(value).split())
