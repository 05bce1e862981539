"""Are synthetic rows of use: what does a model learn from them about real ones?

Train on synthetic, test on real (Esteban, Hyland and Rätsch 2017, arXiv:1706.02633): each model learns the target from
the synthetic rows and is tested on the holdout, next to the same model trained on the real training rows.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, assert_never, get_args

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.metrics import accuracy_score, cohen_kappa_score, f1_score, r2_score, recall_score, roc_auc_score

from preflab.progress import stage
from preflab.seeds import derive
from preflab.tables.judge import learners
from preflab.tables.judge.extras import extra
from preflab.tables.judge.typed import Typed

Model = Literal["random_forest", "decision_tree", "logistic_regression", "gradient_boosting"]
RegressionModel = Literal["random_forest", "decision_tree", "linear_regression", "gradient_boosting"]
Balancing = Literal["none", "class_weight", "smote", "over", "under", "smoteenn"]
MODELS: tuple[Model, ...] = get_args(Model)
BALANCING: tuple[Balancing, ...] = get_args(Balancing)

MOST_CLASSES = 20
"""A target of numbers with more values in the holdout is predicted as a number."""
MOST_LEVELS = 50
"""Of a target; boosting grows as many trees a round."""
NEIGHBOURS = 5
"""Of SMOTE: each class needs more rows than that."""


@dataclass(frozen=True)
class Classification:
    """How well the classes of the holdout were told; shares in [0, 1]."""

    accuracy: float
    balanced_accuracy: float
    """Mean over the holdout's classes of the share of its rows that were found."""
    macro_f1: float
    auc: float | None
    """Mean over classes of one against the rest; a class that no training row has is never expected. None: the
    holdout has one class."""
    kappa: float | None
    """Cohen's κ, in [−1, 1]; None where it is 0/0."""
    f1: Mapping[str, float] = field(default_factory=dict)
    """By class of the holdout."""


@dataclass(frozen=True)
class Regression:
    """How well the numbers of the holdout were told."""

    r2: float | None
    """1 − mean squared error / variance, at most 1; None where the holdout's target is constant."""
    rmse: float
    """Root mean squared error, in the target's unit."""


Models = dict[str, dict[str, Classification | Regression | None]]


@dataclass(frozen=True)
class Utility:
    """By model and balancing (regression knows `none` alone); None: could not be computed, and `notes` say why."""

    models: Mapping[str, Mapping[str, Classification | Regression | None]]
    notes: tuple[str, ...] = ()
    influence: Mapping[str, Float[np.ndarray, " holdout"]] = field(default_factory=dict, compare=False)
    """Of each holdout row on the mean accuracy, AUC or r²: the mean moves by a row's part of the mean of these where it
    is drawn more or less often. None where a model has no such figure."""

    def mean(self) -> dict[str, float | None]:
        """Mean over models, without balancing, of accuracy, AUC and macro F1, or of r² and RMSE."""
        plain = [found["none"] for found in self.models.values() if found.get("none") is not None]
        if not plain:
            return {}
        names = ("r2", "rmse") if isinstance(plain[0], Regression) else ("accuracy", "auc", "macro_f1")
        return {name: _mean([getattr(found, name) for found in plain]) for name in names}

    def gap(self, real: Utility) -> dict[str, float | None]:
        """The mean of training on real rows minus this: what is lost, where more is better."""
        own, theirs = self.mean(), real.mean()
        return {name: None if (a := theirs.get(name)) is None or (b := own[name]) is None else a - b for name in own}

    def gap_error(self, real: Utility) -> dict[str, float]:
        """The standard error of the gap over draws of the holdout; both are tested on the same rows, so that what is
        hard for both cancels out. Another draw of rows to train on, or another seed of a model, adds to it."""
        return {
            name: float(np.std(real.influence[name] - own, ddof=1) / np.sqrt(len(own)))
            for name, own in self.influence.items()
            if name in real.influence and len(own) > 1
        }

    def figures(self, real: Utility | None = None) -> dict[str, Any] | None:
        """Models, means and, next to training on real rows, the gap and its error; None where there is nothing."""
        if not self.models:
            return None
        out: dict[str, Any] = {
            "models": {
                model: {how: None if scores is None else asdict(scores) for how, scores in found.items()}
                for model, found in self.models.items()
            },
            "mean": self.mean(),
        }
        return out if real is None else {**out, "gap": self.gap(real), "gap_error": self.gap_error(real)}


