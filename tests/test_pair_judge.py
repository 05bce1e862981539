"""Other judges: a function that reads pairs in both orders, and a held-out reward model beside the gold reward."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preflab.config.commands import Compare
from preflab.config.load import build
from preflab.config.presets import preset
from preflab.data.reviews import generate_reviews
from preflab.errors import ConfigError, NumericError, StorageError
from preflab.report.judgements import read_judgements
from preflab.report.shares import share
from preflab.report.study import read_study
from preflab.rewards.pair_judge import PairJudge, load_pair_judge
from preflab.studies.compare import compare
from preflab.studies.judgements import judge_arms
from preflab.studies.reviews import generated_reviews, real_reviews
from study_folder import REFERENCE, SimulatedArm, root, write_study
from tiny import write_jsonl
from voiced_study import ARMS, lines, run, voiced

NAMES = ("reference", "dpo", "ppo")


def simulated(folder: Path, *, seeds: int = 2, prompts: int = 20) -> Path:
    """A study of three arms, whose responses say whose they are and how good: "ppo 3"."""
    arms = [SimulatedArm(name, name, root(1.0), steps=(100,), kl=(2.0,)) for name in NAMES[1:]]
    write_study(folder, [REFERENCE, *arms], seeds=seeds, prompts=prompts)
    for arm, seed in itertools.product(NAMES, range(seeds)):
        path = folder / "arms" / arm / f"seed-{seed}" / "samples.jsonl"
        quality = np.random.default_rng([seed, NAMES.index(arm)]).integers(0, 10, prompts)
        said = [line | {"response": f"{arm} {q}"} for line, q in zip(lines(path)[-prompts:], quality, strict=True)]
        write_jsonl(path, said)
    return folder


def better(bias: float = 0.0) -> PairJudge:
    """Prefers the response with the higher figure, by 0.02 a step, and whichever stands first, by `bias`."""

    def judge(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        assert len(prompts) == len(first) == len(second)
        return [0.5 + bias + 0.02 * (quality(one) - quality(two)) for one, two in zip(first, second, strict=True)]

    return PairJudge(judge, "better")


def quality(response: str) -> int:
    return int(response.split()[1])


def responses(folder: Path, arm: str, seeds: int = 2) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The figure of each test response, a row a seed."""
    paths = [folder / "arms" / arm / f"seed-{seed}" / "samples.jsonl" for seed in range(seeds)]
    return np.array([[quality(line["response"]) for line in lines(path)] for path in paths], dtype=np.float64)


def test_every_two_arms_are_judged_in_both_orders_and_the_bias_of_position_falls_out(tmp_path: Path) -> None:
    judge_arms(simulated(tmp_path), better(bias=0.2), NAMES, [0, 1])
    found = {(pair.first_arm, pair.second_arm): pair for pair in read_judgements(tmp_path)}
    assert list(found) == [("dpo", "reference"), ("ppo", "reference"), ("dpo", "ppo")]
    for (first, second), pair in found.items():
        gap = 0.02 * (responses(tmp_path, first) - responses(tmp_path, second))
        expected = share(0.5 + gap, "gap")
        got = (pair.preference.mean, pair.preference.low, pair.preference.high)
        assert got == pytest.approx((expected.mean, expected.low, expected.high))
        assert pair.position_bias.mean == pytest.approx(0.2)
        assert (pair.prompts, pair.judge) == (20, "better")


def test_a_judge_that_always_prefers_the_first_finds_no_difference(tmp_path: Path) -> None:
    first = PairJudge(lambda prompts, one, two: [1.0] * len(prompts), "first")
    judge_arms(simulated(tmp_path), first, NAMES, [0, 1])
    for pair in read_judgements(tmp_path):
        assert pair.preference.mean == 0.5
        assert pair.position_bias.mean == pair.position_bias.high == 0.5
        assert 0 < pair.position_bias.low < 0.5  # twenty prompts don't say what others would show


