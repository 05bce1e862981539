"""Proximal policy optimisation from a reward, with a value model and a KL penalty against the reference.

    for each update:
        sample responses to the prompts of the batch                         y ~ π_old, at temperature T
        score them                      log π_old, log π_ref, V, at T        and the reward of the whole response
        reward each token               r_t = −β·(log π_old − log π_ref), plus the score at the last token
        advantages                      Â, R = GAE(r, V); whiten Â over the rollout
        for each epoch, mini-batch:     step on  max(−Âρ, −Â·clip(ρ))  and on  ½·max((V−R)², (clip(V)−R)²)
        adapt β                         where a KL is aimed at

The optimum is π ∝ π_ref·exp(r/β), with KL in the reward and without discount.

Schulman et al. 2017 (arXiv 1707.06347), Ziegler et al. 2019 (arXiv 1909.08593), details as in arXiv 2403.17031.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from preflab.config.online import PPO
from preflab.data.pack import Packed
from preflab.errors import ConfigError
from preflab.losses import (
    adapted_coefficient,
    explained_variance,
    gae,
    masked_sum,
    mean_by,
    token_rewards,
    value_clip,
    whiten,
)
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.scoring import Grammar, Scored, reading, response_states, response_values, scored
from preflab.rewards.protocol import Reward
from preflab.rollouts.mask import TokenMask
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches, back_in_order
from preflab.training.online import Figures, Taken, added, means, micro_rows, mini_batches, run_online
from preflab.training.optimizer import Stepper
from preflab.training.rollout import FirstPass, PromptIds, Rollout, longest_trees
from preflab.training.session import Evaluate, Spent
from preflab.training.surrogate import Objective


def train_ppo(
    policy: Policy,
    value: Policy | None,
    reference: Any,
    reward: Reward,
    prompts: Sequence[PromptIds],
    settings: PPO,
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
    title: str = "PPO",
) -> Cost:
    """Train `policy` and `value` in place.

    Args:
        value: starts as the reward model (a copy of it), say; predicts the return before each token. None where
            `settings.value_trunk` is shared.
        reference: a frozen model; KL is measured from it.
        reward: scores whole responses, or each of their tokens.
        max_new_tokens: length limit of a response; one cut by it pays `missing_end_penalty`.
        starts_at_reference: the policy begins as a copy of the reference, which is checked.
        gold: count the reward's calls as gold calls (an oracle arm).
        mask: which tokens may follow; policy and reference are renormalised over them, in sampling, ratios and KL.

    Raises:
        ConfigError: settings do not fit together, a value model is missing or superfluous, or the reference shares
            weights with the policy.
        NumericError: a reward, loss or gradient is not finite, or the sampler's policy is not the scorer's.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    if problem := settings.misfit():
        raise ConfigError(problem)
    shared = settings.value_trunk == "shared"
    if shared != (value is None):
        raise ConfigError(f"value_trunk = {settings.value_trunk} {'has no' if shared else 'needs a'} value model")
    freeze(policy.model, settings.freeze_blocks)
    critic = Critic(policy, value)
    warm_up = settings.value_warmup_updates * settings.steps_per_update
    total = settings.updates * settings.steps_per_update
    of_policy = Stepper(policy.model, settings.optimizer, total - warm_up)
    of_value = Stepper(critic.model, settings.value_optimizer, total)
    models = (policy.model, reference) if value is None else (policy.model, reference, value.model)
    micro_batches = MicroBatches(settings.batch.micro, settings.batch.tokens, models)
    micro_batches.warn_alone(longest_trees(prompts, max_new_tokens), "responses, if as long as may be,")
    value_weight = settings.value_coefficient if shared else 1.0

    def step(rollout: Rollout, update: int, memory: dict[str, float]) -> Taken:
        batch, mask = rollout.batch, rollout.batch.mask
        beta = memory.get("kl_coefficient", settings.kl_coefficient)
        cost = Cost()
        old_values = rollout.of_states
        if old_values is None:
            parts = micro_batches.of([response.tree for response in rollout.responses])
            old_values = critic.rollout_values(batch, parts, cost)
        # Reward each token.
        rewards = token_rewards(
            rollout.penalised(settings.missing_end_penalty),
            rollout.logprobs,
            rollout.reference_logprobs if beta > 0 else rollout.logprobs,
            mask,
            kl_coefficient=beta if settings.kl_penalty == "reward" else 0.0,
            dense=rollout.dense,
        )
        if settings.whiten_rewards:
            rewards = whiten(rewards, mask, shift_mean=False)
        # Advantages.
        advantages, returns = gae(rewards, old_values, mask, discount=settings.discount, lam=settings.lam)
        if settings.whiten_advantages:
            advantages = whiten(advantages, mask)
        # Epochs × mini-batches × micro-batches.
        objective = Objective(
            rollout=rollout,
            advantages=advantages,
            learned=mask,
            reference=reference,
            settings=settings,
            kl_coefficient=beta,
            longest=max_new_tokens,
        )
        place = f"update {update + 1}"
        steps: list[Figures] = []
        first = FirstPass(rollout, policy.model)

        def value_loss(values: Float[Tensor, "row token"], micro: Tensor, rows: Tensor) -> Float[Tensor, ""]:
            losses = value_clip(values, old_values[micro], returns[micro], clip=settings.value_clip)
            return mean_by(losses.masked_fill(~mask[micro], 0.0), int(mask[rows].sum()))

        def learn_values(number: int, rows: Tensor) -> Figures:
            """A step of the values alone."""
            figures: Figures = {}
            for micro in micro_rows(micro_batches, rollout, rows):
                loss = value_loss(critic.values(batch.rows(micro), cost), micro, rows)
                loss.backward()
                figures = added(figures, {"value_loss": loss.detach()})
            of_value.step(number, f"{place} (value model)")
            cost.add_step(len(rows))
            return figures

        def learn(number: int, rows: Tensor) -> Figures | None:
            """A step of policy and values; None where the policy is too far from the one that sampled."""
            figures: Figures = {}
            for micro in micro_rows(micro_batches, rollout, rows):
                policy_scored, values = critic.scored_and_values(
                    batch.rows(micro), settings, cost, grammar=rollout.grammar
                )
                first.see(policy_scored.logprobs, micro)
                policy_loss, shares = objective.share(policy_scored, micro, rows)
                loss = value_loss(values, micro, rows)
                (policy_loss + value_weight * loss).backward()
                figures = added(figures, {**shares, "value_loss": loss.detach()})
                if settings.needs_logits:
                    cost.add_scored(reference, reading(reference, batch.rows(micro)))
            first.check()
            if settings.stop_kl_nats is not None and figures["approx_kl_nats"] > settings.stop_kl_nats:
                of_policy.clear()
                of_value.clear()
                return None
            # Both gradients are looked at before either model moves.
            norm, _ = of_policy.clip(place), of_value.clip(f"{place} (value model)")
            rate, _ = of_policy.update(number - warm_up), of_value.update(number)
            cost.add_step(len(rows))
            return {**figures, "gradient_norm": norm, "learning_rate": rate}

        warming = update < settings.value_warmup_updates
        for number, rows in mini_batches(len(mask), settings, update, seed=seed):
            figures = learn_values(number, rows) if warming else learn(number, rows)
            if figures is None:
                break
            steps.append(figures)

        # Adapt β.
        if settings.target_kl_nats is not None and not warming:
            memory["kl_coefficient"] = adapted_coefficient(
                beta,
                float(masked_sum(rollout.measured.kl, mask).mean()),
                target_nats=settings.target_kl_nats,
                responses=len(mask),
                horizon=settings.kl_horizon,
            )
        kl_costs = masked_sum(rollout.kl_costs(beta), mask)
        return Taken(
            {
                "objective": float((rollout.scores - kl_costs).mean()),
                "kl_coefficient": beta,
                "explained_variance": float(explained_variance(old_values, returns, mask)),
                **first.figures,
                **means(steps),
            },
            cost,
        )

    with checkpointed(*(part.model for part in (policy, value) if part), on=settings.activation_checkpointing):
        return run_online(
            policy,
            reference,
            reward,
            prompts,
            settings,
            run,
            step,
            models={"policy": policy.model, "value": critic.model},
            steppers={"policy": of_policy, "value": of_value},
            max_new_tokens=max_new_tokens,
            seed=seed,
            title=title,
            starts_at_reference=starts_at_reference,
            gold=gold,
            mask=mask,
            measured=settings.target_kl_nats is not None,
            referred=settings.kl_coefficient > 0,
            asserted=lambda update: update >= settings.value_warmup_updates,  # earlier ones have no pass of the policy
            of_states=critic.of_states if shared else None,
            log_every=log_every,
            evaluate=evaluate,
            spent=spent,
        )


