"""Frozen blocks run once, whatever the model, layout and method, and no number knows of it."""

from __future__ import annotations

import copy
import errno
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from enumerable import run_folder
from preflab.cli.main import main
from preflab.config.load import check, to_values
from preflab.config.pair_losses import SumLoss
from preflab.config.preference import DPO, KTO, WeightedSum
from preflab.config.training import SFT, Batch, Fit, Optimizer, Reward, Trunk
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.errors import ConfigError, Interrupted, NumericError
from preflab.losses import bradley_terry, dpo, masked_sum
from preflab.models import scoring
from preflab.models.freezing import freeze
from preflab.models.load import Policy, copy_of
from preflab.models.reference import ReferenceCache, space_of
from preflab.models.scoring import response_logprobs, response_scores
from preflab.models.state_file import StateFile
from preflab.models.trunk import GIB, frozen_trunk, split_of
from preflab.runs import read_json, read_lines
from preflab.training.preference import pair_logprobs, train_preference
from preflab.training.reward import train_reward
from preflab.training.session import Evaluate
from preflab.training.sft import train_sft
from preflab.training.unpaired import judged_pairs, train_unpaired
from tiny import save_tiny, tiny_pairs, write_jsonl

VOCABULARY, FROZEN, WIDTH = 40, 2, 16
SIZE: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": VOCABULARY,
        "n_positions": 64,
        "n_embd": WIDTH,
        "n_layer": 3,
        "n_head": 2,
        "pad_token_id": 0,
    },
    "llama": SIZE | {"tie_word_embeddings": False},
    "qwen2": SIZE | {"tie_word_embeddings": True},
    "gemma2": SIZE | {"head_dim": 4, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 5.0},
    "falcon": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3, "num_attention_heads": 2},
    "mamba": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "num_hidden_layers": 3, "state_size": 4},
    "bloom": {"vocab_size": VOCABULARY, "hidden_size": WIDTH, "n_layer": 3, "n_head": 2},
}
FAMILIES = ("gpt2", "llama", "qwen2", "gemma2")
EXACT = {"gpt2": 1e-10} | dict.fromkeys(FAMILIES[1:], 1e-6)
"""How far float64 may be off: the norms of the others are float32 in transformers, whatever the model is."""


@cache
def made(name: str, scores: bool) -> Any:
    config = transformers.AutoConfig.for_model(name, **OPTIONS[name])
    auto: Any = transformers.AutoModelForCausalLM
    if scores:
        config.num_labels = 1
        auto = transformers.AutoModelForSequenceClassification
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = auto.from_config(config).eval()
        with torch.no_grad():  # far from uniform, so that a wrong position shows
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.copy_(torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
    return model


def model_of(name: str, *, scores: bool = False, dtype: torch.dtype = torch.float64) -> Any:
    """A small model of three blocks, of which the first two and the embeddings are frozen."""
    model = copy.deepcopy(made(name, scores)).to(dtype)
    freeze(model, FROZEN)
    return model


def drawn(shapes: Sequence[tuple[int, int, int]], *, seed: int) -> list[Tree]:
    generator = torch.Generator().manual_seed(seed)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(1, VOCABULARY, (n,), generator=generator).tolist())

    return [Tree(f"t:{i}", ids(n), (ids(a), ids(b))) for i, (n, a, b) in enumerate(shapes)]


# Ragged; with responses of one token, and two pairs of one prompt.
PAIRS = drawn([(7, 1, 9), (1, 5, 2), (12, 20, 6), (3, 4, 4), (3, 1, 1), (5, 3, 8), (9, 2, 2)], seed=1)
PAIRS += [Tree("t:same prompt", PAIRS[2].prompt, ((5, 6, 7), (8,)))]
TOKENS = sum(map(len, {tree.prompt for tree in PAIRS}))
TOKENS += sum(len(response) - 1 for tree in PAIRS for response in tree.responses)  # the last one predicts nothing


@contextmanager
def laid_out(layout: str) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "TREE_SHARE", {"tree": 100.0, "flat": 0.0}[layout])
        yield


