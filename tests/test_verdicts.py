"""Verdicts on simulated arms whose differences are known: right, silent, or undecided as they should be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preflab.report.chapter import Findings, Sheet
from preflab.report.chapters.statistics import statistics
from preflab.report.chapters.verdicts import verdicts as verdicts_chapter
from preflab.report.headline import headline
from preflab.report.statistics import Estimate, estimate, holm
from preflab.report.study import Arm, Point, Study, read_study
from preflab.report.verdicts import ALPHA, Subject, Verdict, correction, remedy, verdicts
from study_folder import REFERENCE, SimulatedArm, root, usual_arms, write_study

SEEDS, PROMPTS = 3, 64
KL = (1.0, 2.0, 4.0)


@pytest.fixture(scope="module")
def blank(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Three trained arms and the reference, three seeds, 64 prompts; the numbers are drawn anew for each study."""
    arms = [REFERENCE, *(SimulatedArm(name, name, steps=(1, 2, 3), kl=KL) for name in ("dpo", "ppo", "sft"))]
    return read_study(write_study(tmp_path_factory.mktemp("blank"), arms, seeds=SEEDS, prompts=PROMPTS))


def drawn(
    study: Study, rng: np.random.Generator, *, luck: float = 0.1, gains: Mapping[str, float] | None = None
) -> Study:
    """A study whose arms have the reference's reward plus their gain, at every KL, and each seed its luck."""
    easy = {split: 0.6 * rng.normal(size=PROMPTS) for split in ("validation", "test")}

    def arm(one: Arm) -> Arm:
        gain = (gains or {}).get(one.name, 0.0)
        lucks = luck * rng.normal(size=SEEDS) if one.name != "reference" else np.zeros(SEEDS)
        liking = {split: 0.3 * rng.normal(size=PROMPTS) for split in easy}

        def point(old: Point, seed: int) -> Point:
            noise = 0.5 * rng.normal(size=(1, PROMPTS))
            reward = easy[old.split] + gain + lucks[seed] + liking[old.split] + noise
            proxy = None if old.proxy_reward is None else 0.5 * rng.normal(size=(1, PROMPTS))
            return replace(old, reward=reward, proxy_reward=proxy)

        runs = tuple(
            replace(
                run,
                validation=tuple(point(old, seed) for old in run.validation),
                test=run.test and point(run.test, seed),
            )
            for seed, run in enumerate(one.runs)
        )
        return replace(one, runs=runs)

    return replace(study, arms=tuple(arm(one) for one in study.arms))


def by_subject(found: Sequence[Verdict], subject: str) -> list[Verdict]:
    return [verdict for verdict in found if verdict.subject == subject]


@pytest.mark.parametrize(("luck", "studies"), [(0.1, 400), (0.3, 250)])
def test_where_nothing_differs_few_studies_find_anything(blank: Study, luck: float, studies: int) -> None:
    """Three comparisons of each kind over 3 seeds × 64 prompts × 4 arms; uncorrected, more studies find something."""
    rng = np.random.default_rng(int(10 * luck))
    found: dict[str, list[bool]] = {"with the reference": [], "between methods": [], "about the proxy": []}
    alone = []
    for _ in range(studies):
        said = [verdict for verdict in verdicts(drawn(blank, rng, luck=luck)) if verdict.p is not None]
        for kind, those in found.items():
            assert len([verdict for verdict in said if verdict.kind == kind]) == 3
            those.append(any(verdict.found for verdict in said if verdict.kind == kind))
        alone.append(any((verdict.p or 0.0) < ALPHA for verdict in said))
    assert max(np.mean(those) for those in found.values()) <= 0.06
    assert np.mean(alone) >= 0.11  # the test can fail: without the correction it would


def test_a_large_difference_is_found_with_its_sign(blank: Study) -> None:
    rng = np.random.default_rng(5)
    right = []
    for _ in range(40):
        made = drawn(blank, rng, luck=0.02, gains={"dpo": 1.0, "ppo": 2.5, "sft": -1.0})
        said = verdicts(made)
        signs = {verdict.arms: verdict.sign for verdict in said if verdict.subject in ("equal KL", "reference")}
        truth = {("dpo", "ppo"): -1, ("dpo", "sft"): 1, ("ppo", "sft"): 1, ("dpo",): 1, ("ppo",): 1, ("sft",): -1}
        assert all(sign in (0, truth[arms]) for arms, sign in signs.items())  # never the wrong one
        right.append(signs == truth)
    assert np.mean(right) >= 0.9


