"""The only place that knows logits and layouts: batches in, one number a response token out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from preflab.data.encode import Tree
from preflab.data.pack import Layout, Packed, Reading, flat, pack, readings, tree
from preflab.losses.logprobs import masked_sum, token_logprobs
from preflab.models.allowed import Allowed, Group
from preflab.models.attention import NoTree
from preflab.models.head import EVERY, check_width, chunks, head_of, masked
from preflab.models.precision import at_work, wide
from preflab.models.tree_check import say_no_tree, takes_trees
from preflab.models.trunk import body_states
from preflab.progress import Advance

TREE_SHARE = 0.9
"""The tree layout is taken where it has at most this share of the flat layout's cells."""

FLOATS_AT_ONCE = 2**27
"""How many numbers a pass without gradients may hold beside the weights: ½ GiB in float32."""
WIDEST_HELD = 4
"""How many outputs of its widest layer a body holds at once: before and after the activation, a gate, the states."""
LOGITS_AT_ONCE = 2**22
"""How many logits of a model are looked at together without gradients; the KL of two models takes some eight times as
many numbers."""
TREES_AT_ONCE = 16
"""How many trees are scored at once at most, where no one says otherwise."""

Grammar = Callable[[Packed], Allowed]
"""A batch → which tokens may stand at each of its response tokens, those in the mask, row by row. Log-probabilities and
logits are then of the distribution that is renormalised over these: the one that `rollouts/sampler.py` draws from under
a mask, of which `rollouts/mask.py: grammar_of` makes this.

Raises ConfigError where one of the response tokens is forbidden: its log-probability would be −∞."""


