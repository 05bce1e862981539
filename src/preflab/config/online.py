"""Methods that learn from a reward, on responses they sample."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, Lt

from preflab.config.sampling import Warp
from preflab.config.training import Count, Optimizer, Positive, not_a_divisor

KLPenalty = Literal["reward", "k2", "k3", "full"]
Aggregation = Literal["token-mean", "seq-mean-token-mean", "seq-mean-token-sum", "seq-mean-token-sum-norm"]


@dataclass(frozen=True, kw_only=True)
class RolloutBatch:
    """How many responses go together."""

    size: Positive = 128
    """Responses in a rollout."""
    mini: Positive = 64
    """Responses in an optimiser step; must divide batch.size."""
    micro: Positive = 16
    """Responses in memory at once, where batch.tokens is not set; changes no figure."""
    tokens: Positive | None = None
    """Cells in memory at once: tokens as the model reads them, padding counted, and a prompt once for all its responses
    where the model can. A larger response is alone. Changes no figure; none: batch.micro counts."""

    def idle_fields(self) -> tuple[str, ...]:
        """What the budget stands in for."""
        return () if self.tokens is None else ("micro",)


@dataclass(frozen=True, kw_only=True)
class Online:
    """What every method that samples its own responses shares."""

    updates: Positive = 40
    """Rollouts, each followed by `epochs` passes of optimisation."""
    batch: RolloutBatch = field(default_factory=RolloutBatch)
    """How many responses go together."""
    responses: Positive = 1
    """Responses to each prompt; must divide batch.size."""
    epochs: Positive = 2
    """Passes over each rollout."""
    missing_end_penalty: Annotated[float, Ge(0)] = 1.0
    """Taken from the score of a response that the length limit cut before its end token, in units of reward, ≥ 0."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of sampling, and of scoring alike, > 0. KL is reported at temperature 1 always."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-6))
    """Of the policy."""
    freeze_blocks: Count = 0
    """Hold the policy's embeddings and first N transformer blocks fixed; 0 trains everything."""
    activation_checkpointing: bool = False
    """Keep of each trained transformer block its input alone and run it again in the backward pass: less memory, a
    third more work at most; changes no figure."""
    evaluations: Positive = 4
    """Checkpoints at which the policy is evaluated (and saved), spread evenly; the last is the last update."""

    @property
    def steps_per_update(self) -> int:
        """Optimiser steps after each rollout."""
        return self.epochs * (self.batch.size // self.batch.mini)

    @staticmethod
    def refusal(name: str) -> str | None:
        """Why there is no such setting, where that is no slip; else None."""
        if name not in {one.name for one in fields(Warp)}:
            return None
        return (
            "it would make tokens come from another distribution than the policy's, and importance ratios, KL and "
            f"gradient be wrong; sample from the policy itself, or use online-dpo (ranking.{name}), which has no ratio"
        )

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        size = self.batch.size
        return not_a_divisor("responses", self.responses, size) or not_a_divisor("batch.mini", self.batch.mini, size)


@dataclass(frozen=True, kw_only=True)
class Surrogate(Online):
    """What the methods that step on the clipped surrogate share."""

    kl_coefficient: Annotated[float, Ge(0)] = 0.1
    """β: reward (or loss) paid per nat of KL to the reference, ≥ 0."""
    kl_penalty: KLPenalty = "reward"
    """Where β is paid. reward: the log-ratio of the sampled tokens is taken from the reward, the gradient of the
    sequence KL. Else in the loss: k2 or full (the whole vocabulary) follow KL(π‖π_ref) token by token, k3 follows the
    *forward* KL(π_ref‖π)."""
    clip: Annotated[float, Gt(0), Lt(1)] = 0.2
    """ε: a step can't gain from a ratio outside [1 − ε, 1 + ε]; in (0, 1)."""
    clip_higher: Annotated[float, Gt(0)] | None = None
    """ε' of the upper bound 1 + ε', > 0; none: the same as clip."""
    aggregation: Aggregation = "token-mean"
    """How token losses become one: token-mean weighs tokens alike; seq-mean-token-mean weighs responses alike, so a
    token of a long one less; seq-mean-token-sum adds up a response's tokens, as the policy gradient has it;
    seq-mean-token-sum-norm divides that by the length limit."""

    @property
    def needs_logits(self) -> bool:
        """Whether the loss looks at the whole vocabulary, not at the sampled tokens alone."""
        return self.kl_penalty == "full"

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if problem := super().misfit():
            return problem
        if self.kl_coefficient == 0 and _set(self, "kl_penalty"):
            return f"kl_penalty = {self.kl_penalty} does nothing at kl_coefficient = 0; raise that, or leave it out"
        if self.steps_per_update == 1 and self.clip_higher is not None and _set(self, "clip_higher"):
            return (
                f"clip_higher = {self.clip_higher} does nothing with one optimiser step an update, where the ratio is "
                "1; raise epochs, or lower batch.mini"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class PPO(Surrogate):
    """Proximal policy optimisation with a value model and a KL penalty."""

    target_kl_nats: Annotated[float, Gt(0)] | None = None
    """Adapt β so that the KL of a response to the reference approaches this, in nats, > 0; none: β stays."""
    kl_horizon: Positive = 10_000
    """Responses over which an adaptive β may change by a fifth; with target_kl_nats."""
    stop_kl_nats: Annotated[float, Gt(0)] | None = None
    """End an update's epochs before a step at which the policy's KL from the one that sampled exceeds this, in nats
    per token, > 0 (usual 0.01 to 0.05); none: all epochs are run."""
    value_trunk: Literal["separate", "shared"] = "separate"
    """separate: a value model of its own, which starts as the first reward model that reward names, or as the policy
    with values of 0 where it names none. shared: a linear head on the policy's last
    hidden state, which starts at 0: less memory and time, but value and policy pull at one trunk."""
    value_coefficient: Annotated[float, Gt(0)] = 0.1
    """Weight of the value loss beside the policy's in a shared trunk, > 0."""
    value_optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=1e-5))
    """Of the value model, or of the value head on a shared trunk."""
    value_warmup_updates: Count = 0
    """The first N updates train values alone: an untrained value misleads the policy."""
    value_clip: Annotated[float, Gt(0)] | None = 0.2
    """How far a value may move from its rollout value and be believed, in units of reward; none: no clipping."""
    discount: Annotated[float, Interval(ge=0, le=1)] = 1.0
    """γ of generalised advantage estimation, in [0, 1]."""
    lam: Annotated[float, Interval(ge=0, le=1)] = 0.95
    """λ of generalised advantage estimation, in [0, 1]."""
    whiten_rewards: bool = False
    """Scale the token rewards of a rollout to variance 1; their mean is kept."""
    whiten_advantages: bool = True
    """Shift and scale the advantages of a rollout to mean 0 and variance 1."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if problem := super().misfit():
            return problem
        if self.target_kl_nats is None and _set(self, "kl_horizon"):
            return f"kl_horizon = {self.kl_horizon} does nothing without target_kl_nats; set that, or leave it out"
        if self.target_kl_nats is not None and self.kl_coefficient == 0:
            return "target_kl_nats can't adapt kl_coefficient = 0, which stays 0; give it a start such as 0.1"
        if self.target_kl_nats is not None and self.kl_horizon < self.batch.size:
            return f"kl_horizon = {self.kl_horizon} is less than one rollout; try {10 * self.batch.size}"
        if self.stop_kl_nats is not None and self.steps_per_update == 1:
            return "stop_kl_nats does nothing with one optimiser step an update; raise epochs, or lower batch.mini"
        if self.value_trunk == "separate" and _set(self, "value_coefficient"):
            return (
                f"value_coefficient = {self.value_coefficient} does nothing with value_trunk = separate, where the "
                "value model has an optimiser of its own; set value_optimizer.learning_rate"
            )
        if self.value_warmup_updates >= self.updates:
            return (
                f"value_warmup_updates = {self.value_warmup_updates} leaves none of updates = {self.updates} to the "
                f"policy; try {self.updates // 4}"
            )
        return None


@dataclass(frozen=True, kw_only=True)
class PolicyGradient(Surrogate):
    """Policy gradient without a value model: a response is compared with others of its rollout."""

    responses: Positive = 8
    """Responses to each prompt; must divide batch.size."""
    epochs: Positive = 1
    """Passes over each rollout."""
    baseline: Literal["group-mean", "leave-one-out", "batch"] = "group-mean"
    """What a reward is compared with: the mean over the responses to its prompt, the mean over the others of them, or
    the mean over all others of the rollout."""
    scale: Literal["none", "group-std", "batch-std"] = "none"
    """What the difference is divided by: nothing, or the standard deviation (n − 1) of the rewards of its prompt or of
    the rollout, + 1e-6."""
    dynamic_sampling: bool = False
    """Keep only prompts whose responses differ in reward (the others teach nothing), and sample further prompts in
    their place."""
    refill_rounds: Positive = 10
    """How often an update may sample further prompts before it makes do with what it has; with dynamic_sampling."""
    overlong_buffer_tokens: Count = 0
    """A response pays for each token beyond the length limit less this, linearly up to overlong_factor at the limit;
    0: it doesn't."""
    overlong_factor: Annotated[float, Gt(0)] = 1.0
    """The penalty at the length limit, in units of reward, > 0; with overlong_buffer_tokens."""
    mask_truncated: bool = False
    """Leave responses cut by the length limit out of the loss; their reward still counts in the baseline."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if problem := super().misfit():
            return problem
        if self.batch.size == 1:
            return "batch.size = 1 leaves nothing to compare a response with; raise it"
        if self.responses == 1:
            if self.baseline != "batch":
                return f"baseline = {self.baseline} needs several responses to a prompt; raise responses, or use batch"
            if self.scale == "group-std":
                return "scale = group-std needs several responses to a prompt; raise responses, or use batch-std"
            if self.dynamic_sampling:
                return "dynamic_sampling compares the responses to a prompt; raise responses, or turn it off"
        if not self.dynamic_sampling and _set(self, "refill_rounds"):
            return f"refill_rounds = {self.refill_rounds} does nothing without dynamic_sampling; turn that on"
        if self.overlong_buffer_tokens == 0 and _set(self, "overlong_factor"):
            return f"overlong_factor = {self.overlong_factor} does nothing without overlong_buffer_tokens; set that"
        return None


@dataclass(frozen=True, kw_only=True)
class GRPO(PolicyGradient):
    """Group relative policy optimisation (Shao et al. 2024, arXiv 2402.03300, §4.1).

    Departures: several optimiser steps a rollout, so that the clip can act (the paper takes one), 8 responses to a
    prompt instead of 64, and 1e-6 is added to the standard deviation, as in verl (TRL adds 1e-4).
    """

    scale: Literal["none", "group-std", "batch-std"] = "group-std"
    """What the difference is divided by: nothing, or the standard deviation (n − 1) of the rewards of its prompt or of
    the rollout, + 1e-6."""
    kl_coefficient: Annotated[float, Ge(0)] = 0.04
    """β: reward (or loss) paid per nat of KL to the reference, ≥ 0."""
    kl_penalty: KLPenalty = "k3"
    """Where β is paid: in the reward of the whole response, or in the loss of each token by k2, k3 or full. k3 is the
    paper's choice; its gradient is that of the *forward* KL(π_ref‖π)."""
    aggregation: Aggregation = "seq-mean-token-mean"
    """How token losses become one; the paper's choice makes long wrong answers cheap."""


