"""What holds for every method: the gradient, the finite check, freezing, learning rates and the order of the data."""

from __future__ import annotations

import copy
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cells import cells_through
from enumerable import END_ID, ShareOf, letters_policy, letters_prompts, reward_model, run_folder, value_model
from gradients import gradients_of
from preflab.config.online import PPO, RolloutBatch
from preflab.config.preference import DPO, SimPO
from preflab.config.training import SFT, Batch, Optimizer, Reward
from preflab.data.encode import Encoder, Tree
from preflab.errors import ConfigError, NumericError
from preflab.models.freezing import freeze
from preflab.models.load import Policy, copy_of
from preflab.rollouts.sampler import sample
from preflab.runs import read_lines
from preflab.training.offline import total_steps
from preflab.training.optimizer import Stepper
from preflab.training.order import batch_at, evaluation_steps
from preflab.training.ppo import train_ppo
from preflab.training.preference import train_preference
from preflab.training.reward import train_reward
from preflab.training.sft import train_sft
from tiny import tiny_policy
from untimed import untimed

STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
# Ragged: responses of 1 to 9 tokens, so that a mean of means is far from the mean.
RESPONSES = [
    (5, 6, 7, 8, 9, 10, 11, 12, 2),
    (13, 2),
    (14,),
    (15, 16, 17, 2),
    (18, 19),
    (20, 21, 22, 23, 2),
    (24, 2),
    (25,),
]
DEMONSTRATIONS = [Tree(f"d:{i}", (30 + i,) * (1 + i % 3), (ids,)) for i, ids in enumerate(RESPONSES)]
PAIRS = [Tree(f"p:{i}", (30 + i,) * (1 + i % 4), (RESPONSES[i], RESPONSES[(i + 3) % 8])) for i in range(8)]


def small(
    method: str,
    model: Policy,
    path: Path,
    *,
    micro: int,
    value: Policy | None = None,
    optimizer: Optimizer = STILL,
    **more: Any,
) -> None:
    """One optimiser step on eight ragged rows."""
    shared = {"batch": Batch(size=8, micro=micro), "optimizer": optimizer, "evaluations": 1} | more
    run = run_folder(path / f"{method}-{micro}")
    match method:
        case "sft":
            train_sft(model, DEMONSTRATIONS, SFT(**shared), run, seed=0)
        case "reward":
            train_reward(model, PAIRS, Reward(**shared), run, seed=0)
        case "dpo":
            reference = tiny_policy(seed=1).model  # not the policy: at ln 2 all pairs would weigh the same
            train_preference(model, PAIRS, DPO(**shared), run, seed=0, reference=reference)
        case "simpo":
            train_preference(model, PAIRS, SimPO(**shared), run, seed=0)
        case "ppo":
            settings = PPO(
                updates=1,
                epochs=1,
                value_optimizer=optimizer,
                **shared | {"batch": RolloutBatch(size=8, mini=8, micro=micro)},
            )
            train_ppo(
                model, value or value_model(path), letters_policy(seed=1).model, ShareOf("a"), letters_prompts(8),
                settings, run, max_new_tokens=6, seed=0, starts_at_reference=False,
            )  # fmt: skip


def start(method: str, tmp_path: Path) -> Policy:
    match method:
        case "reward":
            return reward_model(tmp_path, tiny_policy())
        case "ppo":
            return letters_policy(spread=4.0)
        case _:
            return tiny_policy()


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "ppo"])
def test_micro_batches_do_not_change_the_gradient(method: str, tmp_path: Path) -> None:
    """1 × 8 = 3 + 3 + 2 = 8 × 1 on ragged rows, in the gradients of all models and in every logged figure."""
    found: list[tuple[dict[str, Tensor], dict[str, float]]] = []
    for micro in (8, 3, 1):
        model, value = start(method, tmp_path / str(micro)), value_model(tmp_path / str(micro))
        seen, of_value = gradients_of(model.model), gradients_of(value.model)
        small(method, model, tmp_path, micro=micro, value=value)
        (line,) = untimed(read_lines(run_folder(tmp_path / f"{method}-{micro}").metrics))
        found.append((seen | {f"value.{name}": gradient for name, gradient in of_value.items()}, line))
    (whole, line), *others = found
    for part in ("", "value.") if method == "ppo" else ("",):
        names = [name for name in whole if name.startswith("value.") == (part == "value.")]
        size = sum(float(whole[name].square().sum()) for name in names) ** 0.5
        assert size > 1e-3
        for gradients, _ in others:
            assert gradients.keys() == whole.keys()
            gap = sum(float((gradients[name] - whole[name]).square().sum()) for name in names) ** 0.5
            assert gap < 1e-6 * size, f"{method} {part}: relative gap {gap / size:.1e}"
    for _, figures in others:
        assert figures == pytest.approx(line, rel=1e-5, abs=1e-5)


def poison(model: Any) -> None:
    with torch.no_grad():
        model.base_model.h[0].mlp.c_fc.weight[0, 0] = float("nan")


