"""Methods that learn from pairs made of the policy's own responses, ranked by a reward."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt

from preflab.config.pair_losses import SumLoss
from preflab.config.sampling import Warp
from preflab.config.training import Count, Fit, Optimizer, Positive, not_a_divisor

Temperatures = tuple[Annotated[float, Gt(0)], ...]


@dataclass(frozen=True, kw_only=True)
class Ranking(Warp):
    """How responses to one prompt are sampled and become a pair: the best against the worst."""

    temperatures: Temperatures = (0.6, 0.8, 1.0, 1.2)
    """One response a prompt is sampled at each of these temperatures, > 0; at least two."""
    smallest_gap: Annotated[float, Ge(0)] = 0.01
    """A prompt gives a pair only where the best reward exceeds the worst by more than this, in units of reward."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if len(self.temperatures) >= 2:
            return None
        return f"temperatures = {list(self.temperatures)}: a pair needs two responses; give two temperatures or more"


@dataclass(frozen=True, kw_only=True)
class PairBatch:
    """How many prompts, or pairs of their responses, go together."""

    size: Positive = 32
    """Prompts in a rollout; each gives a pair, or none."""
    mini: Positive = 32
    """Pairs in an optimiser step, at most; must divide batch.size."""
    micro: Positive = 8
    """Pairs in memory at once, where batch.tokens is not set; changes no figure."""
    tokens: Positive | None = None
    """Cells in memory at once: tokens as the model reads them, padding counted, and a prompt once for all its responses
    where the model can. A larger pair is alone. Changes no figure; none: batch.micro counts."""

    def idle_fields(self) -> tuple[str, ...]:
        """What the budget stands in for."""
        return () if self.tokens is None else ("micro",)


def _dpo() -> SumLoss:
    return SumLoss(terms="dpo")


@dataclass(frozen=True, kw_only=True)
class OnlineDPO:
    """Online preference learning: sample from the current policy, rank by the reward, step on the pairs."""

    updates: Positive = 40
    """Rollouts, each followed by `epochs` passes over its pairs."""
    batch: PairBatch = field(default_factory=PairBatch)
    """How many prompts, or pairs of their responses, go together."""
    epochs: Positive = 1
    """Passes over the pairs of a rollout."""
    ranking: Ranking = field(default_factory=Ranking)
    """How responses become pairs."""
    loss: SumLoss = field(default_factory=_dpo)
    """The loss of a pair: any of the offline methods', or a weighted sum of them."""
    missing_end_penalty: Annotated[float, Ge(0)] = 1.0
    """Taken from the reward of a response that the length limit cut before its end token, in units of reward, ≥ 0."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=5e-6))
    """Of the policy."""
    freeze_blocks: Count = 0
    """Hold the policy's embeddings and first N transformer blocks fixed; 0 trains everything."""
    activation_checkpointing: bool = False
    """Keep of each trained transformer block its input alone and run it again in the backward pass: less memory, a
    third more work at most; changes no figure."""
    evaluations: Positive = 4
    """Checkpoints at which the policy is evaluated (and saved), spread evenly; the last is the last update."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        return not_a_divisor("batch.mini", self.batch.mini, self.batch.size)


@dataclass(frozen=True, kw_only=True)
class IterativeDPO(Fit):
    """Iterative preference learning: rounds of sampling pairs from the policy and training on them."""

    rounds: Positive = 3
    """Each samples pairs anew from what the round before made of the policy; the prompts are dealt out over the
    rounds, and `epochs`, `batch` and `evaluations` are those of a round."""
    reference: Literal["start", "previous"] = "start"
    """What the loss compares with: the policy before the first round, or before this one. KL budgets differ."""
    ranking: Ranking = field(default_factory=Ranking)
    """How responses become pairs."""
    loss: SumLoss = field(default_factory=_dpo)
    """The loss of a pair: any of the offline methods', or a weighted sum of them."""
    missing_end_penalty: Annotated[float, Ge(0)] = 1.0
    """Taken from the reward of a response that the length limit cut before its end token, in units of reward, ≥ 0."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=5e-6))
    """How a step is taken; the schedule begins anew each round."""
