"""Responses while they grow: how their tokens are chosen, where more than the newest logits has a say, and where their
text ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preflab.config.sampling import Warp
from preflab.errors import ConfigError
from preflab.rollouts.choice import choose
from preflab.rollouts.mask import Place, Places, TokenMask, allowed_at, numbered
from preflab.rollouts.stop import Stop

MOST_CHOSEN = 0.5
"""The largest share of the vocabulary whose logits are made apart from the others."""


class Following(NamedTuple):
    """Which tokens may follow some responses."""

    tokens: Int[Tensor, " some"] | None = None
    """All that may follow one of them, rising: no other logits need be made; None: those of the whole vocabulary."""
    allowed: Bool[Tensor, "row some"] | None = None
    """Which of these may follow each; None: every one."""


class Watch:
    """Chooses the tokens of responses, which are known by their numbers, and remembers what that takes.

    Args:
        prompts, keys: of each response.
        end_id: the end token.
        room: the most tokens of a response.
        device: the model's.
        stop: None: the end token alone ends a response.
        mask: None: every token may follow.
    """

    def __init__(
        self,
        prompts: Sequence[tuple[int, ...]],
        keys: Sequence[str],
        *,
        end_id: int,
        room: int,
        device: torch.device,
        temperature: float,
        warp: Warp,
        stop: Stop | None,
        mask: TokenMask[Any] | None,
    ) -> None:
        self.keys, self.end_id, self.temperature, self.warp, self.stop = keys, end_id, temperature, warp, stop
        self.device = device
        self.reads = stop is not None or mask is not None
        """Whether tokens are read as they come, so that the device is waited for at each."""
        self.tokens: list[list[int]] = [[] for _ in prompts]
        """Of each response so far, nothing behind its end; where they are read."""
        self.ended = [False] * len(prompts)
        """By an end token or a stop string; where they are read."""
        self._known = None if mask is None else Places(mask)
        self._places: list[Place[Any]] = [] if self._known is None else [self._known.start(each) for each in prompts]
        """Of each response."""
        self._seen: Int[Tensor, "response place"] | None = None
        if warp.repetition_penalty != 1:
            # Prompt and response; the rest is filled up with the prompt's first token, which is seen already.
            longest = max(len(prompt) for prompt in prompts) + room
            filled = [(*prompt, *prompt[:1] * (longest - len(prompt))) for prompt in prompts]
            self._seen = torch.tensor(filled, device=device)
            self._filled_to = torch.tensor([len(prompt) for prompt in prompts], device=device)

    def following(self, rows: Sequence[int], vocabulary: int) -> Following:
        """What may be the next token of each of these responses.

        Args:
            vocabulary: how wide the model's output head is.

        Raises:
            ConfigError: the mask is not as wide, or allows nothing.
        """
        if self._known is None:
            return Following()
        here = [self._places[row] for row in rows]
        distinct = self._known.ask(here)
        if any(place.dead for place in distinct):
            row = next(row for row in rows if self._places[row].dead)
            raise ConfigError(
                f'the token mask allows nothing in the response to "{self.keys[row]}" after its tokens '
                f"{self.tokens[row]}; let it allow the end token ({self.end_id}) where a response may end"
            )
        if self._known.width != vocabulary:
            raise ConfigError(
                f"the token mask is of shape {(len(rows), self._known.width)}, not {(len(rows), vocabulary)}: it has a "
                "row for each response, as wide as the model's output head"
            )
        table = allowed_at(distinct)
        tokens: Tensor | None = table.any(0).nonzero().squeeze(1)
        assert tokens is not None
        if self._seen is not None or len(tokens) > MOST_CHOSEN * vocabulary:  # penalties look up any token
            tokens = None
        elif len(distinct) == 1:
            return Following(tokens.to(self.device))
        else:
            table, tokens = table[:, tokens], tokens.to(self.device)
        return Following(tokens, table.to(self.device)[numbered(here, distinct).to(self.device)])

    def choose(
        self,
        rows: Sequence[int],
        logits: Float[Tensor, "row some"],
        uniforms: Float[Tensor, " row"] | None,
        following: Following,
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """The next token of each of these responses, and its log-probability, as `choice.choose` has it. Responses that
        have ended may be among them; their tokens mean nothing.

        Args:
            logits: of the tokens that may follow.
        """
        at = None if self._seen is None else torch.tensor(rows, device=self.device)
        drawn, logprobs = choose(
            logits,
            uniforms,
            temperature=self.temperature,
            warp=self.warp,
            seen=None if self._seen is None else self._seen[at],
            allowed=following.allowed,
        )
        if following.tokens is not None:
            drawn = following.tokens[drawn]
        if self._seen is not None:
            self._seen[at, self._filled_to[at]] = drawn
            self._filled_to[at] += 1
        if self.reads:
            for row, token in zip(rows, drawn.tolist(), strict=True):
                self._read(row, token)
        return drawn, logprobs

    def end(self, row: int, tokens: Sequence[int]) -> tuple[int, bool]:
        """How many of the tokens that were drawn for a response are its own, and whether it ended by itself."""
        if self.reads:
            return len(self.tokens[row]), self.ended[row]
        ended = self.end_id in tokens
        return tokens.index(self.end_id) + 1 if ended else len(tokens), ended

    def _read(self, row: int, token: int) -> None:
        if self.ended[row]:
            return
        tokens = self.tokens[row]
        tokens.append(token)
        self.ended[row] = token == self.end_id or (self.stop is not None and self.stop.completed_by(tokens))
        if self._known is not None and not self.ended[row]:
            self._places[row] = self._known.advance(self._places[row], token)
