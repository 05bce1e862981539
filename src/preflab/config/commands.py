"""One config object a command. Every field is a flag (`--loss.beta`) and a YAML key (`loss: {beta: …}`)."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from itertools import product
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Le
from tyro.conf import Positional, arg

from preflab.config.arms import canonical, parts, stages
from preflab.config.online import DAPO, GRPO, PPO, RLOO, DrGRPO, Reinforce
from preflab.config.online_preference import IterativeDPO, OnlineDPO, Ranking
from preflab.config.preference import (
    AOT,
    BCO,
    CPO,
    DPO,
    DPOP,
    EXO,
    FDPO,
    IPO,
    KTO,
    NCA,
    ORPO,
    SPPO,
    APODown,
    APOZero,
    BCOPair,
    ConservativeDPO,
    Hinge,
    LengthNormalisedDPO,
    RobustDPO,
    SimPO,
    WeightedSum,
)
from preflab.config.rewards import OptionalRewards, Rewards
from preflab.config.sampling import Warp
from preflab.config.table_score import TableScore as TableScore
from preflab.config.table_study import CompareTable as CompareTable
from preflab.config.table_study import TableStudy as TableStudy
from preflab.config.tables import TableAlign as TableAlign
from preflab.config.tables import TableFit as TableFit
from preflab.config.tables import TableSample as TableSample
from preflab.config.training import SFT, Batch, Count, Optimizer, Positive, Precision, Reward, Seed
from preflab.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """What fits in a sequence. What is cut is counted and reported."""

    prompt_tokens: Positive = 256
    """A longer prompt loses its beginning."""
    response_tokens: Positive = 256
    """A longer response loses its end, and with it its end token."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What every `train` command shares."""

    model: str
    """A folder in the Hugging Face format or a name on the Hub: any causal language model."""
    data: Path
    """JSONL or JSONL.gz; see docs/data.md for the columns."""
    out: Path
    """The run folder. A run that was stopped goes on where it stands; a folder with other settings is refused."""
    seed: Seed = 0
    """Determines the whole run."""
    lengths: Lengths = field(default_factory=Lengths)
    """What fits in a sequence."""
    holdout: Annotated[float, Gt(0), Le(0.5)] = 0.1
    """Share of the prompts held out for the figures at the end, in (0, 0.5]."""
    log_every: Positive = 10
    """Steps between two lines of metrics.jsonl."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; off unless you trust its author. Recorded in the run folder."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: Precision = "fp32"
    """bf16-autocast: matrix products in bf16; bf16: weights too, with float32 masters in the optimiser. Policy,
    reference, reward and value model work in it alike. bf16 needs a processor with bf16 instructions."""
    dry_run: bool = False
    """Load data and model, print the plan with an estimate of the peak memory, and stop; touches no run folder."""

    def idle_fields(self) -> tuple[str, ...]:
        """What is no part of a run's recorded settings."""
        return ("dry_run",)


@dataclass(frozen=True, kw_only=True)
class TrainSFT(SFT, Run):
    """Supervised fine-tuning on demonstrations (prompt, response), texts, or the chosen responses of pairs."""


@dataclass(frozen=True, kw_only=True)
class TrainReward(Reward, Run):
    """Train a Bradley–Terry reward model on preference pairs (prompt, chosen, rejected)."""


@dataclass(frozen=True, kw_only=True)
class TrainDPO(DPO, Run):
    """Direct preference optimisation on preference pairs (prompt, chosen, rejected). The reference is the start."""


@dataclass(frozen=True, kw_only=True)
class TrainConservativeDPO(ConservativeDPO, Run):
    """Conservative DPO: DPO that believes a share of the labels to be flipped."""


@dataclass(frozen=True, kw_only=True)
class TrainRobustDPO(RobustDPO, Run):
    """Robust DPO: unbiased where a known share of the labels is flipped."""


@dataclass(frozen=True, kw_only=True)
class TrainIPO(IPO, Run):
    """Identity preference optimisation: a finite margin even where labels are certain."""


@dataclass(frozen=True, kw_only=True)
class TrainHinge(Hinge, Run):
    """Hinge loss on the margin (SLiC with a reference, as in RSO)."""


@dataclass(frozen=True, kw_only=True)
class TrainEXO(EXO, Run):
    """Exact preference optimisation on pairs: reverse KL to the smoothed label."""


@dataclass(frozen=True, kw_only=True)
class TrainAOT(AOT, Run):
    """Alignment by optimal transport: stochastic dominance of the policy's margins over the reference's."""


