"""What the studies of this recipe say of each conclusion: reproduced, not reproduced, or undecided.

    python recipes/unpacking-dpo-ppo/conclusions.py runs/unpacking

reads what is there of the studies below, prints its tables, and writes them and conclusions.json beside the studies.
With --page recipes/unpacking-dpo-ppo/README.md it fills that page too, between its marks. The README has the rule.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from preflab.data.reviews import judges
from preflab.errors import StorageError
from preflab.report.families import Family
from preflab.report.frontiers import overlap
from preflab.report.statistics import Estimate, Matrix, estimate, over_seeds
from preflab.report.study import Arm, Point, Study, read_study
from preflab.runs import write_json, write_text

STUDIES = (
    "full", "noisy-labels", "poor-generations", "few-labels", "small-reward-model", "judged-prompts", "open-prompts"
)  # fmt: skip
"""The YAML files, and the folders that their studies lie in."""
BY_KIND = {"matching": ("judged-prompts", "open-prompts"), "other": ("open-prompts", "judged-prompts")}
"""Stands for a study: the first on test prompts that judge already, the second on those that judge nothing yet, so
that "matching" learned on prompts of the kind that it is tested on, and "other" on those of the other kind."""

ALPHA = 0.05
"""How often a set of studies in which no claim is off its bound may settle one."""
FEWEST_SEEDS = 3
"""Two seeds say too little of a third: their intervals cover less than they say (docs of `over_seeds_and_prompts`)."""
MARGIN = 0.05
"""Sentiment, of a range of 2: a smaller gain counts as none."""

Measure = Literal["sentiment", "ended", "tokens", "accuracy", "at equal KL"]
Verdict = Literal["reproduced", "not reproduced", "undecided", "not run"]


@dataclass(frozen=True)
class Claim:
    """Something that was concluded elsewhere, as "this difference is above a bound"."""

    topic: str
    says: str
    terms: Mapping[str, float]
    """study/arm → its weight in the difference."""
    measure: Measure = "sentiment"
    above: float = 0.0


def costs(condition: str, *arms: str) -> dict[str, float]:
    """The mean over `arms` of what they lose from the full study to another one."""
    return {f"{study}/{arm}": sign / len(arms) for arm in arms for study, sign in (("full", 1.0), (condition, -1.0))}


def over(better: str, worse: str, *studies: str) -> dict[str, float]:
    """The mean over `studies` of what one arm has more than another."""
    return {f"{study}/{arm}": sign / len(studies) for study in studies for arm, sign in ((better, 1.0), (worse, -1.0))}


def minus(first: Mapping[str, float], second: Mapping[str, float]) -> dict[str, float]:
    """A difference of two differences.

    >>> minus({"a/dpo": 1.0, "b/dpo": -1.0}, {"a/dpo": 1.0, "c/dpo": -1.0})
    {'b/dpo': -1.0, 'c/dpo': 1.0}
    """
    both = {name: first.get(name, 0.0) - second.get(name, 0.0) for name in {**first, **second}}
    return {name: weight for name, weight in both.items() if weight}


DATA, METHOD, REWARD, PROMPTS, DETAILS = "preferences", "PPO or DPO", "reward model", "prompts", "details of PPO"
BOTH = ("dpo", "ppo")
POORER = ("few-labels", "small-reward-model")

CLAIMS = (
    Claim(DATA, "Noisier labels cost reward", costs("noisy-labels", *BOTH)),
    Claim(DATA, "Poorer generations cost reward", costs("poor-generations", *BOTH)),
    Claim(
        DATA,
        "Noisier labels cost more than poorer generations",
        minus(costs("noisy-labels", *BOTH), costs("poor-generations", *BOTH)),
    ),
    Claim(METHOD, "PPO gets more than DPO from the same data", over("ppo", "dpo", "full")),
    Claim(METHOD, "PPO gets more than DPO, mean over three data sets", over("ppo", "dpo", *STUDIES[:3])),
    Claim(METHOD, "PPO gets more than DPO at equal KL", over("ppo", "dpo", "full"), "at equal KL"),
    *(
        claim
        for study, less in (("few-labels", "fewer labels"), ("small-reward-model", "fewer trained weights"))
        for claim in (
            Claim(REWARD, f"With {less} it is less accurate", costs(study, "reference"), "accuracy"),
            Claim(REWARD, f"With {less} best of n gets less", costs(study, "best-of-n")),
            Claim(REWARD, f"With {less} PPO gets less", costs(study, "ppo")),
        )
    ),
    Claim(
        REWARD,
        "A better one helps best of n more than PPO",
        {
            name: weight / len(POORER)
            for study in POORER
            for name, weight in minus(costs(study, "best-of-n"), costs(study, "ppo")).items()
        },
    ),
    Claim(
        PROMPTS,
        "Prompts like the test's get PPO more than other prompts",
        {"matching/ppo": 1.0, "other/ppo": -1.0},
    ),
    Claim(
        PROMPTS,
        "Prompts like the test's get PPO more than all prompts",
        {"matching/ppo": 1.0, "full/ppo": -1.0},
    ),
    Claim(
        DETAILS,
        "The end-token trick: more responses end",
        over("ppo", "ppo@missing_end_penalty=0", "full"),
        "ended",
    ),
    Claim(DETAILS, "Values that start as the reward model help", over("ppo", "ppo@value_trunk=shared", "full")),
    Claim(DETAILS, "Whitened advantages help", over("ppo", "ppo@whiten_advantages=false", "full")),
    Claim(
        DETAILS,
        f"Whitened rewards gain less than {MARGIN}",
        over("ppo", "ppo@whiten_rewards=true", "full"),
        above=-MARGIN,
    ),
    Claim(
        DETAILS,
        "Whitened rewards make responses shorter",
        over("ppo", "ppo@whiten_rewards=true", "full"),
        "tokens",
    ),
    Claim(
        DETAILS,
        f"An adaptive KL coefficient gains less than {MARGIN}",
        over("ppo", "ppo@kl_horizon=256@target_kl_nats=3", "full"),
        above=-MARGIN,
    ),
)


@dataclass(frozen=True)
class Answer:
    """A claim with what the studies say of it."""

    claim: Claim
    verdict: Verdict
    difference: Estimate | None = None
    seeds: int = 0

    def json(self) -> dict[str, object]:
        """The form in conclusions.json."""
        difference = self.difference.json() if self.difference else None
        return {
            "topic": self.claim.topic, "claim": self.claim.says, "measure": self.claim.measure,
            "terms": dict(self.claim.terms), "above": self.claim.above, "verdict": self.verdict,
            "difference": difference, "seeds": self.seeds,
        }  # fmt: skip


def answers(studies: Mapping[str, Study], claims: Sequence[Claim] = CLAIMS) -> tuple[Answer, ...]:
    """Each claim settled or left open; those that can be asked are corrected for their number (Holm 1979).

    Holm steps down: of k open claims, those settle whose interval at 1 − ALPHA / k leaves the bound out, which makes
    the intervals of the others less wide; and so on until none settles.
    """
    values = {number: found for number, claim in enumerate(claims) if (found := difference(studies, claim)) is not None}
    asked = [number for number, found in values.items() if len(found) >= FEWEST_SEEDS]
    settled: dict[int, Verdict] = {}
    while waiting := [number for number in asked if number not in settled]:
        confidence = 1 - ALPHA / len(waiting)
        sides = {number: side(values[number], claims[number], confidence) for number in waiting}
        if not any(sides.values()):
            break
        settled |= {n: "reproduced" if where > 0 else "not reproduced" for n, where in sides.items() if where}
    return tuple(
        Answer(claim, settled.get(number, "undecided"), interval(found, claim.says), len(found))
        if (found := values.get(number)) is not None
        else Answer(claim, "not run")
        for number, claim in enumerate(claims)
    )


def side(values: Matrix, claim: Claim, confidence: float) -> int:
    """+1 or −1 where the interval lies above or below the claim's bound, else 0."""
    found = interval(values - claim.above, claim.says, confidence)
    return found.sign if found else 0


