"""What a model of rows is paid for a row: what discriminators say of it (`discriminators/level.py`), in two forms.

`LogitReward`: one log density ratio a row, clipped.

    r(x) = clip(logit D(x), ±c)                           logit D(x) = log p(x) − log q(x) where D is the best there is

*Theorem.* Let p be the rows of the table and D optimal between p and samples of the reference itself, q = π_ref. Then
the policy that maximises E r − β·KL(π‖π_ref) at β = 1, without a clip, is the distribution of the table:

    π*(x) = π_ref(x)·exp(r(x)/β)/Z = π_ref(x)·p(x)/π_ref(x) = p(x),     Z = Σ p(x) = 1

It follows from the optimal discriminator (Goodfellow et al. 2014, arXiv 1406.2661, Proposition 1) and the optimum under
a KL penalty (Ziegler et al. 2019, arXiv 1909.08593; Korbak, Perez, Buckley 2022, arXiv 2205.11275). At another β the
optimum is p^(1/β)·π_ref^(1 − 1/β)/Z.

Its dense form pays each token the difference that it makes (a potential; Ng, Harada, Russell 1999, "Policy invariance
under reward transformations"):

    r_t = Φ(x≤t) − Φ(x<t),     Φ(∅) = 0,   Φ(x≤t) = clip(logit D(x≤t), ±c) of the token level,   Φ(x) = r(x) at the end

so that Σ_t r_t = r(x), and the optimum is the same whatever Φ says before the end. Where the token level is optimal,
r_t = log p(x_t|x<t) − log π_ref(x_t|x<t): nothing is left to be had later, and the values to learn are 0.

What does *not* lead to p (`tests/test_density_ratio_theorem.py` has each by enumeration):

- the sum of the levels' log ratios, each of which holds the evidence of the others again;
- the sum of prefix logits, Σ_t logit D(x≤t): the first token's evidence counts as often as there are tokens;
- a clip that acts: the optimum is p·w/Z, w = exp(r − logit D), not farther from p in total variation than Σ p·|w − 1|;
- a D whose negatives are of another policy than the reference, say of an earlier round: π_ref·p/π_then. Negatives with
  weights π_ref/π_then make it p again.

A wrong share of real rows adds a constant to logit D, and changes the optimum only where it moves the clip.

`WeightedReward`, the founding form: a weighted mean of probabilities, whose optimum is no distribution that was asked
for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import expit

from preflab.errors import ConfigError, NumericError
from preflab.rewards.protocol import Answer, Score, Scores, named
from preflab.tables.compact import Compact
from preflab.tables.discriminators.level import LEVELS, Codes, Level, Logits, Opinion, of_rows
from preflab.tables.draw import writable
from preflab.tables.encoding import Encoding, Legal, legal_of

CLIP_NATS = 5.0
"""A row is at most e⁵ ≈ 150 times as likely under the optimum, before it is normalised, as under the reference."""
WEIGHTS: Mapping[Level, float] = {"token": 0.2, "sentence": 0.3, "row": 0.3, "feature": 0.2}
"""Of the founding form."""

RowFigures = Float[np.ndarray, " row"]
Payments = Float[np.ndarray, "row token"]


class Judge(Protocol):
    """Discriminators, all together."""

    def opinion(self, codes: Codes, *, whole: bool = False) -> Opinion:
        """What they say of at least one row; `whole`: of whole rows alone, which is faster where a level reads rows
        token by token."""
        ...


@dataclass(frozen=True)
class LogitReward:
    """min(max(log density ratio, −c), c), in nats; see above.

    A response that is no legal row with its end token gets −c. With `dense`, tokens get their differences; without a
    token level there are none, and what a row gets stands at its end.

    Parts: the mean row logit of each level that is there, and the logit of each discriminator that is not alone in its
    level, by its own name; "clipped" and "illegal", 0 or 1. The logits of an illegal row are −c there.

    Args:
        encoding: of the rows; responses are read by their ids alone.
        judge: discriminators, calibrated.
        clip_nats: c, finite and > 0.
        dense: reward single tokens.

    Raises:
        ConfigError: `clip_nats` is out of range.

    >>> from preflab.tables.column import Column
    >>> class Sure:
    ...     def opinion(self, codes, *, whole=False):
    ...         logits = np.where(codes == -1, 9.0, -0.5)
    ...         return Opinion({"row": logits}, {"row": "row"}, logits[:, 0])
    >>> encoding = Compact.of((Column("smokes", "boolean", levels=("no", "yes")),), np.array([[-1], [-2]]))
    >>> answers = [Answer("", "", encoding.prompt(), tokens, 1 in tokens) for tokens in [(2, 1), (3, 1), (3,)]]
    >>> LogitReward(encoding, Sure())(answers).totals
    [5.0, -0.5, -5.0]
    """

    encoding: Encoding
    judge: Judge
    clip_nats: float = CLIP_NATS
    dense: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.clip_nats < math.inf:
            raise ConfigError(
                f"clip_nats = {self.clip_nats}: give a finite number of nats above 0, such as {CLIP_NATS}"
            )

    @property
    def name(self) -> str:
        return "logit"

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer.

        Raises:
            NumericError: a discriminator's logit is not finite.
        """
        rows = read(self.encoding, self.judge, answers, whole=not self.dense)
        totals = clipped(rows.ratio, self.clip_nats)
        of_levels = by_level({name: of_rows(rows.levels[name], one) for name, one in rows.logits.items()}, rows.levels)
        return rows.scores(
            totals,
            self._payments(rows, totals),
            of_levels | {"clipped": (np.abs(rows.ratio) > self.clip_nats).astype(float)},
            least=-self.clip_nats,
            least_parts=dict.fromkeys(of_levels, -self.clip_nats) | {"clipped": 1.0},
        )

    def _payments(self, rows: Rows, totals: RowFigures) -> Payments | None:
        """Φ(x≤t) − Φ(x<t), 0 behind the end."""
        level = [one for name, one in rows.logits.items() if rows.levels[name] == "token"]
        if not self.dense or not level:
            return None
        potentials = clipped(np.mean(level, axis=0), self.clip_nats)
        ends = rows.lengths[:, None] - 1
        potentials = np.where(np.arange(potentials.shape[1]) < ends, potentials, totals[:, None])
        return np.diff(potentials, axis=1, prepend=0.0)


