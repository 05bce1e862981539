"""What the docs name is there: links, files, tests, and the default of every setting in their tables."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from preflab.config.commands import TrainDPO, TrainPPO, TrainReward, TrainSFT
from preflab.config.load import flatten, to_values

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
GIVEN = {"model": "m", "data": Path("d"), "out": Path("o")}
COMMANDS = {
    "sft.md": [TrainSFT(**GIVEN)],
    "reward-model.md": [TrainReward(**GIVEN)],
    "dpo.md": [TrainDPO(**GIVEN)],
    "ppo.md": [TrainPPO(reward="r", **GIVEN)],
    "configuration.md": [TrainSFT(**GIVEN), TrainReward(**GIVEN), TrainDPO(**GIVEN)],
}


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text(encoding="utf-8")):
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path, test in re.findall(r"`((?:src|tests)/[\w/.-]+)(?:::(\w+))?`", text):
        assert (ROOT / path).exists(), path
        assert not test or f"def {test}(" in (ROOT / path).read_text(encoding="utf-8"), f"{path}::{test}"


@pytest.mark.parametrize("name", COMMANDS)
def test_defaults_in_tables_are_those_of_the_code(name: str) -> None:
    page = next(page for page in PAGES if page.name == name)
    tables = re.findall(
        r"^\| setting \| unit \| default \|.*\n(?:\|.*\n)+", page.read_text(encoding="utf-8"), re.MULTILINE
    )
    rows = re.findall(r"^\| `([a-z_.]+)` \| [^|]* \| ([^|]+) \|", "".join(tables), re.MULTILINE)
    assert len(rows) > 5
    for setting, shown in rows:
        if shown not in ("required", "by method"):
            for command in COMMANDS[name]:
                value = flatten(to_values(command))[setting]
                assert shown == (str(value).lower() if isinstance(value, bool) else str(value)), setting
