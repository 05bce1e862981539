"""All figures of a synthetic table and of its two bounds: score.json."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

from preflab.errors import DataError
from preflab.progress import stage
from preflab.seeds import derive
from preflab.tables.judge import diversity, points, privacy, validity
from preflab.tables.judge.bounds import independent_marginals, second_sample
from preflab.tables.judge.detectability import detectability
from preflab.tables.judge.fidelity import equally_many, fidelity
from preflab.tables.judge.learners import filled
from preflab.tables.judge.pictures import associations, marginals, sampled_rows
from preflab.tables.judge.typed import Typed
from preflab.tables.judge.utility import BALANCING, MOST_CLASSES, Balancing, Utility, utility

EVIDENCE = (
    "Copies, distances and membership tests are evidence, and no guarantee: rows that pass them may still tell "
    "something about a person. Only a generator with a proof, such as differential privacy, guarantees that they don't."
)
FEWEST_SYNTHETIC = 100
FEWEST_REAL = 10
"""Rows that figures other than those of validity need."""
WORST_RULES = 10
LEAKED = 1e-6
"""A holdout that shares so many rows with the training table that a random split would with less than this
probability is refused."""
COPIED = 0.01
"""A greater share of copies than this, and than twice that of a second real sample, is said loudly."""
TOLD = 0.999
"""A feature that foretells this share of the holdout's target alone, or of its variance, leaks it."""

NO_PRIVACY = (
    "distance_share",
    "distance_p5",
    "distance_p5_holdout",
    "distance_median",
    "distance_median_holdout",
    "membership_auc",
    "membership_tpr_at_1pct_fpr",
)


@dataclass
class Judged:
    """What was found about one table."""

    figures: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    roc: dict[str, Any] = field(default_factory=dict)
    distances: dict[str, Any] | None = None
    rules: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Score:
    """The content of score.json but for the files, and what deserves more attention than a note."""

    content: dict[str, Any]
    warnings: tuple[str, ...]


def score(
    table: Typed,
    text: pd.DataFrame,
    *,
    seed: int,
    redraws: int,
    jobs: int,
    special: Mapping[str, Sequence[float]] | None = None,
) -> Score:
    """Judge the synthetic rows, half of the training rows as if they were synthetic, and independent marginals.

    The bounds are measured by the same code, on as many redraws; only balancing is left out of their utility, which
    changes no figure that is there.

    Args:
        table: the three tables.
        text: the synthetic rows as they are written, to show some.
        seed: determines every draw.
        redraws: of the detectability test, ≥ 1.
        jobs: processor cores.
        special: numbers that lie on no scale, by column, for the pictures; none: those that validity's rules are mined
            from.

    Raises:
        DataError: holdout rows were trained on.
    """
    repeated = check_holdout(table)
    with stage("leaks of the target", 1):
        leaks = leaking(table)
    half = second_sample(table.train, np.random.default_rng(derive(seed, "second sample")))
    drawn = independent_marginals(table.train, np.random.default_rng(derive(seed, "marginals")))
    subjects = {
        "synthetic": ("synthetic rows", table, BALANCING),
        "real": ("a second real sample", replace(table, train=half.train).judging(half.synthetic), ("none",)),
        "marginals": ("independent marginals", table.judging(drawn.synthetic), ("none",)),
    }
    learnt = utility(table, table.train, derive(seed, "utility"), jobs=jobs, title="utility of real rows")
    found: dict[str, Judged] = {}
    for name, (title, subject, balancing) in subjects.items():
        real = learnt
        if name == "real" and obstacle(subject) is None:
            # Half as many rows teach less: the gap of this half is to the other half.
            of_half = f"utility of the other half of {title}"
            real = utility(
                subject, subject.train, derive(seed, "utility"), balancing=balancing, jobs=jobs, title=of_half
            )
        found[name] = judge(subject, real, seed=seed, redraws=redraws, jobs=jobs, balancing=balancing, title=title)
    own = found["synthetic"]
    warnings = [*leaks, *copied(table, own, found["real"])]
    ruleless = "" if own.figures["validity"]["rules"] else "no rule was mined from the training rows for rows to break"
    notes = [*warnings, repeated, ruleless, *learnt.notes, *own.notes]
    for name in ("real", "marginals"):
        notes += [f"{subjects[name][0]}: {note}" for note in found[name].notes if note not in notes]
    codes = validity.special_codes(table.train, validity.plain_numbers(table)) if special is None else special
    content = {
        "target": table.target,
        "seed": seed,
        "redraws": redraws,
        "columns": [{"name": name, "kind": kind} for name, kind in table.kinds.items()],
        "evidence": EVIDENCE,
        "notes": list(dict.fromkeys(note for note in notes if note)),
        "subjects": [
            {"name": name, "title": title, "figures": found[name].figures} for name, (title, _, _) in subjects.items()
        ],
        "utility_of_real": learnt.figures(),
        "pictures": {
            "marginals": [marginal.picture() for marginal in marginals(table, codes)],
            "associations": associations(table, np.random.default_rng(derive(seed, "associations"))),
            "roc": own.roc,
            "distances": own.distances,
            "rules": own.rules,
            "rows": sampled_rows(text, np.random.default_rng(derive(seed, "rows"))),
        },
    }
    return Score(content, tuple(warnings))


