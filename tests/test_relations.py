"""Relations of two columns that discriminators are shown."""

from __future__ import annotations

import numpy as np
import pytest

from preflab.config.alignment import Discriminators
from preflab.tables.column import Column, Numbers
from preflab.tables.discriminators.level import Evidence
from preflab.tables.discriminators.relations import Relation, numbers, told_by
from preflab.tables.discriminators.trees import fit_trees

ROWS = 3000
BOTH = ("difference", "share")


def integers(name: str, low: int, size: int) -> Column:
    return Column(name, "integer", levels=("",), numbers=Numbers(low, size, tuple(range(size))))


COLUMNS = (integers("part", 0, 41), integers("total", 0, 41), integers("percent", 0, 101), integers("other", -5, 11))


def rows(*, related: bool, seed: int) -> np.ndarray:
    """A part of a total, and its percentage; or columns with the same values each, dealt anew."""
    draw = np.random.default_rng(seed)
    total = draw.integers(5, 41, ROWS)
    part = draw.integers(0, total + 1)
    percent = np.round(100 * part / total).astype(int)
    other = draw.integers(0, 11, ROWS)
    if not related:
        part, percent = part[draw.permutation(ROWS)], percent[draw.permutation(ROWS)]
    found = np.column_stack([part, total, percent, other])
    found[draw.random(ROWS) < 0.05, 0] = -1
    return found


def evidence(real: np.ndarray, written: np.ndarray) -> Evidence:
    zeros = np.zeros(len(real), int)
    return Evidence(real, zeros, written, np.zeros(len(written), int))


def auc(real: np.ndarray, written: np.ndarray) -> float:
    above = (real[:, None] > written[None]).mean() + (real[:, None] == written[None]).mean() / 2
    return float(above)


def test_numbers_are_those_of_the_scale_and_levels_are_none() -> None:
    found = numbers(COLUMNS, np.array([[3, 4, 75, 0], [-1, 4, 75, 10]]))
    assert found[0].tolist() == [3, 4, 75, -5]
    assert np.isnan(found[1, 0])
    assert found[1, 3] == 5


def test_a_share_of_nothing_and_a_cell_without_number_have_no_relation() -> None:
    values = np.array([[50.0, 0.0], [np.nan, 3.0], [50.0, 4.0]])
    share = Relation("share", 0, 1).of(values)
    assert np.isnan(share[:2]).all()
    assert share[2] == 0
    assert np.isnan(Relation("difference", 0, 1).of(values)[1])


@pytest.mark.parametrize("size", range(1, 60))
def test_every_rounded_percentage_of_a_count_is_within_half_a_percent_of_a_share(size: int) -> None:
    parts = np.arange(size + 1)
    values = np.column_stack([np.round(100 * parts / size), np.full(size + 1, size)])
    assert Relation("share", 0, 1).of(values).max() <= 0.5 + 1e-9


def test_those_that_were_broken_are_found_first_and_no_others() -> None:
    found = told_by(COLUMNS, rows(related=True, seed=0), rows(related=False, seed=1), BOTH)
    assert {(one.kind, one.first, one.second) for one in found[:2]} <= {
        ("difference", 0, 1),
        ("share", 2, 1),
        ("share", 1, 2),
        ("difference", 0, 2),
    }
    assert all(3 not in (one.first, one.second) for one in found)
    assert told_by(COLUMNS, rows(related=True, seed=0), rows(related=False, seed=1), BOTH, most=1) == found[:1]


def test_chance_alone_finds_none() -> None:
    for seed in range(5):
        real, written = rows(related=True, seed=seed), rows(related=True, seed=100 + seed)
        assert told_by(COLUMNS, real, written, BOTH) == ()


def test_trees_that_are_shown_relations_see_what_others_do_not() -> None:
    learned = evidence(rows(related=True, seed=0), rows(related=False, seed=1))
    real, written = rows(related=True, seed=2), rows(related=False, seed=3)
    found = {}
    for kinds in ((), BOTH):
        trees = fit_trees(COLUMNS, learned, Discriminators(relations=kinds, trees=30, leaves=4), seed=0)
        assert bool(trees.relations) == bool(kinds)
        found[kinds] = auc(trees.logits(real)[:, 0], trees.logits(written)[:, 0])
    assert found[BOTH] > 0.93
    assert found[BOTH] > found[()] + 0.02


def test_a_group_of_columns_has_relations_of_its_own_alone() -> None:
    learned = evidence(rows(related=True, seed=0), rows(related=False, seed=1))
    settings = Discriminators(relations=BOTH, trees=5)
    group = fit_trees(COLUMNS, learned, settings, seed=0, places=(1, 2), name="feature: total")
    assert {(one.kind, one.first, one.second) for one in group.relations} <= {
        ("share", 0, 1),
        ("share", 1, 0),
        ("difference", 0, 1),
    }
    before = group.logits(rows(related=True, seed=4))
    changed = rows(related=True, seed=4)
    changed[:, [0, 3]] = 0
    assert np.array_equal(group.logits(changed), before)
