"""Mistakes that train to the end and give a wrong result, caught before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from preflab.data.encode import Tree
from preflab.errors import ConfigError, NumericError
from preflab.models.freezing import frozen_digest
from preflab.progress import warn
from preflab.runs import RunFolder, write_json

LARGEST_START_NATS = 1e-3
"""How far a response's log-probability may be from itself in two passes: float32 rounding stays well below."""
LARGEST_START_NATS_BF16 = 2.0
"""The same where products are in bf16: what other batch mates change adds up to 0.2 over a dozen tokens of a random
12-block model, and grows with the square root of their number."""
HALF = 0.5
SHORTEST_PROMPT = 4
"""Tokens of a prompt that no response repeats by chance."""


def check_model(model: nn.Module) -> None:
    """Refuse a model in which dropout is on, or whose frozen trunk is moved by its tied embeddings.

    Raises:
        ConfigError: either is so.
    """
    for name, rate in _dropouts(model):
        raise ConfigError(
            f"dropout is on ({name}, p = {rate}): log-probabilities would differ from pass to pass, and the ratio to "
            "the reference from 1; call model.eval()"
        )
    check_tied(model)


def _dropouts(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Where dropout is on: in modules, and in attention functions that know it from the config alone (Llama's)."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.training and module.p > 0:
            yield name, module.p
    rate = float(getattr(getattr(model, "config", None), "attention_dropout", 0.0))
    if model.training and rate > 0:
        yield "config.attention_dropout", rate


def check_tied(model: Any) -> None:
    """Raises ConfigError where blocks are frozen, but embeddings tied to the output head are trained: each step of
    the head would then change what the frozen blocks read."""
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    if head is None or head.weight is not model.get_input_embeddings().weight or not head.weight.requires_grad:
        return
    frozen = [name for name, parameter in model.named_parameters() if not parameter.requires_grad]
    if frozen:
        raise ConfigError(
            f"{frozen[0]} is frozen, but the output head is tied to the embeddings and trained, so the input of the "
            "frozen weights would move; freeze the embeddings too (freeze_blocks does), or untie them"
        )


def check_frozen(model: nn.Module, digest: str) -> None:
    """Raises NumericError where the frozen weights are not those of which `frozen_digest` gave `digest`: what was
    computed with them, the reference's log-probabilities and stored states, would be another model's."""
    if frozen_digest(model) != digest:
        raise NumericError(
            "frozen weights are not what they were when the run began, so they were written to, or the checkpoint is "
            "another model's; start again with another --out"
        )


def check_reference(policy: nn.Module, reference: nn.Module) -> None:
    """Refuse a reference that training would move, and take gradients from it.

    Raises:
        ConfigError: it shares weights with the policy.
    """
    mine = {parameter.data_ptr() for parameter in policy.parameters() if parameter.requires_grad}
    for name, parameter in reference.named_parameters():
        if parameter.data_ptr() in mine:
            raise ConfigError(
                f"the reference shares {name} with the policy and would move with it; give it a copy: "
                "models.load.copy_of(policy.model)"
            )
    if any(parameter.requires_grad for parameter in reference.parameters()):
        warn("the reference's weights asked for gradients; it is frozen here")
        reference.requires_grad_(False)


def check_start(run: RunFolder, logratio: Tensor, *, same: bool, in_bf16: bool = False) -> None:
    """Record in start.json how far the policy is from the reference before the first step, and refuse a policy that
    should be its own reference and is not.

    Args:
        logratio: of some responses, log π(y|x) − log π_ref(y|x).
        same: True where the arm starts at its reference; False for a chain, whose start is known by this record.
        in_bf16: the products of policy and reference are, so that rounding goes further.

    Raises:
        NumericError: the policy's log-probabilities are not finite, or not those of the reference.
    """
    if (run.path / "start.json").exists():  # a resumed run has left its start behind
        return
    largest = float(logratio.abs().max())
    if not torch.isfinite(logratio).all():
        raise NumericError("a log-probability is not finite before the first step: the weights hold NaN or infinity")
    if same and largest > (LARGEST_START_NATS_BF16 if in_bf16 else LARGEST_START_NATS):
        raise NumericError(
            f"policy and reference are one model, but differ by {largest:.3g} nats on a response before the first "
            "step: two passes of it don't agree. Is dropout on, or does the model draw random numbers?"
        )
    write_json(
        run.path / "start.json",
        {"mean_logratio_nats": float(logratio.mean()), "largest_logratio_nats": largest, "starts_at_reference": same},
    )


def check_ends(trees: Sequence[Tree], end_id: int) -> None:
    """Warn where many responses have no end token: a policy trained on them does not learn to stop."""
    responses = [response for tree in trees for response in tree.responses]
    share = sum(response[-1] == end_id for response in responses) / len(responses)
    if share < HALF:
        warn(
            f"{1 - share:.0%} of the responses have no end token, so the policy will not learn to stop; raise "
            "lengths.response_tokens"
        )


def check_prompts(trees: Sequence[Tree]) -> None:
    """Warn where responses begin with their prompt: its tokens stand inside the loss mask then, and are trained on."""
    long = [tree for tree in trees if len(tree.prompt) >= SHORTEST_PROMPT]
    repeated = sum(
        response[: len(tree.prompt) - 1] == tree.prompt[1:]  # a begin token stands before the prompt alone
        or response[: len(tree.prompt)] == tree.prompt
        for tree in long
        for response in tree.responses
    )
    share = repeated / max(1, sum(len(tree.responses) for tree in long))
    if share > HALF:
        warn(
            f"{share:.0%} of the responses begin with their prompt, whose tokens are then trained on and generated; "
            "leave the prompt out of the response columns"
        )
