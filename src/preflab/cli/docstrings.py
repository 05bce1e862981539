"""Docstrings of preflab as data, read from the source: importing a loss would import torch."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from dataclasses import dataclass, field, is_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

import preflab

ROOT = Path(preflab.__file__).parent
# "Rafailov et al. 2023, arXiv 2305.18290, Eq. 7", "Schulman et al. 2017 (arXiv 1707.06347)", "arXiv 2503.14476, Eq. 8".
_CITATION = re.compile(
    r"(?:(?P<who>[A-Z]['’\w]+(?: and [A-Z]\w+| et al\.)? \d{4})(?:, | \())?"
    r"arXiv (?P<id>\d{4}\.\d{5})"
    r"(?P<where>, (?:Eq\. |detail |§)\d[.\d]*(?<!\.))?"
)


@dataclass(frozen=True)
class Place:
    """Where a docstring stands."""

    file: str
    """Under `src/preflab/`."""
    name: str = ""
    """Of a function or class; "" is the file itself."""

    def __str__(self) -> str:
        return f"src/preflab/{self.file}" + (f": {self.name}" if self.name else "")


@dataclass(frozen=True)
class Paragraph:
    """A piece of a docstring."""

    text: str
    """Prose on one line; formulas and tables keep their lines."""
    kind: str = "prose"
    """prose, formula or table."""


@dataclass(frozen=True)
class Docstring:
    """What a docstring says, its errors and examples apart."""

    title: str
    """The first paragraph."""
    paragraphs: tuple[Paragraph, ...] = ()
    """The rest, up to the arguments."""
    arguments: dict[str, str] = field(default_factory=dict)
    """Name, or names joined by commas → meaning."""

    @property
    def formula(self) -> str:
        """The formulas alone."""
        return "\n".join(paragraph.text for paragraph in self.paragraphs if paragraph.kind == "formula")

    @property
    def citations(self) -> dict[str, str]:
        """arXiv id → who wrote it and where it says so, in the order in which the text names them."""
        prose = [paragraph.text for paragraph in self.paragraphs if paragraph.kind == "prose"]
        found: dict[str, str] = {}
        for match in _CITATION.finditer("\n".join([self.title, *prose, *self.arguments.values()])):
            found.setdefault(match["id"], f"{match['who'] or ''}{match['where'] or ''}".removeprefix(", "))
        return found


def read(place: Place) -> Docstring:
    """The docstring at a place.

    >>> read(Place("losses/preference.py", "hinge")).formula
    'loss = max(0, 1 − β·h)'
    >>> list(read(Place("losses/preference.py", "hinge")).citations.items())
    [('2309.06657', 'Liu et al. 2023')]
    """
    tree = _source(ROOT / place.file)
    node: ast.Module | ast.ClassDef | ast.FunctionDef = tree
    if place.name:
        kinds = ast.ClassDef | ast.FunctionDef
        node = next(node for node in tree.body if isinstance(node, kinds) and node.name == place.name)
    return parse(ast.get_docstring(node) or "")


def parse(text: str) -> Docstring:
    """A docstring's parts.

    >>> parse('''Area (Euclid).
    ...
    ...     a·b
    ...
    ... Of a rectangle
    ... alone.
    ...
    ... Args:
    ...     a, b: the sides,
    ...         in metres.
    ...
    ... >>> 2 * 3
    ... 6
    ... ''').arguments
    {'a, b': 'the sides, in metres.'}
    """
    title, *rest = re.split(r"\n\s*\n", text.strip())
    paragraphs: list[Paragraph] = []
    arguments: dict[str, str] = {}
    for part in rest:
        if part.startswith("Args:"):
            arguments = _arguments(part)
        elif part.startswith("    "):
            paragraphs.append(Paragraph(textwrap.dedent(part), "formula"))
        elif part.startswith("|"):
            paragraphs.append(Paragraph(part, "table"))
        elif not part.startswith(("Raises:", ">>>")):
            paragraphs.append(Paragraph(_one_line(part)))
    return Docstring(_one_line(title), tuple(paragraphs), arguments)


def of_fields(cls: type) -> dict[str, str]:
    """The docstring of each field of a dataclass, inherited ones included.

    >>> from preflab.config.pair_losses import IPOLoss
    >>> of_fields(IPOLoss)["tau"]
    'τ > 0: the margin h stops at 1/(2τ) nats where labels are certain. Usual 0.01 to 1.'
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        if is_dataclass(base):
            found |= own_fields(base)
    return found


def own_fields(cls: type) -> dict[str, str]:
    """The docstring of each field that a dataclass itself declares."""
    tree = _source(Path(str(inspect.getsourcefile(cls))))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls.__name__)
    found: dict[str, str] = {}
    for declared, said in pairwise(body):
        match declared, said:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = _one_line(text)
    return found


def _arguments(part: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=    \S)", part)[1:]:
        names, _, meaning = entry.partition(":")
        found[names.strip()] = _one_line(meaning)
    return found


def _one_line(text: str) -> str:
    return " ".join(text.split())


@cache
def _source(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))
