"""Trees of token ids → one batch of tensors.

Here each response stands in a row of its own behind a copy of its prompt, padded on the right. A causal model can't
see what comes later, so padding needs no attention mask and changes no log-probability; masks come from lengths,
never from token values. Nothing outside this file and `models/scoring.py` knows this layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from preflab.data.encode import Tree


@dataclass(frozen=True)
class Packed:
    """Prompts and responses, ready for a model. Row order: tree by tree, and in a tree response by response."""

    token_ids: Int[Tensor, "response position"]
    """Prompt, response, padding."""
    starts: Int[Tensor, " response"]
    """Position of the first response token, at least 1."""
    response_ids: Int[Tensor, "response token"]
    """The response alone, from its first token on; 0 where the mask is False."""
    mask: Bool[Tensor, "response token"]
    """True on response tokens, end token included."""
    tree: Int[Tensor, " response"]
    """Which tree of the batch the response belongs to."""

    @property
    def tokens(self) -> int:
        """Tokens that a model reads, padding not counted."""
        return int(self.starts.sum() + self.mask.sum())

    def rows(self, index: Int[Tensor, " row"]) -> Packed:
        """Some of the responses, in the given order."""
        return Packed(**{name: value[index] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> Packed:
        """The same on another device."""
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})


def pack(trees: Sequence[Tree]) -> Packed:
    """Lay trees out as a batch.

    Raises:
        ValueError: a prompt or a response without tokens; `data/encode.py` makes none.

    >>> batch = pack([Tree("a:1", (5, 6), ((7, 8), (9,)))])
    >>> batch.token_ids.tolist(), batch.starts.tolist()
    ([[5, 6, 7, 8], [5, 6, 9, 0]], [2, 2])
    >>> batch.response_ids.tolist(), batch.mask.tolist()
    ([[7, 8], [9, 0]], [[True, True], [True, False]])
    """
    rows = [(index, tree.prompt, response) for index, tree in enumerate(trees) for response in tree.responses]
    for index, prompt, response in rows:
        if not prompt or not response:
            raise ValueError(f"{trees[index].origin}: a prompt and a response need at least one token each")
    longest = max(len(prompt) + len(response) for _, prompt, response in rows)
    longest_response = max(len(response) for _, _, response in rows)
    token_ids = torch.zeros(len(rows), longest, dtype=torch.long)
    response_ids = torch.zeros(len(rows), longest_response, dtype=torch.long)
    for row, (_, prompt, response) in enumerate(rows):
        token_ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        response_ids[row, : len(response)] = torch.tensor(response)
    lengths = torch.tensor([len(response) for _, _, response in rows])
    return Packed(
        token_ids=token_ids,
        starts=torch.tensor([len(prompt) for _, prompt, _ in rows]),
        response_ids=response_ids,
        mask=torch.arange(longest_response) < lengths.unsqueeze(1),
        tree=torch.tensor([index for index, _, _ in rows]),
    )


def read_tokens(trees: Sequence[Tree]) -> int:
    """Tokens that a model reads of them; a prompt stands before each response."""
    return sum(len(tree.prompt) * len(tree.responses) + sum(map(len, tree.responses)) for tree in trees)
