"""Every method on pairs through its real training loop: the loss, its gradient, where it starts, and DPO's optimum."""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cells import cells_through
from enumerable import VOCABULARY, letters_policy, next_token, run_folder
from gradients import relative_gap
from preflab.config import pair_losses as losses
from preflab.config.commands import Compare, Methods
from preflab.config.pair_losses import DPOLoss, PairLoss, SumLoss
from preflab.config.preference import DPO, Preference
from preflab.config.training import Batch, Optimizer, Trunk
from preflab.data.encode import Encoder, Tree
from preflab.data.pack import readings
from preflab.data.records import PreferencePair
from preflab.errors import Interrupted, NumericError
from preflab.losses import dpo
from preflab.models import scoring
from preflab.models.flops import flops
from preflab.models.freezing import freeze
from preflab.models.load import Policy, copy_of
from preflab.models.scoring import reading_of
from preflab.models.trunk import split_of
from preflab.runs import read_json, read_lines
from preflab.training.cost import Cost
from preflab.training.preference import (
    ScoredPairs,
    implicit_rewards,
    knows_reference,
    pair_logprobs,
    pair_step,
    preference_figures,
    ranks_batch,
    train_preference,
)
from ragged import PAIRS, naive_logprob
from test_flops import IN_PLACE
from tiny import tiny_pairs, tiny_policy

KEYS = {
    "step", "loss", "accuracy", "margin", "chosen_reward", "rejected_reward", "chosen_logprob_nats",
    "rejected_logprob_nats", "gradient_norm", "learning_rate",
}  # fmt: skip
METHODS: dict[str, Preference] = {
    field.name: getattr(Compare(), field.name)
    for field in dataclasses.fields(Methods)
    if isinstance(getattr(Compare(), field.name), Preference)
}
REFERENCE_FREE = {"simpo", "cpo", "orpo"}
RANKED = {"aot"}


def encoded(n: int) -> list[Tree]:
    encoder = Encoder(tiny_policy().tokenizer, prompt_tokens=32, response_tokens=32)
    return encoder.pairs(PreferencePair(**row, origin=f"p:{i}") for i, row in enumerate(tiny_pairs(n)))


def policy_and_reference(pairs: Sequence[Tree] = PAIRS) -> tuple[Policy, Tensor]:
    """A policy, and log-probabilities of a reference that orders the pairs otherwise: at policy = reference all pairs
    would weigh the same, and ranks would be those of the pairs themselves."""
    noise = torch.randn(len(pairs), 2, generator=torch.Generator().manual_seed(0))
    return letters_policy(spread=4.0), pair_logprobs(letters_policy(seed=1).model, pairs) + 2 * noise


def one_step(
    policy: Policy, pairs: Sequence[Tree], reference: Tensor | None, loss: PairLoss, *, micro: int = 8
) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradient of one optimiser step, in micro-batches."""
    policy.model.zero_grad()
    of_micro_batch = pair_step(policy, pairs, reference, loss, Cost())
    total = 0.0
    for begin in range(0, len(pairs), micro):
        share, _ = of_micro_batch(range(begin, min(begin + micro, len(pairs))))
        share.backward()
        total += float(share.detach())
    return total, gradient_of(policy)


def gradient_of(policy: Policy) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in policy.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_micro_batches_change_neither_loss_nor_gradient(method: str) -> None:
    """1 × 8 = 3 + 3 + 2 = 8 × 1 on ragged pairs."""
    policy, reference = policy_and_reference()
    loss, gradient = one_step(policy, PAIRS, reference, METHODS[method].loss)
    for micro in (3, 1):
        other_loss, other = one_step(policy, PAIRS, reference, METHODS[method].loss, micro=micro)
        assert other_loss == pytest.approx(loss, rel=1e-6)
        assert relative_gap(other, gradient) < 1e-6


@pytest.mark.parametrize("method", sorted(METHODS.keys() - RANKED))
def test_a_pair_s_loss_knows_no_batch_mates_no_padding_and_no_order(method: str) -> None:
    """The gradient of a step is the mean of its pairs' own gradients, each taken without padding."""
    policy, reference = policy_and_reference()
    loss, gradient = one_step(policy, PAIRS, reference, METHODS[method].loss)
    alone = [
        one_step(policy, [tree], reference[i : i + 1], METHODS[method].loss)
        for i, tree in reversed([*enumerate(PAIRS)])
    ]
    assert sum(one for one, _ in alone) / 8 == pytest.approx(loss, rel=1e-6)
    mean = {name: torch.stack([of_one[name] for _, of_one in alone]).mean(0) for name in gradient}
    assert relative_gap(gradient, mean) < 2e-6


