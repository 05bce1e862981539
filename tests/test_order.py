"""Which examples a step sees, where those of similar length share one. Random order: `test_training.py`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from random import Random

import pytest
import torch

from enumerable import letters_policy, run_folder
from preflab.config.preference import DPO
from preflab.config.training import Batch, Optimizer
from preflab.errors import Interrupted
from preflab.models.load import Policy
from preflab.training.order import WINDOW, batch_at
from preflab.training.preference import train_preference
from ragged import PAIRS


def lengths_of(n: int) -> list[int]:
    """Few short, many middling, some very long, as texts are."""
    rng = Random(0)
    return [1 + int(rng.lognormvariate(5.0, 0.7)) for _ in range(n)]


def steps(examples: int, size: int, epochs: int, *, seed: int = 5, lengths: list[int] | None = None) -> list[list[int]]:
    assert examples * epochs % size == 0
    return [
        batch_at(step, examples=examples, batch_size=size, seed=seed, lengths=lengths)
        for step in range(examples * epochs // size)
    ]


def padded(batches: list[list[int]], lengths: list[int]) -> float:
    """Cells over tokens: 1 is no padding."""
    cells = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return cells / sum(lengths[i] for batch in batches for i in batch)


@pytest.mark.parametrize(
    ("examples", "size"), [(7, 3), (10, 4), (5, 5), (3, 8), (1, 4), (13, 1), (40, 4), (101, 3), (200, 2)]
)
def test_every_epoch_sees_each_example_exactly_once(examples: int, size: int) -> None:
    batches = steps(examples, size, 3 * size, lengths=lengths_of(examples))
    stream = [i for batch in batches for i in batch]
    assert all(len(batch) == size for batch in batches)
    epochs = [stream[begin : begin + examples] for begin in range(0, len(stream), examples)]
    assert all(sorted(epoch) == list(range(examples)) for epoch in epochs)


@pytest.mark.parametrize(("examples", "size"), [(64, 8), (67, 8), (2400, 8)])
def test_batches_differ_between_epochs_and_seeds(examples: int, size: int) -> None:
    """As sets: the same batches in another order would teach the same comparisons again."""
    lengths = lengths_of(examples)

    def sets(seed: int, first: int) -> set[frozenset[int]]:
        of_epoch = range(first, first + examples // size)
        return {
            frozenset(batch_at(step, examples=examples, batch_size=size, seed=seed, lengths=lengths))
            for step in of_epoch
        }

    per_epoch = examples // size
    first, second, other = sets(5, 0), sets(5, per_epoch + 1), sets(6, 0)
    assert len(first & second) <= 0.1 * len(first)
    assert len(first & other) <= 0.1 * len(first)
    assert first == sets(5, 0)


@pytest.mark.parametrize(("examples", "worst"), [(64 * 8, 1.1), (64 * 8 + 3, 1.1), (12 * 8, 1.4)])
def test_padding_falls_in_every_epoch(examples: int, worst: float) -> None:
    """Also where batches straddle epochs: the whole ones stay alike. Of few batches only half are sorted together."""
    lengths = lengths_of(examples)
    assert padded(steps(examples, 8, 8), lengths) > 1.7
    batches = steps(examples, 8, 8, lengths=lengths)
    part = len(batches) // 4
    for begin in range(0, len(batches), part):
        assert padded(batches[begin : begin + part], lengths) < worst


def test_steps_come_in_no_order_of_length() -> None:
    lengths = lengths_of(64 * 8)
    means = torch.tensor([[float(lengths[i]) for i in batch] for batch in steps(512, 8, 1, lengths=lengths)]).mean(1)
    places = torch.arange(64.0)
    assert abs(float(torch.corrcoef(torch.stack([places, means]))[0, 1])) < 0.3
    assert len(means) == 2 * WINDOW


def train(folder: Path, batch: Batch, *, stop_at: int | None = None) -> Policy:
    policy = letters_policy(spread=4.0)
    settings = DPO(epochs=3.5, batch=batch, evaluations=4, optimizer=Optimizer(learning_rate=0.01, warmup_steps=0))

    def evaluate(step: int) -> None:
        if step == stop_at:
            raise Interrupted("enough", 2)

    train_preference(policy, PAIRS[:7], settings, run_folder(folder), seed=0, log_every=1, evaluate=evaluate)
    return policy


def test_a_resumed_run_is_the_whole_run(tmp_path: Path) -> None:
    batch = Batch(size=2, tokens=14, order="length")
    whole = train(tmp_path / "whole", batch)
    with pytest.raises(Interrupted):
        train(tmp_path / "stopped", batch, stop_at=6)
    resumed = train(tmp_path / "stopped", batch)
    weights = resumed.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in whole.model.state_dict().items())
    other = train(tmp_path / "random", dataclasses.replace(batch, order="random")).model.state_dict()
    assert not all(torch.equal(value, weights[name]) for name, value in other.items())