@dataclass(frozen=True, kw_only=True)
class DrGRPO(PolicyGradient):
    """GRPO without its two biases (Liu et al. 2025, arXiv 2503.20783): no division by the standard deviation, and
    token losses are added up and divided by the length limit. No KL penalty."""

    kl_coefficient: Annotated[float, Ge(0)] = 0.0
    """β: reward (or loss) paid per nat of KL to the reference, ≥ 0."""
    aggregation: Aggregation = "seq-mean-token-sum-norm"
    """How token losses become one."""


@dataclass(frozen=True, kw_only=True)
class DAPO(PolicyGradient):
    """Decoupled clip and dynamic sampling (Yu et al. 2025, arXiv 2503.14476). No KL penalty.

    Departures: 8 responses to a prompt instead of 16; an overlong response pays missing_end_penalty at the limit, and
    the paper's gradual penalty is had by overlong_buffer_tokens, a fifth of the length limit there. Prompts are
    replaced one by one, so that none is sampled and thrown away though it would teach something.
    """

    scale: Literal["none", "group-std", "batch-std"] = "group-std"
    """What the difference is divided by: nothing, or the standard deviation (n − 1) of the rewards of its prompt or of
    the rollout, + 1e-6."""
    kl_coefficient: Annotated[float, Ge(0)] = 0.0
    """β: reward (or loss) paid per nat of KL to the reference, ≥ 0."""
    clip_higher: Annotated[float, Gt(0)] | None = 0.28
    """ε' of the upper bound 1 + ε', > 0; none: the same as clip."""
    dynamic_sampling: bool = True
    """Keep only prompts whose responses differ in reward (the others teach nothing), and sample further prompts in
    their place."""


