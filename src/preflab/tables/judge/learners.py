"""The classifiers and regressors that judge rows, with the settings that every figure shares.

A weaker judge flatters: scikit-learn's default booster finds less than LightGBM does in the same rows.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol

import numpy as np
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from preflab.tables.judge.extras import extra

ClassWeight = Literal["balanced"] | None

MISSING_NUMBER = -999.0
"""A missing number to the trees of scikit-learn."""
TREES = 200
SMALLEST_LEAF = 2
"""Rows in a leaf of a forest."""
DEPTH = 8
"""Of a single tree."""
ROUNDS = 200
"""Of boosting."""


class Forest(RandomForestClassifier):
    """Grows trees in threads, and adds up their votes in one: in threads the order varies, and the last digit with it,
    and with that which rows tie."""

    def predict_proba(self, X: np.ndarray) -> Any:
        """As scikit-learn's."""
        jobs: int = self.get_params(deep=False)["n_jobs"]
        self.n_jobs = 1
        try:
            return super().predict_proba(X)
        finally:
            self.n_jobs = jobs


class ForestRegressor(RandomForestRegressor):
    """The same for numbers."""

    def predict(self, X: np.ndarray) -> Any:
        """As scikit-learn's."""
        jobs: int = self.get_params(deep=False)["n_jobs"]
        self.n_jobs = 1
        try:
            return super().predict(X)
        finally:
            self.n_jobs = jobs


class Learner(Protocol):
    """What every one of them offers."""

    def fit(self, features: np.ndarray, labels: np.ndarray) -> Any: ...
    def predict(self, features: np.ndarray) -> np.ndarray: ...


def _boosting_settings(seed: int, jobs: int) -> dict[str, Any]:
    return {
        "n_estimators": ROUNDS,
        "learning_rate": 0.05,
        "num_leaves": 31,
        "min_child_samples": 20,
        "subsample": 0.8,
        "subsample_freq": 1,
        "colsample_bytree": 0.8,
        "random_state": seed,
        "n_jobs": jobs,
        # LightGBM else chooses how to build histograms by timing them, and sums in another order.
        "force_col_wise": True,
        "verbose": -1,
    }


def boosting(seed: int, *, jobs: int = 1, weight: ClassWeight = None) -> Any:
    """Gradient-boosted trees of LightGBM; takes NaN as missing."""
    return extra("lightgbm").LGBMClassifier(**_boosting_settings(seed, jobs), class_weight=weight)


def boosting_regressor(seed: int, *, jobs: int = 1) -> Any:
    return extra("lightgbm").LGBMRegressor(**_boosting_settings(seed, jobs))


def forest(seed: int, *, jobs: int = 1, weight: ClassWeight = None) -> RandomForestClassifier:
    return Forest(TREES, min_samples_leaf=SMALLEST_LEAF, class_weight=weight, random_state=seed, n_jobs=jobs)


def forest_regressor(seed: int, *, jobs: int = 1) -> RandomForestRegressor:
    return ForestRegressor(TREES, min_samples_leaf=SMALLEST_LEAF, random_state=seed, n_jobs=jobs)


def tree(seed: int, *, weight: ClassWeight = None) -> DecisionTreeClassifier:
    return DecisionTreeClassifier(max_depth=DEPTH, class_weight=weight, random_state=seed)


def tree_regressor(seed: int) -> DecisionTreeRegressor:
    return DecisionTreeRegressor(max_depth=DEPTH, random_state=seed)


def logistic(*, weight: ClassWeight = None) -> Any:
    """Logistic regression on standardised features."""
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight=weight))


def linear_regressor() -> Any:
    """Ridge regression on standardised features."""
    return make_pipeline(StandardScaler(), Ridge())


def filled(codes: np.ndarray) -> np.ndarray:
    """Codes for the trees of scikit-learn."""
    return np.nan_to_num(codes, nan=MISSING_NUMBER)


def small_seed(seed: int) -> int:
    """A seed in the range that scikit-learn and LightGBM take."""
    return seed % 2**31
