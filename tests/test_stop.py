"""A response ends at the token with which its whole text first holds a stop string."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

import pytest

from preflab.data.encode import Encoder
from preflab.errors import ConfigError
from preflab.rollouts.stop import Stop
from test_encode import ENCODERS

TEXT = " The plot was thin; 这部电影 über é🎬 café. END of it.\n\n A 3.5 star film."


def first(encoder: Encoder, tokens: Sequence[int], completes: Callable[[Sequence[int]], bool]) -> int | None:
    """After how many tokens it is so for the first time."""
    return next((n for n in range(1, len(tokens) + 1) if completes(tokens[:n])), None)


def agrees(encoder: Encoder, tokens: Sequence[int], strings: tuple[str, ...]) -> int | None:
    """Where the response ends, decoding the whole of it each time; the stop has to say the same."""
    naive = first(encoder, tokens, lambda some: any(string in encoder.decode(some) for string in strings))
    assert first(encoder, tokens, Stop(strings, encoder).completed_by) == naive, (strings, naive)
    return naive


def letter_by_letter(encoder: Encoder, text: str, rng: Random) -> tuple[int, ...]:
    """The text in other pieces than the tokenizer makes of it: any token may end anywhere."""
    pieces: list[int] = []
    while text:
        width = rng.choice((1, 1, 1, 2, 3, 8))
        pieces += encoder.continuation(text[:width])
        text = text[width:]
    return tuple(pieces)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_string_of_a_text_is_found_where_it_is_complete(name: str) -> None:
    encoder, rng = ENCODERS[name], Random(0)
    found = 0
    for _ in range(150):
        tokens = letter_by_letter(encoder, TEXT, rng)
        text = encoder.decode(tokens)
        strings = []
        for _ in range(rng.choice((1, 1, 3))):
            begin = rng.randrange(len(text))
            strings.append(text[begin : begin + rng.choice((1, 2, 3, 5, 12))])
        found += agrees(encoder, tokens, tuple(strings)) is not None
    assert found == 150


@pytest.mark.parametrize("name", ["tiny", "gpt2"])
def test_so_it_is_in_tokens_that_make_no_text(name: str) -> None:
    """Bytes in any order: halves of characters, and special tokens in between, which are no text."""
    encoder, rng = ENCODERS[name], Random(1)
    size, special = len(encoder.tokenizer), encoder.tokenizer.all_special_ids
    found = 0
    for _ in range(300):
        tokens = [rng.choice(special) if rng.random() < 0.2 else rng.randrange(size) for _ in range(24)]
        begin = rng.randrange(10)
        string = encoder.decode(tokens)[begin : begin + rng.choice((1, 2, 4))]
        if string and "�" not in string:
            found += agrees(encoder, tokens, (string, "nowhere")) is not None
    assert found > 150


@pytest.mark.parametrize("name", ENCODERS)
def test_half_a_character_ends_nothing(name: str) -> None:
    encoder = ENCODERS[name]
    tokens = encoder.text(" a é🎬")
    halves = [n for n in range(1, len(tokens)) if "�" in encoder.decode(tokens[:n])]
    assert halves
    assert agrees(encoder, tokens, ("🎬",)) == len(tokens)


def test_nothing_is_decoded_for_a_token_that_can_not_complete_a_string() -> None:
    encoder = ENCODERS["tiny"]
    tokens = encoder.text(" The plot was thin and the cast was good. Then END")
    decoded: list[int] = []

    class Counting(Encoder):
        def decode(self, ids: Sequence[int]) -> str:  # type: ignore[override]
            decoded.append(len(ids))
            return super().decode(ids)

    stop = Stop(("END",), Counting(encoder.tokenizer, 512, 512))
    for _ in range(3):
        assert first(encoder, tokens, stop.completed_by) == len(tokens)
    assert len([n for n in decoded if n == 1]) <= len(set(tokens))  # each token once, to know it
    assert len([n for n in decoded if n > 1]) <= 3 * 2  # " D" and "D" of END
    assert max(decoded) <= 1 + len("END")


def test_the_text_is_cut_before_the_first_of_the_strings() -> None:
    stop = Stop(("END", "\n\n"), ENCODERS["tiny"])
    assert stop.cut("a END b") == "a "
    assert stop.cut("a\n\nEND") == "a"
    assert stop.cut("ENDa") == ""
    assert stop.cut("no end") == "no end"


def test_an_empty_string_is_refused() -> None:
    with pytest.raises(ConfigError, match='stop = "": every text holds an empty string'):
        Stop(("a", ""), ENCODERS["tiny"])
