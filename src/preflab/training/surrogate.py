"""The clipped surrogate with its KL penalty: what PPO and the group methods step on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preflab.config.online import Surrogate
from preflab.losses import aggregate, clip_fraction, kl_in_loss, mean_by, ppo_clip
from preflab.models.scoring import Scored, response_logits
from preflab.training.online import Figures
from preflab.training.rollout import Rollout


@dataclass(frozen=True)
class Objective:
    """max(−Âρ, −Â·clip(ρ)) of one rollout, aggregated over responses and tokens, + β·KL where that is in the loss."""

    rollout: Rollout
    advantages: Float[Tensor, "response token"]
    learned: Bool[Tensor, "response token"]
    """The tokens to learn from: those of the rollout's mask, or some of them."""
    reference: Any
    settings: Surrogate
    kl_coefficient: float
    """β of this update."""
    longest: int
    """The length limit of a response, in tokens."""

    def share(
        self,
        scored: Scored,
        rows: Int[Tensor, " row"],
        mini_batch: Int[Tensor, " any"],
    ) -> tuple[Float[Tensor, ""], Figures]:
        """What a micro-batch adds to the loss of its mini-batch, and to the figures for the log.

        Args:
            scored: the responses of `rows` under the policy, at the temperature of `settings` and under the rollout's
                grammar; with logits where `settings.needs_logits`.
            rows: the micro-batch, at least one of its tokens to learn from.
            mini_batch: all rows of the optimiser step; their counts are what the loss is divided by.
        """
        settings, learned = self.settings, self.learned[rows]
        old = self.rollout.logprobs[rows]
        counts = {
            "responses": int(self.learned[mini_batch].any(1).sum()),
            "tokens": int(self.learned[mini_batch].sum()),
            "longest": self.longest,
        }
        logprobs = scored.logprobs.masked_fill(~learned, 0.0)
        losses = ppo_clip(logprobs, old, self.advantages[rows], clip=settings.clip, clip_higher=settings.clip_higher)
        loss = aggregate(losses, learned, settings.aggregation, **counts)

        difference = (logprobs - old).detach()
        clipped = clip_fraction(logprobs, old, learned, clip=settings.clip, clip_higher=settings.clip_higher)
        figures = {
            "policy_loss": loss.detach(),
            "ratio": mean_by(difference.exp().masked_fill(~learned, 0.0), counts["tokens"]),
            "approx_kl_nats": mean_by((0.5 * difference**2).masked_fill(~learned, 0.0), counts["tokens"]),
            "clip_fraction": clipped * learned.sum() / counts["tokens"],
        }
        if settings.kl_penalty != "reward" and self.kl_coefficient > 0:
            logits = reference_logits = None
            if settings.needs_logits:
                assert scored.logits is not None
                logits = scored.logits / settings.temperature
                with torch.no_grad():
                    reference_logits = response_logits(
                        self.reference, self.rollout.batch.rows(rows), grammar=self.rollout.grammar
                    )
                    reference_logits /= settings.temperature
            penalties = kl_in_loss(
                settings.kl_penalty,
                logprobs,
                self.rollout.reference_logprobs[rows],
                logits,
                reference_logits,
            )
            penalty = self.kl_coefficient * aggregate(penalties, learned, settings.aggregation, **counts)
            figures["kl_loss"] = penalty.detach()
            loss = loss + penalty
        return loss, figures
