"""The run folder: whole files or none, whole lines or none, and nobody else's folder is taken."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from preflab.errors import StorageError
from preflab.runs import (
    RunFolder,
    append_lines,
    claim,
    digest,
    environment,
    new_folder,
    read_json,
    read_lines,
    sha256,
    write_json,
    write_text,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def with_file_limit(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in `folder` where no file may grow past 1000 bytes: what a full disk does to a write."""
    limits = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limits += "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    start = "from pathlib import Path\nfrom preflab.runs import *\n"
    return subprocess.run(
        [sys.executable, "-c", limits + start + code], cwd=folder, capture_output=True, text=True, check=False
    )


def test_write_text_replaces_a_file_and_leaves_nothing_else(tmp_path: Path) -> None:
    write_text(tmp_path / "deep" / "a.txt", "one")
    write_text(tmp_path / "deep" / "a.txt", "zwei ß")
    assert (tmp_path / "deep" / "a.txt").read_text(encoding="utf-8") == "zwei ß"
    assert names(tmp_path / "deep") == {"a.txt"}


def test_a_full_disk_leaves_the_old_file_and_no_debris(tmp_path: Path) -> None:
    write_text(tmp_path / "a.txt", "old")
    result = with_file_limit('write_text(Path("a.txt"), "x" * 5000)', tmp_path)
    assert "preflab.errors.StorageError: can't write a.txt: File too large; free space" in result.stderr
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_a_full_disk_leaves_the_old_folder_and_no_debris(tmp_path: Path) -> None:
    with new_folder(tmp_path / "model") as temporary:
        (temporary / "weights").write_text("old")
    code = 'with new_folder(Path("model")) as temporary:\n    (temporary / "weights").write_text("x" * 5000)'
    result = with_file_limit(code, tmp_path)
    assert "StorageError: can't write model: File too large" in result.stderr
    assert (tmp_path / "model" / "weights").read_text() == "old"
    assert names(tmp_path) == {"model"}


def test_a_line_that_does_not_fit_is_cut_and_then_ignored(tmp_path: Path) -> None:
    append_lines(tmp_path / "metrics.jsonl", [{"step": 1, "x": "a" * 500}])
    code = 'append_lines(Path("metrics.jsonl"), [{"step": 2, "x": "a" * 600}])'
    assert "StorageError: can't write metrics.jsonl: File too large" in with_file_limit(code, tmp_path).stderr
    assert [line["step"] for line in read_lines(tmp_path / "metrics.jsonl")] == [1]


@pytest.mark.parametrize("path", ["file/a.txt", "file/deeper/a.txt", "folder"])
def test_where_nothing_can_be_written(tmp_path: Path, path: str) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    with pytest.raises(StorageError, match=r"^can't write .*(file|folder).*; free space or choose another --out$"):
        write_text(tmp_path / path, "text")
    assert (tmp_path / "file").read_text() == "mine"
    assert names(tmp_path) == {"file", "folder"}


