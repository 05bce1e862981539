"""`preflab table score` from outside: what it finds out, what it refuses, what it leaves on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from judged import judged, rule, text
from preflab.cli.main import main
from preflab.runs import read_json
from preflab.tables.files import read_table
from preflab.tables.judge import learners
from preflab.tables.judge.bounds import independent_marginals, second_sample
from preflab.tables.judge.score import leaking, score
from preflab.tables.schema import infer

pytest.importorskip("sdmetrics")
pytest.importorskip("lightgbm")
pytest.importorskip("imblearn")

GROUPS = ("fidelity", "detectability", "utility", "diversity", "privacy", "validity")


@pytest.fixture(autouse=True)
def small_learners(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is told here needs no forest of 200 trees."""
    monkeypatch.setattr(learners, "TREES", 12)
    monkeypatch.setattr(learners, "ROUNDS", 12)
    monkeypatch.setenv("COLUMNS", "200")


def written(folder: Path, **tables: pd.DataFrame) -> dict[str, Path]:
    for name, frame in tables.items():
        frame.to_csv(folder / f"{name}.csv", index=False)
    return {name: folder / f"{name}.csv" for name in tables}


def ran(capfd: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = 0
    try:
        main(["table", "score", *map(str, arguments)])
    except SystemExit as stop:
        code = int(stop.code or 0)
    return code, *capfd.readouterr()


def figures(content: dict[str, Any], name: str = "synthetic") -> dict[str, Any]:
    return next(subject["figures"] for subject in content["subjects"] if subject["name"] == name)


def refusal(capfd: pytest.CaptureFixture[str], folder: Path, *flags: str, **tables: pd.DataFrame) -> tuple[int, str]:
    """Exit code and message for tables that are fine but for those given."""
    paths = written(folder, **({"train": rule(200, 0), "holdout": rule(60, 1), "synthetic": rule(200, 2)} | tables))
    code, _, err = ran(capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"], *flags)
    assert not (folder / "synthetic-score").exists()
    return code, err


def test_all_figures_are_measured_printed_and_written(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    drawn = rule(220, 2)[["size", "town", "answer", "x"]]  # columns in another order
    paths = written(tmp_path, train=rule(220, 0), holdout=rule(80, 1), synthetic=drawn)
    asked = (paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--target", "answer", "--redraws", "1")
    code, out, err = ran(capfd, *asked)
    assert code == 0, err
    content = read_json(tmp_path / "synthetic-score" / "score.json")
    for name in ("synthetic", "real", "marginals"):
        found = figures(content, name)
        assert tuple(found) == GROUPS
        for group in ("fidelity", "diversity", "privacy", "validity"):
            assert None not in found[group].values(), (name, group)
        assert 0 <= found["detectability"]["gradient_boosting_auc"] <= 1
        assert set(found["utility"]["gap"]) == {"accuracy", "auc", "macro_f1"}
    assert content["files"]["train"]["rows"] == 220
    assert content["files"]["synthetic"]["path"] == str(paths["synthetic"])
    assert content["pictures"]["rows"]["columns"] == ["answer", "x", "town", "size"]
    assert len(content["pictures"]["rows"]["cells"]) == 10
    assert sum(content["pictures"]["distances"]["synthetic_to_train"]) == pytest.approx(1)
    assert "no guarantee" in content["evidence"]
    assert not any("no guarantee" in note for note in content["notes"])
    assert set(figures(content)["utility"]["gap_error"]) == {"accuracy", "auc"}
    assert out.count("AUC of gradient boosting") == 1
    assert (out + err).count("no guarantee") == 1
    assert "independent" in out
    assert str(tmp_path / "synthetic-score") in out
    # Rows of the same distribution are as good as real ones, and independent columns are not.
    assert figures(content)["utility"]["mean"]["accuracy"] > 0.9
    assert figures(content, "marginals")["utility"]["mean"]["accuracy"] < 0.75

    assert {"report.html", "report.md", "figures"} <= {path.name for path in (tmp_path / "synthetic-score").iterdir()}

    first = (tmp_path / "synthetic-score" / "score.json").read_bytes()
    assert ran(capfd, *asked, "--jobs", "2")[0] == 0
    assert (tmp_path / "synthetic-score" / "score.json").read_bytes() == first


def test_a_memoriser_is_exposed_and_a_real_sample_is_not() -> None:
    train, holdout = rule(400, 0), rule(200, 1)
    boot = train.iloc[np.random.default_rng(2).integers(0, 400, 400)]
    memoriser = score(judged(train, holdout, boot), boot, seed=0, redraws=1, jobs=1)
    honest = score(judged(train, holdout, rule(400, 3)), boot, seed=0, redraws=1, jobs=1)
    found, real = figures(memoriser.content), figures(honest.content)
    assert found["privacy"]["copies"] == 400
    assert found["privacy"]["copy_share"] == 1
    assert found["privacy"]["distance_share"] > 0.6
    assert found["privacy"]["membership_auc"] > 0.75
    assert found["diversity"]["duplicate_share"] == pytest.approx(np.exp(-1), abs=0.05)  # 1 − (1 − 1/e)
    assert any("400 synthetic rows (100.0%" in said and "memorised" in said for said in memoriser.warnings)
    assert real["privacy"]["copies"] == 0
    assert real["privacy"]["distance_share"] == pytest.approx(0.5, abs=0.05)
    assert real["privacy"]["membership_auc"] == pytest.approx(0.5, abs=0.07)
    assert not honest.warnings
    # What praises the memoriser: nothing but privacy tells it from real rows.
    assert found["fidelity"]["quality"] >= real["fidelity"]["quality"] - 0.02


def test_repeated_real_rows_are_set_aside_and_counted() -> None:
    """A block of equal rows in all three tables: no copies, no duplicates, no distance of 0."""
    block = text(answer=["no"] * 40, x=[-9] * 40, town=["none"] * 40, size=[-9] * 40)
    train, holdout, drawn = (
        pd.concat([rule(160, seed), block.iloc[:some]], ignore_index=True) for seed, some in ((0, 40), (1, 20), (2, 40))
    )
    found = score(judged(train, holdout, drawn), drawn, seed=0, redraws=1, jobs=1).content
    own = figures(found)
    assert own["diversity"]["common_row_share"] == 0.2
    assert own["diversity"]["duplicate_share"] == 0
    assert own["privacy"]["copies"] == 0
    assert own["privacy"]["distance_p5"] > 0
    assert any(note.startswith("60 of 380 real rows stand more than once") for note in found["notes"])


def test_the_worst_rules_are_named() -> None:
    def orders(seed: int, broken: float) -> pd.DataFrame:
        rng = np.random.default_rng(seed)
        most = rng.integers(0, 100, 300)
        some = (most * rng.random(300)).astype(int)
        return text(some=np.where(rng.random(300) < broken, most + 1, some), most=most)

    found = score(judged(orders(0, 0), orders(1, 0), orders(2, 0.25)), orders(2, 0.25), seed=0, redraws=1, jobs=1)
    [worst] = found.content["pictures"]["rules"]
    assert worst["rule"] == "some ≤ most"
    assert worst["synthetic"] == pytest.approx(0.25, abs=0.06)
    assert worst["holdout"] == 0


def test_that_there_is_no_rule_to_break_is_said() -> None:
    found = score(judged(rule(200, 0), rule(60, 1), rule(30, 2)), rule(30, 2), seed=0, redraws=1, jobs=1).content
    assert figures(found)["validity"]["rules"] == 0
    assert "no rule was mined from the training rows for rows to break" in found["notes"]
    assert [note for note in found["notes"] if "target" in note] == ["no utility: no target was named"]


def test_a_copy_of_the_target_is_named_and_a_good_feature_is_not() -> None:
    def table(rows: int, seed: int) -> pd.DataFrame:
        frame = rule(rows, seed, noise=0.1)
        return frame.assign(answer_code=frame["answer"].map({"yes": "1", "no": "0"}))

    found = leaking(judged(table(300, 0), table(100, 1), table(100, 2), "answer"))
    assert len(found) == 1
    assert found[0].startswith('"answer_code" alone tells "answer"')


def test_a_copy_of_a_target_of_numbers_is_named() -> None:
    def table(rows: int, seed: int) -> pd.DataFrame:
        euros = np.random.default_rng(seed).integers(0, 400, rows)
        return text(euros=euros, cents=euros * 100, other=np.random.default_rng(seed + 9).integers(0, 400, rows))

    found = leaking(judged(table(4000, 0), table(100, 1), table(100, 2), "euros"))
    assert [said.split(" alone")[0] for said in found] == ['"cents"']


def test_with_few_synthetic_rows_validity_is_all_there_is(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = written(tmp_path, train=rule(220, 0), holdout=rule(60, 1), synthetic=rule(99, 2))
    code, out, _ = ran(capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--redraws", "1")
    assert code == 0
    content = read_json(tmp_path / "synthetic-score" / "score.json")
    found = figures(content)
    assert found["fidelity"] is found["detectability"] is found["utility"] is None
    assert found["diversity"]["coverage"] is found["privacy"]["distance_share"] is None
    assert found["validity"]["parsed_share"] == 1
    assert any("need 100 readable rows, not 99" in note for note in content["notes"])
    assert figures(content, "real")["diversity"]["coverage"] > 0.9
    assert "–" in out


def test_the_same_file_as_holdout_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, err = refusal(capfd, tmp_path, holdout=rule(200, 0))
    assert code == 3
    assert "holdout.csv is the same file as" in err
    code, err = refusal(capfd, tmp_path, holdout=rule(200, 0).iloc[::-1])
    assert code == 3
    assert "the holdout is the training table" in err


def test_a_holdout_that_was_trained_on_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    seen = pd.concat([rule(60, 1), rule(200, 0).iloc[:25]], ignore_index=True)
    code, err = refusal(capfd, tmp_path, holdout=seen)
    assert code == 3
    assert "25 rows of the holdout are rows of the training table" in err
    assert "each row on one side only" in err


def test_a_missing_column_is_refused_by_name(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, err = refusal(capfd, tmp_path, synthetic=rule(200, 2).rename(columns={"town": "towns"}))
    assert code == 3
    assert 'synthetic.csv has no column "town"' in err
    assert 'did you mean "towns"?' in err


def test_columns_that_the_training_table_lacks_are_said_and_not_looked_at(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    paths = written(tmp_path, train=rule(30, 0), holdout=rule(20, 1), synthetic=rule(30, 2).assign(more="1"))
    code, _, err = ran(capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"])
    assert code == 0
    assert "not in the training table and not looked at: more" in err


def test_a_target_that_is_no_column_is_refused_with_the_nearest(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, err = refusal(capfd, tmp_path, "--target", "anser")
    assert code == 2
    assert 'no column "anser"; did you mean "answer"?' in err


def test_a_table_without_rows_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, err = refusal(capfd, tmp_path, synthetic=rule(0, 2))
    assert code == 3
    assert "synthetic.csv: 0 rows" in err


def test_a_file_that_is_not_there_is_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = written(tmp_path, train=rule(30, 0), holdout=rule(20, 1))
    code, _, err = ran(capfd, paths["train"], tmp_path / "nowhere.csv", "--holdout", paths["holdout"])
    assert code == 3
    assert "nowhere.csv isn't there" in err


def test_a_folder_that_is_no_score_is_not_written_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = written(tmp_path, train=rule(30, 0), holdout=rule(20, 1), synthetic=rule(30, 2))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("dear")
    code, _, err = ran(capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--out", mine)
    assert code == 5
    assert "mine is not empty and holds no score" in err
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_missing_library_is_named_with_its_remedy(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "lightgbm", None)
    code, err = refusal(capfd, tmp_path)
    assert code == 2
    assert "pip install 'preflab[tables]'" in err


ODD: dict[str, pd.DataFrame] = {
    "one column": text(x=np.random.default_rng(0).normal(size=300).round(4)),
    "one category": text(town=np.random.default_rng(0).choice(["Ulm", "Bonn"], 300)),
    "constant and missing": rule(300, 0).assign(same="5", none=""),
    "odd names and cells": rule(300, 0)
    .rename(columns={"x": "größe ≤ 3, is ", "town": '"q"\nn'})
    .replace("Ulm", '[b],"\n'),
    "beyond 2^53": text(x=[2**60 + int(i) for i in np.random.default_rng(0).integers(0, 2**40, 300)], y=range(300)),
    "a thousand categories": text(a=np.random.default_rng(0).integers(0, 1000, 300).astype(str), b=range(300)).apply(
        lambda cells: "v" + cells
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_tables_are_judged(name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    frame = ODD[name]
    paths = written(tmp_path, train=frame[:130], holdout=frame[130:190], synthetic=frame[190:])
    target = ("--target", "answer") if "none" in frame else ()
    code, _, err = ran(
        capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--redraws", "1", *target
    )
    assert code == 0, err
    found = figures(read_json(tmp_path / "synthetic-score" / "score.json"))
    assert found["validity"]["parsed_share"] == 1
    assert found["diversity"]["precision"] is not None


def test_two_rows_are_judged_as_far_as_that_goes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    paths = written(tmp_path, train=rule(2, 0), holdout=rule(1, 1), synthetic=rule(150, 2))
    asked = (paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--target", "answer")
    code, _, err = ran(capfd, *asked)
    assert code == 0, err
    assert "the other figures need 10 training rows, not 2" in err


def test_the_bounds_are_halves_of_the_training_rows_and_columns_on_their_own() -> None:
    train = pd.DataFrame({"x": np.arange(1000.0), "y": np.arange(1000.0)})
    half = second_sample(train, np.random.default_rng(0))
    assert sorted([*half.train["x"], *half.synthetic["x"]]) == list(train["x"])
    drawn = independent_marginals(train, np.random.default_rng(0)).synthetic
    assert abs(np.corrcoef(drawn["x"], drawn["y"])[0, 1]) < 0.1
    assert drawn["x"].mean() == pytest.approx(499.5, abs=30)
    assert set(drawn["x"]) <= set(train["x"])


def test_the_codes_of_a_fit_have_bars_of_their_own_however_few_rows_hold_them(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def coded(rows: int, seed: int) -> pd.DataFrame:
        frame = rule(rows, seed)
        return frame.assign(x=np.where(np.arange(rows) % 20 == 0, "-9", frame["x"]))

    paths = written(tmp_path, train=coded(150, 0), holdout=coded(60, 1), synthetic=coded(150, 2))
    infer(coded(150, 0), codes={"x": ["-9"]}).save(tmp_path / "schema.json")
    assert ran(capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--redraws", "1")[0] == 0
    drawn = {one["column"]: one for one in read_json(tmp_path / "synthetic-score/score.json")["pictures"]["marginals"]}
    assert drawn["x"]["labels"] == ["-9"]
    assert drawn["x"]["edges"][0] == -0.5
    assert drawn["x"]["real"][0] == 0.05


def test_identifiers_of_a_fit_are_not_judged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Fresh ones would give every row away."""
    train, holdout, synthetic = (
        rule(150, seed).assign(row=[f"id-{seed}-{number:03}" for number in range(150)]) for seed in range(3)
    )
    paths = written(tmp_path, train=train, holdout=holdout, synthetic=synthetic)
    infer(read_table(paths["train"])[0]).save(tmp_path / "schema.json")
    code, _, err = ran(capfd, paths["train"], paths["synthetic"], "--holdout", paths["holdout"], "--redraws", 1)
    assert code == 0
    assert "not judged, as the fit took them for identifiers, fresh in every table: row" in err
    content = read_json(tmp_path / "synthetic-score" / "score.json")
    assert "row" not in [column["name"] for column in content["columns"]]
