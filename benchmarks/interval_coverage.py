"""How often the report's 95 % intervals hold the truth, over simulated studies: a table for docs/statistics.md.

    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py                      half a minute of one core
    OMP_NUM_THREADS=1 python benchmarks/interval_coverage.py --studies 100        a quick look, written nowhere

A simulated study is a matrix of differences, a row a seed and a column a prompt: seed + prompt + error, each drawn
anew, whose true mean is known. Effects of prompts are normal or skewed (exponential); a reward may also be 0 or 1, with
a logit that has a seed's and a prompt's part, and then is mostly or nearly always 1. Nothing is trained.
`src/preflab/report/shares.py: mean_reward` makes the intervals of a report's rewards, from `statistics.py: estimate`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Literal

import numpy as np
from scipy import special

from marks import fill
from preflab.report.shares import mean_reward
from preflab.report.statistics import Matrix
from preflab.seeds import derive

ROOT = Path(__file__).parent.parent
OUT = ROOT / "benchmarks" / "results" / "interval_coverage.json"
PAGE = ROOT / "docs" / "statistics.md"
BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
SEEDS = (3, 5, 10)
PROMPTS = (32, 128)
BAR = 0.91
LOGIT = {"mostly 1": 1.0, "nearly always 1": 3.0}
"""Of rewards that are 0 or 1, where no effect moves it."""
Reward = Literal["normal", "skewed", "mostly 1", "nearly always 1"]
REWARDS: tuple[Reward, ...] = ("normal", "skewed", "mostly 1", "nearly always 1")


@dataclass(frozen=True)
class Case:
    """What is simulated."""

    reward: Reward
    """How the effects of prompts are distributed; mostly or nearly always 1: the reward itself is 0 or 1."""
    seeds: int
    prompts: int
    seed_sd: float
    """Of the seeds' effects, where the error's is 1; of a reward that is 0 or 1 on its logit."""
    prompt_sd: float
    """Of the prompts' effects, likewise."""


CASES = tuple(
    Case(reward, seeds, prompts, seed_sd, prompt_sd)
    for reward, seeds, prompts, seed_sd, prompt_sd in product(
        REWARDS, SEEDS, PROMPTS, (0.0, 0.1, 0.3, 1.0), (0.0, 0.5, 1.5)
    )
    if not (reward == "skewed" and prompt_sd == 0)  # which is normal
)


@dataclass(frozen=True)
class Covered:
    """How often the interval held the truth."""

    case: Case
    share: float
    half_width: float
    """Of the interval, on average."""


def truth(case: Case) -> float:
    """The mean that the interval should hold; of a reward that is 0 or 1 the mean of a logistic-normal variable."""
    if case.reward not in LOGIT:
        return 0.0
    nodes, weights = np.polynomial.hermite_e.hermegauss(101)
    spread = np.hypot(case.seed_sd, case.prompt_sd)
    return float(weights @ special.expit(LOGIT[case.reward] + spread * nodes) / weights.sum())


def studies(case: Case, count: int, rng: np.random.Generator) -> Iterator[Matrix]:
    """Simulated studies, one at a time."""
    for _ in range(count):
        seed = case.seed_sd * rng.normal(size=(case.seeds, 1))
        skewed = case.reward == "skewed"
        drawn = rng.exponential(size=(1, case.prompts)) - 1 if skewed else rng.normal(size=(1, case.prompts))
        effects = seed + case.prompt_sd * drawn
        if case.reward in LOGIT:
            yield (rng.random(effects.shape) < special.expit(LOGIT[case.reward] + effects)).astype(np.float64)
        else:
            yield effects + rng.normal(size=effects.shape)


def covered(case: Case, count: int) -> Covered:
    """The share of intervals that hold the truth, reproducible for each case by itself."""
    rng = np.random.default_rng(derive(0, "coverage", *(str(value) for value in asdict(case).values())))
    mean = truth(case)
    found = [mean_reward(values, "simulated reward") for values in studies(case, count, rng)]
    return Covered(
        case,
        float(np.mean([one.low <= mean <= one.high for one in found])),
        float(np.mean([one.high - one.low for one in found])) / 2,
    )


def table(results: Sequence[Covered]) -> str:
    """The least and the usual coverage by what was simulated, in Markdown."""
    lines = [
        "| reward | variance of seeds | " + " | ".join(f"{seeds} seeds" for seeds in SEEDS) + " |",
        "|:--|:--|" + "--:|" * len(SEEDS),
    ]
    for reward, varies in product(REWARDS, (False, True)):
        cells = []
        for seeds in SEEDS:
            shares = [
                one.share
                for one in results
                if (one.case.reward, one.case.seed_sd > 0, one.case.seeds) == (reward, varies, seeds)
            ]
            cells.append(f"{100 * min(shares):.1f}–{100 * max(shares):.1f} %")
        lines.append(f"| {reward} | {'some' if varies else 'none'} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def told(results: Sequence[Covered], count: int) -> str:
    """The mean, the least, and the cases below the bar by reward."""
    least = min(results, key=lambda one: one.share)
    case = least.case
    below = Counter(one.case.reward for one in results if one.share < BAR)
    sds = f"standard deviation of seeds {case.seed_sd:g}, of prompts {case.prompt_sd:g}, of the error 1"
    missed = ", ".join(f"{cases} of {reward}" for reward, cases in below.items()) or "none"
    return (
        f"{len(results)} cases × {count:,} studies: on average {100 * np.mean([one.share for one in results]):.1f} %, "
        f"least {100 * least.share:.1f} % ({case.reward}, {case.seeds} seeds, {case.prompts} prompts, {sds}); "
        f"below {100 * BAR:.0f} %: {missed}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, help="a case; the page and the JSON are written without it alone")
    given = parser.parse_args()
    count = given.studies or 3000
    begin = time.process_time()
    results = [covered(case, count) for case in CASES]
    summary = told(results, count)
    print(table(results), summary, f"{time.process_time() - begin:.0f} CPU seconds", sep="\n\n")
    if given.studies is None:
        rows = [asdict(one.case) | {"covered": one.share, "half_width": one.half_width} for one in results]
        OUT.write_text(json.dumps({"studies": count, "cases": rows}, indent=1) + "\n", encoding="utf-8")
        fill(PAGE, f"{table(results)}\n\n{summary}", BEGIN, END)


if __name__ == "__main__":
    main()
