"""The chapters about responses say what simulated studies were made to show, and nothing where they have nothing."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preflab.errors import StorageError
from preflab.report.chapter import Chapter, Drawing, Findings, Gallery, Prose, Sheet
from preflab.report.chapters.cost import cost
from preflab.report.chapters.degeneration import degeneration
from preflab.report.chapters.generations import generations
from preflab.report.chapters.win_rates import win_rates
from preflab.report.costs import fieller, pays_reward_model, ratio_of, reached, share_of_gain, spent
from preflab.report.duels import between, duels
from preflab.report.statistics import Estimate, estimate, student
from preflab.report.study import Study, read_study
from preflab.report.visits import visited
from preflab.runs import digest, read_lines
from study_folder import REFERENCE, SimulatedArm, root, usual_arms, write_json, write_lines, write_study

ALL = (win_rates, degeneration, cost, generations)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_study(tmp_path_factory.mktemp("usual"), seeds=3)
    for seed in range(3):
        model = {"wall_seconds": 30.0 + seed, "flops": 1e12, "trained_tokens": 1000}
        write_json(path / f"stages/seed-{seed}/reward-model/stage.json", {"result": {"cost": model}})
    return path


@pytest.fixture(scope="module")
def usual(folder: Path) -> Study:
    return read_study(folder)


def sheet(chapter: Chapter | None, name: str) -> Sheet:
    assert chapter
    return next(part for part in chapter.parts if isinstance(part, Sheet) and part.name == name)


def answers(chapter: Chapter | None) -> dict[str, str]:
    assert chapter
    return {item.about: item.answer for part in chapter.parts if isinstance(part, Findings) for item in part.items}


def galleries(chapter: Chapter | None) -> dict[str, Gallery]:
    assert chapter
    return {part.name: part for part in chapter.parts if isinstance(part, Gallery)}


@pytest.mark.parametrize("chapter", ALL)
def test_every_sheet_is_as_wide_as_its_columns_and_every_name_is_its_own(usual: Study, chapter) -> None:
    made = chapter(usual)
    sheets = [p.data if isinstance(p, Drawing) else p for p in made.parts if isinstance(p, Drawing | Sheet)]
    for one in sheets:
        assert one.rows
        assert {len(row) for row in one.rows} == {len(one.columns)}
        assert one.reading.endswith(".")
    assert len({one.name for one in sheets}) == len(sheets)


@pytest.mark.parametrize("chapter", ALL)
def test_a_study_without_results_has_no_such_chapter(tmp_path: Path, chapter) -> None:
    arms = [replace(arm, evaluated=False) for arm in usual_arms()]
    assert chapter(read_study(write_study(tmp_path, arms, complete=False))) is None


@pytest.mark.parametrize("chapter", ALL)
def test_a_study_that_is_still_running_is_read_as_far_as_it_has_come(tmp_path: Path, chapter) -> None:
    arms = [replace(arm, tested=False, evaluated=arm.name != "ppo") for arm in usual_arms()]
    assert chapter(read_study(write_study(tmp_path, arms, complete=False))) is not None


# --- win rates ---


def tilted(tmp_path: Path, rewards: dict[str, list[float]], tokens: dict[str, list[int]] | None = None) -> Study:
    """A study of one seed with these rewards (and lengths) on its test prompts."""
    arms = [REFERENCE, *(SimulatedArm(name, name, steps=(10,), kl=(1.0,), label=name.upper()) for name in rewards
                         if name != "reference")]  # fmt: skip
    n = len(next(iter(rewards.values())))
    write_study(tmp_path, arms, prompts=n)
    for name, values in rewards.items():
        path = tmp_path / f"arms/{name}/seed-0/evaluation.json"
        content = json.loads(path.read_text())
        for point in content["points"]:
            point["rows"]["reward"] = values
            if tokens:
                point["rows"]["response_tokens"] = tokens[name]
        write_json(path, content)
    return read_study(tmp_path)


def test_wins_ties_and_losses_are_counted_on_the_same_prompts(tmp_path: Path) -> None:
    """Of 8 prompts DPO wins 4, ties 2 and loses 2 against PPO: a win rate of 5/8."""
    dpo, ppo = [1, 1, 1, 1, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1, 1]
    study = tilted(tmp_path, {"reference": [0] * 8, "dpo": dpo, "ppo": ppo})
    found = duels(study)
    one = next(d for d in found if (d.first.name, d.second.name) == ("dpo", "ppo"))
    assert (one.wins.mean, one.ties.mean, one.losses.mean, one.win_rate.mean) == (0.5, 0.25, 0.25, 0.625)
    assert one.sign == 0
    assert between(found, one.second, one.first) == Estimate(
        0.375, pytest.approx(1 - one.win_rate.high), pytest.approx(1 - one.win_rate.low)
    )
    assert answers(win_rates(study))["DPO against PPO"].startswith("It wins 62 %")


def test_an_arm_that_wins_by_length_alone_is_told_so(tmp_path: Path) -> None:
    """DPO's reward is the length of its response and luck; its responses are longer. PPO's reward is higher anyway."""
    rng = np.random.default_rng(0)
    n = 300
    base = rng.integers(10, 30, n)
    longer = np.concatenate([rng.integers(1, 15, n * 3 // 4), -rng.integers(1, 15, n - n * 3 // 4)])
    luck = rng.normal(scale=8, size=n)
    study = tilted(
        tmp_path,
        {"reference": [0.0] * n, "dpo": (longer + luck).tolist(), "ppo": (6 + luck).tolist()},
        {"reference": base.tolist(), "dpo": (base + longer).tolist(), "ppo": (base + rng.integers(-9, 10, n)).tolist()},
    )
    said = answers(win_rates(study))
    _, dpo, ppo = duels(study)
    assert dpo.win_rate.low > 0.5
    assert dpo.equal_length
    assert dpo.equal_length.low < 0.5 < dpo.equal_length.high
    assert ppo.equal_length
    assert ppo.equal_length.low > 0.5
    form = r"It wins \d+ % \[\d+, \d+\], ties .+; \d+ % \[\d+, \d+\] at equal length."
    assert re.fullmatch(form, said["DPO against Reference"])
    assert said["DPO"].startswith("Longer responses than the reference's get more reward")


def test_equal_arms_each_win_half(tmp_path: Path) -> None:
    same = [0.0, 1.0, 2.0, 3.0] * 5
    study = tilted(tmp_path, {"reference": same, "dpo": same})
    assert answers(win_rates(study))["DPO against Reference"].startswith("It wins 50 % [")


def test_a_win_rate_that_its_kl_can_not_buy_is_luck(tmp_path: Path) -> None:
    """All prompts won: at 0.0002 nats √(0.0001) = 1 point can be expected, at 2 nats all 50."""
    arms = [REFERENCE, SimulatedArm("sft", "sft", lambda kl: 9.0 * (kl > 0), kl=(0.5, 1.0, 1.5, 2.0), label="SFT")]
    study = read_study(write_study(tmp_path, arms, noise=0.1))
    far = next(part for part in win_rates(study).parts if isinstance(part, Findings)).items[0]
    assert far.found
    assert "luck" not in far.answer
    run = study.arms[1].runs[0]
    near = replace(run, test=replace(run.test, kl_nats=np.full_like(run.test.kl_nats, 0.0002)))
    arm = replace(study.arms[1], runs=(near,))
    chapter = win_rates(replace(study, arms=(study.arms[0], arm)))
    found = next(part for part in chapter.parts if isinstance(part, Findings)).items[0]
    assert not found.found
    assert "That is luck of the draw: at a KL of 0.0002 nats no win rate can be expected farther than 1.0 points" in (
        found.answer
    )


def test_a_held_out_judge_has_a_matrix_of_its_own(tmp_path: Path) -> None:
    study = tilted(tmp_path, {"reference": [0.0] * 10, "dpo": [1.0] * 10})
    for name, value in (("reference", 1.0), ("dpo", 0.0)):  # the judge sees it the other way
        path = tmp_path / f"arms/{name}/seed-0/evaluation.json"
        content = json.loads(path.read_text())
        for point in content["points"]:
            point["rows"]["judge_reward"] = [value] * 10
        write_json(path, content)
    assert not duels(study, "judge_reward")
    judged = read_study(tmp_path)
    assert duels(judged)[0].win_rate.mean == 1
    assert duels(judged, "judge_reward")[0].win_rate.mean == 0
    drawn = [part.picture.name for part in win_rates(judged).parts if isinstance(part, Drawing)]
    assert drawn == ["win-rates", "win-rates-judge"]


def test_judgements_and_votes_are_read_where_there_are_any(tmp_path: Path) -> None:
    tilted(tmp_path, {"reference": [0.0] * 4, "dpo": [1.0, 0.0, 1.0, 1.0]})
    paths = [tmp_path / f"arms/{arm}/seed-0/samples.jsonl" for arm in ("dpo", "reference")]
    dpo, reference = ([line for line in read_lines(path) if line["split"] == "test"] for path in paths)
    prompts = [line["prompt_id"] for line in dpo]
    responses = digest([[a["response"], b["response"]] for a, b in zip(dpo, reference, strict=True)])
    arms: dict[str, Any] = {"first_arm": "dpo", "second_arm": "reference", "responses": responses}
    pair = arms | {"seeds": [0], "prompts": prompts, "leading": [[1, 1, 1, 0]], "trailing": [[1, 0, 1, 0]]}
    write_json(tmp_path / "judgements.json", {"judge": "judge.py:prefer", "pairs": [pair]})
    rows = [
        {"row": i, "first": "dpo" if i % 2 else "reference", "seed": 0, "prompt_id": name}
        for i, name in enumerate(prompts, 1)
    ]
    key = arms | {"rows": rows, "alike": []}
    write_json(tmp_path / "votes/dpo-against-reference.key.json", key)
    (tmp_path / "votes/dpo-against-reference.ann.csv").write_text("row,vote\n1,1\n2,1\n3,1\n4,tie\n")
    chapter = win_rates(read_study(tmp_path))
    arm, against, judge, preference, bias, prompts = sheet(chapter, "judged-pairs").rows[0]
    assert (arm.name, against.name, judge, prompts) == ("dpo", "reference", "judge.py:prefer", 4)
    assert (preference.mean, bias.mean) == (0.625, 0.125)
    voted = sheet(chapter, "human-votes").rows[0]
    assert (voted[0].name, voted[2].mean, voted[3:7]) == ("dpo", 0.625, (2, 1, 1, 1))
    # The arm is deleted and run again, and answers otherwise: what was said of it was said of others.
    write_lines(paths[0], [line | {"response": f"{line['response']}!"} for line in read_lines(paths[0])])
    chapter = win_rates(read_study(tmp_path))
    assert chapter
    assert not {"judged-pairs", "human-votes"} & {part.name for part in chapter.parts if isinstance(part, Sheet)}
    said = " ".join(part.text for part in chapter.parts if isinstance(part, Prose))
    assert "The judge of pairs on dpo against reference: left out" in said
    assert "The votes on dpo against reference: left out" in said


# --- degeneration ---


def speaking(tmp_path: Path, dpo: list[str]) -> Study:
    """A study where DPO's test responses are these, and the reference's are all different."""
    arms = [REFERENCE, SimulatedArm("dpo", "dpo", root(1.0), steps=(10, 20), kl=(1.0, 2.0), label="DPO")]
    texts = tuple(f"prompt {i}" for i in range(len(dpo)))
    write_study(tmp_path, arms, prompts=len(dpo), prompt_texts=texts)
    path = tmp_path / "arms/dpo/seed-0/samples.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    write_lines(path, [line | {"response": dpo[i % len(dpo)]} for i, line in enumerate(lines)])
    return read_study(tmp_path)


def test_a_collapsed_arm_is_found_out_with_its_favourite_response(tmp_path: Path) -> None:
    study = speaking(tmp_path, ["A great film."] * 30 + [f"it was {i} and {i + 1} or so i think" for i in range(10)])
    chapter = degeneration(study)
    said = answers(chapter)["DPO"]
    for sign in ("lower distinct-3", "more alike by self-BLEU", "more responses like one to another prompt"):
        assert sign in said
    row = sheet(chapter, "degeneration-between").rows[1]
    assert row[5].mean == 0.75  # 30 of 40 are twins
    assert row[6:] == (11 / 40, "A great film.", 0.75)
    worst = galleries(chapter)["worst-responses"]
    assert [item.responses[-1][1].response for item in worst.items] == ["A great film."]


def test_a_favourite_response_without_a_word_is_called_empty(tmp_path: Path) -> None:
    chapter = degeneration(speaking(tmp_path, [""] * 30 + [f"it was {i} and {i + 1} i think" for i in range(10)]))
    assert sheet(chapter, "degeneration-between").rows[1][6:] == (11 / 40, "(empty)", 0.75)


def test_loops_are_found_and_the_worst_of_them_shown(tmp_path: Path) -> None:
    looping = "it was so very good " + "good film " * 6
    plain = [f"the {i} plot of {i + 1} was {i + 2} i think" for i in range(40)]
    study = speaking(tmp_path, [looping if i % 2 else plain[i] for i in range(40)])
    chapter = degeneration(study)
    said = answers(chapter)["DPO"]
    assert "ore loops (by 50.0" in said
    assert "more repetition" in said
    assert sheet(chapter, "degeneration-within").rows[1][1].mean == 0.5
    reference, dpo = galleries(chapter)["worst-responses"].items[0].responses
    assert reference[0].name == "reference"
    assert dpo[1].response == looping


def test_arms_that_write_as_the_reference_does_differ_in_nothing(usual: Study) -> None:
    """Every simulated arm draws its words alike; length, ends and perplexity too."""
    said = answers(degeneration(usual))
    assert set(said) == {"SFT", "DPO", "PPO", "PPO, gold reward (oracle)"}
    assert sum("No difference found" in answer for answer in said.values()) >= 3


def test_seeds_that_were_looked_at_after_different_steps_are_one_curve(tmp_path: Path) -> None:
    arm = SimulatedArm("dpo", "dpo", root(1.0), steps=(10, 20), kl=(1.0, 2.0))
    write_study(tmp_path, [REFERENCE, arm], seeds=2)
    path = tmp_path / "arms/dpo/seed-1/evaluation.json"
    content = json.loads(path.read_text())
    for point in content["points"]:
        point["step"] = {10: 12, 20: 22}[point["step"]]
    write_json(path, content | {"chosen_step": 22})
    first, last = visited(next(a for a in read_study(tmp_path).arms if a.name == "dpo"))
    assert (first.steps, last.steps, last.share) == ((10, 12), (20, 22), 1.0)
    assert first.share == pytest.approx((0.5 + 12 / 22) / 2)
    assert first.point.seeds == (0, 1)


# --- cost ---


def arm_of(study: Study, name: str):
    return next(arm for arm in study.arms if arm.name == name)


def told(study: Study, **methods: dict[str, Any]) -> Study:
    """The study with some of its methods set otherwise."""
    return replace(study, config={**study.config, **methods})


def test_who_pays_for_the_reward_model(usual: Study) -> None:
    pays = ("ppo", "dpo+ppo", "ppo+dpo", "ppo-gold", "ppo-gold+dpo", "online-dpo", "best-of-n", "best-of-n@n=64",
            "dpo@loss.beta=0.1+grpo@epochs=2")  # fmt: skip
    does_not = ("reference", "dpo", "sft", "grpo-gold", "dpo+grpo-gold", "ppo-gold@value_trunk=shared+dpo")
    assert all(pays_reward_model(usual, name) for name in pays)
    assert not any(pays_reward_model(usual, name) for name in does_not)


def test_each_stage_says_for_itself_whether_its_value_model_starts_as_the_reward_model(usual: Study) -> None:
    shared = told(usual, ppo={"value_trunk": "shared"})
    assert not pays_reward_model(shared, "ppo-gold+dpo")
    assert pays_reward_model(shared, "ppo-gold@value_trunk=separate+dpo")
    assert pays_reward_model(shared, "ppo+dpo")  # paid by it


def test_a_study_whose_settings_can_t_be_read_is_named(usual: Study) -> None:
    with pytest.raises(StorageError, match=r"study\.json: ppo\.value_trunk = both"):
        pays_reward_model(told(usual, ppo={"value_trunk": "both"}), "ppo")


def test_a_beginning_that_is_no_arm_pays_by_its_own_settings(tmp_path: Path) -> None:
    """43 s, of which 30 s are the reward model's where the first stage's value model started as it: they are not the
    chain's own. Of a beginning without it all 43 s are its own."""
    separate, shared = "ppo-gold@value_trunk=separate+dpo", "ppo-gold@value_trunk=shared+dpo"
    arms = [SimulatedArm(name, "dpo", label=name, seconds=103.0) for name in (separate, shared)]
    write_study(tmp_path, [REFERENCE, *arms])
    write_json(tmp_path / "stages/seed-0/reward-model/stage.json", {"result": {"cost": {"wall_seconds": 30.0}}})
    for name in (separate, shared):
        first = tmp_path / "stages/arms" / name.removesuffix("+dpo") / "seed-0"
        write_json(first / "evaluation.json", {"cost": {"wall_seconds": 43.0}})
    study = read_study(tmp_path)
    parts = [spent(study, arm, arm.runs[0], "wall_seconds") for arm in study.trained]
    assert [(part.reward_model, part.before, part.own) for part in parts if part] == [(30, 13, 60), (0, 43, 60)]


