"""Groups of related columns, named and found."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from preflab.errors import ConfigError
from preflab.tables.column import Column, Numbers
from preflab.tables.discriminators.groups import Group, association, found_groups, groups_of
from preflab.tables.files import read_table
from preflab.tables.schema import infer


def columns(*names: str) -> tuple[Column, ...]:
    return tuple(Column(name, "integer", levels=("-9",), numbers=Numbers(0, 1000, ())) for name in names)


NAMED = columns("age", "income", "debt", "rent, cold")
ROWS = np.zeros((2, 4), np.int64)


def blocks(rows: int = 1200, *, seed: int = 0) -> np.ndarray:
    """Columns 0, 3 and 6 follow one number, 1, 4 and 7 another, and so on; the first of each exactly."""
    rng = np.random.default_rng(seed)
    source = rng.normal(0, 1, (rows, 3))
    noise = rng.normal(0, 0.4, (rows, 9)) * np.repeat([0.0, 1.0, 1.0], 3)
    return np.clip(500 + 100 * (np.tile(source, 3) + noise), 0, 999).astype(np.int64)


def test_groups_are_as_they_are_named() -> None:
    found = groups_of(('money = income, debt,"rent, cold"', "person=age,income"), NAMED, ROWS)
    assert found == (Group("money", (1, 2, 3)), Group("person", (0, 1)))


@pytest.mark.parametrize(
    ("named", "message"),
    [
        (("money=income,dept",), 'groups: "money": the model writes no column "dept"; did you mean "debt"?'),
        (("income,debt",), 'groups: "income,debt" is not NAME=COLUMN,COLUMN'),
        (("money=",), 'groups: "money=" is not NAME=COLUMN,COLUMN'),
        (("=income",), 'groups: "=income" is not NAME=COLUMN,COLUMN'),
        (("money=income,,debt",), 'groups: "money=income,,debt" is not NAME'),
        (("money=debt,income,debt",), 'groups: "money" has a column twice'),
        (("a=debt", "b=age", "a=income"), 'groups: "a" is named twice'),
    ],
)
def test_groups_that_can_not_be_are_refused(named: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        groups_of(named, NAMED, ROWS)
    assert message in str(caught.value)


def test_related_columns_are_found_and_named_after_the_most_central_one() -> None:
    names = tuple("abcdefghi")
    assert found_groups(columns(*names), blocks()) == (
        Group("a", (0, 3, 6)),
        Group("b", (1, 4, 7)),
        Group("c", (2, 5, 8)),
    )


def test_association_of_normal_numbers_is_their_correlation() -> None:
    rng = np.random.default_rng(1)
    for rho in (0.0, 0.5, 0.9):
        x, noise = rng.normal(0, 1, (2, 20_000))
        y = rho * x + np.sqrt(1 - rho**2) * noise
        codes = (np.stack([x, -y], 1) * 1000 + 10_000).astype(np.int64)
        # Ten bins lose a little of it.
        assert association(codes)[0, 1] == pytest.approx(rho, abs=0.06)


def test_what_only_special_codes_share_is_seen() -> None:
    rng = np.random.default_rng(2)
    codes = rng.integers(0, 900, (2000, 3))
    codes[rng.random(2000) < 0.3, :2] = -1
    related = association(codes)
    assert related[0, 1] > 0.7
    assert related[0, 2] < 0.2


def test_dependence_that_neither_rises_nor_falls_is_seen() -> None:
    x = np.arange(-500, 500)
    assert association(np.stack([x + 500, x**2], 1))[0, 1] > 0.9


def test_chance_is_no_dependence_in_few_rows() -> None:
    found = [association(np.random.default_rng(seed).integers(0, 900, (60, 2)))[0, 1] for seed in range(50)]
    assert np.mean(found) < 0.12


def test_a_column_that_is_like_no_other_joins_the_group_it_has_most_in_common_with() -> None:
    codes = np.column_stack([blocks()[:, :2], blocks()[:, 3:5], np.random.default_rng(3).integers(0, 900, 1200)])
    # a and c are one block, b and d another; e has a trace of b.
    codes[:, 4] += codes[:, 1] // 2
    found = found_groups(columns(*"abcde"), codes)
    assert sorted(group.places for group in found) == [(0, 2), (1, 3, 4)]


def test_few_columns_are_one_group() -> None:
    for many in (1, 2, 3):
        [group] = found_groups(columns(*"abc"[:many]), blocks()[:, :many])
        assert group.places == tuple(range(many))


def test_columns_that_are_all_alike_are_grouped_somehow() -> None:
    codes = np.repeat(np.arange(200)[:, None], 6, axis=1)
    found = found_groups(columns(*"abcdef"), codes)
    assert sorted(place for group in found for place in group.places) == list(range(6))
    assert all(len(group.places) > 1 for group in found)


def test_heloc_has_its_four() -> None:
    folder = os.environ.get("PREFLAB_DATA")
    if not folder or not Path(folder, "heloc.csv").exists():
        pytest.skip("needs real data: set PREFLAB_DATA to the folder with heloc.csv")
    frame, _ = read_table(Path(folder) / "heloc.csv")
    schema = infer(frame, target="RiskPerformance")
    written = schema.written
    found = {
        frozenset(written[place].name for place in group.places) for group in found_groups(written, schema.codes(frame))
    }
    delinquency = {
        "NumTrades60Ever2DerogPubRec", "NumTrades90Ever2DerogPubRec", "PercentTradesNeverDelq", "MSinceMostRecentDelq",
        "MaxDelq2PublicRecLast12M", "MaxDelqEver",
    }  # fmt: skip
    history = {"MSinceOldestTradeOpen", "AverageMInFile", "NumSatisfactoryTrades", "NumTotalTrades"}
    utilisation = {
        "NetFractionRevolvingBurden", "NetFractionInstallBurden", "NumRevolvingTradesWBalance",
        "NumInstallTradesWBalance", "NumBank2NatlTradesWHighUtilization", "PercentTradesWBalance",
    }  # fmt: skip
    inquiries = {"MSinceMostRecentInqexcl7days", "NumInqLast6M", "NumInqLast6Mexcl7days"}
    for expected in (delinquency, history, utilisation, inquiries):
        assert sum(expected <= group for group in found) == 1, expected
    assert len(found) == 4
