"""What each key of `metrics.jsonl` means, and which values should worry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from preflab.config.commands import BestOfN
from preflab.config.online import PPO, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.pair_losses import (
    CPOLoss,
    FDPOLoss,
    IPOLoss,
    KTOLoss,
    LengthNormalisedDPOLoss,
    ORPOLoss,
    PairLoss,
    SFTLoss,
    SimPOLoss,
    SumLoss,
)
from preflab.config.preference import Preference, Unpaired
from preflab.config.training import SFT, Reward

Method = SFT | Reward | Preference | Unpaired | PPO | PolicyGradient | OnlineDPO | IterativeDPO | BestOfN
"""The settings of a method."""


@dataclass(frozen=True)
class Metric:
    """A key of metrics.jsonl."""

    key: str
    meaning: str
    """With its unit."""
    worry: str = ""
    """Which values should."""
    when: str = ""
    """The settings under which it is logged; "" is always."""


@dataclass(frozen=True)
class Section:
    """Keys that are taken over the same thing."""

    heading: str
    metrics: tuple[Metric, ...]


def logged_by(settings: Method) -> tuple[Section, ...]:
    """What a method writes to metrics.jsonl; nothing where it doesn't train."""
    match settings:
        case SFT():
            return (Section(EVERY_STEPS, (STEP, *SUPERVISED, *OPTIMIZER)),)
        case Reward():
            return (Section(EVERY_STEPS, (STEP, *REWARD_MODEL, *OPTIMIZER)),)
        case Preference():
            return (Section(EVERY_STEPS, (STEP, *_of_pairs(settings.loss), *OPTIMIZER)),)
        case Unpaired():
            anchor = REFERENCE_POINT if isinstance(settings.loss, KTOLoss) else SHIFT
            return (Section(EVERY_STEPS, (STEP, *UNPAIRED, anchor, *OPTIMIZER)),)
        case PPO():
            return (
                Section(ROLLOUT, (UPDATE, *SAMPLED, OBJECTIVE, KL_COEFFICIENT, EXPLAINED_VARIANCE)),
                Section(PPO_STEPS, (*SURROGATE, VALUE_LOSS, *OPTIMIZER, OPTIMIZER_STEPS)),
                Section(UPDATE_TIME, TIME),
            )
        case PolicyGradient():
            return (
                Section(ROLLOUT, (UPDATE, *SAMPLED, DROPPED, OBJECTIVE, ZERO_ADVANTAGES)),
                Section(UPDATE_STEPS, (*SURROGATE, *OPTIMIZER, OPTIMIZER_STEPS)),
                Section(UPDATE_TIME, TIME),
            )
        case OnlineDPO():
            return (
                Section(ROLLOUT, (UPDATE, *SAMPLED, *RANKED)),
                Section(UPDATE_STEPS, (*_of_pairs(settings.loss), *OPTIMIZER, OPTIMIZER_STEPS)),
                Section(UPDATE_TIME, TIME),
            )
        case IterativeDPO():
            return (Section(EVERY_STEPS, (STEP, ROUND, *_of_pairs(settings.loss), *OPTIMIZER)),)
        case BestOfN():
            return ()
        case never:
            assert_never(never)


EVERY_STEPS = "One line every log_every optimiser steps, with the figures of that step."
ROLLOUT = "One line every log_every updates. Of the rollout, so of the policy before the update's steps:"
UPDATE_STEPS = "Means over the update's optimiser steps:"
PPO_STEPS = "Means over the update's optimiser steps; while values alone train, value_loss and optimizer_steps:"
UPDATE_TIME = "Where the update's time went, and memory; no two runs agree on them:"

STEP = Metric("step", "optimiser steps taken")
UPDATE = Metric("step", "updates finished")
ROUND = Metric("round", "the round, from 1; step counts on from round to round")

OPTIMIZER = (
    Metric(
        "gradient_norm",
        "norm of the gradient before it is clipped",
        "is far above optimizer.max_gradient_norm in most steps: the clip, not the rate, sets the step",
    ),
    Metric("learning_rate", "rate of the step"),
)

SUPERVISED = (
    Metric(
        "loss",
        "nats a response token",
        "stays at ln(vocabulary size): nothing is learnt; nears 0: the data are memorised, compare held-out perplexity",
    ),
    Metric("perplexity", "e^loss", "does what would worry in loss"),
)

