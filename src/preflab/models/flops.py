"""How many floating-point operations a pass takes: those of its matrix products, by count, not by estimate of time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from preflab.data.pack import Reading
from preflab.models.freezing import transformer_blocks
from preflab.models.last_block import spared_mlp


def flops(model: Any, read: Reading, *, backward: bool = False, stored: int = 0) -> float:
    """Operations of the matrix products of a pass, a multiplication and an addition counted as two.

        blocks       2 · weights · cells          + 2 · weights · cells, gradient of what they read
                                                  + 2 · weights · cells, gradient of the weights
        attention    4 · heads · channels · seen, twice as much again for its gradients
        head         2 · width · vocabulary · predicted, and the same for either gradient

    Gradients count where they are made: none below the first block that trains, none of frozen weights. So a block
    that trains costs three times its forward pass, a frozen one below it once. The last block's MLP runs on the cells
    whose state is read (`models/last_block.py`). A causal cell attends to itself and
    what is before it, and nothing else counts. Norms, biases and activations are left out, and so is work done twice
    to save memory. All experts of a mixture count.

    Args:
        model: a causal model, or a body with a score head, whose products are too small to count; its
            `requires_grad` says what trains.
        read: what the pass computes: `models/scoring.py: reading`.
        backward: with the gradients.
        stored: blocks from the first on whose states are read from a file (`models/trunk.py`), so that they don't run.

    >>> from preflab.config.commands import Base
    >>> from preflab.models.base import new_model, new_tokenizer
    >>> sizes = Base(vocabulary=300, layers=2, width=16, heads=2)
    >>> model = new_model(new_tokenizer(["a"], vocabulary=300), sizes, positions=32, seed=0).model
    >>> flops(model, Reading(cells=10)) == 2 * 10 * 2 * 12 * 16**2  # twelve squares a block of GPT-2
    True
    """
    total, carried = 0.0, False
    tables = [part for part in model.base_model.modules() if isinstance(part, nn.Embedding)]
    if backward:
        carried = any(table.weight.requires_grad for table in tables)
    channels = _attention_channels(model.config)
    spared = spared_mlp(model.base_model)
    spares = {id(weight) for weight in spared.parameters()} if spared is not None else set()
    for number, (weights, attends) in enumerate(_parts(model.base_model, tables)):
        if number < stored:
            continue
        trains = [backward and weight.requires_grad for weight in weights]
        carried = carried or any(trains)
        for weight, trained in zip(weights, trains, strict=True):
            if weight.dim() > 1:
                cells = read.cells - (read.spared if id(weight) in spares else 0)
                total += 2 * weight.numel() * cells * (1 + carried + trained)
        if attends:
            total += 4 * channels * read.seen * (1 + 2 * carried)
    head = model.get_output_embeddings()
    if head is not None:
        total += 2 * head.weight.numel() * read.predicted * (1 + carried + (backward and head.weight.requires_grad))
    return total


def _parts(body: Any, tables: Sequence[nn.Embedding]) -> Iterator[tuple[list[nn.Parameter], bool]]:
    """The parameters of each block, in order, then those that stand outside; and whether attention is among them."""
    blocks = list(transformer_blocks(body))
    of_blocks = [list(block.parameters()) for block in blocks]
    known = {id(weight) for weights in of_blocks for weight in weights} | {id(table.weight) for table in tables}
    yield from ((weights, True) for weights in of_blocks)
    yield [weight for weight in body.parameters() if id(weight) not in known], False


def _attention_channels(config: Any) -> int:
    """Heads × channels of a head; 0 for a model without attention."""
    heads: int = getattr(config, "num_attention_heads", None) or 0
    return heads * (getattr(config, "head_dim", None) or config.hidden_size // heads) if heads else 0
