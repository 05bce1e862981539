"""What the order of examples and a budget of cells save: padding of an epoch, memory and seconds of its steps.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/batches.py [--data pairs.jsonl.gz] [--out FILE.json]

Lengths are drawn (log-normal, as texts have them), or those of the pairs of --data, in words. Padding is arithmetic: an
epoch's cells over its tokens. Memory is the largest resident peak of a few steps, the heaviest among them, above what
stands before each; steps are DPO's, of a GPT-2 with random weights.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from preflab.data.budget import Extent, extent
from preflab.data.encode import Tree
from preflab.data.pack import pack, read_tokens
from preflab.data.sources import read_pairs
from preflab.losses import dpo, masked_sum, mean_by
from preflab.models import scoring
from preflab.training.cost import peak_memory_bytes, reset_peak_memory
from preflab.training.micro_batches import MicroBatches
from preflab.training.order import batch_at

SIZE, MICRO = 32, 8
POSITIONS, VOCABULARY = 512, 2000


def drawn_pairs(n: int, rng: Random) -> list[Tree]:
    def tokens(median: float, most: int) -> int:
        return max(2, min(most, int(rng.lognormvariate(0.0, 0.7) * median)))

    return [pair_of(tokens(80, 256), tokens(50, 256), tokens(50, 256), rng) for _ in range(n)]


def read_lengths(path: Path, rng: Random) -> list[Tree]:
    texts = [(pair.prompt, pair.chosen, pair.rejected) for pair in read_pairs(path).rows]
    return [pair_of(*(max(2, min(256, len(text.split()))) for text in three), rng) for three in texts]


def pair_of(prompt: int, chosen: int, rejected: int, rng: Random) -> Tree:
    def ids(n: int) -> tuple[int, ...]:
        return tuple(rng.randrange(VOCABULARY) for _ in range(n))

    return Tree("pair", ids(prompt), (ids(chosen), ids(rejected)))


def model_of() -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=POSITIONS, n_embd=256, n_layer=4, n_head=4, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config).eval()


def epoch(pairs: list[Tree], order: str) -> list[list[Tree]]:
    """The optimiser steps of the first epoch, whole ones."""
    lengths = [extent(pair).longest for pair in pairs] if order == "length" else None
    steps = range(len(pairs) // SIZE)
    return [
        [pairs[i] for i in batch_at(step, examples=len(pairs), batch_size=SIZE, seed=0, lengths=lengths)]
        for step in steps
    ]


def whole(trees: list[Tree]) -> Extent:
    total = Extent()
    for tree in trees:
        total = total.plus(extent(tree))
    return total


def steps_of(model: Any, steps: list[list[Tree]], plan: MicroBatches) -> dict[str, Any]:
    """Memory and CPU seconds of DPO steps, without the optimiser's."""
    peaks, seconds = [], 0.0
    for step in steps:
        model.zero_grad(set_to_none=False)
        with suppress(OSError, AttributeError):  # glibc keeps what is freed, and the next peak would hide in it
            ctypes.CDLL(None).malloc_trim(0)
        reset_peak_memory()
        before, begin = peak_memory_bytes(), time.process_time()
        for part in plan.of(step):
            batch = pack([step[i] for i in part])
            logprob = masked_sum(scoring.response_logprobs(model, batch), batch.mask).view(-1, 2)
            mean_by(dpo(*logprob.unbind(1), beta=0.1), len(step)).backward()
        seconds += time.process_time() - begin
        peaks.append(peak_memory_bytes() - before)
    return {
        "peak_mib": round(max(peaks) / 2**20),
        "tokens_a_second": round(sum(map(read_tokens, steps)) / seconds),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path)
    parser.add_argument("--pairs", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    rng, model = Random(0), model_of()
    pairs = read_lengths(given.data, rng)[: given.pairs] if given.data else drawn_pairs(given.pairs, rng)
    results: dict[str, Any] = {"pairs": len(pairs), "size": SIZE, "micro": MICRO, "tokens": given.tokens}
    for layout, share in (("flat", 0.0), ("tree", 0.9)):
        scoring.TREE_SHARE = share
        for order in ("random", "length"):
            for budget in (None, given.tokens):
                plan, steps = MicroBatches(MICRO, budget, (model,)), epoch(pairs, order)
                of_steps = [[plan.cells(whole([step[i] for i in part])) for part in plan.of(step)] for step in steps]
                cells = [size for of_step in of_steps for size in of_step]
                heaviest = of_steps.index(max(of_steps, key=max))
                run = [heaviest, *range(0, len(steps), max(1, len(steps) // (given.steps - 1)))][: given.steps]
                tokens = sum(read_tokens(step) for step in steps)
                ours = f"{layout}, {order} order, {'8 pairs' if budget is None else f'{budget} cells'}"
                results[ours] = {
                    "cells_over_tokens": round(sum(cells) / tokens, 3),
                    "micro_batches_a_step": round(len(cells) / len(steps), 2),
                    "largest_cells": max(cells),
                    **steps_of(model, [steps[number] for number in run], plan),
                }
                print(ours, results[ours], flush=True)
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
