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
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from preflab.config.alignment import Discriminators
from preflab.errors import NumericError, StorageError
from preflab.runs import new_folder, read_json, write_json
from preflab.seeds import derive
from preflab.tables.discriminators.level import Codes, Level, Logits, of_rows
from preflab.tables.discriminators.reading import Read, Reader, RowEncoding, features, logits, vocabulary

MAX_GRADIENT_NORM = 1.0
HELD_SHARE = 0.1
"""Of the rows of each class, so many say which pass was best."""
ROWS_AT_ONCE = 1024
WARMUP_STEPS = 50
"""Fewer where they would be more than a tenth of all."""
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
        places = {"token": self.encoding.longest, "sentence": len(self.encoding.columns)}.get(self.level, 1)
        found = np.zeros((len(codes), places))
        self.reader.eval()
        with torch.no_grad():
            for rows in torch.arange(len(codes)).split(ROWS_AT_ONCE if len(codes) else 1):
                some = logits(self.reader, read, rows).numpy()
                found[rows] = np.pad(some, ((0, 0), (0, places - some.shape[1])), mode="edge")
        return found

    def row_logits(self, codes: Codes) -> Float[np.ndarray, " row"]:
        """See `level.Discriminator`."""
        return of_rows(self.level, self.logits(codes))

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
            level,
            len(encoding.columns),
            settings.width,
            own=own,
            blocks=blocks,
            dropout=settings.encoder_dropout,
            steps=read.token_ids.shape[1],
        )
        passes = _fit(reader, examples, settings, generator, name)
        reader.work_out()
    return Encoder(name, level, encoding, columns, reader.eval(), passes)


@dataclass(frozen=True)
class Examples:
    """Rows of both classes."""

    read: Read
    is_real: Bool[Tensor, " row"]
    weights: Float[Tensor, " row"]
    """Those of a class add up to half of all rows."""

    def losses(self, reader: Reader, rows: Int[Tensor, " row"]) -> Float[Tensor, " row"]:
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
    learned, held = _parted(examples.is_real, generator)
    optimizer = torch.optim.AdamW(reader.parameters(), weight_decay=settings.encoder_decay, fused=True)
    each = math.ceil(len(learned) / settings.encoder_batch)
    passes = [Pass(math.log(2), math.log(2), _held_nats(reader, examples, held))]
    best, best_pass = copy.deepcopy(reader.state_dict()), 0
    for number in range(settings.epochs):
        if number - best_pass >= settings.patience:
            break
        reader.train()
        order = learned[torch.from_numpy(generator.permutation(len(learned)))]
        losses = []
        for step, rows in enumerate(order.split(settings.encoder_batch), number * each):
            for group in optimizer.param_groups:
                group["lr"] = _rate(settings.encoder_rate, step, settings.epochs * each)
            losses.append(_step(reader, examples, rows, optimizer, f"the discriminator {name}, step {step + 1}"))
        real, written = map(float, _by_class(torch.cat(losses), examples, order))
        passes.append(Pass(real, written, _held_nats(reader, examples, held)))
        if passes[-1].held_nats < passes[best_pass].held_nats:
            best, best_pass = copy.deepcopy(reader.state_dict()), number + 1
    reader.load_state_dict(best)
    return tuple(passes)


def _step(
    reader: Reader, examples: Examples, rows: Int[Tensor, " row"], optimizer: torch.optim.Optimizer, where: str
) -> Float[Tensor, " row"]:
    """One step of AdamW; the loss of each row.

    Raises:
        NumericError: the loss or its gradient is not finite; no weight was changed.
    """
    optimizer.zero_grad(set_to_none=True)
    losses = examples.losses(reader, rows)
    loss = (losses * examples.weights[rows]).mean()
    loss.backward()
    norm = float(nn.utils.clip_grad_norm_(reader.parameters(), MAX_GRADIENT_NORM))
    if not (math.isfinite(float(loss.detach())) and math.isfinite(norm)):
        raise NumericError(
            f"{where}: the loss is {float(loss.detach())} and its gradient's norm {norm}; no weight was changed. Lower "
            "discriminators.encoder_rate, or look for rows whose weights are not finite"
        )
    optimizer.step()
    return losses.detach()


def _rate(peak: float, step: int, steps: int) -> float:
    """A linear warm-up, then half a cosine."""
    warm = min(1.0, (step + 1) / max(1, min(WARMUP_STEPS, steps // 10)))
    return peak * warm * (1 + math.cos(math.pi * step / steps)) / 2


def _parted(
    is_real: Bool[Tensor, " row"], generator: np.random.Generator
) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
    """Rows that are learned from, and those that are held out, at least one of each class."""
    learned, held = [], []
    for some in (is_real.nonzero()[:, 0], (~is_real).nonzero()[:, 0]):
        shuffled = some[torch.from_numpy(generator.permutation(len(some)))]
        count = max(1, round(HELD_SHARE * len(some)))
        held.append(shuffled[:count])
        learned.append(shuffled[count:])
    return torch.cat(learned), torch.cat(held)


@torch.no_grad()
def _held_nats(reader: Reader, examples: Examples, held: Int[Tensor, " row"]) -> float:
    """Loss of held-out rows, both classes counted alike."""
    reader.eval()
    losses = torch.cat([examples.losses(reader, some) for some in held.split(ROWS_AT_ONCE)])
    return float(torch.stack(_by_class(losses, examples, held)).mean())


def _by_class(losses: Float[Tensor, " row"], examples: Examples, rows: Int[Tensor, " row"]) -> list[Tensor]:
    """Weighted mean of real rows, and of written ones."""
    weights, is_real = examples.weights[rows], examples.is_real[rows]
    return [(losses * weights)[side].sum() / weights[side].sum() for side in (is_real, ~is_real)]
