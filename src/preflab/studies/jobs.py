"""`--jobs N`: the arms of a study side by side, one process an arm.

A server that has done nothing but import (`studies/worker.py`) forks a process for each arm, so that an arm starts at
once and its memory is its own. What ran before in the parent, the shared stages, is on disk; the task and the encoded
pairs come through a pipe. Each process writes its own run folder alone. The parent starts the next arm, watches the
folders, and hears from the server how each arm ended.

Arms get the same numbers as one after another: each draws from seeds of its own name, and of several that ask the
reference for the same log-probabilities the first in order computes them, while the others wait for that alone.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

from preflab.config.arms import before
from preflab.config.commands import Compare
from preflab.config.preference import Preference, Unpaired
from preflab.errors import ConfigError, DataError, Interrupted, NumericError, PreflabError, StorageError
from preflab.progress import say
from preflab.runs import RunFolder
from preflab.studies.arms import Bench, finished, folder_of, run_arm, settings_of
from preflab.studies.arms_table import Row, Watch
from preflab.studies.shared import Preferences, load_reference
from preflab.studies.stages import Stages
from preflab.studies.task import Task
from preflab.training.preference import knows_reference

LOG = "log.txt"
SECONDS_BETWEEN_LOOKS = 0.1
"""How soon Ctrl-C is heard and the next arm started."""
Write = Callable[[], None]


@dataclass(frozen=True)
class Job:
    """What one process does: an arm of a seed, or the arm that a chain begins with."""

    arm: str
    seed: int

    @property
    def title(self) -> str:
        """As people read it."""
        return f"{self.arm}, seed {self.seed}"


@dataclass(frozen=True)
class Shared:
    """What every arm needs and the disk does not hold as such."""

    config: Compare
    task: Task
    preferences: Mapping[int, Preferences]
    """Of each seed."""


@dataclass(frozen=True)
class Ended:
    """How a job ended: code 0 is well; below 0 a signal."""

    job: Job
    code: int
    message: str


def jobs_of(arms: Sequence[str], seeds: Sequence[int]) -> list[Job]:
    """All jobs of a study but the references', in the order in which one process would do them.

    >>> [job.arm for job in jobs_of(("reference", "sft+dpo+ppo", "sft"), [0])]
    ['sft', 'sft+dpo', 'sft+dpo+ppo']
    """
    found: dict[Job, None] = {}
    for seed in seeds:
        for arm in arms:
            chain = [arm]
            while first := before(chain[0]):
                chain.insert(0, first)
            found |= {Job(one, seed): None for one in chain if one != "reference"}
    return list(found)


def left(config: Compare, jobs: Sequence[Job]) -> list[Job]:
    """Those that are not finished."""
    return [job for job in jobs if not finished(_run(config, job))]


def run_here(bench: Bench, arms: Sequence[str], write: Write) -> list[Ended]:
    """Run the arms of a seed one after another in this process. A numeric failure ends one arm, not the others; it is
    returned, with those of arms that would have started from it.

    Raises:
        NumericError: of the reference, from which all are measured.
    """
    failed: list[Ended] = []
    for arm in arms:
        job = Job(arm, bench.seed)
        if ended := _starts_from_failed(job, failed):
            failed.append(ended)
            continue
        try:
            run_arm(bench, arm)
        except NumericError as error:
            if arm == "reference":
                raise
            say(f"{job.title} failed: {error}")
            failed.append(Ended(job, error.exit_code, str(error)))
        write()
    return failed


def run_job(shared: Shared, job: Job) -> None:
    """Run an arm from what the disk holds of the shared stages."""
    config, stages = shared.config, Stages(shared.config.out / "stages")
    reference = load_reference(config, stages)
    run_arm(
        Bench.of(config, shared.task, stages, reference, shared.preferences[job.seed], job.seed),
        job.arm,
    )


def run_apart(shared: Shared, jobs: Sequence[Job], server: Server, write: Write) -> list[Ended]:
    """Run jobs at the same time, as many as the study says. Returns the failures.

    A numeric failure ends one arm, not the others. After another one (no memory, no disk space) those that run finish
    and no more are started.

    Raises:
        Interrupted: SIGTERM or Ctrl-C; the arms that ran have saved their state.
    """
    config = shared.config
    server.share(shared)
    waiting = left(config, jobs)
    running: dict[Job, float] = {}
    failed: list[Ended] = []
    examples = {seed: len(preferences.train) for seed, preferences in shared.preferences.items()}
    prompts = len(shared.task.sampled_on)
    rows = [Row(job.arm, job.seed, _run(config, job), examples[job.seed], prompts) for job in jobs]
    with _signals() as heard, Watch(config, rows) as watch:
        told = 0
        while running or waiting:
            if len(heard) > told:  # the first asks for a clean stop, the second for one at once
                server.signal(heard[0] if told == 0 else signal.SIGKILL)
                told = len(heard)
                if told == 1 and running:
                    say(f"stopping {len(running)} arms after this step; once more to stop at once")
            goes_on = not heard and all(ended.code == NumericError.exit_code for ended in failed)
            for job in waiting if goes_on else ():
                if ended := _starts_from_failed(job, failed):
                    failed.append(ended)
                elif len(running) < config.jobs and _ready(shared, job, jobs, running, waiting):
                    server.start(job, _run(config, job).path / LOG)
                    running[job] = time.perf_counter()
                    watch.began(job.arm, job.seed)
            over = {ended.job for ended in failed} | set(running)
            waiting = [job for job in waiting if job not in over]
            if not running:
                break
            for ended in server.heard(SECONDS_BETWEEN_LOOKS):
                del running[ended.job]
                stopped = bool(ended.code and heard)
                if ended.code and not stopped:
                    failed.append(ended)
                watch.ended(ended.job.arm, ended.job.seed, ended.message if ended.code else None, stopped=stopped)
                write()
            watch.look()
    if heard:
        raise Interrupted(f"stopped; what ran is saved in {config.out}; the same command goes on", heard[0])
    return failed


def error_of(config: Compare, failed: Sequence[Ended]) -> PreflabError:
    """What a study ends with whose other arms are finished."""
    kinds = {kind.exit_code: kind for kind in (ConfigError, DataError, NumericError, StorageError)}
    kind = kinds.get(failed[0].code, PreflabError)
    said = "; ".join(f"{ended.job.title}: {ended.message}{_log(config, ended.job)}" for ended in failed)
    return kind(
        f"{said}. The study is not complete; the same command goes on with what is missing, and `preflab report "
        f"{config.out}` draws what there is"
    )


def _log(config: Compare, job: Job) -> str:
    log = _run(config, job).path / LOG
    return f" (log: {log})" if log.exists() else ""


def _run(config: Compare, job: Job) -> RunFolder:
    return folder_of(config, job.arm, job.seed)


def _starts_from_failed(job: Job, failed: Sequence[Ended]) -> Ended | None:
    """The failure of a job whose chain begins with one that failed."""
    for ended in failed:
        if ended.job == Job(before(job.arm) or "", job.seed):
            return Ended(job, ended.code, f"not run, since it starts from {ended.job.arm}")
    return None


def _ready(shared: Shared, job: Job, jobs: Sequence[Job], running: Mapping[Job, float], waiting: Sequence[Job]) -> bool:
    """Whether the arm that a chain begins with is done, and the reference was asked by those before it in order."""
    start = Job(before(job.arm) or "", job.seed)
    if start in running or start in waiting:
        return False
    config, task = shared.config, shared.task
    needed = asked(config, task, job)
    earlier = jobs[: jobs.index(job)] if needed is not None else ()
    return not any(
        asked(config, task, other) == needed and not (_run(config, other).path / "start.json").exists()
        for other in earlier
        if other in running or other in waiting
    )


def asked(config: Compare, task: Task, job: Job) -> tuple[str, str | None, int | None] | None:
    """What the job asks the cache for: log-probabilities of pairs or of single responses, under which model, of which
    seed's pairs. None where it asks for none. `start.json` says that a job has got them."""
    match settings_of(config, job.arm):
        case Preference(loss=loss) if knows_reference(loss):
            what = "pairs"
        case Unpaired():
            what = "responses"
        case _:
            return None
    of = before(job.arm) if config.chain_reference == "previous" else None
    return what, of, job.seed if task.pairs is None else None


