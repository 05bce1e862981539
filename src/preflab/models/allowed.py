"""Which tokens may stand at each of many places, as a mask has it; and the places in groups that share few tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Bool, Int
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

LARGEST_TABLE = 2**25
"""How many tokens, over all distinct sets, are looked through for groups."""
GROUP_LOGITS = {"cpu": 2**12, "cuda": 2**22}
"""As many logits take the time that a group takes beside its own."""
WORTH = 0.5
"""Groups are taken where they are at most this share of the work."""


@dataclass(frozen=True)
class Group:
    """Places that draw on the same tokens, of which no other group's places allow any."""

    rows: slice
    """Which places, in `Groups.order`."""
    tokens: Int[Tensor, " some"]
    """All that one of them allows, rising."""
    sets: Bool[Tensor, "set some"] | None
    """Which of the tokens each distinct set holds; None: there is one set, and it holds them all."""
    set_of: Int[Tensor, " row"]
    """Which of the sets each place allows."""

    def may(self, rows: slice) -> Bool[Tensor, "row some"]:
        """What some of the places, counted in `Groups.order`, allow of the group's tokens."""
        assert self.sets is not None
        return self.sets[self.set_of[rows.start - self.rows.start : rows.stop - self.rows.start]]


@dataclass(frozen=True)
class Groups:
    """All places, group by group."""

    order: Int[Tensor, " place"]
    """The places of the first group, then those of the second, …"""
    each: tuple[Group, ...]
    column: Int[Tensor, " vocabulary"]
    """Where each token stands among its group's tokens."""


class Allowed:
    """Which tokens may stand at each place of a sequence; called with some places it says so token by token.

    >>> both, first = torch.tensor([True, True, False, False]), torch.tensor([True, False, False, False])
    >>> last = torch.tensor([False, False, False, True])
    >>> allowed = Allowed([both, last, first], torch.tensor([0, 1, 2, 0]))
    >>> allowed(slice(1, 3)).int().tolist()
    [[0, 0, 0, 1], [1, 0, 0, 0]]
    >>> [(group.tokens.tolist(), group.rows) for group in allowed.grouped().each]
    [([0, 1], slice(0, 3, None)), ([3], slice(3, 4, None))]
    """

    def __init__(
        self,
        sets: Sequence[Bool[Tensor, " vocabulary"]],
        set_of: Int[Tensor, " place"],
        device: torch.device | str = "cpu",
    ) -> None:
        """
        Args:
            sets: the distinct ones, on whatever device; none of them is empty.
            set_of: which of them each place allows; on the CPU.
            device: where answers are wanted.
        """
        self.sets, self.set_of, self.device = sets, set_of, torch.device(device)

    @property
    def vocabulary(self) -> int:
        """How many tokens it knows; 0 where there are no places."""
        return len(self.sets[0]) if self.sets else 0

    def __call__(self, places: slice) -> Bool[Tensor, "place vocabulary"]:
        distinct, which = self.set_of[places].unique(return_inverse=True)
        if not len(distinct):
            return torch.zeros(0, self.vocabulary, dtype=torch.bool, device=self.device)
        return torch.stack([self.sets[number] for number in distinct.tolist()]).to(self.device)[which.to(self.device)]

    @cached_property
    def groups(self) -> Groups | None:
        """None where it costs less to look at all tokens everywhere."""
        if not len(self.set_of) or len(self.sets) * self.vocabulary > LARGEST_TABLE:
            return None
        group_of_set, group_of_token = self._components
        groups = int(group_of_set.max()) + 1
        places = np.bincount(group_of_set[self.set_of.numpy()], minlength=groups)
        tokens = np.bincount(group_of_token[group_of_token >= 0], minlength=groups)
        overhead = GROUP_LOGITS.get(self.device.type, GROUP_LOGITS["cuda"]) * groups
        worth = int((places * tokens).sum()) + overhead <= WORTH * len(self.set_of) * self.vocabulary
        return self.grouped() if worth else None

    def grouped(self) -> Groups:
        """Sets that have a token in common are in one group, and so are those that are linked by others."""
        group_of_set, group_of_token = self._components
        group_of_place = group_of_set[self.set_of.numpy()]
        order = np.argsort(group_of_place, kind="stable")
        by_set, by_token = (np.argsort(of, kind="stable") for of in (group_of_set, group_of_token))
        found, column = [], np.zeros(self.vocabulary, dtype=np.int64)
        row_in_group = np.zeros(len(self.sets), dtype=np.int64)
        for group in range(int(group_of_set.max()) + 1):
            rows, sets, tokens = (
                slice(*np.searchsorted(of[by], (group, group + 1)).tolist())
                for of, by in ((group_of_place, order), (group_of_set, by_set), (group_of_token, by_token))
            )
            its_sets, its_tokens = by_set[sets], by_token[tokens]
            column[its_tokens] = np.arange(len(its_tokens))
            row_in_group[its_sets] = np.arange(len(its_sets))
            may = self._table[its_sets][:, its_tokens]
            found.append(
                Group(
                    rows,
                    self._here(its_tokens),
                    None if may.all() else self._here(may),
                    self._here(row_in_group[self.set_of.numpy()[order[rows]]]),
                )
            )
        return Groups(self._here(order), tuple(found), self._here(column))

    def _here(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values).to(self.device)

    @cached_property
    def _table(self) -> Bool[np.ndarray, "set vocabulary"]:
        found: np.ndarray = torch.stack(list(self.sets)).cpu().numpy()
        return found

    @cached_property
    def _components(self) -> tuple[Int[np.ndarray, " set"], Int[np.ndarray, " vocabulary"]]:
        """The group of each set, counted from 0, and that of each token; −1 where no set holds it."""
        sets, tokens = self._table.shape
        of_set, of_token = np.nonzero(self._table)
        edges = coo_array((np.ones(len(of_set)), (of_set, sets + of_token)), shape=(sets + tokens,) * 2)
        _, label = connected_components(edges, directed=False)
        _, group_of_set = np.unique(label[:sets], return_inverse=True)
        number = np.full(sets + tokens, -1)
        number[label[:sets]] = group_of_set
        return group_of_set, number[label[sets:]]
