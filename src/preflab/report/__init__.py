"""From a study folder to `report.html`, `report.md`, `comparison.json`, `figures/` and `tables/`; for the score of a
table's rows, see `table.py`, for a table study `table_study.py`.

Reads folders alone, so a report can be drawn at any time, during a study too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text

from preflab.errors import StorageError
from preflab.report.comparison import comparison
from preflab.report.content import Content, compose
from preflab.report.files import write_files
from preflab.report.notebook import view
from preflab.report.page import files, html, markdown
from preflab.report.study import read_study
from preflab.report.table import TableReport, write_table_report
from preflab.report.table_study import TableStudyReport, write_table_study
from preflab.report.table_study_folder import is_table_study
from preflab.report.verdicts import Verdict, mean_cost
from preflab.report.wording import duration, interval, steps, visible
from preflab.runs import write_json, write_text

__all__ = [
    "Report",
    "TableReport",
    "TableStudyReport",
    "redraw",
    "write_report",
    "write_table_report",
    "write_table_study",
]


@dataclass(frozen=True)
class Report:
    """A written report: `path` is its page, `content` what it says."""

    path: Path
    content: Content

    @property
    def complete(self) -> bool:
        """Whether the study had finished when the report was drawn."""
        return self.content.study.complete

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The answers, in the page's order."""
        return self.content.verdicts

    @property
    def summary(self) -> str:
        """The verdicts' headline: a few plain sentences for the terminal."""
        return visible(" ".join(self.content.headline))

    def table(self) -> Table:
        """A short table for the terminal: `rich.console.Console().print(report.table())`."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("arm")
        for title in ("step", visible(self.content.study.reward_name), "KL (nats)", "wins", "time"):
            table.add_column(title, justify="right", no_wrap=True)
        for row in self.content.rows:
            cells = (
                visible(row.arm.title).replace("\n", " "),
                steps(row.steps),
                interval(row.measures.reward),
                ("≤ " if row.arm.kl_is_bound else "") + interval(row.measures.kl, digits=1),
                f"{row.measures.win_rate.mean:.0%}",
                duration(mean_cost(row.arm, "wall_seconds")),
            )
            table.add_row(*(Text(cell) for cell in cells))
        return table

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        main = self.content.main
        return view(
            self.content.study.title,
            self.summary,
            self.table(),
            main.picture if main else None,
            self.path,
            self.complete,
        )


def write_report(folder: Path) -> Report:
    """Draw the report of the study in `folder`, which may still be running, and write it there.

    Raises StorageError where `folder` holds no study, or can't be read or written; NumericError where a row is not
    finite.
    """
    content = compose(read_study(folder))
    write_files(folder, files(content))
    numbers = comparison(content.study, content.rows, content.verdicts, content.chapters)
    write_json(folder / "comparison.json", numbers)
    write_text(folder / "report.md", markdown(content))
    path = folder / "report.html"
    write_text(path, html(content))
    return Report(path, content)


def redraw(folder: Path) -> Report | TableReport | TableStudyReport:
    """Draw the report of what is in `folder`: the score of a table's rows, a study of a table, or another study.

    Raises:
        StorageError: it holds neither, or can't be read or written.
        NumericError: a number in it is not finite.
    """
    if (folder / "score.json").is_file():
        return write_table_report(folder)
    if is_table_study(folder):
        return write_table_study(folder)
    if (folder / "study.json").is_file():
        return write_report(folder)
    raise StorageError(
        f"{folder} holds no study.json and no score.json; name the --out of preflab compare or of preflab table score"
    )
