"""A decoder of any causal model of transformers: its own modules, on one row of cells, their attention handed over.

Which models that suits is tried, once for each and for each configuration that it is given: one whose layers all ask
transformers for their attention function, and ask it for no more than a decoder's attention does, and whose states come
out as those of its own pass, sequence by sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from preflab.models.head import close, head_of, without_dropout
from preflab.models.load import heard
from preflab.models.precision import wide, working
from preflab.models.served import attending, configs_of, first_unseen
from preflab.rollouts.decoder import Attend

FAR = 2**24
"""No sequence is longer, in tokens."""


class NotServed(Exception):
    """A layer asks for something that a decoder's attention doesn't have."""


class Modules:
    """A model's body, run through transformers' modules."""

    def __init__(self, model: Any) -> None:
        self.name = f"{type(model).__name__} on transformers' layers"
        self.model = model
        self.configs = configs_of(model)

    def states(
        self, token_ids: Int[Tensor, " cell"], positions: Int[Tensor, " cell"], attend: Attend
    ) -> Float[Tensor, "cell width"]:
        """The last hidden state of each cell, as the output head reads it.

        Raises:
            NotServed: a layer asks for what `attend` doesn't have.
        """
        return _states(self.model, token_ids, positions, _Pass(self.configs, attend))


def modules_of(model: Any, longest: int) -> Modules | None:
    """The model's decoder for sequences of up to `longest` tokens; None where it has none, as `why_not` says."""
    return Modules(model) if why_not(model, longest) is None else None


def why_not(model: Any, longest: int) -> str | None:
    """Why the model has no decoder through its modules for sequences of up to `longest` tokens; None where it has."""
    if model.training:
        return "it is in training mode"
    if head_of(model) is None:
        return "its logits are more than a product of its last states"
    said = heard(model.config)  # windows and the like may be edited
    if model not in _reach or _reach[model][0] != said:
        with without_dropout(model), working(model):
            _reach[model] = said, _tried(model)
    reach = _reach[model][1]
    if isinstance(reach, str):
        return reach
    if longest > reach:
        return f"attention window of {reach}"
    steady = steady_length(model)
    return f"its rotary frequencies change beyond {steady} tokens" if longest > steady else None


def steady_length(model: Any) -> int:
    """The longest sequence, in tokens, in which a token's rotary frequencies are those of any shorter one."""
    lengths = [FAR]
    for config in configs_of(model):
        given = getattr(config, "rope_parameters", None) or {}
        for rope in (given, *(each for each in given.values() if isinstance(each, dict))):
            if rope.get("rope_type") in ("dynamic", "longrope"):
                lengths.append(rope.get("original_max_position_embeddings") or config.max_position_embeddings)
    return min(lengths)


@dataclass
class _Pass:
    """A pass whose layers attend by an attend function; they are counted as they come."""

    configs: tuple[Any, ...]
    attend: Attend
    masked: bool = False
    calls: int = 0
    window: int = FAR
    """The longest sequence whose last token sees the first one in every layer, as their masks say."""

    def attention(
        self,
        module: nn.Module,
        query: Float[Tensor, "1 head cell channel"],
        key: Float[Tensor, "1 few cell channel"],
        value: Float[Tensor, "1 few cell channel"],
        mask: Tensor | None,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
        **asked: Any,
    ) -> Float[Tensor, "1 cell head channel"]:
        layer = self.calls
        self.calls += 1
        if self.masked and mask is not None:
            self.window = min(self.window, int(mask[0, 0, 0, 0]))
        elif mask is not None:
            raise NotServed("a layer masks for itself")
        for name, what in asked.items():
            if isinstance(what, Tensor) and name != "position_ids":
                raise NotServed(f"its attention takes {name}")
        if value.shape != key.shape:
            raise NotServed("its values have other sizes than its keys")
        # Autocast leaves rotated queries and keys in float32.
        q, k, v = (part[0].transpose(0, 1).to(value.dtype).contiguous() for part in (query, key, value))
        with _uncast(query.device.type):  # what attends has a precision of its own
            return self.attend(layer, q, k, v, scaling=scaling, softcap=softcap).unsqueeze(0)

    def mask(self, sees: Callable[..., Tensor]) -> Int[Tensor, "1 1 1 1"]:
        """Its window, so that the layers that use it tell."""
        return torch.full((1, 1, 1, 1), first_unseen(sees, FAR) or FAR)


