"""`preflab train METHOD`: read the data, train, and end with held-out figures and where the model lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from preflab.config.commands import Lengths, Run, TrainDPO, TrainPPO, TrainReward, TrainSFT
from preflab.config.load import to_yaml
from preflab.data.encode import Encoder, Tree
from preflab.data.sources import Loaded, read_demonstrations, read_pairs, read_prompts
from preflab.data.split import split_by_prompt
from preflab.errors import ConfigError
from preflab.evaluation.policy import Judge
from preflab.models.freezing import check_blocks
from preflab.models.load import (
    Policy,
    check_length,
    copy_of,
    load_policy,
    load_reward_model,
    new_reward_model,
    pick_device,
    save_model,
)
from preflab.progress import say
from preflab.report.statistics import estimate, perplexity
from preflab.rewards.learned import LearnedReward
from preflab.runs import RunFolder, read_json, write_json
from preflab.seeds import derive
from preflab.training.cost import Cost
from preflab.training.dpo import dpo_figures, pair_logprobs, train_dpo
from preflab.training.ppo import PromptIds, train_ppo
from preflab.training.reward import centre, reward_figures, train_reward
from preflab.training.sft import train_sft

Train = TrainSFT | TrainReward | TrainDPO | TrainPPO
Figures = dict[str, dict[str, float]]
"""name → {mean, low, high}, over held-out prompts."""


def sft(config: TrainSFT) -> None:
    """Supervised fine-tuning."""
    if _already_finished(config):
        return
    rows = read_demonstrations(config.data)
    train_rows, held_out_rows = _split(config, rows)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    train, held_out = encoder.demonstrations(train_rows), encoder.demonstrations(held_out_rows)
    run = _open(config, rows, encoder, policy, train, held_out)
    cost = train_sft(policy, train, config, run, seed=config.seed, log_every=config.log_every)
    judge = Judge(policy.model, encoder, None, None, held_out, config.lengths.response_tokens, config.seed)
    likelihood = judge.likelihood(policy)
    value = perplexity(likelihood["nll_nats"], likelihood["tokens"])
    _finish(config, run, policy, {"perplexity": value.json()}, cost, rows, encoder)


def reward(config: TrainReward) -> None:
    """A Bradley–Terry reward model."""
    if _already_finished(config):
        return
    rows = read_pairs(config.data)
    train_rows, held_out_rows = _split(config, rows)
    model = new_reward_model(
        config.model,
        seed=derive(config.seed, "head"),
        device=pick_device(config.device),
        trust_remote_code=config.trust_remote_code,
        quiet=False,
    )
    encoder = _encoder(config, model)
    train, held_out = encoder.pairs(train_rows), encoder.pairs(held_out_rows)
    run = _open(config, rows, encoder, model, train, held_out)
    cost = train_reward(model, train, config, run, seed=config.seed, log_every=config.log_every)
    centre(model, train)
    _finish(config, run, model, _means(vars(reward_figures(model, held_out))), cost, rows, encoder)


def dpo(config: TrainDPO) -> None:
    """Direct preference optimisation."""
    if _already_finished(config):
        return
    rows = read_pairs(config.data)
    train_rows, held_out_rows = _split(config, rows)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    train, held_out = encoder.pairs(train_rows), encoder.pairs(held_out_rows)
    run = _open(config, rows, encoder, policy, train, held_out)
    of_reference = pair_logprobs(policy.model, held_out, title="held-out pairs: reference")
    cost = train_dpo(policy, train, config, run, seed=config.seed, log_every=config.log_every)
    figures = dpo_figures(policy, held_out, of_reference, beta=config.loss.beta)
    _finish(config, run, policy, _means(vars(figures)), cost, rows, encoder)


def ppo(config: TrainPPO) -> None:
    """Proximal policy optimisation against a reward model."""
    if _already_finished(config):
        return
    rows = read_prompts(config.data)
    train_rows, held_out_rows = _split(config, rows)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    reference = copy_of(policy.model)
    model = load_reward_model(config.reward, device=policy.device, trust_remote_code=config.trust_remote_code)
    value = load_reward_model(config.reward, device=policy.device, trust_remote_code=config.trust_remote_code)
    scorer = LearnedReward(model, policy.tokenizer)
    prompts = [PromptIds(row.origin, row.text, encoder.prompt(row.text)) for row in train_rows]
    held_out = [PromptIds(row.origin, row.text, encoder.prompt(row.text)) for row in held_out_rows[:128]]
    if model.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f"{config.reward} and {config.model} have different tokenizers, and the value model starts as the reward "
            "model; train one with `preflab train reward` on a model of the same family"
        )
    run = _open(config, rows, encoder, policy, prompts, held_out)
    cost = train_ppo(
        policy,
        value,
        reference,
        scorer,
        prompts,
        config,
        run,
        max_new_tokens=config.lengths.response_tokens,
        seed=config.seed,
        log_every=config.log_every,
    )
    judge = Judge(reference, encoder, scorer, None, (), config.lengths.response_tokens, derive(config.seed, "held-out"))
    before, _ = judge.point(Policy(reference, policy.tokenizer), held_out, step=0, split="test", baseline=None)
    after, _ = judge.point(policy, held_out, step=config.updates, split="test", baseline=before["rows"]["reward"])
    figures = _means(
        {
            "reward of the reference": before["rows"]["reward"],
            "reward": after["rows"]["reward"],
            "kl_nats": after["rows"]["kl_nats"],
            "wins against the reference": after["rows"]["win"],
            "response_tokens": after["rows"]["response_tokens"],
        }
    )
    _finish(config, run, policy, figures, cost, rows, encoder)


def _policy(config: Run) -> Policy:
    return load_policy(
        config.model, device=pick_device(config.device), trust_remote_code=config.trust_remote_code, quiet=False
    )


def _encoder(config: Run, policy: Policy) -> Encoder:
    return Encoder(policy.tokenizer, config.lengths.prompt_tokens, config.lengths.response_tokens)


def _split(config: Run, loaded: Loaded[Any]) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Training and held-out rows; no prompt stands on both sides."""
    sides = split_by_prompt(loaded.rows, {"train": 1 - config.holdout, "held out": config.holdout}, seed=config.seed)
    return sides["train"], sides["held out"]


