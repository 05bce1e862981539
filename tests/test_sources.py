"""Files of pairs, prompts, demonstrations, ratings and feedback: the forms read, and every policy with its message."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preflab.data.records import Demonstration, Feedback, PreferencePair, Prompt, Rating
from preflab.data.sources import (
    ASSISTANT,
    HUMAN,
    read_demonstrations,
    read_feedback,
    read_pairs,
    read_prompts,
    read_ratings,
    split_dialogues,
    write_pairs,
)
from preflab.errors import ConfigError, DataError

PAIR = {"prompt": "Why?", "chosen": " Because.", "rejected": " No."}
DIALOGUE = {"chosen": f"{HUMAN} Hi{ASSISTANT} Hello!", "rejected": f"{HUMAN} Hi{ASSISTANT} Go."}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_rows(*rows: Any) -> Path:
        path = tmp_path / "data.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write_rows


def pairs_like(count: int, **fields: str) -> list[dict[str, str]]:
    return [PAIR | {"prompt": f"{n}?"} | fields for n in range(count)]


REFUSED: dict[str, tuple[Callable[[Path], Any], list[Any], str]] = {
    "misspelt column": (
        read_pairs,
        [{"prompt": "a", "choosen": "b", "rejected": "c"}],
        r'data.jsonl: "chosen" missing, fields present: prompt, choosen, rejected; "choosen": did you mean "chosen"\?',
    ),
    "misspelt prompt": (
        read_pairs,
        [{"promt": "a", "chosen": "b", "rejected": "c"}],
        r':1: "chosen" and "rejected" share no prefix .*; add a "prompt"; "promt": did you mean "prompt"\?',
    ),
    "other columns": (
        read_pairs,
        [{"text": "a", "label": 1}],
        r'"prompt" and "chosen" and "rejected" missing, fields present: text, label; pairs are "prompt",',
    ),
    "a row without a field": (read_pairs, [PAIR, {"prompt": "a"}], r':2: "chosen" and "rejected" missing, .*: prompt$'),
    "empty object": (read_pairs, [PAIR, {}], r":2: .* missing, fields present: none$"),
    "terminal codes in a name": (read_pairs, [{"\x1b[2J": 1}], r"fields present: \\x1b\[2J;"),
    "null": (read_pairs, [PAIR, PAIR | {"chosen": None}], r':2: "chosen" must be text, this is null$'),
    "number": (read_pairs, [PAIR | {"rejected": 3}], r':1: "rejected" must be text, this is a number$'),
    "list": (read_prompts, [{"prompt": ["a"]}], r':1: "prompt" must be text, this is a list$'),
    "KTO-shaped": (
        read_pairs,
        [{"prompt": "a", "completion": "b", "label": True}],
        r"data.jsonl: this file is unpaired \(KTO-shaped\)",
    ),
    "KTO-shaped demonstrations": (
        read_demonstrations,
        [{"prompt": "a", "completion": "b", "label": True}],
        r"data.jsonl: this file is unpaired \(KTO-shaped\).*keep the rows with a true label",
    ),
    "conversational": (
        read_pairs,
        [PAIR | {"prompt": [{"role": "user", "content": "Hi"}]}],
        r':1: "prompt" is a list of messages \(conversational form\), preflab reads text; render',
    ),
    "conversational, prompt inside": (
        read_pairs,
        [{"chosen": [{"role": "user", "content": "Hi"}], "rejected": [{"role": "user", "content": "Hi"}]}],
        r':1: "chosen" is a list of messages',
    ),
    "no shared prefix": (
        read_pairs,
        [DIALOGUE, {"chosen": f"{HUMAN} A{ASSISTANT} x", "rejected": f"{HUMAN} B{ASSISTANT} x"}],
        r":2: .*share no prefix that ends in",
    ),
    "empty prompt": (read_pairs, [PAIR, PAIR | {"prompt": ""}], r':2: "prompt" is empty; fill it'),
    "white prompt": (read_prompts, [{"prompt": " \n"}], r':1: "prompt" is empty'),
    "empty responses above 1 %": (
        read_pairs,
        pairs_like(248) + pairs_like(3, chosen=" "),
        r"3 of 251 rows: empty response \(up to 1% is dropped\), lines 249, 250, 251; repair or remove them",
    ),
    "two empty in a small file": (read_pairs, pairs_like(9) + pairs_like(2, chosen=""), r"2 of 11 rows: empty"),
    "identical above 5 %": (
        read_pairs,
        pairs_like(75) + pairs_like(4, chosen=" No."),
        r"4 of 79 rows: identical chosen and rejected \(up to 5% is dropped\), lines 76, 77, 78, 79;",
    ),
    "nothing left": (read_pairs, [PAIR | {"chosen": " No."}], r"0 rows left of 1: 1 dropped \(identical chosen and"),
    "demonstrations of no form": (
        read_demonstrations,
        [{"prompt": "a", "answer": "b"}],
        r'"response" missing, fields present: prompt, answer; demonstrations are "prompt" and "response", or "text"',
    ),
    "label 2": (read_ratings, [{"text": "a", "label": 2}], r':1: "label" must be 0 or 1, .*, this is 2$'),
    "label true": (read_ratings, [{"text": "a", "label": True}], r":1: .*this is true$"),
    "label 1.0": (read_ratings, [{"text": "a", "label": 1.0}], r":1: .*this is 1\.0$"),
    "label as text": (read_ratings, [{"text": "a", "label": "1"}], r':1: .*this is "1"$'),
    "label list": (read_ratings, [{"text": "a", "label": [1]}], r":1: .*this is \[1\]$"),
    "no label": (read_ratings, [{"text": "a", "lable": 1}], r'"label" missing.*"lable": did you mean "label"\?'),
    "empty texts above 1 %": (read_ratings, [{"text": " ", "label": 1}] * 2, r"2 of 2 rows: empty text"),
}  # fmt: skip


@pytest.mark.parametrize(("read", "rows", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refusals_name_place_and_remedy(
    write: Callable[..., Path], read: Callable[[Path], Any], rows: list[Any], message: str
) -> None:
    path = write(*rows)
    with pytest.raises(DataError) as raised:
        read(path)
    [line] = str(raised.value).splitlines()
    assert line.startswith(str(path))
    assert re.search(message, line), line
    assert line.isprintable()


def test_broken_lines_and_wrong_fields_are_shown_together_in_file_order(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    good = json.dumps(PAIR)
    path.write_text("\n".join([json.dumps(PAIR | {"chosen": 1}), good, "{", json.dumps(PAIR | {"prompt": ""})]) + "\n")
    with pytest.raises(DataError) as raised:
        read_pairs(path)
    assert [line.split(":")[1] for line in str(raised.value).splitlines()] == ["1", "3", "4"]


def test_a_file_of_broken_lines_says_nothing_of_columns(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text("prompt,chosen,rejected\n")
    with pytest.raises(DataError, match=r"^[^\n]*:1:1: expected a value, found \"prompt,chosen,re…\"$"):
        read_pairs(path)


def test_explicit_pairs_are_taken_as_they_are(write: Callable[..., Path]) -> None:
    loaded = read_pairs(write(PAIR | {"id": 7}, PAIR, DIALOGUE | {"prompt": "p"}))
    assert loaded.rows[0] == PreferencePair("Why?", " Because.", " No.", "data.jsonl:1")
    assert loaded.rows[2] == PreferencePair("p", DIALOGUE["chosen"], DIALOGUE["rejected"], "data.jsonl:3")
    assert loaded.counts == {
        "read": 3,
        "blank lines": 0,
        "pairs with further human turns": 1,
        "dropped: empty response": 0,
        "dropped: identical chosen and rejected": 0,
        "exact duplicates, kept": 1,
        "ignored column: id": 1,
    }


def test_one_bad_row_of_each_kind_is_dropped_and_counted(write: Callable[..., Path]) -> None:
    loaded = read_pairs(write(*pairs_like(3), PAIR | {"rejected": ""}, PAIR | {"chosen": " No."}))
    assert [pair.origin for pair in loaded.rows] == ["data.jsonl:1", "data.jsonl:2", "data.jsonl:3"]
    assert loaded.counts["dropped: empty response"] == 1
    assert loaded.counts["dropped: identical chosen and rejected"] == 1


def test_the_allowed_shares_are_allowed(write: Callable[..., Path]) -> None:
    loaded = read_pairs(write(*pairs_like(188), *pairs_like(2, chosen=""), *pairs_like(10, chosen=" No.")))
    assert len(loaded.rows) == 188


def test_empty_prompts_where_allowed_are_counted(write: Callable[..., Path]) -> None:
    loaded = read_pairs(write(PAIR, PAIR | {"prompt": ""}), allow_empty_prompt=True)
    assert [pair.prompt for pair in loaded.rows] == ["Why?", ""]
    assert loaded.counts["empty prompts"] == 1


def test_dialogues_part_at_the_last_shared_turn(write: Callable[..., Path]) -> None:
    later = f"{HUMAN} Hi{ASSISTANT} Yes?{HUMAN} Well{ASSISTANT}"
    loaded = read_pairs(
        write(
            {"chosen": later + " Good.", "rejected": later + " Gone."},
            {"chosen": f"{HUMAN} Hi{ASSISTANT} Yes?{HUMAN} A{ASSISTANT} x", "rejected": later + " y"},
        )
    )
    assert loaded.rows[0] == PreferencePair(later, " Good.", " Gone.", "data.jsonl:1")
    assert loaded.rows[1].prompt == f"{HUMAN} Hi{ASSISTANT}"
    assert loaded.rows[1].rejected == f" Yes?{HUMAN} Well{ASSISTANT} y"
    assert loaded.counts["pairs with further human turns"] == 1


# Few pieces, so that dialogues share prefixes often; halves of markers, so that they end inside one.
PIECES = st.lists(st.sampled_from([ASSISTANT, HUMAN, "\n\nAssis", "tant:", "\n", " a", " b", ""]), max_size=7).map(
    "".join
)


@given(shared=PIECES, chosen=PIECES, rejected=PIECES)
def test_the_prompt_is_the_longest_shared_prefix_with_the_marker(shared: str, chosen: str, rejected: str) -> None:
    chosen, rejected = shared + chosen, shared + rejected
    ends = [n for n in range(len(chosen) + 1) if chosen[:n] == rejected[:n] and chosen[:n].endswith(ASSISTANT)]
    assert split_dialogues(chosen, rejected) == (ends[-1] if ends else None)


@given(prompt=PIECES, chosen=st.text(min_size=1), rejected=st.text(min_size=1))
def test_prompt_and_response_are_the_dialogue_again(
    tmp_path_factory: pytest.TempPathFactory, prompt: str, chosen: str, rejected: str
) -> None:
    row = {"chosen": prompt + ASSISTANT + "c" + chosen, "rejected": prompt + ASSISTANT + "r" + rejected}
    path = tmp_path_factory.getbasetemp() / "dialogues.jsonl"
    path.write_text(json.dumps(row), encoding="utf-8")
    [pair] = read_pairs(path).rows
    assert pair.prompt + pair.chosen == row["chosen"]
    assert pair.prompt + pair.rejected == row["rejected"]
    assert pair.prompt.endswith(ASSISTANT)


TEXTS = st.text(min_size=1).filter(str.strip)


@given(st.lists(st.tuples(TEXTS, TEXTS, TEXTS).filter(lambda texts: texts[1] != texts[2]), min_size=1, max_size=5))
def test_written_pairs_are_read_back(
    tmp_path_factory: pytest.TempPathFactory, texts: list[tuple[str, str, str]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "pairs.jsonl"
    write_pairs(path, [PreferencePair(*three, f"generated:{n}") for n, three in enumerate(texts)])
    assert read_pairs(path).rows == tuple(
        PreferencePair(*three, f"pairs.jsonl:{n}") for n, three in enumerate(texts, start=1)
    )


def test_pairs_that_no_file_can_hold_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"generated:3: the pair holds half a character"):
        write_pairs(tmp_path / "pairs.jsonl", [PreferencePair("a", "\ud800", "c", "generated:3")])
    with pytest.raises(ConfigError, match=r"uncompressed; name it pairs\.jsonl$"):
        write_pairs(tmp_path / "pairs.jsonl.gz", [PreferencePair("a", "b", "c", "generated:1")])
    assert not list(tmp_path.iterdir())


def test_prompts_come_once_from_a_column_or_from_dialogues(write: Callable[..., Path]) -> None:
    loaded = read_prompts(write(PAIR, {"prompt": "Who?"}, PAIR))
    assert loaded.rows == (Prompt("Why?", "data.jsonl:1"), Prompt("Who?", "data.jsonl:2"))
    assert loaded.counts["repeated prompts, kept once"] == 1
    assert loaded.counts["ignored column: chosen"] == 2
    assert read_prompts(write(DIALOGUE)).rows == (Prompt(f"{HUMAN} Hi{ASSISTANT}", "data.jsonl:1"),)


def test_columns_that_rewards_ask_for_stay_with_their_prompt(write: Callable[..., Path]) -> None:
    rows = [{"prompt": "2 + 2?", "answer": 4, "level": "easy"}, {"prompt": "3 + 3?", "answer": "six"}]
    loaded = read_prompts(write(*rows, rows[0]), columns=("answer",))
    assert [prompt.fields for prompt in loaded.rows] == [{"answer": 4}, {"answer": "six"}]
    assert loaded.counts["ignored column: level"] == 2
    assert loaded.counts["repeated prompts, kept once"] == 1
    assert "ignored column: answer" not in loaded.counts

    everything = read_prompts(write(*rows, {"prompt": "3 + 3?", "answer": "6"}), columns=None)
    assert [prompt.fields for prompt in everything.rows] == [
        {"answer": 4, "level": "easy"},
        {"answer": "six", "level": None},
    ]
    assert everything.counts["repeated prompts with other columns, dropped"] == 1
    assert not [name for name in everything.counts if name.startswith("ignored")]

    with pytest.raises(
        DataError, match=r':2: the prompt of data.jsonl:1 again, with another "answer"; keep one of them$'
    ):
        read_prompts(write(rows[0], {"prompt": "2 + 2?", "answer": 5}), columns=("answer",))
    with pytest.raises(DataError, match=r'no column "anwser", which the reward reads; did you mean "answer"'):
        read_prompts(write(rows[1]), columns=("anwser",))
    with pytest.raises(DataError, match=r':2: "answer" missing, fields present: prompt$'):
        read_prompts(write(rows[1], {"prompt": "a"}), columns=("answer",))


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "a", "response": "b"}, ("a", "b")),
        ({"prompt": "a", "completion": "b"}, ("a", "b")),
        ({"prompt": "a", "completion": "x", "response": "b"}, ("a", "b")),
        ({"text": "b", "label": 0}, ("", "b")),
        (PAIR, ("Why?", " Because.")),
        (DIALOGUE, (f"{HUMAN} Hi{ASSISTANT}", " Hello!")),
    ],
)
def test_forms_of_demonstrations(write: Callable[..., Path], row: dict[str, object], expected: tuple[str, str]) -> None:
    assert read_demonstrations(write(row)).rows == (Demonstration(*expected, "data.jsonl:1"),)


def test_demonstrations_drop_an_empty_response_and_count_what_they_took(write: Callable[..., Path]) -> None:
    loaded = read_demonstrations(write({"prompt": "a", "response": "b"}, {"prompt": "a", "response": "\n"}))
    assert (len(loaded.rows), loaded.counts["dropped: empty response"]) == (1, 1)
    loaded = read_demonstrations(write(PAIR, PAIR | {"chosen": " No."}))
    assert loaded.counts["chosen responses taken as demonstrations"] == 1
    assert loaded.counts["dropped: identical chosen and rejected"] == 1


def test_ratings_are_numbers_or_words(write: Callable[..., Path]) -> None:
    labels = [0, 1, "negative", "positive"]
    loaded = read_ratings(write(*({"text": f"t{n}", "label": label} for n, label in enumerate(labels))))
    assert loaded.rows == tuple(Rating(f"t{n}", n % 2, f"data.jsonl:{n + 1}") for n in range(4))
    assert (loaded.counts["label 1"], loaded.counts["label 0"]) == (2, 2)


MARKED = {"prompt": "Why?", "completion": " Because.", "label": True}


@pytest.mark.parametrize("column", ["completion", "response"])
def test_feedback_is_responses_marked_true_or_false(write: Callable[..., Path], column: str) -> None:
    rows = [{"prompt": "a", column: "b", "label": True}, {"prompt": "a", column: " c", "label": False}]
    loaded = read_feedback(write(*rows, rows[0]))
    assert loaded.rows == (
        Feedback("a", "b", True, "data.jsonl:1"),
        Feedback("a", " c", False, "data.jsonl:2"),
        Feedback("a", "b", True, "data.jsonl:3"),
    )
    assert (loaded.counts["desirable"], loaded.counts["undesirable"]) == (2, 1)
    assert loaded.counts["exact duplicates, kept"] == 1


def test_a_completion_goes_above_a_response(write: Callable[..., Path]) -> None:
    """As for demonstrations the other way about: KTO's files name it so."""
    loaded = read_feedback(write(MARKED | {"response": "x"}, MARKED | {"label": False, "response": "y"}))
    assert [row.response for row in loaded.rows] == [" Because.", " Because."]
    assert loaded.counts["ignored column: response"] == 2


