"""One sentence per question, and never more than its interval allows.

Arms are compared prompt by prompt on the seeds that both have, so luck that they share cancels. Comparisons of one kind
are one family: a difference is called one only where its p-value, corrected for their number, is below 5 %; else "no
difference found", and what would settle it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from typing import Literal

import numpy as np

from preflab.report.effort import effort, in_words
from preflab.report.families import families
from preflab.report.statistics import ROUNDING, Estimate, Matrix, estimate, holm, p_value
from preflab.report.study import Arm, Point, Study
from preflab.report.wording import count, duration, interval, listing, number

Subject = Literal["tuned", "equal KL", "reference", "proxy", "cost"]

KINDS: dict[Subject, str] = {
    "reference": "with the reference",
    "equal KL": "between methods",
    "tuned": "between methods",
    "proxy": "about the proxy",
}
"""What a comparison is corrected among: all of its kind. How many there are of another kind, which may be as many as
there are arms, doesn't make it less certain."""
ALPHA = 0.05
GRID = 65  # KL values at which two curves are compared
MANY = 7  # arms from which on a page no longer compares each with each, nor names them all in one sentence


@dataclass(frozen=True)
class Verdict:
    """An answer; `difference` is what it rests on, null where the question has none or it could not be asked."""

    subject: Subject
    arms: tuple[str, ...]
    about: str  # the arms' titles
    question: str
    says: str  # the answer where a difference was found, or counted
    silent: str  # else, "No difference found"; and behind it
    numbers: str
    difference: Estimate | None = None
    p: float | None = None  # of "no difference", for this question alone
    corrected: float | None = None  # among all comparisons of its kind
    among: int = 0  # how many these are
    remedy: str = ""  # what would settle it
    values: Matrix | None = field(default=None, repr=False, compare=False)  # the difference, seed × prompt
    prompts: str = ""  # what those prompts are called

    @property
    def found(self) -> bool:
        """Whether there is something to say: a difference was found, or counted."""
        return self.subject == "cost" or (self.corrected is not None and self.corrected < ALPHA)

    @property
    def kind(self) -> str:
        """What it is corrected among; "" of what is counted and not compared."""
        return KINDS.get(self.subject, "")

    @property
    def sign(self) -> int:
        """+1 or −1 of a difference that was found, else 0."""
        return self.difference.sign if self.difference and self.found else 0

    @property
    def answer(self) -> str:
        """The sentence that the numbers allow."""
        if self.found:
            return self.says
        silent, numbers = self.silent, self.numbers
        if self.p is not None and self.p < ALPHA:
            silent = "Undecided"
            numbers += (
                f"; alone it would count (p = {number(self.p, 3)}), but of {self.among} comparisons {self.kind} one "
                f"may look so by luck: corrected for that p = {number(self.corrected, 3)}, and it takes less than "
                f"{ALPHA:g}"
            )
        return f"{silent}: {numbers}." + (f" {self.remedy}" if self.remedy else "")

    def json(self) -> dict[str, object]:
        """The form in comparison.json."""
        return {
            "question": self.question,
            "answer": self.answer,
            "found": self.found,
            "difference": self.difference.json() if self.difference else None,
            "p": self.p,
            "corrected_p": self.corrected,
            "corrected_for": self.among,
        }


@lru_cache(maxsize=2)  # more than one chapter asks
def verdicts(study: Study) -> tuple[Verdict, ...]:
    """Every verdict that the study's points allow, oracles last within a question, corrected among those of its kind.

    Arms are compared with each other, or, where they are many, with the first one; at equal KL, but on test prompts
    where a variant was chosen, as curves are of the validation prompts that it was chosen on. Only chosen variants take
    part; an arm whose KL is a bound is compared with the reference alone.
    """
    known = {one.chosen.name: one for one in families(study) if one.chosen and one.chosen.final}
    arms = sorted((arm for one in known.values() if (arm := one.chosen)), key=lambda arm: arm.oracle)
    asked: list[Verdict | None] = []
    for a, b in pairs_of([arm for arm in arms if not arm.kl_is_bound]):
        chosen_from = known[a.name].tries + known[b.name].tries
        asked.append(on_test(study, a, b) if chosen_from > 2 else at_equal_kl(study, a, b))
    asked += [beats_reference(study, arm) for arm in arms]
    asked += [proxy_misled(study, arm, known[arm.name].tries) for arm in arms]
    asked.append(what_it_cost(arms))
    return settled([verdict for verdict in asked if verdict])


def pairs_of(arms: Sequence[Arm]) -> list[tuple[Arm, Arm]]:
    """Who is compared with whom: DPO with PPO first, oracles last."""
    pairs = sorted(combinations(arms, 2), key=lambda pair: (pair[0].oracle + pair[1].oracle, not dpo_and_ppo(*pair)))
    return [pair for pair in pairs if len(arms) < MANY or arms[0] in pair or dpo_and_ppo(*pair)]


