"""The arms of a study: their names, chains of them, which checkpoint speaks for them, and what they cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import REWARD_COST, STILL, TINY, bench_of, evaluation, fill_shelf, points
from preflab.config.arms import ALONE, LABELS, SAMPLING, Stage, label, needs_reward_model, stages
from preflab.config.commands import Compare
from preflab.config.online import PPO
from preflab.errors import ConfigError
from preflab.evaluation.rows import add_point, best_step, read_points
from preflab.models.load import load_policy
from preflab.rewards.protocol import Answer
from preflab.runs import JSON, RunFolder, read_json, read_lines
from preflab.studies import arms
from preflab.studies.arms import describe, run_arm
from preflab.studies.best_of_n import kl_bound_nats


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference and a reward model; no test writes here."""
    return fill_shelf(tmp_path_factory.mktemp("shelf"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_policy(folder).model.state_dict()
    return state


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(first[name], second[name]) for name in first)


def test_names_of_arms_are_their_stages() -> None:
    assert stages("dpo") == (Stage("dpo", gold=False),)
    assert stages("online-dpo-gold") == (Stage("online-dpo", gold=True),)
    assert [stage.key for stage in stages("sft+dr-grpo+iterative-dpo-gold")] == ["sft", "dr_grpo", "iterative_dpo"]
    assert stages("reference") == stages("best-of-n") == ()
    for method in LABELS:
        assert stages(method) == (Stage(method, gold=False),)
        assert hasattr(Compare(), stages(method)[0].key)
    for method in SAMPLING:
        assert stages(f"{method}-gold") == (Stage(method, gold=True),)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("reference", "Reference"),
        ("best-of-n", "Best of n"),
        ("dpo", "DPO"),
        ("ppo-gold", "PPO on gold"),
        ("dpo+ppo", "DPO → PPO"),
        ("sft+dpo+online-dpo-gold", "SFT → DPO → Online DPO on gold"),
    ],
)
def test_labels_of_arms(arm: str, expected: str) -> None:
    assert label(arm) == expected


