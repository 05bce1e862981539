"""`preflab pairs`: preference pairs made of a policy's own responses, ranked by a reward."""

from __future__ import annotations

from typing import Any

from preflab.config.commands import MakePairs
from preflab.data.encode import Encoder
from preflab.data.sources import read_prompts
from preflab.errors import ConfigError, DataError
from preflab.models.load import check_length, load_policy, pick_device
from preflab.progress import say
from preflab.rewards.load import columns_read, load_reward
from preflab.rollouts.stop import Stop
from preflab.runs import to_line, write_text
from preflab.training.cost import Cost
from preflab.training.ranking import rank_responses
from preflab.training.rollout import prompt_ids


def run(config: MakePairs) -> None:
    """Sample, score, pair, write; say how many prompts gave no pair."""
    if config.out.exists():
        raise ConfigError(f"{config.out} exists; nothing is overwritten: choose another --out, or delete it")
    if config.out.suffix != ".jsonl":
        raise ConfigError(f"{config.out}: pairs are written as JSONL; let the name end in .jsonl")
    rows = read_prompts(config.data, columns=columns_read(config.reward)).rows
    device = pick_device(config.device)
    policy = load_policy(
        config.model, device=device, precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    reward = load_reward(
        config.reward, policy, rows, precision=config.precision, trust_remote_code=config.trust_remote_code
    )
    encoder = Encoder(policy.tokenizer, config.lengths.prompt_tokens, config.lengths.response_tokens)
    prompts = prompt_ids(encoder, rows)
    longest = max(len(prompt.ids) for prompt in prompts) + config.lengths.response_tokens
    check_length(policy.model, longest, "lower lengths.prompt_tokens or lengths.response_tokens")
    stop = Stop(config.stop, encoder) if config.stop else None
    say(f"{len(prompts)} prompts, a response at each of the temperatures {list(config.ranking.temperatures)}")
    ranked = rank_responses(
        policy,
        encoder,
        reward,
        prompts,
        config.ranking,
        stop=stop,
        missing_end_penalty=config.missing_end_penalty,
        max_new_tokens=config.lengths.response_tokens,
        seed=config.seed,
        cost=Cost(),
    )
    text_of = {prompt.key: prompt.text for prompt in prompts}
    lines: list[dict[str, Any]] = [{"prompt": text_of[pair.tree.origin]} | pair.texts(encoder) for pair in ranked]
    # Pairs that differ in tokens alone, or a response of white space, could not be read back.
    whole = [line for line in lines if line["chosen"] != line["rejected"] and _said(line, "chosen", "rejected")]
    if not whole:
        raise DataError(f"each of {len(lines)} pairs has an empty response, or the same text twice: nothing to write")
    write_text(config.out, "".join(to_line(line) for line in whole))
    gap = sum(line["chosen_reward"] - line["rejected_reward"] for line in whole) / len(whole)
    say(f"prompts without a pair (rewards within ranking.smallest_gap): {len(prompts) - len(ranked)}")
    if len(whole) < len(lines):
        say(f"pairs dropped, as their texts are empty or the same: {len(lines) - len(whole)}")
    print(f"{len(whole)} pairs, mean reward gap {gap:.3g}: {config.out}")


def _said(line: dict[str, Any], *names: str) -> bool:
    return all(line[name].strip() for name in names)
