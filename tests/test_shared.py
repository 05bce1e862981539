"""What the arms of a study share, without running a study."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from preflab.config.commands import Base, Compare, Lengths, Pairs, Prompts
from preflab.config.training import Batch, Optimizer
from preflab.config.training import Reward as RewardSettings
from preflab.data.encode import Encoder
from preflab.data.records import Prompt
from preflab.data.reviews import judges
from preflab.errors import DataError
from preflab.models.load import load_policy
from preflab.rewards.protocol import Answer, Reward
from preflab.studies.preferences import Labelled, sample_pairs
from preflab.studies.reviews import generated_reviews
from preflab.studies.shared import base_inputs, make_preferences, reference_inputs, seed_inputs
from preflab.studies.stages import Stages
from preflab.training.rollout import prompt_ids
from tiny import save_tiny, tiny_policy

TINY = Compare(
    prompts=Prompts(train=40, validation=5, test=10),
    lengths=Lengths(prompt_tokens=4, response_tokens=12),
    base=Base(texts=300),
    pairs=Pairs(responses=2, per_prompt=1),
    reward=RewardSettings(batch=Batch(size=32), evaluations=1, optimizer=Optimizer(learning_rate=1e-3)),
)


def test_the_perplexity_of_generated_reviews_is_on_texts_that_no_model_was_trained_on() -> None:
    task = generated_reviews(TINY)
    held_out = {row.prompt + row.response for row in task.held_out}
    assert len(held_out) > 100
    assert not held_out & set(task.corpus)
    assert not held_out & {row.prompt + row.response for row in task.demonstrations}


def test_a_second_start_finds_the_preferences_and_counts_of_the_first(tmp_path: Path) -> None:
    task, stages = generated_reviews(TINY), Stages(tmp_path / "stages")
    reference = load_policy(save_tiny(stages.folder / "reference" / "model"))
    first = make_preferences(TINY, task, reference, stages, 0)
    assert any("lost their beginning" in count["name"] for count in first.counts)
    assert make_preferences(TINY, task, reference, stages, 0) == first


def of_kind(policy: Literal["all", "judged", "open"]) -> Compare:
    return replace(TINY, prompts=replace(TINY.prompts, policy=policy))


def test_two_kinds_of_prompts_part_those_that_arms_sample_on_and_nothing_else() -> None:
    everything, judged, unjudged = (generated_reviews(of_kind(policy)) for policy in ("all", "judged", "open"))
    assert everything.sampled_on == everything.prompts["train"]
    assert judged.sampled_on
    assert unjudged.sampled_on
    assert {*judged.sampled_on, *unjudged.sampled_on} == {*everything.sampled_on}
    assert not {*judged.sampled_on} & {*unjudged.sampled_on}
    assert any(" was " in prompt.text for prompt in judged.sampled_on)
    for task in (judged, unjudged):
        assert task.prompts == everything.prompts
        assert task.demonstrations == everything.demonstrations
        assert list(task.counts.values())[1:] == [len(task.sampled_on)]


def test_a_kind_that_no_training_prompt_has_is_refused() -> None:
    few = replace(TINY, prompts=Prompts(train=1, validation=2, test=2))
    (only,) = generated_reviews(few).prompts["train"]
    missing: Literal["judged", "open"] = "open" if judges(only.text) else "judged"
    with pytest.raises(DataError, match=f"policy = {missing}: none of the 1 train prompts is; raise prompts.train"):
        generated_reviews(replace(few, prompts=replace(few.prompts, policy=missing)))


def test_what_arms_share_is_the_same_for_every_kind_of_prompts() -> None:
    for inputs in (base_inputs, reference_inputs, lambda config: seed_inputs(config, 0)):
        assert inputs(of_kind("judged")) == inputs(of_kind("all"))
        assert inputs(replace(TINY, prompts=Prompts(train=41, validation=5, test=10))) != inputs(TINY)


@dataclass(frozen=True)
class InTurn:
    """A reward that gives these values in turn, whatever is said."""

    values: tuple[float, ...]
    name: str = "in turn"

    def __call__(self, answers: Sequence[Answer]) -> list[float]:
        return [self.values[place % len(self.values)] for place in range(len(answers))]


def labelled(gold: Reward, *, prompts: int, responses: int, temperature: float = 1.0) -> Labelled:
    policy = tiny_policy()
    encoder = Encoder(policy.tokenizer, prompt_tokens=16, response_tokens=4)
    asked = prompt_ids(encoder, tuple(Prompt(f"The plot {n}", f"p:{n}") for n in range(prompts)))
    pairs = Pairs(responses=responses, temperature=temperature)
    return sample_pairs(policy, encoder, asked, gold, pairs, max_new_tokens=4, seed=0)


def test_labels_of_a_reward_of_any_scale() -> None:
    found = labelled(InTurn((4000.0, -4000.0)), prompts=20, responses=4)
    assert set(found.ceiling) == {0.5, 1.0}
    assert {agrees for agrees, best in zip(found.agrees, found.ceiling, strict=True) if best == 1} == {1.0}


@pytest.mark.parametrize("difference", [-3.0, 0.0, 0.4])
def test_labels_and_their_ceiling_are_those_of_bradley_terry(difference: float) -> None:
    found = labelled(InTurn((0.0, difference)), prompts=300, responses=2)
    right = 1 / (1 + math.exp(-abs(difference)))
    assert found.ceiling == pytest.approx([right] * len(found.pairs))
    share = sum(found.agrees) / len(found.agrees)
    assert share == pytest.approx(right, abs=4 * (right * (1 - right) / len(found.pairs)) ** 0.5)


def test_what_is_compared_is_sampled_at_the_asked_temperature() -> None:
    """Near 0 all responses to a prompt are the likeliest one, and equal texts are no pair."""
    assert labelled(InTurn((0.0, 1.0)), prompts=20, responses=4).pairs
    cold = labelled(InTurn((0.0, 1.0)), prompts=20, responses=4, temperature=1e-6)
    assert not cold.pairs
    assert {len({a.response for a in cold.answers if a.prompt == f"The plot {n}"}) for n in range(20)} == {1}
