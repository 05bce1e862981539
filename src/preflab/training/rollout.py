"""What an online method learns from: prompts, the responses sampled to them, and what is known of those."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.data.encode import Encoder, Tree
from preflab.data.pack import Packed, Reading, pack
from preflab.data.records import Prompt
from preflab.errors import NumericError
from preflab.losses import entropy, kl_full
from preflab.models.flops import flops
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.scoring import Read, of_distributions, read, reading, rows_at_once
from preflab.rewards.protocol import Answer, Score, Scores
from preflab.rollouts.response import Response
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches, back_in_order

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
    fields: Mapping[str, Any] = field(default_factory=dict, hash=False)
    """The row's other columns that rewards are to see."""


@dataclass(frozen=True)
class Distributions:
    """What needs the whole next-token distribution at each response token; detached, 0 outside the mask."""

    kl: Float[Tensor, "response token"]
    """Full-vocabulary KL to the reference at temperature 1."""
    entropy: Float[Tensor, "response token"]
    """Of the next token at temperature 1, in nats."""


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
    sampler_gap: float | None
    """Largest difference between the sampler's and the scorer's log-probability of a token, in nats; None where they
    are of different distributions by intent."""
    distributions: Distributions | None
    """None where nobody asked for them."""
    dense: Float[Tensor, "response token"] | None = None
    """What the reward gave single tokens, which is part of `scores`; None where it gave whole responses all."""

    @property
    def measured(self) -> Distributions:
        """Of a rollout that was to be measured."""
        assert self.distributions is not None
        return self.distributions

    def penalised(self, missing_end_penalty: float) -> Float[Tensor, " response"]:
        """The scores, less a penalty where the length limit cut a response."""
        return self.scores - missing_end_penalty * (1 - self.ended)


def prompt_ids(encoder: Encoder, prompts: Iterable[Prompt]) -> list[PromptIds]:
    """Prompts as token ids, keyed by their origin."""
    return [PromptIds(prompt.origin, prompt.text, encoder.prompt(prompt.text), prompt.fields) for prompt in prompts]


def longest_trees(prompts: Sequence[PromptIds], max_new_tokens: int, *, responses: int = 1) -> list[Tree]:
    """Each prompt with so many responses, all as long as the limit lets them be: for what is to be planned."""
    return [Tree(prompt.key, prompt.ids, ((0,) * max_new_tokens,) * responses) for prompt in prompts]


def answers(encoder: Encoder, prompts: Sequence[PromptIds], responses: Sequence[Response]) -> list[Answer]:
    """Responses as a reward sees them."""
    return [
        Answer(
            prompt.text,
            encoder.decode(response.tokens),
            response.prompt,
            response.tokens,
            response.ended,
            prompt.fields,
        )
        for prompt, response in zip(prompts, responses, strict=True)
    ]


def pay(
    cost: Cost,
    policy: Policy,
    responses: Sequence[Response],
    scores: Scores,
    *,
    gold: bool = False,
) -> None:
    """Add to `cost` what it took to sample responses from `policy`, and to reward them."""
    tokens = sum(len(response.tokens) for response in responses)
    read = [len(response.prompt) + len(response.tokens) - 1 for response in responses]  # a last token is not read
    cost.generated_tokens += tokens
    cost.flops += flops(policy.model, Reading(sum(read), sum(n * (n + 1) // 2 for n in read), tokens))
    if gold:
        cost.gold_calls += scores.calls
        return
    cost.reward_calls += scores.calls
    for model, read_by_it in scores.passes:  # a rule reads no tokens
        cost.add_scored(model, read_by_it)


def dense_rewards(scores: Sequence[Score], rollout: Rollout) -> Float[Tensor, "response token"] | None:
    """What single tokens of a rollout got; None where none did."""
    if all(score.tokens is None for score in scores):
        return None
    dense = torch.zeros(rollout.batch.mask.shape)
    for row, score in zip(dense, scores, strict=True):
        if score.tokens is not None:
            row[: len(score.tokens)] = torch.tensor(score.tokens)
    return dense.to(rollout.scores.device)


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
    tokens: int | None = None,
    measured: bool = True,
    compared: bool = True,
    cost: Cost | None = None,
) -> Rollout:
    """Score sampled responses under the policy that sampled them and the reference.

    Args:
        scores: the reward of each response.
        temperature: at which the method takes log-probabilities.
        sampled_at: the temperature at which each response was sampled; None: `temperature`.
        batch_size: most responses in memory at once; changes no figure.
        tokens: most cells in memory at once, in place of `batch_size`; None counts responses.
        measured: with `distributions`.
        compared: the responses were sampled from the policy itself, which is checked; False where top-k, top-p or a
            penalty stood in between.
        cost: what it takes is added to this.

    Raises:
        NumericError: the scorer's log-probabilities are not the sampler's, or not finite.
    """
    batch = pack([response.tree for response in responses]).to(policy.device)
    models = (policy.model, reference)
    cut = scored_together(models, [response.tree for response in responses], batch_size, tokens)
    parts = []
    for rows in cut:
        micro = batch.rows(torch.tensor(rows, device=policy.device))
        reads = [read(model, micro) for model in models]
        found = [one.logprobs(temperature=temperature) for one in reads]
        found.append(found[0] if sampled_at is None else _at(reads[0], [sampled_at[row] for row in rows]))
        if measured:
            found += of_distributions(reads, lambda *logits: [kl_full(*logits), entropy(logits[0])])
        parts.append(found)
        if cost is not None:
            for model in models:
                cost.add_scored(model, reading(model, micro))
                if measured:  # the head once more
                    cost.add_scored(model, Reading(predicted=int(micro.mask.sum())))
    order = back_in_order(cut)
    logprobs, reference_logprobs, sampling_logprobs, *whole = (
        torch.cat(part)[order] for part in zip(*parts, strict=True)
    )
    return Rollout(
        responses=tuple(responses),
        batch=batch,
        scores=torch.tensor(scores, device=policy.device),
        ended=torch.tensor([float(response.ended) for response in responses], device=policy.device),
        logprobs=logprobs,
        reference_logprobs=reference_logprobs,
        sampler_gap=_sampler_gap(responses, sampling_logprobs, policy.model) if compared else None,
        distributions=Distributions(*whole) if measured else None,
    )


def scored_together(
    models: Sequence[Any], trees: Sequence[Tree], batch_size: int, tokens: int | None
) -> list[list[int]]:
    """Which responses of a rollout, a tree each, are scored at once: by number or by cells, and within what a pass
    without gradients may hold."""
    width = max(len(tree.prompt) + len(tree.responses[0]) for tree in trees)
    size = rows_at_once(models[0], width, len(trees) if tokens else batch_size)
    parts = MicroBatches(size, tokens, tuple(models)).of(trees)
    return [rows[begin : begin + size] for rows in parts for begin in range(0, len(rows), size)]


def _at(policy: Read, temperatures: Sequence[float]) -> Float[Tensor, "response token"]:
    """Log-probabilities of each row at a temperature of its own."""
    own = torch.tensor(temperatures, device=policy.batch.mask.device).unsqueeze(1)
    found = torch.zeros(policy.batch.mask.shape, device=own.device)
    for temperature in set(temperatures):
        found = torch.where(own == temperature, policy.logprobs(temperature=temperature), found)
    return found


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
