"""Rows of numbers on disk, as many as a budget allows: what frozen blocks gave, to be read again."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

FIRST_BYTES = 2**26
"""What a file begins with; it doubles whenever it is full."""
SHARE_OF_FREE = 0.5
"""Of the disk's free space, at most so much is taken: checkpoints need room too."""


def budget_bytes(folder: Path, most_bytes: int) -> int:
    """What a file in this folder may take."""
    return min(most_bytes, int(SHARE_OF_FREE * shutil.disk_usage(folder).free))


class StateFile:
    """A memory-mapped file without a name: no other process finds it, and it is gone with this one, however that ends.

    Disk space is reserved before it is written to: on a full disk `add` raises OSError, where a write to the map would
    end the process.

    >>> file = StateFile(Path(tempfile.gettempdir()), width=2, dtype=torch.float32, most_bytes=24)
    >>> file.add(torch.ones(2, 2)), file.add(torch.ones(2, 2)), file.add(torch.zeros(1, 2))
    (0, None, 2)
    >>> file.read(1, 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """

    def __init__(self, folder: Path, *, width: int, dtype: torch.dtype, most_bytes: int) -> None:
        """
        Args:
            width: of a row.
            most_bytes: how large it may become, if the disk has the space.

        Raises:
            OSError: no file can be made in the folder.
        """
        self.row_bytes = width * dtype.itemsize
        self.budget_bytes = budget_bytes(folder, most_bytes)
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115  (open as long as this object lives)
        self.rows = torch.empty(0, width, dtype=dtype)
        self.used = 0

    def add(self, rows: Float[Tensor, "row width"]) -> int | None:
        """Write rows behind one another; returns the place of the first, None where the budget has no room for them.

        Raises:
            OSError: the disk is full.
        """
        first, end = self.used, self.used + len(rows)
        if end * self.row_bytes > self.budget_bytes:
            return None
        if end > len(self.rows):
            self._grow(end)
        self.rows[first:end] = rows
        self.used = end
        return first

    def read(self, first: int, rows: int) -> Float[Tensor, "row width"]:
        """Rows that were added."""
        return self.rows[first : first + rows]

    def _grow(self, rows: int) -> None:
        wanted = max(rows * self.row_bytes, 2 * self.rows.nbytes, FIRST_BYTES)
        size = min(wanted, self.budget_bytes) // self.row_bytes * self.row_bytes
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(self.file.fileno(), 0, size)
        mapped = np.memmap(self.file, dtype=np.uint8, mode="r+", shape=(size,))
        self.rows = torch.from_numpy(mapped).view(self.rows.dtype).view(-1, self.rows.shape[1])
