"""`preflab table fit` and `preflab table sample` from outside."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest
from rich.cells import cell_len

from preflab.cli.flags import parse
from preflab.cli.main import main
from preflab.runs import read_json
from ran import run

FAST = ["--fit.layers", "1", "--fit.width", "16", "--fit.heads", "2", "--fit.epochs", "2"]


def write(path: Path) -> Path:
    rows = [
        f"{i % 7},{'yes' if i % 7 > 3 else 'no'},{(i * 13) % 90 / 10:.1f},{-9 if i % 11 == 0 else i % 5}"
        for i in range(120)
    ]
    path.write_text("\n".join(["n,class,x y,=code", *rows, ""]))
    return path


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("table")
    data = write(folder / "data.csv")
    main(["table", "fit", str(data), "--target", "class", "--out", str(folder / "run"), *FAST])
    return folder / "run"


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines()


def test_a_fit_leaves_the_split_the_columns_and_the_model(fitted: Path) -> None:
    names = {path.name for path in fitted.iterdir()}
    assert names >= {"config.yaml", "environment.json", "metrics.jsonl", "train.csv", "holdout.csv", "model"}
    assert names >= {"schema.json", "source.json", "encoding.json", "fit.json"}
    whole = lines(fitted.parent / "data.csv")
    train, holdout = lines(fitted / "train.csv"), lines(fitted / "holdout.csv")
    assert train[0] == holdout[0] == whole[0]
    assert len(holdout) == 1 + 24
    assert sorted(train[1:] + holdout[1:]) == sorted(whole[1:])
    report = read_json(fitted / "fit.json")
    assert 0 <= report["unmasked_valid_share"] <= 1
    assert report["rows"] + report["validation_rows"] == 96


def test_the_same_command_finds_it_done_and_another_is_refused(fitted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    command = ["table", "fit", fitted.parent / "data.csv", "--target", "class", "--out", fitted, *FAST]
    code, out, err = run(capfd, *command)
    assert code == 0
    assert "finished already" in err
    assert f"preflab table sample {fitted} -n 1000" in out
    code, _, err = run(capfd, *command, "--seed", "1")
    assert code == 5
    assert "holds a run with other settings ('seed: 0' there, 'seed: 1' now)" in err


def test_a_fit_that_was_killed_before_its_last_file_goes_on(
    fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The model is there; how many rows are legal without a mask was still to come."""
    killed = tmp_path / "run"
    shutil.copytree(fitted, killed)
    config = (killed / "config.yaml").read_text()
    (killed / "config.yaml").write_text(config.replace(str(fitted), str(killed)))
    (killed / "fit.json").unlink()
    code, _, err = run(capfd, "table", "sample", killed, "-n", 2, "--out", tmp_path / "rows.csv")
    assert code == 2
    assert "the fit is not finished; run its `preflab table fit` command again" in err
    code, out, err = run(capfd, "table", "fit", fitted.parent / "data.csv", "--target", "class", "--out", killed, *FAST)
    assert code == 0
    assert "legal rows without the mask" in out
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in (fitted, killed)]
    assert weights[0] == weights[1]


