"""How the cost of sampling grows with batch, lengths, responses and model: measured, next to two limits.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/rollout_growth.py            ten minutes on one core
    python benchmarks/rollout_growth.py --picture                                 the picture from the JSON

Each point is one call of `preflab.rollouts.sampler.sample` on a GPT-2 with random weights whose responses never end:
CPU seconds of the process a token, median of the calls after a warm-up. One quantity varies, the others stay at their
base. The limits are what a program could not go below:

    products    the matrix products of the prompts (each prompt once) and of each step, every product at the speed
                that this shape of it reaches alone, as a linear layer makes it (`gemm.py`)
    memory      the bytes that each step reads, all weights and the keys and values of all rows so far (once where
                responses share a prompt), at the speed at which memory is copied; a copy reads and writes

Weights that stay in the processor's cache are read faster than that: small models can go below the second.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers

from gemm import Product
from growth import growth_picture
from peers.work import Work, prompts_of
from preflab.report.svg import Picture
from preflab.rollouts.sampler import sample
from rollout_models import gpt2
from turns import HERE, commit, machine

OUT = HERE / "results" / "rollout_growth.json"
PICTURE = HERE.parent / "docs" / "measured" / "rollout-growth.svg"
LAYERS = {64: 2, 128: 4, 256: 4, 512: 8, 768: 12}
"""Blocks of a model by its width; a head has 32 channels, from width 512 on 64."""
VOCABULARY = 4000
BYTES = 4
"""Of a float32."""
COPIED_BYTES = 2**28


@dataclass(frozen=True)
class Case:
    """What one call samples."""

    batch: int = 64
    """Responses, all at once."""
    prompt: int = 64
    """Tokens."""
    response: int = 64
    """Tokens."""
    responses: int = 1
    """To each prompt."""
    width: int = 256
    """Of the model; its blocks follow."""

    @property
    def weights_of_blocks(self) -> int:
        return 12 * self.width**2 * LAYERS[self.width]


AXES: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 64, 128, 256),
    "prompt": (16, 64, 128, 256, 512, 896),
    "response": (16, 32, 64, 128, 256, 512),
    "responses": (1, 2, 4, 8, 16, 64),
    "width": (64, 128, 256, 512, 768),
}
TITLES = {
    "batch": "responses at once",
    "prompt": "prompt tokens",
    "response": "tokens of a response",
    "responses": "responses to a prompt, of 64",
    "width": "width of the model",
}


@dataclass(frozen=True)
class Point:
    """CPU seconds a token."""

    value: int
    seconds: float
    low: float
    high: float
    products_seconds: float
    memory_seconds: float


@cache
def product_seconds(rows: int, inner: int, columns: int) -> float:
    """What one product of this shape takes."""
    rate = Product(rows, inner, columns).rate(torch.float32, seconds=0.1)
    return 2 * rows * inner * columns / rate


def products_seconds(case: Case) -> float:
    """The products of a call: of its prompts, then step by step."""
    width, prompts = case.width, case.batch // case.responses

    def blocks(rows: int) -> float:
        shapes = ((width, 3 * width), (width, width), (width, 4 * width), (4 * width, width))
        return LAYERS[width] * sum(product_seconds(rows, *shape) for shape in shapes)

    def head(rows: int) -> float:
        return product_seconds(rows, width, VOCABULARY)

    first = blocks(prompts * case.prompt) + head(prompts)
    return first + (case.response - 1) * (blocks(case.batch) + head(case.batch))


def bytes_read(case: Case) -> float:
    """By the steps after the prompts: weights, and keys and values so far."""
    weights = case.weights_of_blocks + VOCABULARY * case.width
    of_cell = 2 * case.width * LAYERS[case.width]
    prompts = case.batch // case.responses * case.prompt
    steps = range(1, case.response)
    return BYTES * sum(weights + of_cell * (prompts + case.batch * done) for done in steps)


def copied_bytes_per_second() -> float:
    """Bytes read and written a second where memory is copied."""
    source, target = torch.ones(2, COPIED_BYTES // 4).unbind()
    taken = []
    for _ in range(6):
        begin = time.process_time()
        target.copy_(source)
        taken.append(time.process_time() - begin)
    return 2 * COPIED_BYTES / statistics.median(taken[1:])


def measured(case: Case, value: int, calls: int, bandwidth: float) -> Point:
    """Calls on other prompts each time, after a warm-up."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        heads = max(1, case.width // (64 if case.width >= 512 else 32))
        model = gpt2(LAYERS[case.width], case.width, heads, VOCABULARY).eval()
    work = Work("gpt2", prompts=case.batch // case.responses, prompt_tokens=case.prompt)
    tokens = case.batch * case.response
    taken = []
    for call in range(calls + 1):
        prompts = prompts_of(work, call, VOCABULARY)
        begin = time.process_time()
        responses = sample(
            model,
            prompts,
            keys=[f"prompt {number}" for number in range(len(prompts))],
            end_id=VOCABULARY,  # which no token is
            max_new_tokens=case.response,
            seed=call,
            samples=case.responses,
            batch_size=case.batch,
        )
        if call:
            taken.append((time.process_time() - begin) / tokens)
        assert sum(len(response.tokens) for response in responses) == tokens
    return Point(
        value=value,
        seconds=statistics.median(taken),
        low=min(taken),
        high=max(taken),
        products_seconds=products_seconds(case) / tokens,
        memory_seconds=bytes_read(case) / bandwidth / tokens,
    )


def points(name: str, calls: int, most: int | None, bandwidth: float) -> Iterator[Point]:
    """Along one axis."""
    for value in AXES[name]:
        if most is None or value <= most:
            point = measured(replace(Case(), **{name: value}), value, calls, bandwidth)
            print(
                f"{name} {value}: {1 / point.seconds:,.0f} tokens/s; products alone {1 / point.products_seconds:,.0f}, "
                f"memory alone {1 / point.memory_seconds:,.0f}",
                flush=True,
            )
            yield point


def picture(results: dict[str, Any]) -> Picture:
    """A panel an axis: tokens a CPU second as measured, and what each limit would let through."""
    return growth_picture(
        "rollout-growth",
        "Sampled tokens a CPU second, measured and at two limits",
        results["axes"],
        {
            "measured": lambda row: 1 / row["seconds"],
            "matrix products alone": lambda row: 1 / row["products_seconds"],
            "memory alone": lambda row: 1 / row["memory_seconds"],
        },
        titles=TITLES,
        heights="sampled tokens a CPU second",
        tick=str,
        height="{:,.0f}".format,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=3, help="after the warm-up")
    parser.add_argument("--axes", nargs="+", choices=list(AXES), default=list(AXES))
    parser.add_argument("--most", type=int, help="leave larger values out: a quick look")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--figure", type=Path, default=PICTURE)
    parser.add_argument("--picture", action="store_true", help="draw what --out holds, measure nothing")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.picture:
        bandwidth = copied_bytes_per_second()
        results = {
            "commit": commit(),
            "machine": machine(),
            "versions": {module.__name__: module.__version__ for module in (torch, transformers)},
            "vocabulary": VOCABULARY,
            "layers": LAYERS,
            "base": asdict(Case()),
            "copied_bytes_per_second": bandwidth,
            "axes": {
                name: [asdict(point) for point in points(name, given.calls, given.most, bandwidth)]
                for name in given.axes
            },
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    drawn = picture(json.loads(given.out.read_text(encoding="utf-8")))
    given.figure.parent.mkdir(parents=True, exist_ok=True)
    given.figure.write_text(drawn.file, encoding="utf-8")


if __name__ == "__main__":
    main()
