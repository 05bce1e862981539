"""Trees of token ids → one batch of tensors, and its two layouts.

- `flat`: each response stands in a row of its own behind a copy of its prompt, padded on the right. A causal model
  can't see what comes later, so padding needs no attention mask and changes no log-probability.
- `tree`: one row without padding, each prompt once, each response once. Positions of a response count on from the end
  of its prompt; it attends to its prompt and itself, which `models/attention.py` sees to.

Masks come from lengths, never from token values. Nothing outside this file, `models/attention.py` and
`models/scoring.py` knows these layouts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from preflab.data.encode import Tree

PADDED_TOKENS = 16
"""Segments go through attention together where the longest has at most so many tokens more than the shortest, or an
eighth of its length: fewer, larger products of a small model outweigh the padding."""


@dataclass(frozen=True)
class Packed:
    """Prompts and responses, ready for a model. Row order: tree by tree, and in a tree response by response."""

    token_ids: Int[Tensor, "response position"]
    """Prompt, response, padding."""
    starts: Int[Tensor, " response"]
    """Position of the first response token, at least 1."""
    response_ids: Int[Tensor, "response token"]
    """The response alone, from its first token on; 0 where the mask is False."""
    mask: Bool[Tensor, "response token"]
    """True on response tokens, end token included."""
    tree: Int[Tensor, " response"]
    """Which prompt of the batch the response answers: rows of one number begin with the same prompt."""

    @property
    def tokens(self) -> int:
        """Tokens of all rows, padding not counted: a prompt counts once for each of its responses."""
        return int(self.starts.sum() + self.mask.sum())

    def rows(self, index: Int[Tensor, " row"]) -> Packed:
        """Some of the responses, in the given order, padded to the longest of them; the response tokens keep their
        width, so that what is computed of them fits in with the other responses'."""
        some = Packed(**{name: value[index] for name, value in vars(self).items()})
        longest = int((some.starts + some.mask.sum(1)).max())
        return replace(some, token_ids=some.token_ids[:, :longest])

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})


def pack(trees: Sequence[Tree]) -> Packed:
    """Lay trees out as a batch. Trees of equal prompts count as one, so a group sampled response by response is one.

    Raises:
        ValueError: a prompt or a response without tokens; `data/encode.py` makes none.

    >>> batch = pack([Tree("a:1", (5, 6), ((7, 8), (9,)))])
    >>> batch.token_ids.tolist(), batch.starts.tolist()
    ([[5, 6, 7, 8], [5, 6, 9, 0]], [2, 2])
    >>> batch.response_ids.tolist(), batch.mask.tolist()
    ([[7, 8], [9, 0]], [[True, True], [True, False]])
    """
    rows = [(tree, response) for tree in trees for response in tree.responses]
    for tree, response in rows:
        if not tree.prompt or not response:
            raise ValueError(f"{tree.origin}: a prompt and a response need at least one token each")
    longest = max(len(tree.prompt) + len(response) for tree, response in rows)
    longest_response = max(len(response) for _, response in rows)
    token_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    response_ids = torch.zeros(len(rows), longest_response, dtype=torch.long)
    numbers: dict[tuple[int, ...], int] = {}
    for row, (tree, response) in enumerate(rows):
        numbers.setdefault(tree.prompt, len(numbers))
        token_ids[row, : len(tree.prompt) + len(response)] = torch.tensor(tree.prompt + response)
        response_ids[row, : len(response)] = torch.tensor(response)
    lengths = torch.tensor([len(response) for _, response in rows])
    return Packed(
        token_ids=token_ids,
        starts=torch.tensor([len(tree.prompt) for tree, _ in rows]),
        response_ids=response_ids,
        mask=torch.arange(longest_response) < lengths.unsqueeze(1),
        tree=torch.tensor([numbers[tree.prompt] for tree, _ in rows]),
    )


@dataclass(frozen=True)
class Segments:
    """Prompts of similar length, or responses of similar length behind prompts of similar length, padded to attend
    together. Query t of a segment sees its keys 0 … prompt + t."""

    queries: Int[Tensor, "segment query"]
    """The cell of each token; where padded, of the segment's last."""
    lengths: Int[Tensor, " segment"]
    """Tokens of each."""
    keys: Int[Tensor, "segment key"] | None = None
    """The cell of each token of the prompt and of the segment after it, padded as the queries. None: the segments are
    prompts, and see themselves alone."""
    prompts: Int[Tensor, " segment"] | None = None
    """Tokens of the prompt before each segment."""


