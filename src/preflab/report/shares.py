"""Shares and preferences, between 0 and 1, with an interval also where all rows say the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from preflab.report.statistics import Estimate, estimate


def share(values: ArrayLike, what: str, confidence: float = 0.95) -> Estimate:
    """The mean of values in [0, 1] and its interval, inside [0, 1].

    `values` are those of `estimate`: a row a seed and a column a prompt, or a vector of prompts. Where all are alike, a
    spread is no measure of what n prompts have not shown: then n equal draws leave a share of 1 − ((1 − c)/2)^(1/n) of
    other prompts open (Clopper and Pearson 1934, Biometrika 26, 404), which may be anything from 0 to 1.

    Raises:
        NumericError: a value is not finite.
        DataError: there are fewer than two prompts.

    >>> round(share([1.0, 1.0, 1.0, 1.0], "wins").low, 4)  # 0.025 to the power of ¼
    0.3976
    >>> share([1.0, 0.0, 1.0, 0.0], "wins").mean
    0.5
    """
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    found = estimate(matrix, what, confidence).within(0.0, 1.0)
    if np.ptp(matrix) > 0:
        return found
    unseen = 1 - ((1 - confidence) / 2) ** (1 / matrix.shape[1])
    mean = found.mean
    return Estimate(mean, mean - unseen * mean, mean + unseen * (1 - mean))
