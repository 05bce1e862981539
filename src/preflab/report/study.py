"""A study folder, read: study.json and, for every arm and seed, the rows that evaluation wrote.

Nothing here computes a result. A study that is still running has arms without points; they are read as such.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from preflab.errors import StorageError
from preflab.report.fields import Fields
from preflab.report.reward_models import RewardModel, read_reward_models
from preflab.report.statistics import Matrix
from preflab.runs import JSON, RunFolder, read_json, read_lines

COSTS = (
    "wall_seconds",
    "trained_tokens",
    "generated_tokens",
    "reward_calls",
    "gold_calls",
    "peak_memory_bytes",
    "flops",
)
COUNTS = ("steps", "examples", "labels")
"""What a budget may also be in: optimiser steps, examples trained on, preference labels."""


@dataclass(frozen=True)
class Sample:
    """One evaluated response."""

    prompt_id: str
    prompt: str
    response: str
    reward: float
    kl_nats: float


@dataclass(frozen=True)
class Generation:
    """A response of the chosen checkpoint to one of the prompts that every arm answers, with the same luck."""

    prompt: str
    sample: int
    """Which of the samples, from 0; 0 for the greedy one."""
    greedy: bool
    response: str
    reward: float | None
    kl_nats: float
    """KL from the reference along this response; of best-of-n its bound."""
    ended: bool
    """Whether it has its end token."""


@dataclass(frozen=True)
class Point:
    """An arm at one step, scored on one split: matrices with a row per seed and a column per prompt."""

    step: int
    split: str
    seeds: tuple[int, ...]
    prompts: tuple[str, ...]
    reward: Matrix
    proxy_reward: Matrix | None
    kl_nats: Matrix
    response_tokens: Matrix
    ended: Matrix
    win: Matrix
    nll_nats: Matrix  # a column per held-out text
    nll_tokens: Matrix
    samples: tuple[tuple[Sample, ...], ...]  # per seed
    judge_reward: Matrix | None = None  # of the held-out judge, where the gold reward is another

    def each(self, change: Callable[[Matrix], Matrix], **other: Any) -> Point:
        """The same point with every matrix changed alike, and `other` fields replaced."""
        matrices: dict[str, Any] = {
            name: None if (m := getattr(self, name)) is None else change(m) for name in MATRICES
        }
        return replace(self, **matrices, **other)

    def of_seeds(self, seeds: Sequence[int]) -> Point:
        """The same point of these seeds only, in this order."""
        rows = [self.seeds.index(seed) for seed in seeds]
        return self.each(lambda m: m[rows], seeds=tuple(seeds), samples=tuple(self.samples[row] for row in rows))

    def mean_as(self, seeds: Sequence[int]) -> Point:
        """The mean over this point's seeds, standing for each of `seeds`."""
        shape = (len(seeds), 1)
        return self.each(lambda m: np.tile(m.mean(axis=0), shape), seeds=tuple(seeds), samples=((),) * len(seeds))


MATRICES = (
    "reward",
    "proxy_reward",
    "judge_reward",
    "kl_nats",
    "response_tokens",
    "ended",
    "win",
    "nll_nats",
    "nll_tokens",
)


def stack(points: Sequence[Point]) -> Point:
    """The points of several seeds as one; of the first one's step, where they differ."""
    first = points[0]
    stacked: dict[str, Any] = {}
    for name in MATRICES:
        parts = [getattr(point, name) for point in points]
        stacked[name] = None if any(part is None for part in parts) else np.concatenate(parts)
    return replace(
        first,
        **stacked,
        seeds=tuple(seed for point in points for seed in point.seeds),
        samples=tuple(samples for point in points for samples in point.samples),
    )


@dataclass(frozen=True)
class Run:
    """One arm trained with one seed."""

    seed: int
    done: bool
    settings: Mapping[str, JSON]
    validation: tuple[Point, ...]  # by step
    test: Point | None
    chosen_step: int | None
    cost: Mapping[str, float | None]
    metrics: tuple[Mapping[str, JSON], ...]
    generations: tuple[Generation, ...] = ()  # by prompt
    counts: Mapping[str, float | None] = field(default_factory=dict)  # COUNTS; none where it has not finished

    @property
    def chosen(self) -> Point | None:
        """The point that speaks for the run: on test prompts, or until then on validation prompts."""
        return self.test or self.validated

    @property
    def validated(self) -> Point | None:
        """The chosen checkpoint as it was on validation prompts, or until it is chosen the last one; None where there
        is none yet."""
        last = self.validation[-1] if self.validation else None
        return next((point for point in self.validation if point.step == self.chosen_step), last)


