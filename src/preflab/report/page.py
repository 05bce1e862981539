"""A study's content as one HTML page without network or script, and as Markdown."""

from __future__ import annotations

from functools import partial
from typing import Any

from preflab.report.content import Content
from preflab.report.templates import environment, tidy
from preflab.report.verdicts import mean_cost

METHOD = (
    "KL: the sum over the tokens of a response of KL(policy ‖ reference) over the whole vocabulary, at temperature 1, "
    "on responses sampled from the policy, in nats; the mean over prompts.",
    "Reward is never the implicit reward, and never the proxy alone. The reference is scored by the same code as every "
    "arm; all arms and seeds answer the same prompts.",
    "Checkpoints and settings are chosen on validation prompts; the chosen checkpoint is scored once on test prompts, "
    "which share none with training and validation. Curves are of validation prompts.",
    "Intervals are 95 %. One seed: bias-corrected accelerated bootstrap over prompts. Several seeds: a seed × prompt "
    "random-effects variance with Satterthwaite's degrees of freedom. Ratios (perplexity) by the delta method, "
    "distinct-2 by a jackknife over prompts, since resampling would repeat what the responses didn't.",
    "Arms are compared prompt by prompt, on the seeds that both have. At equal KL: curves are interpolated linearly "
    "between checkpoints ordered by KL, from the reference at KL 0, and their difference is averaged over the overlap "
    "of the KL ranges of trained checkpoints; outside it nothing is said.",
    "A proxy misled where, from the arm's best checkpoint to its last, it rose while the gold reward fell, both with "
    "intervals widened for having picked the best (Bonferroni).",
)
REWARD_MODELS = (
    "A reward model says that one response of a pair wins with probability σ(score difference). How sure it is: that "
    "probability for the response it prefers; accuracy: how often that one was chosen. Calibration error: the mean "
    "distance of the two over groups of equal size (ECE, arXiv 1706.04599), in brackets what 95 % of calibrated models "
    "stay below on as many pairs. “Longer wins”: the accuracy of calling the longer response better without reading "
    "either. Correlation: of score and length within a pair. Intervals of shares are Wilson’s, as of one pair a prompt."
)


def html(content: Content) -> str:
    """The page."""
    return environment(for_markdown=False).get_template("page.html.j2").render(spoken(content))


def markdown(content: Content) -> str:
    """The same as Markdown, with links to the figures' files."""
    return tidy(environment(for_markdown=True).get_template("report.md.j2").render(spoken(content)))


def spoken(content: Content) -> dict[str, Any]:
    """What the study's templates speak of."""
    return {
        "content": content,
        "study": content.study,
        "method": METHOD,
        "reward_models": REWARD_MODELS,
        "arm_seconds": partial(mean_cost, name="wall_seconds"),
    }
