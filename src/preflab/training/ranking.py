"""From a policy's own responses to pairs: the best against the worst by a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preflab.config.online_preference import Ranking
from preflab.data.encode import Encoder, Tree
from preflab.errors import DataError
from preflab.models.load import Policy, working_weights
from preflab.rewards.protocol import Reward, score
from preflab.rollouts.sampler import Response, sample
from preflab.seeds import derive
from preflab.training.cost import Cost, Stopwatch
from preflab.training.rollout import PromptIds, answers, pay


@dataclass(frozen=True)
class Ranked:
    """The best and the worst response to a prompt."""

    tree: Tree
    """The pair, chosen first."""
    chosen: Response
    rejected: Response
    chosen_reward: float
    rejected_reward: float


def best_against_worst(
    responses: Sequence[Response], rewards: Sequence[float], *, smallest_gap: float
) -> tuple[int, int] | None:
    """Which of the responses to one prompt make a pair: (best, worst); None where their rewards hardly differ.

    Of equals the first one is taken. Two responses of the same tokens make no pair, whatever their rewards.
    """
    best = max(range(len(rewards)), key=lambda i: (rewards[i], -i))
    worst = min(range(len(rewards)), key=lambda i: (rewards[i], i))
    if rewards[best] - rewards[worst] <= smallest_gap or responses[best].tokens == responses[worst].tokens:
        return None
    return best, worst


def rank_responses(
    policy: Policy,
    encoder: Encoder,
    reward: Reward,
    prompts: Sequence[PromptIds],
    ranking: Ranking,
    *,
    missing_end_penalty: float,
    max_new_tokens: int,
    seed: int,
    cost: Cost,
    gold: bool = False,
) -> list[Ranked]:
    """One pair a prompt, or none, of responses sampled at each temperature of `ranking`; adds to `cost`."""
    groups: list[list[Response]] = [[] for _ in prompts]
    with Stopwatch(cost):
        for number, temperature in enumerate(ranking.temperatures):
            sampled = sample(
                policy.model,
                [prompt.ids for prompt in prompts],
                keys=[prompt.key for prompt in prompts],
                end_id=encoder.end_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seed=derive(seed, "ranking", number),
            )
            for group, response in zip(groups, sampled, strict=True):
                group.append(response)
        asked = [prompt for prompt in prompts for _ in ranking.temperatures]
        responses = [response for group in groups for response in group]
        scores = score(reward, answers(encoder, asked, responses))
    pay(cost, responses, weights=working_weights(policy.model), gold=gold)
    found = []
    for place, group in enumerate(groups):
        begin = place * len(ranking.temperatures)
        rewards = [
            value - missing_end_penalty * (not response.ended)
            for value, response in zip(scores[begin : begin + len(group)], group, strict=True)
        ]
        pair = best_against_worst(group, rewards, smallest_gap=ranking.smallest_gap)
        if pair is not None:
            best, worst = pair
            tree = Tree(prompts[place].key, group[best].prompt, (group[best].tokens, group[worst].tokens))
            found.append(Ranked(tree, group[best], group[worst], rewards[best], rewards[worst]))
    if not found:
        raise DataError(
            f"no prompt gave a pair: all rewards lie within ranking.smallest_gap = {ranking.smallest_gap}; lower it, "
            "or raise ranking.temperatures"
        )
    return found