@dataclass(frozen=True)
class Arm:
    """One method with one setting, over all its seeds."""

    name: str
    method: str
    label: str
    oracle: bool
    kl_is_bound: bool  # its KL was not measured, it is an upper bound (best of n)
    description: str
    settings: Mapping[str, JSON]
    runs: tuple[Run, ...]
    family: str  # its chain of methods without settings: what variants share
    overrides: Mapping[str, JSON]  # dotted keys; what makes it a variant

    @property
    def title(self) -> str:
        """The label, with the mark of an arm that sees the gold reward."""
        return titled(self.label, oracle=self.oracle)

    @cached_property
    def validation(self) -> tuple[Point, ...]:
        """The validation points in order, each over the seeds that got there.

        A seed's own data may make its epoch a step longer: the first evaluations of all seeds are one point, and so on.
        """
        last = max((len(run.validation) for run in self.runs), default=0)
        return tuple(stack([r.validation[i] for r in self.runs if len(r.validation) > i]) for i in range(last))

    @cached_property
    def final(self) -> Point | None:
        """The chosen checkpoint of every seed on test prompts; while no seed has been there, on validation prompts."""
        tests = [run.test for run in self.runs if run.test]
        chosen = tests or [run.chosen for run in self.runs if run.chosen]
        return stack(chosen) if chosen else None

    @property
    def chosen_steps(self) -> tuple[int, ...]:
        """The step that each seed chose (or, while it runs, its last)."""
        return tuple(run.chosen.step for run in self.runs if run.chosen)


def titled(label: str, *, oracle: bool) -> str:
    """What reports call an arm or a family: its label, with a mark where it sees the gold reward.

    >>> titled("PPO on gold", oracle=True)
    'PPO on gold (oracle)'
    """
    return f"{label} (oracle)" if oracle and "oracle" not in label.lower() else label


@dataclass(frozen=True)
class Fact:
    """A number about the study that no arm owns, such as the reward model's accuracy."""

    name: str
    value: float
    low: float | None
    high: float | None
    note: str


@dataclass(frozen=True)
class Budget:
    """What every arm was given the same amount of."""

    measure: str
    """steps, examples, labels, reward-calls, tokens, flops or seconds."""
    amount: float


@dataclass(frozen=True, eq=False)  # compared, and hashed for what is computed of it once, as the object that it is
class Study:
    """A whole study, as far as it has come."""

    folder: Path
    config: Mapping[str, JSON]
    config_text: str
    task: str
    title: str
    task_summary: str
    reward_name: str
    reward_explanation: str
    proxy_name: str
    proxy_explanation: str
    reference_name: str
    arms: tuple[Arm, ...]
    prompts: Mapping[str, int]
    facts: tuple[Fact, ...]
    reward_models: tuple[RewardModel, ...]
    counts: tuple[tuple[str, int], ...]  # what was dropped, and how often
    warnings: tuple[str, ...]
    stages: tuple[tuple[str, float], ...]  # what arms share, in seconds
    swept: tuple[str, ...]  # the settings that the study was made to vary, dotted
    budget: Budget | None
    environment: Mapping[str, JSON]
    complete: bool

    @property
    def reference(self) -> Arm | None:
        """The arm at KL 0, once it has a point."""
        return next((arm for arm in self.arms if arm.name == self.reference_name and arm.final), None)

    @property
    def trained(self) -> tuple[Arm, ...]:
        """Every arm but the reference."""
        return tuple(arm for arm in self.arms if arm.name != self.reference_name)

    @property
    def seeds(self) -> tuple[int, ...]:
        """All seeds of the study."""
        return tuple(sorted({run.seed for arm in self.arms for run in arm.runs}))

    @property
    def by_proxy(self) -> bool:
        """Whether the study chooses checkpoints, and so variants, by the proxy: gold has no part in any choice then."""
        return self.config.get("choose_by") == "proxy"

    @property
    def choosing_name(self) -> str:
        """The reward that choices are made by."""
        return self.proxy_name if self.by_proxy else self.reward_name

    def choosing(self, point: Point) -> Matrix:
        """A point's values of it; gold where the point has no other."""
        return point.reward if point.proxy_reward is None or not self.by_proxy else point.proxy_reward

    @property
    def chosen_as(self) -> str:
        """How an arm's checkpoint was chosen, in words."""
        how = {"proxy": "the checkpoint that did best by the proxy", "last": "its last checkpoint"}
        return how.get(str(self.config.get("choose_by")), "the checkpoint that did best on validation prompts")

    @property
    def missing(self) -> tuple[str, ...]:
        """What the study has not done yet, in words."""
        lines = []
        for arm in self.arms:
            for run in arm.runs:
                where = arm.title if len(arm.runs) == 1 else f"{arm.title}, seed {run.seed}"
                if run.chosen is None:
                    lines.append(f"{where}: no checkpoint evaluated yet")
                elif not run.done or run.test is None:
                    lines.append(f"{where}: evaluated up to step {run.validation[-1].step if run.validation else 0}")
        return tuple(lines)


