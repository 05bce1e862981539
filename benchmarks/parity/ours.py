"""preflab's functions on the inputs of `cases.py`, and the first steps of its trainers.

python ours.py FOLDER        writes FOLDER/ours.json, and the models that TRL reads
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import cases
from cases import Case, Episode, Judged, Of, Pairs, Result, Sampled
from preflab.config import pair_losses as settings_of
from preflab.losses import (
    aggregate,
    bradley_terry,
    entropy,
    gae,
    k1,
    k2,
    k3,
    kl_full,
    leave_one_out,
    less_group_mean,
    over_std,
    ppo_clip,
    same_rank,
    token_logprobs,
    token_rewards,
    value_clip,
    whiten,
)
from preflab.training.preference import ScoredPairs, margin, pair_losses
from preflab.training.unpaired import response_losses


def of_pairs(case: Case, points: Pairs) -> Result:
    logprob, reference = _leaf(points.logprob), _wide(points.reference)
    pairs = ScoredPairs(
        logprob=logprob,
        tokens=torch.tensor(points.tokens),
        reference=reference,
        reference_at_rank=same_rank(margin(logprob), margin(reference)),
    )
    return _result(_pair_losses(case, pairs).mean(), logprob)


def _pair_losses(case: Case, pairs: ScoredPairs) -> Tensor:
    if case.loss == "ORPO's odds":
        return pair_losses(settings_of.ORPOLoss(**case.settings), pairs) - pair_losses(settings_of.SFTLoss(), pairs)
    return pair_losses(getattr(settings_of, case.loss)(**case.settings), pairs)


def of_judged(case: Case, points: Judged) -> Result:
    logprob = _leaf(points.logprob)
    settings = dict(case.settings)
    drift = (_wide(points.stranger) - _wide(points.stranger_reference)).mean()
    anchor = settings.pop("shift", float(drift.clamp(min=0.0)))
    loss = getattr(settings_of, case.loss)(**settings)
    losses = response_losses(loss, logprob - _wide(points.reference), torch.tensor(points.desirable), anchor=anchor)
    return _result(losses.mean(), logprob)


def of_scores(case: Case, points: Sequence[tuple[float, float]]) -> Result:
    scores = _leaf(points)
    return _result(bradley_terry(*scores.unbind(1), **case.settings).mean(), scores)


def of_sampled(case: Case, points: Sampled) -> Result:
    mask = _padded([[1.0] * len(row) for row in points.logprobs]).bool()
    logprobs = _padded(points.logprobs).requires_grad_()
    advantages = _wide(points.advantages).unsqueeze(1).expand_as(mask)
    counts = {"responses": len(mask), "tokens": int(mask.sum()), "longest": cases.LONGEST}
    how, higher = case.settings["aggregation"], case.settings.get("clip_higher")
    losses = ppo_clip(logprobs, _padded(points.old), advantages, clip=0.2, clip_higher=higher)
    loss = aggregate(losses, mask, how, **counts)
    if "kl" in case.settings:
        estimate = {"k2": k2, "k3": k3}[case.settings["kl"]]
        penalties = estimate(logprobs, _padded(points.reference))
        loss = loss + case.settings["kl_coefficient"] * aggregate(penalties, mask, how, **counts)
    return _result(loss, logprobs, mask)


def of_groups(case: Case, points: Sequence[float]) -> Result:
    scores = _wide(points)
    match case.loss:
        case "group-mean":
            advantages = less_group_mean(scores, group=cases.GROUP)
        case "over-std":
            less_mean = less_group_mean(scores, group=cases.GROUP)
            advantages = over_std(less_mean, scores, group=cases.GROUP, **case.settings)
        case "leave-one-out":
            advantages = leave_one_out(scores, group=cases.GROUP)
        case _:
            raise ValueError(case.loss)
    return Result(advantages.tolist())


def of_episode(case: Case, points: Episode) -> Result:
    rewards, values = _wide([points.rewards]), _wide([points.values])
    mask = torch.ones_like(rewards).bool()
    match case.loss:
        case "gae":
            found = torch.cat(gae(rewards, values, mask, **case.settings), dim=1)
        case "whiten":
            found = whiten(rewards, mask, **case.settings)
        case "token-rewards":
            found = token_rewards(_wide([cases.SCORE]), rewards, values, mask, **case.settings)
        case _:
            raise ValueError(case.loss)
    return Result(found[0].tolist())


def of_values(case: Case, points: Episode) -> Result:
    values = _leaf(points.values)
    return _result(
        value_clip(values, _wide((1.0, *points.values[:-1])), _wide(points.rewards), clip=case.settings["clip"]), values
    )


def of_logits(case: Case, points: tuple[Sequence[float], Sequence[float]]) -> Result:
    logits, reference = _leaf(points[0]), _wide(points[1])
    every = torch.arange(len(logits))
    logprobs = token_logprobs(logits.expand(len(every), -1), every)
    reference_logprobs = token_logprobs(reference.expand(len(every), -1), every)
    match case.loss:
        case "k1":
            found = k1(logprobs, reference_logprobs)
        case "k2":
            found = k2(logprobs, reference_logprobs)
        case "k3":
            found = k3(logprobs, reference_logprobs)
        case "kl_full":
            found = kl_full(logits, reference).unsqueeze(0)
        case "entropy":
            found = entropy(logits).unsqueeze(0)
        case "logprob":
            found = token_logprobs(logits.unsqueeze(0), logits.argmax().unsqueeze(0), **case.settings)
        case _:
            raise ValueError(case.loss)
    return _result(found, logits)


FAMILIES: Mapping[str, Of] = {
    "pairs": of_pairs,
    "judged": of_judged,
    "scores": of_scores,
    "sampled": of_sampled,
    "groups": of_groups,
    "episode": of_episode,
    "values": of_values,
    "logits": of_logits,
}


def results(dtype: torch.dtype) -> dict[str, Result]:
    """All cases at all points."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return cases.everywhere(FAMILIES, lambda case: not case.only_naive)
    finally:
        torch.set_default_dtype(before)


def main(folder: Path) -> None:
    from steps import Steps, write_models

    torch.set_num_threads(1)
    write_models(folder)
    steps = Steps(folder)
    taken = {name: asdict(step) for name, step in steps.all().items()}
    written = {
        "versions": {name: version(name) for name in ("preflab", "transformers", "torch")},
        "results": {name: asdict(result) for name, result in results(torch.float64).items()},
        "float32": {name: asdict(result) for name, result in results(torch.float32).items()},
        "steps": taken,
        "rollouts": steps.rollouts,
    }
    (folder / "ours.json").write_text(json.dumps(written))


def _wide(numbers: Any) -> Tensor:
    return torch.tensor(numbers, dtype=torch.get_default_dtype())


def _leaf(numbers: Any) -> Tensor:
    return _wide(numbers).requires_grad_()


def _padded(rows: Sequence[Sequence[float]]) -> Tensor:
    longest = max(map(len, rows))
    return _wide([[*row, *[0.0] * (longest - len(row))] for row in rows])


def _result(values: Tensor, leaf: Tensor, mask: Tensor | None = None) -> Result:
    """Values, and the gradient of their sum by the leaf, where the mask is True."""
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    return Result(values.detach().flatten().tolist(), (gradient if mask is None else gradient[mask]).flatten().tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
