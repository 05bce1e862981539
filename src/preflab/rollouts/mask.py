"""Which tokens a response may go on with: what a grammar has to say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, TypeVar

from jaxtyping import Bool
from torch import Tensor

State = TypeVar("State")


class TokenMask(Protocol[State]):
    """An automaton over tokens, one state a response.

    A state is a value: `advance` gives another and leaves it as it is, so responses may share one, and what is allowed
    in a state can be kept in a table.
    """

    def start(self, prompt: tuple[int, ...]) -> State:
        """Before the first token of a response."""
        ...

    def advance(self, state: State, token: int) -> State:
        """After a token that was allowed. It is not asked for the token that ends the response."""
        ...

    def allowed(self, states: Sequence[State]) -> Bool[Tensor, "row vocabulary"]:
        """The tokens that may follow each state, at least one, on whatever device; the end token among them where the
        response may end. As wide as the model's output head."""
        ...
