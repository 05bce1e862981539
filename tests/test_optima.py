"""Every objective, trained as users train it, starts at its loss and ends at its optimum."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest

from optima import CASES
from optimum_case import Case, Found
from pair_optima import growing
from preflab.cli.main import COMMANDS
from preflab.config.pair_losses import IPOLoss
from preflab.config.preference import IPO
from tabular import (
    farthest,
    frontier,
    group_advantages,
    grpo_fixed_point,
    kl_of,
    log_softmax,
    lost_share,
    reward_of,
    tilted,
    total_variation,
)

PAGE = Path(__file__).parent.parent / "docs" / "objectives.md"
METHODS = {name.removeprefix("train ") for name in COMMANDS if name.startswith("train ")}
# Three responses, and their optimum at β = ½ worked out by hand.
REFERENCE = np.log([0.5, 0.3, 0.2])
REWARD = np.array([1.0, 0.0, -1.0])


@cache
def found(case: Case) -> Found:
    """Trained once, whoever asks."""
    with TemporaryDirectory() as folder:
        return case.run(Path(folder))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_training_starts_at_the_loss_and_ends_at_the_optimum_of_theory(case: Case) -> None:
    result = found(case)
    assert result.start == pytest.approx(result.start_in_theory, rel=1e-5, abs=1e-5)
    assert result.error <= case.tolerance
    # Without training the test would fail, by far where the optimum is finite.
    least = case.tolerance if case.optimum.startswith("none") else 5 * case.tolerance
    assert result.untrained > least


@pytest.mark.parametrize("case", [case for case in CASES if case.on_frontier], ids=lambda case: case.name)
def test_trained_policies_lie_on_the_frontier_and_none_above_it(case: Case) -> None:
    """Reward and KL are enumerated, and the frontier is that of π* over all β: its slope is β."""
    points = found(case).points
    assert points
    for point in points:
        assert point.kl_nats > 0.01
        assert point.reward <= point.frontier + 1e-6
        assert point.frontier - point.reward < 0.01
    same_prompt = len({point.beta for point in points}) == len(points)
    for low, high in pairwise(points) if same_prompt else ():
        assert low.beta < high.beta
        assert low.kl_nats > high.kl_nats
        # The frontier is concave, so a chord's slope lies between the slopes at its ends, which are the two β.
        slope = (low.reward - high.reward) / (low.kl_nats - high.kl_nats)
        assert 0.97 * low.beta < slope < 1.03 * high.beta


def test_an_objective_with_an_optimum_is_at_rest_where_the_others_grow() -> None:
    """The yardstick of objectives without one: IPO, by the same steps on the same pairs."""
    loss = IPOLoss(tau=0.1)
    case = growing(
        "ipo", IPO, loss, lambda c, r: (c.logratio - r.logratio - 5) ** 2, variant="", start="", optimum="", beta=1.0,
        chosen=0, rejected=0,
    )  # fmt: skip
    assert 0.95 < found(case).error < 1.05


def test_the_frontier_is_that_of_the_worked_example() -> None:
    best = tilted(REFERENCE, REWARD, 0.5)
    assert np.exp(best).tolist() == pytest.approx([0.918672, 0.074597, 0.006730], abs=1e-6)
    assert reward_of(best, REWARD) == pytest.approx(0.911942, abs=1e-6)
    assert kl_of(best, REFERENCE) == pytest.approx(0.432205, abs=1e-6)
    assert frontier(0.432205, REFERENCE, REWARD) == pytest.approx(0.911942, abs=1e-6)
    slope = (frontier(0.4323, REFERENCE, REWARD) - frontier(0.4321, REFERENCE, REWARD)) / 0.0002
    assert slope == pytest.approx(0.5, abs=1e-3)
    assert lost_share(best, REFERENCE, REWARD, 0.5) == pytest.approx(0, abs=1e-12)
    assert lost_share(REFERENCE, REFERENCE, REWARD, 0.5) == pytest.approx(1)


def test_no_policy_lies_above_the_frontier() -> None:
    draw = np.random.Generator(np.random.Philox(0))
    for _ in range(200):
        policy = log_softmax(REFERENCE + draw.normal(size=3))
        assert reward_of(policy, REWARD) <= frontier(kl_of(policy, REFERENCE), REFERENCE, REWARD) + 1e-9


def test_group_advantages_are_those_of_simulated_groups() -> None:
    """Two of (1, 0): (1 − ½)/(1/√2) = 1/√2 where they differ; and four, drawn 200,000 times."""
    even = np.log([0.5, 0.5])
    assert group_advantages(np.array([1.0, 0.0]), even, 2) == pytest.approx(np.array([1, -1]) / math.sqrt(8), abs=1e-5)
    draw = np.random.Generator(np.random.Philox(0))
    groups = REWARD[draw.choice(3, size=(200_000, 4), p=np.exp(REFERENCE))]
    advantages = (groups[:, 0] - groups.mean(1)) / (groups.std(1, ddof=1) + 1e-6)
    sampled = [advantages[groups[:, 0] == reward].mean() for reward in REWARD]
    assert group_advantages(REWARD, REFERENCE, 4).tolist() == pytest.approx(sampled, abs=0.01)


def test_grpo_rests_elsewhere_than_rloo() -> None:
    """On one-token responses at π = β·π_ref/(β − A), where forward KL and standardised rewards balance."""
    fixed = grpo_fixed_point([(0,), (1,), (2,)], REFERENCE, REWARD, vocabulary=3, group=4, beta=1.0)
    advantages = group_advantages(REWARD, fixed, 4)
    assert farthest(np.exp(fixed), np.exp(REFERENCE) / (1 - advantages)) < 1e-7
    assert total_variation(fixed, tilted(REFERENCE, REWARD, 1.0)) > 0.04


def test_every_method_has_a_case_and_every_case_a_method() -> None:
    assert {case.method for case in CASES} == METHODS
    assert len({case.name for case in CASES}) == len(CASES)


def test_the_page_of_objectives_names_every_method_and_case() -> None:
    rows = [line.split(" | ")[0].removeprefix("| ") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    assert {case.name for case in CASES} <= set(rows)
    assert {name.split(", ")[0] for name in rows} >= METHODS