@dataclass(frozen=True, kw_only=True)
class TrainLengthNormalisedDPO(LengthNormalisedDPO, Run):
    """Length-normalised DPO: log-ratios per token."""


@dataclass(frozen=True, kw_only=True)
class TrainFDPO(FDPO, Run):
    """DPO under another divergence than the reverse KL."""


@dataclass(frozen=True, kw_only=True)
class TrainDPOP(DPOP, Run):
    """DPO-positive: pays for a chosen response that falls below the reference."""


@dataclass(frozen=True, kw_only=True)
class TrainNCA(NCA, Run):
    """Noise-contrastive alignment on pairs."""


@dataclass(frozen=True, kw_only=True)
class TrainBCOPair(BCOPair, Run):
    """Binary classifier optimisation on pairs."""


@dataclass(frozen=True, kw_only=True)
class TrainSPPO(SPPO, Run):
    """Self-play preference optimisation with hard labels."""


@dataclass(frozen=True, kw_only=True)
class TrainAPOZero(APOZero, Run):
    """Anchored preference optimisation that lifts chosen and lowers rejected responses."""


@dataclass(frozen=True, kw_only=True)
class TrainAPODown(APODown, Run):
    """Anchored preference optimisation that lowers both, rejected ones more."""


@dataclass(frozen=True, kw_only=True)
class TrainSimPO(SimPO, Run):
    """Simple preference optimisation: mean log-probabilities, no reference."""


@dataclass(frozen=True, kw_only=True)
class TrainCPO(CPO, Run):
    """Contrastive preference optimisation: DPO without a reference, plus cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class TrainORPO(ORPO, Run):
    """Odds-ratio preference optimisation: cross-entropy plus log-odds, no reference."""


@dataclass(frozen=True, kw_only=True)
class TrainWeightedSum(WeightedSum, Run):
    """A weighted sum of losses on pairs, say DPO + 0.1 × cross-entropy."""


@dataclass(frozen=True, kw_only=True)
class TrainKTO(KTO, Run):
    """Kahneman–Tversky optimisation, on responses marked desirable or not."""


@dataclass(frozen=True, kw_only=True)
class TrainBCO(BCO, Run):
    """Binary classifier optimisation, on responses marked desirable or not."""


@dataclass(frozen=True, kw_only=True)
class RunOnline(Run):
    """What the `train` commands share that sample their own responses. The reference is the start."""

    reward: Rewards
    """What a response is worth: a reward model (folder or Hub name), file.py:function, classifier:FOLDER:LABEL,
    fitted:texts.jsonl, regex:PATTERN, verifier:COLUMN, or a weighted sum: runs/reward/model + 0.1*length.py:penalty.
    In YAML also a list of terms. See docs/rewards.md."""
    reward_cache: Count = 16_384
    """Responses whose rewards are remembered, of rewards that run no transformer: a response that comes again costs
    nothing. 0 asks anew each time, as a reward that draws at random, or compares a batch's responses, needs it."""
    log_every: Positive = 1
    """Updates between two lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class TrainPPO(PPO, RunOnline):
    """Proximal policy optimisation against a reward model, on prompts."""


@dataclass(frozen=True, kw_only=True)
class TrainGRPO(GRPO, RunOnline):
    """Group relative policy optimisation: no value model, advantages within a prompt's responses."""


@dataclass(frozen=True, kw_only=True)
class TrainDrGRPO(DrGRPO, RunOnline):
    """Dr. GRPO: GRPO without its length and difficulty biases."""


@dataclass(frozen=True, kw_only=True)
class TrainDAPO(DAPO, RunOnline):
    """DAPO: GRPO with a higher upper clip, token means and dynamic sampling."""


@dataclass(frozen=True, kw_only=True)
class TrainRLOO(RLOO, RunOnline):
    """REINFORCE leave-one-out: each response against the others to its prompt."""


@dataclass(frozen=True, kw_only=True)
class TrainReinforce(Reinforce, RunOnline):
    """REINFORCE with the rollout's other responses as baseline."""


@dataclass(frozen=True, kw_only=True)
class TrainOnlineDPO(OnlineDPO, RunOnline):
    """Online DPO: pairs from the current policy, best against worst by the reward."""


@dataclass(frozen=True, kw_only=True)
class TrainIterativeDPO(IterativeDPO, RunOnline):
    """Iterative DPO: rounds of sampling pairs and training on them."""


