"""What length has to do with reward and with winning."""

from __future__ import annotations

from math import atanh, tanh

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preflab.report.statistics import ROUNDING, Estimate, Matrix, estimate

STEPS = 50
"""Newton steps, far more than a fit with two coefficients needs."""
SURE = 1e-6
"""A fitted share this near to 0 or 1 at equal length is none: length alone, or nothing, tells wins from losses."""


def correlation(first: ArrayLike, second: ArrayLike, what: str, confidence: float = 0.95) -> Estimate | None:
    """Pearson's correlation over seeds (rows) and prompts (columns), −1 to 1, and its interval.

    On Fisher's scale artanh r, each value by its influence (x y − r (x² + y²)/2) / (1 − r²) of standardised x and y
    (Devlin, Gnanadesikan and Kettenring 1975, Biometrika 62), so that the interval follows seeds and prompts as that
    of a mean does. None where one doesn't vary, or where they lie on a line.

    >>> correlation([1.0, 2.0, 3.0], [1.0, 1.0, 1.0], "flat") is None
    True
    >>> round(correlation([1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0], "ranks").mean, 3)
    0.8
    """
    one, two = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (first, second))
    if min(np.ptp(one), np.ptp(two)) <= ROUNDING:
        return None
    x, y = ((values - values.mean()) / values.std() for values in (one, two))
    r = float((x * y).mean())
    if 1 - r * r <= ROUNDING:
        return None
    found = estimate(atanh(r) + (x * y - r * (x**2 + y**2) / 2) / (1 - r * r), what, confidence)
    return Estimate(tanh(found.mean), tanh(found.low), tanh(found.high))


def length_controlled(wins: ArrayLike, longer: ArrayLike, what: str, confidence: float = 0.95) -> Estimate | None:
    """The win rate at equal length: σ(θ) of the fit P(win) = σ(θ + φ tanh(Δ/s)), with its interval.

    Δ is how much longer the first response is, s the root mean square of Δ. The idea and the form of the length term
    are those of Dubois et al. 2024, arXiv 2404.04475; a simple form of it: no term for how hard a prompt is, and
    one fit for each two arms. A tie counts as half a win.

    The interval is that of the mean of σ(θ) + each response's influence on it (the sandwich of a misspecified fit).
    None where equal length lies outside of what was seen, where length never differs or tells wins apart by itself.

    Args:
        wins: 1, ½ or 0, a row a seed and a column a prompt.
        longer: Δ in tokens, of the same shape.

    >>> round(length_controlled([1.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0], [9, 9, 9, 9, -9, -9, -9, -9], "x").mean, 3)
    0.5
    >>> length_controlled([1.0, 0.0, 1.0, 1.0], [1, 2, 3, 4], "never shorter") is None
    True
    """
    won, delta = (np.atleast_2d(np.asarray(values, dtype=np.float64)) for values in (wins, longer))
    scale = float(np.sqrt((delta**2).mean()))
    if not delta.min() <= 0 <= delta.max() or np.ptp(delta) <= ROUNDING or np.ptp(won) <= ROUNDING:
        return None
    terms = np.stack([np.ones(delta.size), np.tanh(delta / scale).ravel()], axis=1)
    coefficients = logistic(terms, won.ravel())
    if coefficients is None:
        return None
    fitted = 1 / (1 + np.exp(-(terms @ coefficients)))
    at_zero = 1 / (1 + float(np.exp(-coefficients[0])))
    if not SURE < at_zero < 1 - SURE:
        return None
    influence = (terms * (won.ravel() - fitted)[:, None]) @ np.linalg.inv(information(terms, fitted))
    values = at_zero + at_zero * (1 - at_zero) * influence[:, 0].reshape(won.shape)
    return estimate(values, what, confidence).within(0.0, 1.0)


def logistic(terms: Matrix, wins: Matrix) -> NDArray[np.float64] | None:
    """The coefficients that make Σ w log p + (1 − w) log(1 − p) largest, p = σ(terms · coefficients), by Newton's
    method; None where there are none, since the terms tell all wins from all losses.
    """
    coefficients = np.zeros(terms.shape[1])
    for _ in range(STEPS):
        fitted = 1 / (1 + np.exp(-(terms @ coefficients)))
        curvature = information(terms, fitted)
        if np.linalg.cond(curvature) > 1 / ROUNDING:
            return None
        step = np.linalg.solve(curvature, terms.T @ (wins - fitted) / len(wins))
        size = float(np.abs(step).max())
        coefficients = coefficients + step * min(1.0, 2.0 / max(size, ROUNDING))
        if size < ROUNDING:
            return coefficients
    return None


def information(terms: Matrix, fitted: Matrix) -> Matrix:
    """The mean of p (1 − p) x xᵀ."""
    weighted: Matrix = terms.T @ (terms * (fitted * (1 - fitted))[:, None]) / len(terms)
    return weighted
