"""Boosted trees as discriminators."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preflab.config.alignment import Discriminators
from preflab.errors import ConfigError, StorageError
from preflab.runs import sha256
from preflab.tables.column import Column, Numbers
from preflab.tables.discriminators.level import Codes, Evidence
from preflab.tables.discriminators.trees import Trees, fit_trees, load_trees
from told_apart import COLUMNS, ROWS, additive

SETTINGS = Discriminators(trees=40)
KNOWN = additive()
EVIDENCE = KNOWN.evidence(1500, 3000)


def fitted(evidence: Evidence = EVIDENCE, **settings: object) -> Trees:
    return fit_trees(COLUMNS, evidence, SETTINGS, seed=0, **settings)  # type: ignore[arg-type]


def of(real: Codes, written: Codes, weights: np.ndarray | None = None) -> Evidence:
    folds = [np.zeros(len(rows), np.int64) for rows in (real, written)]
    return Evidence(real, folds[0], written, folds[1], np.zeros(0) if weights is None else weights)


def test_logits_come_near_the_known_density_ratio() -> None:
    evidence = KNOWN.evidence(20_000, 20_000)
    found = fit_trees(COLUMNS, evidence, Discriminators(), seed=0).logits(ROWS)[:, 0]
    weights = np.exp(np.logaddexp(KNOWN.real, KNOWN.written))
    error = np.sqrt(np.average((found - KNOWN.ratio) ** 2, weights=weights))
    spread = np.sqrt(np.average(KNOWN.ratio**2, weights=weights))
    assert spread > 0.55
    assert error < 0.1


def test_the_classes_count_alike_however_many_rows_each_has() -> None:
    few = of(EVIDENCE.real, EVIDENCE.written)
    many = of(EVIDENCE.real, np.tile(EVIDENCE.written, (3, 1)))
    np.testing.assert_allclose(fitted(few).logits(ROWS), fitted(many).logits(ROWS), atol=1e-6)


def test_a_row_of_weight_two_is_two_rows() -> None:
    weights = np.random.default_rng(0).integers(1, 4, len(EVIDENCE.written))
    weighted = of(EVIDENCE.real, EVIDENCE.written, weights.astype(float))
    repeated = of(EVIDENCE.real, np.repeat(EVIDENCE.written, weights, axis=0))
    np.testing.assert_allclose(fitted(weighted).logits(ROWS), fitted(repeated).logits(ROWS), atol=1e-6)
    assert np.abs(fitted(weighted).logits(ROWS) - fitted(of(EVIDENCE.real, EVIDENCE.written)).logits(ROWS)).max() > 0.01


def test_the_feature_level_looks_at_its_own_columns_only() -> None:
    trees = fitted(places=(0, 2), name="feature: town and debt")
    assert (trees.name, trees.level) == ("feature: town and debt", "feature")
    scores = trees.logits(ROWS)[:, 0].reshape(3, 5, 4)
    assert np.ptp(scores, axis=1).max() == 0
    assert (np.ptp(scores, axis=0).max(1) > 0.1).all()
    assert (np.ptp(scores, axis=2).max(1) > 0.1).all()


def test_the_row_level_looks_at_all_columns() -> None:
    scores = fitted().logits(ROWS)[:, 0].reshape(3, 5, 4)
    assert all(np.ptp(scores, axis=axis).max() > 0.1 for axis in range(3))


def test_special_codes_are_told_from_numbers_and_from_each_other() -> None:
    rng = np.random.default_rng(1)
    column = Column("x", "integer", levels=("-9", "-8", "-7"), numbers=Numbers(0, 500, ()))
    real, written = rng.integers(0, 500, (2, 900, 1))
    real[:300], written[:150], written[150:300] = -2, -1, -3
    found = fit_trees([column], of(real, written), SETTINGS, seed=0).logits(np.array([[-1], [-2], [-3], [250]]))[:, 0]
    assert found[1] > 2
    assert max(found[0], found[2]) < -2
    assert abs(found[3]) < 1


def test_a_category_is_split_into_sets_whatever_the_order_of_its_levels() -> None:
    column = Column("x", "category", levels=tuple("abcdefghijklmnop"))
    odd, even = np.repeat(-1 - np.arange(16), 60).reshape(16, 60)[1::2], np.repeat(-1 - np.arange(0, 16, 2), 60)
    one_split = replace(SETTINGS, leaves=2)
    found = fit_trees([column], of(odd.reshape(-1, 1), even[:, None]), one_split, seed=0)
    scores = found.logits(-1 - np.arange(16)[:, None])[:, 0]
    assert scores[1::2].min() > 1
    assert scores[::2].max() < -1


def test_the_same_seed_grows_the_same_trees_and_the_same_row_scores_the_same_twice() -> None:
    trees, again, other = fitted(), fitted(), fit_trees(COLUMNS, EVIDENCE, SETTINGS, seed=1)
    assert trees.booster.model_to_string() == again.booster.model_to_string()
    np.testing.assert_array_equal(trees.logits(ROWS), trees.logits(ROWS))
    np.testing.assert_array_equal(trees.logits(ROWS)[7:8], trees.logits(ROWS[7:8]))
    assert np.abs(trees.logits(ROWS) - other.logits(ROWS)).max() > 0


def test_no_rows_have_no_logits() -> None:
    assert fitted().logits(ROWS[:0]).shape == (0, 1)


def test_trees_are_stored_as_text(tmp_path: Path) -> None:
    trees, path = fitted(places=(1, 2), name="feature: x"), tmp_path / "trees.txt"
    trees.save(path)
    assert path.read_text(encoding="utf-8").startswith("tree\nversion=")
    back = load_trees(path, trees.name, "feature", COLUMNS, (1, 2), digest=sha256(path))
    assert (back.name, back.level, back.places) == (trees.name, trees.level, trees.places)
    np.testing.assert_array_equal(back.logits(ROWS), trees.logits(ROWS))


def test_damaged_trees_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "trees.txt"
    fitted().save(path)
    digest, text = sha256(path), path.read_text(encoding="utf-8")
    path.write_text(text[: len(text) // 2], encoding="utf-8")
    with pytest.raises(StorageError, match=r"trees\.txt is not as it was written; align again"):
        load_trees(path, "row", "row", COLUMNS, (0, 1, 2), digest=digest)
    path.unlink()
    with pytest.raises(StorageError, match=r"trees\.txt can't be read \(No such file"):
        load_trees(path, "row", "row", COLUMNS, (0, 1, 2), digest=digest)


def test_the_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(ConfigError, match=r"telling rows apart by trees needs lightgbm .*install 'preflab\[tables\]'"):
        fitted()
