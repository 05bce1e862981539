"""The settings of each method. The same objects serve `preflab train METHOD` and the arms of a study."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Lt

Positive = Annotated[int, Ge(1)]
Count = Annotated[int, Ge(0)]
Seed = Annotated[int, Interval(ge=0, lt=2**31)]


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
class Fit:
    """What every method on a fixed data set shares."""

    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the data, > 0; 0.5 is half of it."""
    batch_size: Positive = 32
    """Examples in an optimiser step (pairs, or demonstrations)."""
    micro_batch_size: Positive = 8
    """Examples in memory at once; a step adds up micro-batches with one global count, so this changes no figure."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How a step is taken."""
    freeze_blocks: Count = 0
    """Hold the embeddings and the first N transformer blocks fixed; 0 trains everything."""
    evaluations: Positive = 4
    """Checkpoints at which the policy is evaluated (and saved), spread evenly; the last is the last step."""


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


@dataclass(frozen=True, kw_only=True)
class DPOLoss:
    """The DPO loss."""

    beta: Annotated[float, Gt(0)] = 0.1
    """How strongly the policy is held to the reference, > 0; larger β, smaller KL. Usual 0.01 to 1."""
    label_smoothing: Annotated[float, Ge(0), Lt(0.5)] = 0.0
    """Share of labels believed to be flipped, in [0, 0.5)."""


@dataclass(frozen=True, kw_only=True)
class DPO(Fit):
    """Direct preference optimisation."""

    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=5e-6))
    """How a step is taken."""
    loss: DPOLoss = field(default_factory=DPOLoss)
    """The loss."""


@dataclass(frozen=True, kw_only=True)
class PPO:
    """Proximal policy optimisation with a per-token KL penalty in the reward."""

    updates: Positive = 40
    """Rollouts, each followed by `epochs` passes of optimisation."""
    batch_size: Positive = 128
    """Responses in a rollout, one a prompt."""
    mini_batch_size: Positive = 64
    """Responses in an optimiser step; must divide batch_size."""
    micro_batch_size: Positive = 16
    """Responses in memory at once; changes no figure."""
    epochs: Positive = 2
    """Passes over each rollout."""
    kl_coefficient: Annotated[float, Ge(0)] = 0.1
    """β: reward paid per nat of log-ratio to the reference, ≥ 0."""
    clip: Annotated[float, Gt(0), Lt(1)] = 0.2
    """ε: a step can't gain from a ratio outside [1 − ε, 1 + ε]; in (0, 1)."""
    value_clip: Annotated[float, Gt(0)] | None = 0.2
    """How far a value may move from its rollout value and be believed, in units of reward; none: no clipping."""
    discount: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """γ of generalised advantage estimation, in [0, 1]."""
    lam: Annotated[float, Interval(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation, in [0, 1]."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a rollout to mean 0 and variance 1."""
    missing_end_penalty: Annotated[float, Ge(0)] = 1.0
    """Taken from the score of a response that the length limit cut before its end token, in units of reward, ≥ 0."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of sampling, and of scoring alike, > 0. KL is reported at temperature 1 always."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-6))
    """Of the policy."""
    value_optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-5))
    """Of the value model."""
    freeze_blocks: Count = 0
    """Hold the policy's embeddings and first N transformer blocks fixed; 0 trains everything."""
    evaluations: Positive = 4
    """Checkpoints at which the policy is evaluated (and saved), spread evenly; the last is the last update."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        size, mini = self.batch_size, self.mini_batch_size
        if size % mini == 0:
            return None
        near = min((d for d in range(1, size + 1) if size % d == 0), key=lambda divisor: abs(divisor - mini))
        return f"mini_batch_size = {mini} does not divide batch_size = {size}; try {near}"