def interval(values: Matrix, what: str, confidence: float = 0.95) -> Estimate | None:
    """Over seeds and prompts; over seeds alone where there is one value a seed; None where that is one value."""
    if values.shape[1] > 1:
        return estimate(values, what, confidence)
    return over_seeds(values[:, 0], what, confidence) if len(values) > 1 else None


def difference(studies: Mapping[str, Study], claim: Claim) -> Matrix | None:
    """The claim's difference, seed × prompt, on the seeds that all its terms have; None where there are none.

    Raises:
        StorageError: two studies were scored on different prompts.
    """
    if claim.measure == "at equal KL":
        return at_equal_kl(studies, claim)
    rows = {name: measured(studies, name, claim.measure) for name in claim.terms}
    prompts = {name: row[0] for name, by_seed in rows.items() for row in by_seed.values()}
    for name, these in prompts.items():
        if these != (first := next(iter(prompts.values()))):
            raise StorageError(
                f"{name} was scored on other prompts ({len(these)}) than {next(iter(prompts))} ({len(first)}); "
                "run all studies of the recipe with the same prompts and seed"
            )
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in rows.values())))
    if not seeds:
        return None
    return np.array([sum(weight * rows[name][seed][1] for name, weight in claim.terms.items()) for seed in seeds])


def measured(studies: Mapping[str, Study], name: str, measure: Measure) -> dict[int, tuple[tuple[str, ...], Matrix]]:
    """What one term is on test prompts, for each seed that was tested: the prompts, and a value each."""
    folder, _, arm = name.partition("/")
    if folder in BY_KIND:
        return by_kind(studies, *(f"{study}/{arm}" for study in BY_KIND[folder]), measure)
    study = studies.get(folder)
    if study is None:
        return {}
    if measure == "accuracy":
        return {seed: ((), np.array([value])) for seed, value in accuracies(study).items()}
    read: dict[Measure, Callable[[Point], Matrix]] = {
        "sentiment": lambda point: point.reward / scale(study),
        "ended": lambda point: point.ended,
        "tokens": lambda point: point.response_tokens,
    }
    tested = [(run.seed, run.test) for one in study.arms if one.name == arm for run in one.runs]
    return {seed: (point.prompts, read[measure](point)[0]) for seed, point in tested if point}