def check_holdout(table: Typed) -> str:
    """A sentence on the rows that are set aside, or "".

    Raises:
        DataError: the holdout shares more rows with the training table than a random split leaves.
    """
    train, holdout = (points.identity(table, rows) for rows in (table.train, table.holdout))
    if np.array_equal(np.sort(train), np.sort(holdout)):
        raise DataError(
            "the holdout is the training table: judge against rows that the generator never saw, such as those that "
            "`preflab table fit` puts into holdout.csv"
        )
    both = privacy.overlap(train, holdout)
    if both.chance < LEAKED:
        raise DataError(
            f"{both.shared} rows of the holdout are rows of the training table, and a random split would share about "
            f"{both.expected:.0f}: the generator has seen them; take the holdout from the table before fitting, each "
            "row on one side only"
        )
    common = diversity.common(train, holdout)
    aside = int(np.isin(train, common).sum() + np.isin(holdout, common).sum())
    if not aside:
        return ""
    return (
        f"{aside} of {len(train) + len(holdout)} real rows stand more than once among the real ones ({len(common)} "
        "different rows); they, and synthetic rows equal to them, are set aside in every copy, duplicate and distance "
        "figure."
    )


def leaking(table: Typed) -> list[str]:
    """A sentence for each feature from which a decision tree tells the target of nearly all holdout rows."""
    target = table.target
    if target is None or obstacle(table.judging(table.train)) is not None:
        return []
    train, test = (rows[rows[target].notna()] for rows in (table.train, table.holdout))
    numeric = target in table.numbers and test[target].nunique() > MOST_CLASSES
    if test[target].nunique() < 2:
        return []
    found = []
    for name in table.features:
        cells, asked = (filled(table.codes(rows, (name,))) for rows in (train, test))
        tree = DecisionTreeRegressor(random_state=0) if numeric else DecisionTreeClassifier(random_state=0)
        answers, truth = (
            rows[target].to_numpy(float) if numeric else rows[target].astype(str).to_numpy() for rows in (train, test)
        )
        if tree.fit(cells, answers).score(asked, truth) >= TOLD:
            found.append(
                f'"{name}" alone tells "{target}": every model will do well with it, on whatever rows it learnt; leave '
                "the column out if it is a copy of the target"
            )
    return found


def copied(table: Typed, own: Judged, real: Judged) -> list[str]:
    """A sentence where more rows are copies than among real rows."""
    share = own.figures["privacy"]["copy_share"]
    usual = real.figures["privacy"]["copy_share"] or 0.0
    found = []
    if share is not None and share > max(COPIED, 2 * usual):
        found.append(
            f"{own.figures['privacy']['copies']} synthetic rows ({share:.1%} of those that are not common) are "
            f"training rows, cell by cell; between two real samples it is {usual:.1%}: the generator has memorised"
        )
    rows = table.usable
    train, holdout, synthetic = (points.identity(table, some) for some in (table.train, table.holdout, rows))
    seen = np.setdiff1d(holdout, diversity.common(train, holdout))
    again = privacy.copies(synthetic, seen)
    if len(rows) and again / len(rows) > COPIED:
        found.append(
            f"{again} synthetic rows are holdout rows, cell by cell: the generator, or who chose its rows, has seen "
            "the holdout, and no figure here counts"
        )
    return found


