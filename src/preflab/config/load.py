"""YAML files and flags → one checked config object, or one sentence that names the place and the remedy.

defaults < `--config a.yaml` < `--config b.yaml` < flags. Ranges are written in the annotations of the dataclasses
(`Annotated[float, Gt(0)]`) and checked by pydantic, field by field.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import yaml
from pydantic import ConfigDict, TypeAdapter, ValidationError

from preflab.config.rewards import RewardTerm, read_term, term_of
from preflab.errors import ConfigError, nearest

Config = TypeVar("Config")
Origins = dict[str, str]  # dotted key → "file.yaml:7"
HALF = 0.5


class _Loader(yaml.SafeLoader):
    """Strict YAML: 1e-6 is a number, `no` and `off` are words, and a key may be set once.

    PyYAML follows YAML 1.1, where 1e-6 is a string and `no` is false.
    """


_FLOAT = re.compile(
    r"^[-+]?(?:\d+\.\d*(?:[eE][-+]?\d+)?|\.\d+(?:[eE][-+]?\d+)?|\d+[eE][-+]?\d+|\.inf|\.Inf|\.nan|\.NaN)$"
)
_REPLACED = {"tag:yaml.org,2002:bool", "tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|false|False)$"), list("tTfF"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes what PyYAML would read as something else than a word, and what `_Loader` would."""