@dataclass(frozen=True)
class Layout:
    """What a model's body reads, and where the responses stand in what it gives. A cell is a place in the flattened
    token ids."""

    token_ids: Int[Tensor, "row position"]
    before: Int[Tensor, "response token"]
    """The cell before each response token; any cell where masked."""
    last: Int[Tensor, " response"]
    """The cell of the last token of each response, if that is laid out."""
    asked: Int[Tensor, " cell"]
    """The cells whose last state is read: those of `before` and `last`, of a prompt its last one."""
    position_ids: Int[Tensor, "row position"] | None = None
    """None: each row counts from 0."""
    segments: tuple[Segments, ...] = ()
    """In the order of cells; empty where every row is a causal sequence of its own."""
    slots: Int[Tensor, " position"] | None = None
    """Where each cell stands among the padded queries of all segments."""
    longest: int = 0
    """The most tokens that a token of a tree may see, itself counted."""

    def to(self, device: torch.device) -> Layout:
        """The same on another device."""
        return self if self.token_ids.device == device else _to(self, device)


def flat(batch: Packed, *, ends: bool) -> Layout:
    """A row a response: prompt, response, padding.

    Args:
        ends: whether the state of each response's last token is asked for.
    """
    rows, width = batch.token_ids.shape
    begins = torch.arange(rows, device=batch.starts.device) * width + batch.starts
    steps = torch.arange(batch.mask.shape[1], device=batch.mask.device)
    before = (begins.unsqueeze(1) - 1 + steps).clamp(max=rows * width - 1)
    last = begins + batch.mask.sum(1) - 1
    asked = torch.cat([before[batch.mask], last]) if ends else before[batch.mask]
    return Layout(batch.token_ids, before, last, asked=asked)


def tree(batch: Packed, *, ends: bool) -> Layout:
    """One row: every prompt once, then every response once.

    Args:
        ends: whether the last token of each response is laid out; it predicts nothing that is there.

    >>> layout = tree(pack([Tree("a:1", (5, 6), ((7, 8), (9, 10, 11)))]), ends=True)
    >>> layout.token_ids.tolist(), layout.position_ids.tolist()
    ([[5, 6, 9, 10, 11, 7, 8]], [[0, 1, 2, 3, 4, 2, 3]])
    >>> layout.before.tolist()  # the first tokens are predicted at the prompt's end, cell 1; masked: any cell
    [[1, 5, 6], [1, 2, 3]]
    """
    width = batch.token_ids.shape[1]
    starts, numbers = batch.starts.tolist(), batch.tree.tolist()
    fed = [length - (not ends) for length in batch.mask.sum(1).tolist()]
    first = {number: row for row, number in reversed(list(enumerate(numbers)))}
    root = [first[number] for number in numbers]  # the row that a row's prompt is taken from
    prompts = _alike(list(first.values()), starts)
    of_prompt = {row: place for place, some in enumerate(prompts) for row in some}
    by_prompt: list[list[int]] = [[] for _ in prompts]
    for row, length in enumerate(fed):
        if length:
            by_prompt[of_prompt[root[row]]].append(row)
    responses = [some for rows in by_prompt for some in _alike(rows, fed)]

    lengths = [starts[row] for some in prompts for row in some] + [fed[row] for some in responses for row in some]
    begins = list(accumulate(lengths, initial=0))
    prompt_cell = dict(zip(chain(*prompts), begins, strict=False))
    response_cell = dict(zip(chain(*responses), begins[len(first) :], strict=False))
    sources = [row * width for row in chain(*prompts)] + [row * width + starts[row] for row in chain(*responses)]
    shift = torch.tensor(sources) - torch.tensor(begins[:-1])
    source = shift.repeat_interleave(torch.tensor(lengths)) + torch.arange(begins[-1])

    segments = [_prompts([prompt_cell[row] for row in some], [starts[row] for row in some]) for some in prompts]
    segments += [
        _responses(
            [response_cell[row] for row in some],
            [fed[row] for row in some],
            [prompt_cell[root[row]] for row in some],
            [starts[row] for row in some],
        )
        for some in responses
    ]
    real = [torch.arange(part.queries.shape[1]) < part.lengths.unsqueeze(1) for part in segments]

    own = torch.tensor([response_cell.get(row, 0) for row in range(len(starts))])
    before = (own.unsqueeze(1) - 1 + torch.arange(batch.mask.shape[1])).clamp(0, begins[-1] - 1)
    before[:, 0] = torch.tensor([prompt_cell[root[row]] + starts[row] - 1 for row in range(len(starts))])
    device = batch.token_ids.device
    return Layout(
        token_ids=batch.token_ids.flatten()[source.to(device)].unsqueeze(0).cpu(),
        before=before,
        last=own + torch.tensor(fed) - 1,
        position_ids=(source % width).unsqueeze(0),
        segments=tuple(segments),
        slots=torch.cat([some.flatten() for some in real]).nonzero().squeeze(1),
        asked=torch.cat([torch.tensor(begins[1 : len(first) + 1]) - 1, torch.arange(begins[len(first)], begins[-1])]),
        longest=max(map(sum, zip(starts, fed, strict=True))),
    ).to(device)


