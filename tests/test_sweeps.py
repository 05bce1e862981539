"""Sweeps are found among a study's arms, KL is said to fall only where it does, and the choice follows its rule."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preflab.report.chapter import Chapter, Drawing, Finding, Findings, Prose, Sheet
from preflab.report.chapters.sweep import sweep
from preflab.report.headline import headline
from preflab.report.study import Study, read_study
from preflab.report.sweeps import choose, recommended, sweeps, written
from preflab.report.verdicts import verdicts
from study_folder import REFERENCE, SimulatedArm, root, write_study

BETAS = (0.05, 0.1, 0.5, 1.0)
SQUARE_ROOT = root(1.0)


def variant(
    overrides: Mapping[str, object], kl: float, reward: Callable[[float], float], method: str = "dpo"
) -> SimulatedArm:
    """An arm that ends at one KL; its logged chosen reward is β times a logratio that goes from 0 to −KL."""
    name = "@".join([method, *(f"{key}={value}" for key, value in overrides.items())])
    beta = overrides.get("loss.beta", 0.1)
    assert isinstance(beta, float)
    logs = [{"step": s, "chosen_reward": -beta * kl * s / 400, "loss": 0.6} for s in (100, 200, 300, 400)]
    return SimulatedArm(
        name, method, reward, kl=(kl / 4, kl / 2, kl / 1.5, kl), label=f"{method.upper()}, {overrides}", family=method,
        overrides=overrides, metrics=logs,
    )  # fmt: skip


def study_of(folder: Path, arms: Sequence[SimulatedArm], *, seeds: int = 3, noise: float = 0.5) -> Study:
    return read_study(write_study(folder, [REFERENCE, *arms], seeds=seeds, noise=noise))


def of_betas(kls: Sequence[float], reward: Callable[[float], float] = SQUARE_ROOT, method: str = "dpo") -> list:
    return [variant({"loss.beta": beta}, kl, reward, method) for beta, kl in zip(BETAS, kls, strict=True)]


def findings(study: Study) -> list[Finding]:
    chapter = sweep(study)
    assert chapter
    return [item for part in chapter.parts if isinstance(part, Findings) for item in part.items]


# --- which sweeps there are ---


def test_a_plain_study_has_no_sweep(tmp_path: Path) -> None:
    study = read_study(write_study(tmp_path))
    assert sweeps(study) == ()
    assert sweep(study) is None


def test_variants_are_ordered_by_value_and_the_plain_arm_stands_among_them(tmp_path: Path) -> None:
    arms = [variant({"loss.beta": beta}, 2.0, root(1.0)) for beta in (0.5, 0.05)]
    found = sweeps(study_of(tmp_path, [*arms, SimulatedArm("dpo", "dpo", label="DPO")], seeds=1))
    assert [one.values for one in found] == [(0.05, 0.1, 0.5)]  # its settings say β 0.1
    assert found[0].title == "DPO"


def test_two_values_are_a_sweep_where_the_study_was_made_as_one(tmp_path: Path) -> None:
    arms = [REFERENCE, *of_betas([8, 4, 2, 1])[:2]]
    assert sweeps(read_study(write_study(tmp_path / "a", arms))) == ()
    made = write_study(tmp_path / "b", arms, sweep={"method": "dpo", "over": {"loss.beta": [0.05, 0.1]}})
    assert [one.values for one in sweeps(read_study(made))] == [(0.05, 0.1)]


def test_a_grid_is_a_sweep_of_each_setting_with_the_other_held(tmp_path: Path) -> None:
    rate = "optimizer.learning_rate"
    arms = [
        variant({"loss.beta": beta, rate: lr}, 1 / beta * lr * 1e4, root(1.0))
        for beta in (0.1, 0.5, 1.0)
        for lr in (1e-4, 2e-4)
    ]
    folder = write_study(
        tmp_path,
        [REFERENCE, *arms],
        sweep={"method": "dpo", "over": {"loss.beta": [0.1, 0.5, 1.0], rate: [1e-4, 2e-4]}},
    )
    found = sweeps(read_study(folder))
    assert [(one.setting, dict(one.others)) for one in found] == [
        ("loss.beta", {rate: 1e-4}), ("loss.beta", {rate: 2e-4}),
        (rate, {"loss.beta": 0.1}), (rate, {"loss.beta": 0.5}), (rate, {"loss.beta": 1.0}),
    ]  # fmt: skip
    assert [one.holds_back for one in found] == [True, True, False, False, False]
    assert found[0].title == "DPO, learning_rate 0.0001"


def test_words_are_no_sweep(tmp_path: Path) -> None:
    arms = [variant({"optimizer.decay": word}, 2.0, root(1.0)) for word in ("constant", "linear", "cosine")]
    assert sweeps(study_of(tmp_path, arms, seeds=1)) == ()


# --- whether KL falls ---


@pytest.mark.parametrize(
    ("kls", "answer", "found"),
    [
        ([12, 6, 3, 1], "Yes, at every step: from β 0.05 to 1 KL changes by −1", True),
        ([12, 6, 6, 1], "Yes over the whole range", True),
        ([12, 3, 8, 1], "No: it rises at 0.1 → 0.5 (", True),
        ([4, 4, 4, 4], "Undecided: ", False),
    ],
)
def test_kl_is_said_to_fall_where_it_does(tmp_path: Path, kls: list[float], answer: str, found: bool) -> None:
    first = findings(study_of(tmp_path, of_betas(kls)))[0]
    assert first.about == "Does KL fall as β rises?"
    assert first.answer.startswith(answer)
    assert first.found is found


def test_an_undecided_step_is_named(tmp_path: Path) -> None:
    answer = findings(study_of(tmp_path, of_betas([12, 6, 6, 1])))[0].answer
    assert answer.endswith("undecided at 0.1 → 0.5.")


def test_a_loss_without_a_reference_promises_no_fall(tmp_path: Path) -> None:
    first = findings(study_of(tmp_path, of_betas([1, 3, 8, 12], method="simpo")))[0]
    assert first.about == "What does β do to KL?"
    assert first.answer.startswith("From β 0.05 to 1 KL rises by 1")


# --- which value to take ---


def test_only_the_last_stage_of_a_chain_holds_its_policy_back(tmp_path: Path) -> None:
    """β of DPO before PPO says where PPO starts, not how far it may go."""

    def chains(setting: str) -> list[SimulatedArm]:
        return [
            SimulatedArm(f"{setting}={value}", "ppo", family="dpo+ppo", overrides={setting: value})
            for value in (0.1, 0.5, 1.0)
        ]

    (before,) = sweeps(study_of(tmp_path / "a", chains("dpo.loss.beta"), seeds=1))
    (last,) = sweeps(study_of(tmp_path / "b", chains("ppo.kl_coefficient"), seeds=1))
    assert (before.title, before.holds_back, last.holds_back) == ("DPO → PPO", False, True)


def test_the_smallest_kl_among_the_best_is_recommended(tmp_path: Path) -> None:
    """Reward saturates at KL 3: β 0.05, 0.1 and 0.5 are as good as each other, 0.5 is the closest to the reference."""
    study = study_of(tmp_path, of_betas([12, 6, 3, 0.2], lambda kl: min(kl, 3.0)), seeds=1, noise=0.3)
    choice = choose(study, sweeps(study)[0].arms)
    assert choice
    assert choice.arm.overrides["loss.beta"] == 0.5
    answer = findings(study)[-1].answer
    assert answer.startswith("β 0.5: of 4 values, the smallest KL (")
    assert "at an end" not in answer


def test_a_best_value_at_the_end_says_that_more_should_be_tried(tmp_path: Path) -> None:
    study = study_of(tmp_path, of_betas([12, 6, 3, 1], lambda kl: kl), noise=0.2)
    answer = findings(study)[-1].answer
    assert answer.startswith("β 0.05: ")
    assert "it is the best itself" in answer
    assert answer.endswith("try values beyond 0.05.")


def test_nothing_is_recommended_where_nothing_beats_the_reference(tmp_path: Path) -> None:
    last = findings(study_of(tmp_path, of_betas([12, 6, 3, 1], lambda kl: -0.5)))[-1]
    assert last.answer.startswith("None can be recommended")
    assert not last.found


def test_a_value_as_good_as_the_reference_is_not_recommended_for_its_small_kl(tmp_path: Path) -> None:
    """With little data β 1 may be no worse than the best, and no better than the reference either."""
    rewards = {12: 1.0, 6: 0.9, 3: 0.8, 0.1: 0.0}
    study = study_of(tmp_path, of_betas([12, 6, 3, 0.1], lambda kl: rewards.get(kl, 0.0)), seeds=1, noise=0.5)
    choice = choose(study, sweeps(study)[0].arms)
    assert choice
    assert choice.arm.overrides["loss.beta"] < 1
    assert choice.gain.sign == 1


def test_the_test_prompts_have_no_say(tmp_path: Path) -> None:
    """On test prompts everything is far below the reference."""
    folder = write_study(tmp_path, [REFERENCE, *of_betas([12, 6, 3, 1], lambda kl: kl)], noise=0.2)
    for path in folder.glob("arms/dpo*/*/evaluation.json"):
        content = json.loads(path.read_text())
        test = next(point for point in content["points"] if point["split"] == "test")
        test["rows"]["reward"] = [-99.0 - i for i in range(len(test["rows"]["reward"]))]
        path.write_text(json.dumps(content))
    study = read_study(folder)
    choice = choose(study, sweeps(study)[0].arms)
    assert choice
    assert choice.arm.overrides["loss.beta"] == 0.05


# --- the summary ---


def swept_over(folder: Path, arms: Sequence[SimulatedArm], *keys: str, **fields: object) -> Study:
    made = {"method": "dpo", "over": {key: [] for key in keys}}
    return read_study(write_study(folder, [REFERENCE, *arms], sweep=made, **fields))  # type: ignore[arg-type]


def test_the_summary_names_the_value_to_take_and_why(tmp_path: Path) -> None:
    """β 0.05 gets a little more than 0.1 and 0.5 do, which may be nothing, for more KL."""
    study = swept_over(tmp_path, of_betas([12, 6, 3, 0.2], lambda kl: min(kl, 3.0 + kl / 100)), "loss.beta", noise=0.3)
    sentence = recommended(study)
    assert sentence in headline(study, verdicts(study))[:3]
    assert re.fullmatch(
        r"Of 4 values of β for DPO take 0\.5: on validation prompts it beats the reference and may be as good as the "
        r"best, 0\.05, which is ahead by 0\.\d+ \[−0\.\d+, 0\.\d+\], and has the smallest KL of those that do, "
        r"[23]\.\d\d nats\.",
        sentence,
    )


def test_the_summary_says_that_a_best_value_lies_at_an_end(tmp_path: Path) -> None:
    study = swept_over(tmp_path, of_betas([12, 6, 3, 1], lambda kl: kl), "loss.beta", noise=0.2)
    assert recommended(study).startswith(
        "Of 4 values of β for DPO take 0.05: on validation prompts it gets the most gold sentiment, 12."
    )
    assert recommended(study).endswith("it lies at an end of what was tried.")


def test_the_summary_of_an_unfinished_sweep_says_that_more_is_to_come(tmp_path: Path) -> None:
    first, second, *_ = of_betas([12, 6, 3, 1], lambda kl: kl)
    unrun = replace(of_betas([12, 6, 3, 1])[2], evaluated=False)
    study = swept_over(tmp_path, [first, second, unrun], "loss.beta", noise=0.2, complete=False)
    assert recommended(study).startswith("Of 2 values of β for DPO so far take 0.05: ")


def test_the_summary_of_a_grid_names_one_point_of_it(tmp_path: Path) -> None:
    rate = "optimizer.learning_rate"
    arms = [
        variant({"loss.beta": beta, rate: lr}, 2.0, lambda kl, b=beta, lr=lr: 4.0 if (b, lr) == (0.5, 2e-4) else 1.0)
        for beta in (0.1, 0.5)
        for lr in (1e-4, 2e-4)
    ]
    study = swept_over(tmp_path, arms, "loss.beta", rate, noise=0.2)
    assert recommended(study).startswith(
        "Of 4 settings for DPO take β 0.5, learning_rate 2e-4: on validation prompts it gets the most gold sentiment"
    )
    assert "at an end" not in recommended(study)


def test_the_summary_of_a_grid_names_a_setting_that_is_a_word_too(tmp_path: Path) -> None:
    """Which is no sweep, but what a value of the other setting goes with."""
    key, word = "kl_coefficient", "value_trunk"
    arms = [
        SimulatedArm(f"ppo@{key}={value}@{word}={trunk}", "ppo", lambda kl, h=height: h, kl=(1, 2, 3, 4), family="ppo",
                     overrides={key: value, word: trunk})
        for value in (0.1, 0.5)
        for trunk, height in (("shared", 1.0), ("separate", 2.0 + value))
    ]  # fmt: skip
    study = swept_over(tmp_path, arms, key, word, noise=0.1)
    assert recommended(study).startswith("Of 4 settings for PPO take kl_coefficient 0.5, value_trunk separate: ")


def test_the_summary_names_all_that_tells_the_values_of_one_setting_apart(tmp_path: Path) -> None:
    """Two values of β at the method's rate and at another are four settings, not four values of β."""
    rate = "optimizer.learning_rate"
    plain = [variant({"loss.beta": beta}, 2.0, root(1.0)) for beta in (0.1, 0.5)]
    faster = [variant({"loss.beta": beta, rate: 2e-4}, 2.0, root(2.0 + beta)) for beta in (0.1, 0.5)]
    study = swept_over(tmp_path, [*plain, *faster], "loss.beta", noise=0.1)
    assert recommended(study).startswith("Of 4 settings for DPO take β 0.5, learning_rate 2e-4: ")


