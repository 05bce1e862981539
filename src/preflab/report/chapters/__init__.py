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
    over_optimisation,
    results,
    reward_models,
    settings,
    statistics,
    sweep,
    training,
    verdicts,
    win_rates,
)
from preflab.report.study import Study

CHAPTERS: tuple[Callable[[Study], Chapter | None], ...] = (
    results.results,
    verdicts.verdicts,
    frontier.frontier,
    sweep.sweep,
    over_optimisation.over_optimisation,
    win_rates.win_rates,
    degeneration.degeneration,
    cost.cost,
    generations.generations,
    statistics.statistics,
    reward_models.reward_models,
    training.training,
    facts.facts,
    dropped.dropped,
    settings.settings,
    method.method,
)
