"""Trees of the row so far: what they say after each token, against ratios that are known by enumeration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preflab.config.alignment import Discriminators
from preflab.tables.column import Column, Numbers
from preflab.tables.compact import Compact
from preflab.tables.discriminators.level import Codes, Evidence
from preflab.tables.discriminators.neural import Encoder
from preflab.tables.discriminators.panel import Panel, fit_panel
from preflab.tables.discriminators.prefixes import Beginnings, PrefixTrees, fit_prefix_trees, shown
from preflab.tables.sentence import Sentence
from small_tables import small_tokenizer
from told_apart import COLUMNS, ENCODING, ROWS, additive

SETTINGS = Discriminators(levels=("token",), trees=40)
KNOWN = additive()
EVIDENCE = KNOWN.evidence(1500, 3000)


def of(real: Codes, written: Codes, weights: np.ndarray | None = None) -> Evidence:
    folds = [np.zeros(len(rows), np.int64) for rows in (real, written)]
    return Evidence(real, folds[0], written, folds[1], np.zeros(0) if weights is None else weights)


def ratios() -> np.ndarray:
    """log p(x≤t) − log q(x≤t) of each row after each of its tokens, summed over the rows that begin alike."""
    tokens = [ENCODING.response(row) for row in ROWS.tolist()]
    found = np.zeros((len(ROWS), ENCODING.longest))
    for number, own in enumerate(tokens):
        for place in range(ENCODING.longest):
            alike = [other[: place + 1] == own[: place + 1] for other in tokens]
            found[number, place] = np.logaddexp.reduce(KNOWN.real[alike]) - np.logaddexp.reduce(KNOWN.written[alike])
    return found


def test_logits_come_near_the_known_ratios_of_beginnings() -> None:
    evidence = KNOWN.evidence(20_000, 20_000)
    found = fit_prefix_trees(ENCODING, evidence, Discriminators(), seed=0).logits(ROWS)
    weights = np.exp(np.logaddexp(KNOWN.real, KNOWN.written))
    known = ratios()
    np.testing.assert_allclose(known[:, -1], KNOWN.ratio)
    errors = np.sqrt(np.average((found - known) ** 2, weights=weights, axis=0))
    spreads = np.sqrt(np.average(known**2, weights=weights, axis=0))
    assert errors.max() < 0.1
    assert spreads[-1] > 0.55
    assert spreads[0] > 1.5 * errors[0]


def test_what_comes_later_changes_nothing_before() -> None:
    trees = fit_prefix_trees(ENCODING, EVIDENCE, SETTINGS, seed=0)
    said = trees.logits(ROWS)
    assert said.shape == (len(ROWS), ENCODING.longest)
    tokens = np.array([ENCODING.response(row) for row in ROWS.tolist()])
    for place in range(ENCODING.longest):
        alike = (tokens[:, None, : place + 1] == tokens[None, :, : place + 1]).all(2)
        gaps = np.abs(said[:, None, place] - said[None, :, place])
        assert gaps[alike].max() == 0
        assert gaps[~alike].max() > 0
    assert trees.logits(ROWS[:0]).shape == (0, ENCODING.longest)
    assert (trees.name, trees.level) == ("token", "token")


def test_rows_count_by_their_class_and_weight() -> None:
    weights = np.random.default_rng(0).integers(1, 4, len(EVIDENCE.written)).astype(float)
    fitted = [
        fit_prefix_trees(ENCODING, of(EVIDENCE.real, EVIDENCE.written, some), SETTINGS, seed=0).logits(ROWS)
        for some in (None, np.full(len(weights), 3.0), weights, 5 * weights)
    ]
    np.testing.assert_allclose(fitted[0], fitted[1], atol=1e-9)
    np.testing.assert_allclose(fitted[2], fitted[3], atol=1e-9)
    assert np.abs(fitted[0] - fitted[2]).max() > 0.01


WIDE = Column("wide", "integer", levels=("?",), numbers=Numbers(0, 5000, ()))
FLAG = Column("flag", "boolean", levels=("no", "yes"))
LONG = Compact.of((WIDE, FLAG), np.array([[i, -1] for i in range(5000)]))
"""A number of several tokens, then one of one."""


def test_of_a_number_that_is_not_written_to_its_end_the_bucket_is_seen() -> None:
    places = LONG.cells[0].places
    assert places >= 1
    beginnings = Beginnings.of(LONG, ())
    whole, rough = shown(LONG, np.array([[7, -2], [8, -2], [4900, -1], [-1, -1]]), ())
    after = [beginnings.seen(whole, rough, beginnings.state_of_token[[token]]) for token in range(LONG.longest)]
    for token in range(places):  # 7 and 8 share a bucket
        assert after[token][0, 0] == after[token][1, 0] != after[token][2, 0]
        assert after[token][0, 0] in LONG.cells[0].middles
        assert after[token][3, 0] == -1
        assert np.isnan(after[token][:, 1]).all()
    assert after[places][:, 0].tolist() == [7, 8, 4900, -1]
    assert np.isnan(after[places][:, 1]).all()
    assert not np.isnan(after[places + 1]).any()
    np.testing.assert_array_equal(after[-1], after[-2])


def test_a_digit_is_told_apart_where_it_comes() -> None:
    """Real numbers are even: no bucket says so, the last digit does."""
    draw = np.random.default_rng(0)
    real = np.column_stack([2 * draw.integers(0, 40, 4000), draw.integers(-2, 0, 4000)])
    written = np.column_stack([draw.integers(0, 80, 4000), draw.integers(-2, 0, 4000)])
    trees = fit_prefix_trees(LONG, of(real, written), replace(SETTINGS, trees=200), seed=0)
    said = trees.logits(written)
    last = LONG.cells[0].places
    even = written[:, 0] % 2 == 0
    assert np.abs(said[:, last - 1]).mean() < 0.25
    assert said[even, last].mean() - said[~even, last].mean() > 1.5


@pytest.mark.parametrize("levels", [("token",), ("token", "row")])
def test_a_panel_keeps_them(levels: tuple[str, ...], tmp_path: Path) -> None:
    settings = replace(SETTINGS, levels=levels, trees=10, folds=2)  # type: ignore[arg-type]
    evidence = KNOWN.evidence(600, 1200, folds=2)
    panel = fit_panel(ENCODING, evidence, settings, seed=0)
    assert isinstance(panel.judges[0].members[0], PrefixTrees)
    panel.save(tmp_path / "panel")
    again = Panel.load(tmp_path / "panel", ENCODING)
    one, two = panel.opinion(ROWS), again.opinion(ROWS)
    np.testing.assert_array_equal(one.ratio, two.ratio)
    np.testing.assert_array_equal(one.logits["token"], two.logits["token"])
    np.testing.assert_allclose(again.ratio(ROWS), two.ratio, atol=1e-12)
    assert two.levels["token"] == "token"


def test_rows_as_sentences_are_read_by_an_encoder() -> None:
    encoding = Sentence(COLUMNS, small_tokenizer())
    evidence = KNOWN.evidence(60, 60, folds=2)
    panel = fit_panel(encoding, evidence, replace(SETTINGS, folds=2, epochs=1, width=8), seed=0)
    assert isinstance(panel.judges[0].members[0], Encoder)
