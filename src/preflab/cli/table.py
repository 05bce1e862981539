"""`preflab table`: learn a table, and sample rows like its own."""

from __future__ import annotations

import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from rich.cells import cell_len, set_cell_size

from preflab.config.tables import TableFit, TableSample
from preflab.errors import Interrupted, StorageError
from preflab.progress import say, warn
from preflab.runs import write_json
from preflab.seeds import derive
from preflab.tables.conditions import read
from preflab.tables.draw import Drawn, unmasked_share
from preflab.tables.files import format_of, write_table
from preflab.tables.fit_run import Parts, fit_run
from preflab.tables.fitted import REFERENCE, UNMASKED_SHARE
from preflab.tables.orders import told
from preflab.tables.schema import Schema
from preflab.tables.synthesizer import UNMASKED, Synthesizer, shortage

PREVIEW = 3
"""Rows that are printed of a sample."""
WIDEST = 20
"""Characters of a cell in the preview."""
NARROWEST = 8
"""Where a terminal is narrow, columns of text give way down to this."""
NO_TERMINAL = (120, 24)


def fit(config: TableFit) -> None:
    """Hold rows out, learn the others, and say how well."""
    _show(config, fit_run(config, _say_found))


def sample(config: TableSample) -> None:
    """Write rows to a file."""
    if config.out.is_dir():
        raise StorageError(f"{config.out} is a folder; name a file in it, such as {config.out / 'synthetic.csv'}")
    if config.out.exists():
        raise StorageError(f"{config.out} is there already; choose another --out, or delete it")
    format_of(config.out)
    synthesizer = Synthesizer.load(config.run)
    fitted = synthesizer.fitted
    conditions = [read(text, fitted.schema.columns) for text in config.where]
    fitted.legal(config.where)
    policy = fitted.latest if config.policy is None else config.policy
    model = fitted.model(policy)
    began = time.process_time()
    try:
        rows, drawn = synthesizer.draw(config.rows, config.where, seed=config.seed, policy=policy, orders=config.orders)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; {config.out} was not written", signal.SIGINT) from None
    seconds = time.process_time() - began
    altered = write_table(rows, fitted.source, config.out, spreadsheet_safe=config.spreadsheet_safe)
    write_json(
        config.out.with_name(f"{config.out.name}.json"),
        {"rows": len(rows), "cpu_seconds": seconds, "rows_per_cpu_second": len(rows) / seconds}
        | {"run": str(config.run), "policy": policy, "where": list(config.where), "seed": config.seed}
        | {"orders": config.orders, "candidates": drawn.candidates, "broken": drawn.broken},
    )
    met = f" with {' and '.join(map(str, conditions))}" if conditions else ""
    by = "" if policy == REFERENCE else f" by {policy}"
    print(f"{config.out}: {len(rows):,} rows{by}{met}, all legal; {len(rows) / seconds:,.0f} rows per CPU second")
    if conditions:
        print(_said_of(drawn))
    if config.orders == "keep" and fitted.orders:
        print(
            f"orders that every training row keeps ({told(fitted.orders)}) are kept: {drawn.broken:,} of "
            f"{drawn.candidates:,} rows drawn broke one, and others were taken"
        )
    if config.spreadsheet_safe:
        print(f"spreadsheet-safe: an apostrophe stands before {altered:,} cells that would be formulas")
    if config.unmasked:
        share = unmasked_share(model, fitted.encoding, UNMASKED, seed=derive(config.seed, "unmasked"))
        print(f"without the mask {share:.1%} of {UNMASKED} other samples are legal rows")
    if said := shortage(drawn):
        warn(said)
    print()
    print(_preview(rows))


def _say_found(parts: Parts) -> None:
    """What there is to learn from."""
    _say_repeats(parts.train, parts.holdout)
    _say_columns(parts.schema)
    for note in (*parts.source.notes, *parts.schema.notes):
        say(f"note: {note}")


