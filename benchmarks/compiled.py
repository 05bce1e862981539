"""Does torch.compile make a DPO step faster? Forward and backward pass as they are and compiled, in turn.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/compiled.py [--precision bf16] [--steps 5] [--out FILE.json]

GPT-2 small with random weights, 4 pairs a step in the tree layout, lengths as in `scoring_speed.py`. "mlp" compiles
each block's MLP, which has no data-dependent shape but the number of cells; "block" whole blocks, whose attention picks
segments by each batch's own indices. Both with dynamic shapes, so that a new batch need not be a new compilation;
compilations are counted. CPU seconds of the process a step, after three steps of warm-up.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch._dynamo.utils import counters

from preflab.data.pack import pack
from preflab.models.freezing import transformer_blocks
from preflab.models.precision import work_in
from preflab.models.scoring import response_logprobs
from scoring_speed import CASES, model_of, pairs_of, seconds

WARM_UP = 3
CASE = CASES["gpt2-small"]


def made(way: str, precision: Any) -> Any:
    """The same model each time, compiled in part."""
    model = work_in(model_of(CASE), precision)
    response_logprobs(model, pack(pairs_of(CASE, Random(1))))  # tried on small trees, as it is
    for block in transformer_blocks(model):
        match way:
            case "mlp":
                block.mlp.compile(dynamic=True)
            case "block":
                block.compile(dynamic=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--precision", choices=["fp32", "bf16-autocast", "bf16"], default="fp32")
    parser.add_argument("--ways", nargs="+", choices=["mlp", "block"], default=["mlp", "block"])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    models = {way: made(way, given.precision) for way in ("as it is", *given.ways)}
    found: dict[str, list[float]] = {way: [] for way in models}
    compiled = dict.fromkeys(models, 0)
    rng = Random(0)
    for step in range(WARM_UP + given.steps):
        batch = pack(pairs_of(CASE, rng))
        for way, model in models.items():
            before = counters["stats"]["unique_graphs"]
            taken = seconds(model, batch, response_logprobs)
            if step >= WARM_UP:
                found[way].append(taken)
                compiled[way] += counters["stats"]["unique_graphs"] - before
    results = {
        "precision": given.precision,
        "seconds": {way: round(statistics.median(values), 3) for way, values in found.items()},
        "spread": {way: [round(min(values), 3), round(max(values), 3)] for way, values in found.items()},
        "compilations_after_warm_up": compiled,
    }
    print(json.dumps(results, indent=1))
    if given.out:
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
