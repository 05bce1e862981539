"""`preflab explain METHOD`: what a method computes, how it is set, what it logs, and who published it.

Nothing is said here: formulas come from the docstrings of the losses, settings from those of the configuration,
metrics from `metrics.py`.
"""

from __future__ import annotations

import dataclasses
import re
import textwrap
from collections.abc import Iterable, Iterator

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from preflab.cli.docstrings import Docstring, Paragraph, Place, read
from preflab.cli.methods import (
    LEARN_FROM,
    METHODS,
    TRAINED,
    citations,
    defaults,
    in_brief,
    learns_from,
    places,
    setting_groups,
    summary,
    trainer,
)
from preflab.cli.metrics import logged_by
from preflab.config.commands import Explain
from preflab.config.preference import Preference
from preflab.errors import ConfigError, nearest

WIDTH = 100
"""Columns, on a wider terminal too."""
Row = tuple[RenderableType, ...]

_STATES_START = re.compile(r"policy = reference|optimum|ends? at")


def run(config: Explain) -> None:
    """Explain a method, or list them all."""
    if config.method is not None and config.method not in METHODS:
        raise ConfigError(f'there is no method "{config.method}"; {nearest(config.method, METHODS)}')
    console = Console(highlight=False)
    console.width = min(WIDTH, console.width) if console.is_terminal else WIDTH
    with console.capture() as captured:
        for heading, lines in _overview() if config.method is None else _sections(config.method):
            shown = list(lines)
            if shown:
                console.print(Text(heading, style="bold"))
            for line in shown:
                console.print(Padding(line, (0, 0, 0, 2)))
            if shown:
                console.print()
    print("\n".join(line.rstrip() for line in captured.get().rstrip().splitlines()))


def _overview() -> Iterator[tuple[str, Iterable[RenderableType]]]:
    """All methods with a line each, by what they learn from."""
    yield "preflab explain METHOD", [Text("Its formula, its settings, what it logs and what should worry, its paper.")]
    for source in LEARN_FROM:
        methods = [method for method in METHODS if learns_from(defaults(method)) == source]
        rows: list[Row] = [(Text(method), Text(in_brief(method))) for method in methods]
        yield source, [_table(rows, 13)]


def _sections(method: str) -> Iterator[tuple[str, Iterable[RenderableType]]]:
    yield method, [_prose(summary(method))]
    yield "Formula", _formula(method)
    yield "Start and optimum", _asides(method, start=True)
    yield "Departures from the paper", _asides(method, start=False)
    yield "Settings: name = default, range, meaning", _settings(method)
    yield "What is logged, in metrics.jsonl", _metrics(method)
    yield "Papers", _papers(method)
    yield "In the code", _code(method)


def _formula(method: str) -> Iterator[RenderableType]:
    """Formulas with the meaning of their symbols, place by place."""
    settings = defaults(method)
    own = {field.name for field in dataclasses.fields(getattr(settings, "loss", settings))}
    for number, place in enumerate(places(method)):
        doc = read(place)
        if number:
            yield Text(f"\n{place.name or place.file}", style="italic")
        yield _prose(doc.title)
        for paragraph in (*_context(place, doc), *doc.paragraphs):
            if number or not _is_aside(paragraph):
                yield Padding(_paragraph(paragraph), (1, 0, 0, 0))
        if number == 0 or isinstance(settings, Preference):
            symbols = {name: text for name, text in doc.arguments.items() if not own & set(name.split(", "))}
            if symbols:
                yield Text()
                rows: list[Row] = [(Text(name.replace(", ", "\n")), _prose(text)) for name, text in symbols.items()]
                yield _table(rows, 24)


def _context(place: Place, doc: Docstring) -> Iterator[Paragraph]:
    """The margin h, where a formula leaves its definition to the head of its file."""
    if re.search(r"\bh\b", doc.formula) and not re.search(r"\bh\s*=", doc.formula):
        yield from (paragraph for paragraph in read(Place(place.file)).paragraphs if paragraph.kind == "formula")


def _is_aside(paragraph: Paragraph) -> bool:
    """True where a paragraph has a section of its own."""
    return paragraph.kind == "prose" and (
        paragraph.text.startswith("Departure") or bool(_STATES_START.search(paragraph.text))
    )


