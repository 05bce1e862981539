"""The precision that a model works in. This file alone knows what each of them means.

| precision     | weights | matrix products | what is trained       |
|---------------|---------|-----------------|-----------------------|
| fp32          | float32 | float32         | the weights           |
| bf16-autocast | float32 | bf16            | the weights           |
| bf16          | bf16    | bf16            | float32 masters of them (`training/optimizer.py`) |

Log-softmax, losses, scores, values and all sums over tokens are in float32 in each of them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from preflab.config.training import Precision
from preflab.errors import ConfigError

P = ParamSpec("P")
T = TypeVar("T")


def has_bf16(device: torch.device) -> bool:
    """Whether the device itself has bf16 instructions; what emulates them is slower than float32."""
    match device.type:
        case "cuda":
            return torch.cuda.is_bf16_supported(including_emulation=False)
        case "cpu" if platform.machine() in ("x86_64", "AMD64"):  # oneDNN says yes to any AVX-512 here, and emulates
            return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        case "cpu":
            return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        case _:
            return False


def check_precision(precision: Precision, device: torch.device | str) -> None:
    """Raises ConfigError where the device can't work in this precision."""
    device = torch.device(device)
    if precision != "fp32" and not has_bf16(device):
        what = "this processor" if device.type == "cpu" else f"the device {device}"
        raise ConfigError(f"precision = {precision}, but {what} has no bf16 instructions; use --precision fp32")


def work_in(model: Any, precision: Precision) -> Any:
    """The same model, to work in this precision from here on; before an optimiser sees its weights.

    Raises:
        ConfigError: its device can't.
    """
    check_precision(precision, model.device)
    weights = torch.bfloat16 if precision == "bf16" else torch.float32
    for parameter in model.parameters():  # buffers stay: rotary frequencies in bf16 would misplace far tokens
        parameter.data = parameter.data.to(weights)
    # On the model itself, so that copies of it work alike; it is not saved.
    model.preflab_precision = precision
    return model


def precision_of(model: Any) -> Precision:
    """What `work_in` was told; fp32 stands for the weights' own precision."""
    precision: Precision = getattr(model, "preflab_precision", "fp32")
    return precision


@contextmanager
def working(model: Any) -> Iterator[None]:
    """Forward passes of `model` in this block are in its precision.

    Casts of weights are not kept: one that was made without gradients, or before an optimiser step, would be a wrong
    one later.
    """
    kind = model.device.type
    match precision_of(model):
        case "bf16-autocast":
            with torch.autocast(kind, torch.bfloat16, cache_enabled=False):
                yield
        case "bf16" if kind == "cpu" and torch.is_grad_enabled():
            with _WideSums():
                yield
        case _:
            yield


def at_work(function: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A function of a model, run in that model's precision."""

    @wraps(function)
    def worked(model: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        with working(model):
            return function(model, *args, **kwargs)

    return worked


def of_products(tensor: Tensor) -> torch.dtype:
    """In which precision a matrix product with this tensor is made here."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def wide(tensor: Tensor) -> Tensor:
    """In float32, or as it is where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def in_bf16(model: Any) -> bool:
    """Whether its matrix products are in bf16, so that two passes in different batches agree to some 3 digits only."""
    return precision_of(model) == "bf16-autocast" or bool(model.dtype == torch.bfloat16)


class _WideSums(TorchFunctionMode):
    """Layer norms and embeddings whose weights' gradients are summed over tokens in float32.

    On a CPU torch sums them in bf16, even where a layer norm's weights are float32: over 1300 tokens that is 4 % off.
    Every other sum is in float32 already, and so are these on a GPU.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.layer_norm:
            return _layer_norm(*args, **kwargs)
        if func is functional.embedding:
            return _embedding(*args, **kwargs)
        return func(*args, **kwargs)


def _layer_norm(
    input: Tensor, shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    if weight is None or bias is None or len(shape) != 1 or input.dtype != torch.bfloat16:
        return functional.layer_norm(input, shape, weight, bias, eps)
    return _LayerNorm.apply(input, weight, bias, eps)


def _embedding(
    input: Tensor,
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Tensor:
    if max_norm is not None or scale_grad_by_freq or sparse:
        return functional.embedding(input, weight, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
    return _Lookup.apply(input, weight, padding_idx)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        output, mean, scale = torch.native_layer_norm(input, weight.shape, weight, bias, eps)
        ctx.save_for_backward(input, weight, bias, mean, scale)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, bias, mean, scale = ctx.saved_tensors
        of_input, _, _ = torch.ops.aten.native_layer_norm_backward(
            grad, input, weight.shape, mean, scale, weight, bias, [ctx.needs_input_grad[0], False, False]
        )
        of_weight = of_bias = None
        rows = grad.flatten(0, -2).float()
        if ctx.needs_input_grad[2]:
            of_bias = rows.sum(0).to(bias.dtype)
        if ctx.needs_input_grad[1]:
            normed = (input.float() - mean).mul_(scale).flatten(0, -2)
            of_weight = normed.mul_(rows).sum(0).to(weight.dtype)
        return of_input, of_weight, of_bias, None


class _Lookup(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: Tensor, padding: int | None) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.shape, ctx.padding = weight.shape, padding
        return functional.embedding(ids, weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (ids,) = ctx.saved_tensors
        seen, place = ids.unique(return_inverse=True)
        sums = torch.zeros(len(seen), grad.shape[-1], device=grad.device)
        sums.index_add_(0, place.flatten(), grad.flatten(0, -2).float())
        if ctx.padding is not None:
            sums[seen == ctx.padding] = 0.0
        return None, grad.new_zeros(ctx.shape).index_copy_(0, seen, sums.to(grad.dtype)), None
