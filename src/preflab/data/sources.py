"""Files of preferences, prompts, demonstrations and ratings: which forms are read, and what is refused or dropped.

Nothing is lost silently. Each reader takes `.jsonl` or `.jsonl.gz` and returns `Loaded`: its rows, and counts of what
was read, dropped and ignored. Faults are raised together as one DataError with file:line for each.

| case                                     | policy                                                                  |
|------------------------------------------|-------------------------------------------------------------------------|
| a column or field is missing or misspelt | error, with the fields present and the right name                       |
| null or another type where text belongs  | error, never turned into text                                           |
| an empty prompt                          | error, unless `allow_empty_prompt`: then counted                        |
| an empty response or text                | dropped and counted; error above `EMPTY_SHARE_ALLOWED` of the rows      |
| identical chosen and rejected            | dropped and counted; error above `IDENTICAL_SHARE_ALLOWED` of the rows  |
| exact duplicates                         | kept and counted (`read_prompts` keeps each prompt once)                |
| other columns                            | ignored, counted by name                                                |

One dropped row is always tolerated, so that a small file isn't refused for one bad row. Empty means empty or white
space only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from preflab import runs
from preflab.data.csv_rows import read_csv
from preflab.data.jsonl import Faults, JsonLines, Row, kind, read_rows, shown
from preflab.data.records import Demonstration, Feedback, PreferencePair, Prompt, Rating, Record
from preflab.errors import ConfigError, DataError, nearest

EMPTY_SHARE_ALLOWED = 0.01
"""Share of the rows that may be dropped for an empty response (0–1)."""

IDENTICAL_SHARE_ALLOWED = 0.05
"""Share of the pairs that may be dropped because chosen and rejected are the same text (0–1)."""

ASSISTANT = "\n\nAssistant:"
"""What opens the assistant's turn in an HH-RLHF dialogue."""

HUMAN = "\n\nHuman:"
"""What opens the human's turn in an HH-RLHF dialogue."""

LABELS = {"positive": 1, "negative": 0}
"""The words that a rating's label may be, beside 0 and 1."""

Item = TypeVar("Item")
AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Item]):
    """What a file gave: its rows in file order, and how many were read, dropped, repeated or ignored, by name."""

    rows: tuple[Item, ...]
    counts: dict[str, int]


def read_pairs(path: Path, *, allow_empty_prompt: bool = False) -> Loaded[PreferencePair]:
    """Preference pairs, in one of two forms.

    Explicit: `prompt`, `chosen` and `rejected`, taken as they are. HH-RLHF: `chosen` and `rejected` alone, two whole
    dialogues; the prompt is their longest shared prefix that ends in "\\n\\nAssistant:", the responses are what
    follows, leading space included, so that prompt + response is the dialogue again. Responses with further human turns
    are kept whole and counted.

    Raises DataError by the policies above, and for unpaired (KTO-shaped) or conversational rows.
    """
    return _pairs(_File(path), allow_empty_prompt)


def read_prompts(
    path: Path, *, columns: Collection[str] | None = (), allow_empty_prompt: bool = False
) -> Loaded[Prompt]:
    """Distinct prompts, at their first place in the file: of a `prompt` column, or of HH-RLHF dialogues.

    `columns` are those that rewards are to see beside a prompt, and must be in each row; None keeps all there are.

    Raises DataError by the policies above, and for a prompt that stands twice with different values of `columns`.
    """
    file = _File(path)
    for name in columns or ():  # a name that a setting gives: it is that which may be misspelt, not the file's
        if name not in file.columns:
            raise DataError(f'{path}: no column "{name}", which the reward reads; {nearest(name, file.columns)}')
    texts: list[tuple[Row, str]]
    if "prompt" not in file.columns and {"chosen", "rejected"} <= set(file.columns):
        texts = [(row, prompt) for row, prompt, _, _ in _pair_texts(file)]
    else:
        texts = [(row, text) for row, (text,) in file.texts("prompt", beside=tuple(columns or ()))]
    shown_to_rewards = [name for name in file.columns if name not in file.used] if columns is None else columns
    prompts: dict[str, Prompt] = {}
    repeated = others = 0
    for row, text in texts:
        if file.takes_prompt(row, text, allow_empty_prompt):
            prompt = Prompt(text, row.origin, {name: row.fields.get(name) for name in shown_to_rewards})
            first = prompts.setdefault(text, prompt)
            repeated += first is not prompt
            if first.fields != prompt.fields and columns is None:
                others += 1
            elif first.fields != prompt.fields:
                names = " and ".join(f'"{name}"' for name in shown_to_rewards)
                file.faults.add(row.line, f"the prompt of {first.origin} again, with another {names}; keep one of them")
    file.counts["repeated prompts, kept once"] = repeated
    file.counts["repeated prompts with other columns, dropped"] = others
    file.used = (*file.used, *shown_to_rewards)
    return file.load(list(prompts.values()))


