"""The report says what simulated studies were made to show, of whole studies and of broken ones, and escapes it all."""

from __future__ import annotations

import hashlib
import io
import json
import re
import xml.etree.ElementTree as ElementTree
from base64 import b64encode
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from preflab.errors import NumericError, StorageError
from preflab.evaluation.calibration import calibration
from preflab.report import Report, write_report
from preflab.report.chapter import Gallery
from preflab.report.comparison import comparison as comparison_of
from preflab.report.measures import summary
from preflab.report.study import COSTS, read_study
from preflab.report.templates import markdown_text
from preflab.report.verdicts import Verdict, at_equal_kl, beats_reference, proxy_misled, verdicts
from preflab.report.wording import steps, visible
from study_folder import REFERENCE, SimulatedArm, reward_model, root, usual_arms, write_study


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> Report:
    return write_report(write_study(tmp_path_factory.mktemp("usual"), seeds=3))


def comparison(report: Report) -> dict:
    text = (report.path.parent / "comparison.json").read_text()
    assert "NaN" not in text
    return json.loads(text)


def numbers(folder: Path) -> dict:
    """What comparison.json would hold, without drawing."""
    study = read_study(folder)
    return comparison_of(study, summary(study), verdicts(study))


def on_terminal(report: Report, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(report.table())
    return console.export_text()


def is_estimate(value: object) -> bool:
    return (
        isinstance(value, dict)
        and list(value) == ["mean", "low", "high"]
        and all(isinstance(x, float) for x in value.values())
        and value["low"] <= value["mean"] <= value["high"]
    )


def verdict_between(folder: Path, a: str, b: str) -> Verdict:
    study = read_study(folder)
    by_name = {arm.name: arm for arm in study.arms}
    verdict = at_equal_kl(study, by_name[a], by_name[b])
    assert verdict
    return verdict


# --- comparison.json ---


def test_comparison_has_the_keys_and_types_of_the_design(usual: Report) -> None:
    content = comparison(usual)
    assert set(content) >= {"study", "arms", "summary", "verdicts"}
    assert content["study"]["task"] == "reviews"
    assert [(arm["name"], arm["seed"]) for arm in content["arms"]][:4] == [
        ("reference", 0), ("reference", 1), ("reference", 2), ("sft", 0)
    ]  # fmt: skip
    figures = ("reward", "proxy_reward", "kl", "win_rate", "response_tokens", "distinct_2", "repetition", "perplexity")
    for arm in content["arms"]:
        assert isinstance(arm["method"], str)
        assert isinstance(arm["settings"], dict)
        assert set(arm["cost"]) == set(COSTS)
        assert {point["split"] for point in arm["points"]} == {"validation"}
        assert arm["test"]["split"] == "test"
        for point in [*arm["points"], arm["test"]]:
            assert isinstance(point["step"], int)
            assert all(is_estimate(point[name]) for name in figures)
            assert 0 <= point["win_rate"]["low"] <= point["win_rate"]["high"] <= 1
    assert content["arms"][6]["settings"] == {"loss.beta": 0.1, "train.steps": 400}
    for row in content["summary"]:
        assert isinstance(row["name"], str)
        assert (row["step"], row["seeds"]) == (0 if row["name"] == "reference" else 400, 3)
        assert is_estimate(row["reward"])
        assert is_estimate(row["kl"])
    for verdict in content["verdicts"]:
        assert set(verdict) == {"question", "answer", "found", "difference", "p", "corrected_p", "corrected_for"}
        assert verdict["difference"] is None or is_estimate(verdict["difference"])


def test_the_reference_stands_at_kl_zero(usual: Report) -> None:
    kl = next(row["kl"] for row in comparison(usual)["summary"] if row["name"] == "reference")
    assert abs(kl["mean"]) < 1e-4


def test_figures_are_those_of_the_rows(tmp_path: Path) -> None:
    folder = write_study(tmp_path, prompts=40)
    rows = json.loads((folder / "arms/dpo/seed-0/evaluation.json").read_text())["points"]
    arm = next(arm for arm in numbers(folder)["arms"] if arm["name"] == "dpo")
    for point, raw in zip([*arm["points"], arm["test"]], rows, strict=True):
        assert point["reward"]["mean"] == pytest.approx(np.mean(raw["rows"]["reward"]))
        assert point["kl"]["mean"] == pytest.approx(np.mean(raw["rows"]["kl_nats"]))
        nats = sum(raw["held_out"]["nll_nats"]) / sum(raw["held_out"]["tokens"])
        assert point["perplexity"]["mean"] == pytest.approx(np.exp(nats))


def test_a_summary_over_seeds_is_wider_than_prompts_alone_would_be(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=3, noise=2.0)
    content = numbers(folder)
    row = next(row for row in content["summary"] if row["name"] == "dpo")
    tests = [arm["test"]["reward"]["mean"] for arm in content["arms"] if arm["name"] == "dpo"]
    assert row["reward"]["mean"] == pytest.approx(np.mean(tests))
    assert row["reward"]["high"] - row["reward"]["low"] > 2 * 1.96 * np.std(tests, ddof=1) / 3**0.5


# --- verdicts: right, silent or undecided as the simulation was made ---


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_kl_finds_the_difference_that_was_simulated(tmp_path: Path, seeds: int) -> None:
    low = SimulatedArm("low", "dpo", lambda kl: 0.5 * kl, kl=(1, 3, 6, 9))
    high = SimulatedArm("high", "ppo", lambda kl: 0.5 * kl + 0.8, kl=(2, 4, 5, 8))
    verdict = verdict_between(write_study(tmp_path, [REFERENCE, low, high], seeds=seeds, noise=0.3), "low", "high")
    assert verdict.difference
    assert verdict.difference.low <= -0.8 <= verdict.difference.high
    assert verdict.difference.sign == -1
    assert verdict.answer.startswith("high gets ")


@pytest.mark.parametrize("seeds", [1, 3])
def test_more_kl_alone_is_no_difference(tmp_path: Path, seeds: int) -> None:
    # At their last checkpoints b has far more reward; at equal KL they are the same.
    a = SimulatedArm("a", "dpo", lambda kl: 0.7 * kl, kl=(1, 2, 3, 4))
    b = SimulatedArm("b", "ppo", lambda kl: 0.7 * kl, kl=(2, 4, 8, 12))
    verdict = verdict_between(write_study(tmp_path, [REFERENCE, a, b], seeds=seeds, noise=0.3), "a", "b")
    assert verdict.difference
    assert verdict.difference.sign == 0
    assert verdict.answer.startswith("No difference found")


def test_equal_kl_is_silent_as_often_as_it_should_be(tmp_path: Path) -> None:
    # Two arms on the same frontier, many prompts' worth of luck: about 5 % false differences.
    rng = np.random.default_rng(0)
    folder = write_study(tmp_path, [REFERENCE, *(SimulatedArm(n, "dpo", kl=(1, 2, 4, 8)) for n in "ab")], prompts=80)
    study = read_study(folder)
    reference, a, b = study.arms
    found = []
    for _ in range(200):
        drawn = []
        for arm, kls in ((a, (1, 2, 4, 8)), (b, (1.5, 3, 5, 7))):
            points = []
            for point, kl in zip(arm.runs[0].validation, kls, strict=True):
                kl_nats = kl * rng.gamma(4.0, 0.25, size=(1, 80))
                reward = 0.5 * kl + 0.2 * (kl_nats - kl) + rng.normal(size=(1, 80))
                points.append(replace(point, reward=reward, kl_nats=kl_nats))
            drawn.append(replace(arm, runs=(replace(arm.runs[0], validation=tuple(points)),)))
        verdict = at_equal_kl(replace(study, arms=(reference, *drawn)), drawn[0], drawn[1])
        assert verdict
        assert verdict.difference
        found.append(verdict.difference.sign != 0)
    assert 0.005 <= np.mean(found) <= 0.10


def test_no_overlap_is_undecided(tmp_path: Path) -> None:
    near = SimulatedArm("near", "sft", kl=(0.1, 0.2, 0.3, 0.4))
    far = SimulatedArm("far", "ppo", root(3.0), kl=(5, 6, 7, 8))
    verdict = verdict_between(write_study(tmp_path, [REFERENCE, near, far]), "near", "far")
    assert verdict.difference is None
    assert verdict.answer.startswith("Undecided: their KL ranges don't overlap")


def test_only_seeds_that_both_arms_have_are_compared(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=3)
    (folder / "arms/ppo/seed-2/evaluation.json").unlink()
    assert verdict_between(folder, "dpo", "ppo").answer.endswith("2 seeds.")


@pytest.mark.parametrize(("gain", "answer"), [(1.0, "Yes: "), (-1.0, "No, it loses: "), (0.0, "No difference found")])
def test_against_the_reference(tmp_path: Path, gain: float, answer: str) -> None:
    folder = write_study(tmp_path, [REFERENCE, SimulatedArm("dpo", "dpo", lambda kl: gain)], prompts=200)
    study = read_study(folder)
    verdict = beats_reference(study, study.arms[1])
    assert verdict
    assert verdict.difference
    assert verdict.answer.startswith(answer)
    assert verdict.difference.low <= gain <= verdict.difference.high


def test_a_reference_scored_once_serves_all_seeds(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=3, prompts=200)
    content = json.loads((folder / "study.json").read_text())
    content["arms"] = [arm for arm in content["arms"] if arm["name"] != "reference" or arm["seed"] == 0]
    (folder / "study.json").write_text(json.dumps(content))
    study = read_study(folder)
    verdict = beats_reference(study, next(arm for arm in study.arms if arm.name == "ppo"))
    assert verdict
    assert verdict.answer.startswith("Yes: ")
    assert verdict.answer.endswith("3 seeds.")


@pytest.mark.parametrize(
    ("reward", "proxy", "answer"),
    [
        (lambda kl: 2.0 - abs(kl - 4.0), lambda kl: kl, "Yes: from step 300 to step 400"),
        (lambda kl: kl, lambda kl: kl, "No, gold sentiment is highest at the last checkpoint"),
        (lambda kl: min(kl, 4.0), lambda kl: kl, "No sign of it"),
        (lambda kl: 2.0 - abs(kl - 4.0), lambda kl: -kl, "Not shown"),
    ],
)
def test_whether_the_proxy_misled(tmp_path: Path, reward, proxy, answer: str) -> None:
    study = read_study(write_study(tmp_path, [REFERENCE, SimulatedArm("ppo", "ppo", reward, proxy)], noise=0.3))
    verdict = proxy_misled(study, study.arms[1])
    assert verdict
    assert verdict.answer.startswith(answer)
    assert (verdict.p == 1) != answer.startswith("Yes") or answer.startswith("No sign")


def test_tables_are_tables_in_markdown(usual: Report) -> None:
    """Where a head's second line has other cells than the first, Markdown shows no table at all."""
    text = (usual.path.parent / "report.md").read_text().splitlines()
    heads = [(text[i - 1], line) for i, line in enumerate(text) if line.startswith(("|:--", "|--:"))]
    assert len(heads) == len(usual.content.sheets)
    for head, below in heads:
        assert below.replace(":--|", "").replace("--:|", "") == "|"
        assert below.count("|") == head.count("|") - head.count("\\|")


def test_a_win_rate_of_all_prompts_has_an_interval(tmp_path: Path) -> None:
    """Of n equal draws 1 − 0.025^(1/n) of other prompts are left open, also in the table of results."""
    folder = write_study(tmp_path, [REFERENCE, SimulatedArm("dpo", "dpo", root(9.0), label="DPO")], prompts=60)
    (row,) = [row for row in write_report(folder).content.rows if row.arm.name == "dpo"]
    assert row.measures.win_rate.mean == 1
    assert row.measures.win_rate.low == pytest.approx(0.025 ** (1 / 60))


def test_oracles_are_labelled_wherever_they_are_named(usual: Report) -> None:
    html = usual.path.read_text()
    body = html[html.index("<body>") :]
    named = body.count("PPO, gold reward")
    assert named > 10
    assert body.count("PPO, gold reward (oracle)") == named
    assert "oracle" in (usual.path.parent / "report.md").read_text()


def test_the_cost_compares_ppo_with_dpo(usual: Report) -> None:
    cost = next(v for v in usual.verdicts if v.subject == "cost")
    assert cost.answer.startswith("PPO took 3.1 times as long as DPO: 93 s against 30 s; 90,000 generated tokens")


# --- the page ---


class Page(HTMLParser):
    """Elements, attributes and text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_has_everything_and_asks_nothing_of_the_network(usual: Report) -> None:
    html = usual.path.read_text()
    page = Page(html)
    for title in ("Results", "Reward and KL", "Verdicts", "Too far?", "Who wins against whom?",
                  "Did the responses degenerate?", "What did it cost?", "What do they write?", "How sure is that?",
                  "How good is the reward model?", "Reward model, seed 2", "Training",
                  "Facts about this study", "Settings", "How it was measured",
                  "Bayes ceiling 0.86", "pairs dropped: identical responses"):  # fmt: skip
        assert title in page.text, title
    policy = next(a["content"] for t, a in page.elements if t == "meta" and "http-equiv" in a)
    assert policy
    assert policy.startswith("default-src 'none'")
    assert not [t for t, _ in page.elements if t in {"link", "img", "iframe", "object", "form", "base"}]
    (script,) = re.findall(r"<script>(.*?)</script>", html, flags=re.DOTALL)
    assert f"script-src 'sha256-{b64encode(hashlib.sha256(script.encode()).digest()).decode()}';" in policy
    targets = [a[k] or "" for _, a in page.elements for k in ("href", "src", "xlink:href") if k in a]
    files = [t for t in targets if not t.startswith("#")]
    assert {t.split("/")[0] for t in files} == {"figures", "tables", "report.md", "comparison.json"}
    assert all((usual.path.parent / t).is_file() for t in files)
    assert not re.search(r"url\((?!#)|@import", html)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))


def test_figures_are_files_that_parse_and_the_same_each_time(usual: Report) -> None:
    folder = usual.path.parent / "figures"
    files = sorted(folder.glob("*.svg"))
    assert {"frontier.svg", "proxy.svg", "reward-by-step.svg", "reward-models.svg", "training-2.svg"} <= {
        file.name for file in files
    }
    before = {file: file.read_bytes() for file in files}
    for content in before.values():
        assert ElementTree.fromstring(content).tag.endswith("svg")
    html = usual.path.read_bytes()
    again = write_report(usual.path.parent)
    assert {file: file.read_bytes() for file in files} == before
    assert again.path.read_bytes() == html


def test_markdown_has_the_same_content(usual: Report) -> None:
    text = (usual.path.parent / "report.md").read_text()
    plain = text.replace("\\[", "[").replace("\\]", "]").replace("\\", "")
    assert all(verdict.answer in plain for verdict in usual.verdicts)
    assert all(link in text for link in ("(figures/frontier.svg)", "(figures/proxy.svg)"))
    header, rule, *rows = [line for line in text.splitlines() if line.startswith("|")][:7]
    assert {line.count("|") for line in (header, rule, *rows)} == {7}
    links = re.findall(r"(?<!\\)\]\(([^)]*)\)", text)
    assert len(links) > 20
    assert all((usual.path.parent / link).is_file() for link in links)


def test_samples_are_of_the_same_prompts(usual: Report) -> None:
    (gallery,) = [part for part in usual.content.parts if isinstance(part, Gallery) and part.name == "generations"]
    for item in gallery.items:
        assert [arm.name for arm, _ in item.responses] == ["reference", "sft", "dpo", "ppo", "ppo-gold"]
        assert len({sample.prompt_id for _, sample in item.responses if sample}) == 1
        assert all(sample for _, sample in item.responses)


def test_the_terminal_table_fits_and_shows_every_arm(usual: Report) -> None:
    text = on_terminal(usual, 100)
    assert all(label in text for label in ("Reference", "SFT", "DPO", "PPO, gold reward (oracle)"))
    assert re.search(r"DPO +400 +2\.\d\d \[2\.\d\d, \d\.\d\d\]", text)


# --- how good the reward model is ---


def test_reward_models_are_judged_as_they_were_simulated(tmp_path: Path) -> None:
    """One boasts and adds a bonus a token, the other knows the log-odds of its pairs."""
    models = [reward_model(), reward_model("judge", boast=1.0, per_token=0.0, seed=1)]
    report = write_report(write_study(tmp_path, [REFERENCE], reward_models=models))
    boaster, honest = report.content.study.reward_models
    assert (boaster.title, honest.title) == ("Reward model", "Judge")
    assert (boaster.misjudges, honest.misjudges) == ("over-confident", "")
    assert (boaster.sides is None, honest.sides is None) == (False, True)
    assert boaster.error > boaster.error_by_chance
    text = Page(report.path.read_text()).text
    assert boaster.finding.startswith("Over-confident: 80 % sure on average, right in 66 % of the pairs. It follows")
    assert boaster.finding in text
    assert honest.finding in text
    plain = (tmp_path / "report.md").read_text()
    assert f"- Reward model: {boaster.finding}" in plain
    assert {line.count("|") for line in plain.splitlines() if line.startswith(("| Judge |", "| reward model |"))} == {
        11
    }
    drawn = (tmp_path / "figures/reward-models.svg").read_text()
    assert all(label in drawn for label in ("reward model", "judge", "much", "equal"))


def test_a_model_is_called_calibrated_only_where_its_error_may_be_chance(tmp_path: Path) -> None:
    """Right in as many pairs as it says on average, yet off in groups of pairs: the rule is that of the table."""
    models = [reward_model(boast=1.0, per_token=0.0)]
    honest = write_report(write_study(tmp_path, [REFERENCE], reward_models=models)).content.study.reward_models[0]
    assert not honest.misjudges
    at, above = (replace(honest, error=error, error_by_chance=0.094) for error in (0.094, 0.109))
    assert at.finding.startswith("About as sure as it is right: ")
    assert not at.found
    assert above.finding.startswith("Not as sure as it is right: ")
    assert "off by 0.109, by chance up to 0.094." in above.finding
    assert above.found


def test_a_study_without_calibration_is_drawn_without_it(tmp_path: Path) -> None:
    folder = write_study(tmp_path, [REFERENCE])
    content = json.loads((folder / "study.json").read_text())
    del content["reward_models"]
    (folder / "study.json").write_text(json.dumps(content))
    report = write_report(folder)
    assert "How good is the reward model?" not in report.path.read_text() + (folder / "report.md").read_text()
    assert not (folder / "figures/reward-models.svg").exists()


def test_a_reward_model_with_few_pairs_is_drawn(tmp_path: Path) -> None:
    """Of equal lengths and equal scores: no side, no correlation, one bucket."""
    entry = {"label": "reward model", "seed": 0,
             "calibration": calibration(np.zeros((3, 2)), np.ones((3, 2), dtype=int), range(3)).json()}  # fmt: skip
    report = write_report(write_study(tmp_path, [REFERENCE], reward_models=[entry]))
    (model,) = report.content.study.reward_models
    assert not model.found
    assert (model.shorter, model.longer, model.length_correlation) == (None, None, None)
    assert "50 % sure on average" in Page(report.path.read_text()).text


# --- text from elsewhere ---

HOSTILE = (
    "<script>alert(1)</script>",
    "</textarea></pre></style><img src=x onerror=alert(1)>",
    "\x1b[31mred\x1b[0m \x07\x00",
    "\u202eevil\u2066 \u200f line\u2028break\x85",
    "javascript:alert(1)",
    "[click](javascript:alert(1)) ![x](http://evil.example/x.png) ```\n```` | `a`",
    '{{ 7 * 7 }} {% raw %} $\\frac{1}{0}$ &lt;b&gt; " onload="x\' --> ]]>',
)
ALL = " ".join(HOSTILE)


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Report:
    arms = [replace(arm, label=f"{arm.name} {ALL}" if arm.name != "reference" else "Reference") for arm in usual_arms()]
    arms[2] = replace(arms[2], metrics=[{"step": 1, "loss": 0.5, "<script>": 1.0, "accuracy": "<script>"}])
    folder = write_study(
        tmp_path_factory.mktemp("hostile"), arms, prompt_texts=HOSTILE, response=lambda rng: ALL, title=ALL,
        task_summary=ALL, warnings=[ALL], counts=[{"name": ALL, "count": 1}], stages=[{"name": ALL, "seconds": 1.0}],
        reward={"name": ALL, "unit": ALL, "explanation": ALL}, proxy={"name": ALL, "explanation": ALL},
        facts=[{"name": ALL, "value": 1.0, "low": None, "high": None, "note": ALL}],
        reward_models=[reward_model(ALL), reward_model("judge", boast=1.0)],
    )  # fmt: skip
    (folder / "study.yaml").write_text(ALL)
    return write_report(folder)


def test_hostile_text_is_text(hostile: Report) -> None:
    html = hostile.path.read_text()
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"img", "textarea", "iframe", "b"}
    for _, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        assert not str(attributes.get("href", "")).startswith("javascript")
    assert html.count("<script") == 1
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "{{ 7 * 7 }}" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]", html)
    assert "␛[31mred" in html
    assert "⟨U+202E⟩evil" in html


def test_hostile_text_is_text_in_pictures_and_markdown(hostile: Report) -> None:
    for file in (hostile.path.parent / "figures").glob("*.svg"):
        tree = ElementTree.fromstring(file.read_bytes())
        assert not [e for e in tree.iter() if e.tag.split("}")[-1] in {"script", "image", "foreignObject", "a"}]
    text = (hostile.path.parent / "report.md").read_text()
    assert "\x1b" not in text
    assert "\u202e" not in text
    outside, fence = [], None
    for line in text.splitlines():
        ticks = re.match(r"`{3,}", line)
        if fence is None and ticks:
            fence = ticks[0]
        elif fence is not None and line == fence:
            fence = None
        elif fence is None:
            outside.append(line)
    assert fence is None
    rest = "\n".join(outside)
    assert "<script" not in rest
    assert "<img" not in rest
    assert not re.search(r"(?<!\\)\]\((?!figures/|tables/)", rest)


def test_hostile_text_does_not_reach_the_terminal(hostile: Report) -> None:
    assert "\x1b" not in on_terminal(hostile, 400)
    assert "\x1b" not in hostile.summary


def test_markdown_text_keeps_intervals_readable() -> None:
    assert markdown_text("0.5 [0.1, 0.9], −0.5 [−0.9, −0.1]") == "0.5 [0.1, 0.9], −0.5 [−0.9, −0.1]"
    assert markdown_text("[1](javascript:x)") == "[1\\](javascript:x)"


def test_visible_keeps_ordinary_text() -> None:
    for text in ("naïve — “quoted”\n\tnext", "日本語 👩\u200d🔬", "می\u200cخواهم"):
        assert visible(text) == text


# --- studies that are not whole ---


def test_an_incomplete_study_is_drawn_and_says_so(tmp_path: Path) -> None:
    arms = usual_arms()
    arms[2] = replace(arms[2], tested=False)
    arms[3] = replace(arms[3], evaluated=False)
    report = write_report(write_study(tmp_path, arms, complete=False))
    text = Page(report.path.read_text()).text
    assert not report.complete
    assert "Incomplete." in text
    assert "PPO: no checkpoint evaluated yet" in text
    assert "DPO: evaluated up to step 400" in text
    assert "Not final" in report.summary
    by_name = {arm["name"]: arm for arm in comparison(report)["arms"]}
    assert (by_name["ppo"]["points"], by_name["ppo"]["test"]) == ([], None)
    assert by_name["dpo"]["test"] is None


def test_a_study_that_has_only_begun(tmp_path: Path) -> None:
    arms = [replace(arm, evaluated=False, metrics=()) for arm in usual_arms()]
    report = write_report(write_study(tmp_path, arms, complete=False))
    assert "No arm has been evaluated yet." in report.path.read_text()
    assert comparison(report)["summary"] == []


def test_only_the_reference(tmp_path: Path) -> None:
    report = write_report(write_study(tmp_path, [REFERENCE]))
    assert report.verdicts == ()
    assert [row["name"] for row in comparison(report)["summary"]] == ["reference"]


def test_one_checkpoint_and_no_proxy(tmp_path: Path) -> None:
    dpo = SimulatedArm("dpo", "dpo", root(1.0), proxy=None, steps=(50,), kl=(4.0,))
    ppo = SimulatedArm("ppo", "ppo", root(2.0), proxy=None, steps=(20, 50), kl=(1.0, 9.0))
    folder = write_study(tmp_path, [replace(REFERENCE, proxy=None), dpo, ppo])
    report = write_report(folder)
    assert comparison(report)["arms"][1]["points"][0]["proxy_reward"] is None
    assert not (folder / "figures/proxy.svg").exists()
    assert not [v for v in report.verdicts if v.subject == "proxy"]
    assert verdict_between(folder, "dpo", "ppo").answer.startswith("ppo gets ")


def test_no_reference_arm(tmp_path: Path) -> None:
    folder = write_study(tmp_path, usual_arms()[1:])
    assert {v.subject for v in verdicts(read_study(folder))} == {"equal KL", "proxy", "cost"}


def test_without_samples_what_needs_them_is_null(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    for file in folder.rglob("samples.jsonl"):
        file.unlink()
    assert numbers(folder)["arms"][0]["points"][0]["distinct_2"] is None


def test_seeds_may_choose_different_steps(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=3)
    path = folder / "arms/dpo/seed-1/evaluation.json"
    content = json.loads(path.read_text())
    content["chosen_step"] = content["points"][-1]["step"] = 200
    path.write_text(json.dumps(content))
    dpo = next(row for row in summary(read_study(folder)) if row.arm.name == "dpo")
    assert steps(dpo.steps) == "200–400"
    assert next(row["step"] for row in numbers(folder)["summary"] if row["name"] == "dpo") == 400


def test_the_same_evaluation_of_every_seed_is_one_point_though_epochs_differ_by_a_step(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=2)
    path = folder / "arms/dpo/seed-1/evaluation.json"
    content = json.loads(path.read_text())
    for point in content["points"]:
        point["step"] += 1
    path.write_text(json.dumps(content | {"chosen_step": 401}))
    dpo = next(arm for arm in read_study(folder).arms if arm.name == "dpo")
    assert [(point.step, point.seeds) for point in dpo.validation] == [(s, (0, 1)) for s in (100, 200, 300, 400)]
    assert verdict_between(folder, "dpo", "ppo").difference


def test_rows_of_one_prompt_are_averaged(tmp_path: Path) -> None:
    folder = write_study(tmp_path, prompts=20)
    for path in folder.rglob("evaluation.json"):
        content = json.loads(path.read_text())
        for point in content["points"]:
            point["rows"] = {name: rows and rows * 2 for name, rows in point["rows"].items()}
        path.write_text(json.dumps(content))
    twice = numbers(folder)["arms"]
    once = numbers(write_study(tmp_path / "once", prompts=20))["arms"]
    assert twice[1]["points"][0]["reward"] == once[1]["points"][0]["reward"]


# --- folders that are no studies ---


def test_a_folder_that_is_no_study(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is not a study folder: it has no study\.json; name a folder"):
        write_report(tmp_path)
    with pytest.raises(StorageError, match="is not a study folder"):
        write_report(tmp_path / "nowhere")


def test_a_damaged_study_names_file_and_field(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    content = json.loads((folder / "study.json").read_text())
    del content["title"]
    (folder / "study.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r'study\.json: "title" should be a text'):
        write_report(folder)
    content["title"] = "back"
    content["reward_models"][0]["calibration"]["by_length"][0]["accuracy"] = {"mean": 0.5}
    (folder / "study.json").write_text(json.dumps(content))
    with pytest.raises(StorageError, match=r'study\.json: "low" should be a number'):
        write_report(folder)
    (folder / "study.json").write_text("{")
    with pytest.raises(StorageError, match=r"study\.json can't be read"):
        write_report(folder)


def test_a_row_that_is_not_finite_is_refused_by_name(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    path = folder / "arms/dpo/seed-0/evaluation.json"
    content = json.loads(path.read_text())
    content["points"][1]["rows"]["reward"][3] = float("nan")
    path.write_text(json.dumps(content))
    with pytest.raises(NumericError, match="dpo seed 0 step 200 validation: reward is not finite"):
        write_report(folder)


def test_arms_scored_on_other_prompts_are_not_compared(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    path = folder / "arms/ppo/seed-0/evaluation.json"
    path.write_text(path.read_text().replace('"t3"', '"other"'))
    with pytest.raises(StorageError, match=r"ppo seed 0 .* different test prompts"):
        write_report(folder)


def test_verdicts_never_claim_more_than_their_interval(usual: Report) -> None:
    study = read_study(usual.path.parent)
    for verdict in verdicts(study):
        if verdict.difference and verdict.difference.sign == 0:
            assert verdict.answer.startswith(("No difference found", "No sign of it"))