def obstacle(table: Typed) -> str | None:
    """Why only validity can be measured, or None."""
    if (rows := int(table.parsed.sum())) < FEWEST_SYNTHETIC:
        return f"validity is all that was measured: the other figures need {FEWEST_SYNTHETIC} readable rows, not {rows}"
    for name, real in (("training", table.train), ("holdout", table.holdout)):
        if len(real) < FEWEST_REAL:
            return (
                f"validity is all that was measured: the other figures need {FEWEST_REAL} {name} rows, not {len(real)}"
            )
    return None


def judge(
    table: Typed,
    real: Utility,
    *,
    seed: int,
    redraws: int,
    jobs: int,
    balancing: Sequence[Balancing],
    title: str,
) -> Judged:
    """Every figure of one table's synthetic rows; null where it can't be measured, with a note.

    Args:
        table: whose synthetic rows to judge.
        real: what is learnt from its training rows.
        seed: determines every draw; the same draws for every table.
        redraws, jobs: as in `score`.
        balancing: of utility.
        title: what progress calls the rows.
    """
    judged = Judged()
    reason = obstacle(table)
    if reason is None:
        with stage(f"{title}: fidelity", 1):
            close = fidelity(table, np.random.default_rng(derive(seed, "fidelity")))
        told = detectability(
            table, derive(seed, "detectability"), redraws=redraws, jobs=jobs, title=f"{title}: detectability"
        )
        rows = equally_many(table, np.random.default_rng(derive(seed, "utility rows")))
        useful = utility(
            table, rows, derive(seed, "utility"), balancing=balancing, jobs=jobs, title=f"{title}: utility"
        )
        judged.figures["fidelity"] = close.figures()
        judged.figures["detectability"] = told.figures()
        judged.figures["utility"] = useful.figures(real)
        judged.notes += [*close.notes, *told.notes, *useful.notes]
        judged.roc = told.roc()
    else:
        judged.figures |= dict.fromkeys(("fidelity", "detectability", "utility"))
        judged.notes.append(reason)
    with stage(f"{title}: diversity, privacy, validity", 3) as advance:
        judged.figures["diversity"] = _diversity(table, seed, reason)
        advance(1, "privacy")
        judged.figures["privacy"], judged.distances, notes = _privacy(table, seed, reason)
        judged.notes += notes
        advance(2, "validity")
        judged.figures["validity"], judged.rules = _validity(table)
        advance(3, "")
    return judged


def flat(figures: Mapping[str, Any]) -> dict[str, float]:
    """Numbers among the figures, by dotted names; of utility the means and gaps alone.

    >>> flat({"utility": {"models": {}, "gap": {"auc": 0.1}}, "privacy": {"copies": 2, "distance_share": None}})
    {'utility.gap.auc': 0.1, 'privacy.copies': 2.0}
    """
    found: dict[str, Any] = {}
    for chapter, values in figures.items():
        for name, value in (values or {}).items():
            if chapter != "utility":
                found[f"{chapter}.{name}"] = value
            elif name in ("mean", "gap"):
                found |= {f"utility.{name}.{figure}": one for figure, one in (value or {}).items()}
    return {name: float(value) for name, value in found.items() if isinstance(value, int | float)}


