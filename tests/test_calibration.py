"""Calibration against counts by hand, scipy, and scorers whose calibration is known because they were made so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import binomtest, pearsonr

from preflab.data.encode import Tree
from preflab.errors import DataError, NumericError
from preflab.evaluation.calibration import (
    Calibration,
    accuracy,
    calibration,
    calibration_of,
    correlation,
    equal_counts,
)
from preflab.report.fields import Fields
from preflab.report.reward_models import RewardModel, read_reward_models


def logit(p: float) -> float:
    return float(np.log(p / (1 - p)))


def of_gaps(score_gap: list[float], length_gap: list[int] | None = None, prompts: object = None) -> Calibration:
    """From differences alone; the rejected response scores 0 and has 50 tokens."""
    score, length = np.array(score_gap), np.array(length_gap or [0] * len(score_gap))
    scores = np.stack([score, np.zeros(len(score))], axis=1)
    lengths = np.stack([50 + length, np.full(len(score), 50)], axis=1)
    return calibration(scores, lengths, prompts or range(len(score)))  # type: ignore[arg-type]


def simulated(boast: float, *, pairs: int = 1000, seed: int = 0) -> Calibration:
    """A scorer that knows each pair's log-odds x, and says boast · x."""
    rng = np.random.default_rng(seed)
    x = 1.5 * rng.normal(size=pairs)
    signed = np.where(rng.random(pairs) < expit(x), x, -x)  # the chosen response first
    return of_gaps((boast * signed).tolist())


def worded(found: Calibration) -> RewardModel:
    """The figures as reports and the terminal put them into words."""
    entry = {"label": "reward model", "calibration": json.loads(json.dumps(found.json()))}
    return read_reward_models([Fields(entry, Path("evaluation.json"))])[0]


def test_ten_buckets_worked_by_hand() -> None:
    """200 pairs: in each of ten buckets 20 of one confidence, of which 13 are right."""
    confidences = [0.51, 0.55, 0.60, 0.65, 0.70, 0.75, 0.80, 0.85, 0.90, 0.95]
    gaps = [sign * logit(p) for p in confidences for sign in [1.0] * 13 + [-1.0] * 7]
    found = of_gaps(gaps)
    assert [bucket.confidence for bucket in found.by_margin] == pytest.approx(confidences)
    assert [bucket.pairs for bucket in found.by_margin] == [20] * 10
    assert [bucket.accuracy.mean for bucket in found.by_margin] == pytest.approx([0.65] * 10)
    assert [(bucket.low, bucket.high) for bucket in found.by_margin] == [
        (pytest.approx(logit(p)), pytest.approx(logit(p))) for p in confidences
    ]
    # (14 + 10 + 5 + 0 + 5 + 10 + 15 + 20 + 25 + 30) / 10 hundredths
    assert found.error == pytest.approx(0.134)
    assert found.accuracy.mean == pytest.approx(0.65)
    assert found.confidence == pytest.approx(0.726)


def test_two_buckets_worked_by_hand() -> None:
    """40 pairs make two buckets: errors of either sign don't cancel between buckets, and do inside one."""
    low = [logit(0.6)] * 20
    high = [logit(0.9)] * 14 + [-logit(0.9)] * 6
    found = of_gaps(low + high)
    assert found.error == pytest.approx(0.5 * 0.4 + 0.5 * 0.2)
    assert found.accuracy.mean == pytest.approx(34 / 40)
    mixed = of_gaps([logit(0.6)] * 10 + [logit(0.8)] * 4 + [-logit(0.8)] * 5)  # 19 pairs: one bucket
    assert len(mixed.by_margin) == 1
    assert mixed.error == pytest.approx(abs(14 / 19 - (10 * 0.6 + 9 * 0.8) / 19))


