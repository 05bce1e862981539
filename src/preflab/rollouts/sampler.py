"""Sampling from a policy.

Each response has its own stream of uniforms, a function of (seed, prompt key, sample index) alone; a token is the
inverse of the cumulative distribution at the next uniform. So a response does not depend on its batch mates beyond
rounding, and every arm meets the same luck. What is sampled is the policy, unless a warp or a mask is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from preflab.config.load import check
from preflab.config.sampling import NO_WARP, Warp
from preflab.errors import NumericError
from preflab.models.precision import at_work
from preflab.rollouts.mask import TokenMask
from preflab.rollouts.response import Response
from preflab.rollouts.stop import Stop
from preflab.rollouts.watch import Watch
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
    warp: Warp = NO_WARP,
    mask: TokenMask[Any] | None = None,
    stop: Stop | None = None,
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
        warp: top-k, top-p, repetition penalty. Behaviour log-probabilities are those of what is then sampled.
        mask: which tokens may follow; likewise.
        stop: texts that end a response, beside the end token.
        batch_size: responses sampled at once; changes no response beyond rounding.

    Raises:
        ConfigError: the warp is out of range, the mask is not as wide as the vocabulary, or allows nothing.
        NumericError: a log-probability is not finite.
    """
    if warp.alters:
        check(warp)
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
        watch = Watch(
            [prompt for _, prompt, _ in batch],
            [key for key, _, _ in batch],
            end_id=end_id,
            room=max_new_tokens,
            device=model.device,
            temperature=temperature,
            warp=warp,
            stop=stop,
            mask=mask,
        )
        tokens, logprobs = _decode(
            model,
            [prompt for _, prompt, _ in batch],
            None if greedy else torch.from_numpy(uniforms).to(model.device),
            end_id=end_id,
            max_new_tokens=max_new_tokens,
            watch=watch,
        )
        for place, (row, ids, values) in enumerate(zip(chosen, tokens.tolist(), logprobs.tolist(), strict=True)):
            length, ended = watch.end(place, ids)
            if not math.isfinite(sum(values[:length])):
                raise NumericError("the policy's log-probabilities are not finite: its weights hold NaN or infinity")
            key, prompt, _ = batch[place]
            done[row] = Response(key, prompt, tuple(ids[:length]), tuple(values[:length]), ended=ended)
    return [response for response in done if response is not None]


@at_work
def _decode(
    model: Any,
    prompts: Sequence[tuple[int, ...]],
    uniforms: Float[Tensor, "row step"] | None,
    *,
    end_id: int,
    max_new_tokens: int,
    watch: Watch,
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
        drawn, chosen = watch.choose(
            range(len(prompts)), outputs.logits[:, -1], None if uniforms is None else uniforms[:, step]
        )
        out_tokens.append(drawn)
        out_logprobs.append(chosen)
        ended |= drawn == end_id
        if all(watch.ended) or bool(ended.all()):
            break
        token_ids = drawn.unsqueeze(1)
    return torch.stack(out_tokens, 1), torch.stack(out_logprobs, 1)
