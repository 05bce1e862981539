"""Draw each family's measured curve into docs/methods/ from finished studies.

    preflab compare reviews --arms … --out runs/offline          (docs/methods/README.md has the commands)
    python benchmarks/curves.py runs/offline runs/online

Studies must be of one task and one seed: their arms are shown together, an arm that both have is the first one's. In
each page what stands between `<!-- measured: … -->` and `<!-- /measured -->` is replaced.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from marks import fill
from preflab.report.chapter import Chapter, Drawing
from preflab.report.chapters.frontier import frontier
from preflab.report.chapters.reward_models import reward_models
from preflab.report.measures import summary
from preflab.report.study import Study, read_study
from preflab.report.svg import Picture
from preflab.report.verdicts import mean_cost
from preflab.report.wording import count, interval

PAGES = Path(__file__).parent.parent / "docs" / "methods"
FAMILIES = {
    "sft": ("sft", "dpo"),
    "dpo": ("dpo", "cdpo", "rdpo", "ln-dpo", "f-dpo", "sum"),
    "margin-losses": ("dpo", "ipo", "hinge", "exo", "aot"),
    "anchored-losses": ("dpo", "dpop", "nca", "bco-pair", "sppo", "apo-zero", "apo-down"),
    "reference-free": ("dpo", "simpo", "cpo", "orpo"),
    "unpaired": ("dpo", "kto", "bco"),
    "ppo": ("dpo", "ppo", "ppo-gold"),
    "policy-gradient": ("ppo", "grpo", "dr-grpo", "dapo", "rloo", "reinforce"),
    "online-preference": ("dpo", "online-dpo", "iterative-dpo", "best-of-n"),
    "chains": ("dpo", "ppo", "dpo+ppo", "sft+online-dpo"),
}
"""Which arms a page shows beside the reference."""


def main(folders: list[Path]) -> None:
    """Write figures and tables into the pages."""
    study = together([read_study(folder) for folder in folders])
    put(PAGES / "README.md", "all", table(only(study, tuple(dict.fromkeys(sum(FAMILIES.values(), ()))))))
    for page, arms in FAMILIES.items():
        shown = only(study, arms)
        picture = first_picture(frontier(shown))
        (PAGES / "measured").mkdir(exist_ok=True)
        (PAGES / "measured" / f"{page}.svg").write_text(picture.file, encoding="utf-8")
        put(PAGES / f"{page}.md", page, f"![{picture.title}](measured/{page}.svg)\n\n{table(shown)}")
    picture = first_picture(reward_models(study))
    (PAGES / "measured" / "reward-model.svg").write_text(picture.file, encoding="utf-8")
    facts = "\n".join(
        f"- {fact.name}: {fact.value:.3f}" + (f" [{fact.low:.3f}, {fact.high:.3f}]" if fact.low is not None else "")
        for fact in study.facts
        if fact.high is not None or "ceiling" in fact.name
    )
    reading = f"![{picture.title}](measured/reward-model.svg)\n\n{picture.reading}\n\n{facts}"
    put(PAGES / "reward-model.md", "reward-model", reading)


def first_picture(chapter: Chapter | None) -> Picture:
    """What a chapter of the report draws first."""
    if chapter is None:
        sys.exit("the studies hold nothing to draw")
    return next(part.picture for part in chapter.parts if isinstance(part, Drawing))


def together(studies: list[Study]) -> Study:
    """One study with the arms of all."""
    first, *others = studies
    for other in others:
        if other.seeds != first.seeds or other.title != first.title:
            sys.exit(f"{other.title}, seeds {other.seeds}: not the task and seeds of the first study")
        known = {arm.name for arm in first.arms}
        first = replace(first, arms=(*first.arms, *(arm for arm in other.arms if arm.name not in known)))
    return first


def only(study: Study, arms: tuple[str, ...]) -> Study:
    """The study with the reference and these arms alone."""
    absent = set(arms) - {arm.name for arm in study.arms}
    if absent:
        sys.exit(f"the studies have no arm {', '.join(sorted(absent))}")
    by_name = {arm.name: arm for arm in study.arms}
    return replace(study, arms=tuple(by_name[name] for name in (study.reference_name, *arms)))


def table(study: Study) -> str:
    """The chosen checkpoint of each arm on test prompts."""
    lines = [
        f"| arm | step | {study.reward_name} | KL (nats) | response tokens | FLOPs |",
        "|:--|--:|--:|--:|--:|--:|",
    ]
    for row in summary(study):
        bound = "≤ " if row.arm.kl_is_bound else ""
        lines.append(
            f"| {row.arm.title} | {', '.join(map(str, row.steps))} | {interval(row.measures.reward)} | "
            f"{bound}{interval(row.measures.kl)} | {interval(row.measures.response_tokens, 1)} | "
            f"{count(mean_cost(row.arm, 'flops'))} |"
        )
    return "\n".join(lines)


def put(page: Path, name: str, content: str) -> None:
    """Between a page's marks of that name."""
    fill(page, content, f"<!-- measured: {name} -->", "<!-- /measured -->")


if __name__ == "__main__":
    main([Path(folder) for folder in sys.argv[1:]] or sys.exit(__doc__))
