"""The output head on the states that are asked for: logits, or log-probabilities without ever holding all logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from preflab.losses.logprobs import token_logprobs

CHUNK_LOGITS = 2**25
"""How many logits are made at a time: 128 MiB in float32."""
KEPT_LOGITS = 2**27
"""How many logits a pass with gradients keeps for its backward pass, ½ GiB in float32; above it makes them again,
a third more work in the head."""


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
        """The model's logits, from its last states."""
        return self.final(model.get_output_embeddings()(states))

    def logprobs(
        self, model: Any, states: Float[Tensor, "cell width"], tokens: Int[Tensor, " cell"], *, temperature: float
    ) -> Float[Tensor, " cell"]:
        """log_softmax(logits / T) of one token a state, in nats, float32 or wider; in chunks where the output
        embeddings are a plain linear layer."""
        if not temperature > 0:
            raise ValueError(f"temperature must be > 0, not {temperature}")
        table = model.get_output_embeddings()
        if type(table) is not nn.Linear:
            return token_logprobs(self.logits(model, states), tokens, temperature=temperature)
        return _Logprobs.apply(states, table.weight, table.bias, tokens, self, temperature)


def head_of(model: Any) -> Head | None:
    """How the model gets from its last states to logits; None where that is not found out.

    What its configuration says is held against the model itself, once: the output layer is made to give known
    numbers, and what the model makes of them, and what it gave the layer to read, is compared.
    """
    if model not in _heads:
        _heads[model] = _found(model)
    return _heads[model]


_heads: WeakKeyDictionary[Any, Head | None] = WeakKeyDictionary()


@torch.no_grad()
def _found(model: Any) -> Head | None:
    config = model.config
    head = Head(
        scale=getattr(model, "logit_scale", None) or 1.0 / (getattr(config, "logits_scaling", None) or 1.0),
        cap=getattr(config, "final_logit_softcapping", None),
    )
    table = model.get_output_embeddings()
    read: list[Tensor] = []
    given: list[Tensor] = []

    def replaced(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        read.append(args[0])
        given.append(torch.linspace(-60.0, 60.0, output.numel()).to(output).view_as(output))
        return given[0]

    ids = torch.arange(2, device=model.device).unsqueeze(0)
    if table is None:
        return None
    hook = table.register_forward_hook(replaced)
    try:
        with without_dropout(model):
            logits = model(input_ids=ids, use_cache=False).logits
            states = getattr(model.base_model(input_ids=ids, use_cache=False), "last_hidden_state", None)
    finally:
        hook.remove()
    same = len(read) == 1 and states is not None and close(read[0], states) and close(logits, head.final(given[0]))
    return head if same else None


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
    """Equal but for rounding: within the square root of the precision of the norm."""
    tolerance = float(torch.finfo(expected.dtype).eps) ** 0.5
    return values.shape == expected.shape and bool((values - expected).norm() <= tolerance * expected.norm())


class _Logprobs(torch.autograd.Function):
    """Products, soft-cap, log-softmax and gather, a chunk of states at a time, in both directions.

    ∂ log p(y)/∂z_v = 1[v = y] − p(v)
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
    ) -> Tensor:
        ctx.head, ctx.temperature = head, temperature
        keep = any(ctx.needs_input_grad) and len(states) * len(weight) <= KEPT_LOGITS
        kept, found, totals = [], [], []
        for rows in chunks(len(states), len(weight), CHUNK_LOGITS):
            logits = _logits(states[rows], weight, bias, head, temperature)
            totals.append(logits.logsumexp(-1))
            found.append(logits.gather(-1, tokens[rows].unsqueeze(-1)).squeeze(-1))
            if keep:
                kept.append(logits)
        total = torch.cat(totals)
        ctx.save_for_backward(states, weight, bias, tokens, total, *kept)
        return torch.cat(found) - total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, bias, tokens, total, *kept = ctx.saved_tensors
        needs_states, needs_weight, needs_bias = ctx.needs_input_grad[:3]
        of_states = torch.empty_like(states) if needs_states else None
        of_weight = torch.zeros_like(weight) if needs_weight else None
        of_bias = torch.zeros_like(bias) if needs_bias else None
        for number, rows in enumerate(chunks(len(states), len(weight), CHUNK_LOGITS)):
            logits = kept[number] if kept else _logits(states[rows], weight, bias, ctx.head, ctx.temperature)
            scale = grad[rows].unsqueeze(-1) * (ctx.head.scale / ctx.temperature)
            of_logits = (logits - total[rows].unsqueeze(-1)).exp_().mul_(-scale)
            of_logits.scatter_add_(1, tokens[rows].unsqueeze(-1), scale)
            if ctx.head.cap is not None:  # tanh' = 1 − tanh²
                of_logits *= 1 - (logits * (ctx.temperature / ctx.head.cap)) ** 2
            of_logits = of_logits.to(weight.dtype)
            if of_states is not None:
                torch.mm(of_logits, weight, out=of_states[rows])
            if of_weight is not None:
                of_weight.addmm_(of_logits.T, states[rows])
            if of_bias is not None:
                of_bias += of_logits.sum(0)
        return of_states, of_weight, of_bias, None, None, None


def _logits(states: Tensor, weight: Tensor, bias: Tensor | None, head: Head, temperature: float) -> Tensor:
    logits = head.final(nn.functional.linear(states, weight, bias))
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return logits if temperature == 1.0 else logits / temperature


def chunks(states: int, vocabulary: int, at_once: int) -> list[slice]:
    """Which states to make logits of together: `at_once` logits at most, or those of one state."""
    size = max(1, at_once // vocabulary)
    return [slice(begin, begin + size) for begin in range(0, states, size)]
