"""Sampling from a policy.

Each response has its own stream of uniforms, a function of (seed, prompt key, sample index) alone; a token is the
inverse of the cumulative distribution at the next uniform. So a response does not depend on its batch mates beyond
rounding, and every arm meets the same luck. What is sampled is the policy, unless a warp or a mask is asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch

from preflab.config.load import check
from preflab.config.sampling import NO_WARP, Warp
from preflab.data.pack import Reading, readings
from preflab.errors import NumericError
from preflab.models.checkpointing import altered
from preflab.models.head import head_of
from preflab.progress import say
from preflab.rollouts.cohort import Finished
from preflab.rollouts.decoder import Decoder
from preflab.rollouts.gpt2 import GPT2, is_gpt2
from preflab.rollouts.mask import TokenMask
from preflab.rollouts.modules import modules_of, why_not
from preflab.rollouts.plain import decode, way_of
from preflab.rollouts.queue import Draws, Row, in_cohorts
from preflab.rollouts.response import Response
from preflab.rollouts.stop import Stop
from preflab.rollouts.watch import Watch

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
    warp: Warp = NO_WARP,
    mask: TokenMask[Any] | None = None,
    stop: Stop | None = None,
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
        greedy: take the likeliest token; the seed then plays no part, the temperature in log-probabilities alone.
        warp: top-k, top-p, repetition penalty. Behaviour log-probabilities are those of what is then sampled.
        mask: which tokens may follow; likewise.
        stop: texts that end a response, beside the end token.
        batch_size: responses sampled at once; changes no response beyond rounding. None: `sampled_at_once`.
        states: keep the last hidden state before each token, on the model's device; not where `decoder_of` knows none.

    Raises:
        ConfigError: the warp is out of range, the mask is not as wide as the vocabulary, or allows nothing.
        NumericError: a log-probability is not finite.
    """
    if warp.alters:
        check(warp)
    rows = [(key, prompt, index) for key, prompt in zip(keys, prompts, strict=True) for index in range(samples)]
    if not rows:
        return []
    # Longest first: a batch then pads little, and a memory limit shows at once. Equal prompts lie side by side.
    order = sorted(range(len(rows)), key=lambda row: (-len(rows[row][1]), rows[row][1]))
    queue = [rows[row] for row in order]
    longest = len(queue[0][1]) + max_new_tokens
    size = batch_size or sampled_at_once(model, longest)
    draws = Draws(None if greedy else seed, max_new_tokens)
    watch = Watch(
        [prompt for _, prompt, _ in queue],
        [key for key, _, _ in queue],
        end_id=end_id,
        room=max_new_tokens,
        device=model.device,
        temperature=temperature,
        warp=warp,
        stop=stop,
        mask=mask,
    )
    decoder, head = decoder_of(model, longest), head_of(model)
    if decoder is None or mask is None:  # rows of a table come from a small model of ours: the usual way says nothing
        _say_which(model, decoder, longest)
    if decoder is None or head is None:
        found = _in_batches(model, queue, draws, watch, size)
    else:
        found = in_cohorts(
            decoder,
            head.reader(model),
            queue,
            draws,
            watch,
            vocabulary=len(model.get_output_embeddings().weight),
            size=size,
            device=model.device,
            states=states,
        )
    done: list[Response | None] = [None] * len(rows)
    for row, tokens, logprobs, before in found:
        key, prompt, _ = queue[row]
        length, ended = watch.end(row, tokens)
        if not math.isfinite(sum(logprobs[:length])):
            raise NumericError("the policy's log-probabilities are not finite: its weights hold NaN or infinity")
        done[order[row]] = Response(
            key,
            prompt,
            tuple(tokens[:length]),
            tuple(logprobs[:length]),
            ended=ended,
            states=None if before is None else before[:length],
        )
    return [response for response in done if response is not None]


def decoder_of(model: Any, longest: int) -> Decoder | None:
    """What runs the model's layers on sequences of up to `longest` tokens; None: the model itself, with the cache that
    it has."""
    if not has_decoder(model, longest):
        return None
    return GPT2(model) if is_gpt2(model) else modules_of(model, longest)


def has_decoder(model: Any, longest: int) -> bool:
    """Whether `decoder_of` knows one, without making it: that casts a model's weights where it works in another
    precision."""
    if altered(model) or head_of(model) is None:
        return False
    return is_gpt2(model) or why_not(model, longest) is None


def sampled_reading(model: Any, responses: Sequence[Response], *, calls: int = 1) -> Reading:
    """What it took to sample these responses: the tokens of a prompt once for all that one call gives, or once for each
    where `decoder_of` knows none. A response's last token is not read.

    Args:
        calls: among how many calls of `sample` the responses to each prompt were divided.
    """
    trees = [response.tree for response in responses]
    shared = replace(readings(trees)[1], spared=0)
    prompts = {tree.prompt: len(tree.prompt) for tree in trees}.values()
    every = [len(tree.prompt) for tree in trees]
    again: Iterable[int] = [n for n in prompts for _ in range(calls - 1)]
    if not has_decoder(model, shared.longest + 1):
        again = (Counter(every) - Counter(prompts)).elements()
    more = list(again)
    return shared + Reading(cells=sum(more), seen=sum(n * (n + 1) // 2 for n in more))


def _say_which(model: Any, decoder: Decoder | None, longest: int) -> None:
    """One line a class of models and way, for the person watching."""
    if decoder is not None:
        line = f"sampling: {decoder.name}"
    else:
        reason = "its forward pass was replaced" if altered(model) else why_not(model, longest)
        line = f"sampling: {type(model).__name__}, {way_of(model, longest).value}" + (f" ({reason})" if reason else "")
    if line not in _told:
        _told.add(line)
        say(line)


_told: set[str] = set()


def sampled_at_once(model: Any, longest: int) -> int:
    """How many responses are sampled at once where no one says: `SAMPLED_AT_ONCE`, or as many as `CACHE_BYTES` hold.

    Args:
        longest: tokens of the longest prompt and response.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not heads:  # a recurrent model, whose state doesn't grow
        return SAMPLED_AT_ONCE
    few = getattr(config, "num_key_value_heads", None) or heads
    channels = getattr(config, "head_dim", None) or config.hidden_size // heads
    token_bytes = 2 * config.num_hidden_layers * few * channels * model.dtype.itemsize
    return max(1, min(SAMPLED_AT_ONCE, CACHE_BYTES // (token_bytes * longest)))


def _in_batches(model: Any, queue: Sequence[Row], draws: Draws, watch: Watch, size: int) -> Iterator[Finished]:
    """The rows of the queue, batch after batch, each as long as its longest response."""
    for begin in range(0, len(queue), size):
        rows = range(begin, min(begin + size, len(queue)))
        tokens, logprobs = decode(
            model,
            [queue[row][1] for row in rows],
            draws.uniforms([queue[row] for row in rows], model.device),
            max_new_tokens=draws.limit,
            rows=rows,
            watch=watch,
        )
        for row, ids, values in zip(rows, tokens.tolist(), logprobs.tolist(), strict=True):
            yield Finished(row, ids, values, None)
