"""The conclusions of the recipe unpacking-dpo-ppo on studies whose differences are known, and its page."""

from __future__ import annotations

import doctest
import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from preflab.cli.flags import parse
from preflab.cli.main import COMMANDS
from preflab.config.arms import canonical
from preflab.config.commands import Compare
from preflab.config.load import flatten, to_values
from preflab.errors import StorageError
from preflab.report.statistics import Matrix
from study_folder import REFERENCE, SimulatedArm, reward_model, write_study

RECIPE = Path(__file__).parent.parent / "recipes/unpacking-dpo-ppo"


@pytest.fixture(scope="module")
def recipe() -> Any:
    spec = importlib.util.spec_from_file_location("unpacking_conclusions", RECIPE / "conclusions.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def level(sentiment: float) -> Any:
    """An arm's reward, in units of sentiment, at a gold scale of 5."""
    return lambda kl: 5 * sentiment


def write(root: Path, name: str, sentiments: dict[str, float], *, seeds: int = 4, gold_scale: float = 5.0) -> None:
    """One study of the recipe, whose arms are this good."""
    arms = [SimulatedArm(arm, arm.split("@")[0], level(value), label=arm) for arm, value in sentiments.items()]
    write_study(
        root / name, [REFERENCE, *arms], seeds=seeds, prompts=80, noise=0.2, study={"pairs": {"gold_scale": gold_scale}}
    )


def test_a_claim_is_reproduced_reversed_or_left_open_as_its_difference_says(recipe: Any, tmp_path: Path) -> None:
    write(tmp_path, "full", {"dpo": 0.2, "ppo": 0.5, "best-of-n": 0.2, "ppo@whiten_advantages=false": 0.8})
    write(tmp_path, "noisy-labels", {"dpo": 0.2, "ppo": 0.5})
    found = {answer.claim.says: answer for answer in recipe.answers(recipe.read_studies(tmp_path))}
    assert found["PPO gets more than DPO from the same data"].verdict == "reproduced"
    assert found["Whitened advantages help"].verdict == "not reproduced"
    assert found["Noisier labels cost reward"].verdict == "undecided"
    assert found["Poorer generations cost reward"].verdict == "not run"
    assert found["With fewer labels PPO gets less"].verdict == "not run"
    assert found["PPO gets more than DPO from the same data"].difference.mean == pytest.approx(0.3, abs=0.1)
    assert found["PPO gets more than DPO from the same data"].seeds == 4


def test_a_gain_below_the_margin_is_none_and_one_above_it_is_a_gain(recipe: Any, tmp_path: Path) -> None:
    says = f"Whitened rewards gain less than {recipe.MARGIN}"
    for folder, gain, verdict in (("a", -0.1, "reproduced"), ("b", 0.3, "not reproduced")):
        write(tmp_path / folder, "full", {"ppo": 0.2, "ppo@whiten_rewards=true": 0.2 + gain}, seeds=6)
        found = recipe.answers(recipe.read_studies(tmp_path / folder))
        assert {answer.claim.says: answer.verdict for answer in found}[says] == verdict


def test_two_seeds_settle_nothing(recipe: Any, tmp_path: Path) -> None:
    write(tmp_path, "full", {"dpo": -0.9, "ppo": 0.9}, seeds=2)
    found = [answer for answer in recipe.answers(recipe.read_studies(tmp_path)) if answer.difference]
    assert len(found) == 2
    assert {answer.verdict for answer in found} == {"undecided"}


def test_labels_of_another_scale_are_compared_in_units_of_sentiment(recipe: Any, tmp_path: Path) -> None:
    """The same rewards, five times as much sentiment where the scale is 1."""
    write(tmp_path, "full", {"dpo": 0.1, "ppo": 0.1})
    write(tmp_path, "noisy-labels", {"dpo": 0.1, "ppo": 0.1}, gold_scale=1.0)
    (claim,) = [one for one in recipe.CLAIMS if one.says == "Noisier labels cost reward"]
    values = recipe.difference(recipe.read_studies(tmp_path), claim)
    assert values.shape == (4, 80)
    assert values.mean() == pytest.approx(0.1 - 0.5, abs=0.15)


def test_matching_prompts_are_those_of_the_kind_that_is_tested(recipe: Any, tmp_path: Path) -> None:
    """Test prompts judge and are open in turn; the better policy is the one that learned on prompts that judge."""
    for name, sentiment in (("judged-prompts", 0.8), ("open-prompts", 0.2), ("full", 0.1)):
        arm = SimulatedArm("ppo", "ppo", level(sentiment))
        texts = ("The plot was dull", "The plot was")
        write_study(
            tmp_path / name, [REFERENCE, arm], seeds=3, prompts=8, noise=0.0, prompt_texts=texts,
            study={"pairs": {"gold_scale": 5.0}},
        )  # fmt: skip
    studies = recipe.read_studies(tmp_path)
    other, everything = [recipe.difference(studies, one) for one in recipe.CLAIMS if one.topic == "prompts"]
    assert other == pytest.approx(np.tile([0.6, -0.6], (3, 4)))
    assert everything == pytest.approx(np.tile([0.7, 0.1], (3, 4)))
    del studies["open-prompts"]
    assert all(recipe.difference(studies, one) is None for one in recipe.CLAIMS if one.topic == "prompts")


def test_kinds_of_prompts_are_compared_on_the_same_test_prompts(recipe: Any, tmp_path: Path) -> None:
    for name, prompts in (("judged-prompts", 80), ("open-prompts", 40)):
        write_study(
            tmp_path / name, [REFERENCE, SimulatedArm("ppo", "ppo")], seeds=3, prompts=prompts,
            study={"pairs": {"gold_scale": 5.0}},
        )  # fmt: skip
    with pytest.raises(StorageError, match="other prompts; run all"):
        recipe.answers(recipe.read_studies(tmp_path))


def test_studies_on_other_prompts_are_refused(recipe: Any, tmp_path: Path) -> None:
    write(tmp_path, "full", {"dpo": 0.1, "ppo": 0.1})
    write_study(
        tmp_path / "noisy-labels",
        [REFERENCE, SimulatedArm("dpo", "dpo"), SimulatedArm("ppo", "ppo")],
        seeds=4, prompts=40, study={"pairs": {"gold_scale": 5.0}},
    )  # fmt: skip
    with pytest.raises(StorageError, match="other prompts"):
        recipe.answers(recipe.read_studies(tmp_path))


def test_accuracies_of_reward_models_are_compared_seed_by_seed(recipe: Any, tmp_path: Path) -> None:
    for name, right in (("full", (0.8, 0.82, 0.81)), ("few-labels", (0.6, 0.61, 0.63))):
        models = [reward_model(seed=seed) | {"seed": seed} for seed in range(3)]
        models = [m | {"calibration": m["calibration"] | {"accuracy": {"mean": value, "low": 0, "high": 1}}}
                  for m, value in zip(models, right, strict=True)]  # fmt: skip
        write_study(tmp_path / name, [REFERENCE], seeds=3, reward_models=models, study={"pairs": {"gold_scale": 5.0}})
    (answer,) = [one for one in recipe.answers(recipe.read_studies(tmp_path)) if one.verdict != "not run"]
    assert answer.claim.says == "With fewer labels it is less accurate"
    assert answer.verdict == "reproduced"
    differences = np.array([0.2, 0.21, 0.18])
    half = 4.302653 * differences.std(ddof=1) / 3**0.5
    assert answer.difference.low == pytest.approx(differences.mean() - half)


def drawn(rng: np.random.Generator, mean: float) -> Matrix:
    """Five seeds and forty prompts of a difference with a seed effect."""
    return mean + rng.normal(0, 0.1, (5, 1)) + rng.normal(0, 0.5, (5, 40))


def test_holm_settles_what_its_corrected_p_values_would(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the textbook's step-down on the p-values at which each interval ends at 0, by bisection."""
    rng = np.random.default_rng(3)
    for _ in range(30):
        values = [drawn(rng, mean) for mean in (0.0, 0.2, 0.3, 0.4, -0.3)]
        claims = [recipe.Claim("x", str(number), {str(number): 1.0}) for number in range(len(values))]
        monkeypatch.setattr(recipe, "difference", lambda _, claim, v=values: v[int(claim.says)])
        p = [p_value(recipe, one) for one in values]
        held, left = set(), len(p)
        for number in sorted(range(len(p)), key=p.__getitem__):
            if p[number] > recipe.ALPHA / left:
                break
            held.add(number)
            left -= 1
        found = recipe.answers({}, claims)
        assert {n for n, answer in enumerate(found) if answer.verdict != "undecided"} == held
        for number in held:
            assert (found[number].verdict == "reproduced") == (values[number].mean() > 0)


def p_value(recipe: Any, values: Matrix) -> float:
    low, high = 0.0, 1.0
    for _ in range(40):
        p = (low + high) / 2
        low, high = (low, p) if recipe.interval(values, "x", 1 - p).sign else (p, high)
    return high


def test_where_nothing_differs_few_sets_of_claims_settle_one(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    claims = [recipe.Claim("x", str(number), {str(number): 1.0}) for number in range(8)]
    settled = 0
    for _ in range(100):
        values = [drawn(rng, 0.0) for _ in claims]
        monkeypatch.setattr(recipe, "difference", lambda _, claim, v=values: v[int(claim.says)])
        settled += any(answer.verdict != "undecided" for answer in recipe.answers({}, claims))
    assert settled <= 14  # of 100 at 5 %: more than 14 has probability 0.0001


def test_the_page_and_the_files_are_filled(recipe: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "full", {"dpo": 0.2, "ppo": 0.5, "best-of-n": 0.2})
    page = tmp_path / "page.md"
    marks = [f"<!-- {name} -->\n<!-- end of {name} -->" for name in ("conclusions", "data", "figures")]
    page.write_text("before\n" + "\nbetween\n".join(marks) + "\nafter\n")
    for _ in range(2):
        recipe.main([str(tmp_path), "--page", str(page)])
        text = page.read_text()
        assert [text.count(word) for word in ("before", "between", "after", "Noisier labels cost reward")] == [
            1,
            2,
            1,
            1,
        ]
    said = capsys.readouterr().out
    assert "| preferences | Noisier labels cost reward |  |  |  | **not run** |" in said
    (row,) = {line for line in said.splitlines() if "| ppo |" in line}
    mean, each = row.split("|")[3:5]
    assert float(mean) == pytest.approx(0.5, abs=0.1)
    assert float(mean) == pytest.approx(np.mean([float(one) for one in each.split(",")]), abs=0.01)
    written = json.loads((tmp_path / "conclusions.json").read_text())
    assert len(written) == len(recipe.CLAIMS)


def test_examples_run(recipe: Any) -> None:
    assert doctest.testmod(recipe) == (0, 4)


def test_a_page_without_marks_is_refused(recipe: Any) -> None:
    with pytest.raises(StorageError, match="<!-- conclusions -->"):
        recipe.filled("no marks", {"conclusions": "x"})


def arms_of(recipe: Any, study: str) -> set[str]:
    terms = [name.partition("/") for claim in recipe.CLAIMS for name in claim.terms]
    return {arm for folder, _, arm in terms if study in recipe.BY_KIND.get(folder, (folder,))}


def settings_of(name: str) -> Compare:
    file = RECIPE / f"{name}.yaml"
    config: Compare = parse("compare", COMMANDS["compare"].config, ["reviews", "--config", str(file)])
    return config


def test_every_arm_that_a_claim_names_is_in_its_study(recipe: Any) -> None:
    for name in recipe.STUDIES:
        config = settings_of(name)
        arms = {"reference", *(canonical(config, arm) for arm in config.arms)}
        assert arms_of(recipe, name) <= arms
        assert set(arms) - {"reference"} <= arms_of(recipe, name)


def test_a_study_differs_from_the_full_one_in_what_it_is_named_after(recipe: Any) -> None:
    changed = {
        "noisy-labels": {"pairs.gold_scale"},
        "poor-generations": {"pairs.temperature"},
        "few-labels": {"pairs.per_prompt"},
        "small-reward-model": {"reward.freeze_blocks"},
        "judged-prompts": {"prompts.policy"},
        "open-prompts": {"prompts.policy"},
    }
    full = flatten(to_values(settings_of("full")))
    assert set(changed) == set(recipe.STUDIES) - {"full"}
    for name, settings in changed.items():
        config = settings_of(name)
        idle = tuple(f"{method}." for method in config.idle_fields())
        values = {key: value for key, value in flatten(to_values(config)).items() if not key.startswith(idle)}
        assert {key for key, value in values.items() if value != full.get(key, value)} == {*settings, "arms"}
