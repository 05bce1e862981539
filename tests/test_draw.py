"""Rows drawn under conditions, and missing cells filled in: against the exact conditional distributions of tables whose
rows can all be listed."""

from __future__ import annotations

import copy
import math
from collections import Counter
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from preflab.rollouts.sampler import sample
from preflab.tables.compact import Compact
from preflab.tables.conditions import only, present
from preflab.tables.draw import MOST, draw_rows, effective_size, impute_rows, systematic, unmasked_share
from preflab.tables.encoding import Legal
from preflab.tables.synthesizer import shortage
from tables_by_hand import COLUMNS, ROWS, SIZE, Row, chances, distance, gpt2, p_value, under

COLOUR, SIZES, TASTE = 0, 1, 2
LARGE = Legal(spans=((2, 3),))
N = 1200


@cache
def fixed() -> tuple[Any, Compact]:
    encoding = Compact.of(COLUMNS, np.array(ROWS))
    return gpt2(encoding, spread=2.0), encoding


@cache
def free() -> tuple[Any, Compact]:
    encoding = Compact.of(COLUMNS, np.array(ROWS), any_order=True)
    return gpt2(encoding, spread=2.0), encoding


@cache
def rows_of(kind: str, **given: int) -> dict[Row, float]:
    model, encoding = fixed() if kind == "fixed" else free()
    return chances(model, encoding, {int(place): code for place, code in given.items()})


def test_without_conditions_rows_are_the_models() -> None:
    drawn = draw_rows(*fixed(), N, seed=0)
    assert drawn.codes.shape == (N, 3)
    assert drawn.effective is None
    assert p_value(drawn.codes, rows_of("fixed")) > 1e-3


def test_a_condition_on_the_first_column_is_exact_in_the_prompt() -> None:
    drawn = draw_rows(*fixed(), N, seed=1, legal={COLOUR: only(-2)})
    assert drawn.effective is None
    assert drawn.candidates == N
    assert p_value(drawn.codes, under(rows_of("fixed"), lambda row: row[COLOUR] == -2)) > 1e-3


def test_an_inequality_on_the_first_column_is_exact_under_the_mask_alone() -> None:
    encoding = Compact.of(COLUMNS, np.array(ROWS), order=[SIZES, COLOUR, TASTE])
    model = gpt2(encoding, spread=2.0, seed=3)
    drawn = draw_rows(model, encoding, N, seed=2, legal={SIZES: LARGE})
    assert drawn.effective is None
    assert drawn.candidates == N
    assert p_value(drawn.codes, under(chances(model, encoding), lambda row: row[SIZES] >= 2)) > 1e-3


@pytest.mark.parametrize(
    ("legal", "meets"),
    [
        ({SIZES: LARGE}, lambda row: row[SIZES] >= 2),
        ({TASTE: only(-1)}, lambda row: row[TASTE] == -1),
        ({SIZES: LARGE, TASTE: only(-2)}, lambda row: row[SIZES] >= 2 and row[TASTE] == -2),
        ({COLOUR: only(-1), TASTE: only(-2)}, lambda row: row[COLOUR] == -1 and row[TASTE] == -2),
    ],
)
def test_other_conditions_are_met_by_weighed_candidates(legal: dict[int, Legal], meets: Any) -> None:
    """Systematic resampling strays less from the distribution than independent draws would."""
    drawn = draw_rows(*fixed(), N, seed=4, legal=legal)
    expected = under(rows_of("fixed"), meets)
    assert len(drawn.codes) == N
    assert drawn.effective is not None
    assert drawn.candidates >= drawn.effective >= N
    assert drawn.enough
    assert drawn.repeats == 0
    assert p_value(drawn.codes, expected) > 1e-3