def test_the_summary_of_a_chain_names_the_value_of_its_last_stage(tmp_path: Path) -> None:
    """The plain chain stands among its variants by the value in its settings, which are those of the last stage."""
    key, own = "ppo.kl_coefficient", "kl_coefficient"
    set_ = [
        SimulatedArm(f"dpo+ppo@{own}={value}", "ppo", root(1.0), kl=(1, 2, 3, 2 / value), family="dpo+ppo",
                     overrides={key: value})
        for value in (0.1, 0.5)
    ]  # fmt: skip
    plain = SimulatedArm("dpo+ppo", "ppo", root(1.0), kl=(1, 2, 3, 40), family="dpo+ppo", label="DPO → PPO")
    folder = write_study(tmp_path, [REFERENCE, plain, *set_], seeds=3, noise=0.2,
                         sweep={"method": "dpo+ppo", "over": {key: [0.1, 0.5]}})  # fmt: skip
    content = json.loads((folder / "study.json").read_text())
    for entry in content["arms"]:
        entry["settings"] |= {own: entry["overrides"].get(key, 0.05)}
    (folder / "study.json").write_text(json.dumps(content))
    study = read_study(folder)
    assert [one.values for one in sweeps(study)] == [(0.05, 0.1, 0.5)]
    assert recommended(study).startswith("Of 3 values of kl_coefficient for DPO → PPO take 0.05: ")


