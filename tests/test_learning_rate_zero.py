"""At learning rate 0 the policy is the one that sampled and the reference, after any number of steps: ratio 1, KL 0.

Whatever an update takes over from sampling, from a pass before it or from a frozen trunk must then agree with what is
computed anew, in the last step of the last epoch of the last update as in the first.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from enumerable import END_ID, PAD_ID, VOCABULARY, ShareOf, letters_prompts, letters_tokenizer, run_folder
from enumerable import value_model as of_letters
from gradients import plain_logits, plain_logprobs
from held_up import unalike
from preflab.config.online import DAPO, GRPO, PPO, RLOO, DrGRPO, PolicyGradient, Reinforce, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch, Ranking
from preflab.config.training import Optimizer
from preflab.models.load import Policy, copy_of
from preflab.rewards.protocol import Answer
from preflab.runs import JSON, read_lines
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo

STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
MOVING = Optimizer(learning_rate=0.02, warmup_steps=0)
UPDATES, EPOCHS, LONGEST = 2, 2, 5
SHARED: dict[str, Any] = {
    "updates": UPDATES, "batch": RolloutBatch(size=12, mini=4, micro=4), "responses": 4, "epochs": EPOCHS,
    "evaluations": 1, "optimizer": STILL,
}  # fmt: skip
OF_PPO: dict[str, Any] = SHARED | {"value_optimizer": STILL}

SETTINGS: dict[str, Any] = {
    "ppo": PPO(**OF_PPO | {"responses": 1}),
    "ppo, values that learn": PPO(**OF_PPO | {"value_optimizer": MOVING}),
    "ppo, shared trunk": PPO(**OF_PPO, value_trunk="shared"),
    "ppo, shared trunk, a head that learns": PPO(
        **OF_PPO | {"value_optimizer": MOVING}, value_trunk="shared", value_warmup_updates=1
    ),
    "ppo, full KL": PPO(**OF_PPO, kl_penalty="full"),
    "ppo, KL aimed at": PPO(**OF_PPO, target_kl_nats=0.1, kl_horizon=20, stop_kl_nats=1e-6),
    "ppo, cooler": PPO(**OF_PPO, temperature=0.6),
    "ppo, by tokens": PPO(**OF_PPO | {"batch": RolloutBatch(size=12, mini=4, tokens=30)}),
    "ppo, frozen block": PPO(**OF_PPO, freeze_blocks=1),
    "ppo, frozen block, shared trunk": PPO(**OF_PPO, freeze_blocks=1, value_trunk="shared"),
    "ppo, checkpointing": PPO(**OF_PPO, activation_checkpointing=True),
    "grpo": GRPO(**SHARED),
    "grpo, warmer": GRPO(**SHARED, temperature=1.5, kl_penalty="k2"),
    "grpo, masked": GRPO(**SHARED, mask_truncated=True),
    "grpo, frozen block": GRPO(**SHARED, freeze_blocks=1, kl_penalty="full"),
    "dr-grpo": DrGRPO(**SHARED),
    "dapo": DAPO(**SHARED),
    "rloo": RLOO(**SHARED),
    "rloo, checkpointing": RLOO(**SHARED, freeze_blocks=1, activation_checkpointing=True),
    "reinforce": Reinforce(**SHARED | {"responses": 1}),
}


def two_blocks(*, seed: int = 0) -> Policy:
    """A GPT-2 of six letters, of which one block may be frozen; its distributions are uneven."""
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=32, n_embd=16, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=END_ID, eos_token_id=END_ID, pad_token_id=PAD_ID,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return Policy(unalike(transformers.GPT2LMHeadModel(config), seed=seed, spread=0.25), letters_tokenizer())


class Recorder:
    """Pays for the letter a, and keeps what it saw, an update at a time."""

    name = "recorder"

    def __init__(self) -> None:
        self.calls: list[list[Answer]] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        self.calls.append(list(answers))
        return ShareOf("a")(answers)


def train(settings: Any, folder: Path, reference: Any = None) -> tuple[list[JSON], Policy, Recorder]:
    policy, reward, run = two_blocks(), Recorder(), run_folder(folder / "run")
    given: dict[str, Any] = {
        "max_new_tokens": LONGEST, "seed": 0, "starts_at_reference": reference is None,
    }  # fmt: skip
    reference = reference or copy_of(policy.model)
    match settings:
        case PPO():
            value = None if settings.value_trunk == "shared" else of_letters(folder)
            train_ppo(policy, value, reference, reward, letters_prompts(5), settings, run, **given)
        case PolicyGradient():
            train_policy_gradient(policy, reference, reward, letters_prompts(5), settings, run, **given)
        case OnlineDPO():
            train_online_dpo(policy, reference, reward, letters_prompts(5), settings, run, **given)
    return read_lines(run.metrics), policy, reward


def weights_unmoved(policy: Policy) -> bool:
    start = two_blocks().model.state_dict()
    return all(torch.equal(value, start[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize("name", SETTINGS)
def test_ratio_1_and_kl_0_after_any_number_of_steps(name: str, tmp_path: Path) -> None:
    settings = SETTINGS[name]
    lines, policy, _ = train(settings, tmp_path)
    assert len(lines) == UPDATES
    for number, line in enumerate(lines):
        assert line["kl_nats"] == pytest.approx(0, abs=1e-5)
        assert line["sampler_gap_nats"] < 1e-5
        if not isinstance(settings, DAPO):  # whose reward is that of dropped responses too
            assert line["objective"] == pytest.approx(line["reward"], abs=1e-5)
        if isinstance(settings, PPO) and number < settings.value_warmup_updates:
            continue
        assert line["ratio"] == pytest.approx(1, abs=1e-5)
        assert line["approx_kl_nats"] == pytest.approx(0, abs=1e-9)
        assert line["clip_fraction"] == 0
        assert line["learning_rate"] == 0
        if not (isinstance(settings, DAPO) or getattr(settings, "mask_truncated", False)):
            assert line["optimizer_steps"] == EPOCHS * 3
        if "kl_loss" in line:
            assert line["kl_loss"] == pytest.approx(0, abs=1e-9)
    assert weights_unmoved(policy)


@pytest.mark.parametrize("name", ["ppo", "ppo, frozen block, shared trunk", "grpo"])
def test_the_kl_to_another_reference_is_that_of_the_logits(name: str, tmp_path: Path) -> None:
    """Frozen trunk or not: every logged KL is the one worked out from two plain passes over what the reward saw."""
    reference = two_blocks(seed=1).model
    lines, policy, reward = train(SETTINGS[name], tmp_path, reference)
    for line, answers in zip(lines, reward.calls, strict=True):
        expected, log_ratios = [], []
        with torch.no_grad():
            for answer in answers:
                mine, other = (plain_logits(model, answer).log_softmax(-1) for model in (policy.model, reference))
                expected.append(float((mine.exp() * (mine - other)).sum()))
                both = (plain_logprobs(model, answer, 1.0) for model in (policy.model, reference))
                log_ratios.append(float((next(both) - next(both)).sum()))
        assert line["kl_nats"] == pytest.approx(sum(expected) / len(expected), rel=1e-4)
        assert line["kl_nats"] > 0.1
        paid = sum(sum(ShareOf("a")([answer])) for answer in answers) / len(answers)
        beta = SETTINGS[name].kl_coefficient
        assert line["objective"] == pytest.approx(paid - beta * sum(log_ratios) / len(log_ratios), abs=1e-4)
        assert line["ratio"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("more", [{}, {"freeze_blocks": 1}, {"activation_checkpointing": True}], ids=str)
@pytest.mark.parametrize("temperatures", [(1.0, 1.0), (0.6, 1.0, 1.4)], ids=str)
def test_online_dpo_stays_at_ln_2(temperatures: tuple[float, ...], more: dict[str, Any], tmp_path: Path) -> None:
    settings = OnlineDPO(
        updates=UPDATES, batch=PairBatch(size=8, mini=4, micro=3), epochs=2, evaluations=1, optimizer=STILL,
        ranking=Ranking(temperatures=temperatures), **more,
    )  # fmt: skip
    lines, policy, _ = train(settings, tmp_path)
    assert len(lines) == UPDATES
    for line in lines:
        assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)
        assert line["kl_nats"] == pytest.approx(0, abs=1e-5)
        assert line["sampler_gap_nats"] < 1e-4
        assert line["pairs"] > 3
        assert line["margin"] == pytest.approx(0, abs=1e-5)
    assert weights_unmoved(policy)


@pytest.mark.parametrize("name", ["ppo", "ppo, shared trunk", "grpo"])
def test_a_rate_above_0_would_be_seen(name: str, tmp_path: Path) -> None:
    """The tests above can fail: at a rate that learns, none of this holds."""
    lines, policy, _ = train(replace(SETTINGS[name], optimizer=MOVING), tmp_path)
    assert max(line["approx_kl_nats"] for line in lines) > 1e-4
    assert lines[0]["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert lines[-1]["kl_nats"] > 1e-3
    assert all(line["sampler_gap_nats"] < 1e-4 for line in lines)
    assert not weights_unmoved(policy)
