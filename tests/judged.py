"""Small tables to judge: text frames, with what is true of them known by construction."""

from __future__ import annotations

import numpy as np
import pandas as pd

from preflab.tables.judge.typed import Typed, typed


def text(**columns: object) -> pd.DataFrame:
    """A frame of text."""
    return pd.DataFrame({name: [str(cell) for cell in cells] for name, cells in columns.items()})  # type: ignore[attr-defined]


def rule(rows: int, seed: int, *, noise: float = 0.0) -> pd.DataFrame:
    """`answer` is "yes" where x > 50, otherwise "no", but for a share of wrong ones; town and size say nothing."""
    draw = np.random.default_rng(seed)
    x = draw.integers(0, 101, rows)
    wrong = draw.random(rows) < noise
    return text(
        answer=np.where((x > 50) ^ wrong, "yes", "no"),
        x=x,
        town=draw.choice(["Ulm", "Bonn", "Rom"], rows),
        size=draw.normal(0, 1, rows).round(3),
    )


def judged(train: pd.DataFrame, holdout: pd.DataFrame, synthetic: pd.DataFrame, target: str | None = None) -> Typed:
    return typed(train, holdout, synthetic, target)
