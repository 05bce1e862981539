"""Numbers and foreign text as the report writes them."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

from preflab.report.statistics import Estimate

# Joiners and the soft hyphen belong to ordinary words of some scripts.
ORDINARY_FORMAT = "\u00ad\u200c\u200d"
UNSEEN = {"Cc", "Cf", "Cs", "Co", "Zl", "Zp"}


def visible(text: str) -> str:
    """`text` with every character shown that would otherwise act unseen: terminal escapes, bidi overrides, NUL.

    Line feeds and tabs stay.

    >>> visible("a\\x1b[31m \\u202eb")
    'a␛[31m ⟨U+202E⟩b'
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(shown(character) for character in text)


def shown(character: str) -> str:
    """One character, or what stands for it."""
    if character in "\n\t" or character in ORDINARY_FORMAT or unicodedata.category(character) not in UNSEEN:
        return character
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"⟨U+{code:04X}⟩"


def said(response: str) -> str:
    """A response as it is shown, also where there is nothing to see of it.

    >>> said(" Yes. "), said(" \\n")
    (' Yes. ', '(empty)')
    """
    return response if response.strip() else "(empty)"


def capital(text: str) -> str:
    """A text as a title or a sentence begins; no other letter changes.

    >>> capital("reward per KL")
    'Reward per KL'
    """
    return text[:1].upper() + text[1:]


def number(value: float | None, digits: int = 2) -> str:
    """A number for people: `digits` decimals, fewer from 100 on, a true minus, thousands apart; – for none.

    >>> number(-1.234), number(12345.6), number(0.0), number(None)
    ('−1.23', '12,346', '0.00', '–')
    """
    if value is None:
        return "–"
    return fixed(value, digits if abs(value) < 100 else 0)


def fixed(value: float, digits: int) -> str:
    """A number with so many decimals, whatever its size.

    >>> fixed(-0.001, 2), fixed(123.456, 1)
    ('0.00', '123.5')
    """
    text = f"{value:,.{digits}f}"
    if text.startswith("-"):
        text = text[1:] if float(text.replace(",", "")) == 0 else "−" + text[1:]
    return text


def figure(value: float) -> str:
    """A number of any size: whole numbers as they are, small ones with three decimals.

    >>> figure(256.0), figure(0.8125), figure(12.345)
    ('256', '0.812', '12.35')
    """
    return count(value) if float(value).is_integer() else number(value, 3 if abs(value) < 1 else 2)


def setting(value: float) -> str:
    """A number as people write it where they set it: with the digits that it has.

    >>> setting(0.05), setting(5.0), setting(1e-06), setting(2048.0)
    ('0.05', '5', '1e-6', '2048')
    """
    digits, _, power = f"{value:.12g}".replace("-", "−", value < 0).partition("e")
    return f"{digits}e{int(power)}" if power else digits


def share(value: float | None, digits: int = 1) -> str:
    """A share in percent.

    >>> share(0.0514), share(0.999996), share(1.0), share(None)
    ('5.1 %', '>99.9 %', '100 %', '–')
    """
    if value is None:
        return "–"
    if value in (0, 1):
        return f"{100 * value:.0f} %"
    least = 10.0**-digits
    if 100 * value < least:
        return f"<{least:.{digits}f} %"
    return f">{100 - least:.{digits}f} %" if 100 * value > 100 - least else f"{100 * value:.{digits}f} %"


def interval(value: Estimate | None, digits: int = 2) -> str:
    """A mean with its interval, all with the decimals of the mean: none from 100 on, one or two more where the interval
    is narrow.

    >>> interval(Estimate(1.0, 0.5, 1.5)), interval(Estimate(0.9134, 0.91, 0.917))
    ('1.00 [0.50, 1.50]', '0.913 [0.910, 0.917]')
    >>> interval(Estimate(102.0, 90.08, 116.0)), interval(Estimate(95.0, 85.0, 105.0), 1)
    ('102 [90, 116]', '95.0 [85.0, 105.0]')
    """
    if value is None:
        return "–"
    width = value.high - value.low
    if abs(value.mean) > 10.0 ** -(digits + 2):  # else it is 0 up to rounding
        digits += (0 < width < 0.02) + (0 < width < 0.002)
    digits = digits if abs(value.mean) < 100 else 0
    return f"{fixed(value.mean, digits)} [{fixed(value.low, digits)}, {fixed(value.high, digits)}]"


def count(value: float | None) -> str:
    """A whole number for people, short from a million on.

    >>> count(12345.0), count(2_500_000), count(3.1e12), count(None)
    ('12,345', '2.50 M', '3.10 T', '–')
    """
    if value is None:
        return "–"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.2f} {letter}"
    return f"{value:,.0f}"


def duration(seconds: float | None) -> str:
    """Seconds for people.

    >>> duration(4.21), duration(75), duration(7300), duration(None)
    ('4.2 s', '75 s', '2 h 2 min', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 120:
        return f"{seconds:.1f} s" if 0 < seconds < 10 else f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def memory(size: float | None) -> str:
    """Bytes for people.

    >>> memory(1.5e9), memory(2e7), memory(None)
    ('1.40 GiB', '19 MiB', '–')
    """
    if size is None:
        return "–"
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.0f} MiB"


def listing(names: Sequence[str]) -> str:
    """Names as a sentence has them.

    >>> listing(["SFT"]), listing(["SFT", "DPO", "PPO"])
    ('SFT', 'SFT, DPO and PPO')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else "".join(names)


def steps(chosen: Sequence[int]) -> str:
    """The step, or the range of steps where seeds chose different ones.

    >>> steps([300, 300]), steps([200, 400])
    ('300', '200–400')
    """
    low, high = min(chosen), max(chosen)
    return str(low) if low == high else f"{low}–{high}"
