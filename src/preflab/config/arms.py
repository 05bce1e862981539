"""Names of arms → what they train: "ppo-gold" is one stage, "dpo+ppo" are two, "dpo@loss.beta=0.05" is a variant.

A variant lays settings over those of its method. Each arm has one spelling (`canonical`): keys with underscores in the
order of the alphabet, numbers in their shortest form. It names the arm's folder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import lru_cache
from typing import Any, get_type_hints

from preflab.config.load import build, check, read_scalar
from preflab.errors import ConfigError, nearest

Value = bool | int | float | str | None
"""What a variant may set."""

LABELS = {
    "sft": "SFT",
    "dpo": "DPO",
    "cdpo": "cDPO",
    "rdpo": "rDPO",
    "ipo": "IPO",
    "hinge": "Hinge",
    "exo": "EXO",
    "aot": "AOT",
    "ln-dpo": "LN-DPO",
    "f-dpo": "f-DPO",
    "dpop": "DPOP",
    "nca": "NCA",
    "bco-pair": "BCO (pairs)",
    "sppo": "SPPO",
    "apo-zero": "APO-zero",
    "apo-down": "APO-down",
    "simpo": "SimPO",
    "cpo": "CPO",
    "orpo": "ORPO",
    "sum": "Weighted sum",
    "kto": "KTO",
    "bco": "BCO",
    "ppo": "PPO",
    "grpo": "GRPO",
    "dr-grpo": "Dr. GRPO",
    "dapo": "DAPO",
    "rloo": "RLOO",
    "reinforce": "REINFORCE",
    "online-dpo": "Online DPO",
    "iterative-dpo": "Iterative DPO",
}
"""The methods that can be an arm, or a stage of a chain, and how reports write them."""

SAMPLING = ("ppo", "grpo", "dr-grpo", "dapo", "rloo", "reinforce", "online-dpo", "iterative-dpo")
"""Those that learn from a reward, so that -gold can say which."""

GOLD = "-gold"
ALONE = {"reference": "Reference", "best-of-n": "Best of n"}
"""Arms that train nothing, so that no stage can come before or after them."""

SYMBOLS = {"loss.beta": "β", "loss.tau": "τ"}
"""How labels write a setting, where not by its name."""

LARGEST_WHOLE, SMALLEST_PLAIN = 1e15, 1e-3
"""Between these, numbers are spelled without an exponent."""


@dataclass(frozen=True)
class Stage:
    """One method in an arm."""

    method: str
    gold: bool
    """Paid by the gold reward: an oracle."""
    overrides: tuple[tuple[str, Value], ...] = ()
    """What lies over the method's settings: dotted keys and values, in the order of the alphabet."""

    @property
    def key(self) -> str:
        """Its field in `Compare`."""
        return self.method.replace("-", "_")

    @property
    def name(self) -> str:
        """As arms have it, without settings."""
        return self.method + (GOLD if self.gold else "")

    @property
    def label(self) -> str:
        """As reports write it."""
        plain = (LABELS | ALONE)[self.method] + (" on gold" if self.gold else "")
        return ", ".join([plain, *(f"{written(key)} {spelled(value)}" for key, value in self.overrides)])

    def __str__(self) -> str:
        return self.name + "".join(f"@{key}={spelled(value)}" for key, value in self.overrides)


def stages(arm: str) -> tuple[Stage, ...]:
    """The stages of an arm, in order; none for the reference and best-of-n.

    Raises:
        ConfigError: there is no such method, with the nearest name, or its settings can't be read.

    >>> stages("dpo+ppo-gold@kl-coefficient=.10")[1]
    Stage(method='ppo', gold=True, overrides=(('kl_coefficient', 0.1),))
    """
    return tuple(part for part in parts(arm) if part.method not in ALONE)


def parts(arm: str) -> tuple[Stage, ...]:
    """The stages of an arm; of one that trains nothing, itself.

    Raises:
        ConfigError: as `stages`.
    """
    texts = _split(arm)
    return tuple(_stage(arm, text, alone=len(texts) == 1) for text in texts)


def before(arm: str) -> str | None:
    """The arm that a chain's last stage starts from; None where there is no chain.

    >>> before("sft+dpo@loss.beta=0.5+ppo")
    'sft+dpo@loss.beta=0.5'
    """
    return "+".join(_split(arm)[:-1]) or None


def family(arm: str) -> str:
    """The arm's methods without their settings.

    >>> family("dpo@loss.beta=0.5+ppo-gold@updates=8")
    'dpo+ppo-gold'
    """
    return "+".join(part.name for part in parts(arm))


