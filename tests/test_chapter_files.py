"""The files of a report: numbers as they are in CSV, pictures as pixels, and only what a report made is removed."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from preflab.errors import NumericError
from preflab.report import Report, redraw, write_report
from preflab.report.cells import as_csv, as_json, lines, written
from preflab.report.chapter import Column, Form, Sheet
from preflab.report.content import refuse_twice
from preflab.report.files import write_files
from preflab.report.statistics import Estimate
from preflab.report.study import Arm
from preflab.report.svg import Picture, sheet, to_svg
from study_folder import REFERENCE, usual_arms, write_study

ARM = Arm("dpo@loss.beta=0.05", "dpo", "DPO, β 0.05", True, False, "", {}, (), "dpo", {"loss.beta": 0.05})
TABLE = Sheet(
    "gains",
    (
        Column("Arm", "arm"),
        Column("Gain"),
        Column("Share", "percent"),
        Column("Time", "seconds"),
        Column("Note", "text"),
    ),
    (
        (ARM, Estimate(1.25, -0.5, 3.0), 0.034, 75.5, "=1+1"),
        (ARM, None, Estimate(0.5, 0.25, 0.754), None, 'a "b", c\n+d'),
        (ARM, 2.0, 1.0, 7300.0, ""),
    ),
    "Higher is better.",
)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(write_study(tmp_path_factory.mktemp("drawn"), usual_arms()[:3], prompts=20))


# --- tables ---


def test_a_table_is_written_for_people() -> None:
    first, second, third = ([cell.line for cell in row] for row in lines(TABLE))
    assert first == ["DPO, β 0.05 (oracle)", "1.25 [−0.50, 3.00]", "3.4 %", "76 s", "=1+1"]
    assert second[1:4] == ["–", "50 % [25, 75]", "–"]
    assert third[1:4] == ["2.00", "100 %", "2 h 2 min"]


@pytest.mark.parametrize(
    ("value", "form", "text"),
    [
        (0.05, "setting", "0.05"),
        (5.0, "setting", "5"),
        (Estimate(102.0, 90.08, 116.2), "number", "102 [90, 116]"),
        (Estimate(99.5, 90.08, 116.2), "number", "99.50 [90.08, 116.20]"),
        (Estimate(12.0, 0.5, 101.5), "figure", "12.00 [0.50, 101.50]"),
        (Estimate(0.09, 0.02, 1.0), "percent", "9.0 % [2.0, 100.0]"),
    ],
)
def test_a_cell_has_the_digits_of_its_mean(value: float | Estimate, form: Form, text: str) -> None:
    assert written(value, Column("", form)).line == text


def test_a_table_is_written_for_programs() -> None:
    """Three columns an interval, figures unrounded, arms by name, and no text that a spreadsheet would run."""
    heads, *rows = csv.reader(io.StringIO(as_csv(TABLE)))
    assert heads == [
        "Arm", "Gain", "Gain, low", "Gain, high", "Share (fraction)", "Share (fraction), low", "Share (fraction), high",
        "Time (seconds)", "Note",
    ]  # fmt: skip
    assert rows == [
        ["dpo@loss.beta=0.05", "1.25", "-0.5", "3", "0.034", "", "", "75.5", "'=1+1"],
        ["dpo@loss.beta=0.05", "", "", "", "0.5", "0.25", "0.754", "", 'a "b", c\n+d'],
        ["dpo@loss.beta=0.05", "2", "", "", "1", "", "", "7300", ""],
    ]
    first = as_json(TABLE)["rows"][0]
    assert first[:2] == ["dpo@loss.beta=0.05", {"mean": 1.25, "low": -0.5, "high": 3.0}]
    assert json.loads(json.dumps(as_json(TABLE), allow_nan=False)) == as_json(TABLE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Estimate(0.0, float("-inf"), 1.0)])
def test_what_is_not_finite_is_refused_by_name(value: float | Estimate) -> None:
    odd = Sheet("odd", (Column("Gain"),), ((value,),), "")
    for write in (lines, as_csv, as_json):
        with pytest.raises(NumericError, match="table odd, Gain: "):
            write(odd)  # type: ignore[operator]


def test_intervals_are_drawn_on_one_axis() -> None:
    rows = tuple((Estimate(mean, mean - 1, mean + 1),) for mean in (0.0, 8.0))
    drawn = [row[0].whisker for row in lines(Sheet("a", (Column("x", drawn=True),), rows, ""))]
    assert [(w.low, w.mean, w.high) for w in drawn if w] == [
        pytest.approx((4.0, 4 + 9.2, 4 + 18.4)), pytest.approx((96 - 18.4, 96 - 9.2, 96.0))
    ]  # fmt: skip


# --- what lies in the folder ---


def test_every_table_and_figure_has_its_files(drawn: Report) -> None:
    folder = drawn.path.parent
    names = {drawing.picture.name for drawing in drawn.content.drawings}
    made = {file.relative_to(folder).as_posix() for part in ("figures", "tables") for file in (folder / part).iterdir()}
    assert made == {f"figures/{name}.{kind}" for name in names for kind in ("svg", "png", "csv")} | {
        f"tables/{table.name}.csv" for table in drawn.content.sheets
    }
    content = json.loads((folder / "comparison.json").read_text())["chapters"]
    assert list(content) == [chapter.name for chapter in drawn.content.chapters]
    assert sum(len(chapter["tables"]) for chapter in content.values()) == len(drawn.content.sheets)
    assert content["verdicts"]["findings"][0]["about"] == "SFT or DPO"


def test_the_csv_of_results_is_that_of_the_summary(drawn: Report) -> None:
    folder = drawn.path.parent
    summary = json.loads((folder / "comparison.json").read_text())["summary"]
    rows = list(csv.DictReader((folder / "tables/results.csv").open(newline="")))
    assert [row["Arm"] for row in rows] == [row["name"] for row in summary]
    for row, expected in zip(rows, summary, strict=True):
        found = [float(row[f"Gold sentiment{end}"]) for end in ("", ", low", ", high")]
        assert found == list(expected["reward"].values())


def test_pixels_are_on_white_paper_and_the_same_each_time(drawn: Report) -> None:
    folder = drawn.path.parent / "figures"
    before = {file: file.read_bytes() for file in folder.iterdir()}
    with_alpha = Image.open(folder / "frontier.png").convert("RGBA")
    assert np.asarray(with_alpha)[..., 3].min() == 255
    image = with_alpha.convert("RGB")
    assert image.width > 1000
    assert image.getpixel((2, 2)) == (255, 255, 255)
    assert np.asarray(image).min() < 60
    write_report(drawn.path.parent)
    assert {file: file.read_bytes() for file in folder.iterdir()} == before


def test_only_what_a_report_made_is_removed(tmp_path: Path) -> None:
    folder = write_study(tmp_path, usual_arms()[:3], prompts=12)
    write_report(folder)
    mine = folder / "figures/mine.svg"
    mine.write_text("drawn by hand")
    changed = folder / "figures/proxy.csv"
    changed.write_text("changed since")
    arms = [replace(arm, proxy=None) for arm in usual_arms()[:3]]
    report = write_report(write_study(tmp_path, arms, prompts=12))
    assert "proxy" not in [drawing.picture.name for drawing in report.content.drawings]
    assert not (folder / "figures/proxy.svg").exists()
    assert not (folder / "figures/proxy.png").exists()
    assert mine.read_text() == "drawn by hand"
    assert changed.read_text() == "changed since"
    assert (folder / "figures/frontier.png").exists()


def test_nothing_outside_figures_and_tables_is_written_or_removed(tmp_path: Path) -> None:
    victim = tmp_path / "study.json"
    victim.write_text("{}")
    digest = "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    (tmp_path / ".report.json").write_text(json.dumps({"study.json": digest, "figures/../study.json": digest}))
    write_files(tmp_path, {})
    assert victim.exists()
    for name in ("../a.svg", "figures/../a.svg", "figures/a b.svg", "tables/a.svg", "figures/.svg"):
        with pytest.raises(ValueError, match="is no file of a report"):
            write_files(tmp_path, {name: b""})


def test_two_tables_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="two tables are called a; rename one"):
        refuse_twice("tables", ["a", "b", "a"])


# --- pictures ---


def test_a_picture_stands_twice_in_a_page_with_one_set_of_ids() -> None:
    figure, axes = sheet(2, 2)
    axes.plot([0, 1], [0, 1])
    picture = Picture("line", "", "", to_svg(figure, "line", "a line > b"))
    ids = re.findall(r'\bid="([^"]+)"', picture.inline)
    assert len(ids) == len(set(ids)) > 3
    assert not re.findall(r'\bid="', picture.again)
    (target,) = re.findall(r'href="#([^"]+)"', picture.again)
    assert target in ids
    assert not set(ids) & set(re.findall(r'\bid="([^"]+)"', picture.apart("other")))
    assert set(re.findall(r'(?:url\(#|href="#)([^")]+)', picture.apart("other"))) <= set(
        re.findall(r'\bid="([^"]+)"', picture.apart("other"))
    )


def test_colours_of_arms_follow_the_paper_in_the_page_alone(drawn: Report) -> None:
    """A page may lighten them on dark paper; a file is read by programs that know no variables."""
    picture = next(d.picture for d in drawn.content.drawings if d.picture.name == "frontier")
    assert "var(--colour-0, #0072b2)" in picture.inline.lower()
    assert "var(" not in picture.file


# --- the page ---


class Text(HTMLParser):
    """Tags and attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_every_figure_and_table_says_how_to_read_it_and_links_to_its_data(drawn: Report) -> None:
    html = drawn.path.read_text()
    content = drawn.content
    assert content.main
    assert html.count("How to read this.") == len(content.drawings) + 1 + len(content.sheets)
    for name in [f"figures/{d.picture.name}.{kind}" for d in content.drawings for kind in ("svg", "png", "csv")]:
        assert f'href="{name}"' in html
    assert all(f'href="tables/{table.name}.csv"' in html for table in content.sheets)
    assert all(drawing.picture.reading for drawing in content.drawings)
    assert all(table.reading for table in content.sheets)


