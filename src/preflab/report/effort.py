"""How many seeds, or prompts, would settle a question that a study left open."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, assert_never

from scipy import special

from preflab.report.statistics import Matrix, MeanSquares, mean_squares
from preflab.report.wording import count, number

MOST_SEEDS = 50
MOST_PROMPTS = 20_000
POWER = 0.8
"""How often the study that is asked for would settle the gap."""

Need = Literal["seeds", "prompts", "neither"]


@dataclass(frozen=True)
class Effort:
    """What would settle a gap: `amount` more seeds, or prompts in all; "neither" where neither does within
    MOST_SEEDS and MOST_PROMPTS."""

    gap: float
    need: Need
    amount: int | None


def effort(values: Matrix, gap: float, confidence: float) -> Effort | None:
    """What would settle a difference of `gap`, by the variances that `values` (seed × prompt) show.

    Seeds or prompts, whichever makes the study grow less. None with one seed, whose variance between runs is unknown.

    >>> import numpy as np
    >>> effort(np.array([[0.0, 1.0, 2.0, 0.5], [0.4, 1.5, 2.1, 0.9]]), 2.0, 0.95)
    Effort(gap=2.0, need='seeds', amount=1)
    """
    if len(values) < 2:
        return None
    squares = mean_squares(values)
    shown = variances(squares)
    more_seeds = list(range(squares.seeds + 1, squares.seeds + MOST_SEEDS + 1))
    more_prompts = round_counts(squares.prompts, MOST_PROMPTS)
    of_seeds = first(more_seeds, lambda n: settles(shown, n, squares.prompts, gap, confidence))
    of_prompts = first(more_prompts, lambda n: settles(shown, squares.seeds, n, gap, confidence))
    if of_prompts and (not of_seeds or of_prompts / squares.prompts < of_seeds / squares.seeds):
        return Effort(gap, "prompts", of_prompts)
    return Effort(gap, "seeds", of_seeds - squares.seeds) if of_seeds else Effort(gap, "neither", None)


def first(counts: Sequence[int], enough: Callable[[int], bool]) -> int | None:
    """The smallest of ascending counts that is enough, where every larger one is too; None where none is.

    >>> first([10, 20, 30], lambda n: n > 15)
    20
    """
    place = bisect_left(counts, True, key=enough)
    return counts[place] if place < len(counts) else None


@dataclass(frozen=True)
class Variances:
    """Of the crossed random effects."""

    seed: float
    prompt: float
    error: float


def variances(squares: MeanSquares) -> Variances:
    """The variances behind mean squares; 0 where chance made a difference of them negative."""
    return Variances(
        seed=max(squares.seed - squares.error, 0.0) / squares.prompts,
        prompt=max(squares.prompt - squares.error, 0.0) / squares.seeds,
        error=squares.error,
    )


def in_words(asked: Effort | None, values: Matrix, gap: float, prompts: str) -> str:
    """The sentence behind "no difference found"; `prompts` is what they are called.

    >>> import numpy as np
    >>> in_words(Effort(0.25, "seeds", 1), np.zeros((3, 64)), 0.25, "test prompts")
    '1 more seed would settle a gap of 0.25.'
    """
    if asked is None:
        return f"One seed says nothing about other training runs: 3 would tell how many settle a gap of {number(gap)}."
    match asked.need:
        case "seeds":
            return f"{asked.amount} more seed{'' if asked.amount == 1 else 's'} would settle a gap of {number(gap)}."
        case "prompts":
            now = values.shape[1]
            return f"More prompts, {count(asked.amount)} {prompts} for {now:,}, would settle a gap of {number(gap)}."
        case "neither":
            return f"More than {MOST_SEEDS} more seeds would be needed to settle a gap of {number(gap)}."
        case never:
            assert_never(never)


def settles(shown: Variances, seeds: int, prompts: int, gap: float, confidence: float) -> bool:
    """Whether a study of this size is expected to find a true gap in POWER of the cases."""
    planned = MeanSquares(
        seeds,
        prompts,
        seed=shown.error + prompts * shown.seed,
        prompt=shown.error + seeds * shown.prompt,
        error=shown.error,
    )
    standard = (planned.total / (seeds * prompts)) ** 0.5
    return planned.half_width(confidence) + float(special.ndtri(POWER)) * standard <= gap


def round_counts(above: int, most: int) -> list[int]:
    """Round counts above `above`, ascending.

    >>> round_counts(64, 130)
    [70, 80, 90, 100, 120]
    """
    counts = (
        digits * 10**zeros for zeros in range(1, 5) for digits in (10, 12, 15, 20, 25, 30, 40, 50, 60, 70, 80, 90)
    )
    return sorted({count // 10 for count in counts if above < count // 10 <= most})
