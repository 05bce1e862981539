"""`preflab compare`: run a study and draw its report."""

from __future__ import annotations

from rich.console import Console

from preflab.cli.report import show
from preflab.cli.study_plan import show_study_plan
from preflab.config.commands import Compare
from preflab.report import write_report
from preflab.studies.compare import compare, plan


def run(config: Compare) -> None:
    """Run the study, write the report, print its short table; or print the plan."""
    if config.dry_run:
        return show_study_plan(plan(config), Console(soft_wrap=False))
    show(write_report(compare(config)), Console(soft_wrap=False))
