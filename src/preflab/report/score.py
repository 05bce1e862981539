"""A score folder, read: score.json, and the fit whose run folder holds the training file.

Nothing here computes a figure. What could not be measured is null there and None here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from preflab.errors import StorageError
from preflab.report.fields import Fields, is_finite
from preflab.report.statistics import Matrix
from preflab.runs import JSON, RunFolder, read_json, read_lines

REGRESSION = "r2"
"""The measure that utility has where the target is a number."""


@dataclass(frozen=True)
class Figures:
    """Figures by their path: `figures.at("utility", "mean", "auc")`."""

    value: Mapping[str, Any]
    path: Path
    """The file they are from."""

    def at(self, *names: str) -> float | None:
        """A figure; None where it, or what it is part of, could not be measured.

        Raises:
            StorageError: it is no finite number.
        """
        found = self._found(names)
        if found is None:
            return None
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise StorageError(f'{self.path}: "{" / ".join(names)}" should be a number; score the rows again')
        return float(found)

    def names(self, *names: str) -> tuple[str, ...]:
        """What there is at a path."""
        found = self._found(names)
        return tuple(found) if isinstance(found, dict) else ()

    def _found(self, names: Sequence[str]) -> JSON:
        found: JSON = self.value
        for name in names:
            if found is not None and not isinstance(found, dict):
                raise StorageError(f'{self.path}: "{" / ".join(names)}" should be in an object; score the rows again')
            found = None if found is None else found.get(name)
        return found


@dataclass(frozen=True)
class Subject:
    """Rows that were judged: the synthetic ones, or one of the bounds."""

    name: str
    title: str
    figures: Figures


@dataclass(frozen=True)
class File:
    """A table that the score was computed from."""

    role: str
    path: str
    rows: int
    sha256: str


@dataclass(frozen=True)
class Marginal:
    """How often a column has each of its levels, and how often it is between two edges; the levels come first."""

    column: str
    labels: tuple[str, ...]
    edges: Matrix
    real: Matrix
    synthetic: Matrix

    @cached_property
    def distance(self) -> float:
        """The total variation distance of the two histograms: the share of rows that would have to change places."""
        return float(np.abs(self.real - self.synthetic).sum() / 2)


@dataclass(frozen=True)
class Associations:
    """How strongly each pair of columns goes together, in the real and in the synthetic rows."""

    columns: tuple[str, ...]
    real: Matrix
    synthetic: Matrix


@dataclass(frozen=True)
class Roc:
    """A classifier's hits against its false alarms."""

    classifier: str
    false_positives: Matrix
    true_positives: Matrix


@dataclass(frozen=True)
class Distances:
    """Shares of rows by their distance to the closest training row."""

    edges: Matrix
    synthetic: Matrix
    holdout: Matrix


@dataclass(frozen=True)
class Rule:
    """A rule that the training rows keep, and the share of rows that break it."""

    text: str
    synthetic: float
    holdout: float | None


@dataclass(frozen=True)
class Rows:
    """Sampled rows, cells as they are written."""

    columns: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Fit:
    """How a model was fitted: a run folder."""

    folder: Path
    config: str
    facts: Figures
    stopped_by: str
    training: tuple[tuple[float, float], ...]
    """Step, and loss in nats a row."""
    validation: tuple[tuple[float, float], ...]
    """Step and nats a row."""


@dataclass(frozen=True)
class Score:
    """All of score.json."""

    folder: Path
    files: tuple[File, ...]
    target: str | None
    seed: int
    redraws: int | None
    rows_per_cpu_second: float | None
    """How fast the synthetic rows were sampled."""
    version: str
    columns: tuple[tuple[str, str], ...]
    """Name and kind."""
    evidence: str
    """What figures of privacy can't say."""
    notes: tuple[str, ...]
    subjects: tuple[Subject, ...]
    utility_of_real: Figures
    marginals: tuple[Marginal, ...]
    associations: Associations | None
    roc: tuple[Roc, ...]
    distances: Distances | None
    rules: tuple[Rule, ...]
    rows: Rows | None
    fit: Fit | None

    @property
    def synthetic(self) -> Subject:
        """The rows that the score is about."""
        return self.subjects[0]

    def bound(self, name: str) -> Subject | None:
        """The bound `real` or `marginals`."""
        return next((subject for subject in self.subjects[1:] if subject.name == name), None)

    def file(self, role: str) -> File | None:
        """The file with this role."""
        return next((file for file in self.files if file.role == role), None)

    @property
    def regression(self) -> bool:
        """Whether the target is a number to be foretold."""
        return REGRESSION in (*self.utility_of_real.names("mean"), *self.synthetic.figures.names("utility", "mean"))


