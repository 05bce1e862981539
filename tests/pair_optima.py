"""Losses on preference pairs, held to their optima."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import brentq

from enumerable import letters_policy, run_folder
from optimum_case import (
    EARLY,
    LENGTHS,
    LETTERS,
    LOG_POLICY,
    ODDS,
    ODDS_REWARD,
    ONE_TOKEN,
    PROBABILITIES,
    PROMPT,
    TWO_TOKENS,
    Case,
    Found,
    Responses,
    constant,
    falling,
    logit,
    logprobs,
    point,
    worst,
)
from preflab.config import pair_losses as losses
from preflab.config import preference as methods
from preflab.config.preference import Preference
from preflab.config.training import Batch
from preflab.data.encode import Tree
from preflab.runs import JSON, read_lines
from preflab.training.preference import train_preference
from tabular import Array, NaiveLoss, Scores, best_policy, farthest, log_softmax, mean_loss, minimiser, softplus, tilted

# Preference pairs: how often response i won against response j.

Wins = Mapping[tuple[int, int], int]

EVERY_PAIR: Wins = {(i, j): ODDS[i] for i in range(6) for j in range(6) if i != j}
TWO_PAIRS: Wins = {(0, 1): 3, (1, 0): 1, (2, 3): 2, (3, 2): 1}
THREE_PAIRS: Wins = TWO_PAIRS | {(4, 5): 4, (5, 4): 1}
FLIPPED_PAIRS: Wins = {(0, 1): 7, (1, 0): 3, (2, 3): 3, (3, 2): 2}
"""A tenth of the labels flipped: ¾ becomes 0.7, and ⅝ becomes 0.6."""
ONE_WAY: Wins = {(0, 1): 1, (2, 3): 1}

RING_ODDS = tuple(1 + (index * 7 % 5 < 2) for index in range(len(TWO_TOKENS)))
RING: Wins = {
    pair: RING_ODDS[pair[0]]
    for i in range(len(TWO_TOKENS))
    for j in ((i + 1) % 31, (i + 12) % 31)
    for pair in ((i, j), (j, i))
}
"""All 31 responses of at most two tokens, in a ring with chords."""

ALL_TWO_TOKENS = "all 31 responses of at most two tokens, each compared with four others in Bradley–Terry proportions"
ALL_ONE_TOKEN = "all pairs of six responses of one token, wins in Bradley–Terry proportions"
PAIRS_APART = "pairs of one-token responses that share none, so each margin is free; wins 3 : 1 and 2 : 1"
FREE_SCORES = "two pairs of four of the six one-token responses, so each log-ratio is free; wins 3 : 1 and 2 : 1"
LENGTHS_APART = "three pairs of responses of 1 to 4 tokens that share none; wins 3 : 1, 2 : 1 and 4 : 1"


def rows_of(wins: Wins) -> list[tuple[int, int]]:
    return [pair for pair, count in wins.items() for _ in range(count)]


def share_won(wins: Wins, i: int, j: int) -> float:
    return wins.get((i, j), 0) / (wins.get((i, j), 0) + wins.get((j, i), 0))


def one_side(wins: Wins) -> list[tuple[int, int]]:
    """Each pair once."""
    return sorted({(min(pair), max(pair)) for pair in wins})


def trees_of(responses: Responses, wins: Wins, prompt: tuple[int, ...] = PROMPT) -> list[Tree]:
    return [Tree(f"{i} beats {j}", prompt, (responses[i], responses[j])) for i, j in rows_of(wins)]


@dataclass(frozen=True)
class Fitted:
    """A policy trained on pairs, as tables over its responses."""

    first: JSON
    scores: Scores


def fit_pairs(
    method: type[Preference], loss: Any, responses: Responses, wins: Wins, folder: Path, *, steps: int, rate: float,
    still: bool = False, width: int = 16, name: str = "run",
) -> Fitted:  # fmt: skip
    """Train a policy through `train_preference`; all pairs in each step. `still`: at a rate that doesn't fall."""
    policy, pairs = letters_policy(spread=4.0, width=width), trees_of(responses, wins)
    reference = logprobs(policy, responses)
    settings = method(
        epochs=steps, batch=Batch(size=len(pairs), micro=len(pairs)), evaluations=1, loss=loss,
        optimizer=constant(rate) if still else falling(rate),
    )  # fmt: skip
    run = run_folder(folder / name)
    train_preference(policy, pairs, settings, run, seed=0, log_every=1)
    lengths = np.array([len(response) for response in responses])
    return Fitted(read_lines(run.metrics)[0], Scores(logprobs(policy, responses), reference, lengths))


