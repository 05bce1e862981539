"""Starting values of `compare` by task: below YAML files and flags."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from preflab.config.commands import Base, Compare, Lengths, Pairs, Prompts
from preflab.config.methods import DPO, PPO, SFT, DPOLoss, Fit, Optimizer, Reward

AnyFit = TypeVar("AnyFit", bound=Fit)


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


def _reviews() -> Compare:
    return Compare(
        task="reviews",
        lengths=Lengths(prompt_tokens=16, response_tokens=48),
        reference=SFT(
            epochs=1, batch_size=128, micro_batch_size=64, evaluations=1, optimizer=_adamw(1.2e-3, linear=True)
        ),
        reward=Reward(
            epochs=1.5, batch_size=16, micro_batch_size=16, evaluations=1, optimizer=_adamw(1e-3, linear=True)
        ),
        sft=SFT(epochs=1, batch_size=64, micro_batch_size=64, evaluations=5, optimizer=_adamw(3e-4)),
        dpo=DPO(
            epochs=1,
            batch_size=64,
            micro_batch_size=64,
            evaluations=5,
            loss=DPOLoss(beta=0.1),
            optimizer=_adamw(2e-4),
        ),
        ppo=PPO(
            updates=24,
            batch_size=128,
            mini_batch_size=64,
            micro_batch_size=64,
            epochs=2,
            evaluations=5,
            kl_coefficient=0.1,
            optimizer=_adamw(2e-4),
            value_optimizer=_adamw(5e-4),
        ),
    )


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
    return replace(
        config,
        task="dialogue",
        arms=("reference", "sft", "dpo", "ppo"),
        lengths=Lengths(prompt_tokens=160, response_tokens=64),
        base=_real_base(epochs=4, vocabulary=2048),
        prompts=Prompts(train=1000, validation=128, test=256),
        # Pairs are few here: small batches, or there would be no steps to speak of.
        reference=replace(config.reference, batch_size=16, micro_batch_size=16, optimizer=_adamw(5e-4, linear=True)),
        sft=replace(config.sft, batch_size=16, micro_batch_size=16),
        dpo=replace(config.dpo, batch_size=16, micro_batch_size=16, epochs=2),
    )


def _quick(config: Compare) -> Compare:
    return replace(
        config,
        base=replace(config.base, epochs=config.base.epochs / 2),
        reference=replace(config.reference, epochs=config.reference.epochs / 2),
        prompts=Prompts(train=min(config.prompts.train, 1000), validation=64, test=128),
        ppo=replace(config.ppo, updates=16, evaluations=4),
        sft=replace(config.sft, epochs=1, evaluations=4),
        dpo=replace(config.dpo, epochs=1, evaluations=4),
        quick=True,
    )


def _gentle(config: Compare) -> Compare:
    """Rates for a model that can already write, and micro-batches for one with a large vocabulary."""
    return replace(
        config,
        reference=_small(config.reference, 2e-5),
        reward=_small(config.reward, 2e-5),
        sft=_small(config.sft, 1e-5),
        dpo=_small(config.dpo, 5e-6),
        ppo=replace(
            config.ppo,
            batch_size=64,
            mini_batch_size=32,
            micro_batch_size=8,
            optimizer=replace(config.ppo.optimizer, learning_rate=5e-6),
            value_optimizer=replace(config.ppo.value_optimizer, learning_rate=2e-5),
        ),
    )


def _small(fit: AnyFit, rate: float) -> AnyFit:
    return replace(fit, batch_size=32, micro_batch_size=8, optimizer=replace(fit.optimizer, learning_rate=rate))
