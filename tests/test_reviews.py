"""The controlled film reviews: grammar, automaton, parser, generator, count."""

import doctest
import itertools
import statistics
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preflab.data import review_automaton, review_grammar, review_parser, reviews
from preflab.data.review_grammar import FORMS, TABLES, WITH_FACTOR, Form, Phrase, Slot
from preflab.data.reviews import (
    count_reviews,
    generate_review,
    generate_reviews,
    judges,
    parse_review,
    review_sentiment,
    vocabulary,
)


@pytest.fixture(scope="module")
def drawn() -> list[str]:
    return generate_reviews(5000, seed=7)


def clauses(sentence: str) -> list[tuple[float, float]]:
    return [(round(clause.sentiment, 6), clause.weight) for clause in parse_review(sentence).sentences[0].clauses]


@pytest.mark.parametrize("module", [review_grammar, review_automaton, review_parser, reviews])
def test_doctests(module):
    assert doctest.testmod(module).failed == 0


# Meaning, worked by hand from the tables


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The plot was dull.", -0.6),
        ("The jokes were superb.", 0.9),
        ("The plot was very dull.", 1.25 * -0.6),
        ("The plot was a little dull.", 0.5 * -0.6),
        ("The plot was quite dull at times.", 0.8 * -0.6 * 0.6),
        ("The plot was utterly magnificent.", 1.0),  # 1.15 · 0.95 is clipped
        ("The plot was extremely lifeless.", 1.4 * -0.7),
        ("The plot was not dull.", 0.3),
        ("The plot was hardly brilliant.", -0.45),
        ("The plot was anything but a disaster.", 0.8),
        ("The songs almost won me over.", 0.6 * 0.75),
        ("What fell flat was the score.", -0.65),
        ("I really hated the cast.", -1.0),  # 1.2 · −0.9 is clipped
        ("I found the cast rather thin.", 0.8 * -0.4),
        ("To be honest, I did not care for the cast.", -0.45),
        ("There is no doubt that the cast seemed warm.", 0.9 * 0.5),
        ("Skip it.", -0.8),
        ("So take your friends if you can.", 0.6),
        ("I would gladly see it again.", 1.1 * 0.8),
        ("I would never see it again.", -1.1 * 0.8),
        ("I give it nine out of ten.", 0.9),
    ],
)
def test_one_clause(sentence, expected):
    assert clauses(sentence) == [(pytest.approx(expected), 1.0)]


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("The plot was thin, but the ending won me over.", [(-0.4, 0.5), (0.75, 1.5)]),
        ("The ending won me over, yet the plot was thin.", [(0.75, 0.5), (-0.4, 1.5)]),
        ("While I loved the plot, the ending fell flat.", [(0.8, 0.5), (-0.65, 1.5)]),
        ("I loved the plot, and the score was a joy.", [(0.8, 1.0), (0.8, 1.0)]),
    ],
)
def test_two_clauses(sentence, expected):
    assert clauses(sentence) == expected


def test_order_of_a_contrast_matters():
    kind_end = review_sentiment("The plot was thin, but the ending won me over. I loved the score.")
    sour_end = review_sentiment("The ending won me over, but the plot was thin. I loved the score.")
    assert kind_end == pytest.approx((0.5 * -0.4 + 1.5 * 0.75 + 0.8) / 3)
    assert sour_end == pytest.approx((0.5 * 0.75 + 1.5 * -0.4 + 0.8) / 3)


def test_neutral_sentences_are_not_counted():
    opinions = "I loved the plot. The cast was dull. The score was a joy."
    assert review_sentiment(opinions) == pytest.approx((0.8 - 0.6 + 0.8) / 3)
    review = parse_review("It is set in Paris. I loved the plot, and the score was a joy. The cast was dull.")
    assert review.grammatical
    assert review.sentences[0].sentiment == 0
    assert review.sentiment == pytest.approx((0.8 + 0.8 - 0.6) / 3)


