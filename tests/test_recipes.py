"""Recipes are what they say: files that their commands take, commands that can be pasted, and a run from end to end."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from preflab.cli.flags import parse
from preflab.cli.main import COMMANDS, command_of, main
from preflab.config.arms import canonical, parts, settings
from preflab.config.commands import Compare
from preflab.config.load import flatten, read_yaml, setting_names
from preflab.runs import read_json, read_lines
from preflab.tables.alignment import choose
from preflab.tables.discriminators.panel import Panel
from preflab.tables.draw import draw_rows
from preflab.tables.fitted import Fitted

ROOT = Path(__file__).parent.parent
RECIPES = ROOT / "recipes"
FILES = sorted(RECIPES.rglob("*.yaml"))
PAGES = sorted(RECIPES.rglob("*.md"))
FOUNDING = RECIPES / "dpo-vs-ppo-table"
DIALOGUES = RECIPES / "dpo-gpt2-hh"
HELOC_COLUMNS = 24
every_file = pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(RECIPES)))
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(RECIPES)))


def parsed(command: str) -> Any:
    """A command's config, as it would run in the root of the repository."""
    words = shlex.split(command, comments=True)[1:]
    name = command_of(words)
    return parse(name, COMMANDS[name].config, words[len(name.split()) :])


def own_command(file: Path) -> str:
    """The command that a YAML file begins with, in a comment."""
    lines = file.read_text(encoding="utf-8").splitlines()
    (found,) = [line.lstrip("# ") for line in lines if line.startswith("#   preflab ")]
    return found


