"""`preflab train METHOD`: read the data, train, and end with held-out figures and where the model lies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar, assert_never

from torch import nn

from preflab.cli.plan import NO_REFERENCE, of_cache, show_plan
from preflab.config.arms import LABELS
from preflab.config.commands import Lengths, Methods, Run, RunOnline, TrainPPO, TrainReward, TrainSFT
from preflab.config.load import to_yaml
from preflab.config.online import PPO, PolicyGradient
from preflab.config.online_preference import IterativeDPO, OnlineDPO
from preflab.config.pair_losses import KTOLoss
from preflab.config.preference import Preference, Unpaired
from preflab.config.rewards import ModelTerm, reward_terms
from preflab.data.encode import Encoder, Tree
from preflab.data.sources import Loaded, read_demonstrations, read_feedback, read_pairs, read_prompts
from preflab.data.split import split_by_prompt
from preflab.errors import ConfigError, DataError
from preflab.evaluation.calibration import Calibration, calibration_of
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
from preflab.models.reference import reference_logprobs, user_cache
from preflab.progress import say
from preflab.report.fields import Fields
from preflab.report.reward_models import read_reward_models
from preflab.report.statistics import estimate, perplexity
from preflab.rewards.load import columns_read, learned_rewards, load_reward, models_of
from preflab.runs import RunFolder, read_json, write_json
from preflab.seeds import derive
from preflab.training.checks import check_ends, check_prompts
from preflab.training.cost import Cost
from preflab.training.iterative_dpo import train_iterative_dpo
from preflab.training.online_dpo import train_online_dpo
from preflab.training.plan import Plan, plan_offline, plan_online
from preflab.training.policy_gradient import train_policy_gradient
from preflab.training.ppo import train_ppo
from preflab.training.preference import knows_reference, preference_figures, train_preference
from preflab.training.reward import centre, reward_figures, scores_of_pairs, train_reward
from preflab.training.rollout import PromptIds, prompt_ids
from preflab.training.sft import train_sft
from preflab.training.unpaired import Judged, train_unpaired, unpaired_figures

Row = TypeVar("Row")
Figures = dict[str, dict[str, float]]
"""name → {mean, low, high}, over held-out prompts."""
SHARES = ("accuracy", "wins against the reference")


def sft(config: TrainSFT) -> None:
    """Supervised fine-tuning."""
    if _already_finished(config):
        return
    rows = read_demonstrations(config.data)
    train_rows, held_out_rows = _split(config, rows)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    train, held_out = encoder.demonstrations(train_rows), encoder.demonstrations(held_out_rows)
    run = _open(config, config.freeze_blocks, rows, encoder, policy, train, held_out)
    if config.dry_run:
        plan = plan_offline(policy, train, config, held=[policy.model], folder=config.out, seed=config.seed)
        return _show_plan(config, policy, train, held_out, rows, encoder, plan, unit="demonstrations")
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
        precision=config.precision,
        trust_remote_code=config.trust_remote_code,
        quiet=False,
    )
    encoder = _encoder(config, model)
    train, held_out = encoder.pairs(train_rows), encoder.pairs(held_out_rows)
    run = _open(config, config.freeze_blocks, rows, encoder, model, train, held_out)
    if config.dry_run:
        plan = plan_offline(model, train, config, held=[model.model], folder=config.out, seed=config.seed)
        return _show_plan(config, model, train, held_out, rows, encoder, plan, unit="pairs")
    cost = train_reward(model, train, config, run, seed=config.seed, log_every=config.log_every)
    centre(model, train)
    scores = scores_of_pairs(model, held_out)
    calibrated = calibration_of(scores.numpy(), held_out)
    _finish(config, run, model, _means(vars(reward_figures(scores))), cost, rows, encoder, calibrated)


def preference(config: Run) -> None:
    """DPO and every other method that learns from pairs."""
    assert isinstance(config, Preference)
    if _already_finished(config):
        return
    rows = read_pairs(config.data)
    train_rows, held_out_rows = _split(config, rows)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    train, held_out = encoder.pairs(train_rows), encoder.pairs(held_out_rows)
    run = _open(config, config.freeze_blocks, rows, encoder, policy, train, held_out)
    if config.dry_run:
        known = of_cache(policy, train, config, config.out, seed=config.seed)
        plan = plan_offline(policy, train, config, held=[policy.model], folder=config.out, seed=config.seed)
        return _show_plan(config, policy, train, held_out, rows, encoder, plan, unit="pairs", reference=known)
    cache, of_reference = user_cache(), None
    if knows_reference(config.loss):
        found = reference_logprobs(policy.model, held_out, cache, title="held-out pairs: reference log-probabilities")
        of_reference = found.logprobs.view(-1, 2)
    cost = train_preference(
        policy, train, config, run, seed=config.seed, cache=cache, log_every=config.log_every, title=_name(config)
    )
    figures = preference_figures(policy, held_out, of_reference, config.loss)
    _finish(config, run, policy, _means(vars(figures)), cost, rows, encoder)


def unpaired(config: Run) -> None:
    """KTO and BCO, on responses marked desirable or not."""
    assert isinstance(config, Unpaired)
    if _already_finished(config):
        return
    rows = read_feedback(config.data)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    train, held_out = (
        [Judged(tree, row.desirable) for tree, row in zip(encoder.demonstrations(side), side, strict=True)]
        for side in _split(config, rows)
    )
    trees = [example.tree for example in train], [example.tree for example in held_out]
    for name, side in zip(("training", "held-out"), trees, strict=True):
        if isinstance(config.loss, KTOLoss) and len({tree.prompt for tree in side}) == 1:
            raise DataError(
                f"{config.data}: the {name} responses answer one prompt, and KTO's reference point needs two; give "
                "more prompts, change holdout, or use bco"
            )
    run = _open(config, config.freeze_blocks, rows, encoder, policy, *trees)
    cache, reference = user_cache(), copy_of(policy.model)
    if config.dry_run:
        known = of_cache(policy, trees[0], config, config.out, seed=config.seed)
        plan = plan_offline(
            policy, trees[0], config, held=[policy.model, reference], folder=config.out, seed=config.seed
        )
        return _show_plan(config, policy, *trees, rows, encoder, plan, unit="marked responses", reference=known)
    cost = train_unpaired(
        policy, train, config, run, seed=config.seed, cache=cache, log_every=config.log_every, title=_name(config)
    )
    figures = unpaired_figures(policy, reference, held_out, config.loss, seed=config.seed, cache=cache)
    _finish(config, run, policy, _means(figures), cost, rows, encoder)


def online(config: RunOnline) -> None:
    """PPO, GRPO and their relatives, online and iterative DPO: against a reward, on prompts."""
    assert isinstance(config, PPO | PolicyGradient | OnlineDPO | IterativeDPO)
    if _already_finished(config):
        return
    rows = read_prompts(config.data, columns=columns_read(config.reward))
    train_rows, held_out_rows = _split(config, rows)
    policy = _policy(config)
    encoder = _encoder(config, policy)
    reference = copy_of(policy.model)
    scorer = load_reward(
        config.reward,
        policy,
        rows.rows,
        precision=config.precision,
        trust_remote_code=config.trust_remote_code,
        cache=config.reward_cache,
    )
    prompts, held_out = prompt_ids(encoder, train_rows), prompt_ids(encoder, held_out_rows[:128])
    value = _value(config, policy) if isinstance(config, TrainPPO) else None
    run = _open(config, config.freeze_blocks, rows, encoder, policy, prompts, held_out)
    if config.dry_run:
        held = [one.model for one in (policy, *models_of(scorer), *([value] if value else []))] + [reference]
        plan = plan_online(
            policy,
            value,
            reference,
            learned_rewards(scorer),
            prompts,
            config,
            held=held,
            folder=config.out,
            max_new_tokens=config.lengths.response_tokens,
            seed=config.seed,
        )
        live = "scores every rollout"
        return _show_plan(config, policy, prompts, held_out, rows, encoder, plan, unit="prompts", reference=live)
    shared: dict[str, Any] = {
        "max_new_tokens": config.lengths.response_tokens,
        "seed": config.seed,
        "log_every": config.log_every,
        "title": _name(config),
    }
    match config:
        case PPO():
            cost = train_ppo(policy, value, reference, scorer, prompts, config, run, **shared)
        case PolicyGradient():
            cost = train_policy_gradient(policy, reference, scorer, prompts, config, run, **shared)
        case OnlineDPO():
            cost = train_online_dpo(policy, reference, scorer, prompts, config, run, **shared)
        case IterativeDPO():
            cost = train_iterative_dpo(policy, reference, scorer, prompts, config, run, **shared)
        case never:
            assert_never(never)
    judge = Judge(reference, encoder, scorer, None, (), config.lengths.response_tokens, derive(config.seed, "held-out"))
    before, _ = judge.point(Policy(reference, policy.tokenizer), held_out, step=0, split="test", baseline=None)
    after, _ = judge.point(policy, held_out, step=1, split="test", baseline=before["rows"]["reward"])
    figures = _means(
        {
            "reward of the reference": before["rows"]["reward"],
            "reward": after["rows"]["reward"],
            "kl_nats": after["rows"]["kl_nats"],
            "wins against the reference": after["rows"]["win"],
            "response_tokens": after["rows"]["response_tokens"],
        }
        | {f"reward/{name}": values for name, values in after["rows"].get("reward_parts", {}).items()}
    )
    _finish(config, run, policy, figures, cost, rows, encoder)


def _name(config: Run) -> str:
    """What reports call the method."""
    return next(
        label for name, label in LABELS.items() if isinstance(config, type(getattr(Methods(), name.replace("-", "_"))))
    )


def _policy(config: Run) -> Policy:
    return load_policy(
        config.model,
        device=pick_device(config.device),
        precision=config.precision,
        trust_remote_code=config.trust_remote_code,
        quiet=False,
    )


def _value(config: TrainPPO, policy: Policy) -> Policy | None:
    """The value model, which starts as the first reward model, or as the policy with values of 0 where there is none;
    None where it is a head on the policy."""
    if config.value_trunk == "shared":
        return None
    name = next((term.model for term in reward_terms(config.reward) if isinstance(term, ModelTerm)), None)
    loaded: dict[str, Any] = {
        "device": policy.device,
        "precision": config.precision,
        "trust_remote_code": config.trust_remote_code,
    }
    if name is None:
        fresh = new_reward_model(config.model, seed=derive(config.seed, "value head"), **loaded)
        nn.init.zeros_(fresh.model.score.weight)
        return fresh
    value = load_reward_model(name, **loaded)
    if value.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise ConfigError(
            f"{name} and {config.model} have different tokenizers, and the value model starts as the reward "
            "model; train one with `preflab train reward` on a model of the same family, or use value_trunk = shared"
        )
    return value


def _encoder(config: Run, policy: Policy) -> Encoder:
    return Encoder(policy.tokenizer, config.lengths.prompt_tokens, config.lengths.response_tokens)


def _split(config: Run, loaded: Loaded[Row]) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Training and held-out rows; no prompt stands on both sides."""
    sides = split_by_prompt(loaded.rows, {"train": 1 - config.holdout, "held out": config.holdout}, seed=config.seed)
    return sides["train"], sides["held out"]


