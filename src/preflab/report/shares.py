"""Shares and preferences, between 0 and 1, with an interval also where all rows say the same."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import special

from preflab.report.statistics import Estimate, estimate


def share(values: ArrayLike, what: str, confidence: float = 0.95) -> Estimate:
    """The mean of values in [0, 1] and its interval, inside [0, 1].

    `values` are those of `estimate`: a row a seed and a column a prompt, or a vector of prompts. Over several seeds the
    interval is taken on the logit of the mean m, by the delta method (Agresti 2013, Categorical Data Analysis, §3.1):

        logit m ± h / (m (1 − m)),   h the half-width that `estimate` has

    so it is longer to the side where there is room: few seeds near 1 can't show how far below it others lie. Where all
    values are alike, a
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
    found = estimate(matrix, what, confidence)
    if np.ptp(matrix) > 0:
        return found.within(0.0, 1.0) if len(matrix) == 1 else _on_logit(found)
    unseen = 1 - ((1 - confidence) / 2) ** (1 / matrix.shape[1])
    mean = found.mean
    return Estimate(mean, mean - unseen * mean, mean + unseen * (1 - mean))


def mean_reward(values: ArrayLike, what: str, confidence: float = 0.95) -> Estimate:
    """The mean of a reward and its interval: a share where each value is 0 or 1, as a verifier's is.

    >>> mean_reward([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 1.0, 1.0]], "solved").high < 1
    True
    """
    alone = bool(np.isin(values, (0.0, 1.0)).all())
    return share(values, what, confidence) if alone else estimate(values, what, confidence)


def _on_logit(found: Estimate) -> Estimate:
    half = (found.high - found.mean) / (found.mean * (1 - found.mean))
    low, high = special.expit(special.logit(found.mean) + np.array([-half, half]))
    return Estimate(found.mean, float(low), float(high))
