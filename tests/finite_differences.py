"""Derivatives without autograd."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def central_differences(function: Callable[[Tensor], Tensor], point: Tensor, *, step: float = 1e-6) -> Tensor:
    """∂Σ function(point)/∂point, each element by (f(x + h) − f(x − h))/2h; float64 in, float64 out."""
    assert point.dtype == torch.float64
    gradient = torch.zeros_like(point)
    for index in range(point.numel()):
        offset = torch.zeros_like(point)
        offset.view(-1)[index] = step
        with torch.no_grad():
            rise = function(point + offset).sum() - function(point - offset).sum()
        gradient.view(-1)[index] = rise / (2 * step)
    return gradient
