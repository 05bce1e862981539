"""One column of a table: which cells are legal, and a whole number for each of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["integer", "decimal", "category", "boolean", "datetime", "identifier", "constant"]


@dataclass(frozen=True)
class Numbers:
    """An even scale of numbers: points 0 … size − 1, `step` apart."""

    low: int
    """The first point, in steps."""
    size: int
    """How many points, ≥ 1."""
    seen: tuple[int, ...]
    """The points that the training rows hold, rising."""

    def text(self, point: int) -> str:
        """As it is written in the table."""
        return str(self.low + point)

    def point(self, text: str) -> int:
        """The inverse of `text`.

        Raises:
            ValueError: it is no number of this scale, or beyond its ends.
        """
        point = int(text) - self.low
        if not 0 <= point < self.size:
            raise ValueError(f"{text} is beyond {self.low} … {self.low + self.size - 1}")
        return point

    def value(self, point: int) -> float:
        """As a float, for what needs a distance; days since 1970 for dates."""
        return float(self.low + point)


@dataclass(frozen=True)
class Column:
    """One column. A cell's code is −1, −2, … for the first, second, … of its levels, and ≥ 0 for a point of its scale.

    >>> column = Column("age", "integer", levels=("", "-9"), missing=("",), numbers=Numbers(18, 73, (0, 7)))
    >>> [column.code(text) for text in ("", "-9", "18", "25")]
    [-1, -2, 0, 7]
    >>> [column.text(code) for code in (-1, -2, 0, 7)]
    ['', '-9', '18', '25']
    """

    name: str
    kind: Kind
    levels: tuple[str, ...] = ()
    """Cells that lie on no scale, as they are written: categories, special codes, marks of missing values."""
    missing: tuple[str, ...] = ()
    """Those of the levels that mean that there is no value."""
    numbers: Numbers | None = None
    """The scale of the other cells; None: levels are all there is."""

    @property
    def written(self) -> bool:
        """Whether the model writes it. Constants and identifiers are filled in."""
        return self.kind not in ("constant", "identifier")

    def code(self, text: str) -> int:
        """The code of a cell as it is written.

        Raises:
            ValueError: the cell is not legal in this column.
        """
        if text in self.levels:
            return -1 - self.levels.index(text)
        if self.numbers is None:
            raise ValueError(f'"{text}" is none of the {len(self.levels)} values of "{self.name}"')
        return self.numbers.point(text)

    def text(self, code: int) -> str:
        """The cell with this code."""
        if code < 0:
            return self.levels[-1 - code]
        assert self.numbers is not None
        return self.numbers.text(code)

    def value(self, code: int) -> float:
        """A point of the scale as a float; NaN for a level."""
        return float("nan") if code < 0 or self.numbers is None else self.numbers.value(code)