@contextmanager
def undisturbed(folder: Path) -> Iterator[int]:
    """Wait until processes of an earlier start are gone whose parent was killed. Yields what processes inherit, so that
    a later start waits for them too: the lock lasts as long as one of them has it."""
    with open(folder / ".workers", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say("arms of an earlier start, which was killed, are saving their state; waiting for them")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


class Server:
    """The parent's end of the pipe to `studies/worker.py`."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @classmethod
    @contextmanager
    def started(cls, jobs: int, lock: int) -> Iterator[Server]:
        """A server; at the end it stops what still runs, cleanly, and ends."""
        ours, theirs = Pipe()
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads_each(jobs))),
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "TERM": "dumb",  # logs are files: no colours
        }
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "preflab.studies.worker", str(theirs.fileno())],
            stdin=subprocess.DEVNULL,
            pass_fds=[theirs.fileno(), lock],
            env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to hear
        )
        theirs.close()
        try:
            yield cls(ours)
        finally:
            ours.close()
            process.wait()

    def share(self, shared: Shared) -> None:
        """What every job needs."""
        self._send(shared)

    def start(self, job: Job, log: Path) -> None:
        """Start a job, whose output goes to the log."""
        self._send((job, log))

    def signal(self, number: int) -> None:
        """Send a signal to all that run."""
        self._send(number)

    def heard(self, seconds: float) -> Iterator[Ended]:
        """Which jobs ended, after so many seconds at most."""
        try:
            while self.connection.poll(seconds):
                yield self.connection.recv()
                seconds = 0.0
        except (EOFError, OSError):
            raise _gone() from None

    def _send(self, what: Any) -> None:
        try:
            self.connection.send(what)
        except OSError:
            raise _gone() from None


def threads_each(jobs: int) -> int:
    """Of how many threads an arm may make use.

    >>> threads_each(10_000)
    1
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def _gone() -> PreflabError:
    return PreflabError("the process that starts the arms has ended; the same command goes on, or try --jobs 1")


@contextmanager
def _signals() -> Iterator[list[int]]:
    """The signals that have come: SIGTERM and Ctrl-C are noted inside, not obeyed."""
    heard: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    try:
        old: dict[int, Any] = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread
        old = {}
    try:
        yield heard
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
