"""The chapter on judged rows says what a score says, of whole scores and of broken ones, and escapes it all."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from preflab.cli.main import main
from preflab.errors import NumericError, StorageError
from preflab.report import TableReport, redraw, write_table_report
from preflab.report.score import Marginal, Score, read_score
from preflab.report.table import chapter, worst_last
from preflab.report.table_figures import associations, by_chance, marginals, shades, shortened
from preflab.report.table_verdict import copied, guessing, told_apart, trained_on
from score_folder import EVIDENCE, NOTES, Table, score, usual, write_fit, write_score

SECTIONS = (
    "Figures", "Each column on its own", "How columns go together", "Can a classifier tell them from real rows?",
    "Are they worth training on?", "Does it repeat its training rows?", "Could they be rows of this table?", "Rows",
    "Notes", "How it was made",
)  # fmt: skip


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> TableReport:
    folder = tmp_path_factory.mktemp("usual")
    write_fit(folder / "run")
    content = usual()
    content["files"]["train"]["path"] = "run/train.csv"
    content["rows_per_cpu_second"] = 1234.5
    return write_table_report(write_score(folder, content))


class Page(HTMLParser):
    """Headings, the cells of each table, elements and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.headings: list[str] = []
        self.text = ""
        self.in_table = False
        self.feed(html)

    def handle_endtag(self, tag: str) -> None:
        self.in_table &= tag != "table"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
            self.in_table = True
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        elif tag == "h2":
            self.headings.append("")

    def handle_data(self, data: str) -> None:
        self.text += data
        tag = self.elements[-1][0] if self.elements else ""
        if self.in_table and self.tables[-1] and self.tables[-1][-1]:
            self.tables[-1][-1][-1] += data.strip("\n")
        if tag == "h2" and not self.headings[-1]:
            self.headings[-1] = data


def small(columns: tuple[str, ...] = ("alcohol", "class"), **how: Any) -> dict[str, Any]:
    """A score of few columns, which is soon drawn."""
    return usual(columns, **how)


def read(folder: Path, change: Callable[[dict[str, Any]], object] = lambda content: None, **how: Any) -> Score:
    """A score as the report reads it, after a change to its file."""
    content = small(**how)
    change(content)
    return read_score(write_score(folder, content))


def set_figure(group: str, name: str, value: float | None, subject: int = 0) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content["subjects"][subject]["figures"][group][name] = value

    return change


# --- the page ---


def test_the_page_has_every_section_in_order_and_asks_nothing_of_the_network(drawn: TableReport) -> None:
    html = drawn.path.read_text()
    page = Page(html)
    assert [heading for heading in page.headings if heading != "How the model was fitted"] == list(SECTIONS)
    assert not [t for t, _ in page.elements if t in {"link", "img", "iframe", "object", "form", "base"}]
    targets = [a[k] or "" for _, a in page.elements for k in ("href", "src", "xlink:href") if k in a]
    assert all(t.startswith(("#", "figures/", "report.md", "score.json")) for t in targets)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {t[1:] for t in targets if t.startswith("#")} <= set(ids)
    assert not re.search(r"url\((?!#)|@import", html)
    assert all((drawn.path.parent / t).is_file() for t in targets if not t.startswith("#"))
    assert page.text.count(EVIDENCE) == 1
    assert html.count("How to read this: ") == len(drawn.chapter.pictures) == 6


