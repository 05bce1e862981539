"""Hold the embeddings and the first blocks fixed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
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
    embeddings = [module for module in model.base_model.modules() if isinstance(module, nn.Embedding)]
    weights = [weight for module in (*embeddings, *stack[:blocks]) for weight in module.parameters()]
    if not any(weight.requires_grad for weight in weights):
        return  # already done, and said
    for weight in weights:
        weight.requires_grad_(False)
    head = model.get_output_embeddings()
    if head is not None and head.weight is model.get_input_embeddings().weight:
        say(
            f"frozen: embeddings, {blocks} of {len(stack)} blocks, and the output head, which is tied to the embeddings"
        )


def frozen_names(model: nn.Module) -> list[str]:
    """The weights that training holds fixed; of tied ones the first."""
    return [name for name, weight in model.named_parameters() if not weight.requires_grad]


def frozen_digest(model: nn.Module, names: Sequence[str] | None = None) -> str:
    """SHA-256 of these weights with their names, shapes and dtypes; None: of the frozen ones. 0.3 s for a GPT-2."""
    digest = hashlib.sha256()
    for name in frozen_names(model) if names is None else names:
        weight = model.get_parameter(name).detach()
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}\n".encode())
        digest.update(weight.reshape(-1).view(torch.uint8).cpu().numpy().data)
    return digest.hexdigest()


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
