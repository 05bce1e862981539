"""Do the synthetic rows look like real ones, column by column and pair by pair?

Quality, column shapes and column pair trends are those of sdmetrics (Synthetic Data Metrics, DataCebo 2023) against the
training rows; the other two are against the holdout.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from preflab.tables.judge.extras import extra
from preflab.tables.judge.typed import Typed

MOST_ROWS = 50_000
"""sdmetrics draws from a global generator where tables are longer."""
MOST_COLUMNS = 80
"""sdmetrics takes milliseconds for each pair of columns."""


@dataclass(frozen=True)
class Fidelity:
    """All in [0, 1]; None: could not be computed, and `notes` say why."""

    quality: float | None
    """The mean of the two that follow, 1 is best."""
    column_shapes: float | None
    column_pair_trends: float | None
    marginal_distance: float | None
    """Mean over columns of the distance between a column of the holdout and of the synthetic rows, 0 is best."""
    spearman_difference: float | None
    """Mean over pairs of columns of |difference of Spearman's ρ|, 0 is best (it can reach 2)."""
    notes: tuple[str, ...] = ()

    def figures(self) -> dict[str, float | None]:
        """By name."""
        return {
            "quality": self.quality,
            "column_shapes": self.column_shapes,
            "column_pair_trends": self.column_pair_trends,
            "marginal_distance": self.marginal_distance,
            "spearman_difference": self.spearman_difference,
        }


def fidelity(table: Typed, generator: np.random.Generator) -> Fidelity:
    """All of them, on as many synthetic rows as there are training rows, and without identifiers.

    Args:
        table: what to judge; its usable rows are.
        generator: draws rows where there are more, and what sdmetrics is given of large tables.
    """
    columns = _comparable(table)
    some = sorted(generator.permutation(len(columns))[:MOST_COLUMNS])
    rows = equally_many(table, generator)
    quality, shapes, trends, notes = _quality(table, rows, [columns[place] for place in some], generator)
    if len(some) < len(columns):
        notes = (*notes, f"quality is that of {len(some)} of the {len(columns)} columns, drawn at random")
    if table.identifiers:
        named = ", ".join(f'"{name}"' for name in table.identifiers)
        notes = (*notes, f"fidelity leaves out {named}: no two training cells are the same")
    distance = marginal_distance(table, rows)
    if distance is None:
        notes = (*notes, "no marginal distance: no column has values among the holdout and the synthetic rows")
    difference = spearman_difference(table, rows)
    if difference is None:
        notes = (*notes, "no Spearman difference: it takes two columns and two rows")
    return Fidelity(quality, shapes, trends, distance, difference, notes)


def _comparable(table: Typed) -> list[str]:
    return [name for name in table.columns if name not in set(table.identifiers)]


def equally_many(table: Typed, generator: np.random.Generator) -> pd.DataFrame:
    """The usable synthetic rows in a random order, at most as many as there are training rows."""
    rows = table.usable
    return rows.iloc[generator.permutation(len(rows))[: len(table.train)]].reset_index(drop=True)


def marginal_distance(table: Typed, rows: pd.DataFrame) -> float | None:
    """Mean over the columns of the Kolmogorov-Smirnov distance, max |F − G| (numbers), or the total variation
    distance, ½ Σ |p − q| (categories), between holdout and `rows`. Missing cells are left aside; a column without
    others on one side is left out, on both sides too."""
    distances = []
    for name in _comparable(table):
        real, drawn = table.holdout[name].dropna(), rows[name].dropna()
        if not len(real) or not len(drawn):
            # All of one side and none of the other is missing: as far apart as can be.
            if len(real) or len(drawn):
                distances.append(1.0)
        elif name in table.levels:
            distances.append(total_variation(real, drawn))
        else:
            distances.append(kolmogorov_smirnov(real.to_numpy(float), drawn.to_numpy(float)))
    return float(np.mean(distances)) if distances else None


def kolmogorov_smirnov(first: np.ndarray, second: np.ndarray) -> float:
    """max over x of |F(x) − G(x)|, the largest distance between two empirical distribution functions.

    >>> kolmogorov_smirnov(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    0.5
    """
    points = np.union1d(first, second)
    below = [np.searchsorted(np.sort(cells), points, side="right") / len(cells) for cells in (first, second)]
    return float(np.abs(below[0] - below[1]).max())


def total_variation(first: pd.Series, second: pd.Series) -> float:
    """½ Σ |p − q| over the levels that either has.

    >>> total_variation(pd.Series(["a", "a", "b", "b"]), pd.Series(["a", "c"]))
    0.5
    """
    shares = [cells.value_counts(normalize=True) for cells in (first, second)]
    return float(shares[0].sub(shares[1], fill_value=0).abs().sum() / 2)


def spearman_difference(table: Typed, rows: pd.DataFrame) -> float | None:
    """Mean over pairs of columns of |ρ − ρ'|, where ρ is Spearman's of the holdout and ρ' of `rows`, with a column of 0
    and 1 for each level of a category. ρ of a constant is 0. None: fewer than two columns or rows."""
    real, drawn = table.one_hot(table.holdout), table.one_hot(rows)
    if real.shape[1] < 2 or min(len(real), len(drawn)) < 2:
        return None
    pairs = np.triu_indices(real.shape[1], 1)
    return float(np.abs(spearman(real)[pairs] - spearman(drawn)[pairs]).mean())


def spearman(cells: np.ndarray) -> np.ndarray:
    """Spearman's ρ of every two columns, 0 where one is constant."""
    ranks = rankdata(cells, axis=0)
    ranks -= ranks.mean(axis=0)
    lengths = np.sqrt((ranks**2).sum(axis=0))
    scaled = np.divide(ranks, lengths, out=np.zeros_like(ranks), where=lengths > 0)
    return scaled.T @ scaled


def _quality(
    table: Typed, rows: pd.DataFrame, columns: Sequence[str], generator: np.random.Generator
) -> tuple[float | None, float | None, float | None, tuple[str, ...]]:
    """sdmetrics' QualityReport of the training rows and `rows`."""
    real, rows = table.train[list(columns)], rows[list(columns)]
    if len(real) > MOST_ROWS:
        real = real.iloc[generator.permutation(len(real))[:MOST_ROWS]].reset_index(drop=True)
    # Names are places: whatever a column is called, it can't be taken for something else.
    plain = {name: f"column {place}" for place, name in enumerate(columns)}
    sorts = {plain[name]: {"sdtype": "categorical" if name in table.levels else "numerical"} for name in columns}
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        report = extra("sdmetrics.reports.single_table").QualityReport()
        try:
            report.generate(
                real.rename(columns=plain), rows[:MOST_ROWS].rename(columns=plain), {"columns": sorts}, verbose=False
            )
            properties = report.get_properties().set_index("Property")["Score"]
            scores = [report.get_score(), properties.get("Column Shapes"), properties.get("Column Pair Trends")]
        except Exception as error:  # its own, on tables that it has not met
            return None, None, None, (f"no quality: sdmetrics could not judge these tables ({error})",)
    figures = [float(score) if score is not None and isfinite(score) else None for score in scores]
    notes = tuple(
        f"no {what}: sdmetrics found nothing to compare"
        for what, figure in zip(("quality", "column shapes", "column pair trends"), figures, strict=True)
        if figure is None
    )
    return figures[0], figures[1], figures[2], notes
