"""A study's content as one HTML page that asks nothing of the network, as Markdown, and as files of numbers."""

from __future__ import annotations

from preflab.report.cells import as_csv
from preflab.report.content import Content
from preflab.report.files import picture_files
from preflab.report.templates import environment, tidy

SHOWN_ANSWERS = 6
"""Prompts of a gallery that the page doesn't fold."""


def html(content: Content) -> str:
    """The page."""
    template = environment(for_markdown=False).get_template("page.html.j2")
    return template.render(content=content, study=content.study, shown_answers=SHOWN_ANSWERS)


def markdown(content: Content) -> str:
    """The same as Markdown, with links to the figures' files."""
    template = environment(for_markdown=True).get_template("report.md.j2")
    return tidy(template.render(content=content, study=content.study))


def files(content: Content) -> dict[str, bytes]:
    """Every figure as SVG, PNG and the numbers it shows, and every table as CSV, by path in the study's folder."""
    tables = {f"tables/{sheet.name}.csv": as_csv(sheet).encode() for sheet in content.sheets}
    data = {f"figures/{drawn.picture.name}.csv": as_csv(drawn.data).encode() for drawn in content.drawings}
    return tables | data | picture_files(drawn.picture for drawn in content.drawings)
