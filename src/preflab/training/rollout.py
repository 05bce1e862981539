"""What an online method learns from: prompts, the responses sampled to them, and what is known of those."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from preflab.data.encode import Encoder, Tree
from preflab.data.pack import Packed, Reading, pack
from preflab.data.records import Prompt
from preflab.errors import NumericError
from preflab.losses import entropy, kl_full
from preflab.models.flops import flops
from preflab.models.head import head_of
from preflab.models.load import Policy
from preflab.models.precision import in_bf16
from preflab.models.scoring import Grammar, Read, of_distributions, read, reading, rows_at_once
from preflab.rewards.protocol import Answer, Score, Scores
from preflab.rollouts.response import Response
from preflab.rollouts.sampler import sampled_reading
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches, back_in_order

LARGEST_SAMPLER_GAP_NATS = 0.01
"""How far the sampler's log-probability of a token may be from the scorer's before the run stops: float32 rounding
stays below 1e-4, a policy that is not the one that sampled does not."""
LARGEST_SAMPLER_GAP_NATS_BF16 = 1.0
"""The same where products are in bf16: logits of 16 are multiples of 1/8."""


OfStates = Callable[[Float[Tensor, "token width"]], Float[Tensor, " token"]]
"""A figure of each token from the policy's last hidden state before it, such as a value head's."""


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
    sampler_gap: float | None
    """Largest difference between the sampler's and the scorer's log-probability of a token, in nats. None where no pass
    was made, or a warp stood in between: the method's own first pass is to be held against `logprobs` (`FirstPass`)."""
    under_reference: Float[Tensor, "response token"] | None = None
    """log π_ref at the scoring temperature; None where nobody asked."""
    distributions: Distributions | None = None
    """None where nobody asked for them."""
    of_states: Float[Tensor, "response token"] | None = None
    """A figure of the policy's last hidden states, such as V of a shared trunk; None where nobody asked, or where it
    takes a pass of its own."""
    dense: Float[Tensor, "response token"] | None = None
    """What the reward gave single tokens, which is part of `scores`; None where it gave whole responses all."""
    grammar: Grammar | None = None
    """Under which the responses were sampled, and every figure here is taken; the method's passes are too."""

    @property
    def reference_logprobs(self) -> Float[Tensor, "response token"]:
        """log π_ref of a rollout that was to be scored under the reference."""
        assert self.under_reference is not None
        return self.under_reference

    @property
    def measured(self) -> Distributions:
        """Of a rollout that was to be measured."""
        assert self.distributions is not None
        return self.distributions

    def kl_costs(self, coefficient: float) -> Float[Tensor, "response token"]:
        """β·(log π_old − log π_ref) of each token. Nothing at β = 0, where nobody need ask for the reference."""
        if coefficient == 0:
            return torch.zeros_like(self.logprobs)
        return coefficient * (self.logprobs - self.reference_logprobs)

    def penalised(self, missing_end_penalty: float) -> Float[Tensor, " response"]:
        """The scores, less a penalty where the length limit cut a response."""
        return self.scores - missing_end_penalty * (1 - self.ended)