def test_a_reward_model_that_was_made_again_at_more_than_the_arm_was_charged_leaves_its_part_unknown(
    tmp_path: Path,
) -> None:
    write_study(tmp_path, [REFERENCE, SimulatedArm("ppo", "ppo", label="PPO", seconds=20.0)])
    write_json(tmp_path / "stages/seed-0/reward-model/stage.json", {"result": {"cost": {"wall_seconds": 30.0}}})
    study = read_study(tmp_path)
    ppo = arm_of(study, "ppo")
    assert spent(study, ppo, ppo.runs[0], "wall_seconds") is None


def test_ppo_is_charged_its_reward_model_and_the_ratio_is_said_with_and_without(usual: Study) -> None:
    """PPO 93 s of which 30, 31 and 32 s are the reward model's; DPO 30 s."""
    ppo, dpo = arm_of(usual, "ppo"), arm_of(usual, "dpo")
    parts = [spent(usual, ppo, run, "wall_seconds") for run in ppo.runs]
    assert [(p.reward_model, p.own) for p in parts if p] == [(30, 63), (31, 62), (32, 61)]
    with_it = ratio_of(usual, ppo, dpo, lambda p: p.whole, "wall_seconds")
    without = ratio_of(usual, ppo, dpo, lambda p: p.before + p.own, "wall_seconds")
    assert with_it is not None
    assert without is not None
    assert with_it.mean == pytest.approx(3.1)
    assert without.mean == pytest.approx((63 * 62 * 61) ** (1 / 3) / 30)
    assert without.interval is not None
    assert answers(cost(usual))["“DPO is about 3 times as fast”"].startswith("More here: PPO took 3.1")