def test_a_tiny_difference_is_left_open_and_says_what_would_settle_it(blank: Study) -> None:
    silent = 0
    for seed in range(10):
        made = drawn(blank, np.random.default_rng(seed), gains={"dpo": 0.02, "ppo": 3.0})
        verdict = next(v for v in by_subject(verdicts(made), "reference") if v.arms == ("dpo",))
        if verdict.p is not None and verdict.p >= ALPHA:
            silent += 1
            assert verdict.sign == 0
            assert verdict.answer.startswith("No difference found: ")
            assert "would" in verdict.remedy or "ruled out" in verdict.remedy
            assert verdict.answer.endswith(verdict.remedy)
    assert silent >= 7


def test_without_an_overlap_nothing_is_compared_and_nothing_counted(tmp_path: Path) -> None:
    arms = [
        REFERENCE,
        SimulatedArm("dpo", "dpo", root(1.0), kl=(0.1, 0.2, 0.3, 0.4)),
        SimulatedArm("ppo", "ppo", root(3.0), kl=(5, 6, 7, 8)),
    ]
    study = read_study(write_study(tmp_path, arms, seeds=3))
    found = verdicts(study)
    (verdict,) = by_subject(found, "equal KL")
    assert (verdict.p, verdict.corrected, verdict.found, verdict.remedy) == (None, None, False, "")
    assert verdict.answer.startswith("Undecided: their KL ranges don't overlap")
    assert correction(found).startswith("2 comparisons with the reference (2 found) and 2 about the proxy (none found)")
    assert "Undecided, as their distances from the reference (KL) don't overlap" in headline(study, found)[1]


def test_the_correction_is_holms_over_all_of_a_kind(tmp_path: Path) -> None:
    found = verdicts(read_study(write_study(tmp_path, seeds=3)))
    counted = [verdict for verdict in found if verdict.p is not None]
    kinds: list[set[Subject]] = [{"reference"}, {"equal KL", "tuned"}, {"proxy"}]
    for kind in kinds:
        those = [v for v in counted if v.subject in kind]
        assert len(those) > 1
        assert [v.corrected for v in those] == pytest.approx(holm([v.p for v in those if v.p is not None]))
        assert {v.among for v in those} == {len(those)}
    assert all(v.found == ((v.corrected or 0) < 0.05) for v in counted)
    assert all(v.difference and v.difference.sign for v in counted if v.found)  # its 95 % interval shows it, too


def test_the_report_says_how_many_comparisons_of_a_kind_there_are_and_what_is_promised() -> None:
    def one(subject: Subject, corrected: float) -> Verdict:
        return Verdict(subject, ("a",), "", "", "", "", "", p=0.01, corrected=corrected)

    of_reference = [one("reference", 0.01), one("reference", 0.2)]
    assert correction(of_reference).startswith(
        "2 comparisons with the reference (1 found), Holm-corrected: where nothing differs, at most one study in "
        "twenty finds anything. "
    )
    assert correction([one("proxy", 0.2), *of_reference, one("tuned", 0.01), one("equal KL", 0.01)]).startswith(
        "2 comparisons with the reference (1 found), 2 between methods (2 found) and 1 about the proxy (none found), "
        "each kind Holm-corrected: where nothing differs, at most one study in twenty finds anything of a kind, at "
        "most three of any. "
    )
    assert correction([one("proxy", 0.2), one("tuned", 0.2)]).startswith(
        "1 comparison between methods (none found) and 1 about the proxy (none found), each kind Holm-corrected: where "
        "nothing differs, at most one study in twenty finds anything of a kind, at most two of any. "
    )
    assert correction([one("reference", 0.01), Verdict("cost", ("a",), "", "", "", "", "")]) == ""


