"""Typed frames: kinds by hand, encodings against scikit-learn's, and tables that can't be judged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.preprocessing import OneHotEncoder, OrdinalEncoder

from judged import judged, text
from preflab.errors import ConfigError, DataError
from preflab.tables.files import read_table
from preflab.tables.judge import extras
from preflab.tables.judge.typed import typed

TRAIN = text(
    whole=["1", "-9", "3.0", ""],
    decimal=["1.5", "2", "1e3", "NA"],
    day=["2024-01-31", "2024-02-29", "1969-12-31", "2024-01-31"],
    word=["b", "a", " a", "?"],
    mixed=["1", "2", "three", "4"],
    empty=["", "", "", ""],
)


def test_kinds_are_those_of_the_training_cells() -> None:
    table = judged(TRAIN, TRAIN, TRAIN)
    assert dict(table.kinds) == {
        "whole": "integer",
        "decimal": "decimal",
        "day": "datetime",
        "word": "category",
        "mixed": "category",
        "empty": "decimal",
    }
    assert dict(table.levels) == {"word": ("a", "b"), "mixed": ("1", "2", "4", "three")}
    assert table.numbers == ("whole", "decimal", "day", "empty")


def test_dates_are_days_since_1970() -> None:
    days = judged(TRAIN, TRAIN, TRAIN).train["day"]
    assert days.tolist() == [(pd.Timestamp(x) - pd.Timestamp("1970-01-01")).days for x in TRAIN["day"]]


def test_holdout_and_synthetic_rows_do_not_change_how_a_column_is_read() -> None:
    other = text(x=["a", "2.5"])
    table = typed(text(x=["1", "2"]), other, other, None)
    assert table.kinds["x"] == "integer"
    assert table.parsed.tolist() == [False, True]
    assert table.usable["x"].tolist() == [2.5]


def test_a_row_parses_if_its_cells_are_of_their_kind_and_none_is_missing_where_none_may_be() -> None:
    train = text(number=["1", "2"], holes=["1", ""], word=["a", "b"], day=["2024-01-01", "2024-01-02"])
    drawn = text(
        number=["7", "x", "", "inf", "3", "3", "3"],
        holes=["", "1", "1", "1", "y", "1", "1"],
        word=["c", "a", "a", "a", "a", "", "a"],
        day=["2030-05-05", *["2024-01-01"] * 5, "2024-13-01"],
    )
    assert judged(train, train, drawn).parsed.tolist() == [True, False, False, False, False, False, False]


def test_codes_and_one_hot_agree_with_scikit_learn() -> None:
    rows = text(x=["1", "2", "3"], town=["b", "c", "a"], colour=["red", "red", "blue"])
    table = judged(rows, rows, rows)
    words = rows[["town", "colour"]].to_numpy(object)
    assert np.array_equal(table.codes(table.train)[:, 1:], OrdinalEncoder().fit_transform(words))
    assert np.array_equal(table.one_hot(table.train)[:, 1:], OneHotEncoder(sparse_output=False).fit_transform(words))
    assert table.codes(table.train)[:, 0].tolist() == table.one_hot(table.train)[:, 0].tolist() == [1.0, 2.0, 3.0]


def test_what_no_training_row_has_is_minus_one_to_trees_and_nothing_to_what_is_linear() -> None:
    train, drawn = text(x=["1", ""], town=["a", "b"]), text(x=["", "2"], town=["c", "b"])
    table = judged(train, train, drawn)
    assert np.array_equal(table.codes(table.usable), [[np.nan, -1], [2, 1]], equal_nan=True)
    assert table.one_hot(table.usable).tolist() == [[0, 0, 0], [2, 0, 1]]


def test_the_order_of_the_synthetic_columns_and_further_ones_do_not_matter() -> None:
    drawn = text(word=["a"], whole=["1"], more=["x"], decimal=["2"], day=["2024-01-01"], mixed=["1"], empty=[""])
    other = drawn[["empty", "mixed", "day", "decimal", "whole", "word"]]
    first, second = (judged(TRAIN, TRAIN, frame).synthetic for frame in (drawn, other))
    pd.testing.assert_frame_equal(first, second)
    assert list(first.columns) == list(TRAIN.columns)


def test_a_column_of_many_levels_is_cut_to_the_commonest() -> None:
    towns = [f"town {n}" for n in range(3000)] + ["town 7"] * 3
    table = judged(text(town=towns), text(town=["town 7"]), text(town=["town 7"]))
    wide = table.one_hot(table.holdout)
    assert wide.shape == (1, 2000)
    assert wide.sum() == 1


def test_names_and_cells_may_hold_anything(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    frame = pd.DataFrame({'größe, "cm"': ["1", "2"], "a is b": ["x\ny", 'say "hi", then'], "[{:}]": ["NA", "3"]})
    frame.to_csv(path, index=False)
    table = judged(read_table(path)[0], frame, frame)
    assert table.columns == tuple(frame.columns)
    assert table.levels["a is b"] == ('say "hi", then', "x\ny")


def test_other_rows_can_be_judged_in_their_place() -> None:
    table = judged(TRAIN, TRAIN, text(**{name: ["x"] for name in TRAIN}))
    assert len(table.usable) == 0
    assert len(table.judging(table.holdout).usable) == 4


@pytest.mark.parametrize(
    ("synthetic", "says"),
    [
        (text(y=["1"]), 'the synthetic table lacks the training table\'s column "x"'),
        (pd.DataFrame({"x": []}, dtype=str), "the synthetic table has no rows"),
        (pd.DataFrame([["1", "2"]], columns=["x", "x"]), 'the synthetic table has the column "x" twice'),
    ],
)
def test_tables_that_cannot_be_judged_are_named(synthetic: pd.DataFrame, says: str) -> None:
    with pytest.raises(DataError, match=says):
        judged(text(x=["1"]), text(x=["1"]), synthetic)


def test_a_target_that_is_no_column_is_named_with_the_nearest() -> None:
    rows = text(Risk=["a"])
    with pytest.raises(ConfigError, match=r'no column "Rsk".*Risk'):
        judged(rows, rows, rows, "Rsk")


def test_identifiers_are_texts_that_never_come_again() -> None:
    names = [f"name {n}" for n in range(20)]
    rows = text(name=names, place=[*names[:19], ""], town=[*names[:19], "name 0"], number=range(20))
    table = judged(rows, rows, rows)
    assert table.identifiers == ("name",)
    assert table.one_hot(table.train).shape == (20, 1 + 19 + 19)
    few = judged(rows[:19], rows, rows)
    assert few.identifiers == ()


def test_a_library_that_is_not_installed_is_named_with_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("imblearn", "imblearn.over_sampling"):  # either may have been imported by another test
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"needs imbalanced-learn .*pip install 'preflab\[tables\]'"):
        extras.extra("imblearn.over_sampling")
    with pytest.raises(ConfigError, match="imbalanced-learn"):
        extras.need_extras()
