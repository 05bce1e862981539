"""`preflab sweep`: flags to a study with an arm a value; that study; and the same study asked for more."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from preflab.cli.flags import _gathered, parse
from preflab.config.commands import Base, Budget, Compare, Lengths, Pairs, Prompts, Sweep
from preflab.config.load import to_yaml
from preflab.config.preference import DPO, IPO
from preflab.config.presets import preset
from preflab.config.training import SFT, Batch, Optimizer
from preflab.config.training import Reward as RewardSettings
from preflab.errors import StorageError
from preflab.models import reference
from preflab.runs import JSON, read_json
from preflab.studies.compare import compare
from tiny import save_tiny

FAST: dict[str, Any] = {"evaluations": 1, "optimizer": Optimizer(learning_rate=0.02, warmup_steps=0)}
BATCH = Batch(size=8, micro=8)
BETAS = ("0.05", "0.1", "0.5", "1", "5")


def swept(*arguments: str) -> Compare:
    found: Compare = parse("sweep", "Sweep", [*arguments]).compare()
    return found


def test_a_sweep_is_a_study_with_one_arm_a_value(tmp_path: Path) -> None:
    config = swept("dpo", "--over", "loss.beta=0.05,0.1", "--also", "ppo,sft", "--dpo.epochs", "2", "--quick")
    assert config.arms == ("reference", "dpo@loss.beta=0.05", "dpo@loss.beta=0.1", "ppo", "sft")
    assert config.dpo.epochs == 2
    quick = parse("compare", "Compare", ["reviews", "--quick", "--dpo.epochs", "2"])
    assert dataclasses.replace(config, arms=quick.arms) == quick
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(config))
    assert parse("compare", "Compare", ["--config", str(file)]) == config


@pytest.mark.parametrize("given", [["--over", "a=1,2", "--over", "b=3"], ["--over=a=1,2", "--over=b=3"]])
def test_a_flag_given_again_is_another_setting(given: list[str]) -> None:
    assert _gathered(["dpo", *given, "--quick"], "--over") == ["dpo", "--quick", "--over", "a=1,2", "b=3"]


def arms(method: str, *over: str, also: tuple[str, ...] = ()) -> tuple[str, ...]:
    return Sweep(method=method, over=over, also=also).compare().arms


def test_several_settings_are_a_grid() -> None:
    assert arms("dpo", "loss.beta=1,2", "epochs=3,4", also=("ppo",)) == (
        "reference",
        *(f"dpo@loss.beta={beta}@epochs={epochs}" for beta in (1, 2) for epochs in (3, 4)),
        "ppo",
    )


def test_sweeps_of_chains_oracles_and_best_of_n() -> None:
    assert arms("dpo@loss.beta=0.5+ppo", "kl-coefficient=0.1,1")[1:] == (
        "dpo@loss.beta=0.5+ppo@kl_coefficient=0.1",
        "dpo@loss.beta=0.5+ppo@kl_coefficient=1",
    )
    assert arms("ppo-gold", "updates=8")[1:] == ("ppo-gold@updates=8",)
    assert arms("best-of-n", "n=4,64")[1:] == ("best-of-n@n=4", "best-of-n@n=64")


def test_the_task_chooses_what_a_sweep_starts_from(tmp_path: Path) -> None:
    flags = ["dpo", "--over", "loss.beta=1", "--data", "d.jsonl"]
    assert swept(*flags, "--task", "dialogue").lengths == Lengths(prompt_tokens=160, response_tokens=64)
    file = tmp_path / "sweep.yaml"
    file.write_text("method: dpo\ntask: dialogue\ndata: d.jsonl\nover: ['loss.beta=1']\n")
    assert swept("--config", str(file)) == swept(*flags, "--task", "dialogue")


@pytest.mark.parametrize(
    ("method", "over", "message"),
    [
        ("dpo", "loss.bta=1,2", 'arms = dpo@loss.bta=1: there is no setting loss.bta; did you mean "beta"'),
        ("dpo", "loss.beta=1,-2", "loss.beta = -2: must be greater than 0"),
        ("dpo", "loss.beta", "over = loss.beta: write a setting and its values"),
        ("dpo", "loss.beta=", "over = loss.beta=: write a setting and its values"),
        ("dpo", "loss.beta=1,,2", "over = loss.beta=1,,2: write a setting and its values"),
        ("dpo", "loss.beta=1 loss.beta=2", "loss.beta is given twice; give it once, with all its values"),
        ("dpo", "evaluations=1,2", "not comparable"),
        ("dpo", "", "over names no setting; give it as --over"),
        ("dqo", "loss.beta=1", 'there is no arm or stage "dqo"'),
        ("reference", "epochs=1", "the reference is one for all arms"),
    ],
)
def test_sweeps_that_are_none(method: str, over: str, message: str) -> None:
    assert message in (Sweep(method=method, over=tuple(over.split())).misfit() or "")


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(amount=3), "amount = 3 has no effect without measure"),
        (Budget(measure="steps"), "measure = steps needs an amount"),
    ],
)
def test_budgets_that_are_none(budget: Budget, message: str) -> None:
    assert message in (budget.misfit() or "")


@dataclasses.dataclass(frozen=True)
class Made:
    """A finished sweep, and how many trees the reference was run on in it and in a study of one arm."""

    config: Compare
    passes: int
    passes_of_one: int


def ran(config: Compare) -> int:
    """Run a study; the responses that the reference's log-probabilities were computed of."""
    trees: list[Any] = []
    compute = reference._computed
    with pytest.MonkeyPatch.context() as patched:

        def counted(model: Any, missing: Any, *rest: Any) -> Any:
            trees.extend(missing)
            return compute(model, missing, *rest)

        patched.setattr(reference, "_computed", counted)
        compare(config)
    return len(trees)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("sweep")
    config = dataclasses.replace(
        preset("reviews", model=True),
        out=folder / "study",
        model=str(save_tiny(folder / "model")),
        arms=("reference", *(f"dpo@loss.beta={beta}" for beta in BETAS)),
        prompts=Prompts(train=24, validation=3, test=4),
        lengths=Lengths(prompt_tokens=12, response_tokens=6),
        base=Base(texts=300),
        reference=SFT(**FAST, epochs=0.1, batch=BATCH),
        pairs=Pairs(responses=2, per_prompt=1),
        reward=RewardSettings(**FAST, batch=BATCH),
        dpo=DPO(**FAST, batch=BATCH),
    )
    one = dataclasses.replace(config, out=folder / "one", arms=("dpo",))
    return Made(config, ran(config), ran(one))