def test_what_counts_alone_but_not_among_its_kind_is_undecided_and_says_why() -> None:
    verdict = Verdict(
        "reference", ("ppo",), "PPO", "Does PPO beat the reference?", "Yes.", "No difference found",
        "2.14 [1.35, 2.93] on 256 test prompts, 3 seeds", Estimate(2.14, 1.35, 2.93), 0.007, 0.077, 11,
        "1 more seed would settle a gap of 2.14.",
    )  # fmt: skip
    assert (verdict.found, verdict.sign) == (False, 0)
    assert verdict.answer == (
        "Undecided: 2.14 [1.35, 2.93] on 256 test prompts, 3 seeds; alone it would count (p = 0.007), but of 11 "
        "comparisons with the reference one may look so by luck: corrected for that p = 0.077, and it takes less than "
        "0.05. 1 more seed would settle a gap of 2.14."
    )


def test_of_arms_that_took_as_long_as_each_other_two_are_named(tmp_path: Path) -> None:
    arms = [REFERENCE, SimulatedArm("dpo", "dpo", label="DPO"), SimulatedArm("ppo", "ppo", label="PPO", seconds=30.0)]
    (cost,) = by_subject(verdicts(read_study(write_study(tmp_path, arms))), "cost")
    assert cost.answer.startswith("PPO took 1.0 times as long as DPO: 30 s against 30 s")


def test_one_seed_is_told_to_take_three(tmp_path: Path) -> None:
    arms = [REFERENCE, SimulatedArm("dpo", "dpo", lambda kl: 0.0), SimulatedArm("ppo", "ppo", lambda kl: 0.0)]
    study = read_study(write_study(tmp_path, arms, seeds=1))
    for verdict in verdicts(study):
        if verdict.values is not None and not verdict.found:
            assert "One seed says nothing about other training runs: 3 would tell" in verdict.answer


def test_a_gap_too_small_to_settle_is_set_against_half_of_the_largest(blank: Study) -> None:
    made = drawn(blank, np.random.default_rng(0), luck=0.0, gains={"ppo": 3.0})
    verdict = next(v for v in verdicts(made) if v.values is not None and not v.found)
    assert verdict.values is not None
    centred = verdict.values - verdict.values.mean() + 1e-4
    tiny = replace(verdict, values=centred, difference=estimate(centred, "difference"))
    assert remedy(tiny, 1.5, 0.95) == "A gap of 1.50, half the largest that was found, is ruled out."
    assert remedy(tiny, 0.0, 0.95).startswith("More than 50 more seeds would be needed")
    assert remedy(replace(tiny, values=centred[:1]), 0.0, 0.95).startswith("One seed says nothing")


# --- the headline ---


def test_the_headline_is_three_sentences_and_answers_dpo_or_ppo(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, seeds=3, noise=0.1))
    first, second, *third = headline(study, verdicts(study))
    assert len(third) <= 1
    assert first.startswith(
        "SFT, DPO, PPO and PPO, gold reward (oracle) beat the reference, the model that all start from"
    )
    assert second.startswith(
        "DPO or PPO? At equal KL, the distance from the reference, PPO gets more gold sentiment, by "
    )
    assert second.endswith("PPO took 3.1 times as long as DPO.")


def test_the_headline_says_undecided_where_the_verdict_does(tmp_path: Path) -> None:
    arms = [REFERENCE, SimulatedArm("dpo", "dpo", root(1.0)), SimulatedArm("ppo", "ppo", root(1.0))]
    study = read_study(write_study(tmp_path, arms, seeds=3))
    found = verdicts(study)
    assert by_subject(found, "equal KL")[0].sign == 0
    sentence = next(line for line in headline(study, found) if line.startswith("dpo or ppo?"))
    assert "Undecided, at equal KL, the distance from the reference, dpo − ppo is " in sentence
    assert " would " in sentence or "ruled out" in sentence


