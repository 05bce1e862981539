"""The reference's log-probabilities on disk: what is a hit, what is a miss, and what a damaged cache does."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enumerable import letters_policy, run_folder
from preflab.cli.main import main
from preflab.config.pair_losses import BCOLoss, DPOLoss, IPOLoss, KTOLoss
from preflab.config.preference import BCO, DPO, IPO, KTO, Preference, Unpaired
from preflab.config.training import Batch, Optimizer
from preflab.data.encode import Tree
from preflab.data.pack import readings
from preflab.models import scoring
from preflab.models.head import head_of
from preflab.models.load import Policy, copy_of, load_policy, save_model
from preflab.models.reference import Entry, ReferenceCache, reference_logprobs, user_cache
from preflab.models.scoring import logprobs_of
from preflab.models.tree_check import takes_trees
from preflab.runs import read_json, read_lines
from preflab.training.preference import train_preference
from preflab.training.unpaired import judged_pairs, train_unpaired
from ragged import PAIRS, naive_logprob
from tiny import save_tiny, tiny_pairs, write_jsonl

Method = Preference | Unpaired
SMALL: dict[str, Any] = {"epochs": 2, "batch": Batch(size=4, micro=2), "evaluations": 1}
OPTIMIZER = Optimizer(learning_rate=0.01, warmup_steps=0)
METHODS: dict[str, Method] = {
    "dpo": DPO(**SMALL, optimizer=OPTIMIZER),
    "ipo": IPO(**SMALL, optimizer=OPTIMIZER),
    "kto": KTO(**SMALL, optimizer=OPTIMIZER),
    "bco": BCO(**SMALL, optimizer=OPTIMIZER),
}
OTHER_LOSS = {
    "dpo": DPOLoss(beta=0.7),
    "ipo": IPOLoss(tau=0.7),
    "kto": KTOLoss(beta=0.7),
    "bco": BCOLoss(beta=0.7),
}


@contextmanager
def counted(model: Any) -> Iterator[list[int]]:
    """The rows of each forward pass of a model, a row a response."""
    rows: list[int] = []
    head_of(model)  # what the model can do is found out once
    takes_trees(model.base_model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scoring, "TREE_SHARE", 0.0)
        hook = model.base_model.register_forward_pre_hook(
            lambda module, args, kwargs: rows.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        yield rows
        hook.remove()


def train(
    folder: Path, settings: Method, cache: ReferenceCache | None, *, reference: Any = None
) -> tuple[dict[str, torch.Tensor], list[Any]]:
    """Train on PAIRS; returns the weights and the metrics."""
    policy, run = letters_policy(spread=4.0), run_folder(folder)
    shared: dict[str, Any] = {"seed": 0, "reference": reference, "cache": cache, "log_every": 1}
    match settings:
        case Preference():
            train_preference(policy, PAIRS, settings, run, **shared)
        case Unpaired():
            train_unpaired(policy, judged_pairs(PAIRS), settings, run, **shared)
    return policy.model.state_dict(), read_lines(run.metrics)


def ask(model: Any, trees: Sequence[Tree], folder: Path) -> tuple[list[float], int]:
    """The log-probabilities, by a cache that knows the folder alone, and how many responses were computed."""
    with counted(model) as rows:
        found = reference_logprobs(model, trees, ReferenceCache(folder), title="reference")
    return found.logprobs.tolist(), sum(rows)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def warnings(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning:")]


def test_what_the_cache_gives_are_the_log_probabilities(tmp_path: Path) -> None:
    model = letters_policy(spread=4.0).model
    with torch.no_grad():
        naive = [float(naive_logprob(model, tree.prompt, response)) for tree in PAIRS for response in tree.responses]
    for computed in (16, 0):
        assert ask(model, PAIRS, tmp_path) == (pytest.approx(naive, abs=1e-5), computed)


@pytest.mark.parametrize("change", ["the folder", "the loss", "the rate", "the batches"])
@pytest.mark.parametrize("method", METHODS)
def test_other_settings_are_a_hit(method: str, change: str, tmp_path: Path) -> None:
    """In another run folder, and by another process's cache object."""
    settings, reference = METHODS[method], letters_policy(seed=1).model
    train(tmp_path / "first", settings, ReferenceCache(tmp_path / "cache"), reference=reference)
    match change:
        case "the loss":
            settings = dataclasses.replace(settings, loss=OTHER_LOSS[method])  # type: ignore[arg-type]
        case "the rate":
            settings = dataclasses.replace(settings, optimizer=Optimizer(learning_rate=0.02, warmup_steps=1))
        case "the batches":
            settings = dataclasses.replace(settings, batch=Batch(size=3, micro=1), epochs=1)
    with counted(reference) as rows:
        train(tmp_path / "second", settings, ReferenceCache(tmp_path / "cache"), reference=reference)
    assert rows == []