def test_a_strong_review_needs_three_strong_clauses():
    assert review_sentiment("The plot was a triumph. Do not miss it.") == pytest.approx((1 + 0.9) / 3)
    assert review_sentiment("The plot was a triumph. This film is set in Rome.") == pytest.approx(1 / 3)
    three = "The plot was a triumph. I really adored the cast. I give it ten out of ten."
    assert review_sentiment(three) == 1
    other = (
        "The score completely blew me away, and the sets were utterly superb. What really stole the show was the hero."
    )
    assert review_sentiment(other) == pytest.approx((1 + 1 + 1.2 * 0.8) / 3)


# Faults

GOOD = "The plot was not dull. It is set in Paris. I loved the score."


@pytest.mark.parametrize(
    ("text", "faulty"),
    [
        (GOOD, []),
        (GOOD.replace("score.", "score"), [2]),  # unfinished
        (GOOD.replace(" score.", "."), [2]),
        (GOOD.replace("plot", "Plot"), [0]),  # case
        (GOOD.replace("The", "the"), [0]),
        (GOOD.replace("Paris", "paris"), [1]),
        (GOOD.replace("was not", "was  not"), [0]),  # spacing
        (GOOD.replace("dull. ", "dull.  "), [1]),
        (GOOD.replace("dull. ", "dull . "), [0]),
        (GOOD.replace("dull. ", "dull."), [0]),
        (" " + GOOD, [0]),
        (GOOD + " ", [3]),
        (GOOD + "\n", [2]),
        (GOOD.replace("dull. ", "dull.\n"), [0]),
        (GOOD.replace("dull.", "dull.."), [0]),
        (GOOD.replace("dull.", "dull,"), [0]),
        (GOOD.replace("plot was", "plot were"), [0]),  # agreement
        (GOOD.replace("dull", "Paris"), [0]),  # a word out of place
        (GOOD.replace("dull", "dullish"), [0]),  # an unknown word
        (GOOD.replace("plot", "plot plot"), [0]),  # a repeated word
        (GOOD.replace("was ", ""), [0]),  # a missing word
        (GOOD.replace("the score", "the plot"), [2]),  # a topic again
        ("I loved the score. I loved the score.", [1]),  # a sentence again
        ("It is set in Paris. It is set in Paris. I loved the score.", [1]),
        ("It is set in Paris. The director used to paint. I loved the score.", [1]),  # two neutral sentences
        ("Skip it. I loved the score.", [1]),  # advice closes a review
        (GOOD + " Skip it.", [3]),  # a fourth sentence
        ("The plot was dull, but the plot was fine. Skip it.", [0]),
        ("The plot was dull ,but the score was fine. Skip it.", [0]),
    ],
)
def test_faults(text, faulty):
    parse = parse_review(text)
    assert [number for number, sentence in enumerate(parse.sentences) if not sentence.grammatical] == faulty
    assert parse.grammatical is not bool(faulty)
    assert all(parse.sentences[number].sentiment == -1 for number in faulty)


def test_a_fault_counts_as_a_clause_of_minus_one():
    assert review_sentiment(GOOD + " Skip it.") == pytest.approx((0.3 + 0.8 - 1) / 3)
    assert review_sentiment(GOOD.replace("score.", "score")) == pytest.approx((0.3 - 1 - 1) / 3)
    assert review_sentiment("I loved the plot.") == pytest.approx((0.8 - 1 - 1) / 3)
    assert not parse_review("I loved the plot.").grammatical
    assert review_sentiment("") == review_sentiment("no") == review_sentiment("the plot the plot") == -1
    assert parse_review("").sentences == ()


def test_a_prefix_is_a_review_only_where_a_sentence_ends(drawn):
    for text in drawn[:200]:
        words = text.split()
        for cut in range(len(words)):
            prefix = " ".join(words[:cut])
            assert parse_review(prefix).grammatical is (prefix.endswith(".") and prefix.count(".") >= 2)


@settings(max_examples=300)
@given(st.text())
def test_total_on_any_text(text):
    assert -1 <= review_sentiment(text) <= 1


