"""Budgets of arms: each measure ends a run after the step that reaches it, and says what it could not spend."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench import REWARD_COST, TINY, bench_of, evaluation, fill_shelf, points
from enumerable import run_folder
from preflab.config.commands import Budget, Measure
from preflab.config.preference import DPO
from preflab.config.training import SFT, Batch
from preflab.data.encode import Encoder, Tree
from preflab.runs import read_lines
from preflab.studies import arms
from preflab.studies.arms import Bench, run_arm
from preflab.studies.budget import labels_of, share_of, shortfall, spent_of
from preflab.training import session
from preflab.training.cost import Cost
from preflab.training.preference import train_preference
from preflab.training.sft import train_sft
from tiny import tiny_pairs, tiny_policy

PAIRS = 16
MANY: dict[str, Any] = {
    "dpo": dataclasses.replace(TINY.dpo, epochs=4, batch=Batch(size=4, micro=4)),  # 16 steps
    "kto": dataclasses.replace(TINY.kto, epochs=4, batch=Batch(size=8, micro=8)),
    "ppo": dataclasses.replace(TINY.ppo, updates=3),
    "online_dpo": dataclasses.replace(TINY.online_dpo, updates=3),
}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fill_shelf(tmp_path_factory.mktemp("shelf"))


def spending(shelf: Path, folder: Path, arm: str, measure: Measure, amount: float, **settings: Any) -> Bench:
    """An arm that was run on a budget."""
    named = {name: value for name, value in MANY.items() if name in arm.replace("-", "_")}
    bench = bench_of(shelf, folder, arm, **named | {"budget": Budget(measure=measure, amount=amount)} | settings)
    run_arm(bench, arm)
    return bench


def costs(shelf: Path, folder: Path, arm: str) -> list[Cost]:
    """What an arm without a budget costs after each of its steps, by a run of its own."""
    found: list[Cost] = []
    after = session.Session.after

    def seen(self: session.Session, done: int) -> None:
        found.append(Cost(**self.cost.values()))
        after(self, done)

    named = {name: value for name, value in MANY.items() if name in arm.replace("-", "_")}
    bench = bench_of(shelf, folder, arm, **named)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(session.Session, "after", seen)
        run_arm(bench, arm)
    return found


@pytest.mark.parametrize(
    ("measure", "amount", "steps"),
    [("steps", 3, 3), ("steps", 2.5, 3), ("examples", 12, 3), ("examples", 13, 4), ("labels", 9, 3), ("labels", 16, 4)],
)
def test_counted_measures_end_dpo_with_the_step_that_reaches_them(
    shelf: Path, tmp_path: Path, measure: Measure, amount: float, steps: int
) -> None:
    bench = spending(shelf, tmp_path, "dpo", measure, amount)
    assert read_lines(bench.folder("dpo").metrics)[-1]["step"] == steps
    assert max(points(bench, "dpo")) == steps  # the end is looked at
    cost = evaluation(bench, "dpo")["cost"]
    assert (cost["steps"], cost["examples"], cost["labels"]) == (steps, 4 * steps, min(4 * steps, PAIRS))


@pytest.mark.parametrize("measure", ["tokens", "flops"])
def test_tokens_and_flops_end_dpo_with_the_step_that_reaches_them(
    shelf: Path, tmp_path: Path, measure: Measure
) -> None:
    """The reference's pass is part of both kinds of run's cost, and counts."""
    whole = costs(shelf, tmp_path / "whole", "dpo")
    bench = spending(shelf, tmp_path / "some", "dpo", measure, 1e12)
    total = spent_of(measure, Cost(**evaluation(bench, "dpo")["cost"]))
    reference = total - spent_of(measure, whole[-1])
    assert (reference > 0) is (measure == "flops")
    amount = reference + (spent_of(measure, whole[4]) + spent_of(measure, whole[5])) / 2
    bench = spending(shelf, tmp_path / "bounded", "dpo", measure, amount)
    assert max(points(bench, "dpo")) == 6


def test_reward_calls_end_ppo_after_a_whole_update(shelf: Path, tmp_path: Path) -> None:
    bench = spending(shelf, tmp_path, "ppo", "reward-calls", 9)  # 8 an update
    cost = evaluation(bench, "ppo")["cost"]
    assert max(points(bench, "ppo")) == 2
    assert cost["reward_calls"] == 16
    assert (cost["steps"], cost["examples"]) == (4, 32)  # two epochs of one mini-batch of 8, twice


def test_calls_of_the_gold_reward_count_too(shelf: Path, tmp_path: Path) -> None:
    bench = spending(shelf, tmp_path, "online-dpo-gold", "reward-calls", 1)
    assert max(points(bench, "online-dpo-gold")) == 1


def test_seconds_are_those_of_training(shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = iter(range(10**6))
    monkeypatch.setattr("preflab.training.cost.time.perf_counter", lambda: float(next(ticks)))
    bench = spending(shelf, tmp_path, "sft", "seconds", 3, sft=SFT(epochs=4, batch=Batch(size=4), evaluations=2))
    assert max(points(bench, "sft")) == 3  # a second a step by this clock


def test_iterative_dpo_ends_within_a_round(shelf: Path, tmp_path: Path) -> None:
    bench = spending(shelf, tmp_path, "iterative-dpo", "steps", 1)
    assert max(points(bench, "iterative-dpo")) == 1
    assert evaluation(bench, "iterative-dpo")["cost"]["steps"] == 1
    assert not (bench.folder("iterative-dpo").path / "rounds" / "1").exists()


@pytest.mark.parametrize("measure", ["tokens", "labels"])
def test_the_reward_model_s_training_is_paid_before_the_first_step(
    shelf: Path, tmp_path: Path, measure: Measure
) -> None:
    """It takes a million tokens here, and all labels; ppo-gold's value model starts as it."""
    spent = {"tokens": REWARD_COST.trained_tokens, "labels": PAIRS}[measure]
    monkey = dataclasses.replace(REWARD_COST, examples=24, steps=3)
    bench = bench_of(shelf, tmp_path, "ppo", "ppo-gold", ppo=MANY["ppo"], budget=Budget(measure=measure, amount=spent))
    bench = dataclasses.replace(bench, preferences=dataclasses.replace(bench.preferences, reward_cost=monkey))
    for arm in ("ppo", "ppo-gold"):
        run_arm(bench, arm)
        assert list(points(bench, arm)) == [0]  # no step, but it is looked at
        cost = Cost(**evaluation(bench, arm)["cost"])
        assert (cost.steps, cost.examples, cost.labels) == (0, 0, PAIRS)
        said = shortfall(bench.config, arm, arms.settings_of(bench.config, arm), cost, idle=True)
        assert "took no step" in (said or "")


