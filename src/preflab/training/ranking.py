"""From a policy's own responses to pairs: the best against the worst by a reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from preflab.config.online_preference import Ranking
from preflab.data.encode import Encoder, Tree
from preflab.errors import DataError
from preflab.live import Phases, Sample, live
from preflab.models.load import Policy
from preflab.rewards.protocol import Reward, assess
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sample
from preflab.rollouts.stop import Stop
from preflab.runs import JSON
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
    rows: tuple[int, int]
    """Where the two stand among all the responses that were ranked."""

    def texts(self, encoder: Encoder) -> dict[str, JSON]:
        """What a file of pairs says of it, beside the prompt."""
        return {
            "chosen": encoder.decode(self.chosen.tokens),
            "rejected": encoder.decode(self.rejected.tokens),
            "chosen_reward": self.chosen_reward,
            "rejected_reward": self.rejected_reward,
        }


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


def rank(responses: Sequence[Response], rewards: Sequence[float], *, group: int, smallest_gap: float) -> list[Ranked]:
    """The pair of each group of responses to one prompt, which stand together; of a group that makes none, none."""
    found = []
    for begin in range(0, len(responses), group):
        some = slice(begin, begin + group)
        pair = best_against_worst(responses[some], rewards[some], smallest_gap=smallest_gap)
        if pair is not None:
            best, worst = begin + pair[0], begin + pair[1]
            chosen, rejected = responses[best], responses[worst]
            tree = Tree(chosen.key, chosen.prompt, (chosen.tokens, rejected.tokens))
            found.append(Ranked(tree, chosen, rejected, rewards[best], rewards[worst], (best, worst)))
    return found


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
    stop: Stop | None = None,
    title: str = "responses",
) -> list[Ranked]:
    """One pair a prompt, or none, of responses sampled at each temperature of `ranking`; adds to `cost`.

    Args:
        stop: texts that end a response. It is rewarded and paired without them, the end token in their place.
    """
    phases = Phases()
    groups: list[list[Response]] = [[] for _ in prompts]
    with Stopwatch(cost), live(title, len(ranking.temperatures), phases=phases) as show:
        phases.begin()
        phases.enter("sample")
        for number, temperature in enumerate(ranking.temperatures):
            sampled = sample(
                policy.model,
                [prompt.ids for prompt in prompts],
                keys=[prompt.key for prompt in prompts],
                end_id=encoder.end_id,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                warp=ranking,
                stop=stop,
                seed=derive(seed, "ranking", number),
            )
            for group, response in zip(groups, sampled, strict=True):
                group.append(response)
            first, note = sampled[0], f"at temperature {temperature:g}"
            seen = Sample(encoder.decode(first.prompt), encoder.decode(first.tokens), note)
            show(number + 1, {"response_tokens": _mean_tokens(sampled)}, [seen])
        phases.enter("reward")
        asked = [prompt for prompt in prompts for _ in ranking.temperatures]
        sampled = [response for group in groups for response in group]
        responses = sampled if stop is None else [_without(stop, encoder, response) for response in sampled]
        scores = assess(reward, answers(encoder, asked, responses))
        phases.leave("")
        figures = phases.figures(sum(len(response.tokens) for response in sampled))
        show(len(ranking.temperatures), figures | {"reward": sum(scores.totals) / len(scores.totals)})
    pay(cost, policy, sampled, scores, calls=len(ranking.temperatures), gold=gold)
    rewards = [
        value - missing_end_penalty * (not response.ended)
        for value, response in zip(scores.totals, responses, strict=True)
    ]
    found = rank(responses, rewards, group=len(ranking.temperatures), smallest_gap=ranking.smallest_gap)
    if not found:
        raise DataError(
            f"no prompt gave a pair: all rewards lie within ranking.smallest_gap = {ranking.smallest_gap}; lower it, "
            "or raise ranking.temperatures"
        )
    return found


def _without(stop: Stop, encoder: Encoder, response: Response) -> Response:
    """A response without the text that ended it: as a policy that needs no such text would have written it."""
    text = encoder.decode(response.tokens)
    cut = stop.cut(text)
    if cut == text:
        return response
    # What the policy's log-probabilities are of these tokens, nobody has asked.
    return replace(response, tokens=(*encoder.continuation(cut), encoder.end_id), logprobs=())


def _mean_tokens(responses: Sequence[Response]) -> float:
    return sum(len(response.tokens) for response in responses) / len(responses)
