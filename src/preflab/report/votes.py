"""Human votes, read: the filled sheets of `preflab sheet`, and the keys that say which response was whose.

A sheet lies in votes/A-against-B.csv beside its key, A-against-B.key.json; the copies that several people filled are
called A-against-B.NAME.csv.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preflab.errors import DataError
from preflab.report.fields import Fields
from preflab.report.shares import share
from preflab.report.statistics import Estimate
from preflab.runs import read_json

FOLDER = "votes"
COLUMNS = ("row", "prompt", "first", "second", "vote")
KEY = ".key.json"

Vote = Literal["1", "2", "tie"]
Votes = Mapping[int, Vote]
"""One person's, by row."""

FOR_FIRST: Mapping[Vote, float] = {"1": 1.0, "tie": 0.5, "2": 0.0}


@dataclass(frozen=True)
class VotedPair:
    """Two arms before human raters."""

    first_arm: str
    second_arm: str
    raters: int
    """People who voted on a row or more."""
    wins: int
    """Votes for the first arm; those of all raters are counted."""
    ties: int
    """Votes for neither. Prompts that both arms answered alike are on no sheet, and count as a tie of each rater; of a
    sheet that is filled in part, in this part."""
    losses: int
    """Votes for the second arm."""
    win_rate: Estimate
    """Share of rows that the first arm wins, a tie counted as half; the votes on one row are averaged first."""
    first_position_rate: Estimate
    """Share of rows that the response which stood first wins, a tie counted as half: ½ without a bias of position."""
    agreement: float | None
    """Share of two votes on the same row that are the same; None where no row has two."""
    places: tuple[tuple[int, str], ...]
    """Seed and prompt of each two responses that were drawn, those on rows first."""
    responses: str
    """Their digest."""


@dataclass(frozen=True)
class Key:
    """What the voters were not told."""

    first_arm: str
    second_arm: str
    shown_first: Mapping[int, str]
    """The arm whose response stood first, by row."""
    alike: int
    """Prompts that were drawn too, and that both arms answered alike."""
    places: tuple[tuple[int, str], ...]
    """Seed and prompt of each two responses that were drawn."""
    responses: str
    """Their digest."""


def sheet_name(first_arm: str, second_arm: str) -> str:
    """What a sheet's files are called, before their endings."""
    return f"{first_arm}-against-{second_arm}"


def read_votes(folder: Path) -> tuple[VotedPair, ...]:
    """What people said of the arms of the study in `folder`; pairs with votes on fewer than two rows are left out.

    Raises:
        DataError: a vote is none, a row is none of the sheet's, or stands twice, or a sheet has no key.
        StorageError: a key is damaged.
    """
    keys = {path.name.removesuffix(KEY): path for path in sorted((folder / FOLDER).glob(f"*{KEY}"))}
    sheets = sheets_in(folder, keys)
    if None in sheets:
        raise DataError(
            f"{sheets[None][0]} has no key; a filled sheet is called as its key is, then .NAME.csv: move other files "
            "away"
        )
    found = (_count(_read_key(keys[name]), sheets.get(name, [])) for name in keys)
    return tuple(pair for pair in found if pair is not None)


def sheets_in(folder: Path, names: Iterable[str]) -> dict[str | None, list[Path]]:
    """The files of each of these sheets, copies included; under None those that are no one's."""
    known = sorted(names, key=len, reverse=True)  # dpo@beta=0 and dpo@beta=0.1: the longer name is meant
    found: dict[str | None, list[Path]] = {}
    for path in sorted((folder / FOLDER).glob("*.csv")):
        if not path.name.startswith((".", "~")):  # an editor's own
            owner = next((name for name in known if path.name.startswith(f"{name}.")), None)
            found.setdefault(owner, []).append(path)
    return found


def _count(key: Key, sheets: Sequence[Path]) -> VotedPair | None:
    raters = [votes for votes in (read_sheet(path, key.shown_first) for path in sheets) if votes]
    voted = sorted({row for votes in raters for row in votes})
    if len(voted) < 2:
        return None
    by_position = {row: [FOR_FIRST[votes[row]] for votes in raters if row in votes] for row in voted}
    by_arm = {
        row: [value if key.shown_first[row] == key.first_arm else 1 - value for value in values]
        for row, values in by_position.items()
    }
    votes = [value for values in by_arm.values() for value in values]
    what = f"votes on {key.first_arm} against {key.second_arm}"
    alike = [0.5] * _of_part(key, len(voted))
    return VotedPair(
        first_arm=key.first_arm,
        second_arm=key.second_arm,
        raters=len(raters),
        wins=votes.count(1.0),
        ties=votes.count(0.5) + sum(_of_part(key, len(one)) for one in raters),
        losses=votes.count(0.0),
        win_rate=share([_mean(values) for values in by_arm.values()] + alike, what),
        first_position_rate=share([_mean(values) for values in by_position.values()], what),
        agreement=_agreement(list(by_position.values())),
        places=key.places,
        responses=key.responses,
    )


def _of_part(key: Key, voted: int) -> int:
    """How many prompts with equal answers belong to so many rows with votes."""
    return round(key.alike * voted / len(key.shown_first))


def _agreement(rows: Sequence[Sequence[float]]) -> float | None:
    same = [float(one == other) for votes in rows for one, other in itertools.combinations(votes, 2)]
    return _mean(same) if same else None


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _read_key(path: Path) -> Key:
    content = Fields(read_json(path), path)
    rows, alike = content.items("rows"), content.items("alike")
    return Key(
        first_arm=content.text("first_arm"),
        second_arm=content.text("second_arm"),
        shown_first={row.whole("row"): row.text("first") for row in rows},
        alike=len(alike),
        places=tuple((one.whole("seed"), one.text("prompt_id")) for one in (*rows, *alike)),
        responses=content.text("responses"),
    )


def read_sheet(path: Path, rows: Mapping[int, str]) -> Votes:
    """The votes on a filled sheet; rows without one are left out.

    Commas, semicolons or tabs between cells, as spreadsheets write them; rows in any order.

    Args:
        rows: those that the sheet has.

    Raises:
        DataError: see `read_votes`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path} can't be read ({error}); save the sheet as CSV in UTF-8") from None
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
    if missing := [name for name in ("row", "vote") if name not in (reader.fieldnames or ())]:
        raise DataError(f'{path}:1: no column "{missing[0]}"; keep the first line: {",".join(COLUMNS)}')
    votes: dict[int, Vote] = {}
    seen: set[int] = set()
    for line in reader:
        number, said = (line["row"] or "").strip(), (line["vote"] or "").strip().lower()
        place = f"{path}:{reader.line_num}"
        if not number.isdecimal() or int(number) not in rows:
            raise DataError(f'{place}: the sheet has no row "{number}"; leave the column "row" as it was')
        row = int(number)
        if row in seen:
            raise DataError(f"{place}: row {row} stands twice; keep one")
        seen.add(row)
        if not said:
            continue
        vote: Vote | None = next((known for known in FOR_FIRST if known == said), None)
        if vote is None:
            raise DataError(f'{place}: row {row}: the vote is "{said}"; write 1, 2 or tie, or leave it empty')
        votes[row] = vote
    return votes
