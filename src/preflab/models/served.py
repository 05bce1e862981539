"""Someone else's attention in a model's layers, for any model that asks transformers for its attention function.

While `attending` holds, the model's configurations name our function, and every layer's queries, keys and values go to
the pass under way, which says what a cell sees.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn

MASKED, UNMASKED = "preflab", "preflab_unmasked"
"""What transformers calls this attention; by the second name it makes no masks."""


class Pass(Protocol):
    """A forward pass whose attention is someone else's."""

    configs: tuple[Any, ...]
    """`configs_of` the model."""
    masked: bool
    """Whether it is told what the model's masks are."""

    def attention(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 head cell channel"],
        key: Float[Tensor, "1 few cell channel"],
        value: Float[Tensor, "1 few cell other"],
        mask: Tensor | None,
        **asked: Any,
    ) -> Float[Tensor, "1 cell head other"]:
        """One layer's; what else a layer may ask for is transformers' `AttentionInterface`."""
        ...

    def mask(self, sees: Callable[..., Tensor]) -> Tensor | None:
        """What layers are given for one of the model's masks: `sees` says whether (row, head, query, key) sees."""
        ...


_current: ContextVar[Pass | None] = ContextVar("pass", default=None)


def current() -> Pass | None:
    """The pass under way; None where a model attends for itself."""
    return _current.get()


def configs_of(model: nn.Module) -> tuple[Any, ...]:
    """The configurations in a model, by which its layers find their attention."""
    every: list[Any] = [part.config for part in model.modules() if hasattr(part, "config")]
    return tuple({id(config): config for config in every}.values())


@contextmanager
def attending(this: Pass | None) -> Iterator[None]:
    """Layers that run in this block belong to the pass `this`; None is a pass that attends for itself.

    A layer that runs again in the backward pass, maybe in another thread, finds its pass by this.
    """
    if this is None:
        yield
        return
    before = [config._attn_implementation_internal for config in this.configs]
    token = _current.set(this)
    try:
        for config in this.configs:
            config._attn_implementation_internal = MASKED if this.masked else UNMASKED
        yield
    finally:
        for config, name in zip(this.configs, before, strict=True):
            config._attn_implementation_internal = name
        _current.reset(token)


def first_unseen(sees: Callable[..., Tensor], within: int) -> int | None:
    """The first place below `within` that does not see the first key; None where all do.

    Args:
        sees: whether (row, head, query, key) sees, by their places; a window, so that no later place sees it again.
    """
    zero = torch.tensor(0)
    if within < 2 or sees(zero, zero, torch.tensor(within - 1), zero):
        return None
    near, far = 0, within - 1
    while far - near > 1:
        middle = (near + far) // 2
        near, far = (middle, far) if sees(zero, zero, torch.tensor(middle), zero) else (near, middle)
    return far


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **asked: Any
) -> tuple[Tensor, None]:
    """transformers' attention interface."""
    this = _current.get()
    assert this is not None
    return this.attention(module, query, key, value, attention_mask, **asked), None


def _mask(*, mask_function: Callable[..., Tensor], **kwargs: Any) -> Tensor | None:
    """transformers' mask interface."""
    this = _current.get()
    assert this is not None
    return this.mask(mask_function)


transformers.AttentionInterface.register(MASKED, _attention)
transformers.AttentionInterface.register(UNMASKED, _attention)
transformers.AttentionMaskInterface.register(MASKED, _mask)