@dataclass(frozen=True)
class WeightedReward:
    """The founding form, in [0, 1]: a weighted mean of how real each level finds a row,

        r(x) = 0.2·mean_t D(x≤t) + 0.3·mean_c D(cell c) + 0.3·D(x) + 0.2·mean_g D_g(x),     D = σ(logit D)

    over tokens t, cells c and feature groups g. Weights are divided by their sum over the levels that are there: fewer
    levels have the same range. A response that is no legal row with its end token gets 0.

    With `dense`, each token gets its own share 0.2·D/T, the token that completes a cell 0.3·D/C, the last token the
    rest: Σ_t r_t = r(x).

    Parts: the mean probability of each level that is there, and that of each discriminator that is not alone in its
    level, by its own name; "illegal", 0 or 1. The probabilities of an illegal row are 0 there.

    Args:
        encoding, judge, dense: as in `LogitReward`.
    """

    encoding: Encoding
    judge: Judge
    dense: bool = False

    @property
    def name(self) -> str:
        return "weighted"

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer.

        Raises:
            NumericError: a discriminator's logit is not finite.
        """
        rows = read(self.encoding, self.judge, answers)
        # What stands behind the end of a shorter row is its last logit again, and counts nowhere.
        held = np.arange(self.encoding.longest) < rows.lengths[:, None]
        chances, means = dict[str, Float[np.ndarray, "row place"]](), dict[str, RowFigures]()
        for name, logits in rows.logits.items():
            counts = held if rows.levels[name] == "token" else np.ones(logits.shape)
            chances[name] = expit(logits) * counts / counts.sum(1, keepdims=True)
            means[name] = chances[name].sum(1)
        parts = by_level(means, rows.levels)
        there = [level for level in LEVELS if level in parts]
        whole = sum(WEIGHTS[level] for level in there)
        totals = sum((WEIGHTS[level] / whole * parts[level] for level in there), np.zeros(len(rows.codes)))
        payments = np.zeros(held.shape) if self.dense else None
        if payments is not None:
            for name, shares in chances.items():
                level = rows.levels[name]
                weight = WEIGHTS[level] / whole / sum(rows.levels[other] == level for other in chances)
                payments[np.arange(len(payments))[:, None], rows.places_of(level)] += weight * shares
        return rows.scores(totals, payments, parts, least=0.0, least_parts=dict.fromkeys(parts, 0.0))


@dataclass(frozen=True)
class Rows:
    """Answers, those among them that are legal rows, and what discriminators say of these."""

    encoding: Encoding
    answers: Sequence[Answer]
    found: tuple[int, ...]
    """Which answers are legal rows with their end token."""
    codes: Codes
    logits: Mapping[str, Logits]
    """As in `Opinion`, like all that follows."""
    levels: Mapping[str, Level]
    ratio: RowFigures

    @cached_property
    def ends(self) -> Int[np.ndarray, "row cell"]:
        """See `cell_ends`."""
        return cell_ends(self.encoding, self.codes)

    @property
    def lengths(self) -> Int[np.ndarray, " row"]:
        """Tokens of each row's response from its first cell on, with the end token."""
        return self.ends[:, -1] + 2

    def places_of(self, level: Level) -> Int[np.ndarray, "row place"]:
        """The token at which each place of a level's logits is paid."""
        match level:
            case "token":
                return np.tile(np.arange(self.encoding.longest), (len(self.codes), 1))
            case "sentence":
                return self.ends
            case "row" | "feature":
                return self.lengths[:, None] - 1

    def scores(
        self,
        totals: RowFigures,
        payments: Payments | None,
        parts: Mapping[str, RowFigures],
        *,
        least: float,
        least_parts: Mapping[str, float],
    ) -> Scores:
        """One score an answer.

        Args:
            totals: of the rows.
            payments: to each token of each row's response from its first cell on; 0 behind its end.
            parts: of the rows.
            least: what other answers get, at their last token.
            least_parts: their parts.
        """
        values = [
            Score(least, None if payments is None else _at_the_end(least, answer), {**least_parts, "illegal": 1.0})
            for answer in self.answers
        ]
        paid = [None] * len(self.found) if payments is None else self._tokens(totals, payments)
        for row, place in enumerate(self.found):
            own = {name: float(figures[row]) for name, figures in parts.items()}
            values[place] = Score(float(totals[row]), paid[row], {**own, "illegal": 0.0})
        return Scores(values, calls=len(self.answers))

    def _tokens(self, totals: RowFigures, payments: Payments) -> list[tuple[float, ...]]:
        """What each response's tokens get. What the cells in a prompt are worth goes to the first token after it; a row
        whose cells stand in another order than the judged one gets all at its end."""
        as_judged = self._in_order()
        found = []
        for row, (place, length) in enumerate(zip(self.found, self.lengths.tolist(), strict=True)):
            answer = self.answers[place]
            if not as_judged[row]:
                found.append(_at_the_end(float(totals[row]), answer))
                continue
            given = length - len(answer.response_ids)
            own = payments[row, given:length].copy()
            own[0] += payments[row, :given].sum()
            found.append(tuple(own.tolist()))
        return found

    def _in_order(self) -> list[bool]:
        """Of each row, whether its cells stand in the encoding's order, in which discriminators read them."""
        if not self.encoding.any_order:
            return [True] * len(self.codes)
        if isinstance(self.encoding, Compact):
            written = [tuple(tokens) for tokens in self.encoding.sequences(self.codes).tolist()]
        else:
            start = self.encoding.prompt()
            written = [start + self.encoding.response(codes) for codes in self.codes.tolist()]
        answers = [self.answers[place] for place in self.found]
        return [one.prompt_ids + one.response_ids == tokens for one, tokens in zip(answers, written, strict=True)]