def grown(made: Made, folder: Path, **settings: Any) -> Compare:
    """The finished sweep, copied and asked for something else."""
    shutil.copytree(made.config.out, folder / "study")
    return dataclasses.replace(made.config, out=folder / "study", **settings)


def study(config: Compare) -> JSON:
    return read_json(config.out / "study.json")


def models(config: Compare) -> dict[str, int]:
    """When each model of the folder was written."""
    files = config.out.rglob("model.safetensors")
    return {str(file.relative_to(config.out)): file.stat().st_mtime_ns for file in files}


def test_a_sweep_of_five_values_makes_one_reference_pass(made: Made) -> None:
    assert made.passes == made.passes_of_one > 0
    found = study(made.config)
    assert found["complete"]
    assert found["sweep"] == {"method": "dpo", "over": {"loss.beta": [0.05, 0.1, 0.5, 1.0, 5.0]}}
    assert found["budget"] is None
    assert [arm["overrides"] for arm in found["arms"][1:]] == [{"loss.beta": float(beta)} for beta in BETAS]
    assert all(arm["family"] == "dpo" for arm in found["arms"][1:])


def test_a_variant_with_the_method_s_own_value_is_the_method(made: Made) -> None:
    """All variants of a method see the same data in the same order."""
    one = read_json(made.config.out.parent / "one" / "arms" / "dpo" / "seed-0" / "evaluation.json")
    variant = read_json(made.config.out / "arms" / "dpo@loss.beta=0.1" / "seed-0" / "evaluation.json")
    assert one["points"] == variant["points"]


