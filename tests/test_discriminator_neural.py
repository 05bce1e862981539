"""Neural discriminators: what each level may look at, and that its logits approach log density ratios."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from preflab.config.alignment import Discriminators
from preflab.errors import NumericError, StorageError
from preflab.tables.column import Column, Numbers
from preflab.tables.compact import Compact
from preflab.tables.discriminators.level import LEVELS, Level, of_rows
from preflab.tables.discriminators.neural import Encoder, fit_encoder, load_encoder
from preflab.tables.discriminators.reading import cells, response, vocabulary
from preflab.tables.sentence import Sentence
from small_tables import small_tokenizer

A = Column("a", "category", levels=("x", "y", "z"))
B = Column("b", "integer", levels=("",), missing=("",), numbers=Numbers(7, 4, (0, 1, 3)))
C = Column("c is", "category", levels=("n", "m, n"))
WIDE = Column("wide", "integer", levels=("?",), numbers=Numbers(-25, 200, ()))
ABC = list(product((-1, -2, -3), (-1, 0, 1, 3), (-1, -2)))
TINY = Discriminators(width=8, epochs=4, encoder_batch=32, encoder_rate=0.01)
SMALL = Discriminators(width=16, epochs=12, patience=12, encoder_batch=256, encoder_rate=0.01, encoder_dropout=0.0)


def compact(**more: Any) -> Compact:
    """Rows of `ABC`, written as c, a, b."""
    return Compact((A, B, C), (2, 0, 1), more.get("any_order", False), ((), (), ()))


def sentence() -> Sentence:
    return Sentence((A, B, C), small_tokenizer(), order=(2, 0, 1))


ENCODINGS = {"compact": compact(), "any order": compact(any_order=True), "sentence": sentence()}


def chances(seed: int) -> np.ndarray:
    """Of each row of `ABC`."""
    return np.random.default_rng(seed).dirichlet(np.full(len(ABC), 3.0))


def rows(chance: np.ndarray, count: int, seed: int) -> np.ndarray:
    return np.array(ABC)[np.random.default_rng(seed).choice(len(ABC), size=count, p=chance)]


def columns_of(level: Level) -> tuple[int, ...] | None:
    return (0, 2) if level == "feature" else None


@cache
def fitted(level: Level, encoding: str, settings: Discriminators = TINY) -> Encoder:
    """Rows of two different chances told apart."""
    real, written = rows(chances(1), 300, 2), rows(chances(3), 500, 4)
    return fit_encoder(ENCODINGS[encoding], real, written, level, columns_of(level), settings, seed=0)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_what_is_read_are_the_tokens_of_the_response(encoding: str) -> None:
    one = ENCODINGS[encoding]
    table = np.array(ABC)
    read = response(one, table)
    for codes, tokens, length in zip(ABC, read.tokens.tolist(), read.lengths, strict=True):
        assert tuple(tokens[:length]) == one.response(codes)
    assert set(read.tokens[read.holds].tolist()) <= set(vocabulary(one).tolist())
    assert list(dict.fromkeys(read.columns[0].tolist())) == [2, 0, 1, 3]


def test_digits_are_read_with_their_bucket() -> None:
    encoding = Compact((WIDE,), (0,), False, (((0, 2), (10, 10), (11, 20), (21, 70), (180, 190)),))
    codes = np.array([-1, 5, 199])
    assert cells(encoding, 0, codes).tokens.tolist() == [list(encoding.response([code])[:-1]) for code in codes]


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("level", LEVELS)
def test_every_cell_it_may_read_moves_the_score_of_the_row_and_no_other_does(level: Level, encoding: str) -> None:
    """Pooled at position 0, or cut before the end, a score would not know of later cells; a feature's knows its own
    columns alone."""
    encoder = fitted(level, encoding)
    row = [-1, 1, -1]
    scores = []
    for column, code in ((0, -3), (1, 3), (2, -2)):
        changed = [code if place == column else old for place, old in enumerate(row)]
        before, after = of_rows(level, encoder.logits(np.array([row, changed])))
        scores.append(abs(before - after) > 1e-5)
    assert scores == [True, level != "feature", True]


@pytest.mark.parametrize("encoding", ["compact", "sentence"])
def test_what_is_said_after_a_token_knows_nothing_of_later_ones(encoding: str) -> None:
    encoder, one = fitted("token", encoding), ENCODINGS[encoding]
    first, second = [-1, 0, -1], [-1, 3, -1]
    tokens = [one.response(row) for row in (first, second)]
    shared = next(n for n, (x, y) in enumerate(zip(*tokens, strict=False)) if x != y)
    a, b = encoder.logits(np.array([first, second]))
    assert 0 < shared < len(tokens[0]) - 1
    assert np.allclose(a[:shared], b[:shared], atol=1e-6)
    assert (np.abs(a[shared:] - b[shared:]) > 1e-6).all()
    assert a.shape == (one.longest,)
    assert set(a[len(tokens[0]) - 1 :]) == {a[-1]}


@pytest.mark.parametrize("encoding", ["compact", "sentence"])
def test_what_is_said_of_a_cell_knows_nothing_of_the_others(encoding: str) -> None:
    """Places stand in the order in which cells are written: c, a, b."""
    encoder = fitted("sentence", encoding)
    row, other = [-1, 0, -2], [-3, 0, -1]
    a, b = encoder.logits(np.array([row, other]))
    assert a.shape == (3,)
    assert a[2] == pytest.approx(b[2], abs=1e-6)
    assert (np.abs(a - b)[:2] > 1e-5).all()


@pytest.mark.parametrize("level", LEVELS)
def test_a_row_scores_the_same_twice_and_in_any_company(level: Level) -> None:
    encoder = fitted(level, "sentence", replace(TINY, encoder_dropout=0.5))
    table = np.array(ABC)
    whole = encoder.logits(table)
    assert (whole == encoder.logits(table)).all()
    assert np.ptp(whole) > 1e-3
    for row, said in zip(ABC[::5], whole[::5], strict=True):
        assert np.allclose(encoder.logits(np.array([row])), said, atol=1e-5)


@pytest.mark.parametrize("level", LEVELS)
def test_the_order_of_rows_and_the_global_generator_change_nothing(level: Level) -> None:
    real, written = rows(chances(1), 150, 2), rows(chances(3), 150, 4)
    weights = np.random.default_rng(0).random(150) + 0.5

    def fit(real: np.ndarray, written: np.ndarray, weights: np.ndarray, seed: int = 0) -> np.ndarray:
        encoder = fit_encoder(
            ENCODINGS["compact"], real, written, level, columns_of(level), TINY, seed=seed, weights=weights
        )
        return encoder.logits(np.array(ABC))

    torch.manual_seed(1)
    state = torch.get_rng_state()
    once = fit(real, written, weights)
    assert torch.equal(state, torch.get_rng_state())
    torch.manual_seed(2)
    back = fit(real[::-1], written[::-1], 3 * weights[::-1])
    assert np.allclose(once, back, atol=1e-5)
    assert np.abs(once - fit(real, written, weights, seed=1)).max() > 1e-4


def likelihood(chance: np.ndarray, columns: tuple[int, ...]) -> np.ndarray:
    """Of each row of `ABC`, how likely what it says in some columns is: by adding up all rows that say the same."""
    said = [tuple(row[column] for column in columns) for row in ABC]
    return np.array([sum(p for p, other in zip(chance, said, strict=True) if other == one) for one in said])


def exact(level: Level, p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """log p/q of what stands at each place and, at token level, before it, in the order c, a, b, end."""
    places: dict[Level, list[tuple[int, ...]]] = {
        "token": [(2,), (2, 0), (2, 0, 1), (2, 0, 1)],
        "sentence": [(2,), (0,), (1,)],
        "row": [(0, 1, 2)],
        "feature": [(0, 2)],
    }
    return np.stack([np.log(likelihood(p, some) / likelihood(q, some)) for some in places[level]], 1)


def counted(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows, and their chances: each row of `ABC` as often as its chance has it, so that nothing is left to luck."""
    counts = np.round(3000 * chances(seed)).astype(int) + 1
    return np.repeat(np.array(ABC), counts, axis=0), counts / counts.sum()


