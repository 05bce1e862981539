"""The plan of a study: what is there and what is left, from real steps, and no folder behind."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from preflab.cli.study_plan import show_study_plan
from preflab.config.commands import Base, BestOfN, Budget, Compare, Generations, Lengths, Pairs, Prompts
from preflab.config.online import PPO, RolloutBatch
from preflab.config.pair_losses import DPOLoss
from preflab.config.preference import DPO, KTO
from preflab.config.presets import preset
from preflab.config.training import SFT, Batch, Reward
from preflab.errors import StorageError
from preflab.runs import read_json, read_lines
from preflab.studies.compare import compare, plan
from preflab.studies.jobs import Job
from preflab.studies.plan_study import Part, StudyPlan, makespan

SMALL: dict[str, Any] = {"epochs": 1, "batch": Batch(size=8), "evaluations": 2}
ARMS = ("reference", "dpo", "dpo+ppo", "kto", "best-of-n")


def study(out: Path) -> Compare:
    """As small as it gets."""
    return replace(
        preset("reviews"),
        out=out,
        arms=ARMS,
        prompts=Prompts(train=48, validation=8, test=12),
        lengths=Lengths(prompt_tokens=16, response_tokens=32),
        base=Base(texts=300, vocabulary=400, layers=1, width=32, heads=2),
        reference=SFT(batch=Batch(size=16), evaluations=1),
        pairs=Pairs(responses=3, per_prompt=2),
        reward=Reward(batch=Batch(size=16), evaluations=1),
        dpo=DPO(**SMALL, loss=DPOLoss(beta=0.3)),
        kto=KTO(**SMALL),
        ppo=PPO(updates=2, batch=RolloutBatch(size=8, mini=4), epochs=1, evaluations=2),
        best_of_n=BestOfN(n=4),
        log_every=1,
    )


def asking(out: Path) -> Compare:
    """The same, with two prompts that every arm answers and a judge of pairs that takes 5 ms a pair and 0.2 s once."""
    prompts, judge = out.parent / "prompts.txt", out.parent / "judge.py"
    prompts.write_text("the plot was\nher acting is\n")
    judge.write_text(
        "import time\nasked = []\n\ndef first(prompts, one, other):\n"
        "    time.sleep(0.005 * len(prompts) + (0 if asked else 0.2))\n    asked.append(len(prompts))\n"
        "    return [1.0] * len(prompts)\n"
    )
    return replace(study(out), generations=Generations(prompts=prompts, samples=2), pair_judge=f"{judge}:first")


@pytest.fixture(scope="module")
def before_and_after(tmp_path_factory: pytest.TempPathFactory) -> tuple[StudyPlan, StudyPlan, Path]:
    config = study(tmp_path_factory.mktemp("plan") / "study")
    before = plan(replace(config, dry_run=True))
    assert not config.out.exists()
    compare(config)
    return before, plan(config), config.out


def named(plan: StudyPlan) -> dict[str, Part]:
    return {part.name: part for part in (*plan.stages, *plan.references, *plan.arms)}


def test_a_plan_names_every_stage_and_arm_with_steps_time_memory_and_space(
    before_and_after: tuple[StudyPlan, StudyPlan, Path],
) -> None:
    before, _, _ = before_and_after
    parts = named(before)
    assert list(parts) == [
        *("base", "reference", "pairs, seed 0", "reward model, seed 0"),
        *("reference, seed 0", *(f"{arm}, seed 0" for arm in ARMS[1:])),
    ]
    assert {part.state for part in parts.values()} == {"to make"}
    assert all(part.seconds > 0 for part in parts.values())
    assert all(part.memory_bytes > 0 for part in parts.values() if part.steps)
    # 48 prompts × 2 pairs, 0.9 of them to learn from: 86 by 8; of KTO twice as many responses; 300 texts by 16.
    steps = {name.partition(",")[0]: part.steps for name, part in parts.items() if part.steps}
    assert steps["dpo"] == 11
    assert steps["kto"] == 22
    assert steps["base"] == 19
    assert steps["dpo+ppo"] == 2


def test_space_is_about_what_the_study_takes(before_and_after: tuple[StudyPlan, StudyPlan, Path]) -> None:
    before, _, folder = before_and_after
    taken = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert taken / 1.5 < before.disk_bytes < taken * 1.5


def test_steps_are_about_those_of_the_study(before_and_after: tuple[StudyPlan, StudyPlan, Path]) -> None:
    before, _, folder = before_and_after
    lines = (folder / "arms/dpo/seed-0/metrics.jsonl").read_text().splitlines()
    planned = named(before)["dpo, seed 0"].steps
    assert planned is not None
    assert abs(len(lines) - planned) <= 2  # pairs of equal texts are passed over


def test_what_is_made_takes_no_time(before_and_after: tuple[StudyPlan, StudyPlan, Path]) -> None:
    _, after, folder = before_and_after
    assert {part.state for part in named(after).values()} == {"made"}
    assert after.seconds == 0
    assert read_json(folder / "study.json")["complete"]


def test_what_finished_arms_are_still_asked_is_planned_and_then_made(
    before_and_after: tuple[StudyPlan, StudyPlan, Path],
) -> None:
    """5 arms, so 10 pairs of 12 test prompts both ways: 240 readings of 5 ms, and 0.2 s once. The beginning of the
    chain is an arm too. Best-of-n has no greedy response."""
    folder = before_and_after[2]
    config = asking(folder)
    found = plan(config)
    assert not list(folder.rglob("generations.jsonl"))
    assert {part.state for part in found.stages} == {"made"}
    assert {part.state for part in (*found.references, *found.arms)} == {"begun"}
    assert all(part.seconds > 0 for part in (*found.references, *found.arms))
    (judge,) = found.last
    assert (judge.name, judge.state) == ("judge of pairs", "to make")
    assert 0.2 + 240 * 0.005 <= judge.seconds < 2 * (0.2 + 240 * 0.005)
    assert found.seconds == pytest.approx(found.shared_seconds + found.arms_seconds + judge.seconds)
    compare(config)
    lines = {path.parent.parent.name: len(read_lines(path)) for path in folder.rglob("generations.jsonl")}
    assert lines == {"reference": 6, "dpo": 6, "dpo+ppo": 6, "kto": 6, "best-of-n": 4}
    after = plan(config)
    assert after.seconds == 0
    assert {part.state for part in (*named(after).values(), *after.last)} == {"made"}
    written = (folder / "judgements.json").stat().st_size
    assert written / 2 < after.last[0].disk_bytes < written * 2


def test_a_folder_with_other_settings_is_refused(before_and_after: tuple[StudyPlan, StudyPlan, Path]) -> None:
    with pytest.raises(StorageError, match="other settings"):
        plan(replace(study(before_and_after[2]), choose_by="last"))


def test_a_held_out_judge_variants_of_best_of_n_and_a_budget_are_planned(tmp_path: Path) -> None:
    """On a model of as few positions as fit: 16 + 24 tokens and two ends."""
    config = replace(
        study(tmp_path / "study"),
        arms=("dpo", "best-of-n@n=2", "best-of-n@n=64"),
        kto=preset("reviews").kto,
        ppo=preset("reviews").ppo,
        lengths=Lengths(prompt_tokens=16, response_tokens=24),
        judge=True,
        budget=Budget(measure="steps", amount=4),
        best_of_n=preset("reviews").best_of_n,
    )
    found = plan(config)
    parts = named(found)
    assert list(parts)[2:6] == [f"{name}, seed 0" for name in ("pairs", "judge pairs", "reward model", "judge")]
    # The judge learns from the pairs of all its prompts, as many as the arms have: 48 × 2 by 16, and 86 by 16.
    assert (parts["judge, seed 0"].steps, parts["reward model, seed 0"].steps) == (6, 6)
    assert parts["judge pairs, seed 0"].seconds > 0
    assert parts["best-of-n@n=64, seed 0"].seconds > 2 * parts["best-of-n@n=2, seed 0"].seconds
    console = Console(file=io.StringIO(), width=100)
    show_study_plan(found, console)
    assert isinstance(console.file, io.StringIO)
    assert "arms end when they have cost 4 steps; steps and time are the most" in console.file.getvalue()


def test_the_plan_is_printed_with_its_sums() -> None:
    part = Part("base", "to make", 813, 65.0, 2**29, 2**22)
    arm = Part("dpo, seed 0", "made", 43, 0.0, 0, 2**23)
    console = Console(file=io.StringIO(), width=100)
    judge = Part("judge of pairs", "begun", None, 20.0, 0, 2**20)
    show_study_plan(
        StudyPlan((part,), (), (arm,), jobs=2, arms_seconds=35.0, memory_bytes=2**30, last=(judge,)), console
    )
    assert isinstance(console.file, io.StringIO)
    lines = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "base to make 813 0:01:05 512 MiB 4 MiB" in lines
    assert "dpo, seed 0 made 43 8 MiB" in lines
    assert "judge of pairs begun 0:00:20 1 MiB" in lines
    assert "time about 0:02:00: shared 0:01:05, arms 0:00:35, judge of pairs 0:00:20" in lines
    assert "memory about 1,024 MiB at the peak, of all processes" in lines
    assert "disk about 13 MiB in the study folder" in lines


def test_a_chain_waits_for_the_arm_that_it_begins_with() -> None:
    jobs = [Job("dpo", 0), Job("sft", 0), Job("dpo+ppo", 0), Job("kto", 0)]
    assert makespan(jobs, [5.0, 1.0, 2.0, 1.0], 2) == 7.0


def test_an_arm_that_has_to_wait_is_overtaken() -> None:
    jobs = [Job("sft", 0), Job("sft+dpo", 0), Job("kto", 0)]
    assert makespan(jobs, [4.0, 1.0, 4.0], 2) == 5.0
    assert makespan(jobs, [4.0, 1.0, 4.0], 1) == 9.0
    assert makespan(jobs[1:], [1.0, 4.0], 2) == 4.0  # sft is finished
