"""One arm: train stage by stage from the reference, evaluate on validation prompts, choose a checkpoint, score test
prompts once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, assert_never

from preflab.config.arms import SAMPLING, Stage, label, stages
from preflab.config.commands import Compare
from preflab.config.load import flatten, to_values, to_yaml
from preflab.config.online import PPO, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.preference import ORPO, Preference, Unpaired
from preflab.config.training import SFT
from preflab.evaluation.policy import Judge
from preflab.evaluation.rows import add_point, best_step, finish, read_points
from preflab.models.load import Policy, load_policy, load_reward_model, save_model
from preflab.models.reference import ReferenceCache
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Reward
from preflab.runs import JSON, RunFolder, read_json
from preflab.seeds import derive
from preflab.studies.best_of_n import best_of_n
from preflab.studies.shared import Preferences, device, encoder_of, learned_reward, pairs_chosen
from preflab.studies.stages import Stages
from preflab.studies.task import Task
from preflab.training.cost import Cost
from preflab.training.iterative_dpo import train_iterative_dpo
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import knows_reference, train_preference
from preflab.training.rollout import PromptIds, prompt_ids
from preflab.training.session import Evaluate
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
        if task.gold is not None:
            reward = task.gold
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
        )
        cache = ReferenceCache(stages.folder / "reference-logprobs")
        return cls(config, task, stages, reference, preferences, judge, proxy, cache, seed)

    def prompts(self, split: str) -> list[PromptIds]:
        """The prompts of a split."""
        return prompt_ids(self.judge.encoder, self.task.prompts[split])

    def folder(self, arm: str) -> RunFolder:
        """The arm's run folder."""
        return folder_of(self.config, arm, self.seed)

    def load(self, model: Path) -> Policy:
        """A policy from disk."""
        return load_policy(
            model,
            device=device(self.config),
            precision=self.config.precision,
            trust_remote_code=self.config.trust_remote_code,
        )

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
        "method": arm.split("+")[-1].removesuffix("-gold"),
        "label": label(arm),
        "oracle": any(stage.gold for stage in stages(arm)),
        "kl_is_bound": arm == "best-of-n",
        "description": _description(config, arm),
        "settings": flatten(to_values(given)) if given is not None else {},
        "seed": seed,
        "folder": f"arms/{arm}/seed-{seed}",
        "done": done,
    }


def folder_of(config: Compare, arm: str, seed: int) -> RunFolder:
    """An arm's run folder; that of a chain's beginning which is no arm itself lies with the stages."""
    shown = arm in config.arms or arm == "reference"
    return RunFolder(config.out / ("arms" if shown else "stages/arms") / arm / f"seed-{seed}")


def finished(run: RunFolder) -> bool:
    """True where the arm was trained, chosen and tested."""
    return run.evaluation.exists() and read_json(run.evaluation)["chosen_step"] is not None


def run_arm(bench: Bench, arm: str) -> None:
    """Run one arm to its end, from wherever an earlier start left it; first the arm that a chain begins with."""
    run = bench.folder(arm)
    if finished(run):
        return
    before = _before(arm)
    if before is not None:
        run_arm(bench, before)
    run.path.mkdir(parents=True, exist_ok=True)
    given = settings_of(bench.config, arm)
    RunFolder.open(run.path, "" if given is None else to_yaml(given), ours=True)
    if arm == "best-of-n":
        _run_best_of_n(bench, run)
        return
    start = bench.stages.folder / "reference" / "model" if before is None else bench.folder(before).model
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
        if before is not None and not run.model.exists():  # where the chain's last stage starts is a point of it
            evaluate(0)
        cost = _train(bench, arm, policy, run, evaluate)
        paid = False
        if before is not None:
            cost = cost.plus(Cost(**read_json(bench.folder(before).evaluation)["cost"]))
            paid = needs_reward_model(bench.config, before)
        if needs_reward_model(bench.config, arm) and not paid:
            cost = cost.plus(bench.preferences.reward_cost)
    chosen = best_step(run, by=bench.config.choose_by)
    policy = bench.load(run.model)
    measure(chosen, "test", test)
    finish(run, chosen_step=chosen, cost=cost.values())


def settings_of(config: Compare, arm: str) -> Any:
    """What an arm's last stage is told, a part of `config`; None for the reference, which trains nothing."""
    if arm == "reference":
        return None
    return config.best_of_n if arm == "best-of-n" else getattr(config, stages(arm)[-1].key)


def needs_reward_model(config: Compare, arm: str) -> bool:
    """True where a stage is paid by the reward model, or its value model starts as it: part of what the arm costs."""
    return any(
        not stage.gold or (isinstance(method := getattr(config, stage.key), PPO) and method.value_trunk == "separate")
        for stage in stages(arm)
        if stage.method in SAMPLING
    )


