"""What `preflab explain` says is what the code does: formulas that run, settings that exist, keys that are logged."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from enumerable import ShareOf, letters_policy, letters_prompts, reward_model, run_folder, value_model
from preflab.cli.docstrings import ROOT
from preflab.cli.main import main
from preflab.cli.methods import METHODS, defaults, places, setting_groups, trainer
from preflab.cli.metrics import implicit_reward, logged_by
from preflab.config.load import build, flatten, to_values
from preflab.config.online import PPO, Online, PolicyGradient, RolloutBatch
from preflab.config.online_preference import IterativeDPO, OnlineDPO, PairBatch
from preflab.config.pair_losses import IPOLoss, SFTLoss
from preflab.config.preference import Preference, Unpaired
from preflab.config.training import SFT, Batch, Reward
from preflab.data.encode import Tree
from preflab.errors import ConfigError
from preflab.models.load import copy_of
from preflab.runs import read_lines
from preflab.training.iterative_dpo import train_iterative_dpo
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import ScoredPairs, implicit_rewards, train_preference
from preflab.training.reward import train_reward
from preflab.training.sft import train_sft
from preflab.training.unpaired import judged_pairs, train_unpaired

TRAINED = [method for method in METHODS if method != "best-of-n"]
PAPERS = {
    "reward": "2203.02155",
    "dpo": "2305.18290",
    "cdpo": "2305.18290",
    "rdpo": "2403.00409",
    "ipo": "2310.12036",
    "hinge": "2309.06657",
    "exo": "2402.00856",
    "aot": "2406.05882",
    "ln-dpo": "2411.15124",
    "f-dpo": "2309.16240",
    "dpop": "2402.13228",
    "nca": "2402.05369",
    "bco-pair": "2404.04656",
    "sppo": "2405.00675",
    "apo-zero": "2408.06266",
    "apo-down": "2408.06266",
    "simpo": "2405.14734",
    "cpo": "2401.08417",
    "orpo": "2403.07691",
    "kto": "2402.01306",
    "bco": "2404.04656",
    "ppo": "1707.06347",
    "grpo": "2402.03300",
    "dr-grpo": "2503.20783",
    "dapo": "2503.14476",
    "rloo": "2402.14740",
    "online-dpo": "2402.04792",
    "iterative-dpo": "2404.19733",
    "best-of-n": "2009.01325",
}
PAIRS = [Tree(f"p:{i}", (2 + i % 4,) * (1 + i % 3), ((2, 3 + i % 3, 1), (4, 0)[: 1 + i % 2])) for i in range(7)]
DEMONSTRATIONS = [replace(pair, responses=pair.responses[:1]) for pair in PAIRS]


def small(settings: Any) -> Any:
    """A step or two of the method."""
    match settings:
        case Online():
            return replace(settings, updates=2, batch=RolloutBatch(size=16, mini=8, micro=4))
        case OnlineDPO():
            return replace(settings, updates=2, batch=PairBatch(size=4, mini=2, micro=2))
        case IterativeDPO():
            return replace(settings, rounds=2, batch=Batch(size=4, micro=2))
        case _:
            return replace(settings, batch=Batch(size=4, micro=3))


def train(settings: Any, folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl."""
    policy, run = letters_policy(spread=4.0), run_folder(folder / "run")
    online: Any = (policy, copy_of(policy.model), ShareOf("a"), letters_prompts(8), settings, run)
    more: Any = {"max_new_tokens": 4, "seed": 0, "log_every": 1}
    match settings:
        case SFT():
            train_sft(policy, DEMONSTRATIONS, settings, run, seed=0, log_every=1)
        case Reward():
            train_reward(reward_model(folder, policy), PAIRS, settings, run, seed=0, log_every=1)
        case Preference():
            train_preference(policy, PAIRS, settings, run, seed=0, log_every=1)
        case Unpaired():
            train_unpaired(policy, judged_pairs(PAIRS), settings, run, seed=0, log_every=1)
        case PPO():
            train_ppo(policy, value_model(folder), *online[1:], **more)
        case PolicyGradient():
            train_policy_gradient(*online, **more)
        case OnlineDPO():
            train_online_dpo(*online, **more)
        case IterativeDPO():
            train_iterative_dpo(*online, **more)
    return read_lines(run.metrics)


