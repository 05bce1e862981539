"""Stages that arms share: each is made once, in a folder that says when it is whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from preflab.runs import JSON, digest, read_json, write_json

DONE = "stage.json"


@dataclass
class Stages:
    """The stages of one study, and how long each took."""

    folder: Path
    seconds: dict[str, float] = field(default_factory=dict)

    def has(self, name: str, inputs: JSON) -> bool:
        """Whether the stage is there, made from these inputs."""
        record = self.folder / name.replace(" ", "-") / DONE
        return record.exists() and bool(read_json(record)["inputs"] == digest(inputs))

    def make(self, name: str, inputs: JSON, work: Callable[[Path], JSON]) -> tuple[Path, JSON]:
        """The stage's folder and its result: made now, or found whole from an earlier start of the same study.

        Args:
            name: words with spaces or "seed-0/pairs"; the folder is named after it.
            inputs: everything its result depends on; with other inputs it is made anew.
            work: fills the folder and returns its result, JSON. It may find its own unfinished work there.
        """
        folder = self.folder / name.replace(" ", "-")
        key = digest(inputs)
        if (folder / DONE).exists():
            record = read_json(folder / DONE)
            if record["inputs"] == key:
                self.seconds[name] = record["seconds"]
                return folder, record["result"]
            shutil.rmtree(folder)
        # Unfinished work counts its seconds from here on: what a killed start spent is not known.
        began = time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)
        result = work(folder)
        self.seconds[name] = time.perf_counter() - began
        write_json(folder / DONE, {"inputs": key, "seconds": self.seconds[name], "result": result})
        return folder, result
