"""A budget of cells: kept by what the models really compute, and no figure changed by it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from enumerable import ShareOf, letters_policy, letters_prompts, run_folder, value_model
from gradients import gradients_of, relative_gap
from preflab.config.load import check, flatten, to_values
from preflab.config.online import GRPO, PPO, RolloutBatch
from preflab.config.online_preference import OnlineDPO, PairBatch, Ranking
from preflab.config.preference import AOT, DPO, KTO
from preflab.config.training import SFT, Batch, Optimizer, Reward
from preflab.data.budget import Extent, extent
from preflab.data.encode import Tree
from preflab.data.pack import pack
from preflab.models import scoring
from preflab.models.scoring import response_logprobs, response_scores
from preflab.rollouts.sampler import sample
from preflab.runs import JSON, read_lines
from preflab.training.micro_batches import MicroBatches
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import train_preference
from preflab.training.reward import train_reward
from preflab.training.rollout import roll_out
from preflab.training.sft import train_sft
from preflab.training.unpaired import judged_pairs, train_unpaired
from ragged import PAIRS
from test_layouts import drawn, model_of
from untimed import untimed

SHAPES = [(7, (1, 9)), (1, (5, 2)), (12, (22, 6)), (3, (4, 4)), (3, (1, 1)), (5, (2,)), (5, (9,)), (1, (1,))]
MIXED = drawn(seed=4, shapes=SHAPES)
METHODS = ("sft", "reward", "dpo", "aot", "kto", "ppo", "grpo", "online-dpo")
SINGLES = [dataclasses.replace(pair, responses=pair.responses[:1]) for pair in PAIRS]


@contextmanager
def counted(model: Any, *, learning: bool = False) -> Iterator[list[int]]:
    """Cells of each forward pass of the model's body; `learning`: of those with gradients alone."""
    seen: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], states: Tensor) -> None:
        if torch.is_grad_enabled() or not learning:
            seen.append(states[..., 0].numel())

    hook = model.get_input_embeddings().register_forward_hook(count)
    try:
        yield seen
    finally:
        hook.remove()


def whole(trees: list[Tree]) -> Extent:
    """The extent of trees whose prompts differ."""
    total = Extent()
    for tree in trees:
        total = total.plus(extent(tree))
    return total


