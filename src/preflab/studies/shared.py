"""What the arms of a study share: base, reference, pairs and reward models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from preflab.config.arms import settings, stages
from preflab.config.commands import Compare
from preflab.config.load import to_values, to_yaml
from preflab.config.table_study import CompareTable
from preflab.config.training import SFT
from preflab.data.encode import Encoder, Tree
from preflab.data.records import PreferencePair, Prompt
from preflab.data.reviews import parse_review
from preflab.data.sources import read_pairs, write_pairs
from preflab.data.split import split_by_prompt
from preflab.evaluation.calibration import calibration_of
from preflab.models.base import new_model, new_tokenizer
from preflab.models.freezing import check_blocks
from preflab.models.load import (
    Policy,
    check_length,
    load_policy,
    load_reward_model,
    new_reward_model,
    pick_device,
    save_model,
)
from preflab.models.precision import work_in
from preflab.progress import say
from preflab.rewards.learned import LearnedReward
from preflab.rewards.sentiment import GrammarSentiment
from preflab.runs import JSON, RunFolder
from preflab.seeds import derive
from preflab.studies.preferences import sample_pairs
from preflab.studies.stages import Stages
from preflab.studies.task import Fact, Task, as_json, share
from preflab.training.checks import check_ends, check_prompts
from preflab.training.cost import Cost
from preflab.training.reward import centre, scores_of_pairs, train_reward
from preflab.training.rollout import prompt_ids
from preflab.training.sft import train_sft


def seeds_of(config: Compare | CompareTable) -> range:
    """The seeds of a study, the first one first."""
    return range(config.seed, config.seed + config.seeds)


def check_model(config: Compare, name: str) -> None:
    """Raises ConfigError where the named model can't take part."""
    policy = load_policy(name, trust_remote_code=config.trust_remote_code)
    encoder_of(config, policy)
    longest = config.lengths.prompt_tokens + config.lengths.response_tokens
    check_length(policy.model, longest, "lower lengths.prompt_tokens or lengths.response_tokens")
    methods = [settings(config, stage) for arm in config.arms for stage in stages(arm)]
    for method in (config.reference, config.reward, *methods):
        check_blocks(policy.model, method.freeze_blocks)


def make_base(config: Compare, task: Task, stages: Stages) -> tuple[str, list[JSON]]:
    """The base model, a folder or Hub name: the one that was named, or a small one trained on the task's texts."""
    if config.model is not None:
        return config.model, []

    def work(folder: Path) -> JSON:
        say(f"base: a {config.base.layers}-block GPT-2 of width {config.base.width} learns to write from scratch")
        policy = new_base(config, task.corpus, seed=derive(config.seed, "base"))
        trees, counts = texts_of_base(config, policy, task.corpus)
        settings = base_settings(config)
        run = RunFolder.open(folder, to_yaml(settings), ours=True)
        train_sft(policy, trees, settings, run, seed=derive(config.seed, "base"), title="base model")
        save_model(policy, run.model)
        return counts

    folder, counts = stages.make("base", base_inputs(config), work)
    named: list[JSON] = [{"name": f"texts of the base: {what}", "count": count} for what, count in counts.items()]
    return str(folder / "model"), named


def new_base(config: Compare, corpus: Sequence[str], *, seed: int) -> Policy:
    """The small base before it has learnt anything."""
    tokenizer = new_tokenizer(corpus, vocabulary=config.base.vocabulary)
    policy = new_model(tokenizer, config.base, positions=_positions(config), seed=seed)
    work_in(policy.model.to(device(config)), config.precision)
    return policy


def texts_of_base(config: Compare, policy: Policy, texts: Sequence[str]) -> tuple[list[Tree], dict[str, int]]:
    """What the base learns, and what encoding it counted."""
    encoder = Encoder(policy.tokenizer, prompt_tokens=_positions(config), response_tokens=_positions(config) - 1)
    trees = [Tree(f"text:{i}", encoder.prompt(""), (encoder.response(text),)) for i, text in enumerate(texts)]
    return trees, dict(encoder.counts)


def base_settings(config: Compare) -> SFT:
    """How the base learns."""
    base = config.base
    return SFT(epochs=base.epochs, batch=base.batch, optimizer=base.optimizer, evaluations=1)


def _positions(config: Compare) -> int:
    """Of the base: a prompt, a response, and an end for each."""
    return config.lengths.prompt_tokens + config.lengths.response_tokens + 2


