"""How many cells really go through models' bodies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from preflab.models.head import head_of
from preflab.models.served import current
from preflab.models.tree_check import takes_trees
from preflab.rollouts import modules


def sampling(kwargs: dict[str, Any]) -> bool:
    """Whether the forward pass under way, called with these keywords, is one of the sampler's."""
    return bool(kwargs.get("use_cache")) or isinstance(current(), modules._Pass)


@contextmanager
def cells_through(*models: Any) -> Iterator[Counter[bool]]:
    """Of passes with gradients (True) and without (False); sampling is left out."""
    cells: Counter[bool] = Counter()

    def count(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        if not sampling(kwargs):
            cells[torch.is_grad_enabled()] += kwargs["input_ids"].numel()

    for model in models:  # what a model can do is found out once, and is no part of a run
        head_of(model)
        takes_trees(model.base_model)
        if model.get_output_embeddings() is not None:  # hooks keep the sampler from writing out GPT-2
            modules.modules_of(model, 64)
    hooks = [model.base_model.register_forward_pre_hook(count, with_kwargs=True) for model in models]
    try:
        yield cells
    finally:
        for hook in hooks:
            hook.remove()
