"""What a run will do, and the memory that it will take: the passes of each method, as `training/memory.py` looks at
them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from preflab.config.online import PPO, Online, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.pair_losses import KTOLoss
from preflab.config.preference import Preference, Unpaired
from preflab.config.training import Fit, Trunk
from preflab.data.encode import Tree
from preflab.data.pack import Packed, pack, readings
from preflab.losses import kl_in_loss
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.scoring import (
    TREES_AT_ONCE,
    Scored,
    logprobs_of,
    reading,
    reads_tree,
    response_logits,
    response_logprobs,
    response_scores,
    scored,
    trees_at_once,
)
from preflab.models.trunk import stored_bytes
from preflab.rewards.learned import LearnedReward
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sampled_at_once
from preflab.seeds import derive
from preflab.training.cost import Cost
from preflab.training.memory import Kept, Peak, held_bytes, kept_by_optimizer, peak_of, process_bytes, sampling_peak
from preflab.training.micro_batches import MicroBatches
from preflab.training.offline import indices_of, is_scorer, micro_batches_of, reads_again, total_steps
from preflab.training.online import mini_batches, prompts_from
from preflab.training.online_dpo import dealt_pairs
from preflab.training.order import batch_at
from preflab.training.ppo import Critic
from preflab.training.preference import knows_reference, ranks_batch
from preflab.training.rollout import PromptIds, roll_out, scored_together
from preflab.training.unpaired import mismatched

Pass = Callable[[Sequence[Tree]], Tensor | None]


@dataclass(frozen=True)
class Memory:
    """The estimate of the peak, in bytes."""

    place: str
    """In which part of a run the peak lies."""
    weights: int
    """Of all models of the run, a frozen reference included."""
    gradients: int
    optimizer: int
    """Adam's moments, masters, what the update itself takes."""
    logits: int
    """Tensors over the vocabulary."""
    activations: int
    """What the passes keep for the backward pass and what that makes; the cache of keys and values while sampling."""
    states: int
    """What frozen blocks gave, in a file whose pages are resident once they are read."""
    process: int
    """Python, libraries, the data."""

    @property
    def total(self) -> int:
        """Their sum."""
        parts = (self.weights, self.gradients, self.optimizer, self.logits, self.activations, self.states, self.process)
        return sum(parts)


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    steps: int
    """Optimiser steps."""
    examples: int
    """In one of them."""
    micro_batch: int
    """Of these in the largest micro-batch."""
    tree: bool
    """Whether that is laid out with each prompt once."""
    cells: tuple[int, int]
    """Of it: a copy of the prompt before each response and padding; each prompt once."""
    memory: Memory


@dataclass(frozen=True)
class Cut:
    """How the steps of a run are cut into micro-batches."""

    largest: list[Tree]
    """The one with most cells."""
    accumulates: bool
    """Whether a step has several."""


def plan_offline(
    policy: Policy, trees: Sequence[Tree], settings: Fit, *, held: Sequence[Any], folder: Path, seed: int
) -> Plan:
    """Of a method on a fixed data set.

    Args:
        policy: what is trained; its weights stay as they are, those that the settings freeze are frozen.
        held: the models that lie in memory during the run, the trained one too.
        folder: of the run; it need not be there.
    """
    freeze(policy.model, settings.freeze_blocks)
    steps = total_steps(len(trees), settings)
    cut = cut_offline(policy, trees, settings, steps, seed=seed)
    alone, in_steps = scored_alone(trees, settings, seed=seed)
    first: dict[str, Peak] = {}
    later: dict[str, Peak] = {}
    if alone:
        size = trees_at_once(policy.model, alone, TREES_AT_ONCE)
        first["the reference's pass"] = peak_of(
            _reference(policy), [policy.model], largest(policy, _parts(alone, size))
        )
        if in_steps:
            later["the policy's pass before a step"] = first["the reference's pass"]
    run = _scores(policy) if is_scorer(policy) else _logprobs(policy)
    with checkpointed(policy.model, on=settings.activation_checkpointing):
        later["training"] = peak_of(run, [policy.model], cut.largest, accumulates=cut.accumulates)
    again = bool(alone) or reads_again(len(trees), steps, settings)
    states = _stored(policy, [*trees, *alone], settings.freeze_blocks, settings.trunk, folder) if again else 0
    optimizers = [kept_by_optimizer(policy.model, settings.optimizer, accumulates=cut.accumulates)]
    memory = _memory(first, later, optimizers, held, steps=steps, states=states)
    return _plan(policy, cut, steps, settings.batch.size, memory)


