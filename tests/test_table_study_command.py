"""`preflab compare table` from outside."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from preflab.cli.compare_table import cell
from preflab.cli.flags import parse
from preflab.cli.main import COMMANDS, command_of
from preflab.config.table_study import CompareTable
from preflab.errors import ConfigError
from preflab.runs import read_json
from ran import run
from test_table_study import small_judges, write  # noqa: F401  (a fixture)

TINY = [
    *("--fit.layers", "1", "--fit.width", "16", "--fit.heads", "2", "--fit.epochs", "2"),
    *("--align.rounds", "1", "--align.judged", "100", "--align.discriminators.folds", "2"),
    *("--align.discriminators.trees", "60", "--align.discriminators.learning-rate", "0.1"),
    *("--align.ppo.updates", "1", "--align.ppo.evaluations", "1"),
    *("--align.ppo.batch.size", "32", "--align.ppo.batch.mini", "32", "--align.ppo.batch.micro", "32"),
]


def test_a_study_prints_a_table_writes_a_report_and_is_not_done_again(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    data, out = write(tmp_path), tmp_path / "study"
    command = ["compare", "table", "--data", data, "--target", "answer", "--out", out, *TINY]
    command += ["--arms", "reference,ppo", "--seeds", "2", "--redraws", "1"]
    code, printed, said = run(capfd, *command)
    assert code == 0, said
    rows = {line.split("  ")[0]: line for line in printed.splitlines() if "  " in line}
    assert {"arm", "Reference", "PPO", "Real rows"} <= set(rows)
    assert re.search(r"told apart +quality +utility lost +coverage +breaks a rule +nearer to train", rows["arm"])
    means = [
        [
            read_json(out / "seeds" / f"seed-{seed}" / "judged" / f"{arm}.json")["draws"][0]["figures"][
                "detectability.gradient_boosting_auc"
            ]
            for seed in (0, 1)
        ]
        for arm in ("reference", "ppo")
    ]
    for name, (first, second) in zip(("Reference", "PPO"), means, strict=True):
        # ± t(0.975, 1 degree of freedom)·|a − b|/2
        assert f"{(first + second) / 2:.3f} ± {12.7062 * abs(first - second) / 2:.3f}" in rows[name]
    assert f"report: {out / 'report.html'}" in printed
    assert (out / "report.html").exists()
    assert "judging ppo, seed 1" in said
    assert "detectability" not in said  # the judge's own stages are not told
    assert read_json(out / "study.json")["complete"] is True

    judged = {path: path.read_bytes() for path in out.rglob("judged/*.json")}
    assert len(judged) == 6
    code, again, _ = run(capfd, *command)
    assert (code, again) == (0, printed)
    assert {path: path.read_bytes() for path in out.rglob("judged/*.json")} == judged
    code, _, said = run(capfd, *command, "--align.judged", "101")
    assert code == 5
    assert "align.judged is 100 there, 101 now, which all arms depend on" in said

    (out / "report.html").unlink()
    code, printed, _ = run(capfd, "report", out)
    assert code == 0
    assert (out / "report.html").exists()
    assert "PPO" in printed


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["compare", "tabel"], 2, r'there is no task "tabel"; did you mean "table"\?'),
        (["compare", "--task", "table"], 2, r"preflab compare table --help"),
        (["table", "compare"], 2, r'there is no command "compare"'),
        (["compare", "table", "--arms", "dpo,gpro"], 2, r'no arm or stage "gpro"; did you mean "grpo"'),
        (["compare", "table", "--data", "none.csv", "--target", "a"], 3, r"none\.csv"),
        (["compare", "table", "--data", "none.csv"], 2, r"--target"),
        (["compare", "table", "--target", "diagnose"], 2, r'no column "diagnose"; did you mean "diagnosis"'),
        (["compare", "table", "--arms", "dpo", "--align.ppo.updates", "3"], 2, r"align\.ppo\.\* has no effect"),
        (["compare", "table", "--arms", "dpo", "--arms", "ppo"], 2, r"--arms is given twice"),
    ],
)
def test_each_refusal_is_one_sentence_and_leaves_nothing(
    words: list[str],
    code: int,
    says: str,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    found, printed, said = run(capfd, *words)
    assert (found, printed) == (code, "")
    assert re.search(says, said), said
    assert said.startswith("preflab: ")
    assert not list(tmp_path.iterdir())


def test_the_longest_name_that_matches_is_the_command() -> None:
    assert command_of(["compare", "table", "--quick"]) == "compare table"
    assert (
        command_of(["compare", "reviews"]) == command_of(["compare"]) == command_of(["compare", "--quick"]) == "compare"
    )
    assert command_of(["table", "fit", "x.csv"]) == "table fit"
    assert "compare table" in COMMANDS
    with pytest.raises(ConfigError, match='there is no command "fti"; did you mean "fit"'):
        command_of(["table", "fti"])


def test_a_quick_study_is_bounded_and_flags_go_above_it() -> None:
    quick = parse("compare table", "CompareTable", ["--quick", "--arms", "reference,ppo", "--redraws", "3"])
    assert (quick.seeds, quick.redraws, quick.align.rounds, quick.arms) == (1, 3, 1, ("reference", "ppo"))
    assert quick.align.ppo.updates < CompareTable().align.ppo.updates
    assert quick.fit.epochs == 6
    assert parse("compare table", "CompareTable", []) == CompareTable()


def test_help_is_short_and_needs_no_torch() -> None:
    code = (
        "import sys; from preflab.cli.main import main\n"
        "try: main(['compare', 'table', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "--redraws" in result.stdout
    assert len(result.stdout.splitlines()) < 80


def test_cells_of_arms_without_a_figure_are_empty() -> None:
    assert cell([None, None], 3) == "–"
    assert cell([0.5], 3) == "0.500"
