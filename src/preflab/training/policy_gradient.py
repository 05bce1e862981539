"""Policy gradient without a value model: GRPO, Dr. GRPO, DAPO, RLOO, REINFORCE, and what lies between them.

    for each update:
        sample k responses to each prompt of the batch          y ~ π_old, at temperature T
        reward each response            r = score − penalties  (− β·Σ_t (log π_old − log π_ref), for KL in the reward)
        advantages                      Â = r − baseline, over the standard deviation or not; the same for all tokens
        for each epoch, mini-batch:     step on  max(−Âρ, −Â·clip(ρ)) + β·KL  (for KL in the loss)

With dynamic sampling, prompts whose responses all got the same reward are replaced by further ones.

Without division by a standard deviation and with KL in the reward the optimum is π ∝ π_ref·exp(r/β).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, assert_never

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.config.online import PolicyGradient
from preflab.errors import ConfigError, NumericError
from preflab.losses import leave_one_out, less_group_mean, masked_sum, over_std, overlong_penalty
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.scoring import reading, scored
from preflab.rewards.protocol import Reward
from preflab.rollouts.mask import TokenMask
from preflab.rollouts.response import Response
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches
from preflab.training.online import Figures, Taken, added, means, micro_rows, mini_batches, run_online
from preflab.training.optimizer import Stepper
from preflab.training.rollout import FirstPass, PromptIds, Rollout, longest_trees
from preflab.training.session import Evaluate, Spent
from preflab.training.surrogate import Objective


def train_policy_gradient(
    policy: Policy,
    reference: Any,
    reward: Reward,
    prompts: Sequence[PromptIds],
    settings: PolicyGradient,
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
    title: str = "policy gradient",
) -> Cost:
    """Train `policy` in place.

    Args:
        reference: a frozen model; KL is measured from it.
        reward: scores whole responses; of one that scores tokens, their sum counts.
        max_new_tokens: length limit of a response; one cut by it pays `missing_end_penalty`.
        starts_at_reference: the policy begins as a copy of the reference, which is checked.
        gold: count the reward's calls as gold calls (an oracle arm).
        mask: which tokens may follow; policy and reference are renormalised over them, in sampling, ratios and KL.

    Raises:
        ConfigError: settings do not fit together, the overlong buffer is longer than a response, or the reference
            shares weights with the policy.
        NumericError: a reward, loss or gradient is not finite, the sampler's policy is not the scorer's, the first
            update has nothing to learn from, or `mask_truncated` leaves none of a rollout.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    if problem := settings.misfit():
        raise ConfigError(problem)
    if settings.overlong_buffer_tokens > max_new_tokens:
        raise ConfigError(
            f"overlong_buffer_tokens = {settings.overlong_buffer_tokens} is more than the {max_new_tokens} tokens of a "
            f"response; try {max(1, max_new_tokens // 5)}"
        )
    freeze(policy.model, settings.freeze_blocks)
    stepper = Stepper(policy.model, settings.optimizer, settings.updates * settings.steps_per_update)
    micro_batches = MicroBatches(settings.batch.micro, settings.batch.tokens, (policy.model, reference))
    micro_batches.warn_alone(longest_trees(prompts, max_new_tokens), "responses, if as long as may be,")

    def step(rollout: Rollout, update: int, memory: dict[str, float]) -> Taken:
        batch, beta = rollout.batch, settings.kl_coefficient
        # Reward each response.
        kl_costs = masked_sum(rollout.kl_costs(beta), batch.mask)
        rewards = penalised(rollout.responses, rollout.scores, settings, longest=max_new_tokens)
        if settings.kl_penalty == "reward":
            rewards = rewards - kl_costs
        # Advantages.
        advantages = response_advantages(rewards, settings)
        learned = batch.mask & rollout.ended.bool().unsqueeze(1) if settings.mask_truncated else batch.mask
        if not bool(learned.any()):
            raise NumericError(
                f"in update {update + 1} the length limit cut every response, and mask_truncated leaves none to learn "
                "from; raise the length limit, or turn mask_truncated off"
            )
        # Epochs × mini-batches × micro-batches.
        objective = Objective(
            rollout=rollout,
            advantages=advantages.unsqueeze(1).expand_as(batch.mask),
            learned=learned,
            reference=reference,
            settings=settings,
            kl_coefficient=beta,
            longest=max_new_tokens,
        )
        steps: list[Figures] = []
        first = FirstPass(rollout, policy.model)
        cost = Cost()
        for number, rows in mini_batches(len(rollout.responses), settings, update, seed=seed):
            rows = rows[learned[rows].any(1).cpu()]
            if len(rows) == 0:  # all of them cut and masked
                continue
            figures: Figures = {}
            for micro in micro_rows(micro_batches, rollout, rows):
                micro_batch = batch.rows(micro)
                of_policy = scored(
                    policy.model,
                    micro_batch,
                    temperature=settings.temperature,
                    logits=settings.needs_logits,
                    grammar=rollout.grammar,
                )
                first.see(of_policy.logprobs, micro)
                loss, shares = objective.share(of_policy, micro, rows)
                loss.backward()
                figures = added(figures, shares)
                cost.add_trained(policy.model, reading(policy.model, micro_batch))
                if settings.needs_logits:
                    cost.add_scored(reference, reading(reference, micro_batch))
            first.check()
            steps.append({**figures, **stepper.step(number, f"update {update + 1}")})
            cost.add_step(len(rows))
        return Taken(
            {
                "objective": float((rollout.scores - kl_costs).mean()),
                "zero_advantages": float((advantages == 0).float().mean()),
                **first.figures,
                **means(steps),
            },
            cost,
        )

    def differ(responses: Sequence[Response], scores: Sequence[float]) -> bool:
        """Whether the group has a best and a worst response."""
        rewards = penalised(responses, torch.tensor(scores), settings, longest=max_new_tokens)
        return bool((rewards != rewards[0]).any())

    with checkpointed(policy.model, on=settings.activation_checkpointing):
        return run_online(
            policy,
            reference,
            reward,
            prompts,
            settings,
            run,
            step,
            models={"policy": policy.model},
            steppers={"policy": stepper},
            max_new_tokens=max_new_tokens,
            seed=seed,
            title=title,
            keep=differ if settings.dynamic_sampling else None,
            refill_rounds=settings.refill_rounds if settings.dynamic_sampling else 0,
            starts_at_reference=starts_at_reference,
            gold=gold,
            mask=mask,
            referred=settings.kl_coefficient > 0,
            asserted=lambda update: True,
            log_every=log_every,
            evaluate=evaluate,
            spent=spent,
        )


