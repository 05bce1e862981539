"""What both sides of the speed benchmark read: a model, its tokenizer, and the pairs, batch by batch.

    python benchmarks/peers/data.py FOLDER                                   synthetic pairs
    python benchmarks/peers/data.py FOLDER --data hh_harmless.jsonl.gz       the lengths of real ones

    FOLDER/model/        GPT-2 small with random weights, and a tokenizer
    FOLDER/model-gelu/   the same weights, GELU in one kernel (gelu_pytorch_tanh), as preflab runs GPT-2's own eight
    FOLDER/pairs.json    batches in two orders, as texts and as token ids; how they compare to the whole set

Synthetic pairs have the lengths of HH-RLHF's harmless pairs in a byte-level BPE: log-normal, prompts with mean 112 and
median 90 tokens, chosen responses 40 and 28, rejected ones 49 and 36, end token included; sequences end at 512. Their
tokens are drawn evenly from the vocabulary. Everything follows from the seed.

The measured batches stand for the whole set: of 4,000 seeded samples the one whose mean token counts come closest.
`random` holds pairs as they were drawn, `bucketed` batches of the whole set sorted by length, as a length-grouping
sampler yields them. The first batch of each is for warming up: short pairs.
"""

from __future__ import annotations

import argparse
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import tokenizers
import torch
import transformers

LONGEST = 512
LENGTHS = {"prompt": (112, 90), "chosen": (40, 28), "rejected": (49, 36)}
"""Mean and median of the synthetic lengths, in tokens."""
SAMPLES = 4000
END, PAD = "<|endoftext|>", "<|pad|>"


@dataclass(frozen=True)
class Pair:
    """A pair as texts, for those who tokenise themselves, and as the token ids that come of it, end token included."""

    prompt: str
    chosen: str
    rejected: str
    ids: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]

    @property
    def longest(self) -> int:
        prompt, chosen, rejected = map(len, self.ids)
        return prompt + max(chosen, rejected)


Batch = tuple[Pair, ...]


def synthetic(count: int, vocabulary: int, seed: int) -> list[Pair]:
    """Pairs of random words; a word is a token."""
    rng = Random(seed)

    def words(name: str, room: int) -> list[int]:
        mean, middle = LENGTHS[name]
        drawn = rng.lognormvariate(math.log(middle), math.sqrt(2 * math.log(mean / middle)))
        return [rng.randrange(2, vocabulary) for _ in range(max(2, min(round(drawn), room)))]

    pairs: list[Pair] = []
    while len(pairs) < count:
        prompt = words("prompt", LONGEST)
        room = LONGEST - len(prompt)
        if room < 2:  # as peers do: a prompt that leaves no room is left out
            continue
        chosen, rejected = ([*words(name, room)[:-1], 0] for name in ("chosen", "rejected"))
        text = [" ".join(f"w{token}" for token in ids if token) for ids in (prompt, chosen, rejected)]
        pairs.append(Pair(text[0], " " + text[1], " " + text[2], (tuple(prompt), tuple(chosen), tuple(rejected))))
    return pairs


def word_tokenizer(vocabulary: int) -> tokenizers.Tokenizer:
    words = {END: 0, PAD: 1} | {f"w{token}": token for token in range(2, vocabulary)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=END))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return made


def byte_tokenizer(texts: Sequence[str], vocabulary: int) -> tokenizers.Tokenizer:
    """A byte-level BPE learnt on the texts, as GPT-2's own was on others."""
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocabulary, min_frequency=2, special_tokens=[END, PAD], initial_alphabet=alphabet,
        show_progress=False,
    )  # fmt: skip
    made.train_from_iterator(texts, trainer)
    return made


def real(texts: Sequence[tuple[str, str, str]], tokenizer: tokenizers.Tokenizer) -> list[Pair]:
    """Pairs tokenised as preflab does, prompt and response apart, and cut at the end; prompts that leave no room are
    left out."""
    end: int = tokenizer.token_to_id(END)
    pairs = []
    for texts_of_pair in texts:
        prompt, *responses = (tuple(each.ids) for each in tokenizer.encode_batch(texts_of_pair))
        room = LONGEST - len(prompt)
        if prompt and room >= 2:
            chosen, rejected = ((*response, end)[:room] for response in responses)
            pairs.append(Pair(*texts_of_pair, (prompt, chosen, rejected)))
    return pairs


def texts_of(path: Path) -> list[tuple[str, str, str]]:
    """Prompt, chosen and rejected of a file that preflab reads: explicit pairs, or HH-RLHF's dialogues."""
    from preflab.data.sources import read_pairs

    return [(row.prompt, row.chosen, row.rejected) for row in read_pairs(path).rows]