def by_kind(
    studies: Mapping[str, Study], judged: str, unjudged: str, measure: Measure
) -> dict[int, tuple[tuple[str, ...], Matrix]]:
    """What `judged` is on test prompts that judge already, and `unjudged` on the others, for each seed of both."""
    first, second = measured(studies, judged, measure), measured(studies, unjudged, measure)
    found = {}
    for seed in sorted(first.keys() & second.keys()):
        prompts, values = first[seed]
        if prompts != second[seed][0]:
            raise StorageError(
                f"{judged} and {unjudged} were scored on other prompts; run all studies of the recipe with the same "
                "prompts and seed"
            )
        texts = texts_of(studies, judged, seed)
        kind = np.array([judges(texts[prompt]) for prompt in prompts])
        found[seed] = prompts, np.where(kind, values, second[seed][1])
    return found


def texts_of(studies: Mapping[str, Study], name: str, seed: int) -> dict[str, str]:
    """The test prompts of one arm and seed by their ids."""
    folder, _, arm = name.partition("/")
    tested = (run.test for one in studies[folder].arms if one.name == arm for run in one.runs if run.seed == seed)
    return {sample.prompt_id: sample.prompt for point in tested if point for sample in point.samples[0]}


def accuracies(study: Study) -> dict[int, float]:
    """The reward model's accuracy on held-out pairs, by seed."""
    found = [model.accuracy.mean for model in study.reward_models if model.label == "reward model"]
    return dict(zip(study.seeds, found, strict=False))


def scale(study: Study) -> float:
    """Gold reward per unit of sentiment, which studies with other labels have otherwise."""
    pairs: Any = study.config["pairs"]
    return float(pairs["gold_scale"])


def at_equal_kl(studies: Mapping[str, Study], claim: Claim) -> Matrix | None:
    """The difference of two frontiers of one study, on validation prompts."""
    (first, second) = claim.terms
    study = studies.get(first.partition("/")[0])
    arms = study and [one for name in (first, second) for one in study.arms if one.name == name.partition("/")[2]]
    if not study or not arms or len(arms) < 2:
        return None
    found = overlap(study, *(Family(arm.name, arm.title, (arm,), arm) for arm in arms))
    return None if found is None else (found.first - found.second) / scale(study)


def read_studies(root: Path) -> dict[str, Study]:
    """Those that were begun.

    Raises:
        StorageError: there is none.
    """
    found = {name: read_study(root / name) for name in STUDIES if (root / name / "study.json").is_file()}
    if not found:
        raise StorageError(f"{root} holds none of {', '.join(STUDIES)}; run the commands of the README first")
    return found


