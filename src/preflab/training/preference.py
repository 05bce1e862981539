"""Direct preference optimisation and its family.

    for each optimiser step:
        logratio = log π(y|x) − log π_ref(y|x)       of the chosen and the rejected response of each pair
        loss     = −log σ(β·(chosen logratio − rejected logratio))        for DPO; `pair_losses` has the others
        step on its mean over the pairs

The reference is the policy as it comes in, unless another one is given; its log-probabilities are computed once, or
found in the cache.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, assert_never

import torch
from jaxtyping import Float, Int
from torch import Tensor

from preflab.config import pair_losses as settings_of
from preflab.config.pair_losses import PairLoss
from preflab.config.preference import Preference
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.losses import (
    aot,
    apo_down,
    apo_zero,
    bco_pair,
    cpo,
    dpo,
    dpop,
    exo,
    f_dpo,
    f_dpo_reward,
    hinge,
    ipo,
    masked_sum,
    mean_by,
    nca,
    orpo,
    robust_dpo,
    same_rank,
    simpo,
    sppo,
)
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.reference import ReferenceCache, reference_logprobs
from preflab.models.scoring import Grammar, logprobs_of, reading_of, response_logprobs
from preflab.models.trunk import frozen_trunk
from preflab.progress import Advance, stage
from preflab.rollouts.mask import TokenMask, grammar_of
from preflab.runs import RunFolder
from preflab.training.checks import check_start
from preflab.training.cost import Cost, Stopwatch
from preflab.training.offline import Loss, fit
from preflab.training.reward import PairFigures, wins
from preflab.training.session import Evaluate, Session, Spent


@dataclass(frozen=True)
class ScoredPairs:
    """Pairs under the policy and the reference; in each row the chosen response, then the rejected one."""

    logprob: Float[Tensor, "pair 2"]
    """log π(y|x), summed over response tokens, in nats."""
    tokens: Int[Tensor, "pair 2"]
    """Response tokens, end token included."""
    reference: Float[Tensor, "pair 2"] | None = None
    """log π_ref(y|x); None for losses that know no reference."""
    reference_at_rank: Float[Tensor, " pair"] | None = None
    """For AOT: the reference margin that stands, in its order, where the pair's policy margin stands in its own."""

    @property
    def logratio(self) -> Float[Tensor, "pair 2"]:
        assert self.reference is not None
        return self.logprob - self.reference

    @property
    def mean_logprob(self) -> Float[Tensor, "pair 2"]:
        return self.logprob / self.tokens

    @property
    def mean_logratio(self) -> Float[Tensor, "pair 2"]:
        return self.logratio / self.tokens


def pair_losses(loss: PairLoss, pairs: ScoredPairs) -> Float[Tensor, " pair"]:
    """The objective, one value a pair: `loss` says which, and how it is set."""
    match loss:
        case settings_of.DPOLoss(beta=beta, label_smoothing=smoothing):
            return dpo(*pairs.logratio.unbind(1), beta=beta, label_smoothing=smoothing)
        case settings_of.RobustDPOLoss(beta=beta, label_smoothing=smoothing):
            return robust_dpo(*pairs.logratio.unbind(1), beta=beta, label_smoothing=smoothing)
        case settings_of.IPOLoss(tau=tau, average_tokens=average):
            return ipo(*(pairs.mean_logratio if average else pairs.logratio).unbind(1), tau=tau)
        case settings_of.HingeLoss(beta=beta):
            return hinge(*pairs.logratio.unbind(1), beta=beta)
        case settings_of.EXOLoss(beta=beta, label_smoothing=smoothing):
            return exo(*pairs.logratio.unbind(1), beta=beta, label_smoothing=smoothing)
        case settings_of.AOTLoss(beta=beta):
            assert pairs.reference_at_rank is not None
            return aot(margin(pairs.logprob), pairs.reference_at_rank, beta=beta)
        case settings_of.LengthNormalisedDPOLoss(beta=beta):
            return dpo(*pairs.mean_logratio.unbind(1), beta=beta)
        case settings_of.FDPOLoss(beta=beta, divergence=divergence, alpha=alpha):
            return f_dpo(*pairs.logratio.unbind(1), beta=beta, divergence=divergence, alpha=alpha)
        case settings_of.DPOPLoss(beta=beta, penalty=penalty):
            return dpop(*pairs.logratio.unbind(1), beta=beta, penalty=penalty)
        case settings_of.NCALoss(beta=beta):
            return nca(*pairs.logratio.unbind(1), beta=beta)
        case settings_of.BCOPairLoss(beta=beta):
            return bco_pair(*pairs.logratio.unbind(1), beta=beta)
        case settings_of.SPPOLoss(beta=beta):
            return sppo(*pairs.logratio.unbind(1), beta=beta)
        case settings_of.APOZeroLoss(beta=beta):
            return apo_zero(*pairs.logratio.unbind(1), beta=beta)
        case settings_of.APODownLoss(beta=beta):
            return apo_down(*pairs.logratio.unbind(1), beta=beta)
        case settings_of.SimPOLoss(beta=beta, margin=target):
            return simpo(*pairs.mean_logprob.unbind(1), beta=beta, margin=target)
        case settings_of.CPOLoss(beta=beta, sft_weight=weight):
            return cpo(*pairs.logprob.unbind(1), beta=beta, sft_weight=weight)
        case settings_of.ORPOLoss(weight=weight):
            return orpo(*pairs.mean_logprob.unbind(1), weight=weight)
        case settings_of.SFTLoss():
            return -pairs.mean_logprob[:, 0]
        case settings_of.SumLoss():
            return torch.stack([weight * pair_losses(part, pairs) for weight, part in loss.parts]).sum(0)
        case never:
            assert_never(never)


