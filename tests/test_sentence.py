"""Rows as sentences: they round-trip whatever stands in them, and the mask allows exactly the legal ones."""

from __future__ import annotations

import json
import os
from collections import Counter
from datetime import date, timedelta
from itertools import permutations, product
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from held_up import small_gpt2
from preflab.errors import ConfigError
from preflab.models.base import new_tokenizer
from preflab.rollouts.sampler import sample
from preflab.rollouts.trie import Node
from preflab.tables.column import Column, Numbers
from preflab.tables.encoding import Legal, unmasked_validity
from preflab.tables.sentence import Sentence
from preflab.tables.spelling import spelled, stretches
from small_tables import Trimmed, accepts, columns, legal_codes, odd_columns, round_trips, small_tokenizer, walk
from test_trie import masked_logprob

AGE = Column("age", "integer", levels=("", "-9"), missing=("",), numbers=Numbers(18, 23, ()))
CITY = Column("a is b", "category", levels=("a", "a, b", '"a"', "line\nbreak"))
INCOME = Column("income", "decimal", levels=("-9",), numbers=Trimmed(-2000, 9000, ()))


def small(**more: Any) -> Sentence:
    """Of three columns; incomes −20 … 69.99 are written character by character."""
    return Sentence((AGE, CITY, INCOME), small_tokenizer(), **({"order": (2, 0, 1)} | more))


@st.composite
def encodings(draw: Any, most: int = 4, longest: int = 30) -> Sentence:
    some = draw(st.lists(columns(longest=longest), min_size=1, max_size=most, unique_by=lambda column: column.name))
    order = draw(st.permutations(range(len(some))))
    return Sentence(some, small_tokenizer(), order=order, any_order=draw(st.booleans()))


def test_a_row_reads_like_a_sentence() -> None:
    encoding = small()
    row = encoding.prompt() + encoding.response([4, -1, 2125])
    assert encoding.text_of(row) == 'income is 1.25, age is 22, "a is b" is a'
    assert encoding.text_of(encoding.response([-1, -2, -1])) == 'income is -9, age is "", "a is b" is "a, b"'
    assert encoding.text_of(encoding.response([-1, -3, -1])) == 'income is -9, age is "", "a is b" is """a"""'
    assert (row[0], row[-1]) == (encoding.start_id, encoding.end_id)
    assert encoding.text_of(encoding.prompt({2: 0, 0: 0})) == "income is -20, age is 18,"


@settings(max_examples=30)
@given(encodings(), st.randoms(use_true_random=False))
def test_rows_round_trip_and_the_mask_accepts_them(encoding: Sentence, random: Random) -> None:
    mask = encoding.mask()
    for _ in range(3):
        codes = [random.choice(legal_codes(column)) for column in encoding.columns]
        round_trips(encoding, mask, codes, random)


@settings(max_examples=25)
@given(encodings(most=2, longest=12), st.data())
def test_the_mask_allows_exactly_the_legal_rows(encoding: Sentence, data: Any) -> None:
    narrower = {}
    for number in data.draw(st.sets(st.integers(0, len(encoding.columns) - 1))):
        kept = data.draw(st.sets(st.sampled_from(legal_codes(encoding.columns[number])), min_size=1, max_size=8))
        points = sorted(code for code in kept if code >= 0)
        narrower[number] = Legal(frozenset(code for code in kept if code < 0), tuple((p, p) for p in points))
    cells = [legal_codes(column, narrower.get(number)) for number, column in enumerate(encoding.columns)]
    rows = walk(encoding.mask(narrower), encoding.prompt(), encoding.end_id)
    assert Counter(tuple(encoding.row(row).tolist()) for row in rows) == Counter(product(*cells))


