from __future__ import annotations

import dataclasses

import pytest

from preflab.data.records import Demonstration, Feedback, PreferencePair, Prompt, Rating, Record, prompt_of

RECORDS: list[tuple[Record, str]] = [
    (PreferencePair("p", "c", "r", "x:1"), "p"),
    (Prompt("p", "x:1"), "p"),
    (Demonstration("p", "r", "x:1"), "p"),
    (Demonstration("", "whole text", "x:1"), "whole text"),
    (Rating("whole text", 1, "x:1"), "whole text"),
    (Feedback("p", "r", True, "x:1"), "p"),
]


@pytest.mark.parametrize(("record", "prompt"), RECORDS)
def test_each_kind_has_the_text_that_a_split_keeps_together(record: Record, prompt: str) -> None:
    assert prompt_of(record) == prompt


@pytest.mark.parametrize("record", [record for record, _ in RECORDS])
def test_records_are_values(record: Record) -> None:
    assert record == dataclasses.replace(record)
    assert len({record, dataclasses.replace(record)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        record.origin = "y:2"  # type: ignore[misc]
