"""Pairs of every shape for the tiny models of `enumerable.py`: ragged, and not every response ends."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from preflab.data.encode import Tree

# Responses of 1 to 9 tokens, so that a mean of means is far from the mean; 1 is the end token.
RESPONSES = [
    (2, 3, 4, 5, 2, 3, 4, 2, 1),
    (3, 1),
    (4,),
    (5, 2, 2, 1),
    (2, 4),
    (3, 3, 5, 5, 4, 1),
    (1,),
    (5, 3, 1),
]
PAIRS = [Tree(f"p:{i}", (2 + i % 4,) * (1 + i % 3), (RESPONSES[i], RESPONSES[(i + 3) % 8])) for i in range(8)]


def naive_logprob(model: Any, prompt: Sequence[int], response: Sequence[int]) -> Tensor:
    """log π(y|x) in nats, with nothing else in the batch and no padding, summed token by token in float64."""
    logits = model(input_ids=torch.tensor([[*prompt, *response]])).logits[0].double()
    begin = len(prompt) - 1
    return torch.stack([logits[begin + t].log_softmax(-1)[token] for t, token in enumerate(response)]).sum()
