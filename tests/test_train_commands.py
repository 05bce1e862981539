"""Every training command, one step of it, in this process: what it says, and what it leaves in its run folder."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from preflab.cli.main import COMMANDS, main
from preflab.config import commands
from preflab.config.load import build, read_yaml
from preflab.config.preference import Preference, Unpaired
from preflab.config.training import Fit
from preflab.models.load import new_reward_model, save_model
from preflab.runs import read_json, read_lines
from tiny import save_tiny, tiny_pairs, write_jsonl

TRAIN = [name for name in COMMANDS if name.startswith("train ")]
RATE = ["--optimizer.learning-rate", "1e-2", "--optimizer.warmup-steps", "0"]
OFFLINE = ["--batch.size", "64", *RATE]
SAMPLED = ["--updates", "1", "--batch.size", "8", "--batch.mini", "8", "--lengths.response-tokens", "6", *RATE]
ROUNDS = ["--rounds", "1", "--batch.size", "64", "--lengths.response-tokens", "6", *RATE]
FILES = {"config.yaml", "environment.json", "metrics.jsonl", "evaluation.json", "model", "checkpoints"}
Run = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, a reward model and data; no test writes here."""
    folder = tmp_path_factory.mktemp("shelf")
    save_tiny(folder / "base")
    save_model(new_reward_model(folder / "base", seed=0), folder / "reward")
    pairs = tiny_pairs(24)
    write_jsonl(folder / "pairs.jsonl", pairs)
    marked = [
        {"prompt": pair["prompt"], "completion": pair[side], "label": side == "chosen"}
        for number, pair in enumerate(pairs)
        for side in ("chosen", "rejected")
        if side == "chosen" or number % 3  # more desirable ones than others
    ]
    write_jsonl(folder / "marked.jsonl", marked)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command to its end, and returns what it printed and said."""
    monkeypatch.setenv("COLUMNS", "200")

    def command(*arguments: object) -> tuple[str, str]:
        capfd.readouterr()
        main([str(argument) for argument in arguments])
        captured = capfd.readouterr()
        return captured.out, captured.err

    return command


def flags_of(name: str, shelf: Path) -> list[object]:
    cls = getattr(commands, COMMANDS[name].config)
    if not issubclass(cls, commands.RunOnline):
        return OFFLINE
    return ["--reward", shelf / "reward", *(ROUNDS if issubclass(cls, Fit) else SAMPLED)]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    return state


@pytest.mark.parametrize("name", TRAIN)
def test_every_command_trains_and_keeps_the_contract_of_its_run_folder(
    name: str, run: Run, shelf: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    given = ["--model", shelf / "base", "--data", shelf / "pairs.jsonl", "--out", out]
    printed, said = run(*name.split(), *given, *flags_of(name, shelf))
    assert printed.startswith("held out:\n")
    assert printed.endswith(f"model: {out / 'model'}\n")
    assert "warning" not in said

    present = {path.name for path in out.iterdir()}
    assert present >= (FILES - {"checkpoints"} if name == "train iterative-dpo" else FILES)
    lines = read_lines(out / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1]
    assert all(math.isfinite(value) for value in lines[0].values())
    found = read_json(out / "evaluation.json")
    assert found["held_out"]
    assert all(value["low"] <= value["mean"] <= value["high"] for value in found["held_out"].values())
    assert found["cost"]["trained_tokens"] > 0
    assert found["counts"]["read"] == 24

    if name == "train reward":
        model = AutoModelForSequenceClassification.from_pretrained(out / "model")
        assert model.config.num_labels == 1
        assert "calibration" in found
    else:
        before, after = weights(shelf / "base"), weights(out / "model")
        assert all(value.isfinite().all() for value in after.values())
        assert any(not torch.equal(value, before[key]) for key, value in after.items())

    # The resolved configuration is a configuration, and says the same.
    cls: Any = getattr(commands, COMMANDS[name].config)
    config = build(cls, read_yaml(out / "config.yaml")[0])
    assert config.out == out
    assert config.optimizer.learning_rate == 1e-2
    again, said = run(*name.split(), "--config", out / "config.yaml")
    assert again == printed
    assert "is finished already" in said


def of_kind(kind: type) -> list[str]:
    return [name for name in TRAIN if issubclass(getattr(commands, COMMANDS[name].config), kind)]


@pytest.mark.parametrize("name", of_kind(Preference))
def test_methods_on_pairs_print_loss_accuracy_and_margin(name: str, run: Run, shelf: Path, tmp_path: Path) -> None:
    given = ["--model", shelf / "base", "--data", shelf / "pairs.jsonl", "--out", tmp_path / "out"]
    printed, _ = run(*name.split(), *given, *OFFLINE, "--epochs", "3", "--batch.size", "21", "--log-every", "1")
    assert re.findall(r"^  (\w+) ", printed, re.MULTILINE) == ["loss", "accuracy", "margin"]
    first, *_, last = read_lines(tmp_path / "out" / "metrics.jsonl")
    assert last["loss"] < first["loss"]
    start = tmp_path / "out" / "start.json"
    assert start.exists() is (name.split()[1] not in ("simpo", "cpo", "orpo"))


@pytest.mark.parametrize("name", of_kind(Unpaired))
@pytest.mark.parametrize("data", ["marked.jsonl", "pairs.jsonl"])
def test_methods_on_marked_responses_take_them_alone_or_from_pairs(
    name: str, data: str, run: Run, shelf: Path, tmp_path: Path
) -> None:
    given = ["--model", shelf / "base", "--data", shelf / data, "--out", tmp_path / "out", "--log-every", "1"]
    printed, said = run(*name.split(), *given, *OFFLINE, "--batch.size", "16", "--epochs", "6", "--holdout", "0.2")
    assert re.findall(r"^  (\w+) ", printed, re.MULTILINE) == ["loss", "accuracy"]
    first, *_, last = read_lines(tmp_path / "out" / "metrics.jsonl")
    assert last["loss"] < first["loss"]
    assert last["desirable_reward"] > last["undesirable_reward"]
    if data == "marked.jsonl":
        assert "desirable: 24" in said
        assert "undesirable: 16" in said
    else:
        assert "responses taken from pairs: 48" in said
    assert read_json(tmp_path / "out" / "evaluation.json")["held_out"]["accuracy"]["mean"] > 0.6


def test_methods_differ_in_the_models_they_make(run: Run, shelf: Path, tmp_path: Path) -> None:
    """One data set, one step, one rate: the names on the command line are not one trainer."""
    made = {}
    for name in (*of_kind(Preference), *of_kind(Unpaired)):
        out = tmp_path / name.split()[1]
        given = ["--model", shelf / "base", "--data", shelf / "pairs.jsonl", "--out", out]
        run(*name.split(), *given, *OFFLINE, "--epochs", "2", "--batch.size", "21", "--optimizer.name", "rmsprop")
        made[name] = weights(out / "model")["transformer.h.0.mlp.c_fc.weight"]
    for name, weight in made.items():
        assert sum(torch.equal(weight, other) for other in made.values()) == 1, name


def test_dropout_in_the_model_s_configuration_stays_off(run: Run, shelf: Path, tmp_path: Path) -> None:
    """A model that was trained with dropout starts at its own reference all the same."""
    base = tmp_path / "base"
    save_tiny(base)
    config = read_json(base / "config.json")
    (base / "config.json").write_text(json.dumps(config | {"resid_pdrop": 0.5, "attn_pdrop": 0.5, "embd_pdrop": 0.5}))
    run("train", "dpo", "--model", base, "--data", shelf / "pairs.jsonl", "--out", tmp_path / "out", *OFFLINE)
    assert read_json(tmp_path / "out" / "start.json")["largest_logratio_nats"] < 1e-4


def test_mistakes_in_the_data_are_said(run: Run, shelf: Path, tmp_path: Path) -> None:
    """Responses that begin with their prompt, and responses that lose their end."""
    pairs = [pair | {side: pair["prompt"] + pair[side] for side in ("chosen", "rejected")} for pair in tiny_pairs(24)]
    data = write_jsonl(tmp_path / "repeated.jsonl", pairs)
    given = ["train", "dpo", "--model", shelf / "base", *OFFLINE]
    _, said = run(*given, "--data", data, "--out", tmp_path / "repeated")
    assert "warning: 100% of the responses begin with their prompt" in said
    short = ["--lengths.response-tokens", "3"]
    _, said = run(*given, "--data", shelf / "pairs.jsonl", "--out", tmp_path / "short", *short)
    assert "warning: 100% of the responses have no end token" in said
