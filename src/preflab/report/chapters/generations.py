"""The same prompts, side by side."""

from __future__ import annotations

import numpy as np

from preflab.report.chapter import Answers, Chapter, Gallery, Prose
from preflab.report.study import Study

SHOWN_PROMPTS = 6


def generations(study: Study) -> Chapter | None:
    """Prompts spread evenly over the split, with every arm's response from its chosen checkpoint, first seed.

    Taken by position, never by score: nobody picked the good ones.
    """
    points = [(arm, arm.final) for arm in study.arms if arm.final and arm.final.samples[0]]
    if not points:
        return None
    split = "test" if any(point.split == "test" for _, point in points) else "validation"
    points = [(arm, point) for arm, point in points if point.split == split]
    by_arm = [(arm, {sample.prompt_id: sample for sample in reversed(point.samples[0])}) for arm, point in points]
    known = [prompt for prompt in points[0][1].prompts if any(prompt in samples for _, samples in by_arm)]
    picked = [known[i] for i in np.unique(np.linspace(0, len(known) - 1, min(SHOWN_PROMPTS, len(known))).astype(int))]
    items = []
    for prompt_id in picked:
        responses = tuple((arm, samples.get(prompt_id)) for arm, samples in by_arm)
        items.append(Answers(next(sample.prompt for _, sample in responses if sample), responses))
    how = (
        f"{len(items)} {split} prompts spread evenly over the list, not picked by score; each arm’s chosen checkpoint, "
        "first seed."
    )
    gallery = Gallery("generations", tuple(items))
    return Chapter("generations", "The same prompts, side by side", (Prose(how, quiet=True), gallery))
