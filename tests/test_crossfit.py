"""Held-out logits, their calibration, and what they are worth."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score

from preflab.errors import DataError
from preflab.tables.discriminators.crossfit import (
    Calibration,
    Said,
    auc_interval,
    cross_fit,
    log_loss,
    platt,
    regress,
    without,
)
from preflab.tables.discriminators.level import Evidence
from told_apart import Table, memorised


def said(real: np.ndarray, written: np.ndarray, weights: np.ndarray | None = None) -> Said:
    weights = np.ones(len(written)) if weights is None else weights
    return Said(real, written, weights, np.arange(len(real)) % 2, np.arange(len(written)) % 2)


def unlike_rows(rows: int, *, seed: int = 0, folds: int = 4, **unseen: np.ndarray) -> Evidence:
    """No row twice, and no telling which are real."""
    order = np.random.default_rng(seed).permutation(2 * rows)[:, None]
    fold = np.arange(rows) % folds
    return Evidence(order[:rows], fold, order[rows:], fold, **unseen)


def test_auc_is_sklearns_and_ties_count_half() -> None:
    rng = np.random.default_rng(0)
    real, written = rng.integers(0, 9, 60) + 1.0, rng.integers(0, 9, 90) * 1.0
    auc, low, high = auc_interval(said(real, written))
    assert auc == pytest.approx(roc_auc_score(np.repeat([1, 0], [60, 90]), np.concatenate([real, written])))
    assert low < auc < high


def test_the_interval_is_delongs_over_all_pairs() -> None:
    rng = np.random.default_rng(1)
    real, written = rng.normal(0.5, 1, 40), rng.normal(0, 1, 30)
    wins = (real[:, None] > written) + 0.5 * (real[:, None] == written)
    variance = wins.mean(1).var(ddof=1) / 40 + wins.mean(0).var(ddof=1) / 30
    auc, low, high = auc_interval(said(real, written))
    assert (high - low) / 2 == pytest.approx(1.959964 * np.sqrt(variance))
    assert (high + low) / 2 == pytest.approx(auc) == pytest.approx(wins.mean())


def test_the_interval_holds_the_truth_about_95_times_in_100() -> None:
    rng = np.random.default_rng(2)
    covered = 0
    for _ in range(400):  # normals √2·0.4769 apart: AUC = Φ(0.4769)
        _, low, high = auc_interval(said(rng.normal(0.4769 * np.sqrt(2), 1, 80), rng.normal(0, 1, 120)))
        covered += low <= 0.68330 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_a_written_row_of_weight_two_is_two_rows() -> None:
    rng = np.random.default_rng(3)
    real, written, weights = rng.normal(1, 1, 900), rng.normal(0, 1, 800), rng.integers(1, 4, 800)
    weighted, repeated = said(real, written, weights.astype(float)), said(real, np.repeat(written, weights))
    assert auc_interval(weighted)[0] == pytest.approx(auc_interval(repeated)[0])
    assert log_loss(weighted) == pytest.approx(log_loss(repeated))
    judge = [one.of(lambda logits: logits[:, None]) for one in (weighted, repeated)]
    # Platt's targets know of the effective number of rows, which repeating raises.
    assert regress(judge[0])[0][0] == pytest.approx(regress(judge[1])[0][0], rel=0.01)


def test_log_loss_counts_both_classes_alike() -> None:
    real, written = np.array([1.0, -2.0]), np.array([0.5, 3.0, -1.0, -4.0])
    expected = sklearn_log_loss(
        [1, 1, 0, 0, 0, 0], 1 / (1 + np.exp(-np.concatenate([real, written]))), sample_weight=[2, 2, 1, 1, 1, 1]
    )
    assert log_loss(said(real, written)) == pytest.approx(expected)


def test_calibration_finds_the_density_ratio_whatever_the_classes_shares() -> None:
    rng = np.random.default_rng(4)
    for many_real, many_written in ((4_000, 40_000), (40_000, 4_000)):
        # N(½, 1) against N(−½, 1): the log density ratio at x is x. The raw logit is 3·x + 1.
        raw = said(3 * rng.normal(0.5, 1, many_real) + 1, 3 * rng.normal(-0.5, 1, many_written) + 1)
        found = platt(raw)
        assert found.slope == pytest.approx(1 / 3, abs=0.015)
        assert found.offset == pytest.approx(-1 / 3, abs=0.05)
        assert log_loss(raw.of(found)) < log_loss(raw)


def test_regression_is_sklearns_with_balanced_classes() -> None:
    rng = np.random.default_rng(5)
    real, written = rng.normal([0.4, 0.1, 0.0], 1, (3_000, 3)), rng.normal(0, 1, (9_000, 3))
    weights, offset = regress(said(real, written))
    other = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-8)
    other.fit(np.concatenate([real, written]), np.repeat([1, 0], [3_000, 9_000]))
    np.testing.assert_allclose(weights, other.coef_[0], atol=2e-3)
    assert offset == pytest.approx(float(other.intercept_[0]), abs=2e-3)


def test_no_weight_is_below_nought_where_none_may_be() -> None:
    rng = np.random.default_rng(6)
    real, written = rng.normal([0.5, -0.5], 1, (500, 2)), rng.normal(0, 1, (500, 2))
    weights, _ = regress(said(real, written), non_negative=True)
    assert weights[0] > 0.3
    assert weights[1] == 0
    alone, _ = regress(said(real[:, :1], written[:, :1]))
    assert weights[0] == pytest.approx(alone[0], abs=1e-4)


def test_classes_that_lie_apart_have_a_finite_slope() -> None:
    found = platt(said(np.array([2.0, 3.0, 4.0]), np.array([-2.0, -3.0, -4.0])))
    assert 0 < found.slope < 10


def test_a_discriminator_that_is_backwards_says_nothing_and_is_not_turned_round() -> None:
    rng = np.random.default_rng(7)
    raw = said(rng.normal(-1, 1, 200), rng.normal(0, 1, 200))
    found = platt(raw)
    assert found.slope < -0.5
    assert found.silent
    calibrated = raw.of(found)
    assert not calibrated.real.any()
    assert not calibrated.written.any()
    assert log_loss(calibrated) == pytest.approx(np.log(2))


def test_one_that_says_the_same_of_all_rows_says_nothing() -> None:
    assert platt(said(np.full(5, 3.0), np.full(9, 3.0))) == Calibration(0.0, 0.0)


def test_members_never_see_their_fold() -> None:
    evidence, seen = unlike_rows(40), []

    def fit(part: Evidence, seed: int) -> Table:
        seen.append((set(part.real.ravel().tolist()), set(part.written.ravel().tolist())))
        return memorised(part)

    cross_fit("row", "row", fit, evidence, seed=0)
    for fold, (real, written) in enumerate(seen):
        assert real == set(evidence.real[evidence.real_fold != fold].ravel().tolist())
        assert written == set(evidence.written[evidence.written_fold != fold].ravel().tolist())


def test_what_is_known_by_heart_counts_for_nothing_held_out() -> None:
    evidence = unlike_rows(200)
    memory = memorised(evidence)
    in_sample = said(memory.logits(evidence.real)[:, 0], memory.logits(evidence.written)[:, 0])
    assert auc_interval(in_sample)[0] == 1.0
    found = cross_fit("row", "row", memorised, evidence, seed=0)
    assert found.held.auc == pytest.approx(0.5)
    assert found.calibration.silent
    assert found.held.log_loss == pytest.approx(np.log(2))


def test_calibration_is_on_unseen_rows_where_there_are_some() -> None:
    """A model knew its training rows by heart: the held-out folds mislead, other real rows do not."""
    rng = np.random.default_rng(8)
    unseen_real, unseen_written = rng.integers(5, 10, (300, 1)), rng.integers(0, 6, (300, 1))
    evidence = unlike_rows(40, unseen_real=unseen_real, unseen_written=unseen_written)

    def fit(part: Evidence, seed: int) -> Table:
        return Table("row", "row", {(number,): 3.0 * number for number in range(10)}, else_logit=-100.0)

    found = cross_fit("row", "row", fit, evidence, seed=0)
    assert found.said.real.shape == (300,)
    expected = platt(said(3.0 * unseen_real[:, 0], 3.0 * unseen_written[:, 0]))
    assert found.calibration == expected
    assert found.held.auc == pytest.approx(
        roc_auc_score(np.repeat([1, 0], 300), np.concatenate([unseen_real, unseen_written]))
    )


def test_weights_stay_with_their_rows() -> None:
    evidence = Evidence(
        np.arange(4)[:, None], np.arange(4) % 2, np.arange(6)[:, None], np.arange(6) % 2, np.arange(6) + 1.0
    )
    part = without(evidence, 0)
    assert part.written.ravel().tolist() == [1, 3, 5]
    assert part.weights.tolist() == [2.0, 4.0, 6.0]


def test_folds_without_rows_of_a_class_are_refused() -> None:
    rows = np.arange(4)[:, None]
    empty = Evidence(rows, np.array([0, 1, 2, 2]), rows, np.array([0, 1, 1, 1]))
    with pytest.raises(DataError, match=r"4 written rows do not fill the folds \(\[1, 3, 0\]\); ask for fewer folds"):
        cross_fit("row", "row", memorised, empty, seed=0)
    single = Evidence(rows, np.zeros(4, int), rows, np.zeros(4, int))
    with pytest.raises(DataError, match="4 real rows do not fill"):
        cross_fit("row", "row", memorised, single, seed=0)
    with pytest.raises(DataError, match="of one class only"):
        cross_fit("row", "row", memorised, unlike_rows(8, unseen_real=rows), seed=0)
    with pytest.raises(DataError, match="2 unseen rows are fewer than the 4 folds"):
        cross_fit("row", "row", memorised, unlike_rows(8, unseen_real=rows[:2], unseen_written=rows), seed=0)
