"""A batch of responses through a model's own forward pass and cache: for any causal model of transformers.

What a model's cache is, and whether padding on the left leaves its rows alone, is tried once for each model: a
recurrent state carries padding along, and no mask takes it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from inspect import signature
from itertools import groupby
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from preflab.models.head import close, without_dropout
from preflab.models.precision import at_work, working
from preflab.rollouts.modules import ROWS, STEPS, steady_length
from preflab.rollouts.watch import Watch

Prompts = Sequence[tuple[int, ...]]


class Way(Enum):
    """How a model goes on from one token to the next, the fastest first."""

    PADDED = "plain loop over the model's own cache"
    """Prompts of any lengths together, padded on the left."""
    ALIKE = "plain loop over the model's own cache, prompts of one length at a time"
    WHOLE = "plain loop that reads the whole sequence again for each token"


def way_of(model: Any, longest: int) -> Way:
    """The fastest way that gives the logits of the model's plain pass, for sequences of up to `longest` tokens."""
    if longest > steady_length(model):  # what was cached was for a shorter one
        return Way.WHOLE
    if model not in _ways:
        with without_dropout(model), working(model):
            _ways[model] = next((way for way in (Way.PADDED, Way.ALIKE) if _suits(model, way)), Way.WHOLE)
    return _ways[model]


@at_work
def decode(
    model: Any,
    prompts: Prompts,
    uniforms: Float[Tensor, "row step"] | None,
    *,
    max_new_tokens: int,
    rows: Sequence[int],
    watch: Watch,
) -> tuple[Int[Tensor, "row step"], Float[Tensor, "row step"]]:
    """Tokens and log-probabilities; after a row's end token they mean nothing.

    Args:
        rows: the prompts' numbers in `watch`.
    """
    way = way_of(model, max(map(len, prompts)) + max_new_tokens)
    tokens = torch.full((len(prompts), max_new_tokens), watch.end_id, device=model.device)
    logprobs = torch.zeros(tokens.shape, device=model.device)
    for places in _batches(prompts, way):
        place = torch.tensor(places, device=model.device)
        loop = _Loop(model, [prompts[number] for number in places], way)
        numbers = [rows[number] for number in places]
        ended = torch.zeros(len(places), dtype=torch.bool, device=model.device)
        drawn = None
        for step in range(max_new_tokens):
            logits = loop.logits(drawn)
            following = watch.following(numbers, logits.shape[1])
            if following.tokens is not None:
                logits = logits[:, following.tokens]
            drawn, chosen = watch.choose(
                numbers, logits, None if uniforms is None else uniforms[place, step], following
            )
            tokens[place, step], logprobs[place, step] = drawn, chosen
            ended |= drawn == watch.end_id
            if all(watch.ended[number] for number in numbers) or bool(ended.all()):
                break
    return tokens, logprobs


def _batches(prompts: Prompts, way: Way) -> list[list[int]]:
    """The rows that go together."""
    rows = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    if way is Way.PADDED:
        return [rows]
    return [list(alike) for _, alike in groupby(rows, key=lambda row: len(prompts[row]))]


class _NoCache(Exception):
    """The model gives back no cache that this way can use."""


class _Loop:
    """Some sequences, and what the model remembers of them."""

    def __init__(self, model: Any, prompts: Prompts, way: Way) -> None:
        self.model, self.way = model, way
        self.takes = signature(model.forward).parameters
        longest = max(map(len, prompts))
        # Padded on the left, so that all rows emit at the same column.
        rows = [(*[0] * (longest - len(prompt)), *prompt) for prompt in prompts]
        mask = [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        self.token_ids = torch.tensor(rows, device=model.device)
        self.mask = torch.tensor(mask, device=model.device)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        # Without padding, no mask: the model's causal kernel is exact and faster.
        self.padded = min(map(len, prompts)) < longest
        self.cache: dict[str, Any] = {}

    def logits(self, tokens: Int[Tensor, " row"] | None) -> Float[Tensor, "row vocabulary"]:
        """Those after the sequences, with another token each; None: after the prompts."""
        if tokens is not None:
            self.token_ids = self._with(self.token_ids, tokens)
            self.positions = self._with(self.positions, self.positions[:, -1] + 1)
            if self.padded:
                self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], 1)
        given = {"input_ids": self.token_ids, "use_cache": self.way is not Way.WHOLE} | self.cache
        if "position_ids" in self.takes:
            given["position_ids"] = self.positions
        if "logits_to_keep" in self.takes:
            given["logits_to_keep"] = 1
        if self.padded:
            given["attention_mask"] = self.mask
        outputs = self.model(**given)
        if self.way is not Way.WHOLE:
            self.cache = self._cache(outputs)
        logits: Tensor = outputs.logits[:, -1]
        return logits

    def _with(self, columns: Int[Tensor, "row column"], more: Int[Tensor, " row"]) -> Int[Tensor, "row column"]:
        """What the model reads next."""
        return torch.cat([columns, more.unsqueeze(1)], 1) if self.way is Way.WHOLE else more.unsqueeze(1)

    def _cache(self, outputs: Any) -> dict[str, Any]:
        for name in ("past_key_values", "cache_params", "state"):
            cache = getattr(outputs, name, None)
            if cache is not None and name in self.takes:
                if self.way is Way.PADDED and not _keeps_keys_alone(cache):
                    raise _NoCache
                return {name: cache}
        raise _NoCache


def _keeps_keys_alone(cache: Any) -> bool:
    """Whether no state of a token is mixed into the next one's, which padding would be too."""
    return type(cache) is DynamicCache and not any(hasattr(layer, "recurrent_states") for layer in cache.layers)


_ways: WeakKeyDictionary[Any, Way] = WeakKeyDictionary()


@torch.no_grad()
def _suits(model: Any, way: Way) -> bool:
    """Whether small rows get the logits of the model's pass over each alone."""
    smallest = len(model.get_input_embeddings().weight)
    rows = [tuple(token % smallest for token in row) for row in ROWS]
    try:
        for batch in _batches(rows, way):
            ends = [len(rows[row]) - STEPS for row in batch]
            loop = _Loop(model, [rows[row][:end] for row, end in zip(batch, ends, strict=True)], way)
            read = None
            for step in range(STEPS):
                found = loop.logits(read)
                for logits, row, end in zip(found, batch, ends, strict=True):
                    alone = torch.tensor([rows[row][: end + step]], device=model.device)
                    if not close(logits, model(input_ids=alone, use_cache=False).logits[0, -1]):
                        return False
                read = torch.tensor(
                    [rows[row][end + step] for row, end in zip(batch, ends, strict=True)], device=model.device
                )
    except Exception:  # whatever a model makes of padding, or of a cache that it does not know
        return False
    return True
