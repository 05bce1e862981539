"""A user's function as a reward: what it is called with, and what is said when it fails."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from preflab.errors import ConfigError, NumericError
from preflab.rewards import Answer, FunctionReward, assess, load_function, score

ANSWERS = [
    Answer("2 + 2 =", " 4", (1, 2), (5, 0), True, {"answer": "4", "level": 1}),
    Answer("1 + 2 =", " three", (1, 3), (6, 7, 8), False, {"answer": "3"}),
    Answer("1 + 0 =", " 1", (1, 4), (9, 0), True, {"answer": "1", "level": 2}),
]


def test_a_function_gets_what_it_asks_for_by_name() -> None:
    seen: dict[str, Any] = {}

    def reward(completions: list[str], answer: list[str], ended: list[bool], level: Any = None) -> list[float]:
        seen.update(completions=completions, answer=answer, ended=ended, level=level)
        return [0.0] * len(completions)

    score(FunctionReward(reward, "reward", ("answer", "level")), ANSWERS)
    assert seen == {
        "completions": [" 4", " three", " 1"],
        "answer": ["4", "3", "1"],
        "ended": [True, False, True],
        "level": [1, None, 2],
    }


def test_a_function_written_for_trl_works_as_it_is() -> None:
    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        assert set(kwargs) == {"prompt_ids", "completion_ids", "ended", "answer"}
        assert kwargs["completion_ids"] == [[5, 0], [6, 7, 8], [9, 0]]
        assert kwargs["prompt_ids"][0] == [1, 2]
        return [float(c.strip() == a) for c, a in zip(completions, kwargs["answer"], strict=True)]

    assert score(FunctionReward(reward, "reward", ("answer",)), ANSWERS) == [1.0, 0.0, 1.0]


@pytest.mark.parametrize(("batch_size", "calls"), [(None, [3]), (1, [1, 1, 1]), (2, [2, 1]), (5, [3])])
def test_a_function_is_called_batch_by_batch(batch_size: int | None, calls: list[int]) -> None:
    seen = []

    def reward(completions: list[str]) -> list[float]:
        seen.append(len(completions))
        return [float(len(text)) for text in completions]

    assert score(FunctionReward(reward, "reward", batch_size=batch_size), ANSWERS) == [2.0, 6.0, 2.0]
    assert seen == calls


def test_one_number_a_token_is_kept_and_added_up() -> None:
    def reward(completion_ids: list[list[int]]) -> list[list[float]]:
        return [[0.5 * token for token in ids] for ids in completion_ids]

    found = assess(FunctionReward(reward, "reward"), ANSWERS)
    assert [one.tokens for one in found.values] == [(2.5, 0.0), (3.0, 3.5, 4.0), (4.5, 0.0)]
    assert found.totals == [2.5, 10.5, 4.5]


@pytest.mark.parametrize(
    ("returned", "said"),
    [
        ([0.0, None, 0.0], r"gave None, not a finite number, to the response ' three' to the prompt '1 \+ 2 ='"),
        ([0.0, float("nan"), 0.0], r"gave nan, .*' three'"),
        ([0.0, float("-inf"), 0.0], r"gave -inf, .*' three'"),
        ([0.0, True, 0.0], r"gave True, .*' three'"),
        ([0.0, "1", 0.0], r"gave '1', .*' three'"),
        ([0.0, 10**400, 0.0], r"gave 10000\d*\.\.\.\d*000, not a finite number, .*' three'"),
        ([0.0, torch.tensor(1j), 0.0], r"gave tensor\(0.\+1.j\), .*' three'"),
        ([0.0, "so\nlong " * 999, 0.0], r"gave '.{20,40}', .*' three'"),
        ([[0.0, 0.0], [1.0, 2.0], 0.0], r"gave 2 numbers to the 3 tokens of the response ' three'"),
        ([[0.0, 0.0], [1.0, float("nan"), 2.0], 0.0], r"gave nan, .* to token 2 of the response ' three'"),
        ([0.0, 1.0], r"returned 2 values for 3 responses"),
        (None, r"returned NoneType, not a list of numbers"),
        (1.0, r"returned float, not a list of numbers"),
        ({1.0, 2.0, 3.0}, r"returned set, not a list of numbers"),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, r"returned dict, not a list of numbers"),
        ((0.0 for _ in range(3)), r"returned generator, not a list of numbers"),
    ],
)
def test_what_is_no_reward_is_named(returned: Any, said: str) -> None:
    def reward(completions: list[str]) -> Any:
        return returned

    with pytest.raises(NumericError, match=f"^reward mine.py:f {said}"):
        score(FunctionReward(reward, "mine.py:f"), ANSWERS)


@pytest.mark.parametrize("error", [ValueError("no\nsense"), KeyError("x"), SystemExit(0), AssertionError()])
def test_an_exception_names_the_response_and_keeps_its_cause(error: BaseException) -> None:
    def reward(completions: list[str]) -> list[float]:
        if " three" in completions:
            raise error
        return [0.0] * len(completions)

    with pytest.raises(NumericError) as stopped:
        score(FunctionReward(reward, "mine.py:f"), ANSWERS)
    assert stopped.value.__cause__ is error
    assert stopped.value.exit_code == 4
    said = str(stopped.value)
    assert said.startswith(f"reward mine.py:f raised {type(error).__name__}")
    assert re.search(r"\(test_reward_functions\.py, line \d+\) on a batch of 3 responses; alone, the response ", said)
    assert said.endswith("' three' to the prompt '1 + 2 =' raises it too")
    assert "\n" not in said


def test_a_batch_of_one_is_called_once_and_named() -> None:
    calls = []

    def reward(completions: list[str]) -> list[float]:
        calls.append(completions)
        raise ValueError("no")

    with pytest.raises(NumericError, match=r"raised ValueError: no \(.*\) for the response ' 4' to the prompt"):
        score(FunctionReward(reward, "f"), ANSWERS[:1])
    assert len(calls) == 1


def test_a_batch_that_raises_where_no_response_does_is_not_hidden() -> None:
    def reward(completions: list[str]) -> list[float]:
        if len(completions) > 1:
            raise ValueError("too many")
        return [0.0]

    said = r"ValueError: too many .* on a batch of 3 responses; neither half of 2 of them .* first is .*' three'"
    with pytest.raises(NumericError, match=said):
        score(FunctionReward(reward, "f"), ANSWERS)


def test_the_response_that_raises_is_found_in_few_calls() -> None:
    answers = [Answer("?", str(number), (1,), (2,), True) for number in range(512)]
    calls = []

    def reward(completions: list[str]) -> list[float]:
        calls.append(len(completions))
        if "499" in completions:
            raise ValueError("no")
        return [0.0] * len(completions)

    with pytest.raises(NumericError, match=r"no .* on a batch of 512 responses; alone, the response '499' .* it too$"):
        score(FunctionReward(reward, "f"), answers)
    assert len(calls) <= 1 + 2 * 9


def test_no_response_gets_no_reward() -> None:
    def reward(completions: list[str]) -> list[float]:
        raise AssertionError("called for nothing")

    assert score(FunctionReward(reward, "f"), []) == []


def test_ctrl_c_is_no_fault_of_the_reward() -> None:
    def reward(completions: list[str]) -> list[float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score(FunctionReward(reward, "f"), ANSWERS)


def nameless(texts: list[str]) -> list[float]:
    return [0.0 for _ in texts]


def misspelt(completions: list[str], anwser: list[str]) -> list[float]:
    return [0.0 for _ in completions]


def positional(completions: list[str], /) -> list[float]:
    return [0.0 for _ in completions]


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (nameless, r'f asks for "texts", which is neither prompts, completions, .* nor a column of the prompts'),
        (misspelt, r'f asks for "anwser", .*; did you mean "answer"\?'),
        (positional, r"f: the parameter completions can't be given by keyword; remove the /"),
    ],
)
def test_a_wrong_signature_is_refused_before_the_first_call(function: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        FunctionReward(function, "f", ("answer",))


def test_a_callable_object_is_a_function_too() -> None:
    class Counter:
        def __call__(self, completions: Sequence[str]) -> list[float]:
            return [float(len(text)) for text in completions]

    assert score(FunctionReward(Counter(), "f"), ANSWERS) == [2.0, 6.0, 2.0]


def test_the_functions_of_the_page_on_rewards_are_rewards(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    example = re.findall(r"^```python\n(def .*?)^```", page, re.M | re.S)[0]
    (tmp_path / "length.py").write_text(example)
    found = {}
    for name in re.findall(r"^def (\w+)", example, re.M):
        reward = FunctionReward(load_function(f"{tmp_path}/length.py:{name}"), name, ("answer", "level"))
        found[name] = assess(reward, ANSWERS)
    assert found["penalty"].totals == [-0.02, -0.06, -0.02]
    assert found["right"].totals == [1.0, 0.0, 1.0]
    assert [one.tokens for one in found["end_early"].values] == [(-0.01, 1.0), (-0.01,) * 3, (-0.01, 1.0)]


SOURCE = """
from dataclasses import dataclass