def read_demonstrations(path: Path, *, allow_empty_prompt: bool = False) -> Loaded[Demonstration]:
    """Responses to imitate, in one of three forms.

    `prompt` with `response` (or `completion`); `text` alone, with "" as the prompt; or pairs, whose chosen responses
    are taken after the policies for pairs.

    Raises DataError by the policies above, and for KTO-shaped rows, whose completions aren't all meant to be imitated.
    """
    file = _File(path)
    if {"chosen", "rejected"} <= set(file.columns):
        pairs = _pairs(file, allow_empty_prompt)
        chosen = tuple(Demonstration(pair.prompt, pair.chosen, pair.origin) for pair in pairs.rows)
        return Loaded(chosen, pairs.counts | {"chosen responses taken as demonstrations": len(chosen)})
    whole_texts = "text" in file.columns and not {"prompt", "response", "completion"} & set(file.columns)
    if whole_texts:
        rows = [(row, "", text) for row, (text,) in file.texts("text")]
    else:
        if file.unpaired:
            raise DataError(
                f"{path}: this file is unpaired (KTO-shaped): not every completion is meant to be imitated; "
                'keep the rows with a true label and leave the column "label" out'
            )
        response = "completion" if "completion" in file.columns and "response" not in file.columns else "response"
        forms = 'demonstrations are "prompt" and "response", or "text" alone, or preference pairs'
        rows = [(row, prompt, text) for row, (prompt, text) in file.texts("prompt", response, forms=forms)]
    empty = _EMPTY_TEXT if whole_texts else _EMPTY_RESPONSE
    demonstrations = []
    for row, prompt, text in rows:
        if not whole_texts and not file.takes_prompt(row, prompt, allow_empty_prompt):
            continue
        if text.strip():
            demonstrations.append(Demonstration(prompt, text, row.origin))
        else:
            file.drop(row, empty)
    return file.load(demonstrations, lambda one: (one.prompt, one.response), may_drop=(empty,))


def read_ratings(path: Path) -> Loaded[Rating]:
    """Labelled texts: `text` and `label`, which is 0 or 1, or "negative" or "positive". A file whose name ends in .csv
    is read as comma-separated values.

    Raises DataError by the policies above, and by file:line for any other label.
    """
    as_csv = path.suffix == ".csv"
    file = _File(path, read_csv if as_csv else read_rows)
    labels = LABELS | ({"0": 0, "1": 1} if as_csv else {})
    ratings = []
    for row, (text,) in file.texts("text", beside=("label",)):
        given = row.fields["label"]
        label = labels.get(given) if isinstance(given, str) else given
        if type(label) is not int or label not in (0, 1):  # true and 1.0 equal 1, but aren't it
            seen = json.dumps(given)
            file.faults.add(row.line, f'"label" must be 0 or 1, or "negative" or "positive", this is {seen:.40}')
        elif text.strip():
            ratings.append(Rating(text, label, row.origin))
        else:
            file.drop(row, _EMPTY_TEXT)
    file.count("label 1", (rating.label == 1 for rating in ratings))
    file.count("label 0", (rating.label == 0 for rating in ratings))
    return file.load(ratings, lambda rating: (rating.text, rating.label), may_drop=(_EMPTY_TEXT,))


def read_feedback(path: Path, *, allow_empty_prompt: bool = False) -> Loaded[Feedback]:
    """Responses marked desirable or not, in one of two forms.

    `prompt`, `completion` (or `response`) and `label`, which is true or false; or pairs, each of which gives a
    desirable and an undesirable response after the policies for pairs.

    Raises DataError by the policies above, by file:line for any other label, and where all labels are one.
    """
    file = _File(path)
    if {"chosen", "rejected"} <= set(file.columns):
        pairs = _pairs(file, allow_empty_prompt)
        rows = [
            Feedback(pair.prompt, text, desirable, pair.origin)
            for pair in pairs.rows
            for text, desirable in ((pair.chosen, True), (pair.rejected, False))
        ]
        return Loaded(tuple(rows), pairs.counts | {"responses taken from pairs": len(rows)})
    response = "response" if "response" in file.columns and "completion" not in file.columns else "completion"
    forms = 'feedback is "prompt", "completion" and "label" (true or false), or preference pairs'
    feedback = []
    for row, (prompt, text) in file.texts("prompt", response, beside=("label",), forms=forms):
        label = row.fields["label"]
        if not isinstance(label, bool):
            file.faults.add(row.line, f'"label" must be true or false, this is {json.dumps(label):.40}')
        elif not file.takes_prompt(row, prompt, allow_empty_prompt):
            continue
        elif text.strip():
            feedback.append(Feedback(prompt, text, label, row.origin))
        else:
            file.drop(row, _EMPTY_RESPONSE)
    file.count("desirable", (one.desirable for one in feedback))
    file.count("undesirable", (not one.desirable for one in feedback))
    loaded = file.load(feedback, lambda one: (one.prompt, one.response, one.desirable), may_drop=(_EMPTY_RESPONSE,))
    if len({one.desirable for one in feedback}) == 1:
        raise DataError(f"{path}: every label is {str(feedback[0].desirable).lower()}; learning needs both kinds")
    return loaded


