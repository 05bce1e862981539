"""`preflab evaluate`: what a policy is worth against a reference, each figure with its interval over prompts."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from preflab.config.commands import Evaluate
from preflab.config.load import to_yaml
from preflab.data.encode import Encoder
from preflab.data.sources import read_prompts
from preflab.data.split import first_prompts
from preflab.errors import ConfigError
from preflab.evaluation.policy import Judge
from preflab.evaluation.rows import add_point
from preflab.models.load import check_length, load_policy, pick_device
from preflab.progress import say
from preflab.report.statistics import Estimate, distinct_values, estimate, n_grams, repetition
from preflab.rewards.load import columns_read, load_reward
from preflab.runs import JSON, RunFolder, claim
from preflab.seeds import derive
from preflab.training.rollout import prompt_ids


def run(config: Evaluate) -> None:
    """Sample, judge, print a table; write evaluation.json and samples.jsonl where asked to."""
    device = pick_device(config.device)
    loaded = read_prompts(config.data, columns=columns_read(config.reward))
    rows = first_prompts(loaded.rows, config.prompts, seed=config.seed)
    policy = load_policy(
        config.model, device=device, precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    reference = load_policy(
        config.reference, device=device, precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    if policy.tokenizer.get_vocab() != reference.tokenizer.get_vocab():
        raise ConfigError(f"{config.model} and {config.reference} have different tokenizers: no KL between them")
    reward = None
    if config.reward is not None:
        reward = load_reward(
            config.reward, policy, rows, precision=config.precision, trust_remote_code=config.trust_remote_code
        )
    encoder = Encoder(policy.tokenizer, config.lengths.prompt_tokens, config.lengths.response_tokens)
    judge = Judge(
        reference.model, encoder, reward, None, (), config.lengths.response_tokens, derive(config.seed, "evaluation")
    )
    prompts = prompt_ids(encoder, rows)
    longest = max(len(prompt.ids) for prompt in prompts) + config.lengths.response_tokens
    for model in (policy.model, reference.model):
        check_length(model, longest, "lower lengths.prompt_tokens or lengths.response_tokens")
    if config.out is not None:
        claim(config.out, "config.yaml", to_yaml(config), data=config.data)
    before, before_samples = judge.point(reference, prompts, step=0, split="test", baseline=None)
    after, after_samples = judge.point(policy, prompts, step=1, split="test", baseline=before["rows"]["reward"])
    if config.out is not None:
        add_point(RunFolder(config.out), before, before_samples)
        add_point(RunFolder(config.out), after, after_samples)

    columns = {"reference": _figures(before, before_samples), "model": _figures(after, after_samples)}
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(f"{len(prompts)} prompts")
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for figure in columns["model"]:
        table.add_row(figure, *(_cell(column[figure]) for column in columns.values()))
    Console().print(table)
    for name, count in (loaded.counts | encoder.counts).items():
        if count and name != "read":
            say(f"{name}: {count}")


def _figures(point: dict[str, JSON], samples: list[dict[str, JSON]]) -> dict[str, Estimate]:
    rows = point["rows"]
    words = [str(sample["response"]).split() for sample in samples]
    figures = {
        "reward": rows["reward"],
        "wins against the reference": rows["win"],
        "KL from the reference (nats)": rows["kl_nats"],
        "response tokens": rows["response_tokens"],
        "ended": rows["ended"],
        "repetition (4-grams)": [repetition(response) for response in words],
    } | {f"reward/{name}": values for name, values in rows.get("reward_parts", {}).items()}
    made = {name: estimate([values], name) for name, values in figures.items() if values is not None}
    made["distinct-2"] = estimate(distinct_values([n_grams(response, 2) for response in words]), "distinct-2")
    return made


def _cell(value: Estimate) -> str:
    mean, low, high = asdict(value).values()
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"
