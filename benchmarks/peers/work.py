"""What both sides of `benchmarks/rollout_speed.py` are asked for: how much, on which prompts, for which reward.

Standard library alone, as each side imports it in its own environment.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from random import Random

END, PAD = 0, 1
"""Token ids; the others are words."""
LEARNING_RATE = 1e-5


@dataclass(frozen=True)
class Work:
    """What one turn does: sample, or an update of a trainer that samples."""

    shape: str
    """Of the model: a folder that `rollout_models.py` writes."""
    method: str = "sample"
    """sample, grpo or ppo."""
    prompts: int = 64
    samples: int = 1
    """Responses to each prompt."""
    prompt_tokens: int = 32
    new_tokens: int = 64
    """The most a response can have; each has as many where the model doesn't end it."""
    ends: bool = False
    """Whether the end token ends a response; else it is a token like others, or never comes."""
    batch: int = 64
    """Responses sampled at once."""
    beta: float = 0.0
    epochs: int = 1

    @property
    def responses(self) -> int:
        return self.prompts * self.samples

    def json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of_json(cls, text: str) -> Work:
        return cls(**json.loads(text))


def prompts_of(work: Work, turn: int, vocabulary: int) -> list[tuple[int, ...]]:
    """Random words, the same for everyone, other ones each turn."""
    rng = Random(f"{work.json()} {turn}")
    return [tuple(rng.randrange(2, vocabulary) for _ in range(work.prompt_tokens)) for _ in range(work.prompts)]


def text_of(ids: Sequence[int]) -> str:
    """What the word tokenizer reads as these ids."""
    return " ".join(f"w{token}" for token in ids)


def odd_share(ids: Sequence[int]) -> float:
    """The reward: the share of odd token ids in a response. Costs nothing."""
    return sum(token % 2 for token in ids) / max(1, len(ids))


def sizes(responses: Sequence[Sequence[int]]) -> dict[str, int]:
    """What a turn made: tokens, end tokens included, and the longest response."""
    lengths = [len(response) for response in responses]
    return {"tokens": sum(lengths), "longest": max(lengths)}