@dataclass
class Row:
    text: str

LIMIT = 3

def penalty(completions):
    return [-float(len(Row(text).text) > LIMIT) for text in completions]

async def later(completions):
    return [0.0]
"""


def test_a_function_is_loaded_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "my rewards.py"
    file.write_text(SOURCE)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "my rewards.py").write_text("def penalty(completions): return [7.0] * len(completions)")
    penalty = load_function(f"{file}:penalty")
    assert score(FunctionReward(penalty, "f"), ANSWERS) == [0.0, -1.0, 0.0]
    assert score(FunctionReward(load_function(f"{tmp_path}/other/my rewards.py:penalty"), "f"), ANSWERS[:1]) == [7.0]
    assert score(FunctionReward(penalty, "f"), ANSWERS) == [0.0, -1.0, 0.0]


def test_two_functions_of_a_file_share_what_it_holds_until_it_changes(tmp_path: Path) -> None:
    file = tmp_path / "shared.py"
    source = (
        "seen = []\ndef one(completions): return seen.append(1) or [0.0]\ndef two(completions): return [len(seen)]\n"
    )
    file.write_text(source)
    one, two = (FunctionReward(load_function(f"{file}:{name}"), name) for name in ("one", "two"))
    assert (score(one, ANSWERS[:1]), score(two, ANSWERS[:1])) == ([0.0], [1.0])
    file.write_text(source.replace("len(seen)", "7 + len(seen)"))
    assert score(FunctionReward(load_function(f"{file}:two"), "two"), ANSWERS[:1]) == [7.0]


def test_a_function_is_loaded_from_a_module_beside_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rewards_of_mine").mkdir()
    (tmp_path / "rewards_of_mine" / "size.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    assert score(FunctionReward(load_function("rewards_of_mine.size:penalty"), "f"), ANSWERS) == [0.0, -1.0, 0.0]
    with pytest.raises(ConfigError, match=r"there is no module rewards_of_mine\.sise, installed or in "):
        load_function("rewards_of_mine.sise:penalty")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("lenght.py:penalty", r'there is no file .*lenght\.py; did you mean "length\.py"\?'),
        ("length.py:penlty", r'there is no function "penlty" in .*length\.py; did you mean "penalty"\?'),
        ("length.py:LIMIT", r"length\.py:LIMIT is no function, it is int"),
        ("length.py:later", r"length\.py:later is an async function"),
        ("broken.py:f", r"broken\.py can't be imported: SyntaxError: .*line 1"),
        ("raises.py:f", r"raises\.py can't be imported: ZeroDivisionError: division by zero \(line 3\)"),
        ("needs.py:f", r"needs\.py can't be imported: ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        ("exits.py:f", r"exits\.py can't be imported: SystemExit: 0 \(line 2\)"),
    ],
)
def test_what_can_t_be_loaded_is_said(place: str, said: str, tmp_path: Path) -> None:
    files = {
        "length.py": SOURCE,
        "broken.py": "def f(:",
        "raises.py": "\n\nx = 1 / 0",
        "needs.py": "import no_such_module_at_all",
        "exits.py": "import sys\nsys.exit(0)",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    before = set(sys.modules)
    with pytest.raises(ConfigError, match=said):
        load_function(f"{tmp_path}/{place}")
    if "can't be imported" in said.replace("\\", ""):
        assert not {name for name in set(sys.modules) - before if name.startswith("preflab_reward_")}
