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
from preflab.config.row_model import RowModel
from preflab.config.table_study import CompareTable, label, quick_study
from preflab.errors import ConfigError, DataError, StorageError
from preflab.models.load import copy_of
from preflab.runs import read_json, write_json
from preflab.seeds import derive
from preflab.studies.table import compare_table, independent, seconds_of, shipped_table
from preflab.studies.table_arms import Bench, judge_real, log_ratios
from preflab.tables.draw import draw_rows
from preflab.tables.files import read_table, write_table
from preflab.tables.judge import learners
from preflab.tables.judge.score import judge
from preflab.tables.judge.typed import typed
from preflab.tables.judge.utility import utility
from preflab.tables.synthesizer import Synthesizer, parted
from small_tables import walk

TINY = RowModel(layers=1, width=16, heads=2, epochs=2)


def write(folder: Path, rows: int = 300) -> Path:
    path = folder / "small.csv"
    rule(rows, seed=1, noise=0.1).to_csv(path, index=False)
    return path


def settings(folder: Path, **changes: Any) -> CompareTable:
    start = CompareTable(
        data=folder / "small.csv",
        target="answer",
        out=folder / "study",
        arms=("dpo", "ppo"),
        seeds=1,
        redraws=2,
        fit=TINY,
    )
    return replace(start, **changes)


def nudge(run: Path, settings: Any, *, method: str, seed: int) -> dict[str, Any]:
    """An alignment that moves the reference's weights by chance: dpo a little, ppo not at all."""
    folder = run / "aligned" / method
    model, noise = copy_of(Synthesizer.load(run).fitted.model("reference")), torch.Generator().manual_seed(1)
    for weight in model.parameters():
        weight.data += (0.05 if method == "dpo" else 0.0) * torch.randn(weight.shape, generator=noise)
    model.save_pretrained(folder / "model")
    found = {"warnings": [f"{method} was only nudged"], "cost": {"wall_seconds": 7.0}, "rounds": []}
    write_json(folder / "align.json", found)
    return found


