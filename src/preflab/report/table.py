"""The chapter on judged rows: a score folder → a section, or `report.html`, `report.md` and `figures/*.svg`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from textwrap import wrap

from markupsafe import Markup
from rich.table import Table
from rich.text import Text

from preflab import __version__
from preflab.report import table_figures as draw
from preflab.report.files import picture_files, write_files
from preflab.report.notebook import view
from preflab.report.score import Marginal, Rule, Score, Subject, read_score
from preflab.report.svg import Picture
from preflab.report.table_verdict import NOT_AVAILABLE, Line, lines, summary
from preflab.report.templates import environment, tidy
from preflab.report.wording import count, duration, number, visible
from preflab.runs import write_text

HEAD_WIDTH = 11
"""Characters of a column's head on the terminal."""
CELL = 22
"""Characters of a cell that are shown; the whole text is in the cell's title."""
RULES_SHOWN = 10
CLASSES_SHOWN = 20
BALANCES = {
    "none": "none",
    "class_weight": "class weight",
    "smote": "SMOTE",
    "over": "oversampling",
    "under": "undersampling",
    "smoteenn": "SMOTEENN",
}
STOPPED = {"epochs": "all passes were done", "minutes": "its time was over", "validation": "validation no longer fell"}


@dataclass(frozen=True)
class Cell:
    """A cell as it is shown, and all of it."""

    shown: str
    whole: str

    @property
    def cut(self) -> bool:
        """Whether something is left out."""
        return self.shown != self.whole