def label(arm: str) -> str:
    """How reports write an arm.

    >>> label("dpo@loss.beta=0.05+ppo")
    'DPO, β 0.05 → PPO'
    """
    return " → ".join(part.label for part in parts(arm))


def canonical(methods: Any, arm: str) -> str:
    """The one spelling of an arm, its settings checked.

    Args:
        methods: the settings of each method, a field each (`Compare`).

    Raises:
        ConfigError: there is no such arm; a setting is unknown to its method, out of range or misfits another.

    >>> from preflab.config.commands import Methods
    >>> canonical(Methods(), "dpo@optimizer.learning-rate=0.0001@loss.beta=.050")
    'dpo@loss.beta=0.05@optimizer.learning_rate=1e-4'
    """
    try:
        return "+".join(str(_checked(methods, part)) for part in parts(arm))
    except ConfigError as error:
        said = str(error)
        raise ConfigError(said if said.startswith("arms = ") else f"arms = {arm}: {said}") from None


def settings(methods: Any, stage: Stage) -> Any:
    """What a stage is told: the settings of its method, with the stage's own over them.

    Raises:
        ConfigError: as `canonical`.
    """
    base = getattr(methods, stage.key)
    return _laid_over(base, str(stage)) if stage.overrides else base


def overrides(methods: Any, arm: str) -> dict[str, Value]:
    """What an arm sets otherwise than its methods: dotted keys. A chain's begin with the method, and with the place too
    where a method comes twice.

    >>> from preflab.config.commands import Methods
    >>> overrides(Methods(), "dpo@loss.beta=1+ppo@updates=8")
    {'dpo.loss.beta': 1.0, 'ppo.updates': 8}
    """
    found = parts(arm)
    return {
        f"{prefix}{key}": value
        for prefix, part in zip(_prefixes(found), found, strict=True)
        for key, value in _checked(methods, part).overrides
    }


def needs_reward_model(methods: Any, arm: str) -> bool:
    """True where a stage is paid by the reward model, picks by it, or starts its value model as it: its training is
    part of what the arm costs.

    Args:
        methods: the settings of each method, a field each (`Compare`).

    Raises:
        ConfigError: as `canonical`.

    >>> from preflab.config.commands import Methods
    >>> [needs_reward_model(Methods(), arm) for arm in ("dpo", "dpo+grpo", "grpo-gold", "best-of-n@n=64")]
    [False, True, False, True]
    >>> [needs_reward_model(Methods(), arm) for arm in ("ppo-gold", "ppo-gold@value-trunk=shared")]
    [True, False]
    """
    return any(
        part.method == "best-of-n"
        or (part.method in SAMPLING and not part.gold)
        or getattr(settings(methods, part), "value_trunk", "shared") == "separate"
        for part in parts(arm)
        if part.method != "reference"
    )


@dataclass(frozen=True)
class Swept:
    """Arms of one method that differ in settings alone."""

    method: str
    """The arm without what differs: "dpo", "sft+ppo"."""
    over: dict[str, list[Value]]
    """The values of each setting, by dotted keys as `overrides` has them; numbers from the smallest on."""


def swept(methods: Any, arms: Iterable[str]) -> Swept | None:
    """What a study sweeps over: the most arms that differ in the same settings of one last stage, the first of equals;
    None where there are no two.

    >>> from preflab.config.commands import Methods
    >>> swept(Methods(), ["dpo@loss.beta=0.5", "ppo", "dpo@loss.beta=0.1"])
    Swept(method='dpo', over={'loss.beta': [0.1, 0.5]})
    """
    groups: dict[tuple[str, tuple[str, ...]], list[dict[str, Value]]] = {}
    for arm in arms:
        found = parts(arm)
        start, last, prefix = before(arm), _checked(methods, found[-1]), _prefixes(found)[-1]
        if last.overrides:
            own = {f"{prefix}{key}": value for key, value in last.overrides}
            name = (f"{start}+" if start else "") + last.name
            groups.setdefault((name, tuple(own)), []).append(own)
    if not groups or len(most := max(groups.values(), key=len)) < 2:
        return None
    name, keys = next(key for key, group in groups.items() if group is most)
    return Swept(name, {key: _in_order(own[key] for own in most) for key in keys})


def spelled(value: Value) -> str:
    """A value as an arm's name has it, and as YAML reads it.

    >>> [spelled(value) for value in (1.0, 0.05, 1e-4, 2.5e-05, 128, True, None, "linear")]
    ['1', '0.05', '1e-4', '2.5e-5', '128', 'true', 'null', 'linear']
    """
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, float):
        return str(value)
    size = abs(value)
    if size < LARGEST_WHOLE and value.is_integer():
        return str(int(value))
    if SMALLEST_PLAIN <= size < LARGEST_WHOLE:
        return repr(value)
    # Of the digits of repr: 2⁻²⁴ lies halfway between two spellings of 16 digits, of which one is read back.
    return f"{Decimal(repr(value)).normalize():e}".replace("e+", "e")


