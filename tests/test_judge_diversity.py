"""Precision, recall, density and coverage, worked out by hand and by a naive double loop."""

from __future__ import annotations

import numpy as np
import pytest

from preflab.tables.judge import points
from preflab.tables.judge.diversity import Neighbourhood, duplicate_share, neighbourhood
from preflab.tables.judge.points import Points


def on_a_line(*places: float) -> Points:
    return Points(np.array(places)[:, None], np.zeros((len(places), 0)))


def test_neighbourhood_of_a_table_worked_out_by_hand() -> None:
    """Real 0, 1, 3, 10 have balls of radius 1, 1, 2, 7 around them; synthetic 0.5, 4, 100 of radius 3.5, 3.5, 96.

    0.5 lies in the balls of 0 and 1, 4 in those of 3 and 10, 100 in none: precision 2/3, density 4/3, coverage 1.
    The balls of 0.5 and 4 reach 0, 1 and 3, the one of 100 reaches 10: recall 1.
    """
    found = neighbourhood(on_a_line(0, 1, 3, 10), on_a_line(0.5, 4, 100), k=1)
    assert found == Neighbourhood(precision=2 / 3, recall=1.0, density=4 / 3, coverage=1.0)


def test_a_collapsed_sample_has_precision_without_coverage() -> None:
    real = on_a_line(*range(20))
    found = neighbourhood(real, on_a_line(*(9 + np.arange(20) / 1000)), k=2)
    assert found.precision == 1
    assert found.coverage <= 6 / 20
    assert found.recall == 1 / 20


def test_neighbourhood_is_that_of_a_naive_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "BLOCK_CELLS", 100)
    rng = np.random.default_rng(1)
    real, made = rng.normal(size=(40, 3)), rng.normal(0.5, 1.2, size=(30, 3))

    def reach(rows: np.ndarray) -> np.ndarray:
        return np.array([sorted(np.linalg.norm(rows - row, axis=1))[5] for row in rows])

    apart = np.array([[np.linalg.norm(r - s) for s in made] for r in real])
    in_real, in_made = apart <= reach(real)[:, None], apart <= reach(made)
    found = neighbourhood(Points(real, np.zeros((40, 0))), Points(made, np.zeros((30, 0))))
    assert found.precision == in_real.any(0).mean()
    assert found.recall == in_made.any(1).mean()
    assert found.density == pytest.approx(in_real.sum() / (5 * 30))
    assert found.coverage == in_real.any(1).mean()


def test_two_samples_of_one_distribution_have_density_1() -> None:
    rng = np.random.default_rng(2)
    real, made = (Points(rng.normal(size=(1500, 2)), np.zeros((1500, 0))) for _ in range(2))
    found = neighbourhood(real, made)
    assert found.density == pytest.approx(1, abs=0.05)
    assert found.coverage == pytest.approx(1 - 0.5**5, abs=0.02)  # each of 5 places is a real row's with even chance


def test_nothing_is_duplicated_where_all_rows_are_common() -> None:
    assert duplicate_share(np.array([1, 1], np.uint64), np.array([True, True])) == 0
