"""One arm of one seed: draw tables of as many rows as were learned from, and judge each by the rows held out.

Arms are paired by seed and redraw: rows are sampled with the same seed, and the judges draw the same of everything.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Int

from preflab.config.table_study import REFERENCE, RESAMPLED, CompareTable
from preflab.data.encode import Tree
from preflab.models.scoring import logprobs_of
from preflab.progress import hushed
from preflab.rollouts.mask import grammar_of
from preflab.runs import JSON, read_json
from preflab.seeds import derive
from preflab.tables.draw import SCORED_AT_ONCE, draw_rows, unmasked_share
from preflab.tables.encoding import Encoding
from preflab.tables.files import read_table
from preflab.tables.judge.bounds import second_sample
from preflab.tables.judge.score import flat, judge
from preflab.tables.judge.typed import Typed, typed
from preflab.tables.judge.utility import Balancing, Utility, utility
from preflab.tables.synthesizer import UNMASKED, UNMASKED_SENTENCES, Synthesizer

Codes = Int[np.ndarray, "row column"]

REAL = "real"
"""The bound, no arm: a second sample of real rows."""
BALANCING: tuple[Balancing, ...] = ("none",)
DETECTABILITY_REDRAWS = 2
"""Of rows and folds, within a drawn table."""
KL_ROWS = 2000
"""Rows that KL is the mean over, at most."""


@dataclass(frozen=True)
class Bench:
    """What all arms of one seed share."""

    folder: Path
    """seeds/seed-N of the study."""
    config: CompareTable
    """With a target."""
    seed: int

    @property
    def run(self) -> Path:
        """The run folder of the fit."""
        return self.folder / "table"

    @cached_property
    def synthesizer(self) -> Synthesizer:
        """The reference and all policies."""
        return Synthesizer.load(self.run)

    @cached_property
    def parts(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        """Training and holdout rows as text, without identifiers, which are fresh in every table."""
        columns = self.synthesizer.fitted.schema.columns
        names = [column.name for column in columns if column.kind != "identifier"]
        train, holdout = (read_table(next(self.run.glob(f"{part}.*")))[0] for part in ("train", "holdout"))
        return train[names], holdout[names]

    @cached_property
    def real(self) -> Typed:
        """The training rows as if they were synthetic."""
        return self.typed(self.parts[0])

    @cached_property
    def learnt(self) -> Utility:
        """What models learn from the training rows."""
        return self.utility_of(self.real)

    def typed(self, rows: pd.DataFrame) -> Typed:
        """Rows to judge."""
        train, holdout = self.parts
        return typed(train, holdout, rows[list(train.columns)], self.config.target)

    def utility_of(self, table: Typed) -> Utility:
        """What models learn from a table's training rows."""
        with hushed():
            return utility(table, table.train, derive(self.seed, "utility"), balancing=BALANCING, jobs=self.config.jobs)


@dataclass(frozen=True)
class Rows:
    """A drawn table."""

    text: pd.DataFrame
    cpu_seconds: float


def draw(bench: Bench, arm: str, redraw: int) -> Rows:
    """A table of an arm, of as many rows as were learned from."""
    seed, count = derive(bench.seed, "draw", redraw), len(bench.parts[0])
    began = time.process_time()
    with hushed():
        text, _ = bench.synthesizer.draw(count, seed=seed, policy=arm)
    return Rows(text, time.process_time() - began)


def judge_rows(bench: Bench, rows: pd.DataFrame, redraw: int) -> dict[str, float]:
    """Every figure of a drawn table."""
    return _judged(bench, bench.typed(rows), bench.learnt, redraw)


def judge_real(bench: Bench, redraw: int) -> dict[str, float]:
    """The bound: half of the training rows as if they were synthetic, the other half as all that there was to learn
    from, as `preflab table score` has it."""
    half = second_sample(bench.real.train, np.random.default_rng(derive(bench.seed, "second sample", redraw)))
    table = replace(bench.real, train=half.train).judging(half.synthetic)
    return _judged(bench, table, bench.utility_of(table), redraw)


def _judged(bench: Bench, table: Typed, learnt: Utility, redraw: int) -> dict[str, float]:
    with hushed():
        found = judge(
            table,
            learnt,
            seed=derive(bench.seed, "evaluation", redraw),
            redraws=DETECTABILITY_REDRAWS,
            jobs=bench.config.jobs,
            balancing=BALANCING,
            title="",
        )
    return flat(found.figures)


def measure(bench: Bench, arm: str) -> dict[str, JSON]:
    """What is known of an arm before its tables are judged: how far its model is from the reference, and which share of
    what it writes without a mask is legal."""
    known: dict[str, JSON] = {"kl_nats": None, "kl_sd_nats": None, "unmasked_valid_share": None}
    fitted = bench.synthesizer.fitted if arm not in (REAL, RESAMPLED) else None
    if fitted is not None:
        model, encoding = fitted.model(arm), fitted.encoding
        if arm == REFERENCE:
            known |= {"kl_nats": 0.0, "kl_sd_nats": 0.0}
        else:
            count = min(KL_ROWS, len(bench.parts[0]))
            codes = draw_rows(model, encoding, count, seed=derive(bench.seed, "kl")).codes
            ratios = log_ratios(model, fitted.model(REFERENCE), encoding, codes)
            known |= {"kl_nats": float(ratios.mean()), "kl_sd_nats": float(ratios.std(ddof=1))}
        unmasked = UNMASKED if bench.config.encoding == "compact" else UNMASKED_SENTENCES
        known["unmasked_valid_share"] = unmasked_share(model, encoding, unmasked, seed=derive(bench.seed, "unmasked"))
    rows = len(bench.parts[0]) if arm != REAL else len(bench.parts[0]) // 2
    about = {"arm": arm, "seed": bench.seed, "draws": [], "rows": rows, "cpu_seconds": 0.0, "rows_per_cpu_second": None}
    return about | known


def log_ratios(policy: Any, reference: Any, encoding: Encoding, codes: Codes) -> Float[np.ndarray, " row"]:
    """log π(row) − log π_ref(row) in nats of each row, both under the mask; over rows of π its mean estimates
    KL(π‖π_ref) without bias."""
    grammar = grammar_of(encoding.mask())
    trees = [
        Tree(f"row {place + 1}", encoding.prompt(), (encoding.response(row.tolist()),))
        for place, row in enumerate(codes)
    ]
    own, before = (
        logprobs_of(model, trees, batch_size=SCORED_AT_ONCE, grammar=grammar).double().numpy()
        for model in (policy, reference)
    )
    return np.asarray(own - before)


def count_draws(path: Path) -> int:
    """How many tables of an arm were judged."""
    return len(read_json(path)["draws"]) if path.exists() else 0