def rows_at_once(model: Any, positions: int, most: int) -> int:
    """How many rows of `positions` tokens to score at once without gradients: at most `most`, fewer for a wide model,
    or for a large vocabulary where the logits of all positions are held. Changes no figure beyond rounding."""
    tables = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    widths = (max(weight.shape) for weight in model.base_model.parameters() if id(weight) not in tables)
    held = WIDEST_HELD * max(widths, default=1)
    if head_of(model) is None:
        held = max(held, model.get_output_embeddings().weight.shape[0])
    return max(1, min(most, FLOATS_AT_ONCE // (held * positions)))


def trees_at_once(model: Any, trees: Sequence[Tree], most: int) -> int:
    """How many of these trees to score at once: at most `most`, as `rows_at_once` has it."""
    longest = max((len(tree.prompt) + max(map(len, tree.responses)) for tree in trees), default=1)
    widest = max((len(tree.responses) for tree in trees), default=1)
    return max(1, min(most, rows_at_once(model, longest, most * widest) // widest))


def response_logits(
    model: nn.Module, batch: Packed, *, grammar: Grammar | None = None
) -> Float[Tensor, "response token vocabulary"]:
    """The logits that predict each response token: those at the position before it, and of no other position; −∞ for
    tokens that a grammar forbids.

    What stands at masked tokens is arbitrary.
    """
    head = head_of(model)
    held = _own_logits(model, batch) if head is None else head.logits(model, response_states(model, batch))
    return _bounded(held, batch, grammar)


def response_states(model: nn.Module, batch: Packed) -> Float[Tensor, "response token width"]:
    """A causal model's last hidden state before each response token; arbitrary at masked tokens."""
    states, layout = _states(model, batch)
    return states[layout.before]


@dataclass(frozen=True)
class Scored:
    """Response tokens under a model, in one pass, with gradients."""

    logprobs: Float[Tensor, "response token"]
    """As `response_logprobs` has them."""
    logits: Float[Tensor, "response token vocabulary"] | None = None
    """As `response_logits` has them, before any temperature; None where nobody asked."""
    states: Float[Tensor, "response token width"] | None = None
    """As `response_states` has them; None where nobody asked."""


def scored(
    model: nn.Module,
    batch: Packed,
    *,
    temperature: float = 1.0,
    logits: bool = False,
    states: bool = False,
    grammar: Grammar | None = None,
) -> Scored:
    """Log-probabilities, and what else is asked for.

    Args:
        temperature: of the log-probabilities, > 0.
        logits: hold those of all response tokens, for a loss over the whole vocabulary.
        states: for a head that shares the model's trunk.
        grammar: what log-probabilities and logits are renormalised over; None: every token.

    Raises:
        ConfigError: the grammar forbids a response token, or is not as wide as the model's output head.
    """
    head = head_of(model)
    if head is None:
        held = _own_logits(model, batch)
        before = response_states(model, batch) if states else None
    else:
        cell_states, layout = _states(model, batch)
        if not logits:
            chosen, tokens = cell_states[layout.before[batch.mask]], batch.response_ids[batch.mask]
            allowed = None if grammar is None else grammar(batch)
            logprobs = _rows(batch, head.logprobs(model, chosen, tokens, temperature=temperature, allowed=allowed))
            return Scored(logprobs, states=cell_states[layout.before] if states else None)
        before = cell_states[layout.before]
        held = head.logits(model, before)
    held = _bounded(held, batch, grammar)
    logprobs = token_logprobs(held, batch.response_ids, temperature=temperature).masked_fill(~batch.mask, 0.0)
    return Scored(logprobs, held if logits else None, before if states else None)


def response_logprobs(
    model: nn.Module, batch: Packed, *, temperature: float = 1.0, grammar: Grammar | None = None
) -> Float[Tensor, "response token"]:
    """log π(y_t | x, y_<t) in nats at a temperature, under a grammar where one is given; 0 outside the mask. Never
    holds the logits of all tokens, but for models whose way from states to logits is not known."""
    return scored(model, batch, temperature=temperature, grammar=grammar).logprobs


@dataclass(frozen=True)
class Read:
    """The response tokens of a batch after one pass through a model's body, before its head."""

    model: Any
    batch: Packed
    states: Float[Tensor, "token width"] | None
    """The last state before each response token in the mask, row by row; None where the model's way from states to
    logits is not known."""
    held: Float[Tensor, "token vocabulary"] | None = None
    """Then these logits."""
    allowed: Allowed | None = None
    """Which tokens may stand at each of them; None: every token."""

    def logits(self, some: slice) -> Float[Tensor, "token vocabulary"]:
        """Those that predict some of the response tokens in the mask; −∞ for tokens that are not allowed."""
        if self.states is None:
            assert self.held is not None
            return masked(self.held[some], self.allowed, some)
        head = head_of(self.model)
        assert head is not None
        return masked(head.logits(self.model, self.states[some]), self.allowed, some)

    def logits_of(self, some: Int[Tensor, " token"], group: Group, rows: slice) -> Float[Tensor, "token vocabulary"]:
        """Those of a group's tokens alone, at some of its places; −∞ for tokens that are not allowed."""
        may = None if group.sets is None else group.may
        if self.states is None:
            assert self.held is not None
            return masked(self.held[some][:, group.tokens], may, rows)
        head = head_of(self.model)
        assert head is not None
        return masked(head.logits_of(self.model, self.states[some], group.tokens), may, rows)

    def logprobs(self, *, temperature: float) -> Float[Tensor, "response token"]:
        """As `response_logprobs` has them."""
        tokens = self.batch.response_ids[self.batch.mask]
        head = head_of(self.model)
        if self.states is None or head is None:
            return _rows(self.batch, token_logprobs(self.logits(EVERY), tokens, temperature=temperature))
        found = head.logprobs(self.model, self.states, tokens, temperature=temperature, allowed=self.allowed)
        return _rows(self.batch, found)

    def of_states(
        self, figure: Callable[[Float[Tensor, "token width"]], Float[Tensor, " token"]]
    ) -> Float[Tensor, "response token"] | None:
        """A figure of each token's last state, 0 outside the mask; None where the states are not known."""
        return None if self.states is None else _rows(self.batch, figure(self.states))


@torch.no_grad()
def read(model: Any, batch: Packed, *, grammar: Grammar | None = None) -> Read:
    """One pass without gradients, for several readings of it, all under the grammar."""
    allowed = None if grammar is None else grammar(batch)
    if head_of(model) is None:
        return Read(model, batch, None, _own_logits(model, batch)[batch.mask], allowed=allowed)
    states, layout = _states(model, batch)
    return Read(model, batch, states[layout.before[batch.mask]], allowed=allowed)


Measure = Callable[..., Sequence[Float[Tensor, " token"]]]
"""The logits of each model before some response tokens → figures of each of the tokens."""


@torch.no_grad()
def of_distributions(reads: Sequence[Read], measure: Measure) -> list[Float[Tensor, "response token"]]:
    """Figures of whole next-token distributions, such as entropy and KL, of models that read one batch: some tokens at
    a time, without gradients; renormalised where the reads are under a grammar. 0 outside the mask."""
    batch, allowed = reads[0].batch, reads[0].allowed
    count = int(batch.mask.sum())
    groups = None
    if allowed is not None and all(one.allowed is allowed for one in reads):
        for one in reads:
            check_width(allowed.vocabulary, one.model.get_output_embeddings().weight.shape[0])
        groups = allowed.groups
    if groups is None:
        vocabulary = max(one.model.get_output_embeddings().weight.shape[0] for one in reads)
        parts = [
            torch.stack(list(measure(*(one.logits(some) for one in reads))))
            for some in chunks(0, count, LOGITS_AT_ONCE // vocabulary)
        ]
        return [_rows(batch, figure) for figure in torch.cat(parts, 1)]
    # What no place of a group allows has no part in its distributions.
    parts = [
        torch.stack(list(measure(*(one.logits_of(groups.order[rows], group, rows) for one in reads))))
        for group in groups.each
        for rows in chunks(group.rows.start, group.rows.stop, LOGITS_AT_ONCE // len(group.tokens))
    ]
    found = torch.cat(parts, 1)
    found = torch.empty_like(found).index_copy_(1, groups.order, found)
    return [_rows(batch, figure) for figure in found]


def _bounded(held: Float[Tensor, "response token vocabulary"], batch: Packed, grammar: Grammar | None) -> Tensor:
    """Logits of all places, −∞ for what a grammar forbids at response tokens."""
    if grammar is None:
        return held
    bounded = masked(held[batch.mask], grammar(batch), EVERY)
    return held.masked_scatter(batch.mask.unsqueeze(-1), bounded)


def _rows(batch: Packed, values: Float[Tensor, " token"]) -> Float[Tensor, "response token"]:
    """Values of the response tokens in the mask, each in its place; 0 elsewhere."""
    return values.new_zeros(batch.mask.shape).masked_scatter(batch.mask, values)


@torch.no_grad()
def logprobs_of(
    model: Any,
    trees: Sequence[Tree],
    *,
    batch_size: int = TREES_AT_ONCE,
    grammar: Grammar | None = None,
    advance: Advance = lambda done, note: None,
) -> Float[Tensor, " response"]:
    """log π(y|x) in nats of each response, tree by tree; under a grammar where one is given."""
    parts = [torch.zeros(0)]
    size = trees_at_once(model, trees, batch_size)
    for begin in range(0, len(trees), size):
        batch = pack(trees[begin : begin + size]).to(model.device)
        parts.append(masked_sum(response_logprobs(model, batch, grammar=grammar), batch.mask).cpu())
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
    """The score head of a sequence-classification model, without its pooling, in float32 or wider.

    The offset recorded by reward training is taken off: the head itself has no bias and is saved as trained.
    """
    weights = {name: wide(weight) for name, weight in model.score.named_parameters()}
    scores: Tensor = torch.func.functional_call(model.score, weights, (wide(states),))
    offset = float(getattr(model.config, "reward_offset", 0.0))
    return scores.squeeze(-1) - offset


@at_work
def _own_logits(model: nn.Module, batch: Packed) -> Float[Tensor, "response token vocabulary"]:
    """From the model's own forward, in the flat layout."""
    layout = flat(batch, ends=False)
    kept = torch.arange(int(batch.starts.min()) - 1, batch.token_ids.shape[1], device=batch.token_ids.device)
    logits = model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=kept).logits
    width = batch.token_ids.shape[1]
    index = (layout.before % width - kept[0]).clamp(min=0)
    return wide(logits).gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))


def reads_tree(model: Any, copied: Reading, shared: Reading) -> bool:
    """Whether a batch is read in the tree layout; of what either layout takes, cells and the longest count."""
    if not hasattr(model, "score") and head_of(model) is None:
        return False
    if not takes_trees(model.base_model):  # tried even where no tree is to be read: the last MLP is, with it
        return False
    return shared.cells <= TREE_SHARE * copied.cells and takes_trees(model.base_model, shared.longest)


@at_work
def _states(model: Any, batch: Packed, *, ends: bool = False) -> tuple[Float[Tensor, "cell width"], Layout]:
    """The last hidden state of every cell of the layout that costs less."""
    body = model.base_model
    if reads_tree(model, *readings(batch, ends=ends)):
        layout = tree(batch, ends=ends)
        try:
            return body_states(body, batch, layout, ends=ends), layout
        except NoTree as reason:
            say_no_tree(body, str(reason))
    layout = flat(batch, ends=ends)
    return body_states(body, batch, layout, ends=ends), layout


def reading(model: Any, given: Packed | Sequence[Tree], *, ends: bool = False) -> Reading:
    """What a pass over a batch computes, in the layout that it takes.

    Args:
        ends: with the last token of each response, as `response_scores` reads it.
    """
    copied, shared = readings(given, ends=ends)
    return shared if reads_tree(model, copied, shared) else copied


def reading_of(model: Any, trees: Sequence[Tree], *, batch_size: int = TREES_AT_ONCE) -> Reading:
    """What `logprobs_of` computes, batch by batch."""
    size = trees_at_once(model, trees, batch_size)
    return sum((reading(model, trees[begin : begin + size]) for begin in range(0, len(trees), size)), Reading())
