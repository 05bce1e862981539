"""The figures of one arm at one checkpoint, each with its interval."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import lru_cache

import numpy as np

from preflab.report.shares import mean_reward, share
from preflab.report.statistics import Estimate, Matrix, distinct_values, estimate, n_grams, perplexity, repetition
from preflab.report.study import Arm, Point, Sample, Study


@dataclass(frozen=True)
class Measures:
    """What a checkpoint is worth; None where it was not measured."""

    reward: Estimate  # gold, or the held-out judge's
    proxy_reward: Estimate | None  # the reward that the training saw
    kl: Estimate  # nats per response
    win_rate: Estimate  # against the reference on the same prompt, ties count half
    response_tokens: Estimate
    end_rate: Estimate  # share of responses that ended by themselves
    distinct_2: Estimate | None  # distinct word pairs / word pairs, over all responses
    repetition: Estimate | None  # share of a response's word 4-grams that it has said before
    perplexity: Estimate | None  # on held-out text

    def json(self) -> dict[str, dict[str, float] | None]:
        """The form in comparison.json."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: None if value is None else value.json() for name, value in values.items()}


def measure(point: Point, where: str) -> Measures:
    """All figures of a point over its prompts, and over its seeds where it has several; `where` names it in errors."""

    def over(values: Matrix, name: str) -> Estimate:
        return estimate(values, f"{where} step {point.step}: {name}")

    def paid(values: Matrix, name: str) -> Estimate:
        return mean_reward(values, f"{where} step {point.step}: {name}")

    words = [responses_by_prompt(samples, point) for samples in point.samples]
    written = all(any(group) for group in words)
    return Measures(
        reward=paid(point.reward, "reward"),
        proxy_reward=None if point.proxy_reward is None else paid(point.proxy_reward, "proxy reward"),
        kl=over(point.kl_nats, "KL").within(0.0),
        win_rate=share(point.win, f"{where} step {point.step}: win rate"),
        response_tokens=over(point.response_tokens, "response tokens").within(0.0),
        end_rate=share(point.ended, f"{where} step {point.step}: end rate"),
        distinct_2=over(distinct_2(words), "distinct-2").within(0.0, 1.0) if written else None,
        repetition=share(repetitions(words), f"{where} step {point.step}: repetition") if written else None,
        perplexity=perplexity(point.nll_nats, point.nll_tokens, f"{where} step {point.step}: perplexity")
        if point.nll_nats.shape[1] > 1
        else None,
    )


def responses_by_prompt(samples: tuple[Sample, ...], point: Point) -> list[list[list[str]]]:
    """The responses to each prompt of the point, as words."""
    by_prompt: dict[str, list[list[str]]] = {prompt: [] for prompt in point.prompts}
    for sample in samples:
        if sample.prompt_id in by_prompt:
            by_prompt[sample.prompt_id].append(sample.response.split())
    return list(by_prompt.values())


def distinct_2(words: list[list[list[list[str]]]]) -> Matrix:
    """Distinct-2 per seed and prompt, for `estimate`."""
    return np.concatenate(
        [
            distinct_values([[pair for response in group for pair in n_grams(response, 2)] for group in seed])
            for seed in words
        ]
    )


def repetitions(words: list[list[list[list[str]]]]) -> Matrix:
    """The mean repetition of the responses per seed and prompt."""
    return np.array(
        [[float(np.mean([repetition(response) for response in group] or [0.0])) for group in seed] for seed in words]
    )


@dataclass(frozen=True)
class Curve:
    """An arm's validation points by step, measured: what the pictures draw."""

    arm: Arm
    steps: tuple[int, ...]
    measures: tuple[Measures, ...]


@dataclass(frozen=True)
class Row:
    """An arm's line in the summary: its chosen checkpoint, on test prompts where it has been there."""

    arm: Arm
    split: str
    steps: tuple[int, ...]  # the step that each seed chose
    measures: Measures


@lru_cache(maxsize=2)  # every chapter asks
def curves(study: Study) -> tuple[Curve, ...]:
    """The curve of every arm that has a point."""
    return tuple(
        Curve(arm, tuple(p.step for p in arm.validation), tuple(measure(p, f"arm {arm.name}") for p in arm.validation))
        for arm in study.arms
        if arm.validation
    )


@lru_cache(maxsize=2)
def summary(study: Study) -> tuple[Row, ...]:
    """One row for every arm that has a point."""
    return tuple(
        Row(arm, arm.final.split, arm.chosen_steps, measure(arm.final, f"arm {arm.name}"))
        for arm in study.arms
        if arm.final
    )
