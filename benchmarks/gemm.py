"""What one core can do at most: operations a second of large products of matrices, in CPU time of the process.

    OMP_NUM_THREADS=1 taskset -c 0 python benchmarks/gemm.py

The probe of `benchmarks/dpo_speed.py`, too: there it takes turns with those who train.
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import dataclass

import torch

from peers.gate import Gate


@dataclass(frozen=True)
class Product:
    """[rows, inner] × [inner, columns], as `x @ w.T` where the weight is stored the way a linear layer stores it."""

    rows: int
    inner: int
    columns: int

    def rate(self, dtype: torch.dtype, seconds: float = 0.6) -> float:
        """Operations a second: the median over products that take so long together, at least three."""
        left, right = torch.ones(self.rows, self.inner, dtype=dtype), torch.ones(self.columns, self.inner, dtype=dtype)
        taken: list[float] = []
        while len(taken) < 4 or sum(taken) < seconds:
            begin = time.process_time()
            torch.nn.functional.linear(left, right)
            taken.append(time.process_time() - begin)
        return 2 * self.rows * self.inner * self.columns / statistics.median(taken[1:])


PRODUCTS = {
    "large": Product(4096, 4096, 4096),
    "mlp": Product(1024, 768, 3072),
    "head": Product(512, 768, 50257),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def rates(names: tuple[str, ...] = tuple(PRODUCTS)) -> dict[str, float]:
    """Operations a second by dtype and product; "fp32 large" is the ceiling that shares are of."""
    return {f"{name} {product}": PRODUCTS[product].rate(dtype) for product in names for name, dtype in DTYPES.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", action="store_true", help="a measurement a turn, for benchmarks/dpo_speed.py")
    parser.add_argument("--products", nargs="+", choices=list(PRODUCTS), default=list(PRODUCTS))
    given = parser.parse_args()
    torch.set_num_threads(1)
    if not given.worker:
        for name, rate in rates(tuple(given.products)).items():
            print(f"{name:<12}{rate / 1e9:8.1f} GFLOP/s")
        return
    gate = Gate()
    gate.turn({})
    while True:
        gate.turn({"rates": rates(tuple(given.products))})


if __name__ == "__main__":
    main()
