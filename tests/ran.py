"""A command, run as from a shell."""

from __future__ import annotations

import pytest

from preflab.cli.main import main


def run(capfd: pytest.CaptureFixture[str], *words: object) -> tuple[int, str, str]:
    """Exit code, what a command prints, and what it says on the side."""
    code = 0
    try:
        main([str(word) for word in words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    said = capfd.readouterr()
    return code, said.out, said.err
