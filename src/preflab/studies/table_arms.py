"""One arm of one seed: draw tables of as many rows as were learned from, and judge each by the rows held out.

Arms are paired by seed and redraw: rows are sampled with the same seed, and the judges draw the same of everything.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float

from preflab.config.table_study import REFERENCE, RESAMPLED, CompareTable
from preflab.progress import hushed, warn
from preflab.runs import JSON, read_json
from preflab.seeds import derive
from preflab.tables.alignment.align import rows_of
from preflab.tables.alignment.choose import row_logprobs
from preflab.tables.alignment.resample import resample_rows
from preflab.tables.alignment.reward import clipped
from preflab.tables.alignment.rounds import discriminators_of
from preflab.tables.discriminators.panel import Panel
from preflab.tables.draw import Drawn, draw_rows, unmasked_share
from preflab.tables.files import read_table
from preflab.tables.fitted import ALIGNED
from preflab.tables.judge.bounds import second_sample
from preflab.tables.judge.score import flat, judge
from preflab.tables.judge.typed import Typed, typed
from preflab.tables.judge.utility import Balancing, Utility, utility
from preflab.tables.judge.validity import Order
from preflab.tables.orders import Unkept
from preflab.tables.synthesizer import UNMASKED, UNMASKED_SENTENCES, Orders, Synthesizer

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
    def panel(self) -> Panel:
        """The discriminators between the table and the reference's rows that the first arm's first round has; their own
        where no arm is aligned."""
        fitted, seed = self.synthesizer.fitted, derive(self.seed, "discriminators", 1)
        panel, _ = discriminators_of(
            fitted.model(REFERENCE), fitted.encoding, rows_of(fitted), self.config.align.discriminators,
            panel_folder(self.folder, self.config), seed=seed,
        )  # fmt: skip
        return panel

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
    orders: Orders
    """ignore: the model keeps orders in hardly a row, so these are as it writes them."""


def panel_folder(folder: Path, config: CompareTable) -> Path:
    """Where a seed's first discriminators of the reference's rows lie."""
    stages = [arm.split("+")[0] for arm in config.aligned()]
    return (folder / "table" / ALIGNED / stages[0] if stages else folder) / "discriminators" / "round-1"


def draw(bench: Bench, arm: str, redraw: int) -> Rows:
    """A table of an arm, of as many rows as were learned from."""
    seed, count = derive(bench.seed, "draw", redraw), len(bench.parts[0])
    panel = bench.panel if arm == RESAMPLED else None
    began = time.process_time()

    def drawn_with(orders: Orders) -> tuple[pd.DataFrame, Drawn]:
        if panel is None:
            return bench.synthesizer.draw(count, seed=seed, policy=arm, orders=orders)
        fitted = bench.synthesizer.fitted
        drawn = _resampled(bench, count, seed=seed, orders=fitted.orders if orders == "keep" else ())
        return fitted.schema.frame(drawn.codes, seed=derive(seed, "identifiers")), drawn

    orders: Orders = "keep"
    try:
        with hushed():
            text, drawn = drawn_with(orders)
    except Unkept as error:  # a weak model is judged too
        warn(f"{arm}, seed {bench.seed}: {error}; its rows are judged as they come")
        orders, began = "ignore", time.process_time()
        with hushed():
            text, drawn = drawn_with(orders)
    seconds = time.process_time() - began
    if panel is not None and not drawn.enough:
        warn(
            f"resampled, seed {bench.seed}: {drawn.candidates:,} rows of the reference were too few to choose among, "
            f"and {drawn.repeats:,} of {count:,} repeat another"
        )
    return Rows(text, seconds, orders)


def _resampled(bench: Bench, count: int, *, seed: int, orders: Sequence[Order] = ()) -> Drawn:
    model, encoding = bench.synthesizer.fitted.model(REFERENCE), bench.synthesizer.fitted.encoding
    clip = bench.config.align.clip_nats
    return resample_rows(model, encoding, bench.panel, count, seed=seed, clip_nats=clip, orders=orders)


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
    fitted = bench.synthesizer.fitted
    reference, encoding = fitted.model(REFERENCE), fitted.encoding
    count, seed = min(KL_ROWS, len(bench.parts[0])), derive(bench.seed, "kl")
    if arm not in (REAL, RESAMPLED):
        model = fitted.model(arm)
        unmasked = UNMASKED if bench.config.encoding == "compact" else UNMASKED_SENTENCES
        share = unmasked_share(model, encoding, unmasked, seed=derive(bench.seed, "unmasked"))
        ratios = np.zeros(count)
        if arm != REFERENCE:
            codes = draw_rows(model, encoding, count, seed=seed).codes  # of the model itself, orders broken or kept
            ratios = row_logprobs(model, encoding, codes) - row_logprobs(reference, encoding, codes)
        known["unmasked_valid_share"] = share
    if arm == RESAMPLED:
        ratios = resampled_ratios(bench, count, seed=seed)
    if arm != REAL:
        known |= {"kl_nats": float(ratios.mean()), "kl_sd_nats": float(ratios.std(ddof=1))}
    rows = len(bench.parts[0]) if arm != REAL else len(bench.parts[0]) // 2
    about = {"arm": arm, "seed": bench.seed, "draws": [], "rows": rows, "cpu_seconds": 0.0, "rows_per_cpu_second": None}
    return about | known


def resampled_ratios(bench: Bench, count: int, *, seed: int) -> Float[np.ndarray, " row"]:
    """log w(row) − log E_ref w of resampled rows, w what a row weighs: their log-ratio to the reference, in nats."""
    fitted, clip = bench.synthesizer.fitted, bench.config.align.clip_nats
    drawn = draw_rows(fitted.model(REFERENCE), fitted.encoding, count, seed=seed).codes
    taken = _resampled(bench, count, seed=seed).codes
    before, after = (clipped(bench.panel.ratio(codes), clip) for codes in (drawn, taken))
    return np.asarray(after - np.log(np.exp(before).mean()))


def count_draws(path: Path) -> int:
    """How many tables of an arm were judged."""
    return len(read_json(path)["draws"]) if path.exists() else 0
