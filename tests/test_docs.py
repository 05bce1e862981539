"""What the docs say is so: links, files, tests, defaults, logged keys, commands; and nothing is left out."""

from __future__ import annotations

import re
import shlex
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from preflab.cli.flags import parse
from preflab.cli.main import COMMANDS, command_of
from preflab.cli.metrics import logged_by
from preflab.config import commands
from preflab.config.alignment import METHODS as ALIGNED
from preflab.config.alignment import Aligned, Alignment
from preflab.config.load import flatten, to_values
from preflab.config.table_study import TableStudy

ROOT = Path(__file__).parent.parent
INDEXES = [ROOT / name for name in ("README.md", "docs/README.md", "docs/methods/README.md")]
METHODS = sorted(page for page in (ROOT / "docs/methods").glob("*.md") if page not in INDEXES)
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").rglob("*.md")
)
TRAINED = [name.removeprefix("train ") for name in COMMANDS if name.startswith("train ")]
SECTIONS = ("Objective", "When to use", "Command", "Settings", "What is logged", "Traps", "In the code", "Measured")
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
every_method_page = pytest.mark.parametrize("page", METHODS, ids=lambda page: page.stem)


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[tuple[Path, str]]:
    """Where a page's links to files lead: (file, anchor)."""
    found = [target.partition("#") for target in re.findall(r"\]\((?!https?:)([^)]+)\)", text(page))]
    return [((page.parent / name).resolve() if name else page, anchor) for name, _, anchor in found]


def command_lines(page: Path) -> list[str]:
    """The lines of its code blocks that call preflab."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text(page), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("preflab ")]


def methods_of(page: Path) -> list[str]:
    """The methods that a page is about: those whose command it shows."""
    return re.findall(r"^preflab train ([\w-]+)", "\n".join(command_lines(page)), re.M)


def section(page: Path, heading: str) -> str:
    found = re.search(rf"^## {heading}\n(.*?)(?=^## |\Z)", text(page), re.M | re.S)
    return found[1] if found else ""


def tables(page: Path, head: str) -> list[list[str]]:
    """The cells of each row of the tables whose first row begins like this."""
    found = re.findall(rf"^(\| {head}.*\n(?:\|.*\n?)+)", text(page), re.M)
    rows = (re.split(r"(?<!\\)\|", line)[1:-1] for table in found for line in table.splitlines())
    return [[cell.strip() for cell in row] for row in rows if not row[0].startswith("---")]


def settings(method: str) -> Any:
    """What `preflab train METHOD` starts from."""
    cls = getattr(commands, COMMANDS[f"train {method}"].config)
    reward = {"reward": "r"} if issubclass(cls, commands.RunOnline) else {}
    return cls(model="m", data=Path("d"), out=Path("o"), **reward)


def shown(value: object) -> str:
    """A default as tables have it."""
    return "none" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def told(page: Path) -> set[str]:
    """The settings that a page's tables explain, with the method where a table names it: "dpo loss.beta"."""
    rows = tables(page, r"setting \| unit \| default") + tables(page, r"setting \| `")
    names = {row[0].strip("`") for row in rows if row[0].startswith("`")}
    return names | {f"{method} {name}".replace("`", "") for method, name, *_ in tables(page, r"method \| setting")}


def wrong_defaults(page: Path, methods: list[str]) -> list[str]:
    """Rows whose default is not the code's: of tables that hold for all methods, name one in each row, or in each
    column."""
    rows = [(method, *row[:3]) for row in tables(page, r"setting \| unit \| default") for method in methods]
    rows += [(row[0].strip("`"), *row[1:4]) for row in tables(page, r"method \| setting \| unit \| default")]
    heads: list[str] = []
    for name, *cells, _ in tables(page, r"setting \| `"):
        if name == "setting":
            heads = [cell.strip("`") for cell in cells]
        else:
            rows += [(method, name, "", default) for method, default in zip(heads, cells, strict=True)]
    values = {method: flatten(to_values(settings(method), idle=True)) for method in methods}
    return [
        f"{method} {name}: {default}"
        for method, name, _, default in rows
        if name.startswith("`") and default not in ("required", "by method")
        if default != shown(values[method].get(name.strip("`"), "no such setting"))
    ]


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for linked, anchor in links(page):
        assert linked.exists(), linked
        assert not anchor or anchor in anchors(linked), f"{linked}#{anchor}"


def test_every_page_is_linked_from_the_readme_or_an_index() -> None:
    linked = {target for page in INDEXES for target, _ in links(page)}
    assert not [page for page in PAGES if page not in linked and page.parent != ROOT]


@every_page
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    for path, test in re.findall(r"`((?:src|tests|benchmarks)/[\w/.-]+)(?:::(\w+))?`", text(page)):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in text(ROOT / path), f"{path}::{test}"