_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    """Text with line ends that YAML would fold into a space is quoted, with these as escapes."""
    folded = any(end in value for end in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"' if folded else None)


_Dumper.add_representer(str, _text)


def read_yaml(path: Path) -> tuple[dict[str, Any], Origins]:
    """A YAML mapping, and the line of each dotted key.

    Raises:
        ConfigError: the file is missing, is no YAML, is no mapping, holds itself, or sets a key twice.
    """
    try:
        text = path.read_text(encoding="utf-8")
        tree = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except OSError as error:
        raise ConfigError(f"--config {path}: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"--config {path}: not UTF-8 at byte {error.start}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{path}:{mark.line + 1}:{mark.column + 1}" if mark else str(path)
        raise ConfigError(f"{place}: not valid YAML: {getattr(error, 'problem', error)}") from None
    except RecursionError:
        raise ConfigError(f"{path}: nested too deeply") from None
    if tree is None:
        return {}, {}
    if not isinstance(tree, yaml.MappingNode):
        raise ConfigError(f"{path}:1: a configuration is a mapping of keys to values")
    origins: Origins = {}
    try:
        _find_origins(tree, "", path, origins)
    except RecursionError:
        raise ConfigError(f"{path}: a mapping holds itself by an alias; write its values out") from None
    return values, origins


def read_scalar(text: str) -> Any:
    """One value, read as the YAML files are; text that is no YAML stays text.

    >>> read_scalar("1e-6"), read_scalar("no"), read_scalar("null")
    (1e-06, 'no', None)
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _find_origins(node: yaml.MappingNode, prefix: str, path: Path, origins: Origins) -> None:
    for key_node, value_node in node.value:
        key = f"{prefix}{key_node.value}"
        place = f"{path}:{key_node.start_mark.line + 1}"
        if key in origins:
            raise ConfigError(f"{place}: {key} is set twice (first at {origins[key]}); keep one")
        origins[key] = place
        if isinstance(value_node, yaml.MappingNode):
            _find_origins(value_node, f"{key}.", path, origins)
        elif isinstance(value_node, yaml.SequenceNode):
            for number, item in enumerate(value_node.value):
                if isinstance(item, yaml.MappingNode):
                    _find_origins(item, f"{key}.{number}.", path, origins)


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`over` on top of `base`, mappings key by key.

    >>> merge({"loss": {"beta": 0.1}, "seed": 0}, {"loss": {"beta": 0.5}})
    {'loss': {'beta': 0.5}, 'seed': 0}
    """
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def build(
    cls: type[Config],
    values: Mapping[str, Any],
    *,
    default: Config | None = None,
    origins: Origins | None = None,
    missing: Any = dataclasses.MISSING,
    _prefix: str = "",
) -> Config:
    """A checked `cls` from nested values; what is not given keeps its default.

    Args:
        values: nested mappings, as YAML gives them.
        default: where to take what is not given, instead of the defaults of the class.
        origins: dotted key → "file:line", for messages.
        missing: stands in for a required field that is not given; an error where this is not set.

    Raises:
        ConfigError: an unknown key (with the nearest right one), a wrong type, or a value out of range.
    """
    hints = get_type_hints(cls, include_extras=True)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            dotted = f"{_prefix}{key}"
            place = f"{origins[dotted]}: " if origins and dotted in origins else ""
            if why := refusal(cls, str(key)):
                raise ConfigError(f"{place}there is no setting {dotted}: {why}")
            near = nearest_setting(str(key), setting_names(cls))
            hint = f'did you mean "{near}"?' if near else nearest(str(key), fields)
            raise ConfigError(f"{place}there is no setting {dotted}; {hint}")
    made: dict[str, Any] = {}
    for name, field in fields.items():
        dotted, hint = f"{_prefix}{name}", hints[name]
        inherited = getattr(default, name) if default is not None else dataclasses.MISSING
        if name in values and dataclasses.is_dataclass(hint) and isinstance(values[name], Mapping):
            base = inherited if dataclasses.is_dataclass(inherited) else _default(field)
            base = None if base is dataclasses.MISSING else base
            made[name] = build(
                hint,  # type: ignore[arg-type]
                values[name],
                default=base,
                origins=origins,
                missing=missing,
                _prefix=f"{dotted}.",
            )
        elif name in values:
            value = values[name]
            if RewardTerm in _members(hint) and isinstance(value, Mapping | list | tuple):
                value = _terms(dotted, value, origins or {})
            made[name] = _checked(dotted, hint, value, origins or {})
        elif inherited is not dataclasses.MISSING:
            made[name] = inherited
        elif (value := _default(field)) is not dataclasses.MISSING:
            made[name] = value
        elif missing is not dataclasses.MISSING:
            made[name] = missing
        else:
            raise ConfigError(f"{dotted} is required; give --{dotted.replace('_', '-')}")
    return cls(**made)


def _terms(dotted: str, value: Any, origins: Origins) -> tuple[RewardTerm, ...]:
    """The terms of a reward from a list, or from one mapping; texts among them are in the short form."""
    found: list[RewardTerm] = []
    for number, item in enumerate([value] if isinstance(value, Mapping) else value):
        place = dotted if isinstance(value, Mapping) else f"{dotted}.{number}"
        line = origins.get(f"{place}.kind", origins.get(dotted))
        values = to_values(item, idle=True) if dataclasses.is_dataclass(item) else item
        try:
            if isinstance(values, Mapping):
                given = {key: one for key, one in values.items() if key != "kind"}
                found.append(build(term_of(dict(values)), given, origins=origins, _prefix=f"{place}."))
            elif isinstance(values, str):
                found.append(read_term(values))
            else:
                raise ConfigError(f"{place} = {values}: must be text or a mapping with a kind")
        except ConfigError as error:
            has_place = line is None or str(error).startswith(line.rpartition(":")[0])
            raise ConfigError(str(error) if has_place else f"{line}: {error}") from None
    return tuple(found)


def setting_names(cls: type[Any]) -> list[str]:
    """The dotted names of all settings, those of groups included.

    >>> from preflab.config.training import Optimizer
    >>> setting_names(Optimizer)[:2]
    ['name', 'learning_rate']
    """
    return [
        f"{name}.{rest}" if rest else name
        for name, hint in get_type_hints(cls).items()
        for rest in (setting_names(hint) if isinstance(hint, type) and dataclasses.is_dataclass(hint) else [""])
    ]


def refusal(cls: type[Any], name: str) -> str | None:
    """Why a class, or the one of a group in it, has no such setting, where it says so (its `refusal`).

    >>> from preflab.config.online import PPO
    >>> refusal(PPO, "top_k").partition(",")[0]
    "it would make tokens come from another distribution than the policy's"
    >>> refusal(PPO, "topic")
    """
    group, _, rest = name.partition(".")
    if rest:
        inner = get_type_hints(cls).get(group)
        return refusal(inner, rest) if isinstance(inner, type) and dataclasses.is_dataclass(inner) else None
    why: str | None = cls.refusal(name) if hasattr(cls, "refusal") else None
    return why


def nearest_setting(name: str, known: Iterable[str]) -> str | None:
    """The setting made of the same words as the name, in whatever order; of two as near, the one with its first words.
    None where none is near, or several alike.

    >>> nearest_setting("micro_batch_size", ["batch.size", "batch.micro", "epochs"])
    'batch.micro'
    >>> nearest_setting("batch_size", ["dpo.batch.size", "ppo.batch.size"])  # which one, nobody knows
    """
    words = _words(name)

    def likeness(other: str) -> tuple[float, list[bool]]:
        others = _words(other)
        return len({*words} & {*others}) / len({*words} | {*others}), [word in others for word in words]

    names = list(known)
    best = max(map(likeness, names), default=(0.0, []))
    near = [name for name in names if likeness(name) == best]
    return near[0] if best[0] >= HALF and len(near) == 1 else None


def _words(name: str) -> list[str]:
    return re.split(r"[._-]", name.lower())


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return dataclasses.MISSING


def _checked(dotted: str, hint: Any, value: Any, origins: Origins) -> Any:
    place = f"{origins[dotted]}: " if dotted in origins else ""
    if isinstance(value, bool) and bool not in _members(hint):  # pydantic would read true as 1
        raise ConfigError(f"{place}{dotted} = {str(value).lower()}: a true or false has no meaning here")
    if dataclasses.is_dataclass(hint):
        names = ", ".join(field.name for field in dataclasses.fields(hint))
        raise ConfigError(f"{place}{dotted} = {value}: must be a group of settings: {names}")
    try:
        return TypeAdapter(hint, config=ConfigDict(allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        problem = first["msg"].removeprefix("Value error, ")
        problem = (problem[0].lower() + problem[1:]).removesuffix(" for <class 'pathlib.Path'>")
        raise ConfigError(f"{place}{dotted} = {value}: {problem.replace('input should be', 'must be')}") from None


def _members(hint: Any) -> set[Any]:
    """The plain types inside a union or Annotated."""
    inner = getattr(hint, "__args__", ())
    return {hint} | {member for part in inner if part is not hint for member in _members(part)}


def check(config: Config) -> Config:
    """The same config with every field checked, whoever made it (flags and Python code pass here too).

    Raises:
        ConfigError: a value has the wrong type, is out of range, or does not fit another (the class's `misfit`).
    """
    checked = build(type(config), to_values(config, idle=True))
    _check_fit(checked, "")
    return checked


def _check_fit(config: Any, prefix: str) -> None:
    if hasattr(config, "misfit") and (problem := config.misfit()):
        raise ConfigError(f"{prefix}{problem}")
    for field in dataclasses.fields(config):
        if dataclasses.is_dataclass(part := getattr(config, field.name)):
            _check_fit(part, f"{prefix}{field.name}.")


def to_values(config: Any, *, idle: bool = False) -> dict[str, Any]:
    """Nested plain values, as YAML and JSON have them: paths become strings, tuples lists.

    Settings without effect beside the others (the `idle_fields` of the class and of each of its bases, say methods that
    are no arm) are left out, unless `idle`.

    >>> from preflab.config.pair_losses import DPOLoss
    >>> to_values(DPOLoss())
    {'beta': 0.1, 'label_smoothing': 0.0}
    """

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value):
            found = [vars(cls).get("idle_fields") for cls in inspect.getmro(type(value)) if not idle]
            left_out = {name for one in found if one is not None for name in one(value)}
            names = [field.name for field in dataclasses.fields(value) if field.name not in left_out]
            return {name: plain(getattr(value, name)) for name in names}
        if isinstance(value, tuple | list):
            return [plain(item) for item in value]
        return str(value) if isinstance(value, Path) else value

    return dict(plain(config))


def to_yaml(config: Any) -> str:
    """The resolved configuration as YAML that is itself a valid `--config`."""
    return yaml.dump(to_values(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted keys.

    >>> flatten({"loss": {"beta": 0.1}, "seed": 0})
    {'loss.beta': 0.1, 'seed': 0}
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def from_files(cls: type[Config], paths: Iterable[Path], *, default: Config | None = None, missing: Any) -> Config:
    """A config from YAML files, later files over earlier ones; `missing` stands where a required value is absent."""
    values: dict[str, Any] = {}
    origins: Origins = {}
    for path in paths:
        more, places = read_yaml(path)
        values, origins = merge(values, more), origins | places
    return build(cls, values, default=default, origins=origins, missing=missing)
