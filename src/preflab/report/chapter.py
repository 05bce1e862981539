"""What a report is made of: chapters of prose, answers, tables and pictures. Page, Markdown, CSV files and
comparison.json are all written from them.

A chapter is one function from a study to a `Chapter`, or to None where the study has nothing for it; `chapters/` holds
one a file, and `chapters/__init__.py` their order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from preflab.report.statistics import Estimate
from preflab.report.study import Arm, Generation, Sample
from preflab.report.svg import Picture

Form = Literal["text", "arm", "number", "figure", "setting", "count", "percent", "seconds", "bytes"]
"""How a column's values are written. figure: a number of any size; setting: as its setter
writes it; percent takes fractions; seconds and bytes are
written in fitting units."""

Value = str | float | Estimate | Arm | None
"""What a cell holds: figures as they are, in the unit of the column; None where there is none. An interval is written
behind its mean, and is three columns of a CSV file."""


@dataclass(frozen=True)
class Column:
    """One column of a table."""

    title: str
    form: Form = "number"
    digits: int = 2
    """After the point, of numbers."""
    drawn: bool = False
    """Whether the page also draws the intervals, on an axis that all rows share."""


@dataclass(frozen=True)
class Sheet:
    """A table. The page sorts it by a click on a head."""

    name: str
    """Of its file: tables/NAME.csv; words with hyphens, unique in the report."""
    columns: tuple[Column, ...]
    rows: tuple[tuple[Value, ...], ...]
    reading: str
    """How to read it, in one line."""


@dataclass(frozen=True)
class Drawing:
    """A picture, and the numbers that it shows."""

    picture: Picture
    """figures/NAME.svg and .png; `picture.reading` says how to read it."""
    data: Sheet
    """figures/NAME.csv: what a reader needs to draw it again."""


@dataclass(frozen=True)
class Finding:
    """An answer to one question."""

    about: str
    answer: str
    found: bool
    """Whether there is something to say: the page shows the others more quietly."""


@dataclass(frozen=True)
class Findings:
    """Answers of one kind."""

    heading: str
    """Empty: none."""
    items: tuple[Finding, ...]


@dataclass(frozen=True)
class Prose:
    """A paragraph."""

    text: str
    quiet: bool = False
    """Small print: how a figure was made."""


@dataclass(frozen=True)
class Answers:
    """One prompt and what every arm answered; None where an arm has no response to it."""

    prompt: str
    responses: tuple[tuple[Arm, Sample | Generation | None], ...]
    how: str = ""
    """How they were drawn, where that is not as usual."""


@dataclass(frozen=True)
class Gallery:
    """Responses side by side, which the page can search."""

    name: str
    items: tuple[Answers, ...]


@dataclass(frozen=True)
class Listing:
    """A text to copy, such as a configuration: the page folds it."""

    title: str
    text: str


Part = Prose | Findings | Sheet | Drawing | Gallery | Listing


@dataclass(frozen=True)
class Chapter:
    """One section of a report."""

    name: str
    """Its anchor in the page and its key in comparison.json."""
    title: str
    parts: tuple[Part, ...]
