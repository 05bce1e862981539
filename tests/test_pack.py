"""Trees become one batch whose masks come from lengths."""

from __future__ import annotations

import pytest
import torch

from preflab.data.encode import Tree
from preflab.data.pack import Packed, pack

PAIR = Tree("p:1", (5, 6, 7), ((8, 9), (10,)))
SINGLE = Tree("p:2", (5,), ((11, 12, 13, 14),))


def unpacked(batch: Packed) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """(prompt, response) of each row, as read from the layout."""
    rows = []
    for ids, start, response, mask in zip(batch.token_ids, batch.starts, batch.response_ids, batch.mask, strict=True):
        length = int(mask.sum())
        assert ids[start : start + length].tolist() == response[:length].tolist()
        assert mask.tolist() == [True] * length + [False] * (len(mask) - length)
        rows.append((tuple(ids[:start].tolist()), tuple(response[mask].tolist())))
    return rows


def test_every_response_stands_behind_its_prompt() -> None:
    batch = pack([PAIR, SINGLE])
    assert unpacked(batch) == [((5, 6, 7), (8, 9)), ((5, 6, 7), (10,)), ((5,), (11, 12, 13, 14))]
    assert batch.tree.tolist() == [0, 0, 1]
    assert batch.tokens == 5 + 4 + 5


def test_the_pad_id_in_a_response_is_a_token_like_any_other() -> None:
    padded_with = int(pack([PAIR]).response_ids[1, 1])
    assert not pack([PAIR]).mask[1, 1]
    tree = Tree("p:1", (padded_with, 6), ((padded_with, padded_with), (8, 9, padded_with)))
    assert unpacked(pack([tree])) == [
        ((padded_with, 6), (padded_with, padded_with)),
        ((padded_with, 6), (8, 9, padded_with)),
    ]


def test_batch_mates_add_padding_and_change_nothing_else() -> None:
    alone, together = pack([PAIR]), pack([PAIR, SINGLE, Tree("p:3", (1,) * 50, ((2,) * 50,))])
    assert unpacked(together)[:2] == unpacked(alone)
    assert together.tokens == alone.tokens + 5 + 100


def test_rows_picks_in_the_given_order() -> None:
    batch = pack([PAIR, SINGLE])
    assert unpacked(batch.rows(torch.tensor([2, 0]))) == [unpacked(batch)[2], unpacked(batch)[0]]
    assert batch.rows(torch.tensor([2, 0])).tree.tolist() == [1, 0]
    assert unpacked(batch.to("cpu")) == unpacked(batch)


@pytest.mark.parametrize("tree", [Tree("p:9", (), ((1,),)), Tree("p:9", (1,), ((1,), ()))])
def test_nothing_is_packed_without_a_token(tree: Tree) -> None:
    with pytest.raises(ValueError, match="p:9"):
        pack([tree])