def test_a_chain_has_its_first_stage_behind_it_when_it_begins(tmp_path: Path) -> None:
    arms = [*usual_arms(), SimulatedArm("dpo+ppo", "ppo", root(1.6), label="DPO → PPO", seconds=103.0)]
    write_study(tmp_path, arms)
    model = {"wall_seconds": 30.0}
    write_json(tmp_path / "stages/seed-0/reward-model/stage.json", {"result": {"cost": model}})
    study = read_study(tmp_path)
    chain = arm_of(study, "dpo+ppo")
    found = spent(study, chain, chain.runs[0], "wall_seconds")
    assert found is not None
    assert (found.reward_model, found.before, found.own, found.ahead) == (30, 30, 43, 60)


def test_seconds_to_a_reward_are_those_of_the_first_checkpoint_that_has_it(tmp_path: Path) -> None:
    """Rewards 1, 2, 4, 8 without noise at a quarter of 30 s each; 3 is reached at the third, after more than 15 s."""
    arm = SimulatedArm("dpo", "dpo", lambda kl: kl, label="DPO")
    study = read_study(write_study(tmp_path, [REFERENCE, arm], noise=1e-9))
    base = float(arm_of(study, "reference").validation[0].reward.mean())
    found = reached(study, arm_of(study, "dpo"), base + 3)
    assert found is not None
    assert (found.seconds, found.not_before) == pytest.approx((22.5, 15))
    assert reached(study, arm_of(study, "dpo"), base + 9) is None


