"""What every arm answers: the same prompts, with the same luck, rewarded and measured as anywhere else."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from enumerable import END_ID, ShareOf, letters_policy, letters_prompts, next_token
from preflab.cli.flags import parse
from preflab.config.commands import Generations
from preflab.config.presets import preset
from preflab.data.encode import Encoder
from preflab.data.sources import ASSISTANT
from preflab.errors import ConfigError, DataError
from preflab.evaluation.policy import Judge
from preflab.models.load import Policy
from preflab.report.study import read_study
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.runs import RunFolder
from preflab.seeds import derive
from preflab.studies.compare import compare
from preflab.studies.dialogue import QUESTIONS, dialogue
from preflab.studies.generations import cut, questions, read_texts, write_generations
from preflab.studies.task import Turn
from tiny import tiny_policy, write_jsonl
from voiced_study import ARMS, ASKED, SAMPLES, lines, run, voiced

LONGEST = 5


def judge(seed: int = 3) -> Judge:
    reference, a, b = letters_policy(seed=1), ShareOf("a"), ShareOf("b")
    return Judge(reference.model, Encoder(reference.tokenizer, 8, LONGEST), a, b, (), LONGEST, seed)


def drawn(policy: Policy, samples: int) -> list[Response]:
    """What the sampler gives with the luck of the judge's seed."""
    prompts = letters_prompts(4)
    return sample(
        policy.model,
        [prompt.ids for prompt in prompts],
        keys=[prompt.key for prompt in prompts],
        end_id=END_ID,
        max_new_tokens=LONGEST,
        samples=samples,
        seed=derive(3, "generations"),
    )


def generated(folder: Path, policy: Policy, *, prompts: int = 4, **kw: Any) -> list[Any]:
    folder.mkdir(exist_ok=True)
    write_generations(RunFolder(folder), judge(), letters_prompts(prompts), load=lambda: policy, **{"samples": 3} | kw)
    return lines(folder / "generations.jsonl")


def test_each_prompt_is_answered_once_greedily_and_some_times_at_random(tmp_path: Path) -> None:
    found = generated(tmp_path / "a", letters_policy())
    prompts = letters_prompts(4)
    assert [(line["prompt"], line["sample"], line["greedy"]) for line in found] == [
        (prompt.text, number, greedy)
        for prompt in prompts
        for number, greedy in ((0, True), (0, False), (1, False), (2, False))
    ]
    policy = letters_policy()
    for line, prompt in zip(found[::4], prompts, strict=True):
        ids: list[int] = []
        while len(ids) < LONGEST and END_ID not in ids:
            ids.append(int(next_token(policy, (*prompt.ids, *ids)).argmax()))
        assert line["response"] == judge().encoder.decode(ids)
        assert line["ended"] is (END_ID in ids)


def test_rewards_and_kls_are_those_of_each_response(tmp_path: Path) -> None:
    policy, reference = letters_policy(), letters_policy(seed=1)
    found = [line for line in generated(tmp_path / "a", policy) if not line["greedy"]]
    for line, response in zip(found, drawn(policy, 3), strict=True):
        tokens = response.tokens
        assert line["response"] == judge().encoder.decode(tokens)
        assert line["reward"] == pytest.approx(line["response"].count("a") / len(tokens))
        kl = 0.0
        for place in range(len(tokens)):
            seen = (*response.prompt, *tokens[:place])
            mine, theirs = next_token(policy, seen), next_token(reference, seen)
            kl += float((mine * (mine.log() - theirs.log())).sum())
        assert line["kl_nats"] == pytest.approx(kl, abs=1e-4)


def test_an_arm_like_the_reference_answers_as_it_does_and_others_meet_the_same_luck(tmp_path: Path) -> None:
    same, reference = (generated(tmp_path / name, letters_policy(seed=1)) for name in "ab")
    assert same == reference
    assert all(abs(line["kl_nats"]) < 1e-5 for line in same)
    alone = generated(tmp_path / "c", letters_policy(seed=1), prompts=2)
    assert alone == [line for line in same if line["prompt"] in {prompt.text for prompt in letters_prompts(2)}]


def test_best_of_n_answers_with_what_the_proxy_likes_best_among_n(tmp_path: Path) -> None:
    policy, n = letters_policy(seed=1), 4
    found = generated(tmp_path / "a", policy, best_of=n)
    responses = drawn(policy, 3 * n)
    groups = [responses[begin : begin + n] for begin in range(0, len(responses), n)]
    encoder = judge().encoder

    def liked(tokens: tuple[int, ...]) -> float:
        return encoder.decode(tokens).count("b") / len(tokens)

    best = [max(group, key=lambda response: liked(response.tokens)) for group in groups]
    assert [line["response"] for line in found] == [encoder.decode(response.tokens) for response in best]
    assert not any(line["greedy"] for line in found)
    assert [line["kl_nats"] for line in found] == pytest.approx([math.log(4) - 3 / 4] * len(found))
    plain = generated(tmp_path / "b", policy)
    assert plain[1]["response"] == encoder.decode(groups[0][0].tokens)  # the same luck as an arm that draws once


