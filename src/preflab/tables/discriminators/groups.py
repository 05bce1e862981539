"""Groups of related columns, each of which has a discriminator of its own at the feature level: named by the user, or
found from the data.

    I(x, y) = Σ p(x, y)·log(p(x, y) / (p(x)·p(y)))          of binned columns, less its bias
    r(x, y) = √(1 − exp(−2·I))                              |correlation| of two normal variables with this I

r is Linfoot's informational coefficient of correlation (1957, Information and Control 1). It sees any dependence, and
takes levels as they are: what a special code says with other columns' special codes counts too. Columns are then
clustered by 1 − r (complete linkage).
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from preflab.errors import ConfigError, nearest
from preflab.tables.column import Column
from preflab.tables.discriminators.level import Codes

BINS = 10
"""The points of a scale are told apart in at most so many equal shares of the rows,"""
ROWS_A_BIN = 50
"""and in no more than leave so many rows in each: the fewer the rows, the more chance looks like dependence."""


@dataclass(frozen=True)
class Group:
    """Some of the columns that a model writes."""

    name: str
    places: tuple[int, ...]
    """In the order of the written columns, rising."""


def groups_of(named: Sequence[str], columns: Sequence[Column], codes: Codes) -> tuple[Group, ...]:
    """Those that are named, or else those that the rows suggest.

    Args:
        named: each NAME=COLUMN,COLUMN,…; names that hold a comma in double quotes. A column may be in several groups,
            and in none.
        columns: those that the model writes, as they stand in the rows.
        codes: training rows.

    Raises:
        ConfigError: a group is not of this form, or named twice; or it names a column that the model does not write, or
            one twice.
    """
    if not named:
        return found_groups(columns, codes)
    groups = tuple(_read(text, [column.name for column in columns]) for text in named)
    names = [group.name for group in groups]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ConfigError(f'groups: "{twice[0]}" is named twice; give each group a name of its own')
    return groups


def _read(text: str, written: Sequence[str]) -> Group:
    name, equals, rest = (part.strip() for part in text.partition("="))
    members = [cell.strip() for cell in next(csv.reader([rest], skipinitialspace=True), [])]
    if not name or not equals or not all(members) or not members:
        raise ConfigError(f'groups: "{text}" is not NAME=COLUMN,COLUMN,…')
    for member in members:
        if member not in written:
            raise ConfigError(f'groups: "{name}": the model writes no column "{member}"; {nearest(member, written)}')
    if len(set(members)) < len(members):
        raise ConfigError(f'groups: "{name}" has a column twice; name each once')
    return Group(name, tuple(sorted(written.index(member) for member in members)))


def found_groups(columns: Sequence[Column], codes: Codes) -> tuple[Group, ...]:
    """About √columns groups of columns that say most of each other, each of at least two where there are two, named
    after the column that is nearest to the others of its group.

    Args:
        columns: those that are written.
        codes: training rows.
    """
    if len(columns) < 4:
        return (Group(columns[0].name, tuple(range(len(columns)))),)
    related = association(codes)
    distance = squareform(1 - related, checks=False)
    of_column = fcluster(linkage(distance, "complete"), round(len(columns) ** 0.5), "maxclust")
    members = _without_lone([np.flatnonzero(of_column == group).tolist() for group in sorted(set(of_column))], related)
    return tuple(
        Group(columns[places[int(related[np.ix_(places, places)].sum(1).argmax())]].name, tuple(places))
        for places in sorted(members)
    )


def _without_lone(groups: list[list[int]], related: Float[np.ndarray, "column column"]) -> list[list[int]]:
    """Each column that is alone joins the group with which it has most in common on average."""
    while len(groups) > 1 and (lone := next((group for group in groups if len(group) == 1), None)):
        others = [group for group in groups if group is not lone]
        closest = max(others, key=lambda group: float(related[lone[0], group].mean()))
        groups = [sorted([*group, *lone]) if group is closest else group for group in others]
    return groups


def association(codes: Codes) -> Float[np.ndarray, "column column"]:
    """r of each pair of columns, in [0, 1]; 1 with itself.

    >>> x = np.arange(1000) % 10
    >>> association(np.column_stack([x, (x - 4) ** 2, np.arange(1000) // 100])).round(2).tolist()
    [[1.0, 0.98, 0.0], [0.98, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    bins = min(BINS, max(2, len(codes) // ROWS_A_BIN))
    binned = [_binned(column, bins) for column in codes.T]
    related = np.eye(len(binned))
    for i, first in enumerate(binned):
        for j, second in enumerate(binned[:i]):
            related[i, j] = related[j, i] = np.sqrt(1 - np.exp(-2 * _information_nats(first, second)))
    return related


def _binned(codes: Int[np.ndarray, " row"], bins: int) -> Int[np.ndarray, " row"]:
    """Numbered from 0: each level apart, points by the share of the rows below them; equal points stay together."""
    on_scale, found = codes >= 0, -codes
    if on_scale.any():
        _, place, counts = np.unique(codes[on_scale], return_inverse=True, return_counts=True)
        below = (np.cumsum(counts) - counts / 2) / counts.sum()
        found[on_scale] = -(below * bins).astype(int)[place]
    return np.unique(found, return_inverse=True)[1]


def _information_nats(first: Int[np.ndarray, " row"], second: Int[np.ndarray, " row"]) -> float:
    """Mutual information, less what independent columns would show on average (Miller 1955); at least 0."""
    counts = np.zeros((first.max() + 1, second.max() + 1))
    np.add.at(counts, (first, second), 1)
    share = counts / len(first)
    apart = share.sum(1, keepdims=True) * share.sum(0, keepdims=True)
    there = share > 0
    bias = (counts.shape[0] - 1) * (counts.shape[1] - 1) / (2 * len(first))
    return max(0.0, float((share[there] * np.log(share[there] / apart[there])).sum()) - bias)
