"""What the columns of a table are taken for, and that codes bring every cell back."""

from __future__ import annotations

import datetime
import os
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preflab.errors import ConfigError, DataError, StorageError
from preflab.tables.column import Column, Numbers, Times
from preflab.tables.files import from_frame, read_table, to_frame
from preflab.tables.schema import Schema, infer

SHUFFLED = np.random.default_rng(0).permutation


def table(**columns: list[Any]) -> pd.DataFrame:
    return pd.DataFrame({name: [str(cell) for cell in cells] for name, cells in columns.items()}, dtype=object)


def only(cells: list[Any], **settings: Any) -> Column:
    return infer(table(x=cells), **settings).columns[0]


def back(frame: pd.DataFrame, schema: Schema) -> pd.DataFrame:
    return schema.frame(schema.codes(frame), seed=0)


AGES = [18, 25, 31, 44, 44, 60] * 10

KINDS: dict[str, tuple[list[Any], str]] = {
    "integers": ([1, 2, 2, -3], "integer"),
    "0 and 1": ([0, 1, 1], "integer"),
    "integers, some missing": ([1, "", 3, "NA"], "integer"),
    "integers and a word": ([12, "unknown", 13, 14], "integer"),
    "integers beyond 2^53": ([2**53 + 1, 2**53 + 2, 2**53 + 2], "integer"),
    "integers of 64 bits": ([2**63 - 1, 1, 1], "integer"),
    "integers beyond 64 bits": ([10**30, 1, 1], "category"),
    "decimals": (["0.5", "1.5", "0.25"], "decimal"),
    "scientific notation": (["1e-07", "0.5", "1e-07"], "decimal"),
    "leading zeros": (["007", "012", "007"], "category"),
    "a thousand's commas": (["1,000", "2,500", "1,000"], "category"),
    "true and false": (["true", "false", "true"], "boolean"),
    "Yes and No, some missing": (["Yes", "No", ""], "boolean"),
    "words": (["a", "b", "a"], "category"),
    "mostly words": (["a", "b", "a", "3"], "category"),
    "ISO dates": (["2024-02-28", "2024-03-01", "2024-02-28"], "datetime"),
    "ISO moments": (["2024-02-28T10:00Z", "2024-03-01T10:30Z", "2024-02-28T10:00Z"], "datetime"),
    "dates, day first": (["28/02/2024", "01/03/2024", "28/02/2024"], "datetime"),
    "dates, month first": (["2/28/2024", "3/1/2024", "2/28/2024"], "datetime"),
    "dates with dots": (["01.02.2024", "02.03.2024", "01.02.2024"], "datetime"),
    "dates, day or month first": (["01/02/2024", "02/03/2024", "01/02/2024"], "category"),
    "no dates": (["2024-02-30", "2024-03-01", "2024-03-01"], "category"),
    "two marks and nothing else": (["", "NA", ""], "category"),
    "distinct values of a wide range": ([3, 700, 41, 12000, 9], "integer"),
    "1,000 categories": ([f"c{number % 1000}" for number in range(2000)], "category"),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "kind"), KINDS.values(), ids=KINDS.keys())
def test_kinds_are_inferred_and_every_cell_comes_back(cells: list[Any], kind: str) -> None:
    frame = table(x=cells, size=[number % 9 for number in range(len(cells))])
    schema = infer(frame)
    assert schema.columns[0].kind == kind
    pd.testing.assert_frame_equal(back(frame, schema), frame)


def test_missing_marks_are_levels_of_their_own() -> None:
    column = only([1, "", 3, "NA", "", "None", "?", " "])
    assert set(column.levels) == set(column.missing) == {"", "NA", "None", "?", " "}
    assert dict(zip(column.levels, column.counts, strict=True))[""] == 2
    assert only(["a", "b", "NA"]).missing == ("NA",)


def test_words_among_numbers_are_levels() -> None:
    assert only([*AGES, "unknown", "unknown", "none", "none"]).levels == ("none", "unknown")
    assert only([1, 2, "a", "b", "c"]).kind == "category"  # each word but once, and no fewer than numbers