def make_reference(config: Compare, task: Task, base: str, stages: Stages) -> tuple[Policy, list[JSON]]:
    """The reference: the base after SFT on the task's demonstrations. Every arm starts here."""

    def work(folder: Path) -> JSON:
        policy = load(config, base, quiet=False)
        encoder = encoder_of(config, policy)
        run = RunFolder.open(folder, to_yaml(config.reference), ours=True)
        trees = encoder.demonstrations(task.demonstrations)
        train_sft(
            policy,
            trees,
            config.reference,
            run,
            seed=derive(config.seed, "reference"),
            log_every=config.log_every,
            title="reference (SFT)",
        )
        save_model(policy, run.model)
        return dict(encoder.counts)

    _, counts = stages.make("reference", reference_inputs(config), work)
    named: list[JSON] = [{"name": f"demonstrations: {name}", "count": count} for name, count in counts.items()]
    return load_reference(config, stages), named


def load_reference(config: Compare, stages: Stages) -> Policy:
    """The reference that `make_reference` made."""
    policy = load(config, stages.folder / "reference" / "model")
    policy.model.requires_grad_(False)
    return policy


@dataclass(frozen=True)
class Preferences:
    """The preference data of one seed, and the reward models trained on it."""

    train: list[Tree]
    reward_model: Path
    """What PPO is paid by, and what its value model starts as."""
    reward_cost: Cost
    """What training it cost: part of the price of PPO."""
    judge: Path | None
    """What judges where there is no gold reward, or beside it."""
    reward_models: list[JSON]
    """The calibration of each."""
    facts: list[JSON]
    counts: list[JSON]


def make_preferences(config: Compare, task: Task, reference: Policy, stages: Stages, seed: int) -> Preferences:
    """Pairs and reward models of one seed."""
    encoder = encoder_of(config, reference)
    name = f"seed-{seed}"
    asked = seed_inputs(config, seed)

    def pairs_work(folder: Path, prompts: Sequence[Prompt] = task.prompts["train"], who: str = "") -> JSON:
        assert task.gold is not None
        say(f"pairs{who}: the reference answers {len(prompts):,} prompts; Bradley–Terry labels on the gold reward")
        encoder = encoder_of(config, reference)  # its own: what it counts is not counted again on the next start
        labelled = sample_pairs(
            reference,
            encoder,
            prompt_ids(encoder, prompts),
            task.gold,
            config.pairs,
            max_new_tokens=config.lengths.response_tokens,
            seed=derive(seed, f"preferences{who}"),
        )
        ceilings = {id(pair): value for pair, value in zip(labelled.pairs, labelled.ceiling, strict=True)}
        sides = split_by_prompt(labelled.pairs, {"train": 0.9, "held-out": 0.1}, seed=seed)
        for side, pairs in sides.items():
            write_pairs(folder / f"{side}.jsonl", pairs)
        held_out = [ceilings[id(pair)] for pair in sides["held-out"]]
        facts = [Fact("Bayes ceiling on held-out pairs", sum(held_out) / len(held_out), note="a judge that knows gold")]
        facts.append(share("Labels that agree with gold", sum(labelled.agrees), len(labelled.agrees)))
        texts = [answer.prompt + answer.response for answer in labelled.answers[:: config.pairs.responses][:256]]
        facts.append(share("Reference samples that are distinct", len(set(texts)), len(texts)))
        if isinstance(task.gold, GrammarSentiment):
            inside = sum(parse_review(text).grammatical for text in texts)
            facts.append(share("Reference samples inside the grammar", inside, len(texts)))
        return {"facts": as_json(tuple(facts)), "labels": len(labelled.pairs)}

    if task.pairs is None:
        folder, made = stages.make(f"{name}/pairs", asked, pairs_work)
        train = read_pairs(folder / "train.jsonl").rows
        held_out = read_pairs(folder / "held-out.jsonl").rows
        facts, ceiling = list(made["facts"]), f"Bayes ceiling {made['facts'][0]['value']:.3f}"
        counts = [{"name": "preference labels taken from the gold reward", "count": made["labels"]}]
    else:
        train, held_out, facts, counts, ceiling = task.pairs.policy, task.pairs.held_out, [], [], ""
    trees = encoder.pairs(train)
    check_ends(trees, encoder.end_id)
    check_prompts(trees)
    held_out_trees = encoder.pairs(held_out)
    counts += [{"name": f"pairs: {what}", "count": count} for what, count in encoder.counts.items()]

    def reward_work(pairs: list[Tree], label: str) -> Any:
        def work(folder: Path) -> JSON:
            model = new_scorer(config, stages.folder / "reference" / "model", seed=derive(seed, label, "head"))
            run = RunFolder.open(folder, to_yaml(config.reward), ours=True)
            cost = train_reward(
                model,
                pairs,
                config.reward,
                run,
                seed=derive(seed, label),
                log_every=config.log_every,
                title=label,
            )
            centre(model, pairs)
            save_model(model, run.model)
            found = calibration_of(scores_of_pairs(model, held_out_trees).numpy(), held_out_trees)
            right = found.accuracy
            fact = Fact(f"{label.capitalize()}, accuracy on held-out pairs", right.mean, right.low, right.high, ceiling)
            return {"facts": as_json((fact,)), "cost": cost.values(), "calibration": found.json()}

        return work

    reward_folder, trained = stages.make(f"{name}/reward-model", asked, reward_work(trees, "reward model"))
    facts += trained["facts"]
    reward_models = [{"label": "reward model", "seed": seed, "calibration": trained["calibration"]}]
    judge = None
    judge_pairs: Sequence[PreferencePair] = task.pairs.judge if task.pairs is not None else ()
    if task.judge_prompts:
        folder, _ = stages.make(
            f"{name}/judge pairs", asked, lambda folder: pairs_work(folder, task.judge_prompts, " of the judge")
        )
        judge_pairs = [pair for side in ("train", "held-out") for pair in read_pairs(folder / f"{side}.jsonl").rows]
    if judge_pairs:
        judge_trees = encoder_of(config, reference).pairs(judge_pairs)
        judge_folder, judged = stages.make(f"{name}/judge", asked, reward_work(judge_trees, "judge"))
        facts += judged["facts"]
        reward_models.append({"label": "judge", "seed": seed, "calibration": judged["calibration"]})
        judge = judge_folder / "model"
    if config.seeds > 1:
        facts = [fact | {"name": f"{fact['name']} (seed {seed})"} for fact in facts]
        counts = [count | {"name": f"{count['name']} (seed {seed})"} for count in counts]
    return Preferences(trees, reward_folder / "model", Cost(**trained["cost"]), judge, reward_models, facts, counts)


