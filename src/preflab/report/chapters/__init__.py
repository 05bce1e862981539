"""The chapters of a study's report, one a file, in the order of the page."""

from __future__ import annotations

from collections.abc import Callable

from preflab.report.chapter import Chapter
from preflab.report.chapters import (
    cost,
    degeneration,
    dropped,
    facts,
    frontier,
    generations,
    method,
    proxy,
    results,
    reward_models,
    settings,
    training,
    verdicts,
)
from preflab.report.study import Study

CHAPTERS: tuple[Callable[[Study], Chapter | None], ...] = (
    results.results,
    verdicts.verdicts,
    frontier.frontier,
    proxy.proxy,
    degeneration.degeneration,
    cost.cost,
    generations.generations,
    reward_models.reward_models,
    training.training,
    facts.facts,
    dropped.dropped,
    settings.settings,
    method.method,
)
