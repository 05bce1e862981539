"""KTO and BCO through their real training loop: mismatched prompts, reference point, running shift, resuming."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cells import cells_through
from enumerable import letters_policy, run_folder
from gradients import gradients_of, relative_gap
from preflab.config.pair_losses import BCOLoss, KTOLoss
from preflab.config.preference import BCO, KTO, Unpaired
from preflab.config.training import Batch, Optimizer
from preflab.data.encode import Tree
from preflab.errors import DataError, Interrupted, NumericError
from preflab.models.load import Policy
from preflab.models.scoring import reading_of
from preflab.runs import JSON, RunFolder, read_json, read_lines
from preflab.seeds import derive
from preflab.training import checkpoint
from preflab.training.order import batch_at
from preflab.training.unpaired import Judged, judged_pairs, mismatched, train_unpaired, unpaired_figures
from ragged import PAIRS, RESPONSES, naive_logprob

STILL = Optimizer(learning_rate=0.0, warmup_steps=0)
# Eleven ragged responses to seven prompts, five of them desirable.
EXAMPLES = [
    Judged(Tree(f"e:{i}", (2 + i % 4,) * (1 + i % 7 % 3), (RESPONSES[(3 * i) % 8],)), i % 5 in (0, 3))
    for i in range(11)
]
METHODS: dict[str, Unpaired] = {
    "kto": KTO(loss=KTOLoss(beta=0.5, desirable_weight=1.5, undesirable_weight=0.7)),
    "bco": BCO(loss=BCOLoss(beta=0.5, shift_decay=0.6)),
}


def small(method: str, **more: Any) -> Unpaired:
    settings = {"epochs": 1, "batch": Batch(size=11, micro=4), "evaluations": 1, "optimizer": STILL} | more
    return dataclasses.replace(METHODS[method], **settings)


def train(
    folder: Path,
    settings: Unpaired,
    *,
    policy: Policy | None = None,
    reference: Any = None,
    examples: Sequence[Judged] = EXAMPLES,
    **more: Any,
) -> tuple[Policy, list[JSON]]:
    policy, run = policy or letters_policy(spread=4.0), run_folder(folder)
    train_unpaired(policy, examples, settings, run, seed=0, reference=reference, log_every=1, **more)
    return policy, read_lines(run.metrics)


def other_model() -> Any:
    return letters_policy(seed=1).model


def logratio(policy: Any, reference: Any, tree: Tree) -> float:
    with torch.no_grad():
        mine, other = (naive_logprob(model, tree.prompt, tree.responses[0]) for model in (policy, reference))
    return float(mine - other)


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_change_neither_loss_nor_gradient(method: str, tmp_path: Path) -> None:
    """1 × 11 = 4 + 4 + 3 = 11 × 1; for BCO also in the second step, whose shift the first has left."""
    found = []
    for micro in (11, 4, 1):
        policy = letters_policy(spread=4.0)
        gradient = gradients_of(policy.model)
        settings = small(method, batch=Batch(size=11, micro=micro), epochs=2)
        _, lines = train(tmp_path / str(micro), settings, policy=policy, reference=other_model())
        found.append((gradient, lines))
    (gradient, lines), *others = found
    assert len(lines) == 2
    for other, other_lines in others:
        assert relative_gap(other, gradient) < 1e-6
        for line, other_line in zip(lines, other_lines, strict=True):
            assert other_line == pytest.approx(line, rel=1e-5, abs=1e-6)
            assert other_line["loss"] == pytest.approx(line["loss"], rel=1e-6)


def test_kto_is_its_formula_with_the_reference_point_worked_out_by_hand(tmp_path: Path) -> None:
    policy, reference = letters_policy(spread=4.0), other_model()
    trees = [example.tree for example in EXAMPLES]
    strangers = mismatched(trees, seed=derive(0, "mismatch"))
    drift = sum(logratio(policy.model, reference, tree) for tree in strangers) / len(strangers)
    anchor = max(0.0, drift)
    losses, right = [], []
    for example in EXAMPLES:
        gain = 0.5 * (logratio(policy.model, reference, example.tree) - anchor)
        losses.append(1.5 * (1 - sigmoid(gain)) if example.desirable else 0.7 * (1 - sigmoid(-gain)))
        right.append((gain > 0) == example.desirable)
    _, (line,) = train(tmp_path / "run", small("kto"), policy=policy, reference=reference)
    assert line["reference_point_nats"] == pytest.approx(anchor, rel=1e-4)
    assert line["loss"] == pytest.approx(sum(losses) / 11, rel=1e-5)
    assert line["accuracy"] == pytest.approx(sum(right) / 11)
    for name, kind in (("desirable_reward", True), ("undesirable_reward", False)):
        rewards = [0.5 * logratio(policy.model, reference, e.tree) for e in EXAMPLES if e.desirable is kind]
        assert line[name] == pytest.approx(sum(rewards) / len(rewards), rel=1e-4), name
    # Held out, at another seed of the mismatch only the reference point may differ.
    figures = unpaired_figures(policy, reference, EXAMPLES, small("kto").loss, seed=0)
    assert figures["loss"] == pytest.approx(losses, rel=1e-4)
    assert figures["accuracy"] == [float(one) for one in right]


@pytest.mark.parametrize(("of_policy", "of_reference"), [(1, 0), (0, 1)])
def test_the_reference_point_is_clamped_at_0(of_policy: int, of_reference: int, tmp_path: Path) -> None:
    """A policy cannot lie below its reference by a KL: the mean of one of the two directions is negative."""
    policy, reference = letters_policy(seed=of_policy, spread=6.0), letters_policy(seed=of_reference, spread=6.0)
    strangers = mismatched([example.tree for example in EXAMPLES], seed=derive(0, "mismatch"))
    drift = sum(logratio(policy.model, reference.model, tree) for tree in strangers) / len(strangers)
    assert abs(drift) > 0.1
    _, (line,) = train(tmp_path / "run", small("kto"), policy=policy, reference=reference.model)
    assert line["reference_point_nats"] == pytest.approx(max(0.0, drift), rel=1e-4)


def test_no_gradient_flows_through_the_reference_point(tmp_path: Path) -> None:
    """Against the gradient of the formula with z₀ held."""
    policy, reference = letters_policy(seed=1, spread=6.0), letters_policy(seed=0, spread=6.0)
    found = gradients_of(policy.model)
    _, (line,) = train(tmp_path / "run", small("kto"), policy=policy, reference=reference.model)
    if line["reference_point_nats"] == 0:
        policy, reference = reference, policy
        found = gradients_of(policy.model)
        _, (line,) = train(tmp_path / "again", small("kto"), policy=policy, reference=reference.model)
    assert line["reference_point_nats"] > 0.1
    total = torch.zeros((), dtype=torch.float64)
    for example in EXAMPLES:
        ratio = naive_logprob(policy.model, example.tree.prompt, example.tree.responses[0])
        ratio = ratio - naive_logprob(reference.model, example.tree.prompt, example.tree.responses[0]).detach()
        gain = 0.5 * (ratio - line["reference_point_nats"])
        total = total + (1.5 * torch.sigmoid(-gain) if example.desirable else 0.7 * torch.sigmoid(gain)) / 11
    policy.model.zero_grad()
    total.backward()
    expected = {name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None}
    assert relative_gap(found, expected) < 1e-5


def test_one_example_a_step_has_a_reference_point_of_its_own(tmp_path: Path) -> None:
    """With a batch of 1, another response than its own is scored; z₀ is max(0, its log-ratio)."""
    policy, reference = letters_policy(spread=6.0), letters_policy(seed=1, spread=6.0)
    settings = small("kto", batch=Batch(size=1, micro=1))
    _, lines = train(tmp_path / "run", settings, policy=policy, reference=reference.model)
    strangers = mismatched([example.tree for example in EXAMPLES], seed=derive(0, "mismatch"))
    expected = []
    for step in range(11):
        (index,) = batch_at(step, examples=11, batch_size=1, seed=derive(0, "data"))
        expected.append(max(0.0, logratio(policy.model, reference.model, strangers[index])))
    assert [line["reference_point_nats"] for line in lines] == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert len({round(value, 6) for value in expected}) > 3


@pytest.mark.parametrize("n", [2, 3, 4, 5, 7, 8, 33])
@pytest.mark.parametrize("prompts", [2, 3, 5])
def test_no_mismatched_pair_matches_at_any_size(n: int, prompts: int) -> None:
    """Odd sizes and duplicated prompts included: never a response to the same prompt (trl#1911, trl#1380)."""
    trees = [Tree(f"e:{i}", (2 + min(i, prompts - 1) % prompts,), ((3, i),)) for i in range(n)]
    for seed in range(5):
        found = mismatched(trees, seed=seed)
        assert [tree.prompt for tree in found] == [tree.prompt for tree in trees]
        prompt_of = {tree.responses[0]: tree.prompt for tree in trees}
        assert all(prompt_of[tree.responses[0]] != tree.prompt for tree in found)
    if n == 33:
        assert len({tuple(tree.responses for tree in mismatched(trees, seed=seed)) for seed in range(5)}) > 1


def test_both_responses_of_a_pair_meet_strangers() -> None:
    pairs = [Tree(f"p:{i}", (i,), ((10 + i,), (20 + i,))) for i in range(8)]
    trees = [example.tree for example in judged_pairs(pairs)]
    assert [example.desirable for example in judged_pairs(pairs[:2])] == [True, False, True, False]
    assert len(trees) == 16
    own = {(tree.prompt, tree.responses) for tree in trees}
    assert not own & {(tree.prompt, tree.responses) for tree in mismatched(trees, seed=0)}


@pytest.mark.parametrize("n", [1, 4])
def test_kto_with_one_prompt_is_refused_and_bco_is_not(n: int, tmp_path: Path) -> None:
    rows = [Judged(Tree(f"data.jsonl:{i}", (2, 3), (RESPONSES[i],)), i % 2 == 0) for i in range(n)]
    with pytest.raises(DataError, match=r"^data\.jsonl:\d: KTO's reference point needs responses to at least two diff"):
        train(tmp_path / "kto", small("kto"), examples=rows)
    _, (line,) = train(tmp_path / "bco", small("bco", batch=Batch(size=n)), examples=rows)
    assert line["loss"] == pytest.approx(math.log(2), abs=1e-6)


def test_at_the_reference_kto_starts_at_half_its_weights_and_bco_at_ln_2(tmp_path: Path) -> None:
    _, (kto,) = train(tmp_path / "kto", small("kto"))
    desirable = sum(example.desirable for example in EXAMPLES)
    assert kto["loss"] == pytest.approx((1.5 * desirable + 0.7 * (11 - desirable)) / 22, abs=1e-6)
    assert kto["reference_point_nats"] == pytest.approx(0, abs=1e-5)
    _, (bco,) = train(tmp_path / "bco", small("bco"))
    assert bco["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert bco["shift"] == 0
    start = read_json(tmp_path / "bco" / "start.json")
    assert start["starts_at_reference"]
    assert start["largest_logratio_nats"] < 1e-5


def test_bco_s_shift_is_the_running_mean_of_the_steps_before(tmp_path: Path) -> None:
    """Kept by hand: δ_0 = 0, δ_n = 0.6·δ_(n−1) + 0.4·mean of βΔ in step n − 1. At rate 0 every βΔ is known."""
    policy, reference = letters_policy(spread=4.0), other_model()
    settings = small("bco", batch=Batch(size=4, micro=3), epochs=2)
    _, lines = train(tmp_path / "run", settings, policy=policy, reference=reference)
    assert len(lines) == 6
    shift = 0.0
    for step, line in enumerate(lines):
        rows = [EXAMPLES[i] for i in batch_at(step, examples=11, batch_size=4, seed=derive(0, "data"))]
        rewards = [0.5 * logratio(policy.model, reference, row.tree) for row in rows]
        signs = [1 if row.desirable else -1 for row in rows]
        losses = [-math.log(sigmoid(sign * (reward - shift))) for sign, reward in zip(signs, rewards, strict=True)]
        assert line["shift"] == pytest.approx(shift, rel=1e-4, abs=1e-7)
        assert line["loss"] == pytest.approx(sum(losses) / 4, rel=1e-4)
        shift = 0.6 * shift + 0.4 * sum(rewards) / 4
    assert abs(shift) > 0.05


def stopped(method: str, folder: Path, stops: Sequence[int]) -> tuple[dict[str, Tensor], list[JSON]]:
    settings = small(
        method, epochs=4, batch=Batch(size=5, micro=2), evaluations=4,
        optimizer=Optimizer(learning_rate=0.02, warmup_steps=3),
    )  # fmt: skip

    def evaluate(step: int) -> None:
        if step in stops:
            os.kill(os.getpid(), signal.SIGTERM)

    policy, lines = train(folder, settings, reference=other_model(), evaluate=evaluate)
    return policy.model.state_dict(), lines


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_is_stopped_ends_as_one_that_is_not(method: str, tmp_path: Path) -> None:
    """Bit for bit, BCO's shift included."""
    whole, lines = stopped(method, tmp_path / "whole", [])
    for step in (2, 7):
        with pytest.raises(Interrupted, match=f"after step {step}"):
            stopped(method, tmp_path / "stopped", [step])
    again, other_lines = stopped(method, tmp_path / "stopped", [])
    assert len(lines) == 9
    assert other_lines == lines
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


def test_a_restore_without_the_shift_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, _ = stopped("bco", tmp_path / "whole", [])
    with pytest.raises(Interrupted):
        stopped("bco", tmp_path / "stopped", [4])
    latest = checkpoint.latest

    def forgetful(folder: Path) -> checkpoint.Checkpoint | None:
        found = latest(folder)
        return found and dataclasses.replace(found, state=found.state | {"memory": {}})

    monkeypatch.setattr(checkpoint, "latest", forgetful)
    again, _ = stopped("bco", tmp_path / "stopped", [])
    assert not all(torch.equal(value, whole[name]) for name, value in again.items())


@pytest.mark.parametrize("method", METHODS)
def test_training_raises_the_desirable_and_lowers_the_rest(method: str, tmp_path: Path) -> None:
    examples = judged_pairs(PAIRS)
    settings = small(
        method, epochs=12, batch=Batch(size=16, micro=16), optimizer=Optimizer(learning_rate=0.02, warmup_steps=0)
    )
    _, lines = train(tmp_path / "run", settings, examples=examples)
    first, last = lines[0], lines[-1]
    assert last["loss"] < first["loss"]
    assert last["desirable_reward"] > last["undesirable_reward"] + 0.5
    assert last["accuracy"] > 0.75


@pytest.mark.parametrize("method", METHODS)
def test_tokens_are_counted(method: str, tmp_path: Path) -> None:
    """The reference reads the responses once, and for KTO the mismatched ones (equal ones once), which the policy reads
    again at each step."""
    trees = [example.tree for example in EXAMPLES]
    run, policy, reference = run_folder(tmp_path / "run"), letters_policy(), letters_policy(seed=1).model
    with cells_through(policy.model) as cells, cells_through(reference) as read:
        cost = train_unpaired(policy, EXAMPLES, small(method, epochs=3), run, seed=0, reference=reference)
    looked_at = reading_of(policy.model, trees).cells  # before the first step, at no charge
    assert cost.trained_tokens == cells[True]
    assert cost.scored_tokens == read[False] + cells[False] - looked_at
    strangers = mismatched(trees, seed=derive(0, "mismatch")) if method == "kto" else []
    distinct = {(tree.prompt, tree.responses): tree for tree in strangers}
    assert read[False] == looked_at + reading_of(reference, [*distinct.values()]).cells
    assert (cells[False] > looked_at) == (method == "kto")


def test_weights_that_are_not_numbers_stop_the_run(tmp_path: Path) -> None:
    for method in METHODS:
        policy = letters_policy()
        with torch.no_grad():
            policy.model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")
        with pytest.raises(NumericError, match="not finite before the first step"):
            train(tmp_path / method, small(method), policy=policy)
        assert not RunFolder(tmp_path / method).checkpoints.exists()


@pytest.mark.parametrize(("method", "said"), [("kto", "KTO's reference point is nan"), ("bco", "the loss is nan")])
def test_weights_that_break_in_training_stop_the_run_and_name_the_rows(method: str, said: str, tmp_path: Path) -> None:
    policy = letters_policy(spread=4.0)

    def break_it(step: int) -> None:
        with torch.no_grad():
            policy.model.transformer.h[0].mlp.c_fc.weight[0, 0] = float("nan")

    settings = small(method, epochs=2, evaluations=2)
    with pytest.raises(NumericError, match=said):
        train(tmp_path / "run", settings, policy=policy, evaluate=break_it)
    crash = read_json(tmp_path / "run" / "crash.json")
    assert crash["step"] == 2
    assert sorted(crash["rows"]) == sorted(example.tree.origin for example in EXAMPLES)


@pytest.mark.parametrize(
    ("method", "name"),
    [(method, field.name) for method, one in METHODS.items() for field in dataclasses.fields(one.loss)],
)
def test_each_setting_of_each_loss_changes_the_weights(method: str, name: str, tmp_path: Path) -> None:
    """In three steps: BCO's decay acts from the second one on."""
    settings = small(method, epochs=1, batch=Batch(size=4), optimizer=Optimizer(learning_rate=0.01, warmup_steps=0))
    changed = dataclasses.replace(settings.loss, **{name: getattr(settings.loss, name) * 1.3})
    found = [
        train(tmp_path / folder, dataclasses.replace(settings, loss=loss), reference=other_model())
        for folder, loss in (("first", settings.loss), ("second", changed))
    ]
    (first, lines), (second, other_lines) = found
    assert lines[-1]["loss"] != pytest.approx(other_lines[-1]["loss"], rel=1e-6)
    weight = "transformer.h.0.mlp.c_fc.weight"
    assert not torch.equal(first.model.state_dict()[weight], second.model.state_dict()[weight])