def untrained(fitted: Fitted) -> Scores:
    return replace(fitted.scores, logprob=fitted.scores.reference)


Measured = Callable[[Scores, Wins], Array]
"""What theory speaks of: log-probabilities, margins or log-ratios, in the loss's own unit."""


def paired(
    method: str, kind: type[Preference], loss: Any, naive: NaiveLoss, *, start: str, optimum: str, tested: str,
    responses: Responses, wins: Wins, measure: str, of: Measured, theory: Measured, variant: str = "",
    tolerance: float = 0.01, steps: int = 120, rate: float = 0.02, width: int = 16,
) -> Case:  # fmt: skip
    """`of` the trained policy against `theory`, which is told the untrained one."""

    def run(folder: Path) -> Found:
        fitted = fit_pairs(kind, loss, responses, wins, folder, steps=steps, rate=rate, width=width)
        before = untrained(fitted)
        expected = theory(before, wins)
        return Found(
            start=float(fitted.first["loss"]),
            start_in_theory=mean_loss(naive, before, rows_of(wins)),
            untrained=farthest(of(before, wins), expected),
            error=farthest(of(fitted.scores, wins), expected),
        )

    return Case(method, variant, "paired", start, optimum, tested, measure, tolerance, run)


def margins(values: Callable[[Scores], Array]) -> Measured:
    """Differences of a score between the two responses of each pair."""
    return lambda scores, wins: np.array([values(scores)[i] - values(scores)[j] for i, j in one_side(wins)])


def by_share(expected: Callable[[float], float]) -> Measured:
    """What theory says of a pair from the share of comparisons its first response wins."""
    return lambda before, wins: np.array([expected(share_won(wins, i, j)) for i, j in one_side(wins)])


def free(values: Callable[[Scores], Array]) -> Measured:
    """A score of each response in a pair."""
    return lambda scores, wins: np.array([values(scores)[k] for pair in one_side(wins) for k in pair])


def by_own_share(expected: Callable[[float], float]) -> Measured:
    """What theory says of a response from the share of comparisons it wins."""

    def theory(before: Scores, wins: Wins) -> Array:
        shares = [share_won(wins, *pair) for i, j in one_side(wins) for pair in ((i, j), (j, i))]
        return np.array([expected(share) for share in shares])

    return theory


def policy_itself(scores: Scores, wins: Wins) -> Array:
    return scores.logprob


def probabilities(scores: Scores, wins: Wins) -> Array:
    return np.exp(scores.logprob)


def numeric(naive: NaiveLoss, *, kinks: bool = False) -> Measured:
    """The policy that minimises the formula, found on its table without preflab."""
    return lambda before, wins: best_policy(naive, before, rows_of(wins), kinks=kinks)


RING_REWARD = np.log(np.array(RING_ODDS, dtype=float))


def f_dpo_case(divergence: str, slope: Callable[[Array], Array], formula: str, highest: float, beta: float) -> Case:
    """f'(π*/π_ref) = (r − c)/β, c by bisection such that π* sums to 1; `highest` is the limit of f'."""

    def inverse(value: float) -> float:
        return float(brentq(lambda log_u: slope(np.exp(log_u)) - value, -200.0, 200.0, xtol=1e-13))

    def theory(before: Scores, wins: Wins) -> Array:
        def logratio(c: float) -> Array:
            return np.array([inverse((r - c) / beta) for r in ODDS_REWARD])

        least = float(ODDS_REWARD.max()) - beta * highest * (1 - 1e-9) if math.isfinite(highest) else -5.0
        c = brentq(lambda c: np.logaddexp.reduce(before.reference + logratio(c)), least, 10.0, xtol=1e-13)
        return before.reference + logratio(c)

    def naive(c: Scores, r: Scores) -> Array:
        return softplus(-beta * (slope(np.exp(c.logratio)) - slope(np.exp(r.logratio))))

    return paired(
        "f-dpo", methods.FDPO, losses.FDPOLoss(beta=beta, divergence=divergence), naive,  # type: ignore[arg-type]
        variant=divergence, start="ln 2", optimum=f"f'(π/π_ref) = (r − c)/β, f' = {formula}", tested=ALL_ONE_TOKEN,
        responses=ONE_TOKEN, wins=EVERY_PAIR, measure=LOG_POLICY, of=policy_itself, theory=theory,
    )  # fmt: skip


