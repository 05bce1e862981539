"""The loop over sampled responses: PPO, the group methods and online DPO are step functions handed to it.

for each update:
    choose prompts, sample responses to each            y ~ π_old
    score them                                          the reward of each response, or of its tokens
    score them again, where the method asks             log π_old, log π_ref, KL
    step                                                the method
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from statistics import fmean, pstdev
from typing import Any

import torch
from torch import Tensor, nn

from preflab.config.online import Online
from preflab.config.sampling import NO_WARP, Warp
from preflab.config.training import Trunk
from preflab.data.encode import Encoder
from preflab.errors import NumericError
from preflab.live import Phases, Sample, live
from preflab.losses import masked_mean, masked_sum
from preflab.models.freezing import frozen_digest
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.trunk import frozen_trunk, refill
from preflab.rewards.protocol import Reward, Score, assess
from preflab.rollouts.mask import TokenMask, grammar_of
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.runs import RunFolder, read_lines
from preflab.seeds import derive
from preflab.training.checks import check_frozen, check_reference
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches
from preflab.training.optimizer import Stepper
from preflab.training.order import batch_at, evaluation_steps
from preflab.training.rollout import OfStates, PromptIds, Rollout, answers, dense_rewards, pay, roll_out
from preflab.training.session import Evaluate, Session, Spent

LARGEST_START_GAP_NATS = 1e-3
"""How far policy and reference may be apart on a token before the first step, where they should be the same model."""
LARGEST_START_GAP_NATS_BF16 = 1.0
"""The same where products are in bf16."""

Figures = Mapping[str, Tensor | float]
"""For the log; tensors stay on their device until an update is over, as reading a number waits for the device."""


@dataclass(frozen=True)
class Taken:
    """What a method did with a rollout."""

    figures: Mapping[str, float]
    """For the log."""
    cost: Cost = field(default_factory=Cost)
    """Beyond that of the rollout."""


Step = Callable[[Rollout, int, dict[str, float]], Taken]
"""(rollout, number of the update from 0, the session's memory) → what was done. The memory holds JSON numbers that the
method keeps between updates; it is saved with every checkpoint and rolled back with it."""

Keep = Callable[[Sequence[Response], Sequence[float]], bool]
"""(the responses to one prompt, their rewards) → is there something to learn from?"""


@dataclass(frozen=True)
class Drawn:
    """Sampled responses with their rewards, the responses to one prompt together."""

    responses: list[Response]
    scores: list[Score]

    @property
    def totals(self) -> list[float]:
        """The rewards of whole responses."""
        return [score.total for score in self.scores]

    def first(self, count: int) -> Drawn:
        """The first `count` of them."""
        return Drawn(self.responses[:count], self.scores[:count])

    def bare(self) -> Drawn:
        """Without the sampler's states, which are as large as a layer's activations."""
        return Drawn([replace(response, states=None) for response in self.responses], self.scores)


def run_online(
    policy: Policy,
    reference: Any,
    reward: Reward,
    prompts: Sequence[PromptIds],
    settings: Online,
    run: RunFolder,
    step: Step,
    *,
    models: Mapping[str, nn.Module],
    steppers: Mapping[str, Stepper],
    max_new_tokens: int,
    seed: int,
    title: str,
    temperatures: Sequence[float] | None = None,
    scoring_temperature: float | None = None,
    warp: Warp = NO_WARP,
    keep: Keep | None = None,
    refill_rounds: int = 0,
    starts_at_reference: bool = True,
    gold: bool = False,
    mask: TokenMask[Any] | None = None,
    measured: bool = False,
    referred: bool = True,
    asserted: Callable[[int], bool] = lambda update: False,
    of_states: OfStates | None = None,
    log_every: int = 1,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
) -> Cost:
    """Run a method's updates, and return what they cost.

    Args:
        reference: a frozen model; KL is measured from it.
        step: the method.
        models, steppers: what the method trains, for the checkpoints.
        max_new_tokens: length limit of a response.
        temperatures: of the sampling of each of a prompt's `settings.responses` responses; None: all at
            `settings.temperature`.
        scoring_temperature: at which the rollout holds log-probabilities; None: `settings.temperature`.
        warp: what stands between the policy and what is sampled; for methods without importance ratios alone.
        keep: which prompts to keep; further ones are sampled in place of the others. None: all.
        refill_rounds: how often an update may sample further prompts.
        starts_at_reference: the policy begins as a copy of the reference, which is checked.
        gold: count the reward's calls as gold calls (an oracle arm).
        mask: which tokens may follow; the rollout's figures are those of policy and reference renormalised over them.
        measured: the method asks for each rollout's KL and entropy, not for those of logged updates alone.
        referred: the method asks for each rollout's log-probabilities under the reference; else it is run where KL is
            measured, and where the start is checked.
        asserted: update from 0 → whether the method holds the rollout's log-probabilities against its own first forward
            pass, so that the sampler's may stand for a pass.
        of_states: what the method asks of the policy's last hidden states in each rollout.
        spent: of a budget that may end the run after an update; the schedule of the rate stays that of the settings.

    Raises:
        ConfigError: the reference shares weights with the policy.
        NumericError: a reward is not finite, the sampler's policy is not the scorer's, the first policy is not the
            reference though it should be, no prompt of the first update was kept, frozen weights were written to, or
            the method met something that is not finite.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    check_reference(policy.model, reference)
    frozen = frozen_digest(policy.model) if settings.freeze_blocks else None
    marks = evaluation_steps(settings.updates, settings.evaluations)
    session = Session(run, models, steppers, marks=marks, evaluate=evaluate, spent=spent)
    encoder = Encoder(policy.tokenizer, prompt_tokens=2**20, response_tokens=max_new_tokens)
    at = temperatures or [settings.temperature] * settings.responses
    scored_at = settings.temperature if scoring_temperature is None else scoring_temperature
    apart = warp.alters or set(at) != {scored_at}  # sampled from something else than is scored
    groups = settings.batch.size // settings.responses
    grammar = None if mask is None else grammar_of(mask)
    origins: list[str] = []
    phases = Phases()
    if frozen and session.start:
        check_frozen(policy.model, frozen)

    def draw(count: int, place: int, update: int, *, states: bool) -> Drawn:
        """Responses to the next `count` prompts, and what they cost."""
        cursor = int(session.memory.get("prompts", 0))
        chosen = prompts_from(prompts, cursor, count, seed=derive(seed, "prompts"))
        session.memory["prompts"] = cursor + count
        origins.extend(prompt.key for prompt in chosen)
        phases.enter("sample")
        responses = _sample(
            policy,
            chosen,
            at,
            warp,
            mask,
            place=place,
            end_id=encoder.end_id,
            max_new_tokens=max_new_tokens,
            seed=derive(seed, "rollout", update),
            states=states,
        )
        phases.enter("reward")
        asked = [prompt for prompt in chosen for _ in at]
        scores = assess(reward, answers(encoder, asked, responses))
        pay(session.cost, policy, responses, scores, calls=sum(1 for _ in groupby(at)), gold=gold)
        return Drawn(responses, scores.values)

    earlier = read_lines(run.metrics)
    with (
        frozen_trunk(policy.model, settings.freeze_blocks, (), Trunk(), run.path, again=True, reference=reference),
        session.stoppable(),
        live(title, settings.updates, session.start, phases=phases, earlier=earlier) as show,
    ):
        for update in session.steps():
            done = update + 1
            logged = done % log_every == 0 or done == settings.updates
            checked = update == 0 and starts_at_reference
            reads_states = logged or measured or apart or of_states is not None
            stands = asserted(update) and not in_bf16(policy.model)  # the sampler's numbers for a pass of the policy
            states = reads_states and stands
            origins.clear()
            phases.begin()
            with session.step(update, lambda: list(origins)):
                # Sample and score, again where a prompt teaches nothing.
                drawn = draw(groups, 0, update, states=states)
                kept = _kept(drawn, keep, settings.responses)
                for _ in range(refill_rounds):
                    missing = groups - len(kept.responses) // settings.responses
                    if missing == 0:
                        break
                    more = draw(missing, len(origins), update, states=states)
                    drawn = _joined(drawn, more.bare())
                    kept = _joined(kept, _kept(more, keep, settings.responses))
                    del more  # and with it the states of what was dropped
                if not kept.responses and update == 0:
                    raise NumericError(
                        "in update 1 all responses to a prompt got the same reward, for each of "
                        f"{len(origins)} prompts, so there is nothing to learn from; raise refill_rounds, responses or "
                        "temperature, or take other prompts"
                    )
                # A policy that has reached the top of its reward learns nothing more, and need not stop for it.
                looked_at = kept if kept.responses else drawn.first(settings.batch.size)
                phases.enter("score")
                passes = settings.epochs + (logged or measured or referred or checked or not stands)
                refill(policy.model, [response.tree for response in looked_at.responses], again=passes > 1)
                rollout = roll_out(
                    policy,
                    reference,
                    looked_at.responses,
                    looked_at.totals,
                    temperature=scored_at,
                    sampled_at=list(at) * (len(looked_at.responses) // len(at)) if apart else None,
                    compared=not warp.alters,
                    batch_size=settings.batch.micro,
                    tokens=settings.batch.tokens,
                    measured=logged or measured,
                    referred=referred or checked,
                    asserted=bool(kept.responses) and asserted(update),
                    of_states=of_states,
                    grammar=grammar,
                    cost=session.cost,
                )
                rollout = replace(rollout, dense=dense_rewards(looked_at.scores, rollout))
                drawn, kept, looked_at = drawn.bare(), kept.bare(), looked_at.bare()
                if checked:
                    _check_start(rollout, policy.model)
                # Learn.
                phases.enter("learn")
                taken = step(rollout, update, session.memory) if kept.responses else Taken({})
                session.cost.add(taken.cost)
                phases.leave("evaluate, save")

            if logged:
                dropped = {} if keep is None else {"dropped_responses": len(drawn.responses) - len(kept.responses)}
                tokens = sum(len(response.tokens) for response in drawn.responses)
                memory = {"peak_memory_bytes": session.cost.peak_memory_bytes}
                values = _figures(drawn, rollout) | dropped | dict(taken.figures) | phases.figures(tokens) | memory
                run.log({"step": done, **values})
                show(done, values, _samples(encoder, drawn))
            else:
                show(done)
            session.after(done)
    if frozen:
        check_frozen(policy.model, frozen)
    return session.cost


def mini_batches(count: int, settings: Online, update: int, *, seed: int) -> Iterator[tuple[int, Tensor]]:
    """The optimiser steps of an update: the number of each over the whole run, from 0, and the rows of its mini-batch.

    A number depends on its place alone, so the schedule of the learning rate is the same where an update took fewer
    steps than it may.
    """
    for epoch in range(settings.epochs):
        generator = torch.Generator().manual_seed(derive(seed, "mini-batches", update, epoch))
        order = torch.randperm(count, generator=generator)
        first = update * settings.steps_per_update + epoch * (settings.batch.size // settings.batch.mini)
        for number, rows in enumerate(order.split(settings.batch.mini)):
            yield first + number, rows


def micro_rows(micro_batches: MicroBatches, rollout: Rollout, rows: Tensor) -> list[Tensor]:
    """The rows of a mini-batch that are in memory at once, part by part; in the rollout's order, so that responses to
    one prompt are together, and it is read once."""
    rows = rows.sort().values
    return [rows[part] for part in micro_batches.of([rollout.responses[row].tree for row in rows.tolist()])]


def added(figures: Figures, shares: Figures) -> Figures:
    """A micro-batch's shares on top of what its mini-batch has so far."""
    return {name: figures.get(name, 0.0) + value for name, value in shares.items()}


def means(steps: Sequence[Figures]) -> dict[str, float]:
    """The figures of an update: means over the steps taken, and how many there were."""
    names = steps[0] if steps else {}
    sums = {name: sum(float(step[name]) for step in steps) for name in names}
    return {name: value / len(steps) for name, value in sums.items()} | {"optimizer_steps": len(steps)}


def prompts_from(prompts: Sequence[PromptIds], cursor: int, count: int, *, seed: int) -> list[PromptIds]:
    """The next `count` prompts after `cursor` were taken: epoch after epoch, each a permutation of its own."""
    # The window begins anywhere: two batches of its size, of which the first holds the cursor, cover it.
    step, begin = divmod(cursor, count)
    two = [
        index
        for number in (step, step + 1)
        for index in batch_at(number, examples=len(prompts), batch_size=count, seed=seed)
    ]
    return [prompts[index] for index in two[begin : begin + count]]


def _sample(
    policy: Policy,
    prompts: Sequence[PromptIds],
    temperatures: Sequence[float],
    warp: Warp,
    mask: TokenMask[Any] | None,
    *,
    place: int,
    end_id: int,
    max_new_tokens: int,
    seed: int,
    states: bool,
) -> list[Response]:
    """One response a temperature to each prompt, prompt by prompt; `place`: how many prompts of the update came
    before."""
    of_prompt: list[list[Response]] = [[] for _ in prompts]
    for temperature, run in groupby(enumerate(temperatures), key=lambda slot: slot[1]):
        slots = [slot for slot, _ in run]
        # A prompt that an update holds twice gets responses of its own, so the place is part of its name.
        suffix = f"+{slots[0]}" if slots[0] else ""
        sampled = sample(
            policy.model,
            [prompt.ids for prompt in prompts],
            keys=[f"{place + number}{suffix}:{prompt.key}" for number, prompt in enumerate(prompts)],
            end_id=end_id,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            warp=warp,
            mask=mask,
            samples=len(slots),
            seed=seed,
            states=states,
        )
        for number, responses in enumerate(of_prompt):
            responses += sampled[number * len(slots) : (number + 1) * len(slots)]
    return [response for responses in of_prompt for response in responses]


def _samples(encoder: Encoder, drawn: Drawn) -> list[Sample]:
    """To look at: the first response, and the one with the highest reward."""
    scores = drawn.totals
    notes = {0: "sample"} | {max(range(len(scores)), key=scores.__getitem__): "best"}
    return [
        Sample(
            prompt=encoder.decode(drawn.responses[row].prompt),
            response=encoder.decode(drawn.responses[row].tokens),
            note=f"{note}, reward {scores[row]:.2f}",
        )
        for row, note in notes.items()
    ]


def _kept(drawn: Drawn, keep: Keep | None, size: int) -> Drawn:
    """The groups worth keeping; all where None asks."""
    if keep is None:
        return drawn
    chosen = Drawn([], [])
    for begin in range(0, len(drawn.responses), size):
        group = Drawn(drawn.responses[begin : begin + size], drawn.scores[begin : begin + size])
        if keep(group.responses, group.totals):
            chosen = _joined(chosen, group)
    return chosen


def _joined(first: Drawn, second: Drawn) -> Drawn:
    return Drawn(first.responses + second.responses, first.scores + second.scores)


def _check_start(rollout: Rollout, model: Any) -> None:
    """The policy is the reference before it has learned anything."""
    limit = LARGEST_START_GAP_NATS_BF16 if in_bf16(model) else LARGEST_START_GAP_NATS
    gap = float((rollout.logprobs - rollout.reference_logprobs).abs().max())
    if not gap < limit:
        raise NumericError(
            f"before the first step, policy and reference differ by {gap:.3g} nats on a token (limit "
            f"{limit}): is dropout on, or was another model loaded for one of them? Load both from "
            "one folder, or say that the policy starts elsewhere (starts_at_reference=False)"
        )


def _figures(drawn: Drawn, rollout: Rollout) -> dict[str, float]:
    """What the log says of a rollout: rewards and lengths of all that was sampled, the rest of what was kept."""
    mask, responses = rollout.batch.mask, drawn.responses
    return {
        "reward": fmean(drawn.totals),
        "reward_sd": pstdev(drawn.totals),
        "reward_min": min(drawn.totals),
        "reward_max": max(drawn.totals),
        **{
            f"reward/{name}": sum(score.parts[name] for score in drawn.scores) / len(drawn.scores)
            for name in drawn.scores[0].parts
        },
        "kl_nats": float(masked_sum(rollout.measured.kl, mask).mean()),
        "entropy_nats": float(masked_mean(rollout.measured.entropy, mask)),
        "response_tokens": sum(len(response.tokens) for response in responses) / len(responses),
        "end_rate": sum(response.ended for response in responses) / len(responses),
    } | ({} if rollout.sampler_gap is None else {"sampler_gap_nats": rollout.sampler_gap})