def test_the_figures_are_those_of_the_score(drawn: TableReport) -> None:
    html = drawn.path.read_text()
    headline, every = Page(html).tables[:2]
    assert headline[0] == ["Figure", "these rows", "a second real sample", "independent columns", "Good"]
    lines = {line[0]: line[1:] for line in headline[1:]}
    assert lines["Quality (sdmetrics)"][0] == "0.988"
    assert lines["AUC of gradient boosting"][:3] == ["0.553", "0.492", "1.000"]
    assert lines["AUC, trained on these"] == ["0.772", "0.764", "0.505", "near 0.775, of real training rows"]
    assert lines["AUC lost next to real"] == ["0.003", "0.011", "0.270", "0 or less"]
    assert lines["Duplicates"][0] == "<0.1 %"
    assert lines["Copies of training rows"][0] == "0"
    assert lines["Rows that break a rule"] == ["5.1 %"] * 3 + ["near 3.0 %, of held-out rows"]
    assert len(every) > 2 * len(headline)
    made = Page(html).tables[-1]
    assert made[1:] == [
        ["train", "run/train.csv", "6,694", "a" * 64],
        ["holdout", "holdout.csv", "1,673", "b" * 64],
        ["synthetic", "synthetic.csv", "6,694", "c" * 64],
    ]
    assert "Sampled at 1,234 rows per CPU second." in html
    for line in NOTES:
        assert line in html


def test_pictures_are_files_that_parse_and_all_is_the_same_each_time(drawn: TableReport) -> None:
    folder = drawn.path.parent
    files = sorted((folder / "figures").glob("*.svg"))
    assert {file.stem for file in files} == {
        "associations", "detectability", "fit", "marginals", "privacy", "utility"
    }  # fmt: skip
    before = {file: file.read_bytes() for file in (*files, drawn.path, folder / "report.md")}
    for file in files:
        assert ElementTree.fromstring(before[file]).tag.endswith("svg")
        assert b"image" not in before[file].replace(b"image/svg", b"")
    redraw(folder)
    assert {file: file.read_bytes() for file in before} == before


def test_the_section_stands_alone(drawn: TableReport) -> None:
    section = drawn.chapter.html
    assert section in drawn.path.read_text()
    assert "<html" not in section
    assert Page(section).headings[0] == "Figures"


def test_pictures_name_their_figures(drawn: TableReport) -> None:
    texts = {p.name: Page(p.svg).text for p in drawn.chapter.pictures}
    assert "gradient boosting 0.553" in texts["detectability"]
    for expected in ("0.790", "0.787", "0.520", "macro F1", "trained on real rows", "on independent columns"):
        assert expected in texts["utility"], expected
    assert "malic_acid" in texts["marginals"]
    assert "-9" in texts["marginals"]
    assert "validation rows" in texts["fit"]


def test_markdown_has_the_same_figures_in_tables_that_are_whole(drawn: TableReport) -> None:
    text = (drawn.path.parent / "report.md").read_text()
    assert re.findall(r"^## (.*)$", text, re.M)[: len(SECTIONS) - 1] == list(SECTIONS[:-1])
    assert "| AUC of gradient boosting | 0.553 | 0.492 | 1.000 | near 0.5 |" in text
    assert "![Each column on its own](figures/marginals.svg)" in text
    assert "| random forest | 0.707 [0.710] | 0.708 [0.711] |" in text
    for block in re.split(r"\n\n", text):
        rows = [re.sub(r"\\\|", "", line).count("|") for line in block.splitlines() if line.startswith("|")]
        assert len(set(rows)) <= 1, block
        assert len(rows) in (0, len(block.splitlines())), block


def test_the_terminal_gets_the_headline_and_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["report", str(write_score(tmp_path, small(("class",), target=None)))])
    shown = " ".join(capsys.readouterr().out.split())
    assert "these rows" in shown
    assert "0.553" in shown
    assert "No training row was copied" in shown
    assert str(tmp_path / "report.html") in shown.replace(" ", "")


@pytest.mark.parametrize("regression", [False, True])
def test_the_table_of_figures_fits_a_terminal_of_80_columns(tmp_path: Path, regression: bool) -> None:
    content = small(("alcohol", "ash"), target="ash", regression=regression)
    content["subjects"][2]["figures"]["detectability"] = None
    content["subjects"][2]["title"] = "independent marginals"
    report = write_table_report(write_score(tmp_path, content))
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table())
    lines = [line.rstrip() for line in console.export_text().splitlines()]
    assert len(lines) == 2 + len(report.chapter.headline)
    assert lines[1].split() == ["figure", "these", "rows", "real", "sample", "marginals", "good"]
    told = next(line for line in lines if line.startswith("AUC of gradient boosting"))
    assert told.split()[4:] == ["0.553", "0.492", "–", "near", "0.5"]
    assert not [line for line in lines if "…" in line]


