"""The precision that a model works in. This file alone knows what each of them means.

| precision     | weights | matrix products | what is trained       |
|---------------|---------|-----------------|-----------------------|
| fp32          | float32 | float32         | the weights           |
| bf16-autocast | float32 | bf16            | the weights           |
| bf16          | bf16    | bf16            | float32 masters of them (`training/optimizer.py`) |

Layer norms keep float32 weights on a CPU: torch sums their gradients over all tokens in the precision of the weights
there, and 8 bits lose the most of it. Log-softmax, losses, scores, values and all sums over tokens are in float32 in each of them.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

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
    for module in model.modules():
        wide = precision != "bf16" or (isinstance(module, nn.LayerNorm) and model.device.type == "cpu")
        # Buffers stay as they are: rotary frequencies in bf16 would misplace far tokens.
        for parameter in module.parameters(recurse=False):
            parameter.data = parameter.data.to(torch.float32 if wide else torch.bfloat16)
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
    if precision_of(model) != "bf16-autocast":
        yield
        return
    with torch.autocast(model.device.type, torch.bfloat16, cache_enabled=False):
        yield


def at_work(function: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A function of a model, run in that model's precision."""

    @wraps(function)
    def at_work(model: Any, *args: P.args, **kwargs: P.kwargs) -> T:
        with working(model):
            return function(model, *args, **kwargs)

    return at_work


def of_products(tensor: Tensor) -> torch.dtype:
    """In which precision a matrix product with this tensor is made here."""
    kind = tensor.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else tensor.dtype


def wide(tensor: Tensor) -> Tensor:
    """In float32, or as it is where that is wider."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def nats_of_rounding(model: Any, in_fp32: float) -> float:
    """How far a log-probability may be from itself in another batch, where float32 allows `in_fp32`.

    bf16 rounds 2¹⁶ times as coarsely, but to what a token's logits are: 1/16 at logits of 16.
    """
    return in_fp32 if precision_of(model) == "fp32" and model.dtype != torch.bfloat16 else 1.0
