"""A table that was learned: its columns, how its rows become tokens, and the models that write them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import transformers
from jaxtyping import Bool, Float, Int

from preflab.errors import ConfigError, PreflabError, StorageError
from preflab.runs import JSON, read_json
from preflab.tables.column import Column
from preflab.tables.compact import Compact
from preflab.tables.conditions import Condition, legal_codes, of_values, read
from preflab.tables.draw import writable
from preflab.tables.encoding import Encoding, Legal
from preflab.tables.files import Source
from preflab.tables.judge.validity import Order
from preflab.tables.orders import asked_of, restored
from preflab.tables.schema import Schema, is_missing
from preflab.tables.sentence import Sentence

SCHEMA, SOURCE, ENCODING = "schema.json", "source.json", "encoding.json"
FIT = "fit.json"
"""The last file of a fit: where it is, the model is whole."""
UNMASKED_SHARE = "unmasked_valid_share"
ORDERS = "orders"
"""In the last file: pairs of columns low ≤ high, which every row keeps."""
REFERENCE = "reference"
"""The policy that was fitted; others are trained from it."""
ALIGNED = "aligned"
"""The folder of those,"""
ALIGN = "align.json"
"""and the last file of each: where it is, the policy is whole."""

Where = Mapping[str, Any] | Sequence[str]
"""Conditions: column → value as `conditions.of_values` has them, or texts as `conditions.read` has them."""


class Fitted:
    """A table's columns, how its rows become tokens, and the models that write them."""

    def __init__(
        self,
        folder: Path,
        schema: Schema,
        source: Source,
        encoding: Encoding,
        report: dict[str, Any],
        orders: tuple[Order, ...],
        tokenizer: Any,
    ) -> None:
        self.folder, self.schema, self.source, self.encoding, self.report = folder, schema, source, encoding, report
        self.tokenizer = tokenizer
        self.orders = orders
        """Those that every row that was learned from keeps."""
        self._models: dict[str, Any] = {}
        self._added: dict[str, Mapping[str, JSON]] = {}

    @classmethod
    def load(cls, folder: Path) -> Fitted:
        if not (folder / SCHEMA).exists():
            raise ConfigError(f"{folder} holds no fitted table (no {SCHEMA}); `preflab table fit` makes one")
        if not finished(folder):
            raise ConfigError(f"{folder}: the fit is not finished; run its `preflab table fit` command again to go on")
        schema = Schema.load(folder / SCHEMA)
        settings = read_json(folder / ENCODING)
        tokenizer = None
        try:
            if settings["kind"] == "sentence":
                tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "model")
                encoding: Encoding = Sentence.restored(schema.written, settings, tokenizer)
            else:
                encoding = Compact.restored(schema.written, settings)
        except (KeyError, TypeError, ValueError, OSError) as error:
            raise StorageError(f"{folder / ENCODING} is damaged ({error}); fit again") from None
        source, report = Source.from_json(read_json(folder / SOURCE)), read_json(folder / FIT)
        try:
            orders = restored(report.get(ORDERS, []), encoding.columns)
        except ValueError as error:
            raise StorageError(f"{folder / FIT} is damaged ({ORDERS}: {error}); fit again") from None
        return cls(folder, schema, source, encoding, report, orders, tokenizer)

    def policies(self) -> list[str]:
        """What `model` knows: no alignment that is under way, or was cut off."""
        aligned = {path.parent.name for path in self.folder.glob(f"{ALIGNED}/*/{ALIGN}")}
        return [REFERENCE, *sorted(aligned | set(self._added))]

    @property
    def latest(self) -> str:
        """The policy that was aligned last; the reference where none was."""
        return max(self.policies()[1:], key=lambda policy: float(self.said(policy)["finished_at"]), default=REFERENCE)

    def said(self, policy: str) -> Mapping[str, JSON]:
        """What `align.json` says of a policy that was aligned."""
        return self._added.get(policy) or dict(read_json(self.folder / ALIGNED / policy / ALIGN))

    def add(self, policy: str, model: Any, said: Mapping[str, JSON]) -> None:
        """One more policy, of an alignment that has no folder."""
        self._models[policy], self._added[policy] = model, said

    def model(self, policy: str) -> Any:
        """A causal language model, loaded once.

        Raises:
            ConfigError: there is none of that name, or its alignment did not come to its end.
            StorageError: it can't be read.
        """
        if policy not in self._models:
            if policy not in self.policies():
                if policy and (self.folder / ALIGNED / policy).is_dir():
                    raise ConfigError(
                        f"{self.folder}: the alignment {policy} is not finished; run its `preflab table align` command "
                        "again to go on"
                    )
                known = ", ".join(self.policies())
                raise ConfigError(f'{self.folder} holds no policy "{policy}"; there is: {known}')
            path = self.folder / ("model" if policy == REFERENCE else f"{ALIGNED}/{policy}/model")
            self._models[policy] = load_model(path, self.encoding)
        return self._models[policy]

    def legal(self, where: Where) -> dict[int, Legal]:
        """Conditions → places → codes, those that training rows hold where others can't be written."""
        conditions = self.conditions(where)
        found: dict[int, Legal] = {}
        by_name = {column.name: (place, may) for place, column, may in self.places()}
        for name, legal in legal_codes(conditions, self.schema.columns).items():
            place, may = by_name[name]
            found[place] = legal & may
            if not found[place]:
                said = " and ".join(f'"{one}"' for one in conditions if one.column == name)
                raise ConfigError(f"no training row meets {said}{self._nearest_seen(place, legal)}")
        return found

    def conditions(self, where: Where) -> list[Condition]:
        if isinstance(where, str):
            where = [where]
        if isinstance(where, Mapping):
            return of_values(where, self.schema.columns)
        return [read(text, self.schema.columns) for text in where]

    def places(self) -> list[tuple[int, Column, Legal]]:
        """Each column that is written, with the codes that can be."""
        return list(zip(range(len(self.encoding.columns)), self.encoding.columns, writable(self.encoding), strict=True))

    def context(
        self, frame: pd.DataFrame, asked: pd.DataFrame | None
    ) -> tuple[Int[np.ndarray, "row column"], Bool[np.ndarray, "row column"], Bool[np.ndarray, "row column"]]:
        """Codes of a text frame, which of them are unknown to the model, and which cells are to be drawn."""
        self.schema.codes(frame.iloc[:0])  # says which columns are missing or unknown
        shape = (len(frame), len(self.encoding.columns))
        codes, unknown, drawn = np.zeros(shape, np.int64), np.zeros(shape, bool), np.zeros(shape, bool)
        for place, column, may in self.places():
            of_row, distinct = pd.factorize(frame[column.name].to_numpy(dtype=object))
            known = [_nearest_code(column, may, text) for text in distinct.tolist()]
            codes[:, place] = np.array([0 if code is None else code for code in known], np.int64)[of_row]
            unknown[:, place] = np.array([code is None for code in known])[of_row]
            blank = np.array([_is_blank(column, text) for text in distinct.tolist()])[of_row]
            drawn[:, place] = blank if asked is None else asked[column.name].to_numpy()
        return codes, unknown | drawn, drawn

    def exact(
        self, frame: pd.DataFrame, known: Bool[np.ndarray, "row column"], orders: Sequence[Order]
    ) -> Float[np.ndarray, "row column"]:
        """The numbers of known cells, as they stand, in the columns of orders, where `context` has the nearest of the
        training rows; NaN: no number."""
        found = np.full(known.shape, np.nan)
        for place in asked_of(self.encoding.columns, orders):
            column = self.encoding.columns[place]
            of_row, distinct = pd.factorize(frame[column.name].to_numpy(dtype=object))
            values = np.array([column.exact(text) for text in distinct.tolist()], float)[of_row]
            found[:, place] = np.where(known[:, place], values, np.nan)
        return found

    def _nearest_seen(self, place: int, legal: Legal) -> str:
        numbers = self.encoding.columns[place].numbers
        if numbers is None or not numbers.seen or not legal.spans:
            return ""
        ends = [end for span in legal.spans for end in span]
        near = min(numbers.seen, key=lambda point: min(abs(point - end) for end in ends))
        return f"; the nearest value is {numbers.text(near)}"


