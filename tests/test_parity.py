"""Every objective against its formula written naively in 60-digit arithmetic (`benchmarks/parity`), without TRL."""

from __future__ import annotations

import itertools
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

PARITY = Path(__file__).parents[1] / "benchmarks" / "parity"
sys.path.insert(0, str(PARITY))

import cases  # noqa: E402
import naive_side  # noqa: E402
import ours  # noqa: E402
from cases import Case, Result  # noqa: E402

sys.path.remove(str(PARITY))

LIMIT = {torch.float64: 1e-10, torch.float32: 2e-4}
"""Relative to an element, or to the largest."""
EVERYTHING = [
    (family, case, points)
    for family, (members, named) in cases.FAMILIES.items()
    for case in members
    if not case.only_naive and case.name != "GRPO with k3, no correction"  # ours is the same without
    for points in named
    if points not in case.excuses and points != "long"  # which is slow in decimals
]
GRID: list[tuple[str, dict[str, list[Any]]]] = [
    ("DPOLoss", {"beta": [0.01, 1.0], "label_smoothing": [0.0, 0.3]}),
    ("RobustDPOLoss", {"beta": [0.01, 1.0], "label_smoothing": [0.01, 0.4]}),
    ("IPOLoss", {"tau": [0.01, 1.0], "average_tokens": [False, True]}),
    ("HingeLoss", {"beta": [0.01, 1.0]}),
    ("EXOLoss", {"beta": [0.01, 1.0], "label_smoothing": [1e-4, 0.3]}),
    ("AOTLoss", {"beta": [0.01, 1.0]}),
    ("LengthNormalisedDPOLoss", {"beta": [1.0, 20.0]}),
    ("DPOPLoss", {"beta": [0.01, 1.0], "penalty": [0.0, 5.0]}),
    ("NCALoss", {"beta": [0.01, 1.0]}),
    ("BCOPairLoss", {"beta": [0.01, 1.0]}),
    ("SPPOLoss", {"beta": [0.01, 1.0]}),
    ("APOZeroLoss", {"beta": [0.01, 1.0]}),
    ("APODownLoss", {"beta": [0.01, 1.0]}),
    ("SimPOLoss", {"beta": [1.0, 10.0], "margin": [0.0, 3.0]}),
    ("CPOLoss", {"beta": [0.01, 1.0], "sft_weight": [0.0, 0.3]}),
    ("ORPOLoss", {"weight": [0.05, 1.0]}),
    ("FDPOLoss", {"beta": [0.01, 1.0], "divergence": ["reverse_kl", "forward_kl", "jensen_shannon", "chi_squared"]}),
    ("FDPOLoss", {"beta": [0.1], "divergence": ["alpha"], "alpha": [0.01, 0.5, 0.99]}),
]


@pytest.mark.parametrize(
    ("family", "case", "points"), EVERYTHING, ids=[f"{case.name}, {points}" for _, case, points in EVERYTHING]
)
def test_value_and_gradient_are_those_of_the_naive_formula(family: str, case: Case, points: str) -> None:
    at = cases.FAMILIES[family][1][points]
    expected = naive_side.FAMILIES[family](case, at)
    for dtype in LIMIT:
        with inputs_in(dtype):
            assert_same(ours.FAMILIES[family](case, at), expected, LIMIT[dtype])


@pytest.mark.parametrize(("loss", "grid"), GRID, ids=[f"{loss} {sorted(grid)}" for loss, grid in GRID])
def test_pair_losses_are_the_naive_formula_for_all_settings(loss: str, grid: dict[str, list[Any]]) -> None:
    found = []
    for values in itertools.product(*grid.values()):
        case = Case(loss, loss, dict(zip(grid, values, strict=True)))
        with inputs_in(torch.float64):
            found.append(ours.of_pairs(case, cases.PAIRS["usual"]))
        assert_same(found[-1], naive_side.of_pairs(case, cases.PAIRS["usual"]), LIMIT[torch.float64])
    assert len({one.value[0] for one in found}) == len(found)  # every setting does something


EXCUSED = [
    (family, case, points)
    for family, (members, _) in cases.FAMILIES.items()
    for case in members
    for points in case.excuses
]


@pytest.mark.parametrize(
    ("family", "case", "points"), EXCUSED, ids=[f"{case.name}, {points}" for _, case, points in EXCUSED]
)
def test_where_ours_is_said_to_leave_the_formula_it_does(family: str, case: Case, points: str) -> None:
    at = cases.FAMILIES[family][1][points]
    with inputs_in(torch.float64):
        found = ours.FAMILIES[family](case, at)
    assert found.gradient != pytest.approx(naive_side.FAMILIES[family](case, at).gradient, rel=1e-3)
    assert all(map(math.isfinite, found.gradient))


@contextmanager
def inputs_in(dtype: torch.dtype) -> Iterator[None]:
    """The precision in which `ours` takes its inputs."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def assert_same(found: Result, expected: Result, limit: float) -> None:
    for mine, theirs in ((found.value, expected.value), (found.gradient, expected.gradient)):
        assert len(mine) == len(theirs)
        size = max([1e-3, *map(abs, theirs)])
        assert mine == pytest.approx(theirs, rel=limit, abs=limit * size)
