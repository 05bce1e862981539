"""What is known of each method, gathered from where it is said: docstrings, settings, the table of commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, assert_never, cast, get_args, get_origin, get_type_hints

from annotated_types import Ge, GroupedMetadata, Gt, Le, Lt

from preflab.cli.docstrings import Place, of_fields, own_fields, read
from preflab.cli.main import COMMANDS
from preflab.cli.metrics import Method
from preflab.config import commands
from preflab.config.commands import BestOfN, Compare
from preflab.config.online import PPO, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.pair_losses import AOTLoss, LengthNormalisedDPOLoss, SumLoss
from preflab.config.preference import Preference, Unpaired
from preflab.config.training import SFT, Reward

TRAINED = tuple(name.removeprefix("train ") for name in COMMANDS if name.startswith("train "))
METHODS = (*TRAINED, "best-of-n")

OBJECTIVES = {
    "sft": Place("losses/supervised.py", "sft"),
    "reward": Place("losses/reward.py", "bradley_terry"),
    "dpo": Place("losses/preference.py", "dpo"),
    "cdpo": Place("losses/preference.py", "dpo"),
    "rdpo": Place("losses/preference.py", "robust_dpo"),
    "ipo": Place("losses/preference.py", "ipo"),
    "hinge": Place("losses/preference.py", "hinge"),
    "exo": Place("losses/preference.py", "exo"),
    "aot": Place("losses/preference.py", "aot"),
    "ln-dpo": Place("config/pair_losses.py", "LengthNormalisedDPOLoss"),  # dpo, on log-ratios per token
    "f-dpo": Place("losses/divergence.py", "f_dpo"),
    "dpop": Place("losses/anchored.py", "dpop"),
    "nca": Place("losses/anchored.py", "nca"),
    "bco-pair": Place("losses/anchored.py", "bco_pair"),
    "sppo": Place("losses/anchored.py", "sppo"),
    "apo-zero": Place("losses/anchored.py", "apo_zero"),
    "apo-down": Place("losses/anchored.py", "apo_down"),
    "simpo": Place("losses/reference_free.py", "simpo"),
    "cpo": Place("losses/reference_free.py", "cpo"),
    "orpo": Place("losses/reference_free.py", "orpo"),
    "sum": Place("config/pair_losses.py", "SumLoss"),
    "kto": Place("losses/unpaired.py", "kto"),
    "bco": Place("losses/unpaired.py", "bco"),
    "ppo": Place("training/ppo.py"),
    "grpo": Place("config/online.py", "GRPO"),
    "dr-grpo": Place("config/online.py", "DrGRPO"),
    "dapo": Place("config/online.py", "DAPO"),
    "rloo": Place("config/online.py", "RLOO"),
    "reinforce": Place("config/online.py", "Reinforce"),
    "online-dpo": Place("training/online_dpo.py"),
    "iterative-dpo": Place("training/iterative_dpo.py"),
    "best-of-n": Place("studies/best_of_n.py", "kl_bound_nats"),
}
"""The docstring that states a method's objective."""


@dataclass(frozen=True)
class Setting:
    """A row of the settings."""

    name: str
    """Dotted, as in YAML; ends in .* for a group that is explained elsewhere."""
    default: str
    range: str
    meaning: str


def defaults(method: str) -> Method:
    """A method's settings as they come."""
    return cast(Method, type(getattr(Compare(), method.replace("-", "_")))())


def summary(method: str) -> str:
    """What a method is, in a sentence."""
    cls = getattr(commands, COMMANDS[f"train {method}"].config) if method in TRAINED else type(defaults(method))
    return _sentence(cls)


def in_brief(method: str) -> str:
    """The same in a few words."""
    return COMMANDS[f"train {method}"].summary if method in TRAINED else summary(method)


LEARN_FROM = (
    "From preference pairs",
    "From responses marked desirable or not",
    "From a reward, by policy gradient",
    "From pairs of the policy's own responses, ranked by a reward",
    "Other",
)


def learns_from(settings: Method) -> str:
    """Which of `LEARN_FROM` a method belongs to."""
    pairs, marked, gradient, own_pairs, other = LEARN_FROM
    match settings:
        case Preference():
            return pairs
        case Unpaired():
            return marked
        case PPO() | PolicyGradient():
            return gradient
        case OnlineDPO() | IterativeDPO():
            return own_pairs
        case SFT() | Reward() | BestOfN():
            return other
        case never:
            assert_never(never)


def trainer(settings: Method) -> Place:
    """The function that runs a method."""
    match settings:
        case SFT():
            return Place("training/sft.py", "train_sft")
        case Reward():
            return Place("training/reward.py", "train_reward")
        case Preference():
            return Place("training/preference.py", "train_preference")
        case Unpaired():
            return Place("training/unpaired.py", "train_unpaired")
        case PPO():
            return Place("training/ppo.py", "train_ppo")
        case PolicyGradient():
            return Place("training/policy_gradient.py", "train_policy_gradient")
        case OnlineDPO():
            return Place("training/online_dpo.py", "train_online_dpo")
        case IterativeDPO():
            return Place("training/iterative_dpo.py", "train_iterative_dpo")
        case BestOfN():
            return Place("studies/best_of_n.py", "best_of_n")
        case never:
            assert_never(never)


