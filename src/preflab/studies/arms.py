"""One arm: train stage by stage from the reference, evaluate on validation prompts, choose a checkpoint, score test
prompts once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, assert_never

from preflab.config.arms import (
    SAMPLING,
    Stage,
    before,
    family,
    label,
    needs_reward_model,
    overrides,
    parts,
    settings,
    spelled,
    stages,
)
from preflab.config.commands import BestOfN, Compare
from preflab.config.load import flatten, to_values, to_yaml
from preflab.config.online import PPO, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.preference import ORPO, Preference, Unpaired
from preflab.config.training import SFT
from preflab.evaluation.policy import Judge
from preflab.evaluation.rows import add_point, best_step, finish, read_points
from preflab.models.load import Policy, save_model
from preflab.models.reference import ReferenceCache
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Reward
from preflab.runs import JSON, RunFolder, read_json
from preflab.seeds import derive
from preflab.studies.best_of_n import best_of_n
from preflab.studies.budget import charged, labels_of, share_of
from preflab.studies.generations import write_generations
from preflab.studies.shared import Preferences, encoder_of, learned_reward, load, load_scorer, pairs_chosen
from preflab.studies.stages import Stages
from preflab.studies.task import Task
from preflab.training.cost import Cost
from preflab.training.iterative_dpo import train_iterative_dpo
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import knows_reference, train_preference
from preflab.training.rollout import PromptIds, prompt_ids
from preflab.training.session import Evaluate, Spent
from preflab.training.sft import train_sft
from preflab.training.unpaired import judged_pairs, train_unpaired

Settings = SFT | Preference | Unpaired | PPO | PolicyGradient | OnlineDPO | IterativeDPO


@dataclass(frozen=True)
class Bench:
    """What all arms of one seed share."""

    config: Compare
    task: Task
    stages: Stages
    reference: Policy
    preferences: Preferences
    judge: Judge
    proxy: LearnedReward
    cache: ReferenceCache
    seed: int

    @classmethod
    def of(
        cls, config: Compare, task: Task, stages: Stages, reference: Policy, preferences: Preferences, seed: int
    ) -> Bench:
        encoder = encoder_of(config, reference)
        proxy = learned_reward(config, preferences.reward_model, reference, name="reward model")
        reward: Reward
        second: Reward | None = None
        if task.gold is not None:
            reward = task.gold
            if preferences.judge is not None:
                second = learned_reward(config, preferences.judge, reference, name="judge")
        else:
            assert preferences.judge is not None
            reward = learned_reward(config, preferences.judge, reference, name="judge")
        judge = Judge(
            reference=reference.model,
            encoder=encoder,
            reward=reward,
            proxy=proxy,
            held_out=encoder.demonstrations(task.held_out),
            max_new_tokens=config.lengths.response_tokens,
            seed=derive(seed, "evaluation"),
            second=second,
        )
        cache = ReferenceCache(stages.folder / "reference-logprobs")
        return cls(config, task, stages, reference, preferences, judge, proxy, cache, seed)

    def prompts(self, split: str) -> list[PromptIds]:
        """The prompts of a split."""
        return prompt_ids(self.judge.encoder, self.task.prompts[split])

    def folder(self, arm: str) -> RunFolder:
        """The arm's run folder."""
        return folder_of(self.config, arm, self.seed)

    def shows(self, arm: str) -> bool:
        """Whether it is an arm of the study, and not the beginning of a chain alone."""
        return shows(self.config, arm)

    def load(self, model: Path) -> Policy:
        """A policy from disk."""
        return load(self.config, model)

    def baseline(self, split: str) -> list[float]:
        """The rewards of the reference's responses to the prompts of a split."""
        points = [point for point in read_points(self.folder("reference")) if point["split"] == split]
        rewards: list[float] = points[-1]["rows"]["reward"]
        return rewards


def describe(config: Compare, arm: str, seed: int, *, done: bool) -> dict[str, JSON]:
    """The arm's entry in study.json."""
    given = settings_of(config, arm)
    return {
        "name": arm,
        "method": parts(arm)[-1].method,
        "family": family(arm),
        "overrides": overrides(config, arm),
        "label": label(arm),
        "oracle": any(stage.gold for stage in stages(arm)),
        "kl_is_bound": family(arm) == "best-of-n",
        "description": _description(config, arm),
        "settings": flatten(to_values(given)) if given is not None else {},
        "seed": seed,
        "folder": f"arms/{arm}/seed-{seed}",
        "done": done,
    }


def shows(config: Compare, arm: str) -> bool:
    """Whether it is an arm of the study, and not the beginning of a chain alone."""
    return arm in config.arms or arm == "reference"


def folder_of(config: Compare, arm: str, seed: int) -> RunFolder:
    """An arm's run folder; that of a chain's beginning which is no arm itself lies with the stages."""
    return RunFolder(config.out / ("arms" if shows(config, arm) else "stages/arms") / arm / f"seed-{seed}")


