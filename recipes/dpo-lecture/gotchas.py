"""Five ways to get DPO wrong, each measured against the right one on the controlled task.

    python recipes/dpo-lecture/gotchas.py runs/lecture

trains each way once a seed, from the study that `study.yaml` makes, and writes `gotchas.json` and the tables in
`README.md`. The loop is that of `dpo_lecture.py`; what it does wrong is in `Way`, and nowhere in the library.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, assert_never

import torch
from torch import Tensor

from preflab.config.commands import Compare
from preflab.config.load import from_files
from preflab.config.presets import preset
from preflab.data.encode import Encoder, Tree
from preflab.data.pack import Packed, pack
from preflab.data.sources import read_pairs
from preflab.evaluation.policy import Judge
from preflab.losses import dpo, masked_sum
from preflab.models.load import Policy, load_policy
from preflab.models.scoring import response_logprobs
from preflab.report.statistics import estimate
from preflab.rewards.sentiment import GrammarSentiment
from preflab.runs import JSON, write_json
from preflab.seeds import derive
from preflab.studies.reviews import generated_reviews
from preflab.training.rollout import PromptIds, prompt_ids

HERE = Path(__file__).parent
STEPS, PAIRS, RATE = 40, 16, 1e-4
"""Optimiser steps, pairs a step, learning rate (AdamW)."""
LAST = 10
"""The last so many steps, over which what is logged is averaged."""
PROMPTS = 128
"""Test prompts that every policy answers."""


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way to do DPO: as it is, the right one."""

    beta: float = 0.1
    start: Literal["sft", "base"] = "sft"
    """What the policy is before the first step."""
    reference: Literal["sft", "base", "policy", "policy with gradient", "trained copy"] = "sft"
    prompt_in_mask: bool = False
    """Count the prompt's tokens among the response's."""
    mean: bool = False
    """Take means over tokens for the sums."""


RIGHT = Way()
MEANS = Way(mean=True, beta=2.0)
"""Length-normalised DPO, right in its own way: β is that of sums times about the tokens of a response."""


@dataclass(frozen=True)
class Bench:
    """What all ways have in common."""

    study: Path
    seeds: range
    encoder: Encoder
    prompts: list[PromptIds]
    judge: Judge
    done: dict[tuple[Way, int], JSON]
    """What was measured: the right way stands beside several wrong ones, and is trained once."""

    @classmethod
    def of(cls, study: Path) -> Bench:
        """From the folder that `preflab compare` made."""
        config = from_files(Compare, [study / "study.yaml"], default=preset("reviews"), missing=None)
        reference = load_policy(study / "stages/reference/model")
        encoder = Encoder(reference.tokenizer, config.lengths.prompt_tokens, config.lengths.response_tokens)
        judge = Judge(
            reference=reference.model,
            encoder=encoder,
            reward=GrammarSentiment(config.pairs.gold_scale),
            proxy=None,
            held_out=(),
            max_new_tokens=config.lengths.response_tokens,
            seed=derive(config.seed, "gotchas"),
        )
        prompts = prompt_ids(encoder, generated_reviews(config).prompts["test"][:PROMPTS])
        return cls(study, range(config.seed, config.seed + config.seeds), encoder, prompts, judge, {})

    def model(self, name: str) -> Policy:
        """A fresh copy of the SFT model or the raw base."""
        return load_policy(self.study / "stages" / {"sft": "reference", "base": "base"}[name] / "model")

    def pairs(self, seed: int) -> list[Tree]:
        """The seed's own pairs."""
        return self.encoder.pairs(read_pairs(self.study / f"stages/seed-{seed}/pairs/train.jsonl").rows)

    def untrained(self, name: str) -> dict[str, dict[str, float]]:
        """Reward and KL of a model before any DPO."""
        point, _ = self.judge.point(self.model(name), self.prompts, step=0, split="test", baseline=None)
        return {figure: rounded(torch.tensor(point["rows"][figure]), figure) for figure in ("reward", "kl_nats")}

    def measure(self, way: Way, seed: int) -> JSON:
        """Train that way, and look at the policy: its reward and KL from the SFT model, on the same prompts for all."""
        if (way, seed) not in self.done:
            policy, curve = train(self, way, seed)
            point, _ = self.judge.point(policy, self.prompts, step=STEPS, split="test", baseline=None)
            figures = {name: sum(step[name] for step in curve[-LAST:]) / LAST for name in curve[0]}
            self.done[way, seed] = {
                "first_loss": curve[0]["loss"],
                **{f"last_{name}": value for name, value in figures.items()},
                "reward": point["rows"]["reward"],
                "kl_nats": point["rows"]["kl_nats"],
            }
        return self.done[way, seed]


