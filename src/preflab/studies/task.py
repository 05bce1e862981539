"""What a comparison needs to know of its task."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from scipy.stats import binomtest

from preflab.data.records import Demonstration, PreferencePair, Prompt
from preflab.rewards.protocol import Reward
from preflab.runs import JSON


@dataclass(frozen=True)
class Fact:
    """A measured figure of what the arms share, for the report."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    note: str = ""


def share(name: str, hits: float, n: int, note: str = "") -> Fact:
    """A share of n with its Wilson interval; a tie counts half.

    >>> share("heads", 5, 10)
    Fact(name='heads', value=0.5, low=0.2366, high=0.7634, note='')
    """
    interval = binomtest(round(hits), n).proportion_ci(method="wilson")
    return Fact(name, hits / n, round(float(interval.low), 4), round(float(interval.high), 4), note)


@dataclass(frozen=True)
class Words:
    """How the report calls a quantity."""

    name: str
    unit: str
    explanation: str


@dataclass(frozen=True)
class Turn:
    """What stands around a question in this task's prompts."""

    before: str = ""
    after: str = ""

    def around(self, text: str) -> str:
        """The text as a prompt; one that ends as prompts do is one.

        >>> Turn("Human: ", " Assistant:").around("Why?")
        'Human: Why? Assistant:'
        >>> Turn("Human: ", " Assistant:").around("Human: Why? Assistant:")
        'Human: Why? Assistant:'
        """
        return text if text.endswith(self.after) else f"{self.before}{text}{self.after}"


@dataclass(frozen=True)
class GivenPairs:
    """Preference pairs that come with the data, split by prompt."""

    policy: tuple[PreferencePair, ...]
    """What DPO, the further SFT and the reward that PPO sees learn from."""
    judge: tuple[PreferencePair, ...]
    """What the judge learns from; shares no prompt with the others."""
    held_out: tuple[PreferencePair, ...]
    """For the accuracy of both reward models."""


@dataclass(frozen=True)
class Task:
    """Everything that the arms of a study share, before any model is trained."""

    name: str
    title: str
    summary: str
    reward: Words
    proxy: Words
    corpus: tuple[str, ...]
    """Texts for the tokenizer and the small base."""
    demonstrations: tuple[Demonstration, ...]
    """For the reference; of training prompts only."""
    prompts: dict[str, tuple[Prompt, ...]]
    """train, validation, test: no prompt stands in two of them."""
    held_out: tuple[Demonstration, ...]
    """For the perplexity; no model was trained on them."""
    gold: Reward | None
    """None: a reward model trained on held-out pairs judges."""
    pairs: GivenPairs | None
    """None: pairs are sampled from the reference and labelled by gold."""
    facts: tuple[Fact, ...] = ()
    counts: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    turn: Turn = field(default_factory=Turn)
    """How a question becomes a prompt."""
    asked: tuple[Prompt, ...] = ()
    """What every arm answers at its end, for reading side by side."""
    judge_prompts: tuple[Prompt, ...] = ()
    """What the held-out judge learns from beside a gold reward; no arm sees them. Empty: there is none."""
    policy_prompts: tuple[Prompt, ...] | None = None
    """Those of train that arms which sample learn on; None: all."""

    @property
    def sampled_on(self) -> tuple[Prompt, ...]:
        """The prompts that arms which sample learn on."""
        return self.prompts["train"] if self.policy_prompts is None else self.policy_prompts


def as_json(facts: tuple[Fact, ...]) -> list[JSON]:
    """For study.json."""
    return [asdict(fact) for fact in facts]


def few_prompts_warning(prompts: dict[str, tuple[Prompt, ...]]) -> tuple[str, ...]:
    """A warning about interval width where there are few test prompts."""
    n = len(prompts["test"])
    if n >= 200:
        return ()
    return (f"only {n} test prompts: intervals are about {(256 / n) ** 0.5:.1f} times as wide as with 256",)
