"""Places in groups that share no tokens, against a search by hand; and when they are worth it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.models.allowed import Allowed
from preflab.rollouts.mask import grammar_of
from preflab.tables.column import Column, Numbers
from preflab.tables.compact import Compact


def linked(sets: list[set[int]]) -> set[frozenset[int]]:
    """The tokens of sets that have one in common, directly or through others."""
    found: list[set[int]] = []
    for tokens in sets:
        met = [group for group in found if group & tokens]
        found = [group for group in found if not group & tokens] + [tokens.union(*met)]
    return {frozenset(group) for group in found}


@given(
    st.lists(st.sets(st.integers(0, 11), min_size=1, max_size=4), min_size=1, max_size=8),
    st.lists(st.integers(0, 7), max_size=30),
)
def test_groups_are_sets_that_are_linked_and_say_what_each_place_allows(sets: list[set[int]], drawn: list[int]) -> None:
    # Every set is somewhere, as places are where sets come from.
    of = [*range(len(sets)), *(number % len(sets) for number in drawn)]
    rows = torch.zeros(len(sets), 12, dtype=torch.bool)
    for row, tokens in zip(rows, sets, strict=True):
        row[list(tokens)] = True
    allowed = Allowed(list(rows), torch.tensor(of))
    assert torch.equal(allowed(slice(0, len(of))), rows[of])
    assert torch.equal(allowed(slice(1, 3)), rows[of[1:3]])
    groups = allowed.grouped()
    assert {frozenset(group.tokens.tolist()) for group in groups.each} == linked(sets)
    assert sorted(groups.order.tolist()) == list(range(len(of)))
    end = 0
    for group in groups.each:
        assert group.rows.start == end
        end = group.rows.stop
        assert groups.column[group.tokens].tolist() == list(range(len(group.tokens)))
        for row in range(group.rows.start, group.rows.stop):
            its = group.tokens if group.sets is None else group.tokens[group.may(slice(row, row + 1))[0]]
            assert set(its.tolist()) == sets[of[int(groups.order[row])]]
    assert end == len(of)


def test_the_places_of_rows_stand_in_a_group_for_each_column_and_one_for_the_end() -> None:
    """A column of digits has one for its buckets and one for each digit, whatever the bucket leaves open."""
    colour = Column("colour", "category", levels=tuple(map(str, range(900))))
    income = Column("income", "integer", numbers=Numbers(0, 40_000, tuple(range(0, 40_000, 13))))
    points = np.arange(0, 40_000, 13)
    codes = np.stack([-1 - points % 900, points], 1)
    encoding = Compact.of((colour, income), codes)
    batch = pack([Tree("a", encoding.prompt(), (encoding.response(row),)) for row in codes[:600].tolist()])
    groups = grammar_of(encoding.mask())(batch).groups
    assert groups is not None
    assert len(groups.each) == len(encoding.slots) + 1
    assert [group.rows.stop - group.rows.start for group in groups.each] == [600] * len(groups.each)


@pytest.mark.parametrize(
    ("places", "sets", "worth"),
    [
        (40_000, 10, True),
        (100, 10, False),  # so little work that looking at groups is more
        (40_000, 200, True),
        (4_000, 999, False),  # a group for each is much to look at
    ],
)
def test_groups_are_taken_where_they_are_less_work(places: int, sets: int, worth: bool) -> None:
    width = 1000 // sets
    rows = [(torch.arange(1000) // width) == number for number in range(sets)]
    allowed = Allowed(rows, torch.arange(places) % sets)
    assert (allowed.groups is not None) == worth


def test_groups_are_not_taken_where_places_allow_most_tokens() -> None:
    most = torch.arange(1000) < 900
    assert Allowed([most], torch.zeros(50_000, dtype=torch.long)).groups is None
    few = torch.arange(1000) < 400
    assert Allowed([few], torch.zeros(50_000, dtype=torch.long)).groups is not None


def test_no_places_stand_in_no_groups() -> None:
    allowed = Allowed([], torch.zeros(0, dtype=torch.long))
    assert allowed.groups is None
    assert len(allowed(slice(0, 0))) == 0