def test_five_values_of_beta_read_the_reference_once(tmp_path: Path) -> None:
    reference, cache = letters_policy(seed=1).model, ReferenceCache(tmp_path / "cache")
    models = []
    with counted(reference) as rows:
        for beta in (0.05, 0.1, 0.5, 1.0, 5.0):
            settings = dataclasses.replace(METHODS["dpo"], loss=DPOLoss(beta=beta))  # type: ignore[arg-type]
            models.append(train(tmp_path / str(beta), settings, cache, reference=reference)[0])
    assert sum(rows) == 2 * len(PAIRS)
    assert len(files(tmp_path / "cache")) == 1
    assert not torch.equal(models[0]["transformer.wte.weight"], models[4]["transformer.wte.weight"])


def test_the_same_model_from_elsewhere_is_a_hit(tmp_path: Path) -> None:
    """Saved and loaded, copied, frozen: the path of a model and its gradients are none of its content."""
    for name in ("a", "b"):
        save_model(letters_policy(), tmp_path / name)
    loaded = load_policy(tmp_path / "a").model
    expected, computed = ask(loaded, PAIRS, tmp_path / "cache")
    assert computed == 16
    frozen = copy_of(loaded)
    for model in (load_policy(tmp_path / "b").model, copy_of(loaded), frozen.requires_grad_(False)):
        assert ask(model, PAIRS, tmp_path / "cache") == (expected, 0)


def nudge(model: Any) -> None:
    """The smallest change there is, of one weight."""
    with torch.no_grad():
        weight = model.transformer.h[0].mlp.c_fc.weight
        weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(torch.inf))


def swap(model: Any) -> None:
    """Two weights of equal shape change places: the bytes are the same, the names are not."""
    block = model.transformer.h[0]
    block.ln_1.weight.data, block.ln_2.weight.data = block.ln_2.weight.data, block.ln_1.weight.data


def epsilon(model: Any) -> None:
    model.config.layer_norm_epsilon = 1e-3


CHANGES: dict[str, Callable[[Any], Any]] = {
    "one bit of a weight": nudge,
    "where weights stand": swap,
    "bfloat16": lambda model: model.bfloat16(),
    "float64": lambda model: model.double(),
    "the configuration": epsilon,
}


@pytest.mark.parametrize("change", CHANGES)
def test_another_model_or_precision_is_a_miss(change: str, tmp_path: Path) -> None:
    model = letters_policy(spread=4.0).model
    model.transformer.h[0].ln_1.weight.data = torch.arange(16) / 8
    assert ask(model, PAIRS, tmp_path)[1] == 16
    CHANGES[change](model)
    values, computed = ask(model, PAIRS, tmp_path)
    assert computed == 16
    # In bf16 batch mates show in the third digit, and equal pairs are computed once.
    assert values == pytest.approx(logprobs_of(model, PAIRS).tolist(), rel=1e-3 if change == "bfloat16" else 0)
    assert ask(model, PAIRS, tmp_path) == (values, 0)


def test_the_precision_of_matrix_products_counts(tmp_path: Path) -> None:
    model = letters_policy(spread=4.0).model
    full, _ = ask(model, PAIRS, tmp_path)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half, computed = ask(model, PAIRS, tmp_path)
        assert computed == 16
    assert half != full
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert ask(model, PAIRS, tmp_path)[1] == 16
    finally:
        torch.set_float32_matmul_precision(before)
    assert ask(model, PAIRS, tmp_path) == (full, 0)


TREE = Tree("t:1", (2, 3), ((4, 5, 1), (3, 1)))
NEIGHBOURS = {
    "a token of the prompt": Tree("t:1", (2, 4), TREE.responses),
    "a token of a response": Tree("t:1", TREE.prompt, ((4, 4, 1), (3, 1))),
    "a longer response": Tree("t:1", TREE.prompt, ((4, 5, 1), (3, 1, 1))),
    "the end of the prompt": Tree("t:1", (2,), ((3, 4, 5, 1), (3, 3, 1))),
    "the order of responses": Tree("t:1", TREE.prompt, TREE.responses[::-1]),
    "one response alone": Tree("t:1", TREE.prompt, TREE.responses[:1]),
}


