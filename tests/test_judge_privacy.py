"""Copies, distances and membership, worked out by hand; a memoriser is exposed and a real sample is not."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from preflab.tables.judge.points import Points
from preflab.tables.judge.privacy import histogram, measure, membership, nearer_share, overlap


def on_a_line(*places: float) -> Points:
    return Points(np.array(places, float)[:, None], np.zeros((len(places), 0)))


def cloud(rng: np.random.Generator, rows: int) -> Points:
    return Points(rng.normal(size=(rows, 4)), rng.integers(0, 3, (rows, 1)).astype(float))


def test_distances_of_a_table_worked_out_by_hand() -> None:
    """Training rows 0, 4, 10; holdout rows 3, 20; synthetic rows 1, 9, 12.

    To training: 1, 1, 2; to the holdout: 2, 6, 8. As many training rows as holdout rows are 2 of 3. Of 1 only row 0 is
    nearer than the holdout: in 2 of 3 pairs. Of 9, rows 4 and 10 are: in all. Of 12, row 10 is at 2 and row 4 at 8, a
    tie: 2 of 3 pairs hold 10, and the third holds 4 and ties. Share: (2/3 + 1 + 2/3 + 1/3·1/2)/3 = 5/6.
    """
    found = measure(on_a_line(0, 4, 10), on_a_line(3, 20), on_a_line(1, 9, 12))
    assert found.synthetic_to_train.tolist() == [1, 1, 2]
    assert found.holdout_to_train.tolist() == [1, 10]
    assert found.share == pytest.approx(5 / 6)
    # Nearest synthetic rows: of members 1, 3, 1; of the others 2, 8. 1 < 2, 3 > 2, all < 8: 5 of 6 pairs.
    assert found.membership_auc == pytest.approx(5 / 6)
    assert found.membership_tpr == pytest.approx(2 / 3)


def test_the_distance_share_is_the_mean_over_all_draws_of_training_rows() -> None:
    rng = np.random.default_rng(0)
    train, holdout = rng.integers(0, 12, 7), rng.integers(0, 12, 3)
    shares = []
    for made in range(13):
        own = abs(holdout - made).min()
        draws = [min(abs(train[place] - made) for place in draw) for draw in combinations(range(7), 3)]
        shares.append(np.mean([(near < own) + 0.5 * (near == own) for near in draws]))
    found = measure(on_a_line(*train), on_a_line(*holdout), on_a_line(*range(13)))
    assert found.share == pytest.approx(np.mean(shares))


def test_copies_of_everything_have_a_share_of_1_and_of_nothing_0() -> None:
    assert nearer_share(np.array([5]), np.array([5]), rows=5, drawn=2) == 1
    assert nearer_share(np.array([0]), np.array([0]), rows=5, drawn=2) == 0


def test_membership_of_equal_distances_is_a_coin_toss() -> None:
    auc, found = membership(np.full(50, 2.0), np.full(50, 2.0))
    assert auc == 0.5
    assert found == 0


def test_a_memoriser_is_exposed_and_a_second_real_sample_is_not() -> None:
    rng = np.random.default_rng(3)
    train, holdout, fresh = cloud(rng, 600), cloud(rng, 300), cloud(rng, 600)
    copies = train[rng.integers(0, 600, 600)]
    memoriser, real = measure(train, holdout, copies), measure(train, holdout, fresh)
    assert memoriser.share > 0.6
    assert memoriser.membership_auc > 0.75
    assert memoriser.membership_tpr > 0.5
    assert np.quantile(memoriser.synthetic_to_train, 0.05) == 0
    assert real.share == pytest.approx(0.5, abs=0.04)
    assert real.membership_auc == pytest.approx(0.5, abs=0.05)
    assert np.median(real.synthetic_to_train) == pytest.approx(np.median(real.holdout_to_train), rel=0.1)


def test_a_larger_holdout_is_cut_to_the_size_of_the_training_table() -> None:
    rng = np.random.default_rng(4)
    train, holdout = cloud(rng, 40), cloud(rng, 90)
    assert len(measure(train, holdout, cloud(rng, 50)).holdout_to_train) == 40


def test_rows_that_a_random_split_parts_are_no_leak_and_more_are() -> None:
    """100 pairs of equal rows, and 800 rows that stand alone."""
    rows = np.concatenate([np.arange(900), np.arange(100)]).astype(np.uint64)
    chances = []
    for seed in range(20):
        order = np.random.default_rng(seed).permutation(rows)
        chances.append(overlap(order[:800], order[800:]).chance)
    assert min(chances) > 1e-3
    assert overlap(np.arange(800, dtype=np.uint64), np.arange(770, 970, dtype=np.uint64)).chance < 1e-6


def test_rows_that_stand_many_times_on_both_sides_are_no_leak() -> None:
    block = np.zeros(50, np.uint64)
    assert overlap(block, block).chance == 1


def test_every_distance_is_in_the_histogram() -> None:
    edges, made, real = histogram(np.array([0.0, 1.0, 9.0]), np.array([0.5, 2.0]))
    assert (made.sum(), real.sum()) == (3, 2)
    assert len(edges) == len(made) + 1
    assert histogram(np.zeros(2), np.zeros(2))[1][0] == 2