def test_a_scale_is_as_wide_as_the_rows_and_as_fine() -> None:
    assert only([18, 90, 25, 18]).numbers == Numbers(18, 73, (0, 7, 72))
    prices = only(["1.50", "0.25", "10.00"])
    assert prices.numbers == Numbers(25, 976, (0, 125, 975), decimals=2, style="fixed", shown=2)
    assert prices.value(125) == 1.5
    tenths = only(["1.0", "3.0", "2.0"]).numbers
    assert tenths == Numbers(1, 3, (0, 1, 2), style="fixed", shown=1)
    assert only(["1", "2.5", "3"]).numbers == Numbers(10, 21, (0, 15, 20), decimals=1)
    assert only(["1.0", "2.5", "1e-05"]).numbers == Numbers(1, 250_000, (0, 99_999, 249_999), decimals=5, style="float")
    assert only(range(0, 4004, 2), kinds={"x": "integer"}).numbers == Numbers(0, 4003, ())


def test_moments_lie_on_the_coarsest_scale_that_holds_them() -> None:
    days = only(["2024-02-28", "2024-03-01"])
    assert days.numbers == Times(19_781, 3, (0, 2), "day", "YYYY-MM-DD")
    assert days.value(2) == 19_783
    minutes = only(["1970-01-01 00:01:00", "1970-01-01 01:00:00"])
    assert minutes.numbers == Times(1, 60, (0, 59), "minute", "YYYY-MM-DD hh:mm:ss")
    micro = only(["1969-12-31 23:59:59.999999", "1970-01-01 00:00:00.000000"])
    assert micro.numbers == Times(-1, 2, (0, 1), "microsecond", "YYYY-MM-DD hh:mm:ss.ffffff")


def test_numbers_in_several_ways_are_accepted_and_said() -> None:
    frame = table(x=["1.50", "1.5", "2"])
    assert infer(frame).columns[0].kind == "category"  # these may be versions
    assert only([*range(60), "1.50"], codes={"x": ()}).kind == "decimal"
    schema = infer(frame, kinds={"x": "decimal"})
    assert schema.codes(frame).tolist() == [[0], [0], [5]]
    assert schema.notes == ('"x" writes numbers in several ways; samples have them in the shortest',)


def test_endless_decimals_are_rounded_where_rows_stay_apart_and_it_is_said() -> None:
    numbers = np.random.default_rng(0).normal(size=2000)
    frame = table(x=[repr(number) for number in numbers.tolist()])
    schema = infer(frame)
    scale = schema.columns[0].numbers
    assert isinstance(scale, Numbers)
    assert scale.rounded
    assert 4 <= scale.decimals <= 8
    assert f'"x" is rounded to {scale.decimals} decimals' in schema.notes[0]
    again = back(frame, schema)["x"].astype(float).to_numpy()
    assert np.abs(again - numbers).max() <= 0.5000001 * 10.0**-scale.decimals
    assert len(set(again)) >= 0.98 * len(numbers)


def test_decimals_of_an_override_round() -> None:
    frame = table(x=["1.234", "5.678"])
    assert back(frame, infer(frame, kinds={"x": "decimal:1"}))["x"].tolist() == ["1.2", "5.7"]


CODES: dict[str, tuple[list[Any], list[str]]] = {
    "three below 0": ([*AGES, *[-9] * 6, *[-8] * 5, *[-7] * 20], ["-9", "-8", "-7"]),
    "-1, frequent": ([*range(0, 900, 7), *[-1] * 80], ["-1"]),
    "-9 below sparse numbers": ([*range(0, 900_000, 7000), *[-9] * 80], ["-9"]),
    "-999 below numbers of both signs": ([*range(-20, 40), *[-999] * 6], ["-999"]),
    "99 above grades": ([1, 2, 3, 4, 5] * 10 + [99] * 5, ["99"]),
    "999 and 998": ([*AGES, *[999] * 9, *[998] * 6], ["998", "999"]),
    "decimals": (["0.5", "0.25", "0.75", *["-9.0"] * 9], ["-9.0"]),
    "0": ([0] * 500 + list(range(100, 160)), []),
    "real negative numbers": (list(range(-30, 30)) * 6, []),
    "few real negative numbers": ([*range(-3, 60), *[-1] * 4], []),
    "temperatures in fives": (list(range(-5, 40, 5)) * 10, []),
    "-1, 0, 1": ([-1, 0, 1] * 20, []),
    "once": ([*AGES, -9], []),
    "99 among percentages": (list(range(101)) * 6, []),
    "999 among thousands": (list(range(0, 3000, 3)) * 6, []),
    "losses": ([-90, -80, *AGES] * 10, []),
    "two values": ([-9, 5] * 20, []),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "codes"), CODES.values(), ids=CODES.keys())
