"""Studies of a table: what is shared and paired, what a stopped one goes on with, what is refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from judged import rule
from preflab.config.alignment import Alignment
from preflab.config.online import RolloutBatch
from preflab.config.online_preference import PairBatch
from preflab.config.row_model import RowModel
from preflab.config.table_study import CompareTable, label, quick_study
from preflab.errors import ConfigError, DataError, StorageError
from preflab.models.load import copy_of
from preflab.runs import read_json, write_json
from preflab.seeds import derive
from preflab.studies.table import compare_table, independent, seconds_of, shipped_table
from preflab.studies.table_arms import Bench, draw, judge_real, judge_rows, measure, panel_folder
from preflab.tables.alignment import choose
from preflab.tables.files import read_table, write_table
from preflab.tables.fit_run import fit_run
from preflab.tables.fitted import load_model
from preflab.tables.judge import learners
from preflab.tables.judge.score import judge
from preflab.tables.judge.typed import typed
from preflab.tables.judge.utility import utility
from preflab.tables.synthesizer import Synthesizer, parted
from small_tables import walk

TINY = RowModel(layers=1, width=16, heads=2, epochs=2)


def write(folder: Path, rows: int = 300) -> Path:
    path = folder / "small.csv"
    frame = rule(rows, seed=1, noise=0.1).drop(columns="size")
    x = frame["x"].astype(int) // 10
    frame["x"], frame["town"] = x.astype(str), np.where(x % 2, "Ulm", "Bonn")  # what a tiny model does not learn
    frame.to_csv(path, index=False)
    return path


def tiny_alignment() -> Alignment:
    """One round of one update of each method."""
    whole = Alignment()
    rollouts, pairs = RolloutBatch(size=32, mini=32, micro=32), PairBatch(size=16, mini=16, micro=16)
    return replace(
        whole,
        rounds=1,
        judged=100,
        discriminators=replace(whole.discriminators, folds=2, written=2.0, trees=60, learning_rate=0.1),
        ppo=replace(whole.ppo, updates=1, batch=rollouts, evaluations=1),
        dpo=replace(whole.dpo, updates=1, batch=pairs, evaluations=1),
    )


def settings(folder: Path, **changes: Any) -> CompareTable:
    start = CompareTable(
        data=folder / "small.csv",
        target="answer",
        out=folder / "study",
        arms=("resampled", "dpo+ppo"),
        seeds=1,
        redraws=2,
        fit=TINY,
        align=tiny_alignment(),
    )
    return replace(start, **changes)


@pytest.fixture(scope="module", autouse=True)
def small_judges() -> Iterator[None]:
    """Judges of few trees: their figures are compared with themselves alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learners, "TREES", 4)
        patch.setattr(learners, "ROUNDS", 4)
        patch.setattr(choose, "TREES", 4)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write(folder)
    return compare_table(settings(folder))


def judged(folder: Path, arm: str, seed: int = 0) -> dict[str, Any]:
    return dict(read_json(folder / "seeds" / f"seed-{seed}" / "judged" / f"{arm}.json"))


def test_a_study_says_what_it_compares(done: Path) -> None:
    said = read_json(done / "study.json")
    assert said["kind"] == "table"
    assert said["complete"] is True
    assert said["table"] == {"name": "small", "rows": 300, "columns": 3, "target": "answer"}
    assert [arm["name"] for arm in said["arms"]] == ["reference", "resampled", "dpo+ppo"]
    assert said["arms"][2]["label"] == "Online DPO → PPO"
    assert "from the chosen policy of Online DPO" in said["arms"][2]["description"]
    assert (said["seeds"], said["redraws"]) == ([0], 2)
    assert said["primary"] == "detectability.gradient_boosting_auc"
    assert said["independent"] == "detectability.random_forest_auc"
    assert "resampled uses the discriminators of the first round of Online DPO" in said["notes"]
    assert any("one seed" in warning for warning in said["warnings"])
    assert said["study"]["fit.epochs"] == 2


