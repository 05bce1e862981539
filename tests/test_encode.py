"""Text becomes ids without a token across the boundary, with one begin and one end token, and every cut is counted."""

from __future__ import annotations

import json

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from preflab.data.encode import Encoder, Tree
from preflab.data.records import Demonstration, PreferencePair
from preflab.errors import ConfigError, DataError
from tiny import tiny_policy, tiny_texts

TINY = tiny_policy().tokenizer


def gpt2_like(**special: str) -> PreTrainedTokenizerFast:
    """Byte-level, with nothing put before a text and, as GPT-2 has it, one token for begin and end."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.train_from_iterator(
        tiny_texts(50),
        trainers.BpeTrainer(
            vocab_size=350,
            special_tokens=["<|endoftext|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast, **({"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"} | special)
    )


def llama_like() -> PreTrainedTokenizerFast:
    """Metaspace: a text gets a "▁" before its first word, which must not turn into a space inside prompt + response."""
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    trained = FastTokenizer(models.BPE())
    trained.pre_tokenizer = metaspace
    trained.train_from_iterator(
        tiny_texts(50),
        trainers.BpeTrainer(vocab_size=600, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False),
    )
    learnt = json.loads(trained.to_str())["model"]
    vocabulary = learnt["vocab"] | {f"<0x{byte:02X}>": len(learnt["vocab"]) + byte for byte in range(256)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    fast = FastTokenizer(models.BPE(vocabulary, merges, byte_fallback=True, unk_token="<unk>"))
    fast.pre_tokenizer = metaspace
    fast.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])])
    return PreTrainedTokenizerFast(tokenizer_object=fast, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {"tiny": TINY, "gpt2": gpt2_like(), "llama": llama_like()}


def encoder(name: str = "tiny", prompt_tokens: int = 512, response_tokens: int = 512) -> Encoder:
    return Encoder(TOKENIZERS[name], prompt_tokens, response_tokens)


ENCODERS = {name: encoder(name) for name in TOKENIZERS}
BOUNDARIES = [
    ("The plot was", " good."),
    ("The plot was ", "good."),
    ("It cost $", "5."),
    ("It cost ", "$5."),
    ("这部电影", "很好看。"),
    ("Fun 🎬", "🍿!"),
    ("👩‍", "👧"),
    ("A\n\nAssistant:", " Yes.\n"),
    ("word", "word"),
    ("so  ", "  so"),
    ("", "The whole text."),
]


@pytest.mark.parametrize("name", TOKENIZERS)
@pytest.mark.parametrize(("prompt", "response"), BOUNDARIES)
def test_prompt_and_response_ids_decode_to_the_text(name: str, prompt: str, response: str) -> None:
    enc = encoder(name)
    assert text_of(enc.prompt(prompt) + enc.response(response), name) == prompt + response
    assert enc.decode(enc.response(response)) == response
    assert len(enc.response(response)) >= 2  # something, and the end token


def text_of(ids: tuple[int, ...], name: str) -> str:
    """What transformers makes of the ids, with none of our own code."""
    text = TOKENIZERS[name].decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert isinstance(text, str)
    return text


@pytest.mark.parametrize("name", TOKENIZERS)
@given(prompt=st.text(st.characters(codec="utf-8")), response=st.text(st.characters(codec="utf-8")))
def test_any_text_decodes_to_itself(name: str, prompt: str, response: str) -> None:
    enc = ENCODERS[name]
    assume(name != "llama" or not any("▁" in text or text.startswith(" ") for text in (prompt, response)))
    assert text_of(enc.prompt(prompt) + enc.response(response), name) == prompt + response
    assert enc.decode(enc.response(response)) == response


@pytest.mark.parametrize("name", TOKENIZERS)
def test_no_token_spans_the_boundary(name: str) -> None:
    """Wherever a word is cut, the ids of either side are those of its own text."""
    enc, text = ENCODERS[name], "The plot was good and the ending was great"
    joint = tuple(TOKENIZERS[name](text)["input_ids"])
    merged = 0
    for cut in range(1, len(text)):
        prompt, response = enc.prompt(text[:cut]), enc.response(text[cut:])
        assert (text_of(prompt, name), enc.decode(response)) == (text[:cut], text[cut:])
        merged += prompt + response[:-1] != joint
    assert merged > 5  # else this tokenizer merges nothing, and the test shows nothing


@pytest.mark.parametrize("name", TOKENIZERS)
def test_exactly_one_begin_and_one_end_token(name: str) -> None:
    tokenizer, enc = TOKENIZERS[name], encoder(name)
    ids = enc.prompt("The plot was") + enc.response(" good.")
    assert ids.count(tokenizer.eos_token_id) == 1
    assert ids[-1] == tokenizer.eos_token_id
    if name != "gpt2":
        assert ids.count(tokenizer.bos_token_id) == 1
        assert ids[0] == tokenizer.bos_token_id
    assert enc.prompt("The plot was").count(tokenizer.eos_token_id) == 0


def test_an_empty_prompt_still_has_a_token_to_follow() -> None:
    assert encoder("tiny").prompt("") == (TINY.bos_token_id,)
    assert encoder("gpt2").prompt("") == (TOKENIZERS["gpt2"].eos_token_id,)
    assert encoder("tiny").response("") == (TINY.eos_token_id,)


@pytest.mark.parametrize("text", ["<|end|>", "<|start|>", "<|pad|>", "a<|end|>b", " <|end|> "])
def test_special_tokens_in_data_are_plain_text(text: str) -> None:
    enc = encoder()
    special = {TINY.bos_token_id, TINY.eos_token_id, TINY.pad_token_id}
    assert not special & set(enc.text(text))
    assert enc.decode(enc.text(text)) == text


def test_a_long_response_loses_its_end_and_its_end_token_and_is_counted() -> None:
    enc = encoder(response_tokens=4)
    whole = enc.text(" good and clever and long.")
    assert enc.response(" good and clever and long.") == whole[:4]
    assert enc.counts == {"responses that lost their end": 1}


def test_a_response_that_just_fits_keeps_its_end_token() -> None:
    length = len(encoder().text(" good."))
    fits = encoder(response_tokens=length + 1)
    assert fits.response(" good.")[-1] == TINY.eos_token_id
    assert not fits.counts
    cut = encoder(response_tokens=length)
    assert cut.response(" good.") == cut.text(" good.")
    assert cut.counts["responses that lost their end"] == 1


def test_a_long_prompt_loses_its_beginning_but_not_its_begin_token() -> None:
    enc = encoder(prompt_tokens=4)
    whole = enc.text("The plot was thin and long")
    assert enc.prompt("The plot was thin and long") == (TINY.bos_token_id, *whole[-3:])
    assert enc.counts == {"prompts that lost their beginning": 1}
    assert encoder(prompt_tokens=1).prompt("The plot") == (TINY.bos_token_id,)
    assert encoder("gpt2", prompt_tokens=1).prompt("The plot") == encoder("gpt2").text("The plot")[-1:]


def test_pairs_that_are_equal_after_cutting_are_dropped_and_counted() -> None:
    enc = encoder(response_tokens=4)
    same = PreferencePair("The plot was", " good and clever.", " good and clumsy.", "p:1")
    other = PreferencePair("The plot was", " good.", " bad.", "p:2")
    assert enc.pairs([same, other]) == [
        Tree("p:2", enc.prompt("The plot was"), (enc.response(" good."), enc.response(" bad.")))
    ]
    assert enc.counts["pairs dropped: chosen and rejected are the same after cutting"] == 1
    with pytest.raises(DataError, match=r"^0 pairs left: .*same after cutting.*: 1"):
        encoder(response_tokens=4).pairs([same])


def test_counts_tell_of_kept_rows_only_what_happened_to_them() -> None:
    enc = encoder(prompt_tokens=3, response_tokens=4)
    enc.pairs([PreferencePair("The plot was thin", " good and clever.", " bad and clever.", "p:1")])
    assert enc.counts == {"responses that lost their end": 2, "prompts that lost their beginning": 1}


def test_demonstrations_keep_their_origin() -> None:
    enc = encoder()
    assert enc.demonstrations([Demonstration("", "A film.", "d:7")]) == [
        Tree("d:7", (TINY.bos_token_id,), (enc.response("A film."),))
    ]
    with pytest.raises(DataError, match="0 rows left"):
        enc.demonstrations([])


def test_a_tokenizer_without_an_end_token_is_refused() -> None:
    tokenizer = gpt2_like()
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="no end token"):
        Encoder(tokenizer, 8, 8)
