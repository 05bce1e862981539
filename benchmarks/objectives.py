"""Train every objective on a task whose optimum is known, and write docs/objectives.md.

    python benchmarks/objectives.py          (or: make objectives)

The cases are those of tests/test_optima.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
os.environ["HF_HUB_OFFLINE"] = "1"

import torch  # noqa: E402

from optima import CASES  # noqa: E402
from optimum_case import Case, Found, Group  # noqa: E402

PAGE = ROOT / "docs" / "objectives.md"
COLUMNS = ("objective", "loss at initialisation", "measured", "optimum", "tested on", "error before → after")
PREFACE = """\
# Objectives and their optima

Every method of `preflab train`, on a task whose optimum is known. Each row trains with the function that the command
calls, on a language model of six tokens whose responses can all be listed, and compares the log-probabilities of these
responses with those of theory. `tests/test_optima.py` asserts every row; `make objectives` (one to two minutes on one
CPU core) trains them all and writes this page.

How to read a row:

- **loss at initialisation**: what theory says of the first step, where the policy is the reference, as a formula and a
  number; **measured**: the first line of the run's `metrics.jsonl`. Methods whose first loss is a surrogate without
  meaning show the KL from the reference instead.
- **optimum**: where training must end. π_ref is the reference, r the reward, p the share of comparisons that a response
  wins, Δ the log-ratio of policy and reference summed over tokens, h = Δ_w − Δ_l, n the tokens of a response, ℓ its
  mean log-probability a token. Methods on a fixed data set know r through Bradley–Terry labels,
  P(i ≻ j) = σ(r_i − r_j). "numerical": there is no closed form, and the formula, written a second time in float64
  (`tests/pair_optima.py`), is minimised over all policies.
- **none**: the objective has no finite optimum. Then the direction is tested, and that the margin goes on growing: the
  error is the early margin as a share of the late one, which would be 1 had training come to rest (IPO, put through
  the same steps, is at 0.98 or more). Where a reward is maximised without a bound, the error is what is left of it.
- **error before → after**: of the untrained and of the trained policy, the tolerance of the test, and what is compared.
  Where a row trains several β, the largest error.

Reward and KL of a trained policy are enumerated, never sampled. The frontier, the largest reward that any policy has at
a KL, is that of π* over all β. The tests hold the policies of DPO, PPO, RLOO, REINFORCE and online DPO against it: none
lies above, none more than 0.01 below, and between two β the slope lies between them.

Seeds are fixed. Another machine or release of PyTorch rounds differently, which changes the later digits of an error.
"""
NOTES = """
What follows from the rows:

- **GRPO and RLOO do not aim at the same policy.** RLOO, REINFORCE and PPO with the KL in the reward end at
  π_ref·exp(r/β)/Z. GRPO divides rewards by the deviation of their group and differentiates k3, which follows the
  forward KL(π_ref‖π): on responses of one token it rests at π = β·π_ref/(β − A), A the expected standardised advantage
  (here, as in its paper, with one step a rollout). Dr. GRPO with a KL in the loss rests where β would be larger by
  G/(G − 1), as a response is in the mean it is compared with.
- **DPO on labels without noise has no optimum, and neither has online DPO with a reward that ranks**: both need labels
  that sometimes go the other way. IPO, hinge, EXO, cDPO and SPPO stop at a finite margin even then.
- **SimPO's γ does not add to the margin**: labels of both directions ask for the lead γ, so the margin at rest is the
  root of p·σ(γ − d) = (1 − p)·σ(γ + d), which is logit p for γ = 0 alone.
- **BCO needs balanced marks**: δ is the mean of βΔ, so βΔ = δ + logit p holds only where logit p averages to 0.
  Elsewhere δ and the log-ratios drift together until π has no mass left to give, and end off logit p.
- **Iterative DPO against the previous round** tilts further each round, to π_ref·exp(R·r/β); against the start it does
  not.
"""


def row(case: Case, found: Found) -> str:
    error = f"{figure(found.untrained)} → {figure(found.error)} (≤ {case.tolerance:g}): {case.measure}"
    theory = case.start if case.start.startswith(("0", "KL")) else f"{case.start} = {found.start_in_theory:.6f}"
    measured = f"{found.start + 0.0:.6f}".replace("-0.000000", "0.000000")
    return f"| {' | '.join((case.name, theory, measured, case.optimum, case.tested, error))} |"


def figure(value: float) -> str:
    return f"{value:.2g}" if value >= 0.01 else f"{value:.0e}".replace("e-0", "e-")


def main() -> None:
    torch.set_num_threads(1)
    rows: dict[str, list[str]] = {group: [] for group in get_args(Group)}
    for case in CASES:
        with TemporaryDirectory() as folder:
            found = case.run(Path(folder))
        rows[case.group].append(row(case, found))
        print(rows[case.group][-1], flush=True)
    head = f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}\n"
    tables = [f"\n## {group.capitalize()}\n\n{head}" + "\n".join(lines) + "\n" for group, lines in rows.items()]
    PAGE.write_text(PREFACE + "".join(tables) + NOTES, encoding="utf-8")


if __name__ == "__main__":
    main()