def test_odd_names_and_values_round_trip_in_every_order() -> None:
    """Names that begin with each other, hold " is " or are nothing; values that hold commas, quotes, whole clauses."""
    encoding = Sentence(odd_columns(), small_tokenizer(), any_order=True)
    random = Random(0)
    mask, seen = encoding.mask(), {}
    for _ in range(300):
        codes = [-random.randint(1, len(column.levels)) for column in encoding.columns]
        order = random.sample(range(10), 10)
        tokens = encoding.prompt() + encoding.response(codes, order)
        assert encoding.row(tokens).tolist() == codes
        assert seen.setdefault(tokens, (codes, order)) == (codes, order)
        text = encoding.text_of(tokens)
        assert seen.setdefault(text, (codes, order)) == (codes, order)
        assert len(tokens) <= encoding.longest + 1
    assert accepts(mask, encoding.prompt(), encoding.response(codes))


@pytest.mark.parametrize("any_order", [False, True])
def test_a_sentence_within_a_value_is_a_value(any_order: bool) -> None:
    """ "x is a, c is d, c is d" would be two rows, but for the quotes."""
    first = Column("x", "category", levels=("a", "a, c is d"))
    second = Column("c", "category", levels=("d", "d, c is d"))
    encoding = Sentence((first, second), small_tokenizer(), any_order=any_order)
    rows = {encoding.response(codes): codes for codes in product((-1, -2), repeat=2)}
    assert len(rows) == 4
    assert {tuple(encoding.row(tokens).tolist()) for tokens in rows} == set(rows.values())
    assert set(walk(encoding.mask(), encoding.prompt(), encoding.end_id)) == set(rows)


def test_any_order_is_read_and_the_mask_forces_the_next_name() -> None:
    encoding = small(any_order=True)
    codes = [4, -2, 2125]
    for order in permutations(range(3)):
        assert encoding.row(encoding.response(codes, order)).tolist() == codes
    for given_cells in ({0: 4}, {1: -2}, {1: -2, 0: 4}, {0: 4, 1: -2}):
        prompt = encoding.prompt(given_cells)
        mask = encoding.mask({2: Legal(frozenset({-1}), ((2120, 2125),)), 0: Legal(frozenset({-2}), ((4, 4),))})
        rows = [encoding.row(prompt + row).tolist() for row in walk(mask, prompt, encoding.end_id)]
        incomes, ages = {-1, *range(2120, 2126)}, {4} if 0 in given_cells else {-2, 4}
        cities = {-2} if 1 in given_cells else {-1, -2, -3, -4}
        assert {tuple(row) for row in rows} == set(product(ages, cities, incomes))
        assert len(rows) == len(ages) * len(cities) * len(incomes)
    whole = encoding.prompt({1: -2, 0: 4, 2: 5})
    assert list(walk(encoding.mask(), whole, encoding.end_id)) == [(encoding.end_id,)]


def dates(point: int) -> str:
    return (date(1999, 12, 1) + timedelta(point)).isoformat()


def two_decimals(point: int) -> str:
    return f"{(point - 1500) / 100:.2f}"


@pytest.mark.parametrize(
    "text",
    [
        lambda point: str(point - 1500),
        lambda point: str(point + 10**18 - 700),
        Trimmed(-1500, 3000, ()).text,
        Trimmed(-12, 3000, (), places=4).text,
        two_decimals,
        dates,
        lambda point: date.fromisoformat(dates(point)).strftime("%d.%m.%Y"),  # no order: sorted
        lambda point: repr((point - 1500) / 10**6),  # 1e-06
    ],
)
def test_characters_spell_exactly_the_points_of_some_spans(text: Any) -> None:
    parts = stretches(text, 3000)
    assert parts is not None
    assert sorted(point for part in parts for point in part) == list(range(3000))
    for spans in ([(0, 2999)], [(1490, 1512)], [(7, 7), (300, 1499), (2000, 2001)], []):
        root = spelled(text, parts, spans, lambda c: (ord(c), 0), lambda c: (ord(c), ord(c)))
        found: dict[str, int | None] = {}
        waiting: list[tuple[tuple[int, ...], Node]] = [((), root)]
        while waiting:
            tokens, node = waiting.pop()
            if node.value is not None:
                found["".join(map(chr, tokens[::2]))] = node.value
            assert node.value is not None or node.children or not spans, "a dead end"
            waiting += [((*tokens, token), child) for token, child in node.children.items()]
        assert found == {text(point): point for low, high in spans for point in range(low, high + 1)}