def finished(folder: Path) -> bool:
    """Whether a fit came to its end."""
    return (folder / FIT).exists()


def load_model(path: Path, encoding: Encoding) -> Any:
    """A causal language model from a folder."""
    try:
        model = transformers.AutoModelForCausalLM.from_pretrained(path)
    except PreflabError:
        raise
    except Exception as error:  # safetensors and transformers raise classes of their own
        first = " ".join(str(error).split("\n")[0].split())[:200]
        raise StorageError(f"can't load the model in {path} ({first}); fit again") from None
    width = model.get_output_embeddings().weight.shape[0]
    if width != encoding.vocabulary:
        raise StorageError(f"{path} writes {width} tokens, the table's encoding has {encoding.vocabulary}; fit again")
    return model.eval()


def _is_blank(column: Column, text: str) -> bool:
    """Whether a cell has no value."""
    return text in column.missing or (text not in column.levels and is_missing(text))


def _nearest_code(column: Column, may: Legal, text: str) -> int | None:
    """What a cell says to the model; None: nothing."""
    try:
        code = column.code(text, nearest=True)
    except ValueError:
        return None
    if code < 0 or code in may:
        return code
    ends = [end for span in may.spans for end in span]
    return min(ends, key=lambda end: abs(end - code)) if ends else None
