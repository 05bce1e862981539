"""What a report says, in the order it says it; the page and the Markdown write the same content."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preflab import __version__
from preflab.report.families import families, unequal_tries
from preflab.report.figures import colour_of, pictures
from preflab.report.headline import headline
from preflab.report.measures import Row, curves, summary
from preflab.report.statistics import Estimate
from preflab.report.study import COSTS, Arm, Sample, Study
from preflab.report.svg import INK, Picture
from preflab.report.verdicts import Subject, Verdict, correction, mean_cost, verdicts
from preflab.report.wording import count, duration, memory

SHOWN_PROMPTS = 6
HEADINGS: dict[Subject, str] = {
    "tuned": "Which method, as tuned, gets more?",
    "equal KL": "More reward at equal KL?",
    "reference": "Better than the reference?",
    "proxy": "Did the proxy mislead?",
    "cost": "What did it cost?",
}


@dataclass(frozen=True)
class Whisker:
    """Where a row's reward stands on the axis that all rows share, in percent."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class SideBySide:
    """One prompt and what every arm answered; None where an arm has no response to it."""

    prompt: str
    responses: tuple[tuple[Arm, Sample | None], ...]


@dataclass(frozen=True)
class Content:
    """Everything a report shows."""

    study: Study
    version: str
    headline: tuple[str, ...]
    rows: tuple[Row, ...]
    whiskers: tuple[Whisker, ...]
    verdicts: tuple[Verdict, ...]
    questions: tuple[tuple[str, tuple[Verdict, ...]], ...]
    frontier: Picture | None
    by_step: Picture | None
    proxy: Picture | None
    reward_models: Picture | None
    training: tuple[Picture, ...]
    costs: tuple[tuple[Arm, tuple[str, ...]], ...]
    stages_seconds: float
    samples: tuple[SideBySide, ...]
    samples_split: str
    cautions: tuple[str, ...]

    @property
    def pictures(self) -> tuple[Picture, ...]:
        """All pictures, for the figures folder."""
        return tuple(p for p in (self.frontier, self.by_step, self.proxy, self.reward_models) if p) + self.training

    def colour(self, arm: Arm) -> str:
        """The arm's colour in CSS."""
        return "currentColor" if (colour := colour_of(self.study, arm)) == INK else colour


def compose(study: Study) -> Content:
    """Compute and draw everything that the study's files allow."""
    rows, found = summary(study), verdicts(study)
    drawn = pictures(study, curves(study))
    named = {picture.name: picture for picture in drawn}
    split, samples = side_by_side(study)
    return Content(
        study=study,
        version=__version__,
        headline=headline(study, found),
        rows=rows,
        whiskers=whiskers([row.measures.reward for row in rows]),
        verdicts=found,
        questions=tuple(
            (heading, group)
            for subject, heading in HEADINGS.items()
            if (group := tuple(verdict for verdict in found if verdict.subject == subject))
        ),
        frontier=named.get("frontier"),
        by_step=named.get("reward-by-step"),
        proxy=named.get("proxy"),
        reward_models=named.get("reward-models"),
        training=tuple(picture for picture in drawn if picture.name.startswith("training-")),
        costs=tuple((arm, cost_cells(arm)) for arm in study.arms),
        stages_seconds=sum(seconds for _, seconds in study.stages),
        samples=samples,
        samples_split=split,
        cautions=cautions(study, found),
    )


def cost_cells(arm: Arm) -> tuple[str, ...]:
    """An arm's costs in the order of `COSTS`, in words."""
    write = {"wall_seconds": duration, "peak_memory_bytes": memory}
    return tuple(write.get(name, count)(mean_cost(arm, name)) for name in COSTS)


def whiskers(rewards: Sequence[Estimate]) -> tuple[Whisker, ...]:
    """The rewards of the summary on one axis."""
    if not rewards:
        return ()
    low, high = min(r.low for r in rewards), max(r.high for r in rewards)
    width = (high - low) or 1.0
    return tuple(Whisker(*(4 + 92 * (x - low) / width for x in (r.mean, r.low, r.high))) for r in rewards)


def side_by_side(study: Study) -> tuple[str, tuple[SideBySide, ...]]:
    """The split, and prompts spread evenly over it with every arm's response from its chosen checkpoint, first seed.

    Taken by position, never by score: nobody picked the good ones.
    """
    points = [(arm, arm.final) for arm in study.arms if arm.final and arm.final.samples[0]]
    if not points:
        return "", ()
    split = "test" if any(point.split == "test" for _, point in points) else "validation"
    points = [(arm, point) for arm, point in points if point.split == split]
    by_arm = [(arm, {sample.prompt_id: sample for sample in reversed(point.samples[0])}) for arm, point in points]
    known = [prompt for prompt in points[0][1].prompts if any(prompt in samples for _, samples in by_arm)]
    picked = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, min(SHOWN_PROMPTS, len(known))).astype(int))]
    shown = []
    for prompt_id in picked:
        responses = tuple((arm, samples.get(prompt_id)) for arm, samples in by_arm)
        text = next(sample.prompt for _, sample in responses if sample)
        shown.append(SideBySide(text, responses))
    return split, tuple(shown)


def cautions(study: Study, found: Sequence[Verdict]) -> tuple[str, ...]:
    """How far to trust the numbers, one sentence each."""
    seeds = len(study.seeds)
    lines = []
    if seeds == 1:
        lines.append("One seed: the intervals speak for other prompts, not for other training runs; 3 seeds would.")
    elif seeds == 2:
        lines.append("Two seeds: where training luck matters, 95 % intervals cover only about 86 %; 3 seeds do better.")
    lines += [line for line in (correction(found), unequal_tries(families(study))) if line]
    if any(row.oracle for row in study.arms):
        lines.append(f"An oracle trained on {study.reward_name} itself: a bound for the others, not a competitor.")
    return tuple(lines)