@pytest.mark.parametrize("change", NEIGHBOURS)
def test_another_token_is_a_miss_of_its_tree_alone(change: str, tmp_path: Path) -> None:
    model, other = letters_policy(spread=4.0).model, NEIGHBOURS[change]
    ask(model, [TREE, *PAIRS], tmp_path)
    values, computed = ask(model, [other, *PAIRS], tmp_path)
    assert computed == len(other.responses)
    assert values == pytest.approx(logprobs_of(model, [other, *PAIRS]).tolist(), abs=1e-5)


def test_where_a_tree_comes_from_and_when_is_no_content(tmp_path: Path) -> None:
    model = letters_policy(spread=4.0).model
    values, _ = ask(model, PAIRS, tmp_path)
    moved = [dataclasses.replace(tree, origin="other.jsonl:1") for tree in reversed(PAIRS)]
    found, computed = ask(model, moved, tmp_path)
    assert computed == 0
    assert torch.equal(torch.tensor(found).view(-1, 2).flip(0), torch.tensor(values).view(-1, 2))


def test_more_data_computes_what_is_new_and_less_nothing(tmp_path: Path) -> None:
    model = letters_policy(spread=4.0).model
    live = logprobs_of(model, PAIRS).tolist()
    some, computed = ask(model, PAIRS[2:6], tmp_path)
    assert computed == 8
    more, computed = ask(model, PAIRS, tmp_path)
    assert computed == 8
    assert more[4:12] == some
    assert more == pytest.approx(live, abs=1e-5)
    assert ask(model, PAIRS[::3], tmp_path)[1] == 0


def test_a_tree_that_comes_twice_is_computed_once(tmp_path: Path) -> None:
    model, twice = letters_policy(spread=4.0).model, [*PAIRS, PAIRS[3]]
    with counted(model) as rows:
        live = reference_logprobs(model, twice, None, title="reference")
    assert sum(rows) == 16
    assert live.read.cells == readings(PAIRS)[0].cells  # a row a response
    assert live.logprobs.view(-1, 2)[3].equal(live.logprobs.view(-1, 2)[8])
    assert ask(model, twice, tmp_path) == (live.logprobs.tolist(), 16)


def test_what_was_found_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = letters_policy().model
    ask(model, PAIRS[:5], tmp_path)
    assert "cache" not in capsys.readouterr().err
    ask(model, PAIRS, tmp_path)
    assert "reference: 5 of 8 from the cache\n" in capsys.readouterr().err


def truncated(data: bytes) -> list[bytes]:
    return [data[:length] for length in range(0, len(data), 97)]


def flipped(data: bytes) -> list[bytes]:
    return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in (*range(0, len(data), 61), len(data) - 1)]


