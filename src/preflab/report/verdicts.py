"""One sentence per question, and never more than its interval allows.

A difference is called one only where the whole 95 % interval lies on one side of 0; else "no difference found".
Arms are compared prompt by prompt on the seeds that both have, so luck that they share cancels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np

from preflab.report.statistics import Estimate, Matrix, estimate
from preflab.report.study import Arm, Point, Study
from preflab.report.wording import count, duration, interval, listing, number

Subject = Literal["equal KL", "reference", "proxy", "cost"]

GRID = 65  # KL values at which two curves are compared
MANY = 7  # arms from which on a page no longer compares each with each, nor names them all in one sentence


@dataclass(frozen=True)
class Verdict:
    """An answer; `difference` is what it rests on, null where the question has none or it could not be asked."""

    subject: Subject
    arms: tuple[str, ...]
    about: str  # the arms' titles
    question: str
    answer: str
    difference: Estimate | None

    @property
    def found(self) -> bool:
        """Whether there is something to say: a difference was found, or counted."""
        return self.subject == "cost" or bool(self.difference and self.difference.sign)

    def json(self) -> dict[str, object]:
        """The form in comparison.json."""
        difference = self.difference.json() if self.difference else None
        return {"question": self.question, "answer": self.answer, "difference": difference}


@lru_cache(maxsize=2)  # more than one chapter asks
def verdicts(study: Study) -> tuple[Verdict, ...]:
    """Every verdict that the study's points allow, oracles last within a question.

    At equal KL all arms are compared with each other, or, where they are many, all with the first one. An arm whose KL
    is a bound takes no part in that.
    """
    arms = sorted((arm for arm in study.trained if arm.final), key=lambda arm: arm.oracle)
    measured = [arm for arm in arms if not arm.kl_is_bound]
    pairs = sorted(
        combinations(measured, 2), key=lambda pair: (pair[0].oracle + pair[1].oracle, not dpo_and_ppo(*pair))
    )
    if len(measured) >= MANY:
        pairs = [pair for pair in pairs if measured[0] in pair or dpo_and_ppo(*pair)]
    found: list[Verdict | None] = [at_equal_kl(study, a, b) for a, b in pairs]
    found += [beats_reference(study, arm) for arm in arms]
    found += [proxy_misled(study, arm) for arm in arms]
    found.append(what_it_cost(arms))
    return tuple(verdict for verdict in found if verdict)


def dpo_and_ppo(a: Arm, b: Arm) -> bool:
    """The pair that most readers come for."""
    return {a.method, b.method} == {"dpo", "ppo"}


def at_equal_kl(study: Study, a: Arm, b: Arm) -> Verdict | None:
    """Which arm gets more reward at equal KL: the mean of (a − b) over the overlap of their KL ranges.

    The range is that of the trained checkpoints; each curve is interpolated linearly between checkpoints ordered by KL,
    from the reference at KL 0. Where the ranges don't overlap there is nothing to compare.
    """
    question = f"At equal KL, does {a.title} or {b.title} get more {study.reward_name}?"
    names = (a.name, b.name)
    seeds = [run.seed for run in a.runs if run.validation and run.seed in {r.seed for r in b.runs if r.validation}]
    if not seeds:
        return None
    curves = [
        [p.of_seeds(seeds) for p in arm.validation if p.step > 0 and set(seeds) <= set(p.seeds)] for arm in (a, b)
    ]
    if not all(curves):
        return None
    (low_a, high_a), (low_b, high_b) = (kl_range(points) for points in curves)
    low, high = max(low_a, low_b), min(high_a, high_b)
    if low > high:
        answer = (
            f"Undecided: their KL ranges don't overlap ({a.title} {number(low_a)}–{number(high_a)} nats, "
            f"{b.title} {number(low_b)}–{number(high_b)} nats)."
        )
        return Verdict("equal KL", names, f"{a.title} or {b.title}", question, answer, None)
    start = reference_like(study, curves[0][0])
    at_kl = np.linspace(low, high, GRID)
    of_a, of_b = (reward_at(at_kl, [*([start] if start else []), *points]) for points in curves)
    difference = estimate(of_a - of_b, f"reward of {a.name} − {b.name} at equal KL")
    where = f"between {number(low)} and {number(high)} nats, {seeds_in_words(len(seeds))}"
    if difference.sign == 0:
        answer = f"No difference found: {a.title} − {b.title} = {interval(difference)}, {where}."
    else:
        better, worse = (a, b) if difference.sign > 0 else (b, a)
        answer = f"{better.title} gets {interval(absolute(difference))} more than {worse.title}, {where}."
    return Verdict("equal KL", names, f"{a.title} or {b.title}", question, answer, difference)


def kl_range(points: Iterable[Point]) -> tuple[float, float]:
    """The lowest and highest mean KL of some points."""
    means = [float(point.kl_nats.mean()) for point in points]
    return min(means), max(means)


def reward_at(at_kl: Matrix, points: Sequence[Point]) -> Matrix:
    """The reward that a curve through `points` has on average over the KL values `at_kl`, per seed and prompt.

    The mean of the result is the linear interpolation through the mean points. Around it, each value is taken at fixed
    KL: on a segment of slope s (reward per nat) it is reward − s·(KL − mean KL), so that the interval of the mean also
    holds the uncertainty of where on the KL axis the checkpoints lie (the delta method).
    """
    ordered = sorted(points, key=lambda point: float(point.kl_nats.mean()))
    kl = np.array([point.kl_nats.mean() for point in ordered])
    reward = np.array([point.reward.mean() for point in ordered])
    left = np.clip(np.searchsorted(kl, at_kl, side="right") - 1, 0, max(len(kl) - 2, 0))
    right = np.minimum(left + 1, len(kl) - 1)
    width = np.maximum(kl[right] - kl[left], 1e-9)
    share = np.clip((at_kl - kl[left]) / width, 0, 1)
    slope = (reward[right] - reward[left]) / width
    values = np.zeros_like(ordered[0].reward)
    for j, point in enumerate(ordered):
        weight = (1 - share) * (left == j) + share * (right == j)
        centred = point.kl_nats - point.kl_nats.mean()
        values = values + weight.mean() * point.reward - (weight * slope).mean() * centred
    return values


def reference_like(study: Study, point: Point) -> Point | None:
    """The reference on the split of `point`, with one row per seed of it; None while there is none.

    Where the reference was not scored with each of these seeds, every seed gets its mean: it is the same model for all.
    """
    if study.reference is None:
        return None
    known = [*study.reference.validation, study.reference.final]
    found = next((p for p in known if p and p.split == point.split), None)
    if found is None:
        return None
    return found.of_seeds(point.seeds) if set(point.seeds) <= set(found.seeds) else found.mean_as(point.seeds)


def beats_reference(study: Study, arm: Arm) -> Verdict | None:
    """Whether the arm's chosen checkpoint has more reward than the reference on the same prompts."""
    point = arm.final
    reference = point and reference_like(study, point)
    if not point or not reference:
        return None
    difference = estimate(point.reward - reference.reward, f"reward of {arm.name} − reference")
    where = f"on {len(point.prompts):,} {point.split} prompts, {seeds_in_words(len(point.seeds))}"
    if point.split != "test":
        where += "; not final: the test prompts have not been scored"
    amount = interval(absolute(difference))
    answer = {
        1: f"Yes: {amount} more {study.reward_name} {where}.",
        -1: f"No, it loses: {amount} less {study.reward_name} {where}.",
        0: f"No difference found: {interval(difference)} {where}.",
    }[difference.sign]
    return Verdict("reference", (arm.name,), arm.title, f"Does {arm.title} beat the reference?", answer, difference)


