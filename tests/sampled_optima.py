"""Methods that sample from the policy, held to their optima."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from enumerable import END_ID, VOCABULARY, letters_policy, run_folder, value_model
from optimum_case import (
    LOG_POLICY,
    ODDS_REWARD,
    ONE_TOKEN,
    PROMPT,
    TWO_TOKENS,
    A,
    B,
    C,
    Case,
    D,
    Found,
    Group,
    Responses,
    constant,
    falling,
    logprobs,
    point,
    worst,
)
from pair_optima import naive_dpo
from preflab.config import pair_losses as losses
from preflab.config.online import DAPO, GRPO, PPO, RLOO, DrGRPO, PolicyGradient, Reinforce, RolloutBatch
from preflab.config.online_preference import IterativeDPO, OnlineDPO, PairBatch, Ranking
from preflab.config.training import Batch
from preflab.models.load import Policy, copy_of
from preflab.rewards.protocol import Answer
from preflab.runs import JSON, read_lines
from preflab.training.iterative_dpo import train_iterative_dpo
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds
from tabular import (
    Array,
    Scores,
    best_policy,
    farthest,
    grpo_fixed_point,
    log_softmax,
    lost_share,
    reward_of,
    tilted,
    total_variation,
)


@dataclass(frozen=True)
class Table:
    """A reward: a number a response, whatever the prompt; with `noise`, plus standard Gumbel noise, so that of two
    responses i has the larger one with probability σ(r_i − r_j): Bradley–Terry."""

    values: Mapping[tuple[int, ...], float]
    noise: np.random.Generator | None = None
    seen: list[tuple[tuple[int, ...], float]] = field(default_factory=list)
    """The responses and what they got, in order."""
    name: str = "table"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        rewards = np.array([self.values[answer.response_ids] for answer in answers])
        if self.noise is not None:
            rewards = rewards + self.noise.gumbel(size=len(answers))
        self.seen.extend(zip((answer.response_ids for answer in answers), rewards.tolist(), strict=True))
        return [float(reward) for reward in rewards]


WORTH = {0: -0.5, END_ID: 0.2, A: -0.3, B: 0.1, C: 0.5, D: 0.9}
TWO_TOKEN_REWARD = np.array([sum(WORTH[t] for t in y) + 0.5 * (y[0] == y[-1]) for y in TWO_TOKENS])
"""Not a sum over tokens: what the second one is worth depends on the first."""


@dataclass(frozen=True)
class Task:
    """Prompts, all responses to them, and the reward of each."""

    prompts: tuple[tuple[int, ...], ...]
    responses: Responses
    reward: Array
    width: int
    tested: str

    @property
    def longest(self) -> int:
        return max(map(len, self.responses))

    def table(self, noise: np.random.Generator | None = None) -> Table:
        return Table(dict(zip(self.responses, self.reward.tolist(), strict=True)), noise)

    def prompt_ids(self) -> list[PromptIds]:
        return [PromptIds(f"p:{i}", f"p:{i}", prompt) for i, prompt in enumerate(self.prompts)]

    def policy(self) -> Policy:
        return letters_policy(spread=4.0, width=self.width)

    def tables(self, policy: Policy) -> list[Array]:
        """log π of all responses to each prompt."""
        return [log_softmax(logprobs(policy, self.responses, prompt)) for prompt in self.prompts]


BANDIT = Task((PROMPT,), ONE_TOKEN, ODDS_REWARD, 16, "six responses of one token")
SEQUENCES = Task((PROMPT,), TWO_TOKENS, TWO_TOKEN_REWARD, 32, "31 responses of at most two tokens")
TWO_PROMPTS = Task(
    (PROMPT, (C,)), TWO_TOKENS, TWO_TOKEN_REWARD, 32, "two prompts with 31 responses of at most two tokens each"
)
BEGINS_WITH_D = np.array([float(response[0] == D) for response in TWO_TOKENS])
SHORT = "(max r − E r)/(max r − E r at π_ref)"
LOST = "(J* − J)/(J* − J at π_ref), J = E r − β·KL enumerated"

Trained = tuple[list[JSON], Policy]
Training = Callable[[Task, float, Path], Trained]
"""A task and β → the log and the trained policy."""


def sampled(
    method: str, variant: str, task: Task, betas: Sequence[float], train: Training, *, start: str, start_key: str,
    optimum: str, tolerance: float, tested: str = "", group: Group = "policy gradient",
) -> Case:  # fmt: skip
    """A method whose optimum is π*, by the objective that it maximises."""

    def run(folder: Path) -> Found:
        found = []
        for beta in betas:
            references = task.tables(task.policy())
            lines, policy = train(task, beta, folder / f"beta-{beta}")
            policies = task.tables(policy)
            lost = [lost_share(p, q, task.reward, beta) for p, q in zip(policies, references, strict=True)]
            points = [point(p, q, task.reward, beta) for p, q in zip(policies, references, strict=True)]
            expected = math.log(2) if start == "ln 2" else 0.0
            found.append(Found(lines[0][start_key], expected, 1.0, max(lost), tuple(points)))
        return worst(found)

    names = ", ".join(filter(None, (variant, f"β {', '.join(map(str, betas))}")))
    return Case(method, names, group, start, optimum, tested or task.tested, LOST, tolerance, run, on_frontier=True)


def gradient_settings(method: type[PolicyGradient], beta: float, **changes: Any) -> PolicyGradient:
    given: dict[str, Any] = {
        "updates": 60, "batch": RolloutBatch(size=128, mini=128, micro=128), "evaluations": 1,
        "missing_end_penalty": 0.0, "optimizer": falling(0.02), "kl_coefficient": beta,
    }  # fmt: skip
    return method(**(given | changes))


def train_gradient(task: Task, settings: PolicyGradient, folder: Path) -> Trained:
    policy = task.policy()
    run = run_folder(folder)
    train_policy_gradient(
        policy, copy_of(policy.model), task.table(), task.prompt_ids(), settings, run, max_new_tokens=task.longest,
        seed=0,
    )  # fmt: skip
    return read_lines(run.metrics), policy


def gradient(method: type[PolicyGradient], **changes: Any) -> Training:
    return lambda task, beta, folder: train_gradient(task, gradient_settings(method, beta, **changes), folder)


def ppo(**changes: Any) -> Training:
    given: dict[str, Any] = {
        "updates": 40, "batch": RolloutBatch(size=128, mini=128, micro=128), "epochs": 2,
        "evaluations": 1, "missing_end_penalty": 0.0, "optimizer": falling(0.02), "value_optimizer": constant(0.02),
    }  # fmt: skip

    def train(task: Task, beta: float, folder: Path) -> Trained:
        settings = PPO(**(given | changes), kl_coefficient=beta)
        policy = task.policy()
        value = None if settings.value_trunk == "shared" else value_model(folder / "start")
        run = run_folder(folder / "run")
        train_ppo(
            policy, value, copy_of(policy.model), task.table(), task.prompt_ids(), settings, run,
            max_new_tokens=task.longest, seed=0,
        )  # fmt: skip
        return read_lines(run.metrics), policy

    return train


def grpo_case(task: Task, reward: Array, variant: str, *, beta: float, group: int, tolerance: float) -> Case:
    """Against the point where its expected step is 0, which is not π*: farther from that than the tolerance."""
    task = replace(task, reward=reward)

    def run(folder: Path) -> Found:
        (reference,) = task.tables(task.policy())
        fixed = grpo_fixed_point(task.responses, reference, task.reward, vocabulary=VOCABULARY, group=group, beta=beta)
        settings = gradient_settings(
            GRPO, beta, responses=group, updates=80, batch=RolloutBatch(size=256, mini=256), optimizer=falling(0.01)
        )
        lines, policy = train_gradient(task, settings, folder / "run")
        (trained,) = task.tables(policy)
        # It must not pass for the other optimum.
        assert total_variation(fixed, tilted(reference, task.reward, beta)) > 3 * tolerance
        return Found(lines[0]["policy_loss"], 0.0, total_variation(reference, fixed), total_variation(trained, fixed))

    return Case(
        "grpo", f"{variant}, β {beta}", "policy gradient", "0, as Σ Â = 0",
        "where E Σ_t (Â + β(π_ref/π − 1))·∇log π/n = 0: forward KL by k3, rewards over a group's deviation; not π*",
        task.tested, "total variation", tolerance, run,
    )  # fmt: skip


def collapsing(method: type[PolicyGradient], name: str, **changes: Any) -> Case:
    """Without a KL penalty."""

    def run(folder: Path) -> Found:
        lines, policy = train_gradient(BANDIT, gradient_settings(method, 0.0, **changes), folder / "run")
        (reference,), (trained,) = BANDIT.tables(BANDIT.policy()), BANDIT.tables(policy)
        return Found(lines[0]["kl_nats"], 0.0, 1.0, short_of_best(trained, reference, BANDIT.reward))

    return Case(
        name, "β 0", "policy gradient", "KL 0 nats", "none: the best response takes all", BANDIT.tested, SHORT, 0.05,
        run,
    )  # fmt: skip


def short_of_best(logprob: Array, reference: Array, reward: Array) -> float:
    return float((reward.max() - reward_of(logprob, reward)) / (reward.max() - reward_of(reference, reward)))


def dr_grpo_with_kl(beta: float, group: int) -> Case:
    """The response itself is in the mean it is compared with, which shrinks the reward's gradient by 1 − 1/G, and not
    that of a KL in the loss."""

    def run(folder: Path) -> Found:
        settings = gradient_settings(
            DrGRPO, beta, responses=group, kl_penalty="full", updates=80, batch=RolloutBatch(size=256, mini=256),
            optimizer=falling(0.01),
        )  # fmt: skip
        lines, policy = train_gradient(BANDIT, settings, folder / "run")
        (reference,), (trained,) = BANDIT.tables(BANDIT.policy()), BANDIT.tables(policy)
        best = tilted(reference, (1 - 1 / group) * BANDIT.reward, beta)
        assert total_variation(best, tilted(reference, BANDIT.reward, beta)) > 2 * 0.03
        return Found(lines[0]["policy_loss"], 0.0, total_variation(reference, best), total_variation(trained, best))

    return Case(
        "dr-grpo", f"full KL in the loss, β {beta}, {group} responses", "policy gradient", "0, as Σ Â = 0",
        "π_ref·exp((1 − 1/G)·r/β)/Z", BANDIT.tested, "total variation", 0.03, run,
    )  # fmt: skip


def gradient_cases() -> list[Case]:
    """Methods that follow a policy gradient."""
    larger: dict[str, Any] = {"batch": RolloutBatch(size=256, mini=256, micro=256)}
    zero: dict[str, Any] = {"start": "0, as Σ Â = 0", "start_key": "policy_loss", "optimum": "π_ref·exp(r/β)/Z"}
    kl: dict[str, Any] = {"start": "KL 0 nats", "start_key": "kl_nats", "optimum": "π_ref·exp(r/β)/Z"}
    return [
        sampled("ppo", "separate value model", BANDIT, (0.5, 1.0), ppo(), **kl, tolerance=0.01),
        sampled("ppo", "shared trunk", BANDIT, (0.5,), ppo(value_trunk="shared"), **kl, tolerance=0.01),
        sampled(
            "ppo", "sequences", SEQUENCES, (0.5,), ppo(updates=60, optimizer=falling(0.01), **larger), **kl,
            tolerance=0.01,
        ),
        grpo_case(BANDIT, ODDS_REWARD, "bandit", beta=1.0, group=4, tolerance=0.03),
        grpo_case(SEQUENCES, BEGINS_WITH_D, "sequences", beta=1.0, group=4, tolerance=0.05),
        collapsing(DrGRPO, "dr-grpo"),
        dr_grpo_with_kl(0.5, 2),
        collapsing(DAPO, "dapo", optimizer=falling(0.003), batch=RolloutBatch(size=128, mini=64, micro=128)),
        sampled("rloo", "", BANDIT, (0.25, 0.5, 1.0), gradient(RLOO), **zero, tolerance=0.005),
        sampled(
            "rloo", "sequences", TWO_PROMPTS, (0.5,), gradient(RLOO, updates=80, optimizer=falling(0.01)), **kl,
            tolerance=0.02,
        ),
        sampled("reinforce", "", BANDIT, (0.5, 1.0), gradient(Reinforce), **zero, tolerance=0.005),
        sampled(
            "reinforce", "sequences", SEQUENCES, (0.5,),
            gradient(Reinforce, updates=60, optimizer=falling(0.01), **larger), **kl, tolerance=0.02,
        ),
    ]  # fmt: skip


# Pairs of the policy's own responses.

TWO_AT_ONE = Ranking(temperatures=(1.0, 1.0), smallest_gap=0.0)


def online_dpo(task: Task, beta: float, folder: Path) -> Trained:
    judge = task.table(np.random.Generator(np.random.Philox(0)))
    return train_online_pairs(task, beta, judge, folder, batch=256, rate=0.005)


def train_online_pairs(task: Task, beta: float, judge: Table, folder: Path, *, batch: int, rate: float) -> Trained:
    settings = OnlineDPO(
        updates=40, batch=PairBatch(size=batch, mini=batch, micro=batch), evaluations=1, ranking=TWO_AT_ONE,
        loss=losses.SumLoss(terms="dpo", dpo=losses.DPOLoss(beta=beta)), missing_end_penalty=0.0,
        optimizer=falling(rate),
    )  # fmt: skip
    policy = task.policy()
    run = run_folder(folder)
    train_online_dpo(
        policy, copy_of(policy.model), judge, task.prompt_ids(), settings, run, max_new_tokens=task.longest, seed=0
    )
    return read_lines(run.metrics), policy


def online_dpo_without_noise(beta: float) -> Case:
    """A judge with noise would leave 40 % of the reward to gain: π* at this β."""

    def run(folder: Path) -> Found:
        (reference,) = BANDIT.tables(BANDIT.policy())
        lines, policy = train_online_pairs(BANDIT, beta, BANDIT.table(), folder / "run", batch=64, rate=0.01)
        (trained,) = BANDIT.tables(policy)
        return Found(lines[0]["loss"], math.log(2), 1.0, short_of_best(trained, reference, BANDIT.reward))

    return Case(
        "online-dpo", f"the reward ranks, β {beta}", "online pairs", "ln 2",
        "none: labels without noise, so h → ∞ and the best response takes all", BANDIT.tested, SHORT, 0.05, run,
    )  # fmt: skip


def iterative_case(reference: Literal["start", "previous"], beta: float) -> Case:
    """Against the policy that minimises DPO's loss on the pairs which each round drew: π* but for the draw's luck."""
    rounds, pairs = 2, 300
    optimum = "π_ref·exp(r/β)/Z" if reference == "start" else "π_ref·exp(R·r/β)/Z after R rounds"
    task = replace(BANDIT, reward=0.5 * ODDS_REWARD)

    def run(folder: Path) -> Found:
        judge = task.table(np.random.Generator(np.random.Philox(1)))
        prompts = [PromptIds(f"p:{i}", f"p:{i}", PROMPT) for i in range(rounds * pairs)]
        settings = IterativeDPO(
            rounds=rounds, reference=reference, epochs=100, batch=Batch(size=pairs, micro=pairs), evaluations=1,
            ranking=TWO_AT_ONE, loss=losses.SumLoss(terms="dpo", dpo=losses.DPOLoss(beta=beta)),
            missing_end_penalty=0.0, optimizer=falling(0.02),
        )  # fmt: skip
        policy = task.policy()
        (start,) = task.tables(policy)
        run = run_folder(folder / "run")
        train_iterative_dpo(
            policy, copy_of(policy.model), judge, prompts, settings, run, max_new_tokens=1, seed=0, log_every=1
        )
        best = start
        for number in range(rounds):
            seen = judge.seen[number * 2 * pairs : (number + 1) * 2 * pairs]
            drawn = [
                (first, second) if mine > other else (second, first)
                for ((first,), mine), ((second,), other) in zip(seen[::2], seen[1::2], strict=True)
                if first != second
            ]
            held_to = start if reference == "start" else best
            best = best_policy(naive_dpo(beta), Scores(held_to, held_to, np.ones(VOCABULARY)), drawn)
        (trained,) = task.tables(policy)
        return Found(read_lines(run.metrics)[0]["loss"], math.log(2), farthest(start, best), farthest(trained, best))

    return Case(
        "iterative-dpo", f"reference: {reference}, β {beta}", "online pairs", "ln 2",
        f"{optimum}, in expectation over pairs and labels",
        "two rounds of 300 pairs of one-token responses, labelled by a Bradley–Terry judge; against the exact "
        "minimiser on the pairs drawn", LOG_POLICY, 0.05, run,
    )  # fmt: skip


def online_cases() -> list[Case]:
    return [
        sampled(
            "online-dpo", "a Bradley–Terry judge", BANDIT, (0.5, 1.0), online_dpo, start="ln 2", start_key="loss",
            optimum="π_ref·exp(r/β)/Z", tolerance=0.02, group="online pairs",
            tested="six responses of one token; the judge adds Gumbel noise to the reward and ranks two responses",
        ),
        online_dpo_without_noise(0.5),
        iterative_case("start", 0.5),
        iterative_case("previous", 1.0),
    ]  # fmt: skip
