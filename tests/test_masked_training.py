"""Training steps and evaluation under a token mask, against their formulas on masked logits in plain loops."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import gradients
import test_policy_gradient as group_methods
import test_ppo as actor_critic
from enumerable import END_ID, ShareOf, letters_policy, letters_prompts, run_folder
from finite_differences import central_differences
from gradients import gradients_of, plain_gradient, plain_logprobs, relative_gap
from preflab.config.online import RolloutBatch
from preflab.config.online_preference import OnlineDPO
from preflab.config.pair_losses import DPOLoss
from preflab.config.preference import DPO
from preflab.config.training import Batch, Optimizer
from preflab.data.encode import Encoder, Tree
from preflab.errors import ConfigError, NumericError
from preflab.evaluation.policy import Judge
from preflab.models.load import copy_of
from preflab.models.reference import ReferenceCache, reference_logprobs
from preflab.rewards.protocol import Answer
from preflab.rollouts.mask import grammar_of
from preflab.rollouts.sampler import sample
from preflab.runs import read_lines
from preflab.training.cost import Cost
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import pair_step, train_preference
from preflab.training.rollout import roll_out
from test_watch import NoLetterTwice, masked_distribution

PAIRS = [
    Tree("p:0", (2,), ((3, 4, END_ID), (4, 5, 2, END_ID))),
    Tree("p:1", (3, 5), ((2, 3, 2, 4), (2, 3, END_ID))),
    Tree("p:2", (4,), ((5, 4, END_ID), (3, 5, END_ID))),
]


@pytest.fixture
def masked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The plain formulas of `gradients.py`, on logits of which the mask has taken off 300 where it forbids a token: as
    good as −∞ in float64, and a number."""
    plain = gradients.plain_logits

    def logits(model: Any, answer: Answer) -> Tensor:
        mask, found = NoLetterTwice(), plain(model, answer)
        state = mask.start(answer.prompt_ids)
        rows = []
        for row, token in zip(found, answer.response_ids, strict=True):
            rows.append(row - 300.0 * ~mask.row(state))
            state = (token, state[1] + 1)
        return torch.stack(rows)

    monkeypatch.setattr(gradients, "plain_logits", logits)


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize("name", ["dr-grpo", "k2", "full", "half warm", "in the reward"])
def test_a_step_of_a_group_method_is_the_formula_on_masked_logits(name: str, tmp_path: Path) -> None:
    settings, reward = group_methods.SETTINGS[name], group_methods.Recorder()
    reference, policy = letters_policy(seed=1, spread=4.0).model, letters_policy(spread=4.0)
    seen = gradients_of(policy.model)
    run = run_folder(tmp_path / "run")
    train_policy_gradient(
        policy, reference, reward, letters_prompts(16), settings, run,
        max_new_tokens=group_methods.LONGEST, seed=0, starts_at_reference=False, mask=NoLetterTwice(),
    )  # fmt: skip
    start = letters_policy(spread=4.0).model
    advantages = group_methods.plain_advantages(start, reference, reward, settings)
    of_tokens = [[a] * len(answer.response_ids) for a, answer in zip(advantages, reward.answers, strict=True)]
    expected = plain_gradient(start, reference, reward.answers, of_tokens, settings, longest=group_methods.LONGEST)
    assert relative_gap(seen, expected) < 1e-5
    (line,) = read_lines(run.metrics)
    assert line["sampler_gap_nats"] < 1e-4


@pytest.mark.usefixtures("masked")
@pytest.mark.parametrize("name", ["in the reward", "k3", "full", "shared"])
def test_a_step_of_ppo_is_the_formula_on_masked_logits(name: str, tmp_path: Path) -> None:
    settings, reward = actor_critic.LOSSES[name], actor_critic.RecordedShare()
    value = None if settings.value_trunk == "shared" else actor_critic.value_model(tmp_path)
    if value is not None:
        with torch.no_grad():
            value.model.score.weight.zero_()
    reference, policy = letters_policy(seed=1, spread=4.0).model, letters_policy(spread=4.0)
    seen = gradients_of(policy.model)
    train_ppo(
        policy, value, reference, reward, letters_prompts(16), settings, run_folder(tmp_path / "run"),
        max_new_tokens=4, seed=0, starts_at_reference=False, mask=NoLetterTwice(),
    )  # fmt: skip
    start = letters_policy(spread=4.0).model
    advantages = []
    for answer, paid in zip(reward.answers, reward.values(reward.answers), strict=True):
        with torch.no_grad():
            mine, other = (plain_logprobs(model, answer, settings.temperature) for model in (start, reference))
        beta = settings.kl_coefficient if settings.kl_penalty == "reward" else 0.0
        rewards = (-beta * (mine - other)).tolist()
        rewards[-1] += paid - (0.0 if answer.response_ids[-1] == END_ID else settings.missing_end_penalty)
        advantages.append([sum(rewards[t:]) for t in range(len(rewards))])
    expected = plain_gradient(start, reference, reward.answers, advantages, settings, longest=4)
    assert relative_gap(seen, expected) < 1e-5


