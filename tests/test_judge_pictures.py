"""What the report draws: shares that sum to one, bars by hand, associations against scipy's."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
from scipy.stats import rankdata, spearmanr
from scipy.stats.contingency import association as contingency

from judged import judged, rule, text
from preflab.tables.judge.pictures import (
    Marginal,
    associations,
    bins,
    marginals,
    sampled_rows,
)


def drawn(
    train: pd.DataFrame, holdout: pd.DataFrame, synthetic: pd.DataFrame, **special: tuple[float, ...]
) -> Marginal:
    [picture] = marginals(judged(train, holdout, synthetic), special)
    assert sum(picture.real) == pytest.approx(1)
    assert sum(picture.synthetic) == pytest.approx(1)
    assert len(picture.real) == len(picture.synthetic) == len(picture.labels) + max(0, len(picture.edges) - 1) <= 40
    json.dumps(picture.picture(), allow_nan=False)
    return picture


def test_special_codes_and_missing_cells_are_bars_of_their_own_and_the_rest_is_binned() -> None:
    picture = drawn(
        text(x=["-9", "0", "1", "2", ""]), text(x=["-9", "0", "0", "2"]), text(x=["-9", "-9", "1", ""]), x=(-9.0, -8.0)
    )
    assert picture == Marginal(
        "x", ("-9", "(missing)"), (-0.5, 0.5, 1.5, 2.5), (0.25, 0, 0.5, 0, 0.25), (0.5, 0.25, 0, 0.25, 0)
    )


def test_what_lies_beyond_the_real_rows_counts_in_the_last_bin() -> None:
    picture = drawn(text(x=["0", "1"]), text(x=["0", "1"]), text(x=["-50", "99"]))
    assert picture.edges == (-0.5, 0.5, 1.5)
    assert picture.synthetic == (0.5, 0.5)


def test_the_commonest_levels_come_first_and_the_rarest_share_a_bar() -> None:
    towns = ["Ulm"] * 3 + ["Bonn"] * 2 + [f"town {n}" for n in range(60)]
    picture = drawn(text(town=towns), text(town=towns), text(town=["Ulm", "Rom", "", "Bonn"]))
    assert picture.labels[:2] == ("Ulm", "Bonn")
    assert picture.labels[-1] == "(others)"
    assert picture.synthetic[:2] == (1 / 3, 1 / 3)
    assert picture.synthetic[-1] == 1 / 3


def test_dates_lie_on_a_scale_of_days() -> None:
    days = [f"1970-01-{day:02}" for day in range(2, 12)]
    picture = drawn(text(day=[*days, ""]), text(day=days), text(day=["1970-01-02", ""]))
    assert picture.labels == ("(missing)",)
    assert picture.edges == tuple(np.arange(0.5, 11))
    assert picture.synthetic == (0.5, 0.5, *[0] * 9)


def test_columns_without_values_and_constants_are_drawn() -> None:
    nothing = text(x=["", ""])
    assert drawn(nothing, nothing, nothing) == Marginal("x", ("(missing)",), (), (1,), (1,))
    constant = text(x=["1.5", "1.5", "1.5"])
    assert drawn(constant, constant, constant).edges == (1, 2)
    codes = text(x=["-9", "-9"])
    assert drawn(codes, codes, codes, x=(-9.0,)).labels == ("-9",)
    nothing_real = text(x=["", "1"])
    assert drawn(nothing_real, nothing, text(x=["1"])).labels == ("(missing)",)


def test_bins_of_whole_numbers_hold_equally_many() -> None:
    edges = bins(np.array([3.0, 100.0]))
    assert len(edges) <= 31
    assert set(np.diff(edges)[:-1]) == {4.0}
    assert (edges[0], edges[-1]) == (2.5, 100.5)
    assert len(bins(np.array([2.0**60, 2.0**60 + 2**40]))) == 31


def test_associations_are_scipys() -> None:
    rows = rule(90, 0, noise=0.1)
    rows.loc[:4, "size"] = ""
    table = judged(rows, rows, rule(50, 1))
    found = associations(table, np.random.default_rng(0))
    names = list(rows.columns)
    real = pd.DataFrame(found["real"], index=names, columns=names)
    assert found["columns"] == names
    assert np.array_equal(real, real.T)
    assert np.allclose(np.diag(real), 1)
    there = table.holdout.dropna()
    assert real.loc["x", "size"] == pytest.approx(spearmanr(there["x"], there["size"]).statistic)
    counts = pd.crosstab(table.holdout["answer"], table.holdout["town"]).to_numpy()
    assert real.loc["answer", "town"] == pytest.approx(contingency(counts, method="cramer"))
    # η² of two levels is r² of an indicator and the ranks.
    ranks = rankdata(table.holdout["x"])
    assert real.loc["answer", "x"] == pytest.approx(abs(np.corrcoef(table.holdout["answer"] == "yes", ranks)[0, 1]))
    json.dumps(found, allow_nan=False)


def test_the_association_with_a_constant_is_null() -> None:
    rows = text(x=["1", "2", "3"], same=["a", "a", "a"], empty=["", "", ""])
    found = associations(judged(rows, rows, rows), np.random.default_rng(0))
    assert found["real"] == [[1, None, None], [None] * 3, [None] * 3]


def test_of_many_columns_the_first_forty_and_the_target_are_associated() -> None:
    cells = np.random.default_rng(0).integers(0, 9, (20, 60)).astype(str)
    rows = pd.DataFrame(cells, columns=[f"c{n}" for n in range(60)])
    found = associations(judged(rows, rows, rows, "c50"), np.random.default_rng(0))
    assert found["columns"] == [*(f"c{n}" for n in range(39)), "c50"]


def test_ten_rows_are_drawn_as_they_are_written() -> None:
    rows = pd.DataFrame({"größe, cm": [f"0{n}.50" for n in range(30)], "word": [None, "a\nb", "="] * 10})
    found = sampled_rows(rows, np.random.default_rng(0))
    assert found["columns"] == ["größe, cm", "word"]
    cells = found["cells"]
    assert isinstance(cells, list)
    assert len(cells) == 10
    assert all([*row] in rows.fillna("").to_numpy().tolist() for row in cells)
    assert cells == sorted(cells, key=lambda row: float(row[0]))
    few = sampled_rows(rows[:2], np.random.default_rng(0))["cells"]
    assert few == [["00.50", ""], ["01.50", "a\nb"]]
