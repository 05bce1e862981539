"""Responses held up to their definition: each one alone, in one plain pass of a float64 copy of its model.

No cache, no padding, no batch. Token t is the inverse of the cumulative distribution of softmax(logits / T), tokens in
the order of their ids, at uniform t of the response's own stream. If that holds of every token given those before it,
the response is the one that the definition names.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.seeds import derive

Prompts = Sequence[tuple[int, ...]]
FP32 = 1e-5
"""How far from float64 a log-probability of float32 may be, and a probability where a token begins or ends."""


def drawn(
    model: Any,
    prompts: Prompts,
    *,
    end_id: int,
    max_new_tokens: int,
    keys: Sequence[str] | None = None,
    seed: int = 0,
    samples: int = 1,
    temperature: float = 1.0,
    greedy: bool = False,
    tolerance: float = FP32,
    of: Any = None,
    **more: Any,
) -> list[Response]:
    """What `sample` gives, held up to its definition.

    Args:
        tolerance: of log-probabilities and of probabilities.
        of: the model whose responses they should be; None: `model`.
    """
    keys = [f"key:{i}" for i in range(len(prompts))] if keys is None else keys
    responses = sample(
        model, prompts, keys=keys, end_id=end_id, max_new_tokens=max_new_tokens, seed=seed, samples=samples,
        temperature=temperature, greedy=greedy, **more,
    )  # fmt: skip
    assert [(r.key, r.prompt) for r in responses] == [
        (key, prompt) for key, prompt in zip(keys, prompts, strict=True) for _ in range(samples)
    ]
    wide = copy.deepcopy(model if of is None else of).double()
    for number, response in enumerate(responses):
        where = f"response {number % samples} to prompt {number // samples} of {len(response.prompt)} tokens"
        length = len(response.tokens)
        assert length == len(response.logprobs), where
        assert 1 <= length <= max_new_tokens, where
        assert end_id not in response.tokens[:-1], f"{where} goes on after its end"
        assert response.ended == (response.tokens[-1] == end_id), where
        assert response.ended or length == max_new_tokens, f"{where} stops early"
        logprobs = next_logprobs(wide, response.prompt, response.tokens, 1.0 if greedy else temperature)
        tokens = torch.tensor(response.tokens).unsqueeze(1)
        if greedy:
            short = logprobs.amax(1) - logprobs.gather(1, tokens).squeeze(1)
            assert bool((short <= tolerance).all()), f"{where} is not greedy: {short.tolist()}"
        else:
            uniforms = torch.from_numpy(uniforms_of(seed, response.key, number % samples, length)).unsqueeze(1)
            ends = logprobs.exp().cumsum(1)
            begins = ends - logprobs.exp()
            inside = (begins.gather(1, tokens) - tolerance <= uniforms) & (
                uniforms <= ends.gather(1, tokens) + tolerance
            )
            assert bool(inside.all()), f"{where} takes another token at {inside.logical_not().nonzero()[:, 0].tolist()}"
        at = next_logprobs(wide, response.prompt, response.tokens, temperature) if greedy else logprobs
        gap = (torch.tensor(response.logprobs, dtype=torch.float64) - at.gather(1, tokens).squeeze(1)).abs()
        assert float(gap.max()) <= tolerance, f"{where}: log-probabilities off by {gap.tolist()}"
    return responses


@torch.no_grad()
def next_logprobs(model: Any, prompt: tuple[int, ...], response: tuple[int, ...], temperature: float = 1.0) -> Tensor:
    """log softmax(logits / T) before each token of a response: [token, vocabulary], in float64."""
    ids = torch.tensor([prompt + response[:-1]])
    logits = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 :].double()
    return (logits / temperature).log_softmax(-1)


def uniforms_of(seed: int, key: str, index: int, count: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The first numbers of a response's own stream."""
    return np.random.Generator(np.random.Philox(derive(seed, key, index))).random(count)


def unalike(model: Any, *, seed: int = 0, spread: float = 0.3) -> Any:
    """The model with each weight and bias drawn anew, norms around 1: none of them can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32).to(parameter)
            norm = parameter.dim() == 1 and bool((parameter == 1).all()) and "bias" not in name
            parameter.copy_(1 + 0.3 * noise if norm else spread * noise)
    return model.eval()


def small_gpt2(*, seed: int = 0, spread: float = 0.3, **settings: Any) -> Any:
    """A GPT-2 of two blocks of width 16, 2 heads and 40 tokens, where `settings` say nothing else."""
    given = {
        "vocab_size": 40, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**(given | settings)))
    return unalike(model, seed=seed, spread=spread)


def more_likely(model: Any, token: int, nats: float) -> Any:
    """A GPT-2 whose logit of `token` is `nats` higher, at every place: by the bias of its last norm."""
    with torch.no_grad():
        row = model.get_output_embeddings().weight[token]
        model.transformer.ln_f.bias += nats * row / row.square().sum()
    return model


def some_prompts(lengths: Sequence[int], *, vocabulary: int, seed: int = 0) -> list[tuple[int, ...]]:
    """Prompts of these lengths, of random tokens."""
    draw = np.random.Generator(np.random.Philox(seed))
    return [tuple(draw.integers(vocabulary, size=length).tolist()) for length in lengths]
