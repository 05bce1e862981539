"""How it was measured."""

from __future__ import annotations

from preflab.report.chapter import Chapter, Prose
from preflab.report.study import Study

METHOD = (
    "KL: the sum over the tokens of a response of KL(policy ‖ reference) over the whole vocabulary, at temperature 1, "
    "on responses sampled from the policy, in nats; the mean over prompts.",
    "Reward is never the implicit reward, and never the proxy alone. The reference is scored by the same code as every "
    "arm; all arms and seeds answer the same prompts.",
    "Checkpoints and settings are chosen on validation prompts; the chosen checkpoint is scored once on test prompts, "
    "which share none with training and validation. Curves are of validation prompts.",
    "At equal KL: curves are interpolated linearly between checkpoints ordered by KL, from the reference at KL 0, and "
    "their difference is averaged where the KL ranges of trained checkpoints overlap; outside nothing is said.",
    "A proxy misled where, from the arm's best checkpoint to its last, it rose while {reward} fell, both shown, "
    "and shown beyond what picking the best of several checkpoints by looking explains (Bonferroni).",
    "Ratios (perplexity) by the delta method, distinct-2 by a jackknife over prompts, since resampling would repeat "
    "what the responses didn't. A share that is the same in every row, such as a win rate of 100 %, has the exact "
    "binomial interval of its prompts (Clopper and Pearson), as it has no spread.",
    "How intervals, p-values and their correction are made: “How sure is that?” above, and docs/statistics.md.",
)


def method(study: Study) -> Chapter | None:
    """The definitions and the statistics behind every figure."""
    return Chapter(
        "method",
        "How it was measured",
        tuple(Prose(line.replace("{reward}", study.reward_name), quiet=True) for line in METHOD),
    )
