"""What both loops share: resume, evaluate, save, stop when asked, and say where it broke."""

from __future__ import annotations

import math
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, Protocol

import torch
from torch import nn

from preflab.errors import Interrupted, NumericError
from preflab.progress import say
from preflab.runs import RunFolder, write_json
from preflab.training import checkpoint
from preflab.training.cost import Cost, Stopwatch

Evaluate = Callable[[int], None]
"""Called with the number of finished steps; reads the policy, changes nothing."""
Spent = Callable[[Cost], float]
"""The cost of a run so far → the share of its budget that is spent; the run ends after the step that makes it 1."""

SECONDS_BETWEEN_SAVES = 120.0
ROUNDING = 1e-9


class Learner(Protocol):
    """What is kept of an optimiser: a `Stepper` has it."""

    @property
    def optimizer(self) -> torch.optim.Optimizer: ...
    @property
    def masters(self) -> nn.ParameterList: ...


class Session:
    """One run of one method in its folder, from start or from its newest checkpoint."""

    def __init__(
        self,
        run: RunFolder,
        models: Mapping[str, nn.Module],
        steppers: Mapping[str, Learner],
        *,
        marks: Sequence[int],
        evaluate: Evaluate | None,
        spent: Spent | None = None,
    ) -> None:
        self.run, self.marks, self.evaluate, self.spent = run, set(marks), evaluate, spent
        self.total, self.evaluations = max(marks), len(self.marks)
        masters = {f"{name}.masters": stepper.masters for name, stepper in steppers.items() if len(stepper.masters)}
        self.models: dict[str, nn.Module] = {**models, **masters}
        self.optimizers = {name: stepper.optimizer for name, stepper in steppers.items()}
        self.cost = Cost()
        self.memory: dict[str, float] = {}  # what a method keeps between steps, part of every checkpoint
        self.start = 0
        found = checkpoint.latest(run.checkpoints)
        if found is not None:
            checkpoint.restore(found, self.models, self.optimizers)
            self.start, self.cost = found.step, Cost(**found.state["cost"])
            self.memory = dict(found.state.get("memory", {}))
            say(f"going on at step {found.step} of {run.path}")
        self.begun = 0.0 if spent is None else spent(Cost())  # what was spent before this run, say on a reward model
        self.progress = self._progress(self.start)
        self.crossed = False  # whether the last step passed a point at which a run with a budget is evaluated
        run.rewind(self.start)
        (run.path / "crash.json").unlink(missing_ok=True)  # of an earlier start; it would seem to be of this one
        self.saved_at = time.monotonic()
        self.stop_signal: int | None = None

    @property
    def over(self) -> bool:
        """All is done, or the budget is spent."""
        return self.progress >= 1

    def steps(self) -> Iterator[int]:
        """The steps to take, 0, 1, …, as long as the budget lasts."""
        for number in range(self.start, self.total):
            if self.over:
                return
            yield number

    @contextmanager
    def step(self, step: int, origins: Callable[[], Sequence[str]]) -> Iterator[None]:
        """Time step 0, 1, …; on a non-finite value, crash.json names its rows and, counted from 1, the step."""
        try:
            with Stopwatch(self.cost):
                yield
            before, self.progress = self.progress, self._progress(step + 1)
            self.crossed = self._passed(before) < self._passed(self.progress)
        except NumericError as error:
            crash = {"step": step + 1, "error": str(error), "rows": list(origins())}
            if error.__cause__ is not None:  # what a user's reward raised
                crash["traceback"] = "".join(traceback.format_exception(error.__cause__))
            write_json(self.run.path / "crash.json", crash)
            raise

    def after(self, done: int) -> None:
        """Evaluate and save where it's due after `done` steps; stop here if asked to.

        Raises:
            Interrupted: SIGTERM or Ctrl-C came; the state is saved.
        """
        due = done in self.marks if self.spent is None else self.crossed
        if due and self.evaluate is not None:
            self.evaluate(done)
        late = time.monotonic() - self.saved_at > SECONDS_BETWEEN_SAVES
        if due or late or self.stop_signal is not None:
            state = {"cost": self.cost.values(), "memory": self.memory}
            checkpoint.save(self.run.checkpoints, done, self.models, self.optimizers, state)
            self.saved_at = time.monotonic()
        if self.stop_signal is not None:
            raise Interrupted(
                f"stopped after step {done}, saved in {self.run.path}; the same command goes on", self.stop_signal
            )

    def _progress(self, done: int) -> float:
        """How far the run is, by steps or by its budget, whichever is nearer the end; from 1 on it is over."""
        by_steps = done / self.total
        if self.spent is None:
            return by_steps
        if self.begun >= 1:
            return 1.0
        spent = self.spent(self.cost)
        by_budget = 1.0 if spent >= 1 else (spent - self.begun) / (1 - self.begun)
        return max(by_steps, by_budget)

    def _passed(self, progress: float) -> int:
        """How many evaluations are due by then: evenly spread over what will have been done, whatever ends the run."""
        return math.floor(progress * self.evaluations + ROUNDING)

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Inside, the first SIGTERM or Ctrl-C waits for the end of the step; a second one stops at once."""

        def handle(number: int, frame: FrameType | None) -> None:
            if self.stop_signal is not None:
                raise KeyboardInterrupt
            self.stop_signal = number
            say("stopping after this step; once more to stop at once")

        try:
            old: dict[int, Any] = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: no handler can be set, and none is needed
            old = {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
