"""Alignment from outside: what a run folder holds after it, what it goes on with, what it refuses."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from preflab.cli.main import main
from preflab.config.alignment import Alignment, Discriminators
from preflab.config.online import PPO, RLOO, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch
from preflab.config.row_model import RowModel
from preflab.config.training import Optimizer
from preflab.errors import ConfigError, StorageError
from preflab.runs import read_json, read_lines
from preflab.tables.alignment.align import align, rows_of
from preflab.tables.alignment.choose import measure, row_logprobs, told_apart
from preflab.tables.draw import draw_rows
from preflab.tables.fitted import Fitted
from preflab.tables.synthesizer import Synthesizer

RATE = Optimizer(learning_rate=3e-3, warmup_steps=1)
BATCH = RolloutBatch(size=256, mini=256, micro=256)
QUICK = Alignment(
    rounds=1,
    judged=300,
    discriminators=Discriminators(folds=2, trees=40, written=2.0),
    ppo=PPO(updates=4, batch=BATCH, epochs=1, kl_coefficient=1.0, optimizer=RATE, value_trunk="shared", evaluations=2),
    rloo=RLOO(updates=4, batch=BATCH, epochs=1, kl_coefficient=1.0, optimizer=RATE, evaluations=2),
    dpo=OnlineDPO(updates=2, batch=PairBatch(size=64, mini=64, micro=64), optimizer=RATE, evaluations=1),
)


def table(rows: int = 600) -> pd.DataFrame:
    """Three columns that depend on each other: a model that learned little gets that wrong."""
    draw = np.random.default_rng(0)
    kind = draw.integers(0, 3, rows)
    size = 10 * kind + draw.integers(0, 4, rows)
    return pd.DataFrame(
        {"kind": np.array(["a", "b", "c"])[kind], "size": size, "big": np.where(size > 12, "yes", "no")}
    )


@pytest.fixture(scope="module")
def weak(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fit that was stopped early."""
    folder = tmp_path_factory.mktemp("align")
    table().to_csv(folder / "data.csv", index=False)
    fit = ["--fit.layers", "1", "--fit.width", "16", "--fit.heads", "2", "--fit.epochs", "3"]
    main(["table", "fit", str(folder / "data.csv"), "--target", "kind", "--out", str(folder / "run"), *fit])
    return folder / "run"


@pytest.fixture
def run(weak: Path, tmp_path: Path) -> Path:
    """A copy of it, to work in."""
    return Path(shutil.copytree(weak, tmp_path / "run"))


def test_a_weak_model_is_told_from_the_table_less_after_it(run: Path) -> None:
    longer = replace(QUICK, ppo=replace(QUICK.ppo, updates=24))
    said = align(run, longer, method="ppo", seed=0)
    first, last = said["points"][0], said["points"][-1]
    assert first["told_apart_auc"] > 0.6
    assert last["told_apart_auc"] < first["told_apart_auc"] - 0.05
    assert 0 < last["kl_nats"] < 5
    assert said["chosen"] != {"round": 0, "step": 0}
    rewards = [line["reward"] for line in read_lines(run / "aligned" / "ppo" / "metrics.jsonl")]
    assert rewards[-1] > rewards[0]


def test_the_folder_holds_what_the_documentation_says(run: Path) -> None:
    said = align(run, replace(QUICK, rounds=2), method="rloo", seed=1)
    folder = run / "aligned" / "rloo"
    names = {path.name for path in folder.iterdir()}
    assert {"config.yaml", "environment.json", "metrics.jsonl", "align.json", "discriminators", "model"} <= names
    assert read_json(folder / "align.json") == said
    assert [(point["round"], point["step"]) for point in said["points"]] == [(0, 0), (1, 2), (1, 4), (2, 2), (2, 4)]
    assert [one["round"] for one in said["rounds"]] == [1, 2]
    assert said["cost"]["queries"] == said["points"][-1]["queries"] == 2 * 4 * 256
    lines = read_lines(folder / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(1, 9))
    assert [line["round"] for line in lines] == [1] * 4 + [2] * 4
    best = min(said["points"], key=lambda point: point["told_apart_auc"])
    assert said["chosen"] == {"round": best["round"], "step": best["step"]}


def test_the_second_round_is_measured_from_the_first_ones_policy_and_from_the_reference(run: Path) -> None:
    said = align(run, replace(QUICK, rounds=2), method="ppo", seed=0)
    lines = read_lines(run / "aligned" / "ppo" / "metrics.jsonl")
    assert lines[4]["round"] == 2
    assert abs(lines[4]["kl_nats"]) < 1e-4  # to the policy that the round began with
    assert said["points"][-1]["kl_nats"] > 1e-3