def test_a_study_grows_by_arms_and_keeps_what_is_finished(made: Made, tmp_path: Path) -> None:
    ipo = IPO(**FAST, batch=BATCH)
    config = grown(
        made,
        tmp_path,
        arms=("ipo", "dpo@loss.beta=5.0", *made.config.arms, "dpo@loss.beta=.1+sft", "dpo+ipo"),
        ipo=ipo,
        sft=SFT(**FAST, batch=BATCH),
    )
    before = models(config)
    assert ran(config) == 0
    after = models(config)
    assert {name: after[name] for name in before} == before
    recorded = parse("compare", "Compare", ["--config", str(config.out / "study.yaml")])
    assert recorded.arms == (
        "reference", "ipo", "dpo@loss.beta=5", *(f"dpo@loss.beta={beta}" for beta in BETAS[:-1]),
        "dpo@loss.beta=0.1+sft", "dpo+ipo",
    )  # fmt: skip
    found = study(config)
    assert found["complete"]
    assert [arm["name"] for arm in found["arms"]] == list(recorded.arms)
    # The chain's beginning that is no arm becomes one, with what it holds.
    assert (config.out / "stages" / "arms" / "dpo" / "seed-0").exists()
    again = dataclasses.replace(config, arms=(*config.arms, "dpo"))
    before = models(config)
    compare(again)
    assert not (config.out / "stages" / "arms" / "dpo" / "seed-0").exists()
    moved = {name.replace("stages/arms/dpo/", "arms/dpo/"): written for name, written in before.items()}
    assert models(config) == moved


def test_a_study_grows_by_seeds(made: Made, tmp_path: Path) -> None:
    config = grown(made, tmp_path, arms=("reference", *made.config.arms[1:]), seeds=2)
    assert not any("(seed" in fact["name"] for fact in study(config)["facts"])
    before = models(config)
    compare(config)
    after = models(config)
    assert {name: after[name] for name in before} == before
    found = study(config)
    assert {(arm["name"], arm["seed"]) for arm in found["arms"]} == {(a, s) for a in config.arms for s in (0, 1)}
    names = [fact["name"] for fact in found["facts"]]
    for seed in (0, 1):
        assert f"Reward model, accuracy on held-out pairs (seed {seed})" in names
    assert not any("(seed" in name for name in names if name.startswith("Distinct texts"))
    with pytest.raises(StorageError, match=r"holds seed 1 of .*; ask for --seeds 2, or delete"):
        compare(dataclasses.replace(config, seeds=1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dpo": DPO(**FAST, batch=Batch(size=4, micro=8))},
            r"dpo\.batch\.size is 8 there, 4 now; add dpo@batch.size=4",
        ),
        (
            {"reward": RewardSettings(**FAST, batch=BATCH, epochs=3)},
            r"reward\.epochs is 1 there, 3 now, which all arms",
        ),
        ({"choose_by": "last"}, "choose_by is reward there, last now"),
        ({"budget": Budget(measure="steps", amount=3)}, "budget.measure is none there, steps now"),
        ({"seed": 1}, "seed is 0 there, 1 now"),
        ({"arms": ("dpo@loss.beta=0.05",)}, "holds the arm dpo@loss.beta=0.1, which is not asked for; name it too"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_a_finished_study_can_not_become(made: Made, settings: Any, message: str) -> None:
    recorded, before = (made.config.out / "study.yaml").read_text(), models(made.config)
    with pytest.raises(StorageError, match=message):
        compare(dataclasses.replace(made.config, **settings))
    assert (made.config.out / "study.yaml").read_text() == recorded
    assert models(made.config) == before


def test_a_setting_that_nothing_was_made_with_may_change(made: Made, tmp_path: Path) -> None:
    """An arm that was never begun, or that was deleted, is made as it is asked for."""
    config = grown(made, tmp_path, dpo=DPO(**FAST, batch=BATCH, epochs=2))
    with pytest.raises(StorageError, match=r"dpo\.epochs is 1 there, 2 now"):
        compare(config)
    shutil.rmtree(config.out / "arms")
    compare(config)
    assert {arm["settings"]["epochs"] for arm in study(config)["arms"][1:]} == {2.0}
