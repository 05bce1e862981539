"""`preflab report`: draw the report of a study, or of a score, again."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from preflab.config import commands
from preflab.report import Report, TableReport, TableStudyReport, redraw


def run(config: commands.Report) -> None:
    """Write the report from the folders as they stand, print its short table."""
    show(redraw(config.folder), Console(soft_wrap=False))


def show(report: Report | TableReport | TableStudyReport, console: Console) -> None:
    """The short table, what was found in a few sentences, and where the report is."""
    console.print()
    console.print(report.table())
    console.print()
    console.print(escape(report.summary))
    console.print(f"\nreport: {escape(str(report.path))}", soft_wrap=True)
