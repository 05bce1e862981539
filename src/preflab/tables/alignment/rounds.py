"""Aligning a model of rows: rounds of discriminators and training, a choice on validation rows.

    for each round:
        fit discriminators: training rows against fresh rows of the policy     the round's reference is the policy
        train the policy on their reward                                       KL is paid to the round's reference
        at each checkpoint: how well other classifiers tell its rows from validation rows
    keep the checkpoint whose rows were told apart least; the fitted model itself is one of them

What a run leaves in `aligned/METHOD/`:

    config.yaml  environment.json  metrics.jsonl  points.jsonl  discriminators/round-1/  rounds/round-1/  model/
    align.json   the last file: where it is, the alignment is whole
"""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, assert_never

import numpy as np
from jaxtyping import Int
from torch import nn

from preflab.config.alignment import Alignment, Discriminators
from preflab.config.online import GRPO, PPO, RLOO
from preflab.config.online_preference import OnlineDPO
from preflab.errors import ConfigError
from preflab.models.load import new_value_model
from preflab.progress import say
from preflab.rewards.protocol import Answer, Reward, assess
from preflab.runs import (
    JSON,
    RunFolder,
    append_lines,
    new_folder,
    read_json,
    read_lines,
    to_line,
    write_json,
    write_text,
)
from preflab.seeds import derive
from preflab.tables.alignment.choose import FOLDS, differences, measure
from preflab.tables.alignment.reward import LogitReward, WeightedReward
from preflab.tables.alignment.rows import row_policy
from preflab.tables.discriminators.level import Evidence
from preflab.tables.discriminators.panel import Panel, fit_panel
from preflab.tables.discriminators.relations import Relation
from preflab.tables.draw import draw_rows
from preflab.tables.encoding import Encoding
from preflab.tables.fitted import ALIGN, load_model
from preflab.training.cost import Cost
from preflab.training.online_dpo import train_online_dpo
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.rollout import PromptIds
from preflab.training.session import Evaluate

Codes = Int[np.ndarray, "row column"]

POINTS = "points.jsonl"
COLLAPSED = 0.5
"""A policy has collapsed whose rows are distinct less often than so large a share of those that it began with."""
PAID_ROWS, OUTLIERS = 1000, 3
"""Rows that show before a round whether its reward tells any apart; pairs need more than so few at either end."""
CHANCE_AUC = 0.5
"""Nothing is told apart; what lies below is chance, and no better."""


@dataclass(frozen=True)
class Rows:
    """What alignment learns from, and what it chooses by."""

    train: Codes
    """The discriminators' real rows: those that the model learned from."""
    validation: Codes
    """Rows on which no step was taken: they calibrate the discriminators and choose the checkpoint."""


def check_rows(rows: Rows, settings: Discriminators) -> None:
    """
    Raises:
        ConfigError: there are too few to part and judge.
    """
    least = max(2 * settings.folds, FOLDS)
    if min(len(rows.train), len(rows.validation)) < least:
        raise ConfigError(
            f"{len(rows.train)} training and {len(rows.validation)} validation rows are too few to align with "
            f"discriminators.folds = {settings.folds}, which needs {least} of each; fit on more rows, or with a larger "
            "fit.validation"
        )


def check_order(encoding: Encoding, settings: Alignment, method: str) -> None:
    """
    Raises:
        ConfigError: tokens are to be paid apart, and the model writes cells in an order that no discriminator reads.
    """
    if encoding.any_order and method == "ppo" and settings.ppo.discount == 0:
        raise ConfigError(
            "rows whose cells stand in any order are paid at their end, and ppo.discount = 0 pays a token only what it "
            "changes itself; set ppo.discount = 1"
        )


def finished(folder: Path) -> bool:
    """Whether an alignment came to its end."""
    return (folder / ALIGN).exists()


