"""A tiny GPT-2 with its own tokenizer, and small data files: what tests of training and commands run on."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

from preflab.config.commands import Base
from preflab.data.reviews import generate_reviews
from preflab.models.base import new_model, new_tokenizer
from preflab.models.load import Policy, save_model


def tiny_texts(n: int = 200) -> list[str]:
    """Film reviews of the built-in grammar."""
    return generate_reviews(n, seed=0)


def tiny_policy(positions: int = 96, seed: int = 0, **base_settings: Any) -> Policy:
    """A GPT-2 with random weights: 2 blocks of width 32 with 2 heads, 400 tokens, where `base_settings` says nothing
    else."""
    settings = Base(**({"vocabulary": 400, "layers": 2, "width": 32, "heads": 2} | base_settings))
    # Every policy gets a tokenizer of its own, as loading a model changes it.
    tokenizer = new_tokenizer(_texts(), vocabulary=settings.vocabulary)
    return new_model(tokenizer, settings, positions=positions, seed=seed)


def save_tiny(path: Path, **kw: Any) -> Path:
    """A tiny policy in the Hugging Face format at `path`; `kw` as for `tiny_policy`."""
    save_model(tiny_policy(**kw), path)
    return path


def write_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def tiny_pairs(n: int) -> list[dict[str, str]]:
    """`n` pairs with prompts of their own: the chosen response says good, the rejected one bad."""
    rng = Random(0)
    nouns = ("plot", "cast", "ending", "music", "script", "hero")
    pairs = []
    for number in range(n):
        noun = rng.choice(nouns)
        prompt = f"In film {number} the {noun} was"
        good, bad = rng.choice((" great", " good", " fine")), rng.choice((" awful", " bad", " dull"))
        pairs.append({"prompt": prompt, "chosen": f"{good} and clever.", "rejected": f"{bad} and slow."})
    return pairs


def tiny_prompts(n: int) -> list[dict[str, str]]:
    """The prompts of `tiny_pairs`, alone."""
    return [{"prompt": pair["prompt"]} for pair in tiny_pairs(n)]


def tiny_demonstrations(n: int) -> list[dict[str, str]]:
    """The prompts of `tiny_pairs` with their chosen responses."""
    return [{"prompt": pair["prompt"], "response": pair["chosen"]} for pair in tiny_pairs(n)]


@cache
def _texts() -> tuple[str, ...]:
    return tuple(tiny_texts())