def read_score(folder: Path) -> Score:
    """Read a score folder.

    Raises:
        StorageError: it holds no score, or something in it is not as `preflab table score` writes it.
    """
    path = folder / "score.json"
    if not path.is_file():
        raise StorageError(f"{folder} is not a score folder: it has no score.json; name the --out of a score")
    content = Fields(read_json(path), path)
    subjects = tuple(
        Subject(item.text("name"), item.text("title"), Figures(item.mapping("figures"), path))
        for item in content.items("subjects")
    )
    first = [subject for subject in subjects if subject.name == "synthetic"]
    if not first:
        raise StorageError(f'{path}: "subjects" has no "synthetic"; score the rows again')
    listed = content.inner("files")
    files = tuple(
        File(role, item.text("path"), item.whole("rows"), item.text("sha256"))
        for role, item in ((role, listed.inner(role)) for role in listed.value)
    )
    pictures = part(content, "pictures") or Fields({}, path)
    associations, distances, rows = (part(pictures, name) for name in ("associations", "distances", "rows"))
    train = next((file for file in files if file.role == "train"), None)
    return Score(
        folder=folder,
        files=files,
        target=None if content.value.get("target") is None else content.text("target"),
        seed=content.whole("seed"),
        redraws=None if content.value.get("redraws") is None else content.whole("redraws"),
        rows_per_cpu_second=Figures(content.value, path).at("rows_per_cpu_second"),
        version=content.text("preflab"),
        columns=tuple((item.text("name"), item.text("kind")) for item in content.items("columns")),
        evidence=content.text("evidence"),
        notes=tuple(str(line) for line in content.listing("notes")),
        subjects=(*first, *(subject for subject in subjects if subject.name != "synthetic")),
        utility_of_real=Figures((part(content, "utility_of_real") or Fields({}, path)).value, path),
        marginals=tuple(read_marginal(item) for item in parts(pictures, "marginals")),
        associations=read_associations(associations) if associations else None,
        roc=read_roc(part(pictures, "roc")),
        distances=read_distances(distances) if distances else None,
        rules=tuple(
            Rule(item.text("rule"), item.number("synthetic"), Figures(item.value, path).at("holdout"))
            for item in parts(pictures, "rules")
        ),
        rows=read_rows(rows) if rows else None,
        fit=read_fit(beside(Path(train.path), folder)) if train else None,
    )


def part(content: Fields, name: str) -> Fields | None:
    """An object that may be null or absent."""
    return None if content.value.get(name) is None else content.inner(name)


def parts(content: Fields, name: str) -> list[Fields]:
    """A list of objects that may be null or absent."""
    return [] if content.value.get(name) is None else content.items(name)


def read_marginal(item: Fields) -> Marginal:
    """One column's histograms, as shares of the rows."""
    column = item.text("column")
    labels = () if item.value.get("labels") is None else tuple(str(label) for label in item.listing("labels"))
    edges = np.zeros(0) if item.value.get("edges") is None else item.finite("edges", f'edges of "{column}"')
    real, synthetic = (shares(item.finite(name, f'{name} shares of "{column}"')) for name in ("real", "synthetic"))
    fitting(item, column, [real, synthetic], len(labels) + max(len(edges) - 1, 0))
    return Marginal(column, labels, edges, real, synthetic)


def read_associations(item: Fields) -> Associations | None:
    """Both matrices; a pair whose association is not defined (null) counts as none. None where there is no column."""
    columns = tuple(str(name) for name in item.listing("columns"))
    matrices = []
    for name in ("real", "synthetic"):
        lines = item.listing(name)
        try:
            matrix = np.array([[math.nan if x is None else x for x in line] for line in lines], dtype=np.float64)
        except (TypeError, ValueError):
            raise StorageError(f'{item.path}: "{name}" should be a square of numbers; score the rows again') from None
        if matrix.shape != (len(columns), len(columns)) and columns:
            raise StorageError(f'{item.path}: "{name}" should have {len(columns)} rows and columns; score again')
        matrices.append(matrix)
    return Associations(columns, *matrices) if columns else None


def read_roc(item: Fields | None) -> tuple[Roc, ...]:
    """The curves of the classifiers that could be trained."""
    curves = []
    for name in item.value if item else ():
        if item and (curve := part(item, name)):
            rates = [curve.finite(rate, f"{rate} of {name}") for rate in ("fpr", "tpr")]
            fitting(curve, name, rates, len(rates[0]))
            curves.append(Roc(name, *rates))
    return tuple(curves)


def read_distances(item: Fields) -> Distances:
    """Both histograms, as shares of the rows."""
    edges = item.finite("edges", "edges of the distances")
    both = [shares(item.finite(name, name)) for name in ("synthetic_to_train", "holdout_to_train")]
    fitting(item, "distances", both, len(edges) - 1)
    return Distances(edges, *both)


def read_rows(item: Fields) -> Rows:
    """The sampled rows."""
    columns = tuple(str(name) for name in item.listing("columns"))
    cells = tuple(tuple("" if cell is None else str(cell) for cell in row) for row in item.listing("cells"))
    if any(len(row) != len(columns) for row in cells):
        raise StorageError(f'{item.path}: "cells" should have {len(columns)} cells a row; score the rows again')
    return Rows(columns, cells)


def fitting(item: Fields, name: str, vectors: Sequence[Matrix], length: int) -> None:
    """Raise StorageError where two lists that belong together differ in length."""
    if any(len(vector) != length for vector in vectors):
        raise StorageError(f'{item.path}: the lists of "{name}" differ in length; score the rows again')


def shares(counts: Matrix) -> Matrix:
    """Counts or shares as shares that sum to 1; all 0 where there is nothing."""
    total = counts.sum()
    return counts / total if total > 0 else np.zeros_like(counts)


def beside(train: Path, folder: Path) -> Path:
    """The folder that holds the training file, whose path may be relative to where `score` ran, or to the score."""
    return train.parent if train.is_absolute() or train.is_file() else folder / train.parent


def read_fit(folder: Path) -> Fit | None:
    """The fit whose run folder this is; None where it is no such folder."""
    run, result = RunFolder(folder), folder / "fit.json"
    if not (run.config.is_file() and result.is_file()):
        return None
    facts = Fields(read_json(result), result)
    lines = [line for line in read_lines(run.metrics) if isinstance(line, dict)]

    def curve(name: str) -> tuple[tuple[float, float], ...]:
        pairs = [(line.get("step"), line.get(name)) for line in lines]
        return tuple((step, value) for step, value in pairs if is_finite(step) and is_finite(value))

    return Fit(
        folder=folder,
        config=run.config.read_text("utf-8", errors="replace"),
        facts=Figures(facts.value, result),
        stopped_by=str(facts.value.get("stopped_by") or ""),
        training=curve("loss") or curve("nats"),
        validation=curve("validation_nats"),
    )
