"""The panel of a run that samples: what it shows, what generated text can do to it, the quiet lines in its place."""

from __future__ import annotations

import io
import math
import os
import pty
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from enumerable import ShareOf, letters_policy, letters_prompts, run_folder
from preflab import progress
from preflab.config.online import GRPO, RolloutBatch
from preflab.config.training import Optimizer
from preflab.live import MOST_POINTS, PHASES, Phases, Sample, Trend, View, live, plain
from preflab.models.load import copy_of
from preflab.rewards.protocol import Answer
from preflab.runs import read_lines
from preflab.training.policy_gradient import train_policy_gradient

LINES = [
    {
        "step": step, "reward": 0.25 * step, "kl_nats": 0.5 * step, "entropy_nats": 3 - 0.1 * step,
        "response_tokens": 31.5, "clip_fraction": 0.113, "ratio": 1.0, "sample_seconds": 6.0, "reward_seconds": 0.2,
        "score_seconds": 1.2, "learn_seconds": 2.6, "generated_tokens_per_second": 1840.0,
    }
    for step in range(1, 11)
]  # fmt: skip
SAMPLES = (
    Sample("The film was", " a triumph of acting, and the plot was clever.", "sample, reward 1.30"),
    Sample("The hero was", " great.", "best, reward 4.10"),
)


def panel(samples: Sequence[Sample] = SAMPLES, title: str = "PPO") -> View:
    """After 10 updates of 40, sampling for the next."""
    phases = Phases()
    phases.begin()
    phases.enter("sample")
    view = View(title, 40, 0, phases)
    for line in LINES:
        view.show(line["step"], line, samples)
    return view


def drawn(view: View, width: int, height: int = 40, **settings: Any) -> str:
    """What a terminal is sent."""
    console = Console(file=io.StringIO(), force_terminal=True, width=width, height=height, soft_wrap=True, **settings)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def text(raw: str) -> list[str]:
    """Its lines, without styles."""
    return re.sub(r"\x1b\[[\d;]*m", "", raw).splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 180])
def test_the_panel_shows_figures_with_their_beginning_and_trend_and_fits(width: int) -> None:
    lines = text(drawn(panel(), width))
    assert {cell_len(line) for line in lines} == {min(width - 2, 100)}
    rows = {line.split()[1]: " ".join(line.strip("│").split()) for line in lines[1:9]}
    assert rows["reward"] == "reward 2.50 from 0.25 ▁▂▃▃▄▅▆▆▇█"
    assert rows["KL"] == "KL 5.00 nats from 0.50 ▁▂▃▃▄▅▆▆▇█"
    assert rows["entropy"] == "entropy 2.00 nats from 2.90 █▇▆▆▅▄▃▃▂▁"
    assert rows["length"] == "length 31.5 tokens from 31.5 ▁▁▁▁▁▁▁▁▁▁"
    assert rows["clipped"] == "clipped 11.3% from 11.3% ▁▁▁▁▁▁▁▁▁▁"
    assert rows["sampling"] == "sampling 1,840 tokens/s from 1,840 ▁▁▁▁▁▁▁▁▁▁"
    assert rows["time"] == "time sample 60% reward 2% score 12% learn 26%"
    whole = "".join(line.strip("│ ") + " " for line in lines)
    assert "PPO" in lines[0]
    assert "10/40" in lines[1]
    assert "gone" in lines[1]
    assert "left" in lines[1]
    assert "sample, reward 1.30 The film was a triumph of acting" in " ".join(whole.split())
    assert "best, reward 4.10 The hero was great." in " ".join(whole.split())
    assert re.search(r"╰─ sample \d+ s ─", lines[-1])


def test_prompts_are_dimmed_and_responses_are_not() -> None:
    raw = drawn(panel(), 100)
    assert "\x1b[2mThe hero was\x1b[0m great." in raw


NASTY = "[red]a[/red] \x1b[31m\x1b[2J\x1b]0;title\x07\x9b31m\r\n\u202eb\u2028\ud800 \U0001f600 大きな映画は" + "c" * 500


def test_generated_text_can_write_no_markup_and_no_control_sequence() -> None:
    shown = panel((Sample(NASTY, NASTY, f"best {NASTY}"[:30]),), title=f"PPO {NASTY}"[:20])
    for width in (30, 60, 61, 100):
        raw = drawn(shown, width)
        assert "\x1b[31m" not in raw
        assert not set(raw) & set("\x07\x9b\r\u202e\u2028\ud800")
        lines = text(raw)
        assert "\x1b" not in "".join(lines)
        assert {cell_len(line) for line in lines} == {width - 2}
        raw.encode()
    assert "[red]a[/red] �[31m�[2J�]0;title��31m⏎�b⏎� 😀 大きな映画は" in plain(NASTY)


