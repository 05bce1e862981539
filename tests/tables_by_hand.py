"""Small tables whose rows can all be listed, and a model of them: what every row's probability is, worked out in
float64 by a loop over tokens."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
import transformers
from scipy.stats import chisquare

from preflab.tables.column import Column, Numbers
from preflab.tables.conditions import codes_of
from preflab.tables.encoding import Encoding, legal_of

COLOUR = Column("colour", "category", levels=("red", "green", "blue"))
SIZE = Column("size", "integer", levels=("", "-9"), missing=("",), numbers=Numbers(10, 4, (0, 1, 2, 3)))
TASTE = Column("taste", "boolean", levels=("no", "yes"))
COLUMNS = (COLOUR, SIZE, TASTE)
ROWS = list(product(*(codes_of(legal_of(column)) for column in COLUMNS)))
"""All rows of these columns, as codes."""

Row = tuple[int, ...]


def gpt2(encoding: Encoding, *, seed: int = 0, spread: float = 1.0) -> Any:
    """A tiny GPT-2 with random weights, far from uniform, that can read the encoding's rows."""
    config = transformers.GPT2Config(
        vocab_size=encoding.vocabulary, n_positions=encoding.longest + 1, n_embd=16, n_layer=1, n_head=2,
        bos_token_id=0, eos_token_id=encoding.end_id, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    model: Any = transformers.GPT2LMHeadModel(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.copy_(spread * torch.randn(weight.shape, generator=generator) / math.sqrt(weight.shape[-1]))
    return model.eval()


def chances(model: Any, encoding: Encoding, given: Mapping[int, int] | None = None) -> dict[Row, float]:
    """The probability of every row that has the given cells, under the encoding's mask: a product of softmaxes over
    what is allowed."""
    wide = copy.deepcopy(model).double()
    mask = encoding.mask()
    prompt = encoding.prompt(given or {})
    found: dict[Row, float] = {}

    def go(tokens: tuple[int, ...], state: Any, nats: float) -> None:
        with torch.no_grad():
            logits = wide(torch.tensor([prompt + tokens])).logits[0, -1]
        allowed = mask.allowed([state])[0]
        logprobs = logits.masked_fill(~allowed, -math.inf).log_softmax(-1)
        for token in allowed.nonzero().flatten().tolist():
            after = nats + float(logprobs[token])
            if token == encoding.end_id:
                found[tuple(encoding.row(prompt + tokens).tolist())] = math.exp(after)
            else:
                go((*tokens, token), mask.advance(state, token), after)

    go((), mask.start(prompt), 0.0)
    assert math.isclose(math.fsum(found.values()), 1.0, abs_tol=1e-9)
    return found


def under(found: Mapping[Row, float], meets: Any) -> dict[Row, float]:
    """The distribution of the rows that meet a condition."""
    kept = {row: p for row, p in found.items() if meets(row)}
    whole = math.fsum(kept.values())
    return {row: p / whole for row, p in kept.items()}


def p_value(codes: Any, expected: Mapping[Row, float]) -> float:
    """χ², rare rows taken together until 5 are expected."""
    seen = Counter(tuple(row) for row in codes.tolist())
    assert set(seen) <= set(expected)
    classes = [[0.0, 0.0]]
    for row, p in sorted(expected.items(), key=lambda item: item[1]):
        if classes[-1][1] >= 5:
            classes.append([0.0, 0.0])
        classes[-1][0] += seen[row]
        classes[-1][1] += p * len(codes)
    if classes[-1][1] < 5 and len(classes) > 1:
        last = classes.pop()
        classes[-1] = [a + b for a, b in zip(classes[-1], last, strict=True)]
    observed, wanted = zip(*classes, strict=True)
    assert len(classes) > 2
    return float(chisquare(observed, wanted).pvalue)


def distance(codes: Any, expected: Mapping[Row, float]) -> float:
    """Total variation between rows and a distribution."""
    rows = [tuple(row) for row in np.asarray(codes).tolist()]
    share = {row: rows.count(row) / len(rows) for row in set(rows)}
    return sum(abs(share.get(row, 0.0) - expected.get(row, 0.0)) for row in {*share, *expected}) / 2
