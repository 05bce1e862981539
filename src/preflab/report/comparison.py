"""comparison.json: the study's numbers for other programs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from preflab.report.cells import as_json
from preflab.report.chapter import Chapter, Findings, Sheet
from preflab.report.measures import Row, measure
from preflab.report.study import Arm, Point, Run, Study
from preflab.report.verdicts import Verdict


def comparison(
    study: Study, rows: Sequence[Row], found: Sequence[Verdict], chapters: Sequence[Chapter] = ()
) -> dict[str, Any]:
    """The content of comparison.json; what was not measured is null.

    `points` of an arm are its validation points, `test` is its chosen checkpoint on test prompts (null until scored).
    A summary's `step` is the one that most seeds chose, and its figures are of test prompts where they were scored.
    """
    return {
        "study": study.config,
        "arms": [arm_json(arm, run) for arm in study.arms for run in arm.runs],
        "summary": [summary_json(row) for row in rows],
        "verdicts": [verdict.json() for verdict in found],
        "chapters": {chapter.name: chapter_json(chapter) for chapter in chapters},
        "complete": study.complete,
    }


def chapter_json(chapter: Chapter) -> dict[str, Any]:
    """A chapter's tables and answers."""
    answers = [item for part in chapter.parts if isinstance(part, Findings) for item in part.items]
    return {
        "tables": {part.name: as_json(part) for part in chapter.parts if isinstance(part, Sheet)},
        "findings": [asdict(item) for item in answers],
    }


def arm_json(arm: Arm, run: Run) -> dict[str, Any]:
    """One arm with one seed."""
    where = f"arm {arm.name} seed {run.seed}"
    return {
        "name": arm.name,
        "method": arm.method,
        "oracle": arm.oracle,
        "kl_is_bound": arm.kl_is_bound,
        "settings": dict(run.settings),
        "seed": run.seed,
        "points": [point_json(point, where) for point in run.validation],
        "test": point_json(run.test, where) if run.test else None,
        "cost": dict(run.cost),
    }


def point_json(point: Point, where: str) -> dict[str, Any]:
    """One evaluated checkpoint."""
    return {"step": point.step, "split": point.split, **measure(point, where).json()}


def summary_json(row: Row) -> dict[str, Any]:
    """An arm over its seeds."""
    return {
        "name": row.arm.name,
        "step": Counter(row.steps).most_common(1)[0][0],
        "seeds": len(row.steps),
        "split": row.split,
        "reward": row.measures.reward.json(),
        "kl": row.measures.kl.json(),
    }