def _alike(rows: list[int], lengths: list[int]) -> list[list[int]]:
    """Rows of similar length together, longest first."""
    groups: list[list[int]] = []
    for row in sorted(rows, key=lambda row: -lengths[row]):
        longest = lengths[groups[-1][0]] if groups else 0
        if groups and lengths[row] >= longest - max(PADDED_TOKENS, longest // 8):
            groups[-1].append(row)
        else:
            groups.append([row])
    return groups


def _prompts(begins: list[int], lengths: list[int]) -> Segments:
    begin, length = torch.tensor(begins).unsqueeze(1), torch.tensor(lengths)
    return Segments(begin + torch.arange(max(lengths)).minimum(length.unsqueeze(1) - 1), length)


def _responses(begins: list[int], lengths: list[int], prompt_begins: list[int], prompt_lengths: list[int]) -> Segments:
    own = _prompts(begins, lengths)
    start, prompt = torch.tensor(prompt_begins).unsqueeze(1), torch.tensor(prompt_lengths).unsqueeze(1)
    step = torch.arange(max(map(sum, zip(lengths, prompt_lengths, strict=True))))
    place = (step - prompt).clamp(min=0).minimum(own.lengths.unsqueeze(1) - 1)
    keys = torch.where(step < prompt, start + step, torch.tensor(begins).unsqueeze(1) + place)
    return Segments(own.queries, own.lengths, keys, prompt.squeeze(1))


def _to(value: Any, device: torch.device) -> Any:
    """A tensor, or all tensors of a dataclass or a tuple of them, on a device."""
    match value:
        case Tensor():
            return value.to(device)
        case tuple():
            return tuple(_to(part, device) for part in value)
        case Segments() | Layout():
            return type(value)(**{name: _to(part, device) for name, part in vars(value).items()})
        case _:
            return value


@dataclass(frozen=True)
class Reading:
    """What a model computes of a batch, or of several: counts that floating-point operations follow from."""

    cells: int = 0
    """Places that go through the body; padding in the flat layout is among them."""
    seen: int = 0
    """Pairs of a cell and one that it attends to, itself counted."""
    predicted: int = 0
    """Response tokens: where the output head runs."""
    spared: int = 0
    """Cells whose last state nobody reads: those of a prompt but its last one, and padding."""
    longest: int = 0
    """The most cells that one cell attends to."""

    def __add__(self, other: Reading) -> Reading:
        return Reading(
            self.cells + other.cells,
            self.seen + other.seen,
            self.predicted + other.predicted,
            self.spared + other.spared,
            max(self.longest, other.longest),
        )


def readings(given: Packed | Sequence[Tree], *, ends: bool = False) -> tuple[Reading, Reading]:
    """What `flat` and `tree` lay out, from lengths alone.

    Args:
        ends: as for `tree`.

    >>> readings([Tree("a:1", (5, 6), ((7, 8), (9, 10, 11)))])
    (Reading(cells=10, seen=30, predicted=5, spared=5, longest=5), Reading(cells=5, seen=13, predicted=5, spared=1, \
longest=4))
    """
    if isinstance(given, Packed):
        width = given.token_ids.shape[1]
        lengths = given.mask.sum(1).tolist()
        rows = list(zip(given.tree.tolist(), given.starts.tolist(), lengths, strict=True))
    else:
        rows = [(tree.prompt, len(tree.prompt), len(response)) for tree in given for response in tree.responses]
        width = max((start + length for _, start, length in rows), default=0)
    predicted = sum(length for *_, length in rows)
    prompts = {prompt: start for prompt, start, _ in rows}.values()
    fed = [(start, length - (not ends)) for _, start, length in rows]
    cells = len(rows) * width
    copied = Reading(cells, cells * (width + 1) // 2, predicted, cells - predicted - ends * len(rows), width)
    shared = Reading(
        sum(prompts) + sum(length for _, length in fed),
        sum(start * (start + 1) // 2 for start in prompts)
        + sum(start * length + length * (length + 1) // 2 for start, length in fed),
        predicted,
        sum(prompts) - len(prompts),
        max((start + length for start, length in fed), default=0),
    )
    return copied, shared


def read_tokens(trees: Sequence[Tree]) -> int:
    """Tokens of them all, where a prompt stands before each response."""
    return sum(len(tree.prompt) * len(tree.responses) + sum(map(len, tree.responses)) for tree in trees)
