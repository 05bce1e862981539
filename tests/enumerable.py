"""Models so small that every response can be written down: six tokens, of which one ends a response."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.models.load import PAD, Policy, new_reward_model, save_model
from preflab.models.scoring import response_logprobs
from preflab.rewards.protocol import Answer
from preflab.runs import RunFolder
from preflab.training.rollout import PromptIds

LETTERS = "abcd"
PAD_ID, END_ID, FIRST_LETTER = 0, 1, 2
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


def letters_prompts(n: int) -> list[PromptIds]:
    """`n` prompts of one to three letters; neighbours differ."""
    return [
        PromptIds(f"prompt:{i}", LETTERS[i % 4] * (1 + i % 3), (FIRST_LETTER + i % 4,) * (1 + i % 3)) for i in range(n)
    ]


@dataclass(frozen=True)
class ShareOf:
    """A reward: the share of a letter among the tokens of a response, its end token included; × scale."""

    letter: str
    scale: float = 1.0

    @property
    def name(self) -> str:
        return f"share of {self.letter}"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [self.scale * answer.response.count(self.letter) / len(answer.response_ids) for answer in answers]


def reward_model(folder: Path, policy: Policy) -> Policy:
    """A new reward model on a policy's body."""
    save_model(policy, folder / "body")
    return new_reward_model(folder / "body", seed=0)


def value_model(folder: Path) -> Policy:
    """A value model for the policies of this file."""
    return reward_model(folder / "value", letters_policy(seed=2))


def run_folder(path: Path) -> RunFolder:
    """A new run folder, or the same one again."""
    return RunFolder.open(path, "a: 1\n")
