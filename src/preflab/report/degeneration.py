"""How responses degenerate: loops, sameness within and between them, collapse onto one answer.

Everything takes responses as words and gives one value a response, so that its mean has an interval (`estimate`) and a
difference between arms is paired by prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from preflab.report.statistics import Matrix, distinct_values, n_grams, ratio_values, repetition
from preflab.report.study import Point, Sample

Words = Sequence[str]

LOOP_TIMES = 3
LOOP_WORDS = 6
LONGEST_LOOP = 16
"""A loop is what a response ends with: at least so many times in a row, so many words in all, of so long a part."""
ALIKE = 0.8
"""From this overlap on two responses count as the same."""
BLEU_ORDER = 4
BLEU_PROMPTS = 200
TWIN_PROMPTS = 1000
"""How many prompts, from the first, are asked: both compare each response with every other."""


def ends_in_loop(words: Words) -> bool:
    """Whether a response ends in a loop: its last 6 words or more are one part of 1 to 16 words said 3 times or more.

    The last round may have been cut short.

    >>> [ends_in_loop(text.split()) for text in ("so good and so good and so good and so", "very very very good")]
    [True, False]
    """
    for period in range(1, min(LONGEST_LOOP, len(words) // LOOP_TIMES) + 1):
        length = period
        while length < len(words) and words[-length - 1] == words[period - length - 1]:
            length += 1
        if length >= max(LOOP_TIMES * period, LOOP_WORDS):
            return True
    return False


def self_bleu(responses: Sequence[Words]) -> Matrix:
    """Each response's BLEU with all others as its references, 0 to 1: high where responses are made of the same parts.

    BLEU-4 (Papineni et al. 2002): brevity · exp(mean of log p_n), p_n the share of a response's n-grams that another
    response has as often; above words, one is added to both counts (Lin and Och 2004), since short responses share
    no run of 4 words. As a measure of diversity: Zhu et al. 2018, arXiv 1802.01886. It rises with the number of
    responses: compare it at the same number only.

    >>> self_bleu(["a b c d e".split(), "a b c d e".split()])
    array([1., 1.])
    """
    counts = [[Counter(n_grams(words, n)) for n in range(1, BLEU_ORDER + 1)] for words in responses]
    most = [highest_two([of[n] for of in counts]) for n in range(BLEU_ORDER)]
    lengths = np.array([len(words) for words in responses])
    values = np.zeros(len(responses))
    for i, words in enumerate(responses):
        logs = []
        for n in range(min(BLEU_ORDER, len(words))):
            known = sum(min(times, others(most[n][gram], times)) for gram, times in counts[i][n].items())
            total, smooth = len(words) - n, int(n > 0)
            logs.append(log((known + smooth) / (total + smooth)) if known + smooth else -np.inf)
        if logs and len(responses) > 1:
            away = np.delete(lengths, i)
            nearest = min(away, key=lambda length: (abs(length - len(words)), length))
            values[i] = exp(min(0.0, 1 - nearest / len(words)) + sum(logs) / len(logs))
    return values


def highest_two(counts: Sequence[Counter[tuple[str, ...]]]) -> dict[tuple[str, ...], tuple[int, int]]:
    """How often each n-gram stands in the two responses that have it most."""
    found: dict[tuple[str, ...], tuple[int, int]] = {}
    for count in counts:
        for gram, times in count.items():
            first, second = found.get(gram, (0, 0))
            found[gram] = (times, first) if times > first else (first, max(second, times))
    return found


def others(most: tuple[int, int], mine: int) -> int:
    """How often an n-gram stands at most in another response, from the two highest counts, one of which may be mine."""
    first, second = most
    return second if mine == first else first


def normalised(response: str) -> str:
    """A response as it counts for being the same: letters and digits, in small letters, one space between words.

    >>> normalised(" It was GOOD , really.")
    'it was good really'
    """
    return " ".join("".join(c if c.isalnum() else " " for c in response.lower()).split())


def twins(responses: Sequence[str], prompts: Sequence[str]) -> NDArray[np.bool_]:
    """Whether each response is the same, or nearly, as a response to another prompt.

    The same: equal up to case and punctuation. Nearly: the sets of their runs of 3 words overlap by 80 % or more
    (|A ∩ B| / |A ∪ B|). Prompts of the same text are no other prompt.

    >>> twins(["so good", "So good!", "dull"], ["x", "y", "z"]).tolist()
    [True, True, False]
    """
    texts = [normalised(response) for response in responses]
    sets = [set(n_grams(text.split(), 3)) or {(text,)} for text in texts]
    columns = {gram: i for i, gram in enumerate(dict.fromkeys(gram for grams in sets for gram in sorted(grams)))}
    at = [columns[gram] for grams in sets for gram in sorted(grams)]
    ends = np.cumsum([0, *(len(grams) for grams in sets)])
    holds = sparse.csr_matrix((np.ones(len(at)), at, ends), shape=(len(sets), len(columns)))
    shared = (holds @ holds.T).toarray()
    sizes = np.diff(ends)
    overlap = shared / (sizes[:, None] + sizes[None, :] - shared)
    asked = np.unique(np.array(prompts), return_inverse=True)[1]
    alike: NDArray[np.bool_] = ((overlap >= ALIKE) & (asked[:, None] != asked[None, :])).any(axis=1)
    return alike


@dataclass(frozen=True)
class Commonest:
    """The response that was given most often, as it was first written."""

    response: str
    times: int
    of: int

    @property
    def share(self) -> float:
        """Its share of all responses."""
        return self.times / self.of


def commonest(responses: Sequence[str]) -> Commonest:
    """The most frequent response, up to case and punctuation; of equally frequent ones the first.

    >>> commonest(["Good.", "bad", "good"])
    Commonest(response='Good.', times=2, of=3)
    """
    texts = [normalised(response) for response in responses]
    text, times = Counter(texts).most_common(1)[0]
    return Commonest(responses[texts.index(text)], times, len(texts))


def distinct_responses(responses: Sequence[str]) -> int:
    """How many responses differ by more than case and punctuation."""
    return len({normalised(response) for response in responses})


def by_prompt(point: Point) -> tuple[tuple[Sample, ...], ...] | None:
    """One response to each prompt of a point, in its order, for each seed; None where one is missing."""
    found = []
    for samples in point.samples:
        known = {sample.prompt_id: sample for sample in reversed(samples)}
        if not all(prompt in known for prompt in point.prompts):
            return None
        found.append(tuple(known[prompt] for prompt in point.prompts))
    return tuple(found)


@dataclass(frozen=True)
class Signs:
    """What tells degeneration, a row a seed and a column a prompt (or a text); None where there are no responses."""

    loops: Matrix | None
    repetition: Matrix | None
    distinct_1: Matrix | None
    distinct_2: Matrix | None
    distinct_3: Matrix | None
    self_bleu: Matrix | None
    """Of the first `BLEU_PROMPTS` prompts."""
    twins: Matrix | None
    """Of the first `TWIN_PROMPTS` prompts."""
    ended: Matrix
    tokens: Matrix
    log_perplexity: Matrix | None
    """In nats a token; None where no held-out text was scored."""


def signs(point: Point) -> Signs:
    """All signs of a point."""
    scored = point.nll_tokens.shape[1] > 1 and bool((point.nll_tokens > 0).all())
    log_perplexity = ratio_values(point.nll_nats, point.nll_tokens) if scored else None
    responses = by_prompt(point)
    if not responses:
        return Signs(None, None, None, None, None, None, None, point.ended, point.response_tokens, log_perplexity)
    words = [[sample.response.split() for sample in seed] for seed in responses]

    def distinct(n: int) -> Matrix:
        return np.concatenate([distinct_values([n_grams(response, n) for response in seed]) for seed in words])

    def alike(seed: Sequence[Sample]) -> NDArray[np.bool_]:
        return twins([s.response for s in seed[:TWIN_PROMPTS]], [s.prompt for s in seed[:TWIN_PROMPTS]])

    return Signs(
        loops=np.array([[float(ends_in_loop(response)) for response in seed] for seed in words]),
        repetition=np.array([[repetition(response) for response in seed] for seed in words]),
        distinct_1=distinct(1),
        distinct_2=distinct(2),
        distinct_3=distinct(3),
        self_bleu=np.stack([self_bleu(seed[:BLEU_PROMPTS]) for seed in words]),
        twins=np.stack([alike(seed) for seed in responses]).astype(np.float64),
        ended=point.ended,
        tokens=point.response_tokens,
        log_perplexity=log_perplexity,
    )