def align_model(
    run: RunFolder,
    encoding: Encoding,
    tokenizer: Any,
    reference: nn.Module,
    start: nn.Module,
    rows: Rows,
    settings: Alignment,
    *,
    method: str,
    seed: int,
) -> dict[str, JSON]:
    """Train a model of rows, leave the chosen one in the run folder, and return what `align.json` says.

    Args:
        run: `aligned/METHOD`; what an earlier start left there is gone on with.
        reference: the fitted model. KL to it is reported.
        start: where the policy starts: the reference, or what an earlier stage of a chain made of it.
        method: one of `METHODS`.
        seed: determines discriminators, rows and steps.

    Raises:
        ConfigError: settings don't go together.
        NumericError: a reward, loss or gradient is not finite.
        Interrupted: SIGTERM or Ctrl-C; called again it goes on.
    """
    if finished(run.path):
        found: dict[str, JSON] = read_json(run.path / ALIGN)
        return found
    check_order(encoding, settings, method)
    work = _Work(run, encoding, tokenizer, reference, rows, settings, method, seed)
    work.look(start, Moment(0, 0))
    policy = start
    for number in range(1, settings.rounds + 1):
        policy = work.round(number, policy)
    return work.finish()


@dataclass(frozen=True)
class Moment:
    """A checkpoint: which round, and after how many updates of it."""

    round: int
    step: int


