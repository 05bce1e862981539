"""The reference's log-probability of each response, computed once for all runs that ask for it.

A run asks for the responses of its trees. What the cache holds of them is read, the rest is computed by
`models/scoring.py` and added. A tree is found by content: the token ids of its prompt and responses, and everything
else that its numbers depend on (`space_of`: weights, dtype, device, precision, mask rule, versions). Settings of a
method, the data order and folders are no part of that, so a changed β is a hit; a changed weight, token or precision
is a miss.

What is stored is the number as it was computed first, in whatever batch. Padding and batch mates change its last bits,
so runs on the same trees in the same order agree with and without a cache bit for bit, and runs that find only a part
of their trees to float32 rounding.

    CACHE/<space>/<SHA-256 of the file>.safetensors      keys, logprobs, and the seconds that each took; no text

Each pass adds one file, which appears whole or not at all under its own checksum: processes that write at the same
time don't touch each other's work, and a damaged file is known, removed and made good. A pair takes 56 bytes, a file
some 400 more; any file may be deleted at any time.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import torch
import transformers
from jaxtyping import Float
from safetensors.torch import load, save
from torch import Tensor

from preflab import __version__
from preflab.data.encode import Tree
from preflab.data.pack import Reading, read_tokens
from preflab.errors import StorageError
from preflab.models.load import heard
from preflab.models.precision import precision_of
from preflab.models.scoring import Grammar, logprobs_of, reading_of
from preflab.models.trunk import rounded_after
from preflab.progress import say, stage, warn
from preflab.runs import digest, write_bytes

RULE = "each response's sum over its tokens, end token included, at temperature 1; kernels 2; file format 1"


@dataclass(frozen=True)
class Referenced:
    """Log-probabilities under the reference, and what computing them takes."""

    logprobs: Float[Tensor, " response"]
    """log π_ref(y|x) in nats, tree by tree."""
    read: Reading
    """What computing all of them takes, cached or not; of equal trees one counts."""
    seconds: float
    """How long that took when it was computed, in this run or an earlier one."""


class Entry(NamedTuple):
    """What the cache holds of one tree."""

    logprobs: Float[Tensor, " response"]
    seconds: float
    """The tree's share, by tokens, of the pass that computed it."""


