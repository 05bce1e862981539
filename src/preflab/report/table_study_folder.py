"""A table study's folder, read: study.json, what was judged, and how each arm was aligned.

Nothing here computes a figure. A file that is not there yet is a gap, which `gaps` names; one that is there and wrong
is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

from preflab.errors import NumericError
from preflab.report.fields import Fields, is_finite
from preflab.report.wording import listing
from preflab.runs import JSON, RunFolder, read_json, read_lines

REFERENCE, RESAMPLED, DPO, PPO, HYBRID, REAL = "reference", "resampled", "dpo", "ppo", "dpo+ppo", "real"
"""Names of arms that questions are asked about, and of the bound."""

T = TypeVar("T")

Draws = Mapping[int, Mapping[int, float]]
"""A figure by seed and redraw; what is known once a seed is its redraw 0."""


@dataclass(frozen=True)
class Judged:
    """The rows of one arm with one seed, judged against the holdout."""

    draws: Mapping[int, Mapping[str, float]]
    """Redraw, and its figures by their dotted names."""
    facts: Mapping[str, float]
    """What is known once a seed: kl_nats, rows_per_cpu_second, unmasked_valid_share."""


@dataclass(frozen=True)
class Held:
    """A discriminator of one round: its AUC on rows that it did not learn from."""

    name: str
    level: str
    auc: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Point:
    """A policy that was measured on validation rows; queries and seconds are those spent until then."""

    round: int
    step: int
    told_apart_auc: float | None
    kl_nats: float | None
    reward: float | None
    queries: float | None
    cpu_seconds: float | None


@dataclass(frozen=True)
class Alignment:
    """How one arm was trained with one seed."""

    rounds: tuple[tuple[int, tuple[Held, ...]], ...]
    points: tuple[Point, ...]
    """From the reference on, in the order of training, those of earlier stages too."""
    chosen: Point | None
    """One of the points."""
    cost: Mapping[str, float]
    """Of all stages."""
    collapsed: bool
    metrics: tuple[Mapping[str, Any], ...]
    """The lines of metrics.jsonl, of the last stage as the rounds are."""
    refreshed: tuple[int, ...]
    """The steps of metrics.jsonl after which discriminators were fitted again."""

    @property
    def start(self) -> Point | None:
        """The reference's point."""
        return self.points[0] if self.points else None


@dataclass(frozen=True)
class Arm:
    """A way to write rows, over the seeds that are there."""

    name: str
    label: str
    description: str
    judged: Mapping[int, Judged]
    alignments: Mapping[int, Alignment]

    @property
    def aligned(self) -> bool:
        """Whether its policy was trained against discriminators."""
        return self.name not in (REFERENCE, RESAMPLED, REAL)

    def draws(self, figure: str) -> Draws:
        """A judged figure by seed and redraw; seeds and redraws that lack it are left out."""
        found = {
            seed: {redraw: figures[figure] for redraw, figures in judged.draws.items() if figure in figures}
            for seed, judged in self.judged.items()
        }
        return {seed: draws for seed, draws in found.items() if draws}

    def facts(self, name: str) -> Draws:
        """What is known once a seed."""
        return {seed: {0: judged.facts[name]} for seed, judged in self.judged.items() if name in judged.facts}

    def costs(self, name: str) -> Draws:
        """A cost of the alignment."""
        return {seed: {0: one.cost[name]} for seed, one in self.alignments.items() if name in one.cost}


@dataclass(frozen=True)
class TableStudy:
    """All of a table study's folder."""

    folder: Path
    title: str
    table: str
    rows: int
    columns: int
    target: str | None
    settings: Mapping[str, Any]
    arms: tuple[Arm, ...]
    real: Arm
    """The bound: a second sample of real rows."""
    fits: Mapping[int, Mapping[str, float]]
    """The figures of each seed's fit.json."""
    seeds: tuple[int, ...]
    redraws: int
    primary: str
    independent: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]
    complete: bool

    def arm(self, name: str) -> Arm | None:
        """The arm of this name."""
        return next((arm for arm in self.arms if arm.name == name), None)

    @property
    def aligned(self) -> tuple[Arm, ...]:
        """The arms whose policies were trained."""
        return tuple(arm for arm in self.arms if arm.aligned)

    @property
    def gaps(self) -> tuple[str, ...]:
        """What study.json announces and the folder does not hold, a sentence an arm."""
        return tuple(gap for arm in (*self.arms, self.real) for gap in gaps(arm, self.seeds, self.redraws))

    @property
    def seeds_judged(self) -> tuple[int, ...]:
        """The seeds of which something was judged."""
        return tuple(sorted({seed for arm in self.arms for seed in arm.judged}))


