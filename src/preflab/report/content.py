"""What a report says, in the order it says it; the page, the Markdown and the files are written from it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from preflab import __version__
from preflab.report.chapter import Chapter, Drawing, Part, Sheet
from preflab.report.chapters import CHAPTERS
from preflab.report.families import families, unequal_tries
from preflab.report.figures import colour_of, marker_of
from preflab.report.headline import headline
from preflab.report.measures import Row, summary
from preflab.report.study import Arm, Study
from preflab.report.svg import INK, on_page
from preflab.report.verdicts import Verdict, correction, verdicts

MAIN = "frontier"
"""The picture of the summary, where a study has it; else the first."""
MARKS = {
    "o": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "s": "M-3.6-3.6h7.2v7.2h-7.2z",
    "^": "M0-4.4 4.4 3.6h-8.8z",
    "D": "M0-4.8 4.8 0 0 4.8-4.8 0z",
    "v": "M0 4.4 4.4-3.6h-8.8z",
    "P": "M-1.5-4.5h3v3h3v3h-3v3h-3v-3h-3v-3h3z",
    "X": "M-4.2-2.2-2.2-4.2 0-2 2.2-4.2 4.2-2.2 2 0 4.2 2.2 2.2 4.2 0 2-2.2 4.2-4.2 2.2-2 0z",
    "h": "M0-4.6 4-2.3v4.6l-4 2.3-4-2.3v-4.6z",
}
"""matplotlib's markers as paths in a square from −5 to 5."""


@dataclass(frozen=True)
class Content:
    """Everything a report shows."""

    study: Study
    version: str
    headline: tuple[str, ...]
    cautions: tuple[str, ...]
    rows: tuple[Row, ...]
    verdicts: tuple[Verdict, ...]
    chapters: tuple[Chapter, ...]

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of all chapters."""
        return tuple(part for chapter in self.chapters for part in chapter.parts)

    @property
    def drawings(self) -> tuple[Drawing, ...]:
        """All figures."""
        return tuple(part for part in self.parts if isinstance(part, Drawing))

    @property
    def sheets(self) -> tuple[Sheet, ...]:
        """All tables."""
        return tuple(part for part in self.parts if isinstance(part, Sheet))

    @property
    def main(self) -> Drawing | None:
        """The one picture of the summary."""
        drawings = self.drawings
        return next((drawn for drawn in drawings if drawn.picture.name == MAIN), drawings[0] if drawings else None)

    def colour(self, arm: Arm) -> str:
        """The arm's colour in CSS."""
        return "currentColor" if (colour := colour_of(self.study, arm)) == INK else on_page(colour)

    def mark(self, arm: Arm) -> str:
        """The arm's mark as the path of a vector graphic."""
        return MARKS[marker_of(self.study, arm)]


def compose(study: Study) -> Content:
    """Compute and draw everything that the study's files allow."""
    found = verdicts(study)
    content = Content(
        study=study,
        version=__version__,
        headline=headline(study, found),
        cautions=cautions(study, found),
        rows=summary(study),
        verdicts=found,
        chapters=tuple(chapter for make in CHAPTERS if (chapter := make(study))),
    )
    refuse_twice("chapters", (chapter.name for chapter in content.chapters))
    refuse_twice("figures", (drawn.picture.name for drawn in content.drawings))
    refuse_twice("tables", (sheet.name for sheet in content.sheets))
    return content


def refuse_twice(what: str, names: Iterable[str]) -> None:
    """Raise ValueError where two have one name: they would overwrite each other."""
    twice = [name for name, times in Counter(names).items() if times > 1]
    if twice:
        raise ValueError(f"two {what} are called {twice[0]}; rename one")


def cautions(study: Study, found: Sequence[Verdict]) -> tuple[str, ...]:
    """How far to trust the numbers, one sentence each."""
    seeds = len(study.seeds)
    lines = []
    if seeds == 1:
        lines.append("One seed: the intervals speak for other prompts, not for other training runs; 3 seeds would.")
    elif seeds == 2:
        lines.append(
            "Two seeds: where training luck matters intervals are wide and few differences count; 3 do better."
        )
    lines += [line for line in (correction(found), unequal_tries(families(study))) if line]
    if any(row.oracle for row in study.arms):
        lines.append(f"An oracle trained on {study.reward_name} itself: a bound for the others, not a competitor.")
    return tuple(lines)