DAMAGE: dict[str, Callable[[bytes], list[bytes]]] = {
    "truncated": truncated,
    "one bit flipped": flipped,
    "garbage": lambda data: [b"{}", b"\0" * len(data), data + b"\n", random.Random(0).randbytes(len(data))],
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_found_said_once_and_made_good(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other file's entries are still there."""
    model = letters_policy(spread=4.0).model
    ask(model, PAIRS[:3], tmp_path)
    (kept,) = files(tmp_path)
    values, _ = ask(model, PAIRS, tmp_path)
    (file,) = set(files(tmp_path)) - {kept}
    data = file.read_bytes()
    for broken in DAMAGE[damage](data):
        file.write_bytes(broken)
        capsys.readouterr()
        assert ask(model, PAIRS, tmp_path) == (values, 10)
        (said,) = warnings(capsys)
        assert said.startswith(f"warning: {file} is damaged")
        assert ask(model, PAIRS, tmp_path) == (values, 0)
        assert not warnings(capsys)
        for made in set(files(tmp_path)) - {kept}:  # under another name, as it holds other seconds
            made.unlink()


def test_what_is_no_file_of_the_cache_is_left_alone_or_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = letters_policy(spread=4.0).model
    values, _ = ask(model, PAIRS, tmp_path)
    (file,) = files(tmp_path)
    (file.parent / "notes.txt").write_text("mine")
    (file.parent / "folder.safetensors").mkdir()
    assert ask(model, PAIRS, tmp_path) == (values, 0)
    assert len(warnings(capsys)) == 1
    file.unlink()
    (file.parent / "folder.safetensors").rmdir()
    assert ask(model, PAIRS, tmp_path) == (values, 16)
    assert not warnings(capsys)
    assert (file.parent / "notes.txt").read_text() == "mine"


def test_a_file_in_another_model_s_folder_is_never_a_hit(tmp_path: Path) -> None:
    first, second = letters_policy(spread=4.0).model, letters_policy(seed=1, spread=4.0).model
    ask(first, PAIRS, tmp_path)
    (file,) = files(tmp_path)
    expected, _ = ask(second, PAIRS[:1], tmp_path)
    (other,) = set(files(tmp_path)) - {file}
    file.rename(other.parent / file.name)
    values, computed = ask(second, PAIRS, tmp_path)
    assert computed == 14
    assert values == pytest.approx(logprobs_of(second, PAIRS).tolist(), abs=1e-5)
    assert values[:2] == expected


def entries(numbers: range) -> dict[bytes, Entry]:
    """Each number under its own key."""
    return {bytes([number]) * 32: Entry(torch.tensor([float(number)]), 1.0) for number in numbers}


def in_a_child(work: Callable[[], None]) -> int:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return child


def test_a_process_killed_while_it_writes_leaves_the_cache_whole(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = ReferenceCache(tmp_path)
    cache.write("space", entries(range(5)))

    def killed() -> None:
        os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment]
        cache.write("space", entries(range(5, 9)))

    _, status = os.waitpid(in_a_child(killed), 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(files(tmp_path)) == 2  # the whole one, and what the kill left
    assert cache.read("space").keys() == entries(range(5)).keys()
    cache.write("space", entries(range(5, 9)))
    assert cache.read("space").keys() == entries(range(9)).keys()
    assert not warnings(capsys)


def test_processes_that_write_at_the_same_time_lose_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def writing(first: int) -> Callable[[], None]:
        def work() -> None:
            for number in range(40):
                ReferenceCache(tmp_path).write("space", entries(range(number, number + first)))

        return work

    children = [in_a_child(writing(first)) for first in (2, 3)]
    ended = 0
    while ended < len(children):
        found = ReferenceCache(tmp_path).read("space")
        assert all(entry.logprobs.tolist() == [float(key[0])] for key, entry in found.items())
        child, status = os.waitpid(-1, os.WNOHANG)
        assert status == 0
        ended += child != 0
    assert ReferenceCache(tmp_path).read("space").keys() == entries(range(42)).keys()
    assert not warnings(capsys)


@pytest.mark.parametrize("trouble", ["the folder is a file", "the disk is full"])
def test_a_cache_that_cannot_be_written_is_said_once_and_stops_nothing(
    trouble: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, cache = letters_policy(spread=4.0).model, ReferenceCache(tmp_path / "cache")
    if trouble == "the folder is a file":
        (tmp_path / "cache").write_text("mine")
    else:

        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    for trees in (PAIRS, PAIRS[:5]):
        values = reference_logprobs(model, trees, cache, title="reference").logprobs
        assert values.equal(logprobs_of(model, trees))
    (said,) = warnings(capsys)
    assert "not kept for other runs: can't write" in said
    assert "PREFLAB_CACHE" in said
    assert [path.name for path in files(tmp_path)] == (["cache"] if trouble == "the folder is a file" else [])


@pytest.mark.parametrize("method", METHODS)
def test_a_run_is_the_same_with_no_cache_a_new_one_and_a_full_one(method: str, tmp_path: Path) -> None:
    """Bit for bit: weights and figures. Training reads the same rows in the same order."""
    cache = ReferenceCache(tmp_path / "cache")
    settings = METHODS[method]
    weights, metrics = train(tmp_path / "live", settings, None)
    assert metrics[0]["loss"] != metrics[-1]["loss"]
    for folder in ("new", "full"):
        again, lines = train(tmp_path / folder, settings, cache)
        assert lines == metrics
        assert all(torch.equal(value, weights[name]) for name, value in again.items())


def test_no_random_number_is_drawn(tmp_path: Path) -> None:
    model = letters_policy().model
    states = torch.get_rng_state(), np.random.get_state()[1].tobytes(), random.getstate()  # type: ignore[index,union-attr]
    for trees in (PAIRS[:3], PAIRS, PAIRS):
        ask(model, trees, tmp_path)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tobytes() == states[1]  # type: ignore[index,union-attr]
    assert random.getstate() == states[2]
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_a_reference_with_dropout_is_never_cached(tmp_path: Path) -> None:
    model = letters_policy(spread=4.0).model
    model.transformer.drop.p = 0.5
    model.train()
    first, second = ask(model, PAIRS, tmp_path), ask(model, PAIRS, tmp_path)
    assert first != second
    assert not files(tmp_path)


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_a_run_is_charged_the_same_whether_or_not_it_found_its_reference(method: str, tmp_path: Path) -> None:
    """Tokens, FLOPs and seconds of the pass, as they were when it was computed."""
    settings, reference = METHODS[method], letters_policy(seed=1).model
    trees = PAIRS if method == "dpo" else [example.tree for example in judged_pairs(PAIRS)]
    cache = ReferenceCache(tmp_path / "cache")
    first, again = (reference_logprobs(reference, trees, cache, title="reference") for _ in range(2))
    assert first.seconds == again.seconds > 0
    costs = []
    for name in ("none", "empty", "full"):
        policy, run = letters_policy(spread=4.0), run_folder(tmp_path / name)
        given = None if name == "none" else ReferenceCache(tmp_path / "other")
        if isinstance(settings, Preference):
            costs.append(train_preference(policy, PAIRS, settings, run, seed=0, reference=reference, cache=given))
        elif isinstance(settings, Unpaired):
            examples = judged_pairs(PAIRS)
            costs.append(train_unpaired(policy, examples, settings, run, seed=0, reference=reference, cache=given))
    assert len({cost.scored_tokens for cost in costs}) == 1
    assert len({cost.flops for cost in costs}) == 1
    assert costs[0].scored_tokens >= first.read.cells


def test_seconds_of_an_earlier_run_are_those_that_are_charged(tmp_path: Path) -> None:
    """An hour that another run took is an hour of this one's method."""
    policy, cache = letters_policy(spread=4.0), ReferenceCache(tmp_path / "cache")
    reference_logprobs(policy.model, PAIRS, cache, title="reference")
    (file,) = files(tmp_path / "cache")
    slow = {key: Entry(entry.logprobs, 450.0) for key, entry in cache.read(file.parent.name).items()}
    file.unlink()
    cache.write(file.parent.name, slow)
    settings = METHODS["dpo"]
    assert isinstance(settings, Preference)
    cost = train_preference(policy, PAIRS, settings, run_folder(tmp_path / "run"), seed=0, cache=cache)
    assert 3600 < cost.wall_seconds < 3660


def test_the_user_s_cache_is_where_the_system_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("PREFLAB_CACHE", str(tmp_path / "own"))
    assert user_cache().folder == tmp_path / "own" / "reference-logprobs"
    monkeypatch.setenv("PREFLAB_CACHE", "")
    assert user_cache().folder == tmp_path / "xdg" / "preflab" / "reference-logprobs"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert user_cache().folder == tmp_path / ".cache" / "preflab" / "reference-logprobs"


@pytest.mark.parametrize("method", ["dpo", "kto"])
def test_commands_share_the_user_s_cache(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Training and held-out figures are those of a run that computed its reference, bit for bit."""
    monkeypatch.setenv("COLUMNS", "200")
    model = save_tiny(tmp_path / "model")
    data = write_jsonl(tmp_path / "pairs.jsonl", tiny_pairs(24))
    flags = ["--batch.size", "8", "--log-every", "1", "--optimizer.learning-rate", "1e-2"]

    def run(out: str, *more: str) -> str:
        given = ["--model", str(model), "--data", str(data), "--out", str(tmp_path / out)]
        main(["train", method, *given, *flags, *more])
        return capfd.readouterr().err

    def figures(out: str) -> tuple[Any, Any]:
        return read_lines(tmp_path / out / "metrics.jsonl"), read_json(tmp_path / out / "evaluation.json")["held_out"]

    assert "from the cache" not in run("live")
    files_before = files(Path(os.environ["PREFLAB_CACHE"]))
    assert len(files_before) == (2 if method == "dpo" else 4)
    assert run("cached").count("from the cache") == len(files_before)
    assert figures("cached") == figures("live")
    assert run("other", "--loss.beta", "0.7").count("from the cache") == len(files_before)
    assert figures("other") != figures("live")
    assert files(Path(os.environ["PREFLAB_CACHE"])) == files_before


def test_policies_that_are_their_own_reference_share_the_cache(tmp_path: Path) -> None:
    """The weights are those before the first step, not those that training leaves."""
    cache = ReferenceCache(tmp_path / "cache")
    policy: Policy = letters_policy(spread=4.0)
    settings = METHODS["dpo"]
    assert isinstance(settings, Preference)
    train_preference(policy, PAIRS, settings, run_folder(tmp_path / "first"), seed=0, cache=cache)
    assert ask(letters_policy(spread=4.0).model, PAIRS, tmp_path / "cache")[1] == 0
    train_preference(policy, PAIRS, settings, run_folder(tmp_path / "second"), seed=0, cache=cache)
    assert read_json(tmp_path / "second" / "start.json")["largest_logratio_nats"] < 1e-5
    assert len(files(tmp_path / "cache")) == 2
