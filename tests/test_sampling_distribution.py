"""Many responses against what the model's softmax says of every sequence there is: χ², at every temperature.

Each call mixes prompts of several lengths, each with thousands of responses that end at 1 to 3 tokens, in batches that
are full of unequal rows. The p-values are those of fixed seeds: they are bounded so that a right sampler passes at
999 seeds of 1,000.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2_contingency, chisquare, kstest

from held_up import more_likely, next_logprobs, small_gpt2
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample

VOCABULARY, END, LONGEST = 5, 3, 3
PROMPTS = ((2,), (0, 1, 2, 4, 4, 1, 0, 0, 2, 1, 1), (4, 0, 2), (2, 1))
SAMPLES = 1500
TEMPERATURES = (0.3, 0.7, 1.0, 1.6, 4.0)
SMALLEST_P = 1e-3 / (len(TEMPERATURES) * len(PROMPTS))


@cache
def model() -> Any:
    return more_likely(small_gpt2(vocab_size=VOCABULARY, n_layer=1, n_positions=16), END, 1.0)


@cache
def responses(temperature: float) -> list[list[Response]]:
    """To each prompt."""
    drawn = sample(
        model(), PROMPTS, keys=[f"p{i}" for i in range(len(PROMPTS))], end_id=END, max_new_tokens=LONGEST, seed=1,
        samples=SAMPLES, temperature=temperature, batch_size=600,
    )  # fmt: skip
    return [drawn[i * SAMPLES : (i + 1) * SAMPLES] for i in range(len(PROMPTS))]


def words() -> list[tuple[int, ...]]:
    others = [token for token in range(VOCABULARY) if token != END]
    ended = [(*start, END) for n in range(LONGEST) for start in product(others, repeat=n)]
    return ended + list(product(others, repeat=LONGEST))


@cache
def exact(prompt: tuple[int, ...], temperature: float) -> Mapping[tuple[int, ...], float]:
    """The probability of every response, in float64: the product of its tokens' softmax."""
    wide = copy.deepcopy(model()).double()
    after = {}  # log-probabilities of the next token after each beginning
    for beginning in product([token for token in range(VOCABULARY) if token != END], repeat=LONGEST - 1):
        rows = next_logprobs(wide, prompt, (*beginning, END), temperature).tolist()
        after |= {beginning[:length]: row for length, row in enumerate(rows)}
    found = {word: math.exp(sum(after[word[:t]][token] for t, token in enumerate(word))) for word in words()}
    assert math.fsum(found.values()) == pytest.approx(1, abs=1e-9)
    return found


def p_value(seen: Counter[tuple[int, ...]], expected: Mapping[tuple[int, ...], float]) -> float:
    """χ² of all words, the rarest of them taken together until 5 are expected of each class."""
    assert set(seen) <= set(expected)
    classes = [[0.0, 0.0]]  # observed, expected
    for word, p in sorted(expected.items(), key=lambda item: item[1]):
        if classes[-1][1] >= 5:
            classes.append([0.0, 0.0])
        classes[-1][0] += seen[word]
        classes[-1][1] += p * sum(seen.values())
    observed, wanted = zip(*classes, strict=True)
    assert len(classes) > 1, "one class fits any distribution"
    return float(chisquare(observed, wanted).pvalue)


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_responses_are_as_frequent_as_the_softmax_says(temperature: float) -> None:
    for prompt, drawn in zip(PROMPTS, responses(temperature), strict=True):
        seen = Counter(response.tokens for response in drawn)
        assert p_value(seen, exact(prompt, temperature)) > SMALLEST_P


@pytest.mark.parametrize("temperature", TEMPERATURES)
def test_another_temperature_or_another_prompt_would_be_found_out(temperature: float) -> None:
    """By the same χ², on the same responses."""
    for number, drawn in enumerate(responses(temperature)):
        seen = Counter(response.tokens for response in drawn)
        assert p_value(seen, exact(PROMPTS[number], 2 * temperature)) < SMALLEST_P
        assert p_value(seen, exact(PROMPTS[number - 1], temperature)) < SMALLEST_P


def test_each_place_in_a_response_has_the_frequencies_of_what_came_before_it() -> None:
    """Of the second token, given each first one; of the third, given each first two."""
    for prompt, drawn in zip(PROMPTS, responses(1.0), strict=True):
        chances = exact(prompt, 1.0)
        for length in (1, 2):
            for start in product([token for token in range(VOCABULARY) if token != END], repeat=length):
                seen = Counter(r.tokens[length : length + 1] for r in drawn if r.tokens[:length] == start)
                mass = math.fsum(p for word, p in chances.items() if word[:length] == start)
                expected = {
                    (token,): math.fsum(p for word, p in chances.items() if word[: length + 1] == (*start, token))
                    / mass
                    for token in range(VOCABULARY)
                }
                if sum(seen.values()) * sorted(expected.values())[-2] > 20:  # else there is too little to see
                    assert p_value(seen, expected) > 1e-3 / 80  # 4 prompts, 4 and 16 beginnings


def test_the_responses_to_a_prompt_are_independent_of_each_other_and_of_other_prompts() -> None:
    """Contingency of first tokens: of neighbours among the responses to a prompt, and of the i-th ones to two."""
    firsts = [[response.tokens[0] for response in drawn] for drawn in responses(1.6)]
    tables = [(column[::2], column[1::2]) for column in firsts]
    tables += [(firsts[i], firsts[j]) for i in range(len(firsts)) for j in range(i)]
    for one, other in tables:
        table = np.zeros((VOCABULARY, VOCABULARY))
        np.add.at(table, (one, other), 1)
        kept = table[table.sum(1) > 10][:, table.sum(0) > 10]
        assert chi2_contingency(kept).pvalue > 1e-3 / len(tables)


def test_the_uniforms_behind_the_tokens_are_uniform_over_the_whole_unit_interval() -> None:
    """Of 1000 tokens, nearly alike: the rank of a token, its cumulative probability, is uniform; no end is cut off."""
    wide_vocabulary = small_gpt2(vocab_size=1000, n_layer=1, n_positions=16, spread=0.05)
    drawn = sample(
        wide_vocabulary, [(5, 6)], keys=["x"], end_id=0, max_new_tokens=1, seed=0, samples=4000, batch_size=1000
    )
    ends = next_logprobs(copy.deepcopy(wide_vocabulary).double(), (5, 6), (0,)).exp()[0].cumsum(0).numpy()
    ranks = ends[[response.tokens[0] for response in drawn]] - 0.5 / 1000
    assert kstest(ranks, "uniform").pvalue > 1e-3
    assert ranks.min() < 0.003
    assert ranks.max() > 0.997
