"""The controlled world of the study `reviews`: film reviews drawn from a grammar, with their exact gold sentiment.

Generated reviews have 12 to 34 words. The grammar's own range is wider (6 to some 80): its longer and shorter reviews
are parsed all the same, the generator does not draw them.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from random import Random

from preflab.data.review_grammar import FORMS, TABLES, TOPICS, WITH_FACTOR, Form, Kind, Phrase, Slot
from preflab.data.review_parser import Clause, ReviewParse, SentenceParse, interpret, parse_review, review_sentiment

__all__ = [
    "Clause", "GeneratedReview", "ReviewParse", "SentenceParse", "count_reviews", "generate_review", "generate_reviews",
    "judges", "parse_review", "review_sentiment", "vocabulary",
]  # fmt: skip

GENERATED_WORDS = range(12, 35)

# The shapes of a review (O opinion, N neutral, A advice), and how often the generator starts with each, as shares.
# It redraws a review that is too long or too short, so that short shapes come out a little more often than that.
SHAPES = {
    "OO": 0.15, "OA": 0.10, "NO": 0.04, "ON": 0.02, "NA": 0.01,
    "OOO": 0.22, "OOA": 0.24, "NOO": 0.08, "ONO": 0.02, "OON": 0.02, "NOA": 0.07, "ONA": 0.03,
}  # fmt: skip
JUDGEMENTS = ("adjective", "superlative", "verdict", "verb", "liking", "deed", "order", "mark")
"""The tables whose phrases say how good something was; those of the others with a factor say how much so."""
LETTERS = {"O": Kind.OPINION, "N": Kind.NEUTRAL, "A": Kind.ADVICE}

# A review's latent mood is the chance that each of its sentences is positive on balance.
MOODS = (0.08, 0.5, 0.92)


@dataclass(frozen=True, slots=True)
class GeneratedReview:
    """A review, and what its generator meant by it: the clauses of all its sentences, in order."""

    text: str
    clauses: tuple[Clause, ...]


def generate_reviews(n: int, *, seed: int) -> list[str]:
    """`n` reviews of 12 to 34 words; the same seed gives the same reviews, and more of them for a larger `n`.

    Raises:
        ValueError: `n` is negative.

    >>> generate_reviews(2, seed=0) == generate_reviews(3, seed=0)[:2]
    True
    """
    if n < 0:
        raise ValueError(f"n must be 0 or more, not {n}")
    rng = Random(seed)
    return [generate_review(rng).text for _ in range(n)]


def generate_review(rng: Random) -> GeneratedReview:
    """Draw one review and say what its clauses mean. Positive and negative reviews are equally likely.

    A review has a latent mood: each of its sentences is positive with chance 0.08, 0.5 or 0.92, so that its beginning
    tells something about its rest, but not all.

    >>> review = generate_review(Random(3))
    >>> review.clauses == parse_review(review.text).clauses
    True
    """
    while True:
        (shape,) = rng.choices(list(SHAPES), list(SHAPES.values()))
        mood = rng.choice(MOODS)
        seen: set[str | Kind] = set()
        drawn = [_draw_sentence(rng, LETTERS[letter], positive=rng.random() < mood, seen=seen) for letter in shape]
        text = " ".join(sentence for sentence, _ in drawn)
        if text.count(" ") + 1 in GENERATED_WORDS:
            return GeneratedReview(text, tuple(clause for _, meant in drawn for clause in meant.clauses))


def _draw_sentence(rng: Random, kind: Kind, *, positive: bool, seen: set[str | Kind]) -> tuple[str, SentenceParse]:
    """Draw until the sentence has the wanted sign and fits those before it; adds its topics to `seen`.

    One joined sentence in ten may say "but" where it agrees, or "and" where it does not.
    """
    careless = rng.random() < 0.1
    while True:
        phrases = _derive(rng, (Slot(kind.value), Slot(Phrase(".", kind))))
        now_seen = set(seen)
        meant = interpret([phrase.meaning for phrase in phrases if phrase.meaning is not None], now_seen)
        if not (meant.concordant or careless):
            continue
        if meant.grammatical and (kind is Kind.NEUTRAL or (meant.sentiment > 0) is positive):
            seen |= now_seen
            text = " ".join(phrase.words for phrase in phrases).replace(" ,", ",").replace(" .", ".")
            return text[0].upper() + text[1:], meant


def _derive(rng: Random, form: Form) -> list[Phrase]:
    """Draw a derivation: every alternative equally likely, an optional slot filled half of the time."""
    phrases: list[Phrase] = []
    for symbol, optional in form:
        if optional and rng.random() < 0.5:
            continue
        if isinstance(symbol, Phrase):
            phrases.append(symbol)
        elif symbol in TABLES:
            phrases.append(rng.choice(TABLES[symbol]))
        else:
            phrases += _derive(rng, rng.choice(FORMS[symbol]))
    return phrases


def judges(text: str) -> bool:
    """True where a whole word or phrase of the text says how good something was: then it is no open beginning.

    >>> judges("The plot was very dull"), judges("I gave the plot"), judges("What gave me a")
    (True, False, False)
    """
    return _judgement().search(text) is not None


@cache
def _judgement() -> re.Pattern[str]:
    phrases = (re.escape(words) for table in JUDGEMENTS for words, _ in WITH_FACTOR[table])
    return re.compile(rf"\b(?:{'|'.join(phrases)})\b", re.IGNORECASE)  # an order opens its sentence: "Skip it"


def vocabulary() -> frozenset[str]:
    """The distinct words of the grammar as they stand within a sentence, without punctuation.

    >>> {"plot", "I", "Paris"} <= vocabulary()
    True
    """
    slots = [slot.symbol for forms in FORMS.values() for form in forms for slot in form]
    literals = [symbol for symbol in slots if isinstance(symbol, Phrase)]
    phrases = literals + [phrase for table in TABLES.values() for phrase in table]
    return frozenset(word.strip(",:") for phrase in phrases for word in phrase.words.split()) - {""}


def count_reviews() -> int:
    """How many reviews the grammar makes, exactly: its derivations, each of which is another text.

    A text has one derivation at most (`review_automaton.py` proves it as it compiles). Sentences are counted
    without their topics, T in number; k clauses can then name topics in T·(T − 1)·…·(T − k + 1) ways.

    >>> count_reviews() > 10**6
    True
    """
    # Ways to make a sentence of each kind, by the number of topics it names.
    ways = {
        "O": {1: _count("single"), 2: _count_joined()},
        "N": {0: _count("neutral")},
        "A": {0: _count("advice")},
    }
    total = 0
    for shape in SHAPES:
        reviews = {0: 1}
        for letter in shape:
            longer: dict[int, int] = {}
            for named, count in reviews.items():
                for more, factor in ways[letter].items():
                    longer[named + more] = longer.get(named + more, 0) + count * factor
            reviews = longer
        total += sum(count * math.perm(len(TOPICS), named) for named, count in reviews.items())
    return total


def _count_joined() -> int:
    return _count("clause") ** 2 * (len(TABLES["but"]) + len(TABLES["although"]) + len(TABLES["and"]))


@cache
def _count(name: str) -> int:
    """Derivations of a rule or table; all topics count as one."""
    if name in ("topic", "topic was"):
        return 1
    if name in TABLES:
        return len(TABLES[name])
    return sum(
        math.prod((1 if isinstance(symbol, Phrase) else _count(symbol)) + optional for symbol, optional in form)
        for form in FORMS[name]
    )