@contextmanager
def seen_calls() -> Iterator[set[tuple[str, str]]]:
    """(file under src/preflab/, function) of every call inside the block."""
    calls: set[tuple[str, str]] = set()

    def note(frame: FrameType, event: str, argument: object) -> None:
        if event == "call" and frame.f_code.co_filename.startswith(str(ROOT)):
            calls.add((str(Path(frame.f_code.co_filename).relative_to(ROOT)), frame.f_code.co_name))

    sys.setprofile(note)
    try:
        yield calls
    finally:
        sys.setprofile(None)


@dataclass(frozen=True)
class Trained:
    """What happened when a method trained for a step or two."""

    lines: list[dict[str, Any]]
    calls: set[tuple[str, str]]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Trained]:
    train(small(defaults("sft")), tmp_path_factory.mktemp("imports"))  # slow where every call is noted

    @cache
    def of(method: str) -> Trained:
        with seen_calls() as calls:
            lines = train(small(defaults(method)), tmp_path_factory.mktemp(method))
        return Trained(lines, calls)

    return of


@cache
def explain(*arguments: str) -> str:
    """What the command prints."""
    with redirect_stdout(StringIO()) as out:
        main(["explain", *arguments])
    return out.getvalue()


def sections(text: str) -> dict[str, str]:
    """Heading → what stands below it, line ends and indents gone."""
    found: dict[str, str] = {}
    heading = ""
    for line in text.splitlines():
        if line and not line.startswith(" "):
            heading = line
        found[heading] = f"{found.get(heading, '')} {line.strip()}" if line != heading else ""
    return {heading: " ".join(text.split()) for heading, text in found.items()}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_explained_in_every_section(method: str) -> None:
    text = explain(method)
    found = sections(text)
    assert list(found)[:2] == [method, "Formula"]
    assert all(found.values())
    assert {"Settings: name = default, range, meaning", "What is logged, in metrics.jsonl", "In the code"} <= set(found)
    assert max(map(len, text.splitlines())) <= 100
    assert "\x1b" not in text
    assert not re.search(r" $|`|\*\*", text, re.MULTILINE)  # plain, however the docstrings are marked up


@pytest.mark.parametrize("method", METHODS)
def test_a_formula_is_stated(method: str) -> None:
    formula = sections(explain(method))["Formula"]
    assert re.search(r"[=·−]", formula)
    if method in TRAINED and not isinstance(defaults(method), Online | OnlineDPO | IterativeDPO):
        assert re.search(r"loss|log σ|weight·loss", formula)


@pytest.mark.parametrize("method", PAPERS)
def test_the_paper_is_linked(method: str) -> None:
    assert f"https://arxiv.org/abs/{PAPERS[method]}" in sections(explain(method))["Papers"]


@pytest.mark.parametrize("method", METHODS)
def test_every_setting_appears_with_its_default(method: str) -> None:
    shown = sections(explain(method))["Settings: name = default, range, meaning"]
    rows = {row.name: row for _, group in setting_groups(method) for row in group}
    for name, row in rows.items():
        assert row.meaning
        assert name in shown
    for name, value in flatten(to_values(defaults(method), idle=True)).items():
        default = {"None": "none", "True": "true", "False": "false"}.get(str(value), str(value))
        group, _, last = name.rpartition(".")
        if f"{group}.*" in rows:
            assert f"{last} {default}" in rows[f"{group}.*"].default
        else:
            assert rows[name].default == default


def ends(shown: str) -> list[tuple[float, bool]]:
    """The ends of an interval, and whether they belong to it."""
    if one := re.match(r"([≥>]) ([\d.]+)", shown):
        return [(float(one[2]), one[1] == "≥")]
    if two := re.fullmatch(r"([\[(])([\d.]+), ([\d.]+)([\])])", shown):
        return [(float(two[2]), two[1] == "["), (float(two[3]), two[4] == "]")]
    return []


def test_ranges_are_those_that_are_checked() -> None:
    tried = 0
    for method in METHODS:
        for _, rows in setting_groups(method):
            for row in rows:
                for end, allowed in ends(row.range):
                    value: Any = int(end) if isinstance(_leaf(method, row.name), int) else end
                    for name in reversed(row.name.split(".")):
                        value = {name: value}
                    tried += 1
                    if allowed:
                        build(type(defaults(method)), value)
                    else:
                        with pytest.raises(ConfigError, match="must be"):
                            build(type(defaults(method)), value)
    assert tried > 300


def _leaf(method: str, name: str) -> Any:
    return flatten(to_values(defaults(method), idle=True))[name]


