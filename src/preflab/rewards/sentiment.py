"""Gold rewards of the study `reviews`: the grammar's own sentiment, or a classifier trained on labelled reviews."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from preflab.data.records import Rating
from preflab.data.reviews import review_sentiment
from preflab.rewards.classifier import fitted
from preflab.rewards.protocol import Answer

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline


@dataclass(frozen=True)
class GrammarSentiment:
    """scale × the sentiment in [−1, 1] that the grammar's parser reads from prompt + response.

    A sentence that the grammar can't have produced counts as −1: see `data/reviews.py`.
    """

    scale: float
    name: str = "gold sentiment"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One number in [−scale, scale] an answer."""
        return [self.scale * review_sentiment(answer.prompt + answer.response) for answer in answers]


@dataclass(frozen=True)
class ClassifierSentiment:
    """scale × (2p − 1), with p the probability of "positive" for prompt + response.

    Fitted anew from its data each time it is needed, never pickled.
    """

    scale: float
    classifier: Pipeline
    name: str = "classifier sentiment"

    @classmethod
    def fit(cls, ratings: Sequence[Rating], *, scale: float) -> ClassifierSentiment:
        """TF-IDF of words and word pairs, logistic regression. Deterministic."""
        return cls(scale, fitted(ratings, cls.name))

    def accuracy(self, ratings: Sequence[Rating]) -> list[float]:
        """1 where the label is right, 0 where it is wrong, one a rating."""
        guesses = self.classifier.predict([rating.text for rating in ratings])
        return [float(guess == rating.label) for guess, rating in zip(guesses, ratings, strict=True)]

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One number in [−scale, scale] an answer."""
        texts = [answer.prompt + answer.response for answer in answers]
        positive = self.classifier.predict_proba(texts)[:, 1]
        return list(np.asarray(self.scale * (2 * positive - 1), dtype=float))