def test_every_draw_of_every_arm_is_judged(done: Path) -> None:
    for arm in ("reference", "resampled", "dpo+ppo", "real"):
        found = judged(done, arm)
        assert [one["redraw"] for one in found["draws"]] == [0, 1]
        for one in found["draws"]:
            figures = one["figures"]
            assert 0 <= figures["detectability.gradient_boosting_auc"] <= 1
            assert {"fidelity.quality", "utility.gap.auc", "diversity.coverage", "privacy.copies"} <= set(figures)
            assert not any(isinstance(value, dict) for value in figures.values())
        assert found["draws"][0]["figures"] != found["draws"][1]["figures"]
        assert found["rows"] == (120 if arm == "real" else 240)
    assert judged(done, "reference")["kl_nats"] == 0
    assert judged(done, "real")["kl_nats"] is judged(done, "real")["rows_per_cpu_second"] is None
    assert judged(done, "resampled")["unmasked_valid_share"] is None
    for arm in ("reference", "dpo+ppo"):
        assert judged(done, arm)["rows_per_cpu_second"] > 0
        assert 0 <= judged(done, arm)["unmasked_valid_share"] <= 1


def test_tables_that_are_judged_with_orders_broken_are_counted(tmp_path: Path) -> None:
    """The fit is made to say that y ≤ x, which no row keeps."""
    frame, _ = read_table(write(tmp_path))
    frame.assign(y=(frame["x"].astype(int) + 100).astype(str)).to_csv(tmp_path / "small.csv", index=False)
    config = settings(tmp_path, arms=("reference",), align=Alignment())
    done = compare_table(config)
    assert [one.get("orders") for one in judged(done, "reference")["draws"]] == ["keep", "keep"]
    assert not any("orders" in warning for warning in read_json(done / "study.json")["warnings"])
    fit, kept = (done / "seeds" / "seed-0" / name for name in ("table/fit.json", "judged/reference.json"))
    write_json(fit, read_json(fit) | {"orders": [["y", "x"]]})
    kept.unlink()
    compare_table(config)
    assert [one["orders"] for one in judged(done, "reference")["draws"]] == ["ignore", "ignore"]
    assert any(
        warning.startswith("Reference, seed 0: hardly a row keeps the orders")
        and warning.endswith("so 2 of 2 tables are judged as they come, orders broken")
        for warning in read_json(done / "study.json")["warnings"]
    )


def test_what_an_arm_takes_is_the_fit_and_each_stage(done: Path) -> None:
    folder, config = done / "seeds" / "seed-0", settings(done.parent)
    fit = read_json(folder / "table" / "fit.json")["seconds"]
    stages = [read_json(folder / "table" / "aligned" / name / "align.json") for name in ("dpo", "dpo+ppo")]
    assert seconds_of(config, folder, "reference") == fit
    assert seconds_of(config, folder, "dpo+ppo") == fit + sum(one["cost"]["wall_seconds"] for one in stages)
    assert seconds_of(config, folder, "resampled") == fit + stages[0]["rounds"][0]["seconds"]
    assert seconds_of(config, folder, "real") is None


def test_figures_are_those_of_the_judge_on_files(done: Path, tmp_path: Path) -> None:
    """As `benchmarks/tables.py` has them: rows are written, read again, and judged."""
    run = done / "seeds" / "seed-0" / "table"
    (train, source), (holdout, _) = (read_table(run / f"{part}.csv") for part in ("train", "holdout"))
    rows, _ = Synthesizer.load(run).draw(len(train), seed=derive(0, "draw", 1), policy="dpo+ppo")
    write_table(rows, source, tmp_path / "rows.csv")
    table = typed(train, holdout, read_table(tmp_path / "rows.csv")[0], "answer")
    learnt = utility(table, table.train, derive(0, "utility"), balancing=("none",))
    found = judge(
        table, learnt, seed=derive(0, "evaluation", 1), redraws=2, jobs=1, balancing=("none",), title=""
    ).figures
    figures = judged(done, "dpo+ppo")["draws"][1]["figures"]
    assert figures["detectability.random_forest_auc"] == found["detectability"]["random_forest_auc"]
    assert figures["utility.gap.auc"] == found["utility"]["gap"]["auc"]
    assert figures["fidelity.quality"] == found["fidelity"]["quality"]


def test_a_policy_that_is_the_reference_gets_its_figures(done: Path) -> None:
    """Arms are paired: the same weights give the same rows and the same judgement, draw by draw."""
    run = done / "seeds" / "seed-0" / "table"
    bench = Bench(done / "seeds" / "seed-0", settings(done.parent), 0)
    fitted = bench.synthesizer.fitted
    fitted.add("twin", load_model(run / "model", fitted.encoding), {"finished_at": 0.0})
    found, same = measure(bench, "twin"), judged(done, "reference")
    assert found["kl_nats"] == found["kl_sd_nats"] == 0
    assert found["unmasked_valid_share"] == same["unmasked_valid_share"]
    assert judge_rows(bench, draw(bench, "twin", 1).text, 1) == same["draws"][1]["figures"]
    assert judged(done, "resampled")["draws"][1]["figures"] != same["draws"][1]["figures"]


