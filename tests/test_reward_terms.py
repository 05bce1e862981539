"""What is written after --reward, short or in YAML, and what is said of what can't be read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from preflab.cli.flags import parse
from preflab.config.commands import TrainGRPO
from preflab.config.load import build, read_yaml, to_yaml
from preflab.config.rewards import (
    KINDS,
    ClassifierTerm,
    FittedTerm,
    FunctionTerm,
    ModelTerm,
    RegexTerm,
    RewardTerm,
    VerifierTerm,
    reward_terms,
)
from preflab.errors import ConfigError

SHORT: dict[str, RewardTerm] = {
    "runs/reward/model": ModelTerm(model="runs/reward/model", name="reward"),
    "openai/big-reward": ModelTerm(model="openai/big-reward", name="big-reward"),
    "model:score.d": ModelTerm(model="score.d", name="score.d"),
    "length.py:penalty": FunctionTerm(function="length.py:penalty", name="penalty"),
    "some dir/x.py:f": FunctionTerm(function="some dir/x.py:f", name="f"),
    "package.module:f": FunctionTerm(function="package.module:f", name="f"),
    "mine:f": FunctionTerm(function="mine:f", name="f"),
    "function:regexx:f": FunctionTerm(function="regexx:f", name="f"),
    "classifier:a/toxic:not toxic": ClassifierTerm(model="a/toxic", label="not toxic", name="not-toxic"),
    "fitted:data/reviews.jsonl.gz": FittedTerm(data=Path("data/reviews.jsonl.gz"), name="reviews"),
    r"regex:^\d+$": RegexTerm(pattern=r"^\d+$", name="regex"),
    "regex:a+b*c=:d": RegexTerm(pattern="a+b*c=:d", name="regex"),
    "verifier:answer": VerifierTerm(column="answer", name="answer"),
    r"verifier:gold:####\s*(\S+)": VerifierTerm(column="gold", extract=r"####\s*(\S+)", name="gold"),
    "0.5*x.py:f": FunctionTerm(function="x.py:f", weight=0.5, name="f"),
    " -1e-2 * short = x.py:f ": FunctionTerm(function="x.py:f", weight=-0.01, name="short"),
    "0*watch=runs/rm": ModelTerm(model="runs/rm", weight=0.0, name="watch"),
}


@pytest.mark.parametrize("text", SHORT)
def test_a_term_in_its_short_form(text: str) -> None:
    assert reward_terms(text) == (SHORT[text],)


def test_a_sum_keeps_order_weights_and_names() -> None:
    terms = reward_terms("runs/rm + 0.1*length.py:penalty + -2*said=regex:please")
    assert [(term.kind, term.weight, term.name) for term in terms] == [
        ("model", 1.0, "rm"),
        ("function", 0.1, "penalty"),
        ("regex", -2.0, "said"),
    ]


WRONG = {
    "regx:^a$": r'there is no kind of reward "regx"; did you mean "regex"\?',
    "verifer:answer": r'there is no kind of reward "verifer"; did you mean "verifier"\?',
    "length.py": r"name the function, too: length\.py:function",
    "x*runs/rm": r'the weight "x" must be a finite number',
    "inf*runs/rm": r'the weight "inf" must be a finite number',
    "1e999*runs/rm": r'the weight "1e999" must be a finite number',
    "runs/a/model + 2*runs/b/model + a=regex:x": 'two rewards are called "a"; name one of them: other=a',
    "": '"" is no reward',
    "runs/rm + ": '"" is no reward',
    "regex:": '"regex:" is no reward',
    "verifier": '"verifier" is a kind of reward: say of what, verifier:answer',
    "verifier:answer:": '"verifier:answer:" is no reward',
    "length.py:": r"name the function, too: length\.py:function",
    "length.py:penalty+regex:a": r"the \+ of a sum stands between spaces: length\.py:penalty \+ regex:a",
    "classifier:toxic": "a classifier needs its folder and a label: classifier:FOLDER:LABEL",
    "regex:(": r"pattern = \(: no regular expression: missing \), unterminated subpattern at position 0",
    "verifier:answer:[": r"extract = \[: no regular expression",
}
ONLINE = {"model": "m", "data": "d", "out": "o"}


@pytest.mark.parametrize("text", WRONG)
def test_what_can_t_be_read_is_refused_before_anything_is_loaded(text: str) -> None:
    with pytest.raises(ConfigError, match=WRONG[text]):
        build(TrainGRPO, ONLINE | {"reward": text})
    arguments = ["--model", "m", "--data", "d", "--out", "o", f"--reward={text}"]
    with pytest.raises(ConfigError, match=WRONG[text]):
        parse("train grpo", "TrainGRPO", arguments)


def test_a_second_reward_takes_no_place_of_the_first() -> None:
    flags = ["--model", "m", "--data", "d", "--out", "o", "--reward", "length.py:f", "--reward=regex:a"]
    with pytest.raises(ConfigError, match="--reward is given twice; give one weighted sum"):
        parse("train grpo", "TrainGRPO", flags)


YAML = r"""
reward:
  - runs/rm/model
  - {kind: function, function: length.py:penalty, weight: 0.1, batch_size: 4}
  - kind: regex
    pattern: a + b
    name: sum
    other: -1
  - -0.5*fitted:reviews.csv
