"""Orders that every row of a table keeps, such as opened ≤ closed, and which rows break one.

A model that writes cell by cell breaks them in a few rows. A mask that narrowed a later cell by an earlier one would
distort the rest: it never asks how likely the later cells made the earlier one. So a row that breaks one is drawn again
(`draw.py`), which leaves all others as likely as they were to each other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from preflab.errors import ConfigError
from preflab.tables.column import Column, Times
from preflab.tables.discriminators.level import Codes
from preflab.tables.discriminators.relations import numbers
from preflab.tables.judge.validity import STRICT, Order, kept_by_chance, violated

SHUFFLED_ROWS = 50
"""An order is taken for none where fewer of its rows would break it if one of its columns were shuffled: too few for a
small table, or one that columns which hardly overlap keep anyway, to say that it is no accident."""
AGAIN, FIRST = 100, 10
"""Sampling stops where more rows than these were drawn for each that keeps the orders, or for the first ten: a few show
no share."""
GLANCE_ROWS = 1000
"""Most pairs of columns are no order, as this many rows show."""
EXACT = 2**53
"""Floats tell whole numbers apart up to here; of greater ones no order could be promised."""
TOLD = 6
"""Orders that are named."""


class Unkept(ConfigError):
    """A model, or a condition, leaves hardly a row that keeps the orders."""


def find_orders(columns: Sequence[Column], codes: Codes) -> tuple[Order, ...]:
    """Orders low ≤ high of two columns of numbers, or of two of dates, that every row keeps in which both are numbers,
    and not by chance:

        n·P(a > b) ≥ 50,     a and b of two rows drawn on their own

    of n rows with both; and in more than 1 % of these low < high. Special codes and missing values are no numbers, and
    columns whose scale goes beyond 2⁵³ steps from 0 are left out.

    Of what is true of n rows without exception, fewer than 3/n of all rows are the exception (95 % confidence).

    >>> from preflab.tables.column import Numbers
    >>> paid, owed = (Column(name, "integer", numbers=Numbers(0, 500, ())) for name in ("paid", "owed"))
    >>> rows = np.array([[row, row + 5] for row in range(400)])
    >>> [str(order) for order in find_orders((paid, owed), rows)], find_orders((paid, owed), rows[:100])
    (['paid ≤ owed'], ())
    """
    values = numbers(columns, codes)
    values[:, [not _is_exact(column) for column in columns]] = np.nan
    glance = values[:GLANCE_ROWS]
    dates = np.array([isinstance(column.numbers, Times) for column in columns])
    found: list[Order] = []
    for low, column in enumerate(columns):
        likely = (dates == dates[low]) & ~(glance[:, low, None] > glance).any(0)
        for high in map(int, np.flatnonzero(likely)):
            if high != low and _is_order(values[:, low], values[:, high]):
                found.append(Order(column.name, columns[high].name))
    return tuple(found)


def _is_exact(column: Column) -> bool:
    scale = column.numbers
    return scale is not None and max(abs(scale.low), abs(scale.low + scale.size)) <= EXACT


def _is_order(low: Float[np.ndarray, " row"], high: Float[np.ndarray, " row"]) -> bool:
    both = ~(np.isnan(low) | np.isnan(high))
    low, high = low[both], high[both]
    if len(low) < SHUFFLED_ROWS or (low > high).any() or (low < high).mean() <= STRICT:
        return False
    # Only where the columns overlap can shuffled rows break it: of most pairs of columns there is little to sort.
    above, below = low[low > high.min()], high[high < low.max()]
    if not len(above):
        return False
    by_chance = kept_by_chance(np.sort(above), np.sort(below))
    return len(above) * len(below) / len(low) * (1 - by_chance) >= SHUFFLED_ROWS


def broken(
    columns: Sequence[Column],
    codes: Codes,
    orders: Sequence[Order],
    *,
    exact: Float[np.ndarray, "row column"] | None = None,
) -> Bool[np.ndarray, "row order"]:
    """Which row breaks which order; nothing is broken by what is no number.

    Args:
        exact: numbers of cells that codes have only the nearest of; NaN: that of the code.
    """
    places = asked_of(columns, orders)
    some = [columns[place] for place in places]
    values = numbers(some, codes[:, places])
    if exact is not None:
        values = np.where(np.isnan(exact[:, places]), values, exact[:, places])
    return violated(pd.DataFrame(values, columns=[column.name for column in some]), orders)


def asked_of(columns: Sequence[Column], orders: Sequence[Order]) -> list[int]:
    """The places of the columns that orders are about."""
    names = {name for order in orders for name in (order.low, order.high)}
    return [place for place, column in enumerate(columns) if column.name in names]


def told(orders: Sequence[Order]) -> str:
    """The orders in words, without those that follow from two others.

    >>> told([Order("a", "b"), Order("b", "c"), Order("a", "c")])
    'a ≤ b, b ≤ c'
    """
    pairs = {(order.low, order.high) for order in orders}
    between = {(low, high) for low, middle in pairs for other, high in pairs if middle == other}
    shown = [str(order) for order in orders if (order.low, order.high) not in between]
    more = len(shown) - TOLD
    return ", ".join(shown[:TOLD]) + (f" and {more} more" if more > 0 else "")


def recorded(orders: Sequence[Order]) -> list[list[str]]:
    """As JSON."""
    return [[order.low, order.high] for order in orders]


def restored(record: Any, columns: Sequence[Column]) -> tuple[Order, ...]:
    """What `recorded` gave.

    Raises:
        ValueError: it is none, or not of these columns.
    """
    scales = {column.name: isinstance(column.numbers, Times) for column in columns if column.numbers is not None}
    found: list[Order] = []
    for one in record if isinstance(record, list) else [record]:
        match one:
            case [str(low), str(high)] if low != high and low in scales and scales[low] == scales.get(high):
                found.append(Order(low, high))
            case _:
                raise ValueError(f"{one} is no order of two columns of numbers or of dates")
    return tuple(found)


def hopeless(drawn: int, kept: int) -> bool:
    """Whether fewer than 1 in 100 of the rows that were drawn keep the orders, of more than 1,000.

    >>> hopeless(1000, 0), hopeless(1001, 0), hopeless(1001, 11)
    (False, True, False)
    """
    return drawn > AGAIN * max(FIRST, kept)


def unkept(shares: Float[np.ndarray, " order"], orders: Sequence[Order], *, conditions: bool) -> Unkept:
    """What to say where hardly a row keeps the orders.

    Args:
        shares: of all rows that were drawn, those that break each order.
    """
    worst = int(shares.argmax())
    under, widen = (" under the conditions", "widen the conditions, or ") if conditions else ("", "")
    return Unkept(
        f"of the rows that the model writes{under} fewer than 1 in {AGAIN} keep the orders that every training row "
        f"keeps: {shares[worst]:.0%} break {orders[worst]}; {widen}take rows as they come with --orders ignore"
    )