def implicit_rewards(loss: PairLoss, pairs: ScoredPairs) -> Float[Tensor, "pair 2"]:
    """What the loss takes for the reward of each response, detached: for the log, never to compare arms by.

    It is not comparable across methods or β, and its mean over a data set is no reward of the policy.
    """
    match loss:
        case settings_of.IPOLoss(tau=tau, average_tokens=average):
            rewards = tau * (pairs.mean_logratio if average else pairs.logratio)
        case settings_of.LengthNormalisedDPOLoss(beta=beta):
            rewards = beta * pairs.mean_logratio
        case settings_of.FDPOLoss(beta=beta, divergence=divergence, alpha=alpha):
            of_each = f_dpo_reward(pairs.logratio.flatten(), divergence=divergence, alpha=alpha)
            rewards = beta * of_each.view(-1, 2)
        case settings_of.SimPOLoss(beta=beta):
            rewards = beta * pairs.mean_logprob
        case settings_of.CPOLoss(beta=beta):
            rewards = beta * pairs.logprob
        case settings_of.ORPOLoss(weight=weight):
            rewards = weight * pairs.mean_logprob
        case settings_of.SFTLoss():
            rewards = pairs.mean_logprob
        case settings_of.SumLoss():
            return implicit_rewards(loss.heaviest, pairs)
        case _:
            rewards = loss.beta * pairs.logratio
    return rewards.detach()


def margin(values: Float[Tensor, "pair 2"]) -> Float[Tensor, " pair"]:
    """Chosen less rejected."""
    return values[:, 0] - values[:, 1]


def knows_reference(loss: PairLoss) -> bool:
    """False where the reference plays no part in the loss, so that its pass is saved."""
    match loss:
        case settings_of.SimPOLoss() | settings_of.CPOLoss() | settings_of.ORPOLoss() | settings_of.SFTLoss():
            return False
        case settings_of.SumLoss():
            return any(knows_reference(part) for _, part in loss.parts)
        case _:
            return True


def ranks_batch(loss: PairLoss) -> bool:
    """True where the loss of a pair depends on the other pairs of its optimiser step (AOT)."""
    match loss:
        case settings_of.SumLoss():
            return any(ranks_batch(part) for _, part in loss.parts)
        case _:
            return isinstance(loss, settings_of.AOTLoss)


def pair_step(
    policy: Policy,
    pairs: Sequence[Tree],
    reference: Float[Tensor, "pair 2"] | None,
    loss: PairLoss,
    cost: Cost,
    *,
    grammar: Grammar | None = None,
    see: Callable[[Sequence[int], Float[Tensor, "response token"]], None] = lambda positions, logprobs: None,
) -> Loss:
    """The loss of the micro-batches of one optimiser step on `pairs`, whose reference log-probabilities are given.

    Args:
        grammar: under which log-probabilities are taken, the given ones too.
        see: shown the pairs of each micro-batch and the log-probabilities of their tokens: chosen, rejected, chosen, ….
    """
    at_rank: Tensor | None = None
    if ranks_batch(loss):
        assert reference is not None
        at_rank = same_rank(margin(pair_logprobs(policy.model, pairs, grammar=grammar)), margin(reference))
        cost.add_scored(policy.model, reading_of(policy.model, pairs))

    def of_micro_batch(positions: Sequence[int]) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        rows = list(positions)
        batch = pack([pairs[i] for i in rows]).to(policy.device)
        logprobs = response_logprobs(policy.model, batch, grammar=grammar)
        see(rows, logprobs)
        scored = ScoredPairs(
            logprob=masked_sum(logprobs, batch.mask).view(-1, 2),
            tokens=batch.mask.sum(1).view(-1, 2),
            reference=None if reference is None else reference[rows].to(policy.device),
            reference_at_rank=None if at_rank is None else at_rank[rows].to(policy.device),
        )
        chosen, rejected = implicit_rewards(loss, scored).unbind(1)
        logprob = scored.logprob.detach()
        figures = {
            "accuracy": wins(chosen, rejected),
            "margin": chosen - rejected,
            "chosen_reward": chosen,
            "rejected_reward": rejected,
            "chosen_logprob_nats": logprob[:, 0],
            "rejected_logprob_nats": logprob[:, 1],
        }
        share = mean_by(pair_losses(loss, scored), len(pairs))
        return share, {name: mean_by(values, len(pairs)) for name, values in figures.items()}

    return of_micro_batch