class ReferenceCache:
    """A folder of log-probabilities. One that can't be written is said once, and the runs go on without it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.said = False

    def read(self, space: str) -> dict[bytes, Entry]:
        """All entries of a space. A damaged file is said and removed, so that its entries are computed again."""
        found: dict[bytes, Entry] = {}
        for file in sorted((self.folder / space).glob("*.safetensors")):
            try:
                data = file.read_bytes()
            except OSError as error:
                self._say(f"{file} can't be read ({error.strerror}); what it holds is computed again")
                continue
            if hashlib.sha256(data).hexdigest() == file.stem:
                found |= _entries(**load(data))
            else:
                warn(f"{file} is damaged: its SHA-256 is not its name; what it held is computed again")
                with suppress(OSError):
                    file.unlink()
        return found

    def write(self, space: str, entries: Mapping[bytes, Entry]) -> None:
        """Add entries, in a file of their own."""
        data = save(
            {
                "keys": torch.tensor([list(key) for key in entries], dtype=torch.uint8),
                "logprobs": torch.cat([entry.logprobs for entry in entries.values()]),
                "counts": torch.tensor([len(entry.logprobs) for entry in entries.values()]),
                "seconds": torch.tensor([entry.seconds for entry in entries.values()], dtype=torch.float64),
            }
        )
        try:
            write_bytes(self.folder / space / f"{hashlib.sha256(data).hexdigest()}.safetensors", data)
        except StorageError as error:
            self._say(
                f"the reference's log-probabilities are not kept for other runs: {str(error).partition(';')[0]}; free "
                "space, or name another folder with PREFLAB_CACHE"
            )

    def _say(self, line: str) -> None:
        if not self.said:
            warn(line)
        self.said = True


def user_cache() -> ReferenceCache:
    """The cache that runs outside studies share: in $PREFLAB_CACHE, else $XDG_CACHE_HOME/preflab, else
    ~/.cache/preflab."""
    caches = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return ReferenceCache(Path(os.environ.get("PREFLAB_CACHE") or Path(caches) / "preflab") / "reference-logprobs")


def reference_logprobs(
    model: Any,
    trees: Sequence[Tree],
    cache: ReferenceCache | None,
    *,
    title: str,
    grammar: Grammar | None = None,
) -> Referenced:
    """log π_ref(y|x) in nats of each response, from the cache or computed, each distinct tree once.

    Draws no random number, and leaves the order of `trees` alone.

    Args:
        model: the reference, in evaluation mode; of one in training mode, where dropout may be on, nothing is cached.
        cache: None computes all of them.
        title: of the pass, for the person at the terminal.
        grammar: under which they are taken; nothing is cached then, as a grammar has no name to be found by.
    """
    if model.training or not trees or grammar is not None:
        cache = None
    space = "" if cache is None else space_of(model, trees)
    keys = [_key(space, tree) for tree in trees]
    known = {} if cache is None else cache.read(space)
    wanted = dict(zip(keys, trees, strict=True))
    missing = {key: tree for key, tree in wanted.items() if key not in known}
    if len(missing) < len(wanted):
        say(f"{title}: {sum(key not in missing for key in keys):,} of {len(keys):,} from the cache")
    if missing:
        made = _computed(model, missing, title, grammar)
        known |= made
        if cache is not None:
            cache.write(space, made)
    return Referenced(
        logprobs=torch.cat([torch.zeros(0), *(known[key].logprobs for key in keys)]),
        read=reading_of(model, list(wanted.values())),
        seconds=sum(known[key].seconds for key in wanted),
    )


def found_in(cache: ReferenceCache, model: Any, trees: Sequence[Tree]) -> int:
    """Of how many of these trees the cache holds the log-probabilities."""
    space = space_of(model, trees)
    known = cache.read(space)
    return sum(_key(space, tree) in known for tree in trees)


def space_of(model: Any, trees: Sequence[Tree]) -> str:
    """A digest of all that the log-probabilities of these trees depend on besides their token ids.

    The weights are read anew each time (a GPT-2's in 0.3 s): what is remembered about a model could be
    out of date.
    """
    weights = hashlib.sha256()
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):  # of tied weights one
        weights.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        weights.update(tensor.detach().reshape(-1).view(torch.uint8).cpu().numpy())
    kind, rounded = model.device.type, rounded_after(model, trees)
    return digest(
        {
            "rule": RULE,
            "versions": [__version__, torch.__version__, transformers.__version__],
            "model": type(model).__name__,
            "config": heard(model.config),
            "attention": getattr(model.config, "_attn_implementation", None),
            "weights": weights.hexdigest(),
            "device": kind,
            "precision": precision_of(model),
            "autocast": str(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else None,
            "matmul": torch.get_float32_matmul_precision(),
        }
        | ({"states rounded to bfloat16 after block": rounded} if rounded else {})
    )


def _key(space: str, tree: Tree) -> bytes:
    """A tree's name in the cache; it holds the space too, so a file in the wrong folder is never a hit."""
    return hashlib.sha256(json.dumps([space, tree.prompt, tree.responses]).encode()).digest()


def _computed(model: Any, trees: Mapping[bytes, Tree], title: str, grammar: Grammar | None) -> dict[bytes, Entry]:
    began = time.perf_counter()
    rows = list(trees.values())
    with stage(title, len(rows)) as advance:
        logprobs = logprobs_of(model, rows, grammar=grammar, advance=advance)
    per_token = (time.perf_counter() - began) / read_tokens(rows)
    parts = logprobs.split([len(tree.responses) for tree in rows])
    return {
        key: Entry(part, per_token * read_tokens([tree]))
        for (key, tree), part in zip(trees.items(), parts, strict=True)
    }


def _entries(keys: Tensor, logprobs: Tensor, counts: Tensor, seconds: Tensor) -> dict[bytes, Entry]:
    """The entries of one file."""
    parts = logprobs.split(counts.tolist())
    names = (row.tobytes() for row in keys.numpy())
    return {key: Entry(*rest) for key, *rest in zip(names, parts, seconds.tolist(), strict=True)}
