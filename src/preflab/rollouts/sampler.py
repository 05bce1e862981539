"""Sampling from a policy.

Each response has its own stream of uniforms, a function of (seed, prompt key, sample index) alone; a token is the
inverse of the cumulative distribution at the next uniform. So a response does not depend on its batch mates beyond
rounding, and every arm meets the same luck. There is no top-k, top-p or penalty: what is sampled is the policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from preflab.models.head import head_of
from preflab.progress import say
from preflab.rollouts.cohort import Finished
from preflab.rollouts.decoder import Decoder
from preflab.rollouts.gpt2 import GPT2, is_gpt2
from preflab.rollouts.plain import decode
from preflab.rollouts.queue import Draws, Row, in_cohorts
from preflab.rollouts.response import Response

SAMPLED_AT_ONCE = 256
"""How many responses are sampled at once, where no one says otherwise."""
CACHE_BYTES = 2**30
"""Then fewer, if their keys and values would take more at full length."""


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
    batch_size: int | None = None,
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
        batch_size: responses sampled at once; changes no response beyond rounding. None: `rows_at_once`.
        states: keep the last hidden state before each token, on the model's device; not where `decoder_of` knows none.
    """
    rows = [(key, prompt, index) for key, prompt in zip(keys, prompts, strict=True) for index in range(samples)]
    if not rows:
        return []
    # Longest first: a batch then pads little, and a memory limit shows at once. Equal prompts lie side by side.
    order = sorted(range(len(rows)), key=lambda row: (-len(rows[row][1]), rows[row][1]))
    queue = [rows[row] for row in order]
    size = batch_size or rows_at_once(model, len(queue[0][1]) + max_new_tokens)
    draws = Draws(None if greedy else seed, temperature, end_id, max_new_tokens)
    decoder, head = decoder_of(model), head_of(model)
    _say_which(model, decoder)
    if decoder is None or head is None:
        found = _in_batches(model, queue, draws, size)
    else:
        found = in_cohorts(decoder, head.reader(model), queue, draws, size=size, device=model.device, states=states)
    done: list[Response | None] = [None] * len(rows)
    for row, tokens, logprobs, before in found:
        key, prompt, _ = queue[row]
        length = tokens.index(end_id) + 1 if end_id in tokens else len(tokens)
        done[order[row]] = Response(
            key,
            prompt,
            tuple(tokens[:length]),
            tuple(logprobs[:length]),
            ended=tokens[length - 1] == end_id,
            states=None if before is None else before[:length],
        )
    return [response for response in done if response is not None]


def decoder_of(model: Any) -> Decoder | None:
    """What runs the model's layers; None: the model itself, with the cache it has."""
    return GPT2(model) if is_gpt2(model) else None


def _say_which(model: Any, decoder: Decoder | None) -> None:
    """One line a class of models, for the person watching."""
    if type(model) not in _told:
        _told.add(type(model))
        say(
            f"sampling: {type(model).__name__} by its own pass and cache"
            if decoder is None
            else f"sampling: {decoder.name}"
        )


_told: set[type] = set()


def rows_at_once(model: Any, longest: int) -> int:
    """How many responses are sampled at once where no one says: `SAMPLED_AT_ONCE`, or as many as `CACHE_BYTES` hold.

    Args:
        longest: tokens of the longest prompt and response.
    """
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    few = getattr(config, "num_key_value_heads", None) or heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    token_bytes = 2 * config.num_hidden_layers * few * channels * model.dtype.itemsize
    return max(1, min(SAMPLED_AT_ONCE, CACHE_BYTES // (token_bytes * longest)))


def _in_batches(model: Any, queue: Sequence[Row], draws: Draws, size: int) -> Iterator[Finished]:
    """The rows of the queue, batch after batch, each as long as its longest response."""
    for begin in range(0, len(queue), size):
        rows = range(begin, min(begin + size, len(queue)))
        tokens, logprobs = decode(
            model,
            [queue[row][1] for row in rows],
            draws.uniforms([queue[row] for row in rows], model.device),
            end_id=draws.end_id,
            max_new_tokens=draws.limit,
            temperature=draws.temperature,
        )
        for row, ids, values in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            yield Finished(row, ids, values, None)