REWARD_MODEL = (
    Metric(
        "loss",
        "nats a pair, margin and centring included; ln 2 ≈ 0.693 at equal scores. The new head is random, so the first "
        "value need not be ln 2",
        "stays at ln 2 or above",
    ),
    Metric(
        "accuracy",
        "share of pairs whose chosen response scores higher, ties count half",
        "stays at 0.5; or nears 1 while the held-out accuracy doesn't: memorised",
    ),
    Metric(
        "margin",
        "mean of s_w − s_l, in units of score",
        "grows without end while the held-out loss rises: over-confident",
    ),
)


def _of_pairs(loss: PairLoss) -> tuple[Metric, ...]:
    """Methods on pairs differ in what they take for a reward, and in whether they know where they start."""
    reward = implicit_reward(loss)
    starts = not isinstance(loss, SimPOLoss | CPOLoss | ORPOLoss | SumLoss)
    return (
        Metric(
            "loss",
            "the formula above, mean over the pairs",
            ("is not its value at policy = reference at the first step; " if starts else "") + "doesn't fall",
        ),
        Metric(
            "accuracy",
            "share of pairs whose chosen response has the higher implicit reward, ties count half"
            + ("; says nothing at the first step, where both are 0 up to rounding" if starts else ""),
            "stays at 0.5; or nears 1 while the held-out accuracy doesn't: memorised",
        ),
        Metric("margin", "mean of chosen_reward − rejected_reward", "falls below 0, or grows without end"),
        Metric(
            "chosen_reward",
            f"mean implicit reward of the chosen responses, {reward}. No measure of success, and not comparable across "
            "methods or settings: judge samples of the policy (preflab evaluate)",
            "falls steeply, and rejected_reward with it, while the margin hardly moves",
        ),
        Metric("rejected_reward", "the same of the rejected responses"),
        Metric(
            "chosen_logprob_nats",
            "mean log-probability of the chosen responses, summed over tokens, in nats",
            "falls steeply: the policy forgets what was chosen (dpop, or sum with sft, hold it up)",
        ),
        Metric(
            "rejected_logprob_nats",
            "the same of the rejected responses",
            "falls without end while accuracy stands still",
        ),
    )


def implicit_reward(loss: PairLoss) -> str:
    """What a loss takes for the reward of a response."""
    match loss:
        case IPOLoss(average_tokens=average):
            return "τ·logratio per token" if average else "τ·logratio"
        case LengthNormalisedDPOLoss():
            return "β·logratio per token"
        case FDPOLoss():
            return "β·f'(π/π_ref)"
        case SimPOLoss():
            return "β·logprob per token"
        case CPOLoss():
            return "β·logprob"
        case ORPOLoss():
            return "λ·logprob per token"
        case SFTLoss():
            return "logprob per token"
        case SumLoss():
            return implicit_reward(loss.heaviest)
        case _:
            return "β·logratio"


UNPAIRED = (
    Metric(
        "loss",
        "the formula above, mean over the responses",
        "is not its value at policy = reference at the first step; doesn't fall",
    ),
    Metric(
        "accuracy",
        "share of responses whose implicit reward, β·logratio, is on its side of the anchor below; on it counts half",
        "stays at 0.5; or nears 1 while the held-out accuracy doesn't: memorised",
    ),
    Metric(
        "desirable_reward",
        "mean implicit reward of the desirable responses; 0 where the step has none. No measure of success",
        "falls, and undesirable_reward with it, while accuracy hardly moves",
    ),
    Metric("undesirable_reward", "the same of the undesirable ones", "rises with desirable_reward"),
)
REFERENCE_POINT = Metric(
    "reference_point_nats",
    "the anchor z₀: KL(π‖π_ref) as estimated on mismatched responses, ≥ 0, in nats; 0 at the first step",
    "is far above the log-ratios of most responses: their gradient vanishes",
)
SHIFT = Metric(
    "shift",
    "the anchor δ: running mean of β·logratio over the steps before; 0 at the first step",
    "runs away to one side: the labels are uneven, or the policy drifts as a whole",
)