def signed(value: float) -> str:
    """Two decimals, with a real minus.

    >>> signed(-0.123)
    '−0.12'
    """
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def conclusions_table(settled: Sequence[Answer]) -> str:
    """In Markdown."""
    lines = ["| about | conclusion | difference | 95 % interval | seeds | |", "|---|---|---|---|---|---|"]
    for answer in settled:
        claim, found = answer.claim, answer.difference
        unit = "sentiment" if claim.measure == "at equal KL" else claim.measure
        mean = f"{signed(found.mean)} {unit}" if found else ""
        ends = f"{signed(found.low)} to {signed(found.high)}" if found else ""
        cells = (claim.topic, claim.says, mean, ends, str(answer.seeds or ""), f"**{answer.verdict}**")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def data_table(studies: Mapping[str, Study]) -> str:
    """What the arms of every study learn from, in Markdown."""
    lines = [
        "| study | responses inside the grammar | labels that agree with gold | a judge that knows gold is right "
        "| reward model right | of each seed |",
        "|---|---|---|---|---|---|",
    ]
    shown = ("Reference samples inside the grammar", "Labels that agree with gold", "Bayes ceiling on held-out pairs")
    for name, study in studies.items():
        right = list(accuracies(study).values())
        cells = [*(share(known(study, fact)) for fact in shown), share(right), ", ".join(f"{one:.2f}" for one in right)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def known(study: Study, fact: str) -> list[float]:
    """A fact's value for each seed; of several seeds its name tells which."""
    return [one.value for one in study.facts if one.name == fact or one.name.startswith(f"{fact} (seed ")]


def share(values: Sequence[float]) -> str:
    """A mean over seeds as a table has it, "" where there is none.

    >>> share([0.5, 0.6])
    '55 %'
    """
    return f"{100 * float(np.mean(values)):.0f} %" if values else ""


def figures_table(studies: Mapping[str, Study]) -> str:
    """What every arm of every study came to on test prompts, in Markdown."""
    lines = [
        "| study | arm | sentiment | of each seed | KL (nats) | tokens | ended | TFLOP |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, study in studies.items():
        rows = [row for arm in study.arms if (row := figures(study, arm))]
        lines += [f"| {'' if number else name} | {row}" for number, row in enumerate(rows)]
    return "\n".join(lines)


def figures(study: Study, arm: Arm) -> str:
    """One arm's cells; "" before it was tested."""
    tested = [(run, run.test) for run in arm.runs if run.test]
    if not tested:
        return ""
    points = [point for _, point in tested]
    each = [float(point.reward.mean()) / scale(study) for point in points]
    kl, tokens, ended = (
        float(np.mean([getattr(point, what).mean() for point in points]))
        for what in ("kl_nats", "response_tokens", "ended")
    )
    work = float(np.mean([run.cost["flops"] or 0.0 for run, _ in tested])) / 1e12
    bound = "≤ " if arm.kl_is_bound else ""
    cells = (
        signed(float(np.mean(each))),
        ", ".join(map(signed, each)),
        f"{bound}{signed(kl)}",
        f"{tokens:.1f}",
        f"{ended:.1%}",
    )
    return f"{arm.label} | {' | '.join(cells).replace('%', ' %')} | {work:.2f} |"


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with each table between its marks.

    >>> filled("a\\n<!-- x -->\\nold\\n<!-- end of x -->\\nb", {"x": "new"})
    'a\\n<!-- x -->\\nnew\\n<!-- end of x -->\\nb'
    """
    for name, table in tables.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if page.count(start) != 1 or page.count(end) != 1:
            raise StorageError(f"the page lacks {start.strip()} and {end}; add each once, on a line of its own")
        before, after = page.split(start)[0], page.split(end)[1]
        page = f"{before}{start}{table}\n{end}{after}"
    return page


def main(arguments: Sequence[str] | None = None) -> None:
    """Read, settle, print and write."""
    parser = argparse.ArgumentParser(description="Settle the conclusions of recipes/unpacking-dpo-ppo.")
    parser.add_argument("root", type=Path, help="the folder of the studies, runs/unpacking")
    parser.add_argument("--page", type=Path, help="a page to fill between its marks")
    told = parser.parse_args(arguments)
    studies = read_studies(told.root)
    found = answers(studies)
    tables = {
        "conclusions": conclusions_table(found),
        "data": data_table(studies),
        "figures": figures_table(studies),
    }
    text = "\n\n".join(tables.values()) + "\n"
    print(text, end="")
    write_text(told.root / "conclusions.md", text)
    write_json(told.root / "conclusions.json", [answer.json() for answer in found])
    if told.page:
        write_text(told.page, filled(told.page.read_text("utf-8"), tables))


if __name__ == "__main__":
    main()