def nudged(model: Any, amount: float) -> Any:
    """Near the model, and another."""
    other, noise = copy_of(model), torch.Generator().manual_seed(1)
    for weight in other.parameters():
        weight.data += amount * torch.randn(weight.shape, generator=noise)
    return other


def logprobs_by_hand(model: Any, encoding: Any, rows: list[tuple[int, ...]]) -> np.ndarray:
    """log π of whole responses: logits of each row alone, renormalised over what may follow."""
    mask, prompt = encoding.mask(), encoding.prompt()
    found = []
    for row in rows:
        logits = model(torch.tensor([prompt + row])).logits[0].double().detach()
        state, total = mask.start(prompt), 0.0
        for place, token in enumerate(row):
            allowed = mask.allowed([state])[0]
            total += float(logits[len(prompt) - 1 + place].masked_fill(~allowed, -torch.inf).log_softmax(-1)[token])
            if token != encoding.end_id:
                state = mask.advance(state, token)
        found.append(total)
    return np.array(found)


def test_kl_of_a_policy_is_that_of_all_rows(tmp_path: Path) -> None:
    """Summed over every row that a table of two columns can have."""
    pd.DataFrame({"a": ["x", "y", "z"] * 100, "b": ["u", "v"] * 150}).to_csv(tmp_path / "two.csv", index=False)
    config = CompareTable(data=tmp_path / "two.csv", target="a", fit=TINY)
    fit_run(config.fitting(tmp_path / "two.csv", tmp_path / "table", 0))
    bench = Bench(tmp_path, config, 0)
    reference, encoding = bench.synthesizer.fitted.model("reference"), bench.synthesizer.fitted.encoding
    policy = nudged(reference, 0.3)
    bench.synthesizer.fitted.add("ppo", policy, {"finished_at": 0.0})
    rows = list(walk(encoding.mask(), encoding.prompt(), encoding.end_id))
    assert len(rows) == 6
    own, before = (logprobs_by_hand(model, encoding, rows) for model in (policy, reference))
    assert np.exp(own).sum() == pytest.approx(1)
    kl = float(np.exp(own) @ (own - before))
    variance = float(np.exp(own) @ (own - before - kl) ** 2)
    found = measure(bench, "ppo")
    assert kl > 0.05
    assert abs(found["kl_nats"] - kl) < 4 * (variance / 240) ** 0.5
    assert found["kl_sd_nats"] == pytest.approx(variance**0.5, rel=0.3)


def test_resampling_by_itself_has_the_discriminators_of_a_first_round(done: Path) -> None:
    folder = done / "seeds" / "seed-0"
    beside = Bench(folder, settings(done.parent), 0)
    alone = Bench(folder, settings(done.parent, arms=("resampled",)), 0)
    codes = beside.synthesizer.draw(50, policy="reference")[1].codes
    np.testing.assert_allclose(alone.panel.opinion(codes).ratio, beside.panel.opinion(codes).ratio, atol=1e-6)
    assert panel_folder(folder, beside.config) == folder / "table" / "aligned" / "dpo" / "discriminators" / "round-1"
    assert panel_folder(folder, alone.config) == folder / "discriminators" / "round-1"


def test_kl_of_resampled_rows_is_that_of_their_weights(done: Path) -> None:
    """KL(p_w‖p) = E_p[w log w]/E_p w − log E_p w, over many rows of the reference."""
    bench = Bench(done / "seeds" / "seed-0", settings(done.parent), 0)
    codes = bench.synthesizer.draw(4000, seed=9, policy="reference")[1].codes
    log_weights = np.clip(bench.panel.opinion(codes).ratio, -3, 3)
    weights = np.exp(log_weights)
    expected = float((weights * log_weights).sum() / weights.sum() - np.log(weights.mean()))
    found = judged(done, "resampled")
    assert abs(found["kl_nats"] - expected) < 5 * found["kl_sd_nats"] / 240**0.5 + 1e-9


