"""Models so small that every response can be written down: six tokens, of which one ends a response."""

from __future__ import annotations

import math
from itertools import product

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.models.load import PAD, Policy
from preflab.models.scoring import response_logprobs

LETTERS = "abcd"
PAD_ID, END_ID = 0, 1
VOCABULARY = 2 + len(LETTERS)


def letters_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """pad, end, a, b, c, d: one token a letter."""
    names = [PAD, "<|end|>", *LETTERS]
    fast = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token=PAD))
    fast.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    fast.decoder = decoders.Fuse()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=fast, eos_token="<|end|>", pad_token=PAD)


def letters_policy(*, seed: int = 0, spread: float = 8.0, width: int = 16) -> Policy:
    """A GPT-2 of one block; a larger `spread` makes its next-token distributions more uneven."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=width,
        n_layer=1,
        n_head=2,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
    with torch.no_grad():
        model.transformer.wte.weight.mul_(spread)
    return Policy(model.eval(), letters_tokenizer())


def every_response(length: int) -> list[tuple[int, ...]]:
    """All responses of at most `length` tokens: those that end, and those that the limit cuts."""
    others = [token for token in range(VOCABULARY) if token != END_ID]
    ended = [(*start, END_ID) for n in range(length) for start in product(others, repeat=n)]
    return ended + list(product(others, repeat=length))


@torch.no_grad()
def exact_logprobs(policy: Policy, prompt: tuple[int, ...], responses: list[tuple[int, ...]]) -> torch.Tensor:
    """log π(y|x) of each response, in nats."""
    batch = pack([Tree("all", prompt, tuple(responses))])
    return response_logprobs(policy.model, batch).sum(1).double()


@torch.no_grad()
def next_token(policy: Policy, ids: tuple[int, ...], *, temperature: float = 1.0) -> torch.Tensor:
    """The exact distribution of the token after `ids`, in float64."""
    logits = policy.model(input_ids=torch.tensor([ids])).logits[0, -1].double()
    return (logits / temperature).softmax(-1)


def total(logprobs: torch.Tensor) -> float:
    """The probability of all of them together."""
    return math.fsum(logprobs.exp().tolist())