def _say_repeats(train: pd.DataFrame, holdout: pd.DataFrame) -> None:
    """How many rows are exact copies: of another, and over the split."""
    repeated = int(pd.concat([train, holdout]).duplicated().sum())
    if not repeated:
        return
    shared = sum(
        map(set(train.itertuples(index=False, name=None)).__contains__, holdout.itertuples(index=False, name=None))
    )
    over = f"; {shared:,} of the rows held out stand among those to learn from too" if len(holdout) else ""
    say(f"  {repeated:,} rows repeat another one exactly{over}")


def _say_columns(schema: Schema) -> None:
    """What each column was taken for."""
    cells = [(one.name, one.kind, one.values, one.codes, one.missing) for one in schema.describe()]
    say(_table(("column", "kind", "values", "codes", "missing"), cells, widths=(40, 12, 48, 24, 8)))


def _table(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Plain columns of text, each cut to its width, and to what the terminal has room for."""
    cells = [[_visible(cell) for cell in row] for row in (header, *rows)]
    sizes = [
        min(width, max(map(cell_len, column))) for width, column in zip(widths, zip(*cells, strict=True), strict=True)
    ]
    sizes = _narrowed(sizes, shutil.get_terminal_size(NO_TERMINAL).columns - 2 * len(sizes))
    return "\n".join(
        "  " + "  ".join(_cut(cell, size) for cell, size in zip(row, sizes, strict=True)).rstrip() for row in cells
    )


def _narrowed(sizes: Sequence[int], room: int) -> list[int]:
    """Widths that fit: the widest gives way first."""
    left = list(sizes)
    while sum(left) > room and max(left) > NARROWEST:
        left[left.index(max(left))] -= 1
    return left


def _cut(text: str, size: int) -> str:
    """Text that takes exactly `size` places of a terminal, of which Chinese characters take two."""
    return set_cell_size(text, size) if cell_len(text) <= size else set_cell_size(text, size - 1) + "…"


def _preview(rows: pd.DataFrame) -> str:
    """The first rows, a line a column."""
    first = rows.iloc[:PREVIEW]
    cells = [(name, *first[name].tolist()) for name in rows.columns]
    header = ("", *(f"row {number + 1}" for number in range(len(first))))
    return _table(header, cells, widths=(40, *[WIDEST] * len(first)))


def _visible(text: str) -> str:
    """What a terminal can show without obeying it."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _said_of(drawn: Drawn) -> str:
    if drawn.effective is None:
        return "conditions: exact"
    return (
        f"conditions: {len(drawn.codes):,} rows drawn from {drawn.candidates:,} weighed candidates, of an effective "
        f"sample size of {drawn.effective:,.0f}"
    )


def _show(config: TableFit, report: Mapping[str, Any]) -> None:
    print(
        f"fitted in {report['cpu_seconds']:,.0f} CPU seconds, stopped by {report['stopped_by']}: "
        f"{report['validation_nats']:.2f} nats a validation row, at epoch {report['best_epoch']}"
    )
    share, rows = report[UNMASKED_SHARE], report["unmasked_rows"]
    print(f"legal rows without the mask: {share:.1%} of {rows}; with it all are")
    print(f"sample: preflab table sample {config.out} -n 1000 --out synthetic{_suffix(config.data)}")
    if config.holdout:
        print(f"judge:  {_judging(config)}")


def _judging(config: TableFit) -> str:
    """The command that judges a sample; exactly what can be pasted."""
    suffix = _suffix(config.data)
    files = [f"{config.out}/train{suffix}", f"synthetic{suffix}", "--holdout", f"{config.out}/holdout{suffix}"]
    aim = [] if config.target is None else ["--target", config.target]
    return shlex.join(["preflab", "table", "score", *files, *aim])


def _suffix(data: Path) -> str:
    return data.suffix.lower() or ".csv"