def answer_of(prompt: tuple[int, ...], response: tuple[int, ...]) -> Answer:
    return Answer("", "", prompt, response, response[-1] == END_ID, {})


@pytest.mark.usefixtures("masked")
def test_a_step_of_dpo_is_the_finite_difference_of_its_formula() -> None:
    """β = 0.3, in float64, along the last norm's bias and a row of the embeddings."""
    model, reference = (letters_policy(seed=seed, spread=4.0).model.double() for seed in (0, 1))
    policy = dataclasses.replace(letters_policy(), model=model)

    def logprob(each: Any, tree: Tree, place: int) -> Tensor:
        return plain_logprobs(each, answer_of(tree.prompt, tree.responses[place]), 1.0).sum()

    def loss() -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for tree in PAIRS:
            chosen, rejected = (logprob(model, tree, i) - logprob(reference, tree, i) for i in (0, 1))
            total = total - torch.nn.functional.logsigmoid(0.3 * (chosen - rejected)) / len(PAIRS)
        return total

    with torch.no_grad():
        of_reference = torch.stack([torch.stack([logprob(reference, tree, i) for i in (0, 1)]) for tree in PAIRS])
    step = pair_step(policy, PAIRS, of_reference, DPOLoss(beta=0.3), Cost(), grammar=grammar_of(NoLetterTwice()))
    found, _ = step(range(len(PAIRS)))
    assert found.item() == pytest.approx(loss().item(), abs=1e-9)
    found.backward()
    for parameter, row in ((model.transformer.ln_f.bias, slice(None)), (model.transformer.wte.weight, 3)):
        at = parameter.detach()[row].clone()

        def moved(point: Tensor, parameter: Any = parameter, row: Any = row, at: Tensor = at) -> Tensor:
            parameter.data[row] = point
            value = loss()
            parameter.data[row] = at
            return value

        torch.testing.assert_close(parameter.grad[row], central_differences(moved, at), atol=1e-7, rtol=1e-5)


def test_dpo_trains_under_a_mask_and_refuses_pairs_that_it_forbids(tmp_path: Path) -> None:
    settings = DPO(epochs=20, batch=Batch(size=3, micro=2), optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0))
    cache = ReferenceCache(tmp_path / "cache")
    policy = letters_policy(spread=4.0)
    run = run_folder(tmp_path / "run")
    train_preference(policy, PAIRS, settings, run, seed=0, cache=cache, mask=NoLetterTwice(), log_every=1)
    lines = read_lines(run.metrics)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert lines[-1]["loss"] < 0.3
    assert not list((tmp_path / "cache").rglob("*"))  # nothing says under which mask they were
    bad = [*PAIRS, Tree("p:3", (2,), ((2, 3, END_ID), (3, 4, END_ID)))]
    with pytest.raises(ConfigError, match="the token mask forbids token 2 at place 1 of response"):
        train_preference(letters_policy(), bad, settings, run_folder(tmp_path / "2"), seed=0, mask=NoLetterTwice())


def test_the_reference_under_a_mask_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    model, cache = letters_policy().model, ReferenceCache(tmp_path)
    free = reference_logprobs(model, PAIRS, cache, title="a").logprobs
    grammar = grammar_of(NoLetterTwice())
    bounded = reference_logprobs(model, PAIRS, cache, title="b", grammar=grammar).logprobs
    assert (bounded > free + 0.1).all()
    assert torch.equal(reference_logprobs(model, PAIRS, cache, title="c").logprobs, free)
    assert torch.equal(reference_logprobs(model, PAIRS, None, title="d", grammar=grammar).logprobs, bounded)


