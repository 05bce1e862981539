"""Other causal models of transformers are sampled as they are: what each does with positions, windows, heads and caches
is its own business.

Weights are random and uneven; each response is held up to one plain pass of the whole sequence.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
import transformers as hf

from held_up import drawn, some_prompts, unalike
from preflab.errors import PreflabError
from preflab.rollouts.sampler import sample

END = 3
ROTARY: dict[str, Any] = {
    "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": None,
    "pad_token_id": None,
}  # fmt: skip
ONE_TO_ONE = {name: value for name, value in ROTARY.items() if name != "num_key_value_heads"}
TOKENS: dict[str, Any] = {"vocab_size": 40, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}

CONFIGS: dict[str, Any] = {
    "llama": lambda: hf.LlamaConfig(**ROTARY),
    "llama, biased": lambda: hf.LlamaConfig(**ROTARY, attention_bias=True, mlp_bias=True, tie_word_embeddings=True),
    "llama, eager": lambda: hf.LlamaConfig(**ROTARY, attn_implementation="eager"),
    "llama 3 rope": lambda: hf.LlamaConfig(
        **ROTARY, rope_parameters={
            "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
    ),
    "llama, yarn": lambda: hf.LlamaConfig(
        **(ROTARY | {"max_position_embeddings": 128}),
        rope_parameters={"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 32},
    ),
    "qwen2": lambda: hf.Qwen2Config(**ROTARY),
    "qwen2, windows above": lambda: hf.Qwen2Config(
        **ROTARY, use_sliding_window=True, sliding_window=6, max_window_layers=1
    ),
    "qwen3": lambda: hf.Qwen3Config(**ROTARY, head_dim=8),
    "mistral": lambda: hf.MistralConfig(**ROTARY, sliding_window=None),
    "mistral, windows": lambda: hf.MistralConfig(**ROTARY, sliding_window=6),
    "mixtral": lambda: hf.MixtralConfig(**ROTARY, num_local_experts=4, experts_implementation="eager"),
    "gemma": lambda: hf.GemmaConfig(**ROTARY, head_dim=8),
    "gemma 2": lambda: hf.Gemma2Config(
        **ROTARY, head_dim=8, sliding_window=6, attn_logit_softcapping=1.0, final_logit_softcapping=3.0,
        query_pre_attn_scalar=5,
    ),
    "gemma 3": lambda: hf.Gemma3TextConfig(**ROTARY, head_dim=8, sliding_window=6),
    "olmo 2": lambda: hf.Olmo2Config(**ROTARY),
    "granite": lambda: hf.GraniteConfig(
        **ROTARY, embedding_multiplier=2.0, logits_scaling=0.5, residual_multiplier=0.7, attention_multiplier=0.3
    ),
    "cohere": lambda: hf.CohereConfig(**ROTARY, logit_scale=0.5),
    "phi": lambda: hf.PhiConfig(**ROTARY, partial_rotary_factor=0.5),
    "stablelm": lambda: hf.StableLmConfig(**ROTARY, partial_rotary_factor=0.5),
    "starcoder 2": lambda: hf.Starcoder2Config(**ROTARY, sliding_window=None),
    "gpt-neox": lambda: hf.GPTNeoXConfig(**ONE_TO_ONE),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        **TOKENS, hidden_size=16, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=6,
        max_position_embeddings=64,
    ),
    "gpt-j": lambda: hf.GPTJConfig(**TOKENS, n_embd=16, n_layer=2, n_head=4, rotary_dim=2, n_positions=64),
    "opt": lambda: hf.OPTConfig(
        **(TOKENS | {"pad_token_id": 1}), hidden_size=16, ffn_dim=24, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, word_embed_proj_dim=16,
    ),
    "bloom": lambda: hf.BloomConfig(**TOKENS, hidden_size=16, n_layer=2, n_head=4),
    "falcon": lambda: hf.FalconConfig(
        **TOKENS, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, multi_query=True
    ),
    "mpt": lambda: hf.MptConfig(**TOKENS, d_model=16, n_layers=2, n_heads=4, max_seq_len=64),
    "gpt-bigcode": lambda: hf.GPTBigCodeConfig(**TOKENS, n_embd=16, n_layer=2, n_head=4, n_positions=64),
}  # fmt: skip
RECURRENT: dict[str, Any] = {
    "mamba": lambda: hf.MambaConfig(**TOKENS, hidden_size=16, num_hidden_layers=2, state_size=4),
    "mamba 2": lambda: hf.Mamba2Config(
        **TOKENS, hidden_size=16, num_hidden_layers=2, state_size=4, num_heads=4, head_dim=8, n_groups=2, chunk_size=8
    ),
    "recurrent gemma": lambda: hf.RecurrentGemmaConfig(
        **ONE_TO_ONE, num_key_value_heads=1, attention_window_size=6, lru_width=16, head_dim=4,
    ),
}  # fmt: skip


@cache
def model_of(name: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return unalike(hf.AutoModelForCausalLM.from_config((CONFIGS | RECURRENT)[name]()), spread=0.4)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_family_is_sampled_as_it_is(name: str) -> None:
    """Prompts of 1 to 17 tokens beside each other, shared, in batches of three; windows are of six."""
    prompts = some_prompts((1, 17, 2, 9, 9), vocabulary=40)
    responses = drawn(model_of(name), prompts, end_id=END, max_new_tokens=12, samples=2, batch_size=3, tolerance=2e-5)
    assert len({response.tokens for response in responses}) > 8


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_model_is_sampled_as_it_is_or_not_at_all(name: str) -> None:
    """Padding before a prompt would go through its state; it may be refused, and never passes for the model."""
    prompts = some_prompts((1, 17, 2, 9, 9), vocabulary=40)
    model = model_of(name)
    try:
        sample(model, prompts, keys=["k"] * 5, end_id=END, max_new_tokens=12, seed=0, batch_size=3)
    except (AttributeError, ValueError, PreflabError):
        return
    drawn(model, prompts, end_id=END, max_new_tokens=12, samples=2, batch_size=3, tolerance=2e-5)
