"""Proximal policy optimisation from a reward, with a per-token KL penalty against the reference.

    for each update:
        sample one response to each prompt of the batch                      y ~ π_old, at temperature T
        score it                        log π_old, log π_ref, V, at T        and the reward of the whole response
        reward each token               r_t = −β·(log π_old − log π_ref), plus the score at the last token
        advantages                      Â, R = GAE(r, V); whiten Â over the rollout
        for each epoch, mini-batch:     step on  max(−Âρ, −Â·clip(ρ))  and on  ½·max((V−R)², (clip(V)−R)²)

Schulman et al. 2017 (arXiv 1707.06347), Ziegler et al. 2019 (arXiv 1909.08593), details as in arXiv 2403.17031.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.config.methods import PPO
from preflab.data.encode import Encoder
from preflab.data.pack import Packed, pack
from preflab.errors import ConfigError, NumericError
from preflab.losses import (
    clip_fraction,
    entropy,
    explained_variance,
    gae,
    kl_full,
    masked_mean,
    masked_sum,
    mean_by,
    ppo_clip,
    token_logprobs,
    token_rewards,
    value_clip,
    whiten,
)
from preflab.models.freezing import freeze
from preflab.models.load import Policy, working_weights
from preflab.models.scoring import response_logits, response_logprobs, response_values, rows_at_once
from preflab.progress import stage
from preflab.rewards.protocol import Answer, Reward, score
from preflab.rollouts.sampler import Response, sample
from preflab.runs import RunFolder
from preflab.seeds import derive
from preflab.training.cost import Cost
from preflab.training.optimizer import Stepper
from preflab.training.order import batch_at, evaluation_steps
from preflab.training.session import Evaluate, Session

LARGEST_SAMPLER_GAP_NATS = 0.01
"""How far the sampler's log-probability of a token may be from the scorer's before the run stops: float32 rounding
stays below 1e-4, a policy that is not the one that sampled does not."""


@dataclass(frozen=True)
class PromptIds:
    """A prompt to roll out from."""

    key: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One batch of responses and all that an update needs to know of them; detached, masked by `batch.mask`."""

    batch: Packed
    scores: Float[Tensor, " response"]
    """The reward of each response, before penalties."""
    ended: Float[Tensor, " response"]
    logprobs: Float[Tensor, "response token"]
    """log π_old at the sampling temperature."""
    reference_logprobs: Float[Tensor, "response token"]
    values: Float[Tensor, "response token"]
    kl: Float[Tensor, "response token"]
    """Full-vocabulary KL to the reference at temperature 1."""
    entropy: Float[Tensor, "response token"]
    sampler_gap: float
    """Largest difference between the sampler's and the scorer's log-probability of a token, in nats."""


