"""Fitting a model of rows: maximum likelihood, stopped where that of rows it does not learn from stops rising.

    repeat: a batch of rows → −log p(row) → a step of AdamW → the moving average of the weights
    after each pass: the average's −log p of the validation rows; the best average is kept

Memorising is the failure to avoid: dropout, features that neighbouring values share, averaging, and the early stop are
there for it. `writers.py` has what is learned, one kind an encoding.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Int
from torch import nn

from preflab.config.row_model import RowModel
from preflab.errors import NumericError
from preflab.live import live
from preflab.runs import RunFolder, new_folder, read_lines
from preflab.seeds import derive
from preflab.tables.writers import Writer
from preflab.training.order import batch_at
from preflab.training.session import Session

Codes = Int[np.ndarray, "row column"]
STOPS = ("epochs", "validation", "minutes")
"""What a fit may be stopped by."""
USUAL_EPOCHS, LEAST_STEPS, LEAST_PASS = 12, 500, 40
"""How long a fit is where nothing is said: passes at most, or so many steps; and steps of a pass of a small table."""
BETAS = (0.9, 0.98)
MAX_GRADIENT_NORM = 1.0
WARMUP_STEPS = 50
"""Fewer where they would be more than a tenth of the longest fit."""
LAST_RATE = 0.02
"""What the schedule leaves of the learning rate at its end."""
YOUNG = 10
"""An average of few steps forgets faster: of step n it takes at least (n + 1) / (n + YOUNG)."""

Quality = Callable[[Any, int], dict[str, float]]
"""(plain model, epoch) → figures of its rows, for the person who watches."""


@dataclass(frozen=True)
class Kept:
    """The optimiser, as `Session` keeps it."""

    optimizer: torch.optim.Optimizer
    masters: nn.ParameterList


def split(codes: Codes, share: float, *, seed: int) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Places of the rows that are learned from, and of the validation rows: at least one of each."""
    order = np.random.Generator(np.random.Philox(derive(seed, "validation"))).permutation(len(codes))
    held = min(len(codes) - 1, max(1, round(share * len(codes))))
    return np.sort(order[held:]), np.sort(order[:held])


def lengths(rows: int, settings: RowModel) -> tuple[int, int]:
    """Steps of a pass over so many rows, and of the longest fit.

    >>> lengths(6025, RowModel()), lengths(300, RowModel()), lengths(300, RowModel(epochs=2))
    ((48, 565), (40, 500), (3, 5))
    """
    pass_steps = max(1, math.ceil(rows / settings.batch))
    if settings.epochs is not None:
        return pass_steps, max(1, math.ceil(settings.epochs * rows / settings.batch))
    return max(pass_steps, LEAST_PASS), max(LEAST_STEPS, math.ceil(USUAL_EPOCHS * rows / settings.batch))


def rate(peak: float, step: int, progress: float, *, warm_up: int = WARMUP_STEPS) -> float:
    """The learning rate of step 0, 1, …: a linear warm-up, then half a cosine.

    Args:
        progress: how much of the longest fit is over, in [0, 1].
    """
    warm = min(1.0, (step + 1) / warm_up)
    return peak * warm * (LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * progress)) / 2)


