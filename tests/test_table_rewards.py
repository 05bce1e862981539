"""What rows are paid by discriminators: by hand, token by token, and where a response is no row."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from preflab.config.alignment import Discriminators
from preflab.errors import ConfigError, NumericError
from preflab.rewards import Answer, assess
from preflab.tables.alignment.reward import LogitReward, WeightedReward, cell_ends
from preflab.tables.column import Column, Numbers
from preflab.tables.compact import Compact
from preflab.tables.discriminators.crossfit import Calibration
from preflab.tables.discriminators.level import Codes, Level, Logits, Opinion
from preflab.tables.discriminators.panel import Judge, Panel, Stack, fit_panel
from preflab.tables.encoding import Encoding
from preflab.tables.sentence import Sentence
from row_ratios import answers_of, of_places
from small_tables import small_tokenizer
from told_apart import ENCODING, additive
from told_apart import ROWS as ROWS_OF_60

AGE = Column("age", "integer", levels=("", "12"), missing=("",), numbers=Numbers(0, 5000, ()))
"""So long a scale that a cell is a bucket and two digits, in which the point 12 can be written, but is not legal."""
SMOKER = Column("smoker", "boolean", levels=("no", "yes"))
ROWS = [(7, -1), (4321, -2), (-1, -2)]
SEEN = np.array([[age, -1 - age % 2] for age in range(5000)])
FIXED = Compact.of((AGE, SMOKER), SEEN, order=(1, 0))
FREE = Compact.of((AGE, SMOKER), SEEN, order=(1, 0), any_order=True)


@dataclass(frozen=True)
class Said:
    """Says the same of every row."""

    logits: Mapping[str, tuple[float, ...]]
    ratio: float = 0.5

    def opinion(self, codes: Codes, *, whole: bool = False) -> Opinion:
        assert len(codes)
        levels: Any = {name: name.partition(":")[0] for name in self.logits}
        logits = {
            name: of_places(levels[name], np.tile(one, (len(codes), 1)), whole=whole)
            for name, one in self.logits.items()
        }
        return Opinion(logits, levels, np.full(len(codes), self.ratio))


def log_odds(*chances: float) -> tuple[float, ...]:
    return tuple(math.log(p / (1 - p)) for p in chances)


FOUR = Said(
    {
        "token": log_odds(0.1, 0.2, 0.3, 0.4, 0.5),
        "sentence": log_odds(0.6, 0.2),
        "row": log_odds(0.9),
        "feature: a": log_odds(0.25),
        "feature: b": log_odds(0.75),
    }
)


def cut(answer: Answer) -> Answer:
    """Without its end token."""
    return Answer("", "", answer.prompt_ids, answer.response_ids[:-1], False)


def test_weighted_by_hand() -> None:
    assert FIXED.response(ROWS[0])[0] == FIXED.cells[1].first  # smoker, age's bucket and two digits, end
    (score,) = WeightedReward(FIXED, FOUR)(answers_of(FIXED, ROWS[:1])).values
    # 0.2·0.3 + 0.3·0.4 + 0.3·0.9 + 0.2·0.5
    assert score.total == pytest.approx(0.55, abs=1e-12)
    assert score.tokens is None
    expected = {"token": 0.3, "sentence": 0.4, "row": 0.9, "feature": 0.5, "feature: a": 0.25, "feature: b": 0.75}
    assert score.parts == pytest.approx(expected | {"illegal": 0.0}, abs=1e-12)


def test_weighted_token_by_token_by_hand() -> None:
    (score,) = WeightedReward(FIXED, FOUR, dense=True)(answers_of(FIXED, ROWS[:1])).values
    assert score.tokens is not None
    own = [0.2 * p / 5 for p in (0.1, 0.2, 0.3, 0.4, 0.5)]
    own[0] += 0.3 * 0.6 / 2  # the first token is all of the first cell
    own[3] += 0.3 * 0.2 / 2  # age's last digit
    own[4] += 0.3 * 0.9 + 0.2 * 0.5
    assert score.tokens == pytest.approx(own, abs=1e-12)
    assert math.fsum(score.tokens) == pytest.approx(score.total, abs=1e-12)


def test_weights_are_shared_by_the_levels_that_are_there() -> None:
    some = Said({name: FOUR.logits[name] for name in ("row", "feature: a", "feature: b")})
    (score,) = WeightedReward(FIXED, some, dense=True)(answers_of(FIXED, ROWS[:1])).values
    assert score.total == pytest.approx((0.3 * 0.9 + 0.2 * 0.5) / 0.5, abs=1e-12)
    assert score.tokens == pytest.approx((0, 0, 0, 0, score.total), abs=1e-12)
    assert set(score.parts) == {"row", "feature", "feature: a", "feature: b", "illegal"}


def test_logit_by_hand() -> None:
    levels = {"token": (1.0, -0.5, 4.0, 2.0, 9.0), "row": (7.0,), "feature: a": (1.0,), "feature: b": (4.0,)}
    reward = LogitReward(FIXED, Said(levels, ratio=2.5), clip_nats=3.0, dense=True)
    (score,) = reward(answers_of(FIXED, ROWS[:1])).values
    assert score.total == 2.5
    # Prefixes are worth 1, −0.5, 3 (of 4), 2, and the row 2.5.
    assert score.tokens == pytest.approx((1.0, -1.5, 3.5, -1.0, 0.5), abs=1e-12)
    assert score.parts == {
        "token": 9.0, "row": 7.0, "feature": 2.5, "feature: a": 1.0, "feature: b": 4.0, "clipped": 0.0, "illegal": 0.0,
    }  # fmt: skip
    for ratio in (8.0, -8.0):
        (score,) = LogitReward(FIXED, Said(levels, ratio), clip_nats=3.0)(answers_of(FIXED, ROWS[:1])).values
        assert (score.total, score.tokens, score.parts["clipped"]) == (math.copysign(3.0, ratio), None, 1.0)


@dataclass(frozen=True)
class Blind:
    """At token level, of whole rows alone."""

    name: str = "token"
    level: Level = "token"

    def logits(self, codes: Codes) -> Logits:
        raise AssertionError("asked about beginnings of rows")

    def row_logits(self, codes: Codes) -> np.ndarray:
        return np.full(len(codes), 2.0)


def test_only_dense_rewards_ask_about_beginnings_of_rows() -> None:
    judges = (Judge("token", "token", (Blind(), Blind()), Calibration(0.5, 0.25)),)
    panel = Panel(judges, Stack((1.0,), 0.0, Calibration(1.0, 0.0)), ())
    scores = LogitReward(FIXED, panel)(answers_of(FIXED, ROWS)).values
    assert [(score.total, score.parts["token"]) for score in scores] == [(1.25, 1.25)] * 3
    for reward in (LogitReward(FIXED, panel, dense=True), WeightedReward(FIXED, panel)):
        with pytest.raises(AssertionError, match="beginnings"):
            reward(answers_of(FIXED, ROWS))


def test_what_sequences_are_paid_is_what_tokens_are_paid_together_to_the_last_bit() -> None:
    settings = Discriminators(levels=("token", "row"), trees=20, folds=2)
    panel = fit_panel(ENCODING, additive().evidence(400, 800, folds=2), settings, seed=0)
    answers = answers_of(ENCODING, [tuple(row) for row in ROWS_OF_60.tolist()])
    whole, dense = (LogitReward(ENCODING, panel, dense=dense)(answers).values for dense in (False, True))
    assert [(score.total, score.parts) for score in whole] == [(score.total, score.parts) for score in dense]
    assert len({score.total for score in whole}) > 20


def test_without_a_token_level_a_row_is_paid_at_its_end() -> None:
    reward = LogitReward(FIXED, Said({"row": (1.0,)}), dense=True)
    assert [score.tokens for score in reward(answers_of(FIXED, ROWS)).values] == [None] * 3


def test_what_is_no_row_gets_the_least_and_is_counted() -> None:
    legal = answers_of(FIXED, ROWS)
    start, end = FIXED.prompt(), FIXED.end_id
    written = FIXED.response(ROWS[0])
    bad = [
        cut(legal[0]),
        Answer("", "", start, written[:3], False),  # the length limit, within a cell
        Answer("", "", start, (*written[1:], end), True),  # a cell is left out
        Answer("", "", start, (*written[:-1], written[0], end), True),  # one too many
        Answer("", "", start, FIXED.response((12, -1)), True),  # a point that is written like a level
    ]
    for reward, least in (
        (LogitReward(FIXED, FOUR, clip_nats=2.0, dense=True), -2.0),
        (WeightedReward(FIXED, FOUR, dense=True), 0.0),
    ):
        scores = reward([bad[0], legal[1], *bad[1:], legal[2]])
        assert scores.calls == 7
        assert [score.parts["illegal"] for score in scores.values] == [1, 0, 1, 1, 1, 1, 0]
        for score, answer in zip(scores.values, [bad[0], legal[1], *bad[1:], legal[2]], strict=True):
            assert score.tokens is not None
            assert len(score.tokens) == len(answer.response_ids)
            assert math.fsum(score.tokens) == pytest.approx(score.total, abs=1e-12)
            assert set(score.parts) == set(scores.values[1].parts)  # a log has the mean of each
            if score.parts["illegal"]:
                assert score.total == score.tokens[-1] == least
                assert all(score.parts[name] == least for name in ("token", "sentence", "row", "feature"))
            else:
                assert score.total > least
        # A batch without a row has the same parts.
        alone = reward(bad)
        assert {frozenset(score.parts) for score in alone.values} == {frozenset(scores.values[1].parts)}
        assert alone.totals == [least] * 5
        assert assess(reward, bad) == alone


def test_cells_in_the_prompt_are_paid_with_the_first_token_after_it() -> None:
    reward = LogitReward(FIXED, FOUR, dense=True)
    (whole,) = reward(answers_of(FIXED, ROWS[:1])).values
    rest = Answer("", "", FIXED.prompt({1: -1}), FIXED.response(ROWS[0], given=1), True)
    (given,) = reward([rest]).values
    assert given.total == whole.total
    assert whole.tokens is not None
    assert given.tokens == pytest.approx((whole.tokens[0] + whole.tokens[1], *whole.tokens[2:]), abs=1e-12)


def test_cells_in_another_order_than_the_judged_one_are_paid_at_the_end() -> None:
    judge = Said({"token": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7)}, ratio=1.5)
    same = Answer("", "", FREE.prompt(), FREE.response(ROWS[1]), True)
    turned = Answer("", "", FREE.prompt(), FREE.response(ROWS[1], (0, 1)), True)
    first, second = LogitReward(FREE, judge, dense=True)([same, turned]).values
    assert first.total == second.total == 1.5
    assert first.tokens == pytest.approx((0.1, 0.1, 0.1, 0.1, 0.1, 0.1, 0.9), abs=1e-12)
    assert second.tokens == (0.0,) * 6 + (1.5,)


def sentences() -> Sentence:
    return Sentence((AGE, SMOKER), small_tokenizer(), order=(1, 0))


@pytest.mark.parametrize("encoding", [FIXED, FREE, sentences()], ids=["compact", "any order", "text"])
def test_cells_end_where_the_rest_of_the_row_begins(encoding: Encoding) -> None:
    ends = cell_ends(encoding, np.array(ROWS))
    for row, found in zip(ROWS, ends.tolist(), strict=True):
        whole = encoding.response(row)
        for count, end in enumerate(found, 1):
            given = {place: row[place] for place in encoding.order[:count]}
            assert encoding.prompt() + whole[: end + 1] == encoding.prompt(given)
        assert found[-1] + 2 == len(whole)


def test_sentences_of_different_lengths_are_paid_for_their_own_tokens() -> None:
    encoding = sentences()
    lengths = [len(encoding.response(row)) for row in ROWS]
    assert len(set(lengths)) > 1
    tokens = np.linspace(-1, 1, encoding.longest)
    judge = Said({"token": tuple(tokens), "sentence": (1.0, -1.0)}, ratio=0.25)
    weighted, logit = WeightedReward(encoding, judge, dense=True), LogitReward(encoding, judge, dense=True)
    for score, length in zip(weighted(answers_of(encoding, ROWS)).values, lengths, strict=True):
        chances = 1 / (1 + np.exp(-tokens[:length]))
        assert score.parts["token"] == pytest.approx(chances.mean(), abs=1e-12)
        assert score.total == pytest.approx(0.4 * chances.mean() + 0.6 * 0.5, abs=1e-12)
        assert score.tokens is not None
        assert len(score.tokens) == length
        assert math.fsum(score.tokens) == pytest.approx(score.total, abs=1e-12)
    for score, length in zip(logit(answers_of(encoding, ROWS)).values, lengths, strict=True):
        assert score.tokens is not None
        assert np.cumsum(score.tokens) == pytest.approx([*tokens[: length - 1], 0.25], abs=1e-12)


def test_a_logit_that_is_not_finite_stops() -> None:
    for judge in (Said({"row": (math.nan,)}), Said({"row": (1.0,)}, ratio=math.inf)):
        for reward in (LogitReward(FIXED, judge), WeightedReward(FIXED, judge)):
            with pytest.raises(NumericError, match="gives no finite logit"):
                reward(answers_of(FIXED, ROWS))


def test_settings_and_discriminators_that_do_not_fit_are_refused() -> None:
    for clip in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ConfigError, match="clip_nats"):
            LogitReward(FIXED, FOUR, clip_nats=clip)
    with pytest.raises(ValueError, match='discriminator "token" gives logits of shape'):
        LogitReward(FIXED, Said({"token": (1.0, 2.0)}), dense=True)(answers_of(FIXED, ROWS))