def gaps(arm: Arm, seeds: tuple[int, ...], redraws: int) -> Iterator[str]:
    """What an arm lacks."""
    absent = [seed for seed in seeds if seed not in arm.judged]
    if len(absent) == len(seeds):
        yield f"{arm.label}: nothing has been judged yet."
        return
    if absent:
        yield f"{arm.label}: {seeds_named(absent)} not judged yet."
    short = [seed for seed in seeds if seed in arm.judged and len(arm.judged[seed].draws) < redraws]
    if short:
        yield f"{arm.label}: fewer than {redraws} redraws judged of {seeds_named(short)}."
    untold = [seed for seed in arm.judged if arm.aligned and seed not in arm.alignments]
    if untold:
        yield f"{arm.label}: no align.json of {seeds_named(untold)}."


def seeds_named(seeds: list[int]) -> str:
    """Which seeds.

    >>> seeds_named([2]), seeds_named([1, 2])
    ('seed 2', 'seeds 1 and 2')
    """
    return f"seed{'s' if len(seeds) > 1 else ''} {listing([str(seed) for seed in seeds])}"


def is_table_study(folder: Path) -> bool:
    """Whether the study in `folder` is one of a table."""
    path = folder / "study.json"
    content = read_json(path) if path.is_file() else None
    return isinstance(content, dict) and content.get("kind") == "table"


def read_table_study(folder: Path) -> TableStudy:
    """Read a table study's folder.

    Raises:
        StorageError: it holds no study, or a file in it is not as `preflab compare table` writes it.
        NumericError: a figure is not finite.
    """
    path = folder / "study.json"
    content = Fields(read_json(path), path)
    seeds = tuple(whole(seed, path) for seed in content.listing("seeds"))
    table = content.inner("table")
    names = [(item.text("name"), item.text("label"), item.text("description")) for item in content.items("arms")]
    names.append((REAL, "second real sample", "Real rows, judged as if synthetic."))
    arms = [read_arm(folder, seeds, *one) for one in names]
    return TableStudy(
        folder=folder,
        title=content.text("title"),
        table=table.text("name"),
        rows=table.whole("rows"),
        columns=table.whole("columns"),
        target=None if table.value.get("target") is None else table.text("target"),
        settings=content.mapping("study"),
        arms=tuple(arms[:-1]),
        real=arms[-1],
        fits=by_seed(seeds, lambda seed: read_fit(seed_folder(folder, seed) / "table" / "fit.json")),
        seeds=seeds,
        redraws=content.whole("redraws"),
        primary=content.text("primary"),
        independent=content.text("independent"),
        notes=tuple(str(line) for line in content.listing("notes")),
        warnings=tuple(str(line) for line in content.listing("warnings")),
        complete=content.flag("complete"),
    )


def read_arm(folder: Path, seeds: tuple[int, ...], name: str, label: str, description: str) -> Arm:
    """What there is of one arm, of all seeds."""
    return Arm(
        name=name,
        label=label,
        description=description,
        judged=by_seed(seeds, lambda seed: read_judged(seed_folder(folder, seed) / "judged", name)),
        alignments=by_seed(seeds, lambda seed: read_stages(seed_folder(folder, seed) / "table" / "aligned", name)),
    )


def seed_folder(folder: Path, seed: int) -> Path:
    """Where a seed's files lie."""
    return folder / "seeds" / f"seed-{seed}"


def by_seed(seeds: tuple[int, ...], read: Callable[[int], T | None]) -> dict[int, T]:
    """What `read` finds for each seed; a seed for which there is nothing is left out."""
    found = ((seed, read(seed)) for seed in seeds)
    return {seed: one for seed, one in found if one is not None}


def whole(value: JSON, path: Path) -> int:
    """A whole number of a list."""
    return Fields({"seeds": value}, path).whole("seeds")


