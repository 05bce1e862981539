"""A pretrained model that goes on learning, on rows as sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses.logprobs import masked_sum
from preflab.models.load import Policy
from preflab.models.scoring import response_logprobs
from preflab.seeds import derive
from preflab.tables.sentence import Sentence
from preflab.tables.writers import Writer

Codes = Int[np.ndarray, "row column"]


class SentenceWriter(Writer):
    """Its loss is a language model's: over all tokens, with no mask."""

    def __init__(self, policy: Policy, encoding: Sentence, *, dropout: float, rows_at_once: int) -> None:
        super().__init__()
        self.model, self.encoding, self.rows_at_once = policy.model, encoding, rows_at_once
        for module in self.model.modules():
            if isinstance(module, nn.Dropout):
                module.p = dropout

    def shares(self, codes: Codes, *, seed: int, learning: bool) -> Iterator[Float[Tensor, " row"]]:
        """See `Writer`."""
        generator = np.random.Generator(np.random.Philox(seed))
        for begin in range(0, len(codes), self.rows_at_once):
            trees = [self._tree(row, generator) for row in codes[begin : begin + self.rows_at_once].tolist()]
            batch = pack(trees).to(self.model.device)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(derive(seed, "dropout", begin))
                yield -masked_sum(response_logprobs(self.model, batch), batch.mask)

    def _tree(self, codes: Sequence[int], generator: np.random.Generator) -> Tree:
        order = generator.permutation(len(codes)).tolist() if self.encoding.any_order else None
        return Tree("a row", self.encoding.prompt(), (self.encoding.response(codes, order),))

    def decayed(self) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """Matrices decay."""
        weights = [weight for weight in self.model.parameters() if weight.requires_grad]
        return [weight for weight in weights if weight.ndim > 1], [weight for weight in weights if weight.ndim < 2]

    def plain(self) -> Any:
        """The model itself."""
        return self.model.eval()
