"""Gradients as a trainer accumulates them, and the policy-gradient loss written again, in plain loops over tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from preflab.config.online import Surrogate
from preflab.rewards.protocol import Answer


def gradients_of(model: nn.Module) -> dict[str, Tensor]:
    """Filled with each parameter's gradient as it accumulates: at the end, that of the last whole step, unclipped."""
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        def hook(parameter: Tensor) -> None:
            assert parameter.grad is not None
            seen[name] = parameter.grad.detach().clone()

        return hook

    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(keep(name))
    return seen


def relative_gap(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """‖found − expected‖/‖expected‖ over all parameters."""
    assert found.keys() == expected.keys()
    size = sum(float(value.square().sum()) for value in expected.values()) ** 0.5
    assert size > 1e-4, "nothing to compare"
    return sum(float((found[name] - expected[name]).square().sum()) for name in expected) ** 0.5 / size


def plain_logits(model: Any, answer: Answer) -> Tensor:
    """The logits before each response token, with nothing else in the batch, in float64."""
    ids = torch.tensor([answer.prompt_ids + answer.response_ids])
    begin = len(answer.prompt_ids) - 1
    logits: Tensor = model(input_ids=ids).logits[0, begin:-1].double()
    return logits


def plain_logprobs(model: Any, answer: Answer, temperature: float) -> Tensor:
    """log π of each response token."""
    rows = (plain_logits(model, answer) / temperature).log_softmax(-1)
    return torch.stack([rows[t, token] for t, token in enumerate(answer.response_ids)])


def plain_gradient(
    model: Any,
    reference: Any,
    answers: Sequence[Answer],
    advantages: Sequence[Sequence[float]],
    settings: Surrogate,
    *,
    longest: int,
    old: Any = None,
) -> dict[str, Tensor]:
    """The gradient of one optimiser step on all answers, from the formulas, response by response.

    `old` sampled them; None: the model itself, at ratio 1.
    """
    lower, upper = 1 - settings.clip, 1 + (settings.clip_higher or settings.clip)
    n = [len(answer.response_ids) for answer in answers]
    parameters = dict(model.named_parameters())
    total = torch.zeros((), dtype=torch.float64)
    for answer, of_tokens, tokens in zip(answers, advantages, n, strict=True):
        logits = plain_logits(model, answer) / settings.temperature
        logprobs = plain_logprobs(model, answer, settings.temperature)
        with torch.no_grad():
            reference_logits = plain_logits(reference, answer) / settings.temperature
            of_reference = plain_logprobs(reference, answer, settings.temperature)
            of_old = plain_logprobs(old or model, answer, settings.temperature)
        losses = []
        for t in range(tokens):
            ratio = (logprobs[t] - of_old[t]).exp()
            loss = -torch.minimum(of_tokens[t] * ratio, of_tokens[t] * ratio.clamp(lower, upper))
            a = logprobs[t] - of_reference[t]
            p, q = logits[t].softmax(-1), reference_logits[t].softmax(-1)
            match settings.kl_penalty:
                case "k2":
                    loss = loss + settings.kl_coefficient * a**2 / 2
                case "k3":
                    loss = loss + settings.kl_coefficient * ((-a).exp() - 1 + a)
                case "full":
                    loss = loss + settings.kl_coefficient * (p * (p / q).log()).sum()
            losses.append(loss)
        match settings.aggregation:
            case "token-mean":
                total = total + sum(losses) / sum(n)
            case "seq-mean-token-mean":
                total = total + sum(losses) / tokens / len(n)
            case "seq-mean-token-sum":
                total = total + sum(losses) / len(n)
            case "seq-mean-token-sum-norm":
                total = total + sum(losses) / len(n) / longest
    found = torch.autograd.grad(total, list(parameters.values()))
    return dict(zip(parameters, found, strict=True))
