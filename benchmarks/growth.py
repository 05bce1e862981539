"""The picture of how a cost grows: a panel an axis along which one quantity varies, the same lines in each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from preflab.report.svg import COLOURS, INK, STYLE, Picture, to_svg

Row = Mapping[str, Any]
"""A measured point; `value` is where it lies on its axis."""
LOOKS = ((COLOURS[0], "-", "o"), (COLOURS[1], "-", "s"), (COLOURS[2], "--", "^"))
"""Colour, line and marker of the first line, the second, the third."""


def growth_picture(
    name: str,
    title: str,
    axes_of: Mapping[str, Sequence[Row]],
    lines: Mapping[str, Callable[[Row], float]],
    *,
    titles: Mapping[str, str],
    heights: str,
    tick: Callable[[int], str],
    height: Callable[[float], str],
) -> Picture:
    """Both scales are logarithmic.

    Args:
        axes_of: the points of each axis, at most five of them.
        lines: by their names, what each draws of a point.
        titles: of the panels, by the axes' names.
        heights: what is drawn upwards.
        tick, height: how a value, and a height, is written.
    """
    with mpl.rc_context(STYLE | {"font.size": 9.5}):
        figure = Figure(figsize=(9.2, 5.2), layout="constrained")
        figure.patch.set_alpha(0)
        panels = list(figure.subplots(2, 3).flat)
        for axes, (axis, rows) in zip(panels, axes_of.items(), strict=False):
            axes.patch.set_alpha(0)
            axes.set_title(titles[axis], fontsize=9.5, loc="left")
            axes.set_xscale("log")
            axes.set_yscale("log")
            axes.grid(color=INK, alpha=0.12, linewidth=0.6)
            values = [row["value"] for row in rows]
            axes.set_xticks(values, [tick(value) for value in values], fontsize=7.5)
            axes.xaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_minor_formatter(NullFormatter())
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: height(value)))
            for (label, of), (colour, dashes, marker) in zip(lines.items(), LOOKS, strict=True):
                axes.plot(values, [of(row) for row in rows], color=colour, linestyle=dashes, marker=marker,
                          markersize=4, linewidth=1.3, label=label)  # fmt: skip
        handles, labels = panels[0].get_legend_handles_labels()
        for axes in panels[len(axes_of) :]:
            axes.set_axis_off()
        panels[-1].legend(handles, labels, loc="center left", frameon=False)
        figure.supylabel(heights, fontsize=9.5)
    return Picture(name, title, "", to_svg(figure, name, title))
