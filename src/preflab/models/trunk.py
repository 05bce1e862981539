"""Frozen blocks run once: their states are kept, and the blocks above them run alone.

Embeddings and the first N blocks that are held fixed (`models/freezing.py`) give a token of a prompt or response the
same state in every epoch, and for the policy and for a reference with the same frozen weights. While `frozen_trunk`
holds, `models/scoring.py` asks here for last hidden states: the trunk (embeddings and blocks 0 … N − 1) runs without
gradients on what it has not seen, its states go to a file, and the top (blocks N … and the final norm) runs on them.

Both halves are the model's own forward pass, in which the other half's blocks pass on what they are given. Whether a
model allows that is tried once. States are found by content (the token ids of prompt and response), and only those of
the run's own trees: evaluation in between goes through the whole model.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from preflab.config.training import Trunk
from preflab.data.encode import Tree
from preflab.data.pack import Layout, Packed, Reading, flat, readings, tree
from preflab.models.attention import NoTree, Pass, tree_states
from preflab.models.freezing import frozen_digest, frozen_names, transformer_blocks
from preflab.models.head import close, without_dropout
from preflab.models.load import heard
from preflab.models.served import attending
from preflab.models.state_file import StateFile, budget_bytes
from preflab.models.tree_check import small_batch, takes_trees
from preflab.progress import say

Cells = Float[Tensor, "cell width"]
GIB = 2**30


@dataclass(frozen=True)
class Split:
    """A body between two of its blocks."""

    stack: nn.ModuleList
    blocks: int
    """How many belong to the trunk, at least 1."""
    extras: int | None = None
    """What a block returns beside its states: None where it returns them bare, else that many values (unused ones)."""

    def trunk(self, body: Any, layout: Layout) -> tuple[Cells, Any]:
        """The states after the trunk, and what its last block returned."""
        given: list[Any] = []
        hook = self.stack[self.blocks - 1].register_forward_hook(lambda module, args, output: given.append(output))
        try:
            with _standing_in(self.stack[self.blocks :], lambda *args, **kwargs: given[0]):
                whole(body, layout, layers=self.blocks)
        finally:
            hook.remove()
        states = given[0] if isinstance(given[0], Tensor) else given[0][0]
        return states.flatten(0, 1), given[0]

    def top(self, body: Any, layout: Layout, states: Cells) -> Cells:
        """The body's last states from those after the trunk."""
        after = states.view(*layout.token_ids.shape, -1)
        output = after if self.extras is None else (after, *(None for _ in range(self.extras)))
        with _standing_in(self.stack[: self.blocks], lambda *args, **kwargs: output):
            return whole(body, layout, layers=len(self.stack) - self.blocks)


def body_states(body: Any, batch: Packed, layout: Layout, *, ends: bool) -> Cells:
    """The last hidden state of every cell of a layout; the trunk's part from the file, where there is one.

    Args:
        ends: whether the state of each response's last token is asked for.

    Raises:
        NoTree: the layout is a tree, and the model can't have it.
    """
    if body in _open:
        split, kept = _open[body]
        rows = _pieces(batch, layout, ends=ends)
        if all(row[-1].key in kept.responses for row in rows):
            return split.top(body, layout, kept.states(body, split, batch, layout, rows, ends=ends))
    return whole(body, layout)


def whole(body: Any, layout: Layout, *, layers: int | None = None) -> Cells:
    """The last hidden state of every cell; of `layers` it is known that they attend, None: of all."""
    if layout.segments:
        return tree_states(body, layout, layers=layers)
    with attending(Pass(layout)):  # each layer attends for itself
        states: Tensor = body(input_ids=layout.token_ids, use_cache=False).last_hidden_state
    return states.flatten(0, 1)


