"""Rows from a model: exactly as many as asked for, all legal, under conditions, and missing cells filled in.

    row ~ π(row | mask)                            no condition, or equalities that the prompt can give
    row ~ q(row) = π(row | narrowed mask)          other conditions: candidates, weighted
    w = π(row | mask) / π(row | narrowed mask)     the product of what the narrowing left of each step's probability

A narrowed mask alone is not the model under a condition: it never asks whether the cells before a narrowed column make
its values likely. The weights put that right (importance resampling: Rubin 1988, "Using the SIR algorithm"), and the
effective sample size (Kong 1992) says what they cost:

    ESS = (Σ w)² / Σ w²
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
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


@dataclass(frozen=True)
class Imputed:
    """Rows whose missing cells are filled in."""

    codes: Codes
    effective: tuple[float, ...] = ()
    """Effective sample size, in candidates, of each row whose candidates were weighed; all others are exact."""
    candidates: int = CANDIDATES
    """How many each of these had."""


def draw_rows(
    model: Any,
    encoding: Encoding,
    n: int,
    *,
    seed: int,
    legal: Mapping[int, Legal] | None = None,
    batch_size: int | None = None,
) -> Drawn:
    """`n` rows under conditions.

    Equalities on the first columns of the order, or on any where any order will do, are given in the prompt. What
    is left narrows the mask; candidates are drawn until none has to be taken twice, n·max w ≤ Σ w (then ESS ≥ n), and
    n of them are resampled by systematic resampling (Kitagawa 1996, §A.3). Where all weights are equal, as for one
    narrowed column with a token a cell at the beginning of the order, the first n candidates are the rows.

    Rows are determined by seed and row number, whatever the batch size; with the same seed the first rows of a longer
    draw are those of a shorter one, unless candidates are weighed.

    Args:
        n: rows, ≥ 0.
        legal: places of columns → the codes that are asked for.
        batch_size: rows under way at once; changes no row beyond rounding.
    """
    asked = dict(legal or {})
    given = given_of(encoding, {place: codes_of(one)[0] for place, one in asked.items() if count(one) == 1})
    rest = {place: one for place, one in asked.items() if place not in given}
    prompt, mask = encoding.prompt(given), encoding.mask(rest)

    def more(rows: range) -> list[Response]:
        found: list[Response] = []
        watched = (
            stage("sampling rows", len(rows)) if len(rows) > TOLD_ROWS else nullcontext(lambda done, note="": None)
        )
        with watched as advance:
            for begin in range(rows.start, rows.stop, TOLD_ROWS):
                keys = [f"row {row}" for row in range(begin, min(begin + TOLD_ROWS, rows.stop))]
                prompts = [prompt] * len(keys)
                found += _sampled(model, encoding, prompts, mask, keys, seed=seed, batch_size=batch_size)
                advance(len(found), f"{len(found):,} rows")
        return found

    if not rest or not n:
        return Drawn(_codes(encoding, more(range(n))), n)
    grammar = grammar_of(encoding.mask())
    least = wanted = max(n, FEWEST)
    most = MOST * least
    responses: list[Response] = []
    nats = np.zeros(0)
    while True:
        drawn = more(range(len(responses), wanted))
        responses += drawn
        nats = np.concatenate([nats, _weights_nats(model, grammar, drawn)])
        weights = _relative(nats)
        if np.ptp(nats) < ROUNDING_NATS:
            return Drawn(_codes(encoding, responses[:n]), len(responses))
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
    )


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
    candidates: int = CANDIDATES,
    batch_size: int | None = None,
) -> Imputed:
    """Each row with its unknown cells drawn from the model given the known ones, which stay as they are.

    - Where the unknown cells have at most `candidates` values together, each is scored, and one is drawn by its
      probability: exact.
    - Where the prompt can give all known cells, and unknown ones may take any code: one sample, exact.
    - Otherwise `candidates` rows are drawn under a mask that allows the known cells as they are, and one of them is
      drawn by its weight.

    Args:
        codes: what stands at unknown cells plays no part.
        legal: places → codes that an unknown cell may take, of every column that has unknown cells; all of them
            `writable`.
        candidates: > 0.
    """
    sizes = [count(one) for one in writable(encoding)]
    gaps = [
        _gap(encoding, int(row), codes[row], np.flatnonzero(unknown[row]), legal, sizes)
        for row in np.flatnonzero(unknown.any(1))
    ]
    base = encoding.mask()
    grammar = grammar_of(base)
    filled = codes.copy()
    effective: list[float] = []
    few = [gap for gap in gaps if gap.values <= candidates]
    for begin in range(0, len(few), ROWS_AT_ONCE):
        _fill_by_scores(model, encoding, grammar, few[begin : begin + ROWS_AT_ONCE], filled, seed=seed)
    many = [gap for gap in gaps if gap.values > candidates]
    free = [gap for gap in many if gap.free]
    drawn = _sampled(
        model,
        encoding,
        [encoding.prompt(gap.given) for gap in free],
        base,
        [f"cells of {gap.row}" for gap in free],
        seed=seed,
        batch_size=batch_size,
    )
    for gap, response in zip(free, drawn, strict=True):
        _fill(filled, gap, encoding.row(response.prompt + response.tokens))
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
        weights = _relative(_weights_nats(model, grammar, weighed))
        taken = weighed[systematic(weights, 1, seed=derive(seed, "imputed", gap.row))[0]]
        _fill(filled, gap, encoding.row(taken.prompt + taken.tokens))
        effective.append(effective_size(weights))
    return Imputed(filled, tuple(effective), candidates)


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
    model: Any, encoding: Encoding, grammar: Grammar, gaps: Sequence[_Gap], filled: Codes, *, seed: int
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
        weights = _relative(nats[begin : begin + len(made)])
        begin += len(made)
        _fill(filled, gap, np.array(made[systematic(weights, 1, seed=derive(seed, "imputed", gap.row))[0]]))


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


def _relative(nats: Weights) -> Weights:
    """Weights, the largest of them 1."""
    return np.exp(nats - nats.max())


def _codes(encoding: Encoding, responses: Sequence[Response]) -> Codes:
    rows = [encoding.row(response.prompt + response.tokens) for response in responses]
    return np.array(rows, dtype=np.int64).reshape(len(rows), len(encoding.columns))