def proxy_misled(study: Study, arm: Arm) -> Verdict | None:
    """Whether the proxy reward rose while the gold reward fell, from the arm's best checkpoint to its last.

    The best checkpoint is picked by looking, so its interval is widened as for all m earlier ones (Bonferroni,
    1 − 0.05/m): a lucky checkpoint is no peak.
    """
    points = [point for point in arm.validation if point.step > 0]
    if not points or points[-1].proxy_reward is None:
        return None
    last = points[-1]
    start = reference_like(study, last)
    earlier = [
        *([start] if start else []),
        *(p.of_seeds(last.seeds) for p in points[:-1] if set(last.seeds) <= set(p.seeds)),
    ]
    earlier = [point for point in earlier if point.proxy_reward is not None]
    if not earlier:
        return None
    peak = max(earlier, key=lambda point: float(point.reward.mean()))
    confidence = 1 - 0.05 / len(earlier)
    gold = estimate(last.reward - peak.reward, f"reward of {arm.name}", confidence)
    assert peak.proxy_reward is not None
    assert last.proxy_reward is not None
    proxy = estimate(last.proxy_reward - peak.proxy_reward, f"proxy reward of {arm.name}", confidence)
    since = "the reference" if peak.step == 0 else f"step {peak.step}"
    change = (
        f"from {since} to step {last.step} {study.reward_name} changed by {interval(gold)}, "
        f"the proxy by {interval(proxy)}"
    )
    if gold.sign < 0 and proxy.sign > 0:
        answer = f"Yes: {change}."
    elif gold.sign > 0:
        answer = f"No: {study.reward_name} is highest at the last checkpoint; {change}."
    elif gold.sign < 0:
        answer = f"Not shown: {study.reward_name} fell, but the proxy didn't clearly rise; {change}."
    else:
        answer = f"No sign of it: {change}."
    return Verdict("proxy", (arm.name,), arm.title, f"Did the proxy mislead {arm.title}?", answer, gold)


