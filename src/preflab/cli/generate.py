"""`preflab generate`: responses of a model to prompts."""

from __future__ import annotations

import json
import sys

from preflab.config.commands import Generate
from preflab.data.encode import Encoder
from preflab.data.sources import read_prompts
from preflab.errors import ConfigError
from preflab.models.load import check_length, load_policy, pick_device
from preflab.rollouts.sampler import sample
from preflab.rollouts.stop import Stop
from preflab.runs import to_line, write_text


def run(config: Generate) -> None:
    """Print responses, or write them as JSONL."""
    cut = config.top_k is not None or config.top_p < 1
    if config.greedy and (config.temperature != 1.0 or config.seed or config.samples > 1 or cut):
        raise ConfigError(
            "--greedy takes the likeliest token always: leave out --temperature, --seed, --samples, --top-k and --top-p"
        )
    prompts = [*config.prompt, *([row.text for row in read_prompts(config.data).rows] if config.data else [])]
    if not prompts:
        raise ConfigError('give a prompt: --prompt "The plot was", or --data prompts.jsonl')
    policy = load_policy(
        config.model,
        device=pick_device(config.device),
        precision=config.precision,
        trust_remote_code=config.trust_remote_code,
        quiet=True,
    )
    encoder = Encoder(policy.tokenizer, prompt_tokens=2**20, response_tokens=2**20)
    stop = Stop(config.stop, encoder)
    ids = [encoder.prompt(prompt) for prompt in prompts]
    longest = max(map(len, ids))
    positions = getattr(policy.model.config, "max_position_embeddings", None) or 2**20
    limit = config.max_new_tokens or max(1, min(128, positions - longest))
    remedy = f"the longest prompt has {longest} tokens: shorten it, or lower --max-new-tokens"
    check_length(policy.model, longest + limit, remedy)
    responses = sample(
        policy.model,
        ids,
        keys=[f"{number}" for number in range(len(prompts))],
        end_id=encoder.end_id,
        max_new_tokens=limit,
        temperature=config.temperature,
        greedy=config.greedy,
        warp=config,
        stop=stop if config.stop else None,
        seed=config.seed,
        samples=config.samples,
    )
    lines = [
        {
            "prompt": prompts[int(response.key)],
            "response": stop.cut(encoder.decode(response.tokens)),
            "ended": response.ended,
        }
        for response in responses
    ]
    if config.out is not None:
        write_text(config.out, "".join(to_line(line) for line in lines))
        print(f"{len(lines)} responses: {config.out}", file=sys.stderr)
        return
    for line in lines:
        text = f"{line['prompt']}{line['response']}"
        print(_visible(text) if sys.stdout.isatty() else json.dumps(line, ensure_ascii=False))


def _visible(text: str) -> str:
    """What a terminal can show without obeying it."""
    return "".join(c if c.isprintable() or c == "\n" else f"\\x{ord(c):02x}" for c in text)
