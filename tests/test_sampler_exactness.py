"""Each response is the one that its prompt, key and index name, whatever GPT-2 it is and however the work is cut.

The cases are those where a static cache, a shared prompt, refilled rows or a decoder written by hand can go wrong.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from held_up import drawn, more_likely, small_gpt2, some_prompts
from preflab.models.precision import has_bf16, work_in

END = 3
RAGGED = (1, 17, 2, 9, 9, 1, 30, 4)

SHAPES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "one block, one head": {"n_layer": 1, "n_head": 1},
    "five blocks": {"n_layer": 5},
    "as many heads as channels": {"n_head": 16},
    "heads of three channels": {"n_embd": 15, "n_head": 5},
    "a narrow MLP": {"n_inner": 7},
    "a wide MLP": {"n_inner": 100},
    "relu": {"activation_function": "relu"},
    "gelu": {"activation_function": "gelu"},
    "gelu_new": {"activation_function": "gelu_new"},
    "gelu_pytorch_tanh": {"activation_function": "gelu_pytorch_tanh"},
    "silu": {"activation_function": "silu"},
    "quick_gelu": {"activation_function": "quick_gelu"},
    "an untied head": {"tie_word_embeddings": False},
    "norms that add much": {"layer_norm_epsilon": 0.1},
    "attention without scale": {"scale_attn_weights": False},
    "attention scaled by its layer": {"scale_attn_by_inverse_layer_idx": True},
    "attention in float32": {"reorder_and_upcast_attn": True},
    "eager attention": {"attn_implementation": "eager"},
    "four tokens": {"vocab_size": 4},
    "five tokens": {"vocab_size": 5},
    "257 tokens": {"vocab_size": 257},
    "50257 tokens": {"vocab_size": 50257, "n_embd": 4, "n_positions": 48},
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_gpt2_of_any_shape_is_sampled_as_it_is(name: str) -> None:
    model = small_gpt2(**SHAPES[name])
    prompts = some_prompts(RAGGED[:6], vocabulary=model.config.vocab_size)
    drawn(model, prompts, end_id=END, max_new_tokens=12, samples=2)
    drawn(model, prompts, end_id=END, max_new_tokens=5, greedy=True)


def test_of_two_tokens_one_ends() -> None:
    model = small_gpt2(vocab_size=2)
    prompts = some_prompts((1, 3, 2, 12), vocabulary=2)
    lengths = {len(response.tokens) for response in drawn(model, prompts, end_id=1, max_new_tokens=9, samples=8)}
    assert len(lengths) > 2


@pytest.mark.parametrize("samples", range(1, 10))
@pytest.mark.parametrize("batch_size", [1, 4, 64])
def test_a_prompt_is_shared_by_any_number_of_responses_however_many_fit_at_once(samples: int, batch_size: int) -> None:
    """4 divides few of the numbers of responses: those to one prompt fall into several batches."""
    model = more_likely(small_gpt2(n_layer=1), END, 1.0)
    prompts = some_prompts((5, 1, 11), vocabulary=40)
    responses = drawn(model, prompts, end_id=END, max_new_tokens=8, samples=samples, batch_size=batch_size)
    assert len({response.tokens for response in responses}) > samples


@pytest.mark.parametrize("temperature", [0.2, 0.7, 1.0, 1.7, 5.0])
def test_logits_are_divided_by_the_temperature_once(temperature: float) -> None:
    model = small_gpt2()
    drawn(model, some_prompts(RAGGED, vocabulary=40), end_id=END, max_new_tokens=10, temperature=temperature)


def test_equal_prompts_under_other_keys_have_responses_of_their_own_and_under_one_key_the_same() -> None:
    model = small_gpt2()
    prompt, other = some_prompts((6, 6), vocabulary=40)
    prompts = [prompt, other, prompt, prompt, other, prompt]
    responses = drawn(
        model, prompts, keys=["a", "b", "c", "a", "b", "d"], end_id=END, max_new_tokens=9, samples=3, batch_size=5
    )
    of = [tuple(r.tokens for r in responses[3 * i : 3 * i + 3]) for i in range(6)]
    assert of[0] == of[3]
    assert of[1] == of[4]
    assert len(set(of)) == 4


def test_prompts_that_begin_alike_are_not_taken_for_each_other() -> None:
    """The last token, or one more, or one less, is all that differs."""
    model = small_gpt2()
    trunk = some_prompts((14,), vocabulary=40)[0]
    prompts = [trunk, (*trunk[:-1], (trunk[-1] + 1) % 40), (*trunk, 7), trunk[:-1], trunk[1:], ((trunk[0] + 1) % 40,)]
    drawn(model, prompts, keys=["one"] * 6, end_id=END, max_new_tokens=9, samples=4, batch_size=7)


@pytest.mark.parametrize(("samples", "batch_size"), [(1, 1), (1, 3), (1, 16), (1, 256), (3, 4), (3, 16), (3, 256)])
def test_rows_that_leave_at_once_and_rows_that_stay_do_not_disturb_each_other(samples: int, batch_size: int) -> None:
    """Half of them end at their first token, some stay long: their places are filled again and again."""
    model = more_likely(small_gpt2(), END, 7.5)
    prompts = some_prompts([1 + i * 7 % 23 for i in range(60)], vocabulary=40)
    responses = drawn(model, prompts, end_id=END, max_new_tokens=40, samples=samples, batch_size=batch_size)
    lengths = Counter(len(response.tokens) for response in responses)
    assert lengths[1] > 0.45 * len(responses)
    assert max(lengths) > 10


def test_lengths_from_one_to_the_limit_in_one_batch() -> None:
    model = more_likely(small_gpt2(), END, 3.0)
    prompts = some_prompts([1 + i * 11 % 30 for i in range(40)], vocabulary=40)
    responses = drawn(model, prompts, end_id=END, max_new_tokens=34, batch_size=9)
    assert len({len(response.tokens) for response in responses}) > 12


def test_where_nobody_ends_all_go_to_the_limit() -> None:
    model = more_likely(small_gpt2(), END, -40.0)
    responses = drawn(
        model, some_prompts(RAGGED, vocabulary=40), end_id=END, max_new_tokens=20, samples=3, batch_size=10
    )
    assert {len(response.tokens) for response in responses} == {20}


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_one_token_is_a_response(batch_size: int) -> None:
    model = small_gpt2()
    drawn(model, some_prompts(RAGGED, vocabulary=40), end_id=END, max_new_tokens=1, samples=3, batch_size=batch_size)


def test_an_end_token_in_a_prompt_and_a_prompt_of_it_alone_end_nothing() -> None:
    model = more_likely(small_gpt2(), END, -40.0)
    responses = drawn(model, [(END,), (5, END), (END, END, 7)], end_id=END, max_new_tokens=6, samples=2)
    assert {len(response.tokens) for response in responses} == {6}


@pytest.mark.parametrize("batch_size", [1, 2, 256])
def test_the_last_position_is_used(batch_size: int) -> None:
    """Beside a prompt of one token, which has room to spare."""
    model = more_likely(small_gpt2(n_positions=24), END, -40.0)
    prompts = some_prompts((14, 1, 14, 3), vocabulary=40)
    drawn(model, prompts, end_id=END, max_new_tokens=10, samples=2, batch_size=batch_size)


def test_positions_that_a_model_does_not_have_are_refused() -> None:
    """Never read past the table, nor with the wrong row of it."""
    model = more_likely(small_gpt2(n_positions=16), END, -40.0)
    with pytest.raises((IndexError, ValueError, RuntimeError)):
        drawn(model, some_prompts((10, 2), vocabulary=40), end_id=END, max_new_tokens=12)


def test_more_rows_than_fit_at_once_by_far() -> None:
    model = more_likely(small_gpt2(n_layer=1), END, 1.5)
    prompts = some_prompts([1 + i % 5 for i in range(300)], vocabulary=40)
    drawn(model, prompts, end_id=END, max_new_tokens=6)


def test_a_model_of_float64() -> None:
    model = small_gpt2().double()
    drawn(model, some_prompts(RAGGED, vocabulary=40), end_id=END, max_new_tokens=12, samples=2)


BF16 = 0.1
"""Two or three digits of logits that spread over a few nats."""


def test_a_model_of_bf16_weights() -> None:
    model = small_gpt2(spread=0.2).to(torch.bfloat16)
    prompts = some_prompts(RAGGED, vocabulary=40)
    responses = drawn(model, prompts, end_id=END, max_new_tokens=12, samples=2, tolerance=BF16)
    assert all(isinstance(value, float) for response in responses for value in response.logprobs)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
@pytest.mark.parametrize("precision", ["bf16-autocast", "bf16"])
def test_a_model_that_works_in_bf16(precision: Any) -> None:
    model = work_in(small_gpt2(spread=0.2), precision)
    prompts = some_prompts(RAGGED, vocabulary=40)
    drawn(model, prompts, end_id=END, max_new_tokens=12, samples=2, tolerance=BF16)
    with pytest.raises(AssertionError, match=r"off by|another token"):  # float32 would stay below this
        drawn(model, prompts, end_id=END, max_new_tokens=12, samples=2, tolerance=1e-4)
