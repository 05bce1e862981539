"""Whatever stands behind the sampler, a model's logits are those of its own pass over each sequence alone."""

from __future__ import annotations

import copy
import gc
import math
import weakref
from functools import cache
from random import Random
from typing import Any

import pytest
import torch
import transformers

from preflab.config.sampling import NO_WARP
from preflab.models.head import head_of
from preflab.rollouts import plain
from preflab.rollouts.modules import modules_of, why_not
from preflab.rollouts.plain import Way, decode, way_of
from preflab.rollouts.sampler import sample
from preflab.rollouts.watch import Watch

VOCABULARY = 40
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 100.0}
OPTIONS: dict[str, dict[str, Any]] = {
    "llama": SIZE,
    "qwen2": SIZE,
    "qwen3": SIZE | {"head_dim": 8},
    "gemma": SIZE | {"head_dim": 8},
    # Caps low enough to bend, and a scale of its own.
    "gemma2": SIZE | {"head_dim": 8, "query_pre_attn_scalar": 3, "attn_logit_softcapping": 2.0,
                      "final_logit_softcapping": 5.0},
    "mistral": SIZE | {"sliding_window": 20},
    "mixtral": SIZE | {"num_local_experts": 4},
    "qwen2_moe": SIZE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8,
                         "shared_expert_intermediate_size": 8},
    "cohere": SIZE | {"logit_scale": 0.25},
    "granite": SIZE | {"logits_scaling": 4.0, "attention_multiplier": 0.7},
    "gpt_neox": SIZE,
    "phi": SIZE,
    "opt": SIZE | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "gpt2": {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2},
    "gptj": {"vocab_size": VOCABULARY, "n_positions": 64, "n_embd": 16, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    "gpt_oss": SIZE | {"head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    "jamba": SIZE | {"num_experts": 2, "num_experts_per_tok": 1, "mamba_d_state": 4, "attn_layer_period": 2,
                     "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1, "mamba_dt_rank": 2},
    "rwkv": {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "context_length": 64},
    "recurrent_gemma": SIZE | {"num_hidden_layers": 3, "head_dim": 4, "lru_width": 16, "attention_window_size": 8},
}  # fmt: skip
THROUGH_MODULES = (
    "llama", "qwen2", "qwen3", "gemma", "gemma2", "mistral", "mixtral", "qwen2_moe", "cohere", "granite", "gpt_neox",
    "phi", "opt", "gpt2",
)  # fmt: skip


@cache
def model_of(name: str, *changes: tuple[str, Any]) -> Any:
    """A small model, far from uniform, biases and norms too, so that a wrong position shows."""
    given = OPTIONS[name] | {key: dict(value) if isinstance(value, tuple) else value for key, value in changes}
    config = transformers.AutoConfig.for_model(name, **given)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn_like(parameter) * 1.5 * parameter.shape[-1] ** -0.5)
                else:
                    parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


def drawn(lengths: tuple[int, ...]) -> list[tuple[int, ...]]:
    random = Random(0)
    return [tuple(random.randrange(VOCABULARY) for _ in range(length)) for length in lengths]


def own_logits(model: Any, row: tuple[int, ...]) -> torch.Tensor:
    logits: torch.Tensor = model(input_ids=torch.tensor([row]), use_cache=False).logits[0]
    return logits


