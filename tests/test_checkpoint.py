"""A run that is stopped, killed or finds its checkpoint damaged goes on as if nothing had been."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

import resumable
from preflab.errors import Interrupted, StorageError
from preflab.runs import RunFolder, read_json, read_lines
from preflab.training import checkpoint
from tiny import save_tiny
from untimed import untimed

METHODS = ["dpo", "ppo-adaptive", "grpo"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[resumable.Weights, RunFolder]]:
    """A run of ten steps that nothing stopped, one a method."""

    @cache
    def run(method: str) -> tuple[resumable.Weights, RunFolder]:
        return resumable.train(method, tmp_path_factory.mktemp(method) / "run", lambda step: None)

    return run


Whole = Callable[[str], tuple[resumable.Weights, RunFolder]]


def killed(method: str, folder: Path, where: str, step: int) -> None:
    command = [sys.executable, resumable.__file__, method, str(folder), where, str(step)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def same_weights(first: resumable.Weights, second: resumable.Weights) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(first[name], second[name]) for name in first)


def on_disk(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.checkpoints.iterdir())


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_while_it_saves_goes_on_bit_for_bit(
    method: str, whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """kill −9 between the weights and the manifest of step 8: the older checkpoint counts, the debris goes."""
    weights, full = whole(method)
    run = RunFolder(tmp_path / "run")
    killed(method, run.path, "saving", 8)
    assert len(on_disk(run)) == 3
    assert {"step-2", "step-5"} < set(on_disk(run))
    found = checkpoint.latest(run.checkpoints)
    assert found is not None
    assert found.step == 5
    assert len(read_lines(run.metrics)) == 8

    again, _ = resumable.train(method, run.path, lambda step: None)
    assert f"going on at step 5 of {run.path}" in capfd.readouterr().err.replace("\n", "")
    assert same_weights(again, weights)
    assert untimed(read_lines(run.metrics)) == untimed(read_lines(full.metrics))
    assert on_disk(run) == ["step-10", "step-8"]


def test_a_run_killed_outside_a_save_goes_on_bit_for_bit(whole: Whole, tmp_path: Path) -> None:
    """And a line of metrics.jsonl that was cut short is written again."""
    weights, full = whole("ppo")
    run = RunFolder(tmp_path / "run")
    killed("ppo", run.path, "evaluating", 8)
    with open(run.metrics, "a") as file:
        file.write('{"step": 9, "rew')
    seen: list[int] = []
    again, _ = resumable.train("ppo", run.path, seen.append)
    assert seen == [8, 10]
    assert same_weights(again, weights)
    assert untimed(read_lines(run.metrics)) == untimed(read_lines(full.metrics))
    costs = [
        read_json(folder / "step-10" / "manifest.json")["state"]["cost"]
        for folder in (run.checkpoints, full.checkpoints)
    ]
    for cost in costs:
        assert cost.pop("wall_seconds") > 0
        assert cost.pop("peak_memory_bytes") > 0
    assert costs[0] == costs[1]


def stop_at(step: int, number: int = signal.SIGTERM) -> Callable[[int], None]:
    def evaluate(done: int) -> None:
        if done == step:
            os.kill(os.getpid(), number)

    return evaluate


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_is_obeyed_after_the_step_and_the_run_goes_on(
    number: int, code: int, whole: Whole, tmp_path: Path
) -> None:
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted, match="after step 5") as stopped:
        resumable.train("dpo", tmp_path / "run", stop_at(5, number))
    assert stopped.value.exit_code == code
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    weights, full = whole("dpo")
    again, run = resumable.train("dpo", tmp_path / "run", lambda step: None)
    assert same_weights(again, weights)
    assert untimed(read_lines(run.metrics)) == untimed(read_lines(full.metrics))


def test_a_finished_run_is_not_trained_again(tmp_path: Path) -> None:
    first, run = resumable.train("dpo", tmp_path / "run", lambda step: None)
    lines = read_lines(run.metrics)
    seen: list[int] = []
    again, _ = resumable.train("dpo", tmp_path / "run", seen.append)
    assert same_weights(first, again)
    assert seen == []
    assert read_lines(run.metrics) == lines


@pytest.mark.parametrize("method", METHODS)
def test_a_restore_without_the_optimiser_would_be_noticed(
    method: str, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tests above can fail: leave one thing out, and the weights are others."""
    with pytest.raises(Interrupted):
        resumable.train(method, tmp_path / "run", stop_at(5))
    restore = checkpoint.restore
    monkeypatch.setattr(checkpoint, "restore", lambda found, models, optimizers: restore(found, models, {}))
    again, _ = resumable.train(method, tmp_path / "run", lambda step: None)
    assert not same_weights(again, whole(method)[0])


