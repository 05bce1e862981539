"""The chapter on a table study: a study folder → `report.html`, `report.md`, `comparison.json` and `figures/*.svg`.

Drawn from what is there, while the study runs too. What it says and by which rules: `table_study_verdicts.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table
from rich.text import Text

from preflab import __version__
from preflab.report.files import picture_files, write_files
from preflab.report.notebook import view
from preflab.report.svg import INK, Picture
from preflab.report.table_study_figures import colour_of, pictures
from preflab.report.table_study_folder import REFERENCE, Arm, TableStudy, read_table_study
from preflab.report.table_study_verdicts import (
    CPU_SECONDS,
    GROUPS,
    KL,
    RULES_IN_WORDS,
    SPEED,
    Answers,
    Figure,
    Mean,
    Unit,
    Verdict,
    answers,
    bracketed,
    comparisons,
    converged,
    deviation,
    gains_judged,
    headline,
    independent_of,
    mean_of,
    one_a_seed,
    paired,
    primary_of,
    reward_rise,
    seed_means,
    shown,
    validation_gain,
)
from preflab.report.templates import environment, tidy
from preflab.report.wording import count, duration, number, visible
from preflab.runs import write_json, write_text

FEW_SEEDS = 5


@dataclass(frozen=True)
class Cell:
    """A figure of an arm: its mean, its interval, and what it differs from the reference by."""

    value: str
    interval: str
    difference: str
    mark: str
    """better or worse, where the interval of the difference excludes 0; else empty."""


@dataclass(frozen=True)
class Sheet:
    """A table of figures: a line for each arm."""

    title: str
    heads: tuple[str, ...]
    lines: tuple[tuple[Arm, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Line:
    """An arm and some texts."""

    arm: Arm
    cells: tuple[str, ...]


@dataclass(frozen=True)
class TableStudyContent:
    """Everything that the page says."""

    study: TableStudy
    version: str
    headline: tuple[str, str, str]
    answers: Answers
    comparisons: int
    sheets: tuple[Sheet, ...]
    pictures: Mapping[str, Picture]
    proxies: tuple[Line, ...]
    convergence: tuple[Line, ...]
    matter_lines: tuple[Line, ...]
    matter_titles: tuple[str, ...]
    cautions: tuple[str, ...]
    settings: tuple[tuple[str, str], ...]
    rules: tuple[str, ...] = RULES_IN_WORDS

    def colour(self, arm: Arm) -> str:
        """An arm's colour, for CSS."""
        if arm is self.study.real:
            return "var(--soft)"
        found = colour_of(self.study, arm)
        return "currentColor" if found == INK else found


@dataclass(frozen=True)
class TableStudyReport:
    """A written report on a table study: `path` is its page, `content` what it says."""

    path: Path
    content: TableStudyContent

    @property
    def complete(self) -> bool:
        """Whether the study had finished when the report was drawn."""
        return self.content.study.complete

    @property
    def verdicts(self) -> tuple[Verdict, ...]:
        """The answers, in the page's order."""
        return self.content.answers.all

    @property
    def summary(self) -> str:
        """The headline, for the terminal."""
        return visible(" ".join(self.content.headline))

    def table(self) -> Table:
        """A short table for the terminal."""
        study = self.content.study
        reference, figure = study.arm(REFERENCE), primary_of(study)
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("arm")
        for title in ("told apart", "− reference", "KL", "CPU time"):
            table.add_column(title, justify="right", no_wrap=True)
        for arm in study.arms:
            mean, kl = mean_of(figure.of(arm), figure.title), mean_of(KL.of(arm), "KL")
            own = arm is reference or not reference
            difference = None if own or not reference else paired(figure.of(arm), figure.of(reference), figure.title)
            seconds = mean_of(CPU_SECONDS.of(arm), "seconds")
            cells = (
                visible(arm.label).replace("\n", " "),
                number(mean.mean if mean else None, 3),
                bracketed(difference, "score") if difference else "–",
                number(kl.mean if kl else None, 1),
                duration(seconds.mean if seconds else None),
            )
            table.add_row(*(Text(cell) for cell in cells))
        return table

    def _repr_html_(self) -> str:
        """What a notebook shows of it."""
        picture = next(iter(self.content.pictures.values()), None)
        return view(self.content.study.title, self.summary, self.table(), picture, self.path, self.complete)