def test_seconds_follow_what_rounds_logged(tmp_path: Path) -> None:
    """The first of four rounds took as long as the three others: half of the 40 s."""
    rounds = [
        {"step": s, "sample_seconds": 1.0 if s > 100 else 3.0, "learn_seconds": 0.0} for s in (100, 200, 300, 400)
    ]
    arm = SimulatedArm("grpo-gold", "grpo", lambda kl: kl, label="GRPO", oracle=True, seconds=40.0, metrics=rounds)
    study = read_study(write_study(tmp_path, [REFERENCE, arm], noise=1e-9))
    base = float(arm_of(study, "reference").validation[0].reward.mean())
    found = reached(study, arm_of(study, "grpo-gold"), base + 0.9)
    assert found is not None
    assert (found.seconds, found.not_before) == pytest.approx((20, 0))


def test_an_arm_is_ringed_unless_a_cheaper_one_was_shown_to_get_more(tmp_path: Path) -> None:
    arms = [REFERENCE,
            SimulatedArm("sft", "sft", root(1.0), seconds=10.0, label="SFT"),
            SimulatedArm("dpo", "dpo", root(2.0), seconds=20.0, label="DPO"),
            SimulatedArm("ppo", "ppo", root(1.0), seconds=60.0, label="PPO"),
            SimulatedArm("ppo-gold", "ppo", root(9.0), seconds=5.0, label="Gold", oracle=True)]  # fmt: skip
    chapter = cost(read_study(write_study(tmp_path, arms, seeds=3)))
    drawn = next(p for p in chapter.parts if isinstance(p, Drawing) and p.picture.name == "reward-by-seconds")
    assert {row[0].name: row[3] for row in drawn.data.rows} == {
        "sft": "yes", "dpo": "yes", "ppo": "no", "ppo-gold": "yes"}  # fmt: skip