def utility(
    table: Typed,
    rows: pd.DataFrame,
    seed: int,
    *,
    balancing: Sequence[Balancing] = BALANCING,
    jobs: int = 1,
    title: str = "utility",
) -> Utility:
    """What each model learns from `rows` about the holdout.

    Args:
        table: whose target is to be learnt; its synthetic rows are not looked at.
        rows: typed rows to train on: synthetic ones, or the real training rows.
        seed: determines models and balancing.
        balancing: how the classes of the training side are brought to equal weight or number, one after the other; the
            holdout is left as it is.
        jobs: processes that grow trees.
        title: what progress calls this.
    """
    target = table.target
    if target is None:
        return Utility({}, ("no utility: no target was named",))
    if not table.features:
        return Utility({}, (f'no utility: "{target}" is the only column',))
    test = table.holdout[table.holdout[target].notna()]
    train = rows[rows[target].notna()]
    if not len(test) or not len(train):
        where = "holdout" if not len(test) else "training"
        return Utility({}, (f'no utility: "{target}" is missing in every {where} row',))
    notes = []
    if left := len(rows) - len(train) + len(table.holdout) - len(test):
        notes.append(f'utility leaves out {left} {"row" if left == 1 else "rows"} in which "{target}" is missing')
    if table.kinds[target] != "category" and table.holdout[target].nunique() > MOST_CLASSES:
        found, influence = _regressions(table, train, test, target, seed, jobs, title)
        return Utility(found, tuple(notes), influence)
    known = set(table.train[target].dropna())
    if len(known) > MOST_LEVELS:
        return Utility({}, (f'no utility: "{target}" has {len(known):,} values, and {MOST_LEVELS} can be told apart',))
    if strange := int((~train[target].isin(known)).sum()):
        train = train[train[target].isin(known)]
        notes.append(
            f'utility leaves out {strange} {"row" if strange == 1 else "rows"} in which "{target}" is none of the '
            "values of the training table"
        )
        if not len(train):
            return Utility({}, tuple(notes))
    labels, truth = _labels(train[target]), _labels(test[target])
    models, more, influence = _classifications(table, train, test, labels, truth, seed, balancing, jobs, title)
    return Utility(models, (*notes, *more), influence)


def _labels(target: pd.Series) -> np.ndarray:
    """Classes as text: 2.0 is "2"."""
    if target.dtype == float:
        return np.array([f"{value:.15g}" for value in target], dtype=object)
    return target.to_numpy(object)


def _classifications(
    table: Typed,
    train: pd.DataFrame,
    test: pd.DataFrame,
    labels: np.ndarray,
    truth: np.ndarray,
    seed: int,
    balancing: Sequence[Balancing],
    jobs: int,
    title: str,
) -> tuple[Models, list[str], dict[str, np.ndarray]]:
    columns = table.features
    names = {name: position for position, name in enumerate(MODELS)}
    found: Models = {name: {} for name in names}
    classes = np.unique(labels)
    if len(classes) == 1:
        # Nothing can be learnt: everyone answers with the only class there is.
        alike = np.ones((len(truth), 1))
        only = score_classes(truth, alike, classes)
        note = f'utility: each row to learn from has the "{table.target}" {classes[0]}, so all models say just that'
        return {name: dict.fromkeys(balancing, only) for name in names}, [note], influences(truth, alike, classes)
    notes: list[str] = []
    swayed: list[dict[str, np.ndarray]] = []
    test_trees = table.codes(test, columns)
    test_linear = table.one_hot(test, columns)
    with stage(title, len(balancing) * len(names)) as advance:
        for turn, how in enumerate(balancing):
            try:
                frame, answers = balanced(table, train, labels, how, seed)
            except CannotBalance as error:
                notes.append(f"no utility with {how}: {error}")
                for name in names:
                    found[name][how] = None
                continue
            trees, linear = table.codes(frame, columns), table.one_hot(frame, columns)
            for name, place in names.items():
                weight: learners.ClassWeight = "balanced" if how == "class_weight" else None
                # One seed a model, whatever the balancing and whatever the rows: differences are then theirs.
                model_seed = learners.small_seed(derive(seed, "utility", name))
                probabilities, order = _learn(
                    name, trees, linear, test_trees, test_linear, answers, model_seed, jobs, weight
                )
                found[name][how] = score_classes(truth, probabilities, order)
                if how == "none":
                    swayed.append(influences(truth, probabilities, order))
                advance(turn * len(names) + place + 1, f"{how}, {name}")
    return found, notes, _mean_influence(swayed)