def test_the_narrowed_mask_alone_would_be_found_out() -> None:
    """By the same χ², on the same condition: the mask never asks which colours make a taste likely."""
    model, encoding = fixed()
    responses = sample(
        model, [encoding.prompt()] * N, keys=[f"row {row}" for row in range(N)], end_id=encoding.end_id,
        max_new_tokens=encoding.longest, seed=0, mask=encoding.mask({TASTE: only(-1)}),
    )  # fmt: skip
    codes = np.array([encoding.row(response.prompt + response.tokens) for response in responses])
    assert p_value(codes, under(rows_of("fixed"), lambda row: row[TASTE] == -1)) < 1e-9


def test_where_any_order_will_do_equalities_are_given_and_rows_exact() -> None:
    drawn = draw_rows(*free(), N, seed=5, legal={TASTE: only(-1), COLOUR: only(-3)})
    assert drawn.effective is None
    assert {(row[COLOUR], row[TASTE]) for row in drawn.codes.tolist()} == {(-3, -1)}
    given = rows_of("free", **{str(TASTE): -1, str(COLOUR): -3})
    assert distance(drawn.codes, given) < 0.03


def test_rows_are_determined_by_seed_and_number() -> None:
    model, encoding = fixed()
    some = draw_rows(model, encoding, 50, seed=7).codes
    assert np.array_equal(draw_rows(model, encoding, 80, seed=7, batch_size=9).codes[:50], some)
    assert not np.array_equal(draw_rows(model, encoding, 50, seed=8).codes, some)
    weighed = [draw_rows(model, encoding, 50, seed=7, legal={TASTE: only(-1)}, batch_size=size) for size in (7, 64)]
    assert np.array_equal(weighed[0].codes, weighed[1].codes)


@pytest.mark.parametrize("n", [0, 1, 5])
def test_few_rows_are_as_many_as_asked_for(n: int) -> None:
    for legal in ({}, {COLOUR: only(-1)}, {TASTE: only(-1)}):
        assert draw_rows(*fixed(), n, seed=0, legal=legal).codes.shape == (n, 3)


def test_a_single_row_is_not_the_narrowed_masks_first_candidate() -> None:
    """One row a seed, many seeds: they too have the conditional distribution."""
    codes = np.concatenate([draw_rows(*fixed(), 1, seed=seed, legal={TASTE: only(-1)}).codes for seed in range(60)])
    red = under(rows_of("fixed"), lambda row: row[TASTE] == -1)
    for colour in (-1, -2, -3):
        p = sum(chance for row, chance in red.items() if row[COLOUR] == colour)
        assert abs((codes[:, COLOUR] == colour).mean() - p) < 4 * math.sqrt(p * (1 - p) / 60) + 1 / 64


def test_a_rare_condition_ends_at_the_limit_and_says_so() -> None:
    """A model whose last column hangs on the first alone, and which is sure of it."""
    encoding = Compact.of(COLUMNS, np.array(ROWS))
    model = gpt2(encoding, spread=8.0, seed=30)
    drawn = draw_rows(model, encoding, 100, seed=0, legal={TASTE: only(-1)})
    assert not drawn.enough
    assert drawn.candidates == MOST * 100
    assert drawn.repeats > 0
    assert drawn.effective is not None
    assert drawn.effective < 100
    said = shortage(drawn)
    assert said is not None
    assert f"{drawn.repeats} of 100 rows repeat another" in said


def test_systematic_resampling_takes_each_place_its_share_rounded_up_or_down() -> None:
    weights = np.random.default_rng(0).random(40) ** 3
    taken = Counter(systematic(weights, 100, seed=0))
    for place, share in enumerate(100 * weights / weights.sum()):
        assert math.floor(share) <= taken[place] <= math.ceil(share)


def test_the_effective_size_is_that_of_equal_weights() -> None:
    assert effective_size(np.full(7, 0.3)) == pytest.approx(7)
    assert effective_size(np.array([1.0, 1e-9])) == pytest.approx(1)