@contextmanager
def frozen_trunk(
    model: Any,
    blocks: int,
    trees: Sequence[Tree],
    settings: Trunk,
    folder: Path,
    *,
    again: bool,
    reference: Any | None = None,
) -> Iterator[None]:
    """Inside, the trunk of `model` runs once for each of `trees`, as far as the disk allows.

    Nothing is done where no block is frozen, or `settings.disk_gib` is 0. Inside another such block of the same model
    that one goes on, and `again` is taken over.

    Args:
        model: its embeddings and first `blocks` blocks are frozen.
        folder: where the file of states lies, without a name, while the block lasts.
        again: whether states that are read in the block are read again: else they are not kept.
        reference: another model that is scored on the same trees; it shares the states where its weights are equal.
    """
    body = model.base_model
    if body in _open:
        _open[body][1].again = again
        yield
        return
    split = split_of(body, blocks, trained=True) if blocks and settings.disk_gib else None
    if split is None:
        yield
        return
    kept = States(trees, settings, folder, again=again)
    bodies = {body: split}
    if reference is not None and (other := _same_trunk(model, reference, blocks)) is not None:
        bodies[reference.base_model] = other
    for one, half in bodies.items():
        _open[one] = (half, kept)
    try:
        yield
    finally:
        for one in bodies:
            del _open[one]


def refill(model: Any, trees: Iterable[Tree], *, again: bool) -> None:
    """Where a trunk of `model` is kept, it is that of these trees from here on, a rollout's: all other states are
    forgotten, and their room is used again.

    Args:
        again: whether states that are read are read again: else they are not kept.
    """
    if model.base_model in _open:
        kept = _open[model.base_model][1]
        kept.again = again
        kept.refill(trees)


def stored_bytes(
    model: Any, blocks: int, trees: Sequence[Tree], settings: Trunk, folder: Path, *, ends: bool = False
) -> int:
    """How large the file of states grows where `frozen_trunk` keeps those of all `trees`.

    Args:
        ends: whether last tokens are read too.
    """
    if not blocks or not settings.disk_gib or split_of(model.base_model, blocks, trained=True) is None:
        return 0
    cells = States(trees, settings, folder, again=True).cells(ends=ends)
    size = 2 if settings.dtype == "bf16" else model.dtype.itemsize
    return min(cells * model.config.hidden_size * size, budget_bytes(folder, int(settings.disk_gib * GIB)))


def ran_below(model: Any) -> tuple[int, Reading]:
    """How many blocks run apart from the others, and what they computed since this was last asked: nothing where their
    states were read. (0, nothing) where no trunk is kept."""
    if model.base_model not in _open:
        return 0, Reading()
    split, kept = _open[model.base_model]
    ran, kept.ran = kept.ran, Reading()
    return split.blocks, ran


def rounded_after(model: Any, trees: Iterable[Tree]) -> int:
    """After how many blocks the states of these trees are rounded to bfloat16, at the moment; 0: nowhere."""
    body = model.base_model
    if body not in _open:
        return 0
    split, kept = _open[body]
    rounded = kept.dtype is torch.bfloat16 and all(
        _key(tree.prompt, response) in kept.responses for tree in trees for response in tree.responses
    )
    return split.blocks if rounded else 0


