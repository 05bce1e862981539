"""Greedy responses of trained models are transformers' `generate`, token for token.

Random weights tie or nearly so; a second or two of training on a small corpus takes the ties away, and the tests check
that it did.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from held_up import drawn, next_logprobs
from preflab.rollouts.sampler import sample

END, WORDS, LONGEST, STEPS = 0, 30, 40, 70
SIZES: dict[str, Any] = {"vocab_size": WORDS, "bos_token_id": None, "eos_token_id": END, "pad_token_id": None}
LLAMA: dict[str, Any] = SIZES | {
    "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 96,
}  # fmt: skip
FAMILIES: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            **SIZES, n_positions=96, n_embd=48, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0
        )
    ),
    "llama": lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**LLAMA)),
    "qwen2": lambda: transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**LLAMA, tie_word_embeddings=True)),
}


def sentences(count: int, seed: int) -> list[tuple[int, ...]]:
    """Upwards from a small word in steps of 1 to 4, the same in a whole sentence, and the end after the largest."""
    draw = np.random.Generator(np.random.Philox(seed))
    return [(*range(int(draw.integers(1, 10)), WORDS, int(draw.integers(1, 5))), END) for _ in range(count)]


@cache
def trained(family: str) -> Any:
    """100 steps on 24 sentences each."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = FAMILIES[family]()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for step in range(STEPS):
        rows = [torch.tensor(row) for row in sentences(24, seed=step)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-100)
        logits = model(input_ids=ids.clamp(min=0)).logits[:, :-1]
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / STEPS)
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def starts() -> list[tuple[int, ...]]:
    """Beginnings of 1 to 8 words; one word leaves the step open."""
    return [row[: min(1 + i % 8, len(row) - 1)] for i, row in enumerate(sentences(24, seed=1000))]


@cache
def generated(family: str, prompt: tuple[int, ...]) -> tuple[int, ...]:
    ids = torch.tensor([prompt])
    found = trained(family).generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=LONGEST, eos_token_id=END,
        pad_token_id=END,
    )  # fmt: skip
    return tuple(found[0, len(prompt) :].tolist())


def margin(model: Any, prompt: tuple[int, ...], response: Sequence[int]) -> float:
    """By how much the likeliest token leads at the closest place, in nats."""
    with torch.no_grad():
        best = next_logprobs(model, prompt, tuple(response)).topk(2).values
    return float((best[:, 0] - best[:, 1]).min())


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_generate_token_for_token(family: str) -> None:
    model, prompts = trained(family), starts()
    wanted = [generated(family, prompt) for prompt in prompts]
    assert min(margin(model, prompt, response) for prompt, response in zip(prompts, wanted, strict=True)) > 1e-3
    assert len({len(response) for response in wanted}) > 6
    assert sum(response[-1] == END for response in wanted) > 20
    for batch_size in (1, 5, 64):
        found = sample(
            model, prompts, keys=["k"] * len(prompts), end_id=END, max_new_tokens=LONGEST, seed=0, greedy=True,
            batch_size=batch_size,
        )  # fmt: skip
        assert [response.tokens for response in found] == wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_is_the_same_for_all_responses_to_a_prompt_and_at_any_seed_and_temperature(family: str) -> None:
    model, prompts = trained(family), starts()[:6]
    found = drawn(
        model,
        prompts,
        end_id=END,
        max_new_tokens=LONGEST,
        seed=5,
        samples=3,
        greedy=True,
        temperature=2.0,
        batch_size=7,
    )
    assert [r.tokens for r in found] == [generated(family, prompt) for prompt in prompts for _ in range(3)]


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_of_a_trained_model_are_those_of_a_fresh_pass(family: str) -> None:
    """Where one token has nearly all the probability, and where it is shared."""
    values = [
        value
        for temperature in (0.5, 1.0, 2.0)
        for response in drawn(
            trained(family), starts(), end_id=END, max_new_tokens=LONGEST, temperature=temperature, batch_size=10
        )
        for value in response.logprobs
    ]
    assert max(values) > -1e-2
    assert min(values) < -3


@pytest.mark.parametrize("family", FAMILIES)
def test_training_taught_the_corpus(family: str) -> None:
    """What is compared above are sentences: a decoder that loses its place would not go on in step."""
    known = [prompt for prompt in starts() if len(prompt) > 1]
    rest = [(*range(prompt[-1], WORDS, prompt[1] - prompt[0]), END)[1:] for prompt in known]
    right = sum(generated(family, prompt) == words for prompt, words in zip(known, rest, strict=True))
    assert right > 0.8 * len(known)