def test_an_arm_or_a_kill_later_only_what_is_missing_is_asked(tmp_path: Path) -> None:
    simulated(tmp_path)
    asked: list[tuple[str, str]] = []
    answers = better()

    def counting(prompts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[float]:
        asked.append((first[0].split()[0], second[0].split()[0]))
        if len(asked) == 6:
            raise RuntimeError("out of credit")
        return answers(prompts, first, second)

    judge = PairJudge(counting, "better")
    judge_arms(tmp_path, judge, NAMES[:2], [0, 1])
    assert asked == [("dpo", "reference")] * 2 + [("reference", "dpo")] * 2
    with pytest.raises(NumericError, match="better raised RuntimeError: out of credit"):
        judge_arms(tmp_path, judge, NAMES, [0, 1])
    assert [pair.first_arm for pair in read_judgements(tmp_path)] == ["dpo"]
    asked[4:] = [("", "")] * 2
    judge_arms(tmp_path, judge, NAMES, [0, 1])
    assert set(asked[6:]) == {("ppo", "reference"), ("reference", "ppo"), ("dpo", "ppo"), ("ppo", "dpo")}
    before = (tmp_path / "judgements.json").read_bytes()
    judge_arms(tmp_path, judge, NAMES, [0, 1])
    assert len(asked) == 14
    assert (tmp_path / "judgements.json").read_bytes() == before


def test_other_responses_and_another_judge_are_judged_anew(tmp_path: Path) -> None:
    simulated(tmp_path)
    judge_arms(tmp_path, better(), NAMES, [0, 1])
    judge_arms(tmp_path, PairJudge(better(0.1).function, "better", source="edited"), NAMES, [0, 1])
    assert {round(pair.position_bias.mean, 6) for pair in read_judgements(tmp_path)} == {0.1}
    path = tmp_path / "arms/ppo/seed-1/samples.jsonl"
    write_jsonl(path, [line | {"response": "ppo 9"} for line in lines(path)])
    judge_arms(tmp_path, PairJudge(better(0.2).function, "better", source="edited"), NAMES, [0, 1])
    biases = {(p.first_arm, p.second_arm): round(p.position_bias.mean, 6) for p in read_judgements(tmp_path)}
    assert biases == {("dpo", "reference"): 0.1, ("ppo", "reference"): 0.2, ("dpo", "ppo"): 0.2}


def test_arms_that_answered_other_prompts_are_not_compared(tmp_path: Path) -> None:
    simulated(tmp_path)
    path = tmp_path / "arms/ppo/seed-1/samples.jsonl"
    write_jsonl(path, [line | {"prompt_id": f"other-{line['prompt_id']}"} for line in lines(path)])
    with pytest.raises(StorageError, match="ppo and reference answered different test prompts"):
        judge_arms(tmp_path, better(), NAMES, [0, 1])


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        ([0.5, 1.5], r"gave 1\.5, not a probability in \[0, 1\], to 'b' before 'd' on the prompt 'q'"),
        ([float("nan"), 0.5], r"gave nan, .* to 'a' before 'c' on the prompt 'p'"),
        ([0.5], r"shape \(1,\) for 2 prompts"),
        (0.5, r"shape \(\) for 2 prompts"),
        (["first", "second"], r"returned no list of numbers"),
        (None, r"gave nan|no list of numbers|shape \(\)"),
    ],
)
def test_what_is_no_probability_a_prompt_stops_with_the_pair_named(returned: object, message: str) -> None:
    with pytest.raises(NumericError, match=message):
        PairJudge(lambda prompts, first, second: returned, "odd")(["p", "q"], ["a", "b"], ["c", "d"])


def test_judges_are_loaded_as_reward_functions_are(tmp_path: Path) -> None:
    file = tmp_path / "judge.py"
    file.write_text("def tie(prompts, first, second):\n    return [0.5] * len(prompts)\n\ndef lone(prompts): ...\n")
    judge = load_pair_judge(f"{file}:tie")
    assert judge(["p"], ["a"], ["b"]) == [0.5]
    assert judge.name == f"{file}:tie"
    with pytest.raises(ConfigError, match=r'no function "ties".*did you mean "tie"'):
        load_pair_judge(f"{file}:ties")
    with pytest.raises(ConfigError, match=r"function\(prompts, first, second\)"):
        load_pair_judge(f"{file}:lone")


def test_a_judge_that_is_not_there_stops_a_study_before_anything_is_written(tmp_path: Path) -> None:
    config = replace(preset("reviews"), out=tmp_path / "s", pair_judge=f"{tmp_path / 'none.py'}:f")
    with pytest.raises(ConfigError, match=r"there is no file .*none\.py"):
        compare(config)
    assert not (tmp_path / "s").exists()


