"""Neural discriminators: recurrent encoders of a row's tokens, at all four levels.

    token      h_t = GRU(x_1 … x_t)              a logit of each h_t: it has seen the row so far, and no more
    sentence   mean over a clause's tokens       a logit of each cell, whatever stands in the others
    row        mean over all tokens, both ways   one logit
    feature    the same of some columns' cells   one logit

Each is fitted by binary cross-entropy in which both classes count alike, so that the best logit is
log p(x | real) − log p(x | written). Pooling takes all tokens: the first state of a causal encoder has seen one.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preflab.config.alignment import Discriminators
from preflab.errors import NumericError, StorageError
from preflab.runs import new_folder, read_json, write_json
from preflab.seeds import derive
from preflab.tables.discriminators.level import Codes, Level, Logits
from preflab.tables.discriminators.reading import Read, Reader, RowEncoding, features, logits, vocabulary

MAX_GRADIENT_NORM = 1.0
HELD_SHARE = 0.1
"""Of the rows of each class, so many say which pass was best."""
ROWS_AT_ONCE = 1024
WEIGHTS, SETTINGS = "reader.safetensors", "encoder.json"


@dataclass(frozen=True)
class Pass:
    """How one pass over the rows went: −log of the probability that D gives the class, mean over places, in nats;
    log 2 where it says nothing."""

    real_nats: float
    """Of real rows that were learned from."""
    written_nats: float
    """Of written rows, likewise."""
    held_nats: float
    """Of rows that no step was taken on, the mean of both classes."""


@dataclass(frozen=True)
class Encoder:
    """A fitted one: see `level.Discriminator`."""

    name: str
    level: Level
    encoding: RowEncoding
    columns: tuple[int, ...] | None
    """Of the feature level: the only ones that are read."""
    reader: Reader
    passes: tuple[Pass, ...]
    """How it was fitted, the untrained one first."""

    def logits(self, codes: Codes) -> Logits:
        """logit D. At token level there are `encoding.longest` places; behind the end of a shorter row its last logit
        stands again.

        Raises:
            ValueError: a code can't be written.
        """
        read = Read.of(self.encoding, codes, self.level, self.columns)
        self.reader.eval()
        found = _all(self.reader, read, torch.arange(len(read))).double().numpy()
        if self.level != "token":
            return found
        return np.pad(found, ((0, 0), (0, self.encoding.longest - found.shape[1])), mode="edge")

    def save(self, folder: Path) -> None:
        """Write it into a folder, which is replaced."""
        with new_folder(folder) as temporary:
            save_file(
                {name: weight.contiguous() for name, weight in self.reader.state_dict().items()}, temporary / WEIGHTS
            )
            settings = {
                "name": self.name,
                "level": self.level,
                "columns": self.columns,
                "width": self.reader.of_column.embedding_dim,
                "passes": [asdict(one) for one in self.passes],
            }
            write_json(temporary / SETTINGS, settings)


def load_encoder(folder: Path, encoding: RowEncoding) -> Encoder:
    """What `Encoder.save` wrote.

    Raises:
        StorageError: a file is missing or damaged, or belongs to another encoding.
    """
    settings = read_json(folder / SETTINGS)
    try:
        columns = None if settings["columns"] is None else tuple(settings["columns"])
        own = len(vocabulary(encoding))
        with torch.random.fork_rng(devices=[]):
            reader = Reader(settings["level"], len(encoding.columns), settings["width"], own=own)
        reader.load_state_dict(load_file(folder / WEIGHTS))
        passes = tuple(Pass(**one) for one in settings["passes"])
        return Encoder(settings["name"], settings["level"], encoding, columns, reader.eval(), passes)
    except (KeyError, TypeError, RuntimeError, OSError, SafetensorError) as error:
        first = str(error).split("\n")[0][:200]
        raise StorageError(f"{folder} holds no discriminator of these rows ({first}); align again") from None


def fit_encoder(
    encoding: RowEncoding,
    real: Codes,
    written: Codes,
    level: Level,
    columns: tuple[int, ...] | None,
    settings: Discriminators,
    *,
    seed: int,
    weights: Float[np.ndarray, " written"] | None = None,
    name: str | None = None,
) -> Encoder:
    """Learn to tell real rows from written ones.

    The passes are at most `settings.epochs`; the encoder after the one that was best on held-out rows is kept, which is
    the untrained one, whose logits are 0, where none was better than to say nothing.

    Args:
        columns: of the feature level: the only ones that are read; None: all, at the other levels.
        seed: determines all, whatever the order of the rows.
        weights: how much each written row counts, > 0; only their ratios matter. None: all alike.
        name: of what is fitted; None: its level, and the columns of the feature level.

    Raises:
        NumericError: a loss or gradient is not finite.
        ValueError: a code can't be written; or there are fewer than two rows of a class.
    """
    if min(len(real), len(written)) < 2:
        raise ValueError(f"{len(real)} real and {len(written)} written rows: two of each are needed")
    if name is None:
        named = ", ".join(encoding.columns[column].name for column in columns or ())
        name = f"{level}: {named}" if named else level
    counts = np.ones(len(written)) if weights is None else weights
    order_real, order_written = np.lexsort(real.T), np.lexsort((counts, *written.T))
    codes = np.concatenate([real[order_real], written[order_written]])
    is_real = np.arange(len(codes)) < len(real)
    shares = np.concatenate([np.full(len(real), 1 / len(real)), counts[order_written] / counts.sum()])
    read = Read.of(encoding, codes, level, columns)
    examples = Examples(read, torch.from_numpy(is_real), torch.from_numpy(shares * len(codes) / 2).float())
    own, blocks = features(encoding, codes, hats=settings.hats)
    generator = np.random.Generator(np.random.Philox(derive(seed, "rows")))
    # torch initialises and drops from the global generator: give it a seeded one, and the old state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "weights"))
        reader = Reader(
            level, len(encoding.columns), settings.width, own=own, blocks=blocks, dropout=settings.encoder_dropout
        )
        passes = _fit(reader, examples, settings, generator, name)
    reader.work_out()
    return Encoder(name, level, encoding, columns, reader.eval(), passes)


@dataclass(frozen=True)
class Examples:
    """Rows of both classes."""

    read: Read
    is_real: Tensor
    weights: Tensor
    """Those of a class add up to half of all rows."""

    def losses(self, reader: Reader, rows: Tensor) -> Float[Tensor, " row"]:
        """−log of the probability of each row's class, mean over its places, in nats."""
        found = logits(reader, self.read, rows)
        signed = torch.where(self.is_real[rows, None], found, -found)
        nats = nn.functional.softplus(-signed)
        if not reader.causal:
            return nats.mean(1)
        lengths = self.read.lengths[self.read.lines[rows]]  # one line a row
        return (nats * (torch.arange(nats.shape[1]) < lengths)).sum(1) / lengths[:, 0]


