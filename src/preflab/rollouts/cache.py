"""Keys and values of responses that began together, and attention to them.

All responses are of one length, so a token's key and value go to one column of a static cache, and no mask is needed
there. A prompt with one response, or of a few tokens, lies in the same columns, in front of it. Others are kept once
each: all responses to a prompt look at it in one matrix product, where each by itself would read its keys again.

Attention of one query is two batched products here. torch's kernel for it spends most of its time outside the
arithmetic on a CPU: 2.4 ms a layer of GPT-2 small at 64 rows of 64 tokens, against 0.9.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from preflab.models.attention import attend
from preflab.models.precision import wide

COLUMNS = 16
"""A cache's columns are a multiple of this many; when full, it grows by so many, and an eighth.

Few are empty, so that all are multiplied: a part of the columns is not dense, and torch takes 2 to 4 times as long for
a batched product with it on a CPU.
"""
COPIED = 4
"""A prompt of at most so many tokens is copied to each of its responses: to look at it apart costs more than to read it
as often."""
MOST_USED = 0.75
"""Where no larger share of its rows is in use, the room of the others is given back: the next cohort takes it."""


def grown(filled: int) -> int:
    """Columns of a cache that has more than are filled."""
    return (filled // COLUMNS + 1 + filled // (8 * COLUMNS)) * COLUMNS


class Cache:
    """Of some rows, each a response in the making."""

    def __init__(self, lengths: Sequence[int], responses: Sequence[int], device: torch.device) -> None:
        """
        Args:
            lengths: of each prompt, in tokens.
            responses: to each prompt; their rows are in this order.
        """
        self.lengths = list(lengths)
        self.places = max(lengths)
        self.responses = responses
        self.shared = max(responses) > 1 and self.places > COPIED
        self.prompt_of = [prompt for prompt, count in enumerate(responses) for _ in range(count)]
        """Of each row."""
        self.first = 0 if self.shared else self.places
        self.filled = self.first
        """Columns that are filled; the others hold zeros."""
        self.columns = grown(self.filled)
        self.device = device
        # Of each layer.
        self.keys: list[Float[Tensor, "row few column channel"]] = []
        self.values: list[Float[Tensor, "row few column channel"]] = []
        self.prompt_keys: list[Float[Tensor, "prompt few place channel"]] = []
        self.prompt_values: list[Float[Tensor, "prompt few place channel"]] = []
        self.bias: Float[Tensor, "row 1 place"] | None = None
        """−∞ where a prompt is shorter than the longest."""
        if min(lengths) < self.places:
            of_rows = torch.tensor([lengths[prompt] for prompt in self.prompt_of], device=device)
            beyond = torch.arange(self.places, device=device) >= of_rows.view(-1, 1, 1)
            self.bias = torch.zeros(beyond.shape, device=device).masked_fill_(beyond, -torch.inf)
        if self.shared:
            self._regroup()

    def reading(self, prompts: slice) -> _Reading:
        """Attention of these prompts' cells, one prompt after another, to themselves."""
        return _Reading(self, prompts)

    def step(
        self,
        layer: int,
        query: Float[Tensor, "row head channel"],
        key: Float[Tensor, "row few channel"],
        value: Float[Tensor, "row few other"],
        *,
        scaling: float | None = None,
        softcap: float | None = None,
    ) -> Float[Tensor, "row head other"]:
        """`Attend`, of each row's newest token."""
        rows, heads, channels = query.shape
        few = key.shape[1]
        keys, values = self._kept(self.keys[layer], key), self._kept(self.values[layer], value)
        query = query * (channels**-0.5 if scaling is None else scaling)
        query = query.view(rows * few, heads // few, channels)
        scores = torch.bmm(query, keys.transpose(1, 2))
        if self.shared:
            front = torch.bmm(self._together(query, few), self.prompt_keys[layer].flatten(0, 1).transpose(1, 2))
            scores = torch.cat([self._apart(front, few), scores], -1)
        if softcap is not None:
            scores = torch.tanh(wide(scores) / softcap) * softcap
        if self.filled < self.columns:
            scores[:, :, self.filled - self.columns :] = -torch.inf
        if self.bias is not None:
            scores.view(rows, heads, -1)[..., : self.places] += self.bias[:rows]
        weights = scores.softmax(-1).to(values.dtype)
        if not self.shared:
            return torch.bmm(weights, values).view(rows, heads, -1)
        front = torch.bmm(self._together(weights[..., : self.places], few), self.prompt_values[layer].flatten(0, 1))
        attended = torch.bmm(weights[..., self.places :], values)
        return attended.add_(self._apart(front, few)).view(rows, heads, -1)

    def advance(self) -> None:
        """Go to the next column, before a step."""
        if self.filled == self.columns:
            self.columns = grown(self.filled)
            self._resize()
        self.filled += 1

    def leave(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Keep the first `rows` rows, after moves from a place to another."""
        if not rows:
            return
        kept = [*self.keys, *self.values, *([] if self.bias is None else [self.bias])]
        for source, target in moves:
            self.prompt_of[target] = self.prompt_of[source]
            for full in kept:
                full[target] = full[source]
        del self.prompt_of[rows:]
        if self.shared:
            self._regroup()
        if rows <= MOST_USED * len(self.keys[0]):
            self._resize()

    def _resize(self) -> None:
        """Room for the rows that there are and for `columns`, no more."""
        rows = len(self.prompt_of)
        for kept in (self.keys, self.values):
            for layer, full in enumerate(kept):
                kept[layer] = full.new_empty(rows, full.shape[1], self.columns, full.shape[3])
                kept[layer][:, :, : self.filled] = full[:rows, :, : self.filled]
                kept[layer][:, :, self.filled :] = 0

    def _kept(self, full: Tensor, newest: Tensor) -> Float[Tensor, "row_few column channel"]:
        """What is kept of a layer's keys or values, the newest put at its end."""
        live = full[: len(newest)]
        live[:, :, self.filled - 1] = newest
        return live.flatten(0, 1)

    def _regroup(self) -> None:
        """Which rows belong to which prompt: as a table of prompts by their largest number of rows."""
        members: dict[int, list[int]] = {prompt: [] for prompt in sorted(set(self.prompt_of))}
        for row, prompt in enumerate(self.prompt_of):
            members[prompt].append(row)
        if len(members) < len(self.lengths):
            self._forget(list(members))
        self.most = max(map(len, members.values()))
        table = [[*rows, *rows[:1] * (self.most - len(rows))] for rows in members.values()]
        order = [row for rows in table for row in rows]
        self.order: Tensor | None = None
        if order != list(range(len(self.prompt_of))):
            self.order = torch.tensor(order, device=self.device)
            cells = {row: cell for cell, row in reversed(list(enumerate(order)))}
            self.cells = torch.tensor([cells[row] for row in range(len(cells))], device=self.device)

    def _forget(self, prompts: Sequence[int]) -> None:
        """Keep these prompts alone."""
        chosen = torch.tensor(prompts, device=self.device)
        self.lengths = [self.lengths[prompt] for prompt in prompts]
        for kept in (self.prompt_keys, self.prompt_values):
            kept[:] = [full[chosen] for full in kept]
        number = {prompt: place for place, prompt in enumerate(prompts)}
        self.prompt_of = [number[prompt] for prompt in self.prompt_of]

    def _together(
        self, rows: Float[Tensor, "row_few group any"], few: int
    ) -> Float[Tensor, "prompt_few most_group any"]:
        """Beside each other what looks at the same prompt."""
        split = rows.unflatten(0, (-1, few))
        table = (split if self.order is None else split.index_select(0, self.order)).unflatten(0, (-1, self.most))
        return table.transpose(1, 2).flatten(2, 3).flatten(0, 1)

    def _apart(
        self, together: Float[Tensor, "prompt_few most_group any"], few: int
    ) -> Float[Tensor, "row_few group any"]:
        """`_together`, turned back."""
        table = together.unflatten(0, (-1, few)).unflatten(2, (self.most, -1)).transpose(1, 2).flatten(0, 1)
        return (table if self.order is None else table.index_select(0, self.cells)).flatten(0, 1)


class _Reading:
    """`Attend` of some prompts, packed one after another."""

    def __init__(self, cache: Cache, prompts: slice) -> None:
        self.cache, self.prompts = cache, prompts
        lengths, responses = cache.lengths[prompts], cache.responses[prompts]
        first = sum(cache.responses[: prompts.start])
        self.rows = slice(first, first + sum(responses))
        """Of the responses to these prompts."""
        self.copies: Int[Tensor, " prompt"] | None = None
        if max(responses) > 1:
            self.copies = torch.tensor(responses, device=cache.device)
        self.count, self.places = len(lengths), max(lengths)
        self.cells: Int[Tensor, " cell"] | None = None
        """Where each cell lies among as many places for each prompt; None: it is all of them."""
        if min(lengths) < self.places:
            of_cells = [
                place for row, n in enumerate(lengths) for place in range(row * self.places, row * self.places + n)
            ]
            self.cells = torch.tensor(of_cells, device=cache.device)

    def __call__(
        self,
        layer: int,
        query: Float[Tensor, "cell head channel"],
        key: Float[Tensor, "cell few channel"],
        value: Float[Tensor, "cell few other"],
        *,
        scaling: float | None = None,
        softcap: float | None = None,
    ) -> Float[Tensor, "cell head other"]:
        queries, keys, values = (self._padded(part) for part in (query, key, value))
        self._keep(layer, keys, values)
        if few := query.shape[1] // key.shape[1] - 1:
            keys, values = (part.repeat_interleave(few + 1, 1) for part in (keys, values))
        mask = None
        if softcap is not None:
            mask = torch.full((self.places, self.places), -torch.inf, dtype=key.dtype, device=key.device).triu_(1)[
                None, None
            ]
        attended = attend(queries, keys, values, mask, scaling=scaling, dropout=0.0, softcap=softcap)
        cells = attended.transpose(1, 2).flatten(0, 1)
        return cells if self.cells is None else cells.index_select(0, self.cells)

    def _padded(self, part: Float[Tensor, "cell head channel"]) -> Float[Tensor, "prompt head place channel"]:
        """Zeros, not garbage, where a prompt is shorter: 0 × NaN would be NaN."""
        if self.cells is not None:
            part = part.new_zeros(self.count * self.places, *part.shape[1:]).index_copy_(0, self.cells, part)
        return part.unflatten(0, (self.count, self.places)).transpose(1, 2)

    def _keep(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Into the cache, which the first prompts to be read give its shape."""
        cache = self.cache
        for kept, prompt_kept, part in (
            (cache.keys, cache.prompt_keys, keys),
            (cache.values, cache.prompt_values, values),
        ):
            few, channels = part.shape[1], part.shape[3]
            if len(kept) == layer:
                kept.append(part.new_zeros(len(cache.prompt_of), few, cache.columns, channels))
                if cache.shared:
                    prompt_kept.append(part.new_zeros(len(cache.lengths), few, cache.places, channels))
            target, here = (prompt_kept[layer], self.prompts) if cache.shared else (kept[layer], self.rows)
            if self.copies is not None and not cache.shared:
                part = part.repeat_interleave(self.copies, 0)
            target[here, :, : self.places] = part
            if self.places < cache.places:
                target[here, :, self.places : cache.places] = 0