@pytest.mark.parametrize("level", LEVELS)
def test_logits_approach_the_log_density_ratio_of_what_the_level_reads(level: Level) -> None:
    (real, p), (written, q) = counted(1), counted(3)
    encoder = fit_encoder(ENCODINGS["compact"], real, written, level, columns_of(level), SMALL, seed=0)
    found, ratio = encoder.logits(np.array(ABC)), exact(level, p, q)
    assert found.shape == ratio.shape
    assert np.abs(ratio).max() > 0.25
    error = np.sqrt((((found - ratio) ** 2).mean(1) * (p + q) / 2).sum())
    assert error < 0.25 * ratio.std() + 0.02


def test_sentences_are_told_apart_like_compact_rows() -> None:
    (real, p), (written, q) = counted(1), counted(3)
    settings = replace(SMALL, encoder_batch=128, epochs=8)
    encoder = fit_encoder(ENCODINGS["sentence"], real, written, "row", None, settings, seed=0)
    found, ratio = encoder.logits(np.array(ABC))[:, 0], exact("row", p, q)[:, 0]
    assert np.corrcoef(found, ratio)[0, 1] > 0.75
    assert np.sqrt(((found - ratio) ** 2 * (p + q) / 2).sum()) < 0.6 * ratio.std()


def test_weights_make_older_rows_count_as_rows_of_the_policy() -> None:
    """Written by another policy, weighted by q / that policy's chance."""
    (real, p), (older, then), (_, q) = counted(1), counted(5), counted(3)
    key = {row: n for n, row in enumerate(ABC)}
    which = np.array([key[tuple(row)] for row in older.tolist()])
    encoder = fit_encoder(ENCODINGS["compact"], real, older, "row", None, SMALL, seed=0, weights=(q / then)[which])
    error = encoder.logits(np.array(ABC)) - exact("row", p, q)
    assert np.sqrt((error[:, 0] ** 2 * (p + q) / 2).sum()) < 0.2
    assert np.sqrt(((exact("row", p, then) - exact("row", p, q))[:, 0] ** 2 * (p + q) / 2).sum()) > 0.5


