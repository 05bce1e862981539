"""Rows from a model: exactly as many as asked for, all legal, under conditions, and missing cells filled in.

    row ~ π(row | mask)                            no condition, or equalities that the prompt can give
    row ~ q(row) = π(row | narrowed mask)          other conditions: candidates, weighted
    w = π(row | mask) / π(row | narrowed mask)     the product of what the narrowing left of each step's probability
    row ~ π(row | orders kept)                     where orders of columns are to be kept: broken rows are drawn again

A narrowed mask alone is not the model under a condition: it never asks whether the cells before a narrowed column make
its values likely. The weights put that right (importance resampling: Rubin 1988, "Using the SIR algorithm"), and the
effective sample size (Kong 1992) says what they cost:

    ESS = (Σ w)² / Σ w²
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from preflab.data.encode import Tree
from preflab.models.scoring import Grammar, logprobs_of
from preflab.progress import stage
from preflab.rollouts.mask import TokenMask, grammar_of
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.seeds import derive
from preflab.tables.compact import Compact
from preflab.tables.conditions import codes_of, count, only
from preflab.tables.encoding import Encoding, Legal, legal_of, unmasked_validity
from preflab.tables.judge.validity import Order
from preflab.tables.orders import AGAIN, broken, hopeless, unkept

TOLD_ROWS = 2048
"""So many are sampled between two signs of progress; where there are no more, there is none."""
FEWEST = 64
"""Candidates are weighed among at least so many, however few rows are asked for: among one, weights say nothing."""
MOST = 20
"""And among at most so many a row, or as many times `FEWEST`."""
SPARE = 1.1
"""How many more than what the weights so far suggest are drawn in the next round."""
ROUNDING_NATS = 1e-3
"""Weights this near to each other are one weight: a float32 sum over a row has no more digits."""
CANDIDATES = 100
"""For a row with missing cells."""
ROWS_AT_ONCE = 256
"""Rows whose missing cells are scored together."""
SCORED_AT_ONCE = 256
"""Rows in a pass of the model."""

Codes = Int[np.ndarray, "row column"]
Weights = Float[np.ndarray, " candidate"]
Values = Float[np.ndarray, "row column"]
Breaks = Bool[np.ndarray, "row order"]


@dataclass(frozen=True)
class Drawn:
    """Rows, and what it took to draw them."""

    codes: Codes
    """As many as were asked for, in the order of the encoding's columns."""
    candidates: int
    """Rows that were sampled for them."""
    effective: float | None = None
    """Effective sample size of the weighted candidates, in rows; None: rows are samples of the model itself."""
    repeats: int = 0
    """Rows that are a candidate which was taken before."""
    enough: bool = True
    """False where the limit on candidates was met before no candidate had to be taken twice."""
    broken: int = 0
    """Candidates that were not taken, since they broke an order."""


@dataclass(frozen=True)
class Imputed:
    """Rows whose missing cells are filled in."""

    codes: Codes
    effective: tuple[float, ...] = ()
    """Effective sample size, in candidates, of each row whose candidates were weighed; all others are exact."""
    candidates: int = CANDIDATES
    """How many each of these had."""
    broken: int = 0
    """Rows with unknown cells that break an order all the same: their known cells leave no way to keep it, or none was
    among the candidates."""


