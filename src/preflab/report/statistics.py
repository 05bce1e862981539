"""Intervals: over prompts alone, or over seeds and prompts.

Everything the report shows is the mean of a matrix with one row a seed and one column a prompt. A ratio or a distinct
count is brought to that form first (`ratio_values`, `distinct_values`), a difference between arms is the matrix of
differences on the same prompts, so there is one `estimate` and two ways to an interval:

- one seed: the bias-corrected and accelerated bootstrap over prompts (Efron 1987). It speaks for other prompts, not
  for other training runs;
- several seeds: all of them meet the same prompts, so value = mean + seed + prompt + error (crossed random effects).
  A bootstrap over three seeds does not cover; a two-way analysis of variance does, once it allows for how little a
  few seeds say of their own spread (tests/test_statistics.py simulates it).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import exp, log

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

from preflab.errors import DataError, NumericError

Matrix = NDArray[np.float64]

RESAMPLES = 4000
ROUNDING = 1e-9
TRUST = 2 / 3
"""How far Satterthwaite's degrees of freedom are trusted at 95 %: at 1 a case in docs/statistics.md covers less than
91 %, at 0 intervals over three seeds are up to a third wider than they need be."""
SMALLEST_P = 1e-12


@dataclass(frozen=True)
class Estimate:
    """A mean and its interval, in the unit of what was measured; low ≤ mean ≤ high."""

    mean: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """+1 or −1 where the whole interval lies on one side of 0, else 0: nothing can be said.

        What rounding leaves of equal rewards (1e-16) is no finding.

        >>> Estimate(1.0, 0.5, 1.5).sign, Estimate(1.0, -0.5, 2.5).sign
        (1, 0)
        """
        return 1 if self.low > ROUNDING else -1 if self.high < -ROUNDING else 0

    def times(self, factor: float) -> Estimate:
        """The same in another unit, or with the other sign.

        >>> Estimate(-4.0, -5.0, -3.0).times(-1)
        Estimate(mean=4.0, low=3.0, high=5.0)
        """
        low, high = sorted((factor * self.low, factor * self.high))
        return Estimate(factor * self.mean, low, high)

    def within(self, lowest: float, highest: float = float("inf")) -> Estimate:
        """The same, its ends kept inside the range that the quantity can take (never past the mean).

        >>> Estimate(0.9, 0.7, 1.1).within(0, 1)
        Estimate(mean=0.9, low=0.7, high=1)
        """
        low, high = max(self.low, lowest), min(self.high, highest)
        return Estimate(self.mean, min(low, self.mean), max(high, self.mean))

    def json(self) -> dict[str, float]:
        """The form in comparison.json."""
        return {"mean": self.mean, "low": self.low, "high": self.high}


def estimate(values: ArrayLike, what: str, confidence: float = 0.95) -> Estimate:
    """The mean of `values` and its interval at `confidence`.

    `values` has one row a seed and one column a prompt; a vector counts as one seed. One seed: over prompts; several:
    over seeds and prompts. `what` names the figure in messages.

    Raises NumericError where a value is not finite, DataError where there are fewer than two prompts.

    >>> estimate([1.0, 2.0, 3.0, 2.0], "reward").mean
    2.0
    >>> estimate([[1.0, 2.0], [float("nan"), 2.0]], "reward")
    Traceback (most recent call last):
    preflab.errors.NumericError: reward: 1 of 4 values is not finite; score that checkpoint again
    """
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    refuse_non_finite(matrix, what)
    if matrix.shape[1] < 2:
        raise DataError(f"{what}: an interval needs at least two prompts, got {matrix.shape[1]}; evaluate on more")
    return over_prompts(matrix[0], confidence) if len(matrix) == 1 else over_seeds_and_prompts(matrix, confidence)


def refuse_non_finite(values: Matrix, what: str) -> None:
    """Raise NumericError, naming the figure, where a value is NaN or infinite."""
    bad = int(np.count_nonzero(~np.isfinite(values)))
    if bad:
        verb = "is" if bad == 1 else "are"
        raise NumericError(f"{what}: {bad} of {values.size} values {verb} not finite; score that checkpoint again")


@lru_cache(maxsize=8)
def resampling_weights(n: int) -> Matrix:
    """The share of each of `n` prompts in each of RESAMPLES bootstrap samples; the same in every call."""
    return np.random.default_rng(n).multinomial(n, np.full(n, 1 / n), size=RESAMPLES) / n


@dataclass(frozen=True)
class Bootstrap:
    """What the BCa interval of a mean over prompts is made of (Efron 1987)."""

    mean: float
    centred: Matrix
    """Means of the resamples − `mean`, ascending."""
    bias: float
    acceleration: float

    def level(self, z: float) -> float:
        """The quantile of the resamples at which the interval ends that would end at `z` if the mean were normal."""
        shifted = self.bias + z
        return float(special.ndtr(self.bias + shifted / (1 - self.acceleration * shifted)))

    def p_value(self, offset: float) -> float:
        """1 − the confidence at which the interval ends at `mean` + `offset`: `level`, read backwards."""
        level = float(np.interp(offset, self.centred, np.linspace(0, 1, len(self.centred))))
        if level in (0, 1):
            return 0.0
        shifted = float(special.ndtri(level)) - self.bias
        shrunk = 1 + self.acceleration * shifted
        z = shifted / shrunk - self.bias if shrunk > 0 else -np.inf
        return min(1.0, 2 * float(special.ndtr(z if offset < 0 else -z)))


def bootstrap(values: Matrix) -> Bootstrap:
    """The mean over prompts resampled; seeded, so it is the same in every call."""
    centred = values - values.mean()
    means = np.sort(resampling_weights(len(values)) @ centred)
    below = np.count_nonzero(means < 0) + np.count_nonzero(means == 0) / 2
    bias = special.ndtri(np.clip(below / RESAMPLES, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    acceleration = np.sum(centred**3) / (6 * np.sum(centred**2) ** 1.5)
    return Bootstrap(float(values.mean()), means, float(bias), float(acceleration))


def over_prompts(values: Matrix, confidence: float = 0.95) -> Estimate:
    """The mean over prompts with its BCa bootstrap interval.

    The same as `scipy.stats.bootstrap(method="BCa")`, with the resamples drawn once for all figures of a report: a
    mean needs one matrix product.
    """
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, mean, mean)
    resampled = bootstrap(values)
    ends = [resampled.level(float(z)) for z in special.ndtri([(1 - confidence) / 2, (1 + confidence) / 2])]
    low, high = np.quantile(resampled.centred, ends)
    return Estimate(mean, mean + min(float(low), 0.0), mean + max(float(high), 0.0))


@dataclass(frozen=True)
class MeanSquares:
    """The crossed random effects of a matrix with a row a seed and a column a prompt: value = mean + seed + prompt +
    error."""

    seeds: int
    prompts: int
    seed: float
    """prompts · the variance of the seeds' means: on average σ²_error + prompts · σ²_seed."""
    prompt: float
    """seeds · the variance of the prompts' means: on average σ²_error + seeds · σ²_prompt."""
    error: float
    """On average σ²_error."""

    @property
    def total(self) -> float:
        """S·P times the variance of the grand mean: MS_seed + MS_prompt − MS_error, never below the larger of the two,
        as a difference of noisy mean squares can come out too small, or negative."""
        return max(self.seed + self.prompt - self.error, self.seed, self.prompt)

    @property
    def freedom(self) -> float:
        """Satterthwaite's degrees of freedom of `total`; those of the larger mean square where its floor holds."""
        df_seed, df_prompt = self.seeds - 1, self.prompts - 1
        if self.total <= max(self.seed, self.prompt):
            return float(df_seed if self.seed > self.prompt else df_prompt)
        spread = self.seed**2 / df_seed + self.prompt**2 / df_prompt + self.error**2 / (df_seed * df_prompt)
        return self.total**2 / spread

    def half_width(self, confidence: float = 0.95) -> float:
        """From the grand mean to either end of its interval.

        Two answers are known. Student's quantile with `freedom` is too short: seeds that happen to agree hide a
        variance, and at the same time make Satterthwaite's degrees of freedom too many; the more so far out, where at
        99.6 %, as the first of twelve comparisons needs, three seeds would cover 97.5 %. `reach` is long enough
        everywhere, but where seeds hardly vary it is a third too long. At 95 % the squared width lies TRUST of the way
        from `reach`'s to Satterthwaite's; further out it is `reach`'s less as much as it is there, which counts for
        less and less.
        """
        whole, usual = self.reach(confidence) ** 2, self.reach(0.95) ** 2
        discount = TRUST * (usual - student(0.95, self.freedom) ** 2 * self.total)
        squared = whole - discount * min(1.0, whole / usual)
        return float((squared / (self.seeds * self.prompts)) ** 0.5)

    def reach(self, confidence: float) -> float:
        """√(t²_{S−1} MS_seed + t²_{P−1} rest), where `total` is MS_seed + rest: each part with the quantile of its own
        degrees of freedom (Graybill & Wang 1980)."""
        of_seeds, of_prompts = (student(confidence, count - 1) for count in (self.seeds, self.prompts))
        return float((of_seeds**2 * self.seed + of_prompts**2 * (self.total - self.seed)) ** 0.5)