@contextmanager
def cells_of(*models: Any, block: int = 0) -> Iterator[list[int]]:
    """How many cells each pass through a block of these GPT-2s has, in the tree layout."""
    cells: list[int] = []
    with laid_out("tree"):
        for model in models:  # what a model can do is found out once
            split_of(model.base_model, FROZEN, trained=False)
            split_of(model.base_model, FROZEN, trained=True)
            pair_logprobs(model, PAIRS[:1])
        hooks = [
            model.base_model.h[block].ln_1.register_forward_hook(lambda m, args, out: cells.append(out[..., 0].numel()))
            for model in models
        ]
        yield cells
        for hook in hooks:
            hook.remove()


def plain_logprob(model: Any, tree: Tree) -> Tensor:
    """log π of a tree's responses, one sequence at a time, from the model's own logits."""
    found = []
    for response in tree.responses:
        logits = model(input_ids=torch.tensor([tree.prompt + response]), use_cache=False).logits[0]
        rows = logits[len(tree.prompt) - 1 : -1].log_softmax(-1)
        found.append(rows[torch.arange(len(response)), torch.tensor(response)].sum())
    return torch.stack(found)


def plain_score(model: Any, tree: Tree) -> Tensor:
    rows = [torch.tensor([tree.prompt + response]) for response in tree.responses]
    return torch.stack([model.score(model.base_model(input_ids=row)[0][0, -1])[0] for row in rows])


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}