def finished(run: RunFolder) -> bool:
    """True where the arm was trained, chosen and tested."""
    return run.evaluation.exists() and read_json(run.evaluation)["chosen_step"] is not None


def run_arm(bench: Bench, arm: str) -> None:
    """Run one arm to its end, from wherever an earlier start left it; first the arm that a chain begins with. At its
    end it answers what every arm is asked."""
    run = bench.folder(arm)
    if not finished(run):
        _train_and_test(bench, arm, run)
    if bench.task.asked and bench.shows(arm):
        best_of_n = family(arm) == "best-of-n"
        write_generations(
            run,
            bench.judge,
            prompt_ids(bench.judge.encoder, bench.task.asked),
            samples=bench.config.generations.samples,
            load=(lambda: bench.reference) if best_of_n else (lambda: bench.load(run.model)),
            best_of=read_json(run.evaluation)["chosen_step"] if best_of_n else None,
        )


def _train_and_test(bench: Bench, arm: str, run: RunFolder) -> None:
    first = before(arm)
    if first is not None:
        run_arm(bench, first)
    run.path.mkdir(parents=True, exist_ok=True)
    given = settings_of(bench.config, arm)
    RunFolder.open(run.path, "" if given is None else to_yaml(given), ours=True)
    if family(arm) == "best-of-n":
        _run_best_of_n(bench, run, given)
        return
    start = bench.stages.folder / "reference" / "model" if first is None else bench.folder(first).model
    policy = bench.load(start)
    validation, test = bench.prompts("validation"), bench.prompts("test")

    def measure(step: int, split: str, prompts: list[PromptIds]) -> None:
        baseline = None if arm == "reference" else bench.baseline(split)
        point, samples = bench.judge.point(policy, prompts, step=step, split=split, baseline=baseline)
        add_point(run, point, samples)

    def evaluate(step: int) -> None:
        measure(step, "validation", validation)
        if best_step(run, by=bench.config.choose_by) == step:
            save_model(policy, run.model)

    if arm == "reference":
        evaluate(0)
        cost = Cost()
    else:
        if first is not None and not run.model.exists():  # where the chain's last stage starts is a point of it
            evaluate(0)
        earlier, pairs = _cost_before(bench, arm), len(bench.preferences.train)

        def whole(cost: Cost) -> Cost:
            return charged(replace(cost, labels=labels_of(given, cost.examples, pairs)), earlier, pairs)

        def spent(cost: Cost) -> float:
            return share_of(bench.config.budget, whole(cost)) or 0.0

        bounded = bench.config.budget.amount is not None
        cost = whole(_train(bench, arm, policy, run, evaluate, spent if bounded else None))
        if not read_points(run):  # what came before had spent the budget: no step was taken
            evaluate(0)
    chosen = best_step(run, by=bench.config.choose_by)
    policy = bench.load(run.model)
    measure(chosen, "test", test)
    finish(run, chosen_step=chosen, cost=cost.values())


def settings_of(config: Compare, arm: str) -> Any:
    """What an arm's last stage is told, a part of `config`; None for the reference, which trains nothing."""
    return None if arm == "reference" else settings(config, parts(arm)[-1])


def _cost_before(bench: Bench, arm: str) -> Cost:
    """What an arm owes before its last stage begins: the stages before, and the training of the reward model, once."""
    cost, paid, pairs = Cost(), False, len(bench.preferences.train)
    first = before(arm)
    if first is not None:
        cost = Cost(**read_json(bench.folder(first).evaluation)["cost"])
        paid = needs_reward_model(bench.config, first)
    if needs_reward_model(bench.config, arm) and not paid:
        cost = charged(cost, reward_model_cost(bench), pairs)
    return cost


def reward_model_cost(bench: Bench) -> Cost:
    """What training the reward model costs the arms that need it; its steps and examples are no policy's."""
    cost, pairs = bench.preferences.reward_cost, len(bench.preferences.train)
    return replace(cost, steps=0, examples=0, labels=min(cost.examples, pairs))


def _description(config: Compare, arm: str) -> str:
    if arm == "reference":
        return "The SFT model that every arm starts from; KL is measured from it."
    if family(arm) == "best-of-n":
        return (
            "n responses of the reference, of which the reward model picks one; nothing is trained. Its KL is the "
            "upper bound log n − (n − 1)/n."
        )
    chain = stages(arm)
    given = settings_of(config, arm)
    lines = [_about(given)]
    if chain[-1].overrides:
        laid = ", ".join(f"{key} = {spelled(value)}" for key, value in chain[-1].overrides)
        lines.append(f"With {laid}; else as {chain[-1].name} is set in this study.")
    if len(chain) > 1:
        held = "the study's reference" if config.chain_reference == "study" else "the stage before"
        lines.append(
            f"Starts from the chosen checkpoint of {label(before(arm) or '')}"
            + (f", held to {held}." if _is_held(given) else ".")
        )
    if isinstance(given, ORPO) and len(chain) == 1:
        lines.append("Starts from the reference, after SFT, where its paper starts from the base.")
    if chain[-1].gold:
        lines.append("An oracle: paid by the gold reward itself, which no real task has.")
    elif chain[-1].method in SAMPLING:
        lines.append("Paid by the reward model trained on the same pairs, whose training is part of its cost.")
    return " ".join(lines)


