"""The convex frontier is the upper envelope, its numbers aren't lucky, and the chapter says what was simulated."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from preflab.report.chapter import Chapter, Drawing, Findings, Sheet, Value
from preflab.report.chapters.frontier import frontier
from preflab.report.chapters.win_rates import win_rates
from preflab.report.checkpoints import measured_families
from preflab.report.figures import PALE, colour_of, frame_means
from preflab.report.frontiers import envelope_of, frontier_at, overlap, upper_envelope
from preflab.report.statistics import Estimate, Matrix, estimate
from preflab.report.study import Point, read_study
from preflab.report.svg import COLOURS, sheet
from preflab.report.verdicts import verdicts
from study_folder import REFERENCE, SimulatedArm, root, usual_arms, write_study


def height_by_pairs(at: float, kl: Matrix, reward: Matrix) -> float:
    """The best reward of one checkpoint, or of a mix of two, with KL at most `at`: what the frontier is, slowly."""
    best = [r for k, r in zip(kl, reward, strict=True) if k <= at]
    for i, j in combinations(range(len(kl)), 2):
        (k1, r1), (k2, r2) = sorted([(kl[i], reward[i]), (kl[j], reward[j])])
        if k1 <= at < k2:
            best.append(r1 + (at - k1) / (k2 - k1) * (r2 - r1))
    return max(best)


@pytest.mark.parametrize("seed", range(8))
def test_the_envelope_is_what_mixes_of_two_checkpoints_reach(seed: int) -> None:
    rng = np.random.default_rng(seed)
    kl = np.concatenate([[0.0], np.round(rng.uniform(0, 5, 12), 1)])  # some at the same KL
    reward = rng.normal(size=13)
    chain = upper_envelope(kl, reward)
    for at in np.linspace(0, 6, 50):
        assert np.interp(at, kl[chain], reward[chain]) == pytest.approx(height_by_pairs(at, kl, reward))


def test_where_nothing_beats_the_reference_it_is_the_frontier() -> None:
    assert upper_envelope([0.0, 1.0, 2.0], [0.5, 0.1, 0.5]) == [0]


def point(kl: float, reward: Matrix, step: int = 1) -> Point:
    """A checkpoint with these rewards."""
    seeds, prompts = reward.shape
    nothing = np.zeros((seeds, 0))
    return Point(
        step, "validation", tuple(range(seeds)), tuple(map(str, range(prompts))), reward=reward, proxy_reward=None,
        kl_nats=np.full(reward.shape, kl), response_tokens=reward, ended=reward, win=reward, nll_nats=nothing,
        nll_tokens=nothing, samples=((),) * seeds,
    )  # fmt: skip


def test_without_noise_the_frontier_is_exact_also_past_its_peak() -> None:
    points = [point(kl, np.full((2, 10), r)) for kl, r in ((0, 0.0), (1, 2.0), (2, 2.5), (3, 4.0), (4, 1.0))]
    for at, reward in ((0.5, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 4.0)):
        assert frontier_at([at], points) == pytest.approx(np.full((2, 10), reward))
    assert frontier_at([0.5, 2.0], points).mean() == pytest.approx(2.0)


def test_many_tries_bring_no_luck() -> None:
    """Twenty checkpoints that are all worth 1 are worth no more than four: the plain envelope says otherwise."""
    rng = np.random.default_rng(0)
    plain, fitted, covered = [], [], []
    for _ in range(150):
        many = [point(2.0, 1 + rng.normal(size=(3, 40))) for _ in range(20)]
        plain.append(max(p.reward.mean() for p in many) - 1)
        found = estimate(frontier_at([2.0], many), "reward")
        fitted.append(found.mean - 1)
        covered.append(found.low <= 1 <= found.high)
    assert np.mean(plain) > 0.13
    assert abs(np.mean(fitted)) < 0.02
    assert np.mean(covered) >= 0.91


DIFFERENCE = "Gold sentiment, difference"


def chapter_of(folder: Path) -> Chapter:
    chapter = frontier(read_study(folder))
    assert chapter
    return chapter


def differences(chapter: Chapter) -> dict[str, dict[str, Value]]:
    sheet = sheet_named(chapter, "frontier-differences")
    titles = [column.title for column in sheet.columns]
    return {f"{row[0]} − {row[1]}": dict(zip(titles, row, strict=True)) for row in sheet.rows}


def sheet_named(chapter: Chapter, name: str) -> Sheet:
    return next(part for part in chapter.parts if isinstance(part, Sheet) and part.name == name)


@pytest.mark.parametrize("seeds", [1, 3])
def test_a_simulated_difference_is_found_and_its_size_is_right(tmp_path: Path, seeds: int) -> None:
    arms = [
        REFERENCE,
        SimulatedArm("dpo", "dpo", root(1.0), label="DPO"),
        SimulatedArm("ppo", "ppo", root(2.0), label="PPO"),
    ]
    folder = write_study(tmp_path, arms, seeds=seeds, noise=0.2)
    shown = differences(chapter_of(folder))["DPO − PPO"]
    assert isinstance(shown[DIFFERENCE], Estimate)
    assert shown[DIFFERENCE].sign == -1
    assert shown["Seeds"] == seeds
    study = read_study(folder)
    dpo, ppo = measured_families(study)
    shared = overlap(study, ppo, dpo)
    assert shared
    grid = np.linspace(shared.low_nats, shared.high_nats, 400)
    assert shared.difference.low <= np.interp(grid, [0, 1, 2, 4, 8], np.sqrt([0, 1, 2, 4, 8])).mean() + 0.1
    assert shared.difference.mean == pytest.approx(np.sqrt(grid).mean(), abs=0.15)
    assert shared.area.mean == pytest.approx(shared.difference.mean * (shared.high_nats - shared.low_nats))


def test_the_same_curve_at_more_kl_is_no_difference(tmp_path: Path) -> None:
    arms = [
        REFERENCE,
        SimulatedArm("dpo", "dpo", lambda kl: 0.5 * kl, label="DPO", kl=(1, 2, 3, 4)),
        SimulatedArm("ppo", "ppo", lambda kl: 0.5 * kl, label="PPO", kl=(2, 4, 6, 9)),
    ]
    found = differences(chapter_of(write_study(tmp_path, arms, seeds=3)))["DPO − PPO"][DIFFERENCE]
    assert isinstance(found, Estimate)
    assert found.sign == 0


def test_no_common_kl_is_undecided_and_nothing_is_extrapolated(tmp_path: Path) -> None:
    arms = [
        REFERENCE,
        SimulatedArm("dpo", "dpo", root(1.0), label="DPO", kl=(0.1, 0.2, 0.3, 0.4)),
        SimulatedArm("ppo", "ppo", root(3.0), label="PPO", kl=(2, 4, 6, 9)),
    ]
    chapter = chapter_of(write_study(tmp_path, arms, seeds=2))
    assert set(list(differences(chapter)["DPO − PPO"].values())[2:]) == {None}
    table = sheet_named(chapter, "reward-at-matched-kl")
    titles = [column.title for column in table.columns]
    assert not any(title.startswith("area") for title in titles)
    dpo, ppo = table.rows
    assert dpo[titles.index("at KL 5")] is None
    assert ppo[titles.index("at KL 5")] is not None


def variants() -> list[SimulatedArm]:
    return [
        SimulatedArm(f"dpo@loss.beta={beta}", "dpo", root(1.0), label=f"DPO, β {beta}", family="dpo",
                     overrides={"loss.beta": beta}, kl=(top / 4, top / 2, top / 1.5, top))
        for beta, top in ((0.1, 4.0), (0.5, 2.0), (1.0, 1.0))
    ]  # fmt: skip


def test_variants_of_a_method_are_one_family_of_one_hue(tmp_path: Path) -> None:
    ppo = SimulatedArm("ppo", "ppo", root(1.5), label="PPO")
    bound = SimulatedArm("best-of-n", "best-of-n", root(1.5), label="Best of n", kl_is_bound=True)
    folder = write_study(tmp_path, [REFERENCE, *variants(), ppo, bound])
    study = read_study(folder)
    assert [(family.title, len(family.variants)) for family in measured_families(study)] == [("DPO", 3), ("PPO", 1)]
    assert colour_of(study, study.arms[1]) == COLOURS[0].lower()
    assert colour_of(study, study.arms[4]) == COLOURS[1]
    assert len({colour_of(study, arm) for arm in study.arms}) == len(study.arms)
    chapter = chapter_of(folder)
    assert list(differences(chapter)) == ["DPO − PPO"]  # a bound on KL is compared with nothing
    drawing = next(part for part in chapter.parts if isinstance(part, Drawing))
    assert len(drawing.data.rows) == 1 + 5 * 4
    assert all(len(row) == len(drawing.data.columns) for row in drawing.data.rows)
    assert "dotted" in drawing.picture.reading
    assert "oracle" not in drawing.picture.reading


def test_variants_of_a_chain_are_called_by_the_whole_chain(tmp_path: Path) -> None:
    chains = [
        SimulatedArm(f"dpo@loss.beta={beta}+ppo", "ppo", root(1.4), label=f"DPO, β {beta} → PPO", family="dpo+ppo",
                     overrides={"dpo.loss.beta": beta})
        for beta in (0.1, 0.5)
    ]  # fmt: skip
    study = read_study(write_study(tmp_path, [REFERENCE, *variants(), *chains]))
    assert [family.title for family in measured_families(study)] == ["DPO", "DPO → PPO"]


def test_no_chapter_calls_a_difference_one_that_the_verdicts_leave_open(tmp_path: Path) -> None:
    """Among many comparisons some are left open, though their own intervals leave 0 out: no sentence says more."""
    study = read_study(write_study(tmp_path, seeds=3, noise=2.0))
    assert any(not v.found and v.p is not None and v.p < 0.05 for v in verdicts(study))
    for chapter in (frontier(study), win_rates(study)):
        assert chapter
        told = [item.answer for part in chapter.parts if isinstance(part, Findings) for item in part.items]
        assert not [
            answer for answer in told if answer.startswith(("Yes", "No,", "No difference")) or " gets " in answer
        ]


def test_the_drawn_frontier_holds_the_checkpoints_that_the_data_name(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, seeds=2))
    chapter = frontier(study)
    assert chapter
    drawing = next(part for part in chapter.parts if isinstance(part, Drawing))
    titles = [column.title for column in drawing.data.columns]
    marked = {
        row[titles.index("Step")]
        for row in drawing.data.rows
        if row[titles.index("Family")] == "ppo" and row[titles.index("On the frontier")] == "yes"
    }
    ppo = next(arm for arm in study.arms if arm.name == "ppo")
    assert study.reference
    assert marked == {p.step for p in envelope_of([*study.reference.validation, *ppo.validation])} - {0}


@pytest.mark.parametrize(("last", "roots"), [(4.0, False), (40.0, True)])
def test_small_kls_are_spread_where_one_arm_goes_far_further(tmp_path: Path, last: float, roots: bool) -> None:
    """Five arms end at 1 nat and one at 4 or at 40; on a √ scale 1 nat lies 16 % of the way to 40, not 2.5 %."""
    near = [SimulatedArm(f"dpo-{i}", "dpo", root(1.0), kl=(0.2, 0.5, 0.8, 1.0), label=f"Near {i}") for i in range(5)]
    far = SimulatedArm("ppo", "ppo", root(1.0), kl=(last / 4, last / 2, last / 1.5, last), label="Far")
    chapter = frontier(read_study(write_study(tmp_path, [REFERENCE, *near, far], noise=0.1)))
    assert chapter
    (drawn,) = (part for part in chapter.parts if isinstance(part, Drawing))
    assert ("on a √ scale" in drawn.picture.svg) == roots
    assert ("steps are of √KL" in drawn.picture.reading) == roots


def test_a_study_that_has_only_begun_has_no_frontier(tmp_path: Path) -> None:
    arms = [REFERENCE, replace(usual_arms()[2], evaluated=False)]
    assert frontier(read_study(write_study(tmp_path, arms, complete=False))) is None


def test_an_interval_that_leaves_the_frame_is_paler_than_the_curve() -> None:
    _, axes = sheet(4, 3)
    axes.plot([0, 1], [0, 1])
    axes.plot([1, 1], [-50, 50])
    zero, wide = Estimate(0, 0, 0), Estimate(1, -50, 50)
    frame_means(axes, [zero, Estimate(1, 1, 1)], [zero, wide])
    assert axes.get_ylim()[1] < 2
    assert [line.get_alpha() for line in axes.lines] == [None, PALE]
