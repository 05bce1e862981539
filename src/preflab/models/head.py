"""The output head on the states that are asked for: logits, or log-probabilities without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from preflab.errors import ConfigError
from preflab.losses.logprobs import token_logprobs
from preflab.models.allowed import Allowed, Groups
from preflab.models.precision import of_products, wide, working

CHUNK_LOGITS = 2**25
"""How many logits are made at a time: 128 MiB in float32."""
CACHED_LOGITS = 2**19
"""How many logits are worked on at a time, so that they stay in the processor's cache."""
KEPT_LOGITS = 2**27
"""How many logits a pass with gradients keeps for its backward pass, ½ GiB in float32; above it makes them again,
a third more work in the head."""

TABLE_ROWS = 2**10
"""How many of its rows a CPU multiplies at a time where logits of a few states are made."""

EVERY = slice(None)

May = Callable[[slice], Bool[Tensor, "token vocabulary"]]
"""Some of a sequence of tokens → which tokens may stand there; the one that does is among them."""

Reader = Callable[[Float[Tensor, "cell width"], Int[Tensor, " some"] | None], Float[Tensor, "cell some"]]
"""States → the logits of some tokens, or of the whole vocabulary."""


def masked(logits: Float[Tensor, "token vocabulary"], allowed: May | None, some: slice) -> Tensor:
    """The logits of some tokens, −∞ where a mask forbids a token.

    Raises:
        ConfigError: the mask is not as wide as the logits.
    """
    if allowed is None:
        return logits
    may = allowed(some)
    check_width(may.shape[-1], logits.shape[-1])
    return logits.masked_fill(~may, -torch.inf)


def check_width(mask: int, head: int) -> None:
    """Raises ConfigError where a mask is not as wide as the logits."""
    if mask != head:
        raise ConfigError(
            f"the token mask is {mask} tokens wide, not {head}: it has to be as wide as the model's output head"
        )