def written(key: str) -> str:
    """A setting as labels have it: its symbol, or its name, without the group where all know it."""
    return SYMBOLS.get(key, key.removeprefix("loss.").removeprefix("optimizer."))


def _prefixes(found: Sequence[Stage]) -> list[str]:
    """What stands before the keys of each stage in `overrides`."""
    keys = [stage.key for stage in found]
    if len(keys) == 1:
        return [""]
    return [f"{n + 1}.{key}." if keys.count(key) > 1 else f"{key}." for n, key in enumerate(keys)]


def _split(arm: str) -> list[str]:
    """The texts of its stages; the + of 1e+5 is no chain's."""
    return re.split(r"\+(?![0-9])", arm)


def _stage(arm: str, text: str, *, alone: bool) -> Stage:
    name, *given = text.split("@")
    found = _method(arm, name, alone=alone)
    read = [_override(arm, one) for one in given]
    keys = [key for key, _ in read]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"arms = {arm}: {twice} is set twice; keep one")
    if read and name == "reference":
        raise ConfigError(f"arms = {arm}: the reference is one for all arms; set reference.* of the study")
    return Stage(found.method, found.gold, tuple(sorted(read)))


def _method(arm: str, name: str, *, alone: bool) -> Stage:
    method = name.removesuffix(GOLD)
    if name in LABELS or (alone and name in ALONE):
        return Stage(name, gold=False)
    if name.endswith(GOLD) and method in SAMPLING:
        return Stage(method, gold=True)
    if name in ALONE:
        raise ConfigError(f'arms = {arm}: "{name}" trains nothing, so it can\'t be a stage of a chain')
    if name.endswith(GOLD) and method in LABELS:
        raise ConfigError(f"arms = {arm}: {method} learns from pairs, not from a reward; leave {GOLD} out")
    known = (*ALONE, *LABELS, *(f"{one}{GOLD}" for one in SAMPLING))
    raise ConfigError(f'arms = {arm}: there is no arm or stage "{name}"; {nearest(name, known)}')


def _override(arm: str, text: str) -> tuple[str, Value]:
    key, equals, value = text.partition("=")
    if not equals or not key or not value:
        raise ConfigError(f'arms = {arm}: "{text}" sets nothing; write dpo@loss.beta=0.05')
    if not re.fullmatch(r"[\w.+-]+", value) or not re.fullmatch(r"[\w.-]+", key):
        raise ConfigError(
            f"arms = {arm}: {text} can't stand in the name of an arm, which holds numbers and words alone; set it for "
            "the method"
        )
    read = None if value == "None" else read_scalar(value)
    if not isinstance(read, Value) or (isinstance(read, float) and not math.isfinite(read)):
        raise ConfigError(f"arms = {arm}: {value} is neither a finite number nor a word")
    return key.replace("-", "_"), read


def _checked(methods: Any, stage: Stage) -> Stage:
    """The stage with its values as its method takes them, so that two spellings of one become one."""
    if not stage.overrides:
        return stage
    told = settings(methods, stage)
    return Stage(stage.method, stage.gold, tuple((key, _leaf(told, key)) for key, _ in stage.overrides))


@lru_cache(maxsize=4096)
def _laid_over(base: Any, stage: str) -> Any:
    """Remembered by the stage's text, as 1 and True are one key."""
    told = base
    for key, value in _stage(stage, stage, alone=True).overrides:
        _refuse_what_no_variant_sets(type(base), key)
        nested: Any = value
        for name in reversed(key.split(".")):
            nested = {name: nested}
        told = build(type(base), nested, default=told)
    return check(told)


def _refuse_what_no_variant_sets(cls: type[Any], key: str) -> None:
    if key == "evaluations":
        raise ConfigError(
            "an arm that is looked at more often has more checkpoints to choose from, so variants that differ in "
            "evaluations are not comparable; set it for the method"
        )
    *groups, name = key.split(".")
    for group in groups:
        cls = get_type_hints(cls).get(group, object)
    if get_type_hints(cls).get(name) is str:
        raise ConfigError(f"{key} is text, which the name of an arm can't hold; set it for the method")


def _leaf(told: Any, key: str) -> Any:
    for name in key.split("."):
        told = getattr(told, name)
    return told


def _in_order(values: Iterable[Value]) -> list[Value]:
    distinct = list(dict.fromkeys(values))
    numbers = [value for value in distinct if isinstance(value, int | float)]
    return [*sorted(numbers), *(value for value in distinct if value not in numbers)]
