"""Online DPO: pairs of the current policy's own responses, the best against the worst by a reward.

    for each update:
        sample a response to each prompt at each of K temperatures        y_1 … y_K ~ π
        score them; pair best against worst where the gap exceeds a threshold
        step on a paired loss of these pairs, by default DPO's

Guo et al. 2024, arXiv 2402.04792, which samples two responses at one temperature and asks a judge for the better one.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from preflab.config.online import Online, RolloutBatch
from preflab.config.online_preference import OnlineDPO
from preflab.errors import ConfigError, NumericError
from preflab.losses import masked_sum
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.scoring import reading
from preflab.rewards.protocol import Reward
from preflab.rollouts.mask import TokenMask
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches
from preflab.training.online import Figures, Taken, added, means, mini_batches, run_online
from preflab.training.optimizer import Stepper
from preflab.training.preference import knows_reference, pair_step
from preflab.training.ranking import rank
from preflab.training.rollout import FirstPass, PromptIds, Rollout, longest_trees
from preflab.training.session import Evaluate, Spent

HOPELESS_PROMPTS = 128
"""Where so many from the first on gave no pair, none is to be expected; of fewer it may be chance, as in an update of
four."""


def train_online_dpo(
    policy: Policy,
    reference: Any,
    reward: Reward,
    prompts: Sequence[PromptIds],
    settings: OnlineDPO,
    run: RunFolder,
    *,
    max_new_tokens: int,
    seed: int,
    starts_at_reference: bool = True,
    gold: bool = False,
    mask: TokenMask[Any] | None = None,
    log_every: int = 1,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
    title: str = "online DPO",
) -> Cost:
    """Train `policy` in place; the arguments are those of `train_ppo`.

    Raises:
        ConfigError: settings don't fit together, or the reference shares weights with the policy.
        NumericError: a reward, loss or gradient is not finite, or none of the first
            `HOPELESS_PROMPTS` prompts gave a pair.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    for part in (settings, settings.ranking, settings.loss):
        if problem := part.misfit():
            raise ConfigError(problem)
    freeze(policy.model, settings.freeze_blocks)
    at = settings.ranking.temperatures
    batch = settings.batch
    loop = Online(
        updates=settings.updates,
        batch=RolloutBatch(size=batch.size * len(at), mini=batch.mini, micro=batch.micro, tokens=batch.tokens),
        responses=len(at),
        epochs=settings.epochs,
        freeze_blocks=settings.freeze_blocks,
        evaluations=settings.evaluations,
    )
    dealt = dealt_pairs(settings)
    stepper = Stepper(policy.model, settings.optimizer, settings.updates * dealt.steps_per_update)

    micro_batches = MicroBatches(batch.micro, batch.tokens, (policy.model,))
    micro_batches.warn_alone(longest_trees(prompts, max_new_tokens, responses=2), "pairs, if as long as may be,")

    def step(rollout: Rollout, update: int, memory: dict[str, float]) -> Taken:
        rewards = rollout.penalised(settings.missing_end_penalty).tolist()
        ranked = rank(rollout.responses, rewards, group=len(at), smallest_gap=settings.ranking.smallest_gap)
        memory["pairs"] = memory.get("pairs", 0) + len(ranked)
        over = (update + 1) * batch.size >= HOPELESS_PROMPTS or update + 1 == settings.updates
        if not memory["pairs"] and over:
            which = "update 1" if update == 0 else f"updates 1 to {update + 1}"
            raise NumericError(
                f"in {which} no prompt gave a pair: all rewards lie within "
                f"ranking.smallest_gap = {settings.ranking.smallest_gap}; lower it, or raise ranking.temperatures"
            )
        if not ranked:  # a policy that has reached the top of its reward learns nothing more, and need not stop for it
            return Taken({"pairs": 0.0, "skipped_prompts": float(batch.size)})
        trees = [pair.tree for pair in ranked]
        rows_of = torch.tensor([pair.rows for pair in ranked], device=policy.device)
        of_reference = None
        if knows_reference(settings.loss):
            of_reference = masked_sum(rollout.reference_logprobs, rollout.batch.mask)[rows_of].cpu()
        first = FirstPass(rollout, policy.model)
        cost = Cost()
        steps: list[Figures] = []
        for number, chosen in mini_batches(len(trees), dealt, update, seed=seed):
            pairs = [trees[i] for i in chosen.tolist()]
            loss = pair_step(
                policy,
                pairs,
                None if of_reference is None else of_reference[chosen],
                settings.loss,
                cost,
                grammar=rollout.grammar,
                see=lambda some, logprobs, chosen=chosen: first.see(logprobs, rows_of[chosen[some]].flatten()),  # type: ignore[misc]
            )
            figures: Figures = {}
            for positions in micro_batches.of(pairs):
                share, others = loss(positions)
                share.backward()
                cost.add_trained(policy.model, reading(policy.model, [pairs[i] for i in positions]))
                figures = added(figures, {"loss": share.detach(), **others})
            first.check()
            steps.append({**figures, **stepper.step(number, f"update {update + 1}")})
            cost.add_step(len(pairs))
        return Taken(
            first.figures
            | means(steps)
            | {"pairs": float(len(trees)), "skipped_prompts": float(batch.size - len(trees))}
            | _paid([pair.chosen_reward for pair in ranked], [pair.rejected_reward for pair in ranked]),
            cost,
        )

    with checkpointed(policy.model, on=settings.activation_checkpointing):
        return run_online(
            policy,
            reference,
            reward,
            prompts,
            loop,
            run,
            step,
            models={"policy": policy.model},
            steppers={"policy": stepper},
            max_new_tokens=max_new_tokens,
            seed=seed,
            title=title,
            temperatures=at,
            scoring_temperature=1.0,
            warp=settings.ranking,
            starts_at_reference=starts_at_reference,
            gold=gold,
            mask=mask,
            referred=knows_reference(settings.loss),
            asserted=lambda update: True,
            log_every=log_every,
            evaluate=evaluate,
            spent=spent,
        )


def _paid(best: Sequence[float], worst: Sequence[float]) -> dict[str, float]:
    """What the log says of the rewards of pairs."""
    return {
        "best_reward": fmean(best),
        "best_reward_sd": pstdev(best),
        "worst_reward": fmean(worst),
        "worst_reward_sd": pstdev(worst),
        "reward_gap": fmean(best) - fmean(worst),
    }


def dealt_pairs(settings: OnlineDPO) -> Online:
    """How the pairs of a rollout are dealt into mini-batches: as responses would be, at most one pair a prompt."""
    return Online(batch=RolloutBatch(size=settings.batch.size, mini=settings.batch.mini), epochs=settings.epochs)
