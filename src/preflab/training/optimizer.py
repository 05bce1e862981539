"""One optimiser step: learning rate, finite check, clipping, update."""

from __future__ import annotations

import math
from typing import assert_never

import torch
from torch import nn

from preflab.config.training import Optimizer
from preflab.errors import ConfigError, NumericError
from preflab.training.checks import check_model


class Stepper:
    """The optimiser of one model."""

    def __init__(self, model: nn.Module, settings: Optimizer, total_steps: int) -> None:
        check_model(model)
        self.settings = settings
        self.total_steps = total_steps
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ConfigError("every weight is frozen; lower freeze_blocks")
        self.optimizer = _make(self.parameters, settings)

    def learning_rate(self, step: int) -> float:
        """The rate of step 0, 1, …: a linear warm-up, then constant or falling linearly to 0 after the last step."""
        rate = self.settings.learning_rate
        if step < self.settings.warmup_steps:
            return rate * (step + 1) / self.settings.warmup_steps
        match self.settings.decay:
            case "constant":
                return rate
            case "linear":
                left = self.total_steps - step
                return rate * left / max(1, self.total_steps - self.settings.warmup_steps)
            case never:
                assert_never(never)

    def step(self, step: int, place: str) -> dict[str, float]:
        """Clip the gradients, update the weights, clear the gradients.

        Args:
            step: how many steps this optimiser took before.
            place: what to call this step in an error.

        Raises:
            NumericError: the gradient is not finite; the weights are untouched.
        """
        norm = self.clip(place)
        return {"gradient_norm": norm, "learning_rate": self.update(step)}

    def clip(self, place: str) -> float:
        """Clip the gradients; returns their norm before.

        Raises:
            NumericError: it is not finite.
        """
        norm = float(nn.utils.clip_grad_norm_(self.parameters, self.settings.max_gradient_norm))
        if not math.isfinite(norm):
            raise NumericError(
                f"the gradient is not finite at {place}; no weight was changed. Lower optimizer.learning_rate, or "
                "look at the rows named in crash.json"
            )
        return norm

    def update(self, step: int) -> float:
        """Update the weights and clear the gradients; returns the learning rate."""
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate


def _make(parameters: list[nn.Parameter], settings: Optimizer) -> torch.optim.Optimizer:
    match settings.name:
        case "adamw":
            return torch.optim.AdamW(
                parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
            )
        case "rmsprop":
            return torch.optim.RMSprop(parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay)
        case never:
            assert_never(never)
