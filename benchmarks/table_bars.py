"""What tables must reach, and what was measured: fits (`tables.py`) and alignments (`table_alignment.py`), from their
results. Figures are means over seeds; ± is half of a 95 % interval over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Found = Mapping[str, Any]
"""A figure of an arm: its mean, half_width and seeds, and the same of its difference to the reference."""

BOOSTING = "detectability.gradient_boosting_auc"
COPIES = "privacy.copies"
MINUTES = 15


@dataclass(frozen=True)
class Bar:
    """One line."""

    name: str
    must: str
    measured: str
    ok: bool | None
    """None: nothing was measured, or nothing is asked."""


def at_most(name: str, limit: float, found: Found | None, digits: int = 3) -> Bar:
    """A figure that must not be larger."""
    return _bar(name, f"≤ {limit:,.{digits}f}", found, digits, lambda value: value <= limit)


def at_least(name: str, limit: float, found: Found | None, digits: int = 3) -> Bar:
    """A figure that must not be smaller."""
    return _bar(name, f"≥ {limit:,.{digits}f}", found, digits, lambda value: value >= limit)


def of_fits(kept: Mapping[str, Any], real_copies: float) -> list[Bar]:
    """The bars of one table of tables.json.

    Args:
        real_copies: rows that one half of the real rows has in common with the other, as alignments' bound has it.
    """
    seeds: Sequence[Mapping[str, Any]] = kept["seeds"]

    def of(figure: str) -> Found | None:
        part, _, key = figure.partition(".")
        values = kept["costs"] if part == "costs" else kept["mean"]
        value = values.get(key if part == "costs" else figure)
        return None if value is None else {"mean": value, "half_width": None}

    return [
        at_least("seeds", 3, _exactly(len(seeds)), 0),
        at_least("draws of each", 6, _exactly(kept["redraws"]), 0),
        at_least("rows held out", 1600, _exactly(min(seed["rows"]["holdout"] for seed in seeds)), 0),
        at_most("detectability, boosting: AUC", 0.56, of(BOOSTING)),
        at_least("quality (sdmetrics)", 0.985, of("fidelity.quality")),
        at_most("fit: CPU seconds of the command", 400, of("costs.fit_cpu_seconds"), 0),
        at_most("rows that break a rule", 0.05, of("validity.rule_violation_share")),
        *_of_both(of, real_copies),
        at_least("sampling: rows per CPU second", 400, of("costs.rows_per_cpu_second"), 0),
    ]


def of_alignments(content: Mapping[str, Any]) -> list[Bar]:
    """The bars of table_alignment.json, of the aligned arm that is best on validation rows."""
    arms, best = content.get("arms", {}), content.get("best")
    if best is None:
        return [Bar("best aligned arm", "", "not measured: table_alignment.py --join", None)]
    own, real = arms[best], arms.get("real", {})
    change = own[BOOSTING]["difference"]
    others = [arm[BOOSTING]["seeds"] for name, arm in arms.items() if name not in (best, "reference", "real")]
    return [
        Bar("best aligned arm, by validation rows", "", best, None),
        at_least(
            "its seeds, and the reference's",
            5,
            _exactly(min(own[BOOSTING]["seeds"], arms["reference"][BOOSTING]["seeds"])),
            0,
        ),
        *([at_least("seeds of every other arm", 3, _exactly(min(others)), 0)] if others else []),
        at_least("draws of each", 6, _exactly(content["redraws"]), 0),
        at_most("detectability, boosting: AUC", 0.53, own[BOOSTING]),
        Bar("… less the reference's", "interval below 0", said(change), _below(change)),
        at_most("rows that break a rule", 0.04, own.get("validity.rule_violation_share")),
        at_most("fit + align: seconds, measured alone", 60 * MINUTES, own.get("seconds"), 0),
        *_of_both(own.get, real.get(COPIES, {}).get("mean", 0.0)),
        _not_below("recall less the reference's", own.get("diversity.recall")),
        *_of_weak(content.get("weak", {})),
    ]


def table(title: str, bars: Sequence[Bar]) -> str:
    """As Markdown.

    >>> print(table("Fits", [at_most("AUC", 0.56, {"mean": 0.547, "half_width": 0.01})]))
    ## Fits
    <BLANKLINE>
    | bar | must | measured | ok |
    |---|---|---|---|
    | AUC | ≤ 0.560 | 0.547 ± 0.010 | yes |
    """
    words = {True: "yes", False: "NO", None: "–"}
    lines = [f"| {bar.name} | {bar.must} | {bar.measured} | {words[bar.ok]} |" for bar in bars]
    return "\n".join([f"## {title}", "", "| bar | must | measured | ok |", "|---|---|---|---|", *lines])


def said(found: Found, digits: int = 3) -> str:
    """Mean ± half-width."""
    half = found["half_width"]
    return f"{found['mean']:,.{digits}f}" + ("" if half is None else f" ± {half:,.{digits}f}")


def _of_both(of: Callable[[str], Found | None], real_copies: float) -> list[Bar]:
    """What holds before alignment and after: it must not buy realism with diversity or copying."""
    return [
        at_most("utility lost: AUC", 0.01, of("utility.gap.auc"), 4),
        at_least("coverage", 0.96, of("diversity.coverage")),
        at_most("copies of training rows (a second real sample's)", real_copies, of(COPIES), 1),
        at_most("nearer to train than to holdout", 0.52, of("privacy.distance_share")),
        at_most("membership: AUC", 0.52, of("privacy.membership_auc")),
    ]


def _of_weak(weak: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[Bar]:
    """A curve of detectability before and after; resampling, at the same discriminators' cost, stands beside it."""
    if not weak:
        return [Bar("weak references", "aligned below them", "not measured: table_alignment.py --weak", None)]
    found = []
    for name, arms in weak.items():
        before = arms["reference"][BOOSTING]
        for arm, figures in arms.items():
            if arm != "reference":
                after = figures[BOOSTING]
                must, ok = ("", None) if arm == "resampled" else (f"< {before:.3f}", after < before)
                found.append(Bar(f"reference of {name}, {arm}: AUC", must, f"{after:.3f}", ok))
    return found


def _not_below(name: str, found: Found | None) -> Bar:
    change = found and found["difference"]
    if not change:
        return _bar(name, "interval reaches 0", None, 3, bool)
    return Bar(name, "interval reaches 0", said(change), change["mean"] + (change["half_width"] or 0.0) >= 0)


def _below(change: Found) -> bool:
    """Whether the whole interval is below 0; with one seed there is none."""
    return change["half_width"] is not None and change["mean"] + change["half_width"] < 0


def _bar(name: str, must: str, found: Found | None, digits: int, ok: Callable[[float], bool]) -> Bar:
    if found is None:
        return Bar(name, must, "not measured", None)
    return Bar(name, must, said(found, digits), ok(found["mean"]))


def _exactly(number: float) -> Found:
    return {"mean": number, "half_width": None}