@pytest.fixture(scope="module", autouse=True)
def small_judges() -> Iterator[None]:
    """Judges of few trees: their figures are compared with themselves alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learners, "TREES", 4)
        patch.setattr(learners, "ROUNDS", 4)
        yield


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write(folder)
    return compare_table(settings(folder), align=nudge)


def judged(folder: Path, arm: str, seed: int = 0) -> dict[str, Any]:
    return dict(read_json(folder / "seeds" / f"seed-{seed}" / "judged" / f"{arm}.json"))


def test_a_study_says_what_it_compares(done: Path) -> None:
    said = read_json(done / "study.json")
    assert said["kind"] == "table"
    assert said["complete"] is True
    assert said["table"] == {"name": "small", "rows": 300, "columns": 4, "target": "answer"}
    assert [(arm["name"], arm["label"]) for arm in said["arms"]] == [
        ("reference", "Reference"),
        ("dpo", "Online DPO"),
        ("ppo", "PPO"),
    ]
    assert (said["seeds"], said["redraws"]) == ([0], 2)
    assert said["primary"] == "detectability.gradient_boosting_auc"
    assert said["independent"] == "detectability.random_forest_auc"
    assert "Online DPO, seed 0: dpo was only nudged" in said["warnings"]
    assert any("one seed" in warning for warning in said["warnings"])
    assert said["study"]["fit.epochs"] == 2


def test_every_draw_of_every_arm_is_judged(done: Path) -> None:
    for arm in ("reference", "dpo", "ppo", "real"):
        found = judged(done, arm)
        assert [draw["redraw"] for draw in found["draws"]] == [0, 1]
        for draw in found["draws"]:
            figures = draw["figures"]
            assert 0 <= figures["detectability.gradient_boosting_auc"] <= 1
            assert {"fidelity.quality", "utility.gap.auc", "diversity.coverage", "privacy.copies"} <= set(figures)
            assert not any(isinstance(value, dict) for value in figures.values())
        assert found["draws"][0]["figures"] != found["draws"][1]["figures"]
    assert judged(done, "reference")["kl_nats"] == 0
    assert judged(done, "reference")["rows"] == 240
    assert judged(done, "real")["rows"] == 120
    assert judged(done, "real")["kl_nats"] is None
    assert judged(done, "real")["rows_per_cpu_second"] is None
    for arm in ("reference", "dpo"):
        assert judged(done, arm)["rows_per_cpu_second"] > 0
        assert 0 <= judged(done, arm)["unmasked_valid_share"] <= 1
    assert seconds_of(done / "seeds" / "seed-0", "dpo") == 7 + seconds_of(done / "seeds" / "seed-0", "reference")  # type: ignore[operator]


def test_figures_are_those_of_the_judge_on_files(done: Path, tmp_path: Path) -> None:
    """As `benchmarks/tables.py` has them: rows are written, read again, and judged."""
    run = done / "seeds" / "seed-0" / "table"
    (train, source), (holdout, _) = (read_table(run / f"{part}.csv") for part in ("train", "holdout"))
    rows, _ = Synthesizer.load(run).draw(len(train), seed=derive(0, "draw", 1), policy="dpo")
    write_table(rows, source, tmp_path / "rows.csv")
    table = typed(train, holdout, read_table(tmp_path / "rows.csv")[0], "answer")
    learnt = utility(table, table.train, derive(0, "utility"), balancing=("none",))
    found = judge(
        table, learnt, seed=derive(0, "evaluation", 1), redraws=2, jobs=1, balancing=("none",), title=""
    ).figures
    figures = judged(done, "dpo")["draws"][1]["figures"]
    assert figures["detectability.random_forest_auc"] == found["detectability"]["random_forest_auc"]
    assert figures["utility.gap.auc"] == found["utility"]["gap"]["auc"]
    assert figures["privacy.distance_share"] == found["privacy"]["distance_share"]


def test_an_arm_that_is_the_reference_gets_its_figures(done: Path) -> None:
    """Arms are paired: the same weights give the same rows and the same judgement, draw by draw."""
    same, other = judged(done, "reference"), judged(done, "ppo")
    assert same["draws"] == other["draws"] != judged(done, "dpo")["draws"]
    assert other["kl_nats"] == other["kl_sd_nats"] == 0
    assert other["unmasked_valid_share"] == same["unmasked_valid_share"]
    assert judged(done, "dpo")["kl_nats"] > 0


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


def test_log_ratios_are_those_of_whole_rows_and_their_mean_is_kl() -> None:
    """Over every row that a table of two columns can have."""
    frame = pd.DataFrame({"a": ["x", "y", "z"] * 60, "b": ["u", "v"] * 90})
    fitted = Synthesizer(settings=TINY).fit(frame, target="a").fitted
    reference, encoding = fitted.model("reference"), fitted.encoding
    policy, noise = copy_of(reference), torch.Generator().manual_seed(1)
    for weight in policy.parameters():
        weight.data += 0.3 * torch.randn(weight.shape, generator=noise)
    rows = list(walk(encoding.mask(), encoding.prompt(), encoding.end_id))
    assert len(rows) == 6
    own, before = (logprobs_by_hand(model, encoding, rows) for model in (policy, reference))
    assert np.exp(own).sum() == pytest.approx(1)
    codes = np.array([encoding.row(encoding.prompt() + row) for row in rows])
    ratios = log_ratios(policy, reference, encoding, codes)
    np.testing.assert_allclose(ratios, own - before, atol=1e-4)
    kl = float(np.exp(own) @ (own - before))
    drawn = log_ratios(policy, reference, encoding, draw_rows(policy, encoding, 2000, seed=0).codes)
    assert kl > 0.05
    assert abs(drawn.mean() - kl) < 4 * drawn.std() / 2000**0.5


def test_a_stopped_study_goes_on_and_a_changed_one_is_refused(done: Path) -> None:
    def refuse(*_: Any, **__: Any) -> dict[str, Any]:
        raise AssertionError("what is there is not made again")

    before = {arm: judged(done, arm) for arm in ("reference", "dpo", "ppo", "real")}
    folder = done / "seeds" / "seed-0" / "judged"
    (folder / "dpo.json").unlink()
    write_json(folder / "real.json", before["real"] | {"draws": before["real"]["draws"][:1]})
    compare_table(settings(done.parent), align=refuse)
    for arm, was in before.items():
        same = {name: value for name, value in judged(done, arm).items() if "cpu_second" not in name}
        assert same == {name: value for name, value in was.items() if "cpu_second" not in name}
    with pytest.raises(StorageError, match=r"redraws: 2.*redraws: 3"):
        compare_table(settings(done.parent, redraws=3), align=refuse)
    with pytest.raises(StorageError, match=r"epochs: 2.*epochs: 3"):
        compare_table(settings(done.parent, fit=replace(TINY, epochs=3)), align=refuse)
    (done.parent / "small.csv").write_text((done.parent / "small.csv").read_text() + "yes,99,Ulm,0.5\n")
    with pytest.raises(StorageError, match=r"small\.csv is not what it was"):
        compare_table(settings(done.parent), align=refuse)
    write(done.parent)


def test_the_bound_is_half_of_the_real_rows_against_the_other_half(done: Path) -> None:
    bench = Bench(done / "seeds" / "seed-0", settings(done.parent), 0)
    figures = judge_real(bench, 0)
    assert figures == judged(done, "real")["draws"][0]["figures"]
    assert figures["privacy.copies"] == 0
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
        compare_table(settings(tmp_path, **changes), align=nudge)
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