def fit_rows(
    writer: Writer,
    codes: Codes,
    settings: RowModel,
    run: RunFolder,
    *,
    seed: int,
    minutes: float | None = None,
    quality: Quality | None = None,
) -> dict[str, Any]:
    """Train `writer` on `codes`, leave the best model in the run folder, in `model/`, and return what was measured.

    Args:
        codes: the training rows; a part of them is for validation.
        minutes: of wall-clock time, after which it stops; the learning rate has fallen by then.
        quality: looked at every `settings.look_every` passes and at the end.

    Raises:
        NumericError: a loss or gradient is not finite; the step is not taken.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    learned, held = split(codes, settings.validation, seed=seed)
    pass_steps, total = lengths(len(learned), settings)
    warm_up = min(WARMUP_STEPS, max(1, total // 10))
    peak = writer.usual_rate if settings.learning_rate is None else settings.learning_rate
    average, best = copy.deepcopy(writer), copy.deepcopy(writer)
    decayed, others = writer.decayed()
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=peak,
        betas=BETAS,
        fused=True,
    )
    session = Session(
        run,
        {"writer": writer, "average": average, "best": best},
        {"writer": Kept(optimizer, nn.ParameterList())},
        marks=range(pass_steps, total + 1, pass_steps),
        evaluate=None,
    )
    seen = session.memory
    with session.stoppable(), live("fitting rows", total, session.start, earlier=read_lines(run.metrics)) as show:
        for step in range(session.start, total):
            if "stop" in seen:  # it was stopped before its model was written
                break
            over = seen.get("seconds", 0.0) / (60 * minutes) if minutes else 0.0
            progress = min(1.0, max(step / total, over))
            rows = learned[batch_at(step, examples=len(learned), batch_size=settings.batch, seed=derive(seed, "data"))]
            with session.step(step, lambda rows=rows: [f"training row {row + 1}" for row in rows]), _clock(seen):  # type: ignore[misc]
                figures = _step(
                    writer, codes[rows], optimizer, rate(peak, step, progress, warm_up=warm_up), step=step, seed=seed
                )
                _average(average, writer, min(settings.averaging, (step + 1) / (step + YOUNG)))
            done = step + 1
            late = progress >= 1
            whole = done % pass_steps == 0 or done == total or late
            if whole:
                epoch = math.ceil(done / pass_steps)
                with _clock(seen):
                    nats = held_out_nats(average, codes[held], seed=seed)
                    if not math.isfinite(nats):
                        raise NumericError(
                            f"after step {done} the likelihood of the validation rows is not finite; lower "
                            "fit.learning_rate"
                        )
                    if "best_nats" not in seen or nats < seen["best_nats"]:
                        best.load_state_dict(average.state_dict())
                        seen |= {"best_nats": nats, "best_step": done, "best_epoch": epoch}
                    if quality is not None and epoch % settings.look_every == 0:
                        figures |= quality(average.plain(), epoch)
                figures |= {"epoch": epoch, "validation_nats": nats, "seconds": seen["seconds"]}
                run.log({"step": done, **figures})
                if late or done == total or epoch - seen["best_epoch"] >= settings.patience:
                    seen["stop"] = STOPS.index("epochs" if done == total else "minutes" if late else "validation")
                    session.marks.add(done)  # so that a resumed run stops here too
            show(done, figures if whole else {})
            session.after(done)
    model = best.plain()
    figures = {} if quality is None else quality(model, int(seen["best_epoch"]))
    with new_folder(run.model) as folder:
        model.save_pretrained(folder)
    return {
        "rows": len(learned),
        "validation_rows": len(held),
        "validation_nats": seen["best_nats"],
        "best_step": int(seen["best_step"]),
        "best_epoch": int(seen["best_epoch"]),
        "stopped_by": STOPS[int(seen["stop"])],
        "seconds": seen["seconds"],
        "cpu_seconds": seen["cpu_seconds"],
        **figures,
    }


def _step(
    writer: Writer, codes: Codes, optimizer: torch.optim.Optimizer, rate: float, *, step: int, seed: int
) -> dict[str, float]:
    """One step of AdamW on some rows; their mean −log p.

    Raises:
        NumericError: it or its gradient is not finite; no weight was changed.
    """
    writer.train()
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for nats in writer.shares(codes, seed=derive(seed, "step", step), learning=True):
        share = nats.sum() / len(codes)
        share.backward()
        total += float(share.detach())
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    norm = float(nn.utils.clip_grad_norm_(weights, MAX_GRADIENT_NORM))
    if not (math.isfinite(total) and math.isfinite(norm)):
        raise NumericError(
            f"at step {step + 1} the loss is {total} and its gradient's norm {norm}; no weight was changed. Lower "
            "fit.learning_rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.step()
    return {"nats": total, "gradient_norm": norm, "learning_rate": rate}


@torch.no_grad()
def _average(average: nn.Module, writer: nn.Module, kept: float) -> None:
    """Move the average towards the weights."""
    torch._foreach_lerp_(list(average.parameters()), list(writer.parameters()), 1 - kept)


@torch.no_grad()
def held_out_nats(writer: Writer, codes: Codes, *, seed: int) -> float:
    """Mean −log p of rows, in nats."""
    writer.eval()
    parts = [nats.sum() for nats in writer.shares(codes, seed=derive(seed, "held out"), learning=False)]
    return float(torch.stack(parts).sum()) / len(codes)


@contextmanager
def _clock(seen: dict[str, float]) -> Iterator[None]:
    """Add the block's time to what was counted, over stops and resumes."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    seen["seconds"] = seen.get("seconds", 0.0) + time.perf_counter() - wall
    seen["cpu_seconds"] = seen.get("cpu_seconds", 0.0) + time.process_time() - cpu