@dataclass(frozen=True, kw_only=True)
class Generate(Warp):
    """Print responses of a model to prompts."""

    model: Positional[str]
    """A folder in the Hugging Face format or a name on the Hub."""
    prompt: tuple[str, ...] = ()
    """Prompts, as text."""
    data: Path | None = None
    """JSONL with a `prompt` column, instead of or beside --prompt."""
    samples: Positive = 1
    """Responses a prompt."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """Of sampling, > 0."""
    greedy: bool = False
    """Take the likeliest token always; --temperature, --top-k, --top-p, --seed and --samples then change nothing and
    are refused."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, beside the end token; the response is printed without them."""
    max_new_tokens: Positive | None = None
    """Length limit of a response; none: 128, or as many as the model has positions for."""
    seed: Seed = 0
    """Determines the responses."""
    out: Path | None = None
    """Write JSONL (prompt, response) here instead of printing."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; off unless you trust its author."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: Precision = "fp32"
    """bf16-autocast: matrix products in bf16; bf16: weights too. Needs a processor with bf16 instructions."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What a policy is worth: KL from a reference, reward, win rate, length, diversity, each with its interval."""

    model: Positional[str]
    """The policy: a folder in the Hugging Face format or a name on the Hub."""
    reference: str
    """What it is compared with, and what KL is measured from."""
    data: Path
    """JSONL with a `prompt` column, or preference pairs, whose prompts are used."""
    reward: OptionalRewards = None
    """As in `preflab train ppo`: a reward model, file.py:function, a sum of them; without one, no reward and no win
    rate."""
    prompts: Positive = 128
    """How many prompts to use, the first after a shuffle by the seed."""
    lengths: Lengths = field(default_factory=Lengths)
    """What fits in a sequence."""
    seed: Seed = 0
    """Determines prompts and samples."""
    out: Path | None = None
    """Write evaluation.json and samples.jsonl into this new folder."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models; off unless you trust their authors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: Precision = "fp32"
    """bf16-autocast: matrix products in bf16; bf16: weights too. All models work in it; it needs a processor with bf16
    instructions."""


@dataclass(frozen=True, kw_only=True)
class MakePairs:
    """Write preference pairs made of a policy's responses, ranked by a reward: best against worst."""

    model: Positional[str]
    """The policy: a folder in the Hugging Face format or a name on the Hub."""
    reward: Rewards
    """As in `preflab train ppo`: a reward model, file.py:function, a sum of them."""
    data: Path
    """JSONL with a `prompt` column, or preference pairs, whose prompts are used."""
    out: Path
    """The file to write: JSONL with prompt, chosen, rejected and the two rewards."""
    ranking: Ranking = field(default_factory=Ranking)
    """How responses become pairs."""
    stop: tuple[str, ...] = ()
    """Texts that end a response, beside the end token; it is rewarded and written without them, as if it had ended
    there by itself."""
    missing_end_penalty: Annotated[float, Ge(0)] = 1.0
    """Taken from the reward of a response that the length limit cut before its end token, in units of reward, ≥ 0."""
    lengths: Lengths = field(default_factory=Lengths)
    """What fits in a sequence."""
    seed: Seed = 0
    """Determines the responses."""
    trust_remote_code: bool = False
    """Run Python code that comes with the models; off unless you trust their authors."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: Precision = "fp32"
    """bf16-autocast: matrix products in bf16; bf16: weights too. All models work in it; it needs a processor with bf16
    instructions."""


@dataclass(frozen=True, kw_only=True)
class Explain:
    """Print a method's formula as implemented, its settings, what it logs and which values should worry."""

    method: Positional[str | None] = None
    """A method's name, as in `preflab train METHOD`; none: list them."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw the report of a study folder again, also while the study runs; or that of a table's score."""

    folder: Positional[Path]
    """The study's folder, or the --out of a score."""


