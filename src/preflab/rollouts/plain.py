"""A batch of responses through a model's own forward pass and cache: for any causal model of transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.models.precision import at_work
from preflab.rollouts.choice import choose


@at_work
def decode(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    uniforms: Float[Tensor, "row step"] | None,
    *,
    end_id: int,
    max_new_tokens: int,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    """Tokens and log-probabilities [row, step]; after a row's end token they mean nothing."""
    device = model.device
    longest = max(len(prompt) for prompt in prompts)
    token_ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    attention = torch.zeros(len(prompts), longest + max_new_tokens, dtype=torch.long)
    attention[:, longest:] = 1
    for row, prompt in enumerate(prompts):  # padded on the left, so that all rows emit at the same column
        token_ids[row, longest - len(prompt) :] = torch.tensor(prompt)
        attention[row, longest - len(prompt) : longest] = 1
    token_ids, attention = token_ids.to(device), attention.to(device)
    positions = (attention.cumsum(1) - 1).clamp(min=0)
    # Without padding, no mask: the model's causal kernel is exact and faster.
    padded = bool((attention == 0).any())
    cache = None
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    out_tokens, out_logprobs = [], []
    for step in range(max_new_tokens):
        begin, end = (0, longest) if step == 0 else (longest + step - 1, longest + step)
        outputs = model(
            input_ids=token_ids,
            attention_mask=attention[:, :end] if padded else None,
            position_ids=positions[:, begin:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = outputs.past_key_values
        drawn, chosen = choose(
            outputs.logits[:, -1], None if uniforms is None else uniforms[:, step], temperature=temperature
        )
        out_tokens.append(drawn)
        out_logprobs.append(chosen)
        ended |= drawn == end_id
        if bool(ended.all()):
            break
        token_ids = drawn.unsqueeze(1)
    return torch.stack(out_tokens, 1), torch.stack(out_logprobs, 1)