def test_scales_too_long_to_sort_have_an_order_or_are_refused_one() -> None:
    size = 10**15
    parts = stretches(lambda point: str(point - 5 * 10**14), size)
    assert parts is not None
    assert len(parts) == 30
    assert stretches(lambda point: str(point)[::-1], size) is None
    assert stretches(lambda point: repr(point / 10**9), size) is None


class Floats(Trimmed):
    """As Python writes them: 1e-06."""

    def text(self, point: int) -> str:
        return repr((self.low + point) / 10**6)

    def point(self, text: str) -> int:
        return round(float(text) * 10**6) - self.low


def test_a_long_scale_whose_texts_have_no_order_is_written_without_exponents() -> None:
    column = Column("x", "decimal", levels=("7", "n/a"), numbers=Floats(-(10**9), 2 * 10**9, ()))
    encoding = Sentence((column,), small_tokenizer())
    texts = [encoding.text_of(encoding.response([code])) for code in (0, 10**9 + 3, -1, -2)]
    assert texts == ["x is -1000000000", "x is 3", 'x is "7"', "x is n/a"]
    mask = encoding.mask({0: Legal(frozenset({-1}), ((10**9 - 3, 10**9 + 3),))})
    rows = [int(encoding.row(row)[0]) for row in walk(mask, encoding.prompt(), encoding.end_id)]
    assert sorted(rows) == [-1, *range(10**9 - 3, 10**9 + 4)]


def test_levels_and_points_that_begin_alike_are_told_apart() -> None:
    """-9 is a level, -9.5 a point, and -9.00 is no cell of its own."""
    encoding = small()
    assert encoding.row(encoding.response([0, -1, -1])).tolist() == [0, -1, -1]
    assert encoding.row(encoding.response([0, -1, 1050])).tolist() == [0, -1, 1050]
    assert encoding.text_of(encoding.response([0, -1, 1050])).startswith("income is -9.5,")
    with pytest.raises(ValueError, match='1100 is no code of "income"'):
        encoding.response([0, -1, 1100])
    mask = encoding.mask(
        {2: Legal(frozenset({-1}), ((1095, 1105),)), 0: Legal(frozenset({-1})), 1: Legal(frozenset({-1}))}
    )
    rows = [int(encoding.row(row)[2]) for row in walk(mask, encoding.prompt(), encoding.end_id)]
    assert sorted(rows) == [-1, *(point for point in range(1095, 1106) if point != 1100)]


def test_sampled_rows_are_legal_and_their_probabilities_sum_to_one() -> None:
    encoding = small()
    narrower = {
        2: Legal(frozenset({-1}), ((2090, 2101),)),
        0: Legal(frozenset({-1}), ((3, 5),)),
        1: Legal(frozenset({-2, -1})),
    }
    model = small_gpt2(vocab_size=encoding.vocabulary, n_positions=96)
    mask, prompt = encoding.mask(narrower), encoding.prompt()
    exact = {row: masked_logprob(model, mask, prompt, row) for row in walk(mask, prompt, encoding.end_id)}
    assert len(exact) == 13 * 4 * 2
    assert sum(np.exp(list(exact.values()))) == pytest.approx(1, abs=1e-12)
    drawn = sample(
        model, [prompt], keys=["a"], end_id=encoding.end_id, max_new_tokens=encoding.longest, seed=0, samples=100,
        mask=mask,
    )  # fmt: skip
    for response in drawn:
        assert response.ended
        assert sum(response.logprobs) == pytest.approx(exact[response.tokens], abs=1e-5)


