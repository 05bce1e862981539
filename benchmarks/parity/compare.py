"""Join what both sides wrote with the naive formulas, and write the table.

python compare.py FOLDER DOCUMENT        exits with 1 where a difference is not explained
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cases
import naive_side
from cases import Case, Step

Results = Mapping[str, Mapping[str, Sequence[float]]]

FLOAT64, FLOAT32 = 1e-10, 2e-4
"""Up to where numbers agree; a difference is relative to the largest element, or to FLOOR where that is smaller."""
FLOOR = 1e-3


@dataclass(frozen=True)
class Gap:
    """How far two sides are apart."""

    value: float
    gradient: float | None
    """None: nothing is differentiated."""

    @property
    def worst(self) -> float:
        return max(self.value, self.gradient or 0.0)

    def __str__(self) -> str:
        return f"{_short(self.value)} | {'–' if self.gradient is None else _short(self.gradient)}"


def gap(ours: Results, theirs: Results, case: Case, *, other: str | None = None) -> Gap:
    """The largest over the points of a case, but for those excused. `other`: the case of theirs, where another."""
    points = [name for name in cases.FAMILIES[_family(case)][1] if name not in case.excuses]
    both = [(ours[f"{case.name} | {name}"], theirs[f"{other or case.name} | {name}"]) for name in points]
    gradients = [far(a["gradient"], b["gradient"]) for a, b in both if b["gradient"]]
    return Gap(max(far(a["value"], b["value"]) for a, b in both), max(gradients) if gradients else None)


def far(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The largest difference of an element, relative to the largest element."""
    assert len(ours) == len(theirs)
    size = max(FLOOR, *map(abs, theirs))
    worst = max(abs(a - b) for a, b in zip(ours, theirs, strict=True)) / size
    return math.inf if math.isnan(worst) else worst


