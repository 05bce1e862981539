"""The command `compare`: plan a study, make what arms share, run the arms, and keep study.json up to date."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from preflab.config.arms import SAMPLING, canonical, stages, swept
from preflab.config.commands import Compare
from preflab.config.load import check, to_values, to_yaml
from preflab.config.presets import preset
from preflab.errors import ConfigError
from preflab.evaluation.rows import read_points
from preflab.progress import say, warn
from preflab.rewards.pair_judge import load_pair_judge
from preflab.runs import JSON, claim, read_json, refuse_other, write_json
from preflab.studies.arms import Bench, describe, finished, folder_of, settings_of
from preflab.studies.budget import share_of, shortfall
from preflab.studies.dialogue import dialogue
from preflab.studies.extension import bring_forward, refuse_conflicts
from preflab.studies.generations import cut, questions, read_texts
from preflab.studies.jobs import Ended, Job, Server, Shared, error_of, jobs_of, left, run_apart, run_here, undisturbed
from preflab.studies.judgements import judge_arms
from preflab.studies.plan_study import StudyPlan, plan_study
from preflab.studies.reviews import generated_reviews, real_reviews
from preflab.studies.shared import (
    Preferences,
    check_model,
    encoder_of,
    make_base,
    make_preferences,
    make_reference,
    seeds_of,
)
from preflab.studies.stages import Stages
from preflab.studies.task import Task, as_json
from preflab.training.cost import Cost


def compare(config: Compare) -> Path:
    """Run a study to its end, from wherever an earlier start left it. Returns its folder.

    Raises:
        ConfigError, DataError, StorageError: before any training, where the study can't be run as asked.
    """
    config, task = _asked_for(config)
    pair_judge = None if config.pair_judge is None else load_pair_judge(config.pair_judge)
    claim(config.out, "study.yaml", to_yaml(config), data=config.data, refuse=lambda: refuse_conflicts(config))
    for warning in task.warnings:
        warn(warning)
    with undisturbed(config.out) as lock:
        bring_forward(config)
        study = _run(config, task, lock)
        if pair_judge is not None:
            judge_arms(config.out, pair_judge, config.arms, study.seeds)
    for warning in study.shortfalls():
        warn(warning)
    say(f"study finished: {config.out}")
    return config.out


def plan(config: Compare) -> StudyPlan:
    """What the study will do, take and need; touches no folder.

    Raises:
        ConfigError, DataError, StorageError: as `compare`.
        NumericError: the judge of pairs failed on a pair of the task's demonstrations.
    """
    config, task = _asked_for(config)
    pair_judge = None if config.pair_judge is None else load_pair_judge(config.pair_judge)
    refuse_other(config.out, "study.yaml", to_yaml(config), refuse=lambda: refuse_conflicts(config))
    return plan_study(config, task, pair_judge)


def _asked_for(config: Compare) -> tuple[Compare, Task]:
    """The checked settings and the task, before anything is written."""
    config = check(config)
    config = replace(config, arms=_arms(config))
    _refuse_settings_without_effect(config)
    asked = config.generations.prompts and read_texts(config.generations.prompts)
    task = _task(config)
    if asked:
        task = replace(task, asked=questions(asked, task.turn))
    if config.model is not None and not (config.out / "study.yaml").exists():
        check_model(config, config.model)
    return config, task


def _run(config: Compare, task: Task, lock: int) -> _Study:
    """Make what arms share, and run the arms; `lock` is held by every process that does."""
    study = _Study(config, task)
    study.write()
    base, counts = make_base(config, task, study.stages)
    study.counts += counts
    reference, counts = make_reference(config, task, base, study.stages)
    study.counts += counts + cut(task.asked, encoder_of(config, reference))
    apart = left(config, jobs_of(config.arms, study.seeds)) if config.jobs > 1 else []
    made: dict[int, Preferences] = {}
    failed: list[Ended] = []
    with Server.started(config.jobs, lock) if apart else nullcontext() as server:
        for seed in study.seeds:
            made[seed] = preferences = make_preferences(config, task, reference, study.stages, seed)
            study.facts += preferences.facts
            study.counts += preferences.counts
            study.reward_models += preferences.reward_models
            study.write()
            # With jobs the arms that are finished are looked at here: they may be asked what they were not.
            here = [arm for arm in config.arms if arm == "reference" or Job(arm, seed) not in apart]
            failed += run_here(Bench.of(config, task, study.stages, reference, preferences, seed), here, study.write)
        if server is not None:
            failed += run_apart(Shared(config, task, made), apart, server, study.write)
    if failed:
        raise error_of(config, failed)
    return study


class _Study:
    """What study.json says."""

    def __init__(self, config: Compare, task: Task) -> None:
        self.config, self.task = config, task
        self.seeds = seeds_of(config)
        self.stages = Stages(config.out / "stages")
        self.facts: list[JSON] = as_json(task.facts)
        self.reward_models: list[JSON] = []
        self.counts: list[JSON] = [{"name": name, "count": count} for name, count in task.counts.items()]

    def write(self) -> None:
        """Write study.json as things stand: a report can be drawn at any time."""
        arms = [
            describe(self.config, arm, seed, done=finished(folder_of(self.config, arm, seed)))
            for arm in self.config.arms
            for seed in self.seeds
        ]
        task, sweep = self.task, swept(self.config, self.config.arms)
        value = {
            "study": to_values(self.config),
            "task": task.name,
            "title": task.title,
            "task_summary": task.summary,
            "reward": vars(task.reward),
            "proxy": vars(task.proxy),
            "reference": "reference",
            "arms": arms,
            "sweep": None if sweep is None else vars(sweep),
            "budget": None if self.config.budget.amount is None else vars(self.config.budget),
            "prompts": {split: len(prompts) for split, prompts in task.prompts.items()},
            "facts": self.facts,
            "reward_models": self.reward_models,
            "counts": self.counts,
            "warnings": [*task.warnings, *self.shortfalls()],
            "stages": [{"name": name, "seconds": seconds} for name, seconds in self.stages.seconds.items()],
            "jobs": self.config.jobs,
            "complete": all(arm["done"] for arm in arms),
        }
        write_json(self.config.out / "study.json", value)

    def shortfalls(self) -> list[str]:
        """What arms made of the budget, where not all of it; the same of all seeds once."""
        found: list[str] = []
        for arm in self.config.arms:
            runs = [run for seed in self.seeds if finished(run := folder_of(self.config, arm, seed))]
            costs = [Cost(**read_json(run.evaluation)["cost"]) for run in runs]
            if costs:
                least = min(range(len(runs)), key=lambda place: share_of(self.config.budget, costs[place]) or 0.0)
                idle = max(point["step"] for point in read_points(runs[least])) == 0
                given = settings_of(self.config, arm)
                said = shortfall(self.config, arm, given, costs[least], idle=idle)
                found += [] if said is None else [said]
        return found


def _arms(config: Compare) -> tuple[str, ...]:
    """The arms in their order and one spelling, each once, the reference first: the others are measured from it.

    Raises:
        ConfigError: there is no such arm, or it needs a gold reward that the task has not.
    """
    arms = tuple(dict.fromkeys(("reference", *(canonical(config, arm) for arm in config.arms))))
    for arm in arms:
        if config.task == "dialogue" and any(stage.gold for stage in stages(arm)):
            raise ConfigError(f"arms = {arm}: dialogue has no gold reward; leave that arm out")
    return arms


def _refuse_settings_without_effect(config: Compare) -> None:
    """An option that does nothing is an error, not a surprise."""
    start = preset(config.task, data=config.data is not None, model=config.model is not None, quick=config.quick)
    # base.texts also says how many reviews are generated to learn from.
    if config.model is not None and replace(config.base, texts=start.base.texts) != start.base:
        raise ConfigError("base.* makes the small base, and --model stands in for it: leave one of them out")
    for name in config.idle_fields():
        if getattr(config, name) != getattr(start, name):
            arm = name.replace("_", "-")
            raise ConfigError(f"{name}.* has no effect: no arm is {arm}; add it to arms, or leave it out")
    _refuse_prompts_of_a_kind(config)
    if config.task == "dialogue" and config.pairs != start.pairs:
        raise ConfigError("pairs.* says how pairs are sampled, and dialogue brings its own: leave it out")
    if config.task == "dialogue" and config.judge:
        raise ConfigError("judge has no effect: dialogue has no gold reward, a held-out model judges it anyway")
    if config.task == "reviews" and config.generations.prompts is None and config.generations != start.generations:
        raise ConfigError(
            "generations.samples has no effect: reviews asks no prompts by itself; name a file: --prompts"
        )


def _refuse_prompts_of_a_kind(config: Compare) -> None:
    which = config.prompts.policy
    if which == "all":
        return
    if config.task != "reviews" or config.data is not None:
        raise ConfigError(f"prompts.policy = {which}: only the grammar of generated reviews tells; leave it out")
    if not any(stage.method in SAMPLING for arm in config.arms for stage in stages(arm)):
        raise ConfigError(f"prompts.policy = {which} has no effect: no arm samples while it learns; add ppo to arms")


def _task(config: Compare) -> Task:
    match config.task, config.data:
        case "reviews", None:
            return generated_reviews(config)
        case "reviews", Path() as path:
            return real_reviews(config, path)
        case "dialogue", None:
            raise ConfigError("dialogue needs preference pairs: --data pairs.jsonl (HH-RLHF's format, or explicit)")
        case "dialogue", Path() as path:
            return dialogue(config, path)
        case _:
            raise ConfigError(f"there is no task {config.task}; known: reviews, dialogue")