def _fit(
    reader: Reader, examples: Examples, settings: Discriminators, generator: np.random.Generator, name: str
) -> tuple[Pass, ...]:
    """Train, leave the best weights in `reader`, and say how each pass went."""
    learned, held = _parted(examples.is_real.numpy(), generator)
    optimizer = torch.optim.AdamW(
        reader.parameters(), lr=settings.encoder_rate, weight_decay=settings.encoder_decay, fused=True
    )
    steps = settings.epochs * math.ceil(len(learned) / settings.encoder_batch)
    step, best = 0, copy.deepcopy(reader.state_dict())
    passes = [_look(reader, examples, held, math.log(2), math.log(2))]
    for _ in range(settings.epochs):
        reader.train()
        sums, norms = torch.zeros(2), torch.zeros(2)
        order = torch.from_numpy(generator.permutation(learned))
        for rows in order.split(settings.encoder_batch):
            for group in optimizer.param_groups:
                group["lr"] = settings.encoder_rate * _schedule(step, steps)
            optimizer.zero_grad(set_to_none=True)
            losses = examples.losses(reader, rows)
            weights = examples.weights[rows]
            loss = (losses * weights).sum() / len(rows)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(reader.parameters(), MAX_GRADIENT_NORM)
            if not (math.isfinite(float(loss.detach())) and math.isfinite(float(norm))):
                raise NumericError(
                    f"the discriminator {name}, step {step + 1}: the loss is {float(loss.detach())} and its gradient's norm "
                    f"{float(norm)}; lower encoder_rate"
                )
            optimizer.step()
            step += 1
            one_hot = torch.stack([examples.is_real[rows], ~examples.is_real[rows]]) * weights
            sums += one_hot @ losses.detach()
            norms += one_hot.sum(1)
        real, written = (sums / norms).tolist()
        passes.append(_look(reader, examples, held, real, written))
        if passes[-1].held_nats <= min(one.held_nats for one in passes[:-1]):
            best = copy.deepcopy(reader.state_dict())
        elif len(passes) - 1 - int(np.argmin([one.held_nats for one in passes])) >= settings.patience:
            break
    reader.load_state_dict(best)
    return tuple(passes)


def _schedule(step: int, steps: int) -> float:
    warm = min(1.0, (step + 1) / max(1, min(50, steps // 10)))
    return warm * 0.5 * (1 + math.cos(math.pi * step / steps))


def _parted(is_real, generator):
    learned, held = [], []
    for some in (np.flatnonzero(is_real), np.flatnonzero(~is_real)):
        order = generator.permutation(some)
        count = max(1, round(HELD_SHARE * len(some)))
        held.append(order[:count])
        learned.append(order[count:])
    return np.sort(np.concatenate(learned)), np.concatenate(held)


@torch.no_grad()
def _look(reader: Reader, examples: Examples, held, real: float, written: float) -> Pass:
    reader.eval()
    rows = torch.from_numpy(held)
    losses = torch.cat([examples.losses(reader, some) for some in rows.split(ROWS_AT_ONCE)])
    weights = examples.weights[rows]
    is_real = examples.is_real[rows]
    each = [float((losses * weights)[side].sum() / weights[side].sum()) for side in (is_real, ~is_real)]
    return Pass(real, written, sum(each) / 2)


@torch.no_grad()
def _all(reader: Reader, read: Read, rows: Int[Tensor, " row"]) -> Float[Tensor, "row place"]:
    parts = [logits(reader, read, some) for some in rows.split(ROWS_AT_ONCE)]
    width = max((part.shape[1] for part in parts), default=1)
    return (
        torch.cat([nn.functional.pad(p[:, None], (0, width - p.shape[1]), mode="replicate")[:, 0] for p in parts])
        if parts
        else torch.zeros(0, 1)
    )
