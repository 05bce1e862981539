"""What the rollout benchmark compares: equal work, in turn, and the ratios that its tables show."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
sys.path[:0] = [str(BENCHMARKS), str(BENCHMARKS / "peers")]

import generate  # noqa: E402
import rollout_growth  # noqa: E402
import rollout_models  # noqa: E402
import rollout_speed  # noqa: E402
import turns  # noqa: E402
import work as peers_work  # noqa: E402

del sys.path[:2]

from preflab.rollouts.sampler import sample  # noqa: E402

WORKER = """
import sys
sys.path.insert(0, {peers!r})
from gate import Gate
gate, name = Gate(), sys.argv[1]
while True:
    with open({log!r}, "a") as log:
        log.write(name)
    gate.turn({{"name": name}})
"""


def made(shape: str) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return rollout_models.SHAPES[shape]().eval()


def test_workers_take_strict_turns_after_their_set_ups(tmp_path: Path) -> None:
    script, log = tmp_path / "worker.py", tmp_path / "log"
    script.write_text(WORKER.format(peers=str(BENCHMARKS / "peers"), log=str(log)), encoding="utf-8")
    calls = [turns.Call(name, [sys.executable, str(script), name], turns.environment()) for name in "AB"]
    told = turns.in_turn(calls, steps=3)
    assert log.read_text() == "AB" + 3 * "AB"
    assert [len(lines) for lines in told.values()] == [4, 4]
    assert all(line["cpu_seconds"] < 1 for line in told["A"][1:])
    assert "cpu_seconds" not in told["A"][0]


def test_a_worker_that_dies_ends_the_run_with_its_last_words(tmp_path: Path) -> None:
    call = turns.Call("someone", [sys.executable, "-c", "raise ValueError('no such model')"], turns.environment())
    with pytest.raises(SystemExit, match=r"someone died:[\s\S]*no such model"):
        turns.in_turn([call], steps=1)


def test_responses_of_the_ending_model_are_8_to_256_tokens_long_each_length_as_often() -> None:
    model = made("gpt2-tiny-ends")
    words = torch.randint(2, 500, (8, 32 + 255), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        chance = model(words).logits.softmax(-1)[:, 31:, peers_work.END].double()
    survives = torch.cat([torch.ones(8, 1), (1 - chance).cumprod(1)], 1)
    of_length = (survives[:, :-1] * chance).mean(0)  # of 1, 2, …, 256 tokens
    assert float(of_length[:7].sum()) < 1e-3
    eighths = of_length[7:255].reshape(8, 31).sum(1) / (1 - float(of_length[255]))
    assert float((eighths - 1 / 8).abs().max()) < 0.04
    assert abs(float((of_length * torch.arange(1, 257)).sum()) - 132) < 12


def test_the_other_models_never_end_by_themselves() -> None:
    words = torch.randint(2, 500, (4, 64), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ends = made("gpt2-tiny")(words).logits.log_softmax(-1)[..., peers_work.END]
    assert float(ends.max()) < -25


@pytest.mark.parametrize("cache", list(generate.CACHES))
def test_both_samplers_make_as_many_tokens_of_the_same_prompts(cache: str) -> None:
    model = made("gpt2-tiny")
    work = peers_work.Work("gpt2-tiny", prompts=3, samples=2, prompt_tokens=5, new_tokens=4, batch=4)
    with torch.random.fork_rng(devices=[]):
        theirs = generate.responses_of(model, work, 0, cache)
    prompts = peers_work.prompts_of(work, 0, 500)
    ours = sample(model, prompts, keys=["a", "b", "c"], end_id=500, max_new_tokens=4, seed=0, samples=2, batch_size=4)
    assert [len(response) for response in theirs] == [len(one.tokens) for one in ours] == 6 * [4]


def test_generate_samples_from_the_softmax_alone() -> None:
    # A model of three words, each response one token: counts against the softmax at temperature 1.
    model = made("gpt2-tiny")
    work = peers_work.Work("gpt2-tiny", prompts=1, samples=4000, prompt_tokens=3, new_tokens=1, batch=4000)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        drawn = torch.tensor(generate.responses_of(model, work, 0, "dynamic")).squeeze(1)
    with torch.no_grad():
        expected = 4000 * model(torch.tensor(peers_work.prompts_of(work, 0, 500))).logits[0, -1].softmax(-1)
    seen = torch.bincount(drawn, minlength=500)
    assert float((seen - expected).square().div(expected)[2:].sum()) < 498 + 5 * (2 * 498) ** 0.5


def test_the_written_tokenizer_reads_prompts_as_their_ids(tmp_path: Path) -> None:
    rollout_models.write(tmp_path, "gpt2-tiny")
    ids = peers_work.prompts_of(peers_work.Work("gpt2-tiny"), 3, 500)[7]
    assert AutoTokenizer.from_pretrained(tmp_path / "gpt2-tiny")(peers_work.text_of(ids)).input_ids == list(ids)
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2-tiny").generation_config.eos_token_id is None


def test_work_survives_the_command_line() -> None:
    work = peers_work.Work("gpt2-tiny", "grpo", prompts=8, samples=8, beta=0.04)
    assert peers_work.Work.of_json(work.json()) == work
    assert peers_work.odd_share([2, 3, 5, 8]) == 0.5


def test_a_quick_run_of_a_trainer_writes_the_row_and_keeps_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    row = rollout_speed.ROWS["grpo"]
    monkeypatch.setitem(rollout_speed.ROWS, "grpo", replace(row, workers=row.workers[:1]))
    out = tmp_path / "speed.json"
    out.write_text(json.dumps({"rows": {"tiny": recorded()}}), encoding="utf-8")
    arguments = ["--rows", "grpo", "--quick", "--steps", "1", "--peers", "none", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["rollout_speed.py", *arguments])
    rollout_speed.main()
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert set(rows) == {"tiny", "grpo"}
    worker = rows["grpo"]["workers"]["preflab quiet"]
    assert worker["steps"]["tokens"] == [4 * 2 * 8]
    assert worker["peak_bytes"] > worker["loaded_bytes"] > 2**26
    assert "| grpo: preflab quiet |" in capsys.readouterr().out


def one_worker(seconds: list[float], tokens: list[int], peak: int) -> dict[str, Any]:
    steps = {"cpu_seconds": seconds, "wall_seconds": seconds, "tokens": tokens, "longest": [64, 64]}
    return {"peak_bytes": peak, "loaded_bytes": 2**28, "versions": {"torch": "2.13.0"}, "steps": steps}


def recorded() -> dict[str, Any]:
    return {
        "commit": "abc",
        "machine": {"processor": "one", "cores": 2, "memory_gib": 24, "bf16": [], "load": 0.1},
        "workers": {
            "preflab fp32": one_worker([1.0, 1.0], [100, 100], 2**29),
            "generate fp32-dynamic": one_worker([3.0, 3.0], [100, 100], 2**30),
            "generate fp32-static": one_worker([2.0, 4.0], [100, 200], 2**31),
        },
    }


def test_the_table_holds_ours_against_the_fastest_setting_a_token() -> None:
    lines = rollout_speed.table({"rows": {"tiny": recorded()}}).splitlines()
    # Static: 6 s for 300 tokens, against 2 s for 200 of ours and 6 s for 200 of dynamic; memory 2²⁹ of 2³¹,
    # of which 2²⁸ were there before the work: 1 of 7.
    assert lines[2] == (
        "| tiny GPT-2, 64 prompts of 32 tokens, 64 new | 1.00 [1.00, 1.00] | `generate` fp32-static "
        "| 3.00 [2.00, 4.00] | 2.00 × | 2.00 [2.00, 2.00] × | 1.6 × | 0.25 × | 0.14 × |"
    )
    assert "| tiny: `generate` fp32-dynamic | 3.00 [3.00, 3.00] | 33 | 100 | 64 | 1,024 | 768 |" in lines


def test_what_a_step_reads_is_counted_as_by_hand() -> None:
    case = rollout_growth.Case(batch=4, prompt=10, response=3, responses=2, width=64)
    # 2 blocks of 12·64² weights and a head of 4,000·64; a cell's keys and values are 2·64 numbers a block. Two steps
    # follow the prompts: over 2 · 10 cells and 1, then 2 tokens of 4 responses.
    weights, cell = 2 * 12 * 64**2 + 4000 * 64, 2 * 2 * 64
    assert rollout_growth.bytes_read(case) == 4 * (2 * weights + cell * ((20 + 4) + (20 + 8)))


def test_the_picture_of_the_growth_is_drawn_from_the_json() -> None:
    rows = [
        {"value": value, "seconds": 1 / value, "products_seconds": 0.5 / value, "memory_seconds": 0.1 / value}
        for value in (1, 4, 16)
    ]
    drawn = rollout_growth.picture({"axes": {"batch": rows, "width": rows}}).file
    assert "responses at once" in drawn
    assert "matrix products alone" in drawn
