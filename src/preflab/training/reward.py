"""The Bradley–Terry reward model: −log σ(s_w − s_l − m), one value a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.config.training import Reward
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses import bradley_terry, mean_by
from preflab.models.load import Policy
from preflab.models.scoring import response_scores
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.offline import Loss, fit
from preflab.training.session import Evaluate, Session


def train_reward(
    model: Policy,
    pairs: Sequence[Tree],
    settings: Reward,
    run: RunFolder,
    *,
    seed: int,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    title: str = "reward model",
) -> Cost:
    """Train a reward model (`models.load.new_reward_model`) in place on pairs, chosen first."""

    def step(indices: Sequence[int], session: Session) -> Loss:
        def loss(positions: Sequence[int]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
            batch = pack([pairs[indices[i]] for i in positions]).to(model.device)
            chosen, rejected = response_scores(model.model, batch).view(-1, 2).unbind(1)
            losses = bradley_terry(chosen, rejected, margin=settings.loss.margin, centring=settings.loss.centring)
            return mean_by(losses, len(indices)), {
                "accuracy": mean_by(wins(chosen, rejected), len(indices)),
                "margin": mean_by(chosen - rejected, len(indices)),
            }

        return loss

    return fit(
        model,
        pairs,
        settings,
        run,
        step=step,
        seed=seed,
        title=title,
        log_every=log_every,
        evaluate=evaluate,
    )


@torch.no_grad()
def scores_of_pairs(model: Policy, pairs: Sequence[Tree], *, batch_size: int = 64) -> Float[Tensor, "pair 2"]:
    """The scores of chosen and rejected responses, less the model's recorded offset."""
    parts = []
    for begin in range(0, len(pairs), batch_size):
        batch = pack(pairs[begin : begin + batch_size]).to(model.device)
        parts.append(response_scores(model.model, batch).view(-1, 2).cpu())
    return torch.cat(parts)


def wins(chosen: Float[Tensor, " pair"], rejected: Float[Tensor, " pair"]) -> Float[Tensor, " pair"]:
    """1 where the chosen response scores higher, ½ for a tie, 0 else."""
    return 0.5 * (chosen > rejected).float() + 0.5 * (chosen >= rejected).float()


def centre(model: Policy, pairs: Sequence[Tree]) -> None:
    """Record the offset that makes the scores of these pairs' responses average 0; the head stays as trained."""
    model.model.config.reward_offset = 0.0
    model.model.config.reward_offset = float(scores_of_pairs(model, pairs).mean())


@dataclass(frozen=True)
class PairFigures:
    """How a scorer of pairs does on held-out ones, a value a pair."""

    loss: list[float]
    accuracy: list[float]
    margin: list[float]


def reward_figures(scores: Float[Tensor, "pair 2"]) -> PairFigures:
    """The Bradley–Terry loss (no margin), accuracy and margin of held-out pairs from `scores_of_pairs`, one a pair."""
    chosen, rejected = scores.unbind(1)
    return PairFigures(
        loss=bradley_terry(chosen, rejected).tolist(),
        accuracy=wins(chosen, rejected).tolist(),
        margin=(chosen - rejected).tolist(),
    )
