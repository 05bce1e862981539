"""Counted operations against those that torch sees when the pass runs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from preflab.data.encode import Tree
from preflab.data.pack import pack, readings
from preflab.models import scoring
from preflab.models.flops import flops, step_flops
from preflab.models.freezing import freeze
from preflab.models.head import head_of
from preflab.models.load import new_reward_model, save_model
from preflab.models.scoring import reading, reading_of, response_logprobs, response_scores
from tiny import tiny_policy

TREES = [Tree("a", tuple(range(9)), ((4, 5, 6), (7, 8), tuple(range(11)))), Tree("b", (5, 1), ((2, 3), (9,)))]
WIDTH, LAYERS = 16, 3


def gpt2() -> Any:
    sizes = {"vocab_size": 40, "n_positions": 64, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)).eval()


def llama() -> Any:
    """Untied, with few keys for many queries."""
    config = transformers.LlamaConfig(
        vocab_size=50, hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=24, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


def added_product(total: torch.Size, one: torch.Size, other: torch.Size, **more: Any) -> int:
    return 2 * one[0] * one[1] * other[1]


IN_PLACE = {torch.ops.aten.addmm_: added_product}
"""torch counts addmm alone."""


def counted(model: Any, *, backward: bool, math: bool = False) -> int:
    """What torch counts; attention too where it is made of plain products, which it always makes in full."""
    batch = pack(TREES)
    response_logprobs(model, batch)  # what the model can do is found out once
    backend = SDPBackend.MATH if math else SDPBackend.FLASH_ATTENTION  # on a processor torch does not count this one
    with sdpa_kernel(backend), FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        if backward:
            response_logprobs(model, batch).sum().backward()
        else:
            with torch.no_grad():
                response_logprobs(model, batch)
    return counter.get_total_flops()


@pytest.mark.parametrize("frozen", [0, 1, 2])
@pytest.mark.parametrize("layout", ["flat", "tree"])
@pytest.mark.parametrize("made", [gpt2, llama])
def test_products_of_weights_are_those_that_torch_counts(
    made: Any, layout: str, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A forward pass, and a step with some blocks frozen; all but attention, to the last product."""
    monkeypatch.setattr(scoring, "TREE_SHARE", {"tree": 100.0, "flat": 0.0}[layout])
    model = made()
    freeze(model, frozen)
    read = reading(model, TREES)
    assert read == readings(TREES)[layout == "tree"]
    of_attention = 4 * WIDTH * read.seen
    assert flops(model, read) - LAYERS * of_attention == counted(model, backward=False)
    with_gradients = flops(model, read, backward=True)
    assert with_gradients - (3 * LAYERS - 2 * frozen) * of_attention == counted(model, backward=True)
    if layout == "tree":
        assert step_flops(model, TREES) == with_gradients


@pytest.mark.parametrize("frozen", [0, 2])
@pytest.mark.parametrize("made", [gpt2, llama])
def test_attention_is_the_half_of_its_square_that_is_seen(
    made: Any, frozen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In rows of n cells torch counts n² pairs, of which n(n + 1)/2 are seen."""
    monkeypatch.setattr(scoring, "TREE_SHARE", 0.0)
    model = made()
    freeze(model, frozen)
    read = reading(model, TREES)
    for backward in (False, True):
        unseen = 4 * WIDTH * (read.seen - read.cells)
        blocks = 3 * LAYERS - 2 * frozen if backward else LAYERS
        assert flops(model, read, backward=backward) + blocks * unseen == counted(model, backward=backward, math=True)


def test_readings_are_those_of_a_mask_written_out() -> None:
    """Every pair of cells looked at, in both layouts; a batch is read as the trees it was made of."""
    flat = tree = 0
    for one in TREES:
        rows = [one.prompt + response for response in one.responses]
        width = max(len(t.prompt) + len(response) for t in TREES for response in t.responses)
        flat += sum(key <= query for _ in rows for query in range(width) for key in range(width))
        # A cell is (response or none, place).
        cells = [(None, place) for place in range(len(one.prompt))]
        for number, response in enumerate(one.responses):
            cells += [(number, len(one.prompt) + step) for step in range(len(response) - 1)]
        tree += sum(
            key[1] <= query[1] and key[0] in (None, query[0])
            for query in cells for key in cells
        )  # fmt: skip
    copied, shared = readings(TREES)
    assert (copied.seen, shared.seen) == (flat, tree)
    batch = pack(TREES)
    assert readings(batch) == (copied, shared)
    assert readings(TREES, ends=True)[1].cells == shared.cells + 5
    some = readings(batch.rows(torch.tensor([3, 0])))
    assert some[0].cells == 2 * 12  # padded to the longer of the two
    assert some[1] == readings([Tree("a", TREES[0].prompt, TREES[0].responses[:1]), Tree("b", (5, 1), ((2, 3),))])[1]
    assert readings([]) == (type(copied)(), type(copied)())


def test_cells_are_those_that_go_through_the_body() -> None:
    """In either layout, with and without last tokens, and of many batches together."""
    policy = tiny_policy()
    head_of(policy.model)
    seen: list[int] = []
    trees = [Tree("t", tuple(range(n + 1)), ((5,) * (1 + n % 4),) * (1 + n % 3)) for n in range(20)]
    for given in (trees, TREES, trees[:1]):
        response_logprobs(policy.model, pack(given))
    policy.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    for given in (trees, TREES, trees[:1]):
        response_logprobs(policy.model, pack(given))
        assert seen.pop() == reading(policy.model, given).cells == reading(policy.model, pack(given)).cells
    scoring.logprobs_of(policy.model, trees, batch_size=7)
    assert len(seen) == 3
    assert sum(seen) == reading_of(policy.model, trees, batch_size=7).cells


def test_a_reward_model_reads_last_tokens_and_has_no_head(tmp_path: Any) -> None:
    save_model(tiny_policy(), tmp_path / "body")
    model = new_reward_model(tmp_path / "body", seed=0).model
    batch = pack(TREES)
    response_scores(model, batch)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), FlopCounterMode(display=False) as counter:
        response_scores(model, batch).sum().backward()
    read = reading(model, TREES, ends=True)
    expected = flops(model, read, backward=True) - 3 * 2 * 4 * 32 * read.seen
    assert counter.get_total_flops() == pytest.approx(expected, rel=0.01)  # the score itself is left out
    assert read.cells == reading(model, TREES).cells + 5


def test_a_batch_that_a_window_refuses_counts_as_the_flat_one_that_it_becomes() -> None:
    config = transformers.MistralConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2,
        intermediate_size=24, sliding_window=8,
    )  # fmt: skip
    model: Any = transformers.MistralForCausalLM(config).eval()
    short = [Tree("s", (1, 2, 3), ((4, 5), (6, 7)))]
    for given, taken in ((TREES, 0), (short, 1)):
        response_logprobs(model, pack(given))
        assert reading(model, given) == readings(given)[taken]