"""


def test_yaml_takes_a_list_of_terms_and_is_written_as_one(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(YAML)
    flags = ["--model", "m", "--data", "d", "--out", "o", "--config", str(tmp_path / "r.yaml")]
    config = parse("train grpo", "TrainGRPO", flags)
    assert config.reward == (
        ModelTerm(model="runs/rm/model"),
        FunctionTerm(function="length.py:penalty", weight=0.1, batch_size=4),
        RegexTerm(pattern="a + b", name="sum", other=-1.0),
        FittedTerm(data=Path("reviews.csv"), weight=-0.5),
    )
    (tmp_path / "again.yaml").write_text(to_yaml(config))
    assert parse("train grpo", "TrainGRPO", ["--config", str(tmp_path / "again.yaml")]) == config
    # A flag goes above the file.
    assert parse("train grpo", "TrainGRPO", [*flags, "--reward", "regex:x"]).reward == "regex:x"


def test_the_yaml_of_the_page_on_rewards_is_a_reward(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "rewards.md").read_text(encoding="utf-8")
    (text,) = re.findall(r"^```yaml\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "r.yaml").write_text(text)
    config = build(TrainGRPO, ONLINE | read_yaml(tmp_path / "r.yaml")[0])
    terms = reward_terms(config.reward)
    assert [(term.name, term.weight) for term in terms] == [
        ("reward", 1.0), ("penalty", 0.1), ("toxic", -2.0), ("format", 1.0), ("answer", 1.0),
    ]  # fmt: skip
    # The tables of the page hold every setting of every kind.
    for kind, cls in KINDS.items():
        for one in dataclasses.fields(cls):
            assert f"`{one.name}`" in page, (kind, one.name)


@pytest.mark.parametrize(
    ("term", "said"),
    [
        ("{kind: regx, pattern: a}", r'r.yaml:2: there is no kind of reward "regx"; did you mean "regex"'),
        ("{pattern: a}", r"r.yaml:1: a reward needs a kind: model, function"),
        ("{kind: regex, patern: a}", r'r.yaml:2: there is no setting reward.0.patern; did you mean "pattern"'),
        ("{kind: regex, pattern: a, weight: .inf}", r"r.yaml:2: reward.0.weight = inf: must be a finite number"),
        ("{kind: regex, pattern: a, weight: true}", r"reward.0.weight = true: a true or false has no meaning"),
        ("{kind: regex}", r"r.yaml:2: reward.0.pattern is required"),
        ("{kind: regex, pattern: a, name: a b}", r'the name "a b" of a reward: letters'),
        ("{kind: regex, pattern: a, match: 0}", r"match = other = 0: every response gets one reward"),
        ("{kind: function, function: 'a.py:f', batch_size: 0}", r"reward.0.batch_size = 0: must be greater than"),
    ],
)
def test_faults_of_a_term_in_yaml_have_their_place(term: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(f"reward:\n  - {term}\n")
    values, origins = read_yaml(tmp_path / "r.yaml")
    with pytest.raises(ConfigError, match=said):
        build(TrainGRPO, ONLINE | values, origins=origins)


@pytest.mark.parametrize("given", [[], 3, [3]])
def test_what_is_no_reward_is_refused(given: Any) -> None:
    with pytest.raises(ConfigError):
        build(TrainGRPO, ONLINE | {"reward": given})
