"""A weighted sum of rewards, whose terms are seen apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from preflab.errors import NumericError
from preflab.rewards.protocol import Answer, Reward, Score, Scores, assess, named


@dataclass(frozen=True)
class Weighted:
    """A term of a sum."""

    name: str
    """Under which it is logged; no two terms share it."""
    weight: float
    """Finite; 0 logs the term and pays nothing."""
    reward: Reward


@dataclass(frozen=True)
class RewardSum:
    """Σ weight·reward.

    A term that rewards tokens pays each of them weight × its number; the others pay the whole response.

    Raises:
        ValueError: two terms have one name.

    >>> from preflab.rewards import Answer, PatternReward, assess
    >>> digit, polite = PatternReward("digit", r"\\d"), PatternReward("polite", "please")
    >>> both = RewardSum((Weighted("digit", 1.0, digit), Weighted("polite", 0.5, polite)))
    >>> assess(both, [Answer("Give me", " 4, please", (1,), (2,), True)]).values[0]
    Score(total=1.5, tokens=None, parts={'digit': 1.0, 'polite': 1.0})
    """

    terms: tuple[Weighted, ...]

    def __post_init__(self) -> None:
        names = [term.name for term in self.terms]
        if len(set(names)) < len(names):
            raise ValueError(f"two terms have one name: {names}")

    @property
    def name(self) -> str:
        """The terms with their weights."""
        return " + ".join(f"{term.weight:g}*{term.name}" for term in self.terms)

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer, with its parts.

        Raises:
            NumericError: a term's number is not finite, or the sum overflows.
        """
        found = [assess(term.reward, answers) for term in self.terms]
        rows = zip(*(scores.values for scores in found), strict=True)
        return Scores(
            [self._sum(row, answer) for row, answer in zip(rows, answers, strict=True)],
            calls=sum(scores.calls for scores in found),
            passes=tuple(one for scores in found for one in scores.passes),
        )

    def _sum(self, row: Sequence[Score], answer: Answer) -> Score:
        weighted = list(zip(self.terms, row, strict=True))
        dense = [[term.weight * value for value in part.tokens] for term, part in weighted if part.tokens is not None]
        total = sum(term.weight * part.total for term, part in weighted)
        if not math.isfinite(total):
            raise NumericError(f"reward {self.name} adds up to {total} for {named(answer)}; lower the weights")
        return Score(
            total,
            tuple(map(sum, zip(*dense, strict=True))) if dense else None,
            {term.name: part.total for term, part in weighted},
        )