def test_what_is_whole_is_left_alone_and_what_is_not_is_made_again(tmp_path: Path) -> None:
    whole = generated(tmp_path, letters_policy())
    path = tmp_path / "generations.jsonl"
    asked = partial(write_generations, RunFolder(tmp_path), judge(), letters_prompts(4))
    asked(samples=3, load=lambda: pytest.fail("it was all there"))
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    asked(samples=3, load=letters_policy)
    assert lines(path) == whole
    asked(samples=2, load=letters_policy)
    assert lines(path) == [line for line in whole if line["sample"] < 2]


@pytest.mark.parametrize(
    ("name", "text"), [("ask.txt", "Why?\n\n  How? \nWhy?"), ("ask.jsonl", '{"prompt": "Why?"}\n{"prompt": "How?"}\n')]
)
def test_prompts_come_from_text_or_jsonl_each_once(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    asked = questions(read_texts(tmp_path / name), Turn("Q: ", " A:"))
    assert [prompt.text for prompt in asked] == ["Q: Why? A:", "Q: How? A:"]


def test_a_file_of_prompts_without_one_or_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.txt isn't there"):
        read_texts(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text(" \n\n")
    with pytest.raises(DataError, match=r"empty\.txt: 0 prompts"):
        read_texts(tmp_path / "empty.txt")
    (tmp_path / "latin.txt").write_bytes("Wie heißt er?".encode("latin-1"))
    with pytest.raises(DataError, match=r"byte 8 is not UTF-8"):
        read_texts(tmp_path / "latin.txt")


def test_prompts_that_lose_their_beginning_are_counted() -> None:
    asked = questions(["The plot was", "The plot of this long film was hardly one that I would call a plot"], Turn())
    encoder = Encoder(tiny_policy().tokenizer, 6, 8)
    assert [count["count"] for count in cut(asked, encoder)] == [1]


def dialogues(folder: Path, before: str, after: str) -> Path:
    return write_jsonl(
        folder / "pairs.jsonl",
        [{"prompt": f"{before}Is {n} odd?{after}", "chosen": f" {n} is.", "rejected": " No."} for n in range(600)],
    )


@pytest.mark.parametrize(("before", "after"), [("\n\nHuman: ", ASSISTANT), ("", "")])
def test_dialogue_has_three_questions_in_the_form_of_its_prompts(tmp_path: Path, before: str, after: str) -> None:
    task = dialogue(preset("dialogue"), dialogues(tmp_path, before, after))
    assert [prompt.text for prompt in task.asked] == [f"{before}{text}{after}" for text in QUESTIONS]
    assert QUESTIONS[0] == "What are some fun things to do in Paris?"


def test_reviews_ask_nothing_by_themselves_and_say_so(tmp_path: Path) -> None:
    usual = replace(preset("reviews"), out=tmp_path / "s")
    with pytest.raises(ConfigError, match=r"generations.samples has no effect: .*--prompts"):
        compare(replace(usual, generations=Generations(samples=9)))
    with pytest.raises(DataError, match=r"none\.txt isn't there"):
        compare(replace(usual, generations=Generations(prompts=Path("none.txt"))))
    assert not (tmp_path / "s").exists()


def test_the_flag_takes_a_file_beside_the_numbers_of_prompts() -> None:
    config = parse("compare", "Compare", ["reviews", "--prompts", "ask.txt", "--prompts.train", "7"])
    assert (config.generations.prompts, config.prompts.train) == (Path("ask.txt"), 7)
    assert parse("compare", "Compare", ["reviews", "--prompts=a.txt"]).generations.prompts == Path("a.txt")


def test_every_arm_of_a_study_answers_and_the_report_reads_it() -> None:
    study = read_study(voiced().path / "study")
    assert tuple(arm.name for arm in study.arms) == ARMS
    for arm in study.arms:
        (run_of,) = arm.runs
        assert list(dict.fromkeys(line.prompt for line in run_of.generations)) == list(ASKED)
        of_each = SAMPLES if arm.name == "best-of-n" else SAMPLES + 1
        assert len(run_of.generations) == of_each * len(ASKED)
        assert sum(line.greedy for line in run_of.generations) == (0 if arm.name == "best-of-n" else len(ASKED))
        assert all(line.reward is not None and -5 <= line.reward <= 5 for line in run_of.generations)
        if arm.name == "reference":
            assert all(abs(line.kl_nats) < 1e-4 for line in run_of.generations)


def test_a_study_that_was_killed_before_its_generations_makes_them_and_trains_nothing() -> None:
    path = voiced().path
    models = {file: file.stat().st_mtime_ns for file in (path / "study").rglob("*.safetensors")}
    target = path / "study/arms/dpo/seed-0/generations.jsonl"
    before = target.read_bytes()
    target.unlink()
    run(path)
    assert target.read_bytes() == before
    assert {file: file.stat().st_mtime_ns for file in (path / "study").rglob("*.safetensors")} == models


def test_a_reward_that_does_not_apply_is_null(tmp_path: Path) -> None:
    write_generations(
        RunFolder(tmp_path), replace(judge(), reward=None), letters_prompts(2), samples=1, load=letters_policy
    )
    assert {line["reward"] for line in lines(tmp_path / "generations.jsonl")} == {None}
    assert json.loads((tmp_path / "generations.jsonl").read_text().splitlines()[0])["kl_nats"] > 0
