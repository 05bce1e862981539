"""The cheap alternative to training a policy: rows of the reference, resampled by the same discriminators.

    row ~ q(row)·w(row)/E_q w,     w = exp(clip(log density ratio, ±c))

which is the optimum that `LogitReward` leads a policy to at β = 1 (importance resampling: Rubin 1988, "Using the SIR
algorithm"; by a discriminator: Azadi et al. 2019, arXiv 1810.06758; Grover et al. 2019, arXiv 1906.09531).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Bool, Float

from preflab.errors import NumericError
from preflab.seeds import derive
from preflab.tables.alignment.reward import CLIP_NATS, clipped
from preflab.tables.discriminators.level import Codes
from preflab.tables.draw import FEWEST, MOST, SPARE, Drawn, Weights, draw_rows, effective_size, systematic
from preflab.tables.encoding import Encoding
from preflab.tables.judge.validity import Order
from preflab.tables.orders import broken, hopeless, unkept


class Ratio(Protocol):
    """Discriminators, all together."""

    def ratio(self, codes: Codes) -> Float[np.ndarray, " row"]:
        """The log density ratio of each row, in nats."""
        ...


def resample_rows(
    model: Any,
    encoding: Encoding,
    judge: Ratio,
    n: int,
    *,
    seed: int,
    clip_nats: float = CLIP_NATS,
    orders: Sequence[Order] = (),
    most: int = MOST,
    batch_size: int | None = None,
) -> Drawn:
    """`n` rows of a pool of the model's samples.

    The pool grows until no row has to be taken twice, n·max w ≤ Σ w; then n of it are taken by systematic resampling
    (Kitagawa 1996, §A.3), none of them twice. Rows are determined by the seed, and are none of those that `draw_rows`
    gives for it, on which discriminators may have learned.

    Args:
        judge: discriminators between the table and samples of this model.
        n: rows, ≥ 0.
        clip_nats: c > 0, as in `LogitReward`: no row weighs more than e^2c times another.
        orders: of columns of the encoding; a row that breaks one weighs nothing.
        most: the largest pool, in rows for each that is asked for, ≥ 1; where it is met first, rows are taken twice,
            and the result says so (`enough`, `repeats`).
        batch_size: rows under way at once; changes no row beyond rounding.

    Raises:
        NumericError: a log density ratio is not finite.
        Unkept: hardly a row keeps the orders.
    """
    least = wanted = max(n, FEWEST)
    largest = most * least
    pool, nats = [draw_rows(model, encoding, 0, seed=seed).codes], np.zeros(0)
    breaks = np.zeros((0, len(orders)), dtype=bool)
    while n:
        fresh_seed = derive(seed, "pool", len(nats))
        fresh = draw_rows(model, encoding, wanted - len(nats), seed=fresh_seed, batch_size=batch_size).codes
        pool.append(fresh)
        breaks = np.concatenate([breaks, broken(encoding.columns, fresh, orders)])
        fails: Bool[np.ndarray, " row"] = np.any(breaks, axis=1)
        found = clipped(_finite(judge.ratio(fresh)), clip_nats)
        nats = np.concatenate([nats, np.where(fails[len(nats) :], -math.inf, found)])
        if hopeless(len(nats), int((~fails).sum())):
            raise unkept(breaks.mean(0), orders, conditions=False)
        if fails.all():
            wanted += FEWEST
            continue
        weights = np.exp(nats - nats.max())
        enough = bool(weights.sum() >= least)
        if enough or wanted >= largest:
            taken = systematic(weights, n, seed=seed)
            return Drawn(
                np.concatenate(pool)[taken],
                len(nats),
                effective=effective_size(weights),
                repeats=n - len(set(taken)),
                enough=enough,
                broken=int(fails.sum()),
            )
        wanted = min(largest, max(wanted + FEWEST, math.ceil(SPARE * least / weights.mean())))
    return Drawn(pool[0], 0)


def _finite(ratio: Weights) -> Weights:
    if not np.isfinite(ratio).all():
        raise NumericError("discriminators give no finite log density ratio for a row of the model; fit them again")
    return ratio
