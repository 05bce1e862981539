"""Which tokens a response may go on with: what a grammar has to say, in sampling and in scoring."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from preflab.data.pack import Packed
from preflab.errors import ConfigError
from preflab.models.allowed import Allowed
from preflab.models.scoring import Grammar

State = TypeVar("State", bound=Hashable)

KNOWN_BYTES = 2**26
"""How much of what a mask has said is remembered: a byte for each state and token."""
SHOWN_TOKENS = 12
"""How many of a response's last tokens an error message shows."""


class TokenMask(Protocol[State]):
    """An automaton over tokens, one state a response.

    A state is a hashable value: `advance` gives another and leaves it as it is. Responses share states, and a state is
    asked only once, as a rule, where a token leads and what it allows.
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


@dataclass(slots=True, eq=False)
class Place(Generic[State]):
    """A state that responses came to, and what the mask said of it."""

    state: State
    allowed: Bool[Tensor, " vocabulary"] | None = None
    """None: it was not asked."""
    dead: bool = False
    """Nothing is allowed."""
    after: dict[int, Place[State]] = field(default_factory=dict)
    """Where tokens led."""

    def allows(self, token: int) -> bool:
        """Of a place that was asked."""
        if token in self.after:
            return True
        assert self.allowed is not None
        return token < len(self.allowed) and bool(self.allowed[token])


class Places(Generic[State]):
    """A mask, and what it said: each state is asked once, until too many are known."""

    def __init__(self, mask: TokenMask[State]) -> None:
        self.mask = mask
        self.width = 0
        """Tokens that it knows; 0: it was not asked yet."""
        self._known: dict[State, Place[State]] = {}

    def start(self, prompt: tuple[int, ...]) -> Place[State]:
        """Before the first token of a response."""
        return self._of(self.mask.start(prompt))

    def advance(self, place: Place[State], token: int) -> Place[State]:
        """After a token that is allowed at a place."""
        found = place.after.get(token)
        if found is None:
            found = place.after[token] = self._of(self.mask.advance(place.state, token))
        return found

    def ask(self, places: Iterable[Place[State]]) -> list[Place[State]]:
        """The places, each once, after the mask said what they allow.

        Raises:
            ConfigError: the mask doesn't answer with a row for each state.
        """
        distinct = list(dict.fromkeys(places))
        asked = [place for place in distinct if place.allowed is None]
        if not asked:
            return distinct
        found = self.mask.allowed([place.state for place in asked])
        if found.ndim != 2 or len(found) != len(asked):
            raise ConfigError(
                f"the token mask is of shape {tuple(found.shape)} for {len(asked)} states: it has a row for each, as "
                "wide as the model's output head"
            )
        width = self.width = found.shape[1]
        for place, row, alive in zip(asked, found, found.any(1).tolist(), strict=True):
            place.allowed, place.dead = row, not alive
        if len(self._known) * width > KNOWN_BYTES:
            self._known.clear()
        return distinct

    def _of(self, state: State) -> Place[State]:
        found = self._known.get(state)
        if found is None:
            found = self._known[state] = Place(state)
        return found


def allowed_at(places: Sequence[Place[Any]]) -> Bool[Tensor, "place vocabulary"]:
    """What each of these places allows, which were asked."""
    return torch.stack([place.allowed for place in places if place.allowed is not None])


def numbered(places: Sequence[Place[Any]], distinct: Sequence[Place[Any]]) -> Int[Tensor, " place"]:
    """Which of some distinct places each of the places is."""
    number = {place: row for row, place in enumerate(distinct)}
    return torch.tensor([number[place] for place in places])


def grammar_of(mask: TokenMask[Any]) -> Grammar:
    """A mask as `models/scoring.py` takes it: what it allows along the responses of a batch, each token of which it has
    to allow. Log-probabilities are then those of what `sample` draws from under the same mask.

    >>> class Alternating:  # 1 and 2 by turns, and 0 ends
    ...     def start(self, prompt): return prompt[-1]
    ...     def advance(self, state, token): return token
    ...     def allowed(self, states): return torch.tensor([[True, state == 2, state == 1] for state in states])
    >>> from preflab.data.encode import Tree
    >>> from preflab.data.pack import pack
    >>> allowed = grammar_of(Alternating())(pack([Tree("a", (1,), ((2, 1, 0), (0,)))]))
    >>> allowed(slice(0, 4)).int().tolist()
    [[1, 0, 1], [1, 1, 0], [1, 0, 1], [1, 0, 1]]
    """
    places = Places(mask)
    last: tuple[Packed, Allowed] | None = None

    def of(batch: Packed) -> Allowed:
        nonlocal last
        if last is None or last[0] is not batch:  # several models read a batch, one after the other
            stood = [place for row in _trails(places, batch) for place in row]
            distinct = list(dict.fromkeys(stood))
            sets = [place.allowed for place in distinct if place.allowed is not None]
            last = batch, Allowed(sets, numbered(stood, distinct), batch.mask.device)
        return last[1]

    return of


def _trails(places: Places[Any], batch: Packed) -> list[list[Place[Any]]]:
    """The place before each token of each response.

    Raises:
        ConfigError: a token is not allowed there.
    """
    starts = batch.starts.tolist()
    prompts = [tuple(ids[:start]) for ids, start in zip(batch.token_ids.tolist(), starts, strict=True)]
    lengths = batch.mask.sum(1).tolist()
    responses = [ids[:length] for ids, length in zip(batch.response_ids.tolist(), lengths, strict=True)]
    trails = [[places.start(prompt)] for prompt in prompts]
    for step in range(max(lengths, default=0)):
        going = [row for row, length in enumerate(lengths) if step < length]
        places.ask(trails[row][step] for row in going)
        for row in going:
            place, token = trails[row][step], responses[row][step]
            if not place.allows(token):
                raise ConfigError(_forbidden(row, prompts[row], responses[row], step))
            if step + 1 < lengths[row]:
                trails[row].append(places.advance(place, token))
    return trails


def _forbidden(row: int, prompt: Sequence[int], response: Sequence[int], step: int) -> str:
    def shown(tokens: Sequence[int]) -> str:
        dots = "… " if len(tokens) > SHOWN_TOKENS else ""
        return dots + " ".join(map(str, tokens[-SHOWN_TOKENS:]))

    return (
        f"the token mask forbids token {response[step]} at place {step + 1} of response {row + 1} of the batch (prompt "
        f"{shown(prompt)}; tokens before it: {shown(response[:step]) or 'none'}), so that its log-probability would be "
        "−∞; score under the mask that sampled it, or leave the response out"
    )