def growing(
    method: str, kind: type[Preference], loss: Any, naive: NaiveLoss, *, variant: str, start: str, optimum: str,
    beta: float, chosen: int, rejected: int, rate: float = 0.01,
) -> Case:  # fmt: skip
    """No finite optimum: the margin grows on and on. `chosen` and `rejected`: the sign of their log-ratios, 0 where
    theory says nothing."""

    def run(folder: Path) -> Found:
        def after(steps: int) -> tuple[Fitted, float]:
            fitted = fit_pairs(
                kind, loss, LETTERS, ONE_WAY, folder, steps=steps, rate=rate, still=True, name=str(steps)
            )
            ratio = fitted.scores.logratio
            right = all(ratio[i] * chosen >= 0 and ratio[j] * rejected >= 0 for i, j in ONE_WAY)
            return fitted, beta * float(margins(lambda s: s.logratio)(fitted.scores, ONE_WAY).min()) if right else 0.0

        (fitted, early), (_, late) = after(40), after(240)
        return Found(
            start=float(fitted.first["loss"]),
            start_in_theory=mean_loss(naive, untrained(fitted), rows_of(ONE_WAY)),
            untrained=1.0,
            error=early / late if late > 0 else math.inf,
        )

    tested = "two pairs of one-token responses, labels all one way; 40 and 240 steps at one rate"
    return Case(method, variant, "paired", start, optimum, tested, EARLY, 0.85, run)


def aot_theory(beta: float) -> Measured:
    """Over the margins of disjoint pairs, which are all the loss knows: both margins sorted, as in the paper."""

    def theory(before: Scores, wins: Wins) -> Array:
        pairs, rows = one_side(wins), rows_of(wins)
        at = [(pairs.index((min(row), max(row))), 1.0 if row in pairs else -1.0) for row in rows]
        which, sign = np.array([k for k, _ in at]), np.array([s for _, s in at])
        start = np.array([before.logprob[i] - before.logprob[j] for i, j in pairs])
        reference = np.sort(sign * start[which])

        def objective(point: Array) -> float:
            return float(softplus(-beta * (np.sort(sign * point[which]) - reference)).mean())

        return minimiser(objective, start, kinks=True)

    return theory


def simpo_margin(p: float, gamma: float) -> float:
    """d at which p·σ(γ − d) = (1 − p)·σ(γ + d): both labels ask for the lead γ. logit p where γ = 0."""
    a, q = math.exp(-gamma), 1 - p
    return math.log(((p - q) + math.sqrt((p - q) ** 2 + 4 * p * q * a * a)) / (2 * q * a))


def naive_dpo(beta: float, label_smoothing: float = 0.0) -> NaiveLoss:
    def loss(c: Scores, r: Scores) -> Array:
        x = beta * (c.logratio - r.logratio)
        return (1 - label_smoothing) * softplus(-x) + label_smoothing * softplus(x)

    return loss


def naive_rdpo(beta: float, e: float) -> NaiveLoss:
    def loss(c: Scores, r: Scores) -> Array:
        x = beta * (c.logratio - r.logratio)
        return ((1 - e) * softplus(-x) - e * softplus(x)) / (1 - 2 * e)

    return loss


def naive_exo(beta: float, e: float) -> NaiveLoss:
    def loss(c: Scores, r: Scores) -> Array:
        q = 1 / (1 + np.exp(-beta * (c.logratio - r.logratio)))
        return q * np.log(q / (1 - e)) + (1 - q) * np.log((1 - q) / e)

    return loss


def naive_dpop(beta: float, penalty: float) -> NaiveLoss:
    return lambda c, r: softplus(-beta * (c.logratio - r.logratio - penalty * np.maximum(0, -c.logratio)))


def naive_cpo(beta: float, weight: float) -> NaiveLoss:
    return lambda c, r: softplus(-beta * (c.logprob - r.logprob)) - weight * c.logprob


def naive_orpo(weight: float) -> NaiveLoss:
    def odds(scores: Scores) -> Array:
        p = np.exp(scores.mean_logprob)
        return p / (1 - p)

    return lambda c, r: -c.mean_logprob + weight * np.log(1 + odds(r) / odds(c))


