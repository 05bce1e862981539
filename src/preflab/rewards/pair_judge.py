"""A user's Python function as a judge of pairs: which of two responses to a prompt is the better one."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from preflab.errors import ConfigError, NumericError
from preflab.rewards.function import load_function, words_of


@dataclass(frozen=True)
class PairJudge:
    """Probabilities that the first of two responses is the better one, as a function says them.

    It is called with three lists of texts, `function(prompts, first, second)`, and returns a number in [0, 1] for each
    prompt: 1 where the first response is better, 0 where the second is, ½ for a tie, and anything between.

    >>> def shorter(prompts, first, second):
    ...     return [float(len(one) < len(other)) for one, other in zip(first, second)]
    >>> PairJudge(shorter, "shorter")(["Why?"], [" So."], [" Because."])
    [1.0]
    """

    function: Callable[..., Any]
    name: str
    """Where it is: file.py:function."""
    source: str | None = None
    """The SHA-256 of its file; None where it is one of a module."""

    def __call__(self, prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        """The function's answers, checked.

        Raises:
            NumericError: it raised something (`__cause__`), or returned the wrong number of values, or one outside
                [0, 1]; the pair is named.
        """
        try:
            returned = self.function(list(prompts), list(first), list(second))
        except (Exception, SystemExit) as error:  # sys.exit(0) in a judge would look like success
            raise NumericError(f"the judge {self.name} raised {words_of(error)}") from error
        try:
            values = np.asarray(returned, dtype=np.float64)
        except (TypeError, ValueError):
            raise NumericError(f"the judge {self.name} returned no list of numbers; return one a prompt") from None
        if values.shape != (len(prompts),):
            raise NumericError(
                f"the judge {self.name} returned values of shape {values.shape} for {len(prompts)} prompts; "
                "return a list with one number a prompt"
            )
        outside = np.flatnonzero(~((values >= 0) & (values <= 1)))  # NaN is outside too
        if len(outside):
            i = int(outside[0])
            raise NumericError(
                f"the judge {self.name} gave {values[i]:g}, not a probability in [0, 1], to {first[i][:80]!r} before "
                f"{second[i][:80]!r} on the prompt {prompts[i][-80:]!r}"
            )
        return [float(value) for value in values]


def load_pair_judge(place: str) -> PairJudge:
    """The judge at `path/to/file.py:function` or `package.module:function`. Its module is run.

    Raises:
        ConfigError: there is no such function, or it doesn't take three lists.
    """
    function = load_function(place)
    try:
        inspect.signature(function).bind([], [], [])
    except (TypeError, ValueError):
        raise ConfigError(
            f"{place} can't be called as a judge of pairs is: function(prompts, first, second), three lists of texts"
        ) from None
    file = Path(place.rpartition(":")[0])
    return PairJudge(function, place, sha256(file.read_bytes()).hexdigest() if file.suffix == ".py" else None)
