"""How much memory a run will take, before it runs: for any model, by looking at small passes of it.

A pass forward and backward is a row of tensor operations. A small one is run for real while every storage that it makes
is watched: how many bytes are alive after each operation. The same pass on more tokens makes the same operations on
larger tensors, so the bytes alive after operation i are a_i + b_i × cells + c_i × pairs seen, of logits a_i + b_i ×
response tokens: three sizes give the three, and these the bytes on the run's largest micro-batch. The peak is the
largest of them. It may lie where the backward pass begins (long texts), or where it ends (large tables), and need not
lie there in the small passes.

Gradients of weights are freed as they come and counted, so that looking takes hardly more memory than the weights.
Weights, gradients, optimiser state and what the process itself holds are added.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import chain, pairwise
from types import ModuleType
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from preflab.config.training import Optimizer
from preflab.data.encode import Tree
from preflab.data.pack import Reading, readings
from preflab.models import head, scoring
from preflab.models.scoring import reads_tree
from preflab.rollouts.cache import COLUMNS, grown
from preflab.rollouts.cohort import READ_AT_ONCE
from preflab.rollouts.sampler import has_decoder, sample
from preflab.training.cost import resident_bytes
from preflab.training.optimizer import Stepper

UNIT, TIMES = 16, (1, 2, 3)
"""Tokens of a sequence in the small passes, fewer for a model with few positions, and multiples of them, so that all
fall into as many parts."""
STRETCHES = 512
"""Into so many a row of operations is cut where two sizes make different ones."""
KEPT_FREE_BYTES = 2**26
"""glibc hands freed memory back to the system above twice its largest block on the heap, which is 64 MiB once tensors
of 32 MiB have been freed."""
SHARE_OF_HOLES = 0.25
"""Freed memory between tensors in use, which glibc can't hand back, beside what a pass takes: chosen on the runs of
`benchmarks/memory_estimate.py`, where it was from none of it to more than all."""
PARTS_OF_LOGITS = (
    (head, "CHUNK_LOGITS"),
    (head, "CACHED_LOGITS"),
    (scoring, "LOGITS_AT_ONCE"),
)
"""How many logits are worked on together, here and there."""
STATE_ROWS = 256
"""Rows and columns of the layer on which the optimiser is looked at."""


@dataclass(frozen=True)
class Alive:
    """Bytes alive after each operation of a pass."""

    logits: list[int]
    """In tensors over the vocabulary."""
    others: list[int]
    """In all others that the pass made, gradients of weights apart."""
    gradients: list[int]
    """Gradients of weights that have come by then."""


@dataclass(frozen=True)
class Shape:
    """A micro-batch, as memory sees it."""

    reading: Reading
    """In the layout taken."""
    tree: bool
    """Whether prompts are shared."""


@dataclass(frozen=True)
class Peak:
    """Bytes at the peak of a pass."""

    logits: int
    others: int
    gradients: int

    @property
    def total(self) -> int:
        return self.logits + self.others + self.gradients


@dataclass(frozen=True)
class Kept:
    """What the optimisers of a run hold, in bytes."""

    gradients: int
    masters: int
    """Of weights in bf16, from the start, with the space that a step works in where that is held."""
    moments: int
    """From the first step on."""
    temporaries: int
    """While they step."""


class Watch(TorchDispatchMode):
    """Counts the bytes of storages that operations make inside, but for those of `known` tensors."""

    def __init__(self, known: Iterator[Tensor], vocabulary: int) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.vocabulary = vocabulary
        self.alive: dict[int, tuple[Any, bool, int]] = {}
        """Storage → a weak reference, whether it holds logits, bytes."""
        self.sums = [0, 0]
        """Bytes alive: others, logits."""
        self.come = 0
        self.found = Alive([], [], [])

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._see(tensor)
        self._note()
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self.known and key not in self.alive:
            of_logits = tensor.dim() > 1 and tensor.shape[-1] == self.vocabulary
            self.alive[key] = weakref.ref(storage, lambda _: self._gone(key)), of_logits, storage.nbytes()
            self.sums[of_logits] += storage.nbytes()

    def _gone(self, key: int) -> None:
        if key in self.alive:
            _, of_logits, size = self.alive.pop(key)
            self.sums[of_logits] -= size

    def _note(self) -> None:
        self.found.others.append(self.sums[False])
        self.found.logits.append(self.sums[True])
        self.found.gradients.append(self.come)

    def gradient(self, parameter: Tensor) -> None:
        """A weight's gradient has come: counted, and freed."""
        assert parameter.grad is not None
        self.come += parameter.grad.untyped_storage().nbytes()
        self._gone(parameter.grad.untyped_storage()._cdata)
        parameter.grad = None
        self._note()