def test_a_chain_pays_for_its_stages_and_no_label_twice(shelf: Path, tmp_path: Path) -> None:
    bench = spending(shelf, tmp_path, "dpo+kto", "steps", 18, dpo=dataclasses.replace(MANY["dpo"], epochs=2))
    dpo, chain = evaluation(bench, "dpo")["cost"], evaluation(bench, "dpo+kto")["cost"]
    assert dpo["steps"] == 8
    assert (chain["steps"], max(points(bench, "dpo+kto"))) == (18, 10)
    assert chain["labels"] == PAIRS == dpo["labels"]


def test_evaluations_are_spread_over_what_is_done(shelf: Path, tmp_path: Path) -> None:
    """Of 16 steps a budget of 6 leaves 6: three looks at them, not at 5, 11 and 16."""
    settings = {"dpo": dataclasses.replace(MANY["dpo"], evaluations=3)}
    bench = spending(shelf, tmp_path / "bounded", "dpo", "steps", 6, **settings)
    assert list(points(bench, "dpo")) == [2, 4, 6]
    bench = spending(shelf, tmp_path / "ample", "dpo", "steps", 100, **settings)
    assert len(points(bench, "dpo")) == 3
    assert max(points(bench, "dpo")) == 16


def test_a_run_that_no_budget_ends_is_the_run_without_one(shelf: Path, tmp_path: Path) -> None:
    plain = bench_of(shelf, tmp_path / "plain", "dpo", dpo=MANY["dpo"])
    run_arm(plain, "dpo")
    bench = spending(shelf, tmp_path / "ample", "dpo", "steps", 1000)
    last = max(points(plain, "dpo"))
    assert points(bench, "dpo")[last] == points(plain, "dpo")[last]


def train(folder: Path, spent: Callable[[Cost], float] | None) -> Cost:
    policy = tiny_policy()
    encoder = Encoder(policy.tokenizer, prompt_tokens=12, response_tokens=8)
    trees = [
        Tree(f"t:{n}", encoder.prompt(row["prompt"]), (encoder.response(row["chosen"]),))
        for n, row in enumerate(tiny_pairs(8))
    ]
    settings = SFT(epochs=4, batch=Batch(size=4), evaluations=8)
    return train_sft(policy, trees, settings, run_folder(folder), seed=0, log_every=1, spent=spent)