@pytest.mark.parametrize("method", TRAINED)
def test_what_is_logged_is_what_is_listed(method: str, trained: Callable[[str], Trained]) -> None:
    keys = {key for line in trained(method).lines for key in line}
    metrics = [metric for section in logged_by(defaults(method)) for metric in section.metrics]
    listed = {metric.key for metric in metrics}
    assert len(listed) == len(metrics)
    assert {metric.key for metric in metrics if not metric.when} <= keys <= listed
    assert len({frozenset(line) for line in trained(method).lines}) == 1
    shown = sections(explain(method))["What is logged, in metrics.jsonl"]
    for metric in metrics:
        assert f" {metric.key} " in shown


@pytest.mark.parametrize("method", ["ppo", "grpo", "dapo", "rloo"])
def test_keys_that_depend_on_settings_are_logged_under_them_and_not_else(method: str, tmp_path: Path) -> None:
    on = {"kl_penalty": "k2", "kl_coefficient": 0.1} | ({} if method == "ppo" else {"dynamic_sampling": True})
    off = {"kl_penalty": "reward", "kl_coefficient": 0.1} | ({} if method == "ppo" else {"dynamic_sampling": False})
    metrics = [metric for section in logged_by(defaults(method)) for metric in section.metrics]
    for number, (changes, with_them) in enumerate([(on, True), (off, False)]):
        lines = train(replace(small(defaults(method)), **changes), tmp_path / str(number))
        expected = {metric.key for metric in metrics if with_them or not metric.when}
        assert all(set(line) == expected for line in lines)


@pytest.mark.parametrize("method", TRAINED)
def test_the_functions_that_are_named_run(method: str, trained: Callable[[str], Trained]) -> None:
    """A formula that is shown but not computed would be another method's."""
    named = {(place.file, place.name) for place in (*places(method), trainer(defaults(method)))}
    functions = {(file, name) for file, name in named if name and not file.startswith("config/")}
    assert functions
    assert functions <= trained(method).calls


def test_implicit_rewards_are_what_the_log_says_they_are() -> None:
    torch.manual_seed(0)
    pairs = ScoredPairs(
        logprob=-torch.rand(5, 2) * 9 - 1, tokens=torch.tensor([[1, 2]] * 5), reference=-torch.rand(5, 2) * 9 - 1
    )
    mean = pairs.logprob / pairs.tokens
    assert pairs.reference is not None
    ratio = pairs.logprob - pairs.reference
    of = {
        "β·logratio": lambda loss: loss.beta * ratio,
        "β·logratio per token": lambda loss: loss.beta * ratio / pairs.tokens,
        "τ·logratio": lambda loss: loss.tau * ratio,
        "τ·logratio per token": lambda loss: loss.tau * ratio / pairs.tokens,
        "β·f'(π/π_ref)": lambda loss: loss.beta * torch.log(2 / (1 + torch.exp(-ratio))),  # Jensen–Shannon
        "β·logprob per token": lambda loss: loss.beta * mean,
        "β·logprob": lambda loss: loss.beta * pairs.logprob,
        "λ·logprob per token": lambda loss: loss.weight * mean,
        "logprob per token": lambda loss: mean,
    }
    settings = [defaults(method) for method in TRAINED]
    losses = [one.loss for one in settings if isinstance(one, Preference)]
    for loss in (*losses, IPOLoss(average_tokens=True), SFTLoss()):
        inner = max(loss.parts, key=lambda part: part[0])[1] if hasattr(loss, "parts") else loss
        torch.testing.assert_close(implicit_rewards(loss, pairs), of[implicit_reward(loss)](inner))


def test_a_method_that_is_not_there_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["explain", "dop"])
    assert stopped.value.code == 2
    assert 'there is no method "dop"; did you mean "dpop"?' in capsys.readouterr().err


def test_without_a_method_all_are_listed_once() -> None:
    found = sections(explain())
    assert list(found)[1:] == [
        "From preference pairs",
        "From responses marked desirable or not",
        "From a reward, by policy gradient",
        "From pairs of the policy's own responses, ranked by a reward",
        "Other",
    ]
    text = explain()
    assert all(len(re.findall(rf"^  {re.escape(method)}  +\S", text, re.MULTILINE)) == 1 for method in METHODS)


def test_it_answers_without_loading_torch() -> None:
    code = "import sys; from preflab.cli.main import main; main(['explain', 'dpo']); print('torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.splitlines()[-1] == "False"