@pytest.mark.parametrize(("pairs", "buckets"), [(1, 1), (39, 1), (40, 2), (199, 9), (200, 10), (5000, 10)])
def test_fewer_pairs_make_fewer_buckets(pairs: int, buckets: int) -> None:
    found = of_gaps(np.random.default_rng(0).normal(size=pairs).tolist())
    counts = [bucket.pairs for bucket in found.by_margin]
    assert len(counts) == buckets
    assert sum(counts) == pairs
    assert max(counts) - min(counts) <= 1


def test_equal_margins_share_a_bucket() -> None:
    """Whatever their order, so that no figure depends on it."""
    values = np.array([0.5] * 70 + [1.0] * 5 + [2.0] * 25)
    order = np.random.default_rng(0).permutation(100)
    place = equal_counts(values, 5)
    assert [len(set(place[values == v])) for v in (0.5, 1.0, 2.0)] == [1, 1, 1]
    assert set(place) == set(range(place.max() + 1))
    assert (equal_counts(values[order], 5) == place[order]).all()


def test_ties_are_half_right_and_half_sure() -> None:
    found = of_gaps([0.0] * 30)
    assert (found.accuracy.mean, found.confidence, found.error, found.error_by_chance) == (0.5, 0.5, 0.0, 0.0)
    assert worded(found).misjudges == ""
    assert found.length_correlation is None


def test_a_calibrated_scorer_is_found_calibrated() -> None:
    """In all but about one in twenty simulations; the ECE stays below what chance allows as often."""
    found = [simulated(1.0, pairs=400, seed=seed) for seed in range(60)]
    assert sum(bool(worded(f).misjudges) for f in found) <= 6
    above = sum(f.error > f.error_by_chance for f in found)
    assert 0 < above <= 8
    assert np.mean([f.error for f in found]) > 0.03  # noise alone: why chance has to be shown next to it


@pytest.mark.parametrize(("boast", "verdict"), [(3.0, "over-confident"), (0.3, "under-confident")])
def test_a_boaster_and_a_doubter_are_named(boast: float, verdict: str) -> None:
    found, calibrated = simulated(boast), simulated(1.0)
    assert worded(found).misjudges == verdict
    assert found.accuracy == calibrated.accuracy
    assert found.error > 2 * found.error_by_chance
    assert found.error > 2 * calibrated.error
    assert worded(found).sentences[0].lower().startswith(verdict)
    # Against the definition, written as a loop.
    total = 0.0
    for bucket in found.by_margin:
        total += bucket.pairs * abs(bucket.accuracy.mean - bucket.confidence)
    assert found.error == pytest.approx(total / found.pairs)


def test_a_scorer_that_is_right_on_average_alone_is_not_called_calibrated() -> None:
    """60 % sure and right in 80 %, 80 % sure and right in 60 %: no mean is off, and every group is."""
    low = [logit(0.6)] * 160 + [-logit(0.6)] * 40
    high = [logit(0.8)] * 120 + [-logit(0.8)] * 80
    found = of_gaps(low + high)
    assert found.confidence == pytest.approx(found.accuracy.mean)
    assert worded(found).sentences[0].startswith("Not as sure as it is right: 70 % sure on average, right in 70 %")


def test_five_right_of_five_is_no_under_confidence() -> None:
    assert worded(of_gaps([logit(0.6)] * 5)).misjudges == ""
    assert worded(of_gaps([logit(0.6)] * 50)).misjudges == "under-confident"


def test_a_constant_per_pair_changes_nothing() -> None:
    rng = np.random.default_rng(3)
    scores, lengths = rng.normal(size=(80, 2)), rng.integers(1, 30, (80, 2))
    shifted = calibration(scores + np.round(8 * rng.normal(size=(80, 1))), lengths, range(80))
    found = calibration(scores, lengths, range(80))
    assert shifted.error == pytest.approx(found.error)
    assert shifted.accuracy == found.accuracy
    assert [b.accuracy for b in shifted.by_length] == [b.accuracy for b in found.by_length]