@dataclass(frozen=True, kw_only=True)
class RLOO(PolicyGradient):
    """REINFORCE leave-one-out (Kool et al. 2019; Ahmadian et al. 2024, arXiv 2402.14740, §3.2): a response is compared
    with the others to its prompt, the KL of the whole sequence is in the reward.

    Departure: PPO's clip holds the second and later optimiser steps of a rollout, where the paper takes one.
    """

    responses: Positive = 4
    """Responses to each prompt; must divide batch.size."""
    baseline: Literal["group-mean", "leave-one-out", "batch"] = "leave-one-out"
    """What a reward is compared with: the mean over the responses to its prompt, the mean over the others of them, or
    the mean over all others of the rollout."""
    aggregation: Aggregation = "seq-mean-token-sum"
    """How token losses become one."""


@dataclass(frozen=True, kw_only=True)
class Reinforce(PolicyGradient):
    """REINFORCE (Williams 1992) with the mean reward of the rollout's other responses as its baseline, and the KL of
    the whole sequence in the reward.

    Departure: PPO's clip holds the second and later optimiser steps of a rollout, where the paper takes one.
    """

    responses: Positive = 1
    """Responses to each prompt; must divide batch.size."""
    baseline: Literal["group-mean", "leave-one-out", "batch"] = "batch"
    """What a reward is compared with: the mean over the responses to its prompt, the mean over the others of them, or
    the mean over all others of the rollout."""
    aggregation: Aggregation = "seq-mean-token-sum"
    """How token losses become one."""


def _set(settings: object, name: str) -> bool:
    """True where a setting is not the default of its class."""
    return bool(getattr(settings, name) != getattr(type(settings), name))
