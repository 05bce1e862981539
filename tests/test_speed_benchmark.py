"""What the speed benchmark divides by, and what it trains on."""

from __future__ import annotations

import sys
from pathlib import Path
from random import Random

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from peers import data  # noqa: E402

sys.path.remove(str(BENCHMARKS))


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
