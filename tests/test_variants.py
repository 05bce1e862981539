"""Variants of arms: one spelling each, labels that tell them apart, and settings that a method really takes."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preflab.cli.flags import parse
from preflab.config.arms import (
    LABELS,
    Swept,
    before,
    canonical,
    family,
    label,
    needs_reward_model,
    overrides,
    parts,
    spelled,
    stages,
    swept,
    written,
)
from preflab.config.commands import Compare
from preflab.config.load import check, flatten, read_scalar, to_values
from preflab.errors import ConfigError
from preflab.studies.arms import describe, settings_of

CONFIG = Compare()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("dpo@loss.beta=0.050", "dpo@loss.beta=0.05"),
        ("dpo@loss.beta=.05", "dpo@loss.beta=0.05"),
        ("dpo@loss.beta=5e-2", "dpo@loss.beta=0.05"),
        ("dpo@loss.beta=1e+0", "dpo@loss.beta=1"),
        ("dpo@loss.beta=1", "dpo@loss.beta=1"),
        ("dpo@loss.beta=1.0", "dpo@loss.beta=1"),
        ("dpo@optimizer.learning-rate=0.0001", "dpo@optimizer.learning_rate=1e-4"),
        ("dpo@optimizer.learning_rate=2.50e-5@loss.beta=1", "dpo@loss.beta=1@optimizer.learning_rate=2.5e-5"),
        ("ppo-gold@updates=8.0", "ppo-gold@updates=8"),
        ("ppo@whiten-rewards=yes@value-clip=None", "ppo@value_clip=null@whiten_rewards=true"),
        ("ppo@whiten_rewards=on", "ppo@whiten_rewards=true"),
        ("ppo@value-trunk=shared", "ppo@value_trunk=shared"),
        ("best-of-n@n=64", "best-of-n@n=64"),
        ("sft+dpo@loss.beta=.5+ppo@kl-coefficient=.05", "sft+dpo@loss.beta=0.5+ppo@kl_coefficient=0.05"),
        ("dpo@batch.size=1e+2+sft", "dpo@batch.size=100+sft"),
        ("dpo+ppo", "dpo+ppo"),
        ("reference", "reference"),
    ],
)
def test_an_arm_has_one_spelling(given: str, expected: str) -> None:
    assert canonical(CONFIG, given) == expected
    assert canonical(CONFIG, expected) == expected


@given(st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**12), 10**12) | st.booleans() | st.none())
@example(2.0**-24)  # halfway between two decimals of 16 digits
def test_a_spelled_value_is_read_back_as_it_was(value: float | None) -> None:
    assert read_scalar(spelled(value)) == value
    assert "+" not in spelled(value)


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        ("dpo@loss.beta=0.05", "DPO, β 0.05"),
        ("dpo@loss.beta=0.05+ppo", "DPO, β 0.05 → PPO"),
        ("ipo@loss.tau=1", "IPO, τ 1"),
        ("dpo@optimizer.learning-rate=1e-4", "DPO, learning_rate 1e-4"),
        ("ppo-gold@kl-coefficient=0.05@updates=8", "PPO on gold, kl_coefficient 0.05, updates 8"),
        ("best-of-n@n=64", "Best of n, n 64"),
    ],
)
def test_labels_name_what_is_set(arm: str, expected: str) -> None:
    assert label(arm) == expected


def test_no_two_settings_of_a_method_are_written_alike() -> None:
    for method in LABELS:
        names = list(flatten(to_values(getattr(CONFIG, method.replace("-", "_")), idle=True)))
        assert len({written(name) for name in names}) == len(names), method


@pytest.mark.parametrize(
    ("arm", "message"),
    [
        ("dpo@loss.bta=0.1", r'^arms = dpo@loss\.bta=0\.1: there is no setting loss\.bta; did you mean "beta"\?$'),
        ("dpo@beta=1", r'did you mean "loss\.beta"\?'),
        ("sft@loss.beta=1", "there is no setting loss; known: .*epochs"),
        ("dpo@loss.beta=-1", r"loss\.beta = -1: must be greater than 0"),
        ("dpo@loss.beta=.nan", ".nan is neither a finite number nor a word"),
        ("ppo@batch.mini=48", "batch.mini = 48 does not divide batch.size = 128; try 32"),
        ("ppo@updates=true", "a true or false has no meaning here"),
        ("ppo@top-k=3", "importance ratios"),
        ("dpo@loss=3", "loss = 3: must be a group of settings: beta, label_smoothing"),
        ("dpo@loss.beta", '"loss.beta" sets nothing; write dpo@loss.beta=0.05'),
        ("dpo@loss.beta=0.1@loss.beta=0.10", "loss.beta is set twice"),
        ("dpo@loss.beta=[1]", "holds numbers and words alone"),
        ("dpo@loss.beta=../x", "holds numbers and words alone"),
        ("sum@loss.terms=dpo", "loss.terms is text"),
        ("dpo@evaluations=9", "variants that differ in evaluations are not comparable"),
        ("reference@epochs=2", "the reference is one for all arms"),
        ("best-of-n@n=1", "n = 1: must be greater than 1"),
        ("dpq@loss.beta=1", 'there is no arm or stage "dpq"; did you mean "dpo"'),
    ],
)
def test_variants_that_are_none(arm: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        canonical(CONFIG, arm)
    with pytest.raises(ConfigError, match=message):
        check(dataclasses.replace(CONFIG, arms=(arm,)))


def test_true_and_one_are_not_taken_for_each_other() -> None:
    assert canonical(CONFIG, "ppo@updates=1") == "ppo@updates=1"
    with pytest.raises(ConfigError, match="true or false"):
        canonical(CONFIG, "ppo@updates=true")


def test_a_variant_s_settings_are_the_method_s_but_for_what_it_sets() -> None:
    config = parse(
        "compare", "Compare", ["reviews", "--arms", "dpo@loss.beta=0.5+ppo@kl-coefficient=0.3", "--dpo.epochs", "2"]
    )
    assert settings_of(config, "dpo@loss.beta=0.5") == dataclasses.replace(
        config.dpo, loss=dataclasses.replace(config.dpo.loss, beta=0.5)
    )
    assert settings_of(config, "dpo@loss.beta=0.5").epochs == 2
    assert settings_of(config, config.arms[0]) == dataclasses.replace(config.ppo, kl_coefficient=0.3)
    assert settings_of(config, "dpo@loss.beta=0.1") == config.dpo  # what it has already
    assert settings_of(config, "best-of-n@n=64").n == 64
    assert settings_of(config, "reference") is None
    assert {"dpo", "ppo"}.isdisjoint(config.idle_fields())
    assert {"sft", "ipo", "best_of_n"} < set(config.idle_fields())


def test_a_stage_s_own_settings_say_whether_it_needs_the_reward_model() -> None:
    assert needs_reward_model(CONFIG, "ppo-gold")
    assert not needs_reward_model(CONFIG, "ppo-gold@value-trunk=shared")


def test_chains_begin_with_arms_of_the_same_spelling() -> None:
    chain = canonical(CONFIG, "dpo@loss.beta=.5+ppo@updates=4+sft")
    assert before(chain) == "dpo@loss.beta=0.5+ppo@updates=4"
    assert before("dpo@loss.beta=0.5+ppo@updates=4") == canonical(CONFIG, "dpo@loss.beta=0.50")
    assert before("dpo@loss.beta=0.5") is None
    assert len(stages(chain)) == 3
    assert stages("best-of-n@n=4") == ()
    assert parts("best-of-n@n=4")[0].overrides == (("n", 4),)


def test_entries_of_study_json_name_family_and_overrides() -> None:
    entry = describe(CONFIG, "dpo@loss.beta=1+ppo-gold@kl_coefficient=0.05", 1, done=False)
    assert (entry["family"], entry["method"]) == ("dpo+ppo-gold", "ppo")
    assert entry["overrides"] == {"dpo.loss.beta": 1.0, "ppo.kl_coefficient": 0.05}
    assert entry["settings"]["kl_coefficient"] == 0.05
    assert entry["label"] == "DPO, β 1 → PPO on gold, kl_coefficient 0.05"
    assert "With kl_coefficient = 0.05; else as ppo-gold is set in this study." in entry["description"]
    assert entry["folder"] == "arms/dpo@loss.beta=1+ppo-gold@kl_coefficient=0.05/seed-1"
    plain = describe(CONFIG, "dpo", 0, done=False)
    assert (plain["family"], plain["overrides"]) == ("dpo", {})
    best = describe(CONFIG, "best-of-n@n=4", 0, done=False)
    assert (best["family"], best["overrides"], best["kl_is_bound"]) == ("best-of-n", {"n": 4}, True)
    assert overrides(CONFIG, "dpo@loss.beta=1+dpo@loss.beta=2") == {"1.dpo.loss.beta": 1.0, "2.dpo.loss.beta": 2.0}
    assert family("reference") == "reference"


def test_what_a_study_sweeps_over_is_read_off_its_arms() -> None:
    betas = [f"dpo@loss.beta={beta}" for beta in ("1", "0.05", "0.5")]
    assert swept(CONFIG, ["reference", *betas, "ppo@updates=4", "ppo@updates=8"]) == Swept(
        "dpo", {"loss.beta": [0.05, 0.5, 1.0]}
    )
    grid = [
        f"sft+ppo@kl_coefficient={beta}@value_trunk={trunk}" for beta in (0.1, 0.2) for trunk in ("shared", "separate")
    ]
    assert swept(CONFIG, grid) == Swept(
        "sft+ppo", {"ppo.kl_coefficient": [0.1, 0.2], "ppo.value_trunk": ["shared", "separate"]}
    )
    twice = swept(CONFIG, ["dpo+dpo@loss.beta=0.5", "dpo+dpo@loss.beta=1"])
    assert twice
    assert twice.over.keys() == overrides(CONFIG, "dpo+dpo@loss.beta=1").keys() == {"2.dpo.loss.beta"}
    for none in (
        ["reference", "dpo", "ppo"],
        ["dpo@loss.beta=1", "ipo@loss.tau=1"],
        ["dpo@loss.beta=1+ppo", "dpo+ppo"],
    ):
        assert swept(CONFIG, none) is None