def _mean_influence(models: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Of the mean over models, where each has one."""
    known = [name for name in models[0] if all(name in one for one in models)] if models else []
    return {name: np.mean([one[name] for one in models], axis=0) for name in known}


def _learn(
    model: Model,
    trees: np.ndarray,
    linear: np.ndarray,
    test_trees: np.ndarray,
    test_linear: np.ndarray,
    labels: np.ndarray,
    seed: int,
    jobs: int,
    weight: learners.ClassWeight,
) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities on the test side, and the classes that they are of."""
    train, test = learners.filled(trees), learners.filled(test_trees)
    match model:
        case "random_forest":
            learner: Any = learners.forest(seed, jobs=jobs, weight=weight)
        case "decision_tree":
            learner = learners.tree(seed, weight=weight)
        case "gradient_boosting":
            learner = learners.boosting(seed, jobs=jobs, weight=weight)
        case "logistic_regression":
            learner, train, test = learners.logistic(weight=weight), linear, test_linear
        case _:
            assert_never(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Classes as whole numbers: scikit-learn takes "1" for a number here and for text there.
        classes, places = np.unique(labels, return_inverse=True)
        return learner.fit(train, places).predict_proba(test), classes[learner.classes_]


def score_classes(truth: np.ndarray, probabilities: np.ndarray, classes: np.ndarray) -> Classification:
    """What probabilities of `classes` (a column each) are worth on rows whose class is `truth`; the likeliest class is
    the prediction.

    >>> scores = score_classes(np.array(["a", "a", "b", "b"]), np.eye(2)[[0, 0, 0, 1]], np.array(["a", "b"]))
    >>> scores.accuracy, scores.auc, scores.kappa, scores.f1
    (0.75, 0.75, 0.5, {'a': 0.8, 'b': 0.6666666666666666})
    """
    said = classes[probabilities.argmax(axis=1)]
    there = sorted(set(truth))
    everything = sorted({*truth, *said})
    expected = _expected(there, probabilities, classes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        each = f1_score(truth, said, labels=there, average=None, zero_division=0)
        kappa = float(cohen_kappa_score(truth, said)) if len(everything) > 1 else None
    return Classification(
        accuracy=float(accuracy_score(truth, said)),
        balanced_accuracy=float(recall_score(truth, said, labels=there, average="macro", zero_division=0)),
        macro_f1=float(f1_score(truth, said, labels=everything, average="macro", zero_division=0)),
        auc=float(np.mean([roc_auc_score(truth == name, column) for name, column in zip(there, expected, strict=True)]))
        if len(there) > 1
        else None,
        kappa=kappa,
        f1={str(name): float(value) for name, value in zip(there, each, strict=True)},
    )


def _expected(names: Sequence[str], probabilities: np.ndarray, classes: np.ndarray) -> list[np.ndarray]:
    """The probabilities of these classes; 0 of one that is none of `classes`."""
    place = {name: column for column, name in enumerate(classes)}
    return [probabilities[:, place[name]] if name in place else np.zeros(len(probabilities)) for name in names]


def influences(truth: np.ndarray, probabilities: np.ndarray, classes: np.ndarray) -> dict[str, np.ndarray]:
    """How each row sways the accuracy and AUC of `score_classes`: the standard deviation of these over √rows is the
    figure's standard error.

    >>> swayed = influences(np.array(["a", "a", "b", "b"]), np.eye(2)[[0, 0, 0, 1]], np.array(["a", "b"]))
    >>> swayed["accuracy"].tolist(), swayed["auc"].tolist()
    ([0.25, 0.25, -0.75, 0.25], [0.0, 0.0, -0.5, 0.5])
    """
    right = classes[probabilities.argmax(axis=1)] == truth
    found = {"accuracy": right - right.mean()}
    there = sorted(set(truth))
    if len(there) > 1:
        each = zip(there, _expected(there, probabilities, classes), strict=True)
        found["auc"] = np.mean([auc_influence(truth == name, column) for name, column in each], axis=0)
    return found


def auc_influence(positive: Bool[np.ndarray, " row"], scores: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """How each row sways an AUC (DeLong, DeLong and Clarke-Pearson 1988, Biometrics 44): the share of the other class
    that it stands on the right side of, ties half, minus the AUC, over its own class's share.

    Args:
        positive: whose scores should be high; some are, and some are not.
        scores: any numbers.
    """
    found = np.empty(len(scores))
    for own, sign in ((positive, 1.0), (~positive, -1.0)):
        others = np.sort(sign * scores[~own])
        sides = [np.searchsorted(others, sign * scores[own], side=side) for side in ("left", "right")]
        beaten = np.mean(sides, axis=0) / len(others)
        found[own] = (beaten - beaten.mean()) / own.mean()
    return found


class CannotBalance(Exception):
    """Why the classes can't be balanced this way."""


def balanced(
    table: Typed, rows: pd.DataFrame, labels: np.ndarray, how: Balancing, seed: int
) -> tuple[pd.DataFrame, np.ndarray]:
    """Rows to train on and their classes, balanced by imbalanced-learn (Lemaître, Nogueira and Aridas 2017).

    `none` and `class_weight` leave the rows alone. SMOTE (Chawla et al. 2002) makes rows between neighbours of a class:
    SMOTENC where there are categories beside numbers, SMOTEN where there is nothing else. It can't read missing
    numbers: neighbours are found, and rows made, as if each were the column's median; real rows keep their holes.

    Raises:
        CannotBalance: a class has too few rows.
    """
    if how in ("none", "class_weight"):
        return rows, labels
    draw = learners.small_seed(derive(seed, "utility", "balancing", how))
    columns = table.features
    codes = table.codes(rows, columns)
    if how in ("over", "under"):
        sampler = (
            extra("imblearn.over_sampling").RandomOverSampler(random_state=draw)
            if how == "over"
            else extra("imblearn.under_sampling").RandomUnderSampler(random_state=draw)
        )
        places = np.arange(len(rows)).reshape(-1, 1)
        chosen, answers = sampler.fit_resample(places, labels)
        return rows.iloc[chosen[:, 0]], np.asarray(answers, dtype=object)
    names, counts = np.unique(labels, return_counts=True)
    if counts.min() <= NEIGHBOURS:
        rarest = names[counts.argmin()]
        raise CannotBalance(
            f'{counts.min()} {"row has" if counts.min() == 1 else "rows have"} the "{table.target}" {rarest}, '
            f"and SMOTE needs {NEIGHBOURS + 1}"
        )
    whole = _without_holes(codes)
    over = extra("imblearn.over_sampling")
    categorical = [place for place, name in enumerate(columns) if name in table.levels]
    if not categorical:
        smote = over.SMOTE(k_neighbors=NEIGHBOURS, random_state=draw)
    elif len(categorical) == len(columns):
        smote = over.SMOTEN(k_neighbors=NEIGHBOURS, random_state=draw)
    else:
        smote = over.SMOTENC(categorical_features=categorical, k_neighbors=NEIGHBOURS, random_state=draw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made, answers = smote.fit_resample(whole, labels)
        kept = np.arange(len(made))
        if how == "smoteenn":
            # Rows whose neighbours are all of their own class stay (Batista, Prati and Monard 2004).
            cleaner = extra("imblearn.under_sampling").EditedNearestNeighbours(sampling_strategy="all")
            cleaner.fit_resample(made, answers)
            kept = cleaner.sample_indices_
    answers = np.asarray(answers, dtype=object)[kept]
    if len(set(answers)) < 2:
        raise CannotBalance("cleaning left fewer than two classes")
    # The rows that were there come first.
    made = np.vstack([codes, made[len(codes) :]])[kept]
    return _decoded(table, columns, made), answers


def _without_holes(codes: np.ndarray) -> np.ndarray:
    """Missing numbers as the median of their column, 0 where all are missing."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        medians = np.nan_to_num(np.nanmedian(codes, axis=0))
    return np.where(np.isnan(codes), medians, codes)


def _decoded(table: Typed, columns: Sequence[str], codes: np.ndarray) -> pd.DataFrame:
    """The inverse of `Typed.codes`."""
    cells: dict[str, np.ndarray] = {}
    for place, name in enumerate(columns):
        if name in table.levels:
            # −1, missing, is the last.
            levels = np.array([*table.levels[name], np.nan], dtype=object)
            cells[name] = levels[codes[:, place].astype(int)]
        else:
            cells[name] = codes[:, place]
    return pd.DataFrame(cells)


def _regressions(
    table: Typed, train: pd.DataFrame, test: pd.DataFrame, target: str, seed: int, jobs: int, title: str
) -> tuple[Models, dict[str, np.ndarray]]:
    columns = table.features
    trees, linear = learners.filled(table.codes(train, columns)), table.one_hot(train, columns)
    test_trees, test_linear = learners.filled(table.codes(test, columns)), table.one_hot(test, columns)
    answers, truth = train[target].to_numpy(float), test[target].to_numpy(float)
    found: Models = {}
    swayed: list[dict[str, np.ndarray]] = []
    names: tuple[RegressionModel, ...] = get_args(RegressionModel)
    with stage(title, len(names)) as advance:
        for done, name in enumerate(names, start=1):
            model_seed = learners.small_seed(derive(seed, "utility", name))
            seen, asked = trees, test_trees
            match name:
                case "random_forest":
                    learner: Any = learners.forest_regressor(model_seed, jobs=jobs)
                case "decision_tree":
                    learner = learners.tree_regressor(model_seed)
                case "gradient_boosting":
                    learner = learners.boosting_regressor(model_seed, jobs=jobs)
                case "linear_regression":
                    learner, seen, asked = learners.linear_regressor(), linear, test_linear
                case _:
                    assert_never(name)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                said = np.asarray(learner.fit(seen, answers).predict(asked), float)
            found[name] = {"none": score_numbers(truth, said)}
            swayed.append({} if np.ptp(truth) == 0 else {"r2": r2_influence(truth, said)})
            advance(done, name)
    return found, _mean_influence(swayed)


def r2_influence(truth: Float[np.ndarray, " row"], said: Float[np.ndarray, " row"]) -> Float[np.ndarray, " row"]:
    """How each row sways r² = 1 − E / V, where E and V are the means of eᵢ², the squared error, and of dᵢ², the squared
    deviation: −(eᵢ² − E) / V + E (dᵢ² − V) / V²."""
    errors, deviations = (truth - said) ** 2, (truth - truth.mean()) ** 2
    error, variance = errors.mean(), deviations.mean()
    return -(errors - error) / variance + error * (deviations - variance) / variance**2


def score_numbers(truth: np.ndarray, said: np.ndarray) -> Regression:
    """What predictions of numbers are worth.

    >>> score_numbers(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
    Regression(r2=0.0, rmse=0.816496580927726)
    """
    constant = bool(np.ptp(truth) == 0)
    return Regression(
        r2=None if constant else float(r2_score(truth, said)), rmse=float(np.sqrt(np.mean((truth - said) ** 2)))
    )


def _mean(values: Sequence[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return float(np.mean(there)) if len(there) == len(values) else None