def write_table_study(folder: Path) -> TableStudyReport:
    """Draw the report of the table study in `folder`, which may still be running, and write it there.

    Raises:
        StorageError: `folder` holds no table study, or can't be read or written.
        NumericError: a figure is not finite.
    """
    content = compose(read_table_study(folder))
    write_files(folder, picture_files(content.pictures.values()))
    write_json(folder / "comparison.json", comparison(content))
    markdown = environment(for_markdown=True).get_template("table_study.md.j2").render(content=content)
    write_text(folder / "report.md", tidy(markdown))
    path = folder / "report.html"
    write_text(path, environment(for_markdown=False).get_template("table_study.html.j2").render(content=content))
    return TableStudyReport(path, content)


def compose(study: TableStudy) -> TableStudyContent:
    """Everything that the page says about a study."""
    found = answers(study)
    asked = comparisons(study, found)
    titles = tuple(title for title, _ in found.matters)
    return TableStudyContent(
        study=study,
        version=__version__,
        headline=headline(study, found),
        answers=found,
        comparisons=asked,
        sheets=sheets(study),
        pictures=pictures(study),
        proxies=tuple(proxy_line(study, arm) for arm in study.aligned if arm.alignments),
        convergence=tuple(convergence_line(study, arm) for arm in study.aligned if arm.alignments),
        matter_lines=matter_lines(study, found),
        matter_titles=titles,
        cautions=cautions(study, asked),
        settings=tuple((str(name), str(value)) for name, value in study.settings.items()),
    )


def sheets(study: TableStudy) -> tuple[Sheet, ...]:
    """The tables of figures, without columns and lines of which nothing is known."""
    made = []
    for title, group in GROUPS:
        figures = [figure for figure in group if any(figure.of(arm) for arm in study.arms)]
        lines = [
            (arm, tuple(cell(study, arm, figure) for figure in figures))
            for arm in (*study.arms, study.real)
            if any(figure.of(arm) for figure in figures)
        ]
        if lines:
            made.append(Sheet(title, tuple(figure.title for figure in figures), tuple(lines)))
    return tuple(made)


def cell(study: TableStudy, arm: Arm, figure: Figure) -> Cell:
    """A figure of an arm next to the reference."""
    mean = mean_of(figure.of(arm), f"{figure.title} of {arm.name}")
    if not mean:
        return Cell("–", "", "", "")
    value, _, ends = bracketed(within(mean, figure.unit), figure.unit).partition(" [")
    reference = study.arm(REFERENCE)
    difference = None
    if reference and figure.good and arm not in (reference, study.real):
        difference = paired(figure.of(arm), figure.of(reference), f"{figure.title} of {arm.name} − reference")
    if not difference:
        return Cell(value, ends and f"[{ends}", "", "")
    mark = {1: "better", -1: "worse", 0: ""}[difference.sign * figure.good]
    return Cell(value, ends and f"[{ends}", signed(bracketed(difference, figure.unit), difference), mark)


def within(mean: Mean, unit: Unit) -> Mean:
    """The same, its interval inside what the unit can be: shares from 0 to 1, counts and costs from 0."""
    if mean.estimate is None or unit == "score":
        return mean
    inside = mean.estimate.within(0.0, 1.0 if unit == "share" else float("inf"))
    return Mean(mean.mean, inside, mean.seeds, mean.draws)


def signed(text: str, difference: Mean) -> str:
    """A difference with a plus where it is one."""
    return f"+{text}" if difference.mean > 0 and any(digit in "123456789" for digit in text.split()[0]) else text


def proxy_line(study: TableStudy, arm: Arm) -> Line:
    """What the reward, the validation rows and the independent judge said of one arm."""
    figure, reference = independent_of(study), study.arm(REFERENCE)
    rise = mean_of(one_a_seed(arm, reward_rise), "reward")
    gain = mean_of(one_a_seed(arm, validation_gain), "gain on validation")
    judged = mean_of(figure.of(arm), figure.title)
    difference = paired(figure.of(arm), figure.of(reference), figure.title) if reference else None
    return Line(
        arm,
        (
            signed(bracketed(rise, "score"), rise) if rise else "–",
            bracketed(gain, "score") if gain else "–",
            bracketed(judged, "score") if judged else "–",
            signed(bracketed(difference, "score"), difference) if difference else "–",
        ),
    )


