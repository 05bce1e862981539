"""Arms side by side: the numbers of one after another, one reference pass, a clean stop, failures that stay apart."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file

from preflab.config.commands import Base, Budget, Compare, Lengths, Pairs, Prompts
from preflab.config.load import check, to_yaml
from preflab.config.online import PPO, RolloutBatch
from preflab.config.online_preference import IterativeDPO
from preflab.config.preference import BCO, DPO, IPO, KTO
from preflab.config.presets import preset
from preflab.config.training import SFT, Batch, Reward
from preflab.errors import Interrupted, NumericError
from preflab.runs import RunFolder, append_lines, read_json, write_json
from preflab.studies.arms_table import ArmsTable, Progress, Row, progress_of, total_of
from preflab.studies.compare import compare
from preflab.studies.jobs import Job, jobs_of

ARMS = ("reference", "dpo", "ipo", "kto", "bco", "sft+dpo", "ppo")
TINY = replace(
    preset("reviews"),
    prompts=Prompts(train=48, validation=8, test=12),
    lengths=Lengths(prompt_tokens=16, response_tokens=24),
    base=Base(texts=300, vocabulary=400, layers=1, width=32, heads=2),
    reference=SFT(batch=Batch(size=16), evaluations=1),
    pairs=Pairs(responses=2, per_prompt=1),
    reward=Reward(batch=Batch(size=16), evaluations=1),
    log_every=1,
)


def study(out: Path, arms: tuple[str, ...] = ARMS, *, epochs: float = 1) -> Compare:
    """As small as it gets."""
    small: dict[str, Any] = {"epochs": epochs, "batch": Batch(size=8), "evaluations": 2}
    methods = {
        "sft": SFT(**small),
        "dpo": DPO(**small),
        "ipo": IPO(**small),
        "kto": KTO(**small),
        "bco": BCO(**small),
        "ppo": PPO(updates=2, batch=RolloutBatch(size=8, mini=4), epochs=1, evaluations=2),
    }
    asked = {stage for arm in arms for stage in arm.split("+")}
    return replace(TINY, out=out, arms=arms, **{name: method for name, method in methods.items() if name in asked})


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Sums come in another order on another number of threads."""
    before, threads = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    if before is None:
        del os.environ["OMP_NUM_THREADS"]


