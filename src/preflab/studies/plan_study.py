"""`compare --dry-run`: what a study will do, how long that takes, and the memory and disk space that it needs.

Time is that of a few real steps of each kind, by the code of the study itself in a temporary folder: on models of the
real shapes and texts of the task, on as many threads as the arms will have. Seconds a step × steps, seconds a response
× responses, evaluations and what is written are added up; arms that run at the same time are dealt out in order.
Where the reference is not there yet, responses are taken to be as long as the task's demonstrations. A judge of pairs
is asked about a few demonstrations.

Memory is the estimate of `training/plan.py`; disk space is counted from the weights.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch

from preflab.config.arms import GOLD, Stage, before, stages
from preflab.config.commands import BestOfN, Budget, Compare
from preflab.config.load import flatten, to_values
from preflab.config.online import PPO, Online, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.pair_losses import KTOLoss
from preflab.config.preference import Unpaired
from preflab.config.training import SFT, Fit
from preflab.data.encode import Encoder, Tree
from preflab.errors import Interrupted
from preflab.models.load import Policy, save_model
from preflab.models.reference import reference_logprobs
from preflab.progress import hushed
from preflab.rewards.pair_judge import PairJudge
from preflab.runs import RunFolder
from preflab.studies.arms import Bench, finished, folder_of, settings_of, shows
from preflab.studies.arms import _train as train_arm
from preflab.studies.arms_table import steps_of
from preflab.studies.best_of_n import best_of_n, sizes
from preflab.studies.generations import Place, places, write_generations, written
from preflab.studies.jobs import Job, asked, jobs_of, threads_each
from preflab.studies.judgements import pairs_of, unread
from preflab.studies.preferences import sample_pairs
from preflab.studies.shared import (
    Preferences,
    base_inputs,
    base_settings,
    encoder_of,
    load,
    load_scorer,
    new_base,
    new_scorer,
    pairs_chosen,
    reference_inputs,
    seed_inputs,
    seeds_of,
    texts_of_base,
)
from preflab.studies.stages import Stages
from preflab.studies.task import Task
from preflab.training import checkpoint
from preflab.training.cost import Cost, resident_bytes
from preflab.training.memory import held_bytes, kept_by_optimizer
from preflab.training.offline import total_steps
from preflab.training.plan import Memory, plan_offline, plan_online
from preflab.training.reward import train_reward
from preflab.training.rollout import prompt_ids
from preflab.training.session import SECONDS_BETWEEN_SAVES
from preflab.training.sft import train_sft
from preflab.training.unpaired import judged_pairs

State = Literal["made", "begun", "to make"]
PROBED_STEPS = 3
PROBED_PROMPTS = 64
LOOKED_AT = 1024
"""Examples among which the largest micro-batch is looked for."""
BYTES_OF_A_RESPONSE = 500
"""Its line in samples.jsonl and its figures in evaluation.json, about."""
BYTES_OF_A_JUDGEMENT = 21
"""A probability in judgements.json."""
JUDGED = 8
"""Pairs of responses that a judge of pairs is asked about: it may be a dear one."""
LABELLED = 0.9
"""Of the pairs, what is not held out."""


@dataclass(frozen=True)
class Part:
    """A stage or an arm."""

    name: str
    state: State
    steps: int | None
    """Of the whole part; None where nothing is trained."""
    seconds: float
    """What is left to do."""
    memory_bytes: int
    """At its peak; 0 where it is made."""
    disk_bytes: int
    """Of the whole part."""


@dataclass(frozen=True)
class StudyPlan:
    """What a study will do."""

    stages: tuple[Part, ...]
    references: tuple[Part, ...]
    """The reference's own arms; every arm waits for them."""
    arms: tuple[Part, ...]
    jobs: int
    arms_seconds: float
    """Of the arms, as they are dealt out."""
    memory_bytes: int
    """Of all processes together."""
    last: tuple[Part, ...] = ()
    """What comes when all arms are done."""
    budget: Budget = field(default_factory=Budget)
    """It may end arms before their settings do, which steps and seconds don't know of."""

    @property
    def shared_seconds(self) -> float:
        """Of the stages and the reference."""
        return sum(part.seconds for part in (*self.stages, *self.references))

    @property
    def seconds(self) -> float:
        """Of the whole study."""
        return self.shared_seconds + self.arms_seconds + self.last_seconds

    @property
    def last_seconds(self) -> float:
        """Of what comes when all arms are done."""
        return sum(part.seconds for part in self.last)

    @property
    def disk_bytes(self) -> int:
        """Of the whole study folder."""
        return sum(part.disk_bytes for part in (*self.stages, *self.references, *self.arms, *self.last))


