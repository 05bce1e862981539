"""Activation checkpointing changes no loss and no gradient, keeps less, and leaves a model as it was."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from preflab.config.pair_losses import DPOLoss
from preflab.config.preference import DPO
from preflab.config.training import Batch, Optimizer, Precision, Trunk
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.models import scoring
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze, transformer_blocks
from preflab.models.load import Policy, copy_of
from preflab.models.precision import has_bf16, work_in
from preflab.models.scoring import response_logprobs, response_states
from preflab.models.trunk import frozen_trunk, split_of
from preflab.runs import RunFolder
from preflab.training.cost import Cost
from preflab.training.preference import pair_step, train_preference
from test_layouts import PAIRS, model_of
from tiny import tiny_policy

needs_bf16 = pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
FAMILIES = ["gpt2", "llama", "qwen2", "gemma2"]


@contextmanager
def only(layout: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "TREE_SHARE", {"tree": 100.0, "flat": 0.0}[layout])
        yield


def in_double(name: str, *, frozen: int = 0) -> Any:
    model = copy.deepcopy(model_of(name)).double()
    freeze(model, frozen)
    return model


def gradients(model: Any, *, on: bool) -> tuple[float, dict[str, Tensor]]:
    """The DPO loss of one optimiser step in two micro-batches, and the gradient of each weight."""
    model.zero_grad()
    reference = torch.linspace(-9, -3, 2 * len(PAIRS), dtype=torch.float64).view(-1, 2)
    with checkpointed(model, on=on):
        loss = pair_step(Policy(model, None), PAIRS, reference, DPOLoss(), Cost())  # type: ignore[arg-type]
        shares = [loss(rows)[0] for rows in (range(3), range(3, 5))]
        for share in shares:  # backward after the next forward: a layout of its own to each
            share.backward()
    return sum(share.item() for share in shares), {
        name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None
    }


def kept_bytes(model: Any, *, on: bool) -> int:
    """What autograd holds between the forward and the backward pass, weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, int] = {}

    def pack_hook(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack_hook, lambda tensor: tensor), checkpointed(model, on=on):
        response_states(model, pack(PAIRS)).sum().backward()
    return sum(seen.values())


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("frozen", [0, 1])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_without_it(name: str, frozen: int, layout: str) -> None:
    model = in_double(name, frozen=frozen)
    with only(layout):
        loss, expected = gradients(model, on=False)
        again, found = gradients(model, on=True)
    assert again == pytest.approx(loss, rel=1e-12)
    assert found.keys() == expected.keys()
    everything = torch.stack([value.norm() for value in expected.values()]).norm()
    assert everything > 1e-4
    for key, value in expected.items():
        assert (found[key] - value).norm() <= 1e-12 * max(value.norm(), 1e-3 * everything), key


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("name", FAMILIES)
def test_trained_blocks_run_twice_and_frozen_ones_once(name: str, layout: str) -> None:
    model = in_double(name, frozen=1)
    runs = [0, 0]
    for number, block in enumerate(transformer_blocks(model)):
        attention = next(part for part in block.children() if "Attention" in type(part).__name__)

        def count(*args: Any, number: int = number) -> None:
            runs[number] += 1

        attention.register_forward_hook(count)
    with only(layout), torch.no_grad():
        response_logprobs(model, pack(PAIRS))  # with the passes that try what the model can do
    runs[:] = [0, 0]
    with only(layout), checkpointed(model):
        response_logprobs(model, pack(PAIRS)).sum().backward()
        assert runs == [1, 2]
        with torch.no_grad():
            response_logprobs(model, pack(PAIRS))
        assert runs == [2, 3]  # without gradients once
    assert all(p.grad is None for p in transformer_blocks(model)[0].parameters())


@pytest.mark.parametrize("layout", ["tree", "flat"])
def test_a_block_keeps_its_input_alone(layout: str) -> None:
    """Of GPT-2: [cell, width] a block, and one for the last norm, instead of some twenty a block."""
    model = in_double("gpt2")
    with only(layout):
        whole, less = kept_bytes(model, on=False), kept_bytes(model, on=True)
        batch = pack(PAIRS)
        cells = batch.token_ids.numel() if layout == "flat" else scoring.readings(batch)[1].cells
    state = cells * 16 * 8
    assert 3 * state <= less < 8 * state
    assert whole > 3 * less