def read(encoding: Encoding, judge: Judge, answers: Sequence[Answer], *, whole: bool = False) -> Rows:
    """Answers as rows, judged; those that are none are left out.

    Args:
        whole: judge whole rows alone; each discriminator then has one place.

    Raises:
        NumericError: a discriminator's logit is not finite.
        ValueError: it has not as many as its level has places; at token level, those of the longest row.
    """
    legal = [legal_of(column) for column in encoding.columns]
    rows = {place: codes for place, answer in enumerate(answers) if (codes := _row(encoding, answer)) is not None}
    codes = np.array(list(rows.values()), dtype=np.int64).reshape(len(rows), len(encoding.columns))
    kept = _all_legal(codes, legal)
    found, codes = tuple(place for place, keep in zip(rows, kept, strict=True) if keep), codes[kept]
    # Where there is no row to judge, some legal row tells which discriminators there are.
    opinion = judge.opinion(codes if len(codes) else _some_row(encoding), whole=whole)
    rows_of = slice(len(codes))
    logits = {name: one[rows_of] for name, one in opinion.logits.items()}
    judged = Rows(encoding, answers, found, codes, logits, opinion.levels, opinion.ratio[rows_of])
    places = {"token": encoding.longest, "sentence": len(encoding.columns), "row": 1, "feature": 1}
    for name, values in logits.items():
        if values.shape != (len(codes), 1 if whole else places[judged.levels[name]]):
            raise ValueError(f'discriminator "{name}" gives logits of shape {values.shape} for {len(codes)} rows')
        _check_finite(name, values, judged)
    _check_finite("all", judged.ratio[:, None], judged)
    return judged


