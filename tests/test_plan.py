"""The estimate of a pass's memory is what the pass takes; a dry run prints the plan and touches nothing."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from preflab.cli.main import COMMANDS, main
from preflab.config import commands
from preflab.config.load import to_yaml
from preflab.config.preference import DPO
from preflab.config.training import Batch, Fit, Optimizer, Precision, Trunk
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.models import scoring, trunk
from preflab.models.checkpointing import checkpointed
from preflab.models.freezing import freeze
from preflab.models.load import new_reward_model, save_model
from preflab.models.precision import has_bf16, work_in
from preflab.models.scoring import logprobs_of, reading, response_logprobs
from preflab.models.trunk import frozen_trunk, stored_bytes
from preflab.rollouts.sampler import sample
from preflab.runs import RunFolder, read_json
from preflab.training.memory import Alive, kept_by_optimizer, peak_of, sampling_peak, shape_of, watched
from preflab.training.offline import Loss, fit, total_steps
from preflab.training.plan import cut_offline
from preflab.training.session import Session
from test_layouts import drawn, model_of
from tiny import save_tiny, tiny_pairs, tiny_policy, write_jsonl

METHODS = ("sft", "reward", "dpo", "aot", "simpo", "kto", "ppo", "grpo", "online-dpo", "iterative-dpo")
PARTS = ("weights", "gradients", "optimiser", "activations", "logits", "frozen states", "the process")
LARGE = drawn(seed=5, shapes=[(20, (30, 25)), (31, (12, 33)), (25, (38, 38)), (14, (20, 26))])


def peak(alive: Alive) -> int:
    return max(map(sum, zip(alive.logits, alive.others, alive.gradients, strict=True)))


def test_bytes_alive_are_those_counted_by_hand() -> None:
    """y = exp(Wx), loss = Σ y: y and Wx, then the loss too; dloss/dy is expanded, dloss/d(Wx) and dW are made."""
    layer = nn.utils.skip_init(nn.Linear, 3, 5, bias=False)
    nn.init.ones_(layer.weight)
    x = torch.ones(7, 3)

    def loss() -> Tensor:
        value: Tensor = layer(x).exp().sum()
        return value

    found = watched(loss, [layer], vocabulary=0)
    row = 7 * 5 * 4
    assert max(found.others[:4]) == 2 * row  # the product and its exponential; the weights are not counted
    assert found.gradients[-1] == 5 * 3 * 4
    assert found.gradients[0] == 0
    assert layer.weight.grad is None


@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize(
    ("name", "layout"),
    [*((name, layout) for name in ("gpt2", "llama", "gemma2") for layout in ("tree", "flat")), ("mamba", "flat")],
)
def test_the_peak_on_a_large_micro_batch_is_told_by_small_ones(
    name: str, layout: str, on: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gemma 2 holds scores of all queries × keys; Mamba has no attention, and no layers to share prompts."""
    monkeypatch.setattr(scoring, "TREE_SHARE", {"tree": 2.0, "flat": 0.0}[layout])
    model = model_of(name)

    def loss(trees: Sequence[Tree]) -> Tensor:
        return response_logprobs(model, pack(trees)).sum()

    with checkpointed(model, on=on):
        told = peak_of(loss, [model], LARGE)
        real = watched(lambda: loss(LARGE), [model], vocabulary=model.get_input_embeddings().weight.shape[0])
    assert shape_of(model, LARGE).tree == (layout == "tree")
    assert told.total == pytest.approx(peak(real), rel=0.15)


@pytest.mark.skipif(not has_bf16(torch.device("cpu")), reason="this processor has no bf16 instructions")
@pytest.mark.parametrize("on", [False, True])
@pytest.mark.parametrize("precision", ["bf16-autocast", "bf16"])
def test_so_is_the_peak_in_bf16_with_frozen_blocks(precision: Precision, on: bool) -> None:
    model = work_in(copy.deepcopy(model_of("llama")), precision)
    freeze(model, 1)

    def loss(trees: Sequence[Tree]) -> Tensor:
        return response_logprobs(model, pack(trees)).sum()

    with checkpointed(model, on=on):
        told = peak_of(loss, [model], LARGE)
        real = watched(lambda: loss(LARGE), [model], vocabulary=model.get_input_embeddings().weight.shape[0])
    assert told.total == pytest.approx(peak(real), rel=0.15)