@pytest.fixture(scope="module")
def twice(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A study whose arms ran one after another, and those of the same study, run again two at a time."""
    config = study(tmp_path_factory.mktemp("jobs") / "study")
    compare(config)
    alone = config.out.with_name("alone")
    alone.mkdir()
    for part in ("arms", "stages/arms", "stages/reference-logprobs"):
        shutil.move(config.out / part, alone / part.replace("/", "-"))
    compare(replace(config, jobs=2))
    return alone, config.out


def numbers(run: Path) -> dict[str, Any]:
    """What an arm found and said; seconds and memory depend on the machine."""
    evaluation = json.loads((run / "evaluation.json").read_text())
    for name in ("wall_seconds", "peak_memory_bytes"):
        evaluation["cost"].pop(name)
    metrics = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    lines = [json.loads(line) for line in metrics.splitlines()]
    kept = [{key: value for key, value in line.items() if not re.search("second|memory", key)} for line in lines]
    return {"evaluation": evaluation, "metrics": kept, "samples": (run / "samples.jsonl").read_text()}


@pytest.mark.parametrize("arm", [*ARMS, "sft"])
def test_two_at_a_time_is_bit_for_bit_one_after_another(twice: tuple[Path, Path], arm: str) -> None:
    alone, together = twice
    # What a chain begins with lies with the stages.
    of = [alone / "stages-arms", together / "stages/arms"] if arm == "sft" else [alone / "arms", together / "arms"]
    ours, theirs = (folder / arm / "seed-0" for folder in of)
    assert numbers(ours) == numbers(theirs)
    weights, others = (load_file(run / "model/model.safetensors") for run in (ours, theirs))
    assert weights.keys() == others.keys()
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_the_reference_is_asked_as_often_and_for_the_same(twice: tuple[Path, Path]) -> None:
    alone, together = twice

    def passes(folder: Path) -> list[dict[str, Any]]:
        files = [load_file(file) for file in folder.rglob("*.safetensors")]
        return sorted(({k: f[k].tolist() for k in ("keys", "logprobs")} for f in files), key=lambda f: f["keys"])

    before, after = passes(alone / "stages-reference-logprobs"), passes(together / "stages/reference-logprobs")
    assert len(before) == 3  # pairs for DPO, IPO and the chain; responses for KTO and BCO; KTO's with other prompts
    assert after == before


def test_each_process_writes_a_log_of_its_own(twice: tuple[Path, Path]) -> None:
    _, together = twice
    logs = {log.parent.parent.name: log.read_text() for log in (together / "arms").glob("*/seed-0/log.txt")}
    assert set(logs) == set(ARMS) - {"reference"}
    assert "ppo, seed 0" in logs["ppo"]
    assert not any("\x1b" in log or "Traceback" in log for log in logs.values())


def test_the_study_says_how_many_ran_at_a_time_and_is_the_same_study(twice: tuple[Path, Path]) -> None:
    written = read_json(twice[1] / "study.json")
    assert written["jobs"] == 2
    assert written["complete"]
    assert to_yaml(TINY) == to_yaml(replace(TINY, jobs=3, dry_run=True))


@pytest.fixture
def begun(twice: tuple[Path, Path]) -> Iterator[Path]:
    """The study with its shared stages and the reference, no other arm begun."""
    folder = twice[1]
    kept = folder.with_name("kept")
    shutil.copytree(folder, kept)
    for arm in ARMS[1:]:
        shutil.rmtree(folder / "arms" / arm)
    yield folder
    shutil.rmtree(folder)
    kept.rename(folder)


def test_a_failed_arm_is_named_and_the_others_are_finished(begun: Path, capfd: pytest.CaptureFixture[str]) -> None:
    # A damaged start, as a disk may leave it: the chain's stage before DPO holds no numbers.
    model = begun / "stages/arms/sft/seed-0/model/model.safetensors"
    damage(model)
    arms = ("reference", "sft+dpo", "ipo")
    config = changed(begun, arms)
    with pytest.raises(NumericError) as error:
        compare(replace(config, jobs=2))
    assert re.match(r"sft\+dpo, seed 0: .* log-probabilities are not finite", str(error.value))
    assert str(begun / "arms/sft+dpo/seed-0/log.txt") in str(error.value)
    done = {arm["name"]: arm["done"] for arm in read_json(begun / "study.json")["arms"]}
    assert done == {"reference": True, "sft+dpo": False, "ipo": True}
    assert not read_json(begun / "study.json")["complete"]
    assert "sft+dpo, seed 0: failed after" in capfd.readouterr().err

    shutil.rmtree(begun / "arms/ipo")
    with pytest.raises(NumericError) as error:  # and one after another the same
        compare(config)
    assert "log-probabilities are not finite" in str(error.value)
    assert {arm["name"]: arm["done"] for arm in read_json(begun / "study.json")["arms"]} == done


def test_asked_to_stop_the_arms_save_and_the_same_command_goes_on(begun: Path) -> None:
    config = replace(changed(begun, ("reference", "dpo", "ipo"), epochs=40), jobs=2)
    logs = [begun / f"arms/{arm}/seed-0/metrics.jsonl" for arm in ("dpo", "ipo")]

    over = threading.Event()

    def stop() -> None:
        while not all(log.exists() for log in logs) and not over.wait(0.01):
            pass
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        with pytest.raises(Interrupted, match="the same command goes on") as error:
            compare(config)
    finally:
        over.set()
        thread.join()
    assert error.value.exit_code == 128 + signal.SIGTERM
    for log in logs:
        said = (log.parent / "log.txt").read_text()
        saved = re.search(r"stopped after step (\d+), saved", said)
        assert saved, said
        assert (log.parent / "checkpoints" / f"step-{saved[1]}").is_dir()


def damage(model: Path) -> None:
    """A weight that is no number."""
    from safetensors.torch import save_file

    tensors = load_file(model)
    tensors["transformer.ln_f.weight"][0] = torch.nan
    save_file(tensors, model, metadata={"format": "pt"})


def changed(folder: Path, arms: tuple[str, ...], *, epochs: float = 1) -> Compare:
    """The study with other arms, on the stages that are there."""
    config = study(folder, arms, epochs=epochs)
    (folder / "study.yaml").write_text(to_yaml(check(config)))
    return config


def test_jobs_come_in_order_and_a_chains_beginning_once() -> None:
    jobs = jobs_of(("reference", "sft+dpo+ppo", "sft", "dpo"), [3, 4])
    of_seed = ["sft", "sft+dpo", "sft+dpo+ppo", "dpo"]
    assert jobs == [Job(arm, seed) for seed in (3, 4) for arm in of_seed]


def test_progress_is_read_from_a_run_folder_whole_or_not(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    assert progress_of(run) == Progress()
    append_lines(run.metrics, [{"step": 5, "loss": 1.0}, {"step": 10, "loss": 0.5}])
    with open(run.metrics, "a") as file:
        file.write('{"step": 15, "lo')  # another process is writing
    assert progress_of(run) == Progress(step=10)
    points = [
        {"step": step, "split": split, "rows": {"reward": [reward, reward + 1], "kl_nats": [0.5, 1.5]}}
        for step, split, reward in ((5, "validation", 1.0), (10, "validation", 2.0), (5, "test", 7.0))
    ]
    write_json(run.evaluation, {"points": points, "chosen_step": 5, "cost": None})
    assert progress_of(run) == Progress(step=10, reward=2.5, kl_nats=1.0)
    (tmp_path / "rounds/0").mkdir(parents=True)  # of iterative DPO, whose rounds have logs of their own
    (tmp_path / "rounds/1").mkdir()
    for number, steps in enumerate((4, 3)):
        append_lines(tmp_path / f"rounds/{number}/metrics.jsonl", [{"step": steps}])
    assert progress_of(run).step == 7


def test_steps_that_a_budget_or_ties_can_end_before_are_said_to_be_the_most() -> None:
    config = replace(study(Path("unused"), ("reference", "dpo", "ppo")), iterative_dpo=IterativeDPO(rounds=2))
    assert total_of(config, "dpo", 20, 40) == "3"  # 20 pairs by 8
    assert total_of(config, "ppo", 20, 40) == "2"
    assert total_of(config, "best-of-n", 20, 40) == ""
    batch = config.iterative_dpo.batch.size
    for prompts in (6 * batch, 2 * batch):  # dealt out over two rounds
        whole = prompts // batch * config.iterative_dpo.epochs
        assert total_of(config, "iterative-dpo", 20, prompts) == f"≤ {whole:g}"
    bounded = replace(config, budget=Budget(measure="labels", amount=5))
    assert total_of(bounded, "dpo", 20, 40) == "≤ 3"
    assert Progress(step=2).note(total_of(bounded, "dpo", 20, 40)) == "step 2 of ≤ 3"


def test_the_table_shows_all_arms_and_on_a_low_terminal_those_that_matter(tmp_path: Path) -> None:
    rows = [
        Row(f"dpo@loss.beta={beta}", seed, RunFolder(tmp_path), 10, 40, state="done", seconds=12)
        for beta in (0.05, 0.1, 0.5)
        for seed in (0, 1)
    ]
    rows[3] = replace(rows[3], state="running", progress=Progress(20, 1.254, 0.5))
    rows[5] = replace(rows[5], state="waiting", seconds=0)

    def drawn(height: int) -> list[str]:
        console = Console(width=90, height=height, file=io.StringIO(), force_terminal=False)
        console.print(ArmsTable(tuple(rows), ("42",) * len(rows)))
        assert isinstance(console.file, io.StringIO)
        return [" ".join(line.split()) for line in console.file.getvalue().splitlines()]

    lines = drawn(40)
    assert lines[0] == "arm seed state step reward KL, nats seconds"
    assert len(lines) == 2 + len(rows)
    assert lines[5] == "dpo@loss.beta=0.1 1 running 20 of 42 1.25 0.50 12"
    assert lines[7] == "dpo@loss.beta=0.5 1 waiting 42"
    low = drawn(6)
    assert low[2:] == [lines[5], lines[7], "and 4 done"]
