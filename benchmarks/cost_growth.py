"""How the cost of a step grows with lengths, responses, vocabulary and batch: measured, next to what is counted.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/cost_growth.py               ten minutes on one core
    python benchmarks/cost_growth.py --picture                                    the picture from the JSON

Each point is a step of a small GPT-2 (4 blocks of width 256) on synthetic trees: forward, backward, clipping, AdamW.
Its loss is the mean of the responses' log-probabilities, in turn with the sign of a chosen and of a rejected response;
with two responses this is the work of a DPO step whose reference is cached. CPU seconds of the process, median of the
steps after a warm-up, with the optimiser apart. Operations are those of `src/preflab/models/flops.py`: divided by
what large products of matrices reach in the same run, they are the time that no program could go below. One quantity
varies at a time, the others stay at their base.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
import transformers

from gemm import rates
from growth import growth_picture
from preflab.config.training import Optimizer
from preflab.data.encode import Tree
from preflab.data.pack import pack, readings
from preflab.losses import masked_sum
from preflab.models.flops import flops
from preflab.models.scoring import reading, response_logprobs
from preflab.report.svg import Picture
from preflab.training.optimizer import Stepper
from turns import commit, machine

OUT = Path(__file__).parent / "results" / "cost_growth.json"
PICTURE = Path(__file__).parent.parent / "docs" / "measured" / "cost-growth.svg"
SHAPE = {"layers": 4, "width": 256, "vocabulary": 8192}
PRODUCT = "fp32 large"


@dataclass(frozen=True)
class Case:
    """The size of a step."""

    prompt: int = 128
    """Tokens."""
    response: int = 64
    """Tokens, end token included."""
    responses: int = 2
    """To each prompt."""
    vocabulary: int = SHAPE["vocabulary"]
    batch: int = 8
    """Prompts."""


AXES: dict[str, tuple[int, ...]] = {
    "prompt": (64, 128, 256, 512, 1024, 2048),
    "response": (16, 32, 64, 128, 256, 512),
    "responses": (1, 2, 4, 8, 16),
    "vocabulary": (500, 2000, 8192, 32000, 64000, 150000),
    "batch": (1, 2, 4, 8, 16, 32),
}
TITLES = {
    "prompt": "prompt tokens",
    "response": "tokens of a response",
    "responses": "responses a prompt",
    "vocabulary": "vocabulary",
    "batch": "prompts a step",
}


@dataclass(frozen=True)
class Point:
    """What one step took, a prompt."""

    value: int
    seconds: float
    """CPU time of the whole step: the median."""
    low: float
    high: float
    optimizer_seconds: float
    """Of it in clipping and AdamW, which don't grow with the batch."""
    flops: float
    layout: str
    """tree, or flat where the tree would have more than nine tenths of its cells."""


def trees_of(case: Case) -> list[Tree]:
    rng = Random(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(case.vocabulary) for _ in range(length))

    return [
        Tree(f"tree:{number}", ids(case.prompt), tuple(ids(case.response) for _ in range(case.responses)))
        for number in range(case.batch)
    ]


def model_of(case: Case) -> Any:
    config = transformers.GPT2Config(
        vocab_size=case.vocabulary, n_positions=2560, n_embd=SHAPE["width"], n_layer=SHAPE["layers"], n_head=4,
        activation_function="gelu_pytorch_tanh", bos_token_id=None, eos_token_id=0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config).eval()


def measured(case: Case, value: int, steps: int) -> Point:
    """Steps on one batch, after a warm-up."""
    model, trees = model_of(case), trees_of(case)
    stepper = Stepper(model, Optimizer(warmup_steps=0), steps + 1)
    signs = torch.tensor([1.0, -1.0]).repeat(case.batch * case.responses)[: case.batch * case.responses]
    whole, last = [], []
    for step in range(steps + 1):
        begin = time.process_time()
        batch = pack(trees)
        loss = (signs * masked_sum(response_logprobs(model, batch), batch.mask)).mean()
        loss.backward()
        middle = time.process_time()
        stepper.step(step, f"step {step}")
        end = time.process_time()
        if step:
            whole.append((end - begin) / case.batch)
            last.append((end - middle) / case.batch)
    return Point(
        value=value,
        seconds=statistics.median(whole),
        low=min(whole),
        high=max(whole),
        optimizer_seconds=statistics.median(last),
        flops=flops(model, reading(model, trees), backward=True) / case.batch,
        layout="tree" if reading(model, trees) == readings(trees)[1] else "flat",
    )


def points(name: str, steps: int, most: int | None) -> Iterator[Point]:
    """Along one axis."""
    for value in AXES[name]:
        if most is None or value <= most:
            point = measured(replace(Case(), **{name: value}), value, steps)
            took = f"{point.seconds:.3f} s a prompt, {point.flops / 1e9:.1f} GFLOP, {point.layout}"
            print(f"{name} {value}: {took}", flush=True)
            yield point


def picture(results: dict[str, Any]) -> Picture:
    """A panel an axis: seconds a prompt as measured, and what the counted operations take at the ceiling."""
    ceiling = results["ceiling_flops_per_second"]
    return growth_picture(
        "cost-growth",
        "CPU seconds a prompt of a training step, measured and counted",
        results["axes"],
        {
            "measured": lambda row: row["seconds"],
            "counted operations at the ceiling": lambda row: row["flops"] / ceiling,
            "of it measured in the optimiser": lambda row: row["optimizer_seconds"],
        },
        titles=TITLES,
        heights="CPU seconds a prompt",
        tick=_short,
        height="{:g}".format,
    )


def _short(value: int) -> str:
    """64000 → 64k."""
    return f"{value / 1000:g}k" if value >= 1000 and value % 1000 == 0 else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=3, help="after the warm-up")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--most", type=int, help="leave larger values out: a quick look")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--figure", type=Path, default=PICTURE)
    parser.add_argument("--picture", action="store_true", help="draw what --out holds, measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.picture:
        before = rates(("large",))[PRODUCT]
        axes = {name: [asdict(point) for point in points(name, given.steps, given.most)] for name in given.axes}
        ceiling = statistics.mean((before, rates(("large",))[PRODUCT]))
        results = {
            "commit": commit(),
            "machine": machine(),
            "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
            "model": SHAPE,
            "base": asdict(Case()),
            "ceiling_flops_per_second": ceiling,
            "axes": axes,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    drawn = picture(json.loads(given.out.read_text(encoding="utf-8")))
    given.figure.parent.mkdir(parents=True, exist_ok=True)
    given.figure.write_text(drawn.file, encoding="utf-8")


if __name__ == "__main__":
    main()
