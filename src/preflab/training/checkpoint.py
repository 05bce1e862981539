"""Checkpoints: safetensors and JSON, whole or not at all, checked byte by byte when read.

`checkpoints/step-N/` holds the weights and the optimiser state of every model in training, and `manifest.json` with
the SHA-256 of each file and a digest of itself: safetensors loads a flipped bit without a word. A checkpoint is
everything a run needs to go on exactly: data order and sampling are functions of the seed and the step.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from preflab.errors import StorageError
from preflab.progress import warn
from preflab.runs import digest, new_folder, read_json, sha256, write_json

KEPT = 2  # the newest, and one to fall back on


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found whole."""

    path: Path
    step: int
    state: dict[str, Any]
    """What the method wanted kept beside the tensors."""


def save(
    folder: Path,
    step: int,
    models: Mapping[str, nn.Module],
    optimizers: Mapping[str, torch.optim.Optimizer],
    state: Mapping[str, Any],
) -> None:
    """Write `folder/step-N/`, then remove all but the newest two.

    Raises:
        StorageError: there is too little space, or it can't be written; older checkpoints stay.
    """
    for debris in folder.glob(".step-*"):  # of a process that was killed while it saved
        shutil.rmtree(debris, ignore_errors=True)
    needed = sum(p.nbytes for model in models.values() for p in model.parameters())
    # Two moments of each weight that is trained.
    needed += sum(
        2 * p.nbytes for optimizer in optimizers.values() for g in optimizer.param_groups for p in g["params"]
    )
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise StorageError(
            f"{folder}: a checkpoint needs {needed / 1e9:.2g} GB, {free / 1e9:.2g} GB are free; free space or choose "
            "another --out"
        )
    with new_folder(folder / f"step-{step}") as temporary:
        try:
            for name, model in models.items():
                save_model(model, str(temporary / f"{name}.safetensors"))
            for name, optimizer in optimizers.items():
                save_file(_tensors(optimizer), str(temporary / f"{name}.optimizer.safetensors"))
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise StorageError(
                f"can't write {folder / f'step-{step}'}: {error}; free space or choose another --out"
            ) from None
        files = {
            file.name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in sorted(temporary.iterdir())
        }
        manifest = {"step": step, "torch": torch.__version__, "files": files, "state": dict(state)}
        write_json(temporary / "manifest.json", manifest | {"digest": digest(manifest)})
    for old in _steps(folder)[KEPT:]:
        shutil.rmtree(folder / f"step-{old}", ignore_errors=True)


def latest(folder: Path) -> Checkpoint | None:
    """The newest whole checkpoint; a damaged one is named and passed over. None where there is none."""
    steps = _steps(folder)
    for step in steps:
        path = folder / f"step-{step}"
        problem = _problem(path)
        if problem is None:
            return Checkpoint(path, step, read_json(path / "manifest.json")["state"])
        older = "going back to an older checkpoint" if step != steps[-1] else "no older checkpoint, so starting over"
        warn(f"{problem}; {older}")
    return None


def restore(
    checkpoint: Checkpoint, models: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> None:
    """Put a checkpoint's tensors into models and optimisers."""
    try:
        for name, model in models.items():
            load_model(model, str(checkpoint.path / f"{name}.safetensors"))
        for name, optimizer in optimizers.items():
            _fill(optimizer, load_file(str(checkpoint.path / f"{name}.optimizer.safetensors")))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise StorageError(
            f"{checkpoint.path} does not fit this run: {str(error)[:200]}; delete it to start over"
        ) from None


def _steps(folder: Path) -> list[int]:
    """Steps on disk, newest first."""
    matches = (re.fullmatch(r"step-(\d+)", path.name) for path in folder.iterdir()) if folder.is_dir() else ()
    return sorted((int(match[1]) for match in matches if match), reverse=True)


def _problem(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = read_json(path / "manifest.json")
    except StorageError as error:
        return str(error)
    if not isinstance(manifest, dict) or manifest.pop("digest", None) != digest(manifest):
        return f"{path / 'manifest.json'} is damaged: its content is not what its digest says"
    for name, expected in manifest["files"].items():
        file = path / name
        if not file.exists():
            return f"{file} is missing"
        if file.stat().st_size != expected["bytes"]:
            return f"{file} has {file.stat().st_size} bytes, not {expected['bytes']}"
        if sha256(file) != expected["sha256"]:
            return f"{file} is damaged: its SHA-256 is not the one in manifest.json"
    return None


def _tensors(optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value.contiguous() for index, entry in state.items() for key, value in entry.items()}


def _fill(optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]) -> None:
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