def parts(settings: Method) -> Iterator[Place]:
    """What a method's objective is made of, under its default settings."""
    match settings:
        case Preference(loss=LengthNormalisedDPOLoss()):
            yield OBJECTIVES["dpo"]
        case Preference(loss=AOTLoss()):
            yield Place("losses/preference.py", "same_rank")
        case Preference(loss=SumLoss() as loss) | OnlineDPO(loss=loss) | IterativeDPO(loss=loss):
            for _, part in loss.parts:
                names = (field.name for field in dataclasses.fields(loss) if getattr(loss, field.name) is part)
                name = next(names, None)  # sft has no settings
                yield OBJECTIVES[name.replace("_", "-")] if name else Place("config/pair_losses.py", "SFTLoss")
        case PPO():
            yield Place("losses/advantages.py", "token_rewards")
            yield Place("losses/advantages.py", "gae")
            yield Place("losses/policy.py", "ppo_clip")
            yield Place("losses/policy.py", "value_clip")
            yield Place("losses/reduce.py", "aggregate")
        case PolicyGradient():
            yield Place("training/policy_gradient.py")
            mean = "less_group_mean" if settings.baseline == "group-mean" else "leave_one_out"
            yield Place("losses/advantages.py", mean)
            if settings.scale != "none":
                yield Place("losses/advantages.py", "over_std")
            yield Place("losses/policy.py", "ppo_clip")
            if settings.kl_coefficient > 0 and settings.kl_penalty != "reward":
                yield Place("losses/kl.py", "kl_in_loss")
            yield Place("losses/reduce.py", "aggregate")


def places(method: str) -> tuple[Place, ...]:
    """The docstrings that make up a method's formula, the objective first."""
    return OBJECTIVES[method], *parts(defaults(method))


def citations(method: str) -> dict[str, str]:
    """arXiv id → who wrote it, and where it says so."""
    found: dict[str, str] = {}
    for place in places(method):
        for number, who in read(place).citations.items():
            found[number] = max(found.get(number, ""), who, key=len)
    return found


def setting_groups(method: str) -> Iterator[tuple[str, list[Setting]]]:
    """(what they are for, settings): first the method's own, then group by group what it shares with more and more
    others.

    A loss says what its arguments mean; where it does, its words stand for those of the configuration.
    """
    settings: Any = defaults(method)
    said = {name: text for names, text in read(OBJECTIVES[method]).arguments.items() for name in names.split(", ")}
    home: dict[type, str] = {}  # where a group is told in full that comes twice
    for field in dataclasses.fields(settings):
        home.setdefault(type(getattr(settings, field.name)), field.name)
    seen: set[str] = set()
    for cls in type(settings).__mro__[:-1]:
        declared = {name: text for name, text in own_fields(cls).items() if name not in seen}
        seen |= set(declared)
        rows = [row for name, text in declared.items() for row in _rows(settings, name, text, said, home)]
        if rows:
            yield ("" if cls is type(settings) else _sentence(cls).partition(":")[0].rstrip(".")), rows


def _rows(settings: Any, name: str, text: str, said: dict[str, str], home: dict[type, str]) -> Iterator[Setting]:
    """One row, or one for each member of a group."""
    value = getattr(settings, name)
    if not dataclasses.is_dataclass(value):
        yield Setting(name, word(value), allowed(_hints(type(settings))[name]), text)
    elif home[type(value)] != name:
        yield _folded(name, value, f"{text} Each as {home[type(value)]}.*")
    else:
        texts = of_fields(type(value)) | (said if name == "loss" else {})
        for field in dataclasses.fields(value):
            inner, dotted = getattr(value, field.name), f"{name}.{field.name}"
            if dataclasses.is_dataclass(inner):
                yield _folded(dotted, inner, _sentence(type(inner)))
            else:
                yield Setting(dotted, word(inner), allowed(_hints(type(value))[field.name]), texts[field.name])


def _folded(name: str, group: Any, meaning: str) -> Setting:
    """A group in one row."""
    members = (f"{field.name} {word(getattr(group, field.name))}" for field in dataclasses.fields(group))
    return Setting(f"{name}.*", ", ".join(members), "", meaning)


def _hints(cls: type) -> dict[str, Any]:
    return get_type_hints(cls, include_extras=True)


def _sentence(cls: type) -> str:
    return " ".join((cls.__doc__ or "").split())


def word(value: Any) -> str:
    """A value as YAML has it."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case tuple():
            return "[" + ", ".join(map(word, value)) + "]"
        case _:
            return str(value)


def allowed(hint: Any) -> str:
    """The values that a type allows, as far as it says so.

    >>> allowed(Annotated[float, Ge(0), Lt(1)]), allowed(Annotated[int, Ge(1)] | None), allowed(Literal["a", "b"])
    ('[0, 1)', '≥ 1, or none', 'a, b')
    """
    kind, inside = get_origin(hint), get_args(hint)
    if kind is Annotated:
        return _bounds(inside[1:])
    if kind is Literal:
        return ", ".join(inside)
    if kind in (Union, UnionType):
        return ", or ".join([allowed(part) for part in inside if part is not NoneType] + ["none"])
    if kind is tuple:
        return f"each {allowed(inside[0])}"
    return "true, false" if hint is bool else ""


def _bounds(marks: tuple[Any, ...]) -> str:
    low = high = ""
    for mark in marks:
        for bound in mark if isinstance(mark, GroupedMetadata) else [mark]:
            match bound:
                case Ge(ge=least):
                    low = f"[{least}"
                case Gt(gt=above):
                    low = f"({above}"
                case Le(le=most):
                    high = f"{most}]"
                case Lt(lt=below):
                    high = f"{below})"
    return f"{low}, {high}" if high else low.replace("[", "≥ ").replace("(", "> ")