def test_special_codes_are_found_and_nothing_else_is(cells: list[Any], codes: list[str]) -> None:
    assert list(only(cells).levels) == codes
    assert only(cells, codes={"x": ()}).levels == ()


def test_a_code_of_another_column_needs_no_frequency() -> None:
    rows = 60
    frame = table(a=[*AGES[:-10], *[-9] * 10], b=[*AGES[:-1], -9], c=[*range(-9, rows - 9)])
    schema = infer(frame, kinds={"c": "integer"})
    assert [column.levels for column in schema.columns] == [("-9",), ("-9",), ()]


def test_codes_are_declared() -> None:
    column = only([*AGES, 0, -9], codes={"x": ["0", "-9", "-4"]})
    assert column.levels == ("-9", "-4", "0")
    assert column.counts == (1, 0, 1)
    assert infer(table(x=[*AGES]), codes={"x": ["-4"]}).notes == ('"x" has the code "-4" in no row',)


def test_a_number_is_the_level_that_equals_it_unless_a_point_is_written_so() -> None:
    shown = Numbers(-100, 201, (), decimals=1, style="fixed", shown=1)
    column = Column("x", "decimal", levels=("-9", "77"), numbers=shown)
    assert [column.code(text) for text in ("-9", "-9.00", "77", "7.7e1", "-9.0")] == [-1, -1, -2, -2, 10]
    assert column.code("77.0", nearest=True) == -2
    assert column.code("76.0", nearest=True) == 200
    assert all(column.code(column.text(code)) == code for code in range(-2, 201))


def test_heloc() -> None:
    folder = os.environ.get("PREFLAB_DATA")
    if not folder:
        pytest.skip("needs real data: set PREFLAB_DATA to the folder with heloc.csv")
    frame, _ = read_table(Path(folder) / "heloc.csv")
    rng = np.random.default_rng(0)
    for rows in (np.arange(len(frame)), rng.permutation(len(frame))[:6000], rng.permutation(len(frame))[:500]):
        part = frame.iloc[rows]
        schema = infer(part, target="RiskPerformance")
        assert schema.columns[0].kind == "category"
        for column in schema.columns[1:]:
            assert column.kind == "integer"
            assert (
                set(column.levels) == {cell for cell in part[column.name] if cell.startswith("-")} <= {"-9", "-8", "-7"}
            )
        pd.testing.assert_frame_equal(back(part, schema), part.reset_index(drop=True))


IDENTIFIERS: dict[str, tuple[list[Any], list[str]]] = {
    "row numbers": (list(range(30)), ["30", "31"]),
    "row numbers, a share drawn": (SHUFFLED(100)[:80].tolist(), ["100", "101"]),
    "loan numbers": ([10_000 + 7 * number for number in range(400)], ["12794", "12795"]),
    "a prefix": ([f"C-{number:04}" for number in range(1, 41)], ["C-0041", "C-0042"]),
    "beyond 64 bits": ([10**30 + number for number in range(30)], [str(10**30 + 30), str(10**30 + 31)]),
    "the end of 64 bits": ([2**63 - 1 - number for number in range(30)], ["0", "1"]),
    "leading zeros": ([f"{number:03}" for number in range(30)], ["030", "031"]),
}  # fmt: skip


@pytest.mark.parametrize(("cells", "fresh"), IDENTIFIERS.values(), ids=IDENTIFIERS.keys())
def test_identifiers_go_on_after_the_last(cells: list[Any], fresh: list[str]) -> None:
    frame = table(x=cells, y=[number % 7 for number in range(len(cells))])
    schema = infer(frame)
    [column] = [column for column in schema.columns if not column.written]
    assert (column.name, column.kind) == ("x", "identifier")
    assert schema.notes[0].startswith('"x" is another in every row: an identifier')
    sample = back(frame, schema)
    assert sample["x"].tolist()[:2] == fresh
    assert not set(sample["x"]) & set(frame["x"])
    assert len(set(sample["x"])) == len(sample)
    assert sample["y"].tolist() == frame["y"].tolist()


def test_fresh_uuids_have_their_shape() -> None:
    rng = np.random.default_rng(0)
    ids = [str(uuid.UUID(bytes=rng.bytes(16), version=4)) for _ in range(50)]
    frame = table(x=ids, y=[number % 7 for number in range(50)])
    schema = infer(frame)
    sample, other = schema.frame(schema.codes(frame), seed=0), schema.frame(schema.codes(frame), seed=1)
    assert not set(sample["x"]) & (set(ids) | set(other["x"]))
    assert all(str(uuid.UUID(cell)) == cell and uuid.UUID(cell).version == 4 for cell in sample["x"])
    pd.testing.assert_frame_equal(sample, schema.frame(schema.codes(frame), seed=0))


