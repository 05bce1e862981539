"""How often a report's verdicts find what is not there, and what is: a table for docs/statistics.md.

    OMP_NUM_THREADS=1 python benchmarks/verdict_errors.py                      one minute of one core
    OMP_NUM_THREADS=1 python benchmarks/verdict_errors.py --studies 100        a quick look, written nowhere

A simulated study has a reference and three methods, whose checkpoints share the luck of their seed and what their
method likes of each prompt; its comparisons share arms, as those of a report do. Nothing is trained. Intervals,
p-values and the correction are those of `src/preflab/report/statistics.py`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path

import numpy as np

from marks import fill
from preflab.report import verdicts
from preflab.report.statistics import Matrix, estimate, holm, p_value
from preflab.report.verdicts import ALPHA
from preflab.seeds import derive

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "verdict_errors.json"
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- errors -->", "<!-- /errors -->"
KINDS = tuple(dict.fromkeys(verdicts.KINDS.values()))
SEEDS = (3, 5, 10)
SEED_SDS = (0.0, 0.1, 0.2, 0.3, 0.6)
PROMPTS = 64
CHECKPOINTS = 3
ERROR_SD, PROMPT_SD = 0.5, 0.3
NOTHING = (0.0, 0.0, 0.0)
GAINS = (0.3, 0.6, 1.2)
"""What the three methods get more than the reference where something differs."""

P = Mapping[str, Sequence[float]]


def comparisons(seeds: int, seed_sd: float, gains: Sequence[float], rng: np.random.Generator) -> P:
    """The p-values of one simulated study, by kind."""

    def scored(effect: Matrix) -> Matrix:
        return effect + ERROR_SD * rng.normal(size=(seeds, PROMPTS))

    def liking() -> Matrix:
        return PROMPT_SD * rng.normal(size=(1, PROMPTS))

    lucks = [gain + seed_sd * rng.normal(size=(seeds, 1)) for gain in gains]
    of_reference = scored(liking())
    courses = [[scored(effect) for _ in range(CHECKPOINTS)] for effect in (luck + liking() for luck in lucks)]
    curves = [np.mean(course, axis=0) for course in courses]
    return {
        "with the reference": [p_below(scored(luck + liking()) - of_reference) for luck in lucks],
        "between methods": [p_below(a - b) for a, b in combinations(curves, 2)],
        "about the proxy": [fell(course) for course in courses],
    }


def fell(course: Sequence[Matrix]) -> float:
    """p of "the gold reward did not fall since its best checkpoint", as `verdicts.proxy_misled` asks it, where the
    proxy rises beyond doubt."""
    *earlier, last = course
    change = last - max(earlier, key=lambda reward: float(reward.mean()))
    return 1.0 if change.mean() >= 0 else min(1.0, len(earlier) * p_below(change))


def p_below(values: Matrix) -> float:
    """The p-value where it is below ALPHA, else 1: what can't be found alone needs no correction."""
    return p_value(values, "simulated reward") if estimate(values, "simulated reward", 1 - ALPHA).sign else 1.0


def found(p: Sequence[float]) -> list[bool]:
    """What is called a difference among these."""
    return [corrected < ALPHA for corrected in holm(p)]


def simulated(seeds: int, seed_sd: float, gains: Sequence[float], count: int) -> list[P]:
    """`count` studies, reproducible for each case by itself."""
    rng = np.random.default_rng(derive(0, "verdicts", str(seeds), str(seed_sd), *map(str, gains)))
    return [comparisons(seeds, seed_sd, gains, rng) for _ in range(count)]


def errors(studies: Sequence[P]) -> dict[str, float]:
    """The share of studies without a difference that find one: of each kind, and of any."""
    of = {kind: [any(found(study[kind])) for study in studies] for kind in KINDS}
    of["any"] = [any(some) for some in zip(*of.values(), strict=True)]
    return {kind: float(np.mean(some)) for kind, some in of.items()}


def power(studies: Sequence[P]) -> dict[str, float]:
    """The share of true differences that is found: corrected by kind, and were all of a report one family."""
    kinds = KINDS[:2]
    asked = sum(len(studies[0][kind]) for kind in kinds)
    alone = [found(study[kind]) for study in studies for kind in kinds]
    together = [found([p for kind in KINDS for p in study[kind]])[:asked] for study in studies]
    return {"by kind": float(np.mean(np.concatenate(alone))), "as one": float(np.mean(together))}


def table(wrong: Mapping[tuple[float, int], Mapping[str, float]]) -> str:
    """False findings by the standard deviation of seeds, in Markdown."""
    lines = [
        "| seeds | comparisons | " + " | ".join(f"seeds' sd {seed_sd:g}" for seed_sd in SEED_SDS) + " |",
        "|--:|:--|" + "--:|" * len(SEED_SDS),
    ]
    for seeds, kind in product(SEEDS, (*KINDS, "any")):
        cells = [f"{100 * wrong[seed_sd, seeds][kind]:.1f} %" for seed_sd in SEED_SDS]
        lines.append(f"| {seeds} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, help="a case; the page and the JSON are written without it alone")
    given = parser.parse_args()
    count = given.studies or 4000
    begin = time.process_time()
    cases = list(product(SEED_SDS, SEEDS))
    wrong = {(sd, seeds): errors(simulated(seeds, sd, NOTHING, count)) for sd, seeds in cases}
    right = {(sd, seeds): power(simulated(seeds, sd, GAINS, count // 4)) for sd, seeds in cases if seeds < 10}
    summary = f"{count:,} studies a cell. Of gains of {', '.join(f'{gain:g}' for gain in GAINS)} over the reference, "
    summary += "the share of true differences that is found (were all nine comparisons one family): " + "; ".join(
        f"{seeds} seeds with standard deviation {sd:g} {100 * of['by kind']:.0f} % ({100 * of['as one']:.0f} %)"
        for (sd, seeds), of in right.items()
        if sd in (0.1, 0.3)
    )
    print(table(wrong), f"{summary}.", f"{time.process_time() - begin:.0f} CPU seconds", sep="\n\n")
    if given.studies is None:
        rows = [{"seed_sd": sd, "seeds": seeds, "wrong": of} for (sd, seeds), of in wrong.items()]
        rows += [{"seed_sd": sd, "seeds": seeds, "right": of} for (sd, seeds), of in right.items()]
        OUT.write_text(json.dumps({"studies": count, "cases": rows}, indent=1) + "\n", encoding="utf-8")
        fill(PAGE, f"{table(wrong)}\n\n{summary}.", BEGIN, END)


if __name__ == "__main__":
    main()
