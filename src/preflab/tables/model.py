"""The small GPT-2 that writes rows in the compact encoding.

While it learns, a token's embedding and its row of the output head are sums of features: those of a number are shared
with its neighbours on the scale, so that a value seen twice learns from those beside it, and the model can't tell rare
values apart by heart. What is kept in the end is a plain GPT-2 with the sums worked out.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from torch import Tensor, nn

from preflab.config.row_model import RowModel
from preflab.errors import ConfigError
from preflab.seeds import derive
from preflab.tables.compact import Compact
from preflab.tables.writers import Writer

Codes = Int[np.ndarray, "row column"]

ROWS_AT_ONCE = 512
WHOLE_SLOTS = 4
"""Of a step's rows, so many slots are predicted among all tokens."""
RANK_HATS = 12
FEWEST_HATS = 3
"""A coarser set of features than this says no more than the linear one."""
EMBEDDING_SPREAD = 0.05
WEIGHT_SPREAD = 0.04
UNSEEN = 0.1
"""A token that no training row holds counts as this part of one."""


def number_features(
    values: Float[np.ndarray, " token"], counts: Int[np.ndarray, " token"], *, hats: int
) -> Float[np.ndarray, "token feature"]:
    """Smooth features of a column's tokens.

    A level has a feature of its own. Numbers have in common: a constant; hats on the scale of quantiles, with 16 (then
    8, 4) even places; hats on the scale of ranks among the numbers that occur, with 12, which tell the few large ones
    apart; the standardised number, that of its logarithm, and the quantile. A hat is piecewise linear, 1 at its place
    and 0 at the next.

    None is a number's own where there are many: with a finer scale held-out likelihood is better, and the rows are
    easier to tell from real ones.

    Args:
        values: what each token stands for; NaN for a level.
        counts: how often the training rows hold it.
        hats: places of the finest set, at least 1.

    >>> number_features(np.array([np.nan, 1.0, 2.0]), np.array([5, 1, 1]), hats=2)[:, :6].tolist()
    [[1.0, 0.0, 0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.75, 0.25, 1.0, 0.0], [0.0, 1.0, 0.25, 0.75, 0.0, 1.0]]
    """
    level = np.isnan(values)
    atoms = np.eye(len(values))[:, level]
    if level.all():
        return atoms
    numbers = values[~level]
    seen = np.maximum(counts[~level], UNSEEN)
    order = np.argsort(numbers, kind="stable")
    mass = seen[order].cumsum()
    quantiles, ranks = np.empty_like(numbers), np.empty_like(numbers)
    quantiles[order] = (mass - seen[order] / 2) / mass[-1]
    ranks[order] = np.linspace(0, 1, len(numbers))
    parts = [np.ones((len(numbers), 1))]
    places = min(hats, len(numbers))
    while places >= min(FEWEST_HATS, hats, len(numbers)):
        parts.append(_hats(quantiles, places))
        places //= 2
    parts.append(_hats(ranks, min(RANK_HATS, len(numbers))))
    parts += [_standard(numbers)[:, None], _standard(np.log1p(numbers - numbers.min()))[:, None]]
    parts.append(2 * quantiles[:, None] - 1)
    shared = np.hstack(parts)
    features = np.zeros((len(values), atoms.shape[1] + shared.shape[1]))
    features[:, : atoms.shape[1]] = atoms
    features[~level, atoms.shape[1] :] = shared
    return features


def _hats(where: Float[np.ndarray, " token"], places: int) -> Float[np.ndarray, "token place"]:
    """How near each token is to each of some even places of [0, 1]."""
    if places < 2:
        return np.zeros((len(where), 0))
    return np.maximum(0, 1 - np.abs(where[:, None] - np.linspace(0, 1, places)) * (places - 1))


def _standard(values: Float[np.ndarray, " token"]) -> Float[np.ndarray, " token"]:
    values = values / max(1.0, np.abs(values).max())  # so that squares stay finite
    spread = values.std()
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


class Sums(nn.Module):
    """A table with a row for each token, each a sum of features: one block of tokens after the other, features
    @ weights; tokens before the first block have rows of their own."""

    def __init__(
        self, own: int, blocks: Sequence[Float[np.ndarray, "token feature"]], width: int, *, spread: float
    ) -> None:
        super().__init__()
        self.own = nn.Parameter(torch.randn(own, width) * spread)
        self.weights = nn.ParameterList(torch.randn(block.shape[1], width) * spread for block in blocks)
        for number, block in enumerate(blocks):
            self.register_buffer(f"block_{number}", torch.tensor(block, dtype=torch.float32), persistent=False)

    def forward(self) -> Float[Tensor, "token width"]:
        parts = (getattr(self, f"block_{number}") @ weights for number, weights in enumerate(self.weights))
        return torch.cat([self.own, *parts])


