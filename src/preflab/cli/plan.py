"""`preflab train METHOD --dry-run`: what the run would do, and the memory that it would take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from preflab.config.preference import Preference, Unpaired
from preflab.data.encode import Tree
from preflab.models.freezing import freeze
from preflab.models.load import Policy
from preflab.models.reference import found_in, user_cache
from preflab.models.trunk import frozen_trunk
from preflab.training.plan import Memory, Plan, scored_alone
from preflab.training.rollout import PromptIds

MIB = 2**20
NO_REFERENCE = "plays no part"


def show_plan(
    policy: Policy,
    name: str,
    data: Path,
    train: Sequence[Tree] | Sequence[PromptIds],
    held_out: int,
    counts: Mapping[str, int],
    plan: Plan,
    *,
    unit: str,
    reference: str,
    response_tokens: int,
) -> None:
    """Print it: model, data, steps, layout, reference, memory."""
    weights = list(policy.model.parameters())
    trained = sum(parameter.numel() for parameter in weights if parameter.requires_grad)
    dtypes = ", ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in weights}))
    lengths = [_tokens(row) for row in train]
    noted = [f"{name}: {count:,}" for name, count in counts.items() if name != "read" and count]
    flat, tree = plan.cells
    rows = [
        (
            "model",
            f"{name}: {sum(parameter.numel() for parameter in weights):,} weights, {trained:,} trained, {dtypes}",
        ),
        ("data", f"{data}: {len(train):,} {unit} to train on, {held_out:,} held out"),
        ("tokens", f"mean {sum(lengths) / len(lengths):.0f}, longest {max(lengths)}{_sampled(train, response_tokens)}"),
        *([("as read", ", ".join(noted))] if noted else []),
        (
            "steps",
            f"{plan.steps:,}, each on {plan.examples:,} examples, up to {plan.micro_batch:,} in memory at once",
        ),
        (
            "layout",
            f"tree: each prompt once, {tree:,} tokens of the largest micro-batch instead of {flat:,}"
            if plan.tree
            else f"flat: a row a response, {flat:,} tokens of the largest micro-batch; each prompt once would take "
            f"{tree:,}: hardly fewer, or this model can't",
        ),
        ("reference", reference),
        ("peak memory", f"{mib(plan.memory.total)} estimated, in {plan.memory.place}:"),
        *((f"  {part}", mib(size)) for part, size in _parts(plan.memory) if size),
    ]
    for title, said in rows:
        print(f"{title:<16}{said}")


def of_cache(policy: Policy, trees: Sequence[Tree], settings: Preference | Unpaired, folder: Path, *, seed: int) -> str:
    """Whether the reference's log-probabilities are there already, as the run will ask for them."""
    asked, _ = scored_alone(trees, settings, seed=seed)
    if not asked:
        return NO_REFERENCE
    freeze(policy.model, settings.freeze_blocks)
    with frozen_trunk(policy.model, settings.freeze_blocks, asked, settings.trunk, folder, again=True):
        found = found_in(user_cache(), policy.model, asked)
    missing = len(asked) - found
    said = f"{missing:,} to compute, {found:,} from the cache" if missing else f"all {found:,} from the cache"
    return said + (", each response with another prompt included" if len(asked) > len(trees) else "")


def _parts(memory: Memory) -> list[tuple[str, int]]:
    return [
        ("weights", memory.weights),
        ("gradients", memory.gradients),
        ("optimiser", memory.optimizer),
        ("activations", memory.activations),
        ("logits", memory.logits),
        ("frozen states", memory.states),
        ("the process", memory.process),
    ]


def _tokens(row: Tree | PromptIds) -> int:
    return len(row.prompt) + sum(map(len, row.responses)) if isinstance(row, Tree) else len(row.ids)


def _sampled(rows: Sequence[Tree] | Sequence[PromptIds], response_tokens: int) -> str:
    of_prompts = isinstance(rows[0], PromptIds)
    return f" of a prompt; responses up to {response_tokens}" if of_prompts else " of a prompt with its responses"


def mib(size: int) -> str:
    """Bytes for people."""
    return f"{size / MIB:,.0f} MiB"
