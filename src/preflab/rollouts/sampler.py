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
from jaxtyping import Float
from torch import Tensor

from preflab.models.precision import at_work
from preflab.rollouts.choice import choose
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
    states: bool = False,
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
        states: with the last hidden state before each token.
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
        tokens, logprobs, before = _decode(
            model,
            [prompt for _, prompt, _ in batch],
            None if greedy else torch.from_numpy(uniforms).to(model.device),
            end_id=end_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            states=states,
        )
        of_rows = enumerate(zip(chosen, batch, tokens.tolist(), logprobs.tolist(), strict=True))
        for number, (row, (key, prompt, _), ids, values) in of_rows:
            length = ids.index(end_id) + 1 if end_id in ids else len(ids)
            done[row] = Response(
                key,
                prompt,
                tuple(ids[:length]),
                tuple(values[:length]),
                ended=ids[length - 1] == end_id,
                states=None if before is None else before[number, :length],
            )
    return [response for response in done if response is not None]


@at_work
def _decode(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    uniforms: Float[Tensor, "row step"] | None,
    *,
    end_id: int,
    max_new_tokens: int,
    temperature: float,
    states: bool,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Tokens, log-probabilities [row, step] and last hidden states; after a row's end token they mean nothing."""
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
    out_tokens, out_logprobs, out_states = [], [], []
    for step in range(max_new_tokens):
        begin, end = (0, longest) if step == 0 else (longest + step - 1, longest + step)
        outputs = model(
            input_ids=token_ids,
            attention_mask=attention[:, :end] if padded else None,
            position_ids=positions[:, begin:end],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            output_hidden_states=states,
        )
        if states:
            out_states.append(outputs.hidden_states[-1][:, -1])
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
    before = torch.stack(out_states, 1) if states else None
    return torch.stack(out_tokens, 1), torch.stack(out_logprobs, 1), before
