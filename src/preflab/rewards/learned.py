"""A trained reward model as a reward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from preflab.data.encode import Encoder, Tokenizer, Tree
from preflab.data.pack import Reading, pack
from preflab.models.load import Policy
from preflab.models.scoring import reading, response_scores
from preflab.rewards.protocol import Answer


@dataclass(frozen=True)
class LearnedReward:
    """The score of a reward model less its recorded offset, so that the responses of its training pairs average 0."""

    model: Policy
    policy_tokenizer: Tokenizer
    """The tokenizer that made the answers' ids; with another one than the reward model's, texts are encoded anew."""
    name: str = "reward model"
    batch_size: int = 128

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """Scores, one an answer."""
        scores: list[float] = []
        for trees in self._batches(self._trees(answers)):
            scores += response_scores(self.model.model, pack(trees).to(self.model.device)).tolist()
        return scores

    def reading(self, answers: Sequence[Answer]) -> Reading:
        """What the model computes for them."""
        trees = self._trees(answers)
        return sum((reading(self.model.model, some, ends=True) for some in self._batches(trees)), Reading())

    def _batches(self, trees: list[Tree]) -> Iterator[list[Tree]]:
        return (trees[begin : begin + self.batch_size] for begin in range(0, len(trees), self.batch_size))

    def _trees(self, answers: Sequence[Answer]) -> list[Tree]:
        own = self.model.tokenizer
        if own is self.policy_tokenizer or own.get_vocab() == self.policy_tokenizer.get_vocab():
            return [Tree("answer", answer.prompt_ids, (answer.response_ids,)) for answer in answers]
        encoder = Encoder(own, prompt_tokens=2**20, response_tokens=2**20)
        trees = []
        for answer in answers:
            ids = encoder.continuation(answer.response) + ((encoder.end_id,) if answer.ended else ())
            trees.append(Tree("answer", encoder.prompt(answer.prompt), (ids or (encoder.end_id,),)))
        return trees