def settled(asked: Sequence[Verdict]) -> tuple[Verdict, ...]:
    """The verdicts of one report, the p-values of each kind corrected together, and what would settle the open ones.

    Holm's correction: it holds whatever their dependence, and verdicts share arms, seeds and prompts; it finds all that
    Bonferroni's does and more; and each interval stays the 95 % interval of its own difference.

    What would settle an open one is said at the level that the next difference of its kind has to meet to be found.
    """
    verdicts = list(asked)
    for kind in set(KINDS.values()):
        places = [n for n, verdict in enumerate(asked) if verdict.kind == kind and verdict.p is not None]
        for place, corrected in zip(places, holm([asked[n].p or 0.0 for n in places]), strict=True):
            verdicts[place] = replace(verdicts[place], corrected=corrected, among=len(places))
    open_ones = Counter(v.kind for v in verdicts if v.p is not None and not v.found)
    sizes = [abs(v.difference.mean) for v in verdicts if v.values is not None and v.difference and v.found]
    return tuple(
        v
        if v.p is None or v.found
        else replace(v, remedy=remedy(v, max(sizes, default=0.0) / 2, 1 - ALPHA / open_ones[v.kind]))
        for v in verdicts
    )


def remedy(verdict: Verdict, of_interest: float, confidence: float) -> str:
    """What would settle a question that was left open: the gap that was observed, or where no study of a sensible size
    does, one of interest, half the largest that was found; "" where there is no gap to settle."""
    if verdict.values is None or verdict.difference is None:
        return ""
    observed = abs(verdict.difference.mean)
    said = ""
    for gap in (observed, of_interest):
        if gap <= ROUNDING:
            continue
        if gap != observed and max(-verdict.difference.low, verdict.difference.high) < gap:
            return f"A gap of {number(gap)}, half the largest that was found, is ruled out."
        needed = effort(verdict.values, gap, confidence)
        said = in_words(needed, verdict.values, gap, verdict.prompts)
        if needed is None or needed.need != "neither":
            break
    return said


def correction(found: Sequence[Verdict]) -> str:
    """How many comparisons of each kind a report makes, and what was done about it; "" where there is one or none."""
    counted = [verdict for verdict in found if verdict.p is not None]
    if len(counted) < 2:
        return ""
    asked, held = Counter(v.kind for v in counted), Counter(v.kind for v in counted if v.found)
    kinds = [kind for kind in dict.fromkeys(KINDS.values()) if asked[kind]]
    first = f"{asked[kinds[0]]} comparison{'' if asked[kinds[0]] == 1 else 's'}"
    amounts = [first, *(str(asked[kind]) for kind in kinds[1:])]
    said = listing([f"{n} {kind} ({held[kind] or 'none'} found)" for n, kind in zip(amounts, kinds, strict=True)])
    guarantee = "Holm-corrected: where nothing differs, at most one study in twenty finds anything"
    if len(kinds) > 1:
        guarantee = f"each kind {guarantee} of a kind, at most {'two' if len(kinds) == 2 else 'three'} of any"
    return f"{said}, {guarantee}. Each interval is the 95 % interval of its own difference."


def dpo_and_ppo(a: Arm, b: Arm) -> bool:
    """The pair that most readers come for."""
    return {a.method, b.method} == {"dpo", "ppo"} and "+" not in a.family + b.family


def compared(
    subject: Subject,
    arms: tuple[Arm, ...],
    about: str,
    question: str,
    values: Matrix,
    prompts: str,
    says: dict[int, str],
) -> Verdict:
    """A verdict on a difference (seed × prompt); `says` has its answer by sign."""
    names = " − ".join(arm.name for arm in arms)
    difference = estimate(values, f"reward of {names}")
    p = p_value(values, f"reward of {names}")
    sign = 1 if difference.mean > 0 else -1
    return Verdict(
        subject, tuple(arm.name for arm in arms), about, question, says[sign], "No difference found", says[0],
        difference, p, p, values=values, prompts=prompts,
    )  # fmt: skip


def at_equal_kl(study: Study, a: Arm, b: Arm) -> Verdict | None:
    """Which arm gets more reward at equal KL: the mean of (a − b) over the overlap of their KL ranges.

    The range is that of the trained checkpoints; each curve is interpolated linearly between checkpoints ordered by KL,
    from the reference at KL 0. Where the ranges don't overlap there is nothing to compare.
    """
    question = f"At equal KL, does {a.title} or {b.title} get more {study.reward_name}?"
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
        numbers = (
            f"their KL ranges don't overlap ({a.title} {number(low_a)}–{number(high_a)} nats, "
            f"{b.title} {number(low_b)}–{number(high_b)} nats)"
        )
        return Verdict("equal KL", (a.name, b.name), f"{a.title} or {b.title}", question, "", "Undecided", numbers)
    start = reference_like(study, curves[0][0])
    at_kl = np.linspace(low, high, GRID)
    of_a, of_b = (reward_at(at_kl, [*([start] if start else []), *points]) for points in curves)
    where = f"between {number(low)} and {number(high)} nats, {seeds_in_words(len(seeds))}"
    about = f"{a.title} or {b.title}"
    return compared(
        "equal KL", (a, b), about, question, of_a - of_b, "validation prompts", which(a, b, of_a - of_b, where)
    )


