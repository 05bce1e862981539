"""Whether a model can have the tree layout, and whether its last MLP may spare the prompts: tried, not looked up."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from jaxtyping import Float
from torch import Tensor

from preflab.data.encode import Tree
from preflab.data.pack import Packed, flat, pack, tree
from preflab.models.attention import NoTree, refused, tree_states
from preflab.models.head import close, without_dropout
from preflab.models.last_block import spare_mlp
from preflab.progress import say


def takes_trees(body: Any, longest: int = 0) -> bool:
    """Whether the model gives the states of the flat layout in the tree layout too: tried once, on two small trees.

    Args:
        longest: of a batch's layout; one longer than a window of its attention, or as long as another that was refused,
            is refused too.
    """
    if body not in _takes:
        with without_dropout(body):
            _takes[body] = _tried(body)
    if _takes[body] and refused(body, longest):
        say_no_tree(body, f"a window of its attention is shorter than {longest} tokens")
        return False
    return _takes[body]


def say_no_tree(body: Any, reason: str) -> None:
    """One line a model, for the person watching."""
    if body not in _told:
        _told.add(body)
        say(f"{type(body).__name__} reads each prompt once a response, not once for all: {reason}")


def small_batch(body: Any) -> Packed | None:
    """Two small trees to try a model on; None where it is too small for them, and nothing is to be gained."""
    positions = getattr(body.config, "max_position_embeddings", None)
    if len(body.get_input_embeddings().weight) < 6 or (positions or 6) < 6:
        return None
    trees = [Tree("check", (1, 2, 3), ((4, 5), (0, 2, 1), (5,))), Tree("check", (4,), ((2, 3, 4, 0),))]
    return pack(trees).to(body.device)


_takes: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
_told: WeakSet[Any] = WeakSet()


@torch.no_grad()
def _tried(body: Any) -> bool:
    batch = small_batch(body)
    if batch is None:
        return False
    plain = flat(batch, ends=True)
    expected = body(input_ids=plain.token_ids, use_cache=False).last_hidden_state.flatten(0, 1)
    problem = _problem(body, batch, expected)
    if problem is None:
        hooks = spare_mlp(body)
        if hooks and _problem(body, batch, expected) is not None:
            for hook in hooks:  # it needs the module whole
                hook.remove()
    else:
        say_no_tree(body, problem)
    return problem is None


def _problem(body: Any, batch: Packed, expected: Float[Tensor, "cell width"]) -> str | None:
    """Why the model's states in the tree layout are not the expected ones of the flat layout; None where they are."""
    layout, plain = tree(batch, ends=True), flat(batch, ends=True)
    try:
        found = tree_states(body, layout)
    except NoTree as reason:
        return str(reason)
    except Exception as error:  # whatever a model makes of one row with positions that restart
        return f"{type(error).__name__}: {error}".splitlines()[0]
    cells = [
        (found[layout.before[batch.mask]], expected[plain.before[batch.mask]]),
        (found[layout.last], expected[plain.last]),
    ]
    return None if all(close(*pair) for pair in cells) else "its states are others then"
