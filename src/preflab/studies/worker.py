"""The process that starts the arms of `--jobs`: it imports once, then forks a process for each arm.

    python -m preflab.studies.worker FILE_DESCRIPTOR        of a pipe to `studies/jobs.py`

It never computes, so no thread of its own is there when it forks. Where the pipe ends, the parent is gone: the arms are
asked to save their state and to stop.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import NoReturn

import transformers.models.gpt2.modeling_gpt2  # noqa: F401  (what the small base needs, before the first fork)

from preflab.errors import PreflabError
from preflab.studies.jobs import Ended, Job, Shared, run_job


def serve(parent: Connection) -> None:
    """Do what the parent says until it has gone and all arms have ended."""
    shared: Shared | None = None
    running: dict[Connection, tuple[Job, int]] = {}  # the pipe of a job's last words → its process
    listening = True
    while listening or running:
        for ready in wait([*([parent] if listening else []), *running]):
            assert isinstance(ready, Connection)
            if ready is not parent:
                job, process = running.pop(ready)
                ended = _ended(job, process, ready)
                with suppress(OSError):  # nobody is there to hear it
                    parent.send(ended)
                continue
            try:
                order = parent.recv()
            except (EOFError, OSError):
                listening = False
                order = signal.SIGTERM
            match order:
                case int(number):
                    for _, process in running.values():
                        os.kill(process, number)
                case job, log:
                    assert shared is not None
                    words, process = _fork(shared, job, log, parent)
                    running[words] = job, process
                case _:
                    shared = order


def _fork(shared: Shared, job: Job, log: Path, parent: Connection) -> tuple[Connection, int]:
    words, last_words = Pipe(duplex=False)
    process = os.fork()
    if process == 0:
        parent.close()
        _work(shared, job, log, last_words)
    last_words.close()
    return words, process


def _work(shared: Shared, job: Job, log: Path, last_words: Connection) -> NoReturn:
    """In a process of its own: run the job; its last words are the error that ended it."""
    code = 1
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        run_job(shared, job)
        code = 0
    except PreflabError as error:
        code = error.exit_code
        _say(str(error), last_words)
    except KeyboardInterrupt:
        code = 130
        _say("stopped at once; the same command goes on from the last checkpoint", last_words)
    except BaseException as error:
        traceback.print_exc()
        message = " ".join(str(error).split())[:300]
        _say(f"this is a fault of preflab: {type(error).__name__}: {message}; report it with its log", last_words)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _say(message: str, last_words: Connection) -> None:
    print(f"preflab: {message}", file=sys.stderr)
    last_words.send(message)


def _ended(job: Job, process: int, words: Connection) -> Ended:
    """How a job ended whose pipe has something to say, or has ended with its process."""
    try:
        message = str(words.recv())
    except EOFError:
        message = ""
    words.close()
    _, status = os.waitpid(process, 0)
    code = os.waitstatus_to_exitcode(status)
    if code and not message:
        message = f"its process ended with signal {-code}" if code < 0 else f"its process ended with code {code}"
        if code == -signal.SIGKILL:
            message += ": is memory short?"
    return Ended(job, code, message)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    serve(Connection(int(sys.argv[1])))
