"""Supervised fine-tuning: −log π(y_t | x, y_<t), averaged over the response tokens of an optimiser step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from preflab.config.training import SFT
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses import mean_by, sft
from preflab.models.load import Policy
from preflab.models.scoring import response_logprobs
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.offline import Loss, fit
from preflab.training.session import Evaluate, Session, Spent


def train_sft(
    policy: Policy,
    demonstrations: Sequence[Tree],
    settings: SFT,
    run: RunFolder,
    *,
    seed: int,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
    title: str = "SFT",
) -> Cost:
    """Fine-tune `policy` in place on the responses of `demonstrations` (each tree holds one)."""

    def step(indices: Sequence[int], session: Session) -> Loss:
        rows = [demonstrations[i] for i in indices]
        tokens = sum(len(row.responses[0]) for row in rows)

        def loss(positions: Sequence[int]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
            batch = pack([rows[i] for i in positions]).to(policy.device)
            logprobs = response_logprobs(policy.model, batch)
            return mean_by(sft(logprobs, batch.mask), tokens), {}

        return loss

    return fit(
        policy,
        demonstrations,
        settings,
        run,
        step=step,
        derived=lambda means: {"perplexity": math.exp(min(means["loss"], 700.0))},
        seed=seed,
        title=title,
        log_every=log_every,
        evaluate=evaluate,
        spent=spent,
    )
