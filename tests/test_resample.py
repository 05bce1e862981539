"""Rows of a model resampled by discriminators, against their exact distribution on a table whose rows can be listed."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from preflab.errors import NumericError
from preflab.tables.alignment.resample import resample_rows
from preflab.tables.compact import Compact
from preflab.tables.discriminators.level import Codes
from preflab.tables.draw import FEWEST, draw_rows
from row_ratios import Exact
from tables_by_hand import COLUMNS, ROWS, chances, gpt2
from tabular import Array

ENCODING = Compact.of(COLUMNS, np.array(ROWS))
N = 1500


@cache
def reference() -> tuple[Any, Array]:
    model = gpt2(ENCODING, spread=0.7)
    found = chances(model, ENCODING)
    return model, np.array([found[row] for row in ROWS])


def judge(*, shift_nats: float = 0.0) -> Exact:
    """Between the model and a table that is likelier to be green, and less likely to be large and sweet."""
    _, written = reference()
    real = np.array([p * (4 if row[0] == -2 else 1) / (6 if row[1:] == (3, -2) else 1)
                     for p, row in zip(written, ROWS, strict=True)])  # fmt: skip
    return Exact(ENCODING, ROWS, real / real.sum(), written, shift_nats=shift_nats)


def p_value(codes: Codes, expected: Array) -> float:
    seen = Counter(map(tuple, codes.tolist()))
    counts = np.array([seen[row] for row in ROWS], dtype=float)
    assert counts.sum() == len(codes)
    common = expected * len(codes) >= 5
    pooled = [np.append(one[common], one[~common].sum()) for one in (counts, expected * len(codes))]
    return float(chisquare(*pooled).pvalue)


@pytest.mark.parametrize("clip", [0.3, 20.0])
def test_rows_have_the_weighted_distribution(clip: float) -> None:
    model, written = reference()
    exact = judge()
    ratio = np.log(exact.real / exact.written)
    weights = np.exp(np.clip(ratio, -clip, clip))
    expected = written * weights / (written @ weights)
    drawn = resample_rows(model, ENCODING, exact, N, seed=1, clip_nats=clip)
    assert drawn.enough
    assert drawn.repeats == 0
    assert p_value(drawn.codes, expected) > 0.01
    assert p_value(drawn.codes, written) < 1e-6
    # ESS/candidates → (E w)²/E w², and the pool is as large as it has to be: n·max w/E w.
    assert drawn.effective == pytest.approx(
        drawn.candidates * (written @ weights) ** 2 / (written @ weights**2), rel=0.05
    )
    assert drawn.candidates == pytest.approx(N * weights.max() / (written @ weights), rel=0.15)
    if clip > 3:  # nothing is clipped, so the rows are those of the table
        assert expected == pytest.approx(exact.real, abs=1e-12)


def test_a_wrong_class_prior_changes_no_row() -> None:
    model, _ = reference()
    rows = [
        resample_rows(model, ENCODING, judge(shift_nats=by), 100, seed=3, clip_nats=20.0).codes for by in (0.0, -2.0)
    ]
    assert rows[0].tolist() == rows[1].tolist()


def test_seeds_determine_rows() -> None:
    model, _ = reference()
    one, again, other = (resample_rows(model, ENCODING, judge(), 80, seed=seed) for seed in (5, 5, 6))
    small = resample_rows(model, ENCODING, judge(), 80, seed=5, batch_size=7)
    assert one.codes.tolist() == again.codes.tolist() == small.codes.tolist()
    assert one.codes.tolist() != other.codes.tolist()


def test_no_sample_is_taken_twice_and_none_is_a_row_that_was_judged_before() -> None:
    """With a judge that finds all rows alike, the rows are the pool itself: not that of `draw_rows` with this seed."""

    class Unmoved:
        def ratio(self, codes: Codes) -> np.ndarray:
            return np.zeros(len(codes))

    model, _ = reference()
    drawn = resample_rows(model, ENCODING, Unmoved(), 200, seed=4)
    assert (drawn.candidates, drawn.effective, drawn.repeats, drawn.enough) == (200, 200.0, 0, True)
    assert drawn.codes.tolist() != draw_rows(model, ENCODING, 200, seed=4).codes.tolist()
    few = resample_rows(model, ENCODING, Unmoved(), 3, seed=4)
    assert (len(few.codes), few.candidates) == (3, FEWEST)


def test_a_limit_that_is_met_is_said() -> None:
    model, _ = reference()
    drawn = resample_rows(model, ENCODING, judge(), 300, seed=0, clip_nats=20.0, most=1)
    assert drawn.candidates == 300
    assert not drawn.enough
    assert drawn.repeats > 0


def test_no_rows_take_no_candidates() -> None:
    model, _ = reference()
    drawn = resample_rows(model, ENCODING, judge(), 0, seed=0)
    assert (drawn.codes.shape, drawn.candidates) == ((0, 3), 0)


def test_a_ratio_that_is_not_finite_stops() -> None:
    model, _ = reference()
    with pytest.raises(NumericError, match="no finite log density ratio"):
        resample_rows(model, ENCODING, judge(shift_nats=float("inf")), 5, seed=0)