def read_study(folder: Path) -> Study:
    """Read a study folder.

    Raises StorageError where `folder` holds no study or a file is damaged, NumericError where a row is not finite.
    """
    path = folder / "study.json"
    if not path.is_file():
        raise StorageError(
            f"{folder} is not a study folder: it has no study.json; name a folder that preflab compare wrote"
        )
    content = Fields(read_json(path), path)
    arms: dict[str, Arm] = {}
    environment: Mapping[str, JSON] = {}
    for entry in content.items("arms"):
        run_folder = folder / entry.text("folder")
        run = read_run(
            run_folder, entry.text("name"), entry.whole("seed"), entry.flag("done"), entry.mapping("settings")
        )
        before = arms.get(entry.text("name"))
        arms[entry.text("name")] = Arm(
            name=entry.text("name"),
            method=entry.text("method"),
            label=entry.text("label"),
            oracle=entry.flag("oracle"),
            kl_is_bound=entry.value.get("kl_is_bound") is True,
            description=entry.text("description"),
            settings=before.settings if before else entry.mapping("settings"),
            runs=(*before.runs, run) if before else (run,),
            family=str(entry.value.get("family") or entry.text("name")),
            overrides=entry.mapping("overrides") if "overrides" in entry.value else {},
        )
        recorded = run_folder / "environment.json"
        if not environment and recorded.is_file():
            environment = Fields(read_json(recorded), recorded).value
    config = folder / "study.yaml"
    reward, proxy = content.inner("reward"), content.inner("proxy")
    study = Study(
        folder=folder,
        config=content.mapping("study"),
        config_text=config.read_text("utf-8") if config.is_file() else "",
        task=content.text("task"),
        title=content.text("title"),
        task_summary=content.text("task_summary"),
        reward_name=reward.text("name"),
        reward_explanation=reward.text("explanation"),
        proxy_name=proxy.text("name"),
        proxy_explanation=proxy.text("explanation"),
        reference_name=content.text("reference"),
        arms=tuple(arms.values()),
        prompts=content.mapping("prompts"),
        facts=tuple(read_fact(item) for item in content.items("facts")),
        reward_models=read_reward_models(content.items("reward_models") if "reward_models" in content.value else []),
        counts=tuple((item.text("name"), item.whole("count")) for item in content.items("counts")),
        warnings=tuple(str(line) for line in content.listing("warnings")),
        stages=tuple((item.text("name"), item.number("seconds")) for item in content.items("stages")),
        swept=tuple(content.inner("sweep").mapping("over")) if content.value.get("sweep") else (),
        budget=read_budget(content),
        environment=environment,
        complete=content.flag("complete"),
    )
    refuse_other_prompts(study)
    return study


def read_budget(content: Fields) -> Budget | None:
    """What arms were held to; None where to nothing."""
    if content.value.get("budget") is None:
        return None
    budget = content.inner("budget")
    return Budget(budget.text("measure"), budget.number("amount"))


def read_fact(content: Fields) -> Fact:
    """Read one fact; its interval and its note may be missing."""
    ends = [None if content.value.get(end) is None else content.number(end) for end in ("low", "high")]
    note = str(content.value.get("note") or "")
    return Fact(content.text("name"), content.number("value"), ends[0], ends[1], note)


