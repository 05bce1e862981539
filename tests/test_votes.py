"""Blind sheets and human votes: nobody is told which is which, and every vote is counted once, for the right arm."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from preflab.errors import DataError
from preflab.report.shares import share
from preflab.report.study import read_study
from preflab.report.votes import read_votes
from ran import run
from study_folder import REFERENCE, SimulatedArm, root, write_study

HOSTILE = ("=1+1", "@SUM(A1)", "+1 fine film", "-2 stars", "\t=HYPERLINK(0)", "a,b;c", '"quoted"', "two\nlines", "ü–語")


def two_arms(folder: Path, *, also: Sequence[SimulatedArm] = (), **kw: Any) -> Path:
    """A study of dpo and ppo, with one checkpoint each."""
    arms = [SimulatedArm(name, name, root(1.0), steps=(100,), kl=(2.0,)) for name in ("dpo", "ppo")]
    return write_study(folder, [REFERENCE, *arms, *also], **kw)


def sheet(folder: Path, capfd: pytest.CaptureFixture[str], *flags: object, arms: Sequence[str] = ("dpo", "ppo")) -> str:
    code, out, err = run(capfd, "sheet", folder, "--arms", *arms, *flags)
    assert code == 0, err
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        return list(csv.DictReader(file))


def key(folder: Path, name: str = "dpo-against-ppo") -> Any:
    return json.loads((folder / "votes" / f"{name}.key.json").read_text())


def fill(folder: Path, votes: Callable[[int, str], str], *, rater: str = "", name: str = "dpo-against-ppo") -> Path:
    """Write a filled copy: `votes` is told the row and which arm stands first on it."""
    first = {row["row"]: row["first"] for row in key(folder, name)["rows"]}
    original = folder / "votes" / f"{name}.csv"
    filled = [row | {"vote": votes(int(row["row"]), first[int(row["row"])])} for row in rows(original)]
    path = original.with_name(f"{name}.{rater}.csv") if rater else original
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(filled[0]))
        writer.writeheader()
        writer.writerows(filled)
    return path


def for_dpo(first: str) -> str:
    """The vote that dpo gets."""
    return "1" if first == "dpo" else "2"


def for_ppo(first: str) -> str:
    return "2" if first == "dpo" else "1"


def test_a_sheet_shows_what_the_arms_answered_and_the_key_alone_says_who(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    study = read_study(two_arms(tmp_path, prompts=60, seeds=2))
    sheet(tmp_path, capfd, "-n", 40)
    answers = {
        (arm.name, run_of.seed, sample.prompt_id): sample.response
        for arm in study.arms
        for run_of in arm.runs
        if run_of.test
        for sample in run_of.test.samples[0]
    }
    shown = rows(tmp_path / "votes/dpo-against-ppo.csv")
    assert [row["row"] for row in shown] == [str(n) for n in range(1, 41)]
    for row, known in zip(shown, key(tmp_path)["rows"], strict=True):
        other = {"dpo": "ppo", "ppo": "dpo"}[known["first"]]
        assert row["first"] == answers[known["first"], known["seed"], known["prompt_id"]]
        assert row["second"] == answers[other, known["seed"], known["prompt_id"]]
        assert not row["vote"]
    known = key(tmp_path)["rows"]
    assert len({row["prompt_id"] for row in known}) == 40  # each prompt once: rows are independent
    assert {row["seed"] for row in known} == {0, 1}
    assert 10 <= sum(row["first"] == "dpo" for row in known) <= 30
    text = (tmp_path / "votes/dpo-against-ppo.csv").read_text()
    assert "dpo" not in text
    assert "ppo" not in text


def test_the_seed_determines_the_sheet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    made = []
    for number, seed in enumerate((0, 0, 1)):
        folder = two_arms(tmp_path / str(number))
        sheet(folder, capfd, "--n", 20, "--seed", seed)
        made.append((folder / "votes/dpo-against-ppo.csv").read_bytes())
    assert made[0] == made[1] != made[2]


def test_votes_are_never_overwritten(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path)
    sheet(tmp_path, capfd)
    copy = fill(tmp_path, lambda row, first: "1", rater="anna")
    (tmp_path / "votes/dpo-against-ppo.csv").unlink()
    before = (copy.read_bytes(), key(tmp_path))
    code, _, err = run(capfd, "sheet", tmp_path, "--arms", "dpo", "ppo", "--seed", 5)
    assert code == 2
    assert "dpo-against-ppo.anna.csv exists and may hold votes" in err
    assert (copy.read_bytes(), key(tmp_path)) == before


@pytest.mark.parametrize(
    ("arms", "message"),
    [(("dpo", "dpo"), "name two arms"), (("dpo", "ppoo"), 'has no arm "ppoo"; did you mean "ppo"')],
)
def test_two_arms_of_the_study_are_needed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], arms: tuple[str, str], message: str
) -> None:
    two_arms(tmp_path)
    code, _, err = run(capfd, "sheet", tmp_path, "--arms", *arms)
    assert code == 2
    assert message in err


def test_arms_without_test_responses_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    untested = SimulatedArm("kto", "kto", root(1.0), tested=False)
    two_arms(tmp_path, also=[untested], complete=False)
    code, _, err = run(capfd, "sheet", tmp_path, "--arms", "dpo", "kto")
    assert code == 3
    assert "share no test prompt yet" in err


def test_no_cell_is_a_formula_and_every_text_survives(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path, response=lambda rng: str(rng.choice(HOSTILE)), prompt_texts=HOSTILE)
    sheet(tmp_path, capfd, "-n", 60)
    shown = rows(tmp_path / "votes/dpo-against-ppo.csv")
    cells = {row[name] for row in shown for name in ("prompt", "first", "second")}
    assert not [cell for cell in cells if cell[0] in "=+-@\t\r"]
    assert cells == {f"'{text}" if text[0] in "=+-@\t" else text for text in HOSTILE}


def test_wins_ties_and_losses_are_those_of_the_arm_and_not_of_the_place(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two_arms(tmp_path)
    sheet(tmp_path, capfd, "-n", 10)
    fill(tmp_path, lambda row, first: for_dpo(first) if row <= 6 else "tie" if row <= 8 else for_ppo(first))
    (pair,) = read_votes(tmp_path)
    assert (pair.first_arm, pair.second_arm, pair.raters) == ("dpo", "ppo", 1)
    assert (pair.wins, pair.ties, pair.losses) == (6, 2, 2)
    assert pair.win_rate.mean == pytest.approx(0.7)
    assert 0 <= pair.win_rate.low < 0.7 < pair.win_rate.high <= 1
    assert pair.agreement is None


def test_who_always_votes_for_the_first_shows_a_bias_and_no_winner(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two_arms(tmp_path, prompts=200)
    sheet(tmp_path, capfd, "-n", 200)
    fill(tmp_path, lambda row, first: "1")
    (pair,) = read_votes(tmp_path)
    assert pair.first_position_rate.mean == 1
    assert pair.first_position_rate.low == pytest.approx(binomtest(200, 200).proportion_ci(method="exact").low)
    assert pair.win_rate.low < 0.5 < pair.win_rate.high


def test_the_votes_of_several_people_on_one_row_are_averaged(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path)
    sheet(tmp_path, capfd, "-n", 4)
    fill(tmp_path, lambda row, first: for_dpo(first), rater="anna")
    fill(tmp_path, lambda row, first: for_ppo(first) if row == 1 else for_dpo(first), rater="ben")
    fill(tmp_path, lambda row, first: "tie" if row == 2 else "", rater="cem")
    (pair,) = read_votes(tmp_path)  # the sheet itself is still empty
    assert pair.raters == 3
    assert (pair.wins, pair.ties, pair.losses) == (7, 1, 1)
    assert pair.win_rate.mean == pytest.approx((0.5 + 2.5 / 3 + 1 + 1) / 4)
    # Row 1: no of 1; row 2: 1 of 3; rows 3 and 4: 1 of 1.
    assert pair.agreement == pytest.approx(3 / 6)


def test_prompts_that_both_answer_alike_are_on_no_row_and_count_as_ties(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    two_arms(tmp_path, prompts=40, response=lambda rng: str(rng.choice(["fine", "bad"])))
    said = sheet(tmp_path, capfd, "-n", 40)
    alike = len(key(tmp_path)["alike"])
    shown = len(key(tmp_path)["rows"])
    assert alike + shown == 40
    assert 5 < alike < 35
    assert f"{alike} more prompts" in said
    fill(tmp_path, lambda row, first: for_dpo(first))
    (pair,) = read_votes(tmp_path)
    assert (pair.wins, pair.ties) == (shown, alike)
    assert pair.win_rate.mean == pytest.approx((shown + alike / 2) / 40)
    assert pair.first_position_rate.mean == pytest.approx(
        np.mean([row["first"] == "dpo" for row in key(tmp_path)["rows"]])
    )
    half = fill(tmp_path, lambda row, first: for_dpo(first) if row <= shown // 2 else "")
    (pair,) = read_votes(tmp_path)
    assert pair.ties == round(alike * (shown // 2) / shown), half


def test_arms_that_always_answer_alike_need_no_votes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path, response=lambda rng: "the same")
    code, _, err = run(capfd, "sheet", tmp_path, "--arms", "dpo", "ppo")
    assert code == 3
    assert "alike; nothing to vote on" in err


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_a_sheet_that_a_spreadsheet_saved_and_sorted_is_read_the_same(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], delimiter: str
) -> None:
    two_arms(tmp_path, response=lambda rng: f"{rng.choice(HOSTILE)} {rng.random()}")
    sheet(tmp_path, capfd, "-n", 20)
    path = fill(tmp_path, lambda row, first: for_dpo(first) if row % 3 else "tie")
    before = read_votes(tmp_path)
    lines = sorted(rows(path), key=lambda row: row["first"])
    with open(path, "w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, ["vote", "row", "first", "second", "prompt"], delimiter=delimiter)
        writer.writeheader()
        writer.writerows(row | {"vote": f" {row['vote'].upper()} "} for row in lines)
    assert read_votes(tmp_path) == before
    assert before[0].ties == 6


def test_an_empty_sheet_and_no_sheet_are_no_votes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path)
    assert read_votes(tmp_path) == ()
    sheet(tmp_path, capfd)
    assert read_votes(tmp_path) == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("2,p,a,b,3", r'dpo-against-ppo\.csv:3: row 2: the vote is "3"; write 1, 2 or tie'),
        ("2,p,a,b,dpo", r'row 2: the vote is "dpo"'),
        ("99,p,a,b,1", r'the sheet has no row "99"'),
        ("two,p,a,b,1", r'the sheet has no row "two"'),
        ("1,p,a,b,1", r"row 1 stands twice"),
    ],
)
def test_a_wrong_line_of_a_sheet_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    two_arms(tmp_path)
    sheet(tmp_path, capfd)
    (tmp_path / "votes/dpo-against-ppo.csv").write_text(f"row,prompt,first,second,vote\n1,p,a,b,1\n{line}\n")
    with pytest.raises(DataError, match=message):
        read_votes(tmp_path)


def test_files_that_are_no_sheets_are_named(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    two_arms(tmp_path)
    sheet(tmp_path, capfd)
    path = tmp_path / "votes/dpo-against-ppo.csv"
    path.write_text("number,vote\n1,1\n")
    with pytest.raises(DataError, match=r'dpo-against-ppo\.csv:1: no column "row"'):
        read_votes(tmp_path)
    path.write_bytes("row,vote\n1,ü".encode("latin-1"))
    with pytest.raises(DataError, match=r"save the sheet as CSV in UTF-8"):
        read_votes(tmp_path)
    path.rename(path.with_name("mine.csv"))
    with pytest.raises(DataError, match=r"mine\.csv has no key"):
        read_votes(tmp_path)


def test_a_name_that_begins_another_does_not_take_its_votes(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    longer = SimulatedArm("ppo@kl_coefficient=0.05", "ppo", root(1.2))
    shorter = SimulatedArm("ppo@kl_coefficient=0", "ppo", root(1.1))
    two_arms(tmp_path, also=[longer, shorter])
    for arm in (longer, shorter):
        sheet(tmp_path, capfd, "-n", 10, arms=("dpo", arm.name))
    fill(tmp_path, lambda row, first: for_dpo(first), name=f"dpo-against-{longer.name}", rater="anna")
    fill(tmp_path, lambda row, first: for_ppo(first), name=f"dpo-against-{shorter.name}", rater="anna")
    found = {pair.second_arm: (pair.wins, pair.losses) for pair in read_votes(tmp_path)}
    assert found == {longer.name: (10, 0), shorter.name: (0, 10)}


@pytest.mark.parametrize("n", [2, 8, 50])
def test_shares_that_are_all_alike_have_the_exact_binomial_interval(n: int) -> None:
    all_wins, none = share(np.ones(n), "wins"), share(np.zeros((3, n)), "wins")
    exact = binomtest(n, n).proportion_ci(method="exact")
    assert (all_wins.low, all_wins.high) == pytest.approx((exact.low, 1))
    assert (none.low, none.high) == pytest.approx((0, 1 - exact.low))
    ties = share(np.full(n, 0.5), "wins")
    assert ties.high - 0.5 == pytest.approx(0.5 - ties.low) == pytest.approx((1 - exact.low) / 2)


def test_shares_cover_what_they_estimate() -> None:
    rng = np.random.default_rng(0)
    for truth in (0.5, 0.9, 0.97):
        found = [share((rng.random(50) < truth).astype(float), "wins") for _ in range(400)]
        assert np.mean([one.low <= truth <= one.high for one in found]) > 0.9