def test_a_stopped_study_goes_on_and_a_changed_one_is_refused(done: Path) -> None:
    before = {arm: judged(done, arm) for arm in ("reference", "dpo+ppo", "real")}
    trained = (done / "seeds" / "seed-0" / "table" / "aligned" / "dpo" / "align.json").read_bytes()
    folder = done / "seeds" / "seed-0" / "judged"
    (folder / "dpo+ppo.json").unlink()
    write_json(folder / "real.json", before["real"] | {"draws": before["real"]["draws"][:1]})
    compare_table(settings(done.parent))
    for arm, was in before.items():
        same = {name: value for name, value in judged(done, arm).items() if "cpu_second" not in name}
        assert same == {name: value for name, value in was.items() if "cpu_second" not in name}
    assert (done / "seeds" / "seed-0" / "table" / "aligned" / "dpo" / "align.json").read_bytes() == trained
    with pytest.raises(StorageError, match=r"redraws is 2 there, 3 now, which all arms depend on"):
        compare_table(settings(done.parent, redraws=3))
    with pytest.raises(StorageError, match=r"fit\.epochs is 2\.?0? there, 3 now"):
        compare_table(settings(done.parent, fit=replace(TINY, epochs=3)))
    (done.parent / "small.csv").write_text((done.parent / "small.csv").read_text() + "yes,9,Ulm\n")
    with pytest.raises(StorageError, match=r"small\.csv is not what it was"):
        compare_table(settings(done.parent))
    write(done.parent)


def test_the_bound_is_half_of_the_real_rows_against_the_other_half(done: Path) -> None:
    bench = Bench(done / "seeds" / "seed-0", settings(done.parent), 0)
    figures = judge_real(bench, 0)
    assert figures == judged(done, "real")["draws"][0]["figures"]
    assert figures["detectability.rows"] == 60  # all that are held out
    assert judge_real(bench, 1) != figures


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"arms": ("dpo", "pppo")}, ConfigError, r'arms = pppo: there is no arm or stage "pppo"; did you mean "ppo"'),
        ({"arms": ("reference+ppo",)}, ConfigError, r'"reference" trains nothing, so it can\'t be a stage'),
        ({"target": None}, ConfigError, r"name the column that others are to predict, with --target"),
        ({"target": "anser"}, ConfigError, r'small has no column "anser"; did you mean "answer"'),
        ({"seeds": 0}, ConfigError, r"seeds = 0: must be greater than or equal to 1"),
        ({"holdout": 0.4}, DataError, r"180 to learn from and 120 held out; judging needs 200 and 10"),
        ({"holdout": 0.02}, DataError, r"294 to learn from and 6 held out"),
        ({"model": "gpt2"}, ConfigError, r"model = gpt2 has no effect with encoding = compact"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(
    changes: dict[str, Any], error: type[Exception], says: str, tmp_path: Path
) -> None:
    write(tmp_path)
    with pytest.raises(error, match=says):
        compare_table(settings(tmp_path, **changes))
    assert not (tmp_path / "study").exists()


def test_settings_of_a_method_that_is_no_arm_are_refused() -> None:
    start = CompareTable(arms=("dpo",))
    changed = replace(start, align=replace(start.align, ppo=replace(start.align.ppo, updates=7)))
    assert changed.misfit() == "align.ppo.* has no effect: no arm is ppo; add it to arms, or leave it out"
    assert replace(changed, arms=("dpo+ppo",)).misfit() is None
    assert quick_study().misfit() is None


def test_the_independent_judge_is_no_relative_of_the_discriminators() -> None:
    start = CompareTable().align
    of = start.discriminators
    assert independent(replace(start, discriminators=replace(of, kind="trees"))).endswith("random_forest_auc")
    assert independent(replace(start, discriminators=replace(of, kind="neural"))).endswith("gradient_boosting_auc")
    only_tokens = replace(of, kind="trees", levels=("token", "sentence"))
    assert independent(replace(start, discriminators=only_tokens)).endswith("gradient_boosting_auc")


def test_the_reference_comes_first_and_each_arm_once() -> None:
    assert CompareTable(arms=("ppo", "dpo", "ppo")).compared() == ("reference", "ppo", "dpo")
    assert CompareTable(arms=("resampled", "reference", "dpo+ppo")).aligned() == ("dpo+ppo",)
    assert label("dpo+ppo") == "Online DPO → PPO"


def test_the_table_that_stands_in_is_real_and_large_enough() -> None:
    frame = shipped_table()
    assert (len(frame), frame.shape[1]) == (569, 31)
    assert frame["diagnosis"].value_counts().to_dict() == {"benign": 357, "malignant": 212}  # UCI's description
    learned, held = parted(len(frame), 0.2, seed=0)
    assert len(learned) >= 200
    assert len(held) >= 100
