"""A queue of responses to be, sampled so that the batch stays full to the queue's end.

Those that begin together are a cohort. Layers, head and choice run over the newest tokens of all cohorts at once,
attention cohort by cohort: young responses don't pay for the length of old ones. A response that is done leaves, and as
soon as enough have left, the next cohort begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from preflab.models.head import Reader
from preflab.rollouts.cohort import Cohort, Finished, next_states
from preflab.rollouts.decoder import Decoder
from preflab.rollouts.watch import Watch
from preflab.seeds import derive

REFILL = 0.25
"""The share of the batch that is free when the next cohort begins: each cohort costs calls of its own."""
CHECKED_EVERY = 8
"""Tokens after which a GPU is asked which responses have ended: to ask is to wait for it."""

Row = tuple[str, tuple[int, ...], int]
"""A response to be: its prompt's key and token ids, the sample index."""


@dataclass(frozen=True)
class Draws:
    """How tokens are drawn."""

    seed: int | None
    """None: the likeliest is taken."""
    limit: int
    """How many tokens a response may have, at least 1."""

    def uniforms(self, rows: Sequence[Row], device: torch.device) -> Float[Tensor, "row step"] | None:
        """Each row's stream, which its key and sample index determine."""
        if self.seed is None:
            return None
        streams = [np.random.Philox(derive(self.seed, key, index)) for key, _, index in rows]
        drawn = np.stack([np.random.Generator(stream).random(self.limit) for stream in streams])
        return torch.from_numpy(drawn).to(device)


def in_cohorts(
    decoder: Decoder,
    logits: Reader,
    queue: Sequence[Row],
    draws: Draws,
    watch: Watch,
    *,
    vocabulary: int,
    size: int,
    device: torch.device,
    states: bool,
) -> Iterator[Finished]:
    """The rows of the queue as they are done, at most `size` at a time.

    Args:
        logits: of last states.
        queue: equal prompts beside each other.
        states: whether last states are kept.
    """
    every = CHECKED_EVERY if device.type == "cuda" and not watch.reads else 1
    cohorts: list[Cohort] = []
    begun = 0
    for step in count(1):
        before = next_states(decoder, cohorts)
        free = size - sum(len(cohort.rows) for cohort in cohorts)
        if begun < len(queue) and (free >= REFILL * size or not cohorts):
            rows = range(begun, min(begun + free, len(queue)))
            begun = rows.stop
            waiting = [queue[row] for row in rows]
            uniforms = draws.uniforms(waiting, device)
            cohorts.append(
                Cohort(rows, [prompt for _, prompt, _ in waiting], uniforms, limit=draws.limit, device=device)
            )
            before.append(cohorts[-1].read(decoder))
        if not cohorts:
            return
        together = before[0] if len(before) == 1 else torch.cat(before)
        uniforms = None if draws.seed is None else torch.cat([cohort.uniforms_here() for cohort in cohorts])
        numbers = [row for cohort in cohorts for row in cohort.rows]
        following = watch.following(numbers, vocabulary)
        tokens, logprobs = watch.choose(numbers, logits(together, following.tokens), uniforms, following)
        rows_of = [len(cohort.rows) for cohort in cohorts]
        for cohort, *taken in zip(
            cohorts, *(part.split(rows_of) for part in (tokens, logprobs, together)), strict=True
        ):
            cohort.take(*taken, keep_states=states)
            if step % every == 0 or cohort.full:
                yield from cohort.leave(cohort.done(watch, every))
        cohorts = [cohort for cohort in cohorts if cohort.rows]
