"""What a run will do, and the memory that it will take: the passes of each method, as `training/memory.py` looks at
them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from preflab.config.online import PPO, Online
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.preference import Preference
from preflab.config.training import Fit
from preflab.data.encode import Tree
from preflab.data.pack import cells, pack
from preflab.losses import token_logprobs
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.scoring import (
    logprobs_of,
    response_logits,
    response_logits_and_states,
    response_logprobs,
    response_scores,
    response_values,
    shares_prompts,
)
from preflab.rewards.learned import LearnedReward
from preflab.rollouts.sampler import Response
from preflab.seeds import derive
from preflab.training.memory import Kept, Peak, held_bytes, kept_by_optimizer, peak_of, process_bytes, sampling_peak
from preflab.training.offline import total_steps
from preflab.training.order import batch_at
from preflab.training.preference import knows_reference
from preflab.training.rollout import PromptIds, roll_out

SAMPLED_AT_ONCE = 256
"""`rollouts/sampler.py: sample` answers so many rows at once."""
SCORED_AT_ONCE = 16
"""`models/scoring.py: logprobs_of` scores so many trees at once."""

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
    process: int
    """Python, libraries, the data."""

    @property
    def total(self) -> int:
        """Their sum."""
        return self.weights + self.gradients + self.optimizer + self.logits + self.activations + self.process


@dataclass(frozen=True)
class Plan:
    """What a run will do."""

    steps: int
    """Optimiser steps."""
    examples: int
    """In one of them."""
    micro_batch: int
    """At once."""
    tree: bool
    """Whether the largest micro-batch is laid out with each prompt once."""
    cells: tuple[int, int]
    """Of that micro-batch: a copy of the prompt before each response and padding; each prompt once."""
    memory: Memory


def plan_offline(policy: Policy, trees: Sequence[Tree], settings: Fit, *, held: Sequence[Any], seed: int) -> Plan:
    """Of a method on a fixed data set.

    Args:
        policy: what is trained; its weights stay as they are, those that the settings freeze are frozen.
        held: the models that lie in memory during the run, the trained one too.
    """
    freeze(policy.model, settings.freeze_blocks)
    steps = total_steps(len(trees), settings)
    largest = largest_micro_batch(trees, settings, steps, seed=seed)
    first: dict[str, Peak] = {}
    if isinstance(settings, Preference) and knows_reference(settings.loss):
        some = sorted(trees, key=_tokens)[-SCORED_AT_ONCE:]
        first["the reference's pass"] = peak_of(_reference(policy), [policy.model], some)
    run = _scores(policy) if policy.model.get_output_embeddings() is None else _logprobs(policy)
    accumulates = settings.micro_batch_size < settings.batch_size
    with checkpointed(policy.model, on=settings.activation_checkpointing):
        later = {"training": peak_of(run, [policy.model], largest, accumulates=accumulates)}
    optimizers = [kept_by_optimizer(policy.model, settings.optimizer)]
    memory = _memory(first, later, optimizers, held, steps=steps)
    return _plan(policy, largest, steps, settings.batch_size, settings.micro_batch_size, memory)


def plan_online(
    policy: Policy,
    value: Policy | None,
    reference: Any,
    reward: LearnedReward,
    prompts: Sequence[PromptIds],
    settings: Online | OnlineDPO | IterativeDPO,
    *,
    held: Sequence[Any],
    max_new_tokens: int,
    seed: int,
) -> Plan:
    """Of a method that samples; every response is taken to be as long as it may be."""
    freeze(policy.model, settings.freeze_blocks)
    longest = sorted(prompts, key=lambda prompt: -len(prompt.ids))
    match settings:
        case IterativeDPO():
            pairs = len(prompts) // settings.rounds
            steps, of_a_step = settings.rounds * total_steps(pairs, settings), settings.batch_size
            sampled, responses, rolls = pairs, 2, False
        case OnlineDPO():
            steps = settings.updates * settings.epochs * (settings.batch_size // settings.mini_batch_size)
            of_a_step, sampled, responses, rolls = settings.mini_batch_size, settings.batch_size, 2, True
        case Online():
            steps, of_a_step = settings.updates * settings.steps_per_update, settings.mini_batch_size
            sampled, responses, rolls = settings.batch_size, settings.responses, True
    micro = min(settings.micro_batch_size, of_a_step)
    trees = _rollout(longest, sampled, responses, max_new_tokens, seed=seed)
    # Rows of a mini-batch are shuffled: a micro-batch holds some of the responses to each prompt. Pairs stay together.
    largest = trees[:micro] if isinstance(settings, Online) else _pairs(longest, micro, max_new_tokens)
    trained = [policy.model, value.model] if value else [policy.model]
    optimizers = [kept_by_optimizer(policy.model, settings.optimizer)]
    if value is not None and isinstance(settings, PPO):
        optimizers.append(kept_by_optimizer(value.model, settings.value_optimizer))
    lengths = [len(prompt.ids) for prompt in prompts]
    later = {
        "sampling": sampling_peak(policy.model, lengths, min(sampled, SAMPLED_AT_ONCE), max_new_tokens),
        "the reward model's pass": peak_of(
            _scores(reward.model, gradients=False), [reward.model.model], trees[: reward.batch_size]
        ),
    }
    if rolls:
        later["scoring a rollout"] = peak_of(_rolled(policy, reference), [policy.model], trees[:micro])
    run = _surrogate(policy, value, settings) if isinstance(settings, Online) else _logprobs(policy)
    with checkpointed(*trained, on=settings.activation_checkpointing):
        later["training"] = peak_of(run, trained, largest, accumulates=micro < of_a_step)
    memory = _memory({}, later, optimizers, held, steps=steps)
    return _plan(policy, largest, steps, of_a_step, micro, memory)


def largest_micro_batch(trees: Sequence[Tree], settings: Fit, steps: int, *, seed: int) -> list[Tree]:
    """The one with most tokens, padding included, of those that the run will take."""
    data = derive(seed, "data")
    found: list[Tree] = []
    for step in range(steps):
        indices = batch_at(step, examples=len(trees), batch_size=settings.batch_size, seed=data)
        for begin in range(0, len(indices), settings.micro_batch_size):
            some = [trees[i] for i in indices[begin : begin + settings.micro_batch_size]]
            found = max(found, some, key=lambda some: sum(map(_tokens, some)))
    return found


def _tokens(tree: Tree) -> int:
    return len(tree.prompt) + sum(map(len, tree.responses))


def _plan(policy: Policy, largest: Sequence[Tree], steps: int, examples: int, micro: int, memory: Memory) -> Plan:
    batch = pack(largest)
    return Plan(
        steps=steps,
        examples=examples,
        micro_batch=min(micro, examples),
        tree=shares_prompts(policy.model.base_model, batch),
        cells=cells(batch),
        memory=memory,
    )


def _memory(
    first: Mapping[str, Peak],
    later: Mapping[str, Peak],
    optimizers: Sequence[Kept],
    held: Sequence[nn.Module],
    *,
    steps: int,
) -> Memory:
    """The largest of what comes before the first step, of what comes also after it, when the optimisers hold their
    state, and of the optimisers' own step."""
    weights = held_bytes(held)
    process = process_bytes(held, max(peak.total for peak in (*first.values(), *later.values())))
    step = Peak(
        logits=0,
        others=max(kept.temporaries for kept in optimizers),
        gradients=sum(kept.gradients for kept in optimizers),
    )
    state = sum(kept.state for kept in optimizers)
    before = [(place, peak, 0) for place, peak in first.items()]
    after = [(place, peak, state if steps > 1 else 0) for place, peak in later.items()]
    found = [
        Memory(
            place=place,
            weights=weights,
            gradients=peak.gradients,
            optimizer=kept,
            logits=peak.logits,
            activations=peak.others,
            process=process,
        )
        for place, peak, kept in (*before, *after, ("the optimiser's step", step, state))
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


def _surrogate(policy: Policy, value: Policy | None, settings: Online) -> Pass:
    """Log-probabilities by the logits of all response tokens; values by a model of their own, or from the states."""
    shared = isinstance(settings, PPO) and value is None

    def run(trees: Sequence[Tree]) -> Tensor:
        batch = pack(trees).to(policy.device)
        if shared:
            logits, states = response_logits_and_states(policy.model, batch)
            return token_logprobs(logits, batch.response_ids).sum() + states.sum()
        logprobs = token_logprobs(response_logits(policy.model, batch), batch.response_ids).sum()
        return logprobs if value is None else logprobs + response_values(value.model, batch).sum()

    return run


def _rolled(policy: Policy, reference: Any) -> Pass:
    @torch.no_grad()
    def run(trees: Sequence[Tree]) -> None:
        batch = pack(trees).to(policy.device)
        rows = [(tree, response) for tree in trees for response in tree.responses]
        logprobs = response_logprobs(policy.model, batch).cpu()
        responses = [
            Response(tree.origin, tree.prompt, tokens, tuple(row[: len(tokens)].tolist()), ended=True)
            for (tree, tokens), row in zip(rows, logprobs, strict=True)
        ]
        roll_out(policy, reference, responses, [0.0] * len(rows), temperature=1.0, batch_size=len(rows))

    return run


def _rollout(prompts: Sequence[PromptIds], rows: int, responses: int, length: int, *, seed: int) -> list[Tree]:
    """A rollout on the longest prompts, a tree a response, shuffled as mini-batches are."""
    groups = [prompts[i % len(prompts)] for i in range(max(1, rows // responses))]
    trees = [Tree(prompt.key, prompt.ids, (_answer(length, k),)) for prompt in groups for k in range(responses)]
    generator = torch.Generator().manual_seed(derive(seed, "plan"))
    return [trees[i] for i in torch.randperm(len(trees), generator=generator).tolist()]


def _pairs(prompts: Sequence[PromptIds], count: int, length: int) -> list[Tree]:
    return [Tree(prompt.key, prompt.ids, (_answer(length, 0), _answer(length, 1))) for prompt in prompts[:count]]


def _answer(length: int, first: int) -> tuple[int, ...]:
    return (first,) * length
