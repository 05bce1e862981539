"""`preflab report`: draw a study's report again."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from preflab.config import commands
from preflab.report import Report, write_report


def run(config: commands.Report) -> None:
    """Write the report from the run folders as they stand, print its short table."""
    show(write_report(config.study), Console(soft_wrap=False))


def show(report: Report, console: Console) -> None:
    """The short table, the verdict in a few sentences, and where the report is."""
    console.print()
    console.print(report.table())
    console.print()
    console.print(escape(report.summary))
    console.print(f"\nreport: {escape(str(report.path))}", soft_wrap=True)
