"""What is compared, and on which numbers. Standard library alone: TRL's environment reads it as well as ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any


@dataclass(frozen=True)
class Case:
    """An objective with its settings."""

    name: str
    loss: str
    """The class of preflab's settings, or what ours.py and naive.py know it by."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    trl: Mapping[str, Any] | None = None
    """What TRL is told, of which "trainer" names the class; None: TRL has no such objective."""
    differs: str = ""
    """Why TRL's numbers are others than ours."""
    same_as: str = ""
    """The proof of that: the case whose numbers of ours are TRL's here."""
    only_naive: bool = False
    """Not an objective of ours: a formula which explains another case."""
    excuses: Mapping[str, str] = field(default_factory=dict)
    """Points at which ours leaves the plain formula on purpose, and why."""


@dataclass(frozen=True)
class Result:
    """What a side makes of a case at a point."""

    value: list[float]
    gradient: list[float] = field(default_factory=list)
    """Of the sum of the values by each input; empty where nothing is differentiated."""


Of = Callable[[Case, Any], Result]


# --- pairs ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pairs:
    """A batch of pairs; chosen first."""

    logprob: Sequence[tuple[float, float]]
    """log π(y|x), summed over response tokens."""
    reference: Sequence[tuple[float, float]]
    tokens: Sequence[tuple[int, int]]


def _pairs(seed: int, drift_nats: float, longest: int) -> Pairs:
    """Six pairs of unequal lengths; a token's policy is `drift_nats` from the reference, in either direction."""
    random = Random(seed)
    logprob, reference, tokens = [], [], []
    for _ in range(6):
        lengths = (random.randint(1, longest), random.randint(1, longest))
        mine = [-sum(random.uniform(0.05, 4.0) for _ in range(n)) for n in lengths]
        other = [at + n * random.uniform(-drift_nats, drift_nats) for at, n in zip(mine, lengths, strict=True)]
        logprob.append((mine[0], mine[1]))
        reference.append((min(other[0], -0.01), min(other[1], -0.01)))
        tokens.append(lengths)
    return Pairs(logprob, reference, tokens)


def _start(pairs: Pairs) -> Pairs:
    return Pairs(pairs.logprob, pairs.logprob, pairs.tokens)


PAIRS = {
    "usual": _pairs(seed=1, drift_nats=0.2, longest=12),
    "start": _start(_pairs(seed=2, drift_nats=0.0, longest=12)),  # policy = reference
    "far": _pairs(seed=3, drift_nats=15.0, longest=60),  # log-ratios of hundreds of nats
}

