"""Conditions: from text and Python values to the codes that meet them."""

from __future__ import annotations

from datetime import date
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflab.errors import ConfigError
from preflab.tables.column import Column, Numbers, Times
from preflab.tables.conditions import codes_of, count, legal_codes, of_values, present, read
from preflab.tables.encoding import legal_of

RISK = Column("Risk", "category", levels=("Bad", "Good"))
SCORE = Column("Score", "integer", levels=("", "NA", "-9", "-8"), missing=("", "NA"), numbers=Numbers(-2, 13, (0, 7)))
INCOME = Column("income", "category", levels=("<=50K", ">50K", "a|b", "a", "b"))
SMOKES = Column("smokes", "boolean", levels=("no", "yes"))
UNIT = Column("unit", "constant", levels=("kg",))
NUMBER = Column("id", "identifier")
ODD = Column("a=b", "integer", numbers=Numbers(0, 10, ()))
SHORT = Column("a", "category", levels=("b=3", "x"))
SPACED = Column("months since", "integer", numbers=Numbers(0, 10, ()))
COLUMNS = [RISK, SCORE, INCOME, SMOKES, UNIT, NUMBER, ODD, SHORT, SPACED]


def cells(*conditions: str) -> dict[str, list[str]]:
    """The cells that meet conditions, as they are written."""
    legal = legal_codes([read(text, COLUMNS) for text in conditions], COLUMNS)
    by_name = {column.name: column for column in COLUMNS}
    return {name: [by_name[name].text(code) for code in codes_of(one)] for name, one in legal.items()}


def values(**where: Any) -> dict[str, list[str]]:
    legal = legal_codes(of_values(where, COLUMNS), COLUMNS)
    by_name = {column.name: column for column in COLUMNS}
    return {name: [by_name[name].text(code) for code in codes_of(one)] for name, one in legal.items()}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Risk=Bad", {"Risk": ["Bad"]}),
        (" Risk == Bad ", {"Risk": ["Bad"]}),
        ("Risk!=Bad", {"Risk": ["Good"]}),
        ("Score>=8", {"Score": ["8", "9", "10"]}),
        ("Score>8", {"Score": ["9", "10"]}),
        ("Score<=-1", {"Score": ["-2", "-1"]}),
        ("Score<-1", {"Score": ["-2"]}),
        ("Score>8.5", {"Score": ["9", "10"]}),
        ("Score<=8.5", {"Score": [str(n) for n in range(-2, 9)]}),
        ("Score>=-100", {"Score": [str(n) for n in range(-2, 11)]}),
        ("Score=-9", {"Score": ["-9"]}),
        ("Score=3.0", {"Score": ["3"]}),
        ("Score=", {"Score": ["NA", ""]}),
        ("Score!=", {"Score": ["-8", "-9", *(str(n) for n in range(-2, 11))]}),
        ("Score=-8|3|4", {"Score": ["-8", "3", "4"]}),
        ("Score=|3", {"Score": ["NA", "", "3"]}),
        ("income=>50K", {"income": [">50K"]}),
        ("income=<=50K", {"income": ["<=50K"]}),
        ("income=a|b", {"income": ["a|b"]}),
        ("income!=a|b", {"income": ["b", "a", ">50K", "<=50K"]}),
        ('income="a"', {"income": ["a"]}),
        ("income=b|a", {"income": ["b", "a"]}),
        ('income="b"|"a"', {"income": ["b", "a"]}),
        ('income= "a|b" | a', {"income": ["a", "a|b"]}),
        ("Score=-9.0|3.0", {"Score": ["-9", "3"]}),
        ("smokes=true", {"smokes": ["yes"]}),
        ("a=b=3", {"a=b": ["3"]}),
        ('"a"=b=3', {"a": ["b=3"]}),
        ('"a=b">=9', {"a=b": ["9"]}),
        ("months since<2", {"months since": ["0", "1"]}),
        ("unit=kg", {}),
    ],
)
def test_a_condition_allows_exactly_the_cells_that_meet_it(text: str, expected: dict[str, list[str]]) -> None:
    assert cells(text) == expected


