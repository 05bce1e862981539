"""Direct preference optimisation.

    for each optimiser step:
        logratio = log π(y|x) − log π_ref(y|x)       of the chosen and the rejected response of each pair
        loss     = −log σ(β·(chosen logratio − rejected logratio))
        step on its mean over the pairs

The reference is the policy as it comes in, unless another one is given; its log-probabilities are computed once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.config.methods import DPO
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses import dpo, dpo_rewards, masked_sum, mean_by
from preflab.models.load import Policy, working_weights
from preflab.models.scoring import response_logprobs, trees_at_once
from preflab.progress import stage
from preflab.runs import RunFolder
from preflab.training.cost import Cost, Stopwatch
from preflab.training.offline import fit
from preflab.training.reward import PairFigures, wins
from preflab.training.session import Evaluate


def train_dpo(
    policy: Policy,
    pairs: Sequence[Tree],
    settings: DPO,
    run: RunFolder,
    *,
    seed: int,
    reference: Any | None = None,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    title: str = "DPO",
) -> Cost:
    """Train `policy` in place on pairs, chosen first. `reference` is a model of the same tokenizer."""
    before = Cost()
    with Stopwatch(before):
        of_reference = pair_logprobs(
            policy.model if reference is None else reference, pairs, title=f"{title}: reference"
        )
    beta = settings.loss.beta

    def loss(indices: Sequence[int], count: float) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        batch = pack([pairs[i] for i in indices]).to(policy.device)
        logprob = masked_sum(response_logprobs(policy.model, batch), batch.mask).view(-1, 2)
        chosen, rejected = (logprob - of_reference[list(indices)].to(policy.device)).unbind(1)
        losses = dpo(chosen, rejected, beta=beta, label_smoothing=settings.loss.label_smoothing)
        chosen_reward, rejected_reward = dpo_rewards(chosen, beta=beta), dpo_rewards(rejected, beta=beta)
        return mean_by(losses, count), {
            "accuracy": mean_by(wins(chosen_reward, rejected_reward), count),
            "margin": mean_by(chosen_reward - rejected_reward, count),
            "chosen_reward": mean_by(chosen_reward, count),
            "rejected_reward": mean_by(rejected_reward, count),
        }

    cost = fit(
        policy,
        pairs,
        settings,
        run,
        count=len,
        loss=loss,
        seed=seed,
        title=title,
        log_every=log_every,
        evaluate=evaluate,
    )
    scored = sum(len(tree.prompt) * 2 + sum(map(len, tree.responses)) for tree in pairs)
    cost.wall_seconds += before.wall_seconds
    cost.peak_memory_bytes = max(cost.peak_memory_bytes, before.peak_memory_bytes)
    cost.scored_tokens += scored
    cost.flops += 2 * working_weights(policy.model) * scored
    return cost


@torch.no_grad()
def pair_logprobs(
    model: Any, pairs: Sequence[Tree], *, title: str = "reference", batch_size: int = 16
) -> Float[Tensor, "pair 2"]:
    """log π(y|x) in nats of the chosen and the rejected response of each pair."""
    parts = []
    size = trees_at_once(model, pairs, batch_size)
    with stage(title, len(pairs)) as advance:
        for begin in range(0, len(pairs), size):
            batch = pack(pairs[begin : begin + size]).to(model.device)
            parts.append(masked_sum(response_logprobs(model, batch), batch.mask).view(-1, 2).cpu())
            advance(min(begin + size, len(pairs)), "")
    return torch.cat(parts)


def dpo_figures(
    policy: Policy, pairs: Sequence[Tree], of_reference: Float[Tensor, "pair 2"], *, beta: float
) -> PairFigures:
    """Held-out DPO loss, accuracy and margin of the implicit reward, one a pair."""
    chosen, rejected = (pair_logprobs(policy.model, pairs, title="held-out pairs") - of_reference).unbind(1)
    return PairFigures(
        loss=dpo(chosen, rejected, beta=beta).tolist(),
        accuracy=wins(chosen, rejected).tolist(),
        margin=(beta * (chosen - rejected)).tolist(),
    )