def test_long_samples_are_cut_and_the_end_of_a_prompt_is_kept() -> None:
    long = Sample("once " * 1000 + "the plot was", " good" * 1000, "sample")
    lines = text(drawn(panel((long,)), 60))
    shown = lines[lines.index("│" + " " * 56 + "│") + 1 : -1]
    assert len(shown) == 3
    assert "sample  …" in shown[0]
    assert "the plot was" in " ".join(shown[0].split() + shown[1].split())
    assert shown[2].rstrip("│ ").endswith("…")


def test_on_a_low_terminal_samples_give_way() -> None:
    assert len(text(drawn(panel(), 60, height=40))) == 14
    for height in range(11, 20):
        assert len(text(drawn(panel(), 60, height=height))) < height
    assert "best" not in drawn(panel(), 60, height=12)


def test_there_is_a_picture_before_the_first_update_is_over_and_of_a_run_that_samples_nothing() -> None:
    first = text(drawn(View("PPO", 40, 0, Phases()), 60))
    assert "0/40" in first[1]
    offline = View("DPO", 40)
    offline.show(1)
    offline.show(10, {"loss": 0.5, "accuracy": 0.75, "learning_rate": 1e-6})
    lines = text(drawn(offline, 60))
    assert "10/40" in lines[1]
    assert lines[2].split() == ["│", "loss", "0.500", "from", "0.500", "▁", "│"]
    assert lines[3].split() == ["│", "accuracy", "0.750", "from", "0.750", "▁", "│"]
    assert len(lines) == 5


def test_parts_of_a_reward_stand_below_it_whatever_they_are_called() -> None:
    view = View("GRPO", 10)
    view.show(1, {"reward": 1.0, "reward/[b]length\x1b[2J": 0.25, "kl_nats": 0.0})
    labels = [line.split()[1] for line in text(drawn(view, 60))[2:5]]
    assert labels == ["reward", "[b]length�[2J", "KL"]


def test_colours_are_left_out_where_nobody_wants_them() -> None:
    colours = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|9\d)(?:;\d+)*m")
    assert colours.search(drawn(panel(), 100))
    assert not colours.search(drawn(panel(), 100, no_color=True))


def test_a_trend_of_any_length_is_means_of_equally_many_values() -> None:
    values = [float(i * i % 97) for i in range(5000)]
    trend = Trend(values[0])
    for value in values[1:]:
        trend.add(value)
        assert len(trend.means) <= MOST_POINTS
    assert (trend.first, trend.now, trend.each) == (values[0], values[-1], 128)
    expected = [sum(values[i : i + 128]) / 128 for i in range(0, len(trend.means) * 128, 128)]
    assert trend.means == pytest.approx(expected)


@pytest.mark.parametrize("values", [[1.0, math.inf], [math.nan, 2.0, 3.0], [-math.inf]])
def test_a_figure_that_is_not_finite_is_told_and_the_panel_stands(values: list[float]) -> None:
    view = View("PPO", 4)
    for value in values:
        view.add({"reward": value})
    lines = text(drawn(view, 80))
    assert f"reward  {values[-1]:.2f}" in re.sub(r" {2,}", "  ", lines[2])
    assert len(lines) == 4


