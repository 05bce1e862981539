"""The summary: a sentence for each thing that somebody wants to know who has read nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from preflab.report.study import Study
from preflab.report.sweeps import recommended
from preflab.report.verdicts import (
    ALPHA,
    MANY,
    Verdict,
    absolute,
    dear_and_cheap,
    dpo_and_ppo,
    times_as_long,
)
from preflab.report.wording import interval, listing

SHOWN = 2  # open questions that the summary names; of more it gives the number


def headline(study: Study, found: Sequence[Verdict]) -> tuple[str, ...]:
    """What beat the reference; what a sweep recommends; the main comparison, DPO or PPO where both are there, and its
    cost; whether more is to come, whom the proxy misled, and what is undecided."""
    main = next((v for v in found if v.subject in ("tuned", "equal KL")), None)
    sentences = (
        against_reference(study, found),
        recommended(study),
        main_comparison(study, main, found),
        doubts(study, main, found),
    )
    return tuple(sentence for sentence in sentences if sentence) or ("No arm has been evaluated yet.",)


def against_reference(study: Study, found: Sequence[Verdict]) -> str:
    """Who beats the reference, who loses to it, who neither."""
    titles = {arm.name: arm.title for arm in study.arms}
    asked = [verdict for verdict in found if verdict.subject == "reference"]
    if not asked:
        return ""
    parts: list[str] = []
    for sign, one, many in ((1, "beats", "beat"), (-1, "loses to", "lose to")):
        names = [titles[v.arms[0]] for v in asked if v.sign == sign]
        if names:
            whom = "it" if parts else "the reference, the model that all start from,"
            parts.append(f"{few(names, len(asked))} {one if len(names) == 1 else many} {whom}")
    alone = [titles[v.arms[0]] for v in asked if v.sign == 0 and v.p is not None and v.p < ALPHA]
    if alone:
        whom = "it" if parts else "the reference"
        counts = "counts" if len(alone) == 1 else "counts for each"
        parts.append(
            f"the difference of {few(alone, len(asked))} from {whom} {counts} alone, not as one of "
            f"{len(asked)} comparisons"
        )
    same = [titles[v.arms[0]] for v in asked if v.sign == 0 and titles[v.arms[0]] not in alone]
    if same:
        whom = "it" if parts else "the reference"
        parts.append(f"no difference found between {few(same, len(asked))} and {whom}")
    if parts[0].endswith(","):
        parts[0] += f" in {study.reward_name}"
    sentence = "; ".join(parts)
    return sentence[:1].upper() + sentence[1:] + "."


def main_comparison(study: Study, main: Verdict | None, found: Sequence[Verdict]) -> str:
    """The answer and what it cost."""
    by_name = {arm.name: arm for arm in study.arms}
    compared = [by_name[name] for name in main.arms] if main else []
    pair = dear_and_cheap(compared) or dear_and_cheap([by_name[v.arms[0]] for v in found if v.subject == "reference"])
    cost = times_as_long(*pair) if pair else ""
    if not main:
        return cost and f"{cost}."
    asked = f"{compared[0].title} or {compared[1].title}" + ("?" if dpo_and_ppo(compared[0], compared[1]) else ":")
    where = (
        "on test prompts, each as tuned,"
        if main.subject == "tuned"
        else "at equal KL, the distance from the reference,"
    )
    if main.difference is None:
        answer = "undecided, as their distances from the reference (KL) don't overlap"
    elif main.sign == 0:
        remedy = f"; {main.remedy[:1].lower()}{main.remedy[1:-1]}" if main.remedy else ""
        names = f"{compared[0].title} − {compared[1].title}"
        alone = main.p is not None and main.p < ALPHA
        among = f", which counts alone but not as one of {main.among} comparisons {main.kind}"
        why = among if alone else ", which may be nothing"
        answer = f"undecided, {where} {names} is {interval(main.difference)}{why}{remedy}"
    else:
        better = compared[0] if main.sign > 0 else compared[1]
        answer = f"{where} {better.title} gets more {study.reward_name}, by {interval(absolute(main.difference))}"
    return f"{asked} {answer[:1].upper()}{answer[1:]}{'; ' if cost else ''}{cost}."


def doubts(study: Study, main: Verdict | None, found: Sequence[Verdict]) -> str:
    """Where the proxy misled, what else is open, and whether more is to come."""
    titles = {arm.name: arm.title for arm in study.arms}
    parts = []
    if any(arm.final.split != "test" for arm in study.trained if arm.final):
        parts.append("not final, as some arms have not been scored on test prompts")
    misled = [titles[v.arms[0]] for v in found if v.subject == "proxy" and v.sign < 0]
    if misled:
        parts.append(
            f"{study.proxy_name} misled {few(misled, len(study.trained))}: it rose while {study.reward_name} fell"
        )
    pairs = [v for v in found if v.subject in ("tuned", "equal KL")]
    undecided = [verdict.about for verdict in pairs if not verdict.found and verdict is not main]
    if 0 < len(undecided) <= SHOWN:
        parts.append(f"undecided: {listing(undecided)}")
    elif undecided:
        parts.append(f"{len(undecided)} of {len(pairs)} comparisons between methods are undecided")
    sentence = "; ".join(parts)
    return sentence and sentence[:1].upper() + sentence[1:] + "."


def few(names: Sequence[str], of: int) -> str:
    """Names as a sentence has them, or how many they are.

    >>> few(["DPO", "PPO"], 3), few(list("abcdefgh"), 9)
    ('DPO and PPO', '8 of 9 arms')
    """
    return listing(names) if len(names) < MANY else f"{len(names)} of {of} arms"
