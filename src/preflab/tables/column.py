"""One column of a table: which cells are legal, and a whole number for each of them."""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import ClassVar, Literal

from pydantic import ConfigDict

from preflab.seeds import derive

Kind = Literal["integer", "decimal", "category", "boolean", "datetime", "identifier", "constant"]
STRICT = ConfigDict(extra="forbid", strict=True)
"""How what is stored as JSON is read: nothing unknown, nothing converted."""
SEEN_LISTED = 1000
"""A scale lists the points that the training rows hold where there are at most this many."""

# ASCII digits, no leading zeros (those are codes such as "00501"), and not longer than anything that was measured.
_NUMBER = re.compile(r"(-?)(0|[1-9][0-9]{0,40})?(?:\.([0-9]{0,40}))?(?:[eE]([+-]?[0-9]{1,3}))?")


def read_number(text: str) -> tuple[int, int] | None:
    """(m, e) with text = m·10ᵉ; None where it is no number. `inf` and `007` are none.

    >>> read_number("-1.50"), read_number("2e3"), read_number("007")
    ((-150, -2), (2, 3), None)
    """
    found = _NUMBER.fullmatch(text)
    if found is None:
        return None
    sign, whole, decimals, exponent = found.groups()
    if not whole and not decimals:
        return None
    digits = int((whole or "") + (decimals or ""))
    return (-digits if sign else digits), int(exponent or 0) - len(decimals or "")