class RowWriter(Writer):
    """A GPT-2 in training, its embeddings and output head made of features.

    The head has a bias, which GPT-2's has not: the first channel of the last states is given to it.
    """

    usual_rate = 8e-3

    def __init__(
        self, encoding: Compact, codes: Int[np.ndarray, "row column"], settings: RowModel, *, seed: int
    ) -> None:
        """
        Args:
            codes: of the rows it will learn from: they say how common each token is.

        Raises:
            ConfigError: the width is no multiple of the heads.
        """
        super().__init__()
        if problem := settings.misfit():
            raise ConfigError(f"fit.{problem}")
        self.encoding = encoding
        self.config = transformers.GPT2Config(
            vocab_size=encoding.vocabulary,
            n_positions=encoding.longest + 1,
            n_embd=settings.width,
            n_layer=settings.layers,
            n_head=settings.heads,
            activation_function="gelu_pytorch_tanh",  # the same function as gelu_new, in one kernel
            initializer_range=WEIGHT_SPREAD,
            resid_pdrop=settings.dropout,
            embd_pdrop=0.0,  # a cell's exact value counts
            attn_pdrop=settings.dropout,
            bos_token_id=encoding.prompt()[0],
            eos_token_id=encoding.end_id,
            tie_word_embeddings=False,
        )
        self.slots = sorted((slot for slot in encoding.slots if slot.part >= 0), key=lambda slot: slot.first)
        self.forced = (*(slot for slot in encoding.slots if slot.part < 0), None)
        """Where a mask leaves one token: names of columns, and (None) the end."""
        counts = np.bincount(encoding.sequences(codes).flatten(), minlength=encoding.vocabulary)
        blocks, bias = [], np.zeros(encoding.vocabulary)
        own = self.slots[0].first
        for slot in self.slots:
            here = slice(slot.first, slot.first + slot.count)
            values = encoding.numbers_of(slot.column) if slot.part == 0 else np.full(slot.count, np.nan)
            blocks.append(number_features(values, counts[here], hats=settings.hats))
            seen = np.maximum(counts[here], UNSEEN)
            bias[here] = np.log(seen / seen.sum())
        # transformers and torch initialise from the global generator: give it a seeded one, and the old state back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.trunk = transformers.GPT2Model(self.config)
            self.inputs = Sums(own, blocks, settings.width, spread=EMBEDDING_SPREAD)
            self.outputs = Sums(own, blocks, settings.width - 1, spread=0.0)
        self.trunk.wte.weight.requires_grad_(False)  # unread: embeddings come from `inputs`
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float32))

    def shares(self, codes: Codes, *, seed: int, learning: bool) -> Iterator[Float[Tensor, " row"]]:
        """−log p of each row, in nats, some rows at a time.

        A digit counts as one of all digits of its place, also where its bucket leaves less choice: a bound from above.

        Args:
            seed: of what is drawn for these rows: dropout, and orders where any will do.
            learning: some places of the row, drawn too, are then predicted among all tokens and not only their own:
                what teaches the model to do without a mask.
        """
        generator = np.random.Generator(np.random.Philox(seed))
        places = len(self.slots) + len(self.forced)
        whole = generator.choice(places, size=min(WHOLE_SLOTS, places), replace=False).tolist() if learning else []
        for begin in range(0, len(codes), ROWS_AT_ONCE):
            part = codes[begin : begin + ROWS_AT_ONCE]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "dropout", begin))
                yield self._nats(*self._written(part, generator), whole=whole)

    def _written(
        self, codes: Codes, generator: np.random.Generator
    ) -> tuple[Int[Tensor, "row token"], Int[Tensor, "slot row"]]:
        """Prompt and response of each row, and where the token before that of each slot stands: first of `slots`, then
        of `forced`."""
        encoding = self.encoding
        orders = np.broadcast_to(np.array(encoding.order), codes.shape)
        if encoding.any_order:
            orders = generator.permuted(orders, axis=1)
        named = int(encoding.any_order)
        sizes = np.array([named + 1 + cells.places for cells in encoding.cells])[orders]
        begins = np.empty_like(sizes)
        np.put_along_axis(begins, orders, sizes.cumsum(1) - sizes, 1)
        last = np.full(len(codes), encoding.longest - 1)
        before = [
            last if slot is None else begins[:, slot.column] + named + slot.part for slot in (*self.slots, *self.forced)
        ]
        return torch.from_numpy(encoding.sequences(codes, orders)), torch.from_numpy(np.stack(before))

    def _nats(
        self, token_ids: Int[Tensor, "row token"], before: Int[Tensor, "slot row"], *, whole: Sequence[int]
    ) -> Float[Tensor, " row"]:
        """−log probability of each row's tokens, each among those of its slot, or for some slots among all."""
        embedded = nn.functional.embedding(token_ids[:, :-1], self.inputs())
        states = self.trunk(inputs_embeds=embedded, use_cache=False).last_hidden_state[..., 1:]
        head = self.outputs()
        rows = torch.arange(len(token_ids))

        def loss(place: Int[Tensor, " row"], tokens: slice) -> Float[Tensor, " row"]:
            logits = torch.addmm(self.bias[tokens], states[rows, place], head[tokens].T)
            return nn.functional.cross_entropy(logits, token_ids[rows, place + 1] - tokens.start, reduction="none")

        every = slice(0, len(self.bias))
        own = [slice(slot.first, slot.first + slot.count) for slot in self.slots]
        losses = [loss(place, every if n in whole else own[n]) for n, place in enumerate(before[: len(own)])]
        losses += [loss(before[n], every) for n in whole if n >= len(own)]
        return torch.stack(losses).sum(0)

    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The weights that decay: matrices of blocks and features; and the others."""
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for name, weight in self.named_parameters():
            if weight.requires_grad:
                plain = weight.ndim < 2 or ".own" in name or ".wpe" in name
                groups[plain].append(weight)
        return groups

    @torch.no_grad()
    def plain(self) -> Any:
        """The same model as a GPT-2 of transformers, with the sums worked out, no dropout, and in eval mode."""
        config = copy.deepcopy(self.config)
        config.resid_pdrop = config.embd_pdrop = config.attn_pdrop = 0.0
        with torch.random.fork_rng(devices=[]):
            model: Any = transformers.GPT2LMHeadModel(config)
        model.transformer.load_state_dict(self.trunk.state_dict())
        model.transformer.wte.weight.copy_(self.inputs())
        # A state whose first channel is always 1 makes a bias of the head's first column.
        model.transformer.ln_f.weight[0], model.transformer.ln_f.bias[0] = 0.0, 1.0
        model.lm_head.weight.copy_(torch.cat([self.bias[:, None], self.outputs()], 1))
        return model.eval()
