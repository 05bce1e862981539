from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflab.data.records import Demonstration, PreferencePair, Prompt
from preflab.data.split import first_prompts, split_by_prompt, split_in_halves
from preflab.errors import ConfigError, DataError

SHARES = {"train": 0.8, "validation": 0.1, "test": 0.1}


def prompts(count: int, start: int = 0) -> list[Prompt]:
    return [Prompt(f"prompt {n}", f"generated:{n}") for n in range(start, start + count)]


def side_of(sides: dict[str, tuple[Prompt, ...]]) -> dict[str, str]:
    return {row.text: name for name, side in sides.items() for row in side}


@given(
    texts=st.lists(st.text(max_size=3), max_size=40),
    shares=st.lists(st.floats(0.1, 10), min_size=1, max_size=4),
    seed=st.integers(),
)
def test_every_row_stands_on_one_side_with_its_prompt(texts: list[str], shares: list[float], seed: int) -> None:
    # Further prompts, so that no side is empty.
    rows = [Prompt(text, f"drawn:{n}") for n, text in enumerate(texts)] + prompts(1000)
    sides = split_by_prompt(rows, {str(n): share for n, share in enumerate(shares)}, seed=seed)
    of_origin = {row.origin: name for name, side in sides.items() for row in side}
    of_prompt = side_of(sides)
    assert sum(map(len, sides.values())) == len(rows)
    for name, side in sides.items():
        assert list(side) == [row for row in rows if of_origin[row.origin] == name]
        assert all(of_prompt[row.text] == name for row in side)


def test_rows_that_come_and_go_move_no_other() -> None:
    rows = prompts(500)
    before = side_of(split_by_prompt(rows, SHARES, seed=3))
    more = rows[::2] + prompts(1000, start=500)
    random.Random(0).shuffle(more)
    after = side_of(split_by_prompt(more, SHARES, seed=3))
    assert all(after[row.text] == before[row.text] for row in rows[::2])


def test_the_sides_are_fixed_for_good() -> None:
    """Published splits must not change with a version of preflab or Python."""
    side = side_of(split_by_prompt(prompts(40), SHARES, seed=0))
    assert [n for n in range(40) if side[f"prompt {n}"] == "test"] == [9, 30, 31, 35]


@pytest.mark.parametrize("shares", [SHARES, {"train": 2000, "validation": 250, "test": 250}])
@pytest.mark.parametrize("seed", range(5))
def test_shares_are_met(shares: dict[str, float], seed: int) -> None:
    count = 5000
    sides = split_by_prompt(prompts(count), shares, seed=seed)
    for name, share in SHARES.items():
        deviation = math.sqrt(count * share * (1 - share))
        assert abs(len(sides[name]) - count * share) < 4 * deviation


def test_seeds_give_independent_splits() -> None:
    rows = prompts(4000)
    test = [{row.text for row in split_by_prompt(rows, {"train": 1, "test": 1}, seed=seed)["test"]} for seed in (0, 1)]
    assert abs(len(test[0] & test[1]) - 1000) < 4 * math.sqrt(4000 * 0.25 * 0.75)


def test_halves_and_draws_are_independent_of_a_split_with_the_same_seed() -> None:
    train = split_by_prompt(prompts(4000), {"train": 1, "test": 1}, seed=0)["train"]
    first, second = split_in_halves(train, seed=0)
    assert not {row.text for row in first} & {row.text for row in second}
    assert len(first) + len(second) == len(train)
    assert abs(len(first) - len(train) / 2) < 4 * math.sqrt(len(train) / 4)
    drawn = first_prompts(prompts(4000), 1000, seed=0)
    assert abs(len(set(drawn) & set(train)) - len(train) / 4) < 4 * math.sqrt(len(train) * 3 / 16)


def test_pairs_with_one_prompt_stay_together() -> None:
    pairs = [PreferencePair(f"prompt {n // 3}", f"c{n}", "r", f"generated:{n}") for n in range(600)]
    first, second = split_in_halves(pairs, seed=1)
    assert not {pair.prompt for pair in first} & {pair.prompt for pair in second}
    assert len(first_prompts(pairs, 10, seed=1)) == 30


def test_whole_texts_are_their_own_prompts() -> None:
    texts = [Demonstration("", f"text {n}", f"generated:{n}") for n in range(100)]
    assert all(split_in_halves(texts, seed=0))


def test_another_key() -> None:
    numbers = list(range(200))
    sides = split_by_prompt(numbers, {"a": 1, "b": 1}, seed=0, key=lambda n: str(n % 50))
    assert not {n % 50 for n in sides["a"]} & {n % 50 for n in sides["b"]}


def test_draws_keep_the_order_and_nest() -> None:
    rows = prompts(100)
    ten, twenty = first_prompts(rows, 10, seed=0), first_prompts(rows, 20, seed=0)
    assert len(ten) == 10
    assert set(ten) < set(twenty)
    assert list(ten) == sorted(ten, key=rows.index)
    assert first_prompts(rows, 1000, seed=0) == tuple(rows)


def test_an_empty_side_is_refused() -> None:
    with pytest.raises(
        DataError, match=r'the side "\w+" of the split by prompt is empty: 1 distinct prompts for 3 sides'
    ):
        split_by_prompt([Prompt("the same", f"x:{n}") for n in range(50)], SHARES, seed=0)
    with pytest.raises(
        DataError, match=r'the side "first half" .*is empty: 0 distinct prompts for 2 sides .*bring more'
    ):
        split_in_halves([], seed=0)


@pytest.mark.parametrize(
    "shares", [{}, {"train": 1.0, "test": 0.0}, {"train": -1}, {"train": math.nan}, {"a": math.inf}]
)
def test_shares_must_be_positive(shares: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"must be positive and finite"):
        split_by_prompt(prompts(10), shares, seed=0)
