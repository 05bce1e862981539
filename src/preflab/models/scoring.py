"""The only place that knows logits and layouts: batches in, one number a response token out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from preflab.data.encode import Tree
from preflab.data.pack import Layout, Packed, cells, flat, pack, tree
from preflab.losses.logprobs import masked_sum, token_logprobs
from preflab.models.attention import NoTree, say_no_tree, takes_trees, tree_states
from preflab.models.head import head_of
from preflab.progress import Advance

TREE_SHARE = 0.9
"""The tree layout is taken where it has at most this share of the flat layout's cells."""

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
    """The logits that predict each response token: those at the position before it, and of no other position.

    What stands at masked tokens is arbitrary.
    """
    head = head_of(model)
    if head is None:
        return _own_logits(model, batch)
    return head.logits(model, response_states(model, batch))


def response_states(model: nn.Module, batch: Packed) -> Float[Tensor, "response token width"]:
    """A causal model's last hidden state before each response token; arbitrary at masked tokens."""
    states, layout = _states(model, batch)
    return states[layout.before]


def response_logits_and_states(
    model: nn.Module, batch: Packed
) -> tuple[Float[Tensor, "response token vocabulary"], Float[Tensor, "response token width"]]:
    """Both in one pass, for a head that shares the model's trunk."""
    states, head = response_states(model, batch), head_of(model)
    return (_own_logits(model, batch) if head is None else head.logits(model, states)), states


def response_logprobs(model: nn.Module, batch: Packed, *, temperature: float = 1.0) -> Float[Tensor, "response token"]:
    """log π(y_t | x, y_<t) in nats at a temperature; 0 outside the mask. Never holds the logits of all tokens, but for
    models whose way from states to logits is not known."""
    head = head_of(model)
    if head is None:
        logprobs = token_logprobs(_own_logits(model, batch), batch.response_ids, temperature=temperature)
        return logprobs.masked_fill(~batch.mask, 0.0)
    states, layout = _states(model, batch)
    found = head.logprobs(
        model, states[layout.before[batch.mask]], batch.response_ids[batch.mask], temperature=temperature
    )
    return found.new_zeros(batch.mask.shape).masked_scatter(batch.mask, found)


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
    states, layout = _states(model, batch)
    return _scalars(model, states[layout.before]).masked_fill(~batch.mask, 0.0)


def response_scores(model: nn.Module, batch: Packed) -> Float[Tensor, " response"]:
    """A reward model's score less its recorded offset, read at the last response token: found by length, never by
    token value."""
    states, layout = _states(model, batch, ends=True)
    return _scalars(model, states[layout.last])


def _scalars(model: Any, states: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
    """The score head of a sequence-classification model, without its pooling.

    The offset recorded by reward training is taken off: the head itself has no bias and is saved as trained.
    """
    scores: Tensor = model.score(states)
    offset = float(getattr(model.config, "reward_offset", 0.0))
    return scores.squeeze(-1).float() - offset


def _own_logits(model: nn.Module, batch: Packed) -> Float[Tensor, "response token vocabulary"]:
    """From the model's own forward, in the flat layout."""
    layout = flat(batch)
    kept = torch.arange(int(batch.starts.min()) - 1, batch.token_ids.shape[1], device=batch.token_ids.device)
    logits = model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=kept).logits
    width = batch.token_ids.shape[1]
    index = (layout.before % width - kept[0]).clamp(min=0)
    return logits.gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def shares_prompts(body: Any, batch: Packed) -> bool:
    """Whether the tree layout is taken: it costs less, and the model can have it."""
    copied, shared = cells(batch)
    return shared <= TREE_SHARE * copied and takes_trees(body)


def _states(model: Any, batch: Packed, *, ends: bool = False) -> tuple[Float[Tensor, "cell width"], Layout]:
    """The last hidden state of every cell of the layout that costs less."""
    body = model.base_model
    if shares_prompts(body, batch):
        layout = tree(batch, ends=ends)
        try:
            return tree_states(body, layout), layout
        except NoTree as reason:
            say_no_tree(body, str(reason))
    layout = flat(batch)
    return body(input_ids=layout.token_ids, use_cache=False).last_hidden_state.flatten(0, 1), layout