def test_a_difference_that_counts_alone_only_is_no_answer_in_the_headline(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, seeds=3))
    main, *others = verdicts(study)
    assert main.difference
    alone = replace(main, difference=Estimate(0.5, 0.1, 0.9), p=0.02, corrected=0.2)
    sentence = headline(study, [alone, *others])[1]
    assert "is 0.50 [0.10, 0.90], which counts alone but not as one of 3 comparisons between methods" in sentence
    nothing = replace(main, difference=Estimate(0.5, -0.1, 1.1), p=0.1, corrected=0.2)
    assert "is 0.50 [−0.10, 1.10], which may be nothing" in headline(study, [nothing, *others])[1]


def test_an_arm_whose_difference_counts_alone_only_is_not_said_to_differ_or_not(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, seeds=3))
    found = list(verdicts(study))
    place = next(n for n, verdict in enumerate(found) if verdict.subject == "reference")
    found[place] = replace(found[place], difference=Estimate(0.5, 0.1, 0.9), p=0.02, corrected=0.2)
    title = next(arm.title for arm in study.arms if arm.name == found[place].arms[0])
    assert f"the difference of {title} from it counts alone, not as one of 4 comparisons." in headline(study, found)[0]


def test_a_chain_that_ends_in_ppo_is_not_what_is_asked_first(tmp_path: Path) -> None:
    chain = SimulatedArm("dpo+ppo", "ppo", root(1.4), label="DPO → PPO")
    _, sft, dpo, ppo, _ = usual_arms()
    study = read_study(write_study(tmp_path, [REFERENCE, sft, dpo, chain, ppo]))
    assert verdicts(study)[0].arms == ("dpo", "ppo")


def test_the_headline_names_whom_the_proxy_misled(tmp_path: Path) -> None:
    arms = [REFERENCE, SimulatedArm("ppo", "ppo", lambda kl: 2.0 - abs(kl - 4.0), lambda kl: kl, label="PPO")]
    study = read_study(write_study(tmp_path, arms, noise=0.2))
    assert "Reward model misled PPO: it rose while gold sentiment fell." in headline(study, verdicts(study))


# --- the chapters ---


def test_the_chapter_on_verdicts_has_every_answer_under_its_question(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path, seeds=3))
    chapter = verdicts_chapter(study)
    assert chapter
    groups = [part for part in chapter.parts if isinstance(part, Findings)]
    assert [group.heading for group in groups] == [
        "More reward at equal KL?", "Better than the reference?", "Did the proxy mislead?", "What did it cost?"
    ]  # fmt: skip
    assert [(item.answer, item.found) for group in groups for item in group.items] == [
        (v.answer, v.found) for v in verdicts(study)
    ]
    assert not [part for part in chapter.parts if isinstance(part, Sheet)]  # nothing was tuned


def test_the_chapter_on_statistics_counts_comparisons_and_says_what_was_equal(tmp_path: Path) -> None:
    budget = {"measure": "seconds", "amount": 30}
    study = read_study(write_study(tmp_path, usual_arms(), seeds=3, budget=budget))
    chapter = statistics(study)
    assert chapter
    said = {item.about: item.answer for part in chapter.parts if isinstance(part, Findings) for item in part.items}
    assert said["How many comparisons"] == correction(verdicts(study))
    assert said["Budget"].startswith("Every arm was given 30 seconds of training.")
    sheets = {part.name: part for part in chapter.parts if isinstance(part, Sheet)}
    assert len(sheets["comparisons"].rows) == len([v for v in verdicts(study) if v.p is not None])
    seconds, tokens = (
        next(row for row in sheets["budget"].rows if row[0] == name)
        for name in ("seconds of training", "generated and trained tokens")
    )
    assert (seconds[1], seconds[3], seconds[5]) == ("30 s", "93 s", "by design")
    assert (tokens[1], tokens[3], tokens[5]) == ("120,000", "210,000", "")


def test_without_a_budget_the_chapter_points_to_the_costs(tmp_path: Path) -> None:
    chapter = statistics(read_study(write_study(tmp_path, seeds=1)))
    assert chapter
    said = {item.about: item.answer for part in chapter.parts if isinstance(part, Findings) for item in part.items}
    assert said["Budget"].startswith("None: arms ended by their own settings")
    assert said["How many seeds"].startswith("One: ")
    assert "budget" not in [part.name for part in chapter.parts if isinstance(part, Sheet)]