class _Work:
    """One alignment under way. What a point or a round leaves on disk is not made again."""

    def __init__(
        self,
        run: RunFolder,
        encoding: Encoding,
        tokenizer: Any,
        reference: nn.Module,
        rows: Rows,
        settings: Alignment,
        method: str,
        seed: int,
    ) -> None:
        self.run, self.encoding, self.tokenizer, self.reference = run, encoding, tokenizer, reference
        self.rows, self.settings, self.method, self.seed = rows, settings, method, seed
        self.points: list[dict[str, JSON]] = read_lines(run.path / POINTS)
        write_text(run.path / POINTS, "".join(map(to_line, self.points)))  # without a line that a kill cut short
        self.rounds: list[dict[str, JSON]] = []
        self.cost = Cost()
        self.clock = Clock(self.points[-1] if self.points else {})

    @cached_property
    def relations(self) -> tuple[Relation, ...]:
        """What the forest that chooses is shown beside columns; the same at all checkpoints."""
        return differences(self.encoding, self.reference, self.rows.train, seed=self.seed)

    def look(self, policy: Any, moment: Moment, *, reward: float | None = None, queries: int = 0) -> None:
        """Measure a policy on validation rows, and keep it where it is the best so far."""
        if any((point["round"], point["step"]) == (moment.round, moment.step) for point in self.points):
            return
        found = measure(
            policy,
            self.reference,
            self.encoding,
            self.rows.validation,
            self.relations,
            count=self.settings.judged,
            seed=derive(self.seed, "validation"),
        )
        point = {**asdict(moment), **asdict(found), "reward": reward, "queries": queries}
        if _best([*self.points, point]) is point:
            with new_folder(self.run.model) as folder:
                policy.save_pretrained(folder)
                if self.tokenizer is not None:
                    self.tokenizer.save_pretrained(folder)
        point |= self.clock.seconds()
        self.points.append(point)
        append_lines(self.run.path / POINTS, [point])
        say(
            f"round {moment.round}, update {moment.step}: told from validation rows with an AUC of "
            f"{found.told_apart_auc:.3f}, KL to the reference {found.kl_nats:.3f} nats"
        )

    def round(self, number: int, policy: Any) -> Any:
        """Discriminators of the policy's rows, then training on their reward. Returns the round's last policy."""
        folder = RunFolder(self.run.path / "rounds" / f"round-{number}")
        record = folder.path / "round.json"
        if record.exists():
            self._add(read_json(record))
            return load_model(folder.path / "last", self.encoding)
        folder.path.mkdir(parents=True, exist_ok=True)
        panel, told = discriminators_of(
            policy,
            self.encoding,
            self.rows,
            self.settings.discriminators,
            self.run.path / "discriminators" / f"round-{number}",
            seed=derive(self.seed, "discriminators", number),
        )
        reward = self._reward(panel)
        teaches = not panel.silent and self._teaches(reward, policy, number)
        cost, trained = self._trained(number, policy, reward, folder) if teaches else (Cost(), policy)
        with new_folder(folder.path / "last") as new:
            trained.save_pretrained(new)
        said = {"round": number, "trained": teaches, "queries": cost.reward_calls, "cost": cost.values()}
        write_json(record, told | said)
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        self._add(read_json(record))
        return trained

    def _teaches(self, reward: Reward, policy: Any, number: int) -> bool:
        """Whether the policy's rows are paid differently; for pairs, by more than the gap that they need."""
        rows = draw_rows(policy, self.encoding, PAID_ROWS, seed=derive(self.seed, "paid", number)).codes.tolist()
        prompt = self.encoding.prompt()
        answers = [Answer("", "", prompt, self.encoding.response(row), True) for row in rows]
        paid = sorted(assess(reward, answers).totals)
        match self._settings():
            case OnlineDPO(ranking=ranking):
                return paid[-1 - OUTLIERS] - paid[OUTLIERS] > ranking.smallest_gap
            case PPO() | GRPO() | RLOO():
                return paid[-1] > paid[0]
            case never:
                assert_never(never)

    def _trained(self, number: int, policy: Any, reward: Reward, folder: RunFolder) -> tuple[Cost, Any]:
        """What a round made of a copy of the policy, and what it cost."""
        before = copy.deepcopy(policy).requires_grad_(False)
        trained = copy.deepcopy(policy).requires_grad_(True)
        queried = sum(int(one["queries"]) for one in self.rounds)

        def evaluate(step: int) -> None:
            line = read_lines(folder.metrics)[-1]
            self.look(trained, Moment(number, step), reward=line["reward"], queries=queried + self._rewarded(step))

        return self._train(trained, before, reward, folder, number, evaluate), trained

    def finish(self) -> dict[str, JSON]:
        """Write `metrics.jsonl` and `align.json`."""
        lines: list[dict[str, JSON]] = []
        for number in range(1, len(self.rounds) + 1):
            first = lines[-1]["step"] if lines else 0
            for line in read_lines(self.run.path / "rounds" / f"round-{number}" / "metrics.jsonl"):
                lines.append({**line, "step": first + line["step"], "round": number})
        write_text(self.run.metrics, "".join(map(to_line, lines)))
        best = _best(self.points)
        said = {
            "method": self.run.path.name,
            "reward": self.settings.reward,
            "rows": {"real": len(self.rows.train), "validation": len(self.rows.validation)},
            "rounds": [{name: one[name] for name in one if name != "cost"} for one in self.rounds],
            "points": self.points,
            "chosen": {"round": best["round"], "step": best["step"]},
            "cost": self.cost.values()
            | self.clock.seconds()
            | {
                "queries": self.cost.reward_calls,
                "discriminator_cpu_seconds": sum(float(one["cpu_seconds"]) for one in self.rounds),
            },
            "collapsed": any(
                point["distinct_share"] < COLLAPSED * self.points[0]["distinct_share"] for point in self.points
            ),
            "warnings": self._warnings(best),
            "finished_at": time.time(),
        }
        write_json(self.run.path / ALIGN, said)
        return said

    def _add(self, record: dict[str, JSON]) -> None:
        self.rounds.append(record)
        self.cost.add(Cost(**record["cost"]))

    def _reward(self, panel: Panel) -> Reward:
        settings, dense = self.settings, self.settings.dense and self.method == "ppo"
        match settings.reward:
            case "logit":
                return LogitReward(self.encoding, panel, clip_nats=settings.clip_nats, dense=dense)
            case "weighted":
                return WeightedReward(self.encoding, panel, dense=dense)
            case never:
                assert_never(never)

    def _rewarded(self, step: int) -> int:
        """Rows that were rewarded in so many updates, where none is replaced."""
        given = self._settings()
        each = len(given.ranking.temperatures) if isinstance(given, OnlineDPO) else 1
        return step * given.batch.size * each

    def _settings(self) -> PPO | GRPO | RLOO | OnlineDPO:
        match self.method:
            case "ppo":
                return self.settings.ppo
            case "grpo":
                return self.settings.grpo
            case "rloo":
                return self.settings.rloo
            case "dpo":
                return self.settings.dpo
            case other:
                raise ConfigError(f'there is no method "{other}" for tables')

    def _train(
        self, policy: Any, before: Any, reward: Reward, folder: RunFolder, number: int, evaluate: Evaluate
    ) -> Cost:
        """A round of the method."""
        given = self._settings()
        trained = row_policy(policy, self.encoding, self.tokenizer)
        prompt = self.encoding.prompt()
        title = f"{self.method}, round {number}"
        same: Any = {
            "max_new_tokens": self.encoding.longest,
            "seed": derive(self.seed, "round", number),
            "mask": self.encoding.mask(),
            "evaluate": evaluate,
            "title": title,
        }
        prompts = [PromptIds(f"row {place}", "", prompt) for place in range(given.batch.size)]
        match given:
            case PPO():
                value = None if given.value_trunk == "shared" else new_value_model(trained)
                return train_ppo(trained, value, before, reward, prompts, given, folder, **same)
            case GRPO() | RLOO():
                return train_policy_gradient(trained, before, reward, prompts, given, folder, **same)
            case OnlineDPO():
                return train_online_dpo(trained, before, reward, prompts, given, folder, **same)
            case never:
                assert_never(never)

    def _warnings(self, best: Mapping[str, JSON]) -> list[str]:
        found = []
        if best["round"] == 0:
            found.append("no checkpoint was told from validation rows less well than where it began, which is kept")
        for one in self.rounds:
            known = one["discriminators"][-1]
            if not one["trained"]:
                found.append(
                    f"round {one['round']}: the discriminators tell nothing of the policy's rows (AUC "
                    f"{known['auc']:.3f} on rows that they never saw), so there was nothing to learn, and the policy "
                    "stayed as it was"
                )
            elif known["auc_low"] <= 0.5:
                found.append(
                    f"round {one['round']}: the discriminators hardly tell real rows from the model's (AUC "
                    f"{known['auc']:.3f}, interval from {known['auc_low']:.3f}): there was little to learn"
                )
        return found


