"""The task `dialogue`: preference pairs of dialogues. There is no gold function, so a held-out reward model judges."""

from __future__ import annotations

from pathlib import Path

from preflab.config.commands import Compare
from preflab.data.records import Demonstration, PreferencePair, Prompt
from preflab.data.sources import ASSISTANT, HUMAN, read_pairs
from preflab.data.split import first_prompts, split_by_prompt, split_in_halves
from preflab.errors import DataError
from preflab.studies.generations import questions
from preflab.studies.task import GivenPairs, Task, Turn, Words, few_prompts_warning

FEWEST_PAIRS = 500
QUESTIONS = (
    "What are some fun things to do in Paris?",
    "How can I learn to code for free?",
    "What is the meaning of life?",
)


def dialogue(config: Compare, path: Path) -> Task:
    """Pairs of the HH-RLHF or the explicit format, split by prompt.

    Raises:
        DataError: there are fewer than 500 pairs.
    """
    loaded = read_pairs(path)
    if len(loaded.rows) < FEWEST_PAIRS:
        raise DataError(f"{path} has {len(loaded.rows)} usable pairs; the study needs at least {FEWEST_PAIRS}")
    sides = split_by_prompt(loaded.rows, {"train": 0.72, "validation": 0.1, "test": 0.18}, seed=config.seed)
    policy, judge = split_in_halves(sides["train"], seed=config.seed)
    prompts = {
        "train": _prompts(policy, config.prompts.train, config.seed),
        "validation": _prompts(sides["validation"], config.prompts.validation, config.seed),
        "test": _prompts(sides["test"], config.prompts.test, config.seed),
    }
    base = (
        "" if config.model else " The base is small and was trained on these dialogues alone: read it as a rehearsal."
    )
    in_turns = all(prompt.text.endswith(ASSISTANT) for prompt in prompts["train"])
    turn = Turn(f"{HUMAN} ", ASSISTANT) if in_turns else Turn()
    return Task(
        name="dialogue",
        title="Dialogue, judged by a held-out reward model",
        summary=(
            "A language model answers the last turn of a dialogue. Two reward models learn from disjoint halves of the "
            f"pairs: one is what PPO sees, the other judges every arm.{base}"
        ),
        reward=Words(
            "judge score",
            "score",
            "A Bradley–Terry reward model trained on pairs whose prompts no arm trained on; 0 is its mean over "
            "the responses of its training pairs.",
        ),
        proxy=Words(
            "reward model", "score", "A Bradley–Terry reward model trained on the arms' own half of the pairs."
        ),
        corpus=tuple(pair.prompt + pair.chosen for pair in sides["train"]),
        demonstrations=tuple(Demonstration(pair.prompt, pair.chosen, pair.origin) for pair in policy),
        prompts=prompts,
        held_out=tuple(Demonstration(pair.prompt, pair.chosen, pair.origin) for pair in sides["test"][:128]),
        gold=None,
        pairs=GivenPairs(policy, judge, sides["test"]),
        counts=dict(loaded.counts) | {"pairs of the arms' half": len(policy), "pairs of the judge's half": len(judge)},
        warnings=few_prompts_warning(prompts),
        turn=turn,
        asked=questions(QUESTIONS, turn),
    )


def _prompts(pairs: tuple[PreferencePair, ...], count: int, seed: int) -> tuple[Prompt, ...]:
    distinct = {pair.prompt: Prompt(pair.prompt, pair.origin) for pair in pairs}
    return first_prompts(tuple(distinct.values()), min(count, len(distinct)), seed=seed)