@dataclass(frozen=True)
class Numbers:
    """An even scale of numbers: points 0 … size − 1, 10^−decimals apart.

    >>> prices = Numbers(-50, 301, (), decimals=2, style="fixed", shown=2)
    >>> prices.text(0), prices.point("1.20"), prices.nearest("99")
    ('-0.50', 170, 300)
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    low: int
    """The first point, in steps."""
    size: int
    """How many points, ≥ 1."""
    seen: tuple[int, ...]
    """The points that the training rows hold, rising; empty where they are more than `SEEN_LISTED`."""
    decimals: int = 0
    """A step is 10^−decimals; below 0 for steps of ten, hundred, …"""
    style: Literal["shortest", "fixed", "float"] = "shortest"
    """2 is written as "2"; with `shown` digits after the point; as Python writes a float ("2.0", "1e-05")."""
    shown: int = 0
    """Digits after the point in the style "fixed"."""
    rounded: bool = False
    """Whether cells between two points are legal, and taken for the nearer one."""

    def text(self, point: int) -> str:
        """As it is written in the table."""
        steps = self.low + point
        if self.style == "shortest" and not self.decimals:
            return str(steps)
        digits = str(abs(steps)) + "0" * -self.decimals
        digits = digits.rjust(self.decimals + 1, "0")
        cut = len(digits) - max(self.decimals, 0)
        sign, whole, rest = "-" * (steps < 0), digits[:cut], digits[cut:].rstrip("0")
        match self.style:
            case "fixed":
                return f"{sign}{whole}.{rest:0<{self.shown}}" if self.shown else sign + whole
            case "shortest":
                return f"{sign}{whole}.{rest}" if rest else sign + whole
            case "float":
                return repr(float(f"{sign}{whole}.{rest}"))

    def place(self, text: str) -> int | Fraction:
        """Where a number lies on the scale: perhaps between two points, or beyond the ends.

        Raises:
            ValueError: it is no number.
        """
        number = read_number(text)
        if number is None:
            raise ValueError(f'"{text}" is no number')
        digits, exponent = number[0], number[1] + self.decimals
        return (digits * 10**exponent if exponent >= 0 else Fraction(digits, 10**-exponent)) - self.low

    def point(self, text: str) -> int:
        """The inverse of `text`; 7.0 is 7.

        Raises:
            ValueError: it is no number of this scale, or beyond its ends.
        """
        place = self.place(text)
        if not self.rounded and place.denominator != 1:
            reason = "has more decimals than any training row" if self.decimals else "is no whole number"
            raise ValueError(f"{text} {reason}")
        if not 0 <= round(place) < self.size:
            raise ValueError(f"{text} is beyond {self.text(0)} … {self.text(self.size - 1)}")
        return round(place)

    def nearest(self, text: str) -> int:
        """The point that is nearest to a number.

        Raises:
            ValueError: it is no number.
        """
        return min(max(round(self.place(text)), 0), self.size - 1)

    def value(self, place: int | Fraction) -> float:
        """As a float, for what needs a distance."""
        steps = self.low + place
        return float(steps / 10**self.decimals if self.decimals > 0 else steps * 10**-self.decimals)


Unit = Literal["day", "hour", "minute", "second", "millisecond", "microsecond", "nanosecond"]
NANOSECONDS: dict[Unit, int] = {
    "day": 86_400 * 10**9,
    "hour": 3_600 * 10**9,
    "minute": 60 * 10**9,
    "second": 10**9,
    "millisecond": 10**6,
    "microsecond": 10**3,
    "nanosecond": 1,
}
_EPOCH = date(1970, 1, 1).toordinal()
_PARTS = re.compile("(YYYY|MM?|DD?|hh|mm|ss|f+)")
_PART_DIGITS = {"YYYY": r"(?!0000)\d{4}", "M": r"[1-9]\d?", "D": r"[1-9]\d?"}
_ISO = re.compile(r"\d{4}-\d\d-\d\d(?:([ T])\d\d:\d\d(:\d\d)?(?:\.(\d{1,9}))?)?(Z|[+-]\d\d:?\d\d)?", re.ASCII)


@lru_cache(maxsize=256)
def _reader(pattern: str) -> re.Pattern[str]:
    marked = (
        f"(?P<{part[0]}>{_PART_DIGITS.get(part, '[0-9]' * len(part))})" if place % 2 else re.escape(part)
        for place, part in enumerate(_PARTS.split(pattern))
    )
    return re.compile("".join(marked), re.ASCII)


def read_moment(text: str, pattern: str) -> int | None:
    """Nanoseconds from 1970 to a moment that is written like this; None where it is not.

    A pattern has YYYY, MM or M, DD or D, hh, mm, ss and f… for decimals of a second; all else stands for itself.

    >>> read_moment("2/1/1970 00:01", "D/M/YYYY hh:mm") == (86_400 + 60) * 10**9
    True
    >>> read_moment("30/2/1970 00:01", "D/M/YYYY hh:mm")
    """
    found = _reader(pattern).fullmatch(text)
    if found is None:
        return None
    part = found.groupdict(default="0")
    try:
        days = date(int(part["Y"]), int(part["M"]), int(part["D"])).toordinal() - _EPOCH
    except ValueError:
        return None
    hour, minute, second = int(part.get("h", 0)), int(part.get("m", 0)), int(part.get("s", 0))
    if hour > 23 or minute > 59 or second > 59:
        return None
    seconds = ((days * 24 + hour) * 60 + minute) * 60 + second
    return seconds * 10**9 + int(f"{part.get('f', '0'):0<9}")


def iso_pattern(text: str) -> str | None:
    """How an ISO date or date-time is written; None for any other text.

    >>> iso_pattern("2024-02-29T10:30Z"), iso_pattern("29.2.2024")
    ('YYYY-MM-DDThh:mmZ', None)
    """
    found = _ISO.fullmatch(text)
    if found is None:
        return None
    between, seconds, decimals, zone = found.groups()
    time = f"{between}hh:mm{':ss' * bool(seconds)}{'.' * bool(decimals)}{'f' * len(decimals or '')}" if between else ""
    return f"YYYY-MM-DD{time}{zone or ''}"


@dataclass(frozen=True)
class Times:
    """An even scale of moments: points 0 … size − 1, one `unit` apart.

    >>> dates = Times(19_782, 30, (), unit="day", pattern="DD.MM.YYYY")
    >>> dates.text(0), dates.point("29.02.2024")
    ('29.02.2024', 0)
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    low: int
    """The first point, in units since 1970."""
    size: int
    """How many points, ≥ 1."""
    seen: tuple[int, ...]
    """The points that the training rows hold, rising; empty where they are more than `SEEN_LISTED`."""
    unit: Unit
    pattern: str
    """How moments are written: see `read_moment`."""

    def text(self, point: int) -> str:
        """As it is written in the table."""
        seconds, nanoseconds = divmod((self.low + point) * NANOSECONDS[self.unit], 10**9)
        days, seconds = divmod(seconds, 86_400)
        day = date.fromordinal(days + _EPOCH)
        parts = {
            "YYYY": f"{day.year:04}", "MM": f"{day.month:02}", "M": f"{day.month}", "DD": f"{day.day:02}",
            "D": f"{day.day}", "hh": f"{seconds // 3600:02}", "mm": f"{seconds // 60 % 60:02}",
            "ss": f"{seconds % 60:02}",
        }  # fmt: skip
        return _PARTS.sub(lambda part: parts.get(part[0]) or f"{nanoseconds:09}"[: len(part[0])], self.pattern)

    def place(self, text: str) -> int | Fraction:
        """Where a moment lies on the scale: perhaps between two points, or beyond the ends. ISO dates and date-times
        are understood too, whatever the pattern; where one has a time zone and the pattern has none, or the other way
        round, it is taken as it stands.

        Raises:
            ValueError: it is no such moment.
        """
        moment = read_moment(text, self.pattern)
        if moment is None and (iso := iso_pattern(text)):
            moment = read_moment(text, iso)
        if moment is None:
            raise ValueError(f'"{text}" is no moment written as {self.pattern}')
        units, rest = divmod(moment, NANOSECONDS[self.unit])
        return (units if not rest else Fraction(moment, NANOSECONDS[self.unit])) - self.low

    def point(self, text: str) -> int:
        """The inverse of `text`.

        Raises:
            ValueError: it is no moment of this scale, or beyond its ends.
        """
        place = self.place(text)
        if place.denominator != 1:
            raise ValueError(f"{text} is no whole {self.unit}, as all training rows are")
        if not 0 <= place < self.size:
            raise ValueError(f"{text} is beyond {self.text(0)} … {self.text(self.size - 1)}")
        return int(place)

    def nearest(self, text: str) -> int:
        """The point that is nearest to a moment.

        Raises:
            ValueError: it is no moment.
        """
        return min(max(round(self.place(text)), 0), self.size - 1)

    def value(self, place: int | Fraction) -> float:
        """As a float, for what needs a distance: days since 1970."""
        return float((self.low + place) * NANOSECONDS[self.unit] / NANOSECONDS["day"])


