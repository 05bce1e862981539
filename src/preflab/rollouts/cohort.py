"""Responses that began together: what has been sampled of them so far."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from preflab.rollouts.cache import Cache
from preflab.rollouts.decoder import Decoder
from preflab.rollouts.watch import Watch

READ_AT_ONCE = 2048
"""How many tokens of prompts go through the model together, where no prompt alone is longer."""


class Finished(NamedTuple):
    """A row that has left."""

    row: int
    tokens: list[int]
    """Maybe with some behind the end token that mean nothing."""
    logprobs: list[float]
    states: Float[Tensor, "token width"] | None


class Cohort:
    """Some rows of the queue; those that are done leave, and the others close up."""

    def __init__(
        self,
        rows: Sequence[int],
        prompts: Sequence[tuple[int, ...]],
        uniforms: Float[Tensor, "row step"] | None,
        *,
        limit: int,
        device: torch.device,
    ) -> None:
        """
        Args:
            rows: their numbers in the queue.
            prompts: of each row, equal ones beside each other.
            uniforms: one a token to come.
            limit: how many tokens a response may have, at least 1.
        """
        self.rows = list(rows)
        self.length = 0
        """In response tokens."""
        groups = [(prompt, sum(1 for _ in same)) for prompt, same in groupby(prompts)]
        self.prompts = [prompt for prompt, _ in groups]
        self.responses = [count for _, count in groups]
        lengths = [len(prompt) for prompt in self.prompts]
        self.cache = Cache(lengths, self.responses, device)
        self.starts: Int[Tensor, " row"] = torch.tensor([len(prompt) for prompt in prompts], device=device)
        """The positions of the first response tokens."""
        self.uniforms = uniforms
        self.tokens = torch.zeros(len(rows), limit, dtype=torch.long, device=device)
        self.logprobs = torch.zeros(len(rows), limit, device=device)
        self.states: Float[Tensor, "row token width"] | None = None

    def read(self, decoder: Decoder) -> Float[Tensor, "row width"]:
        """Run the prompts: the state before each row's first token."""
        device = self.tokens.device
        found = []
        for part in self._parts():
            prompts = self.prompts[part]
            token_ids = torch.tensor([token for prompt in prompts for token in prompt], device=device)
            positions = torch.tensor([place for prompt in prompts for place in range(len(prompt))], device=device)
            last = torch.tensor([len(prompt) for prompt in prompts], device=device).cumsum(0) - 1
            found.append(decoder.states(token_ids, positions, self.cache.reading(part))[last])
        states = torch.cat(found)
        if len(self.prompts) == len(self.rows):
            return states
        return states.repeat_interleave(torch.tensor(self.responses, device=device), 0)

    def uniforms_here(self) -> Float[Tensor, " row"]:
        """Those of each row's next token."""
        assert self.uniforms is not None
        return self.uniforms[: len(self.rows), self.length]

    def take(
        self,
        tokens: Int[Tensor, " row"],
        logprobs: Float[Tensor, " row"],
        states: Float[Tensor, "row width"],
        *,
        keep_states: bool,
    ) -> None:
        """Each row's next token, and the state before it."""
        rows = len(self.rows)
        self.tokens[:rows, self.length] = tokens
        self.logprobs[:rows, self.length] = logprobs
        if keep_states:
            if self.states is None:
                self.states = states.new_empty(*self.tokens.shape, states.shape[1])
            self.states[:rows, self.length] = states
        self.length += 1

    @property
    def full(self) -> bool:
        """Whether the limit is reached."""
        return self.length == self.tokens.shape[1]

    def done(self, watch: Watch, last: int) -> list[int]:
        """The places of rows with an end token among their last tokens, so many, or whose end was read as it came; all
        where the limit is reached."""
        if self.full:
            return list(range(len(self.rows)))
        if watch.reads:
            return [place for place, row in enumerate(self.rows) if watch.ended[row]]
        newest = self.tokens[: len(self.rows), max(0, self.length - last) : self.length]
        found: list[int] = (newest == watch.end_id).any(1).nonzero().flatten().tolist()
        return found

    def leave(self, places: Sequence[int]) -> list[Finished]:
        """Take out the rows at these places, in rising order; the last ones move into the gaps."""
        if not places:
            return []
        chosen = torch.tensor(places, device=self.tokens.device)
        tokens = self.tokens[chosen, : self.length].tolist()
        logprobs = self.logprobs[chosen, : self.length].tolist()
        finished = [
            Finished(
                self.rows[place],
                ids,
                values,
                None if self.states is None else self.states[place, : self.length].clone(),
            )
            for place, ids, values in zip(places, tokens, logprobs, strict=True)
        ]
        left = len(self.rows) - len(places)
        gaps = [place for place in places if place < left]
        movers = sorted(set(range(left, len(self.rows))) - set(places))
        moves = list(zip(movers, gaps, strict=True))
        kept = [self.tokens, self.logprobs, self.starts, self.uniforms, self.states]
        for source, target in moves:
            self.rows[target] = self.rows[source]
            for full in kept:
                if full is not None:
                    full[target] = full[source]
        del self.rows[left:]
        self.cache.leave(moves, left)
        return finished

    def _parts(self) -> list[slice]:
        """Which prompts are read together."""
        bounds, cells = [0], 0
        for number, prompt in enumerate(self.prompts):
            if cells and cells + len(prompt) > READ_AT_ONCE:
                bounds.append(number)
                cells = 0
            cells += len(prompt)
        return [slice(a, b) for a, b in pairwise([*bounds, len(self.prompts)])]


def next_states(decoder: Decoder, cohorts: Sequence[Cohort]) -> list[Float[Tensor, "row width"]]:
    """The states before the next tokens of rows that have some, all in one pass; none where there are no cohorts."""
    if not cohorts:
        return []
    rows = [len(cohort.rows) for cohort in cohorts]
    token_ids = torch.cat([cohort.tokens[:n, cohort.length - 1] for cohort, n in zip(cohorts, rows, strict=True)])
    positions = torch.cat([cohort.starts[:n] + (cohort.length - 1) for cohort, n in zip(cohorts, rows, strict=True)])
    for cohort in cohorts:
        cohort.cache.advance()

    def attend(
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        parts = zip(cohorts, query.split(rows), key.split(rows), value.split(rows), strict=True)
        attended = [cohort.cache.step(layer, *part, scaling=scaling, softcap=softcap) for cohort, *part in parts]
        return attended[0] if len(attended) == 1 else torch.cat(attended)

    return [decoder.states(token_ids, positions, attend)]
