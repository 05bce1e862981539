"""Text → token ids: one tokenisation path for training, sampling and scoring.

- Prompt and response are tokenised apart and their ids joined, so no token spans the boundary.
- The end token is part of the response, and trained. A response that the limit cuts gets no end token.
- Text that looks like a special token ("<|endoftext|>") is tokenised as plain text.
- What is cut or dropped is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from preflab.data.records import Demonstration, Feedback, PreferencePair
from preflab.errors import ConfigError, DataError

# transformers' tokenizers have no common typed base class that mypy can read.
Tokenizer = Any


@dataclass(frozen=True)
class Tree:
    """One prompt and the responses that follow it, as token ids: the shape of a pair, a group and a single rollout."""

    origin: str
    """Where it came from, for messages: "pairs.jsonl:17"."""
    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]
    """For a pair: chosen, then rejected."""


@dataclass
class Encoder:
    """Encodes records and counts what it cut and dropped.

    Raises:
        ConfigError: the tokenizer has no end token.
    """

    tokenizer: Tokenizer
    prompt_tokens: int
    """Longest prompt; a longer one loses its beginning (a begin token stays)."""
    response_tokens: int
    """Longest response, end token included; a longer one loses its end."""
    counts: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        if self.tokenizer.eos_token_id is None:
            raise ConfigError("the tokenizer has no end token, so no response could end; set tokenizer.eos_token")
        self.end_id: int = self.tokenizer.eos_token_id
        # What this tokenizer puts before a text by itself (Llama's <s>); GPT-2 puts nothing.
        self.begin: tuple[int, ...] = tuple(i for i in self.tokenizer("")["input_ids"] if i != self.end_id)
        # Llama 2 and its like put a space before every text: before a response it would be one that nobody wrote.
        reads = getattr(self.tokenizer, "reads_text", True)  # rows of a table have tokens, and no text to make them of
        self._adds_space = reads and self._text_of((*self.text("a"), *self.text("b"))) != "ab"

    def text(self, text: str) -> tuple[int, ...]:
        """The ids of a text alone, with no begin or end token."""
        ids = self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        return tuple(ids)

    def continuation(self, text: str) -> tuple[int, ...]:
        """The ids of a text that follows another, with no begin or end token."""
        if self._adds_space:
            for before in "\n|a0":  # one of them does not merge with the text
                anchor, ids = self.text(before), self.text(before + text)
                if ids[: len(anchor)] == anchor:
                    return ids[len(anchor) :]
        return self.text(text)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Begin token where the model knows one, then the prompt. Never empty: the first response token needs a
        token to follow, so an empty prompt becomes the begin token, or the end token where there is none."""
        ids = self.text(text)
        room = self.prompt_tokens - len(self.begin)
        if len(ids) > room:
            self.counts["prompts that lost their beginning"] += 1
            ids = ids[len(ids) - room :]
        ids = self.begin + ids
        if not ids:
            bos = self.tokenizer.bos_token_id
            ids = (self.end_id if bos is None else bos,)
        return ids

    def response(self, text: str) -> tuple[int, ...]:
        """The response and its end token, cut to the limit."""
        ids = (*self.continuation(text), self.end_id)
        if len(ids) > self.response_tokens:
            self.counts["responses that lost their end"] += 1
            ids = ids[: self.response_tokens]
        return ids

    def demonstrations(self, rows: Iterable[Demonstration | Feedback]) -> list[Tree]:
        """One tree with one response a row."""
        trees = [Tree(row.origin, self.prompt(row.prompt), (self.response(row.response),)) for row in rows]
        if not trees:
            raise DataError("0 rows left to train on; look at the counts of dropped rows")
        return trees

    def pairs(self, rows: Iterable[PreferencePair]) -> list[Tree]:
        """One tree with two responses a row, chosen first; pairs whose ids are equal (after cutting) are dropped.

        Raises:
            DataError: nothing is left.
        """
        trees = []
        for row in rows:
            chosen, rejected = self.response(row.chosen), self.response(row.rejected)
            if chosen == rejected:
                self.counts["pairs dropped: chosen and rejected are the same after cutting"] += 1
                continue
            trees.append(Tree(row.origin, self.prompt(row.prompt), (chosen, rejected)))
        if not trees:
            raise DataError(f"0 pairs left: {dict(self.counts)}; raise lengths.response_tokens or look at the file")
        return trees

    def decode(self, ids: Iterable[int]) -> str:
        """Text of a response, special tokens left out."""
        if not self._adds_space:
            return self._text_of(ids)
        anchor = self.text("\n")  # decoded at the beginning, a response would lose its first space
        return self._text_of((*anchor, *ids)).removeprefix(self._text_of(anchor))

    def _text_of(self, ids: Iterable[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
