"""`preflab sweep METHOD --over SETTING=VALUES`: a study with one arm a value."""

from __future__ import annotations

from preflab.cli.compare import run as run_compare
from preflab.config.commands import Sweep


def run(config: Sweep) -> None:
    """Run the study, write the report, print its short table."""
    run_compare(config.compare())
