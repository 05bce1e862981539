"""What a policy is judged by: exact where everything can be enumerated, and rows of the documented shape."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from enumerable import (
    END_ID,
    LETTERS,
    ShareOf,
    every_response,
    exact_logprobs,
    letters_policy,
    letters_prompts,
    run_folder,
    total,
)
from preflab.data.encode import Encoder, Tree
from preflab.evaluation.policy import Judge
from preflab.evaluation.rows import add_point, best_step, finish, read_points
from preflab.models.load import Policy, copy_of
from preflab.rollouts.response import Response
from preflab.runs import read_json, read_lines
from preflab.training.rollout import PromptIds
from tiny import tiny_policy

PROMPT = (2, 3)
PROMPTS = [PromptIds(p.key, p.text, p.ids) for p in letters_prompts(12)]
HELD_OUT = [Tree(f"h:{i}", (2,), ((3, 4, 5, 1)[i:],)) for i in range(4)]


def judge(reference: Policy, **changes: Any) -> Judge:
    given = Judge(
        reference=reference.model,
        encoder=Encoder(reference.tokenizer, prompt_tokens=8, response_tokens=8),
        reward=ShareOf("a"),
        proxy=ShareOf("b"),
        held_out=HELD_OUT,
        max_new_tokens=3,
        seed=0,
    )
    return dataclasses.replace(given, **changes)


def start(seed: int = 0) -> Policy:
    return letters_policy(seed=seed, spread=12.0)


def trained(seed: int = 5, push: float = 0.5) -> Policy:
    """A policy at some distance from the one of seed 0."""
    policy, other = start(), start(seed)
    with torch.no_grad():
        for mine, theirs in zip(policy.model.parameters(), other.model.parameters(), strict=True):
            mine.lerp_(theirs, push)
    return policy


def test_the_reference_has_kl_0_and_wins_half_of_the_time() -> None:
    reference = start()
    judged = judge(Policy(copy_of(reference.model), reference.tokenizer))
    point, _ = judged.point(reference, PROMPTS, step=0, split="validation", baseline=None)
    assert point["rows"]["kl_nats"] == pytest.approx([0.0] * 12, abs=1e-4)
    assert point["rows"]["win"] == [0.5] * 12
    again, _ = judged.point(reference, PROMPTS, step=0, split="validation", baseline=point["rows"]["reward"])
    assert again == point


def test_the_kl_is_that_of_all_sequences() -> None:
    """Σ_y π(y)·Σ_t KL_t = Σ_y π(y)·log(π(y)/π_ref(y)), over the 156 responses of at most three tokens."""
    policy, reference = trained(), start()
    responses = every_response(3)
    assert len(responses) == 156
    of_policy, of_reference = (exact_logprobs(p, PROMPT, responses) for p in (policy, reference))
    assert total(of_policy) == pytest.approx(1, abs=1e-5)
    exact = float((of_policy.exp() * (of_policy - of_reference)).sum())
    assert exact > 0.1
    rows = [Response("x", PROMPT, tokens, (), tokens[-1] == END_ID) for tokens in responses]
    with torch.no_grad():
        for batch_size in (7, 64):
            per_response = torch.tensor(judge(reference, batch_size=batch_size).sequence_kl(policy, rows)).double()
            assert float((of_policy.exp() * per_response).sum()) == pytest.approx(exact, rel=1e-4)
    assert float(per_response.min()) >= 0


def test_the_sampled_kl_is_unbiased() -> None:
    """Within four standard errors of the enumerated one; with the two models exchanged it would not be."""
    policy, reference = start(9), start()
    of_policy, of_reference = (exact_logprobs(p, PROMPT, every_response(3)) for p in (policy, reference))
    exact = float((of_policy.exp() * (of_policy - of_reference)).sum())
    prompts = [PromptIds(f"x:{i}", "ab", PROMPT) for i in range(2000)]
    point, _ = judge(reference).point(policy, prompts, step=1, split="test", baseline=None)
    kl = torch.tensor(point["rows"]["kl_nats"], dtype=torch.float64)
    error = float(kl.std()) / 2000**0.5
    assert abs(float(kl.mean()) - exact) < 4 * error
    turned = float((of_reference.exp() * (of_reference - of_policy)).sum())
    assert abs(turned - exact) > 8 * error


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_rows_have_the_documented_shape(batch_size: int) -> None:
    reference, policy = start(), trained()
    judged = judge(reference, batch_size=batch_size)
    baseline = [0.0, 0.5, 1.0] * 4
    point, samples = judged.point(policy, PROMPTS, step=7, split="test", baseline=baseline)
    rows = point["rows"]
    assert set(point) == {"step", "split", "rows", "held_out"}
    assert (point["step"], point["split"]) == (7, "test")
    names = {"prompt", "reward", "proxy_reward", "kl_nats", "response_tokens", "ended", "win"}
    assert {name: len(column) for name, column in rows.items()} == dict.fromkeys(names, 12)
    assert rows["prompt"] == [prompt.key for prompt in PROMPTS]
    assert set(rows["ended"]) <= {0, 1}
    assert all(1 <= n <= 3 for n in rows["response_tokens"])
    assert rows["win"] == [
        1.0 if mine > other else 0.5 if mine == other else 0.0
        for mine, other in zip(rows["reward"], baseline, strict=True)
    ]
    assert {0.0, 0.5} <= set(rows["win"])
    assert len(samples) == 12
    for line, prompt, reward, proxy, kl, tokens in zip(
        samples, PROMPTS, rows["reward"], rows["proxy_reward"], rows["kl_nats"], rows["response_tokens"], strict=True
    ):
        response = line["response"]
        assert line == {
            "step": 7, "split": "test", "prompt_id": prompt.key, "prompt": prompt.text, "response": response,
            "reward": reward, "proxy_reward": proxy, "kl_nats": kl,
        }  # fmt: skip
        assert set(response) <= set(LETTERS)
        assert reward == pytest.approx(response.count("a") / tokens)
        assert proxy == pytest.approx(response.count("b") / tokens)
    assert len(point["held_out"]["nll_nats"]) == len(point["held_out"]["tokens"]) == len(HELD_OUT)


def test_figures_do_not_depend_on_the_batch_size() -> None:
    reference, policy = start(), trained()
    points = [
        judge(reference, batch_size=n).point(policy, PROMPTS, step=1, split="test", baseline=None)[0]
        for n in (1, 5, 64)
    ]
    for point in points[1:]:
        assert point["rows"]["kl_nats"] == pytest.approx(points[0]["rows"]["kl_nats"], abs=1e-5)
        assert point["held_out"]["nll_nats"] == pytest.approx(points[0]["held_out"]["nll_nats"], abs=1e-5)
        assert point["rows"]["reward"] == points[0]["rows"]["reward"]


def test_without_rewards_their_rows_are_null() -> None:
    reference = letters_policy()
    point, samples = judge(reference, reward=None, proxy=None, held_out=()).point(
        reference, PROMPTS, step=0, split="test", baseline=None
    )
    assert (point["rows"]["reward"], point["rows"]["proxy_reward"], point["rows"]["win"]) == (None, None, None)
    assert len(point["rows"]["kl_nats"]) == 12
    assert samples[0]["reward"] is None
    assert point["held_out"] == {"nll_nats": [], "tokens": []}


def test_the_likelihood_of_held_out_text_counts_its_end_token() -> None:
    policy = trained()
    with torch.no_grad():
        found = judge(letters_policy()).likelihood(policy)
    assert found["tokens"] == [4, 3, 2, 1]
    for nats, tree in zip(found["nll_nats"], HELD_OUT, strict=True):
        assert nats == pytest.approx(-float(exact_logprobs(policy, tree.prompt, [tree.responses[0]])[0]), abs=1e-5)


def test_every_policy_meets_the_same_luck() -> None:
    """Two policies that are nearly the same answer nearly all prompts alike."""
    reference = start()
    prompts = [PromptIds(f"x:{i}", "ab", PROMPT) for i in range(100)]
    texts = []
    for policy in (reference, trained(push=0.01)):
        _, samples = judge(reference).point(policy, prompts, step=0, split="test", baseline=None)
        texts.append([line["response"] for line in samples])
    assert sum(a == b for a, b in zip(*texts, strict=True)) > 90
    assert len(set(texts[0])) > 10


def a_point(step: int, split: str, rewards: list[float]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    rows = {"prompt": [f"p{i}" for i in range(len(rewards))], "reward": rewards}
    samples = [{"step": step, "split": split, "prompt_id": f"p{i}", "reward": r} for i, r in enumerate(rewards)]
    return {"step": step, "split": split, "rows": rows}, samples


def test_a_point_of_the_same_step_and_split_is_replaced(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    assert read_points(run) == []
    for step, split, rewards in [
        (10, "test", [9.0, 9.0]), (5, "validation", [0.0, 1.0]), (10, "validation", [2.0, 3.0]),
        (5, "validation", [4.0, 5.0]),
    ]:  # fmt: skip
        add_point(run, *a_point(step, split, rewards))
    points = read_points(run)
    assert [(p["step"], p["split"]) for p in points] == [(5, "validation"), (10, "validation"), (10, "test")]
    assert points[0]["rows"]["reward"] == [4.0, 5.0]
    samples = read_lines(run.samples)
    assert len(samples) == 6
    assert [s["reward"] for s in samples if (s["step"], s["split"]) == (5, "validation")] == [4.0, 5.0]
    assert read_json(run.evaluation)["chosen_step"] is None


def test_the_best_step_is_by_validation_reward_and_the_earlier_of_equals(tmp_path: Path) -> None:
    run = run_folder(tmp_path / "run")
    for step, split, rewards in [
        (0, "validation", [0.0, 1.0]), (5, "validation", [2.0, 4.0]), (10, "validation", [3.0, 3.0]),
        (20, "validation", [-1.0, 0.0]), (20, "test", [99.0]),
    ]:  # fmt: skip
        add_point(run, *a_point(step, split, rewards))
    assert best_step(run) == 5
    finish(run, chosen_step=5, cost={"wall_seconds": 1.0})
    written = read_json(run.evaluation)
    assert (written["chosen_step"], written["cost"], len(written["points"])) == (5, {"wall_seconds": 1.0}, 5)


def test_a_larger_model_is_judged_too() -> None:
    """Prompts of different lengths and a vocabulary with merges: text in, text out."""
    policy = tiny_policy()
    encoder = Encoder(policy.tokenizer, prompt_tokens=16, response_tokens=16)
    texts = ["The plot", "I thought that the music of this film", "A"]
    prompts = [PromptIds(f"t:{i}", text, encoder.prompt(text)) for i, text in enumerate(texts)]
    judged = Judge(copy_of(policy.model), encoder, None, None, (), 16, 0)
    point, samples = judged.point(policy, prompts, step=0, split="test", baseline=None)
    assert point["rows"]["kl_nats"] == pytest.approx([0.0] * 3, abs=1e-4)
    assert [line["prompt"] for line in samples] == texts
    assert all("<|" not in line["response"] for line in samples)
