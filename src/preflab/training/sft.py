"""Supervised fine-tuning: −log π(y_t | x, y_<t), averaged over the response tokens of an optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from preflab.config.methods import SFT
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses import mean_by, sft
from preflab.models.load import Policy
from preflab.models.scoring import response_logprobs
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.offline import fit
from preflab.training.session import Evaluate


def train_sft(
    policy: Policy,
    demonstrations: Sequence[Tree],
    settings: SFT,
    run: RunFolder,
    *,
    seed: int,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    title: str = "SFT",
) -> Cost:
    """Fine-tune `policy` in place on the responses of `demonstrations` (each tree holds one)."""

    def tokens(indices: Sequence[int]) -> float:
        return sum(len(demonstrations[i].responses[0]) for i in indices)

    def loss(indices: Sequence[int], count: float) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        batch = pack([demonstrations[i] for i in indices]).to(policy.device)
        logprobs = response_logprobs(policy.model, batch)
        return mean_by(sft(logprobs, batch.mask), count), {}

    return fit(
        policy,
        demonstrations,
        settings,
        run,
        count=tokens,
        loss=loss,
        derived=lambda means: {"perplexity": math.exp(min(means["loss"], 700.0))},
        seed=seed,
        title=title,
        log_every=log_every,
        evaluate=evaluate,
    )
