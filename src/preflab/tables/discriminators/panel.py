"""All discriminators of a round, and the one log density ratio that they come to.

    ratio(x) = slope·(w·logits(x) + c) + offset        w ≥ 0

The levels' logits say much the same thing, each in part: adding them up would count what they share once for each. They
are weighed by a logistic regression on held-out rows (stacking: Wolpert 1992; weights ≥ 0: Breiman 1996), judged and
calibrated out of fold in turn. With one discriminator the ratio is its calibrated logit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jaxtyping import Float

from preflab.config.alignment import Discriminators
from preflab.errors import StorageError
from preflab.progress import stage
from preflab.runs import new_folder, read_json, sha256, write_json
from preflab.seeds import derive
from preflab.tables.compact import Compact
from preflab.tables.discriminators.crossfit import (
    RIDGE,
    Calibration,
    CrossFitted,
    Fit,
    Held,
    Rows,
    Said,
    check,
    cross_fit,
    held,
    mean_logits,
    mean_row_logits,
    platt,
    regress,
)
from preflab.tables.discriminators.groups import groups_of
from preflab.tables.discriminators.level import Codes, Discriminator, Evidence, Level, Logits, Opinion, of_rows
from preflab.tables.discriminators.neural import Encoder, fit_encoder, load_encoder
from preflab.tables.discriminators.prefixes import PrefixTrees, fit_prefix_trees
from preflab.tables.discriminators.relations import Relation
from preflab.tables.discriminators.trees import Trees, fit_trees, load_trees
from preflab.tables.encoding import Encoding
from preflab.tables.sentence import Sentence

PANEL = "panel.json"
ALL = "all"
"""The name of the stack."""


@dataclass(frozen=True)
class Judge:
    """One discriminator: a member for each fold, and what makes their logits log density ratios."""

    name: str
    level: Level
    members: tuple[Discriminator, ...]
    calibration: Calibration

    def logits(self, codes: Codes) -> Logits:
        """Calibrated, the members' mean; 0 where it has nothing to say."""
        return self.calibration(mean_logits(self.members, codes))

    def row_logits(self, codes: Codes) -> Rows:
        """`of_rows` of these logits, to the last bit; of beginnings of rows none is asked about."""
        if self.level == "token":
            return self.calibration(mean_row_logits(self.members, codes))
        return of_rows(self.level, self.logits(codes))


@dataclass(frozen=True)
class Stack:
    """How the judges' logits become one."""

    weights: tuple[float, ...]
    """Of each judge, ≥ 0."""
    offset: float
    calibration: Calibration

    def __call__(self, logits: Float[np.ndarray, "row judge"]) -> Rows:
        """One log density ratio a row, in nats."""
        return self.calibration(logits @ np.array(self.weights) + self.offset)