def _is_held(given: Settings) -> bool:
    """True where a reference plays a part in the training."""
    match given:
        case SFT():
            return False
        case Preference(loss=loss):
            return knows_reference(loss)
        case _:
            return True


def _about(given: object) -> str:
    """The first sentence of a method's docstring."""
    text = " ".join((type(given).__doc__ or "").split("\n\n")[0].split())
    return text if text.endswith(".") else f"{text}."


def _train(bench: Bench, arm: str, policy: Policy, run: RunFolder, evaluate: Evaluate, spent: Spent | None) -> Cost:
    """Train the arm's last stage."""
    config, pairs = bench.config, bench.preferences.train
    stage = stages(arm)[-1]
    given: Settings = settings_of(config, arm)
    chained = before(arm) is not None
    to_start = chained and config.chain_reference == "previous"
    reference = bench.load(bench.folder(before(arm) or "").model) if to_start else bench.reference
    reference.model.requires_grad_(False)
    shared: dict[str, Any] = {
        # Variants of one family see the same data in the same order, and begin with the same responses.
        "seed": derive(bench.seed, "arm", family(arm)),
        "evaluate": evaluate,
        "spent": spent,
        "title": f"{arm}, seed {bench.seed}",
    }
    match given:
        case SFT():
            return train_sft(policy, pairs_chosen(pairs), given, run, log_every=config.log_every, **shared)
        case Preference():
            return train_preference(
                policy,
                pairs,
                given,
                run,
                reference=reference.model if chained else None,
                cache=bench.cache,
                log_every=config.log_every,
                **shared,
            )
        case Unpaired():
            return train_unpaired(
                policy,
                judged_pairs(pairs),
                given,
                run,
                reference=reference.model if chained else None,
                cache=bench.cache,
                log_every=config.log_every,
                **shared,
            )
        case PPO() | PolicyGradient() | OnlineDPO() | IterativeDPO():
            return _train_online(
                bench, stage, given, policy, reference, run, shared, at_reference=not chained or to_start
            )
        case never:
            assert_never(never)


def _train_online(
    bench: Bench,
    stage: Stage,
    given: PPO | PolicyGradient | OnlineDPO | IterativeDPO,
    policy: Policy,
    reference: Policy,
    run: RunFolder,
    shared: dict[str, Any],
    *,
    at_reference: bool,
) -> Cost:
    """Train against the reward model, or the gold reward."""
    config = bench.config
    reward: Reward | None = bench.task.gold if stage.gold else bench.proxy
    assert reward is not None
    prompts = prompt_ids(bench.judge.encoder, bench.task.sampled_on)
    shared = shared | {"max_new_tokens": config.lengths.response_tokens, "gold": stage.gold}
    match given:
        case PPO():
            separate = given.value_trunk == "separate"
            value = load_scorer(config, bench.preferences.reward_model) if separate else None
            return train_ppo(
                policy,
                value,
                reference.model,
                reward,
                prompts,
                given,
                run,
                starts_at_reference=at_reference,
                **shared,
            )
        case PolicyGradient():
            return train_policy_gradient(
                policy, reference.model, reward, prompts, given, run, starts_at_reference=at_reference, **shared
            )
        case OnlineDPO():
            return train_online_dpo(
                policy, reference.model, reward, prompts, given, run, starts_at_reference=at_reference, **shared
            )
        case IterativeDPO():
            return train_iterative_dpo(
                policy, reference.model, reward, prompts, given, run, log_every=config.log_every, **shared
            )
        case never:
            assert_never(never)


def _run_best_of_n(bench: Bench, run: RunFolder, given: BestOfN) -> None:
    """Measure the arm that trains nothing: a point for each n on validation prompts, the chosen one on test prompts."""
    cost = Cost()
    for point, samples in best_of_n(
        bench.judge,
        bench.reference,
        bench.prompts("validation"),
        given.n,
        "validation",
        baseline=bench.baseline("validation"),
        cost=Cost(),
    ):
        add_point(run, point, samples)
    chosen = best_step(run, by=bench.config.choose_by)
    for point, samples in best_of_n(
        bench.judge, bench.reference, bench.prompts("test"), chosen, "test", baseline=bench.baseline("test"), cost=cost
    ):
        if point["step"] == chosen:
            add_point(run, point, samples)
    finish(run, chosen_step=chosen, cost=cost.plus(reward_model_cost(bench)).values())
