"""The naive formulas on the inputs of `cases.py`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import cases
import naive
from cases import Case, Episode, Judged, Of, Pairs, Result, Sampled
from naive import ZERO, exact, mean, total


def of_pairs(case: Case, points: Pairs) -> Result:
    def loss(at: Sequence[Decimal]) -> list[Decimal]:
        return [mean(naive.pair_losses(case.loss, case.settings, at, points.reference, points.tokens))]

    return Result(*naive.value_and_gradient(loss, [x for pair in points.logprob for x in pair]))


def of_judged(case: Case, points: Judged) -> Result:
    def loss(at: Sequence[Decimal]) -> list[Decimal]:
        ratios = [x - exact(y) for x, y in zip(at, points.reference, strict=True)]
        drifts = [exact(x) - exact(y) for x, y in zip(points.stranger, points.stranger_reference, strict=True)]
        marked = list(zip(ratios, points.desirable, strict=True))
        if case.loss == "BCOLoss":
            return [mean([naive.bco(*one, **case.settings) for one in marked])]
        anchor = max(ZERO, mean(drifts))
        return [mean([naive.kto(*one, reference_point=anchor, **case.settings) for one in marked])]

    return Result(*naive.value_and_gradient(loss, points.logprob))


def of_scores(case: Case, points: Sequence[tuple[float, float]]) -> Result:
    def loss(at: Sequence[Decimal]) -> list[Decimal]:
        return [mean([naive.bradley_terry(*at[i : i + 2], **case.settings) for i in range(0, len(at), 2)])]

    return Result(*naive.value_and_gradient(loss, [score for pair in points for score in pair]))


def of_sampled(case: Case, points: Sampled) -> Result:
    def loss(at: Sequence[Decimal]) -> list[Decimal]:
        rest = iter(at)
        return [_surrogate([[next(rest) for _ in row] for row in points.logprobs], points, case.loss, case.settings)]

    return Result(*naive.value_and_gradient(loss, [x for row in points.logprobs for x in row]))


def _surrogate(
    logprobs: Sequence[Sequence[Decimal]], points: Sampled, loss: str, settings: Mapping[str, Any]
) -> Decimal:
    """The clipped surrogate of all tokens, or of whole responses, with its KL penalty."""

    def less(others: Sequence[Sequence[float]]) -> list[list[Decimal]]:
        both = zip(logprobs, others, strict=True)
        return [[x - exact(y) for x, y in zip(row, other, strict=True)] for row, other in both]

    judged = list(zip(less(points.old), points.advantages, strict=True))
    if loss == "surrogate of responses":
        return mean([naive.clipped(total(row), advantage, clip=0.2) for row, advantage in judged])
    higher, how = settings.get("clip_higher"), settings["aggregation"]
    losses = [[naive.clipped(x, advantage, clip=0.2, clip_higher=higher) for x in row] for row, advantage in judged]
    policy_loss = naive.aggregate(losses, how, longest=cases.LONGEST)
    if "kl" not in settings:
        return policy_loss
    estimate = {"k2": naive.k2, "k3": naive.k3, "ρ·k3": naive.k3}[settings["kl"]]
    penalties = [[estimate(x, ZERO) for x in row] for row in less(points.reference)]  # they know the difference alone
    if settings["kl"] == "ρ·k3":
        both = zip(penalties, less(points.old), strict=True)
        penalties = [[penalty * x.exp() for penalty, x in zip(*rows, strict=True)] for rows in both]
    return policy_loss + exact(settings["kl_coefficient"]) * naive.aggregate(penalties, how, longest=cases.LONGEST)


def of_groups(case: Case, points: Sequence[float]) -> Result:
    def advantages(at: Sequence[Decimal]) -> list[Decimal]:
        groups = [at[begin : begin + cases.GROUP] for begin in range(0, len(at), cases.GROUP)]
        match case.loss:
            case "group-mean":
                return [x for group in groups for x in naive.less_mean(group)]
            case "over-std":
                return [x for group in groups for x in naive.over_std(group, **case.settings)]
            case "leave-one-out":
                return [x for group in groups for x in naive.less_mean_of_others(group)]
        raise ValueError(case.loss)

    return Result(naive.value(advantages, points))


def of_episode(case: Case, points: Episode) -> Result:
    def figures(at: Sequence[Decimal]) -> list[Decimal]:
        values = [exact(x) for x in points.values]
        match case.loss:
            case "gae":
                advantages = naive.advantages_by_sum(at, values, **case.settings)
                return [*advantages, *(a + v for a, v in zip(advantages, values, strict=True))]
            case "whiten":
                return naive.whitened(at, **case.settings)
            case "token-rewards":
                return naive.token_rewards(exact(cases.SCORE), at, values, **case.settings)
        raise ValueError(case.loss)

    return Result(naive.value(figures, points.rewards))


def of_values(case: Case, points: Episode) -> Result:
    """The rewards stand for the returns, the value of the token before for the old value."""

    def loss(at: Sequence[Decimal]) -> list[Decimal]:
        old = [exact(x) for x in (1.0, *points.values[:-1])]
        targets = [exact(x) for x in points.rewards]
        clip = case.settings["clip"]
        return [naive.squared_value_error(*now, clip=clip) for now in zip(at, old, targets, strict=True)]

    return Result(*naive.value_and_gradient(loss, points.values))


def of_logits(case: Case, points: tuple[Sequence[float], Sequence[float]]) -> Result:
    policy, reference = points

    def figures(at: Sequence[Decimal]) -> list[Decimal]:
        other = [exact(x) for x in reference]
        both = list(zip(*([p.ln() for p in naive.softmax(x)] for x in (at, other)), strict=True))
        match case.loss:
            case "k1":
                return [naive.k1(p, q) for p, q in both]
            case "k2":
                return [naive.k2(p, q) for p, q in both]
            case "k3":
                return [naive.k3(p, q) for p, q in both]
            case "kl_full":
                return [naive.kl(at, other)]
            case "entropy":
                return [naive.entropy(at)]
            case "logprob":  # of the likeliest token
                return [max(naive.softmax([x / exact(case.settings["temperature"]) for x in at])).ln()]
        raise ValueError(case.loss)

    return Result(*naive.value_and_gradient(figures, policy))


FAMILIES: dict[str, Of] = {
    "pairs": of_pairs,
    "judged": of_judged,
    "scores": of_scores,
    "sampled": of_sampled,
    "groups": of_groups,
    "episode": of_episode,
    "values": of_values,
    "logits": of_logits,
}
