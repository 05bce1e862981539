"""Attention of the tree layout, for any model that asks transformers for its attention function (`models/served.py`).

While `laid_out` holds, the model's attention runs segment by segment: prompts see themselves, responses their prompt
and themselves. What can't be had so raises `NoTree`, and the caller takes the flat layout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from preflab.data.pack import Layout, Segments
from preflab.models.precision import wide
from preflab.models.served import attending, configs_of, current, first_unseen


class NoTree(Exception):
    """The model's attention asks for something that this file doesn't have."""


@dataclass
class Pass:
    """The layout of the forward pass under way."""

    layout: Layout
    configs: tuple[Any, ...] = ()
    """Those of the model, which say by what name its layers find their attention."""
    masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)
    """Of each of the layout's segments: made by the first layer, shared by the others."""
    calls: int = 0
    """How often a layer has attended."""
    masked: bool = True

    def attention(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 head cell channel"],
        key: Float[Tensor, "1 few cell channel"],
        value: Float[Tensor, "1 few cell other"],
        mask: Tensor | None,
        *,
        scaling: float | None = None,
        dropout: float = 0.0,
        softcap: float | None = None,
        **asked: Any,
    ) -> Float[Tensor, "1 cell head other"]:
        """One layer's, on a tree."""
        if extras := [name for name in ("s_aux", "position_bias") if asked.get(name) is not None]:
            raise NoTree(f"its attention takes {extras[0]}")
        self.calls += 1
        layout = self.layout
        assert layout.slots is not None
        # On a CPU in float32 at least: torch's kernels in bf16 are up to twice as slow, and what they round depends on
        # the batch mates. [cell, head × channel]: rows in one piece are the fastest to pick.
        dtype = query.dtype if query.is_cuda else torch.promote_types(query.dtype, torch.float32)
        q, k, v = (part[0].transpose(0, 1).flatten(1).to(dtype).contiguous() for part in (query, key, value))

        def heads(rows: Tensor, like: Tensor, segments: int) -> Float[Tensor, "segment head token channel"]:
            split = rows.view(segments, -1, *like.shape[1::2]).transpose(1, 2)
            times = query.shape[1] // like.shape[1]
            return split.repeat_interleave(times, 1) if times > 1 else split

        outputs = []
        for number, part in enumerate(layout.segments):
            n = len(part.queries)
            seen = (part.queries if part.keys is None else part.keys).flatten()
            masked = None
            if part.keys is not None or softcap is not None:
                if (number, dtype) not in self.masks:
                    self.masks[number, dtype] = _mask(part, dtype)
                masked = self.masks[number, dtype]
            with torch.autocast(query.device.type, enabled=query.is_cuda and torch.is_autocast_enabled("cuda")):
                attended = attend(
                    heads(q.index_select(0, part.queries.flatten()), query, n),
                    heads(k.index_select(0, seen), key, n),
                    heads(v.index_select(0, seen), value, n),
                    masked,
                    scaling=scaling,
                    dropout=dropout,
                    softcap=softcap,
                )
            outputs.append(attended.transpose(1, 2).flatten(0, 1).to(value.dtype))
        return torch.cat(outputs).index_select(0, layout.slots).unsqueeze(0)

    def mask(self, sees: Callable[..., Tensor]) -> None:
        """None, as the layout has its own.

        Raises:
            NoTree: a window is shorter than the longest sequence.
        """
        if first_unseen(sees, self.layout.longest) is not None:
            raise NoTree(f"a window of its attention is shorter than {self.layout.longest} tokens")


def under_way() -> Pass | None:
    """The forward pass under way in the tree layout; None where there is none."""
    this = current()
    return this if isinstance(this, Pass) else None


@contextmanager
def laid_out(model: nn.Module, layout: Layout) -> Iterator[Pass]:
    """Forward passes of `model` in this block attend as `layout` says."""
    this = Pass(layout, configs_of(model))
    with attending(this):
        yield this


def _mask(part: Segments, dtype: torch.dtype) -> Float[Tensor, "any 1 query key"]:
    """0 where a query sees a key, −∞ elsewhere. Every query sees a key, also where it is padding."""
    device = part.queries.device
    prompts = torch.zeros_like(part.lengths[:1]) if part.prompts is None else part.prompts
    keys = part.queries if part.keys is None else part.keys
    last = prompts.view(-1, 1, 1) + torch.arange(part.queries.shape[1], device=device).unsqueeze(1)
    unseen = torch.arange(keys.shape[1], device=device) > last
    return torch.zeros(unseen.shape, dtype=dtype, device=device).masked_fill_(unseen, -torch.inf).unsqueeze(1)


def attend(
    query: Float[Tensor, "segment head query channel"],
    key: Float[Tensor, "segment head key channel"],
    value: Float[Tensor, "segment head key other"],
    mask: Float[Tensor, "any 1 query key"] | None,
    *,
    scaling: float | None,
    dropout: float,
    softcap: float | None,
) -> Float[Tensor, "segment head query other"]:
    """softmax(q·k·scaling, soft-capped, + mask)·v; causal without a mask."""
    if softcap is None:
        return scaled_dot_product_attention(
            query, key, value, attn_mask=mask, is_causal=mask is None, dropout_p=dropout, scale=scaling
        )
    assert mask is not None
    scores = wide(query @ key.transpose(2, 3)) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    scores = torch.tanh(scores / softcap) * softcap + mask
    weights = scores.softmax(-1).to(query.dtype)
    return torch.dropout(weights, dropout, train=dropout > 0) @ value


def tree_states(body: Any, layout: Layout, *, layers: int | None = None) -> Float[Tensor, "cell width"]:
    """The last hidden state of every cell of a tree.

    Args:
        layers: how many layers attend; None: all.

    Raises:
        NoTree: the model can't have this layout, or not this batch in it.
    """
    if body.training and any(getattr(part, "gradient_checkpointing", False) for part in body.modules()):
        raise NoTree("transformers' gradient checkpointing, unlike activation_checkpointing, forgets the layout")
    with _remembered(body, layout.longest), laid_out(body, layout) as this:
        # A mask of ones keeps transformers from taking each restart of the positions for a sequence of its own.
        outputs = body(
            input_ids=layout.token_ids,
            attention_mask=torch.ones_like(layout.token_ids),
            position_ids=layout.position_ids,
            use_cache=False,
        )
    if this.calls != (body.config.num_hidden_layers if layers is None else layers):
        raise NoTree("not every layer asks transformers for its attention")
    return outputs.last_hidden_state[0]


def refused(body: Any, longest: int) -> bool:
    """Whether the model refused a layout of so many tokens, or a shorter one: a window of its attention is shorter."""
    window = getattr(body.config, "sliding_window", None) or longest
    return longest > window or longest >= _refused.get(body, longest + 1)


@contextmanager
def _remembered(body: Any, longest: int) -> Iterator[None]:
    """What is refused here is too long for a window of the model's attention."""
    try:
        yield
    except NoTree:
        _refused[body] = min(longest, _refused.get(body, longest))
        raise


_refused: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
"""The shortest layout that a model refused."""
