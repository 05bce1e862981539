"""What the arms write: the same prompts with the same luck, side by side."""

from __future__ import annotations

import numpy as np

from preflab.report.chapter import Answers, Chapter, Gallery, Part, Prose
from preflab.report.degeneration import by_prompt
from preflab.report.study import Arm, Generation, Run, Study
from preflab.report.wording import count

SHOWN_PROMPTS = 60


def generations(study: Study) -> Chapter | None:
    """The chapter; None before an arm has written something."""
    parts: list[Part] = []
    asked = given_prompts(study)
    if asked.items:
        parts += [
            Prose(
                "Prompts that were given for this, and what every arm answers at its chosen checkpoint: greedily, "
                f"where that is said, else sampled with the same luck{of_seed(study)}."
            ),
            asked,
        ]
    split, shown, of = side_by_side(study)
    if shown.items:
        parts += [
            Prose(
                f"{count(len(shown.items))} of {count(of)} {split} prompts, spread evenly by position and never "
                f"picked by score, with every arm's response from its chosen checkpoint{of_seed(study)}: its "
                f"{study.reward_name} and its KL to the reference along the response."
            ),
            shown,
        ]
    return Chapter("generations", "What do they write?", tuple(parts)) if parts else None


def of_seed(study: Study) -> str:
    """Whose responses are shown."""
    return ", of the first seed" if len(study.seeds) > 1 else ""


def side_by_side(study: Study) -> tuple[str, Gallery, int]:
    """The split, prompts spread evenly over it with every arm's response, and how many there are in all.

    Arms that have been scored on test prompts; while none has, those on validation prompts.
    """
    written = [(arm, point, said) for arm in study.arms if (point := arm.final) and (said := by_prompt(point))]
    split = "test" if any(point.split == "test" for _, point, _ in written) else "validation"
    columns = [(arm, responses[0]) for arm, point, responses in written if point.split == split]
    if not columns:
        return split, Gallery("generations", ()), 0
    prompts = [sample.prompt for sample in columns[0][1]]
    places = np.unique(np.linspace(0, len(prompts) - 1, min(SHOWN_PROMPTS, len(prompts))).astype(int))
    items = tuple(
        Answers(prompts[place], tuple((arm, responses[place]) for arm, responses in columns)) for place in places
    )
    return split, Gallery("generations", items), len(prompts)


def given_prompts(study: Study) -> Gallery:
    """What every arm answered to the prompts that were given for it: an item a prompt and sample, in their order."""
    by_arm = [(arm, answers_of(run)) for arm in study.arms if (run := first_with_generations(arm))]
    asked = list(dict.fromkeys(key for _, answers in by_arm for key in answers))
    items = tuple(
        Answers(
            prompt,
            tuple((arm, answers.get((prompt, sample, greedy))) for arm, answers in by_arm),
            how="answered greedily" if greedy else "",
        )
        for prompt, sample, greedy in asked
    )
    return Gallery("given-prompts", items)


def first_with_generations(arm: Arm) -> Run | None:
    """The first seed that has answered."""
    return next((run for run in arm.runs if run.generations), None)


def answers_of(run: Run) -> dict[tuple[str, int, bool], Generation]:
    """A run's answers by prompt, number and whether it was greedy."""
    return {(one.prompt, one.sample, one.greedy): one for one in run.generations}
