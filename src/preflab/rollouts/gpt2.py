"""GPT-2, written out: its own weights, without the modules around them.

    x ← x + proj(attention(LN₁(x)));  x ← x + MLP(LN₂(x));  states = LN_f(x)

A step of sampling has one cell a response, and transformers' modules then take longer than the arithmetic in them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.functional import embedding, gelu, layer_norm
from transformers import GPT2LMHeadModel
from transformers.activations import NewGELUActivation
from transformers.models.gpt2.modeling_gpt2 import GPT2MLP, GPT2Attention, GPT2Block, GPT2Model
from transformers.pytorch_utils import Conv1D

from preflab.models.last_block import spared_mlp
from preflab.models.precision import of_products, working
from preflab.rollouts.decoder import Attend

KNOWN = {GPT2LMHeadModel, GPT2Model, GPT2Block, GPT2Attention, GPT2MLP, Conv1D}
KNOWN |= {nn.Embedding, nn.LayerNorm, nn.Dropout, nn.ModuleList}


def is_gpt2(model: Any) -> bool:
    """Whether this file computes what the model does: GPT-2 as transformers has it, with nothing put in or around."""
    if type(model) is not GPT2LMHeadModel or any(part.training for part in model.modules()):
        return False
    config = model.config
    if config.add_cross_attention or config.reorder_and_upcast_attn:
        return False
    if config._attn_implementation not in ("eager", "sdpa"):  # what else may be registered is anyone's
        return False
    body: Any = model.transformer
    activations = {block.mlp.act for block in body.h}
    known = all(
        type(part) in KNOWN or part in activations or (part is model.lm_head and type(part) is nn.Linear)
        for part in model.modules()
    )
    spared = spared_mlp(model.base_model)  # its hooks do nothing here
    hooked = any(part._forward_pre_hooks or part._forward_hooks for part in model.modules() if part is not spared)
    return known and not hooked


class GPT2:
    """The body of a GPT-2 with the weights that it has at this moment, cast to the precision of its products."""

    name = "GPT-2 on layers of preflab's own"

    def __init__(self, model: GPT2LMHeadModel) -> None:
        body: Any = model.transformer
        with working(model):
            self.dtype = of_products(body.wte.weight)
        self.tables = (body.wte.weight, body.wpe.weight)
        self.blocks = [_Block(block, self.dtype) for block in body.h]
        self.last = body.ln_f

    def states(
        self, token_ids: Int[Tensor, " cell"], positions: Int[Tensor, " cell"], attend: Attend
    ) -> Float[Tensor, "cell width"]:
        """See `Decoder`."""
        x = embedding(token_ids, self.tables[0]) + embedding(positions, self.tables[1])
        for number, block in enumerate(self.blocks):
            query, key, value = block.heads(x)
            attended = attend(number, query, key, value, scaling=block.scaling)
            x = block.rest(x, attended.flatten(1))
        return _normed(x, self.last)


class _Block:
    def __init__(self, block: GPT2Block, dtype: torch.dtype) -> None:
        attention, mlp = block.attn, block.mlp
        self.norms = (block.ln_1, block.ln_2)
        self.dtype = dtype
        self.into, self.out, self.up, self.down = (
            (linear.bias.to(dtype), linear.weight.to(dtype))
            for linear in (attention.c_attn, attention.c_proj, mlp.c_fc, mlp.c_proj)
        )
        # One kernel in place of eight. In bf16 the steps round on their own, as they do where the tokens are scored.
        one = type(mlp.act) is NewGELUActivation and dtype != torch.bfloat16
        self.act: Callable[[Tensor], Tensor] = partial(gelu, approximate="tanh") if one else mlp.act
        self.shape = (3, attention.num_heads, attention.head_dim)
        self.scaling: float = attention.scaling

    def heads(self, x: Float[Tensor, "cell width"]) -> Sequence[Float[Tensor, "cell head channel"]]:
        """Queries, keys and values."""
        return self._product(_normed(x, self.norms[0]), self.into).view(-1, *self.shape).unbind(1)

    def rest(
        self, x: Float[Tensor, "cell width"], attended: Float[Tensor, "cell width"]
    ) -> Float[Tensor, "cell width"]:
        """The block's output, in the place of what it was given."""
        x = self._added(x, attended, self.out)
        return self._added(x, self.act(self._product(_normed(x, self.norms[1]), self.up)), self.down)

    def _added(self, x: Tensor, cells: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        """x + a product, in its place; a product in another precision is rounded before it is added."""
        if x.dtype != self.dtype:
            return x.add_(self._product(cells, weights))
        bias, weight = weights
        return x.add_(bias).addmm_(cells, weight)

    def _product(self, cells: Tensor, weights: tuple[Tensor, Tensor]) -> Tensor:
        bias, weight = weights
        return torch.addmm(bias, cells.to(self.dtype), weight)


def _normed(x: Tensor, norm: Any) -> Tensor:
    return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
