"""Responses while they grow: how their tokens are chosen, where more than the newest logits has a say, and where their
text ends them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preflab.config.sampling import Warp
from preflab.errors import ConfigError
from preflab.rollouts.choice import choose
from preflab.rollouts.mask import TokenMask
from preflab.rollouts.stop import Stop


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
        self.mask, self.device = mask, device
        self.reads = stop is not None or mask is not None
        """Whether tokens are read as they come, so that the device is waited for at each."""
        self.tokens: list[list[int]] = [[] for _ in prompts]
        """Of each response so far, nothing behind its end; where they are read."""
        self.ended = [False] * len(prompts)
        """By an end token or a stop string; where they are read."""
        self._states: list[Any] = [None if mask is None else mask.start(prompt) for prompt in prompts]
        self._seen: Int[Tensor, "response place"] | None = None
        if warp.repetition_penalty != 1:
            # Prompt and response; the rest is filled up with the prompt's first token, which is seen already.
            longest = max(len(prompt) for prompt in prompts) + room
            filled = [(*prompt, *prompt[:1] * (longest - len(prompt))) for prompt in prompts]
            self._seen = torch.tensor(filled, device=device)
            self._filled_to = torch.tensor([len(prompt) for prompt in prompts], device=device)

    def choose(
        self, rows: Sequence[int], logits: Float[Tensor, "row vocabulary"], uniforms: Float[Tensor, " row"] | None
    ) -> tuple[Int[Tensor, " row"], Float[Tensor, " row"]]:
        """The next token of each of these responses, and its log-probability, as `choice.choose` has it. Responses that
        have ended may be among them; their tokens mean nothing.

        Raises:
            ConfigError: the mask is not as wide as the logits, or allows nothing.
        """
        at = None if self._seen is None else torch.tensor(rows, device=self.device)
        drawn, logprobs = choose(
            logits,
            uniforms,
            temperature=self.temperature,
            warp=self.warp,
            seen=None if self._seen is None else self._seen[at],
            allowed=self._allowed(rows, logits.shape[1]),
        )
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
        if self.mask is not None and not self.ended[row]:
            self._states[row] = self.mask.advance(self._states[row], token)

    def _allowed(self, rows: Sequence[int], vocabulary: int) -> Bool[Tensor, "row vocabulary"] | None:
        if self.mask is None:
            return None
        found = self.mask.allowed([self._states[row] for row in rows])
        if found.shape != (len(rows), vocabulary):
            raise ConfigError(
                f"the token mask is of shape {tuple(found.shape)}, not {(len(rows), vocabulary)}: it has a row for "
                "each response, as wide as the model's output head"
            )
        for place in (~found.any(-1)).nonzero().flatten().tolist():
            row = rows[place]
            raise ConfigError(
                f'the token mask allows nothing in the response to "{self.keys[row]}" after its tokens '
                f"{self.tokens[row]}; let it allow the end token ({self.end_id}) where a response may end"
            )
        return found.to(self.device)
