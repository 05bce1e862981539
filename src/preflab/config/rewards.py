"""What a reward is made of: one term, or a weighted sum of terms of six kinds.

Each kind is written short, as a flag takes it, or as a YAML mapping with its `kind`:

    runs/reward/model                      a reward model
    length.py:penalty                      a Python function, of a file or of a module (package.module:penalty)
    classifier:FOLDER:LABEL                a sequence-classification model's log-odds of a label
    fitted:reviews.jsonl                   a classifier fitted anew to labelled texts
    regex:^\\d+$                            whether the response matches
    verifier:answer:####\\s*(\\S+)           whether what is extracted from the response is the prompt's answer

    0.5*runs/reward/model + short=length.py:penalty

A weight stands before *, a name before =, and the + of a sum between spaces.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, assert_never, get_args

from pydantic import AfterValidator
from tyro.constructors import PrimitiveConstructorSpec

from preflab.config.training import Positive
from preflab.errors import ConfigError, nearest


@dataclass(frozen=True, kw_only=True)
class Term:
    """What the terms of all kinds have."""

    weight: float = 1.0
    """What the term counts in the sum, finite; 0 logs it and pays nothing."""
    name: str | None = None
    """What logs call it: letters, digits, _, - and dots; none: after what it is."""


@dataclass(frozen=True, kw_only=True)
class ModelTerm(Term):
    """The score of a reward model less its recorded offset."""

    model: str
    """A folder or Hub name (sequence classification, one label), as `preflab train reward` writes."""
    kind: Literal["model"] = "model"
    """Always model."""


@dataclass(frozen=True, kw_only=True)
class FunctionTerm(Term):
    """What a Python function returns: one number a response, or one a response token."""

    function: str
    """path/to/file.py:function, or package.module:function. The code is run."""
    batch_size: Positive | None = None
    """Most responses in a call; none: all that are to be rewarded at once."""
    kind: Literal["function"] = "function"
    """Always function."""


@dataclass(frozen=True, kw_only=True)
class ClassifierTerm(Term):
    """What a sequence-classification model with several labels says of one of them."""

    model: str
    """A folder in the Hugging Face format or a name on the Hub."""
    label: str
    """The label that is rewarded, by its name in the model's configuration."""
    output: Literal["log-odds", "logit", "probability"] = "log-odds"
    """log-odds: log p/(1 − p), without bounds; logit: the model's raw score; probability: p in [0, 1]."""
    reads: Literal["text", "response"] = "text"
    """text: prompt and response as one; response: that alone."""
    batch_size: Positive = 32
    """Most texts in memory at once."""
    kind: Literal["classifier"] = "classifier"
    """Always classifier."""


@dataclass(frozen=True, kw_only=True)
class FittedTerm(Term):
    """What a linear classifier of words and word pairs, fitted when the run starts, says of the label 1."""

    data: Path
    """Labelled texts: JSONL with `text` and `label`, which is 0 or 1, or negative or positive; or CSV with these
    columns."""
    output: Literal["log-odds", "probability"] = "log-odds"
    """log-odds: log p/(1 − p), without bounds; probability: p in [0, 1]."""
    reads: Literal["text", "response"] = "text"
    """text: prompt and response as one; response: that alone."""
    kind: Literal["fitted"] = "fitted"
    """Always fitted."""