def _uncast(kind: str) -> AbstractContextManager[Any]:
    """No autocast on that kind of device; nothing to do, and at once, where there is none."""
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nullcontext()


def _states(model: Any, token_ids: Tensor, positions: Tensor, this: _Pass) -> Float[Tensor, "cell width"]:
    with working(model), attending(this):
        outputs = model.base_model(
            input_ids=token_ids.unsqueeze(0), position_ids=positions.unsqueeze(0), use_cache=False
        )
    states: Tensor = outputs.last_hidden_state[0]
    return states


ROWS = ((1, 2, 3, 4, 0, 5), (5, 1, 0, 1), (4, 3, 2, 5, 1), (0, 1, 5, 2, 4))
"""What a model is tried on: sequences of several lengths, two of them alike."""
STEPS = 3
"""How many of each row's tokens come one by one."""

_reach: WeakKeyDictionary[Any, tuple[dict[str, Any], int | str]] = WeakKeyDictionary()


@torch.no_grad()
def _tried(model: Any) -> int | str:
    """The longest sequence whose last token sees the first, or why the model is not for this file at all."""
    body = model.base_model
    positions = getattr(body.config, "max_position_embeddings", None)
    if len(body.get_input_embeddings().weight) < 6 or (positions or 6) < 6:
        return "it is too small to try"

    def cells(rows: Sequence[int], begins: Sequence[int], ends: Sequence[int], *, masked: bool = False) -> Any:
        """The states of some rows' next tokens, and the pass that made them."""
        places = [(row, at) for row, begin, end in zip(rows, begins, ends, strict=True) for at in range(begin, end)]
        kept.rows = [row for row, _ in places]
        token_ids, positions = (
            torch.tensor(what, device=model.device)
            for what in ([ROWS[row][at] for row, at in places], [at for _, at in places])
        )
        this = _Pass(configs_of(model), kept, masked=masked)
        return _states(model, token_ids, positions, this), this

    try:
        rows = range(len(ROWS))
        expected = [body(input_ids=torch.tensor([row], device=model.device), use_cache=False)[0][0] for row in ROWS]
        kept = _Kept()
        _, first = cells([0], [0], [len(ROWS[0])], masked=True)
        if first.calls != body.config.get_text_config().num_hidden_layers:
            return "not every layer asks transformers for its attention"
        if first.window < len(ROWS[0]):
            return f"attention window of {first.window}"
        kept = _Kept()
        prompts = [len(row) - STEPS for row in ROWS]
        found, _ = cells(rows, [0] * len(ROWS), prompts)
        parts = [list(part) for part in found.split(prompts)]
        for step in range(STEPS):
            begins = [prompt + step for prompt in prompts]
            found, _ = cells(rows, begins, [begin + 1 for begin in begins])
            for part, state in zip(parts, found, strict=True):
                part.append(state)
    except NotServed as reason:
        return str(reason)
    except Exception as error:  # whatever a model makes of one row of many sequences
        return f"its modules stop at a row of many sequences ({type(error).__name__}: {error})".splitlines()[0]
    same = all(close(torch.stack(part), row) for part, row in zip(parts, expected, strict=True))
    return first.window if same else "its states are others then"


@dataclass
class _Kept:
    """Plain attention over the keys and values of a few short rows."""

    rows: list[int] = field(default_factory=list)
    """The row of each cell of the call under way; a row's cells come in order."""
    pairs: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = field(default_factory=dict)
    """Keys and values of each layer and row."""

    def __call__(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        scaling: float | None = None,
        softcap: float | None = None,
    ) -> Tensor:
        attended = []
        times = query.shape[1] // key.shape[1]
        for cell, row in enumerate(self.rows):
            pairs = self.pairs.setdefault((layer, row), [])
            pairs.append((key[cell], value[cell]))
            keys, values = (wide(torch.stack(part, 1)).repeat_interleave(times, 0) for part in zip(*pairs, strict=True))
            scores = (wide(query[cell]).unsqueeze(1) @ keys.mT) * (scaling or query.shape[-1] ** -0.5)
            if softcap is not None:
                scores = torch.tanh(scores / softcap) * softcap
            attended.append((scores.softmax(-1) @ values).squeeze(1))
        return torch.stack(attended).to(query.dtype)