def train_preference(
    policy: Policy,
    pairs: Sequence[Tree],
    settings: Preference,
    run: RunFolder,
    *,
    seed: int,
    reference: Any | None = None,
    cache: ReferenceCache | None = None,
    mask: TokenMask[Any] | None = None,
    log_every: int = 10,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
    title: str = "preferences",
) -> Cost:
    """Train `policy` in place on pairs, chosen first.

    Args:
        reference: a model of the same tokenizer; None is the policy as it comes in.
        cache: where the reference's log-probabilities are kept for other runs; None computes them, and so does a mask.
        mask: which tokens may follow; policy and reference are renormalised over them.

    Raises:
        ConfigError: the mask forbids a token of a pair.
        NumericError: the policy is not its own reference before the first step (is dropout on?); or a loss or
            gradient is not finite.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    before = Cost()
    grammar = None if mask is None else grammar_of(mask)
    freeze(policy.model, settings.freeze_blocks)
    with frozen_trunk(
        policy.model, settings.freeze_blocks, pairs, settings.trunk, run.path, again=True, reference=reference
    ):
        of_reference = None
        if knows_reference(settings.loss):
            model = policy.model if reference is None else reference
            of_reference = charged_reference(
                model, pairs, cache, before, title=f"{title}: reference log-probabilities", grammar=grammar
            ).view(-1, 2)
            logratio = pair_logprobs(policy.model, pairs[:64], grammar=grammar) - of_reference[:64]
            check_start(run, logratio, same=reference is None, in_bf16=in_bf16(policy.model))

        def step(indices: Sequence[int], session: Session) -> Loss:
            given = None if of_reference is None else of_reference[list(indices)]
            these = [pairs[i] for i in indices]
            return pair_step(policy, these, given, settings.loss, session.cost, grammar=grammar)

        cost = fit(
            policy,
            pairs,
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


def with_cost(spent: Spent | None, before: Cost) -> Spent | None:
    """The share of a budget that is spent where a run's own cost comes on top of what `before` took."""
    return None if spent is None else lambda cost: spent(before.plus(cost))


def charged_reference(
    model: Any,
    trees: Sequence[Tree],
    cache: ReferenceCache | None,
    cost: Cost,
    *,
    title: str,
    grammar: Grammar | None = None,
) -> Float[Tensor, " response"]:
    """The reference's log-probabilities; what computing them takes is added to `cost`, though they may be cached."""
    here = Cost()
    with Stopwatch(here):
        found = reference_logprobs(model, trees, cache, title=title, grammar=grammar)
    cost.wall_seconds += found.seconds
    cost.add_scored(model, found.read)
    cost.peak_memory_bytes = max(cost.peak_memory_bytes, here.peak_memory_bytes)
    return found.logprobs


def pair_logprobs(
    model: Any,
    pairs: Sequence[Tree],
    *,
    grammar: Grammar | None = None,
    advance: Advance = lambda done, note: None,
) -> Float[Tensor, "pair 2"]:
    """log π(y|x) in nats of the chosen and the rejected response of each pair; under a grammar where one is given."""
    return logprobs_of(model, pairs, grammar=grammar, advance=advance).view(-1, 2)


@torch.no_grad()
def preference_figures(
    policy: Policy,
    pairs: Sequence[Tree],
    reference: Float[Tensor, "pair 2"] | None,
    loss: PairLoss,
    *,
    grammar: Grammar | None = None,
) -> PairFigures:
    """Held-out loss, accuracy and margin of the implicit reward, one a pair; under the grammar of `reference`, where it
    has one."""
    with stage("held-out pairs", len(pairs)) as advance:
        logprob = pair_logprobs(policy.model, pairs, grammar=grammar, advance=advance)
    scored = ScoredPairs(
        logprob=logprob,
        tokens=torch.tensor([[len(response) for response in tree.responses] for tree in pairs]),
        reference=reference,
    )
    if reference is not None and ranks_batch(loss):
        scored = replace(scored, reference_at_rank=same_rank(margin(logprob), margin(reference)))
    chosen, rejected = implicit_rewards(loss, scored).unbind(1)
    return PairFigures(
        loss=pair_losses(loss, scored).tolist(),
        accuracy=wins(chosen, rejected).tolist(),
        margin=(chosen - rejected).tolist(),
    )