def test_the_summary_is_undecided_where_nothing_beats_the_reference(tmp_path: Path) -> None:
    study = swept_over(tmp_path, of_betas([12, 6, 3, 1], lambda kl: -0.5), "loss.beta")
    assert recommended(study) == (
        "Undecided between 4 values of β for DPO: on validation prompts none is shown to get more gold sentiment than "
        "the reference."
    )


def test_a_study_that_was_not_made_as_a_sweep_recommends_nothing_in_its_summary(tmp_path: Path) -> None:
    assert recommended(study_of(tmp_path, of_betas([12, 6, 3, 1]))) == ""


def test_a_setting_is_written_as_labels_write_it() -> None:
    assert [written(key) for key in ("loss.tau", "batch.size", "ppo.kl_coefficient", "1.dpo.loss.beta")] == [
        "τ", "batch.size", "kl_coefficient", "β",
    ]  # fmt: skip


# --- the popular picture ---


def drawing(chapter: Chapter, name: str) -> Drawing:
    return next(part for part in chapter.parts if isinstance(part, Drawing) and part.picture.name == name)


def test_the_popular_line_has_slope_beta_and_stands_beside_the_measured_one(tmp_path: Path) -> None:
    chapter = sweep(study_of(tmp_path, of_betas([12, 6, 3, 1])))
    assert chapter
    rows = drawing(chapter, "implicit-reward").data.rows
    left = [row for row in rows if row[0] == "left"]
    assert len(left) == 4 * 4 * 3
    for _, arm, _, _, logratio, reward in left:
        assert reward == pytest.approx(arm.overrides["loss.beta"] * logratio)  # type: ignore[union-attr, operator]
    ends = [row for row in left if row[3] == 400 and row[2] == 0]
    assert [row[4] for row in ends] == pytest.approx([-12, -6, -3, -1])
    assert len([row for row in rows if row[0] == "right"]) == 4 * 4
    assert any(isinstance(part, Prose) and "straight line" in part.text for part in chapter.parts)


