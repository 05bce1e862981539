"""Texts at which a response ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from preflab.data.encode import Encoder
from preflab.errors import ConfigError

HALF_A_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Stop:
    """A response ends where its text first holds one of some strings.

    Its tokens are kept up to and including the one that completes the string, which may bring text beyond it; `cut`
    takes string and rest from the text. The prompt counts for nothing: a string that begins in it is not found.

    Raises:
        ConfigError: a string is empty.
    """

    strings: tuple[str, ...]
    encoder: Encoder

    def __post_init__(self) -> None:
        if not all(self.strings):
            raise ConfigError('stop = "": every text holds an empty string; give another, or none')

    def completed_by(self, tokens: Sequence[int]) -> bool:
        """Whether the last of a response's tokens completes a string, where none was complete before it.

        Decodes no more than can hold the string: each token is a byte of text at least, but for special ones, which
        are no text.
        """
        if not tokens or not self._could_complete(self._text(tokens[-1])):
            return False
        tail: list[int] = []
        for token in reversed(tokens):
            # Half a character at its beginning can spoil all the bytes that follow it.
            if len(tail) >= self._room and HALF_A_CHARACTER not in self._text(tail[-1]):
                break
            if token not in self._special:
                tail.append(token)
        return self._first(self.encoder.decode(tail[::-1])) is not None

    def cut(self, text: str) -> str:
        """A response's text up to the string that ended it; the whole text where none did."""
        return text[: self._first(text)]

    def _first(self, text: str) -> int | None:
        """Where the first of the strings begins."""
        return min((place for string in self.strings if (place := text.find(string)) >= 0), default=None)

    def _could_complete(self, text: str) -> bool:
        """Whether a token's text holds the last character of a string, or a part of one; most do not."""
        return HALF_A_CHARACTER in text or any(string[-1] in text for string in self.strings)

    def _text(self, token: int) -> str:
        """A token alone, decoded once."""
        if token not in self._texts:
            self._texts[token] = self.encoder.decode([token])
        return self._texts[token]

    @cached_property
    def _texts(self) -> dict[int, str]:
        return {}

    @cached_property
    def _special(self) -> frozenset[int]:
        return frozenset(self.encoder.tokenizer.all_special_ids)

    @cached_property
    def _room(self) -> int:
        """The most tokens that can hold a string, and one: what is decoded first may lose a space."""
        return 1 + max(len(string.encode()) for string in self.strings)