def draw_rows(
    model: Any,
    encoding: Encoding,
    n: int,
    *,
    seed: int,
    legal: Mapping[int, Legal] | None = None,
    orders: Sequence[Order] = (),
    batch_size: int | None = None,
) -> Drawn:
    """`n` rows under conditions.

    Equalities on the first columns of the order, or on any where any order will do, are given in the prompt. What
    is left narrows the mask; candidates are drawn until none has to be taken twice, n·max w ≤ Σ w (then ESS ≥ n), and
    n of them are resampled by systematic resampling (Kitagawa 1996, §A.3). Where all weights are equal, as for one
    narrowed column with a token a cell at the beginning of the order, the first n candidates are the rows.

    A row that breaks one of `orders` is drawn again, from uniforms that are its own: so rows have the distribution
    π(row | orders kept), and those that broke none are the same with and without. Where candidates are weighed, one
    that breaks an order has the weight 0.

    Rows are determined by seed and row number, whatever the batch size; with the same seed the first rows of a longer
    draw are those of a shorter one, unless candidates are weighed.

    Args:
        n: rows, ≥ 0.
        legal: places of columns → the codes that are asked for.
        orders: of columns of the encoding, which all rows keep; none: rows are the model's own, faults and all, which
            is what its discriminators and rewards are asked about.
        batch_size: rows under way at once; changes no row beyond rounding.

    Raises:
        Unkept: hardly a row keeps the orders.
    """
    asked = dict(legal or {})
    given = given_of(encoding, {place: codes_of(one)[0] for place, one in asked.items() if count(one) == 1})
    rest = {place: one for place, one in asked.items() if place not in given}
    prompt, mask = encoding.prompt(given), encoding.mask(rest)

    def more(keys: Sequence[str]) -> list[Response]:
        found: list[Response] = []
        watched = (
            stage("sampling rows", len(keys)) if len(keys) > TOLD_ROWS else nullcontext(lambda done, note="": None)
        )
        with watched as advance:
            for begin in range(0, len(keys), TOLD_ROWS):
                some = keys[begin : begin + TOLD_ROWS]
                prompts = [prompt] * len(some)
                found += _sampled(model, encoding, prompts, mask, some, seed=seed, batch_size=batch_size)
                advance(len(found), f"{len(found):,} rows")
        return found

    def breaks(codes: Codes) -> Breaks:
        return broken(encoding.columns, codes, orders)

    if not rest or not n:
        return _until_kept(lambda keys: _codes(encoding, more(keys)), n, breaks, orders, conditions=bool(asked))
    grammar = grammar_of(encoding.mask())
    least = wanted = max(n, FEWEST)
    most = MOST * least
    responses: list[Response] = []
    nats, found = np.zeros(0), np.zeros((0, len(orders)), dtype=bool)
    while True:
        drawn = more([f"row {row}" for row in range(len(responses), wanted)])
        responses += drawn
        nats = np.concatenate([nats, _weights_nats(model, grammar, drawn)])
        found = np.concatenate([found, breaks(_codes(encoding, drawn))])
        kept = np.flatnonzero(~found.any(1))
        if hopeless(len(responses), len(kept)):
            raise unkept(found.mean(0), orders, conditions=True)
        if not len(kept):
            wanted += FEWEST
            continue
        weights = _relative(nats, kept)
        if np.ptp(nats) < ROUNDING_NATS and len(kept) >= n:
            rows = [responses[place] for place in kept[:n]]
            return Drawn(_codes(encoding, rows), len(responses), broken=len(responses) - len(kept))
        if weights.sum() >= least or wanted == most:
            break
        wanted = min(most, max(wanted + FEWEST, math.ceil(SPARE * least / weights.mean())))
    taken = systematic(weights, n, seed=seed)
    return Drawn(
        _codes(encoding, [responses[place] for place in taken]),
        len(responses),
        effective=effective_size(weights),
        repeats=n - len(set(taken)),
        enough=bool(weights.sum() >= least),
        broken=len(responses) - len(kept),
    )