def test_confidence_does_not_know_the_label() -> None:
    """With chosen and rejected swapped, confidences, buckets and correlation stay; accuracies turn round."""
    rng = np.random.default_rng(4)
    scores, lengths = rng.normal(size=(90, 2)), rng.integers(1, 30, (90, 2))
    found = calibration(scores, lengths, range(90))
    swapped = calibration(scores[:, ::-1], lengths[:, ::-1], range(90))
    assert swapped.confidence == found.confidence
    assert swapped.error_by_chance == found.error_by_chance
    assert swapped.length_correlation == found.length_correlation
    for one, other in zip(swapped.by_margin, found.by_margin, strict=True):
        assert (one.low, one.high, one.pairs, one.confidence) == (other.low, other.high, other.pairs, other.confidence)
        assert one.accuracy.mean == pytest.approx(1 - other.accuracy.mean)
    assert swapped.longer_wins.mean == pytest.approx(1 - found.longer_wins.mean)


def test_length_buckets_worked_by_hand() -> None:
    """|differences| 1, 2, 3, 8, 4, 4, 9: the median is 4, and beyond it is "much"."""
    length = [-8, -4, -1, 0, 0, 2, 3, 4, 9]
    score = [-1.0, -1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0, 1.0]
    found = of_gaps(score, length)
    rows = {bucket.name: (bucket.low, bucket.high, bucket.pairs, bucket.accuracy.mean) for bucket in found.by_length}
    assert rows == {
        "much shorter": (-8, -8, 1, 0.0),
        "shorter": (-4, -1, 2, 0.5),
        "equal": (0, 0, 2, 0.75),
        "longer": (2, 4, 3, 1.0),
        "much longer": (9, 9, 1, 1.0),
    }
    assert found.shorter
    assert found.longer
    assert (found.shorter.pairs, found.shorter.accuracy.mean) == (3, pytest.approx(1 / 3))
    assert (found.longer.pairs, found.longer.accuracy.mean) == (4, 1.0)
    assert found.longer_wins.mean == pytest.approx((4 + 0.5 * 2) / 9)


def test_a_judge_that_only_reads_length_is_unmasked() -> None:
    rng = np.random.default_rng(0)
    length = rng.integers(-20, 21, 300)
    found = of_gaps((0.1 * length).tolist(), length.tolist())
    assert found.shorter
    assert found.longer
    assert (found.shorter.accuracy.mean, found.longer.accuracy.mean) == (0.0, 1.0)
    assert found.accuracy == found.longer_wins
    assert found.length_correlation
    assert found.length_correlation.mean == pytest.approx(1)


def test_sides_that_have_no_pair_are_none() -> None:
    found = of_gaps([1.0, -1.0, 2.0], [3, 1, 0])
    assert found.shorter is None
    assert "shorter" not in " ".join(worded(found).sentences)
    equal = of_gaps([1.0, -1.0, 2.0])
    assert [bucket.name for bucket in equal.by_length] == ["equal"]
    assert equal.longer_wins.mean == 0.5
    assert len(worded(equal).sentences) == 2


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (5, 5), (13, 20), (1, 3), (700, 1000)])
def test_intervals_are_wilson_s(hits: int, n: int) -> None:
    right = np.array([1.0] * hits + [0.0] * (n - hits))
    found, expected = accuracy(right, np.arange(n)), binomtest(hits, n).proportion_ci(method="wilson")
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-12), pytest.approx(expected.high, abs=1e-12))


def test_pairs_of_one_prompt_count_once_for_the_interval() -> None:
    """Each pair written five times under its own prompt: the interval of the pairs once."""
    gaps = np.random.default_rng(1).normal(size=40) + 0.5
    once, five = of_gaps(gaps.tolist()), of_gaps(gaps.tolist() * 5, prompts=list(range(40)) * 5)
    assert (five.pairs, five.prompts) == (200, 40)
    assert five.accuracy.mean == pytest.approx(once.accuracy.mean)
    assert five.accuracy.low == pytest.approx(once.accuracy.low)
    assert five.accuracy.high == pytest.approx(once.accuracy.high)


