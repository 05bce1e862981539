"""Mistakes that would train to the end and give a wrong result, and what is said of them before the first step."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import transformers

from enumerable import END_ID, letters_policy, reward_model
from preflab.config.training import Optimizer
from preflab.data.encode import Tree
from preflab.errors import ConfigError, NumericError
from preflab.models.freezing import freeze
from preflab.models.load import copy_of
from preflab.runs import RunFolder, read_json
from preflab.training.checks import check_ends, check_model, check_prompts, check_reference, check_start
from preflab.training.optimizer import Stepper
from tiny import tiny_policy


def said(capfd: pytest.CaptureFixture[str]) -> str:
    return " ".join(capfd.readouterr().err.split())


def untied() -> transformers.GPT2LMHeadModel:
    config = transformers.GPT2Config(
        vocab_size=6, n_positions=16, n_embd=8, n_layer=2, n_head=2, tie_word_embeddings=False, resid_pdrop=0.0,
        embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def test_dropout_that_is_on_is_refused_and_named() -> None:
    model = letters_policy().model
    model.transformer.h[0].mlp.dropout.p = 0.1
    check_model(model)  # off in eval mode
    model.train()
    with pytest.raises(ConfigError, match=r"dropout is on \(transformer\.h\.0\.mlp\.dropout, p = 0\.1\).*model\.eval"):
        Stepper(model, Optimizer(), 1)
    model.transformer.h[0].mlp.dropout.p = 0.0
    check_model(model)


def test_dropout_inside_an_attention_function_is_refused_too() -> None:
    """Llama has no dropout module: attention takes the rate from the config."""
    config = transformers.LlamaConfig(
        vocab_size=6, hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        attention_dropout=0.2,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    check_model(model.eval())
    model.train()
    with pytest.raises(ConfigError, match=r"dropout is on \(config\.attention_dropout, p = 0\.2\)"):
        Stepper(model, Optimizer(), 1)


def test_a_frozen_trunk_under_a_tied_head_that_is_trained_is_refused() -> None:
    model = tiny_policy().model
    check_model(model)
    model.transformer.h[0].requires_grad_(False)
    with pytest.raises(ConfigError, match=r"transformer\.h\.0\..* is frozen, but .* is tied .* or untie them"):
        Stepper(model, Optimizer(), 1)
    freeze(model, 1)  # the head too
    check_model(model)


def test_a_frozen_trunk_under_a_head_of_its_own_is_fine(tmp_path: Path) -> None:
    model = untied()
    model.transformer.h[0].requires_grad_(False)
    check_model(model.eval())
    scorer = reward_model(tmp_path, tiny_policy())
    scorer.model.transformer.h[0].requires_grad_(False)
    check_model(scorer.model)


def test_a_reference_that_shares_weights_is_refused_and_a_copy_is_not(capfd: pytest.CaptureFixture[str]) -> None:
    policy = letters_policy().model
    with pytest.raises(ConfigError, match=r"shares transformer\.wte\.weight with the policy .*copy_of"):
        check_reference(policy, policy)
    partly = copy_of(policy)
    partly.transformer.ln_f = policy.transformer.ln_f
    with pytest.raises(ConfigError, match=r"shares transformer\.ln_f\.weight"):
        check_reference(policy, partly)
    policy.transformer.ln_f.requires_grad_(False)  # no training moves it
    check_reference(policy, partly)
    assert not said(capfd)


def test_a_reference_that_asks_for_gradients_is_frozen_with_a_warning(capfd: pytest.CaptureFixture[str]) -> None:
    reference = letters_policy(seed=1).model
    check_reference(letters_policy().model, reference)
    assert "reference's weights asked for gradients; it is frozen" in said(capfd)
    assert not any(parameter.requires_grad for parameter in reference.parameters())
    check_reference(letters_policy().model, reference)
    assert not said(capfd)


def test_a_policy_that_is_not_its_own_reference_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    with pytest.raises(NumericError, match=r"differ by 0\.25 nats .* Is dropout on, or does the model draw random"):
        check_start(run, torch.tensor([[0.0, -0.25], [0.1, 0.0]]), same=True)
    assert not (tmp_path / "start.json").exists()
    check_start(run, torch.tensor([[0.0, -0.25], [0.1, 0.05]]), same=False)
    assert read_json(tmp_path / "start.json") == {
        "mean_logratio_nats": pytest.approx(-0.025), "largest_logratio_nats": 0.25, "starts_at_reference": False,
    }  # fmt: skip


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    check_start(RunFolder(tmp_path), torch.tensor([[1e-4, -2e-4]]), same=True)
    assert read_json(tmp_path / "start.json")["starts_at_reference"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("same", [True, False])
def test_log_probabilities_that_are_not_finite_are_refused(value: float, same: bool, tmp_path: Path) -> None:
    with pytest.raises(NumericError, match="not finite before the first step: the weights hold NaN"):
        check_start(RunFolder(tmp_path), torch.tensor([[0.0, value]]), same=same)


def test_a_resumed_run_keeps_its_start(tmp_path: Path) -> None:
    check_start(RunFolder(tmp_path), torch.zeros(1, 2), same=True)
    before = (tmp_path / "start.json").read_bytes()
    check_start(RunFolder(tmp_path), torch.ones(1, 2), same=True)
    assert (tmp_path / "start.json").read_bytes() == before


def test_responses_without_end_tokens_are_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    ends, cut = (3, 4, END_ID), (3, 4, 5)
    check_ends([Tree("a", (2,), (ends, cut))], END_ID)  # half of them end
    assert not said(capfd)
    check_ends([Tree("a", (2,), (cut, cut)), Tree("b", (END_ID,), (cut, ends))], END_ID)
    assert re.search(r"75% of the responses have no end token, .*raise lengths\.response_tokens", said(capfd))


@pytest.mark.parametrize("begin", [(), (9,)])
def test_prompts_in_the_responses_are_warned_of(begin: tuple[int, ...], capfd: pytest.CaptureFixture[str]) -> None:
    text = (2, 3, 4, 5)
    repeated, plain = Tree("a", (*begin, *text), ((*text, 3, 1),)), Tree("b", (*begin, *text), ((4, 3, 1),))
    check_prompts([repeated, plain])
    assert not said(capfd)  # no more than half of them
    check_prompts([repeated, repeated, plain])
    assert re.search(r"67% of the responses begin with their prompt, .*leave the prompt out", said(capfd))


def test_a_short_prompt_may_be_repeated_by_chance(capfd: pytest.CaptureFixture[str]) -> None:
    check_prompts([Tree("a", (2, 3), ((2, 3, 4, 1), (2, 3, 1)))])
    assert not said(capfd)
