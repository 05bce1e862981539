"""Learning from single responses marked desirable or undesirable: KTO and BCO.

    KTO, for each optimiser step:
        z₀   = max(0, mean of log π(y'|x) − log π_ref(y'|x))     of responses y' to other prompts; no gradient
        loss = λ_D·(1 − σ(β(Δ − z₀)))   desirable,   λ_U·(1 − σ(β(z₀ − Δ)))   undesirable
    BCO:
        δ    = running mean of βΔ over the steps before; no gradient
        loss = −log σ(βΔ − δ)   desirable,   −log σ(δ − βΔ)   undesirable

Ethayarajh et al. 2024, arXiv 2402.01306; Jung et al. 2024, arXiv 2404.04656. The reference is the policy as it comes
in, unless another one is given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import Any, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from preflab.config.pair_losses import BCOLoss, KTOLoss
from preflab.config.preference import Unpaired
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.errors import DataError, NumericError
from preflab.losses import bco, kto, masked_sum, mean_by
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.reference import ReferenceCache, reference_logprobs
from preflab.models.scoring import logprobs_of, reading_of, response_logprobs
from preflab.models.trunk import frozen_trunk
from preflab.runs import RunFolder
from preflab.seeds import derive
from preflab.training.checks import check_start
from preflab.training.cost import Cost
from preflab.training.offline import Loss, fit
from preflab.training.preference import charged_reference, with_cost
from preflab.training.session import Evaluate, Session, Spent


@dataclass(frozen=True)
class Judged:
    """A response and its mark."""

    tree: Tree
    """A prompt and one response."""
    desirable: bool


def judged_pairs(pairs: Sequence[Tree]) -> list[Judged]:
    """Each pair as a desirable and an undesirable response."""
    return [
        Judged(replace(tree, responses=(response,)), desirable)
        for tree in pairs
        for response, desirable in zip(tree.responses, (True, False), strict=True)
    ]


def train_unpaired(
    policy: Policy,
    examples: Sequence[Judged],
    settings: Unpaired,
    run: RunFolder,
    *,
    seed: int,
    reference: Any | None = None,
    cache: ReferenceCache | None = None,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
    title: str = "KTO",
) -> Cost:
    """Train `policy` in place.

    Args:
        reference: a model of the same tokenizer; None is the policy as it comes in.
        cache: where the reference's log-probabilities are kept for other runs; None computes them.

    Raises:
        DataError: KTO finds no response to another prompt.
        NumericError: the policy is not its own reference before the first step, or a loss or gradient is not finite.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    loss_settings = settings.loss
    trees = [example.tree for example in examples]
    desirable = torch.tensor([example.desirable for example in examples], device=policy.device)
    strangers = mismatched(trees, seed=derive(seed, "mismatch")) if isinstance(loss_settings, KTOLoss) else []
    before = Cost()
    freeze(policy.model, settings.freeze_blocks)
    both = [*trees, *strangers]
    with frozen_trunk(
        policy.model, settings.freeze_blocks, both, settings.trunk, run.path, again=True, reference=reference
    ):
        model = policy.model if reference is None else reference
        of_reference = charged_reference(model, trees, cache, before, title=f"{title}: reference log-probabilities")
        # Apart, so that the batches of the responses are the same for every method and seed.
        of_strangers = charged_reference(
            model, strangers, cache, before, title=f"{title}: reference log-probabilities, other prompts"
        )
        logratio = logprobs_of(policy.model, trees[:64]) - of_reference[:64]
        check_start(run, logratio, same=reference is None, in_bf16=in_bf16(policy.model))

        def step(indices: Sequence[int], session: Session) -> Loss:
            rows = list(indices)
            match loss_settings:
                case KTOLoss():
                    # Over the whole step, so that neither micro-batches nor a batch of one change it.
                    their = [strangers[i] for i in rows]
                    drift = logprobs_of(policy.model, their) - of_strangers[rows]
                    anchor = float(drift.mean().clamp(min=0.0))
                    if not math.isfinite(anchor):
                        raise NumericError(
                            f"KTO's reference point is {anchor}: the policy's log-probabilities are not finite; lower "
                            "optimizer.learning_rate"
                        )
                    session.cost.add_scored(policy.model, reading_of(policy.model, their))
                case BCOLoss(shift_decay=decay):
                    memory = session.memory
                    if "reward" in memory:  # the mean of the step before
                        memory["shift"] = decay * memory.get("shift", 0.0) + (1 - decay) * memory["reward"]
                    memory["reward"] = 0.0
                    anchor = memory.get("shift", 0.0)
                case never:
                    assert_never(never)

            marked = sum(examples[i].desirable for i in rows)
            counts = {
                "accuracy": len(rows),
                "desirable_reward": max(1, marked),
                "undesirable_reward": max(1, len(rows) - marked),
            }

            def loss(positions: Sequence[int]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
                micro = [rows[i] for i in positions]
                batch = pack([trees[i] for i in micro]).to(policy.device)
                logprob = masked_sum(response_logprobs(policy.model, batch), batch.mask)
                logratio = logprob - of_reference[micro].to(policy.device)
                good = desirable[micro]
                losses = response_losses(loss_settings, logratio, good, anchor=anchor)
                rewards = (loss_settings.beta * logratio).detach()
                if isinstance(loss_settings, BCOLoss):
                    session.memory["reward"] += float(rewards.sum()) / len(rows)
                share = mean_by(losses, len(rows))
                figures = {
                    "accuracy": right(rewards, good, anchor=_boundary(loss_settings, anchor)),
                    "desirable_reward": torch.where(good, rewards, 0.0),
                    "undesirable_reward": torch.where(good, 0.0, rewards),
                }
                name = "shift" if isinstance(loss_settings, BCOLoss) else "reference_point_nats"
                means = {key: mean_by(values, counts[key]) for key, values in figures.items()}
                return share, means | {name: torch.tensor(anchor * len(micro) / len(rows))}

            return loss

        cost = fit(
            policy,
            trees,
            settings,
            run,
            step=step,
            seed=seed,
            title=title,
            log_every=log_every,
            evaluate=evaluate,
            spent=with_cost(spent, before),
        )
    return cost.plus(before)


def response_losses(
    settings: KTOLoss | BCOLoss,
    logratio: Float[Tensor, " response"],
    desirable: Bool[Tensor, " response"],
    *,
    anchor: float,
) -> Float[Tensor, " response"]:
    """The objective, one value a response; `anchor` is KTO's z₀ in nats, or BCO's δ in units of βΔ."""
    match settings:
        case KTOLoss(beta=beta, desirable_weight=desirable_weight, undesirable_weight=undesirable_weight):
            return kto(
                logratio,
                desirable,
                reference_point=anchor,
                beta=beta,
                desirable_weight=desirable_weight,
                undesirable_weight=undesirable_weight,
            )
        case BCOLoss(beta=beta):
            return bco(logratio, desirable, shift=anchor, beta=beta)
        case never:
            assert_never(never)


def right(
    rewards: Float[Tensor, " response"], desirable: Bool[Tensor, " response"], *, anchor: float
) -> Float[Tensor, " response"]:
    """1 where the implicit reward is on its side of the anchor, ½ on it, 0 on the other side."""
    return 0.5 + 0.5 * torch.sign(rewards - anchor) * torch.where(desirable, 1.0, -1.0)


@torch.no_grad()
def unpaired_figures(
    policy: Policy,
    reference: Any,
    examples: Sequence[Judged],
    settings: KTOLoss | BCOLoss,
    *,
    seed: int,
    cache: ReferenceCache | None = None,
) -> dict[str, list[float]]:
    """Held-out loss and accuracy, one a response; z₀ or δ is that of the held-out responses themselves."""
    trees = [example.tree for example in examples]
    desirable = torch.tensor([example.desirable for example in examples])

    def logratios(of: Sequence[Tree], title: str) -> Float[Tensor, " response"]:
        return logprobs_of(policy.model, of) - reference_logprobs(reference, of, cache, title=title).logprobs

    logratio = logratios(trees, "held-out responses: reference log-probabilities")
    match settings:
        case KTOLoss():
            strangers = mismatched(trees, seed=derive(seed, "mismatch"))
            anchor = float(
                logratios(strangers, "held-out responses: reference log-probabilities, other prompts")
                .mean()
                .clamp(min=0.0)
            )
        case BCOLoss(beta=beta):
            anchor = float(beta * logratio.mean())
        case never:
            assert_never(never)
    accuracy = right(settings.beta * logratio, desirable, anchor=_boundary(settings, anchor))
    losses = response_losses(settings, logratio, desirable, anchor=anchor)
    return {"loss": losses.tolist(), "accuracy": accuracy.tolist()}


def mismatched(trees: Sequence[Tree], *, seed: int) -> list[Tree]:
    """For each example its prompt with a response to another prompt, drawn once for the run.

    KTO's reference point is an average over these; a response to the same prompt must not stand among them, or the
    estimate would hold what is being learnt (trl#1911). Another prompt's response that is word for word one of this
    prompt's own ("Yes.") is taken only where the next 64 hold no other.

    Raises:
        DataError: an example's prompt is the only one there is.
    """
    order = list(range(len(trees)))
    Random(seed).shuffle(order)
    answered: dict[tuple[int, ...], set[tuple[int, ...]]] = {}
    for tree in trees:
        answered.setdefault(tree.prompt, set()).add(tree.responses[0])

    def others(place: int) -> Iterator[Tree]:
        return (trees[order[(place + shift) % len(order)]] for shift in range(1, len(order)))

    made: list[Tree | None] = [None] * len(trees)
    for place, index in enumerate(order):
        own = trees[index]
        own_answers = answered[own.prompt]
        stranger = next((tree for tree in islice(others(place), 64) if tree.responses[0] not in own_answers), None)
        stranger = stranger or next((tree for tree in others(place) if tree.prompt != own.prompt), None)
        if stranger is None:
            raise DataError(
                f"{own.origin}: KTO's reference point needs responses to at least two different prompts; bco needs none"
            )
        made[index] = replace(own, responses=stranger.responses)
    return [tree for tree in made if tree is not None]


def _boundary(settings: KTOLoss | BCOLoss, anchor: float) -> float:
    """Where the loss takes a reward βΔ for neither good nor bad."""
    return anchor * settings.beta if isinstance(settings, KTOLoss) else anchor
