"""Regular expressions and verified answers, against what a reader of the text would say."""

from __future__ import annotations

from typing import Any

import pytest

from preflab.errors import DataError
from preflab.rewards import Answer, PatternReward, Verifier, score


def answers(*responses: str, answer: Any = None) -> list[Answer]:
    fields = {} if answer is None else {"answer": answer}
    return [Answer("Q", response, (1,), (2,), True, fields) for response in responses]


@pytest.mark.parametrize(
    ("pattern", "whole", "expected"),
    [
        ("4", False, [1, 1, 1, 0]),
        ("4", True, [1, 0, 0, 0]),
        (r"^\d+$", False, [1, 1, 0, 0]),
        (r"\s*\d+\s*", True, [1, 1, 0, 0]),
        ("(?i)FOUR", False, [0, 0, 1, 1]),
        ("", True, [0, 0, 0, 0]),
        ("", False, [1, 1, 1, 1]),
    ],
)
def test_a_pattern_is_searched_or_must_be_the_whole(pattern: str, whole: bool, expected: list[int]) -> None:
    given = answers("4", "14", "four, 4", "four")
    assert score(PatternReward("p", pattern, whole), given) == expected
    paid = score(PatternReward("p", pattern, whole, match=-2.0, other=0.5), given)
    assert paid == [-2.0 if hit else 0.5 for hit in expected]


def test_a_pattern_sees_the_response_alone() -> None:
    assert score(PatternReward("p", "Q"), answers("no")) == [0.0]


@pytest.mark.parametrize(
    ("extract", "answer", "response", "right"),
    [
        (None, "4", " 4 \n", True),
        (None, " 4", "4", True),
        (None, "4", "4.0", False),
        (None, "Paris", "paris", False),
        (None, 4, "4.0", True),
        (None, 0.5, " .5", True),
        (None, 1234, "1,234", True),
        (None, 2**53 + 1, "9,007,199,254,740,993", True),  # no float is that number
        (None, 2**53 + 1, "9007199254740992", False),
        (None, 4, "four", False),
        (None, 4, "4 apples", False),
        (r"####\s*(\S+)", "18", "9 and 9 makes #### 18", True),
        (r"####\s*(\S+)", "18", "#### 17, no, #### 18", True),  # the last one counts
        (r"####\s*(\S+)", "18", "#### 18, no, #### 17", False),
        (r"####\s*(\S+)", "18", "18", False),
        (r"\d+", "18", "it is 18.", True),  # without a group, the match
        (r"(yes)|no", "no", "no", False),  # a group that took no part gives nothing
        (r"boxed\{(.*?)\}", "x", r"\boxed{ x }", True),
    ],
)
def test_an_answer_is_extracted_and_compared(extract: str | None, answer: Any, response: str, right: bool) -> None:
    given = answers(response, answer=answer)
    assert score(Verifier("v", "answer", extract), given) == [float(right)]
    assert score(Verifier("v", "answer", extract, match=2.0, other=-1.0), given) == [2.0 if right else -1.0]


@pytest.mark.parametrize("answer", [None, True, ["4"], {"a": 1}])
def test_an_answer_that_is_neither_text_nor_number_is_refused(answer: Any) -> None:
    with pytest.raises(DataError, match='the column "answer" holds no text or number beside the response'):
        score(Verifier("v", "answer"), answers("4", answer=answer))
