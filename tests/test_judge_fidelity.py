"""Fidelity: distances by hand, against scipy's and pandas' own, and on tables at the edge."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp, spearmanr

from judged import judged, rule, text
from preflab.tables.judge import fidelity as module
from preflab.tables.judge.fidelity import (
    Fidelity,
    equally_many,
    fidelity,
    kolmogorov_smirnov,
    marginal_distance,
    spearman,
    spearman_difference,
    total_variation,
)
from preflab.tables.judge.typed import Typed


def judge(table: Typed, seed: int = 0) -> Fidelity:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return fidelity(table, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(5))
def test_the_distance_of_numbers_is_scipys(seed: int) -> None:
    draw = np.random.default_rng(seed)
    one, two = draw.integers(0, 9, 50).astype(float), draw.integers(2, 12, 31).astype(float)
    assert kolmogorov_smirnov(one, two) == pytest.approx(ks_2samp(one, two).statistic)


def test_the_distance_of_categories_by_hand() -> None:
    assert total_variation(pd.Series(["a"] * 3 + ["b"]), pd.Series(["a", "b", "b", "c"])) == pytest.approx(0.5)
    assert total_variation(pd.Series(["a"]), pd.Series(["b"])) == 1


def test_the_marginal_distance_is_the_mean_over_columns() -> None:
    real = text(x=["1", "2", "3", "4"], word=["a", "a", "b", "b"])
    table = judged(real, real, text(x=["3", "4", "5", "6"], word=["a", "a", "a", "b"]))
    assert marginal_distance(table, table.usable) == pytest.approx((0.5 + 0.25) / 2)


def test_a_column_that_is_missing_throughout_on_one_side_is_as_far_as_can_be() -> None:
    table = judged(text(x=["1", ""]), text(x=["1", "2"]), text(x=["", ""]))
    assert marginal_distance(table, table.usable) == 1


def test_ranks_correlate_as_scipy_has_it() -> None:
    cells = np.random.default_rng(0).integers(0, 5, (40, 4)).astype(float)
    assert spearman(cells) == pytest.approx(spearmanr(cells).statistic)


def test_the_spearman_difference_by_hand() -> None:
    real = text(x=["1", "2", "3"], y=["1", "2", "3"])
    table = judged(real, real, text(x=["1", "2", "3"], y=["3", "2", "1"]))
    assert spearman_difference(table, table.usable) == pytest.approx(2)


def test_real_rows_as_synthetic_ones_are_perfect() -> None:
    real = rule(200, seed=0)
    found = judge(judged(real, real, real))
    assert found.notes == ()
    assert found.quality == found.column_shapes == found.column_pair_trends == pytest.approx(1)
    assert (found.marginal_distance, found.spearman_difference) == pytest.approx((0, 0))


def test_shuffled_columns_keep_their_shapes_and_lose_their_trends() -> None:
    real = rule(400, seed=0)
    shuffled = real.apply(lambda column: column.sample(frac=1, random_state=1 + len(column.name)).to_numpy())
    found = judge(judged(real, real, shuffled))
    assert found.column_shapes == pytest.approx(1)
    assert found.column_pair_trends is not None
    assert found.column_pair_trends < 0.9
    assert found.quality == pytest.approx((found.column_pair_trends + 1) / 2)


def test_the_order_of_rows_and_columns_does_not_matter() -> None:
    train, holdout, drawn = (rule(120, seed=seed) for seed in range(3))
    first = judge(judged(train, holdout, drawn))
    second = judge(judged(train, holdout[::-1], drawn[::-1][["size", "answer", "town", "x"]]), seed=5)
    assert tuple(first.figures().values()) == pytest.approx(tuple(second.figures().values()))


def test_at_most_as_many_rows_as_the_training_table_has_are_judged() -> None:
    table = judged(rule(10, 0), rule(10, 1), rule(30, 2))
    rows = equally_many(table, np.random.default_rng(0))
    assert len(rows) == 10
    assert len(rows.merge(table.usable)) == 10


def test_tables_at_the_edge_are_judged_without_a_sound(capsys: pytest.CaptureFixture[str]) -> None:
    constant = text(x=["1"] * 6, word=["a"] * 6, empty=[""] * 6)
    found = judge(judged(constant, constant, constant))
    assert found.marginal_distance == 0
    assert found.spearman_difference == 0
    assert all((value is None) <= bool(found.notes) for value in found.figures().values())
    one = text(**{'größe, "cm" {[:]}': ["1", "2", "3"]})
    found = judge(judged(one, one, one))
    assert found.column_shapes == 1
    assert found.column_pair_trends is None
    assert found.spearman_difference is None
    assert any("column pair trends" in note for note in found.notes)
    assert any("Spearman" in note for note in found.notes)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""


def test_columns_may_be_called_by_numbers_and_missing_everywhere_else() -> None:
    real = text(**{"0": ["1", "", "3", "4"], "column 0": ["a", "b", "", "b"]})
    found = judge(judged(real, real, real))
    assert found.marginal_distance == 0
    assert found.column_shapes == 1


def test_of_two_hundred_columns_sdmetrics_gets_some(monkeypatch: pytest.MonkeyPatch) -> None:
    # Fewer than usual, as each pair takes milliseconds.
    monkeypatch.setattr(module, "MOST_COLUMNS", 12)
    draw = np.random.default_rng(0)
    shared = draw.normal(0, 1, (60, 1))
    cells = (shared + draw.normal(0, 0.1, (60, 200))).round(3).astype(str)
    real = pd.DataFrame(cells, columns=[f"c{n}" for n in range(200)])
    found = judge(judged(real, real, real[::-1]))
    assert found.notes == ("quality is that of 12 of the 200 columns, drawn at random",)
    assert found.quality == pytest.approx(1)
    assert (found.marginal_distance, found.spearman_difference) == pytest.approx((0, 0))


def test_identifiers_are_left_out() -> None:
    real = rule(40, 0)
    found = judge(judged(real.assign(id=[f"a{n}" for n in range(40)]), real.assign(id="b"), real.assign(id="c")))
    same = judge(judged(real, real, real))
    assert found.notes == ('fidelity leaves out "id": no two training cells are the same',)
    assert tuple(found.figures().values()) == pytest.approx(tuple(same.figures().values()))
