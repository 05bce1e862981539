"""A pretrained model that goes on learning, on rows as sentences."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from preflab.config.commands import Base
from preflab.config.row_model import RowModel
from preflab.models.base import new_model, new_tokenizer
from preflab.rollouts.sampler import sample
from preflab.runs import RunFolder
from preflab.tables.column import Column, Numbers
from preflab.tables.fitting import fit_rows
from preflab.tables.sentence import Sentence
from preflab.tables.sentence_model import SentenceWriter

COLUMNS = (
    Column("risk", "category", levels=("Bad", "Good")),
    Column("score", "integer", levels=("-9",), numbers=Numbers(30, 40, tuple(range(0, 40, 4)))),
)


def rows(count: int) -> np.ndarray:
    """Bad scores are below 50, good ones not."""
    generator = np.random.default_rng(0)
    good = generator.random(count) < 0.4
    return np.stack([np.where(good, -2, -1), generator.integers(0, 5, count) * 4 + 20 * good], 1)


def written(tmp_path: Path, dropout: float = 0.0, *, any_order: bool = False) -> tuple[SentenceWriter, RowModel]:
    tokenizer = new_tokenizer(["risk is Bad, score is 34", "risk is Good, score is 58"] * 20, vocabulary=330)
    policy = new_model(tokenizer, Base(layers=1, width=32, heads=2), positions=64, seed=0)
    settings = RowModel(dropout=dropout, epochs=25, batch=32, learning_rate=1e-2, averaging=0.9)
    return SentenceWriter(policy, Sentence(COLUMNS, tokenizer, any_order=any_order), settings), settings


def test_its_loss_is_that_of_a_language_model_over_all_tokens(tmp_path: Path) -> None:
    writer, _ = written(tmp_path)
    codes = rows(20)
    writer.eval()
    told = torch.cat(list(writer.shares(codes, seed=0, learning=False)))
    for row, nats in zip(codes.tolist(), told.tolist(), strict=True):
        ids = torch.tensor([[*writer.encoding.prompt(), *writer.encoding.response(row)]])
        labels = ids.clone()
        labels[0, : len(writer.encoding.prompt())] = -100
        count = int((labels != -100).sum())
        assert nats == pytest.approx(float(writer.model(input_ids=ids, labels=labels).loss.detach()) * count, rel=1e-4)


@pytest.mark.parametrize("any_order", [False, True])
def test_a_fit_learns_the_rule_of_the_rows(tmp_path: Path, any_order: bool) -> None:
    writer, settings = written(tmp_path, any_order=any_order)
    (tmp_path / "run").mkdir()
    fit_rows(writer, rows(400), settings, RunFolder(tmp_path / "run"), seed=0)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model").eval()
    encoding = writer.encoding
    responses = sample(
        model, [encoding.prompt()] * 60, keys=[str(n) for n in range(60)], end_id=encoding.end_id,
        max_new_tokens=encoding.longest, seed=0, mask=encoding.mask(),
    )  # fmt: skip
    found = np.stack([encoding.row((*response.prompt, *response.tokens)) for response in responses])
    right = (found[:, 0] == -2) == (found[:, 1] >= 20)
    assert right.mean() > 0.85
    assert 0.15 < (found[:, 0] == -2).mean() < 0.65


def test_dropout_is_drawn_from_the_seed_and_off_where_nothing_is_learned(tmp_path: Path) -> None:
    writer, _ = written(tmp_path, dropout=0.3)
    codes = rows(8)

    def nats(seed: int) -> list[float]:
        return torch.cat(list(writer.shares(codes, seed=seed, learning=True))).tolist()

    writer.train()
    assert nats(0) == nats(0) != nats(1)
    writer.eval()
    assert nats(0) == nats(1)