def which(a: Arm, b: Arm, values: Matrix, where: str) -> dict[int, str]:
    """Answers to "a or b?", by sign."""
    difference = estimate(values, f"reward of {a.name} − {b.name}")
    amount = interval(absolute(difference))
    return {
        1: f"{a.title} gets {amount} more than {b.title}, {where}.",
        -1: f"{b.title} gets {amount} more than {a.title}, {where}.",
        0: f"{a.title} − {b.title} = {interval(difference)}, {where}",
    }


def on_test(study: Study, a: Arm, b: Arm) -> Verdict | None:
    """Which of two chosen variants gets more reward on test prompts, which had no part in the choice."""
    points = [arm.final for arm in (a, b) if arm.final and arm.final.split == "test"]
    if len(points) < 2:
        return None
    seeds = [seed for seed in points[0].seeds if seed in points[1].seeds]
    if not seeds:
        return None
    of_a, of_b = (point.of_seeds(seeds) for point in points)
    values = of_a.reward - of_b.reward
    kl = " and ".join(number(float(point.kl_nats.mean()), 1) for point in (of_a, of_b))
    where = f"on {len(of_a.prompts):,} test prompts, {seeds_in_words(len(seeds))}, at a KL of {kl} nats"
    about = f"{a.title} or {b.title}"
    question = f"As chosen on validation prompts, does {about} get more {study.reward_name}?"
    return compared("tuned", (a, b), about, question, values, "test prompts", which(a, b, values, where))


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
    values = point.reward - reference.reward
    difference = estimate(values, f"reward of {arm.name} − reference")
    where = f"on {len(point.prompts):,} {point.split} prompts, {seeds_in_words(len(point.seeds))}"
    if point.split != "test":
        where += "; not final: the test prompts have not been scored"
    amount = interval(absolute(difference))
    says = {
        1: f"Yes: {amount} more {study.reward_name} {where}.",
        -1: f"No, it loses: {amount} less {study.reward_name} {where}.",
        0: f"{interval(difference)} {where}",
    }
    question = f"Does {arm.title} beat the reference?"
    return compared("reference", (arm,), arm.title, question, values, f"{point.split} prompts", says)


def proxy_misled(study: Study, arm: Arm, tries: int = 1) -> Verdict | None:
    """Whether the proxy reward rose while the gold reward fell, from the arm's best checkpoint to its last.

    The best checkpoint is picked by looking, so its interval is widened as for all m earlier ones of all variants that
    the arm was chosen from (Bonferroni, 1 − 0.05/m): a lucky checkpoint is no peak.
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
    looked_at = len(earlier) * tries
    confidence = 1 - ALPHA / looked_at
    gold = estimate(last.reward - peak.reward, f"reward of {arm.name}", confidence)
    assert peak.proxy_reward is not None
    assert last.proxy_reward is not None
    proxy = estimate(last.proxy_reward - peak.proxy_reward, f"proxy reward of {arm.name}", confidence)
    since = "the reference" if peak.step == 0 else f"step {peak.step}"
    change = (
        f"from {since} to step {last.step} {study.reward_name} changed by {interval(gold)}, "
        f"the proxy by {interval(proxy)}"
    )
    p = 1.0  # of "the gold reward did not fall, or the proxy did not rise"
    unclear = f"Not shown: {study.reward_name} fell, but the proxy didn't clearly rise"
    silent = "No sign of it"
    if gold.mean >= 0:
        silent = f"No, {study.reward_name} is highest at the last checkpoint"
    elif gold.sign < 0 and proxy.sign < 1:
        silent = unclear
    if gold.mean < 0 < proxy.mean:  # both have to hold, so the weaker one counts
        gold_p = p_value(last.reward - peak.reward, f"reward of {arm.name}")
        proxy_p = p_value(last.proxy_reward - peak.proxy_reward, f"proxy reward of {arm.name}")
        p = min(1.0, max(gold_p, proxy_p) * looked_at)
    question = f"Did the proxy mislead {arm.title}?"
    return Verdict("proxy", (arm.name,), arm.title, question, f"Yes: {change}.", silent, change, gold, p, p)


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
    if len(pair) < 2:
        return None
    quick, *_, slow = sorted(pair, key=seconds)  # two of them, also where they took as long
    return slow, quick


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
    return Verdict("cost", tuple(arm.name for arm in pair), about, "What did it cost?", answer, "", "")


def absolute(difference: Estimate) -> Estimate:
    """The size of a difference that has a sign."""
    return difference if difference.mean >= 0 else difference.times(-1)


def seeds_in_words(seeds: int) -> str:
    """How many training runs an interval speaks for.

    >>> seeds_in_words(1), seeds_in_words(3)
    ('1 seed', '3 seeds')
    """
    return "1 seed" if seeds == 1 else f"{seeds} seeds"