@dataclass(frozen=True)
class Grid:
    """A table of texts."""

    heads: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Chapter:
    """Everything that is said about judged rows."""

    score: Score
    version: str
    summary: tuple[str, ...]
    lines: tuple[Line, ...]
    marginals: Picture | None
    other_marginals: tuple[Marginal, ...]
    """Columns without a picture, the worst first."""
    associations: Picture | None
    detectability: Picture | None
    utility: Picture | None
    balancing: Grid | None
    by_class: Grid | None
    privacy: Picture | None
    rules: tuple[Rule, ...]
    """The worst first."""
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    """A line for each column."""
    fit: Picture | None
    fit_facts: tuple[tuple[str, str], ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, for the figures folder."""
        drawn = (self.marginals, self.associations, self.detectability, self.utility, self.privacy, self.fit)
        return tuple(picture for picture in drawn if picture)

    @property
    def headline(self) -> tuple[Line, ...]:
        """The figures that matter most."""
        return tuple(line for line in self.lines if line.headline)

    @property
    def html(self) -> Markup:
        """The section, to stand in any page of a report."""
        return Markup(environment(for_markdown=False).get_template("table_section.html.j2").render(chapter=self))


@dataclass(frozen=True)
class TableReport:
    """A written report on judged rows: `path` is its page, `chapter` what it says."""

    path: Path
    chapter: Chapter

    @property
    def summary(self) -> str:
        """A few plain sentences for the terminal."""
        return visible(" ".join(self.chapter.summary))

    def table(self) -> Table:
        """The headline figures for the terminal, in 80 columns."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("figure", no_wrap=True, vertical="bottom")
        for subject in self.chapter.score.subjects:
            words = wrap(visible(heading(subject)), HEAD_WIDTH)
            table.add_column(Text("\n".join(words)), justify="right", no_wrap=True, vertical="bottom")
        table.add_column("good", no_wrap=True, vertical="bottom")
        for line in self.chapter.headline:
            values = ("–" if value == NOT_AVAILABLE else value for value in line.values)
            table.add_row(*(Text(text) for text in (line.title, *values, line.good.partition(",")[0])))
        return table

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        picture = next(iter(self.chapter.pictures), None)
        return view("How real are these rows?", self.summary, self.table(), picture, self.path)


def write_table_report(folder: Path) -> TableReport:
    """Draw the report of the score in `folder`, and write it there.

    Raises:
        StorageError: `folder` holds no score, or can't be read or written.
        NumericError: a number of a picture is not finite.
    """
    found = chapter(folder)
    write_files(folder, picture_files(found.pictures))
    markdown = environment(for_markdown=True).get_template("table.md.j2").render(chapter=found)
    write_text(folder / "report.md", tidy(markdown))
    path = folder / "report.html"
    write_text(path, environment(for_markdown=False).get_template("table.html.j2").render(chapter=found))
    return TableReport(path, found)


def chapter(folder: Path) -> Chapter:
    """Read the score in `folder` and draw everything that it has figures for.

    Raises:
        StorageError: `folder` holds no score, or can't be read.
    """
    score = read_score(folder)
    shown, others = worst_last(score)
    return Chapter(
        score=score,
        version=__version__,
        summary=summary(score),
        lines=lines(score),
        marginals=draw.marginals(shown, dict(score.columns), rows_of(score)) if shown else None,
        other_marginals=others,
        associations=(
            draw.associations(score.associations, len(score.columns))
            if score.associations and len(score.associations.columns) > 1
            else None
        ),
        detectability=draw.detectability(score.roc, score.synthetic.figures) if score.roc else None,
        utility=draw.utility(score),
        balancing=balancing(score),
        by_class=by_class(score),
        privacy=draw.privacy(score.distances) if score.distances else None,
        rules=score.rules[:RULES_SHOWN],
        rows=sampled(score),
        fit=draw.fitting(score.fit) if score.fit else None,
        fit_facts=fit_facts(score),
    )


def rows_of(score: Score) -> tuple[int, int] | None:
    """How many held-out and synthetic rows were judged."""
    real, synthetic = score.file("holdout"), score.file("synthetic")
    return (real.rows, synthetic.rows) if real and synthetic else None


def heading(subject: Subject) -> str:
    """A subject as the head of a column."""
    return "these rows" if subject.name == "synthetic" else subject.title


def worst_last(score: Score) -> tuple[tuple[Marginal, ...], tuple[Marginal, ...]]:
    """The columns that get a picture, and the others: in the table's order where all fit, else the worst first."""
    if len(score.marginals) <= draw.MARGINALS_SHOWN:
        return score.marginals, ()
    ordered = tuple(sorted(score.marginals, key=lambda marginal: -marginal.distance))
    return ordered[: draw.MARGINALS_SHOWN], ordered[draw.MARGINALS_SHOWN :]


def balancing(score: Score) -> Grid | None:
    """Balanced accuracy by model and by how the training rows were balanced, that of real training rows in brackets."""
    figures, real = score.synthetic.figures, score.utility_of_real
    models = figures.names("utility", "models")
    used = [name for name in BALANCES if any(name in figures.names("utility", "models", model) for model in models)]
    if used in ([], ["none"]):
        return None

    def cell(model: str, balance: str) -> str:
        here = figures.at("utility", "models", model, balance, "balanced_accuracy")
        return beside(here, real.at("models", model, balance, "balanced_accuracy"))

    rows = [(draw.MODELS.get(model, model), *(cell(model, balance) for balance in used)) for model in models]
    return Grid(("Model", *(BALANCES[name] for name in used)), tuple(rows))


def by_class(score: Score) -> Grid | None:
    """F1 of each class by model, without balancing, that of real training rows in brackets."""
    figures, real = score.synthetic.figures, score.utility_of_real
    models = figures.names("utility", "models")
    classes = list(
        dict.fromkeys(name for model in models for name in figures.names("utility", "models", model, "none", "f1"))
    )
    if not classes:
        return None
    rows = []
    for name in classes[:CLASSES_SHOWN]:
        path = ("none", "f1", name)
        cells = (
            beside(figures.at("utility", "models", model, *path), real.at("models", model, *path)) for model in models
        )
        rows.append((draw.shortened(name, 30) or "empty", *cells))
    return Grid(("Class", *(draw.MODELS.get(model, model) for model in models)), tuple(rows))


def beside(here: float | None, real: float | None) -> str:
    """A figure of synthetic rows, that of real ones in brackets."""
    text = NOT_AVAILABLE if here is None else number(here, 3)
    return text if real is None else f"{text} [{number(real, 3)}]"


def sampled(score: Score) -> tuple[tuple[str, tuple[Cell, ...]], ...]:
    """The sampled rows, turned: a line for each column, since a table has often more columns than a page has room."""
    if not score.rows:
        return ()
    return tuple(
        (name, tuple(shown(row[place]) for row in score.rows.cells)) for place, name in enumerate(score.rows.columns)
    )


def shown(text: str) -> Cell:
    """A cell on one line, long ones cut at the end."""
    line = visible(text).replace("\n", "␊").replace("\t", "␉")
    return Cell(line if len(line) <= CELL else line[: CELL - 1] + "…", line)


def fit_facts(score: Score) -> tuple[tuple[str, str], ...]:
    """What a fit left about itself, in words."""
    if not score.fit:
        return ()
    facts = score.fit.facts
    found = [
        ("Training rows", count(facts.at("rows"))),
        ("Validation rows", count(facts.at("validation_rows"))),
        ("Validation, nats a row", number(facts.at("validation_nats"), 2)),
        ("Step that was kept", count(facts.at("best_step"))),
        ("Time", duration(facts.at("seconds"))),
        ("CPU time", duration(facts.at("cpu_seconds"))),
        ("Stopped, since", STOPPED.get(score.fit.stopped_by, score.fit.stopped_by or "–")),
    ]
    return tuple((name, text) for name, text in found if text != "–")
