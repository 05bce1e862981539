"""YAML files and flags become one checked config object, or one sentence that names the place."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
import math
import re
from dataclasses import is_dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import preflab
from preflab.cli.flags import parse
from preflab.cli.main import COMMANDS
from preflab.config import (
    alignment,
    commands,
    online,
    online_preference,
    pair_losses,
    preference,
    row_model,
    sampling,
    table_score,
    table_study,
    tables,
    training,
)
from preflab.config.arms import ALONE, LABELS
from preflab.config.commands import Base, Compare, Generate, Methods, StudyOfValues, TrainDPO, TrainSFT
from preflab.config.load import build, check, flatten, from_files, read_yaml, to_values, to_yaml
from preflab.config.online import PPO, RolloutBatch
from preflab.config.online_preference import IterativeDPO, OnlineDPO, PairBatch, Ranking
from preflab.config.pair_losses import DPOLoss, FDPOLoss, IPOLoss, LengthNormalisedDPOLoss, SFTLoss, SumLoss
from preflab.config.preference import DPO, FDPO, WeightedSum
from preflab.config.presets import preset
from preflab.config.training import Optimizer
from preflab.errors import ConfigError

REQUIRED = ["--model", "m", "--data", "d.jsonl", "--out", "o"]
GIVEN = {
    "model": "m", "data": Path("d"), "out": Path("o"), "reward": "r", "reference": "m", "method": "dpo",
    "arms": ("a", "b"),
    "folder": Path("s"), "run": Path("r"), "rows": 9, "over": ("loss.beta=1",), "train": Path("t.csv"),
    "synthetic": Path("s.csv"),
}  # fmt: skip


def example(cls: Any) -> Any:
    """A config of a command with what it requires, and no more."""
    given = {
        field.name: GIVEN.get(field.name, Path(field.name)) for field in dataclasses.fields(cls) if required(field)
    }
    return cls(**given)


def required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


EXAMPLES = [example(getattr(commands, command.config)) for command in COMMANDS.values()]
MODULES = (training, sampling, pair_losses, preference, online, online_preference, commands)
MODULES += (row_model, tables, table_score, table_study, alignment)
CONFIG_CLASSES = [
    cls
    for module in MODULES
    for cls in vars(module).values()
    if inspect.isclass(cls) and is_dataclass(cls) and cls.__module__ == module.__name__
]


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def train_dpo(*flags: str) -> TrainDPO:
    config = parse("train dpo", "TrainDPO", [*REQUIRED, *flags])
    assert isinstance(config, TrainDPO)
    return config


def test_flags_go_above_later_files_above_earlier_files_above_defaults(tmp_path: Path) -> None:
    a = write(tmp_path / "a.yaml", "loss: {beta: 0.2, label_smoothing: 0.1}\nseed: 1\nbatch: {size: 4}\n")
    b = write(tmp_path / "b.yaml", "loss: {beta: 0.3}\nseed: 2\n")
    config = train_dpo("--config", str(a), "--seed", "3", f"--config={b}")
    assert (config.seed, config.loss.beta, config.loss.label_smoothing, config.batch.size) == (3, 0.3, 0.1, 4)
    assert config.epochs == DPO().epochs
    assert config.optimizer == DPO().optimizer


def test_a_setting_inside_a_group_leaves_the_rest_of_the_group_alone(tmp_path: Path) -> None:
    config = train_dpo("--config", str(write(tmp_path / "a.yaml", "optimizer:\n  warmup_steps: 3\n")))
    assert config.optimizer == replace(DPO().optimizer, warmup_steps=3)


def test_required_settings_may_come_from_a_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "model: m\ndata: d.jsonl\nout: o\n")
    assert parse("train sft", "TrainSFT", ["--config", str(file)]) == TrainSFT(
        model="m", data=Path("d.jsonl"), out=Path("o")
    )


@pytest.mark.parametrize("text", ["1e-6", "1E-6", "1.0e-6", ".000001", "0.000001"])
def test_floats_are_floats(tmp_path: Path, text: str) -> None:
    values, _ = read_yaml(write(tmp_path / "a.yaml", f"learning_rate: {text}\n"))
    assert values["learning_rate"] == 1e-6
    assert type(values["learning_rate"]) is float


def test_words_stay_words_where_words_are_meant(tmp_path: Path) -> None:
    for word in ("no", "yes", "on", "off", "2026-01-01"):
        assert train_dpo_from(tmp_path, f"model: {word}").model == word


def test_no_means_false_where_a_bool_is_meant_and_nothing_where_a_number_is(tmp_path: Path) -> None:
    assert train_dpo_from(tmp_path, "trust_remote_code: no").trust_remote_code is False
    assert train_dpo_from(tmp_path, "trust_remote_code: true").trust_remote_code is True
    for text in ("seed: true", "loss: {beta: true}", "model: false", "loss: {beta: no}", "device: true"):
        with pytest.raises(ConfigError, match=r"a\.yaml:1: "):
            train_dpo_from(tmp_path, text)


def train_dpo_from(folder: Path, text: str) -> TrainDPO:
    file = write(folder / "a.yaml", text + "\n")
    return check(from_files(TrainDPO, [file], missing="m"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed: 1\nloss:\n  bta: 0.1\n", r'a\.yaml:3: there is no setting loss\.bta; did you mean "beta"\?'),
        ("sed: 1\n", r'a\.yaml:1: there is no setting sed; did you mean "seed"\?'),
        ("1: 2\n", r"a\.yaml:1: there is no setting 1; known: "),
        ("batch_size: 4\n", r'a\.yaml:1: there is no setting batch_size; did you mean "batch\.size"\?'),
        ("micro_batch_size: 4\n", r'a\.yaml:1: there is no setting micro_batch_size; did you mean "batch\.micro"\?'),
        ("seed: 1\nlog_every: 2\nseed: 3\n", r"a\.yaml:3: seed is set twice \(first at .*a\.yaml:1\)"),
        ("loss:\n  beta: 1\n  beta: 2\n", r"a\.yaml:3: loss\.beta is set twice"),
        ("loss:\n  beta: -1\n", r"a\.yaml:2: loss\.beta = -1: must be greater than 0"),
        ("loss: 0.1\n", r"a\.yaml:1: loss = 0\.1: "),
        ("loss:\n", r"a\.yaml:1: loss = "),
        ("optimizer: {name: adam}\n", r"a\.yaml:1: optimizer\.name = adam: must be 'adamw' or 'rmsprop'"),
        ("seed: 1.5\n", r"a\.yaml:1: seed = 1\.5: "),
        ("seed: [1]\n", r"a\.yaml:1: seed = \[1\]: "),
        ("- seed\n", r"a\.yaml:1: a configuration is a mapping"),
        ("seed: [1\n", r"a\.yaml:3:1: not valid YAML"),
        ("[seed]: 1\n", r"a\.yaml:1:1: not valid YAML"),
        ("seed: !!python/object:os.system x\n", r"a\.yaml:1:7: not valid YAML"),
        ("loss: &x {beta: *x}\n", r"a\.yaml: a mapping holds itself"),
    ],
)
def test_refused_files(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        train_dpo_from(tmp_path, text)


def test_files_that_can_not_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"model: caf\xe9\n")
    with pytest.raises(ConfigError, match=r"latin\.yaml: not UTF-8 at byte 10"):
        read_yaml(tmp_path / "latin.yaml")
    assert read_yaml(write(tmp_path / "empty.yaml", "# nothing\n")) == ({}, {})


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("loss.beta", "0"),
        ("loss.beta", "-0.1"),
        ("loss.label-smoothing", "0.5"),
        ("optimizer.learning-rate", "nan"),
        ("optimizer.learning-rate", "2"),
        ("optimizer.max-gradient-norm", "0"),
        ("epochs", "0"),
        ("batch.size", "0"),
        ("holdout", "0.6"),
        ("seed", "-1"),
        ("freeze-blocks", "-1"),
    ],
)
def test_out_of_range(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(flag.replace('-', '_'))} = {value}[.\d]*: must be "):
        train_dpo(f"--{flag}", value)


@pytest.mark.parametrize(("flag", "value"), [("kl-coefficient", "-0.1"), ("clip", "1"), ("discount", "1.1")])
def test_out_of_range_for_ppo(flag: str, value: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{flag.replace('-', '_')} = {value}[.\d]*: must be "):
        parse("train ppo", "TrainPPO", [*REQUIRED, "--reward", "r", f"--{flag}", value])


def float_fields() -> list[tuple[type, str]]:
    return [(cls, name) for cls in CONFIG_CLASSES for name, hint in get_type_hints(cls).items() if float in plain(hint)]


def plain(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) or (hint,)


@pytest.mark.parametrize(("cls", "name"), float_fields())
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_no_setting_takes_a_value_that_is_not_finite(cls: type, name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"^{name} = "):
        build(cls, {name: value}, missing="x")


@pytest.mark.parametrize("config", EXAMPLES, ids=lambda config: type(config).__name__)
def test_the_resolved_file_is_itself_a_config(tmp_path: Path, config: Any) -> None:
    file = write(tmp_path / "config.yaml", to_yaml(config))
    assert build(type(config), read_yaml(file)[0]) == config
    # And as anyone else's YAML: no word of ours turns into a bool or a date there.
    assert yaml.safe_load(to_yaml(config)) == to_values(config)


def test_the_resolved_file_gives_the_same_command(tmp_path: Path) -> None:
    first = parse("compare", "Compare", ["dialogue", "--data", "d.jsonl", "--quick", "--dpo.loss.beta", "1e-3"])
    file = write(tmp_path / "study.yaml", to_yaml(first))
    assert parse("compare", "Compare", ["--config", str(file)]) == first
    assert first.dpo.loss.beta == 1e-3
    assert first.task == "dialogue"


numbers = st.floats(min_value=1e-300, max_value=1e300)
words = st.text(st.characters(codec="utf-8", exclude_characters="\0")) | st.sampled_from(
    [
        "no",
        "1e-6",
        "1_0",
        "0x1",
        "12:30",
        "null",
        "~",
        "true",
        ".nan",
        "2026-01-01",
        "- a",
        "a: b",
        "# x",
        "a\u2028b",
        "\x85",
    ]
)


@given(beta=numbers, rate=st.floats(0, 1), model=words, prompt=st.lists(words))
def test_any_values_survive_the_round_trip(
    tmp_path_factory: pytest.TempPathFactory, beta: float, rate: float, model: str, prompt: list[str]
) -> None:
    values = {"model": model, "data": "d", "out": "1e-6", "loss": {"beta": beta}, "optimizer": {"learning_rate": rate}}
    for config in (build(TrainDPO, values), Generate(model=model, prompt=tuple(prompt))):
        file = write(tmp_path_factory.getbasetemp() / "round-trip.yaml", to_yaml(config))
        assert build(type(config), read_yaml(file)[0]) == config


@pytest.mark.parametrize("cls", CONFIG_CLASSES, ids=lambda cls: cls.__name__)
def test_every_field_is_documented(cls: type) -> None:
    assert cls.__doc__
    source = inspect.getsource(cls)
    for name in cls.__annotations__:
        assert re.search(rf'^    {name}: .*\n    """[^"]{{8,}}"""$', source, re.MULTILINE), f"{cls.__name__}.{name}"


def test_every_field_is_read() -> None:
    """An option that does nothing is a fault: each is an attribute that code outside config/ looks at, or stands in a
    pattern that code matches on."""
    source = Path(preflab.__file__).parent
    code = "\n".join(path.read_text() for path in source.rglob("*.py") if path.parent.name != "config")
    holders = (
        r"(?:config|settings|ranking|warp|loss|self\.\w+|config(?:\.\w+)+|settings(?:\.\w+)+|optimizer|fit|budget"
        r"|given)"
    )
    patterns = "\n".join(re.findall(r"^ *case ([^:]+):", code, re.MULTILINE))
    by_name = {
        Methods: {part.replace("-", "_") for part in (*LABELS, *ALONE)},
        StudyOfValues: {"method", "over", "also"},  # what `Sweep.compare` makes a study of
        SumLoss: {"terms", *(part.name for part in dataclasses.fields(SumLoss))},
    }
    unread = [
        f"{cls.__name__}.{name}"
        for cls in CONFIG_CLASSES
        for name in cls.__annotations__
        if not re.search(rf"\b{holders}\.{name}\b|given\(\"{name}\"\)", code)  # given: `compare`'s presets
        and not re.search(rf"\b{cls.__name__}\([^)]*\b{name}=", patterns)
        and name not in by_name.get(cls, ())  # getattr(config, stage.key), and the parts of a sum
    ]
    assert unread == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_config_and_function(name: str) -> None:
    command = COMMANDS[name]
    module, function = command.function.split(":")
    assert is_dataclass(getattr(commands, command.config))
    assert callable(getattr(import_module(f"preflab.cli.{module}"), function))


def test_every_method_is_a_command_an_arm_and_a_setting() -> None:
    trained = {name.removeprefix("train ") for name in COMMANDS if name.startswith("train ")}
    assert trained - {"reward"} == set(LABELS)
    of_compare = {field.name.replace("_", "-") for field in dataclasses.fields(Methods)}
    assert of_compare == set(LABELS) | {"best-of-n"}
    for method in LABELS:
        trainer = getattr(commands, COMMANDS[f"train {method}"].config)
        assert issubclass(trainer, type(getattr(Compare(), method.replace("-", "_")))), method


@pytest.mark.parametrize(
    ("task", "data", "model", "quick"),
    list(itertools.product(("reviews", "dialogue"), *[(False, True)] * 3)),
)
def test_presets_are_in_range(task: str, data: bool, model: bool, quick: bool) -> None:
    config = preset(task, data=data, model=model, quick=quick)
    assert check(config) == config
    assert (config.task, config.quick) == (task, quick)
    assert config.base.width % config.base.heads == 0


def test_the_task_chooses_the_preset_however_it_is_given(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "task: dialogue\n")
    expected = preset("dialogue", data=True)
    for given_task in (["dialogue"], ["--task", "dialogue"], ["--task=dialogue"], ["--config", str(file)]):
        config = parse("compare", "Compare", [*given_task, "--data", "d"])
        assert config == replace(expected, data=Path("d")), given_task


def test_arms_are_given_with_commas_or_spaces() -> None:
    for flags in (["--arms", "sft,dpo"], ["--arms", "sft", "dpo"], ["--arms=sft,dpo"]):
        assert parse("compare", "Compare", flags).arms == ("sft", "dpo")


def a_sum(terms: str, **parts: Any) -> WeightedSum:
    return WeightedSum(loss=SumLoss(terms=terms, **parts))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PPO(batch=RolloutBatch(size=128, mini=48)), "batch.mini = 48 does not divide batch.size = 128; try 32"),
        (Compare(ppo=PPO(batch=RolloutBatch(size=8, mini=16))), "ppo.batch.mini = 16 does not divide .* try 8"),
        (Compare(base=Base(width=100, heads=3)), "base.width = 100 is no multiple of heads = 3"),
        (FDPO(loss=FDPOLoss(alpha=0.3)), "loss.alpha = 0.3 has no effect with divergence = jensen_shannon"),
        (OnlineDPO(ranking=Ranking(temperatures=(1.0,))), r"ranking.temperatures = \[1.0\]: .* two temperatures"),
        (IterativeDPO(ranking=Ranking(temperatures=())), r"ranking.temperatures = \[\]: a pair needs two responses"),
        (OnlineDPO(batch=PairBatch(size=12, mini=8)), "batch.mini = 8 does not divide batch.size = 12; try 6"),
        (Compare(online_dpo=OnlineDPO(batch=PairBatch(size=12, mini=8))), "online_dpo.batch.mini = 8 does not"),
        (a_sum("dpo", ipo=IPOLoss(tau=0.3)), "loss.ipo.* has no effect: terms = dpo does not name ipo"),
        (a_sum("f-dpo", f_dpo=FDPOLoss(alpha=0.3)), "loss.f_dpo.alpha = 0.3 has no effect"),
        (a_sum("dpo + sfft"), r'terms = dpo \+ sfft: there is no loss "sfft"; did you mean "sft"'),
        (a_sum("dpo + "), 'there is no loss ""'),
        (a_sum(""), 'there is no loss ""'),
        (a_sum("0*dpo"), 'the weight "0" must be a number > 0'),
        (a_sum("dpo + -1*sft"), 'the weight "-1" must be a number > 0'),
        (a_sum("nan*dpo"), 'the weight "nan" must be'),
        (a_sum("inf*dpo"), 'the weight "inf" must be'),
        (a_sum("two*dpo"), 'the weight "two" must be'),
        (a_sum("dpo + 2*dpo"), "dpo is named twice"),
    ],
)
def test_settings_that_do_not_fit_each_other(config: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(config)


@pytest.mark.parametrize("method", ["ppo", "grpo", "dr-grpo", "dapo", "rloo", "reinforce"])
@pytest.mark.parametrize("name", ["top_k", "top_p", "repetition_penalty"])
def test_what_would_break_importance_ratios_is_refused_with_the_reason(tmp_path: Path, method: str, name: str) -> None:
    """As a flag, in a file, and as an arm's setting."""
    file, flag = write(tmp_path / "a.yaml", f"seed: 1\n{name}: 2\n"), name.replace("_", "-")
    in_arm = write(tmp_path / "b.yaml", f"{method.replace('-', '_')}: {{{name}: 2}}\n")
    given = [*REQUIRED, "--reward", "r"]
    why = rf".* another distribution than the policy's, and importance ratios.* use online-dpo \(ranking\.{name}\)"
    trainer = COMMANDS[f"train {method}"].config
    for command, class_name, flags, place in (
        (f"train {method}", trainer, [*given, f"--{flag}", "2"], rf"^there is no flag --{flag}: "),
        (f"train {method}", trainer, [*given, "--config", str(file)], rf"a\.yaml:2: there is no setting {name}: "),
        ("compare", "Compare", [f"--{method}.{flag}=2"], rf"^there is no flag --{method}\.{flag}: "),
        ("compare", "Compare", ["--config", str(in_arm)], rf"b\.yaml:1: there is no setting \w+\.{name}: "),
    ):
        with pytest.raises(ConfigError, match=place + why):
            parse(command, class_name, flags)


def test_methods_without_ratios_take_it() -> None:
    config = parse(
        "train online-dpo", "TrainOnlineDPO", [*REQUIRED, "--reward", "r", "--ranking.top-k", "9", "--ranking.top-p=.5"]
    )
    assert (config.ranking.top_k, config.ranking.top_p, config.ranking.repetition_penalty) == (9, 0.5, 1.0)
    assert config.ranking.alters
    assert not Ranking().alters


def test_terms_of_a_sum_are_its_weights_and_losses() -> None:
    loss = SumLoss(terms=" dpo+ .25 * ln-dpo + 1e-1*sft", dpo=DPOLoss(beta=0.7))
    assert loss.parts == [(1.0, DPOLoss(beta=0.7)), (0.25, LengthNormalisedDPOLoss()), (0.1, SFTLoss())]
    flags = ["--loss.terms", "ipo + 0.5*sft", "--loss.ipo.tau", "0.3"]
    config = parse("train sum", "TrainWeightedSum", [*REQUIRED, *flags])
    assert config.loss.parts == [(1.0, IPOLoss(tau=0.3)), (0.5, SFTLoss())]


def test_help_of_compare_leaves_out_the_settings_of_thirty_methods(capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        with pytest.raises(SystemExit) as stopped:
            parse("compare", "Compare", ["dialogue", flag, "--dpo.loss.beta", "0.2"])
        assert stopped.value.code == 0
        about, _, said = capsys.readouterr().out.partition("lists them.")
        assert all(f"--{name}" in said for name in ("arms", "chain-reference", "choose-by", "base.width", "pairs"))
        assert not any(f"--{method}." in said for method in LABELS)
        assert "--dpo.loss.beta" in about  # how to set them is said above
        assert "160" in said  # the defaults of dialogue: lengths.prompt_tokens


def test_a_file_and_a_flag_may_make_sizes_that_fit_together(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml", "ppo: {batch: {size: 48}}\n")
    config = parse("compare", "Compare", ["--config", str(file), "--ppo.batch.mini", "16"])
    assert (config.ppo.batch.size, config.ppo.batch.mini) == (48, 16)


def test_build_takes_what_is_not_given_from_the_default() -> None:
    default = Optimizer(learning_rate=0.5, warmup_steps=1)
    assert build(Optimizer, {"warmup_steps": 2}, default=default) == Optimizer(learning_rate=0.5, warmup_steps=2)


def test_flatten_names_every_leaf() -> None:
    flat = flatten(to_values(Compare()))
    assert flat["dpo.loss.beta"] == 0.1
    assert not any(isinstance(value, dict) for value in flat.values())
    assert dataclasses.is_dataclass(Compare)
