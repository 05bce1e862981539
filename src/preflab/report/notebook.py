"""A report as a notebook shows it: the summary, the short table and one picture, without a script.

from pathlib import Path
from preflab.report import redraw

redraw(Path("runs/study"))  # the last line of a cell
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from rich.table import Table
from rich.text import Text

from preflab.report.svg import Picture
from preflab.report.templates import environment


def view(title: str, summary: str, table: Table, picture: Picture | None, path: Path, complete: bool = True) -> str:
    """HTML for `_repr_html_`: its styles reach nothing around it, its ids are of this report alone."""
    columns = [[plain(cell) for cell in column.cells] for column in table.columns]
    return (
        environment(for_markdown=False)
        .get_template("notebook.html.j2")
        .render(
            title=title,
            summary=summary,
            heads=[plain(column.header) for column in table.columns],
            rows=list(zip(*columns, strict=True)),
            picture=picture,
            mark=f"preflab-{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}",
            path=str(path),
            complete=complete,
        )
    )


def plain(cell: object) -> str:
    """The text of a cell on one line."""
    return " ".join((cell.plain if isinstance(cell, Text) else str(cell)).split())