def test_all_conditions_on_a_column_must_hold() -> None:
    assert cells("Score>=3", "Score!=4", "Score<6", "Risk=Good") == {"Score": ["3", "5"], "Risk": ["Good"]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("risk=Bad", r'there is no column "risk"; did you mean "Risk"\?'),
        ("Scor>=3", r'no column "Scor"; did you mean "Score"\?'),
        ("zzz=3", r'no column "zzz"; there are "Risk", "Score", .* and 1 more'),
        ("Risk", r'"Risk" is no condition; write one as COLUMN=VALUE'),
        ("Risk=bad", r'"bad" is no value of "Risk"; did you mean "Bad"\?'),
        ("Risk=", r'"Risk" has no missing values'),
        ("Risk>=Bad", r'"Risk>=Bad": "Risk" is a category, which has no order; use = or !='),
        ("income>50K", r'did you mean "income=>50K"\?'),
        ("Score=99", r'"Score" goes from -2 to 10 \(or NA, -9, -8\); the nearest value is 10'),
        ("Score=3.4", r"the nearest value is 3"),
        ("Score>10", r'"Score" goes from -2 to 10; choose a value within'),
        ("Score>=x", r'"x" is no number; "Score" goes from -2 to 10'),
        ("Score=x", r'"x" is no number; "Score" goes from -2 to 10'),
        ("unit=g", r'"unit" is always "kg"'),
        ("id=3", r'"id" is an identifier'),
    ],
)
def test_what_cannot_hold_is_refused_with_what_could(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        cells(text)


def test_conditions_that_leave_nothing_are_refused_together() -> None:
    with pytest.raises(ConfigError, match=r'no cell of "Score" meets "Score>=5" and "Score<5"; leave one out'):
        cells("Score>=5", "Score<5")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, ["3"]),
        (3.0, ["3"]),
        (np.int64(3), ["3"]),
        (-9, ["-9"]),
        ("-9", ["-9"]),
        (">=9", ["9", "10"]),
        ("=3|4", ["3", "4"]),
        ("==3", ["3"]),
        ("!=", ["-8", "-9", *(str(n) for n in range(-2, 11))]),
        (None, ["NA", ""]),
        (float("nan"), ["NA", ""]),
        (pd.NA, ["NA", ""]),
        ((8, None), ["8", "9", "10"]),
        ((None, -1), ["-2", "-1"]),
        ((2.5, 4), ["3", "4"]),
        ([3, -9, None], ["-9", "NA", "", "3"]),
        ({3, 4}, ["3", "4"]),
        (range(3, 5), ["3", "4"]),
    ],
)
def test_python_values_say_the_same_as_text(value: Any, expected: list[str]) -> None:
    assert sorted(values(Score=value)["Score"]) == sorted(expected)


def test_a_cell_that_reads_like_an_inequality_is_a_cell() -> None:
    assert values(income=">50K") == {"income": [">50K"]}
    assert values(smokes=True, Risk=["Bad", "Good"]) == {"smokes": ["yes"], "Risk": ["Good", "Bad"]}


def test_values_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"a tuple is \(lowest, highest\); put any-of values in a list"):
        values(Score=(1, 2, 3))
    with pytest.raises(ConfigError, match=r'"Score" = \[\]: no value is asked for'):
        values(Score=[])
    with pytest.raises(ConfigError, match="give text, a number, a date, None, a list of them"):
        values(Score=object())


DAY = Column("day", "datetime", numbers=Times(19_723, 5, (), unit="day", pattern="DD.MM.YYYY"))  # from 1 January 2024


@pytest.mark.parametrize(
    "where", [">=2024-01-03", (date(2024, 1, 3), None), (pd.Timestamp(2024, 1, 2, 12), None), ">2024-01-02 06:00"]
)
def test_dates_are_compared_as_dates(where: Any) -> None:
    legal = legal_codes(of_values({"day": where}, [DAY]), [DAY])["day"]
    assert [DAY.text(code) for code in codes_of(legal)] == ["03.01.2024", "04.01.2024", "05.01.2024"]


def test_a_day_is_a_date() -> None:
    for day in (date(2024, 1, 2), pd.Timestamp(2024, 1, 2), "02.01.2024", "2024-01-02"):
        assert codes_of(legal_codes(of_values({"day": day}, [DAY]), [DAY])["day"]) == [1]


def test_large_integers_are_compared_to_the_last_digit() -> None:
    column = Column("n", "integer", numbers=Numbers(2**60, 10, ()))
    assert codes_of(legal_codes([read(f"n>{2**60 + 7}", [column])], [column])["n"]) == [8, 9]
    assert codes_of(legal_codes(of_values({"n": 2**60 + 1}, [column]), [column])["n"]) == [1]


def test_decimals_are_compared_to_the_last_digit() -> None:
    column = Column("p", "decimal", numbers=Numbers(0, 101, (), decimals=2, style="fixed", shown=2))
    assert codes_of(legal_codes([read("p>=0.975", [column])], [column])["p"]) == [98, 99, 100]
    assert codes_of(legal_codes(of_values({"p": 0.1}, [column]), [column])["p"]) == [10]


OPERATORS = {
    "=": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    ">=": lambda a, b: a >= b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    "<": lambda a, b: a < b,
}


@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATORS)), st.integers(-2, 10)), min_size=1, max_size=4))
def test_any_conjunction_holds_for_exactly_the_cells_for_which_each_part_does(asked: list[tuple[str, int]]) -> None:
    """Against comparison of every cell; codes that are no numbers meet != alone."""
    expected = {str(n) for n in range(-2, 11) if all(OPERATORS[sign](n, bound) for sign, bound in asked)}
    if all(sign == "!=" for sign, _ in asked):
        expected |= {"", "NA", "-9", "-8"}
    texts = [f"Score{sign}{bound}" for sign, bound in asked]
    if expected:
        assert set(cells(*texts)["Score"]) == expected
    else:
        with pytest.raises(ConfigError):
            cells(*texts)


def test_present_is_everything_but_marks_of_missing_values() -> None:
    assert count(legal_of(SCORE)) == 4 + 13
    assert [SCORE.text(code) for code in codes_of(present(SCORE))][:2] == ["-8", "-9"]
    assert count(present(SCORE)) == 2 + 13