SAMPLED = (
    Metric(
        "reward",
        "mean reward of a response, before KL and penalties; of a weighted sum, also each term before its weight, as "
        "reward/NAME",
        "rises while a gold reward or judge falls: over-optimised",
    ),
    Metric(
        "reward_sd",
        "standard deviation of the rewards, over the rollout's responses",
        "is 0: there is nothing to learn from; nears 0 while reward stands still: the policy says one thing",
    ),
    Metric("reward_min", "the lowest reward of a response", "is the same in every line: the reward is cut off there"),
    Metric("reward_max", "the highest", "is the same in every line: the reward is cut off there"),
    Metric(
        "kl_nats",
        "KL(π‖π_ref) of a response: full vocabulary, summed over tokens, at temperature 1; mean over the responses as "
        "sampled (online DPO's at ranking.temperatures), in nats",
        "is not 0 at the first update (chains apart); grows faster than reward",
    ),
    Metric("entropy_nats", "mean a token, at temperature 1, in nats", "falls towards 0: the policy says one thing"),
    Metric("response_tokens", "mean length, end token included", "drifts to the limit, or to 1"),
    Metric(
        "end_rate",
        "share of responses that ended by themselves",
        "falls: raise missing_end_penalty or the length limit",
    ),
    Metric(
        "sampler_gap_nats",
        "largest difference between the sampler's and the scorer's log-probability of a token",
        "exceeds 1e-4 in float32; above 0.01 (in bf16: above 1) the run stops",
    ),
)
OBJECTIVE = Metric(
    "objective",
    "mean of reward − β·Σ_t (log π − log π_ref), at the sampling temperature",
    "doesn't rise: this is what is maximised, penalties apart",
)
KL_COEFFICIENT = Metric(
    "kl_coefficient",
    "β of this update, reward per nat",
    "still moves one way at the end: the target of target_kl_nats was not reached",
)
EXPLAINED_VARIANCE = Metric(
    "explained_variance",
    "1 − Var(R − V)/Var(R) of the rollout's values: 1 is perfect, 0 knows the mean alone",
    "is below 0 after the first dozens of updates: raise value_optimizer.learning_rate or value_warmup_updates",
)
ZERO_ADVANTAGES = Metric(
    "zero_advantages",
    "share of responses whose advantage is 0, which teach nothing: under a group baseline, those of prompts whose "
    "responses all got one reward",
    "nears 1: the prompts are too easy or too hard, or responses too few",
)
DROPPED = Metric(
    "dropped_responses",
    "responses sampled in vain: all rewards of their prompt were equal, further prompts took its place",
    "grows to a multiple of batch.size: sampling is most of the cost, take other prompts",
    when="dynamic_sampling",
)
RANKED = (
    Metric("pairs", "pairs made; a prompt gives one or none", "is far below batch.size: responses hardly differ"),
    Metric("skipped_prompts", "prompts that gave none", "nears batch.size: widen ranking.temperatures"),
    Metric(
        "best_reward",
        "mean reward of the pairs' chosen responses, the best to their prompts, penalties included",
        "falls while reward_gap grows: the worst get worse, and no more",
    ),
    Metric("best_reward_sd", "its standard deviation, over pairs"),
    Metric("worst_reward", "the same of the rejected, the worst to their prompts"),
    Metric("worst_reward_sd", "its standard deviation, over pairs"),
    Metric(
        "reward_gap",
        "mean reward of the best less that of the worst response of a pair, penalties included",
        "falls to ranking.smallest_gap: nothing left to tell apart",
    ),
)

SURROGATE = (
    Metric("policy_loss", "the clipped surrogate; its value is no progress"),
    Metric("ratio", "mean ρ over tokens; 1 at an update's first step", "leaves 0.9–1.1"),
    Metric(
        "clip_fraction",
        "share of tokens with ρ outside [1 − ε, 1 + ε']",
        "exceeds 0.2: the rate or epochs are too large; is always 0: one step an update, or a tiny rate",
    ),
    Metric(
        "approx_kl_nats",
        "mean ½·(log ρ)² a token: how far from the policy that sampled, in nats",
        "jumps, or exceeds 0.05: lower the rate or epochs",
    ),
    Metric(
        "kl_loss",
        "β·KL as kl_penalty estimates it, aggregated as the surrogate is",
        "dwarfs policy_loss: β is too large",
        when="kl_penalty = k2, k3 or full",
    ),
)
VALUE_LOSS = Metric("value_loss", "½·(V − R)² a token, clipped, in reward²", "grows")
OPTIMIZER_STEPS = Metric(
    "optimizer_steps", "steps taken; their sum, no mean", "is below epochs × mini-batches: the update was cut short"
)
TIME = (
    Metric("sample_seconds", "sampling the responses", "is nearly all: shorten responses, or raise epochs"),
    Metric("reward_seconds", "rewarding them", "is no small part: the reward is dear, or scores one by one"),
    Metric("score_seconds", "their log-probabilities under policy and reference, KL and entropy"),
    Metric("learn_seconds", "values, advantages and optimiser steps"),
    Metric("generated_tokens_per_second", "response tokens by sample_seconds", "falls: responses get longer"),
    Metric(
        "peak_memory_bytes",
        "largest memory of the process so far, or of the GPU by tensors",
        "grows from update to update",
    ),
)
