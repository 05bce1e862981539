"""The grammar of the controlled film reviews: word tables and rules, to be read like a grammar.

A phrase stands beside its *factor*. The sentiment of a clause is the product of the factors of its phrases, clipped to
[−1, 1], so that one rule says it all:

| table                       | factor                                | example                             |
|-----------------------------|---------------------------------------|-------------------------------------|
| adjectives, verdicts, verbs | in [−1, 1]: polarity and strength     | "was dull": −0.6                    |
| degrees, adverbs, extents   | 0.5 to 1.4: weakens or strengthens    | "was very dull": 1.25 · −0.6        |
| negations                   | −0.4 to −0.8: turns round, attenuated | "was not dull": −0.5 · −0.6 = +0.3  |
| everything else             | 1                                     | "frankly, the plot was dull": −0.6  |

In a rule, `{name}` is another rule or a table, `{name?}` may be left out, and a bare word stands for itself. No rule
contains itself. The compiler in `review_automaton.py` refuses a grammar in which a text has two derivations.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Link(Enum):
    """How a sentence joins its two clauses."""

    CONTRAST = "contrast"  # the signs usually differ, and the second clause weighs more
    AGREEMENT = "agreement"  # the signs are usually the same


class Kind(Enum):
    """What a sentence does; the value is the rule it starts from."""

    OPINION = "opinion"
    NEUTRAL = "neutral"
    ADVICE = "advice"


# A factor, the topic that is named, a link, or the kind of sentence that ends.
Meaning = float | str | Link | Kind


class Phrase(NamedTuple):
    """Words and what they mean, None where nothing."""

    words: str
    meaning: Meaning | None = None


Weighed = tuple[tuple[str, float], ...]

# --- what a review talks about: a review judges no topic twice

SINGULAR_TOPICS = (
    "the plot", "the story", "the ending", "the opening", "the script", "the dialogue", "the acting", "the cast",
    "the lead actor", "the villain", "the hero", "the score", "the sound", "the camera work", "the lighting",
    "the editing", "the pacing", "the tone", "the humour", "the romance", "the mystery", "the final twist",
    "the first half", "the second half", "the last act", "the whole film",
)  # fmt: skip
PLURAL_TOPICS = (
    "the jokes", "the songs", "the costumes", "the sets", "the stunts", "the special effects", "the fight scenes",
    "the crowd scenes", "the minor characters",
)  # fmt: skip

# --- how good it was

ADJECTIVES: Weighed = (
    ("fine", 0.35), ("decent", 0.3), ("nice", 0.4), ("pleasant", 0.4), ("solid", 0.4), ("honest", 0.4), ("bold", 0.4),
    ("good", 0.5), ("fresh", 0.5), ("lively", 0.5), ("warm", 0.5), ("sharp", 0.5), ("rich", 0.5), ("tender", 0.5),
    ("smart", 0.55), ("elegant", 0.55), ("clever", 0.6), ("strong", 0.6), ("charming", 0.6), ("engaging", 0.6),
    ("lovely", 0.65), ("touching", 0.65), ("moving", 0.7), ("powerful", 0.7), ("impressive", 0.7),
    ("plain", -0.3), ("uneven", -0.3), ("cold", -0.3), ("slow", -0.35), ("noisy", -0.35), ("thin", -0.4),
    ("silly", -0.4), ("tired", -0.45), ("confused", -0.45), ("flat", -0.5), ("weak", -0.5), ("bland", -0.5),
    ("messy", -0.5), ("forced", -0.5), ("stale", -0.55), ("shallow", -0.55), ("hollow", -0.55), ("clumsy", -0.55),
    ("dull", -0.6), ("poor", -0.6), ("lazy", -0.6), ("boring", -0.65), ("annoying", -0.65), ("tedious", -0.7),
    ("lifeless", -0.7),
)  # fmt: skip
SUPERLATIVES: Weighed = (
    ("gorgeous", 0.8), ("thrilling", 0.8), ("splendid", 0.8), ("terrific", 0.8), ("wonderful", 0.85),
    ("excellent", 0.85), ("fantastic", 0.85), ("glorious", 0.85), ("superb", 0.9), ("brilliant", 0.9),
    ("stunning", 0.9), ("outstanding", 0.9), ("magnificent", 0.95), ("perfect", 0.95),
    ("absurd", -0.75), ("pointless", -0.75), ("ridiculous", -0.75), ("hopeless", -0.8), ("useless", -0.8),
    ("horrible", -0.85), ("dismal", -0.85), ("painful", -0.8), ("awful", -0.9), ("terrible", -0.9), ("dreadful", -0.9),
    ("worthless", -0.9), ("unbearable", -0.95), ("disastrous", -0.95),
)  # fmt: skip
VERDICTS: Weighed = (
    ("easy to enjoy", 0.6), ("made with care", 0.6), ("worth the ticket", 0.6), ("a pleasant surprise", 0.6),
    ("full of life", 0.65), ("a treat", 0.7), ("a pleasure", 0.7), ("hard to fault", 0.7), ("a joy", 0.8),
    ("a delight", 0.8), ("the best part", 0.8), ("beyond praise", 0.95), ("second to none", 0.95), ("a triumph", 1.0),
    ("easy to forget", -0.45), ("hard to follow", -0.5), ("made in a hurry", -0.5), ("out of place", -0.5),
    ("a missed chance", -0.5), ("full of holes", -0.6), ("a chore", -0.6), ("a mistake", -0.6), ("a bore", -0.7),
    ("a mess", -0.7), ("a letdown", -0.7), ("the worst part", -0.8), ("a waste of time", -0.9),
    ("beyond repair", -0.95), ("a disaster", -1.0),
)  # fmt: skip
VERBS: Weighed = (
    ("grew on me", 0.45), ("felt right", 0.45), ("worked well", 0.5), ("held my attention", 0.5),
    ("made me smile", 0.55), ("hit the mark", 0.6), ("came alive", 0.6), ("drew me in", 0.6), ("saved the day", 0.7),
    ("won me over", 0.75), ("kept me hooked", 0.75), ("touched my heart", 0.75), ("stole the show", 0.8),
    ("deserved an award", 0.9), ("took my breath away", 0.95), ("blew me away", 0.95),
    ("wore thin", -0.45), ("felt wrong", -0.45), ("did not work", -0.5), ("lost my attention", -0.5),
    ("wore me out", -0.55), ("missed the mark", -0.55), ("left me cold", -0.6), ("went nowhere", -0.6),
    ("tested my patience", -0.6), ("fell flat", -0.65), ("let me down", -0.65), ("made no sense", -0.65),
    ("got on my nerves", -0.65), ("fell apart", -0.7), ("gave me a headache", -0.75), ("put me to sleep", -0.8),
    ("bored me to tears", -0.9), ("ruined the evening", -0.95),
)  # fmt: skip
LIKINGS: Weighed = (
    ("liked", 0.5), ("had a soft spot for", 0.5), ("enjoyed", 0.6), ("admired", 0.6), ("was moved by", 0.7),
    ("was impressed by", 0.7), ("could not fault", 0.75), ("was won over by", 0.75), ("loved", 0.8),
    ("fell in love with", 0.9), ("was in awe of", 0.95), ("adored", 0.95),
    ("soon forgot", -0.4), ("did not care for", -0.45), ("had a problem with", -0.45), ("disliked", -0.5),
    ("grew tired of", -0.5), ("had no time for", -0.6), ("was put off by", -0.6), ("was bored by", -0.65),
    ("was let down by", -0.65), ("hated", -0.9), ("could not stand", -0.9),
)  # fmt: skip
SEEMINGS: Weighed = (("felt", 1.0), ("proved", 1.0), ("seemed", 0.9))

# --- how much so

DEGREES: Weighed = (
    ("a little", 0.5), ("slightly", 0.5), ("somewhat", 0.6), ("fairly", 0.75), ("rather", 0.8), ("quite", 0.8),
    ("pretty", 0.8), ("truly", 1.1), ("really", 1.2), ("very", 1.25), ("so very", 1.3), ("extremely", 1.4),
)  # fmt: skip
EMPHASES: Weighed = (
    ("almost", 0.6), ("simply", 1.05), ("truly", 1.1), ("absolutely", 1.15), ("utterly", 1.15),
    ("nothing short of", 1.1),
)  # fmt: skip
HEDGES: Weighed = (("almost", 0.6), ("perhaps", 0.7), ("clearly", 1.1), ("certainly", 1.1), ("easily", 1.1))
NEGATIONS: Weighed = (
    ("not exactly", -0.4), ("not", -0.5), ("hardly", -0.5), ("never", -0.6), ("far from", -0.7), ("by no means", -0.7),
    ("not at all", -0.7), ("anything but", -0.8),
)  # fmt: skip
ADVERBS: Weighed = (
    ("almost", 0.6), ("nearly", 0.6), ("often", 0.7), ("partly", 0.7), ("somehow", 0.9), ("simply", 1.05),
    ("truly", 1.1), ("certainly", 1.1), ("really", 1.2), ("completely", 1.2),
)  # fmt: skip
SINCERELY: Weighed = (("honestly", 1.0), ("simply", 1.05), ("truly", 1.1), ("certainly", 1.1), ("really", 1.2))
EXTENTS: Weighed = (
    ("at times", 0.6), ("in places", 0.6), ("more often than not", 0.7), ("for the most part", 0.8),
    ("by any measure", 1.1), ("beyond any doubt", 1.1), ("in every way", 1.2),
)  # fmt: skip

# --- how a sentence opens and joins its clauses

REMARKS = (
    "to be honest,", "to be fair,", "for me,", "in my view,", "on the whole,", "all in all,", "in the end,", "frankly,",
    "as expected,", "once again,", "in short,", "believe me,", "looking back,", "like most people,", "as a parent,",
    "as a fan of old films,", "after all the talk,", "on a big screen,", "the second time round,", "this time,",
)  # fmt: skip
THOUGHTS = (
    "I thought", "I felt that", "I must say that", "I have to admit that", "my friends said that",
    "my sister told me that", "most people agree that", "there is no doubt that", "you soon notice that",
    "nobody can deny that", "it must be said that", "the critics wrote that", "everyone around me felt that",
)  # fmt: skip
BUTS = (", but", ", yet", ", and still")
ALTHOUGHS = ("although", "though", "while", "even if")
ANDS = (", and", ", and besides,")

# --- neutral sentences: they state facts and are not counted

FILMS = ("it", "this film", "the picture", "this new film")
PLACED = ("is set in", "was filmed in", "takes place in", "opens in")
PLACES = (
    "Paris", "Spain", "Rome", "Japan", "New York", "a small town", "a big city", "an old theatre", "the near future",
    "the far north", "a mountain village", "a hospital", "a quiet school", "the last century",
)  # fmt: skip
FOLLOWS = ("follows", "tells the story of", "is about", "turns around")
HEROES = (
    "a young nurse", "an old sailor", "two brothers", "three sisters", "a pair of thieves", "a boy and his dog",
    "a family of farmers", "a retired teacher", "a lonely clown", "a night driver", "a shy student", "a country doctor",
)  # fmt: skip
QUESTS = (
    "on the run", "in search of a lost letter", "looking for work", "far from home", "at the end of the war",
    "during a long winter", "on a trip across the desert", "in a small town", "with a secret", "back from the sea",
)  # fmt: skip
CASTINGS = (
    "stars a cast of new faces", "stars a well known singer", "stars two people from the stage", "runs for two hours",
    "runs for ninety minutes", "is based on a short novel", "is based on a true story", "is based on an old play",
    "is the second part of three", "came out last winter", "came out on Friday",
)  # fmt: skip
DIRECTORS = (
    "is new to film", "comes from Spain", "comes from the stage", "made two short films before this", "used to paint",
    "also wrote the script", "lives in New York", "was once a teacher",
)  # fmt: skip
SEEN = ("I saw it", "I watched it", "we saw it")
WHEN = (
    "last night", "on Friday", "on Sunday evening", "at a festival", "on a plane", "in an old theatre", "at home",
    "in a full house", "after work",
)  # fmt: skip
WITH = ("with my brother", "with two friends", "with my family", "with my students", "with old friends")

# --- advice: it closes a review

WISHES: Weighed = (
    ("I might", 0.5), ("I would", 0.8), ("I would gladly", 1.1), ("I would happily", 1.1), ("I will certainly", 1.2),
    ("I would not", -0.8), ("I would never", -1.1), ("I will not", -0.9), ("I am in no hurry to", -0.6),
)  # fmt: skip
DEEDS: Weighed = (
    ("see it again", 0.8), ("watch it twice", 0.7), ("recommend it to anyone", 0.9), ("show it to my friends", 0.8),
    ("take my family to see it", 0.8), ("buy a ticket for it", 0.7), ("pay to see it again", 0.9),
)  # fmt: skip
ORDERS: Weighed = (
    ("give it a chance", 0.4), ("take your friends", 0.6), ("see it", 0.7), ("book a seat", 0.7),
    ("go and see it", 0.8), ("do not miss it", 0.9),
    ("wait for a better film", -0.5), ("look for something else", -0.5), ("give it a miss", -0.7),
    ("stay at home", -0.7), ("skip it", -0.8), ("save your money", -0.8), ("keep away from it", -0.9),
)  # fmt: skip
ORDER_OPENINGS = ("so", "if you ask me,", "my advice is this:", "take my word and")
ORDER_ENDINGS = ("if you can", "while you can", "this week")
MARKINGS = ("I give it", "I would give it", "for me it earns", "my friends gave it")
MARKS: Weighed = (
    ("one out of ten", -1.0), ("two out of ten", -0.8), ("three out of ten", -0.6), ("four out of ten", -0.3),
    ("six out of ten", 0.3), ("seven out of ten", 0.5), ("eight out of ten", 0.7), ("nine out of ten", 0.9),
    ("ten out of ten", 1.0),
)  # fmt: skip

# --- the rules

RULES: dict[str, tuple[str, ...]] = {
    # The three kinds of sentence.
    "opinion": ("{single}", "{double}"),
    "neutral": (
        "{film} {placed} {place}",
        "{film} {follows} {hero} {quest?}",
        "{film} {casting}",
        "the director {director}",
        "{seen} {when} {with?}",
    ),
    "advice": ("{wish} {deed}", "{order opening?} {order} {order ending?}", "{marking} {mark}"),
    # An opinion has one clause or two.
    "double": ("{contrast}", "{agreement}"),
    "single": ("{remark?} {clause}", "{thought} {statement}"),
    "contrast": ("{clause} {but} {clause}", "{although} {clause} {turn} {clause}"),
    "agreement": ("{clause} {and} {clause}",),
    # A clause judges one topic.
    "clause": ("{statement}", "{feeling}", "what {adverb?} {verb} was {topic}"),
    "statement": ("{topic was} {predicate}", "{topic} {seeming} {quality}", "{topic} {adverb?} {verb}"),
    "feeling": ("I {sincerely?} {liking} {topic}", "I found {topic} {quality}"),
    "predicate": ("{quality}", "{hedge?} {verdict}", "{negation} {negated}"),
    "negated": ("{adjective}", "{superlative}", "{verdict}"),
    "quality": ("{degree?} {adjective} {extent?}", "{emphasis?} {superlative} {extent?}"),
}


TOPICS = SINGULAR_TOPICS + PLURAL_TOPICS
WITH_FACTOR: dict[str, Weighed] = {
    "adjective": ADJECTIVES, "superlative": SUPERLATIVES, "verdict": VERDICTS, "verb": VERBS, "liking": LIKINGS,
    "seeming": SEEMINGS, "degree": DEGREES, "emphasis": EMPHASES, "hedge": HEDGES, "negation": NEGATIONS,
    "adverb": ADVERBS, "sincerely": SINCERELY, "extent": EXTENTS, "wish": WISHES, "deed": DEEDS, "order": ORDERS,
    "mark": MARKS,
}  # fmt: skip
WITHOUT_FACTOR: dict[str, tuple[str, ...]] = {
    "remark": REMARKS, "thought": THOUGHTS, "although": ALTHOUGHS, "film": FILMS, "placed": PLACED, "place": PLACES,
    "follows": FOLLOWS, "hero": HEROES, "quest": QUESTS, "casting": CASTINGS, "director": DIRECTORS, "seen": SEEN,
    "when": WHEN, "with": WITH, "order opening": ORDER_OPENINGS, "order ending": ORDER_ENDINGS, "marking": MARKINGS,
}  # fmt: skip
TABLES: dict[str, tuple[Phrase, ...]] = {
    "topic": tuple(Phrase(topic, topic) for topic in TOPICS),
    "topic was": tuple(
        Phrase(f"{topic} {be}", topic)
        for be, topics in (("was", SINGULAR_TOPICS), ("were", PLURAL_TOPICS))
        for topic in topics
    ),
    "but": tuple(Phrase(words, Link.CONTRAST) for words in BUTS),
    "turn": (Phrase(",", Link.CONTRAST),),
    "and": tuple(Phrase(words, Link.AGREEMENT) for words in ANDS),
    **{name: tuple(Phrase(words) for words in table) for name, table in WITHOUT_FACTOR.items()},
    **{name: tuple(Phrase(words, factor) for words, factor in table) for name, table in WITH_FACTOR.items()},
}


class Slot(NamedTuple):
    """One place in a form: a rule or table by its name, or a phrase that stands for itself; it may be optional."""

    symbol: str | Phrase
    optional: bool = False


Form = tuple[Slot, ...]


def _form(text: str) -> Form:
    """`"I {sincerely?} {liking}"` as slots; braces do not nest."""
    slots: list[Slot] = []
    for literal in text.split("{"):
        name, closed, rest = literal.rpartition("}")
        if closed:
            slots.append(Slot(name.removesuffix("?"), name.endswith("?")))
        slots += [Slot(Phrase(word)) for word in rest.split()]
    return tuple(slots)


FORMS: dict[str, tuple[Form, ...]] = {name: tuple(map(_form, rule)) for name, rule in RULES.items()}