def twice(pairs: Sequence[Tree]) -> list[Tree]:
    """With a pair that the step holds twice: their margins tie."""
    return [*pairs[:5], pairs[2], *pairs[5:]]


@pytest.mark.parametrize("pairs", [PAIRS, twice(PAIRS)], ids=["distinct", "one twice"])
@pytest.mark.parametrize("micro", [9, 4, 1])
def test_aot_is_the_sorted_margins_of_the_whole_step(pairs: list[Tree], micro: int) -> None:
    """Mean of −log σ(β·(i-th policy margin − i-th reference margin)), both sorted, differentiated through the sort."""
    policy, reference = policy_and_reference(pairs)
    loss, found = one_step(policy, pairs, reference, losses.AOTLoss(beta=0.3), micro=micro)
    logprobs = [[naive_logprob(policy.model, tree.prompt, one) for one in tree.responses] for tree in pairs]
    margins = torch.stack([chosen - rejected for chosen, rejected in logprobs])
    of_reference = (reference[:, 0] - reference[:, 1]).double()
    assert margins.argsort().tolist() != of_reference.argsort().tolist()
    expected = (1 + (-0.3 * (margins.sort().values - of_reference.sort().values)).exp()).log()
    policy.model.zero_grad()
    expected.mean().backward()
    assert loss == pytest.approx(expected.mean().item(), rel=1e-6)
    assert relative_gap(found, gradient_of(policy)) < 2e-6


def test_aot_is_not_the_ranks_of_micro_batches() -> None:
    """The test above can fail: ranked in parts, the loss is another."""
    policy, reference = policy_and_reference()
    loss = losses.AOTLoss(beta=0.3)
    whole, _ = one_step(policy, PAIRS, reference, loss)
    parts = [one_step(policy, PAIRS[i : i + 2], reference[i : i + 2], loss)[0] for i in range(0, 8, 2)]
    assert abs(sum(parts) / 4 - whole) > 1e-3


def log_sigmoid(x: float) -> float:
    return -math.log(1 + math.exp(-x))


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_odds(mean: float) -> float:
    return math.log(math.exp(mean) / (1 - math.exp(mean)))


# w, r: log-ratios of chosen and rejected; W, R: their log-probabilities; n, m: their tokens. At the default settings.
FORMULAS: dict[str, Callable[..., float]] = {
    "dpo": lambda w, r, **_: -log_sigmoid(0.1 * (w - r)),
    "cdpo": lambda w, r, **_: -0.9 * log_sigmoid(0.1 * (w - r)) - 0.1 * log_sigmoid(0.1 * (r - w)),
    "rdpo": lambda w, r, **_: (-0.9 * log_sigmoid(0.1 * (w - r)) + 0.1 * log_sigmoid(0.1 * (r - w))) / 0.8,
    "ipo": lambda w, r, **_: (w - r - 5) ** 2,
    "hinge": lambda w, r, **_: max(0.0, 1 - 0.05 * (w - r)),
    "exo": lambda w, r, **_: (
        sigmoid(0.1 * (w - r)) * math.log(sigmoid(0.1 * (w - r)) / 0.999)
        + sigmoid(0.1 * (r - w)) * math.log(sigmoid(0.1 * (r - w)) / 0.001)
    ),
    "ln_dpo": lambda w, r, n, m, **_: -log_sigmoid(5 * (w / n - r / m)),
    "f_dpo": lambda w, r, **_: -log_sigmoid(
        0.1 * (math.log(2 * math.exp(w) / (1 + math.exp(w))) - math.log(2 * math.exp(r) / (1 + math.exp(r))))
    ),
    "dpop": lambda w, r, **_: -log_sigmoid(0.3 * (w - r - 50 * max(0.0, -w))),
    "nca": lambda w, r, **_: -log_sigmoid(0.01 * w) - 0.5 * log_sigmoid(-0.01 * w) - 0.5 * log_sigmoid(-0.01 * r),
    "bco_pair": lambda w, r, **_: -log_sigmoid(0.01 * w) - log_sigmoid(-0.01 * r),
    "sppo": lambda w, r, **_: (w - 500) ** 2 + (r + 500) ** 2,
    "apo_zero": lambda w, r, **_: 1 - sigmoid(0.1 * w) + sigmoid(0.1 * r),
    "apo_down": lambda w, r, **_: sigmoid(0.1 * w) + 1 - sigmoid(0.1 * (w - r)),
    "simpo": lambda W, R, n, m, **_: -log_sigmoid(2 * (W / n - R / m) - 1),
    "cpo": lambda W, R, **_: -log_sigmoid(0.1 * (W - R)) - W,
    "orpo": lambda W, R, n, m, **_: -W / n - 0.1 * log_sigmoid(log_odds(W / n) - log_odds(R / m)),
    "sum": lambda w, r, W, n, **_: -log_sigmoid(0.1 * (w - r)) - 0.1 * W / n,
}  # fmt: skip