@dataclass(frozen=True)
class Panel:
    """Fitted discriminators."""

    judges: tuple[Judge, ...]
    stack: Stack
    held: tuple[Held, ...]
    """What each is worth on rows that it did not learn from, and last what all are worth together."""

    def opinion(self, codes: Codes, *, whole: bool = False) -> Opinion:
        """What is said of rows that no fold holds, by all members; `whole`: of whole rows alone."""
        logits = {
            judge.name: judge.row_logits(codes)[:, None] if whole else judge.logits(codes) for judge in self.judges
        }
        levels = {judge.name: judge.level for judge in self.judges}
        rows = np.column_stack([of_rows(levels[name], found) for name, found in logits.items()])
        return Opinion(logits, levels, self.stack(rows))

    def ratio(self, codes: Codes) -> Rows:
        """That of `opinion` alone, without what is said of parts of rows."""
        return self.opinion(codes, whole=True).ratio

    @property
    def silent(self) -> bool:
        """Whether nothing is said of any row: no discriminator is worth anything on rows that it never saw."""
        heard = zip(self.judges, self.stack.weights, strict=True)
        spoken = any(weight > 0 and not judge.calibration.silent for judge, weight in heard)
        return not spoken or self.stack.calibration.silent

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each discriminator that says nothing."""
        return tuple(
            f"{one.name}: rows that it did not learn from are not told apart (AUC {one.auc:.3f}, slope "
            f"{one.slope:.2f}), so it says nothing"
            for one in self.held
            if one.slope <= 0
        )

    def save(self, folder: Path) -> None:
        """Write `panel.json` and the members beside it into a folder, which is replaced."""
        with new_folder(folder) as temporary:
            entries = []
            for place, judge in enumerate(self.judges):
                files = [f"{place}-{fold}{_suffix(member)}" for fold, member in enumerate(judge.members)]
                for member, file in zip(judge.members, files, strict=True):
                    _stored(member).save(temporary / file)
                entries.append(
                    {
                        "name": judge.name,
                        "level": judge.level,
                        "kind": "neural" if isinstance(_stored(judge.members[0]), Encoder) else "trees",
                        "columns": _columns(judge.members[0]),
                        "members": [
                            {"file": file, "sha256": _digest(temporary / file), "relations": _relations(member)}
                            for file, member in zip(files, judge.members, strict=True)
                        ],
                        "calibration": asdict(judge.calibration),
                    }
                )
            said = {"judges": entries, "stack": asdict(self.stack), "held": [asdict(one) for one in self.held]}
            write_json(temporary / PANEL, said)

    @classmethod
    def load(cls, folder: Path, encoding: Encoding) -> Panel:
        """What `save` wrote.

        Raises:
            ConfigError: trees need LightGBM, which is not installed.
            StorageError: a file is missing or damaged, or belongs to another table.
        """
        said = read_json(folder / PANEL)
        try:
            stack = said["stack"]
            return cls(
                tuple(_read_judge(folder, entry, encoding) for entry in said["judges"]),
                Stack(tuple(stack["weights"]), stack["offset"], Calibration(**stack["calibration"])),
                tuple(Held(**one) for one in said["held"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise StorageError(f"{folder / PANEL} is damaged ({error}); align again") from None


def fit_panel(encoding: Encoding, evidence: Evidence, settings: Discriminators, *, seed: int) -> Panel:
    """Fit a discriminator for each level, and each group of columns at the feature level; calibrate and stack them.

    Args:
        encoding: whose columns the codes are of.
        evidence: rows of both classes in folds.
        settings: which levels, and how they are fitted.
        seed: determines everything.

    Raises:
        ConfigError: a group names an unknown column, or LightGBM is not installed.
        DataError: a fold has no rows of a class.
        NumericError: the loss of a neural discriminator is not finite.
    """
    check(evidence)
    asked = _asked(encoding, evidence, settings)
    fitted = []
    with stage("fitting discriminators", len(asked)) as advance:
        for place, (name, level, fit) in enumerate(asked):
            fitted.append(cross_fit(name, level, fit, evidence, seed=derive(seed, "discriminator")))
            advance(place + 1, f"{name}: AUC {fitted[-1].held.auc:.3f}")
    return stacked(fitted)


def _asked(encoding: Encoding, evidence: Evidence, settings: Discriminators) -> list[tuple[str, Level, Fit]]:
    """The name and level of each discriminator, and what fits a member of it."""
    found: list[tuple[str, Level, Fit]] = []
    for level in dict.fromkeys(settings.levels):
        if level == "feature":
            for group in groups_of(settings.groups, encoding.columns, evidence.real):
                name = f"feature: {group.name}"
                found.append((name, level, partial(_fit, encoding, settings, level, group.places, name)))
        else:
            found.append((level, level, partial(_fit, encoding, settings, level, None, level)))
    return found


def _fit(
    encoding: Encoding,
    settings: Discriminators,
    level: Level,
    places: tuple[int, ...] | None,
    name: str,
    part: Evidence,
    seed: int,
) -> Discriminator:
    """A member."""
    if settings.kind == "trees" and level in ("row", "feature"):
        return fit_trees(encoding.columns, part, settings, seed=seed, places=places, name=name)
    if settings.kind == "trees" and level == "token" and isinstance(encoding, Compact):
        return fit_prefix_trees(encoding, part, settings, seed=seed, name=name)
    return fit_encoder(
        _readable(encoding),
        part.real,
        part.written,
        level,
        places,
        settings,
        seed=seed,
        weights=part.importance,
        name=name,
    )


def stacked(fitted: Sequence[CrossFitted]) -> Panel:
    """Several discriminators that were fitted on the same rows as one panel."""
    judges = tuple(Judge(one.name, one.level, one.members, one.calibration) for one in fitted)
    each = tuple(one.held for one in fitted)
    if len(fitted) == 1:
        alone = fitted[0]
        # Its logits are calibrated already; a silent one's are 0.
        return Panel(judges, Stack((1.0,), 0.0, Calibration(1.0, 0.0)), (*each, replace(alone.held, name=ALL)))
    rows = fitted[0].said
    table = Said(
        np.column_stack([one.said.real for one in fitted]),
        np.column_stack([one.said.written for one in fitted]),
        rows.weights,
        rows.real_fold,
        rows.written_fold,
    )
    raw = _out_of_fold(table)
    calibration = platt(raw)
    weights, offset = regress(table, ridge=RIDGE, non_negative=True)
    together = held(ALL, "row", raw, calibration)
    return Panel(judges, Stack(tuple(weights.tolist()), offset, calibration), (*each, together))


def _out_of_fold(table: Said) -> Said:
    """The stack's raw logit of each row, with weights that were fitted on the other folds."""
    real, written = np.zeros(len(table.real)), np.zeros(len(table.written))
    for fold in np.unique(table.real_fold):
        own_real, own_written = table.real_fold == fold, table.written_fold == fold
        rest = Said(
            table.real[~own_real],
            table.written[~own_written],
            table.weights[~own_written],
            table.real_fold[~own_real],
            table.written_fold[~own_written],
        )
        weights, offset = regress(rest, ridge=RIDGE, non_negative=True)
        real[own_real] = table.real[own_real] @ weights + offset
        written[own_written] = table.written[own_written] @ weights + offset
    return Said(real, written, table.weights, table.real_fold, table.written_fold)


