"""Responses few enough to take every expectation over pairs and labels exactly, and a minimiser for it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def wide(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


# Three arms with exact Bradley–Terry preferences P(i≻j) = σ(r_i − r_j).
REFERENCE = wide(0.5, 0.3, 0.2)
REWARD = wide(1.0, 0.0, -1.0)


def minimise(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    point = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [point], max_iter=2000, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = objective(point)
        loss.backward()
        return loss

    optimizer.step(closure)
    return point.detach()


def expectation(
    loss: Callable[[Tensor, Tensor], Tensor],
    scores: Tensor,
    reward: Tensor = REWARD,
    *,
    pair_weights: Tensor | None = None,
    flipped: float = 0.0,
) -> Tensor:
    """E loss(chosen score, rejected score) over pairs of different arms and their labels, a share of them flipped."""
    first, second = torch.triu_indices(len(reward), len(reward), offset=1)
    weights = torch.full((len(first),), 1 / len(first), dtype=torch.float64) if pair_weights is None else pair_weights
    preferred = torch.sigmoid(reward[first] - reward[second])
    preferred = (1 - flipped) * preferred + flipped * (1 - preferred)
    won, lost = loss(scores[first], scores[second]), loss(scores[second], scores[first])
    return (weights * (preferred * won + (1 - preferred) * lost)).sum()


def optimal_policy(
    loss: Callable[[Tensor, Tensor], Tensor],
    reference: Tensor = REFERENCE,
    reward: Tensor = REWARD,
    *,
    pair_weights: Tensor | None = None,
    flipped: float = 0.0,
) -> Tensor:
    """The probabilities that minimise the expected loss of the log-ratios."""

    def objective(logits: Tensor) -> Tensor:
        logratio = logits.log_softmax(-1) - reference.log()
        return expectation(loss, logratio, reward, pair_weights=pair_weights, flipped=flipped)

    return minimise(objective, reference.log()).softmax(-1)