@pytest.mark.parametrize("method", sorted(METHODS.keys() - RANKED))
def test_the_trainer_s_loss_is_the_formula_on_these_log_probabilities(method: str, tmp_path: Path) -> None:
    """Sums or means, log-ratios or log-probabilities: against plain arithmetic, pair by pair."""
    assert FORMULAS.keys() == METHODS.keys() - RANKED
    policy, reference = letters_policy(spread=4.0), letters_policy(seed=1, spread=4.0)
    of_reference = pair_logprobs(reference.model, PAIRS) if method not in REFERENCE_FREE else None
    expected = []
    for tree in PAIRS:
        mine, other = (
            [float(naive_logprob(one.model, tree.prompt, response).detach()) for response in tree.responses]
            for one in (policy, reference)
        )
        n, m = map(len, tree.responses)
        ratio = {"w": mine[0] - other[0], "r": mine[1] - other[1]}
        expected.append(FORMULAS[method](**ratio, W=mine[0], R=mine[1], n=n, m=m))
    figures = preference_figures(policy, PAIRS, of_reference, METHODS[method].loss)
    assert figures.loss == pytest.approx(expected, rel=1e-4)

    run = run_folder(tmp_path / "run")
    settings = dataclasses.replace(
        METHODS[method], batch=Batch(size=8, micro=3), evaluations=1, optimizer=Optimizer(learning_rate=0.0)
    )
    train_preference(policy, PAIRS, settings, run, seed=0, reference=reference.model)
    (line,) = read_lines(run.metrics)
    assert set(line) == KEYS
    assert line["loss"] == pytest.approx(sum(expected) / 8, rel=1e-4)
    for name in ("accuracy", "margin"):
        values = getattr(figures, name)
        assert line[name] == pytest.approx(sum(values) / 8, rel=1e-4, abs=1e-6), name
    assert line["margin"] == pytest.approx(line["chosen_reward"] - line["rejected_reward"], rel=1e-4, abs=1e-6)


def test_no_two_methods_are_the_same() -> None:
    """Not in value, not in gradient."""
    policy, reference = policy_and_reference()
    found = {method: one_step(policy, PAIRS, reference, settings.loss) for method, settings in METHODS.items()}
    for (first, (loss, gradient)), (second, (other_loss, other)) in itertools.combinations(found.items(), 2):
        assert loss != pytest.approx(other_loss, rel=1e-5), f"{first} and {second}"
        assert relative_gap(gradient, other) > 1e-3, f"{first} and {second}"


def another(hint: Any, value: Any) -> list[Any]:
    """Other values that a setting may have."""
    if isinstance(value, bool):
        return [not value]
    if get_origin(hint) is Literal:
        return [one for one in get_args(hint) if one != value]
    return [0.45 if value == 0 else value * 1.7]


