"""Detectability: what must be told apart, what can't be, and AUCs and curves against scikit-learn's."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

from judged import judged, rule, text
from preflab.seeds import derive
from preflab.tables.judge.detectability import Detectability, detectability

NAMES = ("gradient_boosting", "random_forest", "logistic")


def aucs(found: Detectability) -> list[float]:
    return [detector.auc for detector in found.detectors.values() if detector is not None]


def test_what_lies_elsewhere_is_told_apart() -> None:
    real, drawn = rule(60, 0), rule(60, 1)
    drawn["x"] = (drawn["x"].astype(int) + 200).astype(str)
    found = detectability(judged(real, real, drawn), 0, redraws=1)
    assert aucs(found) == pytest.approx([1, 1, 1], abs=0.01)
    assert found.rows == 60


@pytest.mark.parametrize("seed", [0, 1])
def test_other_rows_from_the_same_source_are_not_told_apart(seed: int) -> None:
    found = detectability(judged(rule(50, 0), rule(300, 10 + seed), rule(300, 20 + seed)), seed, redraws=1)
    # A standard deviation is 0.024 with 300 of each, without the dependence within folds.
    assert aucs(found) == pytest.approx([0.5] * 3, abs=0.1)


def test_a_pair_that_goes_together_wrongly_is_seen_by_trees_and_not_by_a_line() -> None:
    real, drawn = rule(200, 0), rule(200, 1)
    drawn["answer"] = drawn["answer"].map({"yes": "no", "no": "yes"})
    boosting, forest, line = aucs(detectability(judged(real, real, drawn), 0, redraws=1))
    assert min(boosting, forest) > 0.97
    assert line < 0.65


def test_logistic_regression_agrees_with_a_loop_over_the_same_folds() -> None:
    train, holdout, drawn = rule(80, 0), rule(70, 1), rule(90, 2)
    drawn["x"] = (drawn["x"].astype(int) + 12).astype(str)
    table = judged(train, holdout, drawn)
    [found] = detectability(table, 7, classifiers=["logistic"], redraws=2).detectors.values()
    expected = []
    for redraw in range(2):
        draw = np.random.default_rng(derive(7, "detectability", redraw, "rows"))
        real = table.one_hot(table.holdout)[draw.permutation(70)[:70]]
        features = np.vstack([real, table.one_hot(table.synthetic)[draw.permutation(90)[:70]]])
        labels, scores = np.repeat([0, 1], 70), np.zeros(140)
        folds = StratifiedKFold(
            5, shuffle=True, random_state=derive(7, "detectability", redraw, "folds") % 2**31
        ).split(features, labels)
        for seen, asked in folds:
            scale = StandardScaler().fit(features[seen])
            model = LogisticRegression(max_iter=1000).fit(scale.transform(features[seen]), labels[seen])
            scores[asked] = model.predict_proba(scale.transform(features[asked]))[:, 1]
        expected.append(roc_auc_score(labels, scores))
    assert found is not None
    assert found.auc == pytest.approx(np.mean(expected), abs=1e-9)
    assert found.spread == pytest.approx(np.std(expected, ddof=1), abs=1e-9)


def test_the_area_under_each_curve_is_its_auc() -> None:
    found = detectability(
        judged(rule(50, 0), rule(150, 1), rule(150, 2, noise=0.3)), 0, classifiers=["gradient_boosting", "logistic"]
    )
    for name, curve in found.roc().items():
        fpr, tpr = curve["fpr"], curve["tpr"]
        assert len(fpr) == len(tpr) <= 200
        assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
        assert np.all(np.diff(tpr) >= 0)
        assert np.trapezoid(tpr, fpr) == pytest.approx(found.figures()[f"{name}_auc"], abs=0.01)


def test_the_seed_and_nothing_else_determines_it() -> None:
    np.random.seed(0)
    table = judged(rule(30, 0), rule(30, 1), rule(30, 2, noise=0.2))
    before = np.random.get_state()[1:3]
    first = detectability(table, 3, redraws=1)
    after = np.random.get_state()[1:3]
    assert np.array_equal(before[0], after[0])
    assert before[1] == after[1]
    assert first == detectability(table, 3, redraws=1)
    assert first != detectability(table, 4, redraws=1)
    assert all(detector is not None and detector.spread is None for detector in first.detectors.values())


def test_odd_tables_are_judged() -> None:
    name = 'größe, "cm" {[:]}'
    odd = {name: ["1", "", "3", "4"] * 5, "empty": [""] * 20, "same": ["a"] * 20, "": ["", "b"] * 10}
    real = text(**odd)
    assert len(aucs(detectability(judged(real, real, real), 0, redraws=1))) == 3
    one = text(x=["a"] * 10)
    assert aucs(detectability(judged(one, one, one), 0, redraws=1)) == [0.5, 0.5, 0.5]


def test_few_rows_make_few_folds_and_one_row_a_sentence() -> None:
    two = text(x=["1", "2"])
    assert len(aucs(detectability(judged(two, two, two), 0, redraws=1))) == 3
    found = detectability(judged(two, text(x=["1"]), two), 0, redraws=1)
    assert found.figures() == {"rows": 1} | dict.fromkeys(
        f"{name}_{of}" for name in NAMES for of in ("auc", "auc_spread")
    )
    assert found.notes == ("no detectability: it takes two rows of the holdout and two synthetic",)
    assert found.roc() == {}


def test_rows_that_did_not_parse_are_left_out() -> None:
    real, drawn = rule(40, 0), rule(40, 1)
    tables = judged(real, real, pd.concat([drawn, drawn.assign(x="nothing")])), judged(real, real, drawn)
    first, second = (detectability(table, 0, classifiers=["logistic"]) for table in tables)
    assert first == second
    assert first.rows == 40
