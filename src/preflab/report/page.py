"""The content as one HTML page without network or script, and as Markdown.

Whatever a template prints passes through one gate: unseen characters are made visible, then HTML or Markdown is
escaped. Only the pictures, which this package draws, are inserted as they are.
"""

from __future__ import annotations

import re
from functools import partial

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from preflab.report import wording
from preflab.report.content import Content
from preflab.report.statistics import Estimate
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
MARKDOWN = re.compile(r"[\\`*_<>|#~&]|\[(?![\d−])|\](?=[(:\[])|!(?=\[)")


def environment(for_markdown: bool) -> Environment:
    """The templates with their filters."""

    def gate(value: object) -> object:
        if not isinstance(value, str) or isinstance(value, Markup):
            return value
        return markdown_text(value) if for_markdown else wording.visible(value)

    templates = Environment(
        loader=PackageLoader("preflab", "report"),
        autoescape=not for_markdown,
        finalize=gate,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    templates.globals.update(
        method=METHOD, reward_models=REWARD_MODELS, arm_seconds=partial(mean_cost, name="wall_seconds")
    )
    for name in ("number", "figure", "interval", "count", "duration", "steps"):
        templates.filters[name] = getattr(wording, name)
    templates.filters["percent"] = percent
    templates.filters["fence"] = fence
    return templates


def html(content: Content) -> str:
    """The page."""
    templates = environment(for_markdown=False)
    loader = templates.loader
    assert loader is not None
    css = Markup(loader.get_source(templates, "page.css")[0])
    figures = {picture.name: Markup(picture.svg) for picture in content.pictures}
    return templates.get_template("page.html.j2").render(content=content, study=content.study, css=css, figures=figures)


def markdown(content: Content) -> str:
    """The same as Markdown, with links to the figures' files."""
    text = environment(for_markdown=True).get_template("report.md.j2").render(content=content, study=content.study)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def percent(value: Estimate | None) -> str:
    """A fraction with its interval, in percent.

    >>> percent(Estimate(0.5, 0.25, 0.754))
    '50 % [25, 75]'
    """
    return (
        "–" if value is None else f"{value.mean:.0%} [{100 * value.low:.0f}, {100 * value.high:.0f}]".replace("%", " %")
    )


def markdown_text(text: str) -> str:
    """Foreign text on one line of Markdown, its marks and tags made literal.

    >>> print(markdown_text("a *b* | [x](javascript:1) <script>"))
    a \\*b\\* \\| \\[x\\](javascript:1) &lt;script\\>
    """
    line = " ".join(wording.visible(text).split())
    return MARKDOWN.sub(lambda m: {"<": "&lt;", "&": "&amp;"}.get(m[0], "\\" + m[0]), line)


def fence(text: str) -> Markup:
    """Foreign text as a Markdown code block, whose fence is longer than any inside."""
    shown = wording.visible(text)
    longest = max((len(run) for run in re.findall(r"`+", shown)), default=0)
    ticks = "`" * max(3, longest + 1)
    return Markup(f"{ticks}text\n{shown}\n{ticks}")
