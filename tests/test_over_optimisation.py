"""The chapter tells arms that went too far from arms that didn't, and stays silent where it can't tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preflab.report.chapter import Chapter, Drawing, Finding, Findings, Prose, Sheet
from preflab.report.chapters.over_optimisation import over_optimisation
from preflab.report.statistics import Estimate
from preflab.report.study import read_study
from study_folder import REFERENCE, SimulatedArm, usual_arms, write_study

STEPS = (50, 100, 150, 200, 300)
KL = (0.5, 1.5, 4.0, 9.0, 16.0)


def training(alpha: float, beta: float) -> Callable[[float], float]:
    """R(d) = d (α − β log d) as a function of KL."""
    return lambda kl: kl**0.5 * (alpha - beta * 0.5 * np.log(kl)) if kl else 0.0


def best_of_n(alpha: float, beta: float) -> Callable[[float], float]:
    """R(d) = d (α − β d) as a function of KL."""
    return lambda kl: alpha * kl**0.5 - beta * kl


def arm(gold: Callable[[float], float], proxy: Callable[[float], float] | None = None) -> SimulatedArm:
    return SimulatedArm("ppo", "ppo", gold, proxy=proxy or training(1.6, 0.1), steps=STEPS, kl=KL, label="PPO")


def chapter_of(folder: Path, *arms: SimulatedArm, noise: float = 0.3, seeds: int = 3) -> Chapter:
    chapter = over_optimisation(read_study(write_study(folder, [REFERENCE, *arms], seeds=seeds, noise=noise)))
    assert chapter
    return chapter


def finding(chapter: Chapter) -> Finding:
    (only,) = (item for part in chapter.parts if isinstance(part, Findings) for item in part.items)
    return only


def fits(chapter: Chapter) -> dict[tuple[object, ...], dict[str, object]]:
    (sheet,) = (part for part in chapter.parts if isinstance(part, Sheet))
    titles = [column.title for column in sheet.columns]
    return {(row[0].name, row[1]): dict(zip(titles, row, strict=True)) for row in sheet.rows}  # type: ignore[union-attr]


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_hump_is_found_with_its_place_and_step(tmp_path: Path, seeds: int) -> None:
    """α = 1.2 and β = 0.8: d* = exp(0.5) = 1.65, KL* = e = 2.72 nats; step 100 at 1.5 and 150 at 4 nats."""
    chapter = chapter_of(tmp_path, arm(training(1.2, 0.8)), seeds=seeds)
    found = finding(chapter)
    assert found.found
    assert found.answer.startswith("Stop here: KL ≈ ")
    assert "over-optimised: past it gold sentiment falls while the proxy goes on rising" in found.answer
    assert "(step 1" in found.answer
    peak = fits(chapter)["ppo", "gold sentiment"]["Peak at KL (nats)"]
    assert isinstance(peak, Estimate)
    assert peak.low <= np.e <= peak.high
    assert peak.high - peak.low < 2
    assert fits(chapter)["ppo", "proxy"]["Peak at KL (nats)"] == "not reached"


def test_best_of_n_has_its_own_curve_and_no_steps(tmp_path: Path) -> None:
    """α = 2, β = 0.8: KL* = (2 / 1.6)² = 1.56 nats."""
    one = SimulatedArm(
        "best-of-n", "best-of-n", best_of_n(2.0, 0.8), proxy=best_of_n(2.0, 0.1), steps=(2, 4, 8, 16, 64),
        kl=(0.2, 0.7, 1.6, 2.6, 4.5), label="Best of n", kl_is_bound=True,
    )  # fmt: skip
    chapter = chapter_of(tmp_path, one, noise=0.2)
    found = fits(chapter)["best-of-n", "gold sentiment"]
    assert found["Curve"] == "d (α − β d)"
    peak = found["Peak at KL (nats)"]
    assert isinstance(peak, Estimate)
    assert peak.low <= 1.5625 <= peak.high
    assert "(n = 8 is nearest)" in finding(chapter).answer


def test_while_both_rise_nothing_is_over_optimised(tmp_path: Path) -> None:
    found = finding(chapter_of(tmp_path, arm(training(1.5, 0.1))))
    assert found.answer.startswith("No over-optimisation seen up to 1")
    assert "still rises, the proxy too" in found.answer


def test_a_gold_reward_that_falls_with_its_proxy_is_not_called_over_optimised(tmp_path: Path) -> None:
    found = finding(chapter_of(tmp_path, arm(training(1.2, 0.8), proxy=training(1.2, 0.8))))
    assert found.answer.startswith("Stop here")
    assert "that the proxy still rises is not shown" in found.answer


def test_a_proxy_whose_curve_does_not_fit_is_still_seen_to_rise(tmp_path: Path) -> None:
    found = finding(chapter_of(tmp_path, arm(training(1.2, 0.8), proxy=lambda kl: 0.8 * kl)))
    assert "falls while the proxy goes on rising" in found.answer


def test_a_gold_reward_that_falls_from_the_start_has_no_peak(tmp_path: Path) -> None:
    found = finding(chapter_of(tmp_path, arm(training(-1.0, 0.3))))
    assert found.answer.startswith("Stop before KL ≈ 0.")


@pytest.mark.parametrize(("last", "wide"), [(0.3, False), (0.94, True)])
def test_of_a_narrow_span_of_kl_nothing_is_said_of_where_to_stop(tmp_path: Path, last: float, wide: bool) -> None:
    """Four times the 0.21 nats of the first, 0.84, is enough; falls all the way: R = −d (1 + 0.5 log d)."""
    falls = SimulatedArm(
        "ppo", "ppo", training(-2.0, 1.0), proxy=training(1.6, 0.1), steps=(50, 100, 150), label="PPO",
        kl=(0.205, 0.27, last),
    )  # fmt: skip
    chapter = chapter_of(tmp_path, falls, noise=0.05)
    found, peak = finding(chapter), fits(chapter)["ppo", "gold sentiment"]["Peak at KL (nats)"]
    assert found.found == wide
    assert found.answer.startswith(
        "Stop before" if wide else "Undecided: gold sentiment falls, but checkpoints from 0.2"
    )
    assert peak == ("not reached" if wide else "too little KL spanned")


def test_a_flat_reward_is_undecided(tmp_path: Path) -> None:
    found = finding(chapter_of(tmp_path, arm(lambda kl: 0.0)))
    assert found.answer.startswith("Undecided: at the largest KL")
    assert not found.found


def test_a_curve_that_does_not_fit_says_nothing(tmp_path: Path) -> None:
    cliff = arm(lambda kl: 3.0 if kl < 5 else -3.0)
    found = finding(chapter_of(tmp_path, cliff))
    assert found.answer.startswith("Undecided: the curve doesn't fit")


def test_an_arm_with_too_few_checkpoints_is_named(tmp_path: Path) -> None:
    still = SimulatedArm("dpo", "dpo", kl=(0, 0, 0, 0), label="DPO")
    short = SimulatedArm("sft", "sft", steps=(100, 200), kl=(0.2, 0.4), label="SFT")
    chapter = chapter_of(tmp_path, arm(training(1.5, 0.1)), still, short)
    assert any(
        isinstance(part, Prose) and part.text.startswith("No curve: DPO (0) and SFT (2).") for part in chapter.parts
    )
    assert finding(chapter).about == "PPO"


def test_arms_without_any_curve_still_show_the_proxy(tmp_path: Path) -> None:
    short = SimulatedArm("sft", "sft", steps=(100, 200), kl=(0.2, 0.4), label="SFT")
    chapter = chapter_of(tmp_path, short)
    assert [part.picture.name for part in chapter.parts if isinstance(part, Drawing)] == ["proxy"]


def test_the_data_hold_gains_over_the_reference_on_the_same_prompts(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [REFERENCE, arm(training(1.2, 0.8))], seeds=2)
    study = read_study(folder)
    chapter = over_optimisation(study)
    assert chapter
    drawing = next(part for part in chapter.parts if isinstance(part, Drawing))
    titles = [column.title for column in drawing.data.columns]
    reference = study.arms[0].validation[0]
    for row, point in zip(drawing.data.rows, study.arms[1].validation, strict=True):
        cells = dict(zip(titles, row, strict=True))
        assert cells["Gold sentiment gained"].mean == pytest.approx(np.mean(point.reward) - np.mean(reference.reward))  # type: ignore[union-attr]
        assert cells["√KL (√nats)"] == pytest.approx(np.mean(point.kl_nats) ** 0.5)


def test_a_study_without_a_proxy_or_a_reference_has_no_such_chapter(tmp_path: Path) -> None:
    without = [replace(one, proxy=None) for one in usual_arms()]
    assert over_optimisation(read_study(write_study(tmp_path / "a", without))) is None
    assert over_optimisation(read_study(write_study(tmp_path / "b", usual_arms()[1:]))) is None
