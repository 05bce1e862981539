"""The one check of a loss's numbers."""

from __future__ import annotations


def check_range(interval: str, **arguments: float) -> None:
    """Refuse an argument outside an interval, NaN included.

    Args:
        interval: as mathematics writes it, [ or ] where the end belongs to it: "(0, inf)", "[0, 0.5)".
        arguments: name and value.

    Raises:
        ValueError: with the name, the interval and the value.

    >>> check_range("[0, 0.5)", label_smoothing=0.5)
    Traceback (most recent call last):
    ValueError: label_smoothing must be in [0, 0.5), not 0.5
    """
    low, high = map(float, interval[1:-1].split(","))
    for name, value in arguments.items():
        above = value >= low if interval[0] == "[" else value > low
        below = value <= high if interval[-1] == "]" else value < high
        if not (above and below):
            raise ValueError(f"{name} must be in {interval}, not {value}")
