"""Sampling from a policy.

Each response has its own stream of uniforms, a function of (seed, prompt key, sample index) alone; a token is the
inverse of the cumulative distribution at the next uniform. So a response does not depend on its batch mates beyond
rounding, and every arm meets the same luck. There is no top-k, top-p or penalty: what is sampled is the policy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from preflab.rollouts.plain import decode
from preflab.rollouts.response import Response
from preflab.seeds import derive

SAMPLED_AT_ONCE = 256
"""How many responses are sampled at once, where no one says otherwise."""


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    *,
    keys: Sequence[str],
    end_id: int,
    max_new_tokens: int,
    seed: int,
    temperature: float = 1.0,
    greedy: bool = False,
    samples: int = 1,
    batch_size: int = SAMPLED_AT_ONCE,
) -> list[Response]:
    """`samples` responses to each prompt, prompt by prompt.

    Args:
        model: a causal language model of transformers, in eval mode.
        prompts: token ids, at least one each.
        keys: one name a prompt; same key, seed and sample index, same uniforms.
        end_id: the end token; nothing is sampled after it.
        max_new_tokens: length limit of a response, ≥ 1.
        temperature: T > 0: tokens come from softmax(logits / T).
        greedy: take the likeliest token; the seed and the temperature then play no part.
        batch_size: responses sampled at once; changes no response beyond rounding.
    """
    rows = [(key, prompt, index) for key, prompt in zip(keys, prompts, strict=True) for index in range(samples)]
    # Longest first: a batch then pads little, and a memory limit shows at once.
    order = sorted(range(len(rows)), key=lambda row: -len(rows[row][1]))
    done: list[Response | None] = [None] * len(rows)
    for begin in range(0, len(rows), batch_size):
        chosen = order[begin : begin + batch_size]
        batch = [rows[row] for row in chosen]
        uniforms = np.stack(
            [np.random.Generator(np.random.Philox(derive(seed, key, i))).random(max_new_tokens) for key, _, i in batch]
        )
        tokens, logprobs = decode(
            model,
            [prompt for _, prompt, _ in batch],
            None if greedy else torch.from_numpy(uniforms).to(model.device),
            end_id=end_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
        )
        for row, (key, prompt, _), ids, values in zip(chosen, batch, tokens.tolist(), logprobs.tolist(), strict=True):
            length = ids.index(end_id) + 1 if end_id in ids else len(ids)
            done[row] = Response(
                key, prompt, tuple(ids[:length]), tuple(values[:length]), ended=ids[length - 1] == end_id
            )
    return [response for response in done if response is not None]