def test_dates_are_drawn_on_a_scale(tmp_path: Path) -> None:
    content = small()
    content["columns"].append({"name": "sent", "kind": "datetime"})
    content["pictures"]["marginals"] = [
        {"column": "sent", "edges": [18999.5, 19006.5, 19012.5], "real": [1, 1], "synthetic": [2, 0]}
    ]
    text = Page(chapter(write_score(tmp_path, content)).marginals.svg).text  # type: ignore[union-attr]
    assert "2022-01-08" in text  # the first day of the first bin, and the last one of the last
    assert "2022-01-20" in text


# --- rows ---


def test_rows_are_turned_and_long_cells_keep_their_whole_text(tmp_path: Path) -> None:
    content = small()
    content["pictures"]["rows"]["cells"][3][1] = "a long story, told twice"
    report = write_table_report(write_score(tmp_path, content))
    page = Page(report.path.read_text())
    table = next(table for table in page.tables if table[0] == ["", *map(str, range(1, 11))])
    assert [line[0] for line in table[1:]] == ["alcohol", "class"]
    assert table[1][1] == content["pictures"]["rows"]["cells"][0][0]
    assert table[2][4] == "a long story, told tw…"
    assert [a["title"] for t, a in page.elements if t == "td" and "title" in a] == ["a long story, told twice"]


# --- the summary, by its thresholds ---


def test_guessing_is_twice_the_spread_of_a_classifier_that_guesses() -> None:
    real, synthetic = np.random.default_rng(0).random((2, 2000, 60))
    aucs = (synthetic[:, :, None] > real[:, None, :]).mean((1, 2))  # the definition: who of a pair scores higher
    assert guessing(60) == pytest.approx(2 * np.std(aucs), rel=0.05)


@pytest.mark.parametrize(
    ("auc", "words"),
    [
        (0.515, "no better than guessing as far as 1,673 rows can show"),  # 0.5 + 2 √(3347 / (12 · 1673²)) = 0.51997
        (0.525, "a little better than guessing"),
        (0.601, "clearly better than guessing"),
        (0.76, "far better than guessing"),
        (0.91, "nearly always right"),
    ],
)
def test_how_well_a_classifier_tells_them_apart(tmp_path: Path, auc: float, words: str) -> None:
    sentence = told_apart(read(tmp_path, auc=auc))
    assert f"AUC {auc:.2f}, {words} (0.5: not at all; a second real sample 0.49, independent columns 1.00)" in sentence


def test_the_sharpest_classifier_speaks(tmp_path: Path) -> None:
    sentence = told_apart(read(tmp_path, set_figure("detectability", "logistic_auc", 0.7)))
    assert sentence.startswith("The best of 3 classifiers (logistic regression) tells these rows from real ones with")
    assert "AUC 0.70" in sentence


@pytest.mark.parametrize(
    ("lost", "words"),
    [(-0.01, "lose nothing on real rows: −0.010 ± 0.008 AUC (BOUNDS), 0.772 instead of 0.775."),
     (0.006, "lose no more than chance explains on real rows: 0.006 ± 0.008 AUC (BOUNDS), 0.772 instead of 0.775."),
     (0.009, "lose little on real rows: 0.009 ± 0.008 AUC"),
     (0.03, "lose some on real rows: 0.030 ± 0.008 AUC"), (0.2, "lose much on real rows: 0.200 ± 0.008 AUC")],
)  # fmt: skip
def test_what_models_lose(tmp_path: Path, lost: float, words: str) -> None:
    def change(content: dict[str, Any]) -> None:
        content["subjects"][0]["figures"]["utility"]["gap"]["auc"] = lost
        content["subjects"][0]["figures"]["utility"]["gap_error"] = {"auc": 0.004}
        content["subjects"][1]["figures"]["utility"]["gap"]["auc"] = -0.002

    words = words.replace("BOUNDS", "a second real sample −0.002, independent columns 0.270")
    assert f"Models trained on them {words}" in trained_on(read(tmp_path, change))