def write_pairs(path: Path, pairs: Sequence[PreferencePair]) -> None:
    """Write pairs in the explicit form, whole or not at all; `read_pairs` gives the same texts back.

    Raises ConfigError for a compressed file's name, DataError for a text that UTF-8 can't hold, StorageError where the
    file can't be written.
    """
    if path.suffix == ".gz":
        raise ConfigError(f"{path}: pairs are written uncompressed; name it {path.with_suffix('').name}")
    lines = []
    for pair in pairs:
        line = runs.to_line({"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected})
        try:
            line.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{pair.origin}: the pair holds half a character (a lone surrogate); replace it") from None
        lines.append(line)
    runs.write_text(path, "".join(lines))


def split_dialogues(chosen: str, rejected: str) -> int | None:
    """Length of the longest shared prefix that ends in "\\n\\nAssistant:", in characters; None where there is none.

    >>> split_dialogues("\\n\\nHuman: Hi\\n\\nAssistant: Hello!", "\\n\\nHuman: Hi\\n\\nAssistant: Go.")
    23
    """
    at = chosen.rfind(ASSISTANT)
    while at >= 0:
        end = at + len(ASSISTANT)
        if rejected.startswith(chosen[:end]):
            return end
        at = chosen.rfind(ASSISTANT, 0, at)
    return None


_EMPTY_RESPONSE, _EMPTY_TEXT, _IDENTICAL = "empty response", "empty text", "identical chosen and rejected"
_SHARES_ALLOWED = {
    _EMPTY_RESPONSE: EMPTY_SHARE_ALLOWED,
    _EMPTY_TEXT: EMPTY_SHARE_ALLOWED,
    _IDENTICAL: IDENTICAL_SHARE_ALLOWED,
}


class _File:
    """One file being read: its rows and columns, and what was found wrong, dropped or worth counting."""

    def __init__(self, path: Path, read: Callable[[Path, Faults], JsonLines] = read_rows) -> None:
        self.path = path
        self.faults = Faults(path)
        lines = read(path, self.faults)
        self.rows = lines.rows
        self.columns = Counter(name for row in self.rows for name in row.fields)
        self.used: tuple[str, ...] = ()
        self.dropped: dict[str, list[int]] = {reason: [] for reason in _SHARES_ALLOWED}
        self.counts = {"read": len(self.rows), "blank lines": lines.blank_lines}

    @property
    def unpaired(self) -> bool:
        return {"prompt", "completion", "label"} <= set(self.columns)

    def texts(self, *columns: str, beside: tuple[str, ...] = (), forms: str = "") -> list[tuple[Row, list[str]]]:
        """The rows whose `columns` are text, with those texts; other rows become faults.

        Fields of `beside` need only be there. `forms` says what a file may look like, where a column is in no row.
        """
        needed = columns + beside
        self.used = needed
        absent = [name for name in needed if name not in self.columns]
        if absent and self.rows:
            self.faults.add(0, self._missing(absent, list(self.columns)) + (f"; {forms}" if forms else ""))
            self.faults.raise_any()
        found = []
        for row in self.rows:
            absent = [name for name in needed if name not in row.fields]
            if absent:
                self.faults.add(row.line, self._missing(absent, list(row.fields)))
                continue
            values = {name: row.fields[name] for name in columns}
            wrong = [name for name, value in values.items() if not isinstance(value, str)]
            for name in wrong:
                self._refuse_conversation(row, name)
                self.faults.add(row.line, f'"{name}" must be text, this is {kind(values[name])}')
            if not wrong:
                found.append((row, list(values.values())))
        return found

    def _missing(self, absent: list[str], present: list[str]) -> str:
        names = " and ".join(f'"{name}"' for name in absent)
        fields = ", ".join(shown(name) for name in present[:20]) + (", …" if len(present) > 20 else "")
        return f"{names} missing, fields present: {fields or 'none'}{self.misspelt(absent, present)}"

    def misspelt(self, absent: list[str], present: list[str]) -> str:
        """A hint for each unused field whose name is near an absent one."""
        hints = {name: nearest(name, absent) for name in present if name not in self.used}
        return "".join(f'; "{shown(name)}": {hint}' for name, hint in hints.items() if hint.startswith("did you mean"))

    def _refuse_conversation(self, row: Row, name: str) -> None:
        value: Any = row.fields[name]
        if isinstance(value, list) and any(isinstance(turn, dict) and "role" in turn for turn in value):
            raise DataError(
                f'{self.path}:{row.line}: "{name}" is a list of messages (conversational form), preflab reads text; '
                "render prompt and responses with your model's chat template and write them as strings"
            )

    def takes_prompt(self, row: Row, prompt: str, allow_empty: bool) -> bool:
        """Whether the prompt may be used: an empty one is counted where allowed, a fault where not."""
        empty = not prompt.strip()
        if empty and allow_empty:
            self.counts["empty prompts"] = self.counts.get("empty prompts", 0) + 1
        elif empty:
            self.faults.add(row.line, '"prompt" is empty; fill it, or remove the line')
        return allow_empty or not empty

    def drop(self, row: Row, reason: str) -> None:
        self.dropped[reason].append(row.line)

    def count(self, name: str, hits: Iterable[bool]) -> None:
        self.counts[name] = sum(hits)

    def load(
        self,
        records: Sequence[AnyRecord],
        content: Callable[[AnyRecord], object] | None = None,
        may_drop: tuple[str, ...] = (),
    ) -> Loaded[AnyRecord]:
        """Raise what was found wrong, or close the counts. `content` is what makes two records duplicates."""
        self.faults.raise_any()
        for reason in may_drop:
            lines, share = self.dropped[reason], _SHARES_ALLOWED[reason]
            self.counts[f"dropped: {reason}"] = len(lines)
            if len(lines) > max(1, share * len(self.rows)):
                places = ", ".join(str(line) for line in lines[:20]) + (", …" if len(lines) > 20 else "")
                raise DataError(
                    f"{self.path}: {len(lines)} of {len(self.rows)} rows: {reason} "
                    f"(up to {share:.0%} is dropped), lines {places}; repair or remove them"
                )
        if not records:
            drops = ", ".join(f"{len(lines)} dropped ({reason})" for reason, lines in self.dropped.items() if lines)
            raise DataError(f"{self.path}: 0 rows left of {len(self.rows)}: {drops}; add rows")
        if content:
            self.counts["exact duplicates, kept"] = len(records) - len({content(record) for record in records})
        for name, rows in self.columns.items():
            if name not in self.used:
                self.counts[f"ignored column: {shown(name)}"] = rows
        return Loaded(tuple(records), self.counts)


def _pairs(file: _File, allow_empty_prompt: bool) -> Loaded[PreferencePair]:
    pairs = []
    for row, prompt, chosen, rejected in _pair_texts(file):
        if not file.takes_prompt(row, prompt, allow_empty_prompt):
            continue
        if not chosen.strip() or not rejected.strip():
            file.drop(row, _EMPTY_RESPONSE)
        elif chosen == rejected:
            file.drop(row, _IDENTICAL)
        else:
            pairs.append(PreferencePair(prompt, chosen, rejected, row.origin))
    file.count("pairs with further human turns", (HUMAN in one.chosen or HUMAN in one.rejected for one in pairs))
    return file.load(
        pairs, lambda pair: (pair.prompt, pair.chosen, pair.rejected), may_drop=(_EMPTY_RESPONSE, _IDENTICAL)
    )


def _pair_texts(file: _File) -> list[tuple[Row, str, str, str]]:
    """Each pair's row, prompt, chosen and rejected, before any policy on what they hold."""
    if file.unpaired and not {"chosen", "rejected"} & set(file.columns):
        raise DataError(
            f"{file.path}: this file is unpaired (KTO-shaped): prompt, completion and label; "
            "a method that learns from pairs needs prompt, chosen and rejected"
        )
    if "prompt" in file.columns or not {"chosen", "rejected"} <= set(file.columns):
        forms = 'pairs are "prompt", "chosen" and "rejected", or two whole dialogues "chosen" and "rejected"'
        needed = ("prompt", "chosen", "rejected")
        texts = file.texts(*needed, forms=forms)
        return [(row, prompt, chosen, rejected) for row, (prompt, chosen, rejected) in texts]
    pairs = []
    for row, (chosen, rejected) in file.texts("chosen", "rejected"):
        end = split_dialogues(chosen, rejected)
        if end is None:
            hint = file.misspelt(["prompt"], list(row.fields))
            message = '"chosen" and "rejected" share no prefix that ends in "\\n\\nAssistant:"; add a "prompt"'
            file.faults.add(row.line, message + hint)
        else:
            pairs.append((row, chosen[:end], chosen[end:], rejected[end:]))
    return pairs
