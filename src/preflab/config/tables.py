"""What the `table` commands are told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt
from tyro.conf import Positional, UseAppendAction, arg

from preflab.config.alignment import Aligned
from preflab.config.row_model import RowModel
from preflab.config.training import Positive, Seed

Rows = Annotated[Positive, arg(aliases=("-n",))]
Texts = UseAppendAction[tuple[str, ...]]
"""A flag that is given once for each of its values."""


@dataclass(frozen=True, kw_only=True)
class TableFit:
    """Fit a language model that writes rows like those of a table, on a part of it; the rest is held out."""

    data: Positional[Path]
    """CSV (.csv, .tsv) with a header, or Parquet."""
    out: Path
    """The run folder. A run that was stopped goes on where it stands; a folder with other settings is refused."""
    target: str | None = None
    """The column that others are to predict: it comes first in a row, so that a condition on it is exact."""
    holdout: Annotated[float, Ge(0), Lt(1)] = 0.2
    """Share of the rows that nothing learns from, for `preflab table score`, in [0, 1); drawn at random."""
    seed: Seed = 0
    """Determines split, weights and order of the rows."""
    encoding: Literal["compact", "text"] = "compact"
    """How a row becomes tokens. compact: a small vocabulary made from the table, for a small model from scratch; text:
    sentences (column is value, …) in the tokens of a pretrained model's tokenizer."""
    model: str | None = None
    """Of the text encoding: a folder in the Hugging Face format or a name on the Hub, say gpt2; none: a small model
    from scratch, with a tokenizer made of the rows."""
    any_order: bool = False
    """Learn rows in every order of their columns: conditions on any columns are then exact, and so is imputation, for
    some likelihood."""
    first: tuple[str, ...] = ()
    """Columns that come first in a row, in this order; conditions on them are exact, or cheaper. None: the target."""
    columns: tuple[str, ...] = ()
    """What columns hold, where the file says too little: NAME=KIND, with integer, decimal, category, boolean, datetime
    or identifier as kind."""
    codes: tuple[str, ...] = ()
    """Cells of a column of numbers that are no numbers, such as special codes: NAME=-9,-8,-7."""
    minutes: Annotated[float, Gt(0)] | None = None
    """Wall-clock minutes that fitting may take, > 0; none: until the held-out likelihood stops rising."""
    fit: RowModel = field(default_factory=RowModel)
    """The model and how it learns."""

    def misfit(self) -> str | None:
        """What does not fit together, or None."""
        if self.encoding == "compact" and self.model is not None:
            return f"model = {self.model} has no effect with encoding = compact; add --encoding text, or leave it out"
        return None


@dataclass(frozen=True, kw_only=True)
class TableAlign(Aligned):
    """Train a fitted model of rows further, on what discriminators say of its rows; the result is one more policy."""

    run: Positional[Path]
    """The run folder of `preflab table fit`."""


@dataclass(frozen=True, kw_only=True)
class TableSample:
    """Sample rows from a fitted table: as many as asked for, all legal, under conditions."""

    run: Positional[Path]
    """The run folder of `preflab table fit`."""
    out: Path
    """The file to write: .csv, .tsv or .parquet; a file that is there is not overwritten."""
    rows: Rows
    """How many rows."""
    where: Texts = ()
    """A condition: COLUMN=VALUE, !=, >=, <=, > or <; COLUMN=A|B for any of several, COLUMN= for a missing value. Can be
    given again; all must hold."""
    seed: Seed = 0
    """Determines the rows."""
    policy: str | None = None
    """Which model writes: reference, as it was fitted, or one that `preflab table align` made, by its method, such as
    ppo. None: the one that was aligned last, or the reference where none was."""
    orders: Literal["keep", "ignore"] = "keep"
    """keep: a row that breaks an order which every training row keeps, say opened ≤ closed, is drawn again; ignore:
    rows are as the model writes them."""
    spreadsheet_safe: bool = False
    """Put an apostrophe before cells that a spreadsheet would run as a formula. The file is then no exact copy of the
    cells any more."""
    unmasked: bool = False
    """Also sample without the mask that holds the model to legal rows, and print which share of these is legal."""
