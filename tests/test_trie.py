"""A trie of responses, and the mask over it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from held_up import next_logprobs, small_gpt2
from preflab.errors import ConfigError
from preflab.rollouts.sampler import sample
from preflab.rollouts.trie import Node, OneOf, after, allowing, union
from small_tables import small_tokenizer, walk

END = 3
RESPONSES = [(5, 6), (5, 7, 5), (5,), (9, 9, 9), (4, 6)]


@given(st.sets(st.lists(st.integers(4, 8), max_size=4).map(tuple), min_size=1, max_size=12))
def test_exactly_the_responses_given_are_allowed(responses: set[tuple[int, ...]]) -> None:
    mask = OneOf(responses, end_id=END, vocabulary=9)
    found = list(walk(mask, (0,), END))
    assert Counter(found) == Counter((*response, END) for response in responses)


def test_states_of_different_places_are_answered_together() -> None:
    mask = OneOf(RESPONSES, end_id=END, vocabulary=10)
    start = mask.start((1, 2))
    five = mask.advance(start, 5)
    nine = mask.advance(start, 9)
    found = [row.nonzero().flatten().tolist() for row in mask.allowed([five, start, nine, five])]
    assert found == [[3, 6, 7], [4, 5, 9], [9], [3, 6, 7]]
    assert mask.allowed([]).shape == (0, 10)


def test_a_label_is_sampled_with_its_probability_among_the_labels() -> None:
    """Against each label's own probability in float64, normalised token by token."""
    model, prompt = small_gpt2(), (7, 8, 9)
    mask = OneOf(RESPONSES, end_id=END, vocabulary=40)
    exact = {response: masked_logprob(model, mask, prompt, (*response, END)) for response in RESPONSES}
    assert sum(np.exp(list(exact.values()))) == pytest.approx(1, abs=1e-12)
    drawn = sample(
        model, [prompt], keys=["a"], end_id=END, max_new_tokens=4, seed=0, samples=2000, batch_size=500, mask=mask
    )
    for response in drawn:
        assert response.ended
        assert sum(response.logprobs) == pytest.approx(exact[response.tokens[:-1]], abs=1e-5)
    seen = Counter(response.tokens[:-1] for response in drawn)
    for response, logprob in exact.items():
        share, wanted = seen[response] / 2000, float(np.exp(logprob))
        assert abs(share - wanted) < 4 * (wanted * (1 - wanted) / 2000) ** 0.5 + 1e-9


def masked_logprob(model: Any, mask: Any, prompt: tuple[int, ...], response: tuple[int, ...]) -> float:
    """The sum of a response's log-probabilities under a mask, from the definition."""
    logprobs, state, total = next_logprobs(model.double(), prompt, response), mask.start(prompt), 0.0
    model.float()
    for place, token in enumerate(response):
        allowed = mask.allowed([state])[0]
        assert allowed[token]
        total += float(logprobs[place, token] - logprobs[place][allowed].logsumexp(0))
        if place < len(response) - 1:
            state = mask.advance(state, token)
    return total


def test_labels_of_a_text_task() -> None:
    tokenizer = small_tokenizer()
    labels = [" positive", " negative", " posh"]
    mask = OneOf(
        tokenizer(labels, add_special_tokens=False)["input_ids"],
        end_id=tokenizer.eos_token_id,
        vocabulary=len(tokenizer),
    )
    model = small_gpt2(vocab_size=len(tokenizer))
    drawn = sample(
        model, [(7, 8), (9,)], keys=["a", "b"], end_id=tokenizer.eos_token_id, max_new_tokens=20, seed=0, samples=20,
        mask=mask,
    )  # fmt: skip
    assert {tokenizer.decode(response.tokens[:-1]) for response in drawn} == set(labels)


@pytest.mark.parametrize("responses", [[], [(5, END)], [(5, 10)], [(-1,)]])
def test_responses_that_no_mask_can_allow_are_refused(responses: list[tuple[int, ...]]) -> None:
    with pytest.raises(ConfigError, match=r"of no responses|holds the end token \(3\)"):
        OneOf(responses, end_id=END, vocabulary=10)


def test_a_union_follows_all_of_its_tries_however_they_overlap() -> None:
    root = union(
        [after((1, 2), Node(0)), after((1, 2, 3), Node(1)), after((1,), union([Node(2), after((4,), Node(3))]))]
    )
    one = root.children[1]
    assert (root.value, one.value, sorted(one.children)) == (None, 2, [2, 4])
    assert (one.children[2].value, one.children[2].children[3].value, one.children[4].value) == (0, 1, 3)


def test_a_trie_may_be_endless() -> None:
    def ones(count: int) -> Node:
        return Node(count, lambda: {1: ones(count + 1)})

    node = ones(0)
    for _ in range(50):
        node = node.children[1]
    assert node.value == 50


def test_a_row_of_a_large_vocabulary_is_true_where_it_says() -> None:
    choices = [np.array([50256, 0]), np.array([], dtype=np.int64), np.arange(3)]
    found = allowing(choices, 50257)
    assert found.dtype == torch.bool
    assert [row.nonzero().flatten().tolist() for row in found] == [[0, 50256], [], [0, 1, 2]]
