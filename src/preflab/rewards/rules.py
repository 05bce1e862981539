"""Rewards that are read off the text by a rule."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

from preflab.errors import DataError
from preflab.rewards.protocol import Answer, named


@dataclass(frozen=True)
class PatternReward:
    """`match` where a response matches a regular expression, `other` elsewhere.

    Args:
        pattern: in the syntax of `re`; `^` and `$` are the ends of the response.
        whole: the whole response must match, not some part of it.

    >>> answers = [Answer("2 + 2 =", text, (1,), (2,), True) for text in (" 4", " 4 or 5", " four")]
    >>> PatternReward("digits", r"\\d")(answers), PatternReward("digits", r"\\s*\\d", whole=True)(answers)
    ([1.0, 1.0, 0.0], [1.0, 0.0, 0.0])
    """

    name: str
    pattern: str
    whole: bool = False
    match: float = 1.0
    other: float = 0.0

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """`match` or `other`, one an answer."""
        compiled = re.compile(self.pattern)
        found = compiled.fullmatch if self.whole else compiled.search
        return [self.match if found(answer.response) else self.other for answer in answers]


@dataclass(frozen=True)
class Verifier:
    """`match` where a response gives the answer that stands beside its prompt, `other` elsewhere.

    What is compared is the last match of `extract` in the response (its first group, where it has one), or the whole
    response; without the white space around it. An answer that is text must be the same text; one that is a number, the
    same number, thousands set apart by commas or not.

    >>> rows = [(" 2 + 2 makes #### 4", "4"), (" #### 1,000.0", 1000), (" four", "4")]
    >>> answers = [Answer("2 + 2?", text, (1,), (2,), True, {"answer": right}) for text, right in rows]
    >>> Verifier("answer", column="answer", extract=r"####\\s*(\\S+)")(answers)
    [1.0, 1.0, 0.0]
    """

    name: str
    column: str
    extract: str | None = None
    match: float = 1.0
    other: float = 0.0

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """`match` or `other`, one an answer.

        Raises:
            DataError: a prompt has no answer, or one that is neither text nor a number.
        """
        return [self.match if self._right(answer) else self.other for answer in answers]

    def _right(self, answer: Answer) -> bool:
        expected = answer.fields.get(self.column)
        if not is_verifiable(expected):
            raise DataError(f'the column "{self.column}" holds no text or number beside {named(answer)}')
        given = self._given(answer.response)
        if given is None:
            return False
        if isinstance(expected, str):
            return given.strip() == expected.strip()
        return _number(given) == expected

    def _given(self, response: str) -> str | None:
        if self.extract is None:
            return response
        matches = list(re.finditer(self.extract, response))
        if not matches:
            return None
        text: str | None = matches[-1][1 if matches[-1].re.groups else 0]
        return text


def is_verifiable(expected: object) -> TypeGuard[str | int | float]:
    """Whether a response can be held against this: text, or a number."""
    return isinstance(expected, str | int | float) and not isinstance(expected, bool)


def _number(text: str) -> int | float | None:
    digits = text.strip().replace(",", "")
    for read in (int, float):  # an integer beyond 2^53 is another one as a float
        try:
            return read(digits)
        except ValueError:
            pass
    return None