class Critic:
    """Where values come from: a model of its own, or a head on the policy's last hidden state."""

    def __init__(self, policy: Policy, value: Policy | None) -> None:
        self.policy = policy.model
        self.shared = value is None
        self.model: Any = _value_head(policy) if value is None else value.model
        """What the value optimiser trains."""

    def values(self, batch: Packed, cost: Cost) -> Float[Tensor, "response token"]:
        """V before each response token, in units of reward; a shared trunk gets no gradient. Adds to `cost`."""
        if not self.shared:
            pay = cost.add_trained if torch.is_grad_enabled() else cost.add_scored
            pay(self.model, reading(self.model, batch))
            return response_values(self.model, batch)
        with torch.no_grad():
            states = response_states(self.policy, batch)
        cost.add_scored(self.policy, replace(reading(self.policy, batch), predicted=0))
        return self._read(states, batch)

    def scored_and_values(
        self, batch: Packed, settings: PPO, cost: Cost, *, grammar: Grammar | None = None
    ) -> tuple[Scored, Float[Tensor, "response token"]]:
        """The responses under the policy and V, with gradients through both. Adds to `cost`."""
        found = scored(
            self.policy,
            batch,
            temperature=settings.temperature,
            logits=settings.needs_logits,
            states=self.shared,
            grammar=grammar,
        )
        cost.add_trained(self.policy, reading(self.policy, batch))
        return found, self.values(batch, cost) if found.states is None else self._read(found.states, batch)

    @torch.no_grad()
    def rollout_values(
        self, batch: Packed, parts: Sequence[Sequence[int]], cost: Cost
    ) -> Float[Tensor, "response token"]:
        """V of a whole rollout, the responses of a part at once. Adds to `cost`."""
        found = torch.cat([self.values(batch.rows(torch.tensor(part)), cost) for part in parts])
        return found[back_in_order(parts)]

    def of_states(self, states: Float[Tensor, "*any width"]) -> Float[Tensor, "*any"]:
        """V of the policy's last hidden states, by the head on a shared trunk."""
        values: Tensor = self.model(states.float()).squeeze(-1)
        return values

    def _read(self, states: Float[Tensor, "response token width"], batch: Packed) -> Float[Tensor, "response token"]:
        return self.of_states(states).masked_fill(~batch.mask, 0.0)


def _value_head(policy: Policy) -> nn.Linear:
    """V = 0 everywhere, so that the first advantages are the returns. No part of the policy that is saved."""
    width = policy.model.get_output_embeddings().weight.shape[1]
    head = nn.utils.skip_init(nn.Linear, width, 1, device=policy.device)  # draws nothing from the global generator
    for parameter in head.parameters():
        nn.init.zeros_(parameter)
    return head