def watched(run: Callable[[], Tensor | None], models: Sequence[nn.Module], *, vocabulary: int) -> Alive:
    """Bytes alive during `run`, and through the backward pass of the loss that it gives, if any."""
    watch = Watch(chain.from_iterable(chain(m.parameters(), m.buffers()) for m in models), vocabulary)
    trained = {parameter: None for model in models for parameter in model.parameters() if parameter.requires_grad}
    hooks = [parameter.register_post_accumulate_grad_hook(watch.gradient) for parameter in trained]
    try:
        with watch:
            loss = run()
            if loss is not None:
                loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    return watch.found


def shape_of(model: Any, trees: Sequence[Tree]) -> Shape:
    """A micro-batch in the layout that scoring takes for it."""
    ends = hasattr(model, "score")  # which is read at last tokens
    copied, shared = readings(trees, ends=ends)
    tree = reads_tree(model, copied, shared)
    return Shape(shared if tree else copied, tree)


def peak_of(
    loss: Callable[[Sequence[Tree]], Tensor | None],
    models: Sequence[nn.Module],
    trees: Sequence[Tree],
    *,
    accumulates: bool = False,
) -> Peak:
    """The peak of a pass on `trees`, from passes on small ones.

    Args:
        loss: runs the pass; the backward pass is run on what it gives. None: there is none.
        models: the first one says which layout is taken.
        accumulates: whether gradients of earlier micro-batches are there from the start.
    """
    model: Any = models[0]
    vocabulary = model.get_input_embeddings().weight.shape[0]
    target = shape_of(model, trees)
    shapes: list[Shape] = []
    seen: list[Alive] = []
    positions = getattr(model.config, "max_position_embeddings", None) or UNIT * max(TIMES)
    unit = min(UNIT, positions // max(TIMES))
    loss(_small(trees, unit, 1, vocabulary))  # what is tried once a model is tried here
    for times in TIMES:
        few = _small(trees, unit, times, vocabulary)
        with _in_layout(target, few, times, vocabulary):
            shapes.append(shape_of(model, few))
            seen.append(watched(lambda few=few: loss(few), models, vocabulary=vocabulary))  # type: ignore[misc]
    sizes = [shape.reading for shape in (*shapes, target)]
    read = [(size.cells, size.seen) for size in sizes]
    others, gradients = (_at(read, [getattr(alive, name) for alive in seen]) for name in ("others", "gradients"))
    logits = _at([(size.predicted,) for size in sizes], [alive.logits for alive in seen])
    if accumulates:
        gradients[:] = summed_gradients(models)
    top = int((logits + others + gradients).argmax())
    return Peak(int(logits[top]), int(others[top]), int(gradients[top]))


def sampling_peak(model: Any, prompt_tokens: Sequence[int], rows: int, max_new_tokens: int) -> Peak:
    """The peak of sampling, longest prompts first: of reading the last prompts that are read together, or of the last
    token, when the cache of keys and values is full. Both are seen on one and two rows of short prompts."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    longest = max(prompt_tokens)
    read: list[Alive] = []
    last: list[Alive] = []
    # One token short of columns that a cache has, all of them filled at the second token.
    sizes = [(COLUMNS - 1, 1), (2 * COLUMNS - 2, 2), (4 * COLUMNS - 2, 2)]

    def run(size: tuple[int, int], tokens: int) -> None:
        places, count = size
        # Prompts of their own: those of several responses are kept once.
        prompts = [tuple((row + place) % vocabulary for place in range(places // count)) for row in range(count)]
        keys = [str(number) for number in range(count)]
        sample(model, prompts, keys=keys, end_id=-1, max_new_tokens=tokens, seed=0)

    run(sizes[0], 2)  # what is tried once a model is tried here
    for size in sizes:
        first = watched(lambda size=size: run(size, 1), [model], vocabulary=vocabulary)  # type: ignore[misc]
        both = watched(lambda size=size: run(size, 2), [model], vocabulary=vocabulary)  # type: ignore[misc]
        begin = len(first.others)
        read.append(first)
        last.append(Alive(both.logits[begin:], both.others[begin:], both.gradients[begin:]))
    columns = grown(longest)
    while columns < longest + max_new_tokens - 1:
        columns = grown(columns)
    full = rows * columns

    def at(seen: Sequence[Alive], tokens: int, count: int) -> Peak:
        size = [*sizes, (tokens, count)]
        others, logits = _at(size, [alive.others for alive in seen]), _at(size, [alive.logits for alive in seen])
        top = int((others + logits).argmax())
        return Peak(int(logits[top]), int(others[top]), 0)

    at_last = at(last, full, rows)
    if not has_decoder(model, longest + max_new_tokens):  # all prompts of a batch at once
        return max(at(read, rows * longest, rows), at_last, key=lambda peak: peak.total)
    together = max(1, min(rows, READ_AT_ONCE // longest))
    reading = at(read, together * longest, together)
    # Beside these prompts the cache has room for the others, and for the first tokens of all responses.
    room = rows * grown(longest) - together * longest
    reading = replace(reading, others=reading.others + at_last.others * room // full)
    return max(reading, at_last, key=lambda peak: peak.total)


def summed_gradients(models: Sequence[nn.Module]) -> int:
    """Of several micro-batches: sums of gradients in bf16 are float32."""
    trained = [weight for model in models for weight in model.parameters() if weight.requires_grad]
    return sum(weight.numel() * max(4, weight.dtype.itemsize) for weight in trained)


def kept_by_optimizer(model: nn.Module, settings: Optimizer, *, accumulates: bool = False) -> Kept:
    """What the optimiser of a model keeps, as seen on one small layer of each dtype that is trained.

    Args:
        accumulates: whether gradients are sums of several micro-batches.
    """
    gradients = masters = space = moments = temporaries = 0.0
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for dtype in sorted({parameter.dtype for parameter in trained}, key=str):
        of_dtype = [parameter.numel() for parameter in trained if parameter.dtype == dtype]
        layer = nn.utils.skip_init(nn.Linear, STATE_ROWS, STATE_ROWS, bias=False, dtype=dtype)
        nn.init.zeros_(layer.weight)
        weights = layer.weight.numel()
        watch = Watch(layer.parameters(), vocabulary=0)
        with watch:
            stepper = Stepper(layer, settings, 2)
            begun = held = watch.sums[False]
            of_masters = sum(master.nbytes for master in stepper.masters)
            for step in range(2):  # the first one makes the moments
                for _ in range(1 + accumulates):
                    (layer.weight * layer.weight.detach()).sum().backward()
                of_gradients = watch.sums[False] - held
                before = len(watch.found.others)
                stepper.step(step, "a look at the optimiser")
                held = watch.sums[False]
        gradients += sum(of_dtype) * of_gradients / weights
        masters += sum(of_dtype) * of_masters / weights
        space += max(of_dtype) * (begun - of_masters) / weights
        moments += sum(of_dtype) * (held - begun) / weights
        temporaries += max(of_dtype) * max(0, max(watch.found.others[before:]) - held - of_gradients) / weights
        del stepper
    return Kept(int(gradients), int(masters + space), int(moments), int(temporaries))


def held_bytes(models: Sequence[nn.Module]) -> int:
    """Of the weights and buffers of models, tied ones once."""
    every = chain.from_iterable(chain(model.parameters(), model.buffers()) for model in models)
    return sum({t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in every}.values())


def process_bytes(models: Sequence[nn.Module], passing: int) -> int:
    """What this process holds beside the weights: Python, libraries, the data, and the free memory that its allocator
    keeps where passes have taken `passing` bytes. On a GPU, where the peak is that of the GPU's memory, 0."""
    if any(parameter.device.type == "cuda" for model in models for parameter in model.parameters()):
        return 0
    return max(0, resident_bytes() - held_bytes(models)) + min(passing, KEPT_FREE_BYTES) + int(SHARE_OF_HOLES * passing)


def _small(trees: Sequence[Tree], unit: int, times: int, vocabulary: int) -> list[Tree]:
    """Two trees with sequences of `times` units of tokens, of the proportions of these."""
    responses = max(1, round(sum(len(tree.responses) for tree in trees) / len(trees)))
    of_responses = sum(len(response) for tree in trees for response in tree.responses)
    of_prompts = sum(len(tree.prompt) * len(tree.responses) for tree in trees)
    length = times * unit
    answer = min(unit - 1, max(1, round(unit * of_responses / (of_responses + of_prompts)))) * times

    def ids(count: int, first: int) -> tuple[int, ...]:
        return tuple((first + place) % vocabulary for place in range(count))

    return [
        Tree("small", ids(length - answer, number), tuple(ids(answer, number + k) for k in range(responses)))
        for number in range(2)
    ]


@contextmanager
def _in_layout(target: Shape, few: Sequence[Tree], times: int, vocabulary: int) -> Iterator[None]:
    """Small trees are laid out as the target is, and their logits made in as many parts, if there are enough of them.

    Args:
        times: how often the smallest ones' tokens.
    """
    tokens = sum(len(response) for tree in few for response in tree.responses)
    kept = target.reading.predicted * vocabulary <= head.KEPT_LOGITS
    with ExitStack() as stack:
        stack.enter_context(_set(scoring, "TREE_SHARE", 2.0 if target.tree else 0.0))
        for module, name in PARTS_OF_LOGITS:
            parts = -(-target.reading.predicted // max(1, getattr(module, name) // vocabulary))
            stack.enter_context(_set(module, name, -(-tokens // (times * parts)) * times * vocabulary))
        stack.enter_context(_set(head, "KEPT_LOGITS", tokens * vocabulary if kept else 0))
        yield


@contextmanager
def _set(module: ModuleType, name: str, value: float) -> Iterator[None]:
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def _at(sizes: Sequence[Sequence[int]], series: Sequence[Sequence[int]]) -> Any:
    """Bytes after each operation at the last of `sizes`, from those at the others: linear in each number of a size.

    Of several, the last is left out where bytes seem to fall with it, which none do, and where longer sequences make
    further operations (a scan, token by token), so that only stretches of them can be compared.
    """
    aligned = len({len(one) for one in series}) == 1
    values = np.array(series if aligned else [_stretches(one) for one in series], dtype=float)
    numbers = np.array([(1, *size) for size in sizes], dtype=float)
    factors = np.linalg.lstsq(numbers[:-1], values, rcond=None)[0]
    found = numbers[-1] @ factors
    if len(sizes[0]) > 1:
        fewer = np.linalg.lstsq(numbers[:-1, :-1], values, rcond=None)[0]
        found = np.where(aligned & (factors[-1] >= 0), found, numbers[-1, :-1] @ fewer)
    return found.clip(min=0.0)


def _stretches(series: Sequence[int]) -> list[int]:
    """The largest of each of `STRETCHES` equal stretches."""
    edges = np.linspace(0, len(series), STRETCHES + 1)
    return [max(series[int(a) : max(int(a) + 1, int(b))]) for a, b in pairwise(edges)]