@settings(max_examples=300)
@given(st.lists(st.sampled_from([*sorted(vocabulary()), ".", ". ", ",", " ", "  ", "The", "I", "\ud800"])))
def test_total_on_words_of_the_grammar(pieces):
    parse = parse_review(" ".join(pieces))
    assert -1 <= parse.sentiment <= 1
    assert parse.grammatical is (len(parse.sentences) >= 2 and all(one.grammatical for one in parse.sentences))


@pytest.mark.parametrize(
    "junk", ["a" * 10**6, ". " * 10**5, "The plot " * 10**5, " " * 10**6, "," * 10**6, GOOD * 10**4]
)
def test_total_on_large_junk(junk):
    assert review_sentiment(junk) <= 0


# The round trip


def test_the_text_alone_gives_back_what_was_meant():
    rng = Random(11)
    for _ in range(3000):
        review = generate_review(rng)
        parse = parse_review(review.text)
        assert parse.grammatical
        assert parse.clauses == review.clauses


def test_sentiment_is_the_mean_of_what_was_meant():
    rng = Random(12)
    for _ in range(500):
        review = generate_review(rng)
        total = sum(clause.sentiment * clause.weight for clause in review.clauses)
        assert review_sentiment(review.text) == pytest.approx(total / max(3, len(review.clauses)))


def test_seeds(drawn):
    assert generate_reviews(50, seed=7) == drawn[:50]
    assert generate_reviews(50, seed=8) != drawn[:50]
    assert generate_reviews(0, seed=7) == []
    with pytest.raises(ValueError, match="n must be"):
        generate_reviews(-1, seed=7)


# The distribution


def test_surface(drawn):
    assert len(set(drawn)) > 0.999 * len(drawn)
    for text in drawn:
        assert 12 <= len(text.split()) <= 34
        assert 2 <= text.count(".") <= 3
        assert text.endswith(".")
        assert "  " not in text


def test_sentiments_are_wide_and_balanced(drawn):
    sentiments = [review_sentiment(text) for text in drawn]
    assert statistics.pstdev(sentiments) > 0.4
    assert abs(statistics.mean(sentiments)) < 0.05
    assert 0.46 < sum(value > 0 for value in sentiments) / len(sentiments) < 0.54


def test_the_first_sentence_tells_something_of_the_rest(drawn):
    firsts, rests = [], []
    for text in drawn:
        first, *rest = [sentence for sentence in parse_review(text).sentences if sentence.clauses]
        if rest:
            firsts.append(first.sentiment)
            rests.append(statistics.mean(sentence.sentiment for sentence in rest))
    assert 0.3 < statistics.correlation(firsts, rests) < 0.7


def test_prefixes_vary():
    rng = Random(0)
    topics = sorted(review_grammar.TOPICS, key=len, reverse=True)
    whole, masked = set(), set()
    for text in generate_reviews(20_000, seed=0):
        prefix = " ".join(text.split()[: rng.randint(2, 8)])
        whole.add(prefix)
        for topic in topics:
            prefix = prefix.replace(topic, "_").replace(topic.capitalize(), "_")
        masked.add(prefix)
    assert len(whole) > 8000
    assert len(masked) > 4000


# The grammar


def test_a_sentence_judges_where_it_has_a_clause_and_no_neutral_one_does(drawn):
    sentences = [f"{one}." for text in drawn for one in text.rstrip(".").split(". ")]
    found = {sentence: bool(parse_review(sentence).sentences[0].clauses) for sentence in sentences}
    assert {False, True} == set(found.values())
    assert {sentence: judges(sentence) for sentence in found} == found


@pytest.mark.parametrize(
    ("beginning", "judged"),
    [
        ("The plot was very dull", True),
        ("What really made me smile was", True),
        ("I had a soft spot for", True),
        ("The plot was not exactly", False),
        ("What gave me a", False),  # a headache, but that is still to come
        ("I saw it with old friends. Skip it", True),
        ("This film is set in", False),
    ],
)
def test_a_beginning_judges_once_a_whole_phrase_does(beginning, judged):
    assert judges(beginning) is judged


def test_vocabulary():
    assert 300 <= len(vocabulary()) <= 700
    assert all(word.isalpha() for word in vocabulary())