def counts(batches: Sequence[Batch]) -> dict[str, float]:
    """Means a pair of what the layouts hold: tokens of two full sequences, of a prompt and its two responses, of the
    responses alone, and of two full sequences padded to the longest of the batch."""
    pairs = [pair for batch in batches for pair in batch]
    lengths = [tuple(map(len, pair.ids)) for pair in pairs]
    padded = sum(2 * len(batch) * max(pair.longest for pair in batch) for batch in batches)
    return {
        "two_sequences": sum(2 * p + c + r for p, c, r in lengths) / len(pairs),
        "tree": sum(p + c + r for p, c, r in lengths) / len(pairs),
        "responses": sum(c + r for _, c, r in lengths) / len(pairs),
        "padded": padded / len(pairs),
    }


def cut(pairs: Sequence[Pair], size: int) -> list[Batch]:
    """Whole batches, in order."""
    return [tuple(pairs[begin : begin + size]) for begin in range(0, len(pairs) // size * size, size)]


def typical(draw: Callable[[Random], list[Batch]], whole: Sequence[Batch], seed: int) -> list[Batch]:
    """Of many seeded samples the one whose mean counts come closest to those of the whole set."""
    wanted = counts(whole)

    def distance(sample: int) -> float:
        found = counts(draw(Random(f"{seed} {sample}")))
        return sum(abs(found[name] / wanted[name] - 1) for name in wanted)

    return draw(Random(f"{seed} {min(range(SAMPLES), key=distance)}"))


def orders(pairs: Sequence[Pair], batches: int, size: int, seed: int) -> dict[str, list[Batch]]:
    """The measured batches in both orders, each behind a batch of short pairs to warm up on."""
    by_length = cut(sorted(pairs, key=lambda pair: pair.longest), size)
    warm = by_length.pop(len(by_length) // 20)
    rest = [pair for batch in by_length for pair in batch]
    shuffled = cut(Random(seed).sample(rest, len(rest)), size)

    def at_random(rng: Random) -> list[Batch]:
        return cut(rng.sample(rest, batches * size), size)

    return {
        "random": [warm, *typical(at_random, shuffled, seed)],
        "bucketed": [warm, *typical(partial(Random.sample, population=by_length, k=batches), by_length, seed)],
    }


def write_model(folder: Path, tokenizer: tokenizers.Tokenizer, given: argparse.Namespace) -> None:
    """Random weights; dropout is off for everyone, so that losses can be compared."""
    config = transformers.GPT2Config(
        vocab_size=given.vocabulary, n_layer=given.layers, n_embd=given.width, n_head=max(1, given.width // 64),
        bos_token_id=None, eos_token_id=0, pad_token_id=1, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(given.seed)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder / "model")
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)
    wrapped.save_pretrained(folder / "model")
    other = folder / "model-gelu"
    other.mkdir(exist_ok=True)
    for file in (folder / "model").iterdir():
        (other / file.name).unlink(missing_ok=True)
        if file.name == "config.json":
            said = json.loads(file.read_text(encoding="utf-8"))
            said["activation_function"] = "gelu_pytorch_tanh"
            (other / file.name).write_text(json.dumps(said, indent=1), encoding="utf-8")
        else:
            os.link(file, other / file.name)


def read(folder: Path, order: str) -> list[list[Any]]:
    """The batches of an order, as they stand in pairs.json: rows of prompt, chosen, rejected, ids."""
    found: list[list[Any]] = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))["orders"][order]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path, help="pairs, as JSONL or JSONL.gz; without it lengths are drawn")
    parser.add_argument("--batches", type=int, default=6, help="to measure")
    parser.add_argument("--batch", type=int, default=4, help="pairs")
    parser.add_argument("--pairs", type=int, default=8000, help="synthetic ones, of which the batches are chosen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--vocabulary", type=int, default=50257)
    given = parser.parse_args()

    if given.data:
        texts = texts_of(given.data)
        tokenizer = byte_tokenizer(["".join(pair[:1] + pair[side : side + 1]) for pair in texts for side in (1, 2)],
                                   given.vocabulary)  # fmt: skip
        pairs = real(texts, tokenizer)
    else:
        tokenizer = word_tokenizer(given.vocabulary)
        pairs = synthetic(given.pairs, given.vocabulary, given.seed)
    given.folder.mkdir(parents=True, exist_ok=True)
    write_model(given.folder, tokenizer, given)
    made = orders(pairs, given.batches, given.batch, given.seed)
    lengths = {name: [len(pair.ids[place]) for pair in pairs] for place, name in enumerate(LENGTHS)}
    said = {
        "source": given.data.name if given.data else "synthetic",
        "seed": given.seed,
        "pairs": len(pairs),
        "lengths": {name: {"mean": round(sum(all_) / len(all_), 1), "median": median(all_), "most": max(all_)}
                    for name, all_ in lengths.items()},
        "whole_set": counts(cut(pairs, given.batch)),
        "whole_set_bucketed": counts(cut(sorted(pairs, key=lambda pair: pair.longest), given.batch)),
        "measured": {name: counts(batches[1:]) for name, batches in made.items()},
    }  # fmt: skip
    print(json.dumps(said, indent=1))
    written = {name: [[asdict(pair) for pair in batch] for batch in batches] for name, batches in made.items()}
    (given.folder / "pairs.json").write_text(json.dumps(said | {"orders": written}), encoding="utf-8")


if __name__ == "__main__":
    main()