def _open(
    config: Train, loaded: Loaded[Any], encoder: Encoder, policy: Policy, train: Sequence[Any], held_out: Sequence[Any]
) -> RunFolder:
    """Claim the run folder, once data, model and settings are known to fit each other, and say what was read."""
    check_blocks(policy.model, config.freeze_blocks)
    longest = max(_tokens(row, config.lengths) for row in (*train, *held_out))
    check_length(policy.model, longest, "lower lengths.prompt_tokens or lengths.response_tokens")
    run = RunFolder.open(config.out, to_yaml(config), data=config.data)
    counts = dict(loaded.counts) | dict(encoder.counts)
    say(f"{config.data}: {len(train)} rows to train on, {len(held_out)} held out")
    for name, count in counts.items():
        if name != "read" and count:
            say(f"  {name}: {count}")
    if isinstance(train[0], Tree):
        supervised = sum(len(response) for tree in train for response in tree.responses)
        whole = supervised + sum(len(tree.prompt) * len(tree.responses) for tree in train)
        say(f"  response tokens, which the loss sees: {supervised} of {whole} ({supervised / whole:.0%})")
    return run


def _tokens(row: Tree | PromptIds, lengths: Lengths) -> int:
    """The longest sequence that comes of it."""
    if isinstance(row, Tree):
        return len(row.prompt) + max(map(len, row.responses))
    return len(row.ids) + lengths.response_tokens


def _means(values: dict[str, list[float]]) -> Figures:
    return {name: estimate([rows], name).json() for name, rows in values.items()}


def _finish(
    config: Run, run: RunFolder, policy: Policy, figures: Figures, cost: Cost, loaded: Loaded[Any], encoder: Encoder
) -> None:
    save_model(policy, run.model)
    counts = dict(loaded.counts) | dict(encoder.counts)
    write_json(run.evaluation, {"held_out": figures, "cost": cost.values(), "counts": counts})
    _show(config, figures)


def _already_finished(config: Run) -> bool:
    """Say what a finished run of the same settings found, and train nothing."""
    run = RunFolder(config.out)
    if not run.evaluation.exists() or not run.model.exists():
        return False
    RunFolder.open(config.out, to_yaml(config), data=config.data)
    say(f"{config.out} is finished already")
    _show(config, read_json(run.evaluation)["held_out"])
    return True


def _show(config: Run, figures: Figures) -> None:
    print("held out:")
    for name, value in figures.items():
        print(f"  {name.replace('_', ' '):<28}{value['mean']:.4g}  [{value['low']:.4g}, {value['high']:.4g}]")
    print(f"model: {RunFolder(config.out).model}")