def discriminators_of(
    policy: Any, encoding: Encoding, rows: Rows, settings: Discriminators, folder: Path, *, seed: int
) -> tuple[Panel, dict[str, JSON]]:
    """Discriminators of a policy's fresh rows, and what became known of them; those of an earlier start are taken from
    the folder."""
    if (folder / "told.json").exists():
        return Panel.load(folder, encoding), read_json(folder / "told.json")
    clock = Clock({})
    real, unseen = rows.train, rows.validation
    # As the model writes them, orders broken or kept: what users never see is still for the policy to unlearn, and the
    # density ratio is the model's own.
    written = draw_rows(
        policy, encoding, round(settings.written * len(real)) + 4 * len(unseen), seed=derive(seed, "rows")
    ).codes
    written, fresh = written[4 * len(unseen) :], written[: 4 * len(unseen)]
    evidence = Evidence(
        real=real,
        real_fold=_folds(len(real), settings.folds, derive(seed, "real")),
        written=written,
        written_fold=_folds(len(written), settings.folds, derive(seed, "written")),
        unseen_real=unseen,
        unseen_written=fresh,
    )
    panel = fit_panel(encoding, evidence, settings, seed=seed)
    panel.save(folder)
    told = {
        "discriminators": [asdict(one) for one in panel.held],
        "written": len(written),
        "seconds": clock.seconds()["wall_seconds"],
        "cpu_seconds": clock.seconds()["cpu_seconds"],
    }
    write_json(folder / "told.json", told)
    for one in panel.held:
        say(f"{one.name}: AUC {one.auc:.3f} ({one.auc_low:.3f} to {one.auc_high:.3f}) on rows that it never saw")
    return panel, told


class Clock:
    """Seconds so far: of the clock and of the processor, on top of what an earlier start counted."""

    def __init__(self, before: Mapping[str, JSON]) -> None:
        self.before = {name: float(before.get(name, 0.0)) for name in ("wall_seconds", "cpu_seconds")}
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def seconds(self) -> dict[str, float]:
        """Both."""
        return {
            "wall_seconds": self.before["wall_seconds"] + time.perf_counter() - self.wall,
            "cpu_seconds": self.before["cpu_seconds"] + time.process_time() - self.cpu,
        }


def _best(points: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    """The point told apart least; the first of those that are not told apart at all."""
    return min(points, key=lambda point: max(CHANCE_AUC, point["told_apart_auc"]))


def _folds(rows: int, folds: int, seed: int) -> Int[np.ndarray, " row"]:
    """A fold for each row, of even sizes."""
    order = np.random.Generator(np.random.Philox(seed)).permutation(rows)
    found = np.empty(rows, dtype=np.int64)
    found[order] = np.arange(rows) % folds
    return found