def read_judged(folder: Path, name: str) -> Judged | None:
    """How one arm's rows of one seed were judged; None where they were not yet."""
    path = folder / f"{name}.json"
    if not path.is_file():
        return None
    content = Fields(read_json(path), path)
    draws = {item.whole("redraw"): numbers(item.mapping("figures"), path) for item in content.items("draws")}
    return Judged({redraw: draws[redraw] for redraw in sorted(draws)}, numbers(content.value, path))


def read_alignment(folder: Path) -> Alignment | None:
    """How one arm was trained with one seed; None where that is not done."""
    path = folder / "align.json"
    if not path.is_file():
        return None
    content = Fields(read_json(path), path)
    points = tuple(read_point(item) for item in content.items("points"))
    chosen = content.value.get("chosen")
    place = (content.inner("chosen").whole("round"), content.inner("chosen").whole("step")) if chosen else None
    return Alignment(
        rounds=tuple(
            (item.whole("round"), tuple(read_held(held) for held in item.items("discriminators")))
            for item in content.items("rounds")
        ),
        points=points,
        chosen=next((point for point in points if (point.round, point.step) == place), None),
        cost=numbers(content.mapping("cost"), path),
        collapsed=content.flag("collapsed"),
        metrics=tuple(line for line in read_lines(RunFolder(folder).metrics) if isinstance(line, dict)),
        refreshed=tuple(one.step for one, other in pairwise(points) if 0 < one.round < other.round),
    )


def read_stages(folder: Path, name: str) -> Alignment | None:
    """How one arm was trained with one seed; dpo+ppo goes on from dpo, so that its points and costs are of both."""
    own = read_alignment(folder / name)
    earlier = read_stages(folder, name.rpartition("+")[0]) if "+" in name else None
    return chained(earlier, own) if own and earlier else own


def chained(earlier: Alignment, own: Alignment) -> Alignment:
    """A stage that goes on from the chosen policy of an earlier one, whose costs were spent before."""
    last = earlier.points[-1] if earlier.points else Point(0, 0, None, None, None, 0.0, 0.0)
    later = {id(point): later_by(last, point, earlier.cost) for point in own.points[1:]}
    return replace(
        own,
        points=(*earlier.points, *later.values()),
        chosen=later.get(id(own.chosen), earlier.chosen) if own.chosen else None,
        cost={name: value + earlier.cost.get(name, 0.0) for name, value in own.cost.items()},
        collapsed=own.collapsed or earlier.collapsed,
    )


def later_by(last: Point, point: Point, spent: Mapping[str, float]) -> Point:
    """A point of a later stage, counted from the beginning."""
    return replace(
        point,
        round=last.round + point.round,
        step=last.step + point.step,
        queries=None if point.queries is None else point.queries + spent.get("queries", 0.0),
        cpu_seconds=None if point.cpu_seconds is None else point.cpu_seconds + spent.get("cpu_seconds", 0.0),
    )


def read_point(item: Fields) -> Point:
    """One point of a training."""
    known = numbers(item.value, item.path)
    return Point(
        round=item.whole("round"),
        step=item.whole("step"),
        told_apart_auc=known.get("told_apart_auc"),
        kl_nats=known.get("kl_nats"),
        reward=known.get("reward"),
        queries=known.get("queries"),
        cpu_seconds=known.get("cpu_seconds"),
    )


def read_held(item: Fields) -> Held:
    """One discriminator."""
    known = numbers(item.value, item.path)
    return Held(item.text("name"), item.text("level"), item.number("auc"), known.get("auc_low"), known.get("auc_high"))


def read_fit(path: Path) -> dict[str, float] | None:
    """The figures of a fit; None where it is not done."""
    return numbers(Fields(read_json(path), path).value, path) if path.is_file() else None


def numbers(content: Mapping[str, Any], path: Path) -> dict[str, float]:
    """The numbers of an object; what is null, text, or an object of its own is left out.

    Raises:
        NumericError: a number is not finite.
    """
    found = {
        name: value for name, value in content.items() if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for name, value in found.items():
        if not is_finite(value):
            raise NumericError(f'{path}: "{name}" is not finite; judge those rows again')
    return {name: float(value) for name, value in found.items()}