class States:
    """What the trunk gave for the prompts and responses of a run, in a file."""

    def __init__(self, trees: Iterable[Tree], settings: Trunk, folder: Path, *, again: bool) -> None:
        self.settings, self.folder, self.again = settings, folder, again
        self.dtype = torch.bfloat16 if settings.dtype == "bf16" else None
        self.prompts: dict[bytes, int] = {}
        self.responses: dict[bytes, int] = {}
        """Tokens of each distinct one that may be kept."""
        self.found: dict[tuple[bool, bytes], tuple[int, int]] = {}
        """Where the states of a prompt or response begin in the file, and how many there are. Under autocast they are
        others than without."""
        self.file: StateFile | None = None
        self.full = self.said = False
        self.working: torch.dtype | None = None
        self.ran = Reading()
        """What the trunk computed since `ran_below` asked."""
        self.refill(trees)

    def refill(self, trees: Iterable[Tree]) -> None:
        """Keep the states of these trees, and none of others."""
        self.prompts.clear()
        self.responses.clear()
        self.found.clear()
        for one in trees:
            self.prompts[_key(one.prompt)] = len(one.prompt)
            self.responses |= {_key(one.prompt, response): len(response) for response in one.responses}
        self.full = False
        if self.file is not None:
            self.file.used = 0

    def states(
        self, body: Any, split: Split, batch: Packed, layout: Layout, rows: list[list[Piece]], *, ends: bool
    ) -> Cells:
        """The states after the trunk of every cell, without gradients; 0 where a cell is padding.

        What is missing in the file is computed, and added to it.
        """
        missing = [number for number, row in enumerate(rows) if not all(self._has(piece) for piece in row)]
        if len(missing) == len(rows):
            states = self._run(body, split, batch, layout, ends=ends)
            self._keep(states, rows, ends=ends)
            return states
        fresh: dict[bytes, Cells] = {}
        if missing:
            part = batch.rows(torch.tensor(missing, device=batch.starts.device))
            laid = tree(part, ends=ends) if layout.segments else flat(part, ends=ends)
            states, parts = self._run(body, split, part, laid, ends=ends), _pieces(part, laid, ends=ends)
            self._keep(states, parts, ends=ends)
            fresh = {piece.key: states[piece.cells] for row in parts for piece in row}
        assert self.file is not None
        given = torch.zeros(layout.token_ids.numel(), self.file.rows.shape[1], dtype=self.working, device=body.device)
        for piece in {piece.begin: piece for row in rows for piece in row if piece.tokens}.values():
            given[piece.cells] = fresh[piece.key] if piece.key in fresh else self._read(piece)
        return given

    @torch.no_grad()
    def _run(self, body: Any, split: Split, batch: Packed, layout: Layout, *, ends: bool) -> Cells:
        """The states of all cells as they would be read from the file, so that no number depends on what is kept."""
        states, _ = split.trunk(body, layout)
        self.ran += readings(batch, ends=ends)[bool(layout.segments)]
        self.working = states.dtype
        return states if self.dtype is None else states.to(self.dtype).to(states.dtype)

    def _has(self, piece: Piece) -> bool:
        return piece.tokens == 0 or self.found.get((_autocast(), piece.key), (0, 0))[1] >= piece.tokens

    def _read(self, piece: Piece) -> Cells:
        assert self.file is not None
        return self.file.read(self.found[_autocast(), piece.key][0], piece.tokens)

    def _keep(self, states: Cells, rows: list[list[Piece]], *, ends: bool) -> None:
        """Add the states of prompts and responses that are not there, while there is room."""
        for piece in (piece for row in rows for piece in row):
            if not self.again or self.full:
                return
            if self.file is not None and self.file.rows.dtype != (self.dtype or states.dtype):
                return  # another precision than the file's
            if self._has(piece):
                continue
            problem = f"trunk.disk_gib = {self.settings.disk_gib} is used up"
            try:
                self.file = self.file or StateFile(
                    self.folder,
                    width=states.shape[1],
                    dtype=self.dtype or states.dtype,
                    most_bytes=int(self.settings.disk_gib * GIB),
                )
                first = self.file.add(states[piece.cells])
            except OSError as error:
                first, problem = None, f"{self.folder} can't hold them ({error.strerror})"
            if first is None:
                self._say_full(problem, states, ends=ends)
            else:
                self.found[_autocast(), piece.key] = (first, piece.tokens)

    def cells(self, *, ends: bool) -> int:
        """Of all that may be kept."""
        return sum(self.prompts.values()) + sum(self.responses.values()) - (not ends) * len(self.responses)

    def _say_full(self, problem: str, states: Cells, *, ends: bool) -> None:
        self.full = True
        if self.said:  # of an earlier rollout
            return
        self.said = True
        needed = (
            math.ceil(10 * self.cells(ends=ends) * states.shape[1] * (self.dtype or states.dtype).itemsize / GIB) / 10
        )
        left = len(self.responses) - sum((_autocast(), key) in self.found for key in self.responses)
        if self.file is not None and self.file.budget_bytes < int(self.settings.disk_gib * GIB):
            problem = f"half of the free space of {self.folder} is used up"
        say(
            f"frozen blocks: {problem}, so the states of {left:,} of {len(self.responses):,} responses are computed "
            f"each time; all of them take {needed} GiB: free space, raise trunk.disk_gib or set trunk.dtype = bf16"
        )


def _autocast() -> bool:
    return torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda")