def test_a_stopped_run_goes_on_counting_and_a_finished_one_takes_no_further_step(tmp_path: Path) -> None:
    def until(steps: int) -> Callable[[Cost], float]:
        return lambda cost: cost.steps / steps

    whole = train(tmp_path / "whole", until(5))
    assert whole.steps == 5
    assert train(tmp_path / "parts", until(2)).steps == 2
    assert train(tmp_path / "parts", until(5)).steps == 5  # as if it had been killed after two
    assert train(tmp_path / "parts", until(5)).steps == 5
    lines = [read_lines(tmp_path / name / "metrics.jsonl") for name in ("whole", "parts")]
    assert [(line["step"], line["loss"]) for line in lines[0]] == [(line["step"], line["loss"]) for line in lines[1]]
    assert train(tmp_path / "all", None).steps == 8


def test_the_reference_s_pass_counts_before_the_first_step(tmp_path: Path) -> None:
    policy = tiny_policy()
    encoder = Encoder(policy.tokenizer, prompt_tokens=12, response_tokens=8)
    pairs = [
        Tree(
            f"p:{n}",
            encoder.prompt(row["prompt"]),
            (encoder.response(row["chosen"]), encoder.response(row["rejected"])),
        )
        for n, row in enumerate(tiny_pairs(8))
    ]
    seen: list[int] = []

    def spent(cost: Cost) -> float:
        seen.append(cost.scored_tokens)
        return 0.0

    train_preference(policy, pairs, DPO(batch=Batch(size=4)), run_folder(tmp_path), seed=0, spent=spent)
    assert min(seen) > 0


def test_labels_are_counted_once_each() -> None:
    assert [labels_of(TINY.dpo, examples, 16) for examples in (4, 16, 40)] == [4, 16, 16]
    assert [labels_of(TINY.kto, examples, 16) for examples in (4, 5, 40)] == [2, 3, 16]
    assert labels_of(TINY.sft, 4, 16) == 4
    assert labels_of(TINY.ppo, 40, 16) == labels_of(TINY.iterative_dpo, 40, 16) == 0


@pytest.mark.parametrize(
    ("arm", "measure", "cost", "said"),
    [
        ("dpo", "steps", Cost(steps=61), "DPO ended at 61 % of the budget; raise dpo.epochs"),
        ("dpo@loss.beta=0.5", "flops", Cost(flops=99.9), "DPO, β 0.5 ended at 99 % of the budget; raise dpo.epochs"),
        ("dpo+ppo", "steps", Cost(steps=20), "DPO → PPO ended at 20 % of the budget; raise ppo.updates"),
        (
            "iterative-dpo",
            "steps",
            Cost(steps=1),
            "Iterative DPO ended at 1 % of the budget; raise iterative_dpo.epochs",
        ),
        (
            "iterative-dpo",
            "reward-calls",
            Cost(reward_calls=60),
            "Iterative DPO ended at 60 % of the budget: its rounds together ask the reward once about each prompt",
        ),
        (
            "ppo@updates=8",
            "tokens",
            Cost(trained_tokens=50),
            "PPO, updates 8 ended at 50 % of the budget; raise updates in its name",
        ),
        ("dpo", "reward-calls", Cost(), "DPO ended at 0 % of the budget: it asks no reward"),
        ("ppo", "labels", Cost(labels=16), "PPO ended at 16 % of the budget: there are no further labels for it"),
        ("dpo", "labels", Cost(labels=16), "DPO ended at 16 % of the budget: there are no further labels for it"),
        ("dpo", "steps", Cost(steps=100), None),
        ("reference", "steps", Cost(), None),
        ("best-of-n", "seconds", Cost(), None),
    ],
)
def test_what_a_study_warns_of(arm: str, measure: Measure, cost: Cost, said: str | None) -> None:
    config = dataclasses.replace(TINY, budget=Budget(measure=measure, amount=100))
    assert shortfall(config, arm, arms.settings_of(config, arm), cost, idle=False) == said
    assert shortfall(TINY, arm, arms.settings_of(TINY, arm), cost, idle=False) is None


def test_each_measure_reads_its_own_count() -> None:
    cost = Cost(
        wall_seconds=1, trained_tokens=20, scored_tokens=400, generated_tokens=8000, reward_calls=3, gold_calls=50,
        steps=7, examples=11, labels=13, flops=17,
    )  # fmt: skip
    found = {
        name: spent_of(name, cost)
        for name in ("steps", "examples", "labels", "reward-calls", "tokens", "flops", "seconds")
    }
    assert found == {
        "steps": 7, "examples": 11, "labels": 13, "reward-calls": 53, "tokens": 8020, "flops": 17, "seconds": 1,
    }  # fmt: skip
    assert share_of(Budget(), cost) is None
    assert share_of(Budget(measure="steps", amount=14), cost) == 0.5
