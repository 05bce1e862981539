"""The five kinds of row that preflab learns from. `origin` says where a row came from: "pairs.jsonl:17"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt, of which `chosen` was preferred.

    The text that a model reads is prompt + response, with nothing in between: a separating space or line break belongs
    to one of them.
    """

    prompt: str
    chosen: str
    rejected: str
    origin: str


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text to respond to."""

    text: str
    origin: str
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row's other columns that rewards are to see."""


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A response to imitate; `prompt` is "" where the whole text is to be learnt."""

    prompt: str
    response: str
    origin: str


@dataclass(frozen=True, slots=True)
class Rating:
    """A text and its label: 1 is good (positive), 0 is bad (negative)."""

    text: str
    label: int
    origin: str


@dataclass(frozen=True, slots=True)
class Feedback:
    """A response and whether it was desirable: what KTO learns from."""

    prompt: str
    response: str
    desirable: bool
    origin: str


Record = PreferencePair | Prompt | Demonstration | Rating | Feedback


def prompt_of(record: Record) -> str:
    """The text that must not stand on both sides of a split: the prompt, or the whole text where there is none.

    >>> prompt_of(PreferencePair("Why?", " Because.", " No.", "pairs.jsonl:1"))
    'Why?'
    >>> prompt_of(Demonstration("", "A fine film.", "reviews.jsonl:1"))
    'A fine film.'
    """
    match record:
        case PreferencePair() | Feedback():
            return record.prompt
        case Demonstration():
            return record.prompt or record.response
        case Prompt() | Rating():
            return record.text
