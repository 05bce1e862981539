"""A user's Python function as a reward."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from preflab.errors import ConfigError, NumericError, nearest
from preflab.rewards.protocol import Answer, counted, named

GIVEN: Mapping[str, Callable[[Answer], object]] = {
    "prompts": lambda answer: answer.prompt,
    "completions": lambda answer: answer.response,
    "prompt_ids": lambda answer: list(answer.prompt_ids),
    "completion_ids": lambda answer: list(answer.response_ids),
    "ended": lambda answer: answer.ended,
}
"""What a function may ask for beside the columns of the prompts' file: a list each, one item a response."""


@dataclass(frozen=True)
class FunctionReward:
    """What a function returns for a batch: a finite number a response, or a list of them, one a response token.

    It is called by keyword with those of these that it has parameters for, all of them where it takes `**kwargs`; each
    is a list with one item a response. So reward functions written for TRL work as they are.

    - `prompts`, `completions`: texts. A completion is without special tokens.
    - `prompt_ids`, `completion_ids`: lists of token ids; the end token is the last one where there is one.
    - `ended`: False where the length limit cut the response.
    - every other column of the prompts' file, by its name; None where a row lacks it.

    Args:
        batch_size: most responses in a call; None: all that are asked for.

    Raises:
        ConfigError: the function has a parameter that nothing fills, or can't be called by keyword.

    >>> def brief(completions, **kwargs):
    ...     return [-len(text) / 10 for text in completions]
    >>> reward = FunctionReward(brief, "brief")
    >>> reward([Answer("Why?", " Because.", (1,), (2,), True)])
    [-0.9]
    """

    function: Callable[..., Any]
    name: str
    columns: tuple[str, ...] = ()
    """Those of the prompts' file."""
    batch_size: int | None = None

    def __post_init__(self) -> None:
        _check_parameters(self.function, self.name, {*GIVEN, *self.columns})

    def __call__(self, answers: Sequence[Answer]) -> list[Any]:
        """What the function returns, batch after batch.

        Raises:
            NumericError: it raised something (`__cause__`; the response is named), or returned the wrong number of
                values.
        """
        size = self.batch_size or max(1, len(answers))
        values: list[Any] = []
        for begin in range(0, len(answers), size):
            batch = answers[begin : begin + size]
            try:
                returned = self._call(batch)
            except (Exception, SystemExit) as error:  # sys.exit(0) in a reward would look like success
                raise NumericError(self._failure(error, batch)) from error
            values += list(counted(self.name, returned, batch))
        return values

    def _call(self, answers: Sequence[Answer]) -> Any:
        parameters = inspect.signature(self.function).parameters.values()
        everything = any(one.kind is inspect.Parameter.VAR_KEYWORD for one in parameters)
        asked = {one.name for one in parameters}
        columns = {name: [answer.fields.get(name) for answer in answers] for name in self.columns}
        given = columns | {name: [read(answer) for answer in answers] for name, read in GIVEN.items()}
        return self.function(**{name: values for name, values in given.items() if everything or name in asked})

    def _failure(self, error: BaseException, batch: Sequence[Answer]) -> str:
        """One sentence: what was raised, where, and for which response. A batch that raises is halved and called again
        until one response is left: a call may take long, and so there are few."""
        said = f"reward {self.name} raised {words_of(error)}{self._place(error)}"
        if len(batch) == 1:
            return f"{said} for {named(batch[0])}"
        said += f" on a batch of {len(batch)} responses"
        fewest, last = batch, error
        while len(fewest) > 1 and (found := self._raising_half(fewest)):
            fewest, last = found
        if len(fewest) > 1:
            return f"{said}; neither half of {len(fewest)} of them raises by itself; the first is {named(fewest[0])}"
        what = "it too" if words_of(last) == words_of(error) else words_of(last)
        return f"{said}; alone, {named(fewest[0])} raises {what}"

    def _raising_half(self, batch: Sequence[Answer]) -> tuple[Sequence[Answer], BaseException] | None:
        middle = len(batch) // 2
        for half in (batch[:middle], batch[middle:]):
            try:
                self._call(half)
            except (Exception, SystemExit) as error:
                return half, error
        return None

    def _place(self, error: BaseException) -> str:
        """The deepest line of the function's own file."""
        code = getattr(inspect.unwrap(self.function), "__code__", None)
        frames = [one for one in traceback.extract_tb(error.__traceback__) if code and one.filename == code.co_filename]
        return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""


def load_function(place: str) -> Callable[..., Any]:
    """The function at `path/to/file.py:function` or `package.module:function`. Its module is run.

    Modules are found where they are installed, or from the folder that the command runs in.

    Raises:
        ConfigError: there is no such file, module or function, or it raised something while it was imported.
    """
    where, _, name = place.rpartition(":")
    if not where:
        raise ConfigError(f"{place}: name a file or module and a function: length.py:penalty")
    try:
        module = _run_file(Path(where)) if where.endswith(".py") else _import(where)
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{where} can't be imported: {words_of(error)}{_line(error, where)}") from error
    function = getattr(module, name, None)
    if function is None:
        mine = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError(f'there is no function "{name}" in {where}; {nearest(name, mine)}')
    if not callable(function):
        raise ConfigError(f"{place} is no function, it is {type(function).__name__}")
    if inspect.iscoroutinefunction(function):
        raise ConfigError(f"{place} is an async function; give a plain one")
    return function


def _run_file(path: Path) -> ModuleType:
    if not path.is_file():
        beside = [file.name for file in path.parent.glob("*.py")] if path.parent.is_dir() else []
        hint = f"; {nearest(path.name, beside)}" if beside else ""
        raise ConfigError(f"there is no file {path}{hint}")
    # A name of its own: two files called reward.py are two modules, and neither hides an installed one. Two functions
    # of one file are of one module, run once, as long as the file stays as it is.
    place = sha256(str(path.resolve()).encode() + b"\0" + path.read_bytes()).hexdigest()[:12]
    name = f"preflab_reward_{path.stem}_{place}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import(name: str) -> ModuleType:
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise ConfigError(f"there is no module {name}, installed or in {here}") from None
        raise


def _check_parameters(function: Callable[..., Any], name: str, known: Collection[str]) -> None:
    """Raises ConfigError where the function can't be called with what there is."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        raise ConfigError(f"{name}: Python doesn't know its parameters; wrap it in a function") from None
    for one in parameters:
        if one.default is not inspect.Parameter.empty or one.kind in (one.VAR_KEYWORD, one.VAR_POSITIONAL):
            continue
        if one.kind is one.POSITIONAL_ONLY:
            raise ConfigError(f"{name}: the parameter {one.name} can't be given by keyword; remove the / behind it")
        if one.name not in known:
            raise ConfigError(
                f'{name} asks for "{one.name}", which is neither {", ".join(GIVEN)} nor a column of the prompts; '
                f"{nearest(one.name, known)}"
            )


def words_of(error: BaseException) -> str:
    """What was raised, on one line."""
    text = " ".join(str(error).split())[:200]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _line(error: BaseException, where: str) -> str:
    if isinstance(error, SyntaxError):
        return ""  # says its line itself
    frames = [one for one in traceback.extract_tb(error.__traceback__) if Path(one.filename) == Path(where).absolute()]
    return f" (line {frames[-1].lineno})" if frames else ""
