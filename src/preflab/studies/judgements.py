"""A judge of pairs reads the test responses of every two arms, in both orders: judgements.json."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from preflab.errors import StorageError
from preflab.progress import say
from preflab.rewards.pair_judge import PairJudge
from preflab.runs import JSON, RunFolder, digest, read_json, read_lines, write_json


@dataclass(frozen=True)
class Said:
    """An arm's responses to the test prompts, of one seed."""

    prompt_ids: tuple[str, ...]
    prompts: tuple[str, ...]
    responses: tuple[str, ...]


def judge_arms(study: Path, judge: PairJudge, arms: Sequence[str], seeds: Sequence[int]) -> None:
    """Ask the judge about every two arms, and write what it said to judgements.json, pair by pair.

    A pair whose responses the same judge has read is not judged again, so that a killed start loses one pair and
    further arms cost their own pairs alone.

    Args:
        arms: of a finished study, the reference first; it stands second in its pairs, as what the others are held to.

    Raises:
        StorageError: two arms answered different test prompts.
        NumericError: the judge failed, or gave no probability.
    """
    path = study / "judgements.json"
    about = {"judge": judge.name, "source": judge.source}
    before = _before(path, about)
    said = {arm: [_said(study, arm, seed) for seed in seeds] for arm in arms}
    prompts = said[arms[0]][0].prompt_ids
    for arm, by_seed in said.items():
        if any(one.prompt_ids != prompts for one in by_seed):
            raise StorageError(f"{study}: {arm} and {arms[0]} answered different test prompts; run the study anew")
    pairs: list[JSON] = []
    for first, second in pairs_of(arms):
        asked = _asked(said, first, second, seeds)
        known = _known(before, asked)
        if known is None:
            say(f"judge of pairs: {first} against {second}, {len(prompts)} prompts in both orders")
            both = list(zip(said[first], said[second], strict=True))
            leading = [judge(mine.prompts, mine.responses, its.responses) for mine, its in both]
            trailing = [judge(mine.prompts, its.responses, mine.responses) for mine, its in both]
            known = asked | {
                "leading": leading,  # preference for the first arm where it stands first
                "trailing": [[1 - value for value in row] for row in trailing],  # and where it stands second
            }
            write_json(path, about | {"pairs": [*pairs, known, *_others(before, [*pairs, known])]})
        pairs.append(known)
    write_json(path, about | {"pairs": pairs})


def pairs_of(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every two arms, the first of all standing second.

    >>> pairs_of(["reference", "dpo", "ppo"])
    [('dpo', 'reference'), ('ppo', 'reference'), ('dpo', 'ppo')]
    """
    return [(b, a) if a == arms[0] else (a, b) for a, b in itertools.combinations(arms, 2)]


def unread(study: Path, judge: PairJudge, arms: Sequence[str], seeds: Sequence[int]) -> list[tuple[str, str]]:
    """The pairs that `judge_arms` would ask about, of a study that need not be finished."""
    before = _before(study / "judgements.json", {"judge": judge.name, "source": judge.source})
    said = {arm: [_said(study, arm, seed) for seed in seeds] for arm in arms} if before else {}
    return [pair for pair in pairs_of(arms) if not before or _known(before, _asked(said, *pair, seeds)) is None]


def _asked(said: Mapping[str, Sequence[Said]], first: str, second: str, seeds: Sequence[int]) -> dict[str, JSON]:
    """What a pair's judgement is of."""
    both = zip(said[first], said[second], strict=True)
    return {
        "first_arm": first,
        "second_arm": second,
        "seeds": list(seeds),
        "prompts": list(said[first][0].prompt_ids),
        "responses": digest([pair for mine, its in both for pair in zip(mine.responses, its.responses, strict=False)]),
    }


def _known(before: Sequence[JSON], asked: Mapping[str, JSON]) -> JSON | None:
    """What was said of it at an earlier start."""
    return next((pair for pair in before if {name: pair.get(name) for name in asked} == asked), None)


def _before(path: Path, about: JSON) -> list[JSON]:
    """What this judge said at an earlier start; nothing where another one did, or the same file with other words."""
    if not path.exists():
        return []
    content = read_json(path)
    if {name: content.get(name) for name in about} != about:
        say("judge of pairs: it is another than before, and is asked anew")
        return []
    return list(content["pairs"])


def _others(before: Sequence[JSON], pairs: Sequence[JSON]) -> list[JSON]:
    """Pairs of an earlier start that are still to come."""
    arms = [(pair["first_arm"], pair["second_arm"]) for pair in pairs]
    return [pair for pair in before if (pair["first_arm"], pair["second_arm"]) not in arms]


def _said(study: Path, arm: str, seed: int) -> Said:
    path = RunFolder(study / "arms" / arm / f"seed-{seed}").samples
    lines = [line for line in read_lines(path) if line["split"] == "test"]
    columns = (tuple(str(line[name]) for line in lines) for name in ("prompt_id", "prompt", "response"))
    return Said(*columns)
