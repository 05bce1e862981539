"""Each measure of degeneration, against cases worked by hand and against naive counting."""

from __future__ import annotations

from collections import Counter
from math import exp, log

import numpy as np
import pytest

from preflab.report.degeneration import commonest, distinct_responses, ends_in_loop, normalised, self_bleu, twins


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("great great great great great great", True),  # one word, 6 times
        ("great great great great great", False),  # 5 words are too few
        ("a fine film a fine film", False),  # twice is no loop
        ("i said a fine film a fine film a fine film", True),
        ("a fine film a fine film a fine film a fine", True),  # cut short
        ("a fine film a fine film a fine film but no", False),  # it found its way out
        ("", False),
        ("one two three four five six seven eight nine", False),
    ],
)
def test_a_loop_is_what_a_response_ends_with(text: str, loops: bool) -> None:
    assert ends_in_loop(text.split()) is loops


def test_self_bleu_of_three_short_responses_is_that_worked_by_hand() -> None:
    """ "a b c" against {"a b d", "x"}: words 2/3, pairs (1+1)/(2+1), triples (0+1)/(1+1); the length is that of the
    nearest: (2/3 · 2/3 · 1/2)^(1/3). "a b d" likewise. "x" shares nothing."""
    found = self_bleu([["a", "b", "c"], ["a", "b", "d"], ["x"]])
    by_hand = (2 / 3 * 2 / 3 * 1 / 2) ** (1 / 3)
    assert found == pytest.approx([by_hand, by_hand, 0.0])


def test_a_response_shorter_than_all_others_pays_for_its_brevity() -> None:
    """ "a b" against "a b c d": words 2/2, pairs (1+1)/(1+1), brevity exp(1 − 4/2)."""
    assert self_bleu([["a", "b"], ["a", "b", "c", "d"]])[0] == pytest.approx(exp(-1))


def naive_bleu(words: list[str], references: list[list[str]]) -> float:
    """BLEU-4 as its definition reads."""

    def grams(text: list[str], n: int) -> Counter:
        return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))

    logs = []
    for n in range(1, min(4, len(words)) + 1):
        mine, known = grams(words, n), 0
        for gram, times in mine.items():
            known += min(times, max(grams(reference, n)[gram] for reference in references))
        smooth = n > 1
        if known + smooth == 0:
            return 0.0
        logs.append(log((known + smooth) / (mine.total() + smooth)))
    nearest = min((abs(len(r) - len(words)), len(r)) for r in references)[1]
    return min(1.0, exp(1 - nearest / len(words))) * exp(sum(logs) / len(logs))


def test_self_bleu_agrees_with_the_definition_on_random_responses() -> None:
    rng = np.random.default_rng(0)
    responses = [list(rng.choice(list("abcde"), size=rng.integers(1, 12))) for _ in range(30)]
    by_definition = [naive_bleu(words, responses[:i] + responses[i + 1 :]) for i, words in enumerate(responses)]
    assert self_bleu(responses) == pytest.approx(by_definition)


def test_an_empty_response_has_no_bleu_and_spoils_no_other() -> None:
    assert self_bleu([[], ["a", "b"], ["a", "b"]]) == pytest.approx([0, 1, 1])


def test_twins_are_equal_or_nearly_so_and_answer_another_prompt() -> None:
    long = "the plot was thin but the acting of the two leads won me over in the end"
    near = long.replace("the end", "the final act")  # 13 of 15 + 16 − 13 runs of 3 words: 0.72, not enough
    nearer = long + " indeed"  # 15 of 16
    responses = [long, nearer, "dull", near + " of it", "DULL!", "dull"]
    prompts = ["a", "b", "c", "d", "c", "e"]
    assert twins(responses, prompts).tolist() == [True, True, True, False, True, True]


def test_the_same_response_to_the_same_prompt_is_no_collapse() -> None:
    assert twins(["so good", "so good", "dull"], ["x", "x", "y"]).tolist() == [False, False, False]


def test_twins_agree_with_every_two_compared() -> None:
    rng = np.random.default_rng(1)
    responses = [" ".join(rng.choice(["a", "b"], size=rng.integers(1, 7))) for _ in range(60)]
    prompts = [str(rng.integers(0, 30)) for _ in responses]

    def runs(text: str) -> set:
        words = text.split()
        return {tuple(words[i : i + 3]) for i in range(len(words) - 2)} or {text}

    def alike(i: int, j: int) -> bool:
        one, two = runs(responses[i]), runs(responses[j])
        return prompts[i] != prompts[j] and len(one & two) / len(one | two) >= 0.8

    naive = [any(alike(i, j) for j in range(60)) for i in range(60)]
    assert 0 < sum(naive) < 60
    assert twins(responses, prompts).tolist() == naive


def test_the_most_frequent_response_is_counted_up_to_case_and_punctuation() -> None:
    responses = ["bad", "Good.", "good", "GOOD !", "bad", "fine"]
    found = commonest(responses)
    assert (found.response, found.times, found.share) == ("Good.", 3, 0.5)
    assert distinct_responses(responses) == 3
    assert normalised("…") == ""
