"""What a text says, read as a film review: its clauses, its faults, its gold sentiment. From the text alone, exactly.

A review has two or three sentences:

- an **opinion** has one clause, or two joined by contrast ("…, but …", usually of opposite signs) or agreement ("…, and
  …", usually of one sign); each clause judges one topic, and no topic is judged twice in a review;
- a **neutral** sentence states a fact about the film and is not counted; a review has one at most;
- **advice** has one clause and closes the review: nothing follows it.

The sentiment of a clause is the product of the factors of its phrases (`review_grammar.py`), clipped to [−1, 1]. The
sentiment of a review is the weighted mean over its clauses c, with f faults:

    (Σ weight_c · sentiment_c − f − [f > 0]·m) / (Σ weight_c + f + m),    m = max(0, 3 − Σ weight_c − f)

- A weight is 1, but in a contrast 0.5 and 1.5: what comes after the "but" is what the sentence is about.
- A sentence that the grammar can't have made at its place is a fault, a clause of −1: unknown words or order, wrong
  case or spacing, unfinished, a topic again, a fourth sentence. So is each sentence missing to two.
- The mean is over a weight of three at least, so that one strong clause does not make a strong review. What is missing
  (m) counts 0, or −1 in a text with a fault.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from preflab.data.review_automaton import read_sentence, tokens
from preflab.data.review_grammar import Kind, Link, Meaning

FEWEST_SENTENCES, MOST_SENTENCES = 2, 3
LEAST_WEIGHT = 3.0
CONTRAST_WEIGHTS = (0.5, 1.5)


@dataclass(frozen=True, slots=True)
class Clause:
    """One judgement: its sentiment in [−1, 1], and its weight in the mean (0.5, 1 or 1.5)."""

    sentiment: float
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class SentenceParse:
    """A sentence's clauses (none where it is neutral or has a fault) and its fault in words, "" where it has none."""

    clauses: tuple[Clause, ...] = ()
    fault: str = ""
    concordant: bool = True
    """False where "but" joins clauses of one sign, or "and" clauses of opposite signs: rare, and no fault."""

    @property
    def grammatical(self) -> bool:
        """Whether the grammar can have made this sentence at its place in the review."""
        return not self.fault

    @property
    def sentiment(self) -> float:
        """The weighted mean of the clauses, in [−1, 1]; 0 for a neutral sentence, −1 for a fault."""
        if self.fault:
            return -1.0
        weight = sum(clause.weight for clause in self.clauses)
        return sum(clause.weight * clause.sentiment for clause in self.clauses) / weight if weight else 0.0


@dataclass(frozen=True, slots=True)
class ReviewParse:
    """A text read as a review: its sentences, whether all of it is grammatical, and the gold sentiment in [−1, 1]."""

    sentences: tuple[SentenceParse, ...]
    grammatical: bool
    sentiment: float

    @property
    def clauses(self) -> tuple[Clause, ...]:
        """The clauses of the grammatical sentences, in order."""
        return tuple(clause for sentence in self.sentences for clause in sentence.clauses)


UNREADABLE = SentenceParse(fault="is no sentence of the grammar")
UNFINISHED = SentenceParse(fault="does not end in a full stop")
SURPLUS = SentenceParse(fault=f"comes after the {MOST_SENTENCES} sentences of a review")
REPEATED = SentenceParse(fault="judges a topic again, or is a second neutral sentence")
AFTER_ADVICE = SentenceParse(fault="follows the advice that closes a review")


def review_sentiment(text: str) -> float:
    """The gold sentiment of any text, in [−1, 1]; the rule stands at the head of this file. The empty text has −1.

    >>> review_sentiment("The plot was not dull. I loved the score.")  # (−0.5·−0.6 + 0.8 + 0) / 3
    0.3666666666666667
    >>> review_sentiment("The plot was not dull. I loved the")  # (0.3 − 1 − 1) / 3
    -0.5666666666666667
    >>> review_sentiment("")
    -1.0
    """
    return parse_review(text).sentiment


def parse_review(text: str) -> ReviewParse:
    """Read a text as a review. Total on any string, in time linear in its length.

    Sentences end in a full stop and stand one space apart, with nothing before the first or after the last: strip the
    text first where its ends do not matter.

    >>> parse = parse_review("Although the script was thin, the ending won me over. Skip it.")
    >>> parse.sentences[0].clauses
    (Clause(sentiment=-0.4, weight=0.5), Clause(sentiment=0.75, weight=1.5))
    >>> parse.grammatical, round(parse.sentiment, 3)  # (0.5·−0.4 + 1.5·0.75 − 0.8) / 3
    (True, 0.042)
    >>> [sentence.fault for sentence in parse_review("The plot was dull. The plot was thin.").sentences]
    ['', 'judges a topic again, or is a second neutral sentence']
    """
    pieces = text.split(". ") if text else []
    sentences: list[SentenceParse] = []
    seen: set[str | Kind] = set()
    for number, piece in enumerate(pieces[:MOST_SENTENCES], start=1):
        if number == len(pieces):
            if not piece.endswith("."):
                sentences.append(UNFINISHED)
                break
            piece = piece[:-1]
        meanings = read_sentence([*tokens(piece), "."])
        sentences.append(interpret(meanings, seen) if meanings else UNREADABLE)
    surplus = len(pieces) - len(sentences)
    missing = max(0, FEWEST_SENTENCES - len(pieces))
    faults = sum(bool(sentence.fault) for sentence in sentences) + surplus + missing

    weight, total = float(faults), -float(faults)
    for sentence in sentences:
        for clause in sentence.clauses:
            weight += clause.weight
            total += clause.weight * clause.sentiment
    if faults and weight < LEAST_WEIGHT:
        total -= LEAST_WEIGHT - weight
    return ReviewParse((*sentences, *[SURPLUS] * surplus), not faults, total / max(weight, LEAST_WEIGHT))


def interpret(meanings: Sequence[Meaning], seen: set[str | Kind]) -> SentenceParse:
    """What a sentence says after those before it.

    Args:
        meanings: of the sentence's phrases in order, its kind last.
        seen: the topics judged before, and the kinds met before of which a review has one at most. The sentence's own
            are added, whether or not it has a fault.
    """
    if Kind.ADVICE in seen:
        return AFTER_ADVICE
    clauses: list[Clause] = []
    link: Link | None = None
    repeated = False
    product = 1.0
    for meaning in meanings:
        if isinstance(meaning, float):
            product *= meaning
        elif isinstance(meaning, Link):
            link = meaning
            clauses.append(Clause(_clip(product), CONTRAST_WEIGHTS[0] if link is Link.CONTRAST else 1.0))
            product = 1.0
        elif meaning is not Kind.OPINION:
            repeated = repeated or meaning in seen
            seen.add(meaning)
    if repeated:
        return REPEATED
    if meanings[-1] is Kind.NEUTRAL:
        return SentenceParse()
    clauses.append(Clause(_clip(product), CONTRAST_WEIGHTS[1] if link is Link.CONTRAST else 1.0))
    return SentenceParse(tuple(clauses), concordant=_concordant(clauses, link))


def _concordant(clauses: Sequence[Clause], link: Link | None) -> bool:
    if link is None:
        return True
    same_sign = clauses[0].sentiment * clauses[1].sentiment > 0
    return same_sign is (link is Link.AGREEMENT)


def _clip(sentiment: float) -> float:
    return max(-1.0, min(1.0, sentiment))
