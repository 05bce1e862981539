"""A sampler reads the weights that the model has at the call, all of the model, and leaves everything as it was."""

from __future__ import annotations

import copy
import gc
import random
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.masking_utils import eager_mask
from transformers.models.gpt2.modeling_gpt2 import eager_attention_forward

from held_up import drawn, more_likely, small_gpt2, some_prompts, unalike
from preflab.data.pack import pack
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import copy_of
from preflab.models.scoring import response_logprobs
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample

END = 3
PROMPTS = some_prompts((1, 12, 4, 4), vocabulary=40)
LIMITS: dict[str, Any] = {"end_id": END, "max_new_tokens": 8, "samples": 3}


def llama() -> Any:
    config = transformers.LlamaConfig(
        vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return unalike(transformers.LlamaForCausalLM(config))


MODELS: dict[str, Callable[[], Any]] = {
    "gpt2": small_gpt2, "gpt2, untied": lambda: small_gpt2(tie_word_embeddings=False), "llama": llama,
}  # fmt: skip
of_each_model = pytest.mark.parametrize("model", [pytest.param(make, id=name) for name, make in MODELS.items()])


def plain(model: Any, **changes: Any) -> list[Response]:
    keys = [f"key:{i}" for i in range(len(PROMPTS))]
    return sample(model, PROMPTS, **({"keys": keys, "seed": 0} | LIMITS | changes))


def same(found: list[Response], wanted: list[Response]) -> bool:
    """The same tokens, and log-probabilities up to rounding, which depends on where in memory a weight lies."""
    close = all(
        one.logprobs == pytest.approx(other.logprobs, abs=1e-5) for one, other in zip(found, wanted, strict=True)
    )
    return close and [response.tokens for response in found] == [response.tokens for response in wanted]


# Weights as they are at the call.


def by_an_optimizer(model: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    ids = torch.tensor([PROMPTS[1]])
    model(input_ids=ids, labels=ids).loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def by_data(model: Any) -> None:
    """As `work_in` and many a library do it: no version counter sees this."""
    for parameter in model.parameters():
        parameter.data = parameter.data * 1.1


def in_place_behind_autograd(model: Any) -> None:
    for parameter in model.parameters():
        parameter.data.mul_(0.7)


def by_a_state_dict(model: Any) -> None:
    other = copy.deepcopy(model)
    in_place_behind_autograd(other)
    model.load_state_dict(other.state_dict())


def by_other_parameters(model: Any) -> None:
    for module in list(model.modules()):
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                setattr(module, name, nn.Parameter(parameter.detach() * 1.2))
    model.tie_weights()


def of_the_norms_and_biases_alone(model: Any) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3)


def in_inference_mode(model: Any) -> None:
    with torch.inference_mode():
        for parameter in model.parameters():
            parameter.mul_(1.25)


def to_another_precision(model: Any) -> None:
    model.double()


CHANGES = (
    by_an_optimizer, by_data, in_place_behind_autograd, by_a_state_dict, by_other_parameters,
    of_the_norms_and_biases_alone, in_inference_mode, to_another_precision,
)  # fmt: skip


@of_each_model
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_weights_are_those_of_the_call(change: Callable[[Any], None], model: Callable[[], Any]) -> None:
    """Sampled before the change and after it: the second time it is the changed model that speaks."""
    model = model()
    before = drawn(model, PROMPTS, **LIMITS)
    change(model)
    after = drawn(model, PROMPTS, **LIMITS)
    if change is not to_another_precision:
        assert [r.logprobs for r in after] != [r.logprobs for r in before]


@of_each_model
def test_steps_and_samples_in_turn(model: Callable[[], Any]) -> None:
    """Each sample is that of a fresh copy of the model, which was never sampled before."""
    model = model()
    seen = set()
    for _ in range(4):
        by_an_optimizer(model)
        found = drawn(model, PROMPTS, **LIMITS)
        fresh = plain(copy.deepcopy(model))
        assert same(found, fresh)
        seen.add(tuple(r.tokens for r in found))
    assert len(seen) == 4


@of_each_model
def test_two_models_in_turn_keep_apart(model: Callable[[], Any]) -> None:
    one, other = model(), model()
    by_data(other)
    for _ in range(2):
        drawn(one, PROMPTS, **LIMITS)
        drawn(other, PROMPTS, **LIMITS)


def test_models_that_come_and_go_at_one_address_keep_apart() -> None:
    for seed in range(5):
        drawn(small_gpt2(seed=seed), PROMPTS, **LIMITS)


@of_each_model
def test_a_deep_copy_of_a_sampled_model_has_weights_of_its_own(model: Callable[[], Any]) -> None:
    model = model()
    before = plain(model)
    twin = copy.deepcopy(model)
    by_data(twin)
    drawn(twin, PROMPTS, **LIMITS)
    assert same(plain(model), before)
    reference = copy_of(model)
    by_data(model)
    assert same(plain(reference), before)
    drawn(model, PROMPTS, **LIMITS)


@of_each_model
def test_a_sampled_model_is_freed_with_its_last_name(model: Callable[[], Any]) -> None:
    model = model()
    plain(model)
    watched = weakref.ref(model)
    weights = [weakref.ref(parameter) for parameter in model.parameters()]
    del model
    gc.collect()
    assert watched() is None
    assert all(weight() is None for weight in weights)


# All of the model: what someone has put into it or around it counts.


class Steered(nn.Module):
    """A layer with something added to it, as an adapter does."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.layer = layer
        self.shift = nn.Parameter(torch.linspace(-2, 2, width))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.layer(*args, **kwargs) + self.shift


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def adapter(model: Any) -> None:
    mlp = model.transformer.h[0].mlp
    mlp.c_proj = Steered(mlp.c_proj, 16)


def parametrization(model: Any) -> None:
    parametrize.register_parametrization(model.transformer.h[1].attn.c_attn, "weight", Doubled())


def hook_of_a_block(model: Any) -> None:
    model.transformer.h[0].mlp.register_forward_hook(lambda module, args, output: output + 1.5)


def hook_before_a_block(model: Any) -> None:
    model.transformer.h[1].ln_1.register_forward_pre_hook(lambda module, args: (args[0] * 0.3,))


def hook_of_the_model(model: Any) -> None:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        output.logits = output.logits * 0.5
        return output

    model.register_forward_hook(hook)


def hook_of_the_head(model: Any) -> None:
    model.lm_head.register_forward_hook(lambda module, args, output: output * 0.5)


def layer_with_its_weights_the_other_way_round(model: Any) -> None:
    attention = model.transformer.h[0].attn
    linear = nn.Linear(16, 16)
    linear.weight, linear.bias = attention.c_proj.weight, attention.c_proj.bias
    attention.c_proj = linear


def attention_of_ones_own(model: Any) -> None:
    model.config._attn_implementation = "sharper"


def _sharper(module: Any, query: Tensor, *others: Any, **more: Any) -> Any:
    return eager_attention_forward(module, 3 * query, *others, **more)


transformers.AttentionInterface.register("sharper", _sharper)
transformers.AttentionMaskInterface.register("sharper", eager_mask)


def another_forward_of_the_model(model: Any) -> None:
    model.forward = partial(_without_end, model.forward)


def _without_end(forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    outputs = forward(*args, **kwargs)
    outputs.logits = outputs.logits.index_fill(-1, torch.tensor([END]), -1e4)
    return outputs


def another_forward_of_a_block(model: Any) -> None:
    mlp = model.transformer.h[1].mlp
    mlp.forward = partial(_damped, mlp.forward)  # of a partial, unlike of a closure, a deep copy has one of its own


def _damped(forward: Callable[..., Tensor], states: Tensor) -> Tensor:
    return 0.2 * forward(states)


def head_with_a_bias(model: Any) -> None:
    head = nn.Linear(16, 40)
    with torch.no_grad():
        head.weight.copy_(model.lm_head.weight)
        head.bias.copy_(torch.linspace(-2, 2, 40))
    model.lm_head = head


def another_norm(model: Any) -> None:
    model.transformer.ln_f = nn.RMSNorm(16)


def another_activation(model: Any) -> None:
    model.transformer.h[0].mlp.act = nn.Tanh()


def more_tokens(model: Any) -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.resize_token_embeddings(47, mean_resizing=False)
    with torch.no_grad():
        model.transformer.wte.weight[40:] = model.transformer.wte.weight[:7] + 0.1


def blocks_in_another_order(model: Any) -> None:
    model.transformer.h = nn.ModuleList(list(model.transformer.h)[::-1])
    for number, block in enumerate(model.transformer.h):
        block.attn.layer_idx = number


INSIDE = (
    adapter, parametrization, hook_of_a_block, hook_before_a_block, hook_of_the_model, hook_of_the_head,
    layer_with_its_weights_the_other_way_round, attention_of_ones_own, another_forward_of_the_model,
    another_forward_of_a_block, head_with_a_bias, another_norm, another_activation, more_tokens,
    blocks_in_another_order,
)  # fmt: skip


@pytest.mark.parametrize("put_in", INSIDE, ids=lambda put_in: put_in.__name__)
@pytest.mark.parametrize("sampled_before", [False, True])
def test_what_is_sampled_is_the_model_with_all_that_was_put_into_it(
    put_in: Callable[[Any], None], sampled_before: bool
) -> None:
    """A decoder that knows the architecture must see that this is another one by now."""
    model = small_gpt2()
    before = plain(model)
    if not sampled_before:
        model = small_gpt2()
    put_in(model)
    after = drawn(model, PROMPTS, **LIMITS)
    assert [r.logprobs for r in after] != [r.logprobs for r in before]


# Everything as it was.


def state_of(model: Any) -> dict[str, Any]:
    """All that a caller could see of a model."""
    return {
        "weights": {name: (id(t), t.clone(), t._version) for name, t in model.state_dict(keep_vars=True).items()},
        "modules": {name: (id(m), m.training, type(m), sorted(vars(m))) for name, m in model.named_modules()},
        "hooks": {
            name: (len(m._forward_hooks), len(m._forward_pre_hooks), len(m._backward_hooks))
            for name, m in model.named_modules()
        },
        "grads": {
            name: (p.requires_grad, None if p.grad is None else p.grad.clone()) for name, p in model.named_parameters()
        },
        "config": model.config.to_dict() | {"attention": model.config._attn_implementation},
        "generation": model.generation_config.to_dict(),
    }


def unchanged(before: Any, after: Any) -> bool:
    if isinstance(before, Tensor):
        return torch.equal(before, after)
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(unchanged(before[key], after[key]) for key in before)
    if isinstance(before, tuple):
        return len(before) == len(after) and all(map(unchanged, before, after))
    return bool(before == after)


@of_each_model
def test_nothing_about_the_model_changes(model: Callable[[], Any]) -> None:
    model = model()
    freeze(model, 1)
    ids = torch.tensor([PROMPTS[1]])
    model(input_ids=ids, labels=ids).loss.backward()
    plain(model)  # whatever is looked up once is looked up now
    before = state_of(model)
    plain(model)
    plain(model, greedy=True, batch_size=2)
    after = state_of(model)
    for part in before:
        assert unchanged(before[part], after[part]), part


@of_each_model
def test_the_first_sample_leaves_no_hook_and_no_weight_behind(model: Callable[[], Any]) -> None:
    model = model()
    before = state_of(model)
    plain(model)
    after = state_of(model)
    for part in ("weights", "hooks", "grads", "config", "generation"):
        assert unchanged(before[part], after[part]), part


@of_each_model
def test_a_modules_own_mode_is_left_alone(model: Callable[[], Any]) -> None:
    """Frozen parts are in eval mode, others in training mode: nobody but the caller sets that. There is no dropout."""
    model = model()
    modes = {}
    for number, (name, module) in enumerate(model.named_modules()):
        module.training = bool(number % 2)
        modes[name] = module.training
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for name in ("attn_dropout", "attention_dropout"):
        for module in model.modules():
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    plain(model)
    assert {name: module.training for name, module in model.named_modules()} == modes


@of_each_model
def test_no_global_generator_is_read_or_moved(model: Callable[[], Any]) -> None:
    model = model()
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # type: ignore[index, union-attr]
    first = plain(model)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # type: ignore[index]
    assert random.getstate() == states[2]
    torch.manual_seed(2)
    np.random.seed(2)
    random.seed(2)
    assert same(plain(model), first)


@of_each_model
def test_grad_mode_threads_and_default_dtype_are_the_callers(model: Callable[[], Any]) -> None:
    model = model()
    first = plain(model)
    for grad in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        with grad():
            modes = torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()
            assert same(plain(model), first)
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.get_num_threads()) == modes
    assert not torch.is_autocast_enabled("cpu")
    assert torch.get_default_dtype() == torch.float32


@of_each_model
def test_a_model_trains_after_it_was_sampled_as_if_it_had_not_been(model: Callable[[], Any]) -> None:
    """No inference tensor is left in it, no cast of a weight made without gradients."""
    twins = model(), model()
    plain(twins[0])
    for one in twins:
        batch = pack([response.tree for response in plain(copy.deepcopy(one))])
        response_logprobs(one, batch).sum().backward()
    for first, second in zip(*(one.parameters() for one in twins), strict=True):
        assert (first.grad is None) == (second.grad is None)
        assert first.grad is None or torch.equal(first.grad, second.grad)
    ids = torch.tensor([PROMPTS[1]])
    for one in twins:
        one.zero_grad()
        one(input_ids=ids, labels=ids).loss.backward()
    assert all(torch.equal(a.grad, b.grad) for a, b in zip(*(one.parameters() for one in twins), strict=True))


def test_responses_are_plain_numbers() -> None:
    for response in plain(small_gpt2()):
        assert all(type(token) is int for token in response.tokens)
        assert all(type(value) is float for value in response.logprobs)
        assert type(response.ended) is bool
        assert hash(response.tree) == hash(response.tree)


@of_each_model
def test_other_parts_and_the_sampler_do_not_disturb_each_other(model: Callable[[], Any]) -> None:
    """Scoring in the tree layout puts hooks on the last block, checkpointing another forward pass on each, freezing
    closes some to gradients: samples in between, inside and after are the same."""
    model = model()
    first = plain(model)
    batch = pack([response.tree for response in first])
    with torch.no_grad():
        scores = response_logprobs(model, batch)
    assert same(plain(model), first)
    freeze(model, 1)
    with checkpointed(model):
        assert same(plain(model), first)
        loss = response_logprobs(model, batch).sum()
        assert same(plain(model), first)  # between a forward pass and its backward pass
        loss.backward()
    with torch.no_grad():
        assert torch.equal(response_logprobs(model, batch), scores)
    assert same(plain(model), first)


def test_generate_is_what_it_was() -> None:
    model = more_likely(small_gpt2(), END, 2.0)
    ids = torch.tensor([PROMPTS[1]])
    before = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, pad_token_id=0)
    plain(model)
    after = model.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6, pad_token_id=0)
    assert torch.equal(before, after)


def test_a_sampled_model_is_saved_with_the_weights_that_it_has(tmp_path: Any) -> None:
    model = small_gpt2()
    plain(model)
    by_data(model)
    plain(model)
    model.save_pretrained(tmp_path)
    assert same(plain(transformers.GPT2LMHeadModel.from_pretrained(tmp_path).eval()), plain(model))
