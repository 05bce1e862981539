"""From the terms of a configuration to a reward."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import assert_never

from preflab.config.rewards import (
    ClassifierTerm,
    FittedTerm,
    FunctionTerm,
    ModelTerm,
    RegexTerm,
    RewardTerm,
    VerifierTerm,
    reward_terms,
)
from preflab.config.training import Precision
from preflab.data.records import Prompt
from preflab.data.sources import read_ratings
from preflab.errors import DataError
from preflab.models.load import Policy, load_classifier, load_reward_model
from preflab.rewards.cache import CachedReward
from preflab.rewards.classifier import ClassifierReward, FittedReward, label_index
from preflab.rewards.function import FunctionReward, load_function
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Reward
from preflab.rewards.rules import PatternReward, Verifier, is_verifiable
from preflab.rewards.sum import RewardSum, Weighted


def columns_read(reward: str | tuple[RewardTerm, ...] | None) -> Collection[str] | None:
    """Which columns of the prompts' file a reward sees; None: all of them, as a function may ask for any."""
    terms = reward_terms(reward) if reward is not None else ()
    if any(isinstance(term, FunctionTerm) for term in terms):
        return None
    return tuple(dict.fromkeys(term.column for term in terms if isinstance(term, VerifierTerm)))


def load_reward(
    reward: str | tuple[RewardTerm, ...],
    policy: Policy,
    prompts: Sequence[Prompt],
    *,
    precision: Precision = "fp32",
    trust_remote_code: bool = False,
    cache: int = 0,
) -> Reward:
    """The reward that a configuration describes: its one term, or the weighted sum of its terms.

    Args:
        policy: whose responses are rewarded; models are put on its device.
        prompts: what it responds to, with the columns that `columns_read` asks for.
        cache: how many answers a term that runs no transformer remembers; 0: none. A transformer's scores keep the last
            bits of their batch, so it remembers within a batch alone, and a run that goes on ends at the same weights.

    Raises:
        ConfigError: a term can't be read, or what it names is not there or not of its kind.
        DataError: labelled texts can't be learnt from, or a prompt has no answer to verify.
    """

    def model(term: ModelTerm) -> LearnedReward:
        loaded = load_reward_model(
            term.model, device=policy.device, precision=precision, trust_remote_code=trust_remote_code
        )
        return LearnedReward(loaded, policy.tokenizer)

    def classifier(term: ClassifierTerm) -> ClassifierReward:
        loaded = load_classifier(
            term.model, device=policy.device, precision=precision, trust_remote_code=trust_remote_code
        )
        label = label_index(loaded.model, term.label, term.model)
        return ClassifierReward(loaded, label, str(term.name), term.output, term.reads, term.batch_size)

    def load(term: RewardTerm) -> Reward:
        match term:
            case ModelTerm():
                return model(term)
            case FunctionTerm():
                columns = tuple(dict.fromkeys(name for prompt in prompts for name in prompt.fields))
                where, _, function = term.function.rpartition(":")
                name = f"{Path(where).name}:{function}"
                return FunctionReward(load_function(term.function), name, columns, term.batch_size)
            case ClassifierTerm():
                return classifier(term)
            case FittedTerm():
                rows = read_ratings(term.data).rows
                return FittedReward.fit(rows, str(term.data), output=term.output, reads=term.reads)
            case RegexTerm():
                return PatternReward(str(term.name), term.pattern, term.whole, term.match, term.other)
            case VerifierTerm():
                _check_answers(prompts, term.column)
                return Verifier(str(term.name), term.column, term.extract, term.match, term.other)
            case never:
                assert_never(never)

    def remembered(term: RewardTerm) -> Reward:
        found = load(term)
        if cache == 0:
            return found
        return CachedReward(found, capacity=0 if isinstance(term, ModelTerm | ClassifierTerm) else cache)

    terms = reward_terms(reward)
    if len(terms) == 1 and terms[0].weight == 1:
        return remembered(terms[0])
    return RewardSum(tuple(Weighted(str(term.name), term.weight, remembered(term)) for term in terms))


def single_rewards(reward: Reward) -> list[Reward]:
    """The terms of a reward, without what wraps them."""
    match reward:
        case RewardSum():
            return [one for term in reward.terms for one in single_rewards(term.reward)]
        case CachedReward():
            return single_rewards(reward.reward)
        case _:
            return [reward]


def learned_rewards(reward: Reward) -> list[LearnedReward]:
    """The reward models among its terms."""
    return [one for one in single_rewards(reward) if isinstance(one, LearnedReward)]


def models_of(reward: Reward) -> list[Policy]:
    """Every transformer that it runs."""
    classifiers = [one.classifier for one in single_rewards(reward) if isinstance(one, ClassifierReward)]
    return [one.model for one in learned_rewards(reward)] + classifiers


def _check_answers(prompts: Sequence[Prompt], column: str) -> None:
    for prompt in prompts:
        value = prompt.fields.get(column)
        if not is_verifiable(value):
            raise DataError(f'{prompt.origin}: "{column}" must be text or a number, to be verified against')
        if isinstance(value, str) and not value.strip():
            raise DataError(f'{prompt.origin}: "{column}" is empty: no response could be right')
