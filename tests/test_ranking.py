"""From responses to pairs: the best against the worst, above the gap."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from enumerable import END_ID, FIRST_LETTER, LETTERS, ShareOf, letters_policy, letters_prompts
from preflab.config.online_preference import Ranking
from preflab.data.encode import Encoder
from preflab.errors import DataError, NumericError
from preflab.rewards.protocol import Answer
from preflab.rollouts.response import Response
from preflab.rollouts.stop import Stop
from preflab.training import ranking as ranking_module
from preflab.training.cost import Cost
from preflab.training.ranking import Ranked, best_against_worst, rank_responses


def response(*tokens: int) -> Response:
    return Response("x", (2,), tokens, (0.0,) * len(tokens), ended=tokens[-1] == END_ID)


FOUR = [response(2, 1), response(3, 1), response(4, 1), response(5, 1)]


@pytest.mark.parametrize(
    ("rewards", "gap", "expected"),
    [
        ((0.1, 0.4, -0.2, 0.3), 0.0, (1, 2)),
        ((0.1, 0.4, -0.2, 0.3), 0.59, (1, 2)),
        ((0.25, 0.5, -0.25, 0.5), 0.75, None),  # not more than the gap
        ((1.0, 1.0, 0.0, 0.0), 0.0, (0, 2)),  # of equals the first
        ((1.0, 1.0, 1.0, 1.0), 0.0, None),
        ((0.0, -1.0, -2.0, -3.0), 2.5, (0, 3)),
    ],
)
def test_best_against_worst(rewards: tuple[float, ...], gap: float, expected: tuple[int, int] | None) -> None:
    assert best_against_worst(FOUR, rewards, smallest_gap=gap) == expected


def test_equal_tokens_make_no_pair_whatever_their_rewards() -> None:
    assert best_against_worst([response(2, 1), response(2, 1)], (1.0, 0.0), smallest_gap=0.0) is None


class Recorder:
    """Pays by the share of a letter, and keeps what it saw."""

    name = "recorder"

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.values: list[float] = []

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        values = ShareOf("a")(answers)
        self.answers += answers
        self.values += values
        return values


def rank(
    reward: Any,
    ranking: Ranking,
    *,
    n: int = 12,
    gold: bool = False,
    penalty: float = 0.5,
    strings: tuple[str, ...] = (),
) -> tuple[Any, Cost]:
    policy = letters_policy(spread=4.0)
    encoder, cost = Encoder(policy.tokenizer, 32, 4), Cost()
    stop = Stop(strings, encoder) if strings else None
    found = rank_responses(
        policy, encoder, reward, letters_prompts(n), ranking, missing_end_penalty=penalty, max_new_tokens=4, seed=0,
        cost=cost, gold=gold, stop=stop,
    )  # fmt: skip
    return found, cost


def test_each_prompt_gives_its_best_against_its_worst_above_the_gap_or_nothing() -> None:
    """Counted again from what the reward saw."""
    reward = Recorder()
    ranking = Ranking(temperatures=(0.5, 1.0, 2.0), smallest_gap=0.3)
    found, _ = rank(reward, ranking)
    assert len(reward.answers) == 36
    expected = {}
    for number, prompt in enumerate(letters_prompts(12)):
        group = slice(3 * number, 3 * number + 3)
        assert {answer.prompt for answer in reward.answers[group]} == {prompt.text}
        paid = [
            value - 0.5 * (answer.response_ids[-1] != END_ID)
            for answer, value in zip(reward.answers[group], reward.values[group], strict=True)
        ]
        if max(paid) - min(paid) > 0.3:
            expected[prompt.key] = (max(paid), min(paid))
    assert 0 < len(expected) < 12
    assert {pair.tree.origin: (pair.chosen_reward, pair.rejected_reward) for pair in found} == expected
    for pair in found:
        assert isinstance(pair, Ranked)
        assert pair.tree.responses == (pair.chosen.tokens, pair.rejected.tokens)
        assert pair.tree.prompt == pair.chosen.prompt == pair.rejected.prompt


def test_every_temperature_gives_one_response(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    sample = ranking_module.sample

    def watched(*args: Any, **kw: Any) -> list[Response]:
        asked.append(kw["temperature"])
        return sample(*args, **kw)

    monkeypatch.setattr(ranking_module, "sample", watched)
    temperatures = (0.3, 0.9, 2.5, 2.5)
    reward = Recorder()
    rank(reward, Ranking(temperatures=temperatures))
    assert asked == list(temperatures)
    # The same temperature twice gives two responses, not one twice.
    third, fourth = ([reward.answers[i].response_ids for i in range(slot, 48, 4)] for slot in (2, 3))
    assert third != fourth


def test_a_hotter_slot_is_more_varied() -> None:
    reward = Recorder()
    rank(reward, Ranking(temperatures=(0.05, 5.0)), n=40)
    cold, hot = ({(a.prompt, a.response_ids) for a in reward.answers[slot::2]} for slot in (0, 1))
    assert len(cold) < 0.6 * len(hot)


def test_a_temperature_s_responses_do_not_depend_on_the_other_temperatures() -> None:
    first, second = Recorder(), Recorder()
    rank(first, Ranking(temperatures=(0.7, 1.5)))
    rank(second, Ranking(temperatures=(0.7, 1.5, 3.0)))
    shared = [answer for number, answer in enumerate(second.answers) if number % 3 < 2]
    assert [answer.response_ids for answer in shared] == [answer.response_ids for answer in first.answers]


def test_no_pair_at_all_is_an_error_that_says_what_to_lower() -> None:
    with pytest.raises(DataError, match=r"no prompt gave a pair: .* ranking\.smallest_gap = 5\.0; lower it, or raise"):
        rank(ShareOf("a"), Ranking(smallest_gap=5.0))
    with pytest.raises(DataError, match="no prompt gave a pair"):
        rank(ShareOf("a", scale=0.0), Ranking(smallest_gap=0.0), penalty=0.0)


def test_responses_are_sampled_as_the_ranking_warps_them() -> None:
    """One token left to sample is the likeliest, at any temperature: one response as often as asked for."""
    reward = Recorder()
    with pytest.raises(DataError, match="no prompt gave a pair"):
        rank(reward, Ranking(temperatures=(0.5, 3.0), top_k=1))
    assert [answer.response_ids for answer in reward.answers[::2]] == [
        answer.response_ids for answer in reward.answers[1::2]
    ]


def test_a_response_is_ranked_and_paired_without_the_text_that_ended_it() -> None:
    free, held = Recorder(), Recorder()
    ranking = Ranking(temperatures=(1.0, 1.5, 2.0), smallest_gap=0.05)
    _, free_cost = rank(free, ranking)
    found, cost = rank(held, ranking, strings=("ab", "c"))
    stopped = 0
    for whole, answer in zip(free.answers, held.answers, strict=True):
        cut = min((place for text in ("ab", "c") if (place := whole.response.find(text)) >= 0), default=None)
        if cut is None:
            assert answer == whole
            continue
        stopped += 1
        assert answer.response == whole.response[:cut]
        letters = tuple(FIRST_LETTER + LETTERS.index(letter) for letter in answer.response)
        assert (answer.response_ids, answer.ended) == ((*letters, END_ID), True)
    assert 5 < stopped < 36
    known = {answer.response_ids for answer in held.answers}
    assert found
    assert {ids for pair in found for ids in pair.tree.responses} <= known
    # What was sampled is paid for, not what is left of it.
    paid = sum(len(answer.response_ids) for answer in held.answers)
    assert paid < cost.generated_tokens + stopped
    assert cost.generated_tokens < free_cost.generated_tokens


def test_a_reward_that_is_not_a_number_is_an_error() -> None:
    with pytest.raises(NumericError, match="share of a gave nan"):
        rank(ShareOf("a", scale=float("nan")), Ranking())


@pytest.mark.parametrize("gold", [False, True])
def test_costs_are_those_of_all_that_was_sampled(gold: bool) -> None:
    reward = Recorder()
    _, cost = rank(reward, Ranking(temperatures=(0.5, 1.0, 2.0)), gold=gold)
    read = [len(answer.prompt_ids + answer.response_ids) - 1 for answer in reward.answers]
    assert cost.generated_tokens == sum(len(answer.response_ids) for answer in reward.answers)
    assert (cost.scored_tokens, cost.trained_tokens) == (0, 0)  # a rule reads none
    assert (cost.reward_calls, cost.gold_calls) == ((0, 36) if gold else (36, 0))
    block, head, seen = 12 * 16**2, 6 * 16, sum(n * (n + 1) // 2 for n in read)  # of one block of width 16
    assert cost.flops == 2 * block * sum(read) + 4 * 16 * seen + 2 * head * cost.generated_tokens
    assert cost.wall_seconds > 0


def test_ranking_takes_nothing_from_the_global_generator() -> None:
    before = torch.get_rng_state()
    first, _ = rank(ShareOf("a"), Ranking())
    torch.manual_seed(5)
    second, _ = rank(ShareOf("a"), Ranking())
    torch.set_rng_state(before)
    assert [pair.tree for pair in first] == [pair.tree for pair in second]
    assert len({pair.chosen.tokens for pair in itertools.chain(first, second)}) > 1


def test_a_line_says_what_the_responses_were_worth(capfd: pytest.CaptureFixture[str]) -> None:
    reward = Recorder()
    rank(reward, Ranking(temperatures=(0.5, 1.0)))
    mean = sum(reward.values) / len(reward.values)
    assert re.search(rf"^responses: \d+ s, reward {mean:.2f}, sampling [\d,]+ tokens/s$", capfd.readouterr().err, re.M)
