"""The strict reader: a table of bytes and what is said of them."""

from __future__ import annotations

import gzip
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflab.data.jsonl import FAULTS_SHOWN, read_rows
from preflab.errors import DataError

GOOD = b'{"text": "a"}\n'

FAULTS = {
    "bad name, line 3": (GOOD * 2 + b'{"text": "a", x}\n', r':3:15: expected a field name .*, found "x}"'),
    "no value": (b'{"text": }\n', r':1:10: expected a value, found "}"'),
    "no comma": (b'{"a": 1 "b": 2}\n', r':1:9: expected "," or a closing bracket, found'),
    "no colon": (b'{"a" 1}\n', r':1:6: expected ":", found'),
    "text after the object": (b'{"a": 1} {"a": 2}\n', r":1:10: expected the end of the line after the object, found"),
    "bad escape": (rb'{"a": "C:\data"}' + b"\n", r":1:10: expected a JSON escape"),
    "bad \\u escape": (rb'{"a": "\u12"}' + b"\n", r":1:\d+: expected four hexadecimal digits"),
    "raw control character": (b'{"a": "x\x00y"}\n', r":1:9: expected an escape such as \\n .* found \"\\x00y"),
    "trailing comma": (b'{"a": 1,}\n', r":1:\d: expected "),
    "CRLF, byte order mark": (b'\xef\xbb\xbf{"a": 1}\r\n\r\n{"a": ?}\r\n', r':3:7: expected a value'),
    "last line cut in a string": (GOOD + b'{"text": "half', r":2:10: expected a closing .*the file looks truncated"),
    "last line cut before a value": (GOOD + b'{"text":', r":2:9: expected a value, found the end .*looks truncated"),
    "last line cut in an object": (GOOD + b'{"text": "a"', r":2:13: expected .* found the end .*looks truncated"),
    "last line cut in a literal": (GOOD + b'{"text": tru', r":2:10: expected a value.*looks truncated"),
    "last line cut in a character": (GOOD + '{"text": "é'.encode()[:-1], r":2:11: byte 11 .*not UTF-8; .*truncated"),
    "list": (b"[1, 2]\n", r":1: a row must be a JSON object, this is a list$"),
    "text": (b'"x"\n', r":1: a row must be a JSON object, this is text$"),
    "number": (b"3\n", r":1: a row must be a JSON object, this is a number$"),
    "null": (b"null\n", r":1: a row must be a JSON object, this is null$"),
    "repeated key": (b'{"text": "a", "text": "b"}\n', r':1: the key "text" stands twice'),
    "repeated key inside": (b'{"x": {"a": 1, "a": 1}}\n', r':1: the key "a" stands twice'),
    "terminal codes in a key": (rb'{"\u001b[2J": 1, "\u001b[2J": 2}' + b"\n", r':1: the key "\\x1b\[2J" stands twice'),
    "NaN": (b'{"why": "NaN", "x": NaN}\n', r":1:21: NaN is not a finite number"),
    "infinity": (b'{"x": [-Infinity]}\n', r":1:8: -Infinity is not a finite number"),
    "overflow": (b'{"x": 1e999}\n', r":1:7: 1e999 is not a finite number"),
    "too many digits": (b'{"x": ' + b"9" * 5000 + b"}\n", r":1: a number has too many digits"),
    "nested too deeply": (b'{"x": ' + b"[" * 200_000 + b"]" * 200_000 + b"}\n", r":1: nested too deeply"),
    "invalid UTF-8": (GOOD + b'{"text": "\xff"}\n', r":2:11: byte 11 of this line \(0xff\) is not UTF-8; save"),
    "lone surrogate": (rb'{"text": "\ud800"}' + b"\n", r":1: \\ud800 is half a character"),
    "lone surrogate in a key": (rb'{"\udc00": 1}' + b"\n", r":1: \\udc00 is half a character"),
    "UTF-16": ('{"text": "a"}\n'.encode("utf-16"), r"this is UTF-16; save the file as UTF-8$"),
    "pretty-printed": (b'[\n {"text": "a"}\n]\n', r"one JSON document over many lines; write one object a line"),
    "empty": (b"", r"0 rows; name a file"),
    "blank lines only": (b"\n \n\r\n", r"0 rows; name a file"),
    "gzip, cut": (gzip.compress(GOOD * 1000)[:-12], r":\d+: the gzip stream ends early, the file looks truncated"),
    "gzip, damaged": (gzip.compress(GOOD)[:-8] + bytes(8), r":\d+: the gzip stream is damaged"),
    "gzip, empty": (gzip.compress(b""), r"0 rows"),
}  # fmt: skip


