"""One config object a command. Every field is a flag (`--loss.beta`) and a YAML key (`loss: {beta: …}`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Gt, Le
from tyro.conf import Positional

from preflab.config.methods import DPO, PPO, SFT, Optimizer, Positive, Reward, Seed


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
class TrainPPO(PPO, Run):
    """Proximal policy optimisation against a reward model, on prompts. The reference is the start."""

    reward: str
    """A reward model's folder or Hub name (sequence classification, one label), as `preflab train reward` writes."""
    log_every: Positive = 1
    """Updates between two lines of metrics.jsonl."""


@dataclass(frozen=True, kw_only=True)
class Generate:
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
    """Take the likeliest token always; --temperature and --seed then change nothing and are refused."""
    max_new_tokens: Positive = 128
    """Length limit of a response."""
    seed: Seed = 0
    """Determines the responses."""
    out: Path | None = None
    """Write JSONL (prompt, response) here instead of printing."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; off unless you trust its author."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """What a policy is worth: KL from a reference, reward, win rate, length, diversity, each with its interval."""

    model: Positional[str]
    """The policy: a folder in the Hugging Face format or a name on the Hub."""
    reference: str
    """What it is compared with, and what KL is measured from."""
    data: Path
    """JSONL with a `prompt` column, or preference pairs, whose prompts are used."""
    reward: str | None = None
    """A reward model's folder or Hub name; without one, no reward and no win rate."""
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


@dataclass(frozen=True, kw_only=True)
class Report:
    """Draw the report of a study folder again, also while the study runs."""

    study: Positional[Path]
    """The study's folder."""


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
    batch_size: Positive = 16
    """Texts in an optimiser step."""
    optimizer: Optimizer = field(default_factory=lambda: Optimizer(learning_rate=3e-3, warmup_steps=50, decay="linear"))
    """How a step is taken."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.width % self.heads == 0:
            return None
        return f"width = {self.width} is no multiple of heads = {self.heads}"


@dataclass(frozen=True, kw_only=True)
class Prompts:
    """How many prompts, in three sets that share none."""

    train: Positive = 2500
    """For demonstrations, pairs, the reward model and the arms."""
    validation: Positive = 128
    """For choosing checkpoints."""
    test: Positive = 256
    """Scored once, at the end, with the chosen checkpoint."""


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Preference pairs sampled from the reference and labelled by Bradley–Terry on the gold reward."""

    responses: Annotated[int, Gt(1)] = 4
    """K responses a prompt; their K(K − 1)/2 pairs are labelled, up to `per_prompt` of them."""
    per_prompt: Positive = 3
    """Pairs kept a prompt."""
    gold_scale: Annotated[float, Gt(0)] = 5.0
    """Gold reward = this × sentiment in [−1, 1], for labels and for the gold-rewarded arm alike."""


ArmName = Literal["reference", "sft", "dpo", "ppo", "ppo-gold"]


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods on one task: same start, same prompts, same sampler, same judge; writes a report."""

    task: Literal["reviews", "dialogue"] = "reviews"
    """reviews: film reviews with an exactly known reward; dialogue: preference pairs, judged by a held-out model."""
    out: Path = Path("runs/study")
    """The study folder; the same command goes on where a killed one stood."""
    data: Path | None = None
    """Real data: labelled reviews (text, label) for reviews, preference pairs for dialogue."""
    model: str | None = None
    """Any causal model (folder or Hub name) instead of the small base trained here."""
    arms: tuple[ArmName, ...] = ("reference", "sft", "dpo", "ppo", "ppo-gold")
    """What is compared. The reference always takes part. ppo-gold sees the gold reward: an oracle, reviews only."""
    seeds: Positive = 1
    """How often pairs, reward model and arms are made anew; base and reference model are shared."""
    seed: Seed = 0
    """The first seed; it determines the whole study."""
    quick: bool = False
    """A bounded run: fewer texts, prompts, steps and evaluations. For a look, not for a verdict."""
    lengths: Lengths = field(default_factory=Lengths)
    """What fits in a sequence."""
    prompts: Prompts = field(default_factory=Prompts)
    """How many prompts."""
    base: Base = field(default_factory=Base)
    """The small base model."""
    reference: SFT = field(default_factory=lambda: SFT(epochs=1, evaluations=1))
    """SFT of the base on the task's demonstrations: every arm's start, and what KL is measured from."""
    pairs: Pairs = field(default_factory=Pairs)
    """How preferences are made (reviews)."""
    reward: Reward = field(default_factory=lambda: Reward(evaluations=1))
    """The reward model."""
    sft: SFT = field(default_factory=SFT)
    """The arm sft: further fine-tuning on the chosen responses."""
    dpo: DPO = field(default_factory=DPO)
    """The arm dpo."""
    ppo: PPO = field(default_factory=PPO)
    """The arms ppo and ppo-gold: the same settings, another reward."""
    log_every: Positive = 5
    """Steps between two lines of metrics.jsonl; PPO writes one every update."""
    trust_remote_code: bool = False
    """Run Python code that comes with the model; off unless you trust its author."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes the GPU where there is one."""
