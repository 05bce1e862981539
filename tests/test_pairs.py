"""`preflab pairs`: what it writes can be read back, what it leaves out is counted, and nothing is overwritten."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from preflab.cli import pairs as command
from preflab.cli.main import main
from preflab.data.sources import read_pairs
from preflab.models.load import new_reward_model, save_model
from preflab.runs import read_lines
from tiny import save_tiny, tiny_prompts, write_jsonl

N = 12
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf")
    save_tiny(folder / "base")
    save_model(new_reward_model(folder / "base", seed=0), folder / "reward")
    write_jsonl(folder / "prompts.jsonl", tiny_prompts(N))
    return folder


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str], shelf: Path) -> Run:
    def pairs(out: Path, *flags: object) -> tuple[int, str, str]:
        given = ["pairs", shelf / "base", "--reward", shelf / "reward", "--data", shelf / "prompts.jsonl", "--out", out]
        code = 0
        try:
            main([str(one) for one in [*given, "--lengths.response-tokens", "6", *flags]])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capfd.readouterr()
        return code, captured.out, captured.err

    return pairs


def test_what_is_written_is_read_back(run: Run, shelf: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "pairs.jsonl"
    code, printed, said = run(out, "--ranking.temperatures", "0.7", "1.3", "--missing-end-penalty", "0")
    assert code == 0, said
    lines, loaded = read_lines(out), read_pairs(out)
    assert [(row.prompt, row.chosen, row.rejected) for row in loaded.rows] == [
        (line["prompt"], line["chosen"], line["rejected"]) for line in lines
    ]
    assert len(lines) > N / 2
    assert {line["prompt"] for line in lines} <= {row["prompt"] for row in tiny_prompts(N)}
    assert all(line["chosen_reward"] > line["rejected_reward"] + 0.01 for line in lines)
    gap = sum(line["chosen_reward"] - line["rejected_reward"] for line in lines) / len(lines)
    assert re.fullmatch(rf"{len(lines)} pairs, mean reward gap {gap:.3g}: {re.escape(str(out))}\n", printed)
    assert f"prompts without a pair (rewards within ranking.smallest_gap): {N - len(lines)}" in said
    assert f"{N} prompts, a response at each of the temperatures [0.7, 1.3]" in said


def test_the_seed_decides_the_pairs(run: Run, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        assert run(tmp_path / f"{name}.jsonl", "--seed", seed)[0] == 0
    first, again, other = ((tmp_path / f"{name}.jsonl").read_bytes() for name in "abc")
    assert first == again != other


def test_stop_texts_end_responses_and_are_left_out(run: Run, tmp_path: Path) -> None:
    flags = ["--ranking.temperatures", "1", "1.5", "2", "--lengths.response-tokens", "12", "--missing-end-penalty", "0"]
    for name, more in (("free", []), ("held", ["--stop", "a", "th"])):
        code, _, said = run(tmp_path / f"{name}.jsonl", *flags, *more)
        assert code == 0, said
    texts = {
        name: [line[side] for line in read_lines(tmp_path / f"{name}.jsonl") for side in ("chosen", "rejected")]
        for name in ("free", "held")
    }
    assert sum("a" in text or "th" in text for text in texts["free"]) > 5
    assert not [text for text in texts["held"] if "a" in text or "th" in text]


def test_what_is_sampled_is_what_the_ranking_says(run: Run, tmp_path: Path) -> None:
    """One token is left to sample from: all responses to a prompt are the same."""
    code, _, said = run(tmp_path / "pairs.jsonl", "--ranking.top-k", "1")
    assert code == 3
    assert "no prompt gave a pair" in said


def test_nothing_is_overwritten(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "pairs.jsonl"
    out.write_text("mine")
    code, _, said = run(out)
    assert (code, out.read_text()) == (2, "mine")
    assert "pairs.jsonl exists; nothing is overwritten: choose another --out, or delete it" in said
    code, _, said = run(tmp_path)
    assert code == 2
    assert "exists; nothing is overwritten" in said


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--out", "OUT/pairs.json"], 2, r"pairs\.json: pairs are written as JSONL; let the name end in \.jsonl"),
        (["--ranking.smallest-gap", "99"], 3, r"no prompt gave a pair: .* ranking\.smallest_gap = 99\.0; lower it"),
        (["--ranking.temperatures", "1.0"], 2, r"ranking\.temperatures = \[1\.0\]: a pair needs two responses"),
        (["--ranking.temperatures", "1.0", "0"], 2, r"ranking\.temperatures = .*greater than 0"),
        (["--lengths.response-tokens", "96"], 2, r"the model has 96 positions; lower lengths\.prompt_tokens"),
    ],
)
def test_refused(run: Run, tmp_path: Path, flags: list[str], code: int, message: str) -> None:
    found, _, said = run(tmp_path / "pairs.jsonl", *(flag.replace("OUT", str(tmp_path)) for flag in flags))
    assert found == code, said
    assert re.search(message, said), said
    assert not list(tmp_path.iterdir())


def test_responses_that_could_not_be_read_back_are_left_out_and_counted(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """White space alone is no response to `read_pairs`, which would refuse a file that holds too much of it."""
    decode = command.Encoder.decode
    texts: dict[tuple[int, ...], int] = {}

    def blank_every_third(self: command.Encoder, ids: tuple[int, ...]) -> str:
        place = texts.setdefault(tuple(ids), len(texts))
        return " \n" if place % 3 == 0 else decode(self, ids)

    monkeypatch.setattr(command.Encoder, "decode", blank_every_third)
    out = tmp_path / "pairs.jsonl"
    code, printed, said = run(out, "--missing-end-penalty", "0")
    assert code == 0, said
    left = len(read_pairs(out).rows)
    dropped = re.search(r"pairs dropped, as their texts are empty or the same: (\d+)", said)
    without = re.search(r"smallest_gap\): (\d+)", said)
    assert dropped
    assert without
    assert int(dropped[1]) > 0
    assert left + int(dropped[1]) + int(without[1]) == N
    gaps = [line["chosen_reward"] - line["rejected_reward"] for line in read_lines(out)]
    assert printed.startswith(f"{left} pairs, mean reward gap {sum(gaps) / left:.3g}:")

    monkeypatch.setattr(command.Encoder, "decode", lambda self, ids: " ")
    code, _, said = run(tmp_path / "none.jsonl", "--missing-end-penalty", "0")
    assert code == 3
    assert "has an empty response, or the same text twice: nothing to write" in said
    assert not (tmp_path / "none.jsonl").exists()