def train(bench: Bench, way: Way, seed: int) -> tuple[Policy, list[dict[str, float]]]:
    """The loop of `dpo_lecture.py`, done that way; the policy and its curves."""
    policy = bench.model(way.start)
    pairs = bench.pairs(seed)
    if way.prompt_in_mask:
        pairs = [with_prompt(tree) for tree in pairs]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(derive(seed, "order")))
    batches = [pack([pairs[i] for i in indices.tolist()]) for indices in order[: STEPS * PAIRS].split(PAIRS)]
    weights = list(policy.model.parameters())
    other, kept = policy, None
    match way.reference:
        case "sft" | "base" as name:
            kept = kept_logprobs(bench.model(name), batches, way)
        case "trained copy":
            other = bench.model(way.start)
            weights += other.model.parameters()
        case "policy" | "policy with gradient":
            pass
        case never:
            assert_never(never)
    optimizer = torch.optim.AdamW(weights, lr=RATE)
    curve = []
    for step, batch in enumerate(batches):
        of_reference = logprob(other, batch, way) if kept is None else kept[step]
        if way.reference == "policy":
            of_reference = of_reference.detach()
        chosen, rejected = (logprob(policy, batch, way) - of_reference).unbind(1)
        loss = dpo(chosen, rejected, beta=way.beta).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        margin = way.beta * (chosen - rejected).detach()
        wins = (margin > 0).float() + (margin == 0).float() / 2
        curve.append({"loss": loss.item(), "accuracy": wins.mean().item(), "margin": margin.mean().item()})
    return policy, curve


def logprob(policy: Policy, batch: Packed, way: Way) -> Tensor:
    """log π(y|x) of the chosen and the rejected response of each pair."""
    summed = masked_sum(response_logprobs(policy.model, batch), batch.mask)
    return (summed / batch.mask.sum(1) if way.mean else summed).view(-1, 2)


@torch.no_grad()
def kept_logprobs(reference: Policy, batches: list[Packed], way: Way) -> list[Tensor]:
    """What a frozen reference says, computed once."""
    return [logprob(reference, batch, way) for batch in batches]


def with_prompt(tree: Tree) -> Tree:
    """The prompt's tokens, but for the begin token, as if they were the beginning of each response."""
    return replace(tree, prompt=tree.prompt[:1], responses=tuple(tree.prompt[1:] + one for one in tree.responses))


def beta(bench: Bench) -> JSON:
    """β too small, or too large."""
    return compared(bench, RIGHT, {f"β {value:g}": Way(beta=value) for value in (0.01, 1.0, 10.0)})


def wrong_reference(bench: Bench) -> JSON:
    """The raw base for a reference."""
    ways = {
        "policy SFT, reference raw base": Way(reference="base"),
        "no SFT: both are the raw base": Way(start="base", reference="base"),
    }
    return compared(bench, RIGHT, ways)


def prompt_in_mask(bench: Bench) -> JSON:
    """Prompt tokens left in the mask, of sums."""
    return compared(bench, RIGHT, {"prompt tokens counted": replace(RIGHT, prompt_in_mask=True)})


def prompt_in_mask_of_means(bench: Bench) -> JSON:
    """Prompt tokens left in the mask, of means."""
    return compared(bench, MEANS, {"prompt tokens counted": replace(MEANS, prompt_in_mask=True)})


def mean_for_sum(bench: Bench) -> JSON:
    """Means over tokens where the loss asks for sums."""
    return compared(bench, RIGHT, {"means, β 0.1": replace(RIGHT, mean=True), "means, β 2": MEANS})


