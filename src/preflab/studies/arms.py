"""One arm: train from the reference, evaluate on validation prompts, choose a checkpoint, score test prompts once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never

from preflab.config.commands import ArmName, Compare
from preflab.config.load import flatten, to_values, to_yaml
from preflab.config.methods import DPO, PPO, SFT
from preflab.evaluation.policy import Judge
from preflab.evaluation.rows import add_point, best_step, finish, read_points
from preflab.models.load import Policy, load_policy, load_reward_model, save_model
from preflab.rewards.learned import LearnedReward
from preflab.rewards.protocol import Reward
from preflab.runs import JSON, RunFolder, read_json
from preflab.seeds import derive
from preflab.studies.shared import Preferences, device, encoder_of, learned_reward, pairs_chosen, prompt_ids
from preflab.studies.stages import Stages
from preflab.studies.task import Task
from preflab.training.cost import Cost
from preflab.training.dpo import train_dpo
from preflab.training.ppo import PromptIds, train_ppo
from preflab.training.session import Evaluate
from preflab.training.sft import train_sft

LABELS: dict[ArmName, tuple[str, str]] = {
    "reference": ("Reference", "The SFT model that every arm starts from; KL is measured from it."),
    "sft": ("SFT", "Further fine-tuning on the chosen responses."),
    "dpo": ("DPO", "Direct preference optimisation on the pairs."),
    "ppo": ("PPO", "PPO against the reward model trained on the same pairs, whose training is part of its cost."),
    "ppo-gold": (
        "PPO on gold",
        "An oracle: PPO paid by the gold reward itself, which no real task has. Its values start as the reward model.",
    ),
}
METHODS: dict[ArmName, str] = {
    "reference": "reference",
    "sft": "sft",
    "dpo": "dpo",
    "ppo": "ppo",
    "ppo-gold": "ppo",
}


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
        return cls(config, task, stages, reference, preferences, judge, proxy, seed)

    def prompts(self, split: str) -> list[PromptIds]:
        """The prompts of a split."""
        return prompt_ids(self.judge.encoder, self.task.prompts[split])

    def folder(self, arm: ArmName) -> RunFolder:
        """The arm's run folder."""
        return RunFolder(self.stages.folder.parent / "arms" / arm / f"seed-{self.seed}")


def describe(config: Compare, arm: ArmName, seed: int, *, done: bool) -> dict[str, JSON]:
    """The arm's entry in study.json."""
    label, description = LABELS[arm]
    return {
        "name": arm,
        "method": METHODS[arm],
        "label": label,
        "oracle": arm == "ppo-gold",
        "description": description,
        "settings": flatten(to_values(_settings(config, arm))) if arm != "reference" else {},
        "seed": seed,
        "folder": f"arms/{arm}/seed-{seed}",
        "done": done,
    }


def finished(run: RunFolder) -> bool:
    """True where the arm was trained, chosen and tested."""
    return run.evaluation.exists() and read_json(run.evaluation)["chosen_step"] is not None


def run_arm(bench: Bench, arm: ArmName) -> None:
    """Run one arm to its end, from wherever an earlier start left it."""
    config = bench.config
    run = bench.folder(arm)
    if finished(run):
        return
    run.path.mkdir(parents=True, exist_ok=True)
    RunFolder.open(run.path, to_yaml(_settings(config, arm)), ours=True)
    policy = load_policy(
        bench.stages.folder / "reference" / "model", device=device(config), trust_remote_code=config.trust_remote_code
    )
    validation, test = bench.prompts("validation"), bench.prompts("test")

    def measure(step: int, split: str, prompts: list[PromptIds]) -> None:
        baseline = None if arm == "reference" else _rewards(bench.folder("reference"), split)
        point, samples = bench.judge.point(policy, prompts, step=step, split=split, baseline=baseline)
        add_point(run, point, samples)

    def evaluate(step: int) -> None:
        measure(step, "validation", validation)
        if best_step(run) == step:
            save_model(policy, run.model)

    cost = _train(bench, arm, policy, run, evaluate)
    chosen = best_step(run)
    policy = load_policy(run.model, device=device(config), trust_remote_code=config.trust_remote_code)
    measure(chosen, "test", test)
    finish(run, chosen_step=chosen, cost=cost.values())


def _settings(config: Compare, arm: ArmName) -> SFT | DPO | PPO:
    match arm:
        case "reference":
            return config.reference
        case "sft":
            return config.sft
        case "dpo":
            return config.dpo
        case "ppo" | "ppo-gold":
            return config.ppo
        case never:
            assert_never(never)


def _train(bench: Bench, arm: ArmName, policy: Policy, run: RunFolder, evaluate: Evaluate) -> Cost:
    config, pairs = bench.config, bench.preferences.train
    seed = derive(bench.seed, "arm", arm)
    log_every, title = config.log_every, f"{arm}, seed {bench.seed}"
    match arm:
        case "reference":
            evaluate(0)
            return Cost()
        case "sft":
            return train_sft(
                policy,
                pairs_chosen(pairs),
                config.sft,
                run,
                seed=seed,
                log_every=log_every,
                evaluate=evaluate,
                title=title,
            )
        case "dpo":
            return train_dpo(
                policy, pairs, config.dpo, run, seed=seed, log_every=log_every, evaluate=evaluate, title=title
            )
        case "ppo" | "ppo-gold":
            gold = arm == "ppo-gold"
            reward = bench.task.gold if gold else bench.proxy
            assert reward is not None
            cost = train_ppo(
                policy,
                load_reward_model(
                    bench.preferences.reward_model, device=policy.device, trust_remote_code=config.trust_remote_code
                ),
                bench.reference.model,
                reward,
                bench.prompts("train"),
                config.ppo,
                run,
                max_new_tokens=config.lengths.response_tokens,
                seed=seed,
                gold=gold,
                evaluate=evaluate,
                title=title,
            )
            return cost.plus(bench.preferences.reward_cost)
        case never:
            assert_never(never)


def _rewards(run: RunFolder, split: str) -> list[float]:
    """The rewards of an arm's responses at its point of a split."""
    return [point for point in read_points(run) if point["split"] == split][-1]["rows"]["reward"]