def test_a_study_ends_with_what_the_judge_of_pairs_said() -> None:
    path = voiced().path
    found = read_judgements(path / "study")
    pairs = {frozenset((pair.first_arm, pair.second_arm)) for pair in found}
    assert pairs == {frozenset(pair) for pair in itertools.combinations(ARMS, 2)}
    samples = {arm: lines(path / f"study/arms/{arm}/seed-0/samples.jsonl") for arm in ARMS}
    test = {arm: [len(line["response"]) for line in said if line["split"] == "test"] for arm, said in samples.items()}
    for pair in found:
        mine, its = (np.array(test[arm]) for arm in (pair.first_arm, pair.second_arm))
        assert pair.preference.mean == pytest.approx(np.mean(np.where(mine == its, 0.5, mine > its)))
        assert pair.position_bias.mean == pytest.approx(np.mean(mine == its) / 2)
    calls = (path / "judge.py.calls").read_text().count("called")
    run(path)
    assert (path / "judge.py.calls").read_text().count("called") == calls


def test_the_held_out_judge_scores_every_point_beside_the_gold_reward() -> None:
    study = read_study(voiced().path / "study")
    for arm in study.arms:
        for run_of in arm.runs:
            assert run_of.test
            for point in (*run_of.validation, run_of.test):
                assert point.judge_reward is not None
                assert point.judge_reward.shape == point.reward.shape
                assert not np.allclose(point.judge_reward, point.reward)
                assert point.proxy_reward is not None
                assert not np.allclose(point.judge_reward, point.proxy_reward)
    assert "Judge, accuracy on held-out pairs" in {fact.name for fact in study.facts}
    assert [model.label for model in study.reward_models] == ["reward model", "judge"]


def test_the_held_out_judge_learns_from_prompts_that_no_arm_sees() -> None:
    folder = voiced().path / "study/stages/seed-0"
    judged, trained = (
        {line["prompt"] for side in ("train", "held-out") for line in lines(folder / stage / f"{side}.jsonl")}
        for stage in ("judge-pairs", "pairs")
    )
    assert len(judged) > 20
    samples = [folder.parent.parent / f"arms/{arm}/seed-0/samples.jsonl" for arm in ARMS]
    asked = {line["prompt"] for path in samples for line in lines(path)}
    assert not judged & (trained | asked)


def small(**values: Any) -> Compare:
    numbers = {"prompts": {"train": 60, "validation": 20, "test": 20}, "base": {"texts": 800}}
    return build(Compare, numbers | values)


def test_a_judge_changes_nothing_that_arms_see() -> None:
    without, with_judge = generated_reviews(small()), generated_reviews(small(judge=True))
    assert without.judge_prompts == ()
    assert (without.prompts, without.demonstrations) == (with_judge.prompts, with_judge.demonstrations)
    theirs = {row.prompt for row in with_judge.demonstrations}
    theirs |= {prompt.text for prompts in with_judge.prompts.values() for prompt in prompts}
    mine = {prompt.text for prompt in with_judge.judge_prompts}
    assert len(mine) == 60
    assert not mine & theirs


def test_of_real_reviews_the_judge_has_those_that_the_gold_classifier_learned_from(tmp_path: Path) -> None:
    texts = generate_reviews(400, seed=5)
    data = write_jsonl(tmp_path / "reviews.jsonl", [{"text": text, "label": i % 2} for i, text in enumerate(texts)])
    without, with_judge = (real_reviews(small(data=data, judge=judge), data) for judge in (False, True))
    assert (without.prompts, without.judge_prompts) == (with_judge.prompts, ())
    mine = {prompt.text for prompt in with_judge.judge_prompts}
    theirs = {row.prompt for row in with_judge.demonstrations}
    theirs |= {prompt.text for prompts in with_judge.prompts.values() for prompt in prompts}
    assert len(mine) == 60
    assert not mine & theirs
    reviews_of_arms = {row.origin.partition("#")[0] for row in with_judge.demonstrations}
    assert not reviews_of_arms & {prompt.origin.partition("#")[0] for prompt in with_judge.judge_prompts}


def test_dialogue_has_a_judge_anyway(tmp_path: Path) -> None:
    config = replace(preset("dialogue"), out=tmp_path / "s", judge=True)
    with pytest.raises(ConfigError, match="judge has no effect: dialogue has no gold reward"):
        compare(config)
    assert not (tmp_path / "s").exists()


def test_damaged_judgements_are_named(tmp_path: Path) -> None:
    judge_arms(simulated(tmp_path), better(), NAMES, [0, 1])
    path = tmp_path / "judgements.json"
    content = json.loads(path.read_text())
    content["pairs"][0]["leading"][0].pop()
    path.write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r'judgements\.json: "leading" should have 20 preferences'):
        read_judgements(tmp_path)