def gap(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest error of a tensor, relative to its norm or a thousandth of the norm of all."""
    assert found.keys() == expected.keys()
    everything = torch.stack([value.double().norm() for value in expected.values()]).norm()
    assert everything > 1e-4, "nothing to compare"
    return max(
        float((found[name].double() - value).norm() / max(value.norm(), 1e-3 * everything))
        for name, value in expected.items()
    )


def dpo_loss(logprob: Tensor) -> Tensor:
    chosen, rejected = logprob.view(-1, 2).unbind(1)
    return dpo(chosen + 9.0, rejected + 8.0, beta=0.3).mean()


def kept_in(
    folder: Path,
    model: Any,
    trees: Sequence[Tree] = PAIRS,
    *,
    again: bool = True,
    reference: Any = None,
    **settings: Any,
) -> Any:
    return frozen_trunk(model, FROZEN, trees, Trunk(**settings), folder, again=again, reference=reference)


GRID = [(torch.float64, "working", 0.0), (torch.float32, "working", 1e-5), (torch.float32, "bf16", 2e-2)]


@pytest.mark.parametrize(("dtype", "kept", "within"), GRID, ids=["float64", "float32", "kept in bf16"])
@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_the_plain_path(
    name: str, layout: str, dtype: torch.dtype, kept: str, within: float, tmp_path: Path
) -> None:
    """States that are computed, that are read, and some of each."""
    model, exact, within = model_of(name, dtype=dtype), model_of(name), within or EXACT[name]
    with laid_out(layout), kept_in(tmp_path, model, dtype=kept):
        for trees in (PAIRS[:4], PAIRS[:4], PAIRS, PAIRS[::-1]):
            loss = dpo_loss(torch.cat([plain_logprob(exact, tree) for tree in trees]))
            batch = pack(trees)
            found = dpo_loss(masked_sum(response_logprobs(model, batch), batch.mask))
            assert found.item() == pytest.approx(loss.item(), rel=within)
            assert gap(gradients(model, found), gradients(exact, loss)) < within


@pytest.mark.parametrize("layout", ["tree", "flat"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_their_gradients_are_those_of_the_plain_path(name: str, layout: str, tmp_path: Path) -> None:
    """Scores are read at last tokens, which log-probabilities leave out."""
    model, exact = model_of(name, scores=True), model_of(name, scores=True)
    with laid_out(layout), kept_in(tmp_path, model):
        for trees in (PAIRS[:4], PAIRS[:4], PAIRS):
            scores = torch.stack([plain_score(exact, tree) for tree in trees])
            found = response_scores(model, pack(trees)).view(-1, 2)
            # A score is float32, whatever the model is.
            torch.testing.assert_close(found.double(), scores, atol=1e-6, rtol=1e-5)
            losses = [bradley_terry(*one.unbind(1)).mean() for one in (found, scores)]
            assert gap(gradients(model, losses[0]), gradients(exact, losses[1])) < 1e-5


METHODS: dict[str, Fit] = {"dpo": DPO(), "kto": KTO(), "sft": SFT(), "reward": Reward()}
DEMONSTRATIONS = [Tree(tree.origin, tree.prompt, tree.responses[:1]) for tree in PAIRS]


def train(
    method: str,
    model: Any,
    folder: Path,
    *,
    epochs: float = 2,
    evaluations: int = 1,
    reference: Any = None,
    cache: ReferenceCache | None = None,
    evaluate: Evaluate | None = None,
    **trunk: Any,
) -> list[Any]:
    """Two steps an epoch; returns the lines of metrics.jsonl."""
    run, policy = run_folder(folder), Policy(model, None)  # type: ignore[arg-type]
    settings: Any = METHODS[method]
    settings = type(settings)(
        epochs=epochs, batch=Batch(size=4, micro=2), evaluations=evaluations, freeze_blocks=FROZEN,
        trunk=Trunk(**trunk), optimizer=Optimizer(learning_rate=0.01, warmup_steps=0),
    )  # fmt: skip
    given: dict[str, Any] = {"seed": 0, "log_every": 1, "evaluate": evaluate}
    of_reference = {"reference": reference, "cache": cache}
    match method:
        case "dpo":
            train_preference(policy, PAIRS, settings, run, **given, **of_reference)
        case "kto":
            train_unpaired(policy, judged_pairs(PAIRS), settings, run, **given, **of_reference)
        case "sft":
            train_sft(policy, DEMONSTRATIONS, settings, run, **given)
        case "reward":
            train_reward(policy, PAIRS, settings, run, **given)
    return read_lines(run.metrics)


def weights(model: Any) -> dict[str, Tensor]:
    return {name: weight.detach() for name, weight in model.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_run_ends_with_the_weights_of_one_that_runs_all_blocks(name: str, method: str, tmp_path: Path) -> None:
    """Two epochs; with nothing kept, everything kept, and half of it."""
    start = model_of(name, scores=method == "reward")
    whole = copy.deepcopy(start)
    lines = train(method, whole, tmp_path / "whole", disk_gib=0)
    assert gap(weights(start), weights(whole)) > 0.01
    within = 1e-5 if method == "reward" else 100 * EXACT[name]  # a score is float32
    for disk_gib in (1.0, TOKENS * WIDTH * 8 / 2 / GIB):
        model = copy.deepcopy(start)
        assert [line["loss"] for line in train(method, model, tmp_path / str(disk_gib), disk_gib=disk_gib)] == (
            pytest.approx([line["loss"] for line in lines], rel=1e-5)
        )
        assert gap(weights(model), weights(whole)) < within


def test_the_trunk_runs_once_for_reference_and_policy_in_all_epochs(tmp_path: Path) -> None:
    model = model_of("gpt2")
    with cells_of(model) as cells:
        train("dpo", model, tmp_path / "kept")
        assert sum(cells) == TOKENS
        cells.clear()
        train("dpo", model, tmp_path / "not kept", disk_gib=0)
        assert sum(cells) > 3 * TOKENS
    with cells_of(model, block=FROZEN) as cells:
        train("dpo", model, tmp_path / "top")
        assert sum(cells) > 3 * TOKENS


def test_a_reference_with_equal_weights_but_another_config_shares_no_states(tmp_path: Path) -> None:
    model = model_of("gpt2")
    config = transformers.AutoConfig.for_model("gpt2", **OPTIONS["gpt2"], layer_norm_epsilon=0.1)
    reference = transformers.AutoModelForCausalLM.from_config(config).double().eval()
    reference.load_state_dict(model.state_dict())
    expected = pair_logprobs(reference, PAIRS)
    with kept_in(tmp_path, model, reference=reference):
        assert float((pair_logprobs(model, PAIRS) - expected).abs().max()) > 1e-3
        torch.testing.assert_close(pair_logprobs(reference, PAIRS), expected)


def test_one_epoch_runs_the_trunk_once_too(tmp_path: Path) -> None:
    model = model_of("gpt2")
    with cells_of(model) as cells:
        train("dpo", model, tmp_path, epochs=1)
        assert sum(cells) == TOKENS


def test_a_reference_with_the_same_frozen_weights_shares_the_states_and_another_does_not(tmp_path: Path) -> None:
    model = model_of("gpt2")
    same, other = copy_of(model), copy_of(model)
    with torch.no_grad():
        same.transformer.ln_f.weight.mul_(1.5)
        other.transformer.h[1].mlp.c_fc.weight[0, 0] += 1.0
    for reference, times in ((same, 1), (other, 2)):
        trained = copy.deepcopy(model)
        with cells_of(trained, reference) as cells:
            lines = train("dpo", trained, tmp_path / f"{times}", reference=reference, epochs=2)
        assert times * TOKENS <= sum(cells) < (times + 1) * TOKENS
        plain = train(
            "dpo", copy.deepcopy(model), tmp_path / f"{times}-plain", reference=reference, epochs=2, disk_gib=0
        )
        assert [line["loss"] for line in lines] == pytest.approx([line["loss"] for line in plain], rel=1e-6)


def test_states_that_nobody_reads_again_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_files: list[int] = []
    begin = StateFile.__init__

    def count(self: StateFile, *args: Any, **kwargs: Any) -> None:
        made_files.append(1)
        begin(self, *args, **kwargs)

    monkeypatch.setattr(StateFile, "__init__", count)
    train("sft", model_of("gpt2"), tmp_path / "once", epochs=1)
    assert not made_files
    train("sft", model_of("gpt2"), tmp_path / "twice", epochs=2)
    assert made_files == [1]


def saved_by_block(model: Any, loss: Callable[[], Tensor]) -> dict[int, int]:
    """How many tensors each block of a GPT-2 keeps for the backward pass."""
    at: list[int] = [-1]
    saved = dict.fromkeys(range(-1, 3), 0)
    hooks = []
    for number, block in enumerate(model.transformer.h):
        hooks.append(block.ln_1.register_forward_pre_hook(lambda m, args, number=number: at.append(number)))
        hooks.append(block.register_forward_hook(lambda m, args, out: at.append(-1)))

    def note(tensor: Tensor) -> Tensor:
        saved[at[-1]] += 1
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss().backward()
    for hook in hooks:
        hook.remove()
    return saved


@pytest.mark.parametrize("disk_gib", [0.0, 1.0])
def test_no_gradient_goes_through_frozen_blocks(disk_gib: float, tmp_path: Path) -> None:
    model = model_of("gpt2")
    batch = pack(PAIRS)
    with kept_in(tmp_path, model, disk_gib=disk_gib, again=False):
        saved = saved_by_block(model, lambda: response_logprobs(model, batch).sum())
    assert saved[0] == saved[1] == 0
    assert saved[2] > 5
    model.requires_grad_(True)
    assert saved_by_block(model, lambda: response_logprobs(model, batch).sum())[0] > 5


def test_states_rounded_to_bfloat16_are_those_of_policy_and_reference_alike(tmp_path: Path) -> None:
    """Or the first loss would not be ln 2; and no other run finds the rounded reference in the cache."""
    model, cache = model_of("gpt2"), ReferenceCache(tmp_path / "cache")
    plain = pair_logprobs(model, PAIRS)
    with kept_in(tmp_path, model, dtype="bf16"):
        rounded = [pair_logprobs(model, PAIRS) for _ in range(2)]
    assert torch.equal(*rounded)
    assert 1e-4 < float((rounded[0] - plain).abs().max()) < 0.5
    for number, dtype in enumerate(("working", "bf16", "working", "bf16")):
        trained = copy.deepcopy(model)
        lines = train("dpo", trained, tmp_path / str(number), epochs=1, cache=cache, dtype=dtype)
        assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
        assert read_json(tmp_path / str(number) / "start.json")["largest_logratio_nats"] < 1e-5
    assert len(list(cache.folder.iterdir())) == 2


def test_the_cache_tells_where_states_are_rounded_and_whether_those_of_a_tree_are(tmp_path: Path) -> None:
    others = drawn([(4, 3, 5)], seed=9)
    model = copy.deepcopy(made("gpt2", False))
    plain, found, spaces = space_of(model, PAIRS), [], []
    for blocks in (1, 2):
        freeze(model, blocks)
        with frozen_trunk(model, blocks, PAIRS, Trunk(dtype="bf16"), tmp_path, again=True):
            found.append(pair_logprobs(model, PAIRS))
            spaces.append(space_of(model, PAIRS))
            assert space_of(model, others) == plain
        model.requires_grad_(True)
    assert float((found[0] - found[1]).abs().max()) > 1e-4
    assert len({plain, *spaces}) == 3


def test_states_of_one_precision_are_not_read_in_another(tmp_path: Path) -> None:
    model = model_of("llama", dtype=torch.float32)

    def found() -> list[Tensor]:
        plain = pair_logprobs(model, PAIRS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return [plain, pair_logprobs(model, PAIRS)]

    whole = found()
    assert float((whole[0] - whole[1]).abs().max()) > 1e-3
    with kept_in(tmp_path, model):
        for _ in range(2):
            for one, other in zip(found(), whole, strict=True):
                torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_what_is_rounded_does_not_depend_on_the_room_on_the_disk(tmp_path: Path) -> None:
    models = [model_of("gpt2") for _ in range(2)]
    for model, disk_gib in zip(models, (1.0, 1e-9), strict=True):
        train("dpo", model, tmp_path / str(disk_gib), disk_gib=disk_gib, dtype="bf16")
    assert gap(weights(models[0]), weights(models[1])) < 1e-8


def test_evaluation_in_between_goes_through_the_whole_model(tmp_path: Path) -> None:
    model = model_of("gpt2")
    held_out = drawn([(4, 3, 5), (2, 6, 2)], seed=9)
    seen: list[Tensor] = []

    def evaluate(step: int) -> None:
        seen.append(pair_logprobs(model, held_out) - pair_logprobs(copy_of(model), held_out))

    train("dpo", model, tmp_path, dtype="bf16", evaluate=evaluate, evaluations=3)
    assert len(seen) == 3
    assert not torch.stack(seen).any()


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_ends_with_the_same_weights(method: str, tmp_path: Path) -> None:
    start = model_of("gpt2", scores=method == "reward")
    straight = copy.deepcopy(start)
    train(method, straight, tmp_path / "straight")

    def stop(step: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train(method, copy.deepcopy(start), tmp_path / "stopped", evaluate=stop, evaluations=3)
    resumed = copy.deepcopy(start)
    lines = train(method, resumed, tmp_path / "stopped", evaluations=3)
    assert len(lines) == len(read_lines(tmp_path / "straight" / "metrics.jsonl"))
    assert gap(weights(resumed), weights(straight)) < (1e-5 if method == "reward" else 1e-8)


def test_the_file_has_no_name(tmp_path: Path) -> None:
    """So no later start can read it, and a kill leaves nothing behind."""
    model = model_of("gpt2")
    with cells_of(model) as cells, kept_in(tmp_path, model):
        for _ in range(2):
            pair_logprobs(model, PAIRS)
            assert sum(cells) == TOKENS
            assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_other_frozen_weights_is_refused(tmp_path: Path) -> None:
    """The reference's states would be another model's."""

    def stop(step: int) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted):
        train("dpo", model_of("gpt2"), tmp_path, evaluate=stop, evaluations=3)
    other = model_of("gpt2")
    with torch.no_grad():
        other.transformer.h[0].ln_1.weight[0] = 2.0
    with pytest.raises(NumericError, match="frozen weights are not what they were when the run began"):
        train("dpo", other, tmp_path)


@pytest.mark.parametrize("disk_gib", [0.0, 1.0])
def test_frozen_weights_that_move_stop_the_run(disk_gib: float, tmp_path: Path) -> None:
    model = model_of("gpt2")

    def nudge(step: int) -> None:
        with torch.no_grad():
            weight = model.transformer.h[1].mlp.c_fc.bias
            weight[0] = torch.nextafter(weight[0], torch.tensor(9.0, dtype=weight.dtype))

    with pytest.raises(NumericError, match="frozen weights are not what they were"):
        train("sft", model, tmp_path, evaluate=nudge, disk_gib=disk_gib)


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join(capfd.readouterr().err.split())


def test_what_does_not_fit_is_counted_and_said_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    train("dpo", model_of("gpt2"), tmp_path / "half", disk_gib=TOKENS * WIDTH * 8 / 2 / GIB)
    line = said(capfd)
    assert line.count("frozen blocks: trunk.disk_gib") == 1
    assert "of 16 responses are computed each time; all of them take 0.1 GiB: free space, raise trunk.disk_gib" in line
    train("dpo", model_of("gpt2"), tmp_path / "whole")
    assert "frozen blocks" not in said(capfd)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="disk space can't be reserved here")
def test_a_full_disk_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    models = [model_of("gpt2") for _ in range(2)]
    train("dpo", models[0], tmp_path / "room")
    monkeypatch.setattr(os, "posix_fallocate", full)
    train("dpo", models[1], tmp_path / "full")
    assert "can't hold them (No space left on device), so the states of 16 of 16 responses" in said(capfd)
    assert gap(weights(models[1]), weights(models[0])) < 1e-8


def test_a_file_grows_up_to_its_budget_and_keeps_what_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preflab.models.state_file.FIRST_BYTES", 64)
    file = StateFile(tmp_path, width=3, dtype=torch.bfloat16, most_bytes=601)
    rows = (torch.arange(300.0) % 256).view(100, 3)
    assert [file.add(rows[i : i + 10]) for i in range(0, 100, 10)] == list(range(0, 100, 10))
    assert torch.equal(file.read(0, 100).float(), rows)  # whole numbers up to 256 are exact
    assert file.add(rows[:1]) is None


@pytest.mark.parametrize("name", ["falcon", "mamba"])
def test_blocks_that_return_tuples_or_know_no_attention_are_split_too(name: str, tmp_path: Path) -> None:
    model = model_of(name, dtype=torch.float32)
    plain = pair_logprobs(model, PAIRS)
    with kept_in(tmp_path, model):
        assert split_of(model.base_model, FROZEN, trained=True) is not None
        for _ in range(2):
            torch.testing.assert_close(pair_logprobs(model, PAIRS), plain, atol=1e-4, rtol=1e-5)


def test_a_model_that_trains_weights_below_its_frozen_blocks_runs_whole(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """BLOOM has a norm behind its embeddings."""
    model = model_of("bloom", dtype=torch.float32)
    with kept_in(tmp_path, model), kept_in(tmp_path, model):
        response_logprobs(model, pack(PAIRS)).sum().backward()
    assert float(model.transformer.word_embeddings_layernorm.weight.grad.norm()) > 0
    assert said(capfd).count("BloomModel runs its frozen blocks at every pass: weights below them are trained") == 1


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        (SFT(trunk=Trunk(disk_gib=2)), "trunk.disk_gib = 2.0 has no effect with freeze_blocks = 0"),
        (DPO(trunk=Trunk(dtype="bf16")), "trunk.dtype = bf16 has no effect with freeze_blocks = 0"),
        (KTO(freeze_blocks=1, trunk=Trunk(disk_gib=0, dtype="bf16")), "dtype = bf16 has no effect with disk_gib = 0"),
    ],
)
def test_settings_without_effect_are_refused(settings: Fit, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        check(settings)


def test_only_a_run_that_freezes_records_what_is_kept() -> None:
    assert "trunk" not in to_values(WeightedSum(loss=SumLoss(terms="dpo")))
    assert to_values(SFT(freeze_blocks=1))["trunk"] == {"disk_gib": 4.0, "dtype": "working"}


def test_the_command_trains_with_kept_states_and_a_dry_run_finds_its_reference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, data = save_tiny(tmp_path / "model"), write_jsonl(tmp_path / "pairs.jsonl", tiny_pairs(12))
    command = f"train dpo --model {model} --data {data} --out {tmp_path / 'run'} --freeze-blocks 1 --trunk.dtype bf16"
    main(f"{command} --epochs 2 --batch.size 4 --log-every 1 --evaluations 1".split())
    lines = read_lines(tmp_path / "run" / "metrics.jsonl")
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert lines[-1]["loss"] < 0.6931
    assert "dtype: bf16" in (tmp_path / "run" / "config.yaml").read_text()
    capsys.readouterr()
    main([*command.split(), "--dry-run"])
    assert "from the cache" in capsys.readouterr().out
    main([*command.replace("bf16", "working").split(), "--dry-run"])
    assert "to compute, 0 from the cache" in capsys.readouterr().out
