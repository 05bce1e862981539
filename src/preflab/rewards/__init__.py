"""Rewards: what a response is worth, to be maximised.

A reward is a name and a batch call (`Reward`): one finite number a response (`Answer`), or one a response token.
`assess` checks what it returns.

    LearnedReward                   a trained reward model
    FunctionReward                  a Python function
    ClassifierReward, FittedReward  a transformer that classifies; a linear classifier fitted to labelled texts
    PatternReward, Verifier         a regular expression; the answer that stands beside the prompt
    RewardSum, CachedReward         made of others: a weighted sum; one that is asked once for each distinct response

>>> def brief(completions, **kwargs):
...     return [-len(text) / 10 for text in completions]
>>> digits = Weighted("digits", 1.0, PatternReward("digits", "[0-9]"))
>>> both = RewardSum((digits, Weighted("brief", 0.5, FunctionReward(brief, "brief"))))
>>> score(both, [Answer("2 + 2 =", " 4", (5,), (6,), True), Answer("2 + 2 =", " four", (5,), (7,), True)])
[0.9, -0.25]
"""

from preflab.rewards.cache import CachedReward
from preflab.rewards.classifier import ClassifierReward, FittedReward
from preflab.rewards.function import FunctionReward, load_function
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Answer, Reward, Score, Scores, assess, score
from preflab.rewards.rules import PatternReward, Verifier
from preflab.rewards.sum import RewardSum, Weighted

__all__ = [
    "Answer",
    "CachedReward",
    "ClassifierReward",
    "FittedReward",
    "FunctionReward",
    "LearnedReward",
    "PatternReward",
    "Reward",
    "RewardSum",
    "Score",
    "Scores",
    "Verifier",
    "Weighted",
    "assess",
    "load_function",
    "score",
]