@dataclass(frozen=True)
class Serial:
    """Identifiers that count on from the last one of the training rows.

    >>> Serial("C-", 4, "", 42).fresh(2, seed=0)
    ['C-0042', 'C-0043']
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    before: str
    width: int
    """Digits, filled up with zeros; 0: as many as it takes."""
    after: str
    start: int

    def fresh(self, count: int, *, seed: int) -> list[str]:
        """So many identifiers, none of them a training row's; the seed changes nothing."""
        return [f"{self.before}{number:0{self.width}d}{self.after}" for number in range(self.start, self.start + count)]


@dataclass(frozen=True)
class Shape:
    """Identifiers of one length, drawn where the training rows have none.

    Texts whose character i is one of `alphabets[i]` are numbers with those as digits; the widest gap between the
    training rows' is all that is kept of them.

    >>> shape = Shape(("ab", "0123456789"), first=12, size=8)
    >>> sorted(shape.fresh(8, seed=0))
    ['b2', 'b3', 'b4', 'b5', 'b6', 'b7', 'b8', 'b9']
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    alphabets: tuple[str, ...]
    first: int
    """The first number of the gap."""
    size: int
    """How many numbers the gap holds."""

    def number(self, text: str) -> int:
        """The text as a number.

        Raises:
            ValueError: it is not of this shape.
        """
        if len(text) != len(self.alphabets):
            raise ValueError(f'"{text}" has not {len(self.alphabets)} characters')
        number = 0
        for letter, alphabet in zip(text, self.alphabets, strict=True):
            number = number * len(alphabet) + alphabet.index(letter)
        return number

    def text(self, number: int) -> str:
        """The inverse of `number`."""
        letters = []
        for alphabet in reversed(self.alphabets):
            number, digit = divmod(number, len(alphabet))
            letters.append(alphabet[digit])
        return "".join(reversed(letters))

    def fresh(self, count: int, *, seed: int) -> list[str]:
        """So many different identifiers, none of them a training row's.

        Raises:
            ValueError: there are not so many.
        """
        if count > self.size:
            raise ValueError(f"only {self.size:,} values of its shape are free")
        if self.size < 4 * count:
            return [self.text(self.first + place) for place in range(count)]
        draw, places = random.Random(derive(seed, "identifier")), dict[int, None]()
        while len(places) < count:
            places[draw.randrange(self.size)] = None
        return [self.text(self.first + place) for place in places]


@dataclass(frozen=True)
class Column:
    """One column. A cell's code is −1, −2, … for the first, second, … of its levels, and ≥ 0 for a point of its scale.

    >>> column = Column("age", "integer", levels=("", "-9"), missing=("",), numbers=Numbers(18, 73, (0, 7)))
    >>> [column.code(text) for text in ("", "-9", "18", "25")]
    [-1, -2, 0, 7]
    >>> [column.text(code) for code in (-1, -2, 0, 7)]
    ['', '-9', '18', '25']
    """

    __pydantic_config__: ClassVar[ConfigDict] = STRICT

    name: str
    kind: Kind
    levels: tuple[str, ...] = ()
    """Cells that lie on no scale, as they are written: categories, special codes, marks of missing values."""
    missing: tuple[str, ...] = ()
    """Those of the levels that mean that there is no value."""
    numbers: Numbers | Times | None = None
    """The scale of the other cells; None: levels are all there is."""
    counts: tuple[int, ...] = ()
    """How many training rows hold each of the levels."""
    identifiers: Serial | Shape | None = None
    """Where an identifier's values come from."""

    @property
    def written(self) -> bool:
        """Whether the model writes it. Constants and identifiers are filled in."""
        return self.kind not in ("constant", "identifier")

    @cached_property
    def _level_codes(self) -> dict[str, int]:
        return {text: -1 - place for place, text in enumerate(self.levels)}

    @cached_property
    def _number_codes(self) -> dict[Decimal, int]:
        """Levels that are numbers, the first of equal ones: "-9" is −9.0 too."""
        levels = reversed(self._level_codes.items())
        return {Decimal(text): code for text, code in levels if self.numbers and read_number(text)}

    def code(self, text: str, *, nearest: bool = False) -> int:
        """The code of a cell as it is written. A number is the level that equals it, −9.0 the level "-9", but where
        a point of the scale is written so.

        Args:
            nearest: numbers and moments between or beyond the points of the scale are taken for the nearest one.

        Raises:
            ValueError: the cell is not legal in this column.
        """
        level = self._level_codes.get(text)
        if level is not None:
            return level
        if self.numbers is None:
            raise ValueError(f'"{text}" is none of the {len(self.levels)} values of "{self.name}"')
        if self._number_codes and read_number(text):
            level = self._number_codes.get(Decimal(text))
        try:
            if level is not None and self.numbers.text(self.numbers.nearest(text)) != text:
                return level
            return self.numbers.nearest(text) if nearest else self.numbers.point(text)
        except ValueError as error:
            raise ValueError(f'{error} in "{self.name}"') from None

    def text(self, code: int) -> str:
        """The cell with this code."""
        if code < 0:
            return self.levels[-1 - code]
        assert self.numbers is not None
        return self.numbers.text(code)

    def value(self, code: int) -> float:
        """A point of the scale as a float; NaN for a level."""
        return float("nan") if code < 0 or self.numbers is None else self.numbers.value(code)

    def exact(self, text: str) -> float:
        """The number or moment of a cell as it is written, whatever the points of the scale, as a float; NaN where the
        cell is none, or a level.

        >>> paid = Column("paid", "integer", levels=("-9",), numbers=Numbers(18, 73, (0, 7)))
        >>> [paid.exact(text) for text in ("18", "20.5", "1000", "-9", "none")]
        [18.0, 20.5, 1000.0, nan, nan]
        """
        try:
            if self.numbers is None or self.code(text, nearest=True) < 0:
                return float("nan")
            return self.numbers.value(self.numbers.place(text))
        except ValueError:
            return float("nan")
