"""One optimiser step: learning rate, finite check, clipping, update.

Weights in bf16 are trained through masters in float32: a step of the size of a learning rate is less than bf16 can add
to most of them. Their gradients are summed in float32 over micro-batches and measured in float32; each weight is then
its master, rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, assert_never

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from torch.utils.weak import WeakIdKeyDictionary

from preflab.config.training import Optimizer
from preflab.errors import ConfigError, NumericError
from preflab.training.checks import check_model

STEPPED_AT_ONCE = 2**24
"""How many weights in bf16 are stepped at a time: 64 MiB of gradients in float32."""


class Stepper:
    """The optimiser of one model."""

    def __init__(self, model: nn.Module, settings: Optimizer, total_steps: int) -> None:
        check_model(model)
        self.settings = settings
        self.total_steps = total_steps
        weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not weights:
            raise ConfigError("every weight is frozen; lower freeze_blocks")
        self.rounded = [Rounded(weight) for weight in weights if weight.dtype == torch.bfloat16]
        self.masters = nn.ParameterList(rounded.master for rounded in self.rounded)
        """What weights in bf16 are rounded from: part of every checkpoint."""
        self.others = [weight for weight in weights if weight.dtype != torch.bfloat16]
        self.optimizer = _make([*self.masters, *self.others], settings)
        self.groups = list(_groups(self.rounded))
        largest = max((sum(one.master.numel() for one in group) for group in self.groups), default=0)
        self.space = torch.empty(largest, device=weights[0].device)
        """Where the gradients of a group stand in float32: memory that is asked for anew each step costs more time
        than the step."""
        self.scale = 1.0
        """What clipping takes the gradients in bf16 by, once they are in float32."""

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
        gradients = [rounded.gradient for rounded in self.rounded] + [weight.grad for weight in self.others]
        norms = [_norm(gradient) for gradient in gradients if gradient is not None]
        norm = float(torch.stack(norms).norm()) if norms else 0.0
        if not math.isfinite(norm):
            raise NumericError(
                f"the gradient is not finite at {place}; no weight was changed. Lower optimizer.learning_rate, or "
                "look at the rows named in crash.json"
            )
        self.scale = min(1.0, self.settings.max_gradient_norm / (norm + 1e-6))
        for weight in self.others:
            if weight.grad is not None and self.scale < 1:
                weight.grad *= self.scale
        return norm

    def update(self, step: int) -> float:
        """Update the weights and clear the gradients; returns the learning rate."""
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        for weight in self.others:
            weight.grad = None
        for part in self.groups:
            begin = 0
            for rounded in part:
                end = begin + rounded.master.numel()
                rounded.lift_gradient(self.scale, self.space[begin:end])
                begin = end
            self.optimizer.step()
            for rounded in part:
                rounded.round()
        self.scale = 1.0
        return rate

    def clear(self) -> None:
        """Forget the gradients."""
        for rounded in self.rounded:
            rounded.gradient = None
        for weight in self.others:
            weight.grad = None
        self.scale = 1.0


class Rounded:
    """A weight in bf16, the master that it is rounded from, and its gradient."""

    _owners: Any = WeakIdKeyDictionary()
    """Weight → the hook of the optimiser that had it last: the gradient goes to one of them alone."""

    def __init__(self, weight: nn.Parameter) -> None:
        self.weight, self.master = weight, nn.Parameter(weight.detach().float())
        self.gradient: Tensor | None = None
        """In bf16 after one backward pass, the sum of several in float32."""
        earlier: RemovableHandle | None = self._owners.get(weight)
        if earlier is not None:
            earlier.remove()
        self._owners[weight] = weight.register_post_accumulate_grad_hook(self._gather)

    def _gather(self, weight: Tensor) -> None:
        assert weight.grad is not None
        self.gradient = weight.grad if self.gradient is None else self.gradient.float().add_(weight.grad)
        weight.grad = None

    def lift_gradient(self, scale: float, space: Tensor) -> None:
        """Give the gradient, scaled, to the master, in the space that is lent; nothing where there is none."""
        if self.gradient is None:
            return
        self.master.grad = space.view_as(self.master).copy_(self.gradient)
        if scale < 1:
            self.master.grad *= scale
        self.gradient = None

    @torch.no_grad()
    def round(self) -> None:
        """Make the weight of its master."""
        self.master.grad = None
        self.weight.copy_(self.master)


def _norm(gradient: Tensor) -> Tensor:
    """In float32, a part at a time where the gradient is in bf16: it would be copied whole."""
    if gradient.dtype != torch.bfloat16:
        return torch.linalg.vector_norm(gradient)
    parts = gradient.reshape(-1).split(STEPPED_AT_ONCE // 16)
    return torch.stack([torch.linalg.vector_norm(part.float()) for part in parts]).norm()


def _groups(weights: Sequence[Rounded]) -> Iterator[list[Rounded]]:
    """Some 2²⁴ weights at a time, so that their gradients in float32 are never all there at once."""
    group: list[Rounded] = []
    for weight in weights:
        group.append(weight)
        if sum(one.master.numel() for one in group) >= STEPPED_AT_ONCE:
            yield group
            group = []
    if group:
        yield group


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