def test_no_two_arms_are_written_alike() -> None:
    written = [label(arm) for arm in (*LABELS, *ALONE, *(f"{arm}-gold" for arm in SAMPLING))]
    assert len(set(written)) == len(written)


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("dpq", r'arms = dpq: there is no arm or stage "dpq"; did you mean "dpo"\?'),
        ("sft+onlin-dpo", r'arms = sft\+onlin-dpo: there is no arm or stage "onlin-dpo"; did you mean "online-dpo"\?'),
        ("ppo-gld", r'"ppo-gld"; did you mean "ppo-gold"\?'),
        ("best_of_n", r'did you mean "best-of-n"\?'),
        ("dpo-gold", "dpo learns from pairs, not from a reward; leave -gold out"),
        ("reward", 'there is no arm or stage "reward"'),
        ("reference+dpo", '"reference" trains nothing'),
        ("dpo+reference", '"reference" trains nothing'),
        ("best-of-n+dpo", '"best-of-n" trains nothing'),
        ("dpo+", 'there is no arm or stage ""'),
        ("+dpo", 'there is no arm or stage ""'),
        ("", 'there is no arm or stage ""'),
        ("dpo + ppo", 'there is no arm or stage "dpo "'),
        ("DPO", 'there is no arm or stage "DPO"'),
    ],
)
def test_names_that_are_none(arm: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        stages(arm)


def test_a_chain_starts_from_the_chosen_model_of_the_arm_before(shelf: Path, tmp_path: Path) -> None:
    """With a last stage that moves nothing, the chain's model and its first point are those of the arm before."""
    bench = bench_of(shelf, tmp_path, "dpo", "dpo+sft", sft=dataclasses.replace(TINY.sft, optimizer=STILL))
    run_arm(bench, "dpo")
    run_arm(bench, "dpo+sft")
    before, chain = evaluation(bench, "dpo"), evaluation(bench, "dpo+sft")
    assert same(weights(bench.folder("dpo+sft").model), weights(bench.folder("dpo").model))
    assert not same(weights(bench.folder("dpo").model), weights(shelf / "reference"))
    assert list(points(bench, "dpo+sft")) == [0, 1, 2]
    start = points(bench, "dpo+sft")[0]
    assert start == points(bench, "dpo")[before["chosen_step"]]
    assert sum(start["kl_nats"]) > 0.01  # measured from the study's reference, not from where it starts
    assert chain["chosen_step"] == 0  # of equals the earlier one
    assert points(bench, "dpo+sft", "test")[0] == points(bench, "dpo", "test")[before["chosen_step"]]
    # An arm that begins at the reference has no such point.
    assert list(points(bench, "dpo")) == [1, 2]


def test_a_chain_costs_what_all_its_stages_cost(shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, "dpo+sft")
    run_arm(bench, "dpo+sft")
    before, chain = evaluation(bench, "dpo")["cost"], evaluation(bench, "dpo+sft")["cost"]
    alone = bench_of(shelf, tmp_path / "alone", "sft")
    run_arm(alone, "sft")
    chosen = evaluation(alone, "sft")["cost"]["trained_tokens"]
    assert chain["trained_tokens"] == before["trained_tokens"] + chosen
    assert chain["scored_tokens"] == before["scored_tokens"] > 0
    assert chain["wall_seconds"] > before["wall_seconds"]


def test_the_beginning_of_a_chain_that_is_no_arm_lies_with_the_stages(shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, "sft", "dpo+kto+sft")
    run_arm(bench, "dpo+kto+sft")
    assert sorted(path.name for path in (tmp_path / "arms").iterdir()) == ["dpo+kto+sft", "reference"]
    assert sorted(path.name for path in (tmp_path / "stages" / "arms").iterdir()) == ["dpo", "dpo+kto"]
    again = bench_of(shelf, tmp_path / "again", "dpo", "dpo+sft")
    run_arm(again, "dpo+sft")
    assert sorted(path.name for path in (tmp_path / "again" / "arms").iterdir()) == ["dpo", "dpo+sft", "reference"]
    # The same arm, wherever it lies.
    assert same(weights(again.folder("dpo").model), weights(bench.folder("dpo").model))
    assert points(again, "dpo") == points(bench, "dpo")


@pytest.mark.parametrize("held_to", ["study", "previous"])
def test_a_stage_of_a_chain_is_held_to_the_study_s_reference_or_to_the_stage_before(
    held_to: Any, shelf: Path, tmp_path: Path
) -> None:
    bench = bench_of(shelf, tmp_path, "dpo+ipo", "dpo+kto", "dpo+ppo", chain_reference=held_to)
    for arm in ("dpo+ipo", "dpo+kto"):
        run_arm(bench, arm)
        start = read_json(bench.folder(arm).path / "start.json")
        assert not start["starts_at_reference"]
        assert (start["largest_logratio_nats"] > 0.05) is (held_to == "study")
    run_arm(bench, "dpo+ppo")
    first = read_lines(bench.folder("dpo+ppo").metrics)[0]
    assert (first["kl_nats"] > 1e-3) is (held_to == "study")
    # KL is measured from the study's reference all the same.
    assert sum(points(bench, "dpo+ppo")[0]["kl_nats"]) > 0.01
    said = describe(bench.config, "dpo+ppo", 0, done=True)["description"]
    assert ("held to the study's reference" in said) is (held_to == "study")


@pytest.mark.parametrize("method", ["grpo", "online-dpo", "iterative-dpo"])
def test_methods_that_sample_can_end_a_chain(method: str, shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, f"sft+{method}")
    run_arm(bench, f"sft+{method}")
    found = points(bench, f"sft+{method}")
    assert min(found) == 0
    assert len(found) > 2


@pytest.mark.parametrize("method", ["grpo", "online-dpo"])
def test_an_oracle_is_paid_by_the_gold_reward_alone(method: str, shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, f"{method}-gold")
    run_arm(bench, f"{method}-gold")
    cost = evaluation(bench, f"{method}-gold")["cost"]
    assert cost["reward_calls"] == 0 < cost["gold_calls"]
    assert cost["trained_tokens"] < REWARD_COST.trained_tokens  # no reward model took part
    assert describe(bench.config, f"{method}-gold", 0, done=True)["oracle"]


def test_the_reward_model_is_paid_for_once(shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, "grpo+ppo", "dpo+grpo")
    run_arm(bench, "grpo+ppo")
    run_arm(bench, "dpo+grpo")
    for arm in ("grpo", "grpo+ppo", "dpo+grpo"):
        assert 1_000_000 < evaluation(bench, arm)["cost"]["trained_tokens"] < 1_100_000, arm
    assert evaluation(bench, "dpo")["cost"]["trained_tokens"] < 100_000


def test_arms_share_the_reference_s_log_probabilities_and_each_pays_for_them(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An arm ends with the same weights and the same price whether or not another one came first."""
    bench, alone = (bench_of(shelf, tmp_path / name, "dpo", "ipo", "dpo+ipo") for name in ("all", "alone"))
    run_arm(alone, "ipo")
    run_arm(bench, "dpo")
    assert "from the cache" not in capsys.readouterr().err
    run_arm(bench, "ipo")
    run_arm(bench, "dpo+ipo")  # held to the study's reference
    assert capsys.readouterr().err.count("reference log-probabilities: 16 of 16 from the cache") == 2
    assert len(list((tmp_path / "all" / "stages" / "reference-logprobs").rglob("*.safetensors"))) == 1
    assert same(weights(bench.folder("ipo").model), weights(alone.folder("ipo").model))
    for name in ("scored_tokens", "flops"):
        assert evaluation(bench, "ipo")["cost"][name] == evaluation(alone, "ipo")["cost"][name] > 0


def test_which_arms_need_the_reward_model() -> None:
    needed = {arm: needs_reward_model(TINY, arm) for arm in ("sft", "dpo+kto", "ppo", "dpo+grpo", "grpo-gold")}
    assert needed == {"sft": False, "dpo+kto": False, "ppo": True, "dpo+grpo": True, "grpo-gold": False}
    assert needs_reward_model(TINY, "ppo-gold")  # its value model starts as the reward model
    shared = dataclasses.replace(TINY, ppo=PPO(value_trunk="shared"))
    assert not needs_reward_model(shared, "ppo-gold")


def test_descriptions_of_chains_name_a_reference_where_one_takes_part() -> None:
    def said(arm: str) -> str:
        return str(describe(TINY, arm, 0, done=True)["description"])

    assert "Starts from the chosen checkpoint of DPO, held to the study's reference." in said("dpo+ppo")
    for arm in ("dpo+sft", "dpo+simpo", "dpo+orpo"):
        assert "Starts from the chosen checkpoint of DPO." in said(arm)
    assert all("Paid by the reward model" in said(arm) for arm in ("ppo", "dpo+grpo", "online-dpo"))
    assert not any("Paid by the reward model" in said(arm) for arm in ("dpo", "ppo+dpo", "rloo-gold"))
    entry = describe(TINY, "dpo+ppo-gold", 3, done=False)
    assert (entry["method"], entry["label"], entry["oracle"]) == ("ppo", "DPO → PPO on gold", True)
    assert entry["settings"]["optimizer.learning_rate"] == 0.02
    assert entry["folder"] == "arms/dpo+ppo-gold/seed-3"
    assert describe(TINY, "best-of-n", 0, done=True)["kl_is_bound"]


def with_points(run: RunFolder, rows: Iterable[tuple[int, str, float, float]]) -> RunFolder:
    for step, split, reward, proxy in rows:
        point = {"step": step, "split": split, "rows": {"reward": [reward, reward], "proxy_reward": [proxy, proxy]}}
        add_point(run, point, [])
    return run


def test_the_checkpoint_is_chosen_by_the_reward_the_proxy_or_the_clock(tmp_path: Path) -> None:
    tmp_path.mkdir(exist_ok=True)
    rows = [(1, "validation", 0.3, 0.1), (2, "validation", 0.9, 0.4), (3, "validation", 0.9, 0.8)]
    rows += [(4, "validation", 0.1, 0.8), (9, "test", 5.0, 5.0)]
    run = with_points(RunFolder(tmp_path), rows)
    assert best_step(run) == best_step(run, by="reward") == 2  # of equals the earlier one
    assert best_step(run, by="proxy") == 3
    assert best_step(run, by="last") == 4


@pytest.mark.parametrize("by", ["reward", "proxy", "last"])
def test_an_arm_s_model_is_that_of_the_chosen_checkpoint(by: Any, shelf: Path, tmp_path: Path) -> None:
    many = dataclasses.replace(TINY.dpo, epochs=3, evaluations=6)
    bench = bench_of(shelf, tmp_path, "dpo", dpo=many, choose_by=by)
    run_arm(bench, "dpo")
    chosen, found = evaluation(bench, "dpo")["chosen_step"], points(bench, "dpo")
    rows = {"reward": "reward", "proxy": "proxy_reward"}.get(by)
    means = {step: sum(point[rows]) if rows else step for step, point in found.items()}
    assert chosen == max(means, key=lambda step: (means[step], -step))
    assert list(points(bench, "dpo", "test")) == [chosen]
    # What the saved model says to the validation prompts is what that checkpoint said.
    policy = load_policy(bench.folder("dpo").model)
    again, _ = bench.judge.point(policy, bench.prompts("validation"), step=chosen, split="validation", baseline=None)
    assert again["rows"]["proxy_reward"] == found[chosen]["proxy_reward"]


def test_a_finished_arm_is_left_alone(shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, "sft")
    run_arm(bench, "sft")
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
    run_arm(bench, "sft")
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("place", ["before the first point's model", "after it", "in training"])
def test_a_chain_that_is_stopped_ends_as_one_that_is_not(
    place: str, shelf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between the point at step 0 and its model must not lose that model: it may turn out the best."""
    settings = {"sft": dataclasses.replace(TINY.sft, optimizer=STILL)}
    whole = bench_of(shelf, tmp_path / "whole", "dpo+sft", **settings)
    run_arm(whole, "dpo+sft")
    bench = bench_of(shelf, tmp_path / "stopped", "dpo+sft", **settings)
    run_arm(bench, "dpo")
    save, add = arms.save_model, arms.add_point

    def stop_in_save(*args: Any) -> None:
        if place != "before the first point's model":
            save(*args)
        raise KeyboardInterrupt

    def stop_in_add(run: RunFolder, point: dict[str, JSON], samples: list[dict[str, JSON]]) -> None:
        add(run, point, samples)
        if point["step"] == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        if place == "in training":
            patched.setattr(arms, "add_point", stop_in_add)
        else:
            patched.setattr(arms, "save_model", stop_in_save)
        with pytest.raises(KeyboardInterrupt):
            run_arm(bench, "dpo+sft")
    run_arm(bench, "dpo+sft")
    assert points(bench, "dpo+sft") == points(whole, "dpo+sft")
    assert evaluation(bench, "dpo+sft")["chosen_step"] == evaluation(whole, "dpo+sft")["chosen_step"] == 0
    assert same(weights(bench.folder("dpo+sft").model), weights(whole.folder("dpo+sft").model))


def test_best_of_n_is_an_arm_of_points_by_n(shelf: Path, tmp_path: Path) -> None:
    bench = bench_of(shelf, tmp_path, "best-of-n")
    run_arm(bench, "best-of-n")
    found, chosen = points(bench, "best-of-n"), evaluation(bench, "best-of-n")["chosen_step"]
    assert list(found) == [2, 4, 6]
    assert all(rows["kl_nats"] == pytest.approx([kl_bound_nats(n)] * 4) for n, rows in found.items())
    assert chosen == max(found, key=lambda n: (sum(found[n]["reward"]), -n))
    assert list(points(bench, "best-of-n", "test")) == [chosen]
    assert not bench.folder("best-of-n").model.exists()
    cost = evaluation(bench, "best-of-n")["cost"]
    assert cost["reward_calls"] == 4 * chosen
    assert cost["trained_tokens"] == REWARD_COST.trained_tokens
    assert cost["generated_tokens"] > 0
    assert {line["step"] for line in read_lines(bench.folder("best-of-n").samples)} == {2, 4, 6}
    assert read_points(bench.folder("best-of-n"))[-1]["split"] == "test"


@dataclasses.dataclass
class Remembering:
    """A reward that knows what it was asked of."""

    prompts: set[str] = dataclasses.field(default_factory=set)
    name: str = "remembering"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.prompts |= {answer.prompt for answer in answers}
        return [float(len(answer.response)) for answer in answers]


def test_an_arm_that_samples_learns_on_the_task_s_prompts_for_it(shelf: Path, tmp_path: Path) -> None:
    for chosen in (None, slice(2, 5)):
        bench = bench_of(shelf, tmp_path / str(chosen), "ppo-gold")
        asked = Remembering()
        train = bench.task.prompts["train"]
        of_policy = None if chosen is None else train[chosen]
        run_arm(dataclasses.replace(bench, task=dataclasses.replace(bench.task, gold=asked, policy_prompts=of_policy)),
                "ppo-gold")  # fmt: skip
        assert asked.prompts == {prompt.text for prompt in (train if chosen is None else train[chosen])}