def test_the_share_of_ppos_gain_is_found_where_it_is_known(usual: Study) -> None:
    """Expected gains √9 and 1.5 √7 at the last checkpoints: a share of 0.756."""
    found = share_of_gain(usual, arm_of(usual, "dpo"), arm_of(usual, "ppo"))
    assert found is not None
    assert found.low < 3 / (1.5 * 7**0.5) < found.high
    assert found.high - found.low < 0.4


@pytest.mark.parametrize("height", [0.0, -2.0], ids=["no gain", "a loss"])
def test_of_a_gain_that_is_not_shown_there_is_no_share(tmp_path: Path, height: float) -> None:
    arms = [
        REFERENCE,
        SimulatedArm("dpo", "dpo", root(1.0), label="DPO"),
        SimulatedArm("ppo", "ppo", root(height), label="PPO"),
    ]
    study = read_study(write_study(tmp_path, arms, noise=2.0))
    assert share_of_gain(study, arm_of(study, "dpo"), arm_of(study, "ppo")) is None
    assert answers(cost(study))["“90 % of PPO's performance”"].startswith("Undecided")


def test_fiellers_interval_is_the_closed_form_where_seeds_alone_vary() -> None:
    """Equal columns: `estimate` is Student's t on the seeds, and the ends are the roots of
    (n̄ − θ d̄)² = t² (s_n² − 2 θ s_nd + θ² s_d²) / S."""
    n, d = np.array([2.0, 2.6, 2.2, 2.9]), np.array([4.1, 4.8, 4.4, 5.0])
    found = fieller(np.tile(n[:, None], 5), np.tile(d[:, None], 5), "ratio")
    (s_nn, s_nd), (_, s_dd) = np.cov(n, d)
    g = student(0.95, 3) ** 2 / 4
    roots = np.roots([d.mean() ** 2 - g * s_dd, -2 * (n.mean() * d.mean() - g * s_nd), n.mean() ** 2 - g * s_nn])
    assert found is not None
    assert (found.low, found.high) == pytest.approx((min(roots), max(roots)), abs=1e-6)


