"""Classifiers as rewards: a transformer that is there already, or a linear one fitted to labelled texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from preflab.data.records import Rating
from preflab.errors import ConfigError, DataError, nearest
from preflab.models.load import Policy
from preflab.rewards.protocol import Answer

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

Reads = Literal["text", "response"]


@dataclass(frozen=True)
class ClassifierReward:
    """What a sequence-classification model says of one of its labels.

        log-odds    log p/(1 − p) = z_label − log Σ_other e^z    (z_label where labels don't exclude each other)
        logit       z_label
        probability p

    A text longer than the model can read loses its beginning.

    Args:
        classifier: with two labels or more.
        label: its index.
        reads: prompt and response as one text, or the response alone.
        batch_size: most texts in memory at once; changes numbers by rounding alone.
    """

    classifier: Policy
    label: int
    name: str
    output: Literal["log-odds", "logit", "probability"] = "log-odds"
    reads: Reads = "text"
    batch_size: int = 32

    @torch.no_grad()
    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One number an answer."""
        texts = texts_of(answers, self.reads)
        # Without a pad token a model can't tell the end of a text in a batch.
        size = self.batch_size if self.classifier.tokenizer.pad_token_id is not None else 1
        return [
            value
            for begin in range(0, len(texts), size)
            for value in self._of_label(self._logits(texts[begin : begin + size])).tolist()
        ]

    def _logits(self, texts: list[str]) -> Float[Tensor, "text label"]:
        model, tokenizer = self.classifier.model, self.classifier.tokenizer
        longest = min(
            getattr(model.config, "max_position_embeddings", None) or tokenizer.model_max_length,
            tokenizer.model_max_length,
        )
        read = tokenizer(
            texts,
            return_tensors="pt",
            padding=len(texts) > 1,
            truncation=longest < int(1e9),  # what transformers writes where there is no limit
            max_length=longest if longest < int(1e9) else None,
        ).to(self.classifier.device)
        logits: Tensor = model(**read).logits
        return logits.float()

    def _of_label(self, logits: Float[Tensor, "text label"]) -> Float[Tensor, " text"]:
        alone = self.classifier.model.config.problem_type == "multi_label_classification"
        own = logits[:, self.label]
        if self.output == "logit":
            return own
        others = torch.cat([logits[:, : self.label], logits[:, self.label + 1 :]], 1)
        log_odds = own if alone else own - others.logsumexp(1)
        return log_odds if self.output == "log-odds" else log_odds.sigmoid()


@dataclass(frozen=True)
class FittedReward:
    """What a linear classifier says of the label 1: log p/(1 − p), or p.

    TF-IDF of words and word pairs, logistic regression; fitted anew from its data each time it is needed, never
    pickled.

    >>> from preflab.data.records import Rating
    >>> rows = [Rating(text, label, "") for text, label in (("a fine film", 1), ("a dull film", 0))] * 2
    >>> fine = FittedReward.fit(rows, "fine")
    >>> good, bad = fine([Answer("", text, (), (), True) for text in ("a fine film", "a dull film")])
    >>> bool(good > 0 > bad)
    True
    """

    classifier: Pipeline
    name: str
    output: Literal["log-odds", "probability"] = "log-odds"
    reads: Reads = "text"

    @classmethod
    def fit(
        cls,
        ratings: Sequence[Rating],
        name: str,
        *,
        output: Literal["log-odds", "probability"] = "log-odds",
        reads: Reads = "text",
    ) -> FittedReward:
        """Deterministic.

        Raises:
            DataError: the texts are all of one label, or share no word.
        """
        return cls(fitted(ratings, name), name, output, reads)

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        """One number an answer."""
        texts = texts_of(answers, self.reads)
        if self.output == "probability":
            return list(np.asarray(self.classifier.predict_proba(texts)[:, 1], dtype=float))
        return list(np.asarray(self.classifier.decision_function(texts), dtype=float))


def fitted(ratings: Sequence[Rating], name: str) -> Pipeline:
    """TF-IDF of words and word pairs that two texts have, and logistic regression. Deterministic.

    Raises:
        DataError: the texts are all of one label, or share no word.
    """
    # Here alone: it takes a second and 70 MiB, which no other reward needs.
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len({rating.label for rating in ratings}) < 2:
        raise DataError(f"{name}: a classifier needs texts of both labels, 0 and 1; add some")
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10.0, max_iter=1000),
    )
    try:
        pipeline.fit([rating.text for rating in ratings], [rating.label for rating in ratings])
    except ValueError as error:
        raise DataError(f"{name}: no classifier can be fitted: {str(error).split('. ')[0]}; add texts") from None
    return pipeline


def label_index(model: Any, label: str, name: str) -> int:
    """Where a classifier's logits hold a label.

    Raises:
        ConfigError: it has no such label.
    """
    labels = {str(word): int(index) for index, word in model.config.id2label.items()}
    if label not in labels:
        raise ConfigError(f'{name} has no label "{label}"; {nearest(label, labels)}')
    return labels[label]


def texts_of(answers: Sequence[Answer], reads: Reads) -> list[str]:
    """What a classifier reads."""
    return [answer.response if reads == "response" else answer.prompt + answer.response for answer in answers]
