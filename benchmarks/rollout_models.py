"""Models with random weights for `benchmarks/rollout_speed.py`: small GPT-2, Llama and Qwen2 shapes, and their words.

GPT-2's width is two channels short of what it could use: channel 0 is 1 wherever the head looks, so a column of the
embedding table is a bias on tokens; channel 1 depends on the position alone. With them the end token never comes, or
comes so that lengths are even between two limits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from peers.data import END as END_WORD
from peers.data import PAD as PAD_WORD
from peers.data import word_tokenizer
from peers.work import END, PAD

NEVER = -30.0
"""A logit so far below the others is never drawn."""
FIRST, LAST = 8, 256
"""The shortest and the longest response of `gpt2-tiny-ends`, in tokens."""
ENDS_PROMPT = 32
"""The prompts whose responses have those lengths, in tokens."""
SPECIAL = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": PAD}
"""No end token: who wants one names it."""


def gpt2(layers: int, width: int, heads: int, vocabulary: int) -> Any:
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_layer=layers, n_embd=width, n_head=heads, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, activation_function="gelu_pytorch_tanh", **SPECIAL,
    )  # fmt: skip
    return never_ending(transformers.GPT2LMHeadModel(config))


def llama(layers: int, width: int, heads: int, vocabulary: int) -> Any:
    """Two keys' heads for each four queries' heads, as many as GPT-2 has weights in an MLP."""
    config = transformers.LlamaConfig(
        vocab_size=vocabulary, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        num_key_value_heads=heads // 2, intermediate_size=width * 8 // 3, **SPECIAL,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config)


def qwen2(layers: int, width: int, heads: int, vocabulary: int) -> Any:
    config = transformers.Qwen2Config(
        vocab_size=vocabulary, num_hidden_layers=layers, hidden_size=width, num_attention_heads=heads,
        num_key_value_heads=heads // 2, intermediate_size=width * 8 // 3, tie_word_embeddings=True, **SPECIAL,
    )  # fmt: skip
    return transformers.Qwen2ForCausalLM(config)


@torch.no_grad()
def never_ending(model: Any) -> Any:
    """A GPT-2 whose end token has a logit of NEVER, before and after training's small steps."""
    norm, table = model.transformer.ln_f, model.transformer.wte.weight
    norm.weight[0], norm.bias[0] = 0.0, 1.0
    table[:, 0] = 0.0
    table[END, 0] = NEVER
    return model


@torch.no_grad()
def ending(model: Any) -> Any:
    """A GPT-2 whose responses to prompts of ENDS_PROMPT tokens are FIRST to LAST tokens long, each length about as
    often as another.

    A length is even in FIRST … LAST where a response of t tokens, FIRST − 1 ≤ t < LAST, ends at the next with
    probability 1/(LAST − t).
    """
    body = model.transformer
    body.wte.weight[END, 0] = 0.0
    channel = 1
    body.wte.weight[:, channel] = 0.0
    for block in body.h:  # nothing but the position writes to it
        for product in (block.attn.c_proj, block.mlp.c_proj):
            product.weight[:, channel] = 0.0
            product.bias[channel] = 0.0
    body.wpe.weight[:, channel] = 0.0
    # The final norm divides by the states' standard deviation, which hardly differs from cell to cell.
    words = torch.arange(2, 2 + LAST).unsqueeze(0) % (model.config.vocab_size - 2) + 2
    seen: list[torch.Tensor] = []
    hook = body.ln_f.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(words)
    hook.remove()
    scale, weight = float(seen[0].std(-1).mean()), 2.0
    body.ln_f.weight[channel], body.ln_f.bias[channel] = 1.0, 0.0
    body.wte.weight[END, channel] = weight
    rest = math.log(model.config.vocab_size - 1)
    for tokens in range(LAST):
        chance = 1 / (LAST - tokens) if tokens >= FIRST - 1 else 0.0
        logit = max(-8.0, min(8.0, math.log(max(chance, 1e-9)) - math.log(max(1 - chance, 1e-9)) + rest))
        body.wpe.weight[ENDS_PROMPT - 1 + tokens, channel] = logit / weight * scale
    return model


SHAPES: dict[str, Callable[[], Any]] = {
    "gpt2-tiny": lambda: gpt2(4, 128, 4, 500),
    "gpt2-tiny-ends": lambda: ending(gpt2(4, 128, 4, 500)),
    "llama-tiny": lambda: llama(4, 128, 4, 500),
    "qwen2-tiny": lambda: qwen2(4, 128, 4, 500),
    "gpt2-small": lambda: gpt2(12, 768, 12, 50257),
    "llama-small": lambda: llama(12, 768, 12, 50257),
    "qwen2-small": lambda: qwen2(12, 768, 12, 50257),
}


def write(folder: Path, shape: str) -> None:
    """A model of the shape with its tokenizer in FOLDER/SHAPE, in the Hugging Face format."""
    transformers.logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = SHAPES[shape]().eval()
    model.save_pretrained(folder / shape)
    tokenizer = word_tokenizer(model.config.vocab_size)
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_WORD, pad_token=PAD_WORD)
    wrapped.save_pretrained(folder / shape)