SETTINGS = [
    (cls, field.name, value)
    for cls in get_args(PairLoss)
    if cls is not SumLoss
    for field in dataclasses.fields(cls)
    for value in another(get_type_hints(cls)[field.name], getattr(cls(), field.name))
]


@pytest.mark.parametrize(("cls", "name", "value"), SETTINGS)
def test_each_setting_of_each_loss_changes_the_loss(cls: Any, name: str, value: Any) -> None:
    policy, reference = policy_and_reference()
    rest = {"divergence": "alpha"} if name == "alpha" else {}
    before, gradient = one_step(policy, PAIRS, reference, cls(**rest))
    after, other = one_step(policy, PAIRS, reference, cls(**rest | {name: value}))
    assert after != pytest.approx(before, rel=1e-6)
    assert relative_gap(gradient, other) > 1e-4
    # And so does a part of a sum.
    part = next((field.name for field in dataclasses.fields(SumLoss) if get_type_hints(SumLoss)[field.name] is cls), "")
    settings = {part: cls(**rest | {name: value})}
    assert one_step(policy, PAIRS, reference, SumLoss(terms=part, **settings))[0] == pytest.approx(after, rel=1e-6)


def test_a_sum_adds_up_its_weighted_losses() -> None:
    policy, reference = policy_and_reference()
    parts = {"aot": 0.5, "ipo": 2.0, "simpo": 1.0, "sft": 0.1}
    loss = SumLoss(terms=" + ".join(f"{weight}*{name}" for name, weight in parts.items()))
    found, gradient = one_step(policy, PAIRS, reference, loss, micro=3)
    alone = {name: one_step(policy, PAIRS, reference, part) for name, (_, part) in zip(parts, loss.parts, strict=True)}
    assert found == pytest.approx(sum(weight * alone[name][0] for name, weight in parts.items()), rel=1e-5)
    expected = {
        name: torch.stack([weight * alone[part][1][name] for part, weight in parts.items()]).sum(0) for name in gradient
    }
    assert relative_gap(gradient, expected) < 2e-6
    nll = [-naive_logprob(policy.model, tree.prompt, tree.responses[0]) / len(tree.responses[0]) for tree in PAIRS]
    assert alone["sft"][0] == pytest.approx(float(torch.stack(nll).mean().detach()), rel=1e-5)


def test_what_a_loss_knows() -> None:
    for method, settings in METHODS.items():
        assert knows_reference(settings.loss) is (method not in REFERENCE_FREE), method
        assert ranks_batch(settings.loss) is (method in RANKED), method
    assert not knows_reference(SumLoss(terms="sft + simpo"))
    assert knows_reference(SumLoss(terms="sft + ipo"))
    assert ranks_batch(SumLoss(terms="sft + aot"))


def test_the_implicit_reward_of_a_sum_is_that_of_its_heaviest_loss() -> None:
    scored = ScoredPairs(
        logprob=torch.tensor([[-3.0, -4.0]]), tokens=torch.tensor([[2, 4]]), reference=torch.tensor([[-3.5, -3.0]])
    )
    heavy = SumLoss(terms="0.5*dpo + 2*simpo")
    assert implicit_rewards(heavy, scored).tolist() == [[2 * -1.5, 2 * -1.0]]
    for terms in ("dpo + 0.1*sft", "dpo + sft", "2*sft + dpo"):  # cross-entropy compares nothing
        assert implicit_rewards(SumLoss(terms=terms), scored).tolist() == [pytest.approx([0.05, -0.1])]
    assert implicit_rewards(SumLoss(terms="sft"), scored).tolist() == [[-1.5, -1.0]]


def small(method: str, **more: Any) -> Preference:
    settings = {"epochs": 2, "batch": Batch(size=4, micro=3), "evaluations": 1} | more
    return dataclasses.replace(METHODS[method], **settings)


