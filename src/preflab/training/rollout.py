"""What an online method learns from: prompts, the responses sampled to them, and what is known of those."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.data.encode import Encoder
from preflab.data.pack import Packed, pack
from preflab.data.records import Prompt
from preflab.errors import NumericError
from preflab.losses import entropy, kl_full, token_logprobs
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.scoring import response_logits, rows_at_once
from preflab.rewards.protocol import Answer
from preflab.rollouts.sampler import Response
from preflab.training.cost import Cost

LARGEST_SAMPLER_GAP_NATS = 0.01
"""How far the sampler's log-probability of a token may be from the scorer's before the run stops: float32 rounding
stays below 1e-4, a policy that is not the one that sampled does not."""
LARGEST_SAMPLER_GAP_NATS_BF16 = 1.0
"""The same where products are in bf16: logits of 16 are multiples of 1/8."""


@dataclass(frozen=True)
class PromptIds:
    """A prompt to roll out from."""

    key: str
    text: str
    ids: tuple[int, ...]


@dataclass(frozen=True)
class Rollout:
    """One batch of responses and all that an update needs to know of them; detached, masked by `batch.mask`.

    The responses to one prompt stand together.
    """

    responses: tuple[Response, ...]
    batch: Packed
    scores: Float[Tensor, " response"]
    """The reward of each response, before penalties."""
    ended: Float[Tensor, " response"]
    """1 where the response has its end token, 0 where the length limit cut it."""
    logprobs: Float[Tensor, "response token"]
    """log π_old at the scoring temperature."""
    reference_logprobs: Float[Tensor, "response token"]
    """log π_ref at the scoring temperature."""
    kl: Float[Tensor, "response token"]
    """Full-vocabulary KL to the reference at temperature 1."""
    entropy: Float[Tensor, "response token"]
    """Of the next token at temperature 1, in nats."""
    sampler_gap: float
    """Largest difference between the sampler's and the scorer's log-probability of a token, in nats."""

    def penalised(self, missing_end_penalty: float) -> Float[Tensor, " response"]:
        """The scores, less a penalty where the length limit cut a response."""
        return self.scores - missing_end_penalty * (1 - self.ended)


def prompt_ids(encoder: Encoder, prompts: Iterable[Prompt]) -> list[PromptIds]:
    """Prompts as token ids, keyed by their origin."""
    return [PromptIds(prompt.origin, prompt.text, encoder.prompt(prompt.text)) for prompt in prompts]


def answers(encoder: Encoder, prompts: Sequence[PromptIds], responses: Sequence[Response]) -> list[Answer]:
    """Responses as a reward sees them."""
    return [
        Answer(prompt.text, encoder.decode(response.tokens), response.prompt, response.tokens, response.ended)
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def pay(cost: Cost, responses: Sequence[Response], *, weights: int, gold: bool = False) -> None:
    """Add to `cost` what it took to sample responses, by a model of so many working weights, and to reward them."""
    read = sum(len(response.prompt) + len(response.tokens) for response in responses)
    cost.generated_tokens += sum(len(response.tokens) for response in responses)
    cost.flops += 2 * weights * read  # sampling reads prompts too
    if gold:
        cost.gold_calls += len(responses)
    else:  # by the reward model
        cost.reward_calls += len(responses)
        cost.scored_tokens += read
        cost.flops += 2 * weights * read


@torch.no_grad()
def roll_out(
    policy: Policy,
    reference: Any,
    responses: Sequence[Response],
    scores: Sequence[float],
    *,
    temperature: float,
    sampled_at: Sequence[float] | None = None,
    batch_size: int,
) -> Rollout:
    """Score sampled responses under the policy that sampled them and the reference.

    Args:
        scores: the reward of each response.
        temperature: at which the method takes log-probabilities.
        sampled_at: the temperature at which each response was sampled; None: `temperature`.
        batch_size: most responses in memory at once; changes no figure.

    Raises:
        NumericError: the scorer's log-probabilities are not the sampler's, or not finite.
    """
    batch = pack([response.tree for response in responses]).to(policy.device)
    own = None if sampled_at is None else torch.tensor(sampled_at, device=policy.device).view(-1, 1, 1)
    parts = []
    size = rows_at_once(policy.model, batch.token_ids.shape[1], batch_size)
    for rows in torch.arange(len(responses), device=policy.device).split(size):
        micro = batch.rows(rows)
        logits, reference_logits = response_logits(policy.model, micro), response_logits(reference, micro)
        logprobs = token_logprobs(logits, micro.response_ids, temperature=temperature)
        parts.append(
            (
                logprobs,
                token_logprobs(reference_logits, micro.response_ids, temperature=temperature),
                logprobs if own is None else token_logprobs(logits / own[rows], micro.response_ids),
                kl_full(logits, reference_logits),
                entropy(logits),
            )
        )
    logprobs, reference_logprobs, sampling_logprobs, kl, entropies = (
        torch.cat(part).masked_fill(~batch.mask, 0.0) for part in zip(*parts, strict=True)
    )
    return Rollout(
        responses=tuple(responses),
        batch=batch,
        scores=torch.tensor(scores, device=policy.device),
        ended=torch.tensor([float(response.ended) for response in responses], device=policy.device),
        logprobs=logprobs,
        reference_logprobs=reference_logprobs,
        kl=kl,
        entropy=entropies,
        sampler_gap=_sampler_gap(responses, sampling_logprobs, policy.model),
    )


def _sampler_gap(responses: Sequence[Response], logprobs: Float[Tensor, "response token"], model: Any) -> float:
    """How far the sampler and the scorer are apart, checked."""
    limit = LARGEST_SAMPLER_GAP_NATS_BF16 if in_bf16(model) else LARGEST_SAMPLER_GAP_NATS
    behaviour = torch.zeros(logprobs.shape)
    for row, response in enumerate(responses):
        behaviour[row, : len(response.logprobs)] = torch.tensor(response.logprobs)
    gap = float((logprobs.cpu() - behaviour).abs().max())
    if not math.isfinite(gap):
        raise NumericError("the policy's log-probabilities are not finite: its weights hold NaN or infinity")
    if not gap < limit:
        raise NumericError(
            f"sampler and scorer differ by {gap:.3g} nats on a token (limit {limit}): the scored "
            "policy is not the one that sampled, so importance ratios would be wrong. Sample with neither top-k, top-p "
            "nor a penalty, at the temperature of scoring, and with dropout off"
        )
    return gap