def mean_squares(values: Matrix) -> MeanSquares:
    """The two-way analysis of variance of two seeds or more.

    >>> mean_squares(np.array([[1.0, 2.0], [3.0, 6.0]]))
    MeanSquares(seeds=2, prompts=2, seed=9.0, prompt=4.0, error=1.0)
    """
    seeds, prompts = values.shape
    mean = values.mean()
    by_seed, by_prompt = values.mean(axis=1), values.mean(axis=0)
    error = values - by_seed[:, None] - by_prompt[None, :] + mean
    return MeanSquares(
        seeds,
        prompts,
        seed=float(prompts * np.sum((by_seed - mean) ** 2) / (seeds - 1)),
        prompt=float(seeds * np.sum((by_prompt - mean) ** 2) / (prompts - 1)),
        error=float(np.sum(error**2) / ((seeds - 1) * (prompts - 1))),
    )


def over_seeds_and_prompts(values: Matrix, confidence: float = 0.95) -> Estimate:
    """The grand mean over seeds (rows) and prompts (columns) with its crossed random-effects interval.

    A 95 % interval covers at least 91 % in the cases that docs/statistics.md simulates, with two seeds as well.
    """
    mean, squares = float(values.mean()), mean_squares(values)
    if squares.total <= 1e-24 * max(1.0, mean * mean):
        return Estimate(mean, mean, mean)
    half = squares.half_width(confidence)
    return Estimate(mean, mean - half, mean + half)