@pytest.mark.parametrize("method", ["sft", "reward", "dpo", "simpo", "ppo"])
def test_a_nan_stops_the_run_before_the_step(method: str, tmp_path: Path) -> None:
    """Exit code 4, the rows in crash.json, and no weight moved."""
    model = start(method, tmp_path)
    poison(model.model)
    before = copy.deepcopy(model.model.state_dict())
    said = {
        "dpo": "a log-probability is not finite before the first step: the weights hold NaN",
        "ppo": "policy's log-probabilities are not finite",
    }.get(method, "the loss is nan at step 1")
    with pytest.raises(NumericError, match=said) as stopped:
        small(method, model, tmp_path, micro=2, optimizer=Optimizer(warmup_steps=0))
    assert stopped.value.exit_code == 4
    for name, value in model.model.state_dict().items():
        assert torch.equal(value.nan_to_num(9.0), before[name].nan_to_num(9.0)), name
    assert not list((tmp_path / f"{method}-2").glob("checkpoints/*"))
    if method == "dpo":  # no row is to blame
        assert not (tmp_path / "dpo-2" / "crash.json").exists()
        return
    crash = json.loads((tmp_path / f"{method}-2" / "crash.json").read_text())
    origins = {"ppo": "prompt:", "sft": "d:"}.get(method, "p:")
    assert crash["step"] == 1
    assert crash["error"] == str(stopped.value)
    assert sorted(crash["rows"]) == [f"{origins}{i}" for i in range(8)]


def test_a_gradient_that_is_not_finite_stops_the_run_too(tmp_path: Path) -> None:
    """The loss is fine here: the fault is in the backward pass, at the second step."""
    policy = tiny_policy()
    steps: list[int] = []
    before: dict[str, Tensor] = {}

    def break_second(gradient: Tensor) -> Tensor:
        steps.append(1)
        if len(steps) < 2:
            return gradient
        before.update(copy.deepcopy(policy.model.state_dict()))
        return gradient * float("inf")

    policy.model.transformer.ln_f.weight.register_hook(break_second)
    settings = SFT(epochs=3, batch=Batch(size=8, micro=8), evaluations=1)
    with pytest.raises(NumericError, match="gradient is not finite at step 2"):
        train_sft(policy, DEMONSTRATIONS, settings, run_folder(tmp_path / "run"), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_frozen_blocks_stay_bit_identical(method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = start(method, tmp_path)
    before = copy.deepcopy(model.model.state_dict())
    small(method, model, tmp_path, micro=8, optimizer=Optimizer(learning_rate=0.01, warmup_steps=0), freeze_blocks=1)
    moved = {name for name, value in model.model.state_dict().items() if not torch.equal(value, before[name])}
    assert any(".h.1." in name for name in moved)
    assert not any(part in name for name in moved for part in ("wte", "wpe", ".h.0.", "lm_head"))
    if method == "reward":
        assert "score.weight" in moved
    else:
        assert "1 of 2 blocks, and the output head, which is tied" in capfd.readouterr().err.replace("\n", " ")


def test_ppo_freezes_the_policy_and_leaves_the_reference_alone(tmp_path: Path) -> None:
    policy = letters_policy()
    reference = copy_of(policy.model)
    before = copy.deepcopy(policy.model.state_dict())
    fast = Optimizer(learning_rate=0.01, warmup_steps=0)
    settings = PPO(
        updates=2,
        batch=RolloutBatch(size=8, mini=8),
        freeze_blocks=1,
        evaluations=1,
        optimizer=fast,
        value_optimizer=fast,
    )
    train_ppo(
        policy, reward_model(tmp_path, policy), reference, ShareOf("a"), letters_prompts(8), settings,
        run_folder(tmp_path / "run"), max_new_tokens=4, seed=0,
    )  # fmt: skip
    moved = {name for name, value in policy.model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"transformer.ln_f.weight", "transformer.ln_f.bias"}  # all that is left above the only block
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())


def test_too_many_frozen_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="has 2 blocks"):
        freeze(tiny_policy().model, 3)


def test_learning_rates_warm_up_hold_and_fall() -> None:
    def rates(total: int, **settings: Any) -> list[float]:
        stepper = Stepper(nn.Linear(1, 1), Optimizer(learning_rate=0.1, **settings), total)
        return [stepper.learning_rate(step) for step in range(total)]

    assert rates(6, warmup_steps=4) == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
    assert rates(6, warmup_steps=2, decay="linear") == pytest.approx([0.05, 0.1, 0.1, 0.075, 0.05, 0.025])
    assert rates(4, warmup_steps=0, decay="linear") == pytest.approx([0.1, 0.075, 0.05, 0.025])
    assert rates(2, warmup_steps=4) == pytest.approx([0.025, 0.05])


