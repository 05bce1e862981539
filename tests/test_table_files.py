"""CSV, Parquet and data frames → text → the same again."""

from __future__ import annotations

import datetime
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflab.errors import ConfigError, DataError, StorageError
from preflab.tables.files import Source, format_of, from_frame, read_table, to_frame, write_table


def csv(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def cells(frame: pd.DataFrame) -> list[list[str]]:
    return [list(frame.columns), *frame.to_numpy().tolist()]


def text_frame(*rows: list[str]) -> pd.DataFrame:
    return pd.DataFrame([list(row) for row in rows[1:]], columns=rows[0], dtype=object)


READ = {
    "plain": ("a,b\n1,x\n2,y\n", [["a", "b"], ["1", "x"], ["2", "y"]], [2, 3]),
    "no line feed at the end": ("a,b\n1,x", [["a", "b"], ["1", "x"]], [2]),
    "byte order mark, CRLF": ("\ufeffa,b\r\n1,x\r\n", [["a", "b"], ["1", "x"]], [2]),
    "semicolons": ("a;b\n1,5;x\n", [["a", "b"], ["1,5", "x"]], [2]),
    "tabs": ("a\tb\n1\tx,y\n", [["a", "b"], ["1", "x,y"]], [2]),
    "two delimiters in the header": (
        "a;b,c;d\n1;2,3;4\n5;6;7\n",
        [["a", "b,c", "d"], ["1", "2,3", "4"], ["5", "6", "7"]],
        [2, 3],
    ),
    "quoted line breaks": ('a,b\n"1\n2",x\n3,"y\r\nz"\n', [["a", "b"], ["1\n2", "x"], ["3", "y\r\nz"]], [2, 4]),
    "blank lines": ("a,b\n\n1,x\n\n2,y\n", [["a", "b"], ["1", "x"], ["2", "y"]], [3, 5]),
    "blanks after delimiters": ('a, b\n1, "x, y"\n2, z\n', [["a", "b"], ["1", "x, y"], ["2", "z"]], [2, 3]),
    "unicode and odd names": ('größe,"x is y","q""u"\n1,2,3\n', [["größe", "x is y", 'q"u'], ["1", "2", "3"]], [2]),
    "one column, an empty cell": ('a\n""\nx\n', [["a"], [""], ["x"]], [2, 3]),
    "no name": (",b\n1,x\n", [["", "b"], ["1", "x"]], [2]),
}


@pytest.mark.parametrize(("text", "expected", "lines"), READ.values(), ids=READ.keys())
def test_csv_is_read_as_it_is_written(tmp_path: Path, text: str, expected: list[list[str]], lines: list[int]) -> None:
    frame, source = read_table(csv(tmp_path / "t.csv", text))
    assert cells(frame) == expected
    assert (frame.index.name, list(frame.index)) == ("line", lines)
    write_table(frame, source, tmp_path / "again.csv")
    again, source_again = read_table(tmp_path / "again.csv")
    assert cells(again) == expected
    assert source_again.delimiter == source.delimiter


def test_form_is_kept(tmp_path: Path) -> None:
    for number, raw in enumerate([b"\xef\xbb\xbfa;b\r\n1;2\r\n", b"a\tb\n1\t2\n", b"a, b\n1, 2\n"]):
        frame, source = read_table(csv(tmp_path / f"{number}.csv", raw))
        write_table(frame, source, tmp_path / "again.csv")
        assert (tmp_path / "again.csv").read_bytes() == raw


REFUSED = {
    "twice": ("a,b,a\n1,2,3\n", r":1: the column \"a\" stands twice"),
    "empty": ("", r"the file is empty"),
    "blank": ("\n\n", r"the file is empty"),
    "header only": ("a,b\n", r"0 rows; give a row"),
    "too few": ("a,b\n1,2\n3\n", r":3: 1 cell under 2 columns; quote a cell that holds a comma"),
    "too many, after a line break": ('a;b\n"1\n";2\n3;4;5\n', r":4: 3 cells under 2 columns; .* a semicolon"),
    "a comma in the only column": ("a\nx, y\n", r":2: 2 cells under 1 column; quote"),
    "open quote": ('a,b\n1,2\n3,"x\n', r":3: no CSV: unexpected end of data"),
    "text after a quote": ('a,b\n1,"x"y\n', r":2: no CSV: "),
    "not UTF-8": (b"a,b\n1,2\n3,\xff\n", r":3: byte 0xff is not UTF-8"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
}


@pytest.mark.parametrize(("text", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_other_files_are_refused_by_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as raised:
        read_table(csv(tmp_path / "t.csv", text))
    assert str(raised.value).startswith(str(tmp_path / "t.csv"))
    assert len(str(raised.value).splitlines()) == 1


def test_paths_that_hold_no_table_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r'tables end in \.csv, \.tsv or \.parquet, not in "\.xlsx"'):
        read_table(tmp_path / "t.xlsx")
    with pytest.raises(DataError, match="isn't there"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataError, match="is a folder"):
        read_table(tmp_path / "folder.csv")
    frame, source = from_frame(pd.DataFrame({"a": [1, 2]}))
    with pytest.raises(DataError, match="not in"):
        write_table(frame, source, tmp_path / "t.json")
    with pytest.raises(StorageError, match="can't write"):
        write_table(frame, source, tmp_path / "folder.csv")


WORDS = st.text(st.characters(codec="utf-8"), max_size=6)


@st.composite
def text_tables(draw: st.DrawFn) -> pd.DataFrame:
    names = draw(st.lists(WORDS, min_size=1, max_size=3, unique=True))
    rows = draw(st.lists(st.tuples(*[WORDS] * len(names)), min_size=1, max_size=4))
    return text_frame(names, *map(list, rows))


@given(text_tables(), st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.booleans(), st.booleans())
def test_any_text_comes_back_from_csv(
    tmp_path_factory: pytest.TempPathFactory, frame: pd.DataFrame, delimiter: str, end: Any, mark: bool, spaced: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.csv"
    write_table(frame, Source("csv", delimiter, end, mark, spaced), path)
    again, _ = read_table(path)
    assert cells(again) == cells(frame)


def test_formulas_are_made_harmless_on_request_only(tmp_path: Path) -> None:
    frame = text_frame(
        ["=name", "b"],
        ["=1+1", "-5"], ["@x", "+5"], ["-x", "-1.5e3"], ["\tx", "-Infinity"], ["\u200b=1", "5"], ["\rx", "="],
        ["plain", "a=1"],
    )  # fmt: skip
    source = Source("csv")
    assert write_table(frame, source, tmp_path / "raw.csv") == 0
    assert cells(read_table(tmp_path / "raw.csv")[0]) == cells(frame)
    assert write_table(frame, source, tmp_path / "safe.csv", spreadsheet_safe=True) == 9
    safe = cells(read_table(tmp_path / "safe.csv")[0])
    assert safe[0] == ["'=name", "b"]
    assert [row[0] for row in safe[1:]] == ["'=1+1", "'@x", "'-x", "'\tx", "'\u200b=1", "'\rx", "plain"]
    assert [row[1] for row in safe[1:]] == ["-5", "+5", "-1.5e3", "'-Infinity", "5", "'=", "a=1"]


NA = pd.NA
FRAMES: dict[str, dict[str, Any]] = {
    "integers": {
        "a": pd.array([1, -2], "int64"),
        "b": pd.array([1, 255], "uint8"),
        "c": pd.array([2**63 - 1, 2**53 + 1]),
    },
    "nullable": {
        "a": pd.array([1, None], "Int64"),
        "b": pd.array([True, None], "boolean"),
        "c": pd.array([2**62 + 1, None], "Int64"),
    },
    "nullable floats": {"a": pd.array([0.1, None], "Float64"), "b": pd.array([0.1, None], "Float32")},
    "floats": {"a": [0.1, np.nan], "b": [1.0, np.nan], "c": [1e-300, 1.7976931348623157e308], "d": [np.inf, 0.5]},
    "narrow floats": {"a": np.array([0.1, np.nan], "float32"), "b": np.array([0.1, 6e4], "float16")},
    "booleans": {"a": [True, False], "b": pd.Series([True, None], dtype=object)},
    "text": {"a": ["x", None], "b": ["", "y"], "c": pd.array(["x", None], "string"), "d": [" ", "1"]},
    "missing kinds": {"a": pd.Series([None, np.nan, NA, pd.NaT, "", "x"], dtype=object)},
    "all missing": {
        "a": pd.Series([None, None], dtype=object),
        "b": [np.nan, np.nan],
        "c": pd.array([None, None], "Int64"),
    },
    "categories": {
        "a": pd.Categorical(["x", None], categories=["y", "x"], ordered=True),
        "b": pd.Categorical([2, 1]),
        "c": pd.Categorical([None, ""]),
        "d": pd.Categorical([0.5, None]),
    },
    "dates": {
        "a": pd.to_datetime(["2024-01-01", None]),
        "b": pd.to_datetime(["2024-01-01 10:00", "2024-01-02 00:00"]),
        "c": np.array(["2024-01-01T10:00:00.000000001", "1700-01-01"], "datetime64[ns]"),
        "d": np.array(["2024-01-01T10", "NaT"], "datetime64[us]"),
        "e": np.array(["2024-01-01", "2024-01-02"], "datetime64[s]"),
    },
    "time zones": {
        "a": pd.to_datetime(["2024-03-31", "2024-10-27"]).tz_localize("Europe/Berlin"),
        "b": pd.to_datetime(["2024-10-27 00:30", "2024-10-27 01:30"], utc=True).tz_convert("Europe/Berlin"),
        "c": pd.to_datetime(["2024-10-27 00:30", None], utc=True),
    },
    "objects": {
        "a": pd.Series([2**70, None], dtype=object),
        "b": pd.Series([1, "x"], dtype=object),
        "c": pd.Series([1, 2.5], dtype=object),
        "d": [datetime.date(2024, 1, 2), None],
        "e": [Decimal("1.50"), Decimal("2")],
        "f": pd.Series([True, "no"], dtype=object),
        "g": pd.Series([datetime.datetime(2024, 1, 2, 3), None], dtype=object),
    },
    "names": {"größe": [1], " is ": [2], 'a,"b"\n': [3], 7: [4]},
}


@pytest.mark.parametrize("columns", FRAMES.values(), ids=FRAMES.keys())
def test_data_frames_come_back_with_their_types(columns: dict[str, Any]) -> None:
    frame = pd.DataFrame(columns)
    text, source = from_frame(frame)
    assert all(type(cell) is str for cell in text.to_numpy().ravel())
    again = to_frame(text, Source.from_json(source.json()))
    pd.testing.assert_frame_equal(again, frame, check_exact=True)
    for name in frame.columns:  # None, NaN, NA and NaT are equal to the check above, and 1 is True
        for was, now in zip(frame[name], again[name], strict=True):
            assert type(was) is type(now)
            assert was is now or not pd.isna(was) or isinstance(was, float)


def test_cells_of_data_frames_are_written_plainly() -> None:
    frame = pd.DataFrame({
        "a": [1.0, np.nan], "b": [0.1, 2.0], "c": pd.to_datetime(["2024-01-31", None]),
        "d": pd.to_datetime(["2024-01-31 10:00", "2024-01-31 00:00"]).tz_localize("Europe/Berlin"), "e": [True, False],
        "f": pd.Series(["", None], dtype=object), "g": pd.Series([np.nan, None], dtype=object),
    })  # fmt: skip
    text, _ = from_frame(frame)
    assert text.iloc[0].tolist() == ["1", "0.1", "2024-01-31", "2024-01-31 09:00:00+00:00", "True", "", "NaN"]
    assert text.iloc[1].tolist() == ["", "2.0", "", "2024-01-30 23:00:00+00:00", "False", "NaN", ""]


def test_missing_cells_of_a_later_frame_get_the_same_text() -> None:
    _, source = from_frame(pd.DataFrame({"a": pd.Series(["", None], dtype=object)}))
    later = pd.DataFrame({"a": pd.Series(["x", None], dtype=object)})
    assert from_frame(later)[0]["a"].tolist() == ["x", ""]
    assert from_frame(later, like=source)[0]["a"].tolist() == ["x", "NaN"]


def test_an_index_is_dropped_and_said() -> None:
    frame = pd.DataFrame({"a": [1, 2]}, index=pd.Index([5, 6], name="key"))
    text, source = from_frame(frame)
    assert list(text.index) == [0, 1]
    assert source.notes == ('the index "key" is dropped; make it a column with reset_index() to keep it',)
    assert from_frame(frame.reset_index())[1].notes == ()


FRAMES_REFUSED = {
    "no rows": (pd.DataFrame({"a": []}), "0 rows and 1 columns"),
    "no columns": (pd.DataFrame(index=[0]), "1 rows and 0 columns"),
    "a name twice": (pd.DataFrame([[1, 2]], columns=["a", "a"]), 'the column "a" stands twice'),
    "a name twice as text": (pd.DataFrame([[1, 2]], columns=["1", 1]), 'the column "1" stands twice'),
    "lists": (pd.DataFrame({"a": [[1], [2]]}), '"a" holds a list'),
    "1 and 1": (pd.DataFrame({"a": [1, "1"]}), '"a" mixes str and int: 1 may be either'),
    "durations": (pd.DataFrame({"a": pd.to_timedelta([1, 2])}), '"a" is of type timedelta64'),
    "half a character": (pd.DataFrame({"a": pd.Series(["\ud800"], dtype=object)}), '"a" holds half a character'),
    "two levels of names": (pd.DataFrame([[1]], columns=pd.MultiIndex.from_tuples([("a", "b")])), "2 names each"),
}


@pytest.mark.parametrize(("frame", "message"), FRAMES_REFUSED.values(), ids=FRAMES_REFUSED.keys())
def test_other_data_frames_are_refused_by_column(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(DataError, match=message):
        from_frame(frame)


def test_cells_that_fit_no_type_are_refused_by_column() -> None:
    text, source = from_frame(pd.DataFrame({"a": pd.array([1, 2], "uint8")}))
    text["a"] = ["1", "300"]
    with pytest.raises(DataError, match='"a" is of type uint8'):
        to_frame(text, source)


def test_fresh_values_join_the_categories() -> None:
    text, source = from_frame(pd.DataFrame({"a": pd.Categorical(["x1", "x2"])}))
    text["a"] = ["x3", "x1"]
    again = to_frame(text, source)["a"]
    assert again.tolist() == ["x3", "x1"]
    assert list(again.cat.categories) == ["x1", "x2", "x3"]


def test_a_csv_file_becomes_what_pandas_reads(tmp_path: Path) -> None:
    path = csv(tmp_path / "t.csv", "a,b,c\n1,x,0.1\n2,,1e-7\n")
    pd.testing.assert_frame_equal(to_frame(*read_table(path)), pd.read_csv(path))


def test_damaged_records_are_refused() -> None:
    record = from_frame(pd.DataFrame({"a": [1, 2]}))[1].json()
    for wrong in (record | {"format": "xls"}, record | {"more": 1}, {"delimiter": 1}, []):
        with pytest.raises(StorageError, match="damaged"):
            Source.from_json(wrong)


PARQUET = {
    name: columns
    for name, columns in FRAMES.items()
    if name not in ("missing kinds", "objects", "narrow floats", "all missing")
}


@pytest.mark.parametrize("columns", PARQUET.values(), ids=PARQUET.keys())
def test_parquet_files_come_back_with_their_types(tmp_path: Path, columns: dict[str, Any]) -> None:
    pytest.importorskip("pyarrow")
    frame = pd.DataFrame(columns)
    frame.columns = frame.columns.map(str)
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    text, source = read_table(tmp_path / "t.parquet")
    write_table(text, Source.from_json(source.json()), tmp_path / "again.parquet")
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "again.parquet"), pd.read_parquet(tmp_path / "t.parquet"))
    assert cells(read_table(tmp_path / "again.parquet")[0]) == cells(text)


def test_parquet_types_that_pandas_has_not_are_kept(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    pq = pytest.importorskip("pyarrow.parquet")
    table = pa.table({
        "a": pa.array([2**53 + 1, None], pa.int64()), "b": pa.array([1, None], pa.int8()), "c": pa.array([True, None]),
        "d": pa.array([datetime.date(2024, 1, 2), None]), "e": pa.array([Decimal("1.50"), None], pa.decimal128(5, 2)),
        "f": pa.array(["x", None]).dictionary_encode(), "g": pa.array([0.1, None], pa.float32()),
    })  # fmt: skip
    pq.write_table(table, tmp_path / "t.parquet")
    text, source = read_table(tmp_path / "t.parquet")
    assert text["a"].tolist() == [str(2**53 + 1), ""]
    write_table(text, source, tmp_path / "again.parquet")
    again = pq.read_table(tmp_path / "again.parquet")
    assert again.schema.equals(table.schema)
    assert again.to_pylist() == table.to_pylist()


def test_the_index_of_a_parquet_file_is_dropped_and_said(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pd.DataFrame({"a": [1, 2]}, index=["x", "y"]).to_parquet(tmp_path / "t.parquet")
    text, source = read_table(tmp_path / "t.parquet")
    assert list(text.columns) == ["a"]
    assert "index is dropped" in source.notes[0]
    write_table(text.iloc[:1], source, tmp_path / "again.parquet")
    assert pd.read_parquet(tmp_path / "again.parquet").index.tolist() == [0]


def test_tables_change_their_format(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    frame, source = read_table(csv(tmp_path / "t.csv", "a;b\n1;x\n2;\n"))
    write_table(frame, source, tmp_path / "t.parquet")
    assert pd.read_parquet(tmp_path / "t.parquet")["a"].tolist() == [1, 2]
    write_table(frame, source, tmp_path / "t.tsv")
    assert (tmp_path / "t.tsv").read_text() == "a\tb\n1\tx\n2\t\n"


def test_broken_parquet_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(DataError, match="no Parquet file"):
        read_table(csv(tmp_path / "t.parquet", "a,b\n1,2\n"))
    with pytest.raises(DataError, match="isn't there"):
        read_table(tmp_path / "none.parquet")


def test_without_pyarrow_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'preflab\[parquet\]'") as raised:
        read_table(tmp_path / "t.parquet")
    assert raised.value.exit_code == 2
    with pytest.raises(ConfigError, match="needs pyarrow"):  # before rows are sampled for it
        format_of(tmp_path / "t.parquet")
