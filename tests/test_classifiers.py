"""Classifiers as rewards, against their logits one text at a time, and against a logistic regression by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2ForSequenceClassification

from preflab.data.records import Prompt, Rating
from preflab.data.sources import read_ratings
from preflab.errors import ConfigError, DataError
from preflab.models.load import Policy, load_classifier, new_reward_model, save_model
from preflab.rewards import Answer, ClassifierReward, FittedReward, assess, score
from preflab.rewards.load import load_reward
from tiny import save_tiny, tiny_pairs, tiny_policy, write_jsonl

ROWS = [("The plot was", " thin, but the ending won me over."), ("The cast", " was fine"), ("", "a"), ("No", "")]
ANSWERS = [Answer(prompt, response, (1,), (2,), True) for prompt, response in ROWS]
NAMES = {0: "bad", 1: "so so", 2: "good"}


def classifier(family: str, *, problem: str | None = None, labels: int = 3) -> Policy:
    """Random weights, large enough that its labels differ."""
    tokenizer = tiny_policy().tokenizer
    shared = {
        "vocab_size": len(tokenizer), "num_labels": labels, "id2label": {i: NAMES[i] for i in range(labels)},
        "problem_type": problem, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if family == "bert":
            model: torch.nn.Module = BertForSequenceClassification(
                BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                           max_position_embeddings=40, initializer_range=0.5, **shared)
            )  # fmt: skip
        else:
            model = GPT2ForSequenceClassification(
                GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=40, initializer_range=0.5, **shared)
            )
    tokenizer.truncation_side = "left"
    return Policy(model.eval(), tokenizer)


@torch.no_grad()
def logits_of(model: Policy, text: str) -> list[float]:
    """One text alone."""
    found: list[float] = model.model(input_ids=torch.tensor([model.tokenizer(text).input_ids])).logits[0].tolist()
    return found


@pytest.mark.parametrize("family", ["bert", "gpt2"])
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_a_label_s_log_odds_logit_and_probability(family: str, batch_size: int) -> None:
    model = classifier(family)
    for answer, *found in zip(
        ANSWERS,
        *(
            score(ClassifierReward(model, 2, "good", output, batch_size=batch_size), ANSWERS)  # type: ignore[arg-type]
            for output in ("log-odds", "logit", "probability")
        ),
        strict=True,
    ):
        logits = logits_of(model, answer.prompt + answer.response)
        share = math.exp(logits[2]) / sum(map(math.exp, logits))
        assert found == pytest.approx([math.log(share / (1 - share)), logits[2], share], abs=1e-5)


def test_labels_that_do_not_exclude_each_other_are_judged_alone() -> None:
    model = classifier("bert", problem="multi_label_classification")
    logits = logits_of(model, "a")[1]
    found = (
        ClassifierReward(model, 1, "so so")(ANSWERS[2:3]),
        ClassifierReward(model, 1, "x", "probability")(ANSWERS[2:3]),
    )
    assert found == (pytest.approx([logits], abs=1e-5), pytest.approx([1 / (1 + math.exp(-logits))], abs=1e-5))


def test_the_response_alone_is_read_where_that_is_asked() -> None:
    model = classifier("bert")
    found = ClassifierReward(model, 0, "bad", "logit", "response")(ANSWERS[:3])
    assert found == pytest.approx([logits_of(model, answer.response)[0] for answer in ANSWERS[:3]], abs=1e-5)


def test_a_text_too_long_for_the_model_loses_its_beginning() -> None:
    model = classifier("bert")
    ids = model.tokenizer("x y z " * 30 + "the end").input_ids
    assert len(ids) > 40
    with torch.no_grad():
        expected = model.model(input_ids=torch.tensor([[ids[0], *ids[-39:]]])).logits[0, 1]
    answer = Answer("x y z " * 30, "the end", (1,), (2,), True)
    assert ClassifierReward(model, 1, "so so", "logit")([answer]) == pytest.approx([float(expected)], abs=1e-5)


def test_a_classifier_is_named_by_folder_and_label(tmp_path: Path) -> None:
    save_model(classifier("bert"), tmp_path / "judge")
    policy, place = tiny_policy(), tmp_path / "judge"
    found = assess(load_reward(f"classifier:{place}:good", policy, []), ANSWERS)
    assert found.totals == pytest.approx(ClassifierReward(classifier("bert"), 2, "good")(ANSWERS), abs=1e-5)
    assert found.calls == 4
    with pytest.raises(ConfigError, match=r'judge has no label "goood"; did you mean "good"\?'):
        load_reward(f"classifier:{place}:goood", policy, [])
    save_model(new_reward_model(save_tiny(tmp_path / "base"), seed=0), tmp_path / "reward")
    with pytest.raises(ConfigError, match="has one label: it is a reward model, not a classifier"):
        load_reward(f"classifier:{tmp_path / 'reward'}:good", policy, [])
    assert load_classifier(place).tokenizer.truncation_side == "left"
    with pytest.raises(ConfigError, match="has 3 labels; a reward model has one"):
        load_reward(str(place), policy, [])


def texts() -> list[dict[str, object]]:
    return [
        {"text": pair["prompt"] + pair[side], "label": int(side == "chosen")}
        for pair in tiny_pairs(30)
        for side in ("chosen", "rejected")
    ]


def test_a_fitted_classifier_tells_the_labels_apart_the_same_way_each_time(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "texts.jsonl", texts())
    rows = [
        Answer(pair["prompt"], pair[side], (1,), (2,), True)
        for pair in tiny_pairs(30)
        for side in pair
        if side != "prompt"
    ]
    policy = tiny_policy()
    found = score(load_reward(f"fitted:{data}", policy, []), rows)
    assert found == score(load_reward(f"fitted:{data}", policy, []), rows)
    assert all(good > 1 for good in found[::2])
    assert all(bad < -1 for bad in found[1::2])
    ratings = read_ratings(data).rows
    shares = score(FittedReward.fit(ratings, "texts", output="probability"), rows)
    assert shares == pytest.approx([1 / (1 + math.exp(-value)) for value in found])
    alone = score(FittedReward.fit(ratings, "texts", reads="response"), rows)
    assert alone == score(FittedReward.fit(ratings, "texts"), [Answer("", row.response, (), (), True) for row in rows])


def test_csv_and_json_lines_give_one_classifier(tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "texts.jsonl", texts())
    lines = [f'"{row["text"]}",{("negative", "positive")[int(str(row["label"]))]}' for row in texts()]
    (tmp_path / "texts.csv").write_text("\ufefftext,label\r\n" + "\r\n".join(lines) + "\r\n\r\n", encoding="utf-8")
    first, second = read_ratings(data), read_ratings(tmp_path / "texts.csv")
    assert [(row.text, row.label) for row in first.rows] == [(row.text, row.label) for row in second.rows]
    assert second.rows[0].origin == "texts.csv:2"
    assert second.counts["blank lines"] == 1
    numbered = "text,label\n" + "\n".join(f'"{row["text"]}",{row["label"]}' for row in texts())
    (tmp_path / "numbered.csv").write_text(numbered)
    assert [row.label for row in read_ratings(tmp_path / "numbered.csv").rows] == [row.label for row in first.rows]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"text,label\nfine, really,1\n", r"texts\.csv:2: 3 values under 2 columns; quote a value that holds a comma"),
        (b"text,label\nfine,2\n", r'texts\.csv:2: "label" must be 0 or 1'),
        (b"text,text\nfine,1\n", r'texts\.csv:1: the column "text" stands twice'),
        (b"text\nfine\n", r'"label" missing, fields present: text'),
        (b"text,label\n", r"texts\.csv: 0 rows"),
        (b"", r"texts\.csv: 0 rows"),
        (b"text,label\n\xff,1\n", r"texts\.csv: byte 12 is not UTF-8"),
        (b'text,label\n"open,1\n', r"texts\.csv:2: no CSV: unexpected end of data"),
    ],
)
def test_faults_of_a_csv_are_named(content: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / "texts.csv").write_bytes(content)
    with pytest.raises(DataError, match=said):
        read_ratings(tmp_path / "texts.csv")


def test_texts_that_teach_nothing_are_refused() -> None:
    with pytest.raises(DataError, match="x: a classifier needs texts of both labels"):
        FittedReward.fit([Rating("a fine film", 1, "r:1")] * 3, "x")
    with pytest.raises(DataError, match="x: no classifier can be fitted: After pruning, no terms remain; add texts"):
        FittedReward.fit([Rating("fine", 1, "r:1"), Rating("dull", 0, "r:2")], "x")


@pytest.mark.parametrize("value", [None, True, ["4"]])
def test_a_prompt_without_an_answer_is_refused_before_the_run(value: object) -> None:
    prompts = [Prompt("a", "p:1", {"answer": "4"}), Prompt("b", "p:2", {"answer": value})]
    with pytest.raises(DataError, match=r'^p:2: "answer" must be text or a number'):
        load_reward("verifier:answer", tiny_policy(), prompts)
    with pytest.raises(DataError, match=r'^p:1: "answer" is empty'):
        load_reward("verifier:answer", tiny_policy(), [Prompt("a", "p:1", {"answer": " "})])