@pytest.mark.parametrize("name", ["adamw", "rmsprop"])
def test_the_learning_rate_of_a_step_is_the_one_that_moves_the_weights(name: Any) -> None:
    """At rate 0 nothing moves, weight decay or not."""
    for rate, moves in ((0.0, False), (0.01, True)):
        layer = nn.Linear(2, 1)
        before = layer.weight.detach().clone()
        settings = Optimizer(name=name, learning_rate=rate, warmup_steps=0, weight_decay=0.1)
        stepper = Stepper(layer, settings, 1)
        layer(torch.ones(1, 2)).sum().backward()
        figures = stepper.step(0, "step 1")
        assert figures == {"gradient_norm": pytest.approx(3**0.5), "learning_rate": rate}
        assert (not torch.equal(layer.weight, before)) is moves
        assert layer.weight.grad is None


def test_the_gradient_is_clipped_to_its_norm() -> None:
    layer = nn.Linear(2, 1)
    stepper = Stepper(layer, Optimizer(max_gradient_norm=0.5), 1)
    (100 * layer(torch.ones(1, 2))).sum().backward()
    assert stepper.clip("step 1") == pytest.approx(100 * 3**0.5)
    parts = [p.grad.square().sum() for p in layer.parameters() if p.grad is not None]
    assert float(sum(parts)) ** 0.5 == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize(("examples", "batch_size"), [(7, 3), (10, 4), (5, 5), (3, 8), (1, 4), (13, 1)])
def test_every_epoch_sees_each_example_exactly_once(examples: int, batch_size: int) -> None:
    steps = 3 * examples  # whole epochs, whatever the batch
    stream = [i for step in range(steps) for i in batch_at(step, examples=examples, batch_size=batch_size, seed=5)]
    assert len(stream) == steps * batch_size
    epochs = [stream[begin : begin + examples] for begin in range(0, len(stream), examples)]
    assert all(sorted(epoch) == list(range(examples)) for epoch in epochs)
    if examples > 4:
        assert len({tuple(epoch) for epoch in epochs}) > 1
        other = [i for step in range(steps) for i in batch_at(step, examples=examples, batch_size=batch_size, seed=6)]
        assert other != stream


def test_training_takes_the_steps_that_its_epochs_need(tmp_path: Path) -> None:
    """5 rows by 2, two epochs: 5 steps, each row twice, the straddling batch included."""
    rows = DEMONSTRATIONS[:5]
    settings = SFT(epochs=2, batch=Batch(size=2, micro=2), optimizer=STILL, evaluations=2)
    run = run_folder(tmp_path / "run")
    seen: list[int] = []
    policy = tiny_policy()
    with cells_through(policy.model) as cells:
        cost = train_sft(policy, rows, settings, run, seed=0, log_every=1, evaluate=seen.append)
    assert total_steps(5, settings) == 5
    assert [line["step"] for line in read_lines(run.metrics)] == [1, 2, 3, 4, 5]
    assert seen == evaluation_steps(5, 2)
    assert cells == {True: cost.trained_tokens}
    drawn = Counter(i for step in range(5) for i in batch_at(step, examples=5, batch_size=2, seed=0))
    assert set(drawn.values()) == {2}


def test_evaluation_steps_end_with_the_last() -> None:
    for total in (1, 2, 3, 7, 100):
        for evaluations in (1, 2, 4, 9):
            steps = evaluation_steps(total, evaluations)
            assert steps[-1] == total
            assert steps == sorted(set(steps))
            assert len(steps) == min(total, evaluations)


def test_sft_learns_one_row_and_stops_at_its_end_token(tmp_path: Path) -> None:
    policy = tiny_policy()
    encoder = Encoder(policy.tokenizer, prompt_tokens=16, response_tokens=32)
    prompt, response = encoder.prompt("The plot was"), encoder.response(" thin, but the ending won me over.")
    settings = SFT(
        epochs=60, batch=Batch(size=1), evaluations=1, optimizer=Optimizer(learning_rate=0.01, warmup_steps=0)
    )
    run = run_folder(tmp_path / "run")
    train_sft(policy, [Tree("row:1", prompt, (response,))], settings, run, seed=0, log_every=1)
    lines = read_lines(run.metrics)
    assert lines[-1]["loss"] < 0.05 < 4 < lines[0]["loss"]
    assert set(lines[0]) == {"step", "loss", "perplexity", "gradient_norm", "learning_rate"}
    assert lines[0]["perplexity"] == pytest.approx(torch.tensor(lines[0]["loss"]).exp().item())
    (found,) = sample(policy.model, [prompt], keys=["x"], end_id=encoder.end_id, max_new_tokens=60, seed=0, greedy=True)
    assert found.tokens == response
    assert found.ended


def test_no_weight_left_to_train_is_refused() -> None:
    layer = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ConfigError, match="every weight is frozen"):
        Stepper(layer, Optimizer(), 1)


def test_the_end_token_is_the_letters_end_token() -> None:
    """What the PPO toys of these tests rely on."""
    policy = letters_policy()
    encoder = Encoder(policy.tokenizer, prompt_tokens=8, response_tokens=8)
    assert encoder.end_id == END_ID
    assert encoder.response("ab") == (2, 3, END_ID)
    assert encoder.decode((2, 3, END_ID)) == "ab"