def test_a_name_tells_an_identifier() -> None:
    cells = [3, 700, 41, 12000, 9]
    assert infer(table(customer_id=cells, y=cells)).columns[0].kind == "identifier"
    assert infer(table(customerId=cells, y=cells)).columns[0].kind == "identifier"
    assert infer(table(humid=cells, y=cells)).columns[0].kind == "integer"
    assert infer(table(id=cells, y=cells), target="id").columns[0].kind == "integer"
    assert infer(table(id=cells, y=cells), kinds={"id": "integer"}).columns[0].kind == "integer"


def test_any_text_can_be_declared_an_identifier() -> None:
    frame = table(note=["b", "note-7", "b"], y=[1, 2, 3])
    schema = infer(frame, kinds={"note": "identifier"})
    assert back(frame, schema)["note"].tolist() == ["note-8", "note-9", "note-10"]
    assert "by your word" in schema.notes[0]


def test_constants_are_filled_in() -> None:
    frame = table(a=["5", "5"], b=["", ""], c=["1", "2"])
    schema = infer(frame)
    assert [column.kind for column in schema.columns] == ["constant", "constant", "integer"]
    assert schema.columns[1].missing == ("",)
    assert [column.name for column in schema.written] == ["c"]
    pd.testing.assert_frame_equal(back(frame, schema), frame)


REFUSED: dict[str, tuple[pd.DataFrame, dict[str, Any], str]] = {
    "one row": (table(x=["1"]), {}, "1 row: a table needs two at least"),
    "nothing varies": (table(x=["1", "1"]), {}, 'no column is left to learn: "x" is a constant'),
    "too many categories": (
        table(x=[f"a{number % 1001}b" for number in range(3003)]),
        {},
        '"x" is a category with 1,001 different values in 3,003 rows, .* --columns x=identifier .* or leave',
    ),
    "free text": (
        table(x=[f"the {number}th of many long remarks, {'x' * (number % 9)}" for number in range(30)]),
        {},
        '"x" is free text with 30 different values in 30 rows',
    ),
    "too wide": (table(x=[f"{10**30 * number}" for number in range(1, 1100)] * 2), {}, '"x" spans 34 digits'),
    "decimals too wide": (table(x=["1e300", "1e-300", "1.5"] * 400 + [f"{n}.5" for n in range(1100)]), {}, '"x" spans'),
    "a constant target": (table(x=["1", "1"], y=["1", "2"]), {"target": "x"}, 'the target "x" is a constant'),
    "no integer": (table(x=["1", "2", "z"]), {"kinds": {"x": "integer"}}, 'row 2: "x" is no integer: "z"'),
    "a decimal": (table(x=["1", "2.5"]), {"kinds": {"x": "integer"}}, 'row 1: "x" is no integer: "2.5"'),
    "no decimal": (table(x=["1", "z"]), {"kinds": {"x": "decimal"}}, 'row 1: "x" is no decimal: "z"'),
    "no boolean": (table(x=["a", "b", "c"]), {"kinds": {"x": "boolean"}}, 'row 2: "x" is no boolean: "c"'),
    "no constant": (table(x=["a", "b"]), {"kinds": {"x": "constant"}}, 'row 1: "x" is no constant: "b"'),
    "no datetime": (table(x=["2024-01-01", "z"]), {"kinds": {"x": "datetime"}}, 'row 1: "x" is no datetime: "z"'),
    "either datetime": (table(x=["01/02/2024", "02/03/2024"]), {"kinds": {"x": "datetime"}}, "days or months first"),
    "no identifier": (table(x=["1.5", "2.5"]), {"kinds": {"x": "identifier"}}, '"x" is no identifier: "1.5" is a dec'),
}