def plan_study(config: Compare, task: Task, judge: PairJudge | None = None) -> StudyPlan:
    """The plan of a study; writes nothing but a temporary folder. The judge of pairs reads a few texts of the task."""
    with TemporaryDirectory(prefix="preflab-plan-") as folder, hushed(), _leaving_nothing():
        probe = _Probe(config, task, Path(folder))
        seeds = seeds_of(config)
        jobs = jobs_of(config.arms, seeds)
        shared = tuple(_shared(probe, seeds))
        with _threads(config.jobs):
            references = tuple(_arm(probe, Job("reference", seed), asks=False) for seed in seeds)
            found: list[Part] = []
            known: set[object] = set()
            for job in jobs:
                pass_ = asked(config, task, job)
                found.append(_arm(probe, job, asks=pass_ is not None and pass_ not in known))
                known.add(pass_)
        last = () if judge is None else (_judgements(probe, judge, seeds),)
    arms_memory = sorted((part.memory_bytes for part in found), reverse=True)[: config.jobs]
    parent = max((part.memory_bytes for part in (*shared, *references)), default=0)
    together = sum(arms_memory) + (probe.process_bytes if config.jobs > 1 else 0)
    return StudyPlan(
        stages=shared,
        references=references,
        arms=tuple(found),
        jobs=config.jobs,
        arms_seconds=makespan(jobs, [part.seconds for part in found], config.jobs),
        memory_bytes=max(parent, together),
        last=last,
        budget=config.budget,
    )


def makespan(jobs: Sequence[Job], seconds: Sequence[float], at_once: int) -> float:
    """When the last job ends: where there is room, the first in order starts that needn't wait for another.

    >>> sweep = [Job(arm, 0) for arm in ("sft", "dpo", "ppo")]
    >>> makespan(sweep, [3.0, 1.0, 1.0], 1), makespan(sweep, [3.0, 1.0, 1.0], 2)
    (5.0, 3.0)
    """
    lasts = dict(zip(jobs, seconds, strict=True))
    over: dict[Job, float] = {}
    free = [0.0] * at_once

    def start(job: Job) -> float:
        first = Job(before(job.arm) or "", job.seed)
        return max(min(free), over.get(first, math.inf) if first in lasts else 0.0)

    while waiting := [job for job in jobs if job not in over]:
        job = min(waiting, key=start)  # the first of equals: one that has to wait is overtaken
        over[job] = start(job) + lasts[job]
        free[free.index(min(free))] = over[job]
    return max(over.values(), default=0.0)