def test_rows_of_a_random_model_are_legal_in_any_order_with_given_cells() -> None:
    encoding = small(any_order=True)
    model = small_gpt2(vocab_size=encoding.vocabulary, n_positions=2 * encoding.longest)
    prompts = [encoding.prompt(), encoding.prompt({1: -2}), encoding.prompt({0: 3, 2: 77})]
    options: dict[str, Any] = {
        "keys": ["a", "b", "c"], "end_id": encoding.end_id, "max_new_tokens": encoding.longest, "seed": 1, "samples": 16
    }  # fmt: skip
    drawn = sample(model, prompts, mask=encoding.mask(), **options)
    rows = [response.prompt + response.tokens for response in drawn]
    assert unmasked_validity(encoding, rows) == 1
    assert {int(encoding.row(row)[1]) for row in rows[16:32]} == {-2}
    assert {tuple(encoding.row(row)[[0, 2]].tolist()) for row in rows[32:]} == {(3, 77)}
    free = sample(model, prompts, **options)
    assert unmasked_validity(encoding, [response.prompt + response.tokens for response in free]) == 0


def test_one_token_may_begin_and_end_a_row_as_gpt2_has_it() -> None:
    tokenizer = new_tokenizer(["age is 22, income is -9"], vocabulary=300)
    tokenizer.bos_token = tokenizer.eos_token
    encoding = Sentence((AGE, CITY, INCOME), tokenizer)
    assert encoding.start_id == encoding.end_id
    row = encoding.response([4, -2, 2125])
    for tokens in (row, row[:-1], encoding.prompt() + row):
        assert encoding.row(tokens).tolist() == [4, -2, 2125]
    prompt = encoding.prompt({0: 4})
    assert accepts(encoding.mask(), prompt, encoding.response([4, -2, 2125], given=1))
    assert unmasked_validity(encoding, [(encoding.end_id,), row]) == 1 / 2


def test_a_row_without_columns_is_its_end() -> None:
    encoding = Sentence((), small_tokenizer())
    assert encoding.response([]) == (encoding.end_id,)
    assert encoding.longest == 1
    assert list(walk(encoding.mask(), encoding.prompt(), encoding.end_id)) == [(encoding.end_id,)]


def test_settings_make_the_same_encoding_again() -> None:
    encoding = small(any_order=True, vocabulary=512)
    again = Sentence.restored(encoding.columns, json.loads(json.dumps(encoding.settings())), small_tokenizer())
    assert again.response([4, -2, 2125], (1, 0, 2)) == encoding.response([4, -2, 2125], (1, 0, 2))
    assert (again.order, again.any_order, again.vocabulary) == (encoding.order, True, 512)
    assert again.mask().allowed([again.mask().start(again.prompt())]).shape == (1, 512)


def test_words_that_look_like_special_tokens_are_text() -> None:
    column = Column("<|end|>", "category", levels=("<|end|>", "<|start|>", "<|pad|>"))
    encoding = Sentence((column,), small_tokenizer())
    for code in (-1, -2, -3):
        response = encoding.response([code])
        assert response.index(encoding.end_id) == len(response) - 1
        assert encoding.row(response).tolist() == [code]
        assert encoding.text_of(response) == f"<|end|> is {column.levels[-1 - code]}"


