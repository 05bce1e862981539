"""DPO through its real training loop: where it starts, and the optimum that it must reach."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from enumerable import VOCABULARY, letters_policy, next_token, run_folder
from preflab.config.methods import DPO, DPOLoss, Optimizer
from preflab.data.encode import Encoder, Tree
from preflab.data.records import PreferencePair
from preflab.losses import dpo
from preflab.models.load import copy_of
from preflab.runs import read_lines
from preflab.training.dpo import dpo_figures, pair_logprobs, train_dpo
from tiny import tiny_pairs, tiny_policy

KEYS = {"step", "loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "gradient_norm", "learning_rate"}


def pairs(n: int) -> list[Tree]:
    encoder = Encoder(tiny_policy().tokenizer, prompt_tokens=32, response_tokens=32)
    return encoder.pairs(PreferencePair(**row, origin=f"p:{i}") for i, row in enumerate(tiny_pairs(n)))


@pytest.mark.parametrize("reference", ["the policy itself", "a copy"])
def test_the_first_loss_is_ln_2_and_all_implicit_rewards_are_0(reference: str, tmp_path: Path) -> None:
    """With reference log-probabilities from batches of another size and padding than training's."""
    policy = tiny_policy()
    copied = copy_of(policy.model) if reference == "a copy" else None
    settings = DPO(batch_size=8, micro_batch_size=3, evaluations=1, optimizer=Optimizer(learning_rate=1e-3))
    run = run_folder(tmp_path / "run")
    train_dpo(policy, pairs(24), settings, run, seed=0, reference=copied, log_every=1)
    first, second, _ = read_lines(run.metrics)
    assert set(first) == KEYS
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert [first[name] for name in ("margin", "chosen_reward", "rejected_reward")] == pytest.approx([0] * 3, abs=1e-6)
    assert abs(second["margin"]) > 1e-5  # the policy moved, the reference did not


def test_training_prefers_the_chosen_and_says_so(tmp_path: Path) -> None:
    policy, given = tiny_policy(), pairs(32)
    before = pair_logprobs(policy.model, given)
    settings = DPO(epochs=6, batch_size=16, evaluations=1, optimizer=Optimizer(learning_rate=3e-3, warmup_steps=0))
    run = run_folder(tmp_path / "run")
    cost = train_dpo(policy, given, settings, run, seed=0, log_every=1)
    last = read_lines(run.metrics)[-1]
    assert last["loss"] < 0.5
    assert last["accuracy"] > 0.9
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-5)
    # The figures on pairs at hand are those of the formula.
    ratio = pair_logprobs(policy.model, given) - before
    figures = dpo_figures(policy, given, before, beta=0.1)
    assert figures.loss == pytest.approx(dpo(ratio[:, 0], ratio[:, 1], beta=0.1).tolist())
    assert figures.margin == pytest.approx((0.1 * (ratio[:, 0] - ratio[:, 1])).tolist())
    tokens = sum(2 * len(tree.prompt) + sum(map(len, tree.responses)) for tree in given)
    assert (cost.trained_tokens, cost.scored_tokens, cost.generated_tokens) == (6 * tokens, tokens, 0)


@pytest.mark.parametrize("beta", [1.0, 0.5])
def test_dpo_reaches_the_optimum_of_an_enumerable_bandit(beta: float, tmp_path: Path) -> None:
    """One prompt, responses of one token, rewards ln k: pair (i, j) comes k_i times won and k_j times lost, which are
    exact Bradley–Terry preferences. The optimum is π_ref·exp(r/β)/Z = π_ref·k^(1/β)/Z, within 1 % of each probability.
    """
    odds = (1, 2, 3, 1, 4, 2)
    prompt = (2, 3)
    rows = [
        Tree(f"{i} beats {j}", prompt, ((i,), (j,)))
        for i in range(VOCABULARY)
        for j in range(VOCABULARY)
        if i != j
        for _ in range(odds[i])
    ]
    policy = letters_policy(spread=4.0)
    reference = next_token(policy, prompt)
    settings = DPO(
        epochs=250,
        batch_size=len(rows),
        micro_batch_size=len(rows),
        evaluations=1,
        loss=DPOLoss(beta=beta),
        optimizer=Optimizer(learning_rate=0.02, warmup_steps=0, decay="linear"),
    )
    train_dpo(policy, rows, settings, run_folder(tmp_path / "run"), seed=0)
    optimum = reference * torch.tensor(odds, dtype=torch.float64) ** (1 / beta)
    optimum /= optimum.sum()
    found = next_token(policy, prompt)
    assert float((reference - optimum).abs().sum()) > 0.2
    torch.testing.assert_close(found, optimum, rtol=0.01, atol=0)