def test_json_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
    assert not names(tmp_path)
    with pytest.raises(StorageError, match=r"a\.json is missing"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"x": 1')
    with pytest.raises(StorageError, match=r"a\.json can't be read .*; delete it"):
        read_json(tmp_path / "a.json")
    write_json(tmp_path / "a.json", {"β": [1.5, None, "\u2028"]})
    assert read_json(tmp_path / "a.json") == {"β": [1.5, None, "\u2028"]}


@pytest.mark.parametrize("kept", range(1, 30))
def test_a_line_cut_by_a_kill_is_ignored(tmp_path: Path, kept: int) -> None:
    whole = b'{"step": 1}\n'
    second = '{"step": 2, "text": "film 🎬 ß"}\n'.encode()
    (tmp_path / "a.jsonl").write_bytes(whole + second[:kept])
    assert read_lines(tmp_path / "a.jsonl") == [{"step": 1}]
    (tmp_path / "a.jsonl").write_bytes(whole + second)
    assert len(read_lines(tmp_path / "a.jsonl")) == 2


def test_lines_end_at_line_feeds_alone(tmp_path: Path) -> None:
    lines = [{"step": n, "text": f"a{separator}b"} for n, separator in enumerate("\u2028\u2029\x85\r\x0b\x1c\n")]
    append_lines(tmp_path / "a.jsonl", lines)
    assert read_lines(tmp_path / "a.jsonl") == lines
    assert (tmp_path / "a.jsonl").read_bytes().count(b"\n") == len(lines)
    assert read_lines(tmp_path / "none.jsonl") == []


def test_a_damaged_line_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1\n{"step": 2}\n')
    with pytest.raises(StorageError, match=r"a\.jsonl is damaged"):
        read_lines(tmp_path / "a.jsonl")


def test_rewind_forgets_later_steps_and_the_cut_line(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for step in (1, 2, 3):
        run.log({"step": step})
    with open(run.metrics, "a") as file:
        file.write('{"step": 4')
    run.rewind(2)
    run.log({"step": 3, "again": True})
    assert read_lines(run.metrics) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def test_a_new_folder_is_whole_or_absent(tmp_path: Path) -> None:
    def stop_halfway() -> None:
        with new_folder(tmp_path / "model") as temporary:
            (temporary / "a").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_halfway()
    assert not names(tmp_path)
    for text in ("first", "second"):
        with new_folder(tmp_path / "model") as temporary:
            assert not names(temporary)
            (temporary / text).write_text(text)
    assert names(tmp_path) == {"model"}
    assert names(tmp_path / "model") == {"second"}


def test_debris_of_killed_processes_is_removed(tmp_path: Path) -> None:
    """Also where it bears our own number."""
    for number, suffix in itertools.product((os.getpid(), 4711), ("tmp", "old")):
        debris = tmp_path / f".model.{number}.{suffix}"
        debris.mkdir()
        (debris / "left").write_text("over")
    (tmp_path / "model").mkdir()
    with new_folder(tmp_path / "model") as temporary:
        (temporary / "a").write_text("new")
    assert names(tmp_path / "model") == {"a"}
    assert names(tmp_path) == {"model"}


def test_claim_takes_a_new_an_empty_and_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "new" / "deep", tmp_path / "empty"):
        claim(folder, "config.yaml", "seed: 0\n")
        (folder / "metrics.jsonl").write_text("kept")
        claim(folder, "config.yaml", "seed: 0\n")
        assert (folder / "metrics.jsonl").read_text() == "kept"


def test_claim_refuses_what_is_not_its_own(tmp_path: Path) -> None:
    claim(tmp_path / "run", "config.yaml", "model: m\nloss:\n  beta: 0.1\n")
    with pytest.raises(StorageError, match=r"run with other settings \('beta: 0.1' there, 'beta: 0.5' now\)"):
        claim(tmp_path / "run", "config.yaml", "model: m\nloss:\n  beta: 0.5\n")
    assert (tmp_path / "run" / "config.yaml").read_text().endswith("0.1\n")

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(StorageError, match="mine is not empty and holds no preflab run"):
        claim(tmp_path / "mine", "config.yaml", "seed: 0\n")
    assert names(tmp_path / "mine") == {"thesis.txt"}

    with pytest.raises(StorageError, match=r"thesis\.txt is a file"):
        claim(tmp_path / "mine" / "thesis.txt", "config.yaml", "seed: 0\n")
    with pytest.raises(StorageError, match=r"^can't use .*thesis\.txt/below: Not a directory"):
        claim(tmp_path / "mine" / "thesis.txt" / "below", "config.yaml", "seed: 0\n")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"


def test_claim_passes_over_what_a_start_killed_while_claiming_left(tmp_path: Path) -> None:
    (tmp_path / ".config.yaml.4711.tmp").write_text("see")
    claim(tmp_path, "config.yaml", "seed: 0\n")
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"


def test_claim_refuses_data_that_changed_since_the_first_start(tmp_path: Path) -> None:
    data, run = tmp_path / "pairs.jsonl", tmp_path / "run"
    data.write_text("one\n")
    claim(run, "config.yaml", "seed: 0\n", data=data)
    recorded = (run / "environment.json").read_bytes()
    claim(run, "config.yaml", "seed: 0\n", data=data)
    data.write_text("two\n")
    with pytest.raises(StorageError, match=r"pairs\.jsonl is not what it was when .*run was started"):
        claim(run, "config.yaml", "seed: 0\n", data=data)
    assert (run / "environment.json").read_bytes() == recorded
    data.unlink()  # a finished run needs its data no more
    claim(run, "config.yaml", "seed: 0\n", data=data)


def test_claim_refuses_a_file_of_that_name_that_is_not_text(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(StorageError, match="other settings"):
        claim(tmp_path, "config.yaml", "seed: 0\n")
    assert (tmp_path / "config.yaml").read_bytes() == b"\xff\xfe\x00"


def test_a_study_claims_its_runs_as_a_whole(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, "seed: 0\n")
    RunFolder.open(tmp_path, "seed: 1\n", ours=True)
    assert (tmp_path / "config.yaml").read_text() == "seed: 1\n"


def test_the_environment_names_versions_and_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_TOKEN", "hunter2")
    RunFolder.open(tmp_path, "seed: 0\n")
    written = (tmp_path / "environment.json").read_text()
    assert json.loads(written) == environment()
    assert {"preflab", "python", "versions"} <= set(environment())
    assert "hunter2" not in written


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1, "b": 3})


def test_a_folder_that_another_process_works_in_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    code = (
        "import sys, time; from pathlib import Path; from preflab.runs import claim; "
        f"claim(Path({str(folder)!r}), 'config.yaml', 'a: 1'); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        with pytest.raises(StorageError, match="another process is at work"):
            claim(folder, "config.yaml", "a: 1")
        other.kill()
    claim(folder, "config.yaml", "a: 1")  # the system lifted the lock
    claim(folder, "config.yaml", "a: 1")  # and a process does not lock itself out
