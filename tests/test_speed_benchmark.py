"""What the speed benchmark divides by, and what it trains on."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode

from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses import masked_sum
from preflab.models import scoring

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from flops import Shape, step_flops, trunk_flops  # noqa: E402
from peers import data  # noqa: E402

sys.path.remove(str(BENCHMARKS))

TREES = [
    Tree("a", tuple(range(2, 22)), ((3, 4, 5, 6, 0), (7, 8, 0))),
    Tree("b", (5, 6, 7, 8, 9, 10, 11, 12), ((3, 0), (4, 5, 0))),
]


def test_counted_products_are_those_that_torch_sees_in_a_step() -> None:
    """All but attention, whose kernel torch counts as if every query saw every key."""
    config = transformers.GPT2Config(
        vocab_size=30, n_positions=32, n_embd=16, n_layer=3, n_head=2, bos_token_id=None, eos_token_id=0
    )
    model, shape = transformers.GPT2LMHeadModel(config).eval(), Shape(layers=3, width=16, vocabulary=30)
    batch = pack(TREES)
    scoring.response_logprobs(model, batch)  # what a model is tried on once
    in_place = {torch.ops.aten.addmm_: _product}  # torch does not know it
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        masked_sum(scoring.response_logprobs(model, batch), batch.mask).sum().backward()
    products = counter.get_flop_counts()["Global"]
    layers = (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.addmm_)
    seen = sum(products[kind] for kind in layers)
    attention = 3 * 3 * 4 * 16 * sum(_seen(tree) for tree in TREES)
    assert seen == step_flops(shape, TREES) - attention


def _product(_: Any, left: torch.Size, right: torch.Size, *others: Any, **more: Any) -> int:
    return 2 * left[0] * left[1] * right[1]


def _seen(tree: Tree) -> int:
    """Keys that the queries of a tree see, one by one; last tokens of responses are no queries."""
    prompt = len(tree.prompt)
    of_prompt = sum(range(1, prompt + 1))
    return of_prompt + sum(prompt + place for response in tree.responses for place in range(1, len(response)))


def test_a_frozen_block_is_counted_once_and_a_kept_one_never() -> None:
    shape = Shape(layers=3, width=16, vocabulary=30)
    block = trunk_flops(shape, TREES, 1)
    head = 2 * 16 * 30 * sum(len(response) for tree in TREES for response in tree.responses)
    assert step_flops(shape, TREES) == 9 * block + 3 * head
    assert step_flops(shape, TREES, frozen=2) == 2 * block + 3 * block + 2 * head


def test_synthetic_pairs_have_the_stated_lengths() -> None:
    pairs = data.synthetic(4000, vocabulary=500, seed=3)
    for place, (mean, median) in enumerate(data.LENGTHS.values()):
        lengths = sorted(len(pair.ids[place]) for pair in pairs)
        assert abs(sum(lengths) / len(lengths) / mean - 1) < 0.06  # sequences end at 512, so long ones are cut
        assert abs(lengths[len(lengths) // 2] / median - 1) < 0.06
    assert max(pair.longest for pair in pairs) <= data.LONGEST


def test_measured_batches_stand_for_the_whole_set_and_share_no_pair_with_the_warm_up() -> None:
    pairs = data.synthetic(300, vocabulary=500, seed=0)
    whole = data.counts(data.cut(Random(1).sample(pairs, len(pairs)), 4))
    for batches in data.orders(pairs, batches=6, size=4, seed=0).values():
        warm, *measured = batches
        assert len(measured) == 6
        assert not {*warm} & {pair for batch in measured for pair in batch}
        found = data.counts(measured)
        for name in ("two_sequences", "tree", "responses"):
            assert abs(found[name] / whole[name] - 1) < 0.03