def plan_online(
    policy: Policy,
    value: Policy | None,
    reference: Any,
    rewards: Sequence[LearnedReward],
    prompts: Sequence[PromptIds],
    settings: PPO | PolicyGradient | OnlineDPO | IterativeDPO,
    *,
    held: Sequence[Any],
    folder: Path,
    max_new_tokens: int,
    seed: int,
) -> Plan:
    """Of a method that samples; every response is taken to be as long as it may be.

    Args:
        rewards: the reward models that it asks; a pass of another classifier is not looked at.
    """
    freeze(policy.model, settings.freeze_blocks)
    models = [policy.model, reference] if value is None else [policy.model, reference, value.model]
    critic = Critic(policy, value) if isinstance(settings, PPO) else None
    updates = prompts_of_updates(prompts, settings, seed=seed)
    states = 0
    match settings:
        case IterativeDPO():
            pairs = [_answered(chosen, max_new_tokens, 2, together=True) for chosen in updates]
            steps, of_a_step = total_steps(len(updates[0]), settings), settings.batch.size
            cuts = [
                cut_offline(policy, some, settings, steps, seed=derive(seed, "training", number))
                for number, some in enumerate(pairs)
            ]
            cut = Cut(largest(policy, [one.largest for one in cuts]), cuts[0].accumulates)
            steps *= settings.rounds
            states = max(_stored(policy, some, settings.freeze_blocks, settings.trunk, folder) for some in pairs)
            responses, at_once = len(settings.ranking.temperatures), len(updates[0])
        case OnlineDPO():
            batch, dealt = settings.batch, dealt_pairs(settings)
            steps, of_a_step = settings.updates * dealt.steps_per_update, batch.mini
            pairs = [_answered(chosen, max_new_tokens, 2, together=True) for chosen in updates]
            cut = cut_online(policy, pairs, dealt, MicroBatches(batch.micro, batch.tokens, (policy.model,)), seed=seed)
            responses, at_once = len(settings.ranking.temperatures), batch.size
        case PPO() | PolicyGradient():
            steps, of_a_step = settings.updates * settings.steps_per_update, settings.batch.mini
            single = [_answered(chosen, max_new_tokens, settings.responses) for chosen in updates]
            micro_batches = MicroBatches(settings.batch.micro, settings.batch.tokens, tuple(models))
            cut = cut_online(policy, single, settings, micro_batches, seed=seed)
            responses, at_once = settings.responses, settings.batch.size
    rollouts = [_answered(chosen, max_new_tokens, responses) for chosen in updates]
    prompt_tokens = [len(prompt.ids) for prompt in prompts]
    rows = min(at_once, sampled_at_once(policy.model, max(prompt_tokens) + max_new_tokens))
    later = {"sampling": sampling_peak(policy.model, prompt_tokens, rows, max_new_tokens)}
    for reward in rewards:
        judged = largest(reward.model, [some for trees in rollouts for some in _parts(trees, reward.batch_size)])
        passed = peak_of(_scores(reward.model, gradients=False), [reward.model.model], judged)
        place = "the reward model's pass"
        later[place] = max(passed, later.get(place, passed), key=lambda peak: peak.total)
    if not isinstance(settings, IterativeDPO):
        states = max(_stored(policy, trees, settings.freeze_blocks, Trunk(), folder) for trees in rollouts)
        rolled = largest(policy, [part for trees in rollouts for part in _rolled_together(models, trees, settings)])
        later["scoring a rollout"] = peak_of(_rolled(policy, reference), [policy.model, reference], rolled)
        held_states = _sampled_states(policy, rollouts[0], max_new_tokens)
        later = {place: replace(peak, others=peak.others + held_states) for place, peak in later.items()}
    trained = [policy.model] if critic is None else [policy.model, critic.model]
    match settings:
        case PPO() | PolicyGradient():
            run = _surrogate(policy, critic, reference, settings)
        case OnlineDPO() | IterativeDPO():
            run = _logprobs(policy)
    with checkpointed(*(part.model for part in (policy, value) if part), on=settings.activation_checkpointing):
        later["training"] = peak_of(run, [*trained, reference], cut.largest, accumulates=cut.accumulates)
    optimizers = [kept_by_optimizer(policy.model, settings.optimizer, accumulates=cut.accumulates)]
    if critic is not None and isinstance(settings, PPO):
        optimizers.append(kept_by_optimizer(critic.model, settings.value_optimizer, accumulates=cut.accumulates))
    memory = _memory({}, later, optimizers, held, steps=steps, states=states)
    return _plan(policy, cut, steps, of_a_step, memory)


