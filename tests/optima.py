"""Every method, on a task whose optimum is known: what `test_optima.py` holds it to and `docs/objectives.md` shows.

Each case trains with the function that `preflab train` calls, on a language model of six tokens, and compares the
log-probabilities of all responses with those of theory (`tabular.py`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from enumerable import letters_policy, reward_model, run_folder
from optimum_case import (
    EARLY,
    LENGTHS,
    LETTERS,
    ODDS,
    ONE_TOKEN,
    PROBABILITIES,
    PROMPT,
    TWO_TOKENS,
    A,
    B,
    C,
    Case,
    D,
    Found,
    Responses,
    constant,
    falling,
    logit,
    logprobs,
)
from pair_optima import EVERY_PAIR, RING_ODDS, paired_cases, share_won, trees_of
from preflab.config import pair_losses as losses
from preflab.config import preference as methods
from preflab.config.preference import Unpaired
from preflab.config.training import SFT, Batch, Optimizer, Reward
from preflab.data.encode import Tree
from preflab.models.load import Policy
from preflab.runs import JSON, read_lines
from preflab.training.reward import scores_of_pairs, train_reward
from preflab.training.sft import train_sft
from preflab.training.unpaired import Judged, train_unpaired
from sampled_optima import gradient_cases, online_cases
from tabular import farthest

# Marked responses.


def marked(counts: Mapping[tuple[int, ...], tuple[int, int]], prompt: tuple[int, ...] = PROMPT) -> list[Judged]:
    """Each response as often desirable and undesirable as counted."""
    return [
        Judged(Tree(f"{response}", prompt, (response,)), desirable)
        for response, both in counts.items()
        for desirable, count in zip((True, False), both, strict=True)
        for _ in range(count)
    ]


def fit_marked(
    settings: Unpaired, examples: Sequence[Judged], folder: Path, *, steps: int, optimizer: Optimizer
) -> tuple[list[JSON], Policy, Policy]:
    """The log, the trained policy and the untrained one; all examples in each step."""
    policy, reference = letters_policy(spread=4.0), letters_policy(spread=4.0)
    size = len(examples)
    settings = replace(settings, epochs=steps, batch=Batch(size=size, micro=size), evaluations=1, optimizer=optimizer)
    run = run_folder(folder / str(steps))
    train_unpaired(policy, examples, settings, run, seed=0, log_every=1)
    return read_lines(run.metrics), policy, reference


def bco_case() -> Case:
    """Shares p and 1 − p of two kinds each, so that E logit p = 0: else δ, the mean of βΔ, would go on and on."""
    beta = 1.0
    counts = {(A,): (9, 3), (B,): (3, 9), (C,): (8, 4), (D,): (4, 8)}
    expected = np.array([logit(good / (good + bad)) for good, bad in counts.values()])

    def run(folder: Path) -> Found:
        lines, policy, reference = fit_marked(
            methods.BCO(loss=losses.BCOLoss(beta=beta)), marked(counts), folder, steps=150, optimizer=falling(0.02)
        )
        rewards = beta * (logprobs(policy, LETTERS) - logprobs(reference, LETTERS)) - lines[-1]["shift"]
        return Found(lines[0]["loss"], math.log(2), farthest(0 * expected, expected), farthest(rewards, expected))

    return Case(
        "bco", "", "unpaired", "ln 2", "βΔ − δ = logit p, p the share of its desirable marks (where E logit p = 0)",
        "four of the six one-token responses, desirable in ¾, ¼, ⅔ and ⅓ of their marks", "βΔ − δ", 0.01, run,
    )  # fmt: skip


def kto_case() -> Case:
    """p·λ_D against (1 − p)·λ_U: with λ_U = 2 a response that is desirable in 60 % of its marks goes down."""
    often, less = (4, 1), (3, 2)
    # Each prompt has responses of its own, as the reference point is read off the other's.
    tasks: dict[tuple[int, ...], Responses] = {PROMPT: ((A,), (B,)), (C, D): ((C,), (D,))}

    def run(folder: Path) -> Found:
        loss = losses.KTOLoss(beta=0.5, undesirable_weight=2.0)
        examples = [
            example
            for prompt, (up, down) in tasks.items()
            for example in marked({up: often, down: less}, prompt)
        ]  # fmt: skip

        def after(steps: int) -> tuple[float, float]:
            lines, policy, reference = fit_marked(
                methods.KTO(loss=loss), examples, folder, steps=steps, optimizer=constant(0.01)
            )
            rose, fell = np.array(
                [logprobs(policy, both, prompt) - logprobs(reference, both, prompt) for prompt, both in tasks.items()]
            ).T
            right = (rose > 0).all() and (fell < 0).all()
            return lines[0]["loss"], float((rose - fell).min()) if right else 0.0

        (start, early), (_, late) = after(40), after(240)
        # Half a mean of λ over the marks: 7 of 10 are desirable.
        return Found(start, 0.5 * (0.7 * 1 + 0.3 * 2), 1.0, early / late if late > 0 else math.inf)

    return Case(
        "kto", "", "unpaired", "½·E λ", "none: up where p·λ_D > (1 − p)·λ_U, else down, without end",
        "two prompts, two responses each, desirable in 80 % and 60 % of their marks, λ_U = 2·λ_D: the first goes up, "
        "the second down; 40 and 240 steps at one rate", EARLY, 0.85, run,
    )  # fmt: skip


# Demonstrations and the reward model.


def sft_case(responses: Responses, counts: Sequence[int], *, variant: str, tested: str) -> Case:
    def run(folder: Path) -> Found:
        policy = letters_policy(spread=4.0, width=32)
        before = logprobs(policy, responses)
        rows = [
            Tree(f"{response}", PROMPT, (response,))
            for response, count in zip(responses, counts, strict=True)
            for _ in range(count)
        ]
        settings = SFT(epochs=120, batch=Batch(size=len(rows), micro=len(rows)), evaluations=1, optimizer=falling(0.01))
        run = run_folder(folder / "run")
        train_sft(policy, rows, settings, run, seed=0, log_every=1)
        shares = np.array(counts) / sum(counts)
        tokens = float(np.dot(counts, [len(response) for response in responses]))
        return Found(
            start=read_lines(run.metrics)[0]["loss"],
            start_in_theory=-float(np.dot(counts, before)) / tokens,
            untrained=farthest(np.exp(before), shares),
            error=farthest(np.exp(logprobs(policy, responses)), shares),
        )

    return Case(
        "sft", variant, "supervised and reward", "−log π(y) a token", "π = the share of each response", tested,
        PROBABILITIES, 0.01, run,
    )  # fmt: skip


def reward_case() -> Case:
    """A head of zeros, so that all scores are equal at first."""
    wins = EVERY_PAIR

    def run(folder: Path) -> Found:
        model = reward_model(folder / "model", letters_policy(spread=4.0))
        with torch.no_grad():
            model.model.score.weight.zero_()
        pairs = trees_of(LENGTHS, wins)
        settings = Reward(
            epochs=150, batch=Batch(size=len(pairs), micro=len(pairs)), evaluations=1, optimizer=falling(0.02)
        )
        run = run_folder(folder / "run")
        train_reward(model, pairs, settings, run, seed=0, log_every=1)
        scores = np.asarray(scores_of_pairs(model, trees_of(LENGTHS, dict.fromkeys(wins, 1))))
        expected = np.array([logit(share_won(wins, *pair)) for pair in wins])
        return Found(
            start=read_lines(run.metrics)[0]["loss"],
            start_in_theory=math.log(2),
            untrained=farthest(0 * expected, expected),
            error=farthest(scores[:, 0] - scores[:, 1], expected),
        )

    return Case(
        "reward", "", "supervised and reward", "ln 2, at equal scores", "s_i − s_j = logit P(i ≻ j)",
        "all pairs of six responses of 1 to 4 tokens, wins in Bradley–Terry proportions", "s_i − s_j", 0.02, run,
    )  # fmt: skip


def unpaired_cases() -> list[Case]:
    return [kto_case(), bco_case()]


def supervised_cases() -> list[Case]:
    return [
        sft_case(
            ONE_TOKEN, ODDS, variant="", tested="six responses of one token, each as often as it should be likely"
        ),
        sft_case(TWO_TOKENS, RING_ODDS, variant="sequences", tested="31 responses of at most two tokens, likewise"),
        reward_case(),
    ]


CASES = (*paired_cases(), *unpaired_cases(), *supervised_cases(), *gradient_cases(), *online_cases())
