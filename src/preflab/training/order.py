"""Which examples a step sees: a pure function of the seed and the step, so a resumed run needs no random state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from preflab.seeds import derive

Indices = npt.NDArray[np.int64]

WINDOW = 32
"""Batches whose examples are sorted by length among themselves."""


def batch_at(
    step: int, *, examples: int, batch_size: int, seed: int, lengths: Sequence[int] | None = None
) -> list[int]:
    """Indices of the examples of optimiser step 0, 1, …: epoch after epoch, each a permutation of its own.

    Every example comes exactly once an epoch; a batch may straddle two epochs.

    Args:
        lengths: of each example; a batch then holds examples of similar length, but for one that straddles epochs.

    >>> sorted(batch_at(0, examples=3, batch_size=2, seed=0) + batch_at(1, examples=3, batch_size=2, seed=0)[:1])
    [0, 1, 2]
    """
    first = step * batch_size
    chosen: list[int] = []
    for epoch in range(first // examples, (first + batch_size - 1) // examples + 1):
        generator = np.random.Generator(np.random.Philox(derive(seed, "order", epoch)))
        order = generator.permutation(examples)
        if lengths is not None:
            order = _by_length(order, np.asarray(lengths), batch_size, -epoch * examples % batch_size, generator)
        begin = max(first - epoch * examples, 0)
        end = first + batch_size - epoch * examples
        chosen += order[begin:end].tolist()
    return chosen


def _by_length(
    order: Indices, lengths: Indices, batch_size: int, begin: int, generator: np.random.Generator
) -> Indices:
    """The epoch's permutation with its whole batches, which start at place `begin`, made of similar lengths: sorted
    within windows, and the batches shuffled. A window is at most half an epoch, or its batches would be the same in
    each."""
    batches = max(0, len(order) - begin) // batch_size
    end = begin + batches * batch_size
    size = min(WINDOW, -(-batches // 2)) * batch_size
    windows = [order[first : min(first + size, end)] for first in range(begin, end, max(1, size))]
    if len(windows) < 2:
        return order
    alike = np.concatenate([window[np.argsort(lengths[window], kind="stable")] for window in windows])
    shuffled = generator.permutation(alike.reshape(batches, batch_size))
    return np.concatenate([order[:begin], shuffled.flatten(), order[end:]])


def evaluation_steps(total: int, evaluations: int) -> list[int]:
    """Steps after which the policy is evaluated: evenly spread, the last one last.

    >>> evaluation_steps(100, 4)
    [25, 50, 75, 100]
    """
    return sorted({max(1, round(total * (index + 1) / evaluations)) for index in range(evaluations)})
