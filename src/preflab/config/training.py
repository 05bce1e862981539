"""What training on a fixed data set is told: optimiser, passes, batches; SFT and the reward model.

The objects of this file, `preference.py` and `online.py` serve `preflab train METHOD` and the arms of a study alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, lt=2**31)]
Precision = Literal["fp32", "bf16-autocast", "bf16"]
"""What weights and matrix products are in; `models/precision.py` has what each means."""


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """How a step is taken."""

    name: Literal["adamw", "rmsprop"] = "adamw"
    """The update rule; the DPO paper used rmsprop."""
    learning_rate: Annotated[float, Interval(ge=0, le=1)] = 1e-4
    """Peak learning rate, in [0, 1]. 0 trains nothing: a check that the ratio is 1 and the KL 0."""
    warmup_steps: Count = 10
    """Optimiser steps over which the rate rises linearly from 0."""
    decay: Literal["constant", "linear"] = "constant"
    """After the warm-up: hold the rate, or fall linearly to 0 at the last step."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    """Decoupled weight decay (adamw) or L2 (rmsprop), ≥ 0."""
    max_gradient_norm: Annotated[float, Gt(0)] = 1.0
    """The gradient's norm is clipped to this, > 0."""


@dataclass(frozen=True, kw_only=True)
class Batch:
    """How many examples go together."""

    size: Positive = 32
    """Examples in an optimiser step (pairs, or demonstrations)."""
    micro: Positive = 8
    """Examples in memory at once, where batch.tokens is not set; a step adds up micro-batches with one global count, so
    this changes no figure."""
    tokens: Positive | None = None
    """Cells in memory at once: tokens as the model reads them, padding counted, and a prompt once for all its responses
    where the model can. A larger example is alone. Changes no figure; none: batch.micro counts."""
    order: Literal["random", "length"] = "random"
    """length: examples of similar length share a step, which saves padding where the model pads; which ones, and in
    what order the steps come, is random anew each epoch."""

    def idle_fields(self) -> tuple[str, ...]:
        """What the budget stands in for."""
        return () if self.tokens is None else ("micro",)


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What is kept of frozen embeddings and blocks, so that they run once."""

    disk_gib: Annotated[float, Ge(0)] = 4.0
    """Disk space for their states in the run folder, in GiB, ≥ 0, while the run lasts; at most half of what is free.
    What does not fit is computed each time. 0 keeps nothing."""
    dtype: Literal["working", "bf16"] = "working"
    """How states are kept: as they are, or rounded to bfloat16, in half the space of float32."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.disk_gib > 0 or self.dtype == Trunk.dtype:
            return None
        return f"dtype = {self.dtype} has no effect with disk_gib = 0; leave it out"


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What every method on a fixed data set shares."""

    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the data, > 0; 0.5 is half of it."""
    batch: Batch = field(default_factory=Batch)
    """How many examples go together."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How a step is taken."""
    freeze_blocks: Count = 0
    """Hold the embeddings and the first N transformer blocks fixed; 0 trains everything."""
    trunk: Trunk = field(default_factory=Trunk)
    """What is kept of the frozen part."""
    activation_checkpointing: bool = False
    """Keep of each trained transformer block its input alone and run it again in the backward pass: less memory, a
    third more work at most; changes no figure."""
    evaluations: Positive = 4
    """Checkpoints at which the policy is evaluated (and saved), spread evenly; the last is the last step."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.freeze_blocks or self.trunk == Trunk():
            return None
        name = "disk_gib" if self.trunk.disk_gib != Trunk.disk_gib else "dtype"
        return f"trunk.{name} = {getattr(self.trunk, name)} has no effect with freeze_blocks = 0; leave it out"

    def idle_fields(self) -> tuple[str, ...]:
        """Settings without effect beside the others."""
        return () if self.freeze_blocks else ("trunk",)


@dataclass(frozen=True, kw_only=True)
class SFT(Fit):
    """Supervised fine-tuning: cross-entropy of response tokens, averaged over the tokens of a step."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=2e-5))
    """How a step is taken."""


@dataclass(frozen=True, kw_only=True)
class RewardLoss:
    """The Bradley–Terry loss."""

    margin: Annotated[float, Ge(0)] = 0.0
    """By how much the chosen score should lead, ≥ 0."""
    centring: Annotated[float, Ge(0)] = 0.0
    """Pull of the scores towards 0, ≥ 0; usual 0 to 0.01."""


@dataclass(frozen=True, kw_only=True)
class Reward(Fit):
    """A Bradley–Terry reward model."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-5))
    """How a step is taken."""
    loss: RewardLoss = field(default_factory=RewardLoss)
    """The loss."""


def not_a_divisor(name: str, value: int, size: int) -> str | None:
    """What is wrong where the setting `name` does not divide `batch.size`, with the nearest value that does."""
    if size % value == 0:
        return None
    near = min((d for d in range(1, size + 1) if size % d == 0), key=lambda divisor: abs(divisor - value))
    return f"{name} = {value} does not divide batch.size = {size}; try {near}"