@every_method_page
def test_functions_that_are_named_beside_a_file_are_in_it(page: Path) -> None:
    """`src/…/x.py` (`f`, `g`)."""
    for path, names in re.findall(r"`(src/[\w/]+\.py)`\s\(((?:[^()]|\(\))*)\)", section(page, "In the code")):
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"(def|class) {name}\b|^{name} = ", text(ROOT / path), re.M), f"{path}: {name}"


@every_page
def test_commands_that_are_shown_parse(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the YAML that the page shows, if any, as study.yaml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "study.yaml").write_text("".join(re.findall(r"^```yaml\n(.*?)^```", text(page), re.M | re.S)))
    for line in command_lines(page):
        words = shlex.split(line, comments=True)[1:]
        name = command_of(words)
        parse(name, COMMANDS[name].config, words[len(name.split()) :])


def test_each_method_has_exactly_one_page() -> None:
    assert sorted(chain.from_iterable(set(methods_of(page)) for page in METHODS)) == sorted(TRAINED)


def test_the_readme_and_the_index_name_every_method() -> None:
    for page in (ROOT / "README.md", ROOT / "docs/methods/README.md"):
        named = set(re.findall(r"`([\w-]+)`", text(page)))
        assert not set(TRAINED) - named, page.name


@every_method_page
def test_pages_have_the_same_sections(page: Path) -> None:
    headings = re.findall(r"^## (.+)$", text(page), re.M)
    assert [heading for heading in headings if heading in SECTIONS] == list(SECTIONS)
    assert any(heading.startswith("Departures") for heading in headings)


@pytest.mark.parametrize("page", [page for page in METHODS if methods_of(page)], ids=lambda page: page.stem)
def test_defaults_in_tables_are_those_of_the_code(page: Path) -> None:
    assert len(told(page)) > 5
    assert not wrong_defaults(page, methods_of(page))


def test_shared_defaults_are_those_of_the_code() -> None:
    on_data = [method for method in TRAINED if not isinstance(settings(method), commands.RunOnline)]
    assert len(on_data) > 20
    assert not wrong_defaults(ROOT / "docs/configuration.md", on_data)


def listed(value: object) -> str:
    """A default as tables have it; of lists, all of it."""
    return ", ".join(map(shown, value)) or "none" if isinstance(value, list) else shown(value)


@pytest.mark.parametrize(
    ("head", "config"), [("setting", Aligned()), ("setting of the study", TableStudy())], ids=["alignment", "study"]
)
def test_settings_of_alignments_are_those_of_the_code(head: str, config: object) -> None:
    rows = tables(ROOT / "docs/tables/alignment.md", rf"{head} \| unit \| default")[1:]
    values = flatten(to_values(config, idle=True))
    of_methods = {name for name in values if name.partition(".")[0] in ALIGNED}
    told_of = {name.strip("`"): default for name, _, default, _ in rows}
    assert told_of == {name: listed(value) for name, value in values.items() if name not in of_methods}


def test_the_table_of_presets_has_all_that_differs_from_the_methods_own_defaults() -> None:
    heads, *rows = tables(ROOT / "docs/tables/alignment.md", r"setting \| `")
    told_of: dict[str, dict[str, str]] = {method: {} for method in ALIGNED}
    for name, *cells in rows:
        for method, cell in zip(heads[1:], cells, strict=True):
            told_of[method.strip("`")][name.strip("`")] = cell
    for method, said in told_of.items():
        preset = getattr(Alignment(), method)
        values, own = (flatten(to_values(one, idle=True)) for one in (preset, type(preset)()))
        assert said == {name: shown(values[name]) if name in values else "–" for name in said}, method
        assert not {name for name in values if values[name] != own.get(name)} - set(said), method


@pytest.mark.parametrize("page", [page for page in METHODS if methods_of(page)], ids=lambda page: page.stem)
def test_every_setting_is_in_a_table(page: Path) -> None:
    known = told(page) | told(ROOT / "docs/configuration.md")
    for method in methods_of(page):
        values = flatten(to_values(settings(method), idle=True))
        names = {name.replace("value_optimizer.", "optimizer.") for name in values}
        parts = {name for name in names if re.fullmatch(r"loss\.\w+\.\w+", name)}  # of a sum: those of its losses
        assert not {name for name in names - parts if not {name, f"{method} {name}"} & known}, method


@pytest.mark.parametrize("page", [page for page in METHODS if methods_of(page)], ids=lambda page: page.stem)
def test_every_logged_key_is_explained_and_no_other(page: Path) -> None:
    """On the page, or on one that its section "What is logged" leads to."""
    logged = {
        metric.key for method in methods_of(page) for part in logged_by(settings(method)) for metric in part.metrics
    }
    said = section(page, "What is logged")
    beside = [target for target, anchor in links(page) if anchor == "what-is-logged" and target != page]
    explained = set(re.findall(r"`(\w+)`", said + "".join(section(other, "What is logged") for other in beside)))
    assert not logged - explained - {"step"}
    in_tables = set(chain.from_iterable(re.findall(r"`(\w+)`", row[0]) for row in tables(page, "key")))
    assert not in_tables - logged