def _before(arm: str) -> str | None:
    """The arm that a chain's last stage starts from."""
    first, plus, _ = arm.rpartition("+")
    return first if plus else None


def _description(config: Compare, arm: str) -> str:
    if arm == "reference":
        return "The SFT model that every arm starts from; KL is measured from it."
    if arm == "best-of-n":
        return (
            "n responses of the reference, of which the reward model picks one; nothing is trained. Its KL is the "
            "upper bound log n − (n − 1)/n."
        )
    parts = stages(arm)
    settings = settings_of(config, arm)
    lines = [_about(settings)]
    if len(parts) > 1:
        held = "the study's reference" if config.chain_reference == "study" else "the stage before"
        lines.append(
            f"Starts from the chosen checkpoint of {label(_before(arm) or '')}"
            + (f", held to {held}." if _is_held(settings) else ".")
        )
    if isinstance(settings, ORPO) and len(parts) == 1:
        lines.append("Starts from the reference, after SFT, where its paper starts from the base.")
    if parts[-1].gold:
        lines.append("An oracle: paid by the gold reward itself, which no real task has.")
    elif parts[-1].method in SAMPLING:
        lines.append("Paid by the reward model trained on the same pairs, whose training is part of its cost.")
    return " ".join(lines)


def _is_held(settings: Settings) -> bool:
    """True where a reference plays a part in the training."""
    match settings:
        case SFT():
            return False
        case Preference(loss=loss):
            return knows_reference(loss)
        case _:
            return True


def _about(settings: object) -> str:
    """The first sentence of a method's docstring."""
    text = " ".join((type(settings).__doc__ or "").split("\n\n")[0].split())
    return text if text.endswith(".") else f"{text}."


def _train(bench: Bench, arm: str, policy: Policy, run: RunFolder, evaluate: Evaluate) -> Cost:
    """Train the arm's last stage."""
    config, pairs = bench.config, bench.preferences.train
    stage = stages(arm)[-1]
    settings: Settings = settings_of(config, arm)
    chained = _before(arm) is not None
    to_start = chained and config.chain_reference == "previous"
    reference = bench.load(bench.folder(_before(arm) or "").model) if to_start else bench.reference
    reference.model.requires_grad_(False)
    shared: dict[str, Any] = {
        "seed": derive(bench.seed, "arm", arm),
        "evaluate": evaluate,
        "title": f"{arm}, seed {bench.seed}",
    }
    match settings:
        case SFT():
            return train_sft(policy, pairs_chosen(pairs), settings, run, log_every=config.log_every, **shared)
        case Preference():
            return train_preference(
                policy,
                pairs,
                settings,
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
                settings,
                run,
                reference=reference.model if chained else None,
                cache=bench.cache,
                log_every=config.log_every,
                **shared,
            )
        case PPO() | PolicyGradient() | OnlineDPO() | IterativeDPO():
            return _train_online(
                bench, stage, settings, policy, reference, run, shared, at_reference=not chained or to_start
            )
        case never:
            assert_never(never)


def _train_online(
    bench: Bench,
    stage: Stage,
    settings: PPO | PolicyGradient | OnlineDPO | IterativeDPO,
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
    prompts = bench.prompts("train")
    shared = shared | {"max_new_tokens": config.lengths.response_tokens, "gold": stage.gold}
    match settings:
        case PPO():
            value = None
            if settings.value_trunk == "separate":
                value = load_reward_model(
                    bench.preferences.reward_model,
                    device=policy.device,
                    precision=config.precision,
                    trust_remote_code=config.trust_remote_code,
                )
            return train_ppo(
                policy,
                value,
                reference.model,
                reward,
                prompts,
                settings,
                run,
                starts_at_reference=at_reference,
                **shared,
            )
        case PolicyGradient():
            return train_policy_gradient(
                policy, reference.model, reward, prompts, settings, run, starts_at_reference=at_reference, **shared
            )
        case OnlineDPO():
            return train_online_dpo(
                policy, reference.model, reward, prompts, settings, run, starts_at_reference=at_reference, **shared
            )
        case IterativeDPO():
            return train_iterative_dpo(
                policy, reference.model, reward, prompts, settings, run, log_every=config.log_every, **shared
            )
        case never:
            assert_never(never)


def _run_best_of_n(bench: Bench, run: RunFolder) -> None:
    """Measure the arm that trains nothing: a point for each n on validation prompts, the chosen one on test prompts."""
    cost = Cost()
    for point, samples in best_of_n(
        bench.judge,
        bench.reference,
        bench.prompts("validation"),
        bench.config.best_of_n.n,
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
    finish(run, chosen_step=chosen, cost=cost.plus(bench.preferences.reward_cost).values())
