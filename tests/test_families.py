"""Of each method the variant that did best on validation is compared, on test prompts, and tries are counted."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from preflab.errors import StorageError
from preflab.report.chapter import Findings, Sheet
from preflab.report.chapters.verdicts import verdicts as verdicts_chapter
from preflab.report.checkpoints import measured_families
from preflab.report.families import families, unequal_tries, validation_reward
from preflab.report.study import Study, read_study
from preflab.report.sweeps import choose
from preflab.report.verdicts import verdicts
from study_folder import REFERENCE, SimulatedArm, write_study

BETAS = (0.05, 0.1, 1.0)
BEST = "dpo@loss.beta=0.1"


def swept(folder: Path, *, others: Sequence[SimulatedArm] = (), choose_by: str = "reward", seeds: int = 3) -> Study:
    """Three values of β, the middle one best by the gold reward and the last one by the proxy; and other arms."""
    gains = dict(zip(BETAS, (1.0, 2.0, 0.5), strict=True))
    variants = [
        SimulatedArm(
            f"dpo@loss.beta={beta:g}", "dpo", lambda kl, g=gain: g, lambda kl, b=beta: b, label=f"DPO, β {beta:g}"
        )
        for beta, gain in gains.items()
    ]
    write_study(folder, [REFERENCE, *variants, *others], seeds=seeds, noise=0.2)
    content = json.loads((folder / "study.json").read_text())
    for entry in content["arms"]:
        method, _, value = entry["name"].partition("@loss.beta=")
        entry["family"] = method
        entry["overrides"] = {"loss.beta": float(value)} if value else {}
    content["study"]["choose_by"] = choose_by
    (folder / "study.json").write_text(json.dumps(content))
    return read_study(folder)


PPO = SimulatedArm("ppo", "ppo", lambda kl: 1.2, label="PPO", seconds=90.0)


def test_the_variant_that_did_best_on_validation_is_chosen(tmp_path: Path) -> None:
    study = swept(tmp_path, others=[PPO])
    dpo, ppo = families(study)
    assert (dpo.title, dpo.tries, dpo.chosen and dpo.chosen.name) == ("DPO", 3, BEST)
    assert (ppo.title, ppo.tries, ppo.chosen and ppo.chosen.name) == ("PPO", 1, "ppo")


def test_an_only_variant_keeps_its_title(tmp_path: Path) -> None:
    """IPO at another τ alone is nowhere shown as plain IPO."""
    only = SimulatedArm(
        "ipo@loss.tau=0.5", "ipo", lambda kl: 1.0, label="IPO, τ 0.5", family="ipo", overrides={"loss.tau": 0.5}
    )
    study = read_study(write_study(tmp_path, [REFERENCE, only, PPO]))
    assert [one.title for one in families(study)] == ["IPO, τ 0.5", "PPO"]
    assert [one.title for one in measured_families(study)] == ["IPO, τ 0.5", "PPO"]


def test_where_checkpoints_are_chosen_by_the_proxy_variants_are_too(tmp_path: Path) -> None:
    (dpo,) = families(swept(tmp_path, choose_by="proxy"))
    assert dpo.chosen
    assert dpo.chosen.name == "dpo@loss.beta=1"


def test_a_sweep_recommends_by_the_reward_that_variants_are_chosen_by(tmp_path: Path) -> None:
    for choose_by, best in (("reward", BEST), ("proxy", "dpo@loss.beta=1")):
        study = swept(tmp_path / choose_by, choose_by=choose_by)
        choice = choose(study, study.trained)
        assert choice
        assert choice.arm.name == best


def test_the_choice_never_sees_a_test_score(tmp_path: Path) -> None:
    study = swept(tmp_path)
    path = tmp_path / "arms/dpo@loss.beta=0.05/seed-0/evaluation.json"
    content = json.loads(path.read_text())
    for point in content["points"]:
        if point["split"] == "test":
            point["rows"]["reward"] = [100.0] * len(point["rows"]["reward"])
    path.write_text(json.dumps(content))
    (dpo,) = families(read_study(tmp_path))
    assert dpo.chosen
    assert dpo.chosen.name == BEST
    assert validation_reward(study, study.arms[1]) == validation_reward(read_study(tmp_path), study.arms[1])


def test_only_chosen_variants_are_compared_and_on_test_prompts(tmp_path: Path) -> None:
    study = swept(tmp_path, others=[PPO])
    found = verdicts(study)
    assert {name for verdict in found for name in verdict.arms} == {BEST, "ppo"}
    (verdict,) = [verdict for verdict in found if verdict.subject == "tuned"]
    assert not [verdict for verdict in found if verdict.subject == "equal KL"]
    assert verdict.difference
    assert verdict.difference.low <= 2.0 - 1.2 <= verdict.difference.high
    assert "on 60 test prompts, 3 seeds" in verdict.answer


def test_unequal_tries_are_warned_of(tmp_path: Path) -> None:
    study = swept(tmp_path, others=[PPO, SimulatedArm("sft", "sft", label="SFT")])
    unfair = "DPO had 3 tries, PPO and SFT 1: not a fair comparison of methods."
    assert unequal_tries(families(study)) == unfair
    chapter = verdicts_chapter(study)
    assert chapter
    assert unfair in [item.answer for part in chapter.parts if isinstance(part, Findings) for item in part.items]


def test_equal_tries_are_not_warned_of_and_an_oracle_competes_with_nobody(tmp_path: Path) -> None:
    oracle = SimulatedArm("ppo-gold", "ppo", lambda kl: 3.0, label="PPO on gold", oracle=True)
    assert unequal_tries(families(swept(tmp_path, others=[oracle]))) == ""


def test_the_sheet_has_a_row_for_each_family(tmp_path: Path) -> None:
    study = swept(tmp_path, others=[PPO])
    chapter = verdicts_chapter(study)
    assert chapter
    (sheet,) = [part for part in chapter.parts if isinstance(part, Sheet)]
    assert sheet.name == "tuned"
    dpo, ppo = sheet.rows
    assert dpo[:2] == ("DPO", 3)
    assert (dpo[3], ppo[3]) == ("loss.beta 0.1", "as preset")
    assert len(dpo) == len(sheet.columns)


def test_a_study_tested_on_its_validation_prompts_is_refused(tmp_path: Path) -> None:
    swept(tmp_path, seeds=1)
    for path in tmp_path.glob("arms/*/seed-0/evaluation.json"):
        path.write_text(path.read_text().replace('"t3"', '"v3"'))
    with pytest.raises(StorageError, match=r"chosen on validation prompts that it is tested on, such as v3"):
        families(read_study(tmp_path))
