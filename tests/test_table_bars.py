"""The bars of the table benchmarks: which of their figures are held against what."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from table_bars import BOOSTING, Bar, of_alignments, of_fits, table  # noqa: E402

sys.path.remove(str(BENCHMARKS))

GOOD = {
    BOOSTING: 0.52, "fidelity.quality": 0.99, "utility.gap.auc": 0.005, "diversity.coverage": 0.97,
    "diversity.recall": 0.92, "privacy.copies": 0.0, "privacy.distance_share": 0.51, "privacy.membership_auc": 0.5,
    "validity.rule_violation_share": 0.03, "seconds": 600.0,
}  # fmt: skip


def figure(mean: float, seeds: int, change: float, half: float | None) -> dict[str, Any]:
    return {"mean": mean, "half_width": half, "seeds": seeds, "difference": {"mean": change, "half_width": half}}


def arm(seeds: int = 5, change: float = 0.0, half: float | None = 0.01, **figures: float) -> dict[str, Any]:
    return {name: figure(mean, seeds, change, half) for name, mean in (GOOD | figures).items()}


def results(ppo: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    arms = {"reference": arm(), "dpo": arm(3), "ppo": ppo or arm(change=-0.02), "real": arm()}
    return {"redraws": 6, "best": "ppo", "arms": arms} | more


def missed(bars: list[Bar]) -> list[str]:
    return [bar.name for bar in bars if bar.ok is False]


def fits(**mean: float) -> dict[str, Any]:
    costs = {"fit_cpu_seconds": 106.0, "rows_per_cpu_second": 1684.0}
    seeds = [{"rows": {"holdout": 1673}}] * 3
    return {"redraws": 6, "seeds": seeds, "mean": GOOD | mean, "costs": costs}


def test_figures_at_the_bar_are_good_enough() -> None:
    at_the_bar = {BOOSTING: 0.56, "privacy.distance_share": 0.52, "diversity.coverage": 0.96, "privacy.copies": 0.5}
    assert missed(of_fits(fits(**at_the_bar), 0.5)) == []
    assert all(bar.ok for bar in of_fits(fits(), 0.0))


def test_each_figure_of_a_fit_that_is_worse_is_missed() -> None:
    for name, value, says in (
        (BOOSTING, 0.561, "detectability"),
        ("fidelity.quality", 0.984, "quality"),
        ("privacy.copies", 1.0, "copies"),
        ("validity.rule_violation_share", 0.051, "rule"),
    ):
        [one] = missed(of_fits(fits(**{name: value}), 0.5))
        assert says in one


def test_the_best_arm_must_be_below_the_reference_with_its_interval_and_lose_no_recall() -> None:
    def judged(change: float, half: float | None) -> list[str]:
        return missed(of_alignments(results(arm(change=change, half=half))))

    assert judged(-0.02, 0.01) == ["recall less the reference's"]  # the same change in recall is a loss
    assert judged(-0.01, 0.01) == ["… less the reference's"]
    assert judged(-0.02, None) == ["… less the reference's", "recall less the reference's"]  # one seed shows nothing
    assert judged(0.02, 0.01) == ["… less the reference's"]


def test_alignments_are_held_against_tighter_bars_and_seeds() -> None:
    worse = arm(seeds=4, half=0.0, change=-0.0, **{BOOSTING: 0.54, "validity.rule_violation_share": 0.045})
    found = missed(of_alignments(results(worse | {"seconds": figure(901, 4, 0, 1)}, redraws=2)))
    assert found == [
        "its seeds, and the reference's", "draws of each", "detectability, boosting: AUC", "… less the reference's",
        "rows that break a rule", "fit + align: seconds, measured alone",
    ]  # fmt: skip


def test_weak_references_are_a_curve_and_resampling_stands_beside_it() -> None:
    weak = {
        "2 passes": {name: {BOOSTING: auc} for name, auc in (("reference", 0.8), ("resampled", 0.66), ("ppo", 0.7))}
    }
    bars = {bar.name: bar for bar in of_alignments(results(weak=weak))}
    assert bars["reference of 2 passes, ppo: AUC"] == Bar("reference of 2 passes, ppo: AUC", "< 0.800", "0.700", True)
    assert bars["reference of 2 passes, resampled: AUC"].ok is None


def test_what_was_not_measured_is_said_and_meets_nothing() -> None:
    [bar] = of_alignments({})
    assert (bar.ok, bar.measured) == (None, "not measured: table_alignment.py --join")
    short = arm()
    del short["seconds"]
    lines = table("x", of_alignments(results(short)))
    assert "| fit + align: seconds, measured alone | ≤ 900 | not measured | – |" in lines
    assert "not measured: table_alignment.py --weak" in lines


def test_the_results_that_are_kept_can_be_shown() -> None:
    kept = json.loads((BENCHMARKS / "results" / "tables.json").read_text())["tables"]["heloc"]
    aligned = json.loads((BENCHMARKS / "results" / "table_alignment.json").read_text())
    assert all(bar.ok is not None for bar in of_fits(kept, aligned["arms"]["real"]["privacy.copies"]["mean"]))
    assert of_alignments(aligned)
