"""Paid the log density ratio between a table and the reference's own rows, at β = 1, the optimal policy is the table;
paid what looks like it, it is not. By enumeration in float64, and by training."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from enumerable import run_folder
from optimum_case import constant, falling
from preflab.config.online import PPO, RLOO, RolloutBatch
from preflab.models.load import Policy, copy_of
from preflab.tables.alignment.reward import LogitReward, WeightedReward
from preflab.tables.compact import Compact
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds
from row_ratios import Exact, answers_of, policy_of
from tables_by_hand import COLUMNS, ROWS, chances, gpt2
from tabular import Array, kl_of, log_softmax, minimiser, softplus, tilted, total_variation

ENCODING = Compact.of(COLUMNS, np.array(ROWS))
TOKENS = [ENCODING.response(row) for row in ROWS]
GROUPS = {"look": (0, 1), "taste": (2,)}
FREE = 50.0
"""A clip that never acts."""


def table(seed: int) -> Array:
    """log p of each of the 36 rows: cells depend on each other."""
    return log_softmax(np.random.default_rng(seed).normal(size=len(ROWS)))


REAL, REFERENCE = table(0), table(1)


def judge(**changes: Any) -> Exact:
    """The best discriminators between table and reference."""
    given: dict[str, Any] = {"real": np.exp(REAL), "written": np.exp(REFERENCE), "groups": GROUPS}
    return Exact(ENCODING, ROWS, **(given | changes))


def paid(clip_nats: float = FREE, **changes: Any) -> Array:
    """What each row gets."""
    reward = LogitReward(ENCODING, judge(**changes), clip_nats=clip_nats)
    return np.array(reward(answers_of(ENCODING, ROWS)).totals)


def soft_optimum(
    payments: Sequence[Sequence[float]], *, discount: float = 1.0
) -> tuple[Array, dict[tuple[int, ...], float]]:
    """log π* of each row and V of each prefix, at β = 1, where tokens are paid: backwards from the ends of the rows,

    V(s) = log Σ_a π_ref(a|s)·exp(r(s, a) + γ·V(sa)),   π*(a|s) = π_ref(a|s)·exp(r(s, a) + γ·V(sa) − V(s))
    """
    mass: dict[tuple[int, ...], float] = defaultdict(float)
    rewards: dict[tuple[int, ...], float] = {}
    for tokens, own, nats in zip(TOKENS, payments, REFERENCE, strict=True):
        for place in range(len(tokens) + 1):
            mass[tokens[:place]] += np.exp(nats)
            if place:  # what a token gets must not depend on what follows it
                assert rewards.setdefault(tokens[:place], own[place - 1]) == pytest.approx(own[place - 1], abs=1e-12)
    values = dict.fromkeys(TOKENS, 0.0)
    for prefix in sorted(mass, key=len, reverse=True):
        following = [other for other in mass if len(other) == len(prefix) + 1 and other[:-1] == prefix]
        if following:
            shares = [mass[one] / mass[prefix] * np.exp(rewards[one] + discount * values[one]) for one in following]
            values[prefix] = float(np.log(sum(shares)))
    found = []
    for tokens in TOKENS:
        steps = [(tokens[:place], tokens[: place + 1]) for place in range(len(tokens))]
        nats = [np.log(mass[to] / mass[at]) + rewards[to] + discount * values[to] - values[at] for at, to in steps]
        found.append(sum(nats))
    return np.array(found), values


def test_the_optimum_is_the_table() -> None:
    totals = paid()
    assert total_variation(REAL, REFERENCE) > 0.4
    assert total_variation(tilted(REFERENCE, totals, 1.0), REAL) < 1e-12
    assert np.exp(REFERENCE + totals).sum() == pytest.approx(1.0, abs=1e-12)  # Z
    # The largest E r − KL, which is log Z, and no more.
    assert np.exp(REAL) @ totals - kl_of(REAL, REFERENCE) == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("beta", [0.5, 2.0])
def test_at_another_beta_it_is_a_geometric_mean_of_table_and_reference(beta: float) -> None:
    found = tilted(REFERENCE, paid(), beta)
    assert total_variation(found, log_softmax(REAL / beta + REFERENCE * (1 - 1 / beta))) < 1e-12
    assert total_variation(found, REAL) > 0.1


def test_paid_token_by_token_the_optimum_is_the_same_and_nothing_is_left_for_later() -> None:
    scores = LogitReward(ENCODING, judge(), clip_nats=FREE, dense=True)(answers_of(ENCODING, ROWS)).values
    for discount in (1.0, 0.0):  # so nothing is lost where no token looks ahead
        found, values = soft_optimum([score.tokens or () for score in scores], discount=discount)
        assert total_variation(found, REAL) < 1e-12
        assert max(map(abs, values.values())) < 1e-12
    # Paid at the end, a prefix is worth what its token level says.
    at_end = [[0.0] * (len(tokens) - 1) + [score.total] for tokens, score in zip(TOKENS, scores, strict=True)]
    found, values = soft_optimum(at_end)
    assert total_variation(found, REAL) < 1e-12
    for tokens, logits in zip(TOKENS, judge().logits["token"], strict=True):
        assert [values[tokens[:place]] for place in (1, 2)] == pytest.approx(logits[:2].tolist(), abs=1e-12)


def test_a_token_level_that_is_wrong_moves_payments_and_no_optimum() -> None:
    class Misled(Exact):
        def opinion(self, codes: Any, *, whole: bool = False) -> Any:
            found = super().opinion(codes, whole=whole)
            found.logits["token"][:] = 2 * np.sin(found.logits["token"] * 7)
            return found

    misled = Misled(ENCODING, ROWS, np.exp(REAL), np.exp(REFERENCE))
    scores = LogitReward(ENCODING, misled, clip_nats=FREE, dense=True)(answers_of(ENCODING, ROWS)).values
    found, values = soft_optimum([score.tokens or () for score in scores])
    assert total_variation(found, REAL) < 1e-12
    assert max(map(abs, values.values())) > 0.5
    # Where no token looks ahead, there is nothing to make good what a token was paid too much.
    found, _ = soft_optimum([score.tokens or () for score in scores], discount=0.0)
    assert total_variation(found, REAL) > 0.3


def test_the_levels_added_up_are_no_log_ratio() -> None:
    """Each level holds the evidence of the others again: the policy overshoots, farther from the table than before."""
    scores = LogitReward(ENCODING, judge(), clip_nats=FREE)(answers_of(ENCODING, ROWS)).values
    added = np.array([sum(score.parts[level] for level in ("token", "sentence", "row", "feature")) for score in scores])
    assert total_variation(tilted(REFERENCE, added, 1.0), REAL) == pytest.approx(0.644, abs=0.001)
    assert total_variation(REFERENCE, REAL) == pytest.approx(0.437, abs=0.001)


def test_prefix_logits_added_up_are_no_log_ratio() -> None:
    logits = judge().logits["token"]
    found, _ = soft_optimum(logits.tolist())
    assert total_variation(found, tilted(REFERENCE, logits.sum(1), 1.0)) < 1e-12
    assert total_variation(found, REAL) == pytest.approx(0.733, abs=0.001)


def test_weighted_probabilities_have_the_table_as_their_optimum_at_no_beta() -> None:
    totals = np.array(WeightedReward(ENCODING, judge())(answers_of(ENCODING, ROWS)).totals)
    assert total_variation(tilted(REFERENCE, totals, 1.0), REAL) == pytest.approx(0.396, abs=0.001)
    best = min(total_variation(tilted(REFERENCE, totals, beta), REAL) for beta in np.geomspace(0.01, 10, 200))
    assert best == pytest.approx(0.123, abs=0.001)


def test_a_wrong_class_prior_changes_nothing_but_what_the_clip_does() -> None:
    """Four written rows to a real one, not corrected: logits are ln 4 too low."""
    shift = -np.log(4.0)
    assert paid(shift_nats=shift) == pytest.approx(paid() + shift, abs=1e-12)
    assert total_variation(tilted(REFERENCE, paid(shift_nats=shift), 1.0), REAL) < 1e-12
    distances = {
        clip: [total_variation(tilted(REFERENCE, paid(clip, shift_nats=by), 1.0), REAL) for by in (0.0, shift)]
        for clip in (1.0, 2.0)
    }
    assert distances[1.0] == pytest.approx([0.215, 0.315], abs=0.001)
    assert distances[2.0] == pytest.approx([0.061, 0.121], abs=0.001)


def test_a_clip_moves_the_optimum_by_no_more_than_its_bound() -> None:
    distances = []
    for clip in (0.5, 1.0, 2.0, 3.0, 4.0):
        totals = paid(clip)
        weights = np.exp(totals - paid())
        distances.append(total_variation(tilted(REFERENCE, totals, 1.0), REAL))
        assert distances[-1] <= np.exp(REAL) @ np.abs(weights - 1) + 1e-12
    assert distances == pytest.approx([0.298, 0.215, 0.061, 0.034, 0.0], abs=0.001)


def test_rows_of_an_older_policy_mislead_unless_they_are_weighted() -> None:
    """Discriminators fitted to the expected cross-entropy, one free logit a row."""
    older = table(2)

    def fitted(weights: Array) -> Array:
        def loss(logits: Array) -> float:
            return float(np.exp(REAL) @ softplus(-logits) + (np.exp(older) * weights) @ softplus(logits))

        return minimiser(loss, np.zeros(len(ROWS)))

    plain, weighted = fitted(np.ones(len(ROWS))), fitted(np.exp(REFERENCE - older))
    assert plain == pytest.approx(REAL - older, abs=1e-3)
    assert total_variation(tilted(REFERENCE, weighted, 1.0), REAL) < 1e-3
    off = tilted(REFERENCE, plain, 1.0)
    assert total_variation(off, log_softmax(REFERENCE + REAL - older)) < 1e-3
    assert total_variation(off, REAL) == pytest.approx(0.351, abs=0.001)


# By training.


@cache
def start() -> tuple[Any, Array, Array]:
    """A reference that is a GPT-2, a table that another one could have written, and what the first one writes."""
    model = gpt2(ENCODING, spread=0.7)
    return model, distribution(gpt2(ENCODING, seed=1, spread=0.7)), distribution(model)


def distribution(model: Any) -> Array:
    found = chances(model, ENCODING)
    return np.log([found[row] for row in ROWS])


def trained(method: str, folder: Path) -> tuple[Array, Policy]:
    """The table, and the policy that learned it under the mask at β = 1."""
    model, real, reference = start()
    exact = Exact(ENCODING, ROWS, np.exp(real), np.exp(reference))
    policy = policy_of(copy.deepcopy(model), ENCODING)
    shared: dict[str, Any] = {
        "updates": 30, "batch": RolloutBatch(size=256, mini=256, micro=256), "evaluations": 1, "kl_coefficient": 1.0,
        "missing_end_penalty": 0.0, "optimizer": falling(0.02),
    }  # fmt: skip
    prompts = [PromptIds(f"row {number}", "", ENCODING.prompt()) for number in range(256)]
    limits: dict[str, Any] = {"max_new_tokens": ENCODING.longest, "seed": 0, "mask": ENCODING.mask()}
    run = run_folder(folder / "run")
    if method.startswith("ppo"):
        discount = 0.0 if method == "ppo, no token looks ahead" else 1.0
        settings = PPO(**shared, value_trunk="shared", value_optimizer=constant(0.02), discount=discount)
        reward = LogitReward(ENCODING, exact, clip_nats=FREE, dense=True)
        train_ppo(policy, None, copy_of(policy.model), reward, prompts, settings, run, **limits)
    else:
        reward = LogitReward(ENCODING, exact, clip_nats=FREE)
        train_policy_gradient(policy, copy_of(policy.model), reward, prompts, RLOO(**shared), run, **limits)
    return real, policy


@pytest.mark.parametrize("method", ["ppo", "ppo, no token looks ahead", "rloo"])
def test_a_policy_learns_the_table(method: str, tmp_path: Path) -> None:
    real, policy = trained(method, tmp_path)
    assert total_variation(start()[2], real) > 0.45
    assert total_variation(distribution(policy.model), real) < 0.08
