"""A reward that is asked once for each distinct response."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Hashable, Sequence

from preflab.rewards.protocol import Answer, Reward, Score, Scores, assess


class CachedReward:
    """The same reward, computed once for each distinct answer: equal texts, in equal tokens, beside equal columns.

    For rewards that give an answer the same number always, whatever stands beside it in the batch.

    Args:
        reward: what is asked.
        capacity: how many answers are remembered from call to call, those used last; 0 remembers within a call alone.

    >>> from preflab.rewards import Answer, PatternReward, assess
    >>> digits = CachedReward(PatternReward("digits", "^[0-9]+$"), capacity=100)
    >>> four, five = Answer("2 + 2 =", "4", (5,), (6,), True), Answer("2 + 2 =", "5", (5,), (7,), True)
    >>> assess(digits, [four, five, four]).calls, assess(digits, [five]).calls, digits.hits
    (2, 0, 2)
    """

    def __init__(self, reward: Reward, *, capacity: int) -> None:
        self.reward, self.capacity = reward, capacity
        self.hits = 0
        """Answers that were known."""
        self._known: OrderedDict[Hashable, Score] = OrderedDict()

    @property
    def name(self) -> str:
        """That of the reward."""
        return self.reward.name

    def __call__(self, answers: Sequence[Answer]) -> Scores:
        """One score an answer, in the same order; `calls` and `passes` are of those that had to be computed."""
        keys = [_key(answer) for answer in answers]
        asked = {key: answer for key, answer in zip(keys, answers, strict=True) if key not in self._known}
        fresh = assess(self.reward, list(asked.values())) if asked else Scores([], calls=0)
        found = dict(zip(asked, fresh.values, strict=True))
        values = [found[key] if key in found else self._known[key] for key in keys]
        self.hits += len(answers) - len(asked)
        for key, value in zip(keys, values, strict=True):
            self._known[key] = value
            self._known.move_to_end(key)
        while len(self._known) > self.capacity:
            self._known.popitem(last=False)
        return Scores(values, calls=fresh.calls, passes=fresh.passes)


def _key(answer: Answer) -> Hashable:
    beside = json.dumps(answer.fields, sort_keys=True, default=repr) if answer.fields else ""
    return answer.prompt, answer.response, answer.response_ids, answer.ended, beside
