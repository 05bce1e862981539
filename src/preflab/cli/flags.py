"""Flags → a checked config: tyro parses, `config/load.py` reads the YAML files and checks."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import tyro

from preflab.config import commands
from preflab.config.load import check, from_files, nearest_setting, read_yaml, refusal, setting_names
from preflab.config.presets import preset
from preflab.config.table_study import quick_study
from preflab.errors import ConfigError, nearest

TASKS = ("reviews", "dialogue")
OF_DISCRIMINATORS = ("levels", "groups", "relations")
LISTS = (
    *("--arms", "--also", "--prompt", "--stop", "--ranking.temperatures", "--first", "--columns", "--codes"),
    *(f"{prefix}discriminators.{name}" for prefix in ("--", "--align.") for name in OF_DISCRIMINATORS),
)


def parse(name: str, class_name: str, arguments: list[str]) -> Any:
    """The config of a command: defaults < --config files, in order < flags.

    Raises:
        ConfigError: a value is unknown or out of range, a flag has its words in another order than the right one, or
            the command knows why there is none. For another flag that doesn't parse, tyro explains and exits with 2.
    """
    cls = getattr(commands, class_name)
    files, flags = _take_files(arguments)
    for flag in LISTS:  # of a list given twice the parser would drop the first silently
        if sum(argument == flag or argument.startswith(f"{flag}=") for argument in flags) > 1:
            raise ConfigError(f"{flag} is given twice; give it once, with all its values")
    if sum(flag.partition("=")[0] == "--reward" for flag in flags) > 1:
        raise ConfigError(
            '--reward is given twice; give one weighted sum: --reward "runs/reward/model + 0.1*length.py:f"'
        )
    _refuse_unknown(flags, cls)
    default: Any = None
    if cls in (commands.Compare, commands.CompareTable, commands.VoteSheet):
        flags = _one_flag_each(flags, "--arms")
    if cls is commands.Compare:
        if flags and not flags[0].startswith("-"):
            flags = ["--task", *flags]
        default = _preset(files, flags)
    elif cls is commands.Sweep:
        flags = _gathered(_one_flag_each(flags, "--also"), "--over")
        default = _sweep_of(_preset(files, flags))
    elif cls is commands.CompareTable and _given("quick", files, flags):
        default = quick_study()
    base = from_files(cls, files, default=default, missing=tyro.MISSING)
    about = f"{cls.__doc__}\n\nAny flag can stand in a YAML file: --config FILE.yaml (repeatable; flags go above it)."
    if cls is commands.Compare and {"-h", "--help"} & set(flags):  # thirty methods' settings would bury the rest
        cls, base = commands.StudyOfArms, _upcast(base, commands.StudyOfArms)
        about += (
            "\n\nSettings of an arm are flags of its method's name: --dpo.loss.beta 0.05 --ppo.updates 48. "
            "`preflab explain METHOD` lists them."
        )
    if cls is commands.Sweep and {"-h", "--help"} & set(flags):
        cls, base = commands.StudyOfValues, _upcast(base, commands.StudyOfValues)
        about += (
            "\n\nSettings that all values share are flags of the method's name: --dpo.epochs 2. "
            "`preflab explain METHOD` lists them."
        )
    if cls is commands.CompareTable and {"-h", "--help"} & set(flags):
        cls, base = commands.TableStudy, _upcast(base, commands.TableStudy)
        about += (
            "\n\nSettings of the reference and of arms are flags too: --fit.epochs 6 --align.rounds 1 "
            "--align.ppo.updates 10. `preflab table fit --help` and `preflab table align --help` list them."
        )
    return check(tyro.cli(cls, args=flags, default=base, prog=f"preflab {name}", description=about))


def _upcast(config: Any, cls: type[Any]) -> Any:
    """The part of a config that a class which it extends has."""
    return cls(**{one.name: getattr(config, one.name) for one in fields(cls)})


def _refuse_unknown(flags: list[str], cls: type[Any]) -> None:
    """Say why there is no such flag where the command knows, and name the right one where its words stand in another
    order; of other unknown flags the parser says what is near.

    Raises:
        ConfigError: there is such a flag.
    """
    names = setting_names(cls)
    switched_off = [re.sub(r"(\w+)$", r"no_\1", name) for name in names]
    for flag in flags:
        asked = flag.partition("=")[0].removeprefix("--").replace("-", "_")
        if not flag.startswith("--") or asked in names or asked in switched_off:
            continue
        if why := refusal(cls, asked):
            raise ConfigError(f"there is no flag --{asked.replace('_', '-')}: {why}")
        if near := nearest_setting(asked, names):
            asked, near = asked.replace("_", "-"), near.replace("_", "-")
            raise ConfigError(f'there is no flag --{asked}; did you mean "--{near}"?')


def _take_files(arguments: list[str]) -> tuple[list[Path], list[str]]:
    """Split --config FILE (or --config=FILE) from the other flags."""
    files: list[Path] = []
    rest: list[str] = []
    waiting = False
    for argument in arguments:
        if waiting:
            files.append(Path(argument))
            waiting = False
        elif argument == "--config":
            waiting = True
        elif argument.startswith("--config="):
            files.append(Path(argument.removeprefix("--config=")))
        else:
            rest.append(argument)
    if waiting:
        raise ConfigError("--config needs a file: --config study.yaml")
    return files, rest


def _one_flag_each(flags: list[str], name: str) -> list[str]:
    """`--arms sft,dpo` and `--arms=sft,dpo` → `--arms sft dpo`, as tyro reads lists."""
    parts: list[str] = []
    inside = False
    for flag in flags:
        if flag.startswith(f"{name}="):
            parts += [name, *flag.removeprefix(f"{name}=").split(",")]
        else:
            parts += flag.split(",") if inside and not flag.startswith("-") else [flag]
        inside = flag == name or (inside and not flag.startswith("-"))
    return parts


def _gathered(flags: list[str], name: str) -> list[str]:
    """`--over a=1,2 --over b=3` → `--over a=1,2 b=3`: one list, at the end."""
    values: list[str] = []
    rest: list[str] = []
    inside = False
    for flag in flags:
        if flag == name:
            inside = True
        elif flag.startswith(f"{name}="):
            values.append(flag.removeprefix(f"{name}="))
            inside = False
        elif inside and not flag.startswith("-"):
            values.append(flag)
        else:
            rest.append(flag)
            inside = False
    return [*rest, name, *values] if values else rest


def _sweep_of(start: commands.Compare) -> commands.Sweep:
    """What `sweep` starts from: what `compare` does."""
    shared = {one.name: getattr(start, one.name) for one in fields(commands.Compare) if one.name != "arms"}
    return commands.Sweep(method=tyro.MISSING, over=tyro.MISSING, **shared)


def _preset(files: list[Path], flags: list[str]) -> commands.Compare:
    """What a study starts from depends on the task and on whether data and a model are given."""
    values: dict[str, Any] = {}
    for file in files:
        values |= read_yaml(file)[0]
    task = str(values.get("task", "reviews"))
    for flag, following in zip(flags, [*flags[1:], ""], strict=False):
        if flag == "--task" or flag.startswith("--task="):
            task = flag.removeprefix("--task=") if "=" in flag else following
    if task == "table":
        raise ConfigError("a table is compared by a command of its own: preflab compare table --help")
    if task not in TASKS:
        raise ConfigError(f'there is no task "{task}"; {nearest(task, (*TASKS, "table"))}')

    def given(flag: str) -> bool:
        return _given(flag, files, flags)

    return preset(task, data=given("data"), model=given("model"), quick=given("quick"))


def _given(flag: str, files: list[Path], flags: list[str]) -> bool:
    """Whether a flag or a YAML file sets it."""
    asked = any(argument == f"--{flag}" or argument.startswith(f"--{flag}=") for argument in flags)
    values: dict[str, Any] = {}
    for file in files:
        values |= read_yaml(file)[0]
    return asked or values.get(flag) not in (None, False)
