"""Tables: rows ⇄ tokens, a language model that writes rows, and what its rows are worth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from preflab.tables.synthesizer import Synthesizer as Synthesizer

__all__ = ["Synthesizer"]


def __getattr__(name: str) -> Any:
    """`preflab.tables.Synthesizer`, loaded where it is asked for: judging rows needs no torch."""
    if name == "Synthesizer":
        from preflab.tables.synthesizer import Synthesizer

        return Synthesizer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
