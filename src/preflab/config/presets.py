"""Starting values of `compare` by task: below YAML files and flags."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeVar, assert_never

from preflab.config.arms import LABELS
from preflab.config.commands import Base, Compare, Lengths, Pairs, Prompts
from preflab.config.online import PPO, Online, RolloutBatch
from preflab.config.online_preference import IterativeDPO, OnlineDPO, PairBatch
from preflab.config.training import SFT, Batch, Fit, Optimizer, Reward

AnyFit = TypeVar("AnyFit", bound=Fit)
Method = Fit | Online | OnlineDPO
"""What an arm is told."""


def preset(task: str, *, data: bool = False, model: bool = False, quick: bool = False) -> Compare:
    """The defaults for a task.

    Args:
        task: "reviews" or "dialogue".
        data: real data stand in for the generated reviews.
        model: a given model stands in for the small base; the learning rates are then those of fine-tuning.
        quick: fewer steps and prompts.
    """
    config = _dialogue() if task == "dialogue" else _real_reviews() if data else _reviews()
    if quick:
        config = _quick(config)
    return _gentle(config) if model else config


def _adamw(rate: float, *, warmup_steps: int = 10, linear: bool = False) -> Optimizer:
    return Optimizer(learning_rate=rate, warmup_steps=warmup_steps, decay="linear" if linear else "constant")


def _each(config: Compare, change: Callable[[Method], Method]) -> Compare:
    """The same change to the settings of every method that can be an arm."""
    names = [method.replace("-", "_") for method in LABELS]
    changes: dict[str, Any] = {name: change(getattr(config, name)) for name in names}
    return replace(config, **changes)


def _reviews() -> Compare:
    config = Compare(
        task="reviews",
        lengths=Lengths(prompt_tokens=16, response_tokens=48),
        reference=SFT(epochs=1, batch=Batch(size=128, micro=64), evaluations=1, optimizer=_adamw(1.2e-3, linear=True)),
        reward=Reward(epochs=1.5, batch=Batch(size=16, micro=16), evaluations=1, optimizer=_adamw(1e-3, linear=True)),
    )
    return _each(config, _small_scale)


def _small_scale(settings: Method) -> Method:
    """Rates and batches for the small base: the same ones for all methods of a kind, so that a study compares these."""
    match settings:
        case IterativeDPO():
            # Rounds are short: small batches and a short warm-up, or there would be no steps to speak of.
            batch = Batch(size=32, micro=32)
            return replace(settings, batch=batch, evaluations=2, optimizer=_adamw(2e-4, warmup_steps=3))
        case SFT():
            return replace(settings, batch=Batch(size=64, micro=64), evaluations=5, optimizer=_adamw(3e-4))
        case Fit():
            return replace(settings, batch=Batch(size=64, micro=64), evaluations=5, optimizer=_adamw(2e-4))
        case OnlineDPO():
            # As many responses and optimiser steps as the other methods that sample.
            sized = replace(settings, batch=PairBatch(size=32, mini=16, micro=16), epochs=2)
            return replace(sized, updates=24, evaluations=5, optimizer=_adamw(2e-4))
        case Online():
            shared_online = replace(
                settings,
                updates=24,
                batch=RolloutBatch(size=128, mini=64, micro=64),
                epochs=2,
                evaluations=5,
                optimizer=_adamw(2e-4),
            )
            if isinstance(shared_online, PPO):
                return replace(shared_online, value_optimizer=_adamw(5e-4))
            return shared_online
        case never:
            assert_never(never)


def _real_reviews() -> Compare:
    config = _reviews()
    return replace(
        config,
        base=_real_base(epochs=2, vocabulary=4096),
        pairs=Pairs(responses=4, per_prompt=2),
    )


def _real_base(*, epochs: float, vocabulary: int) -> Base:
    """Real texts are few, so they are read several times; their words are many."""
    return Base(vocabulary=vocabulary, epochs=epochs, optimizer=_adamw(2e-3, warmup_steps=50, linear=True))


def _dialogue() -> Compare:
    config = _reviews()
    small = replace(
        config,
        task="dialogue",
        arms=("reference", "sft", "dpo", "ppo"),
        lengths=Lengths(prompt_tokens=160, response_tokens=64),
        base=_real_base(epochs=4, vocabulary=2048),
        prompts=Prompts(train=1000, validation=128, test=256),
        # Pairs are few here: small batches, or there would be no steps to speak of.
        reference=replace(config.reference, batch=Batch(size=16, micro=16), optimizer=_adamw(5e-4, linear=True)),
    )
    return _each(small, _few_pairs)


def _few_pairs(settings: Method) -> Method:
    if not isinstance(settings, Fit):
        return settings
    small = replace(settings, batch=Batch(size=16, micro=16))
    return small if isinstance(settings, SFT | IterativeDPO) else replace(small, epochs=2)


def _quick(config: Compare) -> Compare:
    bounded = replace(
        config,
        base=replace(config.base, epochs=config.base.epochs / 2),
        reference=replace(config.reference, epochs=config.reference.epochs / 2),
        prompts=Prompts(train=min(config.prompts.train, 1000), validation=64, test=128),
        quick=True,
    )
    return _each(bounded, _fewer_steps)


def _fewer_steps(settings: Method) -> Method:
    match settings:
        case IterativeDPO():
            return settings
        case Fit():
            return replace(settings, epochs=1, evaluations=4)
        case OnlineDPO() | Online():
            return replace(settings, updates=16, evaluations=4)
        case never:
            assert_never(never)


def _gentle(config: Compare) -> Compare:
    """Rates for a model that can already write, and micro-batches for one with a large vocabulary."""
    shared = replace(config, reference=_small(config.reference, 2e-5), reward=_small(config.reward, 2e-5))
    return _each(shared, _fine_tuning)


def _fine_tuning(settings: Method) -> Method:
    match settings:
        case SFT():
            return _small(settings, 1e-5)
        case Fit():
            return _small(settings, 5e-6)
        case OnlineDPO():
            small = replace(settings, batch=PairBatch(size=16, mini=16, micro=8))
            return replace(small, optimizer=replace(settings.optimizer, learning_rate=5e-6))
        case Online():
            gentle = replace(
                settings,
                batch=RolloutBatch(size=64, mini=32, micro=8),
                optimizer=replace(settings.optimizer, learning_rate=5e-6),
            )
            if isinstance(gentle, PPO):
                return replace(gentle, value_optimizer=replace(gentle.value_optimizer, learning_rate=2e-5))
            return gentle
        case never:
            assert_never(never)


def _small(fit: AnyFit, rate: float) -> AnyFit:
    return replace(fit, batch=Batch(size=32, micro=8), optimizer=replace(fit.optimizer, learning_rate=rate))
