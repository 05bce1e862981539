"""Rewards: one finite number a response, from text or from a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enumerable import LETTERS, letters_policy
from preflab.data.encode import Encoder
from preflab.data.records import Rating
from preflab.data.reviews import generate_reviews, review_sentiment
from preflab.errors import NumericError
from preflab.models.load import Policy, new_reward_model, save_model
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Answer, score
from preflab.rewards.sentiment import ClassifierSentiment, GrammarSentiment
from tiny import save_tiny


def answer(prompt: str, response: str, *, ended: bool = True) -> Answer:
    """For rewards that read text alone."""
    return Answer(prompt, response, (1,), (2,), ended)


class Fixed:
    name = "fixed"

    def __init__(self, values: Any) -> None:
        self.values = values

    def __call__(self, answers: Sequence[Answer]) -> Any:
        return self.values


ANSWERS = [answer("The plot", f" was number {i}.") for i in range(3)]


@pytest.mark.parametrize("values", [[1, 2.5, -3], (1, 2.5, -3), np.array([1, 2.5, -3]), torch.tensor([1, 2.5, -3])])
def test_any_sequence_of_numbers_will_do(values: Any) -> None:
    found = score(Fixed(values), ANSWERS)
    assert found == [1.0, 2.5, -3.0]
    assert all(type(value) is float for value in found)


@pytest.mark.parametrize(
    "bad", [float("nan"), float("inf"), -float("inf"), np.float32("nan"), None, "1.0", True, np.bool_(True), {}]
)
def test_what_is_no_finite_number_is_refused_with_its_response(bad: Any) -> None:
    with pytest.raises(NumericError, match=r"fixed gave .* ' was number 1\.' to the prompt 'The plot'") as refused:
        score(Fixed([0.0, bad, 0.0]), ANSWERS)
    assert refused.value.exit_code == 4


@pytest.mark.parametrize("values", [[], [1.0, 2.0], [1.0] * 4])
def test_the_wrong_number_of_values_is_refused(values: list[float]) -> None:
    with pytest.raises(NumericError, match=f"fixed returned {len(values)} values for 3 responses"):
        score(Fixed(values), ANSWERS)


@pytest.mark.parametrize("values", [None, 1.0])
def test_what_is_no_list_is_refused(values: Any) -> None:
    with pytest.raises(NumericError, match=r"fixed returned .*, not a list of numbers"):
        score(Fixed(values), ANSWERS)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    model = new_reward_model(save_tiny(tmp_path_factory.mktemp("policy") / "model"), seed=0)
    model.model.config.reward_offset = 0.5
    with torch.no_grad():
        model.model.score.weight.mul_(10)
    return model


@torch.no_grad()
def by_hand(model: Policy, ids: tuple[int, ...]) -> float:
    """The head at the last position, less the offset."""
    states = model.model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
    return float(model.model.score(states)) - 0.5


def encoded(encoder: Encoder, prompt: str, response: str, *, ended: bool) -> Answer:
    ids = encoder.text(response) + ((encoder.end_id,) if ended else ())
    return Answer(prompt, response, encoder.prompt(prompt), ids, ended)


ROWS = [
    ("The plot was", " thin, but the ending won me over.", True),
    ("The cast was", " great", False),
    ("I thought that this", " film was dull and slow.", True),
    ("The plot was", " great and clever.", True),
]


def test_a_reward_model_scores_the_policys_own_ids_where_the_tokenizer_is_the_same(scorer: Policy) -> None:
    encoder = Encoder(scorer.tokenizer, prompt_tokens=64, response_tokens=64)
    answers = [encoded(encoder, prompt, response, ended=ended) for prompt, response, ended in ROWS]
    # Ids that no text gives, as a policy may sample them: they are scored as they are.
    odd = dataclasses.replace(answers[0], response_ids=(7, 7, encoder.tokenizer.pad_token_id, 8))
    expected = [by_hand(scorer, a.prompt_ids + a.response_ids) for a in [*answers, odd]]
    assert np.std(expected) > 0.1
    for batch_size in (1, 2, 128):
        found = LearnedReward(scorer, scorer.tokenizer, batch_size=batch_size)([*answers, odd])
        assert found == pytest.approx(expected, abs=1e-4)


def test_a_reward_model_with_another_tokenizer_reads_the_text_anew(scorer: Policy) -> None:
    """An end token where the policy emitted its own, and none where it was cut."""
    theirs = letters_policy().tokenizer
    own = Encoder(scorer.tokenizer, prompt_tokens=64, response_tokens=64)
    answers = [Answer(prompt, response, (2, 3), (4, 1), ended) for prompt, response, ended in ROWS]
    expected = [
        by_hand(scorer, own.prompt(prompt) + own.text(response) + ((own.end_id,) if ended else ()))
        for prompt, response, ended in ROWS
    ]
    assert own.prompt("x")[0] == scorer.tokenizer.bos_token_id
    found = LearnedReward(scorer, theirs)(answers)
    assert found == pytest.approx(expected, abs=1e-4)
    cut = [dataclasses.replace(a, ended=not a.ended) for a in answers]
    assert all(abs(a - b) > 1e-4 for a, b in zip(LearnedReward(scorer, theirs)(cut), found, strict=True))


def test_an_empty_response_gets_a_score_from_any_tokenizer(scorer: Policy) -> None:
    theirs = letters_policy().tokenizer
    own = Encoder(scorer.tokenizer, prompt_tokens=64, response_tokens=64)
    for ended in (True, False):
        (found,) = score(LearnedReward(scorer, theirs), [Answer("The plot", "", (2,), (1,), ended)])
        assert found == pytest.approx(by_hand(scorer, (*own.prompt("The plot"), own.end_id)), abs=1e-4)


def test_a_letters_model_scores_letters(tmp_path: Path) -> None:
    """And the other way round: a small vocabulary reads what a large one wrote."""
    save_model(letters_policy(), tmp_path / "letters")
    model = new_reward_model(tmp_path / "letters", seed=0)
    model.model.config.reward_offset = 0.5
    theirs = Encoder(letters_policy().tokenizer, prompt_tokens=8, response_tokens=8)
    answers = [encoded(theirs, "ab", letters, ended=True) for letters in (*LETTERS, "abcd")]
    found = LearnedReward(model, theirs.tokenizer)(answers)
    assert found == pytest.approx([by_hand(model, a.prompt_ids + a.response_ids) for a in answers], abs=1e-5)


def test_the_grammars_sentiment_is_scaled() -> None:
    reviews = generate_reviews(30, seed=1)
    answers = [answer(text[:20], text[20:]) for text in reviews]
    found = score(GrammarSentiment(scale=5.0), answers)
    assert found == pytest.approx([5.0 * review_sentiment(text) for text in reviews])
    assert found == pytest.approx([2.5 * value for value in score(GrammarSentiment(scale=2.0), answers)])
    assert min(found) < -1 < 1 < max(found)
    assert all(-5 <= value <= 5 for value in found)


def test_text_outside_the_grammar_gets_the_least() -> None:
    assert score(GrammarSentiment(scale=5.0), [answer("colourless green", " ideas sleep furiously")]) == [-5.0]


def ratings(n: int, seed: int) -> list[Rating]:
    rng = np.random.default_rng(seed)
    words = {1: ["great", "clever", "moving", "fine"], 0: ["dull", "awful", "slow", "flat"]}
    neutral = ["film", "plot", "cast", "music", "story"]
    rows = []
    for number in range(n):
        label = number % 2
        text = " ".join([*rng.choice(neutral, 4), *rng.choice(words[label], 2)])
        rows.append(Rating(text, label, f"r:{number}"))
    return rows


def test_a_classifier_is_a_reward_in_proportion_to_its_certainty() -> None:
    classifier = ClassifierSentiment.fit(ratings(200, 0), scale=3.0)
    good, mixed, bad = (
        answer("the film was", " great and clever"),
        answer("film", " plot"),
        answer("the plot", " was dull"),
    )
    values = score(classifier, [good, mixed, bad])
    assert values[0] > 1 > abs(values[1])
    assert values[2] < -1
    assert all(-3 <= value <= 3 for value in values)
    probability = classifier.classifier.predict_proba(["the film was great and clever"])[0, 1]
    assert values[0] == pytest.approx(3 * (2 * probability - 1))
    # Prompt and response are read as one text.
    assert score(classifier, [answer("the film was great", " and clever")]) == pytest.approx(values[:1])


def test_a_classifier_is_fitted_the_same_way_each_time() -> None:
    held_out = [answer("", row.text) for row in ratings(20, 1)]
    first, second = (ClassifierSentiment.fit(ratings(200, 0), scale=1.0) for _ in range(2))
    assert score(first, held_out) == score(second, held_out)


def test_accuracy_is_per_rating() -> None:
    classifier = ClassifierSentiment.fit(ratings(200, 0), scale=1.0)
    rows = ratings(20, 1)
    assert classifier.accuracy(rows) == [1.0] * 20
    wrong = [dataclasses.replace(row, label=1 - row.label) for row in rows]
    assert classifier.accuracy(wrong) == [0.0] * 20