def _diversity(table: Typed, seed: int, reason: str | None) -> dict[str, float | None]:
    names = ("precision", "recall", "density", "coverage")
    near: dict[str, float | None] = dict.fromkeys(names)
    rows = table.usable
    if reason is None:
        each = min(len(table.holdout), len(rows), diversity.MOST_ROWS)
        found = []
        for draw in range(diversity.DRAWS):
            rng = np.random.default_rng(derive(seed, "neighbours", draw))
            real, drawn = (
                points.standardised(table, some.iloc[rng.permutation(len(some))[:each]], rng)
                for some in (table.holdout, rows)
            )
            found.append(diversity.neighbourhood(real, drawn))
        near = {name: float(np.mean([getattr(one, name) for one in found])) for name in names}
    train, holdout, synthetic = (points.identity(table, some) for some in (table.train, table.holdout, rows))
    aside = np.isin(synthetic, diversity.common(train, holdout))
    return near | {
        "duplicate_share": diversity.duplicate_share(synthetic, aside) if len(rows) else None,
        "common_row_share": float(aside.mean()) if len(rows) else None,
    }


def _privacy(
    table: Typed, seed: int, reason: str | None
) -> tuple[dict[str, float | None], dict[str, Any] | None, list[str]]:
    rows = table.usable
    identities = [points.identity(table, some) for some in (table.train, table.holdout, rows)]
    common = diversity.common(*identities[:2])
    left = [~np.isin(identity, common) for identity in identities]
    own = identities[2][left[2]]
    copies = privacy.copies(own, identities[0])
    figures: dict[str, float | None] = {"copies": copies, "copy_share": copies / len(own) if len(own) else None}
    figures |= dict.fromkeys(NO_PRIVACY)
    if reason is not None:
        return figures, None, []
    if any(some.sum() < FEWEST_REAL for some in left):
        counts = ", ".join(
            f"{some.sum()} {name}" for some, name in zip(left, ("training", "holdout", "synthetic"), strict=True)
        )
        return (
            figures,
            None,
            [
                f"no distances and no membership test: without the rows that stand more than once among the real ones, "
                f"{counts} rows are left, and each needs {FEWEST_REAL}"
            ],
        )
    train, holdout, synthetic = (
        points.ranged(table, some[mask]) for some, mask in zip((table.train, table.holdout, rows), left, strict=True)
    )
    rng = np.random.default_rng(derive(seed, "distances"))
    found = privacy.measure(
        train, holdout[rng.permutation(len(holdout))], synthetic[rng.permutation(len(synthetic))[: privacy.MOST_ROWS]]
    )
    both = {"": found.synthetic_to_train, "_holdout": found.holdout_to_train}
    figures |= {
        "distance_share": found.share,
        **{f"distance_p5{of}": float(np.quantile(distance, 0.05)) for of, distance in both.items()},
        **{f"distance_median{of}": float(np.median(distance)) for of, distance in both.items()},
        "membership_auc": found.membership_auc,
        "membership_tpr_at_1pct_fpr": found.membership_tpr,
    }
    edges, drawn, real = privacy.histogram(found.synthetic_to_train, found.holdout_to_train)
    picture = {
        "edges": [float(edge) for edge in edges],
        "synthetic_to_train": [float(share) for share in drawn / drawn.sum()],
        "holdout_to_train": [float(share) for share in real / real.sum()],
    }
    return figures, picture, []


def _validity(table: Typed) -> tuple[dict[str, float | None], list[dict[str, Any]]]:
    rules = validity.mine(table)
    rows = table.usable
    broken, real = validity.violated(rows, rules), validity.violated(table.holdout, rules)
    figures: dict[str, float | None] = {
        "parsed_share": float(table.parsed.mean()),
        "domain_share": float(validity.in_domain(table).mean()),
        "rules": len(rules),
        "rule_violation_share": float(broken.any(1).mean()) if len(rows) else None,
        "rule_violation_share_holdout": float(real.any(1).mean()),
        "unseen_cell_share": validity.unseen_cell_share(table),
    }
    if not rules or not len(rows):
        return figures, []
    shares, real_shares = broken.mean(0), real.mean(0)
    worst = np.argsort(-(shares - real_shares), kind="stable")[:WORST_RULES]
    return figures, [
        {"rule": str(rules[place]), "synthetic": float(shares[place]), "holdout": float(real_shares[place])}
        for place in worst
        if shares[place] > 0
    ]
