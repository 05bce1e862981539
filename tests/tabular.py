"""Policies as tables of log-probabilities, in float64 numpy: optima and frontiers from formulas, with no code of
preflab's in them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy.optimize import brentq, minimize

Array = np.ndarray


def log_softmax(logits: Array) -> Array:
    return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)


def softplus(x: Array) -> Array:
    """−log σ(−x)."""
    return np.logaddexp(0.0, x)


def tilted(reference: Array, reward: Array, beta: float) -> Array:
    """log π*, π* = π_ref·exp(r/β)/Z: what maximises E r − β·KL(π‖π_ref) over all policies."""
    return log_softmax(reference + reward / beta)


def kl_of(logprob: Array, reference: Array) -> float:
    """KL(π‖π_ref) in nats."""
    return float(np.exp(logprob) @ (logprob - reference))


def reward_of(logprob: Array, reward: Array) -> float:
    """E r."""
    return float(np.exp(logprob) @ reward)


def frontier(kl_nats: float, reference: Array, reward: Array) -> float:
    """The largest E r that any policy has at this KL: that of the π* which has it, or of the best response alone."""

    def excess(log_beta: float) -> float:
        return kl_of(tilted(reference, reward, np.exp(log_beta)), reference) - kl_nats

    if excess(-8.0) <= 0:
        return float(reward.max())
    return reward_of(tilted(reference, reward, np.exp(brentq(excess, -8.0, 12.0, xtol=1e-13))), reward)


def lost_share(logprob: Array, reference: Array, reward: Array, beta: float) -> float:
    """(J* − J)/(J* − J_ref) with J = E r − β·KL: the share of what can be gained that a policy leaves."""

    def objective(policy: Array) -> float:
        return reward_of(policy, reward) - beta * kl_of(policy, reference)

    best = objective(tilted(reference, reward, beta))
    return (best - objective(logprob)) / (best - objective(reference))


def total_variation(first: Array, second: Array) -> float:
    """½·Σ|p − q| of two tables of log-probabilities."""
    return 0.5 * float(np.abs(np.exp(first) - np.exp(second)).sum())


def farthest(first: Array, second: Array) -> float:
    """The largest |difference|."""
    return float(np.abs(np.asarray(first) - np.asarray(second)).max())


def minimiser(objective: Callable[[Array], float], start: Array, *, kinks: bool = False) -> Array:
    """Where a function is least, near `start`: by BFGS; one with kinks by a downhill simplex, again until it stays."""
    if not kinks:
        return np.asarray(minimize(objective, start, method="BFGS", options={"gtol": 1e-8}).x)
    point = start
    for _ in range(50):
        options = {"xatol": 1e-9, "fatol": 1e-15, "maxiter": 4000}
        found = minimize(objective, point, method="Nelder-Mead", options=options).x
        moved, point = farthest(found, point), found
        if moved < 1e-6:
            return np.asarray(point)
    raise AssertionError("the minimiser does not come to rest")


@dataclass(frozen=True)
class Scores:
    """What a loss on pairs may know of responses, an entry each."""

    logprob: Array
    reference: Array
    tokens: Array

    @property
    def logratio(self) -> Array:
        return self.logprob - self.reference

    @property
    def mean_logprob(self) -> Array:
        return self.logprob / self.tokens

    @property
    def mean_logratio(self) -> Array:
        return self.logratio / self.tokens

    def __getitem__(self, rows: Array) -> Scores:
        return Scores(self.logprob[rows], self.reference[rows], self.tokens[rows])


NaiveLoss = Callable[[Scores, Scores], Array]
"""(chosen, rejected) → a value a pair."""


def mean_loss(loss: NaiveLoss, scores: Scores, pairs: Sequence[tuple[int, int]]) -> float:
    """Over pairs of indices, chosen first."""
    chosen, rejected = np.array(pairs).T
    return float(loss(scores[chosen], scores[rejected]).mean())


def best_policy(loss: NaiveLoss, before: Scores, pairs: Sequence[tuple[int, int]], *, kinks: bool = False) -> Array:
    """log π of the policy that minimises the mean loss; `before` holds all responses there are."""

    def objective(logits: Array) -> float:
        return mean_loss(loss, replace(before, logprob=log_softmax(logits)), pairs)

    return log_softmax(minimiser(objective, before.reference, kinks=kinks))


@dataclass(frozen=True)
class Tree:
    """An autoregressive policy over responses of some tokens: a table of next-token log-probabilities a prefix."""

    states: Array
    """[response, step]: which prefix stands before the token."""
    tokens: Array
    """[response, step]."""
    mask: Array
    """[response, step]: 1 inside the response."""

    @staticmethod
    def of(responses: Sequence[tuple[int, ...]]) -> Tree:
        longest = max(map(len, responses))
        prefixes = sorted({response[:n] for response in responses for n in range(len(response))})
        states, tokens, mask = (np.zeros((len(responses), longest), dtype=int) for _ in range(3))
        for row, response in enumerate(responses):
            for step, token in enumerate(response):
                states[row, step], tokens[row, step] = prefixes.index(response[:step]), token
                mask[row, step] = 1
        return Tree(states, tokens, mask)

    def next_token(self, logprob: Array, vocabulary: int) -> Array:
        """log π(token | prefix) [prefix, token] of a policy given by log π of each response."""
        mass = np.zeros((self.states.max() + 1, vocabulary))
        inside = self.mask.astype(bool)
        rows = np.broadcast_to(np.arange(len(logprob))[:, None], inside.shape)
        np.add.at(mass, (self.states[inside], self.tokens[inside]), np.exp(logprob)[rows[inside]])
        return np.log(mass / mass.sum(1, keepdims=True))

    def of_tokens(self, table: Array) -> Array:
        """log π of each token [response, step]."""
        return table[self.states, self.tokens] * self.mask


def group_advantages(rewards: Array, logprob: Array, group: int) -> Array:
    """E[(r − mean)/(std + 1e-6) of the first response to a prompt, the others drawn from π], one a response."""
    values, which = np.unique(rewards, return_inverse=True)
    share = np.bincount(which, weights=np.exp(logprob))
    others = np.array(list(product(range(len(values)), repeat=group - 1)))
    weight = share[others].prod(1)
    expected = []
    for value in values:
        groups = np.column_stack([np.full(len(others), value), values[others]])
        differ = np.ptp(groups, axis=1) > 0
        advantage = (value - groups.mean(1)) / (groups.std(1, ddof=1) + 1e-6)
        expected.append(float(weight @ np.where(differ, advantage, 0.0)))
    return np.array(expected)[which]


def grpo_fixed_point(
    responses: Sequence[tuple[int, ...]], reference: Array, reward: Array, *, vocabulary: int, group: int, beta: float
) -> Array:
    """log π of each response where GRPO's expected step on policy is 0: advantages over the standard deviation of a
    group, k3 in the loss, both as means over the tokens of a response.

        Σ_y π(y)/n_y · Σ_t (A(y) + β·(π_ref/π(y_t) − 1))·∇log π(y_t) = 0,     A(y) = E[Â of y in a group drawn from π]

    −∇k3 = (π_ref/π − 1)·∇log π: for responses of one token the penalty's part is −β·∇KL(π_ref‖π), and the equation
    reads π = β·π_ref/(β − A).
    """
    tree = Tree.of(responses)
    reference_tokens = tree.of_tokens(tree.next_token(reference, vocabulary))
    table = tree.next_token(reference, vocabulary)
    for _ in range(20_000):
        tokens = tree.of_tokens(table)
        logprob = tokens.sum(1)
        pull = group_advantages(reward, logprob, group)[:, None] + beta * np.expm1(reference_tokens - tokens)
        weight = pull * tree.mask * (np.exp(logprob) / tree.mask.sum(1))[:, None]
        step = np.zeros_like(table)
        np.add.at(step, (tree.states, tree.tokens), weight)
        step -= np.exp(table) * step.sum(1, keepdims=True)  # ∇log π = onehot − π
        if np.abs(step).max() < 1e-9:
            return logprob
        table = log_softmax(table + 4.0 * step)
    raise AssertionError("GRPO's fixed point was not found")
