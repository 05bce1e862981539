"""A token mask over forty tokens, and responses that it allows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool
from torch import Tensor

from preflab.data.encode import Tree

VOCABULARY = 40


class Scattered:
    """Some third of the tokens after each token, others at even places than at odd ones; never token 3."""

    def __init__(self, vocabulary: int = VOCABULARY, share: float = 0.35) -> None:
        generator = torch.Generator().manual_seed(9)
        self.table = torch.rand(2, vocabulary, vocabulary, generator=generator) < share
        self.table[:, :, 3] = False
        self.table[:, :, 5] = True
        self.asked: list[tuple[int, int]] = []
        """Every state that was asked what it allows."""

    def start(self, prompt: tuple[int, ...]) -> tuple[int, int]:
        return 0, prompt[-1]

    def advance(self, state: tuple[int, int], token: int) -> tuple[int, int]:
        assert self.table[state][token], "a token that was not allowed"
        return 1 - state[0], token

    def allowed(self, states: Sequence[tuple[int, int]]) -> Bool[Tensor, "row vocabulary"]:
        self.asked += states
        return torch.stack([self.table[state] for state in states])

    def along(self, prompt: tuple[int, ...], response: tuple[int, ...]) -> Bool[Tensor, "token vocabulary"]:
        """What may stand at each place, from the table alone."""
        before = (prompt[-1], *response)
        return torch.stack([self.table[place % 2, before[place]] for place in range(len(response))])

    def trees(self, shapes: Sequence[tuple[int, Sequence[int]]], *, seed: int) -> list[Tree]:
        """Prompts of such lengths, with responses of such lengths that are allowed."""
        generator = torch.Generator().manual_seed(seed)

        def response(prompt: tuple[int, ...], length: int) -> tuple[int, ...]:
            drawn: tuple[int, ...] = ()
            for _ in range(length):
                legal = self.along(prompt, (*drawn, 0))[-1].float()
                drawn += (int(torch.multinomial(legal, 1, generator=generator)),)
            return drawn

        prompts = [tuple(torch.randint(0, self.table.shape[1], (n,), generator=generator).tolist()) for n, _ in shapes]
        return [
            Tree(f"t:{i}", prompt, tuple(response(prompt, length) for length in lengths))
            for i, (prompt, (_, lengths)) in enumerate(zip(prompts, shapes, strict=True))
        ]


class Parted(Scattered):
    """The tokens in four parts, of which one may follow, by place and token: part 0 is one token, part 1 may follow
    whole, of the others some half."""

    def __init__(self, vocabulary: int = VOCABULARY) -> None:
        super().__init__(vocabulary, share=0.5)
        tokens = torch.arange(vocabulary)
        self.table |= (tokens % 4 == 1) | ((tokens >= 8) & (tokens < 12))
        self.table &= (tokens % 4 > 0) | (tokens == 8)
        for place in range(2):
            for before in range(vocabulary):
                self.table[place, before] &= tokens % 4 == (2 * place + before) % 4