class ByHand:
    """Attention written out: for each cell and head, one weight a key of its own row."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.kept: dict[tuple[int, int], list[tuple[torch.Tensor, torch.Tensor]]] = {}

    def __call__(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
    ) -> torch.Tensor:
        cells, heads, channels = query.shape
        assert key.shape == value.shape == (cells, key.shape[1], channels)
        output = torch.zeros(cells, heads, channels)
        for cell, row in enumerate(self.rows):
            kept = self.kept.setdefault((layer, row), [])
            kept.append((key[cell], value[cell]))
            for head in range(heads):
                few = head * key.shape[1] // heads
                scores = [
                    float(query[cell, head] @ k[few]) * (channels**-0.5 if scaling is None else scaling)
                    for k, _ in kept
                ]
                if softcap is not None:
                    scores = [softcap * math.tanh(score / softcap) for score in scores]
                weights = [math.exp(score - max(scores)) for score in scores]
                for weight, (_, v) in zip(weights, kept, strict=True):
                    output[cell, head] += weight / sum(weights) * v[few]
        return output


@pytest.mark.parametrize("name", THROUGH_MODULES)
@torch.no_grad()
def test_through_its_modules_a_model_gives_its_own_logits(name: str) -> None:
    """Prompts of several lengths in one row of cells, then three tokens each, a row that leaves in between."""
    model, rows, prompts = model_of(name), drawn((12, 4, 7, 7)), (9, 1, 4, 5)
    decoder, head, attend = modules_of(model, 20), head_of(model), ByHand()
    assert decoder is not None, why_not(model, 20)
    assert head is not None
    assert decoder.name == f"{type(model).__name__} on transformers' layers"
    expected = [own_logits(model, row) for row in rows]

    def check(places: list[tuple[int, int]]) -> None:
        attend.rows = [row for row, _ in places]
        states = decoder.states(
            torch.tensor([rows[row][place] for row, place in places]), torch.tensor([at for _, at in places]), attend
        )
        wanted = torch.stack([expected[row][place] for row, place in places])
        torch.testing.assert_close(head.logits(model, states), wanted, atol=1e-5, rtol=1e-5)

    check([(row, place) for row, length in enumerate(prompts) for place in range(length)])
    check([(row, length) for row, length in enumerate(prompts)])
    check([(row, length + 1) for row, length in enumerate(prompts) if row != 2])
    check([(1, prompts[1] + 2), (0, prompts[0] + 2)])


REFUSED = {
    "mistral": "attention window of 20",
    "bloom": "not every layer asks transformers for its attention",
    "gptj": "not every layer asks transformers for its attention",
    "gpt_oss": "its attention takes s_aux",
    "mamba": "not every layer asks transformers for its attention",
    "jamba": "not every layer asks transformers for its attention",
    "rwkv": "not every layer asks transformers for its attention",
    "recurrent_gemma": "its logits are more than a product of its last states",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_model_that_this_does_not_suit_is_refused_with_its_reason(name: str) -> None:
    assert modules_of(model_of(name), 21) is None
    assert why_not(model_of(name), 21) == REFUSED[name]


def test_a_window_counts_where_a_layer_has_it() -> None:
    assert why_not(model_of("mistral"), 20) is None
    every_other = model_of("gemma2", ("sliding_window", 10))
    assert why_not(every_other, 10) is None
    assert why_not(every_other, 11) == "attention window of 10"
    assert model_of("qwen2_moe").config.sliding_window is not None
    assert why_not(model_of("qwen2_moe"), 10**6) is None


def test_what_a_configuration_says_is_asked_again_where_it_was_edited() -> None:
    """A window that came after the trial, and another soft-cap of the logits."""
    model = copy.deepcopy(model_of("gemma2"))
    assert why_not(model, 20) is None
    model.config.sliding_window = 10
    assert why_not(model, 20) == "attention window of 10"
    for cap in (30.0, 0.5):
        model.config.final_logit_softcapping = cap
        assert (head := head_of(model)) is not None
        assert head.cap == cap


def test_a_rope_that_depends_on_the_length_is_taken_up_to_where_it_does() -> None:
    model = model_of("llama", ("max_position_embeddings", 12), ("rope_parameters", tuple(DYNAMIC.items())))
    assert why_not(model, 12) is None
    assert why_not(model, 13) == "its rotary frequencies change beyond 12 tokens"
    assert (way_of(model, 12), way_of(model, 13)) == (Way.PADDED, Way.WHOLE)


def test_a_position_bias_and_values_of_other_widths_are_refused() -> None:
    """Also where the numbers happen to agree: a bias of 0 will not stay 0 in training."""
    model = transformers.LlamaForCausalLM(model_of("llama").config).eval()
    for layer in model.model.layers:
        ask = layer.self_attn.forward
        bias = torch.zeros(1, 4, 1, 1)
        layer.self_attn.forward = lambda *args, ask=ask, bias=bias, **kw: ask(*args, position_bias=bias, **kw)
    assert why_not(model, 8) == "its attention takes position_bias"
    sizes = {
        "num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
        "v_head_dim": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 1,
        "topk_group": 1,
    }  # fmt: skip
    latent = transformers.AutoModelForCausalLM.from_config(transformers.DeepseekV3Config(**SIZE | sizes)).eval()
    assert why_not(latent, 8) == "its values have other sizes than its keys"


@torch.no_grad()
def test_a_model_attends_for_itself_again_after_a_pass_that_failed_too() -> None:
    model, (row,) = model_of("llama"), drawn((9,))
    before, how = own_logits(model, row), model.config._attn_implementation
    decoder = modules_of(model, 9)
    assert decoder is not None

    def broken(*args: Any, **kwargs: Any) -> torch.Tensor:
        assert model.config._attn_implementation != how
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        decoder.states(torch.tensor(row), torch.arange(9), broken)
    assert model.config._attn_implementation == how
    assert torch.equal(own_logits(model, row), before)


def test_what_a_model_suits_is_tried_once_and_does_not_keep_it_alive() -> None:
    model = transformers.LlamaForCausalLM(model_of("llama").config).eval()
    passes: list[int] = []
    model.model.register_forward_pre_hook(lambda *args: passes.append(1))
    assert modules_of(model, 8) is not None
    assert way_of(model, 8) is Way.PADDED
    once = len(passes)
    assert modules_of(model, 9) is not None
    assert way_of(model, 9) is Way.PADDED
    assert len(passes) == once > 0
    gone = weakref.ref(model)
    del model
    gc.collect()
    assert gone() is None


def test_a_model_in_training_mode_is_left_to_itself_and_so() -> None:
    """What attends for it here drops nothing."""
    model = transformers.OPTForCausalLM(model_of("opt", ("attention_dropout", 0.5)).config).train()
    assert why_not(model, 8) == "it is in training mode"
    assert way_of(model, 8) is Way.PADDED
    assert all(part.training for part in model.modules())
    assert why_not(model.eval(), 8) is None


WAYS = {
    "opt": Way.PADDED,
    "bloom": Way.PADDED,
    "gptj": Way.PADDED,
    "mistral": Way.PADDED,
    "gpt_oss": Way.PADDED,  # attention sinks, and a window of 6
    "mamba": Way.ALIKE,
    "jamba": Way.ALIKE,
    "rwkv": Way.WHOLE,  # its state is that of a batch of 1
    "recurrent_gemma": Way.WHOLE,  # its cache gives other logits than its plain pass, and so does generate
}
SHORT = {"mistral": (("sliding_window", 6),)}
PROMPTS = drawn((3, 9, 1, 9, 14))
END = 7


def watch(model: Any, room: int, temperature: float) -> Watch:
    keys = [str(number) for number in range(len(PROMPTS))]
    return Watch(
        PROMPTS, keys, end_id=END, room=room, device=model.device,
        temperature=temperature, warp=NO_WARP, stop=None, mask=None,
    )  # fmt: skip


@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_the_plain_loop_gives_logprobs_of_a_fresh_pass(name: str) -> None:
    """Of ragged prompts, two of one length; what follows an end token means nothing."""
    model = model_of(name, *SHORT.get(name, ()))
    assert way_of(model, 30) is WAYS[name]
    uniforms = torch.rand(len(PROMPTS), 12, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    tokens, logprobs = decode(
        model, PROMPTS, uniforms, max_new_tokens=12, rows=range(len(PROMPTS)), watch=watch(model, 12, 0.8)
    )
    lengths = []
    for prompt, ids, found in zip(PROMPTS, tokens.tolist(), logprobs, strict=True):
        response = ids[: ids.index(END) + 1] if END in ids else ids
        lengths.append(len(response))
        logits = own_logits(model, (*prompt, *response))[len(prompt) - 1 : -1]
        expected = (logits / 0.8).log_softmax(-1)[torch.arange(len(response)), torch.tensor(response)]
        torch.testing.assert_close(found[: len(response)], expected, atol=1e-5, rtol=1e-5)
    assert max(lengths) > 8


@pytest.mark.parametrize("name", WAYS)
@torch.no_grad()
def test_greedy_in_the_plain_loop_is_transformers_generate(name: str) -> None:
    model = model_of(name, *SHORT.get(name, ()))
    tokens, _ = decode(model, PROMPTS, None, max_new_tokens=10, rows=range(len(PROMPTS)), watch=watch(model, 10, 1.0))
    for prompt, ids in zip(PROMPTS, tokens.tolist(), strict=True):
        given = torch.tensor([prompt])
        theirs = model.generate(
            given,
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=10,
            eos_token_id=END,
            use_cache=WAYS[name] is not Way.WHOLE,
        )[0, len(prompt) :].tolist()
        assert ids[: len(theirs)] == theirs


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt_neox", "opt", "gptj", "mistral", "mamba"])
@torch.no_grad()
def test_what_is_sampled_from_any_family_has_the_logprobs_of_a_fresh_pass(name: str) -> None:
    """Through whatever stands behind the sampler; of ragged prompts with two responses each, few of them at once."""
    model = model_of(name)
    responses = sample(
        model, PROMPTS, keys=list("abcde"), end_id=END, max_new_tokens=9, seed=0, samples=2, batch_size=4
    )
    assert len({response.tokens for response in responses}) > len(PROMPTS)
    for response in responses:
        logits = own_logits(model, (*response.prompt, *response.tokens))[len(response.prompt) - 1 : -1]
        expected = logits.log_softmax(-1)[torch.arange(len(response.tokens)), torch.tensor(response.tokens)]
        torch.testing.assert_close(torch.tensor(response.logprobs), expected, atol=1e-5, rtol=1e-5)


def test_a_recurrent_model_would_not_leave_padding_alone() -> None:
    """Or Mamba's prompts need not go by their lengths."""
    assert not plain._suits(model_of("mamba"), Way.PADDED)
    assert not plain._suits(model_of("rwkv"), Way.ALIKE)
    assert plain._suits(model_of("bloom"), Way.ALIKE)


def test_the_trial_sees_a_position_that_is_off() -> None:
    """A model that takes position_ids and goes by the cells' order all the same."""
    model = transformers.OPTForCausalLM(model_of("opt").config).eval()
    model.load_state_dict(model_of("opt").state_dict())
    places = model.model.decoder.embed_positions
    look_up = places.forward
    places.forward = lambda mask, past=0, position_ids=None: look_up(
        mask, past, position_ids=torch.arange(mask.shape[1]).unsqueeze(0)
    )
    assert why_not(model, 8) == "its states are others then"