def test_trends_of_a_resumed_run_begin_where_the_run_began(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = watched(monkeypatch)
    with live("PPO", 40, 9, earlier=LINES[:9]) as show:
        show(10, LINES[9])
    rows = [" ".join(line.strip("│").split()) for line in text(terminal.getvalue())]
    assert "reward 2.50 from 0.25 ▁▂▃▃▄▅▆▆▇█" in rows


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def watched(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """From here on someone watches."""
    terminal = Terminal()
    for name, value in {"TERM": "xterm", "COLUMNS": "100", "LINES": "40"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    shown = Console(stderr=True, highlight=False, soft_wrap=True)
    monkeypatch.setattr(progress, "console", shown)
    monkeypatch.setattr("preflab.live.console", shown)
    return terminal


def test_without_a_terminal_there_is_one_line_a_stage(capfd: pytest.CaptureFixture[str]) -> None:
    with live("PPO", 10) as show:
        for line in LINES:
            show(line["step"], line, SAMPLES)
    assert capfd.readouterr() == ("", "PPO: 0 s, reward 2.50, KL 5.00 nats, sampling 1,840 tokens/s\n")


def test_a_long_run_writes_a_line_now_and_then(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """After so many seconds, and where there is something to say."""
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.2)
    with live("PPO", 10) as show:
        for step in (1, 2, 3):
            show(step, LINES[step - 1])
        time.sleep(0.25)
        show(4)
        show(5, LINES[4])
        show(6, LINES[5])
    lines = capfd.readouterr().err.splitlines()
    told = "reward 1.25, KL 2.50 nats, sampling 1,840 tokens/s"
    assert lines[0] == f"PPO: 5 of 10, 0:00:00 gone, 0:00:00 left, {told}"
    assert len(lines) == 2


CODE = """
import time
from preflab.live import Phases, Sample, live
with live("PPO", 9, phases=Phases()) as show:
    show(3, {"reward": 1.5, "kl_nats": 2.0}, [Sample("The film was", " good.", "sample")])
    print("printed by a reward")
"""


def seen(code: str = CODE, **environment: str) -> tuple[str, str]:
    """What a terminal gets of a run, and what the file does that its standard output goes to."""
    leader, follower = pty.openpty()
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR", "TERM")}
    ran = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=follower,
        env=kept | {"TERM": "xterm", "COLUMNS": "70", "LINES": "30"} | environment,
        check=True,
    )
    os.close(follower)
    found = b""
    try:
        while more := os.read(leader, 65536):
            found += more
    except OSError:  # all is read, and nobody will write
        pass
    os.close(leader)
    return found.decode(), ran.stdout.decode()


LAST = "PPO: 0 s, reward 1.50, KL 2.00 nats\r\n"


def test_a_terminal_gets_a_panel_that_leaves_one_line_behind() -> None:
    shown, printed = seen()
    assert "╭" in shown
    assert "The film was" in shown
    assert shown.endswith(LAST)
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1  # the cursor is back
    # As many lines are wiped at the end as the last picture had.
    wiped = re.search(r"((?:\x1b\[1A\x1b\[2K)+)PPO: 0 s", shown)
    assert wiped is not None
    assert wiped[1].count("\x1b[1A") == len(shown[shown.rindex("╭") : shown.rindex("╯")].splitlines())
    assert printed == "printed by a reward\n"


def test_a_run_that_fails_leaves_the_terminal_as_it_was() -> None:
    shown, _ = seen(f"try:\n{textwrap.indent(CODE, ' ')}     1 / 0\nexcept ZeroDivisionError:\n print('failed')")
    assert "╭" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1
    assert shown.endswith("\x1b[1A\x1b[2K")


def test_a_terminal_that_cannot_move_its_cursor_gets_the_quiet_line() -> None:
    assert seen(TERM="dumb") == (LAST, "printed by a reward\n")


def test_a_log_in_colours_is_no_terminal() -> None:
    environment = os.environ | {"FORCE_COLOR": "1", "TERM": "xterm"}
    ran = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, env=environment, check=True)
    assert ran.stderr == LAST.replace("\r", "")


class Slow(ShareOf):
    """Thinks before it answers."""

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        time.sleep(0.05)
        return super().__call__(answers)


def test_phases_add_up_to_the_time_of_the_updates_and_the_samples_are_those_of_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A slow reward shows as one; every response token is in the speed."""
    terminal = watched(monkeypatch)
    policy, run = letters_policy(spread=4.0), run_folder(tmp_path)
    settings = GRPO(
        updates=3, responses=4, batch=RolloutBatch(size=8, mini=8, micro=8), epochs=1, evaluations=1,
        optimizer=Optimizer(learning_rate=0.01, warmup_steps=0),
    )  # fmt: skip
    cost = train_policy_gradient(
        policy, copy_of(policy.model), Slow("a"), letters_prompts(4), settings, run, max_new_tokens=4, seed=0
    )
    lines = read_lines(run.metrics)
    spent = [sum(line[f"{phase}_seconds"] for phase in PHASES) for line in lines]
    assert sum(spent) == pytest.approx(cost.wall_seconds, rel=0.02, abs=0.02)
    for line in lines:
        assert 0.05 < line["reward_seconds"] < 0.05 + line["sample_seconds"] + line["learn_seconds"]
        assert min(line[f"{phase}_seconds"] for phase in PHASES) > 0
    tokens = sum(line["generated_tokens_per_second"] * line["sample_seconds"] for line in lines)
    assert tokens == pytest.approx(cost.generated_tokens)
    shown = text(terminal.getvalue())
    assert any("best, reward" in line for line in shown)
    assert shown[-1].endswith(f"{lines[-1]['generated_tokens_per_second']:,.0f} tokens/s")