def naive_sum(c: Scores, r: Scores) -> Array:
    return naive_dpo(0.5)(c, r) - 0.2 * c.mean_logprob


def dpo_frontier(betas: Sequence[float]) -> Case:
    def run(folder: Path) -> Found:
        found = []
        for beta in betas:
            fitted = fit_pairs(
                methods.DPO, losses.DPOLoss(beta=beta), ONE_TOKEN, EVERY_PAIR, folder, steps=120, rate=0.02,
                name=str(beta),
            )  # fmt: skip
            policy, reference = fitted.scores.logprob, fitted.scores.reference
            best = tilted(reference, ODDS_REWARD, beta)
            found.append(
                Found(
                    start=float(fitted.first["loss"]),
                    start_in_theory=mean_loss(naive_dpo(beta), untrained(fitted), rows_of(EVERY_PAIR)),
                    untrained=farthest(reference, best),
                    error=farthest(policy, best),
                    points=(point(policy, reference, ODDS_REWARD, beta),),
                )
            )
        return worst(found)

    return Case(
        "dpo", f"β {', '.join(map(str, betas))}", "paired", "ln 2", "π_ref·exp(r/β)/Z", ALL_ONE_TOKEN, LOG_POLICY, 0.01,
        run, on_frontier=True,
    )  # fmt: skip


