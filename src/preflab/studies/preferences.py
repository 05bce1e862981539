"""Preference pairs from a policy and a gold reward: sample K responses a prompt, label pairs by Bradley–Terry."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

from preflab.config.commands import Pairs
from preflab.data.encode import Encoder
from preflab.data.records import PreferencePair
from preflab.models.load import Policy
from preflab.rewards.protocol import Answer, Reward, score
from preflab.rollouts.sampler import sample
from preflab.seeds import derive
from preflab.training.rollout import PromptIds, answers


@dataclass(frozen=True)
class Labelled:
    """Pairs and what is known of their labels."""

    pairs: tuple[PreferencePair, ...]
    ceiling: tuple[float, ...]
    """max(p, 1 − p) of each pair, p = σ(gold difference): the accuracy of a judge that knows gold (Bayes)."""
    agrees: tuple[float, ...]
    """1 where the label agrees with gold."""
    answers: tuple[Answer, ...]
    """All the responses that were sampled."""


def sample_pairs(
    policy: Policy,
    encoder: Encoder,
    prompts: Sequence[PromptIds],
    gold: Reward,
    settings: Pairs,
    *,
    max_new_tokens: int,
    seed: int,
) -> Labelled:
    """Up to `settings.per_prompt` pairs a prompt; the label is 1 with probability σ(gold_i − gold_j).

    Pairs of equal texts are passed over, they say nothing; so are empty responses.
    """
    responses = sample(
        policy.model,
        [prompt.ids for prompt in prompts],
        keys=[prompt.key for prompt in prompts],
        end_id=encoder.end_id,
        max_new_tokens=max_new_tokens,
        temperature=settings.temperature,
        samples=settings.responses,
        seed=derive(seed, "pairs"),
    )
    repeated = [prompt for prompt in prompts for _ in range(settings.responses)]
    all_answers = answers(encoder, repeated, responses)
    golds = score(gold, all_answers)
    rng = random.Random(derive(seed, "labels"))
    pairs: list[PreferencePair] = []
    ceiling: list[float] = []
    agrees: list[float] = []
    for number, prompt in enumerate(prompts):
        group = range(number * settings.responses, (number + 1) * settings.responses)
        said = [i for i in group if all_answers[i].response.strip()]
        candidates = [
            (i, j) for i, j in itertools.combinations(said, 2) if all_answers[i].response != all_answers[j].response
        ]
        for i, j in rng.sample(candidates, min(settings.per_prompt, len(candidates))):
            probability = 0.5 + 0.5 * math.tanh((golds[i] - golds[j]) / 2)  # σ, for any scale
            first_wins = rng.random() < probability
            chosen, rejected = (i, j) if first_wins else (j, i)
            pairs.append(
                PreferencePair(
                    prompt.text,
                    all_answers[chosen].response,
                    all_answers[rejected].response,
                    f"sampled:{prompt.key}",
                )
            )
            ceiling.append(max(probability, 1 - probability))
            agrees.append(0.5 if golds[i] == golds[j] else float(golds[chosen] > golds[rejected]))
    return Labelled(tuple(pairs), tuple(ceiling), tuple(agrees), tuple(all_answers))