def cut_offline(policy: Policy, trees: Sequence[Tree], settings: Fit, steps: int, *, seed: int) -> Cut:
    """As `training/offline.py: fit` cuts them."""
    micro_batches, examples_of = micro_batches_of(policy, settings), indices_of(trees, settings, seed=seed)
    return _cut(policy, micro_batches, ([trees[i] for i in examples_of(step)] for step in range(steps)))


def cut_online(
    policy: Policy, rollouts: Sequence[Sequence[Tree]], dealt: Online, micro_batches: MicroBatches, *, seed: int
) -> Cut:
    """As the methods on rollouts cut them; `dealt` says into which mini-batches."""
    return _cut(
        policy,
        micro_batches,
        (
            [trees[i] for i in rows.tolist()]
            for update, trees in enumerate(rollouts)
            for _, rows in mini_batches(len(trees), dealt, update, seed=seed)
        ),
    )


def prompts_of_updates(
    prompts: Sequence[PromptIds], settings: PPO | PolicyGradient | OnlineDPO | IterativeDPO, *, seed: int
) -> list[list[PromptIds]]:
    """Which prompts are answered together: in each update, or in each round."""
    match settings:
        case IterativeDPO():
            size = len(prompts) // settings.rounds
            rounds = [batch_at(n, examples=len(prompts), batch_size=size, seed=seed) for n in range(settings.rounds)]
            return [[prompts[i] for i in chosen] for chosen in rounds]
        case OnlineDPO():
            groups = settings.batch.size
        case PPO() | PolicyGradient():
            groups = settings.batch.size // settings.responses
    own = derive(seed, "prompts")
    return [prompts_from(prompts, update * groups, groups, seed=own) for update in range(settings.updates)]


def largest(policy: Policy, batches: Iterable[list[Tree]]) -> list[Tree]:
    """The batch with most cells, in the layout that each takes."""
    ends = is_scorer(policy)
    return max(batches, key=lambda trees: reading(policy.model, trees, ends=ends).cells)


def scored_alone(trees: Sequence[Tree], settings: Fit, *, seed: int) -> tuple[list[Tree], bool]:
    """What is scored without gradients before the first step, and whether some of it is again in each step."""
    match settings:
        case Preference() if knows_reference(settings.loss):
            return list(trees), ranks_batch(settings.loss)
        case Unpaired() if isinstance(settings.loss, KTOLoss):
            return [*trees, *mismatched(trees, seed=derive(seed, "mismatch"))], True
        case Unpaired():
            return list(trees), False
        case _:
            return [], False


def _cut(policy: Policy, micro_batches: MicroBatches, steps: Iterable[Sequence[Tree]]) -> Cut:
    parts = [[[trees[i] for i in positions] for positions in micro_batches.of(trees)] for trees in steps]
    return Cut(largest(policy, [part for step in parts for part in step]), any(len(step) > 1 for step in parts))


def _parts(trees: Sequence[Tree], size: int) -> list[list[Tree]]:
    return [list(trees[begin : begin + size]) for begin in range(0, len(trees), size)]


def _stored(policy: Policy, trees: Sequence[Tree], blocks: int, trunk: Trunk, folder: Path) -> int:
    """Bytes of the file of frozen blocks' states; on a GPU they take none of its memory."""
    if policy.device.type != "cpu":
        return 0
    there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    return stored_bytes(policy.model, blocks, trees, trunk, there, ends=is_scorer(policy))


def _sampled_states(policy: Policy, trees: Sequence[Tree], max_new_tokens: int) -> int:
    """Bytes of the last hidden states that the sampler hands on, where they stand for a pass of the policy."""
    if in_bf16(policy.model):
        return 0
    responses = sum(len(tree.responses) for tree in trees)
    return int(responses * max_new_tokens * policy.model.config.hidden_size * policy.model.dtype.itemsize)


def _plan(policy: Policy, cut: Cut, steps: int, examples: int, memory: Memory) -> Plan:
    ends = is_scorer(policy)
    copied, shared = readings(cut.largest, ends=ends)
    return Plan(
        steps=steps,
        examples=examples,
        micro_batch=len(cut.largest),
        tree=reads_tree(policy.model, copied, shared),
        cells=(copied.cells, shared.cells),
        memory=memory,
    )