def _open(
    config: Run,
    frozen: int,
    loaded: Loaded[Any],
    encoder: Encoder,
    policy: Policy,
    train: Sequence[Tree] | Sequence[PromptIds],
    held_out: Sequence[Tree] | Sequence[PromptIds],
) -> RunFolder:
    """Claim the run folder, once data, model and settings are known to fit each other, and say what was read. A dry run
    claims nothing."""
    check_blocks(policy.model, frozen)
    longest = max(_tokens(row, config.lengths) for row in (*train, *held_out))
    check_length(policy.model, longest, "lower lengths.prompt_tokens or lengths.response_tokens")
    run = RunFolder(config.out) if config.dry_run else RunFolder.open(config.out, to_yaml(config), data=config.data)
    counts = dict(loaded.counts) | dict(encoder.counts)
    say(f"{config.data}: {len(train)} rows to train on, {len(held_out)} held out")
    for name, count in counts.items():
        if name != "read" and count:
            say(f"  {name}: {count}")
    trees = [row for row in train if isinstance(row, Tree)]
    if trees:
        supervised = sum(len(response) for tree in trees for response in tree.responses)
        whole = supervised + sum(len(tree.prompt) * len(tree.responses) for tree in trees)
        say(f"  response tokens, which the loss sees: {supervised} of {whole} ({supervised / whole:.0%})")
        check_ends(trees, encoder.end_id)
        check_prompts(trees)
    return run