def _shared(probe: _Probe, seeds: Sequence[int]) -> Iterator[Part]:
    config, task = probe.config, probe.task
    there = Stages(config.out / "stages")
    if config.model is None:
        settings = base_settings(config)
        steps = total_steps(len(task.corpus), settings)
        yield probe.stage("base", there.has("base", base_inputs(config)), steps, settings, probe.texts)
    steps = total_steps(len(task.demonstrations), config.reference)
    made = there.has("reference", reference_inputs(config))
    yield probe.stage("reference", made, steps, config.reference, probe.demonstrations)
    for seed in seeds:
        name, inputs = f"seed-{seed}", seed_inputs(config, seed)
        if task.pairs is None:
            made = there.has(f"{name}/pairs", inputs)
            seconds = 0.0 if made else probe.pairs_seconds * len(task.prompts["train"])
            disk = probe.count_pairs * 2 * BYTES_OF_A_RESPONSE
            yield Part(f"pairs, seed {seed}", "made" if made else "to make", None, seconds, 0, disk)
        judges = {"reward-model": probe.count_pairs}
        if task.pairs is not None:
            judges["judge"] = len(task.pairs.judge)
        elif task.judge_prompts:
            made = there.has(f"{name}/judge pairs", inputs)
            count_judge = probe.pairs_of(len(task.judge_prompts))
            disk = count_judge * 2 * BYTES_OF_A_RESPONSE
            seconds = 0.0 if made else probe.pairs_seconds * len(task.judge_prompts)
            yield Part(f"judge pairs, seed {seed}", "made" if made else "to make", None, seconds, 0, disk)
            judges["judge"] = count_judge
        for label, pairs in judges.items():
            steps = total_steps(pairs, config.reward)
            made = there.has(f"{name}/{label}", inputs)
            part = probe.stage(label.replace("-", " "), made, steps, config.reward, probe.pairs)
            yield replace(part, name=f"{part.name}, seed {seed}")


def _arm(probe: _Probe, job: Job, *, asks: bool) -> Part:
    """An arm; where it `asks`, the reference's pass is its own to make, and else in the cache."""
    config, settings = probe.config, settings_of(probe.config, job.arm)
    run = folder_of(config, job.arm, job.seed)
    steps = steps_of(config, job.arm, probe.count_pairs, len(probe.task.sampled_on))
    name = f"{job.arm}, seed {job.seed}"
    validation, test = (len(probe.task.prompts[split]) for split in ("validation", "test"))
    at = checkpoint.latest(run.checkpoints) if run.checkpoints.is_dir() else None
    done = finished(run)
    state: State = "made" if done else "begun" if at else "to make"
    left = 1 - (at.step / steps if at and steps else 0)
    match settings:
        case None:
            seconds, memory, disk = probe.evaluation(validation) + probe.evaluation(test), 0, probe.model_bytes
            points = 1
        case BestOfN():
            seconds = 0.0 if done else probe.best_of_n_seconds(settings.n) * (validation + test)
            points, memory, disk = len(sizes(settings.n)), 0, 0
        case _:
            assert steps is not None
            kind = probe.kind(job.arm)
            rounds = settings.rounds if isinstance(settings, IterativeDPO) else 1
            points = settings.evaluations * rounds
            each = probe.evaluation(validation) + kind.save_seconds
            seconds = left * (kind.seconds_a_step * steps + points * each) + probe.evaluation(test)
            seconds += kind.asked * probe.count_pairs * probe.reference_seconds if asks else 0.0
            memory, disk = kind.memory.total, kind.disk_bytes * (rounds + 1 if rounds > 1 else 1)
    disk += (validation * points + test) * BYTES_OF_A_RESPONSE
    answers = _answers(probe, job, settings)
    asked_seconds = 0.0
    if answers and written(run) != answers:
        asked_seconds = len(answers) * probe.answer_seconds(settings.n if isinstance(settings, BestOfN) else None)
        if done:
            state, memory = "begun", probe.process_bytes
    disk += len(answers) * BYTES_OF_A_RESPONSE
    memory = 0 if state == "made" else memory
    return Part(name, state, steps, asked_seconds + (0.0 if done else seconds), memory, disk)


def _answers(probe: _Probe, job: Job, settings: Any) -> list[Place]:
    """What the arm answers at its end; a chain's beginning that is no arm itself is not asked."""
    if not shows(probe.config, job.arm):
        return []
    samples = probe.config.generations.samples
    return places(probe.task.asked, samples=samples, best_of_n=isinstance(settings, BestOfN))


