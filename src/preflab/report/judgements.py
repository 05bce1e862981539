"""What a judge of pairs said of the arms' responses to test prompts, read: judgements.json."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from preflab.errors import StorageError
from preflab.report.fields import Fields
from preflab.report.shares import share
from preflab.report.statistics import Estimate, Matrix
from preflab.runs import read_json

FILE = "judgements.json"


@dataclass(frozen=True)
class JudgedPair:
    """Two arms before a judge that read both responses to each test prompt, in both orders."""

    first_arm: str
    second_arm: str
    judge: str
    """Where the function is: file.py:function."""
    preference: Estimate
    """That the first arm's response is the better one, in [0, 1]: the mean of the two orders."""
    position_bias: Estimate
    """Preference for whichever response stands first, minus ½: in [−½, ½], 0 without a bias."""
    prompts: int
    places: tuple[tuple[int, str], ...]
    """Seed and prompt of each two responses that it read."""
    responses: str
    """Their digest."""


def read_judgements(folder: Path) -> tuple[JudgedPair, ...]:
    """What the judge of the study in `folder` said; () where it had none, or hasn't spoken yet.

    Raises:
        StorageError: the file is damaged.
        NumericError: a preference is not finite.
    """
    path = folder / FILE
    if not path.is_file():
        return ()
    content = Fields(read_json(path), path)
    return tuple(_read_pair(pair, content.text("judge")) for pair in content.items("pairs"))


def _read_pair(pair: Fields, judge: str) -> JudgedPair:
    first, second = pair.text("first_arm"), pair.text("second_arm")
    what = f"{judge} on {first} against {second}"
    prompts = len(pair.listing("prompts"))
    leading, trailing = (_matrix(pair, name, what, prompts) for name in ("leading", "trailing"))
    bias = share(0.5 + (leading - trailing) / 2, what)
    return JudgedPair(
        first_arm=first,
        second_arm=second,
        judge=judge,
        preference=share((leading + trailing) / 2, what),
        position_bias=Estimate(bias.mean - 0.5, bias.low - 0.5, bias.high - 0.5),
        prompts=prompts,
        places=tuple((seed, str(one)) for seed in pair.listing("seeds") for one in pair.listing("prompts")),
        responses=pair.text("responses"),
    )


def _matrix(pair: Fields, name: str, what: str, prompts: int) -> Matrix:
    """Preferences for the first arm, a row a seed and a column a prompt."""
    rows = [Fields({name: row}, pair.path).finite(name, what) for row in pair.listing(name)]
    if not rows or any(len(row) != prompts for row in rows):
        raise StorageError(f'{pair.path}: "{name}" should have {prompts} preferences a seed; delete it and run again')
    return np.stack(rows)