def test_online_dpo_keeps_to_the_mask(tmp_path: Path) -> None:
    policy = letters_policy(spread=4.0)
    settings = OnlineDPO(updates=2, batch=RolloutBatch(size=8, mini=8, micro=8), evaluations=1)
    seen: list[Answer] = []

    class Reward:
        name = "share of a"

        def __call__(self, answers: list[Answer]) -> list[float]:
            seen.extend(answers)
            return ShareOf("a")(answers)

    run = run_folder(tmp_path / "run")
    train_online_dpo(
        policy, copy_of(policy.model), Reward(), letters_prompts(8), settings, run,
        max_new_tokens=5, seed=0, mask=NoLetterTwice(),
    )  # fmt: skip
    assert seen
    for answer in seen:
        letters = (answer.prompt_ids[-1], *answer.response_ids)
        assert all(a != b for a, b in pairwise(letters))
    lines = read_lines(run.metrics)
    assert lines[0]["kl_nats"] == pytest.approx(0, abs=1e-5)
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)


@pytest.mark.parametrize("asserted", [True, False])
def test_a_rollout_under_a_mask_has_the_figures_of_masked_distributions(asserted: bool) -> None:
    """Whether they are read off the sampler's states or off a pass; KL and entropy against the enumerated language."""
    policy, other, prompt, mask = letters_policy(), letters_policy(seed=1), (2, 3), NoLetterTwice()
    responses = sample(
        policy.model, [prompt], keys=["x"], end_id=END_ID, max_new_tokens=3, seed=0, samples=1500, mask=mask,
        states=asserted,
    )  # fmt: skip
    given: dict[str, Any] = {"temperature": 1.0, "batch_size": 512, "asserted": asserted}
    rollout = roll_out(policy, other.model, responses, [0.0] * 1500, **given, grammar=grammar_of(mask))
    ours, theirs = (masked_distribution(each, prompt, 3) for each in (policy, other))
    for table, logprobs in ((ours, rollout.logprobs), (theirs, rollout.reference_logprobs)):
        exact = torch.tensor([math.log(table[response.tokens]) for response in responses])
        torch.testing.assert_close(logprobs.sum(1), exact, atol=1e-4, rtol=1e-4)
    # The estimate is the mean over responses of a sum of exact terms.
    expected = math.fsum(p * math.log(p / theirs[y]) for y, p in ours.items())
    found = rollout.measured.kl.sum(1)
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 1500**0.5)
    expected = -math.fsum(p * math.log(p) for p in ours.values())
    found = rollout.measured.entropy.sum(1)
    assert float(found.mean()) == pytest.approx(expected, abs=4 * float(found.std()) / 1500**0.5)
    if not asserted:
        with pytest.raises(NumericError, match="sampler and scorer differ"):
            roll_out(policy, other.model, responses, [0.0] * 1500, **given)


def test_evaluation_under_a_mask_samples_and_measures_under_it() -> None:
    policy, other, mask = letters_policy(), letters_policy(seed=1), NoLetterTwice()
    held_out = [Tree("h", (2,), ((3, 4, END_ID),))]
    judge = Judge(
        reference=other.model, encoder=Encoder(policy.tokenizer, prompt_tokens=8, response_tokens=8), reward=None,
        proxy=None, held_out=held_out, max_new_tokens=3, seed=0, mask=mask,
    )  # fmt: skip
    prompts = [dataclasses.replace(prompt, ids=(2, 3), key=f"k{i}") for i, prompt in enumerate(letters_prompts(1500))]
    point, _ = judge.point(policy, prompts, step=0, split="test", baseline=None)
    found: Any = point["rows"]
    kls = torch.tensor(found["kl_nats"])
    ours, theirs = (masked_distribution(each, (2, 3), 3) for each in (policy, other))
    expected = math.fsum(p * math.log(p / theirs[y]) for y, p in ours.items())
    assert float(kls.mean()) == pytest.approx(expected, abs=4 * float(kls.std()) / 1500**0.5)
    likely: Any = point["held_out"]
    exact = masked_distribution(policy, (2,), 3)[(3, 4, END_ID)]
    assert likely["nll_nats"] == pytest.approx([-math.log(exact)], abs=1e-5)
    free = dataclasses.replace(judge, mask=None).likelihood(policy)
    assert free["nll_nats"][0] > likely["nll_nats"][0] + 0.1