def p_value(values: ArrayLike, what: str) -> float:
    """The two-sided p-value of "the mean is 0": the interval of `estimate` at confidence 1 − α leaves 0 out if p < α.

    The bootstrap over prompts resolves nothing below 2 / RESAMPLES. There it is Student's p-value, and never above that
    bound.

    Raises what `estimate` raises.

    >>> round(p_value([[1.0, 1.1], [0.9, 1.0], [1.1, 1.2]], "reward"), 4)
    0.0284
    >>> p_value([0.0, 0.0], "reward")
    1.0
    """
    matrix = np.atleast_2d(np.asarray(values, dtype=np.float64))
    shown = estimate(matrix, what)
    distance = max(abs(shown.mean) - ROUNDING, 0.0)
    if shown.low == shown.high:
        return 0.0 if distance else 1.0
    if len(matrix) > 1:
        squares = mean_squares(matrix)
        return level_of(lambda p: squares.half_width(1 - p) - distance)
    scale = distance * matrix.size**0.5 / float(matrix.std(ddof=1))
    unresolved = 2 * float(special.stdtr(matrix.size - 1, -scale))
    offset = -distance if shown.mean > 0 else distance
    return max(bootstrap(matrix[0]).p_value(offset), min(2 / RESAMPLES, unresolved))


def level_of(excess: Callable[[float], float]) -> float:
    """Where `excess`, which falls with p, is 0; the nearer end of [SMALLEST_P, 1] where it is 0 nowhere.

    >>> round(level_of(lambda p: 0.25 - p), 6)
    0.25
    """
    if excess(SMALLEST_P) <= 0:
        return SMALLEST_P
    return exp(optimize.brentq(lambda log_p: excess(exp(log_p)), log(SMALLEST_P), 0.0, xtol=1e-9))


