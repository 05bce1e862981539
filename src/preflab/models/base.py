"""The small base model: a GPT-2 from a config and a tokenizer, both made from the texts at hand."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import transformers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from preflab.config.commands import Base
from preflab.data.encode import Tokenizer
from preflab.errors import ConfigError
from preflab.models.load import PAD, Policy

START, END = "<|start|>", "<|end|>"


def new_tokenizer(texts: Iterable[str], *, vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer trained on `texts`; any text round-trips. Special tokens: start, end, pad."""
    fast = FastTokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=[PAD, START, END],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    fast.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, fast.token_to_id(START))]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=START,
        eos_token=END,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
    )


def new_model(tokenizer: Tokenizer, settings: Base, *, positions: int, seed: int) -> Policy:
    """A GPT-2 with random weights, drawn from `seed` alone.

    Args:
        positions: the longest sequence it will ever see, in tokens.

    Raises:
        ConfigError: the width is no multiple of the heads.
    """
    if problem := settings.misfit():
        raise ConfigError(f"base.{problem}")
    config = transformers.GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=positions,
        n_embd=settings.width,
        n_layer=settings.layers,
        n_head=settings.heads,
        activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
        initializer_range=0.05,  # of the order of 1/√width: GPT-2's 0.02 is meant for width 768
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # transformers initialises from the global generator: give it a seeded one, and the old state back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.GPT2LMHeadModel(config)
    model.eval()
    return Policy(model, tokenizer)