@pytest.mark.parametrize(("content", "message"), FAULTS.values(), ids=FAULTS.keys())
def test_faults_are_refused_by_place(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        read_rows(path)
    assert raised.value.exit_code == 3
    [line] = str(raised.value).splitlines()
    assert line.startswith(str(path))
    assert re.search(message, line), line
    assert line.isprintable()


ACCEPTED = {
    "plain": (b'{"text": "a"}\n{"text": "b"}\n', ["a", "b"], 0),
    "no line feed at the end": (b'{"text": "a"}\n{"text": "b"}', ["a", "b"], 0),
    "byte order mark": (b'\xef\xbb\xbf{"text": "a"}\n', ["a"], 0),
    "CRLF and blank lines": (b'\r\n{"text": "a"}\r\n \t\r\n{"text": "b"}\r\n', ["a", "b"], 2),
    "spaces around": (b'  {"text": "a"}  \n', ["a"], 0),
    "surrogate pair": (rb'{"text": "\ud83d\ude00"}', ["😀"], 0),
    "line separators inside a text": ('{"text": "a\u2028b\u0085c"}\n'.encode(), ["a\u2028b\x85c"], 0),
    "escaped control and bidi characters": (rb'{"text": "\u0000\u202e\u001b"}', ["\0\u202e\x1b"], 0),
    "a backslash before ud800": (rb'{"text": "\\ud800"}', [r"\ud800"], 0),
    "NaN as text": (b'{"text": "NaN"}', ["NaN"], 0),
    "gzip under any name": (gzip.compress(GOOD), ["a"], 0),
}


@pytest.mark.parametrize(("content", "texts", "blank_lines"), ACCEPTED.values(), ids=ACCEPTED.keys())
def test_odd_but_whole_files_are_read(tmp_path: Path, content: bytes, texts: list[str], blank_lines: int) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(content)
    lines = read_rows(path)
    assert [row.fields["text"] for row in lines.rows] == texts
    assert lines.blank_lines == blank_lines


def test_origins_are_physical_lines(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n" + GOOD + b"\n\n" + GOOD))
    assert [(row.line, row.origin) for row in read_rows(path).rows] == [(2, "data.jsonl.gz:2"), (5, "data.jsonl.gz:5")]


def test_all_faults_come_in_one_pass_up_to_a_limit(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_bytes(b"[]\n" + GOOD + b"{\n" + b"1\n" * 30)
    with pytest.raises(DataError) as raised:
        read_rows(path)
    lines = str(raised.value).splitlines()
    assert lines[0].startswith(f"{path}:1: ")
    assert lines[1].startswith(f"{path}:3:2: ")
    assert lines[2].startswith(f"{path}:4: ")
    assert len(lines) == FAULTS_SHOWN + 1
    assert lines[-1] == f"… and {32 - FAULTS_SHOWN} more faults in {path}"


def test_a_path_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "pairs.jsonl").write_bytes(GOOD)
    with pytest.raises(DataError, match=r'pair\.jsonl isn\'t there; did you mean ".*/pairs\.jsonl"\?'):
        read_rows(tmp_path / "pair.jsonl")
    with pytest.raises(DataError, match=r"zzz isn't there; check the path"):
        read_rows(tmp_path / "zzz")
    with pytest.raises(DataError, match=r"isn't there; nor is the folder .*nowhere"):
        read_rows(tmp_path / "nowhere" / "pairs.jsonl")
    with pytest.raises(DataError, match=r"isn't there"):
        read_rows(tmp_path / "pairs.jsonl" / "x")
    with pytest.raises(DataError, match=r"is a folder; name a \.jsonl or \.jsonl\.gz file"):
        read_rows(tmp_path)


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    rows=st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), min_size=1, max_size=5),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n"]),
    gzipped=st.booleans(),
)
def test_what_json_writes_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]], ascii_only: bool, end: str, gzipped: bool
) -> None:
    path = tmp_path_factory.getbasetemp() / "round-trip.jsonl"
    content = "".join(json.dumps(row, ensure_ascii=ascii_only) + end for row in rows).encode()
    path.write_bytes(gzip.compress(content) if gzipped else content)
    assert [row.fields for row in read_rows(path).rows] == rows
