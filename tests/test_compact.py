"""The compact encoding: rows round-trip, and its mask allows exactly the legal ones."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from itertools import permutations, product
from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from held_up import small_gpt2
from preflab.rollouts.sampler import sample
from preflab.tables.column import Column, Numbers
from preflab.tables.compact import BUCKETS, Compact, Slot, buckets
from preflab.tables.encoding import Legal, unmasked_validity
from small_tables import accepts, columns, legal_codes, legal_rows, odd_columns, round_trips, walk
from test_trie import masked_logprob

AGE = Column("age", "integer", levels=("", "-9"), missing=("",), numbers=Numbers(18, 73, (0, 7, 20)))
SMOKER = Column("smoker", "boolean", levels=("no", "yes"))
WIDE = Column("income", "integer", levels=("?",), numbers=Numbers(-25, 200, ()))
WIDE_BUCKETS = ((0, 2), (10, 10), (11, 20), (21, 70), (180, 190))


def small(*, any_order: bool = False, order: tuple[int, ...] = (2, 0, 1)) -> Compact:
    """Of three columns, one of them in buckets of 10, 1, 10, 159 and 20 points."""
    return Compact((AGE, SMOKER, WIDE), order, any_order, ((), (), WIDE_BUCKETS))


@st.composite
def encodings(draw: Any, most: int = 4) -> Compact:
    """Of random columns, scales in random buckets or with a token for each point that was seen."""
    some = draw(st.lists(columns(longest=150), min_size=1, max_size=most))
    cut: list[tuple[tuple[int, int], ...]] = []
    for column in some:
        if column.numbers is None or draw(st.booleans()):
            cut.append(())
        else:
            starts = draw(st.sets(st.integers(0, column.numbers.size - 1), max_size=5)) | {0}
            cut.append(tuple((start, start) for start in sorted(starts)))
    order = draw(st.permutations(range(len(some))))
    return Compact(tuple(some), tuple(order), draw(st.booleans()), tuple(cut))


def legal_cells(encoding: Compact, number: int, narrower: Legal | None = None) -> list[int]:
    return legal_codes(encoding.columns[number], narrower, seen=not encoding.buckets[number])


def test_the_tokens_of_a_row_by_hand() -> None:
    """Tokens: start, end; age "", -9, 18, 25, 38; smoker; income ?, five buckets, three digits (159 points)."""
    encoding = small()
    assert encoding.vocabulary == 2 + 5 + 2 + 6 + 30
    assert encoding.slots == (
        Slot(2, 0, 9, 6), Slot(2, 1, 15, 10), Slot(2, 2, 25, 10), Slot(2, 3, 35, 10), Slot(0, 0, 2, 5), Slot(1, 0, 7, 2)
    )  # fmt: skip
    assert encoding.longest == 7
    # Point 25 is 0, in the fourth bucket; point 199 is 174, in the fifth.
    assert encoding.response([7, -2, 25]) == (13, 15, 25, 35, 5, 8, 1)
    assert encoding.response([-2, -1, 199]) == (14, 16, 32, 39, 3, 7, 1)
    # Below 0 the digits are those that are missing to 1,000: point 3 is −22.
    assert encoding.response([0, -1, 3]) == (10, 24, 32, 43, 4, 7, 1)
    # A level has digits 0.
    assert encoding.response([0, -1, -1]) == (9, 15, 25, 35, 4, 7, 1)
    assert encoding.prompt({2: 25, 0: 7}) == (0, 13, 15, 25, 35, 5)
    assert encoding.response([7, -2, 25], given=2) == (8, 1)


def test_the_example_of_the_docs() -> None:
    risk = Column("risk", "category", levels=("Bad", "Good"))
    score = Column("score", "integer", levels=("-9",), numbers=Numbers(33, 62, (0, 22, 61)))
    income = Column("income", "integer", levels=("",), missing=("",), numbers=Numbers(0, 100_000, ()))
    draw = np.random.default_rng(0)
    cells = [draw.choice([-1, -2], 5000), draw.choice([-1, 0, 22, 61], 5000), draw.integers(0, 100_000, 5000)]
    encoding = Compact.of((risk, score, income), np.stack(cells, 1))
    first, second = [-1, 22, 41_250], [-2, -1, -1]
    assert encoding.prompt() + encoding.response(first) == (0, 2, 6, 35, 73, 84, 97, 102, 1)
    assert encoding.prompt() + encoding.response(second) == (0, 3, 4, 8, 72, 82, 92, 102, 1)
    assert [start for start, _ in encoding.buckets[2] if 40_000 < start < 43_000] == [40_994, 42_697]
    prompt = encoding.prompt({0: -1, 1: 22})
    mask = encoding.mask({2: Legal(frozenset(), ((41_250, 41_260),))})
    found = {row[:3] + row[4:] for row in walk(mask, prompt, 1) if row[3] == 98}
    assert found == {(35, 73, 84, 102, 1)}
    assert len(list(walk(mask, prompt, 1))) == 11


def test_numbers_of_tokens() -> None:
    assert np.array_equal(small().numbers_of(0), [np.nan, np.nan, 18, 25, 38], equal_nan=True)
    assert np.array_equal(small().numbers_of(2), [np.nan, -23, -15, -5, 45, 165], equal_nan=True)
    assert np.isnan(small().numbers_of(1)).tolist() == [True, True]


@settings(max_examples=30)
@given(encodings(), st.randoms(use_true_random=False))
def test_rows_round_trip_and_the_mask_accepts_them(encoding: Compact, random: Random) -> None:
    mask = encoding.mask()
    restored = Compact.restored(encoding.columns, json.loads(json.dumps(encoding.settings())))
    assert restored == encoding
    for _ in range(5):
        cells = [legal_cells(encoding, number) for number in range(len(encoding.columns))]
        codes = [random.choice(some) for some in cells]
        round_trips(encoding, mask, codes, random)
        assert len(encoding.prompt() + encoding.response(codes)) == encoding.longest + 1


@settings(max_examples=30)
@given(encodings(most=2), st.data())
def test_the_mask_allows_exactly_the_legal_rows(encoding: Compact, data: Any) -> None:
    narrower = {}
    for number in data.draw(st.sets(st.integers(0, len(encoding.columns) - 1))):
        cells = legal_cells(encoding, number)
        kept = data.draw(st.sets(st.sampled_from(cells), min_size=1, max_size=12))
        points = sorted(code for code in kept if code >= 0)
        narrower[number] = Legal(frozenset(code for code in kept if code < 0), tuple((p, p) for p in points))
    cells = [legal_cells(encoding, number, narrower.get(number)) for number in range(len(encoding.columns))]
    if np.prod([len(some) for some in cells]) > 300:
        return
    found = [tuple(encoding.row(response).tolist()) for response in walk(encoding.mask(narrower), encoding.prompt(), 1)]
    assert Counter(found) == Counter(product(*cells))


@pytest.mark.parametrize("any_order", [False, True])
def test_spans_cut_buckets_and_digits_where_they_end(any_order: bool) -> None:
    """Each pair of ends, on a scale in which buckets begin within a ten and digits pass 0."""
    encoding = small(any_order=any_order)
    prompt = encoding.prompt({2: 5}) if any_order else ()
    for low, high in [(0, 199), (3, 3), (9, 12), (10, 10), (19, 27), (25, 125), (24, 180), (179, 199), (-5, 1000)]:
        other = (low + 40, low + 41)
        narrower = {0: Legal(frozenset({-1})), 1: Legal(frozenset({-2})), 2: Legal(frozenset(), ((low, high), other))}
        rows = [encoding.row(row).tolist() for row in walk(encoding.mask(narrower), encoding.prompt(), 1)]
        inside = {point for point in range(200) if low <= point <= high or point in other}
        assert sorted(row[2] for row in rows) == sorted(inside)
        assert {tuple(row[:2]) for row in rows} == {(-1, -2)}
    if any_order:
        rows = [encoding.row(prompt + row).tolist() for row in walk(encoding.mask(), prompt, 1)]
        assert sorted(rows) == sorted([a, b, 5] for a in (-2, -1, 0, 7, 20) for b in (-2, -1))


def test_any_order_names_each_column_and_the_mask_forces_the_names() -> None:
    encoding = small(any_order=True, order=(1, 2, 0))
    plain = legal_rows((AGE, SMOKER), {}, seen=True)
    codes = [7, -1, 25]
    assert {len(encoding.response(codes, order)) for order in permutations(range(3))} == {encoding.longest}
    for order in permutations(range(3)):
        assert encoding.row(encoding.response(codes, order)).tolist() == codes
    prompt = encoding.prompt({2: 25})
    state = encoding.mask().start(prompt)
    assert encoding.mask().allowed([state]).nonzero().tolist() == [[0, 3]]  # "smoker comes next", and nothing else
    rows = {tuple(encoding.row(prompt + row).tolist()) for row in walk(encoding.mask(), prompt, 1)}
    assert rows == {(age, smoker, 25) for age, smoker in plain}


@settings(max_examples=30)
@given(encodings(), st.randoms(use_true_random=False))
def test_many_rows_at_once_are_the_same_tokens(encoding: Compact, random: Random) -> None:
    cells = [legal_cells(encoding, number) for number in range(len(encoding.columns))]
    codes = np.array([[random.choice(some) for some in cells] for _ in range(4)], dtype=np.int64)
    orders = [list(encoding.order) for _ in codes]
    if encoding.any_order:
        for order in orders:
            random.shuffle(order)
    found = encoding.sequences(codes, np.array(orders))
    for row, order, tokens in zip(codes.tolist(), orders, found.tolist(), strict=True):
        assert tuple(tokens) == encoding.prompt() + encoding.response(row, order)
        slots = encoding.slots_in(order)
        assert all(s.first <= t < s.first + s.count for s, t in zip(slots, tokens[1:-1], strict=True))


def test_slots_have_tokens_of_their_own() -> None:
    taken = [set(range(slot.first, slot.first + slot.count)) for slot in small().slots]
    assert set.union(*taken) == set(range(2, small().vocabulary))
    assert sum(map(len, taken)) == small().vocabulary - 2


def test_buckets_hold_about_equally_many_rows_and_all_points() -> None:
    draw = np.random.Generator(np.random.Philox(0))
    points = np.concatenate([np.round(draw.lognormal(8, 1, 9000)).astype(np.int64), np.full(1000, 40)])
    size = int(points.max()) + 500
    found = buckets(points, size)
    starts = [start for start, _ in found]
    assert 50 <= len(found) <= BUCKETS
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    ends = [*starts[1:], size]
    held = [int(((points >= start) & (points < end)).sum()) for start, end in zip(starts, ends, strict=True)]
    assert held[starts.index(40)] == int((points == 40).sum())
    assert starts[starts.index(40) + 1] == 41
    others = [count for start, count in zip(starts, held, strict=True) if start not in (0, 40, 41)]
    assert max(others) < 2.2 * np.mean(others)
    for (start, middle), end in zip(found, ends, strict=True):
        inside = points[(points >= start) & (points < end)]
        if len(inside):
            assert middle == np.sort(inside)[(len(inside) - 1) // 2]


@given(st.lists(st.integers(0, 30), max_size=300), st.integers(0, 3))
def test_there_are_never_more_buckets_than_allowed(points: list[int], more: int) -> None:
    size = max(points, default=0) + 1 + more
    starts = [start for start, _ in buckets(np.array(points, dtype=np.int64), size)]
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    assert len(starts) <= BUCKETS
    assert starts[-1] < size


@pytest.mark.parametrize("low", [0, -(10**6), 2**62 - 7])
def test_a_long_scale_is_written_in_buckets_and_digits(low: int) -> None:
    """Points up to 2^50 that no table of tokens could list; the last digits go in twos."""
    draw = np.random.Generator(np.random.Philox(1))
    points = np.unique(np.round(np.exp(draw.uniform(0, np.log(2.0**50), 3000))).astype(np.int64))
    column = Column("x", "integer", levels=("",), numbers=Numbers(low, 2**50 + 1, ()))
    encoding = Compact.of((column,), points[:, None])
    assert 10 <= encoding.longest <= 11
    assert encoding.vocabulary < 1100
    tokens = encoding.sequences(points[:, None])
    assert [encoding.row(row).item() for row in tokens[::50]] == points[::50].tolist()
    mask = encoding.mask({0: Legal(frozenset(), ((12345, 2**49),))})
    for point in (12345, 99_999, 2**49, 12344, 2**49 + 1, 2**50):
        assert accepts(mask, encoding.prompt(), encoding.response([point])) == (12345 <= point <= 2**49)


def test_a_column_whose_points_were_not_listed_is_cut_into_buckets_and_one_of_few_is_not() -> None:
    codes = np.arange(1500)[:, None]
    listed = Column("x", "integer", numbers=Numbers(0, 1500, tuple(range(1000))))
    assert Compact.of((listed,), codes).longest == 2
    for seen in ((), tuple(range(1500))):
        column = replace(listed, numbers=Numbers(0, 1500, seen))
        assert Compact.of((column,), codes).longest == 4


def test_sampled_rows_are_legal_and_their_probabilities_sum_to_one() -> None:
    encoding = small()
    narrower = {2: Legal(frozenset({-1}), ((8, 12), (100, 101)))}
    model = small_gpt2(vocab_size=encoding.vocabulary)
    mask, prompt = encoding.mask(narrower), encoding.prompt()
    exact = {row: masked_logprob(model, mask, prompt, row) for row in walk(mask, prompt, encoding.end_id)}
    assert len(exact) == 5 * 2 * 8
    assert sum(np.exp(list(exact.values()))) == pytest.approx(1, abs=1e-12)
    drawn = sample(
        model, [prompt], keys=["a"], end_id=encoding.end_id, max_new_tokens=encoding.longest, seed=0, samples=200,
        mask=mask,
    )  # fmt: skip
    for response in drawn:
        assert sum(response.logprobs) == pytest.approx(exact[response.tokens], abs=1e-5)
    assert unmasked_validity(encoding, [response.tokens for response in drawn]) == 1


def test_the_share_that_is_legal_without_a_mask() -> None:
    encoding = small()
    rows = [(13, 15, 25, 35, 5, 8, 1), (13, 15, 25, 35, 5, 8), (13, 15, 25, 35, 5, 1), (13, 15, 25, 35, 5, 5, 1), (1,)]
    assert unmasked_validity(encoding, rows) == 2 / 5
    taken = Compact((replace(WIDE, levels=("0",)),), (0,), False, (WIDE_BUCKETS,))  # its point 25 is written "0" too
    assert unmasked_validity(taken, [taken.response([-1]), taken.response([25]), taken.response([26])]) == 2 / 3
    with pytest.raises(ValueError, match="no rows"):
        unmasked_validity(encoding, [])


def test_a_row_without_columns_is_its_end() -> None:
    encoding = Compact.of((), np.zeros((5, 0), dtype=np.int64))
    assert (encoding.response([]), encoding.vocabulary, encoding.longest) == ((1,), 2, 1)
    assert encoding.row(encoding.response([])).tolist() == []
    assert list(walk(encoding.mask(), encoding.prompt(), 1)) == [(1,)]


def test_odd_names_and_values_are_nothing_special() -> None:
    encoding = Compact.of(odd_columns(), np.zeros((0, 10), dtype=np.int64))
    codes = [-len(column.levels) for column in encoding.columns]
    assert encoding.row(encoding.response(codes)).tolist() == codes


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        ((13, 15, 25, 35, 5), 'ends before "smoker", with 2 of 3 cells'),
        ((13, 15, 25), 'ends within "income", at token 3'),
        ((0, 5, 15, 25, 35, 5, 8), r'token 1 \(5\) is no value of "income"'),
        ((13, 15, 25, 25, 5, 8), r'token 3 \(25\) is no digit 3 of "income"'),
        ((14, 15, 25, 35, 5, 8), 'the digits of "income" from token 1 on lead out of the bucket of token 0'),
        ((9, 15, 25, 36, 5, 8), 'the digits of "income" from token 1 on lead out'),
        ((13, 15, 25, 35, 5, 8, 8), r"complete before token 6 \(8\)"),
        ((13, 15, 25, 35, 5, 8, 1, 1), r"complete before token 6 \(1\)"),
        ((13, 15, 25, 35, 5, 2, 1), r'token 5 \(2\) is no value of "smoker"'),
    ],
)
def test_tokens_that_are_no_row_are_refused_by_place(tokens: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small().row(tokens)


def test_columns_twice_or_unknown_are_refused_in_any_order() -> None:
    encoding = small(any_order=True)
    twice = (*encoding.prompt({1: -1}), *encoding.prompt({1: -1})[1:])
    with pytest.raises(ValueError, match=r"token 3 \(3\) names no column that is still to come"):
        encoding.row(twice)
    with pytest.raises(ValueError, match=r"token 0 \(9\) names no column"):
        encoding.row((9,))


def test_what_cannot_be_written_is_refused_by_name() -> None:
    encoding = small()
    with pytest.raises(ValueError, match='"24" of "age" is no point'):
        encoding.response([6, -1, 0])
    with pytest.raises(ValueError, match='-3 is no code of "smoker"'):
        encoding.response([7, -3, 0])
    with pytest.raises(ValueError, match='5 is no code of "smoker"'):
        encoding.response([7, 5, 0])
    with pytest.raises(
        ValueError, match='"age" can\'t be given: rows begin with "income"; make the encoding with any_'
    ):
        encoding.prompt({0: 7})
    with pytest.raises(ValueError, match="one order only"):
        encoding.response([7, -1, 0], (0, 1, 2))
    with pytest.raises(ValueError, match='nothing is left that "smoker" may be'):
        encoding.mask({1: Legal(frozenset({-3}))})
    with pytest.raises(ValueError, match='no training row holds a value of "age" that is asked for'):
        encoding.mask({0: Legal(frozenset(), ((1, 6),))})
    with pytest.raises(ValueError, match="each of 3 columns once"):
        small(order=(0, 1, 1))
    with pytest.raises(ValueError, match="goes on after its row, with token 7"):
        encoding.mask().start((*encoding.prompt({2: 0, 0: 7, 1: -1}), 5))
