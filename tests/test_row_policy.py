"""Policies of rows in the compact encoding behind the face of a tokenizer, and the methods that train them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from enumerable import run_folder
from preflab.config.online import GRPO, PPO, RLOO, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch, Ranking
from preflab.config.training import Optimizer
from preflab.data.encode import Encoder
from preflab.errors import ConfigError
from preflab.models.load import Policy, copy_of, new_value_model
from preflab.rewards.protocol import Answer
from preflab.runs import read_lines
from preflab.tables.alignment.rows import RowTokenizer, row_policy
from preflab.tables.column import Column
from preflab.tables.compact import END, START, Compact
from preflab.tables.sentence import Sentence
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds
from small_tables import small_tokenizer
from test_row_model import AGE, COLOUR, LONG, drawn, fitted

CODES = drawn(400)
WIDE = Compact.of((COLOUR, LONG), np.stack([-np.ones(3077, np.int64), np.arange(0, 40_000, 13)], 1))


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("fit")
    fitted(folder, CODES)
    return transformers.AutoModelForCausalLM.from_pretrained(folder / "run" / "model").eval()


class Red:
    """1 for a red row, read off its text as rewards are shown it; and every row has to be whole."""

    name = "red"

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.texts += [answer.response for answer in answers]
        assert all(answer.ended and not answer.prompt for answer in answers)
        return [float("colour is red" in answer.response) for answer in answers]


OPTIMIZER = Optimizer(learning_rate=3e-3, warmup_steps=0)
METHODS: dict[str, Callable[..., Any]] = {
    "ppo": lambda policy, *given, **more: train_ppo(
        policy, None, *given,
        PPO(updates=2, batch=RolloutBatch(size=32, mini=16, micro=16), value_trunk="shared", optimizer=OPTIMIZER,
            value_optimizer=OPTIMIZER),
        **more,
    ),
    "grpo": lambda policy, *given, **more: train_policy_gradient(
        policy, *given,
        GRPO(updates=2, responses=16, batch=RolloutBatch(size=32, mini=32, micro=16), optimizer=OPTIMIZER), **more,
    ),
    "rloo": lambda policy, *given, **more: train_policy_gradient(
        policy, *given,
        RLOO(updates=2, responses=32, batch=RolloutBatch(size=32, mini=32, micro=16), optimizer=OPTIMIZER), **more,
    ),
    "online dpo": lambda policy, *given, **more: train_online_dpo(
        policy, *given,
        OnlineDPO(updates=2, batch=PairBatch(size=16, mini=16, micro=8), ranking=Ranking(temperatures=(1.0, 1.0)),
            optimizer=OPTIMIZER),
        **more,
    ),
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS)
def test_every_online_method_trains_a_policy_of_rows(method: str, reference: Any, tmp_path: Path) -> None:
    encoding = Compact.of((COLOUR, AGE), CODES)
    policy = row_policy(copy.deepcopy(reference), encoding, None)
    reward, run = Red(), run_folder(tmp_path / "run")
    prompts = [PromptIds(f"row {number}", "", encoding.prompt()) for number in range(16)]
    METHODS[method](
        policy, copy_of(reference), reward, prompts, run=run, max_new_tokens=encoding.longest, seed=0,
        mask=encoding.mask(),
    )  # fmt: skip
    lines = read_lines(run.metrics)
    assert [line["step"] for line in lines] == [1, 2]
    assert [line["end_rate"] for line in lines] == [1, 1]
    assert lines[0]["kl_nats"] == pytest.approx(0, abs=1e-5)
    legal = {f"colour is {colour}, age is {age}" for colour in COLOUR.levels for age in ('""', -9, *range(8))}
    assert len(set(reward.texts)) > 10
    assert set(reward.texts) <= legal

    def red(model: Any) -> float:
        logits = model(input_ids=torch.tensor([encoding.prompt()])).logits[0, -1]
        return float(logits[encoding.mask().allowed([encoding.mask().start((START,))])[0]].softmax(-1)[0])

    with torch.no_grad():
        assert red(policy.model) > red(reference) + 0.01


def test_a_value_model_of_its_own_starts_at_zero_on_the_policys_body(reference: Any, tmp_path: Path) -> None:
    encoding = Compact.of((COLOUR, AGE), CODES)
    policy = row_policy(copy.deepcopy(reference), encoding, None)
    state = torch.random.get_rng_state()
    value = new_value_model(policy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not value.model.score.weight.any()
    for name, weight in value.model.base_model.state_dict().items():
        assert torch.equal(weight, policy.model.base_model.state_dict()[name])
    settings = PPO(updates=2, batch=RolloutBatch(size=32, mini=16, micro=16), optimizer=OPTIMIZER)
    run = run_folder(tmp_path / "run")
    prompts = [PromptIds(f"row {number}", "", encoding.prompt()) for number in range(16)]
    train_ppo(
        policy, value, copy_of(reference), Red(), prompts, settings, run, max_new_tokens=encoding.longest, seed=0,
        mask=encoding.mask(),
    )  # fmt: skip
    assert len(read_lines(run.metrics)) == 2
    assert value.model.score.weight.any()


def test_a_beginning_and_an_end_of_a_row_are_text_and_so_is_what_is_none() -> None:
    text = RowTokenizer(WIDE).decode
    row = WIDE.prompt() + WIDE.response([-2, 26])
    assert text(row) == "colour is green, income is 26"
    assert len(row) > 5  # income has digits
    whole = [text(row[:length]) for length in range(len(row) + 1)]
    assert whole[:2] == ["", ""]
    assert whole[2] == "colour is green"
    assert set(whole[3:-2]) == {"colour is green, income is …"}
    assert whole[-2] == whole[-1] == text(row)
    assert text(row[2:]) == "income is 26"
    assert text(row[2:4]) == "income is …"
    assert text((row[2], *row[2:])) == "income is ?, income is 26"
    assert text((row[1], row[4], END)) == "colour is green, income is ?"


def test_cells_stand_in_the_order_of_the_row_and_odd_texts_in_quotes() -> None:
    columns = (Column("that is", "category", levels=("a, b", "")), AGE)
    encoding = Compact.of(columns, np.array([[-1, 3], [-2, 4]]), any_order=True)
    text = RowTokenizer(encoding).decode
    for order in ((0, 1), (1, 0)):
        row = encoding.prompt() + encoding.response([-1, 3], order)
        cells = ['"that is" is "a, b"', "age is 3"]
        assert text(row) == ", ".join(cells[number] for number in order)
    assert text(encoding.prompt({1: 3})) == "age is 3"


def test_an_encoder_of_rows_knows_their_ends_and_refuses_text() -> None:
    tokenizer = RowTokenizer(WIDE)
    encoder = Encoder(tokenizer, prompt_tokens=8, response_tokens=8)
    assert encoder.end_id == WIDE.end_id
    assert encoder.prompt("") == WIDE.prompt()
    assert encoder.decode(WIDE.response([-1, 13])) == "colour is red, income is 13"
    with pytest.raises(ConfigError, match='"hello" has no tokens'):
        encoder.prompt("hello")
    with pytest.raises(AttributeError, match="compact encoding of rows has no tokenizer, so there is no get_vocab"):
        tokenizer.get_vocab()


def test_rows_as_sentences_keep_their_tokenizer() -> None:
    model, sentence = torch.nn.Linear(1, 1), Sentence((COLOUR,), small_tokenizer())
    assert row_policy(model, sentence, small_tokenizer()) == Policy(model, small_tokenizer())
    with pytest.raises(ConfigError, match="need the tokenizer"):
        row_policy(model, sentence, None)