@pytest.mark.parametrize(("method", "kept"), [("ppo-adaptive", "kl_coefficient"), ("grpo", "prompts")])
def test_a_restore_without_the_methods_memory_would_be_noticed(
    method: str, kept: str, whole: Whole, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(Interrupted):
        resumable.train(method, tmp_path / "run", stop_at(5))
    latest = checkpoint.latest

    def forgetful(folder: Path) -> checkpoint.Checkpoint | None:
        found = latest(folder)
        if found is not None:
            del found.state["memory"][kept]
        return found

    monkeypatch.setattr(checkpoint, "latest", forgetful)
    again, _ = resumable.train(method, tmp_path / "run", lambda step: None)
    assert not same_weights(again, whole(method)[0])


def test_the_runs_above_use_what_they_are_there_for(whole: Whole) -> None:
    adaptive, dynamic = (read_lines(whole(method)[1].metrics) for method in ("ppo-adaptive", "grpo"))
    assert len({line["kl_coefficient"] for line in adaptive}) > 5
    assert len({line["optimizer_steps"] for line in adaptive}) > 1
    assert len({line["dropped_responses"] for line in dynamic}) > 1


@pytest.mark.parametrize("step", [5, 8])
def test_a_killed_run_meets_each_prompt_once_an_epoch_all_the_same(step: int, whole: Whole, tmp_path: Path) -> None:
    """With dynamic sampling the place in the prompts is no function of the step."""
    weights, full = whole("grpo")
    with pytest.raises(Interrupted):
        resumable.train("grpo", tmp_path / "run", stop_at(step))
    again, run = resumable.train("grpo", tmp_path / "run", lambda step: None)
    states = [read_json(r.checkpoints / "step-10" / "manifest.json")["state"]["memory"] for r in (run, full)]
    assert states[0] == states[1]
    sampled = sum(line["dropped_responses"] + 8 for line in read_lines(full.metrics))
    assert states[0] == {"prompts": sampled // 2}
    assert same_weights(again, weights)


class Parts(NamedTuple):
    models: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]


def parts() -> Parts:
    """A small model and an optimiser with state."""
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Parts({"policy": model}, {"policy": optimizer})


def two_checkpoints(folder: Path) -> Path:
    for step in (3, 6):
        checkpoint.save(folder, step, *parts(), {"cost": {"wall_seconds": 1.5, "trained_tokens": step}})
    return folder / "step-6"


FILES = ["policy.safetensors", "policy.optimizer.safetensors", "manifest.json"]


def delete(file: Path) -> None:
    file.unlink()


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-3])


def empty(file: Path) -> None:
    file.write_bytes(b"")


def test_these_are_all_the_files(tmp_path: Path) -> None:
    assert sorted(path.name for path in two_checkpoints(tmp_path).iterdir()) == sorted(FILES)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [delete, truncate, empty])
def test_a_damaged_file_is_named_and_the_older_checkpoint_used(
    name: str, damage: Callable[[Path], None], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    newest = two_checkpoints(tmp_path)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.state["cost"]["trained_tokens"]) == (6, 6)
    assert capfd.readouterr().err == ""
    damage(newest / name)
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert (found.step, found.state["cost"]["trained_tokens"]) == (3, 3)
    said = capfd.readouterr().err
    assert str(newest / name) in said
    assert "older checkpoint" in said


@pytest.mark.parametrize("name", FILES)
def test_one_flipped_bit_anywhere_is_found(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A bit of each byte of the manifest (it says what the others should be), and of some bytes of the others."""
    newest = two_checkpoints(tmp_path)
    content = (newest / name).read_bytes()
    for bit in range(0, 8 * len(content), 9 if name == "manifest.json" else 63):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        (newest / name).write_bytes(flipped)
        found = checkpoint.latest(tmp_path)
        assert found is not None
        if found.step == 6:  # a flip that JSON reads as the same manifest
            assert name == "manifest.json"
            assert found.state == {"cost": {"wall_seconds": 1.5, "trained_tokens": 6}}
    said = capfd.readouterr().err
    assert said.count("warning:") > len(content) / 9
    assert str(newest / name) in said


def test_with_no_whole_checkpoint_the_run_starts_over_and_says_so(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert checkpoint.latest(tmp_path / "none") is None
    two_checkpoints(tmp_path)
    for step in (3, 6):
        delete(tmp_path / f"step-{step}" / FILES[0])
    assert checkpoint.latest(tmp_path) is None
    assert "starting over" in capfd.readouterr().err


def test_the_newest_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 10, 9, 30):
        checkpoint.save(tmp_path, step, *parts(), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10", "step-30"]


def test_models_and_optimisers_come_back_as_they_were(tmp_path: Path) -> None:
    saved = parts()
    checkpoint.save(tmp_path, 1, *saved, {})
    other = parts()
    model, optimizer = other.models["policy"], other.optimizers["policy"]
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    found = checkpoint.latest(tmp_path)
    assert found is not None
    checkpoint.restore(found, *other)
    assert same_weights(model.state_dict(), saved.models["policy"].state_dict())
    ours, theirs = (o.state_dict()["state"] for o in (optimizer, saved.optimizers["policy"]))
    assert ours.keys() == theirs.keys() == {0, 1}
    assert all(torch.equal(ours[i][key], theirs[i][key]) for i in ours for key in ours[i])


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, *parts(), {})
    found = checkpoint.latest(tmp_path)
    assert found is not None
    with pytest.raises(StorageError, match="does not fit this run"):
        checkpoint.restore(found, {"policy": nn.Linear(4, 4)}, {})


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    two_checkpoints(tmp_path)
    usage: Any = shutil._ntuple_diskusage  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(1000, 999, 1))
    with pytest.raises(StorageError, match=r"needs 9.6e-08 GB, 1e-09 GB are free; free space or") as refused:
        checkpoint.save(tmp_path, 9, *parts(), {})
    assert refused.value.exit_code == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-6"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """The system refuses to write files above `size` bytes: a disk that fills up in the middle of a file."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [0, 100, 300, 463])
def test_a_disk_that_fills_up_leaves_the_older_checkpoints_alone(size: int, tmp_path: Path) -> None:
    two_checkpoints(tmp_path)
    with largest_file(size), pytest.raises(StorageError, match=r"can't write .*step-9") as stopped:
        checkpoint.save(tmp_path, 9, *parts(), {})
    assert stopped.value.exit_code == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-3", "step-6"]
    found = checkpoint.latest(tmp_path)
    assert found is not None
    assert found.step == 6


def test_a_model_that_does_not_fit_leaves_the_old_one(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with largest_file(50_000), pytest.raises(StorageError, match=r"can't write .*model"):
        save_tiny(folder, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