def test_a_chain_goes_on_from_its_first_stage(run: Path) -> None:
    align(run, QUICK, method="dpo+ppo", seed=0)
    fitted = Fitted.load(run)
    assert fitted.policies() == ["reference", "dpo", "dpo+ppo"]
    first = read_json(run / "aligned" / "dpo+ppo" / "align.json")["points"][0]
    of_dpo = read_json(run / "aligned" / "dpo" / "align.json")
    chosen = [
        point for point in of_dpo["points"] if (point["round"], point["step"]) == tuple(of_dpo["chosen"].values())
    ]
    assert first["told_apart_auc"] == chosen[0]["told_apart_auc"]
    assert first["kl_nats"] == pytest.approx(chosen[0]["kl_nats"], abs=1e-6)


def test_what_is_there_is_not_made_again_and_other_settings_are_refused(run: Path) -> None:
    said = align(run, QUICK, method="dpo", seed=0)
    assert align(run, QUICK, method="dpo", seed=0) == said
    with pytest.raises(StorageError, match="rounds"):
        align(run, replace(QUICK, rounds=2), method="dpo", seed=0)


def test_a_run_that_was_cut_off_ends_as_one_that_was_not(run: Path, tmp_path: Path) -> None:
    settings = replace(QUICK, rounds=2)
    other = Path(shutil.copytree(run, tmp_path / "other"))
    whole = align(run, settings, method="ppo", seed=3)
    align(other, settings, method="ppo", seed=3)
    folder = other / "aligned" / "ppo"
    (folder / "align.json").unlink()
    shutil.rmtree(folder / "rounds" / "round-2")  # as if it had been killed after the first round
    points = read_lines(folder / "points.jsonl")
    (folder / "points.jsonl").write_text("".join(line + "\n" for line in map(_line, points[:3])))
    again = align(other, settings, method="ppo", seed=3)
    for one, two in zip(whole["points"], again["points"], strict=True):
        assert (one["told_apart_auc"], one["kl_nats"], one["reward"]) == (
            two["told_apart_auc"],
            two["kl_nats"],
            two["reward"],
        )
    assert again["chosen"] == whole["chosen"]


def _line(point: dict[str, Any]) -> str:
    import json

    return json.dumps(point)


def test_validation_rows_are_those_of_the_fit_and_no_others_are_learned_from(run: Path) -> None:
    fitted = Fitted.load(run)
    rows = rows_of(fitted)
    assert (len(rows.train), len(rows.validation)) == (fitted.report["rows"], fitted.report["validation_rows"])


def test_wrong_names_and_missing_rows_end_with_a_sentence(run: Path) -> None:
    with pytest.raises(ConfigError, match='no method "pppo" for tables; did you mean "ppo"'):
        align(run, QUICK, method="pppo", seed=0)
    with pytest.raises(ConfigError, match="no policy"):
        Fitted.load(run).model("nothing")
    (run / "train.csv").unlink()
    with pytest.raises(ConfigError, match=r"no train\.csv"):
        align(run, QUICK, method="ppo", seed=0)


def test_settings_without_effect_are_refused(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["table", "align", str(run), "--method", "ppo", "--rloo.updates", "3"])
    assert "rloo has no effect with method = ppo" in capsys.readouterr().err


def test_rows_are_sampled_from_what_was_aligned_last(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    align(run, QUICK, method="dpo", seed=0)
    out = run.parent / "rows.csv"
    main(["table", "sample", str(run), "-n", "5", "--out", str(out)])
    assert "5 rows by dpo" in capsys.readouterr().out
    assert read_json(run.parent / "rows.csv.json")["policy"] == "dpo"
    by_hand = run.parent / "other.csv"
    main(["table", "sample", str(run), "-n", "5", "--out", str(by_hand), "--policy", "dpo"])
    assert by_hand.read_text() == out.read_text()


def test_the_library_aligns_what_it_has_just_fitted(tmp_path: Path) -> None:
    tiny = RowModel(layers=1, width=16, heads=2, epochs=3)
    synthesizer = Synthesizer(settings=tiny).fit(table(300), target="kind")
    before = synthesizer.sample(50, seed=1)
    synthesizer.align("dpo", QUICK)
    assert synthesizer.fitted.latest == "dpo"
    pd.testing.assert_frame_equal(synthesizer.sample(50, seed=1, policy="reference"), before)
    after = synthesizer.sample(50, seed=1)
    assert not after.equals(before)
    synthesizer.save(tmp_path / "saved")
    pd.testing.assert_frame_equal(Synthesizer.load(tmp_path / "saved").sample(50, seed=1, policy="dpo"), after)


def test_figures_of_a_checkpoint_are_what_they_are_called(run: Path) -> None:
    fitted = Fitted.load(run)
    rows, model = rows_of(fitted), fitted.model("reference")
    found = measure(model, model, fitted.encoding, rows.validation, count=300, seed=0)
    assert found.kl_nats == 0
    assert found.nats == pytest.approx(fitted.report["validation_nats"], abs=0.5)  # which counts all digits
    drawn = draw_rows(model, fitted.encoding, 2000, seed=1).codes
    assert -row_logprobs(model, fitted.encoding, drawn[:1000]).mean() > 0
    assert told_apart(drawn[:300], drawn[300:1500], seed=0) == pytest.approx(0.5, abs=0.06)
    assert told_apart(rows.train[:300], np.zeros_like(drawn[:600]), seed=0) > 0.9
