"""Vector graphics that read on light and on dark paper.

Colours are Okabe and Ito's; text and axes take the colour of the text around them (`currentColor`), so one file serves
both papers, inlined in the page or on its own. The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
import warnings
from dataclasses import dataclass
from html import escape
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from preflab.report.wording import visible

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6BB1", "#8A8A2B")
NUMBER = {colour.upper(): number for number, colour in enumerate(COLOURS)}
COLOUR = re.compile(rf"(?<![^:=\"' ])({'|'.join(COLOURS)})(?=[;\"']|$)", re.IGNORECASE)
INK = "#010203"  # stands for currentColor until the picture is written
DPI = 160
WIDE_POINTS = 600
FONT = "ui-sans-serif, system-ui, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}


@dataclass(frozen=True)
class Drawn:
    """An <svg> element, and the figure that it was made of; None where it was written by hand."""

    svg: str
    figure: Figure | None = None


@dataclass(frozen=True)
class Picture:
    """A figure: its file name without ending, what it shows in one line, how to read it, and what was drawn."""

    name: str
    title: str
    reading: str
    drawn: Drawn

    @property
    def svg(self) -> str:
        """The <svg> element."""
        return self.drawn.svg

    @property
    def inline(self) -> Markup:
        """The picture as a page holds it."""
        return Markup(on_page(self.svg))

    @property
    def again(self) -> Markup:
        """The same picture once more in a page that holds it already: a reference to it, since ids must be unique."""
        head = self.svg.split(">", 1)[0]
        first = re.search(rf'<g id="({re.escape(self.name)}-[^"]+)"', self.svg)
        return Markup(f'{head}><use href="#{first[1]}"/></svg>') if first else Markup("")

    def apart(self, mark: str) -> Markup:
        """The picture for a page that may hold others of this name: its ids begin with `mark`."""
        return Markup(re.sub(rf'(id="|#){re.escape(self.name)}-', rf"\g<1>{mark}-{self.name}-", self.svg))

    @property
    def wide(self) -> bool:
        """Whether it was drawn for the whole width of a page: panels side by side."""
        width = re.search(r'viewBox="0 0 ([\d.]+)', self.svg)
        return bool(width and float(width[1]) > WIDE_POINTS)

    @property
    def png(self) -> bytes | None:
        """The picture as pixels on white paper; the same numbers give the same bytes."""
        if self.drawn.figure is None:
            return None
        buffer = io.BytesIO()
        with mpl.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            # Tight: names at the ends of curves are placed for a page's font, and pixels have another.
            paper: dict[str, Any] = {"facecolor": "white", "bbox_inches": "tight", "pad_inches": 0.1}
            self.drawn.figure.patch.set_alpha(1)  # it is drawn without paper, and a colour alone brings none
            self.drawn.figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None}, **paper)
        return buffer.getvalue()

    @property
    def file(self) -> str:
        """The picture as a file of its own, with the colours of either paper."""
        paper = "svg{color:#24262b}@media(prefers-color-scheme:dark){svg{color:#d9dce1}}"
        head, body = self.svg.split(">", 1)
        return f'<?xml version="1.0" encoding="utf-8"?>\n{head}><style>{paper}</style>{body}\n'


def on_page(text: str) -> str:
    """Colours as a page may change them on dark paper: `--colour-0` stands for the first of `COLOURS`."""
    return COLOUR.sub(lambda found: f"var(--colour-{NUMBER[found[0].upper()]}, {found[0]})", text)


def sheet(width: float, height: float) -> tuple[Figure, Axes]:
    """One empty plot, sizes in inches."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        axes.grid(color=INK, alpha=0.12, linewidth=0.6)
        axes.set_axisbelow(True)
    return figure, axes


def named(text: str) -> str:
    """A name as a picture can hold it: on one line, nothing unseen, not too long."""
    line = " ".join(visible(text).split())
    return line if len(line) <= 40 else line[:39] + "…"


def to_svg(figure: Figure, name: str, description: str) -> Drawn:
    """The figure with its <svg> element: deterministic, its ids its own, its ink the colour of the text around it."""
    buffer = io.StringIO()
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    # matplotlib's global style rule would reach the page around the picture.
    text = re.sub(r"<metadata>.*?</metadata>\s*|<defs>\s*<style.*?</style>\s*</defs>\s*", "", text, flags=re.DOTALL)
    text = text.replace(INK, "currentColor")
    text = re.sub(r"((?:font: |font-family: )[^;\"]*?)'DejaVu Sans'[^;\"]*", lambda m: m[1] + FONT, text)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{name}-", text)
    return Drawn(described(text, description), figure)


def described(svg: str, description: str) -> str:
    """An <svg> element that says what it shows to who can't see it."""
    label = escape(visible(description), quote=True)
    return svg.replace("<svg", f'<svg role="img" stroke-linejoin="round" aria-label="{label}"', 1)