def mean_cost(arm: Arm, name: str) -> float | None:
    """A cost of the arm, the mean over its seeds; the largest for peak memory; None where it is not known."""
    known = [float(cost) for run in arm.runs if (cost := run.cost[name]) is not None]
    if not known:
        return None
    return max(known) if name == "peak_memory_bytes" else sum(known) / len(known)


def dear_and_cheap(arms: Sequence[Arm]) -> tuple[Arm, Arm] | None:
    """The slower and the quicker of PPO and DPO where the study has both, else of all arms; None below two arms."""

    def seconds(arm: Arm) -> float:
        return mean_cost(arm, "wall_seconds") or 0.0

    timed = sorted((arm for arm in arms if seconds(arm) > 0), key=lambda arm: arm.oracle)
    pair = next((list(pair) for pair in combinations(timed, 2) if dpo_and_ppo(*pair)), timed)
    return (max(pair, key=seconds), min(pair, key=seconds)) if len(pair) > 1 else None


def times_as_long(slow: Arm, quick: Arm) -> str:
    """The ratio of two arms' training times, in words."""
    ratio = (mean_cost(slow, "wall_seconds") or 0.0) / (mean_cost(quick, "wall_seconds") or 1.0)
    return f"{slow.title} took {number(ratio, 1)} times as long as {quick.title}"


def what_it_cost(arms: Sequence[Arm]) -> Verdict | None:
    """How long two arms took, and what they asked of the sampler and the reward."""
    pair = dear_and_cheap(arms)
    if not pair:
        return None
    spent = [" against ".join(duration(mean_cost(arm, "wall_seconds")) for arm in pair)]
    counted = {"generated_tokens": "generated tokens", "reward_calls": "reward calls", "gold_calls": "gold calls"}
    for name, what in counted.items():
        dear, cheap = (mean_cost(arm, name) for arm in pair)
        if dear is not None and cheap is not None and dear + cheap > 0:
            spent.append(f"{count(dear)} {what} against {count(cheap)}")
    answer = f"{times_as_long(*pair)}: {'; '.join(spent)}."
    about = listing([arm.title for arm in pair])
    return Verdict("cost", tuple(arm.name for arm in pair), about, "What did it cost?", answer, None)


def headline(study: Study, found: Sequence[Verdict]) -> tuple[str, ...]:
    """The summary: what beat the reference, the main comparison, its cost, and how far to trust it."""
    titles = {arm.name: arm.title for arm in study.arms}
    sentences = []
    against = [verdict for verdict in found if verdict.subject == "reference"]
    for sign, one, many in ((1, "beats", "beat"), (-1, "loses to", "lose to")):
        names = [titles[v.arms[0]] for v in against if v.difference and v.difference.sign == sign]
        if names:
            sentences.append(f"{few(names, len(against))} {one if len(names) == 1 else many} the reference.")
    same = [titles[v.arms[0]] for v in against if v.difference and v.difference.sign == 0]
    if same:
        sentences.append(f"No difference found between {few(same, len(against))} and the reference.")
    if against and any(arm.final.split != "test" for arm in study.trained if arm.final):
        sentences.append("Not final: some arms have not been scored on test prompts.")
    main = next((v for v in found if v.subject == "equal KL"), None)
    if main:
        a, b = (titles[name] for name in main.arms)
        if main.difference is None:
            sentences.append(f"{a} and {b} can't be compared at equal KL: their KL ranges don't overlap.")
        elif main.difference.sign == 0:
            sentences.append(f"At equal KL, no difference found between {a} and {b} ({interval(main.difference)}).")
        else:
            better, worse = (a, b) if main.difference.sign > 0 else (b, a)
            amount = interval(absolute(main.difference))
            sentences.append(f"At equal KL, {better} gets more {study.reward_name} than {worse}, by {amount}.")
    pair = dear_and_cheap([arm for arm in study.trained if arm.final])
    if pair:
        sentences.append(f"{times_as_long(*pair)}.")
    misled = [titles[v.arms[0]] for v in found if v.subject == "proxy" and v.answer.startswith("Yes")]
    if misled:
        sentences.append(f"The proxy misled {few(misled, len(against))}: it rose while {study.reward_name} fell.")
    return tuple(sentences) or ("No arm has been evaluated yet.",)


def few(names: Sequence[str], of: int) -> str:
    """Names as a sentence has them, or how many they are.

    >>> few(["DPO", "PPO"], 3), few(list("abcdefgh"), 9)
    ('DPO and PPO', '8 of 9 arms')
    """
    return listing(names) if len(names) < MANY else f"{len(names)} of {of} arms"


def absolute(difference: Estimate) -> Estimate:
    """The size of a difference that has a sign."""
    if difference.mean >= 0:
        return difference
    return Estimate(-difference.mean, -difference.high, -difference.low)


def seeds_in_words(seeds: int) -> str:
    """How many training runs an interval speaks for.

    >>> seeds_in_words(1), seeds_in_words(3)
    ('1 seed', '3 seeds')
    """
    return "1 seed" if seeds == 1 else f"{seeds} seeds"