class FirstPass:
    """Holds log π_old of a rollout against the method's first forward pass, where no pass of the scorer did: the policy
    that learns is the one that sampled as long as no weight has moved."""

    def __init__(self, rollout: Rollout, model: Any) -> None:
        self.rollout, self.model = rollout, model
        self.open = rollout.sampler_gap is None
        self.gaps: list[Tensor] = []
        self.figures: dict[str, float] = {}
        """For the log: the largest gap, once it is known."""

    def see(self, logprobs: Float[Tensor, "row token"], rows: Int[Tensor, " row"]) -> None:
        """A micro-batch at the scoring temperature, 0 where there is no token."""
        if self.open:
            tokens = min(logprobs.shape[1], self.rollout.logprobs.shape[1])  # beyond it there are no tokens in either
            old = self.rollout.logprobs[rows]
            self.gaps.append((logprobs.detach()[:, :tokens] - old[:, :tokens]).abs().max())

    def check(self) -> None:
        """Before each step. After the first one the policy is another.

        Raises:
            NumericError: as `agreed`.
        """
        if self.open:
            self.open = False
            self.figures["sampler_gap_nats"] = agreed(torch.stack(self.gaps).max(), self.model)


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
    calls: int = 1,
    gold: bool = False,
) -> None:
    """Add to `cost` what it took to sample responses from `policy`, in so many calls, and to reward them."""
    cost.generated_tokens += sum(len(response.tokens) for response in responses)
    cost.flops += flops(policy.model, sampled_reading(policy.model, responses, calls=calls))
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
    referred: bool = True,
    asserted: bool = False,
    of_states: OfStates | None = None,
    grammar: Grammar | None = None,
    cost: Cost | None = None,
) -> Rollout:
    """Score sampled responses under the policy that sampled them and the reference.

    Args:
        scores: the reward of each response.
        temperature: at which the method takes log-probabilities.
        sampled_at: the temperature at which each response was sampled; None: `temperature`.
        batch_size: most responses in memory at once; changes no figure.
        tokens: most cells in memory at once, in place of `batch_size`; None counts responses.
        measured: with `distributions`, which the reference is read for.
        compared: the responses were sampled from the policy itself at `sampled_at`, which a pass is held against; False
            where top-k, top-p or a penalty stood in between.
        referred: with the reference's log-probabilities; those that are measured have them too.
        asserted: the method holds `logprobs` against its own first forward pass, before a weight moves. So what the
            sampler kept stands for a pass of the policy, where it can (`stands_for_pass`).
        of_states: with a figure of the policy's last hidden states.
        grammar: under which the responses were sampled: that of the sampler's mask.
        cost: what it takes is added to this.

    Raises:
        ConfigError: the grammar forbids a token that was sampled.
        NumericError: the scorer's log-probabilities are not the sampler's, or not finite.
    """
    batch = pack([response.tree for response in responses]).to(policy.device)
    reads_states = measured or sampled_at is not None or of_states is not None
    passes = not (asserted and stands_for_pass(policy.model, responses, states=reads_states))
    models = (policy.model, reference)
    cut = scored_together(models, [response.tree for response in responses], batch_size, tokens)
    cost = Cost() if cost is None else cost
    parts: list[dict[str, Tensor]] = []
    for rows in cut:
        micro = batch.rows(torch.tensor(rows, device=policy.device))
        head = Reading(predicted=int(micro.mask.sum()))
        found: dict[str, Tensor] = {}
        of_policy = of_reference = None
        if passes:
            of_policy = read(policy.model, micro, grammar=grammar)
            at = None if sampled_at is None else [sampled_at[row] for row in rows]
            found["logprobs"] = of_policy.logprobs(temperature=temperature)
            found["sampling"] = found["logprobs"] if at is None else _at(of_policy, at)
            cost.add_scored(policy.model, reading(policy.model, micro))
            for _ in set(at or ()):
                cost.add_scored(policy.model, head)
        elif reads_states:
            states = _states([responses[row] for row in rows]).to(policy.device)
            of_policy = Read(policy.model, micro, states, allowed=None if grammar is None else grammar(micro))
            if sampled_at is not None:
                found["logprobs"] = of_policy.logprobs(temperature=temperature)
                cost.add_scored(policy.model, head)
        if referred or measured:
            of_reference = read(reference, micro, grammar=grammar)
            found["under_reference"] = of_reference.logprobs(temperature=temperature)
            cost.add_scored(reference, reading(reference, micro))
        if measured:
            assert of_policy is not None
            assert of_reference is not None
            both = (of_policy, of_reference)
            found["kl"], found["entropy"] = of_distributions(both, lambda *both: [kl_full(*both), entropy(both[0])])
            for model in models:
                cost.add_scored(model, head)
        if of_states is not None:
            assert of_policy is not None
            if (figures := of_policy.of_states(of_states)) is not None:
                found["of_states"] = figures
        parts.append(found)
    order = back_in_order(cut)
    joined = {name: torch.cat([part[name] for part in parts])[order] for name in parts[0]}
    behaviour = _behaviour(responses, batch, policy.model)
    return Rollout(
        responses=tuple(replace(response, states=None) for response in responses),
        batch=batch,
        scores=torch.tensor(scores, device=policy.device),
        ended=torch.tensor([float(response.ended) for response in responses], device=policy.device),
        logprobs=joined.get("logprobs", behaviour),
        sampler_gap=(
            agreed((joined["sampling"] - behaviour).abs().max(), policy.model) if passes and compared else None
        ),
        under_reference=joined.get("under_reference"),
        distributions=Distributions(joined["kl"], joined["entropy"]) if measured else None,
        of_states=joined.get("of_states"),
        grammar=grammar,
    )


def stands_for_pass(model: Any, responses: Sequence[Response], *, states: bool) -> bool:
    """Whether what the sampler kept is as good as what a pass of the policy gives: to rounding in float32. In bf16 two
    passes differ by more, and the ratio of the policy to itself would not be 1.

    Args:
        states: whether last hidden states are needed; else log-probabilities alone.
    """
    if in_bf16(model):
        return False
    return not states or (head_of(model) is not None and all(response.states is not None for response in responses))


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


def _states(responses: Sequence[Response]) -> Float[Tensor, "token width"]:
    """The sampler's, response after response."""
    return torch.cat([response.states for response in responses if response.states is not None])


def _behaviour(responses: Sequence[Response], batch: Packed, model: Any) -> Float[Tensor, "response token"]:
    """The sampler's log-probabilities; 0 outside the mask."""
    dtype = torch.promote_types(model.dtype, torch.float32)
    values = torch.tensor([value for response in responses for value in response.logprobs], dtype=dtype)
    found = torch.zeros(batch.mask.shape, dtype=dtype, device=batch.mask.device)
    return found.masked_scatter(batch.mask, values.to(found.device))


def agreed(gap: Float[Tensor, ""], model: Any) -> float:
    """The largest difference between the sampler's and the scorer's log-probability of a token, checked.

    Raises:
        NumericError: it is more than rounding, or not finite.
    """
    limit = LARGEST_SAMPLER_GAP_NATS_BF16 if in_bf16(model) else LARGEST_SAMPLER_GAP_NATS
    found = float(gap)
    if not math.isfinite(found):
        raise NumericError("the policy's log-probabilities are not finite: its weights hold NaN or infinity")
    if not found < limit:
        raise NumericError(
            f"sampler and scorer differ by {found:.3g} nats on a token (limit {limit}): the scored "
            "policy is not the one that sampled, so importance ratios would be wrong. Sample with neither top-k, top-p "
            "nor a penalty, at the temperature of scoring, and with dropout off"
        )
    return found
