"""A DPO step's forward and backward pass in both layouts, in turn, so that their ratio survives a noisy machine.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/scoring_speed.py [--steps 7] [--out FILE.json]

"plain" is what a straightforward scorer does: a padded row a response with a copy of its prompt, the model's own
logits at every position from the shortest prompt's end, log-softmax over them. "flat" and "tree" are preflab's layouts
with the head on response positions. CPU seconds of the process a step, median.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from preflab.data.encode import Tree
from preflab.data.pack import Packed, pack, readings
from preflab.losses import dpo, masked_sum, token_logprobs
from preflab.models import scoring


@dataclass(frozen=True)
class Case:
    """A model's size and the lengths of its pairs."""

    layers: int
    width: int
    heads: int
    vocabulary: int
    pairs: int
    prompt: tuple[int, int]
    """Shortest and longest, in tokens."""
    response: tuple[int, int]


CASES = {
    "reviews": Case(layers=3, width=128, heads=4, vocabulary=500, pairs=64, prompt=(6, 10), response=(10, 30)),
    "gpt2-small": Case(
        layers=12, width=768, heads=12, vocabulary=50257, pairs=4, prompt=(100, 300), response=(20, 150)
    ),
}


def model_of(case: Case) -> Any:
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=case.vocabulary, n_positions=512, n_embd=case.width, n_layer=case.layers, n_head=case.heads,
        activation_function="gelu_pytorch_tanh", bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config).eval()


def pairs_of(case: Case, rng: Random) -> list[Tree]:
    def ids(lengths: tuple[int, int]) -> tuple[int, ...]:
        return tuple(rng.randrange(case.vocabulary) for _ in range(rng.randint(*lengths)))

    return [Tree("pair", ids(case.prompt), (ids(case.response), ids(case.response))) for _ in range(case.pairs)]


def plain_logprobs(model: Any, batch: Packed) -> torch.Tensor:
    first = int(batch.starts.min()) - 1
    kept = torch.arange(first, batch.token_ids.shape[1] - 1)
    logits = model(input_ids=batch.token_ids, use_cache=False, logits_to_keep=kept).logits
    steps = torch.arange(batch.mask.shape[1])
    index = (batch.starts.unsqueeze(1) - 1 - first + steps).clamp(max=logits.shape[1] - 1)
    logits = logits.gather(1, index.unsqueeze(-1).expand(-1, -1, logits.shape[-1]))
    return token_logprobs(logits, batch.response_ids).masked_fill(~batch.mask, 0.0)


def seconds(model: Any, batch: Packed, logprobs: Callable[[Any, Packed], torch.Tensor]) -> float:
    """Of one forward and backward pass."""
    model.zero_grad()
    begin = time.process_time()
    logprob = masked_sum(logprobs(model, batch), batch.mask)
    dpo(*logprob.view(-1, 2).unbind(1), beta=0.1).mean().backward()
    return time.process_time() - begin


def measured(case: Case, steps: int) -> dict[str, Any]:
    model, rng = model_of(case), Random(0)
    ways: dict[str, tuple[float, Callable[[Any, Packed], torch.Tensor]]] = {
        "plain": (0.0, plain_logprobs),
        "flat": (0.0, scoring.response_logprobs),
        "tree": (100.0, scoring.response_logprobs),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    shares = []
    for step in range(steps + 1):
        batch = pack(pairs_of(case, rng))
        copied, shared = readings(batch)
        shares.append(shared.cells / copied.cells)
        for name, (share, logprobs) in ways.items():
            scoring.TREE_SHARE = share
            taken = seconds(model, batch, logprobs)
            if step:  # the first warms up
                found[name].append(taken)
    medians = {name: statistics.median(values) for name, values in found.items()}
    return {
        "cells_tree_over_flat": round(statistics.median(shares), 3),
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "spread": {name: [round(min(v), 4), round(max(v), 4)] for name, v in found.items()},
        "plain_over_flat": round(medians["plain"] / medians["flat"], 2),
        "plain_over_tree": round(medians["plain"] / medians["tree"], 2),
        "flat_over_tree": round(medians["flat"] / medians["tree"], 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {name: measured(CASES[name], given.steps) for name in given.cases}
    print(json.dumps(results, indent=1))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
