"""The Bradley–Terry reward model."""

from __future__ import annotations

import torch  # noqa: F401  (doctest)
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def bradley_terry(
    chosen_score: Float[Tensor, " pair"],
    rejected_score: Float[Tensor, " pair"],
    *,
    margin: float | Float[Tensor, " pair"] = 0.0,
    centring: float = 0.0,
) -> Float[Tensor, " pair"]:
    """The loss of a reward model on preference pairs, one value a pair, in nats.

        loss = −log σ(s_w − s_l − m) + c·(s_w + s_l)²

    P(y_w ≻ y_l) = σ(s_w − s_l) (Bradley and Terry 1952; Ouyang et al. 2022, arXiv 2203.02155, Eq. 1). Scores are
    free up to one constant per prompt; the optimum is s_i − s_j = logit P(i ≻ j), and ln 2 is the loss of equal scores.

    Args:
        chosen_score, rejected_score: what the model emits for the two responses; any real number.
        margin: m ≥ 0, by how much the chosen score should lead (Llama 2, arXiv 2307.09288, Eq. 2).
        centring: c ≥ 0, pulls scores towards 0 (arXiv 2312.09244); usual 0 to 0.01.

    Raises:
        ValueError: c is negative: the loss would have no lower bound.

    >>> bradley_terry(torch.tensor([1.2]), torch.tensor([0.4]))
    tensor([0.3711])
    """
    if not centring >= 0:
        raise ValueError(f"centring must be >= 0, not {centring}")
    loss = -F.logsigmoid(chosen_score - rejected_score - margin)
    return loss + centring * (chosen_score + rejected_score) ** 2