@pytest.mark.parametrize("prompt", [10, 200])
@pytest.mark.parametrize("name", ["gpt2", "llama", "mamba"])
def test_the_peak_of_sampling_is_told_by_small_samples(name: str, prompt: int) -> None:
    """Of a model that was not sampled before: what is tried once is no part of it. Long prompts are read in parts."""
    model, told = (copy.deepcopy(sampled_model(name)) for _ in range(2))
    prompts = [(row, *range(prompt - 1)) for row in range(40)]

    def draw() -> None:
        keys = [str(row) for row in range(len(prompts))]
        sample(model, prompts, keys=keys, end_id=-1, max_new_tokens=20, seed=0, batch_size=len(prompts))

    draw()
    taken = peak(watched(draw, [model], vocabulary=256))
    estimate = sampling_peak(told, [3, prompt], len(prompts), 20).total
    assert 0.8 * taken < estimate < 1.5 * taken


def sampled_model(name: str) -> Any:
    size = {"vocab_size": 256, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
    config = transformers.AutoConfig.for_model(name, **size)
    if name == "llama":
        config.intermediate_size = 64
    with torch.random.fork_rng(devices=[]):
        return transformers.AutoModelForCausalLM.from_config(config).eval()


def test_gradients_of_earlier_micro_batches_are_there_from_the_start() -> None:
    model = model_of("gpt2")

    def loss(trees: Sequence[Tree]) -> Tensor:
        return response_logprobs(model, pack(trees)).sum()

    one, several = (peak_of(loss, [model], LARGE, accumulates=more) for more in (False, True))
    assert several.gradients == sum(p.numel() for p in model.parameters()) * 4
    assert one.gradients < several.gradients


@pytest.mark.parametrize(("name", "bytes_a_weight"), [("adamw", 8), ("rmsprop", 4)])
def test_the_optimiser_keeps_its_moments_of_the_trained_weights(name: str, bytes_a_weight: int) -> None:
    model = nn.Sequential(nn.Linear(30, 40, bias=False), nn.Linear(40, 50, bias=False))
    model[0].requires_grad_(False)
    kept = kept_by_optimizer(model, Optimizer(name=name))  # type: ignore[arg-type]
    assert kept.gradients == 4 * 2000
    assert kept.masters == 0
    assert kept.moments == pytest.approx(bytes_a_weight * 2000, rel=1e-3)  # and a step count a tensor


def test_weights_in_bf16_have_masters_and_sums_of_their_gradients_are_float32() -> None:
    model = nn.Linear(30, 40, bias=False, dtype=torch.bfloat16)
    one, several = (kept_by_optimizer(model, Optimizer(), accumulates=more) for more in (False, True))
    assert (one.gradients, several.gradients) == (2 * 1200, 4 * 1200)
    assert one.moments == pytest.approx(8 * 1200, rel=1e-3)
    assert 8 * 1200 <= one.masters + one.temporaries <= 1.01 * 12 * 1200  # and gradients in float32, for a moment


@pytest.mark.parametrize("batch", [Batch(size=4, micro=2), Batch(size=4, tokens=20), Batch(size=5, order="length")])
def test_the_largest_micro_batch_is_one_that_the_run_takes(batch: Batch, tmp_path: Path) -> None:
    policy = tiny_policy()
    trees = [Tree(f"t:{i}", tuple(range(1, i + 2)), ((2, 3),)) for i in range(12)]
    taken: list[list[Tree]] = []

    def step(indices: Sequence[int], session: Session) -> Loss:
        def loss(positions: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
            taken.append([trees[indices[i]] for i in positions])
            return response_logprobs(policy.model, pack(taken[-1])).sum(), {}

        return loss

    settings = DPO(batch=batch, epochs=2)
    run = RunFolder.open(tmp_path / "run", "a: 1\n")
    fit(policy, trees, settings, run, step=step, seed=3, title="looked at", log_every=1)
    cut = cut_offline(policy, trees, settings, total_steps(12, settings), seed=3)
    assert cut.largest in taken
    assert reading(policy.model, cut.largest).cells == max(reading(policy.model, some).cells for some in taken)
    assert cut.accumulates == (len(taken) > total_steps(12, settings))


def test_states_of_frozen_blocks_count_as_the_file_holds_them(tmp_path: Path) -> None:
    model = copy.deepcopy(model_of("gpt2"))
    freeze(model, 1)
    trees = drawn(seed=6, shapes=[(20, (30, 25)), (31, (12, 33))])
    cells = 20 + 31 + 29 + 24 + 11 + 32  # a response's last token is not read
    assert stored_bytes(model, 1, trees, Trunk(), tmp_path) == cells * 16 * 4
    assert stored_bytes(model, 1, trees, Trunk(dtype="bf16"), tmp_path, ends=True) == (cells + 4) * 16 * 2
    assert stored_bytes(model, 1, trees, Trunk(disk_gib=0), tmp_path) == 0
    with frozen_trunk(model, 1, trees, Trunk(), tmp_path, again=True):
        logprobs_of(model, trees)
        kept = trunk._open[model.base_model][1]
        assert kept.file is not None
        assert kept.file.used == cells


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_tiny(folder / "base")
    save_model(new_reward_model(folder / "base", seed=0), folder / "reward")
    pairs = tiny_pairs(24)
    write_jsonl(folder / "pairs.jsonl", pairs)
    return folder


def command(name: str, shelf: Path, out: Path, *more: object) -> list[str]:
    cls = getattr(commands, COMMANDS[name].config)
    given: list[object] = [*name.split(), "--model", shelf / "base", "--data", shelf / "pairs.jsonl", "--out", out]
    if issubclass(cls, commands.RunOnline):
        given += ["--reward", shelf / "reward", "--lengths.response-tokens", 6, "--batch.size", 8]
        given += ["--rounds", 1] if issubclass(cls, Fit) else ["--batch.mini", 8]
    return [str(argument) for argument in (*given, *more)]


def planned(printed: str) -> dict[str, int]:
    """The parts of the memory, in MiB, and their sum."""
    rows = re.findall(r"^(?:  )?(\w[a-z ]+?) +([\d,]+) MiB", printed, re.M)
    return {name: int(mib.replace(",", "")) for name, mib in rows}


@pytest.mark.parametrize("method", METHODS)
def test_a_dry_run_prints_its_plan_and_leaves_no_folder(
    method: str, shelf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    main(command(f"train {method}", shelf, tmp_path / "out", "--dry-run"))
    printed = capfd.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for title in ("model", "data", "tokens", "steps", "layout", "reference", "peak memory"):
        assert re.search(rf"^{title} ", printed, re.M), title
    parts = planned(printed)
    total = parts.pop("peak memory")
    assert set(parts) <= set(PARTS)
    assert sum(parts.values()) == pytest.approx(total, abs=4)


def test_the_estimate_is_near_what_the_run_takes_and_the_run_folder_is_as_without_a_dry_run(
    shelf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    given = command("train dpo", shelf, tmp_path / "out", "--batch.size", 64, "--batch.micro", 64)
    main([*given, "--dry-run"])
    said = capfd.readouterr().out
    assert "to compute" in said
    main(given)
    files = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    measured = read_json(tmp_path / "out" / "evaluation.json")["cost"]["peak_memory_bytes"] / 2**20
    assert planned(said)["peak memory"] == pytest.approx(measured, rel=0.2)
    capfd.readouterr()
    main([*given, "--dry-run"])
    assert "from the cache" in capfd.readouterr().out
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file()} == files
    assert "dry_run" not in (tmp_path / "out" / "config.yaml").read_text()


def test_a_dry_run_is_no_part_of_the_settings_that_a_run_folder_holds() -> None:
    settings = commands.TrainDPO(model="m", data=Path("d"), out=Path("o"), dry_run=True)
    assert "dry_run" not in to_yaml(settings)


def test_a_dry_run_refuses_what_the_run_would_refuse(
    shelf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command("train dpo", shelf, tmp_path / "out", "--freeze-blocks", 9, "--dry-run"))
    assert stop.value.code == 2
    assert "the model has 2 blocks" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("before", "method", "more", "found"),
    [("dpo", "dpo", ("--freeze-blocks", 1, "--trunk.dtype", "bf16"), 0), ("bco", "kto", (), 1)],
)
def test_a_dry_run_asks_the_cache_for_what_the_run_asks(
    before: str,
    method: str,
    more: tuple[object, ...],
    found: int,
    shelf: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rounded states have log-probabilities of their own; KTO asks for each response after another prompt too."""
    monkeypatch.setenv("PREFLAB_CACHE", str(tmp_path / "cache"))
    main(command(f"train {before}", shelf, tmp_path / "before"))
    given = command(f"train {method}", shelf, tmp_path / "out", *more)
    capfd.readouterr()
    main([*given, "--dry-run"])
    said = re.search(r"^reference +(\d+) to compute, (\d+) from the cache", capfd.readouterr().out, re.M)
    assert said is not None
    missing = int(said[1])
    assert int(said[2]) == found * missing
    main(given)
    capfd.readouterr()
    main([*given, "--dry-run"])
    assert f"all {(1 + found) * missing} from the cache" in capfd.readouterr().out
