"""First fit by a budget of cells, held against its definition."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preflab.data.budget import Extent, extent, first_fit
from preflab.data.encode import Tree
from preflab.data.pack import pack, readings

RULES: dict[str, Callable[[Extent], int]] = {
    "flat": lambda batch: batch.flat,
    "tree": lambda batch: batch.tree,
    # What a model that can read both does: a larger batch may take fewer cells.
    "cheaper": lambda batch: batch.tree if batch.tree <= 0.9 * batch.flat else batch.flat,
}
ids = st.lists(st.integers(0, 3), min_size=1, max_size=12).map(tuple)
trees = st.builds(Tree, st.just("t"), ids, st.lists(ids, min_size=1, max_size=4).map(tuple))
batches = st.lists(trees, min_size=1, max_size=14)


def taken(rule: str, some: Sequence[Tree]) -> int:
    """The cells of a batch, from the batch itself."""
    copied, shared = (one.cells for one in readings(pack(some)))
    return RULES[rule](Extent(rows=1, longest=copied, tokens=shared + 1))


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(given_trees=batches, budget=st.integers(1, 120))
def test_every_tree_once_within_the_budget_unless_alone(rule: str, given_trees: list[Tree], budget: int) -> None:
    parts = first_fit(given_trees, budget, RULES[rule])
    assert sorted(i for part in parts for i in part) == list(range(len(given_trees)))
    for part in parts:
        assert len(part) == 1 or taken(rule, [given_trees[i] for i in part]) <= budget


@pytest.mark.parametrize("rule", RULES)
@settings(max_examples=40)
@given(given_trees=batches, budget=st.integers(1, 120), seed=st.integers(0, 9))
def test_the_order_of_the_trees_changes_nothing(rule: str, given_trees: list[Tree], budget: int, seed: int) -> None:
    shuffled = Random(seed).sample(given_trees, len(given_trees))

    def contents(some: Sequence[Tree]) -> list[list[Tree]]:
        return [[some[i] for i in part] for part in first_fit(some, budget, RULES[rule])]

    assert contents(given_trees) == contents(shuffled)


@settings(max_examples=40)
@given(given_trees=batches)
def test_a_tree_opens_a_micro_batch_only_where_it_fits_in_none(given_trees: list[Tree]) -> None:
    """In none of those that stood before it, as they were then."""
    budget = 40

    def place(i: int) -> tuple[int, tuple[int, ...], tuple[tuple[int, ...], ...]]:
        return -extent(given_trees[i]).tree, given_trees[i].prompt, given_trees[i].responses

    parts = first_fit(given_trees, budget, RULES["tree"])
    for number, (opener, *_) in enumerate(parts):
        for earlier in parts[:number]:
            then = [given_trees[i] for i in earlier if place(i) <= place(opener)]
            assert taken("tree", [*then, given_trees[opener]]) > budget


def test_a_step_worked_by_hand() -> None:
    """Rows of 9, 7, 5, 4, 2 tokens in 14 cells, padded: 9 alone (2 × 9 > 14), 7 and 5 (2 × 7), 4 and 2 (2 × 4)."""
    rows = [Tree("t", (1,), ((2,) * (n - 1),)) for n in (4, 9, 2, 7, 5)]
    assert first_fit(rows, 14, RULES["flat"]) == [[1], [3, 4], [0, 2]]
    # Without padding and last tokens, 8, 6, 4, 3, 1 cells, less a prompt that is shared: 8 + 5, 4 + 2 + 0.
    assert first_fit(rows, 14, RULES["tree"]) == [[1, 3, 2], [4, 0]]


def test_a_prompt_s_responses_stay_together_where_they_fit() -> None:
    """Six responses to two prompts of 10 tokens: each prompt is read once, not twice."""
    prompts = ((1,) * 10, (2,) * 10)
    rows = [Tree("t", prompts[i % 2], ((3,) * (8 - i),)) for i in range(6)]
    assert Counter(len({rows[i].prompt for i in part}) for part in first_fit(rows, 32, RULES["tree"])) == {1: 2}


def test_what_is_larger_than_the_budget_is_alone() -> None:
    rows = [Tree("t", (1,), ((2,) * n,)) for n in (3, 30, 2)]
    assert first_fit(rows, 12, RULES["flat"]) == [[1], [0, 2]]
    assert first_fit(rows, 1, RULES["flat"]) == [[1], [0], [2]]
    assert first_fit([], 12, RULES["flat"]) == []