def test_unmasked_samples_are_counted_by_what_the_mask_allows() -> None:
    """Against the model's own softmax over all tokens: the probability that it writes a legal row."""
    encoding = Compact.of(COLUMNS[::2], np.array(ROWS)[:, ::2])
    model = gpt2(encoding, spread=0.3)
    wide = copy.deepcopy(model).double()
    legal = 0.0
    for row in {(a, c) for a, _, c in ROWS}:
        tokens = encoding.prompt() + encoding.response(row)
        with torch.no_grad():
            logprobs = wide(torch.tensor([tokens])).logits[0].log_softmax(-1)
        legal += math.exp(sum(float(logprobs[place, token]) for place, token in enumerate(tokens[1:])))
    share = unmasked_share(model, encoding, 2000, seed=0)
    assert 0.005 < legal < 0.5
    assert abs(share - legal) < 4 * math.sqrt(legal / 2000)


MISSING = SIZE.code("")
LEGAL = {place: present(column) for place, column in enumerate(COLUMNS)}


def cells(codes: list[Row], *unknown: int) -> tuple[Any, Any]:
    blank = np.zeros((len(codes), 3), dtype=bool)
    blank[:, list(unknown)] = True
    return np.array(codes), blank


@pytest.mark.parametrize("candidates", [100, 2])
@pytest.mark.parametrize("unknown", [(COLOUR,), (SIZES,), (TASTE,), (COLOUR, SIZES)])
def test_a_missing_cell_is_drawn_given_all_others(unknown: tuple[int, ...], candidates: int) -> None:
    """Of many equal rows; by scores (100: there are fewer values), and by two candidates weighed, which strays."""
    model, encoding = fixed()
    row = (-2, 1, -1)
    codes, blank = cells([row] * (400 if candidates == 100 else 8), *unknown)
    found = impute_rows(model, encoding, codes, blank, seed=0, legal=LEGAL, candidates=candidates)
    kept = [place for place in range(3) if place not in unknown]
    assert np.array_equal(found.codes[:, kept], codes[:, kept])
    meets = lambda one: all(one[place] == row[place] for place in kept) and one[SIZES] != MISSING  # noqa: E731
    expected = under(rows_of("fixed"), meets)
    scored = candidates == 100
    assert bool(found.effective) == (not scored and unknown != (TASTE,))
    if scored:
        assert distance(found.codes, expected) < 0.08


def test_weighed_candidates_come_near_the_distribution_given_the_known_cells() -> None:
    model, encoding = fixed()
    codes, blank = cells([(-2, 1, -1)] * 60, COLOUR, SIZES)
    found = impute_rows(model, encoding, codes, blank, seed=0, legal=LEGAL, candidates=14)
    assert len(found.effective) == 60
    assert all(1 <= size <= 14.001 for size in found.effective)
    assert distance(found.codes, under(rows_of("fixed"), lambda row: row[TASTE] == -1 and row[SIZES] != MISSING)) < 0.25


def test_where_any_order_will_do_missing_cells_are_exact() -> None:
    model, encoding = free()
    codes, blank = cells([(-2, 1, -1)] * 600, COLOUR)
    sampled = impute_rows(model, encoding, codes, blank, seed=0, legal=LEGAL, candidates=1)
    scored = impute_rows(model, encoding, codes, blank, seed=0, legal=LEGAL)
    expected = rows_of("free", **{str(SIZES): 1, str(TASTE): -1})
    assert not sampled.effective
    assert distance(sampled.codes, expected) < 0.06
    assert distance(scored.codes, expected) < 0.06


def test_rows_without_missing_cells_stay_and_rows_do_not_depend_on_their_mates() -> None:
    model, encoding = fixed()
    codes, blank = cells([(-1, 0, -1), (-2, 1, -1), (-3, 2, -2)], COLOUR, SIZES)
    blank[0] = False
    together = impute_rows(model, encoding, codes, blank, seed=3, legal=LEGAL, candidates=8).codes
    assert np.array_equal(together[0], codes[0])
    blank[1] = False
    alone = impute_rows(model, encoding, codes, blank, seed=3, legal=LEGAL, candidates=8).codes
    assert np.array_equal(together[2], alone[2])