def test_factors():
    for table in WITH_FACTOR.values():
        for words, factor in table:
            assert isinstance(factor, float), words
            assert 0 < abs(factor) <= 1.4, words


def test_a_word_of_degree_has_one_factor_everywhere():
    tables = ("degree", "emphasis", "hedge", "negation", "adverb", "sincerely", "extent")
    factors: dict[str, set[float]] = {}
    for words, factor in itertools.chain.from_iterable(WITH_FACTOR[name] for name in tables):
        factors.setdefault(words, set()).add(factor)
    assert all(len(values) == 1 for values in factors.values())


def test_every_slot_names_a_rule_or_table():
    named = {slot.symbol for forms in FORMS.values() for form in forms for slot in form if isinstance(slot.symbol, str)}
    assert named <= FORMS.keys() | TABLES.keys()
    assert not FORMS.keys() & TABLES.keys()
    assert named | {kind.value for kind in review_grammar.Kind} == FORMS.keys() | TABLES.keys()


@pytest.mark.parametrize(
    ("table", "phrase", "message"),
    [
        ("superlative", Phrase("dull", 0.9), "in two ways"),  # two meanings
        ("superlative", Phrase("dull", -0.6), "in two ways"),  # one meaning, two derivations
        ("adjective", Phrase("dull at", -0.6), "go on or start"),  # "dull" + "at times", or "dull at" …
    ],
)
def test_an_ambiguous_grammar_is_refused(monkeypatch, table, phrase, message):
    monkeypatch.setitem(TABLES, table, (*TABLES[table], phrase))
    with pytest.raises(ValueError, match=message):
        review_automaton.start.__wrapped__()


def texts_of(form: Form) -> list[str]:
    """Every derivation of a form, spelled out."""
    ways: list[str] = [""]
    for symbol, optional in form:
        if isinstance(symbol, Phrase):
            choices = [symbol.words]
        elif symbol in TABLES:
            choices = [phrase.words for phrase in TABLES[symbol]]
        else:
            choices = [text for alternative in FORMS[symbol] for text in texts_of(alternative)]
        ways = [f"{way} {choice}".strip() for way in ways for choice in (*choices, *[""] * optional)]
    return ways


def test_count_is_the_number_of_grammatical_texts(monkeypatch):
    """On a grammar cut down to a handful of phrases, count what the parser accepts among all that can be spelled."""
    topics = ("the plot", "the score", "the jokes")
    tables = {
        "topic was": tuple(Phrase(f"{topic} {'were' if topic.endswith('s') else 'was'}", topic) for topic in topics),
        "adjective": (Phrase("dull", -0.6), Phrase("good", 0.5)),
        **{name: TABLES[name][:1] for name in ("but", "although", "and", "film", "casting", "order opening", "order")},
    }
    forms = {
        "clause": ((Slot("topic was"), Slot("adjective")),),
        "single": ((Slot("clause"),),),
        "neutral": ((Slot("film"), Slot("casting")),),
        "advice": ((Slot("order opening", optional=True), Slot("order")),),
    }
    for name in tables:
        monkeypatch.setitem(TABLES, name, tables[name])
    for name in forms:
        monkeypatch.setitem(FORMS, name, forms[name])
    monkeypatch.setattr(reviews, "TOPICS", topics)
    try:
        review_automaton.start.cache_clear()
        reviews._count.cache_clear()
        spelled = [text for kind in ("opinion", "neutral", "advice") for text in texts_of((Slot(kind),))]
        sentences = [text[0].upper() + text[1:].replace(" ,", ",") + "." for text in spelled]
        sensible = [text for text in sentences if parse_review(text).sentences[0].grammatical]
        assert len(set(sentences)) == len(sentences) > len(sensible)
        texts = (" ".join(chosen) for n in (1, 2, 3) for chosen in itertools.product(sensible, repeat=n))
        assert sum(parse_review(text).grammatical for text in texts) == count_reviews()
    finally:
        review_automaton.start.cache_clear()
        reviews._count.cache_clear()


def test_count():
    assert count_reviews() > 10**6