def convergence_line(study: TableStudy, arm: Arm) -> Line:
    """How far, how fast and how evenly one arm got there."""
    runs = arm.alignments
    gain = mean_of(one_a_seed(arm, validation_gain), "gain on validation")
    points = [point for one in runs.values() if (point := converged(one))]
    without = len(runs) - len(points)
    none = f"no gain in {without} of {len(runs)}" if without else ""

    def middle(values: list[float | None], unit: Unit) -> str:
        known = [value for value in values if value is not None]
        return ", ".join(text for text in (shown(median(known), unit) if known else "", none) if text) or "–"

    spread = deviation(list(seed_means(primary_of(study).of(arm)).values()))
    gained = deviation(list(gains_judged(study, arm).values()))
    collapsed = sum(one.collapsed for one in runs.values())
    return Line(
        arm,
        (
            bracketed(gain, "score") if gain else "–",
            middle([float(point.step) for point in points], "count"),
            middle([point.queries for point in points], "count"),
            middle([point.cpu_seconds for point in points], "seconds"),
            number(spread, 4),
            number(gained, 4),
            f"{collapsed} of {len(runs)}",
        ),
    )


def matter_lines(study: TableStudy, found: Answers) -> tuple[Line, ...]:
    """A line for each arm: its word on each matter, and its speed."""
    lines = []
    for arm in study.arms:
        words = [next((one.word for one in row if one.arm == arm.label), "–") for _, row in found.matters]
        speed = mean_of(SPEED.of(arm), "speed")
        seconds = mean_of(CPU_SECONDS.of(arm), "seconds")
        cells = (
            *words,
            duration(seconds.mean) if seconds else "–",
            count(speed.mean) if speed else "–",
        )
        if arm.name == REFERENCE:
            cells = ("–",) * len(words) + cells[len(words) :]
        lines.append(Line(arm, cells))
    return tuple(lines)


def cautions(study: TableStudy, asked: int) -> tuple[str, ...]:
    """What the page can't say."""
    seeds = len(study.seeds_judged)
    draws = f"{seeds} seed{'s' if seeds != 1 else ''}"
    if seeds < 2:
        first = f"{draws}: no interval can be given, and no question is decided."
    elif seeds < FEW_SEEDS:
        first = (
            f"{draws}: intervals are wide and lean on the normal distribution; a difference that is not found may "
            "still be there, and a larger study can undo what is found."
        )
    else:
        first = f"{draws}, each with its own fit: intervals speak for other seeds on this table, not for other tables."
    return (
        first,
        f"{asked} differences were set against 0 on this page. Those within one question are corrected for their "
        "number; the questions and the tables are not corrected for each other, so about one in twenty would exclude "
        "0 by luck alone.",
        f"Rows are judged by {primary_of(study).title}; of another family than the discriminators that gave the "
        f"rewards is {independent_of(study).title}. A judge of the rewards' own family is not independent of them, "
        "and a difference that no judge here sees may be seen by another.",
        "Copies, distances and membership are evidence about privacy and no guarantee: an attack that is not tried "
        "here may succeed.",
        "Methods were compared with these settings at this cost; another choice of steps, rewards or learning rates "
        "may order them otherwise.",
    )


def comparison(content: TableStudyContent) -> dict[str, Any]:
    """The content of comparison.json: figures and verdicts for other programs; what was not measured is null."""
    study = content.study
    return {
        "kind": "table",
        "study": dict(study.settings),
        "primary": study.primary,
        "independent": study.independent,
        "headline": list(content.headline),
        "best": content.answers.best.arm.name if content.answers.best else None,
        "comparisons": content.comparisons,
        "arms": [arm_json(study, arm) for arm in (*study.arms, study.real)],
        "verdicts": [verdict.json() for verdict in content.answers.all],
        "matters": [
            {"matter": title, "arm": one.arm, "answer": one.word}
            for title, row in content.answers.matters
            for one in row
        ],
        "missing": list(study.gaps),
        "complete": study.complete,
    }


def arm_json(study: TableStudy, arm: Arm) -> dict[str, Any]:
    """One arm: each figure's mean, and its difference to the reference."""
    reference = study.arm(REFERENCE)
    figures = {}
    for figure in (figure for _, group in GROUPS for figure in group):
        mean = mean_of(figure.of(arm), figure.title)
        other = reference if reference and arm not in (reference, study.real) else None
        difference = paired(figure.of(arm), figure.of(other), figure.title) if other else None
        if mean:
            figures[figure.key] = {"mean": mean.json(), "difference": difference.json() if difference else None}
    points = {seed: converged(one) for seed, one in arm.alignments.items()}
    return {
        "name": arm.name,
        "label": arm.label,
        "seeds": sorted(arm.judged),
        "figures": figures,
        "converged": [
            {
                "seed": seed,
                "step": point.step if point else None,
                "queries": point.queries if point else None,
                "cpu_seconds": point.cpu_seconds if point else None,
                "gain": validation_gain(arm.alignments[seed]),
                "collapsed": arm.alignments[seed].collapsed,
            }
            for seed, point in points.items()
        ],
    }
