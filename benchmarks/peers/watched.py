"""What a GPT-2 really does in a step, whoever drives it: looked at, not taken from settings. PyTorch alone."""

from __future__ import annotations

from typing import Any

import torch


class Watched:
    """Follows the last block's first product, from here or `begin` until `facts` is asked for."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.shapes: list[list[int]] = []
        self.products = ""
        self.hook = model.transformer.h[-1].attn.c_attn.register_forward_hook(self._seen)

    def _seen(self, module: Any, args: Any, output: torch.Tensor) -> None:
        self.shapes.append(list(output.shape[:2]))
        self.products = str(output.dtype).removeprefix("torch.")

    def begin(self) -> None:
        """Forget what was seen so far."""
        self.shapes.clear()

    def facts(self) -> dict[str, Any]:
        """Dtypes of products and of the largest trained weight; how many weights are trained; which rows and columns of
        tokens the last block ran on (twice the same: checkpointing ran it again); attention and GELU as they are."""
        self.hook.remove()
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        return {
            "products": self.products,
            "weights": str(max(trained, key=torch.numel).dtype).removeprefix("torch."),
            "trained_weights": sum(parameter.numel() for parameter in trained),
            "last_block_ran_on": self.shapes,
            "attention": self.model.config._attn_implementation,
            "gelu": str(self.model.transformer.h[-1].mlp.act),
        }
