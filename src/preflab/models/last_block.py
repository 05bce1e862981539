"""The last block's MLP, on the cells alone whose last state is read.

Those are a prompt's last cell and those of its responses. The blocks below need every cell, for keys and values; an MLP
works token by token, and above the last one nothing asks for the others: two thirds of a block saved on each prompt,
and on padding. Two hooks do it, where `models/scoring.py` runs the body; `models/tree_check.py` tries whether the model
agrees.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from preflab.errors import ConfigError
from preflab.models.attention import under_way
from preflab.models.freezing import transformer_blocks


def spared_mlp(body: Any) -> nn.Module | None:
    """The module, where it has the hooks."""
    module = _last_mlp(body)
    return module if module is not None and _picked in module._forward_pre_hooks.values() else None


def spare_mlp(body: Any) -> list[RemovableHandle]:
    """Give it the hooks; what takes them off again. Empty where it has them, or there is no module of that name."""
    module = _last_mlp(body)
    if module is None or spared_mlp(body) is not None:
        return []
    return [module.register_forward_pre_hook(_picked), module.register_forward_hook(_put_back)]


def _last_mlp(body: Any) -> nn.Module | None:
    try:
        blocks = transformer_blocks(body)
    except ConfigError:
        return None
    found: nn.Module | None = getattr(blocks[-1], "mlp", None) if len(blocks) else None
    return found


def _picked(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    this = under_way()
    return None if this is None else (args[0].flatten(0, 1).index_select(0, this.layout.asked).unsqueeze(0), *args[1:])


def _put_back(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
    this = under_way()
    if this is None:
        return None
    rows, width = this.layout.token_ids.shape
    whole = output.new_zeros(rows * width, output.shape[-1]).index_copy(0, this.layout.asked, output[0])
    return whole.view(rows, width, -1)