def holm(p_values: Sequence[float]) -> tuple[float, ...]:
    """p-values corrected for their number: those below α hold together with error rate α, whatever their dependence
    (Holm 1979).

    Steps down from the smallest: the k-th of m counts (m − k + 1) times, and never less than the one before.

    >>> holm([0.03, 0.01, 0.04])
    (0.06, 0.03, 0.06)
    """
    corrected = [1.0] * len(p_values)
    before = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        before = max(before, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = before
    return tuple(corrected)


def student(confidence: float, freedom: float) -> float:
    """How many standard errors a two-sided interval by Student's t reaches to either side.

    >>> round(student(0.95, 2), 3)
    4.303
    """
    return -float(special.stdtrit(freedom, (1 - confidence) / 2))


def over_seeds(means: ArrayLike, what: str, confidence: float = 0.95) -> Estimate:
    """The mean over training runs and its interval, by Student's t on one value a run.

    What was drawn more than once from a run is averaged first: redraws are nested in their run, and more of them don't
    make more runs. With normal runs it covers exactly, however few they are.

    Raises NumericError where a value is not finite, DataError where there are fewer than two runs.

    >>> round(over_seeds([1.0, 2.0, 3.0], "reward").high, 3)  # 2 + 4.3027 · 1/√3
    4.484
    """
    values = np.asarray(means, dtype=np.float64)
    refuse_non_finite(values, what)
    if len(values) < 2:
        raise DataError(f"{what}: an interval over seeds needs at least two, got {len(values)}; add seeds")
    mean = float(values.mean())
    if np.ptp(values) <= 1e-12 * max(1.0, abs(mean)):
        return Estimate(mean, mean, mean)
    half = student(confidence, len(values) - 1) * float(values.std(ddof=1)) / len(values) ** 0.5
    return Estimate(mean, mean - half, mean + half)


def spread_ratio(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Estimate | None:
    """Natural logarithm of the ratio of two standard deviations, of runs that are paired, and its interval.

    With F = s₁²/s₂², r the correlation and K = 1 + 2 (1 − r²) t²/(n − 2), the ratio of variances lies in
    F (K ± √(K² − 1)) (Pitman 1939, Morgan 1939). None below three pairs, or where one doesn't vary.

    >>> spread_ratio([1.0, 2.0], [1.0, 3.0]) is None
    True
    >>> round(spread_ratio([1.0, 2.0, 4.0, 3.0], [2.0, 4.0, 8.0, 6.5]).mean, 3)
    -0.722
    """
    one, two = (np.asarray(values, dtype=np.float64) for values in (first, second))
    if len(one) < 3 or min(np.ptp(one), np.ptp(two)) <= ROUNDING:
        return None
    mean = float(np.log(one.std() / two.std()))
    unlike = max(0.0, 1 - float(np.corrcoef(one, two)[0, 1]) ** 2)
    t = student(confidence, len(one) - 2)
    half = float(np.arccosh(1 + 2 * unlike * t**2 / (len(one) - 2))) / 2
    return Estimate(mean, mean - half, mean + half)


def ratio_values(numerator: ArrayLike, denominator: ArrayLike) -> Matrix:
    """A ratio of sums in the form of a mean: R + (n_i − R·d_i) / mean(d), by the delta method.

    The mean over each row is exactly Σn / Σd of that row, and the spread is that of the ratio to first order.

    >>> ratio_values([2.0, 4.0], [1.0, 2.0])
    array([[2., 2.]])
    """
    top = np.atleast_2d(np.asarray(numerator, dtype=np.float64))
    bottom = np.atleast_2d(np.asarray(denominator, dtype=np.float64))
    ratio = top.sum(axis=1, keepdims=True) / bottom.sum(axis=1, keepdims=True)
    values: Matrix = ratio + (top - ratio * bottom) / bottom.mean(axis=1, keepdims=True)
    return values


def perplexity(nll_nats: ArrayLike, tokens: ArrayLike, what: str = "perplexity") -> Estimate:
    """exp(Σ nll / Σ tokens) over texts: ≥ 1, the interval taken on the logarithm. Texts without a token don't count.

    >>> round(perplexity([2.079442, 4.158883], [1, 2]).mean, 3)
    8.0
    """
    nll, count = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (nll_nats, tokens))
    refuse_non_finite(nll, what)
    kept = count.min(axis=0) > 0
    if not kept.any():
        raise DataError(f"{what}: no held-out text has a token; give longer texts")
    nats = estimate(ratio_values(nll[:, kept], count[:, kept]), what)
    return Estimate(exp(nats.mean), exp(nats.low), exp(nats.high))


def n_grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Every run of `n` words, in order.

    >>> n_grams("a b c".split(), 2)
    [('a', 'b'), ('b', 'c')]
    """
    return list(zip(*(words[i:] for i in range(n)), strict=False))


def distinct_values(groups: Sequence[Sequence[Hashable]]) -> Matrix:
    """Distinct items / items over all groups (one group a prompt), in the form of a mean: one value a group.

    Jackknife: the row's mean is the ratio over all groups, its spread that of leaving one group out. A bootstrap would
    be biased, since a resample holds some groups twice and so repeats items that the responses didn't. The ratio falls
    with the number of groups, whatever the method: compare it at the same number of prompts only.

    >>> float(distinct_values([["a", "b"], ["a", "c"]]).mean())
    0.75
    """
    counts = [Counter(group) for group in groups]
    everywhere: Counter[Hashable] = Counter()
    holders: Counter[Hashable] = Counter()
    for count in counts:
        everywhere.update(count)
        holders.update(count.keys())
    total, n = everywhere.total(), len(groups)
    if total == 0:
        return np.zeros((1, n))
    only_here = np.array([sum(holders[item] == 1 for item in count) for count in counts], dtype=np.float64)
    without = (len(everywhere) - only_here) / np.maximum(total - np.array([c.total() for c in counts]), 1)
    values: Matrix = len(everywhere) / total + (n - 1) * (without.mean() - without)
    return values[None, :]


def repetition(words: Sequence[str], n: int = 4) -> float:
    """The share of a response's n-grams that it has said before, 0 to 1 (seq-rep-n, arXiv 1908.04319 §6).

    >>> repetition("so good so good so good".split(), n=2)
    0.6
    """
    grams = n_grams(words, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0
