"""Hold the embeddings and the first blocks fixed."""

from __future__ import annotations

from typing import Any

from torch import nn

from preflab.errors import ConfigError
from preflab.progress import say


def freeze(model: Any, blocks: int) -> None:
    """Freeze the embeddings and the first `blocks` transformer blocks; 0 freezes nothing.

    A head tied to the embeddings is the same tensor, so it is frozen with them; one line says so.

    Raises:
        ConfigError: the model has fewer blocks.
    """
    if blocks == 0:
        return
    check_blocks(model, blocks)
    stack = transformer_blocks(model)
    body = model.base_model
    for module in body.modules():
        if isinstance(module, nn.Embedding):
            module.requires_grad_(False)
    for block in stack[:blocks]:
        block.requires_grad_(False)
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        say(
            f"frozen: embeddings, {blocks} of {len(stack)} blocks, and the output head, which is tied to the embeddings"
        )


def check_blocks(model: Any, blocks: int) -> None:
    """Raises ConfigError where the model has fewer blocks."""
    if blocks and blocks > len(stack := transformer_blocks(model)):
        raise ConfigError(f"freeze_blocks = {blocks}, but the model has {len(stack)} blocks")


def transformer_blocks(model: Any) -> nn.ModuleList:
    """The stack of blocks: the body's longest ModuleList."""
    stacks = [module for module in model.base_model.modules() if isinstance(module, nn.ModuleList)]
    if not stacks:
        raise ConfigError(
            f"{type(model).__name__} has no stack of blocks; use neither freeze_blocks nor activation_checkpointing"
        )
    return max(stacks, key=len)