@pytest.mark.parametrize(("frame", "settings", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_can_not_be_used_is_refused_by_name(frame: pd.DataFrame, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        infer(frame, **settings)
    assert len(str(raised.value).splitlines()) == 1


def test_all_columns_that_can_not_be_used_are_named() -> None:
    cells = [f"a{number}b" * 15 for number in range(30)]
    with pytest.raises(DataError, match=r'"a" is free text.*\n"b" is free text'):
        infer(table(a=cells, b=cells, c=range(30)))


MISSPELT: dict[str, tuple[dict[str, Any], str]] = {
    "target": ({"target": "colour"}, 'target: there is no column "colour"; did you mean "color"'),
    "columns": ({"kinds": {"colour": "category"}}, 'columns: there is no column "colour"; did you mean "color"'),
    "codes": ({"codes": {"colour": ["-9"]}}, 'codes: there is no column "colour"; did you mean "color"'),
    "kind": ({"kinds": {"color": "catagory"}}, '"color" can\'t be "catagory"; did you mean "category"'),
}


@pytest.mark.parametrize(("settings", "message"), MISSPELT.values(), ids=MISSPELT.keys())
def test_misspelt_names_get_the_nearest_right_one(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        infer(table(color=["a", "b"], y=["1", "2"]), **settings)


def test_the_line_of_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('x,y\n1,"a\nb"\n2,c\nz,d\n')
    frame, _ = read_table(tmp_path / "t.csv")
    with pytest.raises(DataError, match='line 5: "x" is no integer: "z"'):
        infer(frame, kinds={"x": "integer"})


def test_other_tables_than_the_training_rows() -> None:
    schema = infer(table(age=[18, 25, 90, -9] * 9, sex=["f", "m"] * 18, price=["1.5", "2.5"] * 18, one=[1] * 36))
    written = ["age", "sex", "price"]
    assert schema.codes(table(sex=["m"], price=["1.5"], age=["-9"])).tolist() == [
        [-1, -2, 0]
    ]  # in any order, no constant
    assert schema.codes(table(age=["18.0"], sex=["f"], price=["2.50"], one=["7"])).tolist() == [[0, -1, 10]]
    for cells, message in {
        ("17", "f", "1.5"): 'row 0: 17 is beyond 18 … 90 in "age"',
        ("18.5", "f", "1.5"): 'row 0: 18.5 is no whole number in "age"',
        ("x", "f", "1.5"): 'row 0: "x" is no number in "age"',
        ("18", "d", "1.5"): 'row 0: "d" is none of the 2 values of "sex"',
        ("18", "f", "1.55"): 'row 0: 1.55 has more decimals than any training row in "price"',
        ("", "f", "1.5"): 'row 0: "" is no number in "age"',
    }.items():
        with pytest.raises(DataError, match=message):
            schema.codes(table(**{name: [cell] for name, cell in zip(written, cells, strict=True)}))
    rows = table(age=[17, 91, "18.6"], sex=["f", "f", "f"], price=["0", "9", "1.56"])
    assert schema.codes(rows, nearest=True).tolist() == [[0, -1, 0], [72, -1, 10], [1, -1, 1]]
    with pytest.raises(DataError, match="none of the 2 values"):
        schema.codes(table(age=[18], sex=["d"], price=["1.5"]), nearest=True)
    assert schema.codes(table(age=["?"], sex=[""], price=["1.5"]), blank=-99).tolist() == [[-99, -99, 0]]
    with pytest.raises(DataError, match='no column "agee" in this table; did you mean "age"'):
        schema.codes(table(agee=[18], sex=["f"], price=["1.5"]))
    with pytest.raises(DataError, match='the column "sex" is missing'):
        schema.codes(table(age=[18], price=["1.5"]))


def test_schemas_are_stored_and_read_strictly(tmp_path: Path) -> None:
    ids = [f"{number:08x}" for number in np.random.default_rng(0).integers(0, 2**32, 40).tolist()]
    days = [f"2024-01-{number % 28 + 1:02}" for number in range(40)]
    prices = [f"{number % 5}.50" for number in range(40)]
    frame = table(
        **{"größe": range(40), "key": ids, "d": days, "x is y": prices, "z": ["a,\n", '"'] * 20, "q": [2**60, 1] * 20}
    )
    schema = infer(frame, target="z")
    schema.save(tmp_path / "schema.json")
    assert Schema.load(tmp_path / "schema.json") == schema
    text = (tmp_path / "schema.json").read_text(encoding="utf-8")
    for was, now in [
        ('"target": "z"', '"target": "w"'),
        ('"rows": 40', '"rows": "40"'),
        ('"rows"', '"more": 1, "rows"'),
        ("}", ""),
    ]:
        assert was in text
        (tmp_path / "other.json").write_text(text.replace(was, now, 1), encoding="utf-8")
        with pytest.raises(StorageError, match="is damaged"):
            Schema.load(tmp_path / "other.json")
    with pytest.raises(StorageError, match="is missing"):
        Schema.load(tmp_path / "none.json")


def test_columns_are_described() -> None:
    frame = table(age=[*AGES, *[-9] * 15, *[""] * 5], sex=["f", "m"] * 40, one=[1] * 80, key=range(80))
    rows = [tuple(vars(row).values()) for row in infer(frame).describe()]
    assert rows == [
        ("age", "integer", "18 … 60", "-9", "6.2 %"),
        ("sex", "category", "f, m", "", "0.0 %"),
        ("one", "constant", "1", "", "0.0 %"),
        ("key", "identifier", "fresh ones, such as 80", "", "0.0 %"),
    ]


def test_values_of_one_row_alone_are_counted() -> None:
    schema = infer(table(x=["a", "b c", *[f"{chr(97 + n % 26)}{'xyz'[n % 3] * (n % 5 + 1)}-{n}z" for n in range(40)]]))
    assert "of its 42 values in one row alone" in schema.notes[0]


def test_two_hundred_columns() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame({f"c{n} is {n}": rng.integers(-50, 50, 300).astype(str) for n in range(200)}, dtype=object)
    schema = infer(frame)
    assert len(schema.written) == 200
    pd.testing.assert_frame_equal(back(frame, schema), frame)


MOMENTS = st.datetimes(datetime.datetime(1900, 1, 1), datetime.datetime(2100, 1, 1))
SERIES = {
    "int64": st.lists(st.integers(-(2**62), 2**62), min_size=2, max_size=6),
    "Int64": st.lists(st.none() | st.integers(-(2**62), 2**62), min_size=2, max_size=6),
    "uint8": st.lists(st.integers(0, 255), min_size=2, max_size=6),
    "float64": st.lists(
        st.none() | st.integers(-(10**8), 10**8).map(lambda number: number / 1000), min_size=2, max_size=6
    ),
    "float32": st.lists(st.integers(-1000, 1000).map(lambda number: number / 8), min_size=2, max_size=6),
    "boolean": st.lists(st.none() | st.booleans(), min_size=2, max_size=6),
    "bool": st.lists(st.booleans(), min_size=2, max_size=6),
    "category": st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=3), min_size=2, max_size=6),
    "object": st.lists(st.none() | st.text(st.characters(codec="utf-8"), max_size=3), min_size=2, max_size=6),
    "string": st.lists(st.none() | st.sampled_from(["", "NA", "1", "1.0", "01", "x"]), min_size=2, max_size=6),
    "datetime64[ns]": st.lists(st.none() | MOMENTS, min_size=2, max_size=6),
    "datetime64[us, Europe/Berlin]": st.lists(
        st.none() | MOMENTS.map(lambda t: pd.Timestamp(t, tz="UTC")), min_size=2, max_size=6
    ),
}


@pytest.mark.parametrize("dtype", SERIES)
def test_frames_come_back_from_codes(dtype: str) -> None:
    @settings(max_examples=30)
    @given(SERIES[dtype])
    def comes_back(cells: list[Any]) -> None:
        # A second column, so that something is left to write where the first is constant.
        frame = pd.DataFrame({"x": pd.Series(cells, dtype=dtype), "y": range(5, 5 + len(cells))})
        text, source = from_frame(frame)
        schema = infer(text)
        sample = back(text, schema)
        pd.testing.assert_frame_equal(sample, text)
        pd.testing.assert_frame_equal(to_frame(sample, source), frame)

    comes_back()


def test_a_code_that_a_category_does_not_hold_is_refused() -> None:
    with pytest.raises(DataError, match=r'"class" is a category without the cell "-9": codes stand among numbers'):
        infer(pd.DataFrame({"class": ["a", "b", "a", "b"]}), codes={"class": ["-9"]})


def test_long_decimals_that_come_again_keep_all_their_digits() -> None:
    """Rounded, each would be another number than in the table, which any classifier sees."""
    draw = np.random.default_rng(0)
    two = ["0.05068011873981862", "-0.044641636506989144"] * 30
    frame = pd.DataFrame({"sex": two, "x": [str(number) for number in draw.random(60)]})
    schema = infer(frame)
    assert schema.frame(schema.codes(frame, nearest=True), seed=0).sex.tolist() == two
    assert not schema.column("sex").numbers.rounded  # type: ignore[union-attr]
    assert schema.column("x").numbers.rounded  # type: ignore[union-attr]