def test_what_was_found_is_said_before_it_is_learned(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = write(tmp_path / "data.csv")
    data.write_text(data.read_text() + "1,no,0.5,1\n1,no,0.5,1\n")
    _, _, err = run(capfd, "table", "fit", data, "--out", tmp_path / "run", *FAST, "--columns", "n=category")
    assert "122 rows of 4 columns; 98 to learn from, 24 held out" in err
    assert "1 rows repeat another one exactly" in err
    assert err.index("reading") < err.index("looking at columns") < err.index("122 rows")
    assert [line.split()[:2] for line in err.splitlines() if line.startswith("  n ")] == [["n", "category"]]


def test_samples_are_a_file_like_the_data(fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "rows.csv"
    code, said, _ = run(capfd, "table", "sample", fitted, "-n", 50, "--out", out, "--seed", 7)
    assert code == 0
    assert lines(out)[0] == "n,class,x y,=code"
    assert len(lines(out)) == 51
    assert "50 rows, all legal;" in said
    assert "rows per CPU second" in said
    assert "row 3" in said
    again = tmp_path / "again.csv"
    run(capfd, "table", "sample", fitted, "--rows", 50, "--out", again, "--seed", 7)
    assert again.read_bytes() == out.read_bytes()
    before = out.read_bytes()
    code, _, err = run(capfd, "table", "sample", fitted, "-n", 5, "--out", out)
    assert code == 5
    assert "is there already" in err
    assert out.read_bytes() == before


def test_conditions_hold_and_the_effective_sample_size_is_told(
    fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "some.csv"
    conditions = ["--where", "class=yes", "--where", "x y>=4.5", "--where", "=code!=-9"]
    code, said, _ = run(capfd, "table", "sample", fitted, "-n", 40, "--out", out, *conditions)
    rows = pd.read_csv(out)
    assert code == 0
    assert len(rows) == 40
    assert (rows["class"] == "yes").all()
    assert (rows["x y"] >= 4.5).all()
    assert (rows["=code"] != -9).all()
    assert "effective sample size of" in said
    _, said, _ = run(
        capfd, "table", "sample", fitted, "-n", 4, "--out", tmp_path / "b.csv", "--where", "class=no", "--unmasked"
    )
    assert "conditions: exact" in said
    assert "without the mask" in said


def test_a_spreadsheet_runs_no_formula(fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "safe.csv"
    _, said, _ = run(capfd, "table", "sample", fitted, "-n", 3, "--out", out, "--spreadsheet-safe")
    assert lines(out)[0].endswith("'=code")
    assert "an apostrophe stands before 1 cells" in said


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["sample", "RUN", "-n", "2", "--out", "OUT.csv", "--where", "clas=yes"], 2, 'did you mean "class"'),
        (["sample", "RUN", "-n", "2", "--out", "OUT.csv", "--where", "class=maybe"], 2, 'there are "no", "yes"'),
        (["sample", "RUN", "-n", "2", "--out", "OUT.csv", "--policy", "ppo"], 2, "there is: reference"),
        (["sample", "RUN", "-n", "0", "--out", "OUT.csv"], 2, "rows = 0"),
        (["sample", "RUN", "-n", "2", "--out", "OUT.txt"], 3, 'tables end in .csv, .tsv or .parquet, not in ".txt"'),
        (["sample", "DATA", "-n", "2", "--out", "OUT.csv"], 2, "holds no fitted table"),
        (["sample", "RUN", "-n", "2", "--out", "DATA"], 5, "is a folder; name a file in it, such as"),
        (["fit", "DATA", "--out", "OUT"], 3, "is a folder; name a table"),
        (["fit", "DATA/none.csv", "--out", "OUT"], 3, "none.csv"),
        (["fit", "DATA/data.csv", "--out", "OUT", "--target", "clas"], 2, 'no column "clas"; did you mean "class"'),
        (["fit", "DATA/data.csv", "--out", "OUT", "--columns", "n"], 2, "columns = n: write it as NAME=KIND"),
        (["fit", "DATA/data.csv", "--out", "OUT", "--first", "m"], 2, 'no column "m"'),
        (["fit", "DATA/data.csv", "--out", "OUT", "--model", "gpt2"], 2, "has no effect with encoding = compact"),
        (["fit", "DATA/data.csv", "--out", "OUT", "--fit.heads", "5"], 2, "is no multiple of heads = 5"),
        (["fti"], 2, 'there is no command "fti"; did you mean "fit"'),
    ],
)
def test_each_refusal_is_one_sentence_and_leaves_nothing(
    words: Sequence[str], code: int, message: str, fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    places = {"RUN": fitted, "DATA": fitted.parent, "OUT": tmp_path / "new"}
    given = [word if word.startswith("-") else _placed(word, places) for word in words]
    found, _, err = run(capfd, "table", *given)
    assert found == code
    assert message in err
    assert "Traceback" not in err
    assert not list(tmp_path.iterdir())


def _placed(word: str, places: dict[str, Path]) -> str:
    for name, path in places.items():
        word = word.replace(name, str(path))
    return word


def test_the_commands_that_a_fit_names_are_right(fitted: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capfd, "table", "fit", fitted.parent / "data.csv", "--target", "class", "--out", fitted, *FAST)
    for name, class_name in (("sample", "TableSample"), ("score", "TableScore")):
        (line,) = [line for line in out.splitlines() if f"preflab table {name} " in line]
        words = shlex.split(line.partition(":")[2])
        config = parse(f"table {name}", class_name, words[3:])
        if name == "score":
            assert config.train.is_file()
            assert config.holdout.is_file()
            assert config.target == "class"


def test_an_interrupted_sample_promises_nothing(
    fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = threading.Event()

    def interrupt(*_: object) -> None:
        if not done.is_set():
            raise KeyboardInterrupt

    def ask() -> None:  # again, where the first one comes while something is torn down that lets no exception out
        while not done.wait(1):
            os.kill(os.getpid(), signal.SIGINT)

    # Under nohup and in a shell's background, Ctrl-C is ignored from the start.
    old = signal.signal(signal.SIGINT, interrupt)
    asking = threading.Thread(target=ask)
    asking.start()
    code, _, err = run(capfd, "table", "sample", fitted, "-n", 1_000_000, "--out", tmp_path / "rows.csv")
    done.set()
    asking.join()
    signal.signal(signal.SIGINT, old)
    assert code == 130
    assert "rows.csv was not written" in err
    assert not list(tmp_path.iterdir())


def test_tables_of_text_fit_a_narrow_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    data = tmp_path / "data.csv"
    rows = [f"{'a long value ' * 3}{i % 3},{'漢字' if i % 2 else 'x'},{i % 5}" for i in range(60)]
    data.write_text("\n".join([f"{'a long name ' * 4}a,b,c", *rows, ""]))
    assert run(capfd, "table", "fit", data, "--out", tmp_path / "run", *FAST)[0] == 0
    code, said, _ = run(capfd, "table", "sample", tmp_path / "run", "-n", 5, "--out", tmp_path / "rows.csv")
    shown = said.splitlines()[-4:]
    assert code == 0
    assert max(map(cell_len, shown)) <= 60
    assert shown[1].startswith("  a long name")
    assert "…" in shown[1]
    assert shown[2].split()[0] == "b"


def test_help_needs_no_torch() -> None:
    code = (
        "import sys, io, contextlib\n"
        "from preflab.cli.main import main\n"
        "for name in ('fit', 'sample'):\n"
        "    said = io.StringIO()\n"
        "    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit): main(['table', name, '--help'])\n"
        "    assert '--seed' in said.getvalue()\n"
        "said = io.StringIO()\n"
        "with contextlib.redirect_stdout(said): main(['table'])\n"
        "assert 'table sample' in said.getvalue() and 'train' not in said.getvalue().split('examples')[0]\n"
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_settings_of_a_file_hold_for_tables_too(
    fitted: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = tmp_path / "asked.yaml"
    asked.write_text(f"run: {fitted}\nout: {tmp_path / 'rows.csv'}\nrows: 3\nwhere: [class=yes]\n")
    code, said, _ = run(capfd, "table", "sample", "--config", asked)
    assert code == 0
    assert "3 rows with class=yes" in said
    with contextlib.suppress(FileNotFoundError):
        (tmp_path / "rows.csv").unlink()
    _, said, _ = run(capfd, "table", "sample", "--config", asked, "-n", 4)
    assert "4 rows with class=yes" in said