def _judgements(probe: _Probe, judge: PairJudge, seeds: Sequence[int]) -> Part:
    """What the judge of pairs has to read when all arms are done: every two arms, each seed's responses both ways."""
    config = probe.config
    left, every = len(unread(config.out, judge, config.arms, seeds)), len(pairs_of(config.arms))
    readings = 2 * len(seeds) * len(probe.task.prompts["test"])
    once, each = probe.judge_seconds(judge) if left else (0.0, 0.0)
    state: State = "to make" if left == every else "begun" if left else "made"
    return Part(
        "judge of pairs", state, None, once + left * readings * each, 0, every * readings * BYTES_OF_A_JUDGEMENT
    )


@dataclass(frozen=True)
class _Kind:
    """What arms have in common whose settings differ in fractions alone (β, a learning rate)."""

    seconds_a_step: float
    save_seconds: float
    """Of model and checkpoint, at an evaluation."""
    memory: Memory
    disk_bytes: int
    asked: int
    """Responses of a pair for which the reference is asked, by a method that asks: KTO twice, under another prompt."""


@dataclass
class _Probe:
    """A study in miniature: models of the real shape that have learned nothing, texts of the task."""

    config: Compare
    task: Task
    folder: Path
    kinds: dict[str, _Kind] = field(default_factory=dict)
    of_n: dict[int, float] = field(default_factory=dict)
    answering: dict[int | None, float] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=count)

    @cached_property
    def policy(self) -> Policy:
        """The reference, or what has its shape."""
        config, there = self.config, self.config.out / "stages"
        models = [there / stage / "model" for stage in ("reference", "base") if (there / stage / "stage.json").exists()]
        name = models[0] if models else config.model
        if name is None:
            policy = new_base(config, self.task.corpus, seed=0)
        else:
            policy = load(config, name)
        policy.model.requires_grad_(False)
        save_model(policy, self._reference_folder)
        return policy

    @property
    def _reference_folder(self) -> Path:
        return self.folder / "stages" / "reference" / "model"

    @cached_property
    def trained(self) -> bool:
        """Whether the reference is there, whose responses end where they should."""
        return (self.config.out / "stages" / "reference" / "stage.json").exists()

    @cached_property
    def encoder(self) -> Encoder:
        return encoder_of(self.config, self.policy)

    @cached_property
    def demonstrations(self) -> list[Tree]:
        return self.encoder.demonstrations(self.task.demonstrations[:LOOKED_AT])

    @cached_property
    def texts(self) -> list[Tree]:
        """What the base learns."""
        trees, _ = texts_of_base(self.config, self.policy, self.task.corpus[:LOOKED_AT])
        return trees

    @cached_property
    def pairs(self) -> list[Tree]:
        """Pairs that come with the task; else of demonstrations, each answered by its own and by another's response."""
        if self.task.pairs is not None:
            return self.encoder.pairs(self.task.pairs.policy)
        rows = self.demonstrations
        others = rows[1:] + rows[:1]
        return [
            dataclasses.replace(tree, responses=(*tree.responses, *other.responses))
            for tree, other in zip(rows, others, strict=True)
        ]

    @cached_property
    def count_pairs(self) -> int:
        """Of the study: all that can be labelled, of sampled ones."""
        if self.task.pairs is not None:
            return len(self.pairs)
        return int(LABELLED * self.pairs_of(len(self.task.prompts["train"])))

    def pairs_of(self, prompts: int) -> int:
        """All that can be labelled, of so many prompts."""
        k, kept = self.config.pairs.responses, self.config.pairs.per_prompt
        return prompts * min(kept, k * (k - 1) // 2)

    @cached_property
    def response_tokens(self) -> int:
        """How long a sampled response may be here."""
        if self.trained:
            return self.config.lengths.response_tokens
        return round(sum(len(tree.responses[0]) for tree in self.demonstrations) / len(self.demonstrations))

    @cached_property
    def bench(self) -> Bench:
        """A bench whose training is short."""
        assert self.policy is not None  # it writes the reference's folder
        scorer = new_scorer(self.config, self._reference_folder, seed=0)
        reward_model = self.folder / "stages" / "reward-model"
        save_model(scorer, reward_model)
        judge = None if self.task.gold is not None else reward_model
        preferences = Preferences(self.pairs, reward_model, Cost(), judge, [], [], [])
        inside = replace(self.config, out=self.folder)
        stages = Stages(self.folder / "stages")
        bench = Bench.of(inside, self.task, stages, self.policy, preferences, self.config.seed)
        shorter = replace(inside, lengths=replace(inside.lengths, response_tokens=self.response_tokens))
        judge_of_all = replace(bench.judge, max_new_tokens=self.response_tokens)
        return replace(bench, config=shorter, judge=judge_of_all)

    @cached_property
    def model_bytes(self) -> int:
        """On disk, with its tokenizer."""
        assert self.policy is not None
        return sum(file.stat().st_size for file in self._reference_folder.iterdir())

    @cached_property
    def process_bytes(self) -> int:
        """Of the process that waits while arms run: what this one holds, which has made the same."""
        return resident_bytes()

    @cached_property
    def _evaluated(self) -> tuple[float, float]:
        """Seconds of an evaluation's texts, and of a response."""
        judge, prompts = self.bench.judge, self.bench.prompts("validation")[:PROBED_PROMPTS]
        judge.point(self.policy, prompts[:4], step=0, split="validation", baseline=None)  # the first is slower
        texts = _seconds(lambda: judge.likelihood(self.policy))
        whole = _seconds(lambda: judge.point(self.policy, prompts, step=0, split="validation", baseline=None))
        return texts, max(0.0, whole - texts) / len(prompts)

    def evaluation(self, prompts: int) -> float:
        """Seconds of a point on so many prompts."""
        texts, each = self._evaluated
        return texts + each * prompts

    @cached_property
    def reference_seconds(self) -> float:
        """Of a response, in the reference's pass."""
        some = self.pairs[:PROBED_PROMPTS]
        found = reference_logprobs(self.policy.model, some, None, title="probe")
        return found.seconds / (2 * len(some))

    @cached_property
    def pairs_seconds(self) -> float:
        """Of sampling and labelling the pairs of a prompt."""
        gold = self.task.gold
        assert gold is not None
        prompts = prompt_ids(self.encoder, self.task.prompts["train"])
        some = prompts[:PROBED_PROMPTS]
        taken = _seconds(
            lambda: sample_pairs(
                self.policy,
                self.encoder,
                some,
                gold,
                self.config.pairs,
                max_new_tokens=self.response_tokens,
                seed=0,
            )
        )
        return taken / len(some)

    def best_of_n_seconds(self, n: int) -> float:
        """Of a prompt."""
        if n not in self.of_n:
            judge, some = self.bench.judge, self.bench.prompts("validation")[:8]
            baseline = [0.0] * len(some)
            taken = _seconds(
                lambda: list(best_of_n(judge, self.policy, some, n, "validation", baseline=baseline, cost=Cost()))
            )
            self.of_n[n] = max(0.0, taken - len(sizes(n)) * self._evaluated[0]) / len(some)
        return self.of_n[n]

    def answer_seconds(self, best_of: int | None) -> float:
        """Of one of the responses that every arm is asked for at its end; with best-of-n, of n of them."""
        if best_of not in self.answering:
            samples = self.config.generations.samples
            some = prompt_ids(self.encoder, self.task.asked[: max(1, PROBED_PROMPTS // (samples * (best_of or 1)))])
            run, judge = self._run_folder(), self.bench.judge
            taken = _seconds(
                lambda: write_generations(run, judge, some, samples=samples, load=lambda: self.policy, best_of=best_of)
            )
            self.answering[best_of] = taken / len(written(run))
        return self.answering[best_of]

    def judge_seconds(self, judge: PairJudge) -> tuple[float, float]:
        """What a judge of pairs takes once, to load what it needs, and for each pair: demonstrations, each against the
        response of the one after it."""
        rows = (self.task.demonstrations * (JUDGED + 1))[: JUDGED + 1]

        def read(pairs: int) -> float:
            first, second = ([row.response for row in rows[begin : begin + pairs]] for begin in (0, 1))
            return _seconds(lambda: judge([row.prompt for row in rows[:pairs]], first, second))

        whole, each = read(1), read(JUDGED) / JUDGED
        return max(0.0, whole - each), each

    def stage(self, name: str, made: bool, steps: int, settings: Fit, trees: Sequence[Tree]) -> Part:
        """A stage that trains."""
        scores = name in ("reward model", "judge")
        key = "reward model" if scores else name
        if key not in self.kinds:
            self.kinds[key] = self._stage_kind(settings, trees, steps, scores=scores)
        kind = self.kinds[key]
        seconds = kind.seconds_a_step * steps + kind.save_seconds
        return Part(
            name,
            "made" if made else "to make",
            steps,
            0.0 if made else seconds,
            0 if made else kind.memory.total,
            kind.disk_bytes,
        )

    def _stage_kind(self, settings: Fit, trees: Sequence[Tree], total: int, *, scores: bool) -> _Kind:
        model = self._scorer() if scores else self._load()
        some = list(trees[: PROBED_STEPS * settings.batch.size])
        memory = plan_offline(model, list(trees), settings, held=[model.model], folder=self.folder, seed=0).memory
        train: Any = train_reward if scores else train_sft

        def run(steps: int) -> Cost:
            short = _shortened(settings, len(some), steps)
            cost: Cost = train(model, some, short, self._run_folder(), seed=0)
            return cost

        seconds = _seconds_a_step(run)
        disk = self._trained_bytes([(model, settings)])
        written = self._written_in(disk + self.model_bytes)
        # One at its only evaluation; more where saves come by the clock too.
        kept = checkpoint.KEPT if seconds * total > SECONDS_BETWEEN_SAVES else 1
        return _Kind(seconds, written, memory, kept * disk + self.model_bytes, 0)

    def kind(self, arm: str) -> _Kind:
        """What is known of an arm's last stage, measured once for all that differ in fractions alone."""
        stage, settings = stages(arm)[-1], settings_of(self.config, arm)
        shape = {key: value for key, value in flatten(to_values(settings)).items() if not isinstance(value, float)}
        name = f"{stage.method} {stage.gold} {sorted(shape.items(), key=str)}"
        if name not in self.kinds:
            self.kinds[name] = self._arm_kind(stage, settings)
        return self.kinds[name]

    def _arm_kind(self, stage: Stage, settings: Any) -> _Kind:
        arm = stage.method + (GOLD if stage.gold else "")  # what a variant sets is in `settings`
        bench, policy = self.bench, self._load()
        pairs, prompts = self.pairs, self.task.sampled_on

        def run(steps: int) -> Cost:
            fresh = self._load()
            examples = list(pairs[: max(PROBED_STEPS * getattr(settings.batch, "size", 1), 1)])
            some = prompts[: max(PROBED_PROMPTS, settings.batch.size)]
            match settings:
                case IterativeDPO():
                    short: Any = replace(settings, rounds=1)
                case PPO():
                    short = replace(settings, updates=steps, value_warmup_updates=0)
                case Online() | OnlineDPO():
                    short = replace(settings, updates=steps)
                case _:
                    of_pair = 2 if isinstance(settings, Unpaired) else 1
                    short = _shortened(settings, of_pair * len(examples), steps)
            mine = replace(
                bench,
                config=replace(bench.config, **{stage.key: replace(short, evaluations=1)}),
                task=replace(bench.task, policy_prompts=some),
                preferences=replace(bench.preferences, train=examples),
            )
            return train_arm(mine, arm, fresh, self._run_folder(), lambda step: None, None)

        if isinstance(settings, IterativeDPO):  # all of it grows with the prompts
            some = min(len(prompts), max(PROBED_PROMPTS, settings.batch.size))
            whole = run(1).wall_seconds * len(prompts) / some
            steps = steps_of(self.config, arm, self.count_pairs, len(prompts))
            assert steps is not None
            seconds = whole / steps
        else:
            seconds = _seconds_a_step(run)
        value = None
        if isinstance(settings, PPO) and settings.value_trunk == "separate":
            value = self._scorer()
        trained = [(policy, settings)]
        if value is not None:
            trained.append((value, replace(settings, optimizer=settings.value_optimizer)))
        disk = self._trained_bytes(trained)
        of_kto = isinstance(settings, Unpaired) and isinstance(settings.loss, KTOLoss)
        return _Kind(
            seconds,
            self._written_in(disk + self.model_bytes),
            self._memory(settings, policy, value, gold=stage.gold),
            min(settings.evaluations, checkpoint.KEPT) * disk + self.model_bytes,
            4 if of_kto else 2,
        )

    def _memory(self, settings: Any, policy: Policy, value: Policy | None, *, gold: bool) -> Memory:
        bench, folder = self.bench, self.folder
        held = [policy.model, self.policy.model, bench.proxy.model.model]
        match settings:
            case PPO() | PolicyGradient() | OnlineDPO() | IterativeDPO():
                held += [] if value is None else [value.model]
                return plan_online(
                    policy,
                    value,
                    self.policy.model,
                    [] if gold else [bench.proxy],
                    prompt_ids(self.encoder, bench.task.sampled_on),
                    settings,
                    held=held,
                    folder=folder,
                    max_new_tokens=self.config.lengths.response_tokens,
                    seed=0,
                ).memory
            case Unpaired():
                trees = [one.tree for one in judged_pairs(self.pairs)]
            case SFT():
                trees = pairs_chosen(self.pairs)
            case _:
                trees = self.pairs
        return plan_offline(policy, trees, settings, held=held, folder=folder, seed=0).memory

    def _run_folder(self) -> RunFolder:
        """An empty one: a run in one that was used would go on."""
        return RunFolder.open(self.folder / "runs" / str(next(self.numbers)), "", ours=True)

    def _load(self) -> Policy:
        """A policy to train: the reference, or what has its shape."""
        assert self.policy is not None  # it writes that folder
        return load(self.config, self._reference_folder)

    def _scorer(self) -> Policy:
        return load_scorer(self.config, self.bench.preferences.reward_model)

    def _trained_bytes(self, trained: Sequence[tuple[Policy, Any]]) -> int:
        """Of a checkpoint: weights, masters, moments."""
        total = 0
        for policy, settings in trained:
            kept = kept_by_optimizer(policy.model, settings.optimizer)
            total += held_bytes([policy.model]) + kept.masters + kept.moments
        return total

    def _written_in(self, size: int) -> float:
        """Seconds to write so many bytes, at the rate of writing the model."""
        return self._seconds_a_byte * size

    @cached_property
    def _seconds_a_byte(self) -> float:
        return _seconds(lambda: save_model(self.policy, self.folder / "again")) / self.model_bytes


def _shortened(settings: Any, examples: int, steps: int) -> Any:
    """So many steps on so many examples."""
    return replace(settings, epochs=(steps - 0.5) * settings.batch.size / examples, evaluations=1)


def _seconds_a_step(run: Callable[[int], Cost]) -> float:
    """From a run of one step, which pays for all that comes once, and one of several."""
    once, whole = run(1).wall_seconds, run(1 + PROBED_STEPS).wall_seconds
    return max(0.0, whole - once) / PROBED_STEPS


@contextmanager
def _leaving_nothing() -> Iterator[None]:
    """A probe that is stopped says that it has saved its state, but not for long."""
    try:
        yield
    except Interrupted as error:
        raise Interrupted("stopped; a plan leaves nothing behind", error.exit_code - 128) from None


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


@contextmanager
def _threads(jobs: int) -> Iterator[None]:
    """As many threads as an arm will have."""
    before = torch.get_num_threads()
    if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(threads_each(jobs))
    yield
    torch.set_num_threads(before)
