"""Which examples a step sees: a pure function of the seed and the step, so a resumed run needs no random state."""

from __future__ import annotations

import numpy as np

from preflab.seeds import derive


def batch_at(step: int, *, examples: int, batch_size: int, seed: int) -> list[int]:
    """Indices of the examples of optimiser step 0, 1, …: epoch after epoch, each a permutation of its own.

    Every example comes exactly once an epoch; a batch may straddle two epochs.

    >>> sorted(batch_at(0, examples=3, batch_size=2, seed=0) + batch_at(1, examples=3, batch_size=2, seed=0)[:1])
    [0, 1, 2]
    """
    first = step * batch_size
    chosen: list[int] = []
    for epoch in range(first // examples, (first + batch_size - 1) // examples + 1):
        order = np.random.Generator(np.random.Philox(derive(seed, "order", epoch))).permutation(examples)
        begin = max(first - epoch * examples, 0)
        end = first + batch_size - epoch * examples
        chosen += order[begin:end].tolist()
    return chosen


def evaluation_steps(total: int, evaluations: int) -> list[int]:
    """Steps after which the policy is evaluated: evenly spread, the last one last.

    >>> evaluation_steps(100, 4)
    [25, 50, 75, 100]
    """
    return sorted({max(1, round(total * (index + 1) / evaluations)) for index in range(evaluations)})