def step_gap(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> Gap:
    """Of a first step: the gradient of all parameters as one vector."""
    assert ours["gradient"].keys() == theirs["gradient"].keys()
    vectors = [[x for name in sorted(side["gradient"]) for x in side["gradient"][name]] for side in (ours, theirs)]
    return Gap(far(ours["value"], theirs["value"]), far(*vectors))


def _family(case: Case) -> str:
    return next(name for name, (members, _) in cases.FAMILIES.items() if case in members)


def _short(number: float) -> str:
    return (
        "0" if number == 0 else "∞" if math.isinf(number) else f"{number:.0e}".replace("e-0", "e-").replace("e+0", "e+")
    )


@dataclass
class Report:
    """The document as it grows, and what is left unexplained."""

    ours: Mapping[str, Any]
    trl: Mapping[str, Any]
    naive: Results
    lines: list[str]
    unexplained: list[str]

    def say(self, *lines: str) -> None:
        self.lines += lines

    def formulas(self) -> None:
        """One row an objective."""
        differences: list[str] = []
        for case in (case for members, _ in cases.FAMILIES.values() for case in members if not case.only_naive):
            exact = gap(self.ours["results"], self.naive, case)
            single = gap(self.ours["float32"], self.naive, case)
            self.hold(exact.worst <= FLOAT64, f"{case.name}: {exact} from the naive formula")
            self.hold(single.worst <= FLOAT32, f"{case.name}: {single} from the naive formula in float32")
            theirs = "not there | | |"
            if case.trl is not None:
                told, found = case.trl, gap(self.ours["results"], self.trl["results"], case)
                limit = FLOAT32 if "float32" in told else FLOAT64
                expected = self.hold((found.worst > limit) == bool(case.differs), f"{case.name}: {found} from TRL")
                theirs = f"{_told(told)} | {found} | {_verdict(case.differs, expected)}"
                if case.differs:
                    proof = gap(self.trl["results"], self.naive, case, other=case.same_as)
                    self.hold(proof.worst <= limit, f"{case.name}: {proof} from its explanation, {case.same_as}")
                    differences.append(
                        f"- **{case.name}**: {case.differs}. {_proof('the naive formula of', case.same_as, proof)}"
                    )
            self.say(f"| {case.name} | {exact} | {_short(single.worst)} | {theirs} |")
            differences += [f"- **{case.name}**, point “{name}”: {why}." for name, why in case.excuses.items()]
        self.say("", "What differs, and where a point is left out of the table:", "", *_unique(differences))

    def steps(self) -> None:
        """One row a trainer."""
        differences: list[str] = []
        for step in (step for step in cases.STEPS if step.trl is not None):
            assert step.trl is not None
            ours, theirs = self.ours["steps"][step.name], self.trl["steps"][step.name]
            found = step_gap(ours, theirs)
            same_texts = _same_texts(ours, theirs, reads_more=step.trl["trainer"] == "KTOTrainer")
            self.hold(same_texts, f"{step.name}: the token ids are not TRL's")
            shown = Gap(0.0, found.gradient) if step.value_differs_alone else found
            differs = "" if step.value_differs_alone else step.differs
            expected = self.hold((shown.worst > FLOAT32) == bool(differs), f"{step.name}: {found} from TRL")
            verdict = _verdict(differs, expected, "gradient agrees" if step.value_differs_alone else "agrees")
            self.say(f"| {step.name} | {_told(step.trl)} | {found} | {verdict} |")
            if step.differs:
                differences.append(f"- **{step.name}**: {step.differs}. {self.step_proof(step)}".rstrip())
        self.say("", "What differs:", "", *differences)

    def step_proof(self, step: Step) -> str:
        if not step.same_as:
            return ""
        proof = step_gap(self.ours["steps"][step.same_as], self.trl["steps"][step.name])
        self.hold(proof.worst <= FLOAT32, f"{step.name}: {proof} from its explanation, {step.same_as}")
        return _proof("putting our pieces together as", step.same_as, proof)

    def hold(self, good: bool, complaint: str) -> bool:
        if not good:
            self.unexplained.append(complaint)
        return good


def _verdict(differs: str, explained: bool, agreement: str = "agrees") -> str:
    return "**not explained**" if not explained else "differs" if differs else agreement


def _proof(what: str, name: str, found: Gap) -> str:
    gradients = "" if found.gradient is None else f", gradients to {_short(found.gradient)}"
    return f"Proof: {what} “{name}” gives TRL's values to {_short(found.value)}{gradients}."


def _told(told: Mapping[str, Any]) -> str:
    """`DPOTrainer` sigmoid."""
    kind = told.get("loss_type", "")
    names = [*(kind if isinstance(kind, list) else [kind]), told.get("f_divergence_type", "")]
    return f"`{told['trainer']}` {', '.join(name for name in names if name)}".strip()


def _same_texts(ours: Mapping[str, Any], theirs: Mapping[str, Any], *, reads_more: bool) -> bool:
    """Whether both trained on the same token ids; TRL's KTO reads its mismatched responses beside them."""
    mine, other = ({tuple(row) for row in side["rows"]} for side in (ours, theirs))
    return mine < other if reads_more else mine == other


def _unique(lines: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(lines))


HEAD = """# Parity with other implementations

Written by `benchmarks/parity/run.sh`; don't edit. Ours is held against two others:

- **naive**: every formula once more as the papers write it, in 60-digit decimal arithmetic with numerical derivatives
  (`benchmarks/parity/naive.py`, which imports nothing of preflab; `tests/test_parity.py` repeats this comparison);
- **TRL {trl}**, its own code in an environment of its own (transformers {transformers}, torch {torch}).

A difference is the largest of an element, relative to the largest element of that value or gradient (or to 10⁻³, where
that is smaller), over all points: usual ones, policy = reference, and far ones with log-ratios of hundreds of nats,
responses of unequal lengths throughout. Gradients are those by each log-probability, score or logit put in.

## Objectives

In float64; the fourth column is ours in float32 against naive, value or gradient, whichever is worse. TRL's columns
come from the loss method of a real trainer, whose language model is replaced by the log-probabilities at hand.
TRL 1.16 has no PPO, no BCO on single responses and no DPOP, χPO or k2: there naive stands alone, and so it does for
the supervised parts of CPO and ORPO, which TRL computes from logits: the first steps below have them. TRL computes the
α-divergence, ORPO's odds, EXO's ε and normalised advantages in float32, whatever it is given. `luspo` with
one ratio a token is seq-mean-token-sum.

| objective | naive: values | gradients | float32 | TRL | values | gradients | |
|---|---|---|---|---|---|---|---|"""

STEPS_HEAD = """
## First steps of whole trainers

Both libraries load the same tiny GPT-2 (2 blocks of width 16, random weights) and the same six texts in float32, and
train for one step through their real entry points: tokenisation, batching, reference, loss, gradient by every
parameter. Ours works in micro-batches, TRL in one. The token ids are the same in every row. The group methods train
on responses that preflab sampled and TRL is handed in place of its own; truncated responses pay no penalty here, as
TRL's GRPO and RLOO know none.

| trainer | TRL | loss | gradient | |
|---|---|---|---|---|"""


def main(folder: Path, document: Path) -> int:
    ours, trl = (json.loads((folder / f"{name}.json").read_text()) for name in ("ours", "trl"))
    naive = cases.everywhere(naive_side.FAMILIES, lambda case: True)
    report = Report(ours, trl, {name: asdict(result) for name, result in naive.items()}, [], [])
    report.say(HEAD.format(**trl["versions"]))
    report.formulas()
    report.say(STEPS_HEAD)
    report.steps()
    if report.unexplained:
        report.say("", "## Not explained", "", *(f"- {line}" for line in report.unexplained))
    text = "\n".join(report.lines) + "\n"
    document.write_text(text)
    print(text)
    return 1 if report.unexplained else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
