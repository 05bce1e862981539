"""A study from the command line: resumed after kills it ends with the same figures, and its models load elsewhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

# A study of every stage, as small as it gets: about 15 seconds.
ARMS = ("reference", "sft", "dpo", "ppo", "ppo-gold", "dpo+ppo", "best-of-n")
TINY = (
    f"arms: [{', '.join(ARMS)}]"
    + """
prompts: {train: 48, validation: 8, test: 12}
lengths: {prompt_tokens: 16, response_tokens: 24}
base: {texts: 300, vocabulary: 400, layers: 1, width: 32, heads: 2, epochs: 1}
reference: {epochs: 1, batch: {size: 16}}
pairs: {responses: 2, per_prompt: 1}
reward: {epochs: 1, batch: {size: 16}}
sft: {epochs: 2, batch: {size: 8}, evaluations: 4}
dpo: {epochs: 2, batch: {size: 8}, evaluations: 4, loss: {beta: 0.1}}
ppo: {updates: 4, batch: {size: 8, mini: 4}, epochs: 1, evaluations: 4}
best_of_n: {n: 4}
log_every: 1
"""
)


def start(folder: Path, *flags: str) -> subprocess.Popen[str]:
    config = folder.parent / "tiny.yaml"
    config.write_text(TINY)
    command = [sys.executable, "-m", "preflab", "compare", "reviews", "--config", str(config), "--out", str(folder)]
    return subprocess.Popen(
        [*command, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output


def figures(folder: Path) -> dict[str, Any]:
    """All that a study found; what it cost in seconds and memory depends on the machine."""
    found = json.loads((folder / "comparison.json").read_text())
    for arm in found["arms"]:
        for name in ("wall_seconds", "peak_memory_bytes"):
            arm["cost"].pop(name)
    found["study"].pop("out")
    costs = [verdict for verdict in found["verdicts"] if "cost" in verdict["question"].lower()]
    found["verdicts"] = [verdict for verdict in found["verdicts"] if verdict not in costs]
    found["chapters"].pop("cost")
    said = found["chapters"]["verdicts"]
    said["findings"] = [item for item in said["findings"] if item["answer"] not in [cost["answer"] for cost in costs]]
    results = found["chapters"]["results"]["tables"]["results"]
    time_column = results["columns"].index("Time")
    results["rows"] = [row[:time_column] + row[time_column + 1 :] for row in results["rows"]]
    return dict(found)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("study") / "whole"
    return folder, finish(start(folder))


def test_a_study_ends_with_a_table_and_a_report(study: tuple[Path, str]) -> None:
    folder, output = study
    assert "Traceback" not in output
    assert str(folder / "report.html") in output
    assert "PPO" in output
    page = (folder / "report.html").read_text()
    assert "<svg" in page
    assert "http-equiv" in page


POINTS = {"reference": 1, "dpo+ppo": 5, "best-of-n": 2}  # a chain also where it starts; best of 2 and of 4


def test_every_arm_has_its_points_and_one_test_point(study: tuple[Path, str]) -> None:
    folder, _ = study
    found = json.loads((folder / "comparison.json").read_text())
    assert {arm["name"] for arm in found["arms"]} == set(ARMS)
    for arm in found["arms"]:
        rows = json.loads((folder / "arms" / arm["name"] / "seed-0" / "evaluation.json").read_text())
        splits = [point["split"] for point in rows["points"]]
        assert splits.count("test") == 1
        assert splits.count("validation") == POINTS.get(arm["name"], 4)
        assert rows["points"][-1]["step"] == rows["chosen_step"]
        if arm["name"] == "reference":
            assert all(abs(kl) < 1e-4 for point in rows["points"] for kl in point["rows"]["kl_nats"])
            assert all(win == 0.5 for point in rows["points"] for win in point["rows"]["win"])


def test_a_chain_goes_on_from_the_arm_that_it_begins_with(study: tuple[Path, str]) -> None:
    folder, output = study
    dpo, chain = (json.loads((folder / f"arms/{arm}/seed-0/evaluation.json").read_text()) for arm in ("dpo", "dpo+ppo"))
    start = next(point for point in chain["points"] if point["step"] == 0)
    chosen = next(point for point in dpo["points"] if point["step"] == dpo["chosen_step"])
    assert start["rows"] == chosen["rows"]
    assert chain["cost"]["trained_tokens"] > dpo["cost"]["trained_tokens"]
    assert not (folder / "stages" / "arms").exists()
    assert "DPO → PPO" in output


def test_no_prompt_stands_in_two_sets(study: tuple[Path, str]) -> None:
    folder, _ = study
    rows = json.loads((folder / "arms/dpo/seed-0/evaluation.json").read_text())["points"]
    validation, test = (
        {prompt for point in rows if point["split"] == split for prompt in point["rows"]["prompt"]}
        for split in ("validation", "test")
    )
    trained = {json.loads(line)["prompt"] for line in (folder / "stages/seed-0/pairs/train.jsonl").open()}
    samples = [json.loads(line) for line in (folder / "arms/dpo/seed-0/samples.jsonl").open()]
    assert not validation & test
    assert not trained & {sample["prompt"] for sample in samples}


def test_the_same_command_again_trains_nothing(study: tuple[Path, str]) -> None:
    folder, _ = study
    before = figures(folder)
    models = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    finish(start(folder))
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == models
    assert figures(folder) == before


def test_other_settings_are_refused_by_name(study: tuple[Path, str]) -> None:
    process = start(study[0], "--dpo.loss.beta", "0.7")
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 5
    assert "dpo.loss.beta is 0.1 there, 0.7 now; add dpo@loss.beta=0.7 as an arm of its own" in " ".join(output.split())


@pytest.mark.parametrize("arm", ["reference", "dpo", "dpo+ppo"])
def test_saved_policies_generate_the_same_greedy_text_elsewhere(
    study: tuple[Path, str], arm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from preflab.cli.main import main

    folder = study[0] / "arms" / arm / "seed-0" / "model"
    main(["generate", str(folder), "--prompt", "The plot was", "--greedy", "--max-new-tokens", "20"])
    ours = json.loads(capsys.readouterr().out)["response"]
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    inputs = tokenizer("The plot was", return_tensors="pt")
    with torch.no_grad():
        output = model.generate(
            inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=False, max_new_tokens=20
        )
    theirs = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert ours == theirs


# Each names a file whose appearance says that a stage is under way.
STAGES = [
    "stages/base/metrics.jsonl",
    "stages/seed-0/pairs",
    "stages/seed-0/reward-model/metrics.jsonl",
    "arms/sft/seed-0/checkpoints/step-3",
    "arms/dpo/seed-0/metrics.jsonl",
    "arms/ppo/seed-0/checkpoints/step-2",
    "arms/ppo-gold/seed-0/evaluation.json",
    "arms/dpo+ppo/seed-0/checkpoints/step-2",
]


def test_a_study_killed_in_every_stage_ends_with_the_same_figures(study: tuple[Path, str], tmp_path: Path) -> None:
    folder = tmp_path / "killed"
    kills = 0
    for stage in STAGES:
        process = start(folder)
        deadline = time.monotonic() + 120
        while not (folder / stage).exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.communicate(timeout=60)
    assert kills >= len(STAGES) - 1  # the last stage may be over before the kill
    finish(start(folder))
    assert figures(folder) == figures(study[0])