@dataclass(frozen=True)
class Head:
    """What a model does to the product of its last states and its output table: logits = c·tanh(a·x/c)."""

    scale: float = 1.0
    """a: Cohere's logit_scale, Granite's 1/logits_scaling."""
    cap: float | None = None
    """c: Gemma's final_logit_softcapping; None is no cap."""

    def final(self, products: Tensor) -> Tensor:
        """Products of states and table → logits."""
        logits = products if self.scale == 1.0 else products * self.scale
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap

    def logits(self, model: Any, states: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch vocabulary"]:
        """The model's logits, from its last states; by a product in float32 or wider whatever the model works in: what
        bf16 makes of logits of two models lies apart by more than a small KL."""
        table = model.get_output_embeddings()
        weights = {name: wide(weight) for name, weight in table.named_parameters()}
        return self.final(torch.func.functional_call(table, weights, (wide(states),)))

    def logits_of(
        self, model: Any, states: Float[Tensor, "cell width"], tokens: Int[Tensor, " some"]
    ) -> Float[Tensor, "cell some"]:
        """`logits` of some tokens alone; of all, and then those, where the output embeddings are no plain linear
        layer."""
        table = model.get_output_embeddings()
        if type(table) is not nn.Linear:
            return self.logits(model, states)[:, tokens]
        weights = {name: wide(weight[tokens]) for name, weight in table.named_parameters()}
        return self.final(torch.func.functional_call(table, weights, (wide(states),)))

    def reader(self, model: Any) -> Reader:
        """`logits` without gradients, for states that come again and again: the output table is made wide once.

        States and table are rounded as `logprobs` rounds them. Products in bf16 are rounded too, after a state's mean
        product over the table is taken off, which is added again in float32: what all logits have in common, some −100
        in GPT-2, would cost all others their digits. The distribution is then some 10⁻⁴ nats off, as it is by what
        bf16 does to the states.
        """
        table = model.get_output_embeddings()
        with working(model):
            dtype = of_products(table.weight)
        if type(table) is not nn.Linear:
            return lambda states, tokens: _only(self.logits(model, states.to(dtype)).T, tokens).T
        rounded = table.weight.detach().to(dtype)
        bias = None if table.bias is None else wide(table.bias.detach().to(dtype))
        if dtype == torch.bfloat16:
            centre = rounded.mean(0, dtype=torch.float32)

            def read_rounded(states: Tensor, tokens: Tensor | None) -> Tensor:
                states = states.to(dtype)
                shift = (states.float() @ centre).to(dtype).float()
                logits = _Logits(None if bias is None else _only(bias, tokens), shift, self, 1.0)
                return logits.of(_products(states, _only(rounded, tokens), shift), EVERY)

            return read_rounded
        weight = wide(rounded)
        # On a CPU, tables that do not fit its cache are a third faster in parts.
        rows = len(weight) if weight.is_cuda else TABLE_ROWS

        def read(states: Tensor, tokens: Tensor | None) -> Tensor:
            table = _only(weight, tokens)
            products = weight.new_empty(len(states), len(table))
            states = states.to(dtype).to(weight.dtype)
            for part in chunks(0, len(table), rows):
                torch.mm(states, table[part].T, out=products[:, part])
            return self.final(products if bias is None else products.add_(_only(bias, tokens)))

        return read

    def logprobs(
        self,
        model: Any,
        states: Float[Tensor, "cell width"],
        tokens: Int[Tensor, " cell"],
        *,
        temperature: float,
        allowed: Allowed | None = None,
    ) -> Float[Tensor, " cell"]:
        """log_softmax(logits / T) of one token a state, in nats, float32 or wider; in chunks where the output
        embeddings are a plain linear layer. Under a mask only the logits of what places allow are made, where that is
        less work (`Allowed.groups`).

        Args:
            allowed: what the distribution is renormalised over; None: every token.
        """
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, not {temperature}")
        table = model.get_output_embeddings()
        if type(table) is not nn.Linear:
            return token_logprobs(masked(self.logits(model, states), allowed, EVERY), tokens, temperature=temperature)
        # Cast here, so that autograd casts the gradients back.
        with working(model):
            dtype = of_products(states)
        bias = None if table.bias is None else table.bias.to(dtype)
        groups = None
        if allowed is not None and len(states):
            check_width(allowed.vocabulary, len(table.weight))
            groups = allowed.groups
        return _Logprobs.apply(
            states.to(dtype), table.weight.to(dtype), bias, tokens, self, temperature, allowed, groups
        )


def head_of(model: Any) -> Head | None:
    """How the model gets from its last states to logits; None where that is not found out.

    What its configuration says is held against the model itself, once for each head that it says and for each set of
    hooks around it: the output layer is made to give known numbers, and what the model makes of them, and what it gave
    the layer to read, is compared.
    """
    table, config = model.get_output_embeddings(), model.config
    said = Head(
        scale=getattr(model, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )
    around = [part for part in (model, table) if part is not None]
    tried = said, tuple(hook for part in around for hook in (*part._forward_pre_hooks, *part._forward_hooks))
    if model not in _heads or _heads[model][0] != tried:
        _heads[model] = tried, _found(model, table, said)
    return _heads[model][1]


_heads: WeakKeyDictionary[Any, tuple[tuple[Head, tuple[int, ...]], Head | None]] = WeakKeyDictionary()


@torch.no_grad()
def _found(model: Any, table: Any, head: Head) -> Head | None:
    read: list[Tensor] = []
    given: list[Tensor] = []

    def replaced(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read.append(args[0])
        given.append(torch.linspace(-60.0, 60.0, output.numel()).to(output).view_as(output))
        return given[0]

    ids = torch.arange(2, device=model.device).unsqueeze(0)
    if table is None:
        return None
    hook = table.register_forward_hook(replaced, prepend=True)  # so that others' hooks are seen
    try:
        with without_dropout(model), working(model):
            logits = model(input_ids=ids, use_cache=False).logits
            states = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
            same = len(read) == 1 and states is not None and close(read[0], states)
            return head if same and close(logits, head.final(given[0])) else None
    finally:
        hook.remove()


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """The model in evaluation mode, and each part of it as it was afterwards."""
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def close(values: Tensor, expected: Tensor) -> bool:
    """Equal but for rounding: within the square root of the precision of the norm; of the products' precision here, or
    of float32, in which models work out norms and soft-caps even where all else is float64."""
    tolerance = max(torch.finfo(of_products(expected)).eps, torch.finfo(torch.float32).eps) ** 0.5
    return values.shape == expected.shape and bool((values - expected).norm() <= tolerance * expected.norm())


class _Logprobs(torch.autograd.Function):
    """Products, soft-cap, log-softmax and gather, a chunk of states at a time, in both directions.

    ∂ log p(y)/∂z_v = 1[v = y] − p(v),   where p(v) = 0 for a token that a mask forbids

    Products in bf16 are rounded to 8 bits: at a product of 100, as GPT-2 has them, by up to ¼. So that of the token
    itself, z_y, is taken off before they are rounded, within the product, and added again in float32: a likely token's
    is then as good as exact, and the log-probability good to some 0.4 % of itself.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        tokens: Tensor,
        head: Head,
        temperature: float,
        allowed: May | None = None,
        groups: Groups | None = None,
    ) -> Tensor:
        shift = _products_of(states, weight, tokens) if weight.dtype == torch.bfloat16 else None
        if groups is not None:
            states, tokens = states[groups.order], groups.column[tokens[groups.order]]
            shift = None if shift is None else shift[groups.order]
        sheets = _sheets(len(states), allowed, groups)
        logits = sum((sheet.rows.stop - sheet.rows.start) * sheet.width(weight) for sheet in sheets)
        keep = any(ctx.needs_input_grad) and logits <= KEPT_LOGITS
        ctx.sheets, ctx.groups, ctx.keep = sheets, groups, keep
        ctx.of = _Logits(bias, shift, head, temperature)
        kept = []
        total = torch.empty(len(states), dtype=wide(states[:0]).dtype, device=states.device)
        found = torch.empty_like(total)
        for sheet in sheets:
            table, of = _only(weight, sheet.tokens), ctx.of.only(sheet)
            for rows in sheet.chunks(CHUNK_LOGITS, weight):
                products = _products(states[rows], table, None if shift is None else shift[rows])
                for part in chunks(rows.start, rows.stop, CACHED_LOGITS // len(table)):
                    logits = of.of(products[part.start - rows.start : part.stop - rows.start], part)
                    torch.logsumexp(logits, -1, out=total[part])
                    torch.gather(logits, -1, tokens[part].unsqueeze(-1), out=found[part].unsqueeze(-1))
                if keep:
                    kept.append(products)
        ctx.save_for_backward(states, weight, bias, tokens, total, *kept)
        return _back(found - total, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, tokens, total, *kept = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        head, temperature, shift = ctx.of.head, ctx.of.temperature, ctx.of.shift
        groups = ctx.groups
        scale = (grad if groups is None else grad[groups.order]) * (head.scale / temperature)
        of_states = torch.empty_like(states) if needs_states else None
        of_weight: Tensor | None = None
        of_bias = torch.zeros_like(bias) if needs_bias else None
        held = iter(kept)
        for sheet in ctx.sheets:
            table, of = _only(weight, sheet.tokens), ctx.of.only(sheet)
            of_table: Tensor | None = None
            for rows in sheet.chunks(CHUNK_LOGITS, weight):
                if ctx.keep:
                    products = next(held)
                else:
                    products = _products(states[rows], table, None if shift is None else shift[rows])
                of_products = torch.empty_like(products)
                for part in chunks(rows.start, rows.stop, CACHED_LOGITS // len(table)):
                    here = slice(part.start - rows.start, part.stop - rows.start)
                    logits = of.of(products[here], part)
                    of_logits = (logits - total[part].unsqueeze(-1)).exp_().mul_(-scale[part].unsqueeze(-1))
                    of_logits.scatter_add_(1, tokens[part].unsqueeze(-1), scale[part].unsqueeze(-1))
                    if head.cap is not None:  # tanh' = 1 − tanh²
                        if sheet.may is not None:  # −∞ where p is 0
                            logits = logits.clamp(min=-head.cap / temperature)
                        of_logits *= 1 - (logits * (temperature / head.cap)) ** 2
                    of_products[here] = of_logits
                if of_states is not None:
                    torch.mm(of_products, table, out=of_states[rows])
                if needs_weight and of_table is None:
                    of_table = of_products.T @ states[rows]
                elif of_table is not None:
                    of_table.addmm_(of_products.T, states[rows])
                if of_bias is not None:
                    sums = of_products.sum(0)
                    of_bias[EVERY if sheet.tokens is None else sheet.tokens] += sums
            if of_table is not None and sheet.tokens is None:
                of_weight = of_table
            elif of_table is not None:  # no token is in two groups
                of_weight = torch.zeros_like(weight) if of_weight is None else of_weight
                of_weight[sheet.tokens] = of_table
        if needs_weight and of_weight is None:  # no states
            of_weight = torch.zeros_like(weight)
        return None if of_states is None else _back(of_states, groups), of_weight, of_bias, *(None,) * 5


@dataclass(frozen=True)
class _Sheet:
    """Logits that are made together: some states' of some tokens."""

    rows: slice
    tokens: Tensor | None
    """None: of all."""
    may: May | None
    """None: each of the tokens may stand at each of the rows."""

    def width(self, weight: Tensor) -> int:
        return len(weight) if self.tokens is None else len(self.tokens)

    def chunks(self, at_once: int, weight: Tensor) -> list[slice]:
        """The rows, so many logits at a time."""
        return chunks(self.rows.start, self.rows.stop, at_once // self.width(weight))


def _sheets(states: int, allowed: May | None, groups: Groups | None) -> list[_Sheet]:
    if groups is None:
        return [_Sheet(slice(0, states), None, allowed)]
    return [_Sheet(group.rows, group.tokens, None if group.sets is None else group.may) for group in groups.each]


def _back(values: Tensor, groups: Groups | None) -> Tensor:
    """Values of states in the order of groups, in the order that the states came in."""
    return values if groups is None else torch.empty_like(values).index_copy_(0, groups.order, values)


class _Logits(NamedTuple):
    """How products become logits, in float32 or wider."""

    bias: Tensor | None
    shift: Tensor | None
    head: Head
    temperature: float
    may: May | None = None

    def only(self, sheet: _Sheet) -> _Logits:
        """Of a sheet's tokens, as it allows them."""
        bias = None if self.bias is None else _only(self.bias, sheet.tokens)
        return self._replace(bias=bias, may=sheet.may)

    def of(self, products: Tensor, rows: slice) -> Tensor:
        """The logits of some rows, from their products."""
        logits = wide(products)
        if self.shift is not None:
            logits += self.shift[rows].unsqueeze(-1)
        if self.bias is not None:
            logits = logits + self.bias
        logits = masked(self.head.final(logits), self.may, rows)
        return logits if self.temperature == 1.0 else logits / self.temperature


def _only(table: Tensor, tokens: Tensor | None) -> Tensor:
    """The rows of some tokens; all where None."""
    return table if tokens is None else table[tokens]


def _products_of(states: Tensor, weight: Tensor, tokens: Tensor) -> Tensor:
    """Each state's product with its own token's row, rounded to bf16, in float32."""
    return torch.linalg.vecdot(states.float(), weight[tokens].float()).to(torch.bfloat16).float()


def _products(states: Tensor, weight: Tensor, shift: Tensor | None) -> Tensor:
    """states·weightᵀ, less the shift before it is rounded."""
    if shift is None:
        return states @ weight.T
    return torch.addmm((-shift).to(states.dtype).unsqueeze(1).expand(-1, len(weight)), states, weight.T)


def chunks(begin: int, end: int, size: int) -> list[slice]:
    """From `begin` to `end`, `size` at a time, or one."""
    size = max(1, size)
    return [slice(first, min(first + size, end)) for first in range(begin, end, size)]