def test_the_correlation_is_pearson_s_of_scores_and_lengths_less_each_pair_s_means() -> None:
    rng = np.random.default_rng(5)
    scores, lengths = rng.normal(size=(60, 2)), rng.integers(1, 30, (60, 2)).astype(float)
    scores[:, 0] += 0.05 * lengths[:, 0]
    scores += 100 * rng.normal(size=(60, 1))  # what makes prompts different
    found = calibration(scores, lengths.astype(int), range(60)).length_correlation
    assert found

    def within(values: NDArray[np.float64]) -> NDArray[np.float64]:
        return (values - values.mean(axis=1, keepdims=True)).ravel()

    assert found.mean == pytest.approx(pearsonr(within(scores), within(lengths)).statistic)


@pytest.mark.parametrize("heavy", [False, True])
def test_the_correlation_s_interval_covers(heavy: bool) -> None:
    """Of pairs that come three to a prompt, and where large differences are noisier too."""
    rng = np.random.default_rng(6)

    def draw(prompts: int) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.intp]]:
        prompt = np.repeat(np.arange(prompts), 3)
        a = rng.normal(size=prompts)[prompt] + 0.5 * rng.normal(size=3 * prompts)
        noise = rng.normal(size=prompts)[prompt] + 0.5 * rng.normal(size=3 * prompts)
        return a, 0.6 * a + noise * (np.abs(a) if heavy else 1), prompt

    whole = correlation(*draw(300_000))
    assert whole
    intervals = [correlation(*draw(150)) for _ in range(300)]
    covered = np.mean([i.low <= whole.mean <= i.high for i in intervals if i])
    assert 0.91 <= covered <= 0.98


def test_a_correlation_of_two_prompts_says_nothing() -> None:
    found = correlation(np.array([1.0, 2.0]), np.array([1.0, -1.0]), np.array([0, 1]))
    assert found
    assert (found.low, found.high) == (-1, 1)


def test_trees_give_lengths_and_prompts() -> None:
    pairs = [
        Tree("p:1", (5, 6), ((7, 8, 9), (7,))),
        Tree("p:2", (5, 6), ((7,), (7, 8))),
        Tree("p:3", (5,), ((1, 2), (3, 4))),
    ]
    found = calibration_of(np.array([[1.0, 0.0], [1.0, 2.0], [0.0, 3.0]]), pairs)
    assert (found.pairs, found.prompts) == (3, 2)
    assert [(b.name, b.low, b.high, b.accuracy.mean) for b in found.by_length] == [
        ("shorter", -1, -1, 0.0),
        ("equal", 0, 0, 0.0),
        ("much longer", 2, 2, 1.0),
    ]


def test_a_report_reads_every_figure() -> None:
    found = replace(simulated(2.0, pairs=60), longer=None)
    read = worded(found)
    assert (read.accuracy.mean, read.confidence, read.error) == (found.accuracy.mean, found.confidence, found.error)
    assert [(b.pairs, b.accuracy.low) for b in read.by_margin] == [(b.pairs, b.accuracy.low) for b in found.by_margin]
    assert read.length_correlation is None
    assert read.longer is None


def test_the_same_scores_give_the_same_figures() -> None:
    state = np.random.get_state()[1].tolist()  # type: ignore[union-attr,index]
    assert simulated(1.0) == simulated(1.0)
    assert np.random.get_state()[1].tolist() == state  # type: ignore[union-attr,index]


def test_huge_scores_are_sure_and_finite() -> None:
    found = of_gaps([1e4, -1e4, 1e30] * 20)
    assert found.confidence == 1.0
    assert found.error == pytest.approx(1 / 3)
    assert "NaN" not in json.dumps(found.json())


def test_no_pair_and_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="no held-out pair"):
        calibration(np.zeros((0, 2)), np.zeros((0, 2), dtype=int), [])
    with pytest.raises(NumericError, match="1 of 4 held-out scores are not finite"):
        calibration(np.array([[0.0, 1.0], [np.nan, 0.0]]), np.ones((2, 2), dtype=int), "ab")