def test_what_real_rows_lose_among_themselves_is_chance(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        for subject, gap in zip(content["subjects"], (0.03, -0.031, 0.27), strict=True):
            subject["figures"]["utility"] |= {"gap": {"auc": gap}, "gap_error": {"auc": 0.004}}

    assert "lose no more than chance explains on real rows: 0.030 ± 0.008 AUC" in trained_on(read(tmp_path, change))


def test_a_gain_within_chance_is_not_called_no_loss(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["subjects"][0]["figures"]["utility"] |= {"gap": {"auc": -0.011}, "gap_error": {"auc": 0.028}}

    assert "lose no more than chance explains on real rows: −0.011 ± 0.056 AUC" in trained_on(read(tmp_path, change))


def test_few_readable_rows_show_little(tmp_path: Path) -> None:
    """0.58 is no sign with 60 readable rows, though the file has 6,694."""
    sentence = told_apart(read(tmp_path, set_figure("detectability", "rows", 60), auc=0.58))
    assert "no better than guessing as far as 60 rows can show" in sentence


def test_copies_are_counted_beside_those_of_a_second_real_sample(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["subjects"][0]["figures"]["privacy"] |= {"copies": 42, "copy_share": 0.0063}
        content["subjects"][1]["figures"]["privacy"] |= {"copies": 1, "copy_share": 0.0002}

    text = copied(read(tmp_path, change))
    assert text == "42 rows are copies of training rows (0.6 %; a second real sample <0.1 %)."


def test_a_memoriser_without_copies_is_told_by_its_distances(tmp_path: Path) -> None:
    text = copied(read(tmp_path, set_figure("privacy", "distance_share", 0.63)))
    assert "nearer to training rows" in text
    assert "distance share 0.63" in text
    assert "guarantee" not in text


def test_little_is_claimed_of_privacy_where_a_test_is_missing(tmp_path: Path) -> None:
    text = copied(read(tmp_path, set_figure("privacy", "membership_auc", None)))
    assert text == "No training row was copied; that is evidence and no guarantee."


# --- columns ---


def test_distance_of_a_column_is_the_share_of_rows_that_would_move(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["pictures"]["marginals"] = [
            {"column": "a", "labels": ["x", "y"], "edges": [0, 1, 2], "real": [1, 1, 1, 1], "synthetic": [4, 0, 2, 2]}
        ]

    marginal = read(tmp_path, change).marginals[0]
    assert marginal.distance == pytest.approx(0.25)  # ¼ each against ½, 0, ¼, ¼


def test_what_differs_by_chance_is_what_two_samples_of_the_real_shares_differ() -> None:
    shares = np.array([0.5, 0.3, 0.15, 0.05])
    draw = np.random.default_rng(0)
    real, synthetic = draw.multinomial(140, shares, 4000) / 140, draw.multinomial(560, shares, 4000) / 560
    simulated = np.abs(real - synthetic).sum(1).mean() / 2
    marginal = Marginal("a", tuple("wxyz"), np.zeros(0), shares, shares)
    assert by_chance(marginal, 140, 560) == pytest.approx(simulated, rel=0.03)
    assert "0 % differ (5.8 % by chance)" in Page(marginals([marginal], {}, (140, 560)).svg).text
    assert f"{simulated:.3f}" == "0.058"


def test_a_wide_label_stands_below_the_labels_of_the_scale() -> None:
    even = np.full(4, 0.25)
    marginal = Marginal("a", ("(missing)",), np.array([0.5, 1.5, 2.5, 3.5]), even, even)
    tree = ElementTree.fromstring(marginals([marginal], {"a": "integer"}).svg)
    heights = {
        "".join(one.itertext()).strip(): float(re.findall(r"[\d.]+", one.get("transform") or "")[-1])
        for one in tree.iter("{http://www.w3.org/2000/svg}text")
        if one.get("transform")
    }
    assert heights["(missing)"] > heights["3"] + 5


def test_of_many_columns_the_worst_are_drawn_and_the_others_listed(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    real = {f"c{i}": rng.normal(size=80) for i in range(40)}
    synthetic = {name: values + {"c31": 5.0, "c7": 1.0}.get(name, 0.0) for name, values in real.items()}
    many = read_score(write_score(tmp_path, score(real, synthetic, target="c0", regression=True)))
    drawn, others = worst_last(many)
    assert [m.column for m in drawn[:2]] == ["c31", "c7"]
    assert drawn[0].distance == pytest.approx(1.0, abs=0.2)
    assert (len(drawn), len(others)) == (24, 16)
    assert many.associations
    maps = associations(many.associations, 60)
    assert "Shown are 32 of 60 columns, those that differ most among the first 40." in maps.reading
    assert len(set(re.findall(r">(c\d+) \d+<", maps.svg))) == 32
    few = chapter(write_score(tmp_path, small()))
    listed = Page(replace(few, other_marginals=others).html).tables
    assert [line[0] for line in listed[2]] == ["Column", *(marginal.column for marginal in others)]


def test_a_square_of_a_heat_map_is_drawn_for_each_pair_that_goes_together() -> None:
    values = np.array([[1.0, -0.5], [0.001, np.nan]])
    paths = re.findall(r'fill="(#\w+)" fill-opacity="([\d.]+)" d="(.*?)"', shades(values, 10, 20, 5))
    assert [(opacity, d) for _, opacity, d in paths] == [
        ("0.500", "M15.00 20.00h5.00v5.00h-5.00z"), ("1.000", "M10.00 20.00h5.00v5.00h-5.00z")
    ]  # fmt: skip
    assert len({colour for colour, _, _ in paths}) == 2


def test_names_are_shortened_in_their_middle() -> None:
    assert shortened("short\nname", 20) == "short name"
    for longest in range(3, 30):
        cut = shortened("NumBank2NatlTradesWHighUtilization", longest)
        assert len(cut) == longest
        assert cut.startswith("N")
        assert cut.endswith("n")


def test_special_codes_and_empty_cells_have_bars_of_their_own(tmp_path: Path) -> None:
    def change(content: dict[str, Any]) -> None:
        content["pictures"]["marginals"] = [
            {"column": "a", "labels": ["", "-7"], "edges": [0, 1, 2], "real": [1, 1, 1, 1], "synthetic": [1, 1, 1, 1]},
            {"column": "whole", "edges": [-3.5, 45.5, 94.5], "real": [1, 1], "synthetic": [1, 1]},
            {"column": "b", "labels": [f"kind number {i}" for i in range(30)], "real": [1] * 30, "synthetic": [1] * 30},
        ]

    content = small()
    change(content)
    content["columns"].append({"name": "whole", "kind": "integer"})
    picture = chapter(write_score(tmp_path, content)).marginals
    assert picture
    text = Page(picture.svg).text
    for expected in ("empty", "-7", "kind number 0", "others", "−3", "94"):
        assert expected in text, expected


# --- tables and scores that are not usual ---


def test_a_regression_target(tmp_path: Path) -> None:
    report = write_table_report(write_score(tmp_path, small(("alcohol", "ash"), target="ash", regression=True)))
    assert "0.003 R²" in report.summary
    page = Page(report.path.read_text())
    [apart] = [line for line in page.tables[1] if line[0] == "RMSE of real rows minus these"]
    assert apart[1:] == ["−0.300", "−1.100", "−27.000", "0 or more"]  # 50 − (50 + 100 · 0.003) …
    assert {line[0] for line in page.tables[0]} >= {"R², trained on these", "R² lost next to real"}
    assert "RMSE" in report.chapter.utility.svg  # type: ignore[union-attr]
    assert "Balanced accuracy" not in page.text


def test_without_a_target_nothing_is_said_of_training(tmp_path: Path) -> None:
    report = write_table_report(write_score(tmp_path, small(target=None)))
    text = report.path.read_text()
    assert "Are they worth training on?" not in text
    assert "Are they worth training on?" not in (tmp_path / "report.md").read_text()
    assert "No target was named" in report.summary
    assert not [line for line in report.chapter.lines if line.group == "Utility"]


def test_one_column(tmp_path: Path) -> None:
    report = write_table_report(write_score(tmp_path, small(("class",), target=None)))
    assert report.chapter.associations is None
    assert "The table has one column." in report.path.read_text()


def test_what_could_not_be_measured_is_said_to_be_missing(tmp_path: Path) -> None:
    content = small()
    content["pictures"] = dict.fromkeys(content["pictures"])
    content["utility_of_real"] = None
    content["notes"] = ["Nothing could be measured: the holdout is empty."]
    for judged in content["subjects"]:
        judged["figures"] = dict.fromkeys(judged["figures"])
    report = write_table_report(write_score(tmp_path, content))
    page = Page(report.path.read_text())
    assert report.chapter.pictures == ()
    assert all(line[1:4] == ["not available"] * 3 for line in page.tables[0][1:])
    assert page.text.count("Not available.") == 5
    assert content["notes"][0] in page.text
    assert report.summary.count("could not be measured") == 3


def test_a_score_without_bounds(tmp_path: Path) -> None:
    content = small()
    del content["subjects"][1:]
    report = write_table_report(write_score(tmp_path, content))
    assert Page(report.path.read_text()).tables[0][0] == ["Figure", "these rows", "Good"]
    assert "(0.5: not at all)" in report.summary


def test_how_a_model_was_fitted_is_told_where_its_run_folder_is(drawn: TableReport, tmp_path: Path) -> None:
    page = Page(drawn.path.read_text())
    assert "How the model was fitted" in page.headings
    assert "validation no longer fell" in page.text
    assert "layers: 4" in page.text
    write_fit(tmp_path / "run")
    content = small()
    content["files"]["train"]["path"] = str(tmp_path / "run" / "train.csv")
    fit = read_score(write_score(tmp_path / "score", content)).fit
    assert fit
    assert fit.validation[0] == (48, 60.0)
    (tmp_path / "run" / "metrics.jsonl").unlink()
    assert "holds no validation figure" in write_table_report(tmp_path / "score").path.read_text()
    (tmp_path / "run" / "fit.json").unlink()
    assert read_score(tmp_path / "score").fit is None


def test_without_a_fit_nothing_is_said_of_it(tmp_path: Path) -> None:
    assert "How the model was fitted" not in chapter(write_score(tmp_path, small(target=None))).html


# --- text from strangers ---

EVIL = (
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "q\"uo'te", "new\nline", "\x1b[31mred\x1b[0m",
    "\u202eevil", "a|b*c_`d` [x](javascript:1)", "$x^2$ {{ 7 * 7 }}", "",
)  # fmt: skip


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> TableReport:
    rng = np.random.default_rng(0)
    sides: list[Table] = [{name: np.array(EVIL)[rng.integers(0, len(EVIL), 50)] for name in EVIL} for _ in range(2)]
    content = score(*sides, target=EVIL[0])
    content["notes"] = list(EVIL)
    content["preflab"] = EVIL[0]
    for judged in content["subjects"][1:]:
        judged["title"] = "".join(EVIL)
    for file in content["files"].values():
        file["path"] = file["sha256"] = "".join(EVIL)
    content["pictures"]["rules"] = [{"rule": text, "synthetic": 0.1, "holdout": None} for text in EVIL]
    content["pictures"]["roc"][EVIL[0]] = {"fpr": [0, 1], "tpr": [0, 1]}
    for judged in (content["utility_of_real"], content["subjects"][0]["figures"]["utility"]):
        judged["models"][EVIL[1]] = judged["models"]["decision_tree"]
    folder = tmp_path_factory.mktemp("hostile")
    write_fit(folder / "run")
    (folder / "run" / "config.yaml").write_text("".join(EVIL))
    content["files"]["train"]["path"] = "run/train.csv"
    return write_table_report(write_score(folder, content))


def test_hostile_text_is_text(hostile: TableReport) -> None:
    html = hostile.path.read_text()
    page = Page(html)
    assert not {tag for tag, _ in page.elements} & {"img", "iframe"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not str(attributes.get("href", "")).startswith("javascript")
    assert html.count("<script") == 1
    assert "<img" not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", html)
    assert "⟨U+202E⟩evil" in html


def test_hostile_text_is_text_in_pictures_markdown_and_on_the_terminal(hostile: TableReport) -> None:
    for file in (hostile.path.parent / "figures").glob("*.svg"):
        tree = ElementTree.fromstring(file.read_bytes())
        assert not [e for e in tree.iter() if e.tag.split("}")[-1] in {"script", "image", "foreignObject", "a"}]
    text = (hostile.path.parent / "report.md").read_text()
    assert "\x1b" not in text + hostile.summary
    assert "\u202e" not in text + hostile.summary
    outside = re.sub(r"^(`{3,})text\n.*?^\1$", "", text, flags=re.M | re.S)
    assert "<script" not in outside
    assert "<img" not in outside
    assert not re.search(r"(?<!\\)\]\((?!figures/)", outside)
    for block in outside.split("\n\n"):
        rows = [re.sub(r"\\\|", "", line).count("|") for line in block.splitlines() if line.startswith("|")]
        assert len(set(rows)) <= 1, block


# --- folders that are no scores ---


def test_a_folder_that_is_no_score(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is not a score folder: it has no score\.json"):
        write_table_report(tmp_path)
    with pytest.raises(StorageError, match=r"holds no study\.json and no score\.json; name the --out"):
        redraw(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_figure("fidelity", "quality", "good"), r'"fidelity / quality" should be a number'),  # type: ignore[arg-type]
        (set_figure("privacy", "copies", float("nan")), r'"privacy / copies" should be a number'),
        (lambda c: c["subjects"][0]["figures"].update(utility=3), r'"utility / \w+.*should be in an object'),
        (lambda c: c.update(subjects=[]), r'"subjects" has no "synthetic"'),
        (lambda c: c["pictures"]["marginals"][0]["real"].pop(), r'lists of "alcohol" differ in length'),
        (lambda c: c["pictures"]["roc"]["logistic"]["fpr"].pop(), r'lists of "logistic" differ in length'),
        (lambda c: c["pictures"]["distances"]["edges"].pop(), r'lists of "distances" differ in length'),
        (lambda c: c["pictures"]["associations"]["real"].pop(), r'"real" should have 2 rows and columns'),
        (lambda c: c["pictures"]["rows"]["cells"][2].pop(), r'"cells" should have 2 cells a row'),
        (lambda c: c.pop("columns"), r'"columns" should be a list'),
    ],
)
def test_a_damaged_score_names_file_and_field(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    content = small()
    change(content)
    with pytest.raises(StorageError, match=rf"score\.json: .*{message}"):
        chapter(write_score(tmp_path, content))


def test_a_picture_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    content = small()
    content["pictures"]["marginals"][0]["real"][2] = float("inf")
    (tmp_path / "score.json").write_text(json.dumps(content))
    with pytest.raises(NumericError, match='real shares of "alcohol" is not finite'):
        chapter(tmp_path)
