"""The task `reviews`: film reviews from a grammar whose parser is the gold reward, or real labelled reviews."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from preflab.config.commands import Compare
from preflab.data.records import Demonstration, Prompt, Rating
from preflab.data.reviews import generate_reviews, judges
from preflab.data.sources import read_ratings
from preflab.data.split import first_prompts, split_by_prompt, split_in_halves
from preflab.errors import DataError
from preflab.rewards.sentiment import ClassifierSentiment, GrammarSentiment
from preflab.seeds import derive
from preflab.studies.task import Fact, Task, Words, few_prompts_warning, share

PROXY = Words(
    "reward model",
    "score",
    "A Bradley–Terry reward model trained on the sampled pairs; arms that sample are paid by it, -gold apart.",
)
PROMPT_WORDS = (2, 8)  # arXiv 2305.18290, App. C.1: prefixes of 2 to 8 tokens
FEWEST_REVIEWS, FEW_REVIEWS = 200, 1000
HELD_OUT = 128
"""Texts for the perplexity."""


def generated_reviews(config: Compare) -> Task:
    """The controlled task: every figure can be checked against the grammar."""
    wanted = config.prompts
    # Twice the reviews that the prompts need: many share a prefix, and the sides of a split vary.
    count = max(config.base.texts, 4 * (wanted.train + wanted.validation + wanted.test))
    texts = generate_reviews(count + HELD_OUT, seed=derive(config.seed, "reviews"))
    texts, fresh = texts[:count], texts[count:]  # the base may learn from all but the last
    seen = set(texts)
    held_out = ((f"held-out:{number}", text) for number, text in enumerate(fresh) if text not in seen)
    named = ((f"generated:{number}", text) for number, text in enumerate(texts))
    rows = _cut(named, random.Random(derive(config.seed, "prompts")))
    shares = {
        "train": wanted.train * 1.0,
        "validation": wanted.validation * 1.5,
        "test": wanted.test * 1.5,
    }
    sides = split_by_prompt(rows, shares, seed=derive(config.seed, "split") % 2**31)
    prompts = {
        side: _prompts(sides[side], getattr(wanted, side), config.seed) for side in ("train", "validation", "test")
    }
    chosen = _chosen(prompts["train"], wanted.policy)
    for_judge: list[Demonstration] = []
    if config.judge:  # reviews of its own: those of the arms are the same with a judge and without
        more = generate_reviews(4 * wanted.train, seed=derive(config.seed, "judge's reviews"))
        named = ((f"judge:{number}", text) for number, text in enumerate(more))
        for_judge = _cut(named, random.Random(derive(config.seed, "judge's prompts")))
    return Task(
        name="reviews",
        title="Film reviews with an exactly known reward",
        summary=(
            "A small language model writes film reviews; the prompt is the first 2 to 8 words. The reward is the "
            "review's sentiment, read clause by clause by the parser of the grammar that made the corpus."
        ),
        reward=Words(
            "gold sentiment",
            "reward",
            f"{config.pairs.gold_scale:g} × the sentiment of prompt + response in [−1, 1]; a sentence that the grammar "
            "can't have produced counts as −1.",
        ),
        proxy=PROXY,
        corpus=tuple(texts[: config.base.texts]),
        demonstrations=tuple(sides["train"]),
        prompts=prompts,
        held_out=tuple(_cut(held_out, random.Random(derive(config.seed, "held-out")))),
        gold=GrammarSentiment(config.pairs.gold_scale),
        pairs=None,
        facts=(Fact("Distinct texts among the generated reviews", len(seen) / len(texts)),),
        counts={"reviews generated": len(texts)}
        | ({} if chosen is None else {f"train prompts that arms which sample learn on ({wanted.policy})": len(chosen)}),
        warnings=few_prompts_warning(prompts),
        judge_prompts=_unseen(for_judge, (row.prompt for side in sides.values() for row in side), config),
        policy_prompts=chosen,
    )


def real_reviews(config: Compare, path: Path) -> Task:
    """Labelled reviews: one half trains the classifier that is the gold reward, the other half everything else.

    Raises:
        DataError: there are fewer than 200 reviews, or only one label.
    """
    loaded = read_ratings(path)
    if len(loaded.rows) < FEWEST_REVIEWS:
        raise DataError(f"{path} has {len(loaded.rows)} reviews; the study needs at least {FEWEST_REVIEWS}")
    for_gold, for_text = split_in_halves(loaded.rows, seed=config.seed)
    limit = config.lengths.response_tokens * 2 // 3  # words: a word of a real review is about 1.4 tokens
    gold_sides = split_by_prompt(for_gold, {"train": 0.8, "test": 0.2}, seed=config.seed)
    learned_from = [excerpt for row in gold_sides["train"] for excerpt in _excerpts(row, limit)]
    if len({row.label for row in learned_from}) < 2:
        raise DataError(f"{path}: all labels are the same; a classifier needs both 0 and 1")
    gold = ClassifierSentiment.fit(learned_from, scale=config.pairs.gold_scale)
    whole = gold.accuracy(gold_sides["test"])
    parts = gold.accuracy([excerpt for row in gold_sides["test"] for excerpt in _excerpts(row, limit)])

    sides = split_by_prompt(for_text, {"train": 0.7, "validation": 0.12, "test": 0.18}, seed=config.seed + 1)
    rng = random.Random(derive(config.seed, "prompts"))
    rows = {
        side: _cut(
            (
                (f"{row.origin}#{number}", excerpt.text)
                for row in ratings
                for number, excerpt in enumerate(_excerpts(row, limit))
            ),
            rng,
        )
        for side, ratings in sides.items()
    }
    seen: set[str] = set()
    prompts: dict[str, tuple[Prompt, ...]] = {}
    for side in ("train", "validation", "test"):  # a prefix like "the film" may start excerpts of two sides
        fresh = [row for row in rows[side] if row.prompt not in seen]
        if not fresh:
            raise DataError(f"{path}: no prompt is left for {side}; give more reviews")
        prompts[side] = _prompts(fresh, getattr(config.prompts, side), config.seed)
        seen |= {row.prompt for row in rows[side]}
    for_judge: list[Demonstration] = []
    if config.judge:  # the gold classifier's own half: no arm sees it
        excerpts = (
            (f"{row.origin}#{number}", excerpt.text)
            for row in for_gold
            for number, excerpt in enumerate(_excerpts(row, limit))
        )
        for_judge = _cut(excerpts, random.Random(derive(config.seed, "judge's prompts")))
    return Task(
        name="reviews",
        title="Real film reviews, judged by a classifier",
        summary=(
            "A language model continues excerpts of real reviews; the prompt is an excerpt's first 2 to 8 words. The "
            "reward is a sentiment classifier trained on reviews that no model here has seen."
        ),
        reward=Words(
            "classifier sentiment",
            "reward",
            f"{config.pairs.gold_scale:g} × (2p − 1), p the probability of a positive label for prompt + response.",
        ),
        proxy=PROXY,
        corpus=tuple(row.prompt + row.response for row in rows["train"]),
        demonstrations=tuple(rows["train"]),
        prompts=prompts,
        held_out=tuple(rows["test"][:HELD_OUT]),
        gold=gold,
        pairs=None,
        facts=(
            share("Gold classifier, accuracy on held-out reviews", sum(whole), len(whole)),
            share("Gold classifier, accuracy on held-out excerpts", sum(parts), len(parts), "the length of a response"),
        ),
        counts=dict(loaded.counts) | {"excerpts for training": len(rows["train"])},
        warnings=(*few_prompts_warning(prompts), *_few_reviews_warning(len(loaded.rows), len(sides["test"]))),
        judge_prompts=_unseen(for_judge, seen, config),
    )


def _chosen(prompts: Sequence[Prompt], which: Literal["all", "judged", "open"]) -> tuple[Prompt, ...] | None:
    """Those that judge already, or the others; None for all.

    Raises:
        DataError: there is none.
    """
    if which == "all":
        return None
    found = tuple(prompt for prompt in prompts if judges(prompt.text) is (which == "judged"))
    if not found:
        raise DataError(f"prompts.policy = {which}: none of the {len(prompts)} train prompts is; raise prompts.train")
    return found


def _unseen(rows: Sequence[Demonstration], seen: Iterable[str], config: Compare) -> tuple[Prompt, ...]:
    """As many prompts as the arms train on, none of them theirs: for the judge."""
    theirs = set(seen)
    unseen = [row for row in rows if row.prompt not in theirs]
    if rows and not unseen:
        raise DataError("judge: the arms have seen every prompt; give more reviews, or leave judge out")
    return _prompts(unseen, config.prompts.train, config.seed) if unseen else ()


def _few_reviews_warning(reviews: int, tested: int) -> tuple[str, ...]:
    if reviews >= FEW_REVIEWS:
        return ()
    return (
        f"only {reviews} reviews: the gold classifier learned from few of them, and the test prompts are excerpts of "
        f"{tested}, so the intervals, which take prompts as independent, are narrower than they should be",
    )


def _prompts(rows: Sequence[Demonstration], count: int, seed: int) -> tuple[Prompt, ...]:
    """Up to `count` distinct prompts."""
    distinct = {row.prompt: Prompt(row.prompt, row.origin) for row in rows}
    return first_prompts(tuple(distinct.values()), min(count, len(distinct)), seed=seed)


def _cut(texts: Iterable[tuple[str, str]], rng: random.Random) -> list[Demonstration]:
    """Each (name, text) cut after its first 2 to 8 words; the response keeps the space before it."""
    rows = []
    for origin, text in texts:
        words = [match.end() for match in re.finditer(r"\S+", text)]
        if len(words) > PROMPT_WORDS[0]:
            end = words[min(rng.randint(*PROMPT_WORDS), len(words) - 1) - 1]
            rows.append(Demonstration(text[:end], text[end:], origin))
    return rows


def _excerpts(row: Rating, words: int) -> list[Rating]:
    """Runs of whole sentences of up to `words` words; a longer sentence is cut. Labelled as the review is."""
    excerpts: list[str] = []
    current: list[str] = []
    for sentence in re.split(r"\s*\n\s*|(?<=[.!?])\s+(?=[A-Z\"'])", row.text.strip()):
        tokens = sentence.split()[:words]
        if current and len(current) + len(tokens) > words:
            excerpts.append(" ".join(current))
            current = []
        current += tokens
    excerpts.append(" ".join(current))
    return [Rating(text, row.label, row.origin) for text in excerpts if len(text.split()) >= 6]
