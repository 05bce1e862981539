"""Rows as points: distances worked out by hand, and blocks that change nothing."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from preflab.tables.judge import points
from preflab.tables.judge.points import Points, distances, identity, nearest, ranged, standardised
from preflab.tables.judge.typed import typed

# The middle 95 % of 0 … 40 is 1 … 39, so a width of 38; the deviation is √143.5.
TRAIN = pd.DataFrame({"age": [str(age) for age in range(41)], "town": ["Ulm", *["Bonn"] * 40]})
DRAWN = pd.DataFrame({"age": ["38", "0", "19"], "town": ["Bonn", "Ulm", "Rom"]})
TABLE = typed(TRAIN, TRAIN, DRAWN, None)


def test_manhattan_distances_are_in_widths_of_the_middle_95_per_cent_plus_1_a_differing_category() -> None:
    first = ranged(TABLE, TABLE.synthetic)
    assert distances(first, first, "manhattan") == pytest.approx(np.array([[0, 2, 1.5], [2, 0, 1.5], [1.5, 1.5, 0]]))


def test_euclidean_distances_are_in_standard_deviations() -> None:
    rng = np.random.default_rng(0)
    rows = standardised(TABLE, TABLE.synthetic, rng)
    apart = distances(rows, rows, "euclidean")
    assert apart[0, 1] == pytest.approx(np.sqrt(38**2 / 143.5 + 1), abs=1e-4)
    assert apart[0, 2] == pytest.approx(np.sqrt(19**2 / 143.5 + 1), abs=1e-4)


def test_equal_rows_are_told_apart_among_neighbours_even_where_all_columns_are_categories() -> None:
    towns = pd.DataFrame({"town": ["Ulm"] * 3})
    table = typed(towns, towns, towns, None)
    rows = standardised(table, table.train, np.random.default_rng(0))
    apart = distances(rows, rows, "euclidean")[np.triu_indices(3, 1)]
    assert (apart > 0).all()
    assert (apart < 1e-4).all()


def test_one_outlier_counts_for_ten_deviations_at_most() -> None:
    wild = pd.DataFrame({"age": ["1000000", "20"], "town": ["Bonn", "Bonn"]})
    rows = standardised(TABLE, typed(TRAIN, TRAIN, wild, None).synthetic, np.random.default_rng(0))
    assert distances(rows, rows, "euclidean")[0, 1] == pytest.approx(10, abs=1e-4)


def test_a_missing_number_lies_at_the_mean_and_a_missing_category_is_a_level() -> None:
    train = pd.DataFrame({"age": ["", "10", "20"], "town": ["", "Ulm", "Ulm"]})
    table = typed(train, train, train, None)
    rows = ranged(table, table.train)
    # The width of 10 … 20 is 9.5; 15 is 5 from either.
    assert distances(rows, rows, "manhattan")[0] == pytest.approx(np.array([0, 5 / 9.5 + 1, 5 / 9.5 + 1]))


def test_constant_and_empty_columns_keep_rows_together() -> None:
    train = pd.DataFrame({"one": ["5", "5"], "none": ["", ""], "x": ["0", "1"]})
    table = typed(train, train, train, None)
    rows = ranged(table, table.train)
    assert distances(rows, rows, "manhattan") == pytest.approx(np.array([[0, 1], [1, 0]]) / 0.95)


def test_blocks_change_no_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    first, second = (Points(rng.normal(size=(n, 2)), rng.integers(0, 2, (n, 1)).astype(float)) for n in (23, 7))
    whole = nearest(first, second)
    monkeypatch.setattr(points, "BLOCK_CELLS", 10)
    assert np.array_equal(nearest(first, second), whole)
    naive = [
        min(abs(a - b).sum() + (c != d).sum() for b, d in zip(second.numbers, second.levels, strict=True))
        for a, c in zip(first.numbers, first.levels, strict=True)
    ]
    assert whole == pytest.approx(naive)


def test_rows_are_the_same_by_what_their_cells_mean_and_not_by_how_they_are_written() -> None:
    train = pd.DataFrame({"x": ["1", "2.5", "-0"], "town": ["a", "b", ""]})
    drawn = pd.DataFrame({"town": [" a", "b", "NA", "b"], "x": ["1.0", "2.50", "0", "1"]})
    table = typed(train, train, drawn, None)
    real, made = identity(table, table.train), identity(table, table.synthetic)
    assert (made[:3] == real).all()
    assert made[3] not in real
