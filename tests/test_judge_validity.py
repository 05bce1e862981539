"""Rules that are mined, domains and unseen cells, on tables whose rules are known."""

from __future__ import annotations

import numpy as np
import pandas as pd

from preflab.tables.judge.typed import Typed, typed
from preflab.tables.judge.validity import Implication, Order, in_domain, mine, unseen_cell_share, violated


def loans(rows: int, seed: int = 0) -> pd.DataFrame:
    """`paid` ≤ `owed`, −8 in both or neither; `noise` stands alone; `opened` ≤ `closed`."""
    rng = np.random.default_rng(seed)
    owed = rng.integers(10, 500, rows)
    paid = (owed * rng.random(rows)).astype(int)
    none = rng.random(rows) < 0.2
    opened = pd.Timestamp("2020-01-01") + pd.to_timedelta(rng.integers(0, 900, rows), unit="D")
    closed = opened + pd.to_timedelta(rng.integers(1, 400, rows), unit="D")
    return pd.DataFrame(
        {
            "paid": np.where(none, -8, paid).astype(str),
            "owed": np.where(none, -8, owed).astype(str),
            "noise": rng.integers(0, 500, rows).astype(str),
            "opened": opened.strftime("%Y-%m-%d"),
            "closed": closed.strftime("%Y-%m-%d"),
        }
    )


def table(train: pd.DataFrame, drawn: pd.DataFrame) -> Typed:
    return typed(train, train, drawn, None)


def test_the_rules_of_a_table_are_found_and_no_others() -> None:
    rules = mine(table(loans(2000), loans(10)))
    assert set(rules) == {
        Order("paid", "owed"),
        Order("opened", "closed"),
        Implication("paid", -8.0, "owed", -8.0),
        Implication("owed", -8.0, "paid", -8.0),
    }
    assert [str(rule) for rule in rules] == [
        "paid ≤ owed",
        "opened ≤ closed",
        "paid = −8 → owed = −8",
        "owed = −8 → paid = −8",
    ]


def test_an_order_that_columns_keep_by_chance_or_by_being_equal_is_no_rule() -> None:
    rng = np.random.default_rng(1)
    low, high = rng.integers(0, 10, 1000), rng.integers(100, 200, 1000)
    train = pd.DataFrame({"low": low.astype(str), "high": high.astype(str), "copy": high.astype(str)})
    assert mine(table(train, train)) == ()


def test_a_rule_that_more_than_1_in_200_rows_break_is_none() -> None:
    train = loans(2000)
    train.loc[:10, ["paid", "owed"]] = ["9", "1"]
    assert Order("paid", "owed") not in mine(table(train, train))


def test_violations_are_counted_by_row_and_rule() -> None:
    drawn = pd.DataFrame({"a": [1.0, 3.0, -8.0, np.nan], "b": [2.0, 2.0, 5.0, 0.0]})
    broken = violated(drawn, [Order("a", "b"), Implication("a", -8.0, "b", -8.0)])
    assert broken.tolist() == [[False, False], [True, False], [False, True], [False, False]]
    assert violated(drawn, []).shape == (4, 0)


def test_a_row_is_in_domain_where_each_cell_is() -> None:
    train = pd.DataFrame(
        {
            "wide": [str(number) for number in range(0, 60, 2)],
            "few": ["1", "4"] * 15,
            "rate": [f"{number / 7:.3f}" for number in range(30)],
            "town": ["Ulm", "Bonn", ""] * 10,
        }
    )
    drawn = pd.DataFrame(
        [
            ("7", "4", "0.5", "Ulm"),  # between two values of a wide column: fine
            ("60", "4", "0.5", "Ulm"),  # beyond the greatest
            ("7.5", "4", "0.5", "Ulm"),  # not whole
            ("7", "2", "0.5", "Ulm"),  # between two values of a column with few
            ("7", "4", "0.5", "Rom"),  # no level
            ("7", "4", "0.5", ""),  # missing, as in training rows
            ("x", "4", "0.5", "Ulm"),  # no number
            ("", "4", "0.5", "Ulm"),  # missing, as in no training row
        ],
        columns=list(train),
    )
    found = table(train, drawn)
    assert in_domain(found).tolist() == [True, False, False, False, False, True, False, False]
    assert found.parsed.tolist() == [True] * 6 + [False] * 2


def test_cells_that_no_training_row_has_are_counted() -> None:
    train = pd.DataFrame({"x": ["1", "2"], "town": ["Ulm", "Bonn"]})
    drawn = pd.DataFrame({"x": ["1", "3", "2", "2"], "town": ["Rom", "Ulm", "Ulm", ""]})
    assert unseen_cell_share(table(train, drawn)) == (1 / 4 + 1 / 4) / 2