@pytest.mark.parametrize("layout", ["flat", "tree"])
@pytest.mark.parametrize("method", METHODS)
def test_the_reference_is_read_once_or_not_at_all(
    method: str, layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, reference = letters_policy(), letters_policy(seed=1)
    monkeypatch.setattr(scoring, "TREE_SHARE", {"tree": 100.0, "flat": 0.0}[layout])
    run = run_folder(tmp_path / "run")
    once = readings(PAIRS)[layout == "tree"].cells
    with cells_through(policy.model) as cells, cells_through(reference.model) as read:
        cost = train_preference(policy, PAIRS, small(method), run, seed=0, reference=reference.model)
    assert cost.trained_tokens == cells[True]
    if layout == "tree":  # in which padding plays no part
        assert cost.trained_tokens == 2 * once
    start = run.path / "start.json"
    if method in REFERENCE_FREE:
        assert (read.total(), cost.scored_tokens) == (0, 0)
        assert not start.exists()
    else:
        assert read == {False: once}
        # Before the first step the policy is looked at, at no charge; AOT asks for the margins of each step's pairs.
        assert cost.scored_tokens == once + (cells[False] - once if method in RANKED else 0)
        assert not read_json(start)["starts_at_reference"]
    assert cost.flops > 0


def test_start_json_says_how_far_the_policy_is_from_the_reference(tmp_path: Path) -> None:
    policy, reference = letters_policy(spread=4.0), letters_policy(seed=1, spread=4.0)
    ratios = [
        float((naive_logprob(policy.model, *row) - naive_logprob(reference.model, *row)).detach())
        for tree in PAIRS
        for row in ((tree.prompt, response) for response in tree.responses)
    ]
    run = run_folder(tmp_path / "chained")
    train_preference(policy, PAIRS, small("dpo"), run, seed=0, reference=reference.model)
    assert read_json(run.path / "start.json") == {
        "mean_logratio_nats": pytest.approx(sum(ratios) / 16, rel=1e-4),
        "largest_logratio_nats": pytest.approx(max(map(abs, ratios)), rel=1e-4),
        "starts_at_reference": False,
    }
    run = run_folder(tmp_path / "own")
    train_preference(letters_policy(), PAIRS, small("dpo"), run, seed=0)
    start = read_json(run.path / "start.json")
    assert start["starts_at_reference"]
    assert start["largest_logratio_nats"] < 1e-5


def test_a_policy_with_dropout_is_refused_before_anything_is_learned(tmp_path: Path) -> None:
    policy = letters_policy(spread=4.0)
    policy.model.transformer.drop.p = 0.3
    policy.model.train()
    before = copy_of(policy.model).state_dict()
    with pytest.raises(NumericError, match=r"differ by .* nats on a response before the first step.* dropout on"):
        train_preference(policy, PAIRS, small("dpo"), run_folder(tmp_path / "run"), seed=0)
    assert all(torch.equal(value, before[name]) for name, value in policy.model.state_dict().items())
    assert not (tmp_path / "run" / "start.json").exists()


@pytest.mark.parametrize("method", ["aot", "simpo", "sum"])
def test_a_run_that_is_stopped_ends_as_one_that_is_not(method: str, tmp_path: Path) -> None:
    """Bit for bit, on steps that straddle epochs; twice stopped."""
    settings = small(method, epochs=5, evaluations=5, optimizer=Optimizer(learning_rate=0.01, warmup_steps=3))

    def trained(folder: str, stops: Sequence[int]) -> tuple[dict[str, Tensor], list[Any]]:
        policy = letters_policy(spread=4.0)

        def evaluate(step: int) -> None:
            if step in stops:
                os.kill(os.getpid(), signal.SIGTERM)

        run = run_folder(tmp_path / folder)
        train_preference(policy, PAIRS[:7], settings, run, seed=0, log_every=1, evaluate=evaluate)
        return policy.model.state_dict(), read_lines(run.metrics)

    whole, lines = trained("whole", [])
    for step in (2, 5):
        with pytest.raises(Interrupted, match=f"after step {step}"):
            trained("stopped", [step])
    again, other_lines = trained("stopped", [])
    assert len(lines) == 9
    assert other_lines == lines
    assert all(torch.equal(value, whole[name]) for name, value in again.items())


@pytest.mark.parametrize("reference", ["the policy itself", "a copy"])
def test_the_first_loss_is_ln_2_and_all_implicit_rewards_are_0(reference: str, tmp_path: Path) -> None:
    """With reference log-probabilities from batches of another size and padding than training's."""
    policy = tiny_policy()
    copied = copy_of(policy.model) if reference == "a copy" else None
    settings = DPO(batch=Batch(size=8, micro=3), evaluations=1, optimizer=Optimizer(learning_rate=1e-3))
    run = run_folder(tmp_path / "run")
    train_preference(policy, encoded(24), settings, run, seed=0, reference=copied, log_every=1)
    first, second, _ = read_lines(run.metrics)
    assert set(first) == KEYS
    assert first["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert [first[name] for name in ("margin", "chosen_reward", "rejected_reward")] == pytest.approx([0] * 3, abs=1e-6)
    assert abs(second["margin"]) > 1e-5  # the policy moved, the reference did not


@pytest.mark.parametrize(("frozen", "disk_gib"), [(0, 4.0), (1, 0.0), (2, 0.0), (1, 4.0), (2, 4.0)])
def test_operations_are_those_that_torch_counts_and_fewer_with_frozen_blocks(
    frozen: int, disk_gib: float, tmp_path: Path
) -> None:
    """A reference pass and a step; all but attention, and the look at the first pairs before the step, in which frozen
    blocks whose states are kept don't run."""
    policy, given = tiny_policy(width=64), encoded(8)
    pair_logprobs(policy.model, given)  # what the model can do is found out once
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as look:
        pair_logprobs(policy.model, given)
    read = reading_of(policy.model, given)
    kept = flops(policy.model, read) - flops(policy.model, read, stored=frozen) if disk_gib else 0.0
    freeze(policy.model, frozen)
    split_of(policy.model.base_model, frozen or 1, trained=frozen > 0)  # tried once
    settings = DPO(
        epochs=1, batch=Batch(size=8, micro=8), evaluations=1, freeze_blocks=frozen, trunk=Trunk(disk_gib=disk_gib)
    )
    with FlopCounterMode(display=False, custom_mapping=IN_PLACE) as counter:
        cost = train_preference(policy, given, settings, run_folder(tmp_path / "run"), seed=0)
    assert cost.flops == pytest.approx(counter.get_total_flops() - look.get_total_flops() + kept, rel=0.04)


def test_training_prefers_the_chosen_and_says_so(tmp_path: Path) -> None:
    policy, given = tiny_policy(), encoded(32)
    before = pair_logprobs(policy.model, given)
    settings = DPO(
        epochs=6, batch=Batch(size=16), evaluations=1, optimizer=Optimizer(learning_rate=3e-3, warmup_steps=0)
    )
    run = run_folder(tmp_path / "run")
    cost = train_preference(policy, given, settings, run, seed=0, log_every=1)
    last = read_lines(run.metrics)[-1]
    assert last["loss"] < 0.5
    assert last["accuracy"] > 0.9
    assert last["margin"] == pytest.approx(last["chosen_reward"] - last["rejected_reward"], abs=1e-5)
    # The figures on pairs at hand are those of the formula.
    ratio = pair_logprobs(policy.model, given) - before
    figures = preference_figures(policy, given, before, settings.loss)
    assert figures.loss == pytest.approx(dpo(ratio[:, 0], ratio[:, 1], beta=0.1).tolist())
    assert figures.margin == pytest.approx((0.1 * (ratio[:, 0] - ratio[:, 1])).tolist())
    tokens = readings(given)[1].cells  # prompts once, nothing padded
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
        batch=Batch(size=len(rows), micro=len(rows)),
        evaluations=1,
        loss=DPOLoss(beta=beta),
        optimizer=Optimizer(learning_rate=0.02, warmup_steps=0, decay="linear"),
    )
    train_preference(policy, rows, settings, run_folder(tmp_path / "run"), seed=0)
    optimum = reference * torch.tensor(odds, dtype=torch.float64) ** (1 / beta)
    optimum /= optimum.sum()
    found = next_token(policy, prompt)
    assert float((reference - optimum).abs().sum()) > 0.2
    torch.testing.assert_close(found, optimum, rtol=0.01, atol=0)