@pytest.mark.parametrize("row", [PAIR, DIALOGUE])
def test_each_pair_gives_a_desirable_and_an_undesirable_response(
    write: Callable[..., Path], row: dict[str, str]
) -> None:
    path = write(row, row | {"rejected": row["chosen"]})  # the second one says nothing
    loaded, (pair,) = read_feedback(path), read_pairs(path).rows
    assert loaded.rows == (
        Feedback(pair.prompt, pair.chosen, True, "data.jsonl:1"),
        Feedback(pair.prompt, pair.rejected, False, "data.jsonl:1"),
    )
    assert loaded.counts["responses taken from pairs"] == 2
    assert loaded.counts["dropped: identical chosen and rejected"] == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        *(
            ([MARKED, MARKED | {"label": label}], rf':2: "label" must be true or false, this is {shown}$')
            for label, shown in ((1, "1"), ("true", '"true"'), (None, "null"), (1.0, r"1\.0"), ([], r"\[\]"))
        ),
        ([MARKED, MARKED | {"prompt": " "}], r':2: "prompt" is empty'),
        ([MARKED, {"prompt": "a", "completion": "b"}], r':2: "label" missing, fields present: prompt, completion$'),
        ([MARKED, MARKED | {"completion": 3}], r':2: "completion" must be text, this is a number$'),
        ([MARKED, MARKED], r"every label is true; learning needs both kinds$"),
        ([MARKED | {"label": False}], r"every label is false; learning needs both kinds$"),
        ([{"prompt": "a", "text": "b"}], r'"completion" and "label" missing, .*feedback is "prompt", "completion" and'),
        ([MARKED | {"completion": " "}] * 5 + [MARKED | {"label": False}] * 50, r"5 of 55 rows: empty response"),
        ([], r"0 rows"),
    ],
)
def test_refused_feedback(write: Callable[..., Path], rows: list[Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_feedback(write(*rows))


def test_feedback_with_empty_prompts_where_they_are_allowed(write: Callable[..., Path]) -> None:
    loaded = read_feedback(write(MARKED | {"prompt": ""}, MARKED | {"label": False}), allow_empty_prompt=True)
    assert [row.prompt for row in loaded.rows] == ["", "Why?"]
    assert loaded.counts["empty prompts"] == 1


@pytest.fixture
def real_data() -> Path:
    folder = os.environ.get("PREFLAB_DATA")
    if not folder:
        pytest.skip("needs real data: set PREFLAB_DATA to the folder with hh_harmless and movie_reviews (.jsonl.gz)")
    return Path(folder)


def test_real_dialogues(real_data: Path) -> None:
    loaded = read_pairs(real_data / "hh_harmless.jsonl.gz")
    assert loaded.counts["read"] == 1800
    assert loaded.counts["dropped: empty response"] == 4
    assert len(loaded.rows) == 1796
    assert all(pair.prompt.endswith(ASSISTANT) and pair.chosen.startswith(" ") for pair in loaded.rows)


def test_real_reviews(real_data: Path) -> None:
    loaded = read_ratings(real_data / "movie_reviews.jsonl.gz")
    assert (loaded.counts["label 1"], loaded.counts["label 0"]) == (900, 900)