def shown_commands(page: Path) -> list[str]:
    """Those of a page's code blocks."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line.startswith("preflab ")]


@every_file
def test_a_file_is_taken_by_the_command_that_it_names(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    command = own_command(file)
    assert f"--config {file.relative_to(ROOT)}" in command
    values = flatten(read_yaml(file)[0])
    config = parsed(command)
    assert not set(values) - set(setting_names(type(config)))
    for name, value in values.items():
        found = config
        for part in name.split("."):
            found = getattr(found, part)
        assert found == (tuple(value) if isinstance(value, list) else value), name


@every_page
def test_commands_parse_and_each_file_is_in_one(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands = shown_commands(page)
    assert commands
    for command in commands:
        parsed(command)
    for file in page.parent.glob("*.yaml"):
        assert any(str(file.relative_to(ROOT)) in command for command in commands), file.name


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_the_founding_settings_are_in_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 steps of 4, learning rate 1e-5, KL penalty and β 0.1, a checkpoint every 100, four neural levels."""
    monkeypatch.chdir(ROOT)
    assert parsed(own_command(FOUNDING / "fit.yaml")).encoding == "text"
    ppo, dpo = (parsed(own_command(FOUNDING / f"align-{method}.yaml")) for method in ("ppo", "dpo"))
    for config, method in ((ppo, ppo.ppo), (dpo, dpo.dpo)):
        assert (method.updates, method.batch.size, method.updates // method.evaluations) == (1000, 4, 100)
        assert method.optimizer.learning_rate == 1e-5
        assert (config.reward, config.discriminators.kind) == ("weighted", "neural")
        assert set(config.discriminators.levels) == {"token", "sentence", "row", "feature"}
        groups = dict(group.split("=") for group in config.discriminators.groups)
        assert list(groups) == ["risk estimate", "trade history", "delinquency", "credit utilisation"]
        columns = ",".join(groups.values()).split(",")
        assert len(columns) == len(set(columns)) == HELOC_COLUMNS
    assert ppo.ppo.kl_coefficient == dpo.dpo.loss.dpo.beta == 0.1
    assert (dpo.dpo.ranking.temperatures, dpo.dpo.ranking.smallest_gap) == ((0.6, 0.8, 1.0, 1.2), 0.01)
    assert ppo.discriminators == dpo.discriminators


@pytest.mark.parametrize("file", [file for file in FILES if "arms" in read_yaml(file)[0]], ids=lambda file: file.stem)
def test_arms_are_written_as_their_folders_are(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages name these folders; a file that spells β 0.10 would make others."""
    monkeypatch.chdir(ROOT)
    config = parsed(own_command(file))
    assert isinstance(config, Compare)
    assert list(config.arms) == [canonical(config, arm) for arm in config.arms]
    assert len(set(config.arms)) == len(config.arms)


def test_the_founding_settings_of_dialogue_are_in_its_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """8 of 12 blocks frozen, RMSprop at 1e-6 with a linear warm-up and clipping; the small one has that rate beside."""
    monkeypatch.chdir(ROOT)
    config, small = (parsed(own_command(DIALOGUES / f"{name}.yaml")) for name in ("gpt2", "small"))
    as_written = [settings(config, parts(arm)[-1]) for arm in config.arms if arm != "reference"]
    beside = [settings(small, parts(arm)[-1]) for arm in small.arms if "learning_rate=1e-6" in arm]
    for method in (*as_written, *beside):
        optimizer = method.optimizer
        assert (method.freeze_blocks, optimizer.name, optimizer.learning_rate) == (8, "rmsprop", 1e-6)
        assert optimizer.warmup_steps > 0
        assert optimizer.max_gradient_norm == 1.0
    assert {type(method).__name__ for method in beside} == {"SFT", "DPO"}
    assert (small.base.layers, small.reference.freeze_blocks, config.reference.freeze_blocks) == (12, 8, 8)
    for one in (config, small):
        scaled = [arm for arm in one.arms if "learning_rate" not in arm]
        betas = [settings(one, parts(arm)[-1]).loss.beta for arm in scaled if arm.startswith("dpo")]
        assert betas == [0.05, 0.1, 0.5, 1, 5]
        assert (one.task, one.choose_by, one.generations.prompts) == ("dialogue", "last", None)


def table(rows: int = 120) -> pd.DataFrame:
    """A few columns of HELOC, with special codes: rows of different lengths."""
    draw = np.random.default_rng(0)
    bad = draw.integers(0, 2, rows)
    months, burden = (40 * bad + draw.integers(0, 120, rows) for _ in range(2))
    return pd.DataFrame(
        {
            "RiskPerformance": np.where(bad, "Bad", "Good"),
            "MSinceOldestTradeOpen": np.where(draw.random(rows) < 0.1, -9, months),
            "NetFractionRevolvingBurden": np.where(draw.random(rows) < 0.1, -8, burden),
        }
    )


def test_the_founding_recipe_runs_from_end_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own files, cut short: two updates of each method on 120 rows of three columns."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(choose, "TREES", 10)  # forests would take most of the time
    run = tmp_path / "run"
    table().to_csv(tmp_path / "heloc.csv", index=False)
    fit = ["--fit.layers", "1", "--fit.width", "16", "--fit.epochs", "1"]
    main(["table", "fit", str(tmp_path / "heloc.csv"), "--config", str(FOUNDING / "fit.yaml"), "--out", str(run), *fit])
    groups = ["risk=RiskPerformance", "others=MSinceOldestTradeOpen,NetFractionRevolvingBurden"]
    short = ["--judged", "100", "--discriminators.epochs", "1", "--discriminators.groups", *groups]
    for method, paid in (("ppo", 2 * 4), ("dpo", 2 * 4 * 4)):
        aligned = run / "aligned" / method
        own = [f"--{method}.updates", "2", f"--{method}.evaluations", "1"]
        main(["table", "align", str(run), "--config", str(FOUNDING / f"align-{method}.yaml"), *short, *own])
        said = read_json(aligned / "align.json")
        assert [point["step"] for point in said["points"]] == [0, 2]
        assert said["cost"]["queries"] == paid
        fitted = Fitted.load(run)
        rows = draw_rows(fitted.model(method), fitted.encoding, 20, seed=0).codes
        lengths = {len(fitted.encoding.response(row)) for row in rows.tolist()}
        assert len(lengths) > 1
        opinion = Panel.load(aligned / "discriminators" / "round-1", fitted.encoding).opinion(rows)
        assert set(opinion.levels.values()) == {"token", "sentence", "row", "feature"}
        out = tmp_path / f"{method}.csv"
        main(["table", "sample", str(run), "-n", "20", "--policy", method, "--out", str(out)])
        assert len(pd.read_csv(out)) == 20
    for line in read_lines(run / "aligned" / "ppo" / "metrics.jsonl"):
        levels = {"reward/token": 0.2, "reward/sentence": 0.3, "reward/row": 0.3, "reward/feature": 0.2}
        assert line["reward"] == pytest.approx(sum(weight * line[level] for level, weight in levels.items()), abs=1e-6)