def _asides(method: str, *, start: bool) -> Iterator[RenderableType]:
    """What the formula is at the start and at the optimum; or what departs from the paper."""
    for paragraph in read(places(method)[0]).paragraphs:
        if _is_aside(paragraph) and start != paragraph.text.startswith("Departure"):
            text = paragraph.text if start else paragraph.text.partition(": ")[2]
            yield _prose(text[0].upper() + text[1:])


def _settings(method: str) -> Iterator[RenderableType]:
    before = ""
    for heading, settings in setting_groups(method):
        if heading:
            yield Text(f"\n{heading}", style="italic")
        rows: list[Row] = []
        for setting in settings:
            name = Text.assemble((setting.name, "bold"), f" = {setting.default}")
            allowed = Padding(Text(setting.range, style="dim"), (0, 0, 0, 2))
            meaning = "as above" if setting.meaning == before else setting.meaning
            rows.append((Group(name, allowed) if setting.range else name, _prose(meaning)))
            before = setting.meaning
        yield _table(rows, 36)
    flags = f"`preflab train {method} --help`" if method in TRAINED else f"`preflab compare --arms {method}`"
    yield Text()
    yield _prose(f"Data, model, lengths, seed and the rest: {flags}.")


def _metrics(method: str) -> Iterator[RenderableType]:
    sections = logged_by(defaults(method))
    if not sections:
        yield Text("Nothing: it doesn't train. Its points are in the arm's evaluation.json.")
    for number, section in enumerate(sections):
        yield Text(("\n" if number else "") + section.heading, style="italic")
        header: Row = (Text(), Text("meaning", style="dim"), Text("worry when it", style="dim"))
        rows: list[Row] = [
            (
                Text(metric.key, style="bold"),
                _prose(metric.meaning + (f" (with {metric.when})" if metric.when else "")),
                _prose(metric.worry or "–"),
            )
            for metric in section.metrics
        ]
        yield _table([header, *rows], max(22, *(len(metric.key) for metric in section.metrics)))


def _papers(method: str) -> Iterator[RenderableType]:
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    for number, who in citations(method).items():
        table.add_row(f"arXiv {number}", f"https://arxiv.org/abs/{number}", Text(who))
    if table.row_count:
        yield table


def _code(method: str) -> Iterator[RenderableType]:
    settings = defaults(method)
    cls = type(settings)
    of_settings = Place("/".join(cls.__module__.split(".")[1:]) + ".py", cls.__name__)
    for place in dict.fromkeys([*places(method), trainer(settings), of_settings]):
        yield Text(str(place))


def _paragraph(paragraph: Paragraph) -> RenderableType:
    match paragraph.kind:
        case "formula":
            lines = [line for whole in paragraph.text.splitlines() for line in _broken(whole, WIDTH - 6)]
            return Padding(Text("\n".join(lines), style="cyan"), (0, 0, 0, 2))
        case "table":
            table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
            for line in paragraph.text.splitlines():
                if not line.startswith("|-"):
                    table.add_row(*(_prose(cell.strip()) for cell in line.strip("|").split("|")))
            return table
        case _:
            return _prose(paragraph.text)


def _broken(line: str, width: int) -> list[str]:
    """A line of a formula in lines that fit; what is broken off goes on in its second column.

    >>> _broken("x = a·b   (a, b the sides)", 20)
    ['x = a·b   (a, b the', '          sides)']
    """
    column = re.search(r"\S {3,}(?=\S)", line)
    indent = column.end() if column else len(line) - len(line.lstrip()) + 4
    return textwrap.wrap(line, width, subsequent_indent=" " * indent, break_on_hyphens=False)


def _prose(text: str) -> Text:
    """Text with the emphasis that Markdown's **, * and ` ask for."""
    shown, end = Text(), 0
    for match in re.finditer(r"\*\*(.+?)\*\*|(?<!\w)\*(\w.*?)\*(?!\w)|`([^`]+)`", text):
        shown.append(text[end : match.start()])
        bold, italic, code = match.groups()
        shown.append(bold or italic or code, style="bold" if bold else "italic" if italic else "cyan")
        end = match.end()
    return shown.append(text[end:])


def _table(rows: Iterable[Row], first: int) -> Table:
    """Columns without lines, the first one `first` wide."""
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(width=first)
    for row in rows:
        table.add_row(*row)
    return table
