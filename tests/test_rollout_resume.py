"""A run that dies in the middle of a rollout begins that rollout anew, and ends where an unbroken run does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch

import sampled_runs
from preflab.errors import Interrupted
from preflab.runs import RunFolder, read_lines
from sampled_runs import PROMPTS, UPDATES, Call, Weights, Witness, seen
from untimed import untimed

Whole = Callable[[str], tuple[Weights, RunFolder, list[Call]]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    """A run that nothing stopped, one a method."""

    @cache
    def run(method: str) -> tuple[Weights, RunFolder, list[Call]]:
        folder = tmp_path_factory.mktemp(method)
        weights, run = sampled_runs.train(method, folder / "run", Witness(folder / "seen"))
        return weights, run, seen(folder / "seen")

    return run


def ends_like(method: str, folder: Path, whole: Whole) -> tuple[list[Call], list[Call]]:
    """Goes on, and compares all there is with the unbroken run: weights and log bit for bit, and what was sampled.

    Returns:
        what the reward saw until the run broke off, and after that.
    """
    weights, full, calls = whole(method)
    before = seen(folder / "run-seen")
    assert before == calls[: len(before)]
    again, run = sampled_runs.train(method, folder / "run", Witness(folder / "after"))
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[name], weights[name]) for name in weights)
    assert untimed(read_lines(run.metrics)) == untimed(read_lines(full.metrics))
    after = seen(folder / "after")
    # The rollouts since the checkpoint come once more, that in which the run broke off among them, and no other.
    assert calls[-len(after) :] == after
    assert len(calls) - len(after) <= len(before)
    return before, after


class BrokenOff(BaseException):
    """No error that anyone could mean to catch."""


def break_off() -> None:
    raise BrokenOff


def test_a_run_killed_while_it_samples_ends_as_an_unbroken_one(
    whole: Whole, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """kill −9 in the fourth rollout, an update after the checkpoint of step 2."""
    command = [sys.executable, sampled_runs.__file__, "ppo", str(tmp_path / "run"), "4"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(read_lines(RunFolder(tmp_path / "run").metrics)) == 3
    before, after = ends_like("ppo", tmp_path, whole)
    assert (len(before), len(after)) == (3, 4)
    assert "going on at step 2 of" in capfd.readouterr().err.replace("\n", "")


@pytest.mark.parametrize(("method", "rollout"), [("ppo", 1), ("online-dpo", 3), ("grpo", 6), ("ppo", 6)])
def test_a_run_that_breaks_off_anywhere_in_sampling_ends_as_an_unbroken_one(
    method: str, rollout: int, whole: Whole, tmp_path: Path
) -> None:
    """In the first rollout, right after a checkpoint, and right before one."""
    reward = Witness(tmp_path / "run-seen")
    with pytest.raises(BrokenOff), sampled_runs.Stopped(reward, rollout, break_off):
        sampled_runs.train(method, tmp_path / "run", reward)
    before, _ = ends_like(method, tmp_path, whole)
    assert len(before) == rollout - 1


def test_a_run_that_breaks_off_in_its_reward_samples_that_rollout_again(whole: Whole, tmp_path: Path) -> None:
    def in_the_sixth(rollout: int) -> None:
        if rollout == 6:
            break_off()

    with pytest.raises(BrokenOff):
        sampled_runs.train("grpo", tmp_path / "run", Witness(tmp_path / "run-seen", in_the_sixth))
    before, after = ends_like("grpo", tmp_path, whole)
    assert len(before) == 6
    assert len(before) + len(after) > len(whole("grpo")[2])


@pytest.mark.parametrize("method", ["grpo", "online-dpo"])
def test_a_request_to_stop_waits_for_the_end_of_the_update(method: str, whole: Whole, tmp_path: Path) -> None:
    """SIGTERM while the third rollout is sampled: its update is finished and saved, and nothing comes twice."""
    reward = Witness(tmp_path / "run-seen")
    with (
        pytest.raises(Interrupted),
        sampled_runs.Stopped(reward, 3, lambda: os.kill(os.getpid(), signal.SIGTERM)),
    ):
        sampled_runs.train(method, tmp_path / "run", reward)
    before, after = ends_like(method, tmp_path, whole)
    assert len(before) >= 3
    assert before + after == whole(method)[2]


def test_a_second_request_stops_in_the_rollout(whole: Whole, tmp_path: Path) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)

    reward = Witness(tmp_path / "run-seen")
    with pytest.raises(KeyboardInterrupt), sampled_runs.Stopped(reward, 4, twice):
        sampled_runs.train("ppo", tmp_path / "run", reward)
    before, after = ends_like("ppo", tmp_path, whole)
    assert (len(before), len(after)) == (3, 4)


@pytest.mark.parametrize(("method", "responses"), sampled_runs.RESPONSES.items())
def test_the_unbroken_runs_visit_each_prompt_once_an_epoch_and_learn(method: str, responses: int, whole: Whole) -> None:
    """What is compared above is no run that stands still, nor one that repeats itself."""
    _, run, calls = whole(method)
    visits = [tuple(prompt) for call in calls for prompt, _ in call[::responses]]
    assert len(visits) > 3 * PROMPTS
    for begin in range(0, len(visits) - PROMPTS + 1, PROMPTS):
        assert len(set(visits[begin : begin + PROMPTS])) == PROMPTS
    assert len({line["kl_nats"] for line in read_lines(run.metrics)}) == UPDATES
    assert len({tuple(response) for call in calls for _, response in call}) > 20