def test_fiellers_interval_covers() -> None:
    rng, held = np.random.default_rng(3), 0
    for _ in range(100):
        luck = rng.normal(size=(1, 40))
        d = 2 + luck + rng.normal(size=(3, 1)) / 10 + rng.normal(size=(3, 40))
        n = 1.4 + luck + rng.normal(size=(3, 1)) / 10 + rng.normal(size=(3, 40))
        found = fieller(n, d, "ratio")
        assert estimate(d, "").sign == 1
        assert found is not None
        held += found.low <= 0.7 <= found.high
    assert held >= 90


# --- generations ---


def test_prompts_are_taken_by_position_and_shown_with_every_arms_response(usual: Study) -> None:
    gallery = galleries(generations(usual))["generations"]
    assert len(gallery.items) == 60
    for item in gallery.items:
        assert [arm.name for arm, _ in item.responses] == [arm.name for arm in usual.arms]
        assert all(sample and sample.prompt == item.prompt for _, sample in item.responses)


def test_of_many_prompts_sixty_are_spread_over_all(tmp_path: Path) -> None:
    texts = tuple(str(i) for i in range(150))
    study = read_study(write_study(tmp_path, usual_arms()[:2], prompts=150, prompt_texts=texts))
    chapter = generations(study)
    shown = [int(item.prompt) for item in galleries(chapter)["generations"].items]
    assert len(shown) == 60
    assert (shown[0], shown[-1]) == (0, 149)
    assert set(np.diff(shown)) == {2, 3}
    assert any(isinstance(part, Prose) and "60 of 150 test prompts" in part.text for part in chapter.parts)


def test_given_prompts_come_first_with_what_every_arm_answered(tmp_path: Path) -> None:
    write_study(tmp_path, usual_arms()[:3])
    for name in ("reference", "dpo"):
        lines = [{"prompt": "What is the meaning of life?", "sample": sample, "greedy": sample == 0,
                  "response": f"{name} {sample}", "reward": None, "kl_nats": 1.0, "ended": True}
                 for sample in (0, 1)]  # fmt: skip
        write_lines(tmp_path / f"arms/{name}/seed-0/generations.jsonl", lines)
    found = galleries(generations(read_study(tmp_path)))
    assert list(found) == ["given-prompts", "generations"]
    greedy, sampled = found["given-prompts"].items
    assert greedy.prompt == sampled.prompt == "What is the meaning of life?"
    assert (greedy.how, sampled.how) == ("answered greedily", "")
    assert [(arm.name, one.response) for arm, one in sampled.responses] == [
        ("reference", "reference 1"),
        ("dpo", "dpo 1"),
    ]