def moving_reference(bench: Bench) -> JSON:
    """A reference that isn't frozen."""
    ways = {
        "the policy itself, no gradient": Way(reference="policy"),
        "the policy itself, with gradient": Way(reference="policy with gradient"),
        "a copy that the optimiser trains too": Way(reference="trained copy"),
    }
    return compared(bench, RIGHT, ways)


GOTCHAS: tuple[Callable[[Bench], JSON], ...] = (
    beta, wrong_reference, prompt_in_mask, prompt_in_mask_of_means, mean_for_sum, moving_reference,
)  # fmt: skip


def compared(bench: Bench, right: Way, wrong: dict[str, Way]) -> JSON:
    """What each way led to, and by how much reward and KL differ from the right way's on the same seeds and prompts."""
    name = "right" if right == RIGHT else "right (means, β 2)"
    found = {label: [bench.measure(way, seed) for seed in bench.seeds] for label, way in {name: right, **wrong}.items()}
    return {label: summary(runs, None if label == name else found[name]) for label, runs in found.items()}


def summary(runs: list[JSON], right: list[JSON] | None) -> JSON:
    """Intervals over seeds and prompts; of what was logged, means over seeds."""
    values: dict[str, Any] = {
        name: round(sum(run[name] for run in runs) / len(runs), 4)
        for name in ("first_loss", "last_loss", "last_margin", "last_accuracy")
    }
    for name in ("reward", "kl_nats"):
        rows = torch.tensor([run[name] for run in runs])
        values[name] = rounded(rows, name)
        if right is not None:
            values[f"{name}_less_right"] = rounded(rows - torch.tensor([run[name] for run in right]), name)
    return values


def rounded(rows: Tensor, name: str) -> dict[str, float]:
    """An interval, to four decimals."""
    return {end: round(value, 4) for end, value in estimate(rows.numpy(), name).json().items()}


def table(found: JSON) -> str:
    """A gotcha's table, in Markdown."""
    columns = ["", "first loss", "last loss", "margin", "gold reward", "KL, nats", "reward − right", "KL − right"]
    lines = [columns, ["---"] * len(columns)]
    for label, one in found.items():
        logged = [f"{one[name]:.3f}" for name in ("first_loss", "last_loss")] + [signed(one["last_margin"])]
        ends = [interval(one[name]) for name in ("reward", "kl_nats")]
        gaps = [interval(one[f"{name}_less_right"]) if "right" not in label else "" for name in ("reward", "kl_nats")]
        lines.append([label, *logged, *ends, *gaps])
    return "".join(f"|{'|'.join(f' {cell} ' if cell else ' ' for cell in line)}|\n" for line in lines)


def interval(value: JSON) -> str:
    """Mean [low, high]."""
    return f"{signed(value['mean'])} [{signed(value['low'])}, {signed(value['high'])}]"


def signed(value: float) -> str:
    """Two decimals, with a real minus, and no minus before nothing."""
    return f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−")


def with_tables(page: str, found: JSON) -> str:
    """The page with each gotcha's table between its two markers."""
    for name, one in found["gotchas"].items():
        before, begin, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        if begin and end:
            page = before + begin + table(one) + end + after
    return page


def main(study: Path) -> None:
    """Measure all, and write it down."""
    torch.set_num_threads(1)
    bench = Bench.of(study)
    found: JSON = {"steps": STEPS, "pairs_a_step": PAIRS, "learning_rate": RATE, "seeds": len(bench.seeds)}
    found |= {"prompts": len(bench.prompts), "untrained": {name: bench.untrained(name) for name in ("sft", "base")}}
    found |= {"cpu_seconds": {}, "gotchas": {}}
    for gotcha in GOTCHAS:
        begin = time.process_time()
        found["gotchas"][gotcha.__name__] = gotcha(bench)
        found["cpu_seconds"][gotcha.__name__] = round(time.process_time() - begin)
        print(f"{gotcha.__doc__}\n{table(found['gotchas'][gotcha.__name__])}")
    write_json(HERE / "gotchas.json", found)
    page = HERE / "README.md"
    page.write_text(with_tables(page.read_text(encoding="utf-8"), found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