def _show_plan(
    config: Run,
    policy: Policy,
    train: Sequence[Tree] | Sequence[PromptIds],
    held_out: Sequence[Tree] | Sequence[PromptIds],
    loaded: Loaded[Any],
    encoder: Encoder,
    plan: Plan,
    *,
    unit: str,
    reference: str = NO_REFERENCE,
) -> None:
    show_plan(
        policy,
        config.model,
        config.data,
        train,
        len(held_out),
        dict(loaded.counts) | dict(encoder.counts),
        plan,
        unit=unit,
        reference=reference,
        response_tokens=config.lengths.response_tokens,
    )


def _tokens(row: Tree | PromptIds, lengths: Lengths) -> int:
    """The longest sequence that comes of it."""
    if isinstance(row, Tree):
        return len(row.prompt) + max(map(len, row.responses))
    return len(row.ids) + lengths.response_tokens


def _means(values: dict[str, list[float]]) -> Figures:
    figures = {name: estimate([rows], name) for name, rows in values.items()}
    return {name: (one.within(0.0, 1.0) if name in SHARES else one).json() for name, one in figures.items()}


def _finish(
    config: Run,
    run: RunFolder,
    policy: Policy,
    figures: Figures,
    cost: Cost,
    loaded: Loaded[Any],
    encoder: Encoder,
    calibration: Calibration | None = None,
) -> None:
    save_model(policy, run.model)
    counts = dict(loaded.counts) | dict(encoder.counts)
    found = {"held_out": figures, "cost": cost.values(), "counts": counts}
    if calibration:
        found["calibration"] = calibration.json()
    write_json(run.evaluation, found)
    _show(config, found)


def _already_finished(config: Run) -> bool:
    """Say what a finished run of the same settings found, and train nothing."""
    run = RunFolder(config.out)
    if config.dry_run or not run.evaluation.exists() or not run.model.exists():
        return False
    RunFolder.open(config.out, to_yaml(config), data=config.data)
    say(f"{config.out} is finished already")
    _show(config, read_json(run.evaluation))
    return True


def _show(config: Run, found: dict[str, Any]) -> None:
    print("held out:")
    for name, value in found["held_out"].items():
        print(f"  {name.replace('_', ' '):<28}{value['mean']:.4g}  [{value['low']:.4g}, {value['high']:.4g}]")
    if "calibration" in found:
        entry = {"label": "reward model", "calibration": found["calibration"]}
        (judged,) = read_reward_models([Fields(entry, RunFolder(config.out).evaluation)])
        for sentence in judged.sentences:
            print(f"  {sentence}")
    print(f"model: {RunFolder(config.out).model}")