def test_the_layers_of_another_pass_dont_disturb_it() -> None:
    """A flat pass between the forward and the backward pass of a tree, as of a value model."""
    model, other = in_double("llama"), in_double("gpt2")
    batch = pack(PAIRS)
    with only("tree"):
        loss = response_logprobs(model, batch).sum()
        loss.backward()
        expected = {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
    with checkpointed(model, other):
        with only("tree"):
            loss = response_logprobs(model, batch).sum()
        with only("flat"):
            more = response_logprobs(other, batch).sum()
        (loss + more).backward()
    for key, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(p.grad, expected[key], rtol=1e-12, atol=1e-12)


def test_a_model_is_left_as_it_was_and_saves_the_same_files(tmp_path: Path) -> None:
    policy = tiny_policy()
    blocks = transformer_blocks(policy.model)
    forward = [block.forward for block in blocks]
    policy.model.save_pretrained(tmp_path / "before")
    with checkpointed(policy.model):
        assert [block.forward for block in blocks] != forward
        policy.model.save_pretrained(tmp_path / "inside")
    assert [block.forward for block in blocks] == forward
    assert not any("forward" in vars(block) for block in blocks)
    for file in (tmp_path / "before").iterdir():
        assert file.read_bytes() == (tmp_path / "inside" / file.name).read_bytes(), file.name


def test_a_copy_made_inside_runs_its_own_blocks() -> None:
    policy = tiny_policy()
    batch = pack([Tree("t", (5, 6, 7), ((8, 9), (10, 11, 12)))])
    with checkpointed(policy.model):
        before = response_logprobs(policy.model, batch)
        reference = copy_of(policy.model)
        with torch.no_grad():
            for parameter in transformer_blocks(policy.model).parameters():
                parameter.mul_(1.5)
        torch.testing.assert_close(response_logprobs(reference, batch), before.detach())
        assert (response_logprobs(policy.model, batch) - before).abs().max() > 1e-3


def test_it_ends_where_what_it_holds_fails() -> None:
    model = tiny_policy().model
    with pytest.raises(ZeroDivisionError), checkpointed(model):
        _ = 1 / 0
    assert not any("forward" in vars(block) for block in transformer_blocks(model))


def test_a_run_ends_with_the_same_weights(tmp_path: Path) -> None:
    trees = [Tree(f"t:{i}", (5, 6, 7 + i), ((8, 9 + i), (10, 11, 12))) for i in range(6)]
    found = []
    for on in (False, True):
        policy = tiny_policy()
        settings = DPO(
            activation_checkpointing=on,
            batch=Batch(size=4, micro=2),
            optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0),
        )
        run = RunFolder.open(tmp_path / str(on), "a: 1\n")
        train_preference(policy, trees, settings, run, seed=0)
        found.append(policy.model.state_dict())
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, rtol=0, atol=1e-6)


@needs_bf16
@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("precision", ["bf16-autocast", "bf16"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_gradients_in_bf16_are_those_without_it(name: str, precision: Precision, layout: str) -> None:
    """Blocks run again in the backward pass, when the forward pass and its precision are over."""
    model = work_in(copy.deepcopy(model_of(name)), precision)
    with only(layout):
        loss, expected = gradients(model, on=False)
        again, found = gradients(model, on=True)
    assert again == loss
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(found[key], value), key


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("outside", [False, True])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_on_a_frozen_trunk_gradients_are_the_same_and_its_blocks_run_once(
    name: str, outside: bool, layout: str, tmp_path: Path
) -> None:
    """Whichever of the two begins first."""
    model = in_double(name, frozen=1)
    with only(layout):
        loss, expected = gradients(model, on=False)
    runs = [0, 0]
    for number, block in enumerate(transformer_blocks(model)):
        attention = next(part for part in block.children() if "Attention" in type(part).__name__)

        def count(*args: Any, number: int = number) -> None:
            runs[number] += 1

        attention.register_forward_hook(count)

    with only(layout), checkpointed(model, on=outside):
        split_of(model.base_model, 1, trained=True)  # runs all blocks to try them
        with frozen_trunk(model, 1, PAIRS, Trunk(), tmp_path, again=True):
            runs[:] = [0, 0]
            again, found = gradients(model, on=not outside)
            assert runs == [2, 4]  # two micro-batches: states of each, then the block above, twice
            gradients(model, on=not outside)
            assert runs == [2, 8]
    assert again == pytest.approx(loss, rel=1e-12)
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-9, atol=1e-12)
    assert not any("forward" in vars(block) for block in transformer_blocks(model))