@dataclass(frozen=True)
class Piece:
    """A prompt, or a response without its prompt, in a layout."""

    key: bytes
    begin: int
    """Its first cell."""
    tokens: int
    """How many of its cells are asked for: of a response whose last token is not, one less than it has; 0 at least."""

    @property
    def cells(self) -> slice:
        return slice(self.begin, self.begin + self.tokens)


def _pieces(batch: Packed, layout: Layout, *, ends: bool) -> list[list[Piece]]:
    """The prompt and the response of each row."""
    lengths = batch.mask.sum(1).tolist()
    prompt_ends = layout.before[:, 0].tolist()
    begins = layout.before[:, 1].tolist() if layout.before.shape[1] > 1 else [0] * len(lengths)
    begins = [
        begin if length > 1 else last for begin, length, last in zip(begins, lengths, layout.last.tolist(), strict=True)
    ]
    rows = []
    for ids, start, length, end, begin in zip(
        batch.token_ids.tolist(), batch.starts.tolist(), lengths, prompt_ends, begins, strict=True
    ):
        prompt = Piece(_key(ids[:start]), end - start + 1, start)
        rows.append([prompt, Piece(_key(ids[:start], ids[start : start + length]), begin, length - (not ends))])
    return rows


def _key(prompt: Sequence[int], response: Sequence[int] = ()) -> bytes:
    """The name of a prompt, or of a response to it."""
    return blake2b(array("q", [len(prompt), *prompt, *response]).tobytes(), digest_size=16).digest()


@contextmanager
def _standing_in(blocks: Iterable[nn.Module], forward: Callable[..., Any]) -> Iterator[None]:
    """The blocks do `forward` instead of their own work."""
    before = [(block, vars(block).get("forward")) for block in blocks]
    try:
        for block, _ in before:
            block.forward = forward
        yield
    finally:
        for block, old in before:
            del block.forward
            if old is not None:  # what someone else had put there
                block.forward = old


_open: WeakKeyDictionary[Any, tuple[Split, States]] = WeakKeyDictionary()
_splits: WeakKeyDictionary[Any, dict[tuple[int, bool], Split | None]] = WeakKeyDictionary()


def split_of(body: Any, blocks: int, *, trained: bool) -> Split | None:
    """The body between its first `blocks` blocks and the rest. None where that is not the whole body's work, as tried
    once on two small trees in both layouts, or where a body that is trained has gradients below: one line says so."""
    known = _splits.setdefault(body, {})
    if (blocks, trained) not in known:
        with without_dropout(body):
            found = _tried(body, blocks, trained=trained)
        known[blocks, trained] = found if isinstance(found, Split) else None
        if isinstance(found, str):
            say(f"{type(body).__name__} runs its frozen blocks at every pass: {found}")
    return known[blocks, trained]


def _tried(body: Any, blocks: int, *, trained: bool) -> Split | str:
    """The split, or why there is none."""
    stack, batch = transformer_blocks(body), small_batch(body)
    if batch is None:
        return "it is too small to try"
    if len(stack) != body.config.num_hidden_layers:
        return "its blocks are not one stack"
    layouts = [flat(batch, ends=True)] + ([tree(batch, ends=True)] if takes_trees(body) else [])
    try:
        with torch.enable_grad():
            states, given = Split(stack, blocks).trunk(body, layouts[0])
        if trained and states.requires_grad:
            return "weights below them are trained"
        split = Split(stack, blocks, None if isinstance(given, Tensor) else len(given) - 1)
        with torch.no_grad():
            same = [close(split.top(body, one, split.trunk(body, one)[0]), whole(body, one)) for one in layouts]
    except NoTree as reason:
        return str(reason)
    except Exception as error:  # whatever a model makes of blocks that pass on what they are given
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return split if all(same) else "the blocks above them give other states on their own"


def _same_trunk(model: Any, reference: Any, blocks: int) -> Split | None:
    """How to split a reference whose configuration and frozen weights are the model's; None where they are others."""
    names = frozen_names(model)
    if heard(model.config) != heard(reference.config):
        return None
    if not set(names) <= {name for name, _ in reference.named_parameters()}:
        return None
    if model.device != reference.device or frozen_digest(model, names) != frozen_digest(reference, names):
        return None
    return split_of(reference.base_model, blocks, trained=False)