def _memory(
    first: Mapping[str, Peak],
    later: Mapping[str, Peak],
    optimizers: Sequence[Kept],
    held: Sequence[nn.Module],
    *,
    steps: int,
    states: int,
) -> Memory:
    """The largest of what comes before the first step, of what comes also after it, when the optimisers hold their
    moments, and of the optimisers' own step."""
    weights = held_bytes(held)
    process = process_bytes(held, max(peak.total for peak in (*first.values(), *later.values())))
    step = Peak(
        logits=0,
        others=max(kept.temporaries for kept in optimizers),
        gradients=sum(kept.gradients for kept in optimizers),
    )
    masters = sum(kept.masters for kept in optimizers)
    both = masters + sum(kept.moments for kept in optimizers)
    before = [(place, peak, 0) for place, peak in first.items()]
    after = [(place, peak, both if steps > 1 else masters) for place, peak in later.items()]
    found = [
        Memory(
            place=place,
            weights=weights,
            gradients=peak.gradients,
            optimizer=kept,
            logits=peak.logits,
            activations=peak.others,
            states=states,
            process=process,
        )
        for place, peak, kept in (*before, *after, ("the optimiser's step", step, both))
    ]
    return max(found, key=lambda one: one.total)


def _logprobs(policy: Policy) -> Pass:
    return lambda trees: response_logprobs(policy.model, pack(trees).to(policy.device)).sum()


def _scores(policy: Policy, *, gradients: bool = True) -> Pass:
    def run(trees: Sequence[Tree]) -> Tensor | None:
        with torch.set_grad_enabled(gradients):
            scores = response_scores(policy.model, pack(trees).to(policy.device)).sum()
        return scores if gradients else None

    return run


def _reference(policy: Policy) -> Pass:
    def run(trees: Sequence[Tree]) -> None:
        logprobs_of(policy.model, trees)

    return run


def _surrogate(policy: Policy, critic: Critic | None, reference: Any, settings: PPO | PolicyGradient) -> Pass:
    """What the surrogate and its penalty are made of, and values where there are any."""

    def of_policy(batch: Packed) -> tuple[Scored, Tensor | float]:
        if critic is not None and isinstance(settings, PPO):
            found, values = critic.scored_and_values(batch, settings, Cost())
            return found, values.sum()
        return scored(policy.model, batch, temperature=settings.temperature, logits=settings.needs_logits), 0.0

    def run(trees: Sequence[Tree]) -> Tensor:
        batch = pack(trees).to(policy.device)
        found, values = of_policy(batch)
        loss = found.logprobs.sum() + values
        if found.logits is not None and settings.kl_coefficient > 0:
            with torch.no_grad():
                of_reference = response_logits(reference, batch) / settings.temperature
            logits = found.logits / settings.temperature
            loss = loss + kl_in_loss("full", found.logprobs, found.logprobs.detach(), logits, of_reference).sum()
        return loss

    return run


def _rolled_together(models: Sequence[Any], trees: list[Tree], settings: Any) -> list[list[Tree]]:
    """As `training/rollout.py: roll_out` cuts a rollout."""
    cut = scored_together(models[:2], trees, settings.batch.micro, settings.batch.tokens)
    return [[trees[i] for i in rows] for rows in cut]


def _rolled(policy: Policy, reference: Any) -> Pass:
    @torch.no_grad()
    def run(trees: Sequence[Tree]) -> None:
        rows = [(tree, response) for tree in trees for response in tree.responses]
        logprobs = response_logprobs(policy.model, pack(trees).to(policy.device)).cpu()
        responses = [
            Response(tree.origin, tree.prompt, tokens, tuple(row[: len(tokens)].tolist()), ended=True)
            for (tree, tokens), row in zip(rows, logprobs, strict=True)
        ]
        roll_out(policy, reference, responses, [0.0] * len(rows), temperature=1.0, batch_size=len(rows))

    return run


def _answered(prompts: Sequence[PromptIds], length: int, responses: int, *, together: bool = False) -> list[Tree]:
    """A rollout with responses as long as may be: a tree each, or one tree for all those to a prompt."""
    answers = [(number,) * length for number in range(responses)]
    if together:
        return [Tree(prompt.key, prompt.ids, tuple(answers)) for prompt in prompts]
    return [Tree(prompt.key, prompt.ids, (answer,)) for prompt in prompts for answer in answers]