def test_it_is_not_drawn_where_the_implicit_reward_is_another(tmp_path: Path) -> None:
    chapter = sweep(study_of(tmp_path, of_betas([12, 6, 3, 1], method="simpo")))
    assert chapter
    assert [part.picture.name for part in chapter.parts if isinstance(part, Drawing)] == ["sweep-0"]


def test_the_table_and_the_data_hold_what_was_measured(tmp_path: Path) -> None:
    study = study_of(tmp_path, of_betas([12, 6, 3, 1]))
    chapter = sweep(study)
    assert chapter
    sheets = [part for part in chapter.parts if isinstance(part, Sheet)]
    data = drawing(chapter, "sweep-0").data
    for rows in (sheets[0].rows, data.rows):
        assert [row[0] for row in rows] == list(BETAS)
    last = study.arms[1].validation[-1]
    assert data.rows[0][4].mean == pytest.approx(np.mean(last.kl_nats))  # type: ignore[union-attr]
    assert data.rows[0][5].mean == pytest.approx(np.mean(last.reward))  # type: ignore[union-attr]
    assert all(len(row) == len(sheets[0].columns) for row in sheets[0].rows)


@pytest.mark.parametrize("chosen_step", [300, 400])
def test_the_chosen_checkpoint_has_columns_of_its_own_where_it_is_not_the_last(
    tmp_path: Path, chosen_step: int
) -> None:
    study = study_of(tmp_path, of_betas([12, 6, 3, 1]))
    arms = tuple(replace(a, runs=tuple(replace(r, chosen_step=chosen_step) for r in a.runs)) for a in study.arms)
    chapter = sweep(replace(study, arms=arms))
    assert chapter
    (table,) = (part for part in chapter.parts if isinstance(part, Sheet))
    titles = [column.title for column in table.columns][3:]
    at_end, chosen = ["KL at the end (nats)", "Reward at the end"], ["KL, chosen (nats)", "Reward, chosen"]
    assert titles == (at_end if chosen_step == 400 else at_end + chosen)
    assert all(len(row) == 3 + len(titles) for row in table.rows)