@dataclass(frozen=True, kw_only=True)
class VoteSheet:
    """Write a blind sheet of two arms' responses to test prompts, for people to vote on; the report reads the votes."""

    folder: Positional[Path]
    """The study's folder; the sheet is written into its votes/, beside the key that says which response is whose."""
    arms: tuple[str, str]
    """The two arms, by their names in the study."""
    n: Annotated[Positive, arg(aliases=["-n"])] = 50
    """Prompts to draw; all where there are fewer."""
    seed: Seed = 0
    """Determines which prompts, and who stands first on each row."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        return f"arms = {self.arms[0]} twice: name two arms" if self.arms[0] == self.arms[1] else None


@dataclass(frozen=True, kw_only=True)
class Base:
    """The small base model trained from scratch where no --model is given."""

    vocabulary: Annotated[int, Gt(300)] = 1400
    """Tokens of the byte-level BPE tokenizer, trained on the same texts."""
    layers: Positive = 3
    """Transformer blocks (GPT-2 architecture)."""
    width: Positive = 128
    """Width of the residual stream; a multiple of heads."""
    heads: Positive = 4
    """Attention heads."""
    texts: Positive = 26000
    """Texts generated for it (the study reviews without --data; real texts are all used)."""
    epochs: Annotated[float, Gt(0)] = 1.0
    """Passes over the texts."""
    batch: Batch = field(default_factory=lambda: Batch(size=16, micro=16))
    """How many texts go together."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-3, warmup_steps=50, decay="linear"))
    """How a step is taken."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.width % self.heads == 0:
            return None
        return f"width = {self.width} is no multiple of heads = {self.heads}"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How many prompts, in three sets that share none, and which of them the arms that sample learn on."""

    train: Positive = 2500
    """For demonstrations, pairs, the reward model and the arms."""
    validation: Positive = 128
    """For choosing checkpoints."""
    test: Positive = 256
    """Scored once, at the end, with the chosen checkpoint."""
    policy: Literal["all", "judged", "open"] = "all"
    """Which prompts of train the arms that sample learn on: all; judged: those in which a word or phrase says how good
    something was; open: the others. Pairs and reward models have all, and validation and test are as they are (reviews
    without --data: its grammar tells)."""


@dataclass(frozen=True, kw_only=True)
class Generations:
    """Prompts that every arm answers with the same luck, for reading side by side."""

    prompts: Annotated[Path | None, arg(aliases=["--prompts"])] = None
    """A file of prompts: text, one a line, or JSONL with a `prompt` column. None: the task's own, three for dialogue
    and none for reviews."""
    samples: Positive = 3
    """Responses a prompt at temperature 1, beside the greedy one."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Preference pairs sampled from the reference and labelled by Bradley–Terry on the gold reward."""

    responses: Annotated[int, Gt(1)] = 4
    """K responses a prompt; their K(K − 1)/2 pairs are labelled, up to `per_prompt` of them."""
    per_prompt: Positive = 3
    """Pairs kept a prompt."""
    temperature: Annotated[float, Gt(0)] = 1.0
    """At which the reference answers, > 0. Lower: likelier responses, better and more alike; higher: worse ones."""
    gold_scale: Annotated[float, Gt(0)] = 5.0
    """Gold reward = this × sentiment in [−1, 1], for labels and for the gold-rewarded arm alike."""


@dataclass(frozen=True, kw_only=True)
class BestOfN:
    """Best of n: sample n responses of the reference, keep the one that the reward model likes best. No training."""

    n: Annotated[int, Gt(1)] = 16
    """The most responses a prompt; 2, 4, 8, … up to it are points of the arm."""


Measure = Literal["none", "steps", "examples", "labels", "reward-calls", "tokens", "flops", "seconds"]


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What every arm may cost: it ends after the step with which its own cost reaches the amount."""

    measure: Measure = "none"
    """steps: optimiser steps of the policy; examples: pairs or responses trained on, each time; labels: preference
    labels, each once; reward-calls: responses given to a reward, gold included; tokens: generated and trained; flops;
    seconds of training. What came before counts: earlier stages of a chain, and of arms that are paid by the reward
    model its training, in labels, tokens, flops and seconds. none: arms end by their settings."""
    amount: Annotated[float, Gt(0)] | None = None
    """How much, in units of the measure, > 0."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.measure == "none" and self.amount is not None:
            return f"amount = {self.amount:g} has no effect without measure; set that, say to steps"
        if self.measure != "none" and self.amount is None:
            return f"measure = {self.measure} needs an amount; set that"
        return None


