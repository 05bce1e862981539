"""A table in, a model of its rows, rows out: what `preflab table` does, as a library.

A run folder of `preflab table fit` is a saved synthesizer, and the other way round:

    schema.json    the columns        encoding.json   how a row becomes tokens
    source.json    types and format   model/          Hugging Face format    fit.json   how fitting went, orders
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from jaxtyping import Int

from preflab.config.alignment import Alignment
from preflab.config.commands import Base
from preflab.config.row_model import RowModel
from preflab.data.encode import Tokenizer
from preflab.errors import ConfigError, StorageError
from preflab.models.base import new_model, new_tokenizer
from preflab.models.load import Policy, check_length, load_policy
from preflab.progress import say, warn
from preflab.runs import RunFolder, new_folder, read_json, write_json
from preflab.seeds import derive
from preflab.tables.column import Column
from preflab.tables.compact import Compact
from preflab.tables.conditions import count, find, present
from preflab.tables.draw import CANDIDATES, Drawn, Imputed, draw_rows, impute_rows, unmasked_share
from preflab.tables.encoding import Encoding, Legal
from preflab.tables.files import Source, from_frame, read_table, to_frame
from preflab.tables.fitted import (
    ALIGN,
    ALIGNED,
    ENCODING,
    FIT,
    ORDERS,
    REFERENCE,
    SCHEMA,
    SOURCE,
    UNMASKED_SHARE,
    Fitted,
    Where,
    load_model,
)
from preflab.tables.fitting import fit_rows, split
from preflab.tables.judge.validity import Order
from preflab.tables.look import look
from preflab.tables.model import RowWriter
from preflab.tables.orders import find_orders, recorded, told
from preflab.tables.schema import Schema, infer, is_missing
from preflab.tables.sentence import Sentence
from preflab.tables.sentence_model import SentenceWriter
from preflab.tables.writers import Writer

UNMASKED, UNMASKED_SENTENCES = 300, 50
"""Rows that are sampled without a mask at the end of a fit; fewer sentences, which are long."""
LOOKED_AT_SENTENCES = 50
SENTENCE_VOCABULARY = 1000
"""Tokens of a tokenizer that is made of rows as sentences."""
TOKENIZED_ROWS = 2000
"""What it is made of, at most."""


Orders = Literal["keep", "ignore"]
"""Whether rows keep the orders that every row of their table keeps."""


@dataclass(frozen=True)
class Learning:
    """How a table is learned."""

    encoding: Literal["compact", "text"] = "compact"
    """See `Synthesizer`, as for all others."""
    model: str | None = None
    any_order: bool = False
    first: tuple[str, ...] = ()
    minutes: float | None = None
    settings: RowModel = RowModel()  # noqa: RUF009  (frozen)
    seed: int = 0


class Synthesizer:
    """A model of a table's rows, which samples new ones and fills in missing cells.

    Args:
        settings: the model and how it learns.
        encoding: "compact": a vocabulary made from the table, for a small model from scratch; "text": sentences in the
            tokens of a language model's tokenizer.
        model: of "text": a folder in the Hugging Face format or a name on the Hub; none: a small one from scratch, with
            a tokenizer made of the rows.
        any_order: learn rows in every order of their columns, so that conditions on any are exact.
        first: columns that come first in a row, where conditions on them are exact or cheap; none: the target.
        minutes: of wall-clock time that fitting may take, > 0.
        seed: determines weights and order of the rows.

    Raises:
        ConfigError: the settings don't go together.

    >>> table = pd.DataFrame({"age": [30, 41, 30, 58] * 10, "smoker": [True, False, False, True] * 10})
    >>> tiny = RowModel(layers=1, width=8, heads=1, epochs=2)
    >>> synthesizer = Synthesizer(settings=tiny).fit(table, target="smoker")
    >>> rows = synthesizer.sample(4, where={"smoker": True, "age": ">=40"}, seed=1)
    >>> rows.shape, rows.dtypes.astype(str).to_dict(), bool(rows.smoker.all()), bool((rows.age >= 40).all())
    ((4, 2), {'age': 'int64', 'smoker': 'bool'}, True, True)
    >>> holes = pd.DataFrame({"age": [41.0, None], "smoker": [False, True]})
    >>> bool(synthesizer.impute(holes).age.notna().all())
    True
    """

    def __init__(
        self,
        *,
        settings: RowModel | None = None,
        encoding: Literal["compact", "text"] = "compact",
        model: str | None = None,
        any_order: bool = False,
        first: Sequence[str] = (),
        minutes: float | None = None,
        seed: int = 0,
    ) -> None:
        if encoding != "text" and model is not None:
            raise ConfigError('a pretrained model writes text: Synthesizer(encoding="text", model="gpt2")')
        if minutes is not None and not minutes > 0:
            raise ConfigError(f"minutes = {minutes}: give more than 0, or None for no limit")
        self.learning = Learning(encoding, model, any_order, tuple(first), minutes, settings or RowModel(), seed)
        self.holdout: pd.DataFrame | None = None
        """The rows that nothing learned from, where `fit` was asked to hold some out."""
        self._fitted: Fitted | None = None
        self._codes: Int[np.ndarray, "row column"] | None = None
        """Of the rows that `fit` learned from; they are saved nowhere."""

    def fit(
        self,
        table: pd.DataFrame | Path | str,
        target: str | None = None,
        *,
        columns: Mapping[str, str] | None = None,
        codes: Mapping[str, Sequence[Any]] | None = None,
        holdout: float = 0.0,
    ) -> Synthesizer:
        """Learn a table, and return this synthesizer.

        Args:
            table: a data frame, or the path of a CSV or Parquet file.
            target: the column that others are to predict; it comes first in a row.
            columns: what columns hold, instead of what they look like: integer, decimal, decimal:2, category, boolean,
                datetime or identifier.
            codes: cells of a column that are no numbers, say special codes, instead of those that are found.
            holdout: share of the rows that nothing learns from, in [0, 1).

        Raises:
            ConfigError, DataError: a name or a kind is wrong, or a column can't be used as it is.
        """
        if not 0 <= holdout < 1:
            raise ConfigError(f"holdout = {holdout}: give a share of the rows, at least 0 and below 1")
        frame, source = from_frame(table) if isinstance(table, pd.DataFrame) else read_table(Path(table))
        learned, held = parted(len(frame), holdout, seed=self.learning.seed)
        train = frame.iloc[learned]
        named = {name: [str(code) for code in listed] for name, listed in (codes or {}).items()}
        schema = infer(train, target=target, kinds=columns or {}, codes=named)
        with TemporaryDirectory() as folder:
            run = RunFolder(Path(folder))
            learn(run, start(train, schema, self.learning), source, self.learning)
            self._fitted = Fitted.load(run.path)
            self._fitted.model(REFERENCE)
        self._codes = schema.codes(train)
        self.holdout = to_frame(frame.iloc[held], source) if len(held) else None
        return self

    def align(self, method: str = "ppo", settings: Alignment | None = None, *, seed: int = 0) -> Synthesizer:
        """Train the model further on what discriminators say of its rows, and return this synthesizer; rows are then
        sampled from the result, and `policy="reference"` asks for the model as it was fitted.

        A synthesizer that was loaded from a run folder of `preflab table fit` leaves the policy there, as
        `preflab table align` does.

        Args:
            method: ppo, grpo, rloo, dpo, or a chain such as dpo+ppo.
            settings: reward, rounds, discriminators, and those of each method.
            seed: determines discriminators, rows and steps.

        Raises:
            ConfigError: there is no such method, settings don't go together, or the rows that were learned from are
                not there.
        """
        from preflab.tables.alignment.align import align, rows_from

        fitted, given = self.fitted, settings or Alignment()
        if self._codes is None:
            align(fitted.folder, given, method=method, seed=seed, fitted=fitted)
        else:
            rows = rows_from(fitted, self._codes)
            with TemporaryDirectory() as folder:
                align(Path(folder), given, method=method, seed=seed, fitted=fitted, rows=rows)
                for path in sorted((Path(folder) / ALIGNED).iterdir()):  # the stages of a chain too
                    fitted.add(path.name, load_model(path / "model", fitted.encoding), read_json(path / ALIGN))
        return self

    def sample(
        self,
        n: int,
        where: Where | None = None,
        *,
        seed: int = 0,
        policy: str | None = None,
        orders: Orders = "keep",
        batch_size: int | None = None,
    ) -> pd.DataFrame:
        """`n` legal rows, with the types of the table.

        Orders that every row of the table keeps, such as opened ≤ closed, are kept: a row that breaks one is drawn
        again.

        Where conditions are no equalities on the first columns of a row, candidates are weighed (see `draw_rows`); a
        warning says where they were too few.

        Args:
            where: column → cell, `None` for a missing value, `">=70"`, a list of cells, a tuple (lowest, highest); or
                texts such as "age>=70". All must hold.
            seed: determines the rows; with the same seed the first of many are those of few, unless they are weighed.
            policy: which model writes; None: the one that was aligned last, or the reference where none was.
            orders: "ignore" takes rows as the model writes them.
            batch_size: rows under way at once; changes no row beyond rounding.

        Raises:
            ConfigError: `n` is below 0, a condition can't hold, there is no such policy, or hardly a row keeps the
                orders.
        """
        rows, drawn = self.draw(n, where, seed=seed, policy=policy, orders=orders, batch_size=batch_size)
        if said := shortage(drawn):
            warn(said)
        return to_frame(rows, self.fitted.source)

    def draw(
        self,
        n: int,
        where: Where | None = None,
        *,
        seed: int = 0,
        policy: str | None = None,
        orders: Orders = "keep",
        batch_size: int | None = None,
    ) -> tuple[pd.DataFrame, Drawn]:
        """As `sample`, but cells as text, and what it took."""
        if n < 0 or n != int(n):
            raise ConfigError(f"n = {n}: give a whole number of rows, 0 or more")
        fitted = self.fitted
        legal = fitted.legal(where or {})
        drawn = draw_rows(
            fitted.model(policy or fitted.latest),
            fitted.encoding,
            int(n),
            seed=derive(seed, "sample"),
            legal=legal,
            orders=_kept(fitted, orders),
            batch_size=batch_size,
        )
        return fitted.schema.frame(drawn.codes, seed=derive(seed, "identifiers")), drawn

    def impute(
        self,
        table: pd.DataFrame,
        *,
        cells: pd.DataFrame | None = None,
        seed: int = 0,
        policy: str | None = None,
        orders: Orders = "keep",
        candidates: int = CANDIDATES,
    ) -> pd.DataFrame:
        """The table with its missing cells drawn from the model, given each row's other cells, which stay as they are.
        Those of constants are filled in; those of identifiers stay.

        A known number between or beyond those of the training rows counts as the nearest of them, and a known cell that
        no training row holds says nothing. One line says how many cells were filled in, and how well weighed ones were.
        Orders that every row of the table keeps are kept, but where a row's known cells leave no way to.

        Args:
            table: with all columns of the model; others are refused.
            cells: True where a cell is to be drawn, whatever stands there; `None`: those without a value.
            orders: "ignore" takes cells as the model writes them.
            candidates: rows that are weighed for each one with missing cells, where it isn't exact; > 0.

        Raises:
            ConfigError: `cells` has another shape, or `candidates` is below 1.
            DataError: a column is missing or unknown.
        """
        if candidates < 1:
            raise ConfigError(f"candidates = {candidates}: at least one is needed to fill a cell in")
        fitted = self.fitted
        frame, source = from_frame(table, like=fitted.source)
        frame = frame.reset_index(drop=True)
        if cells is not None and cells.shape != table.shape:
            raise ConfigError(
                f"cells has the shape {cells.shape}, the table {table.shape}; give one value for each cell"
            )
        asked = None if cells is None else pd.DataFrame(cells.to_numpy(dtype=bool), columns=frame.columns)
        codes, unknown, drawn = fitted.context(frame, asked)
        kept = _kept(fitted, orders)
        legal = {place: _fillable(column, one) for place, column, one in fitted.places()}
        found = impute_rows(
            fitted.model(policy or fitted.latest), fitted.encoding, codes, unknown,
            seed=derive(seed, "impute"), legal=legal, candidates=candidates,
            orders=kept, exact=fitted.exact(frame, ~drawn, kept),
        )  # fmt: skip
        for place, column in enumerate(fitted.schema.written):
            filled = frame[column.name].to_numpy(dtype=object).copy()
            for row in np.flatnonzero(drawn[:, place]):
                filled[row] = column.text(int(found.codes[row, place]))
            frame[column.name] = filled
        constants = 0
        for column in fitted.schema.columns:
            if column.kind == "constant" and column.name in frame and not column.missing:
                blank = frame[column.name].map(is_missing) if asked is None else asked[column.name]
                frame.loc[blank, column.name] = column.levels[0]
                constants += int(blank.sum())
        say(_said_of(int(drawn.sum()) + constants, found))
        empty = [name for name, blank in zip(frame.columns, table.isna().all(), strict=True) if blank]
        return to_frame(frame, _with_types(source, frame[empty], fitted.source)).set_axis(table.index)

    def save(self, folder: Path | str) -> None:
        """Write it into a new folder.

        Raises:
            StorageError: the folder is there and not empty, or can't be written.
        """
        fitted, path = self.fitted, Path(folder)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise StorageError(f"{path} is not empty; choose another folder")
        with new_folder(path) as temporary:
            fitted.schema.save(temporary / SCHEMA)
            write_json(temporary / SOURCE, fitted.source.json())
            write_json(temporary / ENCODING, fitted.encoding.settings())
            write_json(temporary / FIT, fitted.report)
            fitted.model(REFERENCE).save_pretrained(temporary / "model")
            for policy in fitted.policies()[1:]:
                fitted.model(policy).save_pretrained(temporary / ALIGNED / policy / "model")
                write_json(temporary / ALIGNED / policy / ALIGN, fitted.said(policy))
            if fitted.tokenizer is not None:
                fitted.tokenizer.save_pretrained(temporary / "model")

    @classmethod
    def load(cls, folder: Path | str) -> Synthesizer:
        """Read what `save` or `preflab table fit` wrote.

        Raises:
            ConfigError, StorageError: there is no fitted table in the folder, or a file is damaged.
        """
        synthesizer = cls()
        synthesizer._fitted = Fitted.load(Path(folder))
        return synthesizer

    @property
    def fitted(self) -> Fitted:
        """What was learned.

        Raises:
            ConfigError: nothing was.
        """
        if self._fitted is None:
            raise ConfigError(
                "this synthesizer has learned no table; call fit(table) first, or Synthesizer.load(folder)"
            )
        return self._fitted


@dataclass(frozen=True)
class Start:
    """A table before the first step."""

    schema: Schema
    codes: Int[np.ndarray, "row column"]
    encoding: Encoding
    writer: Writer
    tokenizer: Tokenizer | None
    """Of the text encoding."""


def start(train: pd.DataFrame, schema: Schema, learning: Learning) -> Start:
    """How the rows of a text frame become tokens, and the model that is to learn them.

    Raises:
        ConfigError: a column that is to come first is none, there is no such model, or it has too few positions.
    """
    order, codes = _order(schema, learning.first), schema.codes(train)
    if learning.encoding == "compact":
        compact = Compact.of(schema.written, codes, order=order, any_order=learning.any_order)
        writer = RowWriter(compact, codes, learning.settings, seed=derive(learning.seed, "weights"))
        return Start(schema, codes, compact, writer, None)
    policy, sentence = _text_model(schema, train, order, learning)
    return Start(schema, codes, sentence, SentenceWriter(policy, sentence, learning.settings), policy.tokenizer)


def learn(run: RunFolder, begun: Start, source: Source, learning: Learning) -> dict[str, Any]:
    """Fit the model in a run folder, and return what `fit.json` says.

    Raises:
        Interrupted: the run was asked to stop; called again it goes on.
    """
    encoding, writer, codes = begun.encoding, begun.writer, begun.codes
    few = begun.tokenizer is not None
    looked_at, unmasked = (LOOKED_AT_SENTENCES, UNMASKED_SENTENCES) if few else (len(codes), UNMASKED)
    say(
        f"{learning.encoding} encoding: at most {encoding.longest} tokens a row, {encoding.vocabulary:,} in the "
        f"vocabulary; {sum(weight.numel() for weight in writer.parameters()):,} weights"
    )
    orders = find_orders(encoding.columns, codes)
    if orders:
        say(f"orders that every row keeps: {told(orders)}; a sampled row that breaks one is drawn again")
    begun.schema.save(run.path / SCHEMA)
    write_json(run.path / SOURCE, source.json())
    write_json(run.path / ENCODING, encoding.settings())
    held = codes[split(codes, learning.settings.validation, seed=learning.seed)[1]][:looked_at]

    def quality(model: Any, epoch: int) -> dict[str, float]:
        return look(model, encoding, held, seed=derive(learning.seed, "look", epoch))

    report = fit_rows(
        writer, codes, learning.settings, run, seed=learning.seed, minutes=learning.minutes, quality=quality
    )
    if begun.tokenizer is not None:
        begun.tokenizer.save_pretrained(run.model)
    share = unmasked_share(load_model(run.model, encoding), encoding, unmasked, seed=derive(learning.seed, "unmasked"))
    report |= {UNMASKED_SHARE: share, "unmasked_rows": unmasked}
    report["split"] = {"seed": learning.seed, "share": learning.settings.validation}
    report[ORDERS] = recorded(orders)
    write_json(run.path / FIT, report)
    return report


def _text_model(
    schema: Schema, train: pd.DataFrame, order: Sequence[int] | None, learning: Learning
) -> tuple[Policy, Sentence]:
    """What writes rows as sentences: a pretrained model, or a small one with a tokenizer made of the rows."""
    if learning.model is not None:
        policy = load_policy(learning.model, quiet=False)
        width = policy.model.get_output_embeddings().weight.shape[0]
        encoding = Sentence(
            schema.written, policy.tokenizer, order=order, any_order=learning.any_order, vocabulary=width
        )
        check_length(policy.model, encoding.longest + 1, "use --encoding compact, or leave columns out")
        return policy, encoding
    names = [column.name for column in schema.written]
    rows = train[names].to_numpy(dtype=object)[:TOKENIZED_ROWS].tolist()
    texts = [", ".join(f"{name} is {cell}" for name, cell in zip(names, row, strict=True)) for row in rows]
    tokenizer = new_tokenizer(texts, vocabulary=SENTENCE_VOCABULARY)
    encoding = Sentence(schema.written, tokenizer, order=order, any_order=learning.any_order)
    shape = learning.settings
    base = Base(layers=shape.layers, width=shape.width, heads=shape.heads)
    seed = derive(learning.seed, "weights")
    return new_model(tokenizer, base, positions=encoding.longest + 1, seed=seed), encoding


def parted(rows: int, holdout: float, *, seed: int) -> tuple[Int[np.ndarray, " row"], Int[np.ndarray, " row"]]:
    """Which rows are learned from, and which held out: by chance, each side in the order of the table. At least two are
    learned from, and one is held out where any is to be and there are three.

    >>> [side.tolist() for side in parted(5, 0.4, seed=0)]
    [[0, 1, 4], [2, 3]]
    """
    held = min(max(rows - 2, 0), max(1, round(holdout * rows))) if holdout else 0
    order = np.random.Generator(np.random.Philox(derive(seed, "holdout"))).permutation(rows)
    return np.sort(order[held:]), np.sort(order[:held])


def shortage(drawn: Drawn) -> str | None:
    """What to say where the candidates were too few."""
    if drawn.enough or drawn.effective is None or not drawn.repeats:
        return None
    broken = f", {drawn.broken:,} of which break an order," if drawn.broken else ""
    return (
        f"the conditions are rare, or hard to foresee where a row begins: {drawn.candidates:,} candidates{broken} have "
        f"an effective sample size of {drawn.effective:,.0f}, and {drawn.repeats:,} of {len(drawn.codes):,} rows "
        "repeat another; ask for fewer rows, or fit with these columns --first, or with --any-order"
    )


def _order(schema: Schema, first: Sequence[str]) -> list[int]:
    """In which order columns are written: these, or the target, before all others."""
    names = [column.name for column in schema.written]
    ahead = list(first) or ([schema.target] if schema.target in names else [])
    if len(set(ahead)) < len(ahead):
        raise ConfigError(f"first = {', '.join(ahead)}: a column stands twice; name each once")
    for name in ahead:
        column = find(str(name), schema.columns)
        if not column.written:
            raise ConfigError(f'first: "{name}" is of the kind {column.kind}, which the model does not write')
    return [names.index(str(name)) for name in ahead] + [place for place, name in enumerate(names) if name not in ahead]


def _fillable(column: Column, may: Legal) -> Legal:
    """What may be filled in for a missing cell: anything but a mark of missing values, where there is anything."""
    return found if count(found := present(column) & may) else may


def _with_types(source: Source, empty: pd.DataFrame, fitted: Source) -> Source:
    """A frame's types, but of columns that were empty (as text, filled in), those of the table that was learned."""
    if fitted.format == "csv" and len(empty.columns):
        fitted = from_frame(to_frame(empty, fitted))[1]
    before = {str(column.name): column for column in fitted.columns if str(column.name) in empty.columns}
    columns = tuple(
        replace(before.get(str(column.name), column), name=column.name, missing=column.missing)
        for column in source.columns
    )
    return replace(source, columns=columns)


def _kept(fitted: Fitted, orders: Orders) -> Sequence[Order]:
    """The orders that rows are to keep."""
    if orders not in get_args(Orders):
        raise ConfigError(f"orders = {orders}: give one of {', '.join(get_args(Orders))}")
    return fitted.orders if orders == "keep" else ()


def _said_of(cells: int, found: Imputed) -> str:
    said = f"{cells:,} cells filled in"
    if found.effective:
        said += (
            f"; in {len(found.effective):,} rows by weighing {found.candidates} candidates, of an effective sample "
            f"size of {np.mean(found.effective):.0f} in the mean and {min(found.effective):.1f} at worst"
        )
    else:
        said += ", all exactly"
    if found.broken:
        said += f"; {found.broken:,} rows break an order: their known cells leave no way, or hardly one, to keep it"
    return said