def _readable(encoding: Encoding) -> Compact | Sentence:
    """One whose tokens encoders read."""
    if isinstance(encoding, Compact | Sentence):
        return encoding
    raise TypeError(f"encoders read no tokens of {type(encoding).__name__}")


def _compact(encoding: Encoding) -> Compact:
    """One whose beginnings trees read."""
    if isinstance(encoding, Compact):
        return encoding
    raise TypeError(f"trees read no beginnings of rows of {type(encoding).__name__}")


def _stored(member: Discriminator) -> Trees | Encoder:
    """What is saved of a member of a kind that has a file format."""
    if isinstance(member, PrefixTrees):
        return member.trees
    if isinstance(member, Trees | Encoder):
        return member
    raise TypeError(f"{type(member).__name__} is no kind of discriminator that a panel can save")


def _suffix(member: Discriminator) -> str:
    return "" if isinstance(_stored(member), Encoder) else ".txt"


def _digest(path: Path) -> str | None:
    """Of a file; folders look after themselves."""
    return sha256(path) if path.is_file() else None


def _columns(member: Discriminator) -> list[str] | None:
    """The names of those that trees look at; an encoder stores its own."""
    stored = _stored(member)
    return [column.name for column in stored.columns] if isinstance(stored, Trees) else None


def _relations(member: Discriminator) -> list[dict[str, Any]]:
    """What trees are shown beside columns."""
    stored = _stored(member)
    return [asdict(relation) for relation in stored.relations] if isinstance(stored, Trees) else []


def _read_judge(folder: Path, entry: dict[str, Any], encoding: Encoding) -> Judge:
    level: Level = entry["level"]
    members: tuple[Discriminator, ...]
    if entry["kind"] == "trees":
        members = _read_trees(folder, entry, "feature" if level == "feature" else "row", encoding)
        if level == "token":
            members = tuple(PrefixTrees(_compact(encoding), trees) for trees in members)
    else:
        members = tuple(load_encoder(folder / member["file"], _readable(encoding)) for member in entry["members"])
    return Judge(entry["name"], level, members, Calibration(**entry["calibration"]))


def _read_trees(
    folder: Path, entry: dict[str, Any], level: Literal["row", "feature"], encoding: Encoding
) -> tuple[Trees, ...]:
    names = [column.name for column in encoding.columns]
    places = [names.index(name) for name in entry["columns"]]
    return tuple(
        load_trees(
            folder / one["file"],
            entry["name"],
            level,
            encoding.columns,
            places,
            [Relation(**relation) for relation in one["relations"]],
            digest=one["sha256"],
        )
        for one in entry["members"]
    )