def _until_kept(
    draw: Callable[[Sequence[str]], Codes],
    n: int,
    breaks: Callable[[Codes], Breaks],
    orders: Sequence[Order],
    *,
    conditions: bool,
) -> Drawn:
    """Rows by their keys, those that break an order again and again under keys of their own, some at once where few are
    left: of these the first that keeps them."""
    codes = draw([f"row {row}" for row in range(n)])
    found = breaks(codes)
    left, fails = np.flatnonzero(found.any(1)), found.sum(0)
    bad, times = len(left), 0
    while len(left):
        if hopeless(n + bad, n - len(left)):
            raise unkept(fails / (n + bad - len(left)), orders, conditions=conditions)
        tries = max(1, FEWEST // len(left))
        keys = [f"row {row}, drawn again {times + one}" for row in left for one in range(1, tries + 1)]
        drawn = draw(keys).reshape(len(left), tries, -1)
        found = breaks(drawn.reshape(len(keys), -1)).reshape(len(left), tries, -1)
        fine = ~np.any(found, axis=2)
        none = ~np.any(fine, axis=1)
        before = np.where(none, tries, fine.argmax(1))  # those behind the first that is fine count for nothing
        bad, times = bad + int(before.sum()), times + tries
        fails = fails + (found & (np.arange(tries) < before[:, None])[..., None]).sum((0, 1))
        codes[left] = drawn[np.arange(len(left)), np.minimum(before, tries - 1)]
        left = left[none]
    return Drawn(codes, n + bad, broken=bad)


def writable(encoding: Encoding) -> list[Legal]:
    """What the mask allows in each column where nothing narrows it: less than `legal_of` where a token stands for a
    point that training rows hold, and others have none."""
    found = [legal_of(column) for column in encoding.columns]
    if isinstance(encoding, Compact):
        for place, (column, starts) in enumerate(zip(encoding.columns, encoding.buckets, strict=True)):
            if column.numbers is not None and not starts:
                found[place] &= Legal(found[place].levels, tuple((point, point) for point in column.numbers.seen))
    return found


def given_of(encoding: Encoding, known: Mapping[int, int]) -> dict[int, int]:
    """Which of these cells (places → codes) the prompt can give: all, or those before the first other one."""
    if encoding.any_order:
        return dict(known)
    given: dict[int, int] = {}
    for place in encoding.order:
        if place not in known:
            break
        given[place] = known[place]
    return given


def effective_size(weights: Weights) -> float:
    """ESS = (Σ w)² / Σ w²: that many equally weighted samples would say as much.

    >>> effective_size(np.array([1.0, 1.0, 0.0, 0.0]))
    2.0
    """
    return float(weights.sum() ** 2 / (weights**2).sum())


def systematic(weights: Weights, n: int, *, seed: int) -> list[int]:
    """`n` places drawn in proportion to weights, by one uniform: place i comes ⌊n·wᵢ/Σw⌋ times or once more.

    >>> systematic(np.array([2.0, 1.0, 1.0]), 4, seed=0)
    [0, 0, 1, 2]
    """
    shift = np.random.Generator(np.random.Philox(derive(seed, "resampling"))).random()
    ends = weights.cumsum()
    places = np.searchsorted(ends, (shift + np.arange(n)) / n * ends[-1], side="right")
    return [int(place) for place in np.minimum(places, np.flatnonzero(weights)[-1])]


def unmasked_share(model: Any, encoding: Encoding, n: int, *, seed: int, batch_size: int | None = None) -> float:
    """The share of `n` samples that are legal rows, and end by themselves, where no mask holds the model to it; 0–1."""
    keys = [f"unmasked {row}" for row in range(n)]
    responses = _sampled(model, encoding, [encoding.prompt()] * n, None, keys, seed=seed, batch_size=batch_size)
    ended = [response.prompt + response.tokens for response in responses if response.ended]
    return unmasked_validity(encoding, ended) * len(ended) / n if ended else 0.0


def impute_rows(
    model: Any,
    encoding: Encoding,
    codes: Codes,
    unknown: Bool[np.ndarray, "row column"],
    *,
    seed: int,
    legal: Mapping[int, Legal],
    orders: Sequence[Order] = (),
    exact: Values | None = None,
    candidates: int = CANDIDATES,
    batch_size: int | None = None,
) -> Imputed:
    """Each row with its unknown cells drawn from the model given the known ones, which stay as they are.

    - Where the unknown cells have at most `candidates` values together, each is scored, and one is drawn by its
      probability: exact.
    - Where the prompt can give all known cells, and unknown ones may take any code: one sample, exact; another where it
      breaks an order, at most 100 times.
    - Otherwise `candidates` rows are drawn under a mask that allows the known cells as they are, and one of them is
      drawn by its weight.

    In each way rows that break one of `orders` are not taken; where the row's known cells leave no other, orders that
    can't be kept are left aside.

    Args:
        codes: what stands at unknown cells plays no part.
        legal: places → codes that an unknown cell may take, of every column that has unknown cells; all of them
            `writable`.
        orders: of columns of the encoding.
        exact: numbers of known cells, which orders are about, where `codes` has the nearest that the model knows; NaN:
            that of the code.
        candidates: > 0.
    """
    sizes = [count(one) for one in writable(encoding)]
    gaps = [
        _gap(encoding, int(row), codes[row], np.flatnonzero(unknown[row]), legal, sizes)
        for row in np.flatnonzero(unknown.any(1))
    ]

    def breaks(rows: Sequence[int], made: Codes) -> Breaks:
        return broken(encoding.columns, made, orders, exact=None if exact is None else exact[rows])

    base = encoding.mask()
    grammar = grammar_of(base)
    filled = codes.copy()
    effective: list[float] = []
    few = [gap for gap in gaps if gap.values <= candidates]
    for begin in range(0, len(few), ROWS_AT_ONCE):
        _fill_by_scores(model, encoding, grammar, few[begin : begin + ROWS_AT_ONCE], filled, breaks, seed=seed)
    many = [gap for gap in gaps if gap.values > candidates]
    free = [gap for gap in many if gap.free]
    fewest = {gap.row: len(orders) + 1 for gap in free}
    for times in range(AGAIN):
        if not free:
            break
        drawn = _sampled(
            model,
            encoding,
            [encoding.prompt(gap.given) for gap in free],
            base,
            [f"cells of {gap.row}" + (f", drawn again {times}" if times else "") for gap in free],
            seed=seed,
            batch_size=batch_size,
        )
        rows = _codes(encoding, drawn)
        found = breaks([gap.row for gap in free], rows) & _undecided(encoding, free, orders)
        counts = found.sum(1).tolist()
        for gap, row, fails in zip(free, rows, counts, strict=True):
            if fails < fewest[gap.row]:
                fewest[gap.row] = fails
                _fill(filled, gap, row)
        free = [gap for gap, fails in zip(free, counts, strict=True) if fails]
    for gap in many:
        if gap.free:
            continue
        weighed = _sampled(
            model,
            encoding,
            [encoding.prompt(gap.given)],
            encoding.mask(gap.rest),
            [f"cells of {gap.row}"],
            seed=seed,
            samples=candidates,
            batch_size=batch_size,
        )
        made = _codes(encoding, weighed)
        kept = _able(breaks([gap.row] * len(made), made))
        weights = _relative(_weights_nats(model, grammar, weighed), kept)
        _fill(filled, gap, made[systematic(weights, 1, seed=derive(seed, "imputed", gap.row))[0]])
        effective.append(effective_size(weights))
    rows_of = [gap.row for gap in gaps]
    still = breaks(rows_of, filled[rows_of]).any(1)
    return Imputed(filled, tuple(effective), candidates, broken=int(still.sum()))


@dataclass(frozen=True)
class _Gap:
    """The unknown cells of a row."""

    row: int
    known: Int[np.ndarray, " column"]
    """All its codes; arbitrary at unknown cells."""
    unknown: tuple[int, ...]
    """Places, in the order of the table."""
    given: Mapping[int, int]
    """Cells that the prompt gives."""
    rest: Mapping[int, Legal]
    """What the other cells may hold."""
    values: int
    """How many values the unknown cells have together."""
    free: bool
    """Whether every other cell may hold anything."""


def _gap(
    encoding: Encoding,
    row: int,
    codes: Int[np.ndarray, " column"],
    unknown: Int[np.ndarray, " place"],
    legal: Mapping[int, Legal],
    sizes: Sequence[int],
) -> _Gap:
    places = tuple(int(place) for place in unknown)
    known = {place: int(code) for place, code in enumerate(codes) if place not in places}
    given = given_of(encoding, known)
    rest = {place: legal[place] for place in places}
    rest |= {place: only(code) for place, code in known.items() if place not in given}
    return _Gap(
        row,
        codes,
        places,
        given,
        rest,
        values=math.prod(count(legal[place]) for place in places),
        free=all(count(one) == sizes[place] for place, one in rest.items()),
    )


def _fill(filled: Codes, gap: _Gap, codes: Int[np.ndarray, " column"]) -> None:
    filled[gap.row, list(gap.unknown)] = codes[list(gap.unknown)]


def _fill_by_scores(
    model: Any,
    encoding: Encoding,
    grammar: Grammar,
    gaps: Sequence[_Gap],
    filled: Codes,
    breaks: Callable[[Sequence[int], Codes], Breaks],
    *,
    seed: int,
) -> None:
    """Every value of the unknown cells, weighed by the probability of the row that it makes."""
    rows: list[list[list[int]]] = []
    for gap in gaps:
        rows.append([])
        for values in product(*(codes_of(gap.rest[place]) for place in gap.unknown)):
            row = gap.known.copy()
            row[list(gap.unknown)] = values
            rows[-1].append([int(code) for code in row])
    trees = [
        Tree(
            f"row {gap.row + 1}",
            encoding.prompt(gap.given),
            tuple(encoding.response(row, _order(encoding, gap), given=len(gap.given)) for row in made),
        )
        for gap, made in zip(gaps, rows, strict=True)
    ]
    nats = logprobs_of(model, trees, batch_size=SCORED_AT_ONCE, grammar=grammar).double().numpy()
    begin = 0
    for gap, made in zip(gaps, rows, strict=True):
        kept = _able(breaks([gap.row] * len(made), np.array(made)))
        weights = _relative(nats[begin : begin + len(made)], kept)
        begin += len(made)
        _fill(filled, gap, np.array(made[systematic(weights, 1, seed=derive(seed, "imputed", gap.row))[0]]))


def _able(breaks: Breaks) -> Int[np.ndarray, " place"]:
    """Which candidates for one row may be taken: those that keep every order, but for orders that none of them keeps;
    all, where those that are left can't be kept together."""
    kept = np.flatnonzero(~breaks[:, ~breaks.all(0)].any(1))
    return kept if len(kept) else np.arange(len(breaks))


def _undecided(encoding: Encoding, gaps: Sequence[_Gap], orders: Sequence[Order]) -> Bool[np.ndarray, "row order"]:
    """Which orders have a cell that is unknown: of the others, no draw changes anything."""
    found = np.zeros((len(gaps), len(orders)), dtype=bool)
    for number, gap in enumerate(gaps):
        unknown = {encoding.columns[place].name for place in gap.unknown}
        found[number] = [order.low in unknown or order.high in unknown for order in orders]
    return found


def _order(encoding: Encoding, gap: _Gap) -> Sequence[int] | None:
    """The order in which the cells of this row stand: those that are given first."""
    if not encoding.any_order:
        return None
    return [*gap.given, *(place for place in encoding.order if place not in gap.given)]


def _sampled(
    model: Any,
    encoding: Encoding,
    prompts: Sequence[tuple[int, ...]],
    mask: TokenMask[Any] | None,
    keys: Sequence[str],
    *,
    seed: int,
    samples: int = 1,
    batch_size: int | None,
) -> list[Response]:
    return sample(
        model,
        prompts,
        keys=keys,
        end_id=encoding.end_id,
        max_new_tokens=encoding.longest,
        seed=derive(seed, "rows"),
        samples=samples,
        mask=mask,
        batch_size=batch_size,
    )


def _weights_nats(model: Any, grammar: Grammar, responses: Sequence[Response]) -> Weights:
    """log w of rows that were sampled under a narrowed mask: ≤ 0 but for rounding."""
    trees = [response.tree for response in responses]
    whole = logprobs_of(model, trees, batch_size=SCORED_AT_ONCE, grammar=grammar).double().numpy()
    return whole - np.array([math.fsum(response.logprobs) for response in responses])


def _relative(nats: Weights, kept: Int[np.ndarray, " place"]) -> Weights:
    """Weights, the largest of them 1; 0 but for those that are kept."""
    weights = np.zeros(len(nats))
    weights[kept] = np.exp(nats[kept] - nats[kept].max())
    return weights


def _codes(encoding: Encoding, responses: Sequence[Response]) -> Codes:
    rows = [encoding.row(response.prompt + response.tokens) for response in responses]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(encoding.columns))