def train_ppo(
    policy: Policy,
    value: Policy,
    reference: Any,
    reward: Reward,
    prompts: Sequence[PromptIds],
    settings: PPO,
    run: RunFolder,
    *,
    max_new_tokens: int,
    seed: int,
    gold: bool = False,
    log_every: int = 1,
    evaluate: Evaluate | None = None,
    title: str = "PPO",
) -> Cost:
    """Train `policy` and `value` in place.

    Args:
        value: starts as the reward model (a copy of it); predicts the return before each token.
        reference: a frozen model; KL is measured from it.
        reward: scores whole responses.
        max_new_tokens: length limit of a response; one cut by it pays `missing_end_penalty`.
        gold: count the reward's calls as gold calls (an oracle arm).

    Raises:
        ConfigError: the mini-batch does not divide the batch.
        NumericError: a reward, loss or gradient is not finite, or the sampler's policy is not the scorer's.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    if problem := settings.misfit():
        raise ConfigError(problem)
    freeze(policy.model, settings.freeze_blocks)
    steps_per_update = settings.epochs * (settings.batch_size // settings.mini_batch_size)
    total_steps = settings.updates * steps_per_update
    steppers = {
        "policy": Stepper(policy.model, settings.optimizer, total_steps),
        "value": Stepper(value.model, settings.value_optimizer, total_steps),
    }
    models = {"policy": policy.model, "value": value.model}
    marks = evaluation_steps(settings.updates, settings.evaluations)
    session = Session(run, models, steppers, marks=marks, evaluate=evaluate)
    encoder = Encoder(policy.tokenizer, prompt_tokens=2**20, response_tokens=max_new_tokens)
    weights = working_weights(policy.model)

    with session.stoppable(), stage(title, settings.updates, session.start) as advance:
        for update in range(session.start, settings.updates):
            chosen = [
                prompts[i]
                for i in batch_at(
                    update, examples=len(prompts), batch_size=settings.batch_size, seed=derive(seed, "prompts")
                )
            ]
            with session.step(update, lambda rows=chosen: [prompt.key for prompt in rows]):  # type: ignore[misc]
                # Sample.
                responses = sample(
                    policy.model,
                    [prompt.ids for prompt in chosen],
                    # A prompt that a batch holds twice gets two responses, so the place is part of its name.
                    keys=[f"{place}:{prompt.key}" for place, prompt in enumerate(chosen)],
                    end_id=encoder.end_id,
                    max_new_tokens=max_new_tokens,
                    temperature=settings.temperature,
                    seed=derive(seed, "rollout", update),
                )
                # Score: log-probabilities, values, KL and the reward of each response.
                scores = score(reward, answers(encoder, chosen, responses))
                rollout = roll_out(policy, value, reference, responses, scores, settings)
                # Reward each token.
                batch = rollout.batch
                rewards = token_rewards(
                    rollout.scores - settings.missing_end_penalty * (1 - rollout.ended),
                    rollout.logprobs,
                    rollout.reference_logprobs,
                    batch.mask,
                    kl_coefficient=settings.kl_coefficient,
                )
                # Advantages.
                advantages, returns = gae(
                    rewards, rollout.values, batch.mask, discount=settings.discount, lam=settings.lam
                )
                if settings.whiten_advantages:
                    advantages = whiten(advantages, batch.mask)
                # Epochs × mini-batches × micro-batches.
                figures = []
                for epoch in range(settings.epochs):
                    generator = torch.Generator().manual_seed(derive(seed, "mini-batches", update, epoch))
                    order = torch.randperm(settings.batch_size, generator=generator).to(policy.device)
                    for number, rows in enumerate(order.split(settings.mini_batch_size)):
                        step = update * steps_per_update + epoch * (len(order) // settings.mini_batch_size) + number
                        figures.append(
                            _step(policy, value, rollout, advantages, returns, rows, settings, steppers, step)
                        )

                generated = sum(len(response.tokens) for response in responses)
                cost = session.cost
                trained = 2 * settings.epochs * batch.tokens  # policy and value model
                scored = (3 if gold else 4) * batch.tokens  # old policy, reference, values, and a reward model
                cost.generated_tokens += generated
                cost.trained_tokens += trained
                cost.scored_tokens += scored
                cost.flops += weights * (6 * trained + 2 * (scored + batch.tokens))  # sampling reads prompts too
                cost.gold_calls += len(responses) if gold else 0
                cost.reward_calls += 0 if gold else len(responses)

            done = update + 1
            if done % log_every == 0 or done == settings.updates:
                values = _rollout_figures(rollout, returns, settings) | {
                    name: sum(figure[name] for figure in figures) / len(figures) for name in figures[0]
                }
                run.log({"step": done, **values})
                advance(done, f"reward {values['reward']:.2f}, KL {values['kl_nats']:.2f} nats")
            else:
                advance(done, "")
            session.after(done)
    return session.cost


def answers(encoder: Encoder, prompts: Sequence[PromptIds], responses: Sequence[Response]) -> list[Answer]:
    """Responses as a reward sees them."""
    return [
        Answer(prompt.text, encoder.decode(response.tokens), response.prompt, response.tokens, response.ended)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


@torch.no_grad()
def roll_out(
    policy: Policy, value: Policy, reference: Any, responses: Sequence[Response], scores: list[float], settings: PPO
) -> Rollout:
    """Score sampled responses under the policy that sampled them, the reference and the value model.

    Raises:
        NumericError: the scorer's log-probabilities are not the sampler's, or not finite.
    """
    batch = pack([response.tree for response in responses]).to(policy.device)
    temperature = settings.temperature
    parts = []
    size = rows_at_once(policy.model, batch.token_ids.shape[1], settings.micro_batch_size)
    for rows in torch.arange(len(responses), device=policy.device).split(size):
        micro = batch.rows(rows)
        logits, reference_logits = response_logits(policy.model, micro), response_logits(reference, micro)
        parts.append(
            (
                token_logprobs(logits, micro.response_ids, temperature=temperature),
                token_logprobs(reference_logits, micro.response_ids, temperature=temperature),
                response_values(value.model, micro),
                kl_full(logits, reference_logits),
                entropy(logits),
            )
        )
    logprobs, reference_logprobs, values, kl, entropies = (
        torch.cat(part).masked_fill(~batch.mask, 0.0) for part in zip(*parts, strict=True)
    )
    behaviour = torch.zeros_like(logprobs)
    for row, response in enumerate(responses):
        behaviour[row, : len(response.logprobs)] = torch.tensor(response.logprobs)
    gap = float((logprobs - behaviour).abs().max())
    if not math.isfinite(gap):
        raise NumericError("the policy's log-probabilities are not finite: its weights hold NaN or infinity")
    if not gap < LARGEST_SAMPLER_GAP_NATS:
        raise NumericError(
            f"sampler and scorer differ by {gap:.3g} nats on a token (limit {LARGEST_SAMPLER_GAP_NATS}): the scored "
            "policy is not the one that sampled, so importance ratios would be wrong; please report this model"
        )
    return Rollout(
        batch=batch,
        scores=torch.tensor(scores, device=policy.device),
        ended=torch.tensor([float(response.ended) for response in responses], device=policy.device),
        logprobs=logprobs,
        reference_logprobs=reference_logprobs,
        values=values,
        kl=kl,
        entropy=entropies,
        sampler_gap=gap,
    )


def _step(
    policy: Policy,
    value: Policy,
    rollout: Rollout,
    advantages: Float[Tensor, "response token"],
    returns: Float[Tensor, "response token"],
    rows: Tensor,
    settings: PPO,
    steppers: dict[str, Stepper],
    step: int,
) -> dict[str, float]:
    """One optimiser step of policy and value model on a mini-batch, micro-batch by micro-batch."""
    tokens = int(rollout.batch.mask[rows].sum())  # the global count: token means don't depend on the micro-batches
    figures: dict[str, float] = {}
    for micro in rows.split(settings.micro_batch_size):
        batch = rollout.batch.rows(micro)
        old = rollout.logprobs[micro]
        logprobs = response_logprobs(policy.model, batch, temperature=settings.temperature)
        policy_losses = ppo_clip(logprobs, old, advantages[micro], clip=settings.clip)
        policy_loss = mean_by(policy_losses.masked_fill(~batch.mask, 0.0), tokens)
        values = response_values(value.model, batch)
        value_losses = value_clip(values, rollout.values[micro], returns[micro], clip=settings.value_clip)
        value_loss = mean_by(value_losses.masked_fill(~batch.mask, 0.0), tokens)
        (policy_loss + value_loss).backward()

        share = float(batch.mask.sum()) / tokens
        difference = (logprobs - old).detach()
        for name, figure in {
            "policy_loss": float(policy_loss.detach()),
            "value_loss": float(value_loss.detach()),
            "ratio": share * float(masked_mean(difference.exp(), batch.mask)),
            "approx_kl_nats": share * float(masked_mean(0.5 * difference**2, batch.mask)),
            "clip_fraction": share * float(clip_fraction(logprobs, old, batch.mask, clip=settings.clip)),
        }.items():
            figures[name] = figures.get(name, 0.0) + figure
    place = f"update {step // max(1, settings.epochs * (settings.batch_size // settings.mini_batch_size)) + 1}"
    # Both gradients are looked at before either model moves.
    norm, _ = steppers["policy"].clip(place), steppers["value"].clip(f"{place} (value model)")
    rate, _ = steppers["policy"].update(step), steppers["value"].update(step)
    return figures | {"gradient_norm": norm, "learning_rate": rate}


def _rollout_figures(rollout: Rollout, returns: Float[Tensor, "response token"], settings: PPO) -> dict[str, float]:
    """What the log says of a rollout."""
    mask = rollout.batch.mask
    penalised = masked_sum(rollout.logprobs - rollout.reference_logprobs, mask)
    return {
        "reward": float(rollout.scores.mean()),
        "kl_nats": float(masked_sum(rollout.kl, mask).mean()),
        "objective": float((rollout.scores - settings.kl_coefficient * penalised).mean()),
        "entropy_nats": float(masked_mean(rollout.entropy, mask)),
        "explained_variance": float(explained_variance(rollout.values, returns, mask)),
        "response_tokens": float(mask.sum(1).float().mean()),
        "end_rate": float(rollout.ended.mean()),
        "sampler_gap_nats": rollout.sampler_gap,
    }