def test_the_contents_lead_to_every_chapter(drawn: Report) -> None:
    elements = Text(drawn.path.read_text()).elements
    ids = {attributes.get("id") for _, attributes in elements}
    links = [str(a["href"])[1:] for tag, a in elements if tag == "a" and str(a.get("href")).startswith("#")]
    assert links == [chapter.name for chapter in drawn.content.chapters]
    assert set(links) <= ids


def test_without_its_script_the_page_hides_nothing_but_the_search(drawn: Report) -> None:
    hidden = [(tag, a.get("class")) for tag, a in Text(drawn.path.read_text()).elements if "hidden" in a]
    assert set(hidden) == {("label", "search")}


# --- a notebook ---


def test_a_notebook_shows_summary_table_and_picture_without_script_or_leak(drawn: Report) -> None:
    html = redraw(drawn.path.parent)._repr_html_()
    elements = Text(html).elements
    assert not {tag for tag, _ in elements} & {"script", "link", "img", "iframe", "html", "body"}
    assert drawn.summary.split(".")[0] in html
    assert html.count("<td>") == 3 * 6
    assert [a["aria-label"] for tag, a in elements if tag == "svg"] == ["gold sentiment against KL, one curve per arm"]
    (style,) = re.findall(r"<style>(.*?)</style>", html, flags=re.DOTALL)
    for selectors in re.findall(r"([^{}]+)\{", style):
        assert all(one.strip().startswith(".preflab-view") for one in selectors.split(","))
    ids = [a["id"] for _, a in elements if "id" in a]
    assert ids
    assert all(str(one).startswith("preflab-") for one in ids)


def test_a_notebook_shows_a_study_that_has_only_begun(tmp_path: Path) -> None:
    arms = [replace(REFERENCE, evaluated=False, label="<b>Reference</b>")]
    html = write_report(write_study(tmp_path, arms, complete=False))._repr_html_()
    assert "Incomplete:" in html
    assert "<b>" not in html