def penalised(
    responses: Sequence[Response], scores: Float[Tensor, " response"], settings: PolicyGradient, *, longest: int
) -> Float[Tensor, " response"]:
    """The scores, less what a response pays for having no end token, and for coming close to the length limit."""
    ended = torch.tensor([float(response.ended) for response in responses], device=scores.device)
    rewards = scores - settings.missing_end_penalty * (1 - ended)
    if settings.overlong_buffer_tokens == 0:
        return rewards
    lengths = torch.tensor([len(response.tokens) for response in responses], device=scores.device)
    return rewards + overlong_penalty(
        lengths, longest=longest, buffer=settings.overlong_buffer_tokens, factor=settings.overlong_factor
    )


def response_advantages(rewards: Float[Tensor, " response"], settings: PolicyGradient) -> Float[Tensor, " response"]:
    """Â of each response, the responses to one prompt together."""
    group, everything = settings.responses, len(rewards)
    match settings.baseline:
        case "group-mean":
            advantages = less_group_mean(rewards, group=group)
        case "leave-one-out":
            advantages = leave_one_out(rewards, group=group)
        case "batch":
            advantages = leave_one_out(rewards, group=everything)
        case never:
            assert_never(never)
    match settings.scale:
        case "none":
            return advantages
        case "group-std":
            return over_std(advantages, rewards, group=group)
        case "batch-std":
            return over_std(advantages, rewards, group=everything)
        case never_scaled:
            assert_never(never_scaled)
