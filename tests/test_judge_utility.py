"""Utility: rules that are known, metrics by hand and against scikit-learn's, balancing, and odd targets."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from judged import judged, rule, text
from preflab.tables.judge.typed import Typed
from preflab.tables.judge.utility import (
    BALANCING,
    MODELS,
    Balancing,
    CannotBalance,
    Classification,
    Regression,
    Utility,
    auc_influence,
    balanced,
    influences,
    r2_influence,
    score_classes,
    score_numbers,
    utility,
)


def classified(found: Utility, how: Balancing = "none") -> list[Classification]:
    scores = [of_model[how] for of_model in found.models.values()]
    assert all(isinstance(score, Classification) for score in scores)
    return [score for score in scores if isinstance(score, Classification)]


@pytest.fixture(scope="module")
def table() -> Typed:
    return judged(rule(150, 0), rule(150, 1), rule(150, 2), "answer")


def test_a_rule_in_the_synthetic_rows_is_learnt_and_holds_in_the_holdout(table: Typed) -> None:
    found = utility(table, table.usable, 0, balancing=["none"])
    assert tuple(found.models) == MODELS
    assert found.notes == ()
    for score in classified(found):
        assert score.accuracy > 0.93
        assert score.auc is not None
        assert score.auc > 0.95
    real = utility(table, table.train, 0, balancing=["none"])
    assert found.gap(real) == pytest.approx({"accuracy": 0, "auc": 0, "macro_f1": 0}, abs=0.05)


def test_what_is_learnt_from_the_opposite_rule_is_wrong(table: Typed) -> None:
    rows = table.usable
    rows["answer"] = rows["answer"].map({"yes": "no", "no": "yes"})
    for score in classified(utility(table, rows, 0, balancing=["none"])):
        assert score.accuracy < 0.07
        assert score.kappa is not None
        assert score.kappa < -0.8


def test_scores_by_hand() -> None:
    truth = np.array(["a", "a", "a", "b"])
    found = score_classes(truth, np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]]), np.array(["a", "b"]))
    # Said: a a b b. Recall 2/3 and 1; precision 1 and 1/2; by chance (3·2 + 1·2)/16 = 1/2 agree.
    assert found.accuracy == 0.75
    assert found.balanced_accuracy == pytest.approx(5 / 6)
    assert found.f1 == pytest.approx({"a": 0.8, "b": 2 / 3})
    assert found.macro_f1 == pytest.approx((0.8 + 2 / 3) / 2)
    assert found.kappa == pytest.approx(0.5)
    # Of three pairs of an a and the b, two are in order.
    assert found.auc == pytest.approx(2 / 3)


def test_the_auc_of_several_classes_is_scikit_learns_of_one_against_the_rest() -> None:
    draw = np.random.default_rng(0)
    truth, probabilities = draw.choice(["a", "b", "c"], 60), draw.dirichlet([1, 1, 1], 60)
    expected = roc_auc_score(truth, probabilities, multi_class="ovr", labels=["a", "b", "c"])
    assert score_classes(truth, probabilities, np.array(["a", "b", "c"])).auc == pytest.approx(expected)


def test_a_class_that_the_synthetic_rows_lack_is_missed() -> None:
    towns = ["a", "b", "c"] * 30
    real = text(town=towns, x=[{"a": 1, "b": 2, "c": 3}[town] for town in towns])
    table = judged(real, real, real[real["town"] != "c"], "town")
    for score in classified(utility(table, table.usable, 0, balancing=["none"])):
        assert score.accuracy == pytest.approx(2 / 3)
        assert score.f1["a"] == 1
        assert score.f1["c"] == 0
        assert score.auc is not None
        # a is known from the rest; b is as likely as c, and c has probability 0 everywhere.
        assert 0.5 < score.auc < 1


def test_one_class_to_learn_from_is_said_throughout(table: Typed) -> None:
    rows = table.usable[table.usable["answer"] == "yes"]
    found = utility(table, rows, 0)
    share = float((table.holdout["answer"] == "yes").mean())
    for how in BALANCING:
        for score in classified(found, how):
            assert score.accuracy == share
            assert (score.balanced_accuracy, score.auc, score.kappa) == (0.5, 0.5, 0)
            assert score.f1 == pytest.approx({"no": 0, "yes": 2 * share / (1 + share)})
    assert found.notes == ('utility: each row to learn from has the "answer" yes, so all models say just that',)


def test_a_holdout_of_one_class_has_no_auc(table: Typed) -> None:
    one = judged(rule(60, 0), rule(60, 1)[lambda rows: rows["answer"] == "yes"], rule(60, 2), "answer")
    found = utility(one, one.usable, 0, balancing=["none"])
    assert all(score.auc is None for score in classified(found))
    assert found.mean()["auc"] is None
    assert found.gap(found) == {"accuracy": 0, "auc": None, "macro_f1": 0}


def lopsided(rare: int) -> Typed:
    rows = text(
        answer=["yes"] * rare + ["no"] * 40,
        x=[*range(rare), *range(100, 140)],
        town=["Ulm", "Bonn"] * ((rare + 40) // 2) + ["Ulm"] * (rare % 2),
    )
    return judged(rows, rows, rows, "answer")


@pytest.mark.parametrize(
    ("how", "expected"), [("none", (10, 40)), ("class_weight", (10, 40)), ("smote", (40, 40)), ("over", (40, 40)),
                          ("under", (10, 10)), ("smoteenn", (40, 40))]
)  # fmt: skip
def test_balancing_makes_classes_of_a_size(how: Balancing, expected: tuple[int, int]) -> None:
    table = lopsided(10)
    rows, answers = balanced(table, table.train, table.train["answer"].to_numpy(object), how, 0)
    counts = Counter(answers)
    assert (counts["yes"], counts["no"]) == expected
    # The classes lie apart, and what is made lies within its class.
    assert ((rows["x"].to_numpy(float) < 50) == (answers == "yes")).all()
    assert set(rows["town"]) == {"Ulm", "Bonn"}


def test_balancing_leaves_the_real_rows_as_they_are_missing_cells_too() -> None:
    table = lopsided(10)
    rows = table.train.copy()
    rows.loc[[3, 20], "x"] = np.nan
    rows.loc[[4, 21], "town"] = np.nan
    out, _ = balanced(table, rows, rows["answer"].to_numpy(object), "smote", 0)
    pd.testing.assert_frame_equal(out[:50], rows[["x", "town"]], check_dtype=False)
    assert out[50:]["x"].notna().all()


@pytest.mark.parametrize("kind", ["numbers", "categories"])
def test_tables_of_numbers_or_of_categories_alone_are_balanced(kind: str) -> None:
    cells = list(range(30)) if kind == "numbers" else ["a", "b", "c"] * 10
    rows = text(answer=["yes"] * 10 + ["no"] * 20, x=cells)
    table = judged(rows, rows, rows, "answer")
    _, answers = balanced(table, table.train, rows["answer"].to_numpy(object), "smote", 0)
    assert Counter(answers) == {"no": 20, "yes": 20}


def test_smote_without_enough_rows_gives_a_sentence_and_the_others_are_scored() -> None:
    table = lopsided(5)
    with pytest.raises(CannotBalance):
        balanced(table, table.train, table.train["answer"].to_numpy(object), "smote", 0)
    found = utility(table, table.usable, 0)
    reason = '5 rows have the "answer" yes, and SMOTE needs 6'
    assert found.notes == (f"no utility with smote: {reason}", f"no utility with smoteenn: {reason}")
    figures = found.figures()
    assert figures is not None
    for scores in figures["models"].values():
        assert scores["smote"] is None
        assert scores["smoteenn"] is None
        assert all(scores[how]["accuracy"] >= 0.5 for how in ("none", "class_weight", "under", "over"))
    assert figures["models"]["decision_tree"]["over"]["accuracy"] == 1


def test_class_weights_find_more_of_a_rare_class() -> None:
    train, holdout = rule(400, 0, noise=0.25), rule(300, 1, noise=0.25)
    rare = train[(train["answer"] == "no") | (train.index % 8 == 0)]
    table = judged(train, holdout, rare, "answer")
    found = utility(table, table.usable, 0, balancing=["none", "class_weight"])
    for plain, weighted in zip(classified(found), classified(found, "class_weight"), strict=True):
        assert weighted.f1["yes"] > plain.f1["yes"]


def test_numbers_are_foretold_as_numbers() -> None:
    draw = np.random.default_rng(0)
    x = draw.uniform(0, 10, (3, 200)).round(3)
    rows = [text(y=(2 * cells + 1).round(3), x=cells, town=draw.choice(["a", "b"], 200)) for cells in x]
    table = judged(rows[0], rows[1], rows[2], "y")
    found = utility(table, table.usable, 0)
    assert set(found.mean()) == {"r2", "rmse"}
    for name, scores in found.models.items():
        score = scores["none"]
        assert isinstance(score, Regression)
        assert score.r2 is not None
        assert score.r2 > 0.98, name
    figures = found.figures(found)
    assert figures is not None
    assert figures["gap"] == {"r2": 0, "rmse": 0}


def test_a_number_of_few_values_is_a_class(table: Typed) -> None:
    rows = text(stars=[1, 2, 5] * 20, x=[1, 2, 5] * 20)
    found = utility(judged(rows, rows, rows, "stars"), judged(rows, rows, rows).train, 0, balancing=["none"])
    assert classified(found)[0].f1 == {"1": 1, "2": 1, "5": 1}


def test_classes_may_look_like_numbers() -> None:
    rows = rule(60, 0)
    rows["answer"] = rows["answer"].map({"yes": "1", "no": "0"})
    for target in (rows, rows.assign(answer=rows["answer"] + ".0"), rows.assign(answer="0" + rows["answer"] + "a")):
        table = judged(target, target, target, "answer")
        found = utility(table, table.usable, 0, balancing=["none", "class_weight"])
        assert all(score.accuracy > 0.9 for how in ("none", "class_weight") for score in classified(found, how))


def test_r2_and_rmse_by_hand() -> None:
    assert score_numbers(np.array([1.0, 2, 3, 4]), np.array([1.0, 2, 3, 2])) == Regression(r2=1 - 4 / 5, rmse=1)
    assert score_numbers(np.array([2.0, 2]), np.array([2.0, 3])).r2 is None


def test_what_cannot_be_learnt_is_told() -> None:
    rows = rule(30, 0)
    table = judged(rows, rows, rows)
    assert utility(table, table.usable, 0) == Utility({}, ("no utility: no target was named",))
    assert utility(table, table.usable, 0).figures() is None
    alone = judged(rows[["x"]], rows[["x"]], rows[["x"]], "x")
    assert utility(alone, alone.usable, 0).notes == ('no utility: "x" is the only column',)
    holes = judged(rows, rows.assign(answer=""), rows, "answer")
    assert utility(holes, holes.usable, 0).notes == ('no utility: "answer" is missing in every holdout row',)
    names = rows.assign(answer=[f"name {n}" for n in range(30)])
    many = judged(pd.concat([names, names + "!"]), rows, names, "answer")
    assert utility(many, many.usable, 0).notes == ('no utility: "answer" has 60 values, and 50 can be told apart',)


def test_rows_without_a_class_or_of_an_unheard_one_are_left_out_and_counted() -> None:
    drawn = rule(60, 2)
    drawn.loc[:2, "answer"] = "perhaps"
    train = rule(60, 0)
    train.loc[0, "answer"] = ""
    drawn.loc[5, "answer"] = ""
    found = utility(
        judged(train, rule(60, 1), drawn, "answer"), judged(train, train, drawn).usable, 0, balancing=["none"]
    )
    assert found.notes == (
        'utility leaves out 1 row in which "answer" is missing',
        'utility leaves out 3 rows in which "answer" is none of the values of the training table',
    )
    assert set(classified(found)[0].f1) == {"no", "yes"}


def test_the_seed_determines_it_and_row_order_matters_little(table: Typed) -> None:
    first = utility(table, table.usable, 0, balancing=["none"])
    assert first == utility(table, table.usable, 0, balancing=["none"])
    turned = utility(table, table.usable[::-1], 0, balancing=["none"])
    logistic = [found.models["logistic_regression"]["none"] for found in (first, turned)]
    assert isinstance(logistic[0], Classification)
    assert isinstance(logistic[1], Classification)
    assert logistic[0].auc == pytest.approx(logistic[1].auc, abs=1e-3)


def test_names_with_signs_that_lightgbm_refuses() -> None:
    rows = rule(60, 0).rename(columns={"x": 'x {"a": [1, 2]}', "town": "größe, cm"})
    table = judged(rows, rows, rows, "answer")
    assert all(
        score.accuracy > 0.9 for score in classified(utility(table, table.usable, 0, balancing=["none", "smote"]))
    )


def resampled(rows: int) -> np.ndarray:
    return np.random.default_rng(5).integers(0, rows, (600, rows))


def test_the_error_of_an_auc_is_that_of_a_bootstrap() -> None:
    draw = np.random.default_rng(0)
    truth = draw.choice(["a", "b", "c"], 240, p=[0.6, 0.3, 0.1])
    logits = draw.normal(size=(240, 3)).round(1) + 1.2 * np.eye(3)[(truth == "b") + 2 * (truth == "c")]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    classes = np.array(["a", "b", "c"])
    swayed = influences(truth, probabilities, classes)
    bootstrap = [score_classes(truth[rows], probabilities[rows], classes) for rows in resampled(240)]
    for name in ("accuracy", "auc"):
        values = [getattr(score, name) for score in bootstrap]
        assert np.std(swayed[name]) / np.sqrt(240) == pytest.approx(np.std(values), rel=0.1), name
        assert swayed[name].mean() == pytest.approx(0, abs=1e-12)


def test_the_influence_on_an_auc_is_its_derivative_by_the_weight_of_a_row() -> None:
    draw = np.random.default_rng(1)
    positive, scores = draw.random(30) < 0.4, draw.integers(0, 6, 30).astype(float)
    step = 1e-6
    for row in range(30):
        weights = np.full(30, (1 - step) / 30) + step * (np.arange(30) == row)
        moved = roc_auc_score(positive, scores, sample_weight=weights) - roc_auc_score(positive, scores)
        assert auc_influence(positive, scores)[row] == pytest.approx(moved / step, abs=1e-4)


def test_the_error_of_r2_is_that_of_a_bootstrap() -> None:
    draw = np.random.default_rng(0)
    truth = draw.normal(size=300)
    said = truth + draw.normal(size=300)
    values = [score_numbers(truth[rows], said[rows]).r2 for rows in resampled(300)]
    assert np.std(r2_influence(truth, said)) / np.sqrt(300) == pytest.approx(np.std(values), rel=0.1)


def test_the_error_of_a_gap_is_that_of_both_on_the_same_rows(table: Typed) -> None:
    real, same = (utility(table, table.train, 0, balancing=["none"]) for _ in range(2))
    assert same.gap_error(real) == {"accuracy": 0, "auc": 0}
    noisy = judged(rule(150, 0), rule(150, 1), rule(150, 3, noise=0.4), "answer").usable
    worse = utility(table, noisy, 0, balancing=["none"])
    errors = worse.gap_error(real)
    assert worse.figures(real)["gap_error"] == errors  # type: ignore[index]
    assert all(0.005 < error < 0.05 for error in errors.values())
    assert worse.gap(real)["accuracy"] > 2 * errors["accuracy"]
    assert utility(table, table.train[:0], 0).gap_error(real) == {}