@pytest.mark.parametrize("budget", [30, 70, 1000])
@pytest.mark.parametrize("share", [0.9, 0.0], ids=["cheaper", "flat"])
@pytest.mark.parametrize("name", ["gpt2", "qwen2", "mistral", "mamba"])
def test_the_cells_of_the_plan_are_those_that_scoring_computes(
    name: str, share: float, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a window of the attention, or no attention at all, sends long sequences to the flat layout."""
    monkeypatch.setattr(scoring, "TREE_SHARE", share)
    model, scorer = model_of(name), None if name == "mamba" else model_of(name, scores=True)
    plan = MicroBatches(1, budget, (model,))
    parts = [[MIXED[i] for i in part] for part in plan.of(MIXED)]
    assert len(parts) == 1 if budget == 1000 else len(parts) > 1
    for part in parts:
        expected = plan.cells(whole(part))
        with counted(model) as seen, torch.no_grad():
            response_logprobs(model, pack(part))
        assert seen[-1] == expected  # a window shows by a first pass that is given up
        assert expected <= budget or len(part) == 1
        if scorer is not None:
            with counted(scorer) as seen, torch.no_grad():
                response_scores(scorer, pack(part))
            assert seen[-1] == MicroBatches(1, budget, (scorer,), ends=True).cells(whole(part))


def test_without_a_budget_examples_are_counted() -> None:
    assert MicroBatches(3, None, ()).of(MIXED) == [[0, 1, 2], [3, 4, 5], [6, 7]]


def trained(
    method: str, folder: Path, *, tokens: int | None = None, micro: int = 8, learn: bool = False
) -> tuple[dict[str, Tensor], list[JSON], list[int]]:
    """One step in float64 on eight ragged examples: gradients of all models, the log, cells of each pass with
    gradients."""
    policy, value, other = letters_policy(spread=4.0), value_model(folder), letters_policy(seed=1, spread=4.0)
    for one in (policy, value, other):
        one.model.double()
    learner = value if method == "reward" else policy
    gradients, of_value = gradients_of(learner.model), gradients_of(value.model)
    still = Optimizer(learning_rate=0.0, warmup_steps=0)
    shared: dict[str, Any] = {"evaluations": 1, "optimizer": still}
    given = shared | {"batch": Batch(size=8, micro=micro, tokens=tokens)}
    sampled = shared | {"updates": 1, "epochs": 1, "batch": RolloutBatch(size=8, mini=8, micro=micro, tokens=tokens)}
    run = run_folder(folder / "run")
    online: dict[str, Any] = {"max_new_tokens": 5, "seed": 0, "starts_at_reference": False}
    rollouts: tuple[Any, ...] = (other.model, ShareOf("a"), letters_prompts(8))
    with counted(learner.model, learning=True) as seen:
        match method:
            case "sft":
                train_sft(policy, SINGLES, SFT(**given), run, seed=0)
            case "reward":
                train_reward(value, PAIRS, Reward(**given), run, seed=0)
            case "dpo":
                train_preference(policy, PAIRS, DPO(**given), run, seed=0, reference=other.model)
            case "aot":
                train_preference(policy, PAIRS, AOT(**given), run, seed=0, reference=other.model)
            case "kto":
                train_unpaired(policy, judged_pairs(PAIRS)[:8], KTO(**given), run, seed=0, reference=other.model)
            case "ppo":
                train_ppo(policy, value, *rollouts, PPO(value_optimizer=still, **sampled), run, **online)
            case "grpo":
                settings = GRPO(responses=2, kl_penalty="full", **sampled)
                train_policy_gradient(policy, *rollouts, settings, run, **online)
            case "online-dpo":
                pairs = shared | {"updates": 1, "batch": PairBatch(size=8, mini=8, micro=micro, tokens=tokens)}
                settings_of_pairs = OnlineDPO(ranking=Ranking(temperatures=(0.5, 1.5), smallest_gap=0.0), **pairs)
                train_online_dpo(policy, *rollouts, settings_of_pairs, run, **online)
    return gradients | {f"value.{name}": g for name, g in of_value.items()}, read_lines(run.metrics), seen


@pytest.mark.parametrize("share", [0.9, 0.0], ids=["cheaper", "flat"])
@pytest.mark.parametrize("method", METHODS)
def test_a_budget_changes_neither_loss_nor_gradient(
    method: str, share: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And is kept: no pass with gradients computes more cells."""
    monkeypatch.setattr(scoring, "TREE_SHARE", share)
    gradients, lines, (at_once, *others) = trained(method, tmp_path / "whole")
    assert not others
    for tokens in (at_once - 1, 26):
        cut, cut_lines, seen = trained(method, tmp_path / f"{tokens}", tokens=tokens)
        assert len(seen) > 1
        assert max(seen) <= tokens
        assert relative_gap(cut, gradients) < 1e-12
        assert untimed(cut_lines) == [pytest.approx(line, rel=1e-6, abs=1e-9) for line in untimed(lines)]


@pytest.mark.parametrize("method", ["dpo", "ppo", "online-dpo"])
def test_examples_larger_than_the_budget_are_alone_and_counted(
    method: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    gradients, _, _ = trained(method, tmp_path / "whole")
    capfd.readouterr()
    cut, _, seen = trained(method, tmp_path / "cut", tokens=1)
    said = " ".join(capfd.readouterr().err.split())
    assert len(seen) == 8
    assert relative_gap(cut, gradients) < 1e-12
    # Of prompts of 1 to 3 tokens; in the tree layout without last tokens, or padded where that is no less.
    message = {
        "dpo": f"warning: 8 of 8 examples take more than batch.tokens = 1 cells; each of these is in memory alone, the "
        f"largest with {max(seen)}",
        "ppo": "8 of 8 responses, if as long as may be, take more than batch.tokens = 1 cells; each of these is in "
        "memory alone, the largest with 7",
        "online-dpo": "8 of 8 pairs, if as long as may be, take more than batch.tokens = 1 cells; each of these is in "
        "memory alone, the largest with 11",
    }[method]
    assert said.count("batch.tokens") == 1
    assert message in said


def test_a_rollout_is_scored_within_the_budget_and_in_its_order() -> None:
    policy, reference = letters_policy(spread=4.0), letters_policy(seed=1, spread=4.0).model
    prompts = letters_prompts(4)
    responses = sample(
        policy.model, [prompt.ids for prompt in prompts], keys=[prompt.key for prompt in prompts], end_id=1,
        max_new_tokens=9, seed=0, samples=3,
    )  # fmt: skip
    rows = list(range(12))
    at_once = roll_out(
        policy, reference, responses, [float(i) for i in rows], temperature=0.7, sampled_at=[1.0] * 12, batch_size=12
    )
    with counted(policy.model) as seen:
        cut = roll_out(
            policy, reference, responses, [float(i) for i in rows], temperature=0.7, sampled_at=[1.0] * 12,
            batch_size=12, tokens=20,
        )  # fmt: skip
    assert len(seen) > 3
    assert max(seen) <= 20
    assert cut.distributions is not None
    assert at_once.distributions is not None
    every = [vars(part) | vars(part.distributions) for part in (cut, at_once)]
    for name in ("scores", "logprobs", "under_reference", "kl", "entropy"):
        torch.testing.assert_close(every[0][name], every[1][name], atol=1e-5, rtol=0)
    assert len(at_once.logprobs.sum(1).unique()) > 6


@pytest.mark.parametrize("settings", [DPO(), GRPO(), OnlineDPO()], ids=["dpo", "grpo", "online-dpo"])
def test_where_a_budget_is_set_no_number_of_examples_is_written(settings: Any) -> None:
    budget = dataclasses.replace(settings, batch=dataclasses.replace(settings.batch, tokens=100))
    without, written = (flatten(to_values(one)) for one in (settings, budget))
    assert written == {name: value for name, value in without.items() if name != "batch.micro"} | {"batch.tokens": 100}
    assert check(budget) == budget