def test_what_cannot_be_written_is_refused_by_name() -> None:
    encoding = small()
    codes = [4, -1, 2125]
    row = encoding.response(codes)
    name = len(encoding.names[2])
    with pytest.raises(ValueError, match='the tokens from 0 on are not the name "income"'):
        encoding.row(row[1:])
    with pytest.raises(ValueError, match=f'the tokens from {name} on are no value of "income"'):
        encoding.row((*row[:name], *encoding.names[0]))
    with pytest.raises(ValueError, match='ends before "age", with 1 of 3 cells'):
        encoding.row(encoding.prompt({2: 2125}))
    with pytest.raises(ValueError, match=f"complete before token {len(row) - 1} "):
        encoding.row((*row[:-1], *encoding.comma))
    with pytest.raises(ValueError, match='99 is no code of "age"'):
        encoding.response([99, -1, 0])
    with pytest.raises(ValueError, match='"age" can\'t be given: rows begin with "income"'):
        encoding.prompt({0: 1})
    with pytest.raises(ValueError, match="one order only"):
        encoding.response(codes, (0, 1, 2))
    with pytest.raises(ValueError, match='nothing is left that "age" may be'):
        encoding.mask({0: Legal(frozenset(), ((23, 99),))})
    with pytest.raises(ValueError, match="doesn't end behind a clause and its comma"):
        encoding.mask().start(encoding.prompt({2: 2125})[:-1])
    with pytest.raises(ValueError, match="each of 3 columns once"):
        small(order=(0, 1))
    named = small(any_order=True)
    twice = (*named.prompt({0: 1}), *named.prompt({0: 2})[1:])
    with pytest.raises(ValueError, match="name no column that is still to come"):
        named.row(twice)
    with pytest.raises(ConfigError, match="same name"):
        Sentence((AGE, AGE), small_tokenizer())


def test_a_tokenizer_without_ends_or_that_loses_text_is_refused() -> None:
    for missing in ("bos_token", "eos_token"):
        tokenizer = new_tokenizer(["a is b"], vocabulary=300)
        setattr(tokenizer, missing, None)
        with pytest.raises(ConfigError, match=r"set tokenizer\.bos_token and tokenizer\.eos_token"):
            Sentence((AGE,), tokenizer)
    tokenizer = new_tokenizer(["a is b"], vocabulary=300)
    from tokenizers.normalizers import Lowercase

    tokenizer.backend_tokenizer.normalizer = Lowercase()
    with pytest.raises(ConfigError, match='gives back " ann" for " Ann"; take another'):
        Sentence((Column("name", "category", levels=("Ann", "ann")),), tokenizer)


def test_masks_over_a_large_vocabulary_are_rows_of_few_tokens() -> None:
    encoding = small(vocabulary=50_257)
    mask = encoding.mask()
    states = [mask.start(encoding.prompt({2: 2125})), mask.start(encoding.prompt())] * 32
    allowed = mask.allowed(states)
    assert allowed.shape == (64, 50_257)
    assert allowed.dtype == torch.bool
    assert allowed.sum(1).tolist() == [1] * 64


def test_heloc_as_sentences() -> None:
    """All of its rows, with a tokenizer trained on a few hundred of them."""
    folder = os.environ.get("PREFLAB_DATA")
    if not folder or not Path(folder, "heloc.csv").exists():
        pytest.skip("needs real data: set PREFLAB_DATA to the folder with heloc.csv")
    import pandas as pd

    frame = pd.read_csv(Path(folder, "heloc.csv"), dtype=str, keep_default_na=False)
    found = []
    for name in frame.columns:
        cells = sorted(set(frame[name]))
        levels = tuple(cell for cell in cells if cell in ("-7", "-8", "-9", "Bad", "Good"))
        numbers = sorted(int(cell) for cell in cells if cell not in levels)
        scale = Numbers(numbers[0], numbers[-1] - numbers[0] + 1, ()) if numbers else None
        found.append(Column(name, "integer", levels=levels, numbers=scale))
    sentences = [", ".join(f"{n} is {v}" for n, v in row.items()) for row in frame[:300].to_dict("records")]
    encoding = Sentence(found, new_tokenizer(sentences, vocabulary=1000))
    mask, codes = encoding.mask(), []
    for row in frame[::40].itertuples(index=False):
        codes.append([column.code(cell) for column, cell in zip(found, row, strict=True)])
        tokens = encoding.response(codes[-1])
        assert len(tokens) <= encoding.longest
        assert encoding.row(tokens).tolist() == codes[-1]
        assert encoding.text_of(tokens) == ", ".join(f"{n} is {v}" for n, v in zip(frame.columns, row, strict=True))
    assert all(accepts(mask, encoding.prompt(), encoding.response(row)) for row in codes[:5])