@dataclass(frozen=True, kw_only=True)
class Study:
    """What a study is told beside its arms and their settings."""

    task: Literal["reviews", "dialogue"] = "reviews"
    """reviews: film reviews with an exactly known reward; dialogue: preference pairs, judged by a held-out model."""
    out: Path = Path("runs/study")
    """The study folder; the same command goes on where a killed one stood."""
    data: Path | None = None
    """Real data: labelled reviews (text, label) for reviews, preference pairs for dialogue."""
    model: str | None = None
    """Any causal model (folder or Hub name) instead of the small base trained here."""
    seeds: Positive = 1
    """How often pairs, reward model and arms are made anew; base and reference model are shared."""
    seed: Seed = 0
    """The first seed; it determines the whole study."""
    quick: bool = False
    """A bounded run: fewer texts, prompts, steps and evaluations. For a look, not for a verdict."""
    lengths: Lengths = field(default_factory=Lengths)
    """What fits in a sequence."""
    prompts: Prompts = field(default_factory=Prompts)
    """How many prompts, and which."""
    base: Base = field(default_factory=Base)
    """The small base model."""
    reference: SFT = field(default_factory=lambda: SFT(epochs=1, evaluations=1))
    """SFT of the base on the task's demonstrations: every arm's start, and what KL is measured from."""
    pairs: Pairs = field(default_factory=Pairs)
    """How preferences are made (reviews)."""
    reward: Reward = field(default_factory=lambda: Reward(evaluations=1))
    """The reward model."""
    judge: bool = False
    """Train a second reward model, on pairs of prompts that no arm sees, and let it judge every arm beside the gold
    reward (reviews; dialogue has no other judge)."""
    pair_judge: str | None = None
    """file.py:function, a judge of pairs: function(prompts, first, second) returns for each prompt the probability that
    the first response is the better one. It reads test responses of every two arms, in both orders."""
    generations: Generations = field(default_factory=Generations)
    """What every arm answers at its end, for reading side by side."""
    budget: Budget = field(default_factory=Budget)
    """What every arm may cost; none: arms end by their settings."""
    chain_reference: Literal["study", "previous"] = "study"
    """What a stage of a chain (dpo+ppo) is held to: the study's reference, or the previous stage."""
    choose_by: Literal["reward", "proxy", "last"] = "reward"
    """Which checkpoint speaks for an arm: the best on validation prompts by the gold reward (or judge), the best by the
    proxy that training saw, or the last."""
    log_every: Positive = 5
    """Steps between two lines of metrics.jsonl; PPO writes one every update."""
    jobs: Positive = 1
    """Arms that run at the same time, one process an arm, each with its share of the cores; a study may go on with
    another number."""
    dry_run: bool = False
    """Print the plan of the study with its time, memory and disk space, and stop; leaves no folder."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; off unless you trust its author."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
    precision: Precision = "fp32"
    """bf16-autocast: matrix products in bf16; bf16: weights too, and the optimiser trains float32 masters of them. All
    models of the study work in it, judges included. bf16 needs a processor with bf16 instructions."""

    def idle_fields(self) -> tuple[str, ...]:
        """What makes no other study."""
        return ("jobs", "dry_run")


@dataclass(frozen=True, kw_only=True)
class Methods:
    """The settings of each method, for arms that bear its name or end in it."""

    sft: SFT = field(default_factory=SFT)
    """The arm sft: further fine-tuning on the chosen responses."""
    dpo: DPO = field(default_factory=DPO)
    """The arm dpo."""
    cdpo: ConservativeDPO = field(default_factory=ConservativeDPO)
    """The arm cdpo."""
    rdpo: RobustDPO = field(default_factory=RobustDPO)
    """The arm rdpo."""
    ipo: IPO = field(default_factory=IPO)
    """The arm ipo."""
    hinge: Hinge = field(default_factory=Hinge)
    """The arm hinge."""
    exo: EXO = field(default_factory=EXO)
    """The arm exo."""
    aot: AOT = field(default_factory=AOT)
    """The arm aot."""
    ln_dpo: LengthNormalisedDPO = field(default_factory=LengthNormalisedDPO)
    """The arm ln-dpo."""
    f_dpo: FDPO = field(default_factory=FDPO)
    """The arm f-dpo."""
    dpop: DPOP = field(default_factory=DPOP)
    """The arm dpop."""
    nca: NCA = field(default_factory=NCA)
    """The arm nca."""
    bco_pair: BCOPair = field(default_factory=BCOPair)
    """The arm bco-pair."""
    sppo: SPPO = field(default_factory=SPPO)
    """The arm sppo."""
    apo_zero: APOZero = field(default_factory=APOZero)
    """The arm apo-zero."""
    apo_down: APODown = field(default_factory=APODown)
    """The arm apo-down."""
    simpo: SimPO = field(default_factory=SimPO)
    """The arm simpo."""
    cpo: CPO = field(default_factory=CPO)
    """The arm cpo."""
    orpo: ORPO = field(default_factory=ORPO)
    """The arm orpo."""
    sum: WeightedSum = field(default_factory=WeightedSum)
    """The arm sum."""
    kto: KTO = field(default_factory=KTO)
    """The arm kto."""
    bco: BCO = field(default_factory=BCO)
    """The arm bco."""
    ppo: PPO = field(default_factory=PPO)
    """The arms ppo and ppo-gold: the same settings, another reward; likewise for the methods below."""
    grpo: GRPO = field(default_factory=GRPO)
    """The arm grpo."""
    dr_grpo: DrGRPO = field(default_factory=DrGRPO)
    """The arm dr-grpo."""
    dapo: DAPO = field(default_factory=DAPO)
    """The arm dapo."""
    rloo: RLOO = field(default_factory=RLOO)
    """The arm rloo."""
    reinforce: Reinforce = field(default_factory=Reinforce)
    """The arm reinforce."""
    online_dpo: OnlineDPO = field(default_factory=OnlineDPO)
    """The arm online-dpo."""
    iterative_dpo: IterativeDPO = field(default_factory=IterativeDPO)
    """The arm iterative-dpo."""
    best_of_n: BestOfN = field(default_factory=BestOfN)
    """The arm best-of-n."""


@dataclass(frozen=True, kw_only=True)
class StudyOfArms(Study):
    """What a comparison is told beside the settings of its arms."""

    arms: tuple[str, ...] = ("reference", "sft", "dpo", "ppo", "ppo-gold")
    """What is compared: methods by their names, variants of them (dpo@loss.beta=0.05), chains (dpo+ppo), best-of-n. The
    reference always takes part. A method that samples may end in -gold (ppo-gold): paid by the gold reward itself, an
    oracle, reviews only."""


@dataclass(frozen=True, kw_only=True)
class Compare(Methods, StudyOfArms):
    """Compare methods on one task: same start, same prompts, same sampler, same judge; writes a report."""

    def idle_fields(self) -> tuple[str, ...]:
        """Settings of methods that are no arm, nor a stage of one."""
        named = {part.key for arm in self.arms for part in parts(arm)}
        return tuple(one.name for one in fields(Methods) if one.name not in named)

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        try:
            for arm in self.arms:
                canonical(self, arm)
        except ConfigError as error:
            return str(error)
        if self.chain_reference != "study" and not any(len(stages(arm)) > 1 for arm in self.arms):
            return f"chain_reference = {self.chain_reference} has no effect: no arm is a chain such as dpo+ppo"
        return None


@dataclass(frozen=True, kw_only=True)
class StudyOfValues(Study):
    """What a sweep is told beside the settings of its methods."""

    method: Positional[str]
    """What is swept: a method, or a chain, whose last stage is then varied."""
    over: tuple[str, ...]
    """A setting of the method and its values, loss.beta=0.05,0.1,0.5,1,5; given again, a grid of both."""
    also: tuple[str, ...] = ()
    """Arms to show beside: dpo, ppo, best-of-n. The reference always takes part."""


@dataclass(frozen=True, kw_only=True)
class Sweep(Methods, StudyOfValues):
    """One method at several values of its settings, side by side: a study with one arm a value; writes a report."""

    def compare(self) -> Compare:
        """The study.

        Raises:
            ConfigError: `over` or an arm can't be read.
        """
        given = [_values(text) for text in self.over]
        keys = [key for key, _ in given]
        if not given:
            raise ConfigError("over names no setting; give it as --over loss.beta=0.05,0.1,0.5")
        if twice := next((key for key in keys if keys.count(key) > 1), None):
            raise ConfigError(f"over = {twice}=…: {twice} is given twice; give it once, with all its values")
        grid = product(*([f"@{key}={value}" for value in values] for key, values in given))
        arms = ("reference", *(self.method + "".join(point) for point in grid), *self.also)
        shared = {one.name: getattr(self, one.name) for one in fields(Compare) if one.name != "arms"}
        return Compare(arms=arms, **shared)

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        try:
            return self.compare().misfit()
        except ConfigError as error:
            return str(error)


def _values(text: str) -> tuple[str, list[str]]:
    """ "loss.beta=0.05,0.1" → ("loss.beta", ["0.05", "0.1"])."""
    key, equals, values = text.partition("=")
    if not equals or not all(found := values.split(",")):
        raise ConfigError(f"over = {text}: write a setting and its values, as in loss.beta=0.05,0.1,0.5")
    return key.replace("-", "_"), found
