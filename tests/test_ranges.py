from __future__ import annotations

import math

import pytest

from preflab.losses.ranges import check_range


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("(0, inf)", [1e-300, 5, 1e300], [0.0, -1, math.inf, math.nan]),
        ("[0, inf)", [0.0, 5], [-1e-300, math.inf, math.nan]),
        ("[0, 0.5)", [0, 0.4999], [-0.1, 0.5, math.nan]),
        ("(0, 1]", [0.1, 1], [0.0, 1.0001, math.nan]),
        ("(-inf, inf)", [-5.0, 0.0, 1e300], [-math.inf, math.inf, math.nan]),
    ],
)
def test_an_interval_is_read_as_mathematics_writes_it(interval: str, inside: list[float], outside: list[float]) -> None:
    for value in inside:
        check_range(interval, number=value)
    for value in outside:
        with pytest.raises(ValueError, match="number must be in"):
            check_range(interval, number=value)


def test_the_message_names_argument_interval_and_value() -> None:
    with pytest.raises(ValueError, match=r"^weight must be in \[0, 1\], not 2$"):
        check_range("[0, 1]", beta=0.5, weight=2)
