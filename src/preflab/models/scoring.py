"""The only place that knows logits and layouts: batches in, one number a response token out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from preflab.data.encode import Tree
from preflab.data.pack import Packed, pack
from preflab.losses.logprobs import masked_sum, token_logprobs
from preflab.progress import Advance

LOGITS_AT_ONCE = 2**27
"""How many logits a pass without gradients may hold: ½ GiB in float32. The full-vocabulary KL of two models takes some
eight times that."""


def rows_at_once(model: Any, positions: int, most: int) -> int:
    """How many rows of `positions` tokens to score at once without gradients: at most `most`, fewer for a large
    vocabulary. Changes no figure beyond rounding."""
    vocabulary: int = model.get_output_embeddings().weight.shape[0]
    return max(1, min(most, LOGITS_AT_ONCE // (vocabulary * positions)))


def trees_at_once(model: Any, trees: Sequence[Tree], most: int) -> int:
    """How many of these trees to score at once: at most `most`, as `rows_at_once` has it."""
    longest = max((len(tree.prompt) + max(map(len, tree.responses)) for tree in trees), default=1)
    widest = max((len(tree.responses) for tree in trees), default=1)
    return max(1, min(most, rows_at_once(model, longest, most * widest) // widest))


def response_logits(model: nn.Module, batch: Packed) -> Float[Tensor, "response token vocabulary"]:
    """The logits that predict each response token: those at the position before it.

    Logits of prompts are left out as far as the rows share them. What stands at masked tokens is arbitrary.
    """
    kept = _kept(batch)
    logits = model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=kept).logits
    return _at(logits, _before(batch, offset=int(kept[0])))


def response_states(model: nn.Module, batch: Packed) -> Float[Tensor, "response token width"]:
    """A causal model's last hidden state before each response token; arbitrary at masked tokens."""
    states = model.base_model(input_ids=batch.token_ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    return _at(states, _before(batch))


def response_logits_and_states(
    model: nn.Module, batch: Packed
) -> tuple[Float[Tensor, "response token vocabulary"], Float[Tensor, "response token width"]]:
    """Both in one pass, for a head that shares the model's trunk."""
    kept = _kept(batch)
    outputs = model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=kept, output_hidden_states=True)
    return (
        _at(outputs.logits, _before(batch, offset=int(kept[0]))),
        _at(outputs.hidden_states[-1], _before(batch)),
    )


def response_logprobs(model: nn.Module, batch: Packed, *, temperature: float = 1.0) -> Float[Tensor, "response token"]:
    """log π(y_t | x, y_<t) in nats at a temperature; 0 outside the mask."""
    logprobs = token_logprobs(response_logits(model, batch), batch.response_ids, temperature=temperature)
    return logprobs.masked_fill(~batch.mask, 0.0)


@torch.no_grad()
def logprobs_of(
    model: Any, trees: Sequence[Tree], *, batch_size: int = 16, advance: Advance = lambda done, note: None
) -> Float[Tensor, " response"]:
    """log π(y|x) in nats of each response, tree by tree."""
    parts = [torch.zeros(0)]
    size = trees_at_once(model, trees, batch_size)
    for begin in range(0, len(trees), size):
        batch = pack(trees[begin : begin + size]).to(model.device)
        parts.append(masked_sum(response_logprobs(model, batch), batch.mask).cpu())
        advance(min(begin + size, len(trees)), "")
    return torch.cat(parts)


def response_values(model: nn.Module, batch: Packed) -> Float[Tensor, "response token"]:
    """A value model's V before each response token is emitted, in units of reward; 0 outside the mask."""
    values = _scalars(model, batch)
    return values.gather(1, _before(batch)).masked_fill(~batch.mask, 0.0)


def response_scores(model: nn.Module, batch: Packed) -> Float[Tensor, " response"]:
    """A reward model's score less its recorded offset, read at the last response token: found by length, never by
    token value."""
    last = batch.starts + batch.mask.sum(1) - 1
    return _scalars(model, batch).gather(1, last.unsqueeze(1)).squeeze(1)


def _scalars(model: nn.Module, batch: Packed) -> Float[Tensor, "response position"]:
    """The score head at every position: a sequence-classification model's body and head, without its pooling.

    The offset recorded by reward training is taken off: the head itself has no bias and is saved as trained.
    """
    states = model.base_model(input_ids=batch.token_ids, use_cache=False).last_hidden_state  # type: ignore[operator]
    scores: Tensor = model.score(states)  # type: ignore[operator]
    offset = float(getattr(model.config, "reward_offset", 0.0))
    return scores.squeeze(-1).float() - offset


def _kept(batch: Packed) -> Int[Tensor, " position"]:
    """The positions whose logits predict a response token of some row."""
    last = batch.token_ids.shape[1] - 1  # the logits of the last position predict nothing that is there
    return torch.arange(int(batch.starts.min()) - 1, last, device=batch.token_ids.device)


def _before(batch: Packed, offset: int = 0) -> Int[Tensor, "response token"]:
    """The position before each response token, counted from `offset`; a position inside the row where masked."""
    steps = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    return (batch.starts.unsqueeze(1) - 1 - offset + steps).clamp(max=batch.token_ids.shape[1] - 2 - offset)


def _at(
    outputs: Float[Tensor, "response position channel"], positions: Int[Tensor, "response token"]
) -> Float[Tensor, "response token channel"]:
    index = positions.unsqueeze(-1).expand(-1, -1, outputs.shape[-1])
    return outputs.gather(1, index)