def _check_finite(name: str, logits: Logits, rows: Rows) -> None:
    finite = np.isfinite(logits).all(1)
    if not finite.all():
        answer = rows.answers[rows.found[int(np.flatnonzero(~finite)[0])]]
        raise NumericError(f'discriminator "{name}" gives no finite logit for {named(answer)}; fit it again')


def clipped(ratio: Float[np.ndarray, "*any"], clip_nats: float) -> Float[np.ndarray, "*any"]:
    """Log density ratios within ±`clip_nats`."""
    return np.clip(ratio, -clip_nats, clip_nats)


def by_level(figures: Mapping[str, RowFigures], levels: Mapping[str, Level]) -> dict[str, RowFigures]:
    """The mean of each level's discriminators, and each that is not named like its level by its own name.

    >>> of = {"feature: a": np.array([1.0]), "feature: b": np.array([3.0]), "row": np.array([5.0])}
    >>> by_level(of, {"feature: a": "feature", "feature: b": "feature", "row": "row"})
    {'row': array([5.]), 'feature': array([2.]), 'feature: a': array([1.]), 'feature: b': array([3.])}
    """
    found: dict[str, RowFigures] = {}
    for level in LEVELS:
        if same := [figures[name] for name in figures if levels[name] == level]:
            found[level] = np.mean(same, axis=0)
    return found | {name: one for name, one in figures.items() if name not in found}


def cell_ends(encoding: Encoding, codes: Codes) -> Int[np.ndarray, "row cell"]:
    """The place in a row's response of the token that completes each cell, in the order in which cells are written: its
    last, or that of the comma which says that it is the last.

    >>> from preflab.tables.column import Column, Numbers
    >>> age = Column("age", "integer", numbers=Numbers(0, 5000, ()))
    >>> smokes = Column("smokes", "boolean", levels=("no", "yes"))
    >>> encoding = Compact.of((age, smokes), np.array([[i, -1] for i in range(5000)]))
    >>> encoding.response([7, -1]), cell_ends(encoding, np.array([[7, -1]])).tolist()
    ((2, 65, 82, 85, 1), [[2, 3]])
    """
    if isinstance(encoding, Compact):  # all rows alike
        tokens = [encoding.any_order + 1 + encoding.cells[number].places for number in encoding.order]
        return np.tile(np.cumsum(tokens) - 1, (len(codes), 1))
    counts = range(len(encoding.columns) + 1)
    left = [[len(encoding.response(row, given=count)) for count in counts] for row in codes.tolist()]
    lengths = np.array(left, dtype=np.int64).reshape(len(codes), len(counts))
    return lengths[:, :1] - lengths[:, 1:] - 1


def _row(encoding: Encoding, answer: Answer) -> Int[np.ndarray, " column"] | None:
    """The codes of an answer that ends; None where it can't be read as a row."""
    if not answer.ended:
        return None
    try:
        return encoding.row(answer.prompt_ids + answer.response_ids)
    except ValueError:
        return None


def _all_legal(codes: Codes, legal: Sequence[Legal]) -> Bool[np.ndarray, " row"]:
    """Of each row, whether each code is legal in its column."""
    found = np.ones(len(codes), dtype=bool)
    for cells, some in zip(codes.T, legal, strict=True):
        inside = np.isin(cells, list(some.levels))
        for low, high in some.spans:
            inside |= (low <= cells) & (cells <= high)
        found &= inside
    return found


def _some_row(encoding: Encoding) -> Codes:
    """A row that can be written."""
    return np.array([[min(some.levels) if some.levels else some.spans[0][0] for some in writable(encoding)]])


def _at_the_end(reward: float, answer: Answer) -> tuple[float, ...]:
    return (*(0.0 for _ in answer.response_ids[1:]), reward)