DPO = {"trainer": "DPOTrainer"}
CONTINUED = {
    "far": "e^x is continued by its tangent beyond x = 30 (a density ratio of 10¹³), so that value and gradient stay "
    "finite in float32; the plain formula, and TRL's, go to 10¹⁰⁰ and beyond"
}
PAIR_CASES = [
    Case("DPO", "DPOLoss", {"beta": 0.1}, DPO | {"loss_type": ["sigmoid"], "beta": 0.1}),
    Case(
        "cDPO, ε = 0.1",
        "DPOLoss",
        {"beta": 0.1, "label_smoothing": 0.1},
        DPO | {"loss_type": ["sigmoid"], "beta": 0.1, "label_smoothing": 0.1},
        differs="TRL takes `label_smoothing` and drops it under `sigmoid`: its numbers are those of ε = 0",
        same_as="DPO",
    ),
    Case(
        "rDPO",
        "RobustDPOLoss",
        {"beta": 0.2, "label_smoothing": 0.1},
        DPO | {"loss_type": ["robust"], "beta": 0.2, "label_smoothing": 0.1},
    ),
    Case(
        "IPO, per token",
        "IPOLoss",
        {"tau": 0.1, "average_tokens": True},
        DPO | {"loss_type": ["ipo"], "beta": 0.1},
    ),
    Case(
        "IPO, summed",
        "IPOLoss",
        {"tau": 0.1},
        DPO | {"loss_type": ["ipo"], "beta": 0.1},
        differs="TRL divides each log-ratio by the tokens of its response; ours sums, as the paper does, unless "
        "`average_tokens` is on",
        same_as="IPO, per token",
    ),
    Case("hinge", "HingeLoss", {"beta": 0.05}, DPO | {"loss_type": ["hinge"], "beta": 0.05}),
    Case(
        "EXO",
        "EXOLoss",
        {"beta": 0.1, "label_smoothing": 1e-3},
        DPO | {"loss_type": ["exo_pair"], "beta": 0.1, "label_smoothing": 1e-3, "float32": True},
    ),
    Case("AOT", "AOTLoss", {"beta": 0.05}, DPO | {"loss_type": ["aot"], "beta": 0.05}),
    Case("LN-DPO", "LengthNormalisedDPOLoss", {"beta": 5.0}, DPO | {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    Case("NCA", "NCALoss", {"beta": 0.05}, DPO | {"loss_type": ["nca_pair"], "beta": 0.05}),
    Case("BCO on pairs", "BCOPairLoss", {"beta": 0.05}, DPO | {"loss_type": ["bco_pair"], "beta": 0.05}),
    Case("SPPO", "SPPOLoss", {"beta": 0.001}, DPO | {"loss_type": ["sppo_hard"], "beta": 0.001}),
    Case("APO-zero", "APOZeroLoss", {"beta": 0.1}, DPO | {"loss_type": ["apo_zero"], "beta": 0.1}),
    Case("APO-down", "APODownLoss", {"beta": 0.1}, DPO | {"loss_type": ["apo_down"], "beta": 0.1}),
    Case(
        "DPOP",
        "DPOPLoss",
        {"beta": 0.3, "penalty": 50.0},
        excuses={
            "start": "policy = reference is the kink of max(0, −Δ_w): ours takes the slope of the side without "
            "penalty, central differences take the mean of both sides"
        },
    ),
    Case(
        "f-DPO, reverse KL",
        "FDPOLoss",
        {"beta": 0.1, "divergence": "reverse_kl"},
        DPO | {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "reverse_kl"},
    ),
    Case(
        "f-DPO, forward KL",
        "FDPOLoss",
        {"beta": 0.1, "divergence": "forward_kl"},
        DPO | {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "forward_kl"},
        excuses=CONTINUED,
    ),
    Case(
        "f-DPO, Jensen–Shannon",
        "FDPOLoss",
        {"beta": 0.1, "divergence": "jensen_shannon"},
        DPO | {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "js_divergence"},
    ),
    Case(
        "f-DPO, α = 0.3",
        "FDPOLoss",
        {"beta": 0.1, "divergence": "alpha", "alpha": 0.3},
        # TRL counts α from the other end, and computes this divergence in float32 or narrower alone.
        DPO
        | {"loss_type": ["sigmoid"], "beta": 0.1, "f_divergence_type": "alpha_divergence"}
        | {"f_alpha_divergence_coef": 0.7, "float32": True},
        excuses=CONTINUED,
    ),
    Case("f-DPO, χ²", "FDPOLoss", {"beta": 0.1, "divergence": "chi_squared"}, excuses=CONTINUED),
    Case(
        "SimPO",
        "SimPOLoss",
        {"beta": 2.0, "margin": 1.0},
        {"trainer": "CPOTrainer", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0},
    ),
    Case(
        "CPO, α = 0",
        "CPOLoss",
        {"beta": 0.1, "sft_weight": 0.0},
        {"trainer": "CPOTrainer", "loss_type": "sigmoid", "beta": 0.1},
    ),
    Case("CPO, α = 1", "CPOLoss", {"beta": 0.1, "sft_weight": 1.0}),
    Case("ORPO's odds term", "ORPO's odds", {"weight": 0.1}, {"trainer": "ORPOTrainer", "beta": 0.1, "float32": True}),
    Case("ORPO", "ORPOLoss", {"weight": 0.1}),
    Case(
        "DPO + 0.1·SFT",
        "SumLoss",
        {"terms": "dpo + 0.1*sft"},
        DPO | {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.1], "beta": 0.1},
        differs="TRL's `sft` is the mean over all chosen tokens of the batch, ours the mean over pairs of each chosen "
        "response's mean, so that a pair's loss is its own",
        same_as="DPO + 0.1·SFT by tokens",
    ),
    Case("DPO + 0.1·SFT by tokens", "DPO + SFT by tokens", {"beta": 0.1, "sft_weight": 0.1}, only_naive=True),
]


# --- single responses -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Responses with a label, and KTO's responses to other prompts."""

    logprob: Sequence[float]
    reference: Sequence[float]
    desirable: Sequence[bool]
    stranger: Sequence[float]
    """log π(y'|x) of a response y' to another prompt."""
    stranger_reference: Sequence[float]


def _judged(seed: int, drift_nats: float, strangers: float) -> Judged:
    random = Random(seed)
    logprob = [-random.uniform(1.0, 60.0) for _ in range(8)]
    stranger = [-random.uniform(20.0, 80.0) for _ in range(8)]
    return Judged(
        logprob=logprob,
        reference=[at - random.uniform(-drift_nats, drift_nats) for at in logprob],
        desirable=[random.random() < 0.4 for _ in range(7)] + [True],
        stranger=stranger,
        stranger_reference=[at - random.gauss(strangers, 1.0) for at in stranger],
    )


JUDGED = {
    "usual": _judged(seed=4, drift_nats=8.0, strangers=3.0),
    "z₀ below 0": _judged(seed=5, drift_nats=8.0, strangers=-3.0),
    "far": _judged(seed=6, drift_nats=900.0, strangers=40.0),
}
UNPAIRED_CASES = [
    Case("KTO", "KTOLoss", {"beta": 0.1}, {"trainer": "KTOTrainer", "beta": 0.1}),
    Case(
        "KTO, weighted",
        "KTOLoss",
        {"beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
        {"trainer": "KTOTrainer", "beta": 0.3, "desirable_weight": 1.5, "undesirable_weight": 0.7},
    ),
    Case("BCO, δ = 0.3", "BCOLoss", {"beta": 0.05, "shift": 0.3}),
    Case("BCO, δ = −2", "BCOLoss", {"beta": 0.05, "shift": -2.0}),
]


# --- reward models ----------------------------------------------------------------------------------------------------

SCORES: dict[str, Sequence[tuple[float, float]]] = {
    "usual": [(1.2, 0.4), (-0.3, 0.9), (0.0, 0.0), (2.5, -2.5), (-1.0, -1.1)],
    "far": [(40.0, -35.0), (-60.0, 90.0), (1e3, 0.0), (0.0, 1e3)],
}
MARGIN = 0.5
REWARD_CASES = [
    Case("Bradley–Terry", "bradley_terry", {}, {"trainer": "RewardTrainer"}),
    Case("Bradley–Terry, margin", "bradley_terry", {"margin": MARGIN}, {"trainer": "RewardTrainer"}),
    Case(
        "Bradley–Terry, centred",
        "bradley_terry",
        {"centring": 0.01},
        {"trainer": "RewardTrainer", "center_rewards_coefficient": 0.01},
    ),
]


# --- tokens of sampled responses --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampled:
    """Responses of unequal lengths, group after group."""

    logprobs: Sequence[Sequence[float]]
    old: Sequence[Sequence[float]]
    reference: Sequence[Sequence[float]]
    advantages: Sequence[float]


LONGEST = 6  # the length limit
GROUP = 4


def _sampled(seed: int, step_nats: float) -> Sampled:
    random = Random(seed)
    lengths = [random.randint(1, LONGEST) for _ in range(2 * GROUP - 1)] + [LONGEST]
    logprobs = [[-random.uniform(0.1, 5.0) for _ in range(n)] for n in lengths]
    return Sampled(
        logprobs=logprobs,
        old=[[at + random.uniform(-step_nats, step_nats) for at in row] for row in logprobs],
        reference=[[at + random.gauss(0.0, 0.7) for at in row] for row in logprobs],
        advantages=[random.gauss(0.0, 1.5) for _ in lengths],
    )


SAMPLED = {
    "on policy": _sampled(seed=7, step_nats=0.0),
    "off policy": _sampled(seed=8, step_nats=0.5),
    "far": _sampled(seed=9, step_nats=15.0),
}
GRPO = {"trainer": "GRPOTrainer", "epsilon": 0.2, "beta": 0.0}
K3 = {"aggregation": "seq-mean-token-mean", "kl": "k3", "kl_coefficient": 0.04}
SURROGATE_CASES = [
    Case("PPO's clip, token-mean", "surrogate", {"aggregation": "token-mean"}, GRPO | {"loss_type": "bnpo"}),
    Case(
        "GRPO with k3",
        "surrogate",
        K3,
        GRPO | {"loss_type": "grpo", "beta": 0.04},
        differs="TRL multiplies k3 by the ratio ρ unless `use_bias_correction_kl` is off (DeepSeek-V3.2): its gradient "
        "is then that of the reverse KL, the plain k3's of the paper that of the forward KL",
        same_as="GRPO with ρ·k3",
    ),
    Case(
        "GRPO with k3, no correction",
        "surrogate",
        K3,
        GRPO | {"loss_type": "grpo", "beta": 0.04, "use_bias_correction_kl": False},
    ),
    Case("GRPO with ρ·k3", "surrogate", K3 | {"kl": "ρ·k3"}, only_naive=True),
    Case("Dr. GRPO", "surrogate", {"aggregation": "seq-mean-token-sum-norm"}, GRPO | {"loss_type": "dr_grpo"}),
    Case(
        "DAPO, ε' = 0.28",
        "surrogate",
        {"aggregation": "token-mean", "clip_higher": 0.28},
        GRPO | {"loss_type": "dapo", "epsilon_high": 0.28},
    ),
    Case("seq-mean-token-sum", "surrogate", {"aggregation": "seq-mean-token-sum"}, GRPO | {"loss_type": "luspo"}),
    Case(
        "RLOO",
        "surrogate",
        {"aggregation": "seq-mean-token-sum"},
        {"trainer": "RLOOTrainer", "epsilon": 0.2, "beta": 0.0},
        differs="TRL clips one ratio of the whole response, ours one of each token, as PPO does. At ratio 1 the "
        "gradients are equal, and the values are Â and n·Â",
        same_as="RLOO, one ratio a response",
    ),
    Case("RLOO, one ratio a response", "surrogate of responses", {}, only_naive=True),
    Case("k2 in the loss", "surrogate", {"aggregation": "token-mean", "kl": "k2", "kl_coefficient": 0.5}),
]


# --- what no library offers alone -------------------------------------------------------------------------------------

_random = Random(10)
GROUPS = {
    "usual": [_random.gauss(0.0, 1.0) for _ in range(3 * GROUP)],
    "rare success": [1.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.001, 0.002, 0.0, 0.003],
}
"""Rewards, group after group."""
GROUP_STD = {"trainer": "GRPOTrainer", "scale_rewards": "group", "float32": True}
ADVANTAGE_CASES = [
    Case("Â: less the group's mean", "group-mean", {}, {"trainer": "GRPOTrainer", "scale_rewards": "none"}),
    Case(
        "Â: GRPO, ε = 10⁻⁶",
        "over-std",
        {"epsilon": 1e-6},
        GROUP_STD,
        differs="TRL adds 10⁻⁴ to the standard deviation, ours 10⁻⁶, as verl does",
        same_as="Â: GRPO, ε = 10⁻⁴",
    ),
    Case(
        "Â: GRPO, ε = 10⁻⁴",
        "over-std",
        {"epsilon": 1e-4},
        {"trainer": "GRPOTrainer", "scale_rewards": "group", "float32": True},
    ),
    Case("Â: leave-one-out", "leave-one-out", {}, {"trainer": "RLOOTrainer", "beta": 0.0}),
]


@dataclass(frozen=True)
class Episode:
    """One response under PPO."""

    rewards: Sequence[float]
    values: Sequence[float]


EPISODES = {
    "usual": Episode([_random.gauss(0.0, 0.5) for _ in range(9)], [_random.gauss(0.0, 1.0) for _ in range(9)]),
    "one token": Episode([1.5], [-0.2]),
    "long": Episode([_random.gauss(0.0, 5.0) for _ in range(80)], [_random.gauss(0.0, 20.0) for _ in range(80)]),
}
EPISODE_CASES = [
    Case("GAE, λ = 0.95", "gae", {"discount": 1.0, "lam": 0.95}),
    Case("GAE, γ = 0.9, λ = 0", "gae", {"discount": 0.9, "lam": 0.0}),
    Case("GAE, λ = 1", "gae", {"discount": 1.0, "lam": 1.0}),
    Case("whitening", "whiten", {"shift_mean": True}),
    Case("whitening, mean kept", "whiten", {"shift_mean": False}),
    Case("token rewards, β = 0.05", "token-rewards", {"kl_coefficient": 0.05}),
]
SCORE = 1.7
VALUE_CASES = [
    Case("value loss, clipped", "value", {"clip": 0.2}),
    Case("value loss, plain", "value", {"clip": None}),
]

LOGITS = {
    "usual": ([0.3, -1.2, 2.0, 0.0, 0.7], [0.1, 0.4, 1.0, -0.5, 0.9]),
    "far": ([30.0, -40.0, 0.0, 5.0, -5.0], [-30.0, 20.0, 0.0, -5.0, 10.0]),
    "equal": ([1.0, 2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0, 5.0]),
}
"""Of the policy and of the reference."""
LOGIT_CASES = [
    Case("k1", "k1"),
    Case("k2", "k2"),
    Case("k3", "k3"),
    Case("KL over the vocabulary", "kl_full"),
    Case("entropy", "entropy"),
    Case("log-probability, T = 0.7", "logprob", {"temperature": 0.7}),
]


FAMILIES: dict[str, tuple[list[Case], Mapping[str, Any]]] = {
    "pairs": (PAIR_CASES, PAIRS),
    "judged": (UNPAIRED_CASES, JUDGED),
    "scores": (REWARD_CASES, SCORES),
    "sampled": (SURROGATE_CASES, SAMPLED),
    "groups": (ADVANTAGE_CASES, GROUPS),
    "episode": (EPISODE_CASES, EPISODES),
    "values": (VALUE_CASES, EPISODES),
    "logits": (LOGIT_CASES, LOGITS),
}


def everywhere(side: Mapping[str, Of], wanted: Callable[[Case], bool]) -> dict[str, Result]:
    """Every wanted case of the families that a side knows, at all of its points: "case | points" → its result."""
    return {
        f"{case.name} | {name}": of(case, points)
        for family, of in side.items()
        for case in FAMILIES[family][0]
        if wanted(case)
        for name, points in FAMILIES[family][1].items()
    }


# --- whole first steps of real trainers on a tiny GPT-2 ---------------------------------------------------------------

NOUNS = ("plot", "cast", "music", "hero", "end", "script")
PROMPTS = [f"The {noun} in film {number} was" for number, noun in enumerate(NOUNS)]
LEVEL_PROMPTS = [f"The plot in film {number} was" for number in range(len(NOUNS))]
"""All of one length, in tokens too."""
CHOSEN = [" great and clever.", " good.", " fine, and never dull for a minute.", " a joy", " well made.", " very good"]
REJECTED = [" bad.", " awful and slow, as ever.", " dull", " poor.", " a bore for most of the evening.", " no good"]
DESIRABLE = [True, False, True, True, False, True]
"""For KTO: whether a prompt is shown with its chosen or its rejected response."""


@dataclass(frozen=True)
class Step:
    """The first step of a real trainer on the tiny model."""

    name: str
    trl: Mapping[str, Any] | None
    """None: our own variant, which explains another step."""
    differs: str = ""
    same_as: str = ""
    value_differs_alone: bool = False
    """The gradients agree, though the values don't."""


STEPS = [
    Step("SFT", {"trainer": "SFTTrainer"}),
    Step("reward model", {"trainer": "RewardTrainer"}),
    Step(
        "reward model, pad = end token",
        {"trainer": "RewardTrainer", "pad_is_eos": True},
        differs="where the pad token is the end token, TRL takes the end token for padding and reads the score one "
        "token early; ours reads it at the last token, found by length",
        same_as="reward model, read one token early",
    ),
    Step("reward model, read one token early", None),
    Step("DPO", DPO | {"loss_type": ["sigmoid"], "beta": 0.1}),
    Step("rDPO", DPO | {"loss_type": ["robust"], "beta": 0.1, "label_smoothing": 0.1}),
    Step("IPO, per token", DPO | {"loss_type": ["ipo"], "beta": 0.1}),
    Step("AOT", DPO | {"loss_type": ["aot"], "beta": 0.05}),
    Step("LN-DPO", DPO | {"loss_type": ["sigmoid_norm"], "beta": 5.0}),
    Step("NCA", DPO | {"loss_type": ["nca_pair"], "beta": 0.05}),
    Step("APO-down", DPO | {"loss_type": ["apo_down"], "beta": 0.1}),
    Step(
        "KTO",
        {"trainer": "KTOTrainer", "beta": 0.1},
        differs="z₀ is estimated on other responses: TRL gives each prompt the response before it in its micro-batch, "
        "ours one to another prompt, drawn from all the data, and averages over the whole optimiser step",
        same_as="KTO, TRL's strangers",
    ),
    Step("KTO, TRL's strangers", None),
    Step("SimPO", {"trainer": "CPOTrainer", "loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.0, "cpo_alpha": 0.0}),
    Step("CPO, α = 0", {"trainer": "CPOTrainer", "loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 0.0}),
    Step(
        "CPO, α = 1",
        {"trainer": "CPOTrainer", "loss_type": "sigmoid", "beta": 0.1, "cpo_alpha": 1.0},
        differs="TRL's supervised term is the mean over all chosen tokens of the batch, ours log π(y_w|x) summed, as "
        "the preference term has it: α means something else by the length of a response",
        same_as="CPO, α = 1 by tokens",
    ),
    Step("CPO, α = 1 by tokens", None),
    Step(
        "ORPO",
        {"trainer": "ORPOTrainer", "beta": 0.1},
        differs="TRL's supervised term covers the prompt too and is a mean over all tokens of the batch; ours is the "
        "mean over the tokens of each chosen response",
        same_as="ORPO, prompt and response by tokens",
    ),
    Step("ORPO, prompt and response by tokens", None),
    Step("Dr. GRPO", GRPO | {"loss_type": "dr_grpo", "scale_rewards": "none"}),
    Step(
        "Dr. GRPO, prompts of unequal lengths",
        GRPO | {"loss_type": "dr_grpo", "scale_rewards": "none", "ragged": True},
        differs="TRL pads prompts on the left and leaves the positions to the model; GPT-2 counts them from the first "
        "padding token, so a short prompt is scored at positions where it was not sampled. Models with relative "
        "positions don't mind; ours pads on the right",
        same_as="Dr. GRPO, padding has positions",
    ),
    Step("Dr. GRPO, padding has positions", None),
    Step(
        "GRPO",
        GRPO | {"loss_type": "grpo", "beta": 0.04, "scale_rewards": "group", "use_bias_correction_kl": False},
        differs="TRL adds 10⁻⁴ to the standard deviation, ours 10⁻⁶, as verl does",
        same_as="GRPO, ε = 10⁻⁴",
    ),
    Step("GRPO, ε = 10⁻⁴", None),
    Step("DAPO's loss, unscaled", GRPO | {"loss_type": "dapo", "scale_rewards": "none", "epsilon_high": 0.28}),
    Step(
        "RLOO",
        {"trainer": "RLOOTrainer", "epsilon": 0.2, "beta": 0.1},
        differs="TRL clips one ratio of the whole response, ours one of each token: at the first step, where both are "
        "1, the gradients are equal, and the values are the means of −Â and of −n·Â",
        value_differs_alone=True,
    ),
]