def refuse_other_prompts(study: Study) -> None:
    """Raise StorageError where two runs were scored on different prompts: they can't be compared."""
    seen: dict[str, tuple[str, tuple[str, ...], int]] = {}
    for arm in study.arms:
        for run in arm.runs:
            for point in (*run.validation, *([run.test] if run.test else [])):
                texts = point.nll_nats.shape[1]
                where, *scored_on = seen.setdefault(point.split, (f"{arm.name} seed {run.seed}", point.prompts, texts))
                if scored_on != [point.prompts, texts]:
                    raise StorageError(
                        f"{study.folder}: {arm.name} seed {run.seed} step {point.step} and {where} were scored on "
                        f"different {point.split} prompts or texts; run the study again in a new folder"
                    )


def read_run(folder: Path, arm: str, seed: int, done: bool, settings: Mapping[str, JSON]) -> Run:
    """Read one run folder; a run that has not been evaluated yet has no points."""
    run = RunFolder(folder)
    where = f"{arm} seed {seed}"
    if not run.evaluation.is_file():
        empty = dict.fromkeys(COSTS)
        return Run(seed, done, settings, (), None, None, empty, tuple(read_lines(run.metrics)))
    content = Fields(read_json(run.evaluation), run.evaluation)
    samples: dict[tuple[int, str], list[Sample]] = {}
    for line in (Fields(line, run.samples) for line in read_lines(run.samples)):
        sample = Sample(
            line.text("prompt_id"),
            line.text("prompt"),
            line.text("response"),
            line.number("reward"),
            line.number("kl_nats"),
        )
        samples.setdefault((line.whole("step"), line.text("split")), []).append(sample)
    points = [
        read_point(point, seed, samples.get((point.whole("step"), point.text("split")), []), where)
        for point in content.items("points")
    ]
    costs = content.value.get("cost") or {}
    return Run(
        seed=seed,
        done=done,
        settings=settings,
        validation=tuple(sorted((p for p in points if p.split == "validation"), key=lambda p: p.step)),
        test=next((p for p in points if p.split == "test"), None),
        chosen_step=content.value.get("chosen_step"),
        cost={name: costs.get(name) for name in COSTS},
        metrics=tuple(read_lines(run.metrics)),
        generations=read_generations(folder / "generations.jsonl"),
        counts={name: costs.get(name) for name in COUNTS},
    )


def read_generations(path: Path) -> tuple[Generation, ...]:
    """Read what an arm answered to the prompts that all arms answer; () where there is none, or none yet."""
    return tuple(
        Generation(
            prompt=line.text("prompt"),
            sample=line.whole("sample"),
            greedy=line.flag("greedy"),
            response=line.text("response"),
            reward=None if line.value.get("reward") is None else line.number("reward"),
            kl_nats=line.number("kl_nats"),
            ended=line.flag("ended"),
        )
        for line in (Fields(line, path) for line in read_lines(path))
    )


def read_point(content: Fields, seed: int, samples: Sequence[Sample], where: str) -> Point:
    """Read one evaluated checkpoint; rows of the same prompt are averaged, since prompts are what is independent."""
    rows = content.inner("rows")
    step, split = content.whole("step"), content.text("split")
    ids = [str(x) for x in rows.listing("prompt")]
    prompts = tuple(dict.fromkeys(ids))
    column = {prompt: i for i, prompt in enumerate(prompts)}
    index = np.array([column[x] for x in ids], dtype=np.intp)

    def matrix(name: str) -> Matrix:
        values = rows.finite(name, f"{where} step {step} {split}: {name}")
        if len(values) != len(ids):
            raise StorageError(
                f"{rows.path}: {name} has {len(values)} rows for {len(ids)} prompts; evaluate {where} again"
            )
        return (np.bincount(index, values, len(prompts)) / np.bincount(index, minlength=len(prompts)))[None, :]

    held_out = content.inner("held_out") if content.value.get("held_out") else Fields({}, content.path)
    texts = [
        held_out.finite(name, f"{where} step {step}: held-out {name}")[None, :] if held_out.value else np.zeros((1, 0))
        for name in ("nll_nats", "tokens")
    ]
    return Point(
        step=step,
        split=split,
        seeds=(seed,),
        prompts=prompts,
        reward=matrix("reward"),
        proxy_reward=None if rows.value.get("proxy_reward") is None else matrix("proxy_reward"),
        kl_nats=matrix("kl_nats"),
        response_tokens=matrix("response_tokens"),
        ended=matrix("ended"),
        win=matrix("win"),
        nll_nats=texts[0],
        nll_tokens=texts[1],
        samples=(tuple(samples),),
        judge_reward=None if rows.value.get("judge_reward") is None else matrix("judge_reward"),
    )
