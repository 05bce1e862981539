"""A table in, rows out: types, conditions, seeds, missing cells, and what is saved."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from preflab.config.row_model import RowModel
from preflab.errors import ConfigError, DataError, StorageError
from preflab.runs import write_json
from preflab.tables.files import from_frame, read_table
from preflab.tables.synthesizer import Synthesizer, parted

TINY = RowModel(
    layers=2, width=32, heads=2, epochs=40, batch=16, dropout=0.0, patience=15, learning_rate=3e-3, averaging=0.98
)


@cache
def people() -> pd.DataFrame:
    """Of whom the old smoke, and some did not say how much they earn; −9 means refused."""
    draw = np.random.default_rng(0)
    age = draw.integers(20, 60, 400)
    earns = pd.Series(draw.integers(10, 30, 400) * 100.0)
    earns[draw.random(400) < 0.2] = np.nan
    rings = draw.integers(0, 6, 400)
    rings[draw.random(400) < 0.1] = -9
    return pd.DataFrame(
        {
            "id": [f"P{number:04}" for number in range(400)],
            "age": age,
            "smokes": age >= 40,
            "earns": earns,
            "rings": rings,
            "country": "here",
            "since": pd.Timestamp(2024, 1, 1) + pd.to_timedelta(draw.integers(0, 90, 400), unit="D"),
        }
    )


@cache
def fitted(any_order: bool = False) -> Synthesizer:
    return Synthesizer(settings=TINY, any_order=any_order).fit(people(), target="smokes", codes={"rings": [-9]})


def test_rows_have_the_types_columns_and_values_of_the_table() -> None:
    rows = fitted().sample(60, seed=1)
    assert rows.dtypes.astype(str).tolist() == people().dtypes.astype(str).tolist()
    assert list(rows.columns) == list(people().columns)
    assert len(rows) == 60
    assert rows.age.isin(people().age).all()
    assert set(rows.rings) <= {-9, *range(6)}
    assert set(rows.country) == {"here"}
    assert rows.earns.dropna().mod(100).eq(0).all()
    assert rows.id.is_unique
    assert not rows.id.isin(people().id).any()


def test_what_the_table_shows_is_learned() -> None:
    """In the table a smoker is 40 or older, always; were it nothing but marginals, half of all rows would not fit."""
    rows = fitted().sample(300, seed=0)
    assert ((rows.age >= 40) == rows.smokes).mean() > 0.9
    assert abs(rows.earns.isna().mean() - 0.2) < 0.1


def test_seeds_determine_rows() -> None:
    one = fitted().sample(20, seed=3)
    pd.testing.assert_frame_equal(one, fitted().sample(20, seed=3, batch_size=7))
    pd.testing.assert_frame_equal(one, fitted().sample(30, seed=3).iloc[:20])
    assert not one.equals(fitted().sample(20, seed=4))


@pytest.mark.parametrize(
    ("where", "holds"),
    [
        ({"smokes": True}, lambda rows: rows.smokes),
        ({"age": ">=50"}, lambda rows: rows.age >= 50),
        ({"earns": None, "rings": [-9, 3]}, lambda rows: rows.earns.isna() & rows.rings.isin([-9, 3])),
        ({"rings": ">=0"}, lambda rows: rows.rings >= 0),
        ({"since": (pd.Timestamp(2024, 2, 1), None)}, lambda rows: rows.since >= "2024-02-01"),
        (["age<30", "earns!="], lambda rows: (rows.age < 30) & rows.earns.notna()),
        ("country=here", lambda rows: rows.country == "here"),
    ],
)
@pytest.mark.parametrize("any_order", [False, True])
def test_every_row_meets_every_condition(where: Any, holds: Any, any_order: bool) -> None:
    rows = fitted(any_order).sample(25, where, seed=2)
    assert len(rows) == 25
    assert holds(rows).all()


def test_a_condition_on_a_later_column_reaches_back_to_earlier_ones() -> None:
    """`smokes` comes first in a row; a narrowed mask alone would draw it as if the age were unknown."""
    rows = fitted().sample(100, where={"age": ">=45"}, seed=0)
    assert rows.smokes.mean() > 0.9


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ({"Age": 30}, r'there is no column "Age"; did you mean "age"\?'),
        ({"age": 99}, r'"age" goes from 20 to 59; the nearest value is 59'),
        ({"id": "P0001"}, r'"id" is an identifier'),
        ({"country": "there"}, r'"country" is always "here"'),
        ({"smokes": ">=1"}, r'"smokes" is a boolean, which has no order'),
        ({"earns": 1050}, r'"earns" goes from|no training row meets "earns=1050"; the nearest value is'),
    ],
)
def test_conditions_that_cannot_hold_are_refused(where: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        fitted().sample(1, where=where)


def holes() -> pd.DataFrame:
    clear = people()[(people().age - 40).abs() > 10]  # young or old enough for a tiny model to be sure
    table = clear.iloc[:40].reset_index(drop=True)
    table.loc[5, "age"] = 17  # younger than anyone
    table["smokes"] = table["smokes"].astype(object)
    table.loc[range(20), "smokes"] = None
    return table


@pytest.mark.parametrize("any_order", [False, True])
def test_missing_cells_are_filled_in_and_no_other_one_changes(any_order: bool) -> None:
    table = holes()
    filled = fitted(any_order).impute(table, seed=1)
    known = table.notna()
    assert filled.notna().all().all()
    for name in table.columns:
        assert (filled[name][known[name]] == table[name][known[name]]).all(), name
    assert filled.loc[5, "age"] == 17
    assert (filled.smokes[:20].astype(bool) == (table.age[:20] >= 40)).mean() > 0.7
    assert filled.earns.dtype == table.earns.dtype
    weighed = fitted(any_order).impute(table, seed=1, candidates=1)
    assert weighed[known].equals(table[known])
    assert weighed.notna().all().all()
    pd.testing.assert_frame_equal(filled, fitted(any_order).impute(table, seed=1))


def test_cells_that_are_chosen_are_drawn_anew() -> None:
    table = people().iloc[:30]
    cells = pd.DataFrame(False, index=table.index, columns=table.columns)
    cells["smokes"] = True
    filled = fitted().impute(table, cells=cells)
    assert (filled.smokes == table.smokes).mean() > 0.8
    assert filled.drop(columns="smokes").equals(table.drop(columns="smokes"))


def test_a_known_cell_that_no_training_row_holds_keeps_its_text() -> None:
    table = pd.DataFrame({"colour": ["red", "blue"] * 20, "size": ["small", "large"] * 20})
    made = Synthesizer(settings=TINY).fit(table)
    filled = made.impute(pd.DataFrame({"colour": ["green", "red"], "size": [None, None]}))
    assert filled.colour.tolist() == ["green", "red"]
    assert filled["size"].tolist()[1] == "small"
    assert filled["size"].tolist()[0] in ("small", "large")


def test_columns_without_any_value_get_those_of_the_table(tmp_path: Path) -> None:
    table = people().iloc[:10].drop(columns="since")
    empty = table.assign(smokes=np.nan, rings=None, country=np.nan)
    table.to_csv(tmp_path / "t.csv", index=False)
    tiny = RowModel(layers=1, width=8, heads=1, epochs=1)
    for made in (Synthesizer(settings=tiny).fit(table), Synthesizer(settings=tiny).fit(tmp_path / "t.csv")):
        filled = made.impute(empty)
        assert filled.dtypes.astype(str).tolist() == table.dtypes.astype(str).tolist()
        assert filled.notna().all().drop("earns").all()
        assert set(filled.country) == {"here"}


def test_a_special_code_is_one_however_its_number_is_written(tmp_path: Path) -> None:
    """In the file it is "-9"; in a data frame, where the others are no integers, −9.0."""
    rows = [f"{number % 2},{-9 if number % 10 == 0 else number % 7 + 0.5}" for number in range(100)]
    path = tmp_path / "t.csv"
    path.write_text("\n".join(["class,x", *rows, ""]))
    made = Synthesizer(settings=RowModel(layers=1, width=8, heads=1, epochs=1)).fit(path, codes={"x": [-9]})
    frame = from_frame(pd.read_csv(path), like=made.fitted.source)[0]
    assert frame.x[0] == "-9.0"
    codes, _, _ = made.fitted.context(frame, None)
    assert (codes == made.fitted.schema.codes(read_table(path)[0])).all()


def test_settings_out_of_range_are_refused() -> None:
    for rows in (-1, 2.5):
        with pytest.raises(ConfigError, match="give a whole number of rows, 0 or more"):
            fitted().sample(rows)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"candidates = 0"):
        fitted().impute(holes(), candidates=0)
    for share in (-0.1, 1.0):
        with pytest.raises(ConfigError, match=r"holdout = .*: give a share of the rows"):
            Synthesizer().fit(people(), holdout=share)
    with pytest.raises(ConfigError, match="minutes = 0"):
        Synthesizer(minutes=0)


def test_tables_with_other_columns_are_not_filled_in() -> None:
    with pytest.raises(DataError, match='the column "age" is missing'):
        fitted().impute(people().drop(columns="age"))
    with pytest.raises(DataError, match='no column "aeg" in this table; did you mean "age"'):
        fitted().impute(people().rename(columns={"age": "aeg"}))


def test_what_is_saved_is_what_is_loaded(tmp_path: Path) -> None:
    fitted().save(tmp_path / "table")
    loaded = Synthesizer.load(tmp_path / "table")
    pd.testing.assert_frame_equal(loaded.sample(10, seed=5), fitted().sample(10, seed=5))
    with pytest.raises(StorageError, match="is not empty; choose another folder"):
        fitted().save(tmp_path / "table")
    with pytest.raises(ConfigError, match='holds no policy "dpo"; there is: reference'):
        loaded.sample(1, policy="dpo")
    loaded.fitted.model("reference").save_pretrained(tmp_path / "table" / "aligned" / "dpo" / "model")
    with pytest.raises(ConfigError, match="the alignment dpo is not finished"):
        loaded.sample(1, policy="dpo")
    write_json(tmp_path / "table" / "aligned" / "dpo" / "align.json", {"finished_at": 0.0})
    pd.testing.assert_frame_equal(loaded.sample(3, policy="dpo"), loaded.sample(3, policy="reference"))


def test_what_is_no_fitted_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no fitted table"):
        Synthesizer.load(tmp_path)
    with pytest.raises(ConfigError, match="has learned no table; call fit"):
        Synthesizer().sample(1)
    with pytest.raises(ConfigError, match="a pretrained model writes text"):
        Synthesizer(model="gpt2")


def test_rows_are_held_out_by_chance_and_only_if_asked_for() -> None:
    assert fitted().holdout is None
    made = Synthesizer(settings=RowModel(layers=1, width=8, heads=1, epochs=1)).fit(people(), holdout=0.25)
    assert made.holdout is not None
    assert len(made.holdout) == 100
    assert made.fitted.schema.rows == 300
    assert made.holdout.id.isin(people().id).all()


@pytest.mark.parametrize(("rows", "holdout", "held"), [(100, 0.2, 20), (3, 0.2, 1), (2, 0.5, 0), (10, 0.0, 0)])
def test_both_sides_hold_every_row_once(rows: int, holdout: float, held: int) -> None:
    learned, out = parted(rows, holdout, seed=0)
    assert len(out) == held
    assert sorted([*learned, *out]) == list(range(rows))
    assert list(learned) == sorted(learned)


def test_the_split_is_not_by_position() -> None:
    held = parted(1000, 0.2, seed=0)[1]
    assert 350 < held.mean() < 650
    assert not np.array_equal(held, parted(1000, 0.2, seed=1)[1])


def test_columns_that_come_first_are_checked() -> None:
    for first, message in ((["aeg"], "did you mean"), (["age", "age"], "stands twice"), (["id"], "does not write")):
        with pytest.raises(ConfigError, match=message):
            Synthesizer(settings=TINY, first=first).fit(people())


@pytest.mark.parametrize(
    "table",
    [
        pd.DataFrame({"only": [1, 2, 3, 2]}),
        pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}),
        pd.DataFrame({'größe, "x"': [1.5, 2.25, 1.5, 3.0], "what is it": ["a\nb", "=1+1", "", "c,d"]}),
        pd.DataFrame({"n": [2**60, 2**60 + 1, 2**60 + 5] * 4, "none": [None] * 12}),
    ],
)
def test_odd_tables_come_back_legal(table: pd.DataFrame) -> None:
    made = Synthesizer(settings=RowModel(layers=1, width=8, heads=1, epochs=1)).fit(table)
    rows = made.sample(8, seed=0)
    assert rows.dtypes.astype(str).tolist() == table.dtypes.astype(str).tolist()
    for name in table.columns:
        assert rows[name].dropna().isin(table[name]).all()


def test_rows_can_be_sentences(tmp_path: Path) -> None:
    table = pd.DataFrame({"n": [1, 2, 3, None] * 10, "says": ["no, thanks", "a is b", "yes", "no"] * 10})
    made = Synthesizer(settings=RowModel(layers=1, width=8, heads=1, epochs=1), encoding="text").fit(table)
    made.save(tmp_path / "table")
    rows = Synthesizer.load(tmp_path / "table").sample(5, where={"says": ["yes", "a is b"]}, seed=0)
    assert rows.says.isin(["yes", "a is b"]).all()
    pd.testing.assert_frame_equal(rows, made.sample(5, where={"says": ["yes", "a is b"]}, seed=0))
    filled = made.impute(table.iloc[:4])
    assert filled["n"].notna().all()
    assert filled.says.equals(table.says[:4])
