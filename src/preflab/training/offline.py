"""The loop over a fixed data set: SFT, the reward model, DPO and its family, KTO are step functions handed to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.config.training import Fit
from preflab.data.budget import extent
from preflab.data.encode import Tree
from preflab.errors import NumericError
from preflab.live import live
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze, frozen_digest
from preflab.models.load import Policy
from preflab.models.scoring import reading
from preflab.models.trunk import frozen_trunk
from preflab.runs import RunFolder, read_lines
from preflab.seeds import derive
from preflab.training.checks import check_frozen
from preflab.training.cost import Cost
from preflab.training.micro_batches import MicroBatches
from preflab.training.optimizer import Stepper
from preflab.training.order import batch_at, evaluation_steps
from preflab.training.session import Evaluate, Session, Spent

Loss = Callable[[Sequence[int]], tuple[Float[Tensor, ""], dict[str, Tensor]]]
"""A micro-batch, as positions in its optimiser step → (its share of the step's mean loss, shares of other means)."""
Step = Callable[[Sequence[int], Session], Loss]
"""A method: the indices of an optimiser step → the loss of its micro-batches. What spans the whole step (a global
count, ranks, an estimate) is worked out here, so that micro-batches change no figure; what must outlast it is kept in
the session's memory, what it costs beside training is added to the session's cost."""


def total_steps(examples: int, settings: Fit) -> int:
    """Optimiser steps in `settings.epochs` passes."""
    return max(1, math.ceil(settings.epochs * examples / settings.batch.size))


def is_scorer(policy: Policy) -> bool:
    """Whether it is a reward model, which is read at the last token of each response."""
    return policy.model.get_output_embeddings() is None


def micro_batches_of(policy: Policy, settings: Fit) -> MicroBatches:
    """How a step is cut."""
    return MicroBatches(settings.batch.micro, settings.batch.tokens, (policy.model,), ends=is_scorer(policy))


def indices_of(trees: Sequence[Tree], settings: Fit, *, seed: int) -> Callable[[int], list[int]]:
    """Step 0, 1, … → the places of its examples in `trees`."""
    lengths = [extent(tree).longest for tree in trees] if settings.batch.order == "length" else None
    size, data = settings.batch.size, derive(seed, "data")
    return lambda step: batch_at(step, examples=len(trees), batch_size=size, seed=data, lengths=lengths)


def reads_again(examples: int, steps: int, settings: Fit) -> bool:
    """Whether so many steps are more than an epoch."""
    return (steps - 1) * settings.batch.size >= examples


def fit(
    policy: Policy,
    trees: Sequence[Tree],
    settings: Fit,
    run: RunFolder,
    *,
    step: Step,
    seed: int,
    title: str,
    log_every: int,
    evaluate: Evaluate | None = None,
    spent: Spent | None = None,
    derived: Callable[[dict[str, float]], dict[str, float]] = lambda means: {},
) -> Cost:
    """Train in place, and return what it cost.

    Args:
        step: the method.
        evaluate: called at `settings.evaluations` evenly spread steps.
        spent: of a budget that may end the run before its settings do; the schedule of the rate stays that of these.
        derived: further figures for the log, from a step's means.

    Raises:
        NumericError: a loss or gradient is not finite; the step is not taken.
        Interrupted: SIGTERM or Ctrl-C; the state is saved.
    """
    freeze(policy.model, settings.freeze_blocks)
    frozen = frozen_digest(policy.model) if settings.freeze_blocks else None
    total = total_steps(len(trees), settings)
    stepper = Stepper(policy.model, settings.optimizer, total)
    marks = evaluation_steps(total, settings.evaluations)
    session = Session(run, {"policy": policy.model}, {"policy": stepper}, marks=marks, evaluate=evaluate, spent=spent)
    micro_batches = micro_batches_of(policy, settings)
    micro_batches.warn_alone(trees, "examples")
    examples_of = indices_of(trees, settings, seed=seed)
    if frozen and session.start:
        check_frozen(policy.model, frozen)
    again = reads_again(len(trees), total - session.start, settings)
    with (
        frozen_trunk(policy.model, settings.freeze_blocks, trees, settings.trunk, run.path, again=again),
        checkpointed(policy.model, on=settings.activation_checkpointing),
        session.stoppable(),
        live(title, total, session.start, earlier=read_lines(run.metrics)) as show,
    ):
        for number in session.steps():
            indices = examples_of(number)
            with session.step(number, lambda rows=indices: [trees[i].origin for i in rows]):  # type: ignore[misc]
                loss = step(indices, session)
                means: dict[str, Tensor] = {}
                for positions in micro_batches.of([trees[i] for i in indices]):
                    share, others = loss(positions)
                    share.backward()
                    rows = [trees[indices[i]] for i in positions]
                    session.cost.add_trained(policy.model, reading(policy.model, rows, ends=micro_batches.ends))
                    for name, value in ({"loss": share} | others).items():
                        means[name] = means.get(name, torch.zeros_like(value)) + value.detach()
                if not math.isfinite(float(means["loss"])):
                    raise NumericError(
                        f"the loss is {float(means['loss'])} at step {number + 1}; no weight was changed. Lower "
                        f"optimizer.learning_rate, or look at the rows named in {run.path / 'crash.json'}"
                    )
                figures = stepper.step(number, f"step {number + 1}")
                session.cost.add_step(len(indices))
            done = number + 1
            if done % log_every == 0 or session.over:
                values = {name: float(value) for name, value in means.items()}
                values |= derived(values) | figures
                run.log({"step": done, **values})
                show(done, values)
            else:
                show(done)
            session.after(done)
    if frozen:
        check_frozen(policy.model, frozen)
    return session.cost