@pytest.mark.parametrize("level", LEVELS)
def test_nothing_is_said_of_rows_that_are_no_different(level: Level) -> None:
    chance = chances(1)
    real, written = rows(chance, 1000, 2), rows(chance, 3000, 3)
    encoder = fit_encoder(ENCODINGS["compact"], real, written, level, columns_of(level), SMALL, seed=0)
    assert np.sqrt((encoder.logits(np.array(ABC)).mean(1) ** 2 * chance).sum()) < 0.15


def test_how_it_went_is_kept_with_the_best_pass() -> None:
    encoder = fitted("row", "compact")
    first, best = encoder.passes[0], min(encoder.passes, key=lambda one: one.held_nats)
    assert (first.real_nats, first.written_nats) == pytest.approx((np.log(2), np.log(2)))
    assert first.held_nats == pytest.approx(np.log(2))
    assert best.held_nats < first.held_nats
    assert len(encoder.passes) == 1 + TINY.epochs


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("level", LEVELS)
def test_what_is_saved_says_the_same_when_loaded(tmp_path: Path, level: Level, encoding: str) -> None:
    encoder = fitted(level, encoding)
    encoder.save(tmp_path / "one")
    loaded = load_encoder(tmp_path / "one", ENCODINGS[encoding])
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["encoder.json", "reader.safetensors"]
    assert (loaded.logits(np.array(ABC)) == encoder.logits(np.array(ABC))).all()
    assert (loaded.name, loaded.level, loaded.columns) == (encoder.name, level, columns_of(level))
    assert loaded.passes == encoder.passes
    assert loaded.name == ("feature: a, c is" if level == "feature" else level)


def test_damaged_files_and_those_of_other_rows_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "one"
    fitted("row", "compact").save(folder)
    with pytest.raises(StorageError, match="holds no discriminator of these rows"):
        load_encoder(folder, Compact((A, B), (0, 1), False, ((), ())))
    data = (folder / "reader.safetensors").read_bytes()
    (folder / "reader.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(StorageError, match="holds no discriminator of these rows"):
        load_encoder(folder, ENCODINGS["compact"])  # type: ignore[arg-type]
    (folder / "encoder.json").unlink()
    with pytest.raises(StorageError, match="is missing"):
        load_encoder(folder, ENCODINGS["compact"])  # type: ignore[arg-type]


@pytest.mark.parametrize("level", ["token", "row"])
def test_long_rows_are_read_to_both_ends(level: Level) -> None:
    """Of 128 tokens and more, of which none is cut off."""
    columns = tuple(Column(f"column {n}", "category", levels=("no", "yes")) for n in range(26))
    encoding = Sentence(columns, small_tokenizer())
    generator = np.random.default_rng(0)
    real, written = (-1 - (generator.random((60, 26)) < share).astype(np.int64) for share in (0.8, 0.2))
    assert len(encoding.response(real[0])) > 128
    encoder = fit_encoder(encoding, real, written, level, None, replace(TINY, encoder_batch=16), seed=0)
    table = np.repeat(real[:1], 3, axis=0)
    table[1, -1], table[2, 0] = -3 - table[1, -1], -3 - table[2, 0]
    said = of_rows(level, encoder.logits(table))
    assert (np.abs(said[1:] - said[0]) > 1e-6).all()


def test_codes_that_cannot_be_written_are_refused() -> None:
    with pytest.raises(ValueError, match='"b"'):
        fitted("row", "compact").logits(np.array([[-1, 2, -1]]))


def test_a_loss_that_is_not_finite_stops_with_its_step() -> None:
    real, written = rows(chances(1), 60, 2), rows(chances(3), 60, 4)
    with pytest.raises(NumericError, match="discriminator row, step 1: the loss is nan"):
        fit_encoder(ENCODINGS["compact"], real, written, "row", None, TINY, seed=0, weights=np.full(60, np.nan))


def test_one_row_of_a_class_is_too_few() -> None:
    table = np.array(ABC)
    with pytest.raises(ValueError, match="two of each"):
        fit_encoder(ENCODINGS["compact"], table[:1], table, "row", None, TINY, seed=0)