def paired_cases() -> list[Case]:
    """Losses on pairs, in the order of `preflab train`."""
    lengths: dict[str, Any] = {"tested": LENGTHS_APART, "responses": LENGTHS, "wins": THREE_PAIRS}
    apart: dict[str, Any] = {"tested": PAIRS_APART, "responses": LETTERS, "wins": TWO_PAIRS}
    free_scores = apart | {"tested": FREE_SCORES}
    every: dict[str, Any] = {
        "tested": ALL_ONE_TOKEN, "responses": ONE_TOKEN, "wins": EVERY_PAIR, "measure": LOG_POLICY, "of": policy_itself,
    }  # fmt: skip
    sequences: dict[str, Any] = {
        "tested": ALL_TWO_TOKENS, "responses": TWO_TOKENS, "wins": RING, "measure": PROBABILITIES,
        "of": probabilities, "rate": 0.01, "width": 32, "tolerance": 0.01,
    }  # fmt: skip
    h, ratio = margins(lambda scores: scores.logratio), free(lambda scores: scores.logratio)
    h_mean = margins(lambda scores: scores.mean_logratio)

    def scaled(of: Measured, factor: float) -> Measured:
        return lambda scores, wins: factor * of(scores, wins)

    clean: dict[str, Any] = {"beta": 0.5, "variant": "labels all one way", "chosen": 0, "rejected": 0}
    slopes: list[tuple[str, Callable[[Array], Array], str, float]] = [
        ("reverse_kl", np.log, "ln u", math.inf),
        ("forward_kl", lambda u: 1 - 1 / u, "1 − 1/u", 1.0),
        ("jensen_shannon", lambda u: np.log(2 * u / (1 + u)), "ln(2u/(1 + u))", math.log(2)),
        ("alpha", lambda u: 2 * (1 - u**-0.5), "(1 − u^(−α))/α, α = ½", 2.0),
        ("chi_squared", lambda u: u - 1 + np.log(u), "u − 1 + ln u", math.inf),
    ]
    return [
        dpo_frontier((0.5, 1.0, 2.0)),
        paired(
            "dpo", methods.DPO, losses.DPOLoss(beta=0.5), naive_dpo(0.5), variant="sequences", start="ln 2",
            optimum="π_ref·exp(r/β)/Z", theory=lambda before, _: np.exp(tilted(before.reference, RING_REWARD, 0.5)),
            **sequences,
        ),
        growing(
            "dpo", methods.DPO, losses.DPOLoss(beta=0.5), naive_dpo(0.5), start="ln 2", optimum="none: h → ∞", **clean
        ),
        paired(
            "cdpo", methods.ConservativeDPO, losses.DPOLoss(beta=0.5, label_smoothing=0.1), naive_dpo(0.5, 0.1),
            start="ln 2", optimum="βh = logit((1 − ε)p + ε(1 − p))", measure="βh", of=scaled(h, 0.5),
            theory=by_share(lambda p: logit(0.9 * p + 0.1 * (1 - p))), **lengths,
        ),
        paired(
            "rdpo", methods.RobustDPO, losses.RobustDPOLoss(beta=0.5, label_smoothing=0.1), naive_rdpo(0.5, 0.1),
            variant="a tenth of the labels flipped", start="ln 2", optimum="βh = logit p, p of the clean labels",
            measure="βh", of=scaled(h, 0.5), theory=by_share(lambda p: logit((p - 0.1) / 0.8)), responses=LETTERS,
            wins=FLIPPED_PAIRS, tested="two pairs of one-token responses; flips turn p = ¾ and ⅝ into 0.7 and 0.6",
        ),
        growing(
            "rdpo", methods.RobustDPO, losses.RobustDPOLoss(beta=0.5, label_smoothing=0.1), naive_rdpo(0.5, 0.1),
            start="ln 2", optimum="none: h → ∞, loss → −∞", **clean,
        ),
        paired(
            "ipo", methods.IPO, losses.IPOLoss(tau=0.3), lambda c, r: (c.logratio - r.logratio - 1 / 0.6) ** 2,
            variant="sums", start="1/(4τ²)", optimum="h = (2p − 1)/(2τ)", measure="h, nats", of=h,
            theory=by_share(lambda p: (2 * p - 1) / 0.6), **lengths,
        ),
        paired(
            "ipo", methods.IPO, losses.IPOLoss(tau=0.5, average_tokens=True),
            lambda c, r: (c.mean_logratio - r.mean_logratio - 1) ** 2, variant="means over tokens", start="1/(4τ²)",
            optimum="Δ_w/n_w − Δ_l/n_l = (2p − 1)/(2τ)", measure="margin of the means, nats a token", of=h_mean,
            theory=by_share(lambda p: 2 * p - 1), **lengths,
        ),
        paired(
            "ipo", methods.IPO, losses.IPOLoss(tau=0.3), lambda c, r: (c.logratio - r.logratio - 1 / 0.6) ** 2,
            variant="labels all one way", start="1/(4τ²)", optimum="h = 1/(2τ), where DPO has none", measure="h, nats",
            of=h, theory=by_share(lambda p: 1 / 0.6), responses=LETTERS, wins=ONE_WAY,
            tested="two pairs of one-token responses, labels all one way",
        ),
        paired(
            "hinge", methods.Hinge, losses.HingeLoss(beta=0.5),
            lambda c, r: np.maximum(0, 1 - 0.5 * (c.logratio - r.logratio)), start="1",
            optimum="βh = 1 for every p > ½", measure="βh", of=scaled(h, 0.5), theory=by_share(lambda p: 1.0),
            **lengths, tolerance=0.03,
        ),
        paired(
            "exo", methods.EXO, losses.EXOLoss(beta=0.5, label_smoothing=0.05), naive_exo(0.5, 0.05),
            start="−ln 2 − ½·ln(ε(1 − ε))", optimum="βh = (2p − 1)·ln((1 − ε)/ε)", measure="βh", of=scaled(h, 0.5),
            theory=by_share(lambda p: (2 * p - 1) * math.log(0.95 / 0.05)), **lengths,
        ),
        paired(
            "aot", methods.AOT, losses.AOTLoss(beta=0.5),
            lambda c, r: softplus(-0.5 * (np.sort(c.logprob - r.logprob) - np.sort(c.reference - r.reference))),
            start="ln 2", optimum="numerical: margins of policy and reference sorted",
            measure="log π_w − log π_l, nats", of=margins(lambda scores: scores.logprob), theory=aot_theory(0.5),
            **apart, tolerance=0.03,
        ),
        paired(
            "ln-dpo", methods.LengthNormalisedDPO, losses.LengthNormalisedDPOLoss(beta=2.0),
            lambda c, r: softplus(-2 * (c.mean_logratio - r.mean_logratio)), start="ln 2",
            optimum="β(Δ_w/n_w − Δ_l/n_l) = logit p", measure="βh of the means", of=scaled(h_mean, 2.0),
            theory=by_share(logit), **lengths,
        ),
        *(f_dpo_case(*slope, beta=2.0) for slope in slopes),
        paired(
            "dpop", methods.DPOP, losses.DPOPLoss(beta=0.5, penalty=2.0), naive_dpop(0.5, 2.0), start="ln 2",
            optimum="numerical: convex in the logits, with kinks", theory=numeric(naive_dpop(0.5, 2.0), kinks=True),
            **every, tolerance=0.03,
        ),
        paired(
            "nca", methods.NCA, losses.NCALoss(beta=1.0),
            lambda c, r: softplus(-c.logratio) + softplus(c.logratio) / 2 + softplus(r.logratio) / 2, start="2·ln 2",
            optimum="βΔ = ln 2p, p the share of its wins", measure="βΔ", of=ratio,
            theory=by_own_share(lambda p: math.log(2 * p)), **free_scores,
        ),
        paired(
            "bco-pair", methods.BCOPair, losses.BCOPairLoss(beta=2.0),
            lambda c, r: softplus(-2 * c.logratio) + softplus(2 * r.logratio), start="2·ln 2", optimum="βΔ = logit p",
            measure="βΔ", of=scaled(ratio, 2.0), theory=by_own_share(logit), **free_scores,
        ),
        paired(
            "sppo", methods.SPPO, losses.SPPOLoss(beta=1.0),
            lambda c, r: (c.logratio - 0.5) ** 2 + (r.logratio + 0.5) ** 2, start="1/(2β²)", optimum="Δ = (p − ½)/β",
            measure="Δ, nats", of=ratio, theory=by_own_share(lambda p: p - 0.5), **free_scores,
        ),
        growing(
            "apo-zero", methods.APOZero, losses.APOZeroLoss(beta=0.5),
            lambda c, r: 1 / (1 + np.exp(0.5 * c.logratio)) + 1 / (1 + np.exp(-0.5 * r.logratio)), start="1",
            optimum="none: Δ_w up as far as π goes, Δ_l → −∞", beta=0.5, variant="", chosen=1, rejected=-1,
        ),
        growing(
            "apo-down", methods.APODown, losses.APODownLoss(beta=0.5),
            lambda c, r: 1 / (1 + np.exp(-0.5 * c.logratio)) + 1 / (1 + np.exp(0.5 * (c.logratio - r.logratio))),
            start="1", optimum="none: Δ_w → −∞, Δ_l → −∞ faster", beta=0.5, variant="", chosen=-1, rejected=-1,
        ),
        paired(
            "simpo", methods.SimPO, losses.SimPOLoss(beta=2.0, margin=0.5),
            lambda c, r: softplus(0.5 - 2 * (c.mean_logprob - r.mean_logprob)), start="−log σ(β(ℓ_w − ℓ_l) − γ)",
            optimum="d = β(ℓ_w − ℓ_l): p·σ(γ − d) = (1 − p)·σ(γ + d)", measure="d",
            of=scaled(margins(lambda scores: scores.mean_logprob), 2.0),
            theory=by_share(lambda p: simpo_margin(p, 0.5)), **lengths,
        ),
        paired(
            "cpo", methods.CPO, losses.CPOLoss(beta=0.5, sft_weight=0.0), naive_cpo(0.5, 0.0), variant="α = 0",
            start="−log σ(β·log(π_w/π_l))", optimum="exp(r/β)/Z: DPO with a uniform reference",
            theory=lambda before, _: log_softmax(ODDS_REWARD / 0.5), **every,
        ),
        paired(
            "cpo", methods.CPO, losses.CPOLoss(beta=0.5, sft_weight=0.2), naive_cpo(0.5, 0.2), variant="α = 0.2",
            start="−log σ(β·log(π_w/π_l)) − α·log π_w", optimum="numerical", theory=numeric(naive_cpo(0.5, 0.2)),
            **every,
        ),
        paired(
            "orpo", methods.ORPO, losses.ORPOLoss(weight=0.5), naive_orpo(0.5), start="−ℓ_w + λ·ln(1 + odds_l/odds_w)",
            optimum="numerical", theory=lambda *given: np.exp(numeric(naive_orpo(0.5))(*given)), **sequences,
        ),
        paired(
            "sum", methods.WeightedSum,
            losses.SumLoss(terms="dpo + 0.2*sft", dpo=losses.DPOLoss(beta=0.5)),
            naive_sum, variant="dpo + 0.2 × sft",
            start="ln 2 − 0.2·log π_ref(w)/n_w", optimum="numerical",
            theory=lambda *given: np.exp(numeric(naive_sum)(*given)), **sequences,
        ),
    ]  # fmt: skip
