"""Rewards of every kind through the real commands."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from preflab.cli.main import COMMANDS, main
from preflab.config import commands
from preflab.config.training import Fit
from preflab.models.load import new_reward_model, save_model
from preflab.runs import read_json, read_lines
from tiny import save_tiny, tiny_pairs, write_jsonl

RATE = ["--optimizer.learning-rate", "1e-2", "--optimizer.warmup-steps", "0"]
SHORT = ["--lengths.response-tokens", "5", "--holdout", "0.3"]
SAMPLED = ["--updates", "1", "--batch.size", "8", "--batch.mini", "8", *SHORT, *RATE]
GRPO = [*SAMPLED, "--responses", "4", "--epochs", "1"]
ONLINE = [
    name.removeprefix("train ")
    for name, command in COMMANDS.items()
    if name.startswith("train ") and issubclass(getattr(commands, command.config), commands.RunOnline)
]
MINE = '''
import pathlib

def length(completions):
    return [-len(text) / 10 for text in completions]

def graded(completions, level):
    return [float(level) if text else 0.0 for text, level in zip(completions, level)]

def each_token(completion_ids):
    return [[token / 100 for token in ids] for ids in completion_ids]

def picky(prompts, completions):
    """Raises once, in the second rollout that it sees."""
    calls = pathlib.Path(__file__).with_name("calls")
    seen = int(calls.read_text()) if calls.exists() else 0
    calls.write_text(str(seen + 1))
    if seen == 1:
        raise ValueError("no opinion")
    return length(completions)
'''
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_tiny(folder / "base")
    save_model(new_reward_model(folder / "base", seed=0), folder / "reward")
    pairs = tiny_pairs(24)
    rows = [{"prompt": pair["prompt"], "answer": "good", "level": number % 5} for number, pair in enumerate(pairs)]
    write_jsonl(folder / "prompts.jsonl", rows)
    texts = [
        {"text": pair["prompt"] + pair[side], "label": int(side == "chosen")}
        for pair in pairs
        for side in pair
        if side != "prompt"
    ]
    write_jsonl(folder / "texts.jsonl", texts)
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], tmp_path: Path, shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `train METHOD` where mine.py is."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)

    def command(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = 0
        try:
            main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return command


def given(shelf: Path, out: str = "out") -> list[object]:
    return ["--model", shelf / "base", "--data", shelf / "prompts.jsonl", "--out", out]


@pytest.mark.parametrize("method", ONLINE)
def test_every_method_that_samples_takes_a_function(method: str, run: Run, shelf: Path) -> None:
    cls = getattr(commands, COMMANDS[f"train {method}"].config)
    flags = ["--rounds", "1", "--batch.size", "64", *SHORT, *RATE] if issubclass(cls, Fit) else SAMPLED
    code, printed, said = run("train", method, *given(shelf), "--reward", "mine.py:length", *flags)
    assert code == 0, said
    assert printed.endswith("model: out/model\n")
    held_out = read_json(Path("out/evaluation.json"))["held_out"]
    assert -5 < held_out["reward"]["mean"] < 0


def test_a_sum_of_every_kind_is_logged_term_by_term(run: Run, shelf: Path) -> None:
    terms = [
        f"rm={shelf / 'reward'}", "0.5*mine.py:length", "2*each=mine.py:each_token", "mine.py:graded",
        f"0.1*fitted:{shelf / 'texts.jsonl'}", "-1*e=regex:e", "verifier:answer:good",
    ]  # fmt: skip
    code, printed, said = run("train", "ppo", *given(shelf), "--reward", " + ".join(terms), *SAMPLED)
    assert code == 0, said
    (line,) = read_lines(Path("out/metrics.jsonl"))
    weights = {"rm": 1, "length": 0.5, "each": 2, "graded": 1, "texts": 0.1, "e": -1, "answer": 1}
    assert {key.partition("/")[2] for key in line if key.startswith("reward/")} == set(weights)
    assert line["reward"] == pytest.approx(sum(weight * line[f"reward/{name}"] for name, weight in weights.items()))
    assert 0 <= line["reward/graded"] <= 4
    assert all(math.isfinite(value) for value in line.values())
    held_out = read_json(Path("out/evaluation.json"))["held_out"]
    parts = sum(weight * held_out[f"reward/{name}"]["mean"] for name, weight in weights.items())
    assert held_out["reward"]["mean"] == pytest.approx(parts)
    assert "reward/length" in printed
    assert "ignored column" not in said


def test_columns_that_no_reward_reads_are_counted(run: Run, shelf: Path) -> None:
    _, _, said = run("train", "grpo", *given(shelf), "--reward", "verifier:answer:good|fine", *GRPO)
    assert "ignored column: level: 24" in said
    assert "ignored column: answer" not in said


@pytest.mark.parametrize(
    ("reward", "code", "message"),
    [
        ("mine.py:lenght", 2, 'there is no function "lenght" in mine.py; did you mean "length"?'),
        ("mien.py:length", 2, 'there is no file mien.py; did you mean "mine.py"?'),
        ("verifier:anwser", 3, 'no column "anwser", which the reward reads; did you mean "answer"?'),
        ("no/such/model", 2, 'there is no model "no/such/model"'),
        ("fitted:none.jsonl", 3, "none.jsonl isn't there"),
        ("regx:a", 2, 'there is no kind of reward "regx"; did you mean "regex"?'),
    ],
)
def test_a_reward_that_is_not_there_is_said_before_anything_is_written(
    reward: str, code: int, message: str, run: Run, shelf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found, _, said = run("train", "grpo", *given(shelf), "--reward", reward, *GRPO)
    assert found == code
    assert message in said
    assert not Path("out").exists()


def test_a_run_that_its_reward_stopped_goes_on_with_nothing_lost(run: Run, shelf: Path) -> None:
    flags = [*GRPO, "--updates", "3", "--evaluations", "3"]
    command = ["train", "grpo", *given(shelf), "--reward", "mine.py:picky", "--reward-cache", "0", *flags]
    code, _, said = run(*command)
    assert code == 4
    assert "reward mine.py:picky raised ValueError: no opinion (mine.py, line 19) on a batch of 8 responses" in said
    crash = read_json(Path("out/crash.json"))
    assert crash["step"] == 2
    assert crash["error"] in said
    assert 'raise ValueError("no opinion")' in crash["traceback"]
    assert len(crash["rows"]) == 2
    assert [line["step"] for line in read_lines(Path("out/metrics.jsonl"))] == [1]
    code, _, said = run(*command)
    assert (code, "going on at step 1" in said) == (0, True)
    assert not Path("out/crash.json").exists()
    whole = ["train", "grpo", *given(shelf, "whole"), "--reward", "mine.py:length", *flags]
    assert run(*whole)[0] == 0
    one, other = (AutoModelForCausalLM.from_pretrained(Path(name) / "model").state_dict() for name in ("out", "whole"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_the_cache_changes_no_weight_and_counts_no_call_twice(run: Run, shelf: Path) -> None:
    """Responses of one token, and many to a prompt: some come again."""
    flags = [*GRPO, "--lengths.response-tokens", "1", "--batch.size", "64", "--batch.mini", "64", "--responses", "32"]
    flags += ["--temperature", "0.3"]
    calls = {}
    for name, size in (("on", "1000"), ("off", "0")):
        reward = ["--reward", "mine.py:length + regex:e", "--reward-cache", size]
        assert run("train", "grpo", *given(shelf, name), *reward, *flags)[0] == 0
        calls[name] = read_json(Path(name) / "evaluation.json")["cost"]["reward_calls"]
    assert calls["off"] == 2 * 64 > calls["on"]
    one, other = (AutoModelForCausalLM.from_pretrained(Path(name) / "model").state_dict() for name in ("on", "off"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_yaml_describes_a_reward_and_the_recorded_settings_are_it(run: Run, shelf: Path) -> None:
    terms = [{"kind": "function", "function": "mine.py:length"}, {"kind": "regex", "pattern": "a + b", "weight": 0.5}]
    Path("r.yaml").write_text(json.dumps({"reward": terms}))
    code, printed, said = run("train", "grpo", *given(shelf), "--config", "r.yaml", *GRPO)
    assert code == 0, said
    again = run("train", "grpo", "--config", "out/config.yaml")
    assert again[:2] == (0, printed)
    assert "is finished already" in again[2]


def test_without_a_reward_model_the_value_model_starts_as_the_policy(run: Run, shelf: Path) -> None:
    still = ["--optimizer.learning-rate", "0", "--value-optimizer.learning-rate", "0"]
    code, printed, said = run("train", "ppo", *given(shelf), "--reward", "mine.py:length", *SAMPLED, *still)
    assert code == 0, said
    (line,) = read_lines(Path("out/metrics.jsonl"))
    assert line["explained_variance"] == pytest.approx(0, abs=1e-6)  # V = 0 everywhere
    code, printed, said = run("train", "ppo", *given(shelf), "--reward", "mine.py:length", *SAMPLED, "--dry-run")
    assert code == 0, said
    assert "peak memory" in printed


def test_pairs_and_evaluate_take_any_reward(run: Run, shelf: Path) -> None:
    reward = ["--reward", "mine.py:length + 2*verifier:answer:good", "--lengths.response-tokens", "5"]
    data = ["--data", shelf / "prompts.jsonl"]
    code, _, said = run("pairs", shelf / "base", *data, *reward, "--out", "pairs.jsonl", "--missing-end-penalty", "0")
    assert code == 0, said
    for line in read_lines(Path("pairs.jsonl")):
        for side in ("chosen", "rejected"):
            right = line[side] == "good"
            assert line[f"{side}_reward"] == pytest.approx(-len(line[side]) / 10 + 2 * right)
    code, printed, said = run(
        "evaluate", shelf / "base", "--reference", shelf / "base", *data, *reward, "--out", "found"
    )
    assert code == 0, said
    assert "reward/length" in printed
    for sample in read_lines(Path("found/samples.jsonl")):
        parts = sample["reward_parts"]
        assert sample["reward"] == pytest.approx(parts["length"] + 2 * parts["answer"])
        assert parts["length"] == pytest.approx(-len(sample["response"]) / 10)