@dataclass(frozen=True, kw_only=True)
class RegexTerm(Term):
    """Whether a response matches a regular expression (Python's `re`)."""

    pattern: str
    """The expression; ^ and $ are the ends of the response."""
    whole: bool = False
    """The whole response must match; off: some part of it."""
    match: float = 1.0
    """The reward of a response that matches."""
    other: float = 0.0
    """The reward of any other."""
    kind: Literal["regex"] = "regex"
    """Always regex."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        return _pattern_misfit("pattern", self.pattern) or _same(self.match, self.other)


@dataclass(frozen=True, kw_only=True)
class VerifierTerm(Term):
    """Whether a response gives the answer that stands beside its prompt."""

    column: str = "answer"
    """The column of the prompts' file that holds the answer: text, or a number."""
    extract: str | None = None
    """A regular expression whose last match in the response is compared, or its first group where it has one; none: the
    whole response, without the white space around it. A response without a match is wrong."""
    match: float = 1.0
    """The reward of a right response."""
    other: float = 0.0
    """The reward of any other."""
    kind: Literal["verifier"] = "verifier"
    """Always verifier."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        problem = None if self.extract is None else _pattern_misfit("extract", self.extract)
        return problem or _same(self.match, self.other)


RewardTerm = ModelTerm | FunctionTerm | ClassifierTerm | FittedTerm | RegexTerm | VerifierTerm
KINDS: dict[str, type[RewardTerm]] = {cls.kind: cls for cls in get_args(RewardTerm)}
SHORT = {
    "model": "runs/reward/model",
    "function": "length.py:penalty",
    "classifier": "classifier:FOLDER:LABEL",
    "fitted": "fitted:reviews.jsonl",
    "regex": "regex:PATTERN",
    "verifier": "verifier:answer",
}
"""How a term of each kind is written."""

_WEIGHT = re.compile(r"([-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)\s*\*\s*")
_NAME = re.compile(r"([A-Za-z_][\w.-]*)\s*=\s*")
_FUNCTION = re.compile(r"(.+\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*")
_NAMED = re.compile(r"[\w.-]+")


def reward_terms(reward: str | tuple[RewardTerm, ...]) -> tuple[RewardTerm, ...]:
    """The terms of a reward, each with its name.

    Raises:
        ConfigError: the short form can't be read, names no kind, or two terms have one name.

    >>> for term in reward_terms("runs/reward/model + -0.1*length.py:penalty"):
    ...     print(term.kind, term.weight, term.name)
    model 1.0 reward
    function -0.1 penalty
    """
    terms = _read(reward) if isinstance(reward, str) else reward
    if not terms:
        raise ConfigError("a reward needs a term")
    names: list[str] = []
    for term in terms:
        name = name_of(term)
        if not _NAMED.fullmatch(name):
            raise ConfigError(f'the name "{name}" of a reward: letters, digits, "_", "-" and "." alone')
        if name in names:
            raise ConfigError(f'two rewards are called "{name}"; name one of them: other={name}')
        names.append(name)
    return tuple(_named(term, name) for term, name in zip(terms, names, strict=True))


def name_of(term: RewardTerm) -> str:
    """What logs call a term: its name, or what it is."""
    if term.name is not None:
        return term.name
    match term:
        case ModelTerm():
            path = Path(term.model)
            found = path.parent.name or path.name if path.name == "model" else path.name
        case FunctionTerm():
            found = term.function.rpartition(":")[2]
        case ClassifierTerm():
            found = term.label
        case FittedTerm():
            found = term.data.name.partition(".")[0]
        case RegexTerm():
            found = "regex"
        case VerifierTerm():
            found = term.column
        case never:
            assert_never(never)
    return re.sub(r"[^\w.-]+", "-", found) or term.kind


def term_of(values: dict[str, Any]) -> type[RewardTerm]:
    """The class of a term that YAML gives.

    Raises:
        ConfigError: it names no kind.
    """
    kind = values.get("kind")
    if kind not in KINDS:
        raise ConfigError(
            f'there is no kind of reward "{kind}"; {nearest(str(kind), KINDS)}'
            if kind is not None
            else f"a reward needs a kind: {', '.join(KINDS)}"
        )
    return KINDS[str(kind)]


def read_term(text: str) -> RewardTerm:
    """One term in its short form.

    Raises:
        ConfigError: it can't be read, or names no kind.

    >>> read_term("0.5*digits=regex:^[0-9]+$")
    RegexTerm(weight=0.5, name='digits', pattern='^[0-9]+$', whole=False, match=1.0, other=0.0, kind='regex')
    """
    rest, weight, name = text.strip(), 1.0, None
    if found := _WEIGHT.match(rest):
        weight, rest = float(found[1]), rest[found.end() :]
    if not math.isfinite(weight) or "*" in rest.partition(":")[0]:
        given = text.strip().partition("*")[0].strip()
        raise ConfigError(f'the weight "{given}" must be a finite number, as in 0.1*length.py:penalty')
    if found := _NAME.match(rest):
        name, rest = found[1], rest[found.end() :]
    shared: dict[str, Any] = {"weight": weight, "name": name}
    kind, colon, value = rest.partition(":")
    match kind if colon else "model":
        case "model":
            model = value if colon else rest
            if model.endswith(".py"):
                raise ConfigError(f"name the function, too: {model}:function")
            if model in KINDS and not colon and not Path(model).exists():
                raise ConfigError(f'"{model}" is a kind of reward: say of what, {SHORT[model]}')
            return ModelTerm(model=_given(model, text), **shared)
        case "function":
            return FunctionTerm(function=_given(value, text), **shared)
        case "classifier":
            folder, _, label = value.rpartition(":")
            if not folder or not label:
                raise ConfigError("a classifier needs its folder and a label: classifier:FOLDER:LABEL")
            return ClassifierTerm(model=folder, label=label, **shared)
        case "fitted":
            return FittedTerm(data=Path(_given(value, text)), **shared)
        case "regex":
            return RegexTerm(pattern=_given(value, text), **shared)
        case "verifier":
            column, colon, extract = value.partition(":")
            return VerifierTerm(column=_given(column, text), extract=_given(extract, text) if colon else None, **shared)
        case _:
            if kind.endswith(".py") and not value:
                raise ConfigError(f"name the function, too: {kind}:function")
            if "+" in rest and _FUNCTION.fullmatch(rest.partition("+")[0].strip()):
                raise ConfigError(
                    f"the + of a sum stands between spaces: {' + '.join(map(str.strip, rest.split('+')))}"
                )
            hint = nearest(kind, KINDS)
            if _FUNCTION.fullmatch(rest) and ("." in kind or hint.startswith("known")):
                return FunctionTerm(function=rest, **shared)
            raise ConfigError(f'there is no kind of reward "{kind}"; {hint}')


def _read(text: str) -> tuple[RewardTerm, ...]:
    """A sum in its short form; a plus sign between spaces is always one of the sum."""
    return tuple(read_term(part) for part in re.split(r"\s\+\s", text))


def _given(value: str, text: str) -> str:
    if not value:
        raise ConfigError(f'"{text}" is no reward; one is written {" or ".join(SHORT.values())}')
    return value


def _named(term: RewardTerm, name: str) -> RewardTerm:
    values = {one.name: getattr(term, one.name) for one in fields(term)}
    return type(term)(**(values | {"name": name}))


def _pattern_misfit(setting: str, pattern: str) -> str | None:
    try:
        re.compile(pattern)
    except re.error as error:
        return f"{setting} = {pattern}: no regular expression: {error}"
    return None


def _same(match: float, other: float) -> str | None:
    return f"match = other = {match:g}: every response gets one reward; let them differ" if match == other else None


def _checked(reward: str | tuple[RewardTerm, ...]) -> str | tuple[RewardTerm, ...]:
    """What pydantic calls: the same, or a ValueError."""
    try:
        for term in reward_terms(reward):
            if isinstance(term, RegexTerm | VerifierTerm) and (problem := term.misfit()):
                raise ValueError(problem)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return reward


def _checked_or_none(reward: str | tuple[RewardTerm, ...] | None) -> str | tuple[RewardTerm, ...] | None:
    return None if reward is None else _checked(reward)


_FLAG = PrimitiveConstructorSpec[Any](
    nargs=1,
    metavar="REWARD",
    instance_from_str=lambda words: None if words[0] == "None" else words[0],
    is_instance=lambda value: value is None or isinstance(value, str | tuple),
    str_from_instance=lambda value: [value if isinstance(value, str) else str(value)],
)
Rewards = Annotated[str | tuple[RewardTerm, ...], _FLAG, AfterValidator(_checked)]
"""A reward as a flag (the short form) or as YAML (that, or a list of terms)."""
OptionalRewards = Annotated[str | tuple[RewardTerm, ...] | None, _FLAG, AfterValidator(_checked_or_none)]
"""The same, or none."""
