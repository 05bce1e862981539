"""Best of n: what a reward model buys without training, by choosing among samples of the reference."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from preflab.evaluation.policy import Judge
from preflab.models.load import Policy
from preflab.rewards.protocol import assess
from preflab.rollouts.sampler import sample
from preflab.runs import JSON
from preflab.seeds import derive
from preflab.training.cost import Cost, Stopwatch
from preflab.training.rollout import PromptIds, answers, pay


def kl_bound_nats(n: int) -> float:
    """log n − (n − 1)/n: an upper bound on the KL of best-of-n from the policy that it samples, in nats.

    Stiennon et al. 2020, arXiv 2009.01325; an upper bound by Beirami et al. 2024, arXiv 2401.01879. Reached where the
    reward never ties; below it where responses are few.

    >>> round(kl_bound_nats(4), 4)
    0.6363
    """
    return math.log(n) - (n - 1) / n


def sizes(n: int) -> list[int]:
    """2, 4, 8, … and n.

    >>> sizes(12)
    [2, 4, 8, 12]
    """
    return sorted({2**power for power in range(1, n.bit_length()) if 2**power <= n} | {n})


def best_of_n(
    judge: Judge,
    reference: Policy,
    prompts: Sequence[PromptIds],
    n: int,
    split: str,
    *,
    baseline: list[float],
    cost: Cost,
) -> Iterator[tuple[dict[str, JSON], list[dict[str, JSON]]]]:
    """The points of best of 2, 4, … n, each with n as its step, and their samples: the response that the proxy likes
    best among the first 2, 4, … of n samples; the first one of equals. `kl_nats` is the bound.

    Adds to `cost` what the largest n takes.
    """
    assert judge.proxy is not None
    with Stopwatch(cost):
        responses = sample(
            reference.model,
            [prompt.ids for prompt in prompts],
            keys=[prompt.key for prompt in prompts],
            end_id=judge.encoder.end_id,
            max_new_tokens=judge.max_new_tokens,
            samples=n,
            seed=derive(judge.seed, "best of n"),
        )
        scores = assess(judge.proxy, answers(judge.encoder, [p for p in prompts for _ in range(n)], responses))
    pay(cost, reference, responses, scores)
    totals = scores.totals
    for size in sizes(n):
        picked = [
            max(range(begin, begin + size), key=lambda i: (totals[i], -i)) for begin in range(0, len(responses), n)
        ]
        yield judge.measured(
            reference,
            prompts,
            [responses[i] for i in picked],
            [kl_bound_nats(size)] * len(prompts),
            step=size,
            split=split,
            baseline=baseline,
        )
