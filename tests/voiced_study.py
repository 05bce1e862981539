"""One study of every voice: prompts that all arms answer, a held-out judge, a judge of pairs; as small as it gets."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from preflab.cli.flags import parse
from preflab.studies.compare import compare

ASKED = ("The plot was", "I went in expecting", "What a")
ARMS = ("reference", "dpo", "dpo+sft", "best-of-n")
SAMPLES = 2
TINY = """
prompts: {train: 48, validation: 8, test: 12}
lengths: {prompt_tokens: 16, response_tokens: 24}
base: {texts: 300, vocabulary: 400, layers: 1, width: 32, heads: 2, epochs: 1}
reference: {epochs: 1, batch: {size: 16}}
pairs: {responses: 2, per_prompt: 1}
reward: {epochs: 1, batch: {size: 16}}
sft: {epochs: 1, batch: {size: 8}, evaluations: 2}
dpo: {epochs: 2, batch: {size: 8}, evaluations: 2}
best_of_n: {n: 4}
"""
JUDGE = """
def longer(prompts, first, second):
    \"\"\"The longer response; of equals the one that stands first.\"\"\"
    with open(__file__ + ".calls", "a") as calls:
        calls.write("called\\n")
    return [float(len(one) >= len(other)) for one, other in zip(first, second)]
"""


class Kept:
    """The folder lives as long as the tests."""

    def __init__(self) -> None:
        self.folder = TemporaryDirectory()
        self.path = Path(self.folder.name)


@cache
def voiced() -> Kept:
    """Where the study and its files are."""
    kept = Kept()
    (kept.path / "judge.py").write_text(JUDGE)
    (kept.path / "ask.txt").write_text("\ufeff" + "\r\n\r\n".join(ASKED) + "\r\n", encoding="utf-8")
    (kept.path / "tiny.yaml").write_text(TINY)
    run(kept.path)
    return kept


def run(path: Path) -> Path:
    """Start the study, or the same one again."""
    flags = ["--config", str(path / "tiny.yaml"), "--out", str(path / "study"), "--prompts", str(path / "ask.txt")]
    flags += ["--generations.samples", str(SAMPLES), "--judge", "--pair-judge", f"{path / 'judge.py'}:longer"]
    return compare(parse("compare", "Compare", ["reviews", *flags, "--arms", *ARMS[1:]]))


def lines(path: Path) -> list[Any]:
    """The objects of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