def learned_reward(config: Compare, path: Path, policy: Policy, *, name: str) -> LearnedReward:
    """A reward model from disk as a reward for this policy's responses."""
    return LearnedReward(load_scorer(config, path), policy.tokenizer, name=name)


def encoder_of(config: Compare, policy: Policy) -> Encoder:
    """A fresh encoder with the study's lengths."""
    return Encoder(policy.tokenizer, config.lengths.prompt_tokens, config.lengths.response_tokens)


def device(config: Compare) -> Any:
    """The device that the study runs on."""
    return pick_device(config.device)


def load(config: Compare, model: str | Path, *, quiet: bool = True) -> Policy:
    """A policy from disk or the Hub, where and as precise as the study works."""
    return load_policy(model, **_worked_in(config), quiet=quiet)


def load_scorer(config: Compare, model: str | Path) -> Policy:
    """A reward model, likewise."""
    return load_reward_model(model, **_worked_in(config))


def new_scorer(config: Compare, model: str | Path, *, seed: int) -> Policy:
    """An untrained reward model on the body of a policy, likewise."""
    return new_reward_model(model, seed=seed, **_worked_in(config))


def _worked_in(config: Compare) -> dict[str, Any]:
    """What every model of the study is loaded with."""
    return {
        "device": device(config),
        "precision": config.precision,
        "trust_remote_code": config.trust_remote_code,
    }


def base_inputs(config: Compare) -> dict[str, JSON]:
    """What the base depends on."""
    return _inputs(config, "seed", "data", "base", "lengths", "prompts")


def reference_inputs(config: Compare) -> dict[str, JSON]:
    """What the reference depends on."""
    return _inputs(config, "seed", "data", "model", "base", "lengths", "prompts", "reference")


def seed_inputs(config: Compare, seed: int) -> dict[str, JSON]:
    """What pairs and reward models of a seed depend on."""
    names = ("seed", "data", "model", "base", "lengths", "prompts", "reference", "pairs", "reward")
    return _inputs(config, *names) | {"this_seed": seed}


def _inputs(config: Compare, *names: str) -> dict[str, JSON]:
    """The settings that a stage's result depends on; which prompts arms sample on changes nothing that they share."""
    values: dict[str, Any] = to_values(config)
    del values["prompts"]["policy"]
    return {name: values[name] for name in (*names, "precision")}


def pairs_chosen(pairs: list[Tree]) -> list[Tree]:
    """The chosen responses as demonstrations."""
    return [replace(tree, responses=tree.responses[:1]) for tree in pairs]
